"""``ssl-seg calibrate``: probabilities that mean what they say, and a threshold, from the validation cases of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.config import Config, PredictionConfig
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.open import open_store
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import ConfigError, DataError, counted
from ssl_seg.files import find_obstacle
from ssl_seg.inference.calibration import Calibration, calibrate_predictor, calibration_path, decide, save_calibration
from ssl_seg.inference.decision import Cleaning, measure_parts
from ssl_seg.inference.ensemble import open_members
from ssl_seg.inference.scoring import PredictFn
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.evaluation import TrackAll, choose_cases, open_cases
from ssl_seg.scores.calibration import (
    UNCHANGED,
    Counts,
    Floats,
    ThresholdRule,
    bin_log_odds,
    calibrate_classes,
    choose_threshold,
    choose_way,
    compute_ece,
    compute_reliability_of_odds,
    count_at_cuts,
    find_edge,
    find_half,
    fit_scaling_to_odds,
    fit_without_own,
    keep_if_better,
    take_logs,
    to_log_odds,
    to_probability,
)
from ssl_seg.scores.metrics import ConfusionCounts, count_overlap

SAMPLED_VOXELS = 100_000
"""Voxels of all cases together that are used for more than two classes; for two classes all voxels count."""
FEW_CASES = 5
"""Validation cases below which a note says that they tell little."""
SWEEP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Probabilities of the network whose scores are reported."""


@dataclass(frozen=True)
class CalibrateRequest:
    """What to calibrate; ``which`` defaults to the better net on validation."""

    checkpoint: Path
    which: str | None = None
    rule: ThresholdRule = field(default_factory=ThresholdRule)
    overlap: float = OVERLAP
    accelerator: str | None = None
    data: str | None = None
    """Where the images of the training are now; by default where they were."""
    clean: bool = False
    """Choose how masks are cleaned, too: each case is predicted a second time."""


def calibrate(
    request: CalibrateRequest,
    *,
    note: Callable[[str], None] = lambda _: None,
    track: TrackAll = lambda _: pass_through,
) -> dict[str, Any]:
    """Calibrate a network on the validation cases of its run, and store the result beside the checkpoint.

    Probabilities are changed only where that lowers the calibration error on left-out cases: never with one case.
    A threshold for F1 is used only where its gain on left-out cases, over that of the training's settings (0.5 unless
    set), is beyond chance; else foreground is the likelier class, see ``find_half``, or what the settings say. One for
    another rule is used as it is. The biases of more than two classes are used only where they gain likewise.

    Returns:
        Plain types: ``temperature``, ``biases``, ``threshold`` (of calibrated probabilities), ``gain`` (in F1, with
        its interval), ``used`` (whether what is gained by is used), ``ece`` and ``reliability`` before and after, on
        left-out cases, and the ``file``. With two classes also ``network_threshold`` (of probabilities as the network
        gives them), ``chosen`` and ``sweep``; with ``clean``, ``cleaning`` of each class and its ``gain`` in mean Dice.

    Raises:
        ConfigError: for a rule of two classes where there are more.
        DataError: for a folder that cannot be written to, validation cases without foreground or background, or a
            precision or recall out of reach.
        SslSegError: for an unusable checkpoint or folder; see ``evaluate``.
    """
    (model,) = open_members([request.checkpoint], request.which, choose_device_if_given(request.accelerator))
    (net,) = model.nets
    for text in model.describe_machine():
        note(text)
    if obstacle := find_obstacle(place := calibration_path(model.path)):
        raise DataError(
            f"{place} cannot be written: {obstacle}. Copy the run to another folder, and calibrate the copy"
        )
    classes = model.config.data.num_classes
    if classes > 2 and request.rule.target != "f1":
        raise ConfigError(f"--for {request.rule}: {classes} classes have no threshold; leave it out")
    if request.clean and model.config.data.task == "instances":
        raise ConfigError(
            "--clean: it drops and fills parts of classes, and inside and boundary are parts of objects "
            "(data.task=instances): leave it out"
        )
    catalog, data = open_cases(model, track("reading cases"), request.data)
    ids = choose_cases((model,), catalog, split_from_dict(model.checkpoint.split), note)
    if len(ids) < FEW_CASES:
        note(
            f"WARNING {counted(len(ids), 'validation case')}, fewer than {FEW_CASES}: what is chosen by them may "
            "hold for no other image. Label more, or train with --folds and calibrate each fold"
        )
    predictor, store = model.predictor(net, request.overlap), open_store(catalog, data)
    outputs = _predict_cases(predictor, store, ids, track(f"predicting with {net}"))
    if classes == 2:
        found, figures = _calibrate_two(outputs, request.rule, model.config.prediction)
    else:
        voxels = sum(int(np.prod(catalog.facts[case_id].shape)) for case_id in ids)
        found, figures = _calibrate_many(outputs, min(1.0, SAMPLED_VOXELS / voxels))
    if request.clean:
        masks = (store.load_whole(case_id).target for case_id in track("reading masks")(ids, len(ids)))
        ways = _list_cleanings(masks, classes)
        again = _predict_cases(calibrate_predictor(predictor, found), store, ids, track(f"cleaning masks of {net}"))
        found, figures["cleaning"] = _choose_cleaning(found, again, ways, model.config)
    return {
        "checkpoint": str(model.path),
        "step": model.checkpoint.progress.step,
        "which": net,
        "data": catalog.root,
        "cases": len(ids),
        "rule": found.rule,
        "temperature": found.scaling.temperature,
        "biases": list(found.scaling.biases),
        "threshold": found.threshold,
        **figures,
        "file": str(save_calibration(model, net, found)),
    }


