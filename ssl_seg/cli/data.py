"""``ssl-seg data layouts | import | synthetic``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ssl_seg.cli.console import announce, show
from ssl_seg.cli.options import FROM_0_TO_1, number_parser
from ssl_seg.errors import counted, quote

MOST = 10**6
"""Images of a synthetic data set."""


def list_layouts() -> None:
    """List the data set layouts that are recognized."""
    from ssl_seg.data.layouts import LAYOUTS

    for name, layout in LAYOUTS.items():
        typer.echo(f"{name}: {layout.description}")


def import_labels(
    source: Annotated[
        Path, typer.Argument(help="COCO JSON, CSV of run lengths, or a folder with labels.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images.", show_default="SOURCE, or beside it")
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Number the objects of each image; their classes are not kept.")
    ] = False,
    by_rows: Annotated[
        bool, typer.Option("--by-rows", help="Run lengths of a CSV go along the rows, not down the columns.")
    ] = False,
) -> None:
    """Make a folder of images and masks from COCO, labelme, YOLO outlines, run lengths (CSV) or DICOM series."""
    from ssl_seg.data.imports import import_labels as run_import

    announce(f"reading {source}")
    for note in run_import(source, out, images=images, instances=instances, by_rows=by_rows):
        show(note)
    show(f"wrote {out}; next: ssl-seg data audit {quote(out)}")


def make_synthetic(
    out: Annotated[Path, typer.Argument(help="Folder to create.", show_default=False)],
    kind: Annotated[Literal["particles", "sheets"], typer.Option(help="2D particles or 3D sheets.")] = "particles",
    count: Annotated[int, typer.Option(help="Number of images.", min=1, max=MOST)] = 60,
    labeled: Annotated[
        int | None, typer.Option(help="Write masks for this many only.", show_default="all", min=0, max=MOST)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the images.", min=0, max=2**63 - 1)] = 0,
    empty: Annotated[
        float,
        typer.Option(
            help="Share of the images without any object.",
            parser=number_parser("--empty", FROM_0_TO_1, "0.7"),
        ),
    ] = 0.0,
    instances: Annotated[bool, typer.Option("--instances", help="Number the particles in the masks.")] = False,
) -> None:
    """Write a synthetic data set, to try things out or to see the layout of a data folder."""
    from ssl_seg.data.synthetic import write_dataset

    write_dataset(out, kind, count, labeled=labeled, seed=seed, empty=empty, instances=instances)
    masks = count if labeled is None else labeled
    show(f"wrote {counted(count, 'image')} and {counted(masks, 'mask')} to {out}")
