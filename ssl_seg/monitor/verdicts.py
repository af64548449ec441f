"""From evidence to a verdict: the rules in their order, and which findings explain others.

An untrained network is not judged, and within the first epoch a collapse is a warning: a healthy early run must stay
``ok``, or people switch the monitor off.
"""

from __future__ import annotations

import math

from ssl_seg.monitor.catalog import CODES, limit
from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.findings import LEVELS, Finding, Verdict
from ssl_seg.monitor.network_rules import (
    find_collapse,
    is_dead,
    is_informative,
    judge_network,
)
from ssl_seg.monitor.signals import Signals
from ssl_seg.monitor.training_rules import TRAINING_RULES, half_way, list_ends

TRIVIAL_MARGIN = limit("trivial_margin")

EXPLAINS = {"mode_gap": "student", "teacher_diverged": "teacher"}
"""Code -> the network whose collapse or shift it explains, and is named in place of."""
ALWAYS = {"non_finite", "zero_loss"}
"""Named during the warm-up too."""
PATIENCE_EPOCHS = 5
"""Epochs in which a network that has not learned yet is given time."""
_ORDER = tuple(CODES)


def judge(evidence: Evidence) -> Verdict:
    """Return the verdict on a look, worst finding first, then in the order of CODES.

    During the warm-up only NaN and a loss of 0 are named. Until the end of the first epoch a collapse is a warning
    (but not NaN), and warnings are left out.
    """
    training = [f for rule in TRAINING_RULES if (f := rule(evidence))]
    findings = [*_judge_networks(evidence, training), *training]
    if evidence.phase != "trained":
        findings = [f if f.code == "non_finite" else f.soften() for f in findings if f.level == "collapsed"]
    if evidence.phase == "untrained":
        findings = [f for f in findings if f.code in ALWAYS]
    return Verdict(tuple(sorted(findings, key=lambda f: (-LEVELS.index(f.level), _ORDER.index(f.code)))))


def _judge_networks(evidence: Evidence, training: list[Finding]) -> list[Finding]:
    """Return the findings on the networks by themselves that nothing else explains.

    The teacher is a mean of the student's past: what it does worse than the student is judged by the rule on both. By
    itself it is named with the student, or where the student has no good ranking either, and gets no better: a teacher
    that is blind to the image drags its student along.
    """
    findings = [
        f.soften() if f.code == "constant_output" and _has_never_varied(evidence, signals) else f
        for net, signals in evidence.val.items()
        for f in judge_network(signals, net)
    ]
    explained = {EXPLAINS[f.code] for f in training if f.code in EXPLAINS}
    findings = [f for f in findings if f.net not in explained or not _is_explicable(f)]
    pending = _find_pending(evidence)
    findings = [f for f in findings if f.code not in pending]
    student = evidence.val["student"]
    shared = {f.code for f in judge_network(student, "student")} | {"non_finite"}
    is_dragged = not is_informative(student) and not pending
    is_ill = bool(find_collapse(student)) or is_dragged
    return [f for f in findings if f.net != "teacher" or f.code in shared or (is_ill and f.level == "collapsed")]


def _has_never_varied(evidence: Evidence, signals: Signals) -> bool:
    """Return whether the output varies about as much as it ever has, in the first epochs: not learned yet, not lost."""
    widest = max((row["prob_std"] for row in evidence.trend if "prob_std" in row), default=math.inf)
    return _is_young(evidence) and not is_dead(signals) and signals.prob_std >= limit("kept_prob_std") * widest


def _find_pending(evidence: Evidence) -> set[str]:
    """Return the codes that a student whose ranking still gets better, in the first epochs, is not told yet."""
    student, then = evidence.val["student"], half_way(evidence.trend)
    if then is None or "auroc" not in then or student.auroc is None or not _is_young(evidence):
        return set()
    if student.auroc <= then["auroc"] + limit("auroc_gain"):
        return set()
    return {"not_above_trivial", "shifted_threshold"} if student.f1 > then["f1"] else {"not_above_trivial"}


def _is_young(evidence: Evidence) -> bool:
    return len(list_ends(evidence.trend)) <= PATIENCE_EPOCHS


def _is_explicable(finding: Finding) -> bool:
    return finding.code != "non_finite" and (finding.level == "collapsed" or finding.code == "shifted_threshold")
