"""Intensity changes, exchange of bright and dark, and blanked boxes; no voxel moves.

The changes, their order, probabilities and, at a strength of 0.5, their ranges are those of nnU-Net (Isensee et al.
2021, ``get_training_transforms`` of version 2). Patches come as z-scores of their image, which makes a change as large
for an image of low contrast as for any other. The same lines serve 2D and 3D.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

Array = NDArray[np.float32]
Change = Callable[[Array, np.random.Generator, float], Array]
"""A channel (*P), the source of the draw, and a strength in (0, 1] -> the changed channel."""

MOST_BOXES = 3
"""Boxes of a cutout, at most; each side is a tenth to a third of the patch."""


def _draw_factor(rng: np.random.Generator, low: float, high: float) -> float:
    """Return a factor in [low, high], as often below 1 as above."""
    return float(rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high))


def add_noise(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Add Gaussian noise with a variance of up to 0.1 (times twice the strength) of that of the image."""
    deviation = np.float32(np.sqrt(rng.uniform(0, 0.2 * strength)))
    return channel + deviation * rng.standard_normal(channel.shape, np.float32)


def blur(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Smooth with a Gaussian of sigma 0.5 to 1 voxel (more or less with the strength)."""
    from scipy.ndimage import gaussian_filter

    smoothed: Array = gaussian_filter(channel, rng.uniform(0.5, 0.5 + strength), mode="nearest", truncate=3)
    return smoothed


def change_brightness(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Multiply by 0.75 to 1.25: the values are z-scores, so that the mean of the image stays."""
    return channel * np.float32(_draw_factor(rng, 1 - strength / 2, 1 + strength / 2))


def change_contrast(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Multiply differences from the mean of the patch by 0.75 to 1.25, within the range that it has."""
    mean = channel.mean()
    factor = np.float32(_draw_factor(rng, 1 - strength / 2, 1 + strength / 2))
    changed: Array = ((channel - mean) * factor + mean).clip(channel.min(), channel.max())
    return changed


def lower_resolution(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Average down to as little as half of the resolution, and interpolate linearly back to the old size."""
    zoom, image = rng.uniform(1 - strength, 1), torch.from_numpy(channel)[None, None]
    coarse = functional.interpolate(image, tuple(max(1, round(n * zoom)) for n in channel.shape), mode="area")
    mode = "bilinear" if channel.ndim == 2 else "trilinear"
    fine: Array = functional.interpolate(coarse, channel.shape, mode=mode)[0, 0].numpy()
    return fine


def change_gamma(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Raise values in the range of the patch to the power of 0.7 to 1.5; its mean and deviation stay."""
    low, span = channel.min(), np.ptp(channel)
    if not span:
        return channel
    curved = ((channel - low) / span) ** np.float32(_draw_factor(rng, 1 - 0.6 * strength, 1 + strength))
    scale = channel.std() / max(curved.std(), np.float32(1e-6))
    changed: Array = (curved - curved.mean()) * scale + channel.mean()
    return changed.astype(np.float32, copy=False)


def change_inverted_gamma(channel: Array, rng: np.random.Generator, strength: float) -> Array:
    """Apply ``change_gamma`` from the bright end of the range."""
    return -change_gamma(-channel, rng, strength)


CHANGES: tuple[tuple[Change, float, float], ...] = (
    (add_noise, 0.1, 1.0),
    (blur, 0.2, 0.5),
    (change_brightness, 0.15, 1.0),
    (change_contrast, 0.15, 1.0),
    (lower_resolution, 0.25, 0.5),
    (change_inverted_gamma, 0.1, 1.0),
    (change_gamma, 0.3, 1.0),
)
"""In this order: a change, its probability in a patch, and then in each channel."""


def change_intensity(patch: Array, rng: np.random.Generator, strength: float, factor: float) -> Array:
    """Return a patch (C,*P) of z-scores with changed intensities.

    Args:
        patch: is not changed itself.
        rng: source of the draw; each change, and each channel of it, is drawn on its own.
        strength: strength of the changes, in [0, 1]; 0.5 is that of nnU-Net, and 0 leaves the patch alone.
        factor: factor of the probabilities in ``CHANGES``.
    """
    if not strength:
        return patch
    changed = patch.copy()
    for change, probability, share in CHANGES:
        if rng.random() < probability * factor:
            for channel in changed:
                if rng.random() < share:
                    channel[...] = change(channel, rng, strength)
    return changed


def invert(patch: Array, rng: np.random.Generator, probability: float) -> Array:
    """Return a patch (C,*P) of z-scores in which, with this probability, bright and dark are inverted."""
    return -patch if probability and rng.random() < probability else patch


def blank_boxes(patch: Array, rng: np.random.Generator, probability: float) -> Array:
    """Return a patch (C,*P) in which, with this probability, a few boxes have one random value each in its range."""
    if rng.random() >= probability:
        return patch
    blanked, size = patch.copy(), np.array(patch.shape[1:])
    for _ in range(rng.integers(1, MOST_BOXES + 1)):
        sides = rng.integers(np.maximum(1, size // 10), np.maximum(1, size // 3), endpoint=True)
        starts = rng.integers(size - sides, endpoint=True)
        box = (slice(None), *(slice(a, a + n) for a, n in zip(starts, sides, strict=True)))
        values = [rng.uniform(channel.min(), channel.max()) for channel in patch]
        blanked[box] = np.reshape(values, (-1, *[1] * len(size)))
    return blanked
