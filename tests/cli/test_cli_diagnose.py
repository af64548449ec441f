"""``ssl-seg diagnose``, its gate, and the warning of ``ssl-seg predict`` about masks that are all the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import torch
from conftest import Cli
from diagnosis_cases import constant_diagnosis, healthy_diagnosis, masks_diagnosis
from forking import HOURS
from hypothesis import given
from hypothesis import strategies as st
from test_cli import assert_refused

from ssl_seg.config import DataConfig
from ssl_seg.data.volumes import read_image, read_mask, write_mask
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.gate import apply_gate
from ssl_seg.diagnose.result import Conclusion
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.inference.calibration import check_threshold
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results.prediction import LEAST_SHARE, describe_sameness
from ssl_seg.run.directory import RunDir

CONSTANT = "verdict: collapsed {code}: constant output function: do not submit"


@pytest.fixture(scope="module")
def borders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Foreground everywhere but in a border, as in the first report: 320 x 320 and 256 x 256."""
    folder = tmp_path_factory.mktemp("predictions") / "borders"
    for n in range(8):
        size, covered = (320, 312) if n < 5 else (256, 216)
        mask = np.zeros((size, size), np.uint8)
        first = (size - covered) // 2
        mask[first : first + covered, first : first + covered] = 1
        write_mask(folder / f"image_{n}.png", mask)
    return folder


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``pred`` and ``masks`` of disks of several sizes, nearly the same."""
    folder = tmp_path_factory.mktemp("predictions") / "disks"
    for n in range(6):
        y, x = np.indices((96, 96)) - 48 + n
        for name, radius in (("masks", 12 + 4 * n), ("pred", 13 + 4 * n)):
            write_mask(folder / name / f"image_{n}.png", (y**2 + x**2 < radius**2).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def constant_checkpoint(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a last layer that says the same everywhere: probability 0.627, as in the first report."""
    return save_constant(tiny_run, tmp_path_factory.mktemp("constant") / "checkpoints" / "constant.pt", 0.52)


def save_constant(run: Path, path: Path, logit: float) -> Path:
    found = load_checkpoint(run / "checkpoints" / "best.pt")
    states = {}
    for net in ("student", "teacher"):
        state = dict(getattr(found, net))
        last = [name for name in state if name.endswith("weight")][-1].removesuffix("weight")
        assert state[f"{last}bias"].shape == (2,)
        state |= {f"{last}weight": torch.zeros_like(state[f"{last}weight"]), f"{last}bias": torch.tensor([0.0, logit])}
        states[net] = state
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(replace(found, **states), path)
    return path


class TestPredictions:
    def test_the_first_report(self, cli: Cli, borders: Path, tmp_path: Path) -> None:
        out = tmp_path / "report"
        code, stdout, _ = cli("diagnose", "--predictions", borders, "--out", out)
        assert code == 3
        lines = stdout.splitlines()
        assert lines[0] == CONSTANT.format(code="uniform_ratio")
        assert "8 of 8 images" in lines[1]
        findings = [line.split()[:2] for line in lines if line.startswith(("  COLLAPSED", "  WARN", "    also"))]
        assert findings == [["COLLAPSED", "uniform_ratio"], ["also:", "coverage_hole"]]
        assert any("95.06% in 5 of 5" in line and "(312/320) x (312/320)" in line for line in lines)
        assert any("71.19% in 3 of 3" in line and "(216/256) x (216/256)" in line for line in lines)
        assert lines[-2].startswith("next: ssl-seg ")
        assert lines[-1] == f"wrote {out / 'report.html'}, and report.md as text"
        assert {path.name for path in out.iterdir()} == {
            "report.html", "report.md", "measurements.md", "report.json", "predictions.png", "foreground.png",
        }  # fmt: skip
        record = json.loads((out / "report.json").read_text())
        assert record["verdict"] == {
            "level": "collapsed", "code": "uniform_ratio", "message": "constant output function: do not submit",
        }  # fmt: skip

    def test_json_is_the_record_and_all_of_stdout(self, cli: Cli, borders: Path, tmp_path: Path) -> None:
        out = tmp_path / "report"
        code, stdout, stderr = cli("diagnose", "--predictions", borders, "--json", "--out", out)
        record, written = json.loads(stdout), json.loads((out / "report.json").read_text())
        for found in (record, written):
            assert found["statistics"]["looked_at"].pop("seconds_used") > 0
        assert (code, record) == (3, written)
        assert "wrote" in stderr
        assert {"verdict", "findings", "statistics"} <= set(record)

    def test_healthy_is_short(self, cli: Cli, disks: Path) -> None:
        code, stdout, _ = cli("diagnose", "--predictions", disks / "pred", "--masks", disks / "masks")
        assert code == 0
        assert stdout.startswith("verdict: ok healthy: ")
        assert len(stdout.splitlines()) <= 12
        assert "cause" not in stdout

    def test_gate(self, cli: Cli, disks: Path) -> None:
        command = ("diagnose", "--predictions", disks / "pred", "--masks", disks / "masks", "--require-f1")
        assert cli(*command, 0.8)[0] == 0
        code, stdout, _ = cli(*command, 0.999)
        assert code == 3
        assert stdout.startswith("verdict: warn below_gate: F1 is 0.9")
        assert "limit 0.999]" in stdout
        assert_refused(cli(*command[:3], "--require-f1", 0.8), "--require-f1 0.8", "--masks")
        assert cli(*command, 1.2)[0] == 2


