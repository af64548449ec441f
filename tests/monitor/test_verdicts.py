from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    make_evidence,
    make_trend,
)

from ssl_seg.config.layers import Layer, check_partial, merge_layers
from ssl_seg.monitor.actions import ACTIONS, NO_CONTEXT, Context, Cost, choose_action, read_context
from ssl_seg.monitor.catalog import CODES, LIMITS, make_finding
from ssl_seg.monitor.evidence import summarize
from ssl_seg.monitor.findings import LEVELS, Level, RuleFinding, Verdict
from ssl_seg.monitor.network_rules import NETWORK_RULES
from ssl_seg.monitor.signals import ClassSignals, Signals
from ssl_seg.monitor.training_rules import TRAINING_RULES
from ssl_seg.monitor.verdicts import judge

CASES = (HEALTHY, CONSTANT, DEAD, ALL_NEGATIVE, ALL_POSITIVE, INVERTED, SHIFTED, UNIFORM, UNLEARNED, EMPTY)


@pytest.mark.parametrize(
    ("student", "level", "codes"),
    [
        (HEALTHY, "ok", ()),
        (CONSTANT, "collapsed", ("constant_output", "all_positive", "not_above_trivial")),
        (DEAD, "collapsed", ("constant_output", "not_above_trivial")),
        (ALL_NEGATIVE, "collapsed", ("all_negative",)),
        (INVERTED, "collapsed", ("inverted_output", "not_above_trivial")),
        (UNIFORM, "collapsed", ("uniform_ratio",)),
        (SHIFTED, "warn", ("shifted_threshold",)),
        (UNLEARNED, "warn", ("not_above_trivial",)),
        (replace(HEALTHY, nonfinite=3), "collapsed", ("non_finite",)),
    ],
)
def test_both_networks_alike(student: Signals, level: str, codes: tuple[str, ...]) -> None:
    verdict = judge(make_evidence(student, student))
    assert (verdict.level, verdict.codes) == (level, codes)
    assert {f.net for f in verdict.findings} == ({"student", "teacher"} if codes else set())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_several_classes_it_says_that_its_f1_is_of_any_foreground(count: int) -> None:
    student = replace(SHIFTED, classes=tuple(ClassSignals(value, 0.1, 0.1, 0.3) for value in range(1, 1 + count)))
    (finding,) = judge(make_evidence(student, HEALTHY)).findings
    start = "F1 of any foreground is 0.00 but 0.68 at " if count > 1 else "F1 is 0.00 at 0.5 but 0.68 at "
    assert finding.message.startswith(start)


@pytest.mark.parametrize("student", CASES)
def test_no_finding_of_several_classes_calls_the_f1_of_any_foreground_f1(student: Signals) -> None:
    classes = tuple(ClassSignals(value, 0.1, 0.1, 0.3) for value in (1, 2))
    messages = [f.message for f in judge(make_evidence(replace(student, classes=classes), HEALTHY)).findings]
    assert not any("F1 " in message.replace("F1 of any foreground", "") for message in messages)


def test_on_an_empty_target_nothing_is_said_but_that_nothing_can_be_judged() -> None:
    verdict = judge(make_evidence(EMPTY, EMPTY))
    assert [(f.code, f.net, f.level) for f in verdict.findings] == [("blind_probe", "training", "warn")]


@pytest.mark.parametrize("teacher", CASES)
def test_the_teacher_alone_is_judged_against_the_student(teacher: Signals) -> None:
    """What the teacher does worse has one name; a teacher that only lags behind has none."""
    lagging = make_trend(f1=[0.1, 0.1, 0.7], f1_best=[0.4, 0.46, 0.72])
    diverged = make_trend(f1=[0.4, 0.7, 0.7], f1_best=[0.4, 0.71, 0.72])
    assert judge(make_evidence(HEALTHY, teacher, trend=lagging)).codes == ()
    is_worse = teacher not in {HEALTHY, EMPTY}
    assert judge(make_evidence(HEALTHY, teacher, trend=diverged)).codes == (("teacher_diverged",) if is_worse else ())
    assert judge(make_evidence(HEALTHY, replace(teacher, nonfinite=1), trend=diverged)).codes == ("non_finite",)


