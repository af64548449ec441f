"""What is known of a checkpoint file before its tensors are read; nothing here loads torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ssl_seg.errors import CheckpointError, did_you_mean_path, quote

PRETRAINING_FILE = "pretraining.json"
"""Marks the directory of a pre-training."""
ZIP_MAGIC = b"PK\x03\x04"
"""The first bytes of what ``torch.save`` writes."""


def describe_pretraining(path: Path) -> str:
    """Return what to do with a pre-training where a trained network is asked for."""
    return (
        f"{path} is a pre-training: its network paints images and has no classes to predict yet. Train from it with "
        f"ssl-seg train --pretrained {quote(path)}"
    )


def check_checkpoint_file(path: Path) -> None:
    """Check what can be known of a checkpoint without reading its tensors.

    Raises:
        CheckpointError: for a folder, a file that is not there or cannot be opened, and one of another kind.
    """
    if (path / PRETRAINING_FILE).is_file():
        raise CheckpointError(describe_pretraining(path))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without checkpoints/best.pt: name a checkpoint or a run")
    if not path.is_file():
        raise CheckpointError(
            f"no checkpoint file {path}{did_you_mean_path(path)}: name a run directory or a checkpoint (.pt)"
        )
    try:
        with path.open("rb") as file:
            head = file.read(len(ZIP_MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if head != ZIP_MAGIC:
        raise CheckpointError(f"{path} is not a readable checkpoint: it is damaged or of another kind")


def has_sound_sums(path: Path) -> bool:
    """Return whether each entry of a checkpoint has the checksum that was written with it, which torch does not ask.

    A single changed bit of a weight is found. Entries of ``torch.save`` are never compressed; others count as unsound,
    so that none grows while it is read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
            return stored and archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
        return False
