"""The time that a diagnosis may take, and what of it each stage may use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class Clock:
    """Counts the seconds since it was made.

    Args:
        seconds: all that there is.
        now: returns seconds from any zero; another one in tests.
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._start = now()

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self._now() - self._start

    def has_left(self, until: float) -> bool:
        """Return whether less than the share ``until`` of the time is used."""
        return self.used < until * self.seconds

    def limit(self, items: Iterable[Item], until: float, least: int) -> Iterator[Item]:
        """Yield the first ``least`` items, then further ones as long as less than the share ``until`` is used."""
        for index, item in enumerate(items):
            if index >= least and not self.has_left(until):
                return
            yield item
