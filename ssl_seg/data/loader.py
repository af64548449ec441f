"""Batches: the one place where their shapes are defined.

Shapes: L labeled, U unlabeled, C channels, K classes (background = 0), *S spatial = (Z, Y, X) or (Y, X), *P a patch.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_seg.config.data import AugmentConfig
from ssl_seg.data.sampling import (
    TRIES,
    BalancedCaseStream,
    CaseStream,
    choose_box,
    choose_box_by_share,
    choose_tile,
    crop,
    derive_rng,
)
from ssl_seg.data.store import CaseStore, cut_unit
from ssl_seg.data.views.geometry import draw_geometry
from ssl_seg.data.views.intensity import blank_boxes, change_intensity, invert
from ssl_seg.data.views.mixing import Mix, make_copy_paste, make_cutmix
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX

LABELED_STREAM, UNLABELED_STREAM, PROBE_STREAM, MIX_STREAM, TILE_STREAM, SIZE_STREAM = 1, 2, 3, 4, 5, 6
POSITIVE_STREAM = 9  # 7 and 8 are noise
POSITIVE_TILE = 8
"""One in so many tiles of a probe, at least, holds foreground."""

_Patch = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Image (C,*P) and target (*P)."""


@dataclass(frozen=True)
class Batch:
    """One training step's input on one process.

    ``image`` (L,C,*P) float32 · ``target`` (L,*P) int64 with IGNORE_INDEX allowed · ``weak`` and each of the ``strong``
    views (U,C,*P) float32, the same voxels under different intensities · ``case_ids`` labeled first, then unlabeled. U
    may be 0. Where a strong view has a mix, it is mixed already: what is made from ``weak`` fits it after ``apply``.
    """

    image: Tensor
    target: Tensor
    weak: Tensor
    strong: tuple[Tensor, ...]
    case_ids: tuple[str, ...]
    mixes: tuple[Mix | None, ...] = (None,)
    """One mix per strong view; None where the view is not mixed."""

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by the DataLoader."""
        return self._map(Tensor.pin_memory)

    def share_memory(self) -> Batch:
        """Return the batch in shared memory; where that is full, a loader process fails here, and the training with it.

        Left to the queue between them, such a batch would be lost, and the training would wait for it forever.
        """
        return self._map(Tensor.share_memory_)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        mixes = tuple(mix and Mix(change(mix.source), change(mix.mask)) for mix in self.mixes)
        image, target, weak = map(change, (self.image, self.target, self.weak))
        return Batch(image, target, weak, tuple(map(change, self.strong)), self.case_ids, mixes)


@dataclass(frozen=True)
class PatchSource(Dataset[Batch]):
    """Item ``step`` is the batch of that step: a pure function of (seed, rank, step).

    Args:
        store: reads cases.
        labeled, unlabeled: case ids of the two streams; ``unlabeled`` may be empty.
        counts: labeled and unlabeled patches a batch, on each process; with ``fewest``, the most labeled ones.
        patch_size: (*P).
        foreground_ratio: share of labeled patches that are centered on foreground; those of positive cases first.
        augment: what is done to patches. All views of one share a geometry, so that a pseudo-label made on the weak
            view fits the strong one voxel by voxel.
        seed, rank, world_size: place of this process; together the processes walk each stream without overlap.
        positive: ids of the labeled cases with foreground.
        positive_ratio: share of labeled patches from them; None draws all labeled cases equally often.
        foreground_share: share of the labeled voxels of a batch that is to be foreground, before copy-paste: boxes are
            chosen for it, and ``foreground_ratio`` is not looked at. None leaves it to chance.
        fewest: fewest labeled patches of a batch; each number from here to ``counts`` is equally likely in a step, and
            the same on all processes. None always takes ``counts``.
        strong_views: number of strong views of an unlabeled patch. The first ones are the same for every number.
    """

    store: CaseStore
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    counts: tuple[int, int]
    patch_size: tuple[int, ...]
    foreground_ratio: float
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    positive: frozenset[str] = frozenset()
    positive_ratio: float | None = None
    foreground_share: float | None = None
    fewest: int | None = None
    strong_views: int = 1

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step >= 0."""
        rng = derive_rng(self.seed, self.rank, step, MIX_STREAM)
        labeled_ids, image, target = self._draw_labeled(step, rng)
        unlabeled_ids, weak, strong = self._draw_unlabeled(step)
        if (paste := make_copy_paste(target, self.augment.copy_paste, rng)) is not None:
            image, target = paste.apply(image), paste.apply(target)
        draws = [rng, *(derive_rng(self.seed, self.rank, step, MIX_STREAM, v) for v in range(1, self.strong_views))]
        mixes = tuple(make_cutmix(len(weak), self.patch_size, self.augment.cutmix, draw) for draw in draws)
        strong = tuple(view if mix is None else mix.apply(view) for view, mix in zip(strong, mixes, strict=True))
        return Batch(image, target, weak, strong, (*labeled_ids, *unlabeled_ids), mixes)

    @cached_property
    def labeled_cases(self) -> CaseStream | BalancedCaseStream:
        """The sequence that labeled cases are drawn from."""
        if self.positive_ratio is None:
            return CaseStream(self.labeled, self.seed, LABELED_STREAM)
        return BalancedCaseStream(self.labeled, self.positive, self.positive_ratio, self.seed, LABELED_STREAM)

    def _draw_labeled(self, step: int, rng: np.random.Generator) -> tuple[list[str], Tensor, Tensor]:
        count, most = self._count_labeled(step), self.counts[0]
        # Positions count in the largest batch: those of a smaller one are left out, and none is taken twice.
        ids = [self.labeled_cases[self._position(step, slot, most)] for slot in range(count)]
        if self.foreground_share is None:
            patches = self._draw_by_ratio(ids, step, rng)
        else:
            patches = self._draw_by_share(ids, step, self.foreground_share)
        image, target = (np.stack(arrays) for arrays in zip(*patches, strict=True))
        return ids, torch.from_numpy(image), torch.from_numpy(target)

    def _draw_by_ratio(self, ids: Sequence[str], step: int, rng: np.random.Generator) -> list[_Patch]:
        # A systematic draw: the share is met in each batch as exactly as whole numbers allow.
        number = int(len(ids) * self.foreground_ratio + rng.random())
        centered = sorted(range(len(ids)), key=lambda slot: ids[slot] not in self.positive)[:number]
        return [self._labeled_patch(case_id, step, slot, centered=slot in centered) for slot, case_id in enumerate(ids)]

    def _draw_by_share(self, ids: Sequence[str], step: int, share: float) -> list[_Patch]:
        """Return patches that together hold a share of foreground: each makes up for what those before it have missed,
        also because their geometry has turned or scaled them. Those of the cases that are farthest from it come first.
        """
        patches: dict[int, _Patch] = {}
        foreground, valid, size = 0, 0, prod(self.patch_size)
        of_cases = [self.store.catalog.facts[case_id].foreground or 0.0 for case_id in ids]
        for slot in sorted(range(len(ids)), key=lambda slot: -abs(of_cases[slot] - share)):
            left = size * (len(ids) - len(patches))
            wanted = (share * (valid + left) - foreground) / left
            patches[slot] = self._labeled_patch(ids[slot], step, slot, share=wanted)
            target = patches[slot][1]
            foreground, valid = foreground + int((target > 0).sum()), valid + int((target != IGNORE_INDEX).sum())
        return [patches[slot] for slot in range(len(ids))]

    def _count_labeled(self, step: int) -> int:
        if self.fewest is None:
            return self.counts[0]
        return int(derive_rng(self.seed, SIZE_STREAM, step).integers(self.fewest, self.counts[0] + 1))

    def _draw_unlabeled(self, step: int) -> tuple[list[str], Tensor, tuple[Tensor, ...]]:
        count, cases = self.counts[1], CaseStream(self.unlabeled, self.seed, UNLABELED_STREAM)
        if not count or not self.unlabeled:
            nothing = torch.empty(0, self.store.channels, *self.patch_size)
            return [], nothing, (nothing,) * self.strong_views
        ids = [cases[self._position(step, slot, count)] for slot in range(count)]
        patches = [self._unlabeled_patch(case_id, step, slot) for slot, case_id in enumerate(ids)]
        weak, *strong = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*patches, strict=True))
        return ids, weak, tuple(strong)

    def _position(self, step: int, slot: int, count: int) -> int:
        # Another place in each step: a process could otherwise always get, say, the even positions of the sampler.
        place = (self.rank + step) % self.world_size
        return (step * self.world_size + place) * count + slot

    def _labeled_patch(
        self, case_id: str, step: int, slot: int, *, centered: bool = False, share: float | None = None
    ) -> _Patch:
        rng = derive_rng(self.seed, self.rank, step, LABELED_STREAM, slot)
        case = self.store.load(case_id)
        if case.target is None:
            raise DataError(f"case '{case_id}' is in the labeled set but has no mask")
        shape, patch_size = case.target.shape, self.patch_size
        if share is None:
            start = choose_box(shape, patch_size, rng, case.foreground if centered else case.annotated)
        else:
            start = choose_box_by_share(shape, patch_size, rng, case.foreground, case.voxels_each, share)
        geometry = draw_geometry(self.patch_size, rng, self.augment, self.store.find_spacing(case_id))
        box = geometry.locate(start)
        image = case.intensity.unit_to_zscore(geometry.move_image(cut_unit(case, box, geometry.size)))
        target = geometry.move_target(crop(case.target, box, geometry.size, IGNORE_INDEX).astype(np.int64))
        image = invert(image, rng, self.augment.invert)
        return change_intensity(image, rng, self.augment.intensity, self.augment.labeled_factor), target

    def _unlabeled_patch(self, case_id: str, step: int, slot: int) -> Iterator[NDArray[np.float32]]:
        """Yield the weak view and the strong ones."""
        rng = derive_rng(self.seed, self.rank, step, UNLABELED_STREAM, slot)
        case = self.store.load(case_id)
        start = choose_box(case.image.shape[1:], self.patch_size, rng)
        geometry = draw_geometry(self.patch_size, rng, self.augment, self.store.find_spacing(case_id))
        unit = geometry.move_image(cut_unit(case, geometry.locate(start), geometry.size))
        weak = case.intensity.unit_to_zscore(unit)
        yield weak
        for view in range(self.strong_views):
            draw = derive_rng(self.seed, self.rank, step, UNLABELED_STREAM, slot, view) if view else rng
            strong = invert(weak, draw, self.augment.invert)
            strong = change_intensity(strong, draw, self.augment.intensity, self.augment.strong_factor)
            yield blank_boxes(strong, draw, self.augment.cutout)