def test_a_teacher_that_collapses_with_the_student_is_named_too() -> None:
    verdict = judge(make_evidence(ALL_NEGATIVE, ALL_POSITIVE))
    assert [(f.code, f.net) for f in verdict.findings] == [("all_negative", "student"), ("all_positive", "teacher")]


@pytest.mark.parametrize("twin", CASES)
def test_a_further_network_is_named_where_it_has_collapsed(twin: Signals) -> None:
    alone = [f.code for f in judge(make_evidence(twin, twin)).findings if f.net == "student" and f.level == "collapsed"]
    evidence = replace(make_evidence(HEALTHY, HEALTHY), others={"twin": twin})
    verdict = judge(evidence)
    assert [(f.code, f.net) for f in verdict.findings] == [(code, "twin") for code in alone]
    assert verdict.level == ("collapsed" if alone else "ok")
    at_the_end = judge(replace(evidence, is_final=True))  # nobody uses it
    assert [f.net for f in at_the_end.findings] == ["twin"] * len(alone)
    assert at_the_end.level == ("warn" if alone else "ok")


def test_a_mode_gap_replaces_the_collapse_that_it_explains() -> None:
    verdict = judge(make_evidence(CONSTANT, CONSTANT, train_mode=HEALTHY))
    assert [(f.code, f.net) for f in verdict.findings if f.level == "collapsed"] == [
        ("mode_gap", "student"), ("constant_output", "teacher"), ("all_positive", "teacher"),
    ]  # fmt: skip
    shifted = judge(make_evidence(SHIFTED, SHIFTED, train_mode=HEALTHY))
    assert [(f.code, f.net) for f in shifted.findings] == [("mode_gap", "student"), ("shifted_threshold", "teacher")]
    broken = judge(make_evidence(replace(CONSTANT, nonfinite=1), CONSTANT, train_mode=HEALTHY))
    assert [(f.code, f.net) for f in broken.findings] == [
        ("non_finite", "student"), ("constant_output", "teacher"), ("all_positive", "teacher"),
        ("not_above_trivial", "teacher"),
    ]  # fmt: skip


@pytest.mark.parametrize("training", [{"loss": math.nan}, {"loss": 0.5}])
def test_nan_explains_all_else_of_its_network_and_of_the_training(training: dict[str, float]) -> None:
    """A pseudo-label made of NaN is background, whatever the method; and the drift that is there is named without."""
    known = training | {"pseudo_prevalence": 0.001}
    trend = make_trend(pseudo_prevalence=[0.3, 0.3])
    sound = judge(make_evidence(training={"pseudo_prevalence": 0.001}, trend=trend))
    assert sound.codes == ("pseudo_label_drift",)
    nan = replace(HEALTHY, nonfinite=10)
    assert judge(make_evidence(nan, nan, training=known, trend=trend)).codes == ("non_finite",)


@pytest.mark.parametrize(
    ("evidence", "untrained", "early", "trained"),
    [
        ({"student": ALL_NEGATIVE}, "ok", "warn", "collapsed"),
        ({"student": SHIFTED}, "ok", "ok", "warn"),
        ({"student": UNLEARNED}, "ok", "ok", "warn"),
        ({"teacher": ALL_POSITIVE}, "ok", "ok", "warn"),
        ({"student": CONSTANT, "train_mode": HEALTHY}, "ok", "warn", "collapsed"),
        ({"student": replace(HEALTHY, nonfinite=1)}, "collapsed", "collapsed", "collapsed"),
        ({"training": {"loss": float("nan")}}, "collapsed", "collapsed", "collapsed"),
        ({"student": UNLEARNED, "training": {"loss": 0.0}}, "warn", "warn", "collapsed"),
        ({"training": {"loss": 0.0}}, "ok", "ok", "warn"),
        ({"student": EMPTY, "teacher": EMPTY}, "warn", "warn", "warn"),
    ],
)
def test_phases(evidence: dict[str, Any], untrained: str, early: str, trained: str) -> None:
    """During the warm-up only NaN, a loss of 0 and a blind probe count; in the first epoch a collapse is a warning."""
    levels = [judge(make_evidence(**evidence, phase=phase)).level for phase in ("untrained", "early", "trained")]
    assert levels == [untrained, early, trained]


