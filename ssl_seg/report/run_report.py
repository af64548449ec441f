"""What ``ssl-seg report`` writes: the page of a run, of several, or of a study."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ssl_seg.errors import ConfigError, quote
from ssl_seg.report.comparison_page import COMPARISON_FILE, find_common_folder, make_comparison_page
from ssl_seg.report.page import PAGE_FILE, write_page
from ssl_seg.report.run_page import make_run_page, predict_examples
from ssl_seg.report.run_record import read_run
from ssl_seg.report.study_page import is_study, make_study_page

PICTURE_SECONDS = 30.0
"""Pictures that are expected to take longer are not made when a training ends."""


def write_report_page(paths: Sequence[Path], out: Path | None = None, *, seconds: float | None = None) -> Path:
    """Write the page of a run, of several side by side, or of a ladder, cross-validation or ablation.

    Args:
        paths: directories of runs, or one of a study.
        out: file to write; by default report.html in the directory, or comparison.html in the folder of several.
        seconds: pictures of cases are left out where they are expected to take longer; None makes them in any case.

    Returns:
        Where the page is.

    Raises:
        RunDirError: for a folder that holds no run.
        ConfigError: for a study among several directories.
        DataError: for a place that cannot be written.
    """
    if len(paths) > 1:
        if studies := [path for path in paths if is_study(path)]:
            raise ConfigError(f"{studies[0]} holds several trainings: give it alone, or the runs in it")
        page = make_comparison_page([read_run(path) for path in paths])
        return write_page(page, out or find_common_folder(paths) / COMPARISON_FILE)
    (path,) = paths
    if is_study(path):
        return write_page(make_study_page(path), out or path / PAGE_FILE)
    record = read_run(path)
    return write_page(make_run_page(record, *predict_examples(record, seconds)), out or path / PAGE_FILE)


def write_when_trained(path: Path, note: Callable[[str], None]) -> None:
    """Write the page of a training, or a study, that has just ended; a failure is told and changes nothing else."""
    try:
        note(f"report: {write_report_page([path], seconds=PICTURE_SECONDS)}")
    except Exception as error:  # noqa: BLE001 (a training must not fail for its report)
        reason = str(error) or type(error).__name__
        note(f"report: {path / PAGE_FILE} was not written: {reason}. Try again: ssl-seg report {quote(path)}")
