"""Records for other programs are those of metrics.jsonl."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli

from ssl_seg.config.layers import Layer
from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.run import sinks
from ssl_seg.run.directory import METRICS_FILE, RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.sinks import check_sinks, export_log, open_tensorboard
from ssl_seg.run.training import train


def read_back(folder: Path) -> Any:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def check_equal(folder: Path, records: list[dict[str, Any]]) -> None:
    """Compare what TensorBoard reads with the numbers of the records, all of them and no other."""
    found = read_back(folder)
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                expected.setdefault(name, []).append((record["step"], value))
    assert set(found.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        seen = [(event.step, event.value) for event in found.Scalars(name)]
        assert seen == [(step, pytest.approx(value, rel=1e-6, abs=1e-30)) for step, value in points], name


def test_all_records_of_a_run(tiny_run: Path, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("tensorboard")
    code, out, err = cli("export-log", tiny_run, "--to", "tensorboard", "--out", tmp_path / "tb")
    assert code == 0, err
    records = RunDir(tiny_run).read_metrics()
    assert f"wrote {len(records)} record(s)" in out
    check_equal(tmp_path / "tb", records)
    refused = cli("export-log", tiny_run, "--to", "tensorboard", "--out", tmp_path / "tb")
    assert (refused[0], "not overwritten" in refused[2]) == (2, True)


def test_what_is_not_finite_is_left_out_and_a_resumed_run_takes_its_records_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    records = [{"step": step, "val/f1": step / 10, "verdict": "ok", "codes": []} for step in range(5)]
    write = open_tensorboard(tmp_path)
    for record in records:
        write({**record, "train/loss": math.nan, "gap": None, "histogram": [1.0]})
    again = open_tensorboard(tmp_path, 3)
    changed = [{**record, "val/f1": 0.5} for record in records[3:]]
    for record in changed:
        again(record)
    check_equal(tmp_path, [*records[:3], *changed])


def test_a_training_writes_them_as_it_goes(particles_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    layers = (Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}}))
    train(TrainRequest(layers, tmp_path / "run", log=("tensorboard",)))
    check_equal(tmp_path / "run" / "tensorboard", RunDir(tmp_path / "run").read_metrics())


def test_what_cannot_be_written_is_said_before_the_training(
    monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"'tensorbord' \(did you mean 'tensorboard'\?\)"):
        check_sinks(["tensorbord"])
    monkeypatch.setattr(sinks, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'ssl-seg\[tensorboard\]'"):
        train(TrainRequest(out=tmp_path / "run", log=("tensorboard",)))
    assert not (tmp_path / "run").exists()
    code, out, err = cli("train", "--log", "excel", "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "known: tensorboard" in err


def test_a_run_without_records(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDir(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    (run.path / METRICS_FILE).write_text("")
    with pytest.raises(RunDirError, match="no records"):
        export_log(run, "tensorboard")
    (run.path / METRICS_FILE).write_text(json.dumps({"step": 0, "verdict": "ok", "codes": []}) + "\n")
    assert export_log(run, "tensorboard") == (run.path / "tensorboard", 1)
