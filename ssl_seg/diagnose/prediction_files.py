"""Reads a folder of predictions made by any program, and their true masks.

A few files decide once for the folder whether its values are masks or probabilities.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.audit.meaning import settle_meaning
from ssl_seg.data.facts import format_size
from ssl_seg.data.findings import describe_finding, select_faults
from ssl_seg.data.formats.stored import merge_equal_channels, name_errors
from ssl_seg.data.grids import compare_grids
from ssl_seg.data.layouts.files import find_images
from ssl_seg.data.layouts.names import MASK_WORDS, role_of
from ssl_seg.data.mask_values import scan_mask
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.volumes import (
    IMAGE_SUFFIXES,
    MASK_KEYS,
    is_lossy,
    list_arrays,
    open_image,
    open_mask,
    read_mask,
)
from ssl_seg.errors import DataError, name_examples
from ssl_seg.labels import Meaning
from ssl_seg.results.mask_files import ENTROPY, OBJECTS, VARIANCE

Kind = Literal["mask", "probability", "gray8", "gray16"]

SAMPLE = 12
"""So many files with more than one value are read to see what the values mean; empty predictions do not tell."""
MANY_VALUES = 16
"""An integer file with more values is a probability map if they span its range, else a map of instances."""
RANGES: dict[Kind, float] = {"mask": 1, "probability": 1, "gray8": 255, "gray16": 65535}
WORDS: dict[Kind, str] = {
    "mask": "masks: {background} is background, every other value foreground",
    "probability": "probabilities of foreground, cut at 0.5",
    "gray8": "probabilities of foreground in 256 gray values (value / 255), cut at 0.5",
    "gray16": "probabilities of foreground in 65536 gray values (value / 65535), cut at 0.5",
}
_PROBABILITY_FILE = re.compile(r"_prob\d*$")


@dataclass(frozen=True)
class PredictionFile:
    """One prediction: ``mask`` and ``probs`` are its files; either may be missing, not both."""

    id: str
    mask: Path | None
    probs: tuple[Path, ...]
    """One a foreground class."""

    @property
    def first(self) -> Path:
        """A file to name it by."""
        return self.probs[0] if self.mask is None else self.mask


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one image."""

    foreground: NDArray[np.bool_]
    """(*S)"""
    prob: NDArray[np.float32] | None = None
    """(*S), of foreground; may hold NaN. None for masks."""
    labels: NDArray[np.integer[Any]] | None = None
    """(*S), values of the mask; None for probabilities alone."""


def find_predictions(folder: Path) -> list[PredictionFile]:
    """Return the predictions below a folder by name; ``NAME_prob`` files belong to the mask ``NAME``, and objects and
    maps of uncertainty, ``NAME_objects``, ``NAME_entropy`` and ``NAME_variance``, say nothing beside it.

    Raises:
        DataError: if there is no folder, or no image in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the folder that holds the predictions")
    files = find_images(folder)
    if not files:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    probs: dict[str, list[Path]] = {}
    masks: dict[str, Path] = {}
    for name, path in files.items():
        if _PROBABILITY_FILE.search(name):
            probs.setdefault(_PROBABILITY_FILE.sub("", name), []).append(path)
        elif not any(name.endswith(end) and name.removesuffix(end) in files for end in (OBJECTS, ENTROPY, VARIANCE)):
            masks[name] = path
    return [
        PredictionFile(name, masks.get(name), tuple(sorted(probs.get(name, ())))) for name in sorted({*masks, *probs})
    ]


def match_truth(predictions: Sequence[PredictionFile], folder: Path) -> dict[str, Path]:
    """Return the true mask of each prediction that has one: with the same path below its folder, else the same name.

    Raises:
        DataError: if the folder is missing or holds no image, or no prediction has a mask.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: give the folder that holds the true masks")
    of_masks = [path for path in folder.iterdir() if path.is_dir() and role_of(path.name)[0] == "mask"]
    inner = min(of_masks, key=lambda path: MASK_WORDS.index(role_of(path.name)[1]), default=folder)
    masks = find_images(inner)
    if not masks:
        raise DataError(f"{folder} holds no mask ({', '.join(sorted(IMAGE_SUFFIXES))})")
    by_name: dict[str, list[Path]] = {}
    for name, path in masks.items():
        by_name.setdefault(PurePosixPath(name).name, []).append(path)
    found = {}
    for prediction in predictions:
        alone = by_name.get(PurePosixPath(prediction.id).name, [])
        if prediction.id in masks:
            found[prediction.id] = masks[prediction.id]
        elif len(alone) == 1:
            found[prediction.id] = alone[0]
    if not found:
        raise DataError(
            f"none of the {len(masks)} masks in {inner} has the name of a prediction. The first prediction is "
            f"{predictions[0].first.name}, the first mask {min(masks.values()).name}. Name them alike."
        )
    labeled = {name: path for name, path in found.items() if set(MASK_KEYS) & set(list_arrays(path))}
    return labeled or found  # beside labeled files may lie those of an image alone, which would be read as masks


