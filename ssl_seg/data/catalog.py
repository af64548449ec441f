"""Which cases there are, and what is in them.

A data set is a folder or manifest in one of the ``LAYOUTS``, or ``synthetic:<kind>``. An image without a mask is
unlabeled; a mask of zeros is a labeled negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.data.audit.checks import (
    check_conflicting_masks,
    check_constant_images,
    check_doubts,
    check_empty_masks,
    check_full_masks,
    check_kinds,
    check_missing_masks,
    check_nodata,
    check_same_masks,
    check_two_values,
    check_unannotated,
)
from ssl_seg.data.audit.labels import (
    check_palettes,
    check_unexpected_values,
    find_label_values,
    name_annotated,
    values_by_mask,
)
from ssl_seg.data.audit.meaning import settle_meaning
from ssl_seg.data.facts import (
    CaseFacts,
    SizeMismatchError,
    describe_notes,
    open_case,
    read_facts,
    settle_facts,
    settle_reading,
    state_spacing,
)
from ssl_seg.data.facts_cache import FactsCache, open_facts_cache
from ssl_seg.data.findings import Finding, describe_finding, join_findings, select_faults
from ssl_seg.data.formats.stored import take_region
from ssl_seg.data.grids import GridMismatchError
from ssl_seg.data.layouts import find_listing
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.nodata import find_nodata
from ssl_seg.data.reading import AS_STORED, Reading, make_reading
from ssl_seg.data.tiles import Tiling, part_case, plan_tiles
from ssl_seg.data.volumes import is_lossy
from ssl_seg.errors import DataError, counted, did_you_mean
from ssl_seg.labels import Meaning

if TYPE_CHECKING:
    from ssl_seg.data.duplicates import Likeness

Track = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes on an iterable of known length; a progress bar can be drawn on the way."""

_READERS = 4
"""Threads that read files: decoders release the interpreter lock, and a disk likes a few requests at once."""

_BATCH = 1024
"""Cases that wait for the readers at a time."""

_USELESS_MASKS = ("no_masks", "all_masks_empty", "empty_masks", "all_masks_full", "same_masks")
"""Findings about masks that can be read and are still probably not meant so."""

_KEPT = 2 / 3
"""Share of the labeled voxels that is hardly ever below that in all parts, unless labels are few slices in the gaps."""

_SHOWN = 8
"""Problems listed in one error."""


@dataclass(frozen=True)
class CatalogSettings:
    """How the cases of a data set are found and read.

    Attributes:
        groups: CSV file with the columns name and group; None takes ``groups.csv`` where it is there, and else what
            names say; ``none`` stands for no groups.
        layout: a key of ``LAYOUTS``, or auto to recognize it.
        unlabeled: folder of further unlabeled images.
        meaning: what somebody has said about mask values; the layout and the masks say the rest.
        reading: how the files are read, where they leave it open.
        tiles: parts of each labeled image that become cases of their own; see ``plan_tiles``.
        spacing: voxel size (*S) that all images have, whatever their files say.
    """

    groups: Path | None = None
    layout: str = "auto"
    unlabeled: Path | None = None
    meaning: Meaning = field(default_factory=Meaning)
    reading: Reading = AS_STORED
    tiles: int | None = None
    spacing: tuple[float, ...] | None = None


DEFAULTS = CatalogSettings()


def parse_section(data: Mapping[str, Any]) -> CatalogSettings:
    """Return what a (perhaps partial) ``data`` section says about finding and reading cases."""
    values = data.get("label_values")
    meaning = Meaning(
        kind=data.get("mask"),
        threshold=data.get("threshold"),
        label_values=tuple(values) if values else None,
        label_map={int(old): int(new) for old, new in (data.get("label_map") or {}).items()},
        ignore_value=data.get("ignore_value"),
        task=data.get("task") or "semantic",
    )
    groups, unlabeled = (Path(data[name]) if data.get(name) else None for name in ("groups", "unlabeled"))
    layout, spacing = data.get("layout") or "auto", data.get("spacing")
    return CatalogSettings(
        groups,
        layout,
        unlabeled,
        meaning,
        make_reading(data),
        data.get("tiles"),
        tuple(map(float, spacing)) if spacing else None,
    )


