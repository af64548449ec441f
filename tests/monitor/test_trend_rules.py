from __future__ import annotations

import math
from dataclasses import replace

import pytest
from monitor_cases import HEALTHY, level, make_evidence, make_trend

from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.training_rules import (
    find_overfitting,
    find_plateau,
    find_pseudo_label_drift,
    find_pseudo_label_share,
)

NAN = math.nan


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
