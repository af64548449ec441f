"""The parts of a training, made from its settings: batches, probes, engine, monitor and session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import get_start_method
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.config.layers import to_plain
from ssl_seg.config.schedules import find_snapshots, find_warmup, list_phases, make_ema_schedule, make_lr_schedule
from ssl_seg.data.loader import Batch, PatchSource, Probe, describe_missed_share, make_loader, make_probe, measure_share
from ssl_seg.data.open import make_source, open_store, shift_foreground_share
from ssl_seg.data.sampling import ForegroundShift
from ssl_seg.data.splits.files import split_to_dict
from ssl_seg.engine.devices import choose_memory_format, time_memory_formats
from ssl_seg.engine.ema import EMATeacher, WeightAverage
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.engine.pace import Pace, plan_workers
from ssl_seg.engine.policies import Policies
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.common import LossFn
from ssl_seg.losses.trivial import compute_ranges
from ssl_seg.methods import METHODS
from ssl_seg.methods.base import Built, find_plain
from ssl_seg.monitor.actions import list_components, read_context
from ssl_seg.monitor.monitor import Monitor
from ssl_seg.monitor.recovery import InterventionSettings, make_rungs
from ssl_seg.monitor.signals import cut_batches
from ssl_seg.networks.checkpoint import Checkpoint
from ssl_seg.networks.parts import PARTS
from ssl_seg.networks.precision import choose_precision, make_autocast
from ssl_seg.run.console import Console
from ssl_seg.run.prepare import BegunRun
from ssl_seg.run.pretraining.state import load_body, load_pretraining
from ssl_seg.run.recorder import Recorder, last_reported_verdict
from ssl_seg.run.resolve import Resolved
from ssl_seg.run.resources import check_shared_memory, count_given_workers, count_possible_workers
from ssl_seg.run.scenarios import describe_scenarios
from ssl_seg.run.session import Schedule, Session, Watch
from ssl_seg.run.transfer import load_student, load_teacher

_SHIFTS: tuple[ForegroundShift, ...] = ("more", "less")
SHARE_BATCHES, SHARE_TOLERANCE = 10, 0.05
"""Batches that are made to say how near they come to ``batch.foreground_share``, and how near is near."""


@dataclass(frozen=True)
class Feed:
    """What the networks are shown."""

    source: PatchSource
    val: Probe
    train: Probe
    ranges: dict[str, tuple[float, float]]
    """Range of each component of the loss on ``val``; see ``compute_ranges``."""
    workers: int
    """Processes that make the batches of ``source``."""


@dataclass(frozen=True)
class Ready:
    """What is made before a run directory is: settings that the machine decides, what is trained, and on what."""

    config: Config
    notes: list[str]
    """Why precision and memory format are what they are."""
    built: Built
    loss: SupervisedLoss
    """Supervised loss of the method."""
    feed: Feed
    pace: Pace | None
    """Measured pace; None for a run that is too short to measure."""


def settle_runtime(fabric: Fabric, config: Config, network: nn.Module, console: Console) -> tuple[Config, list[str]]:
    """Resolve precision and memory format as suits a network; return the reasons too."""
    runtime = config.runtime
    example = torch.randn(config.patches, config.data.channels, *config.data.patch_size, device=fabric.device)
    precision, reason = fabric.broadcast(choose_precision(runtime.precision, network, example))
    notes = [f"precision: {precision} ({reason})"]
    memory_format: str = runtime.memory_format
    if memory_format == "auto":
        autocast = make_autocast(precision, fabric.device)
        seconds = fabric.broadcast(time_memory_formats(network, example, autocast))
        memory_format = choose_memory_format(seconds)
        timed = ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())
        notes.append(f"memory format: {memory_format} (forward and backward: {timed})")
    if fabric.is_global_zero:
        for text in notes:
            console.note(text)
    runtime = runtime.model_copy(update={"precision": precision, "memory_format": memory_format})
    return config.model_copy(update={"runtime": runtime}), notes


def open_feed(fabric: Fabric, resolved: Resolved, loss: SupervisedLoss, console: Console) -> Feed:
    """Return the batches of this process, and the patches that the networks are looked at on."""
    config, split = resolved.config, resolved.split
    store, patch = open_store(resolved.catalog, config.data, resolved.pseudo_labels), config.data.patch_size
    views = METHODS[config.method.name].traits.strong_views
    source = make_source(
        config,
        store,
        resolved.labeled,
        resolved.unlabeled,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        strong_views=views,
    )
    if source.foreground_share is not None and fabric.is_global_zero:
        console.note(_describe_share(source, source.foreground_share))
    asked, workers = config.runtime.workers, count_given_workers(config.runtime)
    if asked not in ("auto", workers) and fabric.is_global_zero:
        console.note(f"runtime.workers = {asked}: {workers} are used, one for each core that is granted")
    check_shared_memory(config, views, workers)
    val = make_probe(store, split.val, config.monitor.probe_patches, patch, split.seed)
    batches = cut_batches(val, config.labeled_range[1], fabric.device)
    return Feed(
        source,
        val,
        make_probe(store, resolved.labeled, config.monitor.train_probe_patches, patch, split.seed),
        compute_ranges(_find_components(config, loss), batches, config.data.num_classes),
        workers,
    )


def settle_workers(fabric: Fabric, config: Config, pace: Pace, console: Console) -> Pace:
    """Resolve ``runtime.workers`` = auto; return the pace of a run with so many.

    Systems that start processes instead of forking them would run the user's script again in each, and get none.
    """
    if config.runtime.workers != "auto" or fabric.device.type != "cuda" or get_start_method() != "fork":
        return pace
    most = count_possible_workers(config, METHODS[config.method.name].traits.strong_views)
    pace = replace(pace, workers=fabric.broadcast(plan_workers(pace, most)))
    if fabric.is_global_zero:
        console.note(
            f"runtime.workers: {pace.workers} (making a batch takes {pace.load:.3f} s, the rest of a step "
            f"{pace.update:.3f} s; threads and memory suffice for {most})"
        )
    return pace


def _find_components(config: Config, loss: SupervisedLoss) -> dict[str, LossFn]:
    """Return the components of the loss that are named in a phase that the run comes to."""
    last = (config.length.steps - 1) / config.length.steps_per_epoch
    reached = {name for phase in list_phases(config.loss) if phase.from_epoch <= last for name in phase.weights}
    return {name: component for name, component in loss.components.items() if name in reached}


def _describe_share(source: PatchSource, wanted: float) -> str:
    """Return how near the first batches come to the share of foreground that is asked for."""
    found = measure_share(source, SHARE_BATCHES)
    mean = sum(found) / len(found)
    if abs(mean - wanted) > SHARE_TOLERANCE:
        return f"data: WARNING {describe_missed_share(wanted, mean)}"
    return (
        f"data: batch.foreground_share = {wanted:g}: the first {len(found)} batches hold {mean:.1%} foreground, each "
        f"{min(found):.1%} to {max(found):.1%}"
    )


def make_engine(fabric: Fabric, config: Config, built: Built, teacher: EMATeacher) -> Engine:
    """Return the engine that moves what a method has built, with the optimizer and the precision of the settings."""
    encoders = [module for net in built.networks for module in PARTS[config.network.name](net).encoder]
    return Engine(
        fabric,
        built.module,
        make_optimizer(built.module, config.optim, encoders),
        teacher,
        built.method,
        make_autocast(config.runtime.precision, fabric.device),
        total_steps=config.length.steps,
        steps_per_epoch=config.length.steps_per_epoch,
        clip_norm=config.optim.clip_norm,
        seed=config.seed,
        gradient_noise=config.policies.gradient_noise,
        threshold=config.prediction.threshold,
    )


def make_monitor(fabric: Fabric, config: Config, feed: Feed, supervised: SupervisedLoss) -> Monitor:
    """Return what looks at the networks, with the loss of the run on its probe."""

    def loss_at(logits: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, size = max(step - 1, 0) / config.length.steps_per_epoch, config.labeled_range[1]  # as in the step before
        parts = zip(torch.split(logits, size), torch.split(target, size), strict=True)
        totals, terms = zip(*(supervised(*part, epoch) for part in parts), strict=True)
        return torch.stack(totals).mean(), {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}

    return Monitor(
        val=feed.val,
        train=feed.train,
        label_values=config.data.label_values,
        device=fabric.device,
        batch_size=config.patches,
        autocast=make_autocast(config.runtime.precision, fabric.device),
        warmup_steps=find_warmup(config.optim, config.length),
        steps_per_epoch=min(config.length.steps_per_epoch, config.length.steps),
        select=config.monitor.select,
        components=list_components(config.loss),
        ranges=feed.ranges,
        loss=loss_at,
        threshold=config.prediction.threshold,
        uses_teacher=METHODS[config.method.name].traits.uses_teacher,
        context=read_context(config),
    )


def assemble(
    fabric: Fabric, prepared: BegunRun, ready: Ready, checkpoint: Checkpoint | None, recorder: Recorder
) -> Session:
    """Return a session that begins at the start of a run, or goes on from its checkpoint."""
    config, feed, built, where = prepared.config, ready.feed, ready.built, str(prepared.start)
    average = None if config.policies.swa is None else WeightAverage(built.plain)
    engine = make_engine(fabric, config, built, _make_teacher(prepared, built, checkpoint))
    uses_unlabeled = built.method.traits.uses_unlabeled
    reduces, length = config.optim.schedule == "reduce_on_plateau", config.length
    schedule = Schedule(
        length.steps,
        length.steps_per_epoch,
        config.monitor.first_epoch_probes,
        config.monitor.check_steps,
        find_snapshots(length),
    )

    def batches_from(step: int, foreground: ForegroundShift | None) -> Iterator[Batch]:
        source, pin_memory = shift_foreground_share(feed.source, foreground), fabric.device.type == "cuda"
        return iter(make_loader(source, step, length.steps, feed.workers, pin_memory))

    recovery = _make_recovery(config, feed.source, uses_unlabeled=uses_unlabeled)
    if fabric.is_global_zero and not prepared.resumed:
        for text in describe_scenarios(config, () if recovery is None else recovery.rungs):
            recorder.console.note(f"scenario: {text}")
    session = Session(
        engine,
        Watch(engine, make_monitor(fabric, config, feed, ready.loss), schedule),
        feed.source,
        batches_from,
        Policies(config.policies, config.seed, average, config.optim.plateau_patience if reduces else None),
        Interventions(recovery, average),
        recorder,
        make_lr_schedule(config.optim, length, sum(config.labeled_range) / 2 * fabric.world_size),
        {
            "config": to_plain(config),
            "split": split_to_dict(prepared.split),
            "seen_labels": prepared.resolved.seen_labels,
        },
        config.monitor.on_collapse == "stop",
        config.gates,
        ready.loss,
    )
    if prepared.resumed and checkpoint is not None:
        session.restore(checkpoint, where)
        session.recorder.told = last_reported_verdict(prepared.run)
        step = session.progress.step
        if session.watch.memory.healthy_step == step:  # the run may have been killed before it copied the file
            session.recorder.keep_healthy(step)
    return session


def _make_teacher(prepared: BegunRun, built: Built, checkpoint: Checkpoint | None) -> EMATeacher:
    """Put the weights that a new run begins with into its plain network; return the teacher that belongs to it."""
    config, where = prepared.config, str(prepared.start)
    parent = None if prepared.resumed else checkpoint  # a resumed session is restored as a whole
    if parent is not None:
        load_student(built.plain, parent, config, where)
    elif config.network.pretrained is not None and not prepared.resumed:
        load_body(built.plain, load_pretraining(Path(config.network.pretrained)), config, config.network.pretrained)
    held = config.bootstrap.pseudo_label_steps
    teacher = EMATeacher(built.module, make_ema_schedule(config.ema, config.length.steps - held), held)
    if parent is not None:
        teacher.updates = load_teacher(find_plain(built.method, teacher.net), parent, config, where)
    return teacher


def _make_recovery(config: Config, source: PatchSource, *, uses_unlabeled: bool) -> InterventionSettings | None:
    """Return how a run recovers from a collapse; None where it does not."""
    if config.monitor.on_collapse != "recover":
        return None
    shifts = tuple(shift for shift in _SHIFTS if shift_foreground_share(source, shift) != source)
    rungs = make_rungs(uses_unlabeled=uses_unlabeled and bool(source.unlabeled), can_shift=bool(shifts))
    return InterventionSettings(
        rungs,
        config.monitor.patience_steps,
        find_warmup(config.optim, config.length),
        config.optim.clip_norm,
        shifts,
    )
