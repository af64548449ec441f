"""Predicted and true masks of several classes, compared value by value."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import name_examples
from ssl_seg.monitor.signals import ClassSignals


@dataclass(frozen=True)
class ValueCounts:
    """Voxels of each mask value, over all images."""

    predicted: Counter[int] = field(default_factory=Counter)
    true: Counter[int] = field(default_factory=Counter)
    both: Counter[int] = field(default_factory=Counter)

    def add(self, predicted: NDArray[Any], true: NDArray[Any], valid: NDArray[np.bool_]) -> None:
        """Add an image: predicted and true values (*S), and where they count."""
        self.predicted.update(_count(predicted[valid]))
        self.true.update(_count(true[valid]))
        self.both.update(_count(true[valid & (predicted == true)]))

    def compare(self, background: int) -> tuple[tuple[ClassSignals, ...], str]:
        """Return the figures of each foreground class, and a note on them.

        There are none where the masks hold one class alone, or the predictions hold values that no true mask holds: the
        note then says so.

        Args:
            background: value of the background, in both.
        """
        values = sorted(self.true.keys() - {background})
        if len(values) < 2 or not self.predicted:
            return (), ""
        if others := sorted(self.predicted.keys() - self.true.keys() - {background}):
            return (), (
                f"the predictions hold {name_examples(others)}, which no true mask holds: the masks' {len(values)} "
                "classes are not compared, only foreground is"
            )
        voxels = self.true.total()
        classes = tuple(
            ClassSignals(
                value,
                self.predicted[value] / voxels,
                self.true[value] / voxels,
                2 * self.both[value] / (self.predicted[value] + self.true[value]),
            )
            for value in values
        )
        shown = ", ".join(f"{own.value}: {own.f1:.3f}" for own in classes)
        return classes, f"F1 of each class, by its value in the masks: {shown}; all other figures are of any foreground"


def _count(values: NDArray[Any]) -> dict[int, int]:
    found, numbers = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))
