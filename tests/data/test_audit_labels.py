"""Label values that make no sense are named with their masks, and what is suggested makes them usable."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_seg.config.layers import check_partial, merge_layers, parse_override
from ssl_seg.data.audit.labels import (
    Masks,
    check_class_presence,
    check_unexpected_values,
    find_label_values,
)
from ssl_seg.data.findings import Finding
from ssl_seg.labels import infer_label_values


def masks(*values: Sequence[int]) -> Masks:
    """Masks ``0``, ``1``, ... with these values."""
    return {str(n): frozenset(v) for n, v in enumerate(values)}


def unexpected(found: Masks, declared: Sequence[int] | None = None) -> Finding | None:
    findings = list(check_unexpected_values(found, declared))
    assert len(findings) <= 1
    assert all((f.code, f.level) == ("unexpected_values", "fault") for f in findings)
    return findings[0] if findings else None


@pytest.mark.parametrize(
    "found",
    [masks(), masks([0]), masks([0, 1]), masks([0, 255], [255]), masks([0, 1], [0, 3], [2]), masks([0], [255], [0])],
)
def test_values_that_make_sense(found: Masks) -> None:
    assert unexpected(found) is None


CASES = {
    "255 in a binary set": ([*[[0, 1]] * 9, [0, 255]], ["9"], {"label_map": {"255": 1}}, "ignore_value=255"),
    "1 in a set of 0/255": ([*[[0, 255]] * 9, [0, 1], [1]], ["9", "10"], {"label_map": {"1": 255}}, None),
    "half 0/1, half 0/255": ([[0, 1], [0, 255]] * 3, ["1", "3", "5"], {"label_map": {"255": 1}}, "ignore_value=255"),
    "255 beside the classes": ([*[[0, 1, 2]] * 4, [0, 2, 255]], ["4"], {"ignore_value": 255}, "[0, 1, 2, 255]"),
    "a class with a gap": ([*[[0, 1]] * 4, [0, 7]], ["4"], {"label_values": [0, 1, 7]}, None),
    "255 everywhere": ([[0, 1, 255]] * 3, ["0", "1", "2"], {"ignore_value": 255}, "[0, 1, 255]"),
    "other values": ([[0, 128]] * 3, ["0", "1", "2"], {"label_values": [0, 128]}, None),
    "no 0 at all": ([[100, 200]] * 3, ["0", "1", "2"], {"label_values": [100, 200]}, None),
    "255 and no 0": ([[1, 255]] * 3, ["0", "1", "2"], {"ignore_value": 255}, "[1, 255]"),
    "negative ones": ([[-1, 0, 1]] * 3, ["0", "1", "2"], {"ignore_value": -1}, "label_map={-1: 0}"),
}


@pytest.mark.parametrize(("values", "named", "suggested", "also"), CASES.values(), ids=CASES)
def test_what_is_suggested_can_be_typed_and_helps(
    values: list[list[int]], named: list[str], suggested: dict[str, object], also: str | None
) -> None:
    finding = unexpected(masks(*values))
    assert finding is not None
    assert list(finding.cases) == named
    assert also is None or also in finding.message
    typed = re.search(r"--set '?(data\.[a-z_]+=(?:\{.*?\}|\[.*?\]|-?\d+))", finding.message)
    assert typed is not None
    layers = [parse_override(typed[1])]
    check_partial(merge_layers(layers))
    data = merge_layers(layers)[0]["data"]
    assert data == suggested
    mapping = {int(old): new for old, new in data.get("label_map", {}).items()}
    helped = masks(*([mapping.get(x, x) for x in v if x != data.get("ignore_value")] for v in values))
    assert unexpected(helped, data.get("label_values")) is None


def test_values_with_gaps_may_number_objects() -> None:
    finding = unexpected(masks(*[[0, *range(7, 97, 9)]] * 3))
    assert finding is not None
    assert "--set data.mask=instances. If not, values map to classes" in finding.message
    assert "data.label_values=[0, 7, 16, 25," in finding.message


def test_smoothed_masks_among_good_ones_are_named() -> None:
    finding = unexpected(masks([0, 255], range(0, 256, 10), [0, 255], [0, 255]))
    assert finding is not None
    assert finding.cases == ("1",)
    assert finding.message.startswith("1 mask of 4 holds values {10, 20, 30, 40, 50, 60, 70, 80, ... (17 more)}")
    assert "interpolation: threshold these masks again" in finding.message


@pytest.mark.parametrize("count", [3, 40])
def test_masks_that_number_objects_beside_two_declared_values(count: int) -> None:
    """What lies above all label values comes from no interpolation, and no network of two classes takes more."""
    finding = unexpected(masks(*[range(count + 1)] * 4), [0, 1])
    assert finding is not None
    assert "If they number objects, type --set data.mask=instances" in finding.message
    assert "interpolation" not in finding.message


def test_gray_values_in_all_masks_are_no_classes() -> None:
    finding = unexpected(masks(*(range(0, 200, 3) for _ in range(4))))
    assert finding is not None
    assert "--set data.mask=binary" in finding.message


def test_empty_masks_do_not_decide_what_is_usual() -> None:
    finding = unexpected(masks(*[[0]] * 40, [0, 255], [0, 255], [0, 1]))
    assert finding is not None
    assert finding.cases == ("42",)
    finding = unexpected(masks(*[[0]] * 40, [0, 3], [0, 3], [0, 1]))
    assert finding is not None
    assert finding.message.startswith("mask values {0, 1, 3} are neither")


def test_a_value_of_one_mask_is_not_usual() -> None:
    finding = unexpected(masks(*[[0, 1]] * 4, [0, 2, 9]))
    assert finding is not None
    assert "values {2, 9}, the others only {0, 1}" in finding.message


def test_the_masks_with_the_rarest_values_are_named() -> None:
    finding = unexpected(masks(*[[0, 3, 9]] * 5, [0, 3, 9, 40], [0, 3, 50], [3, 60]))
    assert finding is not None
    assert finding.cases == ("5", "6", "7")


def test_declared_values_hold_whatever_most_masks_have() -> None:
    finding = unexpected(masks([0, 1], [0, 2], [0, 1]), [0, 2])
    assert finding is not None
    assert finding.cases == ("0", "2")
    assert "{1}, which are not among the label values {0, 2}" in finding.message
    assert unexpected(masks([0, 9], [0]), [0, 9]) is None


@given(st.lists(st.sets(st.sampled_from([0, 1, 2, 3, 128, 255]), min_size=1), max_size=8))
def test_a_fault_is_found_exactly_where_values_cannot_be_inferred(values: list[set[int]]) -> None:
    found = masks(*(sorted(v) for v in values))
    union = {x for v in values for x in v} | {0}
    usable = union == {0, 255} or union == set(range(len(union)))
    assert (unexpected(found) is None) == usable
    if usable:
        assert find_label_values(found, None) == infer_label_values(union)
    else:
        named = unexpected(found)
        assert named is not None
        assert named.cases
        assert find_label_values(found, None)[0] == 0


def test_label_values_of_an_audit() -> None:
    assert find_label_values(masks([0, 1]), [0, 4]) == (0, 4)
    assert find_label_values(masks(*[[0, 1]] * 3, [0, 77]), None) == (0, 1)
    assert find_label_values(masks([0, 5], [0, 77]), None) == (0, 5, 77)
    assert find_label_values(masks(), None) == (0, 1)


def presence(found: Masks, label_values: Sequence[int]) -> list[tuple[str, tuple[str, ...]]]:
    findings = list(check_class_presence(found, label_values))
    assert all(f.level == "warn" for f in findings)
    return [(f.code, f.cases) for f in findings]


def test_classes_that_are_missing_or_rare() -> None:
    found = masks(*[[0, 1]] * 3, [0, 2], [0, 1, 2])
    assert presence(found, (0, 1)) == []
    assert presence(found, (0, 1, 2)) == [("rare_class", ("3", "4"))]
    assert presence(found, (0, 1, 3)) == [("absent_class", ())]
    assert presence(masks([0], [0]), (0, 1)) == [], "empty masks have a rule of their own"


def test_many_rare_classes_are_one_line() -> None:
    found = masks(*[[0, 1]] * 3, range(2, 40))
    (finding,) = check_class_presence(found, range(40))
    assert (finding.code, finding.cases) == ("rare_class", ("3",))
    assert "fewer than 3 masks: 2 (1 mask), 3 (1 mask)" in finding.message
    assert "... (30 more)" in finding.message
    (finding,) = check_class_presence(masks([0, 1], [0, 1], [0, 1]), range(40))
    assert finding.code == "absent_class"


@pytest.mark.parametrize("numbers", [1, 2, 3000])
def test_the_usual_values_of_masks_that_count_on(numbers: int) -> None:
    """By the definition: of the sets 0..n and {0, 255} the smallest that most masks fit into."""
    found = masks(range(numbers + 1), range(numbers // 2 + 1), range(numbers + 1), [0, 7000])
    finding = unexpected(found)
    assert finding is not None
    assert finding.cases == ("3",)
    assert find_label_values(found, None) == (tuple(range(numbers + 1)) if numbers < 32 else (0, 1))
