"""Statistics of a network's output on a fixed probe set, collected on the device between training steps.

Everything is about foreground against background: the score of a voxel is the log-odds of "any foreground class".
Threshold-free figures come from two histograms of that score, with bins of 1/64 between -16 and 16.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.data.loader import Probe
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import compute_foreground_logit, first_head
from ssl_seg.metrics import (
    Overlap,
    compute_auroc,
    compute_average_precision,
    compute_best_f1,
    compute_trivial_f1,
)
from ssl_seg.precision import Autocast

LOGIT_LIMIT, BINS_PER_LOGIT = 16, 64
NUM_BINS = 2 * LOGIT_LIMIT * BINS_PER_LOGIT
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
PROB_BINS = 20


@dataclass(frozen=True)
class Signals:
    """One network on one probe set. Figures that need both classes are None when the target has only one."""

    voxels: int
    nonfinite: int
    logit_mean: float
    logit_std: float
    logit_quantiles: tuple[float, ...]
    """Log-odds at QUANTILES, to 1/64."""
    prob_mean: float
    prob_std: float
    prob_max: float
    """Largest foreground probability, to 1/64 in log-odds."""
    prob_histogram: tuple[float, ...]
    """Share of voxels in PROB_BINS equal bins of the foreground probability; edges to 1/64 in log-odds."""
    share_below_01: float
    """Share of voxels with a foreground probability below 0.1."""
    prevalence_pred: float
    """Share of voxels predicted foreground (probability above 0.5)."""
    prevalence_true: float
    ratio_std: float
    """Spread of the predicted foreground share between patches."""
    ratio_std_true: float
    """Spread of the true foreground share between patches."""
    f1: float
    f1_macro: float
    """Mean F1 over the foreground classes by the largest logit; equal to ``f1`` for two classes."""
    f1_best: float | None
    """F1 at the best threshold of this set: what moving the threshold could gain."""
    threshold_best: float | None
    """Probability of that threshold."""
    auroc: float | None
    average_precision: float | None
    trivial_f1: float
    """F1 of predicting foreground everywhere."""
    dice: float
    """Mean over the patches of their Dice, by the largest logit: the mean over the classes that are in the target or in
    the prediction, and 1 for a patch without any. None of a patch counts whose voxels are all ignored."""
    foreground_distance: float
    """Wasserstein-1 distance between the foreground shares of the patches, predicted and true; in [0, 1]."""

    def to_record(self, prefix: str) -> dict[str, Any]:
        """Return ``{prefix + name: value}`` for metrics.jsonl."""
        values = asdict(self)
        for shared in ("prevalence_true", "ratio_std_true", "trivial_f1", "voxels"):
            values.pop(shared)
        quantiles = values.pop("logit_quantiles")
        values["prob_histogram"] = list(self.prob_histogram)
        named = {f"logit_q{round(100 * q):02d}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
        return {prefix + name: value for name, value in {**values, **named}.items()}


class SignalCollector:
    """Adds up the outputs of a network batch by batch, on their device.

    Args:
        num_classes: K.
        device: where the outputs are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.num_classes = num_classes
        self.histograms = torch.zeros(2, NUM_BINS, dtype=torch.int64, device=device)
        self.sums = torch.zeros(4, dtype=wide, device=device)  # logit, logit^2, prob, prob^2
        self.counts = torch.zeros(3, dtype=torch.int64, device=device)  # predicted fg, prob below 0.1, non-finite
        self.hits = torch.zeros(1, dtype=torch.int64, device=device)
        self.ratios: list[Tensor] = []  # of each batch: predicted and true foreground share of its patches
        self.patch_overlaps: list[Tensor] = []  # of each batch: (K - 1, N, 3) predicted, true, both
        self.has_voxels: list[Tensor] = []

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor) -> None:
        """Add one batch: logits (N,K,*S), target (N,*S) with IGNORE_INDEX allowed."""
        score = compute_foreground_logit(logits)
        valid = target != IGNORE_INDEX
        finite = torch.isfinite(score)
        truth = (target > 0) & valid
        pred = (score > 0) & valid
        voxels = valid.flatten(1).sum(1)
        self.ratios.append(torch.stack([_count(pred), _count(truth)]) / voxels.clamp(min=1))
        self.has_voxels.append(voxels > 0)

        self.counts[2] += (valid & ~finite).sum()
        score, truth, pred = score[valid & finite], truth[valid & finite], pred[valid & finite]
        prob = torch.sigmoid(score)
        wide = [v.to(self.sums.dtype) for v in (score, prob)]
        self.sums += torch.stack([wide[0].sum(), wide[0].square().sum(), wide[1].sum(), wide[1].square().sum()])
        self.counts[:2] += torch.stack([pred.sum(), (prob < 0.1).sum()])
        self.hits += (pred & truth).sum()
        bins = ((score + LOGIT_LIMIT) * BINS_PER_LOGIT).floor().clamp(0, NUM_BINS - 1).long()
        flat = bins + NUM_BINS * truth
        self.histograms += torch.bincount(flat, minlength=2 * NUM_BINS).view(2, NUM_BINS)

        # On a CPU argmax takes longer than all the rest of this method.
        classes = logits.argmax(dim=1) if self.num_classes > 2 else (logits[:, 1] > logits[:, 0]).long()
        overlaps = []
        for label in range(1, self.num_classes):
            chosen, wanted = (classes == label) & valid, (target == label) & valid
            overlaps.append(torch.stack([_count(chosen), _count(wanted), _count(chosen & wanted)], dim=1))
        self.patch_overlaps.append(torch.stack(overlaps))

    def compute(self) -> Signals:
        """Return the statistics of everything added so far."""
        negative, positive = self.histograms.cpu().numpy()
        predicted, low, nonfinite = (int(v) for v in self.counts.tolist())
        finite = int(negative.sum() + positive.sum())
        count = max(finite, 1)
        logit_sum, logit_square, prob_sum, prob_square = self.sums.tolist()
        true, hits = int(positive.sum()), int(self.hits.item())
        best = compute_best_f1(positive, negative)
        ratios = torch.cat(self.ratios, dim=1).float().cpu() if self.ratios else torch.zeros(2, 0)
        seen = torch.cat(self.has_voxels).cpu() if self.has_voxels else torch.zeros(0, dtype=torch.bool)
        predicted_share, true_share = ratios[:, seen]
        prevalence = true / count
        return Signals(
            voxels=finite + nonfinite,
            nonfinite=nonfinite,
            logit_mean=logit_sum / count if finite else math.nan,
            logit_std=_std(logit_sum, logit_square, count) if finite else math.nan,
            logit_quantiles=_quantiles(negative + positive),
            prob_mean=prob_sum / count if finite else math.nan,
            prob_std=_std(prob_sum, prob_square, count) if finite else math.nan,
            prob_max=_max_prob(negative + positive),
            prob_histogram=_prob_histogram(negative + positive),
            share_below_01=low / count,
            prevalence_pred=predicted / count,
            prevalence_true=prevalence,
            ratio_std=_spread(predicted_share),
            ratio_std_true=_spread(true_share),
            f1=_f1(predicted, true, hits),
            f1_macro=self._macro_f1(),
            f1_best=None if best is None else best[0],
            threshold_best=None if best is None else _sigmoid(best[1] / BINS_PER_LOGIT - LOGIT_LIMIT),
            auroc=compute_auroc(positive, negative),
            average_precision=compute_average_precision(positive, negative),
            trivial_f1=compute_trivial_f1(prevalence),
            dice=self._patch_dice(seen),
            foreground_distance=_distance(predicted_share, true_share),
        )

    def _macro_f1(self) -> float:
        classes = self._overlaps().sum(1).tolist()
        scores = [_f1(*counts) for counts in classes if counts[1] > 0] or [_f1(*counts) for counts in classes]
        return sum(scores) / len(scores)

    def _patch_dice(self, seen: Tensor) -> float:
        predicted, true, both = self._overlaps()[:, seen].double().unbind(2)
        present = predicted + true > 0
        dice = torch.where(present, 2 * both / (predicted + true).clamp(min=1), 0.0).sum(0)
        classes = present.sum(0)
        means = torch.where(classes > 0, dice / classes.clamp(min=1), 1.0)
        return float(means.mean()) if means.numel() else 1.0

    def _overlaps(self) -> Tensor:
        """Return the counts (K - 1, patches, 3) on the CPU: predicted, true, both."""
        nothing = torch.zeros(self.num_classes - 1, 0, 3, dtype=torch.int64)
        return torch.cat([nothing, *(counts.cpu() for counts in self.patch_overlaps)], dim=1)


