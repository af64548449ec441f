"""Splits as plain types and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from ssl_seg.data.splits.split import Split
from ssl_seg.errors import SplitError
from ssl_seg.files import name_unwritable, read_text, write_text

SCHEMA = 1
"""Version of the split file's format."""

_HEADER = "# Which cases are for training, validation and test. Written by `ssl-seg split make`; edits are noticed.\n"
_FOLD_KEYS = {"folds", "fold"}
_KEYS = {field.name for field in fields(Split)} - _FOLD_KEYS | {"schema", "fingerprint"}
_ADAPTER = TypeAdapter(Split)


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
    keys = set(values)
    if odd := sorted(map(str, keys ^ (_KEYS | (_FOLD_KEYS if keys & _FOLD_KEYS else set())))):
        raise SplitError(f"keys are missing or unknown: {', '.join(odd)}.")
    try:
        split = _ADAPTER.validate_python({k: v for k, v in values.items() if k not in ("schema", "fingerprint")})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = " (an id such as 0007 needs quotes)" if first["type"] == "string_type" else ""
        raise SplitError(f"{where}: {first['msg']}, found {first['input']!r}{hint}.") from None
    if 1.0 not in split.fractions or not all(0 < fraction <= 1 for fraction in split.fractions):
        raise SplitError("fractions must be numbers in (0, 1], and contain 1.0, the whole labeled training pool.")
    if _FOLD_KEYS & keys and not 0 <= (-1 if split.fold is None else split.fold) < (split.folds or 0):
        raise SplitError("folds must be a number of folds and fold one of them, counted from 0.")
    listed = {*split.fractions[1.0], *split.unlabeled, *split.val, *split.test}
    if unknown := sorted(listed - split.content.keys()):
        raise SplitError(f"content has no entry for '{unknown[0]}': leaks could not be noticed. Make a new split.")
    if split.fingerprint != values["fingerprint"]:
        raise SplitError(
            f"its fingerprint is {values['fingerprint']} and should be {split.fingerprint}: it was edited after it was "
            "made. Restore it, or make a new one with `ssl-seg split make`."
        )
    return split


def save_split(split: Split, path: Path | str) -> None:
    """Write a split file in one step; an existing one is never replaced.

    Raises:
        SplitError: if ``path`` exists or cannot be written.
    """
    path = Path(path)
    _check_free(path)
    text: str = yaml.dump(
        split_to_dict(split),
        Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper),
        sort_keys=False,
        allow_unicode=True,
        width=110,
        default_flow_style=None,
    )
    with name_unwritable(path, SplitError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, _HEADER + text)


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


def load_split(path: Path | str) -> Split:
    """Read a split file.

    Raises:
        SplitError: if it is missing, of another form, or was edited.
    """
    try:
        values = yaml.load(read_text(Path(path)), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except FileNotFoundError:
        raise SplitError(f"{path}: no such split file. Make one with `ssl-seg split make`.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SplitError(f"{path}: cannot be read as a split file ({error}).") from error
    if not isinstance(values, dict):
        raise SplitError(f"{path} is not a split file: it holds {type(values).__name__}, expected keys and values.")
    try:
        return split_from_dict(values)
    except SplitError as error:
        raise SplitError(f"{path} is not a usable split file: {error}") from error


def _check_free(path: Path) -> None:
    if path.exists():
        raise SplitError(f"{path} exists, and results may depend on it. Choose another name, or remove it first.")
