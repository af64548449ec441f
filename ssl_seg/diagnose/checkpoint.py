"""The examination of a checkpoint: its networks on patches and whole images, its batches, inputs and history.

The sealed test list stays sealed: its images may be predicted, their masks are not looked at, no score is made on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ssl_seg.config import NETS
from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.loader import Probe, make_probe
from ssl_seg.data.open import open_store
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.splits.split import Split, find_new_masks
from ssl_seg.data.store import CaseStore
from ssl_seg.diagnose.catalog import conclude
from ssl_seg.diagnose.causes import Subject, make_diagnosis
from ssl_seg.diagnose.classes import describe_f1
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.image_rules import audit_inputs, audit_margin, audit_outputs, put_behind
from ssl_seg.diagnose.inputs import measure_batches, measure_inputs
from ssl_seg.diagnose.networks import ProbedNets, measure_layers, measure_trivial_losses, probe_nets
from ssl_seg.diagnose.result import Diagnosis, Part
from ssl_seg.diagnose.run_history import describe_others, read_history
from ssl_seg.diagnose.tally import Output, Tally
from ssl_seg.errors import ConfigError, counted, name_examples
from ssl_seg.inference.calibration import calibration_path, decide
from ssl_seg.inference.model import Model, open_model
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.monitor.actions import read_context
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.network_rules import leave_out_refuted
from ssl_seg.monitor.verdicts import judge
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.evaluation import describe_reading, note_names, open_cases
from ssl_seg.run.seal import find_sealed

PARTS: tuple[Part, ...] = ("val", "train", "new", "test")
LEAST_IMAGES = 4
ENOUGH = 30
"""Images of each part but validation that are looked at in ``SECONDS``: they are not scored, and what 10 % of the
images of a part show is in at least one of 30 of them with a probability of 96 %. With more time all are."""
SECONDS = 120.0
UNTIL_NETS, UNTIL_IMAGES, UNTIL_LOSSES, UNTIL_BATCHES = 0.6, 0.75, 0.85, 0.95
"""An optional stage begins only if a smaller share of the time is used."""
TRAIN_PATCHES = 8
"""Patches of the training probe where the run had none."""
LAYER_PATCHES = 4
OF_WHOLE_IMAGES = ("non_finite", "coverage_hole")
"""Codes that patches cannot show."""


@dataclass(frozen=True)
class CheckpointRequest:
    """What to examine.

    ``data`` defaults to that of the training, ``which`` to the better net on validation in training. ``settings`` of
    the data section replace those of the training. After ``seconds`` no further image or stage is begun; more than
    ``SECONDS`` are for all images of all parts.
    """

    checkpoint: Path
    data: str | None = None
    which: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = SECONDS
    overlap: float = OVERLAP
    seed: int = 0
    accelerator: str | None = None
    """Where to compute: auto, cpu, cuda or mps; by default where the training did."""


@dataclass(frozen=True)
class _Material:
    """What the stages look at. ``parts`` maps the ids of all cases to their part, ``scored`` are those of ``val`` with
    a mask, ``labeled`` those of ``train``."""

    model: Model
    which: str
    store: CaseStore
    split: Split
    parts: Mapping[str, Part]
    scored: tuple[str, ...]
    labeled: tuple[str, ...]
    is_elsewhere: bool
    """Whether the folder holds no validation case of the training; then its other labeled cases are scored."""

    @property
    def is_of_run(self) -> bool:
        """Whether the validation cases of the training are scored, with the masks that it knew."""
        is_same = set(self.scored) == set(self.split.val) and not self.is_elsewhere
        return is_same and not find_new_masks(self.split, self.store.catalog, self.scored)


def diagnose_checkpoint(
    request: CheckpointRequest,
    *,
    note: Callable[[str], None] = lambda _: None,
    track: Callable[[str], Track] = lambda _: pass_through,
    clock: Clock | None = None,
) -> Diagnosis:
    """Return the diagnosis of a checkpoint.

    Args:
        note: called with each note for the reader as it comes up; the result has them all.
        clock: counts the time, from the start of the command; by default from that of the call.

    Raises:
        SslSegError: for an unusable checkpoint or folder.
    """
    if request.which not in (None, *NETS):
        raise ConfigError(f"which = '{request.which}' must be student or teacher")
    clock = clock or Clock(request.seconds)
    material, notes = _prepare(request, track)
    for text in notes:
        note(text)
    skipped: list[str] = []
    val, train = _make_probes(material)
    nets = None
    if len(val.image):
        nets = probe_nets(material.model, val, train, clock, UNTIL_NETS, is_of_run=material.is_of_run)
        skipped += ["untrained network"] if nets.untrained is None else []
    tally = _predict_images(material, request, clock, track("looking at whole images"))
    statistics: dict[str, Any] = {"looked_at": _count_parts(material, tally), **tally.summarize("val")}
    if material.model.config.data.num_classes == 2:
        statistics["threshold"] = tally.threshold
    else:
        statistics.pop("sweep", None)  # nothing is cut at a threshold where the largest of several classes is taken
    if nets is not None:
        statistics["nets"] = nets.summarize(material.which)
        patches = val.image[:LAYER_PATCHES].to(material.model.device)
        statistics["layers"] = measure_layers(material.model.nets[material.which], patches)
        _run_stage(statistics, skipped, clock, UNTIL_LOSSES, "trivial_losses",
                   lambda: measure_trivial_losses(material.model, material.which, val))  # fmt: skip
    _examine_inputs(statistics, skipped, material, request, clock, track)
    if (history := read_history(request.checkpoint)) is not None:
        statistics["run"] = history
    statistics["looked_at"] |= {
        "seconds": clock.seconds,
        "seconds_used": clock.used,
        "skipped": skipped,
        "net": material.which,
        "step": material.model.checkpoint.progress.step,
    }
    verdict = _judge(material, nets, tally, statistics)
    subject = Subject(
        request.checkpoint,
        material.model.config.data.root,
        request.data,
        material.which,
        context=read_context(material.model.config),
        is_elsewhere=material.is_elsewhere,
    )
    return make_diagnosis(verdict, statistics, subject, tally, notes, _describe_health(statistics, tally))


def assign_parts(catalog: Catalog, split: Split, labels: float, seen_labels: Sequence[str] = ()) -> dict[str, Part]:
    """Return the part of each case: by the content of its image, so that a copy of a test image stays sealed under any
    name. In a folder that has all ids of the split, such as a new export of the same data, an unknown content goes by
    its id. What was labeled in a run that the network builds on is ``train``; see ``Checkpoint.seen_labels``."""
    parts: dict[str, Part] = {}
    lists: tuple[tuple[Part, Sequence[str]], ...] = (
        ("new", split.pool_ids(labels)),
        ("train", split.labeled_ids(labels)),
        ("val", split.val),
        ("test", split.test),
    )
    of_content = {content: part for part, ids in lists for content in split.image_contents(ids)}
    of_content |= {content: "train" for content in seen_labels if of_content.get(content) != "test"}
    of_id = {case_id: part for part, ids in lists for case_id in ids}
    if not of_id.keys() <= {case.id for case in catalog.cases}:
        of_id = {}  # another data set may well have some of these names
    for case in catalog.cases:
        content = catalog.facts[case.id].image
        parts[case.id] = of_content.get(content) or of_id.get(case.id, "new")
    return parts


def order_images(parts: Mapping[str, Part], request: CheckpointRequest) -> list[str]:
    """Return ids in a seeded order in which the parts take turns: all of validation, which is first, and ``ENOUGH`` of
    each other part, or all where the request has time for it."""
    rng, some = np.random.default_rng(request.seed), ENOUGH if request.seconds <= SECONDS else None
    queues = []
    for part in PARTS:
        ids = sorted(i for i, own in parts.items() if own == part)
        queues.append([ids[n] for n in rng.permutation(len(ids))[: None if part == "val" else some]])
    longest = max(map(len, queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _prepare(request: CheckpointRequest, track: Callable[[str], Track]) -> tuple[_Material, tuple[str, ...]]:
    model = open_model(request.checkpoint, choose_device_if_given(request.accelerator))
    catalog, data = open_cases(model, track("reading cases"), request.data, request.settings)
    split = split_from_dict(model.checkpoint.split)
    labels = model.config.split.labels
    parts = assign_parts(catalog, split, labels, model.checkpoint.seen_labels)
    parts |= dict.fromkeys(find_sealed(catalog, parts, [split]), "test")
    with_mask = {case.id for case in catalog.labeled}
    notes = [*model.describe_machine(), *describe_others(request.checkpoint), *describe_reading(catalog, model)]
    note_names((model,), catalog, notes.append)
    if (stored := calibration_path(model.path)).is_file():
        notes.append(f"{stored}, which evaluate and predict use, is left out here: the network is examined as it is")
    is_elsewhere = "val" not in parts.values()
    if is_elsewhere:
        pool = split.image_contents(split.pool_ids(labels))
        strangers = [i for i in with_mask if parts[i] == "new" and catalog.facts[i].image not in pool]
        parts |= dict.fromkeys(strangers, "val")
        notes.append(f"{catalog.root} holds no validation case of the training: " + (
            f"its {len(strangers)} labeled cases stand for them" if strangers else "nothing can be scored"
        ))  # fmt: skip
    if "test" in parts.values():
        notes.append("images of the sealed test list may be predicted; their masks are not looked at")
    order = {case_id: place for place, case_id in enumerate((*split.val, *split.labeled_ids(labels)))}
    ids = sorted(with_mask, key=lambda i: (order.get(i, len(order)), i))
    scored, labeled = (tuple(i for i in ids if parts[i] == part) for part in ("val", "train"))
    if changed := sorted(find_new_masks(split, catalog, (*scored, *labeled))):
        notes.append(
            f"{counted(len(changed), 'case', 'of the training or its validation have')} another mask now "
            f"({name_examples(changed)}): figures are of the masks as they are"
        )
    which = request.which or model.better
    return _Material(model, which, open_store(catalog, data), split, parts, scored, labeled, is_elsewhere), tuple(notes)


def _make_probes(material: _Material) -> tuple[Probe, Probe]:
    """Return the probes of the run, or similar ones on other data."""
    config, seed = material.model.config, material.split.seed
    patch, monitor = config.data.patch_size, config.monitor
    counts = (monitor.probe_patches, monitor.train_probe_patches or TRAIN_PATCHES)
    groups = (material.scored, material.labeled)
    val, train = (make_probe(material.store, ids, n, patch, seed) for ids, n in zip(groups, counts, strict=True))
    return val, train


def _predict_images(material: _Material, request: CheckpointRequest, clock: Clock, track: Track) -> Tally:
    predictor = material.model.predictor(material.which, request.overlap)
    known = {*material.scored, *material.labeled}
    decision = decide(None, None, material.model.config.prediction)
    tally = Tally() if decision.threshold is None else Tally(threshold=decision.threshold)
    ids = order_images(material.parts, request)
    for case_id in clock.limit(track(ids, len(ids)), UNTIL_IMAGES, LEAST_IMAGES):
        case = material.store.load_whole(case_id)
        probs, logit = predictor.with_logits(case.image, case.spacing)
        part, pred, true = material.parts[case_id], decision(probs), case.target if case_id in known else None
        target = None if true is None else true.clip(max=1)
        classes = (pred, true) if len(probs) > 2 else None
        tally.add(Output(case_id, part, pred > 0, 1 - probs[0], logit, target, classes), case.image)
    return tally


def _examine_inputs(
    statistics: dict[str, Any],
    skipped: list[str],
    material: _Material,
    request: CheckpointRequest,
    clock: Clock,
    track: Callable[[str], Track],
) -> None:
    config, facts = material.model.config, material.store.catalog.facts
    needed = material.split.labeled_ids(config.split.labels)
    if all(i in facts and facts[i].content == material.split.content.get(i) for i in needed):
        _run_stage(statistics, skipped, clock, UNTIL_BATCHES, "batches",
                   lambda: measure_batches(config, material.store, material.split, clock, UNTIL_BATCHES,
                                           track("making batches")))  # fmt: skip
    predictor = material.model.predictor(material.which, request.overlap)
    ids = order_images(material.parts, request)
    _run_stage(statistics, skipped, clock, 1.0, "inputs",
               lambda: measure_inputs(predictor, material.store, ids, config.data.num_classes, clock, 1.0))  # fmt: skip


def _run_stage(
    statistics: dict[str, Any],
    skipped: list[str],
    clock: Clock,
    until: float,
    name: str,
    measure: Callable[[], dict[str, Any]],
) -> None:
    """Measure something if there is time left for it."""
    if clock.has_left(until):
        statistics[name] = measure()
    else:
        skipped.append(name)


def _judge(material: _Material, nets: ProbedNets | None, tally: Tally, statistics: Mapping[str, Any]) -> Verdict:
    """Return the verdict of the rules that judge a run at its end, on the same figures; whole images add the rest."""
    net, context = material.which, read_context(material.model.config)
    audits = audit_outputs(tally, statistics, net, None if nets is None else nets.val[net].auroc)
    on_images = (*audit_inputs(statistics, net), *audit_margin(statistics, net))
    if nets is None:
        return conclude((*audits, *on_images), context, net)
    whole = [f for f in audits if f.code in OF_WHOLE_IMAGES]
    judged = judge(nets.evidence, net).findings
    if material.is_of_run:
        judged = leave_out_refuted(judged, material.model.checkpoint.scores)
    verdict = conclude((*judged, *whole, *on_images), context, net)
    return put_behind(verdict, audits)


def _count_parts(material: _Material, tally: Tally) -> dict[str, Any]:
    own = list(material.parts.values())
    used = [image.part for image in tally.images]
    return {part: {"used": used.count(part), "of": own.count(part)} for part in PARTS if part in own}


def _describe_health(statistics: Mapping[str, Any], tally: Tally) -> str:
    shares = [image.ratio_pred for image in tally.images]
    images = counted(len(shares), "image")
    text = f"no fault found in {images}; predicted foreground {min(shares):.1%} to {max(shares):.1%}"
    if "scores" not in statistics:
        return text
    scores = statistics["scores"]
    where = f" on {counted(scores['images'], 'validation image')}"
    return f"{text}; {describe_f1(scores, where)}"
