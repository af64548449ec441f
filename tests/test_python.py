"""The Python functions as a notebook user calls them, on a tiny data set."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY

import ssl_seg
from ssl_seg.errors import ConfigError, DataError, RunDirError, SslSegError
from ssl_seg.report.notebook import Picture, TrainedRun
from ssl_seg.results.evaluation import EvaluateRequest
from ssl_seg.results.evaluation import evaluate as run_evaluation


@pytest.fixture(scope="module")
def run(particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    out = tmp_path_factory.mktemp("runs") / "a"
    return ssl_seg.train(particles_dir, labels=0.5, out=out, method="mean_teacher", settings=TINY)


def read_config(run: TrainedRun) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((run.path / "config.yaml").read_text())
    return loaded


def test_audit(particles_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ssl_seg.audit(str(particles_dir))
    assert result.ok
    assert "24 images, 20 with a mask, 0 faults" in repr(result)
    assert "next: ssl_seg.train(" in repr(result)
    assert capsys.readouterr() == ("", "")


def test_an_audit_names_faults(particles_dir: Path) -> None:
    result = ssl_seg.audit(particles_dir, settings={"data.label_values": [0, 7]})
    assert not result.ok
    assert "\nfault: " in repr(result)
    assert "next: fix the faults" in repr(result)


def test_train(run: TrainedRun) -> None:
    assert (run.ending, run.steps, run.checkpoint.is_file()) == ("finished", 12, True)
    lines = repr(run).splitlines()
    assert lines[0] == f"TrainedRun {run.path}: finished after 12 steps"
    assert lines[1].split() == ["network", "F1", "all-positive", "F1", "margin", "95", "%", "interval"]
    for line, net in zip(lines[2:4], ("student", "teacher"), strict=True):
        scores = run.scores[net]
        assert line.split()[:3] == [net, f"{scores['f1_macro']:.3f}", f"{run.scores['trivial_f1']:.3f}"]
        assert line.endswith("used") == (net == run.scores["selected"]["net"])
    assert f"verdict: {run.verdict.level}" in repr(run)
    assert lines[-1].startswith("next: ")


def test_a_run_of_earlier_is_the_same(run: TrainedRun, tmp_path: Path) -> None:
    loaded = ssl_seg.load_run(str(run.path))
    assert dataclasses.replace(loaded, verdict=run.verdict) == run
    assert (loaded.verdict.codes, loaded.verdict.action) == (run.verdict.codes, run.verdict.action)
    copy = shutil.copytree(run.path, tmp_path / "killed")
    events = copy / "events.jsonl"
    events.write_text("".join(events.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunDirError, match=r"ssl-seg train --resume .*killed"):
        ssl_seg.load_run(copy)


def test_an_interrupted_run_says_how_to_continue(run: TrainedRun) -> None:
    stopped = dataclasses.replace(run, ending="interrupted", scores={})
    assert repr(stopped).endswith(f"next: ssl_seg.train(resume='{run.path}')")


def test_settings_in_every_form_are_the_same(run: TrainedRun, particles_dir: Path, tmp_path: Path) -> None:
    dotted = {f"{section}.{key}": value for section, values in TINY.items() for key, value in values.items()}
    steps = np.int64(dotted.pop("length.steps"))
    dotted["data.patch_size"] = np.array(dotted["data.patch_size"])
    other = ssl_seg.train(particles_dir, labels=0.5, out=tmp_path / "b", method="mean_teacher", steps=steps, **dotted)
    assert read_config(other) == read_config(run)
    assert other.scores == run.scores


def test_evaluate_and_predict_take_the_directory_of_a_run(
    run: TrainedRun, particles_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = ssl_seg.evaluate(str(run.path))
    assert result.record == run_evaluation(EvaluateRequest(run.checkpoint))
    assert set(result.networks) == {"student", "teacher"}
    assert result.f1 == result.networks[result.record["which"]]["pooled"]["f1_macro"]
    assert f"{result.margin:.3f}" in repr(result)
    assert f"{len(result.cases)} cases" in repr(result)
    used = [line.split()[0] for line in repr(result).splitlines() if line.endswith("used")]
    assert used == [result.record["which"]] == [run.scores["selected"]["net"]]

    written = ssl_seg.predict(run, particles_dir / "images", tmp_path / "masks")  # a run stands for its directory
    assert sorted(written.masks) == sorted((tmp_path / "masks").glob("*.png"))
    assert f"wrote {len(written.masks)} to" in repr(written)
    again = ssl_seg.predict(run.path, particles_dir / "images", tmp_path / "masks")
    assert (again.masks, ["are kept" in text for text in again.notes].count(True)) == ((), 1)
    assert "are kept" in repr(again)
    assert capsys.readouterr() == ("", "")


def test_several_networks_are_compared(run: TrainedRun) -> None:
    result = ssl_seg.evaluate([run, run.path / "checkpoints" / "last.pt"], ensemble=True)
    assert len(result.networks) == 3
    assert "ensemble: mean of 2" in repr(result)
    head, first, *others = [line.split() for line in repr(result).splitlines()[1:5]]
    assert head[-7:] == ["to", "the", "first", "its", "95", "%", "interval"]
    assert first[-2:] == ["-", "-"]
    assert f"{result.record['rows'][1]['difference']['f1']:+.3f}" in others[0]


def test_bootstrap_from_a_run_with_a_number_of_labels_and_with_progress(
    run: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child = ssl_seg.train(labels=8, bootstrap=run, out=tmp_path / "c", force=True, progress=True)
    assert read_config(child)["split"]["labels"] == 8
    assert "step    12" in capsys.readouterr().out


def test_pretrain(particles_dir: Path, tmp_path: Path) -> None:
    first = ssl_seg.pretrain(
        particles_dir, out=tmp_path / "p", steps=2, settings={k: v for k, v in TINY.items() if k != "length"}
    )
    assert f"PretrainedRun {tmp_path / 'p'}: finished after 2 steps" in repr(first)
    assert "error on hidden voxels" in repr(first)
    assert f"next: ssl_seg.train(pretrained='{tmp_path / 'p'}')" in repr(first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": 0.1}, r"label=0\.1: no such argument or setting \(did you mean 'labels'\?\)"),
        ({"optim.lrr": 0.1}, r"optim\.lrr.*did you mean.*lr"),
        ({"settings": {"optim": {"lrr": 0.1}}}, r"optim\.lrr.*did you mean.*lr"),
        ({"labels": 1}, "labels"),
        ({"steps": 5, "epochs": 2}, "both give the length"),
        ({"resume": "nowhere"}, "nowhere"),
        ({"bootstrap": "nowhere"}, "nowhere"),
        ({"config": "nowhere"}, "no configuration file 'nowhere'"),
        ({"minutes": "long"}, "minutes = 'long': input should be a valid number"),
        ({"out": 5}, "out = 5: a path is needed"),
        ({"settings": "optim.lr=1"}, "a mapping is needed"),
        ({"settings": {1: 2}}, "1: unknown key"),
    ],
)
def test_errors_are_of_the_package_and_never_end_the_process(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SslSegError, match=message):
        ssl_seg.train(particles_dir, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_wrong_values_are_named_before_anything_is_done(run: TrainedRun, particles_dir: Path, tmp_path: Path) -> None:
    def predict(**more: Any) -> object:
        return ssl_seg.predict(run, particles_dir / "images", tmp_path / "out", **more)

    opened = set(particles_dir.glob(".ssl_seg/openings/*"))  # by other tests
    part: Any = "valid"
    array: Any = np.zeros((4, 4))
    for call, message in (
        (lambda: ssl_seg.evaluate(run, part=part), "part = 'valid': input should be 'val', 'test' or 'all'"),
        (lambda: ssl_seg.evaluate([]), "the list is empty"),
        (lambda: ssl_seg.train(array), r"data is a ndarray, and must be a path: np\.save"),
        (lambda: ssl_seg.predict(run, array, tmp_path / "out"), "images is a ndarray"),
        (lambda: ssl_seg.train(""), "data is empty, and must be a path"),
        (lambda: predict(workers=1.5), r"workers = 1\.5: input should be a valid integer"),
        (lambda: predict(spacing="1,1"), "spacing = '1,1': a list is needed"),
        (lambda: predict(threshold="high"), "threshold = 'high'"),
        (lambda: predict(overlap=1), "overlap = 1.0 must be from 0 to below 1"),
        (lambda: predict(format="jpg"), "--format jpg: masks are written as .png"),
    ):
        with pytest.raises(SslSegError, match=message):
            call()
    assert not (tmp_path / "out").exists()
    assert set(particles_dir.glob(".ssl_seg/openings/*")) == opened  # above all the sealed test list


def test_what_predict_writes(run: TrainedRun, particles_dir: Path, tmp_path: Path) -> None:
    image = sorted((particles_dir / "images").iterdir())[0]
    masks = ssl_seg.predict(
        run, image, tmp_path, format="npy", probabilities=True, objects=True, threshold=np.float32(0.25)
    )
    (mask,) = masks.masks
    foreground = np.load(tmp_path / f"{mask.stem}_prob.npy") > 0.25
    np.testing.assert_array_equal(np.load(mask) > 0, foreground)
    np.testing.assert_array_equal(np.load(tmp_path / f"{mask.stem}_objects.npy") > 0, foreground)


def test_what_the_caller_has_set_changes_nothing(run: TrainedRun, tmp_path: Path) -> None:
    expected = ssl_seg.evaluate(run).record
    plain = run.plot().png
    try:
        torch.set_default_dtype(torch.float64)
        with np.errstate(all="raise"), torch.device("meta"), torch.inference_mode():
            assert ssl_seg.evaluate(run).record == expected
            with matplotlib.rc_context({"axes.facecolor": "black", "figure.dpi": 30}):
                assert run.plot().png == plain
                assert matplotlib.rcParams["axes.facecolor"] == "black"
            ssl_seg.train(bootstrap=run, labels=8, steps=1, out=tmp_path / "c", force=True)
            assert (np.geterr()["under"], torch.get_default_device().type) == ("raise", "meta")
            assert torch.get_default_dtype() == torch.float64
            assert torch.is_inference_mode_enabled()
    finally:
        torch.set_default_dtype(torch.float32)


def test_splits_take_paths_as_text(particles_dir: Path, tmp_path: Path) -> None:
    split = ssl_seg.make_split(ssl_seg.open_catalog(particles_dir), [0.5])
    ssl_seg.save_split(split, f"{tmp_path}/split.yaml")
    assert ssl_seg.load_split(f"{tmp_path}/split.yaml") == split


def test_wrong_places(run: TrainedRun, tmp_path: Path) -> None:
    for call in (
        lambda: ssl_seg.audit(tmp_path / "nowhere"),
        lambda: ssl_seg.train(tmp_path / "nowhere"),
        lambda: ssl_seg.evaluate(tmp_path / "nowhere"),
        lambda: ssl_seg.predict(run.path, tmp_path / "nowhere", tmp_path / "masks"),
    ):
        with pytest.raises(SslSegError, match="nowhere"):
            call()
    with pytest.raises(ConfigError, match="this command does not look at it"):
        ssl_seg.evaluate(run.path, settings={"optim.lr": 1})


class TestPictures:
    def read(self, picture: Picture, folder: Path) -> np.ndarray[Any, Any]:
        return np.asarray(cv2.imread(str(picture.save(folder / "picture.png"))))

    def test_of_a_run(self, run: TrainedRun, tmp_path: Path) -> None:
        curves = self.read(run.plot(), tmp_path)
        assert curves.std() > 10
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
        with pytest.raises(SslSegError):
            dataclasses.replace(run, path=tmp_path / "empty").plot()

    def test_of_a_case(self, run: TrainedRun, tmp_path: Path) -> None:
        evaluation = ssl_seg.evaluate(run.path)
        first, second = (str(case["id"]) for case in evaluation.cases[:2])
        assert evaluation.show(first).png == evaluation.show(first).png != evaluation.show(second).png
        assert self.read(evaluation.show(first), tmp_path).std() > 10
        with pytest.raises(ConfigError, match=f"case 'nothing' is none of those that were scored, {first}, {second}"):
            evaluation.show("nothing")
        several = ssl_seg.evaluate([run.path, run.path / "checkpoints" / "last.pt"])
        folds = dataclasses.replace(evaluation, record={**evaluation.record, "folds": []})
        for result in (several, folds):
            with pytest.raises(ConfigError, match="of the scores of one checkpoint"):
                result.show(first)

    def test_of_masks(self, run: TrainedRun, particles_dir: Path, tmp_path: Path) -> None:
        masks = ssl_seg.predict(run.path, particles_dir / "images", tmp_path / "masks")
        assert self.read(masks.show(), tmp_path).std() > 10
        again = ssl_seg.predict(run.path, particles_dir / "images", tmp_path / "masks")
        assert again.masks == ()
        assert again.show().png == masks.show().png  # those that were kept count
        shutil.rmtree(tmp_path / "masks")
        with pytest.raises(DataError, match=r"no mask of .*images is in .*masks"):
            masks.show()

    def test_is_written_once_and_as_png(self, tmp_path: Path) -> None:
        picture = Picture(b"png")
        assert picture._repr_png_() == b"png"
        with pytest.raises(DataError, match=r"a\.jpg: a picture is written as \.png"):
            picture.save(tmp_path / "a.jpg")
        with pytest.raises(DataError, match="No such file"):
            picture.save(tmp_path / "none" / "a.png")
        assert picture.save(str(tmp_path / "a.png")).read_bytes() == b"png"
        with pytest.raises(DataError, match="File exists"):
            picture.save(tmp_path / "a.png")
