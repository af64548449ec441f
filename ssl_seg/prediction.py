"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssl_seg.config import DataConfig
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.layouts import LAYOUTS, find_listing
from ssl_seg.data.layouts.files import walk_files
from ssl_seg.data.layouts.nnunet import group_channels
from ssl_seg.data.store import fit_channels
from ssl_seg.data.volumes import (
    IMAGE_SUFFIXES,
    is_image,
    read_geometry,
    read_image,
    split_suffix,
    write_mask,
    write_probabilities,
)
from ssl_seg.diagnose.shapes import FEWEST, find_same, format_shape
from ssl_seg.errors import ConfigError, DataError, quote
from ssl_seg.inference.ensemble import Ensemble, check_members, open_members
from ssl_seg.inference.model import Model
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.labels import to_mask
from ssl_seg.monitor.catalog import limit
from ssl_seg.precision import choose_device_if_given
from ssl_seg.series.fold_runs import list_members

NIFTI_SUFFIXES = (".nii", ".nii.gz")
LEAST_SHARE = 0.01
"""Share of foreground from which masks with the same share are suspicious: small ones agree by chance."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", *NIFTI_SUFFIXES)


@dataclass(frozen=True)
class PredictRequest:
    """What to predict, and where to.

    ``which`` defaults to the better net on validation, ``spacing`` (*S) to the voxel size that each file
    states, or that the training was told.
    """

    checkpoint: Path
    source: Path
    output: Path
    which: str | None = None
    overlap: float = OVERLAP
    probabilities: bool = False
    spacing: tuple[float, ...] | None = None
    threshold: float | None = None
    """Foreground is where its probability is above this; without one, where foreground is the likelier class."""
    more: tuple[Path, ...] = ()
    """Further checkpoints: the mean of the probabilities of all is what masks are made of. The directory of a
    cross-validation stands for best.pt of its folds."""
    accelerator: str | None = None
    """Where to compute: auto, cpu, cuda or mps; by default where the training did."""


def predict(
    request: PredictRequest, track: Track = pass_through, *, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write a mask for each image, with the label values of the training masks.

    2D masks are PNG, 3D masks compressed TIFF stacks; the mask of a NIfTI image is NIfTI with the same affine. With
    ``probabilities``, the foreground probability (of each class where there are more than two) is written beside it as
    float32, TIFF or NIfTI.

    Args:
        request: what to predict.
        track: shows the progress.
        note: is told when the masks look like those of a network that ignores its input.

    Returns:
        The masks written.

    Raises:
        SslSegError: nothing to predict, an unreadable image, or an output that exists; existing files stay as they are.
            A threshold outside (0, 1), or for more than two classes. Checkpoints that do not go together.
    """
    paths = list_members((request.checkpoint, *request.more))
    models = open_members(paths, request.which, choose_device_if_given(request.accelerator))
    check_members(models, averaged=True)
    for text in (text for model in models for text in model.describe_machine()):
        note(text)
    model = models[0]
    _check_threshold(request.threshold, model.config.data)
    jobs = _plan_outputs(request, model.config.data)
    suffixes = _probability_suffixes(model.config.data.num_classes) if request.probabilities else {}
    _check_outputs([output for _, mask in jobs for output in (mask, *_probability_paths(mask, suffixes))])
    predictor = Ensemble(tuple(m.predictor(net, request.overlap) for m in models for net in m.nets))
    shares: dict[tuple[int, ...], list[float]] = {}
    for locations, mask in track(jobs, len(jobs)):
        geometry = read_geometry(locations[0])
        stated = None if geometry is None else geometry.spacing
        spacing = request.spacing or stated or model.config.data.spacing
        probs = predictor(_read(locations, model), spacing)
        if not np.isfinite(probs).all():
            raise DataError(
                f"{locations[0]}: the network gives NaN or infinity, no mask is written. Examine it: "
                f"`ssl-seg diagnose {quote(model.path)}`, or use another checkpoint"
            )
        classes = probs.argmax(axis=0) if request.threshold is None else (probs[1] > request.threshold).astype(np.int64)
        shares.setdefault(classes.shape, []).append(float((classes > 0).mean()))
        write_mask(mask, to_mask(classes, model.config.data.label_values), geometry)
        for path, label in zip(_probability_paths(mask, suffixes), suffixes, strict=True):
            write_probabilities(path, probs[label], geometry)
    if (warning := describe_sameness(shares, request.output)) is not None:
        note(warning)
    return [mask for _, mask in jobs]


