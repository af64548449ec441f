from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY
from forking import run as run_program
from test_cli import assert_refused

from ssl_seg.files import write_json
from ssl_seg.studies.ablation.cells import open_folder, write_cells
from ssl_seg.studies.ablation.resolve import resolve_cells
from ssl_seg.studies.ablation.spec import ScoreConfig, read_spec

Cli = Any
SCORE = {"collapsed": False, "codes": [], "net": "student", "step": 4, "seconds": 1.0, "counts": [[[5, 5, 5, 5]]] * 4}


@pytest.fixture
def spec(tmp_path: Path, particles_dir: Path) -> Path:
    settings = {**TINY, "data": {**TINY["data"], "root": str(particles_dir)}, "length": {"steps": 4}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"settings": settings, "labels": [0.5], "split_seeds": [0, 1]}))
    return path


def test_a_dry_run_lists_the_cells_and_writes_nothing(cli: Cli, spec: Path, tmp_path: Path) -> None:
    code, out, _ = cli("ablate", spec, "--dry-run", "--out", tmp_path / "out", "--labels", 0.2, 1.0)
    assert code == 0
    assert out.count("missing") == 8
    assert "mean_teacher 0.2 split 1 seed 0" in out
    assert not (tmp_path / "out").exists()


def test_seeds_are_an_axis(cli: Cli, spec: Path) -> None:
    code, out, _ = cli("ablate", spec, "--dry-run", "--seeds", "3,5")
    assert code == 0
    assert [out.count(f"seed {seed} ") for seed in (3, 5, 0)] == [4, 4, 0]
    assert_refused(cli("ablate", spec, "--dry-run", "--seeds", "0,x"), "'x' is not a whole number")


@pytest.mark.parametrize(
    "arguments",
    [
        "SPEC --labels 2 8 --seeds 3 5",
        "--labels=2 8 --seeds 3, 5 SPEC",
        "--seeds 3,5 SPEC --labels 2 , 8",
        "SPEC --labels 2 --seeds 3 5 --labels 8",
    ],
)
def test_labels_and_seeds_keep_apart_however_they_are_written(cli: Cli, spec: Path, arguments: str) -> None:
    expected = cli("ablate", spec, "--dry-run", "--labels", "2,8", "--seeds", "3,5")
    words = [spec if word == "SPEC" else word for word in arguments.split()]
    assert cli("ablate", *words, "--dry-run") == expected
    assert (expected[0], expected[1].count(" seed 5")) == (0, 8)


