"""A picture of training patches: labeled ones with their targets, unlabeled ones in all of their views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.report.figures import new_figure, outline, save_figure, show_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class LabeledPatch:
    """``image`` (*P); ``target`` (*P) class indices, negative where it is ignored."""

    title: str
    image: NDArray[np.floating]
    target: NDArray[np.integer]


@dataclass(frozen=True)
class StrongView:
    """``image`` (*P); ``mixed`` (*P) is where it comes from another patch, or None."""

    image: NDArray[np.floating]
    mixed: NDArray[np.bool_] | None


@dataclass(frozen=True)
class UnlabeledPatch:
    """``weak`` (*P), and the strong views beside it."""

    title: str
    weak: NDArray[np.floating]
    strong: tuple[StrongView, ...]


def plot_views(labeled: Sequence[LabeledPatch], unlabeled: Sequence[UnlabeledPatch], path: Path) -> None:
    """Write one row a patch: a labeled one and its outlined target, an unlabeled one in its weak and strong views.

    For a volume, shows the middle slice. A strong view has the gray scale of its weak view, so that changes are seen.

    Raises:
        DataError: when the file exists or cannot be written.
    """
    rows = max(len(labeled), len(unlabeled))
    columns = 3 + max([len(patch.strong) for patch in unlabeled], default=1)
    figure = new_figure(path, (2.75 * columns, 2.9 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, patch in zip(axes, labeled, strict=False):
        _draw_labeled(row[0], row[1], patch)
    for row, views in zip(axes, unlabeled, strict=False):
        _draw_unlabeled(row[2], row[3:], views)
    save_figure(figure, path)


def _draw_labeled(plain: Axes, outlined: Axes, patch: LabeledPatch) -> None:
    from matplotlib import colormaps

    image, target = _middle(patch.image), _middle(patch.target)
    _show(plain, image, f"labeled: {patch.title}")
    _show(outlined, image, "its target, ignored part hatched")
    for label in np.unique(target[target > 0]):
        outline(outlined, target == label, colormaps["tab10"](int(label - 1) % 10), 1.2)
    if (target < 0).any():
        outlined.contourf(target < 0, levels=[0.5, 1.5], colors="none", hatches=["////"])


def _draw_unlabeled(weak: Axes, axes: Sequence[Axes], patch: UnlabeledPatch) -> None:
    plain = _middle(patch.weak)
    _show(weak, plain, f"weak view: {patch.title}")
    for number, (axis, view) in enumerate(zip(axes, patch.strong, strict=False), start=1):
        name = f"strong view {number}" if len(patch.strong) > 1 else "strong view"
        mixed = None if view.mixed is None else _middle(view.mixed)
        is_mixed = mixed is not None and bool(mixed.any())
        _show(axis, _middle(view.image), name + (", box of another patch" if is_mixed else ""), plain)
        if mixed is not None and is_mixed:
            outline(axis, mixed, "yellow", 1.2)


def _show(axis: Axes, image: NDArray[np.generic], title: str, like: NDArray[np.generic] | None = None) -> None:
    show_image(axis, image, like)
    axis.set_title(title, fontsize=9)


def _middle(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.ndim == 2 else array[len(array) // 2]
