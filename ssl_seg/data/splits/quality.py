"""Does a split keep what it promises, and do its sets hold what the whole holds? All rules in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ssl_seg.data.findings import Finding
from ssl_seg.data.splits.balance import (
    check_classes,
    check_foreground,
    check_group_sizes,
    check_prevalence,
    check_shifts,
    check_validation_size,
)
from ssl_seg.data.splits.checks import (
    check_alike,
    check_disjoint,
    check_duplicates,
    check_files,
    check_groups,
    check_near_duplicates,
    check_nested,
    lists_of,
    parts_of,
)
from ssl_seg.data.splits.split import NearCopies, Split, find_classes
from ssl_seg.data.splits.statistics import RANDOM_DRAWS, SEED, SetMeasures, measure_split, measures_to_dict

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog


def check_split(
    split: Split,
    catalog: Catalog | None = None,
    measures: Sequence[SetMeasures] | None = None,
    *,
    near_copies: NearCopies = "keep_together",
) -> list[Finding]:
    """Return all findings, in the order of the checks; no ``fault`` means that the split can be used.

    Args:
        split: any split, also one that was not made by ``make_split``.
        catalog: the cases as they are now; without it, nothing is said about files, images, foreground and classes.
        measures: of this split and catalog, where they are known already.
        near_copies: ignore makes near copies in two parts a warning.
    """
    lists, parts = lists_of(split), parts_of(split)
    groups, content = split.groups, split.content
    if catalog is not None:  # what is known now counts too: a group file that came later, ids without a content
        groups = groups | {case.id: case.group for case in catalog.cases if case.group}
        content = content | {i: facts.content for i, facts in catalog.facts.items()}
    findings = [
        *check_nested(split),
        *check_disjoint(lists),
        *check_groups(parts, groups),
        *check_duplicates(parts, content),
        *check_validation_size(split),
    ]
    if catalog is None:
        return findings
    findings += [
        *check_files(split, parts, catalog),
        *check_near_duplicates(lists, catalog, near_copies),
        *check_alike(parts, catalog),
    ]
    measures = measure_split(split, catalog) if measures is None else measures
    if any(m.fraction == 1.0 for m in measures):
        classes = find_classes(catalog)
        findings += [
            *check_foreground(measures),
            *check_classes(split, classes),
            *check_prevalence(measures),
            *check_shifts(measures),
            *check_group_sizes(split, measures),
        ]
    return findings


def summarize_split(split: Split, findings: Sequence[Finding], measures: Sequence[SetMeasures]) -> dict[str, Any]:
    """Return fingerprint, numbers of findings, and the figures of each set, as plain types."""
    levels = [finding.level for finding in findings]
    return {
        "fingerprint": split.fingerprint,
        "faults": levels.count("fault"),
        "warnings": levels.count("warn"),
        "findings": len(findings),
        "random_splits": RANDOM_DRAWS,
        "seed": SEED,
        "sets": {m.name: measures_to_dict(m) for m in measures},
    }
