"""Dealing out groups to parts, and ordering the labeled cases: both by foreground fraction, both seeded.

Pure functions of ids, groups and foreground fractions; ``splits`` puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PARTS = ("train", "val", "test")
_STRATA = 4
_CASES_PER_STRATUM = 8

GroupKey = tuple[str, str]
"""("group", its name), or ("case", its id) for a case without a group."""


def _strata(foreground: Mapping[str, float]) -> dict[str, int]:
    """Return a stratum per id: 0 without foreground, then quantiles of the foreground fraction."""
    positive = sorted((i for i, f in foreground.items() if f > 0), key=lambda i: (foreground[i], i))
    number = min(_STRATA, max(1, len(positive) // _CASES_PER_STRATUM))
    strata = dict.fromkeys(foreground, 0)
    strata.update({i: 1 + rank * number // len(positive) for rank, i in enumerate(positive)})
    return strata


def assign_groups(
    groups: Mapping[GroupKey, Sequence[str]],
    foreground: Mapping[str, float],
    shares: tuple[float, float, float],
    rng: np.random.Generator,
) -> dict[GroupKey, str]:
    """Return group -> part: large groups first, each to the part that it brings nearest to its targets.

    Args:
        groups: group -> ids.
        foreground: id -> foreground fraction; its quantiles, and no foreground at all, are the strata.
        shares: of train, val and test, with sum 1; a part with share 0 gets nothing, any other at least one group and
            one with foreground, as far as there are enough of them.
        rng: decides between groups of one size.
    """
    strata = _strata(foreground)
    width = max(strata.values()) + 1
    counts = {key: np.bincount([strata[i] for i in ids], minlength=width) for key, ids in groups.items()}
    # The total counts as much as all strata together, or the rounding of each stratum would add up.
    counts = {key: np.append(c, c.sum()) for key, c in counts.items()}
    weights = np.append(np.ones(width), width)
    targets = np.array(shares)[:, None] * sum(counts.values())
    scale = np.maximum(targets, 1e-9)
    filled = np.zeros_like(targets)
    parts = [part for part, share in enumerate(shares) if share > 0]
    chosen: dict[GroupKey, int] = {}
    keys = sorted(groups)
    order = np.lexsort((rng.random(len(keys)), np.array([-len(groups[k]) for k in keys])))
    for key in (keys[i] for i in order):
        # Growth of the squared distance to the targets, in units of the target: the relative need decides.
        growth = counts[key] * (2 * (filled - targets) + counts[key]) / scale
        part = min(parts, key=lambda p: float((growth[p] * weights).sum()))
        filled[part] += counts[key]
        chosen[key] = part
    with_foreground = [k for k in keys if any(foreground[i] > 0 for i in groups[k])]
    for eligible in (keys, with_foreground):
        _fill_empty_parts(chosen, parts, sorted(eligible, key=lambda k: (len(groups[k]), k)))
    return {key: PARTS[part] for key, part in chosen.items()}


def _fill_empty_parts(chosen: dict[GroupKey, int], parts: Sequence[int], eligible: Sequence[GroupKey]) -> None:
    """Give each part without an eligible group the first of the part that has most of them, if that has two."""
    for part in parts:
        held = {p: [k for k in eligible if chosen[k] == p] for p in parts}
        richest = max(parts, key=lambda p: len(held[p]))
        if not held[part] and len(held[richest]) > 1:
            chosen[held[richest][0]] = part


def nesting_order(ids: Iterable[str], foreground: Mapping[str, float], rng: np.random.Generator) -> tuple[str, ...]:
    """Return ids in an order whose prefixes all cover the range of foreground fractions.

    The ids are sorted by foreground fraction, bisected, and the ordered halves interleaved, with a random choice of
    which half goes first (a van der Corput order with Owen's scrambling). So a prefix of 2^k ids has one of each of 2^k
    strata. One exception: if the first id has no foreground and another one has, the first that has moves to the front.
    """
    order = _interleave(sorted(ids, key=lambda i: (foreground[i], i)), rng)
    first_positive = next((n for n, i in enumerate(order) if foreground[i] > 0), 0)
    order.insert(0, order.pop(first_positive))
    return tuple(order)


def _interleave(ids: list[str], rng: np.random.Generator) -> list[str]:
    if len(ids) < 2:
        return ids
    middle = (len(ids) + int(rng.integers(2))) // 2  # of an odd number, either half may be the longer one
    halves = [_interleave(ids[:middle], rng), _interleave(ids[middle:], rng)]
    if rng.integers(2):
        halves.reverse()
    longer = max(map(len, halves))
    return [half[n] for n in range(longer) for half in halves if n < len(half)]
