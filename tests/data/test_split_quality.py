"""Each breach that is planted in a good split is found, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_splits import make_catalog, spread

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.split_quality import SplitFinding, check_split
from ssl_seg.data.splits import Split, make_split


@pytest.fixture
def catalog() -> Catalog:
    """40 labeled cases, a quarter of them empty, in groups of two; 4 unlabeled ones."""
    foreground = [*(0.0 if n % 4 == 0 else v for n, v in enumerate(spread(40))), None, None, None, None]
    return make_catalog(foreground, [f"g{n // 2}" for n in range(44)])


@pytest.fixture
def good(catalog: Catalog) -> Split:
    return make_split(catalog, [0.1, 0.5], seed=1)


def problems(findings: list[SplitFinding]) -> list[tuple[str, str]]:
    return [(f.code, f.level) for f in findings if f.level != "info"]


def only(findings: list[SplitFinding], code: str) -> SplitFinding:
    assert {f.code for f in findings if f.level != "info"} == {code}
    return next(f for f in findings if f.code == code)


@pytest.mark.parametrize("seed", range(5))
def test_made_splits_are_good(catalog: Catalog, seed: int) -> None:
    split = make_split(catalog, [0.05, 0.1, 0.5], seed=seed)
    assert problems(check_split(split)) == []
    assert problems(check_split(split, catalog)) == []


def test_prevalence_is_reported_for_each_labeled_set(good: Split, catalog: Catalog) -> None:
    assert check_split(good) == []
    findings = check_split(good, catalog)
    assert [(f.code, f.level) for f in findings] == [("prevalence", "info")] * 2
    ids = good.fractions[0.1]
    mean = sum(catalog.facts[i].foreground or 0.0 for i in ids) / len(ids)
    assert f"labeled at 0.1: {mean:.3f}" in findings[0].message
    assert findings[0].cases == ids


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
    assert "although the pool has some" in finding.message


def test_a_pool_and_parts_without_foreground_only_warn() -> None:
    catalog = make_catalog([0.0] * 12)
    findings = check_split(make_split(catalog, [0.5]), catalog)
    assert problems(findings) == [("no_positive", "warn")] * 4


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
    assert check_split(good) == []
