"""Lay out the axes of a stored array as (C, *S), with *S = (Z, Y, X) or (Y, X)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.reading import Reading

Box = tuple[slice, ...]


class NotAnImageError(ValueError):
    """A file is whole and still no image or stack; the message says what to do."""


@dataclass(frozen=True)
class AxisLayout:
    """How a stored array becomes (C, *S).

    ``spatial`` are the stored axes in the order of *S; ``channel`` the one of C, or None; all others have length one.
    ``flips`` are the axes of *S that are stored the other way round, counted from the end: -1 is X.
    """

    spatial: tuple[int, ...]
    channel: int | None = None
    flips: tuple[int, ...] = ()

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Return (C, *S) for the shape of the stored array."""
        return 1 if self.channel is None else stored[self.channel], *(stored[axis] for axis in self.spatial)

    def select(self, box: Box, stored: tuple[int, ...]) -> Box:
        """Return the slices of an array of the shape ``stored`` for a box of *S."""
        parts = [slice(0, 1)] * len(stored)
        if self.channel is not None:
            parts[self.channel] = slice(0, stored[self.channel])
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


ORIENTATION = 274
"""Tag of EXIF and TIFF: 1 is upright, 2 to 8 are mirrored or turned."""

TURNED = "it is turned upright, as its orientation tag says"
"""Note on an image that is stored otherwise than it is seen."""

FEW_CHANNELS = 4
"""A short axis of at most so many values is one of channels, wherever the sizes are all there is to go by."""
MANY_CHANNELS = 32
"""A last axis of at most so many values is one of channels, if the others are ``MUCH_LONGER``."""
MUCH_LONGER = 8
GUESS = "axes are taken for"
"""Beginning of a note on axes that the sizes suggest."""

FEW_SLICES = 8
"""A stack of at most so many slices may be an image of as many channels: a note says how it is read."""


def lay_out_axes(shape: tuple[int, ...], axes: str) -> AxisLayout:
    """Return the layout for named axes: S and C are channels, Y and X the plane; Z, Q and I are depth.

    Axes of length one are dropped, except Y and X: a stack of one slice is an image.

    Raises:
        NotAnImageError: if the axes are neither those of an image nor of a stack.
    """
    kept = [n for n, axis in enumerate(axes) if axis in "YX" or shape[n] > 1]
    channel = [n for n in kept if axes[n] in "SC"]
    depth = [n for n in kept if axes[n] not in "SCYX"]
    times = [n for n in depth if axes[n] == "T"]
    if times:
        stack = "; data.axes=ZYX reads them as a stack" if depth == times and not channel else ""
        raise NotAnImageError(
            f"it holds {shape[times[0]]} points in time (axes {axes} {shape}): save each as an image of its own{stack}"
        )
    if len(channel) > 1 or len(depth) > 1 or not {"Y", "X"} <= set(axes) or not {axes[n] for n in depth} <= set("ZQI"):
        raise NotAnImageError(f"its axes {axes} {shape} are neither an image (Y, X) nor a stack (Z, Y, X)")
    return AxisLayout((*depth, axes.index("Y"), axes.index("X")), channel[0] if channel else None)


def lay_out_array(
    shape: tuple[int, ...], reading: Reading, *, is_pages: bool = False
) -> tuple[AxisLayout, tuple[str, ...]]:
    """Return the layout for an array without named axes, by ``data.axes`` or by its sizes, and a note on a guess.

    (Y, X), (Z, Y, X) or (C, Z, Y, X), unless an axis is so short that it is one of channels, as in (Y, X, C),
    (C, Y, X), (Z, Y, X, C) and (Z, C, Y, X). Masks, and the ``is_pages`` of a file, are rather stacks than (C, Y, X).

    Raises:
        NotAnImageError: if the array has less than two or more than four axes, or ``data.axes`` does not fit.
    """
    if reading.axes is not None:
        return lay_out_axes(shape, fit_axes(shape, reading.axes, is_mask=reading.is_mask)), ()
    kept = [n for n, length in enumerate(shape) if length > 1 or n >= len(shape) - 2]
    if len(kept) > 2 and shape[-1] == 1:  # (Y, X, 1)
        kept.pop()
    letters, is_certain = _guess_axes([shape[n] for n in kept], is_stack=is_pages or reading.is_mask)
    if not letters:
        raise NotAnImageError(f"its shape {shape} is neither (Y, X) nor (Z, Y, X) nor (C, Z, Y, X)")
    named = dict(zip(kept, letters, strict=True))
    layout = lay_out_axes(shape, "".join(named.get(n, "Q") for n in range(len(shape))))
    guess = f"{GUESS} {letters} by their sizes: set data.axes if they are others"
    return layout, () if is_certain or reading.is_mask else (guess,)


def _guess_axes(sizes: list[int], *, is_stack: bool) -> tuple[str, bool]:
    """Return the likely axes, none if there are too few or too many, and whether they can hardly be others."""
    if len(sizes) not in (3, 4):
        return "YX" if len(sizes) == 2 else "", True
    first, *_, before, last = sizes
    rows, depth = sizes[-3], "Z" * (len(sizes) - 3)
    if last <= FEW_CHANNELS and last < min(rows, before):
        return f"{depth}YXC", True
    if last <= MANY_CHANNELS and MUCH_LONGER * last <= min(rows, before):
        return f"{depth}YXC", False
    if depth:
        return ("ZCYX", False) if rows <= FEW_CHANNELS < first else ("CZYX", first <= FEW_CHANNELS < rows)
    if first <= FEW_CHANNELS and first < min(before, last) and not is_stack:
        return "CYX", False
    return "ZYX", first > FEW_SLICES


def turn_upright(layout: AxisLayout, orientation: int) -> tuple[AxisLayout, tuple[str, ...]]:
    """Return the layout that shows an image as its orientation tag means it to be seen, and a note if it is turned."""
    if orientation not in range(2, 9):
        return layout, ()
    *depth, y, x = layout.spatial
    spatial = (*depth, x, y) if orientation > 4 else layout.spatial
    flips = (-2,) * (orientation in (3, 4, 7, 8)) + (-1,) * (orientation in (2, 3, 6, 7))
    turned = replace(layout, spatial=spatial, flips=flips)
    return turned, (TURNED,)


def fit_axes(shape: tuple[int, ...], axes: str, *, is_mask: bool = False) -> str:
    """Return a letter for each stored axis, as ``data.axes`` says.

    Leading axes of length one need no letter (they get Q). C may be missing in the file, as in masks, and so may Z.

    Raises:
        NotAnImageError: if the letters do not fit the number of axes.
    """
    fewer = (axes.replace("C", ""), "".join(axis for axis in axes if axis in "YX"))
    for letters in (*fewer, axes) if is_mask else (axes, *fewer):
        extra = len(shape) - len(letters)
        if extra >= 0 and prod(shape[:extra]) == 1:
            return "Q" * extra + letters
    raise NotAnImageError(f"data.axes={axes} does not fit its shape {shape}: give a letter for each axis")
