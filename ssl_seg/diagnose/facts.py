"""What causes are looked for in, and the commands that can be proposed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.errors import quote
from ssl_seg.files import next_free
from ssl_seg.monitor.actions import FAR, NO_CONTEXT, Context
from ssl_seg.monitor.findings import Finding
from ssl_seg.run.directory import CONFIG_FILE


@dataclass(frozen=True)
class Subject:
    """What was examined: the checkpoint with the data folder of its training, the folder that was looked at instead and
    the network; or a folder of predictions, with masks or without."""

    checkpoint: Path | None = None
    root: str = ""
    data: str | None = None
    which: str = ""
    masks: Path | None = None
    context: Context = NO_CONTEXT
    """Of the training; predictions are looked at as foreground and background."""
    is_elsewhere: bool = False
    """Whether the folder holds none of the validation cases of the training."""


@dataclass(frozen=True)
class DiagnosisFacts:
    """The findings and the statistics of a diagnosis."""

    findings: Sequence[Finding]
    statistics: Mapping[str, Any]
    subject: Subject

    @property
    def codes(self) -> frozenset[str]:
        """Codes of the findings."""
        return frozenset(f.code for f in self.findings)

    def row(self, net: str) -> Mapping[str, Any]:
        """Return a row of ``statistics["nets"]``, empty where it was not measured."""
        found: Mapping[str, Any] = self.statistics.get("nets", {}).get(net, {})
        return found

    def message(self, code: str) -> str:
        """Return the message of the first finding with this code."""
        return next(f.message for f in self.findings if f.code == code)

    def list_history(self) -> list[str]:
        """Return what the run said of itself: the first collapse, and what was done."""
        run = self.statistics.get("run", {})
        told = [
            f"step {v['step']}: the run's own verdict was {v['level']} {', '.join(v['codes'])}"
            for v in run.get("verdicts", [])
            if v["level"] == "collapsed"
        ]
        done = [f"step {a['step']}: {a['action']}" for a in run.get("actions", [])]
        further = [f"and {len(done) - 2} further action(s)"] * (len(done) > 2)
        return [*told[:1], *done[:2], *further]

    def train(self, *options: str) -> str:
        """Return the command of a training like this one with other settings, into a folder that is free."""
        run = self.statistics.get("run")
        if run is None:
            return " ".join([f"ssl-seg train --data {quote(self.subject.root or 'DATA')}", *options])
        out = quote(next_free(Path(run["directory"])))
        return " ".join([f"ssl-seg train --config {self.config}", *options, f"--out {out}"])

    def recover(self) -> str:
        """Return the command of a training that acts on a collapse by itself; where that was tried, of a slower one."""
        return self.slow_down() if self.subject.context.recovers else self.train("--set monitor.on_collapse=recover")

    def slow_down(self) -> str:
        """Return the command of a training with smaller updates."""
        context = self.subject.context
        lr = context.usual_lr if context.lr > FAR * context.usual_lr else context.lr / 10
        rate = [f"--set optim.lr={lr:g}"] if context.lr else []
        return self.train(*rate, "--set optim.clip_norm=1.0")

    @property
    def has_exploded(self) -> bool:
        """Whether the run was told so by its monitor."""
        return any("component_explosion" in v["codes"] for v in self.statistics.get("run", {}).get("verdicts", []))

    @property
    def config(self) -> str:
        """The configuration of the run, quoted; or the data of the training as an option."""
        run = self.statistics.get("run")
        if run is None:
            return f"--data {quote(self.subject.root or 'DATA')}"
        return quote(Path(run["directory"]) / CONFIG_FILE)

    @property
    def checkpoint(self) -> str:
        """The checkpoint, quoted, or a place for one."""
        return "CHECKPOINT" if self.subject.checkpoint is None else quote(self.subject.checkpoint)

    def audit(self) -> str:
        """Return the command that looks at the data."""
        return f"ssl-seg data audit {quote(self.subject.data or self.subject.root or 'DATA')}"

    def evaluate(self) -> str:
        """Return the command that scores the checkpoint."""
        data = "" if self.subject.data is None else f" --data {quote(self.subject.data)}"
        data += " --all" if self.subject.is_elsewhere else ""
        return f"ssl-seg evaluate {self.checkpoint}{data}"

    def examine(self) -> str:
        """Return the command that looks closer at what was examined: for predictions, at the checkpoint behind them."""
        if self.subject.checkpoint is not None:
            return self.evaluate()
        return "ssl-seg diagnose CHECKPOINT --data DATA"
