"""Chunks, blocks and "at most" of reading, auditing and splitting, on both sides of each limit, against all at once."""

from __future__ import annotations

import gzip
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from numpy.typing import NDArray
from sizes import around
from test_splits import add_images, make_catalog, spread

from ssl_seg.config import AugmentConfig
from ssl_seg.data import catalog as catalog_module
from ssl_seg.data import mask_values
from ssl_seg.data.audit import doctor, labels, summary
from ssl_seg.data.audit.labels import MANY_CLASSES
from ssl_seg.data.blocks import Block, iterate_blocks
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.facts import read_facts
from ssl_seg.data.findings import MOST_PAIRS, SHOWN_CASES, Finding, describe_finding, join_findings, name_ends
from ssl_seg.data.formats import FORMATS, nifti, numpy_files, pixels, zarr_store
from ssl_seg.data.formats import stored as stored_module
from ssl_seg.data.formats.file_checks import check_claim, check_length
from ssl_seg.data.formats.layout import NotAnImageError
from ssl_seg.data.formats.stored import once_a_version
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.loader import LABELED_STREAM, MIX_STREAM, PROBE_STREAM, SIZE_STREAM, TILE_STREAM, UNLABELED_STREAM
from ssl_seg.data.reading import Reading
from ssl_seg.data.sampling import NEGATIVE_STREAMS
from ssl_seg.data.splits import statistics, stratify
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.splits.statistics import draw_random_sets, measure_split
from ssl_seg.data.store import CaseStore, decoded_bytes
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.views.geometry import ELASTIC_CELLS, draw_geometry
from ssl_seg.data.volumes import list_arrays, open_image, open_mask, read_image, read_mask, write_mask
from ssl_seg.errors import DataError, counted, name_examples
from ssl_seg.labels import to_mask
from ssl_seg.report import audit_samples

RNG = np.random.default_rng(0)


