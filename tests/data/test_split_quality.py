"""Each breach that is planted in a good split is found, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_splits import add_classes, add_images, ids_of, make_catalog, spread

from ssl_seg.data.audit.doctor import check_copies, find_copies
from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.findings import Finding
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.splits.split import Split, make_split
from ssl_seg.data.splits.statistics import measure_split, summarize_split
from ssl_seg.errors import counted


@pytest.fixture
def catalog() -> Catalog:
    """40 labeled cases, a quarter of them empty, in groups of two; 4 unlabeled ones."""
    foreground = [*(0.0 if n % 4 == 0 else v for n, v in enumerate(spread(40))), None, None, None, None]
    return make_catalog(foreground, [f"g{n // 2}" for n in range(44)])


@pytest.fixture(autouse=True)
def few_cases_are_enough(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The splits here have eight validation cases, which is not what is tested."""
    if "few_validation_cases" not in request.node.name:
        monkeypatch.setattr("ssl_seg.data.splits.balance.FEW_VALIDATION_CASES", 0)


@pytest.fixture
def good(catalog: Catalog) -> Split:
    return make_split(catalog, [0.1, 0.5], seed=1)


def problems(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(f.code, f.level) for f in findings if f.level != "info"]


def only(findings: list[Finding], code: str) -> Finding:
    assert {f.code for f in findings if f.level != "info"} - CHANCE == {code}
    return next(f for f in findings if f.code == code)


CHANCE = {"prevalence_off", "intensity_shift", "foreground_shift", "few_groups"}
"""Warnings that a good split may have: one in a hundred has, a set of two cases, or the eight cases in four groups."""


@pytest.mark.parametrize("seed", range(5))
def test_made_splits_are_good(catalog: Catalog, seed: int) -> None:
    split = make_split(catalog, [0.05, 0.1, 0.5], seed=seed)
    assert check_split(split) == []
    assert {code for code, _ in problems(check_split(split, catalog))} <= CHANCE


def test_a_labeled_set_that_is_not_nested(good: Split) -> None:
    pool = good.fractions[1.0]
    stray = replace(good, fractions={0.1: pool[-2:], 0.5: pool[:10], 1.0: pool})
    finding = only(check_split(stray), "not_nested")
    assert (finding.level, finding.cases) == ("fault", pool[-2:])
    assert "0.1" in finding.message
    assert "0.5" in finding.message


@pytest.mark.parametrize("part", ["unlabeled", "val", "test"])
def test_a_case_in_two_lists(good: Split, part: str) -> None:
    case = good.fractions[1.0][0]
    twice = replace(good, groups={}, content={}, **{part: (*getattr(good, part), case)})
    finding = only(check_split(twice), "overlap")
    assert (finding.level, finding.cases) == ("fault", (case,))
    assert f"labeled and {part}" in finding.message


def test_a_case_twice_in_one_list(good: Split) -> None:
    finding = only(check_split(replace(good, val=(*good.val, good.val[0]))), "overlap")
    assert "val and val" in finding.message


@pytest.mark.parametrize(("source", "target"), [("val", "test"), ("test", "val"), ("unlabeled", "test")])
def test_a_group_in_two_parts(good: Split, source: str, target: str) -> None:
    moved, *rest = getattr(good, source)
    torn = replace(good, **{source: tuple(rest), target: (*getattr(good, target), moved)})
    finding = only(check_split(torn), "group_straddles")
    assert finding.level == "fault"
    assert moved in finding.cases
    assert good.groups[moved] in finding.message


def test_unlabeled_and_labeled_cases_of_one_group_are_one_part(good: Split) -> None:
    same = good.groups | {good.unlabeled[0]: good.groups[good.fractions[1.0][0]]}
    assert check_split(replace(good, groups=same)) == []


