"""What a terminal shows of a training: a view that is redrawn while it lasts, and for each look a line that stays."""

from __future__ import annotations

import math
import sys
import textwrap
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ssl_seg.config import NETS
from ssl_seg.scores.text import log_odds, number, short_share, shown_f1

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

REDRAWS_A_SECOND = 2
"""Drawing takes about a millisecond, in a thread of its own."""
BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS = 12
"""Looks in a sparkline."""
LEAST_RANGE = 0.1
"""Range of F1 that fills a sparkline at least, so that chance does not look like a change."""
WIDE = 100
"""Columns of a terminal from which a line holds the gap too."""
SYMBOLS = {"ok": ("✓", "+", "green"), "warn": ("!", "!", "yellow"), "collapsed": ("✗", "x", "bold red")}
"""Level of a verdict -> its symbol, the one where the terminal knows ASCII only, and its color."""

Record = Mapping[str, Any]
"""A line of metrics.jsonl."""


class TrainingView:
    """A view on stderr until ``stop``, which a thread redraws: a step of the training only sets a number."""

    def __init__(self, first_step: int, total_steps: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self.first_step = self.step = first_step
        self.total_steps = total_steps
        self.begun: float | None = None
        self.records: deque[Record] = deque(maxlen=SPARKS)
        """The last looks, as many as a sparkline shows: a run has many, and they are drawn twice a second."""
        self.has_header = False
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.live = Live(
            console=self.console,
            get_renderable=self.draw,
            refresh_per_second=REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a redirected stdout must get its lines itself
        )
        self.live.start()

    def advance(self, step: int) -> None:
        """Take note that ``step`` updates are done; time counts from the end of the first one."""
        if self.begun is None:
            self.begun, self.first_step = time.monotonic(), step
        self.step = step

    def look(self, record: Record) -> None:
        """Show a look, and leave a line."""
        width, is_ascii = self.console.width, self.console.options.ascii_only
        if not self.has_header:
            self.console.print(format_header(width))
            self.has_header = True
        self.records.append(record)
        self.console.print(format_row(record, width, is_ascii=is_ascii))

    def stop(self) -> None:
        """Remove the view."""
        self.live.stop()

    def draw(self) -> Group:
        """Return the bar and, after the first look, three lines about it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        elapsed = 0.0 if self.begun is None else time.monotonic() - self.begun
        before, after = f"step {self.step}/{self.total_steps}", describe_time_left(
            self.step - self.first_step, self.total_steps - self.step, elapsed
        )  # fmt: skip
        bar = ProgressBar(self.total_steps, self.step, width=max(self.console.width - len(before) - len(after) - 4, 4))
        top = Table.grid(padding=(0, 2))
        top.add_row(before, bar, after)
        lines = describe_looks(tuple(self.records), is_ascii=self.console.options.ascii_only)
        for line in lines[:-1]:  # the verdict wraps: none of its codes is cut off
            line.truncate(self.console.width, overflow="ellipsis")
        return Group(top, *lines)


def describe_time_left(done: int, left: int, elapsed: float) -> str:
    """Return time left and pace, after ``done`` steps in ``elapsed`` seconds."""
    if done <= 0 or elapsed <= 0:
        return "starting"
    pace = done / elapsed
    return f"{timedelta(seconds=round(left / pace))} left, {number(pace, 2 if pace < 10 else 0)} steps/s"


def describe_looks(records: Sequence[Record], *, is_ascii: bool) -> list[Text]:
    """Return three lines about the looks of a run, the last record being the newest; none where there was no look."""
    from rich.text import Text

    if not records:
        return []
    record = records[-1]
    name, trivial, title = shown_f1(record)
    f1 = "  ".join(
        f"{net} {number(record[key])} {spark([r[key] for r in records], is_ascii=is_ascii)}"
        for net, key in ((net, f"val/{net}/{name}") for net in NETS)
    )
    logit = "/".join(log_odds(record[f"val/{net}/logit_mean"]) for net in NETS)
    return [
        Text(f"{title} {f1}  all-foreground {number(record[f'val/{trivial}'], 2)}"),
        Text(
            f"loss {_loss(record.get('train/loss'))}  val {_loss(record['val/student/loss'])}  logit {logit}"
            f"  foreground {_predicted(record)}, true {short_share(record['val/prevalence_true'])}"
        ),
        style_verdict(record, is_ascii=is_ascii),
    ]


def format_header(width: int) -> str:
    """Return the titles of the columns of ``format_row``."""
    f1, gap = (f"{'F1 student/teacher':>18}", f" {'gap':>5}") if width >= WIDE else (f"{'F1 student/t.':>13}", "")
    figures = f"{'epoch':>5} {'step':>6} {'loss':>7} {'val':>7} {f1} {'trivial':>7}{gap}"
    return f"{figures} {'predicted':>9} {'true':>5}  verdict"


def format_row(record: Record, width: int, *, is_ascii: bool) -> Text:
    """Return a look as a line: means of the steps since the look before, then the validation probe.

    ``predicted`` and ``true`` are shares of foreground; figures in pairs are those of student and teacher. Codes that
    do not fit beside them stand below.
    """
    from rich.cells import cell_len
    from rich.text import Text

    name, trivial, _ = shown_f1(record)
    f1 = "/".join(number(record[f"val/{net}/{name}"]) for net in NETS)
    f1, gap = (f"{f1:>18}", f" {_signed(record.get('gap')):>5}") if width >= WIDE else (f"{f1:>13}", "")
    figures = (
        f"{record['epoch']:>5} {record['step']:>6} {_loss(record.get('train/loss')):>7}"
        f" {_loss(record['val/student/loss']):>7} {f1} {number(record[f'val/{trivial}'], 2):>7}{gap}"
        f" {_predicted(record):>9} {short_share(record['val/prevalence_true']):>5}  "
    )
    row = Text(figures) + style_verdict(record, is_ascii=is_ascii)
    if cell_len(row.plain) <= width or not record["codes"]:
        return row
    below = textwrap.wrap(", ".join(record["codes"]), width, initial_indent="  ", subsequent_indent="  ")
    verdict = style_verdict({**record, "codes": []}, is_ascii=is_ascii)
    return Text(figures) + verdict + Text("\n" + "\n".join(below), style=verdict.style)


def style_verdict(record: Record, *, is_ascii: bool) -> Text:
    """Return symbol, level and codes of a verdict."""
    from rich.text import Text

    symbol, plain, color = SYMBOLS[record["verdict"]]
    codes = f": {', '.join(record['codes'])}" if record["codes"] else ""
    return Text(f"{plain if is_ascii else symbol} {record['verdict']}{codes}", style=color)


def spark(values: Sequence[float], *, is_ascii: bool) -> str:
    """Return the last values as blocks from the lowest to the highest of them; nothing where only ASCII is shown."""
    known = [value for value in values[-SPARKS:] if math.isfinite(value)]
    if is_ascii or not known:
        return ""
    low, spread = min(known), max(max(known) - min(known), LEAST_RANGE)
    return "".join(BLOCKS[min(int((value - low) / spread * len(BLOCKS)), len(BLOCKS) - 1)] for value in known)


def _predicted(record: Record) -> str:
    return "/".join(short_share(record[f"val/{net}/prevalence_pred"]) for net in NETS)


def _loss(value: float | None) -> str:
    return number(value) if value is None or abs(value) < 100 else f"{value:.1e}"


def _signed(value: float | None) -> str:
    return number(value) if value is None else f"{value:+.2f}"
