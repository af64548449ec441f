"""Signals against other libraries and by hand."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from monitor_cases import make_logits
from scipy import special
from scipy.stats import t, wasserstein_distance
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_recall_curve,
    precision_score,
    recall_score,
    roc_auc_score,
)
from torch import Tensor, nn

from ssl_seg.data.loader import Probe
from ssl_seg.data.store import WholeCase
from ssl_seg.inference.scoring import Score, count_classes, score_case
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.monitor.signals import EDGES, PROB_BINS, QUANTILES, SignalCollector, Signals, collect_signals
from ssl_seg.scores.intervals import compute_score


def collect(score: Tensor, target: Tensor, parts: int = 1, threshold: float | None = None) -> Signals:
    collector = SignalCollector(range(2), torch.device("cpu"), threshold=threshold)
    for own, truth in zip(score.chunk(parts), target.chunk(parts), strict=True):
        collector.update(make_logits(own), truth)
    return collector.compute()


@pytest.fixture
def example() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    target = (torch.rand(6, 20, 20, generator=draw) < 0.3).long()
    return torch.randn(6, 20, 20, generator=draw) * 1.5 + 1.5 * target - 1, target


def test_against_sklearn_and_numpy(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    s = collect(score, target, parts=3)
    flat, truth = score.numpy().ravel(), target.numpy().ravel()
    prob = 1 / (1 + np.exp(-flat.astype(np.float64)))
    assert s.auroc == pytest.approx(roc_auc_score(truth, flat), abs=2e-3)
    assert s.average_precision == pytest.approx(average_precision_score(truth, flat), abs=5e-3)
    assert s.f1 == pytest.approx(f1_score(truth, flat > 0))
    assert s.f1_macro == pytest.approx(s.f1)
    precision, recall, _ = precision_recall_curve(truth, flat)
    assert s.f1_best == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)), abs=3e-3)
    assert s.f1_best == pytest.approx(f1_score(truth, prob >= s.threshold_best), abs=1e-9)
    assert s.logit_mean == pytest.approx(flat.mean(), abs=1e-5)
    assert s.logit_std == pytest.approx(flat.std(), abs=1e-5)
    assert s.prob_mean == pytest.approx(prob.mean(), abs=1e-6)
    assert s.prob_std == pytest.approx(prob.std(), abs=1e-6)
    assert s.share_below_01 == pytest.approx((prob < 0.1).mean())
    assert s.prevalence_pred == pytest.approx((flat > 0).mean())
    assert s.prevalence_true == pytest.approx(truth.mean())
    assert s.ratio_std == pytest.approx(float((score > 0).float().mean((1, 2)).std(unbiased=False)), abs=1e-6)
    expected = np.quantile(flat, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    np.testing.assert_allclose(s.logit_quantiles, expected, atol=0.02)


@pytest.mark.parametrize("threshold", [0.2, 0.7])
def test_what_is_predicted_goes_by_the_threshold(example: tuple[Tensor, Tensor], threshold: float) -> None:
    """What ranks the voxels does not, and no figure is other than by default at 0.5."""
    score, target = example
    default, half = collect(score, target), collect(score, target, threshold=0.5)
    s = collect(score, target, parts=3, threshold=threshold)
    pred, truth = special.expit(score.numpy().astype(np.float64)) > threshold, target.numpy()
    assert s.f1 == s.f1_macro == pytest.approx(f1_score(truth.ravel(), pred.ravel()))
    assert s.precision == pytest.approx(precision_score(truth.ravel(), pred.ravel()))
    assert s.recall == pytest.approx(recall_score(truth.ravel(), pred.ravel()))
    assert s.prevalence_pred == pytest.approx(pred.mean())
    assert s.dice == pytest.approx(np.mean([f1_score(t.ravel(), p.ravel()) for t, p in zip(truth, pred, strict=True)]))
    assert (s.auroc, s.f1_best, s.threshold_best) == (default.auroc, default.f1_best, default.threshold_best)
    assert s.f1 != default.f1
    assert half == default


@pytest.mark.parametrize("shift", [-40.0, -22.0, 0.0, 17.5, 40.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_ranking_is_seen_wherever_it_lies_and_however_narrow_it_is(shift: float, scale: float) -> None:
    draw = torch.Generator().manual_seed(1)
    target = (torch.rand(4, 60, 60, generator=draw) < 0.03).long()
    values = (shift + scale * (torch.randn(target.shape, generator=draw) + 2 * target)).float()
    collector = SignalCollector(range(2), torch.device("cpu"))
    collector.update(torch.stack([torch.zeros_like(values), values], dim=1), target)
    s, flat, truth = collector.compute(), values.numpy().ravel(), target.numpy().ravel()
    assert s.auroc == pytest.approx(roc_auc_score(truth, flat), abs=1e-3)
    assert s.average_precision == pytest.approx(average_precision_score(truth, flat), abs=5e-3)
    precision, recall, cuts = precision_recall_curve(truth, flat)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    assert s.f1_best == pytest.approx(f1.max(), abs=3e-3)
    assert s.logit_best is not None
    assert f1_score(truth, flat > s.logit_best) == pytest.approx(f1.max(), abs=3e-3)
    assert abs(s.logit_best - cuts[f1[:-1].argmax()]) < 0.5 * scale
    assert s.threshold_best == pytest.approx(1 / (1 + np.exp(-np.clip(s.logit_best, -700, 700))))
    assert s.logit_quantiles[3] == pytest.approx(np.median(flat), abs=0.05 * scale)


@pytest.mark.parametrize("count", [EDGES - 1, EDGES, EDGES + 1, 5 * EDGES])
def test_more_scores_than_bins(count: int) -> None:
    """A score a voxel, the best cut between two known ones: 1/3 of the foreground lies below all background."""
    low = count // 3
    score = torch.cat([torch.arange(low) - 1e6, torch.arange(count) + 0.0, torch.arange(count - low) + 1e6])
    target = torch.cat([torch.ones(low), torch.zeros(count), torch.ones(count - low)]).long()
    s = collect(score[None, None], target[None, None])
    assert s.auroc == pytest.approx(1 - low / count, abs=1e-3)
    assert s.f1_best == pytest.approx(f1_score(target, score > 5e5), abs=1e-3)
    assert s.logit_best == pytest.approx((1e6 + count - 1) / 2)


@pytest.mark.parametrize(("ranked", "is_whole"), [(399, False), (400, True), (401, True), (100, False), (1, False)])
def test_a_share_of_the_voxels_is_ranked_and_all_are_counted(
    example: tuple[Tensor, Tensor], ranked: int, is_whole: bool
) -> None:
    score, target = example
    collector = SignalCollector(range(2), torch.device("cpu"), ranked)
    collector.update(make_logits(score), target)
    part, whole = collector.compute(), collect(score, target)
    assert (part == whole) == is_whole
    for name in ("voxels", "f1", "prevalence_true", "prevalence_pred", "logit_mean", "dice", "ratio_std"):
        assert getattr(part, name) == getattr(whole, name)
    assert ranked < 100 or part.auroc == pytest.approx(whole.auroc, abs=0.05)


@pytest.mark.parametrize("count", [1, 2, 3, 50, 51])
@pytest.mark.parametrize("share", [0, 0.3, 1])
def test_quantiles_are_of_both_classes_together(count: int, share: float) -> None:
    draw = torch.Generator().manual_seed(count)
    score = torch.randint(-9, 9, (1, 1, count), generator=draw).float()  # with ties
    s = collect(score, (torch.rand(1, 1, count, generator=draw) < share).long())
    ordered = np.sort(score.numpy().ravel())
    assert s.logit_quantiles == tuple(ordered[round(q * (count - 1))] for q in QUANTILES)
    assert s.prob_max == special.expit(float(ordered[-1]))


def test_each_score_is_sorted_in_its_case_and_among_all(
    example: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorting takes most of the time of a look: 1 s of 1.2 s for 16.8 million scores."""
    sizes, sort = [], np.sort
    monkeypatch.setattr(np, "sort", lambda values, **options: (sizes.append(values.size), sort(values, **options))[1])
    score, target = example
    collect(score, target)
    assert sum(sizes) == 2 * score.numel()