@pytest.mark.parametrize("part", ["val", "test", "unlabeled"])
def test_the_same_image_under_two_names(good: Split, part: str) -> None:
    case, twin = good.test[0] if part == "unlabeled" else good.fractions[1.0][0], getattr(good, part)[0]
    copied = replace(good, content=good.content | {twin: good.content[case][:12] + "ffff"})
    finding = only(check_split(copied), "duplicate_content")
    assert (finding.level, set(finding.cases)) == ("fault", {case, twin})


def test_duplicates_inside_training_are_no_leak(good: Split) -> None:
    first, second = good.fractions[1.0][:2]
    assert check_split(replace(good, content=good.content | {first: good.content[second]})) == []


def test_a_labeled_set_without_foreground(good: Split, catalog: Catalog) -> None:
    pool = good.fractions[1.0]
    empty = tuple(i for i in pool if catalog.facts[i].foreground == 0.0)[:2]
    finding = only(check_split(replace(good, fractions={0.1: empty, 1.0: pool}), catalog), "no_positive")
    assert (finding.level, finding.cases) == ("fault", empty)
    assert "the pool has some" in finding.message


def test_a_pool_without_foreground_is_one_fault() -> None:
    catalog = make_catalog([0.0] * 12)
    findings = check_split(make_split(catalog, [0.5]), catalog)
    assert problems(findings) == [("no_positive", "fault")]


def test_a_group_file_that_came_later_counts() -> None:
    catalog = make_catalog([0.1, 0.2, 0.3, 0.4] * 3)
    split = make_split(catalog, [0.5])
    assert not problems(check_split(split, catalog))
    torn = (split.fractions[1.0][0], split.val[0])
    cases = tuple(replace(c, group="patient") if c.id in torn else c for c in catalog.cases)
    finding = only(check_split(split, replace(catalog, cases=cases)), "group_straddles")
    assert (finding.level, set(finding.cases)) == ("fault", set(torn))


def test_copies_are_seen_in_a_split_without_contents() -> None:
    catalog = make_catalog([0.1, 0.2, 0.3, 0.4] * 3)
    split = make_split(catalog, [0.5])
    first, second = split.fractions[1.0][0], split.test[0]
    facts = dict(catalog.facts) | {second: replace(catalog.facts[second], content=catalog.facts[first].content)}
    finding = only(check_split(replace(split, content={}), replace(catalog, facts=facts)), "duplicate_content")
    assert (finding.level, set(finding.cases)) == ("fault", {first, second})


def test_cases_that_are_gone(good: Split, catalog: Catalog) -> None:
    gone = good.val[1]
    finding = only(
        check_split(good, replace(catalog, facts={i: f for i, f in catalog.facts.items() if i != gone})), "missing_case"
    )
    assert (finding.level, finding.cases) == ("fault", (gone,))


@pytest.mark.parametrize("part", ["val", "test", "unlabeled"])
def test_files_that_changed(good: Split, catalog: Catalog, part: str) -> None:
    changed = getattr(good, part)[0]
    facts = dict(catalog.facts) | {changed: replace(catalog.facts[changed], content="f" * 16)}
    finding = only(check_split(good, replace(catalog, facts=facts)), "changed_content")
    assert (finding.level, finding.cases) == ("fault", (changed,))
    assert "different image" in finding.message
    assert check_split(good) == []


def test_masks_that_were_corrected(good: Split, catalog: Catalog) -> None:
    """The image is the same, so the message speaks of its mask."""
    changed = good.val[0]
    corrected = replace(catalog.facts[changed], content=good.content[changed][:12] + "abcd")
    finding = only(
        check_split(good, replace(catalog, facts=dict(catalog.facts) | {changed: corrected})), "changed_content"
    )
    assert (finding.level, finding.cases) == ("fault", (changed,))
    assert "different mask" in finding.message
    assert "--allow-split" in finding.message


# --- images that are nearly the same --------------------------------------------------------------------------------


@pytest.fixture
def single() -> Catalog:
    """40 labeled and 4 unlabeled cases without groups."""
    return make_catalog([*spread(40), None, None, None, None])


