"""Faults as users make them: each replaces one function of the package while it holds, and puts it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import ssl_seg.run.assembly
import ssl_seg.run.training
from ssl_seg.data.loader import PatchSource, Probe
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.inference import sliding
from ssl_seg.inference.stitching import Windows

BIAS = -8.0


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by what ``make`` returns for it."""
    with mock.patch.object(owner, name, make(getattr(owner, name))):
        yield


def negate_loss() -> AbstractContextManager[None]:
    """The score is minimized where one minus the score should be."""

    def make(original: Any) -> Any:
        def make_loss(config: Any) -> Any:
            loss = original(config)

            class Negated:
                components, phases = loss.components, loss.phases

                def __call__(self, *args: Any) -> Any:
                    value, components = loss(*args)
                    return -value, components

            return Negated()

        return make_loss

    return _replaced(ssl_seg.run.training, "make_supervised_loss", make)


def change_network(change: Callable[[nn.Module], None]) -> AbstractContextManager[None]:
    """The network is not what its author thinks it is."""

    def make(original: Any) -> Any:
        def start_network(config: Any) -> nn.Module:
            network: nn.Module = original(config)
            change(network)
            return network

        return start_network

    return _replaced(ssl_seg.run.training, "start_network", make)


def trap_bias(log_odds: float = BIAS) -> AbstractContextManager[None]:
    """The head starts at a prior for very rare foreground, as papers on the focal loss advise for boxes."""

    def change(network: nn.Module) -> None:
        bias = _find_head(network).bias
        with torch.no_grad():
            bias[0], bias[1:] = 0.0, log_odds

    return change_network(change)


def kill_activations() -> AbstractContextManager[None]:
    """The last hidden layer is far below zero before its ReLU: no activation, and no gradient that could mend it."""

    def change(network: nn.Module) -> None:
        _find_head(network).register_forward_pre_hook(_far_below_zero)

    return change_network(change)


def freeze_statistics() -> AbstractContextManager[None]:
    """The BatchNorm momentum is 0 (PyTorch's meaning of it is the other way round in other frameworks)."""

    def change(network: nn.Module) -> None:
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 0.0

    return change_network(change)


def change_probes(change: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """Images are normalized in another way for prediction than for training."""

    def make(original: Any) -> Any:
        def make_probe(*args: Any) -> Probe:
            probe = original(*args)
            return replace(probe, image=change(probe.image))

        return make_probe

    return _replaced(ssl_seg.run.assembly, "make_probe", make)


def invert_contrast_at_prediction() -> AbstractContextManager[None]:
    """A reader at prediction takes white for black (a TIFF tag)."""
    return change_probes(torch.neg)


def blank_at_prediction() -> AbstractContextManager[None]:
    """Images are scaled to [0, 1] and kept as integers before prediction, so that all are 0."""
    return change_probes(torch.zeros_like)


def change_targets(change: Callable[[Tensor, int], Tensor]) -> AbstractContextManager[None]:
    """The masks of the training batches are not those of the files; ``change`` takes the target and the step."""

    def make(original: Any) -> Any:
        def get(self: PatchSource, step: int) -> Any:
            batch = original(self, step)
            return replace(batch, target=change(batch.target, step))

        return get

    return _replaced(PatchSource, "__getitem__", make)


def empty_masks() -> AbstractContextManager[None]:
    """A missing mask is read as an empty one, for all labeled cases."""
    return change_targets(lambda target, _: torch.zeros_like(target))


def full_masks() -> AbstractContextManager[None]:
    """A mask is thresholded at >= 0."""
    return change_targets(lambda target, _: torch.ones_like(target))


def swap_labels() -> AbstractContextManager[None]:
    """Foreground is 0 in the training masks."""
    return change_targets(lambda target, _: torch.where(target >= 0, 1 - target, target))


def shuffle_masks() -> AbstractContextManager[None]:
    """Images and masks are listed in different orders, so each image is learned with the mask of another."""
    return change_targets(lambda target, step: target.roll(1 + step % (len(target) - 1), dims=0))


def spoil_batch(at: int) -> AbstractContextManager[None]:
    """One image holds NaN."""

    def make(original: Any) -> Any:
        def get(self: PatchSource, step: int) -> Any:
            batch = original(self, step)
            return replace(batch, image=torch.full_like(batch.image, torch.nan)) if step == at else batch

        return get

    return _replaced(PatchSource, "__getitem__", make)


def freeze_teacher() -> AbstractContextManager[None]:
    """The teacher's update is never called."""
    return mock.patch.object(EMATeacher, "update")


def leave_buffers_behind() -> AbstractContextManager[None]:
    """Only parameters are averaged; the teacher keeps the BatchNorm statistics that it was made with."""

    def make(original: Any) -> Any:
        def update(self: EMATeacher, student: nn.Module) -> None:
            kept = [buffer.clone() for buffer in self.net.buffers()]
            original(self, student)
            for buffer, old in zip(self.net.buffers(), kept, strict=True):
                buffer.copy_(old)

        return update

    return _replaced(EMATeacher, "update", make)


def jump_lr(at: int, factor: float) -> AbstractContextManager[None]:
    """The learning rate is multiplied in mid-run, as the plateau response of a reported recipe did (x 30, x 80)."""

    def make(original: Any) -> Any:
        def step(self: Engine, batch: Any, number: int, lr: float, *rest: Any) -> Any:
            return original(self, batch, number, lr * factor if number >= at else lr, *rest)

        return step

    return _replaced(Engine, "step", make)


def leave_border_out(width: int) -> AbstractContextManager[None]:
    """The windows of the prediction stop before the border of the image."""

    def make(original: Any) -> Any:
        def stitch(read: Any, forward: Any, windows: Windows, box: Any, **options: Any) -> Iterator[tuple[int, Any]]:
            for first, rows in original(read, forward, windows, box, **options):
                inner = slice(max(width - first, 0), max(windows.shape[0] - width - first, 0))
                part = (slice(None), inner, *(slice(width, -width) for _ in windows.shape[1:]))
                covered = np.zeros_like(rows)
                covered[part] = rows[part]
                yield first, covered

        return stitch

    return _replaced(sliding, "stitch", make)


def _far_below_zero(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001 (a hook)
    return (torch.relu(inputs[0] - 1e3),)


def _find_head(network: nn.Module) -> Any:
    """Return the last convolution."""
    return [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][-1]


spoil_batch_32 = partial(spoil_batch, 32)
jump_lr_35 = partial(jump_lr, 35, 100.0)
