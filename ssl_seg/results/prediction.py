"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import DataConfig
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.facts import format_size
from ssl_seg.data.formats.stored import merge_equal_channels
from ssl_seg.data.reading import make_reading
from ssl_seg.data.store import fit_channels
from ssl_seg.data.volumes import (
    Geometry,
    Stored,
    open_image,
    split_suffix,
    write_labels,
    write_mask,
    write_probabilities,
)
from ssl_seg.errors import ConfigError, DataError, SslSegError, is_out_of_memory, quote
from ssl_seg.files import is_disk_full
from ssl_seg.inference.calibration import (
    calibrate_predictor,
    calibration_path,
    check_threshold,
    decide,
    decide_mean,
    find_calibration,
)
from ssl_seg.inference.decision import Decision
from ssl_seg.inference.ensemble import Ensemble, check_members, open_members
from ssl_seg.inference.model import Model
from ssl_seg.inference.scoring import PredictFn
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.labels import to_mask
from ssl_seg.monitor.catalog import limit
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.folds import list_members
from ssl_seg.results.mask_files import Job, MaskRecord, check_places, is_mask_name, plan_jobs, split_jobs
from ssl_seg.results.objects import TABLE, check_table, find_objects, join_tables, write_rows
from ssl_seg.scores.sameness import FEWEST, find_same

Failure = tuple[str, str]
"""An image, and why it has no mask."""
LEAST_SHARE = 0.01
"""Share of foreground from which masks with the same share are suspicious: small ones agree by chance."""
SHOWN_FAILURES = 20
"""Failed images of which the end of a call says why."""

SHIFTED_CT = 1000
"""An image without negative values that reaches this one may be CT with an offset: air at 0, water at 1000."""


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
    """Foreground is where its probability is above this; by default above that of the calibration, without one above
    that of the training's settings, and without that where foreground is the likelier class."""
    calibrated: bool = True
    """Use what ``ssl-seg calibrate`` has stored beside the checkpoint; of an ensemble it is left out."""
    more: tuple[Path, ...] = ()
    """Further checkpoints: the mean of the probabilities of all is what masks are made of. The directory of a
    cross-validation stands for best.pt of its folds."""
    overwrite: bool = False
    """Make masks anew that are there already."""
    accelerator: str | None = None
    """Where to compute: auto, cpu, cuda or mps; by default where the training did."""
    objects: bool = False
    """Write the connected parts of each class as a label image and a table."""


