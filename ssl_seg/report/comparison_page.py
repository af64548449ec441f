"""Several runs on one page: their verdicts, scores with paired differences, curves, and settings that differ."""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from pathlib import Path

from ssl_seg.errors import SslSegError, counted
from ssl_seg.report.page import Page, PageSection
from ssl_seg.report.run_figures import draw_runs
from ssl_seg.report.run_record import RunRecord
from ssl_seg.report.score_cells import format_interval, name_subject, show_margin
from ssl_seg.report.table import Table
from ssl_seg.run.differences import compare_settings
from ssl_seg.run.final_scores import compare_on_shared_cases
from ssl_seg.scores.text import UNKNOWN, number

COMPARISON_FILE = "comparison.html"
MOST_RUNS = 12
"""Most runs whose verdicts and curves are on one page."""


def find_common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder that all paths lie in."""
    return Path(os.path.commonpath([path.resolve().parent for path in paths]))


def make_verdict_section(named: Mapping[str, RunRecord]) -> PageSection:
    """Return the verdicts of runs; of many, those that are not healthy."""
    banners = [(name, record.banner) for name, record in named.items()]
    if len(named) <= MOST_RUNS:
        return PageSection("Verdicts", banners=tuple(banners))
    ill = [(name, banner) for name, banner in banners if banner.state != "healthy"]
    note = f"{len(banners) - len(ill)} of {len(banners)} runs are healthy."
    more = f" The first {MOST_RUNS} of the others:" if len(ill) > MOST_RUNS else ""
    return PageSection("Verdicts", (note + more,), banners=tuple(ill[:MOST_RUNS]))


def make_curve_section(named: Mapping[str, RunRecord]) -> PageSection:
    """Return F1 of runs over their steps; of many, of the first ones."""
    drawn = draw_runs(dict(list(named.items())[:MOST_RUNS]))
    notes = (f"The first {MOST_RUNS} of {len(named)} runs.",) if len(named) > MOST_RUNS else ()
    return PageSection("Curves", notes, drawings=() if drawn is None else (drawn,))


def make_comparison_page(records: Sequence[RunRecord]) -> Page:
    """Return the page of several runs: verdicts, scores, curves, and settings that differ; the first one is what the
    others are compared with."""
    folder = find_common_folder([record.run.path for record in records])
    names = [record.run.path.resolve().relative_to(folder).as_posix() for record in records]
    named = dict(zip(names, records, strict=True))
    sections = (
        make_verdict_section(named),
        PageSection("Scores", tables=(_make_score_table(named),)),
        make_curve_section(named),
        PageSection("Settings that differ", tables=(_make_settings_table(named),)),
    )
    return Page(counted(len(records), "run"), str(folder), None, sections)


def _make_score_table(named: Mapping[str, RunRecord]) -> Table:
    (first, base), *_ = named.items()
    subjects = {name_subject(record.used_scores) for record in named.values() if record.used_scores}
    of = subjects.pop() if len(subjects) == 1 else ""
    rows = []
    for name, record in named.items():
        scores = record.used_scores or {}
        rows.append(
            (
                name,
                UNKNOWN if record.used is None else f"{record.used.net}, step {record.used.step:,}",
                number(scores.get("f1_macro")) + (name_subject(scores) if scores and not of else ""),
                number(scores.get("trivial_f1")),
                number(scores.get("margin")),
                show_margin(scores) if scores else UNKNOWN,
                *(("", "", "") if record is base else _compare(record, base)),
            )
        )
    columns = ("run", "network", f"F1{of}", "foreground everywhere", "margin", "its 95 % interval")
    text = (
        f"Difference: F1 minus that of {first} on the validation cases that both have, by the content of the image, "
        "with its paired 95 % interval over these cases. It says nothing about other seeds."
    )
    return Table("", text, (*columns, "difference", "its 95 % interval", "shared cases"), tuple(rows))


def _compare(record: RunRecord, base: RunRecord) -> tuple[str, str, str]:
    """Return difference to the first run, its interval, and the number of cases that both have."""
    if record.used is None or base.used is None:
        return UNKNOWN, "not scored yet", ""
    own, other = record.used.score, base.used.score
    if own.label_values != other.label_values:
        return UNKNOWN, "other classes", ""
    first, second = ({} if r.split is None else r.split.content for r in (record, base))
    if (compared := compare_on_shared_cases(own, other, (first, second))) is None:
        return UNKNOWN, "no case in common", "0"
    found, cases = compared
    return f"{found.f1:+.3f}", format_interval(found.low, found.high, found.why, "+.3f"), str(cases)


def _make_settings_table(named: Mapping[str, RunRecord]) -> Table:
    """Return a row for each setting in which a run differs from the first one."""
    (_, base), *others = named.items()
    rows: dict[str, dict[str, str]] = {}
    faults = []
    for name, record in others:
        try:
            differences = compare_settings(base.run.path, record.run.path)
        except SslSegError as error:
            faults.append(f"{name}: {error}")
            continue
        for difference in differences:
            first, own = difference.shown
            rows.setdefault(difference.setting, {"": first})[name] = own
    cells = [
        (setting, own[""], *(own.get(name, "as the first") for name, _ in others)) for setting, own in rows.items()
    ]
    text = "; ".join(faults) or ("" if rows else "There is none.")
    return Table("", text, ("setting", *named), tuple(cells) or (("(none)", *("" for _ in named)),))
