"""A diagnosis in short: what was looked at, the verdict with its findings and causes, and the figures that decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ssl_seg.report.diagnosis_text import (
    PART_TITLES,
    UNKNOWN,
    Statistics,
    Table,
    cut,
    list_evidence,
    number,
    points,
    share,
    size,
)

if TYPE_CHECKING:
    from ssl_seg.diagnose.result import Diagnosis

SHOWN_SHAPES = 3
"""Shapes of images with a row of their own, the most frequent ones; the others share one."""

FigureRow = tuple[str, str, str]
"""Figure, value, and what to compare it with."""


def describe_parts(statistics: Statistics) -> str:
    """Return how many images of which part were looked at, in words."""
    parts = statistics.get("looked_at", {})
    counted = [(PART_TITLES[name], parts[name]) for name in PART_TITLES if isinstance(parts.get(name), Mapping)]
    if len(counted) == 1 and counted[0][0] == PART_TITLES["new"]:
        return f"{counted[0][1]['used']} of {counted[0][1]['of']} images"
    return ", ".join(f"{c['used']} of {c['of']} {title}" for title, c in counted if c["of"]) + " images"


def make_key_figures(diagnosis: Diagnosis, *, brief: bool = False) -> Table:
    """Return the few figures that decide, each beside what it is to be compared with.

    Args:
        diagnosis: what was found.
        brief: leave out what matters only where something is wrong.
    """
    groups = [make(diagnosis.statistics) for make in _KEY_ROWS if not brief or make is not _key_shapes]
    rows = [row for group in groups for row in (group[:1] if brief else group)]
    text = "Each beside what it is to be compared with."
    return Table("Key figures", text, ("figure", "value", "compare with"), tuple(rows))


def format_verdict(diagnosis: Diagnosis) -> str:
    """Return the verdict in one line that can be searched for: ``verdict: LEVEL CODE: MESSAGE``."""
    verdict = diagnosis.verdict
    return f"verdict: {verdict.level} {verdict.code}: {verdict.message}"


def describe_scope(diagnosis: Diagnosis) -> str:
    """Return which network looked at how many images, and how long, in one line."""
    looked = diagnosis.statistics.get("looked_at", {})
    details = [describe_parts(diagnosis.statistics)]
    if looked.get("net"):
        details.insert(0, f"{looked['net']} of step {looked.get('step', UNKNOWN)}")
    if looked.get("read_as"):
        details.append(f"read as {looked['read_as']}")
    if looked.get("seconds_used") is not None:
        budget = f" of {looked['seconds']:g}" if looked.get("seconds") is not None else ""
        details.append(f"{looked['seconds_used']:.1f}{budget} s")
    if looked.get("skipped"):
        details.append(f"no time left for {', '.join(looked['skipped'])}")
    return "; ".join(details)


def format_findings(diagnosis: Diagnosis) -> list[str]:
    """Return the finding that leads, the others in one line, the likely causes with their evidence and what to do."""
    lines = [
        f"  {f.level.upper()} {f.code} ({f.net}): {f.message} [{figure(f.value)}, limit {figure(f.limit)}]"
        for f in diagnosis.findings[:1]
    ]
    if len(diagnosis.findings) > 1:
        lines.append(f"    also: {', '.join(f'{f.code} ({f.net})' for f in diagnosis.findings[1:])}")
    if diagnosis.causes:
        lines.append("likely causes, the most likely first:")
    listed = zip(diagnosis.causes, list_evidence(diagnosis.causes), strict=True)
    for rank, (cause, evidence) in enumerate(listed, start=1):
        lines.append(f"  {rank}. {cause.text}")
        lines += [f"     - {text}" for text in evidence]
    return [*lines, f"do: {diagnosis.action}"] if diagnosis.action else lines


def figure(value: float) -> str:
    """Return a figure of any size; ``-`` for NaN and infinities."""
    return f"{value:.4g}" if math.isfinite(value) else UNKNOWN


def _key_outputs(s: Statistics) -> list[FigureRow]:
    out = s.get("outputs", {}).get("all")
    if out is None:
        return []
    rows = [
        (
            "probability, mean +- sd",
            f"{number(out.get('prob_mean'))} +- {number(out.get('prob_std'))}",
            "reported constant networks: sd 0.068 to 0.070",
        ),
        (
            "probability, lowest .. highest",
            f"{number(out.get('prob_min'))} .. {number(out.get('prob_max'))}",
            "0 .. 1 once something is learned",
        ),
    ]
    if out.get("band_share") is not None:
        rows.append(("outputs between 0.5 and 0.7", share(out["band_share"]), "above 95% in a reported collapse"))
    return rows


def _key_shapes(s: Statistics) -> list[FigureRow]:
    rows = []
    shapes = sorted(s.get("shapes", []), key=lambda row: -row["images"])
    for row in shapes[:SHOWN_SHAPES]:
        true = ""
        if row.get("true_min") is not None:
            true = f"true: {share(row['true_min'])} .. {share(row['true_max'])}"
        value = f"{share(row.get('ratio_min'))} .. {share(row.get('ratio_max'))}"
        if row["images"] > 1 and row.get("same", 1) >= row["images"] / 2:
            value = f"{share(row.get('ratio'))} in {row['same']} of {row['images']}"
            true = true or (f"= {row['closed_form']}" if row.get("closed_form") else "images differ, so shares do")
        rows.append((f"predicted foreground, {size(row['shape'])}", value, true))
    if others := shapes[SHOWN_SHAPES:]:
        known = [row for row in others if row.get("true_min") is not None]
        true = f"true: {_range(known, 'true_min', 'true_max')}" if known else ""
        rows.append(
            (f"predicted foreground, {len(others)} other shapes", _range(others, "ratio_min", "ratio_max"), true)
        )
    return rows


def _range(rows: Sequence[Statistics], low: str, high: str) -> str:
    return f"{share(min(row[low] for row in rows))} .. {share(max(row[high] for row in rows))}"


def _key_scores(s: Statistics) -> list[FigureRow]:
    scores, trivial, sweep = s.get("scores"), s.get("trivial") or {}, s.get("sweep") or {}
    if scores is None:
        return []
    beside = f"all-positive: {number(trivial.get('all_positive'))}" if trivial else ""
    if sweep.get("best_f1") is not None and sweep["best_threshold"] != 0.5:
        beside += f"; at {cut(sweep['best_threshold'])}: {number(sweep['best_f1'])}"
    return [
        (f"F1 at 0.5 ({scores['images']} image{'s' * (scores['images'] != 1)})", number(scores.get("f1")), beside),
        (
            "precision, recall",
            f"{number(scores.get('precision'))}, {number(scores.get('recall'))}",
            f"bias: {scores.get('bias', UNKNOWN)}",
        ),
    ]


def _key_foreground(s: Statistics) -> list[FigureRow]:
    spread = s.get("foreground") or {}
    pred, true = spread.get("pred"), spread.get("true")
    if pred is None:
        return []
    beside = ""
    if true is not None:
        beside = f"true: {share(true['mean'], 1)} +- {share(true['sd'], 1)} ({points(spread.get('overestimate'))})"
    return [("foreground of an image, mean +- sd", f"{share(pred['mean'], 1)} +- {share(pred['sd'], 1)}", beside)]


def _key_nets(s: Statistics) -> list[FigureRow]:
    nets = s.get("nets") or {}
    if "student" not in nets:
        return []
    rows = []
    if "teacher" in nets:
        value = f"{number(nets['student'].get('f1'))}, {number(nets['teacher'].get('f1'))}"
        beside = f"untrained: {number(nets['untrained'].get('f1'))}" if "untrained" in nets else ""
        rows.append(("probe F1 of student, teacher", value, beside))
        aurocs = f"{number(nets['student'].get('auroc'), 2)}, {number(nets['teacher'].get('auroc'), 2)}"
        rows.append(("AUROC of student, teacher", aurocs, "chance: 0.50"))
    if "train_mode" in nets:
        value = f"{number(nets['train_mode'].get('f1'))}"
        rows.append(("probe F1 in train mode", value, f"eval mode: {number(nets['student'].get('f1'))}"))
    return rows


def _key_batches(s: Statistics) -> list[FigureRow]:
    batches = s.get("batches")
    if not batches:
        return []
    value = f"{share(batches.get('mean'), 1)} ({share(batches.get('min'), 1)} .. {share(batches.get('max'), 1)})"
    least, most = share(batches.get("expected"), 1), share(batches.get("most_expected"), 1)
    beside = f"expected: {least}" if most in (least, UNKNOWN) else f"expected: {least} to {most}"
    return [("foreground of a training batch", value, beside)]


_KEY_ROWS: tuple[Callable[[Statistics], list[FigureRow]], ...] = (
    _key_outputs,
    _key_shapes,
    _key_scores,
    _key_foreground,
    _key_nets,
    _key_batches,
)
