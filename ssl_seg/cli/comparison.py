"""Tables of ``ssl-seg evaluate`` for several checkpoints, and for a cross-validation."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Any

from ssl_seg.cli.console import show

PARTS = {"val": "validation", "test": "sealed test", "all": "all labeled", "out_of_fold": "validation, out of fold"}


def add_differences(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with the difference of each row to the first: of pooled F1 (mean over classes), on the same
    cases, with its paired 95 % interval over cases; None in the first row."""
    import numpy as np

    from ssl_seg.intervals import draw_resamples, estimate_difference

    counts = [np.array([[case["counts"] for case in row["cases"]]]) for row in result["rows"]]
    cases = counts[0].shape[1]
    weights = draw_resamples(cases)
    rows = [{**result["rows"][0], "difference": None}]
    for row, own in zip(result["rows"][1:], counts[1:], strict=True):
        found = estimate_difference(own, counts[0], "f1", weights)
        rows.append({**row, "difference": {"f1": found.value, "low": found.low, "high": found.high}})
    return {**result, "rows": rows}


def print_comparison(result: dict[str, Any]) -> None:
    """Print a row for each checkpoint, and one for their ensemble."""
    from ssl_seg.cli.console import print_table

    rows, cases = result["rows"], result["cases"]
    places = [Path(row["checkpoint"]).absolute() if "step" in row else None for row in rows]
    base = Path(os.path.commonpath([place.parent for place in places if place is not None]))
    names = ["ensemble" if place is None else str(place.relative_to(base)) for place in places]
    several = "classes" in rows[0]["pooled"]
    columns = ["checkpoint", "net", "F1", *["mean of classes"] * several, "mean Dice", "all-positive", "margin"]
    columns += ["95 % interval", "to the first", "95 % interval"]
    table = [[name, *_make_row(row, several=several)] for name, row in zip(names, rows, strict=True)]
    print_table(f"{base}, {PARTS[result['part']]}, {len(cases)} cases", columns, table)
    print_openings(result)


def print_openings(result: dict[str, Any]) -> None:
    """Print how often the sealed cases that were scored have been opened."""
    if result["sealed_cases"]:
        show(
            f"{result['sealed_cases']} of these cases are sealed test cases: they have now been opened "
            f"{result['test_openings']} time(s)"
        )


def _make_row(row: dict[str, Any], *, several: bool) -> list[str]:
    from ssl_seg.cli.console import format_figure

    pooled, trivial, change = row["pooled"], row["trivial"], row["difference"]
    figures = [pooled["f1"], *[pooled["f1_macro"]] * several, row["mean"]["dice"], trivial["all_positive"]]
    shown = [row["which"], *map(format_figure, figures), f"{trivial['margin']:+.3f}"]
    shown.append(f"{trivial['margin_low']:+.3f} .. {trivial['margin_high']:+.3f}")
    if change is None:
        return [*shown, "-", "-"]
    return [*shown, f"{change['f1']:+.3f}", f"{change['low']:+.3f} .. {change['high']:+.3f}"]


def print_folds(result: dict[str, Any]) -> None:
    """Print a row for each fold of a cross-validation."""
    from ssl_seg.cli.console import format_figure, print_table

    rows = [
        [
            str(row["fold"]),
            row["which"],
            str(row["cases"]),
            *(format_figure(row["pooled"][key]) for key in ("f1", "f1_macro")),
            format_figure(row["mean"]["dice"]),
            *(format_figure(row["trivial"][key]) for key in ("all_positive", "margin")),
        ]
        for row in result["folds"]
    ]
    columns = ["fold", "net", "cases", "F1 (pooled)", "mean of classes", "mean Dice", "all-positive", "margin"]
    print_table(f"{result['checkpoint']}, each fold on its validation cases", columns, rows)
