"""Cells that are really trained: started, interrupted, continued, scored."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ablation_cases import WANTED, write_spec
from forking import Program
from interruption import stopping

from ssl_seg.engine.machine import count_cores
from ssl_seg.files import hold_directory
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.studies.ablation.cells import Cell, CellFolder, open_folder, read_failure, read_result, write_cells
from ssl_seg.studies.ablation.launchers import count_threads, make_environment, make_local_launcher
from ssl_seg.studies.ablation.resolve import resolve_cells
from ssl_seg.studies.ablation.spec import ScoreConfig, read_spec
from ssl_seg.studies.ablation.worker import DONE, FAILED, HELD, INVISIBLE, NO_SPACE, run_cell

WORKER = "ssl_seg.studies.ablation.worker"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> list[Cell]:
    path = write_spec(
        tmp_path_factory.mktemp("spec") / "spec.yaml",
        particles_dir,
        methods=["supervised"],
        starts=["scratch", "bootstrap"],
    )
    return resolve_cells(read_spec(str(path)), gpu=False)


@pytest.fixture(scope="module")
def finished(cells: list[Cell], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an ablation whose first cell is done."""
    out = tmp_path_factory.mktemp("ablation") / "out"
    write_cells(out, cells)
    assert run_cell(open_folder(out, cells[0].id), WANTED) == DONE
    return out


