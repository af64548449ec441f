from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from ssl_seg.config import Config
from ssl_seg.config.hints import FOREIGN_NAMES
from ssl_seg.config.layers import (
    Layer,
    build_config,
    check_partial,
    convert,
    dump_config,
    flatten,
    merge_layers,
    parse_override,
    read_layers,
    to_plain,
)
from ssl_seg.config.presets import PRESETS
from ssl_seg.data.settings import select_data_settings
from ssl_seg.errors import ConfigError
from ssl_seg.losses import LOSSES, list_options
from ssl_seg.methods.mean_teacher import MeanTeacherConfig

REQUIRED = Layer(
    "plan",
    {
        "data": {"label_values": [0, 255], "channels": 1, "patch_size": [64, 64], "foreground_ratio": 0.33},
        "network": {"name": "unet"},
        "batch": {"labeled": 4, "unlabeled": 4},
        "length": {"steps": 100},
    },
)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_later_layers_win_and_sources_are_known(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "optim: {lr: 0.1, momentum: 0.5}\nseed: 1\n")
    child = write(tmp_path / "child.yaml", f"extends: {Path(base).name}\noptim: {{lr: 0.2}}\n")
    config, sources = build_config(merge_layers([REQUIRED, *read_layers(child), parse_override("seed=7")]))
    assert (config.optim.lr, config.optim.momentum, config.seed) == (0.2, 0.5, 7)
    assert sources["optim.lr"] == child
    assert sources["optim.momentum"] == base
    assert sources["seed"] == "--set seed=7"
    assert sources["ema.decay"] == "default"
    assert sources["data.channels"] == "plan"


def test_all_problems_come_in_one_error_with_place_and_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.yaml", "optim: {warmup_stepz: 3, lr: fast}\nema: {decay: 1.5}\n")
    with pytest.raises(ConfigError) as caught:
        build_config(merge_layers([REQUIRED, *read_layers(file), parse_override("batch.labelled=2")]))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    text = str(caught.value)
    assert f"{file}: optim.warmup_stepz: unknown key (did you mean 'warmup_steps'?)" in text
    assert "optim.lr = 'fast'" in text
    assert "ema.decay = 1.5" in text
    assert "--set batch.labelled=2: batch.labelled: unknown key (did you mean 'labeled'?)" in text


@pytest.mark.parametrize("name", ["runtime.workers", "data.nodata"])
def test_a_number_or_a_word_is_refused_by_its_name(name: str) -> None:
    section, key = name.split(".")
    with pytest.raises(ConfigError) as error:
        check_partial(merge_layers([Layer("--set", {section: {key: "x"}})]))
    number, word = str(error.value).splitlines()
    assert number.startswith(f"--set: {name} = 'x': input should be a valid ")
    assert word.startswith(f"--set: {name} = 'x': or input should be '")


def test_partial_check_ignores_only_what_is_missing() -> None:
    for name in ("spacing", "resample_to"):
        check_partial(merge_layers([Layer("f", {"optim": {"lr": 0.1}, "data": {name: [2.0, 1.0, 1.0]}})]))
    check_partial(merge_layers([]))
    with pytest.raises(ConfigError, match="leaves no step after the warm-up"):
        check_partial(merge_layers([Layer("f", {"optim": {"warmup_steps": 30}, "length": {"steps": 20}})]))
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        check_partial(merge_layers([Layer("f", {"optim": {"lr": -1}})]))


def test_text_that_stands_for_a_number_becomes_one(tmp_path: Path) -> None:
    """YAML reads 5e-1 as text; what reads the data before the configuration is complete must not compare with it."""
    text = "data: {threshold: 5e-1, label_values: ['0', '7'], label_map: {'3': '7'}, tiles: '2', nodata: -3.4e38}\n"
    file = write(tmp_path / "a.yaml", f"{text}optim: {{lr: 1e-3}}\nloss: {{preset: combined, fn_cost: 2}}\n")
    given = merge_layers([*read_layers(file), parse_override("batch.labeled='3'")])
    assert given.get("data.threshold") == "5e-1"
    values, sources = convert(given)
    expected = {"threshold": 0.5, "label_values": [0, 7], "label_map": {"3": 7}, "tiles": 2, "nodata": -3.4e38}
    assert values["data"] == expected
    assert (values["optim"], values["batch"]) == ({"lr": 0.001}, {"labeled": 3})
    assert values["loss"] == given.section("loss")
    assert sources == given.sources
    settings = select_data_settings(read_layers(write(tmp_path / "data.yaml", text)))
    assert settings == {**expected, "label_map": {3: 7}}