def test_where_no_ranked_voxel_counts_there_are_no_ranks() -> None:
    target = torch.full((1, 20, 20), IGNORE_INDEX)
    target[0, 0, 0] = 1
    collector = SignalCollector(range(2), torch.device("cpu"), ranked=1)
    collector.update(make_logits(torch.ones(1, 20, 20)), target)
    s = collector.compute()
    assert (s.voxels, s.f1, s.auroc, s.f1_best) == (1, 1.0, None, None)
    assert math.isnan(s.prob_max)


def test_the_interval_of_the_auroc_is_that_of_the_cases() -> None:
    """Against the jackknife by scikit-learn; patches of one case are one draw."""
    draw = torch.Generator().manual_seed(5)
    target = (torch.rand(8, 12, 12, generator=draw) < 0.4).long()
    score = torch.randn(8, 12, 12, generator=draw) + target * torch.linspace(0, 2, 8)[:, None, None]
    ids = ("a", "b", "c", "d", "a", "b", "c", "d")
    collector = SignalCollector(range(2), torch.device("cpu"))
    for part in (slice(0, 3), slice(3, 8)):
        collector.update(make_logits(score[part]), target[part], ids[part])
    s = collector.compute()
    left = [[i for i in range(8) if ids[i] != out] for out in "abcd"]
    without = [roc_auc_score(target[kept].ravel(), score[kept].ravel()) for kept in left]
    half = t.ppf(0.975, 3) * np.sqrt(3 / 4 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert s.auroc is not None
    assert (s.auroc_low, s.auroc_high) == pytest.approx((s.auroc - half, min(s.auroc + half, 1.0)))
    assert collect(score, target).auroc_high < s.auroc_high, "eight cases are more than four"


@pytest.mark.parametrize("ids", [("a",) * 6, ("a", "b", "b", "b", "b", "b")])
def test_one_case_or_one_with_all_the_foreground_says_nothing(example: tuple[Tensor, Tensor], ids: tuple[str]) -> None:
    score, target = example
    target = target.clone()
    target[1:] *= len(set(ids)) == 1
    collector = SignalCollector(range(2), torch.device("cpu"))
    collector.update(make_logits(score), target, ids)
    s = collector.compute()
    assert (s.auroc_low, s.auroc_high) == (0.0, 1.0)


def test_what_is_predicted_is_the_largest_class() -> None:
    """0.4 against 0.3 + 0.3: background, as predict writes, although any foreground has 0.6."""
    logits = torch.tensor([0.4, 0.3, 0.3]).log()[None, :, None, None].expand(1, 3, 4, 4)
    target = torch.tensor([1, 0]).repeat(8).view(1, 4, 4)
    collector = SignalCollector(range(3), torch.device("cpu"))
    collector.update(logits, target)
    s = collector.compute()
    assert (s.f1, s.prevalence_pred, s.ratio_std, s.foreground_distance) == (0.0, 0.0, 0.0, 0.5)
    assert s.prob_mean == pytest.approx(0.6)


def test_batches_do_not_matter(example: tuple[Tensor, Tensor]) -> None:
    records = [collect(*example, parts=parts).to_record("") for parts in (1, 6)]
    histograms = [record.pop("prob_histogram") for record in records]
    assert histograms[0] == histograms[1]
    assert records[0] == pytest.approx(records[1])


def test_ignored_voxels_are_left_out(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    target = target.clone()
    target[:, :5] = IGNORE_INDEX
    ignored, cut = collect(score, target), collect(score[:, 5:], target[:, 5:])
    assert ignored.prob_std == pytest.approx(cut.prob_std)
    assert replace(ignored, prob_std=cut.prob_std) == cut


def test_non_finite_outputs_are_counted_not_spread(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    score = score.clone()
    score[0, 0, :7] = math.nan
    s = collect(score, target)
    assert s.nonfinite == 7
    assert math.isfinite(s.logit_mean)
    everything = collect(torch.full_like(score, math.nan), target)
    assert everything.nonfinite == everything.voxels
    assert (everything.f1, everything.f1_macro, everything.dice) == (0.0, 0.0, 0.0), "NaN is no score"
    assert everything.prevalence_true == s.prevalence_true > 0
    nothing_to_find = collect(torch.full_like(score, math.nan), torch.zeros_like(target))
    assert (nothing_to_find.f1, nothing_to_find.f1_macro, nothing_to_find.dice) == (0.0, 0.0, 0.0)
    json.dumps(everything.to_record("x/"))


def test_one_class_only() -> None:
    s = collect(torch.full((1, 4, 4), -3.0), torch.zeros(1, 4, 4, dtype=torch.long))
    assert (s.auroc, s.f1_best, s.trivial_f1, s.f1) == (None, None, 0.0, 1.0)


def test_classes_count_alike_in_the_macro_f1() -> None:
    target = torch.tensor([[[0, 1, 1, 1, 2, 3]]])
    logits = nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1, 1, 3]]]), 4).movedim(-1, 1).float() * 8
    collector = SignalCollector(range(4), torch.device("cpu"))
    collector.update(logits, target)
    expected = f1_score(target.flatten(), logits.argmax(1).flatten(), labels=[1, 2, 3], average="macro")
    s = collector.compute()
    assert s.f1_macro == pytest.approx(expected)
    everywhere = [2 * n / (6 + n) for n in (3, 1, 1)]
    assert s.trivial_f1_macro == pytest.approx(np.mean(everywhere))


