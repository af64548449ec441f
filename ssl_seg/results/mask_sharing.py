"""The images of a call, and the pieces of large ones, are shared by the processes of this call and of others."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import torch

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.engine.machine import count_cores
from ssl_seg.errors import DataError, SslSegError, counted, is_out_of_memory
from ssl_seg.files import is_disk_full
from ssl_seg.results.claims import State, claim_each
from ssl_seg.results.mask_files import Job, MaskRecord
from ssl_seg.results.mask_making import (
    MaskMaker,
    MaskResult,
    PredictRequest,
    is_large,
    make_mask,
    open_job_image,
    open_maker,
    open_networks,
)
from ssl_seg.results.pieces import divide
from ssl_seg.results.workers import run_workers

Outcome: TypeAlias = MaskResult | str | None
"""What becomes of an image: a mask, none for the reason said, or a mask that another process has made."""


@dataclass(frozen=True)
class Work:
    """The images of a call that wait for their masks, and the state of these masks when it began."""

    request: PredictRequest
    jobs: Sequence[Job]
    states: Sequence[State]
    record: MaskRecord


@dataclass(frozen=True)
class Step:
    """What a process tells of its progress: the number of an image, or of a piece of the only one; -1 at the start."""

    number: int
    total: int


def share_out(work: Work, maker: MaskMaker, track: Track, note: Callable[[str], None]) -> Iterator[tuple[int, Outcome]]:
    """Return what becomes of each image, by its number, made by this process or by as many as are asked for."""
    asked, count = work.request.workers, count_workers(work, maker)
    if count < asked and work.jobs:
        note(f"--workers {asked}: so few images or pieces are left to share that {counted(count, 'process', 'work')}")
    if count == 1:
        return _make_masks(work, maker, track)
    return _gather(run_workers(count, _make_elsewhere, work, maker.settings, count), track)


def count_workers(work: Work, maker: MaskMaker) -> int:
    """Return how many processes have something to do, no more than are asked for."""
    asked, units = work.request.workers, len(work.jobs)
    for job in work.jobs if units < asked else ():
        with suppress(SslSegError, OSError, MemoryError, RuntimeError):  # said when it is predicted
            shape = open_job_image(job, maker.data).shape[1:]
            units += len(divide(shape, maker.members[0].fit_window(shape))) - 1 if is_large(shape, maker.data) else 0
    return max(1, min(asked, units))


def _make_elsewhere(tell: Callable[[object], None], work: Work, settings: Mapping[str, Any], count: int) -> None:
    """Do the work of one of ``count`` processes, and tell the first one of each step and outcome."""
    torch.set_num_threads(min(torch.get_num_threads(), max(1, count_cores() // count)))

    def track(items: Iterable[Any], total: int) -> Iterator[Any]:
        tell(Step(-1, total))
        for item in items:
            yield item
            tell(Step(item if isinstance(item, int) else item[0], total))

    maker = open_maker(work.request, open_networks(work.request, lambda _: None), lambda _: None)
    if maker.settings != settings:
        raise DataError(f"{maker.path} or its calibration has changed since the command started: run it again")
    for told in _make_masks(work, maker, track):
        tell(told)


def _gather(messages: Iterable[Any], track: Track) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcomes that several processes tell; show each step once, whoever takes it."""
    outcomes: list[tuple[int, Outcome]] = []

    def list_steps() -> Iterator[Step]:
        seen: set[int] = set()
        for message in messages:
            if not isinstance(message, Step):
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


def _make_masks(work: Work, maker: MaskMaker, track: Track) -> Iterator[tuple[int, Outcome]]:
    """Make all masks that no other process makes; yield what becomes of each image, by its number."""
    jobs, record = work.jobs, work.record
    begin = cache(lambda: record.plan(jobs))  # when there is something to write
    alone = len(jobs) == 1  # then it is the pieces of the image that are shown
    claims = claim_each([job.mask for job in jobs], work.states, [record.lock_path(job) for job in jobs])
    for number, claim in claims if alone else track(claims, len(jobs)):
        job, outcome = jobs[number], cast(Outcome, None)
        try:
            if claim is not None and not (claim.before and not work.request.overwrite and record.is_done(job)):
                shown = track if alone else pass_through
                outcome = make_mask(job, record.name(job), maker, begin, claim, shown)
        except (SslSegError, MemoryError, RuntimeError, OSError) as error:
            outcome = _describe_failure(job, error)
        if isinstance(outcome, MaskResult):
            record.finish(job, outcome.identity, outcome.shape, outcome.share)
        yield number, outcome


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
