"""What a cross-validation has come to: its folds, the score over all of them, and the file that says so.

::

    OUT/cross_validation.json          settings and results, written anew after each fold
    OUT/split_fold0.yaml   ...         the splits: one test list, and each other labeled case in validation once
    OUT/fold0/   fold1/    ...         run directories
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter

from ssl_seg import __version__
from ssl_seg.config.layers import Layer
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, quote
from ssl_seg.files import is_disk_full, write_json
from ssl_seg.inference.scoring import Score
from ssl_seg.results.markers import FOLDS_FILE, is_cross_validation
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores, summarize_network

SCHEMA = 1
NETS = ("student", "teacher")

FoldStatus = Literal["waiting", "done", "collapsed"]
FoldsEnding = Literal["finished", "interrupted"]


@dataclass(frozen=True)
class FoldRun:
    """The training of one fold. Scores are those of best.pt on the validation cases of the fold."""

    number: int
    """From 0."""
    cases: int
    """Number of validation cases."""
    labeled: int
    """Number of labeled training cases."""
    status: FoldStatus = "waiting"
    net: str = ""
    """The better network of best.pt."""
    codes: tuple[str, ...] = ()
    """Of the last verdict."""
    scores: dict[str, Score] = field(default_factory=dict)
    """Of each network; empty before the fold is done."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"fold{self.number}"

    def summarize(self, net: str) -> dict[str, Any]:
        """Return the scores of a network in short."""
        return summarize_network(self.scores[net])


@dataclass(frozen=True)
class CrossValidation:
    """The folds of a cross-validation, trained as far as they say."""

    path: Path
    layers: tuple[Layer, ...]
    """Files and options it was begun with."""
    folds: tuple[FoldRun, ...]
    epochs: int | None = None
    minutes: float | None = None
    ending: FoldsEnding | None = None
    """How it ended; None while there is more to do."""

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """best.pt of each fold."""
        return tuple(self.run_of(fold).best for fold in self.folds)

    def run_of(self, fold: FoldRun) -> RunDir:
        """Return the run directory of a fold."""
        return RunDir(self.path / fold.name)

    def with_fold(self, fold: FoldRun) -> CrossValidation:
        """Return the cross-validation with one fold replaced."""
        return replace(self, folds=tuple(fold if old.number == fold.number else old for old in self.folds))


def summarize_fold(fold: FoldRun) -> dict[str, Any]:
    """Return the row of a fold in cross_validation.json, without its cases."""
    row = {name: getattr(fold, name) for name in ("name", "number", "cases", "labeled", "status", "net", "codes")}
    return row | {net: fold.summarize(net) for net in fold.scores}


def summarize_folds(folds: Sequence[FoldRun]) -> dict[str, Any]:
    """Return mean and standard deviation over folds, and the scores out of fold: of all cases, each by the network
    that has not been trained with it.

    The networks of two folds share most of their training cases, so the deviation over folds says how much the folds
    differ and is no standard error of their mean (Bengio & Grandvalet 2004). Out of fold is what the score of one more
    network of this kind is estimated by; best.pt and the better network were chosen on the same cases, which makes it
    somewhat too good. ``better`` stands for the better network of each fold.
    """
    summary: dict[str, Any] = {}
    for name in (*NETS, "better"):
        scores = [fold.scores[fold.net if name == "better" else name] for fold in folds]
        rows = [summarize_network(score) for score in scores]
        table = {key: [row[key] for row in rows] for key in ("f1", "f1_macro", "trivial_f1", "margin")}
        summary[name] = {
            "mean": {key: float(np.mean(values)) for key, values in table.items()},
            "sd": {key: float(np.std(values, ddof=1)) for key, values in table.items()},
            "out_of_fold": summarize_network(join_scores(scores)),
        }
    return summary


def join_scores(scores: Sequence[Score]) -> Score:
    """Return the score over the cases of all."""
    return Score(tuple(case for score in scores for case in score.cases), scores[0].label_values)


