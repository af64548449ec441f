"""Each cause by the figures that speak for it, and not without them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssl_seg.diagnose.catalog import LIMITS, conclude
from ssl_seg.diagnose.causes import RULES, DiagnosisFacts, Subject, explain
from ssl_seg.diagnose.result import Cause
from ssl_seg.monitor.actions import NO_CONTEXT, Context, read_costs
from ssl_seg.monitor.findings import Level, RuleFinding, Verdict

HEALTHY: dict[str, Any] = {
    "looked_at": {"step": 100},
    "shapes": [{"closed_form": None}],
    "nets": {
        "student": {
            "f1_best": 0.8, "auroc": 0.95, "trivial_f1": 0.5, "prevalence_pred": 0.4, "prevalence_true": 0.3,
        },
        "teacher": {"f1_best": 0.8, "auroc": 0.95, "trivial_f1": 0.5},
        "train_probe": {"f1_best": 0.85, "auroc": 0.95, "trivial_f1": 0.5},
        "untrained": {"f1_best": 0.5, "auroc": 0.5, "trivial_f1": 0.5},
    },
    "layers": {"zero_weights": [], "non_finite_weights": [], "silent": None},
    "scores": {"images": 20, "precision": 0.8, "recall": 0.8, "bias": "balanced"},
    "foreground": {"overestimate": 0.5, "true": {"mean": 0.3}},
    "sweep": {"best_f1": 0.8, "best_threshold": 0.5, "threshold": 0.5, "f1_at_threshold": 0.8},
    "trivial_losses": {"network": 0.3, "all_positive": 4.0, "all_negative": 3.0},
    "batches": {
        "n": 10, "mean": 0.3, "min": 0.2, "max": 0.4, "expected": 0.3, "most_expected": 0.4, "notes": [],
    },
    "inputs": {
        "rank_correlation": 1.0, "path_difference": 1e-6, "clipped_low": 0.01, "clipped_high": 0.01, "constant": [],
    },
    "run": {"directory": "runs/a b", "verdicts": [], "actions": []},
}  # fmt: skip
SUBJECT = Subject(Path("runs/a b/checkpoints/best.pt"), "data", None, "student")


def make_finding(code: str, level: Level = "collapsed") -> RuleFinding:
    return RuleFinding(code, level, "student", 1.0, 0.0, "test", f"what {code} saw")


def verdict_of(*findings: RuleFinding) -> Verdict:
    return conclude(findings, NO_CONTEXT)


def suspects_of(statistics: dict[str, Any], *findings: RuleFinding, subject: Subject = SUBJECT) -> dict[str, Cause]:
    facts = DiagnosisFacts(findings, statistics, subject)
    return {rule.__name__.removeprefix("_suspect_"): found for rule in RULES if (found := rule(facts)) is not None}


def changed(section: str, **values: Any) -> dict[str, Any]:
    return {**HEALTHY, section: {**HEALTHY[section], **values}}


def test_nothing_is_suspected_in_a_healthy_run() -> None:
    assert suspects_of(HEALTHY) == {}
    causes, action, command = explain(Verdict(), HEALTHY, SUBJECT)
    assert (causes, action) == ((), "")
    assert command == "ssl-seg predict 'runs/a b/checkpoints/best.pt' IMAGES OUTPUT"


@pytest.mark.parametrize(
    ("name", "statistics", "codes", "words"),
    [
        ("data", changed("batches", expected=0.0, mean=0.0), [], "0.0% foreground"),
        ("finite", HEALTHY, ["non_finite"], "what non_finite saw"),
        ("paths", changed("inputs", path_difference=0.7), [], "up to 0.7 standard deviations"),
        ("inverted", HEALTHY, ["inverted_output"], "what inverted_output saw"),
        ("teacher", HEALTHY, ["teacher_diverged"], "teacher: best F1 0.800, AUROC 0.950"),
        ("mode", {**HEALTHY, "nets": {**HEALTHY["nets"], "train_mode": {"f1_best": 0.9, "auroc": 0.99}}},
         ["mode_gap"], "student in train mode: best F1 0.900"),
        ("images", changed("inputs", constant=["a", "b"]), ["constant_output"], "2 images are constant"),
        ("images", changed("inputs", rank_correlation=0.5), ["constant_output"], "is 0.500, not 1"),
        ("layers", changed("layers", silent="act"), ["constant_output"], "from 'act' on"),
        ("coverage", HEALTHY, ["coverage_hole"], "what coverage_hole saw"),
        ("coverage", {**HEALTHY, "shapes": [{"closed_form": "(1/2)"}]}, ["uniform_ratio"], "what uniform_ratio saw"),
        ("batches", changed("batches", mean=0.02), [], "10 batches hold 20.00% to 40.00%"),
        ("batches", changed("batches", mean=0.9), [], "on average 90.00%"),
        ("batches", changed("batches", notes=["no"]), [], "no"),
        ("loss", changed("trivial_losses", all_positive=0.3), ["all_positive"], "network 0.300, all_positive 0.300"),
        ("history", changed("run", verdicts=[{"step": 20, "level": "collapsed", "codes": ["all_negative"]}]),
         ["all_negative"], "step 20: the run's own verdict was collapsed all_negative"),
        ("threshold", changed("sweep", best_threshold=0.2), ["shifted_threshold"], "0.800 at 0.2"),
        ("generalization", changed("nets", train_probe={"f1_best": 0.99, "auroc": 1.0, "trivial_f1": 0.5},
                                   student={"f1_best": 0.6, "auroc": 0.7, "trivial_f1": 0.5}), [], "+0.490 on labeled"),
        ("training", changed("nets", student={"f1_best": 0.5, "auroc": 0.51, "trivial_f1": 0.5}), [],
         "after 100 steps: AUROC 0.510"),
    ],
)  # fmt: skip
def test_a_cause_carries_its_evidence(name: str, statistics: dict[str, Any], codes: list[str], words: str) -> None:
    findings = [make_finding(code) for code in codes]
    found = suspects_of(statistics, *findings)
    assert name in found
    assert words in " | ".join(found[name].evidence)
    assert found[name].command.startswith("ssl-seg ")
    assert "runs/a b" not in found[name].command.replace("'runs/a b", "")  # quoted


@pytest.mark.parametrize(
    ("loss", "over", "key", "side"),
    [
        ({"fn_cost": 1000.0}, 30.0, "loss.fn_cost", "foreground"),
        ({"fn_cost": 1000.0}, None, "loss.fn_cost", "foreground"),
        ({"fn_cost": 1000.0}, -20.0, None, ""),
        ({"fp_cost": 1000.0}, -20.0, "loss.fp_cost", "background"),
        ({"fn_cost": 0.001}, -20.0, "loss.fn_cost", "background"),
        ({"fn_cost": 3.0}, 30.0, None, ""),
        ({"options": {"cross_entropy": {"pos_weight": 50}}}, 30.0, "loss.options.cross_entropy.pos_weight",
         "foreground"),
        ({"options": {"cross_entropy": {"class_weights": [1, 80]}}}, 30.0, "loss.options.cross_entropy.class_weights",
         "foreground"),
        ({"options": {"focal": {"fn_cost": 1000}}}, 30.0, None, ""),
    ],
)  # fmt: skip
def test_extreme_costs_are_named(loss: dict[str, Any], over: float | None, key: str | None, side: str) -> None:
    from ssl_seg.config import LossConfig

    true = {"mean": 0.25} if over is not None else None
    statistics = {**HEALTHY, "foreground": {"overestimate": over, "true": true}}
    subject = replace(SUBJECT, context=Context(costs=read_costs(LossConfig.model_validate(loss))))
    found = suspects_of(statistics, subject=subject)
    assert ("costs" in found) == (key is not None)
    if key is not None:
        cause, command = found["costs"], found["costs"].command
        assert f"weighs {side}" in cause.text
        assert cause.evidence[0].startswith(f"{key} is ")
        assert f"--set {key}={'null' if 'class' in key else '1'} " in command
    alone = explain(Verdict(), statistics, subject)
    assert alone[0] == (), "not in a healthy run"


def test_a_threshold_is_advised_as_a_command() -> None:
    finding = make_finding("shifted_threshold", "warn")
    student = {**HEALTHY["nets"]["student"], "threshold_best": 0.99996}
    sweep = {"best_threshold": 0.998, "best_f1": 0.8, "threshold": 0.5, "f1_at_threshold": 0.3}
    statistics = {**changed("nets", student=student), "sweep": sweep}
    path = "ssl-seg predict 'runs/a b/checkpoints/best.pt' IMAGES OUTPUT --which student --uncalibrated"
    enough = {**statistics, "scores": {**HEALTHY["scores"], "images": 8}}
    calibrate = "ssl-seg calibrate 'runs/a b/checkpoints/best.pt' --which student"
    assert suspects_of(enough, finding)["threshold"].command == calibrate
    statistics = {**statistics, "scores": {**HEALTHY["scores"], "images": 7}}
    assert suspects_of(statistics, finding)["threshold"].command == f"{path} --threshold 0.998"
    several = suspects_of(statistics, finding, subject=replace(SUBJECT, context=Context(num_classes=3)))
    assert "threshold" not in several, "predict has none for more than two classes"
    few = {**statistics, "scores": {**HEALTHY["scores"], "images": 2}}
    assert suspects_of(few, finding)["threshold"].command == f"{path} --threshold 0.99996", "that of the many patches"
    for least, text in ((3e-12, "3e-12"), (0.0021, "0.0021")):
        far = {**statistics, "sweep": {**sweep, "best_threshold": least}}
        assert suspects_of(far, finding)["threshold"].command == f"{path} --threshold {text}"
    assert "threshold" not in suspects_of({**statistics, "sweep": {**sweep, "best_threshold": 1.0}}, finding)
    biased = make_finding("foreground_bias", "warn")
    assert "threshold" not in suspects_of(few, biased)
    assert "threshold" in suspects_of(statistics, biased)
    assert "threshold" not in suspects_of(HEALTHY, biased), "another one brings nothing"


def test_findings_alone_give_no_cause_and_the_action_of_the_verdict() -> None:
    verdict = verdict_of(make_finding("plateau", "warn"))
    causes, action, command = explain(verdict, HEALTHY, SUBJECT)
    assert (causes, action) == ((), verdict.action)
    assert command.startswith("ssl-seg evaluate ")
    assert "on_collapse=recover" in explain(verdict_of(make_finding("plateau")), HEALTHY, SUBJECT)[2]


def test_measured_causes_are_three_at_most_and_the_first_has_the_action() -> None:
    statistics = {
        **changed("inputs", path_difference=1.0, rank_correlation=0.5),
        "trivial_losses": {"network": 9, "all_positive": 1, "all_negative": 2},
        "layers": {"zero_weights": ["a"], "non_finite_weights": [], "silent": None},
    }
    verdict = verdict_of(make_finding("constant_output"), make_finding("all_positive"))
    causes, action, command = explain(verdict, statistics, SUBJECT)
    for cause, words in zip(causes, ("normalized differently", "are empty or changed", "is dead"), strict=True):
        assert words in cause.text
    assert "one normalization" in action
    assert command.startswith("ssl-seg evaluate ")


@pytest.mark.parametrize(("pred", "cause"), [(0.5, "all-positive"), (0.1, "all-negative")])
def test_a_loss_is_said_to_ask_for_the_constant_that_the_network_is_near(pred: float, cause: str) -> None:
    own = {**HEALTHY["nets"]["student"], "prevalence_pred": pred}
    statistics = {**changed("nets", student=own), "trivial_losses": dict.fromkeys(("all_positive", "all_negative"), 1)}
    statistics["trivial_losses"]["network"] = 2
    found = suspects_of(statistics, make_finding("constant_output"))
    assert cause in found["loss"].text
    assert "loss" not in suspects_of(statistics, make_finding("foreground_bias", "warn"))


def test_labels_are_called_swapped_only_where_the_training_patches_do_not_contradict_it() -> None:
    probe = {"f1_best": 0.85, "trivial_f1": 0.5}
    train_well, train_badly = (changed("nets", train_probe={**probe, "auroc": auroc}) for auroc in (0.95, 0.1))
    levels: tuple[Level, Level] = ("warn", "collapsed")
    sure, unsure = (make_finding("inverted_output", level) for level in levels[::-1])
    for finding in (sure, unsure):
        found = suspects_of(train_well, finding)["inverted"]
        assert "scored images look the other way round" in found.text
        assert "AUROC 0.950" in found.evidence[1]
    assert "label values" in suspects_of(train_badly, sure)["inverted"].text
    assert "inverted" not in suspects_of(train_badly, unsure), "too few images to tell"


def test_predictions_have_no_checkpoint_to_name() -> None:
    subject = Subject(predictions=Path("m"))
    statistics = {"shapes": [{"closed_form": None}], "looked_at": {}}
    for code in ("uniform_ratio", "coverage_hole", "all_negative", "non_finite", "inverted_output"):
        command = explain(verdict_of(make_finding(code)), statistics, subject)[2]
        assert command.startswith("ssl-seg ")
        assert "None" not in command


def test_every_limit_that_is_asked_for_exists() -> None:
    assert {"input_difference", "uniform_ratio", "coverage_hole", "equal_statistics", "band_share"} <= set(LIMITS)


def test_a_run_that_has_tried_to_recover_is_told_something_else() -> None:
    facts = DiagnosisFacts((), {}, replace(SUBJECT, context=Context(lr=0.3, usual_lr=0.1)))
    assert "monitor.on_collapse=recover" in facts.recover()
    told = DiagnosisFacts((), {}, replace(SUBJECT, context=Context(lr=0.3, usual_lr=0.1, recovers=True))).recover()
    assert "monitor.on_collapse" not in told
    assert "--set optim.lr=0.03 --set optim.clip_norm=1.0" in told


def test_a_run_whose_loss_exploded_made_too_large_updates() -> None:
    verdicts = [{"step": 10, "level": "collapsed", "codes": ["component_explosion", "all_negative"]}]
    others = {"looked_at": {}, "shapes": []}
    statistics = {"run": {"directory": "runs/x", "verdicts": verdicts}, **others}
    finding = make_finding("all_negative")
    causes, _, command = explain(verdict_of(finding), statistics, SUBJECT)
    assert "has diverged" in causes[0].text
    assert "optim.clip_norm=1.0" in command
    calm = {"run": {"directory": "runs/x", "verdicts": [{"step": 10, "level": "warn", "codes": ["plateau"]}]}, **others}
    causes, _, _ = explain(verdict_of(finding), calm, SUBJECT)
    assert not any("has diverged" in cause.text for cause in causes)
