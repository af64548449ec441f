"""Split cases into training, validation and test, and say which training cases are labeled at each fraction.

The order of the labeled training cases decides: 1 % is the beginning of 10 %, which is the beginning of 100 %.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

import numpy as np

from ssl_seg.config.data import check_label_amount
from ssl_seg.data.content import image_of, is_constant
from ssl_seg.data.findings import REMEDIES
from ssl_seg.data.splits.stratify import CaseTraits, GroupKey, assign_groups, nesting_order
from ssl_seg.errors import SplitError, counted, name_examples

if TYPE_CHECKING:  # reading a split file must not load the image libraries
    from ssl_seg.data.catalog import Catalog

NearCopies = Literal["keep_together", "ignore"]

_TRAIN, _VAL, _TEST = range(3)
_PARTS = ("train", "val", "test")
_VAL_FRACTION = 0.15
_TEST_FRACTION = 0.20


@dataclass(frozen=True)
class Split:
    """Ids of the cases in each part.

    ``fractions`` maps a label fraction to the ids that are labeled at it. 1.0 is always there: the whole labeled
    training pool in nesting order, of which the other fractions are prefixes. ``unlabeled`` are training cases that
    have no mask. ``groups`` and ``content`` map ids to their group, where they have one, and to the content they had.
    ``fold`` is set, with the number of ``folds``, where the validation list is one fold of a cross-validation.
    """

    dataset: str
    seed: int
    fractions: dict[float, tuple[str, ...]]
    unlabeled: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    groups: dict[str, str]
    content: dict[str, str]
    notes: tuple[str, ...]
    folds: int | None = None
    fold: int | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, their order, groups, content, seed and fold; not over notes and the data set."""
        parts: list[object] = [
            self.seed,
            sorted(self.fractions.items()),
            self.unlabeled,
            self.val,
            self.test,
            sorted(self.groups.items()),
            sorted(self.content.items()),
        ]
        parts += [] if self.folds is None else [[self.fold, self.folds]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def labeled_ids(self, labels: float) -> tuple[str, ...]:
        """Return the ids that are labeled, in nesting order.

        Args:
            labels: a fraction in (0, 1] of the labeled training pool (rounded half up, at least one case), or a whole
                number of cases above 1; see ``check_label_amount``.

        Raises:
            SplitError: if it is neither, or more than there are.
        """
        pool, amount = self.fractions[1.0], _check_amount(labels)
        return self.fractions.get(amount, pool[: count_labeled(amount, len(pool))])

    def note_rounding(self, labels: float) -> list[str]:
        """Return a note where less than half a case was asked for."""
        pool = len(self.fractions[1.0])
        if labels > 1 or Decimal(repr(float(labels))) * pool >= Decimal("0.5"):
            return []
        return [f"{labels:g} of {pool} cases is less than half a case and becomes 1 case"]

    def pool_ids(self, labels: float) -> tuple[str, ...]:
        """Return the training ids that count as unlabeled: the rest of the pool, then those without a mask.

        Raises:
            SplitError: as for ``labeled_ids``.
        """
        labeled = set(self.labeled_ids(labels))
        return tuple(i for i in self.fractions[1.0] if i not in labeled) + self.unlabeled

    def image_contents(self, ids: Iterable[str]) -> set[str]:
        """Return the contents of the images of these ids, whatever their names and masks are; constant images aside."""
        contents = (self.content[i] for i in ids if i in self.content)
        return {image_of(content) for content in contents if not is_constant(content)}

    def check_not_sealed(self, ids: Iterable[str]) -> None:
        """Check that none of the ids is in the test list.

        Raises:
            SplitError: with the ids that are.
        """
        sealed = sorted(set(ids) & set(self.test))
        if sealed:
            raise SplitError(
                f"{counted(len(sealed), 'case', 'are')} in the test list ({name_examples(sealed, 5)}). "
                "The test list is sealed; only `ssl-seg evaluate --test` opens it."
            )


def count_labeled(labels: float, total: int) -> int:
    """Return how many of ``total`` cases are labeled: a share is rounded half up in decimal arithmetic, at least to 1.

    Raises:
        SplitError: for a number of cases above ``total``.
    """
    if labels > total and labels > 1:
        raise SplitError(f"labels={labels:g} cases were asked for; the labeled training pool has {total}.")
    if labels > 1:
        return int(labels)
    exact = Decimal(repr(float(labels))) * total
    return max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP)))


