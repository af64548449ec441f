"""``ssl-seg export-log``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli.console import show


def export_log(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="Program that reads the log: tensorboard, mlflow or wandb.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to create.", show_default="RUN/tensorboard, ...")] = None,
) -> None:
    """Write the records of a run, metrics.jsonl, for another program; `train --log` does so while it trains."""
    from ssl_seg.run.directory import open_run_dir
    from ssl_seg.run.sinks import export_log as write

    folder, count, command = write(open_run_dir(run), to, out, lambda text: show(text, err=True))
    show(f"wrote {count} record(s) to {folder}")
    show(f"next: {command}")
