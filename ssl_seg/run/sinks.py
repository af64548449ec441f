"""Copies of the records of a run for other programs, with pictures of its probe.

metrics.jsonl is the truth: a copy of the records can be made at any time.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config.layers import flatten, read_yaml
from ssl_seg.errors import ConfigError, RunDirError, SslSegError, did_you_mean, quote
from ssl_seg.run.directory import CONFIG_FILE, RunDir

PROJECT = "ssl-seg"
"""Name of the experiment of MLflow, and of the project of Weights & Biases."""
_MOST_PARAMETERS = 100
"""As many as MLflow takes at a time."""


@dataclass(frozen=True)
class Sink:
    """A copy that is being written: what takes the record of a look, what ends it, and the command that shows it."""

    write: Callable[[Mapping[str, Any]], None]
    close: Callable[[], None]
    command: str
    draw: Callable[[int, NDArray[np.uint8]], None] | None = None
    """Takes the step and the picture (H, W) of the probe; None for a program that gets none."""


def open_tensorboard(folder: Path, run: RunDir) -> Sink:  # noqa: ARG001 (TensorBoard has no place for settings)
    """Return what writes records as scalars by their names, verdicts as text, and pictures; each is there at once."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder))

    def write(record: Mapping[str, Any]) -> None:
        for name, value in _list_numbers(record).items():
            writer.add_scalar(name, value, record["step"])
        writer.add_text("verdict", _format_verdict(record), record["step"])
        writer.flush()

    def draw(step: int, picture: NDArray[np.uint8]) -> None:
        writer.add_image("probe: input, truth, student, teacher", picture, step, dataformats="HW")

    return Sink(write, writer.close, f"tensorboard --logdir {quote(folder)}", draw)


def open_mlflow(folder: Path, run: RunDir) -> Sink:
    """Return what writes records as metrics, settings as parameters, and the verdict as a tag, of a new MLflow run.

    It lies in a database in ``folder``, or on the server that MLFLOW_TRACKING_URI names.
    """
    from mlflow.entities import Metric, Param, RunTag
    from mlflow.tracking import MlflowClient

    folder.mkdir(parents=True)
    server, place = os.environ.get("MLFLOW_TRACKING_URI"), folder.resolve()
    client = MlflowClient(tracking_uri=server or f"sqlite:///{place}/mlflow.db")
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    artifacts = None if server else (place / "artifacts").as_uri()
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=artifacts)
    number = client.create_run(experiment, run_name=run.path.resolve().name).info.run_id
    settings = [Param(_rename(key), str(value)) for key, value in _read_settings(run).items()]
    for first in range(0, len(settings), _MOST_PARAMETERS):
        client.log_batch(number, params=settings[first : first + _MOST_PARAMETERS])

    def write(record: Mapping[str, Any]) -> None:
        now, step = round(1000 * time.time()), record["step"]
        numbers = [Metric(_rename(key), value, now, step) for key, value in _list_numbers(record).items()]
        client.log_batch(number, metrics=numbers, tags=[RunTag("verdict", _format_verdict(record))])

    store = server or f"sqlite:///{folder}/mlflow.db"
    return Sink(write, lambda: client.set_terminated(number), f"mlflow ui --backend-store-uri {quote(store)}")


def open_wandb(folder: Path, run: RunDir) -> Sink:
    """Return what writes records and settings as an offline run of Weights & Biases: `wandb sync` uploads it."""
    import wandb

    folder.mkdir(parents=True)
    made = wandb.init(
        dir=str(folder),
        mode="offline",
        project=PROJECT,
        name=run.path.resolve().name,
        config=_read_settings(run),
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )

    def write(record: Mapping[str, Any]) -> None:
        made.log({**_list_numbers(record), "verdict": _format_verdict(record)}, step=record["step"])

    return Sink(write, made.finish, f"wandb sync {quote(folder)}/wandb/offline-run-*")


