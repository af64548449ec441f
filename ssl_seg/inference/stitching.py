"""Overlapping windows over an image of any size, put together row by row: what is held does not grow with its depth.

Shapes: C channels, K values a voxel, *S spatial = (Z, Y, X) or (Y, X), *P a window. Rows are those of the first axis of
*S, and all others are lateral.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_seg.errors import is_out_of_memory

Box = tuple[slice, ...]
T = TypeVar("T")
Starts = tuple[tuple[int, ...], ...]

LAYER_VOXELS = 2**26
"""Voxels of a layer of windows that are held at once; wider images are predicted in blocks."""

GIVEN_VOXELS = 2**22
"""Voxels of the rows that are given out at once."""


@dataclass(frozen=True)
class Windows:
    """The windows (*P) that an image (*S) is predicted in.

    ``starts`` has the first voxel of the windows along each axis. Where the image is shorter than the window, that is
    negative: the window lies around the image.
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    starts: Starts

    def __post_init__(self) -> None:
        """Prove that each voxel lies in a window, so that its weight is above 0.

        Raises:
            ValueError: where one does not.
        """
        for size, window, own in zip(self.shape, self.patch, self.starts, strict=True):
            ends = [0, *(start + window for start in own)]
            reached = all(start <= end for start, end in zip((*own, size), ends, strict=True))
            if not reached or list(own) != sorted(set(own)):
                raise ValueError(f"windows of {window} voxels at {own} do not cover {size} voxels")