def test_the_figures_of_each_class_are_of_the_voxels_that_count() -> None:
    target = torch.tensor([[[0, 1, 1, 2, 3, IGNORE_INDEX]], [[0, 0, 0, 2, IGNORE_INDEX, 2]]])
    written = torch.tensor([[[1, 1, 0, 1, 3, 2]], [[0, 0, 0, 1, 3, 1]]])
    logits = nn.functional.one_hot(written, 4).movedim(-1, 1).float() * 8
    collector = SignalCollector((0, 5, 6, 255), torch.device("cpu"))
    for one, truth in zip(logits, target, strict=True):
        collector.update(one[None], truth[None])
    s, counted = collector.compute(), (target != IGNORE_INDEX).numpy()
    pred, true = written.numpy()[counted], target.numpy()[counted]
    assert [own.value for own in s.classes] == [5, 6, 255]
    for label, own in enumerate(s.classes, 1):
        assert own.prevalence_pred == pytest.approx((pred == label).mean())
        assert own.prevalence_true == pytest.approx((true == label).mean())
        assert own.f1 == pytest.approx(f1_score(true == label, pred == label))
    record = s.to_record("val/")
    assert [record[f"val/f1/{own.value}"] for own in s.classes] == [own.f1 for own in s.classes]


@pytest.mark.parametrize("absent", [(), (2,), (1, 3), (1, 2, 3)])
def test_monitor_scores_and_ablations_say_the_same(absent: tuple[int, ...]) -> None:
    """Of the same masks, with classes in none of them or in some, and predicted or not."""
    rng = np.random.default_rng(len(absent))
    target = rng.integers(0, 4, (5, 8, 8))
    target[np.isin(target, absent) | (rng.random((5, 8, 8)) < 0.1)] = 0
    target[0][target[0] == 3] = 0
    target[4] = 0
    pred = np.where(rng.random((5, 8, 8)) < 0.5, target, rng.integers(0, 4, (5, 8, 8)))
    pred[4] = 0
    probs = np.eye(4)[pred].transpose(0, 3, 1, 2)
    collector = SignalCollector(range(4), torch.device("cpu"))
    collector.update(torch.from_numpy(8 * probs).float(), torch.from_numpy(target))
    signals = collector.compute()
    cases = [WholeCase(np.zeros((1, 8, 8)), t.astype(np.int16), None) for t in target]
    score = Score(tuple(score_case(str(n), case, p) for n, (case, p) in enumerate(zip(cases, probs, strict=True))))
    summary, counts = score.summarize(), count_classes(score)
    assert summary["absent_classes"] == list(absent)
    there = [k for k in (1, 2, 3) if k not in absent]
    expected = f1_score(target.ravel(), pred.ravel(), labels=there, average="macro") if there else 0.0
    for found in (signals.f1_macro, score.f1_macro, summary["pooled"]["f1_macro"], float(compute_score(counts, "f1"))):
        assert found == pytest.approx(expected)
    for found in (summary["mean"]["dice"], float(compute_score(counts, "dice"))):
        assert found == pytest.approx(signals.dice)
    assert signals.trivial_f1_macro == pytest.approx(summary["trivial"]["all_positive"])


