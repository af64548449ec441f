"""A run from its request to its first step: resolved, checked, and begun in a directory, or opened again.

This is done once, before any process trains. Nothing is written until all of it is known to be good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ssl_seg.config import Config, DataConfig
from ssl_seg.config.layers import Layer, show_value
from ssl_seg.config.schedules import plan_warmup
from ssl_seg.data.catalog import Catalog, Track
from ssl_seg.data.disk_cache import fill_disk_cache, open_disk_cache
from ssl_seg.data.findings import describe_finding
from ssl_seg.data.splits.files import save_split, split_from_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.data.store import decoded_bytes
from ssl_seg.engine.pace import Pace, describe_pace, plan_steps
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, name_examples, quote
from ssl_seg.files import next_free
from ssl_seg.inference.model import config_of, load_published, make_network
from ssl_seg.losses import make_supervised_loss
from ssl_seg.methods import make_method
from ssl_seg.methods.base import Built, build
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.networks.precision import choose_precision
from ssl_seg.run.bootstrap import (
    check_copies,
    check_finite,
    check_parent,
    describe_doubt,
    describe_fewer_labels,
    describe_other_input,
    describe_parent,
)
from ssl_seg.run.console import Console, show_plan
from ssl_seg.run.differences import find_edits
from ssl_seg.run.directory import (
    CONFIG_FILE,
    SPLIT_FILE,
    RunDir,
    check_free,
    create_next_run_dir,
    create_run_dir,
    find_run_of,
    name_data,
    open_run_dir,
    read_header,
    write_config,
)
from ssl_seg.run.failures import describe_restart
from ssl_seg.run.lint import lint
from ssl_seg.run.plan import LENGTH_KEYS, replan_length
from ssl_seg.run.preflight import check_with_data, gather_facts
from ssl_seg.run.pretraining.state import load_body
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve, resolve_again, resolve_stored
from ssl_seg.run.resources import check_disk, estimate_output_bytes
from ssl_seg.run.resume import (
    check_data_there,
    check_layers_of_resume,
    check_resumable,
    check_same_content,
    describe_length,
    may_change,
    restate_run,
)
from ssl_seg.run.seal import register_seal
from ssl_seg.run.transfer import check_options, load_student, load_teacher

Note = Callable[[str], None]
"""Takes a line for the user."""
Tracker = Callable[[str], Track]
"""What is being done -> what wraps its items, for a progress bar."""
Hold = Callable[[Path], object]
"""Keeps other processes out of a run directory, before anything is written there."""


@dataclass(frozen=True)
class BegunRun:
    """A run with its directory, new or opened again; ``start`` is the checkpoint it builds on or goes on from."""

    resolved: Resolved
    run: RunDir
    start: Path | None
    resumed: bool

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.resolved.config

    @property
    def split(self) -> Split:
        """Its split."""
        return self.resolved.split

    def settle(self, config: Config) -> BegunRun:
        """Return the run with the settings that its machine has decided."""
        return replace(self, resolved=replace(self.resolved, config=config))


def prepare_run(request: TrainRequest, console: Console, *, gpu: bool, defaults: Sequence[Layer] = ()) -> Resolved:
    """Resolve a new run and check everything.

    Args:
        request: what is asked for.
        console: talks to the user.
        gpu: whether the run will be on one; the plan depends on it.
        defaults: see ``resolve``.

    Returns:
        The run, without the tensors of what it starts from: every process reads them for itself.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    check_free(request.out or next_free(Path("runs") / "run"))  # where the run's own name is not known yet
    note = console.note
    resolved = resolve(request, console.track("reading cases"), gpu=gpu, defaults=defaults)
    check_options(resolved.config, resolved.sources, has_parent=resolved.parent is not None)
    if resolved.sources.get("data.root", "default") == "default":
        note(f"data: WARNING no --data is given: these are made-up images, {resolved.config.data.root}")
    for text in resolved.catalog.notes:
        note(f"data: {text}")
    show_plan(console, [p for p in resolved.planned if request.minutes is None or p.key not in LENGTH_KEYS])
    faults = check_with_data(resolved, note)
    if any(fault.code == "changed_content" for fault in faults):
        resolved = replace(resolved, split=_restamp(resolved.split, resolved.catalog))
    built, published = _check_network(resolved, gpu=gpu)
    check_disk(_choose_place(resolved), estimate_output_bytes(built, resolved.config))
    _pass_gate(resolved, note)
    fill_caches(resolved.config.data, resolved.catalog, note, console.track)
    _note_pretrained(resolved, note)
    return replace(
        resolved,
        faults=faults,
        published=published,
        parent=resolved.parent and replace(resolved.parent, student={}, teacher={}, parts={}),
        pretrained=resolved.pretrained and replace(resolved.pretrained, network={}, optimizer={}),
    )


