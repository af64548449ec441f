"""A picture of predicted images with their masks. Loads torch when it draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import DataConfig
from ssl_seg.data.pictures import spread
from ssl_seg.data.volumes import open_mask
from ssl_seg.diagnose.examples import make_example
from ssl_seg.errors import DataError
from ssl_seg.labels import to_target
from ssl_seg.report.example_figure import plot_examples
from ssl_seg.results.mask_files import Job, plan_jobs

if TYPE_CHECKING:
    from ssl_seg.results.mask_making import PredictRequest

SHOWN = 5
MOST_READ = 100
"""Masks that are read to choose those that are shown."""
MOST_SIDE = {2: 2048, 3: 256}
"""Pixels or voxels of an axis that are read, by the number of axes; of a larger image the middle is shown."""


def draw_masks(request: PredictRequest, path: Path) -> None:
    """Write a picture of images of a call of ``predict`` that has come to its end.

    They are chosen from the least to the most predicted foreground, with the ends. Of a volume, the slice with the most
    is shown.

    Raises:
        DataError: when the picture exists or cannot be written, or an image, or all masks, have gone.
    """
    from ssl_seg.inference.model import config_of
    from ssl_seg.networks.checkpoint import load_checkpoint
    from ssl_seg.results.folds import list_members
    from ssl_seg.results.mask_making import open_job_image

    first = list_members((request.checkpoint, *request.more))[0]
    data = config_of(load_checkpoint(first, lazy=True), first).data
    numbered = data.task == "instances"
    jobs = plan_jobs(
        request.source,
        request.output,
        data.ndim,
        data.layout,
        numbered=numbered,
        suffix=request.suffix,
        axes=data.axes,
    )  # fmt: skip
    there = spread([job for job in jobs if job.mask.exists()], MOST_READ)
    shares = {job.mask: float((_read_classes(job, data) > 0).mean()) for job in there}
    chosen = spread(sorted(there, key=lambda job: shares[job.mask]), SHOWN)
    if not chosen:
        raise DataError(f"no mask of {request.source} is in {request.output}")
    examples, titles = [], []
    for job in chosen:
        classes = _read_classes(job, data)
        image = open_job_image(job, data)
        box = _find_middle(image.shape[1:])
        examples.append(make_example(job.mask.name, "new", image.read(box), None, None, classes))
        titles.append(f"{Path(job.locations[0]).name}\n{shares[job.mask]:.1%} foreground")
    plot_examples(examples, path, titles, "predicted foreground")


def _find_middle(shape: Sequence[int]) -> tuple[slice, ...]:
    most = MOST_SIDE[len(shape)]
    return tuple(slice(start := max(0, (side - most) // 2), start + min(side, most)) for side in shape)


def _read_classes(job: Job, data: DataConfig) -> NDArray[np.int64]:
    """Return the classes (*S) of the middle of a mask; 1 for all objects of a mask that numbers them."""
    stored = open_mask(str(job.mask))
    mask = stored.read(_find_middle(stored.shape[1:]))[0]
    return (mask > 0).astype(np.int64) if job.is_numbered else to_target(mask, data.label_values)
