"""A ladder of label fractions: each rung is a training with more labels that starts from the best one so far.

A rung is what ``train --labels L --bootstrap PARENT`` does, with the gate in front of it. All rungs share one split.
How far a ladder is stands on the disk alone, so that one that was killed anywhere goes on where it was.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from lightning_fabric import Fabric

from ssl_seg.config.data import format_label_amount
from ssl_seg.config.layers import Layer, leave_out, merge_layers, nest
from ssl_seg.data.splits.files import save_split
from ssl_seg.data.splits.split import Split
from ssl_seg.engine.devices import call_on_main
from ssl_seg.engine.processes import open_fabric
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, SslSegError, quote
from ssl_seg.files import hold_directory, next_free
from ssl_seg.inference.scoring import count_classes
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.markers import LADDER_FILE, check_free_for
from ssl_seg.run.bootstrap import given_keys
from ssl_seg.run.directory import SPLIT_FILE, name_data
from ssl_seg.run.final_scores import SCORES_FILE, load_final_scores
from ssl_seg.run.preflight import check_layers
from ssl_seg.run.prepare import Plan, TrainRequest, has_runtime_only, make_plan
from ssl_seg.run.recorder import Console, Silent
from ssl_seg.run.training import runtime_of, train
from ssl_seg.run.transfer import check_options
from ssl_seg.studies.directory import (
    anchor_layer,
    create_whole,
    pin_processes,
    read_machine,
    renew_minutes,
)
from ssl_seg.studies.label_rungs import (
    LabelLadder,
    Rung,
    check_labels,
    compare_counts,
    load_ladder,
    save_ladder,
)

_OWN_SPLIT = {f"split.{name}" for name in ("labels", "file", "seed", "val_fraction", "test_fraction", "folds", "fold")}
"""Settings of which the split has been made; the rungs read it from its file."""


@dataclass(frozen=True)
class LabelLadderRequest:
    """What the caller asks for: new rungs, or the continuation of a ladder with its own settings."""

    labels: tuple[float, ...] = ()
    """Labels of each rung, increasing: shares in (0, 1] or numbers of cases above 1."""
    layers: tuple[Layer, ...] = ()
    """Files and options of all rungs, in increasing order of precedence."""
    out: Path | None = None
    """Directory to create."""
    resume: Path | None = None
    """Directory of a ladder to continue."""
    gate: Literal["none", "margin", "interval"] | None = None
    """``bootstrap.gate`` of all rungs; None leaves it to the layers."""
    force: bool = False
    """Go on although the gate refuses a rung, or one has collapsed."""
    epochs: int | None = None
    """Length of each rung in epochs, instead of length.steps."""
    minutes: float | None = None
    """Minutes of the first training, instead of length.steps; the steps that fit into them hold for all. In a
    continuation, another time where the first one was too short."""


def climb_labels(request: LabelLadderRequest, console: Console | None = None) -> LabelLadder:
    """Train the rungs one after the other, each from the best of those below.

    A rung that ends worse than its parent is recorded, and the parent stays the start of the next one. A rung that the
    gate refuses, or that the monitor stops, ends the ladder unless ``force`` is set.

    Returns:
        The ladder, whose ``ending`` says how far it went; ladder.json in its directory says the same.

    Raises:
        SslSegError: for anything the user can mend; RefusedError for the continuation of a ladder that was refused or
            has collapsed.
    """
    console = console or Silent()
    layers = request.layers if request.resume is None else (*load_ladder(request.resume).layers, *request.layers)
    runtime = runtime_of(TrainRequest(layers))
    with open_fabric(runtime) as fabric, ExitStack() as held:

        def begin() -> LabelLadder:
            ladder = _create(request, fabric, console) if request.resume is None else load_ladder(request.resume)
            held.enter_context(hold_directory(ladder.path, console.note))
            return ladder if request.resume is None else _reopen(request, console)

        ladder = call_on_main(fabric, begin)
        machine = (pin_processes(runtime), *(request.layers if request.resume is not None else ()))
        try:
            for number in [rung.number for rung in ladder.rungs if rung.status == "waiting"]:
                ladder = _climb_rung(fabric, ladder, number, machine, console)
                if ladder.ending is not None:
                    return ladder
        except KeyboardInterrupt:  # between two trainings: a training turns it into an ending of its own
            return replace(ladder, ending="interrupted")
        return call_on_main(fabric, lambda: _save(replace(ladder, ending="finished")))


def _create(request: LabelLadderRequest, fabric: Fabric, console: Console) -> LabelLadder:
    """Check all that can be known before the first training, then create the directory with the split."""
    check_labels(request.labels)
    options = [layer for layer in request.layers if not layer.is_file]
    if "split.labels" in given_keys(options):
        raise ConfigError("split.labels: the labels of a ladder are those of its rungs; give them with --labels alone")
    gate = () if request.gate is None else (Layer(f"--gate {request.gate}", nest("bootstrap.gate", request.gate)),)
    layers = tuple(anchor_layer(layer) for layer in (*request.layers, *gate))
    check_layers(layers)
    if request.out is not None:
        check_free_for(LADDER_FILE, request.out, "ssl-seg ladder --resume")
    first = Layer(f"--labels {format_label_amount(request.labels[0])}", nest("split.labels", request.labels[0]))
    plan = make_plan(
        TrainRequest((*layers, first), epochs=request.epochs, minutes=request.minutes),
        console.track("reading cases"),
        gpu=fabric.device.type != "cpu",
    )
    check_options(plan.config, plan.sources, has_parent=len(request.labels) > 1)
    rungs = _plan_rungs(plan.split, request.labels, console)
    path = request.out or next_free(Path("runs") / _default_name(plan))
    ladder = LabelLadder(path, layers, rungs, request.epochs, request.minutes, request.force)

    def fill(folder: Path) -> None:
        save_split(plan.split, folder / SPLIT_FILE)
        save_ladder(replace(ladder, path=folder))

    create_whole(path, fill)
    counts = ", ".join(str(rung.cases) for rung in rungs)
    console.note(f"ladder: {path}, {len(rungs)} rung(s) with {counts} labeled cases, one split for all")
    return ladder


def _plan_rungs(split: Split, labels: Sequence[float], console: Console) -> tuple[Rung, ...]:
    rungs = tuple(Rung(n, float(value), len(split.labeled_ids(value))) for n, value in enumerate(labels, start=1))
    for below, above in pairwise(rungs):
        if above.cases < below.cases:
            raise ConfigError(
                f"--labels: {above.amount} stands for {above.cases} of the {len(split.fractions[1.0])} labeled "
                f"training cases, and {below.amount} before it for {below.cases}: each rung needs more than the one "
                "below"
            )
        if above.cases == below.cases:
            console.note(
                f"ladder: WARNING {below.amount} and {above.amount} both stand for {above.cases} labeled case(s): "
                f"rung {above.number} adds none"
            )
    return rungs


def _default_name(plan: Plan) -> str:
    data = name_data(plan.config.data.root)
    return f"{data}_{plan.config.method.name}_ladder_seed{plan.config.seed}"


def _reopen(request: LabelLadderRequest, console: Console) -> LabelLadder:
    """Return the ladder to continue, as it is now that it is held; what is to be tried again waits again."""
    path = request.resume or Path()
    ladder = load_ladder(path)
    minutes = renew_minutes(request.minutes, ladder.minutes, ladder.run_of(ladder.rungs[0]))
    if request.labels or request.out or request.gate or request.epochs or not has_runtime_only(request.layers):
        raise ConfigError(
            "--resume continues a ladder with its own settings, data and lengths: give it without other options "
            "(only --force, and runtime settings such as --devices, may be new)"
        )
    if ladder.ending == "finished":
        raise RunDirError(f"{path} is finished: all {len(ladder.rungs)} rungs are done; nothing to resume")
    if (ended := ladder.ended) is not None and not request.force:
        reason = ended.message or f"the monitor stopped its training: {', '.join(ended.codes)}"
        raise RefusedError(f"{path} ended at rung {ended.number}: {reason}\n--force goes on from the best rung so far.")
    rungs = tuple(replace(r, status="waiting", message="") if r.status == "refused" else r for r in ladder.rungs)
    done = sum(rung.status != "waiting" for rung in rungs)
    console.note(f"ladder: {path} goes on, {done} of {len(rungs)} rung(s) are done")
    return replace(ladder, rungs=rungs, force=ladder.force or request.force, ending=None, minutes=minutes)


def _save(ladder: LabelLadder) -> LabelLadder:
    save_ladder(ladder)
    return ladder


def _climb_rung(
    fabric: Fabric,
    ladder: LabelLadder,
    number: int,
    machine: Sequence[Layer],
    console: Console,
) -> LabelLadder:
    """Train, or go on with, a rung and judge it; the ladder has an ending where that was the last rung for now."""
    rung = ladder.rungs[number - 1]
    where = f"rung {number} (labels {rung.amount})"
    try:
        request = call_on_main(fabric, lambda: _plan_training(ladder, rung, machine, console))
        if request is not None and train(request, console).ending == "interrupted":
            return replace(ladder, ending="interrupted")
        return call_on_main(fabric, lambda: _judge(ladder, rung, console))
    except RefusedError as error:
        refused = replace(rung, status="refused", parent=_parent_of(ladder), message=str(error))
        ended = replace(ladder.with_rung(refused), ending="refused")
        return call_on_main(fabric, lambda: _save(ended))
    except SslSegError as error:
        raise type(error)(
            f"{where}: {error}\nWhen that is mended: ssl-seg ladder --resume {quote(ladder.path)}"
        ) from error


def _parent_of(ladder: LabelLadder) -> int | None:
    return None if ladder.best is None else ladder.best.number


def _plan_training(ladder: LabelLadder, rung: Rung, machine: Sequence[Layer], console: Console) -> TrainRequest | None:
    """Return how the run of a rung is begun or continued; None where its training has come to an end."""
    run, start = ladder.run_of(rung), ladder.checkpoint
    title = f"== rung {rung.number} of {len(ladder.rungs)}: labels {rung.amount}, {rung.cases} case(s)"
    if run.read_ending() is not None:
        return None
    if run.last.is_file():
        console.note(f"{title}, continued: {run.path}")
        return TrainRequest(tuple(machine), resume=run.path, in_series=True)
    first = read_machine(ladder.run_of(ladder.rungs[0]), ladder.layers, minutes=ladder.minutes)
    layers = [*_select_layers(ladder, rung), first, *machine]
    minutes = None if "length" in first.values else ladder.minutes
    if run.path.exists():  # killed before its first checkpoint: there is nothing to go on from
        shutil.rmtree(run.path)
    begins = start or merge_layers(layers)[0].get("network", {}).get("pretrained") or "scratch"
    console.note(f"{title}, from {begins}: {run.path}")
    return TrainRequest(
        tuple(layers), run.path, start, force=ladder.force, epochs=ladder.epochs, minutes=minutes, in_series=True
    )


def _select_layers(ladder: LabelLadder, rung: Rung) -> list[Layer]:
    """Return the settings of one rung: those of the ladder, its labels, and the split that all rungs share."""
    dropped = _OWN_SPLIT | ({"bootstrap"} if ladder.best is None and len(ladder.rungs) > 1 else set())
    dropped |= set() if ladder.best is None else {"network.pretrained"}
    shared = [replace(layer, values=leave_out(layer.values, dropped)) for layer in ladder.layers]
    own = {"split": {"labels": rung.labels, "file": str(ladder.path / SPLIT_FILE)}}
    return [*shared, Layer(f"rung {rung.number}", own)]


def _judge(ladder: LabelLadder, rung: Rung, console: Console) -> LabelLadder:
    """Compare a finished rung with its parent by the final scores of both, and record it."""
    run, parent = ladder.run_of(rung), ladder.best
    ending, final, checkpoint = run.read_ending() or {}, load_final_scores(run), load_checkpoint(run.best)
    if final is None:
        raise RunDirError(f"{run.path} has ended, but its {SCORES_FILE} is missing: put it back, or remove the folder")
    verdict, codes = ending.get("verdict"), tuple(ending.get("codes", ()))
    scores = {k: v for k, v in checkpoint.scores.items() if k != "selected"}
    rung = replace(rung, parent=_parent_of(ladder), net=final.used.net, codes=codes, scores=scores)
    tolerated = checkpoint.config["monitor"]["on_collapse"] == "warn"
    if ending.get("event") == "collapsed" or (verdict == "collapsed" and not tolerated):
        console.note(f"rung {rung.number}: COLLAPSED ({', '.join(codes)}); next: ssl-seg diagnose {quote(run.last)}")
        rung = replace(rung, status="collapsed")
        return _save(replace(ladder.with_rung(rung), ending=None if ladder.force else "collapsed"))
    below = None if parent is None else load_final_scores(ladder.run_of(parent))
    if parent is None or below is None:
        rung = replace(rung, status="done", kept=True)
    else:
        difference = compare_counts(count_classes(final.used.score), count_classes(below.used.score))
        rung = replace(rung, status="done", difference=difference, kept=difference.f1 >= 0)
    console.note(_describe(rung, parent))
    return _save(ladder.with_rung(rung))


def _describe(rung: Rung, parent: Rung | None) -> str:
    score = rung.scores[rung.net]
    line = f"rung {rung.number}: F1 {score['f1_macro']:.3f} ({rung.net})"
    if parent is None or rung.difference is None:
        return f"{line}, the first one"
    d = rung.difference
    interval = d.why if d.low is None or d.high is None else f"95 % interval {d.low:+.3f} to {d.high:+.3f}"
    compared = f"{d.f1:+.3f} to rung {parent.number} on the same cases ({interval})"
    if rung.kept:
        return f"{line}, {compared}"
    return f"{line}, {compared}: WORSE than its parent, which is kept"
