"""Dealing out groups and ordering cases: strata, classes, and what chance decides."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_seg.data.splits.stratify import CaseTraits, GroupKey, assign_groups, cover_classes, nesting_order

relaxed = settings(deadline=None, max_examples=60)
class_sets = st.lists(st.frozensets(st.integers(1, 5), max_size=3), min_size=1, max_size=9)


def one_in_each_half(ranks: list[int], start: int, stop: int) -> bool:
    """Brute force: can start..stop be halved again and again, odd ones either way, so that each part holds one rank?"""
    if len(ranks) == 1:
        return start <= ranks[0] < stop
    half = len(ranks) // 2
    middles = {(start + stop) // 2, (start + stop + 1) // 2}
    return any(one_in_each_half(ranks[:half], start, m) and one_in_each_half(ranks[half:], m, stop) for m in middles)


@relaxed
@given(st.integers(1, 130), st.integers(0, 20))
def test_a_prefix_has_one_case_of_each_stratum(count: int, seed: int) -> None:
    ids = [f"{n:04d}" for n in range(count)]
    order = nesting_order(ids, CaseTraits({i: 1 + int(i) for i in ids}), np.random.default_rng(seed))
    assert sorted(order) == ids
    for k in range(count.bit_length()):
        assert one_in_each_half(sorted(int(i) for i in order[: 2**k]), 0, count)


def test_prefixes_of_powers_of_two_are_exactly_stratified() -> None:
    ids = [f"{n:02d}" for n in range(64)]
    traits = CaseTraits({i: 0.1 + int(i) / 100 for i in ids})
    for seed in range(20):
        order = nesting_order(ids, traits, np.random.default_rng(seed))
        for k in range(7):
            strata = sorted(int(i) * 2**k // 64 for i in order[: 2**k])
            assert strata == list(range(2**k))


def test_the_first_labeled_case_has_foreground_and_is_any_of_them() -> None:
    ids = [f"{n:02d}" for n in range(16)]
    traits = CaseTraits({i: 0.0 if int(i) < 12 else 0.3 for i in ids})
    first = {nesting_order(ids, traits, np.random.default_rng(seed))[0] for seed in range(60)}
    assert first == set(ids[12:])
    empty = CaseTraits(dict.fromkeys(ids, 0.0))
    assert {nesting_order(ids, empty, np.random.default_rng(s))[0] for s in range(200)} == set(ids)


def with_classes(sets: list[frozenset[int]]) -> tuple[list[str], CaseTraits]:
    ids = [f"{n:03d}" for n in range(len(sets))]
    classes = dict(zip(ids, sets, strict=True))
    return ids, CaseTraits({i: 0.1 * len(classes[i]) for i in ids}, classes)


@relaxed
@given(class_sets, st.integers(0, 5))
def test_a_prefix_has_all_classes_about_as_soon_as_any_choice_could(sets: list[frozenset[int]], seed: int) -> None:
    ids, traits = with_classes(sets)
    order = nesting_order(ids, traits, np.random.default_rng(seed))
    assert sorted(order) == ids
    everything = frozenset().union(*sets)
    fewest = next(
        n
        for n in range(len(ids) + 1)
        if any(frozenset().union(*chosen) >= everything for chosen in combinations(sets, n))
    )
    needed = next(
        n for n in range(len(ids) + 1) if frozenset().union(*(traits.classes_of(i) for i in order[:n])) >= everything
    )
    assert needed == len(cover_classes(order, traits.classes))
    # Greedy covers of up to 5 elements by sets of up to 3 are at most one set larger than the smallest.
    assert fewest <= needed <= fewest + 1
    if order and everything:
        assert len(traits.classes_of(order[0])) == max(map(len, sets))


def test_one_class_given_or_not_gives_the_same_order_and_parts() -> None:
    ids = [f"{n:02d}" for n in range(40)]
    foreground = {i: 0.0 if int(i) % 3 == 0 else int(i) / 50 for i in ids}
    plain = CaseTraits(foreground)
    named = CaseTraits(foreground, {i: frozenset({7} if foreground[i] else ()) for i in ids})
    groups: dict[GroupKey, list[str]] = {("case", i): [i] for i in ids}
    for seed in range(5):
        orders = [nesting_order(ids, t, np.random.default_rng(seed)) for t in (plain, named)]
        parts = [assign_groups(groups, t, (0.65, 0.15, 0.2), np.random.default_rng(seed)) for t in (plain, named)]
        assert orders[0] == orders[1]
        assert parts[0] == parts[1]


def test_a_rare_class_is_spread_over_the_order() -> None:
    """64 cases with alike foreground, 16 of them with class 2: every prefix of 4 k cases has about k."""
    ids = [f"{n:02d}" for n in range(64)]
    classes = {i: frozenset({1, 2} if int(i) % 4 == 0 else {1}) for i in ids}
    rng = np.random.default_rng(0)
    traits = CaseTraits({i: float(rng.uniform(0.1, 0.5)) for i in ids}, classes)
    for seed in range(10):
        order = nesting_order(ids, traits, np.random.default_rng(seed))
        for k in range(1, 17):
            assert abs(sum(2 in classes[i] for i in order[: 4 * k]) - k) <= 1


def test_groups_of_one_size_are_dealt_out_at_random() -> None:
    groups: dict[GroupKey, list[str]] = {("case", f"{n:02d}"): [f"{n:02d}"] for n in range(20)}
    traits = CaseTraits({f"{n:02d}": 0.5 for n in range(20)})
    in_val = set()
    for seed in range(80):
        part_of = assign_groups(groups, traits, (0.65, 0.15, 0.2), np.random.default_rng(seed))
        in_val |= {key for key, part in part_of.items() if part == 1}
    assert in_val == set(groups)


@pytest.mark.parametrize("seed", range(10))
def test_each_part_gets_its_share_of_a_class(seed: int) -> None:
    """200 single cases, 20 with class 2 whatever their foreground: 13, 3 and 4 of them."""
    ids = [f"{n:03d}" for n in range(200)]
    rng = np.random.default_rng(seed)
    classes = {i: frozenset({1, 2} if n < 20 else {1}) for n, i in enumerate(rng.permutation(ids).tolist())}
    traits = CaseTraits({i: float(rng.beta(2, 4)) for i in ids}, classes)
    groups: dict[GroupKey, list[str]] = {("case", i): [i] for i in ids}
    part_of = assign_groups(groups, traits, (0.65, 0.15, 0.2), rng)
    held = [sum(2 in classes[key[1]] for key, part in part_of.items() if part == p) for p in range(3)]
    assert held == pytest.approx([13, 3, 4], abs=1)
    blind = assign_groups(groups, CaseTraits(traits.foreground), (0.65, 0.15, 0.2), np.random.default_rng(seed))
    sizes = [[list(parts.values()).count(p) for p in range(3)] for parts in (part_of, blind)]
    assert sizes[0] == pytest.approx(sizes[1], abs=1)


@relaxed
@given(class_sets.filter(lambda sets: len(sets) >= 3), st.integers(0, 9))
def test_repairs_take_no_class_from_a_part(sets: list[frozenset[int]], seed: int) -> None:
    """Each class with single cases enough for all parts, and no company, is in all parts."""
    ids, traits = with_classes([*sets, *[frozenset({9})] * 3])
    groups: dict[GroupKey, list[str]] = {("case", i): [i] for i in ids}
    part_of = assign_groups(groups, traits, (0.8, 0.1, 0.1), np.random.default_rng(seed))
    assert {part for (_, i), part in part_of.items() if 9 in traits.classes_of(i)} == {0, 1, 2}
