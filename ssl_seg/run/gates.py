"""Gates of a run: which figures they may ask for, and whether they are met; and the targets of its scores."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_seg.config import GateConfig, TargetsConfig
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.scores.text import number


@dataclass(frozen=True)
class Judgment:
    """Whether a gate is met."""

    metric: str
    passed: bool
    value: float | None
    """The best value that counts; None without one."""
    epoch: int | None
    """Epoch at whose end it was reached."""
    text: str
    """All of it as a line."""


def find_due(gates: Iterable[GateConfig], epoch: int, *, ended: bool) -> list[GateConfig]:
    """Return the gates to judge when ``epoch`` epochs are finished; where the run has ``ended``, all that are left."""
    return [gate for gate in gates if gate.last_epoch == epoch or (ended and gate.last_epoch > epoch)]


def judge_gate(gate: GateConfig, records: Sequence[Mapping[str, Any]]) -> Judgment | None:
    """Return whether a gate is met; None for a span that the run has not come to, or with nothing to compare with.

    Args:
        gate: one that is due.
        records: records of metrics.jsonl so far. The last one of an epoch is that at its end; null does not count.
    """
    finished = {record["epoch"]: record.get(gate.metric) for record in records if record["step"] > 0}
    values = {epoch: value for epoch, value in finished.items() if value is not None and epoch <= gate.last_epoch}
    sign = -1 if gate.below is not None or gate.no_rise is not None else 1  # lower is better, or higher is
    span = gate.no_fall or gate.no_rise
    if span is None:
        bar = gate.above if gate.below is None else gate.below
        wanted = f"{gate.metric} {'above' if sign > 0 else 'below'} {bar:g}"
        wanted += "" if gate.by_epoch is None else f" by epoch {gate.by_epoch}"
    else:
        before = [value for epoch, value in values.items() if epoch < span[0]]
        values = {epoch: value for epoch, value in values.items() if epoch >= span[0]}
        if not before or max(finished) < span[0]:
            return None
        bar = max(before) if sign > 0 else min(before)
        reach = f"not {'below' if sign > 0 else 'above'} the earlier {bar:.4g}"
        wanted = f"{gate.metric} in epochs {span[0]} to {span[1]} {reach}"
    best = max(values, key=lambda epoch: sign * values[epoch], default=None)
    if best is None or bar is None:
        return Judgment(gate.metric, False, None, None, f"BROKEN: {wanted}; it had no finite value")
    value = values[best]
    passed = sign * value > sign * bar or (span is not None and value == bar)
    text = f"{'passed' if passed else 'BROKEN'}: {wanted}; it reached {value:.4g} in epoch {best}"
    return Judgment(gate.metric, passed, value, best, text)


def check_metrics(gates: Iterable[GateConfig], known: Collection[str]) -> None:
    """Check that the metrics of gates are figures that the run records.

    Raises:
        ConfigError: names those that are not, and what may be meant.
    """
    lines = []
    for index, gate in enumerate(gates):
        if gate.metric in known:
            continue
        part, *_, name = gate.metric.split("/")
        alike = [f"'{k}'" for k in sorted(known) if k.startswith(f"{part}/") and k.endswith(f"/{name}")]
        hint = f" (did you mean {' or '.join(alike[:2])}?)" if alike else did_you_mean(gate.metric, known)
        lines.append(
            f"gates.{index}.metric = '{gate.metric}': the run will record no such figure{hint}; metrics.jsonl of any "
            "run has their names"
        )
    if lines:
        raise ConfigError("\n".join(lines))


def judge_targets(targets: TargetsConfig, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each target: ``target``, ``low``, ``high``, ``value``, and ``met``.

    Args:
        targets: ranges that are asked for.
        summary: summary of scores on whole cases; see ``Score.summarize``. A value of None meets no target.
    """
    pooled = summary["pooled"]
    asked = {
        "precision": (targets.precision, pooled["precision"]),
        "recall": (targets.recall, pooled["recall"]),
        "f1": (targets.f1, pooled["f1_macro"]),
        "dice": (targets.dice, summary["mean"]["dice"]),
        "foreground_share": (targets.foreground_share, summary["prevalence_pred"]),
    }
    return [
        {"target": name, "low": low, "high": high, "value": value, "met": value is not None and low <= value <= high}
        for name, (ends, value) in asked.items()
        if ends is not None
        for low, high in [ends]
    ]


def describe_targets(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what has come of targets as a line."""
    shown = (
        f"{row['target']} {number(row['value'])} {'in' if row['met'] else 'NOT in'} {row['low']:g}..{row['high']:g}"
        for row in rows
    )
    return f"{sum(row['met'] for row in rows)} of {len(rows)} targets met: {', '.join(shown)}"
