"""What a terminal shows of a training, and that pipes and train.log keep their lines."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from sizes import around

from ssl_seg.cli.console import DETAILS, TerminalConsole, begin, format_plan, wrap
from ssl_seg.cli.train_view import (
    BLOCKS,
    LEAST_RANGE,
    SPARKS,
    TrainingView,
    describe_looks,
    describe_time_left,
    format_header,
    format_row,
    spark,
)
from ssl_seg.config.layers import Layer
from ssl_seg.monitor.catalog import CODES
from ssl_seg.run.console import show_look, show_plan
from ssl_seg.run.directory import LOG_FILE, RunDir
from ssl_seg.run.plan import Planned
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

PLAN = [Planned("optim.lr", 0.001, "measured"), Planned("data.label_values", [0, 255], "values found in 366 masks")]
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


def use_terminal(monkeypatch: pytest.MonkeyPatch, name: str = "xterm") -> None:
    """Let both streams be a terminal of 80 columns."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", name)


def make_record(**values: Any) -> dict[str, Any]:
    nets = {
        f"val/{net}/{key}": value
        for net in ("student", "teacher")
        for key, value in {"f1": 0.612, "loss": 0.5, "logit_mean": -1.5, "prevalence_pred": 0.314}.items()
    }
    record = {"step": 1234, "epoch": 12, "verdict": "ok", "codes": [], "gap": 0.071, "train/loss": 0.4321}
    return record | nets | {"val/trivial_f1": 0.501, "val/prevalence_true": 0.334} | values


HUGE = {
    "train/loss": 7.9e11,
    "val/student/loss": 6.2e37,
    "val/student/logit_mean": -4e30,
    "val/teacher/logit_mean": 9e9,
}
RARE = {"val/student/prevalence_pred": 0.0042, "val/teacher/prevalence_pred": 1.0, "val/prevalence_true": 0.0031}
COLLAPSED = {"verdict": "collapsed", "codes": ["inverted_output", "teacher_diverged"]}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("values", [{}, HUGE, RARE, {"train/loss": None, "gap": None}])
def test_figures_stand_below_their_titles_and_the_word_of_the_verdict_fits(width: int, values: dict[str, Any]) -> None:
    header = format_header(width)
    row = format_row(make_record(**COLLAPSED, **values), width, is_ascii=False).plain
    start = row.index("✗")
    assert header[start:] == "verdict"
    ends = [title.end() for title in re.finditer(r"(F1 )?\S+", header[:start])]
    assert len(ends) == (9 if width == 120 else 8)
    assert all(row[end - 1] != " " and row[end] == " " for end in ends)
    assert cell_len(row[: start + len("✗ collapsed")]) <= width


ALL = list(CODES)


@given(st.lists(st.sampled_from(ALL), unique=True), st.sampled_from([80, 100, 120]), st.sampled_from([{}, HUGE, RARE]))
def test_every_code_is_readable_at_any_width(codes: list[str], width: int, values: dict[str, Any]) -> None:
    """No line is wider than the terminal, so that nothing is cut off, and a healthy row is one line."""
    record = make_record(**values, verdict="collapsed" if codes else "ok", codes=codes)
    lines = format_row(record, width, is_ascii=False).plain.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert [word for word in re.split(r"[\s,:]+", "\n".join(lines)) if word in ALL] == codes
    assert len(lines) == 1 or codes


def test_a_terminal_of_80_columns_shows_every_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_terminal(monkeypatch)
    view = TrainingView(0, 10)
    view.look(make_record(verdict="collapsed", codes=ALL))
    view.stop()
    shown = capsys.readouterr().err
    assert all(shown.count(code) >= 2 for code in ALL), "in the row that stays, and in the view"
    assert "…" not in shown


def test_a_row_has_the_figures_of_the_record() -> None:
    words = format_row(make_record(), 80, is_ascii=False).plain.split()
    assert words == ["12", "1234", "0.432", "0.500", "0.612/0.612", "0.50", "31%/31%", "33%", "✓", "ok"]
    assert "+0.07" in format_row(make_record(), 120, is_ascii=False).plain


