"""Records for other programs are those of metrics.jsonl."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, Cli
from numpy.typing import NDArray
from torch import nn

from ssl_seg.config.layers import Layer, read_yaml
from ssl_seg.data.loader import Probe, make_probe
from ssl_seg.data.open import open_data, open_store
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.errors import ConfigError, RunDirError, counted
from ssl_seg.inference.model import open_model
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.run import sinks
from ssl_seg.run.directory import CONFIG_FILE, METRICS_FILE, RunDir
from ssl_seg.run.probe_picture import GAP, SHOWN, draw_probe
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.sinks import RecordCopies, Sink, check_sinks, export_log
from ssl_seg.run.training import train


def read_back(folder: Path) -> Any:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0})
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
    assert f"wrote {counted(len(records), 'record')}" in out
    check_equal(tmp_path / "tb", records)
    refused = cli("export-log", tiny_run, "--to", "tensorboard", "--out", tmp_path / "tb")
    assert (refused[0], "not overwritten" in refused[2]) == (2, True)


def list_pictures(folder: Path) -> dict[int, np.ndarray[Any, Any]]:
    """Step -> the gray picture that TensorBoard shows."""
    found = read_back(folder)
    (name,) = found.Tags()["images"]
    return {
        event.step: cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_GRAYSCALE)
        for event in found.Images(name)
    }


def test_pictures_of_a_finished_run_are_those_of_its_checkpoints(tiny_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDir(Path(shutil.copytree(tiny_run, tmp_path / "run")))
    notes: list[str] = []
    export_log(run, "tensorboard", tmp_path / "tb", notes.append)
    shown = list_pictures(tmp_path / "tb")
    assert notes == []
    assert set(shown) == {open_model(path).checkpoint.progress.step for path in (run.best, run.last)}
    model = open_model(run.last)
    config, split = model.config, split_from_dict(model.checkpoint.split)
    store = open_store(open_data(config.data.model_dump(mode="json")), config.data)
    probe = make_probe(store, split.val, config.monitor.probe_patches, config.data.patch_size, split.seed)
    own = draw_probe(model.nets, probe, model.device, model.autocast)
    np.testing.assert_array_equal(shown[model.checkpoint.progress.step], own)
    run.best.unlink()
    run.last.unlink()
    export_log(run, "tensorboard", tmp_path / "none", notes.append)
    assert notes == []
    assert read_back(tmp_path / "none").Tags()["images"] == []


@pytest.mark.parametrize("volume", [False, True])
def test_a_picture_shows_input_truth_and_probability_of_each_network(volume: bool) -> None:
    """Patches with foreground first; of a volume the slice with the most; the mode of a network comes back."""
    shape = (3, 4, 5) if volume else (4, 5)
    plane: Any = (1,) if volume else ()
    images, targets = torch.zeros(6, 1, *shape), torch.zeros(6, *shape, dtype=torch.int64)
    targets[5][(*plane, 0, 0)] = 1
    targets[5][(*plane, 3, 4)] = IGNORE_INDEX
    images[5, 0][(*plane, 2)] = 7.0

    class Half(nn.Module):
        def __init__(self, odds: float) -> None:
            super().__init__()
            self.odds = odds

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            assert not self.training
            return torch.cat([torch.zeros_like(image), torch.full_like(image, self.odds)], dim=1)

    nets = {"student": Half(0.0).train(), "teacher": Half(50.0).train()}
    picture = draw_probe(nets, Probe(images, targets), torch.device("cpu"), nullcontext)
    height, width = 4 + GAP, 5 + GAP
    assert picture.shape == (SHOWN * height - GAP, 4 * width - GAP)
    first = [picture[:4, n * width : n * width + 5] for n in range(4)]
    expected = np.zeros((2, 4, 5))
    expected[0, 2], expected[1, 0, 0], expected[1, 3, 4] = 255, 255, 128
    np.testing.assert_array_equal(first[:2], expected)
    assert [np.unique(panel).tolist() for panel in first[2:]] == [[128], [255]]
    assert (picture[4 : 4 + GAP] == 255).all()
    assert all(net.training for net in nets.values())


def test_what_is_not_finite_is_left_out_and_a_resumed_run_writes_its_copy_anew(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = RunDir(tmp_path)
    records = [{"step": step, "val/f1": step / 10, "verdict": "ok", "codes": []} for step in range(5)]
    copies = RecordCopies(["tensorboard"], run, pytest.fail)
    for record in records:
        run.append_metrics(record)
        copies.write({**record, "train/loss": math.nan, "gap": None, "histogram": [1.0]})
    copies.close()
    check_equal(tmp_path / "tensorboard", records)
    run.drop_after(2)
    changed = [{**record, "val/f1": 0.5} for record in records[3:]]
    again = RecordCopies(["tensorboard"], run, pytest.fail)
    for record in changed:
        again.write(record)
    again.close()
    check_equal(tmp_path / "tensorboard", [*records[:3], *changed])


def test_a_training_writes_them_as_it_goes(particles_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    layers = (Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}}))
    train(TrainRequest(layers, tmp_path / "run", log=("tensorboard",)))
    records = RunDir(tmp_path / "run").read_metrics()
    check_equal(tmp_path / "run" / "tensorboard", records)
    shown = list_pictures(tmp_path / "run" / "tensorboard")
    assert sorted(shown) == [record["step"] for record in records]
    assert (shown[min(shown)] != shown[max(shown)]).any()  # the networks have learned something


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
    folder = run.path / "tensorboard"
    assert export_log(run, "tensorboard") == (folder, 1, f"tensorboard --logdir {folder}")


class Mlflow:
    """What is called of MLflow, with its limits, as a client that keeps what it gets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.places: list[str] = []
        self.experiments: dict[str, str | None] = {}
        self.params: dict[str, str] = {}
        self.metrics: list[tuple[str, float, int]] = []
        self.tags: dict[str, str] = {}
        self.ended: list[str] = []
        entities: Any = ModuleType("mlflow.entities")
        entities.Metric = lambda key, value, _, step: (key, value, step)
        entities.Param = entities.RunTag = lambda key, value: (key, value)
        tracking: Any = ModuleType("mlflow.tracking")
        tracking.MlflowClient = self.connect
        for module in (ModuleType("mlflow"), entities, tracking):
            module.__spec__ = ModuleSpec(module.__name__, None)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    def connect(self, tracking_uri: str) -> Mlflow:
        self.places.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None) -> str:
        self.experiments[name] = artifact_location
        return name

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        assert experiment_id in self.experiments
        self.params = {}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_name))

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        assert len(params) <= 100
        assert all(re.fullmatch(r"[A-Za-z0-9_\-. :/]+", key) for key, *_ in (*metrics, *params))
        assert not self.params.keys() & {key for key, _ in params}
        self.params |= dict(params)
        self.metrics += metrics
        self.tags |= dict(tags)

    def set_terminated(self, run_id: str) -> None:
        self.ended.append(run_id)


