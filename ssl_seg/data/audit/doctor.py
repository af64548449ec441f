"""The dataset doctor: reads every case once, and says what is there and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssl_seg.data.audit import checks, labels
from ssl_seg.data.audit.copies import check_copies, find_copies
from ssl_seg.data.audit.summary import summarize
from ssl_seg.data.catalog import DEFAULTS, CatalogSettings, ReadCases, Track, pass_through, read_cases
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding, join_findings, sort_findings
from ssl_seg.data.layouts import LABELS
from ssl_seg.data.layouts.listing import Listing
from ssl_seg.data.reading import Reading
from ssl_seg.data.tiles import FEWEST, plan_tiles
from ssl_seg.labels import Meaning

_LEVELS = {"fault": "faults", "warn": "warnings", "info": "infos"}
"""With their names in the summary."""


@dataclass(frozen=True)
class Audit:
    """The result of an audit: ``findings``, faults first; ``summary`` of plain types, for JSON.

    ``facts`` are of the cases that can be read, ``meaning`` is what the values of masks were taken for.
    """

    findings: tuple[Finding, ...]
    summary: dict[str, Any]
    listing: Listing
    facts: Mapping[str, CaseFacts]
    meaning: Meaning
    reading: Reading


def audit(root: str, settings: CatalogSettings = DEFAULTS, *, track: Track = pass_through) -> Audit:
    """Return everything there is to say about a data set; a bad file is a finding and stops nothing.

    Raises:
        ConfigError: if the layout is unknown.
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    read = read_cases(root, settings, track)
    facts, listing = read.facts, replace(read.listing, cases=read.cases)
    groups_of = checks.groups_of(listing.cases)
    copies = find_copies(facts, groups_of, root)
    tiling = plan_tiles(listing.cases, {i: f.shape for i, f in facts.items()}, settings.tiles)
    found = [
        *listing.findings,
        *checks.check_few_labeled(listing.cases, cut=bool(tiling.regions)),
        *join_findings(read.faults),
        *read.findings,
        *read.about,
        *_check_facts(read, listing),
        *check_copies(copies, facts, groups_of),
    ]
    if sum(case.mask is not None for case in listing.cases) < FEWEST:  # few_labeled says so, or parts have the class
        found = [finding for finding in found if finding.code != "rare_class"]
    findings = tuple(sort_findings(found))
    summary = summarize(root, listing, facts, read.label_values, read.meaning.ignore_value)
    summary["notes"] += [*read.reading_notes, *([f"for training, {tiling.note}"] if tiling.note else [])]
    alike = [asdict(pair) for pair in copies.pairs]
    summary["copies"] = {"exact": copies.exact, "near": copies.copies, "crowds": copies.crowds, "alike": alike}
    summary |= {name: sum(f.level == level for f in findings) for level, name in _LEVELS.items()}
    meaning = replace(read.meaning, label_values=read.label_values)
    return Audit(findings, summary, listing, facts, meaning, read.reading)


def _check_facts(read: ReadCases, listing: Listing) -> Iterator[Finding]:
    """Yield what the rules about single cases and about the whole find; those about copies are not among them.

    Values of masks of no usable kind are not looked at.
    """
    facts, meaning = read.facts, read.meaning
    yield from checks.check_kinds(facts)
    if read.has_kind:
        masks = labels.values_by_mask(facts, meaning.ignore_value)
        unexpected = list(labels.check_unexpected_values(masks, meaning.label_values))
        yield from unexpected or labels.check_class_presence(masks, read.label_values)
        yield from labels.check_sparse(facts, meaning.label_values, meaning.ignore_value)
    if not any(finding.code == LABELS for finding in listing.findings):
        yield from checks.check_missing_masks(listing.cases)
    yield from checks.check_declared(listing.declared, facts)
    yield from checks.check_empty_masks(facts, asks=listing.leaves_labeling_open)
    for check in checks.CHECKS:
        yield from check(facts)
    yield from checks.check_groups(listing.cases)
