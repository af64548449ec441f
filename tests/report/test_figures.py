from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssl_seg.errors import DataError
from ssl_seg.report.figures import Panel, new_figure, plot_predictions, save_figure, to_gray

FOUND, MISSED, FALSE = (1, 2, 0)
"""Channel of RGB that is brighter: green, blue, red."""


class Drawn:
    """What a call has drawn: images as (row, column) arrays, and the file."""

    def __init__(self, figure: Figure, path: Path, rows: int) -> None:
        self.figure, self.path = figure, path
        self.axes = np.array(figure.axes[: 4 * rows]).reshape(rows, 4)

    def image(self, row: int, column: int) -> NDArray[Any]:
        (shown,) = self.axes[row, column].images
        return np.asarray(shown.get_array())


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Plot panels to a file; returns what was drawn."""
    saved: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", savefig)

    def run(*panels: Panel) -> Drawn:
        path = tmp_path / f"figure{len(saved)}.png"
        plot_predictions(panels, path)
        return Drawn(saved[-1], path, len(panels))

    return run


def panel(prob: Any, truth: Any = None, image: Any = None, title: str = "case") -> Panel:
    prob = np.asarray(prob, np.float32)
    image = np.zeros(prob.shape) if image is None else np.asarray(image)
    return Panel(title, image, None if truth is None else np.asarray(truth), prob, (prob > 0.5).astype(np.int64))


def numbered_volume(foreground: NDArray[Any]) -> NDArray[np.int64]:
    """An image whose values are the index of the slice."""
    return np.broadcast_to(np.arange(len(foreground))[:, None, None], foreground.shape)


class TestLayout:
    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("shape", [(20, 30), (4, 20, 30)])
    def test_one_row_a_case(self, draw: Any, shape: tuple[int, ...], rows: int) -> None:
        rng = np.random.default_rng(0)
        panels = [
            panel(rng.random(shape), rng.integers(0, 2, shape), rng.random(shape), f"case {n}") for n in range(rows)
        ]
        drawn = draw(*panels)
        pixels = cv2.imread(str(drawn.path))
        assert pixels is not None
        height, width = pixels.shape[:2]
        assert (height, width) == (pytest.approx(308 * rows, abs=1), 1210)
        assert len(drawn.figure.axes) == 4 * rows + rows  # and a color bar each
        assert [axis.get_ylabel() for axis in drawn.axes[:, 0]] == [f"case {n}" for n in range(rows)]
        titles = [[axis.get_title() for axis in row] for row in drawn.axes]
        assert ["input" in titles[0][0], "truth" in titles[0][1], "prob" in titles[0][2]] == [True] * 3
        assert all(word in titles[0][3] for word in ("found (green)", "missed (blue)", "false (red)"))
        assert titles[1:] == [[""] * 4] * (rows - 1)
        for row in range(rows):
            assert [drawn.image(row, column).shape[:2] for column in range(4)] == [(20, 30)] * 4

    def test_panels_show_their_own_case(self, draw: Any) -> None:
        rng = np.random.default_rng(1)
        panels = [panel(rng.random((5, 6)), rng.integers(0, 3, (5, 6)), rng.integers(0, 99, (5, 6))) for _ in range(2)]
        drawn = draw(*panels)
        for row, own in enumerate(panels):
            np.testing.assert_array_equal(drawn.image(row, 0), own.image)
            np.testing.assert_array_equal(drawn.image(row, 1), own.truth)
            np.testing.assert_array_equal(drawn.image(row, 2), own.prob)

    def test_probabilities_have_one_scale(self, draw: Any) -> None:
        """A map between 0.4 and 0.6 must not look like one between 0 and 1; an empty truth must not look full."""
        drawn = draw(panel(np.full((4, 4), 0.5), np.zeros((4, 4), int)), panel(np.ones((4, 4)), np.ones((4, 4), int)))
        for row in (0, 1):
            for column in (1, 2):
                assert drawn.axes[row, column].images[0].get_clim() == (0, 1)

    def test_the_file_shows_the_colors(self, draw: Any) -> None:
        """Left half found, right half missed: the pixels of the file, not only what was handed to matplotlib."""
        prob = np.zeros((40, 40))
        prob[:, :20] = 1
        drawn = draw(panel(prob, np.ones((40, 40), int)))
        pixels = cv2.cvtColor(cv2.imread(str(drawn.path)), cv2.COLOR_BGR2RGB)
        (height, width), box = pixels.shape[:2], drawn.axes[0, 3].get_position()
        y = round(height * (1 - (box.y0 + box.y1) / 2))
        left, right = (pixels[y, round(width * (box.x0 + share * box.width))].tolist() for share in (0.25, 0.75))
        assert left == pytest.approx([0, 0.3 * 255, 0], abs=2)
        assert right == pytest.approx([0, 0, 0.3 * 255], abs=2)


class TestErrors:
    def test_colors(self, draw: Any) -> None:
        prob = [[0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.5, 0.5001]]
        truth = [[1, 1, 0, 0, 2, 2, -100, -100, 1, 1]]
        wrong_class = [FOUND, FALSE]  # yellow: class 1 where class 2 is true
        expected = [FOUND, MISSED, FALSE, None, wrong_class, MISSED, None, None, MISSED, FOUND]
        shown = draw(panel(prob, truth)).image(0, 3)
        for color, channel in zip(shown[0], expected, strict=True):
            wanted = np.zeros(3)
            if channel is not None:
                wanted[channel] = 0.3
            np.testing.assert_allclose(color, wanted, atol=1e-7)

    def test_the_image_lies_below_and_colors_stay_in_range(self, draw: Any) -> None:
        image = np.array([[50, 150, 250, 250]], np.uint8)
        shown = draw(panel([[0, 0, 0, 1]], [[0, 0, 0, 1]], image)).image(0, 3)
        np.testing.assert_allclose(shown[0, :3, 0], [0, 0.35, 0.7])
        np.testing.assert_allclose(shown[0, :, 0], shown[0, :, 2])
        np.testing.assert_allclose(shown[0, 3], [0.7, 1.0, 0.7])
        assert shown.min() >= 0
        assert shown.max() <= 1

    def test_without_a_truth_the_prediction_is_green_and_nothing_is_an_error(self, draw: Any) -> None:
        drawn = draw(panel([[0.9, 0.1]]))
        np.testing.assert_allclose(drawn.image(0, 3)[0], [[0, 0.3, 0], [0, 0, 0]], atol=1e-7)
        np.testing.assert_array_equal(drawn.image(0, 1), [[0, 0]])

    def test_the_input_is_not_changed(self, draw: Any) -> None:
        own = panel([[0.9, 0.1]], [[1, 0]], np.array([[3, 200]], np.uint8))
        before = [array.copy() for array in (own.image, own.truth, own.prob)]
        draw(own)
        for array, copy in zip((own.image, own.truth, own.prob), before, strict=True):
            np.testing.assert_array_equal(array, copy)


class TestSlice:
    def shown(self, draw: Any, prob: NDArray[Any], truth: NDArray[Any] | None) -> int:
        """Return which slice is shown; all four panels must show the same."""
        image = numbered_volume(prob)
        drawn = draw(panel(prob, truth, image))
        z = int(drawn.image(0, 0)[0, 0])
        np.testing.assert_array_equal(drawn.image(0, 0), image[z])
        if truth is not None:
            np.testing.assert_array_equal(drawn.image(0, 1), truth[z] > 0)
        np.testing.assert_array_equal(drawn.image(0, 2), prob[z].astype(np.float32))
        found = (prob[z] > 0.5) & (truth is None or truth[z] > 0)
        green = drawn.image(0, 3)[..., 1] - drawn.image(0, 3).min(axis=-1)
        np.testing.assert_array_equal(green > 0.1, found)
        return z

    def test_the_slice_with_most_true_foreground(self, draw: Any) -> None:
        truth = np.zeros((5, 4, 4), int)
        truth[1, 0, :2] = 1
        truth[3, 1, :3] = 1
        prob = np.zeros((5, 4, 4))
        prob[4] = 0.9  # more was predicted elsewhere
        prob[3, 1, 0] = 0.9
        assert self.shown(draw, prob, truth) == 3

    def test_voxels_count_and_not_class_indices_or_ignored_ones(self, draw: Any) -> None:
        truth = np.zeros((4, 4, 4), int)
        truth[0] = -100
        truth[1, 0, :2] = 7
        truth[2, 0, :3] = 1
        assert self.shown(draw, np.zeros((4, 4, 4)), truth) == 2

    def test_most_probable_foreground_without_a_truth(self, draw: Any) -> None:
        prob = np.full((3, 4, 4), 0.2)
        prob[1, :2] = 0.8
        assert self.shown(draw, prob, None) == 1


class TestFiles:
    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "p.png"
        path.write_bytes(b"mine")
        with pytest.raises(DataError, match=r"p\.png exists already"):
            plot_predictions([panel([[0.5]])], path)
        assert path.read_bytes() == b"mine"

    def test_folders_are_made(self, tmp_path: Path) -> None:
        plot_predictions([panel([[0.5]])], tmp_path / "a" / "b" / "p.png")
        assert (tmp_path / "a" / "b" / "p.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("name", ["p.unknown", "file/p.png"])
    def test_what_cannot_be_written_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot write the figure"):
            plot_predictions([panel([[0.5]])], tmp_path / name)


def test_colors_are_averaged_and_of_other_channels_the_first_is_shown() -> None:
    image = np.stack([np.full((2, 3), value, np.uint8) for value in (10, 20, 60)])
    np.testing.assert_array_equal(to_gray(image), 30)
    np.testing.assert_array_equal(to_gray(image[:2]), 10)
    np.testing.assert_array_equal(to_gray(image[2:]), 60)


HARD = "$x_1$ 50$ \\frac [b] 細胞 \N{WOMAN}\u200d\N{GIRL} \x1b[31m \u202e \udcff"
"""A name that matplotlib would take for a formula, or has no glyphs for."""


def test_a_name_is_shown_as_it_is(tmp_path: Path, draw: Any, recwarn: pytest.WarningsRecorder) -> None:
    image = np.zeros((4, 4))
    panel = Panel(f"{HARD}\nDice 0.5", image, None, image, image.astype(int))
    plot_predictions([panel], tmp_path / "p.svg")
    shown = (tmp_path / "p.svg").read_text()
    assert "$x_1$ 50$ \\frac [b]" in shown
    assert all(escape in shown for escape in ("\\u7d30", "\\U0001f469", "\\x1b[31m", "\\u202e", "\\udcff"))
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_names_of_ticks_too_and_powers_of_ten_stay(tmp_path: Path) -> None:
    figure = new_figure(tmp_path / "t.svg", (4, 3))
    axis = figure.subplots()
    axis.set_xticks([0, 1], ["a$b$", "c$"])
    axis.set_yscale("log")
    axis.set_ylim(1e-3, 1e4)
    figure.canvas.draw()
    save_figure(figure, tmp_path / "t.svg")
    shown = (tmp_path / "t.svg").read_text()
    assert "a$b$" in shown
    assert "c$" in shown
    assert "mathdefault{10" in shown
