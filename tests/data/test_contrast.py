"""Whether foreground is bright or dark in labeled images, and what is planned of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile

from ssl_seg.config.layers import nest
from ssl_seg.data import contrast
from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.contrast import CONTRAST_IMAGES, count_contrasts, count_skews
from ssl_seg.run.plan import plan_run

BRIGHT, DARK = 90, -90


def write(folder: Path, differences: list[int], dtype: str = "uint8", shape: tuple[int, ...] = (24, 20)) -> Catalog:
    """Write images whose foreground, a corner of one or two classes, differs so much from the rest."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index, difference in enumerate(differences):
        mask = np.zeros(shape, np.uint8)
        mask[..., :9, :8], mask[..., :4, :4] = 1, 1 + index % 2
        values = 120 + difference * (mask > 0) + rng.normal(0, 10, shape)
        tifffile.imwrite(folder / "images" / f"{index:02}.tif", values.astype(dtype), photometric="minisblack")
        tifffile.imwrite(folder / "masks" / f"{index:02}.tif", mask)
    return open_catalog(str(folder))


def plan_invert(catalog: Catalog, labeled: int | None = None, **given: object) -> float | None:
    """Return what is planned with the first ``labeled`` images (all by default) labeled and the others not."""
    nested = {key: value for name, text in given.items() for key, value in nest(name.replace("__", "."), text).items()}
    ids = [case.id for case in catalog.labeled]
    planned = plan_run(catalog, ids[:labeled], ids[len(ids[:labeled]) :], nested, gpu=False)
    return {p.key: p.value for p in planned}.get("augment.invert")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_bright_and_dark_are_counted_of_the_labeled_images_alone(dtype: str, tmp_path: Path) -> None:
    catalog = write(tmp_path, [BRIGHT, DARK, BRIGHT, BRIGHT, DARK, DARK], dtype)
    assert count_contrasts(catalog, ["00", "01", "02", "03", "04"]) == (3, 2)
    assert count_contrasts(catalog, ["05"]) == (0, 1)
    assert count_contrasts(catalog, []) == (0, 0)


def test_masks_of_one_value_count_as_neither(tmp_path: Path) -> None:
    catalog = write(tmp_path, [BRIGHT, DARK, BRIGHT, DARK])
    for index, value in ((0, 0), (1, 1)):
        tifffile.imwrite(tmp_path / "masks" / f"{index:02}.tif", np.full((24, 20), value, np.uint8))
    assert count_contrasts(open_catalog(str(tmp_path)), [case.id for case in catalog.labeled]) == (1, 1)


@pytest.mark.parametrize(
    ("bright", "dark", "expected"), [(1, 1, 0.5), (3, 1, 0.5), (1, 3, 0.5), (4, 1, None), (4, 0, None)]
)
def test_it_is_planned_where_a_quarter_are_the_other_way_round(
    bright: int, dark: int, expected: float | None, tmp_path: Path
) -> None:
    catalog = write(tmp_path, [BRIGHT] * bright + [DARK] * dark)
    assert plan_invert(catalog) == expected
    assert plan_invert(catalog, augment__invert=0.2) is None  # given, so not planned
    assert plan_invert(catalog, data__window=[0, 200]) is None  # values have a fixed meaning


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "expected"),
    [
        ([BRIGHT, BRIGHT], [DARK, BRIGHT, DARK], 0.5),
        ([DARK], [BRIGHT, DARK, DARK, DARK], 0.5),
        ([BRIGHT, BRIGHT], [DARK, *[BRIGHT] * 4], None),
        ([BRIGHT, BRIGHT], [DARK] * 4, None),
        ([BRIGHT, BRIGHT], [], None),
    ],
)
def test_the_skewness_of_unlabeled_images_says_that_they_are_of_both_kinds(
    labeled: list[int], unlabeled: list[int], expected: float | None, tmp_path: Path
) -> None:
    """Four fifths of an image are background here, so that bright foreground makes it skewed to bright values."""
    catalog = write(tmp_path, [*labeled, *unlabeled])
    ids = [case.id for case in catalog.labeled]
    assert count_skews(catalog, ids) == count_contrasts(catalog, ids)
    assert plan_invert(catalog, len(labeled)) == expected


def test_colors_are_inverted_only_where_masks_show_both_kinds(tmp_path: Path) -> None:
    write(tmp_path, [BRIGHT, DARK, BRIGHT])
    for path in (tmp_path / "images").iterdir():
        tifffile.imwrite(path, np.stack([tifffile.imread(path)] * 3, -1) + np.uint8([0, 1, 2]), photometric="rgb")
    catalog = open_catalog(str(tmp_path))
    assert catalog.channels == 3
    assert (plan_invert(catalog, 1), plan_invert(catalog, 2)) == (None, 0.5)


@pytest.mark.parametrize(("filled", "expected"), [(1, 0.5), (2, None)])
def test_skewness_that_contradicts_most_masks_is_not_trusted(
    filled: int, expected: float | None, tmp_path: Path
) -> None:
    """Bright foreground that fills most of an image skews it to dark values."""
    write(tmp_path, [DARK] * filled + [BRIGHT, BRIGHT, DARK, DARK])
    for index in range(filled):
        path = tmp_path / "masks" / f"{index:02}.tif"
        tifffile.imwrite(path, (tifffile.imread(path) == 0).astype(np.uint8))
    catalog, labeled = open_catalog(str(tmp_path)), [f"{n:02}" for n in range(filled + 1)]
    assert count_contrasts(catalog, labeled) == (filled + 1, 0)
    assert count_skews(catalog, labeled) == (1, filled)
    assert plan_invert(catalog, filled + 1) == expected


def test_masks_that_show_nothing_plan_nothing(tmp_path: Path) -> None:
    write(tmp_path, [BRIGHT, BRIGHT, DARK])
    tifffile.imwrite(tmp_path / "masks" / "00.tif", np.zeros((24, 20), np.uint8))
    assert plan_invert(open_catalog(str(tmp_path)), 1) is None


def test_volumes_are_left_alone(tmp_path: Path) -> None:
    catalog = write(tmp_path, [BRIGHT, DARK], shape=(6, 24, 20))
    assert count_contrasts(catalog, ["00", "01"]) == (1, 1)
    assert plan_invert(catalog) is None


@pytest.mark.parametrize("count", [CONTRAST_IMAGES - 1, CONTRAST_IMAGES, CONTRAST_IMAGES + 1, 2 * CONTRAST_IMAGES + 1])
def test_of_many_images_some_are_read(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = write(tmp_path, [BRIGHT] * 5)
    many = [f"{n % 5:02}" for n in range(count)]
    bright, dark = count_contrasts(catalog, many)
    assert dark == 0
    assert (bright == count) == (count <= CONTRAST_IMAGES)
    assert count / 2 / (1 + count // CONTRAST_IMAGES) <= bright <= min(count, CONTRAST_IMAGES)
    monkeypatch.setattr(contrast, "CONTRAST_IMAGES", 10 * count)
    assert count_contrasts(catalog, many) == (count, 0)
