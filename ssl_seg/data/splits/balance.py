"""Check that the sets of a split hold what the pool holds: foreground, classes, intensities, independent groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ssl_seg.data.findings import Finding, Level
from ssl_seg.data.splits.split import Split, find_classes
from ssl_seg.data.splits.statistics import SetComparison, SetMeasures
from ssl_seg.data.splits.stratify import cover_classes
from ssl_seg.errors import counted

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog

SMALL_SET = 3
"""Number of cases up to which no share can be told from chance."""
BIAS_THAT_MATTERS = 0.10
"""Relative difference of a mean that can move a score."""
BIAS_THAT_SHOWS = 0.25
"""Relative difference of a mean that is worth a word even where it may well be chance."""
RARE_PERCENT = 0.5
"""Percent of random draws at each end; a mean out there is hardly chance: more than 2.6 standard errors away."""
SHIFT_PERCENTILE = 99.0
"""A distribution farther off than this share of random draws is worth a warning."""
FEW_VALIDATION_CASES = 10
"""Number of cases below which it is mostly chance which network or setting is better."""
FEW_GROUPS = 5.0
"""Effective groups below which an interval over cases is far too narrow."""

Classes = Mapping[str, frozenset[int]]


def check_balance(split: Split, catalog: Catalog, measures: Sequence[SetMeasures]) -> Iterator[Finding]:
    """Yield what the rules on sets find; nothing where no labeled training case is known."""
    if not any(m.fraction == 1.0 for m in measures):
        return
    yield from _check_foreground(measures)
    yield from _check_classes(split, find_classes(catalog))
    for m in measures:
        yield from _check_prevalence(m)
    for m in measures:
        yield from _check_shifts(m)
    yield from _check_group_sizes(split, measures)


def _check_foreground(measures: Sequence[SetMeasures]) -> Iterator[Finding]:
    """Check that sets have foreground: a labeled set without it teaches nothing, and others measure nothing."""
    pool = next(m for m in measures if m.fraction == 1.0)
    if not pool.positives:
        message = f"none of the {len(pool.ids)} labeled training cases has foreground: there is nothing to learn"
        yield Finding("no_positive", "fault", message, pool.ids)
        return
    for m in measures:
        if m.positives:
            continue
        if m.fraction is None:
            message = f"none of the {counted(len(m.ids), 'case')} in {m.name} has foreground: its F1 says nothing"
        else:
            message = (
                f"none of the {counted(len(m.ids), 'case')} labeled at {m.fraction:g} has foreground; the pool has some"
            )
        yield Finding("no_positive", "warn" if m.fraction is None else "fault", message, m.ids)


def _check_classes(split: Split, classes: Classes) -> Iterator[Finding]:
    """Check that labeled sets have every class of the pool, and the pool, validation and test every class of the data.

    A labeled set that lacks a class is a fault if as many cases could have all classes, as ``make_split`` would have
    chosen them; else a warning. Validation and test are never more than a warning: a class that they lack is not
    measured, or one that the pool lacks cannot be learned, which may be all that the data allows.

    Args:
        split: any split.
        classes: id -> label values in its mask, without the background; empty where there is only one class.
    """
    pool = [i for i in split.fractions[1.0] if i in classes]
    everything = _find_union([*pool, *split.val, *split.test], classes)
    learnable = _find_union(pool, classes)
    enough = len(cover_classes(pool, classes))
    for fraction, ids in sorted(split.fractions.items()):
        missing = sorted(learnable - _find_union(ids, classes))
        if missing and len(missing) < len(learnable):
            could = len(ids) >= enough
            why = f"although {counted(enough, 'case', 'of the pool have')} all of them" if could else "and are too few"
            message = (
                f"the {counted(len(ids), 'case', f'labeled at {fraction:g} lack')} {_name_classes(missing)}, {why}"
            )
            yield Finding("class_missing", "fault" if could else "warn", message, ids)
    unmeasured = "its F1 says nothing about it"
    for name, ids, consequence in (
        ("the labeled training pool", split.fractions[1.0], "it cannot be learned"),
        ("val", split.val, unmeasured),
        ("test", split.test, unmeasured),
    ):
        missing = sorted(everything - _find_union(ids, classes))
        if ids and missing and len(missing) < len(everything):
            yield Finding("class_missing", "warn", f"{name} lacks {_name_classes(missing)}: {consequence}", ids)


def _find_union(ids: Iterable[str], classes: Classes) -> frozenset[int]:
    return frozenset[int]().union(*(classes.get(i, ()) for i in ids))


def _name_classes(values: Sequence[int]) -> str:
    return f"the class with label value {values[0]}" if len(values) == 1 else f"the label values {values}"


def _check_prevalence(m: SetMeasures) -> Iterator[Finding]:
    """Check that the mean foreground, and the share of cases that have some, are those of the pool, but for chance.

    ``prevalence_bias`` is a mean that random draws hardly ever have *and* that is off by more than a tenth: a fault in
    a labeled set, a warning elsewhere. ``prevalence_off`` warns of a quarter outside the central 95 %. How small a bias
    can be told from chance depends on the number of cases: a few cases may be far off without a fault.
    """
    if not m.positives:
        return
    if len(m.ids) <= SMALL_SET:
        low, high = m.foreground.low, m.foreground.high
        interval = "no interval" if low is None else f"95 % interval {low:.3f} .. {high:.3f}"
        message = (
            f"{m.name} has {counted(len(m.ids), 'case')}: mean foreground {m.foreground.mean:.3f} ({interval}), "
            f"{m.foreground.reference:.3f} in {_name_reference(m)}; too few to tell a bias from chance"
        )
        yield Finding("small_set", "info", message, m.ids)
        return
    for what, own in (("mean foreground", m.foreground), ("share of cases with foreground", m.positive)):
        if own is None:
            continue
        off = abs(own.relative_bias)
        message = (
            f"{what} of {m.name} ({counted(len(m.ids), 'case')}): {own.mean:.3f}, {100 * own.relative_bias:+.0f} % off "
            f"the {own.reference:.3f} of {_name_reference(m)}; 95 % of random draws have "
            f"{own.band_low:.3f} .. {own.band_high:.3f}"
        )
        if off > BIAS_THAT_MATTERS and not RARE_PERCENT < own.percentile < 100 - RARE_PERCENT:
            level: Level = "fault" if m.in_pool else "warn"
            yield Finding("prevalence_bias", level, f"{message}: make a new split, stratified by foreground", m.ids)
        elif off > BIAS_THAT_SHOWS and not own.band_low <= own.mean <= own.band_high:
            yield Finding("prevalence_off", "warn", f"{message}: scores at other prevalences may not compare", m.ids)


def _name_reference(m: SetMeasures) -> str:
    return "the pool" if m.in_pool else "all labeled cases"


def _check_shifts(m: SetMeasures) -> Iterator[Finding]:
    """Check that foreground and intensities are distributed as in the pool, as closely as random draws are."""
    if len(m.ids) <= SMALL_SET or not m.positives:
        return
    quantities: tuple[tuple[str, str, SetComparison | None], ...] = (
        ("foreground_shift", "foreground fractions", m.foreground),
        ("intensity_shift", "mean intensities", m.intensity),
    )
    for code, what, own in quantities:
        if own is not None and max(own.ks_percentile, own.wasserstein_percentile) > SHIFT_PERCENTILE:
            message = (
                f"the {what} of {m.name} are distributed differently from those of {_name_reference(m)}: "
                f"Kolmogorov-Smirnov distance {own.ks:.2f} (larger than in {own.ks_percentile:.1f} % of "
                f"random draws), Wasserstein {own.wasserstein:.3g} ({own.wasserstein_percentile:.1f} %)"
            )
            yield Finding(code, "warn", message, m.ids)


def check_validation_size(split: Split) -> Iterator[Finding]:
    """Check that validation, which decides what is kept, has enough cases; folds are scored together."""
    count = len(split.val)
    if split.folds is None and 0 < count < FEW_VALIDATION_CASES:
        message = (
            f"val has {counted(count, 'case')}, fewer than {FEW_VALIDATION_CASES}: its scores say little, and the best "
            "of several networks may be so by chance; use --folds, where each labeled case is in validation once, or "
            "label more"
        )
        yield Finding("few_validation", "warn", message, split.val)


def _check_group_sizes(split: Split, measures: Sequence[SetMeasures]) -> Iterator[Finding]:
    """Say how many groups of equal size the sets are worth, where there are groups; validation and test need a few."""
    if not split.groups:
        return
    worth = ", ".join(f"{m.name} {m.effective_groups:.1f} ({len(m.ids)} cases)" for m in measures)
    yield Finding("effective_groups", "info", f"groups of equal size that would tell as much: {worth}")
    for m in measures:
        if m.fraction is None and m.effective_groups < FEW_GROUPS:
            message = (
                f"{m.name} has {len(m.ids)} cases of {counted(m.groups, 'group')}, worth {m.effective_groups:.1f} of "
                "equal size: its score says little about a new group; label more groups"
                + ", or use --folds"
                * (split.folds is None)
            )
            yield Finding("few_groups", "warn", message, m.ids)
