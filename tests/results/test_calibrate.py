"""``ssl-seg calibrate``: what it stores, and that evaluate and predict use it and nothing else."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import Cli, train_tiny
from scipy import ndimage, special
from test_cli import assert_refused

from ssl_seg.config import Config
from ssl_seg.config.layers import validate
from ssl_seg.data.store import CaseStore
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask, write_mask
from ssl_seg.errors import CheckpointError, ConfigError, DataError, counted
from ssl_seg.inference.calibration import calibration_path
from ssl_seg.inference.sliding import Predictor
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.results import calibration
from ssl_seg.results.calibration import FEW_CASES, CalibrateRequest, calibrate
from ssl_seg.results.evaluation import EvaluateRequest, choose_cases, evaluate
from ssl_seg.results.mask_making import PredictRequest, _list_probability_suffixes
from ssl_seg.results.prediction import predict
from ssl_seg.scores.calibration import Scaling, ThresholdRule

SHIFT = -1.53


def predict_shifted(_: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> np.ndarray[Any, Any]:
    """A network that finds bright particles, and whose log-odds are shifted."""
    smooth = ndimage.gaussian_filter(image[0].astype(np.float64), 1.5)
    probability = special.expit((smooth - smooth.mean()) / smooth.std() * 3 - 2 + SHIFT)
    return np.stack([1 - probability, probability]).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with 10 validation cases."""
    folder = tmp_path_factory.mktemp("calibrate")
    write_dataset(folder / "data", "particles", 26)
    train_tiny(folder / "run", folder / "data", {"split": {"val_fraction": 0.4}, "length": {"steps": 1}})
    return folder / "run"


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of its checkpoint, of a network whose log-odds are shifted."""
    monkeypatch.setattr(Predictor, "__call__", predict_shifted)
    return Path(shutil.copy(run / "checkpoints" / "last.pt", tmp_path / "net.pt"))


def score(checkpoint: Path, **options: Any) -> float:
    return float(evaluate(EvaluateRequest(checkpoint, which="student", **options))["pooled"]["f1"])


def test_a_shifted_network_comes_back(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the scaling alone, the probabilities are right; with the threshold, F1 is the highest one there is."""
    shifted = score(checkpoint)
    result = calibrate(CalibrateRequest(checkpoint, "student"))
    assert result["used"]
    assert score(checkpoint) == pytest.approx(result["chosen"]["best_f1"], abs=0.01)
    assert score(checkpoint) > shifted + 0.05
    assert score(checkpoint, calibrated=False) == shifted
    assert result["ece"]["after"] < result["ece"]["before"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    monkeypatch.setattr("test_calibrate.SHIFT", 0.0)
    calibration_path(checkpoint).unlink()
    again = calibrate(CalibrateRequest(checkpoint, "student"))
    assert again["chosen"]["best_f1"] == pytest.approx(result["chosen"]["best_f1"], abs=0.01)
    assert again["temperature"] == pytest.approx(result["temperature"], rel=0.02)
    assert again["biases"][1] == pytest.approx(result["biases"][1] - 1.53 / result["temperature"], abs=0.02)


def test_the_folder_of_the_training_may_have_moved(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    (data := run.parent / "data").rename(moved := tmp_path / "moved")
    try:
        with pytest.raises(DataError, match=r"data does not exist.*, with --data where it was moved"):
            calibrate(CalibrateRequest(checkpoint, "student"))
        result = calibrate(CalibrateRequest(checkpoint, "student", data=str(moved)))
    finally:
        moved.rename(data)
    there = calibrate(CalibrateRequest(checkpoint, "student"))
    assert {**result, "data": ""} == {**there, "data": ""}


def test_a_folder_that_cannot_be_written_to_is_named_first(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the validation cases are predicted; a folder above it does not matter."""
    monkeypatch.setattr("os.access", lambda path, _: Path(path) != checkpoint.parent)
    monkeypatch.setattr(calibration, "open_cases", lambda *_: pytest.fail("begun"))
    with pytest.raises(DataError, match=r"net\.calibration\.json cannot be written: permission denied.* Copy the run"):
        calibrate(CalibrateRequest(checkpoint, "student"))


def test_a_shift_comes_back_where_no_threshold_is_shown_to_gain(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From three cases no gain is beyond chance."""
    monkeypatch.setattr(calibration, "choose_cases", lambda *args: choose_cases(*args)[:3])
    scores = []
    for shift in (-1.53, -2.5):
        monkeypatch.setattr("test_calibrate.SHIFT", shift)
        calibration_path(checkpoint).unlink(missing_ok=True)
        result = calibrate(CalibrateRequest(checkpoint, "student"))
        assert (result["used"], result["threshold"]) == (False, pytest.approx(0.5))
        scores.append((score(checkpoint, calibrated=False), score(checkpoint)))
    assert scores[0][1] == pytest.approx(scores[1][1], abs=0.002)
    assert scores[0][0] > scores[1][0] + 0.05


def test_the_masks_are_those_that_are_scored(checkpoint: Path, tmp_path: Path) -> None:
    result = calibrate(CalibrateRequest(checkpoint, "student", ThresholdRule("prevalence")))
    data = Path(result["data"])
    predict(PredictRequest(checkpoint, data / "images", tmp_path / "out", "student", probabilities=True))
    counts = np.zeros(3)
    for row in evaluate(EvaluateRequest(checkpoint, which="student"))["cases"]:
        found = read_mask(str(tmp_path / "out" / f"{row['id']}.png")) > 0
        true = read_mask(str(data / "masks" / f"{row['id']}.png")) > 0
        counts += (found & true).sum(), (found & ~true).sum(), (~found & true).sum()
        probability = tifffile.imread(tmp_path / "out" / f"{row['id']}_prob.tif")
        np.testing.assert_array_equal(probability > result["threshold"], found)
    assert score(checkpoint) == pytest.approx(2 * counts[0] / (2 * counts[0] + counts[1] + counts[2]))
    assert counts[:2].sum() == pytest.approx(counts[[0, 2]].sum(), rel=0.02)  # as much as there is


def test_an_own_threshold_is_of_the_calibrated_probability(checkpoint: Path) -> None:
    result = calibrate(CalibrateRequest(checkpoint, "student"))
    assert score(checkpoint, threshold=result["threshold"]) == score(checkpoint)
    assert score(checkpoint, threshold=0.999) < score(checkpoint)
    plain = score(checkpoint, threshold=result["network_threshold"], calibrated=False)
    assert plain == pytest.approx(score(checkpoint), abs=1e-3)


def test_a_gain_within_chance_keeps_the_threshold(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifted so that 0.5 is the best cut already."""
    best = calibrate(CalibrateRequest(checkpoint, "student"))["network_threshold"]
    monkeypatch.setattr("test_calibrate.SHIFT", SHIFT - special.logit(best))
    result = calibrate(CalibrateRequest(checkpoint, "student"))
    assert (result["used"], result["network_threshold"]) == (False, 0.5)
    assert score(checkpoint) == pytest.approx(score(checkpoint, calibrated=False), abs=1e-4)


@pytest.mark.parametrize("cases", [1, 2, FEW_CASES - 1, FEW_CASES])
def test_few_cases_are_named_and_one_case_changes_no_probability(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, cases: int
) -> None:
    monkeypatch.setattr(calibration, "choose_cases", lambda *args: choose_cases(*args)[:cases])
    code, out, err = cli("calibrate", checkpoint, "--which", "student")
    assert code == 0, err
    assert (f"WARNING {counted(cases, 'validation case')}, fewer than {FEW_CASES}" in err) == (cases < FEW_CASES)
    (stored,) = json.loads(calibration_path(checkpoint).read_text()).values()
    unchanged = stored["scaling"] == {"temperature": 1.0, "biases": [0.0, 0.0]}
    assert unchanged == (cases == 1) == ("probabilities stay as they are" in out)
    assert ("evaluate and predict use the network as it is" in out) == unchanged
    assert ("evaluate and predict use it" in out) != unchanged


def test_masks_made_before_are_not_mixed_with_calibrated_ones(checkpoint: Path, tmp_path: Path) -> None:
    images = Path(evaluate(EvaluateRequest(checkpoint))["data"]) / "images"
    request = PredictRequest(checkpoint, images, tmp_path / "out", "student")
    predict(request)
    calibrate(CalibrateRequest(checkpoint, "student"))
    with pytest.raises(DataError, match="it was made with threshold as by default and not 0"):
        predict(request)
    plain = PredictRequest(checkpoint, images, tmp_path / "out", "student", calibrated=False)
    assert predict(plain) == []


class TestCleaning:
    @staticmethod
    def add_specks(predictor: Predictor, image: np.ndarray[Any, Any], spacing: object = None) -> np.ndarray[Any, Any]:
        """The network above, which also finds single voxels everywhere."""
        probs = predict_shifted(predictor, image, spacing)
        probs[:, 1::6, 1::6] = np.array([0.02, 0.98])[:, None, None]
        return probs

    def test_specks_are_dropped_where_that_pays(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Predictor, "__call__", self.add_specks)
        calibrate(CalibrateRequest(checkpoint, "student"))
        speckled = evaluate(EvaluateRequest(checkpoint, which="student"))["mean"]["dice"]
        result = calibrate(CalibrateRequest(checkpoint, "student", clean=True))
        assert result["cleaning"][0]["least_voxels"] > 1
        assert result["cleaning"][0]["gain"]["low"] > 0
        found = evaluate(EvaluateRequest(checkpoint, which="student"))
        assert found["mean"]["dice"] > speckled + 0.005
        predict(PredictRequest(checkpoint, Path(result["data"]) / "images", tmp_path / "out", "student"))
        for row in found["cases"]:
            mask = read_mask(str(tmp_path / "out" / f"{row['id']}.png")) > 0
            assert mask.sum() == row["counts"][0][0] + row["counts"][0][1]

    def test_several_classes_are_named_by_their_mask_values(self, checkpoint: Path) -> None:
        config = load_checkpoint(checkpoint).config
        three = validate(Config, config | {"data": config["data"] | {"label_values": [0, 200, 100]}})
        target = np.random.default_rng(0).integers(0, 3, (12, 12))
        unscaled = calibration.Calibration(Scaling(1.0, (0.0, 0.0, 0.0)), None, 1, "f1")
        output = (np.eye(3, dtype=np.float32)[target].transpose(2, 0, 1), target)
        ways = calibration._list_cleanings([target], 3)
        _, rows = calibration._choose_cleaning(unscaled, iter([output]), ways, three)
        assert [row["label"] for row in rows] == [200, 100]
        assert _list_probability_suffixes(three.data.label_values) == {"_prob200": 1, "_prob100": 2}
        assert _list_probability_suffixes((0, 255)) == {"_prob": 1}

    def test_masks_without_specks_stay(self, checkpoint: Path, cli: Cli) -> None:
        code, out, err = cli("calibrate", checkpoint, "--which", "student", "--clean")
        assert code == 0, err
        assert "masks: stay as they are; choosing would gain" in out
        kept = json.loads(calibration_path(checkpoint).read_text())
        assert [own["cleaning"] for own in kept.values()] == [[{"least_voxels": 0, "largest": False, "fill": False}]]


class TestWhatIsStored:
    def test_it_is_of_one_network_of_one_state(self, checkpoint: Path) -> None:
        calibrate(CalibrateRequest(checkpoint, "student"))
        said: list[str] = []
        evaluate(EvaluateRequest(checkpoint, which="teacher"), note=said.append)
        assert not any("calibration" in line for line in said)
        evaluate(EvaluateRequest(checkpoint, which="student"), note=said.append)
        assert any("leave it out with --uncalibrated" in line for line in said)
        assert "these cases are those that the calibration was chosen on: the scores are optimistic" in said
        calibrate(CalibrateRequest(checkpoint, "teacher"))
        assert len(json.loads(calibration_path(checkpoint).read_text())) == 2

        changed = load_checkpoint(checkpoint)
        save_checkpoint(Checkpoint(**{**vars(changed), "teacher": changed.student}), checkpoint)
        said.clear()
        uncalibrated = score(checkpoint, calibrated=False)
        result = evaluate(EvaluateRequest(checkpoint, which="student"), note=said.append)
        assert result["pooled"]["f1"] == uncalibrated
        assert any("belongs to another state of net.pt and is not used" in line for line in said)
        calibrate(CalibrateRequest(checkpoint, "student"))
        assert len(json.loads(calibration_path(checkpoint).read_text())) == 1

    @pytest.mark.parametrize("content", ["", "[]", '{"a": {"threshold": 1}}', "\xff"])
    def test_a_damaged_file_is_named(self, checkpoint: Path, content: str) -> None:
        calibration_path(checkpoint).write_text(content, encoding="latin-1")
        with pytest.raises(CheckpointError, match=r"net.calibration.json is damaged"):
            score(checkpoint)
        assert score(checkpoint, calibrated=False) > 0

    def test_a_mean_of_networks_leaves_it_out(self, checkpoint: Path, tmp_path: Path) -> None:
        other = Path(shutil.copy(checkpoint, tmp_path / "other.pt"))
        plain = score(checkpoint)
        calibrate(CalibrateRequest(checkpoint, "student"))
        said: list[str] = []
        request = EvaluateRequest(checkpoint, which="student", more=(other,), ensemble=True)
        assert evaluate(request, note=said.append)["pooled"]["f1"] == plain
        images = Path(evaluate(request)["data"]) / "images"
        predict(PredictRequest(checkpoint, images, tmp_path / "out", "student", more=(other,)), note=said.append)
        assert any("belongs to one network: the mean of 2 does not use it" in line for line in said)


class TestRefusals:
    def test_no_foreground(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        load = CaseStore.load_whole

        def load_empty(self: CaseStore, case_id: str) -> Any:
            case = load(self, case_id)
            return replace(case, target=None if case.target is None else np.zeros_like(case.target))

        monkeypatch.setattr(CaseStore, "load_whole", load_empty)
        with pytest.raises(DataError, match="validation cases hold no foreground: there is nothing to calibrate with"):
            calibrate(CalibrateRequest(checkpoint, "student"))
        assert not calibration_path(checkpoint).exists()

    def test_a_bound_out_of_reach(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Predictor, "__call__", lambda _, image, *__: np.full((2, *image.shape[1:]), 0.5))
        with pytest.raises(DataError, match=r"--for precision=0.9: no threshold has a precision of 0.9: the best one"):
            calibrate(CalibrateRequest(checkpoint, "student", ThresholdRule("precision", 0.9)))

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--for", "dice"), "--for dice: no such rule; give f1, prevalence, precision=0.9 or recall=0.9"),
            (("--for", "precision"), "--for precision: no such rule"),
            (("--for", "f1=0.9"), "--for f1=0.9: no such rule"),
            (("--for", "recall=2"), "--for: '2' must be a number above 0 and below 1; write --for recall=0.9"),
        ],
    )
    def test_rules(self, cli: Cli, checkpoint: Path, words: tuple[str, ...], message: str) -> None:
        assert_refused(cli("calibrate", checkpoint, *words), message)

    def test_evaluate_takes_no_threshold_that_is_none(self, checkpoint: Path) -> None:
        with pytest.raises(ConfigError, match=r"--threshold 2 must be a probability above 0 and below 1"):
            score(checkpoint, threshold=2.0)


@pytest.mark.parametrize(("limit", "expected"), [(200, 100), (101, 100), (100, 100), (99, 99), (20, 20)])
def test_many_classes_are_calibrated_on_a_share_of_the_voxels(
    monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    """All of them as long as there are no more than the limit; else the same share of each case, at random."""
    drawn: list[int] = []

    def count(logs: list[Any], _: object) -> Any:
        drawn.extend(map(len, logs))
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "calibrate_classes", count)
    target = np.arange(10_000).reshape(100, 100) % 3
    probs = np.full((3, 100, 100), 1 / 3, np.float32)
    with pytest.raises(KeyboardInterrupt):
        calibration._calibrate_many(iter([(probs, target)] * 3), min(1.0, limit / 100))
    assert drawn == pytest.approx([100 * expected] * 3, rel=0.15 if expected < 99 else 0.01)
    assert drawn[0] != drawn[1] or expected == 100, "not the same voxels of each case"


def test_three_classes_have_biases_and_no_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLED_VOXELS", 3000)
    write_dataset(tmp_path / "data", "particles", 20)
    for path in sorted((tmp_path / "data" / "masks").iterdir()):
        mask = read_mask(str(path)).astype(np.int64)
        path.unlink()
        write_mask(path, np.where(np.arange(len(mask))[:, None] < len(mask) // 2, 2, 1) * (mask > 0))
    settings = {"split": {"val_fraction": 0.5}, "length": {"steps": 1}}
    train_tiny(tmp_path / "run", tmp_path / "data", settings)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    result = calibrate(CalibrateRequest(checkpoint, "student"))
    assert result["threshold"] is None
    assert len(result["biases"]) == 3
    assert evaluate(EvaluateRequest(checkpoint, which="student"))["pooled"]["f1_macro"] >= 0
    with pytest.raises(ConfigError, match=r"--for prevalence: 3 classes have no threshold"):
        calibrate(CalibrateRequest(checkpoint, "student", ThresholdRule("prevalence")))


def test_the_command_says_what_was_found_and_draws_it(
    cli: Cli, checkpoint: Path, tmp_path: Path, drawn: list[Any]
) -> None:
    code, out, err = cli("calibrate", checkpoint, "--which", "student", "--figure", tmp_path / "a.png")
    assert code == 0, err
    assert "threshold for f1: 0." in out
    assert f"wrote {calibration_path(checkpoint)}" in out
    assert len(drawn[0].axes) == 2
    code, out, _ = cli("calibrate", checkpoint, "--which", "student", "--json")
    assert (code, json.loads(out)["which"]) == (0, "student")
    code, out, err = cli("evaluate", checkpoint, "--which", "student", "--uncalibrated", "--threshold", "0.4")
    assert code == 0, err
    assert "calibration" not in err


@pytest.mark.parametrize("command", ["calibrate", "diagnose", "export N.onnx", "train --labels 5 --bootstrap"])
def test_a_cross_validation_has_no_single_network(cli: Cli, tmp_path: Path, command: str) -> None:
    (tmp_path / "cv").mkdir()
    (tmp_path / "cv" / "cross_validation.json").write_text("{}")
    name, *more = command.replace("N.onnx", str(tmp_path / "n.onnx")).split()
    places = [tmp_path / "cv", *more] if name == "export" else [*more, tmp_path / "cv"]
    assert_refused(cli(name, *places), "is a cross-validation: name one of its folds")
