"""Which cases are for training, validation and test, and which of the training cases are labeled at each fraction.

The order of the labeled training cases decides: 1 % is the beginning of 10 %, which is the beginning of 100 %.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from ssl_seg.data.stratify import PARTS, GroupKey, assign_groups, nesting_order
from ssl_seg.errors import SplitError
from ssl_seg.rundir import atomic_write

if TYPE_CHECKING:  # reading a split file must not load the image libraries
    from ssl_seg.data.catalog import Case, Catalog

IMAGE_DIGITS = 12
"""Digits of ``CaseFacts.content`` that stand for the image alone; the rest stands for its mask."""
SCHEMA = 1
"""Version of the split file's format."""

_HEADER = "# Which cases are for training, validation and test. Written by `ssl-seg split make`; edits are noticed.\n"
_KEYS = (
    "schema",
    "dataset",
    "seed",
    "fingerprint",
    "notes",
    "fractions",
    "unlabeled",
    "val",
    "test",
    "groups",
    "content",
)


@dataclass(frozen=True)
class Split:
    """Ids of the cases in each part.

    ``fractions`` maps a label fraction to the ids that are labeled at it. 1.0 is always there: the whole labeled
    training pool in nesting order, of which the other fractions are prefixes. ``unlabeled`` are training cases that
    have no mask. ``groups`` and ``content`` map ids to their group, where they have one, and to the content they had.
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

    @property
    def fingerprint(self) -> str:
        """16 hex digits over ids, their order, groups, content and seed; not over notes and the data set's path."""
        parts = (
            self.seed,
            sorted(self.fractions.items()),
            self.unlabeled,
            self.val,
            self.test,
            sorted(self.groups.items()),
            sorted(self.content.items()),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def labeled_ids(self, labels: float) -> tuple[str, ...]:
        """Return the ids that are labeled, in nesting order.

        Args:
            labels: a fraction in (0, 1] of the labeled training pool (rounded half up, at least one case), or a whole
                number of cases above 1.

        Raises:
            SplitError: if it is neither, or more than there are.
        """
        pool = self.fractions[1.0]
        if labels in self.fractions:
            return self.fractions[labels]
        if 0 < labels < 1:
            return pool[: round_cases(labels, len(pool))]
        if labels <= 0 or not float(labels).is_integer():
            raise SplitError(f"labels={labels:g} is neither a fraction in (0, 1] nor a whole number of cases above 1.")
        if labels > len(pool):
            raise SplitError(f"labels={labels:g} cases were asked for; the labeled training pool has {len(pool)}.")
        return pool[: int(labels)]

    def pool_ids(self, labels: float) -> tuple[str, ...]:
        """Return the training ids whose mask, if any, must not be looked at: the rest of the pool, then the unlabeled.

        Raises:
            SplitError: as for ``labeled_ids``.
        """
        labeled = set(self.labeled_ids(labels))
        return tuple(i for i in self.fractions[1.0] if i not in labeled) + self.unlabeled

    def image_contents(self, ids: Iterable[str]) -> set[str]:
        """Return what identifies the images of these ids, whatever their names and masks are."""
        return {self.content[i][:IMAGE_DIGITS] for i in ids if i in self.content}

    def check_not_sealed(self, ids: Iterable[str]) -> None:
        """Do nothing, if none of the ids is in the test list.

        Raises:
            SplitError: with the ids that are.
        """
        sealed = sorted(set(ids) & set(self.test))
        if sealed:
            raise SplitError(
                f"{len(sealed)} case(s) are in the test list ({', '.join(sealed[:5])}{', ...' * (len(sealed) > 5)}). "
                "The test list is sealed; only `ssl-seg evaluate --test` opens it."
            )


def round_cases(fraction: float, total: int) -> int:
    """Return ``fraction`` of ``total`` cases, rounded half up in decimal arithmetic, and at least 1."""
    exact = Decimal(repr(float(fraction))) * total
    return max(1, int(exact.quantize(Decimal(1), ROUND_HALF_UP)))


def make_split(
    catalog: Catalog,
    fractions: Sequence[float],
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.20,
) -> Split:
    """Return a split by whole groups, stratified by foreground fraction, with nested label fractions.

    The result depends on the catalog's cases and the seed, not on the order of the cases.

    Args:
        catalog: cases with and without masks.
        fractions: label fractions in (0, 1] of the labeled training pool; 1.0 is always added.
        seed: not negative.
        val_fraction: share of the labeled cases for validation, in (0, 1).
        test_fraction: share of the labeled cases for the sealed test list, in [0, 1).

    Raises:
        SplitError: if a number is out of range, or there are fewer than two groups of labeled cases.
    """
    _check_numbers(fractions, seed, val_fraction, test_fraction)
    labeled = sorted(catalog.labeled, key=lambda case: case.id)
    foreground = {case.id: catalog.facts[case.id].foreground or 0.0 for case in labeled}
    key_of, notes = _group_keys(catalog)
    groups = _by_group(labeled, key_of)
    if len(groups) < 2:
        raise SplitError(
            f"{len(labeled)} labeled case(s) in {len(groups)} group(s) cannot be split: training and validation need a "
            "group each. Label images of one more group, or leave the group file out if every case stands for itself."
        )
    if len(groups) == 2 and test_fraction > 0:
        test_fraction = 0.0
        notes.append("only 2 groups of labeled cases: the test list is empty; label a third group to have one")
    shares = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
    part_of = assign_groups(groups, foreground, shares, np.random.default_rng([seed, 1]))
    ids = {part: tuple(c.id for c in labeled if part_of[key_of[c.id]] == part) for part in PARTS}
    pool = nesting_order(ids["train"], foreground, np.random.default_rng([seed, 2]))
    # A group without a labeled case is in no part yet: its cases go to training.
    kept = sorted(c.id for c in catalog.unlabeled if part_of.get(key_of[c.id], "train") == "train")
    left_out = len(catalog.unlabeled) - len(kept)
    if left_out:
        notes.append(f"{left_out} unlabeled case(s) are left out: their group is in validation or test")
    if not any(foreground[i] > 0 for i in pool):
        notes.append("NO LABELED TRAINING CASE HAS FOREGROUND: there is nothing to learn")
    notes += [
        f"{fraction:g} of {len(pool)} cases is less than half a case and becomes 1 case"
        for fraction in sorted(set(fractions))
        if Decimal(repr(float(fraction))) * len(pool) < Decimal("0.5")
    ]
    used = {*pool, *ids["val"], *ids["test"], *kept}
    return Split(
        dataset=PurePath(catalog.root).name,  # a path would tie the file to one machine
        seed=int(seed),
        fractions={float(f): pool[: round_cases(f, len(pool))] for f in sorted({*fractions, 1.0})},
        unlabeled=tuple(kept),
        val=ids["val"],
        test=ids["test"],
        groups={c.id: c.group for c in sorted(catalog.cases, key=lambda c: c.id) if c.group and c.id in used},
        content={i: catalog.facts[i].content for i in sorted(used)},
        notes=tuple(notes),
    )


def _check_numbers(fractions: Sequence[float], seed: int, val_fraction: float, test_fraction: float) -> None:
    bad = [f for f in fractions if not 0 < f <= 1]
    if bad:
        raise SplitError(f"label fraction {bad[0]:g} is not in (0, 1]; 0.01 means 1 %.")
    if not (0 < val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise SplitError(
            f"val_fraction={val_fraction:g} and test_fraction={test_fraction:g} must leave cases for training: "
            "val in (0, 1), test in [0, 1), their sum below 1."
        )
    if seed < 0:
        raise SplitError(f"seed={seed} must not be negative.")


def _group_keys(catalog: Catalog) -> tuple[dict[str, GroupKey], list[str]]:
    """Return id -> group, and notes; groups that hold the same image become one, so that no image is in two parts."""
    key_of: dict[str, GroupKey] = {
        c.id: ("case", c.id) if c.group is None else ("group", c.group)
        for c in sorted(catalog.cases, key=lambda case: case.id)
    }
    same: dict[str, list[str]] = {}
    for case_id in key_of:
        same.setdefault(catalog.facts[case_id].content[:IMAGE_DIGITS], []).append(case_id)
    copies = [ids for ids in same.values() if len(ids) > 1]
    for ids in copies:
        merged = {key_of[i] for i in ids}
        key_of = {i: min(merged) if key in merged else key for i, key in key_of.items()}
    if not copies:
        return key_of, []
    count = sum(map(len, copies))
    return key_of, [
        f"{count} cases are copies of {len(copies)} image(s), for example {copies[0][:3]}: kept in one part"
    ]


def _by_group(cases: Iterable[Case], key_of: Mapping[str, GroupKey]) -> dict[GroupKey, list[str]]:
    members: dict[GroupKey, list[str]] = {}
    for case in cases:
        members.setdefault(key_of[case.id], []).append(case.id)
    return members


def split_to_dict(split: Split) -> dict[str, Any]:
    """Return the split as plain types, for a file or a checkpoint."""
    return {
        "schema": SCHEMA,
        "dataset": split.dataset,
        "seed": split.seed,
        "fingerprint": split.fingerprint,
        "notes": list(split.notes),
        "fractions": {fraction: list(ids) for fraction, ids in split.fractions.items()},
        "unlabeled": list(split.unlabeled),
        "val": list(split.val),
        "test": list(split.test),
        "groups": dict(split.groups),
        "content": dict(split.content),
    }


def split_from_dict(values: Mapping[str, Any]) -> Split:
    """Return the split that ``split_to_dict`` was given.

    Raises:
        SplitError: if keys or types differ, or the fingerprint does not fit.
    """
    if values.get("schema") != SCHEMA:
        raise SplitError(
            f"schema {values.get('schema')!r} is not known; this version reads {SCHEMA}. Make a new split."
        )
    odd = sorted(set(map(str, values)) ^ set(_KEYS))
    if odd:
        raise SplitError(f"keys are missing or unknown: {', '.join(odd)}.")
    fractions = values["fractions"]
    if not isinstance(fractions, Mapping) or not all(isinstance(f, float) and 0 < f <= 1 for f in fractions):
        raise SplitError("fractions must map numbers in (0, 1], such as 0.1 and 1.0, to lists of ids.")
    if 1.0 not in fractions:
        raise SplitError("fractions must contain 1.0, the whole labeled training pool.")
    if not isinstance(values["dataset"], str) or not isinstance(values["seed"], int):
        raise SplitError("dataset must be a text and seed an integer.")
    split = Split(
        dataset=values["dataset"],
        seed=values["seed"],
        fractions={f: _texts(ids, f"fractions.{f:g}") for f, ids in fractions.items()},
        unlabeled=_texts(values["unlabeled"], "unlabeled"),
        val=_texts(values["val"], "val"),
        test=_texts(values["test"], "test"),
        groups=_text_map(values["groups"], "groups"),
        content=_text_map(values["content"], "content"),
        notes=_texts(values["notes"], "notes"),
    )
    if split.fingerprint != values["fingerprint"]:
        raise SplitError(
            f"its fingerprint is {values['fingerprint']} and should be {split.fingerprint}: it was edited after it was "
            "made. Restore it, or make a new one with `ssl-seg split make`."
        )
    return split


def save_split(split: Split, path: Path) -> None:
    """Write a split file in one step; an existing one is never replaced.

    Raises:
        SplitError: if ``path`` exists or cannot be written.
    """
    if path.exists():
        raise SplitError(f"{path} exists, and results may depend on it. Choose another name, or remove it first.")
    text = yaml.safe_dump(split_to_dict(split), sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(_HEADER + text, encoding="utf-8")
    except OSError as error:
        raise SplitError(f"{path}: cannot be written ({error.strerror or error}).") from error


def load_split(path: Path) -> Split:
    """Read a split file.

    Raises:
        SplitError: if it is missing, of another form, or was edited.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise SplitError(f"{path}: no such split file. Make one with `ssl-seg split make`.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SplitError(f"{path}: cannot be read as a split file ({error}).") from error
    if not isinstance(values, dict):
        raise SplitError(f"{path} is no split file: it holds {type(values).__name__}, expected keys and values.")
    try:
        return split_from_dict(values)
    except SplitError as error:
        raise SplitError(f"{path} is no usable split file: {error}") from error


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise SplitError(f"{where} must be a list of texts (an id such as 0007 needs quotes).")
    return tuple(values)


def _text_map(values: Any, where: str) -> dict[str, str]:
    if not isinstance(values, Mapping) or not all(isinstance(v, str) for pair in values.items() for v in pair):
        raise SplitError(f"{where} must map ids to texts (an id such as 0007 needs quotes).")
    return dict(values)
