"""Sliding-window inference over one image or volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.data.resample import compute_resampled_shape, resample_image
from ssl_seg.data.views.transforms import find_gaps, normalize
from ssl_seg.errors import DataError, is_out_of_memory
from ssl_seg.losses import compute_foreground_logit
from ssl_seg.networks.precision import Autocast

OVERLAP = 0.25
"""Overlap of neighboring windows in all commands and in the scores at the end of a run: one network, one number.

Pooled F1 at an overlap of 0, 0.25, 0.5, 0.75: 0.645, 0.647, 0.636, 0.636 on EMPS (2D) and 0.685, 0.685, 0.688, 0.705 on
left atria (3D), where the work is 1, 2.4, 8 and 64 times that without overlap.
"""


@dataclass(frozen=True)
class Predictor:
    """Predicts class probabilities of whole images with overlapping, Gaussian-weighted windows.

    Args:
        net: maps (N,C,*P) to (N,K,*P) logits, on ``device``, in eval mode.
        patch_size: window size (*P).
        device: where ``net`` is.
        autocast: function that returns the precision context.
        overlap: overlap of neighboring windows, in [0, 1).
        batch_size: windows in one forward pass.
        resample_to: voxel size (*S) that the network was trained at; None takes images as they are.
        window: intensities that the network was trained to tell apart; None takes the statistics of each image.
    """

    net: nn.Module
    patch_size: Sequence[int]
    device: torch.device
    autocast: Autocast
    overlap: float = OVERLAP
    batch_size: int = 8
    resample_to: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None

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
        self, image: NDArray[np.generic], spacing: tuple[float, ...] | None, windows: Callable[[Tensor], Tensor]
    ) -> NDArray[np.float32]:
        if self.resample_to is None:
            return self._predict(image, windows)
        if spacing is None:
            raise DataError(
                f"the network was trained at voxel size {self.resample_to} and the image does not say its own. "
                "Save it in a format that has one (NIfTI, OME-TIFF, OME-Zarr), or give it with --spacing."
            )
        shape = compute_resampled_shape(image.shape[1:], spacing, self.resample_to)
        return resample_image(self._predict(resample_image(image, shape), windows), image.shape[1:])

    @torch.no_grad()
    def _predict(self, image: NDArray[np.generic], windows: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        from monai.inferers import sliding_window_inference

        try:
            zscore = torch.from_numpy(normalize(image, self.window))[None]
            probs = sliding_window_inference(
                zscore,
                roi_size=tuple(self.patch_size),
                sw_batch_size=self.batch_size,
                predictor=windows,
                overlap=self.overlap,
                mode="gaussian",
                sw_device=self.device,
                device=torch.device("cpu"),
            )
        except Exception as error:
            if is_out_of_memory(error):  # the message of the command line has the notes
                error.add_note(f"at an image of {' x '.join(map(str, image.shape[1:]))} on {self.device}")
            raise
        return np.asarray(probs[0].numpy(), dtype=np.float32)

    def _compute_logits(self, windows: Tensor) -> Tensor:
        with self.autocast():
            logits: Tensor = self.net(windows)
        return logits.float()

    def _compute_probs(self, windows: Tensor) -> Tensor:
        return self._compute_logits(windows).softmax(dim=1)

    def _compute_both(self, windows: Tensor) -> Tensor:
        logits = self._compute_logits(windows)
        return torch.cat([logits.softmax(dim=1), compute_foreground_logit(logits).unsqueeze(1)], dim=1)


def _clear(probs: NDArray[np.float32], gaps: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """Return probabilities (K,*S) that are background in the ``gaps`` (*S)."""
    if gaps is not None:
        probs[:, gaps] = np.eye(len(probs), 1, dtype=np.float32)
    return probs