@dataclass(frozen=True)
class Probe:
    """A fixed set of patches: ``image`` (N,C,*P) float32, ``target`` (N,*P) int64, and the case of each. N may be 0."""

    image: Tensor
    target: Tensor
    case_ids: tuple[str, ...] = ()
    """(N); empty where each patch stands for a case of its own."""

    def describe(self) -> dict[str, float]:
        """Return the numbers of patches and cases, how many patches hold foreground, and its share of the voxels."""
        foreground, known = self.target > 0, (self.target != IGNORE_INDEX).sum()
        return {
            "patches": len(self.target),
            "cases": len(set(self.case_ids)),
            "positive": int(foreground.flatten(1).any(1).sum()),
            "foreground": float(foreground.sum() / known.clamp(min=1)),
        }


def measure_share(source: PatchSource, batches: int) -> list[float]:
    """Return the share of foreground among the labeled voxels of each of the first batches."""
    targets = (source[step].target for step in range(batches))
    return [float((target > 0).sum() / (target != IGNORE_INDEX).sum().clamp(min=1)) for target in targets]


def describe_missed_share(wanted: float, found: float) -> str:
    """Return that a share of foreground cannot be reached, how near the batches come, and what to do."""
    more = ", or batch.positive_ratio = 1 where some cases have no foreground" if found < wanted else ""
    return (
        f"batch.foreground_share = {wanted:g} is out of reach: the batches hold {found:.1%} of foreground, with the "
        f"best of {TRIES} boxes for each patch. To come nearer, give a smaller data.patch_size{more}"
    )


