"""What costs do to what is learned: a model of one logit a bin, on labels that contradict each other.

Each row of an image is a bin whose voxels share a logit; a share of its labels is foreground. A cost is translated
rightly if the foreground that the model has learned in the end falls with fp_cost and rises with fn_cost. The papyrus
report (docs/recipes.md, row A8) raised a foreground class weight in order to get less foreground.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from ssl_seg.losses import LOSSES, LossFn, get_loss, list_costs
from ssl_seg.losses.overlap import focal_tversky, tversky
from ssl_seg.losses.voxelwise import cross_entropy, focal

SHARES = torch.tensor([0.05, 0.15, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9])
WIDTH = 20
WITH_COSTS = [name for name in LOSSES if list_costs(name)]


@cache
def make_target() -> Tensor:
    """(1, bins, WIDTH): foreground in a share of each row, at random places."""
    draw = torch.Generator().manual_seed(0)
    order = torch.rand(len(SHARES), WIDTH, generator=draw).argsort(dim=1)
    return (order < (SHARES * WIDTH).round()[:, None]).long()[None]


def learn(loss: Callable[[Tensor, Tensor], Tensor], steps: int = 120) -> Tensor:
    """Return the foreground probability of each bin after training."""
    bins = torch.zeros(len(SHARES), requires_grad=True)
    optimizer = torch.optim.Adam([bins], lr=0.2)
    for _ in range(steps):
        log_odds = bins[:, None].expand(-1, WIDTH)
        optimizer.zero_grad()
        loss(torch.stack([-log_odds / 2, log_odds / 2])[None], make_target()).backward()
        optimizer.step()
    return bins.detach().sigmoid()


def learn_masses(losses: list[LossFn]) -> list[float]:
    return [learn(loss).mean().item() for loss in losses]


def is_rising(values: list[float], margin: float = 0.01) -> bool:
    return all(b > a + margin for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("name", WITH_COSTS)
def test_costs_do_what_they_say(name: str) -> None:
    dearer_misses = learn_masses([get_loss(name, fn_cost=cost) for cost in (0.4, 1.0, 2.5)])
    assert is_rising(dearer_misses), dearer_misses
    dearer_inventions = learn_masses([get_loss(name, fp_cost=cost) for cost in (2.5, 1.0, 0.4)])
    assert is_rising(dearer_inventions), dearer_inventions


def test_all_losses_that_can_take_costs_do() -> None:
    assert set(LOSSES) - set(WITH_COSTS) == {"lovasz", "cldice", "variance"}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: partial(cross_entropy, class_weights=(1.0, x)), id="class_weights of foreground"),
        pytest.param(lambda x: partial(cross_entropy, class_weights=(1 / x, 1.0)), id="class_weights of background"),
        pytest.param(lambda x: partial(cross_entropy, pos_weight=x), id="pos_weight"),
        pytest.param(lambda x: partial(focal, alpha=x / (1 + x)), id="focal alpha"),
        pytest.param(lambda x: partial(tversky, beta=0.5 * x, alpha=0.5), id="tversky beta"),
        pytest.param(lambda x: partial(tversky, beta=0.5, alpha=0.5 / x), id="tversky alpha"),
        pytest.param(lambda x: partial(focal_tversky, beta=0.5 * x, alpha=0.5), id="focal_tversky beta"),
        pytest.param(lambda x: partial(focal_tversky, beta=0.5, alpha=0.5 / x), id="focal_tversky alpha"),
    ],
)
def test_more_weight_on_foreground_makes_more_foreground(make: Callable[[float], LossFn]) -> None:
    masses = learn_masses([make(factor) for factor in (0.4, 1.0, 2.5)])
    assert is_rising(masses), masses


def test_the_test_sees_costs_that_are_exchanged() -> None:
    exchanged = [lambda x, y, cost=cost: cross_entropy(x, y, fp_cost=cost) for cost in (0.4, 1.0, 2.5)]
    assert not is_rising(learn_masses(exchanged))


@pytest.mark.parametrize(("fp_cost", "fn_cost"), [(1.0, 1.0), (3.0, 1.0), (1.0, 4.0)])
def test_cross_entropy_learns_the_odds_times_the_ratio_of_costs(fp_cost: float, fn_cost: float) -> None:
    learned = learn(partial(cross_entropy, fp_cost=fp_cost, fn_cost=fn_cost), steps=400)
    shares = make_target()[0].float().mean(1)
    expected = fn_cost * shares / (fn_cost * shares + fp_cost * (1 - shares))
    torch.testing.assert_close(learned, expected, atol=2e-3, rtol=0)


def test_costs_are_not_renormalized() -> None:
    """Twice both costs is twice the loss for the means over voxels: beside other losses they weigh more."""
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 2, len(SHARES), WIDTH, generator=draw)
    for name in ("cross_entropy", "focal", "boundary", "hausdorff_dt"):
        plain = LOSSES[name](logits, make_target())
        torch.testing.assert_close(LOSSES[name](logits, make_target(), fp_cost=2.0, fn_cost=2.0), 2 * plain)
