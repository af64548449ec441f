"""How the axes of a stored array become (C, *S), with *S = (Z, Y, X) or (Y, X)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.reading import AS_STORED, Reading

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Layout:
    """How a stored array becomes (C, *S).

    ``spatial`` are the stored axes in the order of *S; ``channel`` the one of C, of which the first ``channels`` are
    read, or None; all others have length one. ``flips`` are the axes of *S that are stored the other way round, counted
    from the end: -1 is X.
    """

    spatial: tuple[int, ...]
    channel: int | None = None
    channels: int = 1
    flips: tuple[int, ...] = ()

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, *S) for the shape of the stored array."""
        return self.channels, *(stored[axis] for axis in self.spatial)

    def select(self, box: Box, stored: tuple[int, ...]) -> Box:
        """Return the slices of an array of the shape ``stored`` for a box of *S."""
        parts = [slice(0, 1)] * len(stored)
        if self.channel is not None:
            parts[self.channel] = slice(0, self.channels)
        for place, (axis, part) in enumerate(zip(self.spatial, box, strict=True), -len(box)):
            size = stored[axis]
            start, stop, _ = part.indices(size)
            parts[axis] = slice(size - stop, size - start) if place in self.flips else slice(start, stop)
        return tuple(parts)

    def arrange(self, part: NDArray[Any]) -> NDArray[Any]:
        """Return a selected part of the stored array as a view (C, *P)."""
        named = (*(() if self.channel is None else (self.channel,)), *self.spatial)
        others = [axis for axis in range(part.ndim) if axis not in named]
        arranged: NDArray[Any] = np.flip(part.transpose(*others, *named)[(0,) * len(others)], self.flips)
        return arranged if self.channel is not None else arranged[None]


def lay_out_axes(shape: tuple[int, ...], axes: str, *, drop_alpha: bool = False) -> Layout:
    """Return the layout for named axes: S and C are channels, Y and X the plane, any other is Z.

    Axes of length one are dropped, except Y and X: a stack of one slice is an image.

    Raises:
        ValueError: if the axes are neither those of an image nor of a stack.
    """
    kept = [n for n, axis in enumerate(axes) if axis in "YX" or shape[n] > 1]
    channel = [n for n in kept if axes[n] in "SC"]
    depth = [n for n in kept if axes[n] not in "SCYX"]
    if len(channel) > 1 or len(depth) > 1 or not {"Y", "X"} <= set(axes):
        raise ValueError(f"its axes {axes} {shape} are neither an image (Y, X) nor a stack (Z, Y, X)")
    spatial = (*depth, axes.index("Y"), axes.index("X"))
    if not channel:
        return Layout(spatial)
    channels = shape[channel[0]]
    with_alpha = drop_alpha and axes[channel[0]] == "S" and channels in (2, 4)
    return Layout(spatial, channel[0], channels - with_alpha)


def lay_out_array(shape: tuple[int, ...], reading: Reading = AS_STORED) -> Layout:
    """Return the layout for an array without named axes: (Y, X), (Z, Y, X), (C, Z, Y, X) or (Y, X, color).

    Where ``data.axes`` is set, it names them.
    Color is a last axis of 3 or 4 behind two longer ones.

    Raises:
        ValueError: if the array has less than two or more than four axes, or ``data.axes`` does not fit.
    """
    if reading.axes is not None:
        return lay_out_axes(shape, fit_axes(shape, reading.axes, is_mask=reading.is_mask))
    if len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > shape[2]:
        return lay_out_axes(shape, "YXS", drop_alpha=True)
    if not 2 <= len(shape) <= 4:
        raise ValueError(f"its shape {shape} is neither (Y, X) nor (Z, Y, X) nor (C, Z, Y, X)")
    return lay_out_axes(shape, "CZYX"[-len(shape) :])


def fit_axes(shape: tuple[int, ...], axes: str, *, is_mask: bool = False) -> str:
    """Return a letter for each stored axis, as ``data.axes`` says.

    Leading axes of length one need no letter (they get Q). C may be missing in the file, as in masks, and so may Z.

    Raises:
        ValueError: if the letters do not fit the number of axes.
    """
    fewer = (axes.replace("C", ""), "".join(axis for axis in axes if axis in "YX"))
    for letters in (*fewer, axes) if is_mask else (axes, *fewer):
        extra = len(shape) - len(letters)
        if extra >= 0 and prod(shape[:extra]) == 1:
            return "Q" * extra + letters
    raise ValueError(f"data.axes={axes} does not fit its shape {shape}: give a letter for each axis")
