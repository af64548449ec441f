"""The parts of the networks: the encoder, which sees the image only, and the head, which makes the logits.

What is neither is the decoder. Nothing in MONAI's classes tells them apart, so ``PARTS`` has an entry for each network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Parts:
    """Modules of one network; encoder and head share no weight."""

    encoder: tuple[nn.Module, ...]
    """From the image to the bottleneck, both ends included."""
    head: tuple[nn.Module, ...]
    """The last layers: all weights whose shape depends on the number of classes, and few others."""


FindParts = Callable[["nn.Module"], Parts]


def find_tensors(network: nn.Module, modules: Sequence[nn.Module]) -> set[str]:
    """Return the names, in the state dict of a network, of all tensors that lie in some of its modules.

    By identity and not by name: DynUNet registers its levels twice.
    """
    inside = {id(tensor) for module in modules for tensor in module.state_dict(keep_vars=True).values()}
    return {name for name, tensor in network.state_dict(keep_vars=True).items() if id(tensor) in inside}


def _name_parts(encoder: Sequence[str], head: Sequence[str]) -> FindParts:
    """Return a function that finds the parts by the names of submodules; names that a variant lacks are left out."""

    def find(network: nn.Module) -> Parts:
        children = dict(network.named_children())
        return Parts(*(tuple(children[name] for name in names if name in children) for names in (encoder, head)))

    return find


def _find_unet_parts(network: nn.Module) -> Parts:
    """Each level of MONAI's UNet is a sequence of its way down, the level below it behind a skip, and its way up."""
    from torch import nn

    level, encoder = network.get_submodule("model"), []
    while isinstance(level, nn.Sequential):
        encoder.append(level[0])
        level = level[1].get_submodule("submodule")
    return Parts((*encoder, level), (network.get_submodule("model.2"),))


def _find_attention_unet_parts(network: nn.Module) -> Parts:
    """Each attention layer holds the level below it, after that level's way down."""
    from torch import nn

    first, level, last = cast("Sequence[nn.Module]", network.get_submodule("model"))
    encoder = [first]
    while isinstance(below := level.get_submodule("submodule"), nn.Sequential):
        encoder.append(below[0])
        level = below[1]
    return Parts((*encoder, below), (last,))


def _find_vnet_parts(network: nn.Module) -> Parts:
    """Find the parts of V-Net; with some numbers of channels a convolution stands before it."""
    from torch import nn

    *before, vnet = network if isinstance(network, nn.Sequential) else (network,)
    parts = _name_parts(("in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"), ("out_tr",))(vnet)
    return Parts((*before, *parts.encoder), parts.head)


PARTS: dict[str, FindParts] = {
    "encoder_unet": _name_parts(("input", "encoder"), ("head", "deep_heads")),
    "unet": _find_unet_parts,
    "basic_unet": _name_parts(("conv_0", "down_1", "down_2", "down_3", "down_4"), ("final_conv",)),
    "dynunet": _name_parts(("input_block", "downsamples", "bottleneck"), ("output_block", "deep_supervision_heads")),
    "vnet": _find_vnet_parts,
    "segresnet": _name_parts(("convInit", "down_layers"), ("conv_final",)),
    "attention_unet": _find_attention_unet_parts,
}
"""Name of a network -> how its parts are found."""
