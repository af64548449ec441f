"""Means, distances and random draws against scipy, closed forms and brute force."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_splits import add_classes, add_images, make_catalog, spread

from ssl_seg.data.splits.split import make_split
from ssl_seg.data.splits.statistics import (
    compute_distances,
    count_effective_groups,
    draw_random_sets,
    measure_split,
)

relaxed = settings(deadline=None, max_examples=60)
shares = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9]) | st.floats(0, 1), min_size=1, max_size=30)


@relaxed
@given(shares, st.integers(0, 9))
def test_distances_are_those_of_scipy(values: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    members = rng.random((5, len(values))) < 0.4
    members[:, rng.integers(len(values))] = True
    column = np.array(values)
    mean, ks, wasserstein = compute_distances(members, column)
    for row, inside in enumerate(members):
        assert mean[row] == pytest.approx(column[inside].mean(), abs=1e-9)
        assert ks[row] == pytest.approx(stats.ks_2samp(column[inside], column).statistic, abs=1e-6)
        assert wasserstein[row] == pytest.approx(stats.wasserstein_distance(column[inside], column), abs=1e-6)


def draw(units: list[int], size: int, draws: int, presence: list[list[int]] | None = None) -> np.ndarray:
    has = None if presence is None else np.array(presence, bool)
    return np.concatenate([*draw_random_sets(np.array(units), size, draws, np.random.default_rng(0), has)])


def test_single_cases_are_drawn_equally_often() -> None:
    sets = draw(list(range(5)), 2, 20_000)
    assert set(sets.sum(axis=1)) == {2}
    seen = Counter(tuple(np.flatnonzero(s)) for s in sets)
    assert set(seen) == set(combinations(range(5), 2))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@relaxed
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 12))
def test_units_are_drawn_whole_as_long_as_they_fit(sizes: list[int], size: int) -> None:
    units = [unit for unit, count in enumerate(sizes) for _ in range(count)]
    size = min(size, len(units))
    for members in draw(units, size, 30):
        chosen = {unit for unit, inside in zip(units, members, strict=True) if inside}
        assert members.tolist() == [unit in chosen for unit in units]
        left = [count for unit, count in enumerate(sizes) if unit not in chosen]
        if min(sizes) > size:
            assert [sizes[unit] for unit in chosen] == [min(sizes)]
        else:
            assert members.sum() <= size
            assert all(members.sum() + count > size for count in left)


def test_draws_have_every_class_as_far_as_they_can() -> None:
    presence = [[1, 0, 0]] * 6 + [[1, 1, 0]] * 2 + [[0, 0, 1]]
    sets = draw(list(range(9)), 3, 4000, presence)
    has = np.array(presence, bool)
    assert all(has[members].any(axis=0).all() for members in sets)
    assert set(sets.sum(axis=1)) == {3}
    assert sets[:, 8].all()
    # The third case is any of those that are left.
    assert sets[:, :6].mean(axis=0) == pytest.approx(np.full(6, 1 / 7), abs=0.03)
    (alone,) = {tuple(sorted(set(np.flatnonzero(s)))) for s in draw([0, 1], 1, 50, [[1, 0], [1, 1]])}
    assert alone == (1,)


def test_many_cases_are_drawn_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_seg.data.splits.statistics._ENTRIES", 50)
    batches = list(draw_random_sets(np.arange(10), 3, 12, np.random.default_rng(0)))
    assert [len(b) for b in batches] == [5, 5, 2]


def test_effective_groups() -> None:
    assert count_effective_groups([4, 4, 4]) == 3
    assert count_effective_groups([100, 1, 1]) == pytest.approx(102**2 / 10002)


def test_figures_of_a_labeled_set() -> None:
    catalog = add_images(make_catalog(spread(60)))
    split = make_split(catalog, [0.2])
    (ten, pool, val, test) = measure_split(split, catalog)
    ids = split.fractions[0.2]
    values = np.array([catalog.facts[i].foreground for i in ids])
    reference = np.array([catalog.facts[i].foreground for i in split.fractions[1.0]])
    assert (ten.name, ten.ids, ten.groups, ten.effective_groups) == ("labels 0.2", ids, 8, 8.0)
    assert ten.foreground.reference == pytest.approx(reference.mean())
    interval = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    assert (ten.foreground.low, ten.foreground.high) == pytest.approx(interval)
    assert ten.foreground.ks == pytest.approx(stats.ks_2samp(values, reference).statistic, abs=1e-6)
    # Means of random cases: mean of the pool, standard error with the correction for a finite pool.
    error = reference.std(ddof=1) / 8**0.5 * (1 - 8 / len(reference)) ** 0.5
    band = reference.mean() - 1.96 * error, reference.mean() + 1.96 * error
    assert (ten.foreground.band_low, ten.foreground.band_high) == pytest.approx(band, abs=0.2 * error)
    assert ten.foreground.percentile == pytest.approx(
        100 * stats.norm.cdf((values.mean() - reference.mean()) / error), abs=6
    )
    assert [m.in_pool for m in (ten, pool, val, test)] == [True, False, False, False]
    intensity = np.array([catalog.facts[i].appearance.mean for i in split.fractions[1.0]])
    own = np.array([catalog.facts[i].appearance.mean for i in ids])
    assert ten.intensity is not None
    assert ten.intensity.mean == pytest.approx((own.mean() - intensity.mean()) / intensity.std())
    assert ten.positive is None


def test_a_small_pool_against_all_its_subsets() -> None:
    catalog = make_catalog(spread(10))
    split = make_split(catalog, [0.5], test_fraction=0.2)
    (half, *_) = measure_split(split, catalog, draws=20_000)
    subsets = list(combinations([catalog.facts[i].foreground for i in split.fractions[1.0]], len(half.ids)))
    below = np.mean([np.mean(s) < half.foreground.mean - 1e-9 for s in subsets])
    equal = np.mean([abs(np.mean(s) - half.foreground.mean) < 1e-9 for s in subsets])
    assert half.foreground.percentile == pytest.approx(100 * (below + equal / 2), abs=3)


def test_the_same_split_gets_the_same_figures() -> None:
    catalog = make_catalog(spread(40), [f"g{n // 3}" for n in range(40)])
    split = make_split(catalog, [0.2])
    assert measure_split(split, catalog) == measure_split(split, catalog)
    assert measure_split(split, catalog, seed=1) != measure_split(split, catalog)


def test_a_single_case_has_no_interval() -> None:
    catalog = add_classes(make_catalog(spread(20)), [{1, 2}] * 20)
    (one, *_) = measure_split(make_split(catalog, [0.01]), catalog)
    assert (one.foreground.low, one.foreground.high, len(one.ids)) == (None, None, 1)
