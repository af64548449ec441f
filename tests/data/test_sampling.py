from __future__ import annotations

from collections import Counter
from math import inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sizes import around
from torch.utils.data import WeightedRandomSampler

from ssl_seg.data import sampling
from ssl_seg.data.sampling import (
    BalancedCaseStream,
    CaseStream,
    choose_box,
    choose_box_by_share,
    choose_tile,
    crop,
    derive_rng,
    derive_seed,
)


@given(n=st.integers(1, 12), passes=st.integers(1, 4), seed=st.integers(0, 99))
def test_each_pass_holds_every_case_once(n: int, passes: int, seed: int) -> None:
    stream = CaseStream(tuple(map(str, range(n))), seed, stream=1)
    drawn = [stream[k] for k in range(n * passes)]
    for p in range(passes):
        assert Counter(drawn[p * n : (p + 1) * n]) == Counter(stream.ids)


def test_streams_and_seeds_differ_and_repeat() -> None:
    ids = tuple(map(str, range(50)))
    first = [CaseStream(ids, 0, 1)[k] for k in range(50)]
    assert first == [CaseStream(ids, 0, 1)[k] for k in range(50)]
    assert first != [CaseStream(ids, 0, 2)[k] for k in range(50)]
    assert first != [CaseStream(ids, 1, 1)[k] for k in range(50)]
    assert first != [CaseStream(ids, 0, 1)[k] for k in range(50, 100)]


def test_an_order_is_made_once_for_all_draws_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def derive(*parts: int) -> np.random.Generator:
        made.append(parts)
        return derive_rng(*parts)

    monkeypatch.setattr(sampling, "derive_rng", derive)
    sampling._order_of_pass.cache_clear()
    ids = tuple(map(str, range(1000)))
    for position in range(2500):
        CaseStream(ids, 5, 1)[position], CaseStream(ids, 5, 2)[position]
    assert sorted(made) == [(5, stream, number) for stream in (1, 2) for number in range(3)]


@pytest.mark.parametrize("streams", around(sampling._PASSES))
def test_a_draw_does_not_depend_on_the_orders_that_are_remembered(streams: int) -> None:
    ids = tuple(map(str, range(7)))
    for position in (0, 6, 7, 20):
        for stream in range(streams):
            order = derive_rng(3, stream, position // 7).permutation(7)
            assert CaseStream(ids, 3, stream)[position] == ids[order[position % 7]]


def make_balanced(positives: int, negatives: int, ratio: float, seed: int = 0) -> BalancedCaseStream:
    ids = tuple(f"p{k}" for k in range(positives)) + tuple(f"n{k}" for k in range(negatives))
    return BalancedCaseStream(ids, frozenset(ids[:positives]), ratio, seed, stream=1)


@given(
    positives=st.integers(1, 20),
    negatives=st.integers(1, 20),
    ratio=st.floats(0, 1),
    seed=st.integers(0, 99),
    first=st.integers(0, 10**6),
    n=st.integers(1, 80),
)
def test_every_run_of_positions_has_the_ratio(
    positives: int, negatives: int, ratio: float, seed: int, first: int, n: int
) -> None:
    sampler = make_balanced(positives, negatives, ratio, seed)
    drawn = sum(sampler[first + k].startswith("p") for k in range(n))
    assert abs(drawn - ratio * n) < 1
    assert sampler.reachable_ratio == ratio


@given(positives=st.integers(1, 9), negatives=st.integers(1, 9), seed=st.integers(0, 99))
def test_both_kinds_are_walked_evenly(positives: int, negatives: int, seed: int) -> None:
    """Few positives repeat while the many negatives are still on their first pass; nobody starts over."""
    sampler = make_balanced(positives, negatives, 0.4, seed)
    counts = Counter(sampler[k] for k in range(150))
    for kind in "pn":
        of_kind = [counts[i] for i in sampler.ids if i.startswith(kind)]
        assert max(of_kind) - min(of_kind) <= 1


def test_kinds_of_one_size_are_not_walked_in_step() -> None:
    sampler = make_balanced(10, 10, 0.5)
    drawn = [sampler[k] for k in range(400)]
    pairs = {tuple(sorted((a[1:], b[1:]))) for a, b in zip(drawn[::2], drawn[1::2], strict=True)}
    assert len(pairs) > 30


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("positives", "negatives", "reachable"), [(0, 7, 0.0), (7, 0, 1.0)])
def test_one_kind_alone_is_drawn_evenly(ratio: float, positives: int, negatives: int, reachable: float) -> None:
    sampler = make_balanced(positives, negatives, ratio)
    assert sampler.reachable_ratio == reachable
    assert sampler.positive_weight == 1
    assert Counter(sampler[k] for k in range(21)) == Counter(sampler.ids * 3)


