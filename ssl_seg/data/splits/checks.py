"""Check that a split is nested, disjoint, by whole groups, without an image in two parts, and still fits its files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ssl_seg.data.content import image_of, is_constant
from ssl_seg.data.findings import MOST_PAIRS, Finding, name_ends, report
from ssl_seg.data.splits.balance import check_balance, check_validation_size
from ssl_seg.data.splits.split import NearCopies, Split
from ssl_seg.data.splits.statistics import SetMeasures, measure_split
from ssl_seg.errors import counted

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog

Lists = Mapping[str, Collection[str]]


def check_split(
    split: Split,
    catalog: Catalog | None = None,
    measures: Sequence[SetMeasures] | None = None,
    *,
    near_copies: NearCopies = "keep_together",
) -> list[Finding]:
    """Return all findings, in the order of the checks; a split without a ``fault`` can be used.

    Args:
        split: any split, also one that was not made by ``make_split``.
        catalog: the cases as they are now; without it, files, images, foreground and classes are not checked.
        measures: measures of this split and catalog, where they are known already.
        near_copies: ignore makes near copies in two parts a warning.
    """
    train = split.fractions[1.0]
    lists = {"labeled": train, "unlabeled": split.unlabeled, "val": split.val, "test": split.test}
    parts = {"train": train + split.unlabeled, "val": split.val, "test": split.test}
    groups, content = split.groups, split.content
    if catalog is not None:  # what is known now counts too: a group file that came later, ids without a content
        groups = groups | {case.id: case.group for case in catalog.cases if case.group}
        content = content | {i: facts.content for i, facts in catalog.facts.items()}
    findings = [
        *_check_nested(split),
        *_check_disjoint(lists),
        *_check_groups(parts, groups),
        *_check_duplicates(parts, content),
        *check_validation_size(split),
    ]
    if catalog is None:
        return findings
    return [
        *findings,
        *_check_files(split, parts, catalog),
        *_check_near_duplicates(lists, catalog, near_copies),
        *_check_alike(parts, catalog),
        *check_balance(split, catalog, measure_split(split, catalog) if measures is None else measures),
    ]


def _check_nested(split: Split) -> Iterator[Finding]:
    """Check that each labeled set is contained in the next larger one."""
    for (small, ids), (large, more) in pairwise(sorted(split.fractions.items())):
        allowed = set(more)
        outside = [i for i in ids if i not in allowed]
        message = f"{counted(len(outside), 'case', f'labeled at {small:g} are')} not labeled at {large:g}"
        yield from report("not_nested", "fault", message, outside)


def _check_disjoint(lists: Lists) -> Iterator[Finding]:
    """Check that no id is in two lists, or twice in one."""
    places: dict[str, list[str]] = defaultdict(list)
    for name, ids in lists.items():
        for case_id in ids:
            places[case_id].append(name)
    by_places: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for case_id, names in places.items():
        if len(names) > 1:
            by_places[tuple(names)].append(case_id)
    for names_of, ids in by_places.items():
        message = f"{counted(len(ids), 'case', 'are')} listed more than once: in {' and '.join(names_of)}"
        yield Finding("overlap", "fault", message, tuple(ids))


def _check_groups(parts: Lists, groups: Mapping[str, str]) -> Iterator[Finding]:
    """Check that each group is in one part only: figures of one paper, or scans of one patient, look alike."""
    for group, where, cases in _find_torn(parts, groups):
        yield Finding("group_straddles", "fault", f"group '{group}' is in {where}", cases)


def _check_duplicates(parts: Lists, content: Mapping[str, str]) -> Iterator[Finding]:
    """Check that each image, under whatever name and with whatever mask, is in one part only."""
    images = {i: image_of(digits) for i, digits in content.items() if not is_constant(digits)}
    for _, where, cases in _find_torn(parts, images):
        yield Finding("duplicate_content", "fault", f"{len(cases)} cases have the same image and are in {where}", cases)


def _find_torn(parts: Lists, key_of: Mapping[str, str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yield each key of ids in several parts, the names of these parts, and its ids."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for part, ids in parts.items():
        for case_id in ids:
            if case_id in key_of:
                found[key_of[case_id]][part].append(case_id)
    for key, where in found.items():
        if len(where) > 1:
            yield key, " and ".join(where), tuple(i for ids in where.values() for i in ids)


def _check_near_duplicates(lists: Lists, catalog: Catalog, near_copies: NearCopies) -> Iterator[Finding]:
    """Check that images that are nearly the same are in one part only.

    A fault where scores would be too good, between the labeled cases, validation and test; a warning where one of them
    is only an unlabeled training case, or near copies are to be ignored. Exact copies are another rule's.
    """
    list_of = {i: name for name, ids in lists.items() for i in ids}
    leaks: dict[bool, list[str]] = {True: [], False: []}
    sets = {True: 0, False: 0}
    for copies in catalog.likeness.copies:
        cluster = [i for i in copies if i in list_of]
        where = {list_of[i] for i in cluster}
        images = {catalog.facts[i].image for i in cluster}
        if len(images) > 1 and len(where) > 1 and where & {"val", "test"}:
            scored = len(where - {"unlabeled"}) > 1 and near_copies == "keep_together"
            leaks[scored] += cluster
            sets[scored] += 1
    for scored, cases in leaks.items():
        found = {list_of[i] for i in cases}
        message = (
            f"{len(cases)} cases in {counted(sets[scored], 'set', 'have')} nearly the same image (resized, compressed, "
            f"brightened or turned), in {' and '.join(name for name in lists if name in found)}; give each set one "
            "group and make a new split, or set split.near_copies=ignore if they are different images"
        )
        yield from report("near_duplicate", "fault" if scored else "warn", message, cases)


def _check_alike(parts: Lists, catalog: Catalog) -> Iterator[Finding]:
    """Check that images that may show one object twice, as two scans of a patient do, are in one part."""
    part_of = {i: name for name, ids in parts.items() for i in ids if i in catalog.facts}
    both = [p for p in catalog.likeness.pairs if p.first in part_of and p.second in part_of]
    torn = [p for p in both if part_of[p.first] != part_of[p.second]]
    if torn:
        first = torn[0]
        many = " So many may also be images that all look alike." if len(torn) > MOST_PAIRS else ""
        message = (
            f"{counted(len(torn), 'pair', 'of alike images are')} in different parts, {first.first} and "
            f"{first.second} with a likeness of {first.likeness:.2f}: if they show one patient or object, name it in "
            f"groups.csv.{many}"
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


def _check_files(split: Split, parts: Lists, catalog: Catalog) -> Iterator[Finding]:
    """Check that every id is still there, with the content that it had."""
    ids = [i for part in parts.values() for i in part]
    missing = [i for i in ids if i not in catalog.facts]
    message = f"{counted(len(missing), 'case', 'of the split are')} not in {catalog.root}"
    yield from report("missing_case", "fault", message, missing)
    known = {i: catalog.facts[i].content for i in ids if i in catalog.facts}
    changed = [i for i, content in known.items() if content != split.content.get(i, content)]
    what = "image" if any(image_of(known[i]) != image_of(split.content[i]) for i in changed) else "mask"
    count = counted(len(changed), "case", "have")
    way = "where that is meant, `ssl-seg train --allow-split` uses them as they are now"
    message = f"{count} a different {what} than when the split was made; {way}"
    yield from report("changed_content", "fault", message, changed)
