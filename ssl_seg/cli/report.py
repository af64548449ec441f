"""``ssl-seg report`` and ``ssl-seg export-log``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli.console import announce, show
from ssl_seg.cli.paths import check_new_page
from ssl_seg.errors import ConfigError, counted


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Directories of runs, finished or not; or that of a ladder, cross-validation or ablation.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file to write.", show_default="RUN/report.html; comparison.html for several runs"),
    ] = None,
) -> None:
    """Write a page that says at a glance how a run went: verdict, score, curves, cases, settings.

    The page is a single file that works offline. Several runs are compared by paired differences on their common cases.
    """
    from ssl_seg.report.run_report import write_report_page

    if twice := [path for number, path in enumerate(runs) if path.resolve() in [p.resolve() for p in runs[:number]]]:
        raise ConfigError(f"{twice[0]} is named twice: give each run once")
    check_new_page(out, "--out")
    announce(f"reading {runs[0] if len(runs) == 1 else f'{len(runs)} runs'}")
    show(f"wrote {write_report_page(runs, out)}")


def export_log(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    to: Annotated[str, typer.Option(help="Tracker to write for: tensorboard, mlflow or wandb.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder to create.", show_default="RUN/tensorboard, ...")] = None,
) -> None:
    """Write the records of a run, metrics.jsonl, for a tracker; `train --log` does so during training."""
    from ssl_seg.run.directory import open_run_dir
    from ssl_seg.run.sinks import export_log as write

    folder, count, command = write(open_run_dir(run), to, out, lambda text: show(text, err=True))
    show(f"wrote {counted(count, 'record')} to {folder}")
    show(f"next: {command}")
