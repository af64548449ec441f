"""``ssl-seg ladder``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ssl_seg.cli.console import show
from ssl_seg.cli.data_settings import GROUPS, UNLABELED
from ssl_seg.errors import quote

if TYPE_CHECKING:
    from ssl_seg.studies.rungs import LabelLadder, Rung


def ladder(
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="Labels of each rung, increasing: shares of the training pool or numbers of cases."),
    ] = None,
    config: Annotated[str | None, typer.Option(help="YAML file, or the name of a packaged configuration.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or manifest, as for train.")] = None,
    layout: Annotated[str | None, typer.Option(help="How the files lie; recognized unless given.")] = None,
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; else made from the seed, once for all rungs.")] = None,
    method: Annotated[str | None, typer.Option(help="Learning method; `ssl-seg methods` lists them.")] = None,
    network: Annotated[str | None, typer.Option(help="Network; `ssl-seg networks` lists them.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder of encoder_unet, as for train.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="What the encoder starts from.", metavar="imagenet|none|FILE")
    ] = None,
    pretrained: Annotated[
        Path | None, typer.Option(help="Start the first rung with the weights of this run of `ssl-seg pretrain`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps of each rung.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Length of each rung in epochs.", min=1)] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Minutes of each rung on this machine; the steps that fit into the first hold for all."),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Labeled patches in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the trainings; the split has its own, split.seed.")] = None,
    gate: Annotated[
        Literal["none", "margin", "interval"] | None,
        typer.Option(
            help="What a rung must show for the next one to start from it: a margin over predicting foreground "
            "everywhere, one whose 95 % interval lies above 0, or nothing.",
            show_default="margin",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory to create.", show_default="runs/DATA_METHOD_ladder_...")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the ladder in this directory.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on although the gate refuses a rung, or one has collapsed.")
    ] = False,
    allow_split: Annotated[
        bool, typer.Option("--allow-split", help="Train although the split check finds a fault; recorded in the runs.")
    ] = False,
    devices: Annotated[int | None, typer.Option(help="Processes on this node, one device each.")] = None,
    num_nodes: Annotated[int | None, typer.Option(help="Nodes, when started by torchrun or SLURM.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. bootstrap.parts=encoder. Repeatable."),
    ] = None,
) -> None:
    """Train with more and more labels, each rung from the best one below: --labels 0.01 0.10 1.0

    Each rung is what `train --labels L --bootstrap PARENT` does, on one split. Exit code 3 where the gate refuses a
    rung or the monitor stops one.
    """
    given = {name: value for name, value in locals().items() if name != "labels"}  # those are of the rungs
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.cli.run_settings import announce_loading, check_paths, make_layers, parse_labels
    from ssl_seg.engine.pace import check_length
    from ssl_seg.errors import ConfigError
    from ssl_seg.results.study import load_study
    from ssl_seg.studies.rungs import LADDER, check_labels

    if more and not labels:
        raise ConfigError(f"{more[0]} is not expected here: give the rungs as --labels 0.01 0.10 1.0")
    layers = make_layers(config, given, set_)
    check_length(layers, epochs, minutes)
    wanted = parse_labels([*(labels or []), *(more or [])])
    if resume is None:
        check_labels(wanted)
    else:
        load_study(LADDER, resume)
    check_paths(layers)
    if out is not None:
        LADDER.check_free(out)
    announce_loading()
    from ssl_seg.studies.label_ladder import LabelLadderRequest, climb_labels

    request = LabelLadderRequest(wanted, layers, out, resume, gate, force, epochs, minutes)
    _report(climb_labels(request, TerminalConsole()))


def _report(result: LabelLadder) -> None:
    """Print how far the ladder has come, and end with the exit code that says so."""
    from ssl_seg.engine.machine import is_main_process
    from ssl_seg.studies.rungs import LADDER, find_best, find_best_checkpoint, find_end

    if not is_main_process():
        return
    resume = LADDER.resume(result.path)
    if result.ending == "interrupted":
        waiting = next((rung.name for rung in result.trainings if rung.status == "waiting"), "the end")
        show(f"interrupted at {waiting}; continue with: {resume}")
        raise typer.Exit(130)
    _print_rungs(result)
    show(f"wrote {result.path / LADDER.file}")
    ended, checkpoint = find_end(result), find_best_checkpoint(result)
    if ended is not None:
        _explain(ended, result, resume)
    if (best := find_best(result)) is None or checkpoint is None:
        show("no rung has come to a network to use")
    elif best.scores[best.net]["margin"] <= 0:
        show(f"no rung is better than foreground everywhere; next: ssl-seg diagnose {quote(checkpoint)}")
    else:
        show(f"use rung {best.number}, the best on validation: {checkpoint}")
        show(f"next: ssl-seg evaluate {quote(result.path)}    ssl-seg predict {quote(result.path)} IMAGES OUTPUT")
    if ended is not None:
        raise typer.Exit(3)


def _explain(rung: Rung, result: LabelLadder, resume: str) -> None:
    """Say at which rung the ladder ended, and why."""
    if rung.status == "refused":
        show(f"rung {rung.number} (labels {rung.amount}) was not begun: {rung.message}", err=True)
    else:
        show(
            f"rung {rung.number} (labels {rung.amount}) was stopped by the monitor: {', '.join(rung.codes)}\n"
            f"  next: ssl-seg diagnose {quote(result.run_of(rung).last)}",
            err=True,
        )
    show(f"to go on all the same, from the best rung so far: {resume} --force", err=True)


def _print_rungs(result: LabelLadder) -> None:
    from ssl_seg.cli.comparison import describe_absent
    from ssl_seg.cli.console import print_table

    scored = next((rung.scores[rung.net] for rung in result.trainings if rung.scores), None)
    several = scored is not None and scored["of"] != "foreground"
    of = f" ({scored['of']})" if scored is not None and several else ""
    columns = [
        "rung", "labels", "cases", "start", f"F1 student{of}", f"F1 teacher{of}", f"all-positive{of}", "margin",
        "95 % interval", "to its parent", "95 % interval", "",
    ]  # fmt: skip
    print_table(f"validation, {result.path}", columns, [_make_row(rung) for rung in result.trainings])
    for line in describe_absent(scored) if scored is not None else ():
        show(line)


def _make_row(rung: Rung) -> list[str]:
    from ssl_seg.cli.console import format_figure, format_interval

    scores, change = rung.scores, rung.difference
    start = "-" if rung.status == "waiting" else f"rung {rung.parent}" if rung.parent else "scratch"
    row = [str(rung.number), rung.amount, str(rung.cases), start]
    if scores:
        best = scores[rung.net]
        f1 = [scores[net]["f1_macro"] for net in ("student", "teacher")]
        row += [format_figure(value) for value in (*f1, scores["trivial_f1"], best["margin"])]
        row.append(format_interval(best["margin_low"], best["margin_high"], best["margin_why"]))
    else:
        row += ["-"] * 5
    if change is None:
        row += ["-", "-"]
    else:
        row += [f"{change.f1:+.3f}", format_interval(change.low, change.high, change.why, "+.3f")]
    state = "kept" if rung.kept else "worse: its parent is kept" if rung.status == "done" else rung.status
    return [*row, state]
