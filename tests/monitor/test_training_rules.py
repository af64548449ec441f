from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from monitor_cases import (
    ALL_NEGATIVE,
    ALL_POSITIVE,
    CONSTANT,
    EMPTY,
    HEALTHY,
    SHIFTED,
    UNIFORM,
    UNLEARNED,
    level,
    make_evidence,
    make_trend,
)

from ssl_seg.monitor.findings import RuleFinding
from ssl_seg.monitor.training_rules import (
    TRAINING_RULES,
    find_blind_probe,
    find_component_explosion,
    find_loss_metric_divergence,
    find_mode_gap,
    find_non_finite_training,
    find_teacher_diverged,
    find_zero_loss,
)

NAN = math.nan
DOUBTED = replace(UNIFORM, ratio_std=0.1, auroc_high=0.7)
"""Of so few cases that its ranking may be better than it looks."""
LOSSES = {"components": ("cross_entropy", "focal")}


def test_a_healthy_look_gives_nothing_with_and_without_a_trend() -> None:
    falling = [0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.44]
    rising = [0.46, 0.5, 0.55, 0.6, 0.65, 0.68, 0.7]
    trend = make_trend(
        loss=falling, f1=rising, f1_best=rising, train_f1=rising, batch_f1=rising, component__focal=falling,
        pseudo_prevalence=[0.3] * 7,
    )  # fmt: skip
    training = {"loss": 0.44, "focal": 0.44, "pseudo_prevalence": 0.3, "accepted_share": 0.5}
    for evidence in (
        make_evidence(train=replace(HEALTHY, f1=0.8), train_mode=HEALTHY, training=training, trend=trend, **LOSSES),
        make_evidence(training={}),
    ):
        assert [rule.__name__ for rule in TRAINING_RULES if rule(evidence)] == []


class TestNonFinite:
    @pytest.mark.parametrize("loss", [NAN, math.inf, -math.inf])
    def test_loss(self, loss: float) -> None:
        finding = find_non_finite_training(make_evidence(training={"loss": loss, "steps": 7.0}))
        assert finding is not None
        assert (finding.level, finding.net, finding.value, finding.limit) == ("collapsed", "training", 7, 0)

    def test_training_probe_is_named_where_validation_is_finite(self) -> None:
        broken = replace(HEALTHY, nonfinite=2)
        finding = find_non_finite_training(make_evidence(train=broken))
        assert finding is not None
        assert finding.net == "student"
        assert find_non_finite_training(make_evidence(broken, train=broken)) is None


@pytest.mark.parametrize(
    ("true", "missing"), [(0.0, "foreground"), (1.0, "background"), (1e-9, None), (1 - 1e-9, None), (NAN, None)]
)
def test_a_probe_of_one_class_judges_nothing(true: float, missing: str | None) -> None:
    finding = find_blind_probe(make_evidence(replace(HEALTHY, prevalence_true=true)))
    assert level(finding) == ("warn" if missing else "-")
    assert finding is None or f"hold no {missing}" in finding.message


