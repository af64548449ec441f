"""Settings that contradict each other, or do nothing: each rule names the value, why it is odd, and what to do.

None of them stops a run. What cannot run at all is an error where the configuration is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, merge_layers
from ssl_seg.data.findings import Finding
from ssl_seg.run.lint import costs, epochs, rates
from ssl_seg.run.lint.conditions import Facts
from ssl_seg.run.lint.idle import describe_idle, find_given_idle


@dataclass(frozen=True)
class Rule:
    """``check`` yields a message for each breach."""

    check: Callable[[Config], Iterator[str]]
    needs: tuple[str, ...] = ()
    """Settings it reads that may be planned from the data: without the data the rule is left out."""


IDLE = "changes_nothing"
"""Code of a setting that is given and changes nothing in the run."""


def lint(
    config: Config,
    layers: Sequence[Layer] = (),
    facts: Facts = Facts(),  # noqa: B008 - frozen
    unknown: Collection[str] = (),
) -> list[Finding]:
    """Return a warning for each setting that the layers give in vain, and for each rule of ``RULES`` that is broken.

    Args:
        config: a valid configuration.
        layers: files and options, in increasing order of precedence: what is given.
        facts: about the data of the run; without data everything could act.
        unknown: dotted keys whose values are stand-ins; nothing is said about them, and rules that need one are left
            out.
    """
    idle = find_given_idle(config, layers, facts, unknown)
    broken = [
        Finding(code, "warn", message)
        for code, rule in RULES.items()
        if not set(rule.needs) & set(unknown)
        for message in rule.check(config)
    ]
    return [*(Finding(IDLE, "warn", text) for text in describe_idle(idle, merge_layers(layers)[1])), *broken]


_LENGTH = ("length.steps",)
_WARMUP = ("length.steps", "optim.warmup_steps")

RULES: dict[str, Rule] = {
    "blend_cut_short": Rule(epochs.blend_cut_short, _LENGTH),
    "swa_of_one": Rule(epochs.swa_of_one, _LENGTH),
    "swa_before_last_phase": Rule(epochs.swa_before_last_phase, _LENGTH),
    "noise_in_warmup": Rule(epochs.noise_in_warmup, ("optim.warmup_steps",)),
    "noise_within_swa": Rule(epochs.noise_within_swa, _LENGTH),
    "rampup_beyond_run": Rule(rates.rampup_beyond_run, _LENGTH),
    "warmup_most_of_run": Rule(rates.warmup_most_of_run, _WARMUP),
    "ema_longer_than_run": Rule(rates.ema_longer_than_run, _LENGTH),
    "early_stopping_before_plateau": Rule(epochs.early_stopping_before_plateau),
    "probes_beyond_first_epoch": Rule(epochs.probes_beyond_first_epoch),
    "lr_schedules_compete": Rule(rates.lr_schedules_compete),
    "lr_scaled_twice": Rule(rates.lr_scaled_twice),
    "restart_cut_short": Rule(rates.restart_cut_short, _WARMUP),
    "variance_minimum": Rule(costs.variance_minimum),
    "imbalance_corrected_twice": Rule(costs.imbalance_corrected_twice),
    "costs_oppose": Rule(costs.costs_oppose),
}
