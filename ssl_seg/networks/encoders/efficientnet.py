"""EfficientNet-Lite0 without its classifier, for images and for the slices of volumes.

The network of Tan and Le (2019, arXiv:1905.11946) in the "lite" form of the TensorFlow model garden: ReLU6, no squeeze
and excitation. Its modules are in the order of the published weights, so that a file is matched by order and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

STRIDES, WIDTHS = (2, 4, 8, 16, 32), (16, 24, 40, 112, 320)
"""Strides and channels of the features that the decoder gets, finest first."""
EPSILON = 1e-3
"""Added to the variance by TensorFlow's batch norms."""
STEM = 32
Sizes = tuple[int, ...]
SAME: Sizes = (1, 1)


@dataclass(frozen=True)
class EncoderStage:
    """Blocks of one width; the first one may halve the resolution."""

    kernel: int
    halves: bool
    expansion: int
    width: int
    blocks: int


STAGES = (
    EncoderStage(3, False, 1, 16, 1),
    EncoderStage(3, True, 6, 24, 2),
    EncoderStage(5, True, 6, 40, 2),
    EncoderStage(3, True, 6, 80, 3),
    EncoderStage(5, False, 6, 112, 3),
    EncoderStage(5, True, 6, 192, 4),
    EncoderStage(3, False, 6, 320, 1),
)
_ENDS = (0, 1, 2, 4, 6)
"""Stages after which the resolution is halved, or the network ends: what they give are the features."""


class EfficientNetLite0(nn.Module):
    """Images (N, C, *S) -> features after each step, finest first.

    A volume is taken slice by slice, and what its slices give is averaged along Z from level to level: its slices are
    images, so that the published weights and batch statistics hold. Along Z only the decoder looks at shapes.

    Args:
        steps: by how much each axis shrinks, 5 times in the published network; with fewer steps its end is left out.
        channels: number of image channels.
    """

    def __init__(self, steps: Sequence[Sizes], channels: int) -> None:
        super().__init__()
        ndim, self.poolings = len(steps[0]), [(*step[:-2], 1, 1) for step in steps]
        first, *others = [step[-2:] for step in steps]
        self.stem = _Conv(ndim, channels, STEM, 3, first)
        width, stages = STEM, []
        for stage in STAGES[: _ENDS[len(others)] + 1]:
            blocks = [_Block(ndim, width, stage, others.pop(0) if stage.halves else SAME)]
            blocks += [_Block(ndim, stage.width, stage, SAME) for _ in range(stage.blocks - 1)]
            stages.append(nn.Sequential(*blocks))
            width = stage.width
        self.stages = nn.ModuleList(stages)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the features (N, WIDTHS[i], *S / product of the first i + 1 steps)."""
        features: list[Tensor] = []
        x = F.relu6(self.stem(images))
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _ENDS:
                x = F.avg_pool3d(x, self.poolings[len(features)]) if x.ndim == 5 else x
                features.append(x)
        return features


class _Block(nn.Module):
    """Inverted residual: expand, convolve each channel by itself, project."""

    def __init__(self, ndim: int, width: int, stage: EncoderStage, stride: Sizes) -> None:
        super().__init__()
        inner = width * stage.expansion
        self.expand = _Conv(ndim, width, inner) if stage.expansion > 1 else None
        self.depthwise = _Conv(ndim, inner, inner, stage.kernel, stride, groups=inner)
        self.project = _Conv(ndim, inner, stage.width)
        self.is_residual = width == stage.width

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + out if self.is_residual else out


class _Conv(nn.Module):
    """Convolution padded as TensorFlow does it ("same"), and its norm."""

    def __init__(self, ndim: int, width: int, out: int, kernel: int = 1, stride: Sizes = SAME, groups: int = 1) -> None:
        super().__init__()
        convolution: type[Any] = nn.Conv2d if ndim == 2 else nn.Conv3d
        norm = nn.BatchNorm2d if ndim == 2 else nn.BatchNorm3d
        slices = (1,) * (ndim - 2)
        size, steps = (*slices, kernel, kernel), (*slices, *stride)
        padding: Any = "same" if max(stride) == 1 else 0
        self.conv: nn.Conv2d | nn.Conv3d = convolution(width, out, size, steps, padding, groups=groups, bias=False)
        self.norm = norm(out, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        if max(self.conv.stride) > 1:
            x = _pad_same(x, self.conv.kernel_size, self.conv.stride)
        normed: Tensor = self.norm(self.conv(x))
        return normed


def _pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Pad with zeros to ceil(size / stride) outputs; the odd voxel goes to the end."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


def fit_weights(published: Sequence[Tensor], ndim: int, channels: int) -> list[Tensor]:
    """Return published 2D weights, in order, for images of ``channels`` channels and ``ndim`` axes.

    An image whose channels are all equal gives the features of the gray photo: the first layer's weights for red, green
    and blue are spread evenly over any other number of channels. In 3D each kernel is one slice thick.
    """
    first, *others = published
    if channels != first.shape[1]:
        first = first.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1) / channels
    return [weight.unsqueeze(2) if ndim == 3 and weight.ndim == 4 else weight for weight in (first, *others)]
