"""The order and the endings of cells, without training: the processes are made up."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from ablation_cases import WANTED, make_cell, write_score

from ssl_seg.cli.ablate_view import show_cells
from ssl_seg.errors import RunDirError
from ssl_seg.files import write_json
from ssl_seg.studies.ablation import execute as execute_module
from ssl_seg.studies.ablation.cells import (
    Cell,
    CellFolder,
    check_version,
    is_planned_for_gpu,
    open_folder,
    read_cell,
    read_result,
    write_cells,
)
from ssl_seg.studies.ablation.execute import CellState, execute
from ssl_seg.studies.ablation.worker import HELD, INVISIBLE, NO_SPACE


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute_module, "TICK", 0.0)
    monkeypatch.setattr(execute_module, "HELD_PAUSE", 0.0)


class MadeUp:
    """Ends at the second look, as its cell's name says."""

    def __init__(self, launcher: MadeUpLauncher, folder: CellFolder) -> None:
        self.launcher, self.folder, self.looks, self.stopped = launcher, folder, 0, False

    def poll(self) -> int | None:
        self.looks += 1
        if self.looks < 2 and not self.stopped:
            return None
        self.launcher.active.discard(self.folder.path.name)
        return self.launcher.end(self.folder)

    def stop(self) -> None:
        self.stopped = True


class MadeUpLauncher:
    def __init__(self, slots: int, end: Callable[[CellFolder], int]) -> None:
        self.slots, self.end = slots, end
        self.active: set[str] = set()
        self.started: list[str] = []
        self.arguments: dict[str, list[str]] = {}
        self.most = 0
        self.processes: list[MadeUp] = []

    def start(self, folder: CellFolder, arguments: Sequence[str]) -> MadeUp:
        name = folder.path.name
        self.active.add(name)
        self.most = max(self.most, len(self.active))
        self.started.append(name)
        self.arguments[name] = list(arguments)
        self.processes.append(MadeUp(self, folder))
        return self.processes[-1]


def succeed(folder: CellFolder) -> int:
    write_score(folder.path.parents[1], folder.path.name, collapsed="collapse" in folder.path.name)
    return 0


def run(out: Path, cells: list[Cell], launcher: MadeUpLauncher, seen: list[CellState] | None = None) -> None:
    write_cells(out, cells)
    execute(cells, out, WANTED, launcher, lambda states: None if seen is None else seen.extend(states))


def statuses(out: Path, cells: list[Cell]) -> list[str]:
    return [read_result(out, cell, WANTED).status for cell in cells]


def test_all_cells_run_with_no_more_at_a_time_than_there_is_room(tmp_path: Path) -> None:
    cells = [make_cell(f"c{n}") for n in range(7)]
    launcher = MadeUpLauncher(3, succeed)
    run(tmp_path, cells, launcher)
    assert sorted(launcher.started) == sorted(c.id for c in cells)
    assert launcher.most == 3
    assert statuses(tmp_path, cells) == ["done"] * 7


def test_a_second_call_runs_only_what_is_missing(tmp_path: Path) -> None:
    cells = [make_cell(f"c{n}") for n in range(3)]
    run(tmp_path, cells[:2], MadeUpLauncher(2, succeed))
    again = MadeUpLauncher(2, succeed)
    run(tmp_path, cells, again)
    assert again.started == ["c2"]


def test_a_child_waits_for_its_parent_and_starts_from_its_best(tmp_path: Path) -> None:
    cells = [make_cell("parent"), make_cell("child", parent="parent"), make_cell("other")]
    launcher = MadeUpLauncher(3, succeed)
    run(tmp_path, cells, launcher)
    assert launcher.started == ["parent", "other", "child"]
    assert launcher.arguments["child"][4] == str(tmp_path / "cells" / "parent" / "run" / "checkpoints" / "best.pt")
    assert len(launcher.arguments["parent"]) == 4


