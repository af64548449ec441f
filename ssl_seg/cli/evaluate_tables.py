"""Tables of ``ssl-seg evaluate``: of one checkpoint, of several, and of a cross-validation."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_seg.cli.console import show
from ssl_seg.cli.tables import print_table
from ssl_seg.errors import DataError, counted
from ssl_seg.files import format_csv, write_text
from ssl_seg.report.markdown import format_table
from ssl_seg.report.score_cells import Row, describe_absent, make_object_rows, show_difference, show_margin
from ssl_seg.report.table import Table, to_table
from ssl_seg.scores.text import number

PARTS = {"val": "validation", "test": "sealed test", "all": "all labeled", "out_of_fold": "validation, out of fold"}
RATIOS = {"iou": "IoU", "precision": "precision", "recall": "recall", "specificity": "specificity"}
DISTANCES = {"hd95": "HD95", "asd": "ASD", "surface_dice": "surface Dice", "missed_share": "missed"}
MOST_SHOWN = 12
"""Cases of a table; of more, the worst and the best half are shown."""


Part = Table | str
"""A table, or a line of text."""


def print_result(result: Row, *, markdown: bool = False) -> None:
    """Print what ``evaluate`` returns as tables and lines, on request as Markdown."""
    parts = _describe_comparison(result) if "rows" in result else _describe_evaluation(result)
    for part in parts:
        match part:
            case str() as line:
                show(f"- {line}" if markdown else line)
            case Table() as table if markdown:
                show(f"## {table.title}\n\n{format_table(table)}\n")
            case Table() as table:
                print_table(table)


def _describe_evaluation(result: Row) -> Iterator[Part]:
    """Yield the folds of a cross-validation, the scores of each network and class, the worst and the best cases."""
    if "folds" in result:
        yield from _describe_folds(result)
    nets, shown = result["nets"], result["nets"].get(result["which"]) or next(iter(result["nets"].values()))
    finds_empty = any(_count_empty(summary["mean"]) for summary in nets.values())
    figures = {net: _list_figures(summary, finds_empty=finds_empty) for net, summary in nets.items()}
    names = next(iter(figures.values()))
    rows = [{"score": name, **{net: own[name] for net, own in figures.items()}} for name in names]
    yield to_table(f"{result['checkpoint']}, {PARTS[result['part']]}, {counted(len(result['cases']), 'case')}", rows)
    if "classes" in shown:
        yield to_table(f"classes of the {result['which']}", [_make_class_row(row) for row in shown["classes"]])
    if "objects" in shown:
        found = shown["objects"]
        title = f"objects of the {result['which']}: {found['true']} in {counted(found['images'], 'mask')}"
        yield to_table(title, make_object_rows(found))
    yield _list_cases(result, [row["label"] for row in shown.get("classes", ())])
    yield from describe_absent(shown)
    if "targets" in shown:
        yield to_table(f"targets, {result['which']}", [_make_target_row(row) for row in shown["targets"]])
    yield from _describe_openings(result)


def _describe_comparison(result: Row) -> Iterator[Part]:
    """Yield a row for each checkpoint, and one for their ensemble."""
    places = [Path(row["checkpoint"]).absolute() if "step" in row else None for row in result["rows"]]
    base = Path(os.path.commonpath([place.parent for place in places if place is not None]))
    rows = [
        {
            "checkpoint": "ensemble" if place is None else str(place.relative_to(base)),
            "net": row["which"],
            **_make_network_cells(row, result["rows"][0]["of"]),
            **show_difference(row["difference"], "to the first"),
        }
        for place, row in zip(places, result["rows"], strict=True)
    ]
    yield to_table(f"{base}, {PARTS[result['part']]}, {counted(len(result['cases']), 'case')}", rows)
    yield from describe_absent(result["rows"][0])
    yield from _describe_openings(result)


def _describe_openings(result: Row) -> Iterator[str]:
    """Yield how often the sealed cases that were scored have been opened."""
    if result["sealed_cases"]:
        yield (
            f"{result['sealed_cases']} of these cases are sealed test cases: they have now been opened "
            + counted(result["test_openings"], "time")
        )


def _describe_folds(result: Row) -> Iterator[Part]:
    """Yield a row for each fold of a cross-validation."""
    folds = result["folds"]
    widest = max(folds, key=lambda row: len(row.get("classes", ())) - len(row["absent_classes"]))
    rows = [
        {"fold": row["fold"], "net": row["which"], "cases": row["cases"], **_make_network_cells(row, widest["of"])}
        for row in folds
    ]
    yield to_table(f"{result['checkpoint']}, each fold on its validation cases", rows)
    for row in folds:
        for line in describe_absent(row):
            yield f"fold {row['fold']}: {line}"


def _make_network_cells(summary: Row, of: str) -> dict[str, Any]:
    """Return the scores of a network for a table of networks; ``of`` says what those of several classes are of."""
    pooled, mean, trivial = summary["pooled"], summary["mean"], summary["trivial"]
    several = {"F1, any foreground": pooled["f1"], f"F1, {of}": pooled["f1_macro"]}
    return {
        **(several if "foreground" in summary else {"F1": pooled["f1"]}),
        "AP of voxels": pooled["average_precision"],
        "mean Dice": mean["dice"],
        "mean Dice, positive cases": mean["dice_positives"],
        "all-negative Dice": mean["predict_nothing"],
        "all-positive F1": trivial["all_positive"],
        "margin": trivial["margin"],
        "95 % interval": show_margin(trivial),
        "threshold": _show_threshold(summary),
        **({"targets met": _count_met(summary["targets"])} if "targets" in summary else {}),
    }


def _show_threshold(summary: Row) -> str:
    cut = "likeliest class" if summary["threshold"] is None else f"{summary['threshold']:.3g}"
    return f"{cut} ({summary['threshold_from']})"


def _count_met(targets: Sequence[Row]) -> str:
    return f"{sum(row['met'] for row in targets)} of {len(targets)}"


def _make_target_row(row: Row) -> dict[str, Any]:
    wanted = f"{row['low']:g} .. {row['high']:g}"
    return {"target": row["target"], "wanted": wanted, "value": row["value"], "": "met" if row["met"] else "NOT MET"}


def _count_empty(mean: Row) -> int:
    """Return how many of the empty cases are found empty."""
    return int(mean["n_cases"] - mean["n_positives"] - mean["n_hallucinated"])


def _list_figures(summary: Row, *, finds_empty: bool) -> dict[str, Any]:
    """Return the figures of a network, each with the name that says what it is of.

    Args:
        finds_empty: whether this network, or one beside it, finds an empty case empty.
    """
    pooled, mean, trivial = summary["pooled"], summary["mean"], summary["trivial"]
    several = "foreground" in summary
    of, classes = (f", {summary['of']}", ", of its classes") if several else ("", "")
    negatives = mean["n_cases"] - mean["n_positives"]
    return {
        "threshold": _show_threshold(summary),
        f"F1 (pooled{of})": pooled["f1_macro"],
        **({"F1 (pooled, any foreground)": pooled["f1"]} if several else {}),
        **{f"{shown} (pooled{of})": pooled[name] for name, shown in RATIOS.items()},
        f"AP of voxels (pooled{of})": pooled["average_precision"],
        f"Dice (mean of {counted(mean['n_cases'], 'case')}{classes})": mean["dice"],
        **({"Dice (the same, cases found empty as 0)": mean["dice_empty_zero"]} if finds_empty else {}),
        f"Dice (mean of the {counted(mean['n_positives'], 'positive case')}{classes})": mean["dice_positives"],
        "missed: nothing predicted": f"{mean['n_missed']} of {mean['n_positives']} positive cases",
        "hallucinated": f"{mean['n_hallucinated']} of {negatives} empty cases",
        "trivial: mean Dice of predicting nothing": mean["predict_nothing"],
        f"trivial: all-positive F1{of}": trivial["all_positive"],
        f"trivial: base-rate random F1 and AP{of}": trivial["base_rate_random"],
        f"margin over all-positive{of}, 95 %": f"{trivial['margin']:.3f} ({show_margin(trivial)})",
        **_list_distances(mean, of),
    }


def _list_distances(mean: Row, of: str) -> dict[str, str]:
    """Return the figures for each unit of the distances."""
    figures: dict[str, str] = {}
    each = ", each class of each case" if of else ""
    for unit, found in mean.get("distances", {}).items():
        figures |= {
            f"HD95 ({unit}{of})": number(found["hd95"], 2),
            f"ASD ({unit}{of})": number(found["asd"], 2),
            f"surface Dice within a voxel ({unit}{of})": number(found["surface_dice"]),
            f"measured in {unit}{each}": f"{found['n_measured']} of {found['n_cases']}",
            f"missed of those in {unit} (share)": number(found["missed_share"], 2),
        }
    return figures


def _make_class_row(row: Row) -> dict[str, Any]:
    """Return the row of a foreground class."""
    distances = row.get("distances", {})
    return {
        "class": row["label"],
        "cases with it": row["n_positives"],
        "F1 (pooled)": row["pooled"]["dice"],
        **{shown: row["pooled"][name] for name, shown in RATIOS.items()},
        "AP of voxels": row["pooled"]["average_precision"],
        "Dice (mean of its cases)": row["mean_positives"]["dice"],
        "hallucinated cases": row["hallucinated_cases"],
        **{
            f"{shown} ({unit})": number(found[name], 2)
            for unit, found in distances.items()
            for name, shown in DISTANCES.items()
        },
    }


def _list_cases(result: Row, labels: Sequence[int]) -> Table:
    """Return a row for each case, or for the worst and the best ones."""
    rows = [
        {
            "case": row["id"],
            "dice": row["dice"],
            **{name: row[name] for name in RATIOS},
            "AP": row["average_precision"],
            "prevalence": row["prevalence"],
            "predicted": row["prevalence_pred"],
            **{f"class {label}": dice for label, dice in zip(labels, row.get("classes", ()), strict=False)},
        }
        for row in sorted(result["cases"], key=lambda row: float(row["dice"]))
    ]
    title = f"cases of the {result['which']}" + ", mean of the classes in each, and Dice by class" * bool(labels)
    if len(rows) > MOST_SHOWN:
        title += f" (worst and best {MOST_SHOWN // 2}; --csv has all)"
    return to_table(title, cut_middle(rows, MOST_SHOWN))


def write_cases(path: Path, result: Mapping[str, Any]) -> None:
    """Write a row for each network and case as CSV: all figures, those of each class in a column; None is empty.

    Raises:
        DataError: when it cannot be written.
    """
    rows = [
        {"checkpoint": net["checkpoint"], "net": net["which"], **_flatten_case(case, net.get("classes", ()))}
        for net in result.get("rows", [result])
        for case in net["cases"]
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, format_csv(columns, rows))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error


def _flatten_case(case: Row, classes: Sequence[Row]) -> dict[str, Any]:
    """Return the figures of a case, with those of each class under the class's mask value."""
    by_class = {
        "dice": case.get("classes", ()),
        "average_precision": case.get("average_precision_classes", ()),
        "hd95": case.get("hd95_classes", ()),
        "asd": case.get("asd_classes", ()),
    }
    return {name: value for name, value in case.items() if not isinstance(value, list)} | {
        f"{name}_{row['label']}": value
        for name, values in by_class.items()
        for row, value in zip(classes, values, strict=False)
    }


def cut_middle(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Return the rows; of more than ``most``, half of that at each end, and between them how many more there are."""
    half = most // 2
    if len(rows) <= most:
        return rows
    return [*rows[:half], {next(iter(rows[0])): f"... ({len(rows) - 2 * half} more)"}, *rows[-half:]]
