"""The folds of a cross-validation, and the scores over all of them.

::

    OUT/cross_validation.json          settings and results, written anew after each fold
    OUT/split_fold0.yaml   ...         the splits: one test list, and each other labeled case in validation once
    OUT/fold0/   fold1/    ...         run directories
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ssl_seg.config import NETS
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, quote
from ssl_seg.inference.scoring import Score, mean_of_known
from ssl_seg.results.study import MemberStatus, Study, StudyKind, load_study
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores, summarize_network


@dataclass(frozen=True)
class Fold:
    """The training of one fold. Scores are those of best.pt on the validation cases of the fold."""

    number: int
    """Number of the fold, from 0."""
    cases: int
    """Number of validation cases."""
    labeled: int
    """Number of labeled training cases."""
    status: MemberStatus = "waiting"
    net: str = ""
    """The better network of best.pt."""
    codes: tuple[str, ...] = ()
    """Codes of the last verdict's findings."""
    scores: dict[str, Score] = field(default_factory=dict)
    """Scores of each network; empty before the fold is done."""

    @property
    def name(self) -> str:
        """Name of its run directory."""
        return f"fold{self.number}"

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.name

    def summarize(self, net: str) -> dict[str, Any]:
        """Return the scores of a network in short."""
        return summarize_network(self.scores[net])


CrossValidation = Study[Fold]


def _dump(validation: CrossValidation) -> dict[str, Any]:
    """Return the rows of cross_validation.json without their cases, and the summary of those that are complete."""
    folds = validation.trainings
    shown = ("name", "number", "cases", "labeled", "status", "net", "codes")
    rows = [{n: getattr(f, n) for n in shown} | {net: f.summarize(net) for net in f.scores} for f in folds]
    return {"folds": rows, "summary": summarize_folds(folds) if all(fold.scores for fold in folds) else None}


def _parse(path: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of cross_validation.json with the scores of best.pt, which are in the runs themselves."""
    rows = []
    for row in values["folds"]:
        done = row["status"] != "waiting"
        final = load_final_scores(RunDir(path / row["name"])) if done else None
        scores = {} if final is None else final.of(final.used.source)
        if done and row["net"] not in scores:
            raise ValueError(f"{row['name']} is done and has no scores")
        rows.append({**row, "scores": scores})
    return rows


FOLDS = StudyKind(
    "cross_validation.json", "cross-validation", "folds", "ssl-seg train", ("epochs", "minutes"),
    TypeAdapter(CrossValidation), _dump, _parse,
)  # fmt: skip


def summarize_folds(folds: Sequence[Fold]) -> dict[str, Any]:
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
    """Return the score over the cases of all, with the mean of their average precisions: there is no common order."""
    known = [score.average_precision for score in scores if score.average_precision is not None]
    means = tuple(mean_of_known(column) for column in zip(*known, strict=True)) if len(known) == len(scores) else None
    return Score(tuple(case for score in scores for case in score.cases), scores[0].label_values, means)


def list_members(paths: Sequence[Path]) -> list[Path]:
    """Return the checkpoints that are meant: the directory of a cross-validation stands for best.pt of its folds.

    Raises:
        RunDirError: for a cross-validation that is not finished.
        RefusedError: for one with a fold that has collapsed, or has broken a gate.
        ConfigError: for a checkpoint that is named twice.
    """
    members: list[Path] = []
    for path in paths:
        if not FOLDS.is_in(path):
            members.append(path)
            continue
        validation = load_finished(path)
        if bad := [fold for fold in validation.trainings if fold.status != "done"]:
            kept = [validation.run_of(fold).best for fold in validation.trainings if fold.status == "done"]
            how = f"collapsed ({', '.join(bad[0].codes)})" if bad[0].status == "collapsed" else "broke a gate"
            others = f"Name the others: {' '.join(quote(p) for p in kept)}" if kept else "No fold is left"
            raise RefusedError(
                f"{path}: {', '.join(fold.name for fold in bad)} {how} and would spoil the mean. {others}"
            )
        members += list_checkpoints(validation)
    places = [path.resolve() for path in members]
    if twice := [path for n, path in enumerate(members) if places[n] in places[:n]]:
        raise ConfigError(f"{twice[0]} is named twice: give each checkpoint once")
    return members


def list_checkpoints(validation: CrossValidation) -> list[Path]:
    """Return best.pt of each fold."""
    return [validation.run_of(fold).best for fold in validation.trainings]


def load_finished(path: Path) -> CrossValidation:
    """Read a cross-validation of which all folds are trained.

    Raises:
        RunDirError: for one that is not, besides the reasons of ``load_study``.
    """
    validation = load_study(FOLDS, path)
    if waiting := [fold.name for fold in validation.trainings if fold.status == "waiting"]:
        raise RunDirError(
            f"{path} is not finished: {', '.join(waiting)} of {len(validation.trainings)} folds to do. Continue it "
            f"with `{FOLDS.resume(path)}`, or name the checkpoints of the finished folds"
        )
    return validation
