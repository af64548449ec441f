"""PNG, JPG and BMP: decoded whole by Pillow, and by OpenCV where PNG has colors of 16 bits."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssl_seg.data.formats.file_checks import check_claim
from ssl_seg.data.formats.layout import ORIENTATION, NotAnImageError, lay_out_axes, turn_upright
from ssl_seg.data.formats.pixels import LabelColors, choose_palette_labels
from ssl_seg.data.formats.stored import Stored, from_array
from ssl_seg.data.reading import Reading


def open_raster(path: Path, reading: Reading) -> Stored:
    """Return the opened image, upright and in RGB; of a mask with a palette, its indices.

    Raises:
        ValueError: or another error of the decoder, if the file is damaged.
    """
    data = path.read_bytes()
    Image.MAX_IMAGE_PIXELS = None  # the claim is checked below, against the size of the file
    image = _open(data)
    check_claim(image.width * image.height * len(image.getbands()), len(data))
    if image.format == "PNG":
        image.verify()  # the checksums, which decoding leaves out
        image = _open(data)
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise NotAnImageError(f"it is an animation of {frames} frames: save each as an image of its own")
    image.load()
    pixels, notes, colors = _to_array(image, data, is_mask=reading.is_mask)
    has_alpha = pixels.ndim == 3 and pixels.shape[2] % 2 == 0
    layout = lay_out_axes(pixels.shape, "YXS"[: pixels.ndim])
    layout, turned = turn_upright(layout, image.getexif().get(ORIENTATION, 1))
    stored = from_array(str(path), pixels, layout, notes=(*notes, *turned), has_alpha=has_alpha)
    return replace(stored, label_colors=colors)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP"))
    except UnidentifiedImageError:  # names the object in memory
        raise ValueError("its header is damaged") from None


def _to_array(
    image: Image.Image, data: bytes, *, is_mask: bool
) -> tuple[NDArray[np.generic], tuple[str, ...], LabelColors]:
    """Return the pixels (Y, X) or (Y, X, S), alpha included, notes on them, and the colors of labels."""
    if image.format == "PNG" and data[24] == 16 and len(image.getbands()) > 1:  # of which Pillow keeps 8 bits
        pixels = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
        return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]], (), ()
    if image.mode == "P":
        colors = np.asarray(image.convert("RGB"))
        if not is_mask:
            return colors, (), ()
        labels, note, named = choose_palette_labels(np.asarray(image), np.moveaxis(colors, -1, 0))
        return labels, (note,), named
    if image.mode == "CMYK":
        return np.asarray(image.convert("RGB")), ("its CMYK colors are converted to RGB",), ()
    return np.asarray(image.convert("L") if image.mode == "1" else image), (), ()
