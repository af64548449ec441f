"""Scores of checkpoints on validation, on the sealed test list, or on another labeled folder: of one, of several on
the same cases, of their ensemble, and of a cross-validation out of fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ssl_seg.config import DataConfig, TargetsConfig
from ssl_seg.config.layers import validate
from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.facts import state_spacing
from ssl_seg.data.home import find_home
from ssl_seg.data.open import absolute_root, open_data, open_store
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.data.splits.split import Split, find_copies_of, find_new_masks
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import ConfigError, DataError, SplitError
from ssl_seg.inference.calibration import (
    calibrate_predictor,
    check_threshold,
    decide,
    decide_mean,
    find_calibration,
)
from ssl_seg.inference.decision import Decision
from ssl_seg.inference.ensemble import check_members, open_members, score_cases
from ssl_seg.inference.model import Model, open_model
from ssl_seg.inference.scoring import Score
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.networks.precision import choose_device_if_given
from ssl_seg.results.folds import (
    FOLDS,
    CrossValidation,
    Fold,
    join_scores,
    list_checkpoints,
    list_members,
    load_finished,
)
from ssl_seg.run.final_scores import load_final_scores, summarize_network
from ssl_seg.run.gates import judge_targets
from ssl_seg.run.seal import Ledger, find_sealed, open_sealed
from ssl_seg.scores.intervals import compare_counts

ScoredPart = Literal["val", "test", "all"]
TrackAll = Callable[[str], Track]
"""What is being done -> what wraps its items, for a progress bar."""

OUT_OF_FOLD = "out of fold"
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class EvaluateRequest:
    """What to score.

    ``data`` and ``split`` default to those of the checkpoint, ``which`` to the better net on validation. With
    ``part`` = ``all`` every labeled case of the folder counts, whatever list it is in. ``settings`` of the data section
    replace those of the training, for a folder whose masks have other values. Labeled training cases of a network, or
    of a run that it builds on, are left out of ``all`` and refused elsewhere. Sealed test cases among those scored are
    recorded, whatever the part; see ``ssl_seg.run.seal``.
    """

    checkpoint: Path
    data: str | None = None
    split: Path | None = None
    part: ScoredPart = "val"
    which: str | None = None
    overlap: float = OVERLAP
    settings: Mapping[str, Any] = field(default_factory=dict)
    more: tuple[Path, ...] = ()
    """Further checkpoints, to be scored on the same cases."""
    ensemble: bool = False
    """Score the mean of the probabilities of all checkpoints too, as the headline."""
    accelerator: str | None = None
    """Where to compute: auto, cpu, cuda or mps; by default where the training did."""
    threshold: float | None = None
    """Foreground is where its probability is above this; by default above that of the calibration, without one above
    that of the training's settings, and without that where foreground is the likelier class."""
    calibrated: bool = True
    """Use what ``ssl-seg calibrate`` has stored beside a checkpoint; for ensembles and folds it is left out."""


