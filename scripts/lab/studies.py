"""Part (b) and the studies: healthy runs, runs that save themselves, runs that are left alone, what looking costs."""

from __future__ import annotations

import copy
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from trainings import map_runs

import ssl_seg.methods.base
import ssl_seg.run.training
from lab import injections
from lab.runs import Nested, read_run, run_training, write_particles, write_sheets
from ssl_seg.config.layers import Layer
from ssl_seg.engine.step_sums import StepSums
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.session import LoopResult, Session
from ssl_seg.run.training import train

DEFAULT: Nested = {
    "network": {"name": "dynunet"},
    "length": {"steps": 140, "steps_per_epoch": 20},
    "optim": {"lr": 3e-4, "warmup_steps": 14},
}
"""The network, the learning rate and the warm-up that a run of 140 steps has without further settings."""
SHEETS: Nested = {"data": {"patch_size": [16, 32, 32]}, "batch": {"labeled": 2, "unlabeled": 2}}
METHODS = ("supervised", "mean_teacher")


@dataclass(frozen=True)
class Healthy:
    """A training without a fault."""

    data: str
    """``particles``, ``empty`` (particles, 40 % of the images without any), ``sheets``, or a folder."""
    labels: float
    method: str
    seed: int


def plan_healthy(folders: tuple[str, ...] = (), first_seed: int = 0) -> list[Healthy]:
    """Return 20 trainings: all label fractions and methods on three data sets, two once more; and 6 for each folder."""
    ways = [(fraction, method) for fraction in (0.01, 0.10, 1.0) for method in METHODS]
    names = ("particles", "empty", "sheets", *folders)
    plan = [Healthy(name, *way, first_seed + i) for name in names for i, way in enumerate(ways)]
    more = [("empty", 0.10), ("particles", 0.01)]
    return [*plan, *(Healthy(n, f, "mean_teacher", first_seed + 6 + i) for i, (n, f) in enumerate(more))]


@dataclass(frozen=True)
class HealthyResult:
    """What the monitor said of a healthy training; counts are of looks."""

    task: Healthy
    looks: int
    warned: int
    collapsed: int
    codes: tuple[tuple[int, str, str], ...]
    """Step, code and level of each finding."""
    f1: float
    trivial_f1: float


def run_healthy(out: Path, again: bool, item: tuple[int, Healthy]) -> HealthyResult:
    """Train one of them, or judge that training again."""
    number, task = item
    path = out / f"healthy{number:02d}_seed{task.seed}"
    settings: list[Nested] = [DEFAULT, {"split": {"labels": task.labels}, "method": {"name": task.method}}]
    settings += [SHEETS] if task.data == "sheets" else []
    settings += [{"batch": {"unlabeled": 0}}] if task.method == "supervised" or task.labels == 1.0 else []
    run = read_run(path) if again else run_training(path, _find_data(out, task.data), task.seed, *settings)
    found = tuple((look.step, f.code, f.level) for look in run.looks for f in look.findings)
    levels = Counter(look.level for look in run.looks)
    return HealthyResult(task, len(run.looks), levels["warn"], levels["collapsed"], found, *run.f1_of("best"))


def run_all_healthy(
    out: Path, folders: tuple[str, ...] = (), workers: int = 2, *, first_seed: int = 0, again: bool = False
) -> list[HealthyResult]:
    """Train all of them, or judge them again."""
    plan = plan_healthy(folders, first_seed)
    for data in dict.fromkeys(task.data for task in plan):
        _find_data(out, data)
    return list(map_runs(partial(run_healthy, out, again), enumerate(plan), 1 if again else workers))


def _find_data(out: Path, name: str) -> str:
    if name == "particles":
        return write_particles(out / "data" / "particles")
    if name == "empty":
        return write_particles(out / "data" / "empty", empty=0.4)
    return write_sheets(out / "data" / "sheets") if name == "sheets" else name


