"""Compare the sets of a split with random draws of the same size: foreground, empty masks, intensity, groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data.findings import Finding
from ssl_seg.data.splits.split import Split, find_traits
from ssl_seg.data.splits.stratify import CaseTraits

if TYPE_CHECKING:
    from ssl_seg.data.catalog import Catalog
    from ssl_seg.data.facts import CaseFacts

RANDOM_DRAWS = 1000
"""Random sets that a set is compared with."""
SEED = 0
"""Seed of the draws: the same split always gets the same figures."""

_BAND = (2.5, 97.5)
_CONFIDENCE = 0.95
_ENTRIES = 1_000_000
"""Cases x draws that are looked at in one go, which bounds the memory to about 30 MB."""

Values = NDArray[np.float64]
Members = NDArray[np.bool_]


@dataclass(frozen=True)
class SetComparison:
    """One quantity of a set, beside all cases that it is compared with and beside random draws of its size.

    ``mean`` of the set and ``reference`` mean of all. ``low`` and ``high`` are the 95 % interval of Student's t for the
    mean of whatever the set's cases were drawn from, None for a single case; ``band_low`` and ``band_high`` hold 95 %
    of the means of random draws. ``percentile`` (0 to 100) is the share of draws with a smaller mean, ties half;
    ``ks_percentile`` and ``wasserstein_percentile`` likewise for the Kolmogorov-Smirnov and the Wasserstein distance
    to all cases. ``values`` (n,) are those of the set.
    """

    mean: float
    reference: float
    low: float | None
    high: float | None
    band_low: float
    band_high: float
    percentile: float
    ks: float
    ks_percentile: float
    wasserstein: float
    wasserstein_percentile: float
    values: Values = field(compare=False, repr=False)

    @property
    def bias(self) -> float:
        """Difference of the means."""
        return self.mean - self.reference

    @property
    def relative_bias(self) -> float:
        """Difference of the means as a share of the reference; 0 where both are 0."""
        return self.bias / self.reference if self.reference else 0.0

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain types, without the values."""
        return {**{k: v for k, v in vars(self).items() if k != "values"}, "bias": self.bias}


