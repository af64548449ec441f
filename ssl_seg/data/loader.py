"""Batches: the one place where their shapes are defined.

Shapes: L labeled, U unlabeled, C channels, K classes (background = 0), *S spatial = (Z, Y, X) or (Y, X), *P a patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.sampling import CaseStream, choose_box, choose_tile, crop, derive_rng, locate_box
from ssl_seg.data.transforms import Intensity, Views, measure_intensity
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, to_target

LABELED_STREAM, UNLABELED_STREAM, PROBE_STREAM = 1, 2, 3
MAX_FOREGROUND_POINTS = 4096


@dataclass(frozen=True)
class Batch:
    """One training step's input on one process.

    ``image`` (L,C,*P) float32 · ``target`` (L,*P) int64 with IGNORE_INDEX allowed · ``weak`` and ``strong`` (U,C,*P)
    float32, the same voxels under different intensities · ``case_ids`` labeled first, then unlabeled. U may be 0.
    """

    image: Tensor
    target: Tensor
    weak: Tensor
    strong: Tensor
    case_ids: tuple[str, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; called by the DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(change(self.image), change(self.target), change(self.weak), change(self.strong), self.case_ids)


@dataclass(frozen=True)
class LoadedCase:
    """A decoded case: ``image`` (C,*S) raw, ``target`` (*S) int16 or None, ``foreground`` (n, ndim) coordinates."""

    image: NDArray[np.generic]
    target: NDArray[np.int16] | None
    foreground: NDArray[np.integer] | None
    intensity: Intensity

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        arrays = (self.image, self.target, self.foreground)
        return sum(a.nbytes for a in arrays if a is not None)


class CaseStore:
    """Reads cases of a catalog and keeps the most recently used ones, up to a number of bytes.

    Args:
        catalog: where the cases are.
        channels: channels that the network expects; gray images are repeated to 3.
        max_bytes: limit of the cache; a case larger than that is read each time.
    """

    def __init__(self, catalog: Catalog, channels: int, max_bytes: int = 2**31) -> None:
        self.catalog, self.channels, self.max_bytes = catalog, channels, max_bytes
        self._cache: OrderedDict[str, LoadedCase] = OrderedDict()
        self._held = 0

    def load(self, case_id: str) -> LoadedCase:
        """Return a case.

        Raises:
            DataError: unknown id, unreadable file, or a mask value without a class.
        """
        if case_id in self._cache:
            self._cache.move_to_end(case_id)
            return self._cache[case_id]
        loaded = self._read(case_id)
        self._cache[case_id] = loaded
        self._held += loaded.nbytes
        while self._held > self.max_bytes and self._cache:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return loaded

    def _read(self, case_id: str) -> LoadedCase:
        case = self.catalog.case(case_id)
        image = fit_channels(read_image(case.image), self.channels, case.image)
        target = foreground = None
        if case.mask is not None:
            target = to_target(read_mask(case.mask), self.catalog.label_values, self.catalog.ignore_value).astype(
                np.int16
            )
            points = np.flatnonzero(target > 0)
            spread = points[:: max(1, len(points) // MAX_FOREGROUND_POINTS)]
            foreground = np.stack(np.unravel_index(spread, target.shape), axis=1)
        return LoadedCase(image, target, foreground, measure_intensity(image))


def fit_channels(image: NDArray[np.generic], channels: int, where: str) -> NDArray[np.generic]:
    """Return (C,*S) with the wanted number of channels; a gray image is repeated.

    Raises:
        DataError: when a color image would have to lose its channels.
    """
    if len(image) == channels:
        return image
    if len(image) == 1:
        return np.repeat(image, channels, axis=0)
    raise DataError(f"{where} has {len(image)} channels and the network takes {channels}: convert it first")


def cut_unit(case: LoadedCase, start: Sequence[int], patch_size: Sequence[int]) -> NDArray[np.float32]:
    """Return a box (C,*P) in the unit range; outside the image each channel's mean, which becomes z-score 0."""
    inside, placed = locate_box(start, patch_size, case.image.shape[1:])
    cut: NDArray[Any] = case.image[(slice(None), *inside)]
    unit = case.intensity.to_unit(cut)
    if unit.shape[1:] == tuple(patch_size):
        return unit
    mean = case.intensity.to_unit(case.intensity.mean.reshape(-1, *[1] * len(patch_size)))
    padded = np.broadcast_to(mean, (len(unit), *patch_size)).copy()
    padded[(slice(None), *placed)] = unit
    return padded


