"""``ssl-seg investigate``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import print_json, show
from ssl_seg.cli.tables import print_table
from ssl_seg.errors import ConfigError, name_examples
from ssl_seg.report.markdown import format_table
from ssl_seg.report.score_cells import format_interval
from ssl_seg.report.table import Table, TableRow

if TYPE_CHECKING:
    from ssl_seg.studies.investigation import Trial

COLUMNS = ("run", "hypothesis", "change", "expected", "F1", "gain", "95 % interval", "verdict", "then")
MOST_SHOWN = 4
"""Settings of a change; `config diff` has all."""


def investigate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN...", help="Runs to add to the table, even before they are trained."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Where hypotheses are kept.", show_default="investigation.yaml beside the first run"),
    ] = None,
    hypothesis: Annotated[str, typer.Option(help="Why the change of the last RUN should help.")] = "",
    expect: Annotated[
        float | None, typer.Option(help="Smallest expected gain of F1; if negative, the largest accepted loss.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Run to compare it with.", show_default="the one above it")
    ] = None,
    if_confirmed: Annotated[str, typer.Option(help="What to do when the gain is as expected.")] = "",
    if_refuted: Annotated[str, typer.Option(help="What to do when it is not.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Compare runs as an investigation: hypothesis, change, expected and measured gain of F1, verdict, decision.

    Gains are paired over the validation cases that both runs have scored. The table grows with each call.
    """
    from ssl_seg.studies import investigation

    place = _find_file(file, runs)
    base = None if against is None else investigation.name_run(place, against)
    said = {"hypothesis": hypothesis, "against": base, "expected": expect}
    said |= {"if_confirmed": if_confirmed, "if_refuted": if_refuted}
    _add_runs(place, runs or [], {key: value for key, value in said.items() if value not in (None, "")})
    trials = investigation.investigate(place)
    table = Table(str(place), "", COLUMNS, tuple(_make_row(trial) for trial in trials))
    if as_json:
        print_json({"file": str(place), "trials": [asdict(trial) for trial in trials]})
        return
    if markdown:
        show(format_table(table))
        return
    print_table(table)
    for trial in trials:
        if trial.stated_late:
            show(f"note: the expectation for {trial.name} was written down only after it had ended")
    show("note: intervals are over cases, for these trainings only; `ssl-seg ablate` tells whether other seeds agree")


def _find_file(file: Path | None, runs: Sequence[Path] | None) -> Path:
    """Return the file of the investigation."""
    from ssl_seg.studies.investigation import FILE

    if file is None and not runs:
        raise ConfigError(f"give runs to compare, or --file FOLDER/{FILE} of an investigation")
    place = file or (runs or [Path()])[0].parent / FILE
    if not runs and not place.is_file():
        raise ConfigError(f"{place}: no such file; name runs to begin an investigation there")
    return place


def _add_runs(place: Path, runs: Sequence[Path], said: Mapping[str, Any]) -> None:
    """Add the runs that the file does not have yet; what is said is said of the last one."""
    from ssl_seg.config.layers import validate
    from ssl_seg.run.directory import CONFIG_FILE
    from ssl_seg.studies.investigation import Statement, add_statement, name_run, read_statements

    if said and not runs:
        raise ConfigError("a hypothesis, or what is expected, needs the RUN that it is about")
    for run in runs:
        own = said if run == runs[-1] else {}
        if not own and name_run(place, run) in read_statements(place):
            continue
        if not own and not (run / CONFIG_FILE).is_file():
            raise ConfigError(f"{run} is not a run directory; to plan a training, say what it is for: --hypothesis")
        add_statement(place, run, validate(Statement, dict(own)))


def _make_row(trial: Trial) -> TableRow:
    gain, said = trial.gain, trial.statement
    score = "-" if trial.f1 is None else " ".join([f"{trial.f1:.3f}", *trial.codes])
    return (
        trial.name,
        said.hypothesis,
        name_examples([f"{c.setting} {c.a} -> {c.b}" for c in trial.changes], MOST_SHOWN),
        "" if said.expected is None else f"{said.expected:+.3f}",
        score,
        "-" if gain is None else f"{gain.f1:+.3f}",
        "-" if gain is None else format_interval(gain.low, gain.high, gain.why, "+.3f"),
        trial.verdict,
        trial.decision,
    )
