"""Audits of all images together, on figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ssl_seg.diagnose.audits import (
    _check_constant,
    _check_equality,
    _is_uniform,
    _truth_varies,
    audit_bias,
    audit_margin,
    conclude,
)
from ssl_seg.monitor.catalog import make_finding

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
    verdict, findings = conclude([worse, worse.soften()][::order], "fine")
    assert (verdict.level, findings) == ("collapsed", (worse,))


@pytest.mark.parametrize(
    ("f1", "sweep", "code"),
    [(0.467, [0.46, 0.477], "not_above_trivial"), (0.467, [0.4, 0.6], "shifted_threshold"), (0.6, [0.6, 0.62], None)],
)
def test_masks_no_better_than_trivial_are_never_healthy(f1: float, sweep: list[float], code: str | None) -> None:
    trivial = {"best": 0.468, "margin": f1 - 0.468}
    statistics = {"scores": {"f1": f1}, "trivial": trivial, "sweep": {"f1": sweep}}
    assert [f.code for f in audit_margin(statistics, "student")] == ([] if code is None else [code])
    assert audit_margin({}, "student") == ()


def biased(pred: float, true: float | None) -> dict[str, Any]:
    """Statistics of images whose prediction holds the whole foreground, or is a part of it."""
    if true is None:
        return {"foreground": {"pred": {"mean": pred}, "true": None}}
    overlap = {"images": 3, "precision": min(true / pred, 1.0), "recall": min(pred / true, 1.0) if true else 0.0}
    f1 = 2 * overlap["precision"] * overlap["recall"] / max(overlap["precision"] + overlap["recall"], 1e-9)
    return {"foreground": {"pred": {"mean": pred}, "true": {"mean": true}}, "scores": {**overlap, "f1": f1}}


@pytest.mark.parametrize(
    ("pred", "true", "fires"),
    [
        (0.41, 0.25, True),
        (0.51, 0.25, True),
        (0.957, 0.609, True),
        (0.37, 0.25, False),
        (0.17, 0.25, False),
        (0.16, 0.25, True),
        (0.9, 0.8, False),
        (0.003, 0.001, True),
        (0.1, 0.0, False),
        (0.41, None, False),
    ],
)
def test_gross_bias_of_the_foreground(pred: float, true: float | None, fires: bool) -> None:
    statistics = biased(pred, true)
    found = audit_bias(statistics, "student", ())
    assert [f.code for f in found] == (["foreground_bias"] if fires else [])
    if fires and true:
        assert f"predicts {pred:.1%} foreground where {true:.1%} is true" in found[0].message
        assert found[0].level == "warn"
        assert (found[0].value > found[0].limit) == (pred > true)
        assert statistics["scores"]["f1"] < 0.81, "no good network can be told so"


@pytest.mark.parametrize(
    ("code", "level", "net", "fires"),
    [
        ("all_positive", "collapsed", "student", False),
        ("all_positive", "collapsed", "teacher", True),
        ("shifted_threshold", "warn", "student", False),
        ("not_above_trivial", "warn", "student", False),
        ("plateau", "warn", "student", True),
    ],
)
def test_what_says_more_than_a_bias(code: str, level: Any, net: str, fires: bool) -> None:
    other = make_finding(code, level, net, 1.0, "one_sided_share", "")
    assert bool(audit_bias(biased(0.5, 0.25), "student", (other,))) == fires


@pytest.mark.parametrize(("images", "patches", "fires"), [(1, 0.59, True), (3, 0.59, False), (1, 0.3, False)])
def test_of_few_whole_images_the_patches_decide(images: int, patches: float, fires: bool) -> None:
    statistics = biased(0.26, 0.25)
    statistics["scores"]["images"] = images
    statistics["nets"] = {"student": {"prevalence_pred": patches, "prevalence_true": 0.28, "f1": 0.607}}
    found = audit_bias(statistics, "student", ())
    assert bool(found) == fires
    assert not fires or found[0].message.endswith("on patches, F1 0.607")
    assert audit_bias({"nets": statistics["nets"]}, "student", ()) == found or not fires, "nor without any"
    statistics["nets"]["student"] |= {"prevalence_pred": float("nan")}
    statistics["scores"]["images"] = 1
    assert audit_bias(statistics, "student", ()) == ()
