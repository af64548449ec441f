"""``ssl-seg config show | config check | config diff``."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, print_json, show, track, wrap
from ssl_seg.cli.paths import check_data, check_new_file
from ssl_seg.cli.tables import print_table
from ssl_seg.errors import counted
from ssl_seg.report.table import Table

if TYPE_CHECKING:
    from ssl_seg.config import Config
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.resolve import Resolved

FIRST = ("split.labels", "method.name", "data.patch_size", "length.steps", "optim.lr", "loss.fn_cost")
"""Settings that change a result most, or that are most often asked about."""
MEANING_WIDTH = 120
"""Columns of an explanation where stdout is no terminal."""


def config_show(
    file: o.ConfigArgument = None,
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest to plan for, or synthetic:particles|sheets.")
    ] = None,
    set_: o.Set = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of rates, weights and policies over the whole run.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Explain each setting, in groups, the most important first.")
    ] = False,
) -> None:
    """Print every setting of a run and where it comes from: default, plan, file or option."""
    from ssl_seg.config.layers import flatten, to_plain

    check_new_file(plot, "--plot")
    resolved = _resolve(_read(file, data, set_))
    lines = {
        key: f"{f'{key}: {value}':<60} # {resolved.sources.get(key, 'default')}"
        for key, value in flatten(to_plain(resolved.config))
    }
    show(explain_settings(lines, resolved.config) if explain else "\n".join(lines.values()))
    if plot is not None:
        from ssl_seg.config.curves import compute_curves
        from ssl_seg.report.schedule_figure import plot_schedule

        plot_schedule(compute_curves(resolved.config), plot, file or "planned from the data")
        show(f"wrote {plot}", err=True)


def explain_settings(lines: Mapping[str, str], config: Config) -> str:
    """Return settings in groups, each with its meaning, those of ``FIRST`` before all others.

    Args:
        lines: line of each setting by its dotted name.
        config: the settings.
    """
    from ssl_seg.config.hints import describe_setting
    from ssl_seg.methods import METHODS

    options = METHODS[config.method.name].config_type.model_fields
    groups: dict[str, list[str]] = {"What to look at first": list(FIRST)}
    for key in lines:
        if key not in FIRST:
            section, _, rest = key.partition(".")
            title = f"{section}: {describe_setting(section)}" if rest else "The run as a whole"
            groups.setdefault(title, []).append(key)

    def describe(key: str) -> str:
        option = options.get(key.removeprefix("method.options."))
        return describe_setting(key) if option is None else " ".join((option.description or "").split())

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else MEANING_WIDTH
    return "\n\n".join(
        "\n".join([wrap(title, width), *(f"  {lines[key]}\n{wrap(f'      {describe(key)}', width)}" for key in keys)])
        for title, keys in groups.items()
    )


def config_check(
    file: Annotated[str, typer.Argument(help="YAML file or packaged name.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest; also check the settings that are planned from it.")
    ] = None,
    set_: o.Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 2 for warnings too.")] = False,
) -> None:
    """Check a configuration: keys, values, method, losses, network, patch size; warn of contradictions.

    Exit code 2 for an error. The split, and whatever depends on settings planned from the data, is checked only with
    --data.
    """
    from ssl_seg.config.layers import check_partial, find_config
    from ssl_seg.data.findings import describe_finding

    request = _read(file, data, set_)
    from ssl_seg.run.lint import lint
    from ssl_seg.run.preflight import check_with_data, gather_facts
    from ssl_seg.run.settings import check_settings

    given = request.settings
    if data is None:
        check_settings(given)
        config, unknown = check_partial(given)
        findings = lint(config, given.sources, unknown=unknown)
    else:
        resolved = _resolve(request)
        resolved = replace(resolved, faults=check_with_data(resolved, show))
        findings = lint(resolved.config, given.sources, gather_facts(resolved))
    for finding in findings:
        show(f"WARNING {describe_finding(finding)}")
    verdict = counted(len(findings), "warning") if findings else "ok"
    show(f"{Path(find_config(file))}: {verdict}")
    if findings and strict:
        raise typer.Exit(2)


def config_diff(
    a: Annotated[str, typer.Argument(metavar="A", help="Run directory, YAML file or packaged name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.")],
    as_json: o.AsJson = False,
) -> None:
    """Compare two runs or configurations: each setting that differs, with both values; defaults count.

    For two runs, also compares the checkpoints that they started from and the fingerprints of their splits.
    """
    from ssl_seg.run.differences import compare_settings

    differences = compare_settings(a, b)
    if as_json:
        print_json({"a": a, "b": b, "differences": [asdict(item) for item in differences]})
    elif differences:
        rows = tuple((difference.setting, *difference.shown) for difference in differences)
        print_table(Table(counted(len(differences), "setting", "differ"), "", ("setting", a, b), rows))
    else:
        show(f"no setting differs between {a} and {b}")


def _read(file: str | None, data: str | None, overrides: list[str] | None) -> TrainRequest:
    """Return the request of a command line, checked as far as that goes without the network libraries."""
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.run.request import TrainRequest

    check_data(data)
    request = TrainRequest(make_layers(file, {"data": data}, overrides))
    announce()
    return request


def _resolve(request: TrainRequest) -> Resolved:
    from ssl_seg.run.resolve import resolve

    return resolve(request, lambda items, total: track(items, total, "reading cases"))
