"""Sections about gates, what a run must show to continue, and targets, what its final scores should be."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import AfterValidator, field_validator, model_validator

from ssl_seg.config.section import PositiveInt, Section, Share


def _check_order(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError(f"{list(ends)}: the lower end comes first")
    return ends


Range = Annotated[tuple[Share, Share], AfterValidator(_check_order)]
"""Lower and upper end; both belong to it."""


class GateConfig(Section):
    """A condition on a metric at the ends of epochs; one that is not met ends the run with exit code 3."""

    metric: str
    """A figure of metrics.jsonl by its name there, such as val/student/f1."""
    below: float | None = None
    """The metric must have been below this at the end of an epoch."""
    above: float | None = None
    """The metric must have been above this at the end of an epoch."""
    by_epoch: PositiveInt | None = None
    """Last epoch that counts for below or above, from 1; the last of the run when unset."""
    no_fall: tuple[PositiveInt, PositiveInt] | None = None
    """First and last epoch: the highest value at their ends must reach the highest one before."""
    no_rise: tuple[PositiveInt, PositiveInt] | None = None
    """The same for a metric that is better when lower: the lowest value must reach the lowest one before."""

    @property
    def last_epoch(self) -> float:
        """The epoch at whose end the gate is judged, unless the run ends before."""
        span = self.no_fall or self.no_rise
        return span[1] if span else math.inf if self.by_epoch is None else self.by_epoch

    @field_validator("no_fall", "no_rise")
    @classmethod
    def _span_has_epochs_before(cls, span: tuple[int, int] | None) -> tuple[int, int] | None:
        if span is not None and not 2 <= span[0] <= span[1]:
            raise ValueError(
                f"{list(span)} must be a first epoch of at least 2, so that there is one before to compare with, and a "
                "last one that is not smaller"
            )
        return span

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> GateConfig:
        given = [name for name in ("below", "above", "no_fall", "no_rise") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a gate on {self.metric} asks for one of below, above, no_fall and no_rise, not {' and '.join(given)}"
                if given
                else f"a gate on {self.metric} asks for nothing: give one of below, above, no_fall and no_rise"
            )
        if self.by_epoch is not None and given[0] in ("no_fall", "no_rise"):
            raise ValueError(f"by_epoch goes with below and above; {given[0]} names its epochs itself")
        return self


class TargetsConfig(Section):
    """Ranges for scores on whole cases; training and `evaluate` say which are met, and none stops a run."""

    precision: Range | None = None
    """Range of the precision over all voxels of all cases together; the mean for several classes."""
    recall: Range | None = None
    """Range of the recall over all voxels of all cases together; the mean for several classes."""
    f1: Range | None = None
    """Range of F1 over all voxels of all cases together; the mean for several classes."""
    dice: Range | None = None
    """Range of the mean Dice over cases."""
    foreground_share: Range | None = None
    """Range of the share of all voxels that is predicted as foreground."""
