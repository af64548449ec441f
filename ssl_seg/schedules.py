"""Learning rate, ramp-up and EMA schedules: pure functions of an explicit step.

A step is the index of an optimizer update, from 0. Nothing here keeps state, so a resumed run continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LrSchedule = Literal["constant", "poly", "cosine"]
Rampup = Literal["sigmoid", "linear", "cosine"]


def compute_lr_factor(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    schedule: LrSchedule,
    power: float = 0.9,
    floor: float = 0.0,
) -> float:
    """Return the factor in [0, 1] by which the base learning rate is multiplied at ``step``.

    Warm-up (``step < warmup_steps``): ``(step + 1) / warmup_steps``, so no update is made with rate 0, and the factor
    is 1 at ``warmup_steps - 1``. Then decay with ``t = (step - warmup_steps) / (total_steps - warmup_steps)`` limited
    to [0, 1], so the factor is 1 at ``warmup_steps`` and ``floor`` from ``total_steps`` on::

        constant   1
        poly       floor + (1 - floor) * (1 - t) ** power
        cosine     floor + (1 - floor) * (1 + cos(pi * t)) / 2

    ``poly`` with power 0.9 is nnU-Net's (Isensee et al. 2021), ``cosine`` that of Loshchilov & Hutter 2017 without
    restarts. ``floor`` bounds the decay only, not the warm-up.

    Args:
        step: index of the update, >= 0.
        total_steps: number of updates in the run, warm-up included.
        warmup_steps: number of warm-up updates; 0 for none.
        schedule: form of the decay.
        power: exponent of ``poly``.
        floor: factor at the end of the decay, in [0, 1].

    Raises:
        ValueError: for an unknown ``schedule``.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = _share_done(step - warmup_steps, total_steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "poly":
        return floor + (1.0 - floor) * math.pow(1.0 - done, power)
    if schedule == "cosine":
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done))
    raise ValueError(f"unknown schedule {schedule!r}: constant, poly or cosine")


def compute_rampup(step: int, rampup_steps: int, kind: Rampup) -> float:
    """Return the ramp-up factor in [0, 1]: small at step 0, 1 from ``rampup_steps`` on.

    With ``t = step / rampup_steps`` limited to [0, 1]::

        sigmoid   exp(-5 * (1 - t) ** 2)     (Laine & Aila 2017; 0.0067 at step 0)
        linear    t
        cosine    (1 - cos(pi * t)) / 2

    Args:
        step: index of the update, >= 0.
        rampup_steps: length of the ramp; 0 means no ramp (always 1).
        kind: form of the ramp.

    Raises:
        ValueError: for an unknown ``kind``.
    """
    done = _share_done(step, rampup_steps)
    if kind == "sigmoid":
        return math.exp(-5.0 * (1.0 - done) ** 2)
    if kind == "linear":
        return done
    if kind == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * done))
    raise ValueError(f"unknown ramp-up {kind!r}: sigmoid, linear or cosine")


def compute_ema_decay(updates: int, decay: float, *, warmup: bool = True) -> float:
    """Return the decay of the next EMA update: ``min(decay, 1 - 1 / (updates + 1))``.

    While it warms up, the teacher is the plain mean of all students so far. The first update therefore copies the
    student, instead of keeping the random start with weight ``decay`` (code of Tarvainen & Valpola 2017).

    Args:
        updates: number of EMA updates made before this one, >= 0.
        decay: final decay, in [0, 1].
        warmup: False returns ``decay`` unchanged.
    """
    return min(decay, 1.0 - 1.0 / (updates + 1)) if warmup else decay


@dataclass(frozen=True)
class LossPhase:
    """Loss weights from an epoch on; over the first ``blend_epochs`` they pass linearly from those before."""

    from_epoch: float
    weights: Mapping[str, float]
    blend_epochs: float = 0.0


def compute_loss_weights(phases: Sequence[LossPhase], epoch: float) -> dict[str, float]:
    """Return the weight of each component at an epoch, which may be a fraction.

    While a phase blends in, a component that is missing on one side has weight 0 there; afterwards only the components
    of the phase are named.

    Args:
        phases: in increasing order of ``from_epoch``; the first one starts at 0.
        epoch: >= 0.
    """
    current = dict(phases[0].weights)
    for index, phase in enumerate(phases[1:], start=1):
        if epoch < phase.from_epoch:
            break
        before = compute_loss_weights(phases[:index], phase.from_epoch)
        share = _share_done(epoch - phase.from_epoch, phase.blend_epochs)
        if share >= 1.0:
            current = dict(phase.weights)
        else:
            names = dict.fromkeys([*before, *phase.weights])
            current = {n: (1 - share) * before.get(n, 0.0) + share * phase.weights.get(n, 0.0) for n in names}
    return current


def _share_done(step: float, length: float) -> float:
    """Return ``step / length`` limited to [0, 1]; something of no length is done."""
    return min(max(step / length, 0.0), 1.0) if length > 0 else 1.0
