"""What a path of the command line stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_seg.cli.console import show


def find_checkpoint(path: Path) -> Path:
    """Return best.pt of the directory of a run, that of the best rung of a ladder, and any other path as it is.

    No network library is loaded for it.

    Raises:
        RunDirError: for a ladder without a network to use, or the directory of an ablation or a pre-training.
        CheckpointError: for a path at which there is no checkpoint.
    """
    from ssl_seg.errors import RunDirError
    from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE, check_checkpoint_file, describe_pretraining
    from ssl_seg.results.folds import FOLDS
    from ssl_seg.results.study import load_study
    from ssl_seg.run.directory import RunDir
    from ssl_seg.studies.ablation.cells import MARKER
    from ssl_seg.studies.rungs import LADDER, find_best_checkpoint

    if (path / PRETRAINING_FILE).is_file():
        raise RunDirError(describe_pretraining(path))
    best: Path | None = RunDir(path).best
    if LADDER.is_in(path) and (best := find_best_checkpoint(load_study(LADDER, path))) is None:
        raise RunDirError(f"{path}: this ladder has no usable checkpoint yet")
    if (path / MARKER).is_file():
        raise RunDirError(
            f"{path} is the directory of an ablation: name one of its networks, {path}/cells/ID/run. "
            "The IDs are in results.csv and in `ssl-seg ablate SPEC --out DIR --dry-run`"
        )
    if best is None or not best.is_file():
        if not FOLDS.is_in(path):
            check_checkpoint_file(path)
        return path
    check_checkpoint_file(best)
    show(f"{path}: taking {best}", err=True)
    return best


def name_checkpoints(paths: Sequence[Path]) -> str:
    """Return what is loaded, for a line that says so."""
    return str(paths[0]) if len(paths) == 1 else f"{len(paths)} checkpoints"


def check_resumed(path: Path) -> None:
    """Do nothing, if ``train --resume`` may go on with a directory.

    Raises:
        RunDirError: for that of a ladder, an ablation or a pre-training, with the command that goes on with it.
    """
    from ssl_seg.errors import RunDirError, quote
    from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE
    from ssl_seg.studies.ablation.cells import MARKER
    from ssl_seg.studies.rungs import LADDER

    if (path / PRETRAINING_FILE).is_file():
        raise RunDirError(f"{path} is a pre-training: continue it with ssl-seg pretrain --resume {quote(path)}")
    if LADDER.is_in(path):
        raise RunDirError(f"{path} is a ladder: continue it with {LADDER.resume(path)}")
    if (path / MARKER).is_file():
        raise RunDirError(f"{path} is the directory of an ablation: its `ssl-seg ablate` command, given again, goes on")
