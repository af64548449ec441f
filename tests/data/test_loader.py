from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from ssl_seg.config import AugmentConfig
from ssl_seg.data.catalog import Catalog, CatalogSettings, open_catalog
from ssl_seg.data.facts import state_spacing
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.loader import Batch, PatchSource, make_loader, make_probe, measure_share
from ssl_seg.data.sampling import derive_rng
from ssl_seg.data.store import CaseStore, fit_channels
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.views.transforms import measure_intensity
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, Meaning

WEAK = AugmentConfig(affine=0, labeled_factor=0)
"""Labeled patches are mirrored and turned; intensities change in strong views."""
PLAIN = AugmentConfig(affine=0, intensity=0, cutout=0)
"""Mirrors and quarter turns only."""


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
        augment=WEAK,
        seed=5,
    )


def test_shapes_types_and_ids(source: PatchSource) -> None:
    batch = source[0]
    assert batch.image.shape == (3, 1, 32, 48)
    assert batch.target.shape == (3, 32, 48)
    assert batch.weak.shape == batch.strong[0].shape == (2, 1, 32, 48)
    assert (batch.image.dtype, batch.target.dtype) == (torch.float32, torch.int64)
    assert set(batch.target.unique().tolist()) <= {0, 1}
    assert len(batch.case_ids) == 5
    assert set(batch.case_ids[:3]) <= set(source.labeled)
    assert set(batch.case_ids[3:]) <= set(source.unlabeled)


def test_a_batch_is_a_function_of_seed_rank_and_step(source: PatchSource) -> None:
    other_order = [source[step] for step in (4, 1, 3)]
    again = [source[step] for step in (4, 1, 3)]
    for a, b in zip(other_order, again, strict=True):
        assert torch.equal(a.strong[0], b.strong[0])
        assert torch.equal(a.image, b.image)
    assert not torch.equal(source[0].image, source[1].image)
    assert not torch.equal(source[0].image, replace(source, seed=6)[0].image)


