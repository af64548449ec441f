"""Compare the inputs of the network: training batches with their data, prediction with training.

Shapes: C channels, *S spatial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.open import make_source
from ssl_seg.data.resample import compute_resampled_shape, resample_image
from ssl_seg.data.splits.split import Split
from ssl_seg.data.store import CaseStore, cut_unit
from ssl_seg.diagnose.batches import compute_expected, measure_batch, summarize_batches
from ssl_seg.diagnose.clock import Clock
from ssl_seg.inference.sliding import Predictor

BATCHES = 10
"""The successor of the reported recipe looked at the first ten batches."""
IMAGES = 3
MAX_VOXELS = 2**25
"""Largest image whose input is looked at as a whole."""
RANKED_VOXELS = 20_000
"""Voxels that are drawn for the rank correlation from an image that has more."""


@dataclass(frozen=True)
class NetworkInputs:
    """The first channel of an image: ``raw`` on the grid of the network, and as training and prediction feed it."""

    raw: NDArray[np.generic]
    training: NDArray[np.float32]
    prediction: NDArray[np.float32]

    @property
    def difference(self) -> float:
        """Largest difference between training and prediction, relative to values above 1."""
        scale = np.maximum(np.abs(self.training), 1.0)
        return float((np.abs(self.training - self.prediction) / scale).max())

    def rank_correlation(self, seed: int) -> float | None:
        """Return Spearman's correlation of raw values and input at prediction; None for a constant image."""
        from scipy.stats import spearmanr

        known = ~np.isnan(self.raw) if self.raw.dtype.kind == "f" else np.ones(self.raw.shape, bool)
        raw, fed = self.raw[known], self.prediction[known].round(5)  # equal values stay equal, as windows overlap
        if raw.size > RANKED_VOXELS:
            chosen = np.random.default_rng(seed).integers(raw.size, size=RANKED_VOXELS)
            raw, fed = raw[chosen], fed[chosen]
        if not raw.size or raw.min() == raw.max():
            return None
        return 0.0 if fed.min() == fed.max() else float(spearmanr(raw, fed).statistic)


class IdentityNet(nn.Module):
    """A network whose log-odds of foreground are the first channel of its input."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, windows: Tensor) -> Tensor:
        """Return (N,K,*P): zeros for background, the input for the first class, and next to nothing for the others."""
        first = windows[:, :1]
        others = torch.full_like(first, -1e4).expand(-1, self.num_classes - 2, *first.shape[2:])
        return torch.cat([torch.zeros_like(first), first, others], dim=1)


def measure_batches(
    config: Config, store: CaseStore, split: Split, clock: Clock, until: float, track: Track = pass_through
) -> dict[str, Any]:
    """Return ``statistics["batches"]``: the labeled patches of the first training batches, without unlabeled ones.

    Raises:
        SplitError: if a training case is in the sealed test list.
    """
    labeled = split.labeled_ids(config.split.labels)
    split.check_not_sealed(labeled)
    source = make_source(config, store, labeled, ())
    source = replace(source, counts=(source.counts[0], 0))
    expected = compute_expected(source, store.catalog.facts)
    steps = clock.limit(track(range(BATCHES), BATCHES), until, 2)
    contents = [measure_batch(source[step], expected.positive) for step in steps]
    summary, findings = summarize_batches(contents, expected)
    shares = [row["foreground"] for row in summary["batches"]]
    known = [share for share in shares if share is not None]
    return {
        "n": len(contents),
        "foreground": shares,
        "mean": summary["total"]["foreground"],
        "min": min(known, default=None),
        "max": max(known, default=None),
        "expected": summary["expected"]["foreground"],
        "most_expected": summary["expected"]["most_foreground"],
        "positive_patches": summary["total"]["positive_patches"],
        "notes": [finding.message for finding in findings if finding.code != "labeled_count"],
    }


def measure_inputs(
    predictor: Predictor, store: CaseStore, case_ids: Sequence[str], num_classes: int, clock: Clock, until: float
) -> dict[str, Any]:
    """Return ``statistics["inputs"]``; clipping and constant images are those of all cases, from their facts."""
    small = [i for i in case_ids if prod(store.catalog.facts[i].shape) <= MAX_VOXELS]
    fed = [compare_inputs(predictor, store, i, num_classes) for i in clock.limit(small[:IMAGES], until, least=1)]
    ranks = [r for index, one in enumerate(fed) if (r := one.rank_correlation(index)) is not None]
    seen = {i: f.appearance for i, f in store.catalog.facts.items() if f.appearance is not None}
    return {
        "images": len(fed),
        "rank_correlation": min(ranks, default=None),
        "path_difference": max((one.difference for one in fed), default=None),
        "clipped_low": max((a.at_low for a in seen.values()), default=None),
        "clipped_high": max((a.at_high for a in seen.values()), default=None),
        "constant": [i for i, a in seen.items() if a.std == 0],
    }


def compare_inputs(predictor: Predictor, store: CaseStore, case_id: str, num_classes: int) -> NetworkInputs:
    """Return the first channel of a case as training, without random changes, and as prediction feed the network."""
    whole, case = store.load_whole(case_id), store.load(case_id)
    raw: NDArray[np.generic] = whole.image
    if predictor.resample_to is not None and whole.spacing is not None:
        raw = resample_image(raw, compute_resampled_shape(raw.shape[1:], whole.spacing, predictor.resample_to))
    shape = raw.shape[1:]
    training = case.intensity.unit_to_zscore(cut_unit(case, (0,) * len(shape), shape))
    echo = replace(predictor, net=IdentityNet(num_classes), resample_to=None)
    shown = raw[0] if store.window is None else raw[0].clip(*store.window)
    return NetworkInputs(shown, training[0], echo.with_logits(raw)[1])
