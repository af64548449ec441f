"""A ladder of label fractions: each rung is a training with more labels that starts from the best one so far.

A rung is what ``train --labels L --bootstrap PARENT`` does, with the gate in front of it. All rungs share one split.
Rounds of self-training are rungs too: each begins from scratch, with pseudo-labels of the best rung so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric

from ssl_seg.config import BootstrapConfig
from ssl_seg.config.data import format_label_amount
from ssl_seg.config.layers import Layer, nest, validate
from ssl_seg.data.splits.files import save_split
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import ConfigError, RefusedError, counted
from ssl_seg.files import next_free
from ssl_seg.inference.scoring import count_classes
from ssl_seg.results.study import save_study
from ssl_seg.run.console import Console, Silent
from ssl_seg.run.directory import SPLIT_FILE, name_data
from ssl_seg.run.final_scores import describe_for_checkpoint, load_final_scores
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve
from ssl_seg.run.transfer import check_options
from ssl_seg.scores.intervals import compare_counts
from ssl_seg.studies.pseudo_labels import make_pseudo_labels
from ssl_seg.studies.rungs import LADDER, LabelLadder, Rung, check_labels, find_best, find_end
from ssl_seg.studies.sequential import (
    IN_SILENCE,
    OWN_SPLIT,
    AfterEach,
    StudySteps,
    anchor_layer,
    check_resumable,
    create_whole,
    make_training,
    run_study,
)
from ssl_seg.studies.training import Outcome, Training

SNAPSHOTS = 2
"""Networks that a run keeps on the way, after one and two thirds of its steps, to judge pseudo-labels by."""


def climb_labels(
    request: TrainRequest,
    labels: Sequence[float] = (),
    console: Console | None = None,
    after: AfterEach = IN_SILENCE,
    *,
    rounds: int = 0,
) -> LabelLadder:
    """Train the rungs one after the other, each from the best of those below.

    A rung that ends worse than its parent is recorded, and the parent stays the start of the next one. A rung that the
    gate in front of it refuses, that breaks a gate of its own (``gates``), or that the monitor stops, ends the ladder
    unless ``force`` is set.

    Args:
        request: that of each rung, for the directory of all; but for the labels and what a rung starts from. Its
            ``minutes`` are those of the first rung: the steps that fit into them hold for all. With ``resume``, a
            ladder goes on with its own settings, and with other minutes where the first rung was too short for them.
        labels: labels of each new rung, increasing: shares in (0, 1] or numbers of cases above 1.
        console: talks to the user.
        after: what is done while it goes on.
        rounds: rounds of self-training after the training with each amount of labels.

    Returns:
        The ladder, whose ``ending`` says how far it went; ladder.json in its directory says the same.

    Raises:
        SslSegError: for anything the user can fix; RefusedError for the continuation of a ladder that was refused or
            has collapsed.
    """
    console = console or Silent()
    steps = StudySteps(
        create=lambda fabric: _create(request, labels, rounds, fabric, console),
        reopen=lambda ladder: _reopen(request, ladder, labels, rounds),
        plan=lambda ladder, rung: _plan_rung(ladder, rung, console),
        judge=lambda ladder, rung, outcome: _skip_rounds(_judge(ladder, rung, outcome, console), rung, console),
        refuse=_refuse,
    )
    return run_study(LADDER, steps, request, console, after)


def _create(
    request: TrainRequest, labels: Sequence[float], rounds: int, fabric: Fabric, console: Console
) -> LabelLadder:
    """Check all that can be known before the first training, then create the directory with the split."""
    check_labels(labels)
    options = TrainRequest(tuple(layer for layer in request.layers if not layer.is_file))
    if "split.labels" in options.settings.sources:
        raise ConfigError("split.labels: the labels of a ladder are those of its rungs; give them with --labels alone")
    layers = tuple(anchor_layer(layer) for layer in request.layers)
    if request.out is not None:
        LADDER.check_free(Path(request.out))
    first = Layer(f"--labels {format_label_amount(labels[0])}", nest("split.labels", labels[0]))
    plan = resolve(
        replace(request, layers=(*layers, first)),
        console.track("reading cases"),
        gpu=fabric.device.type != "cpu",
    )
    config = plan.config
    check_options(config, plan.sources, has_parent=len(labels) > 1 or rounds > 0)
    rungs = _list_rungs(plan.split, labels, rounds, console)
    if rounds:
        snapshots = Layer("--rounds", nest("length.snapshots", SNAPSHOTS))
        layers = (*layers, *([] if "length.snapshots" in plan.request.settings.sources else [snapshots]))
    name = f"{name_data(config.data.root)}_{config.method.name}_ladder_seed{config.seed}"
    path = Path(request.out or next_free(Path("runs") / name))
    ladder = LabelLadder(path, layers, rungs, request.epochs, request.minutes, request.force)

    def fill(folder: Path) -> None:
        save_split(plan.split, folder / SPLIT_FILE)
        save_study(LADDER, replace(ladder, path=folder))

    create_whole(path, fill)
    counts = ", ".join(str(rung.cases) for rung in rungs)
    console.note(f"ladder: {path}, {counted(len(rungs), 'rung')} with {counts} labeled cases, one split for all")
    return ladder


def _list_rungs(split: Split, labels: Sequence[float], rounds: int, console: Console) -> tuple[Rung, ...]:
    counts = {float(value): len(split.labeled_ids(value)) for value in labels}
    for below, above in pairwise(counts):
        named = [format_label_amount(value) for value in (below, above)]
        if counts[above] < counts[below]:
            raise ConfigError(
                f"--labels: {named[1]} stands for {counts[above]} of the {len(split.fractions[1.0])} labeled "
                f"training cases, and {named[0]} before it for {counts[below]}: each rung needs more than the one "
                "below"
            )
        if counts[above] == counts[below]:
            console.note(
                f"ladder: WARNING {named[0]} and {named[1]} both stand for {counted(counts[above], 'labeled case')}: "
                f"rung {list(counts).index(above) + 1} adds none"
            )
    numbers = count(1)
    return tuple(
        Rung(next(numbers), value, cases, number)
        for value, cases in counts.items()
        for number in range(1 + _count_rounds(split, value, rounds, labels, console))
    )


def _count_rounds(split: Split, value: float, rounds: int, labels: Sequence[float], console: Console) -> int:
    """Return the rounds of self-training with an amount of labels: none where no training case is unlabeled.

    Raises:
        ConfigError: where that is so with every amount.
    """
    if not rounds or split.pool_ids(value):
        return rounds
    why = (
        f"with labels {format_label_amount(value)}, no training case is unlabeled, and there is nothing to pseudo-label"
    )
    if not any(split.pool_ids(other) for other in labels):
        raise ConfigError(
            f"--rounds {rounds}: {why}. Give fewer labels (--labels 0.1) or images without masks (--unlabeled FOLDER), "
            "or leave --rounds out"
        )
    console.note(f"ladder: WARNING {why}: no rounds there")
    return 0


def _reopen(request: TrainRequest, ladder: LabelLadder, labels: Sequence[float], rounds: int) -> LabelLadder:
    """Return the ladder to continue; what is to be tried again waits again."""
    minutes = check_resumable(LADDER, ladder, request, labels, rounds, may="--force, and ")
    if (ended := find_end(ladder)) is not None and not request.force:
        reason = ended.message or f"the monitor stopped its training: {', '.join(ended.codes)}"
        raise RefusedError(
            f"{ladder.path} ended at rung {ended.number}: {reason}\n--force continues from the best rung so far."
        )
    rungs = tuple(replace(r, status="waiting", message="") if r.status == "refused" else r for r in ladder.trainings)
    return replace(ladder, trainings=rungs, force=ladder.force or request.force, ending=None, minutes=minutes)


def _plan_rung(ladder: LabelLadder, rung: Rung, console: Console) -> Training:
    """Return how a rung is begun: with its labels, on the split that all rungs share, from the best rung so far."""
    best = find_best(ladder)
    if rung.round and best is not None:  # without a best one, its rounds are skipped
        return _plan_round(ladder, rung, best, console)
    dropped = OWN_SPLIT | {"split.labels"} | ({"bootstrap"} if best is None and len(ladder.trainings) > 1 else set())
    dropped |= set() if best is None else {"network.pretrained"}
    own = Layer(f"rung {rung.number}", {"split": _describe_split(ladder, rung)})
    title = f"rung {rung.number} of {len(ladder.trainings)}: labels {rung.amount}, {counted(rung.cases, 'case')}"
    parent = None if best is None else ladder.run_of(best).best
    training = make_training(ladder, title, own, dropped=dropped, parent=parent)
    start = parent or training.request.settings.get("network.pretrained") or "scratch"
    return replace(training, start=f", from {start}")


def _describe_split(ladder: LabelLadder, rung: Rung) -> dict[str, Any]:
    return {"labels": rung.labels, "file": str(ladder.path / SPLIT_FILE)}


def _plan_round(ladder: LabelLadder, rung: Rung, best: Rung, console: Console) -> Training:
    """Return how a round is begun: as the first rung, with pseudo-labels of the best rung so far, which are made here.

    Raises:
        RefusedError: for a rung whose labels cannot be trusted.
    """
    folder = (ladder.path / rung.pseudo_labels).resolve()
    settings = TrainRequest(ladder.layers).settings
    options = validate(BootstrapConfig, settings.section("bootstrap"), settings.sources, prefix="bootstrap.")
    parent = ladder.run_of(best)
    reliability = make_pseudo_labels(parent, rung.labels, folder, options, console.track, force=ladder.force)
    console.note(f"round {rung.round}, pseudo-labels of rung {best.number}: {reliability}")
    own = {"split": _describe_split(ladder, rung), "data": {"pseudo_labels": str(folder)}}
    title = (
        f"rung {rung.number} of {len(ladder.trainings)}: labels {rung.amount}, {counted(rung.cases, 'case')}, and "
        f"{reliability.kept} with pseudo-labels of rung {best.number}"
    )
    dropped = OWN_SPLIT | {"split.labels", "bootstrap"}
    training = make_training(ladder, title, Layer(f"rung {rung.number}", own), dropped=dropped)
    return replace(training, start=", from scratch")


def _refuse(ladder: LabelLadder, rung: Rung, message: str) -> LabelLadder:
    refused = replace(rung, status="refused", parent=_number(find_best(ladder)), message=message)
    return replace(ladder.with_training(refused), ending="refused")


def _number(rung: Rung | None) -> int | None:
    return None if rung is None else rung.number


def _judge(ladder: LabelLadder, rung: Rung, outcome: Outcome, console: Console) -> LabelLadder:
    """Compare a finished rung with its parent by the final scores of both."""
    parent, used = find_best(ladder), outcome.final.used
    scores = {k: v for k, v in describe_for_checkpoint(outcome.final, used.source).items() if k != "selected"}
    rung = replace(rung, parent=_number(parent), net=used.net, codes=outcome.codes, scores=scores)
    if outcome.stopped:
        rung = replace(rung, status="collapsed")
        return replace(ladder.with_training(rung), ending=None if ladder.force else "collapsed")
    if outcome.broken_gates:
        rung = replace(rung, status="refused", message="; ".join(outcome.broken_gates))
        return replace(ladder.with_training(rung), ending=None if ladder.force else "refused")
    below = None if parent is None else load_final_scores(ladder.run_of(parent))
    if below is None:
        rung = replace(rung, status="done", kept=True)
    else:
        difference = compare_counts(count_classes(used.score), count_classes(below.used.score))
        rung = replace(rung, status="done", difference=difference, kept=difference.f1 >= 0)
    console.note(_describe(rung))
    return ladder.with_training(rung)


def _skip_rounds(ladder: LabelLadder, judged: Rung, console: Console) -> LabelLadder:
    """Return the ladder without the rounds that are useless after a rung: nothing can label, or it would be the same
    training again."""
    best = find_best(ladder)
    if best is not None and (judged.round == 0 or best.number == judged.number):
        return ladder
    why = f"rung {judged.number} was not taken" if best else "there is no network that could make pseudo-labels"
    for rung in ladder.trainings:
        if rung.labels == judged.labels and rung.round > judged.round:
            console.note(f"rung {rung.number}, round {rung.round}: skipped, since {why}")
            ladder = ladder.with_training(replace(rung, status="skipped", message=why))
    return ladder


def _describe(rung: Rung) -> str:
    line = f"rung {rung.number}: F1 {rung.scores[rung.net]['f1_macro']:.3f} ({rung.net})"
    if (d := rung.difference) is None:
        return f"{line}, the first one"
    interval = d.why if d.low is None or d.high is None else f"95 % interval {d.low:+.3f} to {d.high:+.3f}"
    end = "" if rung.kept else ": WORSE than its parent, which is kept"
    return f"{line}, {d.f1:+.3f} to rung {rung.parent} on the same cases ({interval}){end}"
