"""What scripts that compare many trainings share: each is made once, and the same command goes on after Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from ssl_seg.config.layers import Layer, flatten
from ssl_seg.run.console import Console
from ssl_seg.run.directory import CONFIG_FILE, RunDir
from ssl_seg.run.training import train
from ssl_seg.studies.training import Training, make_request


def train_once(
    out: Path,
    layers: Sequence[Layer],
    parent: Path | None = None,
    *,
    force: bool = False,
    console: Console | None = None,
) -> RunDir:
    """Train into ``out`` what is not trained yet: a finished run is left alone, and one that was stopped goes on.

    Raises:
        KeyboardInterrupt: where the training is interrupted, whose networks are not to be compared.
        RefusedError: for a parent that the gate refuses, without ``force``.
    """
    run = RunDir(out)
    request = make_request(Training(run, out.name, tuple(layers), parent, force=force))
    if request is not None and train(request, console).ending == "interrupted":
        raise KeyboardInterrupt
    return run


def check_same_settings(out: Path, wanted: Mapping[str, Any]) -> None:
    """End the script if there is a run in ``out`` that was made with other settings than ``wanted``, by dotted name."""
    path = out / CONFIG_FILE
    if not path.is_file():
        return
    settings = dict(flatten(yaml.safe_load(path.read_text(encoding="utf-8"))))
    if differing := [key for key, value in wanted.items() if settings.get(key) != value]:
        sys.exit(f"{out} was made with another {', '.join(differing)}: give another --out")


def map_runs(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
    """Yield the results in the order of the tasks, made by so many processes of one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes are the parallelism
    tasks = list(tasks)
    if workers == 1:
        yield from map(function, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(function, tasks)


def compute_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % t interval over the seeds, of which there are two at least."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(half)


def format_rows(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
