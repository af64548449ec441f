"""How the files of one image are made: the networks, what is done with the mean of their probabilities, and what is
written of it, at once or in pieces."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ssl_seg.config import DataConfig
from ssl_seg.data.blocks import iterate_blocks
from ssl_seg.data.catalog import Track
from ssl_seg.data.facts import format_size
from ssl_seg.data.formats.stored import AnyArray, LazyArray, iterate_rows
from ssl_seg.data.nodata import OddValues, looks_written
from ssl_seg.data.reading import make_reading
from ssl_seg.data.store import fit_channels, measure_by_block, read_fitting
from ssl_seg.data.views.transforms import MEASURED_VOXELS, Intensity, measure_intensity
from ssl_seg.data.volumes import (
    Geometry,
    Stored,
    lay_out_as_file,
    open_image,
    split_suffix,
    write_labels,
    write_mask,
    write_probabilities,
)
from ssl_seg.errors import DataError, counted, quote
from ssl_seg.files import write_json
from ssl_seg.inference.calibration import (
    Calibration,
    calibration_path,
    decide,
    decide_mean,
    find_calibration,
)
from ssl_seg.inference.decision import Decision, clean_classes
from ssl_seg.inference.ensemble import check_members, open_members, pool, pool_rows
from ssl_seg.inference.model import Model
from ssl_seg.inference.sliding import OVERLAP, Predictor
from ssl_seg.inference.stitching import Box
from ssl_seg.inference.turns import list_turns
from ssl_seg.labels import to_mask
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.claims import Claim
from ssl_seg.results.folds import list_members
from ssl_seg.results.mask_files import ENTROPY, VARIANCE, Job
from ssl_seg.results.objects import find_objects, write_rows
from ssl_seg.results.pieces import PLAN, WHOLE_VOXELS, Pieces, divide

_STATISTICS = ("low", "high", "mean", "std")

ONE_VALUE = "all voxels have the same value, so the mask says nothing"
"""Said of an image."""

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
    """Probability above which a voxel is foreground; by default that of the calibration, without one that of the
    training's settings, and without that the likeliest class counts."""
    calibrated: bool = True
    """Use what ``ssl-seg calibrate`` has stored beside the checkpoint; not used for an ensemble."""
    more: tuple[Path, ...] = ()
    """Further checkpoints: masks are made from the mean of all their probabilities. The directory of a cross-validation
    stands for best.pt of its folds."""
    overwrite: bool = False
    """Replace masks that are there already."""
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
    """File suffix of the masks in a folder; by default PNG, TIFF for volumes, and NIfTI for NIfTI images."""
    workers: int = 1
    """Processes that share the images, and the pieces of a large one; no more are started than there are of these."""


@dataclass(frozen=True)
class MaskResult:
    """What is reported about a mask that was made."""

    identity: list[list[Any]]
    """Identity of the image that was read; see ``identify_image``."""
    shape: tuple[int, ...]
    share: float
    notes: tuple[str, ...]
    is_shifted: bool
    """Whether the image, a CT, has no value below that of air."""


def open_networks(request: PredictRequest, note: Callable[[str], None]) -> tuple[Model, ...]:
    """Return the networks of a request, on the device where they are to compute.

    Raises:
        SslSegError: for an unusable checkpoint, or networks whose probabilities have no mean.
    """
    paths = list_members((request.checkpoint, *request.more))
    models = open_members(paths, request.which, choose_device_if_given(request.accelerator))
    check_members(models, averaged=True)
    for said in (said for model in models for said in model.describe_machine()):
        note(said)
    return models


