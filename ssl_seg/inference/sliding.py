"""Sliding-window inference over one image or volume."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.data.formats.stored import AnyArray
from ssl_seg.data.resample import compute_resampled_shape, resample_image
from ssl_seg.data.views.transforms import Intensity, find_gaps, make_window, measure_intensity
from ssl_seg.errors import DataError, is_out_of_memory
from ssl_seg.inference.stitching import Box, divide_laterally, place_windows, stitch
from ssl_seg.inference.turns import Turn
from ssl_seg.losses import compute_foreground_logit
from ssl_seg.networks.precision import Autocast

OVERLAP = 0.25
"""Overlap of neighboring windows in all commands and in the scores at the end of a run: one network, one number.

Pooled F1 at an overlap of 0, 0.25, 0.5, 0.75: 0.645, 0.647, 0.636, 0.636 on EMPS (2D) and 0.685, 0.685, 0.688, 0.705 on
left atria (3D), where the work is 1, 2.4, 8 and 64 times that without overlap.
"""

LONG = 2
"""Windows are one patch long along each axis, or up to so many: whichever is better on validation."""


@dataclass(frozen=True)
class Predictor:
    """Predicts class probabilities of whole images with overlapping, Gaussian-weighted windows.

    Args:
        net: maps (N,C,*P) to (N,K,*P) logits, on ``device``, in eval mode.
        patch_size: window size (*P) of images that are no longer.
        device: where ``net`` is.
        autocast: function that returns the precision context.
        overlap: overlap of neighboring windows, in [0, 1).
        batch_size: windows of ``patch_size`` in one forward pass; of longer ones as many as have no more voxels.
        resample_to: voxel size (*S) that the network was trained at; None takes images as they are.
        intensity_window: intensities that the network was trained to tell apart; None takes those of each image.
        turns: ways in which each window is predicted, for the mean of their probabilities; none for once, as it is.
        spread: put the variance of the foreground probability over the ``turns`` behind the probabilities, as one more
            channel that is averaged over windows like them.
        factor: windows are up to so many patches long along each axis; see ``fit_window``.
        divisor: (*P); longer windows are multiples of it.
    """

    net: nn.Module
    patch_size: Sequence[int]
    device: torch.device
    autocast: Autocast
    overlap: float = OVERLAP
    batch_size: int = 8
    resample_to: tuple[float, ...] | None = None
    intensity_window: tuple[float, float] | None = None
    turns: tuple[Turn, ...] = ()
    spread: bool = False
    factor: int = 1
    divisor: Sequence[int] = ()

    def fit_window(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the window (*P) for an image (*S) on the grid of the network.

        Along each axis it is the shortest one of which as few are needed as of the longest, so that longer windows are
        hardly more work: with patches of 64, 150 voxels take two windows of 128, and so they take two of 96.
        """
        if self.factor == 1:
            return tuple(self.patch_size)

        def fit(size: int, patch: int, unit: int) -> int:
            longest = max(patch, min(self.factor * patch, size // unit * unit))
            lengths = range(patch, longest + 1, unit)
            return min(lengths, key=lambda length: len(place_windows((size,), (length,), self.overlap).starts[0]))

        return tuple(map(fit, shape, self.patch_size, self.divisor))

    def __call__(self, image: NDArray[np.generic], spacing: tuple[float, ...] | None = None) -> NDArray[np.float32]:
        """Return probabilities (K,*S) of a raw image (C,*S) with voxels of size ``spacing`` (*S), on the same grid.

        An axis shorter than the window is padded and cut back. Where the image has no data (NaN), there is background.

        Raises:
            DataError: if the network was trained at a certain voxel size and ``spacing`` is None.
        """
        probs = self._predict_on_grid(image, spacing, self._compute_probs)
        return _clear(probs, find_gaps(image))

    def with_logits(
        self, image: NDArray[np.generic], spacing: tuple[float, ...] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the probabilities (K,*S) and the log-odds of foreground (*S), averaged over windows in the same way.

        Raises:
            DataError: as for a call.
        """
        both = self._predict_on_grid(image, spacing, self._compute_both)
        return _clear(both[:-1], find_gaps(image)), both[-1]

    def _predict_on_grid(
        self, image: NDArray[np.generic], spacing: tuple[float, ...] | None, compute: Callable[[Tensor], Tensor]
    ) -> NDArray[np.float32]:
        if self.resample_to is None:
            return self._predict(image, compute)
        if spacing is None:
            raise DataError(
                f"the network was trained at voxel size {self.resample_to} and the image does not say its own. "
                "Save it in a format that has one (NIfTI, OME-TIFF, OME-Zarr), or give it: --spacing of predict, or "
                "--set data.spacing=[...]."
            )
        shape = compute_resampled_shape(image.shape[1:], spacing, self.resample_to)
        return resample_image(self._predict(resample_image(image, shape), compute), image.shape[1:])

    def stream(
        self, image: AnyArray, intensity: Intensity, box: Box | None = None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row and the probabilities (K,n,*lateral) of some rows of an image, one behind the other.

        What is held is a layer of windows, however many rows there are. Voxel sizes are not looked at.

        Args:
            image: (C,*S).
            intensity: that of the whole image; see ``measure_intensity``. An ``intensity_window`` counts in its place.
            box: what is wanted, a slice of each axis of *S; by default all.
        """
        gaps: deque[tuple[Box, NDArray[np.bool_]]] = deque()
        box = box or tuple(slice(0, size) for size in image.shape[1:])
        for first, rows in self._stitch(image, self._compute_probs, intensity, box, gaps.append):
            place = (slice(first, first + rows.shape[1]), *box[1:])
            while gaps and gaps[0][0][0].stop <= first:
                gaps.popleft()
            for where, found in gaps:
                here, there = _intersect(place, where)
                rows[(slice(None), *here)][:, found[there]] = np.eye(len(rows), 1, dtype=np.float32)
            yield first, rows

    def _stitch(
        self,
        image: AnyArray,
        compute: Callable[[Tensor], Tensor],
        intensity: Intensity,
        box: Box,
        note_gaps: Callable[[tuple[Box, NDArray[np.bool_]]], None] = lambda _: None,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        def read(part: Box) -> NDArray[np.float32]:
            raw = image[(slice(None), *part)]
            if (gaps := find_gaps(raw)) is not None:
                note_gaps((part, gaps))
            return stats.to_zscore(raw)

        stats = intensity if self.intensity_window is None else make_window(self.intensity_window, image.shape[0])
        window = self.fit_window(image.shape[1:])
        windows = place_windows(image.shape[1:], window, self.overlap)
        batch_size = max(1, self.batch_size * prod(self.patch_size) // prod(window))  # as many voxels at a time
        try:
            yield from stitch(read, compute, windows, box, device=self.device, batch_size=batch_size)
        except Exception as error:
            if is_out_of_memory(error):  # the message of the command line has the notes
                error.add_note(f"at an image of {' x '.join(map(str, image.shape[1:]))} on {self.device}")
            raise

    def _predict(self, image: NDArray[np.generic], compute: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        intensity = (
            measure_intensity(image)
            if self.intensity_window is None
            else make_window(self.intensity_window, len(image))
        )
        probs = np.empty((0, *image.shape[1:]), np.float32)
        for box in divide_laterally(image.shape[1:], self.fit_window(image.shape[1:])):
            for first, rows in self._stitch(image, compute, intensity, box):
                if not len(probs):
                    probs = np.empty((len(rows), *image.shape[1:]), np.float32)
                probs[(slice(None), slice(first, first + rows.shape[1]), *box[1:])] = rows
        return probs

    def _compute_logits(self, windows: Tensor) -> Tensor:
        with self.autocast():
            logits: Tensor = self.net(windows)
        return logits.float()

    def _compute_probs(self, windows: Tensor) -> Tensor:
        if not self.turns and not self.spread:
            return self._compute_logits(windows).softmax(dim=1)
        turns = self.turns or (Turn(),)
        mean = squares = torch.zeros((), device=windows.device)
        for turn in turns:
            probs = turn.undo(self._compute_logits(turn.apply(windows)).softmax(dim=1))
            mean = mean + probs / len(turns)
            squares = squares + (1 - probs[:, :1]).square() / len(turns)
        variance = (squares - (1 - mean[:, :1]).square()).clamp(min=0)
        return torch.cat([mean, variance], dim=1) if self.spread else mean

    def _compute_both(self, windows: Tensor) -> Tensor:
        logits = self._compute_logits(windows)
        return torch.cat([logits.softmax(dim=1), compute_foreground_logit(logits).unsqueeze(1)], dim=1)


def _intersect(box: Box, other: Box) -> tuple[Box, Box]:
    """Return where two boxes meet: in the first, and in the second."""
    ends = [
        (max(a.start, b.start), max(a.start, b.start, min(a.stop, b.stop))) for a, b in zip(box, other, strict=True)
    ]
    return (
        tuple(slice(first - part.start, last - part.start) for (first, last), part in zip(ends, box, strict=True)),
        tuple(slice(first - part.start, last - part.start) for (first, last), part in zip(ends, other, strict=True)),
    )


def _clear(probs: NDArray[np.float32], gaps: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Return probabilities (K,*S) that are background in the ``gaps`` (*S)."""
    if gaps is not None:
        probs[:, gaps] = np.eye(len(probs), 1, dtype=np.float32)
    return probs
