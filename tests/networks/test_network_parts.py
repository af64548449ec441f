"""Encoder and head of every network, against what they are for: what depends on what in a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from ssl_seg.networks.builders import NETWORKS, build_network
from ssl_seg.networks.parts import PARTS, Parts, find_tensors

VARIANTS = [(name, 0) for name in NETWORKS] + [("dynunet", 1)]
variants = pytest.mark.parametrize(("name", "heads"), VARIANTS)


def build(name: str, heads: int = 0, num_classes: int = 2, channels: int = 3, ndim: int = 2) -> nn.Module:
    torch.manual_seed(0)
    features = None if NETWORKS[name].fixed_features else 4
    return build_network(
        name, ndim=ndim, channels=channels, num_classes=num_classes, patch_size=(64,) * ndim, features=features,
        deep_supervision=heads,
    )  # fmt: skip


def weights_of(modules: Sequence[nn.Module]) -> set[int]:
    return {id(p) for m in modules for p in m.parameters()}


def perturb(weights: Sequence[nn.Parameter]) -> None:
    """Norms remove a change of scale or of the mean, so each weight gets a change of its own."""
    with torch.no_grad():
        for weight in weights:
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))


def outputs_of(network: nn.Module, watched: Sequence[nn.Module]) -> list[Tensor]:
    seen: dict[int, Tensor] = {}
    handles = [
        m.register_forward_hook(lambda _m, _i, out, key=key: seen.setdefault(key, out.clone()))
        for key, m in enumerate(watched)
    ]
    with torch.no_grad():
        network.eval()(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)))
    for handle in handles:
        handle.remove()
    return [seen[key] for key in range(len(watched))]


def convolutions(modules: Sequence[nn.Module]) -> list[nn.Module]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d)
    return list({id(c): c for m in modules for c in m.modules() if isinstance(c, kinds)}.values())


def test_every_network_has_parts() -> None:
    assert set(PARTS) == set(NETWORKS)


@variants
@pytest.mark.parametrize("ndim", [2, 3])
def test_encoder_and_head_are_proper_parts(name: str, heads: int, ndim: int) -> None:
    network = build(name, heads, ndim=ndim)
    parts = PARTS[name](network)
    encoder, head, whole = weights_of(parts.encoder), weights_of(parts.head), weights_of([network])
    assert encoder
    assert head
    assert not encoder & head
    assert encoder | head < whole  # the rest is the decoder


@variants
@pytest.mark.parametrize("channels", [1, 3])
def test_the_head_is_what_depends_on_the_number_of_classes(name: str, heads: int, channels: int) -> None:
    two, five = (build(name, heads, num_classes, channels) for num_classes in (2, 5))
    other = {n for n, value in two.state_dict().items() if value.shape != five.state_dict()[n].shape}
    assert other
    assert other <= find_tensors(two, PARTS[name](two).head)


def breaches(network: nn.Module, parts: Parts) -> set[str]:
    """Return what contradicts that the encoder is all that lies between the image and the bottleneck.

    The bottleneck are the convolutions with the smallest output. Inside the encoder, each one must have a say in what
    comes out there; outside, each one must see it.
    """
    encoder = weights_of(parts.encoder)
    every = convolutions([network])
    first = outputs_of(network, every)
    deepest = min(out[0, 0].numel() for out in first)
    bottleneck = [c for c, out in zip(every, first, strict=True) if out[0, 0].numel() == deepest]
    found = set()
    before = outputs_of(network, bottleneck)
    for convolution in every:
        if id(convolution.weight) in encoder:
            perturb([convolution.weight])
            after = outputs_of(network, bottleneck)
            if all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
                found.add("too much is in the encoder")
            before = after
    outside = [c for c in every if id(c.weight) not in encoder]
    before = outputs_of(network, outside)
    perturb([c.weight for c in bottleneck])
    pairs = zip(outside, before, outputs_of(network, outside), strict=True)
    blind = {id(c) for c, a, b in pairs if torch.equal(a, b)}
    gates = {id(c) for m in network.modules() if hasattr(m, "W_x") for c in convolutions([m.W_x])}
    # In Attention U-Net one convolution of each gate looks at the skip alone; the gate is the decoder's.
    return found | ({"something is left out of the encoder"} if blind - gates else set())


@variants
def test_the_encoder_is_the_way_from_the_image_to_the_bottleneck(name: str, heads: int) -> None:
    network = build(name, heads)
    assert breaches(network, PARTS[name](network)) == set()


@pytest.mark.parametrize(
    ("encoder", "breach"),
    [
        (("down_1", "down_2", "down_3", "down_4"), "something is left out of the encoder"),
        (("conv_0", "down_1", "down_2", "down_3", "down_4", "upcat_4"), "too much is in the encoder"),
    ],
)
def test_a_wrong_encoder_is_seen(encoder: tuple[str, ...], breach: str) -> None:
    network = build("basic_unet")
    assert {breach} == breaches(network, Parts(tuple(map(network.get_submodule, encoder)), (network.final_conv,)))


@variants
def test_tensors_are_found_under_all_their_names(name: str, heads: int) -> None:
    """DynUNet lists its levels twice: a new value for one name must be a new value for the other."""
    network = build(name, heads)
    parts = PARTS[name](network)
    for modules in (parts.encoder, parts.head):
        names = find_tensors(network, modules)
        inside = {t.data_ptr() for m in modules for t in m.state_dict().values()}
        assert names == {n for n, t in network.state_dict().items() if t.data_ptr() in inside}
