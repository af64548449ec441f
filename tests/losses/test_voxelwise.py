"""Oracles: torch.nn.functional, MONAI, closed forms."""

from __future__ import annotations

import pytest
import torch
from loss_cases import SHAPES, make_case, make_confident
from monai.losses import FocalLoss
from torch.nn import functional

from ssl_seg.errors import ConfigError
from ssl_seg.losses.voxelwise import cross_entropy, focal, variance


@pytest.mark.parametrize("weights", [None, (0.3, 2.0, 1.0), (0.0, 1.0, 0.1)])
@pytest.mark.parametrize("ignored", [0.0, 0.4])
def test_cross_entropy_is_torchs(ignored: float, weights: tuple[float, ...] | None) -> None:
    logits, target = make_case((2, 3, 5, 6), ignored=ignored)
    expected = functional.cross_entropy(logits, target, weight=None if weights is None else torch.tensor(weights))
    torch.testing.assert_close(cross_entropy(logits, target, class_weights=weights), expected)


@pytest.mark.parametrize("pos_weight", [0.2, 1.0, 5.0])
def test_pos_weight_is_that_of_the_binary_cross_entropy(pos_weight: float) -> None:
    logits, target = make_case((2, 2, 5, 6))
    expected = functional.binary_cross_entropy_with_logits(
        logits[:, 1] - logits[:, 0], target.float(), pos_weight=torch.tensor(pos_weight)
    )
    torch.testing.assert_close(cross_entropy(logits, target, pos_weight=pos_weight), expected)
    torch.testing.assert_close(cross_entropy(logits, target, fn_cost=pos_weight), expected)


def test_pos_weight_weighs_every_foreground_class() -> None:
    logits, target = make_case((2, 4, 5, 6), ignored=0.2)
    by_voxel = functional.cross_entropy(logits, target, reduction="none")
    expected = (by_voxel * torch.where(target > 0, 6.0, 0.5)).sum() / (target >= 0).sum()
    torch.testing.assert_close(cross_entropy(logits, target, pos_weight=3.0, fn_cost=2.0, fp_cost=0.5), expected)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 2.0, 3.0, 4.0), (0.0, 0.0, 0.0)])
def test_class_weights_that_do_not_fit_the_classes(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=r"class_weights = \[.*\]: one weight is needed for each of the 3 classes"):
        cross_entropy(*make_case((2, 3, 5, 6)), class_weights=weights)


def test_class_weights_of_absent_classes_only() -> None:
    logits, target = torch.zeros(1, 3, 2, 2, requires_grad=True), torch.ones(1, 2, 2, dtype=torch.int64)
    loss = cross_entropy(logits, target, class_weights=(1.0, 0.0, 1.0))
    loss.backward()
    assert loss.item() == 0.0  # torch gives NaN
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, None), (0.5, None), (3.0, 0.25), (2.0, 0.9)])
def test_focal_is_monais(shape: tuple[int, ...], gamma: float, alpha: float | None) -> None:
    logits, target = make_case(shape)
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=gamma, alpha=alpha)
    num_classes = shape[1]  # MONAI averages over the classes too
    torch.testing.assert_close(focal(logits, target, gamma, alpha), num_classes * monai(logits, target[:, None]))


def test_focal_without_focus_is_the_cross_entropy() -> None:
    logits, target = make_case((2, 3, 5, 6), ignored=0.3)
    costs = {"fp_cost": 0.5, "fn_cost": 3.0}
    torch.testing.assert_close(focal(logits, target, gamma=0.0, **costs), cross_entropy(logits, target, **costs))


@pytest.mark.parametrize(("gamma", "alpha"), [(0.5, None), (1.5, 0.8)])
def test_focal_with_other_exponents(gamma: float, alpha: float | None) -> None:
    logits, target = make_case((2, 3, 2, 3), ignored=0.3)
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: focal(x, target, gamma, alpha), logits)
    extreme = (1e4 * logits.detach().float()).requires_grad_()
    focal(extreme, target, gamma, alpha).backward()
    assert torch.isfinite(extreme.grad).all()


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


class TestVariance:
    @pytest.mark.parametrize("num_classes", [2, 4])
    @pytest.mark.parametrize("level", [-30.0, -1.3, 0.0, 0.4, 7.0])
    def test_is_exactly_1_on_a_constant_output(self, level: float, num_classes: int) -> None:
        logits = torch.zeros(2, num_classes, 16, 16)
        logits[:, 0] = level
        assert variance(logits, torch.zeros(2, 16, 16, dtype=torch.int64)).item() == 1.0

    @pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
    def test_is_not_0_for_a_perfect_prediction(self, share: float) -> None:
        target = (torch.arange(64).view(1, 8, 8) < 64 * share).long()
        loss = variance(make_confident(target, 2), target)
        assert loss.item() == pytest.approx(1 - 4 * share * (1 - share), abs=1e-6)
        assert 0.0 <= loss.item() <= 1.0

    @pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
    def test_is_bounded(self, scale: float) -> None:
        for seed in range(20):
            logits, target = make_case((2, 3, 7, 5), seed=seed, ignored=0.2)
            assert 0.0 <= variance(scale * logits, target).item() <= 1.0

    def test_rounding_does_not_pass_the_bounds(self) -> None:
        sizes = (3917, 3919, 9999, 99_999)
        for target in (torch.arange(size).view(1, -1) % 2 for size in sizes):  # 0 but for one voxel in `size`
            assert 0.0 <= variance(make_confident(target, 2, scale=100.0), target).item() < 1e-6

    def test_the_figures_of_the_source(self) -> None:
        """Row A13: probabilities with a standard deviation of 0.0698 have a variance loss of 0.9805."""
        probs = 0.6267 + 0.0698 * torch.tensor([-1.0, 1.0]).repeat(32)
        logits = torch.stack([torch.zeros(64), torch.logit(probs)]).view(1, 2, 8, 8)
        assert variance(logits, torch.zeros(1, 8, 8, dtype=torch.int64)).item() == pytest.approx(0.9805, abs=5e-5)
