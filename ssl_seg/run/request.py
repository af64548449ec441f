"""What the caller of a training asks for. Loads no network library."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ssl_seg.config.layers import Layer, Settings, merge_layers


@dataclass(frozen=True)
class TrainRequest:
    """What the caller asks for. ``layers`` are files and options, in increasing order of precedence."""

    layers: tuple[Layer, ...] = ()
    out: Path | None = None
    bootstrap: Path | None = None
    resume: Path | None = None
    force: bool = False
    epochs: int | None = None
    """Length in epochs, instead of length.steps."""
    minutes: float | None = None
    """Length of a new run in minutes on this machine, instead of length.steps."""
    log: tuple[str, ...] = ()
    """Programs that the records are written for while it trains; keys of ``SINKS``."""
    profile: int = 0
    """Steps of which a profile is made."""
    in_study: bool = False
    """Whether it is part of a ladder, cross-validation or ablation, which prints its own command to continue."""

    @cached_property
    def settings(self) -> Settings:
        """The layers, merged.

        Raises:
            ConfigError: see ``merge_layers``.
        """
        return merge_layers(self.layers)

    @property
    def has_only_runtime(self) -> bool:
        """Whether the layers give machine settings only, which may change where a training goes on."""
        return all(set(layer.values) == {"runtime"} for layer in self.layers)
