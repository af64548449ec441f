"""Where the workers of cells run: as processes of this machine, or as tasks of a Ray cluster on shared storage.

Ray places the tasks, and starts one again on another node when its node dies; the worker then goes on from the last
checkpoint. It runs in a process of its own on the node, as it does locally.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssl_seg.engine.machine import count_cores
from ssl_seg.errors import ConfigError
from ssl_seg.studies.ablation.cells import CellFolder
from ssl_seg.studies.ablation.worker import INVISIBLE

WORKER = "ssl_seg.studies.ablation.worker"
RETRIES = 3
"""How often a cell is started again after its node or its Ray process died."""
CONNECT_SECONDS = 5.0
LOST = 1
"""Exit code of a task that died more often than it is started again."""


@dataclass(frozen=True)
class Worker:
    """A cell that was started somewhere."""

    poll: Callable[[], int | None]
    """Returns its exit code, or None while it waits or runs."""
    stop: Callable[[], None]
    """Asks it to save its state and end."""


@dataclass(frozen=True)
class Launcher:
    """Where workers are started."""

    slots: int
    """How many may be started at a time."""
    start: Callable[[CellFolder, Sequence[str]], Worker]
    """Starts the worker of a cell with its arguments; what it says goes to the cell's log."""


def make_local_launcher(slots: int, gpus: Sequence[str] = ()) -> Launcher:
    """Return a launcher of processes on this machine, each with its share of the cores and one of the GPUs.

    Args:
        slots: how many may be started at a time.
        gpus: names of the GPUs, as CUDA_VISIBLE_DEVICES takes them.
    """
    places: dict[int, subprocess.Popen[bytes]] = {}

    def start(folder: CellFolder, arguments: Sequence[str]) -> Worker:
        place = next(n for n in range(slots) if n not in places or places[n].poll() is not None)
        gpu = gpus[place % len(gpus)] if gpus else None
        process = start_worker(folder, arguments, make_environment(os.environ, count_threads(slots), gpu))
        places[place] = process
        return Worker(process.poll, partial(_close_input, process))

    return Launcher(slots, start)


def start_worker(
    folder: CellFolder, arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Return the process of a cell, in a group of its own: Ctrl-C reaches the caller only, who asks it to end."""
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", WORKER, *arguments],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=dict(environment),
            start_new_session=True,
        )


def _close_input(process: subprocess.Popen[bytes]) -> None:
    """Close the standard input of a worker, by which it knows that it is to save and end."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def make_environment(base: Mapping[str, str], threads: int, gpu: str | None) -> dict[str, str]:
    """Return the environment of a worker: threads pinned, and one GPU, if any, to be seen."""
    pinned = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**base, **pinned, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})}


def count_threads(workers: int) -> int:
    """Return the threads of each of so many workers: together no more than there are cores, or they slow each other."""
    return max(1, count_cores() // workers)


def make_ray_launcher(address: str, num_cpus: int, num_gpus: float) -> Launcher:
    """Return a launcher that hands all cells that are ready to a Ray cluster at once: placing them is its job.

    Args:
        address: ``auto``, or host:port of the head node.
        num_cpus: cores of each cell.
        num_gpus: GPUs of each cell; a fraction lets several share one.

    Raises:
        ConfigError: without Ray, a cluster at that address, or a node that can hold a cell.
    """
    ray = connect(address)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
        raise ConfigError(  # a task that no node can hold would wait forever
            f"no node of the Ray cluster has {num_cpus} CPUs and {num_gpus:g} GPUs for a cell: lower "
            "--cpus-per-cell or --gpus-per-cell"
        )
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=RETRIES)(run_worker)

    def poll(reference: Any) -> int | None:
        if not ray.wait([reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(reference))
        except ray.exceptions.RayError:
            return LOST

    def start(folder: CellFolder, arguments: Sequence[str]) -> Worker:
        reference = task.remote(str(folder.path.absolute()), list(arguments), num_cpus)
        return Worker(partial(poll, reference), partial(ray.cancel, reference, force=False))

    return Launcher(10**9, start)


def connect(address: str) -> Any:
    """Return the module ``ray``, connected to a running cluster.

    Raises:
        ConfigError: without Ray, or a cluster at that address.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray, which is not installed: pip install 'ssl-seg[ray]'") from None
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit() and "://" not in address:  # Ray itself tries for a minute
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except Exception as error:  # noqa: BLE001 (Ray raises RuntimeError, ConnectionError, ValueError, its own)
        raise ConfigError(
            f"--ray {address}: no Ray cluster answers there ({str(error).splitlines()[0]}). Start one with `ray start "
            "--head`, give its HOST:PORT, or leave --ray out to use this machine"
        ) from None
    return ray


def run_worker(folder: str, arguments: list[str], threads: int) -> int:
    """Run the worker of a cell on the node that Ray chose; the GPUs are those that Ray gave to the task."""
    if not Path(folder).is_dir():
        return INVISIBLE
    process = start_worker(CellFolder(Path(folder)), arguments, make_environment(os.environ, threads, None))
    try:
        return process.wait()
    finally:  # also when the task is canceled
        _close_input(process)
        process.wait()
