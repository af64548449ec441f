"""Part (c): the number series of five reports of failed trainings, and the verdict that each would have got, and when.

Only what a report states is used. Every other figure stays unknown (NaN, or None where the signals allow it), and no
rule may be moved by it; where a series needs an assumption to be judged at all, it is made twice, without and with it,
and the assumption is part of its name.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import tifffile
import torch

from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions
from ssl_seg.monitor.evidence import Evidence, Figures, Phase, summarize
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.signals import PROB_BINS, QUANTILES, SignalCollector, Signals
from ssl_seg.monitor.verdicts import judge
from ssl_seg.scores.metrics import compute_trivial_f1


@dataclass(frozen=True)
class Moment:
    """A look that a report lets us reconstruct."""

    when: str
    """In the report's own words: an epoch, a step."""
    step: int
    val: Mapping[str, Any]
    """Stated figures of the student on validation, by the names of ``Signals``."""
    train_f1: float | None = None
    training: Mapping[str, float] | None = None
    phase: Phase = "trained"
    ends_epoch: bool = True


@dataclass(frozen=True)
class Series:
    """The moments of one run of a report, in order."""

    report: str
    name: str
    moments: tuple[Moment, ...]
    expected: str
    """What was thought of it before it was judged."""
    components: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Each component's value at the perfect prediction, and at the best constant one."""


@dataclass(frozen=True)
class Replay:
    """The verdicts on a series."""

    series: Series
    verdicts: tuple[tuple[str, Verdict], ...]

    @property
    def first(self) -> tuple[str, Verdict] | None:
        """The first moment with a finding."""
        return next(((when, v) for when, v in self.verdicts if v.findings), None)


def make_signals(**stated: Any) -> Signals:
    """Return signals with the stated figures; the others are unknown."""
    values: dict[str, Any] = {"voxels": 0, "patches": 0, "nonfinite": 0, "classes": (), "losses": ()}
    hints = get_type_hints(Signals)
    for entry in fields(Signals):
        if entry.name not in values:
            values[entry.name] = None if hints[entry.name] == float | None else math.nan
    values["logit_quantiles"] = (math.nan,) * len(QUANTILES)
    values["prob_histogram"] = (math.nan,) * PROB_BINS
    if "prevalence_true" in stated:
        values["trivial_f1"] = compute_trivial_f1(stated["prevalence_true"])
    return Signals(**(values | stated))


def replay(series: Series) -> Replay:
    """Return the verdict at each moment, with the trend of those before."""
    trend: tuple[Figures, ...] = ()
    verdicts = []
    for moment in series.moments:
        student = make_signals(**moment.val)
        train = {} if moment.train_f1 is None else {"student": make_signals(f1=moment.train_f1)}
        evidence = Evidence(
            moment.phase,
            {"student": student},
            train,
            training=dict(moment.training or {}),
            components=series.components,
            ranges=series.ranges,
            trend=trend,
        )
        trend = (*trend, _known(summarize(evidence, moment.step, ends_epoch=moment.ends_epoch)))
        evidence = Evidence(**{**vars(evidence), "trend": trend})
        verdicts.append((moment.when, judge(evidence)))
    return Replay(series, tuple(verdicts))


def _known(row: Figures) -> Figures:
    """Return a row without what is unknown, but for the keys that every row has."""
    always = {"f1", "trivial_f1"}
    return {name: value for name, value in row.items() if name in always or not math.isnan(value)}


VOXELS_000 = 128**3
COUNTED_000 = 806_000 + 1_200_000
P_002 = 0.49 / (2 - 0.49)
"""Prevalence at which predicting everything has the reported F1 of 0.49: 32.5 %."""
ALL_002 = 314_966_016


def _histogram_000() -> tuple[float, ...]:
    shares = np.zeros(PROB_BINS)
    shares[10:12], shares[12:14] = 806_000 / COUNTED_000 / 2, 1_200_000 / COUNTED_000 / 2
    return tuple(shares.tolist())


_OUTPUT_000 = {
    "voxels": VOXELS_000, "logit_mean": 0.5287, "logit_std": 0.2971, "prob_mean": 0.6267, "prob_std": 0.0698,
    "prob_max": 0.7071, "prob_histogram": _histogram_000(), "prevalence_pred": 1.0,
}  # fmt: skip


def _interpolate(first: Mapping[str, float], last: Mapping[str, float], steps: int) -> list[dict[str, float]]:
    return [{k: first[k] + (last[k] - first[k]) * i / steps for k in first} for i in range(steps + 1)]


