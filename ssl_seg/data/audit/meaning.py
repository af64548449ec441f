"""Recognize what the values of masks mean, where nobody has said it: classes, numbers of objects, or gray steps.

Evidence is the connected parts of values, their size and place, and in how many masks each value is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.findings import Finding
from ssl_seg.data.mask_values import MaskScan
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.labels import MaskKind, Meaning

MANY_CLASSES = 32
"""More inferred classes than this are rather the numbers of objects, or gray values."""

_MOST_CLASSES = 256
"""More connected values than this are never classes."""

_POLE = 1 / 8
"""Part of the range, at its ends, that belongs to the two values of a mask that was resized or compressed."""
_LEAST_STEPS = 3
"""Values between them from which on they are steps; {0, 128, 255} may be three classes."""
_FULL_RANGES = (1.0, 255.0, 65535.0)
"""Largest values of probabilities and of gray images."""
_MOST_BETWEEN = (1, 4)
"""Voxels between the ends, for each one near the upper end; the second where there are regions, or where the largest
value is that of a full range: of discs of 10 voxels, halved and doubled, there are 2.5. Thin lines of five classes and
more have as many, and no regions."""
_THIN = 0.25
"""Share of voxels with equal neighbors: steps along an edge have less, regions of a class more."""

_GRAY = 0.4
"""Share of gray that JPG leaves in no mask of black and white, down to lines of two pixels at a quality of 50 (0.14);
small regions of three classes have 0.46 and more."""

_ONE_PART = 0.9
"""Share of a value's voxels in one connected part, and share of the values, from which on values number objects."""
_GAPS = 0.8
"""Share of the numbers from 1 to the largest one that must occur for them to be a count; half of it where larger
numbers are in fewer masks, by a rank correlation below minus this."""
_SAME_NUMBER = 0.6
"""Share of masks with the same number of values: classes reach it, numbered objects do not."""
_DEPENDS = 0.35
"""Share of the variance of size, or of place, that the value explains: much for classes, none for numbered objects."""
_NO_VARIANCE = 1e-12
"""Variance per object below which sizes and places are equal but for rounding errors."""
_SMALL_NUMBER = 500
"""Bound of object numbers that start anew in each class, behind its thousands; numbers that count on exceed it."""
_FEW = 3
"""Number of values up to which classes and objects 1..n look alike; with fewer masks nothing can be told."""


@dataclass(frozen=True)
class _ForegroundValues:
    """All foreground values of all masks, one entry for each value of a mask."""

    mask: NDArray[np.int64]
    value: NDArray[np.floating[Any]]
    count: NDArray[np.floating[Any]]
    part: NDArray[np.floating[Any]]
    solid: NDArray[np.floating[Any]]
    center: NDArray[np.floating[Any]]

    @property
    def regions(self) -> NDArray[np.floating[Any]]:
        """How solid each value is; the only one of a mask, where nobody looked, is a region."""
        return np.where(np.isfinite(self.solid), self.solid, 1.0)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """How many values each mask with foreground has."""
        return np.unique(self.mask, return_counts=True)[1]


def settle_meaning(
    scans: Mapping[str, MaskScan], given: Meaning, lossy: Collection[str] = ()
) -> tuple[Meaning, list[Finding]]:
    """Return what mask values mean, all but the label values of classes, and findings about it.

    Args:
        scans: scans of all masks that can be read.
        given: what somebody has said; that holds. With ``label_values``, ``label_map`` or 0 ignored, values are
            classes, unless it names another kind, or instances as the task.
        lossy: masks in files that do not keep values.
    """
    pool, kind, findings = _gather(scans, given.ignore_value), given.kind, list[Finding]()
    if given.task == "instances":
        kind, findings = "instances", list(_check_numbers(pool, given))
    if kind is None and given.threshold is not None:
        kind = "binary"
    if kind is None and (given.label_values or given.label_map or given.ignore_value == 0):
        kind = "semantic"
    if kind is None:
        kind, level, message = _recognize(pool, fractions=any(scan.fractions for scan in scans.values()))
        findings += [Finding("mask_kind", level, message)] * bool(message)
    meaning = replace(given, kind=kind)
    if meaning.takes_fractions:
        meaning = _settle_threshold(pool, meaning)
        findings += _check_threshold(pool, meaning, given, fractions=any(scan.fractions for scan in scans.values()))
    if kind == "instances":
        findings += _check_negative(pool, given)
    if kind != "semantic":
        if given.label_values is not None and len(given.label_values) != 2 and given.task == "semantic":
            raise DataError(
                f"data.mask={kind} has two classes, and data.label_values={list(given.label_values)}: give two, of the "
                "background first, or leave them out."
            )
        usual = (0, 255) if meaning.takes_fractions and pool.value.max(initial=0) == 255 else (0, 1)
        other = (0, 1) if usual == (0, 255) else (0, 255)
        planned = other if given.ignore_value in usual else usual
        if given.task == "instances":
            meaning = replace(meaning, label_values=planned)
            if given.label_values not in (None, planned, meaning.class_values):
                raise DataError(
                    f"data.task=instances learns background, inside and boundary of objects, and data.label_values="
                    f"{list(given.label_values)} are the values of classes: leave them out."
                )
        else:
            meaning = replace(meaning, label_values=given.label_values or planned)
    findings += _check_files(scans, meaning, lossy)
    if meaning.takes_fractions and given.kind is None and given.threshold is None:
        findings += _check_lossy(scans, lossy)
    return meaning, findings


