"""Which cases there are, and what is in them.

A data set is a folder or manifest in one of the ``LAYOUTS``, or ``synthetic:<kind>``. An image without a mask is
unlabeled; a mask of zeros is a labeled negative.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ssl_seg.data import synthetic
from ssl_seg.data.facts import CaseFacts, SizeMismatchError, read_facts
from ssl_seg.data.findings import Finding, select_faults
from ssl_seg.data.layouts import find_listing
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.errors import DataError, did_you_mean
from ssl_seg.labels import infer_label_values

Track = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes on an iterable of known length; a progress bar can be drawn on the way."""

_READERS = 4
"""Threads that read files: decoders release the interpreter lock, and a disk likes a few requests at once."""

_SHOWN = 8
"""Problems listed in one error."""

_MANY_CLASSES = 32
"""More inferred classes than this are worth a note."""


@dataclass(frozen=True)
class Catalog:
    """All cases of a data set, sorted by id, with their facts; the label values that hold for all masks."""

    root: str
    cases: tuple[Case, ...]
    facts: Mapping[str, CaseFacts]
    label_values: tuple[int, ...]
    ignore_value: int | None
    notes: tuple[str, ...]
    layout: str = "folders"
    label_map: Mapping[int, int] = field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.facts[self.cases[0].id].shape)

    @property
    def channels(self) -> int:
        """Channels that hold every image: 3 if one has colors and others are gray."""
        return max(f.channels for f in self.facts.values())

    @property
    def num_classes(self) -> int:
        """Classes, background included."""
        return len(self.label_values)

    @property
    def labeled(self) -> tuple[Case, ...]:
        """Cases with a mask."""
        return tuple(c for c in self.cases if c.mask is not None)

    @property
    def unlabeled(self) -> tuple[Case, ...]:
        """Cases without a mask."""
        return tuple(c for c in self.cases if c.mask is None)

    def case(self, case_id: str) -> Case:
        """Return the case with this id.

        Raises:
            DataError: if there is none.
        """
        if case_id not in self._by_id:
            raise DataError(f"no case '{case_id}' in {self.root}{did_you_mean(case_id, self._by_id)}.")
        return self._by_id[case_id]

    @cached_property
    def _by_id(self) -> dict[str, Case]:
        return {c.id: c for c in self.cases}


def pass_through(items: Iterable[Any], total: int) -> Iterable[Any]:  # noqa: ARG001 - a Track takes both
    """Return ``items``: the ``Track`` that shows nothing."""
    return items


