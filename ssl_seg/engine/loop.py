"""The loop around the step: probes, records, checkpoints, and a clean stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ssl_seg.data.loader import Batch
from ssl_seg.engine.engine import Engine, StepRecord
from ssl_seg.monitor.watch import Monitor, Observation

Ending = Literal["finished", "interrupted", "collapsed"]


class Recorder(Protocol):
    """Where the loop reports to; on other ranks than 0 it does nothing."""

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        """Take one probe: write the record, show the line."""
        ...

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        ...

    def save(self, step: int, best_score: float, *, best: bool) -> None:
        """Write last.pt, and best.pt too when ``best``."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When things happen; all figures are numbers of updates made."""

    first_step: int
    total_steps: int
    steps_per_epoch: int
    first_epoch_probes: tuple[int, ...]

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch, or the run, ends after ``step`` updates."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def probes(self, step: int) -> bool:
        """Return whether the probe sets are evaluated after ``step`` updates."""
        early = step < self.steps_per_epoch and step in self.first_epoch_probes
        return early or self.ends_epoch(step)


@dataclass(frozen=True)
class LoopResult:
    """How the loop ended, after how many updates, and the last look at the networks (None if there was none)."""

    ending: Ending
    step: int
    best_score: float
    observation: Observation | None


def run_loop(
    engine: Engine,
    monitor: Monitor,
    batches: Iterable[Batch],
    schedule: Schedule,
    recorder: Recorder,
    *,
    best_score: float,
    stop_on_collapse: bool,
    stop_requested: Callable[[int], bool],
) -> LoopResult:
    """Train from ``schedule.first_step`` to the end, unless asked to stop or told by the monitor.

    Args:
        engine: makes the steps.
        monitor: looks at the networks.
        batches: those of the steps from ``first_step`` on.
        schedule: when to probe.
        recorder: takes records and checkpoints.
        best_score: best validation score so far; a new run takes that of the untrained networks.
        stop_on_collapse: end after an epoch whose verdict is collapsed.
        stop_requested: asked after each step, with the number of updates made.
    """
    device = engine.fabric.device
    window = _Window(engine.clip_norm)
    observation = None
    step = schedule.first_step
    if step == 0:
        observation = _look(engine, monitor, 0, window, recorder)
        best_score = observation.score
        recorder.save(0, best_score, best=True)

    for batch in batches:
        window.add(engine.step(batch.to(device), step))
        step += 1
        recorder.advance(step)
        if schedule.probes(step):
            observation = _look(engine, monitor, step, window, recorder)
        if schedule.ends_epoch(step) and observation is not None:
            improved = observation.score > best_score
            best_score = max(best_score, observation.score)
            recorder.save(step, best_score, best=improved)
            if stop_on_collapse and observation.verdict.level == "collapsed":
                return LoopResult("collapsed", step, best_score, observation)
        if step < schedule.total_steps and stop_requested(step):
            recorder.save(step, best_score, best=False)
            return LoopResult("interrupted", step, best_score, observation)
    return LoopResult("finished", step, best_score, observation)


def _look(engine: Engine, monitor: Monitor, step: int, window: _Window, recorder: Recorder) -> Observation:
    means = window.flush()
    observation = monitor.look(engine.student, engine.teacher.net, step)
    observation = engine.fabric.broadcast(observation)  # one verdict for all ranks, also where rounding differs
    recorder.observe(observation, observation.to_record() | means)
    window.start()
    return observation


class _Window:
    """Means over the steps since the last probe; tensors are read out once, in ``flush``."""

    def __init__(self, clip_norm: float) -> None:
        self.clip_norm = clip_norm
        self.start()

    def start(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps, self.lr, self.started = 0, 0.0, time.perf_counter()

    def add(self, record: StepRecord) -> None:
        clipped = (record.grad_norm > self.clip_norm).float()
        named = {"loss": record.loss, "grad_norm": record.grad_norm, "clipped_share": clipped, **record.terms}
        for name, value in named.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().float()
        self.steps, self.lr = self.steps + 1, record.lr

    def flush(self) -> dict[str, float]:
        if self.steps == 0:
            return {}
        means = torch.stack([total.cpu() for total in self.sums.values()]) / self.steps
        record = {f"train/{name}": value for name, value in zip(self.sums, means.tolist(), strict=True)}
        record |= {"train/lr": self.lr, "train/seconds_per_step": (time.perf_counter() - self.started) / self.steps}
        return record
