"""The picture shows what it should: cases, outlines, frames, charts; and the command around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sizes import around
from typer.testing import CliRunner

from ssl_seg.cli.data_audit import data_audit
from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import CatalogSettings
from ssl_seg.data.synthetic import generate, write_dataset
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.labels import Meaning
from ssl_seg.report.audit_figure import COLUMNS, MOST_NAMED, Chart, Sample, choose_cases, plot_audit
from ssl_seg.report.audit_samples import make_charts, read_sample
from ssl_seg.report.figures import find_limits

RED = (220 / 255, 20 / 255, 60 / 255, 1.0)


@pytest.fixture
def draw(tmp_path: Path, drawn: list[Figure]) -> Callable[..., Figure]:
    """Plot to a file; returns what was drawn."""

    def run(samples: list[Sample], charts: list[Chart] | None = None, **options: Any) -> Figure:
        path = tmp_path / f"figure{len(drawn)}.png"
        plot_audit(samples, charts or [], path, **options)
        assert cv2.imread(str(path)) is not None
        return drawn[-1]

    return run


def square(low: int, high: int, size: int = 20, index: int = 1) -> NDArray[np.int64]:
    target = np.zeros((size, size), np.int64)
    target[low:high, low:high] = index
    return target


def gray(size: int = 20) -> NDArray[np.float64]:
    return np.arange(size * size, dtype=float).reshape(size, size)


def outlines(axis: Any) -> list[QuadContourSet]:
    return [c for c in axis.collections if isinstance(c, QuadContourSet)]


def test_a_mask_is_outlined_where_it_ends(draw: Callable[..., Figure]) -> None:
    axis = draw([Sample("a", gray(), square(5, 12))]).axes[0]
    (outline,) = outlines(axis)
    vertices = np.concatenate([p.vertices for p in outline.get_paths()])
    assert vertices.min(axis=0) == pytest.approx([4.5, 4.5])
    assert vertices.max(axis=0) == pytest.approx([11.5, 11.5])
    assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, 19.5), (19.5, -0.5))


def test_a_mask_at_the_border_is_closed(draw: Callable[..., Figure]) -> None:
    (outline,) = outlines(draw([Sample("full", gray(), square(0, 20))]).axes[0])
    vertices = np.concatenate([p.vertices for p in outline.get_paths()])
    assert vertices.min() == pytest.approx(-0.5)
    assert vertices.max() == pytest.approx(19.5)


def test_each_class_has_a_color_and_a_name(draw: Callable[..., Figure]) -> None:
    target = square(1, 5) + square(8, 12, index=2) + square(15, 18, index=3) - square(6, 8)
    figure = draw([Sample("a", gray(), target), Sample("b", gray(), square(3, 4, index=2))], class_names=["one", "two"])
    first, second = (outlines(axis) for axis in figure.axes[:2])
    colors = [tuple(np.ravel(o.get_edgecolor())) for o in first]
    assert len(set(colors)) == 3
    assert [tuple(np.ravel(o.get_edgecolor())) for o in second] == colors[1:2]
    (legend,) = (legend for part in figure.subfigs for legend in part.legends)
    assert [t.get_text() for t in legend.get_texts()] == ["one", "two", "other"]


@pytest.mark.parametrize("classes", [*around(MOST_NAMED), 255])
def test_a_legend_names_some_classes_and_counts_the_others(draw: Callable[..., Figure], classes: int) -> None:
    figure = draw([Sample("a", gray(), square(3, 4, index=classes))], class_names=[f"c{n}" for n in range(classes)])
    (legend,) = (legend for part in figure.subfigs for legend in part.legends)
    texts = [t.get_text() for t in legend.get_texts()]
    assert len(texts) == min(classes, MOST_NAMED)
    assert texts[-1] == (f"c{classes - 1}" if classes <= MOST_NAMED else f"and {classes - MOST_NAMED + 1} more")
    assert figure.axes[0].get_position().height > 0.5  # the images are not pushed aside


def test_one_class_needs_no_legend(draw: Callable[..., Figure]) -> None:
    figure = draw([Sample("a", gray(), square(3, 4))], class_names=["one"])
    assert [part.legends for part in figure.subfigs] == [[]]


def test_empty_missing_and_ignored_masks_have_no_outline(draw: Callable[..., Figure]) -> None:
    samples = [Sample("empty", gray(), square(0, 0)), Sample("none", gray()), Sample("ignored", gray(), -square(3, 9))]
    assert [outlines(axis) for axis in draw(samples).axes[:3]] == [[], [], []]


def test_faulty_cases_have_a_red_frame_and_title(draw: Callable[..., Figure]) -> None:
    axes = draw([Sample("bad", gray(), faulty=True), Sample("good", gray()), Sample("gone", None, faulty=True)]).axes
    assert [axis.spines["left"].get_edgecolor() == RED for axis in axes[:3]] == [True, False, True]
    assert [axis.title.get_color() == "crimson" for axis in axes[:3]] == [True, False, True]
    assert [t.get_text() for t in axes[2].texts] == ["cannot be read"]
    assert not axes[2].images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
def test_gray_values_are_stretched_without_outliers(draw: Callable[..., Figure], dtype: type) -> None:
    image = (np.arange(10_000).reshape(100, 100) // 100 + 20).astype(dtype)
    image[0, 0] = 127  # a hot pixel
    shown = np.asarray(draw([Sample("a", image)]).axes[0].images[0].get_array())
    assert (shown.min(), shown.max()) == (0, 1)
    assert shown[50, 0] == pytest.approx(0.5, abs=0.02)


def test_constant_and_color_images(draw: Callable[..., Figure]) -> None:
    color = np.zeros((8, 8, 3), np.uint8)
    color[:4, :, 0] = 200
    axes = draw([Sample("flat", np.full((8, 8), 7)), Sample("color", color)]).axes
    assert (np.asarray(axes[0].images[0].get_array()) == 0).all()
    shown = np.asarray(axes[1].images[0].get_array())
    assert shown.shape == (8, 8, 3)
    assert (shown[0, 0], shown[7, 7]) == (pytest.approx([1, 0, 0]), pytest.approx([0, 0, 0]))


def test_charts(draw: Callable[..., Figure]) -> None:
    charts = [
        Chart("spread", [0.1, 0.2, 0.2, 0.9]),
        Chart("same", [3.0, 3.0]),
        Chart("bars", {"0": 0.7, "255": 0.3}, "share"),
    ]
    axes = draw([], charts).axes
    assert [axis.get_title() for axis in axes] == ["spread", "same", "bars"]
    assert [sum(p.get_height() for p in axis.patches) for axis in axes] == pytest.approx([4, 2, 1])
    assert len(axes[1].patches) == 1
    assert [t.get_text() for t in axes[2].get_xticklabels()] == ["0", "255"]
    assert axes[2].get_ylabel() == "share"


def test_far_values_are_counted_and_do_not_squash_the_others(draw: Callable[..., Figure]) -> None:
    values = [float(n) for n in range(100, 140)]
    far, near = draw([], [Chart("far", [*values, 60_000.0]), Chart("near", [*values, 170.0])]).axes
    assert sum(p.get_height() for p in far.patches) == 40
    assert sum(p.get_height() > 0 for p in far.patches) > 3
    assert far.get_xlabel() == "1 beyond the axis, 100 to 6e+04"
    assert sum(p.get_height() for p in near.patches) == 41
    assert near.get_xlabel() == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_limits_hold_the_middle_half_and_count_what_is_beyond(values: list[float]) -> None:
    low, high, beyond = find_limits(values)
    assert min(values) <= low <= high <= max(values)
    assert sum(low <= value <= high for value in values) == len(values) - beyond
    assert beyond <= len(values) / 2


def test_shares_stand_above_their_bars(draw: Callable[..., Figure]) -> None:
    """A share of 0.1 % has no height that could be seen."""
    axis = draw([], [Chart("mask values", {"0": 0.999, "255": 0.001}, "share of all voxels")]).axes[0]
    assert [text.get_text() for text in axis.texts] == [" 99.9 %", " 0.1 %"]


def test_the_sheet_grows_by_rows(draw: Callable[..., Figure]) -> None:
    samples = [Sample(str(n), gray()) for n in range(COLUMNS + 1)]
    figure = draw(samples, [Chart("c", [1.0, 2.0])])
    assert len(figure.axes) == 2 * COLUMNS + 1
    assert [axis.get_title() for axis in figure.axes[: COLUMNS + 1]] == [s.title for s in samples]
    assert not figure.axes[COLUMNS + 1].axison


def test_chosen_cases_are_spread_over_the_foreground() -> None:
    foreground: dict[str, float | None] = {f"{n:03d}": n / 100 for n in range(100)}
    first, others = choose_cases(foreground, [], 5)
    assert (first, others) == ([], ["000", "025", "050", "074", "099"])
    first, others = choose_cases(foreground | {"none": None}, ["099", "bad", "099"], 5)
    assert first == ["099", "bad"]
    assert others == ["000", "049", "098"]


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=4), st.one_of(st.none(), st.floats(0, 1)), max_size=40),
    st.lists(st.text("abcd", min_size=1, max_size=4), max_size=30),
    st.integers(1, 24),
)
def test_as_many_cases_as_there_are_each_once(
    foreground: dict[str, float | None], faulty: list[str], count: int
) -> None:
    first, others = choose_cases(foreground, faulty, count)
    assert len(first) == min(len(set(faulty)), count // 2)
    assert not set(first) & set(others)
    assert len(set(others)) == len(others) == min(count - len(first), len(set(foreground) - set(first)))
    assert set(others) <= set(foreground)
    labeled = {i: f for i, f in foreground.items() if f is not None and i not in first}
    shown = [i for i in others if i in labeled]
    if len(shown) > 1:
        assert foreground[shown[0]] == min(labeled.values())
        assert foreground[shown[-1]] == max(labeled.values())


def write(path: Path, array: NDArray[Any]) -> None:
    path.write_bytes(cv2.imencode(".png", array)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "set", "particles", 8, labeled=6)
    return tmp_path / "set"


def test_what_is_read_of_an_image(folder: Path) -> None:
    result = audit(str(folder))
    by_id = {c.id: c for c in result.listing.cases}
    labeled = next(i for i, f in result.facts.items() if f.foreground)
    image, mask = generate("particles", int(labeled))
    sample = read_sample(by_id[labeled], result, faulty=True)
    assert sample.image is not None
    assert sample.target is not None
    assert (sample.image == image).all()
    assert (sample.target == mask).all()
    assert sample.faulty
    assert sample.title == f"{labeled}\n{mask.mean():.2%} foreground"
    unlabeled = next(c for c in by_id.values() if c.mask is None)
    sample = read_sample(unlabeled, result, faulty=False)
    assert (sample.target, sample.title) == (None, f"{unlabeled.id}\nno mask")


def test_what_is_read_of_a_volume(sheets_dir: Path) -> None:
    result = audit(str(sheets_dir))
    image, mask = generate("sheets", 3)
    z = int(mask.sum(axis=(1, 2)).argmax())
    sample = read_sample(result.listing.cases[3], result, faulty=False)
    assert sample.image is not None
    assert (sample.image == image[z]).all()
    assert (sample.target == mask[z]).all()
    assert sample.title.endswith(f"z {z} of 32")


def test_values_without_a_class_and_ignored_ones(folder: Path) -> None:
    result = audit(str(folder))
    case = next(c for c in result.listing.cases if c.mask is not None)
    mask = np.zeros((128, 128), np.uint8)
    mask[0], mask[1], mask[2], mask[3] = 1, 9, 255, 7
    write(Path(str(case.mask)), mask)
    result = audit(
        str(folder), CatalogSettings(meaning=Meaning(label_values=(0, 1), label_map={7: 1}, ignore_value=255))
    )
    sample = read_sample(case, result, faulty=False)
    assert sample.target is not None
    assert sample.target[:5, 0].tolist() == [1, 2, -1, 1, 0]


def test_files_that_cannot_be_read_are_shown_as_such(folder: Path) -> None:
    labeled = [c for c in audit(str(folder)).listing.cases if c.mask is not None]
    Path(labeled[0].image).write_bytes(b"")
    write(Path(str(labeled[1].mask)), np.zeros((9, 9), np.uint8))
    result = audit(str(folder))
    damaged = read_sample(labeled[0], result, faulty=True)
    assert (damaged.image, damaged.title.splitlines()[1]) == (None, "image not usable")
    other = read_sample(labeled[1], result, faulty=True)
    assert other.image is not None
    assert (other.target, other.title.splitlines()[1]) == (None, "mask not usable")


def test_large_images_are_thinned_out(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    write(tmp_path / "images" / "a.png", np.random.default_rng(0).integers(0, 255, (1100, 40), np.uint8))
    write(tmp_path / "masks" / "a.png", np.ones((1100, 40), np.uint8))
    result = audit(str(tmp_path))
    sample = read_sample(result.listing.cases[0], result, faulty=False)
    assert sample.image is not None
    assert sample.target is not None
    assert sample.image.shape == sample.target.shape == (367, 14)


def test_charts_of_an_audit(folder: Path) -> None:
    charts = {c.title: c.values for c in make_charts(audit(str(folder)))}
    assert charts["image size"] == {"128 x 128": 8}
    assert len(charts["share of foreground"]) == 6
    assert len(charts["mean intensity"]) == 8
    assert list(charts["mask values"]) == ["0", "1"]
    for n in range(8):
        write(folder / "images" / f"wide{n}.png", np.full((50, 60 + n), n, np.uint8))
    charts = {c.title: c.values for c in make_charts(audit(str(folder)))}
    assert sorted(charts["image size (million voxels)"])[0] == pytest.approx(0.003)


@pytest.fixture
def run() -> Callable[..., Any]:
    app = typer.Typer()
    app.command()(data_audit)
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_prints_summary_and_findings(run: Callable[..., Any], folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0, result.output
    assert "8 (6 labeled, 2 without a mask)" in result.output
    assert "info: unlabeled: 2 of 8 images have NO mask file" in result.output
    assert result.output.lower().count("no mask file") == 1
    assert result.output.endswith("0 faults, 0 warnings, 1 info\n")


def test_a_fault_gives_exit_code_2_and_the_findings_as_json(run: Callable[..., Any], folder: Path) -> None:
    damaged = next((folder / "images").iterdir())
    damaged.write_bytes(b"")
    result = run(folder, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["findings"][0]["level"] == "fault"
    assert report["findings"][0]["cases"] == [damaged.stem]
    assert report["summary"]["counts"]["readable"] == 7


def test_the_command_draws_the_picture_and_overwrites_nothing(
    run: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    figure = tmp_path / "audit.png"
    assert f"wrote {figure}" in run(folder, "--figure", figure).output
    picture = cv2.imread(str(figure))
    assert picture is not None
    again = run(folder, "--figure", figure)
    assert isinstance(again.exception, DataError)
    assert "exists already" in str(again.exception)
    assert (cv2.imread(str(figure)) == picture).all()


def test_several_classes_are_a_table(run: Callable[..., Any], folder: Path) -> None:
    for path in sorted((folder / "masks").iterdir())[:3]:
        mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        mask[:10] = 2
        write(path, mask)
    lines = run(folder).output.splitlines()
    start = next(n for n, line in enumerate(lines) if "share of each class" in line)
    assert lines[start + 1].split() == ["class", "value", "cases", "mean", "sd", "min", "max"]
    assert [line.split()[:3] for line in lines[start + 2 : start + 5]] == [
        ["0", "0", "6"],
        ["1", "1", "6"],
        ["2", "2", "3"],
    ]


def test_settings_reach_the_audit(run: Callable[..., Any], folder: Path) -> None:
    path = next((folder / "masks").iterdir())
    write(path, cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) * 7)
    assert "unexpected_values" in run(folder).output
    assert run(folder, "--set", "data.label_map={7: 1}").exit_code == 0
    assert run(folder, "--set", "data.label_values=[0, 1, 7]").exit_code == 0
    assert run(folder, "--set", "data.ignore_value=7").exit_code == 0
    groups = folder / "mine.csv"
    groups.write_text(
        "name,group\n" + "".join(f"{p.name},g{n % 2}\n" for n, p in enumerate((folder / "images").iterdir()))
    )
    assert "8 (6 labeled, 2 without a mask, 2 groups)" in run(folder, "--groups", groups).output


@pytest.mark.parametrize("setting", ["optim.lr=1e-3", "data.patch_size=[8, 8]", "data.label_map={a: 1}"])
def test_settings_that_an_audit_does_not_take(run: Callable[..., Any], folder: Path, setting: str) -> None:
    error = run(folder, "--set", setting).exception
    assert isinstance(error, ConfigError)
    assert setting.partition("=")[0] in str(error)