def _gather(scans: Mapping[str, MaskScan], ignore_value: int | None) -> _ForegroundValues:
    found = [(n, scan, (scan.values != 0) & (scan.values != ignore_value)) for n, scan in enumerate(scans.values())]
    ndim = min((scan.center.shape[1] for scan in scans.values()), default=0)

    def join(name: str) -> NDArray[np.floating[Any]]:
        return np.concatenate([np.zeros(0), *(getattr(scan, name)[rows] for _, scan, rows in found)])

    return _ForegroundValues(
        np.repeat([n for n, _, _ in found], [rows.sum() for _, _, rows in found]).astype(np.int64),
        join("values"),
        join("counts"),
        join("part"),
        join("solid"),
        np.concatenate([np.zeros((0, ndim)), *(scan.center[rows, :ndim] for _, scan, rows in found)]),
    )


def _recognize(pool: _ForegroundValues, *, fractions: bool) -> tuple[MaskKind, Any, str]:
    """Return the kind, and the level and text of a finding about it."""
    different = np.unique(pool.value)
    top = float(different[-1]) if len(different) else 0.0
    if len(different) > 1 and _are_steps(pool, top):
        kind: MaskKind = "probability" if fractions and top <= 1 else "binary"
        text = (
            f"the masks hold gray steps between 0 and {top:g} (resized, compressed, or probabilities): those above "
            f"{top / 2 if kind == 'binary' else 0.5:g} are foreground. data.threshold moves the cut; "
            "data.mask=semantic takes values as classes"
        )
        return kind, "info", text
    if not fractions and _are_classes_and_numbers(pool):
        text = (
            "the mask values look like 1000 x class + number of the object. Save value // 1000 as masks of classes; "
            "where all objects are foreground, type --set data.mask=instances"
        )
        return "semantic", "fault", text
    verdict = "classes" if fractions or len(different) < 2 or different[0] < 0 else _count_objects(pool, len(different))
    if verdict == "objects":
        text = (
            f"the masks hold numbers of objects (up to {pool.numbers.max()} in a mask, {len(different)} different): "
            "all of them are foreground. data.task=instances tells them apart, data.mask=semantic takes them as classes"
        )
        return "instances", "info", text
    text = (
        f"the masks hold {len(different)} values besides 0, taken for as many classes. If they number objects, type "
        "--set data.mask=instances; if they are gray values, --set data.mask=binary; if they are classes, "
        "--set data.mask=semantic"
    )
    if verdict == "" or len(different) >= MANY_CLASSES:
        return "semantic", "warn", text
    # Cells that keep their numbers from frame to frame look like organs, of which there are rarely so many.
    return "semantic", "info", text if 2 * len(different) > MANY_CLASSES and _are_single_parts(pool) else ""


def _are_steps(pool: _ForegroundValues, top: float) -> bool:
    """Return whether values are steps along edges, between 0 and values near the largest one."""
    if pool.value.min() < 0:
        return False
    step, high = pool.value < top, pool.value >= top * (1 - _POLE)
    between = (pool.value > top * _POLE) & ~high
    count = pool.count
    usual = top in _FULL_RANGES or count[high] @ pool.regions[high] >= _THIN * count[high].sum()
    return bool(
        len(np.unique(pool.value[step])) >= _LEAST_STEPS
        and count[step] @ pool.regions[step] < _THIN * count[step].sum()
        and count[between].sum() <= _MOST_BETWEEN[int(usual)] * count[high].sum()
    )


def _are_classes_and_numbers(pool: _ForegroundValues) -> bool:
    """Return whether values are 1000 x class + a small number, with the same classes in many masks."""
    large = pool.value >= 1000
    classes = pool.value[large] // 1000
    if len(np.unique(classes)) < 2 or pool.value.min() < 0 or (pool.value[large] % 1000).max() >= _SMALL_NUMBER:
        return False
    pairs = np.unique(np.stack([pool.mask[large], classes]), axis=1).shape[1]
    return bool(pairs / len(np.unique(classes)) >= max(2, len(pool.numbers) / 4))


