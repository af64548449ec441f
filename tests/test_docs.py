"""What the documentation repeats from the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssl_seg.monitor.actions import format_codes
from ssl_seg.monitor.catalog import format_limits

COLLAPSE = Path(__file__).parents[1] / "docs" / "collapse.md"


@pytest.mark.parametrize("table", [format_codes(), format_limits()], ids=["codes", "limits"])
def test_the_tables_of_collapse_md_are_those_of_the_code(table: str) -> None:
    """Paste ``format_codes()`` or ``format_limits()`` anew after a change of the catalog."""
    assert table in COLLAPSE.read_text(encoding="utf-8")
