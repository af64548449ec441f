"""Rungs of a ladder and folds of a cross-validation as rows of a table, the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ssl_seg.report.score_cells import make_score_cells, name_subject, show_difference

if TYPE_CHECKING:
    from ssl_seg.results.folds import CrossValidation
    from ssl_seg.studies.rungs import LabelLadder, Rung


def make_rung_rows(ladder: LabelLadder) -> list[dict[str, Any]]:
    """Return a row for each rung."""
    scored = find_scored(ladder)
    return [_make_rung_row(rung, scored) for rung in ladder.trainings]


def find_scored(ladder: LabelLadder) -> dict[str, Any] | None:
    """Return the scores of any network of the ladder, which say what figures are of; None before there are any."""
    return next((rung.scores[rung.net] for rung in ladder.trainings if rung.scores), None)


def _make_rung_row(rung: Rung, scored: dict[str, Any] | None) -> dict[str, Any]:
    networks = [rung.scores.get(net, {}) for net in ("student", "teacher", rung.net)]
    return {
        "rung": rung.number,
        "labels": rung.amount,
        "cases": rung.cases,
        "start": _describe_start(rung),
        **make_score_cells("" if scored is None else name_subject(scored), *networks),
        **show_difference(None if rung.difference is None else asdict(rung.difference), "to its parent"),
        "": "kept" if rung.kept else "worse: its parent is kept" if rung.status == "done" else rung.status,
    }


def _describe_start(rung: Rung) -> str:
    if rung.status in ("waiting", "skipped"):
        return "-"
    if rung.parent is None:
        return "scratch"
    return f"labels of rung {rung.parent}" if rung.round else f"rung {rung.parent}"


def make_fold_rows(result: CrossValidation, summary: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row for each fold, for mean and deviation over them, and for the scores out of fold.

    Args:
        result: a cross-validation.
        summary: from ``summarize_folds``; None where not all folds are trained, which leaves out what is of all.
    """
    nets = ("student", "teacher", "better")
    scored = next((fold.summarize(fold.net) for fold in result.trainings if fold.scores), None)
    of = "" if scored is None else name_subject(scored)
    rows = []
    for fold in result.trainings:
        scores = [fold.summarize(net) if fold.scores else {} for net in ("student", "teacher", fold.net)]
        codes = ",".join(fold.codes)
        shown = fold.status if fold.status == "waiting" else f"{fold.status.upper()} {codes}".rstrip()
        state = codes or "ok" if fold.status == "done" else shown
        rows.append({"fold": fold.number, "cases": fold.cases, **make_score_cells(of, *scores), "": state})
    if summary is None:
        return rows
    for name in ("mean", "sd"):
        rows.append({"fold": name, **make_score_cells(of, *(summary[net][name] for net in nets))})
    cells = make_score_cells(of, *(summary[net]["out_of_fold"] for net in nets))
    rows.append(
        {"fold": "out of fold", "cases": sum(fold.cases for fold in result.trainings), **cells, "": "all cases"}
    )
    return rows
