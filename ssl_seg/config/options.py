"""Settings with a short name: ``--batch-size 4`` on the command line, ``batch_size=4`` in Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_seg.config.layers import Layer, flatten, nest
from ssl_seg.errors import ConfigError

OPTIONS = {
    "data": "data.root",
    "layout": "data.layout",
    "groups": "data.groups",
    "unlabeled": "data.unlabeled",
    "task": "data.task",
    "split": "split.file",
    "labels": "split.labels",
    "folds": "split.folds",
    "fold": "split.fold",
    "allow_split": "split.allow_faults",
    "method": "method.name",
    "network": "network.name",
    "encoder": "network.encoder",
    "encoder_weights": "network.encoder_weights",
    "pretrained": "network.pretrained",
    "steps": "length.steps",
    "lr": "optim.lr",
    "gate": "bootstrap.gate",
    "batch_size": "batch.labeled",
    "seed": "seed",
    "accelerator": "runtime.accelerator",
    "devices": "runtime.devices",
    "num_nodes": "runtime.num_nodes",
}
"""Short name -> setting."""


def make_option_layers(given: Mapping[str, Any], show: Callable[[str, Any], str]) -> list[Layer]:
    """Return a layer for each short name that has a value; None and False are none.

    Args:
        given: values by short name; other names are passed over.
        show: name and value to what error messages call them.
    """
    values = {name: given.get(name) for name in OPTIONS}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
    return [
        Layer(show(name, value), nest(OPTIONS[name], value))
        for name, value in plain.items()
        if value is not None and value is not False
    ]


def check_given_once(options: Sequence[Layer], settings: Sequence[Layer]) -> None:
    """Raise ConfigError for a setting that has one value by its short name and another one by its own name."""
    short = {key: (layer.source, value) for layer in options for key, value in flatten(layer.values)}
    for layer in settings:
        for key, value in flatten(layer.values):
            source, other = short.get(key, ("", value))
            if str(other) != str(value):
                raise ConfigError(f"{source} and {layer.source} give {key} two values: leave one of them out")