@dataclass(frozen=True)
class Catalog:
    """All cases of a data set, sorted by id, with their facts; what the values of all masks mean."""

    root: str
    cases: tuple[Case, ...]
    facts: Mapping[str, CaseFacts]
    meaning: Meaning
    notes: tuple[str, ...]
    layout: str = "folders"
    reading: Reading = AS_STORED
    tiles: int = 1
    """Parts that each large labeled image was to be cut into, at least; 1: none is."""
    whole_images: Mapping[str, str] = field(default_factory=dict)
    """Id of a part -> what identifies the whole image."""

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.facts[self.cases[0].id].shape)

    @property
    def channels(self) -> int:
        """Channels that hold every image: 3 if one has colors and others are gray; 0 without images."""
        return max((f.channels for f in self.facts.values()), default=0)

    @property
    def label_values(self) -> tuple[int, ...]:
        """Value of each class, background first."""
        return self.meaning.class_values

    @property
    def ignore_value(self) -> int | None:
        """Value of voxels that are left out."""
        return self.meaning.ignore_value

    @property
    def num_classes(self) -> int:
        """Classes, background included."""
        return len(self.label_values)

    @cached_property
    def likeness(self) -> Likeness:
        """Which images look alike; found once."""
        from ssl_seg.data.duplicates import compare_cases

        return compare_cases(self.facts, self.root)

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


def scan_cases(
    cases: Sequence[Case],
    *,
    threshold: float | None = None,
    reading: Reading = AS_STORED,
    root: str | None = None,
    track: Track = pass_through,
) -> tuple[dict[str, CaseFacts], list[Finding], Reading]:
    """Return the facts of all cases that can be read, a fault for each other one, and how they were read.

    All cases are read again where a value turns out to stand for no data and ``reading`` has none, and with other axes
    where no image has the size of its mask.

    Args:
        threshold, reading: see ``read_facts``.
        root: the data set, which keeps facts for the next time, see ``open_facts_cache``; None reads every case.
    """
    facts: dict[str, CaseFacts] = {}
    faults: list[Finding] = []
    read = partial(read_facts, threshold=threshold, reading=reading)
    with _open_cache(root, threshold, reading, len(cases)) as cache, ThreadPoolExecutor(_READERS) as pool:
        batches = (cases[start : start + _BATCH] for start in range(0, len(cases), _BATCH))
        found = chain.from_iterable(_find_facts(cache, read, batch, pool) for batch in batches)
        for case, result in zip(cases, track(found, len(cases)), strict=True):
            if isinstance(result, CaseFacts):
                facts[case.id] = result
            else:
                faults.append(result)
    settled = reading
    if not any(own.scan is not None for own in facts.values()):
        wrong = {i for fault in faults if fault.code == "size_mismatch" for i in fault.cases}
        settled = settle_reading([case for case in cases if case.id in wrong], reading)
    if settled == reading and reading.nodata is None:
        settled = replace(reading, nodata=find_nodata(f.odd_value for f in facts.values()))
    if settled != reading:
        return scan_cases(cases, threshold=threshold, reading=settled, root=root, track=track)
    return facts, _join_grid_faults(faults), reading


def _join_grid_faults(faults: list[Finding]) -> list[Finding]:
    """Return the faults, those of different grids as one: most often it is the same in all of them."""
    elsewhere = [fault for fault in faults if fault.code == "grid_mismatch"]
    if len(elsewhere) < 2:
        return faults
    message = f"{elsewhere[0].message} It is like this in {len(elsewhere)} cases"
    joined = replace(elsewhere[0], message=message, cases=tuple(case for f in elsewhere for case in f.cases))
    return [joined, *(fault for fault in faults if fault.code != "grid_mismatch")]


def drop_unannotated(cases: Sequence[Case], facts: Mapping[str, CaseFacts]) -> tuple[Case, ...]:
    """Return the cases, without the masks that ignore every voxel: they say nothing, so their cases are unlabeled."""
    return tuple(replace(c, mask=None) if c.id in facts and facts[c.id].values is None else c for c in cases)


@dataclass(frozen=True)
class ReadCases:
    """Facts of all cases, and what follows from them together.

    Masks that ignore every voxel are left out of ``cases``, as they say nothing; they stay where the masks are of no
    usable kind. ``faults`` are those of single cases, ``findings`` those about the kind of the masks,
    and ``about`` findings about voxels without data and masks that ignore every voxel.
    ``declared`` are the label values that somebody has named, or else None; ``meaning`` has these or those inferred.
    ``reading`` is how files were read, with what was recognized of it, and ``reading_notes`` what to say about it.
    """

    listing: Listing
    cases: tuple[Case, ...]
    facts: Mapping[str, CaseFacts]
    meaning: Meaning
    declared: tuple[int, ...] | None
    reading: Reading
    faults: list[Finding]
    findings: list[Finding]
    about: tuple[Finding, ...]
    reading_notes: tuple[str, ...]

    @property
    def has_kind(self) -> bool:
        """Whether the masks are of a kind that can be used."""
        return not select_faults(self.findings)


