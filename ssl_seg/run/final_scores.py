"""What the networks of a run score on the whole validation cases once it has ended, and which of them is used.

::

    RUN/scores.json    every network that was scored, with its counts in each case, and the one that is used

It is decided here, once. Whatever uses the run afterwards takes best.pt, and in it the network that ``selected.net`` of
its scores names: `train`, `evaluate`, `predict`, `diagnose`, `--bootstrap`, ladders, folds and ablations.

torch is imported in functions: commands read the scores of ladders and folds before they load it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ssl_seg.config import NETS
from ssl_seg.data.catalog import Track
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import RunDirError
from ssl_seg.files import write_json
from ssl_seg.inference.scoring import Score, count_classes, pack_cases, parse_cases
from ssl_seg.monitor.catalog import beats_trivial
from ssl_seg.run.directory import RunDir
from ssl_seg.scores.intervals import Difference, compare_counts, compute_score
from ssl_seg.scores.objects import compute_pq

if TYPE_CHECKING:
    from torch import nn

    from ssl_seg.inference.model import Model
    from ssl_seg.monitor.monitor import Selection

SCORES_FILE, SCHEMA = "scores.json", 1

Source = Literal["best", "last", "swa"]
SOURCES: tuple[Source, ...] = ("best", "last", "swa")
"""Checkpoint files in tie-breaking order; on ties the teacher precedes the student."""


@dataclass(frozen=True)
class NetworkScore:
    """One network of a run on the whole validation cases."""

    source: Source
    net: str
    step: int
    collapsed: bool
    """Whether the monitor called it collapsed when it last looked."""
    score: Score

    def rank(self, select: Selection) -> tuple[bool, bool, float]:
        """Return what networks are compared by: one with NaN comes last, one that has collapsed behind the others."""
        return self.score.nonfinite == 0, not self.collapsed, compute_selection_score(self.score, select)


@dataclass(frozen=True)
class FinalScores:
    """All networks of a run that were scored."""

    step: int
    """Step at which the run ended."""
    select: Selection
    networks: tuple[NetworkScore, ...]
    overlap: float
    """Overlap of the sliding windows, from 0 to below 1."""
    factor: int = 1
    """How many patches long a window is at most; see ``choose_factor``."""

    @property
    def used(self) -> NetworkScore:
        """The network that is used: the best one on the whole validation cases."""
        return max(self.networks, key=lambda n: n.rank(self.select))

    def of(self, source: Source) -> dict[str, Score]:
        """Return the scores of both networks of a file; empty for a file that the run did not have."""
        return {n.net: n.score for n in self.networks if n.source == source}

    def collapsed_of(self, source: Source) -> list[str]:
        """Return the names of the networks of a file that have collapsed."""
        return sorted(n.net for n in self.networks if n.source == source and n.collapsed)


def compute_selection_score(score: Score, select: Selection) -> float:
    """Return the figure that networks are compared by, larger is better, as the monitor's of the same name."""
    if select == "f1":
        return score.f1_macro
    if select == "dice":
        return float(compute_score(count_classes(score), "dice"))
    if select == "pq":
        return compute_pq([case.objects["found"] for case in score.cases if case.objects is not None]) or 0.0
    overlaps = [c.overlap for c in score.cases if c.overlap.voxels]
    predicted = sorted((o.tp + o.fp) / o.voxels for o in overlaps)
    true = sorted(o.prevalence for o in overlaps)
    return -float(np.abs(np.subtract(predicted, true)).mean()) if overlaps else 0.0


def score_networks(
    models: Mapping[Source, Model],
    store: CaseStore,
    case_ids: Sequence[str],
    step: int,
    select: Selection,
    track: Track,
    factor: int = 1,
    known: Score | None = None,
) -> FinalScores:
    """Score the networks of the checkpoints of a run, in one pass over the cases; equal networks are predicted once.

    Args:
        models: model of each file.
        store: reads the cases.
        case_ids: whole validation cases.
        step: at which the run ended.
        select: what networks are compared by.
        track: shows how far it is.
        factor: factor of the window length; see ``Predictor``.
        known: score in these windows of the better network of best.pt, which need not be predicted again.
    """
    from ssl_seg.inference.calibration import decide
    from ssl_seg.inference.ensemble import score_cases
    from ssl_seg.inference.model import find_collapsed
    from ssl_seg.inference.sliding import OVERLAP

    distinct: list[tuple[Model, str]] = []
    number: dict[tuple[Source, str], int] = {}
    for source in SOURCES:
        for net in reversed(NETS) if source in models else ():
            here = models[source].nets[net]
            same = (i for i, (model, name) in enumerate(distinct) if _are_equal(model.nets[name], here))
            if (found := next(same, None)) is None:
                found = len(distinct)
                distinct.append((models[source], net))
            number[source, net] = found
    scores = {} if known is None else {number["best", models["best"].better]: known}
    rest = [index for index in range(len(distinct)) if index not in scores]
    if rest:
        predictors = [model.predictor(net, OVERLAP, factor) for model, net in (distinct[index] for index in rest)]
        decision = decide(None, None, models["best"].config.prediction)
        new = score_cases(predictors, store, case_ids, decisions=[decision] * len(rest), track=track)
        scores |= zip(rest, new, strict=True)
    return FinalScores(
        step,
        select,
        tuple(
            NetworkScore(
                source,
                net,
                models[source].checkpoint.progress.step,
                net in find_collapsed(models[source].checkpoint),
                scores[found],
            )
            for (source, net), found in number.items()
        ),
        OVERLAP,
        factor,
    )