@pytest.mark.parametrize(
    ("first", "second", "level"),
    [
        ("labeled", "val", "fault"),
        ("labeled", "test", "fault"),
        ("val", "test", "fault"),
        ("unlabeled", "val", "warn"),
        ("unlabeled", "test", "warn"),
        ("labeled", "unlabeled", None),
        ("labeled", "labeled", None),
    ],
)
def test_nearly_the_same_image_in_two_lists(single: Catalog, first: str, second: str, level: str | None) -> None:
    split = make_split(single, [0.1])
    lists = {"labeled": split.fractions[1.0], "unlabeled": split.unlabeled, "val": split.val, "test": split.test}
    one, other = lists[first][0], lists[second][-1]
    findings = check_split(split, add_images(single, {other: one}))
    if level is None:
        assert {code for code, _ in problems(findings)} <= CHANCE
    else:
        finding = only(findings, "near_duplicate")
        assert (finding.level, set(finding.cases)) == (level, {one, other})
    # An exact copy has a rule of its own.
    exact = replace(split, content=split.content | {other: split.content[one]})
    facts = dict(single.facts) | {other: replace(single.facts[other], content=single.facts[one].content)}
    found = check_split(exact, add_images(replace(single, facts=facts), {other: one}))
    assert "near_duplicate" not in {f.code for f in found}


def test_alike_images_in_two_parts(single: Catalog) -> None:
    """Two scans of one patient: alike, but no copies; among images that have nothing to do with each other."""
    split = make_split(single, [0.1])
    catalog = add_images(single)
    one, other, third = split.fractions[1.0][0], split.test[0], split.unlabeled[0]
    for twin, expected in ((other, True), (third, False)):
        facts = dict(catalog.facts)
        noise = np.random.default_rng(1).normal(0, 6, (32, 32))
        shown = facts[one].appearance
        facts[twin] = replace(facts[twin], appearance=replace(shown, thumbnail=shown.thumbnail + noise))
        found = [f for f in check_split(split, replace(catalog, facts=facts)) if f.code == "alike_across_parts"]
        assert bool(found) == expected
        if found:
            assert (found[0].level, set(found[0].cases)) == ("warn", {one, twin})


@pytest.mark.parametrize("pairs", [1, 99, 100, 101, 300])
def test_alike_images_in_two_parts_are_all_counted(pairs: int) -> None:
    """A warning does not vanish where there are many, and pairs of one part do not crowd the others out."""
    catalog = add_images(make_catalog(spread(2 * pairs + 40)))
    ids = [c.id for c in catalog.cases]
    train, test, rest = ids[:pairs], ids[pairs : 2 * pairs], ids[2 * pairs :]
    facts, rng = dict(catalog.facts), np.random.default_rng(1)
    for source, twin, spread_of_noise in [*zip(train, test, [9] * pairs, strict=True), (rest[0], rest[1], 8)]:
        shown = facts[source].appearance
        thumbnail = shown.thumbnail + rng.normal(0, spread_of_noise, (32, 32))
        facts[twin] = replace(facts[twin], appearance=replace(shown, thumbnail=thumbnail))
    split = make_split(catalog, [0.5])
    split = replace(split, fractions={1.0: (*train, *rest)}, unlabeled=(), val=(), test=tuple(test))
    (finding,) = (f for f in check_split(split, replace(catalog, facts=facts)) if f.code == "alike_across_parts")
    assert finding.level == "warn"
    assert finding.message.startswith(f"{counted(pairs, 'pair', 'of alike images are')} in different parts")
    assert len(finding.cases) == 2 * min(pairs, 100)
    assert ("all look alike" in finding.message) == (pairs > 100)


