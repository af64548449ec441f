"""Everything that the rules see at one look."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ssl_seg.monitor.actions import NO_CONTEXT, Context
from ssl_seg.monitor.signals import Signals

Phase = Literal["untrained", "early", "trained"]
"""``untrained`` during the warm-up, ``early`` in the rest of the first epoch, then ``trained``."""

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """The networks on the probes, the training steps since the look before, and how both came about.

    ``training`` are means over those steps: ``loss``, each loss component by its name, ``grad_norm``,
    ``clipped_share``, ``prevalence_true``, ``prevalence_pred`` and ``batch_f1`` of the labeled patches in train mode,
    and where there are pseudo-labels ``pseudo_prevalence`` and (with a confidence threshold) ``accepted_share``;
    ``steps`` is their number. Empty before the first step.

    ``trend`` has a row for each planned look so far, this one last if it is one: see ``summarize``.
    """

    phase: Phase
    val: Mapping[str, Signals]
    """Signals of ``student`` and ``teacher`` on the validation probe."""
    train: Mapping[str, Signals] = field(default_factory=dict)
    """The same on the labeled training probe; empty without one."""
    train_mode: Signals | None = None
    """The student in train mode on the validation probe; None for a network without BatchNorm."""
    training: Figures = field(default_factory=dict)
    trend: tuple[Figures, ...] = ()
    components: tuple[str, ...] = ()
    """Names in ``training`` that are components of the supervised loss."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Each component's value on the validation probe at the perfect prediction, and at the best constant one."""
    uses_teacher: bool = True
    """Whether the method learns from the teacher."""
    context: Context = NO_CONTEXT
    """What advice depends on."""
    others: Mapping[str, Signals] = field(default_factory=dict)
    """Further networks that are trained and not used, on the validation probe."""
    is_final: bool = False
    """Whether the networks will be used as they are: then no time is given to get better."""


def summarize(evidence: Evidence, step: int, *, ends_epoch: bool) -> Figures:
    """Return the row of a look for the trend.

    Keys: ``step``, ``ends_epoch`` (0 or 1), ``f1``, ``f1_best``, ``trivial_f1``, ``auroc`` and ``prob_std`` of the
    student on validation, ``train_f1`` on the training probe, ``loss``, ``batch_f1``, ``pseudo_prevalence`` and
    ``component/NAME`` of training, ``val_loss`` and ``val_component/NAME`` of the student on validation; what is
    unknown, or not finite, is left out.
    """
    student = evidence.val["student"]
    row = {"step": step, "ends_epoch": float(ends_epoch), "f1": student.f1, "trivial_f1": student.trivial_f1}
    row["prob_std"] = student.prob_std
    if student.f1_best is not None:
        row["f1_best"] = student.f1_best
    if student.auroc is not None:
        row["auroc"] = student.auroc
    if "student" in evidence.train:
        row["train_f1"] = evidence.train["student"].f1
    told = {name: name for name in ("loss", "batch_f1", "pseudo_prevalence")}
    told |= {name: f"component/{name}" for name in evidence.components}
    means = {key: evidence.training[name] for name, key in told.items() if name in evidence.training}
    means |= {"val_loss" if name == "loss" else f"val_component/{name}": value for name, value in student.losses}
    return row | {key: value for key, value in means.items() if math.isfinite(value)}  # NaN would spoil comparisons
