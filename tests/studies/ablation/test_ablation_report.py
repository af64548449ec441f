from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_cells import CASES, make_arm, make_cell, make_grid
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ssl_seg.report.ablation_figures import (
    _style,
    plot_ablation,
    plot_case_slopes,
    plot_labels_equivalent,
    plot_scores,
)
from ssl_seg.report.ablation_tables import (
    CELL_COLUMNS,
    escape_latex,
    format_cells_csv,
    format_labels,
    format_latex,
    format_markdown,
    format_p,
    make_arm_table,
)
from ssl_seg.scores.text import UNKNOWN
from ssl_seg.studies.ablation.cells import CellResult
from ssl_seg.studies.ablation.summary import AblationSummary, summarize


def make_results() -> list[CellResult]:
    """Return a grid with a collapsed, a failed and a missing cell."""
    cells = make_grid({"supervised": 0.0, "mean_teacher": 0.1})
    cells[0] = replace(cells[0], status="failed", counts=None, message='no, "really"\nfailed')
    cells[1] = replace(cells[1], status="missing", counts=None)
    cells[9] = replace(cells[9], status="collapsed", codes=("all_positive", "constant_output"), seconds=12.34)
    return cells


@pytest.fixture(scope="module")
def summary() -> AblationSummary:
    return summarize(make_results(), "f1", "supervised")


def row_of(summary: AblationSummary, method: str, labels: str) -> dict[str, str]:
    table = make_arm_table(summary)
    (row,) = [dict(zip(table.columns, r, strict=True)) for r in table.rows if r[0] == method and labels in r]
    return row


class TestCsv:
    def test_one_line_a_cell_whatever_became_of_it(self) -> None:
        cells = make_results()
        rows = list(csv.DictReader(io.StringIO(format_cells_csv(cells))))
        assert [r["id"] for r in rows] == [c.id for c in cells]
        assert [r["status"] for r in rows] == [c.status for c in cells]
        assert tuple(rows[0]) == CELL_COLUMNS
        assert (rows[0]["message"], rows[0]["f1"], rows[0]["cases"]) == ('no, "really"\nfailed', "", "")
        assert (rows[9]["codes"], rows[9]["seconds"]) == ("all_positive constant_output", "12.3")

    def test_both_metrics_and_their_trivial_scores(self) -> None:
        dice = np.linspace(0.1, 0.9, 20)
        (row,) = csv.DictReader(io.StringIO(format_cells_csv([make_cell(make_arm(labels=0.1), dice)])))
        assert float(row["dice"]) == pytest.approx(0.5, abs=1e-5)
        assert float(row["f1"]) == pytest.approx(0.5, abs=1e-5)  # the cases are of one size
        assert (float(row["f1_all_positive"]), float(row["f1_predict_nothing"])) == (pytest.approx(0.4), 0.0)
        assert (row["labels"], row["labeled"], row["split_seed"], row["step"]) == ("0.1", "36", "0", "60")


def make_classes(cases: int) -> list[CellResult]:
    """Return cells of classes 4, 7 and 9, of which the last is nowhere; a quarter of the masks is empty."""
    rng = np.random.default_rng(0)
    truth = np.stack([np.arange(cases) % 4 > 0, np.arange(cases) % 2 == 1, np.zeros(cases, bool)], axis=1) * 100
    cells = []
    for method, share in (("supervised", 0.5), ("cps", 0.8)):
        for labels in (0.1, 1.0):
            tp = (truth * (share * labels**0.2 + rng.normal(0, 0.05, truth.shape))).astype(int).clip(0)
            fp = rng.integers(0, 2, truth.shape) * (truth.any(axis=1, keepdims=True))
            counts = np.stack([tp, fp, truth - tp, 1000 - truth - fp], axis=-1)
            cells.append(make_cell(make_arm(method, labels=labels), 0.5, label_values=(4, 7, 9)))
            cells[-1] = replace(cells[-1], counts=counts)
    return cells


