from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ssl_seg.config import Config
from ssl_seg.configio import (
    Layer,
    build_config,
    check_partial,
    dump_config,
    flatten,
    parse_override,
    read_layers,
    to_plain,
)
from ssl_seg.errors import ConfigError

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
    config, sources = build_config([REQUIRED, *read_layers(child), parse_override("seed=7")])
    assert (config.optim.lr, config.optim.momentum, config.seed) == (0.2, 0.5, 7)
    assert sources["optim.lr"] == child
    assert sources["optim.momentum"] == base
    assert sources["seed"] == "--set seed=7"
    assert sources["ema.decay"] == "default"
    assert sources["data.channels"] == "plan"


def test_all_problems_come_in_one_error_with_place_and_nearest_key(tmp_path: Path) -> None:
    file = write(tmp_path / "bad.yaml", "optim: {warmup_stepz: 3, lr: fast}\nema: {decay: 1.5}\n")
    with pytest.raises(ConfigError) as caught:
        build_config([REQUIRED, *read_layers(file), parse_override("batch.labelled=2")])
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    text = str(caught.value)
    assert f"{file}: optim.warmup_stepz: unknown key (did you mean 'warmup_steps'?)" in text
    assert "optim.lr = 'fast'" in text
    assert "ema.decay = 1.5" in text
    assert "--set batch.labelled=2: batch.labelled: unknown key (did you mean 'labeled'?)" in text


def test_partial_check_ignores_only_what_is_missing() -> None:
    check_partial([Layer("f", {"optim": {"lr": 0.1}, "data": {"spacing": [2.0, 1.0, 1.0]}})])
    check_partial([])
    with pytest.raises(ConfigError, match="leaves no step after the warm-up"):
        check_partial([Layer("f", {"optim": {"warmup_steps": 30}, "length": {"steps": 20}})])
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        check_partial([Layer("f", {"optim": {"lr": -1}})])


def test_saved_file_reproduces_the_configuration(tmp_path: Path) -> None:
    config, _ = build_config(
        [REQUIRED, parse_override("optim.clip_norm=null"), parse_override("data.spacing=[2, 1.5]")]
    )
    file = write(tmp_path / "saved.yaml", dump_config(config, "a comment"))
    assert build_config(read_layers(file))[0] == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "given twice"),
        ("- 1\n- 2\n", "mapping"),
        ("extends: nowhere\n", "no configuration file 'nowhere'"),
    ],
)
def test_unreadable_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_layers(write(tmp_path / "x.yaml", text))


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
        build_config([REQUIRED, parse_override("optim.warmup_steps=100")])


def test_loss_weights_are_replaced_as_a_whole() -> None:
    layers = [
        REQUIRED,
        Layer("parent", {"loss": {"weights": {"dice": 1.0, "focal": 2.0}}}),
        parse_override("loss.weights.dice=3"),
    ]
    assert build_config(layers)[0].loss.weights == {"dice": 3.0}


def test_another_method_drops_the_options_below_and_the_same_keeps_them() -> None:
    parent = Layer("parent", {"method": {"name": "mean_teacher", "options": {"consistency_weight": 3.0}}})
    other = build_config([REQUIRED, parent, parse_override("method.name=supervised")])[0]
    assert other.method.options == {}
    same = build_config([REQUIRED, parent, parse_override("method.name=mean_teacher")])[0]
    assert same.method.options == {"consistency_weight": 3.0}


def read_names(root: Path) -> set[str]:
    """Return every attribute name that some module other than config.py reads."""
    trees = [ast.parse(p.read_text()) for p in root.rglob("*.py") if p.name != "config.py"]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_setting_is_read_somewhere() -> None:
    config, _ = build_config([REQUIRED])
    fields = {key.split(".")[-1] for key, _ in flatten(to_plain(config))} - {"cross_entropy", "dice"}
    names = read_names(Path(__file__).parents[1] / "ssl_seg")
    assert sorted(fields - names) == []
    assert "no_such_setting" not in names


def test_every_setting_has_a_description() -> None:
    for name, section in Config.model_fields.items():
        fields = getattr(section.annotation, "model_fields", {})
        assert [f"{name}.{key}" for key, field in fields.items() if not field.description] == []
