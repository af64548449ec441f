"""The seal of the test lists: which cases are sealed, and a ledger of how often they have been scored.

A sealed case is known by the content of its image, so under any name and in any split. The ledger lies with the data
(or, where that cannot be written, beside the split file) and in each run, so that copies of a run do not count anew::

    DATA/.ssl_seg/seals/*.json       a test list: content, id and mask of each case; written when a split or run is made
    DATA/.ssl_seg/openings/*.json    an opening a file: two processes that open at once both count, without a lock
    RUN/events.jsonl                 the same records, as events ``test_opened``
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.content import image_of
from ssl_seg.data.home import HOME_FOLDER, find_home
from ssl_seg.data.splits.split import Split
from ssl_seg.files import append_jsonl, now, read_jsonl, write_json
from ssl_seg.run.directory import find_run_of

SEALS, OPENINGS = "seals", "openings"


@dataclass(frozen=True)
class Ledger:
    """Where openings are written down."""

    data: tuple[Path, ...] = ()
    """Folders of the data."""
    splits: tuple[Path, ...] = ()
    """Folders of the split files, for data that cannot be written to."""
    checkpoints: tuple[Path, ...] = ()
    """What is scored: its run keeps the record too, or a file beside a checkpoint that lies outside of its run."""


def register_seal(split: Split, catalog: Catalog) -> None:
    """Note beside the data which cases a split has sealed, where that can be written."""
    home = find_home(catalog.root)
    if home is None or not split.test:
        return
    cases = [
        {"id": i, "content": split.content[i], "mask": _name_mask(str(catalog.case(i).mask), home)} for i in split.test
    ]
    name = hashlib.sha256(json.dumps(sorted(split.image_contents(split.test))).encode()).hexdigest()[:16]
    path = home / HOME_FOLDER / SEALS / f"{name}.json"
    with suppress(OSError):
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"dataset": split.dataset, "fingerprint": split.fingerprint, "cases": cases})


def _name_mask(location: str, home: Path) -> str:
    """Return the path of a mask from ``home``, so that a data set may move."""
    path = Path(location).resolve()
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else str(path)


def find_sealed(catalog: Catalog, ids: Iterable[str], splits: Sequence[Split]) -> dict[str, str]:
    """Return id -> content of the image, of those cases that are sealed.

    Args:
        catalog: the data.
        ids: cases of it.
        splits: those of the networks that are scored, and the one that the cases are taken from. Where the catalog
            holds no case of theirs, all splits count that were made of the data, by whatever run.
    """
    contents = {i: catalog.facts[i].image for i in catalog.facts}
    held = set(contents.values())
    if any(held & split.image_contents(split.content) for split in splits):
        sealed = {content for split in splits for content in split.image_contents(split.test)}
    else:
        home = find_home(catalog.root)
        sealed = set(_read_seals([home] if home else []).values())
    return {i: contents[i] for i in ids if contents[i] in sealed}


def find_sealed_masks(folder: Path, masks: Mapping[str, Path]) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Return name -> content of the image, of those masks that belong to sealed cases, and where their ledgers lie.

    Args:
        folder: that the masks are in; seals are looked for in it and in all folders above.
        masks: name -> file.
    """
    homes = tuple(
        home for home in (folder.resolve(), *folder.resolve().parents) if (home / HOME_FOLDER / SEALS).is_dir()
    )
    sealed = _read_seals(homes)
    places = {name: path.resolve() for name, path in masks.items()}
    found = {name: sealed[path] for name, path in places.items() if path in sealed}
    return found, homes


def open_sealed(
    sealed: Mapping[str, str],
    ledger: Ledger,
    *,
    by: str,
    splits: Sequence[Split] = (),
    note: Callable[[str], None] = lambda _: None,
) -> int:
    """Record that sealed cases are scored; every way of scoring them comes through here.

    Args:
        sealed: id -> content of the image; see ``find_sealed``.
        ledger: where it is written down.
        by: the command.
        splits: that the cases may be sealed by.
        note: told where it cannot be written down.

    Returns:
        How often any of these cases has been opened so far, this time included, as far as the ledger knows; 0 without
        sealed cases.
    """
    if not sealed:
        return 0
    opened = set(sealed.values())
    record = {
        "opening": secrets.token_hex(8),
        "time": now(),
        "by": by,
        "checkpoints": [str(path) for path in ledger.checkpoints],
        "splits": sorted({s.fingerprint for s in splits if s.image_contents(s.test) & opened}),
        "cases": len(sealed),
        "contents": sorted(opened),
    }
    with_data = [home for home in ledger.data if _write_opening(home, record)]
    with_splits = [home for home in ledger.splits if _write_opening(home, record)] if not with_data else []
    with_runs = [path for path in ledger.checkpoints if _append_event(path, record)]
    if not (with_data or with_splits or with_runs):
        note("the opening of sealed cases cannot be recorded: neither the data folder nor the run can be written to")
    elif ledger.data and not with_data:
        place = "beside the split file" if with_splits else "in the run"
        note(f"{ledger.data[0]} cannot be written to: the opening of sealed cases is recorded only {place}")
    return len(find_openings(opened, ledger) | {str(record["opening"])})


def find_openings(contents: set[str], ledger: Ledger) -> set[str]:
    """Return the names of the openings of any of these images that are written down."""
    return {name for name, opened in _read_openings(ledger) if opened & contents}


def _write_opening(home: Path, record: Mapping[str, Any]) -> bool:
    folder = home / HOME_FOLDER / OPENINGS
    name = f"{str(record['time']).replace(':', '')[:17]}-{record['opening']}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / name, record)
    except OSError:
        return False
    return True


def _append_event(checkpoint: Path, record: Mapping[str, Any]) -> bool:
    try:
        append_jsonl(_find_events(checkpoint), {"event": "test_opened", **record})
    except OSError:
        return False
    return True


def _find_events(checkpoint: Path) -> Path:
    run = find_run_of(checkpoint)
    return run.events_path if run else checkpoint.with_suffix(".events.jsonl")


def _read_openings(ledger: Ledger) -> Iterator[tuple[str, set[str]]]:
    """Yield the name of each opening and the contents of its cases; one that lies in several places comes again."""
    records = [record for home in (*ledger.data, *ledger.splits) for record in _read_all(home / HOME_FOLDER / OPENINGS)]
    for checkpoint in ledger.checkpoints:
        with suppress(OSError):
            records += [e for e in read_jsonl(_find_events(checkpoint)) if e.get("event") == "test_opened"]
    for record in records:
        with suppress(KeyError, TypeError):
            yield record["opening"], set(record["contents"])


def _read_seals(homes: Iterable[Path]) -> dict[Path, str]:
    """Return mask -> content of the image, of all cases that are sealed in these places."""
    sealed: dict[Path, str] = {}
    for home in homes:
        for seal in _read_all(home / HOME_FOLDER / SEALS):
            with suppress(KeyError, TypeError):
                sealed |= {(home / case["mask"]).resolve(): image_of(case["content"]) for case in seal["cases"]}
    return sealed


def _read_all(folder: Path) -> Iterator[Any]:
    """Yield what the JSON files of a folder hold; those that nobody can read are left out."""
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            yield json.loads(path.read_text(encoding="utf-8"))
