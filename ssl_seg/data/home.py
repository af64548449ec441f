"""Where notes about a data set and copies of it lie on disk."""

from __future__ import annotations

import os
from pathlib import Path

from ssl_seg.data.synthetic import is_synthetic

HOME_FOLDER = ".ssl_seg"
"""What is noted about a data set lies there, beside its files."""


def find_home(root: str) -> Path | None:
    """Return the folder of a data set, where notes about it lie: its own, or that of its manifest or file.

    None for synthetic data and for a data set that is not there.
    """
    path = Path(root)
    if is_synthetic(root) or not path.exists():
        return None
    return path.resolve() if path.is_dir() else path.resolve().parent


def find_cache_folder() -> Path:
    """Return the user's cache: $SSL_SEG_CACHE, or ssl_seg in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SSL_SEG_CACHE") or Path(base) / "ssl_seg")
