"""``ssl-seg suggest``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import TerminalConsole, announce, show
from ssl_seg.cli.paths import check_data, check_new_file, describe_loading, take_checkpoint
from ssl_seg.cli.tables import print_rows
from ssl_seg.errors import counted

if TYPE_CHECKING:
    from ssl_seg.report.audit_figure import Sample
    from ssl_seg.results.suggestion import Pool, Suggestion

LONGEST_SIDE = 512
"""Pixels of an image on the contact sheet, at most."""


class StrategyName(StrEnum):
    """Ways to choose."""

    CLASP_PE, DIVERSITY, RANDOM = "clasp_pe", "diversity", "random"


def suggest(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Run, ladder, cross-validation or checkpoint.", show_default=False),
    ],
    data: o.OtherData = None,
    count: Annotated[int, typer.Option(help="How many images to suggest.", min=1, max=10**6)] = 20,
    strategy: Annotated[
        StrategyName,
        typer.Option(
            help="clasp_pe: where the network is uncertain, by class, with noise; diversity: what its encoder places "
            "farthest from all labeled images; random: any in which it finds foreground."
        ),
    ] = StrategyName.CLASP_PE,
    round_: Annotated[
        int, typer.Option("--round", help="Number of the labeling round; the noise of clasp_pe falls with it.", min=1)
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the draws.", min=0)] = 0,
    which: o.WhichNet = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table to this .csv file.")] = None,
    figure: o.Figure = None,
    copy: Annotated[
        Path | None,
        typer.Option(help="Folder to create, with images/ and predicted masks/ to correct."),
    ] = None,
    accelerator: o.Accelerator = None,
) -> None:
    """Suggest which unlabeled images to label next, out of the run's training images without a mask.

    After labeling, put images and masks into the data folder and train again.
    """
    from ssl_seg.files import check_is_free

    check_data(data)
    check_new_file(csv, "--csv", (".csv",))
    check_new_file(figure)
    if copy is not None:
        check_is_free(copy, "--copy")
    network = take_checkpoint(checkpoint)
    announce(describe_loading([network]))
    from ssl_seg.results.suggestion import SuggestRequest, copy_images, open_pool
    from ssl_seg.results.suggestion import suggest as choose

    request = SuggestRequest(network, data, count, strategy.value, round_, seed, which, accelerator)
    track = TerminalConsole().track
    pool = open_pool(request, track("reading cases"))
    found = choose(pool, request, track("looking at images without masks"))
    rows = [
        {
            "rank": rank,
            "image": own.case_id,
            "chosen by": own.reason,
            "score": own.score,
            "predicted foreground": f"{own.foreground:.1%}",
        }
        for rank, own in enumerate(found, start=1)
    ]
    print_rows(f"{len(found)} of {len(pool.candidates)} images without a mask, by {strategy.value}", rows)
    if csv is not None:
        _write_table(found, csv)
        show(f"wrote {csv}")
    if figure is not None:
        from ssl_seg.report.audit_figure import plot_audit

        values = pool.store.catalog.label_values[1:]
        samples = [_make_sample(pool, own, rank) for rank, own in enumerate(found, start=1)]
        plot_audit(samples, [], figure, [f"value {value}" for value in values])
        show(f"wrote {figure}")
    if copy is not None:
        from ssl_seg.results.mask_making import PredictRequest
        from ssl_seg.results.prediction import predict

        copy_images(found, copy)
        masks = PredictRequest(network, copy / "images", copy / "masks", which, accelerator=accelerator)
        predict(masks, track("predicting"), note=lambda text: show(text, err=True))
        show(
            f"wrote {counted(len(found), 'image')} to {copy / 'images'} and their predicted masks to "
            f"{copy / 'masks'}. Correct the masks, which count as the truth once they are there; then add both to your "
            "data"
        )


def _write_table(found: Sequence[Suggestion], path: Path) -> None:
    import csv

    from ssl_seg.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "image", "file", "chosen_by", "score", "predicted_foreground"])
        for rank, own in enumerate(found, start=1):
            score = "" if own.score is None else f"{own.score:.6g}"
            writer.writerow([rank, own.case_id, own.files[0], own.reason, score, f"{own.foreground:.6g}"])


def _make_sample(pool: Pool, own: Suggestion, rank: int) -> Sample:
    """Return an image with its predicted classes; of a volume the slice with the most predicted foreground."""
    from ssl_seg.data.pictures import find_fullest, to_picture
    from ssl_seg.data.views.transforms import blacken_gaps
    from ssl_seg.report.audit_figure import Sample
    from ssl_seg.report.audit_samples import shorten

    case = pool.store.load_whole(own.case_id)
    classes = pool.decision(pool.predict(case))
    pixels, place = blacken_gaps(case.image), ""
    if classes.ndim == 3:
        z = find_fullest((classes > 0).sum(axis=(1, 2)))
        pixels, classes, place = pixels[:, z], classes[z], f", z {z} of {len(classes)}"
    stride = -(-max(classes.shape) // LONGEST_SIDE)
    score = "" if own.score is None else f" {own.score:.3g}"
    title = f"{rank}. {shorten(own.case_id)}\n{own.reason}{score}, {own.foreground:.1%}{place}"
    return Sample(title, to_picture(pixels[:, ::stride, ::stride]), classes[::stride, ::stride].astype(int))
