"""Presets: what ``expand`` lays over what."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from ssl_seg.config import AugmentConfig, LossConfig
from ssl_seg.config.layers import Layer, check_partial, dump_config, merge_layers, parse_override
from ssl_seg.config.presets import PRESETS, VIEWS, expand, expand_views
from ssl_seg.errors import ConfigError


def test_a_section_without_preset_is_as_it_was() -> None:
    section = {"weights": {"dice": 1.0}, "fp_cost": 2.0}
    assert expand(section) == section


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_alone_is_its_section(name: str) -> None:
    assert expand({"preset": name}) == PRESETS[name]
    LossConfig(**expand({"preset": name}))


def test_weights_take_the_place_of_all_weights() -> None:
    assert expand({"preset": "combined", "weights": {"dice": 1.0}, "fn_cost": 2.0}) == {
        "weights": {"dice": 1.0},
        "fn_cost": 2.0,
    }


def test_phases_take_the_place_of_all_phases_and_stay_otherwise() -> None:
    phase = {"from_epoch": 5, "weights": {"iou": 1.0}}
    assert expand({"preset": "progressive", "phases": [phase]})["phases"] == [phase]
    kept = expand({"preset": "progressive", "weights": {"dice": 2.0}})
    assert kept == {"weights": {"dice": 2.0}, "phases": PRESETS["progressive"]["phases"]}


def test_options_are_laid_over_the_presets() -> None:
    section = expand({"preset": "tversky_recall", "options": {"tversky": {"beta": 0.9}}})
    assert section["options"] == {"tversky": {"alpha": 0.3, "beta": 0.9}}
    section = expand({"preset": "combined", "options": {"focal": {"gamma": 3.0}}})
    assert section["options"] == {"focal": {"gamma": 3.0}}


def test_options_of_components_that_are_named_no_more_are_dropped() -> None:
    assert expand({"preset": "tversky_recall", "weights": {"dice": 1.0}}) == {"weights": {"dice": 1.0}}
    phase = {"from_epoch": 5, "weights": {"tversky": 1.0}}
    section = expand({"preset": "tversky_recall", "weights": {"dice": 1.0}, "phases": [phase]})
    assert section["options"] == {"tversky": {"alpha": 0.3, "beta": 0.7}}


def test_presets_are_not_changed_by_those_who_use_them() -> None:
    section = expand({"preset": "progressive"})
    section["weights"]["dice"] = 9.0
    section["phases"][0]["weights"].clear()
    assert expand({"preset": "progressive"}) == PRESETS["progressive"]
    assert PRESETS["progressive"]["weights"]["dice"] == 1.0


@pytest.mark.parametrize("rest", [{"options": 3}, {"weights": None}, {"phases": 1}, {"options": {"tversky": 3}}])
def test_wrong_types_are_left_for_the_check_of_the_section(rest: dict[str, object]) -> None:
    assert expand({"preset": "tversky_recall", **rest}).items() >= rest.items()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("combind", r"loss\.preset = 'combind': unknown \(did you mean 'combined'\?\); known: dice, combined,"),
        (3, r"loss\.preset = 3: unknown"),
        (["dice"], r"loss\.preset = \['dice'\]: unknown"),
    ],
)
def test_unknown_presets_are_refused(name: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand({"preset": name})


def test_the_schedules_of_the_papyrus_report() -> None:
    """Three phases from epochs 0, 31 and 61; two from 0 and 51."""
    progressive, curriculum = PRESETS["progressive"], PRESETS["curriculum"]
    assert [phase["from_epoch"] for phase in progressive["phases"]] == [31, 61]
    assert progressive["phases"][1]["weights"] == {"dice": 0.75, "focal": 0.15, "variance": 0.05, "boundary": 0.05}
    assert [phase["from_epoch"] for phase in curriculum["phases"]] == [51]
    assert curriculum["phases"][0]["weights"] == {"dice": 0.75, "focal": 0.15, "variance": 0.1}


def test_presets_do_not_import_torch() -> None:
    code = "import sys, ssl_seg.config.presets; sys.exit(any(m in sys.modules for m in ('torch', 'monai')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def read_views(*layers: Layer) -> AugmentConfig:
    return AugmentConfig(**merge_layers(layers)[0]["augment"])


def test_a_preset_of_views_stands_for_all_single_settings() -> None:
    none, light, strong = (read_views(parse_override(f"augment.preset={name}")) for name in ("none", "light", "strong"))
    assert strong == AugmentConfig()
    assert (none.flips, none.rotate90, none.affine, none.elastic, none.intensity, none.cutout) == (
        False,
        False,
        0,
        0,
        0,
        0,
    )
    assert light.flips
    assert light.rotate90
    assert light.affine == 0
    assert 0 < light.intensity < strong.intensity
    mixtures = {"cutmix", "copy_paste"}
    for name in VIEWS:
        left_open = mixtures | ({"invert"} if name == "strong" else set())
        assert set(expand_views({"preset": name})) == set(AugmentConfig.model_fields) - left_open


def test_what_is_given_beside_a_preset_wins_and_what_lies_below_is_replaced() -> None:
    light = expand_views({"preset": "light"})
    file = Layer("x.yaml", {"augment": {"preset": "light", "rotation": 20, "cutmix": 0.5}}, is_file=True)
    assert read_views(file) == AugmentConfig(**{**light, "rotation": 20, "cutmix": 0.5})
    single, preset = parse_override("augment.cutout=0.9"), parse_override("augment.preset=light")
    for options in ((single, preset), (preset, single)):
        merged, sources = merge_layers([file, *options])
        assert merged["augment"] == {**light, "cutmix": 0.5, "cutout": 0.9}
        assert sources["augment.cutout"] == "--set augment.cutout=0.9"
        assert sources["augment.affine"] == "--set augment.preset=light (preset light)"
        assert sources["augment.cutmix"] == "x.yaml"
        assert "augment.preset" not in sources


def test_both_kinds_of_presets_may_be_given() -> None:
    merged, sources = merge_layers([parse_override("augment.preset=none"), parse_override("loss.preset=dice")])
    assert merged == {"augment": expand_views({"preset": "none"}), "loss": PRESETS["dice"]}
    assert sources["loss.weights.dice"] == "--set loss.preset=dice (preset dice)"
    assert sources["augment.flips"] == "--set augment.preset=none (preset none)"


@pytest.mark.parametrize("name", ["stron", 3, None, ["light"]])
def test_an_unknown_preset_of_views_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(ConfigError, match=r"x.yaml: augment.preset = .*known: none, light, strong"):
        merge_layers([Layer("x.yaml", {"augment": {"preset": name}}, is_file=True)])


def test_written_settings_have_no_preset_and_are_read_as_they_were() -> None:
    config, _ = check_partial(
        merge_layers([parse_override("augment.preset=light"), parse_override("augment.elastic=0.2")])
    )
    text = dump_config(config)
    assert "preset" not in text
    assert read_views(Layer("config.yaml", yaml.safe_load(text), is_file=True)) == config.augment
