"""What a run directory says about a run, collected for its page. Reads files only: no network, no image."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import NETS, Config
from ssl_seg.config.layers import check_partial, flatten, read_layers, to_plain
from ssl_seg.data.pictures import spread
from ssl_seg.data.splits.files import load_split
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import RunDirError, SslSegError, counted, name_examples, quote
from ssl_seg.files import now
from ssl_seg.monitor.catalog import CODES, beats_trivial
from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE, describe_pretraining
from ssl_seg.report.score_cells import name_subject
from ssl_seg.run.directory import (
    CONFIG_FILE,
    ENVIRONMENT_FILE,
    METRICS_FILE,
    SPLIT_FILE,
    RunDir,
    find_ending,
    find_last,
    open_run_dir,
    read_header,
)
from ssl_seg.run.final_scores import FinalScores, NetworkScore, load_final_scores, summarize_network
from ssl_seg.run.request import TrainRequest
from ssl_seg.scores.text import number

MOST_LOOKS = 400
"""Looks of a run that are drawn; of more, evenly spread ones."""

State = Literal["healthy", "warning", "collapsed", "fault"]
"""What a page is marked with: runs and diagnoses are never ``fault``, data and splits never ``collapsed``."""
STATES: Mapping[str, State] = {"ok": "healthy", "warn": "warning", "collapsed": "collapsed"}


@dataclass(frozen=True)
class Looks:
    """The records of metrics.jsonl that are drawn, in the order of their steps; a figure that a record lacks is NaN."""

    steps: NDArray[np.int64]
    """(L)."""
    levels: tuple[str, ...]
    """(L) verdicts: ``ok``, ``warn`` or ``collapsed``."""
    values: Mapping[str, NDArray[np.float64]]
    """(L) of each figure that any of the records has."""
    histograms: Mapping[str, NDArray[np.float64]]
    """(L, bins) shares of voxels by probability, of each network."""
    total: int
    """Records that there are."""

    def last(self, name: str) -> float | None:
        """Return the last known value of a figure."""
        if name not in self.values:
            return None
        return float(self.values[name][np.isfinite(self.values[name])][-1])


@dataclass(frozen=True)
class Banner:
    """The verdict in words: the state of a run, of data or of a split, why, and what to do next."""

    state: State
    title: str
    reasons: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class RunRecord:
    """All that a run directory says."""

    run: RunDir
    looks: Looks
    events: tuple[dict[str, Any], ...]
    final: FinalScores | None
    """None before the end of the run."""
    config: Config | None
    """None where the settings are not those of this version."""
    settings: tuple[tuple[str, str, str], ...]
    """Dotted name, value and origin."""
    split: Split | None
    environment: Mapping[str, Any]
    faults: tuple[str, ...]
    """Files that cannot be read, in words."""
    goes_on: bool = False
    """Whether its training is going on: files alone do not tell that from a run that was killed."""

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.run.path.resolve().name

    @property
    def ending(self) -> Mapping[str, Any] | None:
        """The last event, if it ends the run."""
        return find_ending(self.events)

    @property
    def step(self) -> int:
        """Updates made, as far as is recorded."""
        looked = int(self.looks.steps[-1]) if len(self.looks.steps) else 0
        return max(looked, int((self.ending or {}).get("step") or 0))

    @property
    def used(self) -> NetworkScore | None:
        """The network that is used, once the run has ended."""
        return None if self.final is None else self.final.used

    @cached_property
    def used_scores(self) -> dict[str, Any] | None:
        """Its scores on the whole validation cases, as `evaluate` and `train` show them."""
        return None if self.used is None else summarize_network(self.used.score)

    @cached_property
    def banner(self) -> Banner:
        """What is to be said first."""
        return judge_run(self)


def read_run(path: Path, *, goes_on: bool = False) -> RunRecord:
    """Read a run directory, of a run that is finished or not; ``goes_on``: whether its training is going on.

    Raises:
        RunDirError: for a folder that holds no run, or that of a pre-training.
    """
    if (path / PRETRAINING_FILE).is_file():
        raise RunDirError(describe_pretraining(path))
    run = open_run_dir(path)
    faults: list[str] = []

    def read(what: str, reader: Any) -> Any:
        try:
            return reader()
        except (SslSegError, OSError, ValueError) as error:
            faults.append(f"{what} cannot be read: {error}")
            return None

    split_file, environment = path / SPLIT_FILE, path / ENVIRONMENT_FILE
    config = read(CONFIG_FILE, lambda: _read_config(run))
    return RunRecord(
        run,
        read_looks(path / METRICS_FILE),
        tuple(run.read_events()),
        read("scores.json", lambda: load_final_scores(run)),
        config,
        () if config is None else _list_settings(config, read_header(run)),
        read(SPLIT_FILE, lambda: load_split(split_file)) if split_file.is_file() else None,
        read(ENVIRONMENT_FILE, lambda: json.loads(environment.read_text("utf-8"))) or {},
        tuple(faults),
        goes_on,
    )


def _read_config(run: RunDir) -> Config:
    return check_partial(TrainRequest(tuple(read_layers(str(run.path / CONFIG_FILE)))).settings)[0]


def _list_settings(config: Config, header: str) -> tuple[tuple[str, str, str], ...]:
    """Return name, value and origin of each setting: planned, with its reason, the default, or given by the user.

    The options of the method are written out with their defaults, which are the method's own.
    """
    planned: dict[str, str] = {}
    for line in header.splitlines():
        if line.startswith("planned: ") and " = " in line:
            name, _, rest = line.removeprefix("planned: ").partition(" = ")
            planned[name] = rest.partition(" (")[2].removesuffix(")")
    default, _ = check_partial(TrainRequest(()).settings)
    defaults = dict(flatten(to_plain(default)))
    rows = []
    for name, value in flatten(to_plain(config)):
        origin = f"planned: {planned[name]}" if name in planned else ""
        if name.startswith("method.options."):
            origin = origin or "default of the method, or given"
        origin = origin or ("default" if name in defaults and defaults[name] == value else "given")
        rows.append((name, json.dumps(value, ensure_ascii=False), origin))
    return tuple(rows)


def read_looks(path: Path, most: int = MOST_LOOKS) -> Looks:
    """Read at most ``most`` records of metrics.jsonl, evenly spread, the first and the last one among them.

    Only these are parsed, so a file of a hundred thousand records takes no memory to speak of. Lines cut short by a
    crash are left out.
    """
    total = 0
    if path.is_file():
        with path.open("rb") as lines:
            total = sum(1 for _ in lines)
    wanted = {*spread(range(total), most), *range(max(total - 2, 0), total)}  # the last line may be cut short
    records: dict[int, dict[str, Any]] = {}
    if total:
        with path.open("rb") as lines:
            for index, line in enumerate(lines):
                if index in wanted and (record := _parse(line)) is not None:
                    records[record["step"]] = record
    ordered = [records[step] for step in sorted(records)]
    names = dict.fromkeys(name for record in ordered for name, value in record.items() if _is_figure(value))
    values = {name: np.array([_to_float(record.get(name)) for record in ordered]) for name in names if name != "step"}
    histograms = {net: _stack([record.get(f"val/{net}/prob_histogram") for record in ordered]) for net in NETS}
    return Looks(
        np.array([record["step"] for record in ordered], np.int64),
        tuple(str(record.get("verdict", "ok")) for record in ordered),
        {name: column for name, column in values.items() if np.isfinite(column).any()},
        {net: stacked for net, stacked in histograms.items() if stacked is not None},
        total,
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _to_float(value: Any) -> float:
    return float(value) if _is_figure(value) and value is not None and math.isfinite(value) else math.nan


def _stack(rows: Sequence[Any]) -> NDArray[np.float64] | None:
    """Return (L, bins), NaN where a record has no histogram; None where no record has one."""
    bins = max((len(row) for row in rows if isinstance(row, list)), default=0)
    whole = [row if isinstance(row, list) and len(row) == bins else [None] * bins for row in rows]
    return np.array([[_to_float(value) for value in row] for row in whole]) if bins else None


def judge_run(record: RunRecord) -> Banner:
    """Return the verdict of a run in words: that of its monitor, and what `train` and `diagnose` say of the network
    that is used."""
    ending, looks, path = record.ending, record.looks, quote(record.run.path)
    level = _last_level(record)
    findings = _last_findings(record) if level != "ok" else ()
    reasons = [f"{_explain(f['code'])}. {_name_net(f)}{f.get('message', '')}" for f in findings[:1]]
    if others := list(dict.fromkeys(f["code"] for f in findings[1:] if f["code"] != findings[0]["code"])):
        reasons.append(f"Also: {name_examples(map(_explain, others), 3, between='; ')}")
    used, scores = record.used, record.used_scores
    is_trivial = scores is not None and not beats_trivial(scores["f1_macro"], scores["trivial_f1"])
    usable = used is not None and not used.collapsed and used.score.nonfinite == 0 and not is_trivial
    if scores is not None:
        reasons.append(_describe_used(record, scores, usable=usable, collapsed=level == "collapsed"))
        reasons += describe_few_cases(record)
    state, kind = STATES[level], None if ending is None else ending["event"]
    if level == "collapsed":
        since = _find_since(record)
        title = "Collapsed" if since is None else f"Collapsed at step {since:,}"
        title += ", stopped by the monitor" if kind == "collapsed" else ""
        checkpoint = record.run.last if record.run.last.is_file() else record.run.path
        commands = [f"ssl-seg diagnose {quote(checkpoint)}"]
    elif kind == "refused":
        state, title = "warning", f"Ended by a gate at step {record.step:,}"
        gates = (e for e in record.events if e.get("event") == "gate" and not e.get("passed"))
        reasons = [*(str(e.get("text")) for e in gates), *reasons]
        commands = [f"ssl-seg diagnose {path}"]
    elif ending is None or kind == "interrupted":
        title, commands = _describe_unfinished(record, level)
        state = "warning" if kind == "interrupted" and state == "healthy" else state
    elif is_trivial:
        state, title, commands = (
            "warning",
            "Finished, and no better than a trivial predictor",
            [f"ssl-seg diagnose {path}"],
        )
    elif level == "warn":
        title, commands = "Finished, with a warning", [f"ssl-seg diagnose {path}", f"ssl-seg evaluate {path}"]
    else:
        title = "Healthy: the networks have learned" if usable else "Finished"
        commands = [f"ssl-seg evaluate {path}", f"ssl-seg predict {path} IMAGES OUTPUT"]
    if record.goes_on:
        when = f"{now()[:16].replace('T', ' ')} UTC"
        reasons.insert(
            0, f"The run was still training when this page was written, after {_describe_progress(record)}, {when}"
        )
    if not len(looks.steps):
        reasons.append("Nothing is recorded yet: there was no look at the networks.")
    if findings and (action := find_last(record.events, "verdict").get("action")):
        reasons.append(f"Try: {action}")
    return Banner(state, title, tuple(reasons), tuple(commands))


def _last_level(record: RunRecord) -> str:
    """Return the level of the verdict with which the run has ended, else of the last look."""
    told = [*record.looks.levels[-1:], *(str(event.get("verdict")) for event in (record.ending,) if event is not None)]
    return next((level for level in reversed(told) if level in STATES), "ok")


def _last_findings(record: RunRecord) -> Sequence[Mapping[str, Any]]:
    return [f for f in find_last(record.events, "verdict").get("findings", ()) if "code" in f]


def _find_since(record: RunRecord) -> int | None:
    """Return the step of the first of the verdicts without interruption up to the end that are a collapse."""
    since = None
    for event in record.events:
        if event.get("event") == "verdict":
            since = (since if since is not None else event.get("step")) if event.get("level") == "collapsed" else None
    return since


def _explain(code: str) -> str:
    """Return what a code means, as a sentence, with the code for those who look it up."""
    meaning = CODES.get(code, "")
    return f"{meaning[:1].upper()}{meaning[1:]} ({code})" if meaning else code


def _name_net(finding: Mapping[str, Any]) -> str:
    return "" if finding.get("net") in (None, "training") else f"{str(finding['net']).capitalize()}: "


def _describe_used(record: RunRecord, scores: Mapping[str, Any], *, usable: bool, collapsed: bool) -> str:
    used = record.used
    where = "" if used is None else f"the {used.net} of step {used.step:,}{', untrained' if used.step == 0 else ''}"
    cases = counted(scores["n_cases"], "whole validation case")
    compared = (
        f"F1{name_subject(scores)} {number(scores['f1_macro'])} on {cases}, "
        f"{scores['margin']:+.3f} to predicting foreground everywhere ({number(scores['trivial_f1'])})"
    )
    if scores["margin_low"] is not None and scores["margin_high"] is not None:
        compared += f", 95 % interval {scores['margin_low']:+.3f} to {scores['margin_high']:+.3f}"
    if not usable:
        return f"Do not use best.pt, {where}: {compared}"
    return f"best.pt {'is from before the collapse: ' if collapsed else 'holds '}{where}, {compared}"


def describe_few_cases(record: RunRecord) -> list[str]:
    """Return what to do where a run that is no fold has too few validation cases for an interval of its margin."""
    scores, is_fold = record.used_scores, record.config is not None and record.config.split.folds is not None
    if scores is None or is_fold or scores["margin_low"] is not None or not scores["trivial_f1"]:
        return []
    return [
        f"Judged by {counted(scores['n_cases'], 'case')}, which is too few to tell: train with --folds 5 --fold all, "
        "where each labeled image is validated on once, or label more"
    ]


def _describe_unfinished(record: RunRecord, level: str) -> tuple[str, list[str]]:
    kind = "Going on" if record.goes_on else "Interrupted" if record.ending else "Not finished"
    health = {"ok": "healthy so far", "warn": "with a warning"}.get(level, level)
    title = f"{kind}: at {_describe_progress(record)}, {health}" if len(record.looks.steps) else f"{kind}: no look yet"
    resumes = record.run.last.is_file() and not record.goes_on
    return title, [f"ssl-seg train --resume {quote(record.run.path)}"] if resumes else []


def _describe_progress(record: RunRecord) -> str:
    total = "" if record.config is None else f" of {record.config.length.steps:,}"
    return f"step {record.step:,}{total}"
