"""What ``ssl-seg report`` writes: the page of a run, of several, or of a study."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_seg.errors import ConfigError, RunDirError, quote
from ssl_seg.report.comparison_page import COMPARISON_FILE, find_common_folder, make_comparison_page
from ssl_seg.report.page import PAGE_FILE, write_page
from ssl_seg.report.run_page import make_run_page, predict_examples
from ssl_seg.report.run_record import read_run
from ssl_seg.report.study_page import is_study, make_study_page
from ssl_seg.run.directory import CONFIG_FILE

if TYPE_CHECKING:
    from ssl_seg.studies.sequential import AfterEach

PICTURE_SECONDS = 30.0
"""Pictures that are expected to take longer are not made when a training ends."""
PAGE_SECONDS = 300.0
"""Least time between two pages of a running training."""
PAGE_SHARE = 0.02
"""Largest share of the running time that is spent on making pages."""


def write_report_page(
    paths: Sequence[Path], out: Path | None = None, *, seconds: float | None = None, goes_on: bool = False
) -> Path:
    """Write the page of a run, of several side by side, or of a ladder, cross-validation or ablation.

    Args:
        paths: directories of runs, or one of a study.
        out: file to write; by default report.html in the directory, or comparison.html in the folder of several.
        seconds: pictures of cases are left out where they are expected to take longer; None makes them in any case.
        goes_on: whether the training of the only run is going on, which its files alone do not tell.

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
        return write_page(make_study_page(path, has_links=out is None), out or path / PAGE_FILE)
    if not (path / CONFIG_FILE).is_file() and (path / PAGE_FILE).is_file():
        raise RunDirError(f"{path} holds no run; its page is there already, open {path / PAGE_FILE}")
    record = read_run(path, goes_on=goes_on)
    return write_page(make_run_page(record, *predict_examples(record, seconds)), out or path / PAGE_FILE)


def write_when_trained(path: Path, note: Callable[[str], None]) -> None:
    """Write the page of a training, or a study, that has just ended; a failure is told and changes nothing else."""
    if _try(lambda: write_report_page([path], seconds=PICTURE_SECONDS), path, note):
        note(f"report: {path / PAGE_FILE}")


def _write_so_far(path: Path) -> Path:
    return write_report_page([path], seconds=0.0, goes_on=True)


def make_pages_of_study(note: Callable[[str], None]) -> AfterEach:
    """Return what writes the pages of a ladder or cross-validation, and of its trainings, while it goes on."""
    from ssl_seg.studies.sequential import AfterEach  # which loads torch

    return AfterEach(RunningPage(note), lambda path: write_when_trained(path, note))


class RunningPage:
    """Writes the page of a training or study that goes on, now and then; called often, with its directory."""

    def __init__(
        self,
        note: Callable[[str], None],
        write: Callable[[Path], object] = _write_so_far,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is told of the first page or of a failure, what writes one, and the clock, in seconds."""
        self.note, self.write, self.now, self.is_told = note, write, now, False
        self.due = now() + PAGE_SECONDS

    def __call__(self, path: Path) -> None:
        """Write the page where it is due; after one that cannot be written, there is none before the training ends."""
        begun = self.now()
        if begun < self.due:
            return
        if not _try(lambda: self.write(path), path, self.note):
            self.due = math.inf
            return
        ended = self.now()
        self.due = ended + max(PAGE_SECONDS, (ended - begun) / PAGE_SHARE)
        if not self.is_told:
            self.note(f"report: {path / PAGE_FILE}, updated every few minutes")
        self.is_told = True


def _try(write: Callable[[], object], path: Path, note: Callable[[str], None]) -> bool:
    """Write the page of a directory; return whether it is there, and say why it is not."""
    try:
        write()
    except Exception as error:  # noqa: BLE001 (a training must not fail for its report)
        reason = str(error) or type(error).__name__
        note(f"report: {path / PAGE_FILE} was not written: {reason}. Try again: ssl-seg report {quote(path)}")
        return False
    return True
