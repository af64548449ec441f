from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import pytest
from monitor_cases import HEALTHY, UNLEARNED, level, make_evidence, make_trend

from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.signals import Signals
from ssl_seg.monitor.training_rules import (
    find_component_explosion,
    find_overfitting,
    find_plateau,
    find_pseudo_label_drift,
    find_pseudo_label_share,
    find_trivial_loss,
    grade_gap,
)

NAN = math.nan
UNKNOWN = replace(UNLEARNED, f1_best=None, auroc=None)
"""Networks of which a report says nothing."""


class TestOverfitting:
    @pytest.mark.parametrize(
        ("scores", "train_f1", "expected"),
        [
            ([0.4, 0.6, 0.575, 0.575, 0.575], 0.75, "overfitting starts"),
            ([0.4, 0.6, 0.585, 0.585, 0.585], 0.75, None),
            ([0.4, 0.6, 0.57, 0.57, 0.57], 0.83, "severe"),
            ([0.4, 0.6, 0.57, 0.57, 0.57], 0.71, None),
            ([0.4, 0.6, 0.57, 0.59, 0.57], 0.75, None),
            ([0.4, 0.6, 0.57, 0.57], 0.75, None),
            ([0.9, 0.57, 0.57, 0.57], 0.75, None),
            ([0.4, 0.5, 0.57, 0.58], 0.95, None),
            ([0.4, 0.5, 0.569, 0.517], 0.787, "severe"),
            ([0.4, 0.5, 0.569, 0.520], 0.787, None),
            ([0.4, 0.5, 0.569, 0.517], 0.766, None),
        ],
    )
    def test_gap_and_falling_validation(self, scores: list[float], train_f1: float, expected: str | None) -> None:
        evidence = make_evidence(
            replace(HEALTHY, f1=scores[-1]), train=replace(HEALTHY, f1=train_f1), trend=make_trend(f1=scores)
        )
        finding = find_overfitting(evidence)
        assert (finding and finding.message.rsplit(": ")[1]) == expected
        assert level(finding) == ("warn" if expected else "-")

    def test_without_a_training_probe_nothing_is_said(self) -> None:
        assert find_overfitting(make_evidence(trend=make_trend(f1=[0.4, 0.9, 0.5, 0.5, 0.5]))) is None


@pytest.mark.parametrize(
    ("epoch", "train", "val", "grade"),
    [(1, 0.246, 0.189, ""), (5, 0.590, 0.398, "wide"), (10, 0.696, 0.411, "severe"), (12, 0.727, 0.524, "wide"),
     (18, 0.788, 0.569, "wide"), (20, 0.787, 0.517, "severe")],
)  # fmt: skip
def test_the_gaps_of_the_report_are_graded_as_it_grades_them(epoch: int, train: float, val: float, grade: str) -> None:
    """It says learning, overfitting starts, severe; of the last three, best, best and degrading."""
    assert grade_gap(train - val) == grade, epoch


V5 = [{key: a + (b - a) * i / 6 for key, (a, b) in {
    "val_loss": (0.6286, 0.6633), "val_component/dice": (0.4425, 0.4164), "val_component/focal": (0.1806, 0.2471),
    "val_component/variance": (0.9702, 0.9953)}.items()} for i in range(7)]  # fmt: skip
"""Epochs 5 and 11 of the report, and straight lines between them."""
V9 = [dict(zip(V5[0], row, strict=True)) for row in (
    (0.4528, 0.453, 0.192, 0.987), (0.4470, 0.447, 0.273, 0.963), (0.4107, 0.411, 0.317, 0.957),
    (0.4139, 0.414, 0.382, 1.003), (0.4115, 0.412, 0.469, 1.050), (0.4182, 0.418, 0.563, 1.084),
    (0.4024, 0.402, 0.491, 1.064))]  # fmt: skip