def test_an_alike_pair_above_the_limit_of_plain_copies_is_not_lost(single: Catalog) -> None:
    """Where all images are alike, two may correlate by more than 0.97 and still be no copies."""
    split = make_split(single, [0.1])
    lamp = np.random.default_rng(0).normal(0, 25, (32, 32))
    facts = dict(add_images(single).facts)
    for case_id, known in facts.items():
        shown = replace(known.appearance, thumbnail=known.appearance.thumbnail / 4 + lamp)
        facts[case_id] = replace(known, appearance=shown)
    one, other = split.fractions[1.0][0], split.test[0]
    noise = np.random.default_rng(1).normal(0, 3, (32, 32))
    shown = facts[one].appearance
    facts[other] = replace(facts[other], appearance=replace(shown, thumbnail=shown.thumbnail + noise))
    correlation = np.corrcoef(shown.thumbnail.ravel(), facts[other].appearance.thumbnail.ravel())[0, 1]
    assert correlation > 0.97
    codes = {f.code: f for f in check_split(split, replace(add_images(single), facts=facts))}
    assert "near_duplicate" not in codes
    assert set(codes["alike_across_parts"].cases) == {one, other}


# --- classes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def classy(single: Catalog) -> Catalog:
    """Class 1 everywhere, class 2 in every fifth case."""
    return add_classes(single, [{1, 2} if n % 5 == 0 else {1} for n in range(40)])


def test_a_labeled_set_that_lacks_a_class(classy: Catalog) -> None:
    split = make_split(classy, [0.1])
    assert "class_missing" not in {f.code for f in check_split(split, classy)}
    pool = split.fractions[1.0]
    bare = tuple(i for i in pool if 2 not in classy.facts[i].values)[:3]
    finding = only(check_split(replace(split, fractions={0.1: bare, 1.0: pool}), classy), "class_missing")
    assert (finding.level, finding.cases) == ("fault", bare)
    assert "label value 2, although 1 case" in finding.message


def test_a_set_too_small_for_all_classes_only_warns(single: Catalog) -> None:
    catalog = add_classes(single, [{1 + n % 3} for n in range(40)])
    split = make_split(catalog, [0.08])
    assert len(split.fractions[0.08]) == 2
    finding = only(check_split(split, catalog), "class_missing")
    assert (finding.level, finding.cases) == ("warn", split.fractions[0.08])
    assert "too few" in finding.message


@pytest.mark.parametrize("part", ["val", "test", "pool"])
def test_a_part_that_lacks_a_class(classy: Catalog, part: str) -> None:
    split = make_split(classy, [])
    ids = split.fractions[1.0] if part == "pool" else getattr(split, part)
    facts = {i: replace(f, values=(0, 1)) if i in ids else f for i, f in classy.facts.items()}
    finding = only(check_split(split, replace(classy, facts=facts)), "class_missing")
    assert (finding.level, finding.cases) == ("warn", ids)
    assert ("cannot be learned" in finding.message) == (part == "pool")


# --- prevalence -----------------------------------------------------------------------------------------------------


def choose_mean(catalog: Catalog, pool: tuple[str, ...], number: int, mean: float, seed: int) -> tuple[str, ...]:
    """Random cases of the pool with this mean foreground, by exchanging cases until it is met."""
    rng = np.random.default_rng(seed)
    foreground = {i: catalog.facts[i].foreground or 0.0 for i in pool}
    order = rng.permutation(list(pool)).tolist()
    for _ in range(20000):
        gap = mean - np.mean([foreground[i] for i in order[:number]])
        if abs(gap) < 0.005:
            break
        a, b = rng.integers(number), rng.integers(number, len(pool))
        if 0 < (foreground[order[b]] - foreground[order[a]]) / number / gap < 1:
            order[a], order[b] = order[b], order[a]
    return tuple(order)


def plant(catalog: Catalog, split: Split, mean: float, seed: int = 0, fraction: float = 0.1) -> Split:
    order = choose_mean(catalog, split.fractions[1.0], len(split.fractions[fraction]), mean, seed)
    return replace(split, fractions={fraction: order[: len(split.fractions[fraction])], 1.0: order})


