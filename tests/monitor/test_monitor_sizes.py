"""The figures of a probe do not depend on how it is cut into batches."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from monitor_cases import HEALTHY, UNLEARNED, make_evidence, make_trend
from sizes import around
from sklearn.metrics import f1_score, roc_auc_score

from ssl_seg.data.loader import Probe
from ssl_seg.monitor import signals
from ssl_seg.monitor.findings import RuleFinding
from ssl_seg.monitor.signals import PROB_BINS, SignalCollector, collect_signals
from ssl_seg.monitor.training_rules import (
    FIRST_EPOCHS,
    PLATEAU_EPOCHS,
    STEADY_EPOCHS,
    find_component_explosion,
    find_overfitting,
    find_plateau,
    find_zero_loss,
)


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
        found = collect_signals(TwoLogits(), probe, range(2), torch.device("cpu"), batch_size, nullcontext)
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
    found = collect_signals(TwoLogits(), probe, range(2), torch.device("cpu"), 3, nullcontext)
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
    collector = SignalCollector(range(2), torch.device("cpu"))
    collector.update(logits, torch.zeros(1, 1, count, dtype=torch.long))
    expected = np.bincount(places, minlength=PROB_BINS) / count
    np.testing.assert_allclose(collector.compute().prob_histogram, expected, atol=1e-9)


def find_in(rule: object, student: object, train: object = None, figures: object = None, **series: list[float]) -> bool:
    trend = make_trend(**series)
    components = tuple(name.partition("__")[2] for name in series if name.startswith("component__"))
    found: RuleFinding | None = rule(  # type: ignore[operator]
        make_evidence(student, train=train, training=figures, trend=trend, components=components)  # type: ignore[arg-type]
    )
    return found is not None


@pytest.mark.parametrize("epochs", around(PLATEAU_EPOCHS))
def test_epochs_without_a_gain(epochs: int) -> None:
    """There must be one before them to gain from."""
    student = replace(HEALTHY, f1=0.5, f1_best=0.5)
    assert find_in(find_plateau, student, f1=[0.2, *[0.5] * epochs]) == (epochs > PLATEAU_EPOCHS)
    rising = [0.2, *(0.5 + 0.1 * n for n in range(epochs))]
    assert not find_in(find_plateau, student, f1=rising)


@pytest.mark.parametrize("epochs", around(STEADY_EPOCHS))
def test_epochs_of_falling_validation(epochs: int) -> None:
    student, train = replace(HEALTHY, f1=0.5), replace(HEALTHY, f1=0.75)
    falling = [0.2, 0.8, *[0.5] * epochs]
    assert find_in(find_overfitting, student, train, f1=falling) == (epochs >= STEADY_EPOCHS)
    assert not find_in(find_overfitting, student, train, f1=[*falling, 0.8])


@pytest.mark.parametrize("epochs", around(STEADY_EPOCHS))
def test_epochs_of_a_risen_component(epochs: int) -> None:
    losses, focal = [0.5, *[0.6] * epochs], [0.15, *[0.22] * epochs]
    figures = {"loss": 0.6, "focal": 0.22}
    series = {"loss": [math.nan, *losses], "component__focal": [math.nan, *focal]}
    found = find_in(find_component_explosion, UNLEARNED, figures=figures, **series)
    assert found == (epochs >= STEADY_EPOCHS)


@pytest.mark.parametrize("epochs", around(FIRST_EPOCHS))
def test_epochs_in_which_a_low_loss_is_suspicious(epochs: int) -> None:
    losses = [math.nan, 0.5, *[0.05] * (epochs - 1)]
    assert find_in(find_zero_loss, UNLEARNED, figures={"loss": 0.05}, loss=losses) == (epochs <= FIRST_EPOCHS)