def find_cases(root: str, *, groups: Path | None = None, layout: str = "auto") -> Listing:
    """Return the cases of a data set, sorted by id, and what was noticed on the way; no image is decoded.

    Args:
        root: a folder or manifest in one of the ``LAYOUTS``; or ``synthetic:<kind>``.
        groups: CSV file with the columns name and group; ``root/groups.csv`` is used if it is there.
        layout: a key of ``LAYOUTS``, or auto to recognize it.

    Raises:
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    if synthetic.is_synthetic(root):
        locations = synthetic.locations(root.partition(":")[2])
        cases = tuple(Case(loc.rpartition("/")[2], loc, loc, None) for loc in locations)
        return Listing("synthetic", cases, notes=(), findings=())
    return find_listing(Path(root), layout, groups)


def scan_cases(
    cases: Sequence[Case],
    *,
    label_map: Mapping[int, int] | None = None,
    background: int = 0,
    ignore_value: int | None = None,
    track: Track = pass_through,
) -> tuple[dict[str, CaseFacts], list[Finding]]:
    """Read every case once. Return the facts of those that can be read, and a fault for each other one.

    Args:
        cases: what to read.
        label_map, background, ignore_value: see ``read_facts``.
        track: told about every case that has been read.
    """
    read = partial(_try_facts, label_map=label_map, background=background, ignore_value=ignore_value)
    facts: dict[str, CaseFacts] = {}
    faults: list[Finding] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for case, result in zip(cases, track(pool.map(read, cases), len(cases)), strict=True):
            if isinstance(result, CaseFacts):
                facts[case.id] = result
            else:
                faults.append(result)
    return facts, faults


def open_catalog(
    root: str,
    *,
    groups: Path | None = None,
    layout: str = "auto",
    label_values: Sequence[int] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_value: int | None = None,
    track: Track = pass_through,
) -> Catalog:
    """Find all cases, read each of them once, and check that they fit together.

    Args:
        root, groups, layout: see ``find_cases``.
        label_values: mask value of each class, background first; None takes those that the layout declares, or infers
            them from all masks.
        label_map: mask value of the files -> value to use instead.
        ignore_value: mask value of voxels to leave out; None takes the one that the layout declares, if any.
        track: told about every case that has been read.

    Raises:
        DataError: with all problems of all files at once.
    """
    listing = find_cases(root, groups=groups, layout=layout)
    declared = listing.label_values if label_values is None and not label_map else label_values
    ignored = listing.ignore_value if ignore_value is None else ignore_value
    facts, faults = scan_cases(
        listing.cases,
        label_map=label_map,
        background=declared[0] if declared else 0,
        ignore_value=ignored,
        track=track,
    )
    problems = [fault.message for fault in (*select_faults(listing.findings), *faults)]
    problems += _shape_problems(facts)
    if declared is not None:
        values = tuple(declared)
        problems += _value_problems(listing.cases, facts, {*values} if ignored is None else {*values, ignored})
    else:
        values, value_problems = _infer_values(listing.cases, facts, ignored)
        problems += value_problems
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{root}: {len(problems)} problem(s) found.\n" + "\n".join(problems[:_SHOWN]) + more)
    notes = listing.notes + _content_notes(facts, values, inferred=declared is None)
    return Catalog(root, listing.cases, facts, values, ignored, notes, listing.layout, dict(label_map or {}))


def _try_facts(case: Case, **labels: Any) -> CaseFacts | Finding:
    """Return the facts of one case, or the fault that keeps it from being read."""
    try:
        return read_facts(case, **labels)
    except SizeMismatchError as error:
        return Finding("size_mismatch", "fault", str(error), (case.id,))
    except DataError as error:
        return Finding("unreadable", "fault", str(error), (case.id,))


def _shape_problems(facts: Mapping[str, CaseFacts]) -> list[str]:
    """Say if images and volumes are mixed, or numbers of channels other than gray and color."""
    problems = []
    for what, examples in (
        ("images and volumes", _first_by({i: f"{len(f.shape)}D" for i, f in facts.items()})),
        ("channel counts", _first_by({i: f"{f.channels} channel(s)" for i, f in facts.items()})),
    ):
        gray_and_color = set(examples) == {"1 channel(s)", "3 channel(s)"}
        if len(examples) > 1 and not gray_and_color:
            listed = ", ".join(f"{n} with {kind} (e.g. {example})" for kind, (example, n) in examples.items())
            problems.append(f"the data set mixes {what}: {listed}. Keep one kind per data set.")
    return problems


def _first_by(kind_of: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """Return kind -> (first id of that kind, number of ids), the most frequent kind first."""
    count = Counter(kind_of.values())
    return {kind: (next(i for i, k in kind_of.items() if k == kind), n) for kind, n in count.most_common()}


def _value_problems(cases: Iterable[Case], facts: Mapping[str, CaseFacts], known: set[int]) -> list[str]:
    problems = []
    for case in cases:
        found = facts[case.id].values if case.id in facts else None
        unknown = sorted(set(found or ()) - known)
        if unknown:
            shown = ", ".join(map(str, unknown[:8])) + (", ..." if len(unknown) > 8 else "")
            problems.append(
                f"{case.mask}: mask value(s) {shown} not among the label values {sorted(known)}. "
                "Correct the mask, or list every value in data.label_values."
            )
    return problems


def _infer_values(
    cases: Iterable[Case], facts: Mapping[str, CaseFacts], ignore_value: int | None
) -> tuple[tuple[int, ...], list[str]]:
    """Return the label values of all masks; if they make no sense, also name the masks with the rarest ones."""
    masks_with: dict[int, list[str]] = defaultdict(list)
    for case in cases:
        for value in (facts[case.id].values or ()) if case.id in facts else ():
            if value != ignore_value:
                masks_with[value].append(str(case.mask))
    try:
        return infer_label_values(masks_with), []
    except DataError as error:
        rarest = sorted((v for v in masks_with if v != 0), key=lambda v: (len(masks_with[v]), v))[:3]
        where = "; ".join(f"{v} in {len(masks_with[v])} mask(s), e.g. {masks_with[v][0]}" for v in rarest)
        return (0, 1), [f"{error} The rarest values: {where}."]


def _content_notes(facts: Mapping[str, CaseFacts], label_values: Sequence[int], *, inferred: bool) -> tuple[str, ...]:
    """Return notes on masks that are readable and still probably not meant so."""
    foregrounds = [f.foreground for f in facts.values() if f.foreground is not None]
    notes = []
    if not foregrounds:
        notes.append("NO CASE HAS A MASK: nothing can be trained or evaluated, only predicted")
    elif not any(foregrounds):
        notes.append(
            f"ALL {len(foregrounds)} MASKS ARE EMPTY: there is no foreground to learn; are these the right masks?"
        )
    if inferred and len(label_values) > _MANY_CLASSES:
        notes.append(
            f"the masks hold {len(label_values)} values, taken for as many classes; if they are smoothed or instance "
            "masks, threshold them first"
        )
    return tuple(notes)
