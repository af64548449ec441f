"""Devices and memory format; the format is chosen by measurement."""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn

from ssl_seg.config import RuntimeConfig
from ssl_seg.errors import ConfigError, SslSegError
from ssl_seg.networks.precision import Autocast, choose_device

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

T = TypeVar("T")

TIMED_STEPS = 4
PATIENCE = timedelta(hours=6)
"""How long the other processes wait while the first one reads the cases or scores the result."""
FASTER_BY = 1.05
"""A format that is not the default has to be this much faster; below that timing noise would decide."""


def make_fabric(runtime: RuntimeConfig) -> Fabric:
    """Return the Fabric of a run: devices and strategy. The precision depends on the network: see ``precision.py``.

    Raises:
        ConfigError: see ``check_devices``.
    """
    check_devices(runtime)
    return Fabric(
        accelerator=choose_device(runtime.accelerator).type,
        devices=runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy=DDPStrategy(timeout=PATIENCE) if runtime.devices * runtime.num_nodes > 1 else "auto",
    )


def check_devices(runtime: RuntimeConfig) -> None:
    """Check that the devices of the settings are here and that a launcher has started a process for each.

    Raises:
        ConfigError: otherwise.
    """
    accelerator = choose_device(runtime.accelerator).type
    if accelerator == "cuda" and runtime.devices > torch.cuda.device_count():
        raise ConfigError(f"runtime.devices = {runtime.devices}, but this machine has {torch.cuda.device_count()} GPUs")
    most = 2 * (os.cpu_count() or 1)
    if accelerator == "cpu" and runtime.devices > most:
        raise ConfigError(
            f"runtime.devices = {runtime.devices}: this machine has {os.cpu_count()} cores, for {most} processes at "
            "most; give --devices 1"
        )
    if runtime.num_nodes > 1 and count_started_processes() is None and "NODE_RANK" not in os.environ:
        raise ConfigError(
            f"runtime.num_nodes = {runtime.num_nodes}: nothing has started this on other nodes, and it would wait for "
            "them; start it with torchrun or srun on each node, or leave out --num-nodes"
        )
    wanted, started = runtime.devices * runtime.num_nodes, count_started_processes()
    if started not in {None, wanted}:
        raise ConfigError(
            f"the launcher started {started} processes, but runtime.devices x runtime.num_nodes = {wanted}: "
            "give the same numbers with --devices and --num-nodes"
        )


def count_started_processes() -> int | None:
    """Return how many processes torchrun, srun or this program has started; None where none of them did."""
    slurm = os.environ.get("SLURM_NTASKS") if "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ else None
    started = os.environ.get("WORLD_SIZE", slurm)
    return None if started is None else int(started)


def call_on_main(fabric: Fabric, function: Callable[[], T]) -> T:
    """Call a function on the first process, and hand its result, or its error, to all."""
    outcome: tuple[T] | SslSegError | None = None
    if fabric.is_global_zero:
        try:
            outcome = (function(),)
        except SslSegError as error:
            outcome = error
    outcome = fabric.broadcast(outcome)
    if isinstance(outcome, SslSegError):
        raise outcome
    if outcome is None:
        raise RuntimeError("the first process sent no result")
    return outcome[0]


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Return whether the flag is set on any process; all of them have to ask."""
    if fabric.world_size == 1:
        return flag
    votes = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return bool(torch.as_tensor(votes) > 0)


def gather_from_processes(fabric: Fabric, value: T) -> list[T]:
    """Return the value of each process, by rank; all of them have to ask."""
    found = [value] * fabric.world_size
    if fabric.world_size > 1:
        torch.distributed.all_gather_object(found, value)
    return found


def average_over_processes(fabric: Fabric, tensors: Sequence[Tensor]) -> None:
    """Set floats to their means over the processes, all tensors of one type at once; all processes have to ask."""
    if fabric.world_size == 1:
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.flatten() for tensor in same])
        means = torch.as_tensor(fabric.all_reduce(flat, reduce_op="mean"))
        for tensor, mean in zip(same, torch.split(means, [tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def to_memory_format(net: nn.Module, name: str, ndim: int) -> nn.Module:
    """Return ``net`` with its weights laid out ``contiguous`` or ``channels_last``, for 2D or 3D."""
    if name == "contiguous":
        return net
    rank, channels_last = ndim + 2, torch.channels_last if ndim == 2 else torch.channels_last_3d
    for weight in (w for w in net.parameters() if w.ndim == rank):
        weight.data = weight.data.to(memory_format=channels_last)
    return net


def time_memory_formats(net: nn.Module, example: Tensor, autocast: Autocast) -> dict[str, float]:
    """Return seconds of a forward and backward pass on ``example`` (N,C,*P) for both formats.

    The passes are made on copies of ``net``; the fastest of a few counts, since others may use the machine too.
    """
    return {
        name: _time_passes(to_memory_format(copy.deepcopy(net), name, example.ndim - 2), example, autocast)
        for name in ("contiguous", "channels_last")
    }


def choose_memory_format(seconds: dict[str, float]) -> str:
    """Return ``channels_last`` where it is clearly faster."""
    return "channels_last" if seconds["channels_last"] * FASTER_BY < seconds["contiguous"] else "contiguous"


def _time_passes(net: nn.Module, example: Tensor, autocast: Autocast) -> float:
    durations = []
    for _ in range(TIMED_STEPS):
        synchronize(example.device)
        start = time.perf_counter()
        with autocast():
            loss = net(example).float().square().mean()
        loss.backward()
        net.zero_grad(set_to_none=True)
        synchronize(example.device)
        durations.append(time.perf_counter() - start)
    return min(durations[1:])  # the first pass allocates and picks kernels


def measure_peak_memory(device: torch.device) -> float | None:
    """Return the most memory, in GiB, that was in use so far: of a CUDA GPU by our tensors, else by this process.

    None where the system does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return None
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
