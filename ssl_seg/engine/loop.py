"""The loop around the step: probes, records, checkpoints, and a clean stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, cast

from ssl_seg.data.loader import Batch
from ssl_seg.data.sampling import ForegroundShift
from ssl_seg.engine.devices import any_process
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.policies import Policies, PolicyEvent
from ssl_seg.engine.window import StepSums
from ssl_seg.monitor.evidence import Figures
from ssl_seg.monitor.memory import Memory
from ssl_seg.monitor.watch import Monitor, Observation
from ssl_seg.networks.checkpoint import Checkpoint, TrainingState

TrainingEnding = Literal["finished", "stopped_early", "interrupted", "collapsed"]
LrAt = Callable[[int, Sequence[float]], float]
"""Step and ranking scores of the finished epochs -> learning rate; see ``schedules.make_lr_schedule``."""
BatchesFrom = Callable[[int, ForegroundShift | None], Iterator[Batch]]
"""First step and change of the foreground share -> the batches of the steps from there on."""


class Recorder(Protocol):
    """Where the loop reports to; on other ranks than 0 it does nothing."""

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        """Take one probe: write the record, show the line."""
        ...

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        ...

    def report(self, action: PolicyEvent, step: int) -> None:
        """Take what a policy or an intervention did after ``step`` updates: write the event, show the line."""
        ...

    def save_best(self, progress: TrainingState, monitor: dict[str, Any]) -> None:
        """Write best.pt, or one of the next best that are kept, if the last score is one of them."""
        ...

    def save_last(self, progress: TrainingState, monitor: dict[str, Any]) -> None:
        """Write last.pt."""
        ...

    def keep_healthy(self, step: int) -> None:
        """Copy last.pt to healthy.pt; that of step 0 to start.pt too."""
        ...

    def load_best(self) -> Checkpoint:
        """Return best.pt, on all ranks."""
        ...

    def load_healthy(self) -> Checkpoint:
        """Return healthy.pt, on all ranks."""
        ...

    def load_start(self) -> Checkpoint:
        """Return start.pt, on all ranks."""
        ...


@dataclass(frozen=True)
class Schedule:
    """When things happen; all figures are numbers of updates made."""

    first_step: int
    total_steps: int
    steps_per_epoch: int
    first_epoch_probes: tuple[int, ...]
    check_steps: int = 20

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

    ending: TrainingEnding
    progress: TrainingState
    observation: Observation | None

    @property
    def step(self) -> int:
        """Number of updates made."""
        return self.progress.step

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its own end."""
        return self.ending in {"finished", "stopped_early"}


@dataclass(frozen=True)
class LoopStart:
    """Where the loop begins: at nothing, or where a checkpoint says."""

    progress: TrainingState = field(default_factory=TrainingState)
    memory: Memory = field(default_factory=Memory)
    window: dict[str, Any] | None = None
    """State of the means since the last look."""


def run_loop(
    engine: Engine,
    monitor: Monitor,
    batches_from: BatchesFrom,
    schedule: Schedule,
    recorder: Recorder,
    policies: Policies,
    interventions: Interventions,
    *,
    lr_at: LrAt,
    start: LoopStart,
    stop_on_collapse: bool,
    stop_requested: Callable[[int], bool],
) -> LoopResult:
    """Train from ``schedule.first_step`` to the end, unless asked to stop or told by the monitor or a policy.

    At the end of an epoch: look, take the score into the history, keep the checkpoint if it is one of the best, let the
    policies act, write last.pt. The monitor intervenes after any look; its actions are the last of a step.

    Args:
        engine: makes the steps.
        monitor: looks at the networks.
        batches_from: those of the steps from one on.
        schedule: when to probe.
        recorder: takes records and checkpoints.
        policies: act between epochs.
        interventions: act on a collapse.
        lr_at: the learning rate.
        start: scores and memory so far; a new run takes the score of the untrained networks.
        stop_on_collapse: end after an epoch whose verdict is collapsed.
        stop_requested: asked after each step, with the number of updates made.
    """
    watch = _Watch(engine, monitor, schedule, recorder, start)
    progress, step = start.progress, schedule.first_step
    if step == 0:
        look = watch.look(0)
        progress = TrainingState(start_score=look.score, collapsed=(0,) if look.has_collapsed else ())
        recorder.save_best(progress, watch.to_plain())
        watch.save(progress, healthy=interventions.settings is not None)
    elif progress.ending is not None:  # resumed when all was done but the final scores
        return LoopResult(cast("TrainingEnding", progress.ending), progress, watch.look_again(step))

    device, observation, ending = engine.fabric.device, None, None
    batches = batches_from(step, watch.memory.ladder.foreground)
    multiplier = policies.compute_lr_multiplier(progress)
    while step < schedule.total_steps:
        ladder = watch.memory.ladder
        factor = interventions.scale_lr(ladder, step, multiplier)
        record = engine.step(
            next(batches).to(device),
            step,
            factor * lr_at(step, progress.ranking_scores[1:]),
            interventions.restrain(ladder, step),
        )
        watch.window.add(record, factor)
        step += 1
        recorder.advance(step)
        looked = watch.is_due(step)
        if looked:
            observation = watch.look(step)
        ends_epoch = schedule.ends_epoch(step)
        if ends_epoch and observation is not None:
            progress = progress.add_epoch(step, observation.score, has_collapsed=observation.has_collapsed)
            recorder.save_best(progress, watch.to_plain())
            ending = _find_ending(schedule, policies, progress, observation, stop_on_collapse=stop_on_collapse)
            for action in policies.act(
                engine, progress, observation.epoch, ending=ending, load_best=recorder.load_best
            ):
                recorder.report(action, step)
            multiplier = policies.compute_lr_multiplier(progress)
        if looked and observation is not None and ending is None:
            ending = watch.intervene(interventions, observation)
            if watch.memory.ladder.foreground != ladder.foreground:
                batches = batches_from(step, watch.memory.ladder.foreground)
        if ends_epoch or ending is not None:
            progress = replace(progress, step=step, ending=ending)
            watch.save(progress, healthy=interventions.settings is not None and watch.is_healthy(observation))
        if ending is not None:
            return LoopResult(ending, progress, observation)
        if step < schedule.total_steps and stop_requested(step):
            progress = replace(progress, step=step)
            watch.save(progress, healthy=False)
            return LoopResult("interrupted", progress, observation)
    return LoopResult("finished", progress, observation)


