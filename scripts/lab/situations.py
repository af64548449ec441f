"""Situations of real users: few cases, empty masks, tiny or many classes, no learning, a mistyped rate.

What is true of the networks in the end is measured on fresh images of the same kind, which no run has seen; so a
verdict is right or wrong whatever its rules say.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage, stats
from trainings import map_runs

from lab.runs import Nested, run_training
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.inference.model import open_model

SEEDS = tuple(range(20))
SIDE = 64
FRESH = 16
"""Images on which the networks of the end are looked at."""
GOOD_AUROC, BLIND_AUROC = 0.75, 0.60
GROSS = 3.0
"""Factor between predicted and true foreground from which a network must not be called ok."""

TINY: Nested = {
    "data": {"patch_size": [32, 32]},
    "split": {"labels": 1.0, "val_fraction": 0.2, "test_fraction": 0.1},
    "network": {"features": 4},
    "batch": {"labeled": 4, "unlabeled": 0},
    "optim": {"lr": 3e-3, "warmup_steps": 10},
    "length": {"steps": 80, "steps_per_epoch": 20},
    "monitor": {"probe_patches": 32, "train_probe_patches": 8, "first_epoch_probes": [0]},
}


@dataclass(frozen=True)
class Situation:
    """Images, and the settings of their training."""

    name: str
    images: int = 24
    discs: tuple[int, int] = (1, 3)
    """Fewest and most in an image that is not empty."""
    radius: tuple[float, float] = (3.0, 7.0)
    contrast: tuple[float, float] = (45.0, 75.0)
    empty: float = 0.0
    """Share of the images without any disc."""
    second: int = 0
    """Images in which one disc is of a second class; the planned classes are three then."""
    second_look: tuple[float, float] | None = None
    """Radius and contrast of that disc; None where it looks like the others."""
    blur: float = 0.0
    """Sigma with which a mask of 0 and 255 is smoothed before it is saved as it is."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    can_collapse: bool = True
    """Whether the networks can become worse than they started."""


SITUATIONS: tuple[Situation, ...] = (
    Situation("nothing unusual", images=40),
    Situation(
        "4 validation cases", images=28, discs=(1, 2), radius=(3.0, 6.0), contrast=(18.0, 40.0),
        settings={"split": {"val_fraction": 0.143, "test_fraction": 0.143}, "network": {"features": 8}},
    ),
    Situation("75 % empty masks", images=60, empty=0.75),
    Situation("foreground of 0.5 %", images=40, discs=(1, 1), radius=(2.0, 3.0)),
    Situation("three classes, one in 2 images", second=2, settings={"data": {"label_values": [0, 1, 2]}}),
    Situation(
        "three classes, one small and in 5 images", images=40, second=5, second_look=(2.0, -40.0),
        settings={
            "data": {"label_values": [0, 1, 2]}, "network": {"features": 8}, "optim": {"lr": 1e-2},
            "length": {"steps": 160},
        },
    ),
    Situation("mask with gray borders: 256 classes", blur=2.0),
    Situation("very slow learning", settings={"optim": {"lr": 1e-5}}, can_collapse=False),
    Situation("learning rate 1e30", settings={"optim": {"lr": 1e30}}),
)  # fmt: skip


