"""Every loss in every situation against a reference written without torch; all values and gradients finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import make_case, make_confident
from reference import REFERENCES, compute_softmax
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LOSSES

SPATIAL = {"2d": (9, 8), "3d": (5, 4, 6)}


def make_blob(spatial: tuple[int, ...]) -> Tensor:
    """Two samples, each with an object away from the edge."""
    target = torch.zeros(2, *spatial, dtype=torch.int64)
    target[(0, *(slice(1, size - 1) for size in spatial))] = 1
    target[(1, *(slice(1, 3) for _ in spatial))] = 1
    return target


def make_situations(spatial: tuple[int, ...]) -> dict[str, tuple[Tensor, Tensor]]:
    blob = make_blob(spatial)
    empty, full = torch.zeros_like(blob), torch.ones_like(blob)
    doubtful, _ = make_case((2, 2, *spatial), seed=3)
    four, target_four = make_case((2, 4, *spatial), seed=4)
    ignored, target_ignored = make_case((2, 3, *spatial), seed=5, ignored=0.3)
    one_sample_ignored = blob.clone()
    one_sample_ignored[1] = IGNORE_INDEX
    return {
        "perfect": (make_confident(blob, 2), blob),
        "doubtful": (doubtful, blob),
        "empty/empty": (make_confident(empty, 2), empty),
        "empty target, object predicted": (make_confident(blob, 2), empty),
        "object missed": (make_confident(empty, 2, scale=20.0), blob),
        "all positive": (make_confident(full, 2, scale=20.0), blob),
        "all positive, empty target": (make_confident(full, 2, scale=20.0), empty),
        "target full": (doubtful, full),
        "K=4": (four, target_four),
        "K=4, two classes absent": (four, blob),
        "ignore": (ignored, target_ignored),
        "a sample ignored": (doubtful, one_sample_ignored),
    }


SITUATIONS = [(dims, name) for dims, spatial in SPATIAL.items() for name in make_situations(spatial)]


by_situation = pytest.mark.parametrize(("dims", "situation"), SITUATIONS, ids=lambda value: value)


@by_situation
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_their_references(name: str, dims: str, situation: str) -> None:
    logits, target = make_situations(SPATIAL[dims])[situation]
    logits.requires_grad_()
    loss = LOSSES[name](logits, target)
    loss.backward()
    assert torch.isfinite(logits.grad).all()
    expected = REFERENCES[name](compute_softmax(logits.detach().double().numpy()), target.numpy())
    assert np.isfinite(expected)
    assert loss.item() == pytest.approx(expected, rel=2e-5, abs=2e-6)


@by_situation
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dims: str, situation: str, dtype: torch.dtype) -> None:
    logits, target = make_situations(SPATIAL[dims])[situation]
    for name, function in LOSSES.items():
        half = logits.to(dtype).requires_grad_()
        loss = function(half, target)
        loss.backward()
        assert loss.dtype == torch.float32, name
        assert torch.isfinite(half.grad).all(), name
        assert torch.equal(loss, function(half.detach().float(), target)), name


def test_every_loss_has_a_reference() -> None:
    assert set(REFERENCES) == set(LOSSES)


@pytest.mark.parametrize("dims", SPATIAL)
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"variance"}))
def test_right_predictions_cost_nothing_and_wrong_ones_do(name: str, dims: str) -> None:
    costs = {key: LOSSES[name](*case).item() for key, case in make_situations(SPATIAL[dims]).items()}
    for right in ("perfect", "empty/empty"):
        assert costs[right] == pytest.approx(0.0, abs=1e-6), right
    wrong = ["empty target, object predicted", "object missed", "all positive", "all positive, empty target"]
    if name == "cldice":  # blind to what has no skeleton, as its docstring says
        assert [costs.pop(wrong.pop()), costs.pop(wrong.pop())] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert all(costs[key] > 0.05 for key in wrong), costs


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck_in_float64(name: str) -> None:
    for shape in ((2, 3, 3, 4), (1, 2, 3, 2, 3)):
        logits, target = make_case(shape, ignored=0.3)
        logits = logits.double().requires_grad_()
        assert LOSSES[name](logits, target).dtype == torch.float64
        assert torch.autograd.gradcheck(lambda x, y=target: LOSSES[name](x, y), logits)
