"""``ssl-seg data batches``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli.console import TerminalConsole, announce, show
from ssl_seg.cli.data_settings import ACCELERATOR, Accelerator
from ssl_seg.cli.places import check_data, check_figure
from ssl_seg.cli.run_settings import parse_label_amount

if TYPE_CHECKING:
    from ssl_seg.data.findings import Finding
    from ssl_seg.data.loader import PatchSource
    from ssl_seg.report.views_figure import LabeledPatch, UnlabeledPatch

SHOWN_PATCHES = 4


def data_batches(
    config: Annotated[
        str | None, typer.Argument(help="YAML file or packaged name, as for train.", show_default=False)
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Batches to look at, from the first step on.", min=1, max=10**6)] = 10,
    data: Annotated[str | None, typer.Option(help="Folder, or synthetic:particles|sheets.")] = None,
    labels: Annotated[
        float | None,
        typer.Option(
            help="Labeled share of the training pool, or a number of cases above 1.",
            parser=parse_label_amount,
            metavar="SHARE|NUMBER",
        ),
    ] = None,
    accelerator: Annotated[Accelerator | None, ACCELERATOR] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of the first patches and their views.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as for train. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show what the batches of a training hold, beside what its labeled cases and settings promise."""
    from ssl_seg.cli.run_settings import make_layers
    from ssl_seg.data.findings import findings_to_dict

    check_figure(figure)
    check_data(data)
    layers = make_layers(config, {"data": data, "labels": labels, "accelerator": accelerator}, set_)
    announce("loading PyTorch")
    from ssl_seg.diagnose.batches import compute_expected, measure_batch, summarize_batches
    from ssl_seg.run.preflight import check_layers
    from ssl_seg.run.prepare import TrainRequest, make_plan
    from ssl_seg.run.sources import device_of, make_source, open_store

    check_layers(layers)
    track = TerminalConsole().track
    plan = make_plan(TrainRequest(layers), track("reading cases"), gpu=device_of(layers).type != "cpu")
    if not as_json:
        labeled, pool = (find(plan.config.split.labels) for find in (plan.split.labeled_ids, plan.split.pool_ids))
        show(f"{plan.catalog.root}: layout {plan.catalog.layout}, {len(labeled)} labeled, {len(pool)} unlabeled")
    source = make_source(plan.config, open_store(plan.catalog, plan.config.data), plan.split)
    expected = compute_expected(source, plan.catalog.facts)
    contents = [measure_batch(source[step], expected.positive) for step in track("making batches")(range(n), n)]
    summary, findings = summarize_batches(contents, expected)
    if figure is not None:
        _draw(source, figure)
    if as_json:
        typer.echo(json.dumps(findings_to_dict(findings, summary), indent=2))
    else:
        _print(summary, findings)
        if figure is not None:
            show(f"wrote {figure}")


def _print(summary: dict[str, Any], findings: list[Finding]) -> None:
    from ssl_seg.cli.console import print_table
    from ssl_seg.data.findings import describe_finding

    rows = [[str(step), *_format(figures)] for step, figures in enumerate(summary["batches"])]
    expected = summary["expected"]
    least, most = (f"{expected[name]:.2%}" for name in ("foreground", "most_foreground"))
    wanted = _format({**expected, "cases": ""})
    wanted[3] = least if least == most else f"{least} .. {most}"
    rows += [["all", *_format(summary["total"])], ["expected", *wanted]]
    columns = ["labeled", "unlabeled", "cases", "foreground", "patches with it", "of positive cases", "ignored"]
    print_table(f"{len(summary['batches'])} batches: labeled voxels and patches", ["step", *columns], rows)
    show(
        f"{expected['positive_cases']:.0%} of the labeled cases have foreground; "
        f"{expected['centered_patches']:.0%} of the labeled patches are centered on it"
    )
    if expected["positive_weight"] != 1:
        show(f"the ratio is that of weighted draws with weight {expected['positive_weight']:.3g} for such cases")
    for finding in findings:
        show(f"{finding.level}: {describe_finding(finding)}")


def _format(figures: dict[str, Any]) -> list[str]:
    numbers = [str(figures[name]) for name in ("labeled", "unlabeled", "cases")]
    names = ("foreground", "positive_patches", "from_positive_cases", "ignored")
    shares = [figures.get(name) for name in names]
    return [*numbers, *("-" if share is None else f"{share:.2%}" for share in shares)]


def _draw(source: PatchSource, path: Path) -> None:
    """Write a picture of the first patches; there may be several batches in it."""
    from ssl_seg.report.figures import to_gray
    from ssl_seg.report.views_figure import LabeledPatch, UnlabeledPatch, plot_views

    labeled: list[LabeledPatch] = []
    unlabeled: list[UnlabeledPatch] = []
    has_unlabeled = bool(source.unlabeled and source.counts[1])
    for step in itertools.count():
        if len(labeled) >= SHOWN_PATCHES and (len(unlabeled) >= SHOWN_PATCHES or not has_unlabeled):
            break
        batch = source[step]
        for case_id, image, target in zip(batch.case_ids, batch.image, batch.target, strict=False):
            labeled.append(LabeledPatch(case_id, to_gray(image.numpy()), target.numpy()))
        for index, case_id in enumerate(batch.case_ids[len(batch.image) :]):
            mixed = None if batch.mix is None else batch.mix.mask[index].numpy()
            weak, strong = (to_gray(views[index].numpy()) for views in (batch.weak, batch.strong))
            unlabeled.append(UnlabeledPatch(case_id, weak, strong, mixed))
    plot_views(labeled[:SHOWN_PATCHES], unlabeled[:SHOWN_PATCHES], path)
