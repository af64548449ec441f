"""Supervised training on the labeled part: the baseline of every table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import compute_loss
from ssl_seg.methods.base import Nets, Progress, StepOutput


class SupervisedConfig(Section):
    """No options."""


class Supervised:
    """The supervised loss alone; the unlabeled part of a batch is not looked at."""

    config_type: ClassVar[type[Section]] = SupervisedConfig
    uses_teacher: ClassVar[bool] = False

    def __init__(self, options: Section, loss_weights: Mapping[str, float]) -> None:  # noqa: ARG002 (one signature)
        self.loss_weights = loss_weights

    def __call__(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:  # noqa: ARG002
        """Return the weighted supervised loss of the labeled patches."""
        loss, terms = compute_loss(nets.student(batch.image), batch.target, self.loss_weights)
        return StepOutput(loss, terms)
