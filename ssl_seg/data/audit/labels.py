"""Find the label values that masks show, and say what to type where they make no sense.

Masks are given as id -> the values that each holds, without the value to ignore.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ssl_seg.data.audit.meaning import MANY_CLASSES
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.findings import Finding
from ssl_seg.errors import counted, name_examples
from ssl_seg.labels import infer_label_values

Masks = Mapping[str, frozenset[int]]

_SMOOTHED = 8
"""More stray values than this in a few masks come from interpolation, not from a class that was forgotten."""

_FEW_CASES = 3
"""A class in fewer cases cannot be in training, validation and test at once."""

_SHOWN = 8

_BINARY = ({0, 1}, {0, 255})


def values_by_mask(facts: Mapping[str, CaseFacts], ignore_value: int | None) -> dict[str, frozenset[int]]:
    """Return the values of each mask, without the one to ignore."""
    return {i: frozenset(f.values) - {ignore_value} for i, f in facts.items() if f.values is not None}


def name_annotated(masks: Masks, declared: Sequence[int] | None, ignore_value: int | None) -> Sequence[int] | None:
    """Return the declared label values; where there are none and 0 is ignored, the values 1 (background), 2, ..."""
    found = sorted(_union(masks.values()))
    is_sparse = declared is None and ignore_value == 0 and len(found) > 1 and found == list(range(1, len(found) + 1))
    return found if is_sparse else declared


def check_sparse(
    facts: Mapping[str, CaseFacts], declared: Sequence[int] | None, ignored: int | None
) -> Iterator[Finding]:
    """Report masks in which 0 may be what nobody annotated: it is most of all, and 1 most of the rest, everywhere."""
    masks = [f.voxels for f in facts.values() if f.voxels]
    count = Counter[int]()
    for mask in masks:
        count.update(mask)
    if declared is not None or ignored is not None or set(count) != {0, 1, 2}:
        return
    if count[0] > count[1] + count[2] and count[1] > count[2] and all(0 in m and 1 in m for m in masks):
        message = (
            "the masks hold 0, 1 and 2, taken for background and two classes. If 0 is what nobody annotated, and 1 the "
            "background (ilastik, scribbles), type --set data.ignore_value=0 --set 'data.label_values=[1, 2]'."
        )
        yield Finding("perhaps_sparse", "info", message)


def check_palettes(facts: Mapping[str, CaseFacts], declared: Sequence[int] | None) -> Iterator[Finding]:
    """Check that a label has one color in all masks with colors; programs that count colors number them anew in each
    file, and red and green are both 255. Where somebody has named the label values, another color is a warning."""
    first: dict[int, tuple[tuple[int, ...], str]] = {}
    others: dict[str, tuple[int, tuple[int, ...]]] = {}
    for case_id, own in facts.items():
        for label, color in own.label_colors:
            if first.setdefault(label, (color, case_id))[0] != color:
                others.setdefault(case_id, (label, color))
    if others:
        case_id, (label, color) = next(iter(others.items()))
        usual, example = first[label]
        message = (
            f"{counted(len(others), 'mask', 'have')} other colors: the value {label} is {_name_color(usual)} in "
            f"{example} and {_name_color(color)} in {case_id}. Values are the labels, and here they do not mean the "
            "same. Save all masks with one palette, or as gray values 0, 1, 2, ...; if only the colors differ, name "
            "the values in data.label_values."
        )
        yield Finding("palettes_differ", "fault" if declared is None else "warn", message, tuple(others))


def _name_color(color: tuple[int, ...]) -> str:
    names: dict[tuple[int, ...], str] = {
        (0, 0, 0): "black",
        (255, 255, 255): "white",
        (255, 0, 0): "red",
        (0, 255, 0): "green",
        (0, 0, 255): "blue",
    }
    return names.get(color, f"RGB {color}")


def find_label_values(masks: Masks, declared: Sequence[int] | None) -> tuple[int, ...]:
    """Return the declared values, or those inferred from the masks; if that fails, those that most masks hold."""
    if declared is not None:
        return tuple(declared)
    if inferred := infer_label_values(_union(masks.values())):
        return inferred
    usual = _find_usual_values(masks) or _union(masks.values()) | {0}
    return tuple(sorted(usual)) if len(usual) <= MANY_CLASSES else (0, 1)


def check_unexpected_values(masks: Masks, declared: Sequence[int] | None) -> Iterator[Finding]:
    """Check that masks hold the declared values; without any, 0/255 or 0..K-1 in all of them together."""
    if declared is None and infer_label_values(_union(masks.values())):
        return
    known = set(declared) if declared is not None else _find_usual_values(masks)
    if known is None:
        found = _union(masks.values())
        message = f"mask values {_short(found)} are neither 0/255 nor 0..K-1 without gaps. {_suggest_for_all(found)}"
        yield Finding("unexpected_values", "fault", message, tuple(_with_rarest_values(masks)))
        return
    strays = {i: values for i, values in masks.items() if not values <= known}
    if strays:
        unknown = _union(strays.values()) - known
        expected = "which are not among the label values" if declared is not None else "the others only"
        message = (
            f"{counted(len(strays), 'mask', f'of {len(masks)} hold')} values {_short(unknown)}, {expected} "
            f"{_short(known)}. {_suggest_for_few(known, unknown, strays.values())}"
        )
        yield Finding("unexpected_values", "fault", message, tuple(strays))


def check_class_presence(masks: Masks, label_values: Sequence[int]) -> Iterator[Finding]:
    """Check that each class is in enough masks to be learned and measured, unless all masks are empty."""
    count = Counter(value for values in masks.values() for value in values)
    if not any(count[value] for value in label_values[1:]):
        return
    absent = [value for value in label_values[1:] if count[value] == 0]
    rare = {value for value in label_values[1:] if 0 < count[value] < _FEW_CASES}
    if absent:
        message = (
            f"no mask holds label values {name_examples(absent, _SHOWN)}: what is not there cannot be learned. "
            "Remove them from the labels."
        )
        yield Finding("absent_class", "warn", message)
    if rare:
        listed = name_examples([f"{value} ({counted(count[value], 'mask')})" for value in sorted(rare)], _SHOWN)
        merge = ", or merge it with another class by data.label_map" * (len(label_values) > 2)
        message = (
            f"label values in fewer than {_FEW_CASES} masks: {listed}. Such a class cannot be in training, "
            f"validation and test at once. Label more cases with it{merge}."
        )
        yield Finding("rare_class", "warn", message, tuple(i for i, values in masks.items() if values & rare))


def _find_usual_values(masks: Masks) -> set[int] | None:
    """Return the smallest usable set of values that holds for half of the masks with foreground or more, or None."""
    positive = [values for values in masks.values() if values - {0}]
    found = _union(positive) | {0}
    run = next(n for n in range(len(found) + 1) if n not in found)
    whole = set(range(run))
    counted = [max(values) for values in positive if values <= whole]
    black_white = sum(values <= {0, 255} for values in positive)
    # Of the sets 0..n all masks that fit into one fit into each larger one.
    candidates = (len(counted), set(range(max([*counted, 1]) + 1))), (black_white, {0, 255})
    fitting, usual = max(candidates, key=lambda pair: (pair[0], -len(pair[1])))
    return usual if 2 * fitting >= len(positive) else None


def _with_rarest_values(masks: Masks) -> list[str]:
    """Return the masks that hold the three rarest values other than 0."""
    holding = Counter(value for values in masks.values() for value in values if value != 0)
    rarest = set(sorted(holding, key=lambda value: (holding[value], value))[:3])
    return [i for i, values in masks.items() if values & rarest]


def _suggest_for_all(found: set[int]) -> str:
    """Return advice on values that many masks hold."""
    if len(found) > MANY_CLASSES:
        return (
            "If they number objects, type --set data.mask=instances; if they are gray values, --set data.mask=binary, "
            "which makes foreground of all above half of the largest."
        )
    if min(found) < 0:
        return (
            f"If {min(found)} marks voxels to leave out, type --set data.ignore_value={min(found)}; if it is "
            f"background, --set 'data.label_map={{{min(found)}: 0}}'."
        )
    others = {0, *found} - {255}
    if 255 in found and others == set(range(len(others))):
        return f"If 255 marks voxels to leave out, type --set data.ignore_value=255; if not, {_set_label_values(found)}"
    objects = "If they number objects, type --set data.mask=instances. If not, values" * (len(found) > _SMOOTHED)
    return f"{objects or 'Values'} map to classes in the order given: type {_set_label_values(found)}"


def _suggest_for_few(known: Collection[int], unknown: set[int], strays: Iterable[frozenset[int]]) -> str:
    """Return advice on values that only a few masks hold."""
    scales = _binary_scales(known, strays)
    if scales is not None:
        mine, others = scales
        leave_out = f" If {mine} marks voxels to leave out, --set data.ignore_value={mine}." * (mine == 255)
        return (
            f"If they were saved as 0/{mine} and not as 0/{others}, type --set 'data.label_map={{{mine}: {others}}}'."
            f"{leave_out}"
        )
    objects = "If they number objects, type --set data.mask=instances"
    if len(unknown) > _SMOOTHED and min(unknown) > max(known):  # interpolation gives values in between
        return (
            f"{objects}; if they are gray steps, --set data.mask=binary; if they are classes, join them by "
            "data.label_map, or name them in data.label_values."
        )
    if len(unknown) > _SMOOTHED:
        return (
            "So many values come from smoothing or resizing with interpolation: threshold these masks again, or all by "
            "--set data.mask=binary."
        )
    if unknown == {255}:
        return (
            f"If 255 marks voxels to leave out, type --set data.ignore_value=255; if not, correct the masks, or type "
            f"{_set_label_values({*known, 255})}"
        )
    all_values = {*known, *unknown}
    first = (
        f"{objects}. If not, correct"
        if len(all_values) > 2 and all_values == set(range(len(all_values)))
        else "Correct"
    )
    return f"{first} these masks, or make the values known: type {_set_label_values(all_values)}"


def _binary_scales(known: Collection[int], strays: Iterable[frozenset[int]]) -> tuple[int, int] | None:
    """Return the foreground value of binary masks, and the expected one, where they differ in nothing else."""
    for scale in _BINARY:
        if set(known) in _BINARY and set(known) != scale and all(values <= scale for values in strays):
            return max(scale), max(known)
    return None


def _set_label_values(values: Iterable[int]) -> str:
    return f"--set 'data.label_values=[{', '.join(map(str, sorted(values)))}]'."


def _union(masks: Iterable[frozenset[int]]) -> set[int]:
    return set().union(*masks)


def _short(values: Collection[int]) -> str:
    return f"{{{name_examples(sorted(values), _SHOWN)}}}"