def recognize(predictions: Sequence[PredictionFile], meaning: Meaning, reading: Reading = AS_STORED) -> Kind:
    """Return how to read the files, by the values in a few of them; `NAME_prob` files are probabilities.

    Raises:
        DataError: for values that are neither, and masks of several values of which none is said to be background.
    """
    if all(p.probs for p in predictions):
        return "probability"
    spread = np.linspace(0, len(predictions) - 1, SAMPLE).astype(int).tolist()
    kinds: list[Kind] = []
    telling: list[PredictionFile] = []
    for index in dict.fromkeys([*spread, *range(len(predictions))]):
        kind, is_constant = _recognize_file(predictions[index].mask, reading)
        kinds.append(kind)
        telling += [] if is_constant else [predictions[index]]
        if len(telling) == SAMPLE:
            break
    known: tuple[Kind, ...] = ("probability", "gray16", "gray8", "mask")
    kind = next(kind for kind in known if kind in kinds)  # an empty map among probabilities looks like a mask
    if kind in ("gray16", "gray8") and _number_objects(telling, reading):
        kind = "mask"
    is_open = kind == "mask" and not meaning.label_values and not meaning.label_map
    if is_open and telling and all(_read_plain(p.first, reading).all() for p in telling):
        values = [int(value) for value in np.unique(_read_plain(telling[0].first, reading))]
        raise DataError(
            f"{telling[0].first}: no voxel is 0, which is background, there and in the other predictions looked at; "
            f"this one holds {name_examples(values)}. Save them with 0 for background; if the true masks have these "
            f"values too, type --set 'data.label_values={values[:2]}', that of background first."
        )
    return kind


def read_prediction(
    prediction: PredictionFile, kind: Kind, meaning: Meaning, reading: Reading = AS_STORED
) -> Prediction:
    """Return what a file predicts.

    Raises:
        DataError: for an unreadable file, colors, or values that do not fit ``kind``.
    """
    if kind == "mask":
        mask = read_mask(str(prediction.first), reading=reading)
        return Prediction(meaning.to_foreground(mask) == 1, labels=meaning.to_labels(mask))
    if prediction.probs:
        probs = {path: _read_probability(path, 1.0, reading) for path in prediction.probs}
        shape = next(iter(probs.values())).shape
        for path, values in probs.items():
            _compare_places(prediction.probs[0], shape, path, values.shape, reading)
        prob: NDArray[np.float32] = np.stack(list(probs.values())).sum(axis=0)
        if prediction.mask is not None:
            mask = read_mask(str(prediction.mask), reading=reading)
            _compare_places(prediction.mask, mask.shape, prediction.probs[0], shape, reading)
            return Prediction(meaning.to_foreground(mask) == 1, prob, meaning.to_labels(mask))
    else:
        prob = _read_probability(prediction.first, RANGES[kind], reading)
    return Prediction(prob > 0.5, prob)