@pytest.mark.parametrize(
    ("signals", "f1_best", "level"),
    [
        (CONSTANT, [0.46, 0.46, 0.46], "warn"),
        (CONSTANT, [0.46, 0.51, 0.46], "warn"),
        (CONSTANT, [0.46, 0.52, 0.46], "collapsed"),  # had learned
        (CONSTANT, [0.46] * 6, "warn"),
        (CONSTANT, [0.46] * 7, "collapsed"),  # had time
        (CONSTANT, [], "collapsed"),
        (DEAD, [0.46, 0.46], "collapsed"),
    ],
)
@pytest.mark.parametrize("spreads", [[0.07] * 7, [0.5] + [0.07] * 6])
def test_a_network_that_has_learned_nothing_yet_is_given_time(
    signals: Signals, f1_best: list[float], level: str, spreads: list[float]
) -> None:
    """The spread of the start is chance, and says nothing. Seven rows are six epochs and the start."""
    student = replace(signals, prevalence_pred=0.5)
    trend = make_trend(f1_best=f1_best, prob_std=spreads[: len(f1_best)]) if f1_best else ()
    verdict = judge(make_evidence(student, student, trend=trend))
    assert {f.level for f in verdict.findings if f.code == "constant_output"} == {level}


@pytest.mark.parametrize(("twin", "code"), [(CONSTANT, "constant_output"), (ALL_NEGATIVE, "all_negative")])
def test_a_collapse_of_the_second_network_is_named_while_the_first_is_on_its_way(twin: Signals, code: str) -> None:
    student = replace(UNLEARNED, auroc=0.55)
    trend = make_trend(auroc=[0.5, 0.5, 0.55], f1_best=[0.46, 0.46, 0.46])
    verdict = judge(make_evidence(student, student, trend=trend, others={"twin": twin}))
    assert ("twin", code, "collapsed") in {(f.net, f.code, f.level) for f in verdict.findings}


def test_a_run_that_ends_before_it_has_learned_has_not_collapsed() -> None:
    """Of the same networks after six epochs it is said."""
    for epochs, level in ((1, "warn"), (6, "collapsed")):
        trend = make_trend(f1_best=[0.46] * (epochs + 1), prob_std=[0.5, *[0.07] * epochs])
        verdict = judge(make_evidence(CONSTANT, CONSTANT, trend=trend, is_final=True), "student")
        assert {f.level for f in verdict.findings if (f.code, f.net) == ("constant_output", "student")} == {level}


@pytest.mark.parametrize(("half", "level"), [(0.5, "warn"), (0.52, "collapsed"), (0.3, "warn")])
def test_a_network_whose_ranking_gets_better_has_not_collapsed(half: float, level: str) -> None:
    """It is named all the same, and in the end as what it is."""
    student = replace(ALL_NEGATIVE, auroc=0.55)
    evidence = make_evidence(student, student, trend=make_trend(auroc=[0.5, half, 0.55], f1_best=[0.6, 0.6, 0.6]))
    assert {f.level for f in judge(evidence).findings if f.code == "all_negative"} == {level}
    ended = judge(replace(evidence, is_final=True))
    assert {f.level for f in ended.findings if f.code == "all_negative"} == {"collapsed"}


@pytest.mark.parametrize(
    ("aurocs", "codes"),
    [
        ([0.4, 0.45, 0.55], ()),
        ([0.4, 0.52, 0.55], ("not_above_trivial",)),
        ([0.3, 0.3, 0.53], ("not_above_trivial",)),  # up to chance only
        ([0.4, 0.4, 0.4, 0.4, 0.45, 0.55], ()),
        ([0.4, 0.4, 0.4, 0.4, 0.45, 0.5, 0.55], ("not_above_trivial",)),
    ],
)
def test_a_ranking_that_gets_better_is_given_time(aurocs: list[float], codes: tuple[str, ...]) -> None:
    """Compared with the row of half of the steps: the second of three, the third of six; seven are six epochs."""
    student = replace(UNLEARNED, auroc=aurocs[-1])
    found = judge(make_evidence(student, student, trend=make_trend(auroc=aurocs))).findings
    assert tuple(dict.fromkeys(f.code for f in found if f.net == "student")) == codes