@pytest.mark.parametrize("max_bytes", [2**31, 1])
def test_where_little_is_labeled_every_labeled_patch_holds_some(tmp_path: Path, max_bytes: int) -> None:
    """Of random boxes of these volumes, one in seven holds a voxel that is not ignored."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for n in range(3):
        mask = np.full((40, 60, 60), 255, np.uint8)
        mask[3 + n, 5:11, 40:50] = 1
        mask[3 + n, 8, 40:50] = 0
        np.save(tmp_path / "images" / f"{n}.npy", derive_rng(n).integers(0, 99, mask.shape).astype(np.uint8))
        np.save(tmp_path / "masks" / f"{n}.npy", mask)
    catalog = open_catalog(str(tmp_path), CatalogSettings(meaning=Meaning(ignore_value=255)))
    ids = tuple(case.id for case in catalog.labeled)
    source = PatchSource(CaseStore(catalog, 1, max_bytes), ids, (), (4, 0), (8, 16, 16), 0.0, PLAIN)
    probe = make_probe(source.store, ids, 8, (8, 16, 16), 0)
    for target in (*(source[step].target for step in range(4)), probe.target):
        assert (target != IGNORE_INDEX).flatten(1).any(1).all()
    (points,) = source.store.load("1").annotated
    assert len(points) == 60
    assert {*points[:, 0]} == {4}


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_share_of_foreground_is_met_where_all_cases_have_some(source: PatchSource, share: float) -> None:
    """Without it the share is what chance brings, and positive_ratio changes nothing: all cases have foreground."""
    turned = replace(source, patch_size=(24, 24), counts=(6, 0), augment=AugmentConfig(affine=1.0, labeled_factor=0))
    free, balanced, chosen = (
        measure_share(replace(turned, **options), 12)
        for options in (
            {},
            {"positive_ratio": share, "positive": frozenset(source.labeled)},
            {"foreground_share": share},
        )
    )
    assert free == balanced
    assert np.abs(np.array(chosen) - share).max() < 0.12
    assert np.abs(np.array(chosen) - share).mean() < 0.4 * np.abs(np.array(free) - share).mean()
    assert all(torch.equal(a, b) for a, b in zip(
        *(replace(turned, foreground_share=share)[3].image for _ in range(2)), strict=True
    ))  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing(source: PatchSource, workers: int) -> None:
    batches = list(make_loader(source, 2, 6, workers, pin_memory=False))
    assert len(batches) == 4
    for step, batch in enumerate(batches, start=2):
        assert torch.equal(batch.strong[0], source[step].strong[0])
        assert batch.case_ids == source[step].case_ids


def test_ranks_share_each_pass_without_overlap(source: PatchSource) -> None:
    ranks = [replace(source, rank=r, world_size=2) for r in range(2)]
    drawn = Counter(i for rank in ranks for i in rank[0].case_ids[:3])
    assert drawn == Counter(dict.fromkeys(source.labeled, 1))


def test_no_unlabeled_cases_is_a_normal_input(source: PatchSource) -> None:
    batch = replace(source, unlabeled=())[0]
    assert batch.weak.shape == batch.strong[0].shape == (0, 1, 32, 48)
    assert len(batch.case_ids) == 3


def test_weak_and_strong_show_the_same_voxels(source: PatchSource) -> None:
    plain = replace(source, augment=PLAIN)
    assert torch.allclose(plain[0].weak, plain[0].strong[0], atol=1e-5)
    assert not torch.allclose(source[0].weak, source[0].strong[0], atol=1e-2)
    assert torch.equal(source[0].weak, plain[0].weak)


def test_each_stream_has_changes_of_its_own(source: PatchSource) -> None:
    """Labeled patches change with their factor, strong views with theirs, weak views and targets never."""

    def draw(**given: float) -> Batch:
        return replace(source, augment=PLAIN.model_copy(update={"intensity": 0.5, **given}))[0]

    plain = draw(labeled_factor=0.0, strong_factor=0.0)
    labeled, strong = draw(labeled_factor=10.0, strong_factor=0.0), draw(labeled_factor=0.0, strong_factor=10.0)
    blanked = draw(labeled_factor=0.0, strong_factor=0.0, cutout=1.0)
    for batch in (labeled, strong, blanked):
        assert torch.equal(batch.target, plain.target)
        assert torch.equal(batch.weak, plain.weak)
    assert (labeled.image != plain.image).flatten(1).any(1).all()
    assert torch.equal(labeled.strong[0], plain.strong[0])
    assert torch.equal(plain.strong[0], plain.weak)
    for batch in (strong, blanked):
        assert torch.equal(batch.image, plain.image)
        assert (batch.strong[0] != plain.strong[0]).flatten(1).any(1).all()


def test_patches_are_rotated_in_units_of_length(source: PatchSource, catalog: Catalog) -> None:
    augment = PLAIN.model_copy(update={"affine": 1.0})
    cubes, long_, resampled = (
        replace(
            source,
            store=CaseStore(replace(catalog, facts=state_spacing(catalog.facts, spacing)), 1, resample_to=to),
            augment=augment,
        )[0]
        for spacing, to in ((None, None), ((4.0, 1.0), None), ((1.0, 1.0), (1.0, 1.0)))
    )
    for part in ("image", "target", "weak"):
        assert not torch.equal(getattr(cubes, part), getattr(long_, part))
        assert torch.equal(getattr(cubes, part), getattr(resampled, part))


def test_foreground_ratio_is_met_over_a_batch(catalog: Catalog) -> None:
    """With one foreground voxel in the image, exactly the centered patches contain it."""

    class OneVoxel(CaseStore):
        def _read(self, case: Case):  # type: ignore[no-untyped-def]
            loaded = super()._read(case)
            target = np.zeros((512, 512), np.int16)
            target[256, 256] = 1
            return replace(
                loaded, image=np.zeros((1, 512, 512), np.uint8), target=target, foreground=(np.array([[256, 256]]),)
            )

    source = PatchSource(
        OneVoxel(catalog, 1),
        tuple(c.id for c in catalog.labeled),
        (),
        (4, 0),
        (16, 16),
        0.5,
        PLAIN,
    )
    hits = [int((source[step].target == 1).flatten(1).any(1).sum()) for step in range(20)]
    assert hits == [2] * 20
    none = replace(source, foreground_ratio=0.0)
    assert sum(int((none[step].target == 1).any()) for step in range(20)) <= 2


@pytest.fixture
def mixed_source(catalog: Catalog) -> PatchSource:
    """Two of the six labeled cases have foreground, at one voxel; the patches are small."""
    ids = tuple(c.id for c in catalog.labeled)
    positive = frozenset(ids[:2])

    class Mixed(CaseStore):
        def _read(self, case: Case):  # type: ignore[no-untyped-def]
            loaded = super()._read(case)
            target = np.zeros((128, 128), np.int16)
            target[60, 70] = int(case.id in positive)
            foreground = (np.array([[60, 70]]),) if case.id in positive else ()
            return replace(loaded, target=target, foreground=foreground)

    return PatchSource(
        Mixed(catalog, 1),
        ids,
        (),
        counts=(4, 0),
        patch_size=(16, 16),
        foreground_ratio=0.25,
        augment=PLAIN,
        positive=positive,
    )


def count_positive(source: PatchSource, steps: int = 30) -> list[int]:
    return [sum(i in source.positive for i in source[step].case_ids) for step in range(steps)]


def test_positive_ratio_is_met_in_every_batch(mixed_source: PatchSource) -> None:
    assert set(count_positive(replace(mixed_source, positive_ratio=0.5))) == {2}
    assert set(count_positive(replace(mixed_source, positive_ratio=0.0))) == {0}
    assert len(set(count_positive(mixed_source))) > 1  # all cases equally often: by chance


def test_without_positive_cases_all_cases_are_drawn(mixed_source: PatchSource) -> None:
    source = replace(mixed_source, positive=frozenset(), positive_ratio=0.5)
    drawn = Counter(i for step in range(6) for i in source[step].case_ids)
    assert drawn == Counter(dict.fromkeys(source.labeled, 4))


@pytest.mark.parametrize("rotation", [0, 45])
def test_centered_patches_are_those_of_positive_cases(mixed_source: PatchSource, rotation: float) -> None:
    """A quarter of the patches is centered on the one voxel; negative cases could not show it."""
    augment = PLAIN.model_copy(update={"affine": 1.0, "rotation": rotation, "scale": 0.0})
    source = replace(mixed_source, positive_ratio=0.25, augment=augment)
    hits = [int((source[step].target == 1).flatten(1).any(1).sum()) for step in range(20)]
    assert hits == [1] * 20
    # Not told which cases are positive, the same share falls on negative ones too.
    blind = replace(source, positive=frozenset())
    assert sum(int((blind[step].target == 1).any()) for step in range(20)) < 15


def test_share_of_centered_patches_over_batches(mixed_source: PatchSource) -> None:
    source = replace(mixed_source, positive_ratio=1.0, foreground_ratio=0.3)
    hits = [int((source[step].target == 1).flatten(1).any(1).sum()) for step in range(60)]
    # 1.2 of 4 a batch; a random patch of 16 x 16 in 128 x 128 shows the voxel in 1.6 % of the cases.
    assert np.mean(hits) == pytest.approx(1.2, abs=0.25)
    assert min(hits) >= 1


def test_ranks_share_the_balanced_stream_without_overlap(mixed_source: PatchSource) -> None:
    balanced = replace(mixed_source, positive_ratio=0.5, counts=(2, 0))
    alone = replace(balanced, counts=(4, 0))
    for step in range(5):
        parts = [replace(balanced, rank=rank, world_size=2)[step].case_ids for rank in range(2)]
        # The processes change places from step to step, so that none always gets the same part.
        first, second = parts if step % 2 == 0 else reversed(parts)
        assert [*first, *second] == list(alone[step].case_ids)


def test_ctrl_c_in_a_terminal_leaves_the_loader_processes_alone(source: PatchSource) -> None:
    batches = iter(make_loader(source, 0, 40, 1, pin_memory=False))
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGINT)
    assert len(list(batches)) == 39


def test_small_labeled_set_repeats_beside_a_long_unlabeled_one(source: PatchSource) -> None:
    """One labeled case, four unlabeled: 24 batches of one loader, counts exact, all cases walked evenly."""
    one = replace(source, labeled=source.labeled[:1])
    batches = list(make_loader(one, 0, 24, workers=1, pin_memory=False))
    assert all(len(b.image) == 3 and len(b.weak) == len(b.strong[0]) == 2 for b in batches)
    assert Counter(i for b in batches for i in b.case_ids[:3]) == {one.labeled[0]: 72}
    assert Counter(i for b in batches for i in b.case_ids[3:]) == Counter(dict.fromkeys(one.unlabeled, 12))
    assert len({b.image.numpy().tobytes() for b in batches}) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_cutmix_shows_what_the_mix_says(source: PatchSource, workers: int) -> None:
    whole = source[3]
    assert whole.mixes[0] is None
    (mixed,) = make_loader(
        replace(source, augment=WEAK.model_copy(update={"cutmix": 1.0})), 3, 4, workers, pin_memory=False
    )
    assert mixed.mixes[0] is not None
    assert torch.equal(mixed.weak, whole.weak)
    assert torch.equal(mixed.strong[0], mixed.mixes[0].apply(whole.strong[0]))
    assert not torch.equal(mixed.strong[0], whole.strong[0])


@pytest.mark.parametrize("unlabeled", [0, 1])
def test_cutmix_needs_two_patches(source: PatchSource, unlabeled: int) -> None:
    batch = replace(source, counts=(2, unlabeled), augment=WEAK.model_copy(update={"cutmix": 1.0}))[0]
    assert batch.mixes[0] is None
    assert batch.strong[0].shape[0] == unlabeled


def test_copy_paste_adds_foreground_with_its_image(source: PatchSource) -> None:
    plain, pasted = source[2], replace(source, augment=WEAK.model_copy(update={"copy_paste": 1.0}))[2]
    assert (pasted.target > 0).sum() > (plain.target > 0).sum()
    assert ((pasted.target > 0) | (plain.target == 0)).all()
    changed = (pasted.image != plain.image)[:, 0]
    assert changed.any()
    assert (pasted.target[changed] > 0).all()
    assert torch.equal(pasted.weak, plain.weak)


def test_inverted_are_labeled_patches_and_strong_views(source: PatchSource) -> None:
    plain, inverted = (replace(source, augment=PLAIN.model_copy(update={"invert": p}))[2] for p in (0.0, 1.0))
    assert torch.equal(inverted.image, -plain.image)
    assert torch.equal(inverted.strong[0], -plain.strong[0])
    assert torch.equal(inverted.weak, plain.weak)
    assert torch.equal(inverted.target, plain.target)


def test_a_batch_keeps_its_mix_on_another_device(source: PatchSource) -> None:
    batch = replace(source, augment=WEAK.model_copy(update={"cutmix": 1.0}))[0]
    moved = batch.to(torch.device("meta"))
    assert moved.mixes[0] is not None
    assert moved.mixes[0].source.device.type == moved.mixes[0].mask.device.type == "meta"
    assert pickle.loads(pickle.dumps(batch)).mixes[0].mask.equal(batch.mixes[0].mask)  # type: ignore[union-attr]
    assert source[0].to(torch.device("meta")).mixes[0] is None


@pytest.mark.parametrize("ndim", [2, 3])
def test_outside_the_image_is_mean_and_ignored_under_every_geometry(ndim: int, tmp_path: Path) -> None:
    """An image of ones: where the target is valid the patch is the image, elsewhere it is what lies outside."""
    folder = tmp_path / "data"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
        np.save(folder / name / "a.npy", np.ones([20] * ndim, np.uint8) * (200 if name == "images" else 1))
    catalog = open_catalog(str(folder))
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32), [20] * ndim)

    class Ramp(CaseStore):
        def _read(self, case: Case):  # type: ignore[no-untyped-def]
            loaded = super()._read(case)
            target = (ramp >= 10).astype(np.int16)
            image = target[None].astype(np.float32)
            return replace(loaded, image=image, target=target, foreground=(), intensity=measure_intensity(image))

    augment = AugmentConfig(affine=1, scale=0.5, tilt=90, elastic=1.0, intensity=0, cutout=0)
    source = PatchSource(Ramp(catalog, 1), ("a",), ("a",), (4, 2), (16,) * ndim, 0.0, augment)
    ignored = 0
    for step in range(3):
        batch = source[step]
        image, outside = batch.image[:, 0], batch.target == IGNORE_INDEX
        ignored += int(outside.sum())
        sharp = image.abs() > 0.99  # z-scores are -1 and 1; interpolated voxels and the mean lie between
        assert torch.equal((image > 0)[sharp & ~outside], (batch.target == 1)[sharp & ~outside])
        assert sharp[~outside].float().mean() > 0.6
        assert not sharp[outside].float().mean() > 0.2
    assert ignored > 0


def test_images_smaller_than_the_patch_are_padded_and_ignored(source: PatchSource) -> None:
    batch = replace(source, patch_size=(160, 160))[0]
    padded = batch.target == IGNORE_INDEX
    assert padded.flatten(1).sum(1).tolist() == [160 * 160 - 128 * 128] * 3
    assert torch.allclose(batch.image[:, 0][padded], torch.zeros(1), atol=1e-4)


def test_mean_and_scale_follow_the_whole_image(source: PatchSource) -> None:
    whole = replace(source, patch_size=(128, 128), augment=PLAIN)
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
    color = fit_channels(gray, 3, "x")
    assert np.array_equal(color[2], gray[0])
    assert np.array_equal(fit_channels(color, 1, "x"), gray)
    for channels, wanted in ((3, 1), (1, 2), (1, 4), (2, 3)):
        with pytest.raises(DataError, match=rf"{channels} channels? and the network takes {wanted}"):
            fit_channels(np.arange(4 * channels).reshape(channels, 2, 2), wanted, "x.png")


def test_probe_is_fixed_covers_cases_in_turn_and_may_be_empty(source: PatchSource) -> None:
    probe = make_probe(source.store, source.labeled, 6, (32, 32), seed=1)
    again = make_probe(source.store, source.labeled, 6, (32, 32), seed=1)
    assert torch.equal(probe.image, again.image)
    assert probe.image.shape == (6, 1, 32, 32)
    assert not torch.equal(probe.image, make_probe(source.store, source.labeled, 6, (32, 32), seed=2).image)
    assert len(make_probe(source.store, (), 6, (32, 32), seed=1).image) == 0


def test_a_probe_holds_foreground_where_a_case_does(tmp_path: Path) -> None:
    """One case of eight has a single voxel of foreground: hardly any random tile shows it."""
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for k in range(8):
        mask = np.zeros((70, 70), np.uint8)
        mask[65, 3] = 255 * (k == 5)
        tifffile.imwrite(tmp_path / "images" / f"{k}.tif", np.full((70, 70), 10 * k + np.arange(70), np.uint8))
        tifffile.imwrite(tmp_path / "masks" / f"{k}.tif", mask)
    store = CaseStore(open_catalog(str(tmp_path)), channels=1)
    ids = tuple(c.id for c in store.catalog.labeled)
    for patches, wanted in ((1, 1), (7, 1), (8, 1), (9, 2), (32, 4)):
        probe = make_probe(store, ids, patches, (32, 32), seed=0)
        positive = [i for i in range(patches) if (probe.target[i] == 1).any()]
        assert len(positive) >= wanted
        assert {probe.case_ids[i] for i in positive} == {"5"}
        drawn = make_probe(store, [i for i in ids if i != "5"], patches, (32, 32), seed=0)
        assert len(drawn.image) == patches, "a negative control: nothing to be found, nothing exchanged"
        assert not (drawn.target == 1).any()
    spread = np.stack([np.asarray(probe.image[i]) for i in positive])
    assert (spread == spread[:1]).all(), "of the only tile that holds the voxel"


def test_a_probe_with_foreground_enough_is_as_drawn(source: PatchSource) -> None:
    """The tiles of a probe do not depend on how many there are, unless some are exchanged."""
    many = make_probe(source.store, source.labeled, 16, (32, 32), seed=1)
    assert torch.equal(make_probe(source.store, source.labeled, 6, (32, 32), seed=1).image, many.image[:6])


def test_a_mask_is_never_read_for_a_case_without_one(catalog: Catalog) -> None:
    unlabeled = catalog.unlabeled[0]
    assert CaseStore(catalog, 1).load(unlabeled.id).target is None
    assert not (Path(catalog.root) / "masks" / f"{unlabeled.id}.png").exists()


def test_random_batch_sizes_are_those_asked_for_and_the_same_on_all_processes(source: PatchSource) -> None:
    ranks = [replace(source, counts=(4, 2), fewest=2, rank=rank, world_size=2) for rank in range(2)]
    sizes = [[len(rank[step].image) for step in range(40)] for rank in ranks]
    assert sizes[0] == sizes[1]
    assert Counter(sizes[0]).keys() == {2, 3, 4}
    assert min(Counter(sizes[0]).values()) >= 5  # of 40 draws from three values; the seed is fixed
    assert all(len(ranks[0][step].weak) == 2 for step in range(5))
    assert [len(replace(ranks[0], seed=6)[step].image) for step in range(40)] != sizes[0]


def test_a_smaller_batch_leaves_places_out_and_takes_none_twice(source: PatchSource) -> None:
    """With as many cases as places in the batches of an epoch on two processes, no case comes twice."""
    ids = tuple(f"c{number}" for number in range(48))
    seen: list[str] = []
    largest: list[str] = []
    for rank in range(2):
        random = replace(source, labeled=ids, counts=(4, 0), fewest=1, rank=rank, world_size=2)
        for step in range(6):
            count = random._count_labeled(step)
            drawn = [random.labeled_cases[random._position(step, slot, 4)] for slot in range(4)]
            seen += drawn[:count]
            largest += drawn
    assert len(set(seen)) == len(seen) < len(largest)
    assert sorted(largest) == sorted(ids)


def test_a_smaller_batch_is_the_beginning_of_the_full_one(source: PatchSource) -> None:
    full = replace(source, counts=(4, 2), foreground_ratio=0.0)
    random = replace(full, fewest=1)
    for step in range(4):
        small, large = random[step], full[step]
        count = len(small.image)
        assert small.case_ids[:count] == large.case_ids[:count]
        assert torch.equal(small.image, large.image[:count])
        assert torch.equal(small.strong[0], large.strong[0])
