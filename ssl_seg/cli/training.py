"""``ssl-seg train`` and ``ssl-seg demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli.console import show
from ssl_seg.cli.data_settings import GROUPS, UNLABELED
from ssl_seg.cli.run_settings import parse_label_amount
from ssl_seg.errors import quote

if TYPE_CHECKING:
    from ssl_seg.run.prepare import TrainRequest
    from ssl_seg.run.training import TrainResult


def train(
    config: Annotated[str | None, typer.Option(help="YAML file, or the name of a packaged configuration.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Folder or manifest; images without a mask are unlabeled. Or synthetic:particles|sheets."),
    ] = None,
    layout: Annotated[
        str | None, typer.Option(help="How the files lie; recognized unless given. `ssl-seg data layouts` lists them.")
    ] = None,
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    split: Annotated[
        Path | None, typer.Option(help="Split file of `ssl-seg split make`; else made from the seed.")
    ] = None,
    labels: Annotated[
        float | None,
        typer.Option(
            help="Labeled share of the training pool (0.10; 1.0 is all), or a number of cases above 1 (8).",
            parser=parse_label_amount,
            metavar="SHARE|NUMBER",
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of cross-validation folds.")] = None,
    fold: Annotated[
        str | None, typer.Option(help="The fold to validate on, from 0; or all, one after the other.", metavar="N|all")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Learning method; `ssl-seg methods` lists them.")] = None,
    network: Annotated[str | None, typer.Option(help="Network; `ssl-seg networks` lists them.")] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Encoder of encoder_unet: efficientnet_lite0, or a model of timm.")
    ] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="What the encoder starts from.", metavar="imagenet|none|FILE")
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Start with the weights of this run of `ssl-seg pretrain`, all but the head.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Length in epochs of length.steps_per_epoch steps.", min=1)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="As many steps as fit into these minutes on this machine, from the first step to the final scores; "
            "with --fold all for each fold, by the first one."
        ),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Labeled patches in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the training; the split has its own, split.seed.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to create.", show_default="runs/DATA_METHOD_...")
    ] = None,
    bootstrap: Annotated[
        Path | None,
        typer.Option(help="Start from this checkpoint or run; its settings and split hold where not given."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run, or the cross-validation, in this directory.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Start from a parent that the gate refuses.")] = False,
    allow_split: Annotated[
        bool, typer.Option("--allow-split", help="Train although the split check finds a fault; recorded in the run.")
    ] = False,
    devices: Annotated[int | None, typer.Option(help="Processes on this node, one device each.")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Nodes, when started by torchrun or SLURM.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. optim.lr=1e-4. Repeatable."),
    ] = None,
) -> None:
    """Train student and teacher; watch both from step 0; write a run directory.

    Without --config the run is planned from the data, and the plan is saved as RUN/config.yaml.
    """
    given = dict(locals())
    from ssl_seg.cli.checkpoints import check_resumed, find_checkpoint
    from ssl_seg.cli.folds import check_folds, run_folds
    from ssl_seg.cli.run_settings import announce_loading, check_paths, make_layers
    from ssl_seg.engine.pace import check_length
    from ssl_seg.errors import ConfigError
    from ssl_seg.results.folds import FOLDS

    number = int(fold) if fold is not None and fold.isdecimal() else None
    layers = make_layers(config, given | {"fold": number}, set_)
    check_length(layers, epochs, minutes)
    check_folds(folds, fold, layers, split=split, bootstrap=bootstrap, resume=resume)
    if fold == "all" or (resume is not None and FOLDS.is_in(resume)):
        if bootstrap is not None:
            raise ConfigError("--resume continues a cross-validation with its own settings: leave out --bootstrap")
        check_paths(layers)
        if out is not None:
            FOLDS.check_free(out)
        announce_loading()
        run_folds(layers, out, resume, epochs, minutes)
        return
    if resume is not None:
        check_resumed(resume)
    check_paths(layers, out=out, resume=resume)
    parent = None if bootstrap is None else find_checkpoint(bootstrap)
    announce_loading()
    from ssl_seg.run.prepare import TrainRequest

    _run(TrainRequest(layers, out, parent, resume, force=force, epochs=epochs, minutes=minutes))


def _run(request: TrainRequest) -> None:
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.run.training import train as run_training

    result = run_training(request, TerminalConsole())
    if not result.is_main:
        return  # with exit code 0: at another one the launcher would kill the first process while it reports
    _report(result)
    if result.ending == "interrupted":
        raise typer.Exit(130)
    if result.ending == "collapsed" or (result.verdict.level == "collapsed" and not result.tolerates_collapse):
        raise typer.Exit(3)


def _report(result: TrainResult) -> None:
    run = result.run
    if result.ending == "interrupted":
        show(f"interrupted after step {result.step}; continue with: ssl-seg train --resume {quote(run.path)}")
        return
    if result.ending == "collapsed":
        codes = ", ".join(result.verdict.codes)
        show(
            f"stopped by the monitor after step {result.step}: {codes}\n"
            f"  what was done is in {run.events_path}\n"
            f"  next: ssl-seg diagnose {quote(run.last)}",
            err=True,
        )
        return
    rows = [("best.pt", result.scores), *([("swa.pt", result.swa_scores)] if result.swa_scores else [])]
    print_scores(f"validation scores of {run.best}", rows)
    show(f"verdict: {result.verdict.level}{' ' + ','.join(result.verdict.codes) if result.verdict.codes else ''}")
    if result.verdict.level == "collapsed":
        show(f"do not use the networks of the last step; next: ssl-seg diagnose {quote(run.last)}")
        return
    if result.scores[result.scores["selected"]["net"]]["margin"] <= 0:
        show(f"no better than foreground everywhere on whole images; next: ssl-seg diagnose {quote(run.best)}")
        return
    show(f"next: ssl-seg evaluate {quote(run.best)}    ssl-seg predict {quote(run.best)} IMAGES OUTPUT")


def print_scores(title: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    """Print the validation scores of runs, each beside the trivial baseline on the same cases."""
    from ssl_seg.cli.comparison import describe_absent
    from ssl_seg.cli.console import format_figure, format_interval, print_table

    rows = []
    for name, scores in runs:
        for net in ("student", "teacher"):
            s = scores[net]
            figures = (s["f1_macro"], scores["trivial_f1"], s["margin"])
            interval = format_interval(s["margin_low"], s["margin_high"], s["margin_why"])
            used = "used" if net == scores["selected"]["net"] else ""
            rows.append([name, net, *(format_figure(v) for v in figures), interval, used])
    first = runs[0][1]["student"]
    of = "" if first["of"] == "foreground" else f", {first['of']}"
    columns = ["run", "net", f"F1{of}", f"all-positive F1{of}", "margin", "95 % interval", ""]
    print_table(title, columns, rows)
    for line in describe_absent(first):
        show(line)
