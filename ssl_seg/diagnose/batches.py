"""Measure the batches of a run, and compare them with what its labeled cases and settings promise.

Shapes: L labeled, U unlabeled, C channels, *P a patch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod, sqrt
from typing import Any

import numpy as np

from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.data.loader import Batch, PatchSource, describe_missed_share
from ssl_seg.data.sampling import BalancedCaseStream
from ssl_seg.labels import IGNORE_INDEX

FEWEST, MOST = 0.1, 2.0
"""Share of foreground voxels beside the expected one: a reported recipe expects 5 to 15 % in its first ten batches, and
calls less than 1 % and more than 20 % a fault of its sampler."""
TOLERANCE = 0.05
"""Shares of patches may be so far from what is wanted, beside what whole numbers and chance explain."""
MOSTLY = 0.5


@dataclass(frozen=True)
class Contents:
    """What some batches hold, in patches and labeled voxels."""

    labeled: int = 0
    unlabeled: int = 0
    voxels: int = 0
    valid: int = 0
    """Labeled voxels that are not ignored."""
    foreground: int = 0
    positive_patches: int = 0
    """Labeled patches with at least one foreground voxel."""
    from_positive: int = 0
    """Labeled patches of cases with foreground."""
    cases: frozenset[str] = frozenset()

    def __add__(self, other: Contents) -> Contents:
        names = [name for name in self.__dataclass_fields__ if name != "cases"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return replace(self, **sums, cases=self.cases | other.cases)

    def to_dict(self) -> dict[str, Any]:
        """Return counts and shares, as printed and as JSON; a share of nothing is None."""
        return {
            "labeled": self.labeled,
            "unlabeled": self.unlabeled,
            "cases": len(self.cases),
            "foreground": _divide(self.foreground, self.valid),
            "positive_patches": _divide(self.positive_patches, self.labeled),
            "from_positive_cases": _divide(self.from_positive, self.labeled),
            "ignored": _divide(self.voxels - self.valid, self.voxels),
        }


@dataclass(frozen=True)
class Expected:
    """What the labeled cases and the settings promise; shares in [0, 1].

    ``foreground`` is the mean share of foreground voxels in whole cases, each as often as it is drawn, or that which is
    asked for (``share``);
    ``most_foreground`` the largest that the settings allow: each centered patch then holds all foreground of its case.
    ``ratio`` is the wanted share of patches of positive cases, None where all cases are drawn equally often, and
    ``reachable`` what comes of it; ``positive_weight`` is the weight of a positive case that would give the same in
    weighted random draws; ``positive_cases`` is their share among the labeled cases.
    """

    counts: tuple[int, int]
    positive: frozenset[str]
    positive_cases: float
    foreground: float
    most_foreground: float
    centered: float
    ratio: float | None
    reachable: float
    positive_weight: float
    share: float | None = None
    """Wanted share of foreground voxels; None leaves it to chance."""

    def to_dict(self) -> dict[str, Any]:
        """Return the shares under the names of ``Contents.to_dict``."""
        return {
            "labeled": self.counts[0],
            "unlabeled": self.counts[1],
            "foreground": self.foreground,
            "most_foreground": self.most_foreground,
            "from_positive_cases": self.reachable,
            "positive_cases": self.positive_cases,
            "centered_patches": self.centered,
            "positive_weight": self.positive_weight,
        }


def measure_batch(batch: Batch, positive: frozenset[str]) -> Contents:
    """Return the contents of one batch; ``positive`` are the cases with foreground."""
    labeled = len(batch.image)
    foreground = (batch.target != IGNORE_INDEX) & (batch.target > 0)
    return Contents(
        labeled=labeled,
        unlabeled=len(batch.weak),
        voxels=batch.target.numel(),
        valid=int((batch.target != IGNORE_INDEX).sum()),
        foreground=int(foreground.sum()),
        positive_patches=int(foreground.flatten(1).any(dim=1).sum()),
        from_positive=sum(case_id in positive for case_id in batch.case_ids[:labeled]),
        cases=frozenset(batch.case_ids),
    )


def compute_expected(source: PatchSource, facts: Mapping[str, CaseFacts]) -> Expected:
    """Return what the batches of a source should hold, from the facts of its labeled cases."""
    shares = {i: facts[i].foreground or 0.0 for i in source.labeled}
    positive = [i for i in source.labeled if shares[i] > 0]  # a case may stand there more than once
    of_cases = len(positive) / len(source.labeled)
    sampler = source.labeled_cases
    balanced = sampler if isinstance(sampler, BalancedCaseStream) else None
    drawn = of_cases if balanced is None else balanced.reachable_ratio
    mean = drawn * float(np.mean([shares[i] for i in positive])) if positive else 0.0
    held = [min(1.0, _patches_filled(source, facts[i], shares[i])) for i in positive]
    share = source.foreground_share
    centered = min(source.foreground_ratio, drawn) if share is None else 0.0
    most = (1 - centered) * mean + centered * (float(np.mean(held)) if held else 0.0)
    return Expected(
        counts=source.counts,
        positive=frozenset(positive),
        positive_cases=of_cases,
        foreground=mean if share is None else share,
        most_foreground=(1 + source.augment.copy_paste) * (max(mean, most) if share is None else share),
        centered=centered,
        ratio=source.positive_ratio,
        share=source.foreground_share,
        reachable=drawn,
        positive_weight=1.0 if balanced is None else balanced.positive_weight,
    )


def summarize_batches(contents: Sequence[Contents], expected: Expected) -> tuple[dict[str, Any], list[Finding]]:
    """Return the figures of each batch, of all together and of what was expected; and warnings where they disagree."""
    total = sum(contents, Contents())
    summary = {
        "batches": [one.to_dict() for one in contents],
        "total": total.to_dict(),
        "expected": expected.to_dict(),
    }
    findings = [
        *_check_counts(contents, expected),
        *_check_foreground(total, expected),
        *_check_ratio(total, expected),
        *_check_share(total, expected),
        *_check_centered(contents, expected),
        *_check_ignored(total),
    ]
    return summary, findings


def _check_counts(contents: Sequence[Contents], expected: Expected) -> Iterable[Finding]:
    for name, wanted in zip(("labeled", "unlabeled"), expected.counts, strict=True):
        found = sorted({getattr(one, name) for one in contents})
        if any(number != wanted for number in found):
            numbers = ", ".join(map(str, found))
            why = ": there are no unlabeled cases" if found == [0] else ""
            yield Finding(f"{name}_count", "warn", f"batch.{name} = {wanted}, but the batches hold {numbers}{why}")


def _check_foreground(total: Contents, expected: Expected) -> Iterable[Finding]:
    if not expected.positive:
        yield Finding(
            "no_positive_case", "warn", "no labeled case has foreground: nothing but background can be learned"
        )
        return
    if total.positive_patches == 0:
        text = f"none of {total.labeled} labeled patches has foreground; raise data.foreground_ratio"
        yield Finding("no_positive_patch", "warn", f"{text}, or batch.positive_ratio where few cases have any")
        return
    share = total.foreground / max(total.valid, 1)
    if share < FEWEST * expected.foreground:
        text = f"{share:.2%} of the labeled voxels are foreground, and {expected.foreground:.2%} of the cases drawn"
        yield Finding("too_little_foreground", "warn", f"{text}: the sampler misses it; raise data.foreground_ratio")
    if share > MOST * expected.most_foreground:
        text = f"{share:.2%} of the labeled voxels are foreground, and at most {expected.most_foreground:.2%} should be"
        yield Finding("too_much_foreground", "warn", f"{text}: the network would learn to predict too much of it")


def _check_ratio(total: Contents, expected: Expected) -> Iterable[Finding]:
    if expected.ratio is None or not total.labeled:
        return
    if abs(expected.reachable - expected.ratio) > TOLERANCE:
        kind = "no labeled case has foreground" if expected.reachable == 0 else "all labeled cases have foreground"
        text = f"batch.positive_ratio = {expected.ratio:g} cannot be met: {kind}; all cases are drawn equally often"
        yield Finding("ratio_out_of_reach", "warn", text)
    share = total.from_positive / total.labeled
    if abs(share - expected.reachable) > TOLERANCE + 1 / total.labeled:
        text = f"{share:.0%} of the labeled patches are from positive cases instead of {expected.reachable:.0%}"
        yield Finding("ratio_missed", "warn", text)


def _check_share(total: Contents, expected: Expected) -> Iterable[Finding]:
    found = total.foreground / max(total.valid, 1)
    if expected.share is not None and expected.positive and abs(found - expected.share) > TOLERANCE:
        yield Finding("share_missed", "warn", describe_missed_share(expected.share, found))


def _check_centered(contents: Sequence[Contents], expected: Expected) -> Iterable[Finding]:
    patches = sum(one.labeled for one in contents)
    found = sum(one.positive_patches for one in contents)
    wanted = sum(min(expected.centered * one.labeled, one.from_positive) for one in contents)
    # A batch rounds its number of centered patches up or down at random: a standard deviation of at most a half.
    if 0 < found < wanted - TOLERANCE * patches - sqrt(len(contents)):
        text = f"{found} of {patches} labeled patches have foreground, but {wanted:.0f} should be centered on it"
        yield Finding("few_positive_patches", "warn", text)


def _check_ignored(total: Contents) -> Iterable[Finding]:
    if total.voxels - total.valid > MOSTLY * total.voxels:
        share = 1 - total.valid / total.voxels
        text = f"{share:.0%} of the labeled voxels are ignored: outside of images that are smaller than the patch, or"
        yield Finding("mostly_ignored", "warn", f"{text} marked so in the masks")


def _patches_filled(source: PatchSource, facts: CaseFacts, share: float) -> float:
    """Return how many patches all foreground of a case would fill, on the grid of the network."""
    voxels = prod(facts.shape)
    wanted = source.store.resample_to
    enlarged = 1.0 if wanted is None or facts.spacing is None else prod(facts.spacing) / prod(wanted)
    enlarged *= (1 + source.augment.scale) ** (len(facts.shape) * (source.augment.affine > 0))
    return share * voxels * enlarged / prod(source.patch_size)


def _divide(part: int, whole: int) -> float | None:
    return part / whole if whole else None
