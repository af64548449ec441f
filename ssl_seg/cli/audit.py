"""``ssl-seg data audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli.console import announce, show, track
from ssl_seg.cli.data_settings import GROUPS, LAYOUT, SET, UNLABELED, read_catalog_settings
from ssl_seg.cli.places import check_data, check_figure
from ssl_seg.errors import name_examples

if TYPE_CHECKING:
    from ssl_seg.data.audit.doctor import Audit

_SHOWN_VALUES = 8


def data_audit(
    data: Annotated[str, typer.Argument(help="Folder, manifest or synthetic:particles|sheets.", show_default=False)],
    layout: Annotated[str, LAYOUT] = "auto",
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    set_: Annotated[list[str] | None, SET] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of cases and distributions.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Look at all images and masks, say what is in them and what is wrong. Exit code 2 when a fault is found."""
    import json

    from ssl_seg.data.audit.doctor import audit
    from ssl_seg.data.findings import findings_to_dict

    check_figure(figure)
    check_data(data)
    settings = read_catalog_settings(set_)
    announce(f"reading the cases of {data}")
    result = audit(
        data,
        groups=groups,
        layout=layout,
        unlabeled=unlabeled,
        track=lambda items, total: track(items, total, "reading cases"),
        **settings,
    )
    if as_json:
        typer.echo(json.dumps(findings_to_dict(result.findings, result.summary), indent=2))
    else:
        _print(result)
    if figure is not None:
        from ssl_seg.cli.audit_pictures import draw_audit

        draw_audit(result, figure)
        show(f"wrote {figure}", err=as_json)
    if result.summary["faults"]:
        raise typer.Exit(2)


def _print(result: Audit) -> None:
    from ssl_seg.cli.console import format_figure, print_table
    from ssl_seg.data.findings import describe_finding

    summary = result.summary
    show(f"{summary['root']}: layout {summary['layout']}")
    for name, text in _describe(summary):
        show(f"  {name:<14} {text}")
    if len(summary["classes"]) > 2 and result.facts:
        rows = [
            [
                row["name"] or str(row["value"]),
                str(row["value"]),
                str(row["cases"]),
                *(format_figure((row["share"] or {}).get(k), 4) for k in ("mean", "sd", "min", "max")),
            ]
            for row in summary["classes"]
        ]
        print_table("share of each class", ["class", "value", "cases", "mean", "sd", "min", "max"], rows)
    for note in summary["notes"]:
        show(f"note: {note}")
    for finding in result.findings:
        show(f"{finding.level}: {describe_finding(finding)}")
    counted = ", ".join(f"{summary[f'{name}s']} {name}(s)" for name in ("fault", "warning", "info"))
    show(f"{summary['root']}: {counted if result.findings else 'ok, nothing found'}")


def _describe(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name and the text of each line of the summary."""
    counts, shapes, intensity = summary["counts"], summary["shapes"], summary["intensity"]
    groups = f", {counts['groups']} groups" if counts["groups"] else ""
    unreadable = counts["images"] - counts["readable"]
    lines = [
        (
            "images",
            f"{counts['images']} ({counts['labeled']} labeled, {counts['unlabeled']} without a mask{groups})"
            + (f", {unreadable} cannot be read" if unreadable else ""),
        )
    ]
    if shapes is not None:
        lines.append(("size", _describe_shapes(shapes)))
        channels = ", ".join(f"{n} x {k} channel(s)" for k, n in summary["channels"].items())
        lines.append(("type", f"{', '.join(f'{n} x {k}' for k, n in summary['dtypes'].items())}; {channels}"))
    if summary["spacing"] is not None:
        lines.append(("voxel size", _describe_ranges(summary["spacing"])))
    if intensity is not None:
        means = intensity["case_means"]
        lines.append(
            (
                "intensity",
                f"{intensity['low']:g} .. {intensity['high']:g}; means of the images {means['mean']:.4g}, "
                f"sd {means['sd']:.3g}",
            )
        )
    if summary["mask_values"]:
        shown = [f"{v['value']} ({v['share']:.1%}, {v['masks']} masks)" for v in summary["mask_values"]]
        lines.append(("mask values", name_examples(shown, _SHOWN_VALUES)))
    if summary["foreground"] is not None:
        spread = summary["foreground"]
        lines.append(
            (
                "foreground",
                f"mean {spread['mean']:.3f}, sd {spread['sd']:.3f}, {spread['min']:.4f} .. {spread['max']:.4f}; "
                f"{spread['empty']:.0%} of the masks are empty",
            )
        )
    return lines


def _describe_shapes(shapes: dict[str, Any]) -> str:
    if shapes["different"] == 1:
        return " x ".join(map(str, shapes["min"]))
    return f"{_describe_ranges(shapes)}; {shapes['different']} sizes"


def _describe_ranges(values: dict[str, Any]) -> str:
    """Return the range along each axis, and the medians."""
    ranges = [f"{a:.3g}" if a == b else f"{a:.3g}..{b:.3g}" for a, b in zip(values["min"], values["max"], strict=True)]
    return f"{' x '.join(ranges)} (median {' x '.join(f'{v:.3g}' for v in values['median'])})"
