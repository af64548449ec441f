"""Report images that are there more than once: exact copies, near copies, and images that are much alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ssl_seg.data.duplicates import Cluster, Likeness, compare_cases
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding, Level, name_ends, report
from ssl_seg.errors import name_examples

_SHOWN = 3


def find_copies(facts: Mapping[str, CaseFacts], groups: Mapping[str, str], root: str | None = None) -> Likeness:
    """Return all copies, each set sorted, and the alike pairs that are not in one group.

    Args:
        groups: id -> group of all cases, empty if there are none.
    """
    likeness = compare_cases(facts, root)
    apart = (p for p in likeness.pairs if not groups or groups[p.first] != groups[p.second])
    return replace(likeness, copies=tuple(tuple(sorted(c)) for c in likeness.copies), pairs=tuple(apart))


def check_copies(copies: Likeness, facts: Mapping[str, CaseFacts], groups: Mapping[str, str]) -> Iterator[Finding]:
    """Report copies: they weigh double, and in two groups they let a test know the training.

    With different masks one of these is wrong. A crowd, or an alike pair, may be no copies: only a person can tell.

    Args:
        groups: id -> group of all cases, empty if there are none.
    """
    conflicting = [c for c in copies.exact if len({facts[i].content for i in c if facts[i].values is not None}) > 1]
    across = [c for c in copies.exact if _in_several(c, groups)]
    others = [c for c in copies.exact if c not in across and c not in conflicting]
    near_across = [c for c in copies.copies if _in_several(c, groups)]
    near_within = [c for c in copies.copies if c not in near_across]
    near = (
        "are nearly the same image, within one group."
        if groups
        else "are nearly the same image (resized, compressed, mirrored, slices?). Give each set one group in "
        "groups.csv."
    )
    rules: tuple[tuple[str, Level, Sequence[Cluster], str], ...] = (
        ("conflicting_masks", "fault", conflicting, "of the same image have different masks. Keep the right one."),
        (
            "duplicate_across_groups",
            "fault",
            across,
            "are exact copies in different groups: one image could get into training and test. Correct the groups, or "
            "remove copies.",
        ),
        (
            "duplicate_image",
            "warn",
            others,
            "are exact copies and weigh double. Remove the copies; a split keeps them in one part.",
        ),
        (
            "near_duplicate_across_groups",
            "warn",
            near_across,
            "are nearly the same image in different groups (resized, compressed, mirrored?). Look, and join the "
            "groups.",
        ),
        ("near_duplicate", "info" if groups else "warn", near_within, near),
        (
            "alike_crowd",
            "warn",
            copies.crowds,
            "look like copies of the first, too many to be copies; a split deals them out. Look at them with --figure; "
            "if they are copies, give them one group in groups.csv.",
        ),
    )
    for code, level, clusters, said in rules:
        cases = [i for cluster in clusters for i in cluster]
        sets = name_examples((name_examples(cluster, between=" = ") for cluster in clusters), _SHOWN, between="; ")
        message = f"{len(cases)} cases in {len(clusters)} set(s) ({sets}) {said}"
        yield from report(code, level, message, cases)
    pairs = (f"{p.first} ~ {p.second} {p.likeness:.2f}" for p in copies.pairs)
    shown = name_examples(pairs, _SHOWN, between="; ", total=len(copies.pairs))
    message = (
        f"{len(copies.pairs)} pair(s) of images are much alike: {shown}. If they show one patient or one place twice, "
        "give them one group in groups.csv."
    )
    yield from report("alike_images", "info", message, name_ends((p.first, p.second) for p in copies.pairs))


def _in_several(cluster: Cluster, groups: Mapping[str, str]) -> bool:
    return bool(groups) and len({groups[i] for i in cluster}) > 1
