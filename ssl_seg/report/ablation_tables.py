"""An ablation as text: a row for each cell, and a table of the arms for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ssl_seg.errors import counted
from ssl_seg.files import format_csv
from ssl_seg.report.markdown import format_table
from ssl_seg.report.table import Table
from ssl_seg.scores.intervals import METRICS, Estimate, compute_class_scores, compute_score
from ssl_seg.scores.text import UNKNOWN, number
from ssl_seg.studies.ablation.cells import CellResult
from ssl_seg.studies.ablation.label_savings import LabelsEquivalent
from ssl_seg.studies.ablation.stats import PairedComparison
from ssl_seg.studies.ablation.summary import AblationSummary, ArmSummary, compute_trivial_scores

CELL_COLUMNS = (
    "id",
    "method",
    "recipe",
    "start",
    "labels",
    "labeled",
    "split_seed",
    "seed",
    "status",
    "f1",
    "dice",
    "dice_positive_cases",
    "f1_all_positive",
    "dice_all_positive",
    "f1_predict_nothing",
    "dice_predict_nothing",
    "cases",
    "positive_cases",
    "step",
    "seconds",
    "codes",
    "message",
)
PART_NAMES = {"val": "validation", "test": "test"}
METRIC_NAMES = {"dice": "mean Dice of the cases", "f1": "F1 of all voxels"}


def name_score(summary: AblationSummary) -> str:
    """Return what the scores are and, of several classes, that they are means of them."""
    number = len(summary.label_values) - len(summary.absent_classes)
    of = {"dice": " (in each, of its classes)", "f1": f" (mean of {number} class{'es' * (number > 1)})"}[summary.metric]
    return METRIC_NAMES[summary.metric] + of * (len(summary.label_values) > 1)


def format_cells_csv(results: Sequence[CellResult]) -> str:
    """Return ``results.csv``: a line for each cell, done or not. What is not known is empty.

    ``dice`` is the mean over cases of the mean over the classes of a case, ``f1`` the mean over classes. Of several
    classes there is a column for each: ``f1_class_7`` is that of mask value 7, and ``dice_class_7`` its mean over the
    cases that have it.
    """
    rows = [_make_cell_row(cell) for cell in results]
    of_classes = sorted({key for row in rows for key in row if "_class_" in key}, key=lambda key: (key[0] != "f", key))
    place = CELL_COLUMNS.index("cases")
    return format_csv([*CELL_COLUMNS[:place], *of_classes, *CELL_COLUMNS[place:]], rows)


def _make_cell_row(cell: CellResult) -> dict[str, object]:
    row: dict[str, object] = {
        "id": cell.id,
        "method": cell.arm.method,
        "recipe": cell.arm.recipe,
        "start": cell.arm.start,
        "labels": f"{cell.arm.labels:g}",
        "labeled": cell.labeled,
        "split_seed": cell.split_seed,
        "seed": cell.seed,
        "status": cell.status,
        "step": cell.step,
        "seconds": None if cell.seconds is None else f"{cell.seconds:.1f}",
        "codes": " ".join(cell.codes),
        "message": cell.message,
    }
    if cell.counts is not None:
        positive = cell.counts[..., [0, 2]].any(axis=(1, 2))
        row["cases"], row["positive_cases"] = len(cell.counts), int(positive.sum())
        if positive.any():
            row["dice_positive_cases"] = f"{float(compute_score(cell.counts[positive], 'dice')):.6f}"
        for metric in METRICS:
            if len(cell.label_values) > 1:
                scores = compute_class_scores(cell.counts, metric)
                found = zip(cell.label_values, scores, strict=True)
                row |= {f"{metric}_class_{v}": "" if np.isnan(score) else f"{score:.6f}" for v, score in found}
            everywhere, nothing = compute_trivial_scores(cell.counts, metric)
            row[metric] = f"{float(compute_score(cell.counts, metric)):.6f}"
            row[f"{metric}_all_positive"], row[f"{metric}_predict_nothing"] = f"{everywhere:.6f}", f"{nothing:.6f}"
    return row


def make_arm_table(summary: AblationSummary) -> Table:
    """Return the table of the arms, and below them the predictors that have not looked at the image.

    Recipe and start are left out where all arms have the same, and components of variance where none is known.
    """
    arms = [a.arm for a in summary.arms]
    rows = [_make_arm_row(a, summary) for a in summary.arms]
    for name, score in (("(all positive)", summary.all_positive), ("(nothing)", summary.predict_nothing)):
        rows.append(dict.fromkeys(rows[0], "") | {"method": name, summary.metric: number(score)})
    dropped = {name for name in ("recipe", "start") if len({getattr(arm, name) for arm in arms}) == 1}
    dropped |= {name for name in ("split sd", "seed sd") if all(row[name] in (UNKNOWN, "") for row in rows)}
    if summary.metric == "f1" or summary.positives == summary.cases:
        dropped.add("positive cases")
    columns = tuple(name for name in rows[0] if name not in dropped)
    text = (
        f"Score: {name_score(summary)}, {counted(summary.cases, f'{PART_NAMES[summary.part]} case')}, mean over runs. "
        "The interval of a mean is that of these runs for new cases; p and the interval of a difference hold for new "
        "cases and, with two and more independent runs, for new runs. "
        f"Labels-equivalent: labels with which {summary.baseline} scores the same."
    )
    return Table("Ablation", text, columns, tuple(tuple(row[name] for name in columns) for row in rows))


def _make_arm_row(arm: ArmSummary, summary: AblationSummary) -> dict[str, str]:
    spread, against, equivalent = arm.spread, arm.against, arm.labels_equivalent
    identical = against is not None and against.identical
    test = against.test if against and not identical else None
    same = "identical predictions" if identical else "same training" if arm.same_as else UNKNOWN
    return {
        "method": arm.arm.method,
        "recipe": arm.arm.recipe,
        "start": arm.arm.start,
        "labels": format_labels(arm.arm.labels),
        "labeled": UNKNOWN if arm.labeled is None else f"{arm.labeled:.4g}",
        "runs": _format_runs(arm),
        summary.metric: number(arm.mean.value if arm.mean else None),
        "positive cases": number(arm.positive),
        **{f"class {v}": number(score) for v, score in _pair_classes(arm, summary)},
        "95 % interval": _format_interval(arm.mean),
        "run sd": number(spread.total if spread else None),
        "split sd": number(spread.split if spread else None),
        "seed sd": number(spread.seed if spread else None),
        f"minus {summary.baseline}": same if test is None else f"{test.difference:+.3f}",
        "its interval": _format_interval(test, "+.3f"),
        "p": format_p(test.p if test else None),
        "Holm p": format_p(against.holm if against and test else None),
        "labels equivalent": UNKNOWN if equivalent is None else _format_labels_equivalent(equivalent),
    }


def _pair_classes(arm: ArmSummary, summary: AblationSummary) -> list[tuple[int, float | None]]:
    """Return the mask values of the classes with their scores; nothing where there is one class only."""
    values = summary.label_values if len(summary.label_values) > 1 else ()
    return list(zip(values, arm.classes or [None] * len(values), strict=True)) if values else []


def _format_labels_equivalent(found: LabelsEquivalent) -> str:
    return f"{found.value} [{found.low}, {found.high}]" if found.low is not None else f"{found.value} [{found.why}]"


def format_labels(labels: float) -> str:
    """Return a share of the labeled pool in percent, or a number of cases."""
    return f"{labels:.3g} cases" if labels > 1 else f"{100 * labels:.3g} %"


def format_p(p: float | None) -> str:
    """Return a p value with three decimals, that it is below 0.001, or ``-`` where there is none."""
    if p is None:
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _format_interval(estimate: Estimate | PairedComparison | None, digits: str = ".3f") -> str:
    if estimate is None:
        return UNKNOWN
    if estimate.low is None or estimate.high is None:
        return estimate.why
    return f"[{estimate.low:{digits}}, {estimate.high:{digits}}]"


def _format_runs(summary: ArmSummary) -> str:
    """Return how many runs have a score, and what became of the others."""
    bad = [f"{n} {status}" for status in ("collapsed", "refused", "failed", "missing") if (n := summary.count(status))]
    scored = sum(score is not None for score in summary.scores)
    return f"{scored} of {len(summary.cells)} ({', '.join(bad)})" if bad else str(scored)


def format_markdown(summary: AblationSummary) -> str:
    """Return title, table, how to read it, and warnings as Markdown."""
    table = make_arm_table(summary)
    warnings = [f"- {warning}" for warning in summary.warnings]
    return "\n".join([f"## {table.title}", "", format_table(table), "", table.text, "", *warnings, ""])


def format_latex(summary: AblationSummary) -> str:
    r"""Return a table for LaTeX, with ``\usepackage{booktabs}``; warnings are comments."""
    table = make_arm_table(summary)
    names, arms = table.columns.index("labels"), len(summary.arms)
    lines = [" & ".join(map(escape_latex, row)) + r" \\" for row in table.rows]
    return "\n".join(
        [
            *(f"% {w}" for w in summary.warnings),
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape_latex(table.text)}}}",
            rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(table.columns) - names)}}}",
            r"\toprule",
            " & ".join(map(escape_latex, table.columns)) + r" \\",
            r"\midrule",
            *lines[:arms],
            r"\midrule",
            *lines[arms:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<=": r"$\leq$",
    ">=": r"$\geq$",
    "<": "$<$",
    ">": "$>$",
    **{char: f"\\{char}" for char in "_%&#${}"},
}
_SPECIAL = re.compile(r"<=|>=|(?<![\w)])-(?=\d)|[\\~^<>_%&#${}]")


def escape_latex(text: str) -> str:
    """Return the text with everything that LaTeX would read as a command made visible, and minus signs as such."""
    return _SPECIAL.sub(lambda found: _LATEX.get(found[0], "$-$"), text)
