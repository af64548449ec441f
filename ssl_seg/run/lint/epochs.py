"""What acts between epochs: phases of the loss, averaging, noise, plateaus. Epochs count those that are finished."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ssl_seg.config import Config, LossPhaseConfig
from ssl_seg.config.curves import find_raising_plateau
from ssl_seg.run.lint.conditions import describe_epochs, find_marks


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
            f"warm-up of {warmup} steps (optim.warmup_steps): the rate that shall repair the noise is not there yet. "
            f"Start it at epoch {math.ceil(warmup / spe)} or later"
        )


def noise_within_swa(config: Config) -> Iterator[str]:
    """An average of late, settled networks is the point of SWA; noise unsettles them."""
    averaged, noise = find_marks(config, "policies.swa"), find_marks(config, "policies.weight_noise")
    noisy = [epoch for epoch in noise if averaged and epoch >= averaged[0]]
    if noisy:
        yield (
            f"policies.weight_noise is added at {len(noisy)} epoch(s) from {noisy[0]:g} on, policies.swa averages from "
            f"epoch {averaged[0]:g} on: the mean takes in networks that are recovering from noise. Let one of them end "
            "before the other starts"
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
