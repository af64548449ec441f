"""How the voxels of files are read, where the files leave it open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Reading:
    """The settings of the ``data`` section that say how files are read; they mean what that section says of them.

    The last three are no settings: ``open_mask`` asks by ``is_mask`` for labels in place of intensities, and gives them
    as stored, be they integers or not, with ``fractions``. With ``scratch``, a folder, large compressed files are not
    decoded in memory: TIFF is when a box is read, and NIfTI is unpacked there into a file without a name.
    """

    axes: str | None = None
    nodata: float | Literal["none"] | None = None
    nonfinite: Literal["refuse", "ignore"] = "refuse"
    is_mask: bool = False
    fractions: bool = False
    scratch: Path | None = None


AS_STORED = Reading()
"""What the files say, and nothing else."""

SETTINGS = tuple(field.name for field in fields(Reading) if field.name not in ("is_mask", "fractions", "scratch"))
"""Names in the ``data`` section."""

LABEL_SETTINGS = ("mask", "task", "threshold", "label_values", "label_map", "ignore_value")
"""Names, there too, of what says what mask values mean."""


def make_reading(data: Mapping[str, Any]) -> Reading:
    """Return the reading that a (perhaps partial) ``data`` section describes."""
    return Reading(**{name: data[name] for name in SETTINGS if name in data})