@pytest.mark.parametrize("values", [{}, HUGE, RARE, COLLAPSED])
def test_without_colors_and_with_ascii_alone_the_verdict_is_said(values: dict[str, Any]) -> None:
    record = make_record(**values)
    lines = [line.plain for line in describe_looks([record] * 30, is_ascii=True)]
    assert all(line.isascii() for line in lines)
    assert lines[-1].split(":")[0] == ("x collapsed" if record["verdict"] == "collapsed" else "+ ok")
    assert all(code in lines[-1] for code in record["codes"])
    assert describe_looks([], is_ascii=True) == []


def test_the_view_of_a_healthy_look_fits_80_columns() -> None:
    lines = describe_looks([make_record(**{"val/student/f1": n / 40}) for n in range(40)], is_ascii=False)
    assert max(cell_len(line.plain) for line in lines) <= 80
    for text in ("student 0.975", "teacher 0.612", "loss 0.432", "val 0.500", "logit -1.50/-1.50", "true 33%"):
        assert text in "\n".join(line.plain for line in lines)


def test_of_several_classes_the_mean_is_shown() -> None:
    macro = {"val/trivial_f1_macro": 0.08, "val/student/f1_macro": 0.444, "val/teacher/f1_macro": 0.333}
    record = make_record(**macro, **{"val/student/f1/2": 0.0})
    view, row = describe_looks([record], is_ascii=False)[0].plain, format_row(record, 120, is_ascii=False).plain
    assert view.startswith("F1 (mean of classes) student 0.444")
    assert view.endswith("all-foreground 0.08")
    assert "0.444/0.333" in row
    assert "0.612" not in view + row
    assert "0.612/0.612" in format_row(make_record(**macro), 120, is_ascii=False).plain


