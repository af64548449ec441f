from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import yaml
from conftest import TINY, Cli

from ssl_seg.data.home import HOME_FOLDER
from ssl_seg.data.splits.files import load_split
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.run import training
from ssl_seg.run.directory import RunDir


def assert_refused(result: tuple[int, str, str], *words: str, code: int = 2) -> None:
    """One clear error on stderr, the right exit code, no traceback."""
    assert result[0] == code, result
    assert "Traceback" not in result[2]
    for word in words:
        assert word in result[2]


@pytest.fixture
def tiny_config(tmp_path: Path, particles_dir: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(particles_dir)}}))
    return path


class TestHelp:
    def test_help_imports_no_heavy_library(self) -> None:
        code = (
            "import sys; sys.argv = ['ssl-seg', 'train', '--help']\n"
            "from ssl_seg.cli.main import main\n"
            "try: main()\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'monai', 'numpy', 'cv2', 'scipy', 'matplotlib', 'lightning_fabric', 'yaml'}\n"
            "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "--bootstrap" in done.stdout
        assert done.stderr == ""

    @pytest.mark.parametrize(
        "command",
        ["demo", "train", "ladder", "evaluate", "predict", "diagnose", "split make", "split check", "config show",
         "config check", "config diff",
         "data synthetic", "methods", "networks", "losses"],
    )  # fmt: skip
    def test_every_command_has_help(self, cli: Cli, command: str) -> None:
        code, out, _ = cli(*command.split(), "--help")
        assert code == 0
        assert "Usage: ssl-seg" in out

    def test_version_and_lists(self, cli: Cli) -> None:
        assert cli("--version")[1].startswith("ssl-seg ")
        assert "method.options.consistency_weight" in cli("methods")[1]
        assert "dynunet" in cli("networks")[1]
        losses = cli("losses")[1]
        assert "tversky: one minus the Tversky index" in losses
        assert "alpha 0.3, beta 0.7, smooth 1, batch True, fp_cost 1, fn_cost 1" in losses
        assert "js: the Jensen-Shannon divergence" in losses
        assert "curriculum: dice 1, focal 0, variance 0; from epoch 51 dice 0.75, focal 0.15, variance 0.1" in losses

    def test_mistyped_option_and_command(self, cli: Cli) -> None:
        assert_refused(cli("train", "--lables", "0.1"), "--labels")
        assert_refused(cli("trian"), "train")
        assert_refused(cli("train", "--labels", "many"), "--labels", "must be a number")


class TestTrain:
    def test_the_contract_of_a_run(self, cli: Cli, tiny_config: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        code, stdout, stderr = cli("train", "--config", tiny_config, "--labels", 0.5, "--seed", 3, "--out", out)
        assert code == 0, stderr
        for name in (
            "checkpoints/last.pt",
            "checkpoints/best.pt",
            "metrics.jsonl",
            "events.jsonl",
            "config.yaml",
            "split.yaml",
        ):
            assert (out / name).is_file()
        lines = [line for line in stdout.splitlines() if line.startswith("step ") and " | F1 " in line]
        assert lines[0].startswith("step     0 epoch  0 | F1 ")
        assert len(lines) == len(RunDir(out).read_metrics())
        assert "all-positive F1" in stdout
        config = yaml.safe_load((out / "config.yaml").read_text())
        assert (config["seed"], config["split"]["labels"]) == (3, 0.5)
        assert_refused(cli("train", "--config", tiny_config, "--out", out), "never overwritten", "--resume")

    def test_options_and_set_beat_files(self, cli: Cli, tiny_config: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        arguments = ("--epochs", 1, "--batch-size", 3, "--set", "optim.lr=0.25", "--method", "supervised")
        assert cli("train", "--config", tiny_config, "--out", out, *arguments)[0] == 0
        config = yaml.safe_load((out / "config.yaml").read_text())
        assert config["length"] == {"steps": 6, "steps_per_epoch": 6, "snapshots": 0}
        assert config["optim"]["lr"] == 0.25
        assert config["batch"] == {"labeled": 3, "unlabeled": 0, "positive_ratio": None, "foreground_share": None}

    def test_ctrl_c_before_anything_is_saved_says_so(
        self, cli: Cli, tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        out = tmp_path / "my run"
        with monkeypatch.context() as patch:
            patch.setattr(training, "assemble", interrupt)
            code, stdout, _ = cli("train", "--config", tiny_config, "--out", out)
        assert code == 130
        (line,) = [line for line in stdout.splitlines() if line.startswith("interrupted")]
        assert "before anything was saved" in line
        assert f"--out '{out}-2', or after removing that folder: rm -r '{out}'" in line
        assert_refused(cli("train", "--resume", out), "no checkpoint to resume from", "--out")
        assert cli("train", "--config", tiny_config, "--out", f"{out}-2")[0] == 0
        with monkeypatch.context() as patch:  # twice, while the last scores are made
            patch.setattr(training, "finish_run", interrupt)
            code, stdout, _ = cli("train", "--config", tiny_config, "--out", f"{out}-3")
        assert code == 130
        assert f"step 12 is saved; continue with: ssl-seg train --resume '{out}-3'" in stdout

    def test_bootstrap_refusal_is_exit_code_3(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        """The tiny run has trained for 12 steps: not above trivial."""
        parent = tmp_path / "ckpt_1pct.pt"
        shutil.copy(tiny_run / "checkpoints" / "last.pt", parent)
        result = cli("train", "--labels", 1.0, "--bootstrap", parent, "--out", tmp_path / "child")
        assert_refused(result, "not above trivial", "--force", code=3)
        assert cli("train", "--labels", 1.0, "--bootstrap", parent, "--out", tmp_path / "child", "--force")[0] == 0

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--data", "nowhere"), ("nowhere",)),
            (("--config", "nowhere.yaml"), ("nowhere.yaml", "Packaged")),
            (("--set", "optim.lrr=3"), ("--set optim.lrr=3", "did you mean 'lr'")),
            (("--set", "optim.lr"), ("key=value",)),
            (("--method", "mean_techer"), ("did you mean 'mean_teacher'",)),
            (("--network", "dynunt"), ("dynunet",)),
            (("--labels", "0"), ("--labels", "'0'", "above 0")),
            (("--labels", "1"), ("--labels 1:", "write 1.0 for all", "0.001")),
            (("--set", "split.labels=1"), ("split.labels", "write 1.0 for all")),
            (("--labels", "2.5"), ("--labels 2.5:", "neither a share")),
            (("--labels", "-0.1"), ("above 0",)),
            (("--bootstrap", "nowhere.pt"), ("nowhere.pt",)),
            (("--resume", "nowhere"), ("nowhere",)),
            (("--split", "nowhere.yaml"), ("nowhere.yaml",)),
            (("--steps", "10", "--epochs", "2"), ("--steps 10 and --epochs 2",)),
            (("--steps", "0"), ("length.steps",)),
            (("--devices", "0"), ("runtime.devices",)),
            (("--seed", "-1"), ("seed", "greater than or equal to 0")),
            (("--epochs", "2", "--set", "length=5"), ("length",)),
            (("--set", "data.channels=3", "--set", "data.label_values=[0,0]"), ("distinct",)),
        ],
    )
    def test_bad_input(
        self,
        cli: Cli,
        particles_dir: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[str, ...],
        words: tuple[str, ...],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        data = () if {"--data", "--resume"} & set(arguments) else ("--data", particles_dir)
        assert_refused(cli("train", *data, *arguments), *words)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("content", [b"no checkpoint", b"\x80\x04\x95junk", b""])
    def test_a_random_file_is_no_checkpoint(self, cli: Cli, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "x.pt"
        path.write_bytes(content)
        for command in (
            ("train", "--bootstrap", path),
            ("evaluate", path),
            ("predict", path, tmp_path, tmp_path / "out"),
        ):
            assert_refused(cli(*command), "x.pt")


class TestBadFolders:
    @pytest.fixture
    def folder(self, particles_dir: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(particles_dir, tmp_path / "copy"))

    def refuse(self, cli: Cli, folder: Path, *words: str) -> None:
        def find_files() -> list[Path]:  # but the facts of the images that were read before the bad one
            return sorted(path for path in folder.parent.rglob("*") if HOME_FOLDER not in path.parts)

        before = find_files()
        assert_refused(cli("train", "--data", folder, "--out", folder.parent / "run"), *words)
        assert find_files() == before

    def test_truncated_image(self, cli: Cli, folder: Path) -> None:
        image = max((folder / "images").iterdir())
        image.write_bytes(image.read_bytes()[:-40])
        self.refuse(cli, folder, image.name)

    def test_the_images_folder_itself(self, cli: Cli, folder: Path) -> None:
        result = cli("train", "--data", folder / "images")
        assert_refused(result, str(folder))


class TestEvaluate:
    def test_json(self, cli: Cli, tiny_run: Path) -> None:
        code, out, _ = cli("evaluate", tiny_run / "checkpoints" / "best.pt", "--json")
        result = json.loads(out)
        assert code == 0
        assert set(result) >= {"pooled", "mean", "trivial", "cases"}
        assert {row["id"] for row in result["cases"]} == set(load_split(tiny_run / "split.yaml").val)
        assert set(result["nets"]) == {"student", "teacher"}
        p = result["trivial"]["prevalence"]
        assert result["trivial"]["all_positive"] == pytest.approx(2 * p / (1 + p))
        assert result["pooled"] == result["nets"][result["which"]]["pooled"]

    def test_the_directory_of_a_run_stands_for_its_best_checkpoint(
        self, cli: Cli, tiny_run: Path, tmp_path: Path, particles_dir: Path
    ) -> None:
        best = tiny_run / "checkpoints" / "best.pt"
        code, out, err = cli("evaluate", tiny_run, "--which", "student", "--json")
        assert (code, json.loads(out)["checkpoint"]) == (0, str(best))
        assert f"taking {best}" in err
        for arguments in (
            ("predict", tiny_run, particles_dir / "images", tmp_path / "masks"),
            ("diagnose", tiny_run, "--json"),
            ("train", "--labels", 1.0, "--bootstrap", tiny_run, "--out", tmp_path / "child"),
        ):
            assert f"taking {best}" in cli(*arguments)[2]
        assert len(list((tmp_path / "masks").glob("*.png"))) == 24

    def test_the_directory_of_an_ablation_is_no_network(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "ABLATION.txt").write_text("")
        assert_refused(cli("evaluate", tmp_path), "directory of an ablation", "cells/ID/run")
        assert_refused(cli("train", "--resume", tmp_path), "directory of an ablation", "ssl-seg ablate")

    def test_table_and_figure(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        code, out, _ = cli(
            "evaluate", tiny_run / "checkpoints" / "best.pt", "--which", "student", "--figure", tmp_path / "p.png"
        )
        assert code == 0
        assert "trivial: all-positive F1" in out
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
        assert_refused(
            cli("evaluate", tiny_run / "checkpoints" / "best.pt", "--figure", tmp_path / "p.png"), "not overwritten"
        )

    @pytest.mark.usefixtures("unopened")
    def test_each_opening_of_the_test_list_is_recorded(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        for opening in (1, 2):
            code, out, _ = cli("evaluate", run / "checkpoints" / "best.pt", "--test", "--json")
            result = json.loads(out)
            assert (code, result["test_openings"]) == (0, opening)
            assert {row["id"] for row in result["cases"]} == set(load_split(run / "split.yaml").test)
        assert sum(e["event"] == "test_opened" for e in RunDir(run).read_events()) == 2
        copied = tmp_path / "copied.pt"
        shutil.copy(run / "checkpoints" / "best.pt", copied)
        code, out, _ = cli("evaluate", copied, "--test")
        assert (code, "opened 3 times" in out) == (0, True)
        assert (tmp_path / "copied.events.jsonl").is_file()

    def test_validation_opens_nothing(self, cli: Cli, tiny_run: Path) -> None:
        assert cli("evaluate", tiny_run / "checkpoints" / "best.pt")[0] == 0
        assert not any(e["event"] == "test_opened" for e in RunDir(tiny_run).read_events())

    def test_another_folder(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        assert cli("data", "synthetic", other, "--count", 4, "--labeled", 3, "--seed", 9)[0] == 0
        checkpoint = tiny_run / "checkpoints" / "best.pt"
        code, out, err = cli("evaluate", checkpoint, "--data", other, "--all", "--json")
        assert code == 0
        assert len(json.loads(out)["cases"]) == 3
        assert "labeled training cases" not in err
        assert_refused(cli("evaluate", checkpoint, "--data", other), "--all")
        assert_refused(cli("evaluate", checkpoint, "--test", "--all"), "exclude")
        split = tiny_run / "split.yaml"
        assert_refused(cli("evaluate", checkpoint, "--split", split, "--all"), "--split", str(split), "exclude")

    @pytest.mark.usefixtures("unopened")
    def test_all_on_the_training_folder_leaves_training_cases_out_and_breaks_the_seal(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        checkpoint = shutil.copy(tiny_run / "checkpoints" / "best.pt", tmp_path)
        split = load_split(tiny_run / "split.yaml")
        code, out, err = cli("evaluate", checkpoint, "--data", particles_dir, "--all", "--json")
        result, seen = json.loads(out), split.labeled_ids(0.5)
        assert code == 0
        assert not {row["id"] for row in result["cases"]} & set(seen)
        assert len(result["cases"]) == 20 - len(seen)
        assert f"{len(seen)} of the 20 cases were labeled training cases" in err
        assert (result["sealed_cases"], result["test_openings"]) == (len(split.test), 1)


class TestPredict:
    def test_folder_with_probabilities(self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "masks"
        code, stdout, _ = cli("predict", tiny_run / "checkpoints" / "best.pt", particles_dir, out, "--probabilities")
        assert code == 0
        assert "24 masks" in stdout
        names = {p.stem for p in (particles_dir / "images").iterdir()}
        assert {p.stem for p in out.glob("*.png")} == names
        for name in names:
            mask, prob = read_mask(str(out / f"{name}.png")), read_image(str(out / f"{name}_prob.tif"))[0]
            assert set(mask.ravel().tolist()) <= {0, 1}
            assert mask.shape == prob.shape == (128, 128)
            assert ((prob > 0.5) == (mask > 0)).all()

    def test_probabilities_are_not_overwritten_either(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        image = min((particles_dir / "images").iterdir())
        (tmp_path / "out").mkdir()
        theirs = tmp_path / "out" / f"{image.stem}_prob.tif"
        theirs.write_text("mine")
        checkpoint = tiny_run / "checkpoints" / "best.pt"
        assert_refused(
            cli("predict", checkpoint, image, tmp_path / "out", "--probabilities"), "_prob.tif", "not overwritten"
        )
        assert theirs.read_text() == "mine"
        assert list((tmp_path / "out").iterdir()) == [theirs]
        assert_refused(cli("predict", checkpoint, image, theirs / "below"), "below")

    def test_one_file_keeps_its_place_and_nothing_is_overwritten(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        image = sorted((particles_dir / "images").iterdir())[0]
        checkpoint = tiny_run / "checkpoints" / "best.pt"
        assert cli("predict", checkpoint, image, tmp_path / "mask.png")[0] == 0
        before = (tmp_path / "mask.png").read_bytes()
        assert_refused(cli("predict", checkpoint, image, tmp_path / "mask.png"), "not overwritten")
        assert (tmp_path / "mask.png").read_bytes() == before

    def test_bad_input(self, cli: Cli, tiny_run: Path, sheets_dir: Path, tmp_path: Path) -> None:
        checkpoint = tiny_run / "checkpoints" / "best.pt"
        assert_refused(cli("predict", checkpoint, tmp_path / "none", tmp_path / "out"), "none")
        assert_refused(cli("predict", checkpoint, tmp_path, tmp_path / "out"), "no image")
        assert_refused(cli("predict", checkpoint, sheets_dir, tmp_path / "out"), "3D", "2D")
        assert_refused(cli("predict", checkpoint, sheets_dir, tmp_path / "out", "--overlap", "1.5"), "overlap")
        assert not (tmp_path / "out").exists()

    def test_volume(self, cli: Cli, sheets_dir: Path, tmp_path: Path) -> None:
        config = tmp_path / "c.yaml"
        settings = {**TINY, "data": {"root": str(sheets_dir), "patch_size": [16, 32, 32]}, "length": {"steps": 2}}
        config.write_text(yaml.safe_dump(settings))
        assert cli("train", "--config", config, "--out", tmp_path / "run")[0] == 0
        code, out, _ = cli("evaluate", tmp_path / "run" / "checkpoints" / "last.pt", "--json")
        assert code == 0
        assert "missed_share" in json.loads(out)["mean"]
        volume = sorted((sheets_dir / "images").iterdir())[0]
        assert cli("predict", tmp_path / "run" / "checkpoints" / "last.pt", volume, tmp_path / "out")[0] == 0
        assert read_mask(str(tmp_path / "out" / f"{volume.stem}.tif")).shape == (32, 64, 64)


class TestSplit:
    def test_make_takes_fractions_in_a_row_and_check_passes(
        self, cli: Cli, particles_dir: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "splits" / "s.yaml"
        code, stdout, _ = cli(
            "split", "make", "--data", particles_dir, "--labels", 0.1, 0.5, 1.0, "--seed", 4, "--out", out
        )
        assert code == 0
        split = load_split(out)
        assert set(split.fractions) == {0.1, 0.5, 1.0}
        assert set(split.fractions[0.1]) < set(split.fractions[0.5]) < set(split.fractions[1.0])
        assert split.fingerprint in stdout
        code, stdout, _ = cli("split", "check", out, "--data", particles_dir, "--json")
        assert code == 0
        assert json.loads(stdout)["summary"]["faults"] == 0
        assert_refused(cli("split", "make", "--data", particles_dir, "--out", out), "s.yaml")

    def test_an_ignore_value_is_set_as_for_train(self, cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
        from ssl_seg.data.volumes import write_mask

        folder = Path(shutil.copytree(particles_dir, tmp_path / "copy"))
        for mask in (folder / "masks").iterdir():
            pixels = read_mask(str(mask)).copy()
            pixels[:4] = 255
            mask.unlink()
            write_mask(mask, pixels)
        out = tmp_path / "s.yaml"
        assert_refused(cli("split", "make", "--data", folder, "--out", out), "data.ignore_value=255")
        ignore = ("--set", "data.ignore_value=255")
        assert cli("split", "make", "--data", folder, "--out", out, *ignore)[0] == 0
        assert cli("split", "check", out, "--data", folder, *ignore)[0] == 0

    def test_bad_fractions(self, cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
        for labels in ("0", "1.5", "-1"):
            assert_refused(
                cli("split", "make", "--data", particles_dir, "--labels", labels, "--out", tmp_path / "x.yaml"), labels
            )


def test_figures_do_not_follow_the_style_of_the_user(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATPLOTLIBRC", "mine")
    cli("methods")
    assert matplotlib.matplotlib_fname() == os.devnull


def test_a_current_folder_that_has_been_removed(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli("methods") == (2, "", "ssl-seg: error: the current folder has been removed: change to another one\n")
