"""Logits and targets for the tests of losses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ssl_seg.labels import IGNORE_INDEX

SHAPES = [(2, 2, 6, 5), (2, 4, 4, 3, 5), (1, 2, 1, 7)]


def make_case(shape: tuple[int, ...], seed: int = 0, ignored: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE_INDEX
    return logits, target


def make_confident(target: Tensor, num_classes: int, scale: float = 50.0) -> Tensor:
    return scale * functional.one_hot(target, num_classes).movedim(-1, 1).float()


def nothing_to_learn() -> list[tuple[Tensor, Tensor]]:
    all_ignored = make_case((2, 3, 4, 4), ignored=1.1)
    no_sample_2d = torch.zeros(0, 3, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64)
    no_sample_3d = torch.zeros(0, 3, 2, 4, 4), torch.zeros(0, 2, 4, 4, dtype=torch.int64)
    return [all_ignored, no_sample_2d, no_sample_3d]