class TestClasses:
    def test_each_class_has_a_column_by_its_mask_value(self) -> None:
        cell = make_classes(20)[0]
        (row,) = csv.DictReader(io.StringIO(format_cells_csv([cell])))
        for k, value in enumerate((4, 7)):
            tp, fp, fn = cell.counts[:, k, :3].sum(axis=0)
            assert float(row[f"f1_class_{value}"]) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-6)
        assert (row["f1_class_9"], row["dice_class_9"]) == ("", "")
        assert float(row["f1"]) == pytest.approx((float(row["f1_class_4"]) + float(row["f1_class_7"])) / 2, abs=1e-6)
        assert (row["cases"], row["positive_cases"]) == ("20", "15")
        assert float(row["dice"]) == pytest.approx(0.25 + 0.75 * float(row["dice_positive_cases"]), abs=1e-6)

    def test_the_table_says_what_its_figures_are_of(self) -> None:
        found = summarize(make_classes(20), "f1", "supervised")
        table = make_arm_table(found)
        assert "F1 of all voxels (mean of 2 classes)" in table.text
        assert {"class 4", "class 7", "class 9"} <= set(table.columns)
        assert row_of(found, "cps", "10 %")["class 9"] == "-"
        assert found.absent_classes == (9,)
        assert any("class 9 is in none of the masks" in w for w in found.warnings)

    def test_empty_masks_do_not_flatter_in_silence(self) -> None:
        found = summarize(make_classes(20), "dice", "supervised")
        row = row_of(found, "cps", "10 %")
        assert float(row["dice"]) == pytest.approx(0.25 + 0.75 * float(row["positive cases"]), abs=1e-3)
        assert make_arm_table(found).rows[-1][make_arm_table(found).columns.index("dice")] == "0.250"
        assert any("5 of the masks have no foreground" in w for w in found.warnings)

    @pytest.mark.parametrize("cases", [7, 8])
    def test_figures_and_tables_with_and_without_intervals(self, cases: int, tmp_path: Path) -> None:
        found = summarize(make_classes(cases), "dice", "supervised")
        assert len(plot_ablation(found, tmp_path)) == 3
        texts = (format_markdown(found), format_latex(found))
        assert [f"too few cases ({cases}" in text for text in texts] == [cases < 8] * 2
        row = row_of(found, "cps", "10 %")
        assert [(row[name] == "-") for name in ("p", "Holm p")] == [cases < 8] * 2
        assert ("too few cases (7 < 8)" in row["labels equivalent"]) == (cases < 8)


class TestTable:
    def test_figures_of_an_arm(self, summary: AblationSummary) -> None:
        (arm,) = [a for a in summary.arms if a.arm == make_arm("mean_teacher", labels=0.1)]
        row = row_of(summary, "mean_teacher", "10 %")
        assert arm.mean is not None
        assert arm.against is not None
        assert arm.spread is not None
        assert arm.labels_equivalent is not None
        assert row["f1"] == f"{arm.mean.value:.3f}"
        assert row["95 % interval"] == f"[{arm.mean.low:.3f}, {arm.mean.high:.3f}]"
        assert row["run sd"] == f"{arm.spread.total:.3f}"
        assert row["minus supervised"] == f"{arm.against.test.difference:+.3f}"
        assert row["its interval"] == f"[{arm.against.test.low:+.3f}, {arm.against.test.high:+.3f}]"
        assert (row["p"], row["Holm p"]) == (format_p(arm.against.test.p), format_p(arm.against.holm))
        equivalent = arm.labels_equivalent
        assert row["labels equivalent"] == f"{equivalent.value} [{equivalent.low}, {equivalent.high}]"
        assert (row["labeled"], row["runs"]) == ("36", "3")

    def test_what_went_wrong_is_named(self, summary: AblationSummary) -> None:
        assert row_of(summary, "supervised", "1 %")["runs"] == "1 of 3 (1 failed, 1 missing)"
        assert row_of(summary, "mean_teacher", "1 %")["runs"] == "3 of 3 (1 collapsed)"

    def test_an_arm_without_scores_is_dashes(self) -> None:
        cells = [make_cell(make_arm(), 0.5), make_cell(make_arm("cps"), None)]
        row = row_of(summarize(cells, "dice", "supervised"), "cps", "10 %")
        assert row["runs"] == "0 of 1 (1 failed)"
        assert {row[name] for name in ("dice", "95 % interval", "run sd", "p", "labels equivalent")} == {"-"}

    def test_equal_counts_are_identical_predictions_and_no_difference_of_0(self) -> None:
        dice = np.linspace(0.2, 0.9, CASES)
        alike, other = make_arm("mean_teacher"), make_arm("third")
        cells = [make_cell(arm, dice, split) for arm in (make_arm(), alike) for split in range(3)]
        cells += [make_cell(other, dice[::-1], split) for split in range(3)]
        summary = summarize(cells, "dice", "supervised")
        rows = {row[0]: row for row in make_arm_table(summary).rows}
        at = make_arm_table(summary).columns.index("minus supervised")
        assert rows["mean_teacher"][at : at + 4] == ("identical predictions", UNKNOWN, UNKNOWN, UNKNOWN)
        against = {arm.arm.method: arm.against for arm in summary.arms}
        assert against["mean_teacher"] is not None
        assert against["mean_teacher"].identical
        third = against["third"]  # the mean is the same, the predictions are not
        assert third is not None
        assert not third.identical
        assert rows["third"][at] in ("+0.000", "-0.000")
        assert third.holm == third.test.p  # identical predictions are no comparison to correct for

    def test_one_training_under_two_names_is_said(self) -> None:
        cells = [make_cell(make_arm(), 0.5), replace(make_cell(make_arm(), 0.5), arm=make_arm("mean_teacher"))]
        table = make_arm_table(summarize(cells, "dice", "supervised"))
        at = table.columns.index("minus supervised")
        assert [row[at] for row in table.rows[:2]] == [UNKNOWN, "same training"]

    def test_trivial_predictors_stand_below(self, summary: AblationSummary) -> None:
        table = make_arm_table(summary)
        score = table.columns.index("f1")
        assert [(r[0], r[score]) for r in table.rows[-2:]] == [("(all positive)", "0.400"), ("(nothing)", "0.000")]
        assert {len(r) for r in table.rows} == {len(table.columns)}

    def test_columns_that_say_nothing_are_left_out(self, summary: AblationSummary) -> None:
        assert {"recipe", "start", "split sd", "seed sd"}.isdisjoint(make_arm_table(summary).columns)
        cells = make_grid({"supervised": 0.0}, splits=2, seeds=2, starts=("scratch", "bootstrap"))
        columns = make_arm_table(summarize(cells, "f1", "supervised")).columns
        assert {"start", "split sd", "seed sd"} <= set(columns)
        assert "recipe" not in columns

    @pytest.mark.parametrize(
        ("labels", "text"), [(0.01, "1 %"), (0.125, "12.5 %"), (1.0, "100 %"), (4.0, "4 cases"), (0.001, "0.1 %")]
    )
    def test_labels(self, labels: float, text: str) -> None:
        assert format_labels(labels) == text

    def test_p(self) -> None:
        assert [format_p(p) for p in (0.0, 0.0009, 0.001, 0.0499, 1.0)] == [
            "< 0.001",
            "< 0.001",
            "0.001",
            "0.050",
            "1.000",
        ]