def read_cases(root: str, settings: CatalogSettings, track: Track = pass_through) -> ReadCases:
    """Find and read every case, and settle what the values of all masks together mean.

    Label values and a value to ignore that nobody has given are those of the layout.
    """
    listing = find_listing(Path(root), settings.layout, settings.groups, settings.unlabeled)
    given, reading = settings.meaning, settings.reading
    if given.ignore_value is None:
        given = replace(given, ignore_value=listing.ignore_value)
    if not (given.label_values or given.label_map) and given.kind in (None, "semantic") and given.task == "semantic":
        given = replace(given, label_values=listing.label_values)
    facts, faults, used = scan_cases(
        listing.cases, threshold=given.threshold, reading=replace(reading, fractions=True), root=root, track=track
    )
    scans = {i: f.scan for i, f in facts.items() if f.scan is not None}
    lossy = {case.id for case in listing.cases if case.mask is not None and is_lossy(case.mask)}
    meaning, findings = settle_meaning(scans, given, lossy)
    if meaning.kind == "semantic":
        findings += check_palettes(facts, given.label_values)
        masks = {i: frozenset(meaning.to_labels(s.values).tolist()) - {meaning.ignore_value} for i, s in scans.items()}
        annotated = name_annotated(masks, meaning.label_values, meaning.ignore_value)
        meaning = replace(meaning, label_values=None if annotated is None else tuple(annotated))
    if given.threshold is None and meaning.threshold is not None:
        # Fractions are counted exactly only where the threshold is known.
        again = [case for case in listing.cases if case.id in scans and scans[case.id].fractions]
        facts |= scan_cases(again, threshold=meaning.threshold, reading=used, root=root)[0]
    settled = state_spacing({i: settle_facts(f, meaning) for i, f in facts.items()}, settings.spacing)
    has_kind = not select_faults(findings)
    unannotated = check_unannotated(listing.cases, settled) if has_kind else []
    masks_of = values_by_mask(settled, meaning.ignore_value)
    only_so = (f"data.axes={used.axes}: only so the images have the size of their masks",)
    return ReadCases(
        listing=listing,
        cases=drop_unannotated(listing.cases, settled) if has_kind else listing.cases,
        facts=settled,
        meaning=replace(meaning, label_values=find_label_values(masks_of, meaning.label_values)),
        declared=meaning.label_values,
        reading=replace(used, fractions=False),
        faults=faults,
        findings=findings,
        reading_notes=(only_so if used.axes != reading.axes else ()) + describe_notes(settled),
        about=(*unannotated, *check_nodata(settled, used, is_guess=used.nodata != reading.nodata)),
    )


def open_catalog(root: str | Path, settings: CatalogSettings = DEFAULTS, *, track: Track = pass_through) -> Catalog:
    """Find all cases, read each of them once, and check that they fit together.

    Raises:
        DataError: with all problems of all files at once.
    """
    root = str(root)
    read = read_cases(root, settings, track)
    facts, masks = read.facts, values_by_mask(read.facts, read.meaning.ignore_value)
    unexpected = check_unexpected_values(masks, read.declared) if read.has_kind else []
    findings = [*read.listing.findings, *read.faults, *check_kinds(facts), *read.findings, *unexpected]
    _raise_faults(root, select_faults(findings))
    empty = check_empty_masks(facts, asks=read.listing.leaves_labeling_open)
    full = check_full_masks(facts, read.meaning)
    of_masks = (*check_missing_masks(read.cases), *empty, *full, *check_same_masks(facts))
    useless = [finding for finding in of_masks if finding.code in _USELESS_MASKS and finding.level != "info"]
    about = (*check_doubts(facts), *read.findings, *read.about, *useless)
    wrong = [
        *select_faults([*check_conflicting_masks(facts), *check_constant_images(facts)]),
        *check_two_values(facts),
    ]
    catalog = Catalog(
        root,
        read.cases,
        facts,
        read.meaning,
        (
            *read.listing.notes,
            *read.reading_notes,
            *(f.message for f in about),
            *(f"WARNING {describe_finding(finding)}" for finding in wrong),
        ),
        read.listing.layout,
        replace(read.reading, fractions=read.meaning.takes_fractions),
    )
    return _cut_cases(catalog, plan_tiles(read.cases, facts, settings.tiles))


