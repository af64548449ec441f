"""Sets of masks of which the kind is known: what people have, and what looks alike and is not."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Masks = list[NDArray[np.generic]]
Rng = np.random.Generator


def discs(rng: Rng, count: int, size: tuple[int, ...] = (96, 96), radius: tuple[int, int] = (3, 7)) -> Masks:
    """Separate masks (*S) of ``count`` discs or balls at random places."""
    grid = np.indices(size)
    found = []
    for _ in range(count):
        center = [rng.integers(4, n - 4) for n in size]
        r = rng.integers(*radius)
        found.append(sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)) < r * r)
    return found


def foreground(rng: Rng, count: int, size: tuple[int, ...] = (96, 96)) -> NDArray[np.bool_]:
    return np.any([np.zeros(size, bool), *discs(rng, count, size)], axis=0)


def _numbers(rng: Rng, most: int, size: tuple[int, ...] = (96, 96)) -> NDArray[np.int32]:
    return np.asarray(ndimage.label(foreground(rng, int(rng.integers(2, most)), size))[0], np.int32)


def counted_anew(rng: Rng, most: int = 12, masks: int = 24) -> Masks:
    return [_numbers(rng, most) for _ in range(masks)]


def at_most_seven(rng: Rng) -> Masks:
    return [np.where(ids > 7, 0, ids) for ids in counted_anew(rng, 9)]


def in_random_order(rng: Rng) -> Masks:
    return [np.array([0, *(1 + rng.permutation(ids.max()))])[ids] for ids in counted_anew(rng, 14)]


def through_the_set(rng: Rng) -> Masks:
    return [ids + (ids > 0) * 100_000 * k for k, ids in enumerate(counted_anew(rng, 12, 12))]


def large_random(rng: Rng) -> Masks:
    return [np.array([0, *rng.choice(2**20, ids.max(), replace=False)])[ids] for ids in counted_anew(rng)]


def touching(rng: Rng) -> Masks:
    """Cells that fill the image: the nearest of n points; a few are background."""
    found = []
    for _ in range(16):
        points = rng.uniform(0, 96, (rng.integers(6, 30), 2))
        nearest = ((np.indices((96, 96))[:, None] - points.T[:, :, None, None]) ** 2).sum(0).argmin(0)
        found.append(np.where(nearest < 2, 0, nearest - 1))
    return found


def small_gone(rng: Rng) -> Masks:
    """Small objects were removed, and their numbers left out."""
    found = []
    for ids in counted_anew(rng, 24):
        size = np.bincount(ids.ravel())
        found.append(np.where(size[ids] < 40, 0, ids))
    return found


def in_3d(rng: Rng) -> Masks:
    return [_numbers(rng, 9, (16, 40, 40)) for _ in range(10)]


def tiles_of_one(rng: Rng) -> Masks:
    """Tiles of a large image whose objects were numbered before it was cut."""
    ids = np.asarray(ndimage.label(foreground(rng, 400, (480, 480)))[0], np.int32)
    return [ids[y : y + 96, x : x + 96] for y in range(0, 480, 96) for x in range(0, 480, 96)]


def one_image(rng: Rng) -> Masks:
    return [np.asarray(ndimage.label(foreground(rng, 150, (256, 256)))[0], np.int32)]


def kidneys(rng: Rng) -> Masks:
    """Left and right, one blob each, of one size; in some slices only one."""
    found = []
    for _ in range(20):
        mask = np.zeros((64, 64), np.uint8)
        for value, x in ((1, 16), (2, 48)):
            if rng.random() < 0.8:
                y, dx = rng.integers(24, 40), rng.integers(-4, 5)
                mask[y - 8 : y + 8, x + dx - 5 : x + dx + 5] = value
        found.append(mask)
    return found


def layers(rng: Rng) -> Masks:
    found = []
    for _ in range(12):
        edges = np.sort(rng.integers(5, 90, 3))
        found.append(np.searchsorted(edges, np.arange(96))[:, None] * np.ones((1, 96), int))
    return found


def organs(rng: Rng, count: int = 8) -> Masks:
    """One part each, of its own size at its own place; now and then one is outside of the image."""
    found = []
    for _ in range(16):
        mask = np.zeros((16, 64, 64), np.uint8)
        for value in range(1, count + 1):
            if rng.random() < 0.9:
                y, x = 4 + 7 * (value * 3 % 8) + rng.integers(-1, 2), 4 + 7 * (value * 5 % 8) + rng.integers(-1, 2)
                r = 1 + value % 4
                mask[4:12, max(y - r, 0) : y + r, max(x - r, 0) : x + r] = value
        found.append(mask)
    return found


def nested(rng: Rng) -> Masks:
    """A core within a region within another; the inner ones are not always there."""
    found = []
    grid = np.indices((16, 64, 64))
    for _ in range(20):
        center = rng.integers((6, 20, 20), (10, 44, 44))
        distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(grid, center, strict=True)))
        radii = (14, 9, 6, 3)[: rng.integers(1, 5)]
        found.append(sum((distance < r).astype(int) for r in radii))
    return found


def cell_types(rng: Rng) -> Masks:
    """Three classes of cells, several of each in most images."""
    found = []
    for _ in range(16):
        mask = np.zeros((96, 96), np.uint8)
        for disc in discs(rng, int(rng.integers(4, 20))):
            mask[disc] = rng.integers(1, 4)
        found.append(mask)
    return found


def one_class_each(rng: Rng) -> Masks:
    """Each image shows an object of one of six classes."""
    return [disc * np.uint8(rng.integers(1, 7)) for disc in discs(rng, 24)]


def shapes(rng: Rng) -> Masks:
    """Two to five of six classes in each image, one object of each, anywhere."""
    found = []
    for _ in range(24):
        mask = np.zeros((96, 96), np.uint8)
        values = rng.permutation(np.arange(1, 7))[: rng.integers(2, 6)]
        for value, disc in zip(values, discs(rng, len(values)), strict=True):
            mask[disc] = value
        found.append(mask)
    return found


def crops(rng: Rng) -> Masks:
    """Twelve organs of their own sizes, in crops at random places."""
    whole = np.zeros((160, 160), np.uint8)
    for value in range(1, 13):
        y, x, r = 20 + 40 * ((value * 5 % 12) // 3), 20 + 50 * (value * 5 % 3), 4 + value
        whole[y - r : y + r, x - r : x + r] = value
    corners = rng.integers(0, 64, (20, 2))
    return [whole[y : y + 96, x : x + 96] for y, x in corners]


def many_regions(rng: Rng) -> Masks:
    """An atlas: 40 regions that touch, nearly all in each image."""
    points = rng.uniform(0, 96, (41, 2))
    found = []
    for _ in range(8):
        moved = points + rng.normal(0, 1, points.shape)
        found.append(((np.indices((96, 96))[:, None] - moved.T[:, :, None, None]) ** 2).sum(0).argmin(0))
    return found


def scene(rng: Rng) -> Masks:
    """20 classes of regions with a frame of 255 around each, as in PASCAL VOC; usually a class has several parts."""
    found = []
    for _ in range(16):
        mask = np.zeros((96, 96), np.uint8)
        for disc in discs(rng, 5, radius=(6, 14)):
            mask[ndimage.binary_dilation(disc)] = 255
            mask[disc] = rng.integers(1, 21)
        found.append(mask)
    return found


def _black_white(rng: Rng) -> Masks:
    return [foreground(rng, 5).astype(np.uint8) * 255 for _ in range(10)]


def resized(rng: Rng) -> Masks:
    return [cv2.resize(cv2.resize(m, (48, 48)), (96, 96)) for m in _black_white(rng)]


def halved(rng: Rng) -> Masks:
    return [cv2.resize(m, (48, 48), interpolation=cv2.INTER_AREA) for m in _black_white(rng)]


def jpeg(rng: Rng, quality: int = 90) -> Masks:
    coded = (cv2.imencode(".jpg", m, [cv2.IMWRITE_JPEG_QUALITY, quality])[1] for m in _black_white(rng))
    return [cv2.imdecode(code, cv2.IMREAD_GRAYSCALE) for code in coded]


def one_resized(rng: Rng) -> Masks:
    masks = _black_white(rng)
    return [cv2.GaussianBlur(masks[0], (0, 0), 1), *masks[1:]]


def resized_16_bit(rng: Rng) -> Masks:
    return [m.astype(np.uint16) * 257 for m in resized(rng)]


def probabilities(rng: Rng) -> Masks:
    return [
        1 / (1 + np.exp(-(m / 20.0 - 6) - rng.normal(0, 0.3, m.shape))).astype(np.float32)
        for m in (cv2.GaussianBlur(m, (0, 0), 1) for m in _black_white(rng))
    ]


Make = Callable[[Rng], Masks]
OBJECTS: tuple[Make, ...] = (
    counted_anew,
    at_most_seven,
    in_random_order,
    through_the_set,
    large_random,
    touching,
    small_gone,
    in_3d,
    tiles_of_one,
    one_image,
)
CLASSES: tuple[Make, ...] = (
    kidneys,
    layers,
    organs,
    nested,
    cell_types,
    one_class_each,
    shapes,
    crops,
    many_regions,
    scene,
)
STEPS: tuple[Make, ...] = (resized, halved, jpeg, one_resized, resized_16_bit)
