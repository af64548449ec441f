"""Rules on settings that go badly together: epochs of policies, learning rates, ramps, and what the loss asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssl_seg.config import Config, LossPhaseConfig
from ssl_seg.config.curves import find_raising_plateau
from ssl_seg.config.schedules import list_phases, list_trained, make_lr_schedule
from ssl_seg.errors import counted
from ssl_seg.losses import list_costs, list_options
from ssl_seg.run.lint.conditions import describe_epochs, find_marks, list_method_options


def blend_cut_short(config: Config) -> Iterator[str]:
    """A blend that outlasts its phase never arrives at the weights written down."""
    reached = _reached_phases(config)
    run_end = config.length.steps / config.length.steps_per_epoch
    ends = [*(float(phase.from_epoch) for _, phase in reached[1:]), run_end]
    for (index, phase), end in zip(reached, ends, strict=False):
        if phase.from_epoch + phase.blend_epochs > end:
            yield (
                f"loss.phases.{index}.blend_epochs = {phase.blend_epochs}, but the phase lasts from epoch "
                f"{phase.from_epoch} to {end:g}: its own weights are never reached. Make the blend at most "
                f"{math.floor(end - phase.from_epoch)} epochs, or the phase longer"
            )


def swa_of_one(config: Config) -> Iterator[str]:
    """The mean of one network is that network."""
    swa = config.policies.swa
    if swa is not None and len(find_marks(config, "policies.swa")) == 1:
        yield (
            f"policies.swa takes one network only (start_epoch = {swa.start_epoch}, every_epochs = "
            f"{swa.every_epochs}; {describe_epochs(config)}): the mean is that network. Start earlier or take more"
        )


def swa_before_last_phase(config: Config) -> Iterator[str]:
    """Networks trained for different losses lie in different basins; their mean lies in none."""
    swa, reached = config.policies.swa, _reached_phases(config)
    if swa is None or not reached:
        return
    index, phase = reached[-1]
    settled = phase.from_epoch + phase.blend_epochs
    if swa.start_epoch <= settled:
        yield (
            f"policies.swa.start_epoch = {swa.start_epoch}, but loss.phases.{index} changes the weights up to epoch "
            f"{settled}: networks trained for different losses are averaged. Start SWA after epoch {settled}"
        )


def noise_in_warmup(config: Config) -> Iterator[str]:
    """Noise is repaired by training at the full rate, which the warm-up holds back."""
    noise, warmup = config.policies.weight_noise, config.optim.warmup_steps
    spe = config.length.steps_per_epoch
    if noise is not None and config.optim.schedule != "one_cycle" and noise.start_epoch * spe < warmup:
        yield (
            f"policies.weight_noise.start_epoch = {noise.start_epoch} is step {noise.start_epoch * spe}, within the "
            f"warm-up of {warmup} steps (optim.warmup_steps): the learning rate is still too low to repair the noise. "
            f"Start it at epoch {math.ceil(warmup / spe)} or later"
        )


def noise_within_swa(config: Config) -> Iterator[str]:
    """An average of late, settled networks is the point of SWA; noise unsettles them."""
    averaged, noise = find_marks(config, "policies.swa"), find_marks(config, "policies.weight_noise")
    noisy = [epoch for epoch in noise if averaged and epoch >= averaged[0]]
    if noisy:
        yield (
            f"policies.weight_noise is added at {counted(len(noisy), 'epoch')} from {noisy[0]:g} on, policies.swa "
            f"averages from epoch {averaged[0]:g} on: the mean takes in networks that are recovering from noise. Let "
            "one of them end before the other starts"
        )


def _plateau_waits(config: Config) -> Iterator[tuple[str, int, int]]:
    """Yield the key of each patience that changes the rate, its value, and how many plateaus it takes to act."""
    response = config.policies.plateau_response
    if config.optim.schedule == "reduce_on_plateau":
        yield "optim.plateau_patience", config.optim.plateau_patience, 1
    if response is not None and (number := find_raising_plateau(response)) is not None:
        yield "policies.plateau_response.patience", response.patience, number


def probes_beyond_first_epoch(config: Config) -> Iterator[str]:
    """What is probed after the first epoch is the end of each epoch."""
    probes, per_epoch = config.monitor.first_epoch_probes, config.length.steps_per_epoch
    late = [step for step in probes if step >= per_epoch]
    if late and probes != type(config.monitor).model_fields["first_epoch_probes"].default:
        yield (
            f"monitor.first_epoch_probes names {', '.join(map(str, late))}, but length.steps_per_epoch = {per_epoch}: "
            "only steps of the first epoch are probed by it. Leave these out, or make epochs longer"
        )


def early_stopping_before_plateau(config: Config) -> Iterator[str]:
    """What ends the run first leaves nothing for the other to do."""
    stopping = config.policies.early_stopping
    for key, patience, needed in _plateau_waits(config):
        if stopping is not None and stopping.patience <= needed * patience:
            yield (
                f"policies.early_stopping.patience = {stopping.patience} ends the run before {key} = {patience} can "
                f"change the rate. Give early stopping more than {needed * patience} epochs"
            )


def _reached_phases(config: Config) -> list[tuple[int, LossPhaseConfig]]:
    spe, steps = config.length.steps_per_epoch, config.length.steps
    return [(i, phase) for i, phase in enumerate(config.loss.phases) if phase.from_epoch * spe < steps]


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


Pull = tuple[str, float]
"""A setting in words, and how it pulls: above 0 it asks for more foreground than the loss alone, below 0 for less."""

LARGEST_VARIANCE_SHARE = 0.2
"""Between two shares of the reported papyrus trainings: they began with 0.1, and got stuck with 0.5."""


def variance_minimum(config: Config) -> Iterator[str]:
    """The variance term is not lowest at the true mask, so it must not lead."""
    places = {"loss.weights": config.loss.weights}
    places |= {f"loss.phases.{index}.weights": phase.weights for index, phase in enumerate(config.loss.phases)}
    for place, weights in places.items():
        share = weights.get("variance", 0.0) / sum(weights.values())
        if share > LARGEST_VARIANCE_SHARE:
            yield (
                f"{place}.variance = {weights['variance']:g} is {share:.0%} of the weights: 1 - 4 Var(p) is lowest "
                "where half of the voxels are foreground, not at the true mask. Keep it to "
                f"{LARGEST_VARIANCE_SHARE:.0%} or less"
            )


def imbalance_corrected_twice(config: Config) -> Iterator[str]:
    """Each correction is chosen as if it were the only one; within a component they multiply."""
    names = ("positive_ratio", "foreground_share")
    given = {name: getattr(config.batch, name) for name in names}
    sampled = [f"batch.{name} = {value:g}" for name, value in given.items() if value is not None]
    told: set[str] = set()
    for name, pulls in _list_pulls(config).items():
        more = [text for text, pull in pulls if pull > 0]
        listed = ", ".join([*more, *sampled])
        if (len(more) > 1 or (more and sampled)) and listed not in told:
            told.add(listed)
            yield f"{listed}: each makes foreground count more in '{name}', and they multiply. Keep one of them"


def costs_oppose(config: Config) -> Iterator[str]:
    """One setting asks for more foreground, another for less."""
    pulls = dict.fromkeys(pull for component in _list_pulls(config).values() for pull in component)
    more = [text for text, pull in pulls if pull > 0]
    less = [text for text, pull in pulls if pull < 0]
    if more and less:
        yield (
            f"for more foreground: {', '.join(more)}; for less: {', '.join(less)}. They work against each other: keep "
            "the one you mean"
        )


def _list_pulls(config: Config) -> dict[str, list[Pull]]:
    """Return, for each component that is trained with, the settings that weigh its foreground against background."""
    loss = config.loss
    overall = (f"loss.fp_cost = {loss.fp_cost:g} with loss.fn_cost = {loss.fn_cost:g}", loss.fn_cost - loss.fp_cost)
    weights = loss.class_weights
    classes = [_pull_of_classes("loss.class_weights", weights)] if isinstance(weights, tuple) else []
    return {
        name: [
            *([overall] if list_costs(name) else []),
            *(classes if "class_weights" in list_options(name) else []),
            *_list_own_pulls(name, loss.options.get(name, {})),
        ]
        for name in list_trained(list_phases(loss))
    }


def _pull_of_classes(where: str, weights: Sequence[float]) -> Pull:
    foreground = sum(weights[1:]) / (len(weights) - 1)
    return f"{where} = {list(weights)}", foreground - weights[0]


def _list_own_pulls(name: str, options: Mapping[str, Any]) -> Iterator[Pull]:
    where = f"loss.options.{name}"
    fp_cost, fn_cost = options.get("fp_cost", 1.0), options.get("fn_cost", 1.0)
    yield f"{where} fp_cost = {fp_cost:g} with fn_cost = {fn_cost:g}", fn_cost - fp_cost
    yield f"{where}.pos_weight = {options.get('pos_weight', 1.0):g}", options.get("pos_weight", 1.0) - 1
    if (class_weights := options.get("class_weights")) is not None:
        yield _pull_of_classes(f"{where}.class_weights", class_weights)
    if name == "focal" and options.get("alpha") is not None:
        yield f"{where}.alpha = {options['alpha']:g}", options["alpha"] - 0.5
    if "alpha" in options and "beta" in options:
        alpha, beta = options["alpha"], options["beta"]
        yield f"{where} alpha = {alpha:g} with beta = {beta:g}", beta - alpha
