"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special

from ssl_seg.config import DataConfig
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.facts import format_size
from ssl_seg.data.formats.stored import BoxReader, RowReader, Rows, Voxels, iterate_rows, merge_equal_channels
from ssl_seg.data.reading import make_reading
from ssl_seg.data.store import fit_channels, measure_by_block
from ssl_seg.data.views.transforms import Intensity
from ssl_seg.data.volumes import (
    Geometry,
    Stored,
    open_image,
    split_suffix,
    write_labels,
    write_mask,
    write_probabilities,
)
from ssl_seg.engine.machine import count_cores
from ssl_seg.errors import ConfigError, DataError, SslSegError, is_out_of_memory, quote
from ssl_seg.files import is_disk_full, write_json
from ssl_seg.inference.calibration import (
    Calibration,
    calibration_path,
    check_threshold,
    decide,
    decide_mean,
    find_calibration,
)
from ssl_seg.inference.decision import Decision, clean_classes
from ssl_seg.inference.ensemble import check_members, open_members, pool, pool_rows
from ssl_seg.inference.model import Model
from ssl_seg.inference.sliding import MEASURED_VOXELS, OVERLAP, Predictor, measure_array
from ssl_seg.inference.stitching import Box
from ssl_seg.inference.turns import list_turns
from ssl_seg.labels import to_mask
from ssl_seg.monitor.catalog import limit
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.claims import Claim, State, claim_each, read_state
from ssl_seg.results.folds import list_members
from ssl_seg.results.mask_files import (
    Job,
    Made,
    MaskRecord,
    check_places,
    is_mask_name,
    note_unread,
    plan_jobs,
    split_jobs,
)
from ssl_seg.results.objects import TABLE, check_table, find_objects, join_tables, write_rows
from ssl_seg.results.pieces import PLAN, WHOLE_VOXELS, Pieces, divide
from ssl_seg.results.workers import run_workers
from ssl_seg.scores.sameness import FEWEST, find_same

Failure = tuple[str, str]
"""An image, and why it has no mask."""
LEAST_SHARE = 0.01
"""Share of foreground from which masks with the same share are suspicious: small ones agree by chance."""
SHOWN_FAILURES = 20
"""Failed images of which the end of a call says why."""

ENTROPY, VARIANCE = "_entropy", "_variance"
"""What is put behind the names of maps of uncertainty."""

_STATISTICS = ("low", "high", "mean", "std")

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
    """Write the connected parts of each class as a label image and a table. Where the training learned instances, these
    are always written, and the mask is the label image."""
    tta: bool = False
    """Predict mirrored and turned windows too, for the mean of their probabilities."""
    uncertainty: bool = False
    """Write the entropy of the probabilities, and where there are several predictions, their variance."""
    uint8: bool = False
    """Write probabilities as 0 to 255; without ``probabilities`` as well."""
    suffix: str | None = None
    """Of the masks in a folder; by default PNG, TIFF for volumes, and NIfTI where the image is."""
    workers: int = 1
    """Processes that share the images, and the pieces of a large one; no more are started than there are of these."""


