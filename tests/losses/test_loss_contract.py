"""What holds for every loss: what is ignored, nothing to learn, direction of the gradient, extreme logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import SHAPES, make_case, make_confident, nothing_to_learn
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LOSSES, compute_foreground_logit, list_options

SHAPE_LOSSES = ("boundary", "hausdorff_dt", "cldice", "connectivity")
"""Losses that look at where a voxel is."""
BY_SAMPLE = ("variance", "boundary", "hausdorff_dt")
"""Losses of each sample by itself; the others take all voxels of a batch together."""
FREE = ("variance",)
"""Losses that a perfect prediction does not minimize."""
POINTWISE = sorted(set(LOSSES) - {"variance", "cldice", "connectivity", "lovasz"})
"""Losses that rise with the error of every single voxel."""

contract = pytest.mark.parametrize("name", LOSSES)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), ignored=st.floats(0.1, 0.9), shape=st.sampled_from(SHAPES))
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in {*SHAPE_LOSSES, *BY_SAMPLE}])
def test_ignoring_voxels_is_removing_them(name: str, seed: int, ignored: float, shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape, seed, ignored)
    valid = target != IGNORE_INDEX
    kept_logits = logits.movedim(1, -1)[valid].T[None]  # (1, K, V)
    torch.testing.assert_close(LOSSES[name](logits, target), LOSSES[name](kept_logits, target[valid][None]))


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), ignored=st.floats(0.1, 0.9), shape=st.sampled_from(SHAPES))
@contract
def test_ignored_voxels_have_no_influence(name: str, seed: int, ignored: float, shape: tuple[int, ...]) -> None:
    logits, target = make_case(shape, seed, ignored)
    others = torch.where((target == IGNORE_INDEX)[:, None], make_case(shape, seed + 1)[0], logits).requires_grad_()
    loss = LOSSES[name](others, target)
    torch.testing.assert_close(loss, LOSSES[name](logits, target))
    loss.backward()
    assert (others.grad.abs().sum(1)[target == IGNORE_INDEX] == 0).all()


@pytest.mark.parametrize("name", POINTWISE)
def test_all_other_voxels_have_some(name: str) -> None:
    logits, target = make_case((2, 3, 6, 6), ignored=0.5)
    logits.requires_grad_()
    LOSSES[name](logits, target).backward()
    assert (logits.grad.abs().sum(1)[target != IGNORE_INDEX] > 0).all()


@contract
@pytest.mark.parametrize(("logits", "target"), nothing_to_learn(), ids=["ignored", "empty2d", "empty3d"])
def test_nothing_to_learn_is_0_with_a_graph(name: str, logits: Tensor, target: Tensor) -> None:
    logits = logits.clone().requires_grad_()
    loss = LOSSES[name](logits, target)
    assert loss.item() == 0.0
    loss.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(FREE)))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_prediction_costs_nothing(name: str, shape: tuple[int, ...]) -> None:
    _, target = make_case(shape)
    assert LOSSES[name](make_confident(target, shape[1]), target).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(FREE)))
def test_a_wrong_prediction_costs_more_than_a_doubtful_one(name: str) -> None:
    _, target = make_case((2, 2, 6, 6))
    right = make_confident(target, 2, scale=8.0)
    losses = [LOSSES[name](sign * right, target).item() for sign in (1.0, 0.0, -1.0)]
    assert losses == sorted(losses)
    assert losses[2] > losses[1] > losses[0] > 0


@pytest.mark.parametrize("name", POINTWISE)
def test_gradients_point_the_right_way(name: str) -> None:
    logits, target = make_case((2, 2, 5, 5))
    logits = (0.3 * logits).requires_grad_()  # certain voxels would have a gradient of 0
    LOSSES[name](logits, target).backward()
    # Descent raises the logit of the true class at the cost of the other: softmax gradients sum to 0 over the classes.
    assert (logits.grad.gather(1, target[:, None]) < 0).all()
    assert logits.grad.sum(1).abs().max() < 1e-6


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(FREE) - {"cldice", "connectivity"}))
def test_training_on_the_loss_finds_the_target(name: str) -> None:
    _, target = make_case((2, 3, 4, 4))
    assert torch.equal(train_logits(name, target, 3).argmax(1), target)


@pytest.mark.parametrize("name", ["cldice", "connectivity"])
def test_training_on_a_topological_loss_finds_lines(name: str) -> None:
    target = torch.zeros(1, 9, 9, dtype=torch.int64)
    target[0, 4, 1:8] = 1
    found = train_logits(name, target, 2).argmax(1)
    assert (found[target == 1] == 1).all()


def train_logits(name: str, target: Tensor, num_classes: int) -> Tensor:
    logits = torch.zeros(len(target), num_classes, *target.shape[1:], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        LOSSES[name](logits, target).backward()
        optimizer.step()
    return logits.detach()


@contract
@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_extreme_logits_stay_finite(name: str, scale: float) -> None:
    logits, target = make_case((2, 3, 4, 4), ignored=0.2)
    logits = (scale * logits).requires_grad_()
    loss = LOSSES[name](logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cldice"}))
def test_axes_can_be_exchanged(name: str) -> None:
    """No axis is special, and 3D is the same code: a volume of one slice has the loss of the slice."""
    logits, target = make_case((2, 3, 6, 5), ignored=0.2)
    expected = LOSSES[name](logits, target)
    torch.testing.assert_close(LOSSES[name](logits.mT, target.mT), expected)
    torch.testing.assert_close(LOSSES[name](logits[:, :, None], target[:, None]), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_foreground_logit_is_the_log_odds(shape: tuple[int, ...]) -> None:
    logits, _ = make_case(shape)
    log_odds = compute_foreground_logit(logits)
    assert log_odds.shape == (shape[0], *shape[2:])
    torch.testing.assert_close(log_odds.sigmoid(), 1 - logits.softmax(1)[:, 0])
    if shape[1] == 2:
        torch.testing.assert_close(log_odds, logits[:, 1] - logits[:, 0])
    assert compute_foreground_logit(logits.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"boundary", "hausdorff_dt"}))
def test_no_value_is_read_back_from_the_device(name: str) -> None:
    """On a GPU each read would make the host wait in every step; the meta device has no values to read."""
    logits = torch.zeros(2, 3, 8, 8, device="meta", requires_grad=True)
    target = torch.zeros(2, 8, 8, dtype=torch.int64, device="meta")
    LOSSES[name](logits, target).backward()
    if "batch" in list_options(name):
        LOSSES[name](logits, target, batch=False).backward()
    assert logits.grad is not None