class TestCheckpoint:
    def test_a_constant_network(self, cli: Cli, constant_checkpoint: Path, tmp_path: Path) -> None:
        out = tmp_path / "report"
        code, stdout, _ = cli("diagnose", constant_checkpoint, "--seconds", HOURS, "--out", out)
        assert code == 3
        assert stdout.splitlines()[0] == CONSTANT.format(code="constant_output")
        assert "0.627 +- 0.000" in stdout
        assert "100.00%  above 95% in a reported collapse" in stdout
        text = (out / "measurements.md").read_text()
        for title in ("Student, teacher", "Threshold sweep", "Loss of trivial", "Composition", "Input of the network"):
            assert f"## {title}" in text
        for figure in ("predictions", "histograms", "foreground", "thresholds"):
            assert cv2.imread(str(out / f"{figure}.png")) is not None
            assert f"]({figure}.png)" in text

    def test_the_time_begins_with_the_command(
        self, cli: Cli, tiny_run: Path, disks: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:  # fmt: skip
        """An import or a load that takes all of it leaves the few images that are always looked at."""
        for subject in ((tiny_run / "checkpoints" / "best.pt",), ("--predictions", disks / "pred")):
            times = iter([0.0, *(100.0,) * 1000])
            clock = partial(Clock, now=lambda times=times: next(times))
            monkeypatch.setattr("ssl_seg.diagnose.clock.Clock", clock)
            looked = json.loads(cli("diagnose", *subject, "--seconds", 50, "--json")[1])["statistics"]["looked_at"]
            assert (looked["seconds"], looked["seconds_used"]) == (50, 100.0)
        assert looked["new"] == {"used": 6, "of": 6}, "fewer than are always looked at"

    @pytest.mark.parametrize("verdict", ["ok", "collapsed"])
    @pytest.mark.parametrize("asked", ["best", "last", ""])
    def test_that_the_run_collapsed_later_is_said(
        self,
        cli: Cli,
        tiny_run: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        verdict: str,
        asked: str,
    ) -> None:
        shutil.copytree(tiny_run, tmp_path / "run")
        RunDir(tmp_path / "run").append_event("finished", step=9, verdict=verdict, codes=["all_negative"])
        monkeypatch.setattr("ssl_seg.diagnose.checkpoint.diagnose_checkpoint", Mock(side_effect=DataError("enough")))
        stderr = cli("diagnose", tmp_path / "run" / (f"checkpoints/{asked}.pt" if asked else ""))[2]
        assert ("ended collapsed (all_negative)" in stderr and "last.pt" in stderr) == (
            verdict == "collapsed" and not asked
        )
        assert "enough" in stderr

    def test_options_reach_the_examination(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:  # fmt: skip
        other = tmp_path / "data"
        for part in ("images", "masks"):
            for path in sorted((particles_dir / part).iterdir())[:6]:
                (other / part).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, other / part)
        checkpoint = tiny_run / "checkpoints" / "best.pt"
        command = ("diagnose", checkpoint, "--data", other, "--which", "student", "--seconds", 30, "--json")
        code, stdout, _ = cli(*command, "--set", "data.label_values=[0,1]")
        record = json.loads(stdout)
        looked = record["statistics"]["looked_at"]
        assert code in (0, 3)
        assert (looked["net"], looked["seconds"]) == ("student", 30)
        assert sum(part["of"] for part in looked.values() if isinstance(part, dict)) == 6
        assert_refused(cli(*command, "--layout", "nnunet"), "nnU-Net layout")
        assert_refused(cli(*command, "--set", "data.label_values=[0,7]"), "label_values")


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), ("--predictions", "none is given")),
            (("CKPT", "--predictions", "FOLDER"), ("both are given",)),
            (("CKPT", "--masks", "FOLDER"), ("--masks", "--predictions")),
            (("--predictions", "FOLDER", "--data", "x"), ("--data", "checkpoint")),
            (("--predictions", "FOLDER", "--which", "student"), ("--which", "checkpoint")),
            (("--predictions", "FOLDER", "--set", "data.spacing=[1,1]"), ("data.spacing", "does not look at it")),
            (("--predictions", "FOLDER", "--set", "optim.lr=1"), ("optim.lr", "does not look at it")),
            (("--predictions", "EMPTY"), ("EMPTY", "no image")),
            (("--predictions", "NONE"), ("no folder", "NONE")),
            (("--predictions", "FOLDER", "--masks", "EMPTY"), ("EMPTY", "no mask")),
            (("NONE",), ("no checkpoint file",)),
            (("CKPT", "--data", "NONE"), ("NONE",)),
            (("CKPT", "--layout", "nnunet"), ("--layout", "--data")),
            (("--predictions", "FOLDER", "--out", "FULL"), ("exists already", "FULL-2")),
        ],
    )
    def test_is_refused(
        self, cli: Cli, tiny_run: Path, borders: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str]
    ) -> None:  # fmt: skip
        (tmp_path / "EMPTY").mkdir()
        (tmp_path / "FULL").mkdir()
        (tmp_path / "FULL" / "mine").touch()
        paths = {name: tmp_path / name for name in ("EMPTY", "NONE", "FULL")}
        paths |= {"CKPT": tiny_run / "checkpoints" / "best.pt", "FOLDER": borders}
        result = cli("diagnose", *(paths.get(text, text) for text in arguments))
        assert_refused(result, *words)
        assert result[1] == ""

    def test_no_report_folder_stays_behind(self, cli: Cli, tmp_path: Path) -> None:
        out = tmp_path / "report"
        assert_refused(cli("diagnose", "--predictions", tmp_path / "none", "--out", out), "none")
        assert not out.exists()
        (tmp_path / "file").touch()
        assert_refused(cli("diagnose", tmp_path / "none", "--out", tmp_path / "file" / "below"), "cannot write")

    def test_a_mistyped_option(self, cli: Cli) -> None:
        code, _, stderr = cli("diagnose", "--prediction", "x")
        assert code == 2
        assert "--predictions" in stderr