def settle_truth(masks: Sequence[Path], given: Meaning, reading: Reading = AS_STORED) -> tuple[Meaning, list[str]]:
    """Return what the values of true masks mean, by the values in a few of them, and notes on it.

    Raises:
        DataError: for masks that cannot be read, or whose values do not fit what is given.
    """
    chosen = [masks[i] for i in np.unique(np.linspace(0, len(masks) - 1, SAMPLE).astype(int))] if masks else []
    scans = {
        path.name: scan_mask(open_mask(str(path), reading=replace(reading, fractions=True)), given.threshold)[1]
        for path in chosen
    }
    meaning, findings = settle_meaning(scans, given, [path.name for path in chosen if is_lossy(str(path))])
    if faults := select_faults(findings):
        raise DataError("\n".join(describe_finding(fault) for fault in faults))
    return meaning, [f"true masks: {finding.message}" for finding in findings if meaning.kind != "semantic"]


def read_truth(
    path: Path, shape: tuple[int, ...], meaning: Meaning, prediction: Path, reading: Reading = AS_STORED
) -> tuple[NDArray[np.int16], NDArray[np.integer[Any]], str | None]:
    """Return a true mask (*S) of 0, 1 and IGNORE_INDEX, its values, and the doubt, if any, that the two fit.

    Raises:
        DataError: for an unreadable mask, or another shape or grid than that of the prediction.
    """
    mask = read_mask(str(path), reading=replace(reading, fractions=meaning.takes_fractions))
    doubt = _compare_places(prediction, shape, path, mask.shape, reading)
    return meaning.to_foreground(mask), meaning.to_labels(mask), doubt


def _compare_places(
    prediction: Path, shape: tuple[int, ...], path: Path, other: tuple[int, ...], reading: Reading
) -> str | None:
    """Return the doubt, if any, that two files lie at different places; refuse other shapes and grids."""
    if other != shape:
        raise DataError(
            f"{prediction}: the prediction is {format_size(shape)}, {path} {format_size(other)}. They must have the "
            "same size."
        )
    ours, theirs = (open_image(str(file), reading=reading).geometry for file in (prediction, path))
    return compare_grids(str(prediction), ours, str(path), theirs, shape)


def _recognize_file(path: Path | None, reading: Reading) -> tuple[Kind, bool]:
    """Return what the values of a file look like, and whether they are all the same."""
    if path is None:
        return "probability", False
    values = _read_plain(path, reading)
    return _recognize_values(values), bool((values == values.flat[0]).all())


def _number_objects(predictions: Sequence[PredictionFile], reading: Reading) -> bool:
    """Return whether integer files number objects, as label images do, and hold no gray values."""
    scans = {p.id: scan_mask(open_mask(str(p.mask), reading=reading))[1] for p in predictions if p.mask is not None}
    return settle_meaning(scans, Meaning())[0].kind == "instances"


def _recognize_values(values: NDArray[Any]) -> Kind:
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)]
        if not finite.size or (finite == np.round(finite)).all():
            return "mask" if np.isfinite(values).all() else "probability"
        return "probability"
    if values.dtype in (np.uint8, np.uint16) and len(np.unique(values)) > MANY_VALUES:
        gray: Kind = "gray8" if values.dtype == np.uint8 else "gray16"
        if int(values.max()) > RANGES[gray] / 2:
            return gray
    return "mask"


def _read_probability(path: Path, top: float, reading: Reading) -> NDArray[np.float32]:
    values = _read_plain(path, reading)
    finite = values[np.isfinite(values)]
    if finite.size and (finite.min() < 0 or finite.max() > top * (1 + 1e-6)):
        raise DataError(
            f"{path}: values from {finite.min():g} to {finite.max():g} are not probabilities (0 to {top:g}). "
            "Save probabilities, not logits, or masks of integers."
        )
    return (values / np.float32(top)).astype(np.float32)


def _read_plain(path: Path, reading: Reading) -> NDArray[Any]:
    """Return the values (*S) of a file with one channel. NaN is not refused: it is what the audit looks for."""
    stored = open_image(str(path), reading=reading)
    with name_errors(str(path)):
        values = merge_equal_channels(np.asarray(stored.fetch(tuple(slice(0, n) for n in stored.shape[1:]))))
    if len(values) != 1:
        raise DataError(
            f"{path}: a prediction has one channel, this file has {len(values)}. Save the foreground probability, or "
            "one integer per pixel."
        )
    return np.asarray(values[0])