COLLAPSING: Nested = {
    "optim": {"name": "sgd", "lr": 10.0, "clip_norm": None},
    "length": {"steps": 240, "steps_per_epoch": 20},
}
"""A hundred times the learning rate that suits SGD, and nothing is clipped; the head starts at log-odds -4."""
START_BIAS = -4.0
MARGIN = 0.10


@dataclass(frozen=True)
class Recovery:
    """How a training that was meant to collapse ended."""

    seed: int
    on_collapse: str
    ending: str
    trivial_f1: float
    best_f1: float
    last_f1: float
    codes: tuple[str, ...]
    """Codes of the last look."""
    rungs: tuple[tuple[int, str], ...]
    """Step and rung of each intervention."""

    @property
    def is_saved(self) -> bool:
        """Whether the last networks are clearly above the trivial baseline."""
        return self.last_f1 > self.trivial_f1 + MARGIN


def run_recovery(out: Path, task: tuple[int, str]) -> Recovery:
    """Train the task that collapses, with a seed and a setting of ``on_collapse``."""
    seed, on_collapse = task
    data = write_particles(out / "data" / "particles")
    path = out / f"recover_{on_collapse}_seed{seed}"
    settings = {"monitor": {"on_collapse": on_collapse}}
    fault = partial(injections.trap_bias, START_BIAS)
    run = run_training(path, data, seed, COLLAPSING, settings, fault=fault)
    rungs = tuple((e["step"], e["rung"]) for e in run.events if e["event"] == "intervention")
    best, trivial = run.f1_of("best")
    return Recovery(seed, on_collapse, run.ending, trivial, best, run.f1_of("last")[0], run.looks[-1].codes, rungs)


def run_recoveries(out: Path, seeds: Sequence[int] = range(10), workers: int = 2) -> list[Recovery]:
    """Train with ``warn`` and with ``recover``."""
    write_particles(out / "data" / "particles")
    tasks = [(seed, mode) for mode in ("warn", "recover") for seed in seeds]
    return list(map_runs(partial(run_recovery, out), tasks, workers))


@dataclass(frozen=True)
class Harmless:
    """A healthy training beside the bare loop of its steps."""

    seed: int
    equal: bool
    """Whether all numbers of the student are the same, bit for bit."""
    f1: float
    looks: int


def run_harmless(out: Path, seed: int) -> Harmless:
    """Train with the monitor on ``recover``, and again without any monitor; compare the students."""
    data = write_particles(out / "data" / "particles")
    settings: Nested = {"length": {"steps": 60, "steps_per_epoch": 20}, "monitor": {"on_collapse": "recover"}}
    run = run_training(out / f"watched_seed{seed}", data, seed, settings)
    watched = load_checkpoint(run.path / "checkpoints" / "last.pt").student
    bare: dict[str, Any] = {}
    run_training(
        out / f"bare_seed{seed}", data, seed, settings, fault=partial(_replace_loop, partial(_step_barely, bare))
    )
    equal = all(torch.equal(watched[name], bare[name]) for name in watched) and watched.keys() == bare.keys()
    return Harmless(seed, equal, run.f1_of("last")[0], len(run.looks))


def run_all_harmless(out: Path, seeds: Sequence[int] = range(10), workers: int = 2) -> list[Harmless]:
    """Compare at each seed."""
    write_particles(out / "data" / "particles")
    return list(map_runs(partial(run_harmless, out), seeds, workers))


def _replace_loop(loop: Any) -> AbstractContextManager[Any]:
    return mock.patch.object(ssl_seg.run.training, "run_loop", loop)


def _step_barely(kept: dict[str, Any], session: Session, *_: Any) -> LoopResult:
    """The loop without anything but steps; the student is kept."""
    engine, batches = session.engine, session.batches_from(0, None)
    for step in range(session.watch.schedule.total_steps):
        engine.step(next(batches).to(engine.fabric.device), step, session.lr_at(step, ()))
    kept |= copy.deepcopy(engine.student.state_dict())
    return LoopResult("interrupted", session.progress, None)


