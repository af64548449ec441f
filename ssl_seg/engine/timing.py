"""How long the parts of a run take on this machine: the real step, look and prediction, made on copies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from ssl_seg.config import Config
from ssl_seg.data.loader import PatchSource, Probe
from ssl_seg.data.resample import compute_resampled_shape
from ssl_seg.data.store import CaseStore
from ssl_seg.engine.devices import synchronize
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.pace import Pace
from ssl_seg.engine.step_sums import StepSums
from ssl_seg.errors import counted
from ssl_seg.files import write_text
from ssl_seg.inference.sliding import OVERLAP, Predictor
from ssl_seg.inference.stitching import place_windows
from ssl_seg.monitor.monitor import Monitor
from ssl_seg.networks.precision import choose_inference_precision, fork_generators, make_autocast

WARM_STEPS, TIMED_STEPS = 2, 5
"""Steps that are made first, and the most that are timed."""
SHARE = 0.03
"""Share of the run after which no further step is timed."""
PROBE_PART = 4
"""One in so many patches of the probes is looked at."""
NETWORKS = 6
"""Passes over validation at the end: student and teacher of best.pt and last.pt, and one of them with windows of both
lengths; the average, where there is one, comes on top."""

T = TypeVar("T")


@dataclass(frozen=True)
class Stopwatch:
    """Calls a function and times it; ``now`` returns seconds."""

    device: torch.device
    now: Callable[[], float] = time.perf_counter

    def __call__(self, do: Callable[[], T]) -> tuple[float, T]:
        """Return the seconds that ``do`` takes, on the device too, and what it returns."""
        synchronize(self.device)
        start = self.now()
        result = do()
        synchronize(self.device)
        return self.now() - start, result


def measure_pace(
    engine: Engine,
    monitor: Monitor,
    source: PatchSource,
    config: Config,
    val: Sequence[str],
    *,
    workers: int,
    seconds: float | None,
    now: Callable[[], float] = time.perf_counter,
) -> Pace:
    """Return what the parts of a run take; the random streams stay as they are.

    Args:
        engine: made for this alone: it is trained, with a learning rate of 0.
        monitor: monitor of the run.
        source: batches of the run.
        config: configuration of the run.
        val: ids of the validation cases.
        workers: processes that will load batches.
        seconds: length of the run; None where ``config.length.steps`` gives it.
        now: the clock, in seconds.
    """
    fabric, device = engine.fabric, engine.fabric.device
    timed, begun = Stopwatch(device, now), now()
    with fork_generators(device):
        small, share = _cut_probes(monitor)
        look, _ = timed(partial(small.look, engine.plain.student, engine.plain.teacher, 0))
        scoring = _measure_scoring(engine, source.store, config, val, timed)
        cold, warm, updates, cases = list[float](), list[float](), list[float](), frozenset[str]()
        for step in range(WARM_STEPS + TIMED_STEPS):
            fetch = partial(source.__getitem__, step)
            first, _ = timed(fetch)
            again, batch = timed(fetch)  # now from memory, where the cases are kept there
            update, _ = timed(partial(engine.step, batch.to(device), step, 0.0))
            cold, warm, updates, cases = [*cold, first], [*warm, again], [*updates, update], cases | {*batch.case_ids}
            length = config.length.steps * (update + again) if seconds is None else seconds
            if fabric.broadcast(step >= WARM_STEPS and now() - begun > SHARE * length):
                break
    update, reading = median(updates[WARM_STEPS:]), 0.0
    load = median(warm if source.store.fits else cold)
    if source.store.fits:
        reading = max(sum(cold) - sum(warm), 0.0) / len(cases) * len({*source.labeled, *source.unlabeled})
    return fabric.broadcast(Pace(update, look / share, reading, scoring, load, workers))


def list_metrics(engine: Engine, monitor: Monitor, source: PatchSource) -> set[str]:
    """Return the names of the figures that a run records at a look; the random streams stay as they are.

    Args:
        engine: made for this alone: it is trained, with a learning rate of 0.
        monitor: monitor of the run.
        source: batches of the run.
    """
    device, sums = engine.fabric.device, StepSums()
    with fork_generators(device):
        sums.add(engine.step(source[0].to(device), 0, 0.0), 1.0)
        look = _cut_probes(monitor)[0].look(engine.plain.student, engine.plain.teacher, 0)
    record = look.to_record() | sums.to_record(sums.compute_means())
    return {name for name, value in record.items() if "/" in name and not isinstance(value, list | str)}


def count_windows(shape: Sequence[int], patch_size: Sequence[int]) -> int:
    """Return the windows in which an image (*S) is predicted."""
    return math.prod(map(len, place_windows(shape, patch_size, OVERLAP).starts))


def _cut_probes(monitor: Monitor) -> tuple[Monitor, float]:
    """Return a monitor that looks at a part of the patches, and which share that is."""
    val, train = (
        Probe(probe.image[::PROBE_PART], probe.target[::PROBE_PART], probe.case_ids[::PROBE_PART])
        for probe in (monitor.val, monitor.train)
    )
    return replace(monitor, val=val, train=train), len(val.image) / len(monitor.val.image)


def _measure_scoring(engine: Engine, store: CaseStore, config: Config, val: Sequence[str], timed: Stopwatch) -> float:
    """Return the seconds of the final scores, from the smallest validation case and a few windows of it."""
    data, device, facts = config.data, engine.fabric.device, store.catalog.facts
    autocast = make_autocast(choose_inference_precision(config.runtime.precision, device), device)
    net = engine.plain.teacher
    predict = Predictor(
        net, data.patch_size, device, autocast, resample_to=data.resample_to, intensity_window=data.window
    )

    def count(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> int:
        if data.resample_to is not None and spacing is not None:
            shape = compute_resampled_shape(shape, spacing, data.resample_to)
        return count_windows(shape, data.patch_size)

    smallest = min(val, key=lambda i: math.prod(facts[i].shape))
    reading, case = timed(partial(store.load_whole, smallest))
    image = case.image[(slice(None), *(slice(2 * n) for n in data.patch_size))]
    predicting = min(timed(partial(predict, image, case.spacing))[0] for _ in range(2))
    predicting /= count(image.shape[1:], case.spacing)
    windows = sum(count(facts[i].shape, facts[i].spacing) for i in val)
    voxels = sum(math.prod(facts[i].shape) for i in val) / math.prod(facts[smallest].shape)
    networks = NETWORKS + (config.policies.swa is not None)
    return reading * voxels + networks * windows * predicting


TABLE_FILE, TIMELINE_FILE = "profile.txt", "profile.json"
SKIPPED = 5
"""Steps that go by first: they fill caches."""
SHOWN = 40
"""Operators of the table."""


@contextmanager
def profile_steps(
    count: int, folder: Path, device: torch.device, note: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Record ``count`` steps, with what lies between them, and yield what to call after each step.

    Writes a table of the operators, those first that take the most time by themselves, and a timeline for browsers.

    Args:
        count: number of steps; 0 records nothing.
        folder: for the two files.
        device: where the steps are made.
        note: is told where they are, or that there were too few steps.

    Raises:
        OSError: if a file cannot be written.
    """
    if not count:
        yield lambda: None
        return
    is_gpu = device.type == "cuda"
    recording = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu])
    made = 0

    def count_step() -> None:
        nonlocal made
        made += 1
        if made == SKIPPED:
            recording.start()
        elif made == SKIPPED + count:
            recording.stop()
            write()

    def write() -> None:
        own_time = f"self_{'cuda' if is_gpu else 'cpu'}_time_total"
        table = recording.key_averages().table(sort_by=own_time, row_limit=SHOWN)
        steps = counted(made - SKIPPED, "step")
        write_text(folder / TABLE_FILE, f"{steps}\n{table}")
        recording.export_chrome_trace(str(folder / TIMELINE_FILE))
        note(f"profile: {steps} in {folder / TABLE_FILE}, with a timeline in {folder / TIMELINE_FILE}")

    try:
        yield count_step
    finally:
        is_cut = SKIPPED <= made < SKIPPED + count
        if is_cut:
            recording.stop()
    if is_cut and made > SKIPPED:
        write()
    elif made <= SKIPPED:
        note(f"profile: none was made: there were {made} steps, of which the first {SKIPPED} are left out")
