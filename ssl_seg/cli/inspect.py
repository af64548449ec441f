"""``ssl-seg methods | networks | data layouts | config show | config check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SET = typer.Option("--set", metavar="KEY=VALUE", help="Any setting. Repeatable.")


def methods() -> None:
    """List the learning methods with their options."""
    from ssl_seg.methods import METHODS

    for name, method in METHODS.items():
        typer.echo(f"{name}: {(method.__doc__ or '').splitlines()[0]}")
        for option, field in method.config_type.model_fields.items():
            typer.echo(f"  method.options.{option} = {field.default}: {field.description}")


def networks() -> None:
    """List the networks, and what their patch sizes must be multiples of."""
    from ssl_seg.networks import NETWORKS

    for name, spec in NETWORKS.items():
        divisors = ", ".join(
            f"{len(patch)}D {'x'.join(map(str, spec.divisor(patch)))}" for patch in ((128, 128), (32, 64, 64))
        )
        typer.echo(f"{name}: {spec.description}; {spec.default_features} features; patch multiple of {divisors}")


def data_layouts() -> None:
    """List the layouts of data sets that are recognized."""
    from ssl_seg.data.layouts import LAYOUTS

    for name, layout in LAYOUTS.items():
        typer.echo(f"{name}: {layout.description}")


def config_show(
    file: Annotated[str | None, typer.Argument(help="YAML file or packaged name.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Folder to plan for.")] = None,
    set_: Annotated[list[str] | None, SET] = None,
) -> None:
    """Print every setting of a run with the place it comes from: default, plan, file or option."""
    from ssl_seg.cli.console import track
    from ssl_seg.configio import Layer, flatten, nest, parse_override, read_layers, to_plain
    from ssl_seg.prepare import TrainRequest, check_layers, make_plan

    layers = read_layers(file) if file is not None else []
    layers += [Layer("--data", nest("data.root", data))] if data is not None else []
    layers += [parse_override(text) for text in set_ or []]
    check_layers(layers)
    plan = make_plan(TrainRequest(tuple(layers)), lambda items, total: track(items, total, "reading cases"))
    for key, value in flatten(to_plain(plan.config)):
        typer.echo(f"{f'{key}: {value}':<60} # {plan.sources.get(key, 'default')}")


def config_check(
    file: Annotated[str, typer.Argument(help="YAML file or packaged name.", show_default=False)],
    set_: Annotated[list[str] | None, SET] = None,
) -> None:
    """Check a configuration: keys, values, method, losses, network, patch size. Exit code 2 for a fault."""
    from ssl_seg.configio import find_config, parse_override, read_layers
    from ssl_seg.prepare import check_layers

    layers = [*read_layers(file), *(parse_override(text) for text in set_ or [])]
    check_layers(layers)
    typer.echo(f"{Path(find_config(file))}: ok")
