"""The loop around the step: probes, records, checkpoints, and a clean stop."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from ssl_seg.checkpoint import Checkpoint, Progress
from ssl_seg.data.loader import Batch
from ssl_seg.engine.engine import Engine, StepRecord
from ssl_seg.engine.policies import Action, Policies
from ssl_seg.monitor.watch import Monitor, Observation

Ending = Literal["finished", "stopped_early", "interrupted", "collapsed"]
LrAt = Callable[[int, Sequence[float]], float]
"""Step and history -> learning rate; see ``schedules.make_lr_schedule``."""


class Recorder(Protocol):
    """Where the loop reports to; on other ranks than 0 it does nothing."""

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        """Take one probe: write the record, show the line."""
        ...

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        ...

    def report(self, action: Action, step: int) -> None:
        """Take what a policy did after ``step`` updates: write the event, show the line."""
        ...

    def save_best(self, progress: Progress) -> None:
        """Write best.pt, or one of the next best that are kept, if the last score is one of them."""
        ...

    def save_last(self, progress: Progress) -> None:
        """Write last.pt."""
        ...

    def load_best(self) -> Checkpoint:
        """Return best.pt, on all ranks."""
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
    progress: Progress
    observation: Observation | None

    @property
    def step(self) -> int:
        """Number of updates made."""
        return self.progress.step

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its own end."""
        return self.ending in {"finished", "stopped_early"}


def run_loop(
    engine: Engine,
    monitor: Monitor,
    batches: Iterable[Batch],
    schedule: Schedule,
    recorder: Recorder,
    policies: Policies,
    *,
    lr_at: LrAt,
    progress: Progress,
    stop_on_collapse: bool,
    stop_requested: Callable[[int], bool],
) -> LoopResult:
    """Train from ``schedule.first_step`` to the end, unless asked to stop or told by the monitor or a policy.

    At the end of an epoch: look, take the score into the history, keep the checkpoint if it is one of the best, let the
    policies act, write last.pt.

    Args:
        engine: makes the steps.
        monitor: looks at the networks.
        batches: those of the steps from ``first_step`` on.
        schedule: when to probe.
        recorder: takes records and checkpoints.
        policies: act between epochs.
        lr_at: the learning rate.
        progress: scores so far; a new run takes that of the untrained networks.
        stop_on_collapse: end after an epoch whose verdict is collapsed.
        stop_requested: asked after each step, with the number of updates made.
    """
    device = engine.fabric.device
    window = _Window(engine.clip_norm, shows_multiplier=policies.settings.plateau_response is not None)
    observation = None
    step = schedule.first_step
    if step == 0:
        observation = _look(engine, monitor, 0, window, recorder)
        progress = Progress(start_score=observation.score)
        recorder.save_best(progress)
        recorder.save_last(progress)
    elif policies.stops(progress):  # resumed when all was done but the final scores
        return LoopResult("stopped_early", progress, None)

    multiplier = policies.compute_lr_multiplier(progress)
    for batch in batches:
        window.add(engine.step(batch.to(device), step, multiplier * lr_at(step, progress.history)), multiplier)
        step += 1
        recorder.advance(step)
        if schedule.probes(step):
            observation = _look(engine, monitor, step, window, recorder)
        if schedule.ends_epoch(step) and observation is not None:
            progress = replace(progress, step=step, history=(*progress.history, observation.score))
            recorder.save_best(progress)
            ending = _find_ending(schedule, policies, progress, observation, stop_on_collapse=stop_on_collapse)
            for action in policies.act(
                engine, progress, observation.epoch, ending=ending, load_best=recorder.load_best
            ):
                recorder.report(action, step)
            recorder.save_last(progress)
            if ending is not None:
                return LoopResult(ending, progress, observation)
            multiplier = policies.compute_lr_multiplier(progress)
        if step < schedule.total_steps and stop_requested(step):
            progress = replace(progress, step=step)
            recorder.save_last(progress)
            return LoopResult("interrupted", progress, observation)
    return LoopResult("finished", progress, observation)


def _find_ending(
    schedule: Schedule, policies: Policies, progress: Progress, observation: Observation, *, stop_on_collapse: bool
) -> Ending | None:
    """Return how the run ends after this epoch; None where it goes on."""
    if stop_on_collapse and observation.verdict.level == "collapsed":
        return "collapsed"
    if progress.step == schedule.total_steps:
        return "finished"
    return "stopped_early" if policies.stops(progress) else None


def _look(engine: Engine, monitor: Monitor, step: int, window: _Window, recorder: Recorder) -> Observation:
    means = window.flush()
    observation = monitor.look(engine.student, engine.teacher.net, step)
    observation = engine.fabric.broadcast(observation)  # one verdict for all ranks, also where rounding differs
    recorder.observe(observation, observation.to_record() | means)
    window.start()
    return observation


class _Window:
    """Means over the steps since the last probe; tensors are read out once, in ``flush``."""

    def __init__(self, clip_norm: float, *, shows_multiplier: bool) -> None:
        self.clip_norm, self.shows_multiplier = clip_norm, shows_multiplier
        self.start()

    def start(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.steps, self.lr, self.multiplier, self.started = 0, 0.0, 1.0, time.perf_counter()

    def add(self, record: StepRecord, multiplier: float) -> None:
        clipped = (record.grad_norm > self.clip_norm).float()
        named = {"loss": record.loss, "grad_norm": record.grad_norm, "clipped_share": clipped, **record.terms}
        for name, value in named.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().float()
        self.counts.update(named.keys())
        self.steps, self.lr, self.multiplier = self.steps + 1, record.lr, multiplier

    def flush(self) -> dict[str, float]:
        if self.steps == 0:
            return {}
        # A term of a loss phase may be there in some of the steps only.
        counts = torch.tensor([self.counts[name] for name in self.sums])
        means = torch.stack([total.cpu() for total in self.sums.values()]) / counts
        record = {f"train/{name}": value for name, value in zip(self.sums, means.tolist(), strict=True)}
        record |= {"train/lr": self.lr, "train/seconds_per_step": (time.perf_counter() - self.started) / self.steps}
        return record | ({"train/lr_multiplier": self.multiplier} if self.shows_multiplier else {})
