"""What the monitor says: findings with their numbers, and the verdict that they make together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Level = Literal["ok", "warn", "collapsed"]
LEVELS: tuple[Level, ...] = ("ok", "warn", "collapsed")


@dataclass(frozen=True)
class Finding:
    """One thing that a rule saw."""

    code: str
    level: Level
    net: str
    """``student`` or ``teacher``; ``training`` for what concerns the run and not one network."""
    value: float
    limit: float
    source: str
    """Where the limit comes from."""
    message: str
    causes: tuple[str, ...]
    """Likely ones, the most likely first."""
    hint: str
    """What to do."""

    def soften(self) -> Finding:
        """Return the finding as a warning."""
        return replace(self, level="warn")


@dataclass(frozen=True)
class Verdict:
    """The worst level among the findings."""

    findings: tuple[Finding, ...] = ()

    @property
    def level(self) -> Level:
        """``ok``, ``warn`` or ``collapsed``."""
        return max((f.level for f in self.findings), key=LEVELS.index, default="ok")

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes of the findings, each once, worst first."""
        ordered = sorted(self.findings, key=lambda f: -LEVELS.index(f.level))
        return tuple(dict.fromkeys(f.code for f in ordered))

    @property
    def key(self) -> frozenset[tuple[str, str, str]]:
        """Code, network and level of each finding: another key is news."""
        return frozenset((f.code, f.net, f.level) for f in self.findings)

    def to_record(self) -> dict[str, Any]:
        """Return plain types for events.jsonl and JSON reports."""
        return {"level": self.level, "codes": list(self.codes), "findings": [asdict(f) for f in self.findings]}
