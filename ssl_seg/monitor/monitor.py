"""One look at a run: both networks on the probe sets, as a record, a verdict and a line of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_seg.config import NETS
from ssl_seg.data.loader import Probe
from ssl_seg.monitor.actions import NO_CONTEXT, Context
from ssl_seg.monitor.evidence import Evidence, Figures, Phase, summarize
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.network_rules import list_collapse_codes
from ssl_seg.monitor.signals import Loss, Signals, collect_signals
from ssl_seg.monitor.training_rules import grade_gap
from ssl_seg.monitor.verdicts import judge
from ssl_seg.networks.builders import has_batch_norm
from ssl_seg.networks.precision import Autocast
from ssl_seg.scores.text import log_odds, number, short_share

NO_OTHERS: Mapping[str, nn.Module] = {}
Selection = Literal["f1", "dice", "foreground_distance", "pq"]
LossAt = Callable[[Tensor, Tensor, int], tuple[Tensor, dict[str, Tensor]]]
"""Logits, target and step -> the supervised loss as it is weighted at that step, and its components."""


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
    train_mode: Signals | None = None
    """The student in train mode on the validation probe; None for a network without BatchNorm."""
    trend: tuple[Figures, ...] = ()
    """A row for each planned look so far."""
    phase: Phase = "trained"
    """Phase in which the findings were named."""
    evidence: Evidence | None = None
    """What the verdict was given on."""

    def judge_end(self, used: str | None = None) -> Verdict:
        """Return the verdict on networks that will be used as they are, the one ``used`` before the other."""
        if self.evidence is None:
            return self.verdict
        return judge(replace(self.evidence, is_final=True), used)

    @property
    def gap(self) -> float | None:
        """F1 of the student on training cases minus that on validation, mean of the classes that are in both; None
        without a training probe."""
        if not self.train:
            return None
        train, val = self.train["student"], self.val["student"]
        of_train, of_val = ({o.value: o.f1 for o in s.classes if o.prevalence_true > 0} for s in (train, val))
        shared = of_train.keys() & of_val.keys()
        if not shared:
            return train.f1_macro - val.f1_macro
        return sum(of_train[value] - of_val[value] for value in shared) / len(shared)

    @property
    def context(self) -> Context:
        """What advice depends on."""
        return NO_CONTEXT if self.evidence is None else self.evidence.context

    @property
    def collapsed(self) -> frozenset[str]:
        """Networks that rank behind the others: those whose collapse the verdict names.

        A network that looks collapsed by itself ranks behind one that does not, named or not (the verdict may have
        another word for it, such as teacher_diverged). So it does before the end of the warm-up, when nothing is named.
        """
        named = {f.net for f in self.verdict.findings if f.level == "collapsed"} & self.val.keys()
        alone = {net for net, signals in self.val.items() if list_collapse_codes(signals)}
        return frozenset(named | alone if self.phase == "untrained" or len(alone) < len(self.val) else named)

    @property
    def has_collapsed(self) -> bool:
        """Whether there is no network that has not."""
        return self.collapsed == self.val.keys()

    @property
    def scores(self) -> dict[str, float]:
        """Selection score of each network on the validation probe, larger is better; -inf for one with NaN."""
        return {net: _select(s, self.select) if s.nonfinite == 0 else -math.inf for net, s in self.val.items()}

    @property
    def better(self) -> str:
        """The network with the higher score, of those that have not collapsed if there is one."""
        scores = self.scores
        return max(scores, key=lambda net: (net not in self.collapsed, scores[net]))

    @property
    def score(self) -> float:
        """Selection score of the better network, for choosing ``best.pt``."""
        return self.scores[self.better]

    def to_record(self) -> dict[str, Any]:
        """Return the line for metrics.jsonl."""
        record: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "verdict": self.verdict.level}
        record["codes"] = list(self.verdict.codes)
        for part, signals in (("val", self.val), ("train", self.train)):
            for net, values in signals.items():
                record |= values.to_record(f"{part}/{net}/")
            if signals:
                shared = signals["student"]
                record[f"{part}/patches"] = shared.patches
                record[f"{part}/prevalence_true"] = shared.prevalence_true
                record[f"{part}/trivial_f1"] = shared.trivial_f1
                record[f"{part}/trivial_f1_macro"] = shared.trivial_f1_macro
                record[f"{part}/ratio_std_true"] = shared.ratio_std_true
        if self.gap is not None:
            record |= {"gap": self.gap, "gap_grade": grade_gap(self.gap)}
        for net, values in ({} if self.evidence is None else self.evidence.others).items():
            record |= values.to_record(f"val/{net}/")
        if self.train_mode is not None:
            record |= self.train_mode.to_record("val/student_train_mode/")
        return record

    def format_line(self) -> str:
        """Return one line for the terminal: F1 and mean probability of student/teacher, the rest of the student.

        ``logit`` is the mean log-odds, shown through the first epoch; ``gap`` is training minus validation, after it.
        """
        student, teacher = self.val["student"], self.val["teacher"]
        name = "F1 of classes" if len(student.classes) > 1 else "F1"
        trained = None if self.evidence is None else self.evidence.training.get("loss")
        shown = f" logit {log_odds(student.logit_mean)}" if self.phase != "trained" else self._describe_gap()
        codes = f" {','.join(self.verdict.codes)}" if self.verdict.codes else ""
        return (
            f"step {self.step:>5} epoch {self.epoch:>2} | {name} {student.f1_macro:.3f}/{teacher.f1_macro:.3f}"
            f" trivial {student.trivial_f1_macro:.2f}{shown} P {student.precision:.2f} R {student.recall:.2f}"
            f" | loss {number(trained, 2)} val {number(student.loss, 2)}"
            f" | p {short_share(student.prob_mean)}/{short_share(teacher.prob_mean)}"
            f" of {short_share(student.prevalence_true)}"
            f" | {self.verdict.level}{codes}"
        )

    def _describe_gap(self) -> str:
        return "" if self.gap is None else f" gap {self.gap:+.2f} {grade_gap(self.gap)}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Monitor:
    """Looks at student and teacher on fixed probe sets."""

    val: Probe
    train: Probe
    """Probe of labeled training cases; may be empty."""
    label_values: Sequence[int]
    """Mask values of the K classes, background first."""
    device: torch.device
    """Where the networks are."""
    batch_size: int
    """Patches in one forward pass."""
    autocast: Autocast
    """Returns the autocast context of the run."""
    warmup_steps: int
    """Step up to which only non-finite outputs are named."""
    steps_per_epoch: int
    """Steps of an epoch; findings of the first one are warnings."""
    select: Selection = "f1"
    """What the score of an observation is."""
    components: tuple[str, ...] = ()
    """Names of the components of the supervised loss."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Ranges of the components; see ``Evidence``."""
    loss: LossAt | None = None
    """Loss to measure on ``val`` at each look; None measures none."""
    threshold: float | None = None
    """Probability above which foreground is predicted; None for the likeliest class."""
    uses_teacher: bool = True
    """Whether the method learns from the teacher."""
    context: Context = NO_CONTEXT
    """What the advice of a verdict depends on."""

    def look(
        self,
        student: nn.Module,
        teacher: nn.Module,
        step: int,
        training: Figures | None = None,
        trend: tuple[Figures, ...] = (),
        *,
        planned: bool = True,
        ends_epoch: bool = False,
        others: Mapping[str, nn.Module] = NO_OTHERS,
    ) -> Observation:
        """Return what the networks do after ``step`` updates.

        Args:
            student, teacher: the networks.
            step: number of updates made.
            training: means over the steps since the look before; see ``Evidence``.
            trend: rows of the planned looks before.
            planned: whether this look gets a row of its own.
            ends_epoch: whether an epoch ends here.
            others: further networks that are trained and not used.
        """
        loss_at = self.loss
        loss: Loss | None = None if loss_at is None else lambda logits, target: loss_at(logits, target, step)
        nets = dict(zip(NETS, (student, teacher), strict=True))
        objects = self.select == "pq"
        val = {name: self._collect(net, self.val, loss=loss, objects=objects) for name, net in nets.items()}
        train = {name: self._collect(net, self.train) for name, net in nets.items()} if len(self.train.image) else {}
        train_mode = self._collect(student, self.val, train_mode=True) if has_batch_norm(student) else None
        evidence = Evidence(
            self._phase(step), val, train, train_mode, training or {}, trend, self.components, self.ranges,
            self.uses_teacher, self.context, {name: self._collect(net, self.val) for name, net in others.items()},
        )  # fmt: skip
        if planned:
            evidence = replace(evidence, trend=(*trend, summarize(evidence, step, ends_epoch=ends_epoch)))
        return Observation(
            step,
            -(-step // self.steps_per_epoch),
            val,
            train,
            judge(evidence),
            self.select,
            train_mode,
            evidence.trend,
            evidence.phase,
            evidence,
        )

    def _collect(
        self,
        net: nn.Module,
        probe: Probe,
        *,
        train_mode: bool = False,
        loss: Loss | None = None,
        objects: bool = False,
    ) -> Signals:
        return collect_signals(
            net, probe, self.label_values, self.device, self.batch_size, self.autocast,
            train_mode=train_mode, loss=loss, threshold=self.threshold, objects=objects,
        )  # fmt: skip

    def _phase(self, step: int) -> Phase:
        if step <= self.warmup_steps:
            return "untrained"
        return "early" if step < self.steps_per_epoch else "trained"


def _select(signals: Signals, select: Selection) -> float:
    """Return a figure by which checkpoints are compared: larger is better."""
    figures = {
        "f1": signals.f1_macro,
        "dice": signals.dice,
        "foreground_distance": -signals.foreground_distance,
        "pq": signals.pq or 0.0,
    }
    return figures[select]
