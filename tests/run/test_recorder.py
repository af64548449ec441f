"""What a run says, and what of it is kept in train.log."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Notes

from ssl_seg.monitor.findings import RuleFinding, Verdict
from ssl_seg.run.console import LoggedConsole, Silent
from ssl_seg.run.directory import LOG_FILE, RunDir
from ssl_seg.run.recorder import Recorder

DOCS = Path(__file__).parents[2] / "docs"
STUDENT = RuleFinding("all_negative", "collapsed", "student", 0.0, 1.0, "", "0 % of 25 %")
TEACHER = replace(STUDENT, net="teacher", message="1 % of 25 %")


def make_observation(step: int, verdict: Verdict) -> Any:
    return SimpleNamespace(step=step, verdict=verdict, format_line=lambda: f"line {step}")


def test_the_block_comes_when_the_findings_change(tmp_path: Path) -> None:
    console, prepared = Notes(), SimpleNamespace(run=RunDir(tmp_path))
    recorder = Recorder(cast("Any", prepared), cast("Any", SimpleNamespace(is_global_zero=True)), console)
    both, alone = Verdict((STUDENT, TEACHER)), Verdict((STUDENT,))
    for step, verdict in enumerate((both, both, alone, Verdict(), alone)):
        recorder.observe(make_observation(step, verdict), {"step": step})
    shown = [line for line in console.texts if not line.startswith(" ")]
    assert shown == [f"line {step}" for step in range(5)]
    assert [console.texts.index(line) for line in shown] == [0, 3, 4, 7, 8]
    assert [e["step"] for e in prepared.run.read_events()] == [0, 2, 3, 4]


@pytest.mark.parametrize("is_first", [True, False])
def test_who_copies_a_look_finds_its_record_and_verdict_and_only_the_first_process_copies(
    tmp_path: Path, is_first: bool
) -> None:
    found, run = list[tuple[Any, ...]](), RunDir(tmp_path)

    def copy(record: Any) -> None:
        found.append((record, run.read_metrics(), [e["event"] for e in run.read_events()]))

    fabric = cast("Any", SimpleNamespace(is_global_zero=is_first))
    recorder = Recorder(cast("Any", SimpleNamespace(run=run)), fabric, Silent(), copy)
    recorder.observe(make_observation(3, Verdict((STUDENT,))), {"step": 3})
    assert found == ([({"step": 3}, [{"step": 3}], ["verdict"])] if is_first else [])


def test_the_log_holds_all_lines_also_those_of_before_the_directory(tmp_path: Path) -> None:
    shown = Notes()
    console = LoggedConsole(shown)
    console.note("plan: a")
    assert list(tmp_path.iterdir()) == []
    console.open(RunDir(tmp_path))
    log = tmp_path / LOG_FILE
    assert log.read_text() == "plan: a\n"
    console.note("step 1\x1b[2J")
    assert log.read_text().splitlines() == ["plan: a", "step 1\\x1b[2J"], "a name of a file cannot steer the terminal"
    again = LoggedConsole(Silent())
    again.open(RunDir(tmp_path))
    again.note("resume: b")
    assert log.read_text().splitlines()[-1] == "resume: b", "a run that goes on writes behind what is there"
    assert shown.texts == ["plan: a", "step 1\x1b[2J"]


def test_lines_of_a_run_begin_as_documented(tiny_run: Path) -> None:
    lines = (tiny_run / LOG_FILE).read_text().splitlines()
    _, _, table = (DOCS / "training.md").read_text(encoding="utf-8").partition("\n| begin |")
    starts = tuple(
        re.findall(r"`([^`]+)`", "".join(row.split("|")[1] for row in table.split("\n\n")[0].split("\n")[2:]))
    )
    assert len(starts) > 20
    assert [line for line in lines if not line.startswith(starts)] == []
    steps = [int(line.split()[1]) for line in lines if line.startswith("step ") and " | F1 " in line]
    assert steps == [r["step"] for r in RunDir(tiny_run).read_metrics()]
    for start in ("network: ", "probe: ", "loss: ", "split: ", "used: "):
        assert [line for line in lines if line.startswith(start)], start


def test_size_and_pace_are_on_record(tiny_run: Path) -> None:
    run = RunDir(tiny_run)
    (event,) = [e for e in run.read_events() if e["event"] == "runtime"]
    assert event["parameters"] > 0
    first, *_, before, last = run.read_metrics()
    assert 0 < event["memory_gib"] <= last["machine/memory_gib"] < 1000
    assert "machine/hours_to_go" not in first, "nothing is known of the pace yet"
    assert last["machine/hours_to_go"] == 0
    left = 6 * before["train/seconds_per_step"]
    assert abs(before["machine/hours_to_go"] * 3600 - left) < 1e-6
    assert abs(before["machine/seconds_per_epoch"] - left) < 1e-6, "epochs of 6 steps, 6 of 12 steps to go"
