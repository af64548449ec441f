"""``ssl-seg data audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, print_json, show, track
from ssl_seg.cli.paths import check_data, check_new_file
from ssl_seg.cli.tables import print_findings, print_rows
from ssl_seg.errors import name_examples
from ssl_seg.scores.text import number

if TYPE_CHECKING:
    from ssl_seg.data.audit.doctor import Audit

_SHOWN_VALUES = 8


def data_audit(
    data: Annotated[str, typer.Argument(help="Folder, manifest or synthetic:particles|sheets.", show_default=False)],
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    set_: o.DataSet = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of cases and distributions.")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Look at all images and masks, say what is in them and what is wrong. Exit code 2 when a fault is found."""
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.data.audit.doctor import audit
    from ssl_seg.data.findings import findings_to_dict
    from ssl_seg.data.settings import make_catalog_settings

    check_new_file(figure)
    check_data(data)
    settings = make_catalog_settings(parse_overrides(set_), layout, groups, unlabeled)
    announce(f"reading the cases of {data}")
    result = audit(data, settings, track=lambda items, total: track(items, total, "reading cases"))
    if as_json:
        print_json(findings_to_dict(result.findings, result.summary))
    else:
        _print(result)
    if figure is not None:
        from ssl_seg.report.audit_samples import draw_audit

        draw_audit(result, figure)
        show(f"wrote {figure}", err=as_json)
    if result.summary["faults"]:
        raise typer.Exit(2)


def _print(result: Audit) -> None:
    summary = result.summary
    show(f"{summary['root']}: layout {summary['layout']}")
    for name, text in describe_summary(summary).items():
        show(f"  {name:<14} {text}")
    if len(summary["classes"]) > 2 and result.facts:
        print_rows("share of each class", [_make_class_row(row) for row in summary["classes"]])
    for note in summary["notes"]:
        show(f"note: {note}")
    print_findings(result.findings)
    counted = ", ".join(f"{summary[f'{name}s']} {name}(s)" for name in ("fault", "warning", "info"))
    show(f"{summary['root']}: {counted if result.findings else 'ok, nothing found'}")


def _make_class_row(row: dict[str, Any]) -> dict[str, Any]:
    shares = {name: number((row["share"] or {}).get(name), 4) for name in ("mean", "sd", "min", "max")}
    return {"class": row["name"] or row["value"], "value": row["value"], "cases": row["cases"], **shares}


def describe_summary(summary: dict[str, Any]) -> dict[str, str]:
    """Return a line of text for each part of the summary of an audit that is known."""
    counts, shapes, intensity = summary["counts"], summary["shapes"], summary["intensity"]
    groups = f", {counts['groups']} groups" if counts["groups"] else ""
    unreadable = counts["images"] - counts["readable"]
    lines = {
        "images": f"{counts['images']} ({counts['labeled']} labeled, {counts['unlabeled']} without a mask{groups})"
        + (f", {unreadable} cannot be read" if unreadable else "")
    }
    if shapes is not None:
        lines["size"] = _describe_shapes(shapes)
        channels = ", ".join(f"{n} x {k} channel(s)" for k, n in summary["channels"].items())
        lines["type"] = f"{', '.join(f'{n} x {k}' for k, n in summary['dtypes'].items())}; {channels}"
    if summary["spacing"] is not None:
        lines["voxel size"] = _describe_ranges(summary["spacing"])
    if intensity is not None:
        spread = intensity["case_means"]
        means = f"means of the images {spread['mean']:.4g}, sd {spread['sd']:.3g}"
        lines["intensity"] = f"{intensity['low']:g} .. {intensity['high']:g}; {means}"
    if summary["mask_values"]:
        shown = [f"{v['value']} ({v['share']:.1%}, {v['masks']} masks)" for v in summary["mask_values"]]
        lines["mask values"] = name_examples(shown, _SHOWN_VALUES)
    if (spread := summary["foreground"]) is not None:
        range_ = f"{spread['min']:.4f} .. {spread['max']:.4f}"
        empty = f"{spread['empty']:.0%} of the masks are empty"
        lines["foreground"] = f"mean {spread['mean']:.3f}, sd {spread['sd']:.3f}, {range_}; {empty}"
    return lines


def _describe_shapes(shapes: dict[str, Any]) -> str:
    if shapes["different"] == 1:
        return " x ".join(map(str, shapes["min"]))
    return f"{_describe_ranges(shapes)}; {shapes['different']} sizes"


def _describe_ranges(values: dict[str, Any]) -> str:
    """Return the range along each axis, and the medians."""
    ranges = [f"{a:.3g}" if a == b else f"{a:.3g}..{b:.3g}" for a, b in zip(values["min"], values["max"], strict=True)]
    return f"{' x '.join(ranges)} (median {' x '.join(f'{v:.3g}' for v in values['median'])})"
