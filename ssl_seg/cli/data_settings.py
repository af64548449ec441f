"""Settings of the commands that read a data set and train nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import typer

from ssl_seg.data.reading import SETTINGS, make_reading

NAMES = ("mask", "threshold", "label_values", "label_map", "ignore_value", *SETTINGS)
"""Settings that say how files are read and what mask values mean."""
CASE_NAMES = (*NAMES, "tiles")
"""Those, and what a case is."""

GROUPS = typer.Option(
    help="CSV with name,group; a group stays in one part. none keeps nothing together.",
    show_default="DATA/groups.csv, else what names such as patient03_slice07 show",
)
UNLABELED = typer.Option(help="Folder of further unlabeled images.")
LAYOUT = typer.Option(help="How the files lie; auto recognizes it, `ssl-seg data layouts` lists them.")
Accelerator = Literal["auto", "cpu", "cuda", "mps"]
ACCELERATOR = typer.Option(help="Where to compute.", show_default="as in training, where it is here")
SET = typer.Option(
    "--set",
    metavar="KEY=VALUE",
    help="data.mask=instances, data.label_values=[0,1,7], data.label_map={2: 1}, data.ignore_value=255, data.axes=CYX, "
    "... as for train. Repeatable.",
)


def read_data_settings(overrides: Sequence[str] | None, names: Sequence[str] = CASE_NAMES) -> dict[str, Any]:
    """Return the settings of the data section among ``--set`` texts, which must be some of ``names``.

    Raises:
        ConfigError: for a value that is not of its kind, or any other setting.
    """
    from ssl_seg.config.layers import check_partial, flatten, merge_layers, parse_override
    from ssl_seg.errors import ConfigError

    layers = [parse_override(text) for text in overrides or []]
    check_partial(layers)
    values = merge_layers(layers)[0]
    others = [key for key, _ in flatten(values) if key.split(".")[:2] not in [["data", name] for name in names]]
    if "runtime.accelerator" in others:
        raise ConfigError("--set runtime.accelerator: for this command that is --accelerator auto, cpu, cuda or mps")
    if others:
        known = ", ".join(f"data.{name}" for name in names)
        raise ConfigError(f"--set {others[0]}: this command does not look at it. It takes {known}.")
    settings = dict(values.get("data", {}))
    if "label_map" in settings:  # keys of a setting are text
        settings["label_map"] = {int(old): int(new) for old, new in settings["label_map"].items()}
    return settings


def read_catalog_settings(overrides: Sequence[str] | None) -> dict[str, Any]:
    """Return ``read_data_settings`` as the arguments of ``open_catalog`` and ``audit``."""
    settings = read_data_settings(overrides)
    labels = {name: value for name, value in settings.items() if name not in SETTINGS}
    return {**labels, "reading": make_reading(settings)}
