"""The examination of a folder of predictions, made by any program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.reading import Reading, make_reading
from ssl_seg.diagnose.catalog import conclude
from ssl_seg.diagnose.causes import Subject, make_diagnosis
from ssl_seg.diagnose.classes import ValueCounts, add_classes, describe_f1
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.image_rules import audit_margin, audit_outputs, put_behind
from ssl_seg.diagnose.prediction_files import (
    WORDS,
    Kind,
    PredictionFile,
    find_predictions,
    match_truth,
    read_prediction,
    read_truth,
    recognize,
    settle_truth,
)
from ssl_seg.diagnose.result import Diagnosis
from ssl_seg.diagnose.tally import Output, Tally
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.labels import IGNORE_INDEX, Meaning
from ssl_seg.monitor.actions import NO_CONTEXT
from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.signals import RANKED, ClassSignals, SignalCollector, Signals
from ssl_seg.monitor.verdicts import judge
from ssl_seg.run.seal import Ledger, find_sealed_masks, open_sealed

NET = "predictions"
LEAST_IMAGES = 10


@dataclass(frozen=True)
class PredictionsRequest:
    """What to examine: ``predictions``, and beside them the true ``masks`` of the same names, where there are any.

    ``settings`` are those of the data section that say how files are read and what mask values mean; they hold for both
    folders. After ``seconds`` no further file is read.
    """

    predictions: Path
    masks: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 120.0
    seed: int = 0


@dataclass(frozen=True)
class _Material:
    files: Sequence[PredictionFile]
    truth: Mapping[str, Path]
    kind: Kind
    meaning: Meaning
    """Meaning of the values in predicted masks."""
    truth_meaning: Meaning
    reading: Reading


def diagnose_predictions(
    request: PredictionsRequest,
    *,
    note: Callable[[str], None] = lambda _: None,
    track: Callable[[str], Track] = lambda _: pass_through,
    clock: Clock | None = None,
) -> Diagnosis:
    """Return the diagnosis of a folder of predictions.

    Args:
        note: called with each note for the reader as it comes up; the result has them all.
        clock: counts the time, from the start of the command; by default from that of the call.

    Raises:
        DataError: for a missing or empty folder, unreadable files, or masks that do not fit by name or shape.
    """
    notes: list[str] = []

    def tell(text: str) -> None:
        notes.append(text)
        note(text)

    clock = clock or Clock(request.seconds)
    material, on_truth = _prepare(request)
    words = WORDS[material.kind].format(background=material.meaning.background)
    for text in (f"files are read as {words}", *on_truth):
        tell(text)
    if request.masks is not None:
        if len(material.truth) < len(material.files):
            tell(f"{len(material.truth)} of {len(material.files)} predictions have a mask; the others are not scored")
        sealed, homes = find_sealed_masks(request.masks, material.truth)
        if count := open_sealed(sealed, Ledger(homes), by="diagnose", note=tell):
            times = counted(count, "time")
            tell(f"{len(sealed)} of these masks belong to sealed test cases: they have now been opened {times}")
    tally, signals = _read_all(material, clock, track("reading predictions"), tell)
    statistics = tally.summarize("new")
    if signals is not None and signals.classes:
        f1, shares = zip(*((own.f1, own.prevalence_true) for own in signals.classes), strict=True)
        statistics["scores"] = add_classes(statistics["scores"], f1, shares)
    statistics["looked_at"] = {
        "new": {"used": len(tally.images), "of": len(material.files)},
        "seconds": clock.seconds,
        "seconds_used": clock.used,
        "skipped": [],
        "read_as": words,
    }
    verdict = _judge(tally, signals, statistics)
    data = None if request.masks is None else str(request.masks)
    subject = Subject(data=data, predictions=request.predictions)
    return make_diagnosis(verdict, statistics, subject, tally, notes, _describe_health(statistics, tally))


def _prepare(request: PredictionsRequest) -> tuple[_Material, list[str]]:
    """Return what to examine, and notes on how the true masks are read."""
    if request.masks is not None and request.masks.resolve() == request.predictions.resolve():
        raise DataError(f"{request.masks} holds the predictions: give the folder of the true masks, or leave it out")
    files = find_predictions(request.predictions)
    truth = {} if request.masks is None else match_truth(files, request.masks)
    settings, reading = request.settings, make_reading(request.settings)
    values, mapping = tuple(settings.get("label_values") or ()), settings.get("label_map") or {}
    labels = Meaning("semantic", None, values or None, mapping, settings.get("ignore_value"))
    given = replace(labels, kind=settings.get("mask"), threshold=settings.get("threshold"))
    of_truth, notes = settle_truth(sorted(truth.values()), given, reading)
    order = np.random.default_rng(request.seed).permutation(len(files))
    shuffled = [files[i] for i in order]
    return _Material(shuffled, truth, recognize(files, labels, reading), labels, of_truth, reading), notes


def _read_all(
    material: _Material, clock: Clock, track: Track, tell: Callable[[str], None]
) -> tuple[Tally, Signals | None]:
    """Return the figures of all predictions, and the signals of those with masks; tell what is doubtful about them."""
    tally, doubts, counts = Tally(), list[str](), ValueCounts()
    collector = SignalCollector(range(2), torch.device("cpu"), max(RANKED // max(len(material.truth), 1), 1))
    for file in clock.limit(track(material.files, len(material.files)), 1.0, LEAST_IMAGES):
        own = read_prediction(file, material.kind, material.meaning, material.reading)
        target = None
        if (path := material.truth.get(file.id)) is not None:
            shape = own.foreground.shape
            target, labels, doubt = read_truth(path, shape, material.truth_meaning, file.first, material.reading)
            doubts += [doubt] if doubt else []
            logits = _to_logits(own.foreground, own.prob)
            collector.update(logits, torch.from_numpy(target.astype(np.int64))[None], (file.id,))
            if own.labels is not None and material.truth_meaning.kind == "semantic":
                counts.add(own.labels, labels, target != IGNORE_INDEX)
        tally.add(Output(file.id, "new", own.foreground, own.prob, None, target))
    if doubts:
        tell(f"{counted(len(doubts), 'mask')} may not lie on the prediction of the same name: {doubts[0]}")
    if not tally.overlaps:
        return tally, None
    classes, on_classes = _compare_classes(counts, material.truth_meaning.background)
    signals = replace(collector.compute(), classes=classes)
    if material.kind == "mask":  # it has been cut already: another cut makes all of it foreground, or nothing
        signals = replace(signals, f1_best=signals.f1)
    if on_classes:
        tell(on_classes)
    return tally, signals


def _to_logits(pred: NDArray[np.bool_], prob: NDArray[np.float32] | None) -> torch.Tensor:
    """Return logits (1, 2, *S) that say the same: of 0 and 1 the smallest and the largest that are finite."""
    values = torch.from_numpy(pred.astype(np.float32) if prob is None else prob).double()
    most = torch.finfo(torch.float32).max
    score = torch.logit(values).clamp(-most, most)
    return torch.stack([torch.zeros_like(score), score])[None]


def _compare_classes(counts: ValueCounts, background: int) -> tuple[tuple[ClassSignals, ...], str]:
    """Return the figures of each foreground class, and a note on them.

    There are none where the masks hold one class alone, or the predictions hold values that no true mask holds: the
    note then says so.
    """
    f1, voxels = counts.score(background), counts.true.total()
    others = sorted(counts.predicted.keys() - counts.true.keys() - {background})
    if len(f1) < 2 or not counts.predicted:
        has_more = bool(others) and bool(f1.keys() & counts.predicted.keys())
        text = f"the predictions hold {name_examples(others)} too, which no true mask holds: all count as foreground"
        return (), text if has_more else ""
    if others:
        return (), (
            f"the predictions hold {name_examples(others)}, which no true mask holds: the masks' {len(f1)} classes are "
            "not compared, only foreground is"
        )
    classes = tuple(ClassSignals(v, counts.predicted[v] / voxels, counts.true[v] / voxels, f1[v]) for v in f1)
    shown = ", ".join(f"{value}: {score:.3f}" for value, score in f1.items())
    return classes, f"F1 of each class, by its value in the masks: {shown}; all other figures are of any foreground"


def _judge(tally: Tally, signals: Signals | None, statistics: Mapping[str, Any]) -> Verdict:
    if signals is None:
        return conclude(audit_outputs(tally, statistics, NET, None), NO_CONTEXT)
    judged = judge(Evidence("trained", {"student": signals}, is_final=True)).findings
    on_truth = [replace(f, net=NET) for f in judged if f.code != "blind_probe"]  # these masks are no probe of a run
    audits = audit_outputs(tally, statistics, NET, signals.auroc)
    whole = [f for f in audits if f.code == "coverage_hole" or f.level == "collapsed"]
    return put_behind(conclude((*on_truth, *whole, *audit_margin(statistics, NET)), NO_CONTEXT), audits)


def _describe_health(statistics: Mapping[str, Any], tally: Tally) -> str:
    shares = [image.ratio_pred for image in tally.images]
    text = f"no fault found in {len(shares)} predictions; foreground {min(shares):.1%} to {max(shares):.1%}"
    if "scores" not in statistics:
        return f"{text}; without masks nothing is known of how right they are"
    return f"{text}; {describe_f1(statistics['scores'], '')}"
