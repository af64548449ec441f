"""The section about a parent: what a run takes over from the checkpoint it starts from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssl_seg.config.section import Section


class BootstrapConfig(Section):
    """What a run takes over from its parent. Read only with `--bootstrap`, and never passed on to a child."""

    start: Literal["better", "student", "teacher"] = "better"
    """The parent's network that the new student starts from; better is the one with the higher validation F1."""
    parts: Literal["all", "encoder"] = "all"
    """Parts that the student takes from it; encoder leaves decoder and head newly initialized."""
    reset_head: bool = False
    """Reinitialize the layer that makes the logits; the parent may then have other classes."""
    restart_ema: bool = True
    """Restart the average, with the teacher as a copy of the student; false continues the parent's teacher and its
    count of updates."""
    pseudo_label_steps: int = Field(0, ge=0)
    """Steps for which the teacher stays the parent's whole network, whose targets on unlabeled patches count in full,
    without ramp-up. Then the teacher becomes a copy of the student, and the average starts with a count of 0."""
    gate: Literal["none", "margin", "interval"] = "margin"
    """What the parent's F1 must show: a margin over predicting foreground everywhere, or also one whose 95 % interval
    lies above 0. none requires nothing, to measure what a start is worth; leaks are refused even then."""

    @model_validator(mode="after")
    def _teacher_fits_the_student(self) -> BootstrapConfig:
        if self.restart_ema:
            return self
        if self.parts != "all" or self.reset_head:
            new = "reset_head = true" if self.parts == "all" else f"parts = {self.parts}"
            raise ValueError(
                f"restart_ema = false averages the parent's teacher with the student, and {new} reinitializes weights "
                "of the student, which must not be averaged with old ones. Use restart_ema = true"
            )
        if self.pseudo_label_steps > 0:
            raise ValueError(
                f"pseudo_label_steps = {self.pseudo_label_steps} restarts the average after these steps, and "
                "restart_ema = false continues the parent's: use one of them"
            )
        return self
