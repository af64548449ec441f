from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssl_seg.data.sampling import derive_rng
from ssl_seg.data.views.mixing import Mix, make_copy_paste, make_cutmix
from ssl_seg.labels import IGNORE_INDEX

PATCHES = {2: (12, 9), 3: (6, 9, 12)}
sizes = st.lists(st.integers(1, 12), min_size=2, max_size=3)


def paste_by_hand(patches: Tensor, source: Tensor, use: Callable[[int, tuple[int, ...]], bool]) -> Tensor:
    """The oracle: voxel by voxel."""
    result = patches.clone()
    for n in range(len(patches)):
        for voxel in np.ndindex(*patches.shape[1:]):
            if use(n, voxel):
                result[(n, *voxel)] = patches[(int(source[n]), *voxel)]
    return result


@pytest.mark.parametrize("ndim", [2, 3])
def test_apply_is_the_voxelwise_paste_for_targets_and_channels(ndim: int) -> None:
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(9, (4, *PATCHES[ndim]), generator=draw)
    mix = Mix(torch.tensor([2, 0, 3, 1]), torch.rand(4, *PATCHES[ndim], generator=draw) < 0.3)
    expected = paste_by_hand(target, mix.source, lambda n, voxel: bool(mix.mask[(n, *voxel)]))
    before = target.clone()
    assert torch.equal(mix.apply(target), expected)
    assert torch.equal(target, before)
    channels = torch.stack([target, 2 * target], dim=1).float()
    assert torch.equal(mix.apply(channels), torch.stack([expected, 2 * expected], dim=1).float())


@settings(deadline=None, max_examples=60)
@given(count=st.integers(0, 5), patch=sizes, probability=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 999))
def test_cutmix_is_one_box_of_another_patch(count: int, patch: list[int], probability: float, seed: int) -> None:
    mix = make_cutmix(count, patch, probability, derive_rng(seed))
    if count < 2 or probability == 0:
        assert mix is None
    if mix is None:
        assert probability < 1 or count < 2
        return
    assert mix.source.dtype == torch.int64
    assert sorted(mix.source.tolist()) == list(range(count))
    assert all(int(s) != n for n, s in enumerate(mix.source))
    assert mix.mask.shape == (count, *patch)
    for n in range(count):
        voxels = torch.nonzero(mix.mask[n])
        if probability == 1:
            assert len(voxels)
        if len(voxels):  # all voxels between the first and the last are set: a box
            assert len(voxels) == int((voxels.amax(0) - voxels.amin(0) + 1).prod())


@pytest.mark.parametrize("patch", [(64, 96), (32, 48, 40)])
def test_boxes_fill_half_a_patch_in_all_shapes_and_places(patch: tuple[int, ...]) -> None:
    mixes = [make_cutmix(2, patch, 1.0, derive_rng(k)) for k in range(100)]
    masks = torch.cat([mix.mask for mix in mixes if mix is not None]).float()
    assert masks.flatten(1).mean(1).numpy() == pytest.approx(0.5, abs=0.03)
    sides = torch.stack([masks.flatten(2).amax(2).sum(1), masks.movedim(2, 1).flatten(2).amax(2).sum(1)])
    assert (sides.amin(1) < 0.6 * torch.tensor(patch[:2])).all()
    assert (sides.amax(1) > 0.9 * torch.tensor(patch[:2])).all()
    covered = masks.mean(0)
    edges = [covered.select(axis, end).mean() for axis in range(covered.ndim) for end in (0, -1)]
    assert min(edges) > 0.02
    assert max(edges) < 3 * min(edges)


def test_the_probability_is_that_of_each_patch() -> None:
    mixes = [make_cutmix(4, (4, 4), 0.3, derive_rng(k)) for k in range(300)]
    mixed = sum(int(mix.mask.flatten(1).any(1).sum()) for mix in mixes if mix is not None)
    assert mixed / 1200 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("ndim", [2, 3])
def test_copy_paste_takes_foreground_with_its_classes(ndim: int) -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.tensor([0, 0, 1, 2, IGNORE_INDEX])
    target = values[torch.randint(5, (4, *PATCHES[ndim]), generator=draw)]
    target[1] = 0
    mix = make_copy_paste(target, 1.0, derive_rng(3))
    assert mix is not None
    expected = paste_by_hand(target, mix.source, lambda n, voxel: target[(int(mix.source[n]), *voxel)] in (1, 2))
    assert torch.equal(mix.apply(target), expected)
    for n, source in enumerate(mix.source.tolist()):
        assert source != n
        if source == 1:  # all background: nothing is pasted
            assert torch.equal(expected[n], target[n])
    image = torch.rand(4, 2, *PATCHES[ndim], generator=draw)
    pasted = mix.apply(image)
    own, taken = pasted == image, pasted == image[mix.source]
    assert (own | taken).all()
    assert torch.equal((~own).all(dim=1), mix.mask)


def test_nothing_to_paste() -> None:
    background = torch.zeros(3, 5, 5, dtype=torch.int64)
    assert make_copy_paste(background, 1.0, derive_rng(0)) is None
    assert make_copy_paste(torch.full_like(background, IGNORE_INDEX), 1.0, derive_rng(0)) is None
    assert make_copy_paste(background[:1] + 1, 1.0, derive_rng(0)) is None
    assert make_copy_paste(background + 1, 0.0, derive_rng(0)) is None
    assert make_copy_paste(background + 1, 1.0, derive_rng(0)) is not None


def test_copy_paste_probability() -> None:
    target = torch.ones(4, 3, 3, dtype=torch.int64)
    mixes = [make_copy_paste(target, 0.3, derive_rng(k)) for k in range(300)]
    mixed = sum(int(mix.mask.flatten(1).any(1).sum()) for mix in mixes if mix is not None)
    assert mixed / 1200 == pytest.approx(0.3, abs=0.05)
