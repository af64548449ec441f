"""``ssl-seg pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import begin, end_interrupted, show
from ssl_seg.errors import RunDirError, quote


def pretrain(
    config: o.ConfigFile = None,
    data: o.Data = None,
    layout: o.LayoutName = None,
    groups: o.Groups = None,
    unlabeled: o.Unlabeled = None,
    split: o.SplitFile = None,
    network: o.NetworkName = None,
    encoder: o.EncoderName = None,
    encoder_weights: o.EncoderWeights = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="500, or 2000 on a GPU")] = None,
    lr: o.LearningRate = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches in a batch.")] = None,
    seed: o.RunSeed = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to create.", show_default="runs/DATA_pretrain_...")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the pre-training in this directory.")] = None,
    allow_split: o.AllowSplit = False,
    accelerator: o.TrainAccelerator = None,
    set_: o.Set = None,
    no_live: o.NoLive = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Pre-train the network without labels: it learns to fill in hidden blocks of the training images.

    A few masks are needed all the same: validation and test cases are set aside first, and only images of the training
    pool are used. Then: ssl-seg train --pretrained RUN
    """
    given = dict(locals())
    from ssl_seg.cli.settings import check_paths, make_layers
    from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE
    from ssl_seg.run.request import TrainRequest

    layers = make_layers(config, given, set_)
    request = TrainRequest(layers, out, resume=resume)
    check_paths(request.settings, out=out, resume=resume)
    if resume is not None and not (resume / PRETRAINING_FILE).is_file():
        raise RunDirError(f"{resume} is not a pre-training: continue it with ssl-seg train --resume {quote(resume)}")
    console = begin(given)
    from ssl_seg.run.pretraining.run import PICTURES
    from ssl_seg.run.pretraining.run import pretrain as run_pretraining

    result = run_pretraining(request, console)
    path = quote(result.run.path)
    if result.ending == "interrupted":
        end_interrupted(f"after step {result.step}", f"ssl-seg pretrain --resume {path}")
    figures = result.result
    show(
        f"error on hidden voxels {figures['error']:.3f}, mean of the visible image {figures['baseline']:.3f}: "
        f"{figures['gain']:+.1%}; pictures: {result.run.path / PICTURES}"
    )
    if result.verdict.level == "collapsed":
        codes = ", ".join(result.verdict.codes)
        show(f"collapsed ({codes}): do not train from it; try: {result.verdict.action}", err=True)
        raise typer.Exit(0 if result.tolerates_collapse and result.ending != "collapsed" else 3)
    show(f"next: ssl-seg train --pretrained {path}")
