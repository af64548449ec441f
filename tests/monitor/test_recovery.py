"""Runs that intervene against their own collapse. The verdicts are given; what they set off is real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import train_tiny
from interruption import stop_after
from test_engine import make_batch, make_engine
from test_policy_runs import assert_equal, load_state, train_killed
from torch import Tensor

from ssl_seg.data.loader import PatchSource
from ssl_seg.data.open import shift_foreground_share
from ssl_seg.engine.engine import Restraint, StepRecord
from ssl_seg.engine.interventions import Interventions
from ssl_seg.engine.step_sums import StepSums
from ssl_seg.errors import RunDirError
from ssl_seg.monitor.findings import RuleFinding, Verdict
from ssl_seg.monitor.monitor import Monitor, Observation
from ssl_seg.monitor.recovery import InterventionSettings, RecoveryState
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

RECOVER = {
    "split": {"labels": 0.5},
    "data": {"foreground_ratio": 0.3},
    "batch": {"labeled": 2, "unlabeled": 2},
    "length": {"steps": 24, "steps_per_epoch": 4},
    "optim": {"warmup_steps": 1, "lr": 0.003},
    "monitor": {
        "on_collapse": "recover", "patience_steps": 3, "check_steps": 2,
        "probe_patches": 2, "train_probe_patches": 0, "first_epoch_probes": [0],
    },
    "policies": {"swa": {"start_epoch": 1, "every_epochs": 1}},
}  # fmt: skip
SICK = range(8, 22)
"""Steps whose verdict is collapsed: the ladder is climbed at 8, 11, 14, 17, 20 (restore)."""
FILES = ("last", "best", "healthy", "swa")


@pytest.fixture(scope="module")
def _sick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "look", make_sick(Monitor.look, SICK))
        yield


def make_sick(look: Callable[..., Observation], steps: range) -> Callable[..., Observation]:
    def sick(*args: Any, **kwargs: Any) -> Observation:
        observation = look(*args, **kwargs)
        finding = RuleFinding("all_negative", "collapsed", "student", 0.0, 1.0, "given", "given")
        verdict = Verdict((finding,)) if observation.step in steps else Verdict()
        return replace(observation, verdict=verdict)

    return sick


@pytest.fixture(scope="module")
def whole_run(_sick: None, tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("recover") / "whole", particles_dir, RECOVER).run


def interventions_of(run: RunDir) -> list[dict[str, Any]]:
    return [e for e in run.read_events() if e["event"] == "intervention"]


@pytest.mark.usefixtures("_sick")
class TestRun:
    def test_every_rung_is_an_event_at_its_step(self, whole_run: RunDir) -> None:
        done = [(e["step"], e["rung"]) for e in interventions_of(whole_run)]
        assert done == [(8, "warn"), (11, "consistency_off"), (14, "lower_lr"), (17, "resample"), (20, "restore")]
        assert all(e["codes"] == ["all_negative"] for e in interventions_of(whole_run))

    def test_the_effect_of_each_rung_is_on_record(self, whole_run: RunDir) -> None:
        records = {r["step"]: r for r in whole_run.read_metrics()}
        assert set(records) == {0, 4, 8, 11, 12, 14, 16, 17, 20, 24}  # ends of epochs, and looks at what was done
        assert records[8]["train/consistency_weight"] > 0
        assert {records[s]["train/consistency_weight"] for s in (12, 14, 16, 17, 20)} == {0.0}
        assert [records[s]["train/lr_multiplier"] for s in (12, 14, 16, 20, 24)] == [1, 1, 0.25, 0.25, 0.0625]

    def test_the_restore_brings_back_the_last_healthy_networks(self, whole_run: RunDir) -> None:
        healthy = load_checkpoint(whole_run.healthy)
        assert healthy.progress.step == 24  # the run ends well; until then it was that of step 4
        assert (
            interventions_of(whole_run)[-1]["ladder"]["restored_at"],
            interventions_of(whole_run)[-1]["to_step"],
        ) == (
            20,
            4,
        )
        swa = load_checkpoint(whole_run.swa)
        assert load_checkpoint(whole_run.last).parts["swa"]["count"] == 1, "the restore emptied the average"
        assert swa.progress.step == 24

    @pytest.mark.parametrize("at", ["step 13", "step 22", "before last 4", "before healthy 2"])
    def test_killed_in_mid_ladder_and_resumed_it_ends_with_the_same_bits(
        self, whole_run: RunDir, particles_dir: Path, tmp_path: Path, at: str
    ) -> None:
        run = train_killed(at, tmp_path / "run", particles_dir, RECOVER)
        for name in FILES:
            assert_equal(load_state(run, name), load_state(whole_run, name), name)
        assert strip(run.read_metrics()) == strip(whole_run.read_metrics())
        assert told(run) == told(whole_run), "each verdict and action once, at its step"

    @pytest.mark.parametrize("step", [10, 21])
    def test_interrupted_between_looks_the_means_go_on(
        self, whole_run: RunDir, particles_dir: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the middle of an epoch: the means over its steps and the ladder are those of the whole run."""
        with monkeypatch.context() as patch:
            patch.setattr("ssl_seg.run.training.stop_flag", stop_after(step))
            assert train_tiny(tmp_path / "run", particles_dir, RECOVER).ending == "interrupted"
        run = train(TrainRequest(resume=tmp_path / "run")).run
        for name in FILES:
            assert_equal(load_state(run, name), load_state(whole_run, name), name)
        assert strip(run.read_metrics()) == strip(whole_run.read_metrics())
        assert told(run) == told(whole_run)


