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
    read_cases,
)
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding, join_findings, select_faults
from ssl_seg.data.layouts import LABELS
from ssl_seg.data.layouts.listing import Listing
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.tiles import FEWEST, plan_tiles
from ssl_seg.labels import MaskKind, Meaning

_LEVELS = {"fault": "faults", "warn": "warnings", "info": "infos"}
"""In the order in which they are reported, with their names in the summary."""


@dataclass(frozen=True)
class Audit:
    """What was found: ``findings``, faults first; ``summary`` of plain types, for JSON.

    ``facts`` are of the cases that can be read, ``meaning`` is what the values of masks were taken for.
    """

    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    listing: Listing
    facts: Mapping[str, CaseFacts]
    meaning: Meaning
    reading: Reading


def audit(
    root: str,
    *,
    groups: Path | None = None,
    layout: str = "auto",
    label_values: Sequence[int] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_value: int | None = None,
    mask: MaskKind | None = None,
    threshold: float | None = None,
    reading: Reading = AS_STORED,
    tiles: int | None = None,
    unlabeled: Path | None = None,
    track: Track = pass_through,
) -> Audit:
    """Return everything there is to say about a data set; a bad file is a finding and stops nothing.

    Args:
        root, groups, layout, unlabeled: see ``find_cases``.
        label_values, label_map, ignore_value, mask, threshold, reading, tiles: see ``open_catalog``.
        track: told about every case that has been read.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    listing = find_cases(root, groups=groups, layout=layout, unlabeled=unlabeled)
    given = Meaning(mask, threshold, tuple(label_values) if label_values else None, label_map or {}, ignore_value)
    read = read_cases(listing, given, reading=reading, root=root, track=track)
    facts, has_kind = read.facts, not select_faults(read.findings)
    unannotated = tuple(checks.check_unannotated(listing.cases, facts)) if has_kind else ()
    listing = replace(listing, cases=drop_unannotated(listing.cases, facts)) if has_kind else listing
    groups_of = checks.groups_of(listing.cases)
    copies = find_copies(facts, groups_of, root)
    tiling = plan_tiles(listing.cases, {i: f.shape for i, f in facts.items()}, tiles)
    found = [
        *listing.findings,
        *checks.check_few_labeled(listing.cases, cut=bool(tiling.regions)),
        *join_findings(read.faults),
        *read.findings,
        *unannotated,
        *checks.check_nodata(facts, read.reading, is_guess=read.reading.nodata != reading.nodata),
        *check_facts(listing, facts, read.meaning, has_kind=has_kind),
        *check_copies(copies, facts, groups_of),
    ]
    if sum(case.mask is not None for case in listing.cases) < FEWEST:  # few_labeled says so, or parts have the class
        found = [finding for finding in found if finding.code != "rare_class"]
    findings = tuple(sorted(found, key=lambda finding: list(_LEVELS).index(finding.level)))
    masks = labels.values_by_mask(facts, read.meaning.ignore_value)
    values = labels.find_label_values(masks, read.meaning.label_values)
    meaning = replace(read.meaning, label_values=values)
    summary = summarize(root, listing, facts, values, meaning.ignore_value)
    summary["notes"] += describe_reading(facts, read.reading, reading)
    summary["notes"] += [f"for training, {tiling.note}"] if tiling.note else []
    summary["copies"] = asdict(copies)
    summary |= {name: sum(f.level == level for f in findings) for level, name in _LEVELS.items()}
    return Audit(findings, summary, listing, facts, meaning, read.reading)


def check_facts(
    listing: Listing, facts: Mapping[str, CaseFacts], meaning: Meaning, *, has_kind: bool = True
) -> Iterator[Finding]:
    """Yield what all rules about single cases and about the whole find, without those about copies.

    Args:
        listing: the cases.
        facts: of the cases that can be read.
        meaning: of mask values; label values are None if they are to be inferred.
        has_kind: whether the masks are of a kind that can be used; their values are not looked at where they are not.
    """
    masks = labels.values_by_mask(facts, meaning.ignore_value)
    yield from checks.check_kinds(facts)
    if has_kind:
        unexpected = list(labels.check_unexpected_values(masks, meaning.label_values))
        label_values = labels.find_label_values(masks, meaning.label_values)
        yield from unexpected or labels.check_class_presence(masks, label_values)
        yield from labels.check_sparse(facts, meaning.label_values, meaning.ignore_value)
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
