"""Which unlabeled training images to label next.

``clasp_pe`` follows ClaSP PE (Class-stratified Scheduled Power Predictive Entropy, TMLR 2026): images are ranked by the
logarithm of an uncertainty plus Gumbel noise, which falls from round to round; two thirds of them are chosen for single
classes, the rest for all. Deviations: what is chosen is a whole image, scored by its most uncertain patch; classes are
those of the foreground; without a cross-validation the probabilities are those of one network.

Shapes: K classes, *S spatial = (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special
from torch import Tensor, nn

from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.content import image_of
from ssl_seg.data.open import open_store
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.data.store import CaseStore, WholeCase
from ssl_seg.data.volumes import split_suffix
from ssl_seg.errors import ConfigError, DataError, counted, quote
from ssl_seg.files import check_is_free
from ssl_seg.inference.calibration import Calibration, calibrate_predictor, decide, decide_mean, find_calibration
from ssl_seg.inference.decision import Decision
from ssl_seg.inference.ensemble import check_members, open_members, pool
from ssl_seg.inference.model import Model
from ssl_seg.networks.parts import PARTS
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.evaluation import open_cases
from ssl_seg.results.folds import list_members

Strategy = Literal["clasp_pe", "diversity", "random"]
CLASS_SHARE = 0.66
"""Share of the images of ``clasp_pe`` that are chosen for single classes."""
ROUNDS, SHARPEST = 5, 100.0
"""Rounds over which the noise of ``clasp_pe`` falls, and the exponent of the scores in the last one; it is 1 in the
first. The exponent is of the source, the number of rounds is not."""
TINY = 1e-12
"""Takes the place of a score of 0 in a logarithm."""


@dataclass(frozen=True)
class SuggestRequest:
    """What to suggest.

    ``checkpoint`` may be the directory of a cross-validation: then the mean over its folds counts, as in the source of
    ``clasp_pe``. ``data`` defaults to that of the training, ``which`` to the better net on validation.
    """

    checkpoint: Path
    data: str | None = None
    count: int = 20
    strategy: Strategy = "clasp_pe"
    round: int = 1
    """How many rounds of labeling this one is; only ``clasp_pe`` looks at it."""
    seed: int = 0
    which: str | None = None
    accelerator: str | None = None


@dataclass(frozen=True)
class Suggestion:
    """An image to label; ``files`` are those of its channels, and ``foreground`` is its predicted share."""

    case_id: str
    files: tuple[str, ...]
    reason: str
    """``class N`` or ``all classes``, ``distance``, ``foreground``, or ``no foreground`` where too few have some."""
    score: float | None
    """Uncertainty from 0 to 1, or distance to what is labeled or suggested before; None of a random choice."""
    foreground: float


@dataclass(frozen=True)
class Pool:
    """The images to choose from, and the networks that look at them."""

    models: tuple[Model, ...]
    store: CaseStore
    candidates: tuple[str, ...]
    labeled: tuple[str, ...]
    calibration: Calibration | None = None
    """What `ssl-seg calibrate` has stored for the network; None for several, as their mean has none."""

    @property
    def patch_size(self) -> tuple[int, ...]:
        """Window of the first network."""
        return tuple(self.models[0].config.data.patch_size)

    @property
    def decision(self) -> Decision:
        """How `ssl-seg predict` cuts the probabilities."""
        if self.calibration is None:
            return decide_mean(None, self.models)
        return decide(None, self.calibration, self.models[0].config.prediction)

    def predict(self, case: WholeCase) -> NDArray[np.float32]:
        """Return the probabilities (K,*S) of the network, calibrated if they are for `ssl-seg predict`; of several
        networks the mean."""
        predictors = (model.predictor(next(iter(model.nets))) for model in self.models)
        return pool(calibrate_predictor(own, self.calibration)(case.image, case.spacing) for own in predictors)


def open_pool(request: SuggestRequest, track: Track = pass_through) -> Pool:
    """Return the networks and the training images without a mask.

    Raises:
        SslSegError: for an unusable checkpoint or folder, or where there is nothing to choose from.
    """
    paths = list_members((request.checkpoint,))
    models = open_members(paths, request.which, choose_device_if_given(request.accelerator))
    check_members(models, averaged=True)
    first = models[0]
    catalog, data = open_cases(first, track, request.data)
    splits = [split_from_dict(model.checkpoint.split) for model in models]
    candidates = find_candidates(splits, catalog)
    if not candidates:
        raise DataError(_explain_none(splits[0], catalog, first))
    known = {case.id for case in catalog.labeled}
    labeled = tuple(i for i in splits[0].labeled_ids(first.config.split.labels) if i in known)
    calibration = find_calibration(first, next(iter(first.nets))) if len(models) == 1 else None
    return Pool(models, open_store(catalog, data), candidates, labeled, calibration)


def find_candidates(splits: Sequence[Split], catalog: Catalog) -> tuple[str, ...]:
    """Return the ids of images without a mask that every split has in training, as copies of held-out ones are not.

    Args:
        splits: splits of the networks.
        catalog: the images as they are now: one that has got a mask since then is none to label.
    """
    waiting = {case.id for case in catalog.unlabeled}
    contents = set().union(*(split.image_contents((*split.val, *split.test)) for split in splits))
    shared = set.intersection(*(set(split.unlabeled) for split in splits))
    return tuple(sorted(i for i in shared & waiting if image_of(catalog.facts[i].content) not in contents))


def _explain_none(split: Split, catalog: Catalog, model: Model) -> str:
    start = f"{catalog.root} has no image to suggest: none without a mask is a training image of {model.path}"
    hidden = len(split.pool_ids(model.config.split.labels)) - len(split.unlabeled)
    if hidden:
        return (
            f"{start}. {counted(hidden, 'mask', 'are')} there that it has not learned from (split.labels="
            f"{model.config.split.labels:g}): train with more labels"
        )
    return f"{start}. Images that were added after the training are in no list of its split: train again, then suggest"


def suggest(pool: Pool, request: SuggestRequest, track: Track = pass_through) -> tuple[Suggestion, ...]:
    """Return up to ``count`` images to label, in the order of their choice; the same for the same seed.

    Args:
        request: how; its paths are not looked at.

    Raises:
        ConfigError: for a count or a round below 1.
        DataError: where the networks give NaN or infinity.
    """
    if request.count < 1 or request.round < 1:
        raise ConfigError(f"count = {request.count} and round = {request.round} must be at least 1")
    rng = np.random.default_rng([request.seed, request.round])
    if request.strategy == "random":
        return _choose_random(pool, request.count, rng, track)
    if request.strategy == "diversity":
        return _choose_diverse(pool, request.count, track)
    return _choose_uncertain(pool, request, rng, track)


def _make(pool: Pool, case_id: str, foreground: float, reason: str, score: float | None) -> Suggestion:
    case = pool.store.catalog.case(case_id)
    return Suggestion(case_id, (case.image, *case.more_channels), reason, score, foreground)


def _choose_random(pool: Pool, count: int, rng: np.random.Generator, track: Track) -> tuple[Suggestion, ...]:
    """Choose at random among images with predicted foreground; others come last, where these are too few."""
    drawn = [pool.candidates[n] for n in rng.permutation(len(pool.candidates))]
    shares: dict[str, float] = {}
    for case_id in track(drawn, len(drawn)):
        if sum(share > 0 for share in shares.values()) == count:
            break
        shares[case_id] = _share_foreground(pool, _look(pool, case_id))
    ranked = sorted(shares, key=lambda case_id: shares[case_id] == 0)[:count]
    reasons = {case_id: "foreground" if shares[case_id] else "no foreground" for case_id in ranked}
    return tuple(_make(pool, case_id, shares[case_id], reasons[case_id], None) for case_id in ranked)


def _choose_uncertain(
    pool: Pool, request: SuggestRequest, rng: np.random.Generator, track: Track
) -> tuple[Suggestion, ...]:
    scores: dict[str, dict[str, float]] = {}
    shares: dict[str, float] = {}
    values = pool.models[0].config.data.label_values[1:]
    names = [f"class {value}" for value in values] if len(values) > 1 else ["foreground"]
    for case_id in track(pool.candidates, len(pool.candidates)):
        probs = _look(pool, case_id)
        found = measure_uncertainty(probs, pool.patch_size)
        scores[case_id] = dict(zip(["all classes", *names], found, strict=True))
        shares[case_id] = _share_foreground(pool, probs)
    chosen = choose_stratified(scores, names, "all classes", request.count, find_exponent(request.round), rng)
    return tuple(_make(pool, i, shares[i], reason, scores[i][reason]) for i, reason in chosen.items())


def find_exponent(round_: int) -> float:
    """Return the exponent of the scores in a round from 1 on: 100^(t/(T-1)), from 1 to 100."""
    return float(SHARPEST ** (min(round_ - 1, ROUNDS - 1) / (ROUNDS - 1)))


def choose_stratified(
    scores: Mapping[str, Mapping[str, float]],
    classes: Sequence[str],
    overall: str,
    count: int,
    exponent: float,
    rng: np.random.Generator,
) -> dict[str, str]:
    """Return up to ``count`` images, with the score that each was chosen by; none is chosen twice.

    Each choice draws without replacement with probabilities in proportion to score^exponent (Gumbel-top-k).

    Args:
        scores: scores of each image by name, each at least 0.
        classes: names of the scores of classes, which share ``CLASS_SHARE`` of the choices evenly, the first ones
            getting what is left over.
        overall: name of the score that decides about the others.
        count: at least 1.
        exponent: above 0.
        rng: source of the noise.
    """
    ids = list(scores)
    total = round(CLASS_SHARE * min(count, len(ids)))
    quotas = {name: total // len(classes) + (n < total % len(classes)) for n, name in enumerate(classes)}
    quotas[overall] = min(count, len(ids)) - total
    chosen: dict[str, str] = {}
    for name, quota in quotas.items():
        noise = rng.gumbel(size=len(ids)) / exponent
        keys = {i: np.log(max(scores[i][name], TINY)) + own for i, own in zip(ids, noise, strict=True)}
        left = sorted((i for i in ids if i not in chosen), key=lambda i: -keys[i])
        chosen |= dict.fromkeys(left[:quota], name)
    return chosen


def measure_uncertainty(probs: NDArray[np.floating], patch_size: Sequence[int]) -> list[float]:
    """Return the entropy of an image, and for each foreground class entropy times its probability, from 0 to 1.

    Each is the mean over a patch, of the patch where that is highest.

    Args:
        probs: (K,*S).
        patch_size: (*S); cut to the image.
    """
    entropy = special.entr(probs.astype(np.float64)).sum(axis=0) / np.log(len(probs))
    return [find_highest_mean(values, patch_size) for values in (entropy, *(entropy * probs[1:]))]


def find_highest_mean(values: NDArray[np.floating], size: Sequence[int]) -> float:
    """Return the highest mean of an array (*S) over a box of a size (*S) that lies in it; a larger box is cut."""
    box = [min(own, n) for own, n in zip(size, values.shape, strict=True)]
    means = ndimage.uniform_filter(values, box, mode="constant")
    inside = tuple(slice(own // 2, n - own + own // 2 + 1) for own, n in zip(box, values.shape, strict=True))
    return float(means[inside].max())


def _choose_diverse(pool: Pool, count: int, track: Track) -> tuple[Suggestion, ...]:
    """Choose what the encoder sees as far from all labeled images and from each other."""
    features: dict[str, NDArray[np.float64]] = {}
    shares: dict[str, float] = {}
    ids = (*pool.labeled, *pool.candidates)
    first = pool.models[0]
    with pooled_features(next(iter(first.nets.values())), first.config.network.name) as read:
        for case_id in track(ids, len(ids)):
            shares[case_id] = _share_foreground(pool, _look(pool, case_id))
            features[case_id] = read()
    known, new = (np.array([features[i] for i in own]) for own in (pool.labeled, pool.candidates))
    picked = [(pool.candidates[n], distance) for n, distance in choose_far(new, known, count)]
    return tuple(_make(pool, i, shares[i], "distance", distance) for i, distance in picked)


def choose_far(new: NDArray[np.floating], known: NDArray[np.floating], count: int) -> list[tuple[int, float]]:
    """Return rows of ``new`` (N,F), each the farthest from ``known`` (M,F) and from the rows before, with its distance.

    The greedy solution of the k-center problem (Sener & Savarese 2018, arXiv:1708.00489). Without a known row, the
    first one is the farthest from the mean of all.
    """
    centers = known if len(known) else new.mean(axis=0, keepdims=True)
    nearest = np.min([np.linalg.norm(new - center, axis=1) for center in centers], axis=0)
    chosen: list[tuple[int, float]] = []
    for _ in range(min(count, len(new))):
        row = int(nearest.argmax())
        chosen.append((row, float(nearest[row])))
        if not len(known) and len(chosen) == 1:
            nearest = np.full(len(new), np.inf)
        nearest = np.minimum(nearest, np.linalg.norm(new - new[row], axis=1))
        nearest[row] = -1.0
    return chosen


@contextmanager
def pooled_features(network: nn.Module, name: str) -> Iterator[Callable[[], NDArray[np.float64]]]:
    """Watch the bottleneck of a network; what is yielded returns the mean features (F,) of all windows since its last
    call.

    Args:
        network: one of ``NETWORKS``.
        name: its key there.
    """
    module = PARTS[name](network).encoder[-1]
    if isinstance(module, nn.ModuleList):  # it is never called itself
        module = module[-1]
    sums: list[NDArray[np.float64]] = []

    def watch(_module: nn.Module, _inputs: Any, output: Tensor | Sequence[Tensor]) -> None:
        deepest = output if isinstance(output, Tensor) else output[-1]
        axes = [axis for axis in range(deepest.ndim) if axis != 1]
        sums.append(deepest.detach().cpu().double().mean(dim=axes).numpy())  # Apple's GPUs have no float64

    def read() -> NDArray[np.float64]:
        mean: NDArray[np.float64] = np.mean(sums, axis=0)
        sums.clear()
        return mean

    handle = module.register_forward_hook(watch)
    try:
        yield read
    finally:
        handle.remove()


def _look(pool: Pool, case_id: str) -> NDArray[np.float32]:
    """Return the probabilities (K,*S) of a case.

    Raises:
        DataError: where the networks give NaN or infinity.
    """
    probs = pool.predict(pool.store.load_whole(case_id))
    if not np.isfinite(probs).all():
        path = pool.models[0].path
        raise DataError(
            f"'{case_id}': the network gives NaN or infinity, and nothing can be suggested by it. Examine it: "
            f"`ssl-seg diagnose {quote(path)}`, or use another checkpoint"
        )
    return probs


def _share_foreground(pool: Pool, probs: NDArray[np.float32]) -> float:
    return float((pool.decision(probs) > 0).mean())


def copy_images(suggestions: Sequence[Suggestion], folder: Path) -> None:
    """Copy the images into ``folder``/images, under the ids of their cases.

    Raises:
        DataError: for a folder that is there, or an image that is no file of its own.
    """
    check_is_free(folder)
    owners: dict[Path, Suggestion] = {}
    for own in suggestions:
        if len(own.files) > 1 or not Path(own.files[0]).exists():
            raise DataError(
                f"'{own.case_id}' is not a single file ({', '.join(own.files)}), and only single files can be copied: "
                "leave out --copy, and label what the table names"
            )
        name = own.case_id.replace("/", "__") + split_suffix(Path(own.files[0]).name)[1]
        other = owners.setdefault(folder / "images" / name, own)
        if other != own:
            raise DataError(f"'{own.case_id}' and '{other.case_id}' would be copied to one name: rename one of them")
    (folder / "images").mkdir(parents=True)
    for target, own in owners.items():
        copy = shutil.copytree if Path(own.files[0]).is_dir() else shutil.copyfile
        copy(own.files[0], target)
