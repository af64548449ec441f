"""FixMatch (Sohn et al. 2020, arXiv:2001.07685) for segmentation (UniMatch, Yang et al. 2023, arXiv:2208.09910).

Loss = supervised + w(t) · mean over voxels of [max q >= threshold] · CE(student(strong), argmax q), where q are the
probabilities of the labeler on the weak view and w(t) is ramped up over the first fifth of the run. Strong views are
mixed by CutMix, which the plan turns on (``augment.cutmix``): pseudo-labels and what counts of them follow.

Deviations: the labeler is the moving average of the student, as in UniMatch V2, unless ``labeler`` says the student,
as in the paper; the threshold is 0.9 (0.95), since a network that has seen a few images for a few hundred steps is
rarely surer. Of a network with deep supervision, the finest output learns.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import nn

from ssl_seg.config import Section
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


class FixMatchConfig(PseudoLabelConfig):
    """Options of FixMatch."""

    labeler: Literal["teacher", "student"] = "teacher"
    """Network that makes the pseudo-labels, in eval mode."""
    consistency: Literal["cross_entropy", "dice", "kl", "mse", "js"] = "cross_entropy"
    """Distance to the pseudo-label; cross_entropy takes the most probable class, the others take the probabilities."""


class FixMatch(nn.Module):
    """Confident pseudo-labels of the weak view are learned on the strong view, with CutMix."""

    config_type: ClassVar[type[Section]] = FixMatchConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True, cutmix=0.5)

    def __init__(self, options: FixMatchConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.options, self.supervised, self.threshold = options, supervised, Threshold(options, num_classes)

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped pseudo-label loss; one forward pass of the student serves both."""
        labeler = nets.teacher if self.options.labeler == "teacher" else nets.student
        labels = self.threshold(predict(labeler, batch.weak)) if len(batch.weak) else None
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if labels is None:
            return supervised
        distance = CONSISTENCY[self.options.consistency]
        consistency = compare_views(distance, split_views(logits, batch), labels, batch)
        terms = labels.describe() | self.threshold.describe()
        terms |= measure_precision(self.threshold, labeler, batch, progress)
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **terms)
