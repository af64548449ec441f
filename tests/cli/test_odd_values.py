"""Odd values for every option of every command: one error with exit code 2, or the work is begun; never a traceback."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ssl_seg.cli.app import app
from ssl_seg.cli.main import main

WORK = [
    "ssl_seg.run.training.train", "ssl_seg.studies.label_ladder.climb_labels",
    "ssl_seg.studies.cross_validation.cross_validate",
    "ssl_seg.cli.demo._train", "ssl_seg.studies.ablation.resolve.resolve_cells",
    "ssl_seg.results.evaluation.evaluate", "ssl_seg.results.calibration.calibrate",
    "ssl_seg.results.prediction.predict", "ssl_seg.results.export.export",
    "ssl_seg.diagnose.checkpoint.diagnose_checkpoint",
    "ssl_seg.diagnose.predictions.diagnose_predictions", "ssl_seg.diagnose.loss_probe.probe_loss",
    "ssl_seg.run.resolve.resolve", "ssl_seg.run.pretraining.run.pretrain",
    "ssl_seg.data.audit.doctor.audit", "ssl_seg.data.catalog.open_catalog", "ssl_seg.data.synthetic.write_dataset",
]  # fmt: skip
"""Where the commands begin their work, with options that they have taken for good."""
ODD = ["0", "-1", "nan", "inf", "1e30", "", "a", "1,1", "1;1", "\N{ARABIC-INDIC DIGIT ONE}", "\x1b[31m", "9" * 30]
NUMBERS = {
    ("evaluate", "--overlap"): ["0"],
    ("predict", "--overlap"): ["0"],
    ("calibrate", "--overlap"): ["0"],
    ("evaluate", "--threshold"): [],
    ("predict", "--threshold"): [],
    ("predict", "--spacing"): ["1,1"],
    ("diagnose", "--seconds"): ["1e30", "9" * 30],
    ("diagnose", "--require-f1"): ["0"],
    ("ablate", "--labels"): None,
    ("probe-loss", "--batches"): [],
    ("data batches", "--n"): [],
    ("data synthetic", "--count"): [],
    ("data synthetic", "--labeled"): ["0"],
    ("data synthetic", "--seed"): ["0"],
    ("data synthetic", "--empty"): ["0"],
    ("demo", "--steps"): [],
}
"""Options of numbers that are read here, and which of the odd values they take."""
BASE = {
    "train": ["--data", "folder"],
    "ladder": ["--labels", "0.1", "1.0", "--data", "folder"],
    "ablate": ["label_fractions", "--dry-run"],
    "evaluate": ["good.pt"],
    "calibrate": ["good.pt"],
    "predict": ["good.pt", "images", "out"],
    "export": ["good.pt", "out.onnx"],
    "diagnose": ["good.pt"],
    "data audit": ["folder"],
    "data synthetic": ["out"],
    "split make": ["--data", "folder", "--out", "out.yaml"],
    "split check": ["split.yaml"],
    "config check": ["config.yaml"],
}


class Begun(BaseException):
    """The options were taken."""


def walk(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, sub in getattr(command, "commands", {}).items():
        yield from (
            walk(sub, f"{path} {name}".strip()) if hasattr(sub, "commands") else [(f"{path} {name}".strip(), sub)]
        )


OPTIONS = sorted(
    {
        (name, next(o for o in option.opts if o.startswith("--")))
        for name, command in walk(typer.main.get_command(app))
        for option in command.params
        if any(o.startswith("--") for o in option.opts) and not option.is_flag and option.name != "help"
    }
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line up to where the work begins; returns the exit code, None where it came so far, and stderr."""

    def begin(*_: object, **__: object) -> None:
        raise Begun

    for target in WORK:
        module, _, name = target.rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), name, begin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    for folder in ("folder", "images"):
        (tmp_path / folder).mkdir()
    (tmp_path / "good.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "config.yaml").write_text("{}")

    def call(*arguments: str) -> tuple[int | None, str]:
        monkeypatch.setattr(sys, "argv", ["ssl-seg", *arguments])
        code: int | None = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Begun:
            code = None
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("words", "behind"),
    [
        (("train", "--data", "", "--steps", "3"), "--data"),
        (("train", "--data="), "--data"),
        (("data", "audit", ""), "audit"),
        (("train", "--data", "folder", "--set=data.groups=none"), ""),
    ],
)
def test_an_empty_word_is_no_path(run: Any, words: tuple[str, ...], behind: str) -> None:
    code, err = run(*words)
    assert code == (2 if behind else None), err
    assert (f"the word behind {behind} is empty" in err) == bool(behind)


def test_the_table_names_options_that_are_there() -> None:
    assert set(NUMBERS) <= set(OPTIONS)
    assert len(OPTIONS) > 80


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[" ".join(o) for o in OPTIONS])
def test_odd_values(run: Any, command: str, option: str) -> None:
    taken = []
    for value in ODD:
        code, err = run(*command.split(), *BASE.get(command, []), option, value)
        assert code in (None, 0, 2), (value, code, err)
        if code == 2:
            assert err.count("error: ") + err.count(" Error ") == 1, (value, err)
            assert "\x1b[31m" not in err
        else:
            taken.append(value)
    expected = NUMBERS.get((command, option))
    if expected is not None:
        assert taken == [value for value in ODD if value in expected]
