"""Networks by name: builders around MONAI, with one rule for norms and one for patch sizes.

All networks map (N, C, *S) to logits (N, K, *S) with ``*S`` = (Z, Y, X) or (Y, X); with deep supervision, in train mode
only, to (N, H, K, *S). Three things differ from MONAI:

- Every norm layer is of the type asked for, affine. MONAI's V-Net and Attention U-Net hard-code batch norm, whose
  statistics differ between student and teacher, and between labeled and unlabeled batches.
- There is no norm on the K output channels; MONAI's U-Net and V-Net have one. It gives the maps from which the logits
  are made mean 0 and variance 1 in every image, whatever the image shows; toy data were fitted five times worse.
- In 2D, V-Net drops channels. MONAI builds 3D dropout there, which takes the samples of a 2D batch for channels and
  drops whole samples.

To add a network, write a builder and add a line to ``NETWORKS`` and one to ``PARTS`` (``parts.py``). torch and
MONAI are imported inside the builders, so that names and patch sizes can be checked without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from ssl_seg.errors import NetworkError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

Norm = Literal["instance", "group", "batch"]
Sizes = tuple[int, ...]

_INSTANCE = ("instance", {"affine": True})


@dataclass(frozen=True)
class NetworkSpec:
    """How to build a network, and which patch sizes it takes."""

    name: str
    description: str
    build: Callable[..., nn.Module]
    """(channels, num_classes, patch_size, features) -> network; its norm layers are replaced afterwards."""
    divisor: Callable[[Sizes], Sizes]
    """Patch size -> the factor by which each axis is downsampled at the bottleneck."""
    default_features: int
    """Width of the first level, in channels."""
    fixed_features: bool = False
    """The width cannot be changed."""
    deep_supervision: bool = False
    """``build`` takes the number of further outputs as a fifth argument."""
    has_encoder: bool = False
    """``build`` takes ``encoder`` and ``pretrained`` too; the network has the methods of ``EncoderUNet``."""


def build_network(
    name: str,
    *,
    ndim: int,
    channels: int,
    num_classes: int,
    patch_size: Sequence[int],
    features: int | None = None,
    norm: Norm = "instance",
    deep_supervision: int = 0,
    encoder: str = "efficientnet_lite0",
    pretrained: bool = False,
) -> nn.Module:
    """Return a network with random weights, drawn from torch's global generator: seed it before.

    Args:
        name: one of ``NETWORKS``.
        ndim: number of spatial axes, 2 or 3.
        channels: number of image channels, >= 1.
        num_classes: number of classes including background, >= 2.
        patch_size: *S, in voxels.
        features: width of the first level, in channels; deeper levels double it. None is the network's own default.
        norm: type of all norm layers; group norm has up to 8 groups, of two channels at least.
        deep_supervision: number of further outputs at coarser levels; see ``check_deep_supervision``.
        encoder: encoder of ``encoder_unet``; see ``encoders``.
        pretrained: whether published weights will be put into the encoder, or a checkpoint that began with them: it
            keeps its own norms then, with their statistics.

    Returns:
        Module from (N, channels, *S) to logits (N, num_classes, *S). With deep supervision, in train mode only, to
        (N, 1 + deep_supervision, num_classes, *S): finest first, coarser ones enlarged to the patch.

    Raises:
        NetworkError: if the name is unknown or a value is not possible for this network.
    """
    spec = get_network_spec(name)
    if ndim not in (2, 3) or len(patch_size) != ndim:
        raise NetworkError(f"patch_size {_show(patch_size)} is not {ndim}D: give one size for each of 2 or 3 axes")
    if channels < 1 or num_classes < 2:
        raise NetworkError(
            f"channels={channels} and num_classes={num_classes}: at least 1 channel and 2 classes are needed, "
            "background included"
        )
    features = spec.default_features if features is None else features
    if spec.fixed_features and features != spec.default_features:
        raise NetworkError(
            f"features={features} is not possible for '{name}': its width is fixed at {spec.default_features}. "
            "Leave features unset, or choose another network"
        )
    if features < 2:
        raise NetworkError(f"features={features}: a network needs at least 2 channels at its first level")
    check_patch_size(name, patch_size)
    check_deep_supervision(name, patch_size, deep_supervision)
    heads = (deep_supervision,) if spec.deep_supervision else ()
    options = {"encoder": encoder, "pretrained": pretrained} if spec.has_encoder else {}
    network = spec.build(channels, num_classes, tuple(patch_size), features, *heads, **options)
    _replace_norms(network, ndim, norm)
    return network


def get_network_spec(name: str) -> NetworkSpec:
    """Return the entry of ``NETWORKS``.

    Raises:
        NetworkError: if there is none of this name.
    """
    if name not in NETWORKS:
        raise NetworkError(f"unknown network '{name}'{did_you_mean(name, NETWORKS)}; available: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def check_patch_size(name: str, patch_size: Sequence[int]) -> None:
    """Raise unless the network can be trained on patches of this size.

    Each axis must be a multiple of the network's divisor, and the bottleneck must keep more than one voxel: a norm over
    a single value is not defined. For ``basic_unet`` the rule is stricter than MONAI, which pads odd sizes.

    Args:
        name: one of ``NETWORKS``.
        patch_size: *S, in voxels; 2 or 3 axes.

    Raises:
        NetworkError: if the name is unknown or the size does not fit; the message gives the nearest sizes that do.
    """
    spec = get_network_spec(name)
    size = tuple(patch_size)
    if len(size) not in (2, 3) or min(size) < 1:
        raise NetworkError(f"patch_size {_show(size)} is not a patch size: give 2 or 3 sizes of at least 1")
    if _fits(spec, size):
        return
    divisor = _show_divisor(spec.divisor(size))
    reason = "only one voxel is left at the bottleneck" if _is_multiple(spec, size) else f"each axis must be {divisor}"
    nearest = [_show(fit) for fit in (_nearest(spec, size, -1), _nearest(spec, size, +1)) if fit]
    raise NetworkError(
        f"patch_size {_show(size)} does not fit '{name}': {reason}; nearest that fit: {', '.join(nearest)}"
    )


def check_deep_supervision(name: str, patch_size: Sequence[int], heads: int) -> None:
    """Raise unless the network can have so many further outputs on patches of this size.

    Args:
        name: one of ``NETWORKS``.
        patch_size: *S, in voxels.
        heads: number of further outputs; 0 always fits.

    Raises:
        NetworkError: if the name is unknown, the network has no deep supervision, or too few levels for it.
    """
    if heads == 0:
        return
    if not get_network_spec(name).deep_supervision:
        able = ", ".join(spec.name for spec in NETWORKS.values() if spec.deep_supervision)
        raise NetworkError(
            f"network.deep_supervision = {heads}: '{name}' has no outputs at coarser levels. Set it to 0, or use {able}"
        )
    # The finest output is the network's own; the bottleneck has none.
    levels = len(plan_strides(patch_size)) if name == "dynunet" else len(_plan_steps(patch_size)) + 1
    if heads > (most := levels - 2):
        raise NetworkError(
            f"network.deep_supervision = {heads}: '{name}' on patches of {_show(patch_size)} has {most} coarser levels "
            f"with an output. Set it to at most {most}, or make the patch larger"
        )


def _is_multiple(spec: NetworkSpec, size: Sizes) -> bool:
    return all(s % d == 0 for s, d in zip(size, spec.divisor(size), strict=True))


def _fits(spec: NetworkSpec, size: Sizes) -> bool:
    return _is_multiple(spec, size) and math.prod(size) > math.prod(spec.divisor(size))


def _nearest(spec: NetworkSpec, size: Sizes, direction: int) -> Sizes | None:
    """Return the nearest size that fits, with no axis larger (direction -1) or none smaller (+1); None if none does."""
    while min(size) >= 1:
        size = tuple(_nearest_on_axis(spec, size, axis, direction) for axis in range(len(size)))
        if min(size) >= 1 and _fits(spec, size):
            return size
        size = tuple(s + direction for s in size)
    return None


def _nearest_on_axis(spec: NetworkSpec, size: Sizes, axis: int, direction: int) -> int:
    """Return the nearest multiple of the divisor on one axis, 0 if there is none; divisors are independent by axis."""
    length = size[axis]
    while length > 0 and length % spec.divisor((*size[:axis], length, *size[axis + 1 :]))[axis]:
        length += direction
    return length


def _show(size: Sequence[int]) -> str:
    return "x".join(str(s) for s in size)


def _show_divisor(divisor: Sizes) -> str:
    if len(set(divisor)) == 1:
        return f"a multiple of {divisor[0]}"
    return f"a multiple of {', '.join(str(d) for d in divisor)} in turn"


def _divide_all_by(factor: int) -> Callable[[Sizes], Sizes]:
    return lambda size: (factor,) * len(size)


def plan_strides(patch_size: Sequence[int]) -> list[Sizes]:
    """Return the strides of each DynUNet level, after nnU-Net (Isensee et al. 2021).

    An axis is halved while at least 4 voxels remain at the bottleneck, at most 4 times in 3D and 5 times in 2D.
    Voxels are taken as isotropic. The first level keeps the resolution; there are at least 3 levels, which MONAI needs.

    Args:
        patch_size: *S, in voxels.
    """
    limit = 4 if len(patch_size) == 3 else 5
    halvings = [min(limit, max((s // 4).bit_length() - 1, 0)) for s in patch_size]
    n_levels = max(2, *halvings)
    return [(1,) * len(halvings)] + [tuple(2 if level < h else 1 for h in halvings) for level in range(n_levels)]


def _plan_steps(patch_size: Sequence[int]) -> list[Sizes]:
    """Return by how much each axis shrinks from level to level of an encoder: in 3D as in DynUNet, on 4 levels."""
    if len(patch_size) == 2:
        return [(2, 2)] * 5
    steps = plan_strides(patch_size)[1:]
    return steps + [(1, 1, 1)] * (4 - len(steps))


def _divide_by(plan: Callable[[Sizes], list[Sizes]]) -> Callable[[Sizes], Sizes]:
    return lambda size: tuple(math.prod(axis) for axis in zip(*plan(size), strict=True))


def _build_unet(channels: int, num_classes: int, patch_size: Sizes, features: int) -> nn.Module:
    from monai.networks.nets import UNet
    from torch import nn

    network: nn.Module = UNet(
        spatial_dims=len(patch_size),
        in_channels=channels,
        out_channels=num_classes,
        channels=[features * 2**level for level in range(5)],
        strides=(2, 2, 2, 2),
        num_res_units=2,
        norm=_INSTANCE,
    )
    top = network.get_submodule("model.2.0.adn")
    top.N = nn.Identity()
    return network


def _build_basic_unet(channels: int, num_classes: int, patch_size: Sizes, features: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    network: nn.Module = BasicUNet(
        spatial_dims=len(patch_size),
        in_channels=channels,
        out_channels=num_classes,
        features=[features * factor for factor in (1, 1, 2, 4, 8, 1)],
        norm=_INSTANCE,
    )
    return network


def _build_dynunet(channels: int, num_classes: int, patch_size: Sizes, features: int, heads: int = 0) -> nn.Module:
    from monai.networks.nets import DynUNet

    strides = plan_strides(patch_size)
    kernel = tuple(1 if size == 1 else 3 for size in patch_size)
    widest = max(320 if len(patch_size) == 3 else 512, features)  # nnU-Net's limits
    network: nn.Module = DynUNet(
        spatial_dims=len(patch_size),
        in_channels=channels,
        out_channels=num_classes,
        kernel_size=[kernel] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(features * 2**level, widest) for level in range(len(strides))],
        norm_name=_INSTANCE,
        deep_supervision=heads > 0,
        deep_supr_num=max(heads, 1),
    )
    if heads > 0:
        network.register_forward_hook(_forget_heads)
    return network


def _forget_heads(network: nn.Module, _inputs: object, _output: object) -> None:
    """Let go of the outputs that MONAI's DynUNet keeps in a list beside the one it returns.

    They would hold the activations of a step until the next one, and a network that keeps them cannot be copied.
    """
    import torch

    heads = cast("list[Tensor]", network.heads)
    heads[:] = [torch.zeros(1)] * len(heads)


def _build_vnet(channels: int, num_classes: int, patch_size: Sizes, features: int) -> nn.Module:
    from monai.networks.nets import VNet
    from torch import nn

    ndim = len(patch_size)
    taken = min(c for c in (1, 2, 4, 8, features) if c >= min(channels, features))
    network: nn.Module = VNet(spatial_dims=ndim, in_channels=taken, out_channels=num_classes)
    top = network.get_submodule("out_tr.conv_block.adn")
    top.N = nn.Identity()
    if ndim == 2:
        _replace(network, lambda layer: nn.Dropout2d(layer.p) if isinstance(layer, nn.Dropout3d) else None)
    if taken == channels:
        return network
    # The first block adds the image to its 16 channels, repeated, and so takes 1, 2, 4, 8 or 16 channels only.
    convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
    return nn.Sequential(convolution(channels, taken, kernel_size=1), network)


def _build_segresnet(channels: int, num_classes: int, patch_size: Sizes, features: int) -> nn.Module:
    from monai.networks.nets import SegResNet

    network: nn.Module = SegResNet(
        spatial_dims=len(patch_size),
        in_channels=channels,
        out_channels=num_classes,
        init_filters=features,
        norm=_INSTANCE,
    )
    return network


def _build_attention_unet(channels: int, num_classes: int, patch_size: Sizes, features: int) -> nn.Module:
    from monai.networks.nets import AttentionUnet

    network: nn.Module = AttentionUnet(
        spatial_dims=len(patch_size),
        in_channels=channels,
        out_channels=num_classes,
        channels=[features * 2**level for level in range(5)],
        strides=(2, 2, 2, 2),
    )
    return network


def _build_encoder_unet(
    channels: int, num_classes: int, patch_size: Sizes, features: int, heads: int = 0, *, encoder: str, pretrained: bool
) -> nn.Module:
    from ssl_seg.networks.encoders import make_encoder
    from ssl_seg.networks.encoders.unet import EncoderUNet

    steps = _plan_steps(patch_size)
    return EncoderUNet(
        make_encoder(encoder, steps, channels),
        steps=steps,
        channels=channels,
        num_classes=num_classes,
        features=features,
        heads=heads,
        frozen=pretrained,
    )


NETWORKS: dict[str, NetworkSpec] = {
    spec.name: spec
    for spec in (
        NetworkSpec(
            "encoder_unet",
            "U-Net on an encoder with ImageNet weights, 6 levels (3D: 5)",
            _build_encoder_unet,
            _divide_by(_plan_steps),
            16,
            deep_supervision=True,
            has_encoder=True,
        ),
        NetworkSpec("unet", "U-Net with residual units, 5 levels", _build_unet, _divide_all_by(16), 32),
        NetworkSpec("basic_unet", "U-Net with max-pooling, 5 levels", _build_basic_unet, _divide_all_by(16), 32),
        NetworkSpec(
            "dynunet",
            "nnU-Net's U-Net, planned from the patch",
            _build_dynunet,
            _divide_by(plan_strides),
            32,
            deep_supervision=True,
        ),
        NetworkSpec("vnet", "V-Net, width 16, with dropout", _build_vnet, _divide_all_by(16), 16, fixed_features=True),
        NetworkSpec("segresnet", "SegResNet, residual, 4 levels", _build_segresnet, _divide_all_by(8), 16),
        NetworkSpec("attention_unet", "Attention U-Net, 5 levels", _build_attention_unet, _divide_all_by(16), 32),
    )
}


def _replace_norms(network: nn.Module, ndim: int, norm: Norm) -> None:
    """Replace every norm layer in place, but for frozen ones; new layers start with weight 1 and bias 0."""
    from torch import nn

    def make(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, nn.GroupNorm):
            return _make_norm(norm, ndim, layer.num_channels)
        if isinstance(layer, nn.modules.batchnorm._NormBase):  # batch and instance norm
            return _make_norm(norm, ndim, layer.num_features)
        return None

    _replace(network, make)


def _replace(network: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace in place each layer for which ``make`` returns another one; frozen encoders stay as they are."""
    frozen = _list_frozen(network)
    for parent in [module for module in network.modules() if id(module) not in frozen]:
        for name, child in parent.named_children():
            if (replacement := make(child)) is not None:
                setattr(parent, name, replacement)


def _make_norm(norm: Norm, ndim: int, width: int) -> nn.Module:
    from torch import nn

    if norm == "group":
        # A group of one channel would be instance norm, which forgets how bright a patch is.
        return nn.GroupNorm(math.gcd(width, max(1, min(8, width // 2))), width)
    if norm == "batch":
        return nn.BatchNorm2d(width) if ndim == 2 else nn.BatchNorm3d(width)
    return nn.InstanceNorm2d(width, affine=True) if ndim == 2 else nn.InstanceNorm3d(width, affine=True)


def has_batch_norm(net: nn.Module) -> bool:
    """Return whether a network has BatchNorm layers that take the statistics of a batch in train mode."""
    from torch.nn.modules.batchnorm import _BatchNorm

    frozen = _list_frozen(net)
    return any(isinstance(module, _BatchNorm) and id(module) not in frozen for module in net.modules())


def _list_frozen(net: nn.Module) -> set[int]:
    """Return the ids of all modules of encoders that keep their norms and the statistics in them."""
    encoders = [module.get_submodule("encoder") for module in net.modules() if getattr(module, "frozen", False)]
    return {id(module) for encoder in encoders for module in encoder.modules()}