def test_dice_is_the_mean_over_patches_and_empty_ones_count_1() -> None:
    """Patches of Dice 1 (nothing in either), 0 (hallucinated), 2/3, and one that is ignored altogether."""
    target = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [IGNORE_INDEX] * 4])[:, None]
    score = torch.tensor([[-1.0, -1, -1, -1], [1, -1, -1, -1], [1, -1, -1, -1], [1, 1, 1, 1]])[:, None]
    s = collect(score, target, parts=2)
    assert s.dice == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_dice_of_a_patch_is_the_mean_over_its_classes() -> None:
    target = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 3]], [[0, 0, 0, IGNORE_INDEX]]])
    classes = torch.tensor([[[0, 1, 0, 2]], [[0, 0, 1, 3]], [[0, 0, 0, 2]]])
    collector = SignalCollector(range(4), torch.device("cpu"))
    collector.update(nn.functional.one_hot(classes, 4).movedim(-1, 1).float() * 8, target)
    assert collector.compute().dice == pytest.approx(((2 / 3 + 1) / 2 + (0 + 1) / 2 + 1) / 3)


def test_dice_of_two_classes_against_brute_force(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    expected = [f1_score(t.ravel(), p.ravel()) for t, p in zip(target.numpy(), (score > 0).numpy(), strict=True)]
    assert collect(score, target, parts=2).dice == pytest.approx(np.mean(expected))


def test_foreground_distance_is_scipys(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    target = target.clone()
    target[1, :5] = IGNORE_INDEX
    target[2] = IGNORE_INDEX
    shares = [
        ((s > 0) & (t != IGNORE_INDEX), t == 1, (t != IGNORE_INDEX).sum())
        for s, t in zip(score, target, strict=True)
        if (t != IGNORE_INDEX).any()
    ]
    pred, true = ([float(part[i].sum() / part[2]) for part in shares] for i in (0, 1))
    got = collect(score, target, parts=3).foreground_distance
    assert got == pytest.approx(wasserstein_distance(pred, true), abs=1e-6)
    assert got > 0.01
    perfect = collect(target.float() - 0.5, target.clamp(min=0))
    assert perfect.foreground_distance < 1e-6


def test_an_empty_probe_has_figures() -> None:
    s = SignalCollector(range(2), torch.device("cpu")).compute()
    assert (s.dice, s.foreground_distance, s.ratio_std) == (1.0, 0.0, 0.0)


def test_modes_are_restored_and_eval_mode_is_used() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9)).train()
    probe = Probe(torch.randn(5, 1, 8, 8), torch.randint(2, (5, 8, 8)))
    runs = [collect_signals(net, probe, range(2), torch.device("cpu"), 2, nullcontext) for _ in range(2)]
    assert runs[0] == runs[1]
    assert net.training


