"""Rules on what one network puts out. Each is a pure function, and depends on what there was to find.

A network that predicts nothing where nothing is to be found is right. A network whose ranking of voxels is good but
whose outputs sit on one side of the threshold has not collapsed: its threshold is shifted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ssl_seg.errors import name_examples
from ssl_seg.monitor.catalog import beats_trivial, limit, make_finding
from ssl_seg.monitor.findings import Level, RuleFinding
from ssl_seg.monitor.signals import PROB_BINS, Signals
from ssl_seg.scores.text import number

CHANCE = 0.5
"""AUROC of a ranking that says nothing."""
RANKED = {"inverted_output", "constant_output", "all_negative", "all_positive", "uniform_ratio"}
"""Codes that say that the ranking of the voxels is worth nothing, too."""
NetworkRule = Callable[[Signals, str], RuleFinding | None]


def find_non_finite(signals: Signals, net: str) -> RuleFinding | None:
    """NaN or infinity among the outputs."""
    if signals.nonfinite <= limit("non_finite"):
        return None
    message = f"{signals.nonfinite} of {signals.voxels} outputs are NaN or infinite"
    return make_finding("non_finite", "collapsed", net, signals.nonfinite, "non_finite", message)


def find_inverted_output(signals: Signals, net: str) -> RuleFinding | None:
    """Background is ranked above foreground, by an output that varies: one that hardly does has no order."""
    is_spread = signals.prob_std >= limit("informative_prob_std")
    if not has_both_classes(signals) or signals.auroc is None or not is_spread:
        return None
    if signals.auroc > limit("inverted_auroc"):
        return None
    message = f"AUROC {signals.auroc:.2f}: background gets higher probabilities than foreground"
    return make_finding("inverted_output", "collapsed", net, signals.auroc, "inverted_auroc", message)


def find_constant_output(signals: Signals, net: str) -> RuleFinding | None:
    """The output hardly varies and does not follow the target."""
    if not _can_fail(signals) or not signals.prob_std < limit("constant_prob_std"):
        return None
    spread = f"probability {signals.prob_mean:.3f}+-{signals.prob_std:.3f}, log-odds +-{signals.logit_std:.3g}"
    message = f"the same everywhere: {spread}, AUROC {number(signals.auroc, 2)}"
    band = compute_band_share(signals)
    if band > limit("band_share"):
        message += f"; {band:.1%} of the probabilities lie in 0.5 to 0.7"
    return make_finding("constant_output", "collapsed", net, signals.prob_std, "constant_prob_std", message)


def find_all_negative(signals: Signals, net: str) -> RuleFinding | None:
    """Nothing is predicted although there is foreground, and no threshold would help."""
    least = limit("one_sided_share") * signals.prevalence_true
    is_low = signals.prob_mean < limit("low_prob_mean") < signals.prevalence_true
    if not _can_fail(signals) or is_dead(signals) or not (signals.prevalence_pred < least or is_low):
        return None
    message = f"predicts {signals.prevalence_pred:.2%} foreground where {signals.prevalence_true:.1%} is true"
    message += f"; mean probability {signals.prob_mean:.2g}, largest {signals.prob_max:.2g}"
    if signals.share_below_01 > limit("low_prob_share"):
        message += f", {signals.share_below_01:.2%} of all below 0.1"
    if signals.prevalence_pred >= least:
        return make_finding("all_negative", "collapsed", net, signals.prob_mean, "low_prob_mean", message)
    return make_finding(
        "all_negative", "collapsed", net, signals.prevalence_pred, "one_sided_share", message, scaled=least
    )


def find_all_positive(signals: Signals, net: str) -> RuleFinding | None:
    """Everything is predicted although there is background, and no threshold would help."""
    missing, least = 1 - signals.prevalence_pred, limit("one_sided_share") * (1 - signals.prevalence_true)
    if not _can_fail(signals) or is_dead(signals) or not missing < least:
        return None
    message = f"predicts {signals.prevalence_pred:.2%} foreground where {signals.prevalence_true:.1%} is true"
    return make_finding(
        "all_positive", "collapsed", net, signals.prevalence_pred, "one_sided_share", message, scaled=1 - least
    )


def find_uniform_ratio(signals: Signals, net: str) -> RuleFinding | None:
    """The same share of foreground in every patch where the true one varies, and no other collapse is named.

    A warning where the ranking of the voxels follows the target all the same: another threshold may help then.
    """
    others = (find_constant_output, find_all_negative, find_all_positive)
    if not has_one_share(signals) or _is_one_sided(signals) or any(rule(signals, net) for rule in others):
        return None
    message = (
        f"{signals.prevalence_pred:.2%}+-{signals.ratio_std:.2%} foreground in each of {signals.patches} patches, "
        f"true are {signals.prevalence_true:.1%}+-{signals.ratio_std_true:.1%}"
    )
    level: Level = "collapsed" if _can_fail(signals) else "warn"
    return make_finding("uniform_ratio", level, net, signals.ratio_std, "patch_ratio_std", message)


def find_shifted_threshold(signals: Signals, net: str) -> RuleFinding | None:
    """The ranking is good, but the threshold is the wrong place to cut."""
    if not is_informative(signals) or signals.f1_best is None:
        return None
    if signals.f1 > signals.trivial_f1 + limit("learned_margin") and not _is_one_sided(signals):
        return None
    gap = signals.f1_best - signals.f1
    if gap <= limit("shift_gap") or find_uniform_ratio(signals, net):
        return None
    cut = "" if len(signals.classes) > 1 else f" at {signals.threshold:g}"
    message = (
        f"{signals.f1_name} is {signals.f1:.2f}{cut} but {signals.f1_best:.2f} at {_cut(signals)}: learned but shifted"
    )
    return make_finding("shifted_threshold", "warn", net, gap, "shift_gap", message)


def find_not_above_trivial(signals: Signals, net: str) -> RuleFinding | None:
    """No threshold does better than predicting foreground everywhere."""
    return _find_little(signals, net, "trivial_margin")


def find_little_learned(signals: Signals, net: str) -> RuleFinding | None:
    """Return a finding on a network that is to be used, and whose ranking says nothing, for not being clearly better.

    A running training is given time, so this rule is used at the end only.
    """
    return None if is_informative(signals) else _find_little(signals, net, "learned_margin")


def _find_little(signals: Signals, net: str, margin: str) -> RuleFinding | None:
    least = signals.trivial_f1 + limit(margin)
    if signals.f1_best is None or signals.f1_best > least:
        return None
    message = (
        f"best {signals.f1_name} at any threshold {signals.f1_best:.2f}, all-positive scores {signals.trivial_f1:.2f}; "
        f"AUROC {number(signals.auroc, 2)}"
    )
    return make_finding("not_above_trivial", "warn", net, signals.f1_best, margin, message, scaled=least)


def find_foreground_bias(signals: Signals, net: str) -> RuleFinding | None:
    """Far more, or far less, foreground is predicted than there is, by a network that has not collapsed or shifted."""
    if not has_both_classes(signals) or math.isnan(signals.prevalence_pred):
        return None
    most, ratio = limit("foreground_bias"), signals.prevalence_pred / signals.prevalence_true
    if 1 / most < ratio < most or any(rule(signals, net) for rule in (*COLLAPSES, find_shifted_threshold)):
        return None
    message = (
        f"predicts {signals.prevalence_pred:.2%} foreground where {signals.prevalence_true:.2%} is true, {ratio:.2g} "
        f"times as much; {signals.f1_name} {signals.f1:.2f}, all-positive scores {signals.trivial_f1:.2f}"
    )
    scaled = most if ratio > 1 else 1 / most
    return make_finding("foreground_bias", "warn", net, ratio, "foreground_bias", message, scaled=scaled)


def find_missing_class(signals: Signals, net: str) -> RuleFinding | None:
    """Some of several foreground classes are hardly ever predicted where they are, by a network that has learned."""
    least = limit("one_sided_share")
    missing = [own for own in signals.classes if own.prevalence_pred < least * own.prevalence_true]
    if len(signals.classes) < 2 or not missing or _is_one_sided(signals):
        return None
    if any(rule(signals, net) for rule in (*COLLAPSES, find_shifted_threshold)):
        return None
    named = name_examples(
        f"class {own.value} on {own.prevalence_pred:.3%} of the voxels where {own.prevalence_true:.3%} is true"
        for own in missing
    )
    worst = min(own.prevalence_pred / own.prevalence_true for own in missing)
    return make_finding("missing_class", "warn", net, worst, "one_sided_share", f"predicts {named}")


def find_trivial_images(f1: float, trivial_f1: float, net: str) -> RuleFinding | None:
    """Return a finding where the masks of whole images are no better than foreground everywhere."""
    if beats_trivial(f1, trivial_f1):
        return None
    message = f"F1 {f1:.3f} on whole images, all-positive scores {trivial_f1:.3f}"
    return make_finding("not_above_trivial", "warn", net, f1 - trivial_f1, "trivial_margin", message)


def leave_out_refuted(findings: Iterable[RuleFinding], scores: Mapping[str, Any]) -> tuple[RuleFinding, ...]:
    """Return the findings without a bias of foreground, of patches, that a network does not have on whole cases.

    Args:
        scores: scores of a checkpoint; ``foreground_ratio`` of each network where whole validation cases were scored.
    """
    most = limit("foreground_bias")

    def is_refuted(finding: RuleFinding) -> bool:
        ratio = scores.get(finding.net, {}).get("foreground_ratio")
        return finding.code == "foreground_bias" and ratio is not None and 1 / most < ratio < most

    return tuple(f for f in findings if not is_refuted(f))


COLLAPSES: tuple[NetworkRule, ...] = (
    find_non_finite,
    find_inverted_output,
    find_all_negative,
    find_all_positive,
    find_constant_output,
    find_uniform_ratio,
)
NETWORK_RULES: tuple[NetworkRule, ...] = (
    *COLLAPSES,
    find_shifted_threshold,
    find_not_above_trivial,
    find_missing_class,
    find_foreground_bias,
)


def judge_network(signals: Signals, net: str) -> tuple[RuleFinding, ...]:
    """Return the findings of all rules on one network."""
    return tuple(f for rule in NETWORK_RULES if (f := rule(signals, net)))


def list_collapse_codes(signals: Signals) -> tuple[str, ...]:
    """Return the codes by which a network has collapsed; ``non_finite`` is another matter and not among them."""
    return tuple(f.code for f in judge_network(signals, "") if f.level == "collapsed" and f.code != "non_finite")


def is_informative(signals: Signals) -> bool:
    """Return whether the ranking of the voxels follows the target: clearly, or somewhat and with some spread."""
    return signals.auroc is not None and signals.auroc >= _informative_auroc(signals)


def is_certain(signals: Signals) -> bool:
    """Return whether the cases show, beyond chance, that the ranking is uninformative or inverted.

    Where the interval of the AUROC over the cases reaches what is informative, a few other cases might show another
    network. One number as output is that for every image.
    """
    if is_dead(signals):
        return True
    if find_inverted_output(signals, "") is not None:
        return not signals.auroc_high >= CHANCE
    return not signals.auroc_high >= _informative_auroc(signals)


def has_learned(signals: Signals) -> bool:
    """Return whether some threshold does clearly better than predicting foreground everywhere."""
    return signals.f1_best is not None and signals.f1_best > signals.trivial_f1 + limit("learned_margin")


def has_both_classes(signals: Signals) -> bool:
    """Return whether there is foreground as well as background to find, and a finite output."""
    return 0 < signals.prevalence_true < 1 and not math.isnan(signals.prob_mean)


def has_one_share(signals: Signals) -> bool:
    """Return whether enough patches are all predicted with one share of foreground, where the true one varies."""
    has_patches = signals.patches >= limit("uniform_patches") and has_both_classes(signals)
    varies = signals.ratio_std_true >= limit("patch_ratio_std_true")
    return has_patches and varies and signals.ratio_std < limit("patch_ratio_std")


def is_dead(signals: Signals) -> bool:
    """Return whether the output is one number: then that is the finding, and its sign a detail."""
    return signals.logit_std < limit("dead_logit_std")


def compute_band_share(signals: Signals) -> float:
    """Return the share of the probabilities in 0.5 to 0.7."""
    return sum(signals.prob_histogram[PROB_BINS // 2 : round(0.7 * PROB_BINS)])


def _informative_auroc(signals: Signals) -> float:
    is_spread = signals.prob_std >= limit("informative_prob_std")
    return limit("informative_auroc" if is_spread else "clear_auroc")


def _cut(signals: Signals) -> str:
    """Return the best threshold; as log-odds where its probability is next to 0 or 1."""
    cut = signals.threshold_best
    if cut is None or 0.01 <= cut <= 0.99 or signals.logit_best is None:
        return number(cut, 2)
    return f"log-odds {signals.logit_best:.3g}"


def _is_one_sided(signals: Signals) -> bool:
    """Return whether almost nothing of what is there is predicted as foreground, or as background."""
    least, true, pred = limit("one_sided_share"), signals.prevalence_true, signals.prevalence_pred
    return pred < least * true or 1 - pred < least * (1 - true)


def _can_fail(signals: Signals) -> bool:
    return has_both_classes(signals) and not is_informative(signals)
