"""``ssl-seg evaluate``; its tables are in ``evaluate_tables``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import TerminalConsole, announce, print_json, show
from ssl_seg.cli.paths import check_data, check_new_file, describe_loading, take_checkpoint
from ssl_seg.errors import ConfigError


def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Checkpoints, or directories of runs, ladders or a cross-validation.",
            show_default=False,
        ),
    ],
    data: o.OtherData = None,
    layout: o.OtherLayout = None,
    split: Annotated[Path | None, typer.Option(help="Split file; by default that of the training.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Open the sealed test list; each opening is recorded.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Score all labeled cases that were not used in training.")
    ] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Also score the mean of all checkpoints' probabilities.")
    ] = False,
    which: Annotated[
        o.Net | None,
        typer.Option(help="Score one net only.", show_default="both; the better one for several checkpoints"),
    ] = None,
    overlap: o.Overlap = 0.25,
    threshold: o.Threshold = None,
    uncalibrated: o.Uncalibrated = False,
    set_: o.DataSet = None,
    accelerator: o.Accelerator = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of the worst, median and best cases.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write all scores of each case as a table.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Score a checkpoint per case and pooled, beside trivial baselines; on validation by default.

    Several checkpoints are compared on the same cases. A cross-validation is scored out of fold, or
    as an ensemble with --test.
    """
    from ssl_seg.cli.evaluate_tables import print_result, write_cases
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.data.settings import CASES, select_data_settings
    from ssl_seg.data.splits.files import load_split
    from ssl_seg.files import to_finite

    check_new_file(figure)
    check_new_file(csv, "--csv", (".csv",))
    found = [take_checkpoint(path) for path in checkpoints]
    if figure is not None and (len(found) > 1 or found[0].is_dir()):
        raise ConfigError("--figure draws the cases of one network: give one checkpoint")
    settings = select_data_settings(parse_overrides(set_), (*CASES, "spacing"))
    settings |= {} if layout is None else {"layout": layout}
    check_data(data)
    if split is not None:
        load_split(split)
    announce(describe_loading(found))
    from ssl_seg.results.evaluation import EvaluateRequest
    from ssl_seg.results.evaluation import evaluate as run_evaluation

    console = TerminalConsole()
    request = EvaluateRequest(
        found[0],
        data,
        split,
        "test" if test else "all" if all_ else "val",
        which,
        overlap=overlap,
        settings=settings,
        more=tuple(found[1:]),
        ensemble=ensemble,
        accelerator=accelerator,
        threshold=threshold,
        calibrated=not uncalibrated,
    )
    result = run_evaluation(request, note=lambda text: show(text, err=True), track=console.track)
    if figure is not None:
        from ssl_seg.report.case_pictures import choose_spread, draw_cases

        draw_cases(request, choose_spread(result["cases"], 5), result["which"], figure)
    if csv is not None:
        write_cases(csv, result)
    if as_json:
        print_json(to_finite(result))
    else:
        print_result(result, markdown=markdown)
    for written in (figure, csv):
        if written is not None:
            show(f"wrote {written}", err=as_json)
