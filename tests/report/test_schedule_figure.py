"""The curves of a run against what a training records, and the figure against what was drawn."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import train_tiny
from matplotlib.figure import Figure
from test_lint import make_config

from ssl_seg.config import Config
from ssl_seg.config.curves import POINTS, compute_curves, find_raising_plateau
from ssl_seg.config.layers import build_config, merge_layers, read_layers
from ssl_seg.report.schedule_figure import plot_schedule
from ssl_seg.run.directory import RunDir

PHASES = (
    "loss.weights={dice: 1.0, focal: 0.0}",
    "loss.phases=[{from_epoch: 5, weights: {dice: 0.5, focal: 0.5}, blend_epochs: 2}, "
    "{from_epoch: 12, weights: {focal: 1}}]",
)
POLICIES = (
    "policies.swa={start_epoch: 15, every_epochs: 2}",
    "policies.weight_noise={start_epoch: 4, every_epochs: 8, std: 0.1}",
    "policies.gradient_noise.std=0.1",
    "policies.random_batch_size={smallest: 2, largest: 6}",
    "policies.plateau_response.patience=4",
    "policies.early_stopping.patience=25",
)
TEACHER = ("method.options={consistency_weight: 2.0, rampup_ratio: 0.5, rampup_steps: null, rampup: linear}",)


def all_on() -> Config:
    return make_config(*PHASES, *POLICIES, *TEACHER, "optim.schedule=reduce_on_plateau")


def test_the_curves_are_what_a_training_records(particles_dir: Path, tmp_path: Path) -> None:
    settings = {
        "optim": {"schedule": "cosine", "warmup_steps": 3, "lr_scaling": "linear", "lr_batch_size": 1},
        "method": {"options": {"rampup": "cosine", "rampup_ratio": 0.7, "consistency_weight": 3.0}},
        "loss": {"phases": [{"from_epoch": 1, "weights": {"dice": 2.0}}]},
        "length": {"steps": 12, "steps_per_epoch": 6},
        "monitor": {"first_epoch_probes": list(range(6))},
        "policies": {"weight_noise": {"start_epoch": 1, "std": 1e-4}, "swa": {"start_epoch": 1}},
    }
    train_tiny(tmp_path / "run", particles_dir, settings)
    run = RunDir(tmp_path / "run")
    curves = compute_curves(build_config(merge_layers(read_layers(str(run.path / "config.yaml"))))[0])
    assert curves.steps == tuple(range(12))
    assert curves.consistency_weight is not None
    records = {record["step"]: record for record in run.read_metrics()}
    for step in range(1, 7):  # a record is of the step before
        assert records[step]["train/lr"] == pytest.approx(curves.lr[step - 1])
        assert records[step]["train/consistency_weight"] == pytest.approx(curves.consistency_weight[step - 1])
    named = {name for name, weights in curves.loss_weights.items() if not math.isnan(weights[-1])}
    assert {key for key in records[12] if key in {"train/dice", "train/cross_entropy"}} == {f"train/{n}" for n in named}
    swa, noise = curves.windows
    events = run.read_events()
    for window, name in ((swa, "swa"), (noise, "weight_noise")):
        assert list(window.marks) == [event["epoch"] for event in events if event["event"] == name]


def test_weights_of_phases_switch_and_blend() -> None:
    curves = compute_curves(all_on())
    at = {step: index for index, step in enumerate(curves.steps)}
    dice, focal = curves.loss_weights["dice"], curves.loss_weights["focal"]
    assert [dice[at[step]] for step in (0, 499, 500, 600, 700, 1199)] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.5]
    assert [focal[at[step]] for step in (0, 600, 1200)] == [0.0, 0.25, 1.0]
    assert math.isnan(dice[at[1200]])
    assert curves.phase_starts == (5, 12)
    assert compute_curves(make_config(*PHASES, "length.steps=1200")).phase_starts == (5,)


def test_a_long_run_is_looked_at_in_few_steps_and_at_both_sides_of_a_switch() -> None:
    curves = compute_curves(make_config(*PHASES, *TEACHER, "length.steps=1000000", "length.steps_per_epoch=50001"))
    assert POINTS <= len(curves.steps) <= POINTS + 4
    assert (curves.steps[0], curves.steps[-1]) == (0, 999_999)
    assert {250_004, 250_005, 600_011, 600_012} <= set(curves.steps)
    assert list(curves.steps) == sorted(set(curves.steps))


def test_windows_say_when_policies_act_or_may_act() -> None:
    curves = compute_curves(all_on())
    windows = {window.name: window for window in curves.windows}
    assert windows["SWA takes the student"].marks == (15, 17, 19)
    assert windows["weight noise"].marks == (4, 12)  # none at the end of the run
    assert (windows["gradient noise"].start, windows["gradient noise"].end) == (0, 20)
    assert windows["random batch size"].certain
    assert windows["rate lowered at a plateau"].start == 6
    assert windows["rate raised at a plateau"].start == 9
    assert not windows["early stopping"].certain
    assert windows["early stopping"].start == 26
    assert len(curves.notes) == 2
    assert compute_curves(make_config(*TEACHER)).windows == compute_curves(make_config(*TEACHER)).notes == ()


def test_without_unlabeled_patches_there_is_no_consistency_weight() -> None:
    assert compute_curves(make_config(*TEACHER, "batch.unlabeled=0")).consistency_weight is None
    assert compute_curves(make_config("method.name=supervised")).consistency_weight is None
    steps = compute_curves(make_config(*TEACHER, "method.options.rampup_steps=10")).consistency_weight
    assert steps is not None
    assert [steps[0], steps[5], steps[10]] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("base", "gain", "cap", "number"), [(1, 0.15, 5, 2), (1.5, 0, 5, 1), (1, 0, 5, None), (1.5, 0.15, 1, None)]
)
def test_the_first_plateau_that_raises_the_rate(base: float, gain: float, cap: float, number: int | None) -> None:
    response = f"{{base: {base}, gain: {gain}, cap: {cap}}}"
    config = make_config(f"policies.plateau_response={response}", *TEACHER)
    assert config.policies.plateau_response is not None
    assert find_raising_plateau(config.policies.plateau_response) == number
    assert len(compute_curves(config).windows) == (number is not None)


def test_each_quantity_is_a_panel(drawn: list[Figure], tmp_path: Path) -> None:
    curves = compute_curves(all_on())
    plot_schedule(curves, tmp_path / "new" / "p.png", "title")
    lr, consistency, weights, decay, policies = drawn[0].axes
    assert lr.lines[0].get_ydata() == pytest.approx(curves.lr)
    assert lr.lines[0].get_xdata() == pytest.approx(np.array(curves.steps) / 100)
    assert consistency.lines[0].get_ydata() == pytest.approx(curves.consistency_weight)
    assert decay.lines[0].get_ydata() == pytest.approx(curves.ema_decay)
    legend = weights.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["dice", "focal"]
    for line, values in zip(weights.lines, curves.loss_weights.values(), strict=False):
        assert line.get_ydata() == pytest.approx(values, nan_ok=True)
    assert [line.get_xdata()[0] for line in weights.lines[2:]] == [5, 12]
    rows = [label.get_text() for label in policies.get_yticklabels()]
    assert rows == [window.name + "\n(possible)" * (not window.certain) for window in curves.windows]
    assert list(policies.lines[0].get_xdata()) == [15, 17, 19]
    assert [text.get_text().strip() for text in policies.texts] == ["never in this run"]
    assert [round(patch.get_x()) for patch in policies.patches] == [0, 0, 6, 9]
    assert policies.get_xlim() == (0, 20)
    assert "drawn without plateaus" in policies.get_xlabel()
    assert lr.child_axes[0].get_xlim() == pytest.approx((0, 2000))
    assert cv2.imread(str(tmp_path / "new" / "p.png")).std() > 0


def test_a_decay_of_one_can_be_drawn(drawn: list[Figure], tmp_path: Path) -> None:
    config = make_config("ema={decay: 0.99, schedule: cosine, final_decay: 1.0}", "method.name=supervised")
    plot_schedule(compute_curves(config), tmp_path / "p.png")
    assert len(drawn[0].axes) == 3
    heights = drawn[0].axes[2].transData.transform([(0, y) for y in (0.0, 0.9, 0.99, 0.999, 1.0)])[:, 1]
    assert np.diff(heights) == pytest.approx([np.diff(heights)[0]] * 4, rel=1e-3)  # each tenth as far as the last