def list_members(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that are meant: the directory of a cross-validation stands for best.pt of its folds.

    Raises:
        RunDirError: for a cross-validation that is not finished.
        RefusedError: for one with a fold that has collapsed: its network would spoil a mean.
        ConfigError: for a checkpoint that is named twice.
    """
    members: list[Path] = []
    for path in paths:
        if not is_cross_validation(path):
            members.append(path)
            continue
        validation = load_finished(path)
        if bad := [fold for fold in validation.folds if fold.status == "collapsed"]:
            kept = [validation.run_of(fold).best for fold in validation.folds if fold.status == "done"]
            raise RefusedError(
                f"{path}: {', '.join(fold.name for fold in bad)} collapsed ({', '.join(bad[0].codes)}) and would spoil "
                f"the mean. Name the others: {' '.join(quote(p) for p in kept)}"
            )
        members += validation.checkpoints
    places = [path.resolve() for path in members]
    if twice := [path for n, path in enumerate(members) if places[n] in places[:n]]:
        raise ConfigError(f"{twice[0]} is named twice: give each checkpoint once")
    return members


def load_finished(path: Path) -> CrossValidation:
    """Read a cross-validation of which all folds are trained.

    Raises:
        RunDirError: for one that is not, besides the reasons of ``load_folds``.
    """
    validation = load_folds(path)
    if waiting := [fold.name for fold in validation.folds if fold.status == "waiting"]:
        raise RunDirError(
            f"{path} is not finished: {', '.join(waiting)} of {len(validation.folds)} folds to do. Continue it with "
            f"`ssl-seg train --resume {quote(path)}`, or name the checkpoints of the finished folds"
        )
    return validation


def save_folds_file(validation: CrossValidation) -> None:
    """Write cross_validation.json atomically.

    Raises:
        RunDirError: where the disk is full.
    """
    folds = validation.folds
    values = {
        "schema": SCHEMA,
        "version": __version__,
        "ending": validation.ending,
        "folds": [summarize_fold(fold) for fold in folds],
        "summary": summarize_folds(folds) if all(fold.scores for fold in folds) else None,
        "settings": {
            "epochs": validation.epochs,
            "minutes": validation.minutes,
            "layers": [asdict(layer) for layer in validation.layers],
        },
    }
    try:
        write_json(validation.path / FOLDS_FILE, values)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise RunDirError(
            f"the disk of {validation.path} is full; the folds trained so far are kept. Free some space, then continue "
            f"with `ssl-seg train --resume {quote(validation.path)}`"
        ) from error


def load_folds(path: Path) -> CrossValidation:
    """Read what ``save_folds_file`` wrote.

    Raises:
        RunDirError: for a folder without a cross-validation, or with one that another version wrote or that is damaged.
    """
    file = path / FOLDS_FILE
    if not file.is_file():
        raise RunDirError(f"{path} is no cross-validation: it has no {FOLDS_FILE}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise RunDirError(f"{file} has schema {values['schema']}; this version ({__version__}) reads {SCHEMA}")
        settings = values["settings"]
        folds = [{**row, "scores": _load_scores(path, row)} for row in values["folds"]]
        fields = {"path": path, "folds": folds, "ending": values["ending"], **settings}
        validation = TypeAdapter(CrossValidation).validate_python(fields)
        if not validation.folds or any(f.status != "waiting" and f.net not in f.scores for f in validation.folds):
            raise ValueError("folds that are done have no scores")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirError(f"{file} is damaged: it has not the form that `ssl-seg train` writes ({error})") from error
    return validation


def _load_scores(path: Path, row: dict[str, Any]) -> dict[str, Score]:
    """Return the scores of best.pt of a fold, from the run itself; empty where it is not done."""
    final = None if row["status"] == "waiting" else load_final_scores(RunDir(path / row["name"]))
    return {} if final is None else final.of(final.used.source)
