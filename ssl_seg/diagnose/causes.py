"""From findings and figures to likely causes, each with its evidence, to one action, and to the command to run next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_seg.diagnose.facts import DiagnosisFacts, Subject
from ssl_seg.diagnose.result import Cause
from ssl_seg.diagnose.suspects import RULES
from ssl_seg.monitor.findings import Verdict

MOST = 3


def explain(verdict: Verdict, statistics: Mapping[str, Any], subject: Subject) -> tuple[tuple[Cause, ...], str, str]:
    """Return at most three causes that measured figures speak for, the most likely first; what to do; a command.

    What to do about a cause that was measured goes before what the verdict advises without one.
    """
    facts = DiagnosisFacts(verdict.findings, statistics, subject)
    if verdict.level == "ok":
        return (), "", _command_if_healthy(facts)
    suspects = [found for rule in RULES if (found := rule(facts)) is not None]
    causes = tuple(suspect.cause for suspect in suspects[:MOST])
    if suspects:
        return causes, suspects[0].action, suspects[0].command
    is_collapse = verdict.level == "collapsed" and subject.checkpoint is not None
    return causes, verdict.action, facts.recover() if is_collapse else facts.examine()


def _command_if_healthy(facts: DiagnosisFacts) -> str:
    if facts.subject.checkpoint is None:
        return facts.examine()
    return f"ssl-seg predict {facts.checkpoint} IMAGES OUTPUT"
