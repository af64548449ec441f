"""Copies of the records of a run for other programs. metrics.jsonl is the truth: a copy can be made at any time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ssl_seg.errors import ConfigError, RunDirError, did_you_mean
from ssl_seg.run.directory import RunDir

Sink = Callable[[Mapping[str, Any]], None]
"""Takes the record of a look."""


def open_tensorboard(folder: Path, first_step: int = 0) -> Sink:
    """Return what writes records as scalars by their names, and verdicts as text; each is there at once.

    Args:
        folder: of the event files.
        first_step: what the folder holds from this step on counts no longer: a resumed run makes it again.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder), purge_step=first_step)

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                writer.add_scalar(name, value, record["step"])
        writer.add_text("verdict", ", ".join([record["verdict"], *record["codes"]]), record["step"])
        writer.flush()

    return write


SINKS: dict[str, Callable[[Path, int], Sink]] = {"tensorboard": open_tensorboard}
"""Name, which is also that of the package, of the extra and of the folder in the run directory -> how it is opened."""


def check_sinks(names: Sequence[str]) -> None:
    """Check that programs are known and their packages installed.

    Raises:
        ConfigError: names the first one that is not.
    """
    for name in names:
        if name not in SINKS:
            known = did_you_mean(name, SINKS) or f" (known: {', '.join(SINKS)})"
            raise ConfigError(f"records are not written for '{name}'{known}")
        if find_spec(name) is None:
            raise ConfigError(
                f"records for {name} need its package, which is not installed: pip install 'ssl-seg[{name}]'"
            )


def open_sinks(names: Sequence[str], run: RunDir, first_step: int) -> tuple[Sink, ...]:
    """Return the sinks of a training, each with a folder of its name in the run directory."""
    return tuple(SINKS[name](run.path / name, first_step) for name in dict.fromkeys(names))


def export_log(run: RunDir, name: str, folder: Path | None = None) -> tuple[Path, int]:
    """Write all records of a run for another program; return the folder and their number.

    Args:
        run: with a metrics.jsonl.
        name: a key of ``SINKS``.
        folder: to create; by default that of the name in the run directory.

    Raises:
        ConfigError: see ``check_sinks``.
        RunDirError: for a folder that is there, or a run without records.
    """
    check_sinks([name])
    folder, records = folder or run.path / name, run.read_metrics()
    if folder.exists():
        raise RunDirError(f"{folder} exists already and is not overwritten: choose another folder")
    if not records:
        raise RunDirError(f"{run.path} has no records yet")
    sink = SINKS[name](folder, 0)
    for record in records:
        sink(record)
    return folder, len(records)
