"""Find where notes about a data set, and copies of it, lie on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ssl_seg.data.synthetic import is_synthetic

HOME_FOLDER = ".ssl_seg"
"""Folder of notes about a data set, beside its files."""

SWITCH = "SSL_SEG_KEEP_FACTS"
"""Environment variable; 0 keeps nothing, so that all images are read at every start."""


def find_home(root: str) -> Path | None:
    """Return the folder of a data set, where notes about it lie: its own, or that of its manifest or file.

    None for synthetic data and for a data set that is not there.
    """
    path = Path(root)
    if is_synthetic(root) or not path.exists():
        return None
    return path.resolve() if path.is_dir() else path.resolve().parent


def list_places(root: str | None, name: str) -> list[Path]:
    """Return where something about a data set may be kept, best first: in its folder, or in the user's cache.

    Nowhere for synthetic data, without a data set, and where ``SWITCH`` is 0.

    Args:
        root: the data set.
        name: name of the file, such as ``facts.sqlite``.
    """
    home = None if root is None or os.environ.get(SWITCH) == "0" else find_home(root)
    if home is None:
        return []
    data_set = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    return [home / HOME_FOLDER / name, find_cache_folder() / "kept" / data_set / name]


def find_cache_folder() -> Path:
    """Return the user's cache: $SSL_SEG_CACHE, or ssl_seg in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SSL_SEG_CACHE") or Path(base) / "ssl_seg")
