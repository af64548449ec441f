"""Learning rate, ramp-up, EMA and loss schedules, and when policies act: pure functions of an explicit step.

A step is the index of an optimizer update, from 0. An epoch number counts the epochs that are finished, from 0 at the
start; ``history`` holds the validation score at the end of each. Nothing here keeps state, so a resumed run continues
exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from ssl_seg.config import EMAConfig, LengthConfig, OptimConfig

LrForm = Literal["constant", "poly", "cosine", "cosine_restarts", "one_cycle", "reduce_on_plateau"]
LrScaling = Literal["none", "linear", "sqrt"]
Rampup = Literal["sigmoid", "linear", "cosine"]
EMAForm = Literal["constant", "linear", "cosine"]

ONE_CYCLE_START = 1 / 25
"""Factor of the first step of one_cycle (Smith & Topin 2019 and PyTorch's default)."""


WARMUP_STEPS, WARMUP_SHARE = 50, 10
"""Steps of the planned warm-up, or one of so many parts of a shorter run."""


@dataclass(frozen=True)
class LrSchedule:
    """The form of the learning rate over a run; see ``compute_lr_factor``."""

    form: LrForm
    total_steps: int
    """Updates in the run, warm-up included."""
    warmup_steps: int = 0
    power: float = 0.9
    """Exponent of poly."""
    floor: float = 0.0
    """Factor at the end; the lowest factor of cosine_restarts and reduce_on_plateau."""
    cycle_steps: int = 1
    """Length of the first cycle of cosine_restarts."""
    cycle_growth: int = 1
    """Factor from the length of one cycle to the next."""
    rise: float = 0.3
    """Share of the run over which one_cycle rises."""
    patience: int = 1
    """Epochs without a better score after which reduce_on_plateau lowers the rate."""
    reduction: float = 0.5
    """Factor of each such reduction."""


def make_lr_schedule(
    optim: OptimConfig, length: LengthConfig, batch_size: float
) -> Callable[[int, Sequence[float]], float]:
    """Return the learning rate as a function ``(step, history) -> rate``.

    Only ``reduce_on_plateau`` reads the history; with an empty one it is drawn without reductions.

    Args:
        optim: form, peak rate and scaling.
        length: of the run.
        batch_size: labeled patches of one update on all processes; read where ``optim.lr_scaling`` asks for it.
    """
    peak = optim.lr * compute_lr_scale(optim.lr_scaling, batch_size, optim.lr_batch_size)
    schedule = LrSchedule(
        optim.schedule,
        length.steps,
        optim.warmup_steps,
        optim.poly_power,
        optim.floor,
        optim.restart_epochs * length.steps_per_epoch,
        optim.restart_growth,
        optim.one_cycle_rise,
        optim.plateau_patience,
        optim.plateau_factor,
    )
    return lambda step, history: peak * compute_lr_factor(step, schedule, history)


def compute_lr_factor(step: int, schedule: LrSchedule, history: Sequence[float] = ()) -> float:
    """Return the factor in [0, 1] by which the peak learning rate is multiplied at ``step``.

    Warm-up (``step < warmup_steps``): ``(step + 1) / warmup_steps``, so no update is made with rate 0, and the factor
    is 1 at ``warmup_steps - 1``. Then, with ``t = (step - warmup_steps) / (total_steps - warmup_steps)`` limited to
    [0, 1], so that the factor is 1 at ``warmup_steps``::

        constant            1
        poly                floor + (1 - floor) * (1 - t) ** power
        cosine              floor + (1 - floor) * (1 + cos(pi * t)) / 2
        cosine_restarts     as cosine, with t running from 0 to 1 in each cycle
        reduce_on_plateau   max(floor, reduction ** number of plateaus in the history)

    ``one_cycle`` has its own rise and does not look at ``warmup_steps``: half a cosine from 1/25 to 1 over ``rise`` of
    the run, then one down to ``floor`` at the last step.

    ``poly`` with power 0.9 is nnU-Net's (Isensee et al. 2021), ``cosine`` and ``cosine_restarts`` are those of
    Loshchilov & Hutter 2017, ``one_cycle`` that of Smith & Topin 2019 in the form of PyTorch, with constant momentum.
    ``floor`` does not bound the warm-up.

    Args:
        step: index of the update, >= 0.
        schedule: the form.
        history: validation scores of the finished epochs; read by ``reduce_on_plateau`` only.

    Raises:
        ValueError: for an unknown form.
    """
    if schedule.form == "one_cycle":
        return _one_cycle(step, schedule)
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    since, floor = step - schedule.warmup_steps, schedule.floor
    done = _share_done(since, schedule.total_steps - schedule.warmup_steps)
    match schedule.form:
        case "constant":
            factor = 1.0
        case "poly":
            factor = floor + (1.0 - floor) * math.pow(1.0 - done, schedule.power)
        case "cosine":
            factor = _fall(1.0, floor, done)
        case "cosine_restarts":
            factor = _fall(1.0, floor, _share_of_cycle(since, schedule.cycle_steps, schedule.cycle_growth))
        case "reduce_on_plateau":
            factor = max(floor, schedule.reduction ** count_plateaus(history, schedule.patience))
        case _:
            raise ValueError(f"unknown schedule {schedule.form!r}: one of {', '.join(get_args(LrForm))}")
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


def compute_lr_scale(kind: LrScaling, batch_size: float, reference: float) -> float:
    """Return the factor of the learning rate for a batch of another size than that the rate was chosen for.

    ``linear`` is the rule of Goyal et al. 2017 for SGD, ``sqrt`` that of Krizhevsky 2014, which Malladi et al. 2022
    derive for Adam. ``none`` returns 1.

    Args:
        kind: the rule.
        batch_size: patches of one update on all processes, > 0.
        reference: batch size that the rate was chosen for, > 0.

    Raises:
        ValueError: for an unknown ``kind``.
    """
    if kind == "none":
        return 1.0
    if kind == "linear":
        return batch_size / reference
    if kind == "sqrt":
        return math.sqrt(batch_size / reference)
    raise ValueError(f"unknown scaling {kind!r}: none, linear or sqrt")


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


def acts_at(epoch: int, start_epoch: int, every_epochs: int) -> bool:
    """Return whether a policy acts when ``epoch`` epochs are finished: at the start epoch, then every few epochs."""
    return epoch >= start_epoch and (epoch - start_epoch) % every_epochs == 0


def compute_weight_noise_std(epoch: int, start_epoch: int, every_epochs: int, std: float, decay: float) -> float:
    """Return the standard deviation of the noise added when ``epoch`` epochs are finished; 0 when none is added.

    Addition number k, from 0, has ``std * decay ** k``.
    """
    if not acts_at(epoch, start_epoch, every_epochs):
        return 0.0
    return std * math.pow(decay, (epoch - start_epoch) // every_epochs)


def compute_gradient_noise_std(step: int, std: float, decay: float) -> float:
    """Return ``std / (1 + step) ** (decay / 2)``: the annealed gradient noise of Neelakantan et al. 2015."""
    return std / math.pow(1 + step, decay / 2)


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


def make_ema_schedule(ema: EMAConfig, total_steps: int) -> Callable[[int], float]:
    """Return the EMA decay as a function of the number of updates made before."""
    return lambda updates: compute_ema_decay(
        updates,
        ema.decay,
        warmup=ema.warmup,
        form=ema.schedule,
        final_decay=ema.decay if ema.final_decay is None else ema.final_decay,
        total_steps=total_steps,
    )


def compute_ema_decay(
    updates: int,
    decay: float,
    *,
    warmup: bool = True,
    form: EMAForm = "constant",
    final_decay: float = 1.0,
    total_steps: int = 1,
) -> float:
    """Return the decay of the next EMA update: ``min(scheduled decay, 1 - 1 / (updates + 1))``.

    While it warms up, the teacher is the plain mean of all students so far. The first update therefore copies the
    student, instead of keeping the random start with weight ``decay`` (code of Tarvainen & Valpola 2017). The
    scheduled decay is, with ``t = updates / total_steps`` limited to [0, 1]::

        constant   decay
        linear     decay + (final_decay - decay) * t
        cosine     final_decay - (final_decay - decay) * (cos(pi * t) + 1) / 2     (BYOL, Grill et al. 2020)

    Args:
        updates: number of EMA updates made before this one, >= 0.
        decay: first decay, in [0, 1].
        warmup: False returns the scheduled decay.
        form: how the decay passes to ``final_decay``.
        final_decay: decay at the end of the run, for the forms linear and cosine.
        total_steps: updates in the run, for the same.

    Raises:
        ValueError: for an unknown ``form``.
    """
    done = _share_done(updates, total_steps)
    match form:
        case "constant":
            scheduled = decay
        case "linear":
            scheduled = decay + (final_decay - decay) * done
        case "cosine":
            scheduled = _fall(decay, final_decay, done)
        case _:
            raise ValueError(f"unknown EMA schedule {form!r}: constant, linear or cosine")
    return min(scheduled, 1.0 - 1.0 / (updates + 1)) if warmup else scheduled


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
        weights: of the components that have others.
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


def _one_cycle(step: int, schedule: LrSchedule) -> float:
    # The peak may lie between two steps; PyTorch counts the phases in the same way.
    last = schedule.total_steps - 1
    peak = schedule.rise * schedule.total_steps - 1
    if step < peak:
        return _fall(ONE_CYCLE_START, 1.0, step / peak)
    return _fall(1.0, schedule.floor, _share_done(step - peak, last - peak))
