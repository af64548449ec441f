"""Oracles: MONAI, torch.nn.functional, closed forms, gradcheck, and removing the ignored voxels by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceLoss, FocalLoss
from torch import Tensor
from torch.nn import functional

from ssl_seg.errors import ConfigError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import (
    CONSISTENCY,
    LOSSES,
    compute_foreground_logit,
    compute_loss,
    consistency_kl,
    consistency_mse,
    cross_entropy,
    dice,
    focal,
)

SHAPES = [(2, 2, 6, 5), (2, 4, 4, 3, 5), (1, 2, 1, 7)]
loss_contract = pytest.mark.parametrize("name", LOSSES)
consistency_contract = pytest.mark.parametrize("name", CONSISTENCY)


def make_case(shape: tuple[int, ...], seed: int = 0, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE_INDEX
    return logits, target


def make_confident(target: Tensor, num_classes: int, scale: float = 50.0) -> Tensor:
    return scale * functional.one_hot(target, num_classes).movedim(-1, 1).float()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smooth", [1e-5, 1.0])
def test_dice_is_monais(shape: tuple[int, ...], smooth: float) -> None:
    logits, target = make_case(shape)
    monai = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=smooth, smooth_dr=smooth
    )
    torch.testing.assert_close(dice(logits, target, smooth), monai(logits, target[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
def test_dice_and_cross_entropy_are_monais(shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape)
    monai = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    total, _ = compute_loss(logits, target, {"dice": 1.0, "cross_entropy": 1.0})
    torch.testing.assert_close(total, monai(logits, target[:, None]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.5, None), (3.0, 0.25), (2.0, 0.9)])
def test_focal_is_monais(shape: tuple[int, ...], gamma: float, alpha: float | None) -> None:
    logits, target = make_case(shape)
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma, alpha=alpha)
    num_classes = shape[1]  # MONAI averages over the classes too
    torch.testing.assert_close(focal(logits, target, gamma, alpha), num_classes * monai(logits, target[:, None]))


@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_cross_entropy_is_torchs(ignored: float) -> None:
    logits, target = make_case((2, 3, 5, 6), ignored=ignored)
    torch.testing.assert_close(cross_entropy(logits, target), functional.cross_entropy(logits, target))


def test_focal_without_focus_is_the_cross_entropy() -> None:
    logits, target = make_case((2, 3, 5, 6), ignored=0.3)
    torch.testing.assert_close(focal(logits, target, gamma=0.0), cross_entropy(logits, target))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), ignored=st.floats(0.1, 0.9), shape=st.sampled_from(SHAPES))
@loss_contract
def test_ignoring_voxels_is_removing_them(name: str, seed: int, ignored: float, shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape, seed, ignored)
    valid = target != IGNORE_INDEX
    kept_logits = logits.movedim(1, -1)[valid].T[None]  # (1, K, V)
    torch.testing.assert_close(LOSSES[name](logits, target), LOSSES[name](kept_logits, target[valid][None]))


@loss_contract
def test_ignored_voxels_get_no_gradient(name: str) -> None:
    logits, target = make_case((2, 3, 6, 6), ignored=0.5)
    logits.requires_grad_()
    LOSSES[name](logits, target).backward()
    by_voxel = logits.grad.abs().sum(1)
    assert (by_voxel[target == IGNORE_INDEX] == 0).all()
    assert (by_voxel[target != IGNORE_INDEX] > 0).all()


def nothing_to_learn() -> list[tuple[Tensor, Tensor]]:
    all_ignored = make_case((2, 3, 4, 4), ignored=1.1)
    no_sample_2d = torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64)
    no_sample_3d = torch.zeros(0, 3, 2, 4, 4), torch.zeros(0, 2, 4, 4, dtype=torch.int64)
    return [all_ignored, no_sample_2d, no_sample_3d]


@loss_contract
@pytest.mark.parametrize(("logits", "target"), nothing_to_learn(), ids=["ignored", "empty2d", "empty3d"])
def test_nothing_to_learn_is_0_with_a_graph(name: str, logits: Tensor, target: Tensor) -> None:
    logits = logits.clone().requires_grad_()
    loss = LOSSES[name](logits, target)
    assert loss.item() == 0.0
    loss.backward()
    assert (logits.grad == 0).all()


@loss_contract
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_prediction_costs_nothing(name: str, shape: tuple[int, ...]) -> None:
    _, target = make_case(shape)
    assert LOSSES[name](make_confident(target, shape[1]), target).item() == pytest.approx(0.0, abs=1e-6)


@loss_contract
def test_a_wrong_prediction_costs_more_than_a_doubtful_one(name: str) -> None:
    _, target = make_case((2, 2, 6, 6))
    right = make_confident(target, 2, scale=8.0)
    losses = [LOSSES[name](sign * right, target).item() for sign in (1.0, 0.0, -1.0)]
    assert losses == sorted(losses)
    assert losses[2] > losses[1] > losses[0] > 0


@loss_contract
def test_gradients_point_the_right_way(name: str) -> None:
    logits, target = make_case((2, 4, 5, 5))
    logits.requires_grad_()
    LOSSES[name](logits, target).backward()
    assert torch.isfinite(logits.grad).all()
    # Descent raises the logit of the true class at the cost of the others: softmax gradients sum to 0 over the classes.
    assert (logits.grad.gather(1, target[:, None]) < 0).all()
    assert logits.grad.sum(1).abs().max() < 1e-6


@loss_contract
def test_training_on_the_loss_finds_the_target(name: str) -> None:
    _, target = make_case((2, 3, 4, 4))
    logits = torch.zeros(2, 3, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        LOSSES[name](logits, target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), target)


@pytest.mark.parametrize(
    "loss",
    [
        *LOSSES.values(),
        lambda x, y: focal(x, y, gamma=0.5),
        lambda x, y: focal(x, y, gamma=1.5, alpha=0.8),
        lambda x, y: dice(x, y, smooth=1e-5),
    ],
)
def test_gradcheck_in_float64(loss) -> None:
    logits, target = make_case((2, 3, 2, 3), ignored=0.3)
    logits = logits.double().requires_grad_()
    assert loss(logits, target).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@loss_contract
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    logits, target = make_case((2, 4, 6, 6), ignored=0.2)
    logits = (20 * logits).to(dtype).requires_grad_()
    loss = LOSSES[name](logits, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
    torch.testing.assert_close(loss, LOSSES[name](logits.detach().float(), target), rtol=0, atol=0)


@loss_contract
@pytest.mark.parametrize("gamma", [None, 0.5])
def test_extreme_logits_stay_finite(name: str, gamma: float | None) -> None:
    logits, target = make_case((2, 3, 4, 4), ignored=0.2)
    logits = (1e4 * logits).requires_grad_()
    loss = focal(logits, target, gamma) if gamma and name == "focal" else LOSSES[name](logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_focal_neglects_easy_voxels() -> None:
    target = torch.ones(1, 1, 2, dtype=torch.int64)
    logits = torch.tensor([[[[0.0, 0.0]], [[4.0, -1.0]]]], requires_grad=True)  # an easy voxel, a hard one
    focal(logits, target).backward()
    easy, hard = logits.grad[0, 1, 0].abs()
    focal_ratio = (easy / hard).item()
    logits.grad = None
    cross_entropy(logits, target).backward()
    easy, hard = logits.grad[0, 1, 0].abs()
    assert focal_ratio < 0.01 * (easy / hard).item()


def test_focal_alpha_raises_the_cost_of_missing_foreground() -> None:
    missed = make_confident(torch.zeros(1, 4, 4, dtype=torch.int64), 2, scale=3.0)
    positive, negative = torch.ones(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64)
    assert focal(missed, positive, alpha=0.9) == pytest.approx(0.9 * focal(missed, positive).item())
    assert focal(-missed, negative, alpha=0.9) == pytest.approx(0.1 * focal(-missed, negative).item())


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


def test_compute_loss_weighs_and_reports() -> None:
    logits, target = make_case((2, 3, 4, 4))
    logits.requires_grad_()
    total, terms = compute_loss(logits, target, {"dice": 0.5, "focal": 2.0})
    torch.testing.assert_close(total, 0.5 * dice(logits, target) + 2.0 * focal(logits, target))
    torch.testing.assert_close(terms, {"dice": dice(logits, target).detach(), "focal": focal(logits, target).detach()})
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_compute_loss_names_what_it_does_not_know() -> None:
    logits, target = make_case((1, 2, 2, 2))
    with pytest.raises(ConfigError, match=r"'dise' \(did you mean 'dice'\?\), 'xyz'; available: cross_entropy, dice"):
        compute_loss(logits, target, {"dise": 1.0, "dice": 1.0, "xyz": 1.0})
    with pytest.raises(ConfigError, match="no loss is named"):
        compute_loss(logits, target, {})


@pytest.mark.parametrize("shape", SHAPES)
def test_consistency_is_torchs(shape: tuple[int, ...]) -> None:
    student, teacher = make_case(shape)[0], make_case(shape, seed=1)[0].softmax(1)
    torch.testing.assert_close(consistency_mse(student, teacher), functional.mse_loss(student.softmax(1), teacher))
    flat_student = student.movedim(1, -1).flatten(0, -2).log_softmax(-1)
    flat_teacher = teacher.movedim(1, -1).flatten(0, -2)
    expected = functional.kl_div(flat_student, flat_teacher, reduction="batchmean")
    torch.testing.assert_close(consistency_kl(student, teacher), expected)


@consistency_contract
def test_consistency_moves_the_student_towards_a_fixed_teacher(name: str) -> None:
    student = make_case((2, 3, 4, 4))[0].requires_grad_()
    teacher = make_case((2, 3, 4, 4), seed=1)[0].softmax(1).requires_grad_()
    before = CONSISTENCY[name](student, teacher)
    before.backward()
    assert teacher.grad is None
    assert CONSISTENCY[name](student - 0.1 * student.grad, teacher) < before


@consistency_contract
def test_agreement_costs_nothing(name: str) -> None:
    logits = make_case((2, 3, 4, 4))[0].requires_grad_()
    loss = CONSISTENCY[name](logits, logits.softmax(1))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


@consistency_contract
@pytest.mark.parametrize("spatial", [(4, 4), (2, 4, 4)])
def test_consistency_of_no_sample_is_0_with_a_graph(name: str, spatial: tuple[int, ...]) -> None:
    logits = torch.zeros(0, 3, *spatial, requires_grad=True)
    loss = CONSISTENCY[name](logits, torch.zeros(0, 3, *spatial))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None


@consistency_contract
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_consistency_in_half_precision_with_a_certain_teacher(name: str, dtype: torch.dtype) -> None:
    logits, target = make_case((2, 3, 4, 4))
    logits = (20 * logits).to(dtype).requires_grad_()
    loss = CONSISTENCY[name](logits, functional.one_hot(target, 3).movedim(-1, 1).to(dtype))  # holds exact zeros
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@consistency_contract
def test_consistency_gradcheck(name: str) -> None:
    student, teacher = make_case((2, 3, 2, 2))[0].double().requires_grad_(), make_case((2, 3, 2, 2), 1)[0].softmax(1)
    assert torch.autograd.gradcheck(lambda x: CONSISTENCY[name](x, teacher), student)


@pytest.mark.parametrize("shape", SHAPES)
def test_foreground_logit_is_the_log_odds(shape: tuple[int, ...]) -> None:
    logits, _ = make_case(shape)
    log_odds = compute_foreground_logit(logits)
    assert log_odds.shape == (shape[0], *shape[2:])
    torch.testing.assert_close(log_odds.sigmoid(), 1 - logits.softmax(1)[:, 0])
    if shape[1] == 2:
        torch.testing.assert_close(log_odds, logits[:, 1] - logits[:, 0])
    assert compute_foreground_logit(logits.bfloat16()).dtype == torch.float32
