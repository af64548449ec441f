"""What scripts share that make trainings: many, each made once and continued after Ctrl-C; or one, step by step."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning_fabric import Fabric
from scipy import stats
from torch import nn

from ssl_seg.config.layers import Layer, flatten
from ssl_seg.config.schedules import make_ema_schedule
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.open import make_source, open_store
from ssl_seg.data.sampling import derive_seed
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.inference.model import start_network
from ssl_seg.losses import make_supervised_loss
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import build, find_plain
from ssl_seg.networks.precision import Autocast, choose_precision, make_autocast
from ssl_seg.run.assembly import make_engine
from ssl_seg.run.console import Console
from ssl_seg.run.directory import CONFIG_FILE, RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved
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
    request = make_request(run, Training(TrainRequest(tuple(layers), bootstrap=parent, force=force), out.name))
    if request is not None and train(request, console).ending == "interrupted":
        raise KeyboardInterrupt
    return run


@dataclass(frozen=True)
class Assembled:
    """What a run trains with, without its directory: to be timed step by step."""

    engine: Engine
    source: PatchSource
    """Source of the batches."""
    nets: Mapping[str, nn.Module]
    """The plain networks of student and teacher."""
    precision: str
    autocast: Autocast


def assemble(plan: Resolved, device: torch.device) -> Assembled:
    """Return the engine, the networks and the batches of a planned run, as ``train`` makes them."""
    config = plan.config
    torch.manual_seed(derive_seed(config.seed))
    supervised = make_supervised_loss(config.loss)
    method = make_method(config.method.name, config.method.options, supervised, config.data.num_classes)
    built = build(method, partial(start_network, config), config.data.num_classes)
    for module in (built.module, method):
        if isinstance(module, nn.Module):
            module.to(device)
    example = torch.randn(config.patches, config.data.channels, *config.data.patch_size, device=device)
    precision = choose_precision(config.runtime.precision, built.plain, example)[0]
    runtime = config.runtime.model_copy(update={"precision": precision})
    config = config.model_copy(update={"runtime": runtime})
    teacher = EMATeacher(built.module, make_ema_schedule(config.ema, config.length.steps))
    store, views = open_store(plan.catalog, config.data), METHODS[config.method.name].traits.strong_views
    return Assembled(
        make_engine(Fabric(accelerator=device.type, devices=1), config, built, teacher),
        make_source(config, store, plan.labeled, plan.unlabeled, strong_views=views),
        {"student": built.plain, "teacher": find_plain(method, teacher.net)},
        precision,
        make_autocast(precision, device),
    )


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
