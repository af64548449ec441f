"""From findings and figures to likely causes, each with its evidence, and to the command to run next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssl_seg.diagnose.facts import Facts, Subject
from ssl_seg.diagnose.result import Cause, Conclusion
from ssl_seg.diagnose.suspects import RULES
from ssl_seg.monitor.findings import Finding

MOST = 3


def explain(
    verdict: Conclusion, findings: Sequence[Finding], statistics: Mapping[str, Any], subject: Subject
) -> tuple[tuple[Cause, ...], str]:
    """Return at most three likely causes, the most likely first, and the command to run next.

    Causes that measured figures speak for come before those that a code merely has in most cases.
    """
    facts = Facts(findings, statistics, subject)
    if verdict.level == "ok":
        return (), _command_if_healthy(facts)
    suspects = [found for rule in RULES if (found := rule(facts)) is not None]
    causes = [suspect.cause for suspect in suspects]
    causes += list(_usual_causes(findings))
    command = suspects[0].command if suspects else facts.examine()
    if not suspects and verdict.level == "collapsed" and subject.checkpoint is not None:
        command = facts.recover()
    return tuple(causes[:MOST]), command


def _usual_causes(findings: Sequence[Finding]) -> Iterator[Cause]:
    """Yield the causes that the code of the worst finding has in most cases."""
    if findings:
        yield from (Cause(text, (findings[0].message,), findings[0].hint) for text in findings[0].causes)


def _command_if_healthy(facts: Facts) -> str:
    if facts.subject.checkpoint is None:
        return facts.examine()
    return f"ssl-seg predict {facts.checkpoint} IMAGES OUTPUT"
