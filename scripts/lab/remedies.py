"""Each action that the monitor advises, tried on a fault or in a situation that gets its finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from trainings import map_runs

from lab.faults import FAULTS
from lab.runs import Nested, Run, run_training, write_particles
from lab.situations import SITUATIONS, TINY, measure_truth, write_images

MARGIN = 0.10
"""F1 over the trivial one from which a remedy has helped."""


@dataclass(frozen=True)
class Remedy:
    """An action as settings, and what it is for: part of the name of a fault, or of a situation."""

    action: str
    where: str
    settings: Mapping[str, Any]


_RARE = "three classes, one small and in 5 images"
_WEIGHTS = {"loss": {"class_weights": "auto"}}
_METHOD = {"name": "mean_teacher", "options": {"confidence": 0.8}}
REMEDIES: tuple[Remedy, ...] = (
    Remedy("optim.lr of the optimizer", "learning rate x 100", {"optim": {"lr": 0.1}}),
    Remedy("optim.lr of the optimizer", "learning rate 1e30", {"optim": {"lr": 3e-3}}),
    Remedy("a tenth of optim.lr", "learning rate x 100", {"optim": {"lr": 1.0}}),
    Remedy("monitor.on_collapse=recover", "a batch of NaN", {"monitor": {"on_collapse": "recover"}}),
    Remedy("loss.fn_cost=1", "cost of missed foreground x 1000", {"loss": {"fn_cost": 1.0}, "length": {"steps": 60}}),
    Remedy("loss.fp_cost=1", "cost of false foreground x 1000", {"loss": {"fp_cost": 1.0}}),
    Remedy("network.norm=instance", "BatchNorm statistics never updated", {"network": {"norm": "instance"}}),
    Remedy("method.options.confidence=0.8", "confidence threshold", {"method": _METHOD}),
    Remedy("optim.lr of the optimizer", "very slow learning", {"optim": {"lr": 3e-3}}),
    Remedy("twice the steps", "three classes, one in 2 images", {"length": {"steps": 160}}),
    Remedy("six times the steps", _RARE, {"length": {"steps": 960}}),
    Remedy("loss.class_weights=auto", _RARE, _WEIGHTS),
    Remedy("six times the steps, loss.class_weights=auto", _RARE, {"length": {"steps": 960}, **_WEIGHTS}),
)


@dataclass(frozen=True)
class RemedyResult:
    """Before and after: F1 of the better network over the trivial one, and for situations predicted over true."""

    remedy: Remedy
    seed: int
    margins: tuple[float, float]
    ratios: tuple[float, float] | None
    codes: tuple[tuple[str, ...], tuple[str, ...]]


def run_remedy(out: Path, task: tuple[int, int]) -> RemedyResult:
    """Train without and with a remedy, given by its place in ``REMEDIES``."""
    number, seed = task
    remedy = REMEDIES[number]
    torch.set_num_threads(1)
    paths = [out / f"remedy{number:02d}_seed{seed}_{name}" for name in ("without", "with")]
    steps: tuple[Nested, Nested] = ({}, remedy.settings)
    fault = next((f for f in FAULTS if remedy.where in f.name), None)
    if fault is not None:
        data = write_particles(out / "data" / "particles")
        runs = [
            run_training(path, data, seed, fault.settings, own, fault=fault.inject)
            for path, own in zip(paths, steps, strict=True)
        ]
        margins = [f1 - trivial for f1, trivial in (run.f1_of("last") for run in runs)]
        return RemedyResult(remedy, seed, (margins[0], margins[1]), None, _codes(runs))
    situation = next(s for s in SITUATIONS if remedy.where in s.name)
    data = write_images(out / "data" / f"{situation.name}_seed{seed}", situation, seed)
    runs = [
        run_training(path, data, seed, TINY, situation.settings, own) for path, own in zip(paths, steps, strict=True)
    ]
    nets = [max(measure_truth(path / "checkpoints" / "last.pt", situation, seed), key=lambda n: n.f1) for path in paths]
    margins = [net.f1 - net.trivial_f1 for net in nets]
    return RemedyResult(remedy, seed, (margins[0], margins[1]), (nets[0].ratio, nets[1].ratio), _codes(runs))


def run_remedies(out: Path, seeds: tuple[int, ...], workers: int) -> list[RemedyResult]:
    """Try each remedy with each seed."""
    write_particles(out / "data" / "particles")
    return list(map_runs(partial(run_remedy, out), [(n, s) for n in range(len(REMEDIES)) for s in seeds], workers))


def _codes(runs: list[Run]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    first, second = (tuple(run.events[-1]["codes"]) for run in runs)
    return first, second
