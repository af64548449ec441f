"""Which settings two runs or configurations do not share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Cli, train_tiny

from ssl_seg.errors import SslSegError
from ssl_seg.run.differences import ABSENT, PLANNED, SettingChange, compare_settings


def write(path: Path, **sections: object) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def test_a_default_that_is_written_out_is_no_difference(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", ema={"decay": 0.99}, seed=3)
    assert compare_settings(a, b) == [SettingChange("seed", 0, 3)]
    assert compare_settings(b, b) == []


def test_a_preset_is_what_it_stands_for(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", loss={"preset": "focal_dice"})
    b = write(tmp_path / "b.yaml", loss={"weights": {"focal": 0.7, "dice": 0.3}})
    assert compare_settings(a, b) == []


def test_what_only_one_side_has(tmp_path: Path) -> None:
    phase = {"from_epoch": 3, "weights": {"dice": 1.0}}
    a = write(tmp_path / "a.yaml", loss={"weights": {"dice": 1.0}})
    b = write(
        tmp_path / "b.yaml", loss={"weights": {"dice": 1.0}, "phases": [phase]}, policies={"swa": {"start_epoch": 2}}
    )
    assert compare_settings(a, b) == [
        SettingChange("loss.phases.0.from_epoch", ABSENT, 3),
        SettingChange("loss.phases.0.weights.dice", ABSENT, 1.0),
        SettingChange("loss.phases.0.blend_epochs", ABSENT, 0),
        SettingChange("policies.swa.start_epoch", ABSENT, 2),
        SettingChange("policies.swa.every_epochs", ABSENT, 1),
    ]


def test_a_number_of_cases_is_shown_as_it_was_given(tmp_path: Path) -> None:
    a, b = (write(tmp_path / name, split={"labels": labels}) for name, labels in (("a.yaml", 4), ("b.yaml", 0.5)))
    assert [change.shown for change in compare_settings(a, b)] == [("4", "0.5")]
    assert [change.shown for change in compare_settings(b, write(tmp_path / "c.yaml"))] == [("0.5", "1.0")]


def test_null_beside_a_value(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", optim={"clip_norm": None})
    assert compare_settings(a, b) == [SettingChange("optim.clip_norm", 12.0, None)]


def test_what_a_file_leaves_to_the_plan(tmp_path: Path, tiny_run: Path) -> None:
    a, b = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", batch={"labeled": 2})
    assert compare_settings(a, b) == [SettingChange("batch.labeled", PLANNED, 2)]
    by_name = {item.setting: item for item in compare_settings(b, tiny_run)}
    assert by_name["data.channels"] == SettingChange("data.channels", PLANNED, 1)
    assert "batch.labeled" not in by_name
    assert "split.yaml" not in by_name  # a file has no split


def test_runs_show_their_start_and_their_split(tmp_path: Path, tiny_run: Path, particles_dir: Path) -> None:
    child = train_tiny(
        tmp_path / "child", particles_dir, {"split": {"labels": 0.5}}, bootstrap=tiny_run / "checkpoints/best.pt",
        force=True,
    ).run.path  # fmt: skip
    start, *others = compare_settings(tiny_run, child)
    assert (start.setting, start.a, others) == ("--bootstrap", None, [])
    assert str(tiny_run) in start.b
    assert "of step" in start.b
    other = shutil.copytree(tiny_run, tmp_path / "other")
    shutil.copy(Path(__file__).parents[2] / "data_splits" / "emps_seed0.yaml", other / "split.yaml")
    assert [item.setting for item in compare_settings(tiny_run, other)] == ["split.yaml"]


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_neither_a_run_nor_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SslSegError, match=r"nowhere|not a run directory"):
        compare_settings("emps", place)


def test_the_command(cli: Cli, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.yaml"), write(tmp_path / "b.yaml", data={"patch_size": [64, 32]}, seed=1)
    code, out, _ = cli("config", "diff", a, b)
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["seed", "0", "1"] in rows
    assert any(row[0] == "data.patch_size" and row[-2:] == ["[64,", "32]"] for row in rows)
    assert yaml.safe_load(cli("config", "diff", a, b, "--json")[1])["differences"][0] == {
        "setting": "seed", "a": 0, "b": 1,
    }  # fmt: skip
    assert cli("config", "diff", a, a)[1] == f"no setting differs between {a} and {a}\n"
