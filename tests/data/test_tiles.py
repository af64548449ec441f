"""Parts of large labeled images as cases."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ssl_seg.cli import app
from ssl_seg.data import volumes
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.facts import CaseFacts
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.splits.split import make_folds, make_split
from ssl_seg.data.store import CaseStore
from ssl_seg.data.tiles import SMALLEST, WIDEST_GAP, cut_box, cut_shape, plan_tiles, surround
from ssl_seg.data.volumes import read_image, read_mask
from ssl_seg.errors import DataError, SplitError
from ssl_seg.labels import Meaning


def scene(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a noisy image with bright balls, and a mask of 0 and 255."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, bool)
    for _ in range(np.prod(shape) // 30 ** len(shape)):
        center, radius = [int(rng.integers(0, n)) for n in shape], int(rng.integers(4, 10))
        box = tuple(slice(max(0, c - radius), c + radius + 1) for c in center)
        grid = np.ogrid[
            tuple(slice(s.start - c, min(s.stop, n) - c) for s, c, n in zip(box, center, shape, strict=True))
        ]
        mask[box] |= sum(g**2 for g in grid) < radius**2
    image = np.clip(rng.normal(70, 15, shape) + 90 * mask, 0, 255).astype(np.uint8)
    return image, mask.astype(np.uint8) * 255


def write(root: Path, shapes: list[tuple[int, ...]], *, unlabeled: int = 0, suffix: str = ".png") -> Path:
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True, exist_ok=True)
    save = tifffile.imwrite if suffix == ".tif" else lambda path, array: cv2.imwrite(str(path), array)
    for n, shape in enumerate(shapes):
        image, mask = scene(shape, n)
        save(root / "images" / f"o{n}{suffix}", image)
        save(root / "masks" / f"o{n}{suffix}", mask)
    for n in range(unlabeled):
        save(root / "images" / f"u{n}{suffix}", scene(shapes[0], 100 + n)[0])
    return root


@given(st.lists(st.integers(1, 700), min_size=2, max_size=3), st.integers(1, 30))
def test_no_voxel_is_in_two_parts_and_only_gaps_are_in_none(shape: list[int], parts: int) -> None:
    ndim, regions = len(shape), cut_shape(shape, parts, SMALLEST[len(shape)])
    for axis, n in enumerate(shape):
        spans = sorted({region[axis] for region in regions})
        assert spans[0][0] == 0
        assert spans[-1][1] == n
        sizes = [stop - start for start, stop in spans]
        gaps = [b[0] - a[1] for a, b in pairwise(spans)]
        assert max(sizes) - min(sizes) <= 1
        if gaps:
            assert min(sizes) >= SMALLEST[ndim]
            assert set(gaps) == {min(WIDEST_GAP[ndim], gaps[0])}
            assert gaps[0] == WIDEST_GAP[ndim] or 4 * gaps[0] >= min(sizes)
    assert len(set(regions)) == len(regions) == np.prod([len({r[a] for r in regions}) for a in range(ndim)])
    fits = any(n >= 9 * SMALLEST[ndim] // 4 for n in shape)
    assert len(regions) >= 2 or parts == 1 or not fits


@pytest.mark.parametrize(("parts", "count"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6), (7, 9), (9, 9), (90, 36)])
def test_the_grid_has_at_least_as_many_parts_as_are_asked_for(parts: int, count: int) -> None:
    assert len(cut_shape((512, 512), parts, 64)) == count


@pytest.mark.parametrize(("side", "count"), [(143, 1), (144, 2), (145, 2)])
def test_an_image_is_cut_from_a_side_of_144_voxels_on(side: int, count: int) -> None:
    assert len(cut_shape((80, side), 8, 64)) == count
    assert len(cut_shape((40, side // 2, 40), 8, 32)) == count


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_parts_hold_the_voxels_of_their_region(tmp_path: Path, suffix: str) -> None:
    settings = CatalogSettings(spacing=(2.0, 1.0))
    catalog = open_catalog(str(write(tmp_path, [(300, 200)], unlabeled=1, suffix=suffix)), settings)
    assert {facts.spacing for facts in catalog.facts.values()} == {(2.0, 1.0)}
    image, mask = read_image(str(tmp_path / f"images/o0{suffix}")), read_mask(str(tmp_path / f"masks/o0{suffix}"))
    assert catalog.case("u0").region is None
    assert catalog.facts["u0"].shape == (300, 200)
    covered = np.zeros(mask.shape, int)
    for max_bytes in (1, 2**20):
        store = CaseStore(catalog, 1, max_bytes)
        for case in catalog.labeled:
            assert case.region is not None
            box = tuple(slice(*span) for span in case.region)
            covered[box] += 1
            whole = store.load_whole(case.id)
            np.testing.assert_array_equal(whole.image[0], image[0][box])
            np.testing.assert_array_equal(whole.target, mask[box] // 255)
            loaded = store.load(case.id)
            np.testing.assert_array_equal(loaded.image[:, 3:9, 4:7], image[:, *box][:, 3:9, 4:7])
            counts = catalog.facts[case.id].counts
            assert counts is not None
            assert counts[-1] == (mask[box] == 255).sum()
    assert set(np.unique(covered)) == {0, 2}
    assert (covered == 0).mean() < 0.3


def test_a_compressed_image_is_decoded_once_for_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [(512, 512)])
    opened: list[str] = []
    real = volumes._open
    monkeypatch.setattr(volumes, "_open", lambda *given: (opened.append(given[0]), real(*given))[1])
    catalog = open_catalog(str(tmp_path))
    assert len(opened) == 4  # image and mask, as they are and for all parts
    assert len(catalog.labeled) == 9
    for max_bytes in (2**31, 1):
        store = CaseStore(catalog, 1, max_bytes)
        opened.clear()
        for case in catalog.labeled:
            store.load(case.id)
        assert len(opened) == 2


@pytest.mark.parametrize(
    ("shapes", "labeled"),
    [
        ([(96, 96)], 1),
        ([(143, 143)], 1),
        ([(160, 100)], 2),
        ([(512, 512)], 9),
        ([(512, 512), (96, 96)], 5),
        ([(512, 512), (300, 300)], 8),
        ([(512, 512)] * 3, 3),
        ([(800, 800)], 9),
        ([(1200, 1200)], 16),
        ([(1200, 1200), (1200, 600)], 17),
        ([(40, 100, 120)], 6),
    ],
)
def test_fewer_than_three_labeled_images_are_cut_where_they_are_large(
    tmp_path: Path, shapes: list[tuple[int, ...]], labeled: int
) -> None:
    root = write(tmp_path, shapes, suffix=".png" if len(shapes[0]) == 2 else ".tif")
    catalog = open_catalog(str(root))
    assert len(catalog.labeled) == labeled
    notes = [note for note in catalog.notes if "parts of" in note]
    assert len(notes) == (labeled != len(shapes))
    assert open_catalog(str(root), CatalogSettings(tiles=catalog.tiles)).cases == catalog.cases
    assert len(open_catalog(str(root), CatalogSettings(tiles=1)).labeled) == len(shapes)
    if labeled >= 3:
        split = make_split(catalog, [1.0])
        regions = {
            part: [catalog.case(i) for i in ids]
            for part, ids in (("train", split.fractions[1.0]), ("val", split.val), ("test", split.test))
        }
        assert all(regions.values())
        for a, b in combinations(regions.values(), 2):
            assert all(_apart(x.region, y.region) for x in a for y in b if x.image == y.image)


def _apart(a: tuple[tuple[int, int], ...] | None, b: tuple[tuple[int, int], ...] | None) -> bool:
    assert a is not None
    assert b is not None
    least = WIDEST_GAP[len(a)] // 2
    return any(x[0] - y[1] >= least or y[0] - x[1] >= least for x, y in zip(a, b, strict=True))


def test_one_or_two_labeled_images_that_are_small_are_said(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one", [(96, 96)], unlabeled=5), write(tmp_path / "two", [(96, 96)] * 2)
    for root, text in ((one, "validation needs another"), (two, "the test list will be empty")):
        (finding,) = (f for f in audit(str(root)).findings if f.code == "few_labeled")
        assert text in finding.message
        assert "from a side of 144" in finding.message
    with pytest.raises(SplitError, match=r"1 labeled case.* from a side of 144"):
        make_split(open_catalog(str(one)), [1.0])
    with pytest.raises(SplitError, match="1 labeled case"):
        make_folds(open_catalog(str(one)), [1.0], 2)
    assert make_split(open_catalog(str(two)), [1.0]).test == ()
    for root in (one, two):
        assert not [f for f in audit(str(root)).findings if f.code == "rare_class"]
    large = audit(str(write(tmp_path / "large", [(512, 512)])))
    assert not [f for f in large.findings if f.code in ("few_labeled", "rare_class")]
    assert any("9 parts of 1 labeled image" in note for note in large.summary["notes"])
    assert len(make_folds(open_catalog(str(tmp_path / "large")), [1.0], 4)) == 4


@pytest.mark.parametrize(("side", "parts"), [(799, 9), (832, 9), (1119, 9), (1120, 16), (2272, 64), (20000, 64)])
def test_large_images_are_cut_into_up_to_sixty_roomy_parts(side: int, parts: int) -> None:
    facts = {"a": CaseFacts((side, side), 1, "uint8", (0, 1), 0.5, "0" * 16)}
    tiling = plan_tiles([Case("a", "a.tif", "b.tif", None)], facts, None)
    assert len(tiling.regions["a"]) == parts
    assert plan_tiles([Case("a", "a.tif", "b.tif", None)], facts, tiling.parts).regions == tiling.regions


def test_parts_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, [(96, 96)] * 4)
    with pytest.raises(DataError, match=r"data\.tiles=4: the largest labeled image is 96 x 96\. Images are cut"):
        open_catalog(str(root), CatalogSettings(tiles=4))


def test_one_large_image_is_trained_scored_and_predicted(tmp_path: Path) -> None:
    data, run = write(tmp_path / "data", [(512, 512)]), tmp_path / "run"
    settings = ["data.patch_size=[32,32]", "network.features=4", "length.steps=3", "monitor.probe_patches=2"]

    def call(*words: object) -> str:
        result = CliRunner().invoke(app.app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "parts of 1 labeled image" in call("data", "audit", data)
    call("train", "--data", data, "--out", run, *(word for text in settings for word in ("--set", text)))
    assert "tiles: 8" in (run / "config.yaml").read_text()
    result = json.loads(call("evaluate", run, "--json"))
    image, mask = read_image(str(data / "images/o0.png"))[0], read_mask(str(data / "masks/o0.png"))
    assert result["cases"]
    for row in result["cases"]:
        y, x = (int(text[1:]) for text in row["id"].partition("@")[2].split("_"))
        height, width = (
            next(b - a for a, b in (region[axis] for region in cut_shape((512, 512), 8, 64)) if a == start)
            for axis, start in enumerate((y, x))
        )
        part = tmp_path / "parts" / f"{row['id']}.png"
        part.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(part), image[y : y + height, x : x + width])
        call("predict", run, part, tmp_path / "masks" / part.name)
        found = read_mask(str(tmp_path / "masks" / part.name)) == 255
        true = mask[y : y + height, x : x + width] == 255
        assert row["counts"][0] == [
            (found & true).sum(),
            (found & ~true).sum(),
            (~found & true).sum(),
            (~found & ~true).sum(),
        ]
    call("predict", run, data / "images", tmp_path / "whole")
    assert read_mask(str(tmp_path / "whole" / "o0.png")).shape == (512, 512)


def test_the_whole_image_in_another_folder_is_known_as_trained_with(tmp_path: Path) -> None:
    data, run = write(tmp_path / "data", [(300, 300)]), tmp_path / "run"
    settings = ["data.patch_size=[32,32]", "network.features=4", "length.steps=1", "monitor.probe_patches=2"]
    words = ["train", "--data", str(data), "--out", str(run), *(w for text in settings for w in ("--set", text))]
    assert CliRunner().invoke(app.app, words).exit_code == 0
    other = write(tmp_path / "other", [(300, 300), (300, 300)])
    result = CliRunner().invoke(app.app, ["evaluate", str(run), "--data", str(other), "--all", "--json"])
    assert result.exit_code == 0, result.output
    assert [row["id"] for row in json.loads(result.stdout)["cases"]] == ["o1"]


def test_where_only_a_box_is_labeled_that_is_cut_and_the_rest_is_unlabeled(tmp_path: Path) -> None:
    root, box = write(tmp_path, [(500, 500)]), np.s_[60:260, 250:450]
    mask = read_mask(str(root / "masks/o0.png")) // 255
    ignored = np.full_like(mask, 2)
    ignored[box] = mask[box]
    cv2.imwrite(str(root / "masks/o0.png"), ignored)
    catalog = open_catalog(str(root), CatalogSettings(meaning=Meaning(label_values=(0, 1), ignore_value=2)))
    assert len(catalog.labeled) == 4
    assert all(catalog.facts[case.id].annotated == 1 for case in catalog.labeled)
    covered = np.zeros(mask.shape, int)
    for case in catalog.cases:
        covered[tuple(slice(*span) for span in case.region or ())] += 1
    assert covered.max() == 1
    assert covered.mean() > 0.6
    assert [catalog.facts[case.id].annotated for case in catalog.unlabeled] == [0, 0]
    assert any("around the labels is 2 unlabeled" in note for note in catalog.notes)
    whole = open_catalog(str(root), CatalogSettings(meaning=Meaning(label_values=(0, 1, 2))))  # nothing is ignored
    assert (len(whole.labeled), len(whole.unlabeled)) == (9, 0)


@given(st.lists(st.integers(1, 300), min_size=2, max_size=3), st.integers(1, 30), st.data())
def test_parts_of_a_box_and_around_it_do_not_meet(shape: list[int], parts: int, data: st.DataObject) -> None:
    spans = [sorted(data.draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in shape]
    box = tuple((start, max(stop, start + 1)) for start, stop in spans)
    inside = cut_box(box, shape, parts)
    regions = (*inside, *surround(inside, shape))
    covered = np.zeros(shape, int)
    for region in regions:
        assert all(0 <= start < stop <= n for (start, stop), n in zip(region, shape, strict=True))
        covered[tuple(slice(*span) for span in region)] += 1
    assert covered.max() == 1
    assert all(_apart(a, b) for a in inside for b in regions[len(inside) :])
    if len(inside) == 1:  # nothing of the box is lost
        assert (covered[tuple(slice(*span) for span in box)] == 1).all()


def test_labels_that_lie_in_the_gaps_are_said(tmp_path: Path) -> None:
    """Parts are rows 0 to 85, 107 to 192 and 214 to 300."""
    root = write(tmp_path, [(300, 80)])
    for first, is_lost in ((86, True), (140, False)):
        mask = np.full((300, 80), 2, np.uint8)
        mask[[0, -1], :20] = 0
        mask[first : first + 20] = read_mask(str(root / "masks/o0.png"))[first : first + 20] > 1
        cv2.imwrite(str(root / "masks/o0.png"), mask)
        notes = open_catalog(str(root), CatalogSettings(meaning=Meaning(ignore_value=2))).notes
        assert any("lie in the gaps" in note for note in notes) == is_lost
