"""``ssl-seg data audit``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, format_command, print_json, show, track
from ssl_seg.cli.paths import check_data, check_new_file, check_new_page
from ssl_seg.cli.tables import print_findings, print_rows
from ssl_seg.errors import counted
from ssl_seg.report.check_tables import describe_summary, make_class_row

if TYPE_CHECKING:
    from ssl_seg.data.audit.doctor import Audit


def data_audit(
    data: Annotated[str, typer.Argument(help="Folder, manifest or synthetic:particles|sheets.", show_default=False)],
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    set_: o.DataSet = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of cases and distributions.")] = None,
    report: o.ReportPage = None,
    as_json: o.AsJson = False,
) -> None:
    """Check all images and masks: what is in them, and what is wrong. Exit code 2 when a fault is found."""
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.data.audit.doctor import audit
    from ssl_seg.data.findings import findings_to_dict
    from ssl_seg.data.settings import make_catalog_settings

    check_new_file(figure)
    check_new_page(report, "--report")
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
    if report is not None:
        from ssl_seg.report.check_pages import make_audit_page
        from ssl_seg.report.page import write_page

        options = {"--layout": layout, "--groups": groups, "--unlabeled": unlabeled, "--set": set_}
        train = format_command(["train", "--data", data], options)
        again = format_command(["data", "audit", data], {**options, "--report": report})
        show(f"wrote {write_page(make_audit_page(result, train, again), report)}", err=as_json)
    if result.summary["faults"]:
        raise typer.Exit(2)


def _print(result: Audit) -> None:
    summary = result.summary
    show(f"{summary['root']}: layout {summary['layout']}")
    for name, text in describe_summary(summary).items():
        show(f"  {name:<14} {text}")
    if len(summary["classes"]) > 2 and result.facts:
        print_rows("share of each class", [make_class_row(row) for row in summary["classes"]])
    for note in summary["notes"]:
        show(f"note: {note}")
    print_findings(result.findings)
    counts = ", ".join(counted(summary[f"{name}s"], name) for name in ("fault", "warning", "info"))
    show(f"{summary['root']}: {counts if result.findings else 'ok, nothing found'}")
