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
from torch import nn

from ssl_seg.config import Section
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import (
    PseudoLabelConfig,
    Threshold,
    add_unlabeled,
    compare_views,
    measure_precision,
    predict,
    split_views,
)


class MeanTeacherConfig(PseudoLabelConfig):
    """Options of Mean Teacher."""

    consistency: Literal["mse", "kl", "cross_entropy", "dice", "js"] = "mse"
    """Distance between student and teacher; cross_entropy takes the teacher's most probable class as label."""
    confidence: Share = 0.0
    """Probability that the teacher's most probable class needs for a voxel to count; 0 accepts all."""
    rampup_ratio: Share = 0.4
    """Share of the run over which the weight rises."""


class MeanTeacher(nn.Module):
    """Consistency of the student with its own moving average on unlabeled patches."""

    config_type: ClassVar[type[Section]] = MeanTeacherConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: MeanTeacherConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.options, self.supervised, self.threshold = options, supervised, Threshold(options, num_classes)

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped consistency loss; one forward pass of the student serves both."""
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        labels = self.threshold(predict(nets.teacher, batch.weak))
        distance = CONSISTENCY[self.options.consistency]
        consistency = compare_views(distance, split_views(logits, batch), labels, batch)
        terms = labels.describe() | self.threshold.describe()
        terms |= measure_precision(self.threshold, nets.teacher, batch, progress)
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **terms)
