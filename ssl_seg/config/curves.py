"""What a configuration does over the whole run: rates, weights and policies, from the functions that the training uses.

``report.schedule_figure`` draws it. What follows the validation score cannot be known ahead; it is named as possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ssl_seg.config import Config, PlateauResponseConfig
from ssl_seg.config.schedules import (
    acts_at,
    compute_loss_weights,
    compute_rampup,
    list_phases,
    make_ema_schedule,
    make_lr_schedule,
)
from ssl_seg.errors import counted

POINTS = 2000
"""About how many steps of a long run are looked at."""


@dataclass(frozen=True)
class ActivePeriod:
    """When a policy acts, in epochs: at ``marks``, or, where these are None, anywhere from ``start`` to ``end``.

    ``certain`` is false where it depends on the validation score whether it acts at all.
    """

    key: str
    """The section of the policy, or the setting that asks for it."""
    name: str
    start: float
    end: float
    marks: tuple[float, ...] | None = None
    certain: bool = True
    settings: tuple[str, ...] = ()
    """Settings beside ``key`` that do nothing but say how it acts."""

    @property
    def acts(self) -> bool:
        """Whether it can act in this run."""
        return self.start < self.end if self.marks is None else bool(self.marks)


@dataclass(frozen=True)
class RunCurves:
    """Values at the steps looked at, in order: all sequences have one entry for each of ``steps``.

    ``consistency_weight`` is None for a method without that term. A component of the loss is NaN where no phase names
    it, and 0 where it is only watched.
    """

    steps: tuple[int, ...]
    steps_per_epoch: int
    total_steps: int
    lr: tuple[float, ...]
    consistency_weight: tuple[float, ...] | None
    ema_decay: tuple[float, ...]
    loss_weights: dict[str, tuple[float, ...]]
    phase_starts: tuple[int, ...]
    windows: tuple[ActivePeriod, ...]
    notes: tuple[str, ...]


def compute_curves(config: Config) -> RunCurves:
    """Return what a complete configuration, with all options of its method, does over the run."""
    phases = list_phases(config.loss)
    steps = _choose_steps(config)
    per_epoch = config.length.steps_per_epoch
    lr_at = make_lr_schedule(config.optim, config.length, compute_batch_size(config))
    held = config.bootstrap.pseudo_label_steps
    ema_at = make_ema_schedule(config.ema, config.length.steps - held)
    weights = [compute_loss_weights(phases, step / per_epoch) for step in steps]
    names = dict.fromkeys(name for phase in phases for name in phase.weights)
    return RunCurves(
        steps=steps,
        steps_per_epoch=per_epoch,
        total_steps=config.length.steps,
        lr=tuple(lr_at(step, ()) for step in steps),
        consistency_weight=_compute_consistency_weights(config, steps),
        ema_decay=tuple(1.0 if step < held else ema_at(step - held) for step in steps),
        loss_weights={name: tuple(at.get(name, math.nan) for at in weights) for name in names},
        phase_starts=tuple(p.from_epoch for p in config.loss.phases if p.from_epoch * per_epoch < config.length.steps),
        windows=tuple(list_windows(config)),
        notes=tuple(_list_notes(config)),
    )


def compute_batch_size(config: Config) -> float:
    """Return the labeled patches of one update on all processes; the mean where the size is drawn."""
    return sum(config.labeled_range) / 2 * config.runtime.devices * config.runtime.num_nodes


def find_raising_plateau(response: PlateauResponseConfig) -> int | None:
    """Return the number of the first plateau that multiplies the learning rate by more than 1; None if none does."""
    if response.cap == 1 or (response.base == 1 and response.gain == 0):
        return None
    return 1 if response.base > 1 else 2


def _choose_steps(config: Config) -> tuple[int, ...]:
    """Return evenly spread steps, with the first, the last, and both sides of each switch."""
    last = config.length.steps - 1
    starts = [phase.from_epoch * config.length.steps_per_epoch for phase in config.loss.phases]
    starts += [held] if (held := config.bootstrap.pseudo_label_steps) else []
    even = {round(index * last / (POINTS - 1)) for index in range(POINTS)} if last >= POINTS else set(range(last + 1))
    return tuple(sorted(even | {step for start in starts for step in (start - 1, start) if step <= last}))


def _compute_consistency_weights(config: Config, steps: tuple[int, ...]) -> tuple[float, ...] | None:
    options: dict[str, Any] = config.method.options
    if "consistency_weight" not in options or config.batch.unlabeled == 0:
        return None
    length = options["rampup_steps"]
    if length is None:
        length = round(options["rampup_ratio"] * config.length.steps)
    held = config.bootstrap.pseudo_label_steps
    ramps = [1.0 if step < held else compute_rampup(step, length, options["rampup"]) for step in steps]
    return tuple(options["consistency_weight"] * ramp for ramp in ramps)


def list_windows(config: Config) -> Iterator[ActivePeriod]:
    """Yield when each policy that is asked for acts, those that never do too."""
    policies, end = config.policies, config.length.steps / config.length.steps_per_epoch
    finished = range(1, math.ceil(end) + 1)
    if (swa := policies.swa) is not None:
        marks = [min(e, end) for e in finished if acts_at(swa, e)]
        yield ActivePeriod("policies.swa", "SWA takes the student", swa.start_epoch, end, tuple(marks))
    if (noise := policies.weight_noise) is not None:  # none at the end of the run
        marks = [e for e in finished[:-1] if acts_at(noise, e)]
        yield ActivePeriod("policies.weight_noise", "weight noise", noise.start_epoch, end, tuple(marks))
    if policies.gradient_noise is not None:
        yield ActivePeriod("policies.gradient_noise", "gradient noise", 0, end)
    if policies.random_batch_size is not None:
        yield ActivePeriod("policies.random_batch_size", "random batch size", 0, end)
    if config.optim.schedule == "reduce_on_plateau":
        start, settings = config.optim.plateau_patience + 1, ("optim.plateau_patience", "optim.plateau_factor")
        yield ActivePeriod("optim.schedule", "rate lowered at a plateau", start, end, certain=False, settings=settings)
    if (response := policies.plateau_response) is not None and (number := find_raising_plateau(response)):
        start = number * response.patience + 1
        yield ActivePeriod("policies.plateau_response", "rate raised at a plateau", start, end, certain=False)
    if (stopping := policies.early_stopping) is not None:
        yield ActivePeriod("policies.early_stopping", "early stopping", stopping.patience + 1, end, certain=False)


def _list_notes(config: Config) -> Iterator[str]:
    optim, response = config.optim, config.policies.plateau_response
    if optim.schedule == "reduce_on_plateau":
        yield (
            f"learning rate drawn without plateaus: each {counted(optim.plateau_patience, 'epoch')} without a better "
            f"score multiply it by {optim.plateau_factor:g}"
        )
    if response is not None:
        yield (
            f"plateau response not drawn: plateaus of {counted(response.patience, 'epoch')} multiply the rate, by at "
            f"most {response.cap:g}, for {counted(response.hold_epochs, 'epoch')}{_note_weights(response)}"
        )


def _note_weights(response: PlateauResponseConfig) -> str:
    weights = {} if response.after_rollback is None else response.after_rollback.component_weights
    return (
        f"; loss drawn without {', '.join(f'{n} {w:g}' for n, w in weights.items())} after a rollback"
        if weights
        else ""
    )
