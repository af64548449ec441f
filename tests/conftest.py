"""Shared fixtures: where the real images are, and small data sets on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL_DATA = Path(os.environ.get("SSL_SEG_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def emps_dir() -> Path:
    return _real("emps")


@pytest.fixture(scope="session")
def la_half_dir() -> Path:
    return _real("la_half")


def _real(name: str) -> Path:
    folder = REAL_DATA / name
    if not (folder / "images").is_dir():
        pytest.skip(f"no real images at {folder}; set SSL_SEG_DATA to the folder that holds {name}/")
    return folder
