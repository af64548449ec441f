"""What the picture of an audit shows. Of all images, only those that are shown are read."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.audit.doctor import Audit
from ssl_seg.data.blocks import iterate_blocks
from ssl_seg.data.facts import format_size
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.pictures import find_fullest, to_picture
from ssl_seg.data.views.transforms import blacken_gaps
from ssl_seg.data.volumes import Stored, open_image, open_mask
from ssl_seg.errors import DataError
from ssl_seg.report.audit_figure import SHOWN, Chart, Sample, choose_cases, plot_audit

_PIXELS = 512
"""Longest side of what is shown: a panel is smaller still."""

_PAIRS = {"alike_crowd", "near_duplicate", "near_duplicate_across_groups"}
"""Findings whose cases are to be compared."""

_BARS = 8
_MOST_TITLE = 24


def draw_audit(result: Audit, path: Path) -> None:
    """Write a picture of the data set: first cases that are named by a fault, or look like copies, side by side.

    Raises:
        DataError: when the picture exists or cannot be written.
    """
    plot_audit(read_samples(result), make_charts(result), path, list_class_names(result))


def read_samples(result: Audit, count: int = SHOWN) -> list[Sample]:
    """Return what is shown of a data set: first cases that are named by a fault, or look like copies."""
    cases = {case.id: case for case in result.listing.cases}
    shown = [f for f in result.findings if f.level == "fault"] + [f for f in result.findings if f.code in _PAIRS]
    named = [i for finding in shown for i in finding.cases if i in cases]
    faulty, others = choose_cases({i: f.foreground for i, f in result.facts.items()}, named, count)
    return [read_sample(cases[i], result, faulty=i in faulty) for i in (*faulty, *others)]


def list_class_names(result: Audit) -> list[str]:
    """Return what class 1, 2, ... is called."""
    return [row["name"] or f"value {row['value']}" for row in result.summary["classes"][1:]]


def read_sample(case: Case, result: Audit, *, faulty: bool) -> Sample:
    """Return what is shown of a case: of a volume the slice with the most foreground, else the middle one."""
    facts = result.facts.get(case.id)
    name = shorten(case.id)
    if case.mask is None:
        state = "no mask"
    elif facts is None or facts.foreground is None:
        state = "mask not usable"
    else:
        state = f"{facts.foreground:.2%} foreground" if facts.foreground else "empty mask"
    try:
        pixels, target, place = _read_slice(case, result, with_mask=facts is not None)
    except DataError:
        return Sample(f"{name}\nimage not usable", None, faulty=faulty)
    return Sample(f"{name}\n{state}{place}", pixels, target, faulty)


def shorten(name: str) -> str:
    """Return a name, or its end, as long as a title holds."""
    return name if len(name) <= _MOST_TITLE else f"...{name[3 - _MOST_TITLE :]}"


def _read_slice(
    case: Case, result: Audit, *, with_mask: bool
) -> tuple[NDArray[np.generic], NDArray[np.int64] | None, str]:
    """Return the picture (Y, X[, 3]), the class indices (Y, X), and which slice of a volume it is."""
    image = open_image(case.image, *case.more_channels, reading=result.reading)
    reading = replace(result.reading, fractions=result.meaning.takes_fractions)
    usable = case.mask is not None and with_mask
    mask = open_mask(str(case.mask), reading=reading) if usable else None
    place, box = "", tuple(slice(None) for _ in image.shape[1:])
    if len(box) > 2:
        z = _choose_slice(image, mask, result)
        place, box = f", z {z} of {image.shape[1]}", (slice(z, z + 1), *box[1:])
    # A volume's depth is 1 now, and goes.
    pixels = image.read(box).reshape(image.shape[0], *image.shape[-2:])
    stride = -(-max(pixels.shape[1:]) // _PIXELS)
    target = None if mask is None else _to_classes(mask.read(box).reshape(pixels.shape[1:]), result)
    return (
        to_picture(blacken_gaps(pixels)[:, ::stride, ::stride]),
        None if target is None else target[::stride, ::stride],
        place,
    )


def make_charts(result: Audit) -> list[Chart]:
    """Return how foreground, intensity, size and mask values are spread over all cases that can be read."""
    facts, shapes = result.facts.values(), result.summary["shapes"]
    if shapes is None:
        return []
    if shapes["different"] <= len(shapes["frequent"]):
        sizes = Chart("image size", {format_size(s["shape"]): float(s["cases"]) for s in shapes["frequent"]}, "cases")
    else:
        sizes = Chart("image size (million voxels)", [prod(f.shape) / 1e6 for f in facts])
    charts = [
        Chart("share of foreground", [f.foreground for f in facts if f.foreground is not None]),
        Chart("mean intensity", [f.appearance.mean for f in facts if f.appearance is not None]),
        sizes,
    ]
    if result.summary["mask_values"]:
        values = result.summary["mask_values"]
        shares = {str(v["value"]): v["share"] for v in values[:_BARS]}
        title = f"mask values (the first {_BARS} of {len(values)})" if len(values) > _BARS else "mask values"
        charts.append(Chart(title, shares, "share of all voxels"))
    return [chart for chart in charts if chart.values]


def _choose_slice(image: Stored, mask: Stored | None, result: Audit) -> int:
    """Return the index of the slice with the most foreground, or of the middle one if there is none."""
    count = np.zeros(image.shape[1])
    if mask is not None:
        for block in iterate_blocks(mask):
            positive = _to_classes(block.voxels, result) > 0
            count[block.start : block.start + len(positive)] = positive.sum(axis=(1, 2))
    return find_fullest(count)


def _to_classes(mask: NDArray[np.generic], result: Audit) -> NDArray[np.int64]:
    """Return class indices; values that are no label get an index of their own, ignored ones are negative."""
    labels, label_values = result.meaning.to_labels(mask), result.meaning.label_values or ()
    classes = np.full(mask.shape, len(label_values), np.int64)
    for index, value in enumerate(label_values):
        classes[labels == value] = index
    if result.meaning.ignore_value is not None:
        classes[labels == result.meaning.ignore_value] = -1
    return classes
