"""What a ladder of label fractions has come to: its rungs, how they compare, and the file that says so.

::

    LADDER/ladder.json   settings, results, and the checkpoint to use; written anew after each rung
    LADDER/split.yaml    the split of all rungs
    LADDER/rung1_0.01/   rung2_0.1/ ...     run directories
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ssl_seg import __version__
from ssl_seg.config.data import check_label_amount, format_label_amount
from ssl_seg.config.layers import Layer
from ssl_seg.errors import ConfigError, RunDirError
from ssl_seg.files import write_json
from ssl_seg.results.markers import LADDER_FILE
from ssl_seg.run.directory import RunDir
from ssl_seg.scores.intervals import draw_resamples, estimate_difference

SCHEMA = 1

RungStatus = Literal["waiting", "done", "collapsed", "refused"]
LadderEnding = Literal["finished", "interrupted", "collapsed", "refused"]


@dataclass(frozen=True)
class Difference:
    """F1 of a rung minus that of its parent on the same cases (mean over classes), with its 95 % interval; ``low`` and
    ``high`` are None where there is none, and ``why`` says why."""

    f1: float
    low: float | None
    high: float | None
    why: str = ""


@dataclass(frozen=True)
class Rung:
    """One training of the ladder. Scores are those of best.pt on the validation cases, empty without one."""

    number: int
    """From 1."""
    labels: float
    """Share of the training pool, or a number of cases above 1."""
    cases: int
    """Number of labeled cases."""
    status: RungStatus = "waiting"
    parent: int | None = None
    """Number of the rung it started from; None for a start from scratch."""
    net: str = ""
    """The better network of best.pt."""
    scores: dict[str, Any] = field(default_factory=dict)
    difference: Difference | None = None
    """To the parent; None without one."""
    kept: bool = False
    """Whether it is better than all rungs below, so that the next one starts from it."""
    codes: tuple[str, ...] = ()
    """Of the last verdict."""
    message: str = ""
    """Why it was refused."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"rung{self.number}_{self.labels:g}"

    @property
    def amount(self) -> str:
        """Its labels as a setting says them."""
        return format_label_amount(self.labels)


@dataclass(frozen=True)
class LabelLadder:
    """A ladder of label fractions, climbed as far as its rungs say."""

    path: Path
    layers: tuple[Layer, ...]
    """Files and options it was begun with."""
    rungs: tuple[Rung, ...]
    epochs: int | None = None
    minutes: float | None = None
    force: bool = False
    ending: LadderEnding | None = None
    """How it ended; None while there is more to do."""

    @property
    def best(self) -> Rung | None:
        """The rung that the next one starts from: the last one that was better than all below it."""
        return next((rung for rung in reversed(self.rungs) if rung.kept), None)

    @property
    def ended(self) -> Rung | None:
        """The rung that ended it, by a refusal or a collapse."""
        return next((rung for rung in reversed(self.rungs) if rung.status == self.ending), None)

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to use: best.pt of the best rung."""
        return None if self.best is None else self.run_of(self.best).best

    def run_of(self, rung: Rung) -> RunDir:
        """Return the run directory of a rung."""
        return RunDir(self.path / rung.name)

    def with_rung(self, rung: Rung) -> LabelLadder:
        """Return the ladder with one rung replaced."""
        return replace(self, rungs=tuple(rung if old.number == rung.number else old for old in self.rungs))


def check_labels(labels: Sequence[float]) -> None:
    """Do nothing, if these are the rungs of a ladder.

    Raises:
        ConfigError: for none, a value that is no amount of labels, or values that do not increase (all, 1.0, last).
    """
    if not labels:
        raise ConfigError("--labels: give the label fractions of the rungs, for example --labels 0.01 0.10 1.0")
    shown = " ".join(map(str, labels))
    try:
        amounts = [check_label_amount(amount) for amount in labels]
    except ValueError as error:
        raise ConfigError(f"--labels {shown}: {error}") from None
    ordered = sorted(set(amounts), key=lambda amount: (amount == 1, amount))
    if amounts != ordered:
        raise ConfigError(
            f"--labels {shown}: each rung needs more labels than the one below; "
            f"give --labels {' '.join(map(format_label_amount, ordered))}"
        )


def compare_counts(new: NDArray[np.int64], old: NDArray[np.int64]) -> Difference:
    """Return pooled F1 (mean over classes) of one network minus that of another, with the interval over paired cases.

    Both are resampled together: a resample of easy cases makes neither look better.

    Args:
        new, old: (cases, classes, 4) voxels tp, fp, fn, tn on the same cases.
    """
    found = estimate_difference(new[None], old[None], "f1", draw_resamples(len(new)))
    return Difference(found.value, found.low, found.high, found.why)


def summarize_rung(rung: Rung) -> dict[str, Any]:
    """Return the row of a rung in ladder.json."""
    return {"name": rung.name, **asdict(rung)}


def save_ladder(ladder: LabelLadder) -> None:
    """Write ladder.json atomically."""
    used = ladder.checkpoint
    values = {
        "schema": SCHEMA,
        "version": __version__,
        "ending": ladder.ending,
        "checkpoint": None if used is None else used.relative_to(ladder.path).as_posix(),
        "rungs": [summarize_rung(rung) for rung in ladder.rungs],
        "settings": {
            "epochs": ladder.epochs,
            "minutes": ladder.minutes,
            "force": ladder.force,
            "layers": [asdict(layer) for layer in ladder.layers],
        },
    }
    write_json(ladder.path / LADDER_FILE, values)


def load_ladder(path: Path) -> LabelLadder:
    """Read what ``save_ladder`` wrote.

    Raises:
        RunDirError: for a folder without a ladder, or with one that another version wrote or that is damaged.
    """
    file = path / LADDER_FILE
    if not file.is_file():
        what = "no folder" if not path.is_dir() else f"no ladder: it has no {LADDER_FILE}"
        hint = ". Of a single run: ssl-seg train --resume" if (path / "config.yaml").is_file() else ""
        raise RunDirError(f"{path} is {what}{hint}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise RunDirError(f"{file} has schema {values['schema']}; this version ({__version__}) reads {SCHEMA}")
        settings = values["settings"]
        fields = {"path": path, "rungs": values["rungs"], "ending": values["ending"], **settings}
        ladder = TypeAdapter(LabelLadder).validate_python(fields)
        if not ladder.rungs or (ladder.ending in ("collapsed", "refused") and ladder.ended is None):
            raise ValueError("it has not the rungs that its ending speaks of")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirError(f"{file} is damaged: it has not the form that `ssl-seg ladder` writes ({error})") from error
    return ladder
