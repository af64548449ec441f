"""What decoded pixels mean: alpha, palettes, and masks of several channels.

Arrays are (C, *S) unless said otherwise. Functions that leave something out say so in a note, or raise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.formats.layout import NotAnImageError

LabelColors = tuple[tuple[int, tuple[int, ...]], ...]
"""Labels of a mask, and the color (R, G, B), or the channels, that its file has for each of them."""

_SHOWN_COLORS = 6
_SAMPLED_PIXELS = 2**20
_DARK = 32
"""Grays below it are there for no eye."""
_SUM_TOLERANCE = 1e-2
"""Relative: probabilities of all classes add up to 1 but for rounding."""

ONE_INTEGER = "save one integer per pixel, planes.argmax(axis) along the axis of classes"


def drop_alpha(image: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Return the image without its last channel, the alpha; or only that, where the colors say nothing."""
    colors, alpha = image[:-1], image[-1:]
    if all(map(is_constant, colors)) and not is_constant(alpha):
        return alpha, "its colors are constant: alpha is read in their place"
    return colors, "alpha is dropped"


def choose_palette_labels(indices: NDArray[Any], colors: NDArray[Any]) -> tuple[NDArray[Any], str, LabelColors]:
    """Return the labels of a mask with a palette, a note, and the color of each label that is an index.

    Labels are the indices. Of two colors black is 0, whatever its index: programs that count colors put the more
    frequent one first. Of grays whose order is another, or that are all nearly black, the grays are the labels:
    programs that make files smaller leave out those that a mask does not have.

    Args:
        indices: (*S).
        colors: (3, *S), what the palette makes of them.
    """
    used, first = np.unique(indices, return_index=True)
    red, green, blue = (channel.ravel()[first].astype(int) for channel in colors)
    is_gray = (red == green).all() and (red == blue).all()
    if is_gray and (np.diff(red) < 0).any():
        return colors[0], "the grays of its palette are the labels: its indices run from bright to dark", ()
    if is_gray and red.max() < _DARK and (red != used).any():
        return colors[0], "the grays of its palette are the labels: they are too dark to tell them apart", ()
    note = "the indices of its palette are the labels"
    black = used[(red == 0) & (green == 0) & (blue == 0)]
    named = dict(zip(used.tolist(), zip(red.tolist(), green.tolist(), blue.tolist(), strict=True), strict=True))
    if len(used) == 2 and used.tolist() == [0, 1] and black.tolist() == [1]:
        return 1 - indices, f"{note}; the background is black, which is 1 there", ((0, named[1]), (1, named[0]))
    if len(black) and used[0] not in black:
        others = [int(value) for value in used if value != black[0]]
        note += f"; {black[0]} is black: if it is the background, set data.label_values={[int(black[0]), *others]}"
    return indices, note, tuple(named.items())


def invert_labels(mask: NDArray[Any], top: int) -> tuple[NDArray[Any], str]:
    """Return a mask of a file whose zero is white: what looks white is foreground, where it is black and white."""
    if ((mask == 0) | (mask == top)).all():
        return top - mask, "zero is white in its file: what looks white is read as foreground"
    return mask, "zero is white in its file: its numbers are read as the labels"


def merge_label_channels(
    mask: NDArray[Any], *, are_slices: bool = False
) -> tuple[NDArray[Any], tuple[str, ...], LabelColors]:
    """Return (1, *S) for a mask of several channels that hold one label, notes, and which channel it was.

    These are equal channels, or a single one beside black ones; a second or fourth channel that is constant counts as
    alpha.

    Args:
        mask: (C, *S).
        are_slices: whether the channels of its file may be slices that are read as channels.

    Raises:
        NotAnImageError: for others; names the colors.
    """
    colors = mask[:-1] if len(mask) in (2, 4) and is_constant(mask[-1]) else mask
    if all((channel == colors[0]).all() for channel in colors[1:]):
        return colors[:1], () if colors is mask else ("a constant channel is dropped",), ()
    painted = [number for number, channel in enumerate(colors) if channel.any()]
    if len(painted) == 1:
        label = colors[painted[0]][None]
        color = tuple(255 * (number == painted[0]) for number in range(len(colors)))
        return label, ("its one channel that is not black is the label",), ((int(label.max()), color),)
    total = colors.sum(axis=0, dtype=np.float64)
    if total.flat[0] > 0 and np.allclose(total, total.flat[0], rtol=_SUM_TOLERANCE):
        raise NotAnImageError(
            f"its {len(mask)} channels add up to the same at every pixel, as planes of classes do (one-hot, or "
            f"probabilities): {ONE_INTEGER}"
        )
    pixels = mask.reshape(len(mask), -1)
    found = np.unique(pixels[:, :: -(-pixels.shape[1] // _SAMPLED_PIXELS)], axis=1).T.tolist()
    named = ", ".join(str(tuple(color)) for color in found[:_SHOWN_COLORS])
    more = f" and {len(found) - _SHOWN_COLORS} more" if len(found) > _SHOWN_COLORS else ""
    raise NotAnImageError(
        f"a mask has one channel, this one has {len(mask)} with the colors (or one-hot planes) {named}{more}. "
        "Save one integer per pixel: 0 for background, then 1, 2, ... for each color or plane"
        + ". If they are the slices of a volume, set data.axes=ZYX"
        * are_slices
    )


def is_constant(channel: NDArray[Any]) -> bool:
    """Return whether all values are the same."""
    return bool((channel == channel.flat[0]).all())
