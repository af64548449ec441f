"""What the monitor says: findings with their numbers, and the verdict that they make together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Level = Literal["ok", "warn", "collapsed"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "collapsed")
UNSOUND = {"component_explosion", "loss_metric_divergence", "not_above_trivial", "plateau"}
"""Codes of warnings with which networks are not kept as healthy: a collapse may have begun."""


@dataclass(frozen=True)
class RuleFinding:
    """One thing that a rule saw."""

    code: str
    level: Level
    net: str
    """``student`` or ``teacher``, or a further network that the method trains; ``training`` for what concerns the run
    and not one network."""
    value: float
    limit: float
    source: str
    """Where the limit comes from."""
    message: str

    def soften(self) -> RuleFinding:
        """Return the finding as a warning."""
        return replace(self, level="warn")


@dataclass(frozen=True)
class Verdict:
    """The worst level among the findings; the first one leads, and has the only action."""

    findings: tuple[RuleFinding, ...] = ()
    action: str = ""
    """What to do about the one that leads."""

    @property
    def level(self) -> Level:
        """``ok``, ``warn`` or ``collapsed``."""
        return max((f.level for f in self.findings), key=LEVELS.index, default="ok")

    @property
    def is_sound(self) -> bool:
        """Whether the networks may be kept to go back to: they have not collapsed, and are not about to."""
        return self.level != "collapsed" and not UNSOUND & set(self.codes)

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings, each once, worst first."""
        ordered = sorted(self.findings, key=lambda f: -LEVELS.index(f.level))
        return tuple(dict.fromkeys(f.code for f in ordered))

    @property
    def others(self) -> tuple[str, ...]:
        """The codes behind the one that leads, each once with its networks."""
        nets: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.code != self.findings[0].code:
                nets.setdefault(finding.code, []).append(finding.net)
        return tuple(f"{code} ({', '.join(dict.fromkeys(own))})" for code, own in nets.items())

    @property
    def key(self) -> frozenset[tuple[str, str, str]]:
        """Code, network and level of each finding: another key is news."""
        return frozenset((f.code, f.net, f.level) for f in self.findings)

    def to_record(self) -> dict[str, Any]:
        """Return plain types for events.jsonl and JSON reports."""
        return {"level": self.level, "codes": list(self.codes), "action": self.action,
                "findings": [asdict(f) for f in self.findings]}  # fmt: skip


def describe_codes(verdict: Verdict, used: str) -> list[str]:
    """Return the codes of a verdict; one that only the network has that is not used, student or teacher, says so."""
    spare = {"student": "teacher", "teacher": "student"}[used]
    own = {finding.code for finding in verdict.findings if finding.net != spare}
    return [code if code in own else f"{code} ({spare}, which is not used)" for code in verdict.codes]


def format_block(verdict: Verdict) -> list[str]:
    """Return ``  LEVEL CODE (NET, NET): MESSAGE`` for the code that leads, the others in one line, and what to try.

    LEVEL is the worst one. Where several networks share the code, each has its own message behind its name, with its
    level where that is another.
    """
    if not verdict.findings:
        return []
    lead = verdict.findings[0]
    findings = [f for f in verdict.findings if f.code == lead.code]
    messages = [
        f"{f.net}{'' if f.level == lead.level else f' ({f.level})'} {f.message}" if len(findings) > 1 else f.message
        for f in findings
    ]
    lines = [f"  {lead.level.upper()} {lead.code} ({', '.join(f.net for f in findings)}): {' | '.join(messages)}"]
    lines += [f"    also: {', '.join(verdict.others)}"] if verdict.others else []
    return [*lines, f"    try: {verdict.action}"]