@pytest.mark.parametrize(("ratio", "kind", "weight"), [(0.0, "n", 0.0), (1.0, "p", inf)])
def test_all_or_none_positive(ratio: float, kind: str, weight: float) -> None:
    sampler = make_balanced(5, 8, ratio, seed=3)
    assert {sampler[10**9 + k][0] for k in range(50)} == {kind}
    assert sampler.positive_weight == weight


@pytest.mark.parametrize(("weight", "share"), [(None, 0.5), (10.0, 2910 / 3935)])
def test_weight_of_a_published_training(weight: float | None, share: float) -> None:
    """291 of 1,316 volumes had foreground: half of the draws are positive at 3.52, and 74 % at the published 10."""
    sampler = make_balanced(291, 1025, 0.5)
    assert sampler.positive_weight == pytest.approx(3.52, abs=0.005)
    weights = [weight or sampler.positive_weight] * 291 + [1.0] * 1025
    generator = torch.Generator().manual_seed(0)
    drawn = np.array(list(WeightedRandomSampler(weights, 40_000, generator=generator)))
    assert (drawn < 291).mean() == pytest.approx(share, abs=0.01)


def test_derived_seeds_do_not_collide_over_ranks_and_steps() -> None:
    seeds = {derive_seed(0, rank, step) for rank in range(4) for step in range(500)}
    assert len(seeds) == 2000


shapes = st.lists(st.integers(1, 20), min_size=2, max_size=3)


@given(shape=shapes, data=st.data(), seed=st.integers(0, 999))
def test_box_lies_inside_or_centers_what_is_too_small(shape: list[int], data: st.DataObject, seed: int) -> None:
    patch = data.draw(st.lists(st.integers(1, 20), min_size=len(shape), max_size=len(shape)))
    start = choose_box(shape, patch, derive_rng(seed))
    for s, p, n in zip(start, patch, shape, strict=True):
        if p <= n:
            assert 0 <= s <= n - p
        else:
            assert s <= 0
            assert s + p >= n  # the whole image is in the box


@given(shape=shapes, data=st.data(), seed=st.integers(0, 999))
def test_foreground_box_contains_a_foreground_voxel(shape: list[int], data: st.DataObject, seed: int) -> None:
    patch = data.draw(st.lists(st.integers(1, 20), min_size=len(shape), max_size=len(shape)))
    voxel = np.array([[data.draw(st.integers(0, n - 1)) for n in shape]])
    start = choose_box(shape, patch, derive_rng(seed), (voxel,))
    assert all(s <= v < s + p for s, v, p in zip(start, voxel[0], patch, strict=True))


def test_each_class_is_centered_equally_often() -> None:
    """A class of one voxel beside one of 900: uniform over voxels it would be the center in 0.1 % of the boxes."""
    rare, common = np.array([[5, 5]]), np.stack(np.indices((30, 30)), -1).reshape(-1, 2) + 30
    starts = [choose_box((64, 64), (1, 1), derive_rng(k), (rare, common)) for k in range(600)]
    assert np.mean([start == (5, 5) for start in starts]) == pytest.approx(0.5, abs=0.07)
    assert len(set(starts)) > 200


def test_boxes_reach_every_start_and_the_border_often() -> None:
    starts = Counter(choose_box((5, 40), (3, 20), derive_rng(k)) for k in range(4000))
    assert {y for y, _ in starts} == {0, 1, 2}
    assert {x for _, x in starts} == set(range(21))
    left = sum(count for (_, x), count in starts.items() if x == 0) / 4000
    assert 0.2 < left < 0.35  # centers 0..10 of 40 are moved to start 0


