"""What only a GPU shows: no step waits for it, its results are those of the CPU, and its files open anywhere.

    pytest -m gpu tests/test_gpu.py

All other tests run without a GPU, also where there is one (``conftest.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_tiny
from lightning_fabric import Fabric
from test_methods import LOSS, TwoHeads, make_batch, make_net

from ssl_seg.config import OptimConfig
from ssl_seg.data.loader import Batch
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import build
from ssl_seg.monitor.signals import SignalCollector
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.networks.precision import make_autocast
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, or not asked for by -m gpu"),
]
SETTINGS: dict[str, Any] = {
    "split": {"labels": 0.5},
    "optim": {"name": "sgd", "lr": 1e-2},  # AdamW makes whole steps of gradients that differ in their last digits
    "length": {"steps": 12},
}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Products in full fp32, and convolutions that do not depend on chance."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


def make_engine(name: str, options: dict[str, Any]) -> tuple[Engine, Batch]:
    method = make_method(name, options, LOSS, 2)
    device = torch.device("cuda")
    built = build(method, TwoHeads if method.traits.needs_heads else make_net, 2)
    for module in (built.module, method):
        if isinstance(module, torch.nn.Module):
            module.to(device)
    engine = Engine(
        Fabric(accelerator="cuda", devices=1), built.module, make_optimizer(built.module, OptimConfig(lr=1e-2)),
        EMATeacher(built.module, lambda _: 0.9), method, make_autocast("bf16", device),
        total_steps=100, steps_per_epoch=10, clip_norm=1.0, seed=0,
    )  # fmt: skip
    return engine, make_batch(strong_views=method.traits.strong_views).to(device)


THRESHOLDS = [(name, {"threshold": kind}) for name in ("fixmatch",) for kind in ("freematch", "corrmatch")]


@pytest.mark.parametrize(("name", "options"), [*((name, {}) for name in METHODS), *THRESHOLDS])
def test_no_step_waits_for_the_device(name: str, options: dict[str, Any]) -> None:
    engine, batch = make_engine(name, options)
    for step in range(3):
        engine.step(batch, step, 0.01)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in (29, 30, 31):  # the tenth, in which pseudo-labels are measured, is among them
            record = engine.step(batch, step, 0.01)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(record.loss)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError):  # the check itself
            float(record.loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(scope="module")
def runs(particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    folder = tmp_path_factory.mktemp("devices")
    return {
        device: train_tiny(folder / device, particles_dir, SETTINGS, {"runtime": {"accelerator": device}}).run
        for device in ("cpu", "cuda")
    }


def test_a_training_is_that_of_the_cpu(runs: dict[str, RunDir]) -> None:
    first, second = (load_checkpoint(run.last) for run in runs.values())
    for name, value in first.student.items():
        assert torch.allclose(value, second.student[name], atol=2e-3), name
    looks = [run.read_metrics() for run in runs.values()]
    for one, other in zip(*looks, strict=True):
        assert one["val/student/logit_mean"] == pytest.approx(other["val/student/logit_mean"], abs=5e-3)
        assert one["val/teacher/f1"] == pytest.approx(other["val/teacher/f1"], abs=0.02)


def test_ranks_are_those_of_the_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    target = (torch.rand(6, 40, 40, generator=draw) < 0.1).long()
    score = torch.randn(target.shape, generator=draw) + target
    found = []
    for device in map(torch.device, ("cpu", "cuda")):
        collector = SignalCollector(range(2), device)
        logits = torch.stack([torch.zeros_like(score), score], dim=1)
        collector.update(logits.to(device), target.to(device), list("aabbcc"))
        s = collector.compute()
        found.append((s.auroc, s.auroc_low, s.average_precision, s.f1_best, s.logit_best, s.logit_quantiles))
    assert found[0] == found[1]


def test_an_interrupted_training_goes_on(
    runs: dict[str, RunDir], particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step = Engine.step

    def stop(self: Engine, batch: Batch, number: int, *rest: Any) -> Any:
        if number == 9:
            raise KeyboardInterrupt
        return take_step(self, batch, number, *rest)

    monkeypatch.setattr(Engine, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", particles_dir, SETTINGS, {"runtime": {"accelerator": "cuda"}})
    monkeypatch.undo()
    resumed = train(TrainRequest(resume=tmp_path / "run")).run
    whole, parts = load_checkpoint(runs["cuda"].last), load_checkpoint(resumed.last)
    assert parts.progress.step == whole.progress.step == 12
    for name, value in whole.teacher.items():
        assert torch.allclose(value, parts.teacher[name], atol=1e-4), name


def test_scores_and_masks_are_those_of_the_cpu(runs: dict[str, RunDir], particles_dir: Path, tmp_path: Path) -> None:
    best, images = runs["cuda"].best, particles_dir / "images"
    scores = [evaluate(EvaluateRequest(best, accelerator=device)) for device in runs]
    first, second = ({name: net["pooled"]["f1_macro"] for name, net in found["nets"].items()} for found in scores)
    assert first == pytest.approx(second, abs=2e-3)
    masks = [predict(PredictRequest(best, images, tmp_path / device, accelerator=device)) for device in runs]
    pairs = [(read(one), read(other)) for one, other in zip(*masks, strict=True)]
    assert np.mean([np.mean(one != other) for one, other in pairs]) < 2e-3


def read(path: Path) -> Any:
    import cv2

    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_its_checkpoints_open_where_there_is_no_gpu(runs: dict[str, RunDir]) -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "ssl_seg", "evaluate", str(runs["cuda"].best), "--json"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nets"]
    assert "was trained on cuda, which is not here" in done.stderr