@pytest.mark.parametrize("count", around(SPARKS))
def test_the_view_holds_as_many_looks_as_it_draws(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainingView(0, count)
    for step in range(count):
        view.look(make_record(step=step))
    view.stop()
    assert [record["step"] for record in view.records] == list(range(count))[-SPARKS:]
    assert capsys.readouterr().err.count("trivial") == 1, "titles stand above the first row alone"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_sparkline_keeps_the_order_of_the_last_values(values: list[float]) -> None:
    shown, last = spark(values, is_ascii=False), values[-SPARKS:]
    heights = [BLOCKS.index(block) for block in shown]
    assert len(heights) == len(last)
    order = sorted(range(len(last)), key=lambda n: last[n])
    assert [heights[n] for n in order] == sorted(heights)
    if max(last) - min(last) > LEAST_RANGE:
        assert {min(heights), max(heights)} == {0, len(BLOCKS) - 1}


def test_chance_does_not_fill_a_sparkline_and_nan_is_left_out() -> None:
    assert set(spark([0.50, 0.51, 0.50], is_ascii=False)) == {BLOCKS[0]}
    assert spark([0.0, float("nan"), 1.0], is_ascii=False) == BLOCKS[0] + BLOCKS[-1]


def test_time_left_is_at_the_pace_so_far() -> None:
    assert describe_time_left(10, 50, 20.0) == "0:01:40 left, 0.50 steps/s"
    assert describe_time_left(0, 50, 20.0) == "starting"


@pytest.mark.parametrize("width", [80, 120])
def test_a_plan_is_short_and_with_reasons_complete(width: int) -> None:
    plan = [Planned(f"section.setting_{n}", n, f"reason {n}") for n in range(7)]
    short = format_plan(plan, width, reasons=False)
    assert max(map(len, short.splitlines())) <= width
    assert short.count("section.setting_") == 7
    assert len(short.splitlines()) == 1 + -(-7 // (width // 25))
    assert "reason 3" not in short
    full = format_plan(plan, width, reasons=True)
    assert [f"section.setting_{n}  {n}  reason {n}" in full for n in range(7)] == [True] * 7


def test_values_are_those_of_a_configuration_file() -> None:
    plan = [
        Planned("a", None, "none"),
        Planned("b", False, "off"),
        Planned("c", "auto", "as it is"),
        Planned("d", (1,), ""),
    ]
    assert [line.split()[1] for line in format_plan(plan, 20, reasons=False).splitlines()[1:]] == [
        "null", "false", "auto", "[1]",
    ]  # fmt: skip
    assert plan[0].format_line() == "plan: a = null (none)"


@given(st.text("ab /-\n", max_size=80), st.integers(10, 40))
def test_wrapping_keeps_every_word(text: str, width: int) -> None:
    assert wrap(text, width).split() == text.split()


def test_what_is_carried_over_is_indented() -> None:
    assert wrap("data: one two three", 10) == "data: one\n    two\n    three"


def test_a_pipe_gets_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console, long = TerminalConsole(verbose=True), "x " * 100
    console.plan(PLAN)
    console.note(f"{DETAILS[0]} {long}")
    console.start(0, 10)
    console.advance(1)
    console.look("step 0", make_record())
    console.stop()
    assert capsys.readouterr().out == (
        "plan: optim.lr = 0.001 (measured)\nplan: data.label_values = [0, 255] (values found in 366 masks)\n"
        f"{DETAILS[0]} {long}\nstep 0\n"
    )


@pytest.mark.parametrize(("name", "live"), [("dumb", True), ("xterm", False)])
def test_a_terminal_that_cannot_draw_or_must_not_gets_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str, live: bool
) -> None:
    use_terminal(monkeypatch, name)
    console = TerminalConsole(live=live)
    console.plan(PLAN[:1])
    console.start(0, 10)
    console.look(f"step 0 {'x' * 200}", make_record())
    console.stop()
    assert "".join(capsys.readouterr()) == f"plan: optim.lr = 0.001 (measured)\nstep 0 {'x' * 200}\n"


def test_a_plan_of_nothing_is_not_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    TerminalConsole().plan([])
    assert "".join(capsys.readouterr()) == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_shows_nothing_on_the_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    use_terminal(monkeypatch)
    console = begin({"quiet": quiet, "verbose": False, "no_live": False})
    console.note("split: 8 labeled")
    show_plan(console, PLAN)
    console.start(0, 10)
    show_look(console, "step 0", make_record())
    console.stop()
    assert ("".join(capsys.readouterr()) == "") == quiet


@pytest.mark.parametrize("verbose", [False, True])
def test_details_are_for_those_who_ask(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verbose: bool
) -> None:
    use_terminal(monkeypatch)
    console = TerminalConsole(verbose=verbose)
    console.plan(PLAN)
    console.note(f"{DETAILS[0]} fp32")
    console.note("split: 8 labeled")
    shown = capsys.readouterr().out
    assert "split: 8 labeled" in shown
    assert ("fp32" in shown) == ("values found" in shown) == verbose


def test_an_interrupted_training_leaves_the_terminal_whole_and_a_complete_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, particles_dir: Path, tmp_path: Path
) -> None:
    use_terminal(monkeypatch)

    class Interrupting(TerminalConsole):
        def advance(self, step: int) -> None:
            super().advance(step)
            if step == 5:
                raise KeyboardInterrupt

    console = Interrupting()
    layers = (Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}}))
    with pytest.raises(KeyboardInterrupt):
        train(TrainRequest(layers, tmp_path / "run"), console)
    out, shown = capsys.readouterr()
    assert shown.count(HIDE_CURSOR) == shown.count(SHOW_CURSOR) > 0
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert console.view is None
    assert "ssl-seg train --resume" in out
    assert format_header(80) in shown
    log = (tmp_path / "run" / LOG_FILE).read_text().splitlines()
    looks = [record["step"] for record in RunDir(tmp_path / "run").read_metrics()]
    assert [int(line.split()[1]) for line in log if line.startswith("step ")] == looks
    assert [line for line in log if line.startswith("plan: ")]
    assert "step     0 epoch" not in out + shown
