"""The few images that a report shows.

Shapes: C channels, *S spatial; what is kept is always 2D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.views.transforms import blacken_gaps
from ssl_seg.diagnose.result import Example, Part

SHOWN = 4
MAX_SIDE = 768
"""Longer sides are thinned out."""
CLIP = (1, 99)
"""Percentiles of an image that become black and white."""


def make_example(
    case_id: str,
    part: Part,
    image: NDArray[np.generic] | None,
    target: NDArray[np.integer[Any]] | None,
    prob: NDArray[np.float32] | None,
    pred: NDArray[Any],
    f1: float | None = None,
    *,
    axis: int = 0,
) -> Example:
    """Return the picture of a prediction; ``image`` is raw (C,*S), the others are (*S). Of a volume, a plane across
    ``axis``."""
    plane = _choose_plane(pred > 0, None if target is None else target > 0, axis)

    def cut(array: NDArray[Any]) -> NDArray[Any]:
        flat = array[(..., *plane)]
        rows, columns = (-(-side // MAX_SIDE) for side in flat.shape[-2:])
        return np.ascontiguousarray(flat[..., ::rows, ::columns])

    truth, shown_prob = (None if array is None else cut(array) for array in (target, prob))
    return Example(case_id, part, None if image is None else _to_shown(cut(image)), truth, shown_prob, cut(pred), f1)


def keep_candidates(candidates: Sequence[Example]) -> list[Example]:
    """Return those that ``choose_examples`` may still choose when more follow, in the same order: at most 13."""
    scored, train, blind = _sort(candidates)
    kept = {id(e) for e in [*scored[:SHOWN], *scored[-1:], *train[:SHOWN], *blind[:SHOWN]]}
    return [e for e in candidates if id(e) in kept]


def choose_examples(candidates: Sequence[Example]) -> tuple[Example, ...]:
    """Return at most four: the worst and the best scored one, one of each other part, then in the order given."""
    scored, train, blind = _sort(candidates)
    wanted = [*scored[:1], *scored[-1:], *train[:1], *blind[:1], *scored, *train, *blind]
    return tuple({e.id: e for e in wanted}.values())[:SHOWN]


def _sort(candidates: Sequence[Example]) -> tuple[list[Example], list[Example], list[Example]]:
    """Return the scored ones, without and with those of training, the worst first, and those without a score."""
    scored = sorted((e for e in candidates if e.f1 is not None and e.part != "train"), key=lambda e: e.f1 or 0.0)
    train = sorted((e for e in candidates if e.f1 is not None and e.part == "train"), key=lambda e: e.f1 or 0.0)
    return scored, train, [e for e in candidates if e.f1 is None]


def _choose_plane(pred: NDArray[np.bool_], truth: NDArray[np.bool_] | None, axis: int) -> tuple[Any, ...]:
    """Return the index of the plane of a volume with the most true, else predicted, foreground; all of an image.

    The plane lies across ``axis``.
    """
    if pred.ndim == 2:
        return (slice(None), slice(None))
    shown = truth if truth is not None and truth.any() else pred
    sums = shown.sum(axis=tuple(other for other in range(3) if other != axis))
    best = int(sums.argmax()) if sums.any() else len(sums) // 2
    return (*(slice(None),) * axis, best, *(slice(None),) * (2 - axis))


def _to_shown(image: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return (C,Y,X) as gray (Y,X), or as colors (Y,X,3) where C = 3, in [0, 1]."""
    values = blacken_gaps(image).astype(np.float64)
    low, high = np.percentile(values, CLIP)
    unit = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1).astype(np.float32)
    return np.asarray(np.moveaxis(unit, 0, -1) if len(unit) == 3 else unit[0], np.float32)
