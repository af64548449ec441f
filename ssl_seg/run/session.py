"""A run in progress, and the loop that moves it: steps, looks, checkpoints, and a clean stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ssl_seg.config import GateConfig, LossConfig
from ssl_seg.config.schedules import LossPhase
from ssl_seg.data.loader import Batch, PatchSource
from ssl_seg.data.sampling import ForegroundShift
from ssl_seg.engine.devices import any_process, measure_peak_memory
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.policies import Policies, find_phase
from ssl_seg.engine.step_sums import StepSums
from ssl_seg.losses import SupervisedLoss, make_supervised_loss
from ssl_seg.monitor.evidence import Figures
from ssl_seg.monitor.memory import Memory, read_memory
from ssl_seg.monitor.monitor import Monitor, Observation
from ssl_seg.networks.checkpoint import Checkpoint, Part, RunProgress, load_parts
from ssl_seg.run.directory import TrainingEnding
from ssl_seg.run.gates import find_due
from ssl_seg.run.recorder import Recorder, summarize_probe

LrAt = Callable[[int, Sequence[float]], float]
"""Step and ranking scores of the finished epochs -> learning rate; see ``schedules.make_lr_schedule``."""
BatchesFrom = Callable[[int, ForegroundShift | None], Iterator[Batch]]
"""First step and change of the foreground share -> the batches of the steps from there on."""


@dataclass(frozen=True)
class Schedule:
    """When things happen; all figures are numbers of updates made."""

    total_steps: int
    steps_per_epoch: int
    first_epoch_probes: tuple[int, ...]
    check_steps: int = 20
    snapshots: tuple[int, ...] = ()
    """Steps after which the networks are kept."""

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
    progress: RunProgress
    observation: Observation | None

    @property
    def step(self) -> int:
        """Number of updates made."""
        return self.progress.step

    @property
    def is_complete(self) -> bool:
        """Whether the run came to its own end."""
        return self.ending in {"finished", "stopped_early"}


class Watch:
    """Looks at the networks, and remembers: the means over the steps since the last look, and the looks before.

    A checkpoint has the sums of the first process; all go on from them.
    """

    def __init__(self, engine: Engine, monitor: Monitor, schedule: Schedule) -> None:
        self.engine, self.monitor, self.schedule = engine, monitor, schedule
        self.memory, self.sums = Memory(), StepSums()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return self.memory.to_plain() | {"window": self.sums.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.memory = read_memory(state)
        self.sums.load_state_dict(state["window"], self.engine.fabric.device)

    def is_due(self, step: int) -> bool:
        """Return whether to look after ``step`` updates: planned, called for by the recovery, or by the loss."""
        if self.schedule.probes(step) or step == self.memory.recovery.next_look:
            return True
        return step % self.schedule.check_steps == 0 and any_process(self.engine.fabric, self.sums.raises_alarm())

    def look(self, step: int) -> tuple[Observation, dict[str, Any]]:
        """Look at the networks; return what is found, and the record of it and of the steps since the last look."""
        means = self.sums.compute_means(self.engine.fabric)
        observation = self._observe(step, means, self.memory.trend)
        self.memory = replace(self.memory, trend=observation.trend, training=means)
        record = observation.to_record() | self.sums.to_record(means)
        self.sums.start()
        return observation, record

    def look_again(self, step: int) -> Observation:
        """Return the last look of a training that has ended, on the figures that it was made on."""
        trend = self.memory.trend[:-1] if self.schedule.probes(step) else self.memory.trend
        return self._observe(step, self.memory.training, trend)

    def _observe(self, step: int, training: Figures, trend: tuple[Figures, ...]) -> Observation:
        observation = self.monitor.look(
            self.engine.plain.student,
            self.engine.plain.teacher,
            step,
            training,
            trend,
            planned=self.schedule.probes(step),
            ends_epoch=self.schedule.ends_epoch(step),
            others=self.engine.others,
        )
        return self.engine.fabric.broadcast(observation)  # one verdict for all, also where rounding differs

    def is_healthy(self, observation: Observation | None) -> bool:
        """Return whether the networks have been judged, and found good enough to go back to."""
        if observation is None or observation.step <= self.monitor.warmup_steps:
            return False
        return observation.verdict.is_sound


@dataclass
class Session:
    """A run in progress: what acts in it, and how far it is."""

    engine: Engine
    watch: Watch
    source: PatchSource
    """Batches of the run, as the settings say."""
    batches_from: BatchesFrom
    policies: Policies
    interventions: Interventions
    recorder: Recorder
    lr_at: LrAt
    header: dict[str, Any]
    """What its checkpoints say about the run: config, split and seen_labels; see ``Checkpoint``."""
    stop_on_collapse: bool = False
    """End after an epoch whose verdict is collapsed."""
    gates: tuple[GateConfig, ...] = ()
    """End after an epoch at which one of them is broken."""
    loss: SupervisedLoss = field(default_factory=lambda: make_supervised_loss(LossConfig()))
    """Supervised loss of the method; the policies may change its phases."""
    progress: RunProgress = field(default_factory=RunProgress)
    scores: dict[str, Any] = field(default_factory=dict)
    """Scores of both networks at the last look; see ``Checkpoint``."""
    phases: tuple[LossPhase, ...] = field(init=False)
    """Phases of the loss, as in the settings."""

    def __post_init__(self) -> None:
        self.phases = self.loss.phases

    @property
    def parts(self) -> dict[str, Part]:
        """Everything with a state beside the networks, by its name in a checkpoint; see ``Engine.parts`` too."""
        return self.engine.parts | self._own_parts

    @property
    def _own_parts(self) -> dict[str, Part]:
        """The parts that no rollback takes back: one line for each."""
        parts = {
            "monitor": self.watch,
            "swa": self.policies.average,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Continue from a checkpoint of this run.

        Raises:
            CheckpointError: see ``Engine.restore``.
        """
        self.engine.restore(checkpoint, where)
        load_parts(self._own_parts, checkpoint, where)
        self.progress, self.scores = checkpoint.progress, checkpoint.scores

    def snapshot(self) -> Checkpoint:
        """Return the present state."""
        return Checkpoint(
            student=self.engine.plain.student.state_dict(),
            teacher=self.engine.plain.teacher.state_dict(),
            progress=replace(self.progress, ema_updates=self.engine.teacher.updates),
            scores=self.scores,
            parts={name: state for name, part in self.parts.items() if (state := part.state_dict())},
            **self.header,
        )

    def look(self, step: int) -> Observation:
        """Look at the networks, and report."""
        observation, record = self.watch.look(step)
        record |= self._describe_machine(step, record.get("train/seconds_per_step"))
        self.scores = summarize_probe(observation)
        self.recorder.observe(observation, record)
        return observation

    def _describe_machine(self, step: int, pace: float | None) -> dict[str, float | None]:
        """Return memory, seconds an epoch and hours to go for the record; ``pace`` is in seconds a step."""
        memory = {"machine/memory_gib": measure_peak_memory(self.engine.fabric.device)}
        if pace is None:
            return memory
        schedule = self.watch.schedule
        hours = pace * (schedule.total_steps - step) / 3600
        return memory | {"machine/seconds_per_epoch": pace * schedule.steps_per_epoch, "machine/hours_to_go": hours}

    def save(self, *, healthy: bool) -> None:
        """Write last.pt, and healthy.pt where this state is healthy.

        In this order: last.pt says which healthy.pt belongs to it, and can be copied anew; the other way round a run
        that is killed in between would go back to networks of its own future.
        """
        if healthy:
            self.watch.memory = replace(self.watch.memory, healthy_step=self.progress.step)
        self.recorder.save_last(self.snapshot())
        if healthy:
            self.recorder.keep_healthy(self.progress.step)


