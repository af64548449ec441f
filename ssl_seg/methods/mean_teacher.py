"""Mean Teacher (Tarvainen and Valpola 2017, arXiv:1703.01780).

Loss = supervised + w(t) · d(student(strong), teacher(weak)) with w(t) ramped up over the first steps.

Deviations from the paper: the two views differ by strong intensity changes and cutout on one side instead of equal
noise on both; only unlabeled patches enter the consistency term; the teacher runs in eval mode. Where strong views are
mixed (CutMix), the teacher sees the whole weak ones and its probabilities are mixed in the same way.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, Progress, StepOutput
from ssl_seg.schedules import compute_rampup


class MeanTeacherConfig(Section):
    """Options of Mean Teacher."""

    consistency: Literal["mse", "kl"] = "mse"
    """Distance between the probabilities of student and teacher."""
    consistency_weight: float = Field(1.0, ge=0)
    """Weight of the consistency term after the ramp-up."""
    rampup_ratio: float = Field(0.4, ge=0, le=1)
    """Share of the run over which the weight rises."""
    rampup: Literal["sigmoid", "linear", "cosine"] = "sigmoid"
    """Shape of the rise; sigmoid starts at 0.7 %, the others at 0."""


class MeanTeacher:
    """Consistency of the student with its own moving average on unlabeled patches."""

    config_type: ClassVar[type[Section]] = MeanTeacherConfig
    uses_teacher: ClassVar[bool] = True

    def __init__(self, options: MeanTeacherConfig, supervised: SupervisedLoss) -> None:
        self.options, self.supervised = options, supervised

    def __call__(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:
        """Return supervised + ramped consistency loss; one forward pass of the student serves both."""
        labeled = len(batch.image)
        logits = nets.student(torch.cat([batch.image, batch.strong]))
        supervised, terms = self.supervised(logits[:labeled], batch.target, progress.epoch)
        if len(batch.weak) == 0:
            return StepOutput(supervised, terms)
        with torch.no_grad():
            teacher_probs = nets.teacher(batch.weak).float().softmax(dim=1)
            if batch.mix is not None:
                teacher_probs = batch.mix.apply(teacher_probs)
        consistency = CONSISTENCY[self.options.consistency](logits[labeled:], teacher_probs)
        ramp = compute_rampup(
            progress.step, round(self.options.rampup_ratio * progress.total_steps), self.options.rampup
        )
        weight = self.options.consistency_weight * ramp
        terms = {**terms, "consistency": consistency.detach(), "consistency_weight": torch.tensor(weight)}
        return StepOutput(supervised + weight * consistency, terms)