def told(run: RunDir) -> list[dict[str, Any]]:
    """Return the events that do not tell of the process itself."""
    of_process = {"runtime", "resumed", "interrupted"}
    return [{k: v for k, v in e.items() if k != "time"} for e in run.read_events() if e["event"] not in of_process]


def strip(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records without what depends on the clock."""
    return [
        {k: v for k, v in record.items() if not k.startswith("machine/") and k != "train/seconds_per_step"}
        for record in records
    ]


class TestEnds:
    def test_the_end_of_the_ladder_is_the_end_of_the_run(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Monitor, "look", make_sick(Monitor.look, range(8, 99)))
        settings = RECOVER | {"length": {"steps": 60, "steps_per_epoch": 4}, "method": {"name": "supervised"}}
        settings["batch"] = {"labeled": 2, "unlabeled": 0}
        result = train_tiny(tmp_path / "run", particles_dir, settings)
        assert [e["rung"] for e in interventions_of(result.run)] == [
            "warn", "lower_lr", "resample", "restore", "restore", "stop",
        ]  # fmt: skip
        assert (result.ending, result.step) == ("collapsed", 37)
        assert [e["to_step"] for e in interventions_of(result.run) if e["rung"] == "restore"] == [4, 0]
        last = load_checkpoint(result.run.last)
        assert last.progress.step == 37
        assert [row["step"] for row in last.parts["monitor"]["trend"]] == [28, 32, 36], (
            "that of the networks given up is gone"
        )
        with pytest.raises(
            RunDirError, match=r"ended by its monitor at step 37: all_negative.*ssl-seg diagnose .*last.pt"
        ):
            train(TrainRequest(resume=result.run.path))
        ended = result.run.events_path.read_text().splitlines(keepends=True)
        result.run.events_path.write_text("".join(ended[:-1]))  # killed before it could say so
        assert train(TrainRequest(resume=result.run.path)).step == 37
        result.run.events_path.write_text("".join(ended[:-2]))
        assert train(TrainRequest(resume=result.run.path)).ending == "collapsed", "not by the checkpoint alone"
        assert load_checkpoint(result.run.healthy).progress.step == 4
        assert load_checkpoint(result.run.start).progress.step == 0

    def test_without_recover_nothing_is_done(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Monitor, "look", make_sick(Monitor.look, SICK))
        monitor = {**RECOVER["monitor"], "on_collapse": "warn"}  # type: ignore[dict-item]
        result = train_tiny(tmp_path / "run", particles_dir, RECOVER | {"monitor": monitor})
        assert interventions_of(result.run) == []
        assert not result.run.healthy.exists()
        assert not result.run.start.exists()
        assert result.ending == "finished"
        with pytest.raises(RunDirError, match="is finished: all 24 steps are done"):
            train(TrainRequest(resume=result.run.path))

    def test_stopped_at_the_end_of_an_epoch_it_does_not_go_on(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Monitor, "look", make_sick(Monitor.look, SICK))
        monitor = {**RECOVER["monitor"], "on_collapse": "stop"}  # type: ignore[dict-item]
        result = train_tiny(tmp_path / "run", particles_dir, RECOVER | {"monitor": monitor})
        assert (result.ending, result.step) == ("collapsed", 8)
        with pytest.raises(RunDirError, match="at step 8: all_negative"):
            train(TrainRequest(resume=result.run.path))


class TestBestCheckpoint:
    """A collapse whose trivial score beats every healthy one."""

    @pytest.mark.parametrize("level", ["collapsed", "warn"])
    def test_it_is_of_networks_that_have_not_collapsed(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Any
    ) -> None:
        look = Monitor.look

        def score_high(*args: Any, **kwargs: Any) -> Observation:
            observation = look(*args, **kwargs)
            is_sick = observation.step == 8
            val = {n: replace(s, f1_macro=0.9 if is_sick else s.f1_macro) for n, s in observation.val.items()}
            found = [RuleFinding("all_positive", level, n, 0.0, 1.0, "given", "given") for n in val]
            return replace(observation, val=val, verdict=Verdict(tuple(found) if is_sick else ()))

        monkeypatch.setattr(Monitor, "look", score_high)
        run = train_tiny(tmp_path / "run", particles_dir, RECOVER, {"length": {"steps": 12}}).run
        last = load_checkpoint(run.last)
        assert (last.progress.rank_epochs()[0] == 2) == (level == "warn"), "until whole cases decide"
        assert last.progress.history[1] == 0.9
        assert (2 in last.progress.collapsed) == (level == "collapsed")
        assert last.scores["selected"]["collapsed"] == []


class TestStep:
    def test_restraint_clips_tighter_and_forgets_the_unlabeled_patches(self) -> None:
        free, held = (make_engine() for _ in range(2))
        batch = make_batch()
        free_record = free.step(batch, 0, 0.01)
        held_record = held.step(batch, 0, 0.01, Restraint(1e-3, 0.0))
        assert float(held_record.terms["consistency_weight"]) == 0.0 < float(free_record.terms["consistency_weight"])
        assert held_record.clip_norm == 1e-3
        assert float(held_record.loss) < float(free_record.loss)

    def test_the_policies_cannot_raise_the_rate_after_a_cut(self) -> None:
        settings = InterventionSettings(("warn", "stop"), 25, 0, None)
        interventions = Interventions(settings)
        assert interventions.scale_lr(RecoveryState(), 10, 3.0) == 3.0
        assert interventions.scale_lr(RecoveryState(climbed=1, lr_factor=0.25), 10, 3.0) == 0.25
        assert interventions.scale_lr(RecoveryState(climbed=1, lr_factor=0.25), 10, 0.5) == 0.125
        assert interventions.restrain(RecoveryState(), 10) == Restraint()
        assert interventions.restrain(RecoveryState(climbed=1, consistency_off_until=11), 10).unlabeled_factor == 0.0
        assert interventions.restrain(RecoveryState(climbed=1, consistency_off_until=11), 11).unlabeled_factor == 1.0


class TestResample:
    def make(self, positive: set[str], **options: Any) -> PatchSource:
        return PatchSource(
            None, ("a", "b", "c"), (), (4, 0), (8, 8), 0.33, None, positive=frozenset(positive), **options  # type: ignore[arg-type]
        )  # fmt: skip

    def test_more_and_less(self) -> None:
        mixed, full, empty = self.make({"a"}), self.make({"a", "b", "c"}), self.make(set())
        for source, ratios in ((mixed, (0.5, 0.5)), (full, (None, 0.5))):
            more = shift_foreground_share(source, "more")
            assert (more.positive_ratio, more.foreground_ratio) == ratios
        assert shift_foreground_share(empty, "more") == empty
        assert shift_foreground_share(mixed, None) == mixed
        less = shift_foreground_share(self.make({"a"}, positive_ratio=0.8), "less")
        assert (less.positive_ratio, less.foreground_ratio) == (None, 0.0)

    def test_a_higher_share_is_kept(self) -> None:
        assert shift_foreground_share(self.make({"a"}, positive_ratio=0.9), "more").positive_ratio == 0.9


class TestWindow:
    def add(self, window: StepSums, losses: list[float]) -> None:
        for loss in losses:
            terms = {"prevalence_true": torch.tensor(0.25), "prevalence_pred": torch.tensor(0.5)}
            terms["prevalence_both"] = torch.tensor(0.2)
            window.add(StepRecord(torch.tensor(loss), terms, torch.tensor(3.0), 0.1, 2.0), 1.0)

    def test_means_and_f1_of_the_labeled_batches(self) -> None:
        window = StepSums()
        self.add(window, [1.0, 2.0, 6.0])
        means = window.compute_means()
        assert (means["loss"], means["steps"], means["clipped_share"]) == (3.0, 3.0, 1.0)
        assert means["batch_f1"] == pytest.approx(2 * 0.2 / 0.75)
        assert "prevalence_both" not in means
        assert StepSums().compute_means() == {}

    def test_means_are_over_the_steps_of_all_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another process has larger losses, and a term that this one has not."""

        def gather(found: list[Any], own: tuple[dict[str, float], Counter[str]]) -> None:
            sums, counts = own
            found[:] = [own, ({**sums, "loss": 30.0, "other": 4.0}, Counter({**counts, "other": 2}))]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        window = StepSums()
        self.add(window, [1.0, 2.0, 6.0])
        means = window.compute_means(SimpleNamespace(world_size=2))  # type: ignore[arg-type]
        assert (means["loss"], means["other"], means["steps"], means["grad_norm"]) == (6.5, 2.0, 3.0, 3.0)
        assert means["batch_f1"] == pytest.approx(2 * 0.2 / 0.75)
        assert window.compute_means(SimpleNamespace(world_size=1))["loss"] == 3.0  # type: ignore[arg-type]

    def test_the_device_is_waited_for_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        window, waits = StepSums(), list[str]()
        self.add(window, [1.0, 2.0])

        def count(name: str) -> None:
            read = getattr(Tensor, name)
            monkeypatch.setattr(Tensor, name, lambda *args: (waits.append(name), read(*args))[1])

        for name in ("tolist", "item", "cpu", "__float__", "__bool__"):
            count(name)
        window.compute_means()
        window.state_dict()
        assert waits == ["tolist", "tolist"]

    def test_what_is_known_of_accepted_pseudo_labels_is_weighted_by_their_number(self) -> None:
        window = StepSums()
        for accepted, foreground, right in ((0.8, 0.2, 0.4), (0.0, 0.0, 0.0), (0.2, 0.2, 0.2)):
            shares = {"accepted_share": accepted, "accepted_foreground": foreground}
            shares |= {"labeled_accepted": accepted, "labeled_right": right}
            terms = {name: torch.tensor(share) for name, share in shares.items()}
            window.add(StepRecord(torch.tensor(1.0), terms, torch.tensor(3.0), 0.1, 2.0), 1.0)
        means = window.compute_means()
        assert means["accepted_prevalence"] == pytest.approx(0.4 / 1.0)
        assert means["pseudo_label_precision"] == pytest.approx(0.6 / 1.0)

    def test_state_goes_on_exactly(self) -> None:
        draws = torch.rand(20).tolist()
        whole, first, second = StepSums(), StepSums(), StepSums()
        self.add(whole, draws)
        self.add(first, draws[:7])
        second.load_state_dict(first.state_dict(), torch.device("cpu"))
        self.add(second, draws[7:])
        assert second.compute_means() == whole.compute_means()

    def test_a_loss_that_becomes_0_late_in_a_long_window_is_seen_at_the_next_glance(self) -> None:
        window = StepSums()
        self.add(window, [0.4] * 20)
        assert not window.raises_alarm()
        self.add(window, [0.0] * 20)
        kept = StepSums()
        kept.load_state_dict(window.state_dict(), torch.device("cpu"))
        assert kept.raises_alarm()
        assert window.raises_alarm()

    @pytest.mark.parametrize(
        ("losses", "alarms"),
        [([0.4, 0.3], False), ([0.4, float("nan")], True), ([0.0, 0.0], True), ([0.0, 0.1], False), ([], False)],
    )
    def test_alarm(self, losses: list[float], alarms: bool) -> None:
        window = StepSums()
        self.add(window, losses)
        assert window.raises_alarm() == alarms
        assert not window.raises_alarm(), "only when it is new"