def _cut_cases(catalog: Catalog, tiling: Tiling) -> Catalog:
    """Return the catalog with parts in the place of the cases that are cut."""
    parts, lost = list[Case](), list[str]()
    facts, whole_images = dict(catalog.facts), dict(catalog.whole_images)
    for case in catalog.cases:
        if case.id not in tiling.regions:
            parts.append(case)
            continue
        cut = [part_case(case, region) for region in tiling.regions[case.id]]
        if taken := [part.id for part in cut if part.id in catalog.facts]:
            raise DataError(f"the case {taken[0]} is there already: rename its files, or give data.tiles=1.")
        whole = facts.pop(case.id)
        facts |= state_spacing(_read_parts(case, cut, catalog), whole.spacing)
        whole_images |= dict.fromkeys([part.id for part in cut], whole.image)
        kept = sum(prod(facts[part.id].shape) * (facts[part.id].annotated or 0) for part in cut)
        if (share := kept / (prod(whole.shape) * (whole.annotated or 1))) < _KEPT:
            lost.append(
                f"WARNING only {share:.0%} of the labeled voxels of {case.id} are in its parts, the others lie in the "
                f"gaps between them: data.tiles={tiling.parts // 2 + 1} makes fewer parts"
            )
        parts += cut
    return replace(
        catalog,
        cases=drop_unannotated(sorted(parts, key=lambda case: case.id), facts),
        facts=facts,
        notes=(*catalog.notes, *((tiling.note,) if tiling.note else ()), *lost),
        tiles=tiling.parts,
        whole_images=whole_images,
    )


def _read_parts(case: Case, parts: Sequence[Case], catalog: Catalog) -> dict[str, CaseFacts]:
    """Return the facts of the parts of a case; where they are not known yet, its files are opened once for all."""
    threshold, reading = catalog.meaning.threshold, replace(catalog.reading, fractions=True)
    with _open_cache(catalog.root, threshold, reading, len(catalog.cases) + len(parts)) as cache:
        keys = [cache.make_key(part) for part in parts]
        known = [cache.find(key) for key in keys]
        if None in known:
            image, mask = open_case(case, reading)
            for place, (part, key) in enumerate(zip(parts, keys, strict=True)):
                opened = take_region(image, part.region), mask and take_region(mask, part.region)
                known[place] = facts = read_facts(part, threshold=threshold, reading=reading, opened=opened)
                cache.keep(key, facts)
        return {p.id: settle_facts(f, catalog.meaning) for p, f in zip(parts, known, strict=True) if f is not None}


def _open_cache(
    root: str | None, threshold: float | None, reading: Reading, cases: int
) -> AbstractContextManager[FactsCache]:
    return open_facts_cache(root, f"{threshold} {reading}", cases)


def _find_facts(
    cache: FactsCache, read: Callable[[Case], CaseFacts], cases: Sequence[Case], pool: ThreadPoolExecutor
) -> Iterator[CaseFacts | Finding]:
    """Yield the facts of each case, known or read and kept, or the fault that keeps it from being read."""
    keys = list(pool.map(cache.make_key, cases))
    known = [cache.find(key) for key in keys]
    missing = [case for case, facts in zip(cases, known, strict=True) if facts is None]
    found = pool.map(partial(_try_facts, read), missing)
    for key, facts in zip(keys, known, strict=True):
        result = next(found) if facts is None else facts
        if facts is None and isinstance(result, CaseFacts):
            cache.keep(key, result)
        yield result


def _try_facts(read: Callable[[Case], CaseFacts], case: Case) -> CaseFacts | Finding:
    """Return the facts of one case, or the fault that keeps it from being read."""
    codes = {SizeMismatchError: "size_mismatch", GridMismatchError: "grid_mismatch"}
    try:
        return read(case)
    except DataError as error:
        return Finding(codes.get(type(error), "unreadable"), "fault", str(error), (case.id,))


def _raise_faults(root: str, faults: Sequence[Finding]) -> None:
    """Raise one DataError with the first of the faults; do nothing without faults."""
    if not faults:
        return
    faults = list(join_findings(faults))
    listed = "\n".join(describe_finding(fault) for fault in faults[:_SHOWN])
    more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    found = counted(len(faults), "problem")
    raise DataError(f"{root}: {found} found.\n{listed}{more}\n`ssl-seg data audit {root}` says more.")