@dataclass(frozen=True)
class SetMeasures:
    """A labeled set, validation or test.

    ``fraction`` is None for validation and test. Labeled sets are compared with random cases of the labeled training
    pool that have every class of it, as far as the size allows; that pool itself, validation and test with random whole
    groups of all labeled cases. ``effective_groups`` is Kish's number of equally large groups that tell as much.
    ``positive`` compares the share of cases with foreground and is None where all have some or none has; ``intensity``
    compares the cases' mean intensities, in standard deviations of all of them, and is None where these are not known
    or all the same.
    """

    name: str
    fraction: float | None
    ids: tuple[str, ...]
    groups: int
    effective_groups: float
    positives: int
    foreground: SetComparison
    positive: SetComparison | None
    intensity: SetComparison | None

    @property
    def in_pool(self) -> bool:
        """Whether this is a labeled set smaller than the pool."""
        return self.fraction is not None and self.fraction < 1

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain types, without ids and values."""
        return {
            "n": len(self.ids),
            "groups": self.groups,
            "effective_groups": self.effective_groups,
            "positives": self.positives,
            "compared_with": "labeled pool" if self.in_pool else "all labeled cases",
            "foreground": self.foreground.to_dict(),
            "positive_share": self.positive and self.positive.to_dict(),
            "intensity": self.intensity and self.intensity.to_dict(),
        }


def measure_split(
    split: Split, catalog: Catalog, *, draws: int = RANDOM_DRAWS, seed: int = SEED
) -> tuple[SetMeasures, ...]:
    """Return the measures of each labeled set, smallest first, and of validation and test where they have cases.

    Cases that are not in the catalog, or have no mask there, are left out. One call draws, sorts and sums about
    ``draws`` x cases numbers for each set: half a second for 5,000 cases and five sets.
    """
    known = {i: f for i, f in catalog.facts.items() if f.foreground is not None}
    traits = find_traits(catalog, known)
    pool = split.fractions[1.0]
    everything = (*pool, *split.val, *split.test)
    sets: list[tuple[str, float | None, tuple[str, ...], tuple[str, ...]]]
    sets = [(f"labels {f:g}", f, ids, pool if f < 1 else everything) for f, ids in sorted(split.fractions.items())]
    sets += [("val", None, split.val, everything), ("test", None, split.test, everything)]
    measured = []
    for stream, (name, fraction, listed, reference) in enumerate(sets):
        ids = tuple(i for i in dict.fromkeys(listed) if i in known)
        if not ids:
            continue
        others = [i for i in dict.fromkeys((*reference, *ids)) if i in known]
        chosen = set(ids)
        own = np.array([[i in chosen for i in others]])
        group_of = [split.groups.get(i, ("case", i)) for i in others]
        sizes = list(Counter(g for g, inside in zip(group_of, own[0], strict=True) if inside).values())
        units, presence = np.arange(len(others)), None
        if fraction is not None and fraction < 1:
            presence = _find_presence(others, traits)
        else:
            number_of = {group: number for number, group in enumerate(dict.fromkeys(group_of))}
            units = np.array([number_of[group] for group in group_of])
        random = draw_random_sets(units, len(ids), draws, np.random.default_rng([seed, stream]), presence)
        found = _compare(own, random, _list_columns([known[i] for i in others]))
        measured.append(
            SetMeasures(
                name,
                fraction,
                ids,
                groups=len(sizes),
                effective_groups=count_effective_groups(sizes),
                positives=sum(bool(traits.foreground[i] > 0) for i in ids),
                foreground=found["foreground"],
                positive=found.get("positive"),
                intensity=found.get("intensity"),
            )
        )
    return tuple(measured)


def summarize_split(split: Split, findings: Sequence[Finding], measures: Sequence[SetMeasures]) -> dict[str, Any]:
    """Return fingerprint, numbers of findings, and the figures of each set, as plain types."""
    levels = [finding.level for finding in findings]
    return {
        "fingerprint": split.fingerprint,
        "faults": levels.count("fault"),
        "warnings": levels.count("warn"),
        "findings": len(findings),
        "random_splits": RANDOM_DRAWS,
        "seed": SEED,
        "sets": {m.name: m.to_dict() for m in measures},
    }


def count_effective_groups(sizes: Sequence[int]) -> float:
    """Return Kish's effective number of groups, (sum n)^2 / sum n^2."""
    return sum(sizes) ** 2 / sum(n**2 for n in sizes)


def _list_columns(facts: Sequence[CaseFacts]) -> dict[str, Values]:
    """Return name -> value (n,) of each quantity that differs between cases; always foreground."""
    foreground = np.array([f.foreground for f in facts], np.float64)
    columns = {"foreground": foreground}
    if 0 < (foreground > 0).sum() < len(foreground):
        columns["positive"] = (foreground > 0).astype(np.float64)
    intensity = np.array([np.nan if f.appearance is None else f.appearance.mean for f in facts])
    if np.isfinite(intensity).all() and intensity.std() > 0:
        columns["intensity"] = (intensity - intensity.mean()) / intensity.std()
    return columns


def _find_presence(ids: Sequence[str], traits: CaseTraits) -> Members:
    """Return (cases, classes): which case has which class."""
    classes = sorted(frozenset[int]().union(*(traits.classes_of(i) for i in ids)))
    return np.array([[value in traits.classes_of(i) for value in classes] for i in ids], np.bool_)


