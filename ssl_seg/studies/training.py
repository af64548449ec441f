"""One training of a study: how it is begun or continued, whoever runs it, and its outcome."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ssl_seg.config.layers import Layer
from ssl_seg.errors import RunDirError
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import SCORES_FILE, FinalScores, load_final_scores
from ssl_seg.run.request import TrainRequest


@dataclass(frozen=True)
class Training:
    """How a training of a study is begun, and what the line that announces it says of it, and of its start."""

    request: TrainRequest
    """Without the directory, which is that of the study's member."""
    title: str
    start: str = ""


def make_request(
    run: RunDir, training: Training, machine: Sequence[Layer] = (), note: Callable[[str], None] = lambda _: None
) -> TrainRequest | None:
    """Return how a training is begun or continued; None for one that has ended.

    Removes a run that was killed before its first checkpoint: there is nothing to continue.

    Args:
        run: its directory.
        training: how it is begun.
        machine: settings of the machine, which may change when the training is continued.
        note: takes the line that announces it.
    """
    if run.read_ending() is not None:
        return None
    if run.last.is_file():
        note(f"== {training.title}, continued: {run.path}")
        return TrainRequest(tuple(machine), resume=run.path, in_study=True)
    if run.path.exists():
        shutil.rmtree(run.path)
    note(f"== {training.title}{training.start}: {run.path}")
    layers = (*training.request.layers, *machine)
    return replace(training.request, layers=layers, out=run.path, in_study=True)


@dataclass(frozen=True)
class Outcome:
    """How a training ended, and the scores that it wrote at its end."""

    final: FinalScores
    codes: tuple[str, ...]
    """Codes of the last verdict's findings."""
    collapsed: bool
    """Whether the last verdict is ``collapsed``."""
    stopped: bool
    """Whether the collapse counts: the monitor stopped the training, or monitor.on_collapse is not ``warn``."""
    broken_gates: tuple[str, ...] = ()
    """A line for each gate that it has broken."""


def read_outcome(run: RunDir) -> Outcome:
    """Return the outcome of a training that has ended.

    Raises:
        RunDirError: when its scores are missing or damaged.
    """
    ending, final = run.read_ending() or {}, load_final_scores(run)
    if final is None:
        raise RunDirError(f"{run.path} has ended, but its {SCORES_FILE} is missing: put it back, or remove the folder")
    collapsed, ended = ending.get("verdict") == "collapsed", ending.get("event") == "collapsed"
    tolerated = load_checkpoint(run.best, lazy=True).config["monitor"]["on_collapse"] == "warn"
    stopped, codes = ended or (collapsed and not tolerated), tuple(ending.get("codes", ()))
    return Outcome(final, codes, collapsed, stopped, tuple(run.read_broken_gates()))