def draw_image(situation: Situation, index: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image and mask (SIDE, SIDE): bright discs and as bright rings on noise."""
    rng = np.random.default_rng([seed, index])
    rows, columns = np.indices((SIDE, SIDE))
    mask, light = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE))
    order = np.random.default_rng(seed).permutation(situation.images)
    place = int(np.flatnonzero(order == index % situation.images)[0])
    is_empty = place >= round((1 - situation.empty) * situation.images)
    for number in range(0 if is_empty else int(rng.integers(situation.discs[0], situation.discs[1] + 1))):
        y, x, radius = *rng.uniform(6, SIDE - 6, 2), rng.uniform(*situation.radius)
        contrast, label = rng.uniform(*situation.contrast), 2 if number == 0 and place < situation.second else 1
        if label == 2 and situation.second_look is not None:
            radius, contrast = situation.second_look
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        mask[inside], light[inside] = label, contrast
    for _ in range(int(rng.integers(1, 4))):
        y, x, radius = *rng.uniform(0, SIDE, 2), rng.uniform(3, 7)
        distance = np.hypot(rows - y, columns - x)
        light = np.where((abs(distance - radius) < 1.0) & (mask == 0), np.maximum(light, rng.uniform(45, 75)), light)
    image = ndimage.gaussian_filter(90 + light, 0.7) + rng.normal(0, 12, (SIDE, SIDE))
    if situation.blur:
        mask = np.round(ndimage.gaussian_filter(255.0 * (mask > 0), situation.blur)).astype(np.uint8)
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask


def write_images(folder: Path, situation: Situation, seed: int) -> str:
    """Write the images and masks of a situation, unless the folder is there, and return its name."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(situation.images):
        for name, array in zip(("images", "masks"), draw_image(situation, index, seed), strict=True):
            cv2.imwrite(str(folder / name / f"{index:03d}.png"), array)
    return str(folder)


@dataclass(frozen=True)
class NetworkTruth:
    """What a network does on fresh images: any foreground but for F1, by the class that is written."""

    f1: float
    """Mean over the foreground classes that are there."""
    trivial_f1: float
    """The same of foreground everywhere, each class by itself."""
    auroc: float
    ratio: float
    """Predicted over true foreground."""
    finite: bool

    @property
    def is_good(self) -> bool:
        """Whether its ranking of voxels is worth something, so that it has not collapsed."""
        return self.finite and self.auroc >= GOOD_AUROC

    @property
    def is_bad(self) -> bool:
        """Whether nobody should use it as it is."""
        return not self.finite or self.auroc < BLIND_AUROC or not 1 / GROSS < self.ratio < GROSS


@dataclass(frozen=True)
class SituationResult:
    """The truth of one run, and what was said of it at its end."""

    situation: str
    seed: int
    truth: tuple[NetworkTruth, NetworkTruth]
    """Truth about student and teacher."""
    level: str
    codes: tuple[str, ...]
    """Codes of the last verdict, the leading one first."""
    diagnosed: tuple[str, str]
    """Level and code of ``ssl-seg diagnose`` on last.pt."""
    can_collapse: bool
    has_alarmed: bool
    """Whether any look claimed a collapse."""

    @property
    def is_early_alarm(self) -> bool:
        """Whether a collapse was claimed at any look of a run that ended well, or never left its start."""
        return self.has_alarmed and (not self.can_collapse or all(net.is_good for net in self.truth))

    @property
    def is_false_alarm(self) -> bool:
        """Whether a collapse was claimed where both networks are worth something, or never left their start."""
        return self.level == "collapsed" and (not self.can_collapse or all(net.is_good for net in self.truth))

    @property
    def is_miss(self) -> bool:
        """Whether nothing at all was said of a network that is bad."""
        return self.level == "ok" and any(net.is_bad for net in self.truth)

    @property
    def disagrees(self) -> bool:
        """Whether run and diagnosis differ in level or in the code that leads."""
        return self.diagnosed != (self.level, self.codes[0] if self.codes else "healthy")


def run_situation(out: Path, task: tuple[int, int]) -> SituationResult:
    """Train in a situation, given by its place in ``SITUATIONS``, and a seed."""
    number, seed = task
    situation = SITUATIONS[number]
    path = out / f"situation{number}_seed{seed}"
    data = write_images(out / "data" / f"situation{number}_seed{seed}", situation, seed)
    torch.set_num_threads(1)
    run = run_training(path, data, seed, TINY, situation.settings)
    end, last = run.events[-1], path / "checkpoints" / "last.pt"
    try:
        verdict = diagnose_checkpoint(CheckpointRequest(last, seconds=1e6)).verdict
        diagnosed = (verdict.level, verdict.code)
    except Exception as error:  # noqa: BLE001 (a fault of its own, that the table shows)
        diagnosed = ("error", type(error).__name__)
    return SituationResult(
        situation.name,
        seed,
        measure_truth(last, situation, seed),
        end["verdict"],
        tuple(end["codes"]),
        diagnosed,
        situation.can_collapse,
        any(look.level == "collapsed" for look in run.looks),
    )


@torch.no_grad()
def measure_truth(checkpoint: Path, situation: Situation, seed: int) -> tuple[NetworkTruth, NetworkTruth]:
    """Return what student and teacher do on fresh images."""
    model = open_model(checkpoint, torch.device("cpu"))
    pairs = [draw_image(situation, situation.images * (n + 1) + n, seed) for n in range(FRESH)]
    truth = np.stack([mask for _, mask in pairs]).ravel()
    return measure_network(model, "student", pairs, truth), measure_network(model, "teacher", pairs, truth)


def measure_network(
    model: Any, net: str, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: NDArray[np.uint8]
) -> NetworkTruth:
    """Return what one network does."""
    predictor = model.predictor(net, 0.25)
    outputs = [predictor.with_logits(image[None], None) for image, _ in pairs]
    written = np.concatenate([probs.argmax(0).ravel() for probs, _ in outputs])
    pred, truth = written > 0, classes > 0
    score = np.concatenate([logit.ravel() for _, logit in outputs])
    finite = bool(np.isfinite(score).all())
    auroc = math.nan
    if finite:
        ranks = stats.rankdata(score)
        positives = int(truth.sum())
        auroc = (ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * (len(truth) - positives))
    share = truth.mean()
    own = [(written == label, classes == label) for label in range(1, int(classes.max()) + 1)]
    f1 = np.mean([2 * (p & t).sum() / (p.sum() + t.sum()) for p, t in own if t.any()])
    trivial = np.mean([2 * t.mean() / (1 + t.mean()) for _, t in own if t.any()])
    return NetworkTruth(float(f1), float(trivial), float(auroc), float(pred.mean() / share), finite)


def run_situations(
    out: Path, seeds: tuple[int, ...] = SEEDS, names: tuple[str, ...] = (), workers: int = 1
) -> list[SituationResult]:
    """Train in each situation whose name contains one of ``names`` (all, if there are none), with each seed."""
    chosen = [i for i, s in enumerate(SITUATIONS) if not names or any(name in s.name for name in names)]
    tasks = [(number, seed) for number in chosen for seed in seeds]
    return list(map_runs(partial(run_situation, out), tasks, workers))
