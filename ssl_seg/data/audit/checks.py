"""Rules about images, masks and their sizes: one function each, from what was read to findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np

from ssl_seg.data.content import is_constant
from ssl_seg.data.facts import Appearance, CaseFacts, format_size
from ssl_seg.data.findings import REMEDIES, Finding, Level, report
from ssl_seg.data.grids import SPACING_TOLERANCE
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.reading import Reading
from ssl_seg.data.tiles import FEWEST, describe_limit
from ssl_seg.data.volumes import MASK_KEYS, list_arrays, split_location
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.labels import Meaning

Facts = Mapping[str, CaseFacts]

USUAL_EMPTY = (0.2, 0.5)
WARN_EMPTY = 0.7
FAULT_EMPTY = 0.9
"""Limits of a training report on patches: 20 .. 50 % empty masks are normal, above 70 % should be
investigated, above 90 % is a fault of the data."""

TINY_FOREGROUND = 1e-4

_SHOWN_SETS = 3

SATURATED = 0.25
"""Share of voxels with the largest value; at most 0.103 in 366 electron micrographs, 0.002 in 80 MR volumes."""

BLACK = 0.9
"""Share of voxels with the smallest value; at most 0.688 in the same micrographs, as dark backgrounds are common."""

SIZE_FACTOR = 4

FEWEST_SAME = 3
"""Different images with one mask; two may be a pair of exposures."""

FEW_GROUPS = 10
"""Groups below which validation and test sets of 15 and 20 % hold only two or three of them."""


def check_kinds(facts: Facts) -> Iterator[Finding]:
    """Check that all cases are images, or all are volumes, with one number of channels; gray may come with color."""
    for what, kind_of in (
        ("images and volumes", {i: f"{len(f.shape)}D" for i, f in facts.items()}),
        ("channel counts", {i: counted(f.channels, "channel") for i, f in facts.items()}),
    ):
        kinds = Counter(kind_of.values()).most_common()
        if len(kinds) > 1 and set(kind_of.values()) != {"1 channel", "3 channels"}:
            first = {kind: next(i for i, k in kind_of.items() if k == kind) for kind, _ in kinds}
            listed = ", ".join(f"{n} with {kind} (e.g. {first[kind]})" for kind, n in kinds)
            rarer = tuple(i for i, kind in kind_of.items() if kind != kinds[0][0])
            colors = any(len(f.shape) == 2 and f.channels > 1 for f in facts.values())
            advice = "Keep one kind per data set."
            if what == "images and volumes":
                advice += " A volume of one slice is an image."
                advice += " Where channels are slices of a volume, set data.axes=ZYX." * colors
            message = f"the data set mixes {what}: {listed}. {advice}"
            yield Finding("mixed_kinds", "fault", message, rarer)


def check_dtypes(facts: Facts) -> list[Finding]:
    """Report images of several types, which were probably exported in several ways."""
    kinds = Counter(f.dtype for f in facts.values()).most_common()
    rarer = [i for i, f in facts.items() if f.dtype != kinds[0][0]]
    listed = ", ".join(f"{n} {dtype}" for dtype, n in kinds)
    message = f"images of several types: {listed}. Check that gray values mean the same in all of them."
    return report("mixed_dtypes", "info", message, rarer)


def check_sizes(facts: Facts) -> Iterator[Finding]:
    """Report images far from the usual size: thumbnails, mosaics, crops."""
    sizes = {i: prod(f.shape) for i, f in facts.items()}
    median = float(np.median(list(sizes.values()))) if sizes else 0.0
    outliers = tuple(i for i, size in sizes.items() if not median / SIZE_FACTOR <= size <= median * SIZE_FACTOR)
    if outliers:
        farthest = max(outliers, key=lambda i: max(sizes[i] / median, median / sizes[i]))
        message = (
            f"{counted(len(outliers), 'image', 'have')} over {SIZE_FACTOR} times more or fewer voxels than the median: "
            f"{farthest} has {format_size(facts[farthest].shape)}. Check what belongs here."
        )
        yield Finding("outlier_size", "info", message, outliers)


def check_spacing(facts: Facts) -> Iterator[Finding]:
    """Check that voxels are of one size; if not, the network sees the same object in several sizes."""
    known = {i: f.spacing for i, f in facts.items() if f.spacing is not None}
    if not known:
        return
    if len(known) < len(facts):
        without = tuple(i for i in facts if i not in known)
        message = (
            f"{len(without)} of {len(facts)} images do not say how large a voxel is. If it matters, "
            "train with --set 'data.spacing=[...]', which applies to all."
        )
        yield Finding("unknown_spacing", "info", message, without)
    if len({len(s) for s in known.values()}) == 1:
        spacings = np.array(list(known.values()))
        low, high = spacings.min(axis=0), spacings.max(axis=0)
        if (high > low * (1 + SPACING_TOLERANCE)).any():
            median = ", ".join(f"{v:.3g}" for v in np.median(spacings, axis=0))
            message = (
                f"voxels measure {format_size(low, '.3g')} to {format_size(high, '.3g')}. To show the network one "
                f"size, train with --set 'data.resample_to=[{median}]'"
            )
            yield Finding("mixed_spacing", "info", message)


def check_doubts(facts: Facts) -> list[Finding]:
    """Report headers that doubt that image and mask lie on each other; they are paired voxel by voxel all the same."""
    doubts = {i: f.doubt for i, f in facts.items() if f.doubt is not None}
    message = (
        f"{counted(len(doubts), 'mask')} may not lie on the image, but voxels are paired as they are stored: "
        f"{next(iter(doubts.values()), '')}. Look at them (`ssl-seg data audit --figure`); correct the headers."
    )
    return report("grid_doubt", "warn", message, doubts)


def check_constant_images(facts: Facts) -> list[Finding]:
    """Report images of one value, which show nothing; with foreground in their mask they teach noise."""
    constant = [i for i, f in facts.items() if f.appearance is not None and f.appearance.low == f.appearance.high]
    taught = [i for i in constant if facts[i].foreground]
    others = [i for i in constant if not facts[i].foreground]
    single = counted(len(taught), "image", "of one single value have")
    blank = counted(len(others), "image", "have")
    return [
        *report("constant_image", "fault", f"{single} foreground in the mask. Export again.", taught),
        *report("constant_image", "warn", f"{blank} one single value. Remove all but blank tiles.", others),
    ]


def check_two_values(facts: Facts) -> list[Finding]:
    """Report images of two values, which are rather masks."""
    found = [i for i, a in _varied(facts).items() if a.at_low + a.at_high > 1 - 1e-9]
    message = f"{counted(len(found), 'image', 'have')} two values only, like masks. Put the gray or color images there."
    return report("mask_as_image", "warn", message, found)


def check_saturation(facts: Facts) -> Iterator[Finding]:
    """Report clipped images; where most of them are, it is how this data set looks (white paper, black sky)."""
    looks = {i: a for i, a in _varied(facts).items() if a.at_low + a.at_high <= 1 - 1e-9}
    for share_of, limit, extreme in (
        ({i: a.at_high for i, a in looks.items()}, SATURATED, "largest"),
        ({i: a.at_low for i, a in looks.items()}, BLACK, "smallest"),
    ):
        found = tuple(i for i, share in share_of.items() if share > limit)
        if found and 2 * len(found) <= len(looks):
            worst = max(share_of[i] for i in found)
            message = (
                f"in {counted(len(found), 'image')} more than {limit:.0%} of the voxels have the {extreme} value "
                f"(up to {worst:.0%}): clipped? Export them again with another range, or leave them out."
            )
            yield Finding("saturated_image", "warn", message, found)


def check_missing_masks(cases: Sequence[Case]) -> Iterator[Finding]:
    """Report how many masks are missing: such cases are unlabeled, which an empty mask is not."""
    missing = tuple(c.id for c in cases if c.mask is None)
    if len(missing) == len(cases):
        beside = _find_labels_inside(cases[0].image) if cases else ""
        message = (
            f"none of the {len(cases)} images has a mask: nothing can be trained or evaluated. {beside or REMEDIES}"
        )
        yield Finding("no_masks", "fault", message)
    elif missing:
        message = (
            f"{len(missing)} of {len(cases)} images have NO mask file and are used as unlabeled. An image that shows "
            "nothing to find needs a mask of zeros instead."
        )
        yield Finding("unlabeled", "info", message, missing)


def _find_labels_inside(location: str) -> str:
    """Return what to do where the file of an image holds its mask too; "" where it does not."""
    path = Path(split_location(location)[0])
    groups = [found for name in (".zgroup", "zarr.json") for found in path.glob(f"labels/*/{name}")]  # OME-Zarr
    image = path.name if groups else f"{path.name}::image"
    with suppress(DataError):
        arrays = [key for key in list_arrays(path) if key in MASK_KEYS] if path.exists() and not groups else []
        for key in [*sorted(f"labels/{found.parent.name}" for found in groups), *arrays]:
            return (
                f"{path} holds an array '{key}' too. If that is the mask, list the files in a manifest.csv with the "
                f"columns image and mask, here {image} and {path.name}::{key}, with paths from its folder."
            )
    return ""


def check_few_labeled(cases: Sequence[Case], *, cut: bool) -> list[Finding]:
    """Report that training, validation and test cannot have a labeled image each, nor parts of one."""
    labeled = [c.id for c in cases if c.mask is not None]
    if cut or len(labeled) >= FEWEST:
        return []
    lacks = "nothing can be trained: validation needs another" if len(labeled) == 1 else "the test list will be empty"
    message = f"{counted(len(labeled), 'labeled image')}: {lacks}. Label more images. {describe_limit()}"
    return report("few_labeled", "warn", message, labeled)


def check_unannotated(cases: Sequence[Case], facts: Facts) -> list[Finding]:
    """Report masks that ignore every voxel and so say nothing: not even that there is nothing to find."""
    found = [c.id for c in cases if c.mask is not None and c.id in facts and facts[c.id].values is None]
    message = f"{counted(len(found), 'mask', 'ignore')} every voxel ({', '.join(found[:1])}): used as unlabeled."
    return report("nothing_annotated", "warn", message, found)


def check_nodata(facts: Facts, reading: Reading, *, is_guess: bool) -> Iterator[Finding]:
    """Report which voxels are left out because there is no data, and whether that is a guess."""
    found = {i: f.missing for i, f in facts.items() if f.missing}
    if not found:
        return
    worst = max(found, key=lambda i: found[i])
    message = (
        f"{len(found)} of {len(facts)} images have voxels without data (up to {found[worst]:.1%}: {worst}): they are "
        "left out of normalization, loss and scores, and predicted as background."
    )
    if is_guess:
        message += (
            f" The value {reading.nodata:g} is taken for no data, as it is far from all others: if it is not, type "
            "--set data.nodata=none."
        )
    yield Finding("no_data", "warn" if is_guess else "info", message, tuple(found))


def check_empty_masks(facts: Facts, *, asks: bool = False) -> Iterator[Finding]:
    """Report the share of empty masks, judged by the limits of a training report.

    A mask that ignores most voxels and has no foreground in the others does not say that there is nothing to find.

    Args:
        asks: whether a table lists the masks and leaves open which images somebody has labeled. Then a share that is
            usual is asked about, as exports write zeros for missing labels.
    """
    labeled = _foreground(facts)
    empty = tuple(i for i, share in labeled.items() if share == 0 and facts[i].is_constant_mask)
    if not empty:
        return
    share = len(empty) / len(labeled)
    if share == 1:
        message = (
            f"all {len(labeled)} masks are there and EMPTY: there is no foreground to learn. Check that they are the "
            f"right masks; remove those of images that nobody has labeled yet. {REMEDIES}"
        )
        yield Finding("all_masks_empty", "fault", message, empty)
        return
    low, high = USUAL_EMPTY
    said = f"{len(empty)} of {len(labeled)} masks ({share:.0%}) are there and EMPTY: labeled negatives"
    if share > WARN_EMPTY:
        message = (
            f"{said}. {low:.0%} .. {high:.0%} is usual, above {WARN_EMPTY:.0%} worth a check, above {FAULT_EMPTY:.0%} "
            "a fault. Remove the masks of images that nobody has labeled: no mask means unlabeled."
        )
        yield Finding("empty_masks", "fault" if share > FAULT_EMPTY else "warn", message, empty)
    elif asks and share >= low:
        message = (
            f"{len(empty)} of {len(labeled)} masks ({share:.0%}) are EMPTY, and the table has no column "
            "has_segmentation: has somebody looked at these images and found nothing, or has nobody labeled them? Add "
            "the column: true keeps a mask as it is, false makes its image unlabeled. Without it they are negatives."
        )
        yield Finding("empty_masks", "warn", message, empty)
    else:
        usual = "as usual" if low <= share <= high else f"{low:.0%} .. {high:.0%} is usual"
        yield Finding("empty_masks", "info", f"{said}, {usual}. An image that nobody has labeled has no mask.", empty)


def check_full_masks(facts: Facts, meaning: Meaning) -> Iterator[Finding]:
    """Report masks without any background, which are rarely meant, except for objects that fill the image."""
    labeled = _foreground(facts)
    full = tuple(i for i, share in labeled.items() if share == 1 and facts[i].is_constant_mask)
    if full and len(full) == len(labeled):
        values = sorted({value for i in full for value in facts[i].values or ()})
        level: Level = "fault" if len(values) == 1 else "warn"
        if meaning.task == "instances":
            level = "info"
            message = (
                "no mask holds background: objects fill the images. F1 of the foreground says nothing then, and the "
                "scores of objects do."
            )
        elif meaning.kind == "instances":
            message = (
                f"all {len(full)} masks number objects and hold no background, as those of grains do: all voxels are "
                "foreground. To tell the objects apart, type --set data.task=instances."
            )
        elif len(values) == 1:
            message = (
                f"all {len(full)} masks hold {values[0]} and nothing else, so there is no background. Check "
                "that they are the right masks, and that the label is not in an alpha channel, which is not read."
            )
        else:
            message = (
                f"no mask holds background: all voxels have one of the values {name_examples(values, 8)}. If one "
                "of them is background, name all in data.label_values, that one first."
            )
        yield Finding("all_masks_full", level, message, full)
    elif full:
        message = (
            f"{counted(len(full), 'mask', 'are')} foreground everywhere. Check that these are not "
            "empty masks with the values swapped: the background is the first of data.label_values."
        )
        yield Finding("full_mask", "warn", message, full)


def check_same_masks(facts: Facts) -> Iterator[Finding]:
    """Report different images with one and the same mask, as after a slip in a list of files."""
    same: dict[tuple[object, ...], list[str]] = {}
    for case_id, own in facts.items():
        if own.values is not None and not own.is_constant_mask:
            same.setdefault((own.content.removeprefix(own.image), own.shape, own.values, own.counts), []).append(
                case_id
            )
    most = max(same.values(), key=len, default=[])
    if len({facts[i].image for i in most}) >= FEWEST_SAME and 2 * len(most) > sum(map(len, same.values())):
        message = (
            f"{len(most)} different images have the same mask. Check that each has its own; one that is meant for all "
            "of them is not a fault."
        )
        yield Finding("same_masks", "warn", message, tuple(most))


def check_conflicting_masks(facts: Facts) -> list[Finding]:
    """Report cases of the same image whose masks differ: one of them teaches, or tests, what is wrong."""
    sets = find_conflicts(facts)
    cases = tuple(case for own in sets for case in own)
    named = name_examples((name_examples(own, between=" = ") for own in sets), _SHOWN_SETS, between="; ")
    message = f"{len(cases)} cases in {counted(len(sets), 'set')} ({named}) of the same image have different masks."
    return report("conflicting_masks", "fault", f"{message} Keep the right one.", cases)


def find_conflicts(facts: Facts) -> list[tuple[str, ...]]:
    """Return sets of labeled cases that have the same image and not the same mask; blank images are no copies."""
    cases_of: dict[str, list[str]] = {}
    for case_id, own in facts.items():
        if own.values is not None and not is_constant(own.content):
            cases_of.setdefault(own.image, []).append(case_id)
    return [tuple(sorted(cases)) for cases in cases_of.values() if len({facts[i].content for i in cases}) > 1]


def check_tiny_foreground(facts: Facts) -> list[Finding]:
    """Report masks with a few voxels of foreground, which are often slips of the brush."""
    tiny = [i for i, share in _foreground(facts).items() if 0 < share < TINY_FOREGROUND]
    message = f"{counted(len(tiny), 'mask', 'have')} less than {TINY_FOREGROUND:.2%} foreground. Look for stray voxels."
    return report("tiny_foreground", "info", message, tiny)


def check_declared(declared: Mapping[str, bool], facts: Facts) -> list[Finding]:
    """Report cases that a manifest calls segmented and that have no foreground; a negative may be called so too."""
    empty = [i for i, share in _foreground(facts).items() if share == 0 and declared.get(i)]
    message = (
        f"{counted(len(empty), 'case', 'have')} has_segmentation=true and an EMPTY mask. If nobody has labeled "
        "the image, set it to false; if there is nothing to find in it, leave it."
    )
    return report("has_segmentation_disagrees", "warn", message, empty)


def check_groups(cases: Sequence[Case]) -> Iterator[Finding]:
    """Report few groups, or one that holds most cases: they leave little choice for a split."""
    sizes = np.array(list(Counter(groups_of(cases).values()).values()), dtype=float)
    if not sizes.size:
        return
    effective = float(sizes.sum() ** 2 / (sizes**2).sum())
    if effective < FEW_GROUPS:
        message = (
            f"{counted(len(sizes), 'group')} for {len(cases)} cases, by their sizes worth {effective:.1f} equal ones. "
            f"With fewer than {FEW_GROUPS}, validation and test rest on two or three: use k folds (split make --folds)."
        )
        yield Finding("few_groups", "info", message)


CHECKS: tuple[Callable[[Facts], Iterable[Finding]], ...] = (
    check_same_masks,
    check_tiny_foreground,
    check_conflicting_masks,
    check_constant_images,
    check_two_values,
    check_saturation,
    check_dtypes,
    check_sizes,
    check_spacing,
    check_doubts,
)
"""Rules that need nothing but the facts of all cases."""


def groups_of(cases: Sequence[Case]) -> dict[str, str]:
    """Return the group of each case, its own id where it has none; empty if no case has a group."""
    return {c.id: c.group or c.id for c in cases} if any(c.group for c in cases) else {}


def _varied(facts: Facts) -> dict[str, Appearance]:
    """Return the appearance of the images that have more than one value."""
    looks = {i: f.appearance for i, f in facts.items()}
    return {i: a for i, a in looks.items() if a is not None and a.low < a.high}


def _foreground(facts: Facts) -> dict[str, float]:
    """Return the foreground of each labeled case."""
    return {i: f.foreground for i, f in facts.items() if f.foreground is not None}
