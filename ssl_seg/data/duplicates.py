"""Find images that are nearly the same: the copies that a comparison of bytes does not see.

Thumbnails of whole images are compared, so a copy is found that was resized, compressed, brightened, or changed in
contrast; also when it was mirrored or turned by quarters in its plane. What the images of a data set have in common,
such as the rim or the light of a camera, does not count: thumbnails are whitened (ZCA, Bell and Sejnowski 1997, with
the second moments of the data set over all turns), which leaves what is an image's own.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from ssl_seg.data.content import is_constant
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.home import list_places
from ssl_seg.files import write_text

Vectors = NDArray[np.floating]
Numbers = NDArray[np.int64]
Cluster = tuple[str, ...]

COPY_LIKENESS = 0.93
"""Images with at least so much likeness are taken for one.

Of different images the largest is 0.84 (micrographs), 0.43 (nuclei), 0.83 (neighboring MR slices) and, where there are
only 5 to 8 images, 0.90 (retinas, discs). Of copies the smallest is 0.99 (resized), 0.95 (JPEG of quality 30) and 0.97
(contrast changed by 0.4 or 1.5); of gamma 0.6 and 1.6 95 % are above 0.95. Images that were resized below 32 pixels, or
have no texture that JPEG leaves, are not found.
"""

ALIKE_LIKENESS = 0.55
"""Images with at least so much likeness may show one object twice."""

FEW_COPIES = 8
CROWD_SHARE = 1 / 3
"""A set of more than ``FEW_COPIES`` copies that is more than this share of all images is more probably one kind of
image that looks alike: it is reported and not taken for copies."""

_EXACT = 2048
"""Up to so many images, each is compared with all others; above, with those that fall into one bucket with it."""
_BUCKET, _TABLES = 256, 24
"""Images in a bucket, about, and random projections (Charikar 2002) that sort all images into buckets anew. Two copies
at the limit have the same sign in a share of 1 - acos(0.93) / pi = 0.88 of all directions: with 9 of them, as for
100,000 images, they share no bucket in 24 projections with a probability of 1e-4; at 0.97 of 1e-9."""
_NEIGHBORS = 8
"""Others that an image is connected with at most, the most alike; copies of more are joined in rounds."""
_COARSE_LIKENESS = 0.7
"""Limit inside a bucket, where only what no turn changes is compared: 136 features that scatter by about 0.02 for
copies. Alike pairs that are less alike than this are thus missed among more than 2,048 images."""
_MOMENT_ROWS = 2048
"""Thumbnails, all turns counted, that show what is usual."""
_COMMON = 10
"""Thumbnails, of those, whose share in a direction is not taken away in a second whitening."""
_CHUNK = 2048
_DIGITS = 4


@dataclass(frozen=True)
class AlikePair:
    """Two images with their likeness: the correlation of their thumbnails, as they are or whitened: the smaller one."""

    first: str
    second: str
    likeness: float


@dataclass(frozen=True)
class Likeness:
    """What looks alike: ``copies`` are sets of images that are one, largest first, each with the most connected first.

    ``exact`` are sets of cases with the same image, constant images aside; of ``find_likeness`` there are none.

    Every image of a set is a copy of the first one: no chain leads from image to image. ``crowds`` are sets that are
    too large to be copies, see ``CROWD_SHARE``. ``pairs`` are not in one set; the most alike first, up to 8 an image.
    """

    exact: tuple[Cluster, ...] = ()
    copies: tuple[Cluster, ...] = ()
    crowds: tuple[Cluster, ...] = ()
    pairs: tuple[AlikePair, ...] = ()


_KEPT = TypeAdapter(tuple[str, Likeness])
"""A key, and the likeness of the images that it stands for."""


def compare_cases(facts: Mapping[str, CaseFacts], root: str | None = None) -> Likeness:
    """Return what looks alike among cases; exact copies of an image stand for one, constant images for none.

    Of many images, the result is kept in the data set's folder or, where that cannot be written, in the user's cache,
    and holds as long as the contents are the same.

    Args:
        root: the data set; None keeps nothing.
    """
    cases_of: dict[str, list[str]] = defaultdict(list)
    thumbnails = {}
    for case_id, found in sorted(facts.items()):
        if not is_constant(found.image):
            cases_of[found.image].append(case_id)
            if found.appearance is not None:
                thumbnails[found.image] = found.appearance.thumbnail
    images = _find_kept(thumbnails, root) if len(thumbnails) > _EXACT else find_likeness(thumbnails)
    copies, crowds = (
        tuple(tuple(case for image in cluster for case in cases_of[image]) for cluster in clusters)
        for clusters in (images.copies, images.crowds)
    )
    ends = [(sorted((cases_of[p.first][0], cases_of[p.second][0])), p.likeness) for p in images.pairs]
    exact = tuple(tuple(cases) for cases in cases_of.values() if len(cases) > 1)
    return Likeness(exact, copies, crowds, _rank([AlikePair(first, second, value) for (first, second), value in ends]))


def _find_kept(thumbnails: Mapping[str, Vectors], root: str | None) -> Likeness:
    """Return the likeness of these images that was kept, or find and keep it; names are contents."""
    places = list_places(root, "likeness.json")
    key = hashlib.sha256(Path(__file__).read_bytes() + "".join(sorted(thumbnails)).encode()).hexdigest()
    for path in places:
        with suppress(OSError, ValueError):
            kept_key, kept = _KEPT.validate_json(path.read_bytes())
            if kept_key == key:
                return kept
    found = find_likeness(thumbnails)
    for path in places:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _KEPT.dump_json((key, found)).decode())
            break
    return found


def find_likeness(thumbnails: Mapping[str, Vectors]) -> Likeness:
    """Return what looks alike.

    Up to 2,048 images, all pairs are compared. Above, the time grows little faster than the number of images: see
    ``scripts/benchmark_likeness.py``.

    Args:
        thumbnails: id -> thumbnail (32, 32) or (16, 16, 16); images are compared with those of the same shape.
    """
    copies: list[Cluster] = []
    crowds: list[Cluster] = []
    pairs: list[AlikePair] = []
    for ids in _comparable(thumbnails):
        images = _Images(ids, thumbnails)
        leader_of, ends, likeness = _cluster(images)
        members: dict[int, list[str]] = defaultdict(list)
        for number in np.argsort(leader_of != np.arange(len(ids)), kind="stable").tolist():
            members[int(leader_of[number])].append(ids[number])
        most = max(FEW_COPIES, CROWD_SHARE * len(ids))
        for cluster in members.values():
            if len(cluster) > 1:
                (copies if len(cluster) <= most else crowds).append(tuple(cluster))
        apart = leader_of[ends[0]] != leader_of[ends[1]]
        found = zip(*ends[:, apart].tolist(), likeness[apart].astype(np.float64).round(_DIGITS).tolist(), strict=True)
        pairs += [AlikePair(ids[first], ids[second], min(value, 1.0)) for first, second, value in found]
    for sets in (copies, crowds):
        sets.sort(key=lambda cluster: (-len(cluster), cluster))
    return Likeness((), tuple(copies), tuple(crowds), _rank(pairs))


def _rank(pairs: list[AlikePair]) -> tuple[AlikePair, ...]:
    return tuple(sorted(pairs, key=lambda pair: (-pair.likeness, pair.first, pair.second)))


class _Images:
    """Thumbnails of one shape, and their whitened form: 2 KB an image."""

    def __init__(self, ids: list[str], thumbnails: Mapping[str, Vectors]) -> None:
        self.ids, self._thumbnails = ids, thumbnails
        shape = thumbnails[ids[0]].shape
        self._turns = np.stack([t.ravel() for t in _turn(np.arange(np.prod(shape)).reshape(shape))])  # (turns, voxels)
        count = max(_MOMENT_ROWS // len(self._turns), 2)
        sample = np.unique(np.linspace(0, len(ids) - 1, count).astype(int))
        vectors = self._normalize(sample)
        first = _find_whitening(vectors, shape, 1 / len(self._turns))
        # A light that is much stronger than all else is still seen: what is common to many is taken away once more.
        second = _find_whitening(_to_unit(_whiten(vectors, first)), shape, _COMMON / len(self._turns))
        self._whitened = np.empty((len(ids), vectors.shape[1]), np.float16)
        for start in range(0, len(ids), _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, len(ids)))
            self._whitened[numbers] = _to_unit(_whiten(_whiten(self._normalize(numbers), first), second))

    def _normalize(self, numbers: Numbers) -> Vectors:
        """Return (n, voxels): thumbnails as vectors of mean 0 and length 1, so that products are correlations."""
        stack = np.array([self._thumbnails[self.ids[n]].ravel() for n in numbers], np.float32)
        stack = stack.reshape(len(numbers), self._turns.shape[1])
        stack -= stack.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        return _to_unit(stack)

    def compare(self, rows: Numbers, columns: Numbers) -> Vectors:
        """Return (rows, columns): the largest correlation of whitened thumbnails over all turns."""
        one, other = self._whitened[rows].astype(np.float32), self._whitened[columns].astype(np.float32).T
        best: Vectors = one @ other
        for turn in self._turns[1:]:
            np.maximum(best, one[:, turn] @ other, out=best)
        return best

    def measure(self, first: Numbers, second: Numbers) -> Vectors:
        """Return the likeness of each pair."""
        found = [np.zeros(0, np.float32)]
        for start in range(0, len(first), _CHUNK):
            a, b = first[start : start + _CHUNK], second[start : start + _CHUNK]
            one, other = self._whitened[a].astype(np.float32), self._whitened[b].astype(np.float32)
            turned = np.stack([np.einsum("nv,nv->n", one[:, turn], other) for turn in self._turns])
            best, likeness = turned.argmax(axis=0), turned.max(axis=0)
            near = np.flatnonzero(likeness >= ALIKE_LIKENESS)
            shown, places = np.unique(np.stack([a[near], b[near]]), return_inverse=True)
            one, other = self._normalize(shown)[places]
            as_is = np.take_along_axis(one, self._turns[best[near]], axis=1)
            likeness[near] = np.minimum(likeness[near], np.einsum("nv,nv->n", as_is, other))
            found.append(likeness)
        return np.concatenate(found)

    def describe(self, numbers: Numbers) -> Vectors:
        """Return (n, features) of length 1: what no turn changes of the whitened thumbnails."""
        orbit = np.unique(self._turns.min(axis=0), return_inverse=True)[1]  # voxels that turns lead to each other
        sums = np.eye(orbit.max() + 1, dtype=np.float32)[orbit]
        return _to_unit(self._whitened[numbers].astype(np.float32) @ (sums / np.sqrt(sums.sum(axis=0))))


def _cluster(images: _Images) -> tuple[Numbers, Numbers, Vectors]:
    """Return the leader of each image, that it is a copy of or itself; the ends (2, n) of alike pairs; their likeness.

    Each round compares the leaders only, until none of them is a copy of another.
    """
    leader_of = np.arange(len(images.ids))
    members = [[number] for number in leader_of.tolist()]
    leaders, ends, likeness = leader_of, np.zeros((2, 0), np.int64), np.zeros(0, np.float32)
    while True:
        new = _find_candidates(images, leaders)
        values = images.measure(*new)
        ends = np.concatenate([ends, new[:, values >= ALIKE_LIKENESS]], axis=1)
        likeness = np.concatenate([likeness, values[values >= ALIKE_LIKENESS]])
        near: dict[int, list[int]] = defaultdict(list)
        for first, second in new[:, values >= COPY_LIKENESS].T.tolist():
            near[first].append(second)
            near[second].append(first)
        joined = False
        for leader in sorted(near, key=lambda number: (-len(members[number]), -len(near[number]), number)):
            if leader_of[leader] != leader:
                continue
            for other in near[leader]:
                all_of = np.array(members[other])
                alone = leader_of[other] == other
                if alone and (
                    len(all_of) == 1 or images.measure(np.full(len(all_of), leader), all_of).min() >= COPY_LIKENESS
                ):
                    leader_of[all_of] = leader
                    members[leader] += members[other]
                    members[other] = []
                    joined = True
        if not joined or max(map(len, near.values())) < _NEIGHBORS:
            codes = np.unique(ends[0] * len(leader_of) + ends[1], return_index=True)[1]
            return leader_of, ends[:, codes], likeness[codes]
        leaders = np.flatnonzero(leader_of == np.arange(len(leader_of)))


def _find_candidates(images: _Images, numbers: Numbers) -> Numbers:
    """Return (2, n): pairs that may be alike, the smaller number first, each once; a few for each image."""
    count = len(numbers)
    found = np.zeros(0, np.int64)
    if count <= _EXACT:
        for start in range(0, count, _CHUNK // 8):
            similar = images.compare(numbers[start : start + _CHUNK // 8], numbers)
            similar[np.arange(len(similar)), np.arange(len(similar)) + start] = -1
            rows, columns = _select_best(similar, ALIKE_LIKENESS)
            found = _join(found, rows + start, columns, count)
        return _to_pairs(found, numbers)
    features = images.describe(numbers)
    rng = np.random.default_rng(0)
    bits = max(int(np.ceil(np.log2(count / _BUCKET))), 0)
    for _ in range(_TABLES):
        directions = rng.normal(size=(features.shape[1], bits + 1)).astype(np.float32)
        projected = features @ directions
        keys = (projected[:, :bits] > 0) @ (1 << np.arange(bits))
        order = np.lexsort((projected[:, bits], keys))
        edges = np.flatnonzero(np.diff(keys[order], prepend=-1, append=-1))
        cuts = np.unique([*edges.tolist(), *range(0, count, 4 * _BUCKET)])  # no bucket is larger than four usual ones
        fresh = [np.zeros((2, 0), np.int64)]
        for first, last in pairwise(cuts.tolist()):
            bucket = order[first:last]
            similar = features[bucket] @ features[bucket].T
            np.fill_diagonal(similar, -1)
            rows, columns = _select_best(similar, _COARSE_LIKENESS)
            fresh.append(np.stack([bucket[rows], bucket[columns]]))
        rows, columns = np.concatenate(fresh, axis=1)
        found = _join(found, rows, columns, count)
        if len(found) > 2 * _NEIGHBORS * count:
            found = _thin(found, features)
    return _to_pairs(_thin(found, features), numbers)


def _select_best(similar: Vectors, limit: float) -> tuple[Numbers, Numbers]:
    """Return rows and columns of what reaches ``limit``, at most ``_NEIGHBORS`` in a row: the largest."""
    if np.count_nonzero(similar >= limit) > _NEIGHBORS * len(similar):
        largest = np.argpartition(-similar, _NEIGHBORS - 1, axis=1)[:, :_NEIGHBORS]
        kept = np.take_along_axis(similar, largest, axis=1) >= limit
        return np.nonzero(kept)[0], largest[kept]
    rows, columns = np.nonzero(similar >= limit)
    return rows, columns


def _join(found: Numbers, first: Numbers, second: Numbers, count: int) -> Numbers:
    """Return the pairs with more of them, as smaller number times ``count`` plus larger number: sorted, each once."""
    codes = np.concatenate([found, np.minimum(first, second) * count + np.maximum(first, second)])
    codes.sort()  # np.unique is fifty times slower
    return codes[np.diff(codes, prepend=-1) > 0]


def _to_pairs(codes: Numbers, numbers: Numbers) -> Numbers:
    """Return (2, n): the pairs of ``numbers`` that codes of ``_join`` stand for."""
    first, second = np.divmod(codes, len(numbers))
    return np.stack([numbers[first], numbers[second]])


def _thin(codes: Numbers, features: Vectors) -> Numbers:
    """Return the pairs that are among the ``_NEIGHBORS`` most alike of one of their ends."""
    pairs = np.divmod(codes, len(features))
    similar = [np.zeros(0, np.float32)]
    for start in range(0, len(codes), 8 * _CHUNK):
        first, second = (ends[start : start + 8 * _CHUNK] for ends in pairs)
        similar.append(np.einsum("nf,nf->n", features[first], features[second]))
    apart = ((2 - np.concatenate(similar, dtype=np.float64)) * 2**28).astype(np.int64)
    kept = np.zeros(len(codes), np.bool_)
    for ends in pairs:
        by_end = np.argsort((ends << 32) + apart)
        starts = np.flatnonzero(np.diff(ends[by_end], prepend=-1))
        rank = np.arange(len(by_end)) - np.repeat(starts, np.diff(starts, append=len(by_end)))
        kept[by_end[rank < _NEIGHBORS]] = True
    return codes[kept]


def _find_whitening(vectors: Vectors, shape: tuple[int, ...], few: float) -> tuple[Vectors, Vectors]:
    """Return the usual directions (size, n), and by what share vectors shrink along each (n,).

    With these shares, vectors of length 1 come to have all directions equally often. What a ``few`` vectors contribute
    to the second moment is added to it, or noise would be whitened too.

    The second moments are those of all turns of the vectors. Since mirror images are among them, what is even along an
    axis is not correlated with what is odd: each combination is solved alone, 4 times 256 numbers in place of 1,024.

    Args:
        vectors: (count, size) thumbnails, not turned.
        shape: shape of a thumbnail; each side is even.
        few: some of the ``count`` vectors.
    """
    stack = vectors.reshape(-1, *shape)
    stack = np.concatenate([stack, stack.swapaxes(-1, -2)])
    directions, shares = [], []
    for signs in product((1, -1), repeat=len(shape)):
        folded = _fold(stack, signs)
        values, ends = _find_axes(folded.reshape(len(stack), -1))
        usual = values > 0.01 * few / len(vectors)
        directions.append(_unfold(ends[:, usual].T.reshape(-1, *folded.shape[1:]), signs).reshape(-1, vectors.shape[1]))
        shares.append(1 - (1 + values[usual] * len(vectors) / few) ** -0.5)
    return np.concatenate(directions).T.astype(np.float32), np.concatenate(shares).astype(np.float32)


def _fold(stack: Vectors, signs: Sequence[int]) -> Vectors:
    """Return (n, *halves): what is even (sign 1) or odd (-1) along each axis of a stack (n, *shape), on half of it."""
    for axis, sign in enumerate(signs, 1):
        first, second = np.split(stack, 2, axis)
        stack = (first + sign * np.flip(second, axis)) * np.float32(0.5**0.5)
    return stack


def _unfold(stack: Vectors, signs: Sequence[int]) -> Vectors:
    """Return (n, *shape): the even or odd whole of each half, of the same length; undoes ``_fold``."""
    for axis, sign in enumerate(signs, 1):
        stack = np.concatenate([stack, sign * np.flip(stack, axis)], axis) * np.float32(0.5**0.5)
    return stack


def _find_axes(rows: Vectors) -> tuple[Vectors, Vectors]:
    """Return eigenvalues and eigenvectors, as columns, of the second moment of rows, those of 0 left out."""
    count, size = rows.shape
    if count >= size:
        values, ends = np.linalg.eigh((rows.T @ rows).astype(np.float64) / count)
        return values, ends
    values, ends = np.linalg.eigh((rows @ rows.T).astype(np.float64) / count)
    return values, rows.T @ ends / np.sqrt(np.maximum(values, 1e-12) * count)


def _whiten(vectors: Vectors, whitening: tuple[Vectors, Vectors]) -> Vectors:
    """Return vectors (n, size) shrunk along the directions of ``_find_whitening``.

    With few images there are far fewer directions than voxels: no matrix (voxels, voxels) is made.
    """
    directions, shares = whitening
    return vectors - (vectors @ directions * shares) @ directions.T


def _to_unit(vectors: Vectors) -> Vectors:
    unit: Vectors = vectors / np.maximum(np.sqrt(np.einsum("nv,nv->n", vectors, vectors)), 1e-12)[:, None]
    return unit


def _comparable(thumbnails: Mapping[str, Vectors]) -> Iterator[list[str]]:
    """Yield the ids of each shape, sorted, without those of constant thumbnails."""
    by_shape: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for case_id, thumbnail in sorted(thumbnails.items()):
        # Averages of a constant image differ in their last digits.
        if thumbnail.std() > 1e-5 * np.abs(thumbnail).max():
            by_shape[thumbnail.shape].append(case_id)
    yield from (ids for ids in by_shape.values() if len(ids) > 1)


def _turn(image: NDArray[np.generic]) -> Iterator[NDArray[np.generic]]:
    """Yield an image in the 8 ways to turn it by quarters and mirror it in its plane; volumes also upside down."""
    for upright in (image, image[::-1])[: image.ndim - 1]:
        for kept in (upright, upright.swapaxes(-1, -2)):
            yield from (kept, np.flip(kept, -1), np.flip(kept, -2), np.flip(kept, (-1, -2)))
