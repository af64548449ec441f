"""Which settings two runs, or two configurations, do not share. Loads no network library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.config import Config
from ssl_seg.config.layers import check_partial, flatten, read_layers, show_value, to_plain
from ssl_seg.data.splits.files import load_split
from ssl_seg.run.directory import CONFIG_FILE, SPLIT_FILE, RunDir, open_run_dir
from ssl_seg.run.request import TrainRequest

ABSENT, PLANNED = "(absent)", "(planned from the data)"
"""In place of a value: of a setting that only the other side has; of one that a file leaves to the plan."""


@dataclass(frozen=True)
class SettingChange:
    """A setting with its values on both sides; see ``ABSENT`` and ``PLANNED`` for the words in place of a value."""

    setting: str
    """Dotted name; of two runs also ``--bootstrap`` and ``split.yaml``."""
    a: Any
    b: Any

    @property
    def shown(self) -> tuple[str, str]:
        """Both values as a configuration file writes them."""
        return show_value(self.a), show_value(self.b)


def compare_settings(a: str | Path, b: str | Path) -> list[SettingChange]:
    """Return the settings that differ between two runs or configurations, in the order of a configuration.

    Defaults count: what one file gives and the other leaves at the same value is no difference. Phases of a loss are
    numbered (``loss.phases.0.from_epoch``); other lists are compared whole.

    Two runs have two rows more: ``--bootstrap`` with what each started from, and ``split.yaml`` with the fingerprint
    of its split. So runs without any difference had the same settings, start and cases.

    Args:
        a, b: each a run directory, a configuration file, or the name of a packaged one.

    Raises:
        SslSegError: for something that is neither, or settings that are not valid.
    """
    old, new = _read_values(a), _read_values(b)
    if Path(a).is_dir() and Path(b).is_dir():
        old, new = old | _read_start(RunDir(Path(a))), new | _read_start(RunDir(Path(b)))
    sections = list(Config.model_fields)
    names = sorted(old | new, key=lambda name: sections.index(name.strip("-").split(".")[0]))
    leaves = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    pairs = [SettingChange(name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in leaves]
    return [pair for pair in pairs if pair.a != pair.b]


def find_edits(run: RunDir, config: Config) -> list[str]:
    """Return the settings of which the file in a run has another value than ``config``, with which it was begun.

    Raises:
        ConfigError: if the file holds settings that are not valid.
    """
    begun = dict(flatten(_number_items(to_plain(config))))
    return [key for key, value in _read_values(run.path).items() if begun.get(key, ABSENT) != value]


def _read_values(place: str | Path) -> dict[str, Any]:
    """Return dotted settings and their values, defaults included."""
    file = open_run_dir(Path(place)).path / CONFIG_FILE if Path(place).is_dir() else place
    config, planned = check_partial(TrainRequest(tuple(read_layers(str(file)))).settings)
    values = flatten(_number_items(to_plain(config)))
    return {key: PLANNED if key in planned else value for key, value in values}


def _number_items(value: Any) -> Any:
    """Return nested settings in which a list of sections is a mapping from 0, 1, ... to them."""
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    return {key: _number_items(item) for key, item in value.items()} if isinstance(value, dict) else value


def _read_start(run: RunDir) -> dict[str, Any]:
    """Return what a run was begun with beside its settings."""
    started = next((event for event in run.read_events() if event["event"] == "started"), {})
    parent, path = started.get("parent"), started.get("bootstrap", "")
    start = None if parent is None else f"{path} {parent['net']} of step {parent['step']}".strip()
    split = run.path / SPLIT_FILE
    return {"--bootstrap": start, SPLIT_FILE: load_split(split).fingerprint if split.is_file() else ABSENT}
