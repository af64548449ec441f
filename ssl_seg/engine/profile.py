"""Where the time of training steps goes, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ssl_seg.files import write_text

TABLE_FILE, TIMELINE_FILE = "profile.txt", "profile.json"
SKIPPED = 5
"""Steps that go by first: they fill caches."""
SHOWN = 40
"""Operators of the table."""


@contextmanager
def profile_steps(count: int, folder: Path, note: Callable[[str], None]) -> Iterator[Callable[[], None]]:
    """Record ``count`` steps, with what lies between them, and yield what to call after each step.

    Writes a table of the operators, those first that take the most time by themselves, and a timeline for browsers.

    Args:
        count: number of steps; 0 records nothing.
        folder: for the two files.
        note: is told where they are, or that there were too few steps.

    Raises:
        OSError: if a file cannot be written.
    """
    if not count:
        yield lambda: None
        return
    is_gpu = torch.cuda.is_available()
    recording = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * is_gpu])
    made = 0

    def count_step() -> None:
        nonlocal made
        made += 1
        if made == SKIPPED:
            recording.start()
        elif made == SKIPPED + count:
            recording.stop()
            write()

    def write() -> None:
        own_time = f"self_{'cuda' if is_gpu else 'cpu'}_time_total"
        table = recording.key_averages().table(sort_by=own_time, row_limit=SHOWN)
        write_text(folder / TABLE_FILE, f"{made - SKIPPED} steps\n{table}")
        recording.export_chrome_trace(str(folder / TIMELINE_FILE))
        note(f"profile: {made - SKIPPED} step(s) in {folder / TABLE_FILE}, their timeline in {folder / TIMELINE_FILE}")

    try:
        yield count_step
    finally:
        is_cut = SKIPPED <= made < SKIPPED + count
        if is_cut:
            recording.stop()
    if is_cut and made > SKIPPED:
        write()
    elif made <= SKIPPED:
        note(f"profile: none was made: there were {made} steps, of which the first {SKIPPED} are left out")