@pytest.fixture(scope="module")
def wide() -> Catalog:
    """370 cases with mean foreground 1/3 and standard deviation 0.25, as the micrographs have."""
    return make_catalog(list(np.random.default_rng(0).beta(0.85, 1.7, 370)))


@pytest.mark.parametrize("seed", range(5))
def test_a_labeled_set_of_half_foreground_against_a_third_is_a_fault(wide: Catalog, seed: int) -> None:
    split = make_split(wide, [0.1], seed=seed)
    assert "prevalence_bias" not in {f.code for f in check_split(split, wide)}
    for mean in (0.5, 0.16):
        finding = only(check_split(plant(wide, split, mean, seed), wide), "prevalence_bias")
        assert (finding.level, len(finding.cases)) == ("fault", 24)
        assert (", +" in finding.message) == (mean > 1 / 3)


def test_a_rare_mean_that_does_not_matter_is_no_bias() -> None:
    """All cases within 2 % of each other: a set of the largest is far out, and harmless."""
    catalog = make_catalog([0.5 + 0.0001 * n for n in range(100)])
    split = make_split(catalog, [0.1])
    biased = plant(catalog, split, 0.6)
    (measures, *_) = measure_split(biased, catalog)
    assert measures.foreground.percentile > 99.5
    assert {code for code, _ in problems(check_split(biased, catalog))} == {"foreground_shift"}


@pytest.mark.parametrize("part", ["val", "test"])
def test_validation_and_test_off_are_only_a_warning(wide: Catalog, part: str) -> None:
    split = make_split(wide, [], val_fraction=0.1, test_fraction=0.1)
    ids = sorted(ids_of(split), key=lambda i: wide.facts[i].foreground or 0.0)
    size = len(getattr(split, part))
    rest = tuple(i for i in ids[:-size] if i not in getattr(split, "test" if part == "val" else "val"))
    moved = replace(split, **{part: tuple(ids[-size:])}, fractions={1.0: rest})
    other = "test" if part == "val" else "val"
    moved = replace(moved, **{other: tuple(i for i in getattr(split, other) if i not in ids[-size:])})
    found = [f for f in check_split(moved, wide) if f.code == "prevalence_bias"]
    assert {f.level for f in found} == {"warn"}
    assert any(f"foreground of {part}" in f.message for f in found)


def test_of_three_cases_nothing_is_told_but_their_interval(wide: Catalog) -> None:
    split = make_split(wide, [0.01])
    assert len(split.fractions[0.01]) == 2
    extreme = tuple(sorted(split.fractions[1.0], key=lambda i: -(wide.facts[i].foreground or 0.0))[:3])
    rest = tuple(i for i in split.fractions[1.0] if i not in extreme)
    findings = check_split(replace(split, fractions={0.01: extreme, 1.0: extreme + rest}), wide)
    assert [(f.code, f.level) for f in findings] == [("small_set", "info")]
    assert "95 % interval" in findings[0].message


def test_too_many_positives_are_a_bias_of_their_own() -> None:
    """A fifth of 400 masks have foreground, all the same: a set with three fifths of them is biased."""
    catalog = make_catalog([0.2 if n % 5 == 0 else 0.0 for n in range(400)])
    split = make_split(catalog, [0.1])
    assert "prevalence_bias" not in {f.code for f in check_split(split, catalog)}
    findings = check_split(plant(catalog, split, 0.12), catalog)
    found = [f.message for f in findings if f.code == "prevalence_bias"]
    assert len(found) == 2
    assert any("share of cases with foreground" in message for message in found)


@pytest.mark.parametrize("positives", [3, 10, 80])
def test_the_one_positive_case_that_is_promised_is_no_bias(positives: int) -> None:
    catalog = make_catalog([0.3 if n < positives else 0.0 for n in range(400)])
    for seed in range(5):
        findings = check_split(make_split(catalog, [0.02, 0.1], seed=seed), catalog)
        assert not [f for f in findings if f.level == "fault"]