def test_the_score_is_that_of_evaluate_and_was_made_once(
    cells: list[Cell], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = read_result(finished, cells[0], WANTED)
    best = open_folder(finished, cells[0].id).run.best
    nets = {net: evaluate(EvaluateRequest(best, which=net)) for net in ("student", "teacher")}
    rows = [np.array([row["counts"] for row in own["cases"]]) for own in nets.values()]
    assert result.status == "done"
    assert result.counts is not None
    assert result.counts.shape == (len(rows[0]), 1, 4)
    assert any(np.array_equal(result.counts, own) for own in rows)
    one = nets["student"]["cases"][0]
    tp, fp, fn, _ = one["counts"][0]
    assert one["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    monkeypatch.setattr("ssl_seg.studies.ablation.worker.evaluate", lambda *_, **__: pytest.fail("scored again"))
    other = ScoreConfig(checkpoint="last", net="student")
    assert run_cell(open_folder(finished, cells[0].id), other) == DONE
    last = evaluate(EvaluateRequest(open_folder(finished, cells[0].id).run.last, which="student"))
    counts = read_result(finished, cells[0], other).counts
    assert np.array_equal(counts, [row["counts"] for row in last["cases"]])


def test_a_finished_cell_is_not_trained_again_but_can_be_scored_otherwise(cells: list[Cell], finished: Path) -> None:
    folder = open_folder(finished, cells[0].id)
    events = folder.run.read_events()
    wanted = ScoreConfig(checkpoint="last", net="student", part="test")
    assert run_cell(folder, wanted) == DONE
    assert [e for e in folder.run.read_events() if e["event"] != "test_opened"] == events
    assert sum(e["event"] == "test_opened" for e in folder.run.read_events()) == 1
    assert run_cell(folder, wanted) == DONE  # it is scored: the test list stays closed
    assert sum(e["event"] == "test_opened" for e in folder.run.read_events()) == 1
    other = json.loads(folder.score(wanted).read_text())
    assert (other["net"], other["step"]) == ("student", 4)
    assert other["case_ids"] != json.loads(folder.score(WANTED).read_text())["case_ids"]


def test_a_bootstrapped_cell_starts_from_its_parent(
    cells: list[Cell], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = next(cell for cell in cells if cell.parent)
    folder, parent = open_folder(finished, child.id), open_folder(finished, child.parent or "")
    monkeypatch.setattr("ssl_seg.run.prepare.check_parent", lambda *_: [])  # four steps need not be above trivial
    assert run_cell(folder, WANTED, parent.run.best) == DONE
    started = next(e for e in folder.run.read_events() if e["event"] == "started")
    assert started["parent"]["step"] == load_checkpoint(parent.run.best, lazy=True).progress.step


def test_a_parent_that_the_gate_refuses_fails_its_child(
    cells: list[Cell], finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = next(cell for cell in cells if cell.parent)
    write_cells(tmp_path, [child])
    monkeypatch.setattr("ssl_seg.run.prepare.check_parent", lambda *_: ["it is not above trivial"])
    folder = open_folder(tmp_path, child.id)
    assert run_cell(folder, WANTED, open_folder(finished, child.parent or "").run.best) == FAILED
    assert "refused as a start" in (read_failure(folder) or "")
    assert "bootstrap.gate = none" in (read_failure(folder) or "")
    assert "--force" not in (read_failure(folder) or "")
    assert "not above trivial" in read_result(tmp_path, child, WANTED).message


def test_a_start_without_a_checkpoint_is_begun_anew(cells: list[Cell], finished: Path, tmp_path: Path) -> None:
    write_cells(tmp_path, cells[:1])
    folder = open_folder(tmp_path, cells[0].id)
    shutil.copytree(open_folder(finished, cells[0].id).run.path, folder.run.path)
    shutil.rmtree(folder.run.path / "checkpoints")
    (folder.run.events_path).write_text("")
    assert run_cell(folder, WANTED) == DONE
    assert [e["event"] for e in folder.run.read_events()].count("started") == 1


def test_one_process_at_a_time(cells: list[Cell], tmp_path: Path) -> None:
    write_cells(tmp_path, cells[:1])
    folder = open_folder(tmp_path, cells[0].id)
    with hold_directory(folder.path):
        assert run_cell(folder, WANTED) == HELD
    assert not folder.run.path.exists()
    assert run_cell(CellFolder(tmp_path / "nowhere"), WANTED) == INVISIBLE


def test_a_cell_that_cannot_be_trained_says_why(cells: list[Cell], tmp_path: Path) -> None:
    missing = {**cells[0].config, "data": {**cells[0].config["data"], "root": str(tmp_path / "gone")}}
    write_cells(tmp_path, [replace(cells[0], config=missing)])
    folder = open_folder(tmp_path, cells[0].id)
    assert run_cell(folder, WANTED) == FAILED
    assert "gone" in (read_failure(folder) or "")
    assert read_result(tmp_path, cells[0], WANTED).status == "failed"


def test_images_that_changed_since_the_cells_were_made(cells: list[Cell], tmp_path: Path) -> None:
    write_cells(tmp_path, [replace(cells[0], fingerprint="0" * 16)])
    folder = open_folder(tmp_path, cells[0].id)
    assert run_cell(folder, WANTED) == FAILED
    assert "the images have changed" in (read_failure(folder) or "")


def test_a_full_disk_has_a_code_of_its_own(cells: list[Cell], tmp_path: Path) -> None:
    """A limit of the size of files is the nearest thing to a full disk that a test may make."""
    write_cells(tmp_path, cells[:1])
    folder = open_folder(tmp_path, cells[0].id)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert run_cell(folder, WANTED) == NO_SPACE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_result(tmp_path, cells[0], WANTED).status == "missing"


@pytest.mark.slow
def test_a_worker_whose_caller_dies_saves_its_state_and_another_goes_on(
    particles_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path / "spec.yaml", particles_dir, labels=[1.0], methods=["supervised"])
    from ssl_seg.config.layers import Layer

    long = Layer("--steps", {"settings": {"length": {"steps": 12, "steps_per_epoch": 6}}})
    cell = resolve_cells(read_spec(str(path), [long]), gpu=False)[0]
    write_cells(tmp_path / "out", [cell])
    folder = open_folder(tmp_path / "out", cell.id)
    process = start(folder, stop=(4, "orphaned"))
    wait_for(lambda: "waits\n" in folder.log.read_text(), process)
    process.stdin.close()  # what happens when the process that holds the other end is killed
    assert process.wait() == 130
    assert load_checkpoint(folder.run.last).progress.step == 4
    assert start(folder, stop=(8, "SIGKILL")).wait() == -signal.SIGKILL
    assert run_cell(folder, WANTED) == DONE  # the lock of a killed process is free
    assert folder.log.read_text().count("training from step 0 ") == 1
    assert "training from step 0 " not in capsys.readouterr().out
    assert read_result(tmp_path / "out", cell, WANTED).status == "done"


def start(folder: CellFolder, stop: tuple[int, str]) -> Program:
    folder.log.touch()
    return Program(stopping(WORKER, str(folder.path), "val", "best", "better", stop=stop), folder.log, folder.log)


def wait_for(condition: Callable[[], bool], process: Program) -> None:
    """Wait for the event, as long as the process that is to bring it runs."""
    while not condition():
        assert process.poll() is None, "it ended without"
        time.sleep(0.05)


def test_threads_and_gpus_are_shared_out() -> None:
    cores = count_cores()
    assert count_threads(1) == cores
    assert count_threads(10 * cores) == 1
    environment = make_environment({"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1"}, 3, "1")
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "3"
    assert (environment["PATH"], environment["CUDA_VISIBLE_DEVICES"]) == ("/bin", "1")
    assert make_environment({"CUDA_VISIBLE_DEVICES": "0,1"}, 1, None)["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_each_running_cell_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    sleepers: list[Sleeper] = []

    class Sleeper:
        ended = False

        def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
            seen.append(env.get("CUDA_VISIBLE_DEVICES"))
            sleepers.append(self)

        def poll(self) -> int | None:
            return 0 if self.ended else None

    monkeypatch.setattr(subprocess, "Popen", Sleeper)
    launcher = make_local_launcher(2, ("4", "7"))
    launcher.start(CellFolder(tmp_path), [])
    launcher.start(CellFolder(tmp_path), [])
    sleepers[0].ended = True
    launcher.start(CellFolder(tmp_path), [])
    assert seen == ["4", "7", "4"]
