"""Learning rate, ramps and moving averages over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator

from ssl_seg.config import Config
from ssl_seg.config.schedules import make_lr_schedule
from ssl_seg.run.lint.conditions import list_method_options

LONGEST_WARMUP_SHARE = 0.5
LARGEST_LAST_RATE = 0.1
"""Share of the peak at the last step; a cycle that ends here has passed four fifths of its length."""


def rampup_beyond_run(config: Config) -> Iterator[str]:
    """A ramp longer than the run never ends."""
    steps = list_method_options(config).get("rampup_steps")
    if steps is not None and steps > config.length.steps:
        yield (
            f"method.options.rampup_steps = {steps}, but length.steps = {config.length.steps}: the consistency weight "
            "never reaches its full value. Shorten the ramp, or lengthen the run"
        )


def warmup_most_of_run(config: Config) -> Iterator[str]:
    """A warm-up of more than half of the run is a schedule of its own."""
    warmup, steps = config.optim.warmup_steps, config.length.steps
    if config.optim.schedule != "one_cycle" and warmup > LONGEST_WARMUP_SHARE * steps:
        yield (
            f"optim.warmup_steps = {warmup} of length.steps = {steps}: most of the run is warm-up. A tenth of the run "
            "is enough"
        )


def ema_longer_than_run(config: Config) -> Iterator[str]:
    """Without warm-up, an average over more steps than there are still holds the random start."""
    decay, steps = config.ema.decay, config.length.steps
    horizon = 1 / (1 - decay)
    if horizon > steps and not config.ema.warmup:
        yield (
            f"ema.decay = {decay:g} averages over about {horizon:.0f} steps, but length.steps = {steps}: the teacher "
            f"never leaves the random start behind. Set ema.warmup = true, or lower the decay to "
            f"{max(0.0, 1 - 10 / steps):.3g}"
        )


def lr_schedules_compete(config: Config) -> Iterator[str]:
    """Two rules that move one rate for different reasons undo each other."""
    schedule = config.optim.schedule
    reasons = {
        "reduce_on_plateau": "lowers the rate at the plateau at which the response raises it",
        "cosine_restarts": "raises the rate by itself at each restart",
        "one_cycle": "raises and lowers the rate at fixed steps, and ends near zero",
    }
    if config.policies.plateau_response is not None and schedule in reasons:
        yield (
            f"policies.plateau_response is on and optim.schedule = {schedule} {reasons[schedule]}. Use one of them, "
            "for example optim.schedule: constant with the response"
        )


def lr_scaled_twice(config: Config) -> Iterator[str]:
    """Two factors on one rate: the cap of the second is no longer a multiple of what is written down."""
    optim, response = config.optim, config.policies.plateau_response
    if optim.lr_scaling != "none" and response is not None and response.cap > 1:
        yield (
            f"optim.lr_scaling = {optim.lr_scaling} and policies.plateau_response both multiply optim.lr = "
            f"{optim.lr:g}, the response by up to {response.cap:g}. Write the scaled rate into optim.lr, so that the "
            "cap says what it is a multiple of"
        )


def restart_cut_short(config: Config) -> Iterator[str]:
    """A cycle is worth its last steps, at a low rate (Loshchilov & Hutter 2017); the last cycle lacks them."""
    optim, steps = config.optim, config.length.steps
    if optim.schedule != "cosine_restarts":
        return
    left = make_lr_schedule(optim, config.length, optim.lr_batch_size)(steps - 1, ()) / optim.lr
    if left <= max(LARGEST_LAST_RATE, optim.floor):
        return
    start, length = optim.warmup_steps, optim.restart_epochs * config.length.steps_per_epoch
    while start + length < steps:
        start, length = start + length, length * optim.restart_growth
    if start + length == steps:  # a complete cycle, of few steps
        return
    fitting = f"{start} or " if start > optim.warmup_steps else ""
    yield (
        f"optim.schedule = cosine_restarts makes {steps - start} of the {length} steps of its last cycle and stops at "
        f"{left:.0%} of the rate. length.steps = {fitting}{start + length} ends with a cycle"
    )
