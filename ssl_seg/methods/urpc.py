"""Uncertainty-rectified pyramid consistency (Luo et al. 2021, arXiv:2012.07042).

The outputs p_h of a network with deep supervision, at H scales, shall agree on unlabeled patches. With their mean p and
KL_h = sum_k p · log(p / p_h) at each voxel:

    loss = supervised + w(t) · mean_h [ sum_v |p_h - p|² · exp(-KL_h) / (K · sum_v exp(-KL_h)) + mean_v KL_h ]

Deviations: the scales are those of ``network.deep_supervision``; the supervised loss gives coarser ones less weight,
as it does for every method; the outputs see the strong view; the weight is 1 (0.1).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.common import to_float32
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import UnlabeledConfig, add_unlabeled


class PyramidConsistencyConfig(UnlabeledConfig):
    """Options of uncertainty-rectified pyramid consistency."""


class PyramidConsistency:
    """The outputs at several scales agree on unlabeled patches."""

    config_type: ClassVar[type[Section]] = PyramidConsistencyConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, needs_heads=True)

    def __init__(self, options: PyramidConsistencyConfig, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.options, self.supervised = options, supervised

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped consistency of the scales; one forward pass of the student serves both."""
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        consistency, mean = compare_scales(logits[len(batch.image) :])
        terms = {"pseudo_prevalence": (mean.max(dim=1).indices > 0).float().mean()}
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **terms)


def compare_scales(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rectified distance of outputs (U,H,K,*S) to their mean, and that mean (U,K,*S), detached."""
    log_probs = torch.log_softmax(to_float32(logits), dim=2)
    probs = log_probs.exp()
    mean = probs.mean(dim=1, keepdim=True)
    divergence = (mean * (mean.clamp(min=torch.finfo(mean.dtype).tiny).log() - log_probs)).sum(dim=2)
    trust = torch.exp(-divergence)
    voxels = (0, *range(2, trust.ndim))
    rectified = (((probs - mean) ** 2).mean(dim=2) * trust).sum(voxels) / trust.sum(voxels)
    return (rectified + divergence.mean(voxels)).mean(), mean[:, 0].detach()