def _epochs(rows: Sequence[Mapping[str, float]], first: int) -> tuple[Moment, ...]:
    """Return a moment for each row of a table of losses on validation; else nothing is known of the networks."""
    told = [{"losses": tuple(row.items())} for row in rows]
    return tuple(Moment(f"epoch {first + i}", 100 * (first + i + 1), val) for i, val in enumerate(told))


_V9 = (
    (0.4528, 0.453, 0.192, 0.987), (0.4470, 0.447, 0.273, 0.963), (0.4107, 0.411, 0.317, 0.957),
    (0.4139, 0.414, 0.382, 1.003), (0.4115, 0.412, 0.469, 1.050), (0.4182, 0.418, 0.563, 1.084),
    (0.4024, 0.402, 0.491, 1.064),
)  # fmt: skip
_NAMES_001 = ("loss", "dice", "focal", "variance")
_V5_FIRST = dict(zip(_NAMES_001, (0.6286, 0.4425, 0.1806, 0.9702), strict=True))
_STUCK_001 = [{"dice": dice, "variance": variance} for dice, variance in ((0.48, 0.9542), (0.49, 0.97), (0.50, 0.9876))]
_P_001 = 0.609
"""Share of foreground in the masks of report 001."""
_RANGES_001 = {"dice": (0.0, 0.5), "variance": (1 - 4 * _P_001 * (1 - _P_001), 1.0)}
"""The Dice of two classes, of soft counts, is p and 1 - p at the constant p of the base rate: 0.5 in the mean."""
_V5_LAST = dict(zip(_NAMES_001, (0.6633, 0.4164, 0.2471, 0.9953), strict=True))
_GAP_004 = ((1, 0.246, 0.189), (5, 0.590, 0.398), (10, 0.696, 0.411), (12, 0.727, 0.524), (18, 0.788, 0.569),
            (20, 0.787, 0.517))  # fmt: skip


def _gap_004(epochs: Sequence[tuple[int, float, float]]) -> tuple[Moment, ...]:
    return tuple(Moment(f"epoch {e}", 100 * e, {"f1": val}, train_f1=train) for e, train, val in epochs)


def _gap_004_filled() -> tuple[Moment, ...]:
    at, train, val = (np.array(column) for column in zip(*_GAP_004, strict=True))
    rows = [(e, float(np.interp(e, at, train)), float(np.interp(e, at, val))) for e in range(1, 21)]
    return _gap_004(rows)


def _of_masks(share: float) -> dict[str, float]:
    """Return the figures of predictions that are known as masks only: the probability is 0 or 1."""
    return {"prevalence_pred": share, "prob_mean": share, "prob_std": math.sqrt(share * (1 - share))}


def _final_002(name: str, expected: str, **stated: float) -> Series:
    val = {"f1": 0.0, "prevalence_true": P_002, **stated}
    return Series("002", f"after epoch 1, {name}", (Moment("end of epoch 1", 130, val),), expected)


