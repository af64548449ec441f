"""Does a split keep what it promises? Nested, disjoint, whole groups, and still the files it was made for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from ssl_seg.data.splits import IMAGE_DIGITS, Split

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog


@dataclass(frozen=True)
class SplitFinding:
    """One observation: ``fault`` breaks a promise, ``warn`` weakens the numbers, ``info`` is there to be read."""

    code: str
    level: Literal["info", "warn", "fault"]
    message: str
    cases: tuple[str, ...]


def check_split(split: Split, catalog: Catalog | None = None) -> list[SplitFinding]:
    """Return all findings, in the order of the checks; no ``fault`` means that the split can be used.

    Args:
        split: any split, also one that was not made by ``make_split``.
        catalog: the cases as they are now; without it, nothing is said about files, foreground and prevalence.
    """
    parts = {"train": split.fractions[1.0] + split.unlabeled, "val": split.val, "test": split.test}
    findings = [
        *_check_nested(split),
        *_check_disjoint({"labeled": split.fractions[1.0], "unlabeled": split.unlabeled, **_held_out(split)}),
        *_check_groups(parts, split.groups),
        *_check_duplicates(parts, split.content),
    ]
    if catalog is not None:
        foreground = {i: f.foreground for i, f in catalog.facts.items() if f.foreground is not None}
        findings += _check_files(split, parts, catalog)
        findings += _check_foreground(split, foreground)
        findings += _describe_prevalence(split, foreground)
    return findings


def _held_out(split: Split) -> dict[str, tuple[str, ...]]:
    return {"val": split.val, "test": split.test}


def _check_nested(split: Split) -> Iterable[SplitFinding]:
    """Each labeled set must be contained in the next larger one."""
    sets = sorted(split.fractions.items())
    for (small, ids), (large, more) in pairwise(sets):
        allowed = set(more)
        outside = tuple(i for i in ids if i not in allowed)
        if outside:
            message = f"{len(outside)} case(s) labeled at {small:g} are not labeled at {large:g}"
            yield SplitFinding("not_nested", "fault", message, outside)


def _check_disjoint(lists: Mapping[str, Collection[str]]) -> Iterable[SplitFinding]:
    """No id is in two lists, or twice in one."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, ids in lists.items():
        for case_id in ids:
            places[case_id].append(name)
    by_places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case_id, names in places.items():
        if len(names) > 1:
            by_places[tuple(names)].append(case_id)
    for names_of, ids in by_places.items():
        message = f"{len(ids)} case(s) are listed more than once: in {' and '.join(names_of)}"
        yield SplitFinding("overlap", "fault", message, tuple(ids))


def _check_groups(parts: Mapping[str, Collection[str]], groups: Mapping[str, str]) -> Iterable[SplitFinding]:
    """A group is in one part only: figures of one paper, or scans of one patient, look alike."""
    for group, where in _parts_by(parts, groups).items():
        if len(where) > 1:
            message = f"group '{group}' is in {' and '.join(where)}"
            yield SplitFinding("group_straddles", "fault", message, tuple(i for ids in where.values() for i in ids))


def _check_duplicates(parts: Mapping[str, Collection[str]], content: Mapping[str, str]) -> Iterable[SplitFinding]:
    """The same image, under whatever name and with whatever mask, is in one part only."""
    image_of = {i: digits[:IMAGE_DIGITS] for i, digits in content.items()}
    for where in _parts_by(parts, image_of).values():
        if len(where) > 1:
            cases = tuple(i for ids in where.values() for i in ids)
            message = f"{len(cases)} cases have the same image and are in {' and '.join(where)}"
            yield SplitFinding("duplicate_content", "fault", message, cases)


def _parts_by(parts: Mapping[str, Collection[str]], key_of: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Return key -> part -> ids, for ids that have a key."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, ids in parts.items():
        for case_id in ids:
            if case_id in key_of:
                found[key_of[case_id]][part].append(case_id)
    return found


def _check_files(split: Split, parts: Mapping[str, Collection[str]], catalog: Catalog) -> Iterable[SplitFinding]:
    """Every id must still be there, with the content that it had."""
    ids = [i for part in parts.values() for i in part]
    missing = tuple(i for i in ids if i not in catalog.facts)
    if missing:
        message = f"{len(missing)} case(s) of the split are not in {catalog.root}"
        yield SplitFinding("missing_case", "fault", message, missing)
    changed = tuple(
        i
        for i in ids
        if i in catalog.facts and catalog.facts[i].content != split.content.get(i, catalog.facts[i].content)
    )
    if changed:
        message = f"{len(changed)} case(s) have another image or mask than when the split was made"
        yield SplitFinding("changed_content", "fault", message, changed)


def _check_foreground(split: Split, foreground: Mapping[str, float]) -> Iterable[SplitFinding]:
    """A labeled set without foreground teaches nothing; a validation or test list without it measures nothing."""
    pool_has_some = _has_foreground(split.fractions[1.0], foreground)
    for fraction, ids in sorted(split.fractions.items()):
        if not _has_foreground(ids, foreground):
            could = "although the pool has some" if pool_has_some else "and neither has the whole pool"
            message = f"none of the {len(ids)} case(s) labeled at {fraction:g} has foreground, {could}"
            yield SplitFinding("no_positive", "fault" if pool_has_some else "warn", message, ids)
    for part, ids in _held_out(split).items():
        if ids and not _has_foreground(ids, foreground):
            message = f"none of the {len(ids)} case(s) in {part} has foreground: its F1 says nothing"
            yield SplitFinding("no_positive", "warn", message, ids)


def _has_foreground(ids: Iterable[str], foreground: Mapping[str, float]) -> bool:
    return any(foreground.get(i, 0.0) > 0 for i in ids)


def _describe_prevalence(split: Split, foreground: Mapping[str, float]) -> Iterable[SplitFinding]:
    """Mean foreground fraction of each labeled set, beside that of the whole pool."""
    pool = _mean(split.fractions[1.0], foreground)
    for fraction, ids in sorted(split.fractions.items()):
        mean = _mean(ids, foreground)
        if mean is not None and pool is not None and fraction != 1.0:
            message = (
                f"mean foreground of the {len(ids)} case(s) labeled at {fraction:g}: {mean:.3f} (whole pool {pool:.3f})"
            )
            yield SplitFinding("prevalence", "info", message, ids)


def _mean(ids: Iterable[str], foreground: Mapping[str, float]) -> float | None:
    known = [foreground[i] for i in ids if i in foreground]
    return sum(known) / len(known) if known else None
