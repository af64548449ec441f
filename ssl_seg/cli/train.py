"""``ssl-seg train``: a single run, rounds of self-training, and folds, which are in ``train_folds``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import begin, end_interrupted, show, show_prose
from ssl_seg.errors import quote

if TYPE_CHECKING:
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.training import TrainResult


def train(
    config: o.ConfigFile = None,
    data: o.Data = None,
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    task: o.TaskName = None,
    split: o.SplitFile = None,
    labels: o.LabelsOption = None,
    folds: Annotated[int | None, typer.Option(help="Number of cross-validation folds.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="Fold to validate on, from 0; or all, one after the other.", metavar="N|all")
    ] = None,
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
    rounds: o.Rounds = 0,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to create.", show_default="runs/DATA_METHOD_...")
    ] = None,
    bootstrap: Annotated[
        Path | None,
        typer.Option(help="Start from this checkpoint or run, with its settings and split unless others are given."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run, or the cross-validation, in this directory.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start from a parent that the gate refuses.")] = False,
    allow_split: o.AllowSplit = False,
    accelerator: o.TrainAccelerator = None,
    devices: o.Devices = None,
    num_nodes: o.NumNodes = None,
    set_: o.Set = None,
    log: Annotated[
        list[str] | None,
        typer.Option(help="Also log to this tracker: tensorboard, mlflow or wandb. Repeatable."),
    ] = None,
    profile: Annotated[
        int | None, typer.Option(min=1, help="Profile this many steps; RUN/profile.txt has where the time goes.")
    ] = None,
    no_live: o.NoLive = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Train student and teacher; watch both from step 0; write a run directory.

    Without --config the run is planned from the data, and the plan is saved as RUN/config.yaml.
    """
    given = dict(locals())  # all options: those of a run become settings
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.cli.train_folds import check_folds, run_folds
    from ssl_seg.engine.pace import check_length
    from ssl_seg.results.folds import FOLDS
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.sinks import check_sinks

    number = int(fold) if fold is not None and fold.isdecimal() else None
    layers = make_layers(config, given | {"fold": number}, set_)
    request = TrainRequest(
        layers,
        out,
        None,
        resume,
        force=force,
        epochs=epochs,
        minutes=minutes,
        log=tuple(log or ()),
        profile=profile or 0,
    )
    check_sinks(request.log)
    check_length(layers, epochs, minutes)
    check_folds(folds, fold, request.settings)
    if rounds:
        run_rounds(given)
    elif fold == "all" or (resume is not None and FOLDS.is_in(resume)):
        run_folds(request, bootstrap, given)
    else:
        _run_once(request, bootstrap, given)


def _run_once(request: TrainRequest, bootstrap: Path | None, given: Mapping[str, Any]) -> None:
    """Train one run, or continue it, and print its scores; the exit code says how it ended."""
    from ssl_seg.cli.paths import take_one_checkpoint
    from ssl_seg.cli.settings import check_paths
    from ssl_seg.studies.checkpoints import check_resumed

    if request.resume is not None:
        check_resumed(request.resume)
    check_paths(request.settings, out=request.out, resume=request.resume)
    parent = None if bootstrap is None else take_one_checkpoint(bootstrap)
    console = begin(given)
    from ssl_seg.report.run_report import RunningPage, write_when_trained
    from ssl_seg.run.training import train as run_training

    result = run_training(replace(request, bootstrap=parent), console, RunningPage(console.note))
    if not result.is_main:
        return  # with exit code 0: at another one the launcher would kill the first process while it reports
    if result.ending != "interrupted":
        write_when_trained(result.run.path, console.note)
    _report(result)
    if result.ending in ("collapsed", "refused") or (
        result.verdict.level == "collapsed" and not result.tolerates_collapse
    ):
        raise typer.Exit(3)


def _report(result: TrainResult) -> None:
    from ssl_seg.monitor.findings import describe_codes
    from ssl_seg.report.run_record import describe_few_cases, read_run

    run, verdict = result.run, result.verdict
    if result.ending == "interrupted":
        end_interrupted(f"after step {result.step}", f"ssl-seg train --resume {quote(run.path)}")
    record = read_run(run.path)
    banner = record.banner  # the page of the run says the same
    commands = "\n      ".join(banner.commands)
    if result.ending == "collapsed":
        show(
            f"stopped by the monitor after step {result.step}: {', '.join(verdict.codes)}\n"
            f"  the record is in {run.events_path}\n"
            f"  next: {commands}",
            err=True,
        )
        return
    if result.ending == "refused":
        show(f"ended by a gate after step {result.step}:\n  " + "\n  ".join(run.read_broken_gates()), err=True)
    runs = {"best.pt": result.scores} | ({"swa.pt": result.swa_scores} if result.swa_scores else {})
    print_scores(f"validation scores of {run.best}", runs)
    used = result.scores["selected"]["net"]
    show(f"verdict: {' '.join([verdict.level, ', '.join(describe_codes(verdict, used))]).rstrip()}")
    if banner.state != "healthy":
        show(banner.title)
    for text in describe_few_cases(record):
        show_prose(text)
    show(f"next: {commands}")


def print_scores(title: str, runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the validation scores of runs by name, each beside the trivial baseline on the same cases."""
    from ssl_seg.cli.tables import print_rows
    from ssl_seg.report.score_cells import describe_absent, name_subject, show_margin

    first = next(iter(runs.values()))["student"]
    of = name_subject(first)
    rows = [
        {
            "run": name,
            "net": net,
            f"F1{of}": scores[net]["f1_macro"],
            f"all-positive F1{of}": scores["trivial_f1"],
            "margin": scores[net]["margin"],
            "95 % interval": show_margin(scores[net]),
            "": "used" if net == scores["selected"]["net"] else "",
        }
        for name, scores in runs.items()
        for net in ("student", "teacher")
    ]
    print_rows(title, rows)
    for line in describe_absent(first):
        show(line)


def run_rounds(given: Mapping[str, Any]) -> None:
    """Train with labels, then the rounds, and print the table; the exit code says how it ended.

    Args:
        given: parameters of ``ssl-seg train``, with one round at least.
    """
    from ssl_seg.cli.ladder import climb
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.config import SplitConfig
    from ssl_seg.run.request import TrainRequest

    layers = make_layers(given["config"], {**given, "labels": None}, given["set_"])
    default = SplitConfig.model_fields["labels"].default
    labels = given["labels"] or TrainRequest(layers).settings.get("split.labels", default)
    climb((labels,), layers, given)
