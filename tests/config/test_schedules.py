"""Oracles: torch.optim.lr_scheduler, closed forms; properties with hypothesis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from ssl_seg.config import (
    EMAConfig,
    GradientNoiseConfig,
    LengthConfig,
    OptimConfig,
    SWAConfig,
    WeightNoiseConfig,
)
from ssl_seg.config.schedules import (
    LossPhase,
    acts_at,
    compute_gradient_noise_std,
    compute_loss_weights,
    compute_rampup,
    compute_weight_noise_std,
    count_plateaus,
    count_stale_epochs,
    make_ema_schedule,
    make_lr_schedule,
    override_weights,
)

LR_SCHEDULES = ["constant", "poly", "cosine"]
RAMPUPS = ["sigmoid", "linear", "cosine"]
SCORES = st.lists(st.sampled_from([-math.inf, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5]), max_size=40)


def make_optim(form: str, **settings: Any) -> OptimConfig:
    return OptimConfig(schedule=form, **{"lr": 1.0, "warmup_steps": 0, **settings})  # type: ignore[arg-type]


def factors(
    optim: OptimConfig, total_steps: int, steps: int | None = None, history: Sequence[float] = ()
) -> list[float]:
    lr_at = make_lr_schedule(optim, LengthConfig(steps=total_steps, steps_per_epoch=1), 4)
    return [lr_at(step, history) for step in range(total_steps if steps is None else steps)]


def torch_factors(optim: OptimConfig, total_steps: int) -> list[float]:
    """The factors of steps 0 .. total_steps, by PyTorch's schedulers."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    warmup_steps, floor = optim.warmup_steps, optim.floor
    decay_steps = total_steps - warmup_steps
    decay = {
        "constant": lambda: torch_schedulers.ConstantLR(optimizer, factor=1.0),
        "poly": lambda: torch_schedulers.PolynomialLR(optimizer, total_iters=decay_steps, power=optim.poly_power),
        "cosine": lambda: torch_schedulers.CosineAnnealingLR(optimizer, T_max=decay_steps, eta_min=floor),
        "cosine_restarts": lambda: torch_schedulers.CosineAnnealingWarmRestarts(
            optimizer, T_0=optim.restart_epochs, T_mult=optim.restart_growth, eta_min=floor
        ),
    }
    scheduler = decay[optim.schedule]()
    if warmup_steps:
        warmup = torch_schedulers.LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        scheduler = torch_schedulers.SequentialLR(optimizer, [warmup, decay[optim.schedule]()], [warmup_steps])
    values = []
    for _ in range(total_steps + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize("warmup_steps", [0, 2, 10])
@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("constant", {}),
        ("poly", {}),
        ("poly", {"poly_power": 2.0}),
        ("cosine", {}),
        ("cosine", {"floor": 0.1}),
        ("cosine_restarts", {"restart_epochs": 7, "restart_growth": 1}),
        ("cosine_restarts", {"restart_epochs": 5, "restart_growth": 2}),
        ("cosine_restarts", {"restart_epochs": 4, "restart_growth": 3, "floor": 0.2}),
    ],
)
def test_lr_factor_is_torchs(warmup_steps: int, form: str, settings: dict[str, Any]) -> None:
    optim = make_optim(form, warmup_steps=warmup_steps, **settings)
    assert factors(optim, 50, 51) == pytest.approx(torch_factors(optim, 50), abs=1e-9)


@pytest.mark.parametrize("total_steps", [3, 11, 100])  # PyTorch divides by zero where the peak is at step 0
@pytest.mark.parametrize(("rise", "floor"), [(0.3, 0.0), (0.5, 0.01), (0.9, 0.2)])
def test_one_cycle_is_torchs_and_needs_no_warmup(total_steps: int, rise: float, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch_schedulers.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=total_steps,
        pct_start=rise,
        div_factor=25,
        final_div_factor=1 / 25 / floor if floor else math.inf,
        cycle_momentum=False,
    )
    expected = []
    for step in range(total_steps):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total_steps - 1:
            scheduler.step()
    found = factors(make_optim("one_cycle", one_cycle_rise=rise, floor=floor), total_steps)
    assert found == pytest.approx(expected, abs=1e-9)
    assert factors(make_optim("one_cycle", one_cycle_rise=rise, floor=floor, warmup_steps=1), total_steps) == found