def test_a_cell_that_two_arms_share_runs_once(tmp_path: Path) -> None:
    launcher = MadeUpLauncher(2, succeed)
    run(tmp_path, [make_cell("same"), make_cell("same")], launcher)
    assert launcher.started == ["same"]


def test_collapsed_and_failed_cells_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    def end(folder: CellFolder) -> int:
        if folder.path.name == "broken":
            write_json(folder.failure, {"message": "the gate refuses it"})
            return 2
        return -9 if folder.path.name == "killed" else 7 if folder.path.name == "far" else succeed(folder)

    names = ("broken", "killed", "far", "collapse", "fine")
    cells = [*map(make_cell, names), make_cell("child", parent="broken")]
    seen: list[CellState] = []
    run(tmp_path, cells, MadeUpLauncher(2, end), seen)
    results = {c.id: read_result(tmp_path, c, WANTED) for c in cells}
    assert [results[n].status for n in names] == ["failed", "failed", "failed", "collapsed", "done"]
    assert results["broken"].message == "the gate refuses it"
    assert "signal 9" in results["killed"].message
    assert INVISIBLE == 7
    assert "storage that all nodes share" in results["far"].message
    assert results["child"].status == "failed"
    assert "its parent failed (broken): the gate refuses it" in results["child"].message
    last = {state.cell.id: state for state in seen[-6:]}
    assert last["broken"].message == "the gate refuses it"
    assert last["fine"].stage == "done"


def test_a_failed_cell_is_tried_again_and_so_is_its_child(tmp_path: Path) -> None:
    def fail(folder: CellFolder) -> int:
        write_json(folder.failure, {"message": "no"})
        return 2

    def recover(folder: CellFolder) -> int:
        assert not folder.failure.exists()  # what an earlier attempt said is gone
        return succeed(folder)

    cells = [make_cell("a"), make_cell("b", parent="a")]
    run(tmp_path, cells, MadeUpLauncher(1, fail))
    assert statuses(tmp_path, cells) == ["failed", "failed"]
    again = MadeUpLauncher(1, recover)
    run(tmp_path, cells, again)
    assert again.started == ["a", "b"]
    assert statuses(tmp_path, cells) == ["done", "done"]


def test_a_cell_held_by_another_process_is_waited_for(tmp_path: Path) -> None:
    looks = []

    def end(folder: CellFolder) -> int:
        looks.append(folder.path.name)
        if len(looks) == 2:  # the other process has finished meanwhile
            succeed(folder)
        return HELD

    cells = [make_cell("held")]
    run(tmp_path, cells, MadeUpLauncher(1, end))
    assert statuses(tmp_path, cells) == ["done"]
    assert len(looks) == 2


def test_a_full_disk_ends_it_and_keeps_what_is_finished(tmp_path: Path) -> None:
    def end(folder: CellFolder) -> int:
        return succeed(folder) if folder.path.name == "first" else NO_SPACE

    cells = [make_cell("first"), make_cell("second"), make_cell("third")]
    launcher = MadeUpLauncher(1, end)
    with pytest.raises(RunDirError, match=r"is full.* 1 of 3 cells are finished and kept. Free some space; a finished"):
        run(tmp_path, cells, launcher)
    assert launcher.started == ["first", "second"]
    assert statuses(tmp_path, cells) == ["done", "missing", "missing"]


def test_an_interrupt_lets_the_running_cells_save(tmp_path: Path) -> None:
    cells = [make_cell("a"), make_cell("b")]
    write_cells(tmp_path, cells)
    launcher = MadeUpLauncher(2, succeed)

    def interrupt(states: Sequence[CellState]) -> None:
        raise KeyboardInterrupt

    assert execute(cells, tmp_path, WANTED, launcher, interrupt) == "interrupted"
    assert [process.stopped for process in launcher.processes] == [True, True]


