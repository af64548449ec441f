"""Networks in files that run without this package."""

from __future__ import annotations

import hashlib
import io
import json
import re
import resource
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Cli, train_tiny

from ssl_seg.cli.export import _describe_images
from ssl_seg.config import PredictionConfig
from ssl_seg.data.views.transforms import normalize
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.inference.calibration import Calibration, decide, save_calibration
from ssl_seg.inference.decision import Cleaning
from ssl_seg.inference.model import open_model
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results import export as module
from ssl_seg.results.bioimage import make_package
from ssl_seg.results.export import ExportRequest, export, find_network_threshold
from ssl_seg.scores.calibration import Scaling

DOC = Path(__file__).parents[2] / "docs" / "export.md"
BEST = Path("checkpoints") / "best.pt"


@pytest.fixture(scope="module")
def volume_run(sheets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a network for volumes, with a window."""
    data = {"patch_size": [16, 32, 32], "window": [10.0, 200.0]}
    settings = {"data": data, "split": {"labels": 0.5}, "length": {"steps": 2}}
    return train_tiny(tmp_path_factory.mktemp("volume") / "run", sheets_dir, settings).run.best


def change_data(checkpoint: Path, path: Path, **settings: Any) -> Path:
    """Write a checkpoint with other settings of its data section."""
    loaded = load_checkpoint(checkpoint)
    config = {**loaded.config, "data": {**loaded.config["data"], **settings}}
    save_checkpoint(replace(loaded, config=config), path)
    return path


def read_about(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        onnx = pytest.importorskip("onnx")
        return json.loads({p.key: p.value for p in onnx.load(str(path)).metadata_props}["ssl_seg"])
    if path.suffix == ".zip":
        about: dict[str, Any] = yaml.safe_load(zipfile.ZipFile(path).read("rdf.yaml"))["config"]["ssl_seg"]
        return about
    extra = {"ssl_seg.json": ""}
    if path.suffix == ".ts":
        torch.jit.load(str(path), _extra_files=extra)
    else:
        torch.export.load(str(path), extra_files=extra)
    return json.loads(extra["ssl_seg.json"])


@pytest.mark.parametrize("suffix", [".onnx", ".ts", ".pt2", ".zip"])
def test_the_file_computes_what_the_network_does_and_says_how_to_feed_it(
    suffix: str, tiny_run: Path, tmp_path: Path
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    result = export(ExportRequest(tiny_run / BEST, tmp_path / f"net{suffix}", "teacher"))
    assert result["difference"] < 1e-5
    assert len(result["compared_on"]) == 3
    about = read_about(tmp_path / f"net{suffix}")
    assert about == {k: v for k, v in result.items() if k not in ("output", "difference", "compared_on")}
    assert about["normalization"] == {"name": "zscore"}
    assert (about["patch_size"], about["threshold"], about["which"]) == ([32, 32], 0.5, "teacher")
    # Independent of what the export compares: another batch, and the probabilities of the network itself.
    run = module.READERS[suffix](tmp_path / f"net{suffix}")
    images = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        expected = open_model(tiny_run / BEST).nets["teacher"](images).softmax(1)
    assert torch.allclose(run(images), expected, atol=1e-5)


@pytest.mark.parametrize("window", [None, [10.0, 200.0]])
def test_a_package_holds_test_data_that_its_normalization_and_network_reproduce(
    window: list[float] | None, volume_run: Path, tmp_path: Path
) -> None:
    checkpoint = change_data(volume_run, tmp_path / "net.pt", window=window)
    export(ExportRequest(checkpoint, tmp_path / "net.zip", "student"))
    package = zipfile.ZipFile(tmp_path / "net.zip")
    about = yaml.safe_load(package.read("rdf.yaml"))
    (taken,), (given,) = about["inputs"], about["outputs"]
    for part in (taken["test_tensor"], given["test_tensor"], about["documentation"], about["weights"]["torchscript"]):
        assert hashlib.sha256(package.read(part["source"])).hexdigest() == part["sha256"]
    image, expected = (
        np.load(io.BytesIO(package.read(tensor["test_tensor"]["source"]))).astype(np.float64)
        for tensor in (taken, given)
    )
    for step in taken["preprocessing"]:  # by the words of the specification
        own = step["kwargs"]
        if step["id"] == "clip":
            image = np.clip(image, own["min"], own["max"])
        elif step["id"] == "fixed_zero_mean_unit_variance":
            image = (image - own["mean"]) / own["std"]
        elif step["id"] == "zero_mean_unit_variance":
            assert own["axes"] == ["z", "y", "x"]
            image = (image - image.mean((2, 3, 4))) / (image.std((2, 3, 4)) + own["eps"])
    network = open_model(checkpoint).nets["student"]
    with torch.no_grad():
        found = network(torch.from_numpy(image.astype(np.float32))).softmax(1).numpy()
    assert found == pytest.approx(expected, abs=1e-5)
    assert expected.shape == (1, 2, 16, 32, 32)
    assert [axis.get("id", axis["type"]) for axis in taken["axes"]] == ["batch", "channel", "z", "y", "x"]
    assert given["axes"][1]["channel_names"] == ["class0", "class1"]


@pytest.mark.parametrize(
    ("task", "size", "said"),
    [
        ("semantic", None, "each class: 0, 7 (values of the masks in training). Foreground"),
        ("instances", [2.0, 1.0], "Resample images to voxels of 2.0 x 1.0 before.\nThe output has the probability of "
         "each class: background, inside and boundary of objects."),
    ],
)  # fmt: skip
def test_a_package_says_what_its_classes_are(task: str, size: list[float] | None, said: str) -> None:
    about = {
        "ndim": 2, "channels": 1, "patch_size": [8, 8], "divisor": [4, 4], "label_values": [0, 7], "network": "unet",
        "threshold": 0.5, "normalization": {"name": "zscore"}, "voxel_size": size, "task": task,
    }  # fmt: skip
    content = make_package(torch.nn.Identity(), torch.zeros(1, 1, 8, 8), b"", about)
    assert said in zipfile.ZipFile(io.BytesIO(content)).read("README.md").decode()


def test_a_package_passes_the_check_of_its_makers(tiny_run: Path, tmp_path: Path) -> None:
    core = pytest.importorskip("bioimageio.core", reason="needs bioimageio.core, which wants an older pydantic")
    export(ExportRequest(tiny_run / BEST, tmp_path / "net.zip", "student"))
    assert core.test_model(tmp_path / "net.zip").status == "passed"


@pytest.mark.parametrize(("images", "suffix"), [(1, ".pt2"), (4, ".ts")])
def test_any_number_of_validation_images_will_do(
    images: int, suffix: str, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMAGES", images)
    result = export(ExportRequest(tiny_run / BEST, tmp_path / f"net{suffix}", "student"))
    assert len(result["compared_on"]) == min(images, 3)  # the run has three
    assert module.READERS[suffix](tmp_path / f"net{suffix}")(torch.randn(5, 1, 32, 32)).shape == (5, 2, 32, 32)


@pytest.mark.parametrize(("shape", "factor"), [((20, 45), 1), ((32, 32), 2), ((75, 100), 2)])
def test_the_example_of_the_documentation_predicts_as_predict_does(
    shape: tuple[int, int], factor: int, tiny_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    (code,) = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    loaded, checkpoint = load_checkpoint(tiny_run / BEST), tmp_path / "net.pt"
    selected = {**loaded.scores["selected"], "window_factor": factor}
    save_checkpoint(replace(loaded, scores={**loaded.scores, "selected": selected}), checkpoint)
    export(ExportRequest(checkpoint, tmp_path / "net.onnx", "student"))
    image = np.random.default_rng(0).normal(40, 9, (1, *shape))
    image[:, :10, :20] += 60
    expected = open_model(checkpoint).predictor("student")(image)
    assert np.abs(space["predict"](str(tmp_path / "net.onnx"), image) - expected).max() < 1e-5
    assert np.isfinite(space["predict"](str(tmp_path / "net.onnx"), np.zeros((1, 40, 40)))).all()  # no contrast at all


def test_a_volume_and_windowed_intensities(cli: Cli, volume_run: Path, tmp_path: Path) -> None:
    result = export(ExportRequest(volume_run, tmp_path / "net.ts"))
    normal = result["normalization"]
    assert (normal["name"], normal["low"], normal["high"]) == ("window", 10.0, 200.0)
    values = np.array([[[[0.0, 10.0, 105.0, 200.0, 300.0]]]])
    seen = normalize(values, open_model(volume_run).config.data.window)
    told = (values.clip(normal["low"], normal["high"]) - normal["mean"]) / normal["std"]
    assert np.allclose(seen, told, atol=1e-6)
    _, out, _ = cli("export", volume_run, tmp_path / "net.ts", "--overwrite")
    assert "images: clipped to 10 .. 200, windows of 16x32x32" in out.replace("\n", " ")
    assert _describe_images({**result, "voxel_size": [2.5, 1.0, 1.0]}).startswith(
        "images: resampled to voxels of 2.5 x 1 x 1, clipped"
    )


def test_the_threshold_of_the_file_is_that_of_calibrated_probabilities() -> None:
    calibration = Calibration(Scaling(1.7, (0.0, -0.6)), 0.4, 20, "f1")
    probs = np.random.default_rng(0).random(1000)
    both = np.stack([1 - probs, probs])
    expected = decide(None, calibration, PredictionConfig())(calibration.scaling.apply(both)) > 0
    cut = find_network_threshold(0.4, calibration, 2)
    assert cut is not None
    assert np.array_equal(probs > cut, expected)
    assert find_network_threshold(None, None, 2) == 0.5
    assert find_network_threshold(None, calibration, 3) is None


def test_what_is_done_to_masks_is_told(tiny_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "best.pt"
    run.write_bytes((tiny_run / BEST).read_bytes())
    model = open_model(run)
    save_calibration(model, "student", Calibration(Scaling(2.0, (0.0, 0.5)), None, 9, "f1", (Cleaning(fill=True),)))
    notes: list[str] = []
    result = export(ExportRequest(run, tmp_path / "a.ts", "student"), notes.append)
    assert (result["temperature"], result["biases"]) == (2.0, [0.0, 0.5])
    assert result["cleaning"] == [{"least_voxels": 0, "largest": False, "fill": True}]
    assert any("cleaning of masks is not part of the network" in text for text in notes)
    plain = export(ExportRequest(run, tmp_path / "b.ts", "student", calibrated=False))
    assert (plain["temperature"], plain["cleaning"], plain["threshold"]) == (1.0, [], 0.5)


def test_a_file_that_computes_something_else_is_not_written(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = module.READERS[".ts"]
    monkeypatch.setitem(module.READERS, ".ts", lambda path: lambda image: read(path)(image) + 0.01)
    with pytest.raises(DataError, match=r"differ from those of the network by up to 0\.01"):
        export(ExportRequest(tiny_run / BEST, tmp_path / "net.ts"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tiny_run: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written \(File too large\)\. Free some space"):
            export(ExportRequest(tiny_run / BEST, tmp_path / "net.ts"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_without_images_random_numbers_are_compared(tmp_path: Path, tiny_run: Path) -> None:
    checkpoint = change_data(tiny_run / BEST, tmp_path / "net.pt", root=str(tmp_path / "gone"))
    notes: list[str] = []
    result = export(ExportRequest(checkpoint, tmp_path / "net.ts"), notes.append)
    assert result["compared_on"] == []
    assert any("compared on random numbers" in text for text in notes)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("net.pth", r"net\.pth: the suffix says the format: \.onnx"),
        ("none/net.ts", r"there is no folder .*none"),
        ("folder.ts", r"folder\.ts cannot be written: it is a folder"),
        ("file/net.ts", r"net\.ts cannot be written: .*file is a file"),
    ],
)
def test_what_cannot_be_written_is_refused(name: str, message: str, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.ts").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        export(ExportRequest(tiny_run / BEST, tmp_path / name))


def test_a_file_that_exists_is_replaced_only_when_asked(tiny_run: Path, tmp_path: Path) -> None:
    request = ExportRequest(tiny_run / BEST, tmp_path / "net.ts")
    request.output.write_text("mine")
    with pytest.raises(ConfigError, match=r"net\.ts exists already: choose another name, or replace it with --overw"):
        export(request)
    assert request.output.read_text() == "mine"
    export(replace(request, overwrite=True))
    assert request.output.stat().st_size > 100


def test_without_onnx_it_says_what_to_install(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"needs onnx, which is not installed: pip install 'ssl-seg\[onnx\]'"):
        export(ExportRequest(tiny_run / BEST, tmp_path / "net.onnx"))


def test_command(cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
    code, out, _ = cli("export", tiny_run, tmp_path / "net.ts")
    assert code == 0
    assert re.search(r"wrote .*net\.ts: TorchScript, \w+ of step \d+; on 3 validation images", out.replace("\n", " "))
    longest = 32 * open_model(tiny_run / BEST).window_factor
    windows = {32: "32x32", 64: "32x32 to 64x64"}[longest]
    assert f"images: z-scores of each channel, windows of {windows}, foreground above 0.500" in out.replace("\n", " ")
    code, out, _ = cli("export", tiny_run, tmp_path / "net.ts", "--json", "--overwrite")
    assert json.loads(out)["patch_size"] == [32, 32]
    assert json.loads(out)["longest_window"] == [longest, longest]
