"""One look at a run: both networks on the probe sets, as a record, a verdict and a line of text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ssl_seg.data.loader import Probe
from ssl_seg.monitor.signals import Signals, collect_signals
from ssl_seg.monitor.verdicts import Phase, Verdict, judge
from ssl_seg.precision import Autocast

NETS = ("student", "teacher")
Selection = Literal["f1", "dice", "foreground_distance"]


@dataclass(frozen=True)
class Observation:
    """What a look found; ``val`` and ``train`` map ``student`` and ``teacher`` to their signals."""

    step: int
    epoch: int
    val: dict[str, Signals]
    train: dict[str, Signals]
    verdict: Verdict
    select: Selection = "f1"
    """What the score is."""

    @property
    def scores(self) -> dict[str, float]:
        """Selection score of each network on the validation probe, larger is better; -inf for one with NaN."""
        return {net: _select(s, self.select) if s.nonfinite == 0 else -math.inf for net, s in self.val.items()}

    @property
    def score(self) -> float:
        """Selection score of the better network, for choosing ``best.pt``."""
        return max(self.scores.values())

    def to_record(self) -> dict[str, Any]:
        """Return the line for metrics.jsonl."""
        record: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "verdict": self.verdict.level}
        record["codes"] = list(self.verdict.codes)
        for part, signals in (("val", self.val), ("train", self.train)):
            for net, values in signals.items():
                record |= values.to_record(f"{part}/{net}/")
            if signals:
                shared = signals["student"]
                record[f"{part}/prevalence_true"] = shared.prevalence_true
                record[f"{part}/trivial_f1"] = shared.trivial_f1
        return record

    def format_line(self) -> str:
        """Return one line for the terminal; figures are student/teacher."""
        student, teacher = self.val["student"], self.val["teacher"]
        codes = f" {','.join(self.verdict.codes)}" if self.verdict.codes else ""
        return (
            f"step {self.step:>5} epoch {self.epoch:>3} | val F1 {student.f1:.3f}/{teacher.f1:.3f}"
            f" best {_figure(student.f1_best)}/{_figure(teacher.f1_best)} trivial {student.trivial_f1:.3f}"
            f" | AUROC {_figure(student.auroc)}/{_figure(teacher.auroc)}"
            f" | logit {_spread(student)}/{_spread(teacher)}"
            f" | fg {student.prevalence_pred:.0%}/{teacher.prevalence_pred:.0%} true {student.prevalence_true:.0%}"
            f" | {self.verdict.level}{codes}"
        )


class Monitor:
    """Looks at student and teacher on fixed probe sets.

    Args:
        val, train: probes of validation and of labeled training cases; ``train`` may be empty.
        num_classes: K.
        device: where the networks are.
        batch_size: patches in one forward pass.
        autocast: function that returns the autocast context of the run.
        warmup_steps: until here only non-finite outputs are named.
        steps_per_epoch: until here findings are warnings.
        select: what the score of an observation is.
    """

    def __init__(
        self,
        val: Probe,
        train: Probe,
        *,
        num_classes: int,
        device: torch.device,
        batch_size: int,
        autocast: Autocast,
        warmup_steps: int,
        steps_per_epoch: int,
        select: Selection = "f1",
    ) -> None:
        self.val, self.train = val, train
        self.num_classes, self.device, self.batch_size, self.autocast = num_classes, device, batch_size, autocast
        self.warmup_steps, self.steps_per_epoch, self.select = warmup_steps, steps_per_epoch, select

    def look(self, student: nn.Module, teacher: nn.Module, step: int) -> Observation:
        """Return what the networks do after ``step`` updates."""
        val, train = ({n: self._collect(net, probe) for n, net in zip(NETS, (student, teacher), strict=True)}
                      if len(probe.image) else {} for probe in (self.val, self.train))  # fmt: skip
        verdict = judge(val["student"], val["teacher"], self._phase(step))
        return Observation(step, -(-step // self.steps_per_epoch), val, train, verdict, self.select)

    def _collect(self, net: nn.Module, probe: Probe) -> Signals:
        return collect_signals(net, probe, self.num_classes, self.device, self.batch_size, self.autocast)

    def _phase(self, step: int) -> Phase:
        if step <= self.warmup_steps:
            return "untrained"
        return "early" if step < self.steps_per_epoch else "trained"


def _select(signals: Signals, select: Selection) -> float:
    """Return a figure by which checkpoints are compared: larger is better."""
    if select == "f1":
        return signals.f1_macro
    return signals.dice if select == "dice" else -signals.foreground_distance


def _spread(signals: Signals) -> str:
    return f"{signals.logit_mean:+.2f}+-{signals.logit_std:.2f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
