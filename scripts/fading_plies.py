"""A problem for methods rather than for networks: labeled images of one style, further ones of many."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.data.synthetic import KINDS, draw_waves
from ssl_seg.data.volumes import write_mask

PLIES_COUNT = {"labeled": 24, "unlabeled": 48, "val": 32}
"""Images of each part that ``write_fading_plies`` writes."""

LEAST_FIBER = 0.15
"""Share of their contrast that the fibers of a wholly faded specimen keep. With 0.05, Mean Teacher and entropy
minimization lost on one of two seeds."""


def generate_plies(fading: float, shape: tuple[int, ...], *stream: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image of a cut through two plies, and the mask of the second one; the same arguments, the same arrays.

    The fibers of the first ply run across (Y, X), those of the second at a right angle to them, under noise and uneven
    light. In a fresh specimen the fibers are strong, and a stain makes either ply brighter, at random. As a specimen
    fades, the fibers go and the stain settles in the second ply.

    Args:
        fading: 0 for a fresh specimen to 1.
        shape: *S, of 2 or 3 axes.
        stream: seeds.

    Returns:
        image (*S) uint8 and mask (*S) uint8 of 0 and 1.
    """
    rng = np.random.default_rng([len(KINDS) + len(shape), *stream])
    axes, mask, coverage = np.ogrid[tuple(slice(n) for n in shape)], np.zeros(shape, np.bool_), rng.uniform(0.35, 0.5)
    while mask.mean() < coverage:
        center, radius = rng.uniform(0, shape), rng.uniform(7, 11)
        mask |= sum((axis - c) ** 2 for axis, c in zip(axes, center, strict=True)) < radius**2
    first, second = (np.cos(axis * 2 * np.pi / rng.uniform(4, 5) + rng.uniform(0, 7)) for axis in (axes[-1], axes[-2]))
    fibers = 60 * (1 - (1 - LEAST_FIBER) * fading) * np.where(mask, second, first)
    stain = 60 * (fading or rng.uniform(-1, 1)) * (mask - 0.5)
    light = draw_waves(rng, shape, amplitude=10, wavelength=(30, 60))
    image = ndimage.gaussian_filter(fibers + stain + light, 0.5) + rng.normal(0, 14, shape)
    return np.clip(np.round(128 + image), 0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_fading_plies(
    folder: Path,
    shape: tuple[int, ...],
    *,
    unlabeled: Literal["images", "shuffled", "masks"] = "images",
    seed: int = 0,
) -> None:
    """Write ``PLIES_COUNT`` cases as ``folder/train`` and ``folder/val``: a problem that unlabeled images solve.

    The labeled training images show fresh specimens. The unlabeled ones and those for validation have faded by 0 to 1,
    evenly (``generate_plies``): where the fibers can still be told, they say what the stain means.

    Args:
        folder: a new folder.
        shape: shape of the images.
        unlabeled: images: as described. shuffled: their voxels in random order, as a control. masks: with their masks,
            so that a supervised training shows what can be reached.
        seed: the seed of the images, which are the same in all three.
    """
    for part, (name, count) in enumerate(PLIES_COUNT.items()):
        place, has_masks = folder / ("val" if name == "val" else "train"), name != "unlabeled" or unlabeled == "masks"
        for kind in ("images", "masks"):
            (place / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            fading = 0.0 if name == "labeled" else (index + 1) / count
            image, mask = generate_plies(fading, shape, seed, part, index)
            if name == "unlabeled" and unlabeled == "shuffled":
                image = np.random.default_rng([seed, index]).permutation(image.ravel()).reshape(image.shape)
            file = f"{name}_{index:02d}{'.png' if len(shape) == 2 else '.tif'}"
            write_mask(place / "images" / file, image)
            if has_masks:
                write_mask(place / "masks" / file, mask)
