"""The tables of the laboratory, in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from trainings import format_rows

from lab.faults import FAULTS, Fault, FaultResult
from lab.remedies import MARGIN as HELPS
from lab.remedies import RemedyResult
from lab.replay import Replay
from lab.situations import SituationResult
from lab.studies import MARGIN, Harmless, HealthyResult, Overhead, Recovery
from ssl_seg.monitor.findings import Verdict


def format_coverage(found: Mapping[str, Sequence[str]]) -> str:
    """Return what the audit of predictions said."""
    lines = "\n".join(f"- {name}: {'; '.join(codes) or 'nothing'}" for name, codes in found.items())
    return f"Coverage hole, named by `ssl-seg diagnose --predictions` (no look at patches can see it):\n\n{lines}"


def format_faults(results: Sequence[FaultResult]) -> str:
    """Return a line a fault, over its seeds, and the count of those that were named in time."""
    rows = []
    for name, group in groupby(results, key=lambda result: result.fault):
        fault = next(f for f in FAULTS if f.name == name)
        rows.append(_fault_row(fault, list(group)))
    named, wrong = sum(r.in_time for r in results), sum(bool(r.wrong_codes) for r in results)
    early = sum(bool(r.early_codes) for r in results)
    header = (
        "fault", "expected", "named; in time", "steps after injection", "level when named", "collapsed from step",
        "first verdict, at step", "other codes, not true",
    )  # fmt: skip
    last = (
        f"{named} of {len(results)} runs got the expected name in time; {wrong} also got a name that is not true; "
        f"{early} got one before the injection."
    )
    return f"{format_rows(header, rows)}\n\n{last}\n\n{_format_reasons()}"


def _fault_row(fault: Fault, results: list[FaultResult]) -> list[str]:
    named = [r for r in results if r.named_step is not None]
    steps = _join(r.named_step - fault.injected_at for r in results if r.named_step is not None)
    return [
        fault.name,
        " or ".join(f"`{code}`" for code in fault.expected),
        f"{len(named)} of {len(results)}; {sum(r.in_time for r in results)} within {fault.due}",
        steps or "-",
        _join(r.named_level for r in named) or "-",
        _join("never" if r.collapsed_step is None else r.collapsed_step for r in results),
        _join(f"{r.first_step}: {' + '.join(r.first_codes)}" if r.first_codes else "none" for r in results),
        _join(code for r in results for code in r.wrong_codes) or "-",
    ]


def _format_reasons() -> str:
    lines = (
        f"- {fault.name}: {fault.reason}"
        + (f" (true as well: {', '.join(fault.also_right)})" if fault.also_right else "")
        for fault in FAULTS
    )
    return "Why these names:\n\n" + "\n".join(lines)


def format_healthy(results: Sequence[HealthyResult]) -> str:
    """Return a line a training, and the counts of false alarms."""
    header = ("data", "labels", "method", "F1 (all-positive)", "looks", "warn", "collapsed", "findings (step: code)")
    rows = []
    for r in results:
        found = ", ".join(f"{step}: {code} ({level})" for step, code, level in r.codes) or "-"
        f1 = f"{r.f1:.3f} ({r.trivial_f1:.3f})"
        rows.append([r.task.data, f"{r.task.labels:g}", r.task.method, f1, r.looks, r.warned, r.collapsed, found])
    looks, runs = sum(r.looks for r in results), len(results)
    warned, collapsed = sum(r.warned for r in results), sum(r.collapsed for r in results)
    last = (
        f"{looks} looks at {runs} runs: {collapsed} collapsed in {sum(r.collapsed > 0 for r in results)} runs, "
        f"{warned} warned in {sum(r.warned > 0 for r in results)} runs."
    )
    return f"{format_rows(header, rows)}\n\n{last}"


def format_replays(replays: Sequence[Replay], folders: Mapping[str, Sequence[str]]) -> str:
    """Return a line a series with its first verdict, and what is said of folders of predictions."""
    header = ("report", "series", "expected", "first verdict", "codes at the end")
    rows = []
    for replay in replays:
        first, series = replay.first, replay.series
        text = "none" if first is None else f"{first[0]}: {describe(first[1])}"
        last = ", ".join(replay.verdicts[-1][1].codes) or "ok"
        rows.append([series.report, series.name, series.expected, text, last])
    lines = "\n".join(f"- {name}: {'; '.join(found) or 'nothing'}" for name, found in folders.items())
    return f"{format_rows(header, rows)}\n\nReport 000, its predictions as files:\n\n{lines}"


def describe(verdict: Verdict) -> str:
    """Return the level, and code and message of each finding."""
    return "; ".join(f"{f.code} ({f.level}): {f.message}" for f in verdict.findings)


def format_recoveries(results: Sequence[Recovery]) -> str:
    """Return a line a seed with and without ``recover``, and the counts."""
    header = (
        "seed", "on_collapse", "ending", "all-positive F1", "best.pt F1", "last.pt F1", "last codes", "interventions",
    )  # fmt: skip
    rows = [
        [
            r.seed, r.on_collapse, r.ending, f"{r.trivial_f1:.3f}", f"{r.best_f1:.3f}", f"{r.last_f1:.3f}",
            ", ".join(r.codes) or "ok", ", ".join(f"{step}: {rung}" for step, rung in r.rungs) or "-",
        ]
        for r in results
    ]  # fmt: skip
    lines = []
    for mode in dict.fromkeys(r.on_collapse for r in results):
        own = [r for r in results if r.on_collapse == mode]
        best = sum(r.best_f1 > r.trivial_f1 + MARGIN for r in own)
        lines.append(
            f"{mode}: above all-positive + {MARGIN:.2f}: last.pt {sum(r.is_saved for r in own)} of {len(own)}, "
            f"best.pt {best} of {len(own)}."
        )
    return f"{format_rows(header, rows)}\n\n" + "\n".join(lines)


def format_harmless(results: Sequence[Harmless]) -> str:
    """Return the count of equal students."""
    equal = sum(r.equal for r in results)
    scores = ", ".join(f"{r.f1:.3f}" for r in results)
    return (
        f"{equal} of {len(results)} students are bit-equal to those of the bare loop, after "
        f"{results[0].looks} looks each, so their F1 is the same ({scores})."
    )


def format_overhead(result: Overhead) -> str:
    """Return the cost of the figures in a step, and the share of the looks."""
    middle = statistics.median(result.ratios)
    return (
        f"A step with the figures for the monitor takes {middle:.4f} x one without "
        f"(median of {len(result.ratios)} pairs of blocks, {min(result.ratios):.4f} to {max(result.ratios):.4f}).\n"
        f"A step takes {result.seconds_per_step:.3f} s, a look {result.seconds_per_look:.2f} s: looks take "
        f"{result.first_epoch_share:.1%} of the first epoch ({result.first_epoch_looks} looks in "
        f"{result.steps_per_epoch} steps) and {result.later_share:.1%} of a later one (1 look).\n"
        f"A look with the loss on validation takes {statistics.median(result.loss_ratios):.3f} x one without (median "
        f"of {len(result.loss_ratios)} pairs, {min(result.loss_ratios):.3f} to {max(result.loss_ratios):.3f})."
    )


def format_situations(results: Sequence[SituationResult]) -> str:
    """Return a line a situation: the truth of its runs, how many verdicts were wrong, and what led."""
    header = (
        "situation", "runs", "good; bad by fresh images", "false alarms at the end; at any look", "misses",
        "diagnose says something else",
        "the last verdict of the run",
    )  # fmt: skip
    rows = []
    for name, group in groupby(results, key=lambda result: result.situation):
        own = list(group)
        good, bad = (
            sum(all(n.is_good for n in r.truth) for r in own),
            sum(any(n.is_bad for n in r.truth) for r in own),
        )
        counted = Counter(f"{r.level} {r.codes[0]}" if r.codes else "ok" for r in own)
        said = ", ".join(f"{verdict} {count}" for verdict, count in counted.most_common())
        kinds = ("is_false_alarm", "is_early_alarm", "is_miss", "disagrees")
        at_end, at_any, missed, differ = (sum(getattr(r, kind) for r in own) for kind in kinds)
        rows.append([name, len(own), f"{good}; {bad}", f"{at_end}; {at_any}", missed, differ, said])
    return format_rows(header, rows)


def format_remedies(results: Sequence[RemedyResult]) -> str:
    """Return a line a remedy: over its seeds, how often the networks were good without and with it."""
    header = (
        "action", "tried on", f"F1 above trivial + {HELPS:.2f} without; with", "mean margin without; with",
        "predicted / true foreground", "codes at the end without; with",
    )  # fmt: skip
    rows = []
    for remedy, group in groupby(results, key=lambda result: result.remedy):
        own = list(group)
        good = [f"{sum(r.margins[i] > HELPS for r in own)} of {len(own)}" for i in (0, 1)]
        margins = [f"{statistics.fmean(r.margins[i] for r in own):+.3f}" for i in (0, 1)]
        ratios = [[r.ratios[i] for r in own if r.ratios is not None] for i in (0, 1)]
        shares = "; ".join(f"{statistics.fmean(values):.2g}" for values in ratios if values) or "-"
        codes = "; ".join(_join(r.codes[i][0] if r.codes[i] else "ok" for r in own) for i in (0, 1))
        rows.append([remedy.action, remedy.where, "; ".join(good), "; ".join(margins), shares, codes])
    return format_rows(header, rows)


def _join(values: Iterable[object]) -> str:
    """Return the different values in order of appearance."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
