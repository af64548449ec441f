"""Mean Teacher (Tarvainen and Valpola 2017, arXiv:1703.01780).

Loss = supervised + w(t) · d(student(strong), teacher(weak)) with w(t) ramped up over the first steps.

Deviations from the paper: the two views differ by strong intensity changes and cutout on one side instead of equal
noise on both; only unlabeled patches enter the consistency term; the teacher runs in eval mode. Where strong views are
mixed (CutMix), the teacher sees the whole weak ones and its probabilities are mixed in the same way. Of a network with
deep supervision, the consistency looks at the finest output.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY
from ssl_seg.methods.base import Nets, Progress, StepOutput, Traits
from ssl_seg.methods.unlabeled import PseudoLabelConfig, PseudoLabelMethod


class MeanTeacherConfig(PseudoLabelConfig):
    """Options of Mean Teacher."""

    consistency: Literal["mse", "kl", "cross_entropy", "dice", "js"] = "mse"
    """Distance between student and teacher; cross_entropy takes the teacher's most probable class as label."""
    confidence: float = Field(0.0, ge=0, le=1)
    """Probability that the teacher's most probable class needs for a voxel to count; 0 accepts all."""
    rampup_ratio: float = Field(0.4, ge=0, le=1)
    """Share of the run over which the weight rises."""


class MeanTeacher(PseudoLabelMethod):
    """Consistency of the student with its own moving average on unlabeled patches."""

    config_type: ClassVar[type[Section]] = MeanTeacherConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    options: MeanTeacherConfig

    def forward(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:
        """Return supervised + ramped consistency loss; see ``learn``."""
        return self.learn(nets.teacher, CONSISTENCY[self.options.consistency], nets.student, batch, progress)
