"""What losses cost at constant predictions; oracles: closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.overlap import dice
from ssl_seg.losses.trivial import compute_ranges
from ssl_seg.losses.voxelwise import cross_entropy, focal, variance

COMPONENTS = {"cross_entropy": cross_entropy, "focal": focal, "dice": dice, "variance": variance}


def make_target(share: float) -> torch.Tensor:
    return (torch.arange(1000).reshape(1, 10, 100) < 1000 * share).long()


@pytest.mark.parametrize("p", [0.05, 0.3, 0.609])
def test_ranges_are_those_of_closed_forms(p: float) -> None:
    target = make_target(p)
    ranges = compute_ranges(COMPONENTS, [(target[:, None].float(), target)], 2)
    q = 1 - p
    expected = {
        "cross_entropy": (0.0, -p * math.log(p) - q * math.log(q)),
        "focal": (0.0, -p * q**2 * math.log(p) - q * p**2 * math.log(q)),
        "dice": (0.0, 1 - 2 * p / (1 + p)),
        "variance": (1 - 4 * p * q, 1.0),
    }
    for name, (perfect, constant) in ranges.items():
        assert (perfect, constant) == pytest.approx(expected[name], abs=1e-3), name


def test_without_a_labeled_voxel_there_is_no_range() -> None:
    target = torch.full((1, 4, 4), IGNORE_INDEX)
    assert compute_ranges(COMPONENTS, [(target[:, None].float(), target)], 2) == {}
    known = make_target(0.3)
    both = compute_ranges(COMPONENTS, [(target[:, None].float(), target), (known[:, None].float(), known)], 2)
    assert both == compute_ranges(COMPONENTS, [(known[:, None].float(), known)], 2)