@pytest.mark.parametrize(
    ("f1", "aurocs", "codes"),
    [
        (-0.1, [0.4, 0.8, 0.88], ()),
        (0.1, [0.4, 0.8, 0.88], ("shifted_threshold",)),
        (-0.1, [0.4, 0.85, 0.88], ("shifted_threshold",)),
    ],
)
def test_a_shift_that_shrinks_is_given_time(f1: float, aurocs: list[float], codes: tuple[str, ...]) -> None:
    """A student that starts far on one side gets to the middle; one that moves away is told."""
    trend = make_trend(auroc=aurocs, f1=[SHIFTED.f1 + f1] * 3)
    assert judge(make_evidence(SHIFTED, SHIFTED, trend=trend)).codes == codes


def test_a_warning_that_the_run_acts_on_counts_as_a_collapse() -> None:
    """A divergence on validation, in its third epoch."""
    trend = make_trend(val_loss=[0.9, 0.6, 0.61, 0.62, 0.63], val_component__dice=[0.9, 0.4, 0.45, 0.5, 0.55])
    for acts, phase, level in (((), "trained", "warn"), (("plateau",), "trained", "warn"),
                               (("component_explosion",), "trained", "collapsed"),
                               (("component_explosion",), "early", "warn")):  # fmt: skip
        context = Context(act_on=acts)
        evidence = make_evidence(trend=trend, components=("dice",), context=context, phase=phase)
        verdict = judge(evidence)
        assert (verdict.codes, verdict.level) == (("component_explosion",), level)


def test_an_exploding_loss_is_named_within_the_first_epoch() -> None:
    trend = ({"step": 1, "ends_epoch": 0.0, "f1": 0.4, "trivial_f1": 0.46, "loss": 0.6, "component/focal": 0.6},)
    evidence = make_evidence(
        UNLEARNED, phase="early", training={"loss": 489.0, "focal": 489.0}, trend=trend, components=("focal",)
    )
    assert judge(evidence).codes == ("component_explosion",)


def test_order_is_that_of_the_codes_within_a_level() -> None:
    evidence = make_evidence(CONSTANT, CONSTANT, train=HEALTHY, training={"loss": 0.0, "accepted_share": 0.0})
    verdict = judge(evidence)
    keys = [(-LEVELS.index(f.level), list(CODES).index(f.code)) for f in verdict.findings]
    assert keys == sorted(keys)
    assert verdict.codes == (
        "zero_loss", "constant_output", "all_positive", "not_above_trivial", "pseudo_label_share",
    )  # fmt: skip


def test_record_has_value_limit_and_advice_as_plain_types() -> None:
    record = judge(make_evidence(CONSTANT, CONSTANT, train=HEALTHY, training={"accepted_share": 0.0})).to_record()
    assert json.loads(json.dumps(record, allow_nan=False)) == json.loads(json.dumps(record))
    for finding in record["findings"]:
        assert finding["message"]
        assert finding["source"]
    assert record["action"]


RULES = (*NETWORK_RULES, *TRAINING_RULES)


class TestCatalog:
    def test_each_code_has_a_rule_of_its_name(self) -> None:
        names = {rule.__name__.removeprefix("find_").removesuffix("_training") for rule in RULES}
        assert names == set(CODES)

    def test_each_rule_is_documented_and_used_once(self) -> None:
        assert len(RULES) == len(set(RULES))
        assert all((rule.__doc__ or "").split("\n")[0].endswith(".") for rule in RULES)

    def test_a_finding_is_filled_from_the_tables(self) -> None:
        finding = make_finding("plateau", "warn", "training", 1.0, "plateau_gain", "seen", scaled=7.0)
        assert (finding.limit, finding.source) == (7.0, LIMITS["plateau_gain"].source)

    def test_advice_names_settings_that_exist(self) -> None:
        from ssl_seg.config import Config

        known = {"method.options.confidence", "method.options.consistency_weight", "method.options.rampup_ratio"}
        for name, field in Config.model_fields.items():
            section = field.annotation
            known |= {f"{name}.{key}" for key in getattr(section, "model_fields", {})}
        words = {w.strip(".,;:()").split("=")[0] for own in ACTIONS.values() for a in own for w in a.text.split()}
        words |= {w.strip(".,;:()") for meaning in CODES.values() for w in meaning.split()}
        settings = {w for w in words if "." in w and not w.endswith(".pt") and not w[0].isdigit()}
        assert len(settings) > 5
        assert settings - known == set()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(CASES), min_size=2, max_size=2),
    st.lists(st.floats(0, 1), min_size=2, max_size=12),
    st.floats(-5, 5),
    st.sampled_from(("untrained", "early", "trained")),
)
def test_any_evidence_gets_a_verdict(nets: list[Signals], scores: list[float], loss: float, phase: Any) -> None:
    trend = make_trend(f1=scores, f1_best=scores, train_f1=scores, loss=[loss + s for s in scores])
    evidence = make_evidence(
        *nets, phase=phase, train=nets[1], train_mode=nets[1], training={"loss": loss}, trend=trend
    )
    verdict = judge(evidence)
    assert (verdict.level == "ok") == (not verdict.findings)
    assert all(f.code in CODES and f.level != "ok" for f in verdict.findings)
    assert phase == "trained" or not any(f.level == "collapsed" for f in verdict.findings)