def run_loop(session: Session, stop_requested: Callable[[int], bool]) -> LoopResult:
    """Train to the end, unless asked to stop or told by the monitor or a policy.

    At the end of an epoch: look, take the score into the history, keep the checkpoint if it is one of the best, let the
    policies act, write last.pt. The monitor intervenes after any look; its actions are the last of a step.

    Args:
        session: the run; a new one takes the score of the untrained networks.
        stop_requested: asked after each step, with the number of updates made.
    """
    engine, watch, recorder, policies = session.engine, session.watch, session.recorder, session.policies
    schedule, interventions, step = watch.schedule, session.interventions, session.progress.step
    recovers = _recovers(session)
    if step == 0:
        watch.memory = Memory()  # a run that was killed in its first epoch begins anew
        look = session.look(0)
        session.progress = RunProgress(start_score=look.score, collapsed=(0,) if look.has_collapsed else ())
        recorder.save_best(session.snapshot())
        session.save(healthy=recovers)
    elif session.progress.ending is not None:  # resumed when all was done but the final scores
        return LoopResult(cast("TrainingEnding", session.progress.ending), session.progress, watch.look_again(step))

    session.loss.phases = policies.adapt_phases(session.phases, session.progress)
    device, observation, ending = engine.fabric.device, None, None
    batches = session.batches_from(step, watch.memory.recovery.foreground)
    multiplier = policies.compute_lr_multiplier(session.progress)
    while step < schedule.total_steps:
        recovery = watch.memory.recovery
        factor = interventions.scale_lr(recovery, step, multiplier)
        lr = factor * session.lr_at(step, session.progress.ranking_scores[1:])
        record = engine.step(next(batches).to(device), step, lr, interventions.restrain(recovery, step))
        watch.sums.add(record, factor)
        step += 1
        recorder.advance(step)
        if step in schedule.snapshots:
            recorder.save_snapshot(session.snapshot(), step)
        if watch.is_due(step):  # as always at the end of an epoch
            observation = session.look(step)
            if schedule.ends_epoch(step):
                ending = _end_epoch(session, observation, step)
                multiplier = policies.compute_lr_multiplier(session.progress)
            if ending is None:
                ending = _intervene(session, observation)
                if watch.memory.recovery.foreground != recovery.foreground:
                    batches = session.batches_from(step, watch.memory.recovery.foreground)
        if schedule.ends_epoch(step) or ending is not None:
            session.progress = replace(session.progress, step=step, ending=ending)
            session.save(healthy=recovers and watch.is_healthy(observation))
        if ending is not None:
            return LoopResult(ending, session.progress, observation)
        if step < schedule.total_steps and stop_requested(step):
            session.progress = replace(session.progress, step=step)
            session.save(healthy=False)
            return LoopResult("interrupted", session.progress, observation)
    return LoopResult("finished", session.progress, observation)


