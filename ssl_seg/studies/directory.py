"""What directories of several runs have in common: made as a whole, continued with equal bits."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ssl_seg.config import RuntimeConfig
from ssl_seg.config.layers import Layer, merge_layers
from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.run.directory import CONFIG_FILE, RunDir
from ssl_seg.run.sources import absolute_paths, absolute_root


def anchor_layer(layer: Layer) -> Layer:
    """Return the layer with absolute paths, so that the runs can be continued from any folder."""
    values, data, network = dict(layer.values), layer.values.get("data"), layer.values.get("network")
    if isinstance(data, dict):
        values["data"] = {**data, **absolute_paths(data)}
    if isinstance(network, dict) and isinstance(network.get("pretrained"), str):
        values["network"] = {**network, "pretrained": absolute_root(network["pretrained"])}
    return replace(layer, values=values)


def create_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Create a directory in one step: it is there with all that ``fill`` writes into it, or not at all.

    An empty directory that is there already may be the one the program works in, a link or a mount point: the files are
    moved into it, that by which the series is known last. Nothing but what ``fill`` has written is ever removed.

    Args:
        path: the directory, absent or empty.
        fill: writes files into the folder that it is given.

    Raises:
        RunDirError: when it cannot be created.
    """
    exists = path.is_dir()
    temporary = (path if exists else path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        if exists:
            for file in sorted(temporary.iterdir(), key=lambda file: file.suffix == ".json"):
                file.rename(path / file.name)
        else:
            temporary.rename(path)
    except OSError as error:
        raise RunDirError(f"cannot create the directory {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def pin_processes(runtime: RuntimeConfig) -> Layer:
    """Return the processes of a series as a layer over the settings of each run: a run that was begun with others is
    continued with these, or the processes that are there would wait for those that are not."""
    names = ("accelerator", "devices", "num_nodes")
    return Layer("series", {"runtime": {name: getattr(runtime, name) for name in names}})


def read_machine(first: RunDir, layers: Sequence[Layer], *, minutes: float | None) -> Layer:
    """Return what was measured in the first run, for the others: precision, memory format, and steps for ``minutes``.

    Timed anew, the format might be another one, and runs that were killed would end with other bits; and runs of other
    lengths could not be compared. Empty before the first run.
    """
    path = first.path / CONFIG_FILE
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found, length = config.get("runtime", {}), {k: config[k] for k in ("length",) if k in config and minutes}
    given = merge_layers(layers)[0].get("runtime", {})
    choices = ("precision", "memory_format")
    runtime = {key: found[key] for key in choices if key in found and given.get(key, "auto") == "auto"}
    return Layer(first.path.name, {"runtime": runtime, **length})


def renew_minutes(wanted: float | None, begun: float | None, first: RunDir) -> float | None:
    """Return the minutes of a series that goes on: those it was begun with, or others while no training has begun.

    Raises:
        ConfigError: for others later.
    """
    if wanted is not None and (begun is None or first.path.exists()):
        raise ConfigError(
            f"--minutes {wanted:g}: the steps of {first.path.parent} are planned already; --resume goes on with them. "
            "Leave it out"
        )
    return wanted or begun
