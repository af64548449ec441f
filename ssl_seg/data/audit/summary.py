"""A data set in figures, as plain types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ssl_seg.data.audit.checks import groups_of
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.layouts.listing import Listing

Facts = Mapping[str, CaseFacts]

_FREQUENT = 5


def summarize(
    root: str, listing: Listing, facts: Facts, label_values: Sequence[int], ignore_value: int | None
) -> dict[str, Any]:
    """Return the figures; entries are None where there is nothing to measure.

    Args:
        label_values: mask value of each class, background first.
        ignore_value: mask value of voxels that are left out.
    """
    labeled = sum(case.mask is not None for case in listing.cases)
    names = listing.class_names if listing.label_values == tuple(label_values) else ()
    return {
        "root": root,
        "layout": listing.layout,
        "counts": {
            "images": len(listing.cases),
            "readable": len(facts),
            "labeled": labeled,
            "unlabeled": len(listing.cases) - labeled,
            "groups": len(set(groups_of(listing.cases).values())),
        },
        "shapes": _measure_shapes(facts),
        "dtypes": _count(f.dtype for f in facts.values()),
        "channels": _count(str(f.channels) for f in facts.values()),
        "spacing": _measure_spacing(facts),
        "intensity": _measure_intensity(facts),
        "mask_values": _measure_values(facts),
        "foreground": _measure_foreground(facts),
        "classes": _measure_classes(facts, label_values, ignore_value, names),
        "notes": list(listing.notes),
    }


def measure_spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, sd (of the population), min, median and max; None without values."""
    if not values:
        return None
    array = np.asarray(values, np.float64)
    return {
        "mean": float(array.mean()),
        "sd": float(array.std()),
        "min": float(array.min()),
        "median": float(np.median(array)),
        "max": float(array.max()),
    }


def _count(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _measure_ranges(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return minimum, median and maximum along each axis."""
    array = np.array(rows)
    low, median, high = array.min(axis=0), np.median(array, axis=0), array.max(axis=0)
    return {"min": low.tolist(), "median": median.tolist(), "max": high.tolist()}


def _measure_shapes(facts: Facts) -> dict[str, Any] | None:
    """Return the frequent shapes, and range and median along each axis of the more frequent dimension."""
    shapes = Counter(f.shape for f in facts.values())
    if not shapes:
        return None
    ndim = Counter(len(f.shape) for f in facts.values()).most_common(1)[0][0]
    return {
        "ndim": ndim,
        "different": len(shapes),
        "frequent": [{"shape": list(shape), "cases": n} for shape, n in shapes.most_common(_FREQUENT)],
        **_measure_ranges([f.shape for f in facts.values() if len(f.shape) == ndim]),
        "voxels": sum(prod(shape) * n for shape, n in shapes.items()),
    }


def _measure_spacing(facts: Facts) -> dict[str, Any] | None:
    """Return range and median along each axis, of the images that know their voxel size."""
    known = [f.spacing for f in facts.values() if f.spacing is not None]
    if not known or len({len(s) for s in known}) > 1:
        return None
    return {"known": len(known), **_measure_ranges(known)}


def _measure_intensity(facts: Facts) -> dict[str, Any] | None:
    """Return the range of all images, and how the means of cases are spread."""
    looks = [f.appearance for f in facts.values() if f.appearance is not None]
    if not looks:
        return None
    means = measure_spread([a.mean for a in looks])
    return {"low": min(a.low for a in looks), "high": max(a.high for a in looks), "case_means": means}


def _measure_values(facts: Facts) -> list[dict[str, Any]]:
    """Return each mask value with its share of all voxels, and the number of masks that hold it."""
    voxels, masks = Counter[int](), Counter[int]()
    for f in facts.values():
        masks.update(f.values or ())
        voxels.update(f.voxels)
    total = max(voxels.total(), 1)
    return [{"value": v, "share": voxels[v] / total, "masks": masks[v]} for v in sorted(masks)]


def _measure_foreground(facts: Facts) -> dict[str, float] | None:
    """Return how the share of foreground is spread over the labeled cases, and the share of empty masks."""
    shares = [f.foreground for f in facts.values() if f.foreground is not None]
    empty = sum(f.foreground == 0 and f.is_constant_mask for f in facts.values())
    spread = measure_spread(shares)
    return None if spread is None else {**spread, "empty": empty / len(shares)}


def _measure_classes(
    facts: Facts, label_values: Sequence[int], ignore_value: int | None, names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return for each class the cases that have it, and how its share is spread over all labeled cases."""
    counted = [f.voxels for f in facts.values() if f.voxels]
    looked_at = [max(sum(n for v, n in counts.items() if v != ignore_value), 1) for counts in counted]
    rows = []
    for index, value in enumerate(label_values):
        shares = [counts.get(value, 0) / size for counts, size in zip(counted, looked_at, strict=True)]
        rows.append(
            {
                "value": value,
                "name": names[index] if index < len(names) else None,
                "cases": sum(share > 0 for share in shares),
                "share": measure_spread(shares),
            }
        )
    return rows
