from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.loader import CaseStore, PatchSource, fit_channels, make_loader, make_probe
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.transforms import Views
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("data") / "particles"
    write_dataset(folder, "particles", 10, labeled=6)
    return open_catalog(str(folder))


@pytest.fixture
def source(catalog: Catalog) -> PatchSource:
    return PatchSource(
        CaseStore(catalog, channels=1),
        labeled=tuple(c.id for c in catalog.labeled),
        unlabeled=tuple(c.id for c in catalog.unlabeled),
        counts=(3, 2),
        patch_size=(32, 48),
        foreground_ratio=0.33,
        views=Views(2),
        seed=5,
    )


def test_shapes_types_and_ids(source: PatchSource) -> None:
    batch = source[0]
    assert batch.image.shape == (3, 1, 32, 48)
    assert batch.target.shape == (3, 32, 48)
    assert batch.weak.shape == batch.strong.shape == (2, 1, 32, 48)
    assert (batch.image.dtype, batch.target.dtype) == (torch.float32, torch.int64)
    assert set(batch.target.unique().tolist()) <= {0, 1}
    assert len(batch.case_ids) == 5
    assert set(batch.case_ids[:3]) <= set(source.labeled)
    assert set(batch.case_ids[3:]) <= set(source.unlabeled)


def test_a_batch_is_a_function_of_seed_rank_and_step(source: PatchSource) -> None:
    other_order = [source[step] for step in (4, 1, 3)]
    again = [source[step] for step in (4, 1, 3)]
    for a, b in zip(other_order, again, strict=True):
        assert torch.equal(a.strong, b.strong)
        assert torch.equal(a.image, b.image)
    assert not torch.equal(source[0].image, source[1].image)
    assert not torch.equal(source[0].image, replace(source, seed=6)[0].image)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(source: PatchSource, workers: int) -> None:
    batches = list(make_loader(source, 2, 6, workers, pin_memory=False))
    assert len(batches) == 4
    for step, batch in enumerate(batches, start=2):
        assert torch.equal(batch.strong, source[step].strong)
        assert batch.case_ids == source[step].case_ids


def test_ranks_share_each_pass_without_overlap(source: PatchSource) -> None:
    ranks = [replace(source, rank=r, world_size=2) for r in range(2)]
    drawn = Counter(i for rank in ranks for i in rank[0].case_ids[:3])
    assert drawn == Counter(dict.fromkeys(source.labeled, 1))


def test_no_unlabeled_cases_is_a_normal_input(source: PatchSource) -> None:
    batch = replace(source, unlabeled=())[0]
    assert batch.weak.shape == batch.strong.shape == (0, 1, 32, 48)
    assert len(batch.case_ids) == 3


def test_weak_and_strong_show_the_same_voxels(source: PatchSource) -> None:
    plain = replace(source, views=Views(2, intensity=0.0, cutout=0.0))
    assert torch.allclose(plain[0].weak, plain[0].strong, atol=1e-5)
    assert not torch.allclose(source[0].weak, source[0].strong, atol=1e-2)
    assert torch.equal(source[0].weak, plain[0].weak)


def test_foreground_ratio_is_met_over_a_batch(catalog: Catalog) -> None:
    """With one foreground voxel in the image, exactly the centered patches contain it."""

    class OneVoxel(CaseStore):
        def _read(self, case_id: str):  # type: ignore[no-untyped-def]
            loaded = super()._read(case_id)
            target = np.zeros((512, 512), np.int16)
            target[256, 256] = 1
            return replace(
                loaded, image=np.zeros((1, 512, 512), np.uint8), target=target, foreground=np.array([[256, 256]])
            )

    source = PatchSource(
        OneVoxel(catalog, 1),
        tuple(c.id for c in catalog.labeled),
        (),
        (4, 0),
        (16, 16),
        0.5,
        Views(2, intensity=0, cutout=0),
    )
    hits = [int((source[step].target == 1).flatten(1).any(1).sum()) for step in range(20)]
    assert hits == [2] * 20
    none = replace(source, foreground_ratio=0.0)
    assert sum(int((none[step].target == 1).any()) for step in range(20)) <= 2


def test_images_smaller_than_the_patch_are_padded_and_ignored(source: PatchSource) -> None:
    batch = replace(source, patch_size=(160, 160))[0]
    padded = batch.target == IGNORE_INDEX
    assert padded.flatten(1).sum(1).tolist() == [160 * 160 - 128 * 128] * 3
    assert torch.allclose(batch.image[:, 0][padded], torch.zeros(1), atol=1e-4)


def test_mean_and_scale_follow_the_whole_image(source: PatchSource) -> None:
    whole = replace(source, patch_size=(128, 128), views=Views(2, intensity=0, cutout=0))
    image = whole[0].image
    assert torch.allclose(image.mean((1, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(image.std((1, 2, 3)), torch.ones(3), atol=1e-3)


def test_an_unlabeled_case_cannot_be_drawn_as_labeled(source: PatchSource) -> None:
    with pytest.raises(DataError, match="has no mask"):
        replace(source, labeled=source.unlabeled)[0]


def test_store_keeps_within_its_limit_and_reads_again(catalog: Catalog) -> None:
    unbounded = CaseStore(catalog, 1)
    sizes = {case.id: unbounded.load(case.id).nbytes for case in catalog.cases}
    limit = sum(sizes.values()) // 2
    store = CaseStore(catalog, 1, max_bytes=limit)
    for case in catalog.cases:
        store.load(case.id)
        assert sum(sizes[held] for held in store._cache) <= limit
    assert 0 < len(store._cache) < len(sizes)
    first = catalog.cases[0].id
    assert first not in store._cache
    assert np.array_equal(store.load(first).image, unbounded.load(first).image)


def test_channels() -> None:
    gray = np.arange(4).reshape(1, 2, 2)
    assert np.array_equal(fit_channels(gray, 3, "x")[2], gray[0])
    with pytest.raises(DataError, match="3 channels and the network takes 1"):
        fit_channels(np.zeros((3, 2, 2)), 1, "x.png")


def test_probe_is_fixed_covers_cases_in_turn_and_may_be_empty(source: PatchSource) -> None:
    probe = make_probe(source.store, source.labeled, 6, (32, 32), seed=1)
    again = make_probe(source.store, source.labeled, 6, (32, 32), seed=1)
    assert torch.equal(probe.image, again.image)
    assert probe.image.shape == (6, 1, 32, 32)
    assert not torch.equal(probe.image, make_probe(source.store, source.labeled, 6, (32, 32), seed=2).image)
    assert len(make_probe(source.store, (), 6, (32, 32), seed=1).image) == 0


def test_a_mask_is_never_read_for_a_case_without_one(catalog: Catalog) -> None:
    unlabeled = catalog.unlabeled[0]
    assert CaseStore(catalog, 1).load(unlabeled.id).target is None
    assert not (Path(catalog.root) / "masks" / f"{unlabeled.id}.png").exists()
