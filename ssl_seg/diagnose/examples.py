"""The few images that a report shows.

Shapes: C channels, *S spatial; what is kept is always 2D.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.pictures import find_fullest, stretch, to_picture
from ssl_seg.data.views.transforms import blacken_gaps
from ssl_seg.diagnose.result import Example, Part

SHOWN = 5
NEAR_MEDIAN = 9
"""Scored images next to the median that are kept while more follow."""
MAX_SIDE = 768
"""Longer sides are thinned out."""


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
        return array[(..., *plane)]

    flat, truth = cut(pred), None if target is None else cut(target)
    rows, columns = _choose_pixels(flat, truth)

    def thin(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(cut(array)[..., rows, columns])

    shown = None if image is None else to_picture(stretch(blacken_gaps(thin(image)))).astype(np.float32)
    return Example(
        case_id,
        part,
        shown,
        None if target is None else thin(target),
        None if prob is None else thin(prob),
        thin(pred),
        f1,
    )


def _choose_pixels(pred: NDArray[Any], truth: NDArray[Any] | None) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return rows and columns (y, x) of the pixels of a plane (Y, X) that are shown, at most MAX_SIDE each way.

    Of each block the first pixel that is an error, else the first of foreground, else the first one: a line one pixel
    wide does not fall between two.
    """
    height, width = pred.shape
    steps = [-(-side // MAX_SIDE) for side in pred.shape]
    found = pred > 0
    worth = found.astype(np.uint8) if truth is None else np.where((truth > 0) == found, 1, 2) * (found | (truth > 0))
    if truth is not None:
        worth[truth < 0] = 0
    padded = np.full([-(-side // step) * step for side, step in zip(pred.shape, steps, strict=True)], -1, np.int8)
    padded[:height, :width] = worth
    y, x = (side // step for side, step in zip(padded.shape, steps, strict=True))
    blocks = padded.reshape(y, steps[0], x, steps[1]).swapaxes(1, 2).reshape(y, x, -1)
    place = blocks.argmax(axis=-1)
    return np.arange(y)[:, None] * steps[0] + place // steps[1], np.arange(x) * steps[1] + place % steps[1]


def keep_candidates(candidates: Sequence[Example], median: float) -> list[Example]:
    """Return those that ``choose_examples`` may still choose when more follow, in the same order: at most 25.

    Images must come in random order: what is near the median of all is then near that of most.

    Args:
        candidates: kept so far, and a new one.
        median: F1 of all scored images outside of training up to now, also of those that are not kept.
    """
    scored, train, blind = _sort(candidates)
    ordinary = _sort_by_distance(scored, median)[:NEAR_MEDIAN]
    chosen = [*scored[:SHOWN], *scored[-1:], *ordinary, *train[:SHOWN], *blind[:SHOWN]]
    kept = {id(e) for e in chosen}
    return [e for e in candidates if id(e) in kept]


def choose_examples(candidates: Sequence[Example], median: float) -> tuple[Example, ...]:
    """Return at most five: the worst, the median and the best scored one, one of each other part, then in the order
    given. ``median`` is that of all scored images, see ``keep_candidates``."""
    scored, train, blind = _sort(candidates)
    ordinary = _sort_by_distance(scored[1:-1], median)
    wanted = [*scored[:1], *ordinary[:1], *scored[-1:], *train[:1], *blind[:1], *scored, *train, *blind]
    return tuple({e.id: e for e in wanted}.values())[:SHOWN]


def _sort_by_distance(scored: Sequence[Example], median: float) -> list[Example]:
    return sorted(scored, key=lambda e: abs((e.f1 or 0.0) - median))


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
    return (*(slice(None),) * axis, find_fullest(sums), *(slice(None),) * (2 - axis))
