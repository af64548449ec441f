"""Learning rate, ramp-up, EMA and loss schedules, and when policies act: pure functions of an explicit step.

A step is the index of an optimizer update, from 0. An epoch number counts the epochs that are finished, from 0 at the
start; ``history`` holds the validation score at the end of each. Nothing here keeps state, so a resumed run continues
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ssl_seg.config import (
        EMAConfig,
        GradientNoiseConfig,
        LengthConfig,
        LossConfig,
        OptimConfig,
        SWAConfig,
        WeightNoiseConfig,
    )

ONE_CYCLE_START = 1 / 25
"""Factor of the first step of one_cycle (Smith & Topin 2019 and PyTorch's default)."""


WARMUP_STEPS, WARMUP_SHARE = 50, 10
"""Steps of the planned warm-up, or one of so many parts of a shorter run."""


def make_lr_schedule(
    optim: OptimConfig, length: LengthConfig, batch_size: float
) -> Callable[[int, Sequence[float]], float]:
    """Return the learning rate as a function ``(step, history) -> rate``: the peak times a factor in [0, 1].

    The peak is ``optim.lr``, times a factor for a batch of another size than that it was chosen for: ``linear`` is the
    rule of Goyal et al. 2017 for SGD, ``sqrt`` that of Krizhevsky 2014, which Malladi et al. 2022 derive for Adam.

    Warm-up (``step < warmup_steps``): ``(step + 1) / warmup_steps``, so no update is made with rate 0, and the factor
    is 1 at ``warmup_steps - 1``. Then, with ``t = (step - warmup_steps) / (steps - warmup_steps)`` limited to [0, 1],
    so that the factor is 1 at ``warmup_steps``::

        constant            1
        poly                floor + (1 - floor) * (1 - t) ** power
        cosine              floor + (1 - floor) * (1 + cos(pi * t)) / 2
        cosine_restarts     as cosine, with t running from 0 to 1 in each cycle
        reduce_on_plateau   max(floor, reduction ** number of plateaus in the history)

    ``one_cycle`` has its own rise and does not look at ``warmup_steps``: half a cosine from 1/25 to 1 over its share of
    the run, then one down to ``floor`` at the last step.

    ``poly`` with power 0.9 is nnU-Net's (Isensee et al. 2021), ``cosine`` and ``cosine_restarts`` are those of
    Loshchilov & Hutter 2017, ``one_cycle`` that of Smith & Topin 2019 in the form of PyTorch, with constant momentum.
    ``floor`` does not bound the warm-up. Only ``reduce_on_plateau`` reads the history; with an empty one it is drawn
    without reductions.

    Args:
        optim: form, peak rate and scaling.
        length: length of the run.
        batch_size: labeled patches of one update on all processes; read where ``optim.lr_scaling`` asks for it.
    """
    ratio = batch_size / optim.lr_batch_size
    peak = optim.lr * {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[optim.lr_scaling]
    return lambda step, history: peak * _compute_lr_factor(step, optim, length, history)


def _compute_lr_factor(step: int, optim: OptimConfig, length: LengthConfig, history: Sequence[float]) -> float:
    if optim.schedule == "one_cycle":
        return _one_cycle(step, length.steps, optim.one_cycle_rise, optim.floor)
    if step < optim.warmup_steps:
        return (step + 1) / optim.warmup_steps
    since, floor = step - optim.warmup_steps, optim.floor
    done = _share_done(since, length.steps - optim.warmup_steps)
    match optim.schedule:
        case "constant":
            factor = 1.0
        case "poly":
            factor = floor + (1.0 - floor) * math.pow(1.0 - done, optim.poly_power)
        case "cosine":
            factor = _fall(1.0, floor, done)
        case "cosine_restarts":
            first = optim.restart_epochs * length.steps_per_epoch
            factor = _fall(1.0, floor, _share_of_cycle(since, first, optim.restart_growth))
        case "reduce_on_plateau":
            factor = max(floor, optim.plateau_factor ** count_plateaus(history, optim.plateau_patience))
    return factor


def plan_warmup(total_steps: int) -> int:
    """Return the steps of warm-up for a run of this length."""
    return min(WARMUP_STEPS, total_steps // WARMUP_SHARE)


def find_warmup(optim: OptimConfig, length: LengthConfig) -> int:
    """Return the first steps of a run, or after a restore, in which the rate is still low.

    ``one_cycle`` rises by itself, whatever ``optim.warmup_steps`` says: there it is the warm-up that would be planned.
    """
    return plan_warmup(length.steps) if optim.schedule == "one_cycle" else optim.warmup_steps


def find_snapshots(length: LengthConfig) -> tuple[int, ...]:
    """Return the steps after which networks are kept, evenly spaced and before the last one."""
    places = (round(n * length.steps / (length.snapshots + 1)) for n in range(1, length.snapshots + 1))
    return tuple(sorted({step for step in places if 0 < step < length.steps}))


def count_plateaus(history: Sequence[float], patience: int) -> int:
    """Return how often ``patience`` epochs in a row have brought no better score; the count restarts each time.

    Where PyTorch's ReduceLROnPlateau has the patience p, which lets p epochs pass and acts after the next one, this
    function has p + 1.

    Args:
        history: score at the end of each epoch, larger is better.
        patience: >= 1.
    """
    best, stale, count = -math.inf, 0, 0
    for score in history:
        best, stale = (score, 0) if score > best else (best, stale + 1)
        if stale == patience:
            stale, count = 0, count + 1
    return count


def count_stale_epochs(history: Sequence[float]) -> int:
    """Return the number of epochs since the first one with the best score; 0 for an empty history."""
    return len(history) - 1 - history.index(max(history)) if history else 0


def acts_at(policy: SWAConfig | WeightNoiseConfig, epoch: int) -> bool:
    """Return whether a policy acts when ``epoch`` epochs are finished: at its start epoch, then every few epochs."""
    return epoch >= policy.start_epoch and (epoch - policy.start_epoch) % policy.every_epochs == 0


def compute_weight_noise_std(noise: WeightNoiseConfig, epoch: int) -> float:
    """Return the standard deviation of the noise added when ``epoch`` epochs are finished; 0 when none is added.

    Addition number k, from 0, has ``std * decay ** k``.
    """
    if not acts_at(noise, epoch):
        return 0.0
    return noise.std * math.pow(noise.decay, (epoch - noise.start_epoch) // noise.every_epochs)


def compute_gradient_noise_std(noise: GradientNoiseConfig, step: int) -> float:
    """Return ``std / (1 + step) ** (decay / 2)``: the annealed gradient noise of Neelakantan et al. 2015."""
    return noise.std / math.pow(1 + step, noise.decay / 2)


def compute_rampup(step: int, rampup_steps: int, kind: Literal["sigmoid", "linear", "cosine"]) -> float:
    """Return the ramp-up factor in [0, 1]: small at step 0, 1 from ``rampup_steps`` on.

    With ``t = step / rampup_steps`` limited to [0, 1]::

        sigmoid   exp(-5 * (1 - t) ** 2)     (Laine & Aila 2017; 0.0067 at step 0)
        linear    t
        cosine    (1 - cos(pi * t)) / 2

    Args:
        step: index of the update, >= 0.
        rampup_steps: length of the ramp; 0 means no ramp (always 1).
        kind: form of the ramp.
    """
    done = _share_done(step, rampup_steps)
    if kind == "sigmoid":
        return math.exp(-5.0 * (1.0 - done) ** 2)
    return done if kind == "linear" else 0.5 * (1.0 - math.cos(math.pi * done))


def make_ema_schedule(ema: EMAConfig, total_steps: int) -> Callable[[int], float]:
    """Return the decay of the next EMA update as a function of the number of updates made before.

    It is ``min(scheduled decay, 1 - 1 / (updates + 1))``: while it warms up, the teacher is the plain mean of all
    students so far. The first update therefore copies the student, instead of keeping the random start with weight
    ``decay`` (code of Tarvainen & Valpola 2017). Without warm-up it is the scheduled decay: with
    ``t = updates / total_steps`` limited to [0, 1]::

        constant   decay
        linear     decay + (final_decay - decay) * t
        cosine     final_decay - (final_decay - decay) * (cos(pi * t) + 1) / 2     (BYOL, Grill et al. 2020)
    """
    first, last = ema.decay, ema.decay if ema.final_decay is None else ema.final_decay

    def decay_at(updates: int) -> float:
        done = _share_done(updates, total_steps)
        scheduled = _fall(first, last, done) if ema.schedule == "cosine" else first + (last - first) * done
        return min(scheduled, 1.0 - 1.0 / (updates + 1)) if ema.warmup else scheduled

    return decay_at


@dataclass(frozen=True)
class LossPhase:
    """Loss weights from an epoch on; over the first ``blend_epochs`` they pass linearly from those before."""

    from_epoch: float
    weights: Mapping[str, float]
    blend_epochs: float = 0.0


def list_phases(loss: LossConfig) -> tuple[LossPhase, ...]:
    """Return the phases of a loss, its weights from the start as the first one."""
    later = (LossPhase(phase.from_epoch, phase.weights, phase.blend_epochs) for phase in loss.phases)
    return LossPhase(0, loss.weights), *later


def list_trained(phases: Sequence[LossPhase]) -> tuple[str, ...]:
    """Return the components that have a weight above 0 in any phase: others are only watched."""
    return tuple(dict.fromkeys(name for phase in phases for name, weight in phase.weights.items() if weight > 0))


def compute_loss_weights(phases: Sequence[LossPhase], epoch: float) -> dict[str, float]:
    """Return the weight of each component at an epoch, which may be a fraction.

    While a phase blends in, a component that is missing on one side has weight 0 there; afterwards only the components
    of the phase are named.

    Args:
        phases: in increasing order of ``from_epoch``; the first one starts at 0.
        epoch: >= 0.
    """
    started = max(index for index, phase in enumerate(phases) if index == 0 or phase.from_epoch <= epoch)
    phase = phases[started]
    share = _share_done(epoch - phase.from_epoch, phase.blend_epochs)
    if started == 0 or share >= 1.0:
        return dict(phase.weights)
    before = compute_loss_weights(phases[:started], phase.from_epoch)
    names = dict.fromkeys([*before, *phase.weights])
    return {n: (1 - share) * before.get(n, 0.0) + share * phase.weights.get(n, 0.0) for n in names}


def override_weights(phases: Sequence[LossPhase], epoch: float, weights: Mapping[str, float]) -> tuple[LossPhase, ...]:
    """Return the phases where some components have other weights from an epoch on, whatever phase it is.

    A blend that is under way there goes on, to the other weights.

    Args:
        phases: see ``compute_loss_weights``.
        epoch: above 0.
        weights: weights of the components that have others.
    """
    present = [phase for phase in phases if phase.from_epoch <= epoch][-1]
    left = max(present.from_epoch + present.blend_epochs - epoch, 0)
    return (
        *(phase for phase in phases if phase.from_epoch < epoch),
        LossPhase(epoch, {**present.weights, **weights}, left),
        *(replace(phase, weights={**phase.weights, **weights}) for phase in phases if phase.from_epoch > epoch),
    )


def _share_done(step: float, length: float) -> float:
    """Return ``step / length`` limited to [0, 1]; something of no length is done."""
    return min(max(step / length, 0.0), 1.0) if length > 0 else 1.0


def _fall(first: float, last: float, done: float) -> float:
    """Return the point at ``done`` in [0, 1] of half a cosine from ``first`` to ``last``."""
    return last + (first - last) * 0.5 * (1.0 + math.cos(math.pi * done))


def _share_of_cycle(since: int, length: int, growth: int) -> float:
    """Return how much of its cycle is done, in [0, 1), ``since`` steps after the first of all cycles began."""
    if growth == 1:
        return (since % length) / length
    while since >= length:
        since, length = since - length, length * growth
    return since / length


def _one_cycle(step: int, total_steps: int, rise: float, floor: float) -> float:
    # The peak may lie between two steps; PyTorch counts the phases in the same way.
    last, peak = total_steps - 1, rise * total_steps - 1
    if step < peak:
        return _fall(ONE_CYCLE_START, 1.0, step / peak)
    return _fall(1.0, floor, _share_done(step - peak, last - peak))