def _check_amount(labels: float) -> float:
    try:
        return check_label_amount(labels)
    except ValueError as error:
        raise SplitError(f"labels={labels}: {error}.") from None


@dataclass(frozen=True)
class _Pool:
    """The cases to deal out: the labeled ones, by groups that must stay whole; ``key_of`` has the unlabeled ones too.

    ``held`` are all cases, id -> part, that are not dealt out: their folder is their part. ``shares`` are those of the
    parts, of the other labeled cases.
    """

    catalog: Catalog
    key_of: dict[str, GroupKey]
    groups: dict[GroupKey, list[str]]
    held: dict[str, int]
    shares: tuple[float, float, float]
    traits: CaseTraits
    notes: tuple[str, ...]


def make_split(
    catalog: Catalog,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    near_copies: NearCopies = "keep_together",
) -> Split:
    """Return a split by whole groups, stratified by foreground fraction and class, with nested label fractions.

    The result depends on the catalog's cases and the seed, not on the order of the cases. Copies of an image count as
    one group. Where labeled cases lie in a folder train/ and others in val/ or test/, these folders are the split:
    without test/ its list is empty, and without val/ a share of train/ is taken. Their unlabeled cases are left out,
    and nothing keeps groups and copies from being in two folders: that is for ``check_split`` to find.

    Args:
        fractions: label fractions in (0, 1] of the labeled training pool, or numbers of cases above 1, which become the
            fractions that they are; 1.0 is always added.
        seed: not negative.
        val_fraction: share of the labeled cases for validation, in (0, 1); None: those in val/, or else 0.15. A share
            is taken of all cases but those of a folder that stays.
        test_fraction: share of the labeled cases for the sealed test list, in [0, 1); None: those in test/, or none if
            there is train/, or else 0.20.
        near_copies: whether images that are nearly the same count as one group too; see ``find_likeness``.

    Raises:
        SplitError: if a number is out of range, or there are fewer than two groups of labeled cases.
    """
    pool = _make_pool(catalog, fractions, seed, (val_fraction, test_fraction), near_copies)
    notes, shares = pool.notes, pool.shares
    if not any(shares[1:]):
        part_of = dict.fromkeys(pool.groups, _TRAIN)
    elif len(pool.groups) < 2:
        from ssl_seg.data.tiles import describe_limit

        grouped = any(case.group for case in catalog.labeled)
        alone = f". {describe_limit()}"
        hint = " of another group, or leave the group file out if every case stands for itself." if grouped else alone
        raise SplitError(
            f"{_count_groups(pool)} cannot be split: training and validation need a group each. Label more images{hint}"
        )
    else:
        if len(pool.groups) == 2 and all(shares):
            shares = (1 - shares[1], shares[1], 0.0)
            notes += ("only 2 groups of labeled cases: the test list is empty; label a third group to have one",)
        part_of = assign_groups(pool.groups, pool.traits, shares, np.random.default_rng([seed, 1]))
    return _build_split(replace(pool, notes=notes), part_of, fractions, seed, np.random.default_rng([seed, 2]))


def make_folds(
    catalog: Catalog,
    fractions: Sequence[float],
    folds: int,
    *,
    seed: int = 0,
    test_fraction: float | None = None,
    near_copies: NearCopies = "keep_together",
) -> tuple[Split, ...]:
    """Return the splits of a cross-validation: one test list, and each other labeled case is in validation once.

    Folds are made of whole groups and stratified as in ``make_split``; the test list is the one that ``make_split``
    gives for the same seed and its default ``val_fraction``; of given folders, train/ and val/ are dealt out.

    Args:
        catalog, fractions, seed, test_fraction, near_copies: see ``make_split``.
        folds: number of folds, at least 2.

    Raises:
        SplitError: if a number is out of range, or there are fewer groups of labeled cases than are needed.
    """
    val_fraction = _VAL_FRACTION if test_fraction is None else min(_VAL_FRACTION, (1 - test_fraction) / 2)
    pool = _make_pool(catalog, fractions, seed, (val_fraction, test_fraction), near_copies)
    rng = np.random.default_rng([seed, 1])
    part_of = assign_groups(pool.groups, pool.traits, pool.shares, rng) if pool.groups else {}
    rest = {key: ids for key, ids in pool.groups.items() if part_of[key] != _TEST}
    most = min(len(rest), len(pool.groups) - (pool.shares[_TEST] > 0))
    if not 2 <= folds <= most:
        sealed = f", {len(pool.groups) - len(rest)} of the groups in the test list," * (len(rest) < len(pool.groups))
        advice = f"choose {' to '.join(map(str, sorted({2, most})))}"
        if most < 2:
            grouped = any(case.group for case in catalog.labeled)
            alone = ", or give --groups none if every image stands for itself" if grouped else ""
            advice = f"two groups beside the test list are needed. Label more images{alone}"
        raise SplitError(f"{_count_groups(pool)}{sealed} cannot make {folds} folds: {advice}.")
    rng = np.random.default_rng([seed, 3])
    fold_of = assign_groups(rest, pool.traits, [1 / folds] * folds, rng, exact_sizes=True)
    splits = []
    for fold in range(folds):
        part_of |= {key: _VAL if own == fold else _TRAIN for key, own in fold_of.items()}
        # An order of its own, or the same rank would come first in all folds and their small sets share one bias.
        own_order = np.random.default_rng([seed, 4, fold])
        split = _build_split(pool, part_of, fractions, seed, own_order)
        splits.append(replace(split, folds=folds, fold=fold))
    return tuple(splits)