def test_probabilities_against_numpy(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    s = collect(score, target, parts=3)
    prob = torch.sigmoid(score.double()).numpy().ravel()
    expected = np.histogram(prob, bins=PROB_BINS, range=(0, 1))[0] / prob.size
    np.testing.assert_allclose(s.prob_histogram, expected, atol=1e-3)
    assert sum(s.prob_histogram) == pytest.approx(1)
    assert s.prob_max == pytest.approx(prob.max(), abs=1e-6)


def test_spread_of_the_shares_leaves_out_patches_without_valid_voxels(example: tuple[Tensor, Tensor]) -> None:
    score, target = example
    target = target.clone()
    target[0] = IGNORE_INDEX
    target[1, :15] = 1
    s = collect(score, target, parts=2)
    assert s.ratio_std == pytest.approx(float((score[1:] > 0).double().mean((1, 2)).std(unbiased=False)), abs=1e-6)
    assert s.ratio_std_true == pytest.approx(float(target[1:].double().mean((1, 2)).std(unbiased=False)), abs=1e-6)
    assert s.ratio_std_true > 0.05


def test_train_mode_is_looked_at_on_a_copy() -> None:
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    nn.init.constant_(net[0].weight, 1.0)
    net[0].weight.data[0] = -1.0
    probe = Probe(5 + torch.randn(6, 1, 8, 8, generator=draw), torch.randint(2, (6, 8, 8), generator=draw))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [
        collect_signals(net, probe, range(2), torch.device("cpu"), 6, nullcontext, train_mode=mode)
        for mode in (True, False)
    ]
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert not net.training
    net.train()
    with torch.no_grad():
        logits = net(probe.image)
    assert modes[0].logit_mean == pytest.approx(float((logits[:, 1] - logits[:, 0]).mean()), abs=1e-5)
    assert abs(modes[0].logit_mean - modes[1].logit_mean) > 0.1