# --- lists in messages ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("case",), "0 cases"),
        (1, ("case",), "1 case"),
        (1200, ("case",), "1,200 cases"),
        (1, ("process", "work"), "1 process works"),
        (2, ("process", "work"), "2 processes work"),
        (1, ("case", "of val are"), "1 case of val is"),
        (0, ("case", "of val have"), "0 cases of val have"),
        (1, ("case", "have"), "1 case has"),
    ],
)
def test_numbers_agree_with_their_nouns(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_list_that_is_cut_says_how_many_more_there_are(most: int) -> None:
    for count in (0, *around(most)):
        names = [f"n{k}" for k in range(count)]
        text = name_examples(iter(names), most)
        shown, _, more = text.partition(", ... (")
        assert [n for n in shown.split(", ") if n] == names[:most]
        assert more == (f"{count - most} more)" if count > most else "")
        assert name_examples(names[:most], most, total=count) == text


@pytest.mark.parametrize("count", around(SHOWN_CASES))
def test_a_finding_names_its_first_cases(count: int) -> None:
    text = describe_finding(Finding("code", "warn", "message", tuple(map(str, range(count)))))
    more = f", ... ({count - SHOWN_CASES} more)" if count > SHOWN_CASES else ""
    assert text == f"code: message ({', '.join(map(str, range(min(count, SHOWN_CASES))))}{more})"


@pytest.mark.parametrize("count", around(catalog_module._SHOWN))
def test_one_error_lists_the_first_faults_and_counts_all(count: int) -> None:
    faults = [Finding(f"code{n}", "fault", f"fault {n}.") for n in range(count)]
    with pytest.raises(DataError) as raised:
        catalog_module._raise_faults("data", faults)
    text = str(raised.value)
    assert f"{counted(count, 'problem')} found" in text
    assert [f"fault {n}." in text for n in range(count)] == [n < catalog_module._SHOWN for n in range(count)]
    more = count - catalog_module._SHOWN
    assert (f"... and {more} more" in text) == (more > 0)


@pytest.mark.parametrize("count", around(SHOWN_CASES))
def test_faults_of_one_kind_are_joined_where_they_are_many(count: int) -> None:
    faults = [Finding("unreadable", "fault", f"file {n}.", (str(n),)) for n in range(count)]
    joined = list(join_findings(faults))
    assert [c for f in joined for c in f.cases] == [str(n) for n in range(count)]
    if count <= SHOWN_CASES:
        assert joined == faults
    else:
        (one,) = joined
        assert f"{count} cases cannot be used" in one.message
        assert [f"file {n}." in one.message for n in range(count)] == [n < SHOWN_CASES for n in range(count)]


# --- labels ---------------------------------------------------------------------------------------------------------


def masks_of(*values: set[int]) -> dict[str, frozenset[int]]:
    return {str(n): frozenset(v) for n, v in enumerate(values)}


@pytest.mark.parametrize("classes", around(MANY_CLASSES))
def test_many_classes(tmp_path: Path, classes: int) -> None:
    """Each in several parts, so that they are no objects."""
    write_dataset(tmp_path, "particles", 4)
    for path in (tmp_path / "masks").iterdir():
        cells = RNG.permutation(np.resize(np.arange(classes), 1024)).reshape(32, 32)
        write_mask(path, np.kron(cells, np.ones((4, 4), np.int64)))
    found = open_catalog(str(tmp_path))
    assert found.num_classes == classes
    assert bool(found.notes) == (classes > MANY_CLASSES)


@pytest.mark.parametrize("strays", around(labels._SMOOTHED))
def test_many_stray_values_come_from_smoothing(strays: int) -> None:
    stray = {0, *range(10, 10 + strays)}
    (finding,) = labels.check_unexpected_values(masks_of({0, 255}, stray, {0, 255}, {0, 255}), None)
    assert ("smoothing" in finding.message) == (strays > labels._SMOOTHED)
    assert ("... (" in finding.message) == (strays > 8)


@pytest.mark.parametrize("count", around(labels._FEW_CASES))
def test_a_class_in_few_cases(count: int) -> None:
    masks = masks_of(*[{0, 1, 2}] * count, *[{0, 1}] * 9)
    found = {f.code: f for f in labels.check_class_presence(masks, (0, 1, 2))}
    assert ("rare_class" in found) == (count < labels._FEW_CASES)
    if "rare_class" in found:
        assert len(found["rare_class"].cases) == count


@pytest.mark.parametrize("top", [1, *around(256)[:3], 65534, 65535])
def test_masks_are_written_in_the_type_that_holds_their_values(tmp_path: Path, top: int) -> None:
    values = to_mask(np.array([[0, 1], [1, 0]]), (0, top))
    for suffix in (".png", ".tif", ".nii.gz"):
        path = tmp_path / f"mask{suffix}"
        write_mask(path, values)
        np.testing.assert_array_equal(read_mask(str(path)), np.array([[0, top], [top, 0]]))
        assert open_image(str(path)).dtype == (np.uint8 if top < 256 else np.uint16)
    with pytest.raises(DataError, match=r"0\.\.65535"):
        write_mask(tmp_path / "large.png", values.astype(np.int64) + 65536 - top)


# --- reading --------------------------------------------------------------------------------------------------------


ROW = 6 * 7 * 2
STACKS = Reading("ZYX")


@pytest.mark.parametrize("rows", around(4))
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_blocks_hold_as_many_rows_as_fit(tmp_path: Path, rows: int, extra: int) -> None:
    """Blocks of 4 rows, or with one byte less of 3, of volumes with fewer, as many, more and several times as many."""
    image = RNG.integers(0, 900, (rows, 6, 7)).astype(np.uint16)
    np.save(tmp_path / "a.npy", image)
    found: list[Block] = list(iterate_blocks(open_image(str(tmp_path / "a.npy"), reading=STACKS), 4 * ROW + extra))
    step = 3 if extra < 0 else 4
    assert [(b.start, len(b.voxels)) for b in found] == [(s, min(step, rows - s)) for s in range(0, rows, step)]
    np.testing.assert_array_equal(np.concatenate([b.voxels for b in found]), image)


@pytest.mark.parametrize("suffix", [".h5", ".zarr", ".npy"])
@pytest.mark.parametrize("chunk", around(4))
@pytest.mark.parametrize("fit", [1, 2, 3, 4, 5, 8, 99])
def test_chunks_are_read_in_as_few_reads_as_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, chunk: int, fit: int
) -> None:
    """Blocks of 4 rows; chunks of fewer, as many, and more; reads of ``fit`` rows at most. NPY: Fortran order."""
    rows = chunk if suffix == ".npy" else 26  # the whole depth lies side by side
    image = RNG.integers(0, 900, (rows, 6, 7)).astype(np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=image, chunks=(chunk, 3, 7))
    elif suffix == ".zarr":
        zarr.create_array(str(path), data=image, chunks=(chunk, 3, 7))
    else:
        np.save(path, np.asfortranarray(image))
    monkeypatch.setattr("ssl_seg.data.blocks.SLAB_BYTES", fit * ROW)
    stored = open_image(str(path), reading=STACKS)
    read: list[tuple[int, int]] = []

    def fetch(box: tuple[slice, ...]) -> NDArray[np.generic]:
        read.append((box[0].start, box[0].stop))
        return stored.fetch(box)

    found = list(iterate_blocks(replace(stored, fetch=fetch), 4 * ROW))
    np.testing.assert_array_equal(np.concatenate([b.voxels for b in found]), image)
    assert all(len(b.voxels) <= 4 for b in found)
    assert [row for start, stop in read for row in range(start, stop)] == list(range(rows))
    assert max(stop - start for start, stop in read) <= max(4, fit)
    of_chunk = Counter(number for start, stop in read for number in range(start // chunk, -(-stop // chunk)))
    assert max(of_chunk.values()) == (1 if chunk <= 4 else -(-min(chunk, rows) // max(4, fit)))


@pytest.mark.parametrize("rows", around(stored_module._TILE))
@pytest.mark.parametrize("columns", [1, *around(stored_module._TILE)[:4]])
def test_other_orders_are_copied_by_tiles(tmp_path: Path, rows: int, columns: int) -> None:
    image = RNG.integers(0, 900, (3, rows, columns)).astype(np.uint16)
    for name, array in (("c", image), ("f", np.asfortranarray(image)), ("plane", np.asfortranarray(image[0]))):
        np.save(tmp_path / f"{name}.npy", array)
        found = open_image(str(tmp_path / f"{name}.npy"), reading=STACKS).read()
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found[0], array)


@pytest.mark.parametrize("kind", [".h5", ".npz"])
@pytest.mark.parametrize("files", around(3))
def test_a_file_of_many_arrays_is_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, files: int
) -> None:
    """3 files are remembered: so many are listed once each, more of them in turn each time."""
    monkeypatch.setattr(numpy_files, "_read_members", once_a_version(numpy_files._read_members.__wrapped__, 3))
    listed: list[str] = []

    def count(whole: Callable[..., Any]) -> Callable[..., Any]:
        def listing(path: Path, **more: Any) -> Any:
            listed.append(Path(path).name)
            return whole(path, **more)

        return listing

    if kind == ".h5":
        listing = once_a_version(count(FORMATS[kind].list_arrays.__wrapped__), 3)
        monkeypatch.setitem(FORMATS, kind, replace(FORMATS[kind], list_arrays=listing))
    else:
        monkeypatch.setattr(zipfile, "ZipFile", count(zipfile.ZipFile))
    images = RNG.integers(0, 255, (files, 30, 4, 5)).astype(np.uint8)
    for number, arrays in enumerate(images):
        path = tmp_path / f"f{number}{kind}"
        if kind == ".h5":
            with h5py.File(path, "w") as file:
                for name, array in enumerate(arrays):
                    file[f"group/a{name}"] = array
        else:
            np.savez(path, **{f"group/a{name}": array for name, array in enumerate(arrays)})
    listed.clear()
    for _ in range(2):
        for number, arrays in enumerate(images):
            for name, array in enumerate(arrays):
                found = read_image(f"{tmp_path / f'f{number}'}{kind}::group/a{name}")
                np.testing.assert_array_equal(found[0], array)
    assert len(listed) == files * (1 if files <= 3 else 2)


def test_a_file_that_was_written_anew_is_listed_anew(tmp_path: Path) -> None:
    image = RNG.integers(0, 255, (4, 5)).astype(np.uint8)
    for names in ("ab", "bcd", "a"):
        np.savez(tmp_path / "x.npz", **{name: image + len(names) for name in names})
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for name in names:
                file[name] = image + len(names)
        for suffix in (".npz", ".h5"):
            assert list_arrays(tmp_path / f"x{suffix}") == tuple(names)
            np.testing.assert_array_equal(read_image(f"{tmp_path / 'x'}{suffix}::{names[-1]}")[0], image + len(names))


@pytest.mark.parametrize("rows", around(4))
def test_facts_do_not_depend_on_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    image = RNG.integers(0, 900, (rows, 6, 7)).astype(np.uint16)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "mask.npy", (image > 500).astype(np.uint8))
    case = Case("a", str(tmp_path / "image.npy"), str(tmp_path / "mask.npy"), None)
    whole = read_facts(case, reading=STACKS)
    monkeypatch.setattr("ssl_seg.data.blocks.iterate_blocks.__defaults__", (4 * ROW,))
    parts = read_facts(case, reading=STACKS)
    assert (parts.content, parts.counts, parts.foreground) == (whole.content, whole.counts, whole.foreground)
    assert whole.appearance is not None
    assert parts.appearance is not None
    np.testing.assert_allclose(parts.appearance.thumbnail, whole.appearance.thumbnail, rtol=1e-5)
    for name in ("low", "high", "mean", "std", "at_low", "at_high"):
        assert getattr(parts.appearance, name) == pytest.approx(getattr(whole.appearance, name))
    assert whole.appearance.std == pytest.approx(image.std(dtype=np.float64))


@pytest.mark.parametrize("voxels", [1000, *around(500 - 352)[:3], *around(1000 - 352)])
def test_a_packed_nifti_is_decoded_chunk_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, voxels: int) -> None:
    """A header of 352 bytes and a byte a voxel: files of one chunk of 500 or 1,000 bytes less 1, exactly, and more."""
    image = RNG.integers(0, 255, (1, 1, voxels)).astype(np.uint8)
    nibabel.Nifti1Image(image.transpose(2, 1, 0), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    for chunk in (500, 1000, 1):
        monkeypatch.setattr(nifti, "_CHUNK", chunk)
        np.testing.assert_array_equal(read_image(str(tmp_path / "a.nii.gz")).ravel(), image.ravel())
    data = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    for cut in (1, 500):
        (tmp_path / "short.nii.gz").write_bytes(gzip.compress(data[:-cut]))
        with pytest.raises(DataError, match=r"claims|truncated"):
            read_image(str(tmp_path / "short.nii.gz"))


@pytest.mark.parametrize("length", around(2**15)[:3])
def test_a_nifti_axis_beyond_16_bits_takes_the_second_version(tmp_path: Path, length: int) -> None:
    mask = (np.arange(length) % 3).astype(np.uint8)[None]
    write_mask(tmp_path / "a.nii", mask)
    np.testing.assert_array_equal(read_mask(str(tmp_path / "a.nii")), mask)


@pytest.mark.parametrize("chunks", around(9))
def test_as_many_chunks_of_zarr_as_allowed_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunks: int
) -> None:
    monkeypatch.setattr(zarr_store, "_MAX_CHUNKS", 9)
    image = RNG.integers(0, 255, (chunks, 4, 4)).astype(np.uint8)
    zarr.open_group(str(tmp_path / "a.zarr"), mode="a").create_array("image", data=image, chunks=(1, 4, 4))
    location = str(tmp_path / "a.zarr::image")
    if chunks > 9:
        with pytest.raises(DataError, match=f"{chunks} chunks"):
            read_image(location)
        parts = [
            open_image(location).read((slice(s, min(s + 9, chunks)), *[slice(0, 4)] * 2)) for s in range(0, chunks, 9)
        ]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1)[0], image)
    else:
        np.testing.assert_array_equal(read_image(location)[0], image)


