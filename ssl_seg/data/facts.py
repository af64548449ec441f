"""Read a case once, for its facts: sizes, mask values, intensities, and the digits that identify its image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.blocks import iterate_blocks
from ssl_seg.data.content import image_of, make_content
from ssl_seg.data.formats.layout import GUESS
from ssl_seg.data.formats.pixels import ONE_INTEGER, LabelColors
from ssl_seg.data.formats.stored import take_region
from ssl_seg.data.grids import compare_grids
from ssl_seg.data.layouts.listing import Case, Region
from ssl_seg.data.mask_values import Kept, MaskScan, scan_mask
from ssl_seg.data.nodata import OddValues
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.volumes import ROUNDED, Stored, open_image, open_mask, takes_axes
from ssl_seg.errors import DataError, counted
from ssl_seg.labels import Meaning, apply_label_map

THUMBNAIL_SIZE = {2: (32, 32), 3: (16, 16, 16)}


@dataclass(frozen=True, slots=True)
class Appearance:
    """Intensities of a whole image, all channels together, without voxels that have no data.

    ``at_low`` and ``at_high`` are the shares of voxels that have the smallest and the largest value. ``thumbnail`` is
    the image minus its mean, averaged over its channels and down to 32 x 32 (a volume: 16 x 16 x 16) voxels.
    """

    low: float
    high: float
    mean: float
    std: float
    at_low: float
    at_high: float
    thumbnail: Kept[NDArray[np.float32]] = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class CaseFacts:
    """Facts of a case that reading it has shown.

    ``shape`` is *S; ``values`` are the mask's values, sorted, and ``counts`` how many voxels have each, without those
    where the image has no data; ``foreground`` is the share of voxels that are not background among those that are not
    ignored, and ``annotated`` the share of the latter. All four are None without a mask; for one that ignores all,
    ``annotated`` is 0 and the others are None.
    ``content`` is 16 hex digits of SHA-256 over the decoded arrays, so the same for any file format (but a color image
    of equal channels counts as gray only where its file is not read by box): 12 of the image, then 4 of the mask (zeros
    without one); the first 12 find an image again that lost or gained its mask. ``spacing`` is the size of a voxel (*S)
    that somebody has stated, or else the image file. ``appearance`` is None only where no file was read.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    values: tuple[int, ...] | None
    foreground: float | None
    content: str
    counts: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    appearance: Appearance | None = None
    mapped: tuple[int, ...] = ()
    """Values of the mask file that the label map turned into others, sorted."""
    doubt: str | None = None
    """Why mask and image may not lie on each other."""
    annotated: float | None = None
    labeled_box: Region | None = None
    """Box of the voxels that are not ignored; None without a mask."""
    missing: float = 0.0
    """Share of the values of the image that are left out, because there is no data."""
    odd_value: float | None = None
    """A value of many voxels that looks like a mark for no data; see ``OddValues``."""
    decoded: tuple[bool, bool] = (False, False)
    """Whether image and mask are decoded whole, as compressed files are, and not read by box."""
    notes: tuple[str, ...] = ()
    """Changes to the values of the files, and guesses about them; see ``describe_notes``."""
    label_colors: LabelColors = ()
    """The colors that the mask has for its values."""
    scan: MaskScan | None = field(default=None, compare=False, repr=False)
    """The mask as stored, until ``settle_facts`` has said what its values mean."""

    @property
    def is_constant_mask(self) -> bool:
        """Whether there is nothing but background, or nothing but foreground, in a mask that ignores less than half."""
        return self.foreground in (0, 1) and (self.annotated is None or self.annotated >= 0.5)

    @property
    def voxels(self) -> dict[int, int]:
        """How many voxels have each value of the mask; empty without one."""
        return dict(zip(self.values or (), self.counts or (), strict=True))

    @property
    def image(self) -> str:
        """What identifies the image alone."""
        return image_of(self.content)


_OTHER_AXES = ("CYX", "YXC", "ZYX", "ZYXC", "ZCYX", "CZYX")

OpenedCase = tuple[Stored, Stored | None]
"""Image, and mask if there is one."""


class SizeMismatchError(DataError):
    """An image and its mask differ in size."""


def open_case(case: Case, reading: Reading = AS_STORED) -> OpenedCase:
    """Return the files of a case, opened, or the part of them that the case is.

    Raises:
        DataError: if a file cannot be read.
    """
    image = take_region(open_image(case.image, *case.more_channels, reading=reading), case.region)
    if case.mask is None:
        return image, None
    return image, take_region(open_mask(case.mask, reading=reading), case.region)


def settle_reading(cases: Sequence[Case], reading: Reading) -> Reading:
    """Return the reading with the ``axes`` that give an image the size of its mask, or as it is where none do.

    Args:
        cases: whose images are read in another size than their masks; the first that ``data.axes`` holds for tells.
        reading: how they were read.
    """
    telling = [case for case in cases if takes_axes(case.image)]
    for axes in _OTHER_AXES if telling and reading.axes is None else ():
        with suppress(DataError):
            other = replace(reading, axes=axes)
            image, mask = open_case(telling[0], other)
            if mask is not None and mask.shape[1:] == image.shape[1:]:
                return other
    return reading