def fit_minutes(resolved: Resolved, pace: Pace, minutes: float, console: Console) -> Resolved:
    """Return the run with as many steps as fit into the minutes.

    Raises:
        ConfigError: see ``plan_steps``.
    """
    config = resolved.config
    planned_warmup = any(item.key == "optim.warmup_steps" for item in resolved.planned)
    steps = plan_steps(pace, config, minutes, warmup=0 if planned_warmup else config.optim.warmup_steps)
    planned = replan_length(resolved.planned, steps, f"{minutes:g} minutes on this machine: {describe_pace(pace)}")
    show_plan(console, [item for item in planned if item.key in LENGTH_KEYS])
    updates = {
        "length": config.length.model_copy(update={"steps": steps}),
        "optim": config.optim.model_copy(update={"warmup_steps": plan_warmup(steps)} if planned_warmup else {}),
    }
    return replace(resolved, config=config.model_copy(update=updates), planned=tuple(planned))


def begin_run(resolved: Resolved, *, note: Note, hold: Hold, command: str = "train") -> BegunRun:
    """Create the run directory and return the run.

    Args:
        resolved: checked by ``prepare_run``, with settings that are final.
        note: talks to the user.
        hold: see ``Hold``.
        command: that repeats the run.

    Raises:
        RunDirError: when the directory cannot be created.
    """
    request, config, split = resolved.request, resolved.config, resolved.split
    for finding in lint(config, request.settings.sources, gather_facts(resolved)):
        note(f"config: WARNING {describe_finding(finding)}")
    place = _choose_place(resolved, command)
    configs = [Path(layer.source) for layer in request.layers if layer.is_file and Path(layer.source).is_file()]
    run = create_next_run_dir(place, configs) if request.out is None else create_run_dir(place, configs)
    hold(run.path)
    write_config(config, run, _make_header(resolved, command))
    save_split(split, run.path / SPLIT_FILE)
    register_seal(split, resolved.catalog)
    if resolved.faults:
        run.append_event("split_allowed", findings=[asdict(fault) for fault in resolved.faults])
    run.append_event("started", **_describe_start(resolved))
    for text in (*split.notes, *split.note_rounding(config.split.labels), _describe_split(resolved)):
        note(f"split: {text}")
    return BegunRun(resolved, run, request.bootstrap, resumed=False)


