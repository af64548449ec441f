"""Tables of ``ssl-seg evaluate``: of one checkpoint, of several, and of a cross-validation."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ssl_seg.cli.console import format_figure, format_interval, print_table, show

PARTS = {"val": "validation", "test": "sealed test", "all": "all labeled", "out_of_fold": "validation, out of fold"}
MOST_SHOWN = 12
"""Cases of a table; of more, the worst and the best half are shown."""


def add_differences(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result with the difference of each row to the first: of pooled F1 (mean over classes), on the same
    cases, with its paired 95 % interval over cases; None in the first row."""
    import numpy as np

    from ssl_seg.scores.intervals import draw_resamples, estimate_difference

    counts = [np.array([[case["counts"] for case in row["cases"]]]) for row in result["rows"]]
    rows = [{**result["rows"][0], "difference": None}]
    for row, own in zip(result["rows"][1:], counts[1:], strict=True):
        found = estimate_difference(own, counts[0], "f1", draw_resamples(own.shape[1]))
        change = {"f1": found.value, "low": found.low, "high": found.high, "why": found.why}
        rows.append({**row, "difference": change})
    return {**result, "rows": rows}


def print_evaluation(result: dict[str, Any]) -> None:
    """Print the scores of the networks of a checkpoint, those of each class, and the worst and best cases."""
    nets, shown = result["nets"], result["nets"].get(result["which"]) or next(iter(result["nets"].values()))
    title = f"{result['checkpoint']}, {PARTS[result['part']]}, {len(result['cases'])} cases"
    figures = [_list_figures(summary) for summary in nets.values()]
    rows = [[cells[0][0], *(value for _, value in cells)] for cells in zip(*figures, strict=True)]
    print_table(title, ["score", *nets], rows)
    if "classes" in shown:
        _print_classes(shown, result["which"])
    _print_cases(result, [row["label"] for row in shown.get("classes", ())])
    for line in describe_absent(shown):
        show(line)
    print_openings(result)


