"""Policies between epochs, noise and weight averaging, one by one."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_engine import lr_at, make_engine, make_net
from test_methods import make_batch
from torch import nn

from ssl_seg.config import AfterRollbackConfig, GradientNoiseConfig, LossConfig, PlateauResponseConfig, PoliciesConfig
from ssl_seg.config.schedules import LossPhase
from ssl_seg.engine.ema import WeightAverage, estimate_batch_norm
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.noise import add_gradient_noise, add_weight_noise
from ssl_seg.engine.policies import (
    PlateauResponse,
    Policies,
    compute_plateau_multiplier,
    find_phase,
    judge_rollback,
    respond_to_plateaus,
)
from ssl_seg.losses import make_supervised_loss
from ssl_seg.networks.builders import has_batch_norm
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress

NO_START = -math.inf


class TestMultiplier:
    def test_the_formula_of_plateaus_1_to_40_and_its_cap(self) -> None:
        values = [compute_plateau_multiplier(count, 1.0, 0.15, 5.0) for count in range(1, 41)]
        assert values[:4] == pytest.approx([1.0, 1.15, 1.30, 1.45])
        assert values[26] == pytest.approx(4.9)
        assert values[27:] == [5.0] * 13
        assert values == sorted(values)

    def test_the_source_documents_formula_gives_4_9_and_not_their_5_05(self) -> None:
        assert compute_plateau_multiplier(5, 1.5, 0.85, math.inf) == pytest.approx(4.9)
        assert compute_plateau_multiplier(5, 1.5, 0.85, 4.0) == 4.0


@dataclass
class Counters:
    """The same policy as one would write it with counters that are kept from epoch to epoch."""

    settings: PlateauResponseConfig
    start: float
    best: float = -math.inf
    bad: int = 0
    count: int = 0
    value: float = 1.0
    epochs_since_raise: int = 10**9
    dead: bool = False
    epoch: int = 0
    milder_from: int | None = None

    def end_epoch(self, score: float) -> PlateauResponse:
        s, after = self.settings, self.settings.after_rollback
        self.epoch += 1
        if self.dead:
            return PlateauResponse(self.count, 1.0, False, False, self.milder_from)
        self.epochs_since_raise += 1
        if (
            self.value > 1
            and self.epochs_since_raise <= 2 * s.hold_epochs
            and max(self.best, self.start) - score > s.rollback_drop
        ):
            if after is not None and self.milder_from is None:
                self.milder_from, self.count, self.bad, self.value = self.epoch, 0, 0, 1.0
                return PlateauResponse(0, 1.0, False, True, self.epoch)
            self.dead = True
            return PlateauResponse(self.count, 1.0, False, True, self.milder_from)
        if score > self.best:
            self.best, self.bad = score, 0
        else:
            self.bad += 1
        new = self.bad >= s.patience
        if new:
            self.bad = 0
            self.count += 1
            rule = s if after is None or self.milder_from is None else after
            self.value = min(s.cap, rule.base + (self.count - 1) * rule.gain)
            self.epochs_since_raise = 0
        value = self.value if self.epochs_since_raise < s.hold_epochs else 1.0
        return PlateauResponse(self.count, value, new, False, self.milder_from)


class TestPlateauResponse:
    SETTINGS = PlateauResponseConfig(patience=2, base=2.0, gain=1.0, cap=2.5, hold_epochs=2, rollback_drop=0.1)

    def respond(self, *history: float, start: float = NO_START, **changes: Any) -> PlateauResponse:
        return respond_to_plateaus(history, start, self.SETTINGS.model_copy(update=changes))

    def test_the_rate_is_raised_at_a_plateau_and_holds_for_some_epochs(self) -> None:
        history = (0.5, 0.5, 0.5, 0.6, 0.7, 0.8)
        got = [self.respond(*history[:n]) for n in range(7)]
        assert [r.multiplier for r in got] == [1, 1, 1, 2, 2, 1, 1]
        assert [r.is_new for r in got] == [False, False, False, True, False, False, False]

    def test_later_plateaus_raise_it_more_up_to_the_cap(self) -> None:
        history = (0.5,) * 9
        assert [self.respond(*history[:n]).count for n in range(10)] == [0, 0, 0, 1, 1, 2, 2, 3, 3, 4]
        assert [self.respond(*history[:n]).multiplier for n in (3, 5, 7, 9)] == [2.0, 2.5, 2.5, 2.5]

    def test_the_first_plateau_of_the_default_changes_nothing_and_is_not_watched(self) -> None:
        assert self.respond(0.5, 0.5, 0.5, base=1.0).multiplier == 1.0
        assert not self.respond(0.5, 0.5, 0.5, 0.1, base=1.0).rolls_back

    def test_a_fall_rolls_back_while_it_is_raised_and_as_long_after(self) -> None:
        plateau = (0.5, 0.5, 0.5)
        fine = (0.6, 0.7, 0.8, 0.9)
        falls = [self.respond(*plateau, *fine[:n], 0.3).rolls_back for n in range(5)]
        assert falls == [True, True, True, True, False]
        assert not self.respond(*plateau, 0.45).rolls_back  # less than the allowed fall
        assert self.respond(*plateau, NO_START).rolls_back  # networks that give NaN
        assert not self.respond(0.5, 0.3).rolls_back  # no plateau before

    def test_a_fall_is_measured_from_best_pt_which_may_be_of_the_start(self) -> None:
        history = (0.5, 0.5, 0.5, 0.45)
        assert not self.respond(*history).rolls_back
        assert self.respond(*history, start=0.6).rolls_back

    def test_after_a_rollback_nothing_exceeds_1(self) -> None:
        rolled = (0.5, 0.5, 0.5, 0.3)
        assert self.respond(*rolled) == PlateauResponse(1, 1.0, False, True)
        for more in ((0.3,), (0.3, 0.3, 0.3), (0.3,) * 20, (0.9, 0.2)):
            assert self.respond(*rolled, *more) == PlateauResponse(1, 1.0, False, False)

    def test_after_a_rollback_the_milder_rule_counts_plateaus_anew(self) -> None:
        """1.2 + (p - 1) 0.5 in place of 1.5 + (p - 1) 0.85, as the source's fallback plan has it."""
        after = AfterRollbackConfig(base=1.2, gain=0.5)
        rolled = (0.5, 0.5, 0.5, 0.3)
        assert self.respond(*rolled, after_rollback=after) == PlateauResponse(0, 1.0, False, True, 4)
        raised = [self.respond(*rolled, *(0.5,) * n, after_rollback=after, base=1.5, gain=0.85) for n in range(1, 7)]
        assert [r.multiplier for r in raised] == pytest.approx([1.0, 1.2, 1.2, 1.7, 1.7, 2.2])
        assert [r.count for r in raised] == [0, 1, 1, 2, 2, 3]
        assert {r.milder_from for r in raised} == {4}
        again = (*rolled, 0.5, 0.5, 0.3)
        assert self.respond(*again, after_rollback=after) == PlateauResponse(1, 1.0, False, True, 4)
        for more in ((0.3,), (0.3,) * 20):
            assert self.respond(*again, *more, after_rollback=after) == PlateauResponse(1, 1.0, False, False, 4)

    @given(
        history=st.lists(st.sampled_from([NO_START, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), max_size=40),
        start=st.sampled_from([NO_START, 0.35, 0.6]),
        patience=st.integers(1, 4),
        hold=st.integers(1, 4),
        base=st.sampled_from([1.0, 1.5]),
        after=st.sampled_from([None, {"base": 1.2, "gain": 0.5}]),
    )
    def test_replaying_the_history_equals_keeping_counters(
        self, history: list[float], start: float, patience: int, hold: int, base: float, after: dict[str, float] | None
    ) -> None:
        settings = PlateauResponseConfig(
            patience=patience, base=base, gain=0.85, cap=3.0, hold_epochs=hold, rollback_drop=0.15, after_rollback=after
        )
        counters = Counters(settings, start)
        for epochs in range(1, len(history) + 1):
            response = respond_to_plateaus(history[:epochs], start, settings)
            assert response == counters.end_epoch(history[epochs - 1])
            assert 1.0 <= response.multiplier <= 3.0


@pytest.mark.parametrize(
    ("later", "judged"),
    [
        ((), None),
        ((0.5,), None),  # level is not better
        ((0.5, 0.4, 0.3), False),
        ((0.51,), True),
        ((0.4, 0.4, 0.6), True),
        ((0.6, 0.4), None),  # told before
        ((0.6, 0.7), None),
        ((0.4, 0.4, 0.4, 0.6), None),  # too late: the run has ended
    ],
)
def test_a_rollback_is_judged_once(later: tuple[float, ...], judged: bool | None) -> None:
    assert judge_rollback((0.1, 0.5, 0.2, *later), 2, 3) is judged


class TestAct:
    def act(
        self, settings: dict[str, Any], engine: Engine, progress: RunProgress, epoch: int, **options: Any
    ) -> list[str]:
        config = PoliciesConfig.model_validate(settings)
        average = options.pop("average", None)
        policies = Policies(config, 0, average, options.pop("reduce_patience", None))
        arguments = {"ending": None, "load_best": lambda: pytest.fail("nothing to restore")} | options
        return [action.event for action in policies.act(engine, progress, epoch, **arguments)]

    def test_nothing_happens_unless_asked(self) -> None:
        engine = make_engine()
        before = copy.deepcopy(engine.student.state_dict())
        policies = Policies()
        progress = RunProgress(start_score=0.9, history=(0.5,) * 100)
        assert self.act({}, engine, progress, 100) == []
        assert policies.compute_lr_multiplier(progress) == 1.0
        assert not policies.stops(progress)
        assert all(torch.equal(v, before[k]) for k, v in engine.student.state_dict().items())

    def test_rollback_restores_student_teacher_optimizer_and_the_count_of_updates(self) -> None:
        engine = make_engine()
        for step in range(3):
            engine.step(make_batch(seed=step), step, lr_at(step))
        best = snapshot(engine, 3)
        for step in range(3, 6):
            engine.step(make_batch(seed=step), step, lr_at(step))
        settings = {"plateau_response": {"patience": 1, "base": 2.0, "rollback_drop": 0.1}}
        fallen = RunProgress(start_score=0.1, history=(0.5, 0.5, 0.1))
        assert self.act(settings, engine, fallen, 3, load_best=lambda: best) == ["rollback"]
        assert_state(engine, best)
        assert engine.teacher.updates == 3
        assert Policies(PoliciesConfig.model_validate(settings)).compute_lr_multiplier(fallen) == 1.0

    MILDER: ClassVar = {
        "plateau_response": {
            "patience": 1, "base": 2.0, "rollback_drop": 0.1,
            "after_rollback": {"component_weights": {"variance": 0.08}, "judge_epochs": 2},
        }
    }  # fmt: skip

    def test_a_rollback_that_brings_nothing_ends_the_run(self) -> None:
        policies, engine = Policies(PoliciesConfig.model_validate(self.MILDER)), make_engine()
        rolled = (0.5, 0.5, 0.1)
        ends = [policies.stops(RunProgress(history=(*rolled, *(0.5,) * n))) for n in range(4)]
        assert ends == [False, False, True, False]
        end = RunProgress(history=(*rolled, 0.5, 0.5))
        assert self.act(self.MILDER, engine, end, 5, ending="stopped_early") == ["rollback_judged"]
        better = RunProgress(history=(*rolled, 0.4, 0.6))
        assert not policies.stops(better)
        (event,) = policies.act(engine, better, 5, ending=None, load_best=lambda: pytest.fail("nothing to restore"))
        assert (event.event, event.values) == ("rollback_judged", {"better": True, "best_score": 0.5})
        for settings in ({}, {"judge_epochs": None}):  # without the rule, or without a judgment
            own = copy.deepcopy(self.MILDER)
            own["plateau_response"]["after_rollback"] = settings or None
            assert not Policies(PoliciesConfig.model_validate(own)).stops(end)

    def test_a_rollback_changes_weights_of_the_loss(self) -> None:
        phases = (LossPhase(0, {"dice": 0.7, "variance": 0.05}), LossPhase(5, {"dice": 1.0}))
        policies = Policies(PoliciesConfig.model_validate(self.MILDER))
        before, after = (RunProgress(history=(0.5, 0.5, score)) for score in (0.45, 0.1))
        assert policies.adapt_phases(phases, before) == phases
        changed = policies.adapt_phases(phases, after)
        assert changed == (
            phases[0], LossPhase(3, {"dice": 0.7, "variance": 0.08}), LossPhase(5, {"dice": 1.0, "variance": 0.08})
        )  # fmt: skip
        told = find_phase(changed, 3)
        assert told is not None
        assert told.note == "phase 2 of 3 begins after epoch 3: dice 0.7, variance 0.08"

    def test_at_the_end_of_the_run_the_networks_stay(self) -> None:
        engine = make_engine()
        before = copy.deepcopy(engine.student.state_dict())
        settings = {
            "plateau_response": {"patience": 1, "base": 2.0},
            "weight_noise": {"start_epoch": 1, "std": 0.1},
            "early_stopping": {"patience": 2},
        }
        fallen = RunProgress(start_score=0.1, history=(0.5, 0.5, 0.1))
        assert self.act(settings, engine, fallen, 3, ending="finished") == []
        assert self.act(settings, engine, fallen, 3, ending="stopped_early") == ["early_stopping"]
        assert all(torch.equal(v, before[k]) for k, v in engine.student.state_dict().items())

    def test_the_average_takes_the_network_after_a_rollback_and_before_noise(self) -> None:
        engine = make_engine()
        best = snapshot(engine, 0)
        engine.step(make_batch(), 0, 0.1)
        average = WeightAverage(engine.student)
        average.add(engine.student)  # a network of before the rollback, which must not stay in the mean
        settings = {
            "plateau_response": {"patience": 1, "base": 2.0},
            "weight_noise": {"start_epoch": 3, "std": 0.1},
            "swa": {"start_epoch": 2},
        }
        fallen = RunProgress(start_score=0.1, history=(0.5, 0.5, 0.1))
        events = self.act(settings, engine, fallen, 3, load_best=lambda: best, average=average)
        assert events == ["rollback", "swa", "weight_noise"]
        for name, value in average.net.named_parameters():
            assert torch.equal(value, best.student[name])
            assert not torch.equal(engine.student.state_dict()[name], value)

    def test_epochs_of_the_average_and_of_noise(self) -> None:
        engine, progress = make_engine(), RunProgress(history=(0.5,))
        settings = {"swa": {"start_epoch": 2, "every_epochs": 3}, "weight_noise": {"start_epoch": 4, "std": 0.1}}
        average = WeightAverage(engine.student)
        acted = {e: self.act(settings, engine, progress, e, average=average) for e in range(1, 7)}
        assert acted == {
            1: [], 2: ["swa"], 3: [], 4: ["weight_noise"], 5: ["swa", "weight_noise"], 6: ["weight_noise"],
        }  # fmt: skip
        assert average.count == 2

    def test_plateaus_and_reductions_of_the_rate_are_reported_once(self) -> None:
        engine = make_engine()
        settings = {"plateau_response": {"patience": 2}}
        scores = (0.5, 0.4, 0.4, 0.4, 0.4)
        reported = [
            self.act(settings, engine, RunProgress(history=scores[:n]), n, reduce_patience=3) for n in range(1, 6)
        ]
        assert reported == [[], [], ["plateau"], ["lr_reduced"], ["plateau"]]

    def test_early_stopping_counts_epochs_without_a_better_score(self) -> None:
        policies = Policies(PoliciesConfig.model_validate({"early_stopping": {"patience": 3}}))
        ends = [policies.stops(RunProgress(start_score=0.9, history=(0.1, 0.5, *(0.4,) * n))) for n in range(5)]
        assert ends == [False, False, False, True, True]
        assert not policies.stops(RunProgress())


class TestCollapse:
    """A collapsed epoch whose trivial F1 beats the others: no policy may take it for progress."""

    SCORES = (0.30, 0.46, 0.32, 0.34, 0.36)

    def progress(self, epochs: int, *collapsed: int) -> RunProgress:
        return RunProgress(start_score=0.1, history=self.SCORES[:epochs], collapsed=collapsed)

    def test_early_stopping_does_not_wait_for_its_score(self) -> None:
        policies = Policies(PoliciesConfig.model_validate({"early_stopping": {"patience": 3}}))
        assert not policies.stops(self.progress(5, 2))
        assert policies.stops(self.progress(5)), "the same scores of a network that works"

    def test_nor_does_the_learning_rate(self) -> None:
        settings = PoliciesConfig.model_validate({"plateau_response": {"patience": 3, "base": 2.0}})
        policies = Policies(settings, reduce_patience=3)
        assert policies.compute_lr_multiplier(self.progress(5, 2)) == 1.0
        assert policies.compute_lr_multiplier(self.progress(5)) == 2.0
        act = {"ending": None, "load_best": lambda: pytest.fail("nothing to restore")}
        for collapsed, events in (((2,), []), ((), ["lr_reduced", "plateau"])):
            actions = policies.act(make_engine(), self.progress(5, *collapsed), 5, **act)  # type: ignore[arg-type]
            assert [a.event for a in actions] == events

    def test_a_collapse_while_the_rate_is_raised_rolls_back_whatever_its_score(self) -> None:
        settings = {"plateau_response": {"patience": 1, "base": 2.0, "rollback_drop": 0.1}}
        policies = Policies(PoliciesConfig.model_validate(settings))
        engine = make_engine()
        best = snapshot(engine, 1)
        scores = (0.30, 0.30, 0.46)
        fine, fallen = (RunProgress(start_score=0.1, history=scores, collapsed=c) for c in ((), (3,)))
        actions = policies.act(engine, fallen, 3, ending=None, load_best=lambda: best)
        assert [a.event for a in actions] == ["rollback"]
        assert "collapsed, with a score of 0.460; the best one was 0.300" in actions[0].note
        assert (actions[0].values["score"], actions[0].values["best_score"]) == (0.46, 0.30)
        assert policies.act(engine, fine, 3, ending=None, load_best=lambda: best) == []

    def test_the_report_of_the_end_names_the_score_of_best_pt(self) -> None:
        policies = Policies(PoliciesConfig.model_validate({"early_stopping": {"patience": 3}}))
        stuck = RunProgress(history=(0.3, 0.46, 0.2, 0.2), collapsed=(2,))
        end: dict[str, Any] = {"ending": "stopped_early", "load_best": lambda: pytest.fail("nothing to restore")}
        (action,) = policies.act(make_engine(), stuck, 4, **end)
        assert action.values == {"epochs": 3, "best_score": 0.3}


def snapshot(engine: Engine, step: int) -> Checkpoint:
    parts = engine.student.state_dict(), engine.teacher.net.state_dict(), engine.optimizer.state_dict()
    student, teacher, optimizer = copy.deepcopy(parts)
    progress = RunProgress(step, engine.teacher.updates, 0.5)
    return Checkpoint(student, teacher, progress, {}, {}, {}, (), {"optimizer": optimizer})


def assert_state(engine: Engine, expected: Checkpoint) -> None:
    for own, state in ((engine.student, expected.student), (engine.teacher.net, expected.teacher)):
        assert all(torch.equal(v, state[k]) for k, v in own.state_dict().items())
    for index, state in expected.parts["optimizer"]["state"].items():
        own_state = engine.optimizer.state_dict()["state"][index]
        assert all(torch.equal(own_state[name], value) for name, value in state.items())


class TestWeightNoise:
    def noise_of(self, std: float = 0.1, seed: int = 0, epoch: int = 3) -> dict[str, torch.Tensor]:
        net = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3))
        before = copy.deepcopy(net.state_dict())
        add_weight_noise(net, std, seed, epoch)
        return {name: value - before[name] for name, value in net.state_dict().items()}

    def test_it_is_gaussian_noise_of_that_size_on_all_parameters(self) -> None:
        noise = self.noise_of()
        everything = torch.cat([noise["0.weight"].flatten(), noise["2.weight"].flatten()])
        assert everything.std() == pytest.approx(0.1, rel=0.02)
        assert everything.mean() == pytest.approx(0.0, abs=0.002)
        assert (everything.abs() < 0.1).float().mean() == pytest.approx(0.6827, abs=0.01)
        assert all(noise[name].abs().max() > 0 for name in noise if name.endswith(("weight", "bias")))
        assert noise["1.weight"].std() == pytest.approx(0.1, rel=0.3)
        assert not torch.allclose(noise["0.weight"].flatten()[:64], noise["2.weight"].flatten()[:64])

    def test_buffers_stay(self) -> None:
        noise = self.noise_of()
        assert all(not noise[name].any() for name in noise if "running" in name or "num_batches" in name)

    def test_it_is_a_function_of_seed_and_epoch(self) -> None:
        first = self.noise_of()["0.weight"]
        torch.testing.assert_close(self.noise_of()["0.weight"], first)
        torch.manual_seed(99)
        torch.testing.assert_close(self.noise_of()["0.weight"], first)
        assert not torch.allclose(self.noise_of(epoch=4)["0.weight"], first)
        assert not torch.allclose(self.noise_of(seed=1)["0.weight"], first)