class TestZeroLoss:
    @pytest.mark.parametrize(
        ("student", "loss", "expected"),
        [
            (UNLEARNED, 0.99e-4, "collapsed"),
            (UNLEARNED, -0.99e-4, "collapsed"),
            (UNLEARNED, 1.01e-4, "-"),
            (HEALTHY, 0.0, "warn"),
            (EMPTY, 0.0, "-"),
        ],
    )
    def test_nothing_to_learn_from(self, student: Any, loss: float, expected: str) -> None:
        assert level(find_zero_loss(make_evidence(student, training={"loss": loss}))) == expected

    @pytest.mark.parametrize(
        ("steps", "prevalence", "true", "expected"),
        [
            (10, 0.0, 0.3, "collapsed"),
            (9, 0.0, 0.3, "-"),
            (50, 0.0001, 0.3, "-"),
            (99, 0.0, 0.002, "-"),
            (101, 0.0, 0.002, "collapsed"),
            (10, 1.0, 0.7, "collapsed"),
            (9, 1.0, 0.7, "-"),
            (50, 0.9999, 0.7, "-"),
            (99, 1.0, 0.998, "-"),
            (101, 1.0, 0.998, "collapsed"),
        ],
    )
    def test_batches_of_one_class(self, steps: int, prevalence: float, true: float, expected: str) -> None:
        """The sparser the missing class, the more steps without any are chance."""
        training = {"steps": float(steps), "prevalence_true": prevalence}
        student = replace(UNLEARNED, prevalence_true=true)
        assert level(find_zero_loss(make_evidence(student, training=training))) == expected

    @pytest.mark.parametrize(
        ("student", "losses", "true", "expected"),
        [
            (UNLEARNED, [0.42, 0.001], 0.3, "warn"),
            (UNLEARNED, [0.42, 0.099], 0.3, "warn"),
            (UNLEARNED, [0.42, 0.101], 0.3, "-"),
            (UNLEARNED, [0.12, 0.08], 0.3, "-"),  # focal loss of an untrained network
            (UNLEARNED, [0.69, 0.05], 0.049, "-"),
            (UNLEARNED, [0.69, 0.05], 0.051, "warn"),
            (HEALTHY, [0.42, 0.05], 0.3, "-"),
            (UNLEARNED, [0.42, 0.3, 0.2, 0.05], 0.3, "warn"),
            (UNLEARNED, [0.42, 0.3, 0.2, 0.1, 0.05], 0.3, "-"),
        ],
    )
    def test_too_good_to_be_true(self, student: Any, losses: list[float], true: float, expected: str) -> None:
        """The report: 0.42, 0.00, 0.00. After three epochs it is no longer the first epochs."""
        trend = make_trend(loss=[NAN, *losses[1:]] if len(losses) > 2 else losses)
        trend = ({**trend[0], "loss": losses[0]}, *trend[1:])
        evidence = make_evidence(replace(student, prevalence_true=true), training={"loss": losses[-1]}, trend=trend)
        assert level(find_zero_loss(evidence)) == expected

    def test_without_steps_or_start_nothing_is_said(self) -> None:
        assert find_zero_loss(replace(make_evidence(UNLEARNED), training={})) is None
        assert find_zero_loss(make_evidence(UNLEARNED, training={"loss": 0.05})) is None


class TestModeGap:
    @pytest.mark.parametrize(
        ("student", "free", "expected"),
        [
            (HEALTHY, None, "-"),
            (HEALTHY, HEALTHY, "-"),
            (CONSTANT, HEALTHY, "collapsed"),
            (HEALTHY, CONSTANT, "-"),
            (replace(HEALTHY, f1_best=0.61), HEALTHY, "warn"),
            (replace(HEALTHY, f1_best=0.63), HEALTHY, "-"),
            (replace(HEALTHY, auroc=0.81), HEALTHY, "warn"),
            (replace(HEALTHY, auroc=0.83), HEALTHY, "-"),
            (replace(HEALTHY, f1=0.49), HEALTHY, "warn"),
            (replace(HEALTHY, f1=0.51), HEALTHY, "-"),
            (replace(HEALTHY, f1=0.2), replace(HEALTHY, f1=0.46), "-"),
            (CONSTANT, replace(HEALTHY, auroc=0.59), "-"),
            (CONSTANT, replace(HEALTHY, f1_best=0.51), "-"),
        ],
    )
    def test_train_mode_must_be_the_better_one_and_good(self, student: Any, free: Any, expected: str) -> None:
        assert level(find_mode_gap(make_evidence(student, train_mode=free))) == expected

    def test_the_collapse_that_it_explains_is_in_the_message(self) -> None:
        finding = find_mode_gap(make_evidence(CONSTANT, train_mode=HEALTHY))
        assert finding is not None
        assert "all_positive, constant_output" in finding.message


