"""``ssl-seg config show | config check``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, show, track
from ssl_seg.cli.paths import check_data, check_figure

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer
    from ssl_seg.run.prepare import Plan


def config_show(
    file: o.ConfigArgument = None,
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest to plan for, or synthetic:particles|sheets.")
    ] = None,
    set_: o.Set = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a picture of rates, weights and policies over the whole run.")
    ] = None,
) -> None:
    """Print every setting of a run with the place it comes from: default, plan, file or option."""
    from ssl_seg.config.layers import flatten, to_plain

    check_figure(plot, "--plot")
    layers = _read(file, data, set_)
    from ssl_seg.run.preflight import check_layers

    check_layers(layers)
    plan = _plan(layers)
    for key, value in flatten(to_plain(plan.config)):
        show(f"{f'{key}: {value}':<60} # {plan.sources.get(key, 'default')}")
    if plot is not None:
        from ssl_seg.config.curves import compute_curves
        from ssl_seg.report.schedule_figure import plot_schedule

        plot_schedule(compute_curves(plan.config), plot, file or "planned from the data")
        show(f"wrote {plot}", err=True)


def config_check(
    file: Annotated[str, typer.Argument(help="YAML file or packaged name.", show_default=False)],
    data: Annotated[
        str | None, typer.Option(help="Folder or manifest: check the settings that are planned from it too.")
    ] = None,
    set_: o.Set = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 2 for a warning too.")] = False,
) -> None:
    """Check a configuration: keys, values, method, losses, network, patch size; and warn of contradictions.

    Exit code 2 for an error. What depends on settings that are planned from the data, and the split, is checked with
    --data only.
    """
    from ssl_seg.config.layers import check_partial, find_config
    from ssl_seg.data.findings import describe_finding

    layers = _read(file, data, set_)
    from ssl_seg.run.lint import lint
    from ssl_seg.run.preflight import check_layers, check_with_data, gather_facts

    check_layers(layers)
    if data is None:
        config, unknown = check_partial(layers)
        findings = lint(config, layers, unknown=unknown)
    else:
        plan = _plan(layers)
        faults = check_with_data(plan.config, plan.catalog, plan.split, show)
        findings = lint(
            plan.config, layers, gather_facts(plan.config, plan.catalog, plan.split, has_faults=bool(faults))
        )
    for finding in findings:
        show(f"WARNING {describe_finding(finding)}")
    verdict = f"{len(findings)} warning(s)" if findings else "ok"
    show(f"{Path(find_config(file))}: {verdict}")
    if findings and strict:
        raise typer.Exit(2)


def _read(file: str | None, data: str | None, overrides: list[str] | None) -> tuple[Layer, ...]:
    """Return the layers of a command line; what can be checked without the network libraries is."""
    from ssl_seg.cli.settings import make_layers

    check_data(data)
    layers = make_layers(file, {"data": data}, overrides)
    announce()
    return layers


def _plan(layers: tuple[Layer, ...]) -> Plan:
    from ssl_seg.run.prepare import TrainRequest, make_plan

    return make_plan(TrainRequest(layers), lambda items, total: track(items, total, "reading cases"))
