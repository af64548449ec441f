"""Documents that hold tables of the code."""

from __future__ import annotations

from pathlib import Path

from ssl_seg.diagnose.catalog import ACTIONS, CODES, LIMITS

DOCS = Path(__file__).parents[1] / "docs"
COLLAPSE = DOCS / "collapse.md"
WORDS = {"low": "a tenth of it", "usual": "the usual one", "steps": "TWICE", "cost": "that cost=1"}


def read_table(page: Path, first_column: str) -> list[list[str]]:
    """Return the cells of each row below a header."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"\n| {first_column} |")
    rows = rest.split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_each_code_has_its_meaning_usual_causes_and_actions() -> None:
    rows = read_table(COLLAPSE, "code")
    actions = {number: (when, text) for number, when, text, _ in read_table(COLLAPSE, "action")}
    assert [(name, meaning) for name, meaning, *_ in rows] == [(f"`{code}`", text) for code, text in CODES.items()]
    for name, _, causes, numbers in rows:
        assert causes, name
        shown = [actions[number] for number in numbers.split(", ")]
        expected = [(a.when is not None, a.text.format(**WORDS)) for a in ACTIONS[name.strip("`")]]
        assert [(when != "", text) for when, text in shown] == expected, name


def test_each_action_is_used_and_says_on_what_it_was_tried() -> None:
    used = {number for *_, numbers in read_table(COLLAPSE, "code") for number in numbers.split(", ")}
    actions = read_table(COLLAPSE, "action")
    assert {number for number, *_ in actions} == used
    assert all(tried for *_, tried in actions)


def test_each_limit_has_its_value_meaning_and_source() -> None:
    expected = [[f"`{name}`", f"{entry.value:g}", entry.meaning, entry.source] for name, entry in LIMITS.items()]
    assert read_table(DOCS / "collapse_evidence.md", "limit") == expected
