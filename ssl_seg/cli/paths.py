"""Files and folders that a command line names, checked before anything is loaded or computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssl_seg.cli.console import show
from ssl_seg.errors import ConfigError, DataError, did_you_mean_path

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def check_new_file(path: Path | None, option: str = "--figure", kinds: Sequence[str] = PICTURES) -> None:
    """Check that a file of one of the ``kinds`` can be written to ``path``, where one is asked for.

    Raises:
        DataError: for a file that exists, an unknown suffix, or a folder that cannot be written.
    """
    from ssl_seg.files import check_is_free, find_obstacle

    if path is None:
        return
    check_is_free(path)
    if path.suffix.lower() not in kinds:
        raise DataError(f"{option} {path}: the suffix must be one of {', '.join(kinds)}")
    if obstacle := find_obstacle(path):
        raise DataError(f"{option} {path} cannot be written: {obstacle}")


def check_new_page(path: Path | None, option: str) -> None:
    """Check that a page can be written to ``path``, where one is asked for: to a new file, or over an earlier page.

    Raises:
        ConfigError: for a suffix that is not of HTML.
        DataError: for another file, or a folder that cannot be written.
    """
    from ssl_seg.report.page import check_page_file

    if path is None:
        return
    if path.suffix.lower() not in (".html", ".htm"):
        name = path.stem.strip(".") or "report"
        raise ConfigError(f"{option} {path}: the page is HTML; name a file such as {name}.html")
    check_page_file(path)


def check_data(root: str | None) -> None:
    """Check that there is something at the place of a data set, where one is given.

    Raises:
        DataError: if there is nothing.
    """
    from ssl_seg.data.synthetic import is_synthetic

    if root is not None and not is_synthetic(root) and not Path(root).expanduser().exists():
        hint = did_you_mean_path(Path(root).expanduser())
        raise DataError(
            f"{root} does not exist{hint}: name a folder, a manifest, or synthetic:particles or synthetic:sheets"
        )


def take_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path stands for, and say which one that is; see ``find_checkpoint``."""
    from ssl_seg.studies.checkpoints import find_checkpoint

    found = find_checkpoint(path)
    if found != path:
        show(f"{path}: taking {found}", err=True)
    return found


def take_one_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path stands for, as ``take_checkpoint``.

    Raises:
        ConfigError: for a cross-validation, which stands for several.
    """
    from ssl_seg.results.folds import FOLDS

    found = take_checkpoint(path)
    if FOLDS.is_in(found):
        raise ConfigError(f"{found} is a cross-validation: name one of its folds, such as {found}/fold0")
    return found


def describe_loading(checkpoints: Sequence[Path]) -> str:
    """Return the line that says what is being loaded."""
    named = checkpoints[0] if len(checkpoints) == 1 else f"{len(checkpoints)} checkpoints"
    return f"loading PyTorch and {named}"
