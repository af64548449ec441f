"""Training: from a request to a run directory with checkpoints, records and scores."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.config.layers import to_plain
from ssl_seg.config.schedules import find_snapshots, find_warmup, make_ema_schedule, make_lr_schedule
from ssl_seg.data.loader import (
    Batch,
    PatchSource,
    Probe,
    describe_missed_share,
    make_loader,
    make_probe,
    measure_share,
)
from ssl_seg.data.open import make_source, open_store, shift_foreground_share
from ssl_seg.data.sampling import ForegroundShift, derive_seed
from ssl_seg.data.splits.files import split_to_dict
from ssl_seg.engine.devices import (
    any_process,
    call_on_main,
    choose_memory_format,
    measure_peak_memory,
    time_memory_formats,
    to_memory_format,
)
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.machine import count_cores
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.engine.pace import FEWEST_MEASURED, Pace, describe_pace, describe_seconds, estimate_seconds
from ssl_seg.engine.policies import Policies
from ssl_seg.engine.processes import open_fabric
from ssl_seg.engine.swa import WeightAverage
from ssl_seg.engine.timing import list_metrics, measure_pace
from ssl_seg.files import hold_directory
from ssl_seg.inference.model import make_network, start_network
from ssl_seg.losses import SupervisedLoss, make_supervised_loss
from ssl_seg.losses.common import LossFn
from ssl_seg.losses.trivial import compute_ranges
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import Built, build, find_plain
from ssl_seg.monitor.actions import list_components, read_context
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.recovery import InterventionSettings, make_rungs
from ssl_seg.monitor.signals import cut_batches
from ssl_seg.monitor.watch import Monitor
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint
from ssl_seg.networks.parts import PARTS
from ssl_seg.networks.precision import choose_precision, make_autocast
from ssl_seg.run.console import Console, LoggedConsole, Silent
from ssl_seg.run.directory import RunDir, read_header, write_config
from ssl_seg.run.failures import describe_interrupt, explain_failure
from ssl_seg.run.final_scores import describe_for_checkpoint
from ssl_seg.run.finish import finish_run
from ssl_seg.run.gates import check_metrics
from ssl_seg.run.prepare import BegunRun, begin_run, fit_minutes, prepare_run, reopen_run
from ssl_seg.run.pretraining.state import load_body, load_pretraining
from ssl_seg.run.recorder import Recorder, last_reported_verdict
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve_runtime
from ssl_seg.run.resources import check_shared_memory
from ssl_seg.run.scenarios import describe_scenarios
from ssl_seg.run.session import Schedule, Session, TrainingEnding, Watch, run_loop
from ssl_seg.run.sinks import Copies, check_sinks
from ssl_seg.run.transfer import load_student, load_teacher
from ssl_seg.scores.text import number

_SHIFTS: tuple[ForegroundShift, ...] = ("more", "less")
SHARE_BATCHES, SHARE_TOLERANCE = 10, 0.05
"""Batches that are made to say how near they come to ``batch.foreground_share``, and how near is near."""
STEPS_BETWEEN_AGREEMENTS = 10
"""How often several processes ask each other whether one was told to stop."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. ``scores`` are those of best.pt on the whole validation cases; empty where it was interrupted.

    ``verdict`` is the last one given; without findings where the run was stopped before its first probe.
    """

    run: RunDir
    ending: TrainingEnding
    step: int
    verdict: Verdict
    scores: dict[str, Any]
    is_main: bool
    """Whether this is the process that writes and talks."""
    tolerates_collapse: bool = True
    """Whether monitor.on_collapse is ``warn``."""
    swa_scores: dict[str, Any] | None = None
    """Validation scores of swa.pt, where weights were averaged."""


def train(request: TrainRequest, console: Console | None = None) -> TrainResult:
    """Train one run.

    Started by torchrun or SLURM, or with more than one device, every process runs this function; the first one plans,
    writes and talks.

    Raises:
        SslSegError: for anything the user can mend; RefusedError for a parent that fails the gate.
    """
    check_sinks(request.log)
    console = LoggedConsole(console or Silent())
    with open_fabric(resolve_runtime(request), in_study=request.in_study) as fabric, ExitStack() as held:

        def hold(path: Path) -> None:
            held.enter_context(hold_directory(path, console.note))

        run: RunDir | None = None
        try:
            if request.resume is None:
                prepared, ready = _begin(fabric, request, console, hold)
                run = prepared.run
            else:
                note, tracker = console.note, console.track
                prepared = call_on_main(fabric, lambda: reopen_run(request, note=note, tracker=tracker, hold=hold))
                run = prepared.run
                prepared, ready = _continue(fabric, prepared, console)
            if fabric.is_global_zero:
                console.open(run)
            copies = Copies(request.log if fabric.is_global_zero else (), run, console.note)
            held.callback(copies.close)
            return _train(fabric, prepared, ready, console, copies)
        except KeyboardInterrupt:  # before the loop listens for it, or twice
            if run is not None and fabric.is_global_zero and not request.in_study:
                console.note(describe_interrupt(run, "ssl-seg train"))
            raise
        except Exception as error:
            resume = None if request.in_study else "ssl-seg train --resume"
            if (known := explain_failure(error, fabric, run, resume)) is not None:
                raise known from error
            raise


@dataclass(frozen=True)
class _Feed:
    """What the networks are shown."""

    source: PatchSource
    val: Probe
    train: Probe
    ranges: dict[str, tuple[float, float]]
    """Of the components of the loss on ``val``; see ``compute_ranges``."""
    workers: int


@dataclass(frozen=True)
class _Ready:
    """What is made before a run directory is: settings that the machine decides, what is trained, and on what."""

    config: Config
    notes: list[str]
    """Why precision and memory format are what they are."""
    built: Built
    loss: SupervisedLoss
    """That of the method."""
    feed: _Feed
    pace: Pace | None
    """None for a run that is too short to measure."""


def _begin(
    fabric: Fabric, request: TrainRequest, console: Console, hold: Callable[[Path], None]
) -> tuple[BegunRun, _Ready]:
    """Plan a new run on the first process, measure on all of them, and create its directory."""
    gpu, minutes = fabric.device.type != "cpu", request.minutes
    resolved = call_on_main(fabric, lambda: prepare_run(request, console, gpu=gpu))
    ready = _get_ready(fabric, resolved, console, request.bootstrap, minutes=minutes)
    settled, pace = replace(resolved, config=ready.config), ready.pace

    def begin() -> BegunRun:
        final = settled if minutes is None or pace is None else fit_minutes(settled, pace, minutes, console)
        return begin_run(final, note=console.note, hold=hold)

    return call_on_main(fabric, begin), ready


def _continue(fabric: Fabric, prepared: BegunRun, console: Console) -> tuple[BegunRun, _Ready]:
    """Settle on this machine what a run that goes on leaves open."""
    first = load_checkpoint(prepared.run.last, lazy=True).progress.step
    ready = _get_ready(fabric, prepared.resolved, console, prepared.start, first=first)
    if fabric.is_global_zero and ready.config != prepared.config:
        write_config(ready.config, prepared.run, read_header(prepared.run))
    return prepared.settle(ready.config), ready


def _get_ready(
    fabric: Fabric,
    resolved: Resolved,
    console: Console,
    start: Path | None,
    *,
    minutes: float | None = None,
    first: int = 0,
) -> _Ready:
    config = resolved.config
    torch.manual_seed(derive_seed(config.seed))
    begins = start is None and config.network.pretrained is None
    loss = make_supervised_loss(config.loss)
    method = make_method(config.method.name, config.method.options, loss, config.data.num_classes)
    built = build(method, partial(start_network if begins else make_network, config), config.data.num_classes)
    for module in (built.module, method):
        if isinstance(module, nn.Module):
            fabric.to_device(module)
    config, notes = settle_runtime(fabric, config, built.plain, console)
    to_memory_format(built.module, config.runtime.memory_format, config.data.ndim)
    feed = _open_feed(fabric, resolved, console)
    pace = None
    is_measured = minutes is not None or config.length.steps - first >= FEWEST_MEASURED
    if is_measured or config.gates:
        copied, seconds = copy.deepcopy(built), None if minutes is None else 60 * minutes
        engine = make_engine(fabric, config, copied, EMATeacher(copied.module, lambda _: config.ema.decay))
        monitor = _make_monitor(fabric, config, feed, loss)
    if config.gates:
        components = {f"train/{name}" for name in list_components(config.loss)}
        check_metrics(config.gates, list_metrics(engine, monitor, feed.source) | components)
    if is_measured:
        pace = measure_pace(
            engine, monitor, feed.source, config, resolved.split.val, workers=feed.workers, seconds=seconds
        )
    return _Ready(config, notes, built, loss, feed, pace)


def _train(fabric: Fabric, prepared: BegunRun, ready: _Ready, console: Console, copies: Copies) -> TrainResult:
    checkpoint = None if prepared.start is None else load_checkpoint(prepared.start)
    session = _assemble(fabric, prepared, ready, checkpoint, Recorder(prepared, fabric, console, copies.write))
    first = session.progress.step
    expected = _announce(prepared, ready, first, console) if fabric.is_global_zero else None
    begun = time.monotonic()
    if fabric.is_global_zero:
        console.start(first, prepared.config.length.steps)
    try:
        with stop_flag(fabric) as stop_requested:
            result = run_loop(session, stop_requested)
    finally:
        console.stop()
    verdict, final = finish_run(session, result, prepared, console)
    if expected is not None and result.ending == "finished":
        console.note(
            f"time: it took {describe_seconds(time.monotonic() - begun)}, {describe_seconds(expected)} were expected"
        )
    return TrainResult(
        prepared.run,
        result.ending,
        result.step,
        verdict,
        {} if final is None else describe_for_checkpoint(final, final.used.source),
        fabric.is_global_zero,
        prepared.config.monitor.on_collapse == "warn",
        describe_for_checkpoint(final, "swa") if final is not None and final.of("swa") else None,
    )


def _announce(prepared: BegunRun, ready: _Ready, first: int, console: Console) -> float | None:
    """Record how the machine is used and how long the run will take; return its seconds where they are known."""
    config, run, pace = prepared.config, prepared.run, ready.pace
    runtime = config.runtime
    parameters = list(ready.built.module.parameters())
    count, memory = sum(values.numel() for values in parameters), measure_peak_memory(parameters[0].device)
    run.append_event(
        "runtime",
        precision=runtime.precision,
        memory_format=runtime.memory_format,
        notes=ready.notes,
        parameters=count,
        memory_gib=memory,
    )
    console.note(f"network: {config.network.name}, {count:,} parameters; memory so far {number(memory, 2)} GiB")
    if not prepared.resumed:
        _announce_probe(run, ready.feed, console)
    if pace is None:
        return None
    seconds = estimate_seconds(pace, config, config.length.steps, first)
    epoch = config.length.steps_per_epoch * pace.step + pace.look
    run.append_event(
        "estimate", seconds=seconds, seconds_per_epoch=epoch, steps=config.length.steps - first, **asdict(pace)
    )
    each = f"{describe_seconds(epoch)} an epoch, {describe_pace(pace)}"
    console.note(f"time: about {describe_seconds(seconds)} on this machine: {each}")
    return seconds


def _announce_probe(run: RunDir, feed: _Feed, console: Console) -> None:
    """Record what the networks will be looked at on, and in which range the loss is to be there."""
    facts = feed.val.describe()
    run.append_event("probe", **facts, loss_ranges=feed.ranges)
    doubt = "" if 0 < facts["foreground"] < 1 else "WARNING, nothing can be judged on it: "
    console.note(
        f"probe: {doubt}{facts['patches']} patches of {facts['cases']} validation cases, {facts['positive']} of them "
        f"with foreground, {facts['foreground']:.1%} of all voxels"
    )
    ranges = ", ".join(f"{name} {constant:.3f} to {perfect:.3f}" for name, (perfect, constant) in feed.ranges.items())
    if ranges:
        console.note(f"loss: on the probe, from the best constant output to a perfect one: {ranges}")


def settle_runtime(fabric: Fabric, config: Config, network: nn.Module, console: Console) -> tuple[Config, list[str]]:
    """Resolve precision and memory format as suits a network; return the reasons too."""
    runtime = config.runtime
    patches = config.labeled_range[1] + config.batch.unlabeled
    example = torch.randn(patches, config.data.channels, *config.data.patch_size, device=fabric.device)
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


def _open_feed(fabric: Fabric, resolved: Resolved, console: Console) -> _Feed:
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
    workers = min(config.runtime.workers, count_cores())
    if workers < config.runtime.workers and fabric.is_global_zero:
        console.note(
            f"runtime.workers = {config.runtime.workers}: {workers} are used, one for each core that is granted"
        )
    check_shared_memory(config, views, workers)
    val = make_probe(store, split.val, config.monitor.probe_patches, patch, split.seed)
    batches = cut_batches(val, config.labeled_range[1], fabric.device)
    return _Feed(
        source,
        val,
        make_probe(store, resolved.labeled, config.monitor.train_probe_patches, patch, split.seed),
        compute_ranges(_find_components(config), batches, config.data.num_classes),
        workers,
    )


def _find_components(config: Config) -> dict[str, LossFn]:
    """Return the components of the loss that are named in a phase that the run comes to."""
    last = (config.length.steps - 1) / config.length.steps_per_epoch
    later = [phase.weights for phase in config.loss.phases if phase.from_epoch <= last]
    reached = {name for weights in (config.loss.weights, *later) for name in weights}
    components = make_supervised_loss(config.loss).components
    return {name: component for name, component in components.items() if name in reached}


def _count_look_patches(config: Config) -> int:
    """Return the patches that a look passes through the networks at once: as many as a step."""
    return config.labeled_range[1] + config.batch.unlabeled


def _describe_share(source: PatchSource, wanted: float) -> str:
    """Return how near the first batches come to the share of foreground that is asked for."""
    found = measure_share(source, SHARE_BATCHES)
    mean = sum(found) / len(found)
    if abs(mean - wanted) > SHARE_TOLERANCE:
        return f"data: WARNING {describe_missed_share(wanted, mean)}"
    return (
        f"data: batch.foreground_share = {wanted:g}: the first {len(found)} batches hold {mean:.1%} of foreground, "
        f"each {min(found):.1%} to {max(found):.1%}"
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


def _make_monitor(fabric: Fabric, config: Config, feed: _Feed, supervised: SupervisedLoss) -> Monitor:
    def loss_at(logits: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, size = max(step - 1, 0) / config.length.steps_per_epoch, config.labeled_range[1]  # as in the step before
        parts = zip(torch.split(logits, size), torch.split(target, size), strict=True)
        totals, terms = zip(*(supervised(*part, epoch) for part in parts), strict=True)
        return torch.stack(totals).mean(), {name: torch.stack([t[name] for t in terms]).mean() for name in terms[0]}

    return Monitor(
        feed.val,
        feed.train,
        num_classes=config.data.num_classes,
        device=fabric.device,
        batch_size=_count_look_patches(config),
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


def _assemble(
    fabric: Fabric, prepared: BegunRun, ready: _Ready, checkpoint: Checkpoint | None, recorder: Recorder
) -> Session:
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

    ladder = _make_ladder(config, feed.source, uses_unlabeled=uses_unlabeled)
    if fabric.is_global_zero and not prepared.resumed:
        for text in describe_scenarios(config, () if ladder is None else ladder.rungs):
            recorder.console.note(f"scenario: {text}")
    session = Session(
        engine,
        Watch(engine, _make_monitor(fabric, config, feed, ready.loss), schedule),
        feed.source,
        batches_from,
        Policies(config.policies, config.seed, average, config.optim.plateau_patience if reduces else None),
        Interventions(ladder, average),
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


def _make_ladder(config: Config, source: PatchSource, *, uses_unlabeled: bool) -> InterventionSettings | None:
    """Return the ladder of a run that is to recover from a collapse."""
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


@contextmanager
def stop_flag(fabric: Fabric) -> Iterator[Callable[[int], bool]]:
    """Turn the first Ctrl-C (or SIGTERM) into a request to stop after the step; a second one interrupts at once.

    Several processes agree every few steps, so that a signal to any of them stops all of them at the same step.
    """
    requested = threading.Event()

    def request_stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a signal handler takes both)
        if requested.is_set():
            raise KeyboardInterrupt
        requested.set()

    def stop_requested(step: int) -> bool:
        if fabric.world_size == 1:
            return requested.is_set()
        if step % STEPS_BETWEEN_AGREEMENTS:
            return False
        return any_process(fabric, requested.is_set())

    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    previous = {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