SINKS = {"tensorboard": open_tensorboard, "mlflow": open_mlflow, "wandb": open_wandb}
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


class RecordCopies:
    """Copies of the records of a training, each in a folder of its name in the run directory.

    The records that a resumed run has already are written again first, without pictures. A program that fails is said,
    and left out from then on: a training does not end for a copy of its records.
    """

    def __init__(self, names: Sequence[str], run: RunDir, note: Callable[[str], None]) -> None:
        self.run, self.note = run, note
        self.sinks: dict[str, Sink] = {}
        for name in dict.fromkeys(names):
            self._attempt(name, partial(self._begin, name))

    def write(self, record: Mapping[str, Any], make_picture: Callable[[], NDArray[np.uint8]] | None = None) -> None:
        """Write the record of a look to all copies, and the picture of the probe to those that take one."""
        for name, sink in list(self.sinks.items()):
            self._attempt(name, partial(sink.write, record))
            if make_picture is not None and sink.draw is not None and name in self.sinks:
                self._attempt(name, partial(_draw, sink.draw, record["step"], make_picture))

    def close(self) -> None:
        """End all copies."""
        for name, sink in list(self.sinks.items()):
            self._attempt(name, sink.close)
        self.sinks.clear()

    def _begin(self, name: str) -> None:
        folder = self.run.path / name
        shutil.rmtree(folder, ignore_errors=True)
        self.sinks[name] = SINKS[name](folder, self.run)
        for record in self.run.read_metrics():
            self.sinks[name].write(record)

    def _attempt(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 (errors of other programs have no base in common)
            self.sinks.pop(name, None)
            later = f"ssl-seg export-log {quote(self.run.path)} --to {name} --out FOLDER"
            self.note(f"WARNING: no more records are written for {name} ({_describe(error)}); afterwards: {later}")


def _draw(
    draw: Callable[[int, NDArray[np.uint8]], None], step: int, make_picture: Callable[[], NDArray[np.uint8]]
) -> None:
    draw(step, make_picture())


def export_log(
    run: RunDir, name: str, folder: Path | None = None, note: Callable[[str], None] = lambda _: None
) -> tuple[Path, int, str]:
    """Write all records of a run for another program; return the folder, their number, and the command that shows them.

    A program that takes pictures gets those of best.pt and last.pt.

    Args:
        run: with a metrics.jsonl.
        name: a key of ``SINKS``.
        folder: to create; by default that of the name in the run directory.
        note: is told why there are no pictures.

    Raises:
        ConfigError: see ``check_sinks``; or the program fails.
        RunDirError: for a folder that is there, or a run without records.
    """
    check_sinks([name])
    folder, records = folder or run.path / name, run.read_metrics()
    if folder.exists():
        raise RunDirError(f"{folder} exists already and is not overwritten: choose another folder")
    if not records:
        raise RunDirError(f"{run.path} has no records yet")
    try:
        sink = SINKS[name](folder, run)
        for record in records:
            sink.write(record)
        if sink.draw is not None:
            _draw_checkpoints(run, sink.draw, note)
        sink.close()
    except Exception as error:
        raise ConfigError(f"{folder}: {name} cannot write the records: {_describe(error)}") from error
    return folder, len(records), sink.command


def _draw_checkpoints(run: RunDir, draw: Callable[[int, NDArray[np.uint8]], None], note: Callable[[str], None]) -> None:
    from ssl_seg.run.probe_picture import draw_checkpoints

    try:
        for step, picture in draw_checkpoints(run):
            draw(step, picture)
    except SslSegError as error:
        note(f"no pictures of the probe: {error}")


def _list_numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a record by their names; the step is not one of them."""
    return {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def _format_verdict(record: Mapping[str, Any]) -> str:
    return ", ".join([record["verdict"], *record["codes"]])


def _read_settings(run: RunDir) -> dict[str, Any]:
    return dict(flatten(read_yaml(run.path / CONFIG_FILE)))


def _rename(name: str) -> str:
    """Return a name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _describe(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
