"""Images that are nearly the same: the copies that a comparison of bytes does not see.

Thumbnails of whole images are compared, so a copy is found that was resized, compressed, brightened, or changed in
contrast; also when it was mirrored or turned by quarters in its plane. A copy cropped by a few percent is not.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Vectors = NDArray[np.float32]

MINIMUM_CORRELATION = 0.97
"""Thumbnails that correlate at least so much are taken for one image.

Measured, the smallest correlation with the copy: resized to 0.25 .. 2 times 0.9998 (366 electron micrographs) and 0.981
(80 MR volumes), JPEG of quality 30 0.992, contrast halved 1.000, contrast raised by half with clipping 0.982; 95 % of
copies with a gamma of 0.6 or 1.6 are above 0.97. The largest correlation of different images, over all their turns:
0.913 among the 66,795 pairs of micrographs (1 in 10,000 is above 0.863), 0.924 among the 3,160 pairs of volumes: by
their looks, two scans of one patient.
"""

ALIKE_CORRELATION = 0.85
"""Thumbnails that correlate at least so much, as they are, may show the same object twice.

Of the MR volumes above, the pairs that look like two scans of one patient have 0.84 .. 0.92; micrographs of different
papers reach 0.840.
"""

_TYPICAL_SHARE = 0.1
"""Copies differ at most by this share of what the images of the data set usually differ by ..."""

_CERTAIN_CORRELATION = 0.998
"""... but images that correlate so much are always taken for one."""

_ALIKE_SHARE = 0.25
"""The same for alike images: the volumes above usually correlate by 0.47, which puts the limit at 0.87 for them."""

_CHUNK = 512
"""Images that are compared with all others in one go: 40 MB of correlations for 20,000 images."""
_SAMPLE = 512
"""Images that show how much the images of the data set usually correlate."""
_DIGITS = 5
"""Decimals of a correlation that do not depend on the order of its sum: pairs are ranked by these, then by ids."""


@dataclass(frozen=True)
class AlikePair:
    """Two images whose thumbnails correlate."""

    first: str
    second: str
    correlation: float


@dataclass(frozen=True)
class AlikePairs:
    """The ``pairs`` that correlate most, most alike first, of ``total``."""

    pairs: tuple[AlikePair, ...] = ()
    total: int = 0


def find_near_duplicates(
    thumbnails: Mapping[str, NDArray[np.floating]], *, minimum_correlation: float = MINIMUM_CORRELATION
) -> list[tuple[str, ...]]:
    """Return the clusters of images that are nearly the same, largest first; the ids of each are sorted.

    Images belong to one cluster also when only a chain of others connects them, as the slices of a volume do. Where all
    images are alike anyway (aligned heads, one bright lamp), copies must come closer than ``minimum_correlation``.
    Exact copies are among the clusters. The time grows with the square of the number of images, the memory with the
    number: half a minute of one core and 0.6 GB for 20,000 images. Volumes take eight times as long, and four times the
    memory.

    Args:
        thumbnails: id -> thumbnail (32, 32) or (16, 16, 16); images are compared with those of the same shape.
        minimum_correlation: see ``MINIMUM_CORRELATION``.
    """
    clusters: list[tuple[str, ...]] = []
    for ids, stack in _comparable(thumbnails):
        vectors = _normalize(stack)
        limit = _limit_among(vectors, minimum_correlation, _TYPICAL_SHARE)
        labels = _connect(_chunks(stack, vectors, turned=True), len(ids), limit)
        members: dict[int, list[str]] = defaultdict(list)
        for case_id, label in zip(ids, labels.tolist(), strict=True):
            members[label].append(case_id)
        clusters += [tuple(cluster) for cluster in members.values() if len(cluster) > 1]
    return sorted(clusters, key=lambda cluster: (-len(cluster), cluster))


def find_alike_pairs(
    thumbnails: Mapping[str, NDArray[np.floating]],
    *,
    minimum_correlation: float = ALIKE_CORRELATION,
    together: Sequence[Mapping[str, Hashable]] = (),
    count: int = 100,
) -> AlikePairs:
    """Return the pairs that correlate most, and how many there are; mirrored and turned images are not considered.

    Where all images are alike anyway, pairs must come closer, as for ``find_near_duplicates``.

    Args:
        thumbnails, minimum_correlation: see ``find_near_duplicates``.
        together: id -> part, group or cluster; a pair that has the same one in any of these is left out.
        count: pairs to return at most; all are counted.
    """
    best: list[tuple[float, str, str]] = []
    total = 0
    for ids, stack in _comparable(thumbnails):
        vectors = _normalize(stack)
        limit = _limit_among(vectors, minimum_correlation, _ALIKE_SHARE)
        numbers = [_number(ids, place_of) for place_of in together]
        for start, similar in _chunks(stack, vectors, turned=False):
            for number in numbers:
                similar[number[start : start + len(similar), None] == number] = -1
            rows, columns = np.nonzero(similar >= limit)
            total += len(rows)
            values = similar[rows, columns].round(_DIGITS)
            strong = _select_largest(values, count)
            chosen = zip(values[strong].tolist(), rows[strong], columns[strong], strict=True)
            found = ((value, ids[start + row], ids[column]) for value, row, column in chosen)
            best = heapq.nsmallest(count, [*best, *found], key=lambda pair: (-pair[0], pair[1:]))
    pairs = tuple(AlikePair(first, second, min(correlation, 1.0)) for correlation, first, second in best)
    return AlikePairs(pairs, total)


def _number(ids: Sequence[str], place_of: Mapping[str, Hashable]) -> NDArray[np.int64]:
    """Return the same number for ids with the same place, and another one for each id without."""
    number_of: dict[Hashable, int] = {}
    places = ((1, place_of[i]) if i in place_of else (0, i) for i in ids)
    return np.array([number_of.setdefault(place, len(number_of)) for place in places])


def _select_largest(values: Vectors, count: int) -> NDArray[np.bool_]:
    """Return which values are among the ``count`` largest, with all that equal the smallest of these."""
    if len(values) <= count:
        return np.ones(len(values), np.bool_)
    return np.asarray(values >= np.partition(values, len(values) - count)[len(values) - count])


def _comparable(thumbnails: Mapping[str, NDArray[np.floating]]) -> Iterator[tuple[list[str], Vectors]]:
    """Yield the ids and the stacked thumbnails of each shape, sorted by id, without constant ones."""
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for case_id, thumbnail in sorted(thumbnails.items()):
        # Averages of a constant image differ in their last digits.
        if thumbnail.std() > 1e-5 * np.abs(thumbnail).max():
            by_shape[thumbnail.shape].append(case_id)
    for ids in by_shape.values():
        yield ids, np.stack([thumbnails[i] for i in ids]).astype(np.float32)


def _normalize(stack: Vectors) -> Vectors:
    """Return (n, voxels): each thumbnail as a vector of mean 0 and length 1, so that products are correlations."""
    vectors = stack.reshape(len(stack), -1).astype(np.float64)
    vectors -= vectors.mean(axis=1, keepdims=True)
    normalized: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return normalized


def _limit_among(vectors: Vectors, minimum_correlation: float, share: float) -> float:
    """Return how much copies must correlate in this data set, judged by an even sample of it."""
    sample = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), _SAMPLE)).astype(int)]
    pairs = np.triu_indices(len(sample), 1)
    typical = float(np.median((sample @ sample.T)[pairs])) if len(sample) > 1 else 0.0
    above_typical = 1 - share * (1 - typical)
    return max(minimum_correlation, min(above_typical, _CERTAIN_CORRELATION))


def _chunks(stack: Vectors, vectors: Vectors, *, turned: bool) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield a start and the correlations (rows, n) of some rows from there on; each pair of images is above -1 once."""
    for start in range(0, len(stack), _CHUNK):
        rows = stack[start : start + _CHUNK]
        later = vectors[start:].T
        similar = np.full((len(rows), len(stack)), -1, np.float32)
        for version in _turns(rows) if turned else (rows,):
            np.maximum(similar[:, start:], _normalize(version) @ later, out=similar[:, start:])
        similar[np.tri(*similar.shape, k=start, dtype=bool)] = -1
        yield start, similar


def _turns(stack: Vectors) -> Iterator[Vectors]:
    """Yield the stack mirrored and turned by quarters in the plane, 8 ways; volumes also upside down, 16 ways."""
    for quarters in range(4):
        turned = np.rot90(stack, quarters, (-2, -1))
        for version in (turned, turned[..., ::-1]):
            yield version
            if stack.ndim == 4:
                yield version[:, ::-1]


def _connect(chunks: Iterator[tuple[int, NDArray[np.float32]]], size: int, limit: float) -> NDArray[np.integer]:
    """Return the number of the cluster of each of ``size`` images; only one chunk's pairs are held at a time."""
    labels = np.arange(size)
    for start, similar in chunks:
        rows, columns = np.nonzero(similar >= limit)
        first_of_label = np.unique(labels, return_index=True)[1][labels]
        one_end = np.concatenate([rows + start, np.arange(size)])
        other_end = np.concatenate([columns, first_of_label])
        graph = coo_matrix((np.ones(len(one_end), np.bool_), (one_end, other_end)), shape=(size, size))
        labels = connected_components(graph, directed=False)[1]
    return labels
