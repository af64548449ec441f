"""A U-Net on an encoder (Ronneberger et al. 2015, arXiv:1505.04597): the features of the encoder, finest last, are
enlarged, joined and convolved up to the size of the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue over ImageNet, for values from 0 to 1."""

SLOPE = 0.1
"""Slope of the decoder's activations below 0, that of MONAI's BasicUNet. With 0, all features that speak for foreground
may die, so that its log-odds are the bias of the head alone: 1 of 186 trainings never predicted any."""


@dataclass(frozen=True)
class Encoder:
    """A network from images to features, finest first; their strides, powers of 2, and their widths.

    The stride of an axis that a patch is too short for is smaller.
    """

    network: nn.Module
    strides: tuple[int, ...]
    widths: tuple[int, ...]


class EncoderUNet(nn.Module):
    """Images (N, C, *S) -> logits (N, K, *S); with deep supervision, in train mode only, (N, 1 + heads, K, *S).

    Args:
        encoder: encoder of the images.
        steps: by how much each axis shrinks from level to level, finest first.
        channels: number of image channels.
        num_classes: K.
        features: width of the finest level of the decoder; coarser ones double it.
        heads: number of further outputs, at the finest of the coarser levels.
        frozen: keep the encoder's batch statistics as they are. Those of a few patches are noise, and student, teacher
            and the processes of a run would each have their own.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        steps: Sequence[tuple[int, ...]],
        channels: int,
        num_classes: int,
        features: int,
        heads: int = 0,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        ndim = len(steps[0])
        skips = dict(zip(encoder.strides, encoder.widths, strict=True))
        self.input, self.encoder, self.frozen = InputScale(ndim, channels), encoder.network, frozen
        self.strides = encoder.strides
        self.steps = {2**level: tuple(float(n) for n in step) for level, step in enumerate(steps)}
        below, self.decoder = skips[max(skips)], nn.ModuleDict()
        stride = max(skips) // 2
        while stride >= 1:
            self.decoder[str(stride)] = _make_block(ndim, below + skips.get(stride, 0), features * stride)
            below, stride = features * stride, stride // 2
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.head = convolution(features, num_classes, kernel_size=1)
        self.deep_heads = nn.ModuleList(
            convolution(features * 2 ** (level + 1), num_classes, kernel_size=1) for level in range(heads)
        )
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the features, finest first: (N, channels, *S / stride) each."""
        features: list[Tensor] = self.encoder(self.input(images))
        return features

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits of what ``encode`` returns."""
        return self.classify(self.decode_features(features))

    def decode_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return what the decoder makes of what ``encode`` returns, coarsest first; the last one has the full size."""
        skips = dict(zip(self.strides, features, strict=True))
        x, levels = skips[max(self.strides)], []
        for stride, block in self.decoder.items():
            x = F.interpolate(x, scale_factor=self.steps[int(stride)], mode="nearest")
            skip = skips.get(int(stride))
            x = block(x if skip is None else torch.cat([x, skip], dim=1))
            levels.append(x)
        return levels

    def classify(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the logits of what ``decode_features`` returns."""
        logits: Tensor = self.head(levels[-1])
        if not (self.training and len(self.deep_heads)):
            return logits
        coarser = zip(self.deep_heads, levels[-2::-1], strict=False)
        size = logits.shape[2:]
        return torch.stack([logits, *(F.interpolate(head(level), size) for head, level in coarser)], dim=1)

    def reduce_to_decoder(self) -> None:
        """Give up all but ``decode``, with one output: what is left decodes what another network encodes."""
        self.deep_heads = nn.ModuleList()
        self.input, self.encoder = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    def train(self, mode: bool = True) -> EncoderUNet:
        """Set the mode of all layers but the frozen norms, which stay in eval mode."""
        super().train(mode)
        if self.frozen:
            for layer in self.encoder.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()
        return self


class InputScale(nn.Module):
    """z-scores -> a photo of mean brightness and contrast, on the scale that the encoder was trained on."""

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels, *[1] * ndim))
        self.register_buffer("shift", torch.zeros(channels, *[1] * ndim))

    def forward(self, images: Tensor) -> Tensor:
        """Return the images (N, C, *S) on the encoder's scale."""
        return images * self.get_buffer("scale") + self.get_buffer("shift")


def make_input_scale(channels: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return scale and shift (channels,) from z-scores to the scale of an encoder.

    Args:
        channels: number of image channels; three are red, green and blue, others are taken as gray.
        mean, std: what the encoder subtracts from photos in [0, 1] and divides by, for red, green and blue.
    """
    own_mean, own_std, photo_mean, photo_std = map(torch.tensor, (mean, std, PHOTO_MEAN, PHOTO_STD))
    scale, shift = photo_std / own_std, (photo_mean - own_mean) / own_std
    return (scale, shift) if channels == 3 else (scale.mean().expand(channels), shift.mean().expand(channels))


def _make_block(ndim: int, width: int, out: int) -> nn.Sequential:
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if ndim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    layers: list[nn.Module] = []
    for before in (width, out):
        layers += [
            convolution(before, out, 3, padding=1, bias=False),
            norm(out, affine=True),
            nn.LeakyReLU(SLOPE, True),
        ]
    return nn.Sequential(*layers)
