"""What a split promises about its lists: nested, disjoint, whole groups, no image twice, and still the same files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

from ssl_seg.data.content import image_of, is_constant
from ssl_seg.data.findings import MOST_PAIRS, Finding, name_ends
from ssl_seg.data.splits.split import NearCopies, Split

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog

Lists = Mapping[str, Collection[str]]


def lists_of(split: Split) -> dict[str, tuple[str, ...]]:
    """Return name -> ids of the four lists that must have nothing in common."""
    return {"labeled": split.fractions[1.0], "unlabeled": split.unlabeled, "val": split.val, "test": split.test}


def parts_of(split: Split) -> dict[str, tuple[str, ...]]:
    """Return name -> ids of the three parts that groups and copies must not straddle."""
    return {"train": split.fractions[1.0] + split.unlabeled, "val": split.val, "test": split.test}


def check_nested(split: Split) -> Iterable[Finding]:
    """Each labeled set must be contained in the next larger one."""
    sets = sorted(split.fractions.items())
    for (small, ids), (large, more) in pairwise(sets):
        allowed = set(more)
        outside = tuple(i for i in ids if i not in allowed)
        if outside:
            message = f"{len(outside)} case(s) labeled at {small:g} are not labeled at {large:g}"
            yield Finding("not_nested", "fault", message, outside)


def check_disjoint(lists: Lists) -> Iterable[Finding]:
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
        yield Finding("overlap", "fault", message, tuple(ids))


def check_groups(parts: Lists, groups: Mapping[str, str]) -> Iterable[Finding]:
    """A group is in one part only: figures of one paper, or scans of one patient, look alike."""
    for group, where in _parts_by(parts, groups).items():
        if len(where) > 1:
            message = f"group '{group}' is in {' and '.join(where)}"
            yield Finding("group_straddles", "fault", message, tuple(i for ids in where.values() for i in ids))


def check_duplicates(parts: Lists, content: Mapping[str, str]) -> Iterable[Finding]:
    """The same image, under whatever name and with whatever mask, is in one part only."""
    images = {i: image_of(digits) for i, digits in content.items() if not is_constant(digits)}
    for where in _parts_by(parts, images).values():
        if len(where) > 1:
            cases = tuple(i for ids in where.values() for i in ids)
            message = f"{len(cases)} cases have the same image and are in {' and '.join(where)}"
            yield Finding("duplicate_content", "fault", message, cases)


def _parts_by(parts: Lists, key_of: Mapping[str, str]) -> dict[str, dict[str, list[str]]]:
    """Return key -> part -> ids, for ids that have a key."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, ids in parts.items():
        for case_id in ids:
            if case_id in key_of:
                found[key_of[case_id]][part].append(case_id)
    return found


def check_near_duplicates(lists: Lists, catalog: Catalog, near_copies: NearCopies) -> Iterable[Finding]:
    """Images that are nearly the same are in one part only.

    A fault where scores would be too good, between the labeled cases, validation and test; a warning where one of them
    is only an unlabeled training case, or near copies are to be ignored. Exact copies are left to ``check_duplicates``.
    """
    list_of = {i: name for name, ids in lists.items() for i in ids}
    leaks: dict[str, list[tuple[str, ...]]] = {"fault": [], "warn": []}
    for copies in catalog.likeness.copies:
        cluster = tuple(i for i in copies if i in list_of)
        where = {list_of[i] for i in cluster}
        images = {catalog.facts[i].image for i in cluster}
        if len(images) > 1 and len(where) > 1 and where & {"val", "test"}:
            scored = len(where - {"unlabeled"}) > 1 and near_copies == "keep_together"
            leaks["fault" if scored else "warn"].append(cluster)
    for level, clusters in (("fault", leaks["fault"]), ("warn", leaks["warn"])):
        if clusters:
            cases = tuple(i for cluster in clusters for i in cluster)
            where = {list_of[i] for i in cases}
            message = (
                f"{len(cases)} cases in {len(clusters)} set(s) have nearly the same image (resized, compressed, "
                f"brightened or turned) and are in {' and '.join(name for name in lists if name in where)}; give each "
                "set one group and make a new split, or set split.near_copies=ignore if they are different images"
            )
            yield Finding("near_duplicate", level, message, cases)  # type: ignore[arg-type]


def check_alike(parts: Lists, catalog: Catalog) -> Iterable[Finding]:
    """Images that may show one object twice, as two scans of a patient do, should be in one part."""
    part_of = {i: name for name, ids in parts.items() for i in ids if i in catalog.facts}
    torn = [p for p in catalog.likeness.pairs if part_of.get(p.first, "") != part_of.get(p.second, "")]
    torn = [p for p in torn if p.first in part_of and p.second in part_of]
    if torn:
        first = torn[0]
        many = " So many may also be images that all look alike." if len(torn) > MOST_PAIRS else ""
        message = (
            f"{len(torn)} pair(s) of alike images are in different parts, {first.first} and {first.second} with a "
            f"likeness of {first.likeness:.2f}: if they show one patient or object, name it in groups.csv.{many}"
        )
        yield Finding("alike_across_parts", "warn", message, name_ends((p.first, p.second) for p in torn))
    for crowd in catalog.likeness.crowds:
        where = [name for name, ids in parts.items() if not set(crowd).isdisjoint(ids)]
        if len(where) > 1:
            message = (
                f"{len(crowd)} images look like copies of {crowd[0]}, too many to be copies: they are in "
                f"{' and '.join(where)}. Look at them; if they are copies, give them one group in groups.csv"
            )
            yield Finding("crowd_across_parts", "warn", message, crowd)


def check_files(split: Split, parts: Lists, catalog: Catalog) -> Iterable[Finding]:
    """Every id must still be there, with the content that it had."""
    ids = [i for part in parts.values() for i in part]
    missing = tuple(i for i in ids if i not in catalog.facts)
    if missing:
        message = f"{len(missing)} case(s) of the split are not in {catalog.root}"
        yield Finding("missing_case", "fault", message, missing)
    changed = tuple(
        i
        for i in ids
        if i in catalog.facts and catalog.facts[i].content != split.content.get(i, catalog.facts[i].content)
    )
    if changed:
        message = f"{len(changed)} case(s) have another image or mask than when the split was made"
        yield Finding("changed_content", "fault", message, changed)
