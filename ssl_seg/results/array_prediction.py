"""Masks of arrays in memory, made as ``ssl-seg predict`` makes those of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import DataConfig
from ssl_seg.data.formats.layout import lay_out_array
from ssl_seg.data.formats.stored import Stored, from_array, leave_out, name_errors
from ssl_seg.data.reading import make_reading
from ssl_seg.data.store import fit_channels
from ssl_seg.engine.machine import own_defaults
from ssl_seg.errors import DataError
from ssl_seg.inference.calibration import check_threshold
from ssl_seg.inference.decision import clean_classes
from ssl_seg.labels import to_mask
from ssl_seg.results.mask_making import (
    MaskMaker,
    PredictRequest,
    check_dimensions,
    open_maker,
    open_networks,
    read_whole,
)
from ssl_seg.results.objects import find_objects
from ssl_seg.results.prediction import check_spacing

_NAME = "the array"
"""What errors call an image."""


@dataclass(frozen=True)
class ArrayMask:
    """What is predicted for an array."""

    mask: NDArray[np.integer]
    """(*S), with the values of the training masks; where instances were learned, the numbers 1..n of the objects."""
    probabilities: NDArray[np.float32]
    """(K,*S), background first."""
    notes: tuple[str, ...]
    """What was guessed about the array."""


@dataclass(frozen=True)
class ArrayPredictor:
    """Networks that are loaded once and predict one array after the other."""

    maker: MaskMaker = field(repr=False)
    notes: tuple[str, ...]
    """What was said while they were loaded."""

    @own_defaults()
    def __call__(self, image: NDArray[np.generic], spacing: Sequence[float] | None = None) -> ArrayMask:
        """Return mask and probabilities of an image, as ``ssl_seg.predict`` writes them for the array in an NPY file.

        The array is predicted at once, so memory grows with it; large files are predicted in pieces.

        Args:
            image: numbers (Y, X) or (Z, Y, X), or with channels first or last; raw, as the training images were. NaN
                is no data where the training had ``data.nonfinite=ignore``.
            spacing: voxel size (*S); by default that of the training, where it was told one.

        Raises:
            ConfigError: for a spacing that does not fit.
            DataError: for an array that is no image, or has not the dimensions or channels of the training images.
        """
        data = self.maker.data
        check_spacing(spacing, data)
        if np.ma.is_masked(image):
            raise DataError(
                f"{_NAME} has masked values, and what lies below them would be read: array.filled(VALUE), with the "
                "value that the training images have where nothing was measured"
            )
        voxel = data.spacing if spacing is None else tuple(map(float, spacing))
        stored = _hold(np.asarray(image), data)
        check_dimensions(stored, _NAME, data)
        fit = partial(fit_channels, channels=data.channels, where=_NAME)
        stored, voxels, intensity = read_whole(stored, partial(_hold, np.asarray(image)), data, fit)
        box = tuple(slice(0, size) for size in voxels.shape[1:])
        _, outputs = next(self.maker.turn(voxel).predict(voxels, intensity, voxel, box))
        classes = clean_classes(outputs[""], self.maker.decision.cleaning)
        if data.task == "instances":
            mask: NDArray[np.integer] = find_objects(classes, voxels, data.label_values, voxel, data.task)[0]
        else:
            mask = to_mask(classes, data.label_values)
        return ArrayMask(mask, np.stack([outputs[name] for name in self.maker.labels]), stored.notes)


def load_predictor(request: PredictRequest) -> ArrayPredictor:
    """Return the networks of a request, ready to predict arrays; its source and output are not looked at.

    Raises:
        SslSegError: for unusable checkpoints, or a threshold that does not fit.
    """
    notes: list[str] = []
    models = open_networks(request, notes.append)
    data = models[0].config.data
    check_threshold(request.threshold, data)
    maker = open_maker(request, models, notes.append)
    return ArrayPredictor(replace(maker, labels={f"class {n}": n for n in range(data.num_classes)}), tuple(notes))


def _hold(image: NDArray[np.generic], data: DataConfig) -> Stored:
    """Return an array as an opened image, its axes told apart as those of an NPY file."""
    reading = make_reading(dict(data))
    with name_errors(_NAME):
        layout, notes = lay_out_array(image.shape, reading)
        return leave_out(from_array(_NAME, image, layout, notes=notes), reading)
