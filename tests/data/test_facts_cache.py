"""Facts are read once: counted by the images that are opened, and compared with those of a reading without a cache."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from sizes import around

from ssl_seg.data import catalog as catalog_module
from ssl_seg.data import facts as facts_module
from ssl_seg.data import facts_cache
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import CatalogSettings, open_catalog, parse_section, scan_cases
from ssl_seg.data.facts import CaseFacts, read_facts, settle_facts
from ssl_seg.data.facts_cache import FactsCache, open_facts_cache
from ssl_seg.data.home import HOME_FOLDER, SWITCH
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask
from ssl_seg.errors import DataError
from ssl_seg.labels import Meaning

CASES = 9
OLD = 1_700_000_000_123_456_789
"""Time of the files: long ago, so that they are not taken for files that are being written."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SSL_SEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "data", "particles", CASES, labeled=6)
    return make_old(tmp_path / "data")


def make_old(folder: Path) -> Path:
    for path in folder.rglob("*"):
        if path.is_file() and HOME_FOLDER not in path.parts:
            os.utime(path, ns=(OLD, OLD))
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images and masks that were opened."""
    found: list[str] = []
    for name in ("open_image", "open_mask"):
        whole = getattr(facts_module, name)

        def count(*locations: str, whole: Any = whole, **options: Any) -> Any:
            found.append(Path(locations[0]).parent.name + "/" + Path(locations[0]).name)
            return whole(*locations, **options)

        monkeypatch.setattr(facts_module, name, count)
    return found


def assert_equal(left: CaseFacts, right: CaseFacts) -> None:
    assert left == right
    assert repr(left) == repr(right)
    assert left.appearance is not None
    assert right.appearance is not None
    np.testing.assert_array_equal(left.appearance.thumbnail, right.appearance.thumbnail)
    assert left.appearance.thumbnail.dtype == right.appearance.thumbnail.dtype


@pytest.mark.parametrize("kind", ["particles", "sheets"])
def test_a_second_start_opens_no_image_and_knows_the_same(tmp_path: Path, opened: list[str], kind: str) -> None:
    write_dataset(tmp_path / "d", kind, CASES, labeled=6)
    root = str(make_old(tmp_path / "d"))
    first = open_catalog(root)
    assert len(opened) == CASES + 6
    for _ in range(3):
        again = open_catalog(root)
        audit(root)
        assert len(opened) == CASES + 6
        for case in first.cases:
            assert_equal(first.facts[case.id], again.facts[case.id])
            assert_equal(settle_facts(read_facts(case), again.meaning), again.facts[case.id])
            del opened[CASES + 6 :]
        assert make_split(first, (0.1,)).fingerprint == make_split(again, (0.1,)).fingerprint


def test_only_what_has_changed_is_read_again(data: Path, opened: list[str]) -> None:
    open_catalog(str(data))
    opened.clear()
    names = sorted(path.name for path in (data / "masks").iterdir())
    os.utime(data / "images" / names[0], ns=(OLD, OLD + 1))  # as large as before
    (data / "masks" / names[1]).write_bytes((data / "masks" / names[2]).read_bytes())
    os.utime(data / "masks" / names[1], ns=(OLD + 5, OLD + 5))
    shutil.copy(data / "images" / names[0], data / "images" / "new.png")
    os.utime(data / "images" / "new.png", ns=(OLD, OLD))
    (data / "masks" / names[5]).unlink()
    catalog = open_catalog(str(data))
    read = {f"images/{names[0]}", f"masks/{names[0]}", f"images/{names[1]}", f"masks/{names[1]}", "images/new.png"}
    assert set(opened) == read | {f"images/{names[5]}"}
    for case in catalog.cases:
        assert_equal(settle_facts(read_facts(case), catalog.meaning), catalog.facts[case.id])


def test_a_file_that_may_still_be_written_is_not_kept(data: Path, opened: list[str]) -> None:
    path = next((data / "images").iterdir())
    future = OLD + 10**18 * 10
    for now in (future, future):
        os.utime(path, ns=(now, now))
    assert facts_cache._read_state(path) is not None
    path.touch()
    assert facts_cache._read_state(path) is None


@pytest.mark.parametrize(
    "options",
    [
        {"axes": "XY"},
        {"ignore_value": 1},
        {"label_values": (1, 0)},
        {"label_map": {0: 1, 1: 0}},
        {"mask": "binary", "threshold": -1},
    ],
)
def test_other_ways_of_reading_read_again_and_other_meanings_do_not(
    data: Path, opened: list[str], options: dict[str, Any]
) -> None:
    plain = open_catalog(str(data))
    opened.clear()
    settings = parse_section(options)
    other = open_catalog(str(data), settings)
    read = (CASES + 6) * ("axes" in options or "threshold" in options)
    assert len(opened) == read
    assert (other.facts != plain.facts) == ("axes" not in options)  # a PNG has axes of its own
    assert open_catalog(str(data), settings).facts == other.facts
    assert open_catalog(str(data)).facts == plain.facts
    assert len(opened) == read


def test_what_shows_the_kind_of_masks_is_kept(tmp_path: Path, opened: list[str]) -> None:
    write_dataset(tmp_path / "d", "particles", CASES, labeled=6)
    for n, path in enumerate(sorted((tmp_path / "d" / "masks").iterdir())):
        np.save(path.with_suffix(".npy"), np.where(read_mask(str(path)) > 0, 0.75, n / 100))
        path.unlink()
    root = str(make_old(tmp_path / "d"))
    first = open_catalog(root, CatalogSettings(meaning=Meaning(kind="probability")))
    assert first.label_values == (0, 1)
    opened.clear()
    assert open_catalog(root, CatalogSettings(meaning=Meaning(kind="probability"))).facts == first.facts
    with pytest.raises(DataError, match=r"fractions: 6 masks"):
        open_catalog(root)
    assert opened == []


def test_other_code_reads_again(data: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_catalog(str(data))
    monkeypatch.setattr(facts_cache, "_code_version", lambda: "another")
    opened.clear()
    open_catalog(str(data))
    assert len(opened) == CASES + 6


def test_a_folder_that_moves_takes_its_facts_along(data: Path, opened: list[str], tmp_path: Path) -> None:
    open_catalog(str(data))
    moved = data.rename(tmp_path / "elsewhere")
    opened.clear()
    catalog = open_catalog(str(moved))
    assert opened == []
    assert all(Path(case.image).is_file() for case in catalog.cases)


def test_a_relative_root_is_the_same_data(data: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    open_catalog(str(data))
    opened.clear()
    monkeypatch.chdir(data.parent)
    open_catalog("data")
    assert opened == []


def test_a_manifest_keeps_facts_beside_itself(data: Path, opened: list[str]) -> None:
    names = sorted(path.name for path in (data / "masks").iterdir())
    rows = "".join(f"images/{name},masks/{name}\n" for name in names)
    (data / "manifest.csv").write_text("image,mask\n" + rows)
    first = open_catalog(str(data / "manifest.csv"))
    assert (data / HOME_FOLDER / "facts.sqlite").is_file()
    opened.clear()
    assert open_catalog(str(data / "manifest.csv")).facts == first.facts
    assert opened == []


def test_a_zarr_store_is_known_by_all_of_its_files(tmp_path: Path, opened: list[str]) -> None:
    folder = tmp_path / "d" / "images"
    folder.mkdir(parents=True)
    voxels = np.random.default_rng(0).integers(0, 255, (8, 8, 8)).astype(np.uint8)
    array = zarr.create_array(str(folder / "a.zarr"), data=voxels, chunks=(4, 8, 8))
    make_old(tmp_path / "d")
    first = open_catalog(str(tmp_path / "d"))
    opened.clear()
    open_catalog(str(tmp_path / "d"))
    assert opened == []
    array[6, 0, 0] = 255 - voxels[6, 0, 0]  # inside one chunk; the folder itself does not change
    make_old(tmp_path / "d")
    chunk = max(path for path in (folder / "a.zarr").rglob("*") if path.is_file() and path.name != "zarr.json")
    os.utime(chunk, ns=(OLD + 9, OLD + 9))
    assert open_catalog(str(tmp_path / "d")).facts != first.facts
    assert opened == ["images/a.zarr"]


def test_the_parts_of_one_large_image_are_read_once(tmp_path: Path, opened: list[str]) -> None:
    for name in ("images", "masks"):
        (tmp_path / "d" / name).mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (512, 512)).astype(np.uint8)
    np.save(tmp_path / "d" / "images" / "a.npy", image)
    np.save(tmp_path / "d" / "masks" / "a.npy", (image > 99).astype(np.uint8))
    make_old(tmp_path / "d")
    first = open_catalog(str(tmp_path / "d"))
    assert len(first.cases) > 4
    assert len(opened) == 4  # the whole, and then its parts together
    opened.clear()
    again = open_catalog(str(tmp_path / "d"))
    assert opened == []
    assert again.cases == first.cases
    for case in first.cases:
        assert_equal(first.facts[case.id], again.facts[case.id])


def test_nothing_is_kept_where_it_is_turned_off(data: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    for _ in range(2):
        open_catalog(str(data))
    assert len(opened) == 2 * (CASES + 6)
    assert not (data / HOME_FOLDER).exists()


def test_broken_files_are_read_each_time(data: Path, opened: list[str]) -> None:
    broken = max((data / "masks").iterdir())
    broken.write_bytes(b"")
    make_old(data)
    assert [audit(str(data)).findings[0].code for _ in range(2)] == ["unreadable"] * 2
    assert opened.count(f"masks/{broken.name}") == 2
    assert len(opened) == CASES + 6 + 2


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "middle", "values"])
def test_a_damaged_file_is_ignored_and_written_anew(data: Path, opened: list[str], damage: str) -> None:
    first = open_catalog(str(data))
    path = data / HOME_FOLDER / "facts.sqlite"
    held = path.read_bytes()
    if damage == "text":
        path.write_text("no database\n" * 400)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(held[: len(held) // 2])
    elif damage == "middle":
        path.write_bytes(held[:4096] + bytes(len(held) - 4096))
    else:
        with sqlite3.connect(path) as connection:  # one digit of the checksum, or of a figure
            connection.execute("UPDATE kept SET facts = CAST(substr(facts, 1, length(facts) - 1) || x'00' AS BLOB)")
        connection.close()
    for _ in range(3):  # a damage in the middle may be seen only when all has been read
        opened.clear()
        again = open_catalog(str(data))
        for case in first.cases:
            assert_equal(first.facts[case.id], again.facts[case.id])
    assert opened == []


@pytest.mark.parametrize("blocked", ["file", "locked"])
def test_a_folder_that_cannot_be_written_keeps_facts_in_the_cache(
    data: Path, opened: list[str], own_cache: Path, blocked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if blocked == "file":
        (data / HOME_FOLDER).write_text("in the way")
    else:  # what SQLite says on a read-only or network file system
        connect = sqlite3.connect

        def refuse(path: Path, **options: Any) -> sqlite3.Connection:
            if HOME_FOLDER in path.parts:
                raise sqlite3.OperationalError("attempt to write a readonly database")
            return connect(path, **options)

        monkeypatch.setattr(facts_cache.sqlite3, "connect", refuse)
    first = open_catalog(str(data))
    assert len(list(own_cache.rglob("facts.sqlite"))) == 1
    opened.clear()
    assert open_catalog(str(data)).facts == first.facts
    assert opened == []


def test_without_any_place_to_write_it_works_all_the_same(data: Path, opened: list[str], own_cache: Path) -> None:
    (data / HOME_FOLDER).write_text("in the way")
    own_cache.write_text("in the way")
    assert open_catalog(str(data)).facts == open_catalog(str(data)).facts
    assert len(opened) == 2 * (CASES + 6)


def _open_in_process(root: str) -> list[tuple[Any, ...]]:
    return [astuple(replace(f, appearance=None)) for f in open_catalog(root).facts.values()]


def test_processes_that_start_at_once(data: Path, opened: list[str]) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(_open_in_process, [str(data)] * 4))
    assert all(result == results[0] for result in results)
    assert _open_in_process(str(data)) == results[0]
    assert opened == []


@pytest.mark.parametrize("count", around(5))
def test_the_oldest_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """One case with many settings: 5 facts stay."""
    monkeypatch.setattr(facts_cache, "KEPT_AT_LEAST", 2)
    monkeypatch.setattr(facts_cache, "KEPT_PER_CASE", 5)
    np.save(tmp_path / "a.npy", np.arange(64).reshape(8, 8))
    os.utime(tmp_path / "a.npy", ns=(OLD, OLD))
    case = Case("a", str(tmp_path / "a.npy"), None, None)
    for setting in range(count):
        with open_facts_cache(str(tmp_path), str(setting), 1) as cache:
            cache.keep(cache.make_key(case), read_facts(case))
    known = []
    for setting in range(count):
        with open_facts_cache(str(tmp_path), str(setting), 1) as cache:
            known.append(cache.find(cache.make_key(case)) is not None)
    assert known == [setting >= count - 5 for setting in range(count)]


def test_what_was_read_before_a_stop_is_kept(data: Path, opened: list[str]) -> None:
    cases = open_catalog(str(data)).cases
    shutil.rmtree(data / HOME_FOLDER)
    opened.clear()

    def stop_after_four(items: Any, total: int) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 4:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        scan_cases(cases, root=str(data), track=stop_after_four)
    opened.clear()
    scan_cases(cases, root=str(data))
    assert {name.partition("/")[2] for name in opened} == {
        f"000{n}.png" for n in range(5, CASES)
    }  # the fifth was handed out


@pytest.mark.parametrize("count", around(4))
def test_cases_are_read_in_batches(data: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Batches of 4: all cases come in order, and no more than a batch is read ahead of what was asked for."""
    monkeypatch.setattr(catalog_module, "_BATCH", 4)
    cases = [replace(open_catalog(str(data)).cases[n % CASES], id=f"{n:03d}") for n in range(count)]
    opened.clear()
    ahead: list[int] = []

    def look(items: Any, total: int) -> Iterator[Any]:
        assert total == count
        for number, item in enumerate(items):
            ahead.append(sum("images/" in name for name in opened) - number)
            yield item

    facts, faults, *_ = scan_cases(cases, track=look)
    assert list(facts) == [case.id for case in cases]
    assert faults == []
    assert max(ahead) <= 4
    for case in cases:
        assert_equal(facts[case.id], read_facts(case))


def test_nothing_is_known_of_what_is_no_file(tmp_path: Path) -> None:
    cache = FactsCache([tmp_path / "facts.sqlite"], tmp_path, "")
    assert cache.make_key(Case("a", str(tmp_path / "missing.png"), None, None)) is None
    assert cache.make_key(Case("a", "synthetic:particles/0001", None, None)) is None
    cache.close(0)
