"""``ssl-seg diagnose``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, print_json, show
from ssl_seg.cli.paths import check_data, take_one_checkpoint
from ssl_seg.errors import ConfigError, DataError, quote

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis

COLLAPSED = 3
"""Exit code, also of a gate that is not passed."""


def diagnose(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(metavar="CKPT", help="Checkpoint, or directory of a run or ladder.", show_default=False),
    ] = None,
    data: o.OtherData = None,
    layout: o.OtherLayout = None,
    which: o.WhichNet = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Examine this folder of predictions, in place of a checkpoint.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="True masks of the --predictions, by file name.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for a report with figures.")] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="Time after which no further image is examined; above 120, all images may be, else 30 of each part.",
            parser=o.number_parser("--seconds", o.FROM_1, "120"),
        ),
    ] = 120,
    require_f1: Annotated[
        float | None,
        typer.Option(
            help="Exit with code 3 when the validation F1 (mean of classes) is lower.",
            parser=o.number_parser("--require-f1", o.FROM_0_TO_1, "0.7"),
        ),
    ] = None,
    accelerator: o.Accelerator = None,
    set_: o.DataSet = None,
    as_json: o.AsJson = False,
) -> None:
    """Examine a checkpoint or a folder of predictions: verdict, evidence, likely causes. Exit code 3 when collapsed."""
    from ssl_seg.diagnose.clock import Clock

    clock = Clock(seconds)  # before anything else: what is imported and loaded takes its share
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.data.settings import CASES, READING, select_data_settings
    from ssl_seg.report.diagnosis import check_report_folder, write_report

    _check_options(checkpoint, predictions)
    if out is not None:
        check_report_folder(out)
    names = READING if checkpoint is None else (*CASES, "spacing")
    settings = select_data_settings(parse_overrides(set_), names)
    settings |= {} if layout is None else {"layout": layout}
    check_data(data)
    with _reserve(out):
        path = None if checkpoint is None else take_one_checkpoint(checkpoint)
        if checkpoint is not None and path is not None:
            _note_collapse(checkpoint, path)
        if predictions is not None:
            from ssl_seg.diagnose.prediction_files import find_predictions

            find_predictions(predictions)
        announce(f"loading PyTorch and {path or predictions}")
        if path is not None:
            from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint

            result = diagnose_checkpoint(
                CheckpointRequest(path, data, which, settings, seconds, accelerator=accelerator),
                note=_note,
                track=TerminalConsole().track,
                clock=clock,
            )
        else:
            from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions

            result = diagnose_predictions(
                PredictionsRequest(Path(str(predictions)), masks, settings, seconds),
                note=_note,
                track=TerminalConsole().track,
                clock=clock,
            )
        if require_f1 is not None:
            from ssl_seg.diagnose.gate import apply_gate

            result = apply_gate(result, require_f1)
        if out is not None:
            report = write_report(result, out, shlex.join(["ssl-seg", *sys.argv[1:]]))
    if as_json:
        print_json(result.to_record())
    else:
        _print(result)
    if out is not None:
        show(f"wrote {report}, and report.md as text", err=as_json)
    if result.verdict.level == "collapsed" or result.verdict.code == "below_gate":
        raise typer.Exit(COLLAPSED)


def _check_options(checkpoint: Path | None, predictions: Path | None) -> None:
    if (checkpoint is None) == (predictions is None):
        given = "both are given" if checkpoint else "none is given"
        raise ConfigError(f"give a checkpoint or --predictions FOLDER, exactly one of them: {given}")


@contextmanager
def _reserve(folder: Path | None) -> Iterator[None]:
    """Create the folder first, so that an examination is not made in vain, and take it away if there is no report."""
    if folder is None:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write the report to {folder}: {error.strerror}") from error
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _note_collapse(given: Path, taken: Path) -> None:
    """Say that a run has collapsed where the network that is examined is from before."""
    from ssl_seg.run.directory import RunDir

    run = RunDir(given)
    ending = run.read_ending() or {}
    if ending.get("verdict") == "collapsed" and taken == run.best and run.last.is_file():
        _note(
            f"the run ended collapsed ({', '.join(ending['codes'])}); best.pt is from before that. "
            f"For its last networks: `ssl-seg diagnose {quote(run.last)}`"
        )


def _note(text: str) -> None:
    show(f"note: {text}", err=True)


def _print(diagnosis: Diagnosis) -> None:
    from ssl_seg.report.diagnosis_summary import describe_scope, format_findings, format_verdict
    from ssl_seg.report.diagnosis_tables import make_key_figures

    show(format_verdict(diagnosis))
    show(f"looked at {diagnosis.subject}: {describe_scope(diagnosis)}")
    for line in format_findings(diagnosis):
        show(line)
    rows = make_key_figures(diagnosis, brief=diagnosis.verdict.level == "ok").rows
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    for name, value, beside in rows:
        show(f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {beside}".rstrip())
    show(f"next: {diagnosis.next_command}")