def test_the_directory_is_named_after_file_and_data(
    cli: Cli,
    spec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(cli("ablate", spec, "--report"), "runs/tiny_particles holds none")
    assert_refused(
        cli("ablate", spec, "--report", "--data", "synthetic:particles"), "runs/tiny_synthetic-particles holds"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["label_fraction"], ["label_fractions"]),
        (["SPEC", "0.5"], ["unexpected extra argument", "0.5"]),
        (["SPEC", "--set", "optim.lrr=1"], ["optim.lrr", "optim.lr"]),
        (["SPEC", "--ray", "127.0.0.1:1"], ["no Ray cluster answers", "127.0.0.1:1"]),
        (["SPEC", "--workers", "2", "--ray", "auto"], ["--workers", "with --ray it does nothing"]),
        (["SPEC", "--gpus-per-cell", "1"], ["--ray"]),
        (["SPEC", "--data", "/nowhere"], ["/nowhere"]),
        (["SPEC", "--labels", "7", "0.5"], ["mixes"]),
        (["SPEC", "--labels", "0.1,many"], ["'many' must be a number above 0"]),
        (["SPEC", "--report"], ["holds none of the 4 cells"]),
    ],
)
def test_bad_input(cli: Cli, spec: Path, tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    chosen = [str(spec) if a == "SPEC" else a for a in arguments]
    assert_refused(cli("ablate", *chosen, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


def test_the_cells_of_another_kind_of_machine_are_found(
    cli: Cli,
    spec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU batches are planned larger: such cells have other ids."""
    values = yaml.safe_load(spec.read_text())
    del values["settings"]["batch"]
    spec.write_text(yaml.safe_dump(values))
    out = tmp_path / "out"
    cells = resolve_cells(read_spec(str(spec)), gpu=False)
    write_cells(out, cells, gpu=False)
    for cell in cells:
        write_json(open_folder(out, cell.id).score(ScoreConfig()), SCORE)
    monkeypatch.setattr("ssl_seg.cli.ablate._find_gpus", lambda: ["0"])
    assert cli("ablate", spec, "--report", "--out", out)[0] == 0
    assert {row["status"] for row in csv.DictReader((out / "results.csv").open())} == {"done"}
    (out / "machine.json").unlink()
    assert_refused(cli("ablate", spec, "--report", "--out", out), "holds none of the 4 cells")


def test_cells_that_a_gate_has_ended_are_named_with_exit_code_3(cli: Cli, spec: Path, tmp_path: Path) -> None:
    out, cells = tmp_path / "out", resolve_cells(read_spec(str(spec)), gpu=False)
    write_cells(out, cells, gpu=False)
    for cell in cells:
        broken = ["BROKEN: val/student/f1 above 2"] if cell == cells[0] else []
        write_json(open_folder(out, cell.id).score(ScoreConfig()), {**SCORE, "broken_gates": broken})
    code, printed, _ = cli("ablate", spec, "--report", "--out", out)
    assert code == 3
    assert f"refused: {cells[0].id}" in printed
    assert "above 2" in printed
    assert "1 cell is in the means though a gate has ended" in printed


@pytest.mark.parametrize(("pause", "expected"), [(0.0, True), (300.0, False)])
def test_tables_and_page_are_written_on_the_way(
    cli: Cli, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float, expected: bool
) -> None:
    monkeypatch.setattr("ssl_seg.report.run_report.PAGE_SECONDS", pause)
    out, cells = tmp_path / "out", resolve_cells(read_spec(str(spec)), gpu=False)
    write_cells(out, cells, gpu=False)
    for cell in cells:
        write_json(open_folder(out, cell.id).score(ScoreConfig()), SCORE)
    code, _, errors = cli("ablate", spec, "--out", out)  # the page at the end is left out in tests
    assert code == 0
    assert (f"report: {out / 'report.html'}, updated every few minutes" in errors) == expected
    assert (out / "report.html").is_file() == expected
    assert not expected or "mean_teacher" in (out / "report.html").read_text()


def test_a_schedulers_signal_is_an_interrupt(
    cli: Cli, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def be_stopped(*_: object) -> str:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            return "interrupted"
        return "finished"

    monkeypatch.setattr("ssl_seg.studies.ablation.execute.execute", be_stopped)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        code, _, errors = cli("ablate", spec, "--out", tmp_path / "out")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, "Run the same command to resume" in errors) == (130, True)


KILLED_IN_THE_SECOND_CELL = """
import os, pathlib, signal, sys
from ssl_seg.studies.ablation import execute
from ssl_seg.cli.main import main

start_ready = execute._Work.start_ready

def start_and_die(self):
    start_ready(self)
    out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
    if list(out.glob("cells/*/score_*.json")):
        os.kill(os.getpid(), signal.SIGKILL)

execute._Work.start_ready = start_and_die
main()
"""


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_where_it_was(cli: Cli, spec: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(spec.read_text())
    spec.write_text(yaml.safe_dump({**values, "split_seeds": [0]}))  # a cell of each method, one after the other
    out = tmp_path / "out"
    command = ["ablate", str(spec), "--out", str(out), "--workers", "1", "--json"]
    first = run_program(["-c", KILLED_IN_THE_SECOND_CELL, *command], tmp_path)
    assert first.returncode == -signal.SIGKILL
    written = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/score_*.json")}
    assert len(written) == 1
    code, output, errors = cli(*command)
    assert code == 0, errors
    assert {path: path.stat().st_mtime_ns for path in written} == written
    for path in written:
        assert path.parent.name not in errors  # it was not started
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["status"] for row in rows] == ["done"] * 2
    values = json.loads(output)
    assert values == json.loads((out / "results.json").read_text())
    arms = {arm["arm"]["method"]: arm for arm in values["summary"]["arms"]}
    for method, arm in arms.items():
        scores = [float(row["dice"]) for row in rows if row["method"] == method]
        assert arm["mean"]["value"] == pytest.approx(scores[0], abs=1e-6)
    assert (out / "table.md").read_text().count("mean_teacher") >= 1
    assert r"\toprule" in (out / "table.tex").read_text()
