"""``ssl-seg report`` from the command line: what it writes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Cli
from page_cases import make_collapsed, make_healthy


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_seg.report.figures.to_svg", lambda _: "<svg></svg>")


def test_several_runs_are_compared_in_their_common_folder(cli: Cli, tmp_path: Path) -> None:
    runs = make_healthy(tmp_path / "r" / "a"), make_collapsed(tmp_path / "r" / "b")
    code, shown, _ = cli("report", *runs)
    assert (code, shown) == (0, f"wrote {tmp_path / 'r' / 'comparison.html'}\n")
    text = (tmp_path / "r" / "comparison.html").read_text()
    assert "a: Healthy" in text
    assert "b: Collapsed at step 6" in text
    assert cli("report", *runs, "--out", tmp_path / "new" / "x.html")[0] == 0
    assert (tmp_path / "new" / "x.html").is_file()


def test_what_is_no_run_is_one_message_and_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    run, mine = make_healthy(tmp_path / "run"), tmp_path / "mine.html"
    mine.write_text("<html>")
    for arguments, said in (
        ((tmp_path / "none",), "no run directory"),
        ((tmp_path,), "is not a run directory: it has no config.yaml"),
        ((run, run), "is named twice"),
        ((run, "--out", tmp_path / "a.pdf"), "name a file such as a.html"),
        ((run, "--out", "."), "name a file such as report.html"),
        ((run, "--out", mine), "is not overwritten"),
        ((run, "--out", mine / "a.html"), "is a file"),
    ):
        code, shown, errors = cli("report", *arguments)
        assert (code, shown) == (2, "")
        assert said in errors
        assert "Traceback" not in errors
