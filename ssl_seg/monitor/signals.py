"""Statistics of a network's output on a fixed probe set: sums and order on the device, read once a look.

Everything is about foreground against background. What is predicted is the class of the largest output, which
`ssl-seg predict` writes. Threshold-free figures rank voxels by the log-odds of "any foreground class", in bins whose
edges are quantiles of both classes: no ranking is lost, however far on one side or however narrow it is.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor, nn

from ssl_seg.data.instances import find_instances
from ssl_seg.data.loader import Probe
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import compute_foreground_logit, first_head
from ssl_seg.networks.precision import Autocast
from ssl_seg.scores.calibration import to_log_odds
from ssl_seg.scores.metrics import (
    ConfusionCounts,
    compute_auroc,
    compute_average_precision,
    compute_case_dice,
    compute_dice,
    compute_macro_f1,
    compute_trivial_f1,
)
from ssl_seg.scores.objects import compute_pq, match_objects

EDGES = 2048
"""Most bins of each class for AUROC and average precision: right to about 1/2048."""
RANKED = 2**24
"""Most voxels of a probe, or of a folder of predictions, whose ranks are compared; of more, an evenly spread sample."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
PROB_BINS = 20
CONFIDENCE = 0.95
"""Level of the interval of the AUROC over cases."""

Scores = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Logits and target of a batch -> the weighted sum of the components, and each by itself."""


@dataclass(frozen=True)
class ClassSignals:
    """One foreground class on one probe set, by the class that is predicted.

    A voxel without a finite output counts as predicted as every class that it is not.
    """

    value: int
    """Mask value of the class."""
    prevalence_pred: float
    """Share of voxels predicted as this class."""
    prevalence_true: float
    f1: float


@dataclass(frozen=True)
class Signals:
    """One network on one probe set. Figures that need both classes are None when the target has only one."""

    voxels: int
    patches: int
    """Patches with a voxel that is not ignored."""
    nonfinite: int
    logit_mean: float
    logit_std: float
    logit_quantiles: tuple[float, ...]
    """Log-odds at QUANTILES."""
    prob_mean: float
    prob_std: float
    prob_max: float
    """Largest foreground probability."""
    prob_histogram: tuple[float, ...]
    """Share of voxels in PROB_BINS equal bins of the foreground probability."""
    share_below_01: float
    """Share of voxels with a foreground probability below 0.1."""
    prevalence_pred: float
    """Share of voxels predicted foreground (background has not the largest output, or, with a threshold, foreground has
    a probability above it)."""
    prevalence_true: float
    ratio_std: float
    """Spread of the predicted foreground share between patches."""
    ratio_std_true: float
    """Spread of the true foreground share between patches."""
    f1: float
    """F1 of the prediction with all foreground classes as one; a voxel without a finite output counts as wrong."""
    precision: float
    """Share of the predicted foreground that is right."""
    recall: float
    """Share of the true foreground that is found."""
    f1_macro: float
    """Mean F1 over the foreground classes that are there, by the largest logit; equal to ``f1`` for two classes."""
    f1_best: float | None
    """F1 at the best threshold of the log-odds of any foreground on this set: what moving it could gain."""
    threshold_best: float | None
    """Probability of that threshold."""
    logit_best: float | None
    """Log-odds of that threshold: a probability next to 1 cannot tell thresholds apart."""
    auroc: float | None
    auroc_low: float
    auroc_high: float
    """Ends of the 95 % interval of the AUROC over cases (jackknife, Student's t); 0 and 1 where there are too few."""
    average_precision: float | None
    trivial_f1: float
    """F1 of predicting foreground everywhere."""
    trivial_f1_macro: float
    """Mean F1 of predicting each foreground class that is there everywhere, to compare ``f1_macro`` with."""
    dice: float
    """Mean over the patches of their Dice, by the largest logit: the mean over the classes that are in the target or in
    the prediction, and 1 for a patch without any. None of a patch counts whose voxels are all ignored."""
    foreground_distance: float
    """Wasserstein-1 distance between the foreground shares of the patches, predicted and true; in [0, 1]."""

    classes: tuple[ClassSignals, ...] = ()
    """Signals of each foreground class."""
    threshold: float = 0.5
    """Probability above which foreground is predicted, of two classes."""
    pq: float | None = None
    """Panoptic quality of the objects in the patches (see ``find_instances``), pooled; None where there are none or it
    was not asked for."""
    losses: tuple[tuple[str, float], ...] = ()
    """``loss``, the supervised loss as weighted now, and each of its components; means over the batches of the look.
    Empty where it was not asked for."""

    @property
    def loss(self) -> float:
        """The supervised loss; NaN where it was not asked for."""
        return dict(self.losses).get("loss", math.nan)

    @property
    def f1_name(self) -> str:
        """What messages call ``f1``: of several classes it is not the F1 that runs are compared by."""
        return "F1 of any foreground" if len(self.classes) > 1 else "F1"

    def to_record(self, prefix: str) -> dict[str, Any]:
        """Return ``{prefix + name: value}`` for metrics.jsonl."""
        values = asdict(self)
        shared = (
            "prevalence_true",
            "ratio_std_true",
            "trivial_f1",
            "trivial_f1_macro",
            "voxels",
            "patches",
            "threshold",
        )
        for name in shared:
            values.pop(name)
        if self.pq is None:
            values.pop("pq")
        quantiles = values.pop("logit_quantiles")
        losses = {name if name == "loss" else f"loss/{name}": value for name, value in values.pop("losses")}
        values["prob_histogram"] = list(self.prob_histogram)
        values.pop("classes")
        if len(self.classes) > 1:
            values |= {f"f1/{own.value}": own.f1 for own in self.classes if own.prevalence_true > 0}
        named = {f"logit_q{round(100 * q):02d}": v for q, v in zip(QUANTILES, quantiles, strict=True)}
        return {prefix + name: value for name, value in {**values, **losses, **named}.items()}


class SignalCollector:
    """Adds up the outputs of a network batch by batch, on their device.

    Args:
        label_values: label values of the K classes in the masks, background first.
        device: where the outputs are.
        ranked: voxels of a patch at the most that are ranked, drawn evenly; None for all. Other figures are of all.
        threshold: probability above which foreground is predicted, of two classes; None takes the largest logit.
        objects: whether the classes are those of ``make_target`` and the objects in each patch are compared too.
    """

    def __init__(
        self,
        label_values: Sequence[int],
        device: torch.device,
        ranked: int | None = None,
        threshold: float | None = None,
        *,
        objects: bool = False,
    ) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.label_values, self.num_classes = tuple(label_values), len(label_values)
        self.ranked, self.threshold, self.objects = ranked, threshold, objects
        self.sums = torch.zeros(4, dtype=wide, device=device)  # logit, logit^2, prob, prob^2
        # Of the finite voxels: all, predicted, with a probability below 0.1. Of all: broken, true, predicted, both.
        self.counts = torch.zeros(7, dtype=torch.int64, device=device)
        self.scores: list[Tensor] = []  # of each batch: (N,V) log-odds, NaN where they do not count
        self.truths: list[Tensor] = []  # of each batch: (N,V) bool
        self.case_ids: list[str] = []  # of each patch
        self.ratios: list[Tensor] = []  # of each batch: predicted and true foreground share of its patches
        self.patch_overlaps: list[Tensor] = []  # of each batch: (K - 1, N, 3) predicted, true, both
        self.has_voxels: list[Tensor] = []
        self.pairs: list[Tensor] = []  # of each batch: (2,N,*S) predicted and true classes, where objects are compared

    @torch.no_grad()
    def update(self, logits: Tensor, target: Tensor, case_ids: Sequence[str] = ()) -> None:
        """Add one batch: logits (N,K,*S), target (N,*S) with IGNORE_INDEX allowed.

        ``case_ids`` (N) says which case each patch is of; without it each patch counts as a case of its own.
        """
        score = compute_foreground_logit(logits)
        valid = target != IGNORE_INDEX
        known = valid & torch.isfinite(score)
        truth = (target > 0) & valid
        # On a CPU argmax takes longer than all the rest of this method.
        if self.threshold is not None:
            classes = (score > to_log_odds(self.threshold)).long()
        else:
            classes = logits.argmax(dim=1) if self.num_classes > 2 else (logits[:, 1] > logits[:, 0]).long()
        pred = (classes > 0) & valid
        voxels = valid.flatten(1).sum(1)
        self.ratios.append(torch.stack([_count(pred), _count(truth)]) / voxels.clamp(min=1))
        self.has_voxels.append(voxels > 0)
        self.case_ids += case_ids or [f"patch {len(self.case_ids) + i}" for i in range(len(target))]
        chosen = self._choose(target[0].numel(), target.device)
        self.scores.append(torch.where(known, score, torch.nan).float().flatten(1)[:, chosen])
        self.truths.append(truth.flatten(1)[:, chosen])

        kept, prob = (torch.where(known, v, 0).to(self.sums.dtype) for v in (score, torch.sigmoid(score)))
        self.sums += torch.stack([kept.sum(), kept.square().sum(), prob.sum(), prob.square().sum()])
        broken = valid & ~known
        found = torch.where(broken, ~truth, pred)  # without a finite output a voxel counts as wrong
        counted = (known, pred & known, known & (prob < 0.1), broken, truth, found, truth & found)
        self.counts += torch.stack([mask.sum() for mask in counted])
        overlaps = []
        for label in range(1, self.num_classes):
            wanted = (target == label) & valid
            found = torch.where(broken, ~wanted, (classes == label) & valid)
            overlaps.append(torch.stack([_count(found), _count(wanted), _count(found & wanted)], dim=1))
        self.patch_overlaps.append(torch.stack(overlaps))
        if self.objects:
            self.pairs.append((torch.stack([torch.where(broken, 0, classes), target]) * valid).to(torch.int8))

    def compute(self) -> Signals:
        """Return the statistics of everything added so far."""
        cases = self._split_cases()
        nothing = torch.zeros(0, device=self.sums.device)
        parts = ([nothing, *(case[kind] for case in cases)] for kind in (0, 1))
        positive, negative = (_to_host(_sort(each, "stable")) for each in parts)
        *quantiles, highest = _find_quantiles(positive, negative, (*QUANTILES, 1))
        finite, predicted, low, nonfinite, true, found, hits = (int(v) for v in self.counts.tolist())
        count = max(finite, 1)
        logit_sum, logit_square, prob_sum, prob_square = self.sums.tolist()
        edges = _find_edges(positive, negative)
        counted = [tuple(_bin(_to_host(values), edges) for values in case) for case in cases]
        pos_hist, neg_hist = _bin(positive, edges), _bin(negative, edges)
        best = _find_best_f1(positive, negative)
        low_auroc, high_auroc = _bound_auroc(counted)
        ratios = torch.cat(self.ratios, dim=1).float().cpu() if self.ratios else torch.zeros(2, 0)
        seen = torch.cat(self.has_voxels).cpu() if self.has_voxels else torch.zeros(0, dtype=torch.bool)
        predicted_share, true_share = ratios[:, seen]
        prevalence = true / max(finite + nonfinite, 1)
        whole = ConfusionCounts(tp=hits, fp=found - hits, fn=true - hits, tn=0)
        overlaps = self._overlaps()
        classes = _describe_classes(overlaps, self.label_values[1:], finite + nonfinite)
        return Signals(
            voxels=finite + nonfinite,
            patches=int(seen.sum()),
            nonfinite=nonfinite,
            logit_mean=logit_sum / count if finite else math.nan,
            logit_std=_std(logit_sum, logit_square, count) if finite else math.nan,
            logit_quantiles=tuple(quantiles),
            prob_mean=prob_sum / count if finite else math.nan,
            prob_std=_std(prob_sum, prob_square, count) if finite else math.nan,
            prob_max=float(special.expit(highest)),
            prob_histogram=_prob_histogram(positive, negative),
            share_below_01=low / count,
            prevalence_pred=predicted / count,
            prevalence_true=prevalence,
            ratio_std=_spread(predicted_share),
            ratio_std_true=_spread(true_share),
            f1=whole.dice,
            precision=whole.precision,
            recall=whole.recall,
            f1_macro=float(compute_macro_f1(_count_classes(overlaps))),
            f1_best=None if best is None else best[0],
            threshold_best=None if best is None else float(special.expit(best[1])),
            logit_best=None if best is None else best[1],
            auroc=compute_auroc(pos_hist, neg_hist),
            auroc_low=low_auroc,
            auroc_high=high_auroc,
            average_precision=compute_average_precision(pos_hist, neg_hist),
            trivial_f1=compute_trivial_f1(prevalence),
            trivial_f1_macro=_macro_trivial_f1([own.prevalence_true for own in classes]),
            dice=_patch_dice(overlaps[:, seen]),
            foreground_distance=_distance(predicted_share, true_share),
            classes=classes,
            threshold=0.5 if self.threshold is None else self.threshold,
            pq=self._panoptic_quality(),
        )

    def _choose(self, voxels: int, device: torch.device) -> Tensor | slice:
        """Return which voxels of a patch are ranked: the same for every patch of one size."""
        if self.ranked is None or voxels <= self.ranked:
            return slice(None)
        return torch.randperm(voxels, generator=torch.Generator().manual_seed(0))[: self.ranked].to(device)

    def _split_cases(self) -> list[tuple[Tensor, Tensor]]:
        """Return the sorted scores of the foreground and of the background voxels of each case, on their device."""
        patches: dict[str, list[tuple[Tensor, Tensor]]] = {}
        pairs = (pair for batch in zip(self.scores, self.truths, strict=True) for pair in zip(*batch, strict=True))
        for case_id, (score, truth) in zip(self.case_ids, pairs, strict=True):
            known = ~torch.isnan(score)
            patches.setdefault(case_id, []).append((score[known & truth], score[known & ~truth]))
        return [
            (_sort(positive), _sort(negative))
            for positive, negative in (zip(*own, strict=True) for own in patches.values())
        ]

    def _panoptic_quality(self) -> float | None:
        patches = [patch for batch in self.pairs for patch in batch.cpu().numpy().swapaxes(0, 1)]
        found = [match_objects(find_instances(pred), find_instances(true)) for pred, true in patches]
        return compute_pq(found)

    def _overlaps(self) -> Tensor:
        """Return the counts (K - 1, patches, 3) on the CPU: predicted, true, both."""
        nothing = torch.zeros(self.num_classes - 1, 0, 3, dtype=torch.int64)
        return torch.cat([nothing, *(counts.cpu() for counts in self.patch_overlaps)], dim=1)


@torch.no_grad()
def collect_signals(
    net: nn.Module,
    probe: Probe,
    label_values: Sequence[int],
    device: torch.device,
    batch_size: int,
    autocast: Autocast,
    *,
    train_mode: bool = False,
    loss: Loss | None = None,
    threshold: float | None = None,
    objects: bool = False,
) -> Signals:
    """Return the signals of ``net`` on a probe; its train/eval mode is restored.

    Args:
        net: maps (N,C,*P) to (N,K,*P) logits, on ``device``.
        probe: fixed patches, on the CPU.
        label_values: label values of the K classes in the masks, background first.
        device: where ``net`` is.
        batch_size: patches in one forward pass.
        autocast: function that returns the autocast context of the run.
        train_mode: look at a copy in train mode (batch statistics, dropout) in place of eval mode. A copy, since the
            running statistics would move.
        loss: what is trained with, to be measured too.
        threshold, objects: see ``SignalCollector``.
    """
    ranked = max(RANKED // max(len(probe.image), 1), 1)
    collector = SignalCollector(label_values, device, ranked, threshold, objects=objects)
    if train_mode:
        net = copy.deepcopy(net)
    was_training, losses = net.training, list[dict[str, Tensor]]()
    net.train(train_mode)
    for first in range(0, len(probe.image), batch_size):
        chosen = slice(first, first + batch_size)
        with autocast():
            logits = net(probe.image[chosen].to(device))
        target = probe.target[chosen].to(device)
        collector.update(first_head(logits, target.ndim).float(), target, probe.case_ids[chosen])
        if loss is not None and (probe.target[chosen] != IGNORE_INDEX).any():
            total, terms = loss(logits.float(), target)
            losses.append({"loss": total} | terms)
    net.train(was_training)
    return replace(collector.compute(), losses=_mean(losses))


def cut_batches(probe: Probe, batch_size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return image and target of a probe in the batches in which ``collect_signals`` looks at it."""
    parts = (slice(first, first + batch_size) for first in range(0, len(probe.image), batch_size))
    return [(probe.image[part].to(device), probe.target[part].to(device)) for part in parts]


def _mean(losses: Sequence[dict[str, Tensor]]) -> tuple[tuple[str, float], ...]:
    """Return the means over batches; one wait for the device."""
    if not losses:
        return ()
    rows = torch.stack([torch.stack([value.float() for value in row.values()]) for row in losses])
    return tuple(zip(losses[0], rows.mean(0).tolist(), strict=True))


def _count(mask: Tensor) -> Tensor:
    return mask.flatten(1).sum(1)


def _spread(shares: Tensor) -> float:
    """Return the standard deviation over patches; 0 without any."""
    return float(shares.std(unbiased=False)) if shares.numel() else 0.0


def _count_classes(overlaps: Tensor) -> NDArray[np.int64]:
    """Return the voxels (K - 1, 3) of each foreground class: tp, fp, fn."""
    predicted, true, both = overlaps.sum(1).numpy().T
    return np.stack([both, predicted - both, true - both], axis=-1)


def _describe_classes(overlaps: Tensor, values: Sequence[int], voxels: int) -> tuple[ClassSignals, ...]:
    counts = _count_classes(overlaps)
    shares = np.stack([counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]], axis=-1) / max(voxels, 1)
    figures = zip(values, shares.tolist(), compute_dice(counts).tolist(), strict=True)
    return tuple(ClassSignals(value, predicted, true, f1) for value, (predicted, true), f1 in figures)


def _macro_trivial_f1(prevalences: Sequence[float]) -> float:
    found = [compute_trivial_f1(share) for share in prevalences if share > 0]
    return sum(found) / len(found) if found else 0.0


def _patch_dice(overlaps: Tensor) -> float:
    predicted, true, both = overlaps.permute(1, 0, 2).unbind(2)
    dice = compute_case_dice(torch.stack([both, predicted - both, true - both], dim=-1).numpy())
    return float(dice.mean()) if dice.size else 1.0


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein-1 distance of two samples of one size: the mean distance of the sorted values."""
    return float((a.sort().values - b.sort().values).abs().mean()) if a.numel() else 0.0


def _std(total: float, squares: float, count: int) -> float:
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))


def _find_edges(positive: Scores, negative: Scores) -> Scores:
    """Return the lower edges of the bins, increasing: the lowest score, and quantiles of both classes."""
    chosen = [values[:: -(-len(values) // EDGES) or 1] for values in (positive, negative)]
    return np.unique(np.concatenate(chosen))


def _bin(ordered: Scores, edges: Scores) -> NDArray[np.int64]:
    """Return how many of the sorted scores lie in each bin."""
    return np.diff(np.append(np.searchsorted(ordered, edges), len(ordered)))


def _find_best_f1(positive: Scores, negative: Scores) -> tuple[float, float] | None:
    """Return the largest F1 of all cuts, and the cut: the middle of the gap below the lowest score that it takes.

    Both are sorted. Of several best cuts it is the middle one. None where one of the classes is absent.
    """
    if not len(positive) or not len(negative):
        return None
    taken, wrong = len(positive) - np.arange(len(positive)), len(negative) - np.searchsorted(negative, positive)
    f1 = 2 * taken / (taken + wrong + len(positive))
    best = np.flatnonzero(f1 == f1.max())
    place = int(best[len(best) // 2])
    lowest = positive[place]
    first, behind = np.searchsorted(positive, lowest), np.searchsorted(negative, lowest)
    below = [values[end - 1] for values, end in ((positive, first), (negative, behind)) if end > 0]
    return float(f1[place]), (float(lowest) + float(max(below, default=lowest))) / 2


def _bound_auroc(cases: Sequence[tuple[NDArray[np.int64], ...]]) -> tuple[float, float]:
    """Return the ends of the interval of the pooled AUROC over cases; 0 and 1 where one of them decides alone.

    The delete-one jackknife over images: voxels of one image are not independent.

    Args:
        cases: the histograms of foreground and background of each.
    """
    total = [np.sum([case[kind] for case in cases], axis=0) for kind in (0, 1)]
    without = [compute_auroc(total[0] - positive, total[1] - negative) for positive, negative in cases]
    known = [value for value in without if value is not None]
    center, count = compute_auroc(*total) if cases else None, len(known)
    if center is None or count < max(len(without), 2):
        return 0.0, 1.0
    error = math.sqrt((count - 1) / count * float(np.sum((np.array(known) - np.mean(known)) ** 2)))
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    return max(center - half, 0.0), min(center + half, 1.0)


def _prob_histogram(positive: Scores, negative: Scores) -> tuple[float, ...]:
    edges = special.logit(np.linspace(0, 1, PROB_BINS + 1)[:-1]).astype(np.float32)
    counts = _bin(positive, edges) + _bin(negative, edges)
    return tuple((counts / max(len(positive) + len(negative), 1)).tolist())


def _find_quantiles(positive: Scores, negative: Scores, shares: Sequence[float]) -> list[float]:
    """Return the scores below which there are these shares of both classes together; NaN without any."""
    last = len(positive) + len(negative) - 1
    return [_find_kth(positive, negative, round(share * last)) if last >= 0 else math.nan for share in shares]


def _find_kth(some: Scores, others: Scores, k: int) -> float:
    """Return the value at place ``k``, from 0, of all values together in increasing order; both are sorted."""

    def find_place(index: int) -> int:
        return index + int(np.searchsorted(others, some[index], side="right"))

    index = bisect_left(range(len(some)), k, key=find_place)
    is_found = index < len(some) and find_place(index) == k
    return float(some[index] if is_found else others[k - index])


def _sort(parts: Sequence[Tensor], kind: Literal["quicksort", "stable"] = "quicksort") -> Tensor:
    """Return the values of all parts in increasing order; where each part is sorted, ``stable`` is faster.

    A GPU does it itself; on a CPU numpy takes a third of the time of torch.
    """
    values = torch.cat(list(parts))
    return values.sort().values if values.is_cuda else torch.from_numpy(np.sort(_to_host(values), kind=kind))


def _to_host(values: Tensor) -> Scores:
    host: Scores = values.cpu().numpy()
    return host
