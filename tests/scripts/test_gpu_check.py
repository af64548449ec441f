"""scripts/gpu_check.py: its list, in miniature, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gpu_check
import pytest

from ssl_seg.config.layers import merge_layers
from ssl_seg.methods import METHODS
from ssl_seg.networks.builders import NETWORKS
from ssl_seg.studies.ablation.spec import layers_of, list_cells, read_spec


def test_the_table_of_steps_has_every_method_and_every_network() -> None:
    settings = [row for _, _, row in gpu_check.list_trials("a", "b", small=False)]
    assert {row["method.name"] for row in settings} == set(METHODS)
    assert {row.get("network.name") for row in settings} == {None, *NETWORKS}


@pytest.mark.slow
def test_the_steps_in_miniature(
    tmp_path: Path, particles_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = gpu_check.list_trials(str(particles_dir), str(particles_dir), small=True)
    monkeypatch.setattr(gpu_check, "list_trials", lambda *_, **__: rows[1:2])
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(tmp_path), "--small", "--parts", "steps"])
    gpu_check.main()
    (row,) = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert row["of"] == "2D default mean_teacher"
    assert row["ready_ms"] > 0
    assert 0 <= row["waiting"] < 1
    assert row["to_bare"] > 0
    assert "2D default mean_teacher" in capsys.readouterr().out


@pytest.mark.parametrize("name", gpu_check.ABLATIONS.values())
def test_ablations_in_miniature_can_be_read(name: str, tmp_path: Path) -> None:
    spec = read_spec(gpu_check.write_small_spec(name, tmp_path / "small.yaml"))
    assert 1 <= len(list_cells(spec)) <= 4
    settings = merge_layers(layers_of(spec, list_cells(spec)[0])).values
    assert settings["length"]["steps"] == 4


def test_arms_and_their_scores_are_told() -> None:
    arm = {"labels": 4, "method": "cps", "recipe": "plain"}
    table = {"summary": {"arms": [{"arm": arm, "scores": [0.5, 0.75], "against": None}]}}
    assert "4 cps plain" in gpu_check.describe_ablation({"of": "x", "table": table})
    assert "mean 0.625 of 0.500 0.750" in gpu_check.describe_ablation({"of": "x", "table": table})
    assert gpu_check.describe_ablation({"of": "x", "table": "no cells"}) == "x: no cells"