class TestGate:
    @given(st.floats(0, 1))
    def test_below_is_a_warning_and_the_verdict(self, least: float) -> None:
        gated = apply_gate(healthy_diagnosis(), least)  # F1 0.91
        if least <= 0.91:
            assert gated.verdict.code == "healthy"
            assert gated.findings == ()
        else:
            assert (gated.verdict.level, gated.verdict.code) == ("warn", "below_gate")
            assert [(f.code, f.net, f.value, f.limit) for f in gated.findings] == [
                ("below_gate", "teacher", 0.91, least)
            ]
            assert gated.next_command == "ssl-seg evaluate runs/a/checkpoints/best.pt --figure worst_cases.png"

    def test_a_collapse_stays_the_verdict(self) -> None:
        gated = apply_gate(constant_diagnosis(), 0.7)
        assert gated.verdict.code == "constant_output"
        assert [f.code for f in gated.findings] == ["constant_output", "below_gate", "not_above_trivial"]
        assert gated.next_command == constant_diagnosis().next_command

    def test_other_warnings_keep_their_advice(self) -> None:
        warned = healthy_diagnosis(verdict=Conclusion("warn", "plateau", ""), next_command="ssl-seg x")
        assert apply_gate(warned, 0.99).verdict.code == "below_gate"
        assert apply_gate(warned, 0.99).next_command == "ssl-seg x"

    def test_what_was_not_measured_is_not_passed(self) -> None:
        with pytest.raises(ConfigError, match="--masks"):
            apply_gate(masks_diagnosis(), 0.0)
        with pytest.raises(ConfigError, match="--seconds"):
            apply_gate(constant_diagnosis(statistics={}), 0.0)