def reorder_labeled(split: Split, catalog: Catalog, seed: int) -> Split:
    """Return the split with the labeled training cases in another nesting order; validation and test stay.

    So trainings can differ in which cases are labeled and still be scored on the same ones. The order depends on the
    seed and the cases, not on the order before: a split that is reordered twice is that of the second time.

    Args:
        catalog: the cases, with their foreground fractions and classes.
        seed: not negative.

    Raises:
        SplitError: for a negative seed, or a labeled case that the catalog does not have.
    """
    if seed < 0:
        raise SplitError(f"label_seed={seed} must not be negative.")
    pool = sorted(split.fractions[1.0])
    if strangers := [i for i in pool if i not in catalog.facts]:
        raise SplitError(f"{catalog.root} does not hold {len(strangers)} of the split's cases, e.g. '{strangers[0]}'.")
    traits = find_traits(catalog, pool)
    ordered = nesting_order(pool, traits, np.random.default_rng([seed, 5]))
    fractions = {f: ordered[: len(ids)] for f, ids in split.fractions.items()}
    note = f"the labeled training cases are in the order of label seed {seed}"
    return replace(split, fractions=fractions, notes=(*(n for n in split.notes if "label seed" not in n), note))


def find_new_masks(split: Split, catalog: Catalog, ids: Iterable[str]) -> set[str]:
    """Return which of the ids have the image that a split knows, with another mask."""
    pairs = {i: (split.content.get(i, ""), catalog.facts[i]) for i in ids if i in catalog.facts}
    return {i for i, (known, own) in pairs.items() if known != own.content and image_of(known) == own.image}


def add_new_masks(split: Split, catalog: Catalog) -> Split:
    """Return the split with unlabeled training images that have a mask by now as its last labeled training cases.

    Validation, test and the order of the other labeled cases stay, so a label fraction only grows.

    Args:
        catalog: the cases as they are now. Images that are not those of the split stay unlabeled.
    """
    found = find_new_masks(split, catalog, split.unlabeled) & {case.id for case in catalog.labeled}
    new = [i for i in split.unlabeled if i in found]
    if not new:
        return split
    pool = (*split.fractions[1.0], *new)
    note = f"{counted(len(new), 'image')} without a mask when the split was made: now the last labeled training cases"
    return replace(
        split,
        fractions={f: pool[: count_labeled(f, len(pool))] for f in split.fractions},
        unlabeled=tuple(i for i in split.unlabeled if i not in found),
        content=split.content | {i: catalog.facts[i].content for i in new},
        notes=(*(n for n in split.notes if "when the split was made" not in n), f"{note} ({name_examples(new)})"),
    )


def note_unlisted(split: Split, catalog: Catalog) -> Split:
    """Return the split with a note on images of the data set that are in none of its lists: nobody uses them."""
    unlisted = [case.id for case in catalog.cases if case.id not in split.content]
    if not unlisted:
        return split
    count = counted(len(unlisted), "image", "are")
    note = f"{count} in no list of the split and not used ({name_examples(unlisted)}); `ssl-seg split make` lists all"
    return replace(split, notes=(*(n for n in split.notes if "in no list of the split" not in n), note))


