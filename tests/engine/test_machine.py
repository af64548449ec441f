"""Cores and memory that a process may use, from file systems like those of containers."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ssl_seg.engine.machine import available_memory, count_cores, limit_threads
from ssl_seg.errors import DataError, is_out_of_memory

GB = 2**30


def make_root(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


V2 = {"proc/self/cgroup": "0::/pod/job\n"}
V1 = {"proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n"}


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


class TestCores:
    @pytest.mark.parametrize(
        ("files", "cores"),
        [
            ({}, 16),
            (V2, 16),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "max 100000\n"}, 16),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "200000 100000\n"}, 2),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "250000 100000\n"}, 3),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "20000 100000\n"}, 1),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "9900000 100000\n"}, 16),
            # The limit of an outer group holds for the inner one.
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "max 100000", "sys/fs/cgroup/pod/cpu.max": "400000 100000"}, 4),
            # The path is that of the host; the container sees the mount alone.
            ({**V2, "sys/fs/cgroup/cpu.max": "300000 100000"}, 3),
            ({**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 16),
            (
                {
                    **V1,
                    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "150000\n",
                    "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "50000\n",
                },
                3,
            ),
            ({**V2, "sys/fs/cgroup/pod/job/cpu.max": "broken"}, 16),
        ],
    )
    def test_are_those_of_the_cgroup(self, tmp_path: Path, files: dict[str, str], cores: int) -> None:
        assert count_cores(make_root(tmp_path, files)) == cores

    def test_are_no_more_than_the_process_is_bound_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
        root = make_root(tmp_path, {**V2, "sys/fs/cgroup/pod/job/cpu.max": "400000 100000"})
        assert count_cores(root) == 1


def test_threads_are_those_of_the_cgroup_unless_the_user_has_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    monkeypatch.setattr("ssl_seg.engine.machine.count_cores", lambda: 3)
    for given, expected in (({}, "333"), ({"OMP_NUM_THREADS": "2"}, "222"), ({"MKL_NUM_THREADS": "8"}, "338")):
        monkeypatch.setattr(os, "environ", environment := dict(given))  # what is set there must not stay
        limit_threads()
        assert "".join(environment[name] for name in names) == expected


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_spin_briefly_unless_the_user_has_said_how(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], spins: str | None
) -> None:
    monkeypatch.setattr(os, "environ", given)
    limit_threads()
    assert given.get("GOMP_SPINCOUNT") == spins


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("by_user", [False, True])
def test_freed_memory_is_kept_unless_the_user_has_set_the_allocator(
    monkeypatch: pytest.MonkeyPatch, by_user: bool
) -> None:
    """48 MB lie on the heap, which keeps them, or in pages of their own, which go back to the system."""
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    if by_user:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    code = """
import ctypes
from pathlib import Path
from ssl_seg.engine.machine import keep_freed_memory
keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
place = library.malloc(48 * 2**20)
for line in Path("/proc/self/maps").read_text().splitlines():
    first, last = (int(text, 16) for text in line.split()[0].split("-"))
    if first <= place < last:
        print(line.endswith("[heap]"))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == f"{not by_user}\n"


class TestMemory:
    @pytest.mark.parametrize(
        ("files", "left"),
        [
            ({}, None),
            ({"proc/meminfo": f"MemTotal: {9 * 2**20} kB\nMemAvailable: {4 * 2**20} kB\nSwapFree: 1024 kB\n"},
             4 * GB + 2**20),
            ({**V2, "sys/fs/cgroup/pod/job/memory.max": "max", "sys/fs/cgroup/pod/job/memory.current": "5"}, None),
            ({**V2, "proc/meminfo": f"MemAvailable: {4 * 2**20} kB\n", "sys/fs/cgroup/pod/memory.max": str(2 * GB),
              "sys/fs/cgroup/pod/memory.current": str(GB), "sys/fs/cgroup/pod/memory.stat": f"inactive_file {GB // 2}"},
             3 * GB // 2),
            ({**V2, "sys/fs/cgroup/pod/job/memory.max": str(GB), "sys/fs/cgroup/pod/job/memory.current": str(2 * GB)},
             0),
            ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
              "sys/fs/cgroup/memory/memory.usage_in_bytes": "5"}, None),
            ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": str(3 * GB),
              "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GB),
              "sys/fs/cgroup/memory/memory.stat": f"total_inactive_file {GB // 4}\ncache 7"}, 2 * GB + GB // 4),
        ],
    )  # fmt: skip
    def test_is_what_the_tightest_limit_leaves(self, tmp_path: Path, files: dict[str, str], left: int | None) -> None:
        assert available_memory(make_root(tmp_path, files)) == left

    def test_of_this_machine_is_known(self) -> None:
        if Path("/proc/meminfo").is_file():
            assert 0 < (available_memory() or 0) < 2**50


class _Exhausted(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return int(np.empty(2**60, np.uint8)[0])

    def __len__(self) -> int:
        return 1


class TestOutOfMemory:
    def test_real_errors_are_recognized(self) -> None:
        with pytest.raises(MemoryError) as numpy_error:
            np.empty(2**60, np.uint8)
        with pytest.raises(RuntimeError) as torch_error:
            torch.empty(2**60)
        with pytest.raises(RuntimeError) as loader_error:
            next(iter(DataLoader(_Exhausted(), num_workers=1)))
        assert all(is_out_of_memory(error.value) for error in (numpy_error, torch_error, loader_error))

    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            RuntimeError("can't start new thread"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
        ],
        ids=str,
    )
    def test_others_are_recognized_too(self, error: Exception) -> None:
        assert is_out_of_memory(error)

    def test_causes_are_looked_at(self) -> None:
        with pytest.raises(DataError) as raised:
            _fail_for_lack_of_memory()
        assert is_out_of_memory(raised.value)

    @pytest.mark.parametrize("error", [None, RuntimeError("shapes differ"), OSError(errno.ENOSPC, ""), ValueError()])
    def test_other_errors_are_not(self, error: Exception | None) -> None:
        assert not is_out_of_memory(error)


def _fail_for_lack_of_memory() -> None:
    try:
        raise MemoryError
    except MemoryError as cause:
        raise DataError("volume.nii: cannot be read") from cause
