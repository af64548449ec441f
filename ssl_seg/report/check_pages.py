"""The page of an audit of data and that of a check of a split: whether it can be used, and what is in it."""

from __future__ import annotations

from collections.abc import Sequence

from ssl_seg.data.audit.doctor import Audit
from ssl_seg.data.findings import Finding, select_faults, sort_findings
from ssl_seg.data.splits.split import Split
from ssl_seg.data.splits.statistics import SetMeasures
from ssl_seg.errors import counted
from ssl_seg.report.audit_figure import make_chart_panels, name_colors, paint_sample
from ssl_seg.report.audit_samples import list_class_names, make_charts, read_samples
from ssl_seg.report.check_tables import describe_summary, join_lines, make_class_row, make_findings_table, make_set_rows
from ssl_seg.report.figures import describe_class_colors, draw_panels
from ssl_seg.report.page import ImageRow, Page, PageImage, PageSection, encode_image, keep_filled, make_facts
from ssl_seg.report.run_record import Banner
from ssl_seg.report.split_figure import make_split_panels
from ssl_seg.report.table import to_table

AUDIT_CASES = 12
"""Pictures of cases on the page of an audit."""
_REASONS = 3
"""Findings that the verdict names."""
_WORDS = {"fault": "Fault", "warn": "Warning"}


def make_audit_page(result: Audit, train: str, again: str) -> Page:
    """Return the page of an audit.

    Args:
        result: what was found.
        train: command that trains with the data.
        again: command that audits it again.
    """
    summary, counts = result.summary, result.summary["counts"]
    what = f"{counted(counts['images'], 'image')}, {counts['labeled']:,} of them with a mask."
    samples = read_samples(result, AUDIT_CASES)
    painted = [(s.faulty, s.title.replace("\n", ", "), encode_image(paint_sample(s))) for s in samples]
    kinds = {True: "Named by a fault, or nearly the same", False: "From the least to the most foreground"}
    rows = [
        ImageRow(title, tuple(PageImage(name, source) for is_faulty, name, source in painted if is_faulty == faulty))
        for faulty, title in kinds.items()
    ]
    colors = describe_class_colors(name_colors(samples, list_class_names(result)))
    classes = (
        [make_class_row(row) for row in summary["classes"]] if len(summary["classes"]) > 2 and result.facts else []
    )
    sections = (
        PageSection(
            "Cases",
            (f"Outlines are the masks: {colors}.",) if colors else (),
            rows=tuple(r for r in rows if r.pictures),
        ),
        PageSection("Findings", tables=(make_findings_table(result.findings),)),
        PageSection(
            "What is in it",
            tuple(summary["notes"]),
            draw_panels(make_chart_panels(make_charts(result))),
            (make_facts("", describe_summary(summary)), to_table("Share of each class", classes)),
        ),
    )
    banner = _judge("data", result.findings, what, train, "Fix what is listed, and run it again.", again)
    return Page(f"Data {summary['root']}", f"layout {summary['layout']}", banner, keep_filled(sections))


def make_split_page(
    name: str, split: Split, measures: Sequence[SetMeasures], findings: Sequence[Finding], train: str, new: str
) -> Page:
    """Return the page of the check of a split.

    Args:
        name: name of its file.
        split: what was checked.
        measures: measures of its sets; see ``measure_split``.
        findings: findings of ``check_split``.
        train: command that trains with it.
        new: command that makes another one.
    """
    pool, unlabeled, val, test = map(len, (split.fractions[1.0], split.unlabeled, split.val, split.test))
    what = (
        f"{counted(pool, 'labeled case')} to train with, {unlabeled:,} without a mask, {val:,} for validation, "
        f"{test:,} sealed for the test."
    )
    facts = {
        "data": split.dataset,
        "groups": f"{len(set(split.groups.values())):,}" if split.groups else "",
        "fold": "" if split.fold is None else f"{split.fold} of {split.folds}",
        "seed": str(split.seed),
        "fingerprint": split.fingerprint,
    }
    text = (
        "Foreground of each set, beside random sets of its size. Percentile: share of these with a smaller mean. KS: "
        "largest difference of the distributions, from 0 to 1."
    )
    sections = (
        PageSection("Do the sets hold the same?", drawings=draw_panels(make_split_panels(measures))),
        PageSection("Foreground of the sets", tables=(to_table("", make_set_rows(measures), text),)),
        PageSection("Findings", tables=(make_findings_table(findings),)),
        PageSection("What is in it", split.notes, tables=(make_facts("", facts),)),
    )
    banner = _judge("split", findings, what, train, "Fix what is listed, or make a new split.", new)
    return Page(f"Split {name}", split.dataset, banner, keep_filled(sections))


def _judge(subject: str, findings: Sequence[Finding], what: str, train: str, advice: str, command: str) -> Banner:
    """Return the verdict on data or a split: whether it can be used, the worst findings, and what to do next.

    Args:
        subject: data or split.
        findings: findings of its check.
        what: what is in it.
        train: command that trains with it; where there is a fault, ``advice`` and ``command`` take its place.
    """
    faults = len(select_faults(findings))
    grave = [finding for finding in sort_findings(findings) if finding.level != "info"]
    reasons = [what, *(f"{_WORDS[f.level]}: {join_lines(f.message)}" for f in grave[:_REASONS])]
    if others := len(findings) - len(grave[:_REASONS]):
        reasons.append(f"{others} {'other finding is' if others == 1 else 'other findings are'} listed below.")
    if faults:
        title = f"{faults} {'fault' if faults == 1 else 'faults'}: a training with this {subject} would go wrong"
        return Banner("fault", title, (*reasons, advice), (command,))
    if grave:
        count = f"{len(grave)} {'warning' if len(grave) == 1 else 'warnings'}"
        return Banner("warning", f"This {subject} can be used, with {count}", tuple(reasons), (train,))
    return Banner("healthy", f"Ok: nothing wrong was found in this {subject}", tuple(reasons), (train,))