def evaluate(
    request: EvaluateRequest,
    *,
    note: Callable[[str], None] = lambda _: None,
    track: TrackAll = lambda _: pass_through,
) -> dict[str, Any]:
    """Return pooled and mean scores, trivial baselines and one row a case, as plain types.

    ``sealed_cases`` counts the sealed test cases among those scored, ``test_openings`` how often such cases have been
    scored so far. ``threshold`` is the probability above which foreground was predicted, None for more than two
    classes, and ``threshold_from`` what gave it.

    One checkpoint: without ``which``, both networks are scored and the headline is the one that was better on
    validation in training, never the one that is better on the cases scored here.

    Several checkpoints: ``rows`` has the scores of each (of ``which``, or its better network) and, with ``ensemble``,
    those of their mean as the last one, each with its ``difference`` to the first; the headline is that of the
    ensemble, or of the first.

    The directory of a cross-validation stands for best.pt of its folds, as an ensemble. On validation without a
    ``split`` it is scored out of fold instead, each case by the network that has not seen it; ``folds`` has the scores
    of each fold. They are those that the training of the fold wrote at its end, unless other ones are asked for.

    Raises:
        SslSegError: for an unusable checkpoint, folder or split, or checkpoints that do not go together.
    """
    if request.part == "all" and request.split is not None:
        raise ConfigError(
            f"--all and --split {request.split} exclude each other: --all scores every labeled case, whatever list it "
            "is in. Leave one of them out."
        )
    alone = FOLDS.is_in(request.checkpoint) and not request.more
    if alone and request.part == "val" and request.split is None:
        return _evaluate_folds(request, note, track)
    paths = list_members((request.checkpoint, *request.more))
    several, ensemble = len(paths) > 1, request.ensemble or alone
    if ensemble and not several:
        raise ConfigError("--ensemble: one checkpoint is not an ensemble; name at least two")
    device = choose_device_if_given(request.accelerator)
    one_each = several or request.which is not None
    models = open_members(paths, request.which, device) if one_each else (open_model(paths[0], device),)
    check_members(models, averaged=ensemble)
    title = f"{len(models)} networks" if several else " and ".join(models[0].nets)
    catalog, data = open_cases(models[0], track("reading cases"), request.data, request.settings)
    for text in describe_reading(catalog, models[0]):
        note(text)
    request = replace(request, calibrated=request.calibrated and not ensemble)
    scores, decisions, opened = _score(
        request, models, catalog, data, note, track(f"scoring {title}"), ensemble=ensemble
    )
    rows: list[dict[str, Any]] = [
        {"checkpoint": str(model.path), "step": model.checkpoint.progress.step, "which": net}
        for model in models
        for net in model.nets
    ]
    if ensemble:
        rows.append({"checkpoint": ENSEMBLE, "which": f"mean of {len(models)}"})
    targets = [model.config.targets for model in models for _ in model.nets] + [models[0].config.targets] * ensemble
    rows = [
        row | _describe_threshold(decision, data) | _summarize(score, own)
        for row, decision, score, own in zip(rows, decisions, scores, targets, strict=True)
    ]
    used = request.which or models[0].better
    headline = rows[-1] if ensemble else next(row for row in rows if row["which"] == used)
    each = {"rows": add_differences(rows)} if several else {"nets": {row["which"]: _summary_of(row) for row in rows}}
    return {**headline, "data": catalog.root, "part": request.part, **opened, **each}