def predict(
    request: PredictRequest, track: Track = pass_through, *, note: Callable[[str], None] = lambda _: None
) -> list[Path]:
    """Write a mask for each image, with the label values of the training masks, or, where the training learned
    instances, with the numbers 1..n of the objects.

    2D masks are PNG, 3D masks compressed TIFF stacks; the mask of a NIfTI image is NIfTI on the same grid, unless a
    ``suffix`` says otherwise. With ``probabilities``, the foreground probability (of each class where there are more
    than two) is written beside it as float32, TIFF or the format of the mask. With ``objects``, so are a label image
    and a table of the connected parts, and in a folder one table of all.

    A large image is read, predicted and written in pieces: memory does not grow with its depth, and several processes
    that are given the same call share the pieces. An image that cannot be predicted is left out, and named at the end.
    A second call with the same networks, settings and images keeps the masks and pieces that are there, also those of a
    call that was interrupted.

    Args:
        request: what to predict.
        track: shows the progress.
        note: is told what is kept, what an interruption leaves, and when the masks look like those of a network that
            ignores its input.

    Returns:
        The masks written; those that are kept are not among them.

    Raises:
        SslSegError: nothing to predict, or an output that is there and was made otherwise; existing files stay as they
            are. A threshold outside (0, 1), or for more than two classes. Checkpoints that do not go together. One of
            several ``workers`` has died: what is finished stays.
        DataError: after all other masks are written, for images that could not be predicted.
    """
    check_places(request.source, request.output)
    _check_workers(request.workers, note)
    models = _open_networks(request, note)
    data = models[0].config.data
    check_threshold(request.threshold, data)
    _check_spacing(request, data, note)
    way = _use_networks(request, models, note)
    numbered = data.task == "instances"
    request = replace(request, objects=request.objects or numbered)
    jobs = plan_jobs(
        request.source,
        request.output,
        data.ndim,
        data.layout,
        way.suffixes,
        objects=request.objects,
        numbered=numbered,
        suffix=request.suffix,
    )
    for text in note_unread(request.source, request.output):
        note(text)
    record = MaskRecord(None if is_mask_name(request.output) else request.output, way.settings)
    if request.objects and record.folder is not None:
        check_table(record.folder / TABLE, data.ndim, data.channels)
    states = {job.mask: read_state(job.mask) for job in jobs}
    waiting, kept = split_jobs(jobs, record, overwrite=request.overwrite)
    if kept:
        note(f"{len(kept)} of {len(jobs)} masks are there already, made by the same call, and are kept")

    work = _Work(request, waiting, [states[job.mask] for job in waiting], record)
    outcomes: dict[int, _Outcome] = {}
    try:
        with _hold_folder(record.folder or request.output.parent):
            for number, outcome in _share_out(work, way, track, note):
                # Another process may make, or have the memory for, what one could not.
                if isinstance(outcome, _Result) or isinstance(outcomes.get(number, ""), str):
                    outcomes[number] = outcome
    except KeyboardInterrupt:
        failures = _list_failures(waiting, outcomes)
        begun = sum(len(_find_pieces(job)) for job in waiting)
        kept_pieces = f"; so far {begun} piece(s) of larger images are done and kept" if begun else ""
        done = len(kept) + len(outcomes) - len(failures)
        so_far = f"interrupted: {done} of {len(jobs)} masks are in {request.output}{kept_pieces}"
        note(_describe_failures(so_far, failures))
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        done = len(kept) + len(outcomes) - len(_list_failures(waiting, outcomes))
        raise DataError(
            f"the disk of {request.output} is full; {done} masks are done. Free some space and give the same command "
            "again"
        ) from error
    if request.objects and record.folder is not None:
        join_tables((job.table for job in jobs), record.folder / TABLE, data.ndim, data.channels)
    made = {number: outcome for number, outcome in outcomes.items() if isinstance(outcome, _Result)}
    for text in _list_remarks(made, waiting, kept.values(), request, data):
        note(text)
    if failures := _list_failures(waiting, outcomes):
        done = len(kept) + len(outcomes) - len(failures)
        raise DataError(_describe_end(failures, done, len(jobs), request.output))
    return [job.mask for job in waiting]


def _list_remarks(
    made: Mapping[int, _Result], jobs: Sequence[Job], kept: Iterable[Made], request: PredictRequest, data: DataConfig
) -> list[str]:
    """Return what is to be said of the masks that this call has made, and of all together."""
    read_as = Counter(text for result in made.values() for text in result.notes)
    remarks = [f"{number} image(s): {remark}" for remark, number in read_as.items()]
    shifted = [jobs[number].locations[0] for number, result in sorted(made.items()) if result.is_shifted]
    shares: dict[tuple[int, ...], list[float]] = {}
    masks: list[Made | _Result] = [*kept, *made.values()]
    for mask in masks:
        shares.setdefault(mask.shape, []).append(mask.share)
    found = (*remarks, _describe_shifted(shifted, data), describe_sameness(shares, request.output))
    return [text for text in found if text]


