"""Predicted and true masks of several classes, compared value by value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


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

    def score(self, background: int) -> dict[int, float]:
        """Return the F1 of each foreground class that a true mask holds, by its value."""
        values = sorted(self.true.keys() - {background})
        return {v: 2 * self.both[v] / (self.predicted[v] + self.true[v]) for v in values}


def add_classes(scores: Mapping[str, Any], f1: Sequence[float]) -> dict[str, Any]:
    """Return ``statistics["scores"]`` with ``f1_macro``, the mean F1 of at least one class, and what it is ``of``."""
    of = f"mean of {len(f1)} class{'es' * (len(f1) > 1)}"
    return {**scores, "f1_macro": float(np.mean(f1)), "of": of}


def describe_f1(scores: Mapping[str, Any], where: str, margin: float) -> str:
    """Return the F1 of the classes, as ``evaluate`` has it, and that of any foreground, which the margin is of."""
    over = f"{margin:+.3f} above the best trivial predictor"
    if scores["of"] == "foreground":
        return f"F1 {scores['f1']:.3f}{where}, {over}"
    return f"F1 {scores['f1_macro']:.3f} ({scores['of']}){where}; of any foreground {scores['f1']:.3f}, {over}"


def _count(values: NDArray[Any]) -> dict[int, int]:
    found, numbers = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))