def add_differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with the difference of each to the first: of pooled F1 (mean over classes), on the same cases,
    with its paired 95 % interval over cases; None in the first row."""
    first, *others = (np.array([case["counts"] for case in row["cases"]]) for row in rows)
    changes = [None, *(asdict(compare_counts(own, first)) for own in others)]
    return [{**row, "difference": change} for row, change in zip(rows, changes, strict=True)]


def _evaluate_folds(request: EvaluateRequest, note: Callable[[str], None], track: TrackAll) -> dict[str, Any]:
    """Return the scores of a cross-validation over the validation cases of all folds."""
    if request.ensemble:
        raise ConfigError(
            f"--ensemble: on validation, {request.checkpoint} is scored out of fold: each validation case was a "
            "training case of all networks but one. Leave out --ensemble, or score the ensemble on --test, or on "
            "other --data with --all"
        )
    request, validation = replace(request, calibrated=False), load_finished(request.checkpoint)
    fold_of: dict[str, int] = {}
    scores: list[Score] = []
    rows: list[dict[str, Any]] = []
    cases: tuple[Catalog, DataConfig] | None = None
    sealed = openings = 0
    for fold, path in zip(validation.trainings, list_checkpoints(validation), strict=True):
        models = open_members([path], request.which, choose_device_if_given(request.accelerator))
        if cases is None:
            cases = open_cases(models[0], track("reading cases"), request.data, request.settings)
            for text in describe_reading(cases[0], models[0]):
                note(text)
        catalog, data = cases
        (net,) = models[0].nets
        stored = _find_stored(request, validation, fold, models[0], data)
        title = f"scoring {fold.name} {net}"
        (score,), (decision,), seal = _score(request, models, catalog, data, note, track(title), stored=stored)
        ids = [case.case_id for case in score.cases]
        if twice := [i for i in ids if i in fold_of]:
            raise SplitError(
                f"{request.checkpoint}: case '{twice[0]}' is in validation in fold {fold_of[twice[0]]} and in fold "
                f"{fold.number}: these are not the folds of one cross-validation"
            )
        fold_of |= dict.fromkeys(ids, fold.number)
        sealed, openings = sealed + seal["sealed_cases"], max(openings, seal["test_openings"])
        scores.append(score)
        row = {"fold": fold.number, "checkpoint": str(path), "which": net, "cases": len(ids)}
        cut = _describe_threshold(decision, data)
        rows.append(row | cut | _summary_of(_summarize(score, models[0].config.targets)))
    summary = _summarize(join_scores(scores), models[0].config.targets)
    return {
        "checkpoint": str(request.checkpoint),
        "data": catalog.root,
        "part": "out_of_fold",
        "which": request.which or "better network of each fold",
        "sealed_cases": sealed,
        "test_openings": openings,
        **cut,
        **summary,
        "cases": [{**row, "fold": fold_of[row["id"]]} for row in summary["cases"]],
        "nets": {OUT_OF_FOLD: cut | _summary_of(summary)},
        "folds": rows,
    }


def _find_stored(
    request: EvaluateRequest, validation: CrossValidation, fold: Fold, model: Model, data: DataConfig
) -> Score | None:
    """Return the score that the training of a fold wrote at its end, if it is what the request asks for: the same
    network on the same images, read and predicted in the same way. It has no surface distances, so never in 3D."""
    (net,) = model.nets
    final, score = load_final_scores(validation.run_of(fold)), fold.scores[net]
    as_trained = (
        final is not None
        and final.overlap == request.overlap
        and model.checkpoint.scores.get(net) == summarize_network(score)
        and request.accelerator is None
        and request.threshold is None
        and data.model_copy(update={"unlabeled": model.config.data.unlabeled}) == model.config.data
    )
    return score if as_trained and data.ndim == 2 else None


def _score(
    request: EvaluateRequest,
    models: Sequence[Model],
    catalog: Catalog,
    data: DataConfig,
    note: Callable[[str], None],
    track: Track,
    *,
    ensemble: bool = False,
    stored: Score | None = None,
) -> tuple[tuple[Score, ...], tuple[Decision, ...], dict[str, int]]:
    """Score each network of the models, and their mean with ``ensemble``, on the cases that the request asks for.

    ``stored`` is a known score of the only network, which is returned if it is of these cases.

    Returns:
        The scores, how each was cut, and how many of the cases are sealed and how often they have been opened.
    """
    split = load_split(request.split) if request.split else split_from_dict(models[0].checkpoint.split)
    ids = choose_cases(models, catalog, split, note, request.part, is_other_split=request.split is not None)
    opened = _break_seal(models, catalog, split, ids, request, note)
    check_threshold(request.threshold, models[0].config.data)
    nets = [(model, net) for model in models for net in model.nets]
    if stored is not None and [case.case_id for case in stored.cases] == list(ids):
        scores: tuple[Score, ...] = (stored,)
        decisions: tuple[Decision, ...] = (decide(None, None, models[0].config.prediction),)
    else:
        scores, decisions = _predict_scores(
            request, nets, open_store(catalog, data), ids, note, track, ensemble=ensemble
        )
    names = [f"{model.path}: {net}" for model, net in nets] + [ENSEMBLE] * ensemble
    for name, score in zip(names, scores, strict=True):
        if score.nonfinite:
            cases = sum(case.nonfinite > 0 for case in score.cases)
            note(
                f"WARNING {name} gives NaN or infinity in {cases} of {len(score.cases)} cases: {score.nonfinite:,} "
                "voxels count as wrong, and no mask can be made of them"
            )
    return scores, decisions, opened


def _predict_scores(
    request: EvaluateRequest,
    nets: Sequence[tuple[Model, str]],
    store: CaseStore,
    ids: Sequence[str],
    note: Callable[[str], None],
    track: Track,
    *,
    ensemble: bool,
) -> tuple[tuple[Score, ...], tuple[Decision, ...]]:
    """Predict the cases with each network, calibrated and cut as the request says; return the scores and the cuts."""
    for text in dict.fromkeys(text for model, _ in nets for text in model.describe_machine()):
        note(text)
    models = [model for model, _ in nets]
    calibrations = [find_calibration(model, net, note) if request.calibrated else None for model, net in nets]
    if any(calibrations) and request.part == "val" and request.split is None and request.data is None:
        note("these cases are those that the calibration was chosen on: the scores are optimistic")
    decisions = [
        *(
            decide(request.threshold, own, model.config.prediction)
            for (model, _), own in zip(nets, calibrations, strict=True)
        ),
        *([decide_mean(request.threshold, models)] if ensemble else []),
    ]
    scores = score_cases(
        [
            calibrate_predictor(model.predictor(net, request.overlap), own)
            for (model, net), own in zip(nets, calibrations, strict=True)
        ],
        store,
        ids,
        mean=ensemble,
        decisions=decisions,
        surface=nets[0][0].config.data.ndim == 3,
        track=track,
    )
    return scores, tuple(decisions)


def _describe_threshold(decision: Decision, data: DataConfig) -> dict[str, Any]:
    """Return above which probability foreground was predicted, and what said so."""
    likeliest = 0.5 if data.num_classes == 2 else None
    threshold = likeliest if decision.threshold is None else decision.threshold
    return {"threshold": threshold, "threshold_from": decision.source}


def _summarize(score: Score, targets: TargetsConfig) -> dict[str, Any]:
    """Return the plain types of a score, with ``targets`` where there are any."""
    summary = score.summarize()
    judged = judge_targets(targets, summary)
    return summary | ({"targets": judged} if judged else {})


def _summary_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scores of a network, without its cases and what it is called."""
    return {key: value for key, value in row.items() if key not in ("checkpoint", "step", "which", "cases")}


