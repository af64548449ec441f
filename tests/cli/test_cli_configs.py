"""``config show`` and ``config check``."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import yaml
from conftest import Cli
from test_cli import assert_refused, tiny_config  # noqa: F401 (a fixture)

from ssl_seg.cli.config import FIRST
from ssl_seg.config.layers import list_packaged
from ssl_seg.run.directory import RunDir

PRINTED_V9 = """\
# Batch & Learning
batch_size: 8              # 4x larger than v8 for stable gradients
learning_rate: 0.0005      # Conservative exploration
warmup_epochs: 2           # Gentle start

# Progressive Schedule (Key Innovation)
progressive_loss_schedule: true
progressive_phases:
  - phase: 1
    epoch_start: 0
    epoch_end: 30
    loss_weights: {dice: 1.0, focal: 0.0, variance: 0.0, boundary: 0.0}

  - phase: 2
    epoch_start: 31
    epoch_end: 60
    loss_weights: {dice: 0.8, focal: 0.2, variance: 0.0, boundary: 0.0}

  - phase: 3
    epoch_start: 61
    epoch_end: 300
    loss_weights: {dice: 0.75, focal: 0.15, variance: 0.05, boundary: 0.05}

# Training Enhancements
swa_enabled: true
swa_start_epoch: 80        # After phase 2 settles

noise_enabled: true
noise_start_epoch: 50      # Gentle exploration in phase 1

scheduler_type: "plateau"
scheduler_patience: 8      # More patient due to phase transitions

