"""The last verdict of a run and `ssl-seg diagnose` on its last checkpoint say the same, whatever the fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from lab import injections
from lab.faults import FAULTS
from lab.runs import Nested, run_training, write_particles
from lab.situations import SITUATIONS, write_images

from ssl_seg.diagnose.checkpoint import OF_WHOLE_IMAGES, CheckpointRequest, diagnose_checkpoint

TINY: Nested = {
    "data": {"patch_size": [32, 32]},
    "network": {"features": 4},
    "batch": {"labeled": 2, "unlabeled": 2},
    "length": {"steps": 12, "steps_per_epoch": 6},
    "optim": {"warmup_steps": 2},
    "monitor": {"probe_patches": 8, "train_probe_patches": 4, "first_epoch_probes": [0]},
}
IN_CODE = {
    injections.kill_activations,
    injections.invert_contrast_at_prediction,
    injections.blank_at_prediction,
}
"""Faults of the program that trained, which the program that diagnoses does not have."""
OF_RUNS = [fault for fault in FAULTS if fault.inject not in IN_CODE]


def check(
    path: Path, data: str, *settings: Any, fault: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    length = {"length": TINY["length"], "network": {"features": 4}}
    run = run_training(path, data, 1, TINY, *settings, length, fault=fault)
    end = run.events[-1]
    result = diagnose_checkpoint(CheckpointRequest(path / "checkpoints" / "last.pt", seconds=1e6))
    assert result.verdict.level == end["verdict"]
    # Whole images can show what no look of a run at patches could.
    assert result.verdict.code in {*(end["codes"][:1] or ["healthy"]), *OF_WHOLE_IMAGES}
    # The verdict that ended a run is that of a look, which does not know yet which network will be used.
    own = {(f.code, f.net, f.level if end["event"] == "finished" else "") for f in result.findings}
    told = [e["findings"] for e in run.events if e["event"] == "verdict"]
    last = told[-1] if told else []
    assert {(f["code"], f["net"], f["level"] if end["event"] == "finished" else "") for f in last} <= own
    assert bool(result.action) == bool(result.findings)


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_particles(tmp_path_factory.mktemp("lab") / "particles", 16)


@pytest.mark.parametrize("fault", OF_RUNS, ids=lambda fault: fault.name)
def test_with_a_fault(fault: Any, particles: str, tmp_path: Path) -> None:
    check(tmp_path / "run", particles, fault.settings, fault=fault.inject)


@pytest.mark.parametrize("method", ["supervised", "mean_teacher"])
def test_of_a_healthy_run(method: str, particles: str, tmp_path: Path) -> None:
    check(tmp_path / "run", particles, {"method": {"name": method}, "optim": {"lr": 1e-2}})


@pytest.mark.parametrize("number", range(len(SITUATIONS)), ids=lambda number: SITUATIONS[number].name)
def test_in_a_situation(number: int, tmp_path: Path) -> None:
    situation = SITUATIONS[number]
    data = write_images(tmp_path / "data", situation, 1)
    check(tmp_path / "run", data, {"batch": {"unlabeled": 0}, "split": {"labels": 1.0}}, situation.settings)
