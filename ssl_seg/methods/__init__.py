"""Learning methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_seg.config.layers import validate
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.losses import SupervisedLoss
from ssl_seg.methods.base import Method
from ssl_seg.methods.mean_teacher import MeanTeacher
from ssl_seg.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
}


def make_method(name: str, options: Mapping[str, Any], supervised: SupervisedLoss) -> Method:
    """Return the method with its options checked.

    Raises:
        ConfigError: unknown method or option, with the nearest known one.
    """
    if name not in METHODS:
        raise ConfigError(f"method.name = '{name}': unknown{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}")
    method = METHODS[name]
    return method(validate(method.config_type, dict(options), prefix="method.options."), supervised)
