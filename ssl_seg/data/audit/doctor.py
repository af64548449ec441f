"""The dataset doctor: reads every case once, and says what is there and what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ssl_seg.data.audit import checks, labels
from ssl_seg.data.audit.summary import summarize
from ssl_seg.data.catalog import DEFAULTS, CatalogSettings, ReadCases, Track, pass_through, read_cases
from ssl_seg.data.duplicates import Cluster, Likeness, compare_cases
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding, Level, join_findings, name_ends, report, sort_findings
from ssl_seg.data.layouts import LABELS
from ssl_seg.data.layouts.files import note_unlabeled
from ssl_seg.data.layouts.listing import Listing
from ssl_seg.data.layouts.names import find_parts
from ssl_seg.data.reading import Reading
from ssl_seg.data.tiles import FEWEST, plan_tiles
from ssl_seg.errors import counted, name_examples
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
    tiling = plan_tiles(listing.cases, facts, settings.tiles)
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
    summary = summarize(root, listing, facts, read.meaning.label_values or (), read.meaning.ignore_value)
    summary["notes"] += [*read.reading_notes, *([f"for training, {tiling.note}"] if tiling.note else [])]
    counts = summary["counts"]
    said = {f"WARNING {finding.message}" for finding in findings}
    said |= {*note_unlabeled(counts["unlabeled"], counts["images"])}  # which check_missing_masks says too
    summary["notes"] = [note for note in summary["notes"] if note not in said]
    alike = [asdict(pair) for pair in copies.pairs]
    summary["copies"] = {"exact": copies.exact, "near": copies.copies, "crowds": copies.crowds, "alike": alike}
    summary |= {name: sum(f.level == level for f in findings) for level, name in _LEVELS.items()}
    return Audit(findings, summary, listing, facts, read.meaning, read.reading)


def _check_facts(read: ReadCases, listing: Listing) -> Iterator[Finding]:
    """Yield what the rules about single cases and about the whole find; those about copies are not among them.

    Values of masks of no usable kind are not looked at.
    """
    facts, meaning = read.facts, read.meaning
    yield from checks.check_kinds(facts)
    if read.has_kind:
        masks = labels.values_by_mask(facts, meaning.ignore_value)
        unexpected = list(labels.check_unexpected_values(masks, read.declared))
        yield from unexpected or labels.check_class_presence(masks, meaning.label_values or ())
        yield from labels.check_sparse(facts, read.declared, meaning.ignore_value)
    if not any(finding.code == LABELS for finding in listing.findings):
        yield from checks.check_missing_masks(listing.cases)
    yield from checks.check_declared(listing.declared, facts)
    yield from checks.check_empty_masks(facts, asks=listing.leaves_labeling_open)
    yield from checks.check_full_masks(facts, meaning)
    for check in checks.CHECKS:
        yield from check(facts)
    yield from checks.check_groups(listing.cases)


_SHOWN = 3


def find_copies(facts: Mapping[str, CaseFacts], groups: Mapping[str, str], root: str | None = None) -> Likeness:
    """Return all copies, each set sorted, and the alike pairs that are not in one group.

    Args:
        groups: id -> group of all cases, empty if there are none.
    """
    likeness = compare_cases(facts, root)
    apart = (p for p in likeness.pairs if not groups or groups[p.first] != groups[p.second])
    return replace(likeness, copies=tuple(tuple(sorted(c)) for c in likeness.copies), pairs=tuple(apart))


def check_copies(copies: Likeness, facts: Mapping[str, CaseFacts], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Report copies: they weigh double, and in two groups they let a test know the training.

    A crowd, or an alike pair, may be no copies: only a person can tell.

    Args:
        groups: id -> group of all cases, empty if there are none.
    """
    conflicting = {case for cases in checks.find_conflicts(facts) for case in cases}
    across = [c for c in copies.exact if _in_several(c, groups)]
    part_of = {i: part for i, part in find_parts(facts).items() if facts[i].values is not None}
    torn = [c for c in copies.exact if c not in across and len({part_of[i] for i in c if i in part_of}) > 1]
    others = [c for c in copies.exact if c not in (*across, *torn) and not conflicting & set(c)]
    near_across = [c for c in copies.copies if _in_several(c, groups)]
    near_within = [c for c in copies.copies if c not in near_across]
    near = (
        "are nearly the same image, within one group."
        if groups
        else "are nearly the same image (resized, compressed, mirrored, slices?). Give each set one group in "
        "groups.csv."
    )
    rules: tuple[tuple[str, Level, Sequence[Cluster], str], ...] = (
        (
            "duplicate_across_groups",
            "fault",
            across,
            "are exact copies in different groups: one image could get into training and test. Correct the groups, or "
            "remove copies.",
        ),
        (
            "duplicate_across_parts",
            "warn",
            torn,
            "are exact copies in different ones of the folders train/, val/ and test/. As these are the split, `train` "
            "refuses it: remove the copies, or draw the split anew by --val and --test of `ssl-seg split make`.",
        ),
        (
            "duplicate_image",
            "warn",
            others,
            "are exact copies and count twice. Remove the copies; a split keeps them in one part.",
        ),
        (
            "near_duplicate_across_groups",
            "warn",
            near_across,
            "are nearly the same image in different groups (resized, compressed, mirrored?). Look, and join the "
            "groups.",
        ),
        ("near_duplicate", "info" if groups else "warn", near_within, near),
        (
            "alike_crowd",
            "warn",
            copies.crowds,
            "look like copies of the first, too many to be copies; a split deals them out. Look at them with --figure; "
            "if they are copies, give them one group in groups.csv.",
        ),
    )
    for code, level, clusters, said in rules:
        cases = [i for cluster in clusters for i in cluster]
        sets = name_examples((name_examples(cluster, between=" = ") for cluster in clusters), _SHOWN, between="; ")
        message = f"{len(cases)} cases in {counted(len(clusters), 'set')} ({sets}) {said}"
        yield from report(code, level, message, cases)
    pairs = (f"{p.first} ~ {p.second} {p.likeness:.2f}" for p in copies.pairs)
    shown = name_examples(pairs, _SHOWN, between="; ", total=len(copies.pairs))
    message = (
        f"{counted(len(copies.pairs), 'pair', 'of images are')} very similar: {shown}. If two show one patient or one "
        "place, give them one group in groups.csv."
    )
    yield from report("alike_images", "info", message, name_ends((p.first, p.second) for p in copies.pairs))


def _in_several(cluster: Cluster, groups: Mapping[str, str]) -> bool:
    return bool(groups) and len({groups[i] for i in cluster}) > 1
