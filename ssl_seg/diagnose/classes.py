"""Predicted and true masks of several classes, compared value by value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.scores.metrics import compute_trivial_f1


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

    def share(self, value: int) -> float:
        """Return the true share of a value."""
        return self.true[value] / self.true.total()


def add_classes(scores: Mapping[str, Any], f1: Sequence[float], shares: Sequence[float]) -> dict[str, Any]:
    """Return ``statistics["scores"]`` with the mean F1 of at least one class, ``f1_macro``, what it is ``of``, and that
    of predicting each class everywhere, ``trivial_f1_macro``.

    Args:
        f1: F1 of each class.
        shares: shares of the voxels that are of each class.
    """
    of, trivial = f"mean of {len(f1)} class{'es' * (len(f1) > 1)}", np.mean([compute_trivial_f1(p) for p in shares])
    return {**scores, "f1_macro": float(np.mean(f1)), "trivial_f1_macro": float(trivial), "of": of}


def describe_f1(scores: Mapping[str, Any], where: str) -> str:
    """Return the F1 and its margin, of several classes their means, as ``evaluate`` has them."""
    of = "" if scores["of"] == "foreground" else f" ({scores['of']})"
    over = f"{scores['f1_macro'] - scores['trivial_f1_macro']:+.3f} above the best trivial predictor"
    more = f"; of any foreground {scores['f1']:.3f}" if of else ""
    return f"F1{of} {scores['f1_macro']:.3f}{where}, {over}{more}"


def _count(values: NDArray[Any]) -> dict[int, int]:
    found, numbers = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))
