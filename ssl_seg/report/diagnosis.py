"""The report of a diagnosis: a folder with a page, in HTML and as text, all tables, ``report.json`` and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_seg.errors import DataError, quote
from ssl_seg.files import next_free, now, write_json, write_text
from ssl_seg.report.diagnosis_figures import FigureFile, plot_diagnosis
from ssl_seg.report.diagnosis_page import make_diagnosis_page
from ssl_seg.report.diagnosis_summary import describe_scope, list_evidence
from ssl_seg.report.diagnosis_tables import make_key_figures, make_limits_table, make_tables, make_worst_images
from ssl_seg.report.markdown import code, escape, format_table
from ssl_seg.report.page import PAGE_FILE, write_page
from ssl_seg.report.table import Table

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis

REPORT_FILE, TABLES_FILE, RECORD_FILE = "report.md", "measurements.md", "report.json"


def check_report_folder(folder: Path) -> None:
    """Check that a report can be written to ``folder``.

    Raises:
        DataError: for a file, or a folder that is not empty; proposes the next free name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists already and is not overwritten: use --out {quote(next_free(folder))}")


def write_report(diagnosis: Diagnosis, folder: Path, command: str = "") -> Path:
    """Write the report, its figures and its JSON record to a new folder.

    Args:
        diagnosis: what was found.
        folder: created here; an empty one is taken as it is.
        command: what was called, to be repeated by the reader.

    Returns:
        The path of report.html.

    Raises:
        DataError: when the folder holds anything, or cannot be written.
    """
    check_report_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        pictures = plot_diagnosis(diagnosis, folder)
        write_json(folder / RECORD_FILE, diagnosis.to_record())
        write_text(folder / TABLES_FILE, format_measurements(diagnosis, pictures))
        write_text(folder / REPORT_FILE, format_report(diagnosis, pictures, now(), command))
    except OSError as error:
        raise DataError(f"cannot write the report to {folder}: {error.strerror}") from error
    return write_page(make_diagnosis_page(diagnosis, command), folder / PAGE_FILE)


def format_report(diagnosis: Diagnosis, pictures: Sequence[FigureFile], when: str, command: str = "") -> str:
    """Return a page in Markdown: verdict, findings, hypotheses with their evidence, key figures, the worst images.

    Args:
        diagnosis: what was found.
        pictures: figures in the folder of the report; the first one is shown; all are among the measurements.
        when: time of the diagnosis.
        command: what was called.
    """
    verdict = diagnosis.verdict
    head = [
        f"# Diagnosis of {code(diagnosis.subject)}",
        f"**Verdict: {verdict.level}, {code(verdict.code)}: {escape(verdict.message)}**",
        _examined(diagnosis, when, command),
    ]
    sections = [
        *_findings(diagnosis),
        *_causes(diagnosis),
        "## What to do",
        *([f"{escape(diagnosis.action)}."] if diagnosis.action else []),
        f"```sh\n{diagnosis.next_command}\n```",
        *_table(make_key_figures(diagnosis)),
        *_table(make_worst_images(diagnosis)),
        *_notes(diagnosis),
        "## More",
        *(f"![{picture.title}]({picture.path.name})" for picture in pictures[:1]),
        f"All tables and figures are in [{TABLES_FILE}]({TABLES_FILE}), all numbers in [{RECORD_FILE}]({RECORD_FILE}).",
    ]
    return "\n\n".join([*head, *sections]) + "\n"


def format_measurements(diagnosis: Diagnosis, pictures: Sequence[FigureFile]) -> str:
    """Return all tables and figures in Markdown, each with what it says."""
    tables = (make_limits_table(diagnosis), *make_tables(diagnosis))
    parts = [f"# Measurements of {code(diagnosis.subject)}"]
    for picture in pictures:
        parts += [f"![{picture.title}]({picture.path.name})", f"*{picture.title}.* {picture.caption}"]
    return "\n\n".join([*parts, *(part for table in tables for part in _table(table))]) + "\n"


def _examined(diagnosis: Diagnosis, when: str, command: str) -> str:
    what = "checkpoint" if diagnosis.kind == "checkpoint" else "folder of predictions"
    lines = [
        f"Examined: the {what} {code(diagnosis.subject)}.",
        f"Looked at: {escape(describe_scope(diagnosis))}.",
        f"Date: {when}.",
    ]
    if command:
        lines.append(f"Command: {code(command)}.")
    return "\n".join(f"- {line}" for line in lines)


def _findings(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.findings:
        return ["## Findings", "No rule found anything."]
    explained = [f"- **{f.level}: {escape(f.code)}** ({f.net}): {escape(f.message)}." for f in diagnosis.findings]
    return ["## Findings", "\n".join(explained)]


def _causes(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.causes:
        return []
    listed = zip(diagnosis.causes, list_evidence(diagnosis.causes), strict=True)
    lines = [
        f"{rank}. **Hypothesis:** {escape(cause.text)}. **Evidence:** {escape('; '.join(evidence))}"
        for rank, (cause, evidence) in enumerate(listed, start=1)
    ]
    return ["## Likely causes, the most likely first", "\n".join(lines)]


def _table(table: Table) -> list[str]:
    return [f"## {table.title}", table.text, format_table(table)] if table.rows else []


def _notes(diagnosis: Diagnosis) -> list[str]:
    return ["## Notes", "\n".join(f"- {escape(note)}" for note in diagnosis.notes)] if diagnosis.notes else []
