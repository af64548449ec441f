"""Decoded cases, kept in memory up to a limit, and boxes cut out of them.

Shapes: C channels, *S spatial = (Z, Y, X) or (Y, X), *P a patch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.blocks import BLOCK_BYTES, iterate_blocks
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.disk_cache import DiskCache, Grid, find_grid, open_copy
from ssl_seg.data.facts import OpenedCase, format_size, open_case
from ssl_seg.data.formats.stored import BoxReader, Voxels, take_region
from ssl_seg.data.instances import make_target
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.resample import compute_resampled_shape, resample_image, resample_labels
from ssl_seg.data.sampling import derive_rng, locate_box
from ssl_seg.data.views.transforms import Intensity, find_gaps, make_window, measure_intensity, measure_parts
from ssl_seg.data.volumes import Stored, open_image, open_mask, read_image, read_mask
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX, to_target

GRAY_FOR_COLOR = (1, 3)
"""Channels of an image and of a network that take each other all the same: color images may be mixed with gray ones."""

FOREGROUND_POINTS = 4096
"""Voxels of each foreground class that are remembered as possible centers of patches: all, or of twice as many and more
a random one of every n, at least this many and fewer than twice as many."""


@dataclass(frozen=True)
class LoadedCase:
    """A case ready to be cut.

    ``image`` (C,*S) raw, NaN where it has no data; ``target`` (*S) int16, or None without a mask; ``foreground`` has
    (n, ndim) coordinates for each foreground class that is present, and is empty without a mask; each of them stands
    for ``voxels_each`` voxels of its class. ``annotated`` has coordinates of voxels that are not ignored, where others
    are.
    """

    image: Voxels
    target: Voxels | None
    foreground: tuple[NDArray[np.integer], ...]
    intensity: Intensity
    voxels_each: tuple[int, ...] = ()
    annotated: tuple[NDArray[np.integer], ...] = ()

    @property
    def nbytes(self) -> int:
        """Memory held by the arrays."""
        arrays = (self.image, self.target, *self.foreground, *self.annotated)
        return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))


@dataclass(frozen=True)
class WholeCase:
    """A case as stored: ``image`` (C,*S) raw, NaN where it has no data; ``target`` (*S) int16 or None; ``spacing`` (*S)
    where it is known."""

    image: NDArray[np.generic]
    target: NDArray[np.int16] | None
    spacing: tuple[float, ...] | None


class CaseStore:
    """Reads cases of a catalog and keeps the most recently used ones, up to a number of bytes.

    Args:
        catalog: where the cases are.
        channels: channels that the network expects; gray images are repeated to 3.
        max_bytes: limit of the cache. If the decoded data set is larger, files that can be read by box are, and of the
            others the most recently used are kept.
        disk_cache: decoded copies of files that cannot be read by box, or None.
        resample_to: voxel size (*S) of what ``load`` returns; None keeps the grid of the file.
        spacing: voxel size (*S) that holds for all images; None takes that of each file.
        window: lowest and highest intensity that the network tells apart; None takes the statistics of each image.
        targets: files (NPY) of targets on the grid of ``load`` that take the place of masks, by case.
    """

    def __init__(
        self,
        catalog: Catalog,
        channels: int,
        max_bytes: int = 2**31,
        *,
        disk_cache: DiskCache | None = None,
        resample_to: tuple[float, ...] | None = None,
        spacing: tuple[float, ...] | None = None,
        window: tuple[float, float] | None = None,
        targets: Mapping[str, Path] | None = None,
    ) -> None:
        self.catalog, self.channels, self.max_bytes = catalog, channels, max_bytes
        self.targets = dict(targets or {})
        self.disk_cache, self.resample_to, self.spacing, self.window = disk_cache, resample_to, spacing, window
        self.fits = decoded_bytes(catalog, resample_to, spacing) <= max_bytes
        self._cache: OrderedDict[str, LoadedCase] = OrderedDict()
        self._held = 0
        self._opened: tuple[Case, OpenedCase] | None = None

    def load(self, case_id: str) -> LoadedCase:
        """Return a case on the grid that the network sees.

        Raises:
            DataError: unknown id, unreadable file, a mask value without a class, or no voxel size to resample from.
        """
        if case_id in self._cache:
            self._cache.move_to_end(case_id)
            return self._cache[case_id]
        case = self.catalog.case(case_id)
        if case_id in self.targets:
            loaded = self._exchange_target(self._read(replace(case, mask=None)), self.targets[case_id])
        else:
            loaded = self._read(case)
        self._cache[case_id] = loaded
        self._held += loaded.nbytes
        while self._held > self.max_bytes and self._cache:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return loaded

    def find_spacing(self, case_id: str) -> tuple[float, ...] | None:
        """Return the voxel size (*S) of what ``load`` returns, where it is known."""
        return self.resample_to or self.spacing or self.catalog.facts[case_id].spacing

    def load_whole(self, case_id: str) -> WholeCase:
        """Return a case on the grid of its file, all of it in memory.

        Raises:
            DataError: as for ``load``, and for a case whose target is not that of a mask: it must not be scored.
        """
        if case_id in self.targets:
            raise DataError(f"case '{case_id}' has a pseudo-label, and these are never scored")
        case = self.catalog.case(case_id)
        spacing = self.spacing or self.catalog.facts[case_id].spacing
        if self.resample_to is None:
            loaded = self.load(case_id)
            if isinstance(loaded.image, np.ndarray) and not isinstance(loaded.target, BoxReader):
                return WholeCase(loaded.image, loaded.target, spacing)
        return WholeCase(*self._read_whole(case), spacing)

    def _read(self, case: Case) -> LoadedCase:
        image: NDArray[np.generic]
        if self.resample_to is not None:
            grid = find_grid(self.catalog, case, self.resample_to, self.spacing)
            if not self.fits and (copies := self._find_resampled(case, grid)) is not None:
                return self._open_by_box(case, *copies)
            image, mask = self._read_arrays(case)
            image = resample_image(image, grid.shape)
            # The mask and not its target: objects are thicker or thinner on another grid.
            target = (
                None if mask is None else self._to_target(resample_labels(mask, grid.shape), self._beside(case, image))
            )
        elif not self.fits and (stored := self._open_image(case)).by_box:
            return self._open_by_box(case, stored, None if case.mask is None else self._open_mask(case, case.mask))
        else:
            image, target = self._read_whole(case)
        intensity = self._fixed_intensity or measure_intensity(image)
        if target is None:
            return LoadedCase(image, None, (), intensity)
        foreground, each, annotated = _find_points([(0, target)], self._count_voxels(case, [target]))
        return LoadedCase(image, target, foreground, intensity, each, annotated)

    def _exchange_target(self, loaded: LoadedCase, file: Path) -> LoadedCase:
        """Return a case with the target of a file."""
        try:
            target = np.load(file, mmap_mode=None if self.fits else "r").astype(np.int16, copy=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
        if target.shape != loaded.image.shape[1:]:
            shapes = f"{format_size(target.shape)} and {format_size(loaded.image.shape[1:])}"
            raise DataError(f"{file} and its image have the shapes {shapes}: the images are others than before")
        counts = [int(np.count_nonzero(target == label)) for label in range(1, self.catalog.num_classes)]
        foreground, each, _ = _find_points([(0, target)], [0, *counts])
        return replace(loaded, target=target, foreground=foreground, voxels_each=each)

    @property
    def _fixed_intensity(self) -> Intensity | None:
        return None if self.window is None else make_window(self.window, self.channels)

    def _known_intensity(self, case: Case) -> Intensity | None:
        """Return the statistics of an image of one channel, which the facts have; None where they must be measured."""
        facts = self.catalog.facts[case.id]
        seen = facts.appearance
        if seen is None or facts.channels > 1 or self.resample_to is not None:
            return None
        width = seen.std if seen.low < seen.high and seen.std > 0 else 1.0
        low, high, mean, std = (np.full(self.channels, figure) for figure in (seen.low, seen.high, seen.mean, width))
        return Intensity(low, high, mean, std)

    def _open_image(self, case: Case) -> Stored:
        locations, reading = (case.image, *case.more_channels), self.catalog.reading
        copy = None if self.disk_cache is None else self.disk_cache.find(*locations, reading=reading)
        if copy is None:
            return open_image(*locations, reading=reading) if case.region is None else self._open_part(case)[0]
        return take_region(open_copy(copy), case.region)

    def _open_mask(self, case: Case, location: str) -> Stored:
        reading = self.catalog.reading
        copy = None if self.disk_cache is None else self.disk_cache.find(location, is_mask=True, reading=reading)
        part = None if case.region is None or copy is not None else self._open_part(case)[1]
        return part or take_region(
            open_mask(location, reading=reading) if copy is None else open_copy(copy), case.region
        )

    def _find_resampled(self, case: Case, grid: Grid) -> tuple[Stored, Stored | None] | None:
        """Return the copies of image and mask on a grid; None unless all that are needed are there."""
        if self.disk_cache is None:
            return None
        find = partial(self.disk_cache.find, reading=self.catalog.reading, grid=grid)
        image = find(case.image, *case.more_channels)
        mask = None if case.mask is None else find(case.mask, is_mask=True)
        if image is None or (mask is None and case.mask is not None):
            return None
        return open_copy(image), None if mask is None else open_copy(mask)

    def load_objects(self, case_id: str) -> NDArray[np.int32] | None:
        """Return 0, the numbers 1..n of the objects and IGNORE_INDEX (*S), on the grid of the file.

        None where the mask does not number objects, or there is none.

        Raises:
            DataError: for a mask that cannot be read.
        """
        if self.catalog.meaning.kind != "instances":
            return None
        case = self.catalog.case(case_id)
        image, mask = self._read_arrays(case)
        return None if mask is None else self._to_objects(mask, self._beside(case, image))

    def _read_whole(self, case: Case) -> tuple[NDArray[np.generic], NDArray[np.int16] | None]:
        image, mask = self._read_arrays(case)
        return image, None if mask is None else self._to_target(mask, self._beside(case, image))

    def _beside(self, case: Case, image: NDArray[np.generic]) -> NDArray[np.generic] | None:
        """Return the image where it has gaps, which its target has too."""
        return image if self.catalog.facts[case.id].missing else None

    def _read_arrays(self, case: Case) -> tuple[NDArray[np.generic], NDArray[Any] | None]:
        """Return image (C,*S) and mask (*S) as stored."""
        if case.region is not None:
            opened, mask = self._open_part(case)
            image = fit_channels(opened.read(), self.channels, case.image)
            labels = None if mask is None else mask.read()[0]
        else:
            reading = self.catalog.reading
            stored = read_image(case.image, *case.more_channels, reading=reading)
            image = fit_channels(stored, self.channels, case.image)
            labels = None if case.mask is None else read_mask(case.mask, reading=reading)
        return image, labels

    def _open_part(self, case: Case) -> OpenedCase:
        """Return the part of its files that a case is; files that were opened last are not decoded again."""
        files = replace(case, id="", region=None)
        if self._opened is None or self._opened[0] != files:
            self._opened = None  # free the last image before the next one is decoded
            self._opened = files, open_case(files, self.catalog.reading)
        image, mask = self._opened[1]
        return take_region(image, case.region), mask and take_region(mask, case.region)

    def _to_target(self, mask: NDArray[Any], image: NDArray[np.generic] | None = None) -> NDArray[np.int16]:
        """Return the target of a mask; where its image (C,*S) has gaps, whatever the mask holds is ignored."""
        meaning = self.catalog.meaning
        if meaning.task == "instances":
            return make_target(self._to_objects(mask, image))
        gaps = None if image is None else find_gaps(image)
        if gaps is None:
            return meaning.to_target(mask).astype(np.int16)
        labels = np.where(gaps, meaning.background, meaning.to_labels(mask))
        target = to_target(labels, self.catalog.label_values, meaning.ignore_value).astype(np.int16)
        target[gaps] = IGNORE_INDEX
        return target

    def _to_objects(self, mask: NDArray[Any], image: NDArray[np.generic] | None) -> NDArray[np.int32]:
        objects = self.catalog.meaning.to_objects(mask)
        if image is not None and (gaps := find_gaps(image)) is not None:
            objects[gaps] = IGNORE_INDEX
        return objects

    def _box_to_target(self, box: NDArray[np.integer], image: NDArray[np.generic] | None = None) -> NDArray[np.int16]:
        return self._to_target(box[0], image)

    def _open_by_box(self, case: Case, stored: Stored, mask: Stored | None) -> LoadedCase:
        shape, fit = stored.shape[1:], partial(fit_channels, channels=self.channels, where=case.image)
        image = BoxReader(stored, (self.channels, *shape), stored.dtype, fit)
        intensity = self._fixed_intensity or self._known_intensity(case) or measure_by_block(stored, self.channels)
        if mask is None:
            return LoadedCase(image, None, (), intensity)
        beside = stored if self.catalog.facts[case.id].missing else None
        if not mask.by_box or self.catalog.meaning.task == "instances":
            # Decoded anyway, or objects, whose target takes all of them: as an array it counts for the limit.
            target = self._box_to_target(mask.read(), None if beside is None else beside.read())
            foreground, each, annotated = _find_points([(0, target)], self._count_voxels(case, [target]))
            return LoadedCase(image, target, foreground, intensity, each, annotated)

        def read_target() -> Iterator[tuple[int, NDArray[np.int16]]]:
            for block in iterate_blocks(mask):
                yield block.start, self._to_target(block.voxels, None if beside is None else beside.read(block.box))

        counted = () if self.resample_to is None else (target for _, target in read_target())
        foreground, each, annotated = _find_points(read_target(), self._count_voxels(case, counted))
        reader = BoxReader(mask, shape, np.dtype(np.int16), self._box_to_target, beside)
        return LoadedCase(image, reader, foreground, intensity, each, annotated)

    def _count_voxels(self, case: Case, pieces: Iterable[NDArray[np.int16]]) -> list[int]:
        """Return how many voxels are not ignored, 0 where none is, and how many each foreground class has.

        The facts are those of the file: on another grid, and of objects, whose boundary is not in the file, they are
        counted in the ``pieces`` of the target.
        """
        facts, values = self.catalog.facts[case.id], self.catalog.label_values[1:]
        if self.resample_to is not None or self.catalog.meaning.task == "instances":
            found = [[(piece == index).sum() for index in (IGNORE_INDEX, *range(len(values) + 1))] for piece in pieces]
            ignored, *counts = map(int, np.sum(found, axis=0))
            return [sum(counts) if ignored else 0, *counts[1:]]
        annotated = sum(count for value, count in facts.voxels.items() if value != self.catalog.ignore_value)
        return [annotated if annotated < prod(facts.shape) else 0, *(facts.voxels.get(value, 0) for value in values)]


def decoded_bytes(
    catalog: Catalog, resample_to: tuple[float, ...] | None = None, spacing: tuple[float, ...] | None = None
) -> int:
    """Return the memory that all images (and targets of 2 bytes a voxel) of a catalog take when decoded.

    Args:
        catalog: the cases.
        resample_to, spacing: see ``CaseStore``; an image without a voxel size counts as it is stored.
    """
    channels, total = catalog.channels, 0
    for facts in catalog.facts.values():
        shape, dtype = facts.shape, np.dtype(facts.dtype)
        if resample_to is not None:
            dtype = np.promote_types(dtype, np.float32)
            if (own := spacing or facts.spacing) is not None:
                shape = compute_resampled_shape(shape, own, resample_to)
        total += prod(shape) * (channels * dtype.itemsize + 2 * (facts.values is not None))
    return total


_Points = tuple[NDArray[np.integer], ...]


def _find_points(
    pieces: Iterable[tuple[int, NDArray[np.int16]]], counts: Sequence[int]
) -> tuple[_Points, tuple[int, ...], _Points]:
    """Return coordinates (n, ndim) of each foreground class that is present, how many voxels of it each of them stands
    for, and coordinates of voxels that are not ignored, from (first row, rows of the target).

    Args:
        pieces: first row, and rows of the target.
        counts: numbers of voxels that are not ignored, 0 to look for none; then of each foreground class.
    """
    found: list[list[NDArray[np.integer]]] = [[] for _ in counts]
    wanted = [_choose_ranks(count) for count in counts]
    seen = [0] * len(counts)
    for start, rows in pieces:
        for n, (points, ranks) in enumerate(zip(found, wanted, strict=True)):
            if not counts[n]:
                continue
            voxels = np.flatnonzero(rows == n if n else rows != IGNORE_INDEX)
            first, last = np.searchsorted(ranks, (seen[n], seen[n] + len(voxels)))
            chosen = voxels[ranks[first:last] - seen[n]]  # the same, wherever the pieces end
            seen[n] += len(voxels)
            coordinates = np.stack(np.unravel_index(chosen, rows.shape), axis=1).astype(np.int32)
            coordinates[:, 0] += start
            points.append(coordinates)
    annotated, *joined = [
        (np.concatenate(p), _find_stride(count)) if p else None for p, count in zip(found, counts, strict=True)
    ]
    present = [of_class for of_class in joined if of_class is not None and len(of_class[0])]
    foreground, each = tuple(points for points, _ in present), tuple(each for _, each in present)
    return foreground, each, () if annotated is None or not len(annotated[0]) else annotated[:1]


def _find_stride(count: int) -> int:
    """Return of how many voxels one is remembered."""
    return max(1, count // FOREGROUND_POINTS)


def _choose_ranks(count: int) -> NDArray[np.int64]:
    """Return which of ``count`` voxels to remember, sorted: a random one of every n, so that all are equally likely.

    Every n-th would lie in few columns where n and the width of an image have a common factor.
    """
    stride = _find_stride(count)
    firsts = np.arange(0, count, stride)
    ranks = firsts + derive_rng(count).integers(stride, size=len(firsts))
    return ranks[ranks < count]


def measure_by_block(image: Stored, channels: int, block_bytes: int = BLOCK_BYTES) -> Intensity:
    """Return what ``measure_intensity`` gives for the whole image, repeated to ``channels``, holding one block."""
    blocks = iterate_blocks(image, block_bytes)
    found = measure_parts(((block.channel, block.voxels) for block in blocks), image.shape[0])
    low, high, mean, std = (np.resize(f, channels) for f in (found.low, found.high, found.mean, found.std))
    return Intensity(low, high, mean, std)


def fit_channels(image: NDArray[np.generic], channels: int, where: str) -> NDArray[np.generic]:
    """Return (C,*S) with the wanted number of channels; a gray image is a color image with equal channels.

    Raises:
        DataError: for any other number of channels.
    """
    if len(image) == channels:
        return image
    if (len(image), channels) == GRAY_FOR_COLOR:
        return np.repeat(image, channels, axis=0)
    own = "1 channel" if len(image) == 1 else f"{len(image)} channels"
    raise DataError(f"{where} has {own} and the network takes {channels}: convert it first")


def cut_unit(case: LoadedCase, start: Sequence[int], patch_size: Sequence[int]) -> NDArray[np.float32]:
    """Return a box (C,*P) in the unit range; outside the image each channel's mean, which becomes z-score 0."""
    inside, placed = locate_box(start, patch_size, case.image.shape[1:])
    cut: NDArray[Any] = case.image[(slice(None), *inside)]
    unit = case.intensity.to_unit(cut)
    if unit.shape[1:] == tuple(patch_size):
        return unit
    mean = case.intensity.mean_unit.reshape(-1, *[1] * len(patch_size))
    padded = np.broadcast_to(mean, (len(unit), *patch_size)).copy()
    padded[(slice(None), *placed)] = unit
    return padded
