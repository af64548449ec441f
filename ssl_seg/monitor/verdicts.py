"""From evidence to a verdict: the rules in their order, and which findings explain others.

An untrained network is not judged, and within the first epoch a collapse is a warning: a healthy early run must stay
``ok``, or people switch the monitor off.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ssl_seg.monitor.actions import ACTIONS, Action, Context, choose_action
from ssl_seg.monitor.catalog import CODES, limit
from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.findings import LEVELS, RuleFinding, Verdict
from ssl_seg.monitor.network_rules import (
    CHANCE,
    RANKED,
    find_little_learned,
    is_certain,
    is_dead,
    is_informative,
    judge_network,
    list_collapse_codes,
)
from ssl_seg.monitor.signals import Signals
from ssl_seg.monitor.training_rules import TRAINING_RULES, half_way, list_ends

TRIVIAL_MARGIN = limit("trivial_margin")

EXPLAINS = {"mode_gap": "student", "teacher_diverged": "teacher"}
"""Code -> the network whose collapse or shift it explains, and is named in place of."""
ALWAYS = {"non_finite", "zero_loss", "blind_probe"}
"""Named during the warm-up too."""
PATIENCE_EPOCHS = 5
"""Epochs in which a network that has not learned yet is given time."""


def judge(evidence: Evidence, used: str | None = None) -> Verdict:
    """Return the verdict on a look: findings, worst first, then in the order of CODES, and the action for the first.

    A warning that the run acts on counts as a collapse. During the warm-up only NaN, a loss of 0 and a probe of one
    class are named. Until the end of the first epoch a collapse is a warning (but not NaN), and other warnings are left
    out. At the end of a run, and on a checkpoint, nothing is left out.

    Args:
        evidence: what is known.
        used: the network that will be used, where that is decided; a collapse of the other one is a warning then.
    """
    training = [f for rule in TRAINING_RULES if (f := rule(evidence))]
    findings = _leave_out_broken([*_judge_networks(evidence, training, used), *_judge_others(evidence), *training])
    findings = [replace(f, level="collapsed") if f.code in evidence.context.act_on else f for f in findings]
    if not evidence.is_final:
        if evidence.phase != "trained":
            named = [f for f in findings if f.level == "collapsed" or f.code == "blind_probe"]
            findings = [f if f.code == "non_finite" else f.soften() for f in named]
        if evidence.phase == "untrained":
            findings = [f for f in findings if f.code in ALWAYS]
    return conclude(findings, evidence.context, used)


def conclude(
    findings: Iterable[RuleFinding],
    context: Context,
    used: str | None = None,
    *,
    codes: Iterable[str] = CODES,
    actions: Mapping[str, tuple[Action, ...]] = ACTIONS,
) -> Verdict:
    """Return the verdict that findings make: each code of a network once, and the action for the one that leads.

    Args:
        findings: findings to settle; of two with one code and network the worse stays, else the first.
        context: what the action depends on.
        used: the network that will be used; its findings come before those of the other one, whose collapse is a
            warning. None where both count alike.
        codes: all there are, in the order in which findings of one level are named.
        actions: actions for each code.
    """
    order = tuple(codes)
    spare = {"student": "teacher", "teacher": "student"}.get(used or "")
    settled = [f.soften() if f.net == spare and f.level == "collapsed" else f for f in findings]
    ordered = sorted(settled, key=lambda f: (-LEVELS.index(f.level), f.net == spare, order.index(f.code)))
    worst: dict[tuple[str, str], RuleFinding] = {}
    for finding in ordered:
        worst.setdefault((finding.code, finding.net), finding)
    found = tuple(worst.values())
    return Verdict(found, choose_action(found[0], context, actions) if found else "")


def _judge_networks(evidence: Evidence, training: list[RuleFinding], used: str | None) -> list[RuleFinding]:
    """Return the findings on the networks by themselves that nothing else explains.

    The teacher is a mean of the student's past: what it does worse than the student is judged by the rule on both. By
    itself it is named with the student, or where the student has no good ranking either, and gets no better: a teacher
    that is blind to the image drags its student along. In the end it may be the one that is used, and is named alone.
    """
    findings = [
        _doubt(evidence, f, signals) for net, signals in evidence.val.items() for f in judge_network(signals, net)
    ]
    explained = {EXPLAINS[f.code] for f in training if f.code in EXPLAINS}
    findings = [f for f in findings if f.net == used or f.net not in explained or not _is_explicable(f)]
    if evidence.is_final:
        sound = {net: signals for net, signals in evidence.val.items() if not list_collapse_codes(signals)}
        return [*findings, *(f for net, signals in sound.items() if (f := find_little_learned(signals, net)))]
    pending = _find_pending(evidence)
    findings = [f for f in findings if f.code not in pending]
    student = evidence.val["student"]
    shared = {f.code for f in judge_network(student, "student")} | {"non_finite"}
    is_dragged = not is_informative(student) and not pending
    is_ill = bool(list_collapse_codes(student)) or is_dragged
    return [f for f in findings if f.net != "teacher" or f.code in shared or (is_ill and f.level == "collapsed")]


def _leave_out_broken(findings: list[RuleFinding]) -> list[RuleFinding]:
    """Return the findings without those that NaN explains: others on its network, and on the training."""
    broken = {f.net for f in findings if f.code == "non_finite"}
    broken |= {"training"} if broken else set()
    return [f for f in findings if f.code == "non_finite" or f.net not in broken]


def _judge_others(evidence: Evidence) -> list[RuleFinding]:
    """Return what has collapsed of the networks that are not used: what they say is learned from all the same."""
    findings = [_doubt(evidence, f, s) for net, s in evidence.others.items() for f in judge_network(s, net)]
    collapsed = [f for f in findings if f.level == "collapsed"]
    return [f.soften() for f in collapsed] if evidence.is_final else collapsed


def _doubt(evidence: Evidence, finding: RuleFinding, signals: Signals) -> RuleFinding:
    """Return the finding, as a warning where a collapse is in doubt: the network may be on its way, or never have been
    better, or there are too few cases of validation and of training to know that its ranking is worthless."""
    follows_trend = finding.net in evidence.val  # the trend is the student's, which the teacher follows
    if follows_trend and finding.code == "constant_output" and _has_never_learned(evidence, signals):
        return finding.soften()
    if follows_trend and finding.code in RANKED and _ranks_better(evidence) and not evidence.is_final:
        return finding.soften()
    is_flat = signals.prob_std < limit("informative_prob_std")
    if evidence.is_final and finding.code in RANKED and is_flat and _has_never_varied(evidence, signals):
        return replace(finding.soften(), message=f"{finding.message}; it has hardly left its start")
    train = evidence.train.get(finding.net)
    is_known = is_certain(signals) or (train is not None and not is_informative(train) and is_certain(train))
    if finding.code not in RANKED or is_known:
        return finding
    interval = f"{signals.auroc_low:.2f} to {signals.auroc_high:.2f}"
    return replace(finding.soften(), message=f"{finding.message}; over these cases the AUROC may be {interval}")


def _has_never_learned(evidence: Evidence, signals: Signals) -> bool:
    """Return whether, in the first epochs, nothing has been lost: no look was clearly above trivial.

    The spread says nothing about it. That of the start is chance, and a network that learns slowly has to give it up.
    """
    margins = [row["f1_best"] - row["trivial_f1"] for row in evidence.trend if "f1_best" in row]
    return bool(margins) and _is_young(evidence) and not is_dead(signals) and max(margins) <= limit("learned_margin")


def _has_never_varied(evidence: Evidence, signals: Signals) -> bool:
    """Return whether, in the first epochs, the output varies as much as it ever has: nothing has been lost."""
    widest = max((row["prob_std"] for row in evidence.trend if "prob_std" in row), default=math.inf)
    return _is_young(evidence) and not is_dead(signals) and signals.prob_std >= limit("kept_prob_std") * widest


def _find_pending(evidence: Evidence) -> set[str]:
    """Return the codes that are held back in the first epochs, while the ranking of the student still improves."""
    student, then = evidence.val["student"], half_way(evidence.trend)
    if then is None or "auroc" not in then or student.auroc is None or not _is_young(evidence):
        return set()
    gains, comes_closer = _ranks_better(evidence), student.f1 > then["f1"]
    pending = {"not_above_trivial"} if gains else set()
    pending |= {"shifted_threshold"} if gains and comes_closer else set()
    return pending | ({"foreground_bias", "missing_class"} if gains or comes_closer else set())


def _ranks_better(evidence: Evidence) -> bool:
    """Return whether, in the first epochs, the student ranks clearly better than chance and than half-way."""
    auroc, then = evidence.val["student"].auroc, half_way(evidence.trend)
    if then is None or "auroc" not in then or auroc is None or not _is_young(evidence):
        return False
    return auroc > max(then["auroc"], CHANCE) + limit("auroc_gain")


def _is_young(evidence: Evidence) -> bool:
    """Return whether the epochs are so few that a network is given time."""
    return len(list_ends(evidence.trend)) <= PATIENCE_EPOCHS


def _is_explicable(finding: RuleFinding) -> bool:
    return finding.code != "non_finite" and (finding.level == "collapsed" or finding.code == "shifted_threshold")
