"""Supervised training on the labeled part: the baseline of every table."""

from __future__ import annotations

from typing import ClassVar

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise


class SupervisedConfig(Section):
    """No options."""


class Supervised:
    """The supervised loss alone; the unlabeled part of a batch is not looked at."""

    config_type: ClassVar[type[Section]] = SupervisedConfig
    traits: ClassVar[Traits] = Traits()

    def __init__(self, options: Section, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.supervised = supervised

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return the weighted supervised loss of the labeled patches."""
        return supervise(self.supervised, nets.student(batch.image), batch, progress)
