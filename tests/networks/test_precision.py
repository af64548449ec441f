from __future__ import annotations

import pytest
import torch
from torch import nn

from ssl_seg.errors import ConfigError
from ssl_seg.networks.builders import build_network
from ssl_seg.networks.precision import choose_device, choose_precision, find_unsafe_convolution, make_autocast, seeded

CPU = torch.device("cpu")


@pytest.fixture(params=[True, False], ids=["native", "emulated"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: request.param)
    return bool(request.param)


def test_auto_follows_the_processor(native: bool) -> None:
    net, example = nn.Conv2d(1, 2, 3), torch.zeros(1, 1, 8, 8)
    assert choose_precision("auto", net, example)[0] == ("bf16" if native else "fp32")
    assert choose_precision("fp32", net, example)[0] == "fp32"
    assert choose_precision("bf16", net, example)[0] == "bf16"


@pytest.mark.parametrize(
    ("depth", "kernel", "unsafe"), [(2, 3, True), (3, 3, False), (1, 3, False), (4, 5, True), (5, 5, False)]
)
def test_thin_inputs_are_found(depth: int, kernel: int, unsafe: bool) -> None:
    net = nn.Sequential(nn.Conv3d(1, 1, kernel, padding=kernel // 2))
    found = find_unsafe_convolution(net, torch.zeros(1, 1, depth, 8, 8))
    assert (found is not None) == unsafe
    assert not net[0]._forward_pre_hooks


def test_the_check_does_not_train_batch_norm() -> None:
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)).train()
    find_unsafe_convolution(net, torch.ones(1, 1, 4, 4, 4))
    assert net[1].num_batches_tracked == 0
    assert net.training


def test_a_network_that_would_train_on_garbage_is_kept_from_bf16(native: bool) -> None:
    """V-Net has 5x5x5 kernels; at 32 voxels its lowest levels are 4 and 2 thin."""
    net = build_network("vnet", ndim=3, channels=1, num_classes=2, patch_size=(32, 32, 32))
    example = torch.zeros(1, 1, 32, 32, 32)
    precision, reason = choose_precision("auto", net, example)
    assert precision == "fp32"
    if native:
        assert "wrong on CPUs" in reason
    with pytest.raises(ConfigError, match="fp32 or auto"):
        choose_precision("bf16", net, example)


def test_a_network_with_deep_levels_may_use_bf16(native: bool) -> None:
    net = build_network("dynunet", ndim=3, channels=1, num_classes=2, patch_size=(32, 32, 32), features=4)
    assert choose_precision("auto", net, torch.zeros(1, 1, 32, 32, 32))[0] == ("bf16" if native else "fp32")


def test_the_contexts() -> None:
    conv, image = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)
    with make_autocast("bf16", CPU)():
        assert conv(image).dtype == torch.bfloat16
    with make_autocast("fp32", CPU)():
        assert conv(image).dtype == torch.float32


def test_draws_on_apples_gpu_come_from_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator takes the place of that of the device."""
    device = torch.Generator().manual_seed(1)
    before = device.get_state()
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda _: device.get_state())
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state, _: device.set_state(state))
    monkeypatch.setattr(torch.mps, "manual_seed", device.manual_seed)
    with seeded(7, torch.device("mps")):
        assert torch.equal(torch.rand(3, generator=device), torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(device.get_state(), before)


def test_auto_never_takes_apples_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "cpu"
    assert choose_device("mps").type == "mps"


def test_draws_come_from_the_seed_and_leave_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise AssertionError("every GPU would be seeded")

    torch.manual_seed(7)
    expected = torch.rand(3)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    state = torch.get_rng_state()
    with seeded(7):
        torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(AssertionError, match="every GPU"):
        torch.manual_seed(7)
