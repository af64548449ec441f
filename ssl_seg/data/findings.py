"""Findings of a check of data or of a split, and their form as JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, Literal

from ssl_seg.errors import name_examples

Level = Literal["info", "warn", "fault"]

SHOWN_CASES = 5
MOST_PAIRS = 100
"""Number of pairs whose images a finding names, at most."""

REMEDIES = (
    "Ways to get masks: (1) label: outline the foreground of a few images; 1 % can be enough to start. "
    "(2) Pseudo-label: correct the masks of an interactive tool such as SAM 2, or of a network that was trained on "
    "similar images (`ssl-seg predict RUN IMAGES MASKS`). (3) Weak supervision: scribbles, where data.ignore_value is "
    "the value of the voxels that nobody has marked."
)


@dataclass(frozen=True)
class Finding:
    """One observation: ``fault`` breaks a promise, ``warn`` weakens the numbers, ``info`` is there to be read.

    ``code`` is stable and in snake case; ``cases`` are the ids (or files) that it is about.
    """

    code: str
    level: Level
    message: str
    cases: tuple[str, ...] = ()


def report(code: str, level: Level, message: str, cases: Collection[str]) -> list[Finding]:
    """Return one finding about these cases; none where there are no cases."""
    return [Finding(code, level, message, tuple(cases))] if cases else []


def select_faults(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that are faults."""
    return [finding for finding in findings if finding.level == "fault"]


def sort_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings, faults first, then warnings, each in their order."""
    return sorted(findings, key=lambda finding: ("fault", "warn", "info").index(finding.level))


def describe_finding(finding: Finding) -> str:
    """Return one line: code, message and the first cases."""
    cases = f" ({name_examples(finding.cases, SHOWN_CASES)})" if finding.cases else ""
    return f"{finding.code}: {finding.message}{cases}"


def name_ends(pairs: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return the images of the first ``MOST_PAIRS`` pairs, each once."""
    return tuple(dict.fromkeys(chain.from_iterable(islice(pairs, MOST_PAIRS))))


def join_findings(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield findings as they are, or those of one code as one where they are more than ``SHOWN_CASES``."""
    for code in dict.fromkeys(finding.code for finding in findings):
        same = [finding for finding in findings if finding.code == code]
        if len(same) <= SHOWN_CASES:
            yield from same
            continue
        listed = "\n".join(f"  {finding.message}" for finding in same[:SHOWN_CASES])
        cases = tuple(case for finding in same for case in finding.cases)
        yield Finding(code, same[0].level, f"{len(same)} cases cannot be used; the first:\n{listed}\n ", cases)


def findings_to_dict(findings: Sequence[Finding], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON form ``{"findings": [...], "summary": {...}}``."""
    return {"findings": [asdict(finding) for finding in findings], "summary": dict(summary)}
