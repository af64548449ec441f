"""Copies are told apart: exact or near, within a group or across, with one mask or with several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from ssl_seg.data.audit.checks import check_conflicting_masks
from ssl_seg.data.audit.doctor import check_copies, find_copies
from ssl_seg.data.content import make_content
from ssl_seg.data.duplicates import Likeness
from ssl_seg.data.facts import Appearance, CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.errors import counted


def fact(image: int, mask: int | None = 0, *, seed: int | None = None, mix: float = 0.0) -> CaseFacts:
    """Facts of image number ``image``, which looks like image ``seed`` to some extent."""
    own = np.random.default_rng(image).normal(size=(32, 32))
    like = np.random.default_rng(image if seed is None else seed).normal(size=(32, 32))
    look = Appearance(0, 255, 100, 30, 0.01, 0.01, (like + mix * own).astype(np.float32))
    content = f"{image:012x}" + ("0000" if mask is None else f"{mask:04x}")
    values = None if mask is None else (0, 1)
    return CaseFacts((64, 64), 1, "uint8", values, None if mask is None else 0.3, content, appearance=look)


@pytest.fixture
def others() -> dict[str, CaseFacts]:
    """Images that look like nothing else."""
    return {f"other{n}": fact(100 + n) for n in range(8)}


def found(facts: Mapping[str, CaseFacts], groups: Mapping[str, str] | None = None) -> dict[str, Finding]:
    copies = check_copies(find_copies(facts, groups or {}), facts, groups or {})
    findings = [*check_conflicting_masks(facts), *copies]
    assert len({f.code for f in findings}) == len(findings)
    return {f.code: f for f in findings}


def grouped(facts: Mapping[str, CaseFacts], **group: str) -> dict[str, str]:
    return {i: group.get(i, i) for i in facts}


def levels(findings: Mapping[str, Finding]) -> dict[str, str]:
    return {code: f.level for code, f in findings.items()}


def test_no_copies(others: dict[str, CaseFacts]) -> None:
    assert find_copies(others, {}) == Likeness()
    assert found(others) == {}
    assert found({}) == {}


def test_exact_copies_weigh_double(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1, 7), **others, "b": fact(1, 7), "c": fact(1, None)}
    findings = found(facts)
    assert levels(findings) == {"duplicate_image": "warn"}, "not reported again as near copies"
    assert findings["duplicate_image"].cases == ("a", "b", "c")
    assert "a = b = c" in findings["duplicate_image"].message
    same_group = found(facts, grouped(facts, a="g", b="g", c="g"))
    assert levels(same_group) == {"duplicate_image": "warn"}


def test_exact_copies_in_different_groups(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1), "b": fact(1), **others}
    findings = found(facts, grouped(facts))
    assert levels(findings) == {"duplicate_across_groups": "fault"}
    assert findings["duplicate_across_groups"].cases == ("a", "b")


def test_exact_copies_in_folders_that_are_the_split(others: dict[str, CaseFacts]) -> None:
    facts = {"train/a": fact(1), "val/b": fact(1), "train/c": fact(2), "train/d": fact(2), **others}
    findings = found(facts)
    assert levels(findings) == {"duplicate_across_parts": "warn", "duplicate_image": "warn"}
    assert findings["duplicate_across_parts"].cases == ("train/a", "val/b")
    assert findings["duplicate_image"].cases == ("train/c", "train/d")
    facts["val/b"] = fact(1, None)  # unlabeled images of val/ are left out of a split
    assert levels(found(facts)) == {"duplicate_image": "warn"}


def test_copies_with_different_masks(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1, 7), "b": fact(1, 8), "c": fact(2, 9), "d": fact(2, 9), **others}
    findings = found(facts)
    assert levels(findings) == {"conflicting_masks": "fault", "duplicate_image": "warn"}
    assert findings["conflicting_masks"].cases == ("a", "b")
    assert findings["duplicate_image"].cases == ("c", "d")
    blank = {n: make_content("0" * 12, f"{n}" * 4, constant=True) for n in "12"}
    assert found({n: replace(fact(1), content=content) for n, content in blank.items()} | others) == {}


def test_near_copies(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1), "b": fact(2, seed=1, mix=0.1), **others}
    findings = found(facts)
    assert levels(findings) == {"near_duplicate": "warn"}
    assert findings["near_duplicate"].cases == ("a", "b")
    assert "groups.csv" in findings["near_duplicate"].message
    assert levels(found(facts, grouped(facts))) == {"near_duplicate_across_groups": "warn"}
    assert levels(found(facts, grouped(facts, a="g", b="g"))) == {"near_duplicate": "info"}


def test_an_exact_copy_beside_a_near_one(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1), "b": fact(1), "c": fact(2, seed=1, mix=0.1), **others}
    findings = found(facts)
    assert levels(findings) == {"duplicate_image": "warn", "near_duplicate": "warn"}
    assert findings["near_duplicate"].cases == ("a", "b", "c")


def test_alike_images_are_only_mentioned(others: dict[str, CaseFacts]) -> None:
    facts = {"a": fact(1), "b": fact(2, seed=1, mix=0.45), **others}
    findings = found(facts)
    assert levels(findings) == {"alike_images": "info"}
    assert findings["alike_images"].cases == ("a", "b")
    assert "a ~ b 0.75" in findings["alike_images"].message
    assert found(facts, grouped(facts, a="g", b="g")) == {}, "as it should be"
    assert levels(found(facts, grouped(facts))) == {"alike_images": "info"}


def test_constant_images_are_no_copies(others: dict[str, CaseFacts]) -> None:
    blank = replace(fact(1), content=make_content("12" * 32, "34" * 32, constant=True))
    assert found({"a": blank, "b": blank, **others}) == {}


def test_a_crowd_is_a_warning_with_its_images(others: dict[str, CaseFacts]) -> None:
    facts = {f"c{n}": fact(1000 + n, seed=1, mix=0.02) for n in range(9)} | others
    findings = found(facts)
    assert levels(findings) == {"alike_crowd": "warn"}
    assert set(findings["alike_crowd"].cases) == {f"c{n}" for n in range(9)}


def test_without_a_look_at_the_images_exact_copies_are_found() -> None:
    facts = {i: replace(fact(1), appearance=None) for i in "ab"}
    assert levels(found(facts)) == {"duplicate_image": "warn"}


def test_many_sets_are_shortened_in_the_message_and_complete_in_the_cases() -> None:
    facts = {f"{letter}{n}": fact(n) for n in range(5) for letter in "abcd"}
    finding = found(facts)["duplicate_image"]
    assert len(finding.cases) == 20
    assert "20 cases in 5 sets" in finding.message
    assert "a0 = b0 = c0 = ... (1 more); a1 = b1" in finding.message
    assert finding.message.count("a4") == 0


@pytest.mark.parametrize("kept", [99, 100, 101])
def test_many_alike_pairs_are_all_counted(kept: int) -> None:
    """Pairs within a group are no news: they neither count nor take the place of others."""
    facts = {
        f"{n:03d}{letter}": fact(n + 1000 * (letter == "b"), seed=n, mix=0.4) for n in range(kept) for letter in "ab"
    }
    facts |= {f"scan{n}": fact(5000 + n, seed=4000, mix=0.3) for n in range(30)}
    groups = grouped(facts, **{f"scan{n}": "one patient" for n in range(30)})
    copies = find_copies(facts, groups)
    assert {(p.first, p.second) for p in copies.pairs} == {(f"{n:03d}a", f"{n:03d}b") for n in range(kept)}
    finding = found(facts, groups)["alike_images"]
    assert finding.message.startswith(f"{counted(kept, 'pair', 'of images are')} very similar")
    assert f"; ... ({kept - 3} more)" in finding.message
