"""A study: several trainings in one directory, and the JSON file that says how far it has come."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from pydantic import TypeAdapter

from ssl_seg import __version__
from ssl_seg.config.layers import Layer
from ssl_seg.errors import ConfigError, RunDirError, quote
from ssl_seg.files import DISK_FULL, is_disk_full, next_free, write_json
from ssl_seg.run.directory import CONFIG_FILE, RunDir, check_free
from ssl_seg.run.request import TrainRequest

SCHEMA = 1

MemberStatus = Literal["waiting", "done", "collapsed", "refused", "skipped"]
StudyEnding = Literal["finished", "interrupted", "collapsed", "refused"]


class Member(Protocol):
    """One training of a study: its place in the study, and how it stands."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        ...

    @property
    def title(self) -> str:
        """What a person calls it."""
        ...

    @property
    def status(self) -> MemberStatus:
        """How it stands."""
        ...


T = TypeVar("T", bound=Member)


@dataclass(frozen=True)
class Study(Generic[T]):
    """The trainings of a study, done as far as they say."""

    path: Path
    layers: tuple[Layer, ...]
    """Files and options it was begun with."""
    trainings: tuple[T, ...]
    epochs: int | None = None
    minutes: float | None = None
    force: bool = False
    """Whether it goes on although the gate refuses a training, or one has collapsed."""
    ending: StudyEnding | None = None
    """How it ended; None while there is more to do."""

    def run_of(self, training: T) -> RunDir:
        """Return the run directory of a training."""
        return RunDir(self.path / training.name)

    def with_training(self, training: T) -> Study[T]:
        """Return the study with one training replaced."""
        return replace(self, trainings=tuple(training if t.name == training.name else t for t in self.trainings))


@dataclass(frozen=True)
class StudyKind(Generic[T]):
    """What the studies of one kind are called, and how their file is written and read."""

    file: str
    """Name of the JSON file, by which the directory is known."""
    name: str
    members: str
    """What its trainings are called."""
    command: str
    """Command that begins a study, and with --resume continues it."""
    settings: tuple[str, ...]
    """Fields of ``Study`` that are kept beside the layers."""
    adapter: TypeAdapter[Study[T]]
    dump: Callable[[Study[T]], dict[str, Any]]
    """Returns the results for the file."""
    parse: Callable[[Path, dict[str, Any]], list[dict[str, Any]]]
    """Returns the fields of each training, from the directory and the content of the file; may raise ValueError."""

    def resume(self, path: Path) -> str:
        """Return the command that continues a study."""
        return f"{self.command} --resume {quote(path)}"

    def is_in(self, path: Path) -> bool:
        """Return whether a directory is that of such a study."""
        return (path / self.file).is_file()

    def check_free(self, path: Path) -> None:
        """Check that a study may be begun in a directory.

        Raises:
            RunDirError: when it exists and is not empty.
        """
        if self.is_in(path):
            raise RunDirError(
                f"{path} exists already and is never overwritten: continue it with `{self.resume(path)}`, or "
                f"use --out {quote(next_free(path))}"
            )
        check_free(path)


_OF_ONE_TRAINING = {
    "log": "ssl-seg export-log writes the records of each of the {members} afterwards",
    "profile": "profile one of the {members} by itself",
    "bootstrap": "a {name} decides by itself what its {members} start from",
}
"""What may be asked of a single training only -> why not, or how, of a study."""


def check_request(kind: StudyKind[Any], request: TrainRequest) -> None:
    """Check that nothing is asked of a study that only a single training can do.

    Raises:
        ConfigError: names the first that is.
    """
    for option, instead in _OF_ONE_TRAINING.items():
        if getattr(request, option):
            reason = instead.format(name=kind.name, members=kind.members)
            raise ConfigError(f"--{option} works with a single training only: {reason}. Leave it out")
    if request.force and "force" not in kind.settings:
        raise ConfigError(f"--force: no gate stands in front of the {kind.members} of a {kind.name}. Leave it out")


def save_study(kind: StudyKind[T], study: Study[T]) -> Study[T]:
    """Write the file of a study atomically, and return the study.

    Raises:
        RunDirError: where the disk is full.
    """
    settings = {name: getattr(study, name) for name in kind.settings}
    values = {
        "schema": SCHEMA,
        "version": __version__,
        "ending": study.ending,
        **kind.dump(study),
        "settings": {**settings, "layers": [asdict(layer) for layer in study.layers]},
    }
    try:
        write_json(study.path / kind.file, values)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise RunDirError(
            f"the disk of {study.path} {DISK_FULL}; the {kind.members} trained so far are kept. Free some space, then "
            f"continue with `{kind.resume(study.path)}`"
        ) from error
    return study


def load_study(kind: StudyKind[T], path: Path) -> Study[T]:
    """Read what ``save_study`` wrote.

    Raises:
        RunDirError: for a folder without such a study, or with one that another version wrote or that is damaged.
    """
    file = path / kind.file
    if not file.is_file():
        what = "not a folder" if not path.is_dir() else f"not a {kind.name}: it has no {kind.file}"
        hint = ". For a single run: ssl-seg train --resume" if (path / CONFIG_FILE).is_file() else ""
        raise RunDirError(f"{path} is {what}{hint}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise RunDirError(f"{file} has schema {values['schema']}; this version ({__version__}) reads {SCHEMA}")
        trainings = kind.parse(path, values)
        if not trainings:
            raise ValueError(f"it has no {kind.members}")
        fields = {"path": path, "trainings": trainings, "ending": values["ending"], **values["settings"]}
        return kind.adapter.validate_python(fields)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirError(f"{file} is damaged: not in the format that `{kind.command}` writes ({error})") from error
