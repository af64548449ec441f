from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ssl_seg.diagnose.examples import make_example
from ssl_seg.errors import DataError
from ssl_seg.report.example_figure import plot_examples
from ssl_seg.report.figures import new_figure, save_figure, to_gray


class TestSlice:
    """Which slice of a volume is shown; the value of the image is the index of the slice."""

    @staticmethod
    def find_shown(truth: np.ndarray | None, pred: np.ndarray) -> int:
        image = np.broadcast_to(np.arange(len(pred))[:, None, None], pred.shape)
        made = make_example("a", "val", np.stack([image, image]), truth, pred.astype(np.float32), pred)
        shown = int(np.flatnonzero([np.array_equal(made.pred, plane) for plane in pred])[0])
        np.testing.assert_array_equal(made.prob, pred[shown])
        assert truth is None or np.array_equal(made.truth, truth[shown])
        return shown

    def test_the_slice_with_most_true_foreground(self) -> None:
        truth, pred = np.zeros((2, 5, 4, 4), int)
        truth[0] = -100
        truth[1, 0, :2] = 7  # voxels count, and not class indices or ignored ones
        truth[3, 1, :3] = 1
        pred[4] = 1  # more was predicted elsewhere
        pred[3, 1, 0] = 1
        assert self.find_shown(truth, pred) == 3

    def test_the_most_predicted_foreground_without_a_truth(self) -> None:
        pred = np.zeros((3, 4, 4), int)
        pred[1, :2] = 1
        assert self.find_shown(None, pred) == 1


class TestFiles:
    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        path = tmp_path / "p.png"
        path.write_bytes(b"mine")
        with pytest.raises(DataError, match=r"p\.png exists already"):
            save_figure(new_figure(path, (2, 2)), path)
        assert path.read_bytes() == b"mine"

    def test_folders_are_made(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "p.png"
        save_figure(new_figure(path, (2, 2)), path)
        assert (tmp_path / "a" / "b" / "p.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("name", ["p.unknown", "file/p.png"])
    def test_what_cannot_be_written_is_named(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(DataError, match="cannot write the figure"):
            save_figure(new_figure(tmp_path / name, (2, 2)), tmp_path / name)


def test_colors_are_averaged_and_of_other_channels_the_first_is_shown() -> None:
    image = np.stack([np.full((2, 3), value, np.uint8) for value in (10, 20, 60)])
    np.testing.assert_array_equal(to_gray(image), 30)
    np.testing.assert_array_equal(to_gray(image[:2]), 10)
    np.testing.assert_array_equal(to_gray(image[2:]), 60)


HARD = "$x_1$ 50$ \\frac [b] 細胞 \N{WOMAN}\u200d\N{GIRL} \x1b[31m \u202e \udcff"
"""A name that matplotlib would take for a formula, or has no glyphs for."""


def test_a_name_is_shown_as_it_is(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    image = np.zeros((4, 4))
    example = make_example("a", "val", image[None], None, image.astype(np.float32), image.astype(int))
    plot_examples([example], tmp_path / "p.svg", [f"{HARD}\nDice 0.5"])
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


def test_no_report_loads_torch_or_matplotlib_before_it_draws() -> None:
    code = (
        "import importlib, pkgutil, sys, ssl_seg.report as room\n"
        "for module in pkgutil.iter_modules(room.__path__):\n"
        "    importlib.import_module(f'{room.__name__}.{module.name}')\n"
        "    assert not {'torch', 'matplotlib'} & set(sys.modules), module.name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
