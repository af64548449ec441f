"""scripts/benchmark_time_to_quality.py: what it counts, when an arm is there, and that all arms run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import benchmark_time_to_quality as bench
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ssl_seg.data.loader import Probe
from ssl_seg.networks.precision import make_autocast

CPU = torch.device("cpu")
FP32 = make_autocast("fp32", CPU)


class Clock:
    """Moves when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_arm(name: str, clock: Clock, seconds: float, steps: int, calls: list[tuple[str, int]]) -> bench.Arm:
    def update(step: int) -> None:
        clock.now += seconds
        calls.append((name, step))

    return bench.Arm(name, steps, update, {}, FP32)


def run_race(arms: list[bench.Arm], clock: Clock, scores: Callable[[str, int], float], **changes: float) -> dict:
    looks: dict[str, int] = {}

    def look(arm: bench.Arm) -> float:
        clock.now += 1000.0  # a look takes long, and does not count
        looks[arm.name] = looks.get(arm.name, 0) + 1
        return scores(arm.name, looks[arm.name])

    wanted = {"every": 3, "level": 0.8, "cap": 1e9, "settled": 10**6, **changes}
    return bench.race(arms, look, clock=clock, tell=lambda _: None, **wanted)


class TestRace:
    def test_training_alone_counts_and_arms_take_turns(self) -> None:
        clock, calls = Clock(), []
        arms = [make_arm("fast", clock, 1.0, 7, calls), make_arm("slow", clock, 5.0, 5, calls)]
        tracks = run_race(arms, clock, lambda *_: 0.0)
        assert [(step, s) for step, s, _ in tracks["fast"].looks] == [(3, 3.0), (6, 6.0), (7, 7.0)]
        assert [(step, s) for step, s, _ in tracks["slow"].looks] == [(3, 15.0), (5, 25.0)]
        assert [name for name, _ in calls] == ["fast"] * 3 + ["slow"] * 3 + ["fast"] * 3 + ["slow"] * 2 + ["fast"]
        assert [step for name, step in calls if name == "fast"] == list(range(7))

    def test_an_arm_ends_at_the_cap(self) -> None:
        clock = Clock()
        tracks = run_race([make_arm("a", clock, 1.0, 100, [])], clock, lambda *_: 0.0, cap=7.0)
        assert tracks["a"].seconds == 9.0

    @pytest.mark.parametrize(("settled", "looks"), [(1, 3), (2, 6), (3, 8)])
    def test_an_arm_ends_when_it_has_settled(self, settled: int, looks: int) -> None:
        scores = [0.1, 0.7, 0.8, 0.7, 0.9, 0.9, 0.79, 0.8, 0.8]
        clock = Clock()
        arm = make_arm("a", clock, 1.0, 24, [])
        tracks = run_race([arm], clock, lambda _, look: scores[look - 1], settled=settled)
        assert len(tracks["a"].looks) == looks


class TestArrival:
    @given(st.lists(st.sampled_from([0.1, 0.8, 0.9]), min_size=1, max_size=8))
    def test_the_first_look_after_which_none_is_below(self, scores: list[float]) -> None:
        track = bench.Track(looks=[(10 * i, 2.0 * i, f1) for i, f1 in enumerate(scores)])
        good = [i for i in range(len(scores)) if min(scores[i:]) >= 0.8]
        assert bench.find_arrival(track, 0.8) == ((10 * good[0], 2.0 * good[0]) if good else None)


class Threshold(nn.Module):
    """Images as logits: one map of foreground, or background and foreground."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return images if self.maps == 1 else torch.cat([-images, images], dim=1)


@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("patches", [1, 3, 4, 9])
def test_f1_is_that_of_sklearn(maps: int, patches: int) -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(patches)
    image = rng.normal(size=(patches, 1, 4, 5)).astype(np.float32)
    target = rng.integers(-1, 2, size=(patches, 4, 5))
    probe = Probe(torch.from_numpy(image), torch.from_numpy(target))
    net = Threshold(maps).train()
    known = target >= 0
    expected = f1_score(target[known], image[:, 0][known] > 0)
    assert bench.compute_f1(net, probe, FP32, CPU, batch=3) == pytest.approx(expected)
    assert net.training


class TestBare:
    def test_the_network_has_the_parameters_of_torch_em(self) -> None:
        net = bench.BareUNet(2, 1)
        assert sum(w.numel() for w in net.parameters()) == 7_237_281
        assert net(torch.randn(1, 1, 32, 48)).shape == (1, 1, 32, 48)
        assert bench.BareUNet(3, 2, features=2)(torch.randn(1, 2, 16, 32, 16)).shape == (1, 1, 16, 32, 16)

    def test_dice_loss(self) -> None:
        target = torch.tensor([1.0, 1.0, 0.0, 0.0])
        assert bench.compute_dice_loss(target, target).item() == pytest.approx(0)
        assert bench.compute_dice_loss(1 - target, target).item() == pytest.approx(1)
        assert bench.compute_dice_loss(torch.full((4,), 0.5), target).item() == pytest.approx(1 - 2 / 3)

    def test_weak_changes(self) -> None:
        rng, image = np.random.default_rng(0), np.random.default_rng(1).normal(size=(1, 16, 16))
        changed = [bench.change_weakly(image, rng) for _ in range(400)]
        share = np.mean([not np.array_equal(one, image) for one in changed])
        assert share == pytest.approx(1 - 0.75**2, abs=0.1)


TINY = ["data.patch_size=[32, 32]", "length.steps=4", "network.features=4", "optim.warmup_steps=1"]


def test_all_arms_train_on_real_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "looks.json"
    options = ["--every", "2", "--probe", "4", "--cap", "0.1", "--level", "0.0", "--settled", "2", "--json", str(path)]
    for setting in [*TINY, "network.encoder_weights=none"]:
        options += ["--set", setting]
    bench.main(options)
    table = capsys.readouterr().out
    looks = json.loads(path.read_text())
    assert list(looks) == ["default", "bare", "previous"]
    for name, rows in looks.items():
        assert name in table
        assert rows[0][0] == 2
        assert all(0 <= f1 <= 1 for _, _, f1 in rows)
        assert all(a[1] < b[1] for a, b in pairwise(rows))


def test_a_network_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    bench.main(
        "--networks --names basic_unet --patch 32 32 --patches 1 --steps 1 --rounds 1".split()  # noqa: SIM905
    )
    assert "basic_unet" in capsys.readouterr().out