def test_splits_of_many_classes_pass_too() -> None:
    rng = np.random.default_rng(0)
    present = rng.random((300, 8)) < [0.6, *[0.03] * 7]
    foreground = np.clip(present @ [0.05, *[0.3] * 7], 0, 0.95)
    catalog = make_catalog(foreground.tolist())
    catalog = add_classes(catalog, [{1 + k for k in np.flatnonzero(row)} for row in present])
    for seed in range(10):
        findings = check_split(make_split(catalog, [0.02, 0.1], seed=seed), catalog)
        assert not [f for f in findings if f.level == "fault"]


# --- shifts, groups and the summary ---------------------------------------------------------------------------------


def test_a_labeled_set_with_other_intensities(wide: Catalog) -> None:
    split = make_split(wide, [0.1])
    dark = dict.fromkeys(split.fractions[0.1], -1.0)
    means = {i: float(n % 7) for n, i in enumerate(wide.facts)} | dark
    findings = check_split(split, add_images(wide, means=means))
    found = [f for f in findings if f.code == "intensity_shift"]
    assert [(f.level, f.cases) for f in found] == [("warn", split.fractions[0.1])]
    even = add_images(wide, means={i: float(n % 7) for n, i in enumerate(wide.facts)})
    assert split.fractions[0.1] not in [f.cases for f in check_split(split, even) if f.code == "intensity_shift"]


def test_a_labeled_set_without_the_extremes_has_shifted_though_its_mean_has_not(wide: Catalog) -> None:
    split = make_split(wide, [0.1])
    pool = sorted(split.fractions[1.0], key=lambda i: abs((wide.facts[i].foreground or 0.0) - 1 / 3))
    narrow = replace(split, fractions={0.1: tuple(pool[:24]), 1.0: tuple(pool)})
    finding = only_shift(check_split(narrow, wide))
    assert (finding.level, finding.cases) == ("warn", tuple(pool[:24]))


def only_shift(findings: list[Finding]) -> Finding:
    (finding,) = (f for f in findings if f.level != "info")
    assert finding.code == "foreground_shift"
    return finding


def test_few_effective_groups_are_said(catalog: Catalog) -> None:
    one_big = make_catalog(spread(60), [f"g{n // 10}" for n in range(60)])
    split = make_split(one_big, [])
    found = [f for f in check_split(split, one_big) if f.code == "few_groups"]
    assert {f.level for f in found} == {"warn"}
    assert [f.cases for f in found] == [split.val, split.test]
    assert all("use --folds" in f.message for f in found)
    folds = check_split(replace(split, folds=3, fold=0), one_big)
    assert not any("use --folds" in f.message for f in folds)
    info = next(f for f in check_split(split, one_big) if f.code == "effective_groups")
    assert "val 1.0 (10 cases)" in info.message
    ungrouped = make_catalog(spread(20))
    assert not [f for f in check_split(make_split(ungrouped, []), ungrouped) if "groups" in f.code]


def test_the_summary_is_json_and_holds_the_figures_of_each_set(good: Split, catalog: Catalog) -> None:
    images = add_images(catalog)
    measures = measure_split(good, images)
    findings = check_split(good, images, measures)
    assert findings == check_split(good, images)
    summary = json.loads(json.dumps(summarize_split(good, findings, measures), allow_nan=False))
    assert summary["fingerprint"] == good.fingerprint
    assert summary["findings"] == len(findings)
    assert list(summary["sets"]) == ["labels 0.1", "labels 0.5", "labels 1", "val", "test"]
    entry = summary["sets"]["labels 0.5"]
    ids = good.fractions[0.5]
    own = [catalog.facts[i].foreground or 0.0 for i in ids]
    pool = [catalog.facts[i].foreground or 0.0 for i in good.fractions[1.0]]
    assert (entry["n"], entry["positives"]) == (len(ids), sum(f > 0 for f in own))
    assert entry["foreground"]["mean"] == pytest.approx(np.mean(own))
    assert entry["foreground"]["bias"] == pytest.approx(np.mean(own) - np.mean(pool))
    assert entry["positive_share"]["mean"] == pytest.approx(np.mean(np.array(own) > 0))
    assert entry["intensity"] is not None