@given(shape=shapes, data=st.data())
def test_the_tiles_hold_every_voxel_exactly_once(shape: list[int], data: st.DataObject) -> None:
    patch = data.draw(st.lists(st.integers(2, 20), min_size=len(shape), max_size=len(shape)))
    tiles = {choose_tile(shape, patch, derive_rng(k)) for k in range(400)}
    number = int(np.prod([-(-n // p) for n, p in zip(shape, patch, strict=True)]))
    assert len(tiles) <= number
    counts = np.zeros(shape, int)
    for start, ignored in tiles:
        assert all(
            (0 <= s <= n - p) if p <= n else (s <= 0 and s + p >= n)
            for s, p, n in zip(start, patch, shape, strict=True)
        )
        looked_at = tuple(
            slice(max(s + i, 0), min(s + p, n)) for s, i, p, n in zip(start, ignored, patch, shape, strict=True)
        )
        counts[looked_at] += 1
    assert counts.max() == 1
    if len(tiles) == number:  # 400 draws nearly always reach all tiles
        assert counts.min() == 1


def test_tiles_have_the_prevalence_of_the_image() -> None:
    """Where tiles overlap (20 = 12 + 12 - 4) too; boxes around random voxels prefer the center (negative control)."""
    image = np.zeros((20, 20))
    image[6:14, 6:14] = 1
    seen = []
    for k in range(2000):
        start, ignored = choose_tile(image.shape, (12, 12), derive_rng(k))
        tile = crop(image, start, (12, 12), 0)[ignored[0] :, ignored[1] :]
        seen.append((tile.sum(), tile.size))
    foreground, voxels = np.sum(seen, axis=0)
    boxes = [crop(image, choose_box(image.shape, (12, 12), derive_rng(k)), (12, 12), 0).mean() for k in range(400)]
    assert abs(foreground / voxels - image.mean()) < 0.01
    assert np.mean(boxes) > image.mean() + 0.05


@given(shape=shapes, data=st.data(), seed=st.integers(0, 999))
def test_crop_equals_cutting_a_padded_array(shape: list[int], data: st.DataObject, seed: int) -> None:
    patch = data.draw(st.lists(st.integers(1, 20), min_size=len(shape), max_size=len(shape)))
    array = np.arange(2 * np.prod(shape)).reshape(2, *shape)
    start = choose_box(shape, patch, derive_rng(seed))
    margin = 40
    padded = np.pad(array, [(0, 0)] + [(margin, margin)] * len(shape), constant_values=-5)
    window = (slice(None), *(slice(s + margin, s + margin + p) for s, p in zip(start, patch, strict=True)))
    assert np.array_equal(crop(array, start, patch, -5), padded[window])


@pytest.mark.parametrize("shape", [(64, 64), (24, 40, 40)])
@pytest.mark.parametrize("each", [1, 5])
def test_the_box_has_the_share_that_is_asked_for(shape: tuple[int, ...], each: int) -> None:
    """The lower half along the first axis is foreground, of two classes: a box of any share exists."""
    mask = np.zeros(shape, int)
    mask[shape[0] // 2 :] = 1
    mask[shape[0] // 2 :, :9] = 2
    points = [np.argwhere(mask == value)[::each] for value in (1, 2)]
    patch = (12,) * len(shape)
    for share in (-0.5, 0.0, 0.3, 0.5, 0.8, 1.0, 1.5):
        missed, by_chance = 0.0, 0.0
        for seed in range(20):
            start = choose_box_by_share(shape, patch, derive_rng(seed), points, (each, each), share)
            free = choose_box(shape, patch, derive_rng(seed))
            chosen, other = (
                mask[tuple(slice(s, s + p) for s, p in zip(box, patch, strict=True))] for box in (start, free)
            )
            assert chosen.shape == patch
            missed += abs((chosen > 0).mean() - np.clip(share, 0, 1))
            by_chance += abs((other > 0).mean() - np.clip(share, 0, 1))
        assert missed < 0.6 * by_chance
        assert missed == 0 or 0 < share <= 1 or each > 1  # that nothing is in a box, all points tell
    wide = choose_box_by_share(shape, (100,) * len(shape), derive_rng(0), points, (each, each), 0.5)
    assert wide == tuple((size - 100) // 2 for size in shape)


def test_without_foreground_any_box_will_do() -> None:
    starts = {choose_box_by_share((64, 64), (16, 16), derive_rng(seed), (), (), 0.5) for seed in range(20)}
    assert len(starts) > 10
