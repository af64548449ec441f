"""Rules about images that are there more than once: exact copies, near copies, and images that are much alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ssl_seg.data.duplicates import AlikePairs, find_alike_pairs, find_near_duplicates
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.errors import name_examples

Cluster = tuple[str, ...]

_SHOWN = 3


@dataclass(frozen=True)
class Copies:
    """What is there more than once: sets of ids with the same image, sets with nearly the same, and alike pairs.

    Alike pairs are neither nearly the same nor in one group.
    """

    exact: tuple[Cluster, ...]
    near: tuple[Cluster, ...]
    alike: AlikePairs


def find_copies(facts: Mapping[str, CaseFacts], groups: Mapping[str, str]) -> Copies:
    """Return all copies. Images of one single value are not counted; each copy is in one place only.

    Args:
        facts: of all cases.
        groups: id -> group of all cases, empty if there are none.
    """
    thumbnails = {i: f.appearance.thumbnail for i, f in facts.items() if f.appearance is not None}
    clusters = find_near_duplicates(thumbnails)
    cluster_of = {i: number for number, cluster in enumerate(clusters) for i in cluster}
    by_content: dict[str, list[str]] = defaultdict(list)
    for case_id, found in facts.items():
        if found.appearance is None or found.appearance.low < found.appearance.high:
            by_content[found.image].append(case_id)
    return Copies(
        exact=tuple(tuple(ids) for ids in by_content.values() if len(ids) > 1),
        near=tuple(c for c in clusters if len({facts[i].image for i in c}) > 1),
        alike=find_alike_pairs(thumbnails, together=(cluster_of, groups)),
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
    others = [c for c in copies if c not in across and c not in conflicting]
    advice = "are exact copies and weigh double. Remove the copies; a split keeps them in one part."
    yield from _report("duplicate_image", "warn", others, advice)


def check_near_copies(near: Sequence[Cluster], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Near copies let a test know the training; within one group they only weigh double."""
    across = [c for c in near if _in_several(c, groups)]
    advice = (
        "are nearly the same image in different groups (resized, compressed, mirrored?). Look, and join the groups."
    )
    yield from _report("near_duplicate_across_groups", "warn", across, advice)
    within = [c for c in near if c not in across]
    if groups:
        yield from _report("near_duplicate", "info", within, "are nearly the same image, within one group.")
    else:
        advice = (
            "are nearly the same image (resized, compressed, mirrored, slices?). Give each set one group in groups.csv."
        )
        yield from _report("near_duplicate", "warn", within, advice)


def check_alike(alike: AlikePairs) -> Iterator[Finding]:
    """Pairs in different groups that are much alike may be one object seen twice: only a person can tell."""
    if alike.total:
        pairs = (f"{p.first} ~ {p.second} {p.correlation:.2f}" for p in alike.pairs)
        shown = name_examples(pairs, _SHOWN, between="; ", total=alike.total)
        message = (
            f"{alike.total} pair(s) of images are much alike: {shown}. If they show one patient or one place twice, "
            "give them one group in groups.csv."
        )
        cases = tuple(dict.fromkeys(i for p in alike.pairs for i in (p.first, p.second)))
        yield Finding("alike_images", "info", message, cases)


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
