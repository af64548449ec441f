"""Every packaged configuration is sound and trains; the figures of the source documents are what the files say."""

from __future__ import annotations

from pathlib import Path

import compare_recipes
import pytest
import trainings
from conftest import TINY, train_tiny

from ssl_seg.config.layers import Layer, list_packaged, merge_layers, read_layers
from ssl_seg.run.settings import check_settings

PACKAGED = sorted(list_packaged())
RECIPES = [name for name in PACKAGED if name.startswith("recipes/") or name.startswith("recommended")]

SOURCE = {
    # dice, focal, variance, boundary, clDice; focal_alpha; batch; LR; SWA start. None: not trained on.
    "seed_v1": ((0.2, 0.4, 0.3, 0.05, 0.05), 0.75, 2, 1e-4, 40),
    "seed_v2": ((0.4, 0.25, 0.2, 0.1, 0.05), 0.4, 2, 1e-4, 40),
    "seed_v3": ((0.5, 0.15, 0.15, 0.15, 0.05), 0.3, 2, 1e-4, 30),
    "seed_v4": ((0.4, 0.15, 0.25, 0.1, 0.05), 0.3, 2, 2e-4, 20),
    "seed_v5": ((0.3, 0.15, 0.5, 0.05, 0.0), 0.4, 2, 1e-4, 40),
    "seed_v6": ((0.8, 0.15, 0.0, 0.05, 0.0), 0.4, 4, 1e-4, None),
    "seed_v7": ((0.75, 0.15, 0.1, 0.0, 0.0), 0.4, 8, 5e-4, None),
    "seed_v8": ((1.0, 0.0, 0.0, 0.0, 0.0), None, 8, 5e-4, None),
    "seed_v9": ((1.0, 0.0, 0.0, 0.0, 0.0), None, 8, 5e-4, 80),
    "seed_original": ((0.2, 0.4, 0.3, 0.05, 0.05), 0.95, 2, 1e-3, 30),
    "seed_optimized": ((0.5, 0.3, 0.1, 0.05, 0.0), 0.4, 8, 2e-4, 40),
    "seed_escape": ((0.7, 0.2, 0.05, 0.05, 0.0), 0.4, 8, 2e-4, 40),
    "seed_conservative": ((0.75, 0.15, 0.1, 0.0, 0.0), 0.4, 12, 2.45e-4, 40),
    "seed_combo": ((0.75, 0.15, 0.0, 0.0, 0.0), 0.4, 12, 5e-4, 40),
}
COMPONENTS = ("dice", "focal", "variance", "boundary", "cldice")


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_configuration_is_sound(name: str) -> None:
    check_settings(merge_layers(read_layers(name)))


@pytest.mark.parametrize("name", SOURCE)
def test_a_recipe_says_what_its_source_says(name: str) -> None:
    weights, alpha, batch, lr, swa = SOURCE[name]
    values, _ = merge_layers(read_layers(f"recipes/{name}"))
    assert tuple(values["loss"]["weights"].get(c, 0.0) for c in COMPONENTS) == weights
    assert values["loss"].get("options", {}).get("focal", {}).get("alpha") == alpha
    assert (values["batch"]["labeled"], values["optim"]["lr"]) == (batch, lr)
    assert values.get("policies", {}).get("swa", {}).get("start_epoch") == swa
    assert values.get("prediction", {}).get("threshold") == {"seed_v2": 0.6, "seed_v3": 0.8}.get(name)


def test_the_progressive_phases_are_the_sources() -> None:
    phases = merge_layers(read_layers("recipes/seed_v9"))[0]["loss"]["phases"]
    assert [(p["from_epoch"], {n: w for n, w in p["weights"].items() if w}) for p in phases] == [
        (31, {"dice": 0.8, "focal": 0.2}),
        (61, {"dice": 0.75, "focal": 0.15, "variance": 0.05, "boundary": 0.05}),
    ]


@pytest.mark.parametrize(
    ("name", "at_the_fifth"), [("seed_optimized", 2.2), ("seed_escape", 4.9), ("seed_conservative", 1.6)]
)
def test_the_plateau_responses_are_the_sources(name: str, at_the_fifth: float) -> None:
    """The source says 5.05 where its formula gives 4.9."""
    response = merge_layers(read_layers(f"recipes/{name}"))[0]["policies"]["plateau_response"]
    assert response.get("base", 1.0) + 4 * response["gain"] == pytest.approx(at_the_fifth)


def test_the_conservative_recipe_lasts_500_epochs_and_the_original_weighs_background_12_times() -> None:
    assert compute_epochs("seed_conservative") == compute_epochs("seed_combo") == 500
    assert merge_layers(read_layers("recipes/seed_original"))[0]["loss"]["fp_cost"] == 12


def compute_epochs(name: str) -> float:
    length = merge_layers(read_layers(f"recipes/{name}"))[0]["length"]
    return length["steps"] / length["steps_per_epoch"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_trains(name: str, particles_dir: Path, tmp_path: Path) -> None:
    layers = read_layers(name)
    tiny = {**TINY, "length": {"steps": 4, "steps_per_epoch": 2}, "optim": {"warmup_steps": 0}}
    with_deep = [*layers, Layer("--test", tiny)]
    result = train_tiny(tmp_path / "run", particles_dir, *(layer.values for layer in with_deep))
    assert (result.ending, result.step) == ("finished", 4)


def test_a_recipe_is_scaled_to_equal_steps() -> None:
    scaled = compare_recipes.scale_recipe(merge_layers(read_layers("recipes/seed_v9"))[0], steps=240, epochs=30)
    assert scaled["length"] == {"steps": 240, "steps_per_epoch": 8}
    assert scaled["optim"]["lr"] * 240 == pytest.approx(5e-4 * 300 * 79)  # the sum of the learning rates stays
    assert [p["from_epoch"] for p in scaled["loss"]["phases"]] == [3, 6]
    assert scaled["policies"]["swa"] == {"start_epoch": 8}
    escape = compare_recipes.scale_recipe(merge_layers(read_layers("recipes/seed_escape"))[0], steps=1000, epochs=100)
    after = escape["policies"]["plateau_response"]["after_rollback"]
    assert after == {"base": 1.2, "gain": 0.5, "component_weights": {"variance": 0.08}, "judge_epochs": 3}
    assert scaled["policies"]["weight_noise"] == {"start_epoch": 5, "every_epochs": 1, "std": 0.001}
    assert scaled["policies"]["early_stopping"] is None  # the steps are to be equal


def test_the_interval_over_seeds_is_students() -> None:
    mean, half = trainings.compute_interval([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    assert half == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)
