"""Every loss at its default options, written a second time: numpy in float64, sets and loops, no torch.

``REFERENCES[name](probs, target)`` takes softmax probabilities (N, K, *S) and a target (N, *S).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, grey_dilation, grey_erosion

from ssl_seg.labels import IGNORE_INDEX

Array = NDArray[np.float64]


def compute_softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def list_voxels(probs: Array, target: Array) -> list[tuple[Array, int]]:
    """The valid voxels: probabilities and label of each."""
    return [
        (probs[(n, slice(None), *place)], int(target[(n, *place)]))
        for n in range(len(target))
        for place in np.ndindex(target.shape[1:])
        if target[(n, *place)] != IGNORE_INDEX
    ]


def cross_entropy(probs: Array, target: Array) -> float:
    return float(np.mean([-np.log(p[y]) for p, y in list_voxels(probs, target)]))


def focal(probs: Array, target: Array) -> float:
    return float(np.mean([-((1 - p[y]) ** 2) * np.log(p[y]) for p, y in list_voxels(probs, target)]))


def count(voxels: list[tuple[Array, int]], k: int) -> tuple[float, float, float]:
    tp = sum(p[k] for p, y in voxels if y == k)
    fp = sum(p[k] for p, y in voxels if y != k)
    return tp, fp, sum(1 - p[k] for p, y in voxels if y == k)


def dice(probs: Array, target: Array) -> float:
    voxels, scores = list_voxels(probs, target), []
    for k in range(1, probs.shape[1]):
        predicted, actual = sum(p[k] for p, _ in voxels), sum(y == k for _, y in voxels)
        scores.append((2 * sum(p[k] for p, y in voxels if y == k) + 1) / (predicted + actual + 1))
    return 1 - float(np.mean(scores))


def iou(probs: Array, target: Array) -> float:
    voxels, scores = list_voxels(probs, target), []
    for k in range(1, probs.shape[1]):
        tp, fp, fn = count(voxels, k)
        scores.append((tp + 1) / (tp + fp + fn + 1))
    return 1 - float(np.mean(scores))


def tversky_by_class(probs: Array, target: Array) -> Array:
    voxels = list_voxels(probs, target)
    counts = [count(voxels, k) for k in range(1, probs.shape[1])]
    return np.array([1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1) for tp, fp, fn in counts])


def tversky(probs: Array, target: Array) -> float:
    return float(tversky_by_class(probs, target).mean())


def focal_tversky(probs: Array, target: Array) -> float:
    return float((tversky_by_class(probs, target) ** 0.75).mean())


def generalized_dice(probs: Array, target: Array) -> float:
    voxels = list_voxels(probs, target)
    volumes = [sum(y == k for _, y in voxels) for k in range(probs.shape[1])]
    rarest = min(v for v in volumes if v > 0)
    weights = [(rarest / v) ** 2 if v > 0 else 1.0 for v in volumes]
    overlap = sum(w * sum(p[k] for p, y in voxels if y == k) for k, w in enumerate(weights))
    size = sum(w * (sum(p[k] for p, _ in voxels) + volumes[k]) for k, w in enumerate(weights))
    return 1 - (2 * overlap + 1) / (size + 1)


def lovasz(probs: Array, target: Array) -> float:
    voxels, losses = list_voxels(probs, target), []
    for k in range(probs.shape[1]):
        positives = {i for i, (_, y) in enumerate(voxels) if y == k}
        if not positives:
            continue
        errors = [1 - p[k] if y == k else p[k] for p, y in voxels]
        order = sorted(range(len(voxels)), key=lambda i: -errors[i])
        jaccard = [len(wrong) / len(positives | wrong) for n in range(len(order) + 1) for wrong in [set(order[:n])]]
        losses.append(sum(errors[i] * (jaccard[n + 1] - jaccard[n]) for n, i in enumerate(order)))
    return float(np.mean(losses))


def skeletonize(image: Array, iterations: int = 3) -> Array:
    """Soft skeleton (Shit et al. 2021, algorithm 1): openings by a cross, then a cube; nothing is beyond the edge."""
    cross = generate_binary_structure(image.ndim, 1)

    def erode(x: Array) -> Array:
        return grey_erosion(x, footprint=cross, mode="constant", cval=np.inf)

    def reopen(x: Array) -> Array:
        return grey_dilation(erode(x), size=(3,) * x.ndim, mode="constant", cval=-np.inf)

    skeleton = np.maximum(image - reopen(image), 0)
    for _ in range(iterations):
        image = erode(image)
        skeleton = skeleton + (1 - skeleton) * np.maximum(image - reopen(image), 0)
    return skeleton


def cldice(probs: Array, target: Array) -> float:
    scores = []
    for k in range(1, probs.shape[1]):
        mask = (target == k).astype(float)
        soft = np.where(target == IGNORE_INDEX, 0.0, probs[:, k])
        predicted = np.stack([skeletonize(image) for image in soft])
        actual = np.stack([skeletonize(image) for image in mask])
        precision = ((predicted * mask).sum() + 1) / (predicted.sum() + 1)
        sensitivity = ((actual * soft).sum() + 1) / (actual.sum() + 1)
        scores.append(2 * precision * sensitivity / (precision + sensitivity))
    return 1 - float(np.mean(scores))


def measure_distances(mask: NDArray[np.bool_], known: NDArray[np.bool_]) -> Array | None:
    """Distance of each voxel to the nearest known one of the other kind; None without a boundary."""
    places = np.argwhere(np.ones_like(mask))
    sides = {value: np.argwhere(known & (mask == value)) for value in (False, True)}
    if min(len(side) for side in sides.values()) == 0:
        return None
    nearest = [np.linalg.norm(sides[not mask[tuple(p)]] - p, axis=1).min() for p in places]
    return np.array(nearest).reshape(mask.shape)


def boundary(probs: Array, target: Array) -> float:
    values = []
    for n, k in itertools.product(range(len(target)), range(1, probs.shape[1])):
        known, mask = target[n] != IGNORE_INDEX, target[n] == k
        distances = measure_distances(mask, known)
        phi = np.ones(mask.shape) if distances is None else distances / distances[known].max()
        values += list((phi * np.abs(probs[n, k] - mask))[known])
    return float(np.mean(values))


def hausdorff_dt(probs: Array, target: Array) -> float:
    values = []
    for n, k in itertools.product(range(len(target)), range(1, probs.shape[1])):
        known, mask = target[n] != IGNORE_INDEX, target[n] == k
        fields = [measure_distances(m & known, known) for m in (probs[n, k] > 0.5, mask)]
        squares = [field**2 for field in fields if field is not None]
        weight = sum(squares) if squares else np.ones(mask.shape)
        values += list((weight * (probs[n, k] - mask) ** 2)[known])
    return float(np.mean(values))


def connectivity(probs: Array, target: Array) -> float:
    scores = []
    for k in range(1, probs.shape[1]):
        overlap = size = 0.0
        for n, axis in itertools.product(range(len(target)), range(target.ndim - 1)):
            for place in np.ndindex(target.shape[1:]):
                other = tuple(x + (i == axis) for i, x in enumerate(place))
                if other[axis] == target.shape[1 + axis] or IGNORE_INDEX in (target[n][place], target[n][other]):
                    continue
                predicted = probs[n, k][place] * probs[n, k][other]
                actual = float(target[n][place] == k and target[n][other] == k)
                overlap, size = overlap + predicted * actual, size + predicted + actual
        scores.append((2 * overlap + 1) / (size + 1))
    return 1 - float(np.mean(scores))


def variance(probs: Array, target: Array) -> float:
    foreground = 1 - probs[:, 0]
    samples = [f[t != IGNORE_INDEX] for f, t in zip(foreground, target, strict=True)]
    return float(np.mean([1 - 4 * np.var(values) for values in samples if values.size]))


REFERENCES: dict[str, Callable[[Array, Array], float]] = {
    function.__name__: function
    for function in (
        cross_entropy, dice, focal, generalized_dice, tversky, focal_tversky, iou, lovasz, cldice, boundary,
        hausdorff_dt, connectivity, variance,
    )
}  # fmt: skip
