"""Masks for new images: one file or a folder, 2D or 3D."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ssl_seg.config import DataConfig
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.facts import format_size
from ssl_seg.engine.machine import count_cores
from ssl_seg.errors import ConfigError, DataError, counted, quote
from ssl_seg.files import DISK_FULL, is_disk_full, name_unwritable
from ssl_seg.inference.calibration import check_threshold
from ssl_seg.monitor.catalog import limit
from ssl_seg.results.claims import read_state
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
from ssl_seg.results.mask_making import MaskResult, PredictRequest, find_pieces, open_maker, open_networks
from ssl_seg.results.mask_sharing import Outcome, Work, share_out
from ssl_seg.results.objects import TABLE, check_table, join_tables
from ssl_seg.scores.sameness import FEWEST, find_same

Failure = tuple[str, str]
"""An image, and why it has no mask."""
LEAST_SHARE = 0.01
"""Share of foreground from which masks with the same share are suspicious: small ones agree by chance."""
SHOWN_FAILURES = 20
"""Failed images of which the end of a call says why."""


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
    models = open_networks(request, note)
    data = models[0].config.data
    check_threshold(request.threshold, data)
    check_spacing(request.spacing, data)
    if request.spacing is not None and data.resample_to is None and not request.objects:
        note(
            "WARNING --spacing changes nothing: the network was trained without data.resample_to, on voxels of any size"
        )
    maker = open_maker(request, models, note)
    numbered = data.task == "instances"
    request = replace(request, objects=request.objects or numbered)
    jobs = plan_jobs(
        request.source,
        request.output,
        data.ndim,
        data.layout,
        maker.suffixes,
        objects=request.objects,
        numbered=numbered,
        suffix=request.suffix,
        axes=data.axes,
    )
    for text in note_unread(request.source, request.output, jobs):
        note(text)
    record = MaskRecord(None if is_mask_name(request.output) else request.output, maker.settings)
    if request.objects and record.folder is not None:
        check_table(record.folder / TABLE, data.ndim, data.channels)
    states = {job.mask: read_state(job.mask) for job in jobs}
    waiting, kept = split_jobs(jobs, record, overwrite=request.overwrite)
    if kept:
        note(f"{len(kept)} of {len(jobs)} masks are there already, made by the same call, and are kept")

    work = Work(request, waiting, [states[job.mask] for job in waiting], record)
    outcomes: dict[int, Outcome] = {}

    def count_done() -> int:
        return len(kept) + sum(not isinstance(outcome, str) for outcome in outcomes.values())

    try:
        with _hold_folder(record.folder or request.output.parent):
            for number, outcome in share_out(work, maker, track, note):
                # Another process may make, or have the memory for, what one could not.
                if isinstance(outcome, MaskResult) or isinstance(outcomes.get(number, ""), str):
                    outcomes[number] = outcome
    except KeyboardInterrupt:
        begun = sum(len(find_pieces(job)) for job in waiting)
        kept_pieces = f"; so far {counted(begun, 'piece', 'of larger images are')} done and kept" if begun else ""
        so_far = f"interrupted: {count_done()} of {len(jobs)} masks are in {request.output}{kept_pieces}"
        note(_describe_failures(so_far, _list_failures(waiting, outcomes)))
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DataError(
            f"the disk of {request.output} {DISK_FULL}; {counted(count_done(), 'mask', 'are')} done. Free some space "
            "and give the same command again"
        ) from error
    if request.objects and record.folder is not None:
        join_tables((job.table for job in jobs), record.folder / TABLE, data.ndim, data.channels)
    made = {number: outcome for number, outcome in outcomes.items() if isinstance(outcome, MaskResult)}
    for text in _list_remarks(made, waiting, kept.values(), request, data):
        note(text)
    if failures := _list_failures(waiting, outcomes):
        raise DataError(_describe_end(failures, count_done(), len(jobs), request.output))
    return [job.mask for job in waiting]


def _list_remarks(
    made: Mapping[int, MaskResult], jobs: Sequence[Job], kept: Iterable[Made], request: PredictRequest, data: DataConfig
) -> list[str]:
    """Return what is to be said of the masks that this call has made, and of all together."""
    read_as = Counter(text for result in made.values() for text in result.notes)
    remarks = [f"{counted(number, 'image')}: {remark}" for remark, number in read_as.items()]
    shifted = [jobs[number].locations[0] for number, result in sorted(made.items()) if result.is_shifted]
    shares: dict[tuple[int, ...], list[float]] = {}
    masks: list[Made | MaskResult] = [*kept, *made.values()]
    for mask in masks:
        shares.setdefault(mask.shape, []).append(mask.share)
    found = (*remarks, _describe_shifted(shifted, data), describe_sameness(shares, request.output))
    return [text for text in found if text]


def _describe_shifted(shifted: Sequence[str], data: DataConfig) -> str | None:
    if not shifted or data.window is None:
        return None
    return (
        f"WARNING {counted(len(shifted), 'image', 'have')} no value below 0 ({shifted[0]}). "
        f"data.window=[{data.window[0]:g}, {data.window[1]:g}] holds for values as in training: subtract the offset "
        "(1000, 1024) of such CT"
    )


def _list_failures(jobs: Sequence[Job], outcomes: Mapping[int, Outcome]) -> list[Failure]:
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
    with name_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _describe_end(failures: Sequence[Failure], done: int, images: int, output: Path) -> str:
    if images == 1:
        return ": ".join(failures[0])
    rest = f"{counted(done, 'other mask', 'are')} in {output}" if done else "no mask was written"
    text = f"{len(failures)} of {images} images have no mask, {rest}"
    return _describe_failures(f"{text}. Repair or remove them, and give the same command again:", failures)


def _check_workers(workers: int, note: Callable[[str], None]) -> None:
    if workers < 1:
        raise ConfigError(f"--workers {workers}: must be 1 or a larger whole number, the number of processes")
    if workers > (cores := count_cores()):
        note(
            f"WARNING --workers {workers}: on a CPU, more processes than {counted(cores, 'core')} use more memory and "
            "save no time"
        )


def check_spacing(spacing: Sequence[float] | None, data: DataConfig) -> None:
    """Check that a voxel size has a positive number for each axis of the images; None passes.

    Raises:
        ConfigError: where it has not.
    """
    if spacing is None:
        return
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
        shares: foreground shares of the masks, by their shape (*S).
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
