"""What all studies have in common: their directory, their file, and what holds for all of their trainings."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_seg.config.layers import Layer
from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.results.folds import FOLDS, CrossValidation, Fold
from ssl_seg.results.study import StudyKind, load_study, save_study
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.studies.rungs import LADDER
from ssl_seg.studies.sequential import anchor_layer, check_resumable, create_whole, read_machine


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"precision": "bf16", "memory_format": "channels_last"}),
        ({"precision": "auto", "memory_format": "contiguous"}, {"precision": "bf16"}),
    ],
)
def test_what_auto_came_to_holds_for_all_runs(tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Timed anew, another memory format might win, and the bits would be others. What was given is left alone."""
    found = {"precision": "bf16", "memory_format": "channels_last", "workers": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"runtime": found}))
    assert read_machine(RunDir(tmp_path), [Layer("--x", {"runtime": given})], minutes=None).values == {
        "runtime": expected
    }
    assert read_machine(RunDir(tmp_path / "none"), [], minutes=None).values == {"runtime": {}}


def test_data_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    layer = anchor_layer(Layer("--x", {"data": {"root": "a", "groups": "g.csv", "channels": 1}, "seed": 2}))
    data = {"root": str(tmp_path / "a"), "groups": str(tmp_path / "g.csv"), "channels": 1}
    assert layer.values == {"data": data, "seed": 2}
    synthetic = Layer("--x", {"data": {"root": "synthetic:sheets"}})
    assert anchor_layer(synthetic) == synthetic


def test_a_directory_is_there_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunDirError, match=r"cannot create the directory .*No space"):
        create_whole(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []
    create_whole(tmp_path / "x", lambda folder: (folder / "a").touch())
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "a"]


@pytest.mark.parametrize("kind", ["folder", "link", "working directory"])
def test_an_empty_directory_is_filled_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    place = tmp_path / "x"
    place.mkdir()
    path = {"folder": place, "link": tmp_path / "link", "working directory": Path()}[kind]
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(place)

    def fail(folder: Path) -> None:
        (folder / "a").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunDirError, match=r"cannot create .*No space"):
        create_whole(path, fail)
    assert list(place.iterdir()) == []
    (place / "of somebody else").touch()  # since it was looked at
    with pytest.raises(RunDirError, match=r"cannot create .*No space"):
        create_whole(path, fail)
    create_whole(path, lambda folder: (folder / "a").touch())
    assert sorted(file.name for file in place.iterdir()) == ["a", "of somebody else"]


def test_the_file_of_a_study_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before, the directory is none of a study."""
    moved: list[str] = []
    rename = Path.rename

    def record(file: Path, target: Path) -> Path:
        moved.append(file.name)
        return rename(file, target)

    monkeypatch.setattr(Path, "rename", record)
    create_whole(tmp_path, lambda folder: [(folder / name).touch() for name in ("a.json", "b.yaml", "c.yaml")] and None)
    assert (len(moved), moved[-1]) == (3, "a.json")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = CrossValidation(tmp_path, (), (Fold(0, 3, 4), Fold(1, 3, 4)))
    save_study(FOLDS, validation)

    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(RunDirError, match=r"is full.*Free some space.*train --resume"):
        save_study(FOLDS, validation.with_training(Fold(0, 3, 4, "collapsed")))
    assert load_study(FOLDS, tmp_path) == validation


@pytest.mark.parametrize("kind", [LADDER, FOLDS], ids=lambda kind: kind.name)
class TestFile:
    def test_folders_without_a_study(self, kind: StudyKind[Any], tmp_path: Path) -> None:
        with pytest.raises(RunDirError, match="is not a folder"):
            load_study(kind, tmp_path / "none")
        with pytest.raises(RunDirError, match=f"is not a {kind.name}: it has no {kind.file}$"):
            load_study(kind, tmp_path)
        (tmp_path / "config.yaml").touch()
        with pytest.raises(RunDirError, match="For a single run: ssl-seg train --resume"):
            load_study(kind, tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [("{", "is damaged"), ('{"schema": 9}', "has schema 9"), ('{"schema": 1}', "is damaged"), ("[]", "is damaged")],
    )
    def test_other_formats(self, kind: StudyKind[Any], tmp_path: Path, text: str, message: str) -> None:
        (tmp_path / kind.file).write_text(text)
        with pytest.raises(RunDirError, match=message):
            load_study(kind, tmp_path)


def test_a_study_is_continued_with_its_own_settings(tmp_path: Path) -> None:
    study = CrossValidation(tmp_path, (), (Fold(0, 3, 4), Fold(1, 3, 4)), minutes=2.0)

    def check(minutes: float | None = None, *others: object, layers: tuple[Layer, ...] = (), **changed: Any) -> Any:
        return check_resumable(FOLDS, replace(study, **changed), TrainRequest(layers, minutes=minutes), *others)

    assert check(layers=(Layer("--devices", {"runtime": {"devices": 2}}),)) == 2.0
    assert check(3.0) == 3.0
    for arguments, values in (((None, "x"), {}), ((), {"layers": (Layer("--lr", {"optim": {"lr": 1.0}}),)})):
        with pytest.raises(ConfigError, match="without other options"):
            check(*arguments, **values)
    with pytest.raises(RunDirError, match="is finished: all 2 folds"):
        check(ending="finished")
    with pytest.raises(ConfigError, match="planned already"):
        check_resumable(FOLDS, replace(study, minutes=None), TrainRequest(minutes=3.0))
    (tmp_path / "fold0").mkdir()
    with pytest.raises(ConfigError, match="planned already"):
        check(3.0)