def test_worst_level_counts() -> None:
    assert Verdict().level == "ok"
    findings = judge(make_evidence(CONSTANT, CONSTANT)).findings
    assert Verdict(findings[::-1]).codes == ("all_positive", "constant_output", "not_above_trivial")
    assert Verdict(tuple(f.soften() for f in findings)).level == "warn"


class TestBlindTeacher:
    """A teacher that puts out the same for every image, beside a student that has not collapsed itself."""

    MODEST = replace(HEALTHY, auroc=0.66, f1=0.45, f1_best=0.50)
    """A student that ranks a little, and is hardly better than trivial: no gap that the rule on both would see."""

    def judge(self, student: Signals, aurocs: list[float]) -> dict[str, str]:
        trend = (
            make_trend(auroc=aurocs, f1=[student.f1] * len(aurocs), f1_best=[student.f1_best or 0] * len(aurocs))
            if aurocs
            else ()
        )
        teacher = replace(UNIFORM, f1=0.44)
        found = judge(make_evidence(student, teacher, trend=trend)).findings
        return {f.code: f.level for f in found if f.net == "teacher"}

    def test_it_has_diverged_from_a_student_that_could_rank_before(self) -> None:
        assert self.judge(self.MODEST, [0.5, 0.65, 0.66]) == {"teacher_diverged": "warn"}

    def test_a_single_look_takes_the_student_of_now(self) -> None:
        assert self.judge(self.MODEST, []) == {"teacher_diverged": "warn"}

    def test_a_teacher_behind_a_student_that_has_just_learned_to_rank_is_given_time(self) -> None:
        assert self.judge(self.MODEST, [0.5, 0.55, 0.66]) == {}

    def test_it_is_named_itself_where_the_student_ranks_nothing(self) -> None:
        assert self.judge(UNLEARNED, [0.5, 0.5, 0.5])["uniform_ratio"] == "collapsed"

    def test_but_not_while_the_student_still_gets_better(self) -> None:
        assert self.judge(replace(UNLEARNED, auroc=0.55), [0.4, 0.42, 0.55]) == {}


def test_a_loss_of_nan_leaves_no_trace_in_the_trend() -> None:
    evidence = make_evidence(training={"loss": float("nan"), "focal": 0.2}, components=("focal",))
    row = summarize(evidence, 100, ends_epoch=True)
    assert "loss" not in row
    assert row["component/focal"] == 0.2
    assert judge(evidence).codes == ("non_finite",)


FEW = {"auroc_low": 0.2, "auroc_high": 0.9}
"""What four cases leave open of an AUROC of 0.5."""
DOUBTED = (
    (CONSTANT, "constant_output"),
    (ALL_NEGATIVE, "all_negative"),
    (ALL_POSITIVE, "all_positive"),
    (INVERTED, "inverted_output"),
    (UNIFORM, "uniform_ratio"),
)