def test_a_folder_of_another_version_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    old, new = make_cell("old"), make_cell("new")
    write_cells(tmp_path, [old])
    about = open_folder(tmp_path, "old").about
    about.write_text(json.dumps({**json.loads(about.read_text()), "version": "0.0.1"}))
    with pytest.raises(RunDirError, match=r"written by ssl-seg 0\.0\.1 .*another --out"):
        write_cells(tmp_path, [new, old])
    assert not open_folder(tmp_path, "new").path.exists()
    about.write_text("{")
    with pytest.raises(RunDirError, match="damaged"):
        check_version(open_folder(tmp_path, "old"))


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("dear reader")
    with pytest.raises(RunDirError, match="holds no ablation"):
        write_cells(tmp_path, [make_cell("a")])
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "cells").mkdir()  # a common name: what makes an ablation is its marker
    with pytest.raises(RunDirError, match="holds no ablation"):
        write_cells(tmp_path, [make_cell("a")])
    with pytest.raises(RunDirError, match="cannot be written to"):
        write_cells(tmp_path / "thesis.txt" / "sub", [make_cell("a")])


def test_a_cell_that_is_not_begun_follows_its_data(tmp_path: Path) -> None:
    write_cells(tmp_path, [replace(make_cell("a"), config={"data": {"root": "/old"}})])
    moved = replace(make_cell("a"), config={"data": {"root": "/new"}})
    write_cells(tmp_path, [moved])
    assert read_cell(open_folder(tmp_path, "a")) == moved
    last = open_folder(tmp_path, "a").run.last
    last.parent.mkdir(parents=True)
    last.touch()
    write_cells(tmp_path, [make_cell("a")])
    assert read_cell(open_folder(tmp_path, "a")) == moved


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    cell = make_cell("a", parent="b")
    write_cells(tmp_path, [cell])
    assert read_cell(open_folder(tmp_path, "a")) == cell


def test_a_full_disk_that_the_caller_meets_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [make_cell("done"), make_cell("killed")]
    launcher = MadeUpLauncher(1, lambda folder: succeed(folder) if folder.path.name == "done" else -9)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execute_module, "write_json", fail)
    with pytest.raises(RunDirError, match=r"is full.* 1 of 2 cells are finished"):
        run(tmp_path, cells, launcher)


def test_a_directory_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(execute_module, "write_json", fail)
    with pytest.raises(RunDirError, match="cannot be written to: Permission denied"):
        run(tmp_path, [make_cell("killed")], MadeUpLauncher(1, lambda _: -9))


@pytest.mark.parametrize("content", ["", "{}", "[]", '"x"', '{"counts": [[[1, 2]]], "collapsed": false}'])
@pytest.mark.parametrize("name", ["score_val_best_better.json", "failure.json", "cell.json", "machine.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    cell = make_cell("a")
    write_cells(tmp_path, [cell])
    path = tmp_path / name if name == "machine.json" else open_folder(tmp_path, "a").path / name
    path.write_text(content)
    with pytest.raises(RunDirError, match=rf"{name} is damaged .*remove it"):
        is_planned_for_gpu(tmp_path) if name == "machine.json" else read_result(tmp_path, cell, WANTED)


def test_a_cell_of_another_version_is_in_no_table(tmp_path: Path) -> None:
    cell = make_cell("a")
    write_cells(tmp_path, [cell])
    write_score(tmp_path, "a")
    assert read_result(tmp_path, cell, WANTED).status == "done"
    about = open_folder(tmp_path, "a").about
    write_json(about, {**json.loads(about.read_text()), "version": "0.0.1"})
    with pytest.raises(RunDirError, match=r"written by ssl-seg 0\.0\.1"):
        read_result(tmp_path, cell, WANTED)


@pytest.mark.usefixtures("terminal")
def test_the_live_table_takes_any_text() -> None:
    states = [CellState(make_cell("lr[high]"), "failed", 0, None, "bad [/tmp/x] here")]
    with show_cells() as show:
        show(states)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
