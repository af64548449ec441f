"""What a person sees of a look."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ssl_seg.cli.console import show, show_prose, track
from ssl_seg.cli.tables import fit_widths, format_record, print_table
from ssl_seg.monitor.findings import RuleFinding, Verdict, describe_codes, format_block
from ssl_seg.report.table import Table

STUDENT = RuleFinding("all_negative", "collapsed", "student", 0.0, 1.0, "", "0 % of 25 %")
TEACHER = replace(STUDENT, net="teacher", message="1 % of 25 %")
PLATEAU = RuleFinding("plateau", "warn", "training", 0.0, 1.0, "", "no gain")


def test_one_finding_leads_with_one_action_and_the_others_are_named() -> None:
    bias = replace(PLATEAU, code="foreground_bias", net="teacher")
    assert format_block(Verdict((STUDENT, TEACHER, PLATEAU, bias), "more steps")) == [
        "  COLLAPSED all_negative (student, teacher): student 0 % of 25 % | teacher 1 % of 25 %",
        "    also: plateau (training), foreground_bias (teacher)",
        "    try: more steps",
    ]


def test_a_network_alone_needs_no_name_before_its_message() -> None:
    assert format_block(Verdict((TEACHER,)))[0] == "  COLLAPSED all_negative (teacher): 1 % of 25 %"
    assert format_block(Verdict()) == []


def test_a_code_that_only_the_network_has_that_is_not_used_says_so() -> None:
    bias = replace(PLATEAU, code="foreground_bias", net="teacher")
    verdict = Verdict((bias, STUDENT.soften(), TEACHER.soften(), PLATEAU))
    assert describe_codes(verdict, "student") == [
        "foreground_bias (teacher, which is not used)",
        "all_negative",
        "plateau",
    ]
    assert describe_codes(verdict, "teacher") == list(verdict.codes)
    assert describe_codes(Verdict(), "teacher") == []


def test_the_worst_level_leads_and_another_is_said() -> None:
    lines = format_block(Verdict((STUDENT, PLATEAU, TEACHER.soften())))
    assert lines[0] == "  COLLAPSED all_negative (student, teacher): student 0 % of 25 % | teacher (warn) 1 % of 25 %"
    assert lines[1] == "    also: plateau (training)"


COLUMNS = ("method", *(f"95 % interval of column {n}" for n in range(8)))
ROWS = tuple((f"method_{r}", *(f"[0.{r}{n}1, 0.{r}{n}9]" for n in range(8))) for r in range(3))
FIGURES = {word for row in ROWS for cell in row for word in cell.split()}


def draw(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what a terminal shows of the table, without its styles."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(Table("a table", "", COLUMNS, ROWS))
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_a_wide_table_is_whole_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("a table", "", COLUMNS, ROWS))
    title, header, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["a", "table"]
    assert all(column in header for column in COLUMNS)
    for row, line in zip(ROWS, lines, strict=True):
        assert all(cell in line for cell in row)


@pytest.mark.parametrize(("width", "boxed"), [(300, True), (100, True), (90, False), (84, False)])
def test_a_terminal_wraps_between_words(
    width: int, boxed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = draw(width, capsys, monkeypatch)
    assert max(map(len, shown.splitlines())) <= width
    assert ("\N{BOX DRAWINGS LIGHT VERTICAL}" in shown) == boxed
    words = set(shown.replace("\N{BOX DRAWINGS LIGHT VERTICAL}", " ").split())
    assert words >= FIGURES
    assert (ROWS[1][-1] in shown) == (width == 300)


def test_sentences_are_wrapped_on_a_terminal_and_whole_elsewhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "one sentence that is much longer than twenty columns"
    show_prose(text)
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    show_prose(text)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 20
    assert " ".join(lines).split() == text.split()


def test_a_terminal_too_narrow_for_the_words_gets_a_list(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = draw(40, capsys, monkeypatch).splitlines()
    assert lines[:2] == ["a table", "method_0"]
    assert set("\n".join(lines).split()) >= FIGURES


@pytest.mark.parametrize("width", [None, 80, 8])
def test_rows_may_end_early(
    width: int | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if width is not None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", str(width))
    print_table(Table("t", "", ("component", "F1"), (("dice", "0.125"), ("alone",), ())))
    shown = capsys.readouterr().out
    assert "0.125" in shown
    assert "alone" in shown


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("[/t]", "how [to] read it", ("lr[high]",), (("bad [/tmp/x] here",), ("[bold]",))))
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        "[/t]",
        "lr[high]",
        "bad [/tmp/x] here",
        "[bold]",
        "how [to] read it",
    ]


def test_the_list_leaves_out_what_is_not_known() -> None:
    assert format_record(["run", "F1", "p", "note"], ["a", "0.5", "-", ""]) == "a\n  F1: 0.5"
    assert format_record(["run", "F1", ""], ["a", "0.5", "used"]) == "a\n  F1: 0.5\n  used"


@given(
    st.lists(st.lists(st.text("ab ", max_size=9), min_size=2, max_size=2), min_size=1, max_size=5),
    st.integers(0, 60),
)
def test_widths_hold_the_words_and_fill_the_room_no_more_than_is_needed(cells: list[list[str]], room: int) -> None:
    least = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    whole = [max(map(len, column)) for column in cells]
    widths = fit_widths(cells, room)
    if sum(least) > room:
        assert widths is None
        return
    assert widths is not None
    assert all(low <= width <= high for low, width, high in zip(least, widths, whole, strict=True))
    assert sum(widths) == min(room, sum(whole))


def test_wide_characters_are_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["細胞画像" * 3, "e\u0301" * 12, "\N{WOMAN}\u200d\N{GIRL}" * 4, "plain"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for width in (30, 36, 40, 60, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table(Table("t", "", ("case", "dice"), tuple((name, "0.125") for name in names)))
        shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
        assert all(name in shown for name in names)
        assert shown.count("0.125") == len(names)
        lines = [line for line in shown.splitlines() if "\N{BOX DRAWINGS LIGHT VERTICAL}" in line]
        assert len({cell_len(line) for line in lines}) <= 1


@pytest.mark.parametrize("terminal", [True, False])
def test_names_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")
    rows = (("a\nb\r", ":smile: [red]x[/red]"), ("\x9b31m\u202e", "[/]"))
    print_table(Table("\x1b]0;title\x07", "", ("\x1b[2J", "b"), rows))
    show("note \x1b[1A", err=False)
    list(track(["x"], 1, "reading \x1b[2J [/x]"))
    out, err = capsys.readouterr()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out + err)
    for text in ("\\x1b]0;title\\x07", "\\x1b[2J", "a\\nb\\r", ":smile: [red]x[/red]", "\\x9b31m\\u202e", "\\x1b[1A"):
        assert text in shown
    assert not set(shown) & set("\x1b\x07\r\x9b\u202e")
