"""Where a run talks to, and what it writes down: records, events, checkpoints."""

from __future__ import annotations

from typing import Any, Protocol

from ssl_seg.checkpoint import Checkpoint, Progress, save_checkpoint
from ssl_seg.configio import to_plain
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.splits.files import split_to_dict
from ssl_seg.engine.engine import Engine
from ssl_seg.monitor.verdicts import Verdict
from ssl_seg.monitor.watch import Observation
from ssl_seg.prepare import Prepared


class Console(Protocol):
    """Where a run talks to. Only rank 0 talks."""

    def note(self, text: str) -> None:
        """Show a line of information."""
        ...

    def probe(self, line: str, verdict: Verdict) -> None:
        """Show the line of a probe, and the findings of its verdict where they are new."""
        ...

    def track(self, label: str) -> Track:
        """Return a wrapper that shows progress over an iterable."""
        ...

    def start(self, first_step: int, total_steps: int) -> None:
        """Begin to show the progress of training."""
        ...

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        ...

    def stop(self) -> None:
        """End showing the progress of training."""
        ...


class Silent:
    """A console that shows nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def probe(self, line: str, verdict: Verdict) -> None:
        """Show nothing."""

    def track(self, label: str) -> Track:  # noqa: ARG002 (a Console takes it)
        """Return a wrapper that does nothing."""
        return pass_through

    def start(self, first_step: int, total_steps: int) -> None:
        """Show nothing."""

    def advance(self, step: int) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


class Recorder:
    """Writes records, events and checkpoints of the first process; on the others it does nothing."""

    def __init__(self, prepared: Prepared, engine: Engine, console: Console, active: bool) -> None:
        self.prepared, self.engine, self.console, self.active = prepared, engine, console, active
        self.scores: dict[str, Any] = {}
        self.codes: tuple[str, ...] = ()

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        """Append the record of a probe, its verdict where that is new, and show the line."""
        self.scores = _scores_of(observation)
        if not self.active:
            return
        run, verdict = self.prepared.run, observation.verdict
        run.append_metrics(record)
        if verdict.codes != self.codes:
            run.append_event("verdict", step=observation.step, **verdict.to_record())
            self.codes = verdict.codes
        self.console.probe(observation.format_line(), verdict)

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        if self.active:
            self.console.advance(step)

    def save(self, step: int, best_score: float, *, best: bool) -> None:
        """Write last.pt, and best.pt too when ``best``."""
        if not self.active:
            return
        engine = self.engine
        checkpoint = Checkpoint(
            student=engine.student.state_dict(),
            teacher=engine.teacher.net.state_dict(),
            optimizer=engine.optimizer.state_dict(),
            progress=Progress(step, engine.teacher.updates, best_score),
            config=to_plain(self.prepared.config),
            split=split_to_dict(self.prepared.split),
            scores=self.scores,
        )
        # The best first: last.pt carries the best score, and a resumed run must not believe in a missing file.
        if best:
            save_checkpoint(checkpoint, self.prepared.run.best)
        save_checkpoint(checkpoint, self.prepared.run.last)


def _scores_of(observation: Observation) -> dict[str, Any]:
    """Return preliminary scores from the validation probe; ``margin_low`` is unknown there."""
    nets = {
        net: {
            "f1": s.f1,
            "f1_macro": s.f1_macro,
            "margin": s.f1 - s.trivial_f1,
            "margin_low": None,
            "margin_high": None,
        }
        for net, s in observation.val.items()
    }
    return {"source": "probe", "trivial_f1": observation.val["student"].trivial_f1, **nets}