def choose_factor(
    model: Model, store: CaseStore, case_ids: Sequence[str], select: Selection, track: Track
) -> tuple[int, Score | None]:
    """Return how many patches long windows are to be at most, LONG where the better network of ``model`` is no worse
    and beats foreground everywhere, and its score in such windows; None where nothing was predicted.

    They show more of an image at a time, but the network has not been trained on them: on micrographs of particles
    they gain, on those of nuclei some gain and some lose (docs/prediction.md). Where all windows would be of one
    patch, there is nothing to choose.
    """
    from ssl_seg.inference.calibration import decide
    from ssl_seg.inference.ensemble import score_cases
    from ssl_seg.inference.sliding import LONG, OVERLAP

    short, long = (model.predictor(model.better, OVERLAP, factor) for factor in (1, LONG))
    shapes = [store.catalog.facts[case_id].shape for case_id in case_ids]
    if short.resample_to is None and all(long.fit_window(shape) == short.fit_window(shape) for shape in shapes):
        return 1, None
    decision = decide(None, None, model.config.prediction)
    scores = score_cases([short, long], store, case_ids, decisions=[decision] * 2, track=track)
    by_short, by_long = (compute_selection_score(score, select) for score in scores)
    f1 = scores[1].f1_macro
    has_learned = beats_trivial(f1, f1 - scores[1].margin.value)
    is_long = by_long >= by_short and has_learned and not scores[1].nonfinite
    return (LONG, scores[1]) if is_long else (1, scores[0])


def _are_equal(a: nn.Module, b: nn.Module) -> bool:
    import torch

    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def describe_for_checkpoint(final: FinalScores, source: Source) -> dict[str, Any]:
    """Return the ``scores`` of a checkpoint: those of both of its networks, and which of them is used."""
    own = [n for n in final.networks if n.source == source]
    chosen = max(own, key=lambda n: n.rank(final.select))
    return {
        "source": "validation",
        "trivial_f1": summarize_network(chosen.score)["trivial_f1"],
        **{n.net: summarize_network(n.score) for n in own},
        "selected": {
            "by": final.select,
            "net": chosen.net,
            "score": compute_selection_score(chosen.score, final.select),
            "collapsed": final.collapsed_of(source),
            "window_factor": final.factor,
        },
    }


def summarize_network(score: Score) -> dict[str, Any]:
    """Return the few figures of ``Score.summarize`` that tables of trainings show and checkpoints keep.

    Pooled F1 (of any foreground, and mean of classes), that of predicting each class everywhere, the margin over that
    with its 95 % interval, mean Dice and what shows whether empty cases flatter it, the voxels without a finite
    output, and how many times as much foreground is predicted as there is (None without any).
    """
    summary = score.summarize()
    trivial, mean = summary["trivial"], summary["mean"]
    return {
        "of": summary["of"],
        "absent_classes": summary["absent_classes"],
        "false_classes": summary["false_classes"],
        "f1": score.f1,
        "f1_macro": score.f1_macro,
        "trivial_f1": trivial["all_positive"],
        **{key: trivial[key] for key in ("margin", "margin_low", "margin_high", "margin_why")},
        **{key: mean[key] for key in ("dice", "dice_positives", "predict_nothing", "n_cases", "n_positives")},
        "nonfinite": score.nonfinite,
        "foreground_ratio": summary["prevalence_pred"] / trivial["prevalence"] if trivial["prevalence"] else None,
        **({} if score.objects is None else {"objects": {name: score.objects[name] for name in ("f1_50", "ap", "pq")}}),
    }


def compare_on_shared_cases(
    own: Score, base: Score, contents: tuple[Mapping[str, str], Mapping[str, str]]
) -> tuple[Difference, int] | None:
    """Return the F1 of a network minus that of another on the validation cases of both, with its paired interval, and
    the number of these cases; None where there are none, or the classes are others.

    Args:
        own, base: scores of the two networks.
        contents: content of the cases of either by id, as in its split: images of one name may be others.
    """
    tables = [dict(zip((c.case_id for c in s.cases), count_classes(s), strict=True)) for s in (own, base)]
    shared = [i for i in tables[0] if i in tables[1] and i in contents[0] and contents[0][i] == contents[1].get(i)]
    if not shared or own.label_values != base.label_values:
        return None
    new, old = (np.array([table[i] for i in shared], np.int64) for table in tables)
    return compare_counts(new, old), len(shared)


def save_final_scores(final: FinalScores, run: RunDir) -> None:
    """Write scores.json atomically."""
    used = final.used
    rows = [
        {
            "source": n.source,
            "net": n.net,
            "step": n.step,
            "collapsed": n.collapsed,
            **{k: v for k, v in n.score.summarize().items() if k != "cases"},
            "average_precision": n.score.average_precision,
            "reliability": n.score.reliability,
            "cases": pack_cases(n.score),
        }
        for n in final.networks
    ]
    values = {
        "schema": SCHEMA,
        "step": final.step,
        "part": "validation",
        "overlap": final.overlap,
        "window_factor": final.factor,
        "select": final.select,
        "label_values": used.score.label_values,
        "used": {"net": used.net, "step": used.step, "source": used.source},
        "networks": rows,
    }
    write_json(run.path / SCORES_FILE, values)


def load_final_scores(run: RunDir) -> FinalScores | None:
    """Read what ``save_final_scores`` wrote; None for a run that has not come to its end.

    Raises:
        RunDirError: for a damaged file.
    """
    path = run.path / SCORES_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']}")
        networks = tuple(
            NetworkScore(
                row["source"],
                row["net"],
                row["step"],
                row["collapsed"],
                parse_cases(row["cases"], values["label_values"], row["average_precision"], row["reliability"]),
            )
            for row in values["networks"]
        )
        if not networks:
            raise ValueError("no networks")
        return FinalScores(values["step"], values["select"], networks, values["overlap"], values["window_factor"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunDirError(f"{path} is not in the format that `ssl-seg train` writes: {error}") from error
