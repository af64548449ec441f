"""What the commands do with the machine: its memory, its devices, Ctrl-C, and a terminal that shows what it is sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from test_cli import assert_refused

from ssl_seg.config import LengthConfig, RuntimeConfig
from ssl_seg.engine.devices import check_devices
from ssl_seg.errors import ConfigError, DataError, is_out_of_memory, printable, printable_lines
from ssl_seg.inference.sliding import Predictor


def allocate_with_torch() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def allocate_with_numpy() -> None:
    np.ones(2**45)


def run_out_on_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class TestOutOfMemory:
    @pytest.mark.parametrize("allocate", [allocate_with_torch, allocate_with_numpy, run_out_on_a_gpu])
    def test_each_library_is_recognized(self, allocate: Callable[[], None]) -> None:
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
        wrapped = DataError("x.tif: cannot be read")
        wrapped.__cause__ = caught.value
        assert is_out_of_memory(wrapped)

    @pytest.mark.parametrize(
        "error", [None, ValueError("3"), OSError(2, "no such file"), RuntimeError("size mismatch"),
                  DataError("out of memory.png: this is not a PNG file")],
    )  # fmt: skip
    def test_other_errors_are_not(self, error: BaseException | None) -> None:
        assert not is_out_of_memory(error)

    @pytest.mark.parametrize("allocate", [allocate_with_torch, allocate_with_numpy, run_out_on_a_gpu])
    @pytest.mark.parametrize("command", ["evaluate", "diagnose", "predict", "probe-loss"])
    def test_commands_say_so_in_one_error(
        self,
        cli: Cli,
        tiny_run: Path,
        particles_dir: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        command: str,
        allocate: Callable[[], None],
    ) -> None:
        monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda *_: allocate())
        arguments = {
            "predict": (tiny_run, particles_dir / "images", tmp_path / "out"),
            "probe-loss": ("--checkpoint", tiny_run, "--batches", 1),
        }
        result = cli(command, *arguments.get(command, (tiny_run,)))
        assert_refused(result, "out of memory", "more memory")
        assert ("at an image of 128 x 128 on cpu" in result[2]) == (command == "evaluate")
        assert result[2].count("ssl-seg: error: ") == 1

    def test_a_limit_of_the_system_is_met_with_one_error(
        self, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        """A piece of an image of 2 x 10^9 pixels, of which the file holds next to nothing, is too much for 256 MiB."""
        big = tmp_path / "big.npy"
        np.lib.format.open_memmap(big, mode="w+", dtype=np.uint8, shape=(40_000, 50_000))
        code = (
            "import resource, sys, torch, monai.inferers, scipy.ndimage, cv2\n"
            "import ssl_seg.results.prediction\n"
            "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
            "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
            f"sys.argv = ['ssl-seg', 'predict', {str(tiny_run)!r}, {str(big)!r}, {str(tmp_path / 'out')!r}]\n"
            "from ssl_seg.cli.main import main\n"
            "main()\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert_refused((done.returncode, done.stdout, done.stderr), "out of memory", "big.npy")
        assert all(path.name.startswith(".") for path in (tmp_path / "out").iterdir())  # pieces, to go on with


class TestAccelerator:
    @pytest.mark.parametrize("command", ["evaluate", "diagnose", "predict", "probe-loss", "data batches"])
    def test_a_device_that_is_not_here_is_refused(
        self,
        cli: Cli,
        tiny_run: Path,
        particles_dir: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        command: str,
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        arguments = {
            "predict": (tiny_run, particles_dir / "images", tmp_path / "out"),
            "probe-loss": ("--checkpoint", tiny_run),
            "data batches": ("--data", particles_dir),
        }
        chosen = (*command.split(), *arguments.get(command, (tiny_run,)))
        assert_refused(cli(*chosen, "--accelerator", "cuda"), "accelerator = cuda", "no such device")
        assert_refused(cli(*chosen, "--accelerator", "tpu"), "--accelerator")
        assert not (tmp_path / "out").exists()

    def test_the_cpu_may_be_asked_for_beside_a_gpu(
        self, cli: Cli, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        whole = Predictor.__call__
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(
            Predictor, "__call__", lambda self, *given: [seen.append(self.device.type), whole(self, *given)][1]
        )
        assert cli("evaluate", tiny_run, "--accelerator", "cpu", "--which", "student")[0] == 0
        assert set(seen) == {"cpu"}

    def test_a_setting_of_a_training_is_sent_to_the_option(self, cli: Cli, tiny_run: Path) -> None:
        assert_refused(cli("evaluate", tiny_run, "--set", "runtime.accelerator=cpu"), "--accelerator")


class TestProcesses:
    def test_no_more_than_the_machine_bears(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.cpu_count", lambda: 3)
        for devices in (1, 5, 6):
            check_devices(RuntimeConfig(accelerator="cpu", devices=devices))
        for devices in (7, 10**9):
            with pytest.raises(ConfigError, match="3 cores, for 6 processes at most"):
                check_devices(RuntimeConfig(accelerator="cpu", devices=devices))

    def test_nodes_are_not_waited_for_that_nothing_has_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="torchrun or srun"):
            check_devices(RuntimeConfig(accelerator="cpu", num_nodes=2))
        monkeypatch.setenv("NODE_RANK", "0")
        check_devices(RuntimeConfig(accelerator="cpu", num_nodes=2))

    def test_counts_have_an_upper_end(self) -> None:
        assert LengthConfig(steps=10**9).steps == 10**9
        with pytest.raises(ValueError, match="less than or equal"):
            LengthConfig(steps=10**9 + 1)


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain [bold] $x$ | `y`", "plain [bold] $x$ | `y`"),
            ("\x1b[31mred", "\\x1b[31mred"),
            ("\x9b31m", "\\x9b31m"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("細胞 e\u0301", "細胞 e\u0301"),
            ("\N{WOMAN}\u200d\N{GIRL}", "\N{WOMAN}\u200d\N{GIRL}"),
            ("gpj\u202e.exe", "gpj\\u202e.exe"),
            ("zero\u200bwidth", "zero\\u200bwidth"),
            ("\udcff", "\\udcff"),
            ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ],
    )
    def test_nothing_steers_the_terminal(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    def test_lines_of_a_message_stay_lines(self) -> None:
        assert printable_lines("one\n  \x1b[2Jtwo") == "one\n  \\x1b[2Jtwo"

    def test_errors_are_escaped(self, cli: Cli, tmp_path: Path) -> None:
        result = cli("evaluate", tmp_path / "no\x1b[31mthing.pt")
        assert_refused(result, "no\\x1b[31mthing.pt")
        assert "\x1b[31m" not in result[2]
