"""What this process may use of the machine: cores, memory and threads, also inside a container."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": -3, "MALLOC_TRIM_THRESHOLD_": -1}
"""Variables of glibc's allocator, and the parameters of ``mallopt`` of the same meaning."""
_KEPT_BYTES = 2**28

_NO_LIMIT = 2**60
"""Value from which on a limit of version 1 means that there is none."""


def count_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may use: those it is bound to, and no more than its cgroup grants.

    A share of a core counts as one. Versions 1 and 2 of cgroups are looked at, each group and all that it lies in.

    Args:
        root: root of the file system; tests give another one.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for group in _find_groups("cpu", root) if (quota := _read_quota(group)) is not None]
    return max(1, min([bound, *(math.ceil(quota) for quota in quotas)]))


def limit_threads() -> None:
    """Let numerical libraries that are loaded from now on use the cores that are ours, and wait only briefly awake.

    They know what a process is bound to, but not what its cgroup grants. Threads of libgomp that wait for each other
    spin 300,000 times before they sleep. Where other programs need the cores, that makes a step 20 times slower; 1,000
    times cost nothing on a quiet machine (``scripts/benchmark_threads.py``). What the user has set stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, os.environ.get("OMP_NUM_THREADS", str(count_cores())))


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MB that are freed, here and in processes that are started from here.

    It gives tensors above some size back to the system, which clears their pages for the next ones: a third of the CPU
    time of a prediction. What the user has set stays.
    """
    if any(name in os.environ for name in (*_MALLOC, "GLIBC_TUNABLES")):
        return
    for name, parameter in _MALLOC.items():
        os.environ[name] = str(_KEPT_BYTES)
        with suppress(OSError, AttributeError, TypeError):  # of another C library
            ctypes.CDLL(None).mallopt(parameter, _KEPT_BYTES)


@contextmanager
def own_defaults() -> Iterator[None]:
    """Use the defaults of torch, NumPy and Matplotlib in the block, whatever the caller has set, and give that back:
    default dtype and device, gradients, what floating-point errors do, and the style of figures."""
    import numpy as np

    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"), ExitStack() as stack:
        if "matplotlib" in sys.modules:
            from matplotlib import style

            stack.enter_context(style.context("default"))
        if (torch := sys.modules.get("torch")) is None:  # nothing is set
            yield
            return
        dtype, device = torch.get_default_dtype(), torch.get_default_device()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                if device.type != "cpu":
                    stack.enter_context(torch.device("cpu"))
                yield
        finally:
            torch.set_default_dtype(dtype)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that may still be allocated, of the machine and of each cgroup; None where nobody says.

    What the kernel can take back counts as free: swap space, and files that it keeps in memory.

    Args:
        root: root of the file system; tests give another one.
    """
    known = [left for group in _find_groups("memory", root) if (left := _read_memory_left(group)) is not None]
    machine = _read_table(root / "proc/meminfo")
    if "MemAvailable:" in machine:
        known.append((machine["MemAvailable:"] + machine.get("SwapFree:", 0)) * 1024)
    return min(known, default=None)


def _find_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the cgroups that this process is in, from its own to the outermost one that is visible."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    base = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0":
            mounts = [base, base / "unified"]
        elif controller in names.split(","):
            mounts = [base / names, base / controller]
        else:
            continue
        # In a container the path may be that of the host, of which only the mount itself is visible.
        group = Path(path.lstrip("/"))
        for mount in mounts:
            yield from (mount / part for part in (group, *group.parents) if (mount / part).is_dir())


def _read_quota(group: Path) -> float | None:
    """Return the cores that a group grants; None without a limit."""
    words = _read_words(group / "cpu.max") or [
        *_read_words(group / "cpu.cfs_quota_us"),
        *_read_words(group / "cpu.cfs_period_us"),
    ]
    if len(words) != 2 or not (words[0].isdecimal() and words[1].isdecimal()) or int(words[1]) == 0:
        return None  # "max", or -1 in version 1
    return int(words[0]) / int(words[1])


def _read_memory_left(group: Path) -> int | None:
    """Return the bytes that a group has left; None without a limit."""
    for limit, used, reclaimable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, now = _read_words(group / limit), _read_words(group / used)
        if most and now and most[0].isdecimal() and now[0].isdecimal() and int(most[0]) < _NO_LIMIT:
            free = _read_table(group / "memory.stat").get(reclaimable, 0)
            return max(0, int(most[0]) - max(0, int(now[0]) - free))
    return None


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _read_table(path: Path) -> dict[str, int]:
    """Return the number after the first word of each line."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def is_main_process() -> bool:
    """Return whether this is the process of a distributed run that reports."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
