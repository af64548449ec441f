"""Encoders that others have trained, as the first half of a U-Net: the network, its weight files, encoders of timm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ssl_seg.networks.encoders import timm_models
from ssl_seg.networks.encoders.efficientnet import STRIDES, WIDTHS, EfficientNetLite0
from ssl_seg.networks.encoders.unet import Encoder, EncoderUNet, make_input_scale
from ssl_seg.networks.encoders.weights import load_lite0

LITE0 = "efficientnet_lite0"
LITE0_MEAN = LITE0_STD = (0.5, 0.5, 0.5)
"""What its training subtracted from photos in [0, 1], and divided by."""


def make_encoder(name: str, steps: Sequence[tuple[int, ...]], channels: int) -> Encoder:
    """Return an encoder with random weights.

    Args:
        name: ``efficientnet_lite0``, or a name of timm (2D only, needs that package).
        steps: by how much each axis shrinks from level to level.
        channels: number of image channels.

    Raises:
        NetworkError: for a name that is not known or cannot be an encoder.
    """
    if name == LITE0:
        return Encoder(EfficientNetLite0(steps, channels), STRIDES[: len(steps)], WIDTHS[: len(steps)])
    return timm_models.make_encoder(name, len(steps[0]), channels)


def load_encoder(network: nn.Module, name: str, source: str) -> str:
    """Put published weights into the encoder of an ``EncoderUNet``, and the scale that they expect of images.

    Args:
        network: the network, changed in place.
        name: name of the encoder; see ``make_encoder``.
        source: ``imagenet`` or a file.

    Returns:
        What the weights are: the SHA-256 of their file, or where they come from.

    Raises:
        NetworkError: for weights that are missing, damaged or of another encoder.
    """
    unet = cast("EncoderUNet", network)
    scale = unet.input.get_buffer("scale")
    ndim, channels = scale.ndim - 1, len(scale)
    if name == LITE0:
        origin = load_lite0(unet.encoder, source, ndim=ndim, channels=channels)
        mean: tuple[float, ...] = LITE0_MEAN
        std: tuple[float, ...] = LITE0_STD
    else:
        origin, mean, std = timm_models.load(unet.encoder, name, source, channels)
    _fill(scale, (values := make_input_scale(channels, mean, std))[0])
    _fill(unet.input.get_buffer("shift"), values[1])
    return origin


def _fill(buffer: Tensor, values: Tensor) -> None:
    buffer.copy_(values.reshape(buffer.shape))