def predict(
    request: PredictRequest, track: Track = pass_through, *, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write a mask for each image, with the label values of the training masks.

    2D masks are PNG, 3D masks compressed TIFF stacks; the mask of a NIfTI image is NIfTI on the same grid. With
    ``probabilities``, the foreground probability (of each class where there are more than two) is written beside it as
    float32, TIFF or NIfTI. With ``objects``, so are a label image and a table of the connected parts, and in a folder
    one table of all.

    An image that cannot be predicted is left out, and named at the end. A second call with the same networks, settings
    and images keeps the masks that are there, also those of a call that was interrupted.

    Args:
        request: what to predict.
        track: shows the progress.
        note: is told what is kept, what an interruption leaves, and when the masks look like those of a network that
            ignores its input.

    Returns:
        The masks written; those that are kept are not among them.

    Raises:
        SslSegError: nothing to predict, or an output that is there and was made otherwise; existing files stay as they
            are. A threshold outside (0, 1), or for more than two classes. Checkpoints that do not go together.
        DataError: after all other masks are written, for images that could not be predicted.
    """
    check_places(request.source, request.output)
    models = _open_networks(request, note)
    data = models[0].config.data
    check_threshold(request.threshold, data)
    _check_spacing(request, data, note)
    predictor, decision, settings = _use_networks(request, models, note)
    suffixes = _probability_suffixes(data.num_classes) if request.probabilities else {}
    jobs = plan_jobs(request.source, request.output, data.ndim, data.layout, suffixes.values(), objects=request.objects)
    record = MaskRecord(None if is_mask_name(request.output) else request.output, settings)
    if request.objects and record.folder is not None:
        check_table(record.folder / TABLE, data.ndim, data.channels)
    waiting, kept = split_jobs(jobs, record, overwrite=request.overwrite)
    if kept:
        note(f"{len(kept)} of {len(jobs)} masks are there already, made by the same call, and are kept")

    shares: dict[tuple[int, ...], list[float]] = {}
    for made in kept.values():
        shares.setdefault(made.shape, []).append(made.share)
    failures: list[Failure] = []
    shifted: list[str] = []
    read_as = Counter[str]()
    done = len(kept)
    planned = False
    try:
        for job in track(waiting, len(waiting)):
            try:
                stored, image = _read(job.locations, data)
                classes, probs = _predict_image(image, stored, job, models[0], predictor, request.spacing, decision)
                if not planned:  # not before: a folder is not made for nothing
                    record.plan(waiting)
                    planned = True
                _write_objects(job, record.name(job), image, stored.geometry, classes, request, data)
                _write_outputs(job, stored.geometry, classes, probs, tuple(suffixes), data)
            except (SslSegError, MemoryError, RuntimeError, OSError) as error:
                failures.append((job.locations[0], _describe_failure(job, error, request.output, done)))
                continue
            shifted += [job.locations[0]] * (data.window is not None and _is_shifted(image))
            share = float((classes > 0).mean())
            record.finish(job, classes.shape, share)
            read_as.update(stored.notes)
            shares.setdefault(classes.shape, []).append(share)
            done += 1
    except KeyboardInterrupt:
        note(_list_failures(f"interrupted: {done} of {len(jobs)} masks are in {request.output}", failures))
        raise
    if request.objects and record.folder is not None:
        join_tables((job.table for job in jobs), record.folder / TABLE, data.ndim, data.channels)
    remarks = [f"{number} image(s): {remark}" for remark, number in read_as.items()]
    for text in filter(None, (*remarks, _describe_shifted(shifted, data), describe_sameness(shares, request.output))):
        note(text)
    if failures:
        raise DataError(_describe_end(failures, done, len(jobs), request.output))
    return [job.mask for job in waiting]


def _is_shifted(image: NDArray[np.generic]) -> bool:
    """Return whether a CT has no value below that of air."""
    return bool(np.nanmin(image) >= 0 and np.nanmax(image) >= SHIFTED_CT)


def _describe_shifted(shifted: Sequence[str], data: DataConfig) -> str | None:
    if not shifted or data.window is None:
        return None
    return (
        f"WARNING {len(shifted)} image(s) have no value below 0 ({shifted[0]}). data.window=[{data.window[0]:g}, "
        f"{data.window[1]:g}] holds for values as in training: subtract the offset (1000, 1024) of such CT"
    )


def _open_networks(request: PredictRequest, note: Callable[[str], None]) -> tuple[Model, ...]:
    paths = list_members((request.checkpoint, *request.more))
    models = open_members(paths, request.which, choose_device_if_given(request.accelerator))
    check_members(models, averaged=True)
    for said in (said for model in models for said in model.describe_machine()):
        note(said)
    return models


def _use_networks(
    request: PredictRequest, models: Sequence[Model], note: Callable[[str], None]
) -> tuple[PredictFn, Decision, dict[str, Any]]:
    """Return what predicts the probabilities, what decides the classes, and all that makes a mask another one: not the
    device, whose rounding does not count."""
    nets = [(model, net) for model in models for net in model.nets]
    calibration = find_calibration(*nets[0], note) if request.calibrated and len(nets) == 1 else None
    for model in models if len(nets) > 1 else ():
        if (stored := calibration_path(model.path)).is_file():
            note(f"{stored} is of one network: the mean of {len(nets)} leaves it out")
    decision = (
        decide(request.threshold, calibration, models[0].config.prediction)
        if len(nets) == 1
        else decide_mean(request.threshold, models)
    )
    settings = {
        "networks": [f"{model.fingerprint} {net}" for model, net in nets],
        "overlap": request.overlap,
        "threshold": decision.threshold,
        "spacing": None if request.spacing is None else list(request.spacing),
    }
    if calibration is not None:
        settings |= {"calibration": json.loads(json.dumps(asdict(calibration)))}
    networks = Ensemble(tuple(model.predictor(net, request.overlap) for model, net in nets))
    return calibrate_predictor(networks, calibration), decision, settings


def _predict_image(
    image: NDArray[np.generic],
    stored: Stored,
    job: Job,
    model: Model,
    predictor: PredictFn,
    spacing: tuple[float, ...] | None,
    decision: Decision,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the class indices (*S) and probabilities (K,*S) of an image."""
    stated = None if stored.geometry is None else stored.geometry.spacing
    probs = predictor(image, spacing or stated or model.config.data.spacing)
    if not np.isfinite(probs).all():
        raise DataError(
            f"{job.locations[0]}: the network gives NaN or infinity, no mask is written. Examine it: "
            f"`ssl-seg diagnose {quote(model.path)}`, or use another checkpoint"
        )
    return decision(probs), probs


def _write_outputs(
    job: Job,
    geometry: Geometry | None,
    classes: NDArray[np.int64],
    probs: NDArray[np.float32],
    labels: Sequence[int],
    data: DataConfig,
) -> None:
    """Write the probabilities of the labels, then the mask, each in one step."""
    for path, label in zip(job.probabilities, labels, strict=True):
        write_probabilities(path, probs[label], geometry)
    write_mask(job.mask, to_mask(classes, data.label_values), geometry)


def _write_objects(
    job: Job,
    name: str,
    image: NDArray[np.generic],
    geometry: Geometry | None,
    classes: NDArray[np.int64],
    request: PredictRequest,
    data: DataConfig,
) -> None:
    """Write label image and table of the objects, where they are asked for."""
    if not request.objects:
        return
    stated = None if geometry is None else geometry.spacing
    labels, rows = find_objects(classes, image, data.label_values, request.spacing or stated or data.spacing)
    write_labels(job.labels, labels, geometry)
    write_rows(job.table, data.ndim, len(image), ([split_suffix(name)[0], *row] for row in rows))


def _describe_failure(job: Job, error: Exception, output: Path, done: int) -> str:
    """Return why there is no mask of an image.

    Raises:
        DataError: when the disk is full: further images would be predicted in vain.
        Exception: the error itself, if it is one of the program.
    """
    if is_disk_full(error):
        raise DataError(
            f"the disk of {output} is full; {done} masks are done. Free some space and give the same command again"
        ) from error
    if not isinstance(error, SslSegError) and not is_out_of_memory(error):
        raise error
    reason = (
        str(error)
        if isinstance(error, SslSegError)
        else "out of memory: use a machine with more memory, or cut the image into parts"
    )
    return reason.removeprefix(job.locations[0]).lstrip(": ")


def _list_failures(text: str, failures: Sequence[Failure]) -> str:
    shown = [f"  {image}: {reason}" for image, reason in failures[:SHOWN_FAILURES]]
    if left := [image for image, _ in failures[SHOWN_FAILURES:]]:
        shown.append(f"  and {len(left)} more: {', '.join(left)}")
    return "\n".join([text, *shown])


def _describe_end(failures: Sequence[Failure], done: int, images: int, output: Path) -> str:
    if images == 1:
        return ": ".join(failures[0])
    rest = f"the other {done} masks are in {output}" if done else "no mask was written"
    text = f"{len(failures)} of {images} images have no mask, {rest}"
    return _list_failures(f"{text}. Repair or remove them, and give the same command again:", failures)


def _check_spacing(request: PredictRequest, data: DataConfig, note: Callable[[str], None]) -> None:
    spacing = request.spacing
    if spacing is None:
        return
    if data.resample_to is None and not request.objects:
        note(
            "WARNING --spacing changes nothing: the network was trained without data.resample_to, on voxels of any size"
        )
    shown = ",".join(f"{value:g}" for value in spacing)
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise ConfigError(f"--spacing {shown}: voxel sizes are positive numbers")
    if len(spacing) != data.ndim:
        raise ConfigError(
            f"--spacing {shown}: {len(spacing)} numbers, and the network was trained on {data.ndim}D images: give one "
            f"for each axis, {'z,y,x' if data.ndim == 3 else 'y,x'}"
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
        f"warning: {f'all {images}' if number == images else f'{number} of {images}'} masks of {format_size(shape)} "
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


def _read(locations: tuple[str, ...], data: DataConfig) -> tuple[Stored, NDArray[np.generic]]:
    """Return an opened image, and its voxels with the channels that the network takes."""
    stored = open_image(*locations, reading=make_reading(dict(data)))
    if (ndim := len(stored.shape) - 1) != data.ndim:
        raise DataError(f"{locations[0]} is {ndim}D; the network was trained on {data.ndim}D images")
    image = merge_equal_channels(stored.read()) if len(locations) == 1 else stored.read()
    return stored, fit_channels(image, data.channels, locations[0])
