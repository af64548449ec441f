"""What the run directory of a checkpoint says about the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssl_seg.run.directory import find_run_of

ENDINGS = ("finished", "stopped_early", "interrupted", "collapsed", "refused")
ACTIONS = ("intervention", "lr_reduced", "rollback")


def read_history(checkpoint: Path) -> dict[str, Any] | None:
    """Return ``statistics["run"]`` of the run that a checkpoint lies in, or None where it lies in none."""
    run = find_run_of(checkpoint)
    if run is None:
        return None
    events, metrics = run.read_events(), run.read_metrics()
    last = metrics[-1] if metrics else {}
    endings = [event["event"] for event in events if event["event"] in ENDINGS]
    return {
        "directory": str(run.path),
        "steps": last.get("step", 0),
        "last": {"step": last.get("step"), "f1": last.get("val/student/f1"), "loss": last.get("train/loss")},
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
        "status": endings[-1] if endings else "unfinished",
    }
