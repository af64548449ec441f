"""The figures of a diagnosis as tables of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ssl_seg.errors import name_examples
from ssl_seg.report.diagnosis_text import PART_TITLES, UNKNOWN, Statistics, Table, cut, number, points, share, size

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis

SHOWN_IMAGES = 40
"""Rows of the table of images; all of them are in the JSON."""

NET_TITLES = {
    "student": "student",
    "teacher": "teacher",
    "train_mode": "student in train mode",
    "untrained": "untrained",
    "train_probe": "on training patches",
}
_QUANTILES = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")


def make_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return a table for each thing that was measured, without columns and rows of which nothing is known."""
    tables = [make(diagnosis.statistics) for make in _TABLES]
    tables.append(_images(diagnosis))
    return [_prune(table) for table in tables if table is not None and table.rows]


def _outputs(s: Statistics) -> Table | None:
    rows = [
        (
            PART_TITLES[part],
            str(out["images"]),
            *(number(out.get(f"prob_{name}")) for name in ("mean", "std", "min", "max")),
            *(number(out.get(f"logit_{name}"), 2) for name in ("mean", "std", "min", "max")),
            share(out.get("band_share")),
            share(out.get("low_share")),
        )
        for part, out in _by_part(s)
    ]
    columns = (
        "images of",
        "images",
        *(f"prob {name}" for name in ("mean", "sd", "min", "max")),
        *(f"logit {name}" for name in ("mean", "sd", "min", "max")),
        "in 0.5-0.7",
        "below 0.1",
    )
    text = (
        "Foreground probability and log-odds of all voxels. One that has learned spans 0 to 1. A constant network was "
        "reported with mean 0.627, sd 0.070 and more than 95% of its outputs between 0.5 and 0.7; the same figures on "
        "training and on new images mean that the image does not matter."
    )
    return Table("Outputs", text, columns, tuple(rows))


def _quantiles(s: Statistics) -> Table | None:
    rows = []
    for part, out in _by_part(s):
        for kind, digits in (("prob", 3), ("logit", 2)):
            values = out.get(f"{kind}_quantiles") or {}
            if values:
                shown = (number(values.get(q), digits) for q in _QUANTILES)
                rows.append((f"{PART_TITLES[part]}: {'probability' if kind == 'prob' else 'logit'}", *shown))
    text = "Of all voxels; the column is the share of voxels below."
    return Table("Quantiles of the outputs", text, ("images of", *_QUANTILES), tuple(rows))


def _shapes(s: Statistics) -> Table | None:
    rows = [
        (
            size(row["shape"]),
            str(row["images"]),
            f"{row['same']} at {share(row.get('ratio'))}" if row.get("same", 1) > 1 else UNKNOWN,
            row.get("closed_form") or UNKNOWN,
            f"{share(row.get('ratio_min'))} .. {share(row.get('ratio_max'))}",
            UNKNOWN if row.get("true_min") is None else f"{share(row.get('true_min'))} .. {share(row.get('true_max'))}",
            share(row.get("never")),
            share(row.get("always")),
            _describe_hole(row.get("hole")),
        )
        for row in s.get("shapes", [])
    ]
    columns = (
        "image shape",
        "images",
        "identical",
        "closed form",
        "predicted foreground",
        "true foreground",
        "never predicted",
        "always predicted",
        "border without predictions",
    )
    text = (
        "Predicted foreground of the images, grouped by shape. Different images with one share, and voxels "
        "that are foreground in every image, mean that the prediction does not depend on the image. A share that is a "
        "product of (covered length / length) is that of windows that leave a border uncovered."
    )
    return Table("Predicted foreground by image shape", text, columns, tuple(rows))


def _equality(s: Statistics) -> Table | None:
    found = s.get("equality")
    if not found:
        return None
    rows = [
        ("largest - smallest mean of an image", number(found.get("mean_spread"), 4)),
        ("largest - smallest sd of an image", number(found.get("std_spread"), 4)),
        *(
            (
                f"{PART_TITLES[part]} images: mean, sd",
                f"{number(found.get(f'{part}_mean'), 4)}, {number(found.get(f'{part}_std'), 4)}",
            )
            for part in ("train", "val")
            if found.get(f"{part}_mean") is not None
        ),
    ]
    text = (
        f"Probability over {found.get('images', UNKNOWN)} images. A constant network was reported with means 0.6267 to "
        "0.6272 and sds 0.0681 to 0.0690 on training and on test images."
    )
    return Table("Do the outputs depend on the image?", text, ("figure", "value"), tuple(rows))