SERIES: tuple[Series, ...] = (
    Series(
        "000", "raw output of a patch, masks not looked at", (Moment("at the end", 1, _OUTPUT_000),),
        "no verdict: rules on a network need the target; see the folder of predictions below",
    ),
    Series(
        "000", "raw output of a patch, true foreground 60.9 % (report 001, same data)",
        (Moment("at the end", 1, {**_OUTPUT_000, "prevalence_true": 0.609}),), "constant_output",
    ),
    Series(
        "001", "v9, epochs 0-6, validation components; focal and variance with weight 0",
        _epochs([dict(zip(_NAMES_001, row, strict=True)) for row in _V9], 0),
        "ok: the report's best run, focal and variance are only watched", _NAMES_001[1:], _RANGES_001,
    ),
    Series(
        "001", "v5 epochs 5 and 11, the two that are stated",
        (*_epochs([_V5_FIRST], 5), *_epochs([_V5_LAST], 11)), "none: two epochs are no trend", _NAMES_001[1:],
    ),
    Series(
        "001", "v5 epochs 5 to 11, straight lines between the two", _epochs(_interpolate(_V5_FIRST, _V5_LAST, 6), 5),
        "component_explosion by the third epoch of the rise, epoch 8", _NAMES_001[1:], _RANGES_001,
    ),
    Series(
        "001", "v2 to v5, stuck: dice 0.48 to 0.50, variance 0.95 to 0.99 for epochs", _epochs(_STUCK_001, 13),
        "trivial_loss in the third epoch", _NAMES_001[1:], _RANGES_001,
    ),
    Series(
        "001", "plateau at epoch 22: losses 0.5561 (epoch 18), 0.5696 (22)",
        (*_epochs([{"loss": 0.5561}], 18), *_epochs([{"loss": 0.5696}], 22)),
        "none: plateaus are counted in F1, which is not stated",
    ),
    Series(
        "001", "predictions 99.88 % foreground, 57.7 % true",
        (Moment("at the end", 1, {**_of_masks(0.9988), "prevalence_true": 0.577}),), "all_positive",
    ),
    Series(
        "001", "predictions 95.65 % foreground, 60.9 % true, F1 0.7293 (all-positive: 0.757)",
        (Moment("at the end", 1, {**_of_masks(0.9565), "prevalence_true": 0.609, "f1": 0.7293}),),
        "none: 4.35 % background is not one-sided, and F1 at the best threshold is not stated",
    ),
    Series(
        "002", "before and after epoch 1: F1 0.49 to 0.00, loss 0.27 to 0.22",
        (
            Moment("before training", 0, {
                "logit_mean": 0.088, "prob_mean": 0.522, "f1": 0.49, "voxels": ALL_002,
                "prevalence_pred": 314_954_560 / ALL_002, "prevalence_true": P_002,
            }, phase="untrained", ends_epoch=False),
            Moment("in epoch 1", 20, {}, training={"loss": 0.27, "steps": 20.0}, phase="untrained", ends_epoch=False),
            Moment("end of epoch 1", 130, {
                "logit_mean": -1.443, "prob_mean": 0.192, "f1": 0.0, "voxels": ALL_002,
                "prevalence_pred": 534 / ALL_002, "prevalence_true": P_002,
            }, training={"loss": 0.22, "steps": 110.0}),
        ), "ok before, all_negative after epoch 1 (with loss_metric_divergence)",
    ),
    Series(
        "002", "the same, ranking no better than chance (F1 at the best threshold that of all-positive)",
        (
            Moment("before training", 0, {"f1": 0.49, "prevalence_true": P_002, "prob_mean": 0.522, "f1_best": 0.49,
                "auroc": 0.5, "prevalence_pred": 314_954_560 / ALL_002}, phase="untrained", ends_epoch=False),
            Moment("in epoch 1", 20, {}, training={"loss": 0.27, "steps": 20.0}, phase="untrained", ends_epoch=False),
            Moment("end of epoch 1", 130, {"f1": 0.0, "prevalence_true": P_002, "prob_mean": 0.192, "f1_best": 0.49,
                "auroc": 0.5, "prevalence_pred": 534 / ALL_002}, training={"loss": 0.22, "steps": 110.0}),
        ), "all_negative and loss_metric_divergence after epoch 1",
    ),
    _final_002("alpha 0.90: mean 0.025, 99.43 % below 0.1", "all_negative", prob_mean=0.025, share_below_01=0.9943,
               prevalence_pred=0.0),
    _final_002("Dice alone: mean 0.072, largest 0.419", "all_negative", prob_mean=0.072, prob_max=0.419,
               prevalence_pred=0.0),
    _final_002("lr 1e-5: mean 0.150, F1 0.000010", "none: the predicted share is not stated", prob_mean=0.150, f1=1e-5),
    Series(
        "003", "loss 0.42, 0.00, 0.00; mean prediction 0.000012, masks of validation not empty",
        tuple(
            Moment(f"epoch {i + 1}", 100 * (i + 1), {"prob_mean": mean, "prevalence_true": 0.3, "f1_best": None},
                   training={"loss": loss, "steps": 100.0})
            for i, (loss, mean) in enumerate([(0.42, math.nan), (0.0, 0.000012), (0.0, 0.000012)])
        ), "ok in epoch 1, zero_loss and all_negative in epoch 2",
    ),
    Series(
        "003", "the same, all masks empty as the report supposes",
        tuple(
            Moment(f"epoch {i + 1}", 100 * (i + 1), {"prob_mean": mean, "prevalence_true": 0.0, "prevalence_pred": 0.0},
                   training={"loss": loss, "steps": 100.0, "prevalence_true": 0.0})
            for i, (loss, mean) in enumerate([(0.42, math.nan), (0.0, 0.000012), (0.0, 0.000012)])
        ), "blind_probe: nothing is to be found; `ssl-seg data audit` refuses such data before",
    ),
    Series(
        "003", "healthy: loss 0.45, 0.38, 0.32, 0.28, mean prediction 0.23",
        tuple(
            Moment(f"epoch {i + 1}", 100 * (i + 1), {"prob_mean": 0.23, "prevalence_true": 0.3},
                   training={"loss": loss, "steps": 100.0})
            for i, loss in enumerate([0.45, 0.38, 0.32, 0.28])
        ), "ok",
    ),
    Series("004", "train and validation Dice, the six epochs that are stated", _gap_004(_GAP_004), "overfitting"),
    Series("004", "the same, straight lines between them", _gap_004_filled(), "overfitting"),
)  # fmt: skip