def _check_threshold(threshold: float | None, data: DataConfig) -> None:
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise ConfigError(f"--threshold {threshold:g} must be a probability above 0 and below 1")
    if data.num_classes != 2:
        raise ConfigError(
            f"--threshold {threshold:g}: one threshold cannot tell {data.num_classes} classes apart. Leave it out (the "
            "likeliest class is taken), or write --probabilities and cut them yourself"
        )


def describe_sameness(shares: Mapping[tuple[int, ...], Sequence[float]], output: Path) -> str | None:
    """Return a warning where different images got one and the same share of foreground, else None.

    Args:
        shares: of the masks of each shape (*S), the share of foreground.
        output: where the masks are.
    """
    command = f"`ssl-seg diagnose --predictions {quote(output)}`"
    found = [(shape, len(own), *find_same(own)) for shape, own in shares.items()]
    same = [
        f"warning: {f'all {images}' if number == images else f'{number} of {images}'} masks of {format_shape(shape)} "
        f"have the same share of foreground, {ratio:.2%}"
        for shape, images, number, ratio in found
        if number >= max(FEWEST, limit("uniform_ratio") * images) and ratio >= LEAST_SHARE
    ]
    if same:
        advice = f"  Different images hardly ever agree so closely: do not submit before {command}"
        return "\n".join([*same, advice])
    images = sum(map(len, shares.values()))
    if images >= FEWEST and not any(share for own in shares.values() for share in own):
        return f"note: all {images} masks are empty. Where there should be something to find, ask {command}"
    return None


def _probability_suffixes(num_classes: int) -> dict[int, str]:
    return {1: "_prob"} if num_classes == 2 else {label: f"_prob{label}" for label in range(1, num_classes)}


def _probability_paths(mask: Path, suffixes: dict[int, str]) -> list[Path]:
    stem, ending = split_suffix(mask.name)
    kind = ending if ending in NIFTI_SUFFIXES else ".tif"
    return [mask.with_name(f"{stem}{suffix}{kind}") for suffix in suffixes.values()]


def _check_outputs(outputs: list[Path]) -> None:
    """Nothing may be written twice, or over something."""
    seen: set[Path] = set()
    for path in outputs:
        if path.exists():
            raise DataError(f"{path} exists already and is not overwritten: choose another output")
        if path in seen:
            raise DataError(f"two images would both be written to {path}: rename one of them")
        seen.add(path)


def _plan_outputs(request: PredictRequest, data: DataConfig) -> list[tuple[tuple[str, ...], Path]]:
    """Return the locations of each image (one for each channel file), and the path of its mask."""
    source, output = request.source, request.output
    if is_image(source) and source.exists():
        is_file = split_suffix(output.name)[1] in MASK_SUFFIXES
        name = split_suffix(source.name)[0]
        return [((str(source),), output if is_file else output / _mask_name(name, source.name, data.ndim))]
    if not source.is_dir():
        raise DataError(f"no image file or folder {source}")
    images = _find_images(source, data.layout)
    if not images:
        raise DataError(f"{source} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return [(files, output / _mask_name(name, files[0], data.ndim)) for name, files in images]


def _find_images(folder: Path, layout: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return name and locations of the images of a folder: a data set in a known layout, or any folder of images.

    Files of a plain folder that end in _0000, _0001, ... are channels of one image if the training data were nnU-Net's.
    """
    inner = folder / "images" if (folder / "images").is_dir() else folder
    if inner == folder and any(known.recognize(folder) for known in LAYOUTS.values()):
        return [(case.id, (case.image, *case.more_channels)) for case in find_listing(folder).cases]
    files = [
        (split_suffix(path.relative_to(inner).as_posix())[0], path) for path in walk_files(inner) if is_image(path)
    ]
    if layout == "nnunet":
        return [(name, tuple(map(str, paths))) for name, paths in group_channels(dict(files)).items()]
    return [(name, (str(path),)) for name, path in files]


def _mask_name(name: str, image: str, ndim: int) -> str:
    """Return the file name of an image's mask: NIfTI, which keeps the geometry, where the image is."""
    ending = split_suffix(image)[1]
    return name + (ending if ending in NIFTI_SUFFIXES else ".png" if ndim == 2 else ".tif")


def _read(locations: tuple[str, ...], model: Model) -> np.ndarray:
    data = model.config.data
    image = read_image(*locations)
    if image.ndim - 1 != data.ndim:
        raise DataError(f"{locations[0]} is {image.ndim - 1}D; the network was trained on {data.ndim}D images")
    return fit_channels(image, data.channels, locations[0])
