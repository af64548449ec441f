"""A data set through audit, split, training, evaluation and prediction, and what must hold whatever is in it."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
import tifffile
import yaml
from numpy.typing import NDArray

from fuzz.datasets import IGNORED, DataSet, make_dataset
from ssl_seg.cli.main import main
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.errors import SslSegError
from ssl_seg.labels import Meaning

DONE, USER_ERROR, REFUSED = 0, 2, 3

TINY = (
    "network.name=basic_unet", "network.features=4", "batch.labeled=2", "optim.lr=0.01", "length.steps=3",
    "monitor.probe_patches=6", "monitor.train_probe_patches=2", "runtime.precision=fp32",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    command: tuple[str, ...]
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Result:
    """What one seed gave: faults, empty where all holds; how far it came; what was said where it was refused."""

    seed: int
    traits: tuple[str, ...]
    faults: tuple[str, ...]
    came_to: str
    said: str = ""


def call(*arguments: object) -> Outcome:
    """Run the command line in this process."""
    command = tuple(map(str, arguments))
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["ssl-seg", *command]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except Exception:  # noqa: BLE001 - whatever it is, it is a fault to report
        code = 1
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return Outcome(command, code, out.getvalue(), err.getvalue())


def check_seed(seed: int, folder: Path) -> Result:
    """Make the data set of a seed in ``folder`` and take it through the commands."""
    data = make_dataset(seed, folder)
    steps = check_dataset(data, folder)
    came_to = said = ""
    faults: list[str] = []
    for step in steps:
        if isinstance(step, str):
            faults.append(step)
        else:
            came_to, said = step
    return Result(seed, data.traits, tuple(faults), came_to, said)


def check_dataset(data: DataSet, folder: Path) -> Iterator[str | tuple[str, str]]:
    """Yield faults (text), and (stage, what was said) for each stage that is done or where it was refused."""
    given = [option for setting in data.settings for option in ("--set", setting)]
    yield from check_reading(data)

    audit = call("data", "audit", data.root, "--json", *given)
    yield from check_end(audit, allowed=(DONE, USER_ERROR, REFUSED))
    if audit.out:
        yield from check_audit(data, json.loads(audit.out))
    yield "audit", ""

    split = folder / "split.yaml"
    made = call("split", "make", "--data", data.root, "--out", split, "--labels", "0.5", "1.0", *given)
    if (yield from stopped(data, made, "split")):
        return
    yield from check_split(data, yaml.safe_load(split.read_text()))

    patch = [32, 32] if data.ndim == 2 else [16, 16, 32]
    settings = [*TINY, f"data.patch_size={patch}", *data.settings]
    options = [option for setting in settings for option in ("--set", setting)]
    run = folder / "run"
    trained = call(
        "train", "--data", data.root, "--split", split, "--labels", "0.5", "--out", run, "--allow-split", *options
    )
    if (yield from stopped(data, trained, "train")):
        return

    evaluated = call("evaluate", run, "--json")
    if (yield from stopped(data, evaluated, "evaluate")):
        return
    predicted = call("predict", run, data.images, folder / "masks of the network")
    if (yield from stopped(data, predicted, "predict")):
        return
    yield from check_masks(data, folder / "masks of the network", json.loads(evaluated.out))
    yield "end", ""


def check_end(outcome: Outcome, allowed: tuple[int, ...]) -> Iterator[str]:
    """A command ends with one of its codes, and an error is one message without a traceback."""
    said = f"`{' '.join(outcome.command[:2])}` ended with {outcome.code}: {outcome.err[-1500:]}"
    if "Traceback" in outcome.err or outcome.code not in allowed:
        yield said
    elif outcome.code == USER_ERROR and outcome.err.count("ssl-seg: error:") != 1 and "audit" not in outcome.command:
        yield f"not one message: {said}"


def stopped(data: DataSet, outcome: Outcome, stage: str) -> Iterator[Any]:
    """Yield what is wrong with the end of a command; return whether the rest cannot be done."""
    yield from check_end(outcome, (DONE, USER_ERROR, REFUSED))
    if outcome.code == DONE:
        yield stage, ""
        return False
    message = outcome.err.partition("ssl-seg: error:")[2].strip() or outcome.err[-300:]
    if data.is_trainable:
        yield f"`{stage}` refuses data that can be trained (exit code {outcome.code}): {message}"
    yield f"refused at {stage}", message
    return True


def check_reading(data: DataSet) -> Iterator[str]:
    """The library reads the voxels that were written, in one frame, and pairs each image with its mask."""
    ignore = next((int(s.partition("=")[2]) for s in data.settings if "ignore" in s), None)
    values = next((tuple(json.loads(s.partition("=")[2])) for s in data.settings if "label_values" in s), None)
    try:
        catalog = open_catalog(
            str(data.root), CatalogSettings(meaning=Meaning(label_values=values, ignore_value=ignore))
        )
    except SslSegError as error:
        if data.is_trainable:
            yield f"open_catalog: {error}"
        return
    if set(ids := {c.id for c in catalog.cases}) != set(data.cases):
        yield f"cases {sorted(ids ^ set(data.cases))[:4]} are found or missing by mistake"
        return
    for case in catalog.cases:
        truth = data.cases[case.id]
        image = read_image(case.image, *case.more_channels)
        exact = data.ending != ".jpg"
        if image.shape != truth.image.shape or (exact and not np.array_equal(image, truth.image)):
            yield f"image {case.id}: {image.shape} {image.dtype} is not what was written {truth.image.shape}"
        if (case.mask is None) != (truth.classes is None):
            yield f"mask of {case.id}: found {case.mask}"
        elif case.mask is not None and truth.classes is not None:
            numbers = np.array(
                [*catalog.label_values, catalog.ignore_value if catalog.ignore_value is not None else -1]
            )
            semantic = data.mask_kind == "semantic" and len(catalog.label_values) == len(data.label_values)
            if semantic and not np.array_equal(read_mask(case.mask), numbers[truth.classes]):
                yield f"mask of {case.id} is not what was written"


def check_audit(data: DataSet, audit: dict[str, Any]) -> Iterator[str]:
    """The audit counts what is there."""
    summary = audit["summary"]
    counted = (summary["counts"]["images"], summary["counts"]["labeled"])
    if counted != (len(data.cases), len(data.labeled)):
        yield f"audit counts {counted} images and masks, written were {(len(data.cases), len(data.labeled))}"
    if data.mask_kind != "semantic":
        return
    voxels = np.concatenate([m.ravel() for m in data.labeled.values()])
    shares = {value: float((voxels == k).mean()) for k, value in enumerate(data.label_values)}
    counted_shares = {row["value"]: row["share"] for row in summary["mask_values"]}
    for value, share in counted_shares.items():
        if value in shares and abs(shares[value] - share) > 1e-6:
            yield f"audit: {share:.6f} of the voxels have the value {value}, true are {shares[value]:.6f}"


def check_split(data: DataSet, split: dict[str, Any]) -> Iterator[str]:
    """Folders train/, val/ and test/ are the parts; else no copy or group is in two. All scored cases have a mask."""
    fractions = [set(ids) for _, ids in sorted(split["fractions"].items())]
    if not all(small <= large for small, large in itertools.pairwise(fractions)):
        yield "split: a smaller fraction is not part of the next larger one"
    parts = {"train": fractions[-1] | set(split["unlabeled"]), "val": set(split["val"]), "test": set(split["test"])}
    listed = [i for part in parts.values() for i in part]
    if len(listed) != len(set(listed)) or not set(data.labeled) <= set(listed) <= set(data.cases):
        yield f"split: parts overlap, or are not all cases: {sorted(set(listed) ^ set(data.cases))[:4]}"
        return
    if wrong := fractions[-1] - set(data.labeled):
        yield f"split: {sorted(wrong)[:4]} are labeled training cases without a mask"
    if unlabeled := (parts["val"] | parts["test"]) - set(data.labeled):
        yield f"split: {sorted(unlabeled)[:4]} have no mask and are in validation or test"
    part_of = {i: name for name, part in parts.items() for i in part}
    folder_of = {i: i.partition("/")[0] for i in data.labeled if i.partition("/")[0] in parts}
    if "train" in folder_of.values() and {i.partition("/")[0] for i in data.cases} & {"val", "test"}:
        given = {i: name for i, name in folder_of.items() if name != "train" or "val" in folder_of.values()}
        if wrong := [i for i, name in given.items() if part_of[i] != name]:
            yield f"split: {wrong[:4]} are not in the part that their folder names"
        if left := [i for i in split["unlabeled"] if i.startswith(("val/", "test/"))]:
            yield f"split: {left[:4]} are trained on"
        return
    together: dict[object, set[str]] = {}
    for case_id, case in ((i, data.cases[i]) for i in part_of):
        for key in (case.group, case.image.tobytes() if case.image.min() < case.image.max() else None):
            if key is not None:
                together.setdefault(key, set()).add(part_of[case_id])
    for key, where in together.items():
        if len(where) > 1:
            yield f"split: {key if isinstance(key, str) else 'copies'} in {sorted(where)}"


def check_masks(data: DataSet, folder: Path, evaluated: dict[str, Any]) -> Iterator[str]:
    """A mask an image, in its frame, with the label values; `evaluate` scores what `predict` writes."""
    written = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    written = {name: p for name, p in written.items() if not p.name.startswith(".")}
    found = {i: [p for name, p in written.items() if _is_mask_of(name, i)] for i in data.cases}
    if missing := [i for i, paths in found.items() if len(paths) != 1]:
        if data.layout not in ("manifest", "hdf5"):  # their files have other names
            yield f"predict: {len(written)} masks; not one each for {missing[:3]}: {list(written)[:4]}"
        return
    masks = {i: read_any(paths[0]) for i, paths in found.items()}
    for case_id, mask in masks.items():
        if mask.shape != data.cases[case_id].image.shape[1:]:
            yield f"predict: the mask of {case_id} is {mask.shape}, its image {data.cases[case_id].image.shape}"
            return
        if stray := set(np.unique(mask).tolist()) - set(data.label_values):
            yield f"predict: the mask of {case_id} holds {stray}"
    for row in evaluated["cases"]:
        truth = data.labeled[row["id"]]
        if len(row["counts"]) != len(data.label_values) - 1:
            yield f"evaluate: {len(row['counts']) + 1} classes, there are {len(data.label_values)}"
            return
        for k, counts in enumerate(row["counts"], start=1):
            pred, true, seen = masks[row["id"]] == data.label_values[k], truth == k, truth != IGNORED
            brute = [int((a & b & seen).sum()) for a, b in ((pred, true), (pred, ~true), (~pred, true), (~pred, ~true))]
            if brute != counts:
                yield f"evaluate: class {k} of {row['id']} counts {counts}, its mask {brute} (TP, FP, FN, TN)"


def _is_mask_of(name: str, case_id: str) -> bool:
    stem = name[: -len(".nii.gz")] if name.endswith(".nii.gz") else name.rpartition(".")[0]
    return stem == case_id


def read_any(path: Path) -> NDArray[Any]:
    """Return a mask as (z, y, x) along the world's axes, or (y, x)."""
    if path.name.endswith((".nii", ".nii.gz")):
        return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj).T
    if path.suffix == ".png":
        return np.asarray(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED))
    return np.asarray(tifffile.imread(path))
