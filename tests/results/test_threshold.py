"""``prediction.threshold``: training and every command cut at it, and what comes before it is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_tiny
from sklearn.metrics import f1_score

from ssl_seg.cli.evaluate_tables import print_result
from ssl_seg.config import Config
from ssl_seg.config.layers import validate
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.errors import ConfigError
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.results.calibration import CalibrateRequest, calibrate
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores

THRESHOLD = 0.4
OFTEN = {"val_fraction": 0.4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run whose settings have a threshold."""
    folder = tmp_path_factory.mktemp("threshold")
    write_dataset(folder / "data", "particles", 14)
    train_tiny(folder / "run", folder / "data", {"prediction": {"threshold": THRESHOLD}, "split": OFTEN})
    return folder / "run"


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run / "checkpoints" / "best.pt", tmp_path / "net.pt"))


def rewrite(path: Path, out: Path, prediction: dict[str, Any] | None) -> Path:
    """Write a checkpoint with another section ``prediction``, or without any."""
    checkpoint = load_checkpoint(path)
    config = {key: value for key, value in checkpoint.config.items() if key != "prediction"}
    config |= {} if prediction is None else {"prediction": prediction}
    save_checkpoint(Checkpoint(**{**vars(checkpoint), "config": config}), out)
    return out


def score(path: Path, **options: Any) -> dict[str, Any]:
    return evaluate(EvaluateRequest(path, which="student", **options))


def cut_of(result: dict[str, Any]) -> tuple[Any, str]:
    return result["threshold"], result["threshold_from"]


def test_all_commands_agree_with_the_training(run: Path, checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    final = load_final_scores(RunDir(run))
    assert final is not None
    result = evaluate(EvaluateRequest(checkpoint))
    assert result["pooled"]["f1"] == final.used.score.f1
    assert cut_of(result) == (THRESHOLD, "prediction.threshold")
    print_result(result)
    assert "0.4 (prediction.threshold)" in capsys.readouterr().out
    data = Path(result["data"])
    predict(PredictRequest(checkpoint, data / "images", tmp_path / "out"))
    pairs = [
        [read_mask(str(folder / f"{row['id']}.png")).ravel() > 0 for folder in (data / "masks", tmp_path / "out")]
        for row in result["cases"]
    ]
    true, found = (np.concatenate(column) for column in zip(*pairs, strict=True))
    assert f1_score(true, found) == pytest.approx(final.used.score.f1)
    assert evaluate(EvaluateRequest(checkpoint, threshold=0.5))["pooled"]["f1"] != final.used.score.f1, "or it is idle"


def test_a_diagnosis_sees_what_the_monitor_saw(run: Path) -> None:
    found = diagnose_checkpoint(CheckpointRequest(run / "checkpoints" / "last.pt", seconds=60)).statistics
    last = RunDir(run).read_metrics()[-1]
    assert found["threshold"] == found["sweep"]["threshold"] == THRESHOLD
    for net in ("student", "teacher"):
        assert found["nets"][net]["f1"] == pytest.approx(last[f"val/{net}/f1"])
        assert found["nets"][net]["prevalence_pred"] == pytest.approx(last[f"val/{net}/prevalence_pred"])
    f1, sweep = found["scores"]["f1"], found["sweep"]
    assert f1 == pytest.approx(sweep["f1_at_threshold"], abs=2e-3)
    assert abs(f1 - sweep["f1_at_threshold"]) < abs(f1 - sweep["f1_at_half"])


def test_what_comes_before_it(checkpoint: Path) -> None:
    before = score(checkpoint)
    calibrate(CalibrateRequest(checkpoint, "student"))
    calibrated = score(checkpoint)
    assert calibrated["threshold_from"] == "ssl-seg calibrate"
    assert cut_of(score(checkpoint, threshold=0.3)) == (0.3, "--threshold")
    assert cut_of(score(checkpoint, calibrated=False)) == (THRESHOLD, "prediction.threshold")
    assert score(checkpoint, calibrated=False)["pooled"] == before["pooled"]


def test_a_calibration_whose_threshold_gains_nothing_keeps_it(checkpoint: Path) -> None:
    """There are too few cases for any other."""
    before = score(checkpoint)
    result = calibrate(CalibrateRequest(checkpoint, "student"))
    assert not result["used"]
    assert result["network_threshold"] == pytest.approx(THRESHOLD)
    assert result["chosen"]["f1_before"] == pytest.approx(before["pooled"]["f1"], abs=0.01)
    assert score(checkpoint)["pooled"]["f1"] == pytest.approx(before["pooled"]["f1"], abs=1e-4)


def test_without_the_section_the_likeliest_class_counts(checkpoint: Path, tmp_path: Path) -> None:
    old = rewrite(checkpoint, tmp_path / "old.pt", None)
    assert cut_of(score(old)) == (0.5, "default")
    assert score(old)["pooled"] == score(checkpoint, threshold=0.5)["pooled"]


def test_networks_with_different_ones_have_no_mean_without_an_option(checkpoint: Path, tmp_path: Path) -> None:
    other = rewrite(checkpoint, tmp_path / "other.pt", {"threshold": 0.6})
    rows = score(checkpoint, more=(other,))["rows"]
    assert [cut_of(row) for row in rows] == [(THRESHOLD, "prediction.threshold"), (0.6, "prediction.threshold")]
    with pytest.raises(ConfigError, match=r"different thresholds: .* 0.4 in the first and 0.6 .*--threshold"):
        score(checkpoint, more=(other,), ensemble=True)
    assert cut_of(score(checkpoint, more=(other,), ensemble=True, threshold=0.5)) == (0.5, "--threshold")


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, "half"])
def test_what_is_no_threshold(run: Path, value: Any) -> None:
    config = load_checkpoint(run / "checkpoints" / "best.pt").config
    with pytest.raises(ConfigError, match=r"prediction\.threshold"):
        validate(Config, {**config, "prediction": {"threshold": value}})


def test_more_than_two_classes_have_none(run: Path) -> None:
    config = load_checkpoint(run / "checkpoints" / "best.pt").config
    three = {**config, "data": {**config["data"], "label_values": [0, 1, 2]}}
    with pytest.raises(ConfigError, match=r"prediction\.threshold=0\.4 cannot tell 3 classes apart"):
        validate(Config, three)
    assert validate(Config, {**three, "prediction": {}}).prediction.threshold is None