class TestGradientNoise:
    def test_it_is_added_after_clipping_with_the_annealed_size(self) -> None:
        settings = GradientNoiseConfig(std=0.5, decay=2.0)

        def update(noise: GradientNoiseConfig | None, step: int) -> torch.Tensor:
            engine = make_engine("supervised", clip_norm=1e-6, noise=noise)
            engine.optimizer = torch.optim.SGD(engine.student.parameters(), lr=1.0)
            before = torch.cat([p.detach().flatten().clone() for p in engine.student.parameters()])
            engine.step(make_batch(), step, 1.0)
            return before - torch.cat([p.detach().flatten() for p in engine.student.parameters()])

        for step in (0, 4):
            noise = update(settings, step) - update(None, step)
            assert noise.std() == pytest.approx(0.5 / (1 + step), rel=0.25)  # 80 values
            assert noise.norm() > 1.0 / (1 + step)  # far above the clipped norm
        assert update(None, 0).norm() == pytest.approx(1e-6, rel=0.01)

    def test_it_is_a_function_of_seed_and_step(self) -> None:
        def noise_of(seed: int, step: int) -> torch.Tensor:
            net = nn.Linear(200, 50)
            unused = nn.Linear(2, 2)
            net.weight.grad, net.bias.grad = torch.zeros(50, 200), torch.zeros(50)
            net.add_module("unused", unused)
            add_gradient_noise(net, GradientNoiseConfig(std=0.3, decay=0.0), seed, step)
            assert unused.weight.grad is None
            return torch.cat([net.weight.grad.flatten(), net.bias.grad])

        first = noise_of(0, 5)
        assert first.std() == pytest.approx(0.3, rel=0.03)
        assert torch.equal(noise_of(0, 5), first)
        assert not torch.allclose(noise_of(0, 6), first)
        assert not torch.allclose(noise_of(1, 5), first)