"""The report's best run."""
V8 = [{"val_loss": v, "val_component/dice": v} for v in (0.6673, 0.6686, 0.6613, 0.6480, 0.6472, 0.6689, 0.6663)]
RANGES = {"dice": (0.0, 0.5), "variance": (0.0475, 1.0)}
"""Of masks with 60.9 % foreground: the Dice of both classes is 0.609 and 0.391 at the constant 0.609."""


def list_named(rows: list[dict[str, float]], student: Signals = UNKNOWN, **changed: float) -> dict[int, list[str]]:
    """Return what is named at the end of each epoch, by the number of the row."""
    named = {}
    for count in range(1, len(rows) + 1):
        ends: list[dict[str, float]] = [{"step": 0.0, "ends_epoch": 1.0, "f1": 0.0}]
        best = {} if student.f1_best is None else {"f1_best": student.f1_best}
        told = {"ends_epoch": 1.0, "f1": 0.0, **best}
        ends += [{"step": 100.0 * (i + 1), **told, **row} for i, row in enumerate(rows[:count])]
        now = {"loss": rows[count - 1].get("val_loss", NAN)} | changed
        evidence = make_evidence(
            replace(student, losses=tuple(now.items())), trend=tuple(ends), ranges=RANGES,
            components=("dice", "focal", "variance"),
        )  # fmt: skip
        found = [f for f in (find_component_explosion(evidence), find_trivial_loss(evidence)) if f is not None]
        if found:
            named[count - 1] = [f.code for f in found]
            assert all(f.level == "warn" and f.message for f in found)
    return named


class TestLossOnValidation:
    def test_a_divergence_is_named_in_its_third_epoch(self) -> None:
        assert list_named(V5) == {i: ["component_explosion"] for i in (3, 4, 5, 6)}
        evidence = make_evidence(
            UNKNOWN, trend=make_trend(val_loss=[NAN, *(row["val_loss"] for row in V5[:4])],
                                      val_component__focal=[NAN, *(row["val_component/focal"] for row in V5[:4])]),
            components=("focal",),
        )  # fmt: skip
        finding = find_component_explosion(evidence)
        assert finding is not None
        assert "0.629 to 0.646 and focal 0.181 to 0.214" in finding.message

    @pytest.mark.parametrize("rows", [V9, V8, V5[::-1], [V5[0]] * 7, V5[:3]])
    def test_what_wavers_falls_or_stays_is_none(self, rows: list[dict[str, float]]) -> None:
        assert "component_explosion" not in list(chain(*list_named(rows).values()))

    def test_networks_that_are_as_good_as_ever_may_be_sure_of_their_errors(self) -> None:
        """The loss of a network that is too sure rises while its F1 does too."""
        assert list_named(V5, HEALTHY) == {}

    def test_between_epochs_it_counts_until_the_loss_falls(self) -> None:
        assert 3 in list_named(V5, loss=0.647)
        assert list_named(V5, loss=0.60) == {}

    @pytest.mark.parametrize(
        ("dices", "variances", "expected"),
        [
            ([0.48, 0.49, 0.50], [0.9542, 0.97, 0.9876], True),
            ([0.49, 0.50, 0.49], [0.9876, 0.99, 0.9999], True),
            ([0.60, 0.60, 0.60], [1.0, 1.0, 1.0], True),
            ([0.48, 0.49, 0.45], [0.96, 0.96, 0.96], False),
            ([0.45, 0.49, 0.49], [0.96, 0.96, 0.96], False),
            ([0.48, 0.49, 0.50], [0.96, 0.96, 0.90], False),
            ([0.48, 0.50], [0.97, 0.97], False),
        ],
    )
    def test_stuck_where_a_constant_output_is(self, dices: list[float], variances: list[float], expected: bool) -> None:
        rows = [{"val_component/dice": d, "val_component/variance": v} for d, v in zip(dices, variances, strict=True)]
        assert ("trivial_loss" in list(chain(*list_named(rows).values()))) == expected
        assert list_named(rows, HEALTHY) == {}, "a network that has learned is not stuck"

    def test_a_range_that_is_none_says_nothing(self) -> None:
        """At a component that is lowest for a constant, or without any, nobody is stuck."""
        trend = make_trend(val_component__dice=[NAN, 0.5, 0.5, 0.5])
        for ranges in ({}, {"dice": (0.5, 0.5)}, {"dice": (0.6, 0.5)}, {"focal": (0.0, 0.2)}):
            assert find_trivial_loss(make_evidence(UNKNOWN, trend=trend, ranges=ranges)) is None
        assert find_trivial_loss(make_evidence(UNKNOWN, trend=trend, ranges=RANGES)) is not None


