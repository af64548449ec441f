"""A small training, and what the monitor said at each look."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np

from ssl_seg.config.layers import Layer
from ssl_seg.data import synthetic
from ssl_seg.monitor import monitor
from ssl_seg.monitor.evidence import Evidence, Figures, summarize
from ssl_seg.monitor.findings import RuleFinding, Verdict
from ssl_seg.monitor.verdicts import judge
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

Nested = Mapping[str, Any]

IMAGES = 48
BASE: Nested = {
    "data": {"patch_size": [64, 64]},
    "split": {"labels": 0.5},
    "network": {"name": "basic_unet", "features": 8},
    "batch": {"labeled": 4, "unlabeled": 2},
    "optim": {"lr": 3e-3, "warmup_steps": 10},
    "length": {"steps": 60, "steps_per_epoch": 30},
    "monitor": {"probe_patches": 16, "train_probe_patches": 8},
    "runtime": {"precision": "fp32", "memory_format": "contiguous"},
}
"""A training of some seconds that learns. It is looked at after 0, 1, 2, 5, 10 and 20 steps and each epoch."""

EVIDENCE = "evidence.pickle"
"""File in a run directory with what the rules saw; so a changed rule can be tried without training anew."""


@dataclass(frozen=True)
class Look:
    """One look of the monitor."""

    step: int
    findings: tuple[RuleFinding, ...]
    record: Mapping[str, Any]
    """The line of metrics.jsonl."""

    @property
    def codes(self) -> tuple[str, ...]:
        """Codes, worst first."""
        return Verdict(self.findings).codes

    @property
    def level(self) -> str:
        """The worst level."""
        return Verdict(self.findings).level


@dataclass(frozen=True)
class Run:
    """What a training left behind."""

    looks: tuple[Look, ...]
    events: tuple[Mapping[str, Any], ...]
    ending: str
    path: Path

    def f1_of(self, checkpoint: str) -> tuple[float, float]:
        """Return the F1 of the better network of ``best`` or ``last`` on whole validation images, and the trivial one.

        That of the last probe for a run that was stopped: such a run is not scored on whole images.
        """
        scores = load_checkpoint(self.path / "checkpoints" / f"{checkpoint}.pt").scores
        f1 = max(scores[net]["f1"] for net in ("student", "teacher"))
        return float(f1), float(scores["trivial_f1"])


def run_training(
    out: Path,
    data: str,
    seed: int,
    *settings: Nested,
    fault: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Run:
    """Train ``BASE`` with further settings into a new folder ``out``, while a fault holds.

    Args:
        out: removed first, if it is there.
        data: folder or name of the data.
        seed: seed of the split, the start and all draws.
        settings: in increasing order of precedence.
        fault: makes the context in which the public ``train`` is called.
    """
    seen: list[Evidence] = []

    def judge_and_keep(evidence: Evidence, used: str | None = None) -> Verdict:
        if not evidence.is_final:  # the last look, judged once more as its networks are used
            seen.append(evidence)
        return judge(evidence, used)

    own: Nested = {"data": {"root": data}, "seed": seed, "split": {"seed": seed}}
    layers = tuple(Layer("lab", dict(values)) for values in (BASE, own, *settings))
    shutil.rmtree(out, ignore_errors=True)
    with mock.patch.object(monitor, "judge", judge_and_keep), fault():
        train(TrainRequest(layers, out))
    (out / EVIDENCE).write_bytes(pickle.dumps(seen))
    return read_run(out)


def read_run(path: Path) -> Run:
    """Return a finished training, its looks judged by the rules of now."""
    run = RunDir(path)
    records, events = run.read_metrics(), run.read_events()
    seen = pickle.loads((path / EVIDENCE).read_bytes())[-len(records) :]  # one before may have measured its time
    looks, trend = list[Look](), tuple[Figures, ...]()
    for record, evidence in zip(records, seen, strict=True):
        step = record["step"]
        if evidence.trend and evidence.trend[-1]["step"] == step:  # a planned look; what its row holds may have changed
            trend = (*trend, summarize(evidence, step, ends_epoch=bool(evidence.trend[-1]["ends_epoch"])))
        looks.append(Look(step, judge(replace(evidence, trend=trend)).findings, record))
    return Run(tuple(looks), tuple(events), events[-1]["event"], path)


def write_sheets(folder: Path, count: int = 16) -> str:
    """Write the synthetic sheets, unless the folder is there already, and return its name."""
    return _write_once(folder, lambda temporary: synthetic.write_dataset(temporary, "sheets", count))


def write_particles(folder: Path, count: int = IMAGES, *, empty: float = 0.0, seed: int = 0) -> str:
    """Write the synthetic particles, a share of the images without any, and return the folder's name.

    An image without particles has everything else: light, clouds, rings, scratches and noise; so its empty mask is
    right. A folder that is there already is left as it is.
    """
    blob = synthetic._blob

    def no_blob(*args: Any) -> Any:
        inside, window = blob(*args)
        return inside & False, window

    def write(temporary: Path) -> None:
        synthetic.write_dataset(temporary, "particles", count, seed=seed)
        with mock.patch.object(synthetic, "_blob", no_blob):
            for index in np.random.default_rng(seed).permutation(count)[: round(empty * count)]:
                pair = synthetic.generate("particles", int(index), seed)
                for name, array in zip(("images", "masks"), pair, strict=True):
                    cv2.imwrite(str(temporary / name / f"{index:04d}.png"), array)

    return _write_once(folder, write)


def _write_once(folder: Path, write: Callable[[Path], None]) -> str:
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.part{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        write(temporary)
        temporary.rename(folder)
    return str(folder)