class TestWeightAverage:
    def test_it_is_the_plain_mean_of_the_networks_added(self) -> None:
        student = make_net()
        average, values = WeightAverage(student), []
        for number in range(4):
            with torch.no_grad():
                for p in student.parameters():
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)))
            average.add(student)
            values.append(student[0].weight.detach().clone())
        torch.testing.assert_close(average.net[0].weight, torch.stack(values).mean(0))
        assert average.count == 4
        assert not average.net.training
        assert not any(p.requires_grad for p in average.net.parameters())

    def test_its_state_continues_it(self) -> None:
        student = make_net(nn.BatchNorm2d)
        first = WeightAverage(student)
        assert first.state_dict() == {}
        first.add(student)
        resumed = WeightAverage(student)
        resumed.load_state_dict(copy.deepcopy(first.state_dict()))
        with torch.no_grad():
            student[0].weight.add_(1)
        for average in (first, resumed):
            average.add(student)
        for name, value in first.net.state_dict().items():
            assert torch.equal(value, resumed.net.state_dict()[name])
        assert resumed.count == 2

    def test_batch_norm_statistics_are_those_of_the_images(self) -> None:
        net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).eval()
        net[0].running_mean.fill_(77.0)
        batches = [torch.randn(4, 3, 8, 8) * 2 + 5 for _ in range(6)]
        estimate_batch_norm(net, batches, nullcontext)
        torch.testing.assert_close(net[0].running_mean, torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0))
        torch.testing.assert_close(net[0].running_var, torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0))
        assert not net.training
        assert has_batch_norm(net)
        assert not has_batch_norm(make_net(nn.InstanceNorm2d))