class TestFewCases:
    @pytest.mark.parametrize(("signals", "code"), DOUBTED)
    def test_no_collapse_is_claimed_of_a_ranking_that_a_few_cases_leave_open(self, signals: Signals, code: str) -> None:
        few = replace(signals, **FEW)
        levels = {f.code: f.level for f in judge(make_evidence(few, few)).findings if f.net == "student"}
        assert levels[code] == "warn"
        assert "may be 0.20 to 0.90" in judge(make_evidence(few, few)).findings[0].message
        assert judge(make_evidence(signals, signals)).level == "collapsed"

    def test_one_number_as_output_is_a_collapse_on_any_case(self) -> None:
        assert judge(make_evidence(replace(DEAD, **FEW), replace(DEAD, **FEW))).level == "collapsed"

    @pytest.mark.parametrize(("train", "level"), [(CONSTANT, "collapsed"), (HEALTHY, "warn")])
    def test_the_training_cases_count_too(self, train: Signals, level: str) -> None:
        few = replace(CONSTANT, **FEW)
        assert judge(make_evidence(few, few, train=train, training={"batch_f1": 0.4})).level == level

    @pytest.mark.parametrize("high", [0.59, 0.61])
    def test_the_end_of_the_interval_decides(self, high: float) -> None:
        own = replace(ALL_NEGATIVE, auroc_high=high)
        assert judge(make_evidence(own, own)).level == ("collapsed" if high < 0.6 else "warn")

    def test_unequal_shares_of_foreground_are_no_unequal_inputs(self) -> None:
        """The reported false alarm: batches of a third foreground at F1 0.6, and 3.6 % in the images, at AUROC 0.87."""
        rare = replace(
            HEALTHY, prevalence_true=0.036, prevalence_pred=0.05, f1=0.24, f1_best=0.27, trivial_f1=0.07, auroc=0.87
        )
        train = replace(rare, f1=0.1, f1_best=0.11, auroc=0.8)
        batches = {"batch_f1": 0.6, "prevalence_true": 0.1}
        assert judge(make_evidence(rare, rare, train=train, training=batches)).codes == ()
        blind = replace(rare, f1_best=0.07, auroc=0.5)
        found = judge(make_evidence(blind, blind, train=blind, training=batches))
        assert (found.level, found.codes[0]) == ("collapsed", "loss_metric_divergence")
        unknown = replace(blind, auroc_high=0.9)
        assert "loss_metric_divergence" not in judge(
            make_evidence(unknown, unknown, train=unknown, training=batches)
        ).codes  # fmt: skip


class TestEnd:
    """Networks that will be used as they are."""

    BIASED = replace(HEALTHY, prevalence_true=0.05, prevalence_pred=0.51, f1=0.17, trivial_f1=0.095, f1_best=0.4)

    def test_half_foreground_where_a_twentieth_is_true_is_said_of_either_network(self) -> None:
        for nets in ((self.BIASED, HEALTHY), (HEALTHY, self.BIASED)):
            used = "student" if nets[0] is self.BIASED else "teacher"
            verdict = judge(make_evidence(*nets, is_final=True), used)
            assert verdict.findings[0].code in {"foreground_bias", "teacher_diverged"}
            assert ("foreground_bias", used) in {(f.code, f.net) for f in verdict.findings}

    def test_no_time_is_given(self) -> None:
        trend = make_trend(f1=[0.01, 0.05, 0.17], auroc=[0.5, 0.6, 0.92])
        evidence = make_evidence(self.BIASED, self.BIASED, trend=trend)
        assert judge(evidence).codes == ()
        assert judge(replace(evidence, is_final=True)).codes == ("foreground_bias",)
        little = replace(HEALTHY, auroc=0.55, f1_best=0.48, f1=0.45)
        assert judge(make_evidence(little, little)).codes == ()
        assert judge(make_evidence(little, little, is_final=True)).codes == ("not_above_trivial",)
        early = make_evidence(UNLEARNED, UNLEARNED, phase="untrained")
        assert judge(early).codes == ()
        assert judge(replace(early, is_final=True)).codes == ("not_above_trivial",)

    @pytest.mark.parametrize(("spreads", "level"), [([0.07, 0.07], "warn"), ([0.2, 0.07], "collapsed")])
    def test_a_network_that_has_hardly_left_its_start_has_not_collapsed(self, spreads: list[float], level: str) -> None:
        slow = replace(ALL_POSITIVE, prob_std=0.07, auroc=0.5)
        trend = make_trend(prob_std=spreads)
        assert judge(make_evidence(slow, slow, trend=trend, is_final=True)).level == level

    def test_the_network_that_is_not_used_only_warns_and_comes_last(self) -> None:
        evidence = make_evidence(DEAD, replace(SHIFTED, prevalence_pred=0.05), is_final=True)
        student, teacher = (judge(evidence, used) for used in ("student", "teacher"))
        assert (student.level, student.findings[0].net) == ("collapsed", "student")
        assert (teacher.level, teacher.codes[0], teacher.findings[0].net) == ("warn", "shifted_threshold", "teacher")