def _nets(s: Statistics) -> Table | None:
    columns = {
        "f1": "F1 at 0.5",
        "f1_best": "F1 at best",
        "threshold_best": "threshold",
        "auroc": "AUROC",
        "average_precision": "AP",
        "trivial_f1": "all-positive F1",
        "prob_mean": "prob mean",
        "prob_std": "prob sd",
        "prob_max": "prob max",
        "logit_mean": "logit mean",
        "logit_std": "logit sd",
        "prevalence_pred": "predicted fg",
        "prevalence_true": "true fg",
    }
    nets = s.get("nets") or {}
    rows = [
        (title, *((cut if column == "threshold_best" else number)(nets[name].get(column)) for column in columns))
        for name, title in NET_TITLES.items()
        if nets.get(name)
    ]
    text = (
        "On the fixed patches of the validation probe, and the examined network on labeled training patches too. "
        "A teacher behind its student has an average that is too slow; train mode far from eval mode has wrong running "
        "statistics; no gain over the untrained network means that nothing was learned."
    )
    return Table("Student, teacher, modes, and an untrained network", text, ("network", *columns.values()), tuple(rows))


def _scores(s: Statistics) -> Table | None:
    scores, trivial = s.get("scores"), s.get("trivial") or {}
    if not scores:
        return None
    names = {
        "f1": "F1 (pooled)",
        "iou": "IoU (pooled)",
        "precision": "precision",
        "recall": "recall",
        "accuracy": "accuracy",
        "f1_mean": "F1 (mean of the images)",
        "f1_mean_positives": "F1 (mean of the images with foreground)",
        "f1_mean_of_nothing": "trivial: no foreground, F1 (mean of the images)",
    }
    rows = [(title, number(scores.get(name))) for name, title in names.items()]
    rows.append(("bias", str(scores.get("bias", UNKNOWN))))
    titles = {
        "prevalence": "true foreground",
        "all_positive": "trivial: foreground everywhere, F1",
        "all_negative": "trivial: no foreground, F1",
        "base_rate_random": "trivial: at random, F1",
        "margin": "F1 above the best trivial one",
    }
    rows += [(title, number(trivial.get(name))) for name, title in titles.items() if name in trivial]
    text = (
        f"Of any foreground, on {scores.get('images', UNKNOWN)} whole images. Bias is recall where recall is far above "
        "precision: too much is predicted; precision where too little is."
    )
    return Table("Precision, recall, and trivial predictors", text, ("score", "value"), tuple(rows))


def _sweep(s: Statistics) -> Table | None:
    sweep = s.get("sweep")
    if not sweep:
        return None
    marks = {round(sweep["best_threshold"], 4): "best"} if sweep.get("best_threshold") is not None else {}
    rows = tuple(
        (cut(t), number(f1), marks.get(round(t, 4), "default" if round(t, 4) == 0.5 else ""))
        for t, f1 in zip(sweep["thresholds"], sweep["f1"], strict=True)
    )
    gain = ""
    if sweep.get("best_f1") is not None and sweep.get("f1_at_half") is not None:
        gain = f" The best threshold gains {number(sweep['best_f1'] - sweep['f1_at_half'])}."
    text = f"F1 over all voxels.{gain} A threshold is chosen on validation images, never on test images."
    return Table("Threshold sweep", text, ("threshold", "F1", ""), rows)


def _foreground(s: Statistics) -> Table | None:
    spread = s.get("foreground") or {}
    rows = [
        (
            title,
            str(spread[name]["images"]),
            *(share(spread[name].get(figure)) for figure in ("mean", "median", "sd", "min", "max")),
        )
        for name, title in (("pred", "predicted"), ("true", "true"))
        if spread.get(name)
    ]
    text = "Share of foreground of each image."
    if spread.get("overestimate") is not None:
        text += f" Predicted minus true: {points(spread['overestimate'])}."
    return Table("Foreground distribution", text, ("", "images", "mean", "median", "sd", "min", "max"), tuple(rows))


def _trivial_losses(s: Statistics) -> Table | None:
    losses = s.get("trivial_losses")
    if not losses:
        return None
    names = ("network", "all_positive", "all_negative")
    rows = [("total", "", *(number(losses.get(name)) for name in names))]
    for component, row in losses.get("components", {}).items():
        rows.append((component, number(row.get("weight"), 2), *(number(row.get(name)) for name in names)))
    text = (
        "The run's own supervised loss on the validation probe. A trivial prediction with a loss near or below that of "
        "the network is where the training can get stuck."
    )
    return Table(
        "Loss of trivial predictions",
        text,
        ("component", "weight", "network", "all positive", "all negative"),
        tuple(rows),
    )


