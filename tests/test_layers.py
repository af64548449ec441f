"""A module imports only from its own layer or from layers to the left of it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "ssl_seg"
LAYERS = [
    {"errors", "machine"},
    {
        "labels",
        "config",
        "configio",
        "config_hints",
        "presets",
        "schedules",
        "losses",
        "metrics",
        "intervals",
        "pace",
        "rundir",
        "checkpoint",
    },
    {"data", "encoders", "networks", "network_parts", "precision"},
    {"methods"},
    {"monitor", "inference"},
    {"engine"},
    {
        "plan",
        "bootstrap",
        "transfer",
        "series",
        "sources",
        "lint",
        "preflight",
        "prepare",
        "pretraining",
        "resources",
        "resume",
        "curves",
        "recorder",
        "final_scores",
        "finish",
        "training",
        "evaluation",
        "seal",
        "prediction",
        "mask_files",
        "diagnose",
        "batch_audit",
        "loss_probe",
    },
    {"ablation", "report"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def top_level_name(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "ssl_seg" and len(parts) > 1 else None


def imported_modules(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{a.name}" for a in node.names] if node.module == "ssl_seg" else [node.module]
    return names


def layer_breaches(path: Path) -> list[str]:
    here = path.relative_to(ROOT).parts[0].removesuffix(".py")
    breaches = [
        f"{path.name} imports {module}"
        for module in imported_modules(path)
        if (name := top_level_name(module)) and name in LEVEL and LEVEL[name] > LEVEL[here]
    ]
    if here in {"report", "ablation"}:
        breaches += [f"{path.name} imports torch" for m in imported_modules(path) if m.split(".")[0] == "torch"]
    return breaches


MODULES = [p for p in sorted(ROOT.rglob("*.py")) if p.parent != ROOT or p.name not in {"__init__.py", "__main__.py"}]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    assert path.relative_to(ROOT).parts[0].removesuffix(".py") in LEVEL, "new module: give it a layer"
    assert layer_breaches(path) == []


def test_a_breach_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = tmp_path / "losses.py"
    bad.write_text("from ssl_seg.engine.engine import Engine\n")
    monkeypatch.setattr("test_layers.ROOT", tmp_path)
    assert layer_breaches(bad) == ["losses.py imports ssl_seg.engine.engine"]
