"""Rules about images that are there more than once: exact copies, near copies, and images that are much alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ssl_seg.data.content import is_constant
from ssl_seg.data.duplicates import AlikePair, compare_cases
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding, name_ends
from ssl_seg.errors import name_examples

Cluster = tuple[str, ...]

_SHOWN = 3


@dataclass(frozen=True)
class Copies:
    """What is there more than once: sets of ids with the same image, sets with nearly the same, and alike pairs.

    Alike pairs are neither nearly the same nor in one group. ``crowds``: see ``Likeness``.
    """

    exact: tuple[Cluster, ...]
    near: tuple[Cluster, ...]
    crowds: tuple[Cluster, ...]
    alike: tuple[AlikePair, ...]


def find_copies(facts: Mapping[str, CaseFacts], groups: Mapping[str, str], root: str | None = None) -> Copies:
    """Return all copies. Images of one single value are not counted; each copy is in one place only.

    Args:
        facts: of all cases.
        groups: id -> group of all cases, empty if there are none.
        root: see ``compare_cases``.
    """
    likeness = compare_cases(facts, root)
    by_content: dict[str, list[str]] = defaultdict(list)
    for case_id, found in facts.items():
        if not is_constant(found.image):
            by_content[found.image].append(case_id)
    return Copies(
        exact=tuple(tuple(ids) for ids in by_content.values() if len(ids) > 1),
        near=tuple(tuple(sorted(c)) for c in likeness.copies),
        crowds=likeness.crowds,
        alike=tuple(p for p in likeness.pairs if not groups or groups[p.first] != groups[p.second]),
    )


def check_copies(copies: Copies, facts: Mapping[str, CaseFacts], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what all rules of this module find.

    Args:
        copies: of these facts.
        facts: of all cases.
        groups: id -> group of all cases, empty if there are none.
    """
    yield from check_exact_copies(copies.exact, facts, groups)
    yield from check_near_copies(copies.near, groups)
    yield from check_crowds(copies.crowds)
    yield from check_alike(copies.alike)


def check_exact_copies(
    copies: Sequence[Cluster], facts: Mapping[str, CaseFacts], groups: Mapping[str, str]
) -> Iterator[Finding]:
    """Copies weigh double; in two groups, the groups are wrong; with two masks, one of them is."""
    conflicting = [c for c in copies if len({facts[i].content for i in c if facts[i].values is not None}) > 1]
    yield from _report(
        "conflicting_masks", "fault", conflicting, "of the same image have different masks. Keep the right one."
    )
    across = [c for c in copies if _in_several(c, groups)]
    advice = (
        "are exact copies in different groups: one image could get into training and test. Correct the groups, or "
        "remove copies."
    )
    yield from _report("duplicate_across_groups", "fault", across, advice)
    told = {*across, *conflicting}
    others = [c for c in copies if c not in told]
    advice = "are exact copies and weigh double. Remove the copies; a split keeps them in one part."
    yield from _report("duplicate_image", "warn", others, advice)


def check_near_copies(near: Sequence[Cluster], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Near copies let a test know the training; within one group they only weigh double."""
    across = [c for c in near if _in_several(c, groups)]
    advice = (
        "are nearly the same image in different groups (resized, compressed, mirrored?). Look, and join the groups."
    )
    yield from _report("near_duplicate_across_groups", "warn", across, advice)
    within = [c for c in near if not _in_several(c, groups)]
    if groups:
        yield from _report("near_duplicate", "info", within, "are nearly the same image, within one group.")
    else:
        advice = (
            "are nearly the same image (resized, compressed, mirrored, slices?). Give each set one group in groups.csv."
        )
        yield from _report("near_duplicate", "warn", within, advice)


def check_crowds(crowds: Sequence[Cluster]) -> Iterator[Finding]:
    """So many images that look like copies of one may just be of one kind: only a person can tell."""
    advice = (
        "look like copies of the first, too many to be copies; a split deals them out. Look at them with --figure; if "
        "they are copies, give them one group in groups.csv."
    )
    yield from _report("alike_crowd", "warn", crowds, advice)


def check_alike(alike: Sequence[AlikePair]) -> Iterator[Finding]:
    """Pairs in different groups that are much alike may be one object seen twice: only a person can tell."""
    if alike:
        pairs = (f"{p.first} ~ {p.second} {p.likeness:.2f}" for p in alike)
        shown = name_examples(pairs, _SHOWN, between="; ", total=len(alike))
        message = (
            f"{len(alike)} pair(s) of images are much alike: {shown}. If they show one patient or one place twice, "
            "give them one group in groups.csv."
        )
        yield Finding("alike_images", "info", message, name_ends((p.first, p.second) for p in alike))


def _report(
    code: str, level: Literal["info", "warn", "fault"], clusters: Sequence[Cluster], said: str
) -> Iterator[Finding]:
    if clusters:
        cases = tuple(i for cluster in clusters for i in cluster)
        sets = name_examples((name_examples(cluster, between=" = ") for cluster in clusters), _SHOWN, between="; ")
        message = f"{len(cases)} cases in {len(clusters)} set(s) ({sets}) {said}"
        yield Finding(code, level, message, cases)


def _in_several(cluster: Cluster, groups: Mapping[str, str]) -> bool:
    return bool(groups) and len({groups[i] for i in cluster}) > 1