def open_cases(
    model: Model, track: Track, root: str | None = None, settings: Mapping[str, Any] = {}
) -> tuple[Catalog, DataConfig]:
    """Return the cases of a folder, or of the training, and the settings that they are read with.

    Label values are those of the training. In another folder, the voxel size is that of its files where they state one.

    Args:
        model: knows how the training read its data.
        track: shows the progress.
        root: the folder; by default that of the training.
        settings: settings of the data section that replace those of the training.

    Raises:
        ConfigError: for a setting that does not exist, or of another kind.
        DataError: for unusable data, or images and classes that are not those of the network.
    """
    section = model.config.data.model_dump(mode="json")
    if section["unlabeled"] is not None and not Path(section["unlabeled"]).is_dir():
        section["unlabeled"] = None  # no score depends on these images
    elsewhere = root is not None and absolute_root(root) != section["root"]
    if elsewhere:
        section |= {"root": root, "layout": "auto", "groups": None, "unlabeled": None, "tiles": 1}
    changed = {"label_values", "label_map"} & set(settings)
    if changed and "mask" not in settings and section["task"] == "semantic":
        section |= {"mask": "semantic", "threshold": None}
    data = validate(DataConfig, section | dict(settings), prefix="data.")
    asks_files = elsewhere and "spacing" not in settings
    catalog = open_data(data.model_dump(mode="json") | ({"spacing": None} if asks_files else {}), track)
    if catalog.num_classes != model.config.data.num_classes:
        raise DataError(
            f"{catalog.root}: the label values {list(catalog.label_values)} are {catalog.num_classes} classes, and the "
            f"network knows {model.config.data.num_classes}. Give one value a class, or join classes by data.label_map."
        )
    if catalog.ndim != data.ndim:
        raise DataError(f"{catalog.root} holds {catalog.ndim}D images; the network was trained on {data.ndim}D")
    if asks_files and any(facts.spacing is not None for facts in catalog.facts.values()):
        data = data.model_copy(update={"spacing": None})
    return replace(catalog, facts=state_spacing(catalog.facts, data.spacing)), data


def describe_reading(catalog: Catalog, model: Model) -> tuple[str, ...]:
    """Return what there is to say about how the files of another folder than that of the training were read."""
    notes = () if catalog.root == absolute_root(model.config.data.root) else catalog.notes
    return tuple(f"data: {text}" for text in notes)


