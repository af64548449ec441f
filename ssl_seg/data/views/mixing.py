"""Patches of a batch put into one another: CutMix of unlabeled patches, copy-paste of labeled foreground.

Both are a ``Mix``: which patch each voxel comes from, always at its own position. What is done to the images can so be
done to everything else that belongs to them: targets, probabilities, masks.

Shapes: N patches, C channels, *P a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX

CUTMIX_SHARE = 0.5
"""Volume of a CutMix box in patches, as French et al. have it; its aspect ratio is random."""


@dataclass(frozen=True)
class Mix:
    """``source`` (N,) int64 is the patch that patch n takes its voxels from where ``mask`` (N,*P) bool is set."""

    source: Tensor
    mask: Tensor

    def apply(self, patches: Tensor) -> Tensor:
        """Return patches (N,*P) or (N,C,*P) with the voxels of their sources in them; the input is not changed."""
        mask = self.mask if patches.ndim == self.mask.ndim else self.mask.unsqueeze(1)
        return torch.where(mask, patches[self.source], patches)


def make_cutmix(count: int, patch_size: Sequence[int], probability: float, rng: np.random.Generator) -> Mix | None:
    """Return a mix of ``count`` patches: each gets a box of another one with this probability.

    CutMix (Yun et al. 2019, arXiv:1905.04899) for segmentation (French et al. 2020, arXiv:1906.01916). The box covers
    half a patch, has a random shape and lies inside.

    Returns:
        The mix, or None where nothing is mixed: a single patch has no other.
    """
    chosen = rng.random(count) < probability
    if count < 2 or not chosen.any():
        return None
    mask = np.zeros((count, *patch_size), bool)
    for index in np.flatnonzero(chosen):
        mask[index][_draw_box(patch_size, rng)] = True
    return Mix(torch.from_numpy(_draw_partners(count, rng)), torch.from_numpy(mask))


def make_copy_paste(target: Tensor, probability: float, rng: np.random.Generator) -> Mix | None:
    """Return a mix of labeled patches: each gets the foreground of another one with this probability.

    Copy-paste (Ghiasi et al. 2021, arXiv:2012.07177), with all of the foreground and without the rescaling, which the
    geometry of the views has done already. Ignored voxels and background are not pasted.

    Args:
        target: (N,*P) int64.
        probability: probability that a patch gets something.

    Returns:
        The mix, or None where nothing is pasted.
    """
    count = len(target)
    chosen = rng.random(count) < probability
    if count < 2 or not chosen.any():
        return None
    source = torch.from_numpy(_draw_partners(count, rng))
    pasted = target[source]
    mask = (pasted > 0) & (pasted != IGNORE_INDEX)
    mask[torch.from_numpy(~chosen)] = False
    return Mix(source, mask) if mask.any() else None


def _draw_partners(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return another index for each index: the patches form one random cycle."""
    cycle = rng.permutation(count)
    partners = np.empty(count, np.int64)
    partners[cycle] = np.roll(cycle, 1)
    return partners


def _draw_box(patch_size: Sequence[int], rng: np.random.Generator) -> tuple[slice, ...]:
    """Return a box of random shape that fills ``CUTMIX_SHARE`` of a patch, as nearly as whole voxels allow."""
    # The logarithms of the sides' shares are a random split of the logarithm of the volume's: none exceeds the patch.
    shares = CUTMIX_SHARE ** rng.dirichlet(np.ones(len(patch_size)))
    sides = [max(1, round(share * size)) for share, size in zip(shares, patch_size, strict=True)]
    starts = [int(rng.integers(size - side + 1)) for size, side in zip(patch_size, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))
