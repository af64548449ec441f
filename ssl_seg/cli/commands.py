"""``ssl-seg evaluate | predict | data import | data synthetic``."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ssl_seg.cli.checkpoints import find_checkpoint, name_checkpoints
from ssl_seg.cli.comparison import add_differences, print_comparison, print_evaluation, print_folds
from ssl_seg.cli.console import INTERRUPTED, TerminalConsole, announce, show
from ssl_seg.cli.data_settings import ACCELERATOR, CASE_NAMES, SET, Accelerator, read_data_settings
from ssl_seg.cli.numbers import FROM_0_TO_0_9, POSITIVE, PROBABILITY, number, parse_numbers
from ssl_seg.cli.places import check_data, check_figure
from ssl_seg.errors import quote

Net = Literal["student", "teacher"]
MOST = 10**6
"""Images of a synthetic data set."""
OVERLAP = typer.Option(
    help="Overlap of neighboring windows, from 0 to 0.9.", parser=number("--overlap", FROM_0_TO_0_9, "0.5")
)
CKPT = typer.Argument(help="Checkpoint, or directory of a run, ladder or cross-validation.", show_default=False)


def evaluate(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Checkpoints, or directories of runs, ladders or a cross-validation.",
            show_default=False,
        ),
    ],
    data: Annotated[str | None, typer.Option(help="Folder; by default that of the training.")] = None,
    layout: Annotated[
        str | None, typer.Option(help="How the files of --data lie; recognized unless given.", show_default=False)
    ] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; by default that of the training.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Open the sealed test list; each opening is recorded.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Score all labeled cases that were not trained with.")] = False,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Score the mean of the probabilities of all checkpoints too.")
    ] = False,
    which: Annotated[
        Net | None, typer.Option(help="Score one net only.", show_default="both; of several checkpoints the better")
    ] = None,
    overlap: Annotated[float, OVERLAP] = 0.25,
    set_: Annotated[list[str] | None, SET] = None,
    accelerator: Annotated[Accelerator | None, ACCELERATOR] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of the worst, median and best cases.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Score a checkpoint per case and pooled, beside trivial baselines: on validation unless told otherwise.

    Several checkpoints are compared on the same cases. A cross-validation is scored out of fold, with --test as an
    ensemble.
    """
    from ssl_seg.data.splits.files import load_split
    from ssl_seg.errors import ConfigError
    from ssl_seg.files import to_finite

    if test and all_:
        raise ConfigError(
            "--test and --all exclude each other: --all scores every labeled case, whatever list it is in"
        )
    check_figure(figure)
    found = [find_checkpoint(path) for path in checkpoints]
    if figure is not None and (len(found) > 1 or found[0].is_dir()):
        raise ConfigError("--figure draws the cases of one network: give one checkpoint")
    settings = read_data_settings(set_, (*CASE_NAMES, "spacing")) | ({} if layout is None else {"layout": layout})
    check_data(data)
    if split is not None:
        load_split(split)
    announce(f"loading PyTorch and {name_checkpoints(found)}")
    from ssl_seg.results.evaluation import EvaluateRequest
    from ssl_seg.results.evaluation import evaluate as run_evaluation

    console = TerminalConsole()
    request = EvaluateRequest(
        found[0],
        data,
        split,
        "test" if test else "all" if all_ else "val",
        which,
        overlap=overlap,
        settings=settings,
        more=tuple(found[1:]),
        ensemble=ensemble,
        accelerator=accelerator,
    )
    result = run_evaluation(request, note=lambda text: show(text, err=True), track=console.track)
    if figure is not None:
        from ssl_seg.cli.pictures import draw_cases

        draw_cases(request, result, figure)
    if "rows" in result:
        result = add_differences(result)
    if as_json:
        typer.echo(json.dumps(to_finite(result), indent=2))
    elif "rows" in result:
        print_comparison(result)
    else:
        if "folds" in result:
            print_folds(result)
        print_evaluation(result)
        if figure is not None:
            show(f"wrote {figure}")


def predict(
    checkpoint: Annotated[Path, CKPT],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="An image, or a folder of images.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Argument(help="Folder for the masks; a file for a single image.", show_default=False)
    ],
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="CHECKPOINT", help="Take the mean with this checkpoint's. Repeatable."),
    ] = None,
    which: Annotated[Net | None, typer.Option(help="Net to use.", show_default="the better one on validation")] = None,
    overlap: Annotated[float, OVERLAP] = 0.25,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write probabilities beside the masks.")
    ] = False,
    spacing: Annotated[
        str | None, typer.Option(help="Voxel size along z,y,x, e.g. 2.5,1,1.", show_default="that of each file")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Foreground where its probability is above this; two classes only.",
            show_default="0.5",
            parser=number("--threshold", PROBABILITY, "0.4"),
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Make masks anew that are there already.")] = False,
    accelerator: Annotated[Accelerator | None, ACCELERATOR] = None,
) -> None:
    """Write masks for an image or a folder, 2D or 3D, with the label values of the training masks.

    With several checkpoints, or a cross-validation, the masks are those of the mean of their probabilities.

    Images that cannot be predicted are named at the end. The same command goes on after an interruption.
    """
    from ssl_seg.results.mask_files import check_places

    networks = [find_checkpoint(path) for path in (checkpoint, *(with_ or ()))]
    sizes = None if spacing is None else parse_numbers("--spacing", [spacing], POSITIVE, "2.5,1,1", (2, 3))
    check_places(source, output)
    try:
        announce(f"loading PyTorch and {name_checkpoints(networks)}")
        from ssl_seg.results.prediction import PredictRequest
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
            accelerator=accelerator,
        )
        masks = run_prediction(request, TerminalConsole().track("predicting"), note=lambda text: show(text, err=True))
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word != "--overwrite"]
        show(f"continue with: {shlex.join(['ssl-seg', *words])}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    show(f"wrote {len(masks)} mask(s) to {output}")


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
        bool, typer.Option("--by-rows", help="Runs of a CSV go along the rows, not down the columns.")
    ] = False,
) -> None:
    """Make a folder of images and masks of COCO, labelme, YOLO outlines, run lengths (CSV) or DICOM series."""
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
) -> None:
    """Write a synthetic data set, to try things out or to see the layout of a data folder."""
    from ssl_seg.data.synthetic import write_dataset

    write_dataset(out, kind, count, labeled=labeled, seed=seed)
    show(f"wrote {count} images and {count if labeled is None else labeled} masks to {out}")


def demo(
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to create for the runs and the picture.", show_default="runs/demo, -2, ..."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of each training.", min=20, max=10**9)] = 100,
) -> None:
    """Show the main job on synthetic particles: 1 % labels, then 10 % from that start, beside a supervised baseline."""
    from ssl_seg.cli.run_settings import announce_loading

    announce_loading()
    from ssl_seg.cli.demo import run_demo

    run_demo(out, steps)
