"""``ssl-seg data batches``."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import TerminalConsole, announce, print_json, show
from ssl_seg.cli.paths import check_data, check_new_file
from ssl_seg.cli.tables import print_findings, print_rows

if TYPE_CHECKING:
    from ssl_seg.data.findings import Finding
    from ssl_seg.data.loader import PatchSource
    from ssl_seg.report.views_figure import LabeledPatch, UnlabeledPatch

SHOWN_PATCHES = 4
SHARES = {
    "foreground": "foreground",
    "patches with it": "positive_patches",
    "of positive cases": "from_positive_cases",
    "ignored": "ignored",
}
"""Title of a column -> share in the summary of a batch."""


def data_batches(
    config: o.ConfigArgument = None,
    n: Annotated[int, typer.Option("--n", help="Batches to look at, from the first step on.", min=1, max=10**6)] = 10,
    data: o.Data = None,
    labels: o.LabelsOption = None,
    accelerator: o.Accelerator = None,
    figure: o.Figure = None,
    set_: o.Set = None,
    as_json: o.AsJson = False,
) -> None:
    """Compare what the batches of a training hold with what its labeled cases and settings promise."""
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.data.findings import findings_to_dict

    check_new_file(figure)
    check_data(data)
    layers = make_layers(config, {"data": data, "labels": labels, "accelerator": accelerator}, set_)
    announce()
    from ssl_seg.data.open import make_source, open_store
    from ssl_seg.diagnose.batches import compute_expected, measure_batch, summarize_batches
    from ssl_seg.methods import METHODS
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.resolve import resolve

    track = TerminalConsole().track
    resolved = resolve(TrainRequest(layers), track("reading cases"), gpu=None)
    catalog, labeled, unlabeled = resolved.catalog, resolved.labeled, resolved.unlabeled
    if not as_json:
        show(f"{catalog.root}: layout {catalog.layout}, {len(labeled)} labeled, {len(unlabeled)} unlabeled")
    views = METHODS[resolved.config.method.name].traits.strong_views
    store = open_store(catalog, resolved.config.data, resolved.pseudo_labels)
    source = make_source(resolved.config, store, labeled, unlabeled, strong_views=views)
    expected = compute_expected(source, store.catalog.facts)
    contents = [measure_batch(source[step], expected.positive) for step in track("making batches")(range(n), n)]
    summary, findings = summarize_batches(contents, expected)
    if figure is not None:
        _draw(source, figure)
    if as_json:
        print_json(findings_to_dict(findings, summary))
    else:
        _print(summary, findings)
        if figure is not None:
            show(f"wrote {figure}")


def _print(summary: dict[str, Any], findings: list[Finding]) -> None:
    expected = summary["expected"]
    least, most = (f"{expected[name]:.2%}" for name in ("foreground", "most_foreground"))
    wanted = _make_row("expected", {**expected, "cases": ""})
    wanted["foreground"] = least if least == most else f"{least} .. {most}"
    rows = [_make_row(step, figures) for step, figures in enumerate(summary["batches"])]
    title = f"{len(summary['batches'])} batches: labeled voxels and patches"
    print_rows(title, [*rows, _make_row("all", summary["total"]), wanted])
    show(
        f"{expected['positive_cases']:.0%} of the labeled cases have foreground; "
        f"{expected['centered_patches']:.0%} of the labeled patches are centered on it"
    )
    if expected["positive_weight"] != 1:
        show(f"the ratio is that of weighted draws with weight {expected['positive_weight']:.3g} for such cases")
    print_findings(findings)


def _make_row(step: int | str, figures: dict[str, Any]) -> dict[str, Any]:
    row = {"step": step} | {name: figures[name] for name in ("labeled", "unlabeled", "cases")}
    for title, name in SHARES.items():
        share = figures.get(name)
        row[title] = "-" if share is None else f"{share:.2%}"
    return row


def _draw(source: PatchSource, path: Path) -> None:
    """Write a picture of the first patches; there may be several batches in it."""
    from ssl_seg.report.figures import to_gray
    from ssl_seg.report.views_figure import LabeledPatch, StrongView, UnlabeledPatch, plot_views

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
            strong = tuple(
                StrongView(to_gray(view[index].numpy()), None if mix is None else mix.mask[index].numpy())
                for view, mix in zip(batch.strong, batch.mixes, strict=True)
            )
            unlabeled.append(UnlabeledPatch(case_id, to_gray(batch.weak[index].numpy()), strong))
    plot_views(labeled[:SHOWN_PATCHES], unlabeled[:SHOWN_PATCHES], path)