def _count_objects(pool: _ForegroundValues, different: int) -> str:
    """Return what values are by the connected parts that they have: "objects", "classes", or "" if it is open."""
    numbers, masks = pool.numbers, len(pool.numbers)
    if not _are_single_parts(pool) or (numbers > 1).mean() < 0.5:
        return "classes"
    if different > _MOST_CLASSES:
        return "objects"
    if masks < _FEW:
        return "objects" if different > MANY_CLASSES else "" if different > _FEW else "classes"
    # Numbers of objects are often given along one axis, so that place along one axis, the last one, may depend on them.
    size, places = _explain(pool, np.log(pool.count)), sorted(_explain(pool, place) for place in pool.center.T)
    if size > _DEPENDS < max(places[:-1], default=0.0):
        return "classes"
    presence = len(pool.value) / different
    varies = np.bincount(numbers).max() < _SAME_NUMBER * masks and _count_on(pool, different)
    is_number = (
        (presence < masks / 4 and different > MANY_CLASSES)
        or (presence <= 1.5 and different > 2 * _FEW)
        or (varies and numbers.max() > _FEW)
    )
    if is_number and max(size, *places[:-1]) <= _DEPENDS:
        return "objects"
    return "" if is_number or varies else "classes"


def _are_single_parts(pool: _ForegroundValues) -> bool:
    """Return whether nearly all values are one connected part each."""
    looked_at = np.isfinite(pool.solid)
    # Of a value whose every voxel touches another one, no part is left.
    return bool((pool.part[looked_at] >= _ONE_PART).sum() > _ONE_PART * looked_at.sum())


def _check_numbers(pool: _ForegroundValues, given: Meaning) -> Iterator[Finding]:
    """Check that masks from which objects are to be learned number them; a warning where somebody has said so."""
    if given.kind not in (None, "instances"):
        raise DataError(
            f"data.task=instances learns from masks that number objects, and data.mask={given.kind} has no numbers: "
            "leave one of them out. Objects that do not touch can be numbered: each connected part its own value."
        )
    if not len(pool.numbers):
        return
    if pool.numbers.max() == 1:
        seen = f"no mask holds two values besides 0 ({int(pool.value[0])} in one of them), as if all were one object"
    elif not _are_single_parts(pool):
        seen = f"most of the values are in several parts of a mask, as classes are (up to {pool.numbers.max()} in one)"
    else:
        return
    message = f"data.task=instances: {seen}. Give each object a number of its own"
    if given.kind == "instances":
        yield Finding("not_numbered", "warn", message)
    else:
        yield Finding("not_numbered", "fault", f"{message}; if they do number objects, type --set data.mask=instances")


def _check_negative(pool: _ForegroundValues, given: Meaning) -> Iterator[Finding]:
    """Check that no number of an object is below 0: -1 is background, or not labeled, in masks of other programs."""
    below = sorted({int(value) for value in pool.value if value < 0} - given.label_map.keys())
    if below:
        message = (
            f"the masks hold {name_examples(below)}, and numbers of objects are above 0. If {below[0]} marks voxels to "
            f"leave out, type --set data.ignore_value={below[0]}; if it is the background and 0 an object, --set "
            f"'data.label_map={{{below[0]}: 0, 0: {int(pool.value.max()) + 1}}}'"
        )
        yield Finding("negative_numbers", "fault", message)


def _count_on(pool: _ForegroundValues, different: int) -> bool:
    """Return whether each mask counts 1, 2, ..., n, perhaps with gaps: then fewer masks have larger values."""
    from scipy.stats import spearmanr  # slow to load

    largest = np.zeros(pool.mask.max() + 1)
    np.maximum.at(largest, pool.mask, pool.value)
    filled = len(pool.value) / largest.sum()
    value, masks = np.unique(pool.value, return_counts=True)
    falls = different > 2 * _FEW and masks.min() < masks.max() and spearmanr(value, masks).statistic < -_GAPS
    return bool(filled >= _GAPS or (filled >= _GAPS / 2 and falls))


def _explain(pool: _ForegroundValues, figure: NDArray[np.floating[Any]]) -> float:
    """Return the share of the variance within masks that the value explains (omega squared, bias corrected)."""
    use = np.isfinite(figure)
    mask = np.unique(pool.mask[use], return_inverse=True)[1]
    value = np.unique(pool.value[use], return_inverse=True)[1]
    if not len(value):
        return 0.0
    rest = figure[use] - (np.bincount(mask, figure[use]) / np.bincount(mask))[mask]
    number = np.bincount(value)
    mean = np.bincount(value, rest) / number
    between, within = number @ mean**2, ((rest - mean[value]) ** 2).sum()
    free = len(value) - len(number)
    if free < 1 or between + within <= _NO_VARIANCE * len(value):
        return 0.0
    noise = within / free
    return float((between - (len(number) - 1) * noise) / (between + within + noise))


