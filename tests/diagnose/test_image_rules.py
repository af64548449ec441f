"""Audits of all images together, on figures made by hand."""

from __future__ import annotations

import pytest

from ssl_seg.diagnose.image_rules import (
    _check_constant,
    _check_equality,
    _is_uniform,
    _truth_varies,
    audit_margin,
    describe_verdict,
    put_behind,
)
from ssl_seg.monitor.actions import NO_CONTEXT
from ssl_seg.monitor.catalog import make_finding
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.verdicts import conclude

EQUAL = {"images": 4, "mean_spread": 0.002, "std_spread": 0.003}


@pytest.mark.parametrize(
    ("same", "images", "ratio", "expected"),
    [
        (45, 45, 0.9506, True),
        (5, 5, 0.7119, True),
        (9, 10, 0.3, True),
        (8, 10, 0.3, False),
        (2, 2, 0.3, False),
        (50, 50, 0.0002, False),  # sparse lesions: shares agree to 1e-4 whatever the images show
        (50, 50, 0.0, False),
    ],
)
def test_uniform_ratios(same: int, images: int, ratio: float, expected: bool) -> None:
    assert _is_uniform(same, images, ratio) == expected


@pytest.mark.parametrize(
    ("prob_std", "auroc", "level"),
    [(0.0698, 0.5, "collapsed"), (0.0698, None, "collapsed"), (0.118, 0.54, "warn"), (0.0698, 0.8, None)],
)
def test_equal_statistics_of_images_that_may_be_alike_are_a_warning(
    prob_std: float, auroc: float | None, level: str | None
) -> None:
    found = list(_check_equality(EQUAL, {"prob_mean": 0.6, "prob_std": prob_std}, "student", auroc))
    assert [f.level for f in found] == ([] if level is None else [level])


def test_different_statistics_are_none() -> None:
    different = EQUAL | {"mean_spread": 0.05}
    assert not list(_check_equality(different, {"prob_mean": 0.6, "prob_std": 0.05}, "student", None))


@pytest.mark.parametrize(
    ("prob_max", "width", "auroc", "fires"),
    [(0.7071, 0.19, None, True), (0.93, 0.9, None, False), (0.93, 0.9, 0.5, True), (0.7071, 0.19, 0.8, False)],
)
def test_small_bright_objects_are_no_constant(prob_max: float, width: float, auroc: float | None, fires: bool) -> None:
    outputs = {
        "prob_mean": 0.05,
        "prob_std": 0.05,
        "prob_min": prob_max - width,
        "prob_max": prob_max,
        "band_share": 0.0,
    }
    assert bool(list(_check_constant(outputs, "student", auroc))) == fires


@pytest.mark.parametrize(
    ("known", "low", "high", "varies"),
    [(0, None, None, True), (1, 0.3, 0.3, True), (3, 0.3, 0.3, False), (3, 0.3, 0.4, True)],
)
def test_one_mask_says_nothing_about_how_the_truth_varies(
    known: int, low: float | None, high: float | None, varies: bool
) -> None:
    assert _truth_varies({"true_known": known, "true_min": low, "true_max": high}) == varies


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_findings_with_one_code_the_worse_decides(order: int) -> None:
    worse = make_finding("constant_output", "collapsed", "student", 0.05, "constant_prob_std", "whole images")
    verdict = conclude([worse, worse.soften()][::order], NO_CONTEXT)
    assert (verdict.level, verdict.findings) == ("collapsed", (worse,))
    assert describe_verdict(verdict, "fine").message == "constant output function: do not submit"
    assert describe_verdict(Verdict(), "fine").message == "fine"


def test_whole_images_say_more_of_what_the_patches_have_shown_and_never_lead() -> None:
    """Or run and diagnosis would differ on one checkpoint."""
    same = make_finding("uniform_ratio", "collapsed", "student", 1.0, "uniform_ratio", "all of 45")
    assert put_behind(Verdict(), [same]) == Verdict()
    bias = conclude([make_finding("foreground_bias", "warn", "student", 3.0, "foreground_bias", "")], NO_CONTEXT)
    more = put_behind(bias, [same])
    assert [(f.code, f.level) for f in more.findings] == [("foreground_bias", "warn"), ("uniform_ratio", "warn")]
    assert more.action == bias.action
    blind = conclude([make_finding("all_negative", "collapsed", "student", 0.0, "one_sided_share", "")], NO_CONTEXT)
    assert put_behind(blind, [same, *blind.findings]).codes == ("all_negative", "uniform_ratio")


@pytest.mark.parametrize(("f1", "codes"), [(0.467, ["not_above_trivial"]), (0.477, ["not_above_trivial"]), (0.6, [])])
def test_masks_no_better_than_trivial_are_never_healthy(f1: float, codes: list[str]) -> None:
    statistics = {"scores": {"f1_macro": f1, "trivial_f1_macro": 0.468}}
    assert [f.code for f in audit_margin(statistics, "student")] == codes
    assert audit_margin({}, "student") == ()
    nothing = {"scores": {"f1_macro": 1.0, "trivial_f1_macro": 0.0}}
    assert audit_margin(nothing, "student") == (), "nothing to find"
