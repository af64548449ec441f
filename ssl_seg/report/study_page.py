"""The page of a ladder, a cross-validation or an ablation: its table, and its trainings beside each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssl_seg.errors import RunDirError, SslSegError, counted, quote
from ssl_seg.report.ablation_figures import FIGURES
from ssl_seg.report.comparison_page import make_curve_section, make_verdict_section
from ssl_seg.report.figures import Drawing
from ssl_seg.report.page import PAGE_FILE, Page, PageSection, keep_filled, to_data_uri
from ssl_seg.report.run_record import RunRecord, read_run
from ssl_seg.report.study_tables import make_fold_rows, make_rung_rows
from ssl_seg.report.table import Table, to_table
from ssl_seg.results.folds import FOLDS, summarize_folds
from ssl_seg.results.study import StudyKind, load_study
from ssl_seg.run.directory import CONFIG_FILE
from ssl_seg.run.final_scores import SCORES_FILE
from ssl_seg.studies.ablation.cells import MARKER, open_folder
from ssl_seg.studies.rungs import LADDER

ABLATION_RESULTS = "results.json"
_RENEW = "its `ssl-seg ablate` command with --report writes the tables"


def is_study(path: Path) -> bool:
    """Return whether a directory is that of several trainings."""
    return LADDER.is_in(path) or FOLDS.is_in(path) or (path / MARKER).is_file()


def make_study_page(path: Path, *, has_links: bool = True) -> Page:
    """Return the page of a ladder, a cross-validation or an ablation, finished or not.

    ``has_links``: whether it will lie in the directory, so that it can link to the pages of the trainings there.

    Raises:
        RunDirError: for one whose file is damaged, or an ablation without tables.
    """
    if LADDER.is_in(path):
        ladder = load_study(LADDER, path)
        tables: list[Table] = [to_table("Rungs", make_rung_rows(ladder))]
        return _make_page(LADDER, path, tables, [rung.name for rung in ladder.trainings], has_links=has_links)
    if FOLDS.is_in(path):
        validation = load_study(FOLDS, path)
        is_whole = all(fold.scores for fold in validation.trainings)
        rows = make_fold_rows(validation, summarize_folds(validation.trainings) if is_whole else None)
        text = "Margin: of the better network of each fold."
        text += " Folds share training cases: sd is not a standard error." * is_whole
        tables = [to_table("Folds, each on its validation cases", rows, text)]
        return _make_page(FOLDS, path, tables, [fold.name for fold in validation.trainings], has_links=has_links)
    return _make_ablation_page(path)


def _make_page(
    kind: StudyKind[Any], path: Path, tables: Sequence[Table], names: Sequence[str], *, has_links: bool
) -> Page:
    records = {name: record for name in names if (record := _read(path / name)) is not None}
    missing = [name for name in names if name not in records]
    notes = (f"Not started, or not readable: {', '.join(missing)}.",) if missing else ()
    linked = [name for name in records if has_links and (path / name / PAGE_FILE).is_file()]
    commands = tuple(f"`ssl-seg report {quote(path / name)}`" for name in records if name not in linked)
    sections = (
        PageSection("Scores", notes, tables=tuple(tables)),
        make_verdict_section(records),
        make_curve_section(records),
        PageSection("Pages of the trainings", commands, links=tuple(f"{name}/{PAGE_FILE}" for name in linked)),
    )
    return Page(f"{kind.name.capitalize()} {path.resolve().name}", str(path), None, sections)


def _read(path: Path) -> RunRecord | None:
    if not (path / CONFIG_FILE).is_file():
        return None
    try:
        return read_run(path)
    except SslSegError:
        return None


def _make_ablation_page(path: Path) -> Page:
    """Return the page of the table and the figures that ``ablate`` has written."""
    table, warnings = _read_table(path)
    since = (path / ABLATION_RESULTS).stat().st_mtime
    newer = sum(file.stat().st_mtime > since for file in path.glob(f"cells/*/run/{SCORES_FILE}"))
    if newer:
        warnings += (f"{counted(newer, 'training', 'have')} ended since this table was written: {_RENEW}",)
    figures = tuple(
        Drawing(title, caption, f'<img src="{to_data_uri((path / name).read_bytes(), "png")}" alt="{title}">')
        for name, (title, caption, _) in FIGURES.items()
        if (path / name).is_file()
    )
    folders = sorted(path.glob("cells/*/run"))
    records = {_name_cell(folder.parent): record for folder in folders if (record := _read(folder)) is not None}
    sections = (
        PageSection("Table of the arms", warnings, tables=(table,)),
        PageSection("Figures", drawings=figures),
        make_verdict_section(records),
        make_curve_section(records),
    )
    return Page(f"Ablation {path.resolve().name}", str(path), None, keep_filled(sections))


def _name_cell(folder: Path) -> str:
    """Return the name of a cell and the beginning of its id."""
    about = open_folder(folder.parents[1], folder.name).about
    try:
        return f"{json.loads(about.read_text(encoding='utf-8'))['name']} ({folder.name[:6]})"
    except (OSError, ValueError, KeyError, TypeError):
        return folder.name


def _read_table(path: Path) -> tuple[Table, tuple[str, ...]]:
    """Return the table of the arms in the results of an ablation, and its warnings."""
    file = path / ABLATION_RESULTS
    if not file.is_file():
        raise RunDirError(f"{path} is an ablation without tables yet: {_RENEW}")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        table, warnings = results["table"], results["summary"]["warnings"]
        rows = tuple(tuple(map(str, row)) for row in table["rows"])
        return Table("", table["text"], tuple(table["columns"]), rows), tuple(warnings)
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirError(f"{file} holds no tables of this version ({error!r}): {_RENEW}") from None
