"""Which cases there are, and what is in them.

A data set is a folder with ``images/`` and ``masks/``, paired by file name, or ``synthetic:<kind>``. An image without a
mask file is unlabeled; a mask of zeros is a labeled negative.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_seg.data import synthetic
from ssl_seg.data.folders import find_pairs, read_groups
from ssl_seg.data.splits import IMAGE_DIGITS
from ssl_seg.data.volumes import read_image, read_mask
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
class Case:
    """One image, with its mask if there is one.

    ``image`` and ``mask`` are locations for ``volumes``; ``group`` names what must not be torn apart (a patient, a
    paper).
    """

    id: str
    image: str
    mask: str | None
    group: str | None


@dataclass(frozen=True)
class CaseFacts:
    """What reading a case has shown.

    ``shape`` is *S; ``values`` are the mask's values, sorted; ``foreground`` is the share of voxels that are not
    background among those that are not ignored. Both are None without a mask. ``content`` is 16 hex digits of SHA-256
    over the decoded arrays, so the same for any file format: 12 of the image, then 4 of the mask (zeros without one);
    the first 12 find an image again that lost or gained its mask.
    """

    shape: tuple[int, ...]
    channels: int
    dtype: str
    values: tuple[int, ...] | None
    foreground: float | None
    content: str


@dataclass(frozen=True)
class Catalog:
    """All cases of a data set, sorted by id, with their facts; the label values that hold for all masks."""

    root: str
    cases: tuple[Case, ...]
    facts: Mapping[str, CaseFacts]
    label_values: tuple[int, ...]
    ignore_value: int | None
    notes: tuple[str, ...]

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


def find_cases(root: str, groups: Path | None = None) -> tuple[tuple[Case, ...], tuple[str, ...]]:
    """Return the cases of a data set, sorted by id, and notes on what was found; no image is opened.

    Args:
        root: a folder with ``images/`` and, for labeled cases, ``masks/``; or ``synthetic:<kind>``.
        groups: CSV file with the columns name and group; ``root/groups.csv`` is used if it is there.

    Raises:
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    if synthetic.is_synthetic(root):
        locations = synthetic.locations(root.partition(":")[2])
        return tuple(Case(loc.rpartition("/")[2], loc, loc, None) for loc in locations), ()
    folder = Path(root)
    images, masks, notes = find_pairs(folder)
    if groups is None and (folder / "groups.csv").is_file():
        groups = folder / "groups.csv"
        notes += (f"groups are taken from {groups}",)
    group_of: Mapping[str, str] = {}
    if groups is not None:
        group_of, group_notes = read_groups(groups, images)
        notes += group_notes
    cases = (
        Case(case_id, str(path), str(masks[case_id]) if case_id in masks else None, group_of.get(case_id))
        for case_id, path in sorted(images.items())
    )
    return tuple(cases), notes


def open_catalog(
    root: str,
    *,
    groups: Path | None = None,
    label_values: Sequence[int] | None = None,
    ignore_value: int | None = None,
    track: Track = pass_through,
) -> Catalog:
    """Find all cases, read each of them once, and check that they fit together.

    Args:
        root: see ``find_cases``.
        groups: see ``find_cases``.
        label_values: mask value of each class, background first; None infers them from all masks.
        ignore_value: mask value of voxels to leave out, or None.
        track: told about every case that has been read.

    Raises:
        DataError: with all problems of all files at once.
    """
    cases, notes = find_cases(root, groups)
    read = partial(_read_facts, background=label_values[0] if label_values else 0, ignore_value=ignore_value)
    facts: dict[str, CaseFacts] = {}
    problems: list[str] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for case, result in zip(cases, track(pool.map(read, cases), len(cases)), strict=True):
            if isinstance(result, CaseFacts):
                facts[case.id] = result
            else:
                problems.append(result)
    problems += _shape_problems(facts)
    if label_values is not None:
        values = tuple(label_values)
        problems += _value_problems(cases, facts, {*values, *_optional(ignore_value)})
    else:
        values, value_problems = _infer_values(cases, facts, ignore_value)
        problems += value_problems
    if problems:
        more = f"\n... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{root}: {len(problems)} problem(s) found.\n" + "\n".join(problems[:_SHOWN]) + more)
    notes += _content_notes(facts, values, inferred=label_values is None)
    return Catalog(root, cases, facts, values, ignore_value, notes)


def _read_facts(case: Case, background: int, ignore_value: int | None) -> CaseFacts | str:
    """Return the facts of one case, or what is wrong with it."""
    try:
        image = read_image(case.image)
        mask = None if case.mask is None else read_mask(case.mask)
    except DataError as error:
        return str(error)
    shape = image.shape[1:]
    common = (shape, len(image), image.dtype.name)
    if mask is None:
        return CaseFacts(*common, None, None, _digest(image)[:IMAGE_DIGITS] + "0000")
    if mask.shape != shape:
        return f"{case.mask}: the mask is {_size(mask.shape)}, its image {_size(shape)}. They must be of one size."
    values, counts = np.unique(mask, return_counts=True)
    count = dict(zip(values.tolist(), counts.tolist(), strict=True))
    looked_at = mask.size - (0 if ignore_value is None else count.get(ignore_value, 0))
    foreground = (looked_at - count.get(background, 0)) / max(looked_at, 1)
    return CaseFacts(*common, tuple(sorted(count)), foreground, _digest(image)[:IMAGE_DIGITS] + _digest(mask)[:4])


def _digest(array: NDArray[np.generic]) -> str:
    head = f"{array.dtype.name} {array.shape}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _optional(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)


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