def _settle_threshold(pool: _ForegroundValues, meaning: Meaning) -> Meaning:
    if meaning.threshold is not None:
        return meaning
    top = float(pool.value.max(initial=0))
    full = next((scale for scale in _FULL_RANGES if top <= scale), top)
    return replace(meaning, threshold=(full if meaning.kind == "probability" else top or 1.0) / 2)


def _check_threshold(
    pool: _ForegroundValues, meaning: Meaning, given: Meaning, *, fractions: bool
) -> Iterator[Finding]:
    """Check that a threshold leaves foreground, is of the range of the masks, and, where nobody gave it, cuts no
    regions away."""
    threshold, top = meaning.threshold or 0.0, float(pool.value.max(initial=0))
    between = np.unique(pool.value[(pool.value > threshold) & (pool.value < top * (1 - _POLE))])
    is_gray = top in _FULL_RANGES[1:] and len(between) >= _LEAST_STEPS and threshold < top * _POLE
    if is_gray or (meaning.kind == "probability" and threshold < 1 < top and (fractions or len(between))):
        message = (
            f"the masks hold values up to {top:g}, and all above data.threshold={threshold:g} become foreground. If "
            f"the threshold is of another range, type --set data.threshold={top / 2:g}; if values are classes, "
            "--set data.mask=semantic"
        )
        yield Finding("threshold", "warn", message)
    if 0 < top <= threshold:
        message = (
            f"no mask has a value above data.threshold={threshold:g}; the largest is {top:g}. Type "
            f"--set data.threshold={top / 2:g}"
        )
        yield Finding("threshold", "fault", message)
        return
    below = (pool.value > threshold / 4) & (pool.value <= threshold)
    if given.threshold is None and pool.count[below] @ pool.regions[below] > _THIN * pool.count.sum():
        message = (
            f"the masks have regions of {counted(len(np.unique(pool.value[below])), 'value')} that are no more than "
            f"data.threshold={threshold:g}, and would be background. If all values but 0 are foreground, type "
            f"--set data.mask=instances; if not, --set data.threshold={threshold:g}"
        )
        yield Finding("threshold", "fault", message)


def _check_files(scans: Mapping[str, MaskScan], meaning: Meaning, lossy: Collection[str]) -> Iterator[Finding]:
    """Check that classes and numbers of objects are integers, in files that keep them."""
    if meaning.takes_fractions:
        return
    broken = {i: scan for i, scan in scans.items() if scan.fractions}
    if broken:
        low = float(min(scan.values[0] for scan in broken.values()))
        high = float(max(scan.values[-1] for scan in broken.values()))
        if low >= 0 and high <= 1:
            remedy = "If they are probabilities of foreground, type --set data.mask=probability"
        elif all(len(scan.values) < 3 for scan in broken.values()):
            remedy = "If all but 0 is foreground, type --set data.mask=binary --set data.threshold=0"
        else:
            remedy = f"If values above {high / 2:g} are foreground, type --set data.mask=binary"
        message = (
            f"{counted(len(broken), 'mask', 'hold')} fractions, from {low:g} to {high:g}, and no integers. {remedy}"
        )
        yield Finding("fractions", "fault", message, tuple(broken))
    gray = tuple(i for i in lossy if i in scans and len(scans[i].values) > 2)
    if gray:
        message = (
            f"{counted(len(gray), 'mask', 'are')} JPG, which does not keep values. Save masks as PNG; if black and "
            "white, type --set data.mask=binary"
        )
        yield Finding("lossy_mask", "fault", message, gray)


def _check_lossy(scans: Mapping[str, MaskScan], lossy: Collection[str]) -> Iterator[Finding]:
    """Warn of JPG masks that are taken for black and white, and as gray as small regions of classes would be."""
    gray = []
    for case_id, scan in scans.items():
        values = scan.values.astype(np.float64)
        positive = values > values[-1] * _POLE
        between = positive & (values < values[-1] * (1 - _POLE))
        if case_id in lossy and scan.counts[between].sum() > _GRAY * scan.counts[positive].sum():
            gray.append(case_id)
    if gray:
        message = (
            f"{counted(len(gray), 'JPG mask', 'are')} gray in more than {_GRAY:.0%} of what is not black, and cut to "
            "black and white. If grays are classes, JPG has mixed them: save the masks as PNG. If they are black and "
            "white, type --set data.mask=binary"
        )
        yield Finding("lossy_mask", "warn", message, tuple(gray))