def _batches(s: Statistics) -> Table | None:
    batches = s.get("batches")
    if not batches:
        return None
    rows = [
        ("foreground, mean", share(batches.get("mean"))),
        ("foreground, least .. most", f"{share(batches.get('min'))} .. {share(batches.get('max'))}"),
        ("expected at least", share(batches.get("expected"))),
        ("expected at most", share(batches.get("most_expected"))),
        ("patches with any foreground", share(batches.get("positive_patches"))),
    ]
    each = ", ".join(share(value, 1) for value in batches.get("foreground", []))
    notes = [note if note.endswith(".") else f"{note}." for note in batches.get("notes", [])]
    text = " ".join([f"{batches.get('n', UNKNOWN)} training batches, with {each} foreground.", *notes])
    return Table("Composition of the training batches", text, ("figure", "value"), tuple(rows))


def _inputs(s: Statistics) -> Table | None:
    inputs = s.get("inputs")
    if not inputs:
        return None
    difference = inputs.get("path_difference")
    rows = [
        ("lowest rank correlation, raw and normalized", number(inputs.get("rank_correlation"), 4)),
        ("largest difference, training and prediction input", UNKNOWN if difference is None else f"{difference:.3g}"),
        ("largest share of voxels at the lowest raw value", share(inputs.get("clipped_low"))),
        ("largest share of voxels at the highest raw value", share(inputs.get("clipped_high"))),
        ("constant images", _ids(inputs.get("constant", []))),
    ]
    text = (
        f"{inputs.get('images', UNKNOWN)} images. A rank correlation of 1 means that normalization keeps the order of "
        "the gray values, so all that is to be seen; a difference of 0, that training and prediction feed the same."
    )
    return Table("Input of the network", text, ("figure", "value"), tuple(rows))


def _run(s: Statistics) -> Table | None:
    run = s.get("run")
    if not run:
        return None
    last = run.get("last") or {}
    rows = [
        ("steps", str(run.get("steps", UNKNOWN))),
        ("status", str(run.get("status") or UNKNOWN)),
        ("last F1, loss", f"{number(last.get('f1'))}, {number(last.get('loss'))} at step {last.get('step', UNKNOWN)}"),
        *(
            (f"verdict at step {v['step']}", f"{v['level']}: {', '.join(v['codes']) or 'nothing found'}")
            for v in run.get("verdicts", [])
        ),
        *((f"action at step {a['step']}", str(a["action"])) for a in run.get("actions", [])),
    ]
    return Table("History of the run", f"From `{run.get('directory', UNKNOWN)}`.", ("", "value"), tuple(rows))


_TABLES: tuple[Callable[[Statistics], Table | None], ...] = (
    _outputs,
    _quantiles,
    _shapes,
    _equality,
    _nets,
    _scores,
    _sweep,
    _foreground,
    _trivial_losses,
    _batches,
    _inputs,
    _run,
)


def _images(diagnosis: Diagnosis) -> Table:
    """Return the images, those with the lowest F1 first, then those that are not scored by their foreground."""
    images = sorted(diagnosis.images, key=lambda i: (i.f1 is None, i.f1 or 0.0, i.ratio_pred, i.id))
    rows = [
        (
            i.id,
            PART_TITLES[i.part] if diagnosis.kind == "checkpoint" else UNKNOWN,
            size(i.shape),
            f"{number(i.prob.mean)} +- {number(i.prob.std)}",
            f"{number(i.prob.low)} .. {number(i.prob.high)}",
            UNKNOWN if i.logit is None else f"{number(i.logit.mean, 2)} +- {number(i.logit.std, 2)}",
            share(i.ratio_pred),
            share(i.ratio_true),
            number(i.f1),
        )
        for i in images[:SHOWN_IMAGES]
    ]
    columns = ("image", "part", "shape", "prob", "prob range", "logit", "predicted fg", "true fg", "F1")
    text = "Lowest F1 first, then by predicted foreground."
    if len(images) > len(rows):
        text += f" {len(rows)} of {len(images)}; all are in `report.json`."
    return Table("Images", text, columns, tuple(rows))


def _by_part(s: Statistics) -> list[tuple[str, Statistics]]:
    """Return the outputs of each part and of all; of all alone where there is one part."""
    outputs = s.get("outputs", {})
    parts = [(part, outputs[part]) for part in PART_TITLES if outputs.get(part)]
    return parts[1:] if len(parts) == 2 else parts


def _prune(table: Table) -> Table:
    """Return the table without columns of which nothing is known."""
    kept = [c for c in range(len(table.columns)) if c == 0 or any(row[c] not in (UNKNOWN, "") for row in table.rows)]
    rows = tuple(tuple(row[c] for c in kept) for row in table.rows)
    return Table(table.title, table.text, tuple(table.columns[c] for c in kept), rows)


def _describe_hole(hole: Statistics | None) -> str:
    if hole is None:
        return UNKNOWN
    sides = " x ".join(f"{first}+{last}" for first, last in hole["band"])
    return f"{sides} (inside {share(hole.get('inside'), 0)} predicted)"


def _ids(ids: Sequence[str], most: int = 5) -> str:
    return name_examples(ids, most) or "none"