class TestLossMetricDivergence:
    """Report: the loss fell 0.27 to 0.22 while F1 went 0.49 to 0.00."""

    @pytest.mark.parametrize(
        ("losses", "f1", "student", "expected"),
        [
            ([NAN, 0.27, 0.22], 0.49, ALL_NEGATIVE, "warn"),
            ([NAN, 0.27, 0.25], 0.49, ALL_NEGATIVE, "-"),
            ([NAN, -0.6, -0.67], 0.49, ALL_NEGATIVE, "warn"),
            ([NAN, -0.6, -0.5], 0.49, ALL_NEGATIVE, "-"),
            ([NAN, 0.27, 0.22], 0.13, ALL_NEGATIVE, "warn"),
            ([NAN, 0.27, 0.22], 0.09, ALL_NEGATIVE, "-"),
            ([NAN, 0.27, 0.22], 0.49, SHIFTED, "-"),
            ([NAN, 0.27, 0.22], 0.49, replace(ALL_NEGATIVE, f1_best=None), "-"),
            ([NAN, NAN, NAN], 0.49, ALL_NEGATIVE, "-"),
        ],
    )
    def test_loss_falls_while_f1_falls(self, losses: list[float], f1: float, student: Any, expected: str) -> None:
        trend = make_trend(loss=losses, f1=[f1, student.f1, student.f1])
        evidence = make_evidence(student, training={"loss": losses[-1]}, trend=trend)
        finding = find_loss_metric_divergence(evidence)
        assert level(finding) == expected
        assert finding is None or f"{f1:.2f} to 0.00" in finding.message

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({}, "collapsed"),
            ({"batch_f1": 0.61}, "-"),
            ({"train": DOUBTED}, "-"),
            ({"train": replace(DOUBTED, ratio_std=0.001)}, "collapsed"),  # all patches alike: no chance
            ({"prevalence_true": 0.5}, "-"),
            ({"train": HEALTHY}, "-"),
            ({"train": EMPTY}, "-"),
            ({"train": None}, "-"),
            ({"train_f1": 0.6}, "-"),
            ({"train_mode": HEALTHY}, "-"),
        ],
    )
    def test_training_goes_well_and_prediction_never_has(self, change: dict[str, Any], expected: str) -> None:
        """All-positive scores 0.46 in the batches: 0.70 is a margin of 0.24, against 0.67 of all-positive at 50 %."""
        case = {"batch_f1": 0.70, "prevalence_true": 0.3, "train": CONSTANT, "train_f1": 0.46, "train_mode": None}
        case |= change
        evidence = make_evidence(
            CONSTANT, train=case["train"], trend=make_trend(train_f1=[0.46, case["train_f1"], 0.46]),
            training={"batch_f1": case["batch_f1"], "prevalence_true": case["prevalence_true"]},
            train_mode=case["train_mode"],
        )  # fmt: skip
        assert level(find_loss_metric_divergence(evidence)) == expected


