"""Uncertainty-aware Mean Teacher (Yu et al. 2019, arXiv:1907.07034).

Loss = supervised + w(t) · sum_v [U_v < H(t)] · |student(strong)_v - teacher(weak)_v|² / (K · sum_v [U_v < H(t)]), where
U is the entropy of the mean of T teacher passes on noisy weak views, and H(t) rises from 3/4 ln K to ln K, the largest
entropy there is, while the weight is ramped up.

Deviations: noise alone makes the passes differ, since the networks have no dropout; the student sees strong views;
the limit of the entropy is ln K (the published code has ln 2 for any K); the weight is 1 (0.1), as for Mean Teacher.
Eight passes of the teacher cost about as much as the rest of the step, counted in patches and passes.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.common import to_float32
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import PseudoLabels, UnlabeledConfig, add_unlabeled, predict, split_views

NOISE, MOST_NOISE = 0.1, 0.2
"""Standard deviation and largest value of the noise, for images of z-scores."""
LOWEST = 0.75
"""The limit of the entropy at the start, as a share of ln K."""


class UncertaintyAwareConfig(UnlabeledConfig):
    """Options of uncertainty-aware Mean Teacher."""

    rampup_ratio: Share = 0.4
    """Share of the run over which the weight, and the limit of the entropy, rise."""
    passes: int = Field(8, ge=2, le=64)
    """Noisy teacher passes that the entropy is measured on."""


class UncertaintyAwareMeanTeacher:
    """Mean Teacher where the teacher is certain under noise."""

    config_type: ClassVar[type[Section]] = UncertaintyAwareConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: UncertaintyAwareConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        self.options, self.supervised, self.num_classes = options, supervised, num_classes

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped consistency loss; one forward pass of the student serves both."""
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        rise = self.options.compute_rampup(progress)
        limit = (LOWEST + (1 - LOWEST) * rise) * math.log(self.num_classes)
        accepted = self._measure_entropy(nets.teacher, batch.weak) < limit
        labels = PseudoLabels(predict(nets.teacher, batch.weak), accepted).mix(batch.mixes[0])
        (view,) = split_views(logits, batch)
        consistency = mean_squared_distance(view, labels)
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **labels.describe())

    def _measure_entropy(self, teacher: nn.Module, weak: Tensor) -> Tensor:
        """Return the entropy (U,*S), in nats, of the mean of the noisy passes."""
        noisy = (
            weak + (NOISE * torch.randn_like(weak)).clamp(-MOST_NOISE, MOST_NOISE) for _ in range(self.options.passes)
        )
        mean = torch.stack([predict(teacher, images) for images in noisy]).mean(dim=0)
        return -torch.xlogy(mean, mean).sum(dim=1)


def mean_squared_distance(logits: Tensor, labels: PseudoLabels) -> Tensor:
    """Return the squared difference of the probabilities, mean over classes and over the voxels that count; 0 where
    there is none."""
    squared = (torch.softmax(to_float32(logits), dim=1) - labels.probs) ** 2
    counts = torch.ones_like(squared[:, 0]) if labels.accepted is None else labels.accepted
    return (squared.mean(dim=1) * counts).sum() / counts.sum().clamp(min=1)