def choose_cases(
    models: Sequence[Model],
    catalog: Catalog,
    split: Split,
    note: Callable[[str], None],
    part: ScoredPart = "val",
    *,
    is_other_split: bool = False,
) -> tuple[str, ...]:
    """Return the ids to score, none of which was a labeled training case of any of the networks.

    ``is_other_split``: whether the split is not that of the training, for the advice in errors.
    """
    facts = catalog.facts
    if part == "all":
        ids = tuple(case.id for case in catalog.labeled)
        seen = {i for model in models for i in _find_labeled(model, catalog, ids)}
        if seen:
            note(f"{len(seen)} of the {len(ids)} cases were labeled training cases of {_name(models)}: left out")
        images = {image for model in models for image in model.checkpoint.seen_labels}
        if alike := find_copies_of(catalog, ids, images):
            note(f"{len(alike)} of the {len(ids)} cases look like copies of such training cases: left out")
            seen |= set(alike)
        note_names(models, catalog, note)
        if ids and len(seen) == len(ids):
            raise DataError(
                f"all {len(ids)} labeled cases of {catalog.root} were labeled training cases of {_name(models)}, or "
                "look like copies of them: nothing is left to score. Give other --data."
            )
        return tuple(i for i in ids if i not in seen)
    ids = split.val if part == "val" else split.test
    if not ids:
        raise SplitError(f"the split has no {part} cases; score other data with --all --data FOLDER")
    strangers = [i for i in ids if i not in facts or facts[i].content != split.content.get(i)]
    if strangers and find_new_masks(split, catalog, ids) == set(strangers):
        raise SplitError(
            f"{catalog.root}: the masks of {len(strangers)} of the {len(ids)} {part} cases are others than when the "
            f"split was made, for example '{strangers[0]}'. Put the old masks back, or score the new ones with --all, "
            "which takes every labeled case that was not used in training, those of the test list too."
        )
    if strangers:
        raise SplitError(
            f"{catalog.root} does not hold the {part} cases of the split: {len(strangers)} of {len(ids)} are "
            f"missing or have another content, for example '{strangers[0]}'. For another data set use --all, or its "
            "own --split."
        )
    for model in models:
        if labeled := _find_labeled(model, catalog, ids):
            name = _name(models) if len(models) == 1 else str(model.path)
            advice = _advise(models, is_other_split=is_other_split)
            raise SplitError(
                f"{len(labeled)} of the {len(ids)} {part} cases of this split were labeled training cases of "
                f"{name}, for example '{labeled[0]}': the score would mean nothing. {advice}"
            )
        if copies := find_copies_of(catalog, ids, model.checkpoint.seen_labels):
            note(
                f"WARNING {len(copies)} of the {len(ids)} {part} cases look like copies of labeled training "
                f"cases, for example '{copies[0]}': the score is too good"
            )
    return ids


def note_names(models: Sequence[Model], catalog: Catalog, note: Callable[[str], None]) -> None:
    """Say so where only names tell that a folder may be a new export of the training data."""
    held = {facts.image for facts in catalog.facts.values()}
    for model in models:
        split = split_from_dict(model.checkpoint.split)
        if held.isdisjoint(split.image_contents(split.content)) and split.content.keys() <= catalog.facts.keys():
            labeled = len(split.labeled_ids(model.config.split.labels))
            note(
                f"WARNING {catalog.root} has all names of the training data of {model.path}, with other images: if it "
                f"is a new export of them, {labeled} of the cases were labeled training cases and {len(split.test)} "
                "are sealed; score the folder of the training then"
            )


def _find_labeled(model: Model, catalog: Catalog, ids: Sequence[str]) -> list[str]:
    """Return the ids whose images were labeled training cases of the model, or of a run that it builds on, whatever
    their names were."""
    seen = set(model.checkpoint.seen_labels)
    return [i for i in ids if catalog.facts[i].image in seen]


def _name(models: Sequence[Model]) -> str:
    return "this network or of a run that it builds on" if len(models) == 1 else "one of the networks"


def _advise(models: Sequence[Model], *, is_other_split: bool) -> str:
    if len(models) == 1 and is_other_split:
        return "Leave out --split to use its own."
    if any(model.checkpoint.split.get("folds") for model in models):
        return (
            "Folds have no validation cases in common: use --test, or name the directory of the cross-validation alone."
        )
    return "Give a --split whose cases no network was trained with, or other --data with --all."


def _break_seal(
    models: Sequence[Model],
    catalog: Catalog,
    split: Split,
    ids: Sequence[str],
    request: EvaluateRequest,
    note: Callable[[str], None],
) -> dict[str, int]:
    """Record which sealed cases are about to be scored, and return what the result says about it."""
    splits = [split, *(split_from_dict(model.checkpoint.split) for model in models)]
    sealed = find_sealed(catalog, ids, splits)
    homes = [find_home(root) for root in (catalog.root, *(model.config.data.root for model in models))]
    files = [request.split, *(model.config.split.file for model in models)]
    ledger = Ledger(
        data=tuple(dict.fromkeys(home for home in homes if home)),
        splits=tuple(dict.fromkeys(home for file in files if file and (home := find_home(str(file))))),
        checkpoints=tuple(model.path for model in models),
    )
    return {
        "sealed_cases": len(sealed),
        "test_openings": open_sealed(sealed, ledger, by="evaluate", splits=splits, note=note),
    }
