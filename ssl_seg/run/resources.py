"""What a run needs of memory and disk until its end, looked at before its first step."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ssl_seg.config import Config, RuntimeConfig
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.formats import stored
from ssl_seg.data.resample import compute_resampled_shape
from ssl_seg.data.splits.split import Split
from ssl_seg.engine.machine import available_memory, count_cores
from ssl_seg.errors import DataError, MachineError, RunDirError, counted
from ssl_seg.methods.base import Built, OwnsOptimizer

FLOAT = 4
"""Bytes of a float32."""
TARGET = 8
"""Bytes of a voxel of a target (int64)."""
SHARED_MEMORY = Path("/dev/shm")
_LOG_BYTES = 2**20
"""Room for records, events and settings."""


def estimate_case_bytes(facts: CaseFacts, config: Config) -> int:
    """Return the memory, at least, that predicting and scoring a whole case takes at one time.

    On the grid of the file: the image and the target (int16), and the probabilities (float32) of two networks, of which
    one is being scored. On the grid of the network: the normalized image, the probabilities, and their sum of weights.
    """
    channels, classes = config.data.channels, config.data.num_classes
    voxels = inside = prod(facts.shape)
    if config.data.resample_to is not None and facts.spacing is not None:
        inside = prod(compute_resampled_shape(facts.shape, facts.spacing, config.data.resample_to))
    at_rest = voxels * (channels * np.dtype(facts.dtype).itemsize + 2 + classes * FLOAT)
    return at_rest + inside * FLOAT * (channels + classes + 1)


def check_memory(config: Config, catalog: Catalog, split: Split) -> None:
    """Check that each validation case fits into memory as a whole, as it is scored at the end of a run.

    Raises:
        DataError: names the largest case that does not fit.
    """
    known = [limit for limit in (available_memory(), stored.physical_memory()) if limit is not None]
    needed = {i: estimate_case_bytes(catalog.facts[i], config) for i in split.val if i in catalog.facts}
    over = [i for i, size in needed.items() if size > min(known)]
    if not over:
        return
    largest = max(over, key=lambda i: needed[i])
    shape = "x".join(str(n) for n in catalog.facts[largest].shape)
    raise DataError(
        f"{len(over)} of {len(split.val)} validation cases do not fit into memory: '{largest}' ({shape}, "
        f"{counted(config.data.channels, 'channel')}, {config.data.num_classes} classes) takes {needed[largest]:,} "
        f"bytes, and {min(known):,} are available. Each is predicted and scored whole at the end of the run: cut them "
        "into smaller images, put smaller cases into validation (--split), or use a machine with more memory"
    )


def estimate_shared_bytes(config: Config, strong_views: int, workers: int) -> int:
    """Return the bytes of shared memory that batches of loader processes take: two of each process, and one in use."""
    return (2 * workers + 1) * _count_batch_bytes(config, strong_views) if workers else 0


def _count_batch_bytes(config: Config, strong_views: int) -> int:
    data, voxels = config.data, prod(config.data.patch_size)
    labeled = config.labeled_range[1] * voxels * (data.channels * FLOAT + TARGET)
    unlabeled = config.batch.unlabeled * voxels * data.channels * FLOAT * (1 + strong_views)
    return (labeled + unlabeled) * config.runtime.devices


def count_given_workers(runtime: RuntimeConfig) -> int:
    """Return the loader processes that settings ask for, at most one for each core; auto asks for none."""
    return 0 if runtime.workers == "auto" else min(runtime.workers, count_cores())


def count_possible_workers(config: Config, strong_views: int) -> int:
    """Return the loader processes that a training process has threads, memory and shared memory for.

    Each may keep as many decoded images as the training does, and takes no more than half of the memory for them.
    """
    memory, batch = available_memory(), _count_batch_bytes(config, strong_views)
    limits = [torch.get_num_threads() - 1]
    if memory is not None:
        limits.append(memory // 2 // config.runtime.devices // (config.data.cache_mb * 2**20))
    if SHARED_MEMORY.is_dir():
        limits.append((shutil.disk_usage(SHARED_MEMORY).free // batch - 1) // 2)
    return max(0, min(limits))


def check_shared_memory(config: Config, strong_views: int, workers: int) -> None:
    """Check that shared memory, of which a container may have little, holds what loader processes make.

    A training would end at the first batch that finds no room.

    Raises:
        MachineError: says how much is missing.
    """
    needed = estimate_shared_bytes(config, strong_views, workers)
    if not needed or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise MachineError(
            f"runtime.workers = {workers}: their batches take {needed:,} bytes of {SHARED_MEMORY}, and {free:,} are "
            "free: set runtime.workers=0, or give the container more (for example docker run --shm-size=2g)"
        )


def estimate_output_bytes(built: Built, config: Config) -> int:
    """Return the bytes that the files of a run take when they are largest: all checkpoints, and one being written."""
    method, weights = built.method, _count_bytes(built.module.state_dict().values())
    kept = _count_bytes(method.state_dict().values()) if isinstance(method, nn.Module) else 0
    if isinstance(method, OwnsOptimizer):
        kept += 2 * _count_bytes(p for group in method.optimizer.param_groups for p in group["params"])
    moments = 2 if config.optim.name == "adamw" else 1
    averages = config.policies.swa is not None
    files = 1 + config.monitor.keep_best + averages + 2 * (config.monitor.on_collapse == "recover")
    snapshots = 2 * config.length.snapshots * weights
    return (files + 1) * ((2 + moments + averages) * weights + kept) + snapshots + _LOG_BYTES


def _count_bytes(tensors: Iterable[Tensor]) -> int:
    return FLOAT * sum(tensor.numel() for tensor in tensors)


def check_disk(path: Path, needed: int, held: int = 0) -> None:
    """Check that the disk of a run has room for its files.

    Args:
        path: its directory, which need not exist.
        needed: bytes of all its files.
        held: bytes of those that are there already.

    Raises:
        RunDirError: says how much is missing.
    """
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed - held > free:
        raise RunDirError(
            f"the disk of {path} is too full: the checkpoints of the run take {needed - held:,} bytes, and {free:,} "
            "are free. Free some space, give --out on another disk, or make network.features or monitor.keep_best "
            "smaller"
        )
