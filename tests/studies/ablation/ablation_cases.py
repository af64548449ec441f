"""A small ablation for the tests, and cells that need no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import TINY

from ssl_seg.files import write_json
from ssl_seg.studies.ablation.cells import Cell, open_folder
from ssl_seg.studies.ablation.spec import Arm, ScoreConfig

WANTED = ScoreConfig()


def write_spec(path: Path, data: Path | str, **values: Any) -> Path:
    """Write the file of an ablation of tiny trainings."""
    settings = {**TINY, "data": {**TINY["data"], "root": str(data)}, "length": {"steps": 4, "steps_per_epoch": 2}}
    spec = {"settings": settings, "labels": [0.2, 1.0], "split_seeds": [0], **values}
    path.write_text(yaml.safe_dump(spec))
    return path


def make_cell(name: str, parent: str | None = None, method: str = "supervised", seed: int = 0) -> Cell:
    """Return a cell that is never trained."""
    config = {"data": {"label_values": [0, 1]}}
    return Cell(name, name, Arm(method, "plain", "scratch", 1.0), 0, seed, parent, config, "f", 3, 10)


def write_score(out: Path, cell_id: str, collapsed: bool = False) -> None:
    """Write what a worker writes at its end."""
    counts = np.full((4, 1, 4), 5).tolist()
    values = {"collapsed": collapsed, "codes": [], "net": "student", "step": 10, "seconds": 1.0, "counts": counts}
    write_json(open_folder(out, cell_id).score(WANTED), values)
