"""One data set in several forms: the split and the batches must not depend on how the files lie on disk."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from numpy.typing import NDArray

from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.store import CaseStore
from ssl_seg.data.synthetic import generate

COUNT, LABELED = 10, 8
Pair = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]


def pairs(kind: str) -> dict[str, Pair]:
    """Images with masks, the last two without."""
    made = {f"{n:04d}": generate(kind, n) for n in range(COUNT)}
    return {name: (image, mask if int(name) < LABELED else None) for name, (image, mask) in made.items()}


def write_png(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


def write_nifti(path: Path, array: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array.T, np.eye(4)), path)


def folder_pair(root: Path, cases: dict[str, Pair]) -> Path:
    for name, (image, mask) in cases.items():
        write_png(root / "images" / f"{name}.png", image)
        if mask is not None:
            write_png(root / "masks" / f"{name}.png", mask)
    return root


def suffix_pair(root: Path, cases: dict[str, Pair]) -> Path:
    for name, (image, mask) in cases.items():
        write_png(root / f"{name}.png", image)
        if mask is not None:
            write_png(root / f"{name}_mask.png", mask)
    return root


def manifest_rows(root: Path, cases: dict[str, Pair]) -> list[dict[str, str]]:
    folder_pair(root / "files", cases)
    return [
        {
            "id": name,
            "image": f"files/images/{name}.png",
            "mask": "" if mask is None else f"files/masks/{name}.png",
            "has_segmentation": "false" if mask is None else "true",
        }
        for name, (_, mask) in cases.items()
    ]


def csv_manifest(root: Path, cases: dict[str, Pair]) -> Path:
    rows = manifest_rows(root, cases)
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(reversed(rows))
    return root / "train.csv"


def parquet_manifest(root: Path, cases: dict[str, Pair]) -> Path:
    rows = [{**row, "has_segmentation": row["has_segmentation"] == "true"} for row in manifest_rows(root, cases)]
    pq.write_table(pa.Table.from_pylist(rows), root / "train.parquet")
    return root / "train.parquet"


def nnunet_png(root: Path, cases: dict[str, Pair]) -> Path:
    return _nnunet(root, cases, ".png", write_png)


def nnunet_nifti(root: Path, cases: dict[str, Pair]) -> Path:
    return _nnunet(root, cases, ".nii.gz", write_nifti)


def _nnunet(root: Path, cases: dict[str, Pair], ending: str, write: Callable[[Path, NDArray[np.uint8]], None]) -> Path:
    for name, (image, mask) in cases.items():
        write(root / "imagesTr" / f"{name}_0000{ending}", image)
        if mask is not None:
            write(root / "labelsTr" / f"{name}{ending}", mask)
    text = {"channel_names": {"0": "gray"}, "labels": {"background": 0, "thing": 1}, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(text))
    return root


def hdf5_files(root: Path, cases: dict[str, Pair]) -> Path:
    root.mkdir(parents=True)
    for name, (image, mask) in cases.items():
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["image"] = image
            if mask is not None:
                file["label"] = mask
    (root / "train.list").write_text("\n".join(reversed(list(cases))))
    return root


def zarr_stores(root: Path, cases: dict[str, Pair]) -> Path:
    for name, (image, mask) in cases.items():
        for folder, array in (("images", image), ("masks", mask)):
            if array is not None:
                zarr.create_array(str(root / folder / f"{name}.zarr"), data=array, chunks=(16,) * array.ndim)
    return root


Writer = Callable[[Path, dict[str, Pair]], Path]
FORMS_2D = (folder_pair, suffix_pair, csv_manifest, parquet_manifest, nnunet_png, hdf5_files, zarr_stores)
FORMS_3D = (nnunet_nifti, hdf5_files, zarr_stores)
LAYOUT = {
    folder_pair: "folders",
    suffix_pair: "suffix",
    csv_manifest: "manifest",
    parquet_manifest: "manifest",
    nnunet_png: "nnunet",
    nnunet_nifti: "nnunet",
    hdf5_files: "hdf5",
    zarr_stores: "folders",
}


@pytest.mark.parametrize(
    ("kind", "forms", "patch"),
    [("particles", FORMS_2D, (32, 32)), ("sheets", FORMS_3D, (16, 16, 32))],
    ids=["2D", "3D"],
)
def test_split_and_batches_are_those_of_the_arrays(
    kind: str, forms: tuple[Writer, ...], patch: tuple[int, ...], tmp_path: Path
) -> None:
    cases = pairs(kind)
    reference = None
    for write in forms:
        catalog = open_catalog(str(write(tmp_path / write.__name__, cases)))
        assert catalog.layout == LAYOUT[write]
        split = make_split(catalog, [0.5])
        source = PatchSource(CaseStore(catalog, 1), split.labeled_ids(0.5), split.pool_ids(0.5), (2, 2), patch, 0.5)
        batches = [source[step] for step in range(3)]
        found = split.fingerprint, [(b.image.tolist(), b.target.tolist(), b.weak.tolist()) for b in batches]
        reference = reference or found
        assert found == reference, write.__name__
        assert not torch.equal(batches[0].image, batches[1].image)
        assert all((batch.target > 0).any() for batch in batches)
