"""Which network is used is decided once, by whole validation cases, and every command says the same number for it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_tiny
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from typer.testing import CliRunner

from ssl_seg.cli.app import app
from ssl_seg.data.catalog import pass_through
from ssl_seg.data.instances import make_target
from ssl_seg.data.open import open_data, open_store
from ssl_seg.data.store import WholeCase
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.errors import DataError, RefusedError
from ssl_seg.inference.model import open_model
from ssl_seg.inference.scoring import Score, score_case
from ssl_seg.labels import Task
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict
from ssl_seg.run import finish
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import (
    FinalScores,
    NetworkScore,
    choose_factor,
    compute_selection_score,
    describe_for_checkpoint,
    load_final_scores,
    save_final_scores,
    score_networks,
)
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

T = np.zeros((20, 20), np.int16)
T[4:12, 4:12] = 1


def make_score(rows: int, *, nan: bool = False, cases: int = 4) -> Score:
    """A network that finds ``rows`` of 8 rows of a square in each case."""
    pred = T.copy()
    pred[4 + rows : 12] = 0
    probs = np.eye(2)[pred].transpose(2, 0, 1)
    if nan:
        probs[:, 0, 0] = math.nan
    return Score(tuple(score_case(str(n), WholeCase(np.zeros((1, 20, 20)), T, None), probs) for n in range(cases)))


def make_final(**nets: tuple[int, bool, bool]) -> FinalScores:
    """``best_student=(rows, collapsed, nan)`` and so on, in the order of the file."""
    networks = []
    for name, (rows, collapsed, nan) in nets.items():
        source, net = name.split("_")
        networks.append(NetworkScore(source, net, 10, collapsed, make_score(rows, nan=nan)))  # type: ignore[arg-type]
    return FinalScores(10, "f1", tuple(networks), 0.25)


def used(**nets: tuple[int, bool, bool]) -> str:
    final = make_final(**nets)
    return f"{final.used.source}_{final.used.net}"


class TestChoice:
    def test_the_highest_score_of_all_files_wins(self) -> None:
        assert used(best_teacher=(5, False, False), last_student=(6, False, False)) == "last_student"
        assert used(best_teacher=(6, False, False), last_student=(5, False, False)) == "best_teacher"

    def test_a_collapsed_network_comes_behind_and_nan_last(self) -> None:
        assert used(best_teacher=(8, True, False), last_student=(1, False, False)) == "last_student"
        assert used(best_teacher=(8, False, True), last_student=(1, True, False)) == "last_student"
        assert used(best_teacher=(8, True, False), best_student=(7, True, False)) == "best_teacher"

    def test_of_equal_ones_the_first(self) -> None:
        assert used(best_teacher=(5, False, False), best_student=(5, False, False)) == "best_teacher"

    def test_a_checkpoint_names_the_better_of_its_own_two(self) -> None:
        final = make_final(
            best_teacher=(5, False, False), best_student=(3, False, False), last_teacher=(8, True, False),
            last_student=(2, False, False),
        )  # fmt: skip
        best, last = (describe_for_checkpoint(final, source) for source in ("best", "last"))
        assert (best["selected"]["net"], last["selected"]["net"]) == ("teacher", "student")
        assert last["selected"]["collapsed"] == ["teacher"]
        assert best["teacher"]["f1"] == pytest.approx(2 * 5 / (5 + 8))


def test_the_figures_that_networks_are_compared_by() -> None:
    rng = np.random.default_rng(0)
    cases, shares, truths = [], [], []
    for n in range(6):
        target, pred = (rng.random((2, 16, 16)) < [[[0.2]], [[0.1 * n]]]).astype(np.int16)
        cases.append(
            score_case(str(n), WholeCase(np.zeros((1, 16, 16)), target, None), np.eye(2)[pred].transpose(2, 0, 1))
        )
        shares.append(pred.mean())
        truths.append(target.mean())
    score = Score(tuple(cases))
    assert compute_selection_score(score, "f1") == score.f1
    assert compute_selection_score(score, "dice") == pytest.approx(np.mean([c.overlap.dice for c in cases]))
    assert compute_selection_score(score, "foreground_distance") == pytest.approx(-wasserstein_distance(shares, truths))


@pytest.mark.parametrize("task", ["semantic", "instances"])
def test_of_objects_it_is_their_pq(task: Task) -> None:
    objects = np.zeros((20, 24), np.int32)
    objects[3:9, 3:9], objects[3:9, 9:15], objects[12:18, 4:12] = 1, 2, 3
    target = make_target(objects) if task == "instances" else (objects > 0).astype(np.int16)
    pred = np.where(objects == 3, 0, target)  # the third is missed
    case = WholeCase(np.zeros((1, *objects.shape)), target, None)
    probs = np.eye(int(target.max()) + 1)[pred].transpose(2, 0, 1)
    score = Score((score_case("a", case, probs, objects=objects, task=task),))
    expected = 2 / (2 + 1 / 2) if task == "instances" else 0.0  # of the semantic two, one object covers half
    assert compute_selection_score(score, "pq") == pytest.approx(expected)
    assert score.objects is not None
    assert score.objects["pq"] == pytest.approx(expected)


class TestRun:
    def test_every_command_says_the_same_number(self, tiny_run: Path) -> None:
        run = RunDir(tiny_run)
        final, ending = load_final_scores(run), run.read_ending()
        assert final is not None
        assert ending is not None
        net, f1 = final.used.net, final.used.score.f1
        checkpoint = load_checkpoint(run.best)
        assert (checkpoint.scores["selected"]["net"], checkpoint.scores[net]["f1"]) == (net, f1)
        assert (ending["best"]["net"], ending[net]["f1"]) == (net, f1)
        found = evaluate(EvaluateRequest(run.best))
        assert (found["which"], found["pooled"]["f1"]) == (net, f1)
        assert [row["counts"] for row in found["cases"]] == [
            [[o.tp, o.fp, o.fn, o.tn] for o in case.classes] for case in final.used.score.cases
        ]
        diagnosis = diagnose_checkpoint(CheckpointRequest(run.best, seconds=3600))
        assert diagnosis.statistics["scores"]["f1"] == pytest.approx(f1)
        output = CliRunner().invoke(app, ["evaluate", str(tiny_run), "--json"]).stdout
        assert json.loads(output)["pooled"]["f1"] == f1

    def test_where_the_last_network_is_better_on_whole_cases_it_becomes_best(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = finish.score_networks

        def spoil(models: Any, *args: Any) -> Any:
            """Score a best.pt that differs from last.pt, and is worse."""
            for net in models["best"].nets.values():
                for parameter in net.parameters():
                    parameter.zero_()
            return original(models, *args[:-1])  # without the score that it had

        monkeypatch.setattr(finish, "score_networks", spoil)
        result = train_tiny(tmp_path / "run", particles_dir, {"split": {"labels": 0.5}})
        final = load_final_scores(result.run)
        assert final is not None
        assert final.used.source == "last"
        assert result.run.best.read_bytes() == result.run.last.read_bytes()
        assert result.scores[final.used.net]["f1"] == final.used.score.f1

    def test_networks_that_are_equal_are_predicted_once_and_all_in_one_pass(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes: list[int] = []
        import ssl_seg.inference.ensemble as module

        original = module.score_cases

        def count(members: Any, *args: Any, **options: Any) -> Any:
            passes.append(len(members))
            return original(members, *args, **options)

        monkeypatch.setattr(module, "score_cases", count)
        result = train_tiny(tmp_path / "run", particles_dir, {"length": {"steps": 2, "steps_per_epoch": 2}})
        final = load_final_scores(result.run)
        assert final is not None
        assert len(final.networks) == 4
        steps = {load_checkpoint(path).progress.step for path in (result.run.last, result.run.best)}
        # One network in two lengths of windows, then the others in one of them; of step 0, the teacher is the student.
        assert passes == [2, 1 if len(steps) == 1 else 2]

    @pytest.mark.parametrize(
        ("short", "long", "factor"),
        [(0.0, 1.0, 2), (1.0, 0.0, 1), (1.0, 1.0, 2), (0.0, 0.0, 1), (0.0, math.nan, 1), (0.5, math.nan, 1)],
    )
    def test_windows_are_as_long_as_is_better(self, tiny_run: Path, short: float, long: float, factor: int) -> None:
        class Net(nn.Module):
            """Finds what is bright, as far as it is sharp: not at all at 0."""

            def forward(self, x: Tensor) -> Tensor:
                sharpness = short if x.shape[-1] == 32 else long
                logit = sharpness * (x[:, :1] - 0.5) - int(sharpness == 0)
                return torch.cat([-logit, logit], dim=1)

        model = open_model(tiny_run / "checkpoints" / "best.pt")
        model = replace(model, nets=dict.fromkeys(model.nets, Net()))
        catalog = open_data(model.config.data.model_dump(mode="json"))
        store, val = open_store(catalog, model.config.data), model.checkpoint.split["val"]
        chosen, score = choose_factor(model, store, val, "f1", pass_through)
        final = score_networks({"best": model}, store, val, 0, "f1", pass_through, chosen)
        assert (chosen, score) == (factor, final.networks[0].score), "what is known need not be predicted again"
        data = model.config.data.model_copy(update={"patch_size": (512, 512)})
        large = replace(model, config=model.config.model_copy(update={"data": data}))
        assert choose_factor(large, store, val, "f1", pass_through) == (1, None), "no image is longer than such a patch"

    def test_every_command_takes_the_windows_of_the_scores(self, tiny_run: Path, tmp_path: Path) -> None:
        run = RunDir(Path(shutil.copytree(tiny_run, tmp_path / "run")))
        checkpoint, found = load_checkpoint(run.best), []
        for factor in (1, 2, 7, "2"):
            selected = {**checkpoint.scores["selected"], "window_factor": factor}
            save_checkpoint(replace(checkpoint, scores={**checkpoint.scores, "selected": selected}), run.best)
            found.append(open_model(run.best).predictor("student").fit_window((64, 64)))
        assert found == [(32, 32), (64, 64), (32, 32), (32, 32)]
        final = load_final_scores(run)
        assert final is not None
        assert checkpoint.scores["selected"]["window_factor"] == final.factor
        save_final_scores(replace(final, factor=3 - final.factor), run)
        assert load_final_scores(run) == replace(final, factor=3 - final.factor)

    def test_it_is_not_scored_again_after_a_kill_and_is_after_more_steps(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = RunDir(Path(shutil.copytree(tiny_run, tmp_path / "run")))
        before = (run.path / "scores.json").read_bytes()
        monkeypatch.setattr(finish, "score_networks", lambda *_: pytest.fail("scored twice"))
        events = run.events_path.read_text().splitlines(keepends=True)
        run.events_path.write_text("".join(e for e in events if '"finished"' not in e))
        assert train(TrainRequest(resume=run.path)).ending == "finished"
        assert (run.path / "scores.json").read_bytes() == before
        values = json.loads(before)
        (run.path / "scores.json").write_text(json.dumps({**values, "step": values["step"] - 1}))
        run.events_path.write_text("".join(e for e in events if '"finished"' not in e))
        with pytest.raises(pytest.fail.Exception, match="scored twice"):
            train(TrainRequest(resume=run.path))


@pytest.fixture
def broken(tiny_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """A checkpoint of which some networks hold NaN."""

    def make(*nets: str, **scores: Any) -> Path:
        checkpoint = load_checkpoint(tiny_run / "checkpoints" / "best.pt")
        states = {
            net: {
                k: torch.full_like(v, math.nan) if v.is_floating_point() else v
                for k, v in getattr(checkpoint, net).items()
            }
            for net in nets
        }
        path = tmp_path / "broken.pt"
        save_checkpoint(replace(checkpoint, **states, **scores), path)
        return path

    return make


class TestNan:
    def test_it_scores_nothing(self, broken: Callable[..., Path]) -> None:
        told: list[str] = []
        found = evaluate(EvaluateRequest(broken("student", "teacher")), note=told.append)
        assert found["pooled"]["f1"] == found["mean"]["dice"] == 0
        assert found["nonfinite"] > 0
        assert sum("NaN or infinity" in text and "count as wrong" in text for text in told) == 2
        assert found["trivial"]["margin"] < 0

    def test_it_writes_no_mask(self, broken: Callable[..., Path], particles_dir: Path, tmp_path: Path) -> None:
        image = next((particles_dir / "images").iterdir())
        with pytest.raises(DataError, match="NaN or infinity"):
            predict(PredictRequest(broken("student", "teacher"), image, tmp_path / "masks"))
        assert not list((tmp_path / "masks").glob("*"))

    @pytest.mark.parametrize("options", [{}, {"force": True}])
    @pytest.mark.parametrize("gate", ["none", "margin"])
    def test_it_is_no_parent_whatever_is_said(
        self, broken: Callable[..., Path], tmp_path: Path, options: dict[str, Any], gate: str
    ) -> None:
        from ssl_seg.config.layers import Layer

        layers = (Layer("--x", {"bootstrap": {"gate": gate}}),)
        with pytest.raises(RefusedError, match="NaN or infinity"):
            train(TrainRequest(layers, tmp_path / "child", bootstrap=broken("student", "teacher"), **options))
        assert not (tmp_path / "child").exists()

    def test_it_is_never_the_best_of_a_run(self, particles_dir: Path, tmp_path: Path) -> None:
        """At a learning rate of 1e30 the student is NaN from the first step, and the teacher with it."""
        settings = {"optim": {"lr": 1e30, "warmup_steps": 0, "clip_norm": None}, "monitor": {"on_collapse": "warn"}}
        result = train_tiny(tmp_path / "run", particles_dir, settings)
        final = load_final_scores(result.run)
        assert final is not None
        assert final.used.step == 0
        assert final.used.score.nonfinite == 0
        last = load_checkpoint(result.run.last)
        assert last.scores["student"]["f1"] == 0
        assert last.scores["student"]["margin"] < 0


def test_a_collapsed_parent_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(tiny_run / "checkpoints" / "best.pt")
    selected = {**checkpoint.scores["selected"], "collapsed": ["student", "teacher"]}
    path = tmp_path / "collapsed.pt"
    save_checkpoint(replace(checkpoint, scores={**checkpoint.scores, "selected": selected}), path)
    with pytest.raises(RefusedError, match="had collapsed when its monitor last looked"):
        train(TrainRequest((), tmp_path / "child", bootstrap=path))
