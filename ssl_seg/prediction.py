"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.loader import fit_channels
from ssl_seg.data.volumes import IMAGE_SUFFIXES, read_image, write_mask, write_probabilities
from ssl_seg.errors import DataError
from ssl_seg.inference.model import Model, open_model
from ssl_seg.labels import to_mask


@dataclass(frozen=True)
class PredictRequest:
    """What to predict, and where to. ``which`` defaults to the better net on validation."""

    checkpoint: Path
    source: Path
    output: Path
    which: str | None = None
    overlap: float = 0.5
    probabilities: bool = False


def predict(request: PredictRequest, track: Track = pass_through) -> list[Path]:
    """Write a mask for each image, with the label values of the training masks.

    2D masks are PNG, 3D masks compressed TIFF stacks. With ``probabilities``, the foreground probability (of each class
    where there are more than two) is written beside it as float32 TIFF.

    Returns:
        The masks written.

    Raises:
        SslSegError: nothing to predict, an unreadable image, or an output that exists; existing files stay as they are.
    """
    model = open_model(request.checkpoint)
    jobs = _plan_outputs(request, model.config.data.ndim)
    if taken := [path for _, path in jobs if path.exists()]:
        raise DataError(
            f"{taken[0]} exists already ({len(taken)} of {len(jobs)}) and is not overwritten: choose another output"
        )
    predictor = model.predictor(request.which or model.better, request.overlap)
    for source, path in track(jobs, len(jobs)):
        probs = predictor(_read(source, model))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_mask(path, to_mask(probs.argmax(axis=0), model.config.data.label_values))
        if request.probabilities:
            for suffix, values in _foreground_maps(probs):
                write_probabilities(path.with_name(f"{path.stem}{suffix}.tif"), values)
    return [path for _, path in jobs]


def _plan_outputs(request: PredictRequest, ndim: int) -> list[tuple[Path, Path]]:
    """Return (image, mask) paths, keeping sub-folders."""
    ending = ".png" if ndim == 2 else ".tif"
    source, output = request.source, request.output
    if source.is_file():
        is_file = output.suffix.lower() in {".png", ".tif", ".tiff"}
        return [(source, output if is_file else output / f"{source.stem}{ending}")]
    if not source.is_dir():
        raise DataError(f"no image file or folder {source}")
    folder = source / "images" if (source / "images").is_dir() else source
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not images:
        raise DataError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    jobs = [(image, output / image.relative_to(folder).with_suffix(ending)) for image in images]
    targets = [path for _, path in jobs]
    if twice := next((path for path in targets if targets.count(path) > 1), None):
        raise DataError(f"two images would both be written to {twice}: rename one of them")
    return jobs


def _read(source: Path, model: Model) -> np.ndarray:
    data = model.config.data
    image = read_image(str(source))
    if image.ndim - 1 != data.ndim:
        raise DataError(f"{source} is {image.ndim - 1}D; the network was trained on {data.ndim}D images")
    return fit_channels(image, data.channels, str(source))


def _foreground_maps(probs: np.ndarray) -> Iterable[tuple[str, np.ndarray]]:
    if len(probs) == 2:
        return [("_prob", probs[1])]
    return [(f"_prob{label}", probs[label]) for label in range(1, len(probs))]
