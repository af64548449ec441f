"""A diagnosis in a few lines: what was looked at, the verdict with its findings, the causes and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ssl_seg.report.diagnosis_tables import PART_TITLES, Statistics
from ssl_seg.scores.text import UNKNOWN, figure

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Cause, Diagnosis


def describe_parts(statistics: Statistics) -> str:
    """Return how many images of which part were looked at, in words."""
    parts = statistics.get("looked_at", {})
    counted = [(PART_TITLES[name], parts[name]) for name in PART_TITLES if isinstance(parts.get(name), Mapping)]
    if len(counted) == 1 and counted[0][0] == PART_TITLES["new"]:
        return f"{counted[0][1]['used']} of {counted[0][1]['of']} images"
    return ", ".join(f"{c['used']} of {c['of']} {title}" for title, c in counted if c["of"]) + " images"


def format_verdict(diagnosis: Diagnosis) -> str:
    """Return the verdict in one line that can be searched for: ``verdict: LEVEL CODE: MESSAGE``."""
    verdict = diagnosis.verdict
    return f"verdict: {verdict.level} {verdict.code}: {verdict.message}"


def describe_scope(diagnosis: Diagnosis) -> str:
    """Return which network looked at how many images, and how long, in one line."""
    looked = diagnosis.statistics.get("looked_at", {})
    details = [describe_parts(diagnosis.statistics)]
    if looked.get("net"):
        details.insert(0, f"{looked['net']} of step {looked.get('step', UNKNOWN)}")
    if looked.get("read_as"):
        details.append(f"read as {looked['read_as']}")
    if looked.get("seconds_used") is not None:
        budget = f" of {looked['seconds']:g}" if looked.get("seconds") is not None else ""
        details.append(f"{looked['seconds_used']:.1f}{budget} s")
    if looked.get("skipped"):
        details.append(f"no time left for {', '.join(looked['skipped'])}")
    return "; ".join(details)


def format_findings(diagnosis: Diagnosis) -> list[str]:
    """Return the first finding, the others in one line, the likely causes with their evidence, and what to do."""
    lines = [
        f"  {f.level.upper()} {f.code} ({f.net}): {f.message} [{figure(f.value)}, limit {figure(f.limit)}]"
        for f in diagnosis.findings[:1]
    ]
    if len(diagnosis.findings) > 1:
        lines.append(f"    also: {', '.join(f'{f.code} ({f.net})' for f in diagnosis.findings[1:])}")
    if diagnosis.causes:
        lines.append("likely causes, the most likely first:")
    listed = zip(diagnosis.causes, list_evidence(diagnosis.causes), strict=True)
    for rank, (cause, evidence) in enumerate(listed, start=1):
        lines.append(f"  {rank}. {cause.text}")
        lines += [f"     - {text}" for text in evidence]
    return [*lines, f"do: {diagnosis.action}"] if diagnosis.action else lines


def list_evidence(causes: Sequence[Cause]) -> list[list[str]]:
    """Return the evidence of each cause; refer to an earlier cause in place of repeating its evidence."""
    first: dict[str, int] = {}
    listed = []
    for rank, cause in enumerate(causes, start=1):
        earlier = dict.fromkeys(first[text] for text in cause.evidence if text in first)
        new = [text for text in cause.evidence if text not in first]
        listed.append([*new, *(f"as for cause {other}" for other in earlier)])
        first |= dict.fromkeys(new, rank)
    return listed
