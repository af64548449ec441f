"""PNG, JPG and BMP: decoded whole by OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ssl_seg.data.formats.file_checks import CHECKS
from ssl_seg.data.formats.layout import lay_out_axes
from ssl_seg.data.formats.stored import Stored, hold


def open_raster(path: Path) -> Stored:
    """Return the opened image, in RGB and without alpha.

    Raises:
        ValueError: if the file is damaged.
    """
    data = path.read_bytes()
    CHECKS[path.suffix.lower()](data)
    # OpenCV's log level belongs to the process; set here and not on import, so that importing has no side effect.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("the decoder finds it damaged")
    if pixels.ndim == 3:
        pixels = pixels[..., 2::-1]  # BGR or BGRA -> RGB
    return hold(str(path), pixels, lay_out_axes(pixels.shape, "YXS"[: pixels.ndim]))
