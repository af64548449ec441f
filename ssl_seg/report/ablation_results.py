"""What ``ssl-seg ablate`` writes beside its cells: the table in four forms, a row for each cell, and the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssl_seg.files import to_finite, write_json, write_text
from ssl_seg.report.ablation_figures import plot_ablation
from ssl_seg.report.ablation_tables import format_cells_csv, format_latex, format_markdown, make_arm_table
from ssl_seg.report.study_page import ABLATION_RESULTS
from ssl_seg.studies.ablation.cells import CellResult
from ssl_seg.studies.ablation.spec import AblationSpec
from ssl_seg.studies.ablation.summary import AblationSummary, summarize


def write_results(
    spec: AblationSpec, results: Sequence[CellResult], out: Path
) -> tuple[AblationSummary, dict[str, Any], tuple[str, ...]]:
    """Compare the arms by the cells that have a score, and write what is found, in place of older files.

    Returns:
        The comparison; the content of results.json; the names of all files.

    Raises:
        OSError, DataError: for a place that cannot be written.
    """
    score = spec.score
    summary = summarize(results, score.metric, spec.baseline, part=score.part, checkpoint=score.checkpoint)
    values: dict[str, Any] = to_finite(
        {
            "spec": spec.model_dump(mode="json"),
            "summary": _to_plain(summary),
            "table": asdict(make_arm_table(summary)),
        }
    )
    write_json(out / ABLATION_RESULTS, values)
    texts = {
        "results.csv": format_cells_csv(results),
        "table.md": format_markdown(summary),
        "table.tex": format_latex(summary),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return summary, values, (*texts, ABLATION_RESULTS, *plot_ablation(summary, out))


def _to_plain(summary: AblationSummary) -> dict[str, Any]:
    """Return the summary for JSON; the counts of each case stay in the cells' own files."""
    values = asdict(summary)
    for arm in values["arms"]:
        for cell in arm["cells"]:
            del cell["counts"]
    return values
