"""The picture of predicted images: which are shown, and what of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import Cli
from sizes import around
from test_cli import assert_refused

from ssl_seg.config import DataConfig
from ssl_seg.diagnose.result import Example
from ssl_seg.errors import DataError
from ssl_seg.report import mask_pictures
from ssl_seg.report.mask_pictures import SHOWN, draw_masks
from ssl_seg.results.mask_making import PredictRequest

Shown = list[tuple[Example, str]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What is drawn, and what is written beside it."""
    found: Shown = []

    def plot(examples: Sequence[Example], _: Path, titles: Sequence[str], __: str) -> None:
        found.extend(zip(examples, titles, strict=True))

    monkeypatch.setattr(mask_pictures, "plot_examples", plot)
    return found


def write_pair(folder: Path, name: str, mask: np.ndarray[Any, Any]) -> None:
    for part, array in (("images", 100 + 50 * (mask > 0)), ("masks", mask)):
        (folder / part).mkdir(exist_ok=True)
        cv2.imwrite(str(folder / part / f"{name}.png"), array.astype(np.uint8))


def draw(run: Path, folder: Path) -> None:
    best = run / "checkpoints" / "best.pt"
    draw_masks(PredictRequest(best, folder / "images", folder / "masks"), folder / "look.png")


@pytest.mark.parametrize("count", [1, *around(SHOWN), 12])
def test_they_are_shown_from_the_least_to_the_most_foreground(
    count: int, tiny_run: Path, tmp_path: Path, shown: Shown
) -> None:
    rows = np.random.default_rng(0).permutation(count)
    for number, filled in enumerate(rows):
        write_pair(tmp_path, f"{number:02}", np.arange(40)[:, None] * np.ones((1, 30)) < filled)
    draw(tiny_run, tmp_path)
    assert len(shown) == min(count, SHOWN)
    areas = [int(example.pred.sum()) for example, _ in shown]
    assert areas == sorted(areas)
    assert (areas[0], areas[-1]) == (0, 30 * (count - 1))
    for example, title in shown:
        number = int(title[:2])
        assert example.pred.sum() == 30 * rows[number]
        assert title == f"{number:02}.png\n{rows[number] / 40:.1%} foreground"
        assert example.image is not None
        assert np.array_equal(example.image == example.image.max(), example.pred > 0) or rows[number] == 0
        assert example.truth is None


@pytest.mark.parametrize("side", around(mask_pictures.MOST_SIDE[2]))
def test_of_a_large_image_the_middle_is_read(side: int, tiny_run: Path, tmp_path: Path, shown: Shown) -> None:
    mask = np.zeros((side, 40), np.uint8)
    mask[-1] = 1
    write_pair(tmp_path, "a", mask)
    draw(tiny_run, tmp_path)
    ((example, _),) = shown
    most = mask_pictures.MOST_SIDE[2]
    is_whole = side <= most
    assert bool(example.pred.any()) == (is_whole or (side - most) // 2 >= side - most)


@pytest.mark.parametrize("count", around(6))
def test_of_many_masks_some_are_read(
    count: int, tiny_run: Path, tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_pictures, "MOST_READ", 6)
    monkeypatch.setattr(mask_pictures, "SHOWN", 100)
    for number in range(count):
        write_pair(tmp_path, f"{number:02}", np.arange(40)[:, None] * np.ones((1, 30)) < number)
    draw(tiny_run, tmp_path)
    assert len(shown) == min(count, 6)
    assert {shown[0][1][:2], shown[-1][1][:2]} == {"00", f"{count - 1:02}"}


def test_images_without_a_mask_are_left_out(tiny_run: Path, tmp_path: Path, shown: Shown) -> None:
    write_pair(tmp_path, "a", np.ones((40, 40)))
    (tmp_path / "masks" / "a.png").rename(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no mask of .*images is in .*masks"):
        draw(tiny_run, tmp_path)
    assert shown == []
    (tmp_path / "a.png").rename(tmp_path / "masks" / "a.png")
    draw(tiny_run, tmp_path)
    assert len(shown) == 1


def test_values_of_classes_and_numbers_of_objects(tmp_path: Path) -> None:
    mask = np.array([[7, 7, 0], [3, 0, 9]], np.uint8)
    tifffile.imwrite(tmp_path / "m.tif", mask)
    data = DataConfig.model_construct(label_values=(7, 0, 3, 9))
    job = mask_pictures.Job(("i.tif",), tmp_path / "m.tif")
    assert mask_pictures._read_classes(job, data).tolist() == [[0, 0, 1], [2, 1, 3]]
    numbered = mask_pictures.Job(("i.tif",), tmp_path / "m.tif", is_numbered=True)
    assert mask_pictures._read_classes(numbered, data).tolist() == [[1, 1, 0], [1, 0, 1]]


def test_the_command(cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path) -> None:
    picture = tmp_path / "look.png"
    command = ("predict", tiny_run, particles_dir / "images", tmp_path / "masks", "--figure", picture)
    code, out, err = cli(*command)
    assert code == 0, err
    assert f"wrote {picture}" in out
    assert cv2.imread(str(picture)).std() > 10
    assert_refused(cli(*command), f"{picture} exists already")
    assert_refused(cli(*command[:-1], tmp_path / "look.txt"), "--figure", "look.txt")
