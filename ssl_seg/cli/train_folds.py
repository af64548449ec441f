"""``ssl-seg train --folds N --fold K|all``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ssl_seg.cli.console import begin, end_interrupted, show
from ssl_seg.errors import ConfigError, quote

if TYPE_CHECKING:
    from ssl_seg.config.layers import Settings
    from ssl_seg.results.folds import CrossValidation
    from ssl_seg.run.request import TrainRequest


def check_folds(folds: int | None, fold: str | None, settings: Settings) -> None:
    """Check the number of folds, and that a fold is one of them.

    Raises:
        ConfigError: names the first option that is wrong.
    """
    if folds is None and fold is None:
        return
    count = folds if folds is not None else settings.get("split.folds")
    if count is None:
        raise ConfigError(f"--fold {fold}: the number of folds is missing; write --folds 5 --fold {fold}")
    if not isinstance(count, int) or count < 2:
        raise ConfigError(f"--folds {count}: a cross-validation has at least 2 folds, for example --folds 5")
    if fold is not None and fold != "all" and not (fold.isdecimal() and int(fold) < count):
        raise ConfigError(f"--fold {fold}: the {count} folds are 0 to {count - 1}, or all")


def run_folds(asked: TrainRequest, bootstrap: Path | None, given: Mapping[str, Any]) -> None:
    """Train the folds, or continue them, and print the table; the exit code says how it ended.

    Args:
        asked: what a single run would be asked for.
        bootstrap: value of ``--bootstrap``.
        given: parameters of ``ssl-seg train``.

    Raises:
        ConfigError: for an option that is of a single run.
    """
    from ssl_seg.cli.settings import check_paths
    from ssl_seg.engine.machine import is_main_process
    from ssl_seg.results.folds import FOLDS
    from ssl_seg.results.study import check_request

    check_request(FOLDS, replace(asked, bootstrap=bootstrap))
    check_paths(asked.settings)
    if asked.out is not None:
        FOLDS.check_free(asked.out)
    console = begin(given)
    from ssl_seg.report.run_report import make_pages_of_study
    from ssl_seg.studies.cross_validation import cross_validate

    result = cross_validate(asked, console, make_pages_of_study(console.note))
    if not is_main_process():
        return
    if result.ending == "interrupted":
        waiting = next((fold.name for fold in result.trainings if fold.status == "waiting"), "the end")
        end_interrupted(f"at {waiting}", f"ssl-seg train --resume {quote(result.path)}")
    _report(result)
    if any(fold.status != "done" for fold in result.trainings):
        raise typer.Exit(3)


def _report(result: CrossValidation) -> None:
    from ssl_seg.cli.tables import print_rows
    from ssl_seg.monitor.catalog import beats_trivial
    from ssl_seg.report.score_cells import describe_absent
    from ssl_seg.report.study_tables import make_fold_rows
    from ssl_seg.results.folds import FOLDS, summarize_folds

    summary = summarize_folds(result.trainings)
    print_rows(f"{len(result.trainings)} folds, validation, {result.path}", make_fold_rows(result, summary))
    show("margin: that of the better network of each fold; folds share training cases, so sd is not a standard error")
    for fold in result.trainings:
        for line in describe_absent(fold.summarize(fold.net)):
            show(f"{fold.name}: {line}")
    show(f"wrote {result.path / FOLDS.file}")
    for fold in result.trainings:
        if fold.status == "collapsed":
            show(f"{fold.name} collapsed; next: ssl-seg diagnose {quote(result.run_of(fold).last)}", err=True)
        elif fold.status == "refused":
            show(f"{fold.name} was ended by a gate: {'; '.join(result.run_of(fold).read_broken_gates())}", err=True)
    pooled = summary["better"]["out_of_fold"]
    if not beats_trivial(pooled["f1_macro"], pooled["trivial_f1"]):
        worst = min(result.trainings, key=lambda fold: fold.summarize(fold.net)["margin"])
        show(f"no better than foreground everywhere; next: ssl-seg diagnose {quote(result.run_of(worst).best)}")
    elif all(fold.status == "done" for fold in result.trainings):
        show(
            f"next: ssl-seg evaluate {quote(result.path)} --test\n"
            f"      ssl-seg predict {quote(result.path)} IMAGES OUTPUT"
        )