def test_arrays_of_zarr_are_listed_to_a_depth_and_read_at_any(tmp_path: Path) -> None:
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="a")
    image = np.arange(12).reshape(3, 4)
    names = ["/".join([*"abcdefghi"[:depth], "image"]) for depth in range(9)]
    for name in names:
        root.create_array(name, data=image)
    assert list_arrays(tmp_path / "a.zarr") == tuple(sorted(names[: zarr_store._MAX_DEPTH + 1]))
    for name in names:
        np.testing.assert_array_equal(read_image(str(tmp_path / f"a.zarr::{name}"))[0], image)


def test_a_claim_is_refused_from_the_first_byte_too_many_on() -> None:
    for claimed, stored in ((64 * 2**20, 1), (1100 * 10**6, 10**6)):
        check_claim(claimed, stored)
        with pytest.raises(ValueError, match="claims"):
            check_claim(claimed + 1, stored)
    check_length(10, 10)
    with pytest.raises(ValueError, match="claims 11"):
        check_length(11, 10)


@pytest.mark.parametrize("count", around(catalog_module._READERS))
def test_every_case_is_read_once_in_order_however_many_threads_there_are(tmp_path: Path, count: int) -> None:
    write_dataset(tmp_path / "data", "particles", count)
    seen: list[int] = []

    def track(items: object, total: int) -> object:
        seen.append(total)
        return items

    catalog = open_catalog(str(tmp_path / "data"), track=track)  # type: ignore[arg-type]
    assert seen == [count]
    for case in catalog.cases:
        assert catalog.facts[case.id].content == read_facts(case).content


