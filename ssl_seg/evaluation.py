"""Scores of a checkpoint on validation, on the sealed test list, or on another labeled folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssl_seg.config import DataConfig
from ssl_seg.configio import validate
from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.data.splits.split import IMAGE_DIGITS, Split
from ssl_seg.errors import DataError, SplitError
from ssl_seg.inference.model import Model, open_model
from ssl_seg.inference.scoring import score_cases
from ssl_seg.rundir import append_jsonl, find_run_of, now, read_jsonl
from ssl_seg.sources import absolute_root, open_data, open_store

Part = Literal["val", "test", "all"]


@dataclass(frozen=True)
class EvaluateRequest:
    """What to score.

    ``data`` and ``split`` default to those of the checkpoint, ``which`` to the better net on validation. With
    ``part`` = ``all`` every labeled case of the folder counts, whatever list it is in. ``settings`` of the data section
    replace those of the training, for a folder whose masks have other values.
    """

    checkpoint: Path
    data: str | None = None
    split: Path | None = None
    part: Part = "val"
    which: str | None = None
    overlap: float = 0.5
    settings: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    request: EvaluateRequest,
    *,
    note: Callable[[str], None] = lambda _: None,
    track: Callable[[str], Track] | None = None,
) -> dict[str, Any]:
    """Return pooled and mean scores, trivial baselines and one row a case, as plain types.

    Without ``which``, both networks are scored and the headline is the one that was better on validation in training:
    never the one that is better on the cases scored here.

    Raises:
        SslSegError: for an unusable checkpoint, folder or split.
    """
    tracker = track or (lambda _: pass_through)
    model = open_model(request.checkpoint)
    catalog, data = open_catalog_for(request, model, tracker("reading cases"))
    if catalog.ndim != data.ndim:
        raise DataError(f"{catalog.root} holds {catalog.ndim}D images; the network was trained on {data.ndim}D")
    split = load_split(request.split) if request.split else split_from_dict(model.checkpoint.split)
    ids = _choose_cases(request, model, catalog, split, note)
    openings = _record_opening(request, split, len(ids)) if request.part == "test" else 0

    store = open_store(catalog, data)
    headline = request.which or model.better
    nets = {
        net: score_cases(
            model.predictor(net, request.overlap),
            store,
            ids,
            surface=data.ndim == 3,
            track=tracker(f"scoring {net}"),
        ).summarize()
        for net in ([request.which] if request.which else model.nets)
    }
    others = {net: {k: s[k] for k in ("pooled", "mean", "trivial")} for net, s in nets.items()}
    return {
        "checkpoint": str(request.checkpoint),
        "step": model.checkpoint.progress.step,
        "data": catalog.root,
        "part": request.part,
        "which": headline,
        "test_openings": openings,
        **nets[headline],
        "nets": others,
    }


def open_catalog_for(request: EvaluateRequest, model: Model, track: Track) -> tuple[Catalog, DataConfig]:
    """Return the cases of the request's folder, or of the training, and the settings that they are read with.

    Label values are those of the training. In another folder, the voxel size is that of its files where they state one.

    Raises:
        ConfigError: for a setting that does not exist, or of another kind.
        DataError: for unusable data, or another number of classes than the network knows.
    """
    section = model.config.data.model_dump(mode="json")
    elsewhere = request.data is not None and absolute_root(request.data) != section["root"]
    if elsewhere:
        section |= {"root": request.data, "layout": "auto", "groups": None}
    data = validate(DataConfig, section | dict(request.settings), prefix="data.")
    catalog = open_data(data.model_dump(mode="json"), track)
    if catalog.num_classes != model.config.data.num_classes:
        raise DataError(
            f"{catalog.root}: the label values {list(catalog.label_values)} are {catalog.num_classes} classes, and the "
            f"network knows {model.config.data.num_classes}. Give one value a class, or join classes by data.label_map."
        )
    stated = any(facts.spacing is not None for facts in catalog.facts.values())
    if elsewhere and stated and "spacing" not in request.settings:
        data = data.model_copy(update={"spacing": None})
    return catalog, data


def _choose_cases(
    request: EvaluateRequest, model: Model, catalog: Catalog, split: Split, note: Callable[[str], None]
) -> tuple[str, ...]:
    own_split = split_from_dict(model.checkpoint.split)
    images = own_split.image_contents(own_split.labeled_ids(model.config.split.labels))

    def was_labeled(case_id: str) -> bool:
        return catalog.facts[case_id].content[:IMAGE_DIGITS] in images

    if request.part == "all":
        ids = tuple(case.id for case in catalog.labeled)
        if seen := [i for i in ids if was_labeled(i)]:
            note(f"{len(seen)} of the {len(ids)} cases were labeled training cases of this network: too good a score")
        return ids
    ids = split.val if request.part == "val" else split.test
    if not ids:
        raise SplitError(f"the split has no {request.part} cases")
    facts = catalog.facts
    strangers = [i for i in ids if i not in facts or facts[i].content != split.content.get(i)]
    if strangers:
        raise SplitError(
            f"{catalog.root} does not hold the {request.part} cases of the split: {len(strangers)} of {len(ids)} are "
            f"missing or have another content, for example '{strangers[0]}'. For another data set use --all, or its "
            "own --split."
        )
    if seen := [i for i in ids if was_labeled(i)]:
        raise SplitError(
            f"{len(seen)} of the {len(ids)} {request.part} cases of this split were labeled training cases of the "
            f"network, for example '{seen[0]}': the score would mean nothing. Leave out --split to use its own."
        )
    return ids


def _record_opening(request: EvaluateRequest, split: Split, cases: int) -> int:
    """Append the opening of the test list to the run's events (or to a file beside a copied checkpoint); count them."""
    run = find_run_of(request.checkpoint)
    path = run.events_path if run else request.checkpoint.with_suffix(".events.jsonl")
    event = {"event": "test_opened", "time": now(), "checkpoint": request.checkpoint.name, "cases": cases}
    append_jsonl(path, {**event, "split": split.fingerprint})
    return sum(r["event"] == "test_opened" for r in read_jsonl(path))
