"""What a user is told about a run that a full disk, a lack of memory or Ctrl-C has ended."""

from __future__ import annotations

import re

from lightning_fabric import Fabric

from ssl_seg.errors import MachineError, RunDirError, SslSegError, is_out_of_memory, quote
from ssl_seg.files import DISK_FULL, is_disk_full, next_free
from ssl_seg.networks.checkpoint import read_content
from ssl_seg.run.directory import RunDir
from ssl_seg.run.resources import SHARED_MEMORY

SHARED_MEMORY_FULL = re.compile("unable to allocate shared memory|workers are out of shared memory")
"""What torch says of it: the error of a loader process reaches the training as text."""
FROM_LOADER = re.compile(r"Caught .* in DataLoader worker process.*\nssl_seg\.[\w.]+: (.*?)\s*", re.DOTALL)
"""The traceback that torch puts before an error of a loader process, and the message."""


def explain_failure(error: Exception, fabric: Fabric, run: RunDir | None, resume: str | None) -> SslSegError | None:
    """Return the error that tells a user of a lack of memory or of disk space, or what a loader process said; None for
    any other error.

    Args:
        error: any.
        fabric: fabric of the run.
        run: its directory, once there is one.
        resume: the command that continues it; None where a study says that itself.
    """
    if isinstance(error, SslSegError):
        told = FROM_LOADER.fullmatch(str(error))
        return type(error)(told[1]) if told else None
    command = ""
    if resume is not None and run is not None:
        is_saved = run.last.is_file()
        command = f", then {f'continue with `{resume} {quote(run.path)}`' if is_saved else describe_restart(run)}"
    if SHARED_MEMORY_FULL.search(str(error)):
        return MachineError(
            f"{SHARED_MEMORY}, through which loader processes hand over batches, is full: free some of it, or give a "
            f"container more (for example docker run --shm-size=2g){command}; or use --set runtime.workers=0"
        )
    if is_disk_full(error) and run is not None:
        kept = "the last checkpoint is kept" if run.last.is_file() else "no checkpoint was saved before"
        return RunDirError(f"the disk of {run.path} {DISK_FULL}; {kept}. Free some space{command}")
    if is_out_of_memory(error):
        kept = "" if run is None else f". {run.path} keeps what was saved"
        return MachineError(
            f"out of memory on {fabric.device}: stop other programs that take memory{command}; or begin a new run with "
            f"smaller data.patch_size, batch.labeled, batch.unlabeled, network.features or runtime.workers{kept}"
        )
    return None


def describe_interrupt(run: RunDir, command: str) -> str:
    """Return what is saved of a run that was interrupted between two steps, and how to go on.

    Args:
        run: its directory.
        command: that makes such runs, for example ``ssl-seg train``.
    """
    if run.last.is_file():
        content = read_content(run.last, lazy=True)
        step = content.get("progress", content)["step"]
        return f"interrupted; step {step} is saved; continue with: {command} --resume {quote(run.path)}"
    return f"interrupted before anything was saved: {run.path} cannot be resumed; {describe_restart(run)}"


def describe_restart(run: RunDir) -> str:
    """Return how to begin again with a run that has no checkpoint to resume from."""
    here, free = (quote(path) for path in (run.path, next_free(run.path)))
    return f"give the same command again with --out {free}, or after removing that folder: rm -r {here}"
