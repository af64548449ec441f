"""``ssl-seg predict``."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import INTERRUPTED, TerminalConsole, announce, show
from ssl_seg.cli.paths import check_new_file, describe_loading, take_checkpoint
from ssl_seg.errors import counted


class MaskFormat(StrEnum):
    """Suffixes of masks."""

    PNG, TIFF, NIFTI, PACKED_NIFTI = "png", "tif", "nii", "nii.gz"
    NPY, HDF5, OME_ZARR = "npy", "h5", "ome.zarr"


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, or directory of a run, ladder or cross-validation.", show_default=False)
    ],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An image, a folder of images, or a manifest.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(help="Folder for the masks; a file for a single image.", show_default=False)
    ],
    with_: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="CHECKPOINT", help="Average the probabilities with this checkpoint's. Repeatable."
        ),
    ] = None,
    which: o.WhichNet = None,
    overlap: o.Overlap = 0.25,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write probabilities beside the masks.")
    ] = False,
    uint8: Annotated[bool, typer.Option("--uint8", help="Write probabilities, scaled to 0 to 255.")] = False,
    tta: Annotated[
        bool, typer.Option("--tta", help="Also predict mirrored and turned windows: 4 to 16 times the work.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write the entropy, and the variance over --tta or several networks.")
    ] = False,
    objects: Annotated[
        bool, typer.Option("--objects", help="Write connected parts as label images, and a table of them.")
    ] = False,
    format_: Annotated[
        MaskFormat | None,
        typer.Option(
            "--format", help="Format of the masks in a folder.", show_default="png; tif or nii.gz for volumes"
        ),
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel size along z,y,x, e.g. 2.5,1,1.", show_default="that of each file")
    ] = None,
    threshold: o.Threshold = None,
    uncalibrated: o.Uncalibrated = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace masks that are there already.")] = False,
    accelerator: o.Accelerator = None,
    workers: Annotated[
        int, typer.Option("--workers", help="Processes that share the images, and the pieces of large ones.", min=1)
    ] = 1,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of five images with their masks.")] = None,
) -> None:
    """Write masks for an image or a folder, 2D or 3D, with the label values of the training masks.

    With several checkpoints, or a cross-validation, masks are made from the mean of their probabilities.

    Images that cannot be predicted are named at the end. After an interruption, the same command resumes.

    Large images are predicted in pieces. All --workers share the images and pieces, and so do further processes started
    with the same command.
    """
    from ssl_seg.results.mask_files import check_places

    networks = [take_checkpoint(path) for path in (checkpoint, *(with_ or ()))]
    sizes = None if spacing is None else o.parse_sizes("--spacing", spacing, "2.5,1,1")
    check_places(source, output)
    check_new_file(figure)
    try:
        announce(describe_loading(networks))
        from ssl_seg.results.mask_making import PredictRequest
        from ssl_seg.results.prediction import predict as run_prediction

        request = PredictRequest(
            networks[0],
            source,
            output,
            which,
            overlap,
            probabilities,
            sizes,
            threshold,
            more=tuple(networks[1:]),
            overwrite=overwrite,
            objects=objects,
            tta=tta,
            uncertainty=uncertainty,
            uint8=uint8,
            suffix=None if format_ is None else f".{format_.value}",
            calibrated=not uncalibrated,
            accelerator=accelerator,
            workers=workers,
        )
        masks = run_prediction(request, TerminalConsole().track("predicting"), note=lambda text: show(text, err=True))
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word != "--overwrite"]
        show(f"continue with: {shlex.join(['ssl-seg', *words])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    show(f"wrote {counted(len(masks), 'mask')} to {output}")
    if figure is not None:
        from ssl_seg.report.mask_pictures import draw_masks

        draw_masks(request, figure)
        show(f"wrote {figure}")
