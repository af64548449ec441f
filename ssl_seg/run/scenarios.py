"""What a run may come to: what will be seen by the monitor's rules, what is done then, and what has come true."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ssl_seg.config import Config, PlateauResponseConfig
from ssl_seg.errors import counted
from ssl_seg.inference.scoring import Score
from ssl_seg.monitor.catalog import limit

SCENARIOS: dict[str, tuple[str, ...]] = {
    "oscillation": ("trivial_loss", "overfitting", "plateau"),
    "divergence": (
        "non_finite",
        "component_explosion",
        "loss_metric_divergence",
        "teacher_diverged",
        "pseudo_label_drift",
    ),
    "collapse": (
        "zero_loss",
        "mode_gap",
        "inverted_output",
        "constant_output",
        "uniform_ratio",
        "all_negative",
        "all_positive",
    ),
}
"""Codes of the findings by which each is seen. The other codes are remarks on networks that may still learn."""


def describe_scenarios(config: Config, rungs: Sequence[str]) -> list[str]:
    """Return a line for each scenario: by what it is seen, and what the run does then.

    Args:
        config: configuration of the run.
        rungs: rungs of its recovery; empty unless it recovers from a collapse.
    """
    answers = {
        "warn": "it is named, and the run continues (monitor.on_collapse=warn)",
        "stop": "the run ends at the end of the epoch if the networks have collapsed, exit code 3",
        "recover": f"while it lasts, one every {config.monitor.patience_steps} steps: {', '.join(rungs)}",
    }
    done = {
        "oscillation": "; ".join(_list_policies(config)) or "it is named, and the run continues",
        "divergence": answers[config.monitor.on_collapse],
        "collapse": "the same",
    }
    length = f"{counted(config.length.steps, 'step')}" + "; ".join(["", *_list_early_ends(config)])
    return [
        f"success: F1 more than {limit('learned_margin'):g} above all-positive -> {length}, best.pt is kept",
        *(
            f"{name}: {', '.join(codes)} -> {done[name]}{_note_acted(config, codes)}"
            for name, codes in SCENARIOS.items()
        ),
    ]


def find_scenarios(events: Iterable[Mapping[str, Any]], used: Score) -> dict[str, str]:
    """Return scenario -> by what it was seen, of those that have come true.

    Args:
        events: events of the run.
        used: score of the network that is used, on whole validation cases.
    """
    first: dict[str, int] = {}
    for event in events:
        if event["event"] == "verdict":
            first = dict.fromkeys(event["codes"], event["step"]) | first
    seen = {
        name: ", ".join(f"{code} at step {first[code]}" for code in codes if code in first)
        for name, codes in SCENARIOS.items()
    }
    margin = used.margin.value
    success = {"success": f"F1 {margin:+.3f} above all-positive"} if margin > limit("learned_margin") else {}
    return success | {name: text for name, text in seen.items() if text}


def _note_acted(config: Config, codes: Sequence[str]) -> str:
    """Return what monitor.act_on says about these codes."""
    acted = [code for code in codes if code in config.monitor.act_on]
    return f"; {', '.join(acted)} as a collapse (monitor.act_on)" if acted else ""


def _list_policies(config: Config) -> list[str]:
    """Return what the run does when validation does not get better."""
    response, optim = config.policies.plateau_response, config.optim
    found = []
    if optim.schedule == "reduce_on_plateau":
        found.append(f"learning rate x {optim.plateau_factor:g} after {counted(optim.plateau_patience, 'epoch')}")
    if response is not None:
        found.append(
            f"after {counted(response.patience, 'epoch')} learning rate x {response.base:g}, at each further plateau + "
            f"{response.gain:g} up to {response.cap:g}, for {counted(response.hold_epochs, 'epoch')}; back to best.pt "
            f"where the score falls by {response.rollback_drop:g}{_describe_milder(response)}"
        )
    return found + _list_early_ends(config)


def _describe_milder(response: PlateauResponseConfig) -> str:
    """Return what holds after a rollback."""
    if (after := response.after_rollback) is None:
        return ""
    weights = ", ".join(f"{name} {weight:g}" for name, weight in after.component_weights.items())
    epochs = counted(after.judge_epochs or 0, "epoch")
    return (
        f", from then on x {after.base:g} and + {after.gain:g}"
        f"{f', loss weights {weights}' if weights else ''}"
        f"{f', and the end after {epochs} that bring nothing' if after.judge_epochs else ''}"
    )


def _list_early_ends(config: Config) -> list[str]:
    early = config.policies.early_stopping
    return [] if early is None else [f"the run ends after {counted(early.patience, 'epoch')} without a better score"]