class TestTeacherDiverged:
    @pytest.mark.parametrize(
        ("student", "teacher", "half", "expected"),
        [
            (HEALTHY, HEALTHY, 0.72, "-"),
            (HEALTHY, replace(HEALTHY, f1_best=0.66), 0.72, "warn"),
            (HEALTHY, replace(HEALTHY, f1_best=0.68), 0.72, "-"),
            (HEALTHY, replace(HEALTHY, f1_best=0.55), 0.56, "-"),  # it lags, as a mean of the past does
            (HEALTHY, ALL_POSITIVE, 0.56, "warn"),
            (HEALTHY, ALL_POSITIVE, 0.47, "-"),
            (HEALTHY, replace(HEALTHY, nonfinite=1, f1_best=0.3), 0.72, "-"),
            (CONSTANT, replace(HEALTHY, f1_best=0.3), 0.72, "-"),
            (replace(HEALTHY, prob_std=0.079), replace(HEALTHY, f1_best=0.3), 0.72, "-"),
            (replace(HEALTHY, auroc=0.59), replace(HEALTHY, f1_best=0.3), 0.72, "-"),
            (replace(HEALTHY, f1_best=0.50), replace(HEALTHY, f1_best=0.48), 0.72, "-"),
        ],
    )
    def test_behind_the_student_of_half_of_the_steps(
        self, student: Any, teacher: Any, half: float, expected: str
    ) -> None:
        trend = make_trend(f1_best=[0.4, half, 0.9, 0.9][:3], f1=[0.4, 0.45, 0.7])
        assert level(find_teacher_diverged(make_evidence(student, teacher, trend=trend))) == expected

    @pytest.mark.parametrize(("half", "expected"), [(0.63, "warn"), (0.61, "-")])
    def test_at_05(self, half: float, expected: str) -> None:
        """A mean of the right weights with stale statistics may rank well and cut in the wrong place."""
        trend = make_trend(f1=[0.4, half, 0.7], f1_best=[0.4, 0.7, 0.72])
        finding = find_teacher_diverged(make_evidence(HEALTHY, replace(HEALTHY, f1=0.5), trend=trend))
        assert level(finding) == expected

    def test_without_a_trend_the_student_of_now_is_the_measure(self) -> None:
        assert level(find_teacher_diverged(make_evidence(HEALTHY, ALL_POSITIVE))) == "warn"
        assert find_teacher_diverged(make_evidence(HEALTHY, HEALTHY)) is None

    def test_says_whether_the_teacher_is_used_and_what_is_explained(self) -> None:
        finding = find_teacher_diverged(make_evidence(HEALTHY, ALL_POSITIVE, uses_teacher=False))
        assert finding is not None
        assert "(all_positive)" in finding.message
        assert "nothing is learned from it" in finding.message
        assert finding.net == "teacher"
        used = find_teacher_diverged(make_evidence(HEALTHY, ALL_POSITIVE))
        assert used is not None
        assert "nothing is learned" not in used.message


