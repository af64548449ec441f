"""The report of a diagnosis: what it says, that it renders, and what its figures show."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diagnosis_cases import constant_diagnosis, disk, example, healthy_diagnosis, image_figures, masks_diagnosis
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from sizes import around

from ssl_seg.diagnose.gate import apply_gate
from ssl_seg.diagnose.result import Cause, Histogram
from ssl_seg.errors import DataError, printable
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.monitor.catalog import limit
from ssl_seg.report.diagnosis import format_measurements, format_report, write_report
from ssl_seg.report.diagnosis_figures import make_foreground, make_histograms, make_sweep
from ssl_seg.report.diagnosis_page import make_diagnosis_page
from ssl_seg.report.diagnosis_summary import describe_scope, format_findings, format_verdict
from ssl_seg.report.diagnosis_tables import (
    SHOWN_IMAGES,
    SHOWN_SHAPES,
    WORST_IMAGES,
    make_key_figures,
    make_tables,
    make_worst_images,
)
from ssl_seg.report.example_figure import color_errors, list_columns, paint_panel, plot_examples
from ssl_seg.report.figures import plot_panels
from ssl_seg.report.markdown import format_table
from ssl_seg.report.table import Table
from ssl_seg.scores.text import cut, number

ALL = {"constant": constant_diagnosis, "healthy": healthy_diagnosis, "masks": masks_diagnosis}
RENDERER = MarkdownIt("commonmark").enable("table")


def render(text: str) -> list[Any]:
    return RENDERER.parse(text)


def read_cells(text: str) -> list[list[str]]:
    """The rows of all tables, as a renderer shows them."""
    rows: list[list[str]] = []
    for token, following in pairwise(render(text)):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            shown = [child.content for child in following.children or [] if child.type in ("text", "code_inline")]
            rows[-1].append("".join(shown))
    return rows


@pytest.fixture
def draw(tmp_path: Path, drawn: list[Figure]) -> Callable[..., Figure]:
    """Call a function that plots to a file; returns what was drawn."""

    def run(plot: Callable[..., None], *arguments: Any) -> Figure:
        path = tmp_path / f"figure{len(drawn)}.png"
        plot(*arguments, path)
        assert cv2.imread(str(path)) is not None
        return drawn[-1]

    return run


@pytest.fixture
def draw_row(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Call a function that makes a row of panels, and plot them; returns what was drawn."""
    return lambda make, *arguments: draw(plot_panels, make(*arguments))


class TestTable:
    @given(st.lists(st.lists(st.text("a_|*`<5.-+% ", max_size=9), min_size=3, max_size=3), min_size=1, max_size=4))
    def test_shows_every_cell_as_it_is(self, rows: list[list[str]]) -> None:
        stripped = [[cell.strip() for cell in row] for row in rows]
        text = format_table(Table("", "", ("name", "b", "c"), tuple(map(tuple, stripped))))
        assert len({len(line) for line in text.splitlines()}) == 1
        plain = [[re.sub(r"\s+", " ", cell) for cell in row] for row in stripped]
        if not any("`" in cell for row in stripped for cell in row):
            shown = [[re.sub(r"\s+", " ", cell) for cell in row] for row in read_cells(text)]
            assert shown == [["name", "b", "c"], *plain]

    def test_figures_are_on_the_right_and_words_on_the_left(self) -> None:
        rows = (("a", "0.5", "long word"), ("b", "-", "w"), ("c", "+1.25", ""))
        text = format_table(Table("", "", ("name", "score", "word"), rows))
        assert text.splitlines() == [
            "| name | score | word      |",
            "| ---- | ----: | --------- |",
            "| a    |   0.5 | long word |",
            "| b    |     - | w         |",
            "| c    | +1.25 |           |",
        ]


def list_headings(text: str) -> list[str]:
    """Return the headings of the second level."""
    pairs = pairwise(render(text))
    return [following.content for token, following in pairs if (token.type, token.tag) == ("heading_open", "h2")]


