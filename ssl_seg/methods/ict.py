"""Interpolation consistency training (Verma et al. 2019, arXiv:1903.03825).

Loss = supervised + w(t) · d(student(a · u_i + (1 - a) · u_j), a · teacher(u_i) + (1 - a) · teacher(u_j)), with j the
next unlabeled patch of the batch and a drawn from Beta(0.2, 0.2) for each patch.

Deviations: the student sees the mixture of strong views, the teacher weak ones; the distance can be chosen; the weight
is 1 (0.1), as for Mean Teacher here. Where strong views are mixed (CutMix), the teacher's probabilities follow first.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ssl_seg.config import Section
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import PseudoLabels, UnlabeledConfig, add_unlabeled, predict, split_views


class InterpolationConsistencyConfig(UnlabeledConfig):
    """Options of interpolation consistency training."""

    consistency: Literal["mse", "kl", "cross_entropy", "dice", "js"] = "mse"
    """Distance between student and mixture; cross_entropy takes the most probable class of the mixture."""
    beta: float = Field(0.2, gt=0)
    """Both parameters of the Beta distribution of the shares; small ones mix little."""
    rampup_ratio: Share = 0.4
    """Share of the run over which the weight rises."""


class InterpolationConsistency:
    """What the student says of a mixture is the mixture of what the teacher says."""

    config_type: ClassVar[type[Section]] = InterpolationConsistencyConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: InterpolationConsistencyConfig, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.options, self.supervised = options, supervised

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped consistency loss; one forward pass of the student serves both."""
        beta = torch.distributions.Beta(self.options.beta, self.options.beta)
        shares = beta.sample((len(batch.weak),)).to(batch.weak, non_blocking=True)
        logits = nets.student(torch.cat([batch.image, interpolate(batch.strong[0], shares)]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        labels = PseudoLabels(predict(nets.teacher, batch.weak), None).mix(batch.mixes[0])
        (view,) = split_views(logits, batch)
        consistency = CONSISTENCY[self.options.consistency](view, interpolate(labels.probs, shares))
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **labels.describe())


def interpolate(patches: Tensor, shares: Tensor) -> Tensor:
    """Return ``a * x_i + (1 - a) * x_(i+1)`` of patches (U,C,*S) and their shares a (U,)."""
    share = shares.reshape(-1, *[1] * (patches.ndim - 1))
    return share * patches + (1 - share) * patches.roll(-1, dims=0)