@torch.no_grad()
def collect_signals(
    net: nn.Module,
    probe: Probe,
    num_classes: int,
    device: torch.device,
    batch_size: int,
    autocast: Autocast,
    *,
    train_mode: bool = False,
) -> Signals:
    """Return the signals of ``net`` on a probe; its train/eval mode is restored.

    Args:
        net: maps (N,C,*P) to (N,K,*P) logits, on ``device``.
        probe: fixed patches, on the CPU.
        num_classes: K.
        device: where ``net`` is.
        batch_size: patches in one forward pass.
        autocast: function that returns the autocast context of the run.
        train_mode: look at a copy in train mode (batch statistics, dropout) in place of eval mode. A copy, since the
            running statistics would move.
    """
    collector = SignalCollector(num_classes, device)
    if train_mode:
        net = copy.deepcopy(net)
    was_training = net.training
    net.train(train_mode)
    for first in range(0, len(probe.image), batch_size):
        chosen = slice(first, first + batch_size)
        with autocast():
            logits = net(probe.image[chosen].to(device))
        target = probe.target[chosen].to(device)
        collector.update(first_head(logits, target.ndim).float(), target)
    net.train(was_training)
    return collector.compute()


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(1)


def _spread(shares: Tensor) -> float:
    """Return the standard deviation over patches; 0 without any."""
    return float(shares.std(unbiased=False)) if shares.numel() else 0.0


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein-1 distance of two samples of one size: the mean distance of the sorted values."""
    return float((a.sort().values - b.sort().values).abs().mean()) if a.numel() else 0.0


def _f1(predicted: int, true: int, both: int) -> float:
    return Overlap(tp=both, fp=predicted - both, fn=true - both, tn=0).dice


def _std(total: float, squares: float, count: int) -> float:
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def _max_prob(histogram: NDArray[np.integer]) -> float:
    """Return the probability at the middle of the highest bin in use; NaN where none is."""
    used = np.flatnonzero(histogram)
    return _sigmoid((int(used[-1]) + 0.5) / BINS_PER_LOGIT - LOGIT_LIMIT) if len(used) else math.nan


def _prob_histogram(histogram: NDArray[np.integer]) -> tuple[float, ...]:
    probs = 1 / (1 + np.exp(LOGIT_LIMIT - (np.arange(NUM_BINS) + 0.5) / BINS_PER_LOGIT))
    counts = np.bincount((probs * PROB_BINS).astype(np.int64), weights=histogram, minlength=PROB_BINS)
    return tuple((counts / max(int(histogram.sum()), 1)).tolist())


def _quantiles(histogram: NDArray[np.integer]) -> tuple[float, ...]:
    """Return the left edges of the bins in which the quantiles lie."""
    cumulative = np.cumsum(histogram)
    if cumulative[-1] == 0:
        return (math.nan,) * len(QUANTILES)
    bins = [int(np.searchsorted(cumulative, q * cumulative[-1])) for q in QUANTILES]
    return tuple(b / BINS_PER_LOGIT - LOGIT_LIMIT for b in bins)
