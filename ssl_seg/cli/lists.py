"""``ssl-seg methods | networks | losses``."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from ssl_seg.cli.console import announce


def methods() -> None:
    """List the learning methods with their options."""
    announce()
    from ssl_seg.methods import METHODS

    for name, method in METHODS.items():
        typer.echo(f"{name}: {(method.__doc__ or '').splitlines()[0]}")
        for option, field in method.config_type.model_fields.items():
            typer.echo(f"  method.options.{option} = {field.default}: {' '.join((field.description or '').split())}")


def networks() -> None:
    """List the networks, and what their patch sizes must be multiples of."""
    announce()
    from ssl_seg.networks.builders import NETWORKS

    for name, spec in NETWORKS.items():
        divisors = ", ".join(
            f"{len(patch)}D {'x'.join(map(str, spec.divisor(patch)))}" for patch in ((128, 128), (32, 64, 64))
        )
        typer.echo(f"{name}: {spec.description}; {spec.default_features} features; patch multiple of {divisors}")


def losses() -> None:
    """List the loss components with their options, the consistency distances, and the presets."""
    announce()
    from ssl_seg.config.presets import PRESETS
    from ssl_seg.losses import CONSISTENCY, LOSSES, list_options

    typer.echo("Components: loss.weights.NAME; their options: loss.options.NAME.OPTION.")
    typer.echo("With fp_cost and fn_cost, a component takes loss.fp_cost and loss.fn_cost.\n")
    for name, loss in LOSSES.items():
        typer.echo(f"{name}: {_first_line(loss)}")
        typer.echo(f"  {_show_map(list_options(name)) or 'no options'}")
    typer.echo("\nConsistency distances: method.options.consistency\n")
    for name, distance in CONSISTENCY.items():
        typer.echo(f"{name}: {_first_line(distance)}")
    typer.echo("\nPresets: loss.preset\n")
    for name, section in PRESETS.items():
        later = [f"from epoch {p['from_epoch']} {_show_map(p['weights'])}" for p in section.get("phases", ())]
        typer.echo(f"{name}: {'; '.join([_show_map(section['weights']), *later])}")
        for component, options in section.get("options", {}).items():
            typer.echo(f"  {component}: {_show_map(options)}")


def _first_line(function: object) -> str:
    return (function.__doc__ or "").splitlines()[0].removeprefix("Return ").replace("`", "")


def _show_map(values: Mapping[str, object]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if type(value) is float else f"{key} {value}" for key, value in values.items()
    )
