from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from monitor_cases import (
    ALL_NEGATIVE,
    ALL_POSITIVE,
    CONSTANT,
    DEAD,
    EMPTY,
    HEALTHY,
    INVERTED,
    SHIFTED,
    UNIFORM,
    UNLEARNED,
)

from ssl_seg.monitor.catalog import LIMITS, limit, make_finding
from ssl_seg.monitor.findings import RuleFinding
from ssl_seg.monitor.network_rules import (
    NETWORK_RULES,
    compute_band_share,
    find_all_negative,
    has_learned,
    judge_network,
    leave_out_refuted,
    list_collapse_codes,
)
from ssl_seg.monitor.signals import ClassSignals, Signals

NOISE = replace(HEALTHY, auroc=0.55, f1_best=0.48)
"""A ranking without information, wide enough to be nothing else."""
BIASED = replace(HEALTHY, prevalence_pred=0.65)
MISSING = replace(HEALTHY, classes=(ClassSignals(1, 0.31, 0.28, 0.7), ClassSignals(255, 0.0, 0.02, 0.0)))
"""The first of two foreground classes is predicted on all of the second, too."""


def make_classes(pred: float, true: float) -> tuple[ClassSignals, ...]:
    return MISSING.classes[0], ClassSignals(255, pred, true, 0.0)


JUST = 1e-6


@pytest.mark.parametrize(
    ("signals", "codes"),
    [
        (HEALTHY, ()),
        (CONSTANT, ("all_positive", "constant_output", "not_above_trivial")),
        (ALL_POSITIVE, ("all_positive", "not_above_trivial")),
        (replace(CONSTANT, prevalence_pred=0.5), ("constant_output", "not_above_trivial")),
        (DEAD, ("constant_output", "not_above_trivial")),
        (replace(DEAD, prevalence_pred=0.0, f1=0.0), ("constant_output", "not_above_trivial")),
        (ALL_NEGATIVE, ("all_negative",)),
        (replace(ALL_NEGATIVE, f1_best=0.4616), ("all_negative", "not_above_trivial")),
        (INVERTED, ("inverted_output", "not_above_trivial")),
        (UNIFORM, ("uniform_ratio",)),
        (SHIFTED, ("shifted_threshold",)),
        (UNLEARNED, ("not_above_trivial",)),
        (MISSING, ("missing_class",)),
        (replace(MISSING, classes=make_classes(0.0, 0.0)), ()),
        (replace(MISSING, classes=MISSING.classes[1:]), ()),
        (
            replace(ALL_NEGATIVE, classes=MISSING.classes),
            ("all_negative",),
        ),
        (
            replace(SHIFTED, classes=MISSING.classes),
            ("shifted_threshold",),
        ),
        (NOISE, ()),
        (replace(HEALTHY, nonfinite=3), ("non_finite",)),
        (EMPTY, ()),
        (replace(EMPTY, prevalence_pred=0.2, f1=0.0), ()),
        (replace(HEALTHY, prevalence_true=0.001, prevalence_pred=0.0008, f1=0.5, trivial_f1=0.002), ()),
    ],
)
def test_table(signals: Signals, codes: tuple[str, ...]) -> None:
    assert tuple(f.code for f in judge_network(signals, "student")) == codes


