"""What a person sees of a look."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ssl_seg.cli.console import TerminalConsole, format_block
from ssl_seg.monitor.findings import Finding, Verdict

STUDENT = Finding("all_negative", "collapsed", "student", 0.0, 1.0, "", "0 % of 25 %", (), "more steps")
TEACHER = replace(STUDENT, net="teacher", message="1 % of 25 %")
PLATEAU = Finding("plateau", "warn", "training", 0.0, 1.0, "", "no gain", (), "another optim.lr")


def test_one_entry_a_code_with_the_message_of_each_network() -> None:
    assert format_block(Verdict((STUDENT, TEACHER, PLATEAU))) == [
        "  COLLAPSED all_negative (student, teacher): student 0 % of 25 % | teacher 1 % of 25 %",
        "    try: more steps",
        "  WARN plateau (training): no gain",
        "    try: another optim.lr",
    ]


def test_a_network_alone_needs_no_name_before_its_message() -> None:
    assert format_block(Verdict((TEACHER,)))[0] == "  COLLAPSED all_negative (teacher): 1 % of 25 %"
    assert format_block(Verdict()) == []


def test_the_worst_level_leads_and_another_is_said() -> None:
    lines = format_block(Verdict((STUDENT, PLATEAU, TEACHER.soften())))
    assert lines[0] == "  COLLAPSED all_negative (student, teacher): student 0 % of 25 % | teacher (warn) 1 % of 25 %"
    assert [line.split()[1] for line in lines if not line.startswith("    ")] == ["all_negative", "plateau"]


def test_the_block_comes_when_the_findings_change(capsys: pytest.CaptureFixture[str]) -> None:
    console = TerminalConsole()
    both, alone = Verdict((STUDENT, TEACHER)), Verdict((STUDENT,))
    for line, verdict in (("a", both), ("b", both), ("c", alone), ("d", Verdict()), ("e", alone)):
        console.probe(line, verdict)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if not line.startswith(" ")] == list("abcde")
    assert [shown.index(line) for line in "abcde"] == [0, 3, 4, 7, 8]