@dataclass(frozen=True)
class PatchSource(Dataset[Batch]):
    """Item ``step`` is the batch of that step: a pure function of (seed, rank, step).

    Args:
        store: reads cases.
        labeled, unlabeled: case ids of the two streams; ``unlabeled`` may be empty.
        counts: labeled and unlabeled patches a batch, on each process.
        patch_size: (*P).
        foreground_ratio: share of labeled patches that are centered on foreground.
        views: makes the weak and strong views.
        labeled_strong: give labeled patches the strong intensities too.
        seed, rank, world_size: place of this process; together the processes walk each stream without overlap.
    """

    store: CaseStore
    labeled: tuple[str, ...]
    unlabeled: tuple[str, ...]
    counts: tuple[int, int]
    patch_size: tuple[int, ...]
    foreground_ratio: float
    views: Views
    labeled_strong: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step >= 0."""
        labeled_ids = self._draw(self.labeled, self.counts[0], LABELED_STREAM, step)
        unlabeled_ids = self._draw(self.unlabeled, self.counts[1], UNLABELED_STREAM, step)
        labeled = [self._labeled_patch(case_id, step, slot) for slot, case_id in enumerate(labeled_ids)]
        unlabeled = [self._unlabeled_patch(case_id, step, slot) for slot, case_id in enumerate(unlabeled_ids)]
        nothing = torch.empty(0, self.store.channels, *self.patch_size)
        return Batch(
            image=torch.from_numpy(np.stack([image for image, _ in labeled])),
            target=torch.from_numpy(np.stack([target for _, target in labeled])),
            weak=torch.from_numpy(np.stack([weak for weak, _ in unlabeled])) if unlabeled else nothing,
            strong=torch.from_numpy(np.stack([strong for _, strong in unlabeled])) if unlabeled else nothing,
            case_ids=(*labeled_ids, *unlabeled_ids),
        )

    def _draw(self, ids: tuple[str, ...], count: int, stream: int, step: int) -> list[str]:
        first = (step * self.world_size + self.rank) * count
        cases = CaseStream(ids, self.seed, stream)
        return [cases[first + slot] for slot in range(count)] if ids else []

    def _labeled_patch(self, case_id: str, step: int, slot: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rng = derive_rng(self.seed, self.rank, step, LABELED_STREAM, slot)
        case = self.store.load(case_id)
        if case.target is None:
            raise DataError(f"case '{case_id}' is in the labeled set but has no mask")
        # A systematic draw: over the slots of a batch the share is met as exactly as whole numbers allow.
        centered = (slot + rng.random()) / self.counts[0] < self.foreground_ratio
        start = choose_box(case.target.shape, self.patch_size, rng, case.foreground if centered else None)
        unit = cut_unit(case, start, self.patch_size)
        target = crop(case.target, start, self.patch_size, IGNORE_INDEX)
        unit, turned = self.views.apply_geometry(unit, target.astype(np.int64), rng)
        if self.labeled_strong:
            unit = self.views.strengthen(unit, rng)
        return case.intensity.unit_to_zscore(unit), np.asarray(turned, np.int64)

    def _unlabeled_patch(self, case_id: str, step: int, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        rng = derive_rng(self.seed, self.rank, step, UNLABELED_STREAM, slot)
        case = self.store.load(case_id)
        start = choose_box(case.image.shape[1:], self.patch_size, rng)
        unit, _ = self.views.apply_geometry(cut_unit(case, start, self.patch_size), None, rng)
        strong = self.views.strengthen(unit, rng)
        return case.intensity.unit_to_zscore(unit), case.intensity.unit_to_zscore(strong)


@dataclass(frozen=True)
class Probe:
    """A fixed set of patches: ``image`` (N,C,*P) float32, ``target`` (N,*P) int64. N may be 0."""

    image: Tensor
    target: Tensor


def make_loader(
    source: PatchSource, first_step: int, last_step: int, workers: int, pin_memory: bool
) -> DataLoader[Batch]:
    """Return the batches of the steps ``first_step .. last_step - 1`` in order."""
    return DataLoader(
        source,
        batch_size=None,
        sampler=range(first_step, last_step),
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin_memory,
        persistent_workers=False,
    )


def make_probe(
    store: CaseStore, case_ids: Sequence[str], patches: int, patch_size: tuple[int, ...], seed: int
) -> Probe:
    """Return ``patches`` random tiles, walked over the cases in turn; the same for every run of one seed."""
    images, targets = [], []
    cases = CaseStream(tuple(case_ids), seed, PROBE_STREAM)
    for index in range(patches if case_ids else 0):
        case = store.load(cases[index])
        if case.target is None:
            raise DataError(f"case '{cases[index]}' is in a probe but has no mask")
        start, ignored = choose_tile(case.target.shape, patch_size, derive_rng(seed, PROBE_STREAM, index))
        target = crop(case.target, start, patch_size, IGNORE_INDEX).astype(np.int64)
        for axis, front in enumerate(ignored):
            np.moveaxis(target, axis, 0)[:front] = IGNORE_INDEX
        images.append(case.intensity.unit_to_zscore(cut_unit(case, start, patch_size)))
        targets.append(target)
    if not images:
        return Probe(torch.empty(0, store.channels, *patch_size), torch.empty(0, *patch_size, dtype=torch.int64))
    return Probe(torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets)))


def _as_is(batch: Any) -> Any:
    return batch
