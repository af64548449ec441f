"""Mean Teacher (Tarvainen and Valpola 2017, arXiv:1703.01780).

Loss = supervised + w(t) · d(student(strong), teacher(weak)) with w(t) ramped up over the first steps.

Deviations from the paper: the two views differ by strong intensity changes and cutout on one side instead of equal
noise on both; only unlabeled patches enter the consistency term; the teacher runs in eval mode. Where strong views are
mixed (CutMix), the teacher sees the whole weak ones and its probabilities are mixed in the same way. Of a network with
deep supervision, the consistency looks at the finest output.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ssl_seg.config import Section
from ssl_seg.config.schedules import compute_rampup
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss, first_head
from ssl_seg.methods.base import Nets, Progress, StepOutput, Traits, count_foreground


class MeanTeacherConfig(Section):
    """Options of Mean Teacher."""

    consistency: Literal["mse", "kl", "cross_entropy", "dice", "js"] = "mse"
    """Distance between student and teacher; cross_entropy takes the teacher's most probable class as label."""
    consistency_weight: float = Field(1.0, ge=0)
    """Weight of the consistency term after the ramp-up."""
    confidence: float = Field(0.0, ge=0, le=1)
    """Probability that the teacher's most probable class needs for a voxel to count; 0 accepts all."""
    rampup_ratio: float = Field(0.4, ge=0, le=1)
    """Share of the run over which the weight rises."""
    rampup_steps: int | None = Field(None, ge=0)
    """Steps over which the weight rises, in place of rampup_ratio."""
    rampup: Literal["sigmoid", "linear", "cosine"] = "sigmoid"
    """Shape of the rise; sigmoid starts at 0.7 %, the others at 0."""


class MeanTeacher:
    """Consistency of the student with its own moving average on unlabeled patches."""

    config_type: ClassVar[type[Section]] = MeanTeacherConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: MeanTeacherConfig, supervised: SupervisedLoss) -> None:
        self.options, self.supervised = options, supervised

    def __call__(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:
        """Return supervised + ramped consistency loss; one forward pass of the student serves both."""
        labeled = len(batch.image)
        logits = nets.student(torch.cat([batch.image, batch.strong[0]]))
        supervised, components = self.supervised(logits[:labeled], batch.target, progress.epoch)
        terms = {**components, **count_foreground(logits[:labeled], batch.target)}
        if len(batch.weak) == 0:
            return StepOutput(supervised, terms)
        teacher_probs = _predict(nets, batch)
        terms["pseudo_prevalence"] = (teacher_probs.argmax(dim=1) > 0).float().mean()
        accepted = None
        if self.options.confidence > 0:
            accepted = teacher_probs.amax(dim=1) >= self.options.confidence
            terms["accepted_share"] = accepted.float().mean()
        student_logits = first_head(logits, batch.target.ndim)[labeled:]
        consistency = CONSISTENCY[self.options.consistency](student_logits, teacher_probs, accepted)
        weight = self._compute_weight(progress)
        terms |= {"consistency": consistency.detach(), "consistency_weight": torch.tensor(weight)}
        return StepOutput(supervised + weight * consistency, terms)

    def _compute_weight(self, progress: Progress) -> float:
        steps = self.options.rampup_steps
        if steps is None:
            steps = round(self.options.rampup_ratio * progress.total_steps)
        rampup = 1.0 if progress.teacher_is_fixed else compute_rampup(progress.step, steps, self.options.rampup)
        return self.options.consistency_weight * rampup * progress.unlabeled_factor


@torch.no_grad()
def _predict(nets: Nets, batch: Batch) -> Tensor:
    """Return the teacher's probabilities (U, K, *S), mixed as the strong views are."""
    probs = nets.teacher(batch.weak).float().softmax(dim=1)
    return probs if batch.mixes[0] is None else batch.mixes[0].apply(probs)
