"""Seeded synthetic images with masks: the data set that is always there.

``particles`` are 2D micrographs, ``sheets`` 3D scans of papyrus-like layers. Both carry distractors as bright as the
foreground (scratches, out-of-focus blobs, rings; specks between the sheets) under uneven light, so that a threshold on
the gray value does clearly worse than a network that looks at shape and texture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.errors import DataError, did_you_mean
from ssl_seg.files import name_unwritable

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]

DEFAULT_COUNT = {"particles": 200, "sheets": 40}
"""Number of cases of each kind in the catalog ``synthetic:<kind>``."""

KINDS = tuple(DEFAULT_COUNT)

_PREFIX = "synthetic:"
_PARTICLES_SHAPE = (128, 128)
_SHEETS_SHAPE = (32, 64, 64)


def is_synthetic(location: str) -> bool:
    """Return whether ``location`` names a synthetic case or data set and no file."""
    return location.startswith(_PREFIX)


def locations(kind: str, count: int | None = None) -> tuple[str, ...]:
    """Return the locations of the first ``count`` cases (default: ``DEFAULT_COUNT``) of a kind."""
    _check_kind(kind)
    return tuple(f"{_PREFIX}{kind}/{i:04d}" for i in range(DEFAULT_COUNT[kind] if count is None else count))


def parse_location(location: str) -> tuple[str, int]:
    """Return kind and index of a location such as ``synthetic:particles/0007``.

    Raises:
        DataError: if it is not of that form, or the kind is unknown.
    """
    match = re.fullmatch(rf"{_PREFIX}([^/]*)/(\d+)", location)
    if match is None:
        raise DataError(f"'{location}' is not a synthetic case; one looks like {_PREFIX}particles/0007.")
    _check_kind(match[1])
    return match[1], int(match[2])


def generate(
    kind: str, index: int, seed: int = 0, *, empty: bool = False, instances: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return image and mask number ``index`` of a kind; the same arguments give the same arrays.

    Args:
        kind: one of ``KINDS``.
        empty: leave out what is to be found, and keep what looks like it.
        instances: number the particles.

    Returns:
        image (*S) uint8 and mask (*S) uint8, of 0 and 1 unless numbered; *S is (128, 128) for particles and
        (32, 64, 64) for sheets.

    Raises:
        DataError: if the kind is unknown.
    """
    _check_kind(kind)
    rng = np.random.default_rng([KINDS.index(kind), seed, index])
    image, numbers = _GENERATORS[kind](rng, empty)
    mask = numbers if instances else numbers > 0
    return np.clip(np.round(image), 0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_dataset(
    folder: Path,
    kind: str,
    count: int,
    *,
    labeled: int | None = None,
    seed: int = 0,
    empty: float = 0.0,
    instances: bool = False,
) -> None:
    """Write ``count`` cases as ``folder/images`` and ``folder/masks``.

    Args:
        folder: a new or empty folder.
        kind: one of ``KINDS``; particles become PNG, sheets become TIFF stacks.
        labeled: number of images that get a mask, drawn by ``seed``; None means all.
        empty: share of the images in which nothing is to be found, drawn by ``seed``.
        instances: number the particles of each mask.

    Raises:
        DataError: if the folder holds anything, sheets are to be numbered, ``labeled`` is above ``count``, ``empty`` is
            no share, or a file cannot be written.
    """
    _check_kind(kind)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder. Name a new one, or remove it first.")
    if instances and kind != "particles":
        raise DataError(f"{kind} have no numbers: leave out --instances, or make particles.")
    if not 0 <= (count if labeled is None else labeled) <= count:
        raise DataError(f"labeled={labeled} must lie between 0 and the number of images, {count}.")
    if not 0 <= empty <= 1:
        raise DataError(f"empty={empty} must lie between 0 and 1, as the share of images without any object.")
    with_mask = set(np.random.default_rng([len(KINDS), seed]).permutation(count)[:labeled].tolist())
    without = set(np.random.default_rng([len(KINDS), seed, 1]).permutation(count)[: round(empty * count)].tolist())
    with name_unwritable(folder):
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True)
        for index in range(count):
            image, mask = generate(kind, index, seed, empty=index in without, instances=instances)
            _write(folder / "images" / f"{index:04d}", image)
            if index in with_mask:
                _write(folder / "masks" / f"{index:04d}", mask)


def _write(stem: Path, array: NDArray[np.uint8]) -> None:
    if array.ndim == 2:
        stem.with_suffix(".png").write_bytes(cv2.imencode(".png", array)[1].tobytes())
    else:
        tifffile.imwrite(stem.with_suffix(".tif"), array, compression="zlib", photometric="minisblack")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise DataError(f"unknown synthetic data '{kind}'{did_you_mean(kind, KINDS)}; known are {', '.join(KINDS)}.")


def _particles(rng: np.random.Generator, empty: bool) -> tuple[Float, NDArray[np.uint8]]:
    """Return grainy particles with sharp edges over uneven light: image (128, 128) in gray values, and numbers."""
    shape = _PARTICLES_SHAPE
    numbers, light = np.zeros(shape, np.uint8), np.zeros(shape)
    coverage, radius, contrast = rng.uniform(0.10, 0.48), rng.uniform(5, 11), rng.uniform(35, 60)
    grain = ndimage.gaussian_filter(rng.normal(size=shape), 1.0) * rng.uniform(25, 45)
    for number in range(1, 201):
        if empty or (numbers > 0).mean() >= coverage:
            break
        inside, window = _blob(rng, shape, radius * rng.uniform(0.6, 1.6))
        # A later particle covers an earlier one; its own brightness makes the border between touching ones visible.
        light[window][inside] = contrast * rng.uniform(0.6, 1.4)
        numbers[window][inside] = number
    mask = numbers > 0
    image = rng.uniform(70, 110) + draw_waves(rng, shape, amplitude=14, wavelength=(90, 250))
    image += np.where(mask, light + grain, 0)
    image += np.where(mask, 0, _out_of_focus(rng, shape, contrast) + _rings(rng, shape))
    image = np.maximum(image, _scratches(rng, shape, level=image.mean() + 1.5 * contrast))
    return ndimage.gaussian_filter(image, 0.6) + rng.normal(0, rng.uniform(6, 11), shape), numbers


