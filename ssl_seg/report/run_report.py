"""What ``ssl-seg report`` writes: the page of a run, or of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_seg.report.comparison_page import COMPARISON_FILE, find_common_folder, make_comparison_page
from ssl_seg.report.page import write_page
from ssl_seg.report.run_page import write_run_page
from ssl_seg.report.run_record import read_run


def write_report_page(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of a run, or of several side by side; return where it is.

    Args:
        paths: run directories.
        out: file to write; by default report.html in the run, or comparison.html in the folder of several.

    Raises:
        RunDirError: for a folder that holds no run.
        DataError: for a place that cannot be written.
    """
    if len(paths) == 1:
        return write_run_page(paths[0], out)
    records = [read_run(path) for path in paths]
    return write_page(make_comparison_page(records), out or find_common_folder(paths) / COMPARISON_FILE)
