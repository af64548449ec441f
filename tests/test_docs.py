"""Documents that hold tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

from ssl_seg.monitor.actions import ACTIONS
from ssl_seg.monitor.catalog import CODES, LIMITS

COLLAPSE = Path(__file__).parents[1] / "docs" / "collapse.md"
WORDS = {"low": "a tenth of it", "usual": "the usual one", "steps": "TWICE", "cost": "that cost=1"}


def read_table(first_column: str) -> list[list[str]]:
    """Return the cells of each row below a header."""
    _, _, rest = COLLAPSE.read_text(encoding="utf-8").partition(f"\n| {first_column} |")
    rows = rest.split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def test_each_code_has_its_meaning_usual_causes_and_actions_with_what_they_were_tried_on() -> None:
    rows = read_table("code")
    assert [(name, meaning) for name, meaning, *_ in rows] == [(f"`{code}`", text) for code, text in CODES.items()]
    for name, _, causes, told in rows:
        assert causes, name
        actions = ACTIONS[name.strip("`")]
        parts = told.split("; else ")
        assert len(parts) == len(actions), name
        for part, action in zip(parts, actions, strict=True):
            text = action.text.format(**WORDS)
            condition = r"[^:]+: " if action.when is not None else ""
            assert re.fullmatch(rf"{condition}{re.escape(text)} \(.+\)", part), (name, part)


def test_each_limit_has_its_value_meaning_and_source() -> None:
    expected = [[f"`{name}`", f"{entry.value:g}", entry.meaning, entry.source] for name, entry in LIMITS.items()]
    assert read_table("limit") == expected