@dataclass(frozen=True)
class MaskMaker:
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
    """Checkpoint of the first network."""

    def predict(
        self, image: AnyArray, intensity: Intensity, spacing: tuple[float, ...] | None, box: Box
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

    def turn(self, spacing: tuple[float, ...] | None) -> MaskMaker:
        """Return the maker for voxels of a size (*S), on which the turns of test-time augmentation depend."""
        grid = self.data.resample_to or spacing
        members = (replace(own, turns=list_turns(own.patch_size, grid)) for own in self.members)
        return replace(self, members=tuple(members)) if self.request.tta else self

    def _store(self, probs: NDArray[np.float32]) -> NDArray[Any]:
        return np.round(probs * 255).astype(np.uint8) if self.request.uint8 else probs


def open_maker(request: PredictRequest, models: Sequence[Model], note: Callable[[str], None]) -> MaskMaker:
    """Return how masks are made with networks; a note says which calibration is left out."""
    nets = [(model, net) for model in models for net in model.nets]
    calibration = find_calibration(*nets[0], note) if request.calibrated and len(nets) == 1 else None
    if calibration is None and request.threshold is None:  # a better threshold may be all that is missing
        for text in (text for model, net in nets for text in model.describe_doubt(net)):
            note(text)
    for model in models if len(nets) > 1 else ():
        if (stored := calibration_path(model.path)).is_file():
            note(f"{stored} belongs to one network: the mean of {len(nets)} does not use it")
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
    labels = _list_probability_suffixes(models[0].config.data.label_values) if is_written else {}
    uncertainty = (ENTROPY, VARIANCE)[: 1 + spread] if request.uncertainty else ()
    return MaskMaker(
        request, models[0].config.data, settings, members, calibration, decision, labels, uncertainty, models[0].path
    )


def make_mask(
    job: Job, name: str, maker: MaskMaker, begin: Callable[[], None], claim: Claim, track: Track
) -> MaskResult | None:
    """Make what is written for an image; return None where another process has finished it meanwhile.

    Args:
        name: that of the mask in tables.
        begin: is called before the first file is written.
        claim: to the image; given up where it has pieces, which are shared.
        track: shows the progress of an image in pieces.
    """
    data, channels = maker.data, maker.data.channels
    identity = job.identify_image()  # before it is read: it may change while its mask is made
    stored = open_job_image(job, data)
    check_dimensions(stored, job.locations[0], data)
    shape, fit = stored.shape[1:], partial(fit_channels, channels=channels, where=job.locations[0])
    stated = None if stored.geometry is None else stored.geometry.spacing
    spacing = maker.request.spacing or stated or data.spacing
    maker = maker.turn(spacing)
    write = partial(_write_outputs, job, name, maker, stored.geometry, spacing)
    if not is_large(shape, data):
        stored, voxels, intensity = read_whole(stored, partial(open_job_image, job), data, fit)
        rows = maker.predict(voxels, intensity, spacing, tuple(slice(0, size) for size in shape))
        _, outputs = next(rows)
        begin()
        share = write(outputs, lambda: voxels)
    else:
        begin()
        if (opened := _open_pieces(job, stored, maker, claim)) is None:
            return None
        claim.release()
        stored, pieces, intensity = opened
        image = read_fitting(stored, channels, job.locations[0])
        for _ in track(pieces.make(partial(maker.predict, image, intensity, spacing)), pieces.left):
            pass
        found: list[float] = []
        names = ("", *maker.suffixes)
        if not pieces.finish(
            lambda: found.append(write({n: pieces.open(n) for n in names}, lambda: fit(stored.read())))
        ):
            return None
        share = found[0]
    is_shifted = data.window is not None and intensity.low.min() >= 0 and intensity.high.max() >= SHIFTED_CT
    notes = stored.notes if (intensity.high > intensity.low).any() else (*stored.notes, ONE_VALUE)
    return MaskResult(identity, shape, share, notes, bool(is_shifted))


def check_dimensions(stored: Stored, name: str, data: DataConfig) -> None:
    """Check that an image has the dimensions of the training.

    Raises:
        DataError: where it has not; says how it is read.
    """
    if (ndim := len(stored.shape) - 1) != data.ndim:
        read_as = f"is read as {ndim}D, {format_size(stored.shape[1:])} with {counted(stored.shape[0], 'channel')}"
        slices = ". If these are slices, save them as NIfTI or a TIFF with the axes ZYX" * (ndim < stored.shape[0] <= 4)
        raise DataError(f"{name} {read_as}; the network was trained on {data.ndim}D images{slices}")


def open_job_image(job: Job, data: DataConfig) -> Stored:
    """Return the image of a job as the training read its own; a large one is read by box.

    A compressed file of NIfTI is unpacked near the mask, since the folder of temporary files may lie in memory.
    """
    scratch = next(folder for folder in job.mask.absolute().parents if folder.is_dir())
    return open_image(*job.locations, reading=replace(make_reading(dict(data)), scratch=scratch))


def read_whole(
    stored: Stored,
    reopen: Callable[[DataConfig], Stored],
    data: DataConfig,
    fit: Callable[[NDArray[np.generic]], NDArray[np.generic]],
) -> tuple[Stored, NDArray[np.generic], Intensity]:
    """Return an image, its voxels (C,*S) and their intensity; a value that looks like a mark for no data is NaN.

    Args:
        stored: the image as it was opened first.
        reopen: opens it with other settings.
        data: settings of the training.
        fit: gives voxels the channels that the network takes.
    """
    voxels = fit(stored.read())
    intensity = measure_intensity(voxels)
    if (mark := _find_mark(stored, intensity, data)) is None:
        return stored, voxels, intensity
    stored = _leave_out(reopen, data, mark)
    voxels = fit(stored.read())
    return stored, voxels, measure_intensity(voxels)


def _find_mark(stored: Stored, intensity: Intensity, data: DataConfig) -> float | None:
    """Return the value of an image that looks like a mark for no data, as it would have been found for training; None
    where the settings name one, or say that there is none."""
    kind = stored.dtype if stored.gaps is None else stored.gaps.dtype
    extremes = (*intensity.low.tolist(), *intensity.high.tolist())
    if data.nodata is not None or not any(looks_written(value, kind) for value in extremes):
        return None
    odd = OddValues()
    for block in iterate_blocks(stored):
        known = block.voxels[~np.isnan(block.voxels)].astype(np.float64)
        if known.size:
            odd.look_at(known, kind)
    return odd.find()


def _leave_out(reopen: Callable[[DataConfig], Stored], data: DataConfig, mark: float) -> Stored:
    """Return an image without the voxels that have a value, and a note on that."""
    stored = reopen(data.model_copy(update={"nodata": mark}))
    note = f"WARNING the value {mark:g} is taken for no data, as it is far from all others, and predicted as background"
    return replace(stored, notes=(*stored.notes, note))


def is_large(shape: Sequence[int], data: DataConfig) -> bool:
    """Return whether an image (*S) is predicted in pieces."""
    return prod(shape) > WHOLE_VOXELS and data.resample_to is None


def _open_pieces(job: Job, stored: Stored, maker: MaskMaker, claim: Claim) -> tuple[Stored, Pieces, Intensity] | None:
    """Return a large image, its pieces, begun or new, and its statistics, which are kept with them; None where another
    process has put the pieces together and removed them."""
    plan = {"settings": maker.settings, "outputs": sorted(maker.suffixes), "image": job.identify_image()}
    key = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:8]
    folder = job.mask.with_name(f".{job.mask.name}.{key}.pieces")
    try:
        begun = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        low, high, mean, std = (np.array(begun["intensity"][name]) for name in _STATISTICS)
        intensity = Intensity(low, high, mean, std)
        if (mark := begun.get("nodata")) is not None:
            stored = _leave_out(partial(open_job_image, job), maker.data, mark)
    except FileNotFoundError:
        if claim.is_made:
            return None
        step = MEASURED_VOXELS * stored.shape[0] * stored.dtype.itemsize
        intensity = measure_by_block(stored, maker.data.channels, step)
        if (mark := _find_mark(stored, intensity, maker.data)) is not None:
            stored = _leave_out(partial(open_job_image, job), maker.data, mark)
            intensity = measure_by_block(stored, maker.data.channels, step)
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(intensity, name).tolist() for name in _STATISTICS}
        write_json(folder / PLAN, {**plan, "intensity": numbers, "nodata": mark})
    shape = stored.shape[1:]
    return stored, Pieces(folder, shape, divide(shape, maker.members[0].fit_window(shape))), intensity


