"""What an audit of data and a check of a split have found, as text and rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ssl_seg.data.findings import Finding, describe_finding, sort_findings
from ssl_seg.errors import counted, name_examples
from ssl_seg.report.score_cells import format_interval
from ssl_seg.report.table import Table
from ssl_seg.scores.text import number

if TYPE_CHECKING:
    from ssl_seg.data.splits.statistics import SetMeasures

_SHOWN_VALUES = 8


def make_findings_table(findings: Sequence[Finding]) -> Table:
    """Return a row for each finding, faults first."""
    rows = tuple((f.level, join_lines(describe_finding(f))) for f in sort_findings(findings))
    return Table("", "", ("level", "what was found, in which cases"), rows)


def join_lines(text: str) -> str:
    """Return a text in one line."""
    return " ".join(text.split())


def make_class_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much of the voxels a class has, in the cases with it."""
    shares = {name: number((row["share"] or {}).get(name), 4) for name in ("mean", "sd", "min", "max")}
    return {"class": row["name"] or row["value"], "value": row["value"], "cases": row["cases"], **shares}


def describe_summary(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return a line of text for each part of the summary of an audit that is known."""
    counts, shapes, intensity = summary["counts"], summary["shapes"], summary["intensity"]
    groups = f", {counted(counts['groups'], 'group')}" if counts["groups"] else ""
    unreadable = counts["images"] - counts["readable"]
    lines = {
        "images": f"{counts['images']} ({counts['labeled']} labeled, {counts['unlabeled']} without a mask{groups})"
        + (f", {unreadable} cannot be read" if unreadable else "")
    }
    if shapes is not None:
        lines["size"] = _describe_shapes(shapes)
        channels = ", ".join(f"{n} x {counted(int(k), 'channel')}" for k, n in summary["channels"].items())
        lines["type"] = f"{', '.join(f'{n} x {k}' for k, n in summary['dtypes'].items())}; {channels}"
    if summary["spacing"] is not None:
        lines["voxel size"] = _describe_ranges(summary["spacing"])
    if intensity is not None:
        spread = intensity["case_means"]
        means = f"means of the images {spread['mean']:.4g}, sd {spread['sd']:.3g}"
        lines["intensity"] = f"{intensity['low']:g} .. {intensity['high']:g}; {means}"
    if summary["mask_values"]:
        shown = [f"{v['value']} ({v['share']:.1%}, {counted(v['masks'], 'mask')})" for v in summary["mask_values"]]
        lines["mask values"] = name_examples(shown, _SHOWN_VALUES)
    if (spread := summary["foreground"]) is not None:
        range_ = f"{spread['min']:.4f} .. {spread['max']:.4f}"
        empty = f"{spread['empty']:.0%} of the masks are empty"
        lines["foreground"] = f"mean {spread['mean']:.3f}, sd {spread['sd']:.3f}, {range_}; {empty}"
    return lines


def _describe_shapes(shapes: dict[str, Any]) -> str:
    if shapes["different"] == 1:
        from ssl_seg.data.facts import format_size  # loads NumPy, which the help of commands does without

        return format_size(shapes["min"])
    return f"{_describe_ranges(shapes, 'g')}; {shapes['different']} sizes"


def _describe_ranges(values: dict[str, Any], digits: str = ".3g") -> str:
    """Return the range along each axis, and the medians."""
    low, high, median = ([format(v, digits) for v in values[name]] for name in ("min", "max", "median"))
    ranges = (a if a == b else f"{a}..{b}" for a, b in zip(low, high, strict=True))
    return f"{' x '.join(ranges)} (median {' x '.join(median)})"


def make_set_rows(measures: Sequence[SetMeasures]) -> list[dict[str, Any]]:
    """Return the foreground of each set, beside random draws of its size."""
    return [
        {
            "set": m.name,
            "cases": len(m.ids),
            "eff. groups": f"{m.effective_groups:.1f}",
            "positive": m.positives,
            "foreground": m.foreground.mean,
            "95 % interval": format_interval(m.foreground.low, m.foreground.high),
            "random draws": format_interval(m.foreground.band_low, m.foreground.band_high),
            "percentile": f"{m.foreground.percentile:.1f}",
            "KS": f"{m.foreground.ks:.2f}",
        }
        for m in measures
    ]