def draw_random_sets(
    units: NDArray[np.integer],
    size: int,
    draws: int,
    rng: np.random.Generator,
    presence: Members | None = None,
) -> Iterator[Members]:
    """Yield random sets of whole units, in batches (some draws, cases) of membership.

    A unit that comes next in the random order is taken if it still fits. So a set has ``size`` cases, or fewer where no
    unit is small enough to fill it up; if not a single one fits, it is the smallest unit.

    Args:
        units: (cases,) number of the unit, from 0, that each case belongs to.
        presence: (cases, classes) which case has which class; if given, every unit is one case, and those that add most
            classes are taken first, until the set has all of them.
    """
    sizes = np.bincount(units)
    batch = max(1, _ENTRIES // len(units))
    for start in range(0, draws, batch):
        number = min(batch, draws - start)
        keys = rng.random((number, len(sizes)), dtype=np.float32)
        taken = np.zeros((number, len(sizes)), np.bool_)
        if presence is not None:
            _put_classes_first(keys, presence)
        if sizes.max() == 1:
            first = np.argpartition(keys, size - 1, axis=1)[:, :size]
            np.put_along_axis(taken, first, True, axis=1)
        else:
            filled = np.zeros(number, np.int64)
            for unit in np.argsort(keys, axis=1).T:
                fits = filled + sizes[unit] <= size
                taken[np.arange(number), unit] = fits
                filled += fits * sizes[unit]
            taken[filled == 0, sizes.argmin()] = True
        yield taken[:, units]


def _put_classes_first(keys: NDArray[np.float32], presence: Members) -> None:
    """Lower the keys (draws, cases) of few cases in each draw, so that these have all classes: ``cover_classes``."""
    has = presence.astype(np.float32)
    missing = np.repeat(presence.any(axis=0, keepdims=True), len(keys), axis=0)
    turn = 0
    while missing.any():
        turn += 1
        rows = np.flatnonzero(missing.any(axis=1))
        # Keys are below 1: they decide only between cases that add equally many classes.
        best = (missing[rows].astype(np.float32) @ has.T + keys[rows]).argmax(axis=1)
        keys[rows, best] = turn - 1 - presence.shape[1]
        missing[rows] &= ~presence[best]


def _compare(own: Members, random: Iterator[Members], columns: Mapping[str, Values]) -> dict[str, SetComparison]:
    """Return each quantity of a set, given its members (1, cases) and those of random draws (some draws, cases)."""
    batches = [[compute_distances(members, column) for column in columns.values()] for members in random]
    drawn = np.concatenate(batches, axis=-1)  # (quantities, 3, draws)
    found = {}
    for (name, column), draws in zip(columns.items(), drawn, strict=True):
        figures = compute_distances(own, column)[:, 0].tolist()
        mean, ks, wasserstein = figures
        percentiles = [_find_percentile(figure, of) for figure, of in zip(figures, draws, strict=True)]
        values = column[own[0]]
        low, high = _student_interval(values, bounded=name != "intensity")
        band_low, band_high = np.percentile(draws[0], _BAND).tolist()
        found[name] = SetComparison(
            mean=mean,
            reference=float(column.mean()),
            low=low,
            high=high,
            band_low=band_low,
            band_high=band_high,
            percentile=percentiles[0],
            ks=ks,
            ks_percentile=percentiles[1],
            wasserstein=wasserstein,
            wasserstein_percentile=percentiles[2],
            values=values,
        )
    return found


def compute_distances(members: Members, values: Values) -> Values:
    """Return mean, Kolmogorov-Smirnov and Wasserstein distance (3, sets) of subsets to the set of all values.

    SciPy has the distances of two samples; here the sorting is shared by a thousand subsets.

    Args:
        members: (sets, n) which values belong to which subset; none is empty.
        values: (n,).
    """
    order = np.argsort(values)
    ordered, inside = values[order], members[:, order]
    count = inside.sum(axis=1)
    steps = np.diff(ordered)
    gap = np.cumsum(inside, axis=1, dtype=np.float32)
    gap /= count[:, None].astype(np.float32)
    gap -= np.arange(1, len(values) + 1, dtype=np.float32) / np.float32(len(values))
    np.abs(gap, out=gap)
    last_of_equals = np.append(steps > 0, True)
    ks = gap.max(axis=1, where=last_of_equals, initial=0.0)
    return np.stack([inside @ ordered / count, ks, gap[:, :-1] @ steps])


def _find_percentile(value: float, draws: Values) -> float:
    """Return the share of draws below the value, ties half, in percent."""
    tolerance = 1e-6 * max(1e-12, float(np.abs(draws).max()))
    below = np.count_nonzero(draws < value - tolerance)
    above = np.count_nonzero(draws > value + tolerance)
    return 50.0 * (1 + float(below - above) / len(draws))


def _student_interval(values: Values, *, bounded: bool) -> tuple[float | None, float | None]:
    """Return the 95 % interval of the mean, cut to 0 .. 1 for a share; None of a single value."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None, None
    reach = float(stdtrit(len(values) - 1, (1 + _CONFIDENCE) / 2)) * values.std(ddof=1) / len(values) ** 0.5
    low, high = float(values.mean() - reach), float(values.mean() + reach)
    return (max(low, 0.0), min(high, 1.0)) if bounded else (low, high)
