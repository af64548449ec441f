"""Which cases there are, and what is in them.

A data set is a folder or manifest in one of the ``LAYOUTS``, or ``synthetic:<kind>``. An image without a mask is
unlabeled; a mask of zeros is a labeled negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

from ssl_seg.data import synthetic
from ssl_seg.data.audit.checks import check_doubts, check_kinds, check_nodata, check_unannotated
from ssl_seg.data.audit.labels import (
    MANY_CLASSES,
    check_unexpected_values,
    find_label_values,
    name_annotated,
    values_by_mask,
)
from ssl_seg.data.facts import (
    CaseFacts,
    SizeMismatchError,
    describe_notes,
    open_case,
    read_facts,
    settle_reading,
)
from ssl_seg.data.facts_cache import FactsCache, open_facts_cache
from ssl_seg.data.findings import Finding, describe_finding, select_faults
from ssl_seg.data.formats.stored import crop
from ssl_seg.data.grids import GridMismatchError
from ssl_seg.data.layouts import add_unlabeled, find_listing
from ssl_seg.data.layouts.groups import NO_GROUPS
from ssl_seg.data.layouts.listing import Case, Listing
from ssl_seg.data.nodata import find_nodata
from ssl_seg.data.reading import AS_STORED, Reading
from ssl_seg.data.tiles import Tiling, part_case, plan_tiles
from ssl_seg.errors import DataError, did_you_mean

Track = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes on an iterable of known length; a progress bar can be drawn on the way."""

_READERS = 4
"""Threads that read files: decoders release the interpreter lock, and a disk likes a few requests at once."""

_BATCH = 1024
"""Cases that wait for the readers at a time."""

_SHOWN = 8
"""Problems listed in one error."""


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


def find_cases(
    root: str, *, groups: Path | None = None, layout: str = "auto", unlabeled: Path | None = None
) -> Listing:
    """Return the cases of a data set, sorted by id, and what was noticed on the way; no image is decoded.

    Args:
        root: a folder or manifest in one of the ``LAYOUTS``; or ``synthetic:<kind>``.
        groups: CSV file with the columns name and group; ``root/groups.csv`` is used if it is there, else what names
            say; ``none`` stands for no groups.
        layout: a key of ``LAYOUTS``, or auto to recognize it.
        unlabeled: folder of further unlabeled images.

    Raises:
        DataError: if no cases can be found, names clash, or no mask or group name belongs to any image.
    """
    if synthetic.is_synthetic(root):
        locations = synthetic.locations(root.partition(":")[2])
        cases = tuple(Case(loc.rpartition("/")[2], loc, loc, None) for loc in locations)
        return add_unlabeled(Listing("synthetic", cases, notes=(), findings=()), unlabeled, NO_GROUPS)
    return find_listing(Path(root), layout, groups, unlabeled)


def settle_labels(
    listing: Listing,
    label_values: Sequence[int] | None,
    label_map: Mapping[int, int] | None,
    ignore_value: int | None,
) -> tuple[Sequence[int] | None, int | None]:
    """Return label values (None: to be inferred) and value to ignore: those given, else those the layout declares."""
    declared = listing.label_values if label_values is None and not label_map else label_values
    return declared, listing.ignore_value if ignore_value is None else ignore_value


