"""The least F1 that a diagnosis must show, ``diagnose --require-f1``."""

from __future__ import annotations

import shlex
from dataclasses import replace

from ssl_seg.diagnose.result import Conclusion, Diagnosis
from ssl_seg.errors import ConfigError, counted
from ssl_seg.monitor.findings import RuleFinding


def apply_gate(diagnosis: Diagnosis, least: float) -> Diagnosis:
    """Return the diagnosis with a finding ``below_gate`` where the F1 on validation images, or on the masks given (the
    mean over several classes), is below ``least``. It is the verdict then, unless that is a collapse.

    Raises:
        ConfigError: when no F1 was measured: a gate that cannot be checked is not passed.
    """
    scores, looked = diagnosis.statistics.get("scores"), diagnosis.statistics.get("looked_at", {})
    if scores is None:
        remedy = "give --masks" if diagnosis.kind == "predictions" else "raise --seconds, or give --data with masks"
        raise ConfigError(f"--require-f1 {least:g}: no F1 was measured in {diagnosis.subject}: {remedy}")
    part = looked.get("val")
    if part is not None and part["used"] < part["of"]:
        raise ConfigError(
            f"--require-f1 {least:g}: only {part['used']} of {part['of']} validation images were looked at in "
            f"{looked['seconds']:g} s; raise --seconds"
        )
    if scores["f1_macro"] >= least:
        return diagnosis
    of = "" if scores["of"] == "foreground" else f" ({scores['of']})"
    message = f"F1{of} is {scores['f1_macro']:.3f} on {counted(scores['images'], 'image')}, and {least:g} is required"
    finding = RuleFinding(
        code="below_gate",
        level="warn",
        net=looked.get("net") or "predictions",
        value=scores["f1_macro"],
        limit=least,
        source="--require-f1",
        message=message,
    )
    collapses = tuple(f for f in diagnosis.findings if f.level == "collapsed")
    others = tuple(f for f in diagnosis.findings if f.level != "collapsed")
    gated = replace(diagnosis, findings=(*collapses, finding, *others))
    if collapses:
        return gated
    command = diagnosis.next_command
    if diagnosis.verdict.level == "ok" and diagnosis.kind == "checkpoint":  # which had advised to predict
        command = f"ssl-seg evaluate {shlex.quote(diagnosis.subject)} --figure worst_cases.png"
    action = (
        diagnosis.action or "train on, or add labels where the worst cases are: `ssl-seg evaluate --figure` draws them"
    )
    return replace(gated, verdict=Conclusion("warn", finding.code, message), action=action, next_command=command)
