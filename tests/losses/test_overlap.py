"""Oracles: MONAI, closed forms, scikit-learn's Jaccard score."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SHAPES, make_case, make_confident
from monai.losses import DiceCELoss, DiceLoss, GeneralizedDiceLoss, TverskyLoss
from sklearn.metrics import jaccard_score

from ssl_seg.config import LossConfig
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import make_supervised_loss
from ssl_seg.losses.overlap import dice, focal_tversky, generalized_dice, iou, lovasz, tversky

MONAI = {"include_background": False, "to_onehot_y": True, "softmax": True}
shapes = pytest.mark.parametrize("shape", SHAPES)
batches = pytest.mark.parametrize("batch", [True, False])


@shapes
@batches
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_dice_is_monais(shape: tuple[int, ...], smooth: float, batch: bool) -> None:
    logits, target = make_case(shape)
    monai = DiceLoss(**MONAI, batch=batch, smooth_nr=smooth, smooth_dr=smooth)
    torch.testing.assert_close(dice(logits, target, smooth, batch), monai(logits, target[:, None]))


@shapes
def test_dice_and_cross_entropy_are_monais(shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape)
    monai = DiceCELoss(**MONAI, batch=True, smooth_nr=1, smooth_dr=1)
    total, _ = make_supervised_loss(LossConfig(weights={"dice": 1.0, "cross_entropy": 1.0}))(logits, target)
    torch.testing.assert_close(total, monai(logits, target[:, None]))


@shapes
@batches
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.9, 0.2)])
def test_tversky_is_monais(shape: tuple[int, ...], alpha: float, beta: float, batch: bool) -> None:
    logits, target = make_case(shape)
    monai = TverskyLoss(**MONAI, alpha=alpha, beta=beta, smooth_nr=0.5, smooth_dr=0.5, batch=batch)
    loss = tversky(logits, target, alpha, beta, smooth=0.5, batch=batch)
    torch.testing.assert_close(loss, monai(logits, target[:, None]))
    # A cost of 2 is twice the weight.
    monai = TverskyLoss(**MONAI, alpha=alpha, beta=beta, smooth_nr=1, smooth_dr=1, batch=batch)
    halved = tversky(logits, target, alpha / 2, beta / 3, batch=batch, fp_cost=2.0, fn_cost=3.0)
    torch.testing.assert_close(halved, monai(logits, target[:, None]))


@shapes
@batches
def test_iou_is_monais_jaccard(shape: tuple[int, ...], batch: bool) -> None:
    logits, target = make_case(shape)
    # MONAI's jaccard smooths twice the union: 2 * (TP + smooth / 2).
    monai = DiceLoss(**MONAI, batch=batch, jaccard=True, smooth_nr=2, smooth_dr=2)
    torch.testing.assert_close(iou(logits, target, batch=batch), monai(logits, target[:, None]), atol=1e-6, rtol=1e-5)


@batches
def test_dice_iou_and_tversky_are_one_family(batch: bool) -> None:
    logits, target = make_case((2, 3, 6, 5), ignored=0.2)
    half = tversky(logits, target, 0.5, 0.5, smooth=0.5, batch=batch)
    torch.testing.assert_close(half, dice(logits, target, batch=batch))
    torch.testing.assert_close(tversky(logits, target, 1.0, 1.0, batch=batch), iou(logits, target, batch=batch))
    assert tversky(logits, target, batch=batch) == focal_tversky(logits, target, gamma=1.0, batch=batch)


def test_focal_tversky_flattens_bad_classes_and_steepens_good_ones() -> None:
    target = torch.ones(1, 10, 10, dtype=torch.int64)
    for scale, is_steeper in ((3.0, True), (-6.0, False)):
        slopes = []
        for function in (focal_tversky, tversky):
            logits = make_confident(target, 2, scale).requires_grad_()
            function(logits, target).backward()
            slopes.append(logits.grad.abs().sum().item())
        assert (slopes[0] > slopes[1]) == is_steeper


def test_focal_tversky_has_a_finite_slope_at_0() -> None:
    _, target = make_case((1, 2, 4, 4))
    for scale in (5.0, 10.0, 15.0, 20.0, 100.0):
        logits = make_confident(target, 2, scale).requires_grad_()
        loss = focal_tversky(logits, target, gamma=3.0)
        loss.backward()
        assert torch.isfinite(logits.grad).all()
        assert loss.item() < 0.2
    assert loss.item() == 0.0


@shapes
def test_generalized_dice_is_monais_but_for_the_smoothing(shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape)
    for batch in (True, False):
        monai = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, batch=batch, smooth_nr=0, smooth_dr=0)
        loss = generalized_dice(logits, target, smooth=1e-9, batch=batch)
        torch.testing.assert_close(loss, monai(logits, target[:, None]))


def test_generalized_dice_sees_errors_in_large_volumes() -> None:
    """MONAI's smoothing of 1e-5 drowns 1 / volume²: a third of the volume wrong costs it 3 %."""
    target = (torch.arange(3_000_000) % 3).view(1, -1)
    wrong = make_confident(torch.where(target == 2, 1, target), 3)
    expected = GeneralizedDiceLoss(to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0)(wrong, target[:, None])
    assert expected.item() == pytest.approx(1 / 3, abs=1e-3)
    assert generalized_dice(wrong, target).item() == pytest.approx(1 / 3, abs=1e-3)
    assert GeneralizedDiceLoss(to_onehot_y=True, softmax=True)(wrong, target[:, None]).item() < 0.15