class TestPlateau:
    @pytest.mark.parametrize(
        ("scores", "f1_best", "expected"),
        [
            ([0.2, 0.50, 0.50, 0.50, 0.50, 0.50, 0.504], 0.55, "warn"),
            ([0.2, 0.50, 0.50, 0.50, 0.50, 0.50, 0.506], 0.55, "-"),
            ([0.2, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50], 0.57, "-"),  # converged
            ([0.2, 0.50, 0.50, 0.50, 0.50, 0.50], 0.55, "-"),
            ([0.2, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50], None, "-"),
        ],
    )
    def test_five_epochs_close_to_trivial(self, scores: list[float], f1_best: float | None, expected: str) -> None:
        evidence = make_evidence(replace(HEALTHY, f1=scores[-1], f1_best=f1_best), trend=make_trend(f1=scores))
        assert level(find_plateau(evidence)) == expected


class TestPseudoLabels:
    @pytest.mark.parametrize(
        ("share", "expected"), [(0.0, "warn"), (0.0009, "warn"), (0.0011, "-"), (0.9989, "-"), (0.9991, "warn")]
    )
    def test_share(self, share: float, expected: str) -> None:
        assert level(find_pseudo_label_share(make_evidence(training={"accepted_share": share}))) == expected

    def test_without_a_threshold_there_is_no_share(self) -> None:
        assert find_pseudo_label_share(make_evidence()) is None

    def drift(self, shares: list[float], labeled: float = 0.3, true: float = 0.3) -> Evidence:
        return make_evidence(
            replace(HEALTHY, prevalence_true=true), trend=make_trend(pseudo_prevalence=[NAN, *shares]),
            training={"pseudo_prevalence": shares[-1], "prevalence_true": labeled},
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("shares", "expected"),
        [
            ([0.3, 0.57], "warn"),  # odds of 0.3: 0.43; of 0.5625: 3 x 0.43
            ([0.3, 0.55], "-"),
            ([0.3, 0.12], "warn"),  # of 0.125: 0.43 / 3
            ([0.3, 0.13], "-"),
            ([0.8, 0.57], "-"),  # comes closer
            ([0.5, 0.6], "-"),  # less than doubled
            ([0.3, 1.0], "warn"),
            ([1.0, 1.0], "-"),
            ([0.3, 0.0], "warn"),
        ],
    )
    def test_drift(self, shares: list[float], expected: str) -> None:
        finding = find_pseudo_label_drift(self.drift(shares))
        assert level(finding) == expected
        assert finding is None or math.isfinite(finding.value)

    def test_patches_centered_on_foreground_are_no_drift(self) -> None:
        """Labeled patches hold 40 % foreground, the images 5 %, and the pseudo-labels lie between."""
        assert find_pseudo_label_drift(self.drift([0.3, 0.06], labeled=0.4, true=0.05)) is None
        assert find_pseudo_label_drift(self.drift([0.3, 0.06], labeled=0.4, true=0.3)) is not None

    def test_without_pseudo_labels_or_foreground_nothing_is_said(self) -> None:
        assert find_pseudo_label_drift(make_evidence(trend=make_trend(2))) is None
        assert find_pseudo_label_drift(self.drift([0.3, 0.9], labeled=0.0)) is None
