"""What a path stands for where a checkpoint or a run is asked for. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from ssl_seg.errors import RunDirError, quote
from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE, check_checkpoint_file, describe_pretraining
from ssl_seg.results.folds import FOLDS
from ssl_seg.results.study import load_study
from ssl_seg.run.directory import RunDir
from ssl_seg.studies.ablation.cells import MARKER
from ssl_seg.studies.rungs import LADDER, find_best_checkpoint


def find_checkpoint(path: Path) -> Path:
    """Return best.pt of a run, that of the best rung of a ladder; a cross-validation and a file as they are.

    Raises:
        RunDirError: for a ladder without a usable checkpoint, or the directory of an ablation or a pre-training.
        CheckpointError: for a path without a checkpoint.
    """
    if (path / PRETRAINING_FILE).is_file():
        raise RunDirError(describe_pretraining(path))
    if (path / MARKER).is_file():
        raise RunDirError(
            f"{path} is the directory of an ablation: name one of its networks, {path}/cells/ID/run. "
            "The IDs are in results.csv and in `ssl-seg ablate SPEC --out DIR --dry-run`"
        )
    best: Path | None = RunDir(path).best
    if LADDER.is_in(path) and (best := find_best_checkpoint(load_study(LADDER, path))) is None:
        raise RunDirError(f"{path}: this ladder has no usable checkpoint yet")
    found = best if best is not None and best.is_file() else path
    if not FOLDS.is_in(found):
        check_checkpoint_file(found)
    return found


def check_resumed(path: Path) -> None:
    """Check that ``train --resume`` can continue a directory.

    Raises:
        RunDirError: for that of a ladder, an ablation or a pre-training, with the command that continues it.
    """
    if (path / PRETRAINING_FILE).is_file():
        raise RunDirError(f"{path} is a pre-training: continue it with ssl-seg pretrain --resume {quote(path)}")
    if LADDER.is_in(path):
        raise RunDirError(f"{path} is a ladder: continue it with {LADDER.resume(path)}")
    if (path / MARKER).is_file():
        raise RunDirError(
            f"{path} is the directory of an ablation: run its `ssl-seg ablate` command again to resume it"
        )
