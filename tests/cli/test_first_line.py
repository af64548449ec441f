"""The first line comes before the network library: what can be known without it is said without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys(("torch", "monai", "lightning_fabric")))  # loading one of them is an error
from ssl_seg.cli.main import main

told = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["ssl-seg", *arguments]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code
        except ImportError:
            code = "loads torch"
    told.append([code, said.getvalue()])
print(json.dumps(told))
"""


def run_all(commands: list[list[str]], folder: Path) -> list[tuple[Any, str]]:
    """Return exit code and errors of commands that cannot load the network library."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)], cwd=folder, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return [(code, said) for code, said in json.loads(process.stdout)]


@pytest.fixture(scope="module")
def folder(tiny_run: Path, particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run ``run``, data ``data`` and what is no such thing."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "run").symlink_to(tiny_run)
    (folder / "data").symlink_to(particles_dir)
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    (folder / "broken.yaml").write_text("a: [")
    (folder / "ablation.yaml").write_text("methods: [supervised]\nlabels: [0.5]\n")
    return folder


ERRORS = [
    ("train --data none", "none does not exist"),
    ("train --set data.root=none", "none does not exist"),
    ("train --data data --split none.yaml", "no such split file"),
    ("train --data data --out full", "full exists already"),
    ("train --data data --config broken.yaml", "broken.yaml"),
    ("train --data data --config none.yaml", "none.yaml"),
    ("train --data data --set lr", "write key=value"),
    ("train --data data --steps 3 --epochs 3", "use one of them"),
    ("train --data data --bootstrap none", "none"),
    ("train --data data --folds 1", "at least 2 folds"),
    ("train --data none --folds 3 --fold all", "none does not exist"),
    ("train --data data --folds 3 --fold all --out full", "full exists already"),
    ("train --resume none", "no run directory none"),
    ("train --resume full", "is not a run directory"),
    ("train --resume run --data none", "none does not exist"),
    ("ladder --data none --labels 0.1 1.0", "none does not exist"),
    ("ladder --data data --labels 1.0 0.1", "each rung needs more labels"),
    ("ladder --data data --labels 0.1 1.0 --out full", "full exists already"),
    ("ladder --resume full", "is not a ladder"),
    ("ablate none.yaml", "none.yaml"),
    ("ablate ablation.yaml --data none", "none does not exist"),
    ("ablate ablation.yaml --data data --out full", "holds no ablation"),
]
LOADS = [
    "train --data data",
    "train --data data --bootstrap run",
    "train --resume run",
    "train --data data --folds 3 --fold all",
    "ladder --data data --labels 0.1 1.0",
    "ablate ablation.yaml --data data",
    "demo",
]


def test_errors_need_no_network_library(folder: Path) -> None:
    told = run_all([command.split() for command, _ in ERRORS], folder)
    for (command, text), (code, said) in zip(ERRORS, told, strict=True):
        assert code == 2, (command, code, said)
        assert "ssl-seg: error: " in said, command
        assert text in said, (command, said)
        assert "loading" not in said, command


def test_loading_is_announced(folder: Path) -> None:
    for command, (code, said) in zip(LOADS, run_all([command.split() for command in LOADS], folder), strict=True):
        assert code == "loads torch", (command, said)
        assert said.splitlines()[-1] == "loading PyTorch ...", (command, said)