def list_numbers(records: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    return [
        (name, value, record["step"])
        for record in records
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float)
    ]


def test_mlflow_gets_all_numbers_all_settings_and_the_last_verdict(
    tiny_run: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    mlflow, records = Mlflow(monkeypatch), RunDir(tiny_run).read_metrics()
    code, out, err = cli("export-log", tiny_run, "--to", "mlflow", "--out", tmp_path / "copy")
    assert code == 0, err
    assert mlflow.places == [f"sqlite:///{tmp_path / 'copy'}/mlflow.db"]
    assert f"mlflow ui --backend-store-uri {mlflow.places[0]}" in out
    assert mlflow.experiments == {"ssl-seg": (tmp_path / "copy" / "artifacts").as_uri()}
    assert mlflow.metrics == list_numbers(records)
    assert mlflow.params["length.steps"] == str(read_yaml(tiny_run / CONFIG_FILE)["length"]["steps"])
    assert len(mlflow.params) > 100
    assert mlflow.tags["verdict"].split(", ")[0] == records[-1]["verdict"]
    assert mlflow.ended == [tiny_run.name]


def test_mlflow_goes_to_the_server_that_its_own_variable_names(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow = Mlflow(monkeypatch)
    for name in ("a", "b"):
        assert export_log(RunDir(tiny_run), "mlflow", tmp_path / name)[2].endswith("http://server:5000")
    assert mlflow.experiments == {"mine": None}


def test_wandb_gets_all_numbers_all_settings_and_each_verdict_offline(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    begun: list[dict[str, Any]] = []
    wandb: Any = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.Settings = dict

    def init(**options: Any) -> Any:
        begun.append({**options, "there": Path(options["dir"]).is_dir()})  # else wandb takes another folder
        return SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: begun.append({}))

    wandb.init = init
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    records = RunDir(tiny_run).read_metrics()
    folder, count, command = export_log(RunDir(tiny_run), "wandb", tmp_path / "my copy")
    assert (count, command) == (len(records), f"wandb sync '{folder}'/wandb/offline-run-*")
    assert [(begun[0][name]) for name in ("mode", "dir", "there")] == ["offline", str(folder), True]
    assert begun[0]["config"]["length.steps"] == read_yaml(tiny_run / CONFIG_FILE)["length"]["steps"]
    assert begun[1:] == [{}]
    assert [values.pop("verdict").split(", ")[0] for _, values in logged] == [r["verdict"] for r in records]
    assert [(n, v, step) for step, values in logged for n, v in values.items()] == list_numbers(records)


@pytest.mark.parametrize("failing", ["open", "write", "picture", "draw", "close"])
def test_a_training_goes_on_without_a_program_that_fails(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[int]] = {"good": [], "bad": []}
    notes: list[str] = []

    def fail(part: str) -> None:
        if part == failing:
            raise OSError("disk full\nat line 3")

    def open_bad(folder: Path, run: RunDir) -> Sink:
        fail("open")

        def write(record: Mapping[str, Any]) -> None:
            fail("write")
            seen["bad"].append(record["step"])

        return Sink(write, lambda: fail("close"), "", lambda *_: fail("draw"))

    def open_good(folder: Path, run: RunDir) -> Sink:
        return Sink(lambda record: seen["good"].append(record["step"]), lambda: seen["good"].append(-1), "")

    def make_picture() -> NDArray[np.uint8]:
        fail("picture")
        return np.zeros((2, 2), np.uint8)

    written: dict[str, list[int]] = {"open": [], "write": [], "picture": [0], "draw": [0], "close": [0, 1]}
    monkeypatch.setattr(sinks, "SINKS", {"bad": open_bad, "good": open_good})
    run = RunDir(tmp_path)
    copies = RecordCopies(["bad", "good", "bad"], run, notes.append)
    for step in range(2):
        copies.write({"step": step, "verdict": "ok", "codes": []}, make_picture)
    copies.close()
    assert seen == {"good": [0, 1, -1], "bad": written[failing]}
    (note,) = notes
    assert "bad (disk full); afterwards: ssl-seg export-log" in note
    if failing in ("picture", "draw"):
        return  # afterwards these are pictures of checkpoints, and this run has none
    monkeypatch.setattr(sinks, "check_sinks", lambda _: None)
    run.append_metrics({"step": 0, "verdict": "ok", "codes": []})
    with pytest.raises(ConfigError, match="bad cannot write the records: disk full"):
        export_log(run, "bad", tmp_path / "copy")