@pytest.mark.parametrize(
    ("code", "base", "field", "fires", "silent"),
    [
        ("non_finite", HEALTHY, "nonfinite", 1, 0),
        ("inverted_output", NOISE, "auroc", 0.25, 0.25 + JUST),
        ("inverted_output", replace(NOISE, auroc=0.2), "prob_std", 0.1, 0.1 - JUST),
        ("inverted_output", INVERTED, "prevalence_true", 0.3, 1.0),
        ("constant_output", NOISE, "prob_std", 0.08 - JUST, 0.08),
        ("constant_output", CONSTANT, "auroc", 0.75 - JUST, 0.75),
        ("constant_output", CONSTANT, "prevalence_true", 0.3, 0.0),
        ("constant_output", CONSTANT, "prob_mean", 0.6, math.nan),
        ("all_negative", NOISE, "prevalence_pred", 0.006 - JUST, 0.006),
        ("all_negative", ALL_NEGATIVE, "auroc", 0.6 - JUST, 0.6),
        ("all_negative", replace(ALL_NEGATIVE, auroc=0.7), "prob_std", 0.1 - JUST, 0.1),
        ("all_negative", ALL_NEGATIVE, "logit_std", 1e-3, 1e-3 - JUST),
        ("all_negative", ALL_NEGATIVE, "prevalence_true", 0.3, 0.0),
        ("all_negative", NOISE, "prob_mean", 0.01 - JUST, 0.01),
        ("all_positive", NOISE, "prevalence_pred", 0.986 + JUST, 0.986),
        ("all_positive", NOISE, "prevalence_pred", 0.99, math.nan),
        ("all_positive", ALL_POSITIVE, "auroc", 0.6 - JUST, 0.6),
        ("all_positive", ALL_POSITIVE, "logit_std", 1e-3, 1e-3 - JUST),
        ("all_positive", ALL_POSITIVE, "prevalence_true", 0.3, 1.0),
        ("uniform_ratio", NOISE, "ratio_std", 0.002 - JUST, 0.002),
        ("uniform_ratio", UNIFORM, "patches", 8, 7),
        ("uniform_ratio", UNIFORM, "ratio_std_true", 0.02, 0.02 - JUST),
        ("uniform_ratio", UNIFORM, "prob_std", 0.3, 0.01),
        ("uniform_ratio", UNIFORM, "prevalence_pred", 0.3, 0.001),
        ("uniform_ratio", UNIFORM, "prevalence_pred", 0.3, 0.999),
        ("shifted_threshold", SHIFTED, "auroc", 0.6, 0.6 - JUST),
        ("shifted_threshold", replace(SHIFTED, prevalence_pred=0.1), "f1", 0.5115, 0.5116),
        ("shifted_threshold", replace(SHIFTED, f1=0.55), "prevalence_pred", 0.006 - JUST, 0.006),
        ("shifted_threshold", replace(SHIFTED, f1=0.55), "prevalence_pred", 0.986 + JUST, 0.986),
        ("shifted_threshold", SHIFTED, "f1_best", 0.1 + JUST, 0.1),
        ("shifted_threshold", SHIFTED, "f1_best", 0.68, None),
        ("not_above_trivial", HEALTHY, "f1_best", 0.4715, 0.4716),
        ("not_above_trivial", HEALTHY, "f1_best", 0.47, None),
        ("missing_class", MISSING, "classes", make_classes(0.0004 - JUST, 0.02), make_classes(0.0004, 0.02)),
        ("missing_class", MISSING, "classes", make_classes(0.0, 1e-5), make_classes(0.0, 0.0)),
        ("missing_class", MISSING, "ratio_std", 0.1, 0.001),
        ("missing_class", MISSING, "nonfinite", 0, 3),
        ("foreground_bias", HEALTHY, "prevalence_pred", 0.6 + JUST, 0.6 - JUST),
        ("foreground_bias", HEALTHY, "prevalence_pred", 0.15 - JUST, 0.15 + JUST),
        ("foreground_bias", BIASED, "prevalence_true", 0.3, 0.0),
        ("foreground_bias", replace(BIASED, auroc=0.55), "prob_std", 0.3, 0.07),
        ("foreground_bias", BIASED, "auroc", 0.92, 0.12),
        ("foreground_bias", BIASED, "ratio_std", 0.1, 0.001),
        ("shifted_threshold", replace(SHIFTED, prevalence_pred=0.5), "ratio_std", 0.1, 0.001),
    ],
)
def test_each_side_of_each_limit(code: str, base: Signals, field: str, fires: Any, silent: Any) -> None:
    found = [[f.code for f in judge_network(replace(base, **{field: v}), "net")] for v in (fires, silent)]
    assert code in found[0]
    assert code not in found[1]


def test_a_low_mean_probability_counts_only_where_there_is_foreground() -> None:
    """1 % is the limit of one report; the next one adds the target, since empty batches gave false alarms."""
    low = replace(NOISE, prob_mean=0.005, prevalence_pred=0.005)
    finding = find_all_negative(replace(low, prevalence_true=0.011), "student")
    assert finding is not None
    assert (finding.value, finding.limit) == (0.005, 0.01)
    assert find_all_negative(replace(low, prevalence_true=0.01), "student") is None


