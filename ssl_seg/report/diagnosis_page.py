"""The page of a diagnosis: the verdict in words, images, likely causes, and all that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ssl_seg.report.diagnosis_figures import EXAMPLES_CAPTION, make_panel_rows
from ssl_seg.report.diagnosis_summary import describe_scope, list_evidence
from ssl_seg.report.diagnosis_tables import (
    PART_TITLES,
    has_classes,
    make_key_figures,
    make_limits_table,
    make_tables,
    make_worst_images,
)
from ssl_seg.report.figures import draw_panels
from ssl_seg.report.page import ImageRow, Page, PageSection, keep_filled, make_facts, make_image_row
from ssl_seg.report.run_record import STATES, Banner
from ssl_seg.report.table import Table

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis, Example

_WORDS = {"ok": "Healthy", "warn": "Warning", "collapsed": "Collapsed"}


def make_diagnosis_page(diagnosis: Diagnosis, command: str = "") -> Page:
    """Return the page of a diagnosis; ``command`` is what was called."""
    listed = zip(diagnosis.causes, list_evidence(diagnosis.causes), strict=True)
    causes = tuple((f"{rank}. {cause.text}", "; ".join(seen)) for rank, (cause, seen) in enumerate(listed, start=1))
    found = tuple((f"{f.level}: {f.code}", f.net, f.message) for f in diagnosis.findings)
    facts = {"examined": diagnosis.subject, "looked at": describe_scope(diagnosis), "command": command}
    drawings = tuple(drawing for row in make_panel_rows(diagnosis).values() for drawing in draw_panels(row))
    caption = f"{EXAMPLES_CAPTION} F1 is of any foreground." if has_classes(diagnosis) else EXAMPLES_CAPTION
    sections = (
        PageSection("Images", (caption,) * bool(diagnosis.examples), rows=_show_examples(diagnosis.examples)),
        PageSection(
            "Key figures", tables=(replace(make_key_figures(diagnosis), title=""), make_worst_images(diagnosis))
        ),
        PageSection(
            "Likely causes, the most likely first",
            tables=(Table("", "Hypotheses, with the measurements for them.", ("cause", "evidence"), causes),),
        ),
        PageSection("Findings", tables=(Table("", "", ("finding", "network", "what was found"), found),)),
        PageSection("Figures", drawings=drawings),
        PageSection("All measurements", tables=(make_limits_table(diagnosis), *make_tables(diagnosis)), is_open=False),
        PageSection("How it was measured", diagnosis.notes, tables=(make_facts("", facts),)),
    )
    return Page(f"Diagnosis of {diagnosis.subject}", facts["looked at"], _judge(diagnosis), keep_filled(sections))


def _judge(diagnosis: Diagnosis) -> Banner:
    """Return the verdict in words, the finding and the cause that lead, and what to do."""
    from ssl_seg.diagnose.catalog import CODES  # which loads torch

    verdict = diagnosis.verdict
    title = CODES.get(verdict.code, verdict.message) if verdict.level == "warn" else verdict.message
    reasons = [f"{f.net.capitalize()}: {f.message}" for f in diagnosis.findings[:1]]
    reasons += [f"Likely cause: {c.text} ({'; '.join(c.evidence)})" for c in diagnosis.causes[:1]]
    reasons += [f"Do: {diagnosis.action}"] if diagnosis.action else []
    commands = (diagnosis.next_command,)
    return Banner(STATES[verdict.level], f"{_WORDS[verdict.level]}: {title}", tuple(reasons), commands)


def _show_examples(examples: Sequence[Example]) -> tuple[ImageRow, ...]:
    """Return a row for each example; masks alone lie side by side in one."""
    rows = [make_image_row(_name_example(example), example) for example in examples]
    if rows and all(len(row.pictures) == 1 for row in rows):
        return (ImageRow("predictions", tuple(replace(row.pictures[0], title=row.title) for row in rows)),)
    return tuple(rows)


def _name_example(example: Example) -> str:
    part = "" if example.part == "new" else PART_TITLES[example.part]
    score = "" if example.f1 is None else f"F1 {example.f1:.3f}"
    return ", ".join(filter(None, (example.id, part, score)))
