"""Gates: what they ask of the records of a run, and how a run, a ladder and a cross-validation end at one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY, Cli, train_tiny
from test_cli import assert_refused

from ssl_seg.config import GateConfig, TargetsConfig
from ssl_seg.errors import ConfigError, RefusedError, RunDirError
from ssl_seg.results.study import load_study
from ssl_seg.run.directory import RunDir
from ssl_seg.run.gates import check_metrics, describe_targets, find_due, judge_gate, judge_targets
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train
from ssl_seg.studies.rungs import LADDER


def records(*values: float | None, name: str = "m") -> list[dict[str, Any]]:
    """The start, then two looks in each epoch; the first one of an epoch would pass, or break, any gate."""
    rows: list[dict[str, Any]] = [{"step": 0, "epoch": 0, name: 1e9}]
    for epoch, value in enumerate(values, start=1):
        rows += [
            {"step": 10 * epoch - 5, "epoch": epoch, name: -1e9},
            {"step": 10 * epoch, "epoch": epoch, name: value},
        ]
    return rows


@pytest.mark.parametrize(
    ("gate", "values", "expected"),
    [
        # the seed's "val loss below 0.45 by epoch 20", in small: once is enough, the bar itself is not below it
        ({"below": 0.45, "by_epoch": 3}, (0.6, 0.44, 0.5), (True, 0.44, 2)),
        ({"below": 0.45, "by_epoch": 3}, (0.6, 0.45, 0.5), (False, 0.45, 2)),
        ({"below": 0.45, "by_epoch": 2}, (0.6, 0.5, 0.4), (False, 0.5, 2)),  # too late
        ({"above": 0.7}, (0.6, 0.71, 0.5), (True, 0.71, 2)),
        ({"above": 0.7}, (0.6, 0.7), (False, 0.7, 2)),
        ({"above": 0.7}, (None, None), (False, None, None)),
        ({"above": 0.7}, (None, 0.8), (True, 0.8, 2)),
        # the seed's run: best loss 0.4983 in its third epoch, then four that were worse
        ({"no_rise": (4, 7)}, (0.5132, 0.5081, 0.4983, 0.5066, 0.5133, 0.51, 0.51), (False, 0.5066, 4)),
        ({"no_rise": (4, 7)}, (0.5132, 0.5081, 0.4983, 0.5066, 0.5133, 0.4983, 0.6), (True, 0.4983, 6)),
        ({"no_fall": (3, 4)}, (0.2, 0.5, 0.1, 0.5), (True, 0.5, 4)),
        ({"no_fall": (3, 4)}, (0.2, 0.5, 0.1, 0.4, 0.9), (False, 0.4, 4)),  # what comes later does not count
        ({"no_fall": (3, 4)}, (0.2, 0.5, None, None), (False, None, None)),
    ],
)  # fmt: skip
def test_what_is_met(gate: dict[str, Any], values: Any, expected: tuple[bool, float | None, int | None]) -> None:
    found = judge_gate(GateConfig(metric="m", **gate), records(*values))
    assert found is not None
    assert (found.passed, found.value, found.epoch) == expected
    assert found.text.startswith("passed: m " if expected[0] else "BROKEN: m ")


def test_a_span_that_the_run_has_not_come_to_says_nothing() -> None:
    gate = GateConfig(metric="m", no_fall=(3, 6))
    assert judge_gate(gate, records(0.5, 0.2)) is None
    assert judge_gate(gate, records(None, None, 0.2)) is None
    assert judge_gate(gate, records(0.5, 0.2, 0.1)) is not None


def test_each_gate_is_judged_once() -> None:
    gates = [
        GateConfig(metric="by", above=1, by_epoch=3),
        GateConfig(metric="end", above=1),
        GateConfig(metric="span", no_fall=(2, 5)),
    ]

    def due(epoch: int, ended: bool) -> list[str]:
        return [gate.metric for gate in find_due(gates, epoch, ended=ended)]

    assert [due(epoch, ended=epoch == 6) for epoch in range(1, 7)] == [[], [], ["by"], [], ["span"], ["end"]]
    assert due(2, ended=True) == ["by", "end", "span"]
    assert due(4, ended=True) == ["end", "span"]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({}, "asks for nothing"),
        ({"below": 1, "above": 2}, "not below and above"),
        ({"no_fall": [2, 3], "by_epoch": 4}, "names its epochs itself"),
        ({"no_fall": [1, 3]}, "at least 2"),
        ({"no_rise": [4, 3]}, "not smaller"),
        ({"above": 1, "byepoch": 4}, "by_epoch"),
    ],
)
def test_gates_that_make_no_sense(cli: Cli, tmp_path: Path, gate: dict[str, Any], words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"gates": [{"metric": "val/student/f1", **gate}]}))
    assert_refused(cli("config", "check", file), f"{file}: gates.0", words)


def test_a_metric_that_is_not_recorded_is_found_before_anything_is_written(tmp_path: Path, particles_dir: Path) -> None:
    gates = {"gates": [{"metric": "val/f1", "above": 0}, {"metric": "val/student/prob_histogram", "above": 0}]}
    with pytest.raises(ConfigError, match=r"(?s)gates.0.metric = 'val/f1'.*'val/student/f1'.*gates.1") as caught:
        train_tiny(tmp_path / "run", particles_dir, gates)
    assert not (tmp_path / "run").exists()
    assert "nearest" not in str(caught.value)
    check_metrics([GateConfig(metric="val/f1", above=0)], {"val/f1"})


BROKEN = {"metric": "val/student/f1", "above": 2, "by_epoch": 1}
PASSED = {"metric": "train/loss", "below": 1e6, "by_epoch": 1}
LATER = {"metric": "train/dice", "above": 2}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> RunDir:
    """A run that a gate has ended after the first of two epochs."""
    out = tmp_path_factory.mktemp("gates") / "run"
    result = train_tiny(out, particles_dir, {"gates": [PASSED, BROKEN, LATER]})
    assert (result.ending, result.step) == ("refused", 6)
    return result.run


def test_a_broken_gate_ends_the_run(ended: RunDir) -> None:
    told = [(event["metric"], event["passed"]) for event in ended.read_events() if event["event"] == "gate"]
    assert told == [("train/loss", True), ("val/student/f1", False)]
    ending = ended.read_ending()
    assert ending is not None
    assert ending["event"] == "refused"
    assert ended.best.is_file()
    with pytest.raises(RunDirError, match=r"ended by a gate at step 6: BROKEN: val/student/f1 above 2 by epoch 1"):
        train(TrainRequest(resume=ended.path))


def test_a_run_that_has_broken_a_gate_is_no_start(ended: RunDir, tmp_path: Path, particles_dir: Path) -> None:
    with pytest.raises(RefusedError, match="its run has a gate that is BROKEN: val/student/f1"):
        train_tiny(tmp_path / "child", particles_dir, bootstrap=ended.best)


def test_gates_without_an_epoch_are_judged_at_the_end(tmp_path: Path, particles_dir: Path) -> None:
    result = train_tiny(tmp_path / "run", particles_dir, {"gates": [LATER], "length": {"steps": 2}})
    assert (result.ending, result.step) == ("refused", 2)
    assert result.run.read_broken_gates()[0].startswith("BROKEN: train/dice above 2; it reached")


@pytest.fixture
def gated(tmp_path: Path, particles_dir: Path) -> Path:
    """A configuration of two steps with a gate that is broken."""
    own = {"data": {"root": str(particles_dir), "patch_size": [32, 32]}, "length": {"steps": 2}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **own, "gates": [BROKEN]}))
    return path


def test_train_and_ladder_end_with_exit_code_3(cli: Cli, tmp_path: Path, gated: Path) -> None:
    refused = cli("train", "--config", gated, "--out", tmp_path / "run")
    assert_refused(refused, "ended by a gate after step 2", "BROKEN: val/student/f1 above 2", code=3)
    out = tmp_path / "ladder"
    refused = cli("ladder", "--config", gated, "--labels", 0.5, 1.0, "--out", out)
    assert_refused(refused, "rung 1 (labels 0.5) was ended by a gate: BROKEN: val/student/f1", "--force", code=3)
    ladder = load_study(LADDER, out)
    assert [rung.status for rung in ladder.trainings] == ["refused", "waiting"]
    assert not any(rung.kept for rung in ladder.trainings)
    assert_refused(cli("ladder", "--resume", out), "ended at rung 1: BROKEN", code=3)


@pytest.mark.slow
def test_folds_end_with_exit_code_3_and_are_no_ensemble(cli: Cli, tmp_path: Path, gated: Path) -> None:
    folds = cli("train", "--config", gated, "--folds", 2, "--fold", "all", "--out", tmp_path / "cv")
    assert_refused(folds, "fold1 was ended by a gate: BROKEN: val/student/f1", code=3)
    assert_refused(cli("evaluate", tmp_path / "cv", "--test"), "broke a gate", code=3)


@pytest.mark.parametrize(
    ("value", "met"), [(0.75, True), (0.85, True), (0.7499, False), (0.8501, False), (None, False)]
)
def test_both_ends_of_a_target_belong_to_it(value: float | None, met: bool) -> None:
    summary = {
        "pooled": {"precision": value, "recall": 0.5, "f1_macro": 0.5},
        "mean": {"dice": 0.5},
        "prevalence_pred": 0.5,
    }
    rows = judge_targets(TargetsConfig(precision=(0.75, 0.85)), summary)
    assert [(row["target"], row["met"]) for row in rows] == [("precision", met)]
    assert describe_targets(rows).startswith(f"{int(met)} of 1 targets met: precision ")
    assert judge_targets(TargetsConfig(), summary) == []


@pytest.mark.parametrize(
    ("target", "words"), [([0.9, 0.8], "the lower end comes first"), ([0.9, 1.1], "1.1"), (0.9, "a list is needed")]
)
def test_targets_that_make_no_sense(cli: Cli, tmp_path: Path, target: object, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump({"targets": {"recall": target}}))
    assert_refused(cli("config", "check", file), f"{file}: targets.recall", words)
