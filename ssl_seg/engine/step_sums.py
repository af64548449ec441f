"""Means over the training steps since the last look; read from the device once a look."""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ssl_seg.engine.devices import gather_from_processes
from ssl_seg.engine.engine import StepRecord

ZERO_LOSS = 1e-6
"""A mean loss below this makes the monitor look at once."""
RATIOS = {
    "accepted_prevalence": ("accepted_foreground", "accepted_share"),
    "pseudo_label_precision": ("labeled_right", "labeled_accepted"),
}
"""Figures that are ratios of two means: a mean of the ratios of the steps would not weigh them right."""


class StepSums:
    """Sums of what the steps tell. The tensors stay on their device: adding a step waits for nothing."""

    def __init__(self) -> None:
        self.alarmed = False
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self.sums: dict[str, Tensor] = {}
        self.counts: Counter[str] = Counter()
        self.steps, self.lr, self.multiplier, self.started = 0, 0.0, 1.0, time.perf_counter()
        self.read_steps, self.read_loss = 0, 0.0  # of the steps that the last glance saw

    def add(self, record: StepRecord, multiplier: float) -> None:
        """Take a step in; ``multiplier`` is the factor of its scheduled learning rate."""
        clipped = (record.grad_norm > record.clip_norm).float()
        named = {"loss": record.loss, "grad_norm": record.grad_norm, "clipped_share": clipped, **record.terms}
        for name, value in named.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach().float()
        self.counts.update(named.keys())
        self.steps, self.lr, self.multiplier = self.steps + 1, record.lr, multiplier

    def raises_alarm(self) -> bool:
        """Return whether the loss has become NaN or 0 since this was last asked; one wait for the device."""
        if self.steps == self.read_steps:
            return False
        total = float(self.sums["loss"])
        mean = (total - self.read_loss) / (self.steps - self.read_steps)
        self.read_steps, self.read_loss = self.steps, total
        was, self.alarmed = self.alarmed, not math.isfinite(mean) or abs(mean) < ZERO_LOSS
        return self.alarmed and not was

    def compute_means(self, fabric: Fabric | None = None) -> dict[str, float]:
        """Return the mean of each figure over the steps that had it, ``batch_f1``, RATIOS, ``steps``; {} at first.

        The steps are those of all processes of a Fabric, which all have to ask; else those of this one.
        """
        if self.steps == 0:
            return {}
        own = (self._read(), self.counts)
        found = [own] if fabric is None else gather_from_processes(fabric, own)
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for sums, _ in found for name in sums):
            # A term of a loss phase may be there in some of the steps only.
            means[name] = sum(sums.get(name, 0.0) for sums, _ in found) / sum(counts[name] for _, counts in found)
        means["steps"] = float(self.steps)
        both = means.pop("prevalence_both", None)
        if both is not None:
            predicted_or_true = means["prevalence_pred"] + means["prevalence_true"]
            means["batch_f1"] = 2 * both / predicted_or_true if predicted_or_true else 1.0
        for name, (part, whole) in RATIOS.items():
            if means.get(whole):
                means[name] = means[part] / means[whole]
        return means

    def to_record(self, means: dict[str, float]) -> dict[str, float]:
        """Return the means for metrics.jsonl, with learning rate and duration of the steps."""
        if not means:
            return {}
        record = {f"train/{name}": value for name, value in means.items()}
        record |= {"train/lr": self.lr, "train/lr_multiplier": self.multiplier}
        return record | {"train/seconds_per_step": (time.perf_counter() - self.started) / self.steps}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as plain types; float32 sums pass through float unchanged."""
        read = {"read_steps": self.read_steps, "read_loss": self.read_loss}
        return {"sums": self._read(), "counts": dict(self.counts), "steps": self.steps, "alarmed": self.alarmed, **read}

    def _read(self) -> dict[str, float]:
        """Return the sums; one wait for each device that they are on (what is no result of the step is on the CPU)."""
        found: dict[str, float] = {}
        for device in {total.device for total in self.sums.values()}:
            here = {name: total for name, total in self.sums.items() if total.device == device}
            found |= zip(here, torch.stack(list(here.values())).tolist(), strict=True)
        return {name: found[name] for name in self.sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Continue from the state in a checkpoint."""
        self.start()
        self.sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self.counts = Counter(state["counts"])
        self.steps, self.alarmed = state["steps"], state["alarmed"]
        self.read_steps, self.read_loss = state["read_steps"], state["read_loss"]