@dataclass(frozen=True)
class Overhead:
    """What watching costs; ratios are of one run."""

    ratios: tuple[float, ...]
    """Seconds of a block of steps with the figures for the monitor over those of the block without, pair by pair."""
    seconds_per_step: float
    seconds_per_look: float
    loss_ratios: tuple[float, ...]
    """Seconds of a look that measures the loss on validation over those of one that does not, pair by pair."""
    first_epoch_looks: int
    steps_per_epoch: int

    @property
    def first_epoch_share(self) -> float:
        """Share of the looks in the time of the first epoch."""
        return self._share(self.first_epoch_looks)

    @property
    def later_share(self) -> float:
        """Share of the looks in the time of a later epoch."""
        return self._share(1)

    def _share(self, looks: int) -> float:
        looking = looks * self.seconds_per_look
        return looking / (looking + self.steps_per_epoch * self.seconds_per_step)


def measure_overhead(
    out: Path, blocks: int = 12, block_steps: int = 6, looks: int = 6, settings: Nested | None = None
) -> Overhead:
    """Time blocks of steps with and without the monitor's figures in turn, then looks, at default settings."""
    kept: list[Overhead] = []
    loop = partial(_time_blocks, kept, blocks, block_steps, looks)
    length: Nested = {"length": {"steps": 2 * blocks * block_steps + 2}, "data": {"root": "synthetic:particles"}}
    layers = tuple(Layer("lab", dict(values)) for values in (length, settings or {}))
    shutil.rmtree(out, ignore_errors=True)
    with _replace_loop(loop):
        train(TrainRequest(layers, out))
    return kept[0]


def _time_blocks(
    kept: list[Overhead], blocks: int, block_steps: int, looks: int, session: Session, *_: Any
) -> LoopResult:
    engine, monitor, schedule, lr_at = session.engine, session.watch.monitor, session.watch.schedule, session.lr_at
    batches, device = session.batches_from(0, None), engine.fabric.device
    window, seconds, step = StepSums(), {True: list[float](), False: list[float]()}, 0
    engine.step(next(batches).to(device), step, lr_at(step, ()))
    for block in range(2 * blocks):
        watched = (block + block // 2) % 2 == 0  # on, off, off, on: a slow drift of the machine cancels out
        ready = [next(batches).to(device) for _ in range(block_steps)]
        with _figures(watched):
            begin = _read_clock(device)
            for batch in ready:
                step += 1
                record = engine.step(batch, step, lr_at(step, ()))
                if watched:
                    window.add(record, 1.0)
            seconds[watched].append(_read_clock(device) - begin)
    means, looking = window.compute_means(), {True: list[float](), False: list[float]()}
    for number in range(2 * looks):
        measured = (number + number // 2) % 2 == 0
        looker = monitor if measured else replace(monitor, loss=None)
        begin = _read_clock(device)
        looker.look(engine.student, engine.teacher.net, step, means, ())
        looking[measured].append(_read_clock(device) - begin)
    pairs = zip(seconds[True], seconds[False], strict=True)
    early = [s for s in schedule.first_epoch_probes if s < schedule.steps_per_epoch]
    kept.append(
        Overhead(
            tuple(on / off for on, off in pairs),
            statistics.median(seconds[True]) / block_steps,
            statistics.median(looking[True]),
            tuple(on / off for on, off in zip(looking[True], looking[False], strict=True)),
            len(early) + 1,
            schedule.steps_per_epoch,
        )
    )
    return LoopResult("interrupted", session.progress, None)


def _read_clock(device: torch.device) -> float:
    """Return seconds: of the processor on a CPU, which other programs do not disturb; of the clock on others."""
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@contextmanager
def _figures(watched: bool) -> Iterator[None]:
    """Leave the methods as they are, or without the figures that they compute for the monitor alone."""
    if watched:
        yield
        return
    with mock.patch.object(ssl_seg.methods.base, "count_foreground", return_value={}):
        yield
