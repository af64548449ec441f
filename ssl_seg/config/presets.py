"""Losses and views by name: partial sections. A configuration says ``loss: {preset: combined}``.

``ssl-seg losses`` lists those of losses. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ssl_seg.errors import ConfigError, did_you_mean

PRESETS: dict[str, dict[str, Any]] = {
    "dice": {"weights": {"dice": 1.0}},
    "combined": {"weights": {"cross_entropy": 0.4, "dice": 0.4, "focal": 0.2}},
    "focal_dice": {"weights": {"focal": 0.7, "dice": 0.3}},
    "competition": {"weights": {"cross_entropy": 3.0, "dice": 1.0, "focal": 4.0}},
    "tversky_recall": {"weights": {"tversky": 1.0}, "options": {"tversky": {"alpha": 0.3, "beta": 0.7}}},
    # A weight of 0 watches a component before it is used.
    "progressive": {
        "weights": {"dice": 1.0, "focal": 0.0, "variance": 0.0, "boundary": 0.0},
        "phases": [
            {"from_epoch": 31, "weights": {"dice": 0.8, "focal": 0.2, "variance": 0.0, "boundary": 0.0}},
            {"from_epoch": 61, "weights": {"dice": 0.75, "focal": 0.15, "variance": 0.05, "boundary": 0.05}},
        ],
    },
    "curriculum": {
        "weights": {"dice": 1.0, "focal": 0.0, "variance": 0.0},
        "phases": [{"from_epoch": 51, "weights": {"dice": 0.75, "focal": 0.15, "variance": 0.1}}],
    },
}
"""Name -> keys of a ``loss`` section."""


VIEWS: dict[str, dict[str, Any]] = {
    "none": {"flips": False, "rotate90": False, "affine": 0.0, "intensity": 0.0, "invert": 0.0, "cutout": 0.0},
    "light": {"affine": 0.0, "intensity": 0.2, "invert": 0.0},
    "strong": {},
}
"""Name -> keys of an ``augment`` section that are not at their defaults."""


def expand_views(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return an ``augment`` section in which the key ``preset`` is replaced by all settings that it stands for.

    What the section says besides wins. Mixtures of patches are no part of a preset, and
    ``invert`` is of ``none`` and ``light``.

    Raises:
        ConfigError: for an unknown preset, with the nearest known one.
    """
    from ssl_seg.config import AugmentConfig

    changed = _look_up("augment", section["preset"], VIEWS)
    defaults = AugmentConfig().model_dump(exclude={"cutmix", "copy_paste", "invert"})
    return {**defaults, **changed, **{key: value for key, value in section.items() if key != "preset"}}


def expand(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``loss`` section in which the key ``preset``, if there is one, is replaced by what it stands for.

    What the section says besides wins: its weights take the place of all weights of the preset, its phases that of all
    phases, its options are laid over the preset's. Options of the preset for components that are then named nowhere
    are dropped.

    Raises:
        ConfigError: for an unknown preset, with the nearest known one.
    """
    rest = {key: deepcopy(value) for key, value in section.items() if key != "preset"}
    if "preset" not in section:
        return rest
    preset = deepcopy(_look_up("loss", section["preset"], PRESETS))
    result = {**preset, **rest}
    options = {k: v for k, v in preset.get("options", {}).items() if k in _list_components(result)}
    given = rest.get("options", {})
    if isinstance(given, dict):  # anything else is left for the check of the whole section to refuse
        for component, values in given.items():
            both_are_maps = isinstance(values, dict) and component in options
            options[component] = {**options[component], **values} if both_are_maps else values
        result["options"] = options
    if not result["options"]:
        del result["options"]
    return result


def _look_up(section: str, name: Any, presets: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    if not isinstance(name, str) or name not in presets:
        raise ConfigError(
            f"{section}.preset = {name!r}: unknown{did_you_mean(str(name), presets)}; known: {', '.join(presets)}"
        )
    return presets[name]


def _list_components(section: Mapping[str, Any]) -> set[str]:
    phases = section.get("phases")
    phases = phases if isinstance(phases, list | tuple) else ()
    weights = [section.get("weights"), *(phase.get("weights") for phase in phases if isinstance(phase, Mapping))]
    return {name for named in weights if isinstance(named, Mapping) for name in named}