def reopen_run(
    request: TrainRequest,
    *,
    note: Note,
    tracker: Tracker,
    hold: Hold,
) -> BegunRun:
    """Check everything and return the run to go on with; its directory is brought up to date.

    Args:
        request: with ``resume``.
        note, tracker: talk to the user.
        hold: see ``Hold``.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    if request.resume is None or request.bootstrap or request.out:
        raise ConfigError("--resume continues a run with its own settings and in its own directory")
    if request.minutes is not None:
        raise ConfigError(
            f"--minutes {request.minutes:g}: --resume trains to the number of steps that the run started with, so "
            "that it ends with the same networks. Leave it out, or give a larger number with --steps"
        )
    check_layers_of_resume(request.layers)
    run = open_run_dir(request.resume)
    if not run.last.is_file():
        raise RunDirError(f"{run.path} holds no checkpoint to resume from; {describe_restart(run)}")
    hold(run.path)
    checkpoint = load_checkpoint(run.last)
    old = config_of(checkpoint, run.last)
    config, sources = resolve_stored(request, old, run.last)
    step = checkpoint.progress.step
    check_resumable(run, checkpoint, old, config)
    check_data_there(run, config.data.root)
    split = split_from_dict(checkpoint.split)
    parent = replace(checkpoint, student={}, teacher={}, parts={})
    resolved = resolve_again(request, config, sources, split, tracker("reading cases"), parent)
    if config.data != old.data:
        check_same_content(run, split, resolved.catalog, old.data.root)
        note(f"resume: the data are in {config.data.root}; they were in {old.data.root}")
    if edits := [
        key for key in find_edits(run, old) if not may_change(key)
    ]:  # a kill between two writings changes those
        note(
            f"resume: {run.path / CONFIG_FILE} was edited ({name_examples(edits)}), which changes nothing: the run "
            "continues with the settings it started with. For another run, `ssl-seg train --config "
            f"{quote(run.path / CONFIG_FILE)}`"
        )
    check_with_data(resolved, note)
    held = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    check_disk(run.path, estimate_output_bytes(_build(config), config), held)
    if config.length != old.length:
        note(f"resume: {describe_length(old, config, checkpoint)}")
    fill_caches(config.data, resolved.catalog, note, tracker)
    if config.data != old.data or config.length != old.length:
        restate_run(run, checkpoint, old, config)
        write_config(config, run, read_header(run))
    # Step 0 is probed again when nothing has been trained yet.
    return go_on(run, resolved, step, note, keep=step or -1)


def go_on(run: RunDir, resolved: Resolved, step: int, note: Note, *, keep: int) -> BegunRun:
    """Take note that a run goes on at ``step``, with its records up to step ``keep``, and return it."""
    run.remove_parts()
    run.drop_after(keep)
    run.append_event("resumed", step=step)
    note(f"resume: {run.path} from step {step} of {resolved.config.length.steps}")
    return BegunRun(resolved, run, run.last, resumed=True)


def _choose_place(resolved: Resolved, command: str = "train") -> Path:
    """Return the directory of a new run; where none is asked for, the name that it has if that is free."""
    config, data = resolved.config, name_data(resolved.config.data.root)
    kind = f"{config.method.name}_{config.split.labels:g}" if command == "train" else command
    return resolved.request.out or Path("runs") / f"{data}_{kind}_seed{config.seed}"


def _make_header(resolved: Resolved, command: str) -> str:
    parent = resolved.request.bootstrap
    start = f" --bootstrap {parent}" if parent else ""
    lines = [
        f"Written by `ssl-seg {command}`; `ssl-seg {command} --config FILE{start}` with this file repeats the run."
    ]
    return "\n".join(
        [*lines, *(f"planned: {item.key} = {show_value(item.value)} ({item.reason})" for item in resolved.planned)]
    )


def _restamp(split: Split, catalog: Catalog) -> Split:
    """Return the split with the contents that the run will see: a later check for leaks looks for these."""
    content = {i: catalog.facts[i].content for i in split.content}
    return replace(split, content=content, notes=(*split.notes, "contents are those of the training, not of the split"))


def fill_caches(data: DataConfig, catalog: Catalog, note: Note, tracker: Tracker) -> None:
    """Write decoded, or resampled, copies of volumes if the data set does not fit into memory."""
    cache = open_disk_cache(data.disk_cache_gb)
    if cache is None or decoded_bytes(catalog, data.resample_to) <= data.cache_mb * 2**20:
        return
    if missed := fill_disk_cache(cache, catalog, tracker("copying volumes"), resample_to=data.resample_to):
        note(f"data: {missed}")


def _check_network(resolved: Resolved, *, gpu: bool) -> tuple[Built, str | None]:
    """Build the network once, to see that weights to start from fit and the precision asked for is usable.

    Returns:
        What is trained, and what published weights it begins with; see ``load_published``.
    """
    config, parent, pretrained = resolved.config, resolved.parent, resolved.pretrained
    built, published = _build(config), None
    net = built.plain
    if parent is not None:
        load_student(net, parent, config, str(resolved.request.bootstrap))
        load_teacher(net, parent, config, str(resolved.request.bootstrap))
    elif pretrained is not None:
        load_body(net, pretrained, config, str(config.network.pretrained))
    else:
        published = load_published(net, config)
    if not gpu:
        choose_precision(config.runtime.precision, net, torch.zeros(1, config.data.channels, *config.data.patch_size))
    return built, published


def _build(config: Config) -> Built:
    """Return what the method of a run trains, with random weights."""
    method = make_method(
        config.method.name, config.method.options, make_supervised_loss(config.loss), config.data.num_classes
    )
    return build(method, partial(make_network, config), config.data.num_classes)


def _pass_gate(resolved: Resolved, note: Note) -> None:
    """Check that the parent, if any, may be built on; --force turns the reasons against it into notes.

    Raises:
        RefusedError: with the reasons.
    """
    parent, request, options = resolved.parent, resolved.request, resolved.config.bootstrap
    if parent is None:
        return
    check_finite(parent, str(request.bootstrap), options)
    reasons = check_parent(parent, resolved.split, options)
    if request.bootstrap is not None and options.gate != "none" and (run := find_run_of(request.bootstrap)) is not None:
        reasons += [f"its run has a gate that is {text}" for text in run.read_broken_gates()]
    if not resolved.config.split.allow_faults:
        reasons += check_copies(parent, resolved.split, resolved.catalog)
    if reasons and not request.force:
        listed = "\n".join(f"- {reason}" for reason in reasons)
        way = "" if request.in_study else "\n--force starts from it all the same."
        raise RefusedError(f"{request.bootstrap} is refused as a start:\n{listed}{way}")
    for reason in reasons:
        note(f"bootstrap: forced although {reason}")
    doubt = describe_doubt(parent, options)
    fewer = describe_fewer_labels(parent, resolved.labeled, resolved.config.split.labels)
    for warning in (*([doubt] if doubt else []), *describe_other_input(parent, resolved.config.data), *fewer):
        note(f"bootstrap: WARNING {warning}")


def _note_pretrained(resolved: Resolved, note: Note) -> None:
    """Say what pre-training the run starts from, if any."""
    if (state := resolved.pretrained) is None:
        return
    where, result = resolved.config.network.pretrained, state.result
    doubt = f", WARNING: {','.join(result['codes'])}" if result["codes"] else ""
    note(f"pretrained: {where}, step {state.step}, {result['gain']:+.1%} against the mean of the visible image{doubt}")


def _describe_start(resolved: Resolved) -> dict[str, Any]:
    """Return the values of the event ``started``."""
    parent, pretrained, config = resolved.parent, resolved.pretrained, resolved.config
    described = None if parent is None else describe_parent(parent, config.bootstrap)
    values: dict[str, Any] = {"parent": described, "force": resolved.request.force}
    if resolved.request.bootstrap is not None:
        values["bootstrap"] = str(resolved.request.bootstrap)
    if pretrained is not None:
        values["pretrained"] = {"run": config.network.pretrained, "step": pretrained.step, **pretrained.result}
    if resolved.pseudo_labels is not None:
        values["pseudo_labels"] = {"folder": config.data.pseudo_labels, "cases": len(resolved.pseudo_labels.files)}
    if resolved.published is not None:
        values["encoder_weights"] = resolved.published
    return values


def _describe_split(resolved: Resolved) -> str:
    split, pseudo = resolved.split, resolved.pseudo_labels
    made = "" if pseudo is None else f" ({len(pseudo.files)} with pseudo-labels)"
    return (
        f"{len(resolved.labeled)} labeled, {len(resolved.unlabeled)} unlabeled{made}, {len(split.val)} validation, "
        f"{len(split.test)} test (sealed); fingerprint {split.fingerprint}"
    )
