from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from test_engine import lr_at, make_engine
from test_methods import make_batch

from ssl_seg.data.loader import Batch, Probe
from ssl_seg.engine.engine import Engine, Restraint
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.policies import Policies, PolicyEvent
from ssl_seg.monitor.monitor import Monitor, Observation
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress
from ssl_seg.run.session import Schedule, Session, Watch, run_loop


@dataclass
class Recorder:
    probes: list[int] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    saves: list[RunProgress] = field(default_factory=list)
    offered: list[RunProgress] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    actions: list[tuple[str, int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def observe(self, observation: Observation, record: dict[str, Any]) -> None:
        self.probes.append(observation.step)
        self.records.append(record)

    def advance(self, step: int) -> None:
        self.steps.append(step)

    def report(self, action: PolicyEvent, step: int) -> None:
        self.actions.append((action.event, step))

    def save_best(self, checkpoint: Checkpoint) -> None:
        self.offered.append(checkpoint.progress)

    def save_last(self, checkpoint: Checkpoint) -> None:
        self.saves.append(checkpoint.progress)

    def keep_healthy(self, step: int) -> None:
        self.kept.append(step)

    def load(self, name: str) -> Checkpoint:
        raise AssertionError(f"{name}.pt is not read in these tests")

    @property
    def improved(self) -> list[int]:
        """Steps at which the newest score was the best."""
        return [p.step for p in self.offered if p.rank_epochs()[0] == len(p.history)]


def run(engine: Engine, steps: int, batches: list[Batch] | None = None, **options: Any) -> tuple[Any, Recorder]:
    probe = make_batch(labeled=4, seed=77)
    empty = Probe(torch.empty(0, 1, 12, 12), torch.empty(0, 12, 12, dtype=torch.int64))
    monitor = Monitor(
        val=Probe(probe.image, probe.target), train=empty, label_values=range(2), device=torch.device("cpu"),
        batch_size=3, autocast=nullcontext, warmup_steps=options.pop("warmup", 2), steps_per_epoch=10,
    )  # fmt: skip
    recorder, drawn = Recorder(), batches or [make_batch(seed=s) for s in range(steps)]
    stop_requested = options.pop("stop_requested", lambda _: False)
    session = Session(
        engine, Watch(engine, monitor, Schedule(steps, 10, (0, 1, 2, 5, 10, 20, 50))), None,  # type: ignore[arg-type]
        lambda first, _: iter(drawn[first:]), Policies(), Interventions(), recorder, lr_at,  # type: ignore[arg-type]
        {"config": {}, "split": {}, "seen_labels": ()}, **options,
    )  # fmt: skip
    return run_loop(session, stop_requested), recorder


class TestLoop:
    def test_probes_from_step_0_and_at_every_epoch(self) -> None:
        result, recorder = run(make_engine(), 25)
        assert (result.ending, result.step) == ("finished", 25)
        assert recorder.probes == [0, 1, 2, 5, 10, 20, 25]  # 20 ends the second epoch
        assert recorder.steps == list(range(1, 26))
        assert [p.step for p in recorder.saves] == [p.step for p in recorder.offered] == [0, 10, 20, 25]
        assert "train/loss" not in recorder.records[0]

    def test_records_hold_means_since_the_last_probe(self) -> None:
        engine = make_engine()
        losses = []
        plain_step = engine.step

        def step(batch: Batch, number: int, lr: float, restraint: Restraint) -> Any:
            record = plain_step(batch, number, lr, restraint)
            losses.append(float(record.loss))
            return record

        engine.step = step  # type: ignore[method-assign]
        _, recorder = run(engine, 10)
        assert recorder.records[-1]["train/loss"] == pytest.approx(sum(losses[5:10]) / 5, rel=1e-5)
        assert recorder.records[-1]["train/lr"] == pytest.approx(1e-2 * (1 - 9 / 100))
        assert set(recorder.records[-1]) >= {
            "train/grad_norm", "train/clipped_share", "train/consistency", "train/consistency_weight", "train/dice",
        }  # fmt: skip

    def test_stop_request_saves_and_ends_after_the_step(self) -> None:
        result, recorder = run(make_engine(), 20, stop_requested=lambda step: step == 7)
        assert (result.ending, result.step) == ("interrupted", 7)
        assert replace(recorder.saves[-1], ema_updates=0) == result.progress
        assert recorder.saves[-1].step == 7
        assert [p.step for p in recorder.offered] == [0]

    def test_best_is_saved_only_on_improvement_and_never_on_nan(self) -> None:
        result, recorder = run(make_engine(), 20)
        assert recorder.improved[0] == 0  # the untrained networks: there is always a best.pt
        scores = {r["step"]: {r[f"val/{net}/f1_macro"] for net in ("student", "teacher")} for r in recorder.records}
        standing = dict(zip((0, 10, 20), result.progress.ranking_scores, strict=True))  # collapsed networks are behind
        expected = [s for s in standing if standing[s] > max((standing[t] for t in standing if t < s), default=-9)]
        assert recorder.improved == expected
        assert result.progress.start_score in scores[0]
        assert all(score in scores[step] for score, step in zip(result.progress.history, (10, 20), strict=True))
        batches = [make_batch(seed=s) for s in range(20)]
        batches[3].image[0] = math.nan
        result, recorder = run(make_engine("supervised"), 20, batches)
        assert recorder.improved == [0]
        assert result.progress.history == (-math.inf,)
        assert result.observation.verdict.codes == ("non_finite",)

    def test_collapse_stops_only_when_asked(self) -> None:
        for stops, expected in ((False, ("finished", 30)), (True, ("collapsed", 10))):
            engine = make_engine("supervised")
            with torch.no_grad():
                list(engine.student.parameters())[-1][1] = 1e4  # foreground everywhere, for longer than the run
            result, _ = run(engine, 30, stop_on_collapse=stops)
            assert (result.ending, result.step) == expected

    def test_weights_of_nan_end_the_run_where_nothing_intervenes(self) -> None:
        batches = [make_batch(seed=s) for s in range(30)]
        batches[12].image[0] = math.nan
        result, _ = run(make_engine("supervised"), 30, batches, warmup=40)
        assert (result.ending, result.step) == ("collapsed", 20)