def test_a_term_of_a_phase_is_the_mean_over_its_own_steps() -> None:
    from ssl_seg.engine.engine import StepRecord
    from ssl_seg.engine.step_sums import StepSums

    window = StepSums()
    for step in range(4):
        terms = {"dice": torch.tensor(float(step))} | ({"focal": torch.tensor(8.0 + step)} if step >= 2 else {})
        window.add(StepRecord(torch.tensor(1.0), terms, torch.tensor(2.0 * (step == 0)), 0.1, 1.0), 1.0 + step)
    record = window.to_record(window.compute_means())
    assert record["train/dice"] == pytest.approx(1.5)
    assert record["train/focal"] == pytest.approx(10.5)
    assert record["train/clipped_share"] == 0.25
    assert (record["train/lr"], record["train/lr_multiplier"]) == (0.1, 4.0)


def test_a_phase_of_the_loss_is_told_when_it_begins() -> None:
    loss = LossConfig.model_validate(
        {
            "weights": {"dice": 1.0},
            "phases": [
                {"from_epoch": 2, "weights": {"dice": 0.8, "focal": 0.2}, "blend_epochs": 3},
                {"from_epoch": 4, "weights": {"dice": 0.8, "focal": 0.2}},
                {"from_epoch": 5, "weights": {"dice": 1.0}},
            ],
        }
    )
    phases = make_supervised_loss(loss).phases
    told = {epoch: event for epoch in range(8) if (event := find_phase(phases, epoch)) is not None}
    assert list(told) == [2, 5]
    assert told[2].note == "phase 2 of 4 begins after epoch 2: dice 0.8, focal 0.2, blended in until epoch 5"
    assert told[5].values == {"phase": 4, "epoch": 5, "weights": {"dice": 1.0}, "blend_epochs": 0}
