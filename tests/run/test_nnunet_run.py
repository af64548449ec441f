"""Two-channel volumes with anisotropic voxels, from an nnU-Net folder to scores in millimeters and masks in place."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import train_tiny

from ssl_seg.data.synthetic import generate
from ssl_seg.errors import DataError
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict

SPACING = (3.0, 1.0, 1.0)
AFFINE = np.array([[1.0, 0, 0, -7], [0, 1, 0, 11], [0, 0, 3, 2], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, AFFINE), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nnunet") / "Dataset001"
    for n in range(7):
        image, mask = (array[::2, :48, :40] for array in generate("sheets", n))
        part, name = ("imagesTs", f"new{n}") if n == 6 else ("imagesTr", f"case{n}")
        save(root / part / f"{name}_0000.nii.gz", image)
        save(root / part / f"{name}_0001.nii.gz", 255 - image)
        if n < 6:
            save(root / "labelsTr" / f"{name}.nii.gz", np.where(image > 215, 2, mask).astype(np.uint8))
    description = {"sheet": 1, "background": 0, "ignore": 2}
    text = {"channel_names": {"0": "CT", "1": "inverse"}, "labels": description, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(text))
    return root


@pytest.fixture(scope="module")
def checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "data": {"patch_size": [16, 16, 32], "resample_to": [2.0, 1.0, 1.0]},
        "length": {"steps": 3},
        "split": {"test_fraction": 0.2},
    }
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", folder, settings).run.best


def test_what_dataset_json_says_is_in_the_configuration(checkpoint: Path) -> None:
    config = (checkpoint.parents[1] / "config.yaml").read_text()
    for text in ("layout: nnunet", "ignore_value: 2", "channels: 2", "label_values: [0, 1]"):
        assert text in config


def test_distances_are_in_millimeters(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from ssl_seg.inference import scoring

    real = scoring.compute_surface_distances
    monkeypatch.setattr(
        scoring, "compute_surface_distances", lambda pred, truth, unit: seen.append(unit) or real(pred, truth, unit)
    )
    result = evaluate(EvaluateRequest(checkpoint))
    assert seen
    assert set(seen) == {SPACING}
    assert all(row["prevalence"] > 0 for row in result["cases"])


def test_masks_lie_where_the_images_do(checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    request = PredictRequest(checkpoint, folder / "imagesTs", tmp_path / "out", probabilities=True)
    (written,) = predict(request)
    assert written == tmp_path / "out" / "new6.nii.gz"
    mask, image = nib.load(written), nib.load(folder / "imagesTs" / "new6_0000.nii.gz")
    np.testing.assert_allclose(mask.affine, image.affine)
    assert mask.shape == image.shape
    assert set(np.unique(np.asarray(mask.dataobj)).tolist()) <= {0, 1}
    assert nib.load(tmp_path / "out" / "new6_prob.nii.gz").shape == image.shape


@pytest.fixture(scope="module")
def turned(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same places in the world; each file is stored along other axes."""
    root, rng = tmp_path_factory.mktemp("turned") / "Dataset001", np.random.default_rng(3)
    for path in folder.rglob("*"):
        target = root / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name == "dataset.json":
            target.write_text(path.read_text())
        elif path.suffix == ".gz":
            axes = np.column_stack([rng.permutation(3), rng.choice([1, -1], 3)])
            nib.save(nib.load(path).as_reoriented(axes), target)
    return root


def test_other_axes_of_the_files_change_no_score(checkpoint: Path, folder: Path, turned: Path) -> None:
    here, there = (evaluate(EvaluateRequest(checkpoint, data=str(root))) for root in (folder, turned))
    assert there["cases"] == here["cases"]
    assert here["cases"]


def test_a_world_point_stays_a_world_point(checkpoint: Path, folder: Path, turned: Path, tmp_path: Path) -> None:
    written = []
    for name, root in (("ras", folder), ("turned", turned)):
        predict(PredictRequest(checkpoint, root / "imagesTs", tmp_path / name, probabilities=True))
        image = nib.load(root / "imagesTs" / "new6_0000.nii.gz")
        for kind in ("", "_prob"):
            result = nib.load(tmp_path / name / f"new6{kind}.nii.gz")
            np.testing.assert_array_equal(result.affine, image.affine)
            assert result.shape == image.shape
            written.append(np.asarray(nib.as_closest_canonical(result).dataobj))
    np.testing.assert_array_equal(written[0], written[2])
    np.testing.assert_array_equal(written[1], written[3])
    assert np.ptp(written[1]) > 0


def test_an_image_without_voxel_size_needs_one(checkpoint: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 255, (2, 16, 20, 20)).astype(np.uint8))
    with pytest.raises(DataError, match="--spacing"):
        predict(PredictRequest(checkpoint, tmp_path / "a.npy", tmp_path / "out"))
    (written,) = predict(PredictRequest(checkpoint, tmp_path / "a.npy", tmp_path / "out", spacing=SPACING))
    assert written.name == "a.tif"