def _end_epoch(session: Session, observation: Observation, step: int) -> TrainingEnding | None:
    """Take the look at the end of an epoch into the history, and let the policies act; return how the run ends here."""
    collapsed, recorder = observation.has_collapsed, session.recorder
    session.progress = session.progress.add_epoch(step, observation.score, has_collapsed=collapsed)
    recorder.save_best(session.snapshot())
    ending = _find_ending(session, observation)
    load_best = partial(recorder.load, "best")
    for action in session.policies.act(
        session.engine, session.progress, observation.epoch, ending=ending, load_best=load_best
    ):
        recorder.report(action, step)
    session.loss.phases = session.policies.adapt_phases(session.phases, session.progress)
    phase = find_phase(session.loss.phases, observation.epoch)
    if ending is None and phase is not None:
        recorder.report(phase, step)
    return ending


def _find_ending(session: Session, observation: Observation) -> TrainingEnding | None:
    """Return how the run ends after this epoch; None where it goes on."""
    if session.stop_on_collapse and observation.verdict.level == "collapsed":
        return "collapsed"
    if "non_finite" in observation.verdict.codes and not _recovers(session) and _has_broken(session.engine.student):
        return "collapsed"  # no step brings weights back that are NaN
    ending: TrainingEnding | None = "stopped_early" if session.policies.stops(session.progress) else None
    if session.progress.step == session.watch.schedule.total_steps:
        ending = "finished"
    due = find_due(session.gates, observation.epoch, ended=ending is not None)
    return "refused" if due and session.recorder.judge_gates(due, observation.step) else ending


def _recovers(session: Session) -> bool:
    """Return whether the monitor intervenes when a network collapses."""
    return session.interventions.settings is not None


def _has_broken(net: nn.Module) -> bool:
    """Return whether a network has weights that are NaN or infinite."""
    return any(not bool(torch.isfinite(weight).all()) for weight in net.parameters())


def _intervene(session: Session, observation: Observation) -> TrainingEnding | None:
    """Do what the observation calls for; return how the run ends where nothing is left to do."""
    watch, recorder = session.watch, session.recorder
    recovery, done = session.interventions.act(session.engine, watch.memory.recovery, observation, recorder.load)
    watch.memory = replace(watch.memory, recovery=recovery)
    if done is None:
        return None
    recorder.report(done, observation.step)
    if done.values["rung"] == "restore":  # the rows so far are of networks that have been given up
        watch.memory = replace(watch.memory, trend=())
    return "collapsed" if done.values["rung"] == "stop" else None
