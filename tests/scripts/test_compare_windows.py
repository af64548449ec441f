"""scripts/compare_windows.py: the figures of the run's own windows are those that the run has kept."""

from __future__ import annotations

from pathlib import Path

import compare_windows
import pytest

from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores


def test_one_of_them_is_that_of_the_run(tiny_run: Path) -> None:
    run = RunDir(tiny_run)
    final, found = load_final_scores(run), compare_windows.measure(run)
    assert final is not None
    by_factor = {factor: (f1, dice) for factor, f1, dice, _ in found}
    summary = final.used.score.summarize()["mean"]["dice"]
    assert by_factor[final.factor] == pytest.approx((final.used.score.f1_macro, summary))
    assert by_factor[1] != by_factor[2]
