"""``ssl-seg pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli.console import show
from ssl_seg.cli.data_settings import GROUPS, UNLABELED
from ssl_seg.errors import quote


def pretrain(
    config: Annotated[str | None, typer.Option(help="YAML file, or the name of a packaged configuration.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or manifest, as for train.")] = None,
    layout: Annotated[str | None, typer.Option(help="How the files lie; recognized unless given.")] = None,
    groups: Annotated[Path | None, GROUPS] = None,
    unlabeled: Annotated[Path | None, UNLABELED] = None,
    split: Annotated[Path | None, typer.Option(help="Split file; else made from the seed, as for train.")] = None,
    network: Annotated[str | None, typer.Option(help="Network; `ssl-seg networks` lists them.")] = None,
    encoder: Annotated[str | None, typer.Option(help="Encoder of encoder_unet, as for train.")] = None,
    encoder_weights: Annotated[
        str | None, typer.Option(help="What the encoder starts from.", metavar="imagenet|none|FILE")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="500, on a GPU 2000")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Patches in a batch.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the pre-training; the split has its own.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory to create.", show_default="runs/DATA_pretrain_...")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the pre-training in this directory.")] = None,
    allow_split: Annotated[
        bool, typer.Option("--allow-split", help="Go on although the split check finds a fault.")
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. network.features=16. Repeatable."),
    ] = None,
) -> None:
    """Teach the network to paint hidden blocks of the training images, before it is trained: no labels are needed.

    Only images of the training pool are looked at. Then: ssl-seg train --pretrained RUN
    """
    given = dict(locals())
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.cli.run_settings import announce_loading, check_paths, make_layers
    from ssl_seg.errors import RunDirError
    from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE

    layers = make_layers(config, given, set_)
    check_paths(layers, out=out, resume=resume)
    if resume is not None and not (resume / PRETRAINING_FILE).is_file():
        raise RunDirError(f"{resume} is no pre-training: continue it with ssl-seg train --resume {quote(resume)}")
    announce_loading()
    from ssl_seg.run.prepare import TrainRequest
    from ssl_seg.run.pretraining.run import PICTURES
    from ssl_seg.run.pretraining.run import pretrain as run_pretraining

    result = run_pretraining(TrainRequest(layers, out, resume), TerminalConsole())
    path = quote(result.run.path)
    if result.ending == "interrupted":
        show(f"interrupted after step {result.step}; continue with: ssl-seg pretrain --resume {path}")
        raise typer.Exit(130)
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
