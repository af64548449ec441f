"""Averages of weights: the teacher, an exponential moving average of the student, and the mean of students at the ends
of epochs (stochastic weight averaging, Izmailov et al. 2018).

``torch.optim.swa_utils.AveragedModel`` is not used as a whole: it leaves the average in train mode with gradients
on, has no decay warm-up, and with ``use_buffers`` it also averages integer counters. Its averaging function is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from ssl_seg.networks.average import move_average
from ssl_seg.networks.precision import Autocast


class EMATeacher:
    """A copy of the student that follows it; always in eval mode and without gradients.

    Its buffers follow too, see ``move_average``: a teacher whose buffers stay behind fails in eval mode although its
    weights are right.

    Args:
        student: the bare network.
        decay_at: number of updates made before -> weight of the old teacher in the next one, in [0, 1].
        held: number of first updates that leave the teacher as it is. The next one makes it a copy of the student, and
            from there on ``decay_at`` is asked, with the count at 0.
    """

    def __init__(self, student: nn.Module, decay_at: Callable[[int], float], held: int = 0) -> None:
        self.net = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay_at, self.held = decay_at, held
        self.updates = 0

    @property
    def is_held(self) -> bool:
        """Whether the next update leaves the teacher as it is."""
        return self.updates < self.held

    def update(self, student: nn.Module) -> None:
        """Move one step towards the student; no synchronization with the host."""
        if not self.is_held:
            move_average(
                self.net, student, 0.0 if self.updates == self.held > 0 else self.decay_at(self.updates - self.held)
            )
        self.updates += 1


class WeightAverage:
    """The mean, with equal weights, of the networks added so far; its buffers are those of the last one.

    Args:
        student: the bare network, for its form; it is not added.
    """

    def __init__(self, student: nn.Module) -> None:
        # AveragedModel leaves its copy in train mode and with gradients on.
        self._model = AveragedModel(student).eval().requires_grad_(False)

    @property
    def net(self) -> nn.Module:
        """The network with the mean weights."""
        return self._model.module

    @property
    def count(self) -> int:
        """Number of networks in the mean."""
        return int(self._model.n_averaged)

    def add(self, student: nn.Module) -> None:
        """Take a network into the mean."""
        self._model.update_parameters(student)

    def clear(self) -> None:
        """Forget the networks added so far; the next one starts the mean anew."""
        self._model.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; nothing while the mean is empty."""
        return {"average": self.net.state_dict(), "count": self.count} if self.count else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.net.load_state_dict(state["average"])
        self._model.n_averaged.fill_(state["count"])


def estimate_batch_norm(net: nn.Module, images: Iterable[Tensor], autocast: Autocast) -> None:
    """Set the BatchNorm statistics to their mean over batches of images (N,C,*P) on the network's device.

    Layers that stay in eval mode, such as those of a frozen encoder, keep theirs, where ``update_bn`` of torch resets
    all. The network is in eval mode afterwards.
    """
    moving = [layer for layer in net.train().modules() if isinstance(layer, _BatchNorm) and layer.training]
    momenta = [layer.momentum for layer in moving]
    for layer in moving:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean of the batches
    with autocast(), torch.no_grad():
        for batch in images:
            net(batch)
    for layer, momentum in zip(moving, momenta, strict=True):
        layer.momentum = momentum
    net.eval()
