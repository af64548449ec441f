"""Rows of text from a CSV or Parquet file."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.data.formats.stored import import_optional
from ssl_seg.errors import DataError
from ssl_seg.files import read_text

_SEPARATORS = (",", ";", "\t")
"""What may stand between cells: the one that the first line has most of. Excel writes ; where 0,5 is a number."""


@dataclass(frozen=True)
class FileRow:
    """The cells of one row as text, by column; ``where`` names file and line for messages."""

    where: str
    cells: Mapping[str, str]


def read_columns(path: Path) -> tuple[str, ...]:
    """Return the column names, in lower case and without spaces around them.

    Raises:
        DataError: if the file cannot be read.
    """
    return _read(path, ())[0]


def read_table(path: Path, wanted: Collection[str]) -> tuple[tuple[str, ...], list[FileRow]]:
    """Return all column names, and the rows with those columns that are ``wanted``.

    Raises:
        DataError: if the file cannot be read, a column is there twice, or a cell is no text, number or truth value.
    """
    columns, rows = _read(path, wanted)
    if twice := sorted({c for c in columns if columns.count(c) > 1}):
        raise DataError(f"{path}: column '{twice[0]}' is there twice. Remove or rename one.")
    return columns, [FileRow(row.where, {c: row.cells[c] for c in columns if c in wanted}) for row in rows]


def _read(path: Path, wanted: Collection[str]) -> tuple[tuple[str, ...], list[FileRow]]:
    is_parquet = path.suffix.lower() == ".parquet"
    try:
        return _read_parquet(path, wanted) if is_parquet else _read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        advice = " Save it as UTF-8." if isinstance(error, UnicodeDecodeError) else ""
        raise DataError(f"{path}: the table cannot be read ({error}).{advice}") from error


def _clean(columns: Collection[str]) -> tuple[str, ...]:
    return tuple(c.strip().lower() for c in columns)


def _read_csv(path: Path) -> tuple[tuple[str, ...], list[FileRow]]:
    csv.field_size_limit(2**31 - 1)  # run lengths of a mask can take more than the usual 128 KB
    text = read_text(path)
    separator = max(_SEPARATORS, key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True, strict=True)
    columns = _clean(next(reader, []))
    rows = []
    for cells in reader:
        where = f"{path}, line {reader.line_num}"
        if len(cells) > len(columns):
            raise DataError(f"{where}: {len(cells)} cells, the first line has {len(columns)}.")
        padded = [c.strip() for c in cells] + [""] * (len(columns) - len(cells))
        if any(padded):
            rows.append(FileRow(where, dict(zip(columns, padded, strict=True))))
    return columns, rows


def _read_parquet(path: Path, wanted: Collection[str]) -> tuple[tuple[str, ...], list[FileRow]]:
    parquet = import_optional("pyarrow.parquet", "parquet", str(path))
    names = parquet.read_schema(path).names
    read = [name for name in names if name.strip().lower() in wanted]
    found = []
    for number, row in enumerate(parquet.read_table(path, columns=read).to_pylist() if read else (), 1):
        where = f"{path}, row {number}"
        cells = {name.strip().lower(): _to_text(value, f"{where}, column {name}") for name, value in row.items()}
        found.append(FileRow(where, cells))
    return _clean(names), found


def _to_text(value: Any, where: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str | bool | int):
        return str(value).strip()
    raise DataError(f"{where}: expected text, a whole number or true/false, found {type(value).__name__}.")
