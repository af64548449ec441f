"""Training: from a request to a run directory with checkpoints, records and scores."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ssl_seg.config import NETS
from ssl_seg.data.sampling import derive_seed
from ssl_seg.engine.devices import any_process, call_on_main, to_memory_format
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.pace import FEWEST_MEASURED, describe_seconds
from ssl_seg.engine.processes import open_fabric
from ssl_seg.engine.timing import list_metrics, measure_pace, profile_steps
from ssl_seg.files import hold_directory
from ssl_seg.inference.model import make_network, start_network
from ssl_seg.losses import make_supervised_loss
from ssl_seg.methods import make_method
from ssl_seg.methods.base import build
from ssl_seg.monitor.actions import list_components
from ssl_seg.monitor.findings import Verdict
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.announcement import announce
from ssl_seg.run.assembly import Ready, assemble, make_engine, make_monitor, open_feed, settle_runtime, settle_workers
from ssl_seg.run.console import Console, LoggedConsole, Silent
from ssl_seg.run.directory import RunDir, TrainingEnding, read_header, write_config
from ssl_seg.run.failures import describe_interrupt, explain_failure
from ssl_seg.run.final_scores import describe_for_checkpoint
from ssl_seg.run.finish import finish_run
from ssl_seg.run.gates import check_metrics
from ssl_seg.run.prepare import BegunRun, begin_run, fit_minutes, prepare_run, reopen_run
from ssl_seg.run.probe_picture import draw_probe
from ssl_seg.run.recorder import Recorder
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve_runtime
from ssl_seg.run.session import run_loop
from ssl_seg.run.sinks import RecordCopies, check_sinks

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


def train(
    request: TrainRequest, console: Console | None = None, after_look: Callable[[Path], None] = lambda _: None
) -> TrainResult:
    """Train one run.

    Started by torchrun or SLURM, or with more than one device, every process runs this function; the first one plans,
    writes and talks.

    Args:
        request: what to train.
        console: is told.
        after_look: called by the first process with the directory of the run, when a look at the networks is recorded.

    Raises:
        SslSegError: for anything the user can fix; RefusedError for a parent that fails the gate.
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
            copies = RecordCopies(request.log if fabric.is_global_zero else (), run, console.note)
            held.callback(copies.close)
            return _train(fabric, prepared, ready, console, copies, after_look, request.profile)
        except KeyboardInterrupt:  # before the loop listens for it, or twice
            if run is not None and fabric.is_global_zero and not request.in_study:
                console.note(describe_interrupt(run, "ssl-seg train"))
            raise
        except Exception as error:
            resume = None if request.in_study else "ssl-seg train --resume"
            if (known := explain_failure(error, fabric, run, resume)) is not None:
                raise known from error
            raise


def _begin(
    fabric: Fabric, request: TrainRequest, console: Console, hold: Callable[[Path], None]
) -> tuple[BegunRun, Ready]:
    """Plan a new run on the first process, measure on all of them, and create its directory."""
    gpu, minutes = fabric.device.type != "cpu", request.minutes
    resolved = call_on_main(fabric, lambda: prepare_run(request, console, gpu=gpu))
    ready = _get_ready(fabric, resolved, console, request.bootstrap, minutes=minutes)
    settled, pace = replace(resolved, config=ready.config), ready.pace

    def begin() -> BegunRun:
        final = settled if minutes is None or pace is None else fit_minutes(settled, pace, minutes, console)
        return begin_run(final, note=console.note, hold=hold)

    return call_on_main(fabric, begin), ready


def _continue(fabric: Fabric, prepared: BegunRun, console: Console) -> tuple[BegunRun, Ready]:
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
) -> Ready:
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
    feed = open_feed(fabric, resolved, loss, console)
    pace = None
    is_measured = minutes is not None or config.length.steps - first >= FEWEST_MEASURED
    if is_measured or config.gates:
        copied, seconds = copy.deepcopy(built), None if minutes is None else 60 * minutes
        engine = make_engine(fabric, config, copied, EMATeacher(copied.module, lambda _: config.ema.decay))
        monitor = make_monitor(fabric, config, feed, loss)
    if config.gates:
        components = {f"train/{name}" for name in list_components(config.loss)}
        check_metrics(config.gates, list_metrics(engine, monitor, feed.source) | components)
    if is_measured:
        pace = measure_pace(
            engine, monitor, feed.source, config, resolved.split.val, workers=feed.workers, seconds=seconds
        )
        pace = settle_workers(fabric, config, pace, console)
        feed = replace(feed, workers=pace.workers)
    return Ready(config, notes, built, loss, feed, pace)


def _train(
    fabric: Fabric,
    prepared: BegunRun,
    ready: Ready,
    console: Console,
    copies: RecordCopies,
    after_look: Callable[[Path], None],
    profiled: int,
) -> TrainResult:
    checkpoint = None if prepared.start is None else load_checkpoint(prepared.start)

    def send(record: Mapping[str, Any]) -> None:
        engine, monitor = session.engine, session.watch.monitor
        nets = dict(zip(NETS, (engine.plain.student, engine.plain.teacher), strict=True))
        copies.write(record, lambda: draw_probe(nets, monitor.val, monitor.device, monitor.autocast))
        after_look(prepared.run.path)

    session = assemble(fabric, prepared, ready, checkpoint, Recorder(prepared, fabric, console, send))
    first = session.progress.step
    expected = announce(prepared, ready, first, console) if fabric.is_global_zero else None
    begun = time.monotonic()
    if fabric.is_global_zero:
        console.start(first, prepared.config.length.steps)
    try:
        profile = profile_steps(profiled * fabric.is_global_zero, prepared.run.path, fabric.device, console.note)
        with stop_flag(fabric) as stop_requested, profile as count_step:

            def ask(step: int) -> bool:
                count_step()
                return stop_requested(step)

            result = run_loop(session, ask)
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
