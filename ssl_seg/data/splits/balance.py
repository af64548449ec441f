"""Whether the sets of a split hold what the pool holds: foreground, classes, intensities, independent groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ssl_seg.data.findings import Finding
from ssl_seg.data.splits.split import Split
from ssl_seg.data.splits.statistics import SetComparison, SetMeasures
from ssl_seg.data.splits.stratify import cover_classes

SMALL_SET = 3
"""Of so few cases no share can be told from chance."""
BIAS_THAT_MATTERS = 0.10
"""Relative difference of a mean that can move a score."""
BIAS_THAT_SHOWS = 0.25
"""Relative difference of a mean that is worth a word even where it may well be chance."""
RARE_PERCENT = 0.5
"""A mean outside the central 99 % of random draws is hardly chance: more than 2.6 standard errors away."""
SHIFT_PERCENTILE = 99.0
"""A distribution farther off than this share of random draws is worth a warning."""
FEW_VALIDATION_CASES = 10
"""With fewer, which network or setting is better is mostly chance."""
FEW_GROUPS = 5.0
"""With fewer effective groups an interval over cases is far too narrow."""

Classes = Mapping[str, frozenset[int]]
Level = Literal["info", "warn", "fault"]


def check_foreground(measures: Sequence[SetMeasures]) -> Iterable[Finding]:
    """A labeled set without foreground teaches nothing; a validation or test list without it measures nothing."""
    pool = next(m for m in measures if m.fraction == 1.0)
    if not pool.positives:
        message = f"none of the {len(pool.ids)} labeled training cases has foreground: there is nothing to learn"
        yield Finding("no_positive", "fault", message, pool.ids)
    for m in measures:
        if m.positives or not pool.positives:
            continue
        if m.fraction is None:
            message = f"none of the {len(m.ids)} case(s) in {m.name} has foreground: its F1 says nothing"
            yield Finding("no_positive", "warn", message, m.ids)
        else:
            message = f"none of the {len(m.ids)} case(s) labeled at {m.fraction:g} has foreground; the pool has some"
            yield Finding("no_positive", "fault", message, m.ids)


def check_classes(split: Split, classes: Classes) -> Iterable[Finding]:
    """Each labeled set has every class of the pool, and the pool, validation and test every class of the data.

    A labeled set that lacks a class is a fault if as many cases could have all classes, as ``make_split`` would have
    chosen them; else a warning. Validation and test are never more than a warning: a class that they lack is not
    measured, or one that the pool lacks cannot be learned, which may be all that the data allows.

    Args:
        split: any split.
        classes: id -> label values in its mask, without the background; empty where there is only one class.
    """
    pool = [i for i in split.fractions[1.0] if i in classes]
    everything = _classes_in([*pool, *split.val, *split.test], classes)
    learnable = _classes_in(pool, classes)
    enough = len(cover_classes(pool, classes))
    for fraction, ids in sorted(split.fractions.items()):
        missing = sorted(learnable - _classes_in(ids, classes))
        if missing and len(missing) < len(learnable):
            could = (
                f"although {enough} case(s) of the pool have all of them" if len(ids) >= enough else "and are too few"
            )
            message = f"the {len(ids)} case(s) labeled at {fraction:g} lack {_name_classes(missing)}, {could}"
            yield Finding("class_missing", "fault" if len(ids) >= enough else "warn", message, ids)
    for name, ids in (("the labeled training pool", split.fractions[1.0]), ("val", split.val), ("test", split.test)):
        missing = sorted(everything - _classes_in(ids, classes))
        if ids and missing and len(missing) < len(everything):
            what = "it cannot be learned" if ids is split.fractions[1.0] else "its F1 says nothing about it"
            yield Finding("class_missing", "warn", f"{name} lacks {_name_classes(missing)}: {what}", ids)


def _classes_in(ids: Iterable[str], classes: Classes) -> frozenset[int]:
    return frozenset[int]().union(*(classes.get(i, ()) for i in ids))


def _name_classes(values: Sequence[int]) -> str:
    return f"the class with label value {values[0]}" if len(values) == 1 else f"the label values {values}"


def check_prevalence(measures: Sequence[SetMeasures]) -> Iterable[Finding]:
    """The mean foreground, and the share of cases that have some, are those of the pool, but for chance.

    ``prevalence_bias`` is a mean that random draws hardly ever have *and* that is off by more than a tenth: a fault in
    a labeled set, a warning elsewhere. ``prevalence_off`` warns of a quarter outside the central 95 %. How small a bias
    can be told from chance depends on the number of cases: a few cases may be far off without a fault.
    """
    for m in measures:
        if not m.positives:
            continue
        if len(m.ids) <= SMALL_SET:
            yield Finding("small_set", "info", _describe_small(m), m.ids)
        for what, compared in (("mean foreground", m.foreground), ("share of cases with foreground", m.positive)):
            if compared is not None:
                yield from _judge_mean(m, what, compared)


def _judge_mean(m: SetMeasures, what: str, compared: SetComparison) -> Iterable[Finding]:
    off = abs(compared.relative_bias)
    rare = not RARE_PERCENT < compared.percentile < 100 - RARE_PERCENT
    message = (
        f"{what} of {m.name} ({len(m.ids)} case(s)): {compared.mean:.3f}, {100 * compared.relative_bias:+.0f} % off "
        f"the {compared.reference:.3f} of {_name_reference(m)}; 95 % of random draws have "
        f"{compared.band_low:.3f} .. {compared.band_high:.3f}"
    )
    if rare and len(m.ids) > SMALL_SET and off > BIAS_THAT_MATTERS:
        level: Level = "fault" if m.in_pool else "warn"
        yield Finding("prevalence_bias", level, f"{message}: make a new split, stratified by foreground", m.ids)
    elif (
        len(m.ids) > SMALL_SET
        and off > BIAS_THAT_SHOWS
        and not compared.band_low <= compared.mean <= compared.band_high
    ):
        yield Finding("prevalence_off", "warn", f"{message}: scores at other prevalences may not compare", m.ids)


def _describe_small(m: SetMeasures) -> str:
    low, high = m.foreground.low, m.foreground.high
    interval = "no interval" if low is None else f"95 % interval {low:.3f} .. {high:.3f}"
    return (
        f"{m.name} has {len(m.ids)} case(s): mean foreground {m.foreground.mean:.3f} ({interval}), "
        f"{m.foreground.reference:.3f} in {_name_reference(m)}; too few to tell a bias from chance"
    )


def _name_reference(m: SetMeasures) -> str:
    return "the pool" if m.in_pool else "all labeled cases"


def check_shifts(measures: Sequence[SetMeasures]) -> Iterable[Finding]:
    """Foreground fractions and intensities are distributed as in the pool, as closely as random draws are."""
    for m in measures:
        for code, what, compared in (
            ("foreground_shift", "foreground fractions", m.foreground),
            ("intensity_shift", "mean intensities", m.intensity),
        ):
            if compared is None or len(m.ids) <= SMALL_SET or not m.positives:
                continue
            if max(compared.ks_percentile, compared.wasserstein_percentile) > SHIFT_PERCENTILE:
                message = (
                    f"the {what} of {m.name} are distributed otherwise than those of {_name_reference(m)}: "
                    f"Kolmogorov-Smirnov distance {compared.ks:.2f} (larger than in {compared.ks_percentile:.1f} % of "
                    f"random draws), Wasserstein {compared.wasserstein:.3g} ({compared.wasserstein_percentile:.1f} %)"
                )
                yield Finding(code, "warn", message, m.ids)


def check_validation_size(split: Split) -> Iterable[Finding]:
    """Validation decides what is kept; the folds of a cross-validation are scored together."""
    count = len(split.val)
    if split.folds is None and 0 < count < FEW_VALIDATION_CASES:
        message = (
            f"val has {count} case(s), fewer than {FEW_VALIDATION_CASES}: its scores say little, and the best "
            "of several networks may be so by chance; use --folds, where each labeled case is in validation once, or "
            "label more"
        )
        yield Finding("few_validation", "warn", message, split.val)


def check_group_sizes(split: Split, measures: Sequence[SetMeasures]) -> Iterable[Finding]:
    """Say how many groups of one size the sets are worth, where there are groups; validation and test need a few."""
    if not split.groups:
        return
    worth = ", ".join(f"{m.name} {m.effective_groups:.1f} ({len(m.ids)} cases)" for m in measures)
    yield Finding("effective_groups", "info", f"groups of equal size that would tell as much: {worth}")
    for m in measures:
        if m.fraction is None and m.effective_groups < FEW_GROUPS:
            message = (
                f"{m.name} has {len(m.ids)} cases of {m.groups} group(s), worth {m.effective_groups:.1f} of equal "
                "size: its score says little about a new group; label more groups, or use --folds"
            )
            yield Finding("few_groups", "warn", message, m.ids)
