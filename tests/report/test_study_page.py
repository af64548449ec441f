"""Pages of several trainings: the table of the command that trained them, and their verdicts."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from page_cases import CASES, make_collapsed, make_dice_score, make_healthy

from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.report import comparison_page
from ssl_seg.report.comparison_page import make_comparison_page
from ssl_seg.report.page import Page, render_page
from ssl_seg.report.run_record import read_run
from ssl_seg.report.run_report import write_report_page
from ssl_seg.report.study_page import is_study, make_study_page
from ssl_seg.results.folds import FOLDS, CrossValidation, Fold
from ssl_seg.results.study import save_study
from ssl_seg.run.final_scores import summarize_network
from ssl_seg.scores.intervals import Difference
from ssl_seg.studies.rungs import LADDER, LabelLadder, Rung

RESULTS = {
    "summary": {"warnings": ["few cases"]},
    "table": {"text": "Score: F1.", "columns": ["method", "labels"], "rows": [["a|b", "8 cases"], ["c", "8 cases"]]},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_seg.report.figures.to_svg", lambda _: "<svg></svg>")


def rows(page: Page) -> list[tuple[str, ...]]:
    return [row for section in page.sections for table in section.tables for row in table.rows]


def states(page: Page) -> dict[str, str]:
    return {name: banner.state for section in page.sections for name, banner in section.banners}


def test_a_ladder_has_its_rungs_and_their_verdicts(tmp_path: Path) -> None:
    scores = {net: summarize_network(make_dice_score([0.8] * 12)) for net in ("student", "teacher")}
    first = Rung(1, 0.1, 2, status="done", net="teacher", scores=scores, kept=True)
    second = Rung(
        2, 0.5, 9, status="collapsed", parent=1, net="student", scores=scores, difference=Difference(0.1, 0.05, 0.2)
    )
    ladder = LabelLadder(tmp_path, (), (first, second, Rung(3, 1.0, 20)), ending="collapsed")
    save_study(LADDER, ladder)
    make_healthy(tmp_path / first.name)
    make_collapsed(tmp_path / second.name)
    page = make_study_page(tmp_path)
    assert [row[0] for row in rows(page)] == ["1", "2", "3"]
    assert rows(page)[1][-3:-1] == ("+0.100", "+0.050 .. +0.200")
    assert states(page) == {first.name: "healthy", second.name: "collapsed"}
    assert any(f"Not started, or not readable: {ladder.trainings[2].name}" in note for note in page.sections[0].notes)
    assert write_report_page([tmp_path]) == tmp_path / "report.html"


def test_a_cross_validation_has_its_folds_and_the_score_out_of_fold(tmp_path: Path) -> None:
    for number in range(2):
        make_healthy(tmp_path / f"fold{number}")
    score = make_dice_score([0.7] * 12)
    folds = tuple(Fold(n, 12, 2, "done", "teacher", (), {"student": score, "teacher": score}) for n in range(2))
    save_study(FOLDS, CrossValidation(tmp_path, (), folds, ending="finished"))
    page = make_study_page(tmp_path)
    assert [row[0] for row in rows(page)] == ["0", "1", "mean", "sd", "out of fold"]
    assert set(states(page).values()) == {"healthy"}
    save_study(FOLDS, CrossValidation(tmp_path, (), (folds[0], replace(folds[1], status="waiting", scores={}))))
    so_far = make_study_page(tmp_path)
    assert [(row[0], row[2], row[-1]) for row in rows(so_far)] == [("0", "0.700", "ok"), ("1", "-", "waiting")]
    render_page(so_far)


def test_pages_of_the_trainings_are_linked_where_they_are_and_else_their_command_is_given(tmp_path: Path) -> None:
    folds = tuple(Fold(n, 12, 2) for n in range(2))
    save_study(FOLDS, CrossValidation(tmp_path, (), folds))
    for fold in folds:
        make_healthy(tmp_path / fold.name)
    (tmp_path / "fold1" / "report.html").touch()
    links, command = ('<a href="fold1/report.html">', '<a href="fold0/report.html">'), f"ssl-seg report {tmp_path}/fold"
    text = write_report_page([tmp_path]).read_text()
    assert [link in text for link in links] == [True, False]
    assert [f"{command}{n}" in text for n in range(2)] == [True, False]
    elsewhere = write_report_page([tmp_path], tmp_path / "fold0" / "other.html").read_text()
    assert "<a href" not in elsewhere
    assert f"{command}1" in elsewhere


def test_an_ablation_has_the_table_and_the_figures_of_its_command(tmp_path: Path) -> None:
    (tmp_path / "ABLATION.txt").touch()
    assert is_study(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "scores.png").write_bytes(b"png")
    make_healthy(tmp_path / "cells" / "abc" / "run")
    (tmp_path / "cells" / "abc" / "cell.json").write_text('{"name": "method_8"}')
    scores = tmp_path / "cells" / "abc" / "run" / "scores.json"
    os.utime(scores, (0, 0))
    page = make_study_page(tmp_path)
    assert rows(page) == [("a|b", "8 cases"), ("c", "8 cases")]
    assert page.sections[0].tables[0].columns == ("method", "labels")
    assert page.sections[0].tables[0].text == "Score: F1."
    assert page.sections[0].notes == ("few cases",)
    (figure,) = page.sections[1].drawings
    assert figure.html == '<img src="data:image/png;base64,cG5n" alt="Score over labels">'
    assert figure.caption.startswith("Line: mean over runs")
    assert states(page) == {"method_8 (abc)": "healthy"}
    scores.touch()
    os.utime(tmp_path / "results.json", (0, 0))
    assert make_study_page(tmp_path).sections[0].notes[1].startswith("1 training has ended since")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "without tables yet"), ("{", "holds no tables"), ('{"summary": {"warnings": []}}', "'table'")],
)
def test_an_ablation_without_usable_results_says_what_writes_them(
    tmp_path: Path, content: str | None, message: str
) -> None:
    (tmp_path / "ABLATION.txt").touch()
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(RunDirError, match=f"{message}.*with --report"):
        make_study_page(tmp_path)


def test_a_study_is_not_one_of_several_runs(tmp_path: Path) -> None:
    (tmp_path / "ABLATION.txt").touch()
    with pytest.raises(ConfigError, match="give it alone"):
        write_report_page([make_healthy(tmp_path / "run"), tmp_path])


def test_the_folder_of_a_diagnosis_has_its_page_already(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"no config\.yaml"):
        write_report_page([tmp_path])
    (tmp_path / "report.html").touch()
    with pytest.raises(RunDirError, match=r"holds no run; its page is there already, open .*report\.html"):
        write_report_page([tmp_path])


@pytest.mark.parametrize("most", [1, 2, 3])
def test_of_many_runs_those_that_are_ill_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(comparison_page, "MOST_RUNS", most)
    ids = CASES[:9]
    runs = [make_healthy(tmp_path / "a", ids=ids), make_collapsed(tmp_path / "b"), make_collapsed(tmp_path / "c")]
    page = make_comparison_page([read_run(run) for run in runs])
    assert list(states(page)) == {1: ["b"], 2: ["b", "c"], 3: ["a", "b", "c"]}[most]
    assert page.sections[0].notes[:1] == {
        1: ("1 of 3 runs are healthy. The first 1 of the others:",), 2: ("1 of 3 runs are healthy.",), 3: (),
    }[most]  # fmt: skip
