"""The commands of the tutorials, of the README and of the notebook run as they are written, with smaller trainings."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Cli

from ssl_seg.data.synthetic import write_dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from run_tutorials import fill, read_commands, run_in  # noqa: E402

TUTORIALS = ROOT / "docs" / "tutorials"
TINY = {
    "network.name": "basic_unet",
    "network.features": 4,
    "batch.labeled": 2,
    "monitor.probe_patches": 4,
    "monitor.train_probe_patches": 2,
    "runtime.precision": "fp32",
    "runtime.memory_format": "contiguous",
}


def shrink(command: str) -> list[str]:
    """Return the words of a command; a training gets four steps and a network of four channels."""
    words = shlex.split(command.replace("\\\n", " "), comments=True)
    if words[1] == "diagnose" and "--seconds" not in words:
        words += ["--seconds", "10"]
    if words[1] not in ("train", "ladder"):
        return words
    if "--bootstrap" in words or words[1] == "ladder":
        words.append("--force")  # so few steps teach nothing, which the gate would say
    if "--bootstrap" not in words:
        patch = "[32,32,32]" if "scans" in words else "[32,32]"
        tiny = {**TINY, "data.patch_size": patch}
        words += [word for key, value in tiny.items() for word in ("--set", f"{key}={value}")]
    if "--steps" in words:
        words[words.index("--steps") + 1] = "4"
        return words
    return [*words, "--steps", "4"]


def run(command: str, cli: Cli, allowed: set[int]) -> None:
    if command.startswith("ssl-seg "):
        code, out, err = cli(*shrink(command)[1:])
        assert code in allowed, f"{command}\n{out}{err}"
    else:
        subprocess.run(["bash", "-c", command], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.stem for path in sorted(TUTORIALS.glob("*.md"))])
def test_the_commands_of_a_tutorial_run(name: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = read_commands((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"))
    assert len(commands) >= 3
    for command in commands:
        # Four steps may collapse or not, whatever the page shows: diagnose says so by its exit code.
        run(command.text, cli, {0, 3} if "diagnose" in command.text else {command.exit_code})


@pytest.mark.slow
def test_the_commands_of_the_readme_run(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_dataset(tmp_path / "my_data", "particles", 40, labeled=30)
    write_dataset(tmp_path / "new", "particles", 2, labeled=0, seed=1)
    (tmp_path / "new" / "images").rename("new_images")
    lines = (ROOT / "README.md").read_text(encoding="utf-8").split("\n")
    commands = [line for line in lines if line.startswith("ssl-seg ")]
    assert len(commands) >= 10
    for command in commands:
        run(command, cli, {0, 3} if "diagnose" in command else {0})


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient, of the extra docs, runs notebooks")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel, of the extra docs, is what notebooks run in")
    text = (TUTORIALS / "first_run.ipynb").read_text(encoding="utf-8")
    assert text.count("steps=40") == 1
    small = json.dumps(f"steps=4, settings={ {**TINY, 'data.patch_size': [32, 32]} }")[1:-1]
    notebook = nbformat.reads(text.replace("steps=40", small), as_version=4)
    nbformat.validate(notebook)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kernel = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    kernel.execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert "TrainedRun" in str(outputs)
    assert "image/png" in str(outputs)
    assert len(list((tmp_path / "masks_out").iterdir())) >= 3


def test_a_page_gets_the_output_of_its_commands() -> None:
    page = "a\n<!-- first 1, last 1 -->\n```console\n$ x \\\n  y\nold\n```\nb\n```console\n$ z\n```\n```\n$ no\n```\n"
    assert [(c.text, c.first, c.last, c.exit_code) for c in read_commands(page)] == [
        ("x \\\n  y", 1, 1, 0),
        ("z", None, 0, 0),
    ]
    filled = fill(page, lambda command: "1\n2\n3\n" if command.text[0] == "x" else "4\n5\n6")
    assert filled == page.replace("old\n", "1\n...\n3\n").replace("$ z\n", "$ z\n4\n5\n6\n")
    assert fill(filled, lambda _: "") != filled


def test_a_command_with_another_exit_code_ends_the_page(tmp_path: Path) -> None:
    (command,) = read_commands("<!-- exit 3 -->\n```console\n$ echo it; exit 3\n```\n")
    assert run_in(tmp_path, command) == "it\n"
    (command,) = read_commands("```console\n$ exit 3\n```\n")
    with pytest.raises(RuntimeError, match="exit code 3, not 0"):
        run_in(tmp_path, command)
