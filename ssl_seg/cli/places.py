"""Files and folders that options name, checked before anything is loaded or computed."""

from __future__ import annotations

from pathlib import Path

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


def check_figure(path: Path | None, option: str = "--figure") -> None:
    """Do nothing, if a picture can be written to ``path``, or none is asked for.

    Raises:
        DataError: for a file that exists, an unknown suffix, or a folder that cannot be written.
    """
    from ssl_seg.errors import DataError
    from ssl_seg.files import find_obstacle

    if path is None:
        return
    if path.exists():
        raise DataError(f"{path} exists already and is not overwritten: choose another name")
    if path.suffix.lower() not in PICTURES:
        raise DataError(f"{option} {path}: the suffix says the kind of picture, one of {', '.join(PICTURES)}")
    if obstacle := find_obstacle(path):
        raise DataError(f"{option} {path} cannot be written: {obstacle}")


def check_data(root: str | None) -> None:
    """Do nothing, if there is something at the place of a data set, or none is given.

    Raises:
        DataError: if there is nothing.
    """
    from ssl_seg.data.synthetic import is_synthetic
    from ssl_seg.errors import DataError

    if root is not None and not is_synthetic(root) and not Path(root).expanduser().exists():
        raise DataError(f"{root} does not exist: name a folder, a manifest, or synthetic:particles or synthetic:sheets")
