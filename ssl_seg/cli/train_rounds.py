"""``ssl-seg train --rounds N``: a ladder of one amount of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OTHERS = {
    "resume": "goes on with what was begun: `ssl-seg ladder --resume DIR` goes on with rounds",
    "fold": "trains a fold of a cross-validation",
    "folds": "divides the cases for a cross-validation",
    "bootstrap": "starts from a network that is there already, and rounds start from scratch",
}
"""Options that say something else -> what."""


def run_rounds(rounds: int, config: str | None, given: Mapping[str, Any], set_: Sequence[str] | None) -> None:
    """Train with labels, then the rounds, and print the table; the exit code says how it ended.

    Args:
        rounds: number of rounds, at least 1.
        config: see ``make_layers``.
        given: parameters of ``ssl-seg train``.

    Raises:
        ConfigError: for an option that says something else.
    """
    from ssl_seg.cli.ladder import climb
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.config import SplitConfig
    from ssl_seg.errors import ConfigError
    from ssl_seg.run.request import TrainRequest

    for name, what in _OTHERS.items():
        if given[name] is not None:
            raise ConfigError(f"--rounds {rounds}: --{name} {what}. Give one of them")
    layers = make_layers(config, {**given, "labels": None}, set_)
    default = SplitConfig.model_fields["labels"].default
    labels = given["labels"] or TrainRequest(layers).settings.get("split.labels", default)
    climb((labels,), layers, given)
