"""Contract of all networks: shapes, norms, patch sizes that run, patch sizes that do not. Widths are tiny."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ssl_seg.config import LossConfig
from ssl_seg.engine.devices import time_memory_formats
from ssl_seg.errors import NetworkError
from ssl_seg.losses import make_supervised_loss
from ssl_seg.networks.builders import (
    NETWORKS,
    build_network,
    check_deep_supervision,
    check_patch_size,
    get_network_spec,
    plan_strides,
)
from ssl_seg.networks.precision import choose_inference_precision, find_unsafe_convolution

contract = pytest.mark.parametrize("name", NETWORKS)
NORMS = {
    "instance": {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d},
    "group": {2: nn.GroupNorm, 3: nn.GroupNorm},
    "batch": {2: nn.BatchNorm2d, 3: nn.BatchNorm3d},
}
ALL_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
SIZES = {2: (32, 64), 3: (32, 32, 64)}


def build(name: str, ndim: int, **options) -> nn.Module:
    narrow = {} if name == "vnet" else {"features": 4}
    defaults = {"channels": 1, "num_classes": 2, "patch_size": SIZES[ndim], **narrow}
    torch.manual_seed(0)
    return build_network(name, ndim=ndim, **{**defaults, **options})


@contract
@pytest.mark.parametrize(("ndim", "channels", "num_classes"), [(2, 1, 4), (2, 3, 2), (3, 1, 2), (3, 3, 4)])
def test_one_training_step_reaches_all_weights(name: str, ndim: int, channels: int, num_classes: int) -> None:
    network = build(name, ndim, channels=channels, num_classes=num_classes).train()
    image = torch.randn(1, channels, *SIZES[ndim])  # one sample only
    logits = network(image)
    assert logits.shape == (1, num_classes, *SIZES[ndim])
    logits.square().mean().backward()
    for key, weight in network.named_parameters():
        assert weight.grad is not None, key
        assert torch.isfinite(weight.grad).all(), key
    assert sum(weight.grad.abs().sum() > 0 for weight in network.parameters()) > 0.9 * len(list(network.parameters()))


@contract
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("norm", NORMS)
def test_all_norms_are_of_the_type_asked_for(name: str, ndim: int, norm: str) -> None:
    network = build(name, ndim, norm=norm, num_classes=3)
    layers = [m for m in network.modules() if isinstance(m, ALL_NORMS)]
    assert len(layers) >= 7
    for layer in layers:
        assert type(layer) is NORMS[norm][ndim]
        assert layer.weight is not None, "not affine"
        assert (layer.num_channels if norm == "group" else layer.num_features) != 3, "a norm on the output channels"
    if norm != "batch":
        assert {buffer for buffer, _ in network.named_buffers()} <= {"input.scale", "input.shift"}, "running statistics"


@contract
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_other_norms_train(name: str, norm: str) -> None:
    features = None if name == "vnet" else 6  # 12 channels are not divisible by 8 groups
    logits = build(name, 2, norm=norm, features=features).train()(torch.randn(1, 1, *SIZES[2]))
    logits.mean().backward()
    assert torch.isfinite(logits).all()


@contract
def test_samples_do_not_influence_each_other(name: str) -> None:
    network = build(name, 2, patch_size=(64, 32)).eval().double()
    images = torch.randn(2, 1, 64, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[:1], network(images[:1]))


@contract
@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_is_finite(name: str, ndim: int) -> None:
    is_native = choose_inference_precision("bf16", torch.device("cpu")) == "bf16"
    if ndim == 3 and NETWORKS[name].fixed_features and not is_native:
        pytest.skip("this CPU emulates bfloat16, and takes three minutes for a network of this width")
    network = build(name, ndim)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(1, 1, *SIZES[ndim]))
    assert torch.isfinite(logits).all()
    if ndim == 2:  # torch 2.13 on CPU: wrong bfloat16 gradients of 3D convolutions where depth < kernel size
        logits.float().square().mean().backward()
        assert all(torch.isfinite(weight.grad).all() for weight in network.parameters())


@contract
def test_same_seed_same_network(name: str) -> None:
    first, second = build(name, 2).state_dict(), build(name, 2).state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = get_network_spec(name).default_features if NETWORKS[name].fixed_features else 4
    torch.manual_seed(1)
    third = build_network(name, ndim=2, channels=1, num_classes=2, patch_size=SIZES[2], features=other).state_dict()
    assert any(not torch.equal(first[key], third[key]) for key in first)


@contract
def test_features_set_the_width(name: str) -> None:
    def width(network: nn.Module) -> int:
        if name == "encoder_unet":  # the width is that of the decoder
            return network.get_submodule("head").in_channels
        return next(m for m in network.modules() if isinstance(m, nn.Conv2d)).out_channels

    spec = NETWORKS[name]
    assert spec.name == name
    assert width(build(name, 2, features=None)) == spec.default_features
    if not spec.fixed_features:
        assert width(build(name, 2, features=6)) == 6


def test_vnet_refuses_a_width_it_cannot_have() -> None:
    with pytest.raises(NetworkError, match="width is fixed at 16"):
        build("vnet", 2, features=32)
    build("vnet", 2, features=16)


@pytest.mark.parametrize(("channels", "taken"), [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (16, 16), (20, 16)])
def test_vnet_takes_any_number_of_channels(channels: int, taken: int) -> None:
    network = build("vnet", 2, channels=channels)
    assert isinstance(network, nn.Sequential) == (channels != taken)
    assert network.get_submodule("1.in_tr" if channels != taken else "in_tr").in_channels == taken
    assert network(torch.randn(1, channels, 32, 16)).shape == (1, 2, 32, 16)


def test_vnet_drops_channels_and_not_samples_in_2d() -> None:
    dropouts = [m for m in build("vnet", 2).modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    torch.manual_seed(0)
    assert dropouts
    for dropout in dropouts:
        kept = dropout.train()(torch.ones(2, 64, 3, 3)) > 0
        assert (kept.flatten(2).all(2) == kept.flatten(2).any(2)).all(), "whole channels"
        assert (kept.float().mean((1, 2, 3)) > 0.2).all(), "some channels of every sample are kept"
        assert not kept.all()


# Patch sizes


def run_unchecked(name: str, size: tuple[int, ...]) -> bool:
    """Return whether the network trains on this size when nobody checks it."""
    spec = NETWORKS[name]
    options = {"encoder": "efficientnet_lite0", "pretrained": False} if spec.has_encoder else {}
    network = spec.build(1, 2, size, spec.default_features if name == "vnet" else 2, **options).train()
    try:
        logits = network(torch.randn(1, 1, *size))
        logits.mean().backward()
    except (RuntimeError, ValueError):
        return False
    return logits.shape == (1, 2, *size)


def is_accepted(name: str, size: tuple[int, ...]) -> bool:
    try:
        check_patch_size(name, size)
    except NetworkError:
        return False
    return True


GRID_2D = list(itertools.combinations_with_replacement((1, 8, 16, 20, 24, 33, 48, 64), 2))
GRID_3D = [(16, 16, 16), (16, 32, 16), (8, 16, 16), (1, 32, 32), (5, 16, 16), (20, 16, 32)]


@contract
def test_accepted_sizes_run_and_refused_ones_do_not(name: str) -> None:
    grid = GRID_2D + (GRID_3D if name != "vnet" else [(16, 32, 16), (20, 16, 32)])
    accepted = {size: is_accepted(name, size) for size in grid}
    runs = {size: run_unchecked(name, size) for size in grid}
    assert any(accepted.values())
    assert not all(accepted.values())
    assert [size for size in grid if accepted[size] and not runs[size]] == []
    needlessly_refused = [size for size in grid if runs[size] and not accepted[size]]
    # MONAI's BasicUNet pads odd sizes: refusing them is a choice, and the docstring says so.
    assert (needlessly_refused != []) == (name == "basic_unet")


@contract
@settings(deadline=None, max_examples=60)
@given(size=st.lists(st.integers(1, 200), min_size=2, max_size=3).map(tuple))
def test_the_sizes_a_refusal_names_are_accepted(name: str, size: tuple[int, ...]) -> None:
    try:
        check_patch_size(name, size)
    except NetworkError as error:
        named = str(error).rsplit("nearest that fit: ")[1].split(", ")
        sizes = [tuple(int(s) for s in text.split("x")) for text in named]
        assert all(is_accepted(name, s) for s in sizes)
        assert all(larger >= asked for larger, asked in zip(sizes[-1], size, strict=True))
        if len(sizes) == 2:
            assert all(smaller <= asked for smaller, asked in zip(sizes[0], size, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "unet",
            (100, 100),
            "patch_size 100x100 does not fit 'unet': each axis must be a multiple of 16; "
            "nearest that fit: 96x96, 112x112",
        ),
        (
            "segresnet",
            (8, 8, 8),
            "patch_size 8x8x8 does not fit 'segresnet': only one voxel is left at the bottleneck; "
            "nearest that fit: 16x16x16",
        ),
        (
            "dynunet",
            (5, 36, 100),
            "patch_size 5x36x100 does not fit 'dynunet': each axis must be a multiple of 1, 8, 16 in turn; "
            "nearest that fit: 5x32x96, 5x40x112",
        ),
        ("unet", (64,), "patch_size 64 is not a patch size: give 2 or 3 sizes of at least 1"),
        ("unet", (64, 0), "patch_size 64x0 is not a patch size: give 2 or 3 sizes of at least 1"),
    ],
)
def test_refusals_say_what_fits(name: str, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(NetworkError) as error:
        check_patch_size(name, size)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("size", "halvings"),
    [
        ((256, 256), (5, 5)),
        ((512, 64), (5, 4)),
        ((112, 112, 80), (4, 4, 4)),
        ((16, 160, 160), (2, 4, 4)),
        ((1, 64, 64), (0, 4, 4)),
        ((4, 7), (0, 0)),
    ],
)
def test_dynunet_halves_while_four_voxels_remain(size: tuple[int, ...], halvings: tuple[int, ...]) -> None:
    strides = plan_strides(size)
    assert strides[0] == (1,) * len(size)
    assert len(strides) >= 3
    assert tuple(sum(s == 2 for s in axis) for axis in zip(*strides, strict=True)) == halvings
    assert NETWORKS["dynunet"].divisor(size) == tuple(2**h for h in halvings)


def test_dynunet_flattens_its_kernel_on_axes_of_one_voxel() -> None:
    convolutions = [m for m in build("dynunet", 3, patch_size=(1, 64, 64)).modules() if isinstance(m, nn.Conv3d)]
    assert {m.kernel_size for m in convolutions if m.out_channels != 2} == {(1, 3, 3)}


@pytest.mark.parametrize(
    ("size", "features", "widest"), [((16, 16, 4), 160, 320), ((16, 16), 160, 512), ((4, 4), 600, 600)]
)
def test_dynunet_caps_its_width(size: tuple[int, ...], features: int, widest: int) -> None:
    network = build("dynunet", len(size), patch_size=size, features=features)
    assert max(w.shape[0] for w in network.parameters()) == widest


# Deep supervision


@pytest.mark.parametrize("name", ["dynunet", "encoder_unet"])
@pytest.mark.parametrize(("ndim", "heads"), [(2, 1), (2, 2), (3, 2)])
def test_deep_supervision_stacks_its_outputs_in_train_mode_only(name: str, ndim: int, heads: int) -> None:
    size = {2: (32, 64), 3: (32, 32, 64)}[ndim]
    network = build(name, ndim, num_classes=3, patch_size=size, deep_supervision=heads)
    image = torch.randn(2, 1, *size)
    stacked, plain = network.train()(image), network.eval()(image)
    assert stacked.shape == (2, 1 + heads, 3, *size)
    assert plain.shape == (2, 3, *size)
    torch.testing.assert_close(stacked[:, 0], plain)  # instance norm is the same in both modes
    for head in range(1, 1 + heads):  # enlarged: blocks of 2 ** head voxels are equal
        coarse = stacked[:, head, ..., :: 2**head]
        assert torch.equal(coarse.repeat_interleave(2**head, -1), stacked[:, head])
        assert not torch.equal(stacked[:, head, ..., : size[-1] // 2], stacked[:, head, ..., size[-1] // 2 :])


@pytest.mark.parametrize("name", ["dynunet", "encoder_unet"])
def test_deep_supervision_trains_all_weights_with_the_supervised_loss(name: str) -> None:
    network = build(name, 2, patch_size=(64, 64), deep_supervision=2).train()
    loss = make_supervised_loss(LossConfig())
    image, target = torch.zeros(2, 1, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    image[:, :, 8:24, 4:20], target[:, 8:24, 4:20] = 1.0, 1
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    values = []
    for _ in range(30):
        optimizer.zero_grad()
        value, _ = loss(network(image), target)
        value.backward()
        values.append(value.item())
        optimizer.step()
    assert values[-1] < 0.5 * values[0]
    heads = [
        weight
        for name, weight in network.named_parameters()
        if "deep_supervision_heads" in name or "deep_heads" in name
    ]
    assert len(heads) == 4  # a weight and a bias each
    assert all(weight.grad.abs().sum() > 0 for weight in network.parameters())


def test_deep_supervision_leaves_no_activations_behind() -> None:
    """A network in use can be copied, saved and averaged, and holds no graph between steps."""
    network = build("dynunet", 2, deep_supervision=1).train()
    network(torch.randn(1, 1, *SIZES[2]))
    assert not any(head.requires_grad for head in network.heads)
    twin = copy.deepcopy(network)
    image = torch.randn(1, 1, *SIZES[2])
    assert torch.equal(twin(image), network(image))  # the copy has its own list of outputs
    assert list(build("dynunet", 2, deep_supervision=1).state_dict()) == list(network.state_dict())
    assert set(build("dynunet", 2).state_dict()) < set(network.state_dict())


def test_deep_supervision_is_off_by_default() -> None:
    network = build("dynunet", 2).train()
    assert network(torch.randn(1, 1, *SIZES[2])).shape == (1, 2, *SIZES[2])
    assert not any("supervision" in name for name, _ in network.named_parameters())


@contract
def test_networks_without_deep_supervision_say_so(name: str) -> None:
    check_deep_supervision(name, SIZES[2], 0)
    if name == "encoder_unet":
        check_deep_supervision(name, (64, 64), 4)
        with pytest.raises(NetworkError, match=r"network\.deep_supervision = 5: .* has 4 coarser"):
            check_deep_supervision(name, (64, 64), 5)
    elif name == "dynunet":
        check_deep_supervision(name, (32, 32), 2)
        with pytest.raises(NetworkError, match=r"network\.deep_supervision = 3: .*on patches of 32x32 has 2 coarser"):
            check_deep_supervision(name, (32, 32), 3)
    else:
        with pytest.raises(
            NetworkError, match=rf"deep_supervision = 1: '{name}' has no outputs.* or use encoder_unet, dynunet"
        ):
            build(name, 2, deep_supervision=1)


@pytest.mark.parametrize("size", [(4, 7), (32, 64), (1, 64, 64), (16, 32, 16)])
def test_as_many_heads_as_allowed_can_be_built(size: tuple[int, ...]) -> None:
    most = len(plan_strides(size)) - 2
    check_deep_supervision("dynunet", size, most)
    assert len(NETWORKS["dynunet"].build(1, 2, size, 2, most).deep_supervision_heads) == most
    with pytest.raises(NetworkError):
        check_deep_supervision("dynunet", size, most + 1)
    with pytest.raises(ValueError, match="deep_supr_num"):  # MONAI's own limit is the same
        NETWORKS["dynunet"].build(1, 2, size, 2, most + 1)


def test_deep_supervision_passes_the_choice_of_format_and_precision() -> None:
    network = build("dynunet", 3, patch_size=(16, 16, 16), deep_supervision=1).train()
    example = torch.randn(1, 1, 16, 16, 16)
    plain = build("dynunet", 3, patch_size=(16, 16, 16))
    assert find_unsafe_convolution(network, example) == find_unsafe_convolution(plain, example)
    assert network.training
    seconds = time_memory_formats(network, example, nullcontext)
    assert set(seconds) == {"contiguous", "channels_last"}
    assert network(example).shape == (1, 2, 2, 16, 16, 16)


# Refusals


def test_unknown_networks_are_named() -> None:
    with pytest.raises(
        NetworkError, match=r"unknown network 'dynunett' \(did you mean 'dynunet'\?\); available: encoder_unet, unet,"
    ):
        build("dynunett", 2, features=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ndim": 3, "patch_size": (32, 32)}, "patch_size 32x32 is not 3D"),
        ({"ndim": 4, "patch_size": (32, 32, 32, 32)}, "is not 4D"),
        ({"patch_size": (100, 100)}, "does not fit 'unet'"),
        ({"channels": 0}, "channels=0"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"features": 1}, "features=1"),
    ],
)
def test_impossible_values_are_refused(options: dict, message: str) -> None:
    values = {"ndim": 2, "channels": 1, "num_classes": 2, "patch_size": (32, 32), "features": 4, **options}
    with pytest.raises(NetworkError, match=message):
        build_network("unet", **values)


def test_importing_networks_loads_neither_torch_nor_monai() -> None:
    code = (
        "import sys; from ssl_seg.networks.builders import check_patch_size; check_patch_size('dynunet', (64, 64));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'monai', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("features", [2, 3, 4, 7, 8, 9, 15, 16, 17, 32, 64])
def test_groups_of_group_norm_have_two_channels_at_least(features: int) -> None:
    """One channel a group is instance norm; with it a narrow decoder scored 0.1 lower (docs/defaults.md)."""
    net = build_network(
        "basic_unet", ndim=2, channels=1, num_classes=2, patch_size=(32, 32), features=features, norm="group"
    )
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.num_channels for norm in norms} >= {features, 2 * features}
    assert all(norm.num_channels // norm.num_groups >= 2 and 1 <= norm.num_groups <= 8 for norm in norms)
    even = [norm for norm in norms if norm.num_channels % 16 == 0]
    assert all(norm.num_groups == 8 for norm in even)