def _check_numbers(fractions: Sequence[float], seed: int, val_fraction: float, test_fraction: float) -> None:
    for labels in fractions:
        _check_amount(labels)
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise SplitError(
            f"val_fraction={val_fraction:g} and test_fraction={test_fraction:g} must leave cases for training: "
            "val in (0, 1), test in [0, 1), their sum below 1."
        )
    if seed < 0:
        raise SplitError(f"seed={seed} must not be negative.")


def _make_pool(
    catalog: Catalog,
    fractions: Sequence[float],
    seed: int,
    given: tuple[float | None, float | None],
    near_copies: NearCopies,
) -> _Pool:
    """Return the cases to deal out; ``given`` are the shares of validation and test that somebody asked for."""
    held, (val_fraction, test_fraction), folder_notes = _hold_folders(catalog, *given)
    _check_numbers(fractions, seed, _VAL_FRACTION if given[0] is None else val_fraction, test_fraction)
    labeled = sorted(case.id for case in catalog.labeled)
    if not labeled:
        raise SplitError(
            f"none of the {len(catalog.cases)} images has a mask: there is nothing to learn from, and they cannot be "
            f"split. {REMEDIES}"
        )
    key_of, notes = _group_keys(catalog, near_copies, held)
    groups: dict[GroupKey, list[str]] = {}
    for case_id in labeled:
        if case_id not in held:
            groups.setdefault(key_of[case_id], []).append(case_id)
    shares = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    return _Pool(catalog, key_of, groups, held, shares, find_traits(catalog, labeled), (*folder_notes, *notes))


def _hold_folders(
    catalog: Catalog, val_fraction: float | None, test_fraction: float | None
) -> tuple[dict[str, int], tuple[float, float], tuple[str, ...]]:
    """Return id -> part of all cases whose folder val/ or test/ stays one; the shares of the other cases; notes."""
    from ssl_seg.data.layouts.names import find_parts  # its package loads the image libraries

    part_of = find_parts(case.id for case in catalog.cases)
    labeled = Counter(part_of.get(case.id) for case in catalog.labeled)
    default = _VAL_FRACTION if val_fraction is None else val_fraction
    if not labeled["train"] or len(named := sorted(set(part_of.values()), key=_PARTS.index)) < 2:
        return {}, (default, _TEST_FRACTION if test_fraction is None else test_fraction), ()
    rest = f"{default:g} of the rest"
    lists = {} if val_fraction is not None else {"val": "validation is " + ("val/" if labeled["val"] else rest)}
    if test_fraction is None:
        lists["test"] = "the test list is " + ("test/" if labeled["test"] else "empty")
    counts = ", ".join(f"{labeled[part]} in {part}/" for part in named)
    elsewhere = f", {labeled[None]} elsewhere" * (labeled[None] > 0)
    note = (
        f"the folders are the split, {counts}{elsewhere} with masks: {', '.join(lists.values())}; "
        "split.val_fraction and split.test_fraction draw them anew"
    )
    held = {i: _PARTS.index(part) for i, part in part_of.items() if part in lists}
    shares = (0.0 if "val" in lists and labeled["val"] else default, test_fraction or 0.0)
    return held, shares, (note,) * bool(lists)


def find_traits(catalog: Catalog, ids: Iterable[str]) -> CaseTraits:
    """Return the foreground fractions of labeled cases, and the classes of all."""
    return CaseTraits({i: catalog.facts[i].foreground or 0.0 for i in ids}, find_classes(catalog))


def find_classes(catalog: Catalog) -> dict[str, frozenset[int]]:
    """Return labeled id -> label values in its mask, without the background; nothing where there is only one class."""
    wanted = frozenset(catalog.label_values[1:])
    if len(wanted) < 2:
        return {}
    return {case.id: wanted & set(catalog.facts[case.id].values or ()) for case in catalog.labeled}


def _count_groups(pool: _Pool) -> str:
    merged = f" ({'; '.join(pool.notes)})" if pool.notes else ""
    cases = counted(sum(map(len, pool.groups.values())), "labeled case")
    return f"{cases} in {counted(len(pool.groups), 'group')}{merged}"