def make_loader(
    source: Dataset[Batch], first_step: int, last_step: int, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Return the batches of the steps ``first_step .. last_step - 1`` in order."""
    return DataLoader(
        source,
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_training if workers else None,
        collate_fn=_share if workers else _as_is,
        pin_memory=pin_memory,
        persistent_workers=False,
    )


def make_probe(
    store: CaseStore, case_ids: Sequence[str], patches: int, patch_size: tuple[int, ...], seed: int
) -> Probe:
    """Return ``patches`` random tiles, walked over the cases in turn; the same for every run of one seed.

    Where fewer than one in POSITIVE_TILE holds foreground, and there are cases that do, the last ones without are
    exchanged for tiles with foreground: on a probe without any, no network can be judged.
    """
    cases = CaseStream(tuple(case_ids), seed, PROBE_STREAM)
    tiles = [
        _cut_tile(store, cases[index], patch_size, derive_rng(seed, TILE_STREAM, index))
        for index in range(patches if case_ids else 0)
    ]
    if not tiles:
        return Probe(torch.empty(0, store.channels, *patch_size), torch.empty(0, *patch_size, dtype=torch.int64))
    facts = store.catalog.facts
    positive = CaseStream(tuple(i for i in case_ids if i in facts and facts[i].foreground), seed, POSITIVE_STREAM)
    without = [index for index, (_, target, _) in enumerate(tiles) if not (target > 0).any()]
    missing = -(-patches // POSITIVE_TILE) - (patches - len(without))
    for position, index in enumerate(without[::-1][: max(missing, 0)] if positive.ids else ()):
        rng = derive_rng(seed, POSITIVE_STREAM, index)
        tiles[index] = _cut_tile(store, positive[position], patch_size, rng, with_foreground=True)
    images, targets, ids = zip(*tiles, strict=True)
    return Probe(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets)), ids)


def _cut_tile(
    store: CaseStore,
    case_id: str,
    patch_size: tuple[int, ...],
    rng: np.random.Generator,
    *,
    with_foreground: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.int64], str]:
    """Return image and target of a random tile of a case, and the id of the case."""
    case = store.load(case_id)
    if case.target is None:
        raise DataError(f"case '{case_id}' is in a probe but has no mask")
    start, ignored = choose_tile(
        case.target.shape, patch_size, rng, case.foreground if with_foreground else case.annotated
    )
    target = crop(case.target, start, patch_size, IGNORE_INDEX).astype(np.int64)
    for axis, front in enumerate(ignored):
        np.moveaxis(target, axis, 0)[:front] = IGNORE_INDEX
    return case.intensity.unit_to_zscore(cut_unit(case, start, patch_size)), target, case_id


def _as_is(batch: Any) -> Any:
    return batch


def _share(batch: Any) -> Any:
    return batch.share_memory()


def _leave_interrupts_to_the_training(_: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the training makes some more steps, and needs their batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
