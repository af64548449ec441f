"""Scores as cells of a table, for the terminal and for pages. A row is a mapping from the title of a column to its
cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def list_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the columns of rows, in their order, and the text of all cells; a cell that a row lacks is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [[format_cell(row.get(name, "")) for name in columns] for row in rows]


def format_cell(value: Any) -> str:
    """Return a figure with three decimals, ``-`` for None, and anything else as it is."""
    return format_figure(value) if value is None or isinstance(value, float) else str(value)


def format_figure(value: float | None, digits: int = 3) -> str:
    """Return a figure for a table; ``-`` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def format_interval(low: float | None, high: float | None, why: str = "", digits: str = ".3f") -> str:
    """Return an interval for a table; where there is none, why, or ``-``."""
    return why or "-" if low is None or high is None else f"{low:{digits}} .. {high:{digits}}"


def make_score_cells(of: str, student: Row, teacher: Row, used: Row) -> dict[str, Any]:
    """Return the F1 of both networks, and of the one that is used its margin over predicting foreground everywhere.

    Args:
        of: what the figures are of, for the titles; see ``name_subject``.
        student, teacher, used: scores of the networks on the same cases; empty ones become ``-``.
    """
    return {
        f"F1 student{of}": student.get("f1_macro"),
        f"F1 teacher{of}": teacher.get("f1_macro"),
        f"all-positive{of}": used.get("trivial_f1"),
        "margin": used.get("margin"),
        "95 % interval": show_margin(used) if used else "-",
    }


def show_margin(scores: Row, digits: str = ".3f") -> str:
    """Return the interval of the margin of a network; nothing for a mean over networks, which has none."""
    if "margin_low" not in scores:
        return ""
    return format_interval(scores["margin_low"], scores["margin_high"], scores["margin_why"], digits)


def show_difference(change: Row | None, title: str) -> dict[str, str]:
    """Return the cells of a difference of F1, below ``title``, and of its interval."""
    if change is None:
        return {title: "-", "its 95 % interval": "-"}
    interval = format_interval(change["low"], change["high"], change["why"], "+.3f")
    return {title: f"{change['f1']:+.3f}", "its 95 % interval": interval}


def name_subject(scores: Row) -> str:
    """Return what figures are of, for the title of a column: nothing for the foreground of two classes."""
    return "" if scores["of"] == "foreground" else f" ({scores['of']})"
