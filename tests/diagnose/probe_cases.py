"""Losses with known faults, small networks and batches, for the tests of the loss probe."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_seg.config.schedules import LossPhase
from ssl_seg.data.findings import Finding
from ssl_seg.diagnose.loss_probe import LossProbe, check_probe, probe_state
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LossFn
from ssl_seg.losses.trivial import Labeled, compute_constants, compute_frequencies, find_positive_class
from ssl_seg.losses.voxelwise import cross_entropy

CHANNELS = 3


def make_batches(num_classes: int = 2, count: int = 2, ignored: float = 0.2) -> list[Labeled]:
    """Images whose first channels show the classes, under noise."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for _ in range(count):
        target = torch.multinomial(torch.tensor([0.7, 0.2, 0.1])[:num_classes], 2 * 64, True, generator=generator)
        target = target.view(2, 8, 8)
        image = 0.5 * torch.randn(2, CHANNELS, 8, 8, generator=generator)
        image[:, :num_classes] += functional.one_hot(target, num_classes).movedim(-1, 1)
        target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE_INDEX
        batches.append((image, target))
    return batches


def make_linear(num_classes: int = 2) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(CHANNELS, num_classes, 1)


def make_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(CHANNELS, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 2, 1)
    )


def make_probe(
    components: Mapping[str, LossFn],
    weights: Mapping[str, float] | None = None,
    *,
    net: nn.Module | None = None,
    batches: list[Labeled] | None = None,
) -> LossProbe:
    batches = batches or make_batches()
    phases = (LossPhase(0, weights or dict.fromkeys(components, 1.0)),)
    state = probe_state("start", net or make_linear(), components, phases, batches)
    frequencies = compute_frequencies(batches, 2)
    constants = compute_constants(components, batches, frequencies)
    return LossProbe(phases, len(batches), frequencies, find_positive_class(frequencies), constants, (state,))


def find(probe: LossProbe, code: str) -> list[Finding]:
    return [finding for finding in check_probe(probe) if finding.code == code]


def negated(loss: LossFn) -> LossFn:
    return lambda logits, target: -loss(logits, target)


def push_down(logits: Tensor, target: Tensor) -> Tensor:
    """Cost of all foreground, wherever it is."""
    return torch.softmax(logits, dim=1)[:, 1:].mean()


def scaled(factor: float, loss: LossFn = cross_entropy) -> LossFn:
    return lambda logits, target: factor * loss(logits, target)


def half_labeled(positives: int, size: int, ignored: int = 0) -> Tensor:
    target = torch.zeros(size + ignored, dtype=torch.int64)
    target[:positives] = 1
    target[size:] = IGNORE_INDEX
    return target.view(1, -1, 1)
