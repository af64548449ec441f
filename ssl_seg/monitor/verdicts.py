"""Rules from signals to a verdict. Each rule is a pure function and depends on what there was to find.

A network that predicts nothing where nothing is to be found is right. A network whose ranking of voxels is good but
whose outputs sit on one side of 0.5 has not collapsed: its threshold is shifted. An untrained network is not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ssl_seg.monitor.signals import Signals

Level = Literal["ok", "warn", "collapsed"]
Phase = Literal["untrained", "early", "trained"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "collapsed")

INFORMATIVE_AUROC = 0.60
"""Above this a ranking carries information, whatever the threshold. Chance is 0.5; a net trained for 50 steps on the
synthetic particles is above 0.7 (measured)."""
ONE_SIDED_SHARE = 0.02
"""Predicting less than this share of the true foreground (or background) is one-sided. The source report had 534
predicted voxels where 30 % of 3.1e8 were true; a successor's fixed limit of 1 % gave false alarms on empty targets."""
CONSTANT_PROB_STD = 0.10
"""The reported constant networks had a probability std of 0.068 to 0.070; a network that separates has above 0.2."""
TRIVIAL_MARGIN = 0.01
"""F1 over the best trivial predictor below which nothing has been learned."""
SHIFT_GAP = 0.10
"""Gap between F1 at the best threshold and at 0.5 that is named a shifted threshold."""


@dataclass(frozen=True)
class Finding:
    """One thing a rule saw: which network, the value, its limit, and what to do."""

    code: str
    level: Level
    net: str
    value: float
    limit: float
    message: str
    hint: str


@dataclass(frozen=True)
class Verdict:
    """The worst level among the findings."""

    findings: tuple[Finding, ...] = ()

    @property
    def level(self) -> Level:
        """``ok``, ``warn`` or ``collapsed``."""
        return max((f.level for f in self.findings), key=LEVELS.index, default="ok")

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings, each once, worst first."""
        ordered = sorted(self.findings, key=lambda f: -LEVELS.index(f.level))
        return tuple(dict.fromkeys(f.code for f in ordered))

    def to_record(self) -> dict[str, Any]:
        """Return plain types for events.jsonl and metrics.jsonl."""
        return {"level": self.level, "codes": list(self.codes), "findings": [asdict(f) for f in self.findings]}


def judge(student: Signals, teacher: Signals, phase: Phase) -> Verdict:
    """Return the verdict on both networks.

    Args:
        student: signals on the validation probe.
        teacher: signals on the same probe.
        phase: ``untrained`` (during the warm-up only non-finite outputs are named), ``early`` (first epoch: a
            collapse is a warning, and nothing else is said) or ``trained``.
    """
    rules = RULES[:1] if phase == "untrained" else RULES
    findings = [f for net, s in (("student", student), ("teacher", teacher)) for rule in rules if (f := rule(s, net))]
    if phase == "early":
        findings = [f if f.code == "non_finite" else _soften(f) for f in findings if f.level == "collapsed"]
    return Verdict(tuple(findings))


def find_non_finite(signals: Signals, net: str) -> Finding | None:
    """NaN or infinity among the outputs."""
    if signals.nonfinite == 0:
        return None
    return Finding(
        "non_finite", "collapsed", net, signals.nonfinite, 0,
        f"{signals.nonfinite} of {signals.voxels} outputs are NaN or infinite",
        "lower optim.lr, keep optim.clip_norm, check the images for NaN, try runtime.precision=fp32",
    )  # fmt: skip


def find_all_negative(signals: Signals, net: str) -> Finding | None:
    """Nothing is predicted although there is foreground, and no threshold would help."""
    limit = ONE_SIDED_SHARE * signals.prevalence_true
    if _is_informative(signals) or not _has_both_classes(signals) or signals.prevalence_pred >= limit:
        return None
    return Finding(
        "all_negative", "collapsed", net, signals.prevalence_pred, limit,
        f"predicts {signals.prevalence_pred:.2%} foreground where {signals.prevalence_true:.1%} is true",
        "check that the labeled masks are not empty, longer optim.warmup_steps, higher data.foreground_ratio, "
        "start from a smaller label fraction with --bootstrap",
    )  # fmt: skip


def find_all_positive(signals: Signals, net: str) -> Finding | None:
    """Everything is predicted although there is background, and no threshold would help."""
    missing, limit = 1 - signals.prevalence_pred, ONE_SIDED_SHARE * (1 - signals.prevalence_true)
    if _is_informative(signals) or not _has_both_classes(signals) or missing >= limit:
        return None
    return Finding(
        "all_positive", "collapsed", net, signals.prevalence_pred, 1 - limit,
        f"predicts {signals.prevalence_pred:.2%} foreground where {signals.prevalence_true:.1%} is true",
        "an F1 near 2p/(1+p) is trivial; lower data.foreground_ratio, check the sign of cost weights, lower optim.lr",
    )  # fmt: skip


def find_constant_output(signals: Signals, net: str) -> Finding | None:
    """The output hardly varies and does not follow the target."""
    if _is_informative(signals) or not _has_both_classes(signals) or not signals.prob_std < CONSTANT_PROB_STD:
        return None
    return Finding(
        "constant_output", "collapsed", net, signals.prob_std, CONSTANT_PROB_STD,
        f"the same everywhere: probability {signals.prob_mean:.3f}+-{signals.prob_std:.3f}, AUROC {signals.auroc:.2f}",
        "check image normalization and that masks belong to their images, lower optim.lr, only cross_entropy + dice",
    )  # fmt: skip


def find_shifted_threshold(signals: Signals, net: str) -> Finding | None:
    """The ranking is good, but 0.5 is the wrong place to cut."""
    if not _is_informative(signals) or signals.f1_best is None or signals.f1 > signals.trivial_f1:
        return None
    gap = signals.f1_best - signals.f1
    if gap <= SHIFT_GAP:
        return None
    return Finding(
        "shifted_threshold", "warn", net, gap, SHIFT_GAP,
        f"F1 is {signals.f1:.2f} at 0.5 but {signals.f1_best:.2f} at {signals.threshold_best:.2f}: learned but shifted",
        "train on, or choose the threshold on validation; this is no collapse",
    )  # fmt: skip


def find_not_above_trivial(signals: Signals, net: str) -> Finding | None:
    """No threshold does better than predicting foreground everywhere."""
    if signals.f1_best is None or signals.f1_best > signals.trivial_f1 + TRIVIAL_MARGIN:
        return None
    return Finding(
        "not_above_trivial", "warn", net, signals.f1_best, signals.trivial_f1 + TRIVIAL_MARGIN,
        f"best F1 at any threshold {signals.f1_best:.2f}, all-positive scores {signals.trivial_f1:.2f}",
        "nothing learned yet: train longer, raise optim.lr, check that masks belong to their images",
    )  # fmt: skip


RULES: tuple[Callable[[Signals, str], Finding | None], ...] = (
    find_non_finite,
    find_all_negative,
    find_all_positive,
    find_constant_output,
    find_shifted_threshold,
    find_not_above_trivial,
)


def _is_informative(signals: Signals) -> bool:
    return signals.auroc is not None and signals.auroc >= INFORMATIVE_AUROC


def _has_both_classes(signals: Signals) -> bool:
    return 0 < signals.prevalence_true < 1 and not math.isnan(signals.prob_mean)


def _soften(finding: Finding) -> Finding:
    return Finding(**{**asdict(finding), "level": "warn"})
