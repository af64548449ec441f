"""What the monitor remembers between looks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_seg.monitor.evidence import Figures
from ssl_seg.monitor.recovery import RecoveryState


@dataclass(frozen=True)
class Memory:
    """A row for each planned look so far, and how far the recovery has climbed; a checkpoint calls that ``ladder``."""

    trend: tuple[Figures, ...] = ()
    recovery: RecoveryState = field(default_factory=RecoveryState)
    healthy_step: int | None = None
    """Step of the networks in healthy.pt; None without that file."""
    training: Figures = field(default_factory=dict)
    """Means over the steps before the last look, by which a checkpoint is judged as the run judged it."""

    def to_plain(self) -> dict[str, Any]:
        """Return plain types for a checkpoint."""
        return {
            "trend": [dict(row) for row in self.trend],
            "ladder": self.recovery.to_plain(),
            "healthy_step": self.healthy_step,
            "training": dict(self.training),
        }


def read_memory(values: Mapping[str, Any] | None) -> Memory:
    """Return the memory in a checkpoint; an empty one for swa.pt, which has none."""
    if values is None:
        return Memory()
    return Memory(tuple(values["trend"]), RecoveryState(**values["ladder"]), values["healthy_step"], values["training"])
