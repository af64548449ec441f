"""Settings that contradict each other, or do nothing: each rule names the value, why it is odd, and what to do.

None of them stops a run. What cannot run at all is an error where the configuration is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from ssl_seg.config import Config
from ssl_seg.data.findings import Finding
from ssl_seg.lint import costs, epochs, rates, unread


@dataclass(frozen=True)
class Rule:
    """``check`` yields a message for each breach."""

    check: Callable[[Config], Iterator[str]]
    needs: tuple[str, ...] = ()
    """Settings it reads that may be planned from the data: without the data the rule is left out."""


def lint(config: Config, unknown: Collection[str] = ()) -> list[Finding]:
    """Return a warning for each rule of ``RULES`` that the settings break.

    Args:
        config: a valid configuration.
        unknown: dotted keys whose values are stand-ins; rules that need one of them are left out.
    """
    return [
        Finding(code, "warn", message)
        for code, rule in RULES.items()
        if not set(rule.needs) & set(unknown)
        for message in rule.check(config)
    ]


_LENGTH = ("length.steps",)
_WARMUP = ("length.steps", "optim.warmup_steps")

RULES: dict[str, Rule] = {
    "phase_never_reached": Rule(epochs.phase_never_reached, _LENGTH),
    "blend_cut_short": Rule(epochs.blend_cut_short, _LENGTH),
    "phase_changes_nothing": Rule(epochs.phase_changes_nothing),
    "swa_never_starts": Rule(epochs.swa_never_starts, _LENGTH),
    "swa_of_one": Rule(epochs.swa_of_one, _LENGTH),
    "swa_before_last_phase": Rule(epochs.swa_before_last_phase, _LENGTH),
    "noise_never_starts": Rule(epochs.noise_never_starts, _LENGTH),
    "noise_in_warmup": Rule(epochs.noise_in_warmup, ("optim.warmup_steps",)),
    "noise_within_swa": Rule(epochs.noise_within_swa, _LENGTH),
    "rampup_beyond_run": Rule(rates.rampup_beyond_run, _LENGTH),
    "warmup_most_of_run": Rule(rates.warmup_most_of_run, _WARMUP),
    "ema_longer_than_run": Rule(rates.ema_longer_than_run, _LENGTH),
    "plateau_never_acts": Rule(epochs.plateau_never_acts, _LENGTH),
    "early_stopping_never_acts": Rule(epochs.early_stopping_never_acts, _LENGTH),
    "early_stopping_before_plateau": Rule(epochs.early_stopping_before_plateau),
    "lr_schedules_compete": Rule(rates.lr_schedules_compete),
    "lr_scaled_twice": Rule(rates.lr_scaled_twice),
    "lr_scaling_no_effect": Rule(rates.lr_scaling_no_effect, ("batch.labeled",)),
    "restart_cut_short": Rule(rates.restart_cut_short, _WARMUP),
    "variance_minimum": Rule(costs.variance_minimum),
    "imbalance_corrected_twice": Rule(costs.imbalance_corrected_twice),
    "costs_oppose": Rule(costs.costs_oppose),
    "setting_without_effect": Rule(unread.setting_without_effect),
    "cutmix_without_effect": Rule(unread.cutmix_without_effect, ("batch.unlabeled",)),
}
