"""Files of the data set that an import makes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def link(path: Path, place: Path) -> None:
    """Make a hard link, or a copy where the file system has none."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), place)
    except OSError:
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, place)
