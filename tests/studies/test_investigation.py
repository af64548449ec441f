"""An investigation: hypotheses beside what the runs say, paired by case."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ssl_seg.data.splits.files import save_split
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import ConfigError
from ssl_seg.inference.scoring import parse_cases
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import FinalScores, NetworkScore, save_final_scores
from ssl_seg.scores.intervals import Difference
from ssl_seg.studies.investigation import Statement, add_statement, investigate, judge, read_statements

EARLY, LATE = "2020-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00"


def write_run(path: Path, missed: list[int], lr: float = 1e-4, ended: str = LATE, foreground: int = 50) -> Path:
    """A finished run whose network misses so many of the foreground voxels of each case, and is right elsewhere."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"optim: {{lr: {lr}}}\n")
    RunDir(path).append_event("finished", step=10, codes=["plateau"])
    text = RunDir(path).events_path.read_text()
    RunDir(path).events_path.write_text(text.replace(RunDir(path).read_events()[0]["time"], ended))
    counts = [[foreground - n, 0, n, 100] for n in missed]
    rows = [{"id": f"c{i}", "foreground": c, "classes": [c], "nonfinite": 0} for i, c in enumerate(counts)]
    network = NetworkScore("best", "student", 10, False, parse_cases(rows, (1,)))
    save_final_scores(FinalScores(10, "f1", (network,), 0.25), RunDir(path))
    val = tuple(f"c{i}" for i in range(10))
    split = Split("d", 0, {1.0: ("t",)}, (), val, (), {}, dict.fromkeys(("t", *val), f"{foreground:032x}"), ())
    save_split(split, path / "split.yaml")
    return path


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (0.01, 0.05, None, "better"),
        (-0.05, -0.01, None, "worse"),
        (-0.01, 0.05, None, "no difference shown"),
        (0.01, 0.05, 0.03, "confirmed"),  # above 0, and the expected gain is within
        (0.01, 0.05, 0.06, "refuted"),
        (-0.01, 0.05, 0.03, "undecided"),
        (-0.01, 0.05, -0.02, "confirmed"),  # no worse than what is accepted
        (-0.03, 0.05, -0.02, "undecided"),
        (-0.05, -0.03, -0.02, "refuted"),
        (None, None, 0.03, "unknown"),
    ],
)
def test_the_interval_decides(low: float | None, high: float | None, expected: float | None, verdict: str) -> None:
    assert judge(Difference(0.0, low, high, "why"), expected) == verdict


def test_gains_are_paired_over_the_cases_of_both_runs(tmp_path: Path) -> None:
    file = tmp_path / "investigation.yaml"
    add_statement(file, write_run(tmp_path / "a", [20, 25, 20, 26, 20, 25, 21, 25, 20]), Statement())
    change = Statement(hypothesis="faster", expected=0.1, if_confirmed="go on", if_refuted="stop")
    add_statement(file, write_run(tmp_path / "b", [10, 12, 11, 12, 10, 13, 10, 12, 10, 0], lr=1e-3), change)
    first, second = investigate(file)
    assert (first.verdict, first.gain, first.changes) == ("the start", None, ())
    assert [(c.setting, c.a, c.b) for c in second.changes] == [("optim.lr", 1e-4, 1e-3)]
    assert (second.cases, second.codes, second.stated_late) == (9, ("plateau",), False)
    assert second.gain is not None
    assert second.gain.f1 == pytest.approx(2 * 350 / (2 * 350 + 100) - 2 * 248 / (2 * 248 + 202))
    assert (second.verdict, second.decision) == ("confirmed", "go on")


def test_other_cases_are_not_compared_and_late_statements_are_told(tmp_path: Path) -> None:
    file = tmp_path / "investigation.yaml"
    add_statement(file, write_run(tmp_path / "a", [9] * 9), Statement())
    add_statement(file, write_run(tmp_path / "b", [5] * 9, ended=EARLY, foreground=51), Statement(hypothesis="late"))
    add_statement(file, tmp_path / "planned", Statement(hypothesis="to come", against="a"))
    _, other, planned = investigate(file)
    assert (other.verdict, other.gain) == ("unknown: no validation case in common", None)
    assert other.stated_late
    assert (planned.verdict, planned.against) == ("not trained yet", "a")


def test_the_file_grows_and_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "investigation.yaml"
    file.write_text("a: {hypothesis: first}  # mine\n")
    add_statement(file, tmp_path / "sub" / "b", Statement(expected=-0.01))
    assert "# mine" in file.read_text()
    assert {name: s.expected for name, s in read_statements(file).items()} == {"a": None, "sub/b": -0.01}
    with pytest.raises(ConfigError, match="has a already"):
        add_statement(file, tmp_path / "a", Statement())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: {hypotesis: x}", "hypotesis"),
        ("a: {expected: 5}", "expected"),
        ("a: 3", "must be a mapping"),
        ("a: {against: b}\nb: {}", "not the name of a run above it"),
    ],
)
def test_slips_in_the_file_are_named(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "investigation.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        investigate(tmp_path / "investigation.yaml")


def test_the_command_adds_runs_and_prints_the_table(cli: Any, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", [20] * 9 + [21]), write_run(tmp_path / "b", [20] * 9 + [22], lr=1e-3)
    code, out, _ = cli("investigate", a, b, "--hypothesis", "a higher rate", "--expect", 0)
    assert code == 0
    assert "optim.lr 0.0001 -> 0.001" in out
    assert "a higher rate" in out
    again = cli("investigate", "--file", tmp_path / "investigation.yaml", "--markdown")
    assert again[0] == 0
    assert again[1].count("\n| ") == 3  # rule and two runs
    assert cli("investigate", tmp_path / "gone")[0] == 2
    assert "needs the RUN" in cli("investigate", "--file", tmp_path / "investigation.yaml", "--expect", "0")[2]