@dataclass(frozen=True)
class _Result:
    """What is said of a mask that was made."""

    identity: list[list[Any]]
    """Of the image that was read."""
    shape: tuple[int, ...]
    share: float
    notes: tuple[str, ...]
    is_shifted: bool
    """Whether the image, a CT, has no value below that of air."""


_Outcome: TypeAlias = _Result | str | None
"""What becomes of an image: a mask, none for the reason said, or a mask that another process has made."""


@dataclass(frozen=True)
class _Work:
    """The images of a call that wait for their masks, and the state of these masks when it began."""

    request: PredictRequest
    jobs: Sequence[Job]
    states: Sequence[State]
    record: MaskRecord


@dataclass(frozen=True)
class _Step:
    """What a process tells of its progress: the number of an image, or of a piece of the only one; -1 at the start."""

    number: int
    total: int


def _share_out(work: _Work, way: _Way, track: Track, note: Callable[[str], None]) -> Iterator[tuple[int, _Outcome]]:
    """Return what becomes of each image, by its number, made by this process or by as many as are asked for."""
    asked, count = work.request.workers, _count_workers(work, way)
    if count < asked and work.jobs:
        note(f"--workers {asked}: there are only {count} image(s) or piece(s) to share, so {count} process(es) work")
    if count == 1:
        return _make_masks(work, way, track)
    return _gather(run_workers(count, _make_elsewhere, work, way.settings, count), track)


def _count_workers(work: _Work, way: _Way) -> int:
    """Return how many processes have something to do, no more than are asked for."""
    asked, units = work.request.workers, len(work.jobs)
    for job in work.jobs if units < asked else ():
        with suppress(SslSegError, OSError, MemoryError, RuntimeError):  # said when it is predicted
            shape = _open_image(job, way.data).shape[1:]
            units += len(divide(shape, way.members[0].patch_size)) - 1 if _is_large(shape, way.data) else 0
    return max(1, min(asked, units))


