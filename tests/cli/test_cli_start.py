"""What a command says before the libraries of networks are loaded: its errors, or what it is loading."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LOOP = """
import contextlib, io, json, os, sys
for name in ("torch", "monai", "lightning_fabric"):  # their import fails at once, which shows that it was reached
    sys.modules[name] = None
from ssl_seg.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["ssl-seg", *arguments]
    before = sorted(os.walk("."))
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            code = f"Traceback of {error!r}"
    print(json.dumps([code, out.getvalue(), err.getvalue(), sorted(os.walk(".")) == before]))
"""
"""Runs command lines one after the other in a process without torch."""
MISTAKES = {
    "evaluate": [("nothing.pt",), ("folder",), ("text.pt",), ("good.pt", "--data", "nowhere"),
                 ("good.pt", "--split", "nowhere.yaml"), ("good.pt", "--test", "--all"),
                 ("good.pt", "--overlap", "nan"),
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
    "suggest": [("nothing.pt",), ("good.pt", "--data", "nowhere"), ("good.pt", "--csv", "x.txt"),
                ("good.pt", "--figure", "there.png"), ("good.pt", "--copy", "folder")],
    "probe-loss": [("nowhere.yaml",), ("--data", "nowhere"), ("--checkpoint", "nothing.pt"),
                   ("--set", "optim.lr"), ("--batches", "0"), ("--figure", "there.png")],
    "data batches": [("nowhere.yaml",), ("--data", "nowhere"), ("--labels", "x")],
    "data audit": [("nowhere",), ("folder", "--layout", "x"), ("folder", "--set", "optim.lr=1")],
    "split make": [("--data", "nowhere"), ("--data", "folder", "--labels", "x")],
    "split check": [("nowhere.yaml",), ("text.pt",)],
    "config show": [("nowhere.yaml",), ("--data", "nowhere")],
    "config check": [("nowhere.yaml",), ("text.pt",)],
}  # fmt: skip


LOADED = [
    ("evaluate good.pt", "loading PyTorch and good.pt"),
    ("evaluate good.pt good.pt", "loading PyTorch and 2 checkpoints"),
    ("diagnose good.pt", "loading PyTorch and good.pt"),
    ("predict good.pt folder out", "loading PyTorch and good.pt"),
    ("suggest good.pt", "loading PyTorch and good.pt"),
    ("probe-loss --checkpoint good.pt", "loading PyTorch and good.pt"),
    ("data batches", "loading PyTorch"),
    ("config show", "loading PyTorch"),
    ("methods", "loading PyTorch"),
    ("data audit folder", "reading the cases of folder"),
    ("split make --data folder", "reading the cases of folder"),
]
ROWS = [(*command.split(), *mistake) for command, mistakes in MISTAKES.items() for mistake in mistakes]
Result = tuple[int | str, str, str, bool]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Result]:
    """Exit code, stdout and stderr of each command line, and whether the folder is as it was."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "folder").mkdir()
    (folder / "text.pt").write_text("no checkpoint")
    (folder / "there.png").write_text("mine")
    (folder / "good.pt").write_bytes(b"PK\x03\x04")
    commands = [*ROWS, *(tuple(text.split()) for text, _ in LOADED)]
    done = subprocess.run(
        [sys.executable, "-c", LOOP, json.dumps(commands)], capture_output=True, text=True, cwd=folder, check=True
    )
    lines = map(json.loads, done.stdout.splitlines())
    return {command: tuple(line) for command, line in zip(commands, lines, strict=True)}


@pytest.mark.parametrize("command", ROWS, ids=" ".join)
def test_a_mistake_is_told_before_anything_is_loaded(
    results: dict[tuple[str, ...], Result], command: tuple[str, ...]
) -> None:
    code, out, err, is_unchanged = results[command]
    assert (code, out, is_unchanged) == (2, "", True), err
    assert err.count("error: ") + err.count(" Error ") == 1


@pytest.mark.parametrize(("command", "words"), LOADED)
def test_what_is_loaded_is_said_first(results: dict[tuple[str, ...], Result], command: str, words: str) -> None:
    _, out, err, _ = results[tuple(command.split())]
    assert (out, err.splitlines()[0]) == ("", f"{words} ...")
