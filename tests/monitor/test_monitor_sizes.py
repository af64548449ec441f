"""The figures of a probe do not depend on how it is cut into batches."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sizes import around
from sklearn.metrics import f1_score, roc_auc_score

from ssl_seg.data.loader import Probe
from ssl_seg.monitor import signals
from ssl_seg.monitor.signals import PROB_BINS, SignalCollector, collect_signals


def make_probe(patches: int) -> Probe:
    draw = torch.Generator().manual_seed(patches)
    target = (torch.rand(patches, 8, 8, generator=draw) < 0.3).long()
    image = torch.randn(patches, 1, 8, 8, generator=draw) + 1.5 * target[:, None]
    return Probe(image, target)


class TwoLogits(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(image), image - 0.5], dim=1)


@pytest.mark.parametrize("patches", around(4))
def test_batches_of_a_probe(patches: int) -> None:
    probe = make_probe(patches)
    score, truth = (probe.image[:, 0] - 0.5).numpy(), probe.target.numpy()
    for batch_size in (1, 3, 4, 5, 100):
        found = collect_signals(TwoLogits(), probe, 2, torch.device("cpu"), batch_size, nullcontext)
        assert found.voxels == truth.size
        assert found.f1 == pytest.approx(f1_score(truth.ravel(), score.ravel() > 0))
        assert found.auroc == pytest.approx(roc_auc_score(truth.ravel(), score.ravel()), abs=1e-3)
        assert found.dice == pytest.approx(
            np.mean([f1_score(t.ravel(), s.ravel() > 0) for t, s in zip(truth, score, strict=True)])
        )
        assert found.ratio_std == pytest.approx((score > 0).mean((1, 2)).std(), abs=1e-6)


@pytest.mark.parametrize("patches", around(4))
def test_how_many_voxels_are_ranked_for_any_number_of_patches(patches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the 64 voxels of 4 patches: of more patches, each has fewer ranked, and all are counted."""
    monkeypatch.setattr(signals, "RANKED", 4 * 64)
    probe = make_probe(patches)
    found = collect_signals(TwoLogits(), probe, 2, torch.device("cpu"), 3, nullcontext)
    score, truth = (probe.image[:, 0] - 0.5).numpy().ravel(), probe.target.numpy().ravel()
    assert found.voxels == truth.size
    assert found.f1 == pytest.approx(f1_score(truth, score > 0))
    assert found.auroc == pytest.approx(roc_auc_score(truth, score), abs=1e-3 if patches <= 4 else 0.1)


@pytest.mark.parametrize("count", around(PROB_BINS))
def test_each_probability_is_in_its_bin(count: int) -> None:
    """One voxel in the middle of each of the first bins, and again from the first on."""
    places = np.arange(count) % PROB_BINS
    score = torch.logit(torch.from_numpy((places + 0.5) / PROB_BINS)).float()
    logits = torch.stack([torch.zeros_like(score), score])[None, :, None]
    collector = SignalCollector(2, torch.device("cpu"))
    collector.update(logits, torch.zeros(1, 1, count, dtype=torch.long))
    expected = np.bincount(places, minlength=PROB_BINS) / count
    np.testing.assert_allclose(collector.compute().prob_histogram, expected, atol=1e-9)
