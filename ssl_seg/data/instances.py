"""From numbered objects to three classes that a network learns, and from these classes back to objects.

Each object is cut into its inside and, along its edge, a boundary. Where objects touch, their boundaries keep their
insides apart: each connected part of the inside is the marker of an object, and the boundary goes to the nearest
marker, as in a watershed. Inside and boundary together are all of the foreground.

Shapes: *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ssl_seg.labels import IGNORE_INDEX

INSIDE, BOUNDARY = 1, 2
"""Class indices; 0 is background."""
THICKEST = 3
"""Voxels of the boundary, at most: what the patches show of large objects must tell inside from boundary."""
SHARE = 0.25
"""Largest share of an object's depth (the radius of a disc) that is boundary, so that small objects keep an inside."""
_TOUCHING = 0.5
"""Depth of voxels that touch another object: those of a thin object that are boundary although it has no others."""
_LEVELS = (0.0, _TOUCHING, *range(1, THICKEST + 1))
"""Depths down to which an object may be boundary."""


def make_target(objects: NDArray[np.integer[Any]]) -> NDArray[np.int16]:
    """Return the classes (*S) of objects: background, inside, boundary, and IGNORE_INDEX where it is in ``objects``.

    The boundary is the voxels of an object up to a depth, by which a voxel at its edge has depth 1: a quarter of the
    largest one in it, at least 1 and at most ``THICKEST``. It is thinner where that would leave no inside or one in
    several parts. The border of the image and ignored voxels are no edge. Each object has an inside; those of objects
    that touch are apart, unless one of them is too thin to have a boundary there.

    Args:
        objects: (*S) 0 for background, 1..n in any order, IGNORE_INDEX. All of an image: an object at the border of a
            patch would look thinner than it is.
    """
    labels = np.maximum(objects, 0)
    number = int(labels.max(initial=0))
    edge, touching = _find_edges(objects)
    depth = np.full(labels.shape, np.inf)
    if edge.any():
        depth = ndimage.distance_transform_edt(~edge) + 1
    depth[touching] = _TOUCHING
    levels = np.array(_LEVELS)
    deepest = np.zeros(number + 1)
    np.maximum.at(deepest, labels.ravel(), depth.ravel())
    wanted = np.clip(np.floor(SHARE * deepest), 1, THICKEST)
    chosen = np.searchsorted(levels, np.where(deepest > 1, wanted, _TOUCHING))  # index into the levels, by object
    chosen[0] = 0
    parts = _count_parts(labels, labels > 0, number)
    while True:
        inside = (labels > 0) & (depth > levels[chosen][labels])
        found = _count_parts(labels, inside, number)
        broken = (chosen > 0) & ((found == 0) | (found > parts))
        if not broken.any():
            break
        chosen[broken] -= 1
    target = np.where(inside, INSIDE, np.where(labels > 0, BOUNDARY, 0)).astype(np.int16)
    target[objects == IGNORE_INDEX] = IGNORE_INDEX
    return target


def find_instances(classes: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """Return the objects (*S), 0 for background and 1..n, of class indices (*S) as in ``make_target``.

    Each connected part of the inside is an object, with the boundary that is nearest to it by steps across faces
    within the foreground; so is foreground without any inside. Nothing of the foreground is lost.
    """
    foreground = classes > 0
    markers, number = ndimage.label(classes == INSIDE)
    parts, _ = ndimage.label(foreground)
    marked = np.zeros(int(parts.max(initial=0)) + 1, np.bool_)
    marked[parts[markers > 0]] = True
    alone = foreground & ~marked[parts]
    markers[alone] = number + np.cumsum(~marked)[parts[alone]] - 1  # of which the first is the background
    return _flood(markers.astype(np.int32), foreground)


def _find_edges(objects: NDArray[np.integer[Any]]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which voxels of objects share a face with something else that is known, and which with another object."""
    edge, touching = np.zeros(objects.shape, np.bool_), np.zeros(objects.shape, np.bool_)
    for axis in range(objects.ndim):
        pair = np.moveaxis(objects, axis, 0)
        here, there = pair[:-1], pair[1:]
        differ = (here != there) & (here != IGNORE_INDEX) & (there != IGNORE_INDEX)
        both = differ & (here > 0) & (there > 0)
        for found, where in ((edge, differ), (touching, both)):
            view = np.moveaxis(found, axis, 0)
            view[:-1] |= where & (here > 0)
            view[1:] |= where & (there > 0)
    return edge, touching


def _count_parts(labels: NDArray[np.integer[Any]], inside: NDArray[np.bool_], number: int) -> NDArray[np.int64]:
    """Return in how many connected parts of ``inside`` each object lies; entry 0 is of no object."""
    parts, _ = ndimage.label(inside)
    pairs = np.unique(parts[inside].astype(np.int64) * (number + 1) + labels[inside])
    return np.bincount(pairs % (number + 1), minlength=number + 1)


def _flood(labels: NDArray[np.int32], where: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return labels (*S) that have spread over ``where``, step by step across faces; the first to arrive stays.

    A watershed of scikit-image on a constant image gives the same, but for voxels that are equally near to two.
    """
    padded = np.pad(labels, 1)
    free = np.pad(where, 1)
    flat, free = padded.ravel(), free.ravel()
    free[flat > 0] = False
    steps = [step // flat.itemsize * sign for step in padded.strides for sign in (-1, 1)]
    front = np.flatnonzero(flat)
    while len(front):
        reached = []
        for step in steps:
            there = front + step
            there = there[free[there]]
            flat[there] = flat[there - step]
            free[there] = False
            reached.append(there)
        front = np.concatenate(reached)
    return padded[(slice(1, -1),) * labels.ndim]