def describe_notes(facts: Mapping[str, CaseFacts]) -> tuple[str, ...]:
    """Return notes on changes to the values of files on reading, one for each kind, with the number of files.

    Axes that were guessed are left out where they gave images the size of their masks.
    """
    count = Counter(note for own in facts.values() for note in own.notes)
    proven = {note for own in facts.values() if own.values is not None for note in own.notes if GUESS in note}
    said = ((number, note.split(": ", 1)) for note, number in count.items() if note not in proven)
    return tuple(f"{counted(number, what)}: {note}" for number, (what, note) in said)


def read_facts(
    case: Case, *, threshold: float | None = None, reading: Reading = AS_STORED, opened: OpenedCase | None = None
) -> CaseFacts:
    """Read a case once, in blocks where its files allow it. Its mask is found in ``scan``, all else of it is None.

    Args:
        case: image and, for a labeled case, mask.
        threshold: what a mask of fractions will be compared with; None if it is not known yet.
        reading: how the files are read, where they leave it open.
        opened: the files of the case, where they are open already.

    Raises:
        SizeMismatchError: if image and mask differ in size.
        GridMismatchError: if they lie at different places.
        DataError: if a file cannot be read.
    """
    image, mask = opened or open_case(case, reading)
    digest, appearance, missing, odd_value = _scan_image(image)
    constant, shape = appearance.low == appearance.high, image.shape[1:]
    said = [(what, note) for what, file in (("image", image), ("mask", mask)) if file for note in file.notes]
    facts = CaseFacts(
        shape,
        image.shape[0],
        image.dtype.name,
        values=None,
        foreground=None,
        content=make_content(digest, None, constant=constant),
        spacing=None if image.geometry is None else image.geometry.spacing,
        appearance=appearance,
        missing=missing,
        odd_value=odd_value,
        decoded=(not image.by_box, mask is not None and not mask.by_box),
        notes=tuple(f"{what}: {note}" for what, note in said),
    )
    if mask is None:
        return facts
    if mask.shape[1:] != shape:
        same = sorted(mask.shape[1:]) == sorted(shape)
        order = " Are the axes of one of them in another order? Name those of arrays by data.axes." if same else ""
        if all(own <= of_image for own, of_image in zip(mask.shape[1:], shape, strict=False)) and not same:
            order = (
                " If only a part of the image is labeled, write its mask into an array of the size of the image that "
                "holds a value that no label has wherever nobody has labeled, and name it: data.ignore_value=255, or "
                "data.ignore_value=128 for masks of 0 and 255."
            )
        if len(mask.shape) == len(image.shape) + 1 and shape in (mask.shape[2:], mask.shape[1:-1]):
            order = f" If the mask has a plane for each class (one-hot, or probabilities), {ONE_INTEGER}."
        raise SizeMismatchError(
            f"{mask.location}: the mask is {format_size(mask.shape[1:])}, its image {format_size(shape)}. "
            f"They must have the same size.{''.join(f' (The {what}: {note}.)' for what, note in said) or order}"
        )
    doubt = compare_grids(mask.location, mask.geometry, image.location, image.geometry, shape)
    mask_digest, scan = scan_mask(mask, threshold, image if missing else None)
    rounded = (f"mask: values within {ROUNDED} of a whole number are rounded",) if scan.rounded else ()
    content = make_content(digest, mask_digest, constant=constant)
    return replace(
        facts, content=content, doubt=doubt, notes=facts.notes + rounded, label_colors=mask.label_colors, scan=scan
    )


def settle_facts(facts: CaseFacts, meaning: Meaning) -> CaseFacts:
    """Return facts with what ``meaning`` makes of the mask, in label values; the scan is let go.

    Of a mask of fractions they are exact only if it has been scanned with the threshold, and None if ``meaning`` takes
    integers. They are None too where no voxel is left to look at, but for ``annotated``, which is 0.
    """
    if facts.scan is None or (facts.scan.fractions and not meaning.takes_fractions):
        return replace(facts, scan=None)
    stored, labels = facts.scan.values, meaning.to_labels(facts.scan.values)
    mapping = {} if meaning.takes_fractions else meaning.label_map
    values, rows = np.unique(labels, return_inverse=True)
    counts = np.zeros(len(values), np.int64)
    np.add.at(counts, rows, facts.scan.counts)
    count = Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    looked_at = count.total() - (0 if meaning.ignore_value is None else count[meaning.ignore_value])
    if not looked_at:
        return replace(facts, scan=None, annotated=0.0)
    boxes = facts.scan.box[labels != meaning.ignore_value]
    return replace(
        facts,
        values=tuple(values.tolist()),
        foreground=(looked_at - count[meaning.background]) / looked_at,
        counts=tuple(counts.tolist()),
        mapped=tuple(stored[apply_label_map(stored, mapping) != stored].tolist()),
        annotated=looked_at / prod(facts.shape),
        labeled_box=tuple(zip(boxes[:, 0].min(axis=0).tolist(), boxes[:, 1].max(axis=0).tolist(), strict=True)),
        scan=None,
    )


