"""The dataset doctor: reads every case once, and says what is there and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssl_seg.data.audit import checks, labels
from ssl_seg.data.audit.copies import check_copies, find_copies
from ssl_seg.data.audit.summary import summarize
from ssl_seg.data.catalog import (
    Track,
    describe_reading,
    drop_unannotated,
    find_cases,
    pass_through,
    scan_cases,
    settle_labels,
)
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.data.layouts import LABELS
from ssl_seg.data.layouts.listing import Listing
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.tiles import FEWEST, plan_tiles

_LEVELS = {"fault": "faults", "warn": "warnings", "info": "infos"}
"""In the order in which they are reported, with their names in the summary."""


_NAMED = 5
"""Files that are named with what is wrong with them; the ids of all are in the finding."""


@dataclass(frozen=True)
class Audit:
    """What was found: ``findings``, faults first; ``summary`` of plain types, for JSON.

    ``facts`` are of the cases that can be read, ``label_values`` (background first) what the classes were taken to be.
    """

    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    listing: Listing
    facts: Mapping[str, CaseFacts]
    label_values: tuple[int, ...]
    ignore_value: int | None
    label_map: Mapping[int, int]
    reading: Reading


def audit(
    root: str,
    *,
    groups: Path | None = None,
    layout: str = "auto",
    label_values: Sequence[int] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_value: int | None = None,
    reading: Reading = AS_STORED,
    tiles: int | None = None,
    unlabeled: Path | None = None,
    track: Track = pass_through,
) -> Audit:
    """Return everything there is to say about a data set; a bad file is a finding and stops nothing.

    Args:
        root, groups, layout, unlabeled: see ``find_cases``.
        label_values, label_map, ignore_value, reading, tiles: see ``open_catalog``.
        track: told about every case that has been read.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    listing = find_cases(root, groups=groups, layout=layout, unlabeled=unlabeled)
    declared, ignored = settle_labels(listing, label_values, label_map, ignore_value)
    background = declared[0] if declared else int(ignored == 0)
    facts, unreadable, used = scan_cases(
        listing.cases,
        label_map=label_map,
        background=background,
        ignore_value=ignored,
        reading=reading,
        root=root,
        track=track,
    )
    declared = labels.name_annotated(labels.values_by_mask(facts, ignored), declared, ignored)
    unannotated = tuple(checks.check_unannotated(listing.cases, facts))
    listing = replace(listing, cases=drop_unannotated(listing.cases, facts))
    groups_of = checks.groups_of(listing.cases)
    copies = find_copies(facts, groups_of)
    tiling = plan_tiles(listing.cases, {i: f.shape for i, f in facts.items()}, tiles)
    found = [
        *listing.findings,
        *checks.check_few_labeled(listing.cases, cut=bool(tiling.regions)),
        *_join(unreadable),
        *unannotated,
        *checks.check_nodata(facts, used, is_guess=used != reading),
        *check_facts(listing, facts, declared, ignored),
        *check_copies(copies, facts, groups_of),
    ]
    if sum(case.mask is not None for case in listing.cases) < FEWEST:  # few_labeled says so, or parts have the class
        found = [finding for finding in found if finding.code != "rare_class"]
    findings = tuple(sorted(found, key=lambda finding: list(_LEVELS).index(finding.level)))
    values = labels.find_label_values(labels.values_by_mask(facts, ignored), declared)
    summary = summarize(root, listing, facts, values, ignored)
    summary["notes"] += describe_reading(facts, used, reading)
    summary["notes"] += [f"for training, {tiling.note}"] if tiling.note else []
    summary["copies"] = asdict(copies)
    summary |= {name: sum(f.level == level for f in findings) for level, name in _LEVELS.items()}
    return Audit(findings, summary, listing, facts, values, ignored, dict(label_map or {}), used)


def _join(faults: Sequence[Finding]) -> Iterator[Finding]:
    """Yield faults of single files as they are, or those of one code as one where they are many."""
    for code in dict.fromkeys(fault.code for fault in faults):
        same = [fault for fault in faults if fault.code == code]
        if len(same) <= _NAMED:
            yield from same
            continue
        listed = "\n".join(f"  {fault.message}" for fault in same[:_NAMED])
        cases = tuple(case for fault in same for case in fault.cases)
        yield Finding(code, "fault", f"{len(same)} cases cannot be used; the first:\n{listed}\n ", cases)


def check_facts(
    listing: Listing, facts: Mapping[str, CaseFacts], declared: Sequence[int] | None, ignore_value: int | None
) -> Iterator[Finding]:
    """Yield what all rules about single cases and about the whole find, without those about copies.

    Args:
        listing: the cases.
        facts: of the cases that can be read.
        declared: label values, background first, that somebody has given; None if they are to be inferred.
        ignore_value: mask value that is left out.
    """
    masks = labels.values_by_mask(facts, ignore_value)
    yield from checks.check_kinds(facts)
    yield from labels.check_unexpected_values(masks, declared)
    yield from labels.check_many_classes(masks, declared)
    yield from labels.check_sparse(facts, declared, ignore_value)
    yield from labels.check_class_presence(masks, labels.find_label_values(masks, declared))
    if not any(finding.code == LABELS for finding in listing.findings):
        yield from checks.check_missing_masks(listing.cases)
    yield from checks.check_empty_masks(facts)
    yield from checks.check_full_masks(facts)
    yield from checks.check_tiny_foreground(facts)
    yield from checks.check_declared(listing.declared, facts)
    yield from checks.check_constant_images(facts)
    yield from checks.check_two_values(facts)
    yield from checks.check_saturation(facts)
    yield from checks.check_dtypes(facts)
    yield from checks.check_sizes(facts)
    yield from checks.check_spacing(facts)
    yield from checks.check_doubts(facts)
    yield from checks.check_groups(listing.cases)