Output = tuple[NDArray[np.float32], NDArray[np.integer[Any]]]
"""Probabilities (K,*S) and target (*S) of a case."""


def _predict_cases(predict: PredictFn, store: CaseStore, ids: tuple[str, ...], track: Track) -> Iterator[Output]:
    for case_id in track(ids, len(ids)):
        case = store.load_whole(case_id)
        if case.target is None:
            raise DataError(f"case '{case_id}' has no mask to calibrate with")
        yield predict(case.image, case.spacing), case.target


def _calibrate_two(
    outputs: Iterator[Output], rule: ThresholdRule, settings: PredictionConfig
) -> tuple[Calibration, dict[str, Any]]:
    histograms = np.stack([bin_log_odds(probs, target) for probs, target in outputs])
    for row, name in enumerate(("background", "foreground")):
        if not histograms[:, row].any():
            raise DataError(
                f"the {len(histograms)} validation cases hold no {name}: there is nothing to calibrate with"
            )
    before = compute_reliability_of_odds(histograms, [UNCHANGED] * len(histograms))
    after = compute_reliability_of_odds(histograms, fit_without_own(histograms))
    scaling = keep_if_better(fit_scaling_to_odds(histograms), before, after)
    present = 0.0 if settings.threshold is None else to_log_odds(settings.threshold)
    try:
        chosen = choose_threshold(histograms, rule, present)
    except ValueError as error:
        raise DataError(f"--for {rule}: {error}, over the {len(histograms)} validation cases together") from error
    used = chosen.is_shown or rule.target != "f1"
    kept = find_half(histograms, scaling) if settings.threshold is None else present
    cut = chosen.log_odds if used else kept
    threshold = to_probability(float(scaling.apply_to_odds(np.array(cut))))
    figures = {
        "network_threshold": to_probability(cut),
        "chosen": {
            "threshold": to_probability(chosen.log_odds),
            "low": to_probability(chosen.low),
            "high": to_probability(chosen.high),
            "f1_at_half": chosen.f1_at_half,
            "f1_before": chosen.f1_before,
            "f1": chosen.f1,
            "best_f1": chosen.best_f1,
        },
        "gain": asdict(chosen.gain),
        "used": used,
        **_describe_reliability(before, after),
        "sweep": _sweep(count_at_cuts(histograms.sum(axis=0))),
    }
    return Calibration(scaling, threshold, len(histograms), str(rule)), figures


