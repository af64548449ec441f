"""Whole runs with policies: what they leave behind, and that a killed and resumed run ends with the same bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from conftest import train_tiny
from interruption import Killed, dying_at
from score_counts import make_net_score, make_scores
from test_engine import make_engine

import ssl_seg.run.finish
from ssl_seg.config import Config, PlateauResponseConfig
from ssl_seg.config.layers import validate
from ssl_seg.config.schedules import count_plateaus
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.policies import respond_to_plateaus
from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress, load_checkpoint
from ssl_seg.run.console import Silent
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores
from ssl_seg.run.recorder import Recorder
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

ALL_POLICIES = {
    "split": {"labels": 0.5},
    "network": {"norm": "batch"},
    "batch": {"labeled": 2, "unlabeled": 2},
    "length": {"steps": 20, "steps_per_epoch": 2},
    "optim": {"schedule": "reduce_on_plateau", "plateau_patience": 2, "warmup_steps": 2, "lr": 0.003},
    "ema": {"decay": 0.9, "schedule": "cosine", "final_decay": 0.99},
    "monitor": {"keep_best": 3, "probe_patches": 4, "train_probe_patches": 0, "first_epoch_probes": [0]},
    "policies": {
        "swa": {"start_epoch": 3, "every_epochs": 2},
        "weight_noise": {"start_epoch": 2, "std": 0.2, "decay": 0.9},
        "gradient_noise": {"std": 0.001},
        "random_batch_size": {"smallest": 1, "largest": 3},
        "plateau_response": {"patience": 1, "base": 3.0, "hold_epochs": 4, "rollback_drop": 1e-4},
    },
}
EMPTY: dict[str, Any] = {"trend": [], "ladder": {}, "window": {}}
FILES = ("last", "best", "best-2", "best-3", "swa")


def load_state(run: RunDir, name: str) -> dict[str, Any]:
    """Return what two equal runs share in a checkpoint; the order of dictionaries does not matter."""
    checkpoint = load_checkpoint(run.path / "checkpoints" / f"{name}.pt")
    return {**vars(checkpoint), "progress": vars(checkpoint.progress), "config": None, "split": None}


def assert_equal(first: Any, second: Any, where: str = "") -> None:
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.fixture(scope="module", autouse=True)
def _few_batches_for_batch_norm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl_seg.run.finish, "BATCH_NORM_BATCHES", 5)
        yield


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> RunDir:
    """An uninterrupted run with every policy on; a rollback is sure, since the noise spoils the networks."""
    result = train_tiny(tmp_path_factory.mktemp("policies") / "whole", particles_dir, ALL_POLICIES)
    assert result.swa_scores is not None
    return result.run


def train_killed(at: str, out: Path, data: Path, settings: dict[str, Any]) -> RunDir:
    """Return a run that was killed at the call with this number, the first one being 1, and resumed."""
    kind, number = at.rsplit(" ", 1)
    owner, name, when = {
        "step": (Engine, "step", "before"),
        "after moves": (Recorder, "_move_down", "after"),
        "before last": (Recorder, "save_last", "before"),
        "before healthy": (Recorder, "keep_healthy", "before"),
    }[kind]
    with pytest.raises(Killed), dying_at(owner, name, int(number), when):
        train_tiny(out, data, settings)
    return train(TrainRequest(resume=out)).run


def events_of(run: RunDir, name: str) -> list[dict[str, Any]]:
    return [e for e in run.read_events() if e["event"] == name]


class TestRunWithAllPolicies:
    def test_each_policy_has_acted_and_left_its_line(self, whole_run: RunDir) -> None:
        for name in ("plateau", "rollback", "swa", "weight_noise", "lr_reduced"):
            assert events_of(whole_run, name), name
        assert [e["epoch"] for e in events_of(whole_run, "swa")] == [3, 5, 7, 9]
        assert [e["epoch"] for e in events_of(whole_run, "weight_noise")] == list(range(2, 10))  # not at the end
        stds = [e["std"] for e in events_of(whole_run, "weight_noise")]
        assert stds == pytest.approx([0.2 * 0.9**k for k in range(8)])

    def test_the_rollback_went_to_the_best_epoch_and_ended_the_raises(self, whole_run: RunDir) -> None:
        (rollback,) = events_of(whole_run, "rollback")
        records = [r for r in whole_run.read_metrics() if r["step"] % 2 == 0]
        ranking_scores = load_checkpoint(whole_run.last).progress.ranking_scores[
            : rollback["step"] // 2
        ]  # of the better network
        assert rollback["to_step"] == 2 * ranking_scores.index(max(ranking_scores))
        raised = [r["step"] for r in records if r.get("train/lr_multiplier", 1.0) > 1.0]
        assert raised
        assert max(raised) <= rollback["step"]

    def test_the_learning_rate_on_record_is_the_product(self, whole_run: RunDir) -> None:
        progress = load_checkpoint(whole_run.last).progress
        settings = PlateauResponseConfig(**ALL_POLICIES["policies"]["plateau_response"])  # type: ignore[index]
        for record in whole_run.read_metrics()[1:]:
            start, *history = progress.ranking_scores[: record["epoch"]]
            multiplier = respond_to_plateaus(history, start, settings).multiplier
            warm = min(1.0, record["step"] / 2)
            expected = 0.003 * warm * 0.5 ** count_plateaus(history, 2)
            assert record["train/lr_multiplier"] == multiplier
            assert record["train/lr"] == pytest.approx(multiplier * expected)

    def test_swa_is_the_mean_with_its_own_statistics_and_scores(self, whole_run: RunDir) -> None:
        last, swa = (load_checkpoint(path) for path in (whole_run.last, whole_run.swa))
        assert last.parts["swa"]["count"] == 3  # epochs 5, 7 and 9: the rollback took back the one before
        for name, value in last.parts["swa"]["average"].items():
            assert torch.equal(swa.student[name], value) == ("running" not in name and "num_batches" not in name)
        assert_equal(swa.teacher, swa.student)  # whichever network is used, it is the mean
        assert swa.scores["source"] == "validation"
        assert swa.scores["teacher"] == swa.scores["student"]
        assert swa.scores["student"] != last.scores["student"]
        (finished,) = events_of(whole_run, "finished")
        assert finished["swa"] == swa.scores["student"]

    def test_the_best_checkpoints_are_those_of_the_best_epochs(self, whole_run: RunDir) -> None:
        progress = load_checkpoint(whole_run.last).progress
        ranking_scores = progress.ranking_scores
        steps = [load_state(whole_run, name)["progress"]["step"] for name in FILES[2:4]]
        assert steps == [2 * epoch for epoch in progress.rank_epochs()[1:3]]
        assert [ranking_scores[step // 2] for step in steps] == sorted(ranking_scores, reverse=True)[1:3]

    def test_best_is_the_file_of_the_network_that_is_best_on_whole_cases(self, whole_run: RunDir) -> None:
        final, (finished,) = load_final_scores(whole_run), events_of(whole_run, "finished")
        assert final is not None
        assert {n.source for n in final.networks} == {"best", "last", "swa"}
        assert final.used.score.f1 == max(n.score.f1 for n in final.networks if not n.collapsed)
        best = finished["best"]
        assert (best["step"], best["net"], best["score"]) == (
            final.used.step,
            final.used.net,
            final.used.score.f1_macro,
        )
        file = whole_run.best if final.used.source == "best" else whole_run.best.with_name(f"{final.used.source}.pt")
        assert whole_run.best.read_bytes() == file.read_bytes()
        assert load_checkpoint(whole_run.best).scores[best["net"]]["f1"] == final.used.score.f1

    @pytest.mark.parametrize("at", ["step 12", "after moves 2", "before last 6"])
    def test_killed_and_resumed_it_ends_with_the_same_bits(
        self, whole_run: RunDir, particles_dir: Path, tmp_path: Path, at: str
    ) -> None:
        run = train_killed(at, tmp_path / "run", particles_dir, ALL_POLICIES)
        for name in FILES:
            assert_equal(load_state(run, name), load_state(whole_run, name), name)
        assert [r["step"] for r in run.read_metrics()] == [r["step"] for r in whole_run.read_metrics()]


MILDER: dict[str, Any] = {
    "split": {"labels": 0.5},
    "network": {"norm": "batch"},
    "method": {"name": "supervised"},
    "batch": {"labeled": 2, "unlabeled": 0},
    "length": {"steps": 14, "steps_per_epoch": 2},
    "optim": {"schedule": "constant", "warmup_steps": 0, "lr": 1e-4},
    "loss": {"weights": {"dice": 1.0, "variance": 0.0}},
    "monitor": {"probe_patches": 4, "train_probe_patches": 0, "first_epoch_probes": [0]},
    "policies": {
        "weight_noise": {"start_epoch": 2, "every_epochs": 99, "std": 0.3},
        "plateau_response": {
            "patience": 1, "base": 3.0, "hold_epochs": 4, "rollback_drop": 1e-4,
            "after_rollback": {"base": 1.5, "component_weights": {"variance": 0.08}, "judge_epochs": None},
        },
    },
}  # fmt: skip
"""The noise spoils the networks after the second epoch, so they are rolled back soon."""


class TestAfterARollback:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> RunDir:
        return train_tiny(tmp_path_factory.mktemp("milder") / "whole", particles_dir, MILDER).run

    def test_the_milder_rule_and_the_weights_hold_from_there_on(self, run: RunDir) -> None:
        """Against the recorded components: the loss is their weighted sum, and linear in their means."""
        rollback, phase = events_of(run, "rollback")[0], events_of(run, "loss_phase")[0]
        assert phase["step"] == rollback["step"] < 10
        assert phase["weights"] == {"dice": 1.0, "variance": 0.08}
        for record in run.read_metrics()[1:]:
            weight = 0.08 if record["step"] > rollback["step"] else 0.0
            for place in ("train/loss", "val/student/loss"):
                part = "train/" if place == "train/loss" else "val/student/loss/"
                expected = record[f"{part}dice"] + weight * record[f"{part}variance"]
                assert record[place] == pytest.approx(expected, rel=1e-5), (place, record["step"])
        raised = {r["step"] > rollback["step"]: r["train/lr_multiplier"] for r in run.read_metrics()[1:]
                  if r["train/lr_multiplier"] > 1}  # fmt: skip
        assert raised == {False: 3.0, True: 1.5}

    def test_killed_right_after_it_and_resumed_it_ends_with_the_same_bits(
        self, run: RunDir, particles_dir: Path, tmp_path: Path
    ) -> None:
        step = events_of(run, "rollback")[0]["step"] + 1
        resumed = train_killed(f"step {step}", tmp_path / "run", particles_dir, MILDER)
        for name in ("last", "best"):
            assert_equal(load_state(resumed, name), load_state(run, name), name)
        without = {"time", "train/seconds_per_step"}
        rows = [
            [{k: v for k, v in row.items() if k not in without and not k.startswith("machine/")} for row in own]
            for own in (resumed.read_metrics(), run.read_metrics())
        ]
        assert rows[0] == rows[1]

    @pytest.mark.parametrize(
        ("weights", "words"),
        [
            ({"focal": 1.0}, r"names 'focal', which loss\.weights does not.*or one of dice, variance"),
            ({"dice": 0.0}, "leaves no component of .* with a weight"),
            ({"dice": -1.0}, r"component_weights\.dice = -1"),
        ],
    )
    def test_weights_that_do_not_fit(self, run: RunDir, weights: dict[str, float], words: str) -> None:
        config = copy.deepcopy(load_checkpoint(run.last).config)
        validate(Config, config)
        config["policies"]["plateau_response"]["after_rollback"]["component_weights"] = weights
        with pytest.raises(ConfigError, match=words):
            validate(Config, config)

    def test_without_weights_of_its_own_another_network_comes_of_it(
        self, run: RunDir, particles_dir: Path, tmp_path: Path
    ) -> None:
        other = copy.deepcopy(MILDER)
        other["policies"]["plateau_response"]["after_rollback"]["component_weights"] = {}
        plain = train_tiny(tmp_path / "run", particles_dir, other).run
        assert events_of(plain, "rollback")[0]["step"] == events_of(run, "rollback")[0]["step"]
        assert events_of(plain, "loss_phase") == []
        states = [load_checkpoint(own.last).student for own in (run, plain)]
        assert any(not torch.equal(states[0][name], states[1][name]) for name in states[0])


class TestBestCheckpoints:
    """The best three of a sequence of scores, by the files alone."""

    @pytest.fixture
    def recorder(self, tmp_path: Path) -> Recorder:
        (tmp_path / "checkpoints").mkdir()
        length, monitor = SimpleNamespace(steps=2 * 6 - 1, steps_per_epoch=2), SimpleNamespace(keep_best=3)
        prepared = SimpleNamespace(run=RunDir(tmp_path), config=SimpleNamespace(length=length, monitor=monitor))
        return Recorder(prepared, make_engine().fabric, Silent())  # type: ignore[arg-type]

    def files(self, recorder: Recorder) -> list[int]:
        paths = [recorder.prepared.run.best_of_rank(rank) for rank in (1, 2, 3, 4)]
        return [load_checkpoint(path).progress.step for path in paths if path.is_file()]

    def save(self, recorder: Recorder, scores: tuple[float, ...]) -> None:
        progress = RunProgress(min(2 * (len(scores) - 1), 11), 0, scores[0], scores[1:])
        both = make_scores(make_net_score(0.5), make_net_score(0.5))
        recorder.save_best(Checkpoint({}, {}, progress, {}, {}, both, ()))

    @pytest.mark.parametrize(
        "scores",
        [
            (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
            (0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1),
            (0.3, 0.3, 0.5, 0.4, 0.4, 0.6, 0.45),
            (-math.inf, -math.inf, 0.2, -math.inf, 0.1, 0.3, 0.15),
        ],
    )
    @pytest.mark.parametrize("kill_after_move", [None, 1, 2])
    def test_also_when_a_run_is_killed_between_two_moves_and_goes_on(
        self, recorder: Recorder, scores: tuple[float, ...], kill_after_move: int | None
    ) -> None:
        for epochs in range(len(scores)):
            so_far = scores[: epochs + 1]
            if kill_after_move is not None:
                with suppress(Killed), dying_at(Recorder, "_move_down", kill_after_move, "after"):
                    self.save(recorder, so_far)
                assert recorder.prepared.run.best.is_file()
            self.save(recorder, so_far)
            finite = [e for e in range(epochs + 1) if so_far[e] > -math.inf] or [0]
            ranked = sorted(finite, key=lambda e: (-so_far[e], e))[:3]
            assert self.files(recorder) == [min(2 * e, 11) for e in ranked]


class TestEarlyStopping:
    SETTINGS: ClassVar = {
        "length": {"steps": 40, "steps_per_epoch": 2},
        "optim": {"lr": 1e-9, "warmup_steps": 0},
        "monitor": {"probe_patches": 2, "train_probe_patches": 0, "first_epoch_probes": [0]},
        "policies": {"early_stopping": {"patience": 2}, "swa": {"start_epoch": 30}},
    }

    def test_it_is_a_normal_end_with_scores_and_cannot_be_resumed(self, particles_dir: Path, tmp_path: Path) -> None:
        result = train_tiny(tmp_path / "run", particles_dir, self.SETTINGS)
        history = load_checkpoint(result.run.last).progress.history
        assert result.ending == "stopped_early"
        assert len(history) == result.step / 2 < 20
        assert max(history) == history[-3] >= max(history[-2:])
        assert result.scores["source"] == "validation"
        assert [e["event"] for e in result.run.read_events()][-2:] == ["early_stopping", "stopped_early"]
        assert not result.run.swa.exists()
        with pytest.raises(RunDirError, match="its policies ended it early"):
            train(TrainRequest(resume=result.run.path))

    def test_stopped_but_not_scored_it_is_scored_by_a_resume(self, particles_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(Killed), dying_at(ssl_seg.run.finish, "_score_run", 1, "before"):
            train_tiny(tmp_path / "run", particles_dir, self.SETTINGS)
        before = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").progress
        result = train(TrainRequest(resume=tmp_path / "run"))
        assert (result.ending, result.step) == ("stopped_early", before.step)
        assert result.scores["source"] == "validation"
