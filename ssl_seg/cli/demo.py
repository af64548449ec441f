"""``ssl-seg demo``: the main job on synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli.console import INTERRUPTED, TerminalConsole, announce, show
from ssl_seg.cli.train import print_scores

if TYPE_CHECKING:
    from ssl_seg.run.training import TrainResult

SETTINGS = {
    "data": {"root": "synthetic:particles", "patch_size": [96, 96]},
    "batch": {"labeled": 4},
    "monitor": {"probe_patches": 24},
}
"""The plan with smaller patches, so that three trainings take less than two minutes on two cores."""


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to create for the runs and the picture.", show_default="runs/demo, -2, ..."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each training.", min=20, max=10**9)] = 100,
) -> None:
    """Show the main workflow on synthetic particles: 1 % labels, then 10 % from there, beside a supervised baseline."""
    announce()
    from ssl_seg.files import next_free
    from ssl_seg.report.case_pictures import choose_spread, draw_cases
    from ssl_seg.results.evaluation import EvaluateRequest, evaluate
    from ssl_seg.run.directory import check_free

    if out is not None:
        check_free(out)
    out = out or next_free(Path("runs/demo"))
    first = _train(out / "1pct", steps, "1 % labels, mean teacher", 0.01, "mean_teacher", None)
    second = _train(
        out / "10pct_bootstrap", steps, "10 % labels, started from the 1 % run", 0.10, "mean_teacher", first.run.best
    )
    baseline = _train(out / "10pct_supervised", steps, "10 % labels, supervised", 0.10, "supervised", None)
    typer.echo("")
    runs = {"1 %": first.scores, "10 % bootstrap": second.scores, "10 % supervised": baseline.scores}
    print_scores("validation, synthetic particles", runs)
    request = EvaluateRequest(second.run.best)
    picture = out / "predictions.png"
    result = evaluate(request)
    draw_cases(request, choose_spread(result["cases"], 5), result["which"], picture)
    show(f"wrote {picture}")
    show("one seed and few steps: this shows how it works, not which method is better")


def _train(out: Path, steps: int, title: str, labels: float, method: str, parent: Path | None) -> TrainResult:
    from ssl_seg.config.layers import Layer
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.training import train

    show(f"== {title}: {out}")
    options = {"length": {"steps": steps, "steps_per_epoch": max(steps // 2, 1)}, "split": {"labels": labels}}
    layers = [Layer("--demo", SETTINGS), Layer("--demo", {**options, "method": {"name": method}})]
    if method == "mean_teacher":
        layers.append(Layer("--demo", {"batch": {"unlabeled": 4}}))
    result = train(TrainRequest(tuple(layers), out, parent), TerminalConsole())
    if result.ending == "interrupted":
        raise typer.Exit(INTERRUPTED)
    return result
