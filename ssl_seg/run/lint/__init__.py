"""Settings that contradict each other, or do nothing: each rule names the value, why it is odd, and what to do.

None of them stops a run. What cannot run at all is an error where the configuration is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from ssl_seg.config import Config
from ssl_seg.data.findings import Finding
from ssl_seg.run.lint import rules
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.lint.idle import describe_idle, find_given_idle


@dataclass(frozen=True)
class LintRule:
    """``check`` yields a message for each breach."""

    check: Callable[[Config], Iterator[str]]
    needs: tuple[str, ...] = ()
    """Settings it reads that may be planned from the data; while they are unknown, the rule is skipped."""


IDLE = "changes_nothing"
"""Code of a setting that is given and changes nothing in the run."""


def lint(
    config: Config,
    given: Mapping[str, str] = {},
    facts: DataFacts = DataFacts(),  # noqa: B008 - frozen
    unknown: Collection[str] = (),
) -> list[Finding]:
    """Return a warning for each setting that is given in vain, and for each rule of ``RULES`` that is broken.

    Args:
        config: a valid configuration.
        given: dotted keys that files and options give, with the source of each.
        facts: about the data of the run; without data everything could act.
        unknown: dotted keys whose values are not planned yet; rules that need one are skipped.
    """
    idle = find_given_idle(config, given, facts, unknown)
    broken = [
        Finding(code, "warn", message)
        for code, rule in RULES.items()
        if not set(rule.needs) & set(unknown)
        for message in rule.check(config)
    ]
    return [*(Finding(IDLE, "warn", text) for text in describe_idle(idle, given)), *broken]


_LENGTH = ("length.steps",)
_WARMUP = ("length.steps", "optim.warmup_steps")

RULES = {
    rule.check.__name__: rule
    for rule in (
        LintRule(rules.blend_cut_short, _LENGTH),
        LintRule(rules.swa_of_one, _LENGTH),
        LintRule(rules.swa_before_last_phase, _LENGTH),
        LintRule(rules.noise_in_warmup, ("optim.warmup_steps",)),
        LintRule(rules.noise_within_swa, _LENGTH),
        LintRule(rules.rampup_beyond_run, _LENGTH),
        LintRule(rules.warmup_most_of_run, _WARMUP),
        LintRule(rules.ema_longer_than_run, _LENGTH),
        LintRule(rules.early_stopping_before_plateau),
        LintRule(rules.probes_beyond_first_epoch),
        LintRule(rules.lr_schedules_compete),
        LintRule(rules.lr_scaled_twice),
        LintRule(rules.restart_cut_short, _WARMUP),
        LintRule(rules.variance_minimum),
        LintRule(rules.imbalance_corrected_twice),
        LintRule(rules.costs_oppose),
    )
}