def find(signals: Signals, code: str) -> RuleFinding:
    return next(f for f in judge_network(signals, "teacher") if f.code == code)


def test_messages_tell_the_figures_of_the_reports() -> None:
    assert compute_band_share(CONSTANT) == pytest.approx(0.98)
    assert "98.0% of the probabilities lie in 0.5 to 0.7" in find(CONSTANT, "constant_output").message
    wide = replace(CONSTANT, prob_histogram=(0.06, *CONSTANT.prob_histogram[1:13], 0.24, *CONSTANT.prob_histogram[14:]))
    assert "lie in" not in find(wide, "constant_output").message
    low = replace(ALL_NEGATIVE, share_below_01=0.9943)
    assert "below 0.1" not in find(replace(low, share_below_01=0.985), "all_negative").message
    assert "99.43% of all below 0.1" in find(low, "all_negative").message
    assert "below 0.1" not in find(ALL_NEGATIVE, "all_negative").message
    assert "largest 0.52" in find(ALL_NEGATIVE, "all_negative").message


def test_a_finding_has_the_limit_that_the_value_was_compared_with() -> None:
    """One-sided depends on the prevalence: 2 % of 30 % foreground, or of 70 % background."""
    for signals, code, expected in ((ALL_NEGATIVE, "all_negative", 0.006), (CONSTANT, "all_positive", 0.986)):
        finding = find(signals, code)
        assert finding.limit == pytest.approx(expected)
        assert finding.source == LIMITS["one_sided_share"].source
        assert finding.net == "teacher"
    assert find(DEAD, "constant_output").limit == limit("constant_prob_std")


def test_levels() -> None:
    """What some threshold can repair, or more training, is no collapse."""
    broken = replace(HEALTHY, nonfinite=1)
    all_signals = (HEALTHY, CONSTANT, ALL_NEGATIVE, INVERTED, UNIFORM, SHIFTED, MISSING, BIASED, broken)
    levels = {f.code: f.level for signals in all_signals for f in judge_network(signals, "")}
    warnings = {"shifted_threshold", "not_above_trivial", "missing_class", "foreground_bias"}
    assert {code for code, level in levels.items() if level == "warn"} == warnings
    assert len(levels) == len(NETWORK_RULES)


def test_one_share_is_a_collapse_where_the_ranking_says_nothing() -> None:
    """A checkerboard has one share everywhere, and a cut through its two levels may still do something."""
    levels = [find(replace(UNIFORM, auroc=auroc), "uniform_ratio").level for auroc in (0.6 - JUST, 0.6)]
    assert levels == ["collapsed", "warn"]


def test_collapse_leaves_out_nan_and_warnings() -> None:
    assert list_collapse_codes(replace(CONSTANT, nonfinite=1)) == ("all_positive", "constant_output")
    assert list_collapse_codes(SHIFTED) == ()


@pytest.mark.parametrize(("f1_best", "expected"), [(0.52, True), (0.51, False), (None, False)])
def test_learned_means_clearly_above_trivial(f1_best: float | None, expected: bool) -> None:
    assert has_learned(replace(HEALTHY, f1_best=f1_best)) is expected


@pytest.mark.parametrize(("ratio", "stays"), [(None, True), (0.5, True), (0.51, False), (1.99, False), (2.0, True)])
def test_a_bias_of_patches_that_whole_cases_do_not_have_is_left_out(ratio: float | None, stays: bool) -> None:
    bias = make_finding("foreground_bias", "warn", "student", 3.0, "foreground_bias", "")
    other = make_finding("plateau", "warn", "student", 0.0, "plateau_gain", "")
    teachers = replace(bias, net="teacher")
    scores = {"student": {"foreground_ratio": ratio}, "teacher": {"f1": 0.5}, "source": "validation"}
    left = (bias, other, teachers) if stays else (other, teachers)
    assert leave_out_refuted((bias, other, teachers), scores) == left
