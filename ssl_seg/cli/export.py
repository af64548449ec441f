"""``ssl-seg export``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import announce, print_json, show
from ssl_seg.cli.paths import describe_loading, take_one_checkpoint
from ssl_seg.errors import counted


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, or directory of a run or ladder.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Argument(
            help="File to write: .onnx, .ts (TorchScript), .pt2 (torch.export) or .zip (bioimage.io).",
            show_default=False,
        ),
    ],
    which: o.WhichNet = None,
    uncalibrated: o.Uncalibrated = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Write a network to a file that runs without ssl-seg, and check it on validation images.

    The file also holds normalization, patch size, threshold, label values and voxel size.
    """
    found = take_one_checkpoint(checkpoint)
    announce(describe_loading([found]))
    from ssl_seg.results.export import FORMATS, ExportRequest
    from ssl_seg.results.export import export as run_export

    request = ExportRequest(found, output, which, not uncalibrated, overwrite)
    result = run_export(request, note=lambda text: show(text, err=True))
    if as_json:
        print_json(result)
        return
    compared = counted(len(result["compared_on"]), "validation image") if result["compared_on"] else "random numbers"
    show(
        f"wrote {output}: {FORMATS[output.suffix]}, {result['which']} of step {result['step']}; on {compared} its "
        f"probabilities differ from those of the network by {result['difference']:.1g} at most"
    )
    show(_describe_images(result))


def _describe_images(result: Mapping[str, Any]) -> str:
    """Return what is to be done with images before and after, as a line."""
    cut = "" if result["threshold"] is None else f", foreground above {result['threshold']:.3f}"
    way, size = result["normalization"], result["voxel_size"]
    images = f"clipped to {way['low']:g} .. {way['high']:g}" if way["name"] == "window" else "z-scores of each channel"
    voxels = "" if size is None else f"resampled to voxels of {' x '.join(f'{edge:g}' for edge in size)}, "
    patch, longest = ("x".join(map(str, result[key])) for key in ("patch_size", "longest_window"))
    windows = patch if patch == longest else f"{patch} to {longest}"
    return f"images: {voxels}{images}, windows of {windows}{cut}"