early_stopping_patience: 40
"""
"""The configuration as the source document prints it."""

HERE = {
    "batch_size": "batch.labeled",
    "learning_rate": "optim.lr",
    "warmup_epochs": "optim.warmup_steps",
    "progressive_loss_schedule": "loss.phases",
    "progressive_phases": "loss.phases: a list of {from_epoch: N, weights: {...}}",
    "progressive_phases.0.epoch_start": "from_epoch of a phase in loss.phases",
    "progressive_phases.0.epoch_end": "leave it out: the next phase ends the one before",
    "progressive_phases.0.loss_weights": "loss.weights, or weights of a phase",
    "swa_enabled": "policies.swa",
    "swa_start_epoch": "policies.swa.start_epoch",
    "noise_enabled": "policies.weight_noise",
    "noise_start_epoch": "policies.weight_noise.start_epoch",
    "scheduler_type": "reduce_on_plateau",
    "scheduler_patience": "optim.plateau_patience",
    "early_stopping_patience": "policies.early_stopping.patience",
}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestCheck:
    def test_the_printed_v9_is_refused_with_all_names_that_hold_here(self, cli: Cli, tmp_path: Path) -> None:
        file = write(tmp_path / "v9.yaml", PRINTED_V9)
        result = cli("config", "check", file)
        assert_refused(result)
        lines = result[2].partition("ssl-seg: error: ")[2].splitlines()
        assert len(lines) == len(HERE)
        for line, (key, here) in zip(lines, HERE.items(), strict=True):
            assert line.startswith(f"{file}: {key}: unknown key; ")
            assert here in line

    def test_a_component_that_its_code_would_not_find_is_refused(self, cli: Cli, tmp_path: Path) -> None:
        file = write(
            tmp_path / "x.yaml",
            "loss:\n  weights: {dice: 1.0}\n  phases:\n    - {from_epoch: 31, weights: {dice_weight: 0.8}}\n",
        )
        assert_refused(
            cli("config", "check", file), f"{file}: loss.phases.0.weights: unknown loss 'dice_weight'", "'dice'?"
        )

    def test_problems_of_all_sections_come_together(self, cli: Cli, tmp_path: Path) -> None:
        file = write(
            tmp_path / "x.yaml",
            "optim: {lrr: 1}\nloss: {weights: {dise: 1}}\nnetwork: {name: dynunt}\n"
            "method: {name: mean_teacher, options: {rampup_rato: 1}}\n",
        )
        result = cli("config", "check", file, "--set", "method.name=mean_teachr")
        words = ("optim.lrr", "'dise' (did you mean 'dice'?)", "network.name: unknown network 'dynunt'")
        assert_refused(result, *words, "--set method.name=mean_teachr: method.name = 'mean_teachr'")
        assert_refused(cli("config", "check", file), *words, f"{file}: method.options.rampup_rato: unknown key")

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("loss: {phases: [{from_epok: 3, weights: {dice: 2}}]}", ["loss.phases.0.from_epok", "'from_epoch'?"]),
            ("network: {name: unet, deep_supervision: 2}\ndata: {patch_size: [32, 32]}", ["'unet' has no outputs"]),
            ("policies: {swa: {start_epok: 3}}", ["policies.swa.start_epok", "'start_epoch'?"]),
            ("policies: {swa: {every_epochs: 3}}", ["x.yaml: policies.swa.start_epoch: missing"]),
            ("policies: {swa: true}", ["policies.swa = True: a section is needed here, with keys out of start_epoch"]),
            ("ema:", ["ema = None: a section is needed", "can be left out"]),
            ("loss: 3", ["loss = 3: a section is needed", "preset"]),
            ("loss: {presett: dice}", ["did you mean 'preset'?"]),
            ("loss: {preset: combind}", ["loss.preset = 'combind'", "did you mean 'combined'?"]),
            ("loss: {preset: [dice]}", ["loss.preset = ['dice']"]),
            ("data: {patch_size: 64}", ["data.patch_size = 64: a list is needed"]),
            ("loss: {weights: 3}", ["loss.weights = 3: a mapping is needed"]),
            ("network: {name: dynunet}\ndata: {patch_size: [30, 30]}", ["x.yaml: data.patch_size: ", "28x28, 32x32"]),
            ("extend: emps", ["did you mean 'extends'?"]),
            ("lr: 3", ["did you mean 'optim.lr'?"]),
            ("a: [1", ["not valid YAML"]),
        ],
    )  # fmt: skip
    def test_mistakes_at_every_level(self, cli: Cli, tmp_path: Path, text: str, words: list[str]) -> None:
        assert_refused(cli("config", "check", write(tmp_path / "x.yaml", text)), "x.yaml", *words)

    def test_what_is_missing(self, cli: Cli) -> None:
        assert_refused(cli("config", "check", "nowhere.yaml"), "no configuration file 'nowhere.yaml'")

    def test_warnings_leave_the_exit_code_unless_strict(self, cli: Cli, tmp_path: Path) -> None:
        file = write(tmp_path / "x.yaml", "length: {steps: 300}\npolicies: {swa: {start_epoch: 9}}\n")
        code, out, _ = cli("config", "check", file)
        assert code == 0
        assert out.splitlines()[0].startswith(f"WARNING changes_nothing: policies.swa.start_epoch = 9 ({file})")
        assert out.splitlines()[-1] == f"{file}: 1 warning"
        assert cli("config", "check", file, "--strict")[0] == 2
        assert cli("config", "check", file, "--strict", "--set", "policies.swa.start_epoch=2")[:2] == (
            0,
            f"{file}: ok\n",
        )

    def test_planned_settings_are_checked_with_data(self, cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
        file = write(tmp_path / "x.yaml", "policies: {swa: {start_epoch: 900}}\n")
        assert "WARNING" not in cli("config", "check", file)[1]
        assert "policies.swa.start_epoch = 900" in cli("config", "check", file, "--data", particles_dir)[1]

    def test_packaged_configurations_are_valid(self, cli: Cli) -> None:
        names = list_packaged()
        assert names
        for name in names:
            assert cli("config", "check", name)[0] == 0, name


class TestShow:
    def test_sources_are_named(self, cli: Cli, tiny_config: Path) -> None:  # noqa: F811
        with tiny_config.open("a") as file:
            file.write("loss: {preset: combined, weights: {focal: 1.0}}\n")
        code, out, _ = cli("config", "show", tiny_config, "--set", "seed=5")
        lines = {line.split(":")[0]: line for line in out.splitlines()}
        assert code == 0
        assert lines["seed"].endswith("# --set seed=5")
        assert lines["network.name"].endswith(f"# {tiny_config}")
        assert lines["data.channels"].endswith("# plan")
        assert lines["ema.decay"].endswith("# default")
        assert lines["loss.weights.focal"].endswith(f"# {tiny_config}")
        assert "preset" not in lines
        presets = cli("config", "show", tiny_config, "--set", "loss.preset=tversky_recall")[1]
        assert "loss.options.tversky.beta: 0.7" in presets
        assert presets.count("# --set loss.preset=tversky_recall (preset tversky_recall)") == 3
        assert "loss.weights.focal" not in presets

    def test_explained_each_setting_stands_once_before_its_meaning(self, cli: Cli, tiny_config: Path) -> None:  # noqa: F811
        given = (tiny_config, "--set", "policies.swa.start_epoch=3", "--set", "gates=[{metric: val/f1, above: 0.1}]")
        plain = cli("config", "show", *given)[1].splitlines()
        explained = cli("config", "show", *given, "--explain")[1].splitlines()
        settings = [index for index, line in enumerate(explained) if line.strip() in {text.strip() for text in plain}]
        assert sorted(explained[index].strip() for index in settings) == sorted(text.strip() for text in plain)
        assert [explained[index].split(":")[0].strip() for index in settings[: len(FIRST)]] == list(FIRST)
        meanings = {explained[index].split(":")[0].strip(): explained[index + 1].strip() for index in settings}
        assert all(len(text.split()) > 1 and not text.startswith("The same") for text in meanings.values())
        assert meanings["policies.swa.start_epoch"].startswith("Number of finished epochs")
        assert meanings["method.options.confidence"] != meanings["method.options.consistency"]
        assert "data: Where the images are and how they are cut." in explained

    def test_the_plot_is_written_once(self, cli: Cli, tiny_config: Path, tmp_path: Path) -> None:  # noqa: F811
        code, out, err = cli("config", "show", tiny_config, "--plot", tmp_path / "new" / "p.png")
        assert code == 0
        assert "seed: 0" in out
        assert "wrote" in err
        assert cv2.imread(str(tmp_path / "new" / "p.png")).std() > 0
        refused = cli("config", "show", tiny_config, "--plot", tmp_path / "new" / "p.png")
        assert_refused(refused, "not overwritten")
        assert refused[1] == ""


def test_train_notes_the_warnings_and_writes_what_a_preset_stands_for(
    cli: Cli,
    tiny_config: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    settings = ("--set", "loss.preset=focal_dice", "--set", "policies.swa.start_epoch=9")
    code, out, err = cli("train", "--config", tiny_config, "--out", tmp_path / "run", *settings)
    assert code == 0, err
    assert "config: WARNING changes_nothing: policies.swa.start_epoch = 9 (--set)" in out
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert yaml.safe_load(text)["loss"]["weights"] == {"focal": 0.7, "dice": 0.3}
    assert "preset" not in text
    assert cli("train", "--config", tmp_path / "run" / "config.yaml", "--out", tmp_path / "again")[0] == 0
    assert RunDir(tmp_path / "again").read_metrics()[-1]["train/loss"] == pytest.approx(
        RunDir(tmp_path / "run").read_metrics()[-1]["train/loss"]
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("data.patch_size=[33,33]",), ("33",)),
        (("data.patch_size=[16,32,32]", "network.name=dynunet"), ("2D images",)),
        (("loss.options.cross_entropy.class_weights=[1,2,3]",), ("class_weights", "each of the 2 classes")),
        (("loss.options.cross_entropy.class_weights=[0,0]",), ("one above 0",)),
        (("loss.options.cross_entropy.class_weights=[]",), ("class_weights", "at least 2")),
        (("batch.unlabeled=0", "split.labels=4"), ("batch.unlabeled = 0",)),
    ],
)
def test_what_train_refuses_check_refuses_too(
    cli: Cli,
    tiny_config: Path,  # noqa: F811
    particles_dir: Path,
    tmp_path: Path,
    settings: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    options = [part for setting in settings for part in ("--set", setting)]
    assert_refused(cli("config", "check", tiny_config, "--data", particles_dir, *options), *words)
    assert_refused(cli("train", "--config", tiny_config, "--out", tmp_path / "run", *options), *words)
    assert not (tmp_path / "run").exists()


def test_errors_of_the_loss_name_their_place(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("loss: {weights: {dice: 1}, options: {dice: {smooth: -1}}}\nnetwork: {name: unet}\n")
    assert_refused(cli("config", "check", file), f"{file}: loss.options.dice.smooth = -1")
    file.write_text("loss: {weights: {dice: 1}}\n")
    refused = cli("config", "check", file, "--set", "loss.options.focal.gamma=1")
    assert_refused(refused, "--set loss.options.focal.gamma=1: loss.options.focal: no phase names")
    file.write_text("loss: {weights: {dice: 1}, phases: [{from_epoch: 0, weights: {dice: 1}}]}\n")
    assert_refused(cli("config", "check", file), "what holds from epoch 0 is loss.weights")
    file.write_text("network: {name: unet, deep_supervision: 2}\n")
    assert_refused(cli("config", "check", file), f"{file}: network.deep_supervision = 2", "dynunet")


def test_a_rule_of_several_settings_cites_all_their_places(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {warmup_steps: 158}\n")
    refused = cli("config", "check", file, "--set", "length.steps=100")
    assert_refused(refused, f"{file}, --set length.steps=100: optim.warmup_steps=158", "--set optim.warmup_steps=10")
