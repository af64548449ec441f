"""``ssl-seg ladder``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import begin, end_interrupted, show
from ssl_seg.errors import quote

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer
    from ssl_seg.studies.rungs import LabelLadder, Rung


def ladder(
    labels: o.LabelList = None,
    config: o.ConfigFile = None,
    data: o.Data = None,
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    split: o.SplitFile = None,
    method: o.MethodName = None,
    network: o.NetworkName = None,
    encoder: o.EncoderName = None,
    encoder_weights: o.EncoderWeights = None,
    pretrained: o.Pretrained = None,
    steps: o.Steps = None,
    epochs: o.Epochs = None,
    minutes: o.Minutes = None,
    lr: o.LearningRate = None,
    batch_size: o.BatchSize = None,
    seed: o.RunSeed = None,
    gate: Annotated[
        Literal["none", "margin", "interval"] | None,
        typer.Option(
            help="What a rung must show before the next one starts from it: a margin over predicting foreground "
            "everywhere, one whose 95 % interval lies above 0, or nothing.",
            show_default="margin",
        ),
    ] = None,
    rounds: o.Rounds = 0,
    out: Annotated[
        Path | None, typer.Option(help="Directory to create.", show_default="runs/DATA_METHOD_ladder_...")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the ladder in this directory.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Continue even if the gate refuses a rung, or one has collapsed.")
    ] = False,
    allow_split: o.AllowSplit = False,
    accelerator: o.TrainAccelerator = None,
    devices: o.Devices = None,
    num_nodes: o.NumNodes = None,
    set_: o.Set = None,
    no_live: o.NoLive = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train with more and more labels, each rung from the best one below: --labels 0.01 0.10 1.0

    Each rung is what `train --labels L --bootstrap PARENT` does, on one split. Exit code 3 if a gate or
    the monitor ends it.
    """
    given = dict(locals())
    from ssl_seg.cli.settings import make_layers

    wanted = o.parse_labels(labels or ())
    climb(wanted, make_layers(config, {**given, "labels": None}, set_), given)  # the labels are those of the rungs


def climb(labels: tuple[float, ...], layers: tuple[Layer, ...], given: Mapping[str, Any]) -> None:
    """Train the rungs, or continue them, and print the table; the exit code says how it ended.

    Args:
        labels: labels of the rungs.
        layers: settings of all rungs.
        given: the other parameters of the command.
    """
    from ssl_seg.cli.settings import check_paths
    from ssl_seg.engine.pace import check_length
    from ssl_seg.results.study import load_study
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.studies.rungs import LADDER, check_labels

    request = TrainRequest(layers, **{name: given[name] for name in ("out", "resume", "force", "epochs", "minutes")})
    check_length(layers, request.epochs, request.minutes)
    if request.resume is None:
        check_labels(labels)
    else:
        load_study(LADDER, request.resume)
    check_paths(request.settings)
    if request.out is not None:
        LADDER.check_free(request.out)
    console = begin(given)
    from ssl_seg.report.run_report import make_pages_of_study
    from ssl_seg.studies.label_ladder import climb_labels

    _report(climb_labels(request, labels, console, make_pages_of_study(console.note), rounds=given["rounds"]))


def _report(result: LabelLadder) -> None:
    """Print how far the ladder has come, and end with the exit code that says so."""
    from ssl_seg.cli.tables import print_rows
    from ssl_seg.engine.machine import is_main_process
    from ssl_seg.monitor.catalog import beats_trivial
    from ssl_seg.report.score_cells import describe_absent
    from ssl_seg.report.study_tables import find_scored, make_rung_rows
    from ssl_seg.studies.rungs import LADDER, find_best, find_best_checkpoint, find_end

    if not is_main_process():
        return
    resume = LADDER.resume(result.path)
    if result.ending == "interrupted":
        waiting = next((rung.name for rung in result.trainings if rung.status == "waiting"), "the end")
        end_interrupted(f"at {waiting}", resume)
    print_rows(f"validation, {result.path}", make_rung_rows(result))
    for line in describe_absent(scored) if (scored := find_scored(result)) is not None else ():
        show(line)
    show(f"wrote {result.path / LADDER.file}")
    ended, checkpoint = find_end(result), find_best_checkpoint(result)
    if ended is not None:
        _explain(ended, result, resume)
    if (best := find_best(result)) is None or checkpoint is None:
        show("no rung has a usable checkpoint")
    elif not beats_trivial(best.scores[best.net]["f1_macro"], best.scores["trivial_f1"]):
        show(f"no rung is better than foreground everywhere; next: ssl-seg diagnose {quote(checkpoint)}")
    else:
        show(f"use rung {best.number}, the best on validation: {checkpoint}")
        show(f"next: ssl-seg evaluate {quote(result.path)}\n      ssl-seg predict {quote(result.path)} IMAGES OUTPUT")
    if ended is not None:
        raise typer.Exit(3)


def _explain(rung: Rung, result: LabelLadder, resume: str) -> None:
    """Say at which rung the ladder ended, and why."""
    if rung.status == "refused" and rung.scores:
        show(f"rung {rung.number} (labels {rung.amount}) was ended by a gate: {rung.message}", err=True)
    elif rung.status == "refused":
        show(f"rung {rung.number} (labels {rung.amount}) did not start: {rung.message}", err=True)
    else:
        show(
            f"rung {rung.number} (labels {rung.amount}) was stopped by the monitor: {', '.join(rung.codes)}\n"
            f"  next: ssl-seg diagnose {quote(result.run_of(rung).last)}",
            err=True,
        )
    show(f"to continue anyway, from the best rung so far: {resume} --force", err=True)
