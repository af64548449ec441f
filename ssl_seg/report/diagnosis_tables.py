"""The figures of a diagnosis as tables of text: the few that decide, and all that was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ssl_seg.data.facts import format_size
from ssl_seg.errors import name_examples
from ssl_seg.report.table import Table, TableRow
from ssl_seg.scores.text import UNKNOWN, cut, figure, number, points, share

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis

SHOWN_IMAGES = 40
"""Rows of the table of images; all of them are in the JSON."""
WORST_IMAGES = 5
"""Rows of the table of images on the page of a diagnosis."""
SHOWN_SHAPES = 3
"""Shapes of images with a key figure of their own, the most frequent ones; the others share one."""

PART_TITLES = {
    "train": "labeled training",
    "val": "validation",
    "test": "sealed test (outputs only)",
    "new": "other",
    "all": "all",
}
NET_TITLES = {
    "student": "student",
    "teacher": "teacher",
    "train_mode": "student in train mode",
    "untrained": "untrained",
    "train_probe": "on training patches",
}

Statistics = Mapping[str, Any]
"""Statistics of a diagnosis, or a part of them; ``Diagnosis`` lists them."""
TableColumn = tuple[str, str, Callable[[Any], str]]
"""Title, key of the figure, and how it is written."""


number2, number4, share1 = partial(number, digits=2), partial(number, digits=4), partial(share, digits=1)


def make_limits_table(diagnosis: Diagnosis) -> Table:
    """Return what each finding rests on."""
    rows = [(f"{f.level}: {f.code}", f.net, figure(f.value), figure(f.limit), f.source) for f in diagnosis.findings]
    columns = ("finding", "network", "value", "limit", "source of the limit")
    return Table("Findings", "What is measured, and the limit.", columns, tuple(rows))


def make_tables(diagnosis: Diagnosis) -> list[Table]:
    """Return a table for each thing that was measured; unknown columns and rows are left out."""
    statistics = diagnosis.statistics
    tables = [make(statistics) for name, make in _TABLES if statistics.get(name)]
    return [_prune(table) for table in (*tables, _images(diagnosis, "Images", SHOWN_IMAGES)) if table.rows]


def has_classes(diagnosis: Diagnosis) -> bool:
    """Return whether several foreground classes were scored."""
    return bool(diagnosis.statistics.get("scores", {}).get("of", "foreground") != "foreground")


def make_worst_images(diagnosis: Diagnosis) -> Table:
    """Return the few images with the lowest F1, and of how many; no rows where none has one."""
    scored = tuple(image for image in diagnosis.images if image.f1 is not None)
    return _prune(_images(replace(diagnosis, images=scored), "The worst images", WORST_IMAGES))


def make_key_figures(diagnosis: Diagnosis, *, brief: bool = False) -> Table:
    """Return the few figures that decide, each beside what it is to be compared with.

    Args:
        diagnosis: what was found.
        brief: leave out what matters only where something is wrong.
    """
    statistics = diagnosis.statistics
    rows: list[TableRow] = []
    for name, make in _KEY_ROWS.items():
        if statistics.get(name) and not (brief and name == "shapes"):
            rows += make(statistics)[: 1 if brief else None]
    text = "Each figure beside what to compare it with."
    return Table("Key figures", text, ("figure", "value", "compare with"), tuple(rows))


def _make_table(
    title: str, text: str, names: str, columns: Sequence[TableColumn], rows: Iterable[tuple[str, Statistics]]
) -> Table:
    """Return a table with one row for each name and its figures."""
    shown = tuple((name, *(show(figures.get(key)) for _, key, show in columns)) for name, figures in rows)
    return Table(title, text, (names, *(title for title, _, _ in columns)), shown)


def _make_list(title: str, text: str, names: str, entries: Sequence[TableColumn], figures: Statistics) -> Table:
    """Return a table with one row for each figure."""
    return Table(title, text, (names, "value"), tuple((name, show(figures.get(key))) for name, key, show in entries))


def _plain(value: object) -> str:
    return UNKNOWN if value is None else str(value)


def _span(figures: Statistics, low: str, high: str) -> str:
    """Return two shares as a range; ``-`` where they are not known."""
    return UNKNOWN if figures.get(low) is None else f"{share(figures[low])} .. {share(figures.get(high))}"


def _outputs(s: Statistics) -> Table:
    columns: list[TableColumn] = [("images", "images", _plain)]
    for kind, show in (("prob", number), ("logit", number2)):
        columns += [(f"{kind} {'sd' if n == 'std' else n}", f"{kind}_{n}", show) for n in ("mean", "std", "min", "max")]
    columns += [("in 0.5-0.7", "band_share", share), ("below 0.1", "low_share", share)]
    text = (
        "Foreground probability and log-odds of all voxels. One that has learned spans 0 to 1. A constant network was "
        "reported with mean 0.627, sd 0.070 and more than 95% of its outputs between 0.5 and 0.7; the same figures on "
        "training and on new images mean that the image does not matter."
    )
    return _make_table("Outputs", text, "images of", columns, _by_part(s))


def _quantiles(s: Statistics) -> Table:
    quantiles = ("0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99")
    rows = [
        (f"{part}: {title}", *(number(out[key].get(q), digits) for q in quantiles))
        for part, out in _by_part(s)
        for title, key, digits in (("probability", "prob_quantiles", 3), ("logit", "logit_quantiles", 2))
        if out.get(key)
    ]
    text = "Over all voxels; each column is the share of voxels below its value."
    return Table("Quantiles of the outputs", text, ("images of", *quantiles), tuple(rows))


def _shapes(s: Statistics) -> Table:
    rows = [
        (
            format_size(row["shape"]),
            row
            | {
                "identical": f"{row['same']} at {share(row.get('ratio'))}" if row.get("same", 1) > 1 else None,
                "predicted": _span(row, "ratio_min", "ratio_max"),
                "true": _span(row, "true_min", "true_max"),
            },
        )
        for row in s["shapes"]
    ]
    columns: list[TableColumn] = [
        ("images", "images", _plain),
        ("identical", "identical", _plain),
        ("closed form", "closed_form", _plain),
        ("predicted foreground", "predicted", _plain),
        ("true foreground", "true", _plain),
        ("never predicted", "never", share),
        ("always predicted", "always", share),
        ("border without predictions", "hole", _describe_hole),
    ]
    text = (
        "Predicted foreground of the images, grouped by shape. Different images with one share, and voxels "
        "that are foreground in every image, mean that the prediction does not depend on the image. A share that is a "
        "product of (covered length / length) is that of windows that leave a border uncovered."
    )
    return _make_table("Predicted foreground by image shape", text, "image shape", columns, rows)


def _equality(s: Statistics) -> Table:
    found = s["equality"]
    rows = [
        ("largest - smallest mean of an image", number(found.get("mean_spread"), 4)),
        ("largest - smallest sd of an image", number(found.get("std_spread"), 4)),
    ]
    for part in ("train", "val"):
        if found.get(f"{part}_mean") is not None:
            both = f"{number(found[f'{part}_mean'], 4)}, {number(found.get(f'{part}_std'), 4)}"
            rows.append((f"{PART_TITLES[part]} images: mean, sd", both))
    text = (
        f"Probability over {found.get('images', UNKNOWN)} images. A constant network was reported with means 0.6267 to "
        "0.6272 and sds 0.0681 to 0.0690 on training and on test images."
    )
    return Table("Do the outputs depend on the image?", text, ("figure", "value"), tuple(rows))


def _nets(s: Statistics) -> Table:
    columns: list[TableColumn] = [
        (_name_f1(s), "f1", number),
        ("F1 at best", "f1_best", number),
        ("threshold", "threshold_best", cut),
        ("AUROC", "auroc", number),
        ("AP", "average_precision", number),
        ("all-positive F1", "trivial_f1", number),
        ("prob mean", "prob_mean", number),
        ("prob sd", "prob_std", number),
        ("prob max", "prob_max", number),
        ("logit mean", "logit_mean", number),
        ("logit sd", "logit_std", number),
        ("predicted fg", "prevalence_pred", number),
        ("true fg", "prevalence_true", number),
    ]
    nets = s["nets"]
    rows = [(title, nets[name]) for name, title in NET_TITLES.items() if nets.get(name)]
    text = (
        "On the fixed patches of the validation probe, and the examined network on labeled training patches too. "
        "A teacher behind its student has an average that is too slow; train mode far from eval mode has wrong running "
        "statistics; no gain over the untrained network means that nothing was learned."
    )
    return _make_table("Student, teacher, modes, and an untrained network", text, "network", columns, rows)


def _scores(s: Statistics) -> Table:
    trivial = s.get("trivial") or {}
    entries: list[TableColumn] = [
        ("F1 (pooled)", "f1", number),
        ("IoU (pooled)", "iou", number),
        ("precision", "precision", number),
        ("recall", "recall", number),
        ("accuracy", "accuracy", number),
        ("F1 (mean of the images)", "f1_mean", number),
        ("F1 (mean of the images with foreground)", "f1_mean_positives", number),
        ("trivial: no foreground, F1 (mean of the images)", "f1_mean_of_nothing", number),
        ("bias", "bias", _plain),
    ]
    of_trivial: list[TableColumn] = [
        ("true foreground", "prevalence", number),
        ("trivial: foreground everywhere, F1", "all_positive", number),
        ("trivial: no foreground, F1", "all_negative", number),
        ("trivial: at random, F1", "base_rate_random", number),
        ("F1 above the best trivial one", "margin", number),
    ]
    entries += [entry for entry in of_trivial if entry[1] in trivial]
    text = (
        f"Scores of any foreground, on {s['scores'].get('images', UNKNOWN)} whole images. Bias is recall where recall "
        "is far "
        "above precision: too much is predicted; precision where too little is."
    )
    return _make_list("Precision, recall, and trivial predictors", text, "score", entries, {**trivial, **s["scores"]})


def _sweep(s: Statistics) -> Table:
    sweep = s["sweep"]
    marks = {round(sweep["threshold"], 4): "in force"}
    if sweep.get("best_threshold") is not None:
        marks[round(sweep["best_threshold"], 4)] = "best"
    pairs = zip(sweep["thresholds"], sweep["f1"], strict=True)
    rows = tuple((cut(threshold), number(f1), marks.get(round(threshold, 4), "")) for threshold, f1 in pairs)
    gain = ""
    if sweep.get("best_f1") is not None and sweep.get("f1_at_threshold") is not None:
        gain = f" The best threshold gains {number(sweep['best_f1'] - sweep['f1_at_threshold'])}."
    text = f"F1 over all voxels.{gain} A threshold is chosen on validation images, never on test images."
    return Table("Threshold sweep", text, ("threshold", "F1", ""), rows)


def _foreground(s: Statistics) -> Table:
    spread = s["foreground"]
    columns: list[TableColumn] = [("images", "images", _plain)]
    columns += [(name, name, share) for name in ("mean", "median", "sd", "min", "max")]
    rows = [(title, spread[key]) for key, title in (("pred", "predicted"), ("true", "true")) if spread.get(key)]
    text = "Share of foreground of each image."
    if spread.get("overestimate") is not None:
        text += f" Predicted minus true: {points(spread['overestimate'])}."
    return _make_table("Foreground distribution", text, "", columns, rows)


def _foreground_histogram(s: Statistics) -> Table:
    """Return the images in each bin of the foreground share that holds any."""
    spread = {title: s["foreground"].get(key) for key, title in (("pred", "predicted"), ("true", "true"))}
    counts = {title: figures["counts"] for title, figures in spread.items() if figures and "counts" in figures}
    filled = [b for b in range(max(map(len, counts.values()), default=0)) if any(own[b] for own in counts.values())]
    width = 1 / max(map(len, counts.values()), default=1)
    rows = [
        (f"{share(b * width, 0)} .. {share((b + 1) * width, 0)}", *(str(own[b]) for own in counts.values()))
        for b in filled
    ]
    text = "Images by their share of foreground. Predictions in one bin, true shares in many: the image is ignored."
    return Table("Foreground histogram", text, ("share of foreground", *counts), tuple(rows))


def _trivial_losses(s: Statistics) -> Table:
    losses = s["trivial_losses"]
    columns: list[TableColumn] = [("weight", "weight", lambda weight: "" if weight is None else number(weight, 2))]
    columns += [(name.replace("_", " "), name, number) for name in ("network", "all_positive", "all_negative")]
    text = (
        "The run's own supervised loss on the validation probe. A trivial prediction with a loss near or below that of "
        "the network is where the training can get stuck."
    )
    rows = [("total", losses), *losses.get("components", {}).items()]
    return _make_table("Loss of trivial predictions", text, "component", columns, rows)


def _batches(s: Statistics) -> Table:
    batches = s["batches"]
    entries: list[TableColumn] = [
        ("foreground, mean", "mean", share),
        ("foreground, least .. most", "range", _plain),
        ("expected at least", "expected", share),
        ("expected at most", "most_expected", share),
        ("patches with any foreground", "positive_patches", share),
    ]
    each = ", ".join(share(value, 1) for value in batches.get("foreground", []))
    notes = [note if note.endswith(".") else f"{note}." for note in batches.get("notes", [])]
    text = " ".join([f"{batches.get('n', UNKNOWN)} training batches, with {each} foreground.", *notes])
    figures = batches | {"range": f"{share(batches.get('min'))} .. {share(batches.get('max'))}"}
    return _make_list("Composition of the training batches", text, "figure", entries, figures)


def _inputs(s: Statistics) -> Table:
    entries: list[TableColumn] = [
        ("lowest rank correlation, raw and normalized", "rank_correlation", number4),
        ("largest difference, training and prediction input", "path_difference", partial(figure, digits=3)),
        ("largest share of voxels at the lowest raw value", "clipped_low", share),
        ("largest share of voxels at the highest raw value", "clipped_high", share),
        ("constant images", "constant", lambda ids: name_examples(ids or [], 5) or "none"),
    ]
    text = (
        f"{s['inputs'].get('images', UNKNOWN)} images. A rank correlation of 1 means that normalization keeps the "
        "order of the gray values, and with it all that can be seen; a difference of 0, that training and prediction "
        "feed the network the same values."
    )
    return _make_list("Input of the network", text, "figure", entries, s["inputs"])


def _run(s: Statistics) -> Table:
    run = s["run"]
    last = run.get("last") or {}
    rows = [
        ("steps", str(run.get("steps", UNKNOWN))),
        ("status", str(run.get("status") or UNKNOWN)),
        (
            f"last {last.get('f1_title', 'F1')}, loss",
            f"{number(last.get('f1'))}, {number(last.get('loss'))} at step {last.get('step', UNKNOWN)}",
        ),
    ]
    for v in run.get("verdicts", []):
        rows.append((f"verdict at step {v['step']}", f"{v['level']}: {', '.join(v['codes']) or 'nothing found'}"))
    rows += [(f"action at step {a['step']}", str(a["action"])) for a in run.get("actions", [])]
    return Table("History of the run", f"From `{run.get('directory', UNKNOWN)}`.", ("", "value"), tuple(rows))


_TABLES: tuple[tuple[str, Callable[[Statistics], Table]], ...] = (
    ("outputs", _outputs),
    ("outputs", _quantiles),
    ("shapes", _shapes),
    ("equality", _equality),
    ("nets", _nets),
    ("scores", _scores),
    ("sweep", _sweep),
    ("foreground", _foreground),
    ("foreground", _foreground_histogram),
    ("trivial_losses", _trivial_losses),
    ("batches", _batches),
    ("inputs", _inputs),
    ("run", _run),
)
"""What was measured, and the table that shows it."""


def _images(diagnosis: Diagnosis, title: str, most: int) -> Table:
    """Return the images, those with the lowest F1 first, then those that are not scored by their foreground."""
    images = sorted(diagnosis.images, key=lambda i: (i.f1 is None, i.f1 or 0.0, i.ratio_pred, i.id))
    rows = [
        (
            i.id,
            PART_TITLES[i.part] if diagnosis.kind == "checkpoint" else UNKNOWN,
            format_size(i.shape),
            f"{number(i.prob.mean)} +- {number(i.prob.std)}",
            f"{number(i.prob.low)} .. {number(i.prob.high)}",
            UNKNOWN if i.logit is None else f"{number(i.logit.mean, 2)} +- {number(i.logit.std, 2)}",
            share(i.ratio_pred),
            share(i.ratio_true),
            number(i.f1),
        )
        for i in images[:most]
    ]
    columns = ("image", "part", "shape", "prob", "prob range", "logit", "predicted fg", "true fg", "F1")
    text = "Lowest F1 first, then by predicted foreground."
    if has_classes(diagnosis):
        text += " F1 is of any foreground."
    if len(images) > len(rows):
        text += f" {len(rows)} of {len(images)}; all are in `report.json`."
    return Table(title, text, columns, tuple(rows))


def _by_part(s: Statistics) -> list[tuple[str, Statistics]]:
    """Return the outputs of each part and of all, by title; those of all alone where there is one part."""
    parts = [(title, s["outputs"][part]) for part, title in PART_TITLES.items() if s["outputs"].get(part)]
    return parts[1:] if len(parts) == 2 else parts


def _prune(table: Table) -> Table:
    """Return the table without its unknown columns."""
    kept = [c for c in range(len(table.columns)) if c == 0 or any(row[c] not in (UNKNOWN, "") for row in table.rows)]
    rows = tuple(tuple(row[c] for c in kept) for row in table.rows)
    return Table(table.title, table.text, tuple(table.columns[c] for c in kept), rows)


def _describe_hole(hole: Statistics | None) -> str:
    if hole is None:
        return UNKNOWN
    sides = " x ".join(f"{first}+{last}" for first, last in hole["band"])
    return f"{sides} (inside {share(hole.get('inside'), 0)} predicted)"


def _key_outputs(s: Statistics) -> list[TableRow]:
    out = s["outputs"]["all"]
    spread = f"{number(out.get('prob_mean'))} +- {number(out.get('prob_std'))}"
    extent = f"{number(out.get('prob_min'))} .. {number(out.get('prob_max'))}"
    rows: list[TableRow] = [
        ("probability, mean +- sd", spread, "reported constant networks: sd 0.068 to 0.070"),
        ("probability, lowest .. highest", extent, "0 .. 1 once something is learned"),
    ]
    if out.get("band_share") is not None:
        rows.append(("outputs between 0.5 and 0.7", share(out["band_share"]), "above 95% in a reported collapse"))
    return rows


def _key_shapes(s: Statistics) -> list[TableRow]:
    rows: list[TableRow] = []
    shapes = sorted(s["shapes"], key=lambda row: -row["images"])
    for row in shapes[:SHOWN_SHAPES]:
        value = _span(row, "ratio_min", "ratio_max")
        true = "" if row.get("true_min") is None else f"true: {_span(row, 'true_min', 'true_max')}"
        if row["images"] > 1 and row.get("same", 1) >= row["images"] / 2:
            value = f"{share(row.get('ratio'))} in {row['same']} of {row['images']}"
            true = true or (f"= {row['closed_form']}" if row.get("closed_form") else "images differ, so shares do")
        rows.append((f"predicted foreground, {format_size(row['shape'])}", value, true))
    if others := shapes[SHOWN_SHAPES:]:
        known = [row for row in others if row.get("true_min") is not None]
        true = f"true: {_join_spans(known, 'true_min', 'true_max')}" if known else ""
        value = _join_spans(others, "ratio_min", "ratio_max")
        rows.append((f"predicted foreground, {len(others)} other shapes", value, true))
    return rows


def _join_spans(rows: Sequence[Statistics], low: str, high: str) -> str:
    return f"{share(min(row[low] for row in rows))} .. {share(max(row[high] for row in rows))}"


def _key_scores(s: Statistics) -> list[TableRow]:
    scores, trivial, sweep = s["scores"], s.get("trivial") or {}, s.get("sweep") or {}
    beside = f"all-positive: {number(trivial.get('all_positive'))}" if trivial else ""
    if sweep.get("best_f1") is not None and sweep["best_threshold"] != sweep["threshold"]:
        beside += f"; at {cut(sweep['best_threshold'])}: {number(sweep['best_f1'])}"
    both = f"{number(scores.get('precision'))}, {number(scores.get('recall'))}"
    images = f"({scores['images']} image{'s' * (scores['images'] != 1)})"
    trivial_f1 = f"all-positive: {number(scores.get('trivial_f1_macro'))}"
    own = (f"F1, {scores['of']} {images}", number(scores["f1_macro"]), trivial_f1)
    of_classes = [own] if "mean" in scores["of"] else []
    return [
        *of_classes,
        (f"{_name_f1(s)} {images}", number(scores.get("f1")), beside),
        ("precision, recall", both, f"bias: {scores.get('bias', UNKNOWN)}"),
    ]


def _name_f1(s: Statistics) -> str:
    """Return what the F1 of foreground is called: with its threshold, unless masks or several classes have none."""
    cut = s.get("threshold", (s.get("sweep") or {}).get("threshold"))
    return "F1 of any foreground" if cut is None else f"F1 at {cut:g}"


def _key_foreground(s: Statistics) -> list[TableRow]:
    pred, true = s["foreground"].get("pred"), s["foreground"].get("true")
    if pred is None:
        return []
    beside = ""
    if true is not None:
        over = points(s["foreground"].get("overestimate"))
        beside = f"true: {share(true['mean'], 1)} +- {share(true['sd'], 1)} ({over})"
    return [("foreground of an image, mean +- sd", f"{share(pred['mean'], 1)} +- {share(pred['sd'], 1)}", beside)]


def _key_nets(s: Statistics) -> list[TableRow]:
    nets = s["nets"]
    student, teacher, free = (nets.get(name) for name in ("student", "teacher", "train_mode"))
    rows: list[TableRow] = []
    if student and teacher:
        scores, aurocs = (", ".join(number(net.get(key), digits) for net in (student, teacher))
                          for key, digits in (("f1", 3), ("auroc", 2)))  # fmt: skip
        untrained = f"untrained: {number(nets['untrained'].get('f1'))}" if "untrained" in nets else ""
        rows.append((f"probe, {_name_f1(s)}: student, teacher", scores, untrained))
        rows.append(("AUROC of student, teacher", aurocs, "chance: 0.50"))
    if student and free:
        rows.append(
            (f"probe, {_name_f1(s)}: train mode", number(free.get("f1")), f"eval mode: {number(student.get('f1'))}")
        )
    return rows


def _key_batches(s: Statistics) -> list[TableRow]:
    batches = s["batches"]
    value = f"{share1(batches.get('mean'))} ({share1(batches.get('min'))} .. {share1(batches.get('max'))})"
    least, most = share1(batches.get("expected")), share1(batches.get("most_expected"))
    beside = f"expected: {least}" if most in (least, UNKNOWN) else f"expected: {least} to {most}"
    return [("foreground of a training batch", value, beside)]


_KEY_ROWS: dict[str, Callable[[Statistics], list[TableRow]]] = {
    "outputs": _key_outputs,
    "shapes": _key_shapes,
    "scores": _key_scores,
    "foreground": _key_foreground,
    "nets": _key_nets,
    "batches": _key_batches,
}
