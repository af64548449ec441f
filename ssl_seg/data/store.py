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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.blocks import BLOCK_BYTES, iterate_blocks
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.disk_cache import DiskCache, Grid, find_grid, open_copy
from ssl_seg.data.facts import OpenedCase, format_size
from ssl_seg.data.formats.stored import AnyArray, LazyArray, merge_equal_channels, take_region
from ssl_seg.data.instances import make_target
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.resample import compute_resampled_shape, resample_image, resample_labels
from ssl_seg.data.sampling import derive_rng, locate_box
from ssl_seg.data.views.transforms import Intensity, find_gaps, make_window, measure_intensity, measure_parts
from ssl_seg.data.volumes import Stored, open_image, open_mask
from ssl_seg.errors import DataError, counted
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

    image: AnyArray
    target: AnyArray | None
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


Image = TypeVar("Image")


class CaseStore:
    """Reads cases of a catalog and keeps the most recently used ones, up to a number of bytes.

    Args:
        catalog: where the cases are.
        channels: channels that the network expects; gray images are repeated to 3.
        max_bytes: limit of the cache. If the decoded data set is larger, files that can be read by box are, and of the
            others the most recently used are kept.
        disk_cache: decoded copies of files that cannot be read by box, or None.
        resample_to: voxel size (*S) of what ``load`` returns; None keeps the grid of the file.
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
        window: tuple[float, float] | None = None,
        targets: Mapping[str, Path] | None = None,
    ) -> None:
        self.catalog, self.channels, self.max_bytes = catalog, channels, max_bytes
        self.targets = dict(targets or {})
        self.disk_cache, self.resample_to, self.window = disk_cache, resample_to, window
        self.fits = decoded_bytes(catalog, resample_to) <= max_bytes
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
        return self.resample_to or self.catalog.facts[case_id].spacing

    def load_whole(self, case_id: str) -> WholeCase:
        """Return a case on the grid of its file, all of it in memory.

        Raises:
            DataError: as for ``load``, and for a case whose target is not that of a mask: it must not be scored.
        """
        if case_id in self.targets:
            raise DataError(f"case '{case_id}' has a pseudo-label, and these are never scored")
        case = self.catalog.case(case_id)
        spacing = self.catalog.facts[case_id].spacing
        if self.resample_to is None:
            loaded = self.load(case_id)
            if isinstance(loaded.image, np.ndarray) and not isinstance(loaded.target, LazyArray):
                return WholeCase(loaded.image, loaded.target, spacing)
        image, mask = self._read_arrays(case, self._open(case))
        return WholeCase(image, self._make_target(case, image, mask), spacing)

    def _read(self, case: Case) -> LoadedCase:
        if self.resample_to is None:
            opened = self._open(case)
            if opened[0].by_box and not self.fits:
                return self._load_by_box(case, *opened)
            image, mask = self._read_arrays(case, opened)
        else:
            grid = find_grid(self.catalog, case, self.resample_to)
            copy, mask_copy = (None, None) if self.fits else self._open_copies(case, grid)
            if copy is not None and (mask_copy is not None or case.mask is None):
                return self._load_by_box(case, copy, mask_copy)
            image, mask = self._read_arrays(case, self._open(case))
            image = resample_image(image, grid.shape)
            # The mask and not its target: objects are thicker or thinner on another grid.
            mask = None if mask is None else resample_labels(mask, grid.shape)
        intensity = self._fixed_intensity or measure_intensity(image)
        return self._load(case, image, self._make_target(case, image, mask), intensity)

    def _load(self, case: Case, image: AnyArray, target: NDArray[np.int16] | None, intensity: Intensity) -> LoadedCase:
        """Return a case that has its target in memory, or none."""
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

    def _open(self, case: Case) -> OpenedCase:
        """Return image and mask of a case, opened; all parts of an image share what is decoded."""
        files = replace(case, id="", region=None)
        if case.region is None:
            return self._open_files(files)
        if self._opened is None or self._opened[0] != files:
            self._opened = None  # free the last image before the next one is decoded
            self._opened = files, self._open_files(files)
        image, mask = self._opened[1]
        return take_region(image, case.region), mask and take_region(mask, case.region)

    def _open_files(self, case: Case) -> OpenedCase:
        (image, mask), reading = self._open_copies(case), self.catalog.reading
        image = image or open_image(case.image, *case.more_channels, reading=reading)
        return image, mask or (None if case.mask is None else open_mask(case.mask, reading=reading))

    def _open_copies(self, case: Case, grid: Grid | None = None) -> tuple[Stored | None, Stored | None]:
        """Return the decoded copies of image and mask, on the grid of the files or another one, where they are."""
        if self.disk_cache is None:
            return None, None
        find = partial(self.disk_cache.find, reading=self.catalog.reading, grid=grid)
        paths = find(case.image, *case.more_channels), case.mask and find(case.mask, is_mask=True)
        image, mask = (open_copy(path) if path else None for path in paths)
        return image, mask

    def load_objects(self, case_id: str) -> NDArray[np.int32] | None:
        """Return 0, the numbers 1..n of the objects and IGNORE_INDEX (*S), on the grid of the file.

        None where the mask does not number objects, or there is none.

        Raises:
            DataError: for a mask that cannot be read.
        """
        if self.catalog.meaning.kind != "instances":
            return None
        case = self.catalog.case(case_id)
        image, mask = self._read_arrays(case, self._open(case))
        return None if mask is None else self._to_objects(mask, self._beside(case, image))

    def _read_arrays(
        self, case: Case, opened: OpenedCase
    ) -> tuple[NDArray[np.generic], NDArray[np.integer[Any]] | None]:
        """Return image (C,*S) and mask (*S) as stored."""
        image, mask = opened
        return fit_channels(image.read(), self.channels, case.image), None if mask is None else mask.read()[0]

    def _beside(self, case: Case, image: Image) -> Image | None:
        """Return the image where it has gaps, which its target has too."""
        return image if self.catalog.facts[case.id].missing else None

    def _make_target(
        self, case: Case, image: NDArray[np.generic], mask: NDArray[np.integer[Any]] | None
    ) -> NDArray[np.int16] | None:
        return None if mask is None else self._to_target(mask, self._beside(case, image))

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

    def _read_target(self, mask: Stored, beside: Stored | None, key: tuple[Any, ...]) -> NDArray[np.int16]:
        """Return the target of a box: the ``key`` without its first entry."""
        return self._to_target(mask.read(key[1:])[0], None if beside is None else beside.read(key[1:]))

    def _load_by_box(self, case: Case, stored: Stored, mask: Stored | None) -> LoadedCase:
        image, shape = read_fitting(stored, self.channels, case.image), stored.shape[1:]
        intensity = self._fixed_intensity or self._known_intensity(case) or measure_by_block(stored, self.channels)
        if mask is None:
            return self._load(case, image, None, intensity)
        beside = self._beside(case, stored)
        reader = LazyArray(shape, np.dtype(np.int16), partial(self._read_target, mask, beside))
        if not mask.by_box or self.catalog.meaning.task == "instances":
            # Decoded anyway, or objects, whose target takes all of them: as an array it counts for the limit.
            return self._load(case, image, reader[(..., *(slice(0, n) for n in shape))], intensity)

        def read_target() -> Iterator[tuple[int, NDArray[np.int16]]]:
            for block in iterate_blocks(mask):
                yield block.start, self._to_target(block.voxels, None if beside is None else beside.read(block.box))

        counted = () if self.resample_to is None else (target for _, target in read_target())
        foreground, each, annotated = _find_points(read_target(), self._count_voxels(case, counted))
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


def decoded_bytes(catalog: Catalog, resample_to: tuple[float, ...] | None = None) -> int:
    """Return the memory that all images (and targets of 2 bytes a voxel) of a catalog take when decoded.

    Args:
        catalog: the cases.
        resample_to: see ``CaseStore``; an image without a voxel size counts as it is stored.
    """
    channels, total = catalog.channels, 0
    for facts in catalog.facts.values():
        shape, dtype = facts.shape, np.dtype(facts.dtype)
        if resample_to is not None:
            dtype = np.promote_types(dtype, np.float32)
            if facts.spacing is not None:
                shape = compute_resampled_shape(shape, facts.spacing, resample_to)
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
    """Return (C,*S) with the wanted number of channels; a gray image is a color image with equal channels, and back.

    Raises:
        DataError: for any other number of channels.
    """
    if len(image) == channels:
        return image
    if (len(image), channels) == GRAY_FOR_COLOR:
        return np.repeat(image, channels, axis=0)
    if (channels, len(image)) == GRAY_FOR_COLOR and len(gray := merge_equal_channels(image)) == channels:
        return gray
    raise DataError(f"{where} has {counted(len(image), 'channel')} and the network takes {channels}: convert it first")


def read_fitting(image: Stored, channels: int, where: str) -> LazyArray:
    """Return an opened image as an array that is read by box, with the wanted number of channels.

    Raises:
        DataError: see ``fit_channels``; when a box is read.
    """
    return LazyArray((channels, *image.shape[1:]), image.dtype, partial(_read_fitting, image, channels, where))


def _read_fitting(image: Stored, channels: int, where: str, key: tuple[Any, ...]) -> NDArray[np.generic]:
    return fit_channels(image.read(key[1:]), channels, where)


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