def _make_elsewhere(tell: Callable[[object], None], work: _Work, settings: Mapping[str, Any], count: int) -> None:
    """Do the work of one of ``count`` processes, and tell the first one of each step and outcome."""
    torch.set_num_threads(min(torch.get_num_threads(), max(1, count_cores() // count)))

    def track(items: Iterable[Any], total: int) -> Iterator[Any]:
        tell(_Step(-1, total))
        for item in items:
            yield item
            tell(_Step(item if isinstance(item, int) else item[0], total))

    way = _use_networks(work.request, _open_networks(work.request, lambda _: None), lambda _: None)
    if way.settings != settings:
        raise DataError(f"{way.path} or its calibration has changed since the call began: give the same command again")
    for told in _make_masks(work, way, track):
        tell(told)


def _gather(messages: Iterable[Any], track: Track) -> Iterator[tuple[int, _Outcome]]:
    """Yield the outcomes that several processes tell; show each step once, whoever takes it."""
    outcomes: list[tuple[int, _Outcome]] = []

    def list_steps() -> Iterator[_Step]:
        seen: set[int] = set()
        for message in messages:
            if not isinstance(message, _Step):
                outcomes.append(message)
            elif message.number not in seen:
                seen.add(message.number)
                yield message

    steps = list_steps()
    if (start := next(steps, None)) is not None:
        for _ in track(steps, start.total):
            yield from outcomes
            outcomes.clear()
    yield from outcomes


def _make_masks(work: _Work, way: _Way, track: Track) -> Iterator[tuple[int, _Outcome]]:
    """Make all masks that no other process makes; yield what becomes of each image, by its number."""
    jobs, record = work.jobs, work.record
    begin = cache(lambda: record.plan(jobs))  # when there is something to write
    alone = len(jobs) == 1  # then it is the pieces of the image that are shown
    claims = claim_each([job.mask for job in jobs], work.states, [record.lock_path(job) for job in jobs])
    for number, claim in claims if alone else track(claims, len(jobs)):
        job, outcome = jobs[number], cast(_Outcome, None)
        try:
            if claim is not None and not (claim.before and not work.request.overwrite and record.is_done(job)):
                shown = track if alone else pass_through
                outcome = _predict_job(job, record.name(job), way, begin, claim, shown)
        except (SslSegError, MemoryError, RuntimeError, OSError) as error:
            outcome = _describe_failure(job, error)
        if isinstance(outcome, _Result):
            record.finish(job, outcome.identity, outcome.shape, outcome.share)
        yield number, outcome


def _predict_job(
    job: Job, name: str, way: _Way, begin: Callable[[], None], claim: Claim, track: Track
) -> _Result | None:
    """Make what is written for an image; return None where another process has finished it meanwhile.

    Args:
        job: the image.
        name: that of the mask in tables.
        way: how.
        begin: is called before the first file is written.
        claim: to the image; given up where it has pieces, which are shared.
        track: shows the progress of an image in pieces.
    """
    data, channels = way.data, way.data.channels
    identity = job.identify_image()  # before it is read: it may change while its mask is made
    stored = _open_image(job, data)
    if (ndim := len(stored.shape) - 1) != data.ndim:
        raise DataError(f"{job.locations[0]} is {ndim}D; the network was trained on {data.ndim}D images")
    shape, fit = stored.shape[1:], partial(_fit_channels, job.locations, channels)
    stated = None if stored.geometry is None else stored.geometry.spacing
    spacing = way.request.spacing or stated or data.spacing
    way = way.turn(spacing)
    write = partial(_write_outputs, job, name, way, stored.geometry, spacing)
    if not _is_large(shape, data):
        voxels = fit(stored.read())
        intensity = measure_array(voxels)
        rows = way.predict(voxels, intensity, spacing, tuple(slice(0, size) for size in shape))
        _, outputs = next(rows)
        begin()
        share = write(outputs, lambda: voxels)
    else:
        begin()
        if (opened := _open_pieces(job, stored, way, claim)) is None:
            return None
        claim.release()
        pieces, intensity = opened
        image = BoxReader(stored, (channels, *shape), stored.dtype, fit)
        for _ in track(pieces.make(partial(way.predict, image, intensity, spacing)), pieces.left):
            pass
        found: list[float] = []
        names = ("", *way.suffixes)
        if not pieces.finish(
            lambda: found.append(write({n: pieces.open(n) for n in names}, lambda: fit(stored.read())))
        ):
            return None
        share = found[0]
    is_shifted = data.window is not None and intensity.low.min() >= 0 and intensity.high.max() >= SHIFTED_CT
    return _Result(identity, shape, share, stored.notes, bool(is_shifted))


def _open_image(job: Job, data: DataConfig) -> Stored:
    return open_image(*job.locations, reading=replace(make_reading(dict(data)), by_box=True))


def _is_large(shape: Sequence[int], data: DataConfig) -> bool:
    """Return whether an image (*S) is predicted in pieces."""
    return prod(shape) > WHOLE_VOXELS and data.resample_to is None


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


@dataclass(frozen=True)
class _Way:
    """How outputs are made of an image: networks, and what is done with the mean of their probabilities.

    ``settings`` are all that makes a mask another one: not the device, whose rounding does not count.
    """

    request: PredictRequest
    data: DataConfig
    settings: Mapping[str, Any]
    members: tuple[Predictor, ...]
    calibration: Calibration | None
    decision: Decision
    labels: Mapping[str, int]
    """Class of each file of probabilities, by what is put behind its name."""
    uncertainty: tuple[str, ...]
    """What is put behind the names of the maps of uncertainty."""
    path: Path
    """Of the first network."""

    def predict(
        self, image: Voxels, intensity: Intensity, spacing: tuple[float, ...] | None, box: Box
    ) -> Generator[tuple[int, dict[str, NDArray[Any]]], None, None]:
        """Yield the first row and the outputs of some rows of a box; of an array, of all rows at once.

        Raises:
            DataError: where the networks give NaN or infinity.
        """
        spread = self.members[0].spread
        if isinstance(image, np.ndarray):
            found = iter([(0, pool((member(image, spacing) for member in self.members), spread=spread))])
        else:
            found = pool_rows([member.stream(image, intensity, box) for member in self.members], spread=spread)
        decide_classes = replace(self.decision, cleaning=())
        for first, pooled in found:
            mean = pooled[:-1] if spread else pooled
            probs = mean if self.calibration is None else self.calibration.scaling.apply(mean)
            if not np.isfinite(probs).all():
                raise DataError(
                    "the network gives NaN or infinity, no mask is written. Examine it: "
                    f"`ssl-seg diagnose {quote(self.path)}`, or use another checkpoint"
                )
            classes = decide_classes(probs).astype(np.min_scalar_type(len(probs) - 1))
            maps = {ENTROPY: compute_entropy(probs)} if self.uncertainty else {}
            maps |= {VARIANCE: pooled[-1]} if spread else {}
            yield (
                first,
                {"": classes, **{name: self._store(probs[label]) for name, label in self.labels.items()}, **maps},
            )

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What is put behind the names of all files but the mask and the objects."""
        return *self.labels, *self.uncertainty

    def turn(self, spacing: tuple[float, ...] | None) -> _Way:
        """Return the way for an image with voxels of a size (*S), where test-time augmentation is asked for."""
        grid = self.data.resample_to or spacing
        members = (replace(own, turns=list_turns(own.patch_size, grid)) for own in self.members)
        return replace(self, members=tuple(members)) if self.request.tta else self

    def _store(self, probs: NDArray[np.float32]) -> NDArray[Any]:
        return np.round(probs * 255).astype(np.uint8) if self.request.uint8 else probs


def _use_networks(request: PredictRequest, models: Sequence[Model], note: Callable[[str], None]) -> _Way:
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
    settings |= {name: True for name in ("tta", "uint8") if getattr(request, name)}
    spread = request.uncertainty and (request.tta or len(nets) > 1)
    members = tuple(replace(model.predictor(net, request.overlap), spread=spread) for model, net in nets)
    is_written = request.probabilities or request.uint8
    labels = _probability_suffixes(models[0].config.data.num_classes) if is_written else {}
    uncertainty = (ENTROPY, VARIANCE)[: 1 + spread] if request.uncertainty else ()
    return _Way(
        request, models[0].config.data, settings, members, calibration, decision, labels, uncertainty, models[0].path
    )


def _open_pieces(job: Job, stored: Stored, way: _Way, claim: Claim) -> tuple[Pieces, Intensity] | None:
    """Return the pieces of a large image, begun or new, and the statistics of the image, which are kept with them; None
    where another process has put the pieces together and removed them."""
    plan = {"settings": way.settings, "outputs": sorted(way.suffixes), "image": job.identify_image()}
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
    folder = job.mask.with_name(f".{job.mask.name}.{key}.pieces")
    try:
        kept = json.loads((folder / PLAN).read_text(encoding="utf-8"))["intensity"]
        low, high, mean, std = (np.array(kept[name]) for name in _STATISTICS)
        intensity = Intensity(low, high, mean, std)
    except FileNotFoundError:
        if claim.is_made:
            return None
        step = MEASURED_VOXELS * stored.shape[0] * stored.dtype.itemsize
        intensity = measure_by_block(stored, way.data.channels, step)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(intensity, name).tolist() for name in _STATISTICS}
        write_json(folder / PLAN, {**plan, "intensity": numbers})
    return Pieces(folder, stored.shape[1:], divide(stored.shape[1:], way.members[0].patch_size)), intensity


def _find_pieces(job: Job) -> list[Path]:
    """Return the finished pieces of the mask of an image."""
    return list(job.mask.parent.glob(f".{glob.escape(job.mask.name)}.*.pieces/[0-9][0-9][0-9][0-9][0-9].npy"))


def _write_outputs(
    job: Job,
    name: str,
    way: _Way,
    geometry: Geometry | None,
    spacing: tuple[float, ...] | None,
    outputs: Mapping[str, Rows],
    read_image: Callable[[], NDArray[np.generic]],
) -> float:
    """Write probabilities, objects, then the mask, each in one step; return the share of foreground.

    What is done to parts and objects takes the whole mask, and objects the whole image, into memory.
    """
    data, classes = way.data, outputs[""]
    for path, suffix in zip(job.probabilities, way.suffixes, strict=True):
        write_probabilities(path, outputs[suffix], geometry)
    if way.decision.cleaning or job.has_objects:
        classes = clean_classes(classes[:], way.decision.cleaning)
    if job.has_objects:
        image, whole = read_image(), classes[:]
        labels, rows = find_objects(whole, image, data.label_values, spacing, data.task)
        write_rows(job.table, data.ndim, len(image), ([split_suffix(name)[0], *row] for row in rows))
        write_labels(job.labels, labels, geometry)
    if not job.is_numbered:
        write_mask(job.mask, _to_values(classes, data.label_values), geometry)
    return sum(int(np.count_nonzero(rows)) for _, rows in iterate_rows(classes)) / prod(classes.shape)


def _to_values(classes: Rows, label_values: Sequence[int]) -> Rows:
    """Return the values of the training masks for class indices."""
    if isinstance(classes, np.ndarray):
        return to_mask(classes, label_values)
    dtype = to_mask(np.zeros(1, np.uint8), label_values).dtype
    return RowReader(classes.shape, dtype, lambda a, b: to_mask(classes[a:b], label_values))


def _describe_failure(job: Job, error: Exception) -> str:
    """Return why there is no mask of an image.

    Raises:
        OSError: when the disk is full: further images would be predicted in vain.
        Exception: the error itself, if it is one of the program.
    """
    if is_disk_full(error):
        raise OSError(errno.ENOSPC, str(error)) from error
    if not isinstance(error, SslSegError) and not is_out_of_memory(error):
        raise error
    reason = (
        str(error)
        if isinstance(error, SslSegError)
        else "out of memory: use a machine with more memory, or cut the image into parts"
    )
    return reason.removeprefix(job.locations[0]).lstrip(": ")


def _list_failures(jobs: Sequence[Job], outcomes: Mapping[int, _Outcome]) -> list[Failure]:
    found = ((number, outcomes[number]) for number in sorted(outcomes))
    return [(jobs[number].locations[0], outcome) for number, outcome in found if isinstance(outcome, str)]


def _describe_failures(text: str, failures: Sequence[Failure]) -> str:
    shown = [f"  {image}: {reason}" for image, reason in failures[:SHOWN_FAILURES]]
    if left := [image for image, _ in failures[SHOWN_FAILURES:]]:
        shown.append(f"  and {len(left)} more: {', '.join(left)}")
    return "\n".join([text, *shown])


@contextmanager
def _hold_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and remove it at the end where nothing was written into it."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _describe_end(failures: Sequence[Failure], done: int, images: int, output: Path) -> str:
    if images == 1:
        return ": ".join(failures[0])
    rest = f"the other {done} masks are in {output}" if done else "no mask was written"
    text = f"{len(failures)} of {images} images have no mask, {rest}"
    return _describe_failures(f"{text}. Repair or remove them, and give the same command again:", failures)


def _check_workers(workers: int, note: Callable[[str], None]) -> None:
    if workers < 1:
        raise ConfigError(f"--workers {workers}: must be a whole number from 1 on: so many processes work")
    if workers > (cores := count_cores()):
        note(
            f"WARNING --workers {workers}: on a CPU more processes than the {cores} core(s) take memory, not less time"
        )


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


def compute_entropy(probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the entropy (*S) of probabilities (K,*S), 1 where all classes are equally likely."""
    entropy: NDArray[np.float32] = special.entr(probs).sum(axis=0) / np.log(np.float32(len(probs)))
    return entropy.clip(0, 1).astype(np.float32)


def _probability_suffixes(num_classes: int) -> dict[str, int]:
    return {"_prob": 1} if num_classes == 2 else {f"_prob{label}": label for label in range(1, num_classes)}


def _fit_channels(locations: tuple[str, ...], channels: int, voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return voxels with the channels that the network takes."""
    image = merge_equal_channels(voxels) if len(locations) == 1 else voxels
    return fit_channels(image, channels, locations[0])
