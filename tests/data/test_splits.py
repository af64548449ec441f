"""Splits: nested, disjoint, by whole groups, reproducible; and their files."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.facts import Appearance, CaseFacts
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.splits.files import load_split, save_folds, save_split, split_from_dict, split_to_dict
from ssl_seg.data.splits.split import (
    Split,
    add_new_masks,
    count_labeled,
    find_classes,
    make_folds,
    make_split,
    note_unlisted,
    reorder_labeled,
)
from ssl_seg.errors import SplitError
from ssl_seg.labels import Meaning


def make_catalog(foreground: list[float | None], groups: list[str | None] | None = None) -> Catalog:
    """A catalog of images that were never read: one case per foreground fraction, None without a mask."""
    cases = tuple(
        Case(f"c{n:03d}", f"{n}.png", None if share is None else f"{n}.png", groups[n] if groups else None)
        for n, share in enumerate(foreground)
    )
    facts = {
        case.id: CaseFacts((8, 8), 1, "uint8", None if share is None else (0, 1), share, f"{n:012x}0000")
        for n, (case, share) in enumerate(zip(cases, foreground, strict=True))
    }
    return Catalog("somewhere", cases, facts, Meaning("semantic", label_values=(0, 1)), ())


def add_classes(catalog: Catalog, classes: list[set[int]]) -> Catalog:
    """The catalog with classes in its masks: one set a labeled case."""
    values = {c.id: (0, *sorted(own)) for c, own in zip(catalog.labeled, classes, strict=True)}
    facts = {i: replace(f, values=values.get(i)) for i, f in catalog.facts.items()}
    return replace(catalog, facts=facts, meaning=Meaning(label_values=(0, *sorted(set().union(*classes)))))


def add_images(
    catalog: Catalog, copies: dict[str, str] | None = None, means: dict[str, float] | None = None
) -> Catalog:
    """The catalog with random thumbnails; ``copies`` maps an id to one whose image it has, brightened."""
    rng = np.random.default_rng(0)
    thumbnails = {i: rng.normal(100, 20, (32, 32)) for i in sorted(catalog.facts)}
    thumbnails |= {i: 1.1 * thumbnails[other] + rng.normal(0, 1, (32, 32)) for i, other in (copies or {}).items()}
    facts = {
        i: replace(f, appearance=Appearance(0, 255, (means or {}).get(i, rng.normal()), 20, 0, 0, thumbnails[i]))
        for i, f in catalog.facts.items()
    }
    return replace(catalog, facts=facts)


def spread(count: int, seed: int = 0) -> list[float | None]:
    return list(np.random.default_rng(seed).beta(2, 4, count))


def ids_of(split: Split) -> list[str]:
    return [*split.fractions[1.0], *split.unlabeled, *split.val, *split.test]


catalogs = st.integers(3, 40).flatmap(
    lambda count: st.builds(
        make_catalog,
        st.lists(st.one_of(st.just(0.0), st.floats(0.01, 0.99)), min_size=count, max_size=count).flatmap(
            lambda labeled: st.lists(st.none(), max_size=8).map(lambda unlabeled: [*labeled, *unlabeled])
        ),
        st.lists(st.sampled_from([None, "g1", "g2", "g3", "g4"]), min_size=48, max_size=48),
    )
)
relaxed = settings(deadline=None, max_examples=60)
fraction_lists = st.lists(st.floats(0.001, 1.0), max_size=4)


def try_split(catalog: Catalog, fractions: list[float], seed: int = 0) -> Split | None:
    """A split, or None where there are too few groups to make one."""
    groups = {c.group or c.id for c in catalog.labeled}
    if len(groups) > 1:
        return make_split(catalog, fractions, seed=seed)
    with pytest.raises(SplitError, match="cannot be split"):
        make_split(catalog, fractions, seed=seed)
    return None


def test_without_any_mask_ways_to_get_masks_are_named() -> None:
    for split in (partial(make_split, seed=0), partial(make_folds, folds=2)):
        with pytest.raises(SplitError, match=r"none of the 3 images.*label:.*Pseudo-label:.*Weak supervision:"):
            split(make_catalog([None] * 3), [1.0])


def check_nested(split: Split, fractions: list[float]) -> None:
    pool = split.fractions[1.0]
    assert set(split.fractions) == {*fractions, 1.0}
    for fraction, ids in split.fractions.items():
        assert ids == pool[: len(ids)]
        assert len(ids) >= 1
        assert abs(len(ids) - fraction * len(pool)) <= 0.5 or len(ids) == 1


def check_each_case_is_used_once_or_left_out_with_a_note(split: Split, catalog: Catalog) -> None:
    ids = ids_of(split)
    assert len(ids) == len(set(ids))
    left_out = {c.id for c in catalog.cases} - set(ids)
    held_out_groups = {split.groups.get(i, i) for i in (*split.val, *split.test)}
    assert left_out == {c.id for c in catalog.unlabeled if (c.group or c.id) in held_out_groups}
    assert any("left out" in note for note in split.notes) == bool(left_out)
    assert set(split.content) == set(ids)
    masks = {c.id for c in catalog.labeled}
    assert {*split.fractions[1.0], *split.val, *split.test} == masks


def check_groups_are_whole_and_each_part_has_one(split: Split, catalog: Catalog) -> None:
    group_of = {c.id: c.group or c.id for c in catalog.cases}
    parts = [split.fractions[1.0] + split.unlabeled, split.val, split.test]
    in_parts = [{group_of[i] for i in part} for part in parts]
    assert not in_parts[0] & in_parts[1]
    assert not in_parts[0] & in_parts[2]
    assert not in_parts[1] & in_parts[2]
    labeled_groups = {group_of[c.id] for c in catalog.labeled}
    assert split.fractions[1.0]
    assert split.val
    assert bool(split.test) == (len(labeled_groups) > 2)
    positive_groups = {group_of[c.id] for c in catalog.labeled if catalog.facts[c.id].foreground}
    has_positive = [
        any(catalog.facts[i].foreground for i in part) for part in (split.fractions[1.0], split.val, split.test)
    ]
    assert sum(has_positive) == min(len(positive_groups), 3 if len(labeled_groups) > 2 else 2)


@relaxed
@given(catalogs, fraction_lists, st.integers(0, 5), st.randoms(use_true_random=False))
def test_what_holds_for_every_split(
    tmp_path_factory: pytest.TempPathFactory, catalog: Catalog, fractions: list[float], seed: int, random: Random
) -> None:
    split = try_split(catalog, fractions, seed)
    if split is None:
        return
    check_nested(split, fractions)
    check_each_case_is_used_once_or_left_out_with_a_note(split, catalog)
    check_groups_are_whole_and_each_part_has_one(split, catalog)
    shuffled = list(catalog.cases)
    random.shuffle(shuffled)
    assert make_split(replace(catalog, cases=tuple(shuffled)), fractions, seed=seed) == split
    assert split_from_dict(split_to_dict(split)) == split
    path = tmp_path_factory.mktemp("split") / "new" / "split.yaml"
    save_split(split, path)
    assert load_split(path) == split


def test_parts_have_their_sizes_and_like_foreground() -> None:
    catalog = make_catalog([*spread(160), *[0.0] * 40])
    for seed in range(5):
        split = make_split(catalog, [0.1], seed=seed)
        assert [len(split.fractions[1.0]), len(split.val), len(split.test)] == [130, 30, 40]
        for part in (split.fractions[1.0], split.val, split.test):
            values = np.array([catalog.facts[i].foreground for i in part])
            assert (values == 0).mean() == pytest.approx(0.2, abs=0.04)
            assert values.mean() == pytest.approx(0.8 / 3, abs=0.04)


def test_one_group_with_half_of_the_cases_goes_to_training() -> None:
    catalog = make_catalog(spread(366), ["big"] * 180 + [f"g{n // 3}" for n in range(186)])
    for seed in range(5):
        split = make_split(catalog, [], seed=seed)
        assert {f"c{n:03d}" for n in range(180)} <= set(split.fractions[1.0])
        assert len(split.val) == pytest.approx(55, abs=4)
        assert len(split.test) == pytest.approx(73, abs=4)


def test_other_seeds_give_other_parts_and_other_orders() -> None:
    catalog = make_catalog(spread(60))
    splits = [make_split(catalog, [0.1], seed=seed) for seed in range(6)]
    assert len({s.val for s in splits}) == 6
    assert len({frozenset(s.fractions[0.1]) for s in splits}) == 6
    assert len({s.fingerprint for s in splits}) == 6
    assert make_split(catalog, [0.1], seed=3) == splits[3]


def test_another_label_seed_moves_nothing_but_the_labeled_cases() -> None:
    catalog = make_catalog(spread(80))
    split = make_split(catalog, [0.05, 0.2])
    orders = [reorder_labeled(split, catalog, seed) for seed in range(4)]
    assert len({other.fractions[0.05] for other in orders}) > 1
    for other in orders:
        assert (other.val, other.test, other.unlabeled) == (split.val, split.test, split.unlabeled)
        assert {f: len(ids) for f, ids in other.fractions.items()} == {f: len(i) for f, i in split.fractions.items()}
        assert sorted(other.fractions[1.0]) == sorted(split.fractions[1.0])
        assert all(other.fractions[f] == other.fractions[1.0][: len(ids)] for f, ids in other.fractions.items())
    assert reorder_labeled(orders[3], catalog, 1) == orders[1]
    assert len({other.fingerprint for other in orders}) == 4


def test_each_label_seed_covers_the_range_of_foreground() -> None:
    catalog = make_catalog(spread(64))
    split = make_split(catalog, [0.1], test_fraction=0.0)
    pool = split.fractions[1.0]
    middle = np.median([catalog.facts[i].foreground for i in pool])
    for seed in range(5):
        first = reorder_labeled(split, catalog, seed).labeled_ids(8)
        assert 3 <= sum(catalog.facts[i].foreground > middle for i in first) <= 5


def test_a_label_seed_that_makes_no_sense() -> None:
    catalog = make_catalog(spread(20))
    split = make_split(catalog, [0.1])
    with pytest.raises(SplitError, match="label_seed=-1"):
        reorder_labeled(split, catalog, -1)
    with pytest.raises(SplitError, match="does not hold"):
        reorder_labeled(split, make_catalog(spread(3)), 0)


def test_parts_and_labeled_sets_have_every_class() -> None:
    """200 cases: one class everywhere, two in every third, one in 6 cases only."""
    classes = [{1} | ({2, 3} if n % 3 == 0 else set()) | ({4} if n % 33 == 1 else set()) for n in range(200)]
    catalog = add_classes(make_catalog(spread(200)), classes)
    assert find_classes(catalog)["c001"] == {1, 4}
    for seed in range(10):
        split = make_split(catalog, [0.02], seed=seed)
        assert len(split.fractions[0.02]) == 3
        for part in (split.fractions[0.02], split.val, split.test):
            assert frozenset().union(*(find_classes(catalog)[i] for i in part)) == {1, 2, 3, 4}


def test_one_class_or_ignored_voxels_are_no_classes() -> None:
    assert find_classes(make_catalog(spread(8))) == {}
    catalog = add_classes(make_catalog([0.1, 0.2]), [{1, 2, 255}, {255}])
    catalog = replace(catalog, meaning=Meaning(label_values=(0, 1, 2), ignore_value=255))
    assert find_classes(catalog) == {"c000": {1, 2}, "c001": frozenset()}


# --- cross-validation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_folds_that_leave_no_group_for_the_test_list_are_refused(seed: int) -> None:
    """Two groups of two cases: both were folds, and the test list was empty without a word."""
    catalog = make_catalog([0.0, 0.7, 0.5, 0.3], ["g2", "g1", "g1", "g2"])
    with pytest.raises(SplitError, match=r"cannot make 2 folds: two groups .* needed.* --groups none"):
        make_folds(catalog, [0.1], 2, seed=seed, test_fraction=0.2)


@relaxed
@given(catalogs, st.integers(2, 4), st.sampled_from([0.0, 0.2]), st.integers(0, 5))
def test_folds_partition_what_is_not_in_the_test_list(
    catalog: Catalog, folds: int, test_fraction: float, seed: int
) -> None:
    groups = {c.group or c.id for c in catalog.labeled}
    if len(groups) < folds + (test_fraction > 0):
        most = len(groups) - (test_fraction > 0)
        exact = rf"choose .*{most}\.$" if most > 1 else "two groups"
        advice = "(choose|two groups)" if test_fraction else exact  # the test list may need several groups
        with pytest.raises(SplitError, match=f"cannot make {folds} folds: {advice}"):
            make_folds(catalog, [0.1], folds, seed=seed, test_fraction=test_fraction)
        return
    try:
        splits = make_folds(catalog, [0.1], folds, seed=seed, test_fraction=test_fraction)
    except SplitError:  # where the test list needs more than one group to have its share
        assume(test_fraction == 0 or len(groups) >= 2 * folds)
        raise
    assert [(s.fold, s.folds) for s in splits] == [(fold, folds) for fold in range(folds)]
    assert len({s.test for s in splits}) == 1
    validated = [i for s in splits for i in s.val]
    assert len(validated) == len(set(validated))
    assert {*validated, *splits[0].test} == {c.id for c in catalog.labeled}
    assert bool(splits[0].test) == (test_fraction > 0)
    group_of = {c.id: c.group or c.id for c in catalog.cases}
    for split in splits:
        assert split.val
        assert set(split.fractions[1.0]) == set(validated) - set(split.val)
        assert split.fractions[0.1] == split.fractions[1.0][: len(split.fractions[0.1])]
        parts = [{group_of[i] for i in part} for part in (split.fractions[1.0] + split.unlabeled, split.val)]
        assert not parts[0] & parts[1]


def test_786_cases_make_folds_of_157_and_158() -> None:
    """Published: 628 for training and 158 for validation."""
    for seed, share in enumerate((1.0, 0.78, 0.22)):
        kept = np.random.default_rng(seed).random(786) < share
        catalog = make_catalog([f if keep else 0.0 for f, keep in zip(spread(786), kept, strict=True)])
        splits = make_folds(catalog, [0.1], 5, seed=seed, test_fraction=0)
        assert sorted(len(s.val) for s in splits) == [157, 157, 157, 157, 158]
        means = [np.mean([catalog.facts[i].foreground for i in s.val]) for s in splits]
        assert np.ptp(means) < 0.03


def test_folds_have_the_test_list_of_the_plain_split() -> None:
    catalog = make_catalog(spread(120))
    splits = make_folds(catalog, [0.01], 5, seed=3)
    assert splits[0].test == make_split(catalog, [], seed=3).test
    assert make_folds(catalog, [0.01], 5, seed=3) == splits
    assert len({s.fingerprint for s in splits}) == 5


def test_small_sets_of_folds_are_not_biased_alike() -> None:
    """With one order for all folds, the first case would have nearly the same rank in each pool of 80."""
    catalog = make_catalog(spread(100))
    pools = [s.fractions[1.0] for s in make_folds(catalog, [], 5, test_fraction=0)]
    assert {len(pool) for pool in pools} == {80}
    ranks = [sorted(pool, key=lambda i: catalog.facts[i].foreground).index(pool[0]) for pool in pools]
    assert max(ranks) - min(ranks) > 20


def test_a_number_of_folds_that_makes_no_sense() -> None:
    with pytest.raises(SplitError, match="cannot make 1 folds"):
        make_folds(make_catalog(spread(10)), [], 1)
    with pytest.raises(SplitError, match="test_fraction=1"):
        make_folds(make_catalog(spread(10)), [], 2, test_fraction=1.0)


def test_folds_in_files(tmp_path: Path) -> None:
    splits = make_folds(make_catalog(spread(20)), [0.1], 3)
    paths = save_folds(splits, tmp_path / "new" / "s.yaml")
    assert [p.name for p in paths] == ["s_fold0.yaml", "s_fold1.yaml", "s_fold2.yaml"]
    assert [load_split(p) for p in paths] == list(splits)
    edit(paths[1], fold=2)
    with pytest.raises(SplitError, match="edited after it was made"):
        load_split(paths[1])
    for changes in ({"fold": 3}, {"fold": None}, {"folds": "x"}):
        edit(paths[2], **changes)
        with pytest.raises(SplitError, match="folds"):
            load_split(paths[2])
    edit(paths[2], folds=3, fold=...)
    with pytest.raises(SplitError, match="missing or unknown: fold"):
        load_split(paths[2])
    paths[0].unlink()
    paths[1].unlink()
    with pytest.raises(SplitError, match=r"s_fold2\.yaml exists"):
        save_folds(splits, tmp_path / "new" / "s.yaml")
    assert [p.name for p in paths[0].parent.iterdir()] == ["s_fold2.yaml"]


def test_a_plain_split_has_no_fold_in_its_file(split: Split) -> None:
    assert not {"fold", "folds"} & set(split_to_dict(split))
    assert replace(split, folds=2, fold=0).fingerprint != split.fingerprint


# --- small and odd inputs -------------------------------------------------------------------------------------------


def test_three_cases_one_each_two_no_test_one_no_split() -> None:
    three = make_split(make_catalog([0.1, 0.2, 0.3]), [0.5])
    assert [len(three.fractions[1.0]), len(three.val), len(three.test)] == [1, 1, 1]
    two = make_split(make_catalog([0.1, 0.2]), [])
    assert [len(two.fractions[1.0]), len(two.val), len(two.test)] == [1, 1, 0]
    assert "the test list is empty" in two.notes[0]
    with pytest.raises(
        SplitError, match=r"need a group each\. Label more images\. Images are cut .* 144 labeled voxels"
    ):
        make_split(make_catalog([0.1, None, None]), [])
    with pytest.raises(SplitError, match=r"3 labeled cases in 1 group"):
        make_split(make_catalog([0.1, 0.2, 0.3], ["same"] * 3), [])


def test_a_group_and_a_case_of_the_same_name_are_different() -> None:
    split = make_split(make_catalog([0.1, 0.2, 0.3], [None, "c000", "c000"]), [])
    assert split.groups == {"c001": "c000", "c002": "c000"}
    assert not split.test


def test_a_fraction_below_half_a_case_becomes_one_case_and_says_so() -> None:
    split = make_split(make_catalog(spread(40)), [0.01, 0.1, 0.5])
    assert len(split.fractions[0.01]) == 1
    assert split.notes == ()  # whoever asks for 0.01 is told, and nobody else
    assert split.note_rounding(0.01) == ["0.01 of 26 cases is less than half a case and becomes 1 case"]
    assert [split.note_rounding(labels) for labels in (0.02, 0.1, 1.0, 2, 26)] == [[]] * 5


def test_numbers_of_cases_become_the_shares_that_they_are() -> None:
    catalog = make_catalog(spread(40))
    split = make_split(catalog, [0.5, 2, 13, 26], seed=3)
    assert {share: len(ids) for share, ids in split.fractions.items()} == {2 / 26: 2, 0.5: 13, 1.0: 26}
    assert split.labeled_ids(2) == split.labeled_ids(2 / 26) == split.fractions[1.0][:2]
    assert split_from_dict(split_to_dict(split)) == split
    for fold in make_folds(catalog, [3], 4, seed=3):
        assert sorted(map(len, fold.fractions.values())) == [3, len(fold.fractions[1.0])]
    with pytest.raises(SplitError, match="labels=27 cases were asked for; the labeled training pool has 26"):
        make_split(catalog, [27], seed=3)


@given(st.integers(2, 60), st.integers(0, 3))
def test_a_number_of_cases_survives_its_share(count: int, more: int) -> None:
    assert count_labeled(count / (count + more), count + more) == count


def test_unlabeled_cases_of_held_out_groups_are_left_out() -> None:
    catalog = make_catalog([0.1, 0.2, 0.3, None, None, None, None], ["a", "b", "c", "a", "b", "c", "d"])
    split = make_split(catalog, [])
    (train,) = split.fractions[1.0]
    assert set(split.unlabeled) == {f"c{int(train[1:]) + 3:03d}", "c006"}
    assert split.notes == ("2 unlabeled cases are left out: of a group in validation or test",)


def test_no_foreground_anywhere_is_said_loudly() -> None:
    assert "NO LABELED TRAINING CASE HAS FOREGROUND" in make_split(make_catalog([0.0] * 6), [0.5]).notes[0]
    assert make_split(make_catalog([0.0] * 6 + [0.1] * 3), [0.5]).notes == ()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"fractions": [0.0]}, r"labels=0\.0: 0 is neither"),
        ({"fractions": [0.1, 1.5]}, "1.5 is neither"),
        ({"fractions": [-0.1]}, "-0.1 is neither"),
        ({"fractions": [float("nan")]}, "nan is neither"),
        ({"fractions": [1]}, "all cases or one case: write 1.0 for all"),
        ({"fractions": [], "val_fraction": 0.0}, "val_fraction=0"),
        ({"fractions": [], "test_fraction": -0.1}, "test_fraction=-0.1"),
        ({"fractions": [], "val_fraction": 0.5, "test_fraction": 0.5}, "their sum below 1"),
        ({"fractions": [], "seed": -1}, "seed=-1"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(SplitError, match=reason):
        make_split(make_catalog(spread(10)), **arguments)


def test_no_test_list_on_request() -> None:
    split = make_split(make_catalog(spread(20)), [], val_fraction=0.5, test_fraction=0)
    assert (len(split.val), split.test, split.notes) == (10, (), ())


# --- asking a split -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "total", "expected"),
    [
        (0.5, 5, 3),
        (0.5, 3, 2),
        (0.29, 50, 15),
        (0.35, 10, 4),
        (0.145, 100, 15),
        (0.01, 20, 1),
        (1e-9, 5, 1),
        (0.4, 6, 2),
    ],
)
def test_half_a_case_is_rounded_up_in_decimals(fraction: float, total: int, expected: int) -> None:
    assert count_labeled(fraction, total) == expected


@pytest.fixture
def split() -> Split:
    return make_split(make_catalog([*spread(40), None, None]), [0.1])


def test_labeled_and_pool_ids(split: Split) -> None:
    pool = split.fractions[1.0]
    assert len(pool) == 26
    assert split.labeled_ids(0.1) == pool[:3]
    assert split.labeled_ids(0.25) == pool[:7]
    assert split.labeled_ids(0.001) == pool[:1]
    assert split.labeled_ids(1.0) == split.labeled_ids(26) == pool
    with pytest.raises(SplitError, match="all cases or one case"):
        split.labeled_ids(1)
    assert split.labeled_ids(2) == pool[:2]
    assert split.pool_ids(0.1) == (*pool[3:], "c040", "c041")
    assert split.pool_ids(1.0) == ("c040", "c041")


def test_a_stored_fraction_is_taken_as_stored(split: Split) -> None:
    own = replace(split, fractions={0.1: split.fractions[1.0][5:7], 1.0: split.fractions[1.0]})
    assert own.labeled_ids(0.1) == split.fractions[1.0][5:7]
    assert set(own.pool_ids(0.1)) == {*split.fractions[1.0], "c040", "c041"} - set(own.labeled_ids(0.1))


@pytest.mark.parametrize("labels", [0, -1, 2.5, 27, float("nan"), float("inf")])
def test_label_counts_that_make_no_sense(split: Split, labels: float) -> None:
    with pytest.raises(SplitError, match=f"labels={labels:g}"):
        split.labeled_ids(labels)


def test_the_test_list_is_sealed(split: Split) -> None:
    split.check_not_sealed([*split.fractions[1.0], *split.unlabeled, *split.val])
    with pytest.raises(SplitError, match=r"ssl-seg evaluate --test") as raised:
        split.check_not_sealed([split.val[0], split.test[1]])
    assert split.test[1] in str(raised.value)
    assert split.val[0] not in str(raised.value)


# --- files ----------------------------------------------------------------------------------------------------------


def test_what_the_fingerprint_covers(split: Split) -> None:
    pool = split.fractions[1.0]
    same = [replace(split, notes=("x",)), replace(split, dataset="elsewhere")]
    other = [
        replace(split, seed=1),
        replace(split, fractions={1.0: pool}),
        replace(split, fractions={0.1: split.fractions[0.1], 1.0: (*pool[:-2], pool[-1], pool[-2])}),
        replace(split, unlabeled=split.unlabeled[:1]),
        replace(split, val=split.test, test=split.val),
        replace(split, groups={"c000": "g"}),
        replace(split, content=split.content | {"c000": "0" * 15 + "f"}),
    ]
    assert all(s.fingerprint == split.fingerprint for s in same)
    assert len({s.fingerprint for s in other} | {split.fingerprint}) == len(other) + 1
    assert len(split.fingerprint) == 16


def test_ids_that_look_like_numbers_stay_texts(tmp_path: Path) -> None:
    catalog = make_catalog(spread(8))
    names = ["0007", "1e5", "yes", "null", "1.0", "ä/b c", "12:30", "2020-01-01"]
    cases = tuple(replace(c, id=n) for c, n in zip(catalog.cases, names, strict=True))
    facts = {n: catalog.facts[c.id] for c, n in zip(catalog.cases, names, strict=True)}
    split = make_split(replace(catalog, cases=cases, facts=facts), [])
    save_split(split, tmp_path / "s.yaml")
    assert load_split(tmp_path / "s.yaml") == split


def test_a_split_file_is_never_overwritten(tmp_path: Path, split: Split) -> None:
    save_split(split, tmp_path / "s.yaml")
    before = (tmp_path / "s.yaml").read_bytes()
    with pytest.raises(SplitError, match="exists"):
        save_split(replace(split, seed=9), tmp_path / "s.yaml")
    assert (tmp_path / "s.yaml").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.yaml"]
    with pytest.raises(SplitError, match="cannot be written"):
        save_split(split, tmp_path / "s.yaml" / "inside.yaml")


def edit(path: Path, **changes: object) -> None:
    values = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not ...}))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"val": ["c000"]}, r"edited after it was made.*ssl-seg split make"),
        ({"seed": 5}, "edited after it was made"),
        ({"fingerprint": "0" * 16}, "edited after it was made"),
        ({"schema": 2}, "schema 2 is not known"),
        ({"schema": ...}, "schema None"),
        ({"val": ...}, "missing or unknown: val"),
        ({"vall": []}, "missing or unknown: vall"),
        ({"val": [7]}, r"val\.0: .*found 7 .an id such as 0007 needs quotes"),
        ({"test": "c000"}, "test: .*tuple"),
        ({"groups": {"a": 1}}, r"groups\.a: .*string"),
        ({"content": []}, "content: .*dictionary"),
        ({"fractions": {0.1: ["c000"]}}, "contain 1.0"),
        ({"fractions": {1.0: [1]}}, r"fractions\.1\.0\.0: .*string"),
        ({"fractions": {2.0: ["c000"]}}, r"numbers in \(0, 1\]"),
        ({"fractions": ["c000"]}, "fractions: .*dictionary"),
        ({"seed": "x"}, "seed: .*integer"),
        ({"dataset": None}, "dataset: .*string"),
    ],
)
def test_edited_files_are_refused(tmp_path: Path, split: Split, changes: dict[str, object], reason: str) -> None:
    path = tmp_path / "s.yaml"
    save_split(split, path)
    edit(path, notes=["notes may change"], dataset="so may the place")
    load_split(path)
    edit(path, **changes)
    with pytest.raises(SplitError, match=reason) as raised:
        load_split(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("text", ["", "just text", "[1, 2]", "a: [", "\x00", "seed: !!python/object:os.system {}"])
def test_files_that_are_no_split(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SplitError, match=r"s\.yaml"):
        load_split(tmp_path / "s.yaml")


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="ssl-seg split make"):
        load_split(tmp_path / "s.yaml")


def test_reading_splits_loads_no_image_library() -> None:
    code = "import ssl_seg.data.splits.split, ssl_seg.data.splits.checks, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "ssl_seg.data.splits.checks" in loaded
    assert not loaded & {"torch", "cv2", "scipy", "tifffile"}


# --- copies ----------------------------------------------------------------------------------------------------------


def test_copies_of_an_image_are_never_in_two_parts() -> None:
    """Blank tiles are alike: half of 40 cases hold one of two images, some of them in groups of their own."""
    groups: list[str | None] = ["g1" if n in {3, 30} else None for n in range(44)]
    catalog = make_catalog([*spread(40), *[None] * 4], groups)
    alike = {c.id: "a" * 12 if n % 4 == 0 else "b" * 12 for n, c in enumerate(catalog.cases) if n % 2 == 0}
    facts = {i: replace(f, content=alike.get(i, f.content[:12]) + f.content[12:]) for i, f in catalog.facts.items()}
    split = make_split(replace(catalog, facts=facts), [0.5])
    part_of = {i: part for part in ("val", "test") for i in getattr(split, part)}
    part_of |= dict.fromkeys([*split.fractions[1.0], *split.unlabeled], "train")
    for digits in ("a" * 12, "b" * 12):
        assert len({part_of[i] for i, own in alike.items() if own == digits and i in part_of}) == 1
    assert part_of["c003"] == part_of["c030"]
    assert any("copies of 2 images" in note for note in split.notes)


def test_images_that_are_nearly_the_same_are_never_in_two_parts() -> None:
    copies = {f"c{n:03d}": f"c{n - 20:03d}" for n in range(20, 40)}
    catalog = add_images(make_catalog(spread(40)), copies)
    split = make_split(catalog, [0.5])
    for part in (split.fractions[1.0], split.val, split.test):
        assert {i for i in part if copies.get(i, i) != i} == {i for i in copies if copies[i] in part}
    assert split.notes == ("40 cases look like copies, for example c000, c020: their groups are kept in one part",)
    # Within a group there is nothing to keep together, and nothing to say.
    grouped = add_images(make_catalog(spread(40), [f"g{n % 20}" for n in range(40)]), copies)
    assert make_split(grouped, [0.5]).notes == ()


def test_what_was_merged_is_said_when_nothing_is_left_to_split() -> None:
    catalog = add_images(make_catalog([0.1, 0.2, 0.3]), {"c001": "c000", "c002": "c000"})
    with pytest.raises(SplitError, match=r"1 group \(3 cases look like copies"):
        make_split(catalog, [])


# --- masks that are made later --------------------------------------------------------------------------------------


def give_masks(catalog: Catalog, ids: list[str]) -> Catalog:
    """The catalog with masks of these cases too; their images stay."""
    cases = tuple(replace(c, mask=f"{c.id}.png") if c.id in ids else c for c in catalog.cases)
    new = {i: replace(catalog.facts[i], values=(0, 1), foreground=0.3) for i in ids}
    new = {i: replace(facts, content=facts.content[:12] + "abcd") for i, facts in new.items()}
    return replace(catalog, cases=cases, facts=dict(catalog.facts) | new)


@pytest.mark.parametrize("count", [1, 5])
def test_new_masks_join_the_training_cases_and_nothing_else_moves(count: int) -> None:
    catalog = make_catalog([*spread(20), *[None] * 5])
    split = make_split(catalog, [0.25])
    assert add_new_masks(split, catalog) is split
    new = list(split.unlabeled[:count])
    more = give_masks(catalog, new)
    grown = add_new_masks(split, more)
    assert (grown.val, grown.test, grown.groups) == (split.val, split.test, split.groups)
    assert list(grown.fractions[1.0]) == [*split.fractions[1.0], *new]
    assert {*grown.unlabeled} == {*split.unlabeled} - {*new}
    assert grown.content == split.content | {i: more.facts[i].content for i in new}
    for labels in (0.25, 0.5, 1.0):
        assert len(grown.labeled_ids(labels)) == count_labeled(labels, len(split.fractions[1.0]) + count)
        assert grown.labeled_ids(labels)[: len(split.labeled_ids(labels))] == split.labeled_ids(labels)
    assert split_from_dict(split_to_dict(grown)) == grown
    assert add_new_masks(grown, more) is grown


def test_a_mask_of_another_image_joins_nothing() -> None:
    catalog = make_catalog([*spread(20), None])
    split = make_split(catalog, [])
    (other,) = split.unlabeled
    more = give_masks(catalog, [other])
    replaced = replace(more.facts[other], content="e" * 16)
    assert add_new_masks(split, replace(more, facts=dict(more.facts) | {other: replaced})) is split


def test_images_that_no_list_names_are_counted() -> None:
    catalog = make_catalog([*spread(20), None, None])
    split = make_split(catalog, [])
    assert note_unlisted(split, catalog) is split
    kept = [i for i in split.unlabeled if i != "c021"]
    older = replace(split, unlabeled=tuple(kept), content={i: c for i, c in split.content.items() if i != "c021"})
    noted = note_unlisted(older, catalog)
    assert replace(noted, notes=older.notes) == older
    assert [n for n in noted.notes if n not in older.notes] == [
        "1 image is in no list of the split and not used (c021); `ssl-seg split make` lists all"
    ]
    assert note_unlisted(noted, catalog) == noted


# --- real data ------------------------------------------------------------------------------------------------------


def test_papers_of_emps_stay_whole(emps_dir: Path) -> None:
    catalog = open_catalog(str(emps_dir))
    split = make_split(catalog, [0.01, 0.1])
    assert [len(split.fractions[f]) for f in (0.01, 0.1)] == [2, 24]
    assert [len(split.fractions[1.0]), len(split.val), len(split.test)] == pytest.approx([238, 55, 73], abs=3)
    papers = [{split.groups[i] for i in part} for part in (split.fractions[1.0], split.val, split.test)]
    assert not papers[0] & papers[1] | papers[0] & papers[2] | papers[1] & papers[2]
    means = [np.mean([catalog.facts[i].foreground for i in p]) for p in (split.fractions[1.0], split.val, split.test)]
    assert np.ptp(means) < 0.06


@pytest.mark.parametrize(("name", "fractions"), [("emps", [0.01, 0.1]), ("la_half", [0.05, 0.1])])
def test_the_committed_split_is_made_again(name: str, fractions: list[float], request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{name}_dir")
    committed = load_split(Path(__file__).parents[2] / "data_splits" / f"{name}_seed0.yaml")
    assert make_split(open_catalog(str(folder)), fractions) == committed
