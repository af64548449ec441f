"""Patches with hidden blocks, and the error of what a network paints there.

Masked autoencoding (He et al. 2022) with convolutions: three quarters of the blocks of a patch become 0, the mean of
its image, and only what was hidden is scored. Voxels without data, and those outside the image, are never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ssl_seg.config import AugmentConfig
from ssl_seg.data.loader import Batch
from ssl_seg.data.sampling import CaseStream, choose_box, choose_tile, derive_rng, locate_box
from ssl_seg.data.store import CaseStore, LoadedCase, cut_unit
from ssl_seg.data.views.geometry import draw_geometry
from ssl_seg.labels import IGNORE_INDEX

HIDDEN_SHARE = 0.75
"""Share of hidden blocks (He et al. 2022)."""
BLOCK = {2: (16, 16), 3: (4, 8, 8)}
"""Size of a block by number of axes, in voxels; fewer along z, where volumes are mostly thinner and coarser."""
LEAST_BLOCKS = 4
"""Blocks along an axis of a patch that is long enough: in a smaller patch the blocks are smaller."""
VISIBLE, HIDDEN = 0, 1
"""Values of the target; ``IGNORE_INDEX`` where there is no data."""
MASKED_STREAM, MASKED_PROBE_STREAM = 7, 8


def draw_blocks(patch_size: Sequence[int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which voxels (*P) of a patch to hide: a share ``HIDDEN_SHARE`` of its blocks, to the nearest block.

    The blocks begin at the corner of the patch; the last ones end with it.
    """
    block = [min(b, max(1, s // LEAST_BLOCKS)) for b, s in zip(BLOCK[len(patch_size)], patch_size, strict=True)]
    counts = [-(-s // b) for s, b in zip(patch_size, block, strict=True)]
    hidden: NDArray[np.bool_] = rng.permutation(prod(counts)) < round(HIDDEN_SHARE * prod(counts))
    grid = hidden.reshape(counts)
    for axis, size in enumerate(block):
        grid = np.repeat(grid, size, axis=axis)
    return grid[tuple(slice(size) for size in patch_size)]


def make_masked_batch(
    parts: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]], case_ids: Sequence[str]
) -> Batch:
    """Return a batch for masked reconstruction.

    ``image`` (N,C,*P) is what the network sees, ``weak`` the whole patches, ``target`` (N,*P) is ``HIDDEN`` where it is
    scored, ``VISIBLE`` where it sees the image, ``IGNORE_INDEX`` where there is none. ``strong`` is empty.

    Args:
        parts: for each patch, z-scores (C,*P), where (*P) the image has data, and which voxels (*P) to hide.
        case_ids: case of each patch.
    """
    whole, data, covered = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*parts, strict=True))
    target = torch.where(data, covered.long(), IGNORE_INDEX)
    return Batch(whole.masked_fill(covered.unsqueeze(1), 0.0), target, whole, (), tuple(case_ids), ())


@dataclass(frozen=True)
class MaskedSource(Dataset[Batch]):
    """Item ``step`` is the batch of that step: a pure function of (seed, step).

    Args:
        store: reads cases.
        ids: cases of the training pool.
        count: patches of a batch.
        patch_size: (*P).
        augment: says which geometry a patch may have.
        seed: seed of the run.
    """

    store: CaseStore
    ids: tuple[str, ...]
    count: int
    patch_size: tuple[int, ...]
    augment: AugmentConfig
    seed: int

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step >= 0."""
        cases = CaseStream(self.ids, self.seed, MASKED_STREAM)
        ids = [cases[step * self.count + slot] for slot in range(self.count)]
        parts = [self._make_patch(case_id, step, slot) for slot, case_id in enumerate(ids)]
        return make_masked_batch(parts, ids)

    def _make_patch(
        self, case_id: str, step: int, slot: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        rng = derive_rng(self.seed, step, MASKED_STREAM, slot)
        case = self.store.load(case_id)
        start = choose_box(case.image.shape[1:], self.patch_size, rng)
        geometry = draw_geometry(self.patch_size, rng, self.augment, self.store.find_spacing(case_id))
        box = geometry.locate(start)
        unit = geometry.move_image(cut_unit(case, box, geometry.size))
        data = geometry.move_target(find_data(case, box, geometry.size).astype(np.int64)) > 0
        return case.intensity.unit_to_zscore(unit), data, draw_blocks(self.patch_size, rng)


def make_masked_probe(
    store: CaseStore, ids: Sequence[str], count: int, patch_size: tuple[int, ...], seed: int
) -> Batch:
    """Return ``count`` fixed patches with fixed hidden blocks, walked over the cases in turn."""
    cases = CaseStream(tuple(ids), seed, MASKED_PROBE_STREAM)
    parts = []
    for index in range(count):
        case, rng = store.load(cases[index]), derive_rng(seed, MASKED_PROBE_STREAM, index)
        start, _ = choose_tile(case.image.shape[1:], patch_size, rng)
        patch = case.intensity.unit_to_zscore(cut_unit(case, start, patch_size))
        parts.append((patch, find_data(case, start, patch_size), draw_blocks(patch_size, rng)))
    return make_masked_batch(parts, [cases[index] for index in range(count)])


def find_data(case: LoadedCase, start: Sequence[int], size: Sequence[int]) -> NDArray[np.bool_]:
    """Return where (*size) a box lies inside the image and all channels have data."""
    inside, placed = locate_box(start, size, case.image.shape[1:])
    data = np.zeros(tuple(size), bool)
    cut = case.image[(slice(None), *inside)] if case.image.dtype.kind == "f" else None
    data[placed] = True if cut is None else ~np.isnan(cut).any(axis=0)
    return data


def compute_masked_loss(output: Tensor, batch: Batch) -> Tensor:
    """Return the mean squared error over the hidden voxels with data; 0 where there are none.

    Args:
        output: (N,>=C,*P) of the network; further channels are not looked at.
        batch: see ``make_masked_batch``.
    """
    scored = (batch.target == HIDDEN).unsqueeze(1)
    errors = torch.where(scored, output[:, : batch.weak.shape[1]].float() - batch.weak, 0.0).square()
    return errors.sum() / (scored.sum() * batch.weak.shape[1]).clamp(min=1)


@dataclass(frozen=True)
class Look:
    """How well a network paints what is hidden in a set of patches. Errors are means over hidden voxels, in z-scores
    squared."""

    error: float
    """Error of the network."""
    baseline: float
    """Error of the best visible constant: the mean of the visible voxels of each patch and channel."""
    spread: float
    """Standard deviation of the output over the hidden voxels of a patch, as a share of that of the image."""

    @property
    def gain(self) -> float:
        """Share of the baseline's error that the network avoids; 0 or less is no better than a constant."""
        return 1 - self.error / self.baseline if self.baseline > 0 else 0.0


def compute_look(output: Tensor, batch: Batch) -> Look:
    """Return how well ``output`` (N,>=C,*P) paints the hidden voxels of a batch."""
    whole = batch.weak
    painted = output[:, : whole.shape[1]].float()
    visible, scored = ((batch.target == value).unsqueeze(1).expand_as(whole) for value in (VISIBLE, HIDDEN))
    guess = _mean_where(whole, visible).expand_as(whole)
    deviations = [_mean_where((values - _mean_where(values, scored)).square(), scored) for values in (painted, whole)]
    spread, true_spread = (float(deviation.sqrt().mean()) for deviation in deviations)
    differences = [torch.where(scored, values - whole, 0.0).cpu() for values in (painted, guess)]
    errors = [values.double().square().sum() for values in differences]  # on the CPU: mps has no float64
    error, baseline = (float(total / scored.sum().cpu().clamp(min=1)) for total in errors)
    return Look(error, baseline, spread / true_spread if true_spread > 0 else 0.0)


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the voxels of a mask, of each patch and channel: (N,C,1,...); 0 where there are none."""
    axes = tuple(range(2, values.ndim))
    total = torch.where(mask, values, 0.0).sum(dim=axes, keepdim=True)
    return total / mask.sum(dim=axes, keepdim=True).clamp(min=1)
