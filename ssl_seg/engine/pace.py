"""How long a run takes on this machine, and how many steps fit into a time: arithmetic on figures that were measured.

Counted is the time from the first step to the final scores: steps, planned looks, the first reading of the training
cases, and the scores on whole validation cases. Checkpoints take too little to count.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, flatten
from ssl_seg.errors import ConfigError

ANY_STEPS = 10**9
"""Stands for a length that is not planned yet; no planned run is longer."""
FEWEST_MEASURED = 200
"""A run of fewer steps is not measured: that would take more than a few percent of it."""
MARGIN = 1.1
"""The next measurement differs: the shortest time that an error names has a tenth more."""
WAIT, SPARE = 0.05, 1.5
"""Share of a step that making its batch may take without a process of its own, and how much faster than the networks
such processes are meant to be: a batch is also handed over, and some take longer than others."""


@dataclass(frozen=True)
class Pace:
    """Measured seconds."""

    update: float
    """One step of the networks, with its batch at hand."""
    look: float
    """One look of the monitor."""
    reading: float
    """The first reading of all training cases, where they are kept in memory afterwards; else it is part of a step."""
    scoring: float
    """The final scores of all networks on the whole validation cases."""
    load: float = 0.0
    """One batch, made by one process."""
    workers: int = 0
    """Processes that make batches beside the one that trains."""

    @property
    def step(self) -> float:
        """One step, with its batch."""
        return max(self.update, self.load / self.workers) if self.workers else self.update + self.load


def plan_workers(pace: Pace, most: int) -> int:
    """Return how many processes, up to ``most``, make batches as fast as a device beside the CPU takes them."""
    wanted = 0 if pace.load <= WAIT * pace.update else math.ceil(SPARE * pace.load / pace.update)
    return max(0, min(wanted, most))


def count_looks(config: Config, steps: int, first: int = 0) -> int:
    """Return the planned looks of a run of so many steps that begins, or goes on, at ``first``."""
    per_epoch = config.length.steps_per_epoch
    early = sum(first < step < min(per_epoch, steps) for step in set(config.monitor.first_epoch_probes))
    return (first == 0) + early + math.ceil(steps / per_epoch) - first // per_epoch


def estimate_seconds(pace: Pace, config: Config, steps: int, first: int = 0) -> float:
    """Return the seconds from step ``first`` to the final scores of a run of so many steps."""
    looks = count_looks(config, steps, first)
    return (steps - first) * pace.step + looks * pace.look + pace.reading + pace.scoring


def plan_steps(pace: Pace, config: Config, minutes: float, *, warmup: int) -> int:
    """Return the most steps that a new run makes in so many minutes.

    Args:
        pace: what was measured.
        config: configuration of the run, whatever its length.
        minutes: time for all of it.
        warmup: steps of a warm-up that was asked for; 0 where it is planned, as a part of any run.

    Raises:
        ConfigError: where that is no whole epoch, or does not go beyond a given warm-up; names the shortest time.
    """
    per_epoch = config.length.steps_per_epoch
    fewest = max(per_epoch, warmup + 1)
    steps = bisect_right(range(1, ANY_STEPS), 60 * minutes, key=partial(estimate_seconds, pace, config))
    if steps >= fewest:
        return steps
    shortest = math.ceil(MARGIN * estimate_seconds(pace, config, fewest) / 6) / 10
    what = f"one epoch takes {per_epoch} steps" if fewest == per_epoch else f"the warm-up takes {warmup} steps"
    raise ConfigError(
        f"--minutes {minutes:g} is too short: {what}, and on this machine there is time for {steps} "
        f"({describe_pace(pace)}). Give at least --minutes {shortest:g}, or a number of steps with --steps"
    )


def check_length(layers: Sequence[Layer], epochs: int | None, minutes: float | None) -> None:
    """Check that options give the length of a run in one way; each of them takes the place of that of a file.

    Raises:
        ConfigError: otherwise, and for minutes that are no positive number.
    """
    given = [layer.source for layer in layers if not layer.is_file and "length.steps" in dict(flatten(layer.values))]
    given += [] if epochs is None else [f"--epochs {epochs}"]
    given += [] if minutes is None else [f"--minutes {minutes:g}"]
    if len(given) > 1 and (epochs is not None or minutes is not None):
        raise ConfigError(f"{' and '.join(given[-2:])} both give the length: use one of them")
    if minutes is not None and not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes {minutes:g} must be a positive number, for example --minutes 10")


def describe_pace(pace: Pace) -> str:
    """Return the figures as text."""
    parts = [f"{pace.step:.2g} s a step", f"{pace.look:.2g} s a look", f"{pace.scoring:.2g} s for the final scores"]
    return ", ".join([*parts, *([f"{pace.reading:.2g} s to read the images"] if pace.reading >= 1 else [])])


def describe_seconds(seconds: float) -> str:
    """Return a duration in the unit that is easiest to read."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
