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

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY
from ssl_seg.methods.base import Nets, Progress, StepOutput, Traits
from ssl_seg.methods.unlabeled import PseudoLabelConfig, PseudoLabelMethod


class FixMatchConfig(PseudoLabelConfig):
    """Options of FixMatch."""

    labeler: Literal["teacher", "student"] = "teacher"
    """Network that makes the pseudo-labels, in eval mode."""
    consistency: Literal["cross_entropy", "dice", "kl", "mse", "js"] = "cross_entropy"
    """Distance to the pseudo-label; cross_entropy takes the most probable class, the others take the probabilities."""


class FixMatch(PseudoLabelMethod):
    """Confident pseudo-labels of the weak view are learned on the strong view, with CutMix."""

    config_type: ClassVar[type[Section]] = FixMatchConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True, cutmix=0.5)

    options: FixMatchConfig

    def forward(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:
        """Return supervised + ramped pseudo-label loss; see ``learn``."""
        labeler = nets.teacher if self.options.labeler == "teacher" else nets.student
        return self.learn(labeler, CONSISTENCY[self.options.consistency], nets.student, batch, progress)