def _calibrate_many(outputs: Iterator[Output], share: float) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate on a share of the voxels of each case."""
    logs, targets = [], []
    for number, (probs, target) in enumerate(outputs):
        drawn = np.random.default_rng(number).random(target.shape) < share
        drawn &= (target != IGNORE_INDEX) & np.isfinite(probs).all(axis=0)
        logs.append(take_logs(probs[:, drawn]).T)
        targets.append(target[drawn])
    if not any((target > 0).any() for target in targets):
        raise DataError(f"the {len(targets)} validation cases hold no foreground: there is nothing to calibrate with")
    scaling, gain, (before, after) = calibrate_classes(logs, targets)
    figures = {"gain": asdict(gain), "used": any(scaling.biases), **_describe_reliability(before, after)}
    return Calibration(scaling, None, len(targets), "f1"), figures


def _list_cleanings(masks: Iterable[NDArray[np.integer[Any]] | None], classes: int) -> list[list[Cleaning]]:
    """Return what may be done to the masks of each foreground class: nothing first; parts are dropped that are smaller
    than half of the smallest true part, than the smallest, and than a tenth of the true parts."""
    sizes: list[list[int]] = [[] for _ in range(1, classes)]
    for mask in masks:
        for label in range(1, classes):
            sizes[label - 1].extend([] if mask is None else measure_parts(mask == label).tolist())
    ways = []
    for own in sizes:
        least = {min(own) // 2, min(own), int(np.quantile(own, 0.1))} if own else set()
        shapes = [Cleaning(largest=largest, fill=fill) for largest in (False, True) for fill in (False, True)]
        ways.append([*shapes, *(Cleaning(least_voxels=voxels) for voxels in sorted(least) if voxels > 1)])
    return ways


def _choose_cleaning(
    found: Calibration, outputs: Iterator[Output], ways: Sequence[Sequence[Cleaning]], config: Config
) -> tuple[Calibration, list[dict[str, Any]]]:
    """Choose one of the ways of each class, and return the calibration with it and what it gains."""
    decision, counts = decide(None, found, config.prediction), []
    for probs, target in outputs:
        classes = decision(probs)
        for label, own in enumerate(ways, start=1):
            true = np.where(target < 0, target, target == label)
            counts.append([count_overlap(way.apply(classes == label), true) for way in own])
    chosen = [choose_way(np.array(counts[n :: len(ways)], np.int64).swapaxes(0, 1)) for n in range(len(ways))]
    cleaning = tuple(own[best] for own, (best, _) in zip(ways, chosen, strict=True))
    rows = [
        {"label": label, **asdict(way), "does": str(way), "gain": asdict(gain)}
        for label, way, (_, gain) in zip(config.data.label_values[1:], cleaning, chosen, strict=True)
    ]
    return replace(found, cleaning=cleaning), rows


def _describe_reliability(before: Floats, after: Floats) -> dict[str, Any]:
    names = ("share", "probability", "foreground")
    diagrams = {
        name: [dict(zip(names, row, strict=True)) for row in diagram.tolist() if row[0] > 0]
        for name, diagram in (("before", before), ("after", after))
    }
    return {"ece": {"before": compute_ece(before), "after": compute_ece(after)}, "reliability": diagrams}


def _sweep(counts: Counts) -> list[dict[str, float]]:
    """Return the pooled scores at the probabilities of ``SWEEP``, from (B + 1, 4) counts."""
    rows = []
    for threshold in SWEEP:
        at = ConfusionCounts(*map(int, counts[find_edge(to_log_odds(threshold))]))
        predicted = (at.tp + at.fp) / max(at.tp + at.fn, 1)
        rows.append(
            {
                "threshold": threshold,
                "f1": at.dice,
                "precision": at.precision,
                "recall": at.recall,
                "foreground": predicted,
            }
        )
    return rows