def find_pieces(job: Job) -> list[Path]:
    """Return the finished pieces of the mask of an image."""
    return list(job.mask.parent.glob(f".{glob.escape(job.mask.name)}.*.pieces/[0-9][0-9][0-9][0-9][0-9].npy"))


def _write_outputs(
    job: Job,
    name: str,
    maker: MaskMaker,
    geometry: Geometry | None,
    spacing: tuple[float, ...] | None,
    outputs: Mapping[str, AnyArray],
    read_image: Callable[[], NDArray[np.generic]],
) -> float:
    """Write probabilities, objects, then the mask, each in one step; return the share of foreground.

    What is done to parts and objects takes the whole mask, and objects the whole image, into memory.
    """
    data, classes = maker.data, outputs[""]
    for path, suffix in zip(job.probabilities, maker.suffixes, strict=True):
        write_probabilities(path, outputs[suffix], geometry)
    if maker.decision.cleaning or job.has_objects:
        classes = clean_classes(classes[:], maker.decision.cleaning)
    if job.has_objects:
        image, whole = read_image(), classes[:]
        lay_out = partial(lay_out_as_file, path=job.labels, geometry=geometry)
        labels, rows = find_objects(whole, image, data.label_values, spacing, data.task, lay_out)
        write_rows(job.table, data.ndim, len(image), ([split_suffix(name)[0], *row] for row in rows))
        write_labels(job.labels, labels, geometry)
    if not job.is_numbered:
        write_mask(job.mask, _to_values(classes, data.label_values), geometry)
    return sum(int(np.count_nonzero(rows)) for _, rows in iterate_rows(classes)) / prod(classes.shape)


def _to_values(classes: AnyArray, label_values: Sequence[int]) -> AnyArray:
    """Return the values of the training masks for class indices."""
    if isinstance(classes, np.ndarray):
        return to_mask(classes, label_values)
    dtype = to_mask(np.zeros(1, np.uint8), label_values).dtype
    return LazyArray(classes.shape, dtype, lambda rows: to_mask(classes[rows], label_values))


def compute_entropy(probs: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the entropy (*S) of probabilities (K,*S), 1 where all classes are equally likely."""
    entropy: NDArray[np.float32] = special.entr(probs).sum(axis=0) / np.log(np.float32(len(probs)))
    return entropy.clip(0, 1).astype(np.float32)


def _list_probability_suffixes(label_values: Sequence[int]) -> dict[str, int]:
    """Return what is put behind the name of each foreground class's file, its mask value, and the class index."""
    several = len(label_values) > 2
    return {f"_prob{value if several else ''}": label for label, value in enumerate(label_values) if label > 0}