class TestPredictWarns:
    def test_of_a_constant_network(
        self, cli: Cli, tiny_run: Path, constant_checkpoint: Path, particles_dir: Path, tmp_path: Path
    ) -> None:  # fmt: skip
        images, out = tmp_path / "images", tmp_path / "my masks"
        images.mkdir()
        for path in sorted((particles_dir / "images").iterdir())[:4]:
            shutil.copy(path, images)
        code, _, stderr = cli("predict", constant_checkpoint, images, out)
        assert code == 0
        warning, advice = stderr.splitlines()[-2:]
        assert warning == "warning: all 4 masks of 128 x 128 have the same share of foreground, 100.00%"
        assert f"ssl-seg diagnose --predictions '{out}'" in advice
        assert cli("diagnose", "--predictions", out)[0] == 3
        empty = save_constant(tiny_run, tmp_path / "empty.pt", -3.0)
        code, _, stderr = cli("predict", empty, images, tmp_path / "empty")
        assert code == 0
        assert stderr.splitlines()[-1].startswith("note: all 4 masks are empty.")

    @given(st.lists(st.floats(0.02, 0.98), min_size=3, max_size=40, unique_by=lambda share: round(share, 3)))
    def test_not_of_shares_that_differ(self, shares: list[float]) -> None:
        assert describe_sameness({(64, 64): shares}, Path("out")) is None

    @given(st.integers(1, 12), st.floats(LEAST_SHARE, 1), st.integers(0, 3))
    def test_of_most_images_of_one_shape(self, same: int, share: float, others: int) -> None:
        shares = [share] * same + [(share + 0.1 + 0.2 * n) % 1 for n in range(others)]
        text = describe_sameness({(9, 64, 64): shares, (32, 32): [0.2, 0.4, 0.6]}, Path("out"))
        expected = same >= 3 and same >= 0.9 * (same + others)
        assert (text is not None) == expected
        if text is not None:
            number = f"all {same}" if not others else f"{same} of {same + others}"
            assert text.startswith(
                f"warning: {number} masks of 9 x 64 x 64 have the same share of foreground, {share:.2%}"
            )

    def test_not_of_few_images_of_several_shapes_or_tiny_objects(self) -> None:
        assert describe_sameness({(8, 8): [0.5, 0.5], (9, 9): [0.5, 0.5]}, Path("out")) is None
        assert describe_sameness({(8, 8): [0.00012, 0.00015, 0.00011]}, Path("out")) is None
        assert describe_sameness({(8, 8): [0.0, 0.0, 0.0, 0.1]}, Path("out")) is None
        assert describe_sameness({(8, 8): [0.0]}, Path("out")) is None
        assert describe_sameness({}, Path("out")) is None

    def test_of_empty_masks_mildly(self) -> None:
        text = describe_sameness({(8, 8): [0.0, 0.0], (9, 9): [0.0]}, Path("out"))
        assert text == (
            "note: all 3 masks are empty. Where there should be something to find, ask "
            "`ssl-seg diagnose --predictions out`"
        )


class TestPredictAtAThreshold:
    def test_it_cuts_the_probabilities(self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path) -> None:
        checkpoint, image = tiny_run / "checkpoints" / "best.pt", sorted((particles_dir / "images").iterdir())[0]
        before = (tiny_run / "events.jsonl").read_bytes()
        masks = {}
        for threshold in (None, 0.5, 0.3, 0.7):
            out = tmp_path / f"{threshold}"
            options = () if threshold is None else ("--threshold", threshold)
            assert cli("predict", checkpoint, image, out, "--probabilities", *options)[0] == 0
            masks[threshold] = read_mask(str(out / f"{image.stem}.png")) > 0
            prob = read_image(str(out / f"{image.stem}_prob.tif"))[0]
            np.testing.assert_array_equal(masks[threshold], prob > (threshold or 0.5))
        np.testing.assert_array_equal(masks[None], masks[0.5])
        assert masks[0.3].sum() > masks[0.5].sum() > masks[0.7].sum()
        assert (tiny_run / "events.jsonl").read_bytes() == before

    @pytest.mark.parametrize("threshold", [0, 1, 1.5, -0.1, "nan"])
    def test_it_is_a_probability(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path, threshold: object
    ) -> None:  # fmt: skip
        command = ("predict", tiny_run / "checkpoints" / "best.pt", particles_dir, tmp_path / "out")
        assert_refused(cli(*command, "--threshold", threshold), "--threshold", "above 0 and below 1")
        assert not (tmp_path / "out").exists()

    def test_of_several_classes_there_is_none(self) -> None:
        with pytest.raises(ConfigError, match="cannot tell 3 classes apart"):
            check_threshold(0.3, make_data(0, 1, 2))
        check_threshold(None, make_data(0, 1, 2))
        check_threshold(0.3, make_data(0, 1))


def make_data(*label_values: int) -> DataConfig:
    return DataConfig(root="x", label_values=label_values, channels=1, patch_size=(32, 32), foreground_ratio=0.3)