def describe_absent(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield what must be said where classes, or any foreground, are in none of the masks that were scored."""
    absent = summary["absent_classes"]
    if not absent:
        return
    if summary["of"] in ("foreground", "any foreground"):
        yield "no mask has any foreground: F1 is 1 where nothing is predicted, else 0"
        return
    names = ", ".join(map(str, absent))
    subject = f"class {names} is" if len(absent) == 1 else f"classes {names} are"
    yield f"{subject} in none of the masks: left out of every mean of classes"
    for row in summary["false_classes"]:
        where = f"{row['voxels']} voxels in {row['cases']} case(s)"
        yield f"class {row['label']} is predicted all the same: {where}"


def print_comparison(result: dict[str, Any]) -> None:
    """Print a row for each checkpoint, and one for their ensemble."""
    rows, cases = result["rows"], result["cases"]
    places = [Path(row["checkpoint"]).absolute() if "step" in row else None for row in rows]
    base = Path(os.path.commonpath([place.parent for place in places if place is not None]))
    names = ["ensemble" if place is None else str(place.relative_to(base)) for place in places]
    columns = ["checkpoint", "net", *_name_figures(rows[0]), "95 % interval", "to the first", "95 % interval"]
    table = [[name, row["which"], *_list_row(row), *_list_change(row)] for name, row in zip(names, rows, strict=True)]
    print_table(f"{base}, {PARTS[result['part']]}, {len(cases)} cases", columns, table)
    for line in describe_absent(rows[0]):
        show(line)
    print_openings(result)


def print_openings(result: dict[str, Any]) -> None:
    """Print how often the sealed cases that were scored have been opened."""
    if result["sealed_cases"]:
        show(
            f"{result['sealed_cases']} of these cases are sealed test cases: they have now been opened "
            f"{result['test_openings']} time(s)"
        )


def print_folds(result: dict[str, Any]) -> None:
    """Print a row for each fold of a cross-validation."""
    widest = max(result["folds"], key=lambda row: len(row.get("classes", ())) - len(row["absent_classes"]))
    rows = [[str(row["fold"]), row["which"], str(row["cases"]), *_list_row(row)] for row in result["folds"]]
    columns = ["fold", "net", "cases", *_name_figures(widest), "95 % interval"]
    print_table(f"{result['checkpoint']}, each fold on its validation cases", columns, rows)
    for row in result["folds"]:
        for line in describe_absent(row):
            show(f"fold {row['fold']}: {line}")


def _name_figures(summary: Mapping[str, Any]) -> list[str]:
    """Return the names of the columns of ``_list_row``, but for the interval."""
    of = summary["of"]
    first = ["F1"] if "foreground" not in summary else ["F1, any foreground", f"F1, {of}"]
    return [*first, "mean Dice", "mean Dice, positive cases", "mean Dice of nothing", "all-positive F1", "margin"]


def _list_row(summary: Mapping[str, Any]) -> list[str]:
    pooled, mean, trivial = summary["pooled"], summary["mean"], summary["trivial"]
    figures = [pooled["f1"], *[pooled["f1_macro"]] * ("foreground" in summary)]
    figures += [mean["dice"], mean["dice_positives"], mean["predict_nothing"], trivial["all_positive"]]
    return [*map(format_figure, figures), f"{trivial['margin']:+.3f}", _show_margin(trivial)]


def _show_margin(trivial: Mapping[str, Any]) -> str:
    return format_interval(trivial["margin_low"], trivial["margin_high"], trivial["margin_why"], "+.3f")


def _list_change(row: Mapping[str, Any]) -> list[str]:
    change = row["difference"]
    if change is None:
        return ["-", "-"]
    return [f"{change['f1']:+.3f}", format_interval(change["low"], change["high"], change["why"], "+.3f")]


def _list_figures(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the figures of a network, each with the name that says what it is of."""
    pooled, mean, trivial = summary["pooled"], summary["mean"], summary["trivial"]
    several = "foreground" in summary
    of = f", {summary['of']}" if several else ""
    rows = [(f"F1 (pooled{of})", format_figure(pooled["f1_macro"]))]
    if several:
        rows.append(("F1 (pooled, any foreground)", format_figure(pooled["f1"])))
    names = {"iou": "IoU", "precision": "precision", "recall": "recall"}
    rows += [(f"{shown} (pooled{of})", format_figure(pooled[name])) for name, shown in names.items()]
    classes = ", of its classes" if several else ""
    rows += [
        (f"Dice (mean of {mean['n_cases']} cases{classes})", format_figure(mean["dice"])),
        (f"Dice (mean of the {mean['n_positives']} positive cases{classes})", format_figure(mean["dice_positives"])),
        ("trivial: mean Dice of predicting nothing", format_figure(mean["predict_nothing"])),
        (f"trivial: all-positive F1{of}", format_figure(trivial["all_positive"])),
        (f"trivial: base-rate random F1{of}", format_figure(trivial["base_rate_random"])),
        (f"margin over all-positive{of}, 95 %", f"{trivial['margin']:+.3f} ({_show_margin(trivial)})"),
    ]
    return rows + _list_distances(mean, of)


def _list_distances(mean: Mapping[str, Any], of: str) -> list[tuple[str, str]]:
    """Return rows for each unit of the distances."""
    rows, each = [], ", each class of each case" if of else ""
    for unit, found in mean.get("distances", {}).items():
        rows += [
            (f"HD95 ({unit}{of})", format_figure(found["hd95"], 2)),
            (f"ASD ({unit}{of})", format_figure(found["asd"], 2)),
            (f"measured in {unit}{each}", f"{found['n_measured']} of {found['n_cases']}"),
            (f"missed of those in {unit} (share)", format_figure(found["missed_share"], 2)),
        ]
    return rows


def _print_classes(summary: Mapping[str, Any], net: str) -> None:
    """Print a row for each foreground class."""
    columns = ["class", "cases with it", "F1 (pooled)", "IoU", "precision", "recall", "Dice (mean of its cases)"]
    units = list(summary["mean"].get("distances", ()))
    columns += [f"{name} ({unit})" for unit in units for name in ("HD95", "ASD", "missed")]
    rows = []
    for row in summary["classes"]:
        figures = [row["pooled"][name] for name in ("dice", "iou", "precision", "recall")]
        cells = [str(row["label"]), str(row["n_positives"]), *map(format_figure, figures)]
        cells.append(format_figure(row["mean_positives"]["dice"]))
        found = [row["distances"][unit] for unit in units]
        cells += [format_figure(f[name], 2) for f in found for name in ("hd95", "asd", "missed_share")]
        rows.append(cells)
    print_table(f"classes of the {net}", columns, rows)


def _print_cases(result: Mapping[str, Any], labels: list[int]) -> None:
    """Print a row for each case, or for the worst and the best ones."""
    names = ("dice", "iou", "precision", "recall", "prevalence")
    several = [f"{name}, mean of its classes" if labels and name != "prevalence" else name for name in names]
    columns = ["case", *several, *(f"dice of class {label}" for label in labels)]
    ranked = sorted(result["cases"], key=lambda row: float(row["dice"]))
    rows = [
        [row["id"], *(format_figure(row[k]) for k in names), *map(format_figure, row.get("classes", ()))]
        for row in ranked
    ]
    title = f"cases of the {result['which']}"
    if len(rows) > MOST_SHOWN:
        title += f" (worst and best {MOST_SHOWN // 2}; --json has all)"
    print_table(title, columns, cut_middle(rows, MOST_SHOWN))


def cut_middle(rows: list[list[str]], most: int) -> list[list[str]]:
    """Return the rows; of more than ``most``, half of that at each end, and between them how many more there are."""
    half = most // 2
    return rows if len(rows) <= most else [*rows[:half], [f"... ({len(rows) - 2 * half} more)"], *rows[-half:]]