def _find_ending(
    schedule: Schedule, policies: Policies, progress: TrainingState, observation: Observation, *, stop_on_collapse: bool
) -> TrainingEnding | None:
    """Return how the run ends after this epoch; None where it goes on."""
    if stop_on_collapse and observation.verdict.level == "collapsed":
        return "collapsed"
    if progress.step == schedule.total_steps:
        return "finished"
    return "stopped_early" if policies.stops(progress) else None


class _Watch:
    """The window of training steps and the memory of looks, and when the next look is due."""

    def __init__(
        self, engine: Engine, monitor: Monitor, schedule: Schedule, recorder: Recorder, start: LoopStart
    ) -> None:
        self.engine, self.monitor, self.schedule, self.recorder = engine, monitor, schedule, recorder
        self.memory, self.window = start.memory, StepSums()
        if start.window is not None:
            self.window.load(start.window, engine.fabric.device)

    def is_due(self, step: int) -> bool:
        """Return whether to look after ``step`` updates: planned, called for by the ladder, or by the loss."""
        if self.schedule.probes(step) or step == self.memory.ladder.next_look:
            return True
        return step % self.schedule.check_steps == 0 and any_process(self.engine.fabric, self.window.raises_alarm())

    def look(self, step: int) -> Observation:
        """Look at the networks, and report."""
        means = self.window.compute_means()
        observation = self._observe(step, means, self.memory.trend)
        self.memory = replace(self.memory, trend=observation.trend, training=means)
        self.recorder.observe(observation, observation.to_record() | self.window.to_record(means))
        self.window.start()
        return observation

    def look_again(self, step: int) -> Observation:
        """Return the last look of a training that has ended, on the figures that it was made on; reports nothing."""
        trend = self.memory.trend[:-1] if self.schedule.probes(step) else self.memory.trend
        return self._observe(step, self.memory.training, trend)

    def _observe(self, step: int, training: Figures, trend: tuple[Figures, ...]) -> Observation:
        observation = self.monitor.look(
            self.engine.student,
            self.engine.teacher.net,
            step,
            training,
            trend,
            planned=self.schedule.probes(step),
            ends_epoch=self.schedule.ends_epoch(step),
        )
        return self.engine.fabric.broadcast(observation)  # one verdict for all, also where rounding differs

    def intervene(self, interventions: Interventions, observation: Observation) -> TrainingEnding | None:
        """Do what the observation calls for; return how the run ends where nothing is left to do."""
        recorder = self.recorder
        ladder, done = interventions.act(
            self.engine, self.memory.ladder, observation, recorder.load_healthy, recorder.load_start
        )
        self.memory = replace(self.memory, ladder=ladder)
        if done is None:
            return None
        recorder.report(done, observation.step)
        if done.values["rung"] == "restore":  # the rows so far are of networks that have been given up
            self.memory = replace(self.memory, trend=())
        return "collapsed" if done.values["rung"] == "stop" else None

    def is_healthy(self, observation: Observation | None) -> bool:
        """Return whether the networks have been judged, and found good enough to go back to."""
        if observation is None or observation.step <= self.monitor.warmup_steps:
            return False
        return observation.verdict.is_sound

    def to_plain(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self.memory.to_plain() | {"window": self.window.state()}

    def save(self, progress: TrainingState, *, healthy: bool) -> None:
        """Write last.pt, and healthy.pt where this state is healthy.

        In this order: last.pt says which healthy.pt belongs to it, and can be copied anew; the other way round a run
        that is killed in between would go back to networks of its own future.
        """
        if healthy:
            self.memory = replace(self.memory, healthy_step=progress.step)
        self.recorder.save_last(progress, self.to_plain())
        if healthy:
            self.recorder.keep_healthy(progress.step)
