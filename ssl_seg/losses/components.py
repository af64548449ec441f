"""The components by name, their options, and the hints for unknown names.

To add a loss, write a function ``(logits, target, **options) -> scalar`` with a default for each option, and add a line
to ``LOSSES``. Annotate the options with the types of ``config.section``: they are checked before a run.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from functools import cache, partial
from typing import Any, get_type_hints

from pydantic import create_model

from ssl_seg.config import Section
from ssl_seg.config.layers import validate
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.losses.common import LossFn
from ssl_seg.losses.overlap import dice, focal_tversky, generalized_dice, iou, lovasz, tversky
from ssl_seg.losses.shape import boundary, cldice, connectivity, hausdorff_dt
from ssl_seg.losses.voxelwise import cross_entropy, focal, variance

LOSSES: dict[str, LossFn] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "generalized_dice": generalized_dice,
    "tversky": tversky,
    "focal_tversky": focal_tversky,
    "iou": iou,
    "lovasz": lovasz,
    "cldice": cldice,
    "boundary": boundary,
    "hausdorff_dt": hausdorff_dt,
    "connectivity": connectivity,
    "variance": variance,
}

COSTS = ("fp_cost", "fn_cost")
"""Options that shift the balance of false and missed foreground in every component that takes them."""

OTHER_NAMES = {
    "bce": "cross_entropy",
    "bce_with_logits": "cross_entropy",
    "ce": "cross_entropy",
    "jaccard": "iou",
    "surface": "boundary",
    "hausdorff": "hausdorff_dt",
    "lovasz_softmax": "lovasz",
}
"""Names of other programs -> name here. With two classes, the cross-entropy is the binary one."""


def list_options(name: str) -> dict[str, Any]:
    """Return the options of a component with their defaults."""
    parameters = list(inspect.signature(LOSSES[name]).parameters.values())
    return {p.name: p.default for p in parameters[2:]}


def list_costs(name: str) -> tuple[str, ...]:
    """Return which of ``COSTS`` a component takes."""
    return tuple(cost for cost in COSTS if cost in list_options(name))


def bind_options(name: str, options: Mapping[str, Any]) -> LossFn:
    """Return a component with its options bound: ``(logits, target) -> scalar``.

    Raises:
        ConfigError: unknown options, with the nearest known one, and wrong values; all in one.
    """
    checked = validate(_make_options_model(name), dict(options), prefix=f"loss.options.{name}.")
    return partial(LOSSES[name], **{key: getattr(checked, key) for key in options})


def check_loss_names(names: Iterable[str]) -> None:
    """Check that all names are in ``LOSSES``.

    Raises:
        ConfigError: for unknown names, with the nearest known ones.
    """
    if unknown := [f"'{name}'{suggest(name, LOSSES)}" for name in names if name not in LOSSES]:
        raise ConfigError(f"unknown loss {', '.join(unknown)}; available: {', '.join(LOSSES)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown component: its name here if other programs use that name, else the nearest one."""
    bare = name.lower().removesuffix("_weight").removesuffix("_loss")
    if bare in OTHER_NAMES:
        return f" (here '{OTHER_NAMES[bare]}'{', which with two classes is the binary one' * bare.startswith('bce')})"
    return did_you_mean(bare, known)


@cache
def _make_options_model(name: str) -> type[Section]:
    """Return a strict model of the options of a component, made from its signature."""
    types = get_type_hints(LOSSES[name], include_extras=True)
    fields: dict[str, Any] = {key: (types[key], default) for key, default in list_options(name).items()}
    return create_model(f"{name}_options", __base__=Section, **fields)