def scan_cases(
    cases: Sequence[Case],
    *,
    label_map: Mapping[int, int] | None = None,
    background: int = 0,
    ignore_value: int | None = None,
    reading: Reading = AS_STORED,
    root: str | None = None,
    track: Track = pass_through,
) -> tuple[dict[str, CaseFacts], list[Finding], Reading]:
    """Return the facts of all cases that can be read, a fault for each other one, and how they were read.

    See ``open_facts_cache``. Where a value turns out to stand for no data, and ``reading`` has none, all cases are read
    again without it; and with other axes, where no image has the size of its mask.

    Args:
        cases: what to read.
        label_map, background, ignore_value, reading: see ``read_facts``.
        root: the data set, which keeps facts for the next time; None reads every case.
        track: told about every case that has been read.
    """
    settings: dict[str, Any] = {
        "label_map": label_map or {},
        "background": background,
        "ignore_value": ignore_value,
        "reading": reading,
    }
    facts: dict[str, CaseFacts] = {}
    faults: list[Finding] = []
    with open_facts_cache(root, repr(settings), len(cases)) as cache, ThreadPoolExecutor(_READERS) as pool:
        read = partial(_find_facts, cache, settings)
        batches = (pool.map(read, cases[start : start + _BATCH]) for start in range(0, len(cases), _BATCH))
        for case, (key, result) in zip(cases, track(chain.from_iterable(batches), len(cases)), strict=True):
            if isinstance(result, CaseFacts):
                facts[case.id] = result
                cache.keep(key, result)
            else:
                faults.append(result)
    if not any(own.values is not None for own in facts.values()):
        wrong = {i for fault in faults if fault.code == "size_mismatch" for i in fault.cases}
        settled = settle_reading([case for case in cases if case.id in wrong], reading)
        if settled != reading:
            return scan_cases(cases, **(settings | {"reading": settled}), root=root, track=track)
    elsewhere = [fault for fault in faults if fault.code == "grid_mismatch"]
    if len(elsewhere) > 1:  # most often it is the same in all of them
        message = f"{elsewhere[0].message} It is like this in {len(elsewhere)} cases"
        joined = replace(elsewhere[0], message=message, cases=tuple(case for f in elsewhere for case in f.cases))
        faults = [joined, *(fault for fault in faults if fault.code != "grid_mismatch")]
    nodata = find_nodata(f.odd_value for f in facts.values()) if reading.nodata is None else None
    if nodata is None:
        return facts, faults, reading
    settings["reading"] = replace(reading, nodata=nodata)
    return scan_cases(cases, **settings, root=root, track=track)


def drop_unannotated(cases: Sequence[Case], facts: Mapping[str, CaseFacts]) -> tuple[Case, ...]:
    """Return the cases, without the masks that ignore every voxel: they say nothing, so their cases are unlabeled."""
    return tuple(replace(c, mask=None) if c.id in facts and facts[c.id].values is None else c for c in cases)


def open_catalog(
    root: str,
    *,
    groups: Path | None = None,
    layout: str = "auto",
    label_values: Sequence[int] | None = None,
    label_map: Mapping[int, int] | None = None,
    ignore_value: int | None = None,
    reading: Reading = AS_STORED,
    tiles: int | None = None,
    unlabeled: Path | None = None,
    track: Track = pass_through,
) -> Catalog:
    """Find all cases, read each of them once, and check that they fit together.

    Args:
        root, groups, layout, unlabeled: see ``find_cases``.
        label_values: mask value of each class, background first; None takes those that the layout declares, or infers
            them from all masks.
        label_map: mask value of the files -> value to use instead.
        ignore_value: mask value of voxels to leave out; None takes the one that the layout declares, if any.
        reading: how the files are read, where they leave it open.
        tiles: parts of each labeled image that become cases of their own; see ``plan_tiles``.
        track: told about every case that has been read.

    Raises:
        DataError: with all problems of all files at once.
    """
    listing = find_cases(root, groups=groups, layout=layout, unlabeled=unlabeled)
    declared, ignored = settle_labels(listing, label_values, label_map, ignore_value)
    background = declared[0] if declared else int(ignored == 0)
    settings: dict[str, Any] = {"label_map": label_map, "background": background, "ignore_value": ignored}
    facts, faults, used = scan_cases(listing.cases, **settings, reading=reading, root=root, track=track)
    settings["reading"] = used
    cases = drop_unannotated(listing.cases, facts)
    masks = values_by_mask(facts, ignored)
    declared = name_annotated(masks, declared, ignored)
    findings = [*listing.findings, *faults, *check_kinds(facts), *check_unexpected_values(masks, declared)]
    _raise_faults(root, select_faults(findings))
    values = find_label_values(masks, declared)
    about = [
        *check_doubts(facts),
        *check_unannotated(listing.cases, facts),
        *check_nodata(facts, used, is_guess=used.nodata != reading.nodata),
    ]
    notes = (
        *listing.notes,
        *describe_reading(facts, used, reading),
        *(f.message for f in about),
        *_content_notes(facts, values, inferred=declared is None),
    )
    catalog = Catalog(root, cases, facts, values, ignored, notes, listing.layout, dict(label_map or {}), used)
    return _cut_cases(catalog, plan_tiles(cases, {i: f.shape for i, f in facts.items()}, tiles), settings)