@given(history=SCORES, patience=st.integers(1, 6), floor=st.sampled_from([0.0, 0.05, 0.3]))
def test_reduce_on_plateau_is_torchs(history: list[float], patience: int, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch_schedulers.ReduceLROnPlateau(
        optimizer, "max", factor=0.5, patience=patience - 1, threshold=0, threshold_mode="abs", min_lr=floor, eps=0
    )
    optim = make_optim("reduce_on_plateau", floor=floor, plateau_patience=patience, plateau_factor=0.5)
    for epochs in range(len(history)):
        scheduler.step(history[epochs])
        got = factors(optim, 10**6, 1, history[: epochs + 1])
        assert got == pytest.approx([optimizer.param_groups[0]["lr"]])


def test_reduce_on_plateau_warms_up_first() -> None:
    optim = make_optim("reduce_on_plateau", warmup_steps=4, plateau_patience=1)
    assert factors(optim, 100, 5, (0.5, 0.4)) == [0.25, 0.5, 0.75, 1.0, 0.5]


def test_poly_has_a_floor() -> None:
    values = factors(make_optim("poly", poly_power=1.0, floor=0.2), 100, 101)
    assert [values[step] for step in (0, 50, 100)] == pytest.approx([1.0, 0.6, 0.2])


def test_warmup_of_one_step_and_of_the_whole_run() -> None:
    assert factors(make_optim("cosine", warmup_steps=1), 10, 1) == [1.0]
    assert factors(make_optim("cosine", warmup_steps=4), 4, 5) == [0.25, 0.5, 0.75, 1.0, 0.0]


@given(
    total_steps=st.integers(1, 500),
    warmup_share=st.floats(0.0, 1.0),
    form=st.sampled_from(LR_SCHEDULES),
    power=st.floats(0.1, 5.0),
    floor=st.floats(0.0, 1.0),
)
def test_lr_factor_rises_then_falls_and_keeps_its_bounds(
    total_steps: int, warmup_share: float, form: str, power: float, floor: float
) -> None:
    warmup_steps = int(warmup_share * total_steps)
    optim = make_optim(form, warmup_steps=warmup_steps, poly_power=power, floor=floor)
    values = factors(optim, total_steps, 2 * total_steps)
    rising, falling = values[:warmup_steps], values[warmup_steps:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0.0 < f <= 1.0 for f in rising)
    assert all(floor - 1e-12 <= f <= 1.0 for f in falling)
    if warmup_steps:
        assert rising[0] == 1 / warmup_steps
        assert rising[-1] == 1.0
    if form != "constant":
        assert values[-1] == pytest.approx(floor)


@given(total_steps=st.integers(1, 200), rise=st.floats(0.01, 0.99), floor=st.floats(0.0, 1.0))
def test_one_cycle_keeps_its_bounds(total_steps: int, rise: float, floor: float) -> None:
    values = factors(make_optim("one_cycle", one_cycle_rise=rise, floor=floor), total_steps, 2 * total_steps)
    assert all(min(floor, 1 / 25) - 1e-12 <= v <= 1.0 + 1e-12 for v in values)
    assert values[total_steps - 1 :] == pytest.approx([floor] * (total_steps + 1))
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])


def test_lr_of_settings() -> None:
    length = LengthConfig(steps=100, steps_per_epoch=10)
    settings = {"lr": 0.1, "warmup_steps": 0, "lr_batch_size": 4}
    constant = make_lr_schedule(OptimConfig(**settings, schedule="constant"), length, 16)
    assert constant(5, ()) == 0.1
    scaled = [
        make_lr_schedule(OptimConfig(**settings, schedule="constant", lr_scaling=kind), length, 16)(5, ())
        for kind in ("none", "linear", "sqrt")
    ]
    assert scaled == pytest.approx([0.1, 0.4, 0.2])
    restarts = OptimConfig(**settings, schedule="cosine_restarts", restart_epochs=2, restart_growth=2)
    lr = make_lr_schedule(restarts, length, 4)
    starts = [s for s in range(1, 100) if lr(s, ()) > lr(s - 1, ())]
    assert starts == [20, 60]  # cycles of 2, 4, 8 epochs
    reduced = OptimConfig(**settings, schedule="reduce_on_plateau", plateau_patience=1, plateau_factor=0.1, floor=0.05)
    lr = make_lr_schedule(reduced, length, 4)
    assert [lr(50, h) for h in ((), (0.5, 0.5), (0.5, 0.5, 0.5))] == pytest.approx([0.1, 0.01, 0.005])
    one = OptimConfig(**settings, schedule="one_cycle", one_cycle_rise=0.5, floor=0.1)
    assert [make_lr_schedule(one, length, 4)(s, ()) for s in (0, 49, 99)] == pytest.approx([0.004, 0.1, 0.01])
    poly = make_lr_schedule(OptimConfig(lr=0.1, warmup_steps=10, poly_power=1, floor=0.2), length, 4)
    assert [poly(s, ()) for s in (0, 55)] == pytest.approx([0.01, 0.1 * 0.6])


