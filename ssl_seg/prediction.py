"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

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
    suffixes = _probability_suffixes(model.config.data.num_classes) if request.probabilities else {}
    _check_outputs([output for _, mask in jobs for output in (mask, *_probability_paths(mask, suffixes))])
    predictor = model.predictor(request.which or model.better, request.overlap)
    for source, mask in track(jobs, len(jobs)):
        probs = predictor(_read(source, model))
        write_mask(mask, to_mask(probs.argmax(axis=0), model.config.data.label_values))
        for path, label in zip(_probability_paths(mask, suffixes), suffixes, strict=True):
            write_probabilities(path, probs[label])
    return [mask for _, mask in jobs]


def _probability_suffixes(num_classes: int) -> dict[int, str]:
    return {1: "_prob"} if num_classes == 2 else {label: f"_prob{label}" for label in range(1, num_classes)}


def _probability_paths(mask: Path, suffixes: dict[int, str]) -> list[Path]:
    return [mask.with_name(f"{mask.stem}{suffix}.tif") for suffix in suffixes.values()]


def _check_outputs(outputs: list[Path]) -> None:
    """Nothing may be written twice, or over something."""
    seen: set[Path] = set()
    for path in outputs:
        if path.exists():
            raise DataError(f"{path} exists already and is not overwritten: choose another output")
        if path in seen:
            raise DataError(f"two images would both be written to {path}: rename one of them")
        seen.add(path)


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
    return [(image, output / image.relative_to(folder).with_suffix(ending)) for image in images]


def _read(source: Path, model: Model) -> np.ndarray:
    data = model.config.data
    image = read_image(str(source))
    if image.ndim - 1 != data.ndim:
        raise DataError(f"{source} is {image.ndim - 1}D; the network was trained on {data.ndim}D images")
    return fit_channels(image, data.channels, str(source))
