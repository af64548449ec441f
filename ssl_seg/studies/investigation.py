"""An investigation: what was changed from run to run, what was expected of it, and what came of it.

::

    RUNS/investigation.yaml   hypotheses and expectations, a block a run; figures always come from the runs
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from pydantic import Field

from ssl_seg.config.layers import read_yaml, validate
from ssl_seg.config.section import Section
from ssl_seg.data.splits.files import load_split
from ssl_seg.errors import ConfigError
from ssl_seg.files import now, write_text
from ssl_seg.run.differences import SettingChange, compare_settings
from ssl_seg.run.directory import CONFIG_FILE, SPLIT_FILE, RunDir, open_run_dir
from ssl_seg.run.final_scores import compare_on_shared_cases, load_final_scores
from ssl_seg.scores.intervals import Difference

FILE = "investigation.yaml"

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"


class Statement(Section):
    """What was said about a run, at best before it was trained."""

    hypothesis: str = ""
    """Why the change should help."""
    against: str | None = None
    """The run that it is compared with, as the file names it; the one above unless given."""
    expected: float | None = Field(None, ge=-1, le=1)
    """Least gain of F1; a negative number is the largest loss that is accepted."""
    if_confirmed: str = ""
    """What will be done then."""
    if_refuted: str = ""
    """What will be done then."""
    stated: str = ""
    """When this was written down."""


@dataclass(frozen=True)
class Trial:
    """A run of an investigation with what was said about it and what its files say."""

    name: str
    statement: Statement
    against: str | None
    """Name of the run that it is compared with; None for the first."""
    changes: tuple[SettingChange, ...] = ()
    """Settings that differ from that run."""
    f1: float | None = None
    """F1 of the network that is used, on validation (mean over classes); None before the run has ended."""
    codes: tuple[str, ...] = ()
    """Codes of the last verdict's findings."""
    gain: Difference | None = None
    """F1 minus that of the other run on the validation cases of both; None where there is nothing to compare."""
    cases: int = 0
    """Number of these cases."""
    verdict: str = ""
    decision: str = ""
    """What was to be done in this case."""
    stated_late: bool = False
    """Whether the statement was written down after the run had ended."""


def read_statements(file: Path) -> dict[str, Statement]:
    """Return name of a run, relative to the folder of the file -> what was said about it, in the order of the file.

    Raises:
        ConfigError: for a file that cannot be read or has other keys, or a run that is compared with none above it.
    """
    if not file.is_file():
        return {}
    found: dict[str, Statement] = {}
    for name, values in read_yaml(file).items():
        if values is not None and not isinstance(values, Mapping):
            raise ConfigError(f"{file}: {name}: {values!r} must be a mapping with {', '.join(Statement.model_fields)}")
        found[name] = statement = validate(Statement, dict(values or {}), prefix=f"{file}: {name}.")
        if statement.against is not None and (statement.against == name or statement.against not in found):
            raise ConfigError(f"{file}: {name}: against: {statement.against} is not the name of a run above it")
    return found


def add_statement(file: Path, run: Path, statement: Statement) -> None:
    """Add a run and what is said about it at the end of the file; what stands there stays as it is.

    Raises:
        ConfigError: for a run that is in the file already, or a statement that ``read_statements`` refuses.
    """
    known = read_statements(file)
    name = name_run(file, run)
    if name in known:
        raise ConfigError(f"{file} has {name} already: change what it says there")
    if statement.against is not None and statement.against not in known:
        raise ConfigError(f"--against {statement.against}: {file} has no such run, only {', '.join(known) or 'none'}")
    values = statement.model_copy(update={"stated": now()}).model_dump(exclude_defaults=True)
    text = (
        file.read_text(encoding="utf-8").rstrip() + "\n" if known else "# Written and read by `ssl-seg investigate`.\n"
    )
    write_text(file, text + yaml.safe_dump({name: values}, sort_keys=False, allow_unicode=True))


def name_run(file: Path, run: Path) -> str:
    """Return what the file calls a run: its path from the folder of the file."""
    return Path(os.path.relpath(run, file.parent)).as_posix()


def investigate(file: Path) -> list[Trial]:
    """Return a trial for each run of the file, with figures from the run directories.

    Raises:
        SslSegError: for a file or a run that cannot be read.
    """
    trials: list[Trial] = []
    for name, statement in read_statements(file).items():
        against = statement.against or (trials[-1].name if trials else None)
        trials.append(_examine(file.parent, name, statement, against))
    return trials


def judge(gain: Difference, expected: float | None) -> str:
    """Return what the interval of a gain says.

    A gain that is expected is confirmed where the interval is above 0 and reaches it, a loss that is accepted where the
    interval is above it. Either is refuted where the interval lies below it.
    """
    if gain.low is None or gain.high is None:
        return "unknown"
    if expected is None:
        return BETTER if gain.low > 0 else WORSE if gain.high < 0 else NO_DIFFERENCE
    if gain.high < expected:
        return REFUTED
    return CONFIRMED if gain.low > min(expected, 0.0) else UNDECIDED


def _examine(folder: Path, name: str, statement: Statement, against: str | None) -> Trial:
    """Return the trial of a run, as far as it and the run that it is compared with have come."""
    path, other = folder / name, None if against is None else folder / against
    if not (path / CONFIG_FILE).is_file():
        return Trial(name, statement, against, verdict="not trained yet")
    run = open_run_dir(path)
    known = other is not None and (other / CONFIG_FILE).is_file()
    trial = Trial(name, statement, against, tuple(compare_settings(other, path)) if other and known else ())
    ending, final = run.read_ending(), load_final_scores(run)
    if ending is None or final is None:
        return replace(trial, verdict="not finished yet")
    late = bool(statement.hypothesis or statement.expected is not None) and statement.stated > ending["time"]
    trial = replace(trial, f1=final.used.score.f1_macro, codes=tuple(ending.get("codes", ())), stated_late=late)
    if other is None:
        return replace(trial, verdict="the start")
    base = load_final_scores(RunDir(other))
    if base is None:
        return replace(trial, verdict=f"unknown: {against} has not finished")
    contents = (load_split(path / SPLIT_FILE).content, load_split(other / SPLIT_FILE).content)
    if (compared := compare_on_shared_cases(final.used.score, base.used.score, contents)) is None:
        return replace(trial, verdict="unknown: no validation case in common")
    gain, cases = compared
    verdict = judge(gain, statement.expected)
    decision = {CONFIRMED: statement.if_confirmed, REFUTED: statement.if_refuted}.get(verdict, "")
    return replace(trial, gain=gain, cases=cases, verdict=verdict, decision=decision)