class TestReport:
    @pytest.mark.parametrize("name", ALL)
    def test_folder(self, name: str, tmp_path: Path) -> None:
        diagnosis = ALL[name]()
        path = write_report(diagnosis, tmp_path / "new" / "report", "ssl-seg diagnose x")
        text, tables = ((path.parent / name).read_text() for name in ("report.md", "measurements.md"))
        images = [child for token in render(tables) for child in token.children or [] if child.type == "image"]
        assert {str(i.attrs["src"]) for i in images} == {p.name for p in path.parent.glob("*.png")}
        assert len(images) == (2 if diagnosis.kind == "predictions" else 4)
        links = {child.attrs.get("src") or child.attrs.get("href") for t in render(text) for child in t.children or []}
        assert links - {None} == {"predictions.png", "measurements.md", "report.json"}
        assert json.loads((path.parent / "report.json").read_text()) == json.loads(json.dumps(diagnosis.to_record()))
        assert not re.search(r"\bnan\b|\binf\b|None|\{|\[\]", text + tables)
        assert "`ssl-seg diagnose x`" in text
        page = path.read_text()
        assert path.name == "report.html"
        assert page.count("<svg") == {"constant": 4, "healthy": 5, "masks": 1}[name]
        assert page.count('<img src="data:') == sum(len(list_columns(e)) for e in diagnosis.examples)
        assert html.escape(diagnosis.next_command) in page
        with pytest.raises(DataError, match=r"report exists already.*--out .*report-2"):
            write_report(diagnosis, path.parent)

    def test_the_banner_has_the_verdict_the_reason_and_what_to_do(self) -> None:
        banner = make_diagnosis_page(constant_diagnosis()).banner
        assert banner is not None
        assert (banner.state, banner.title) == ("collapsed", "Collapsed: constant output function: do not submit")
        assert banner.reasons[0].startswith("Teacher: the same everywhere")
        assert banner.reasons[1].startswith("Likely cause: ")
        assert banner.commands == ("ssl-seg data audit data/particles",)
        fine = make_diagnosis_page(healthy_diagnosis()).banner
        assert fine is not None
        assert (fine.state, fine.reasons) == ("healthy", ())
        gated = make_diagnosis_page(apply_gate(healthy_diagnosis(), 0.99)).banner
        assert gated is not None
        assert gated.state == "warning"
        assert gated.title.startswith("Warning: F1 is 0.9")

    @pytest.mark.parametrize("name", ["a|b", "`a``b`", "x](http://y)", "\x1b[31m", "*a*_b_", "a\nb", "<b>"])
    def test_names_are_no_markup(self, name: str) -> None:
        diagnosis = replace(healthy_diagnosis(), subject=name, notes=(f"note {name}",))
        text = format_report(diagnosis, (), "now", f"ssl-seg diagnose {name}")
        heading = next(token for token in render(text) if token.type == "inline")
        assert [child.content for child in heading.children if child.type == "code_inline"] == [printable(name)]
        assert "](" not in text.split("## Notes")[1].split("## More")[0]
        heading = next(token for token in render(format_measurements(diagnosis, ())) if token.type == "inline")
        assert [child.content for child in heading.children if child.type == "code_inline"] == [printable(name)]
        assert "\x1b" not in text

    def test_an_empty_folder_is_taken_and_a_file_is_not(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert write_report(healthy_diagnosis(), tmp_path / "empty").exists()
        (tmp_path / "file").write_text("mine")
        with pytest.raises(DataError, match="file exists already"):
            write_report(healthy_diagnosis(), tmp_path / "file")
        with pytest.raises(DataError, match="cannot write"):
            write_report(healthy_diagnosis(), tmp_path / "file" / "below")
        assert (tmp_path / "file").read_text() == "mine"

    def test_says_everything_in_this_order(self) -> None:
        images = tuple(image_figures(n, f1=n / 10) for n in range(8))
        text = format_report(constant_diagnosis(images=images), [], "2026-01-26")
        tables = format_measurements(constant_diagnosis(), [])
        assert list_headings(text) == [
            "Findings", "Likely causes, the most likely first", "What to do", "Key figures", "The worst images",
            "Notes", "More",
        ]  # fmt: skip
        assert list_headings(tables) == [
            "Findings",
            "Outputs", "Quantiles of the outputs", "Predicted foreground by image shape",
            "Do the outputs depend on the image?", "Student, teacher, modes, and an untrained network",
            "Precision, recall, and trivial predictors", "Threshold sweep", "Foreground distribution",
            "Foreground histogram",
            "Loss of trivial predictions", "Composition of the training batches", "Input of the network",
            "History of the run", "Images",
        ]  # fmt: skip
        cells = read_cells(tables)
        assert cells[1][:4] == ["collapsed: constant_output", "teacher", "0.069", "0.1"]
        assert "reported" in cells[1][4]
        assert ["320 x 320", "45", "45 at 95.06%", "(312/320) x (312/320)"] in [row[:4] for row in cells]
        assert "4+4 x 4+4 (inside 100% predicted)" in [row[-1] for row in cells]
        assert ["0.05", "0.495", "best"] in cells
        assert ["60% .. 65%", "5", "5"] in cells
        assert [row[1] for row in cells if row[0] == "constant images"] == ["img|7"]
        assert "+34.8 points" in tables
        assert "no time left for inputs" in text
        assert [token.content for token in render(text) if token.type == "fence"] == [
            "ssl-seg data audit data/particles\n"
        ]
        assert r"**Evidence:** AUROC 0.51; F1 0.494 \* 2" in text
        assert "**collapsed: constant_output** (teacher): the same everywhere" in text
        worst = read_cells(text)[-WORST_IMAGES:]
        assert [row[0] for row in worst] == [f"img_{n:03}" for n in range(WORST_IMAGES)]
        assert f"{WORST_IMAGES} of 8; all are in `report.json`" in text

    def test_a_page_is_a_page_whatever_was_looked_at(self) -> None:
        """With three causes of three measurements each, four findings, and any number of images."""
        base = constant_diagnosis()
        causes = tuple(Cause(f"cause {n}", [f"figure {n}{m}" for m in range(3)], "", "") for n in range(3))
        pages = [
            format_report(
                replace(
                    base, causes=causes, findings=2 * base.findings, images=tuple(map(image_figures, range(count)))
                ),
                (),
                "2026-01-26",
                "ssl-seg diagnose RUN",
            )
            for count in (125, 500)
        ]
        lengths = {len(page.splitlines()) for page in pages}
        assert len(lengths) == 1
        assert max(lengths) <= 70
        healthy = healthy_diagnosis(images=tuple(map(image_figures, range(125))))
        assert len(format_report(healthy, (), "2026-01-26", "ssl-seg diagnose RUN").splitlines()) <= 60

    @pytest.mark.parametrize("count", [WORST_IMAGES - 1, WORST_IMAGES, WORST_IMAGES + 1, 4 * WORST_IMAGES])
    def test_some_of_the_images_are_the_worst(self, count: int) -> None:
        images = tuple(image_figures(n, f1=n / count) for n in range(count))
        worst = make_worst_images(constant_diagnosis(images=images))
        assert [row[0] for row in worst.rows] == [f"img_{n:03}" for n in range(min(count, WORST_IMAGES))]
        assert (f"{WORST_IMAGES} of {count};" in worst.text) == (count > WORST_IMAGES)
        assert "any foreground" not in worst.text
        plain = constant_diagnosis(images=images)
        several = replace(plain, statistics=plain.statistics | {"scores": {"of": "mean of 2 classes"}})
        assert "F1 is of any foreground" in make_worst_images(several).text

    def test_images_without_a_score_are_not_the_worst(self) -> None:
        images = tuple(image_figures(n, f1=None) for n in range(8))
        assert "worst" not in format_report(healthy_diagnosis(images=images), (), "now")
        scored = format_report(healthy_diagnosis(images=(*images, image_figures(9, f1=0.2))), (), "now")
        assert [row[0] for row in read_cells(scored)][-1] == "img_009"

    def test_healthy_has_no_causes(self) -> None:
        text = format_report(healthy_diagnosis(), [], "2026-01-26")
        assert "No rule found anything." in text
        assert "cause" not in text.lower()
        assert "## Findings" not in format_measurements(healthy_diagnosis(), [])

    def test_what_is_not_known_makes_no_column_row_or_table(self) -> None:
        tables = {table.title: table for table in make_tables(masks_diagnosis())}
        assert set(tables) == {
            "Predicted foreground by image shape",
            "Foreground distribution",
            "Foreground histogram",
            "Images",
        }
        assert not {"part", "logit", "true fg", "F1"} & set(tables["Images"].columns)
        assert "true foreground" not in tables["Predicted foreground by image shape"].columns
        bare = masks_diagnosis(statistics={}, images=(image_figures(0),), examples=())
        assert [table.title for table in make_tables(bare)] == ["Images"]
        assert format_report(bare, [], "2026-01-26")
        assert make_key_figures(bare).rows == ()

    def test_images_the_worst_first_and_not_without_end(self) -> None:
        images = tuple(image_figures(n, f1=n / 100) for n in range(99, 0, -1))
        table = make_tables(healthy_diagnosis(images=images))[-1]
        assert [row[0] for row in table.rows] == [f"img_{n:03}" for n in range(1, 1 + SHOWN_IMAGES)]
        assert f"{SHOWN_IMAGES} of 99" in table.text

    @pytest.mark.parametrize("count", around(SHOWN_IMAGES))
    def test_so_many_images_are_listed_and_it_is_said_of_how_many(self, count: int) -> None:
        images = tuple(image_figures(n, f1=n / 200) for n in range(count))
        table = make_tables(healthy_diagnosis(images=images))[-1]
        assert len(table.rows) == min(count, SHOWN_IMAGES)
        assert (f"{SHOWN_IMAGES} of {count}" in table.text) == (count > SHOWN_IMAGES)

    @pytest.mark.parametrize("count", around(SHOWN_SHAPES))
    def test_the_most_frequent_shapes_have_a_row_and_the_others_share_one(self, count: int) -> None:
        row = healthy_diagnosis().statistics["shapes"][0]
        shapes = [
            row
            | {"shape": [n, n], "images": n, "ratio_min": n / 100, "ratio_max": 0.5 + n / 100}
            | {"true_min": None if n % 2 else n / 100, "true_max": None if n % 2 else 0.6}
            for n in range(1, count + 1)
        ]
        diagnosis = healthy_diagnosis(statistics={"shapes": shapes})
        rows = [r for r in make_key_figures(diagnosis).rows if r[0].startswith("predicted foreground, ")]
        named = range(count, max(count - SHOWN_SHAPES, 0), -1)
        assert [r[0] for r in rows[:SHOWN_SHAPES]] == [f"predicted foreground, {n} x {n}" for n in named]
        left = count - SHOWN_SHAPES
        expected = [] if left < 1 else [(f"predicted foreground, {left} other shapes", f"1.00% .. {50 + left}.00%")]
        assert [r[:2] for r in rows[SHOWN_SHAPES:]] == expected
        if left > 1:
            assert rows[-1][2] == "true: 2.00% .. 60.00%"


class TestTerminal:
    def test_verdict_line(self) -> None:
        line = format_verdict(constant_diagnosis())
        assert line == "verdict: collapsed constant_output: constant output function: do not submit"

    def test_findings_and_causes(self) -> None:
        second = Cause("dead activations", ("AUROC 0.51", "sd 0.07"), "", "")
        diagnosis = constant_diagnosis()
        lines = format_findings(replace(diagnosis, causes=(*diagnosis.causes, second)))
        assert lines[0].startswith("  COLLAPSED constant_output (teacher): the same everywhere")
        assert lines[0].endswith("[0.069, limit 0.1]")
        assert lines[1] == "    also: not_above_trivial (teacher)"
        assert lines[2:] == [
            "likely causes, the most likely first:",
            "  1. masks do not belong to their images",
            "     - AUROC 0.51",
            "     - F1 0.494 * 2",
            "  2. dead activations",
            "     - sd 0.07",
            "     - as for cause 1",
            "do: audit the data",
        ]

    def test_scope(self) -> None:
        assert describe_scope(constant_diagnosis()) == (
            "teacher of step 480; 2 of 2 labeled training, 5 of 5 validation, 3 of 40 other images; 61.2 of 120 s; "
            "no time left for inputs"
        )
        assert describe_scope(masks_diagnosis()) == "50 of 50 images; read as masks of 0 and 255"

    def test_key_figures(self) -> None:
        rows = {name: (value, beside) for name, value, beside in make_key_figures(constant_diagnosis()).rows}
        assert rows["probability, mean +- sd"][0] == "0.627 +- 0.069"
        assert rows["predicted foreground, 320 x 320"] == ("95.06% in 45 of 45", "true: 10.00% .. 80.00%")
        assert rows["F1 at 0.5 (5 images)"] == ("0.494", "all-positive: 0.493; at 0.05: 0.495")
        assert rows["foreground of an image, mean +- sd"][1] == "true: 60.9% +- 18.0% (+34.8 points)"
        assert rows["foreground of a training batch"] == ("15.0% (10.0% .. 20.0%)", "expected: 12.0% to 55.0%")
        assert make_key_figures(masks_diagnosis()).rows[0][1:] == ("95.06% in 45 of 45", "= (312/320) x (312/320)")
        brief = make_key_figures(healthy_diagnosis(), brief=True).rows
        assert len(brief) == 5
        assert not any("foreground, 256" in name for name, *_ in brief)

    def test_different_shares_are_a_range(self) -> None:
        rows = {name: value for name, value, _ in make_key_figures(healthy_diagnosis()).rows}
        assert rows["predicted foreground, 256 x 256"] == "10.00% .. 70.00%"


class TestExamples:
    def test_columns_that_are_known(self, draw: Any) -> None:
        assert titles(draw(plot_examples, [example(), example(truth=None, f1=None)])) == [
            "input", "truth", "foreground probability", "prediction and errors",
        ]  # fmt: skip
        assert titles(draw(plot_examples, [example(image=None, prob=None)])) == ["truth", "prediction and errors"]

    def test_masks_alone_lie_side_by_side(self, draw: Any) -> None:
        figure = draw(plot_examples, masks_diagnosis().examples)
        assert titles(figure) == ["320_0", "320_1", "320_2", "320_3"]
        assert len({round(axis.get_position().y0, 6) for axis in figure.axes}) == 1

    def test_what_is_not_known_is_said(self, draw: Any) -> None:
        blind = {"truth": None, "f1": None}
        figure = draw(plot_examples, [example(), example("b", part="new", **blind), example("c", part="test", **blind)])
        assert [figure.axes[n].texts[0].get_text() for n in (5, 9)] == ["not known", "sealed"]
        assert [figure.axes[n].get_ylabel() for n in (0, 4, 8)] == ["case_0\nval, F1 0.812", "b", "c\ntest"]

    def test_probability_spans_0_to_1_and_ignored_is_gray(self, draw: Any) -> None:
        figure = draw(plot_examples, [example(prob=np.full((48, 64), 0.6, np.float32))])
        assert figure.axes[2].images[0].get_clim() == (0, 1)
        truth = np.asarray(figure.axes[1].images[0].get_array())
        np.testing.assert_array_equal(truth[:, -6:], 0.5)
        np.testing.assert_array_equal(truth[:, :-6], disk((48, 64), 12)[:, :-6])

    def test_long_names_fit_the_panel(self, draw: Any) -> None:
        figure = draw(plot_examples, [example("x" * 60 + str(n), (48, 112)) for n in range(4)])
        renderer = figure.canvas.get_renderer()
        boxes = [axis.yaxis.label.get_window_extent(renderer) for axis in figure.axes[:16:4]]
        assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))

    @pytest.mark.parametrize("color", [False, True])
    def test_errors_have_their_colors(self, color: bool) -> None:
        image = np.full((48, 64, 3) if color else (48, 64), 0.5, np.float32)
        shown = color_errors(example(image=image, pred=np.roll(disk((48, 64), 12), 6, axis=1)))
        truth, pred = disk((48, 64), 12), np.roll(disk((48, 64), 12), 6, axis=1)
        for region, channel in ((truth & pred, 1), (truth & ~pred, 2), (~truth & pred, 0)):
            assert region.any()
            np.testing.assert_allclose(shown[region][:, channel], 0.7)
            np.testing.assert_allclose(np.delete(shown[region], channel, axis=1), 0.3)
        np.testing.assert_allclose(shown[~truth & ~pred], 0.3)

    def test_what_is_ignored_is_no_error(self) -> None:
        ignored = np.full((48, 64), IGNORE_INDEX)
        np.testing.assert_array_equal(color_errors(example(image=None, truth=ignored)), 0)

    def test_foreground_of_another_class_is_yellow(self) -> None:
        truth, pred = np.array([[1, 1, 2, 2, 0, 0]]), np.array([[1, 2, 2, 0, 2, 0]])
        colors = {"found": [0, 0.8, 0], "wrong": [0.8, 0.8, 0], "missed": [0, 0, 0.8], "false": [0.8, 0, 0]}
        expected = [[*(colors[key] for key in ("found", "wrong", "found", "missed", "false")), [0, 0, 0]]]
        np.testing.assert_allclose(color_errors(example(image=None, truth=truth, pred=pred)), expected)

    @pytest.mark.parametrize("size", [64, 256, 257, 768])
    def test_an_object_missed_as_a_whole_can_be_seen_however_thin(self, size: int) -> None:
        """A pixel on each side, of a panel of 256; what is missed beside what is found keeps its width."""
        truth, pred = np.zeros((size, size), np.int64), np.zeros((size, size), bool)
        truth[20] = 1
        truth[40:60] = 1
        pred[40:59] = True
        blue = color_errors(example(image=None, truth=truth, pred=pred, prob=None))[..., 2].any(axis=1)
        scale = -(-size // 256)
        assert blue[:39].nonzero()[0].tolist() == list(range(20 - scale, 21 + scale))
        assert blue[50:].sum() == (1 if scale == 1 else 1 + 2 * (scale // 2))

    @pytest.mark.parametrize(("stride", "is_wider"), [(8, False), (16, True)])
    def test_false_speckle_does_not_cover_the_picture(self, stride: int, is_wider: bool) -> None:
        """A wider dot has 8 pixels more: 3 % of the picture with a dot in 256 pixels, 12 % with a dot in 64."""
        pred = np.zeros((128, 128), bool)
        pred[::stride, ::stride] = True
        red = color_errors(example(image=None, truth=np.zeros((128, 128), np.int64), pred=pred, prob=None))[..., 0] > 0
        assert (red.sum() > pred.sum()) == is_wider

    def test_classes_have_their_colors_in_truth_and_prediction(self, draw: Any) -> None:
        truth, pred = np.array([[0, 1, 2, 3, IGNORE_INDEX]]), np.array([[1, 2, 3, 0, 0]])
        three = example(image=None, truth=truth, pred=pred, prob=None)
        assert list_columns(three) == ["truth", "predicted classes", "prediction and errors"]
        assert list_columns(example(image=None, prob=None)) == ["truth", "prediction and errors"]
        shown, predicted = (paint_panel(three, name)[0] for name in ("truth", "predicted classes"))
        assert len({tuple(color) for color in shown}) == 5
        np.testing.assert_array_equal(predicted[:4], shown[[1, 2, 3, 0]])
        np.testing.assert_array_equal([shown[0], shown[4]], [[0] * 3, [0.5] * 3])
        assert titles(draw(plot_examples, [three, example(prob=None)])) == [
            "input", "truth", "predicted classes", "prediction and errors",
        ]  # fmt: skip

    def test_predictions_without_truth(self) -> None:
        pred = disk((48, 64), 12)
        alone = color_errors(example(image=None, truth=None, pred=pred))
        np.testing.assert_array_equal(alone, np.repeat(pred[..., None], 3, axis=-1))
        over = color_errors(example(image=np.zeros((48, 64), np.float32), truth=None, pred=pred))
        np.testing.assert_allclose(over, pred[..., None] * np.array([0.4, 0.4, 0.0]))


class TestText:
    @given(st.floats(0, 1))
    def test_a_threshold_is_never_taken_for_another(self, value: float) -> None:
        shown = float(cut(value))
        assert abs(shown - value) <= max(0.03 * min(value, 1 - value), 5e-7)
        assert (shown in (0.0, 1.0)) <= (min(value, 1 - value) < 5e-7)

    @pytest.mark.parametrize(
        ("value", "text"),
        [(0.5, "0.50"), (0.998, "0.998"), (0.9995, "0.9995"), (0.05, "0.05"), (0.001, "0.001"), (1.0, "1.00"),
         (None, "-"), (float("nan"), "-")],
    )  # fmt: skip
    def test_thresholds(self, value: float | None, text: str) -> None:
        assert cut(value) == text

    @pytest.mark.parametrize(
        ("value", "text"),
        [(1.23e13, "1.23e+13"), (-4e6, "-4.00e+06"), (99999.0, "99999.00"), (-0.125, "-0.12"), (float("inf"), "-")],
    )
    def test_huge_figures_are_powers_of_ten(self, value: float, text: str) -> None:
        assert number(value, 2) == text


class TestOtherFigures:
    def test_histograms_are_shares_of_their_own_voxels(self, draw_row: Any) -> None:
        given = healthy_diagnosis().histograms
        figure = draw_row(make_histograms, given)
        assert len(figure.axes) == 2
        for axis, histogram in zip(figure.axes, given, strict=True):
            drawn = [patch.get_data().values for patch in axis.patches]
            expected = [np.array(c) / sum(c) for c in (histogram.counts, histogram.foreground, histogram.background)]
            np.testing.assert_allclose(drawn, expected)
        unknown = replace(given[0], foreground=(0,) * 40, background=(0,) * 40)
        assert len(draw_row(make_histograms, [unknown]).axes[0].patches) == 1

    def test_the_field_of_a_constant_output_is_as_wide_as_that_of_any(self, draw_row: Any) -> None:
        prob, _ = healthy_diagnosis().histograms
        one_bin = Histogram("logit", (0.5, 0.5625), (4096,), (0,), (0,))
        wide = Histogram("logit", (-9.0, 0.0, 12.0), (1, 1), (0, 0), (0, 0))
        limits = [axis.get_xlim() for axis in draw_row(make_histograms, [prob, one_bin, wide]).axes]
        assert limits == [(0, 1), (-6, 6), (-9, 12)]

    def test_scatter_of_predicted_and_true_shares(self, draw_row: Any) -> None:
        images = [image_figures(n, shape=(256, 256 + 8 * (n % 2))) for n in range(9)]
        figure = draw_row(make_foreground, images)
        axis, bars = figure.axes
        points = np.concatenate([c.get_offsets() for c in axis.collections])
        expected = np.array([[i.ratio_true, i.ratio_pred] for i in images])
        assert sorted(map(tuple, points)) == sorted(map(tuple, expected))
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[0, 0], [1, 1]])
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert sorted(labels) == [
            "256 x 256 (5)", "256 x 264 (4)", "predicted = true", "predicted shares", "true shares",
        ]  # fmt: skip
        drawn = {patch.get_label(): patch.get_data().values for patch in bars.patches}
        for label, shares in (("true shares", expected[:, 0]), ("predicted shares", expected[:, 1])):
            np.testing.assert_array_equal(drawn[label], np.histogram(shares, 20, (0, 1))[0])

    def test_shares_in_order_where_no_truth_is_known(self, draw_row: Any) -> None:
        figure = draw_row(make_foreground, masks_diagnosis().images)
        (axis,) = figure.axes
        large, small = (np.asarray(c.get_offsets()) for c in axis.collections)
        np.testing.assert_allclose(large, [[n, 0.950625] for n in range(1, 46)])
        np.testing.assert_allclose(small, [[n, 0.71191] for n in range(46, 51)])
        mixed = [image_figures(n, ratio_true=None if n % 2 else 0.5) for n in range(6)]
        scatter, _, levels = draw_row(make_foreground, mixed).axes
        assert len(scatter.collections[0].get_offsets()) == 3
        heights = np.asarray(levels.collections[0].get_offsets())[:, 1].tolist()
        assert heights == sorted(i.ratio_pred for i in mixed)

    def test_many_shapes_share_a_mark(self, draw_row: Any) -> None:
        images = [image_figures(n, shape=(100, 100 + n % 9)) for n in range(60)]
        figure = draw_row(make_foreground, images)
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(labels) == 7 + 2
        assert "4 other shapes (25)" in labels
        assert sum(len(c.get_offsets()) for c in figure.axes[0].collections) == 60

    def test_one_image(self, draw_row: Any) -> None:
        assert len(draw_row(make_foreground, [image_figures(0)]).axes) == 1

    def test_axes_end_with_the_largest_share_and_begin_at_0(self, draw_row: Any) -> None:
        images = [image_figures(n, ratio_true=0.002 * n, ratio_pred=0.001 * n) for n in range(5)]
        scatter, bars = draw_row(make_foreground, images).axes
        end = 0.008 * 1.05
        assert [scatter.get_xlim(), scatter.get_ylim(), bars.get_xlim()] == [pytest.approx((0, end))] * 3
        assert sum(bars.patches[0].get_data().values > 0) == 5  # and not one bar
        empty = draw_row(make_foreground, [image_figures(0, ratio_true=0.0, ratio_pred=0.0)]).axes[0]
        assert empty.get_ylim() == (0, 1)

    @pytest.mark.parametrize("best", [0.42, 0.469, 0.471])
    def test_a_best_threshold_is_marked_where_it_is_better_than_trivial(self, draw_row: Any, best: float) -> None:
        sweep = {"thresholds": [0.5], "f1": [best], "best_threshold": 0.5, "best_f1": best}
        figure = draw_row(make_sweep, sweep, {"best": 0.42})
        stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(stars) == (best > 0.42 + limit("trivial_margin"))
        assert ("no threshold is better" in " ".join(labels)) == (not stars)

    def test_sweep(self, draw_row: Any) -> None:
        sweep = {"thresholds": [0.25, 0.5, 0.75], "f1": [0.4, 0.5, 0.7], "best_threshold": 0.75, "best_f1": 0.7,
                 "f1_at_half": 0.5, "threshold": 0.5, "f1_at_threshold": 0.5}  # fmt: skip
        axis = draw_row(make_sweep, sweep, {"best": 0.42}).axes[0]
        curve, half, best, trivial = axis.lines
        assert best.get_label() == "best, at 0.75: 0.700"
        near_one = draw_row(make_sweep, sweep | {"best_threshold": 0.998}, {}).axes[0]
        assert near_one.lines[2].get_label() == "best, at 0.998: 0.700"
        np.testing.assert_array_equal(curve.get_xydata(), [[0.25, 0.4], [0.5, 0.5], [0.75, 0.7]])
        np.testing.assert_array_equal([half.get_xydata()[0], best.get_xydata()[0]], [[0.5, 0.5], [0.75, 0.7]])
        assert set(trivial.get_ydata()) == {0.42}
        bare = draw_row(make_sweep, sweep | {"best_f1": None, "best_threshold": None, "f1_at_threshold": None}, {})
        assert len(bare.axes[0].lines) == 1


def titles(figure: Figure) -> list[str]:
    return [title for axis in figure.axes if (title := axis.get_title())]