def test_count_of_plateaus_starts_anew() -> None:
    assert [count_plateaus([0.5] + [0.4] * n, 3) for n in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert count_plateaus([0.1, 0.2, 0.3, 0.4], 1) == 0
    assert count_plateaus([0.4, 0.3, 0.3, 0.5, 0.4, 0.4], 3) == 0
    assert count_plateaus([], 1) == 0


def test_stale_epochs() -> None:
    assert [count_stale_epochs(h) for h in ((), (0.5,), (0.5, 0.4, 0.5), (0.1, 0.2))] == [0, 0, 2, 0]


def test_a_policy_acts_from_its_start_every_few_epochs() -> None:
    assert [e for e in range(20) if acts_at(SWAConfig(start_epoch=5, every_epochs=4), e)] == [5, 9, 13, 17]
    noise = WeightNoiseConfig(start_epoch=3, every_epochs=2, std=0.1, decay=0.5)
    stds = [compute_weight_noise_std(noise, e) for e in range(8)]
    assert stds == pytest.approx([0, 0, 0, 0.1, 0, 0.05, 0, 0.025])


def test_gradient_noise_falls_as_published() -> None:
    variances = [compute_gradient_noise_std(GradientNoiseConfig(std=2.0), step) ** 2 for step in (0, 9, 99)]
    assert variances == pytest.approx([4.0, 4.0 / 10**0.55, 4.0 / 100**0.55])
    assert compute_gradient_noise_std(GradientNoiseConfig(std=2.0, decay=0.0), 1000) == 2.0


class TestLossPhases:
    PHASES = (LossPhase(0, {"dice": 1.0}), LossPhase(10, {"dice": 0.5, "focal": 0.5}, 4))

    def test_blending_is_linear_and_starts_at_the_old_weights(self) -> None:
        assert compute_loss_weights(self.PHASES, 9.99) == {"dice": 1.0}
        assert compute_loss_weights(self.PHASES, 10) == {"dice": 1.0, "focal": 0.0}
        assert compute_loss_weights(self.PHASES, 11) == pytest.approx({"dice": 0.875, "focal": 0.125})
        assert compute_loss_weights(self.PHASES, 14) == {"dice": 0.5, "focal": 0.5}

    def test_no_blending_switches_at_once(self) -> None:
        phases = (LossPhase(0, {"dice": 1.0}), LossPhase(3, {"focal": 2.0}))
        assert [compute_loss_weights(phases, e) for e in (2.99, 3)] == [{"dice": 1.0}, {"focal": 2.0}]

    def test_a_component_that_ends_fades_out_and_is_gone(self) -> None:
        phases = (LossPhase(0, {"dice": 1.0, "focal": 0.4}), LossPhase(2, {"dice": 1.0}, 2))
        weights = [compute_loss_weights(phases, e) for e in (2, 3, 4, 9)]
        assert weights == [{"dice": 1.0, "focal": 0.4}, {"dice": 1.0, "focal": 0.2}, {"dice": 1.0}, {"dice": 1.0}]

    def test_a_phase_that_starts_inside_a_blend_goes_on_from_the_weights_there(self) -> None:
        phases = (LossPhase(0, {"a": 1.0}), LossPhase(10, {"b": 1.0}, 10), LossPhase(15, {"c": 1.0}, 2))
        assert compute_loss_weights(phases, 15) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0})
        assert compute_loss_weights(phases, 16) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})
        assert compute_loss_weights(phases, 17) == {"c": 1.0}

    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=4), st.floats(0, 60))
    def test_weights_of_phases_that_sum_to_one_sum_to_one(self, gaps: list[tuple[int, int]], epoch: float) -> None:
        starts = list(itertools.accumulate(gap for gap, _ in gaps))
        phases = [LossPhase(0, {"x": 1.0})]
        for number, (start, (_, blend)) in enumerate(zip(starts, gaps, strict=True)):
            phases.append(LossPhase(start, {f"c{number}": 0.25, "x": 0.75}, blend))
        weights = compute_loss_weights(phases, epoch)
        assert sum(weights.values()) == pytest.approx(1.0)
        assert all(w >= 0 for w in weights.values())

    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 12)), max_size=4), st.integers(1, 30), st.floats(0, 60))
    def test_overridden_weights_hold_from_their_epoch_on_and_the_others_stay(
        self, gaps: list[tuple[int, int]], begin: int, epoch: float
    ) -> None:
        starts = list(itertools.accumulate(gap for gap, _ in gaps))
        phases = [LossPhase(0, {"x": 1.0, "y": 0.05})]
        for number, (start, (_, blend)) in enumerate(zip(starts, gaps, strict=True)):
            phases.append(LossPhase(start, {"x": 0.5, f"c{number}": 0.5}, blend))
        found = override_weights(phases, begin, {"y": 0.08})
        before, after = compute_loss_weights(phases, epoch), compute_loss_weights(found, epoch)
        assert {n: w for n, w in after.items() if n != "y"} == pytest.approx(
            {n: w for n, w in before.items() if n != "y"}
        )
        if epoch < begin:
            assert after == before
        blending = any(p.from_epoch <= begin < p.from_epoch + p.blend_epochs for p in phases)
        if epoch >= begin and (not blending or epoch >= max(p.from_epoch + p.blend_epochs for p in phases)):
            assert after["y"] == pytest.approx(0.08)

    def test_a_blend_that_is_under_way_goes_on_to_the_overridden_weight(self) -> None:
        phases = (LossPhase(0, {"a": 1.0}), LossPhase(4, {"b": 1.0}, 4))
        found = override_weights(phases, 6, {"b": 3.0})
        assert [compute_loss_weights(found, e) for e in (5, 6, 7, 8)] == [
            {"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.5}, {"a": 0.25, "b": 1.75}, {"b": 3.0}
        ]  # fmt: skip

    @given(st.floats(0, 30), st.floats(1e-6, 0.01))
    def test_a_blend_has_no_jump(self, epoch: float, gap: float) -> None:
        phases = (LossPhase(0, {"a": 1.0}), LossPhase(5, {"b": 1.0}, 6), LossPhase(8, {"a": 0.3}, 4))
        before, after = (compute_loss_weights(phases, e) for e in (epoch, epoch + gap))
        for name in {*before, *after}:
            assert abs(before.get(name, 0.0) - after.get(name, 0.0)) <= gap


@given(rampup_steps=st.integers(1, 300), kind=st.sampled_from(RAMPUPS))
def test_rampup_rises_from_near_0_to_1(rampup_steps: int, kind: str) -> None:
    values = [compute_rampup(step, rampup_steps, kind) for step in range(rampup_steps + 5)]
    assert values == sorted(values)
    assert 0.0 <= values[0] < 0.007
    assert values[rampup_steps - 1] < 1.0
    assert values[rampup_steps:] == [1.0] * 5


def test_rampup_closed_forms() -> None:
    assert compute_rampup(0, 40, "sigmoid") == pytest.approx(math.exp(-5))
    assert compute_rampup(20, 40, "sigmoid") == pytest.approx(math.exp(-1.25))
    assert compute_rampup(10, 40, "linear") == 0.25
    assert compute_rampup(20, 40, "cosine") == pytest.approx(0.5)
    assert compute_rampup(10, 40, "cosine") == pytest.approx(0.5 - math.sqrt(0.125))


@pytest.mark.parametrize("kind", RAMPUPS)
def test_no_rampup_is_1_at_once(kind: str) -> None:
    assert compute_rampup(0, 0, kind) == 1.0


@given(decay=st.floats(0.0, 1.0, exclude_max=True), updates=st.integers(0, 10**6))
def test_ema_decay_rises_to_its_limit(decay: float, updates: int) -> None:
    decay_at = make_ema_schedule(EMAConfig(decay=decay), 1)
    value = decay_at(updates)
    assert 0.0 <= value <= decay_at(updates + 1) <= decay
    assert value in (decay, 1.0 - 1.0 / (updates + 1))
    assert make_ema_schedule(EMAConfig(decay=decay, warmup=False), 1)(updates) == decay


def test_a_warming_teacher_is_the_mean_of_its_students() -> None:
    students = [3.0, -1.0, 4.0, 1.5]
    teacher, decay_at = 100.0, make_ema_schedule(EMAConfig(decay=0.999), 100)
    for updates, student in enumerate(students):
        teacher = decay_at(updates) * teacher + (1 - decay_at(updates)) * student
    assert teacher == pytest.approx(sum(students) / len(students))


@pytest.mark.parametrize("form", ["linear", "cosine"])
def test_ema_decay_passes_to_its_final_value(form: str) -> None:
    def decay(updates: int, warmup: bool = False) -> float:
        settings = EMAConfig(decay=0.9, warmup=warmup, schedule=form, final_decay=1.0)  # type: ignore[arg-type]
        return make_ema_schedule(settings, 100)(updates)

    assert [decay(u) for u in (0, 50, 100, 500)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    values = [decay(u) for u in range(101)]
    assert values == sorted(values)
    byol = [1 - (1 - 0.9) * (math.cos(math.pi * u / 100) + 1) / 2 for u in range(101)]
    line = [0.9 + 0.1 * u / 100 for u in range(101)]
    assert values == pytest.approx(byol if form == "cosine" else line)
    assert [decay(u, warmup=True) for u in (0, 1, 99)] == pytest.approx([0.0, 0.5, min(values[99], 0.99)])


def test_a_final_decay_and_a_schedule_need_each_other() -> None:
    with pytest.raises(ValueError, match="schedule cosine passes from decay to final_decay"):
        EMAConfig(schedule="cosine")
    with pytest.raises(ValueError, match=r"final_decay 1\.0 is not used by schedule constant"):
        EMAConfig(final_decay=1.0)
