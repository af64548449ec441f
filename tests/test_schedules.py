"""Oracles: torch.optim.lr_scheduler, closed forms; properties with hypothesis."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from ssl_seg.schedules import compute_ema_decay, compute_lr_factor, compute_rampup

LR_SCHEDULES = ["constant", "poly", "cosine"]
RAMPUPS = ["sigmoid", "linear", "cosine"]


def torch_factors(warmup_steps: int, total_steps: int, schedule: str, power: float, floor: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    decay_steps = total_steps - warmup_steps
    decay = {
        "constant": lambda: torch_schedulers.ConstantLR(optimizer, factor=1.0),
        "poly": lambda: torch_schedulers.PolynomialLR(optimizer, total_iters=decay_steps, power=power),
        "cosine": lambda: torch_schedulers.CosineAnnealingLR(optimizer, T_max=decay_steps, eta_min=floor),
    }
    scheduler = decay[schedule]()
    if warmup_steps:
        warmup = torch_schedulers.LinearLR(optimizer, start_factor=1 / warmup_steps, total_iters=warmup_steps - 1)
        scheduler = torch_schedulers.SequentialLR(optimizer, [warmup, decay[schedule]()], milestones=[warmup_steps])
    factors = []
    for _ in range(total_steps + 1):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


@pytest.mark.parametrize("warmup_steps", [0, 2, 10])
@pytest.mark.parametrize(
    ("schedule", "power", "floor"),
    [("constant", 0.9, 0.0), ("poly", 0.9, 0.0), ("poly", 2.0, 0.0), ("cosine", 0.9, 0.0), ("cosine", 0.9, 0.1)],
)
def test_lr_factor_is_torchs(warmup_steps: int, schedule: str, power: float, floor: float) -> None:
    expected = torch_factors(warmup_steps, 50, schedule, power, floor)
    got = [
        compute_lr_factor(step, total_steps=50, warmup_steps=warmup_steps, schedule=schedule, power=power, floor=floor)
        for step in range(51)
    ]
    assert got == pytest.approx(expected, abs=1e-9)


def test_poly_has_a_floor() -> None:
    def factor(step: int) -> float:
        return compute_lr_factor(step, total_steps=100, warmup_steps=0, schedule="poly", power=1.0, floor=0.2)

    assert [factor(0), factor(50), factor(100)] == pytest.approx([1.0, 0.6, 0.2])


def test_warmup_of_one_step_and_of_the_whole_run() -> None:
    assert compute_lr_factor(0, total_steps=10, warmup_steps=1, schedule="cosine") == 1.0
    whole = [compute_lr_factor(s, total_steps=4, warmup_steps=4, schedule="cosine") for s in range(5)]
    assert whole == [0.25, 0.5, 0.75, 1.0, 0.0]


@given(
    total_steps=st.integers(1, 500),
    warmup_share=st.floats(0.0, 1.0),
    schedule=st.sampled_from(LR_SCHEDULES),
    power=st.floats(0.1, 5.0),
    floor=st.floats(0.0, 1.0),
)
def test_lr_factor_rises_then_falls_and_keeps_its_bounds(
    total_steps: int, warmup_share: float, schedule: str, power: float, floor: float
) -> None:
    warmup_steps = int(warmup_share * total_steps)
    factors = [
        compute_lr_factor(
            step, total_steps=total_steps, warmup_steps=warmup_steps, schedule=schedule, power=power, floor=floor
        )
        for step in range(2 * total_steps)
    ]
    rising, falling = factors[:warmup_steps], factors[warmup_steps:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(0.0 < f <= 1.0 for f in rising)
    assert all(floor - 1e-12 <= f <= 1.0 for f in falling)
    if warmup_steps:
        assert rising[0] == 1 / warmup_steps
        assert rising[-1] == 1.0
    if schedule != "constant":
        assert factors[-1] == pytest.approx(floor)


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


@given(decay=st.floats(0.0, 1.0), updates=st.integers(0, 10**6))
def test_ema_decay_rises_to_its_limit(decay: float, updates: int) -> None:
    value = compute_ema_decay(updates, decay)
    assert 0.0 <= value <= compute_ema_decay(updates + 1, decay) <= decay
    assert value in (decay, 1.0 - 1.0 / (updates + 1))
    assert compute_ema_decay(updates, decay, warmup=False) == decay


def test_a_warming_teacher_is_the_mean_of_its_students() -> None:
    students = [3.0, -1.0, 4.0, 1.5]
    teacher = 100.0
    for updates, student in enumerate(students):
        decay = compute_ema_decay(updates, 0.999)
        teacher = decay * teacher + (1 - decay) * student
    assert teacher == pytest.approx(sum(students) / len(students))


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown schedule 'step'"):
        compute_lr_factor(0, total_steps=10, warmup_steps=0, schedule="step")
    with pytest.raises(ValueError, match="unknown ramp-up 'step'"):
        compute_rampup(0, 10, "step")


def test_importing_schedules_loads_nothing_heavy() -> None:
    code = "import sys, ssl_seg.schedules; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'monai')))"
    subprocess.run([sys.executable, "-c", code], check=True)
