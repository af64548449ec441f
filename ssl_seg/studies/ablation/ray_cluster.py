"""Cells as tasks of a Ray cluster, whose nodes share the storage that the ablation is written to.

Ray places the tasks, and starts one again on another node when its node dies; the worker then goes on from the last
checkpoint. It runs in a process of its own on the node, as it does locally.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.errors import ConfigError
from ssl_seg.studies.ablation.cells import CellFolder
from ssl_seg.studies.ablation.local import make_environment, start_worker
from ssl_seg.studies.ablation.worker import INVISIBLE

RETRIES = 3
"""How often a cell is started again after its node or its Ray process died."""
CONNECT_SECONDS = 5.0
LOST = 1
"""Exit code of a task that died more often than it is started again."""


@dataclass(frozen=True)
class RayProcess:
    """A task of the cluster."""

    ray: Any
    reference: Any

    def poll(self) -> int | None:
        """Return the worker's exit code, or None while it waits or runs."""
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:
            return LOST

    def stop(self) -> None:
        """Interrupt the task, which lets its worker save."""
        self.ray.cancel(self.reference, force=False)


class RayLauncher:
    """Hands all cells that are ready to the cluster at once: placing them is its job.

    Args:
        address: ``auto``, or host:port of the head node.
        num_cpus: cores of each cell.
        num_gpus: GPUs of each cell; a fraction lets several share one.

    Raises:
        ConfigError: without Ray, or a cluster at that address.
    """

    slots = 10**9

    def __init__(self, address: str, num_cpus: int, num_gpus: float) -> None:
        self.ray = connect(address)
        self.num_cpus = num_cpus
        options = {"num_cpus": num_cpus, "num_gpus": num_gpus, "max_retries": RETRIES}
        self._check_resources(options)
        self.task = self.ray.remote(**options)(run_worker)

    def start(self, folder: CellFolder, arguments: Sequence[str]) -> RayProcess:
        """Submit a cell."""
        return RayProcess(self.ray, self.task.remote(str(folder.path.absolute()), list(arguments), self.num_cpus))

    def _check_resources(self, options: dict[str, Any]) -> None:
        """A task that no node can hold would wait forever."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        wanted = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
        if not any(all(node.get(kind, 0) >= count for kind, count in wanted.items()) for node in nodes):
            raise ConfigError(
                f"no node of the Ray cluster has {wanted['CPU']} CPUs and {wanted['GPU']:g} GPUs for a cell: lower "
                "--cpus-per-cell or --gpus-per-cell"
            )


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
    if colon and port.isdigit() and "://" not in address:
        try:  # Ray itself tries for a minute
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except OSError as error:
            raise ConfigError(_describe_unreachable(address, str(error))) from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True)
    except Exception as error:  # noqa: BLE001 (Ray raises RuntimeError, ConnectionError, ValueError, its own)
        raise ConfigError(_describe_unreachable(address, str(error).splitlines()[0])) from None
    return ray


def run_worker(folder: str, arguments: list[str], threads: int) -> int:
    """Run the worker of a cell on the node that Ray chose; the GPUs are those that Ray gave to the task."""
    if not Path(folder).is_dir():
        return INVISIBLE
    process = start_worker(CellFolder(Path(folder)), arguments, make_environment(os.environ, threads, None))
    try:
        return process.wait()
    finally:  # also when the task is canceled
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
        process.wait()


def _describe_unreachable(address: str, reason: str) -> str:
    return (
        f"--ray {address}: no Ray cluster answers there ({reason}). Start one with `ray start --head`, give its "
        "HOST:PORT, or leave --ray out to use this machine"
    )
