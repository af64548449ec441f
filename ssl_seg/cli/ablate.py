"""``ssl-seg ablate``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import INTERRUPTED, announce, print_json, show
from ssl_seg.cli.tables import print_rows, print_table
from ssl_seg.errors import RunDirError, counted, printable_lines

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer
    from ssl_seg.studies.ablation.cells import Cell, CellResult
    from ssl_seg.studies.ablation.execute import CellState
    from ssl_seg.studies.ablation.launchers import Launcher
    from ssl_seg.studies.ablation.spec import AblationSpec


def ablate(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC", help="YAML file, or the name of a packaged ablation.", show_default=False)
    ],
    data: o.Data = None,
    labels: o.LabelList = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Seeds of the training: --seeds 0 1 2 or 0,1,2.", show_default="SPEC"),
    ] = None,
    steps: o.Steps = None,
    part: Annotated[
        Literal["val", "test"] | None, typer.Option(help="Cases that are scored; test opens the sealed list.")
    ] = None,
    metric: Annotated[Literal["dice", "f1"] | None, typer.Option(help="Mean Dice of the cases, or pooled F1.")] = None,
    set_: o.Set = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the cells and tables; finished cells are not run again.", show_default="runs/SPEC_DATA"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Cells at a time on this machine.", show_default="one per GPU, or per 2 cores", min=1),
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Ray cluster instead: auto, or HOST:PORT.")
    ] = None,
    cpus_per_cell: Annotated[
        int | None, typer.Option(help="With --ray: cores of each cell.", show_default="1", min=1)
    ] = None,
    gpus_per_cell: Annotated[
        float | None,
        typer.Option(
            help="With --ray: GPUs of each cell; 0.5 lets two share.",
            parser=o.number_parser("--gpus-per-cell", o.NOT_NEGATIVE, "0.5"),
            show_default="0",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and their state; train nothing.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Train nothing; write tables and figures of finished cells.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Train label fractions x methods x recipes x seeds at equal steps; compare them with intervals and tests.

    Cells are identified by the content of their settings, so that a second call trains only what is missing, even after
    a crash. Exit code 2 when a cell failed, 3 when a gate ended one.
    """
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.cli.paths import check_data
    from ssl_seg.run.directory import name_data
    from ssl_seg.studies.ablation.cells import check_place, is_planned_for_gpu, open_folder, read_result, write_cells
    from ssl_seg.studies.ablation.spec import find_data_root, find_spec, read_spec

    options = {
        "--labels": ("labels", list(o.parse_labels(labels or ())) or None),
        "--seeds": ("seeds", seeds and o.parse_seeds(seeds)),
        "--data": ("overrides.data.root", data),
        "--steps": ("overrides.length.steps", steps),
        "--part": ("score.part", part),
        "--metric": ("score.metric", metric),
    }
    wanted = read_spec(spec, _make_layers(options, set_))
    root = find_data_root(wanted)
    place = out or Path("runs") / f"{find_spec(spec).stem}_{name_data(root)}"
    check_data(root)
    check_place(place)
    announce()
    from ssl_seg.studies.ablation.resolve import resolve_cells

    first = is_planned_for_gpu(place)
    gpu = first if first is not None else bool(gpus_per_cell) if ray is not None else bool(_find_gpus())
    cells = resolve_cells(
        wanted,
        gpu=gpu,
        track=TerminalConsole().track("reading data and settings"),
        note=lambda text: show(f"ablate: {text}", err=True),
    )
    if dry_run:
        _print_cells(cells, [read_result(place, cell, wanted.score) for cell in cells])
        return
    if not report:
        launcher = _make_launcher(workers, ray, cpus_per_cell, gpus_per_cell)
        write_cells(place, cells, gpu=gpu)
        _run_cells(cells, place, wanted, launcher)
    results = [read_result(place, cell, wanted.score) for cell in cells]
    if all(not open_folder(place, cell.id).about.is_file() for cell in cells):
        raise RunDirError(
            f"{place} holds none of the {len(cells)} cells: are --out and options those it was made with?"
        )
    try:
        _report(wanted, results, place, as_json=as_json)
    except OSError as error:
        raise RunDirError(f"the tables cannot be written to {place}: {error.strerror}") from error
    if any(result.status == "failed" for result in results):
        raise typer.Exit(2)
    if any(result.status == "refused" for result in results):
        raise typer.Exit(3)


