"""What a command says before the libraries of networks are loaded: its errors, or what it is loading."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = "import sys\nfor name in ('torch', 'monai', 'lightning_fabric'): sys.modules[name] = None\n"
"""Makes the import of torch fail at once, which is how the tests know that it was reached."""
MISTAKES = {
    "evaluate": [("nothing.pt",), ("folder",), ("text.pt",), ("good.pt", "--data", "nowhere"),
                 ("good.pt", "--split", "nowhere.yaml"), ("good.pt", "--test", "--all"), ("good.pt", "--overlap", "nan"),
                 ("good.pt", "--set", "data.label_values=x"), ("good.pt", "--figure", "there.png"),
                 ("good.pt", "--figure", "x.doc"), ("good.pt", "--figure", "text.pt/x.png"),
                 ("good.pt", "good.pt", "--figure", "x.png"), ("good.pt", "--which", "both")],
    "predict": [("nothing.pt", "folder", "out"), ("good.pt", "nowhere", "out"), ("good.pt", "folder", "text.pt"),
                ("good.pt", "folder", "out", "--spacing", "1"), ("good.pt", "folder", "out", "--threshold", "2"),
                ("good.pt", "text.pt", "out"), ("good.pt", "folder", "folder"),
                ("good.pt", "folder", "out", "--with", "nothing.pt")],
    "diagnose": [("nothing.pt",), (), ("good.pt", "--predictions", "folder"), ("--predictions", "nowhere"),
                 ("--predictions", "folder"), ("good.pt", "--seconds", "nan"), ("good.pt", "--require-f1", "2"),
                 ("good.pt", "--data", "nowhere"), ("good.pt", "--out", "text.pt")],
    "probe-loss": [("nowhere.yaml",), ("--data", "nowhere"), ("--checkpoint", "nothing.pt"), ("--set", "optim.lr=x"),
                   ("--set", "optim.lrr=1"), ("--batches", "0"), ("--figure", "there.png")],
    "data batches": [("nowhere.yaml",), ("--data", "nowhere"), ("--labels", "x"), ("--set", "optim.lr=.nan")],
    "data audit": [("nowhere",), ("folder", "--layout", "x"), ("folder", "--set", "optim.lr=1")],
    "split make": [("--data", "nowhere"), ("--data", "folder", "--labels", "x")],
    "split check": [("nowhere.yaml",), ("text.pt",)],
    "config show": [("nowhere.yaml",), ("--data", "nowhere"), ("--set", "optim.lr=-1")],
    "config check": [("nowhere.yaml",), ("text.pt",)],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "there.png").write_text("mine")
    (tmp_path / "good.pt").write_bytes(b"PK\x03\x04")
    return tmp_path


def run(folder: Path, *arguments: str, torch: bool = False) -> tuple[int, str, str]:
    code = f"{'' if torch else BLOCKED}import sys\nsys.argv = {['ssl-seg', *arguments]}\nfrom ssl_seg.cli import main\nmain()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "mistake"), [(command, mistake) for command, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_a_mistake_is_told_before_anything_is_loaded(folder: Path, command: str, mistake: tuple[str, ...]) -> None:
    before = sorted(folder.rglob("*"))
    code, out, err = run(folder, *command.split(), *mistake)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert err.count("error: ") + err.count("─ Error ─") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("evaluate", "good.pt"), "loading PyTorch and good.pt"),
        (("evaluate", "good.pt", "good.pt"), "loading PyTorch and 2 checkpoints"),
        (("diagnose", "good.pt"), "loading PyTorch and good.pt"),
        (("predict", "good.pt", "folder", "out"), "loading PyTorch and good.pt"),
        (("probe-loss", "--checkpoint", "good.pt"), "loading PyTorch and good.pt"),
        (("data", "batches"), "loading PyTorch"),
        (("config", "show"), "loading PyTorch"),
        (("methods",), "loading PyTorch"),
        (("data", "audit", "folder"), "reading the cases of folder"),
        (("split", "make", "--data", "folder"), "reading the cases of folder"),
    ],
)
def test_what_is_loaded_is_said_first(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    _, out, err = run(folder, *arguments)
    assert err.startswith(f"{words} ...\n")
    assert out == ""