def _group_keys(
    catalog: Catalog, near_copies: NearCopies, held: Mapping[str, int]
) -> tuple[dict[str, GroupKey], list[str]]:
    """Return id -> group, and notes on copies that are not in two folders; groups that hold one image become one."""
    key_of: dict[str, GroupKey] = {
        c.id: ("case", c.id) if c.group is None else ("group", c.group)
        for c in sorted(catalog.cases, key=lambda case: case.id)
    }
    key_of = _merge_groups(key_of, catalog.likeness.exact)
    torn = [ids for ids in catalog.likeness.copies if len({key_of[i] for i in ids}) > 1]
    together = key_of if near_copies == "ignore" else _merge_groups(key_of, torn)
    copies = [ids for ids in catalog.likeness.exact if len({held.get(i) for i in ids}) == 1]
    torn = [ids for ids in torn if len({held.get(i) for i in ids}) == 1]
    notes = []
    if copies:
        count = sum(map(len, copies))
        notes.append(
            f"{count} cases are copies of {counted(len(copies), 'image')}, for example {name_examples(copies[0])}: "
            "kept in one part"
        )
    if torn:
        count = sum(map(len, torn))
        done = (
            "their groups are kept in one part" if near_copies == "keep_together" else "they are left where they fall"
        )
        notes.append(f"{count} cases look like copies, for example {name_examples(sorted(torn[0]))}: {done}")
    return together, notes


def _merge_groups(key_of: dict[str, GroupKey], clusters: Sequence[Sequence[str]]) -> dict[str, GroupKey]:
    """Return id -> group, where the groups of the cases of each cluster have become one, named after the first."""
    from scipy.cluster.hierarchy import DisjointSet

    merged = DisjointSet(set(key_of.values()))
    for first, *others in clusters:
        for other in others:
            merged.merge(key_of[first], key_of[other])
    name_of = {key: min(subset) for subset in merged.subsets() for key in subset}
    return {case_id: name_of[key] for case_id, key in key_of.items()}


def find_copies_of(catalog: Catalog, ids: Iterable[str], images: Iterable[str]) -> list[str]:
    """Return those of the ids whose image is nearly, but not exactly, one of ``images`` that the catalog holds.

    Args:
        catalog: the data.
        ids: cases of it.
        images: contents of images; see ``Split.image_contents``.
    """
    known = set(images)
    originals = {i for i, facts in catalog.facts.items() if facts.image in known}
    wanted = [i for i in ids if i in catalog.facts and i not in originals]
    clusters = catalog.likeness.copies if originals and wanted else ()
    copies = {i for cluster in clusters if originals.intersection(cluster) for i in cluster}
    return [i for i in wanted if i in copies]


def _build_split(
    pool: _Pool, part_of: Mapping[GroupKey, int], fractions: Sequence[float], seed: int, rng: np.random.Generator
) -> Split:
    """Return the split in which each group of cases that are dealt out is in its part; ``rng`` decides the order."""
    catalog, notes = pool.catalog, list(pool.notes)
    part = {i: pool.held[i] if i in pool.held else part_of[pool.key_of[i]] for i in pool.traits.foreground}
    train, val, test = (tuple(i for i in part if part[i] == own) for own in (_TRAIN, _VAL, _TEST))
    ordered = nesting_order(train, pool.traits, rng)
    scored = {pool.key_of[i] for i in (*val, *test)}
    # A group without a labeled case is in no part yet: its cases go to training.
    kept = tuple(sorted(c.id for c in catalog.unlabeled if c.id not in pool.held and pool.key_of[c.id] not in scored))
    left_out = len(catalog.unlabeled) - len(kept)
    if left_out:
        why = "in validation or test, or of a group there" if pool.held else "of a group in validation or test"
        notes.append(f"{counted(left_out, 'unlabeled case', 'are')} left out: {why}")
    if not any(pool.traits.foreground[i] > 0 for i in ordered):
        notes.append("NO LABELED TRAINING CASE HAS FOREGROUND: there is nothing to learn")
    counts = {float(f): count_labeled(f, len(ordered)) for f in {*fractions, 1.0}}
    shares = {f if f <= 1 else count / len(ordered): count for f, count in counts.items()}
    used = {*ordered, *val, *test, *kept}
    return Split(
        dataset=PurePath(catalog.root).name,  # a path would tie the file to one machine
        seed=int(seed),
        fractions={share: ordered[: shares[share]] for share in sorted(shares)},
        unlabeled=kept,
        val=val,
        test=test,
        groups={c.id: c.group for c in sorted(catalog.cases, key=lambda c: c.id) if c.group and c.id in used},
        content={i: catalog.facts[i].content for i in sorted(used)},
        notes=tuple(notes),
    )