def test_cases_unknown_to_the_catalog_are_not_measured(good: Split, catalog: Catalog) -> None:
    facts = {i: f for i, f in catalog.facts.items() if i not in good.val}
    assert [m.name for m in measure_split(good, replace(catalog, facts=facts))] == [
        "labels 0.1",
        "labels 0.5",
        "labels 1",
        "test",
    ]
    nothing = replace(catalog, facts={})
    assert [f.code for f in check_split(good, nothing)] == ["missing_case"]
    assert measure_split(good, nothing) == ()


@pytest.mark.parametrize("name", ["emps", "la_half"])
def test_splits_of_real_images_pass_and_planted_bias_does_not(name: str, request: pytest.FixtureRequest) -> None:
    catalog = open_catalog(str(request.getfixturevalue(f"{name}_dir")))
    for seed in range(10):
        split = make_split(catalog, [0.01, 0.1], seed=seed)
        assert not [f for f in check_split(split, catalog) if f.level == "fault"]
    pool = np.mean([catalog.facts[i].foreground for i in split.fractions[1.0]])
    assert "prevalence_bias" in {f.code for f in check_split(plant(catalog, split, 1.5 * pool), catalog)}


@pytest.mark.parametrize(("count", "warned"), [(1, True), (9, True), (10, False), (30, False)])
def test_a_few_validation_cases_ask_for_folds(count: int, warned: bool) -> None:
    ids = tuple(f"v{n}" for n in range(count))
    split = Split("d", 0, {1.0: ("a", "b")}, (), ids, (), {}, {}, ())
    assert problems(check_split(split)) == [("few_validation", "warn")] * warned
    for finding in check_split(split):
        assert f"{counted(count, 'case')}" in finding.message
        assert "--folds" in finding.message
    assert check_split(replace(split, folds=3, fold=0)) == []


# --- blank images ---------------------------------------------------------------------------------------------------


def test_blank_images_of_all_patients_tie_nothing(tmp_path: Path) -> None:
    """Twelve patients with a black image each: twelve groups and not one."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for n in range(72):
        image = np.zeros((32, 32), np.uint8) if n % 6 == 0 else rng.integers(0, 256, (32, 32)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / f"p{n // 6:02d}_t{n % 6}.png"), image)
        cv2.imwrite(str(tmp_path / "masks" / f"p{n // 6:02d}_t{n % 6}.png"), (image > 128).astype(np.uint8))
    rows = [f"p{n // 6:02d}_t{n % 6},patient{n // 6}" for n in range(72)]
    (tmp_path / "groups.csv").write_text("\n".join(["name,group", *rows]) + "\n")
    catalog = open_catalog(str(tmp_path))
    split = make_split(catalog, [0.5])
    assert len(split.val) in (6, 12, 18)
    assert len(split.test) in (6, 12, 18)
    assert not [f for f in check_split(split, catalog) if f.level == "fault"]
    assert not [f for f in check_split(split) if f.level == "fault"], "also where the images are not at hand"
    assert len(split.image_contents(split.content)) == 60
    assert {f.code for f in find_copies_in(catalog)} == set()


def find_copies_in(catalog: Catalog) -> list[Finding]:
    groups = {case.id: case.group or case.id for case in catalog.cases}
    return list(check_copies(find_copies(catalog.facts, groups), catalog.facts, groups))


def test_near_copies_may_be_ignored(single: Catalog) -> None:
    split = make_split(single, [0.1])
    catalog = add_images(single, {split.test[0]: split.fractions[1.0][0]})
    finding = only(check_split(split, catalog, near_copies="ignore"), "near_duplicate")
    assert finding.level == "warn"
    assert make_split(catalog, [0.1], near_copies="ignore").test == split.test