def _cut_cases(catalog: Catalog, tiling: Tiling, settings: Mapping[str, Any]) -> Catalog:
    """Return the catalog with parts in the place of the cases that are cut; ``settings`` go to ``read_facts``."""
    parts: list[Case] = []
    facts, whole_images = dict(catalog.facts), dict(catalog.whole_images)
    for case in catalog.cases:
        if case.id not in tiling.regions:
            parts.append(case)
            continue
        cut = [part_case(case, region) for region in tiling.regions[case.id]]
        if taken := [part.id for part in cut if part.id in catalog.facts]:
            raise DataError(f"the case {taken[0]} is there already: rename its files, or give data.tiles=1.")
        facts |= _read_parts(case, cut, catalog, settings)
        whole_images |= dict.fromkeys([part.id for part in cut], facts.pop(case.id).image)
        parts += cut
    return replace(
        catalog,
        cases=drop_unannotated(sorted(parts, key=lambda case: case.id), facts),
        facts=facts,
        notes=catalog.notes + ((tiling.note,) if tiling.note else ()),
        tiles=tiling.parts,
        whole_images=whole_images,
    )


def _read_parts(
    case: Case, parts: Sequence[Case], catalog: Catalog, settings: Mapping[str, Any]
) -> dict[str, CaseFacts]:
    """Return the facts of the parts of a case, which is opened once, if they are not known."""
    with open_facts_cache(catalog.root, repr(settings), len(catalog.cases) + len(parts)) as cache:
        keys = [cache.make_key(part) for part in parts]
        known = [cache.find(key) for key in keys]
        if None not in known:
            return {part.id: facts for part, facts in zip(parts, known, strict=True) if facts is not None}
        image, mask = open_case(case, catalog.reading)
        found = {}
        for part, key in zip(parts, keys, strict=True):
            opened = crop(image, part.region), mask and crop(mask, part.region)
            found[part.id] = read_facts(part, opened=opened, **settings)
            cache.keep(key, found[part.id])
        return found


def _find_facts(cache: FactsCache, settings: Mapping[str, Any], case: Case) -> tuple[bytes | None, CaseFacts | Finding]:
    """Return the facts of one case, or the fault that keeps it from being read; with a key if they are new."""
    key = cache.make_key(case)
    if (known := cache.find(key)) is not None:
        return None, known
    try:
        return key, read_facts(case, **settings)
    except SizeMismatchError as error:
        return None, Finding("size_mismatch", "fault", str(error), (case.id,))
    except GridMismatchError as error:
        return None, Finding("grid_mismatch", "fault", str(error), (case.id,))
    except DataError as error:
        return None, Finding("unreadable", "fault", str(error), (case.id,))


def _raise_faults(root: str, faults: Sequence[Finding]) -> None:
    """Raise one error with the first faults, if there are any."""
    if not faults:
        return
    listed = "\n".join(describe_finding(fault) for fault in faults[:_SHOWN])
    more = f"\n... and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    raise DataError(f"{root}: {len(faults)} problem(s) found.\n{listed}{more}\n`ssl-seg data audit {root}` says more.")


def describe_reading(facts: Mapping[str, CaseFacts], settled: Reading, given: Reading) -> tuple[str, ...]:
    """Return notes on how the files were read, where that was not given or differs from what they hold."""
    if settled == given:
        return describe_notes(facts)
    return (f"data.axes={settled.axes}: only so the images have the size of their masks", *describe_notes(facts))


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
    if inferred and len(label_values) > MANY_CLASSES:
        notes.append(
            f"the masks hold {len(label_values)} values, taken for as many classes; if they are smoothed or instance "
            "masks, threshold them first"
        )
    return tuple(notes)
