"""The main job, on synthetic images: how far do 1 % and 10 % of the labels go?"""

from __future__ import annotations

from pathlib import Path

import typer

from ssl_seg.cli.console import TerminalConsole, show
from ssl_seg.cli.pictures import draw_cases
from ssl_seg.cli.training import print_scores
from ssl_seg.config.layers import Layer
from ssl_seg.files import next_free
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run.directory import check_free
from ssl_seg.run.prepare import TrainRequest
from ssl_seg.run.training import TrainResult, train

SETTINGS = {
    "data": {"root": "synthetic:particles", "patch_size": [96, 96]},
    "batch": {"labeled": 4},
    "monitor": {"probe_patches": 24},
}
"""The plan with smaller patches, so that three trainings take less than two minutes on two cores."""


def run_demo(wanted: Path | None, steps: int) -> None:
    """Train at 1 %, at 10 % from there, and supervised at 10 % with equal steps; print a table, write a picture.

    Args:
        wanted: directory to create; the next free one of runs/demo, runs/demo-2, ... when None.
        steps: steps of each training.

    Raises:
        RunDirError: when ``wanted`` exists.
    """
    if wanted is not None:
        check_free(wanted)
    out = wanted or next_free(Path("runs/demo"))
    first = _train(out / "1pct", steps, "1 % labels, mean teacher", 0.01, "mean_teacher", None)
    second = _train(
        out / "10pct_bootstrap", steps, "10 % labels, started from the 1 % run", 0.10, "mean_teacher", first.run.best
    )
    baseline = _train(out / "10pct_supervised", steps, "10 % labels, supervised", 0.10, "supervised", None)
    typer.echo("")
    runs = [("1 %", first), ("10 % bootstrap", second), ("10 % supervised", baseline)]
    print_scores("validation, synthetic particles", [(name, result.scores) for name, result in runs])
    request = EvaluateRequest(second.run.best)
    picture = out / "predictions.png"
    draw_cases(request, evaluate(request), picture)
    show(f"wrote {picture}")
    show("one seed and few steps: this shows the way, not which method is better")


def _train(out: Path, steps: int, title: str, labels: float, method: str, parent: Path | None) -> TrainResult:
    show(f"== {title}: {out}")
    options = {"length": {"steps": steps, "steps_per_epoch": max(steps // 2, 1)}, "split": {"labels": labels}}
    layers = [Layer("--demo", SETTINGS), Layer("--demo", {**options, "method": {"name": method}})]
    if method == "mean_teacher":
        layers.append(Layer("--demo", {"batch": {"unlabeled": 4}}))
    result = train(TrainRequest(tuple(layers), out, parent), TerminalConsole())
    if result.ending == "interrupted":
        raise typer.Exit(130)
    return result