TILES_002, SIDE_002 = 4806, 256
"""The report's number of voxels is that of so many square tiles."""
CASES_002 = 53
"""Images that they are taken to be of: the interval of the AUROC keeps all its counts for each."""


def make_tiles_002(tiles: int = TILES_002) -> Series:
    """Return the series of report 002 with outputs as the monitor sees them: tiles that have the reported counts.

    Mean log-odds of 0.088 with 314,954,560 of 314,966,016 voxels predicted, then -1.443 with 534. The masks are noise
    with the prevalence at which predicting everything has F1 0.49. Fewer ``tiles`` have the same shares.
    """
    before = _collect_tiles(tiles, 0.088, ALL_002 - 314_954_560)
    after = _collect_tiles(tiles, -1.443, 534)
    return Series(
        "002", f"the same outputs in {tiles:,} tiles of {SIDE_002} x {SIDE_002}, masks drawn at random",
        (
            Moment("before training", 0, before, phase="untrained", ends_epoch=False),
            Moment("in epoch 1", 20, before, training={"loss": 0.27, "steps": 20.0}, phase="untrained",
                   ends_epoch=False),
            Moment("end of epoch 1", 130, after, training={"loss": 0.22, "steps": 110.0}),
        ), "all_negative after epoch 1",
    )  # fmt: skip


def _collect_tiles(tiles: int, logit: float, others: int) -> dict[str, Any]:
    """Return the signals of tiles of log-odds around ``logit``, of which ``others`` of all the report's voxels have the
    other sign."""
    collector = SignalCollector(range(2), torch.device("cpu"), ranked=256)
    for tile in range(tiles):
        rng = np.random.default_rng(tile)
        score = np.full(SIDE_002**2, logit) + rng.uniform(-0.05, 0.05, SIDE_002**2)
        score[: (tile + 1) * others // TILES_002 - tile * others // TILES_002] *= -0.1
        logits = torch.from_numpy(np.stack([np.zeros_like(score), score])).reshape(1, 2, SIDE_002, SIDE_002)
        target = torch.from_numpy(rng.random(SIDE_002**2) < P_002).long().reshape(1, SIDE_002, SIDE_002)
        collector.update(logits, target, [f"case {tile % CASES_002}"])
    return vars(collector.compute())


def replay_all() -> Iterator[Replay]:
    """Yield the replay of each series."""
    yield from map(replay, SERIES)
    yield replay(make_tiles_002())


def replay_folders_000() -> dict[str, list[str]]:
    """Return what is said of predictions with the figures of report 000, written as files, without masks.

    45 images of 320x320 have 95.06 % foreground and 5 of 256x256 have 71.19 %: (312/320)^2 and (216/256)^2, a border
    that is never predicted around images that are predicted everywhere. Three probability maps have the reported mean
    and standard deviation, each with noise of its own.
    """
    with tempfile.TemporaryDirectory() as name:
        masks, maps = Path(name, "masks"), Path(name, "maps")
        for folder in (masks, maps):
            folder.mkdir()
        for i in range(50):
            size, covered = (320, 312) if i < 45 else (256, 216)
            start = (size - covered) // 2
            mask = np.zeros((size, size), np.uint8)
            mask[start : start + covered, start : start + covered] = 1
            tifffile.imwrite(masks / f"{i:02d}.tif", mask)
        for i, (mean, std) in enumerate([(0.6272, 0.0689), (0.6267, 0.0690), (0.6272, 0.0681)]):
            noise = np.random.default_rng(i).uniform(-1, 1, (128, 128))
            prob = mean + std * (noise - noise.mean()) / noise.std()
            tifffile.imwrite(maps / f"{i}.tif", prob.astype(np.float32))
        return {
            "50 masks with the reported ratios": _diagnose(masks),
            "3 probability maps with the reported means and standard deviations": _diagnose(maps),
        }


def _diagnose(folder: Path) -> list[str]:
    diagnosis = diagnose_predictions(PredictionsRequest(folder))
    return [f"{f.code} ({f.level}): {f.message}" for f in diagnosis.findings]
