"""Cross-validation: one training a fold, one after the other, in one directory.

Each fold is what ``train --folds N --fold K`` does. How far it is stands on the disk alone, so that one that was killed
anywhere goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from ssl_seg.config.layers import Layer, leave_out, merge_layers, nest
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.splits.files import save_folds
from ssl_seg.engine.devices import call_on_main
from ssl_seg.engine.processes import open_fabric
from ssl_seg.errors import ConfigError, RunDirError, SslSegError, quote
from ssl_seg.files import hold_directory, next_free
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.folds import (
    CrossValidation,
    FoldRun,
    load_folds,
    save_folds_file,
)
from ssl_seg.results.markers import FOLDS_FILE, check_free_for
from ssl_seg.run.directory import name_data
from ssl_seg.run.final_scores import SCORES_FILE, load_final_scores, summarize_network
from ssl_seg.run.preflight import check_layers, check_with_data
from ssl_seg.run.prepare import Plan, TrainRequest, has_runtime_only, make_plan
from ssl_seg.run.recorder import Console, Silent
from ssl_seg.run.sources import describe_cases, open_data_once
from ssl_seg.run.training import runtime_of, train
from ssl_seg.run.transfer import check_options
from ssl_seg.studies.directory import (
    anchor_layer,
    create_whole,
    pin_processes,
    read_machine,
    renew_minutes,
)

_OWN_SPLIT = {f"split.{name}" for name in ("file", "seed", "val_fraction", "test_fraction", "folds", "fold")}
"""Settings of which the splits have been made; the folds read them from their files."""


@dataclass(frozen=True)
class CrossValidationRequest:
    """What the caller asks for: a new cross-validation, or the continuation of one with its own settings."""

    layers: tuple[Layer, ...] = ()
    """Files and options of all folds, in increasing order of precedence; ``split.folds`` says how many there are."""
    out: Path | None = None
    """Directory to create."""
    resume: Path | None = None
    """Directory of a cross-validation to continue."""
    epochs: int | None = None
    """Length of each fold in epochs, instead of length.steps."""
    minutes: float | None = None
    """Minutes of the first training, instead of length.steps; the steps that fit into them hold for all. In a
    continuation, another time where the first one was too short."""


def cross_validate(request: CrossValidationRequest, console: Console | None = None) -> CrossValidation:
    """Train the folds one after the other, and score each labeled case by the network that has not seen it.

    A fold that the monitor stops is recorded as collapsed and counts with the scores of its best.pt; the others are
    trained all the same.

    Returns:
        The cross-validation, whose ``ending`` says how far it went; cross_validation.json in its directory says the
        same.

    Raises:
        SslSegError: for anything the user can mend.
    """
    console = console or Silent()
    layers = request.layers if request.resume is None else (*load_folds(request.resume).layers, *request.layers)
    runtime = runtime_of(TrainRequest(layers))
    with open_fabric(runtime) as fabric, ExitStack() as held:

        def begin() -> CrossValidation:
            validation = _create(request, fabric, console) if request.resume is None else load_folds(request.resume)
            held.enter_context(hold_directory(validation.path, console.note))
            return validation if request.resume is None else _reopen(request, console)

        validation = call_on_main(fabric, begin)
        machine = (pin_processes(runtime), *(request.layers if request.resume is not None else ()))
        try:
            for number in [fold.number for fold in validation.folds if fold.status == "waiting"]:
                validation = _train_fold(fabric, validation, number, machine, console)
                if validation.ending is not None:
                    return validation
        except KeyboardInterrupt:  # between two trainings: a training turns it into an ending of its own
            return replace(validation, ending="interrupted")
        return call_on_main(fabric, lambda: _save(replace(validation, ending="finished")))


def _create(request: CrossValidationRequest, fabric: Fabric, console: Console) -> CrossValidation:
    """Check all that can be known before the first training, then create the directory with the splits."""
    layers = tuple(anchor_layer(layer) for layer in request.layers)
    check_layers(layers)
    count = merge_layers(layers)[0].get("split", {}).get("folds")
    if count is None:
        raise ConfigError("split.folds: a cross-validation needs the number of its folds; give --folds 5")
    if request.out is not None:
        check_free_for(FOLDS_FILE, request.out, "ssl-seg train --resume")
    plans = _plan_folds(replace(request, layers=layers), int(count), fabric, console)
    splits, labels = [plan.split for plan in plans], plans[0].config.split.labels
    folds = tuple(FoldRun(n, len(split.val), len(split.labeled_ids(labels))) for n, split in enumerate(splits))
    validation = CrossValidation(request.out or next_free(Path("runs") / _default_name(plans[0])), layers, folds)
    validation = replace(validation, epochs=request.epochs, minutes=request.minutes)

    def fill(folder: Path) -> None:
        save_folds(splits, folder / "split.yaml")
        save_folds_file(replace(validation, path=folder))

    create_whole(validation.path, fill)
    counts = ", ".join(str(fold.cases) for fold in folds)
    console.note(
        f"cross-validation: {validation.path}, {len(folds)} folds with {counts} validation cases, "
        f"{len(splits[0].test)} test cases (sealed) in none of them"
    )
    return validation


def _plan_folds(request: CrossValidationRequest, count: int, fabric: Fabric, console: Console) -> list[Plan]:
    """Return the plan of each fold, all of them checked: a bad last fold is found before the first is trained."""
    plans, cases = [], dict[str, Catalog]()
    for number in range(count):
        fold = Layer(f"--fold {number}", nest("split.fold", number), is_option=True)
        plan = make_plan(
            TrainRequest((*request.layers, fold), epochs=request.epochs, minutes=request.minutes),
            console.track("reading cases"),
            gpu=fabric.device.type != "cpu",
            read=partial(open_data_once, cases),
        )
        cases[describe_cases(plan.config.data.model_dump(mode="json"))] = plan.catalog
        check_options(plan.config, plan.sources, has_parent=False)
        try:
            check_with_data(plan.config, plan.catalog, plan.split, lambda _: None)
        except SslSegError as error:
            raise type(error)(f"fold {number}: {error}") from error
        plans.append(plan)
    return plans


def _default_name(plan: Plan) -> str:
    config, data = plan.config, name_data(plan.config.data.root)
    return f"{data}_{config.method.name}_{config.split.labels:g}_folds{config.split.folds}_seed{config.seed}"


def _reopen(request: CrossValidationRequest, console: Console) -> CrossValidation:
    """Return the cross-validation to continue, as it is now that it is held."""
    path = request.resume or Path()
    validation = load_folds(path)
    minutes = renew_minutes(request.minutes, validation.minutes, validation.run_of(validation.folds[0]))
    if request.out or request.epochs or not has_runtime_only(request.layers):
        raise ConfigError(
            "--resume continues a cross-validation with its own settings, data and lengths: give it without "
            "other options (only runtime settings such as --devices may change)"
        )
    if validation.ending == "finished":
        raise RunDirError(f"{path} is finished: all {len(validation.folds)} folds are done; nothing to resume")
    done = sum(fold.status != "waiting" for fold in validation.folds)
    console.note(f"cross-validation: {path} goes on, {done} of {len(validation.folds)} folds are done")
    return replace(validation, ending=None, minutes=minutes)


def _save(validation: CrossValidation) -> CrossValidation:
    save_folds_file(validation)
    return validation


def _train_fold(
    fabric: Fabric, validation: CrossValidation, number: int, machine: Sequence[Layer], console: Console
) -> CrossValidation:
    """Train, or go on with, a fold and record its scores."""
    fold = validation.folds[number]
    try:
        request = call_on_main(fabric, lambda: _plan_training(validation, fold, machine, console))
        if request is not None and train(request, console).ending == "interrupted":
            return replace(validation, ending="interrupted")
        return call_on_main(fabric, lambda: _judge(validation, fold, console))
    except SslSegError as error:
        raise type(error)(
            f"{fold.name}: {error}\nWhen that is mended: ssl-seg train --resume {quote(validation.path)}"
        ) from error


def _plan_training(
    validation: CrossValidation, fold: FoldRun, machine: Sequence[Layer], console: Console
) -> TrainRequest | None:
    """Return how the run of a fold is begun or continued; None where its training has come to an end."""
    run = validation.run_of(fold)
    title = f"== {fold.name} of {len(validation.folds)}: {fold.labeled} labeled, {fold.cases} validation"
    if run.read_ending() is not None:
        return None
    if run.last.is_file():
        console.note(f"{title}, continued: {run.path}")
        return TrainRequest(tuple(machine), resume=run.path, in_series=True)
    if run.path.exists():  # killed before its first checkpoint: there is nothing to go on from
        shutil.rmtree(run.path)
    console.note(f"{title}: {run.path}")
    shared = [replace(layer, values=leave_out(layer.values, _OWN_SPLIT)) for layer in validation.layers]
    file = (validation.path / f"split_{fold.name}.yaml").resolve()
    own = Layer(fold.name, nest("split.file", str(file)))
    first = read_machine(validation.run_of(validation.folds[0]), validation.layers, minutes=validation.minutes)
    layers, minutes = (*shared, own, first, *machine), None if "length" in first.values else validation.minutes
    return TrainRequest(layers, run.path, epochs=validation.epochs, minutes=minutes, in_series=True)


def _judge(validation: CrossValidation, fold: FoldRun, console: Console) -> CrossValidation:
    """Take over the final scores of a finished fold and record it."""
    run = validation.run_of(fold)
    ending, final = run.read_ending() or {}, load_final_scores(run)
    if final is None:
        raise RunDirError(f"{run.path} has ended, but its {SCORES_FILE} is missing: put it back, or remove the folder")
    tolerated = load_checkpoint(run.best, lazy=True).config["monitor"]["on_collapse"] == "warn"
    stopped = ending.get("event") == "collapsed" or (ending.get("verdict") == "collapsed" and not tolerated)
    fold = replace(
        fold,
        status="collapsed" if stopped else "done",
        net=final.used.net,
        codes=tuple(ending.get("codes", ())),
        scores=final.of(final.used.source),
    )
    figures = summarize_network(final.used.score)
    if stopped:
        console.note(f"{fold.name}: COLLAPSED ({', '.join(fold.codes)}); next: ssl-seg diagnose {quote(run.last)}")
    else:
        console.note(f"{fold.name}: F1 {figures['f1_macro']:.3f} ({fold.net})")
    return _save(validation.with_fold(fold))
