"""Oracles: torch.nn.functional, scipy, closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from loss_cases import SHAPES, make_case
from scipy.spatial.distance import jensenshannon
from torch import Tensor
from torch.nn import functional

from ssl_seg.losses import CONSISTENCY
from ssl_seg.losses.consistency import (
    consistency_cross_entropy,
    consistency_dice,
    consistency_js,
    consistency_kl,
    consistency_mse,
)

contract = pytest.mark.parametrize("name", CONSISTENCY)
shapes = pytest.mark.parametrize("shape", SHAPES)
MEANS = sorted(set(CONSISTENCY) - {"dice"})
"""Distances that are a mean over voxels."""


def make_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    return make_case(shape, seed)[0], make_case(shape, seed + 1)[0].softmax(1)


@shapes
def test_mse_kl_and_cross_entropy_are_torchs(shape: tuple[int, ...]) -> None:
    student, teacher = make_pair(shape)
    torch.testing.assert_close(consistency_mse(student, teacher), functional.mse_loss(student.softmax(1), teacher))
    flat_student = student.movedim(1, -1).flatten(0, -2).log_softmax(-1)
    flat_teacher = teacher.movedim(1, -1).flatten(0, -2)
    expected = functional.kl_div(flat_student, flat_teacher, reduction="batchmean")
    torch.testing.assert_close(consistency_kl(student, teacher), expected)
    expected = functional.cross_entropy(student, teacher.argmax(1))
    torch.testing.assert_close(consistency_cross_entropy(student, teacher), expected)


@shapes
def test_js_is_scipys(shape: tuple[int, ...]) -> None:
    student, teacher = make_pair(shape)
    distances = jensenshannon(student.double().softmax(1).numpy(), teacher.double().numpy(), axis=1)
    assert consistency_js(student, teacher).item() == pytest.approx(np.mean(distances**2), rel=1e-5)


def test_js_is_symmetric_and_bounded_by_log_2() -> None:
    student, teacher = make_pair((2, 3, 4, 4))
    torch.testing.assert_close(consistency_js(student, teacher), consistency_js(teacher.log(), student.softmax(1)))
    opposite = functional.one_hot(torch.ones(1, 4, 4, dtype=torch.int64), 2).movedim(-1, 1).float()
    assert consistency_js(200 * (1 - opposite), opposite).item() == pytest.approx(math.log(2))


@shapes
def test_dice_is_its_formula(shape: tuple[int, ...]) -> None:
    student, teacher = make_pair(shape)
    p, q = student.double().softmax(1).numpy(), teacher.double().numpy()
    expected = [
        1 - (2 * (p[:, k] * q[:, k]).sum() + 1) / ((p[:, k] ** 2).sum() + (q[:, k] ** 2).sum() + 1)
        for k in range(1, shape[1])
    ]
    assert consistency_dice(student, teacher).item() == pytest.approx(np.mean(expected), rel=1e-5)


@contract
def test_moves_the_student_towards_a_fixed_teacher(name: str) -> None:
    student, teacher = make_pair((2, 3, 4, 4))
    student.requires_grad_(), teacher.requires_grad_()
    before = CONSISTENCY[name](student, teacher)
    before.backward()
    assert teacher.grad is None
    assert CONSISTENCY[name](student - 0.1 * student.grad, teacher) < before


@pytest.mark.parametrize("name", sorted(set(CONSISTENCY) - {"cross_entropy"}))
def test_agreement_costs_nothing(name: str) -> None:
    logits = make_case((2, 3, 4, 4))[0].requires_grad_()
    loss = CONSISTENCY[name](logits, logits.softmax(1))
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_cross_entropy_makes_the_student_surer_than_the_teacher() -> None:
    logits = make_case((2, 3, 4, 4))[0].requires_grad_()
    loss = consistency_cross_entropy(logits, logits.softmax(1))
    loss.backward()
    assert loss > 0.1
    top = logits.argmax(1, keepdim=True)
    assert (logits.grad.gather(1, top) < 0).all()


@pytest.mark.parametrize("name", MEANS)
def test_rejected_voxels_count_0_in_a_mean_over_all(name: str) -> None:
    student, teacher = make_pair((2, 3, 4, 5))
    accepted = torch.zeros(2, 4, 5, dtype=torch.bool)
    accepted[0, 1], accepted[1, :, 2] = True, True
    kept = [CONSISTENCY[name](student[n, :, y, x][None, :, None], teacher[n, :, y, x][None, :, None])
            for n, y, x in accepted.nonzero().tolist()]  # fmt: skip
    torch.testing.assert_close(CONSISTENCY[name](student, teacher, accepted), torch.stack(kept).sum() / 40)


@contract
def test_acceptance(name: str) -> None:
    student, teacher = make_pair((2, 3, 4, 5))
    student.requires_grad_()
    everything = torch.ones(2, 4, 5, dtype=torch.bool)
    torch.testing.assert_close(CONSISTENCY[name](student, teacher, everything), CONSISTENCY[name](student, teacher))
    nothing = CONSISTENCY[name](student, teacher, ~everything)
    nothing.backward()
    assert nothing.item() == 0.0
    assert (student.grad == 0).all()
    half = everything.clone()
    half[:, ::2] = False
    CONSISTENCY[name](student, teacher, half).backward()
    assert (student.grad.abs().sum(1) > 0).equal(half)


@contract
@pytest.mark.parametrize("spatial", [(4, 4), (2, 4, 4)])
def test_no_sample_is_0_with_a_graph(name: str, spatial: tuple[int, ...]) -> None:
    logits = torch.zeros(0, 3, *spatial, requires_grad=True)
    for accepted in (None, torch.zeros(0, *spatial, dtype=torch.bool)):
        loss = CONSISTENCY[name](logits, torch.zeros(0, 3, *spatial), accepted)
        loss.backward()
        assert loss.item() == 0.0
        assert logits.grad is not None


@contract
@pytest.mark.parametrize("scale", [20.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_and_extremes_with_a_certain_teacher(name: str, dtype: torch.dtype, scale: float) -> None:
    logits, target = make_case((2, 3, 4, 4))
    logits = (scale * logits.clamp(-3, 3)).to(dtype).requires_grad_()
    loss = CONSISTENCY[name](logits, functional.one_hot(target, 3).movedim(-1, 1).to(dtype))  # holds exact zeros
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@contract
def test_gradcheck(name: str) -> None:
    student, teacher = make_pair((2, 3, 2, 2))
    assert torch.autograd.gradcheck(lambda x: CONSISTENCY[name](x, teacher), student.double().requires_grad_())


@contract
def test_no_value_is_read_back_from_the_device(name: str) -> None:
    student = torch.zeros(2, 3, 4, 4, device="meta", requires_grad=True)
    for accepted in (None, torch.zeros(2, 4, 4, dtype=torch.bool, device="meta")):
        CONSISTENCY[name](student, torch.zeros(2, 3, 4, 4, device="meta"), accepted).backward()
