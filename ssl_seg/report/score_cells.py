"""Scores as cells of a table, for the terminal and for pages; see ``to_table`` for rows of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ssl_seg.errors import counted

Row = Mapping[str, Any]


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


def show_margin(scores: Row) -> str:
    """Return the interval of the margin of a network; nothing for a mean over networks, which has none."""
    if "margin_low" not in scores:
        return ""
    return format_interval(scores["margin_low"], scores["margin_high"], scores["margin_why"])


def show_difference(change: Row | None, title: str) -> dict[str, str]:
    """Return the cells of a difference of F1, below ``title``, and of its interval."""
    if change is None:
        return {title: "-", "its 95 % interval": "-"}
    interval = format_interval(change["low"], change["high"], change["why"], "+.3f")
    return {title: f"{change['f1']:+.3f}", "its 95 % interval": interval}


def name_subject(scores: Row) -> str:
    """Return what figures are of, for the title of a column: nothing for the foreground of two classes."""
    return "" if scores["of"] == "foreground" else f" ({scores['of']})"


def describe_absent(summary: Row) -> Iterator[str]:
    """Yield what must be said where classes, or any foreground, are in none of the masks that were scored."""
    absent = summary["absent_classes"]
    if not absent:
        return
    if summary["of"] in ("foreground", "any foreground"):
        yield "no mask has any foreground: F1 is 1 where nothing is predicted, else 0"
        return
    names = ", ".join(map(str, absent))
    subject = f"class {names} is" if len(absent) == 1 else f"classes {names} are"
    yield f"{subject} in none of the masks: left out of the means of classes over all cases"
    for row in summary["false_classes"]:
        where = f"{row['voxels']} voxels in {counted(row['cases'], 'case')}, which lowers the Dice of these cases"
        yield f"class {row['label']} is predicted all the same: {where}"


def make_object_rows(found: Row) -> list[dict[str, Any]]:
    """Return the scores of objects beside those of the baselines, and the means over images by both conventions."""
    baselines = {"connected": "connected parts", "whole": "whole image as one"}
    names = {"pred": "objects", **{f"f1_{t}": f"F1 at IoU 0.{t // 10}" for t in (50, 60, 70, 80, 90)}}
    names |= {"ap": "AP", "pq": "PQ"}
    rows: list[dict[str, Any]] = [
        {
            "score": name,
            "found": found[key],
            "95 % interval": _show_interval(found["intervals"].get(key)),
            **{
                shown: found["trivial"][own].get(key, "") for own, shown in baselines.items() if own in found["trivial"]
            },
        }
        for key, name in names.items()
    ]
    empty = f"{counted(found['empty'], 'image')} without objects"
    images = counted(found["images"], "image")
    for key in ("f1_50", "ap", "pq"):
        name = names[key]
        rows.append({"score": f"{name} (mean of {images})", "found": found["mean"][key]})
        if found["empty"]:
            rows[-1]["score"] = f"{name} (mean of {images}, {empty} as 1)"
            rows.append({"score": f"{name} (mean, {empty} left out)", "found": found["mean_nonempty"][key]})
    return rows


def _show_interval(estimate: Row | None) -> str:
    return "" if estimate is None else format_interval(estimate["low"], estimate["high"], estimate["why"])
