"""Devices, and autocast: where bf16 is native, and where it must not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ssl_seg.errors import ConfigError

Autocast = Callable[[], AbstractContextManager[Any]]
ACCELERATORS = ("auto", "cpu", "cuda", "mps")
CPU = torch.device("cpu")


def choose_device(accelerator: str) -> torch.device:
    """Return the device of an accelerator: ``auto`` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ConfigError: for another word than those of ``ACCELERATORS``, or a device that is not here.
    """
    if accelerator not in ACCELERATORS:
        raise ConfigError(f"accelerator = '{accelerator}' must be one of {', '.join(ACCELERATORS)}")
    if accelerator == "auto":
        return torch.device("cuda" if has_device("cuda") else "cpu")
    if not has_device(accelerator):
        raise ConfigError(f"accelerator = {accelerator}: this machine has no such device; use auto")
    return torch.device(accelerator)


def choose_device_if_given(accelerator: str | None) -> torch.device | None:
    """Return the device of an option, or None where it was not given.

    Raises:
        ConfigError: as for ``choose_device``.
    """
    return None if accelerator is None else choose_device(accelerator)


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Draw from ``seed`` on the CPU and on a device; their generators come back as they were, others stay untouched."""
    with fork_generators(device):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def fork_generators(device: torch.device) -> AbstractContextManager[None]:
    """Return a context after which the generators of the CPU and of a device are as they were before."""
    return torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type)


def has_device(accelerator: str) -> bool:
    """Return whether this machine has the device of an accelerator; always for ``cpu`` and ``auto``."""
    if accelerator == "cuda":
        return bool(torch.cuda.is_available())
    return accelerator != "mps" or bool(torch.backends.mps.is_available())


def choose_inference_precision(trained: str, device: torch.device) -> str:
    """Return ``bf16`` for a network that was trained in it where the device computes it natively, else ``fp32``.

    Where bf16 is emulated, a forward pass takes several times as long as in fp32.
    """
    return "bf16" if trained == "bf16" and _is_native(device.type) else "fp32"


def make_autocast(precision: str, device: torch.device) -> Autocast:
    """Return a function that opens the precision context of a run: ``bf16`` autocast, or nothing for ``fp32``."""
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return nullcontext


def choose_precision(wanted: str, net: nn.Module, example: Tensor) -> tuple[str, str]:
    """Return ``bf16`` or ``fp32``, and the reason.

    Args:
        wanted: ``auto``, ``bf16`` or ``fp32``.
        net: the network, on the device of ``example``.
        example: (N,C,*P) of the size the network will be trained on.

    Raises:
        ConfigError: when bf16 is asked for and would compute wrong gradients.
    """
    if wanted == "fp32":
        return "fp32", "asked for"
    kind = example.device.type
    unsafe = find_unsafe_convolution(net, example) if kind == "cpu" else None
    if wanted == "bf16":
        if unsafe:
            raise ConfigError(f"runtime.precision = bf16: {unsafe}. Use fp32 or auto, or a deeper data.patch_size")
        return "bf16", "asked for"
    if not _is_native(kind):
        return "fp32", f"no native bf16 on this {kind}"
    return ("fp32", unsafe) if unsafe else ("bf16", f"native on this {kind}")


def find_unsafe_convolution(net: nn.Module, example: Tensor) -> str | None:
    """Return a description of the first 3D convolution whose bf16 weight gradient is wrong on CPUs, or None.

    Measured with torch 2.13: the gradient is garbage (cosine to fp32 between 0 and 0.6, or NaN) where the input is
    thinner along Z than the kernel but thicker than one voxel. 2D and other shapes agree to 1e-3.
    """
    found: list[str] = []

    def check(name: str, conv: nn.Conv3d) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            depth, kernel = inputs[0].shape[2], conv.kernel_size[0]
            if 1 < depth < kernel:
                found.append(f"bf16 gradients of '{name}' (kernel {kernel}, {depth} voxels along Z) are wrong on CPUs")

        return look

    handles = [
        module.register_forward_pre_hook(check(name, module))
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv3d)
    ]
    if handles:
        was_training = net.training
        net.eval()  # in train mode the pass would change BatchNorm statistics
        with torch.no_grad():
            net(example[:1])
        net.train(was_training)
    for handle in handles:
        handle.remove()
    return found[0] if found else None


def _is_native(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