@pytest.mark.parametrize("held", range(1, 6))
@pytest.mark.parametrize("room", [-1, 0, 1])
def test_the_store_keeps_as_many_cases_as_fit(tmp_path: Path, held: int, room: int) -> None:
    """Of four cases of one size, in turn: the last ones that fit, and one less with a byte less."""
    for n in range(4):
        write_mask(tmp_path / "images" / f"{n}.png", np.eye(20, dtype=np.uint8) * (n + 1))
        write_mask(tmp_path / "masks" / f"{n}.png", np.eye(20, dtype=np.uint8))
    catalog = open_catalog(str(tmp_path))
    (size,) = {CaseStore(catalog, 1).load(case.id).nbytes for case in catalog.cases}
    store = CaseStore(catalog, 1, max_bytes=held * size + room)
    for n in (0, 1, 2, 3, 0, 1, 2, 3):
        np.testing.assert_array_equal(store.load(str(n)).image[0], np.eye(20) * (n + 1))
    kept = min(held - (room < 0), 4)
    assert list(store._cache) == [str(n) for n in range(4 - kept, 4)]
    assert decoded_bytes(catalog) == 4 * 3 * 400


# --- summary and picture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("different", around(summary._FREQUENT))
def test_frequent_shapes_are_listed_and_all_are_counted(different: int) -> None:
    catalog = make_catalog(spread(2 * different))
    facts = {i: replace(f, shape=(8, 8 + n // 2)) for n, (i, f) in enumerate(sorted(catalog.facts.items()))}
    found = summary._measure_shapes(facts)
    assert found is not None
    assert found["different"] == different
    assert [row["cases"] for row in found["frequent"]] == [2] * min(different, summary._FREQUENT)
    assert found["voxels"] == sum(2 * 8 * (8 + n) for n in range(different))
    assert found["max"] == [8, 7 + different]


@pytest.mark.parametrize("values", around(audit_samples._BARS))
def test_the_chart_of_mask_values_says_of_how_many(tmp_path: Path, values: int) -> None:
    write_dataset(tmp_path, "particles", 1)
    (path,) = (tmp_path / "masks").iterdir()
    write_mask(path, np.resize(np.arange(values), (128, 128)))
    result = doctor.audit(str(tmp_path))
    (chart,) = (c for c in audit_samples.make_charts(result) if c.title.startswith("mask values"))
    bars = audit_samples._BARS
    assert list(chart.values) == [str(n) for n in range(min(values, bars))]
    assert chart.title == (f"mask values (the first {bars} of {values})" if values > bars else "mask values")


@pytest.mark.parametrize("rows", around(4))
def test_the_slice_with_the_most_foreground_is_found_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr("ssl_seg.data.blocks.iterate_blocks.__defaults__", (4 * 6 * 7,))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    image = RNG.integers(0, 255, (rows, 6, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "images" / "a.tif", image, photometric="minisblack")
    for best in range(rows):
        mask = np.zeros_like(image)
        mask[:, 0, 0] = 1
        mask[best] = 1
        tifffile.imwrite(tmp_path / "masks" / "a.tif", mask, photometric="minisblack")
        result = doctor.audit(str(tmp_path))
        sample = audit_samples.read_sample(result.listing.cases[0], result, faulty=False)
        assert f"z {best} of {rows}" in sample.title


# --- splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", around(5))
@pytest.mark.parametrize("with_groups", [False, True])
def test_random_sets_do_not_depend_on_the_batches(
    monkeypatch: pytest.MonkeyPatch, draws: int, with_groups: bool
) -> None:
    units = np.arange(10) // (2 if with_groups else 1)

    def draw() -> list[NDArray[np.bool_]]:
        return list(draw_random_sets(units, 4, draws, np.random.default_rng(0)))

    (whole,) = draw()
    monkeypatch.setattr(statistics, "_ENTRIES", 50)  # 5 draws of 10 cases
    parts = draw()
    assert [len(p) for p in parts] == [min(5, draws - s) for s in range(0, draws, 5)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("entries", [1, 39, 40, 41, 200])
def test_the_measures_of_a_split_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    catalog = add_images(make_catalog(spread(40)))
    split = make_split(catalog, [0.2])
    whole = measure_split(split, catalog, draws=60)
    monkeypatch.setattr(statistics, "_ENTRIES", entries)
    for one, other in zip(measure_split(split, catalog, draws=60), whole, strict=True):
        for name in ("mean", "band_low", "band_high", "percentile", "ks_percentile", "wasserstein_percentile"):
            assert getattr(one.foreground, name) == pytest.approx(getattr(other.foreground, name))


@pytest.mark.parametrize("positive", [0, 1, *around(8), 31, 32, 33, 200])
@pytest.mark.parametrize("empty", [0, 5])
def test_strata_are_even_and_hold_eight_cases(positive: int, empty: int) -> None:
    """One for each 8 cases with foreground, 4 at most; and one for the cases without."""
    foreground = {f"p{n:03d}": 0.01 + n / 1000 for n in range(positive)} | {f"e{n}": 0.0 for n in range(empty)}
    found = stratify._strata(foreground)
    number = max(1, min(4, positive // 8))
    assert {i for i, stratum in found.items() if stratum == 0} == {i for i in foreground if i[0] == "e"}
    sizes = [sum(s == k for s in found.values()) for k in range(1, number + 1)]
    assert sum(sizes) == positive
    assert max(sizes) - min(sizes) <= 1
    ordered = [found[i] for i in sorted(foreground) if i[0] == "p"]
    assert ordered == sorted(ordered)


# --- patches --------------------------------------------------------------------------------------------------------


def test_streams_of_negative_cases_are_not_those_of_another_purpose() -> None:
    streams = (LABELED_STREAM, UNLABELED_STREAM, PROBE_STREAM, MIX_STREAM, TILE_STREAM, SIZE_STREAM)
    assert len({*streams, *(s + NEGATIVE_STREAMS for s in streams)}) == 2 * len(streams)


@pytest.mark.parametrize("size", [1, *around(ELASTIC_CELLS)])
@pytest.mark.parametrize("make", [lambda n: (n, n), lambda n: (n, 2 * n, 2 * n)])
def test_patches_of_any_size_are_deformed(size: int, make: Callable[[int], tuple[int, ...]]) -> None:
    """Also those with fewer voxels than the deformation has cells: every voxel comes from near its place."""
    shape = make(size)
    for seed in range(5):
        geometry = draw_geometry(shape, np.random.default_rng(seed), AugmentConfig(elastic=1.0))
        ramp = np.stack(np.meshgrid(*(np.arange(float(n)) for n in geometry.size), indexing="ij"))
        moved = geometry.move_image(ramp.astype(np.float32))
        assert moved.shape == (len(shape), *shape)
        assert np.isfinite(moved).all()


@pytest.mark.parametrize("count", around(MOST_PAIRS))
def test_the_images_of_the_first_pairs_are_named(count: int) -> None:
    named = name_ends((str(n), str(n + 1)) for n in range(count))
    assert named == tuple(str(n) for n in range(min(count, MOST_PAIRS) + 1))


@pytest.mark.parametrize("span", around(50))
@pytest.mark.parametrize("low", [0, 7, 60, -30])
def test_values_are_counted_in_a_table_as_by_sorting(span: int, low: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_values, "_TABLE", 50)
    voxels = np.random.default_rng(span).integers(low, low + span + 1, (9, 11)).astype(np.int32)
    voxels.flat[:2] = low, low + span
    values, counts, index = mask_values._index(voxels)
    expected = np.unique(voxels, return_counts=True)
    np.testing.assert_array_equal(values, expected[0])
    np.testing.assert_array_equal(counts, expected[1])
    np.testing.assert_array_equal(values[index], voxels)


@pytest.mark.parametrize("count", around(20))
def test_centers_are_of_all_voxels_or_of_a_sample(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_values, "_CENTER_VOXELS", 20)
    mask = np.zeros((40, 8), np.uint8)
    mask.flat[:count] = 1
    mask[-1, -1] = 2  # a second value: centers are not looked for else
    np.save(tmp_path / "m.npy", mask)
    scan = mask_values.scan_mask(open_mask(str(tmp_path / "m.npy")))[1]
    true = np.argwhere(mask == 1).mean(axis=0) / mask.shape
    tolerance = 1e-6 if count + 1 < 2 * 20 else 0.06
    np.testing.assert_allclose(scan.center[1], true, atol=tolerance)


@pytest.mark.parametrize("colors", around(pixels._SHOWN_COLORS))
@pytest.mark.parametrize("sampled", [20, 21, 22, 10**6])
def test_colors_of_a_mask_are_named_and_counted(colors: int, sampled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "_SAMPLED_PIXELS", sampled)
    mask = np.zeros((3, 1, 21 * colors), np.uint8)
    mask[0], mask[1] = np.arange(21 * colors) % colors, 5
    with pytest.raises(NotAnImageError) as raised:
        pixels.merge_label_channels(mask)
    named = [(n, 5, 0) for n in range(colors)]
    text = str(raised.value)
    assert any(str(color) in text for color in named)
    if sampled > mask[0].size:
        assert [str(color) in text for color in named] == [n < pixels._SHOWN_COLORS for n in range(colors)]
        assert (f" and {colors - pixels._SHOWN_COLORS} more" in text) == (colors > pixels._SHOWN_COLORS)
