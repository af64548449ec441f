"""Deal out groups to parts, and order the labeled cases: by foreground fraction and by class, both seeded.

Pure functions of ids, groups, foreground fractions and classes; ``splits`` puts them together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_STRATA = 4
_CASES_PER_STRATUM = 8

GroupKey = tuple[str, str]
"""("group", its name), or ("case", its id) for a case without a group."""


@dataclass(frozen=True)
class CaseTraits:
    """Traits of cases that they are stratified by.

    ``foreground`` maps an id to its foreground fraction; ``classes`` to the label values, without the background, that
    its mask holds. One class alone says no more than the foreground fraction does and can be left out.
    """

    foreground: Mapping[str, float]
    classes: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def classes_of(self, case_id: str) -> frozenset[int]:
        """Return the classes of a case; where none are known, foreground of any kind counts as class 1."""
        unknown = frozenset({1} if self.foreground[case_id] > 0 else ())
        return self.classes.get(case_id, unknown)


def _rank_classes(ids: Iterable[str], traits: CaseTraits) -> list[int]:
    """Return the classes of the ids, that of the most cases first."""
    cases_with = Counter(value for i in ids for value in traits.classes_of(i))
    return sorted(cases_with, key=lambda value: (-cases_with[value], value))


def _strata(foreground: Mapping[str, float]) -> dict[str, int]:
    """Return a stratum per id: 0 without foreground, then quantiles of the foreground fraction."""
    positive = sorted((i for i, f in foreground.items() if f > 0), key=lambda i: (foreground[i], i))
    number = min(_STRATA, max(1, len(positive) // _CASES_PER_STRATUM))
    strata = dict.fromkeys(foreground, 0)
    strata.update({i: 1 + rank * number // len(positive) for rank, i in enumerate(positive)})
    return strata


def _count_traits(groups: Mapping[GroupKey, Sequence[str]], traits: CaseTraits) -> dict[GroupKey, NDArray[np.int64]]:
    """Return group -> number of its cases in each stratum, of each class where there are several, and in all."""
    ids = sorted(i for members in groups.values() for i in members)
    strata = _strata({i: traits.foreground[i] for i in ids})
    width = max(strata.values()) + 1
    classes = _rank_classes(ids, traits)
    classes = classes if len(classes) > 1 else []
    return {
        key: np.array(
            [
                *np.bincount([strata[i] for i in members], minlength=width),
                *(sum(value in traits.classes_of(i) for i in members) for value in classes),
                len(members),
            ]
        )
        for key, members in groups.items()
    }


def assign_groups(
    groups: Mapping[GroupKey, Sequence[str]],
    traits: CaseTraits,
    shares: Sequence[float],
    rng: np.random.Generator,
    *,
    exact_sizes: bool = False,
) -> dict[GroupKey, int]:
    """Return group -> part: large groups first, each to the part that it brings nearest to its targets.

    Args:
        traits: quantiles of the foreground fraction, no foreground at all, and the presence of each class are strata.
        shares: share of each part, with sum 1; a part with share 0 gets nothing, any other at least one group and one
            with foreground, if there are enough of them, and one with each class, if moving single groups achieves
            that.
        rng: decides between groups of one size.
        exact_sizes: fill no part above its share while another one has room for the group, so that the sizes of parts
            come before their strata.
    """
    counts = _count_traits(groups, traits)
    width = len(next(iter(counts.values()))) - 1
    # The total counts as much as all strata together, or the rounding of each stratum would add up.
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
        room = [p for p in parts if filled[p, -1] + len(groups[key]) <= targets[p, -1] + 1e-6] if exact_sizes else []
        part = min(room or parts, key=lambda p: float((growth[p] * weights).sum()))
        filled[part] += counts[key]
        chosen[key] = part
    _repair(chosen, parts, groups, traits)
    return chosen


def _repair(
    chosen: dict[GroupKey, int], parts: Sequence[int], groups: Mapping[GroupKey, Sequence[str]], traits: CaseTraits
) -> None:
    """Give each part, where possible, a group, then one with foreground, then one with each class."""
    by_size = sorted(groups, key=lambda k: (len(groups[k]), k))
    classes_of = {k: frozenset[int]().union(*(traits.classes_of(i) for i in groups[k])) for k in by_size}
    _fill_empty_parts(chosen, parts, by_size)
    _fill_empty_parts(chosen, parts, [k for k in by_size if any(traits.foreground[i] > 0 for i in groups[k])])
    ranked = _rank_classes((i for members in groups.values() for i in members), traits)
    for value in reversed(ranked if len(ranked) > 1 else []):
        _fill_empty_parts(chosen, parts, [k for k in by_size if value in classes_of[k]], classes_of)


def _fill_empty_parts(
    chosen: dict[GroupKey, int],
    parts: Sequence[int],
    eligible: Sequence[GroupKey],
    classes_of: Mapping[GroupKey, frozenset[int]] | None = None,
) -> None:
    """Give each part without an eligible group one of the part that has most of them, and at least two.

    With ``classes_of``, only a group is moved whose classes are all left behind as well.
    """
    for part in parts:
        held = {p: [k for k in eligible if chosen[k] == p] for p in parts}
        richest = max(parts, key=lambda p: len(held[p]))
        if held[part] or len(held[richest]) < 2:
            continue
        free = held[richest]
        if classes_of is not None:
            left = Counter(value for k, p in chosen.items() if p == richest for value in classes_of[k])
            free = [k for k in free if all(left[value] > 1 for value in classes_of[k])]
        if free:
            chosen[free[0]] = part


def nesting_order(ids: Iterable[str], traits: CaseTraits, rng: np.random.Generator) -> tuple[str, ...]:
    """Return ids in an order whose prefixes all cover the range of foreground fractions, and soon all classes.

    The ids are sorted by their rarest class and their foreground fraction, bisected, and the ordered halves
    interleaved, with a random choice of which half goes first (a van der Corput order with Owen's scrambling). So a
    prefix of 2^k ids has one of each of 2^k strata. One exception: ``cover_classes`` move to the front, so that a
    labeled set has every class of the pool as soon as its size allows it. Of two classes, that is the first id with
    foreground.
    """
    ids = list(ids)
    rank = {value: place for place, value in enumerate(_rank_classes(ids, traits), start=1)}
    rarest = {i: max((rank[value] for value in traits.classes_of(i)), default=0) for i in ids}
    order = _interleave(sorted(ids, key=lambda i: (rarest[i], traits.foreground[i], i)), rng)
    front = cover_classes(order, {i: traits.classes_of(i) for i in ids})
    moved = set(front)
    return (*front, *(i for i in order if i not in moved))


def cover_classes(order: Sequence[str], classes: Mapping[str, Collection[int]]) -> tuple[str, ...]:
    """Return few of the ids that have all classes together: always the first of those that add most new classes."""
    missing = {value for i in order for value in classes[i]}
    front: list[str] = []
    while missing:
        front.append(max(order, key=lambda i: len(missing & set(classes[i]))))
        missing -= set(classes[front[-1]])
    return tuple(front)


def _interleave(ids: list[str], rng: np.random.Generator) -> list[str]:
    if len(ids) < 2:
        return ids
    middle = (len(ids) + int(rng.integers(2))) // 2  # of an odd number, either half may be the longer one
    halves = [_interleave(ids[:middle], rng), _interleave(ids[middle:], rng)]
    if rng.integers(2):
        halves.reverse()
    longer = max(map(len, halves))
    return [half[n] for n in range(longer) for half in halves if n < len(half)]