def state_spacing(facts: Mapping[str, CaseFacts], spacing: tuple[float, ...] | None) -> dict[str, CaseFacts]:
    """Return facts with a voxel size (*S) in place of that of the files, unless it is None or has other axes."""
    given = () if spacing is None else spacing
    return {i: replace(f, spacing=spacing) if len(f.shape) == len(given) else f for i, f in facts.items()}


def format_size(sizes: Sequence[float], digits: str = "") -> str:
    """Return a shape such as ``44 x 80 x 72``, or the sizes of a voxel."""
    return " x ".join(f"{size:{digits}}" for size in sizes)


def _scan_image(image: Stored) -> tuple[str, Appearance, float, float | None]:
    """Return the digest of the array as the file has it, its statistics, the share without data, and an odd value."""
    stored_dtype = image.dtype if image.gaps is None else image.gaps.dtype
    digests = [hashlib.sha256() for _ in range(image.shape[0])]
    digests[0].update(f"{stored_dtype.name} {image.shape}".encode())
    lows, highs, odd = Counter[float](), Counter[float](), OddValues()
    total = squares = shift = 0.0
    size = 0
    thumbnail, empty = (np.zeros(THUMBNAIL_SIZE[len(image.shape) - 1]) for _ in range(2))
    for block in iterate_blocks(image):
        stored = block.voxels if image.gaps is None else image.gaps.fill(block.voxels)
        digests[block.channel].update(np.ascontiguousarray(stored).data)
        gaps = None if image.gaps is None else np.isnan(block.voxels)
        known = block.voxels if gaps is None or not gaps.any() else block.voxels[~gaps]
        if known.size:
            # Deviations from a value of the image: sums of plain squares lose all digits where the mean is large.
            shift = shift if lows else float(known.flat[0])
            for extreme, found in ((lows, known.min()), (highs, known.max())):
                extreme[float(found)] += int(np.count_nonzero(known == found))
            odd.look_at(known, stored_dtype)
        size += known.size
        voxels = block.voxels.astype(np.float64)
        voxels -= shift
        if known.size < voxels.size:
            empty += _shrink(np.isnan(voxels).astype(np.float64), block.start, image.shape[1:]) / image.shape[0]
            np.nan_to_num(voxels, copy=False)
        total += float(voxels.sum())
        squares += float(np.einsum("i,i", flat := voxels.ravel(), flat))
        thumbnail += _shrink(voxels, block.start, image.shape[1:]) / image.shape[0]
    if not size:
        raise DataError(f"{image.location}: no voxel has data: all hold NaN or the value for no data. Leave it out.")
    low, high, deviation = min(lows), max(highs), total / size
    thumbnail -= deviation * (1 - empty)
    if np.abs(thumbnail).max() <= 1e-9 * (high - low):
        thumbnail[:] = 0  # rounding errors: the channels are constant
    appearance = Appearance(
        low=low,
        high=high,
        mean=shift + deviation,
        std=max(squares / size - deviation**2, 0.0) ** 0.5,
        at_low=lows[low] / size,
        at_high=highs[high] / size,
        thumbnail=thumbnail.astype(np.float32),
    )
    first, *others = (digest.hexdigest() for digest in digests)
    digest = hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first
    return digest, appearance, 1 - size / prod(image.shape), odd.find()


def _shrink(rows: NDArray[np.float64], start: int, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the contribution of ``rows`` of an image of ``shape`` to its thumbnail."""
    cells = THUMBNAIL_SIZE[len(shape)]
    small = rows
    for axis in reversed(range(1, len(shape))):
        small = _sum_cells(small, axis, np.linspace(0, shape[axis], cells[axis] + 1))
    edges = np.linspace(0, shape[0], cells[0] + 1) - start
    small = _sum_cells(small, 0, np.clip(edges, 0, len(rows)))
    return small * (prod(cells) / prod(shape))


def _sum_cells(values: NDArray[np.float64], axis: int, edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sums between successive ``edges`` of an axis, which may lie inside voxels.

    By sums up to each edge, the first of which is 0 and the last the length of the axis: a matrix product would wait
    for its threads in every one of thousands of small calls.
    """
    along = np.moveaxis(values, axis, -1)
    whole = np.floor(edges).astype(np.intp)
    places = np.unique(whole)
    sums = np.add.reduceat(along, places[:-1], axis=-1)
    running = np.concatenate([np.zeros((*along.shape[:-1], 1)), np.cumsum(sums, axis=-1)], axis=-1)
    last = np.minimum(whole, along.shape[-1] - 1)
    up_to_edge = running[..., np.searchsorted(places, whole)] + (edges - whole) * along[..., last]
    return np.moveaxis(np.diff(up_to_edge, axis=-1), -1, axis)
