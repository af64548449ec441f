"""Settings of the data section that commands without a training take: how files are read, and what mask values mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.config.layers import Layer, convert, flatten, merge_layers
from ssl_seg.data.reading import LABEL_SETTINGS, SETTINGS
from ssl_seg.errors import ConfigError

if TYPE_CHECKING:
    from ssl_seg.data.catalog import CatalogSettings

READING = (*LABEL_SETTINGS, *SETTINGS)
"""How files are read and what mask values mean."""
CASES = (*READING, "tiles")
"""Those, and what a case is."""


def select_data_settings(layers: Sequence[Layer], names: Sequence[str] = CASES) -> dict[str, Any]:
    """Return the settings of the data section, by name.

    Args:
        names: those that the command looks at.

    Raises:
        ConfigError: for a value of another type, or any other setting.
    """
    given = convert(merge_layers(layers))
    others = [key for key, _ in flatten(given.values) if key.split(".")[:2] not in [["data", name] for name in names]]
    if "runtime.accelerator" in others:
        raise ConfigError("--set runtime.accelerator: for this command that is --accelerator auto, cpu, cuda or mps")
    if others:
        known = ", ".join(f"data.{name}" for name in names)
        raise ConfigError(f"--set {others[0]}: this command does not look at it. It takes {known}.")
    settings = dict(given.section("data"))
    if "label_map" in settings:  # the keys of a setting are strings
        settings["label_map"] = {int(old): int(new) for old, new in settings["label_map"].items()}
    return settings


def make_catalog_settings(
    layers: Sequence[Layer], layout: str | None = None, groups: Path | None = None, unlabeled: Path | None = None
) -> CatalogSettings:
    """Return how the cases of a data set are found and read."""
    from ssl_seg.data.catalog import parse_section  # slow to load, and ``select_data_settings`` goes without

    options = {"layout": layout, "groups": groups, "unlabeled": unlabeled}
    return parse_section(select_data_settings(layers) | options)