class TestDocuments:
    def test_markdown_is_a_table(self, summary: AblationSummary) -> None:
        lines = format_markdown(summary).splitlines()
        rows = [line for line in lines if line.startswith("|")]
        assert {line.count("|") for line in rows} == {len(make_arm_table(summary).columns) + 1}
        assert len(rows) == 2 + len(summary.arms) + 2
        assert [line[2:] for line in lines if line.startswith("- ")] == list(summary.warnings)

    def test_markdown_escapes_bars(self) -> None:
        cells = [make_cell(make_arm(), 0.5), make_cell(make_arm("a|b"), 0.5)]
        assert r"| a\|b  " in format_markdown(summarize(cells, "dice", "supervised"))

    def test_latex_has_no_character_with_a_meaning_left(self, summary: AblationSummary) -> None:
        lines = format_latex(summary).splitlines()
        body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
        rows = [line for line in body if line != r"\midrule"]
        columns = len(make_arm_table(summary).columns)
        assert len(rows) == 1 + len(summary.arms) + 2
        for row in rows:
            assert row.endswith(r" \\")
            assert row.count(" & ") == columns - 1
        assert any(row.startswith(r"mean\_teacher & 10 \%") for row in rows)
        assert "mean_teacher" not in "".join(rows)
        tabular = next(line for line in lines if line.startswith(r"\begin{tabular}"))
        assert tabular == r"\begin{tabular}{l" + "r" * (columns - 1) + "}"
        assert all(line.startswith("% ") for line in lines[: len(summary.warnings)])

    def test_escapes(self) -> None:
        assert escape_latex("a_b 5 % & #1 $x {y} ~ ^") == (
            r"a\_b 5 \% \& \#1 \$x \{y\} \textasciitilde{} \textasciicircum{}"
        )
        assert escape_latex(r"\input") == r"\textbackslash{}input"
        assert escape_latex("<= 4, >= 9, < 0.001, -0.5 [-1, x-1") == (
            r"$\leq$ 4, $\geq$ 9, $<$ 0.001, $-$0.5 [$-$1, x-1"
        )


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a plot without rendering it; returns the axes."""
    kept: list[Figure] = []
    monkeypatch.setattr("ssl_seg.report.ablation_figures.save_figure", lambda figure, _: kept.append(figure))

    def run(plot: Any, summary: AblationSummary) -> list[Axes]:
        kept.clear()
        drawn = plot(summary, tmp_path / "figure.png")
        assert drawn == bool(kept)
        return kept[0].axes if kept else []

    return run


def named_line(axis: Axes, label: str) -> Any:
    (line,) = [line for line in axis.lines if line.get_label() == label]
    return line


class TestScoresFigure:
    def test_lines_bands_and_dots(self, draw: Any, summary: AblationSummary) -> None:
        (axis,) = draw(plot_scores, summary)
        for method in ("supervised", "mean_teacher"):
            arms = [a for a in summary.arms if a.arm.method == method]
            line = named_line(axis, method)
            np.testing.assert_array_equal(line.get_xdata(), [4, 36, 360])
            np.testing.assert_array_equal(line.get_ydata(), [a.mean.value for a in arms])
            runs = [x for x in axis.lines if x.get_marker() == "o" and x.get_color() == line.get_color()]
            scores = [s for a in arms for s in a.scores if s is not None]
            dots = sorted(float(x.get_ydata()[0]) for x in runs)
            crosses = [x for x in axis.lines if x.get_marker() == "X" and x.get_color() == line.get_color()]
            assert dots == sorted(set(scores) - {float(x.get_ydata()[0]) for x in crosses})
            assert len(crosses) == (method == "mean_teacher")
        assert axis.get_xscale() == "log"
        assert [t.get_text() for t in axis.get_xticklabels()] == ["4\n1 %", "36\n10 %", "360\n100 %"]
        band = axis.collections[0].get_paths()[0].vertices[:, 1]
        means = [a.mean for a in summary.arms if a.arm.method == "supervised"]
        assert (band.min(), band.max()) == pytest.approx((min(m.low for m in means), max(m.high for m in means)))

    @pytest.mark.parametrize("variants", [1, 3, 4, 5, 12])
    @pytest.mark.parametrize("methods", [1, 5, 6, 7, 13])
    def test_no_two_lines_look_the_same_as_far_as_there_are_looks(self, methods: int, variants: int) -> None:
        """6 colors and 4 styles: 24 looks."""
        lines = [(f"m{n}", f"r{k // 2}", f"s{k % 2}") for n in range(methods) for k in range(variants)]
        looks = [_style(line, lines) for line in lines]
        assert len(set(looks)) == min(len(lines), 24)
        if methods <= 6 and variants <= 4:
            assert len({color for color, _ in looks}) == (variants if methods == 1 else methods)

    def test_methods_have_their_own_colors_and_starts_their_own_style(self, draw: Any) -> None:
        cells = make_grid({"supervised": 0.0, "cps": 0.1}, starts=("scratch", "bootstrap"))
        (axis,) = draw(plot_scores, summarize(cells, "f1", "supervised"))
        lines = {(m, s): named_line(axis, f"{m}, {s}") for m in ("supervised", "cps") for s in ("scratch", "bootstrap")}
        assert lines["supervised", "scratch"].get_color() == lines["supervised", "bootstrap"].get_color()
        assert lines["supervised", "scratch"].get_color() != lines["cps", "scratch"].get_color()
        assert lines["cps", "scratch"].get_linestyle() != lines["cps", "bootstrap"].get_linestyle()

    def test_every_start_begins_at_the_smallest_fraction(self, draw: Any) -> None:
        """There all are from scratch, and are stored as such."""
        cells = make_grid({"supervised": 0.0}, starts=("scratch", "bootstrap"))
        summary = summarize([c for c in cells if c.arm.start == "scratch" or c.arm.labels > 0.01], "f1", "supervised")
        (axis,) = draw(plot_scores, summary)
        first, second = (named_line(axis, f"supervised, {start}") for start in ("scratch", "bootstrap"))
        assert list(first.get_xdata()) == list(second.get_xdata()) == [4, 36, 360]
        assert first.get_ydata()[0] == second.get_ydata()[0]
        assert first.get_ydata()[1] != second.get_ydata()[1]

    def test_starts_of_one_method_have_colors_of_their_own(self, draw: Any) -> None:
        starts = ("scratch", "bootstrap", "scratch_long")
        (axis,) = draw(plot_scores, summarize(make_grid({"supervised": 0.0}, starts=starts), "f1", "supervised"))
        lines = [named_line(axis, f"supervised, {start}") for start in starts]
        assert len({line.get_color() for line in lines}) == len({line.get_linestyle() for line in lines}) == 3

    def test_trivial_score_and_lost_runs_are_marked(self, draw: Any, summary: AblationSummary) -> None:
        (axis,) = draw(plot_scores, summary)
        assert named_line(axis, "all positive: 0.400").get_ydata() == [summary.all_positive] * 2
        (lost,) = [x for x in axis.lines if x.get_marker() == "v" and len(x.get_xdata())]
        assert lost.get_xdata() == [4]
        assert "2" in [text.get_text().strip() for text in axis.texts]

    def test_without_a_score_there_is_no_figure(self, draw: Any) -> None:
        cells = [replace(c, status="missing", counts=None) for c in make_results()]
        empty = summarize(cells, "f1", "supervised")
        assert [draw(plot, empty) for plot in (plot_scores, plot_case_slopes, plot_labels_equivalent)] == [[], [], []]


class TestSlopesFigure:
    def test_every_case_goes_from_the_baseline_to_the_method(self, draw: Any, summary: AblationSummary) -> None:
        axes = draw(plot_case_slopes, summary)
        assert len(axes) == 3
        for axis, labels in zip(axes, (0.01, 0.1, 1.0), strict=True):
            pair = [
                next(a for a in summary.arms if a.arm == make_arm(m, labels=labels))
                for m in ("supervised", "mean_teacher")
            ]
            *cases, mean = [tuple(line.get_ydata()) for line in axis.lines]
            assert sorted(cases) == sorted(zip(*(a.case_dice for a in pair), strict=True))
            assert mean == tuple(pytest.approx(np.mean(a.case_dice)) for a in pair)
            assert axis.get_title().startswith(format_labels(labels))

    def test_better_and_worse_are_counted_and_colored(self, draw: Any) -> None:
        change = np.array([0.2] * 5 + [-0.2] * 3 + [0.001] * 12)
        cells = [make_cell(make_arm(), 0.5), make_cell(make_arm("cps"), 0.5 + change)]
        (axis,) = draw(plot_case_slopes, summarize(cells, "dice", "supervised"))
        assert axis.get_title().endswith("5 better, 3 worse")
        colors = [line.get_color() for line in axis.lines[:-1]]
        assert sorted(colors.count(c) for c in set(colors)) == [3, 5, 12]


class TestLabelsFigure:
    def test_points_intervals_and_own_labels(self, draw: Any, summary: AblationSummary) -> None:
        (axis,) = draw(plot_labels_equivalent, summary)
        arms = [a for a in summary.arms if a.labels_equivalent]
        assert [t.get_text() for t in axis.get_yticklabels()] == [
            "mean_teacher, 1 %",
            "mean_teacher, 10 %",
            "mean_teacher, 100 %",
        ]
        for row, arm in enumerate(arms):
            assert arm.labels_equivalent is not None
            here = [x for x in axis.lines if len(x.get_xdata()) and x.get_ydata()[0] == row]
            (interval,) = [x for x in here if len(x.get_xdata()) == 2]
            found = arm.labels_equivalent
            assert list(interval.get_xdata()) == [found.low.number, found.high.number]
            points = [float(x.get_xdata()[0]) for x in here if len(x.get_xdata()) == 1]
            assert found.value.number in points
            assert arm.labeled in points
        markers = [x.get_marker() for x in axis.lines if len(x.get_xdata()) == 1 and x.get_ydata()[0] == 2]
        assert ">" in markers  # at all labels the method is beyond the curve
        assert axis.texts[2].get_text().startswith(">= 1 x")


class TestFolder:
    def test_pictures_are_written_and_replaced(self, tmp_path: Path, summary: AblationSummary) -> None:
        (tmp_path / "scores.png").write_bytes(b"old")
        (tmp_path / ".scores.png").write_bytes(b"from a run that was killed")
        (tmp_path / "labels_equivalent.png").write_bytes(b"of another ablation")
        alone = replace(summary, arms=summary.arms[:3])
        pictures = plot_ablation(alone, tmp_path)
        assert pictures == ["scores.png"]  # without another method there is nothing to compare
        assert [p.name for p in tmp_path.iterdir()] == ["scores.png"]
        assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")

    def test_a_recipe_without_a_finished_cell_is_left_out(self, tmp_path: Path) -> None:
        cells = make_grid({"supervised": 0.0, "mean_teacher": 0.1})
        cells = [replace(c, status="missing", counts=None) if c.arm.method == "mean_teacher" else c for c in cells]
        pictures = plot_ablation(summarize(cells, "f1", "supervised"), tmp_path)
        assert pictures == ["scores.png"]

    def test_all_of_them(self, tmp_path: Path, summary: AblationSummary) -> None:
        pictures = plot_ablation(summary, tmp_path)
        assert set(pictures) == {"scores.png", "case_slopes.png", "labels_equivalent.png"}
        assert all((tmp_path / name).stat().st_size > 5000 for name in pictures)