def test_saved_file_reproduces_the_configuration(tmp_path: Path) -> None:
    config, _ = build_config(
        merge_layers([REQUIRED, parse_override("optim.clip_norm=null"), parse_override("data.spacing=[2, 1.5]")])
    )
    file = write(tmp_path / "saved.yaml", dump_config(config, "a comment"))
    assert build_config(merge_layers(read_layers(file)))[0] == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "given twice"),
        ("", "is an empty file"),
        (" \n", "is an empty file"),
        ("- 1\n- 2\n", "mapping"),
        ("extends: nowhere\n", "no configuration file 'nowhere'"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_layers(write(tmp_path / "x.yaml", text))


def test_anchors_are_merged(tmp_path: Path) -> None:
    text = "policies:\n  weight_noise: &noise {start_epoch: 3, std: 0.1}\n  swa: {<<: *noise, std: 0.2}\n"
    (layer,) = read_layers(write(tmp_path / "x.yaml", text))
    assert layer.values["policies"]["swa"] == {"start_epoch": 3, "std": 0.2}
    with pytest.raises(ConfigError, match="'std' is given twice"):
        read_layers(write(tmp_path / "y.yaml", text.replace("std: 0.2", "std: 0.2, std: 0.3")))


def test_extends_goes_one_level_only(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "seed: 1\n")
    write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="only one level"):
        read_layers(write(tmp_path / "c.yaml", "extends: b.yaml\n"))


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=3", "a=[1"])
def test_bad_overrides(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        parse_override(text)


def test_warmup_longer_than_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warmup_steps=100 .* length.steps=100"):
        build_config(merge_layers([REQUIRED, parse_override("optim.warmup_steps=100")]))


PARENT_LOSS = {
    "weights": {"dice": 1.0, "focal": 2.0},
    "options": {"focal": {"gamma": 3.0}},
    "phases": [{"from_epoch": 3, "weights": {"dice": 1.0}}],
    "fp_cost": 2.0,
}


@pytest.mark.parametrize("override", ["loss.weights.dice=3", "loss.preset=dice"])
def test_a_layer_with_weights_replaces_the_weights_options_and_phases_below(override: str) -> None:
    layers = [REQUIRED, Layer("parent", {"loss": PARENT_LOSS}), parse_override(override)]
    config, sources = build_config(merge_layers(layers))
    assert set(config.loss.weights) == {"dice"}
    assert (config.loss.options, config.loss.phases, config.loss.fp_cost) == ({}, (), 2.0)
    assert sources["loss.phases"] == sources["loss.options"] == "default"
    assert "parent" not in {source for key, source in sources.items() if key.startswith("loss.weights")}


def test_a_layer_with_options_or_phases_alone_keeps_the_weights_below() -> None:
    below = [REQUIRED, Layer("parent", {"loss": PARENT_LOSS})]
    options = build_config(merge_layers([*below, parse_override("loss.options.focal.alpha=0.7")]))[0].loss
    assert (options.weights, len(options.phases)) == ({"dice": 1.0, "focal": 2.0}, 1)
    assert options.options == {"focal": {"gamma": 3.0, "alpha": 0.7}}
    phases = build_config(merge_layers([*below, parse_override("loss.phases=[]")]))[0].loss
    assert (phases.weights, phases.phases) == ({"dice": 1.0, "focal": 2.0}, ())


def test_options_of_one_command_line_are_one_statement() -> None:
    texts = ["loss.weights.dice=1", "loss.options.focal.gamma=3", "loss.weights.focal=2", "optim.lr=1", "optim.lr=2"]
    for order in (texts, [*texts[2::-1], *texts[3:]]):
        layers = [REQUIRED, Layer("parent", {"loss": PARENT_LOSS}), *map(parse_override, order)]
        config, sources = build_config(merge_layers(layers))
        assert config.loss.weights == {"dice": 1.0, "focal": 2.0}
        assert config.loss.options == {"focal": {"gamma": 3}}
        assert config.loss.phases == ()
        assert (config.optim.lr, sources["optim.lr"]) == (2.0, "--set optim.lr=2")
        assert sources["loss.weights.dice"] == "--set loss.weights.dice=1"
    method = ["method.options.consistency_weight=2", "method.name=mean_teacher"]
    layers = [REQUIRED, Layer("parent", {"method": {"name": "supervised"}}), *map(parse_override, method)]
    assert build_config(merge_layers(layers))[0].method.options == {"consistency_weight": 2}


def test_a_preset_is_written_out_and_what_stands_beside_it_wins(tmp_path: Path) -> None:
    file = write(tmp_path / "c.yaml", "loss: {preset: tversky_recall, options: {tversky: {alpha: 0.2}}, fn_cost: 3}\n")
    config, sources = build_config(merge_layers([REQUIRED, *read_layers(file)]))
    assert config.loss.weights == PRESETS["tversky_recall"]["weights"]
    assert config.loss.options == {"tversky": {"alpha": 0.2, "beta": 0.7}}
    assert sources["loss.weights.tversky"] == f"{file} (preset tversky_recall)"
    assert sources["loss.options.tversky.alpha"] == file
    assert sources["loss.options.tversky.beta"] == f"{file} (preset tversky_recall)"
    assert sources["loss.fn_cost"] == file
    phases = build_config(merge_layers([REQUIRED, Layer("f", {"loss": {"preset": "progressive"}})]))[0].loss.phases
    assert [phase.from_epoch for phase in phases] == [31, 61]
    child = build_config(merge_layers([REQUIRED, *read_layers(file), parse_override("loss.weights.dice=1")]))[0]
    assert (child.loss.weights, child.loss.options) == ({"dice": 1.0}, {})


def test_an_unknown_preset_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^FILE: loss\.preset = 'combind': unknown \(did you mean 'combined'\?\)"):
        build_config(merge_layers([REQUIRED, Layer("FILE", {"loss": {"preset": "combind"}})]))


def test_another_method_drops_the_options_below_and_the_same_keeps_them() -> None:
    parent = Layer("parent", {"method": {"name": "mean_teacher", "options": {"consistency_weight": 3.0}}})
    other = build_config(merge_layers([REQUIRED, parent, parse_override("method.name=supervised")]))[0]
    assert other.method.options == {}
    same = build_config(merge_layers([REQUIRED, parent, parse_override("method.name=mean_teacher")]))[0]
    assert same.method.options == {"consistency_weight": 3.0}


def problems_of(values: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build_config(merge_layers([REQUIRED, Layer("FILE", values)]))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"loss": {"dice_weight": 1}}, "FILE: loss.dice_weight: unknown key; here it is loss.weights.dice"),
        ({"max_norm": 1}, "FILE: max_norm: unknown key; here it is optim.clip_norm"),
        ({"weight_decay": 1}, "FILE: weight_decay: unknown key (did you mean 'optim.weight_decay'?)"),
        ({"optim": {"patience": 1}}, "FILE: optim.patience: unknown key (did you mean "
         "'policies.plateau_response.patience' or 'policies.early_stopping.patience'?)"),
        ({"loss": {"phases": [{"from_epoch": 1, "weights": {"dice": 1.0}, "start_epoch": 1}]}},
         "FILE: loss.phases.0.start_epoch: unknown key (did you mean 'from_epoch'?)"),
        ({"zzz": 1}, f"FILE: zzz: unknown key (known here: {', '.join(Config.model_fields)}, extends)"),
        ({"policies": {"swa": {"every_epochs": 2}}},
         "FILE: policies.swa.start_epoch: missing; give it in the file or with --set policies.swa.start_epoch=..."),
        ({"seed": [1]}, "FILE: seed = [1]: input should be a valid integer"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_answered_by_the_name_that_holds_here(values: dict[str, object], line: str) -> None:
    assert problems_of(values) == [line]


def test_foreign_names_are_found_below_an_unknown_key_once_each() -> None:
    lines = problems_of({"training": {"stages": [{"batch_size": 4, "own": 1}, {"batch_size": 8}], "num_epochs": 3}})
    keys = [line.split(": ")[1] for line in lines]
    assert keys == ["training", "training.stages.0.batch_size", "training.num_epochs"]


def test_foreign_names_lead_to_settings_that_exist() -> None:
    settings = set(list_settings(Config, ""))
    settings |= {f"loss.weights.{name}" for name in LOSSES}
    settings |= {f"loss.options.{name}.{option}" for name in LOSSES for option in list_options(name)}
    settings |= {f"method.options.{option}" for option in MeanTeacherConfig.model_fields}
    dotted = re.compile(rf"\b(?:{'|'.join(Config.model_fields)})(?:\.[a-z_0-9]+)+")
    named = {name for text in FOREIGN_NAMES.values() for name in dotted.findall(text)}
    assert len(named) > 40
    assert sorted(named - settings) == []
    own = {name.split(".")[-1] for name in settings if not name.startswith("loss.options")}
    assert sorted(own & set(FOREIGN_NAMES)) == []  # a name of ours is no foreign one


def list_settings(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for candidate in (field.annotation, *get_args(field.annotation)):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from list_settings(candidate, f"{prefix}{name}.")


def read_names(root: Path) -> set[str]:
    """Return every attribute name that some module reads, beside those that only define settings."""
    readers = ("schedules", "curves")
    files = [p for p in root.rglob("*.py") if p.parent.name != "config" or p.stem in readers]
    trees = [ast.parse(p.read_text()) for p in files]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_setting_is_read_somewhere() -> None:
    config, _ = build_config(merge_layers([REQUIRED]))
    fields = {key.split(".")[-1] for key, _ in flatten(to_plain(config))} - {"cross_entropy", "dice"}
    names = read_names(Path(__file__).parents[2] / "ssl_seg")
    assert sorted(fields - names) == []
    assert "no_such_setting" not in names


def test_every_setting_has_a_description() -> None:
    for name, section in Config.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {})
        assert [f"{name}.{key}" for key, field in fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("length:\n  steps: yes\n", "length.steps"),
        ("optim:\n  lr: on\n", "optim.lr"),
        ("data:\n  label_values: [on, off]\n", "data.label_values"),
        ("data:\n  label_map: {255: true}\n", "data.label_map"),
        ("augment:\n  flips: no\n", None),
    ],
)
def test_yes_is_no_number(tmp_path: Path, text: str, name: str | None) -> None:
    """YAML takes yes for true, which Python counts as 1: classes [on, off] would be foreground and background."""
    (tmp_path / "a.yaml").write_text(text)
    settings = merge_layers(read_layers(str(tmp_path / "a.yaml")))
    if name is None:
        assert check_partial(settings)[0].augment.flips is False
        return
    with pytest.raises(ConfigError, match=rf"a\.yaml: {name}.* holds yes, no, .* where a number is needed"):
        check_partial(settings)


def test_a_file_of_comments_sets_nothing(tmp_path: Path) -> None:
    (layer,) = read_layers(write(tmp_path / "x.yaml", "# seed: 1\n"))
    assert layer.values == {}


@pytest.mark.parametrize(("size", "lines"), [("[0, 0]", 2), ("[64, 0]", 1), ("[64]", 1), ("[]", 1)])
def test_a_list_is_called_short_only_where_items_are_missing(size: str, lines: int) -> None:
    with pytest.raises(ConfigError) as caught:
        check_partial(merge_layers([parse_override(f"data.patch_size={size}")]))
    said = str(caught.value).splitlines()
    assert len(said) == lines
    assert any("at least 2 items" in line for line in said) == ("0" not in size)
