"""Settings that are given and change nothing in the run: found by the table of ``conditions``."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from ssl_seg.config import Config
from ssl_seg.config.hints import find_section_type, list_above
from ssl_seg.config.layers import show_value, to_plain
from ssl_seg.losses import LOSSES, list_options
from ssl_seg.methods import LABELED_ONLY, METHODS
from ssl_seg.run.lint.conditions import CONDITIONS, DataFacts, list_derived

PLANNED = (
    "network.norm",
    "optim.lr",
    "optim.encoder_lr_factor",
    "optim.warmup_steps",
    "data.layout",
    "data.mask",
    "data.threshold",
    "data.ignore_value",
    "data.nodata",
    "data.window",
    "data.axes",
    "batch.positive_ratio",
)
"""Settings that have a default and are planned from the data all the same: to give the default is to give a value."""


STANDS_FOR = {"method.name": LABELED_ONLY, "optim.schedule": "constant"}
"""What the training is in truth, where one of these changes nothing."""


@dataclass(frozen=True)
class Idle:
    """A setting that changes nothing in a run, why, and what would make it act."""

    key: str
    value: Any
    obstacle: str
    remedy: str


def find_idle(config: Config, facts: DataFacts, unknown: Collection[str] = ()) -> dict[str, Idle]:
    """Return the settings that change nothing in a run by dotted key, given or not.

    Args:
        config: configuration of the run. Items of a list of sections have their place in the key:
            ``loss.phases.0.weights.dice``.
        facts: about its data.
        unknown: dotted keys whose values are stand-ins.
    """
    blocked = []
    derived = () if "length.steps" in unknown else list_derived(config)
    for condition in (*CONDITIONS, *derived):
        if set(condition.needs) & set(unknown):
            continue
        obstacle = condition.find_obstacle(config, facts)
        blocked += [(key, obstacle, condition.remedy) for key in condition.keys if obstacle is not None]
    return {
        key: Idle(key, value, *next((why, remedy) for pattern, why, remedy in blocked if _covers(pattern, key)))
        for key, value in list_leaves(to_plain(config))
        if any(_covers(pattern, key) for pattern, _, _ in blocked)
    }


def list_effective(config: Config, facts: DataFacts) -> dict[str, Any]:
    """Return the settings that act in a run, by dotted key: of two runs with the same ones, both are one training.

    Args:
        config: complete, with all options of its method.
        facts: about its data.
    """
    idle = find_idle(config, facts)
    kept = {key: value for key, value in list_leaves(to_plain(config)) if key not in idle}
    kept |= {key: value for key, value in STANDS_FOR.items() if key in idle}
    return {key: value for key, value in kept.items() if value not in (None, [], {})}


def find_given_idle(
    config: Config, given: Mapping[str, str], facts: DataFacts, unknown: Collection[str] = ()
) -> list[Idle]:
    """Return those of ``find_idle`` that a file or an option gives.

    A file may be complete, with the defaults written out: there, and where something is switched off, only a value that
    is not the default was meant to do something.
    """
    return [
        item
        for item in find_idle(config, facts, unknown).values()
        if (source := find_given(item.key, given)) is not None and _is_meant(item.key, item.value, source)
    ]


def describe_idle(items: Sequence[Idle], sources: Mapping[str, str]) -> Iterator[str]:
    """Yield a message for each reason: the settings with their values and where they were set, why, what to do."""
    reasons: dict[tuple[str, str], list[Idle]] = {}
    for item in items:
        reasons.setdefault((item.obstacle, item.remedy), []).append(item)
    for (obstacle, remedy), members in reasons.items():
        named = ", ".join(_describe_setting(item, sources) for item in members)
        if len(members) == 1:
            yield f"{named} changes nothing in this run: {obstacle}. {remedy}"
        else:
            yield f"{named} change nothing in this run: {obstacle}. {remedy.replace('It acts', 'They act')}"


def _describe_setting(item: Idle, sources: Mapping[str, str]) -> str:
    source = find_given(item.key, sources)
    where = "" if source is None else f" ({'--set' if source.startswith('--set ') else source})"
    return f"{item.key} = {show_value(item.value)}{where}"


def find_given(key: str, sources: Mapping[str, str]) -> str | None:
    """Return where a setting, or what it is part of, was given; None where it was not."""
    inside = [name for name in sources if name.startswith(f"{key}.")]  # of a mapping that is one value
    return next((sources[name] for name in (*list_above(key), *inside) if name in sources), None)


def list_leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; sections in a list have their place in the key."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield from list_leaves({str(place): item for place, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, dict) and value and name != "data.label_map":
            yield from list_leaves(value, f"{name}.")
        else:
            yield name, value


def find_default(key: str) -> Any:
    """Return the default of a setting; ``PydanticUndefined`` where it has none or is planned from the data."""
    if key in PLANNED:
        return PydanticUndefined
    section, _, rest = key.partition(".")
    if section == "loss" and rest.startswith("options."):
        _, component, option = rest.split(".")
        return list_options(component).get(option) if component in LOSSES else PydanticUndefined
    if section == "method" and rest.startswith("options."):
        fields = [m.config_type.model_fields.get(rest.removeprefix("options.")) for m in METHODS.values()]
        return next((field.get_default() for field in fields if field is not None), PydanticUndefined)
    model: type[BaseModel] | None = Config
    default: Any = PydanticUndefined
    for part in key.split("."):
        if model is None or part not in model.model_fields:
            return PydanticUndefined
        field = model.model_fields[part]
        default = field.get_default(call_default_factory=True)
        model = find_section_type(field.annotation)
    return default


def _is_meant(key: str, value: Any, source: str) -> bool:
    if key.startswith("augment.") and "(preset " in source:  # which serves all runs
        return False
    default = find_default(key)
    if default is PydanticUndefined:
        return bool(value)
    return bool(value != default or (source.startswith("--") and value))


def _covers(pattern: str, key: str) -> bool:
    """Return whether a key, or what it is part of, has the name ``pattern``."""
    parts = key.split(".")
    return fnmatchcase(".".join(parts[: pattern.count(".") + 1]), pattern)
