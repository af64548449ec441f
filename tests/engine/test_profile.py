"""Profiles of steps: how many are recorded, and that the training is the same."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from conftest import TINY, Cli, same_weights

from ssl_seg.engine import timing
from ssl_seg.engine.timing import SKIPPED, TABLE_FILE, TIMELINE_FILE, profile_steps
from ssl_seg.errors import counted


def record(folder: Path, count: int, steps: int, fails_at: int | None = None) -> list[str]:
    """Profile steps of which each calls one operator that nothing else does, and return what is said."""
    said: list[str] = []
    with profile_steps(count, folder, torch.device("cpu"), said.append) as count_step:
        for step in range(steps):
            if step == fails_at:
                raise ZeroDivisionError
            torch.erfinv(torch.zeros(3))
            count_step()
    return said


def count_recorded(folder: Path) -> int:
    events = json.loads((folder / TIMELINE_FILE).read_text())["traceEvents"]
    return sum(event.get("name") == "aten::erfinv" for event in events if event.get("ph") == "X")


@pytest.mark.parametrize(
    ("count", "steps", "recorded"),
    [(1, SKIPPED + 1, 1), (3, SKIPPED + 1, 1), (3, SKIPPED + 2, 2), (3, SKIPPED + 3, 3), (3, SKIPPED + 9, 3)],
)
def test_so_many_steps_are_recorded(tmp_path: Path, count: int, steps: int, recorded: int) -> None:
    (said,) = record(tmp_path, count, steps)
    assert said.startswith(f"profile: {counted(recorded, 'step')} in {tmp_path / TABLE_FILE}")
    assert count_recorded(tmp_path) == recorded
    table = (tmp_path / TABLE_FILE).read_text()
    assert table.startswith(f"{counted(recorded, 'step')}\n")
    assert "aten::erfinv" in table


@pytest.mark.parametrize("steps", [0, SKIPPED - 1, SKIPPED])
def test_too_few_steps_are_told(tmp_path: Path, steps: int) -> None:
    (said,) = record(tmp_path, 3, steps)
    assert f"there were {steps} steps" in said
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_recorded_unasked_nor_after_an_error(tmp_path: Path) -> None:
    assert record(tmp_path, 0, SKIPPED + 3) == []
    with pytest.raises(ZeroDivisionError):
        record(tmp_path, 3, SKIPPED + 2, fails_at=SKIPPED + 1)
    assert list(tmp_path.iterdir()) == []
    assert len(record(tmp_path, 1, SKIPPED + 1)) == 1  # the one before has ended


@pytest.mark.parametrize(("kind", "recorded"), [("cpu", {"CPU"}), ("cuda", {"CPU", "CUDA"})])
def test_the_device_of_the_run_is_recorded(
    kind: str, recorded: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the machine has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cpu")
    recording = MagicMock()
    recording.return_value.key_averages.return_value.table.return_value = ""
    monkeypatch.setattr(timing, "profile", recording)
    with profile_steps(1, tmp_path, torch.device(kind), print) as count_step:
        for _ in range(SKIPPED + 1):
            count_step()
    assert {activity.name for activity in recording.call_args.kwargs["activities"]} == recorded
    (order,) = recording.return_value.key_averages.return_value.table.call_args_list
    assert order.kwargs["sort_by"] == f"self_{kind}_time_total"


def test_a_training_is_the_same_with_a_profile(particles_dir: Path, tmp_path: Path, cli: Cli) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text(json.dumps(TINY))
    given = ("train", "--config", config, "--data", particles_dir, "--labels", 0.5, "--steps", 8, "--quiet")
    for name, more in (("plain", ()), ("profiled", ("--profile", 2))):
        code, _, said = cli(*given, "--out", tmp_path / name, *more)
        assert code == 0, said
    assert same_weights(*(tmp_path / name / "checkpoints" / "last.pt" for name in ("plain", "profiled")))
    assert "convolution" in (tmp_path / "profiled" / TABLE_FILE).read_text()
    assert not (tmp_path / "plain" / TABLE_FILE).exists()
    code, _, said = cli(*given, "--folds", 2, "--fold", "all", "--profile", 2)
    assert code == 2
    assert "--profile works with a single training" in said
