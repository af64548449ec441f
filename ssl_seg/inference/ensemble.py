"""Several networks as one: the mean of their probabilities.

Shapes: C channels, K classes, *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.inference.decision import LIKELIEST, Decision
from ssl_seg.inference.model import Model, open_model
from ssl_seg.inference.scoring import PredictFn, Score, measure_ranking, measure_reliability, rank_voxels, score_case

_COMMON: dict[str, Callable[[Model], Any]] = {
    "images": lambda model: f"{model.config.data.ndim}D",
    "number of classes": lambda model: model.config.data.num_classes,
    "label values": lambda model: list(model.config.data.label_values),
    "image channels": lambda model: model.config.data.channels,
}
_GRID: dict[str, Callable[[Model], Any]] = {
    "data.resample_to": lambda model: _as_list(model.config.data.resample_to),
    "data.spacing": lambda model: _as_list(model.config.data.resample_to and model.config.data.spacing),
}
"""Matters only where probabilities are averaged; the voxel size of images only where they are resampled."""


def with_mean(parts: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yield the probabilities (K,*S) of each network, at least one, and at the end their mean.

    The sum takes the place of the first of them: each must have been used before the next one is asked for.
    """
    rest = iter(parts)
    total, count = next(rest), 1
    yield total
    for probs in rest:
        yield probs
        total, count = np.add(total, probs, out=total), count + 1
    yield np.divide(total, np.float32(count), out=total)


def pool(parts: Iterable[NDArray[np.float32]], *, spread: bool = False) -> NDArray[np.float32]:
    """Return the mean of the probabilities (K,...) of several networks.

    Args:
        parts: probabilities of each network, at least one; not changed. With ``spread``, (K+1,...): the last channel is
            a variance of the foreground probability.
        spread: whether there is that channel. That of the result is the variance over all: the mean of the variances
            within the networks and the variance between them.
    """
    rest = iter(parts)
    total, count = next(rest), 1
    squares = np.square(1 - total[0]) if spread else None
    for part in rest:
        total = np.add(total, part, out=None if count == 1 else total)
        squares = None if squares is None else squares + np.square(1 - part[0])
        count += 1
    if count == 1:
        return total
    np.divide(total, np.float32(count), out=total)
    if squares is not None:
        total[-1] += np.maximum(squares / count - np.square(1 - total[0]), 0)
    return total


def pool_rows(
    streams: Sequence[Iterator[tuple[int, NDArray[np.float32]]]], *, spread: bool = False
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row and what ``pool`` makes of some rows, from the rows of several networks, which may come in
    other portions."""
    heads = [next(stream) for stream in streams]
    while True:
        first, count = heads[0][0], min(rows.shape[1] for _, rows in heads)
        yield first, pool((rows[:, :count] for _, rows in heads), spread=spread)
        rest = [(first + count, rows[:, count:]) for _, rows in heads]
        found = [head if head[1].shape[1] else next(stream, None) for head, stream in zip(rest, streams, strict=True)]
        heads = [head for head in found if head is not None]
        if len(heads) < len(found):
            return


def open_members(
    paths: Sequence[Path], which: str | None = None, device: torch.device | None = None
) -> tuple[Model, ...]:
    """Return the checkpoints, each with only the network that is used: ``which``, or the better one on validation.

    Where they compute is as for ``open_model``.

    Raises:
        CheckpointError: see ``open_model``.
        ConfigError: for members that ``check_members`` refuses, whatever they are used for.
    """
    members = tuple(_keep_one(open_model(path, device), which) for path in paths)
    check_members(members)
    return members


def check_members(members: Sequence[Model], *, averaged: bool = False) -> None:
    """Check that the networks take the same images and know the same classes.

    Args:
        members: at least one.
        averaged: whether their probabilities are averaged, for which they must have the same voxel grid too.

    Raises:
        ConfigError: names the first two that differ, and in what.
    """
    first, *others = members
    for other in others:
        for name, read in (_COMMON | _GRID if averaged else _COMMON).items():
            if (here := read(first)) != (there := read(other)):
                raise ConfigError(
                    f"{first.path} and {other.path} do not go together: {name} {here} in the first and {there} in the "
                    "second. Give networks that were trained for the same images and classes"
                )


def score_cases(
    members: Sequence[PredictFn],
    store: CaseStore,
    case_ids: Sequence[str],
    *,
    mean: bool = False,
    decisions: Sequence[Decision] = (),
    surface: bool = False,
    track: Track = pass_through,
) -> tuple[Score, ...]:
    """Return the score of each network on labeled cases and, with ``mean``, that of their ensemble as the last one.

    One pass: each case is read, and predicted by each network, once.

    Args:
        members: raw image (C,*S) and its voxel size to probabilities (K,*S).
        case_ids: at least one.
        decisions: decisions of each score; by default the likeliest class counts.
        surface: compute surface distances of each class, in the unit of the voxel size; in voxels where it is unknown.

    Raises:
        DataError: without cases, or for a case without a mask.
    """
    if not case_ids:
        raise DataError("there is no labeled case to score")
    cuts = decisions or (LIKELIEST,) * (len(members) + mean)
    rows, rankings = [], [np.zeros((), np.int64)] * len(cuts)
    for case_id in track(case_ids, len(case_ids)):
        case, objects, task = store.load_whole(case_id), store.load_objects(case_id), store.catalog.meaning.task
        found = (member(case.image, case.spacing) for member in members)
        row = []
        for index, (probs, cut) in enumerate(zip(with_mean(found) if mean else found, cuts, strict=True)):
            row.append(score_case(case_id, case, probs, decision=cut, surface=surface, objects=objects, task=task))
            if case.target is not None:
                ranking = rank_voxels(probs, case.target)
                rankings[index] = rankings[index] + ranking
                row[-1] = replace(row[-1], average_precision=measure_ranking(ranking))
        rows.append(row)
    return tuple(
        Score(column, store.catalog.label_values[1:], measure_ranking(own), measure_reliability(own))
        for column, own in zip(zip(*rows, strict=True), rankings, strict=True)
    )


def _keep_one(model: Model, which: str | None) -> Model:
    """Return the model without the other network, and without the tensors of the file."""
    net = which or model.better
    if net not in model.nets:
        raise ConfigError(f"which = '{net}' must be student or teacher")
    emptied = replace(model.checkpoint, student={}, teacher={}, parts={})
    return replace(model, nets={net: model.nets[net]}, checkpoint=emptied)


def _as_list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)
