"""Shared fixtures: where the real images are, and small data sets on disk."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from hypothesis import HealthCheck, settings
from matplotlib.figure import Figure

from ssl_seg.cli.main import main
from ssl_seg.config.layers import Layer
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.console import Silent
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import TrainResult, train

settings.register_profile("no clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no clock")
torch.set_num_threads(1)  # for networks of a few channels a second thread costs more than it does
typer.main.get_command = cache(typer.main.get_command)  # each call in this process would build all commands anew: 30 ms


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs: what the tests expect holds on a CPU. Those of a GPU are asked for with ``-m gpu``."""
    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


REAL_DATA = Path(os.environ.get("SSL_SEG_DATA", Path(__file__).parents[2] / "shared" / "data"))


Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs the command line in this process; returns exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ssl-seg", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, *capsys.readouterr()

    return run


def same_weights(a: Path, b: Path) -> bool:
    """Return whether student and teacher of two checkpoints are equal."""
    one, two = load_checkpoint(a), load_checkpoint(b)
    return all(torch.equal(v, getattr(two, p)[n]) for p in ("student", "teacher") for n, v in getattr(one, p).items())


@pytest.fixture(scope="session")
def emps_dir() -> Path:
    return _real("emps")


@pytest.fixture(scope="session")
def la_half_dir() -> Path:
    return _real("la_half")


def _real(name: str) -> Path:
    folder = REAL_DATA / name
    if not (folder / "images").is_dir():
        pytest.skip(f"no real images at {folder}; set SSL_SEG_DATA to the folder that holds {name}/")
    return folder


TINY = {
    "data": {"patch_size": [32, 32]},
    "network": {"name": "basic_unet", "features": 4},
    "batch": {"labeled": 2},
    "length": {"steps": 12, "steps_per_epoch": 6},
    "monitor": {"probe_patches": 6, "train_probe_patches": 2},
    "runtime": {"precision": "fp32", "memory_format": "contiguous"},
}
"""Settings of a training that takes about a second."""


@pytest.fixture(scope="session")
def particles_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 images with 20 masks."""
    folder = tmp_path_factory.mktemp("data") / "particles"
    write_dataset(folder, "particles", 24, labeled=20)
    return folder


@pytest.fixture
def unopened(particles_dir: Path) -> None:
    """Forget what other tests have opened of the particles: their ledger lies with the data."""
    shutil.rmtree(particles_dir / ".ssl_seg" / "openings", ignore_errors=True)


@pytest.fixture(scope="session")
def sheets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 volumes with masks."""
    folder = tmp_path_factory.mktemp("data") / "sheets"
    write_dataset(folder, "sheets", 8)
    return folder


@pytest.fixture(scope="session")
def tiny_run(particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny run at half the labels."""
    run = tmp_path_factory.mktemp("runs") / "half"
    train_tiny(run, particles_dir, {"split": {"labels": 0.5}})
    return run


@pytest.fixture(scope="session")
def pretrained_run(particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished tiny pre-training."""
    from ssl_seg.run.pretraining.run import pretrain

    run = tmp_path_factory.mktemp("pretrained") / "run"
    pretrain(TrainRequest((Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}})), run))
    return run


class Notes(Silent):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def train_tiny(out: Path, data: Path | str, *settings: dict[str, Any], **request: Any) -> TrainResult:
    """Train with ``TINY``, the data folder and further settings."""
    layers = [Layer("--test", TINY), Layer("--data", {"data": {"root": str(data)}})]
    layers += [Layer("--test", s) for s in settings]
    return train(TrainRequest(tuple(layers), out, **request))


@pytest.fixture(autouse=True)
def _no_report_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the page that ends a training: its figures take longer than a tiny training."""
    monkeypatch.setattr("ssl_seg.report.run_report.write_when_trained", lambda *_: None)


@pytest.fixture(autouse=True)
def _room_for_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded copies are made however full the disk of the tests is."""
    monkeypatch.setattr("ssl_seg.data.disk_cache.LEFT_FREE", 0)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written while a test runs, in order."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures
