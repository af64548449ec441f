"""What the run directory of a checkpoint says about the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_seg.config import NETS
from ssl_seg.run.directory import find_ending, find_last, find_run_of
from ssl_seg.scores.text import number, shown_f1

ACTIONS = ("intervention", "lr_reduced", "rollback")


def read_history(checkpoint: Path) -> dict[str, Any] | None:
    """Return ``statistics["run"]`` of the run that a checkpoint lies in, or None where it lies in none."""
    run = find_run_of(checkpoint)
    if run is None:
        return None
    events, last = run.read_events(), run.read_last_metrics()
    name, _, title = shown_f1(last)
    ending = find_ending(events)
    return {
        "directory": str(run.path),
        "steps": last.get("step", 0),
        "last": {
            "step": last.get("step"),
            "f1": last.get(f"val/student/{name}"),
            "f1_title": title,
            "loss": last.get("train/loss"),
        },
        "verdicts": [
            {"step": event.get("step"), "level": event.get("level"), "codes": event.get("codes", [])}
            for event in events
            if event["event"] == "verdict"
        ],
        "actions": [
            {"step": event.get("step"), "action": event.get("rung", event["event"])}
            for event in events
            if event["event"] in ACTIONS
        ],
        "status": "unfinished" if ending is None else ending["event"],
    }


def describe_others(checkpoint: Path) -> list[str]:
    """Return a sentence for each further network that the run of a checkpoint trains, such as the twin of ``cps``: with
    what its monitor has found last, since a diagnosis is of the network that is predicted with."""
    run = find_run_of(checkpoint)
    if run is None or not (last := run.read_last_metrics()):
        return []
    findings = find_last(run.read_events(), "verdict").get("findings", ())
    names = {key.split("/")[1] for key in last if key.startswith("val/") and key.endswith("/f1")} - set(NETS)
    figure, _, title = shown_f1(last)
    texts = []
    for name in sorted(names):
        codes = [own["code"] for own in findings if own["net"] == name]
        texts.append(
            f"{name}: the run trains this network too; it is not examined here, since nothing is predicted with it. "
            f"At step {last['step']} its {title} on the probe was {number(last[f'val/{name}/{figure}'], 3)}, "
            f"the verdict on it {', '.join(codes) or 'ok'}"
        )
    return texts
