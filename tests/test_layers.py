"""Modules import from their own room and from the rooms above it, never from below and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ssl_seg"
ORDER = (
    "errors",
    "files",
    "labels",
    "config",
    "data",
    "networks",
    "losses",
    "scores",
    "methods",
    "monitor",
    "inference",
    "engine",
    "run",
    "results",
    "studies",
    "diagnose",
    "report",
    "cli",
)
"""From top to bottom, one name a level."""
WITHOUT_TORCH = (
    "report",
    "studies.ablation.spec",
    "studies.ablation.summary",
    "studies.ablation.stats",
    "config",
    "cli.app",
)
"""Rooms and modules that must start quickly: none of their modules loads torch when it is imported."""


def name_module(path: Path, package: Path) -> str:
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(("ssl_seg", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def list_modules(package: Path) -> dict[str, Path]:
    return {name_module(path, package): path for path in sorted(package.rglob("*.py"))}


def list_imports(path: Path, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ssl_seg":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module


def find_breaches(package: Path) -> list[str]:
    """Return the imports that point from a room to one below it."""
    modules = list_modules(package)
    breaches = []
    for name, path in modules.items():
        if "." not in name or name == "ssl_seg.__main__":
            continue
        room = name.split(".")[1]
        for imported in list_imports(path, modules):
            other = imported.split(".")[1] if "." in imported else None
            if other is not None and ORDER.index(other) > ORDER.index(room):
                breaches.append(f"{name} imports {imported}")
    return breaches


def find_circle(package: Path) -> list[str]:
    """Return modules that import each other in a circle; the package itself only hands names out."""
    modules = list_modules(package)
    graph = {
        name: {i for i in list_imports(path, modules) if i not in (name, "ssl_seg")}
        for name, path in modules.items()
        if name != "ssl_seg"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_entry_has_a_level() -> None:
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__", "__main__"} == set(ORDER)
    assert len(ORDER) <= 18


def test_imports_point_up() -> None:
    assert find_breaches(PACKAGE) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert find_circle(PACKAGE) == []


def test_breaches_and_circles_are_seen(tmp_path: Path) -> None:
    for name, text in {
        "losses.a": "from ssl_seg.engine.engine import Engine\n",
        "engine.engine": "Engine = 1\n",
        "data.a": "def f():\n    from ssl_seg.data import b\n",
        "data.b": "import ssl_seg.data.a\n",
    }.items():
        path = tmp_path / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert find_breaches(tmp_path) == ["ssl_seg.losses.a imports ssl_seg.engine.engine"]
    assert set(find_circle(tmp_path)) == {"ssl_seg.data.a", "ssl_seg.data.b"}


@pytest.mark.parametrize(
    "part", [p for p in PACKAGE.rglob("*") if p.is_dir() and (p / "__init__.py").is_file()], ids=lambda p: p.name
)
def test_every_folder_says_what_is_inside(part: Path) -> None:
    docstring = ast.get_docstring(ast.parse((part / "__init__.py").read_text()))
    assert docstring
    assert docstring.splitlines()[0].endswith(".")


def test_quick_modules_do_not_load_torch() -> None:
    names = [
        n for n in list_modules(PACKAGE) if any(f"{n}.".startswith(f"ssl_seg.{quick}.") for quick in WITHOUT_TORCH)
    ]
    assert len(names) > 10
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        "    importlib.import_module(name)\n    assert 'torch' not in sys.modules, name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_that_loads_torch_is_seen() -> None:
    code = "import ssl_seg.networks.average, sys; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