def test_generalized_dice_weighs_classes_alike() -> None:
    """The same share of two classes missed costs the same, though one is a hundred times larger."""
    target = torch.zeros(1, 10_000, dtype=torch.int64)
    target[0, 5000:9000], target[0, 9000:9040] = 1, 2
    losses = []
    for wrong in (slice(5000, 7000), slice(9000, 9020)):
        predicted = target.clone()
        predicted[0, wrong] = 0
        losses.append(generalized_dice(make_confident(predicted, 3), target, smooth=1e-6).item())
    plain = [dice(make_confident(torch.where(target == k, 0, target), 3), target).item() for k in (1, 2)]
    assert plain[0] == pytest.approx(plain[1], abs=0.02)
    # Weights 1 / volume²: what counts is the share of a class, squared by its size in the other's denominator.
    assert losses[1] > 10 * losses[0]


def test_costs_of_generalized_dice_change_sides_with_the_classes() -> None:
    """False foreground is missed background: with the two classes exchanged, the two costs are too."""
    logits, target = make_case((2, 2, 6, 5))
    expected = generalized_dice(logits, target, fp_cost=3.0, fn_cost=0.5)
    torch.testing.assert_close(generalized_dice(logits.flip(1), 1 - target, fp_cost=0.5, fn_cost=3.0), expected)
    assert abs(expected - generalized_dice(logits, target)) > 0.05


def test_samples_without_a_valid_voxel_do_not_dilute_the_mean() -> None:
    logits, target = make_case((3, 3, 5, 5))
    target[1] = IGNORE_INDEX
    kept = [0, 2]
    for function in (dice, iou, tversky, focal_tversky, generalized_dice):
        with_it = function(logits, target, batch=False)
        torch.testing.assert_close(with_it, function(logits[kept], target[kept], batch=False))
        singles = torch.stack([function(logits[[n]], target[[n]]) for n in kept])
        torch.testing.assert_close(with_it, singles.mean())


def test_an_all_background_batch_costs_its_false_positives_only() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.int64)
    nothing = make_confident(target, 2)
    assert dice(nothing, target).item() == pytest.approx(0.0, abs=1e-6)
    three_wrong = nothing.clone()
    three_wrong[0, :, 0, :3] = three_wrong[0, :, 0, :3].flip(0)
    assert dice(three_wrong, target).item() == pytest.approx(3 / (3 + 1), abs=1e-6)
    doubtful = torch.zeros(2, 2, 4, 4, requires_grad=True)  # 16 predicted voxels
    dice(doubtful, target).backward()
    # d/dP of P / (P + 1) at P = 16, times dp/dlogit = 1/4: small, but not the 1e-8 of smooth = 1e-5.
    torch.testing.assert_close(doubtful.grad[:, 1], torch.full((2, 4, 4), 0.25 / 17**2))


def test_missing_all_foreground_costs_nearly_one() -> None:
    target = torch.ones(1, 10, 10, dtype=torch.int64)
    assert dice(make_confident(1 - target, 2), target).item() == pytest.approx(1 - 1 / 101, abs=1e-6)


def test_dice_pools_over_the_batch() -> None:
    logits, target = make_case((3, 3, 4, 5))
    side_by_side = torch.cat(list(logits), dim=-1)[None], torch.cat(list(target), dim=-1)[None]
    torch.testing.assert_close(dice(logits, target), dice(*side_by_side))
    assert dice(logits, target, batch=False) != dice(logits, target)


def test_lovasz_of_certain_predictions_is_the_jaccard_loss() -> None:
    """At the corners of the cube, the extension is the set function."""
    for seed in range(5):
        predicted, target = (make_case((2, 3, 6, 6), seed=s)[1] for s in (seed, seed + 100))
        expected = 1 - jaccard_score(target.flatten(), predicted.flatten(), average="macro")
        assert lovasz(make_confident(predicted, 3), target).item() == pytest.approx(expected, abs=1e-5)


def test_lovasz_leaves_out_absent_classes() -> None:
    logits, target = make_case((2, 2, 6, 6))
    with_absent = torch.cat([logits, torch.full((2, 1, 6, 6), -40.0)], dim=1)
    torch.testing.assert_close(lovasz(with_absent, target), lovasz(logits, target))


def test_lovasz_has_no_cancellation_in_large_volumes() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 400_000, generator=draw)
    target = (torch.rand(1, 400_000, generator=draw) < 0.9).long()
    torch.testing.assert_close(lovasz(logits, target).double(), lovasz(logits.double(), target), rtol=1e-6, atol=0)