def _blob(rng: np.random.Generator, shape: tuple[int, ...], radius: float) -> tuple[Bool, tuple[slice, slice]]:
    """Return a wobbly ellipse and the window of the image that it lies in."""
    center = rng.uniform(0, shape)
    reach = int(1.8 * radius) + 1
    window = tuple(slice(max(0, int(c) - reach), int(c) + reach + 1) for c in center)
    y, x = np.ogrid[tuple(slice(w.start, min(w.stop, n)) for w, n in zip(window, shape, strict=True))]
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.6)
    u = (y - center[0]) * np.cos(angle) + (x - center[1]) * np.sin(angle)
    v = (x - center[1]) * np.cos(angle) - (y - center[0]) * np.sin(angle)
    lobes, phase, depth = int(rng.integers(2, 6)), rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12)
    wobble = 1 + depth * np.cos(lobes * np.arctan2(v, u) + phase)
    return np.hypot(u / stretch, v * stretch) < radius * wobble, (window[0], window[1])


def _out_of_focus(rng: np.random.Generator, shape: tuple[int, ...], contrast: float) -> Float:
    """Return smooth bright clouds, as bright as particles but without edges and grain."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    clouds = np.zeros(shape)
    for _ in range(int(rng.integers(3, 8))):
        (cy, cx), width = rng.uniform(0, shape), rng.uniform(7, 15)
        clouds += contrast * rng.uniform(0.7, 1.3) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * width**2))
    return clouds


def _rings(rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
    """Return dark rings with a bright core of the background's texture: bubbles, not particles."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    rings = np.zeros(shape)
    for _ in range(int(rng.integers(1, 5))):
        (cy, cx), radius = rng.uniform(0, shape), rng.uniform(5, 12)
        distance = np.hypot(y - cy, x - cx)
        rings += 35 * (distance < radius) - 75 * (np.abs(distance - radius) < 1.5)
    return rings


def _scratches(rng: np.random.Generator, shape: tuple[int, ...], level: float) -> Float:
    """Return thin straight lines of brightness ``level`` on zero; they cross particles and background alike."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    lines = np.zeros(shape)
    for _ in range(int(rng.integers(2, 6))):
        (cy, cx), angle = rng.uniform(0, shape), rng.uniform(0, np.pi)
        across = np.abs((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle))
        along = np.abs((y - cy) * np.sin(angle) + (x - cx) * np.cos(angle))
        lines[(across < rng.uniform(0.5, 1.0)) & (along < rng.uniform(20, 80))] = level
    return lines


def _sheets(rng: np.random.Generator, empty: bool) -> tuple[Float, NDArray[np.uint8]]:
    """Return wavy, fibrous, partly touching layers stacked along y: image (32, 64, 64) in gray values, and mask."""
    shape = _SHEETS_SHAPE
    period, share = rng.uniform(8, 12), rng.uniform(0.22, 0.38)
    height = np.arange(shape[1], dtype=np.float64)[None, :, None] + draw_waves(
        rng, shape, amplitude=4, wavelength=(30, 90)
    )
    # The thickness varies along a sheet: where it reaches the period, neighbors touch.
    thickness = share * (1 + draw_waves(rng, shape, amplitude=0.35, wavelength=(20, 60)))
    mask = ((height / period + rng.uniform()) % 1 < thickness) & (not empty)
    contrast = rng.uniform(40, 60)
    fibers = ndimage.gaussian_filter(rng.normal(size=shape), (0.5, 0.5, 3)) * 60
    fibers += ndimage.gaussian_filter(rng.normal(size=shape), (3, 0.5, 0.5)) * 60
    specks = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    specks = specks > np.quantile(specks, 1 - rng.uniform(0.12, 0.22))
    image = rng.uniform(60, 100) + draw_waves(rng, shape, amplitude=16, wavelength=(60, 150))
    image += np.where(mask, contrast + fibers, np.where(specks, 1.1 * contrast, 0))
    return ndimage.gaussian_filter(image, 0.7) + rng.normal(0, rng.uniform(8, 13), shape), mask.astype(np.uint8)


def draw_waves(
    rng: np.random.Generator, shape: tuple[int, ...], *, amplitude: float, wavelength: tuple[int, int]
) -> Float:
    """Return a smooth random field with standard deviation ``amplitude``: a sum of four plane waves (pixels)."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    field: Float = np.zeros(shape)
    for _ in range(4):
        direction = rng.normal(size=len(shape))
        direction *= 2 * np.pi / (rng.uniform(*wavelength) * np.linalg.norm(direction))
        field += np.cos(sum(d * a for d, a in zip(direction, axes, strict=True)) + rng.uniform(0, 2 * np.pi))
    return field * (amplitude / 2**0.5)


_GENERATORS: dict[str, Callable[[np.random.Generator, bool], tuple[Float, NDArray[np.uint8]]]] = {
    "particles": _particles,
    "sheets": _sheets,
}
