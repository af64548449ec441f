"""Splits as plain types and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_seg.data.splits.split import Split
from ssl_seg.errors import SplitError
from ssl_seg.files import atomic_write

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
_FOLD_KEYS = ("folds", "fold")


def split_to_dict(split: Split) -> dict[str, Any]:
    """Return the split as plain types, for a file or a checkpoint; only a fold has the keys folds and fold."""
    fold = {} if split.folds is None else {"folds": split.folds, "fold": split.fold}
    return {
        "schema": SCHEMA,
        "dataset": split.dataset,
        "seed": split.seed,
        **fold,
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
    allowed = {*_KEYS, *(_FOLD_KEYS if set(values) & set(_FOLD_KEYS) else ())}
    odd = sorted(set(map(str, values)) ^ allowed)
    if odd:
        raise SplitError(f"keys are missing or unknown: {', '.join(odd)}.")
    fractions = values["fractions"]
    if not isinstance(fractions, Mapping) or not all(isinstance(f, float) and 0 < f <= 1 for f in fractions):
        raise SplitError("fractions must map numbers in (0, 1], such as 0.1 and 1.0, to lists of ids.")
    if 1.0 not in fractions:
        raise SplitError("fractions must contain 1.0, the whole labeled training pool.")
    if not isinstance(values["dataset"], str) or not isinstance(values["seed"], int):
        raise SplitError("dataset must be a text and seed an integer.")
    folds, fold = values.get("folds"), values.get("fold")
    if "folds" in values and not (isinstance(folds, int) and isinstance(fold, int) and 0 <= fold < folds):
        raise SplitError("folds must be a number of folds and fold one of them, counted from 0.")
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
        folds=folds,
        fold=fold,
    )
    listed = {*split.fractions[1.0], *split.unlabeled, *split.val, *split.test}
    if unknown := sorted(listed - split.content.keys()):
        raise SplitError(f"content has no entry for '{unknown[0]}': leaks could not be noticed. Make a new split.")
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
    _check_free(path)
    text: str = yaml.dump(
        split_to_dict(split),
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
        sort_keys=False,
        allow_unicode=True,
        width=110,
        default_flow_style=None,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(_HEADER + text, encoding="utf-8")
    except OSError as error:
        raise SplitError(f"{path}: cannot be written ({error.strerror or error}).") from error


def save_folds(folds: Sequence[Split], path: Path) -> list[Path]:
    """Write each fold beside ``path``, as ``NAME_fold0.yaml`` and so on, and return their paths.

    Nothing is written if one of the files exists.

    Raises:
        SplitError: if one of the files exists or cannot be written.
    """
    paths = [path.with_name(f"{path.stem}_fold{split.fold}{path.suffix}") for split in folds]
    for place in paths:
        _check_free(place)
    for split, place in zip(folds, paths, strict=True):
        save_split(split, place)
    return paths


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


def _check_free(path: Path) -> None:
    if path.exists():
        raise SplitError(f"{path} exists, and results may depend on it. Choose another name, or remove it first.")


def _texts(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
        raise SplitError(f"{where} must be a list of texts (an id such as 0007 needs quotes).")
    return tuple(values)


def _text_map(values: Any, where: str) -> dict[str, str]:
    if not isinstance(values, Mapping) or not all(isinstance(v, str) for pair in values.items() for v in pair):
        raise SplitError(f"{where} must map ids to texts (an id such as 0007 needs quotes).")
    return dict(values)
