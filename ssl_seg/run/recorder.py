"""What a run writes down: records, events, checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal

from lightning_fabric import Fabric

from ssl_seg.config import GateConfig
from ssl_seg.engine.devices import call_on_main
from ssl_seg.engine.policies import PolicyEvent
from ssl_seg.files import atomic_write
from ssl_seg.monitor.findings import Verdict, format_block
from ssl_seg.monitor.monitor import Observation
from ssl_seg.monitor.signals import Signals
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.run.console import Console, show_look
from ssl_seg.run.directory import RunDir, find_last
from ssl_seg.run.gates import judge_gate
from ssl_seg.run.prepare import BegunRun


class Recorder:
    """Writes records, events and checkpoints of the first process; on the others it does nothing."""

    def __init__(
        self,
        prepared: BegunRun,
        fabric: Fabric,
        console: Console,
        copy: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self.prepared, self.fabric, self.console, self.copy = prepared, fabric, console, copy
        self.active = fabric.is_global_zero
        self.told = self.shown = Verdict().key

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        """Append the record of a probe, its verdict where that is new, and show the line."""
        if not self.active:
            return
        run, verdict = self.prepared.run, observation.verdict
        run.append_metrics(record)
        self._keep(verdict, observation.step)
        self.copy(record)
        show_look(self.console, observation.format_line(), record)
        self._show_block(verdict)

    def conclude(self, verdict: Verdict, step: int) -> None:
        """Take the verdict on the networks as they will be used, after ``step`` updates; show it where it is new."""
        if self.active and self._keep(verdict, step):
            self.console.note(f"step {step:>5} the end: {verdict.level} {','.join(verdict.codes)}".rstrip())
            self._show_block(verdict)

    def _show_block(self, verdict: Verdict) -> None:
        """Show a block when the findings are others than those that this process has shown last."""
        for text in format_block(verdict) if verdict.key != self.shown else ():
            self.console.note(text)
        self.shown = verdict.key

    def _keep(self, verdict: Verdict, step: int) -> bool:
        """Append the event of a verdict that is new; return whether it is."""
        is_new = verdict.key != self.told
        if is_new:
            self.prepared.run.append_event("verdict", step=step, **verdict.to_record())
            self.told = verdict.key
        return is_new

    def advance(self, step: int) -> None:
        """Show that ``step`` updates are done."""
        if self.active:
            self.console.advance(step)

    def report(self, action: PolicyEvent, step: int) -> None:
        """Append the event of a policy or an intervention and show its line."""
        if self.active:
            self.prepared.run.append_event(action.event, step=step, **action.values)
            kind = {"intervention": "monitor", "gate": "gate", "loss_phase": "loss"}.get(action.event, "policy")
            self.console.note(f"{kind}: {action.note}")

    def judge_gates(self, gates: Sequence[GateConfig], step: int) -> bool:
        """Judge gates that are due, and report; return, on all processes, whether one is broken."""

        def judge() -> bool:
            records = self.prepared.run.read_metrics()
            judged = [judgment for gate in gates if (judgment := judge_gate(gate, records)) is not None]
            for judgment in judged:
                self.report(PolicyEvent("gate", judgment.text, asdict(judgment)), step)
            return not all(judgment.passed for judgment in judged)

        return call_on_main(self.fabric, judge)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint as best.pt, best-2.pt, ... if its last score is among the best ones.

        Call it before ``save_last``: last.pt carries the scores, and a resumed run must not believe in a missing file.
        """
        config, progress = self.prepared.config, checkpoint.progress
        kept, newest = progress.rank_epochs()[: config.monitor.keep_best], len(progress.history)
        if not self.active or newest not in kept:
            return
        rank = kept.index(newest) + 1
        for lower in range(len(kept), rank, -1):
            self._move_down(min(kept[lower - 1] * config.length.steps_per_epoch, config.length.steps), lower)
        save_checkpoint(checkpoint, self.prepared.run.best_of_rank(rank))

    def _move_down(self, step: int, rank: int) -> None:
        """Copy the checkpoint of a step from the rank above, unless a run that was killed here has done so already.

        A copy, since each of the files must exist at any moment.
        """
        run = self.prepared.run
        target = run.best_of_rank(rank)
        if target.is_file() and load_checkpoint(target, lazy=True).progress.step == step:
            return
        with atomic_write(target) as temporary:
            shutil.copyfile(run.best_of_rank(rank - 1), temporary)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write last.pt."""
        if self.active:
            save_checkpoint(checkpoint, self.prepared.run.last)

    def save_snapshot(self, checkpoint: Checkpoint, step: int) -> None:
        """Keep the networks of a step, without the rest of the state."""
        if self.active:
            progress = replace(checkpoint.progress, step=step)
            save_checkpoint(replace(checkpoint, progress=progress, parts={}), self.prepared.run.snapshot(step))

    def keep_healthy(self, step: int) -> None:
        """Copy last.pt to healthy.pt; that of step 0 to start.pt too."""
        run = self.prepared.run
        for path in (run.healthy, *([run.start] if step == 0 else [])):
            if self.active:
                with atomic_write(path) as temporary:
                    shutil.copyfile(run.last, temporary)

    def load(self, name: Literal["best", "healthy", "start"]) -> Checkpoint:
        """Return a checkpoint of the run, on all processes; the first one reads it."""
        return call_on_main(self.fabric, lambda: load_checkpoint(getattr(self.prepared.run, name)))


def last_reported_verdict(run: RunDir) -> frozenset[tuple[str, str, str]]:
    """Return the key of the last verdict among the events of a run."""
    told = find_last(run.read_events(), "verdict").get("findings", ())
    return frozenset((f["code"], f["net"], f["level"]) for f in told)


def summarize_probe(observation: Observation) -> dict[str, Any]:
    """Return preliminary scores from the validation probe; the interval of the margin is unknown there.

    The form is that of ``final_scores.describe_for_checkpoint``.
    """
    return {
        "source": "probe",
        "trivial_f1": observation.val["student"].trivial_f1_macro,
        **{net: _score_of(signals) for net, signals in observation.val.items()},
        "selected": {
            "by": observation.select,
            "net": observation.better,
            "score": observation.score,
            "collapsed": sorted(observation.collapsed),
        },
    }


def _score_of(signals: Signals) -> dict[str, Any]:
    trivial = signals.trivial_f1_macro
    figures = {"f1": signals.f1, "f1_macro": signals.f1_macro, "trivial_f1": trivial}
    margin = {"margin": signals.f1_macro - trivial, "margin_low": None, "margin_high": None}
    return {**figures, **margin, "nonfinite": signals.nonfinite}