def place_windows(shape: Sequence[int], patch: Sequence[int], overlap: float) -> Windows:
    """Return the windows in which MONAI's ``sliding_window_inference`` predicts an image (*S)."""
    starts = []
    for size, window in zip(shape, patch, strict=True):
        step = max(int(window * (1 - overlap)), 1)
        last = size - window
        starts.append((-(-last // 2),) if last <= 0 else (*range(0, last, step), last))
    return Windows(tuple(shape), tuple(patch), tuple(starts))


def weigh_voxels(patch: Sequence[int]) -> Tensor:
    """Return the weights (*P) of the voxels of a window, at least 0.001.

    A Gaussian with a standard deviation of an eighth of the window, as in nnU-Net (Isensee et al. 2021) and MONAI.
    """
    weights = torch.ones(())
    for size in patch:
        places = torch.arange(size) - (size - 1) / 2
        weights = weights.unsqueeze(-1) * torch.exp(-0.5 * (places / (size / 8)) ** 2)
    return weights.clamp(min=1e-3)


def divide_laterally(shape: Sequence[int], patch: Sequence[int], most: int = LAYER_VOXELS) -> list[Box]:
    """Return boxes of all rows that make up an image (*S), each of them so narrow that a layer of windows (*P) has
    ``most`` voxels at most. None is made narrower than two windows."""
    widths = list(shape)
    while patch[0] * prod(widths[1:]) > most:
        axis = max(range(1, len(widths)), key=lambda n: widths[n] / patch[n])
        if widths[axis] < 4 * patch[axis]:
            break
        widths[axis] = -(-widths[axis] // 2)
    parts = [
        [slice(first, min(first + width, size)) for first in range(0, size, width)]
        for size, width in zip(shape, widths, strict=True)
    ]
    return list(itertools.product(*parts))


@torch.no_grad()
def stitch(
    read: Callable[[Box], NDArray[np.float32]],
    forward: Callable[[Tensor], Tensor],
    windows: Windows,
    box: Box,
    *,
    device: torch.device,
    batch_size: int,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row and the weighted means (K,n,*lateral) of some rows of a box, one behind the other.

    The values of a voxel do not depend on the row where the box begins: the same windows make up the same batches.
    The rows that come next are read while the network computes.

    Args:
        read: returns a box of the network's input (C,*B).
        forward: maps windows (N,C,*P) to (N,K,*P) float32, on ``device``.
        windows: windows of the whole image.
        box: what is wanted, a slice of each axis of *S.
        device: where the network computes, and where its results are summed up.
        batch_size: windows in one forward pass; fewer from where the memory does not suffice.
    """
    rows, height = box[0], windows.patch[0]
    lateral = _find_columns(windows, box)
    hull, inside, placed = _span_columns(windows, lateral)
    groups = _group_layers(windows, rows, -(-batch_size // len(lateral)))
    depth = max(group[-1] - group[0] for group in groups) + height
    weights = weigh_voxels(windows.patch).to(device)
    totals = torch.zeros(depth, *(part.stop - part.start for part in box[1:]), device=device)
    piece = max(1, GIVEN_VOXELS // totals[0].numel())
    inputs, sums, most = torch.empty(0), torch.empty(0), batch_size
    spans = [slice(max(group[0], 0), min(group[-1] + height, windows.shape[0])) for group in groups]
    unread = [slice(max(a.stop, b.start), b.stop) for a, b in itertools.pairwise(spans)]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, (spans[0], *inside))
        for number, group in enumerate(groups):
            begin, part = group[0], torch.from_numpy(coming.result()).to(device)
            if not number:
                inputs = torch.zeros(len(part), depth, *(axis.stop - axis.start for axis in hull), device=device)
            end = spans[number].stop - begin
            inputs[(slice(None), slice(end - part.shape[1], end), *placed)] = part
            del part  # or it would be held beside the next one
            if unread[number:]:
                coming = reader.submit(read, (unread[number], *inside))
            for batch in _batch(list(itertools.product(group, lateral)), batch_size):
                corners = [
                    (top - begin, *(at - axis.start for at, axis in zip(place, hull, strict=True)))
                    for top, place in batch
                ]
                cuts = torch.stack([inputs[_cut(corner, windows.patch)] for corner in corners])
                found, most = _forward_in_parts(forward, cuts, most)
                if not sums.numel():
                    sums = torch.zeros(found.shape[1], *totals.shape, device=device)
                for (top, place), own in zip(batch, found, strict=True):
                    cut, target = lateral[place]
                    where = (slice(top - begin, top - begin + height), *target)
                    sums[(slice(None), *where)].addcmul_(own[(slice(None), *cut)], weights[cut])
                    totals[where] += weights[cut]  # rounded as the sums are: a mean of ones is 1
            stop = groups[number + 1][0] if unread[number:] else windows.shape[0]
            for first in range(max(begin, rows.start), min(stop, rows.stop), piece):
                ready = slice(first - begin, min(first + piece, stop, rows.stop) - begin)
                yield first, (sums[:, ready] / totals[ready]).cpu().numpy()
            for buffer in (inputs, sums, totals[None]) if unread[number:] else ():
                _move_up(buffer, stop - begin)


def _forward_in_parts(forward: Callable[[Tensor], Tensor], windows: Tensor, most: int) -> tuple[Tensor, int]:
    """Return the outputs (N,K,*P), and how many windows the memory suffices for: ``most``, or a half of it, a quarter …

    Raises:
        Exception: that of ``forward``, if it is not for want of memory, or memory does not suffice for one window.
    """
    while True:
        try:
            found = [forward(windows[first : first + most]) for first in range(0, len(windows), most)]
            return (torch.cat(found) if len(found) > 1 else found[0]), most
        except Exception as error:
            if min(most, len(windows)) == 1 or not is_out_of_memory(error):
                raise
        most = -(-min(most, len(windows)) // 2)  # out of the handler: the error holds the tensors of the failed pass


Column = tuple[int, ...]
"""First voxel of a window along the lateral axes."""


def _find_columns(windows: Windows, box: Box) -> dict[Column, tuple[Box, Box]]:
    """Return the columns of windows that reach a box, each with the part of the window that lies in the box, and where
    that lies in it along the lateral axes."""
    axes = []
    for starts, size, part in zip(windows.starts[1:], windows.patch[1:], box[1:], strict=True):
        near = [start for start in starts if start < part.stop and start + size > part.start]
        axes.append([(at, max(at, part.start), min(at + size, part.stop), part.start) for at in near])
    return {
        tuple(at for at, *_ in column): (
            (slice(None), *(slice(first - at, last - at) for at, first, last, _ in column)),
            tuple(slice(first - start, last - start) for _, first, last, start in column),
        )
        for column in itertools.product(*axes)
    }


def _span_columns(windows: Windows, columns: Iterable[Column]) -> tuple[Box, Box, Box]:
    """Return the lateral extent of all columns, that part of it which lies in the image, and where in it that lies."""
    ends = [
        (min(own), max(own) + size) for own, size in zip(zip(*columns, strict=True), windows.patch[1:], strict=True)
    ]
    inside = [(max(a, 0), min(b, size)) for (a, b), size in zip(ends, windows.shape[1:], strict=True)]
    placed = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(inside, ends, strict=True))
    return tuple(slice(*pair) for pair in ends), tuple(slice(*pair) for pair in inside), placed


def _group_layers(windows: Windows, rows: slice, layers: int) -> list[tuple[int, ...]]:
    """Return the first rows of the layers of windows that reach the ``rows``, in groups that fill a batch."""
    groups = _batch(windows.starts[0], layers)
    return [tuple(g) for g in groups if g[0] < rows.stop and g[-1] + windows.patch[0] > rows.start]


def _batch(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _cut(corner: Sequence[int], patch: Sequence[int]) -> Box:
    return (slice(None), *(slice(start, start + size) for start, size in zip(corner, patch, strict=True)))


def _move_up(buffer: Tensor, rows: int) -> None:
    """Drop the first ``rows`` of a buffer (N,n,...), and put zeros behind the rest."""
    kept = buffer.shape[1] - rows
    buffer[:, :kept] = buffer[:, rows:].clone()
    buffer[:, kept:] = 0
