"""Numbers of the command line: one parser for options of one number, and of several."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ssl_seg.errors import ConfigError

Rule = tuple[str, Callable[[float], bool]]
"""What numbers must be, and the test of it."""

POSITIVE: Rule = ("a number above 0", lambda value: value > 0)
NOT_NEGATIVE: Rule = ("a number from 0 on", lambda value: value >= 0)
PROBABILITY: Rule = ("a number above 0 and below 1", lambda value: 0 < value < 1)
FROM_0_TO_1: Rule = ("a number from 0 to 1", lambda value: 0 <= value <= 1)
FROM_0_TO_0_9: Rule = ("a number from 0 to 0.9", lambda value: 0 <= value <= 0.9)
FROM_1: Rule = ("a number from 1 on", lambda value: value >= 1)
ANY: Rule = ("a number", lambda _: True)


def number(option: str, rule: Rule, example: str) -> Callable[[str | float], float]:
    """Return a parser of one number, for ``typer.Option(parser=...)``.

    Args:
        option: its name, for the error.
        rule: what the number must be; beside, it must be finite.
        example: what to write instead.
    """

    def parse(text: str | float) -> float:
        value = _to_number(str(text))
        if value is None or not rule[1](value):
            raise _refuse(option, str(text), rule, example)
        return value

    parse.__name__ = "number"  # which the help shows
    return parse


def parse_numbers(
    option: str, texts: Sequence[str], rule: Rule, example: str, counts: Sequence[int] | None = None
) -> tuple[float, ...]:
    """Return the numbers of ``1 2``, ``1,2``, and of what mixes both.

    Args:
        option: its name, for the error.
        texts: as they were given.
        rule: what each number must be; beside, it must be finite.
        example: what to write instead.
        counts: how many there may be.

    Raises:
        ConfigError: the first thing that is wrong.
    """
    if not texts:
        return ()
    joined, values = " ".join(texts), []
    for part in split_words(texts):
        value = _to_number(part)
        if value is None or not rule[1](value):
            raise _refuse(option, part, rule, example)
        values.append(value)
    if counts is not None and len(values) not in counts:
        wanted = " or ".join(map(str, counts))
        raise _refuse(option, joined, (f"{wanted} numbers, each {rule[0]}", rule[1]), example)
    return tuple(values)


def split_words(texts: Sequence[str]) -> list[str]:
    """Return the words of ``a b``, ``a,b``, and of what mixes both."""
    joined = re.sub(r"(?<=[^\s,])\s+(?=[^\s,])", ",", " ".join(texts))
    return [part.strip() for part in joined.split(",")]


def _refuse(option: str, text: str, rule: Rule, example: str) -> ConfigError:
    from ssl_seg.errors import ConfigError

    return ConfigError(f"{option}: '{text}' must be {rule[0]}; write {option} {example}")


def _to_number(text: str) -> float | None:
    """Return a finite number written with digits of ASCII, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and text.isascii() and "_" not in text else None