def _run_cells(cells: Sequence[Cell], place: Path, spec: AblationSpec, launcher: Launcher) -> None:
    from ssl_seg.cli.ablate_view import show_cells
    from ssl_seg.report.ablation_results import write_results
    from ssl_seg.report.run_report import RunningPage, write_report_page
    from ssl_seg.studies.ablation.cells import read_result
    from ssl_seg.studies.ablation.execute import execute

    def write(out: Path) -> None:
        write_results(spec, [read_result(out, cell, spec.score) for cell in cells], out)
        write_report_page([out])

    def note(text: str) -> None:
        sys.stderr.write(f"{printable_lines(text)}\n")  # typer would write into the middle of the live view

    page = RunningPage(note, write)
    with show_cells() as show_states:

        def watch(states: Sequence[CellState]) -> None:
            show_states(states)
            page(place)

        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is one like Ctrl-C
        try:
            ending = execute(cells, place, spec.score, launcher, watch)
        finally:
            signal.signal(signal.SIGTERM, before)
    if ending == "interrupted":
        show(f"interrupted; finished cells are kept in {place}. Run the same command to resume.", err=True)
        raise typer.Exit(INTERRUPTED)


def _make_layers(options: Mapping[str, tuple[str, Any]], overrides: Sequence[str] | None) -> list[Layer]:
    """Return the options, each with its key and value, and each ``--set`` as layers over the file of the ablation."""
    from ssl_seg.cli.settings import parse_overrides
    from ssl_seg.config.layers import Layer, nest

    layers = [Layer(f"{name} {value}", nest(key, value)) for name, (key, value) in options.items() if value is not None]
    settings = parse_overrides(overrides)
    return layers + [Layer(layer.source, {"overrides": layer.values}, is_option=True) for layer in settings]


def _make_launcher(
    workers: int | None, ray: str | None, cpus_per_cell: int | None, gpus_per_cell: float | None
) -> Launcher:
    from ssl_seg.engine.machine import count_cores
    from ssl_seg.studies.ablation.launchers import make_local_launcher, make_ray_launcher

    if ray is None:
        gpus = _find_gpus()
        return make_local_launcher(workers or len(gpus) or max(1, count_cores() // 2), gpus)
    return make_ray_launcher(ray, cpus_per_cell or 1, gpus_per_cell or 0.0)


def _find_gpus() -> list[str]:
    """Return the names of the GPUs of this machine, as CUDA_VISIBLE_DEVICES takes them."""
    import os

    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(number) for number in range(torch.cuda.device_count())]


def _print_cells(cells: Sequence[Cell], results: Sequence[CellResult]) -> None:
    rows = [
        {
            "cell": cell.name,
            "id": cell.id,
            "labeled": cell.labeled,
            "steps": cell.steps,
            "state": result.status,
            "": result.message,
        }
        for cell, result in zip(cells, results, strict=True)
    ]
    print_rows(counted(len(cells), "cell"), rows)


def _report(spec: AblationSpec, results: Sequence[CellResult], out: Path, *, as_json: bool) -> None:
    """Write table, rows, figures and page beside the cells, and print the table."""
    from ssl_seg.report.ablation_results import write_results
    from ssl_seg.report.ablation_tables import make_arm_table
    from ssl_seg.report.run_report import write_when_trained

    summary, values, names = write_results(spec, results, out)
    write_when_trained(out, lambda text: show(text, err=True))
    if as_json:
        print_json(values)
        return
    print_table(replace(make_arm_table(summary), title=str(out)))
    for warning in summary.warnings:
        show(f"note: {warning}")
    for result in results:
        if result.status in ("refused", "failed"):
            show(f"{result.status}: {result.id} {result.arm.method} {result.arm.labels:g}: {result.message}")
    show(f"wrote {', '.join(names)} to {out}")
