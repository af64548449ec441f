"""The ladder as a function of verdicts: order, waiting, bounds."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_seg.monitor.findings import RuleFinding, Verdict
from ssl_seg.monitor.memory import Memory, read_memory
from ssl_seg.monitor.recovery import (
    Intervention,
    InterventionSettings,
    RecoveryState,
    climb,
    compute_recovery_lr_factor,
    make_rungs,
)

FULL = make_rungs(uses_unlabeled=True, can_shift=True)
SETTINGS = InterventionSettings(FULL, patience=25, warmup_steps=10, clip_norm=8.0)


def make_verdict(code: str, level: str = "collapsed") -> Verdict:
    return Verdict((RuleFinding(code, level, "student", 0.0, 1.0, "", ""),))  # type: ignore[arg-type]


COLLAPSED, OK, NAN = make_verdict("all_negative"), Verdict(), make_verdict("non_finite")


def climb_all(
    looks: list[tuple[int, Verdict]], settings: InterventionSettings = SETTINGS, *, predicts_less: bool = True
) -> tuple[RecoveryState, list[tuple[int, Intervention]]]:
    ladder, done = RecoveryState(), []
    for step, verdict in looks:
        ladder, rung = climb(ladder, settings, verdict, step, predicts_less=predicts_less)
        if rung is not None:
            done.append((step, rung))
    return ladder, done


class TestOrder:
    def test_a_lasting_collapse_climbs_every_rung_after_its_patience(self) -> None:
        _, done = climb_all([(step, COLLAPSED) for step in range(100, 400)])
        assert done == [
            (100, "warn"), (125, "consistency_off"), (150, "lower_lr"), (175, "resample"), (200, "restore"),
            (285, "restore"), (370, "stop"), (395, "stop"),
        ]  # fmt: skip

    def test_a_healthy_run_is_left_alone(self) -> None:
        looks = [(step, verdict) for step in range(100) for verdict in (OK, make_verdict("plateau", "warn"))]
        assert climb_all(looks) == (RecoveryState(), [])

    def test_it_goes_on_where_it_was_after_a_recovery(self) -> None:
        _, done = climb_all([(0, COLLAPSED), (25, COLLAPSED), (50, OK), (90, OK), (100, COLLAPSED), (125, COLLAPSED)])
        assert [rung for _, rung in done] == ["warn", "consistency_off", "lower_lr", "resample"]

    def test_networks_with_nan_are_restored_at_once_twice_and_then_given_up(self) -> None:
        looks = [(step, NAN) for step in range(40, 200)]
        ladder, done = climb_all(looks)
        assert done[:3] == [(40, "restore"), (65, "restore"), (90, "stop")]
        assert ladder.restores == 2

    def test_nan_does_not_wait_for_what_was_done_before(self) -> None:
        _, done = climb_all([(100, COLLAPSED), (105, NAN), (110, NAN), (130, NAN)])
        assert done == [(100, "warn"), (105, "restore"), (130, "restore")]

    @pytest.mark.parametrize(("less", "expected"), [(True, "resample"), (False, "restore")])
    def test_a_change_of_the_batches_that_would_be_none_is_passed_over(self, less: bool, expected: str) -> None:
        settings = replace(SETTINGS, shifts=("more",))
        _, done = climb_all([(25 * i, COLLAPSED) for i in range(4)], settings, predicts_less=less)
        assert done[-1] == (75, expected)

    def test_rungs_without_effect_are_left_out(self) -> None:
        assert make_rungs(uses_unlabeled=False, can_shift=False) == (
            "warn",
            "lower_lr",
            "restore",
            "restore",
            "stop",
        )
        assert FULL == ("warn", "consistency_off", "lower_lr", "resample", "restore", "restore", "stop")


class TestWhatHolds:
    @pytest.mark.parametrize(("predicts_less", "foreground"), [(True, "more"), (False, "less")])
    def test_values_after_each_rung(self, predicts_less: bool, foreground: str) -> None:
        states = [climb_all([(25 * i, COLLAPSED) for i in range(n)], predicts_less=predicts_less)[0] for n in range(6)]
        assert [s.lr_factor for s in states] == [1, 1, 1, 0.25, 0.25, 0.0625]
        assert [s.clip_norm for s in states] == [None, None, None, 2.0, 2.0, 2.0]
        assert [s.foreground for s in states] == [None] * 4 + [foreground] * 2
        assert [s.consistency_off_until for s in states] == [0, 0, 125, 125, 125, 125]
        assert [s.restores for s in states] == [0, 0, 0, 0, 0, 1]

    def test_a_run_that_clips_nothing_gets_a_norm(self) -> None:
        settings = InterventionSettings(("lower_lr", "stop"), 25, 10, None)
        assert climb_all([(0, COLLAPSED)], settings)[0].clip_norm == 3.0

    def test_the_learning_rate_rises_anew_after_a_restore(self) -> None:
        ladder = RecoveryState(lr_factor=0.25, restores=1, restored_at=200)
        factors = [compute_recovery_lr_factor(ladder, SETTINGS, step) for step in (200, 204, 209, 210, 500)]
        assert factors == pytest.approx([0.025, 0.125, 0.25, 0.25, 0.25])
        assert compute_recovery_lr_factor(RecoveryState(lr_factor=0.25), SETTINGS, 0) == 0.25

    @given(st.lists(st.sampled_from([COLLAPSED, OK, NAN]), min_size=1, max_size=60), st.integers(1, 30), st.booleans())
    def test_it_is_bounded_whatever_the_looks_say(self, verdicts: list[Verdict], gap: int, less: bool) -> None:
        ladder, lrs = RecoveryState(), [1.0]
        for number, verdict in enumerate(verdicts):
            ladder, _ = climb(ladder, SETTINGS, verdict, gap * number, predicts_less=less)
            lrs.append(compute_recovery_lr_factor(ladder, SETTINGS, 10**6))
        assert ladder.restores <= 2
        assert all(later <= earlier for earlier, later in pairwise(lrs))
        assert lrs[-1] >= 1 / 64
        assert math.isclose(lrs[-1], ladder.lr_factor)


class TestMemory:
    def test_through_a_checkpoint(self) -> None:
        ladder, _ = climb_all([(25 * i, COLLAPSED) for i in range(6)])
        memory = Memory(({"step": 0, "f1": 0.5}, {"step": 5, "f1": 0.25, "loss": 0.1}), ladder, 100)
        assert read_memory(memory.to_plain()) == memory
        assert read_memory(None) == Memory()