class TestComponentExplosion:
    def explode(self, student: Any = UNLEARNED, **training: float) -> RuleFinding | None:
        trend = make_trend(
            loss=[NAN, 0.6, 0.5, 0.52], component__cross_entropy=[NAN, 0.6, 0.5, 0.5], f1_best=[0.4, 0.5, 0.7, 0.6],
            component__focal=[NAN, 0.19, 0.18, 0.18],
        )  # fmt: skip
        figures = {"loss": 0.52, "cross_entropy": 0.52, "focal": 0.18} | training
        return find_component_explosion(make_evidence(student, training=figures, trend=trend, **LOSSES))

    @pytest.mark.parametrize(
        ("figures", "expected"),
        [
            ({}, "-"),
            ({"loss": 1.01, "cross_entropy": 1.01}, "warn"),
            ({"loss": 0.99, "cross_entropy": 0.99}, "-"),
            ({"loss": 1.81, "cross_entropy": 1.8}, "collapsed"),
            ({"loss": 1.79, "cross_entropy": 1.8}, "warn"),
            ({"loss": 1.81, "cross_entropy": 0.6}, "-"),  # a consistency term that ramps up
            ({"loss": math.inf, "cross_entropy": 1.8}, "-"),  # has a name of its own
            ({"focal": 0.251}, "warn"),
            ({"focal": 0.249}, "-"),
        ],
    )
    def test_large_values(self, figures: dict[str, float], expected: str) -> None:
        assert level(self.explode(**figures)) == expected

    def test_a_huge_loss_is_shown_in_powers_of_ten(self) -> None:
        found = self.explode(loss=170626069299.2, cross_entropy=1.8)
        assert found is not None
        assert found.message == "loss 0.600 to 1.71e+11"

    def test_not_while_validation_is_at_its_best(self) -> None:
        assert self.explode(replace(HEALTHY, f1_best=0.685), loss=1.5, cross_entropy=1.5) is None
        assert self.explode(replace(HEALTHY, f1_best=0.675), loss=1.5, cross_entropy=1.5) is not None

    @pytest.mark.parametrize(("f1", "expected"), [(0.40, "-"), (0.39, "collapsed")])
    def test_nor_where_the_cut_has_gone(self, f1: float, expected: str) -> None:
        """F1 was 0.5 at the threshold: a ranking that is kept does not make up for a loss of 60 in place of 0.6."""
        assert level(self.explode(replace(HEALTHY, f1=f1), loss=60.0, cross_entropy=60.0)) == expected

    def test_a_loss_that_starts_large_is_none(self) -> None:
        """Cross-entropy of four classes starts at 1.39."""
        trend = make_trend(loss=[NAN, 1.39, 1.4], component__cross_entropy=[NAN, 1.39, 1.4])
        for loss, expected in ((1.45, "-"), (1.6, "warn")):
            figures = {"loss": loss, "cross_entropy": loss}
            assert level(
                find_component_explosion(make_evidence(UNLEARNED, training=figures, trend=trend, **LOSSES))
            ) == (expected)

    def test_a_focal_loss_that_starts_large_is_none(self) -> None:
        trend = make_trend(loss=[NAN, 0.5, 0.6], component__focal=[NAN, 0.26, 0.27])
        for focal, expected in ((0.28, "-"), (0.29, "warn")):
            figures = {"loss": 0.6, "focal": focal}
            evidence = make_evidence(UNLEARNED, training=figures, trend=trend, **LOSSES)
            assert level(find_component_explosion(evidence)) == expected

    @pytest.mark.parametrize(
        ("focal", "losses", "expected"),
        [
            ([0.1806, 0.2175, 0.24, 0.2471], [0.6286, 0.64, 0.65, 0.6633], "warn"),
            ([0.1806, 0.216, 0.24, 0.2471], [0.6286, 0.64, 0.65, 0.6633], "-"),
            ([0.1806, 0.235, 0.24], [0.6286, 0.64, 0.6633], "-"),
            ([0.1806, 0.235, 0.24, 0.2471], [0.6286, 0.64, 0.65, 0.645], "-"),
            ([0.01, 0.03, 0.03, 0.03], [0.6286, 0.64, 0.65, 0.6633], "-"),
        ],
    )
    def test_rises_for_three_epochs_with_the_loss(self, focal: list[float], losses: list[float], expected: str) -> None:
        """The ends are those of the report (epochs 5 and 11); the epochs between are made up."""
        trend = make_trend(loss=[NAN, *losses], component__focal=[NAN, *focal])
        figures = {"loss": losses[-1], "focal": focal[-1]}
        evidence = make_evidence(UNLEARNED, training=figures, trend=trend, **LOSSES)
        assert level(find_component_explosion(evidence)) == expected

    def test_the_best_run_of_the_report_is_left_alone(self) -> None:
        """Run v9: focal, with weight 0, triples while the loss falls on the whole. F1 is not stated."""
        losses = [0.4528, 0.4470, 0.4107, 0.4139, 0.4115, 0.4182, 0.4024]
        focal = [0.192, 0.273, 0.317, 0.382, 0.469, 0.563, 0.491]
        for end in range(1, 8):
            trend = make_trend(loss=[NAN, *losses[:end]], component__focal=[NAN, *focal[:end]])
            figures = {"loss": losses[end - 1], "focal": focal[end - 1]}
            evidence = make_evidence(UNLEARNED, training=figures, trend=trend, **LOSSES)
            assert find_component_explosion(evidence) is None

    def test_a_component_added_by_a_phase_is_none(self) -> None:
        trend = make_trend(
            loss=[NAN, 0.45, 0.40, 0.62, 0.61, 0.60], component__cross_entropy=[NAN, 0.45, 0.40, 0.40, 0.39, 0.38],
            component__variance=[NAN, NAN, NAN, 0.97, 0.96, 0.95],
        )  # fmt: skip
        figures = {"loss": 0.60, "cross_entropy": 0.38, "variance": 0.95}
        evidence = make_evidence(
            UNLEARNED, training=figures, trend=trend, components=("cross_entropy", "variance")
        )  # fmt: skip
        assert find_component_explosion(evidence) is None