class TestActions:
    @pytest.mark.parametrize(
        ("code", "context", "words"),
        [
            ("constant_output", NO_CONTEXT, "monitor.on_collapse=recover"),
            ("constant_output", Context(lr=3e-4, recovers=True), "optim.lr=3e-05"),
            ("constant_output", Context(lr=1e30), "optim.lr=0.0003"),
            ("non_finite", Context(lr=10, usual_lr=0.1), "optim.lr=0.1"),
            ("all_positive", Context(costs=(Cost("loss.fn_cost", "1000", 1000.0, "1"),)), "loss.fn_cost=1"),
            ("all_negative", Context(costs=(Cost("loss.fn_cost", "1000", 1000.0, "1"),)), "recover"),
            ("all_negative", Context(costs=(Cost("loss.fp_cost", "2", 0.5, "1"),)), "recover"),
            ("shifted_threshold", NO_CONTEXT, "ssl-seg calibrate"),
            ("shifted_threshold", Context(num_classes=3, steps=500), "--steps 1000"),
            ("foreground_bias", Context(num_classes=3, steps=500), "--steps 1000"),
            ("missing_class", Context(num_classes=3, steps=500), "train longer: --steps 1000"),
            ("foreground_bias", Context(num_classes=3), "train longer"),
            ("missing_class", Context(steps=500, may_weigh_classes=True), "loss.class_weights=auto and --steps 3000"),
            ("not_above_trivial", Context(lr=1e-5, steps=100), "optim.lr=0.0003"),
            ("not_above_trivial", Context(lr=3e-4, steps=100), "--steps 200"),
            ("not_above_trivial", Context(lr=3e-4, steps=5000), "data audit"),
            ("teacher_diverged", NO_CONTEXT, "--which student"),
        ],
    )
    def test_the_action_depends_on_the_run(self, code: str, context: Context, words: str) -> None:
        action = choose_action(make_finding(code, "warn", "student", 1.0, "non_finite", ""), context)
        assert words in action
        assert "{" not in action

    @pytest.mark.parametrize(
        ("loss", "may"),
        [
            ({}, True),
            ({"class_weights": [1, 1, 0]}, True),
            ({"options": {"cross_entropy": {"class_weights": [1, 2, 3]}}}, False),
            ({"class_weights": "auto"}, False),
            ({"weights": {"dice": 1.0}}, False),
        ],
    )
    def test_weights_of_the_classes_are_advised_where_they_can_be_set(self, loss: Any, may: bool) -> None:
        config, _ = check_partial(merge_layers([Layer("own", {"loss": loss})]))
        assert read_context(config).may_weigh_classes is may

    def test_each_code_has_an_action_for_any_run(self) -> None:
        assert ACTIONS.keys() == CODES.keys()
        for actions in ACTIONS.values():
            assert actions[-1].when is None
            assert all(a.when is not None for a in actions[:-1])

    def test_networks_are_kept_unless_a_collapse_has_or_may_have_begun(self) -> None:
        def is_sound(code: str, level: Level) -> bool:
            return Verdict((RuleFinding(code, level, "student", 0.0, 1.0, "", ""),)).is_sound

        assert Verdict().is_sound
        assert not is_sound("all_negative", "collapsed")
        kept = {code for code in CODES if is_sound(code, "warn")}
        assert CODES.keys() - kept == {
            "component_explosion", "loss_metric_divergence", "not_above_trivial", "plateau",
        }  # fmt: skip

    def test_a_verdict_has_one_action(self) -> None:
        verdict = judge(make_evidence(CONSTANT, CONSTANT, context=Context(lr=3e-4)))
        assert len(verdict.codes) > 2
        assert verdict.action == choose_action(verdict.findings[0], Context(lr=3e-4))
        assert verdict.others == ("all_positive (student, teacher)", "not_above_trivial (student, teacher)")
        assert judge(make_evidence()).action == ""
