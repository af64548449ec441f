"""What the page of a run says: the verdict in words, and the numbers that the run has left behind."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import TINY, Cli
from interruption import interrupted_after
from page_cases import (
    CASES,
    FINDING,
    HOSTILE,
    cut_last_line,
    damage,
    make_collapsed,
    make_config,
    make_dice_score,
    make_final,
    make_healthy,
    make_look,
    make_run,
)
from sizes import around

import ssl_seg
from ssl_seg.cli.console import INTERRUPTED
from ssl_seg.cli.train import _report as print_end
from ssl_seg.config.layers import Layer, check_partial
from ssl_seg.diagnose.examples import make_example
from ssl_seg.errors import DataError, RunDirError
from ssl_seg.monitor.network_rules import find_trivial_images
from ssl_seg.report import case_pictures, run_figures, run_report
from ssl_seg.report import page as page_module
from ssl_seg.report.comparison_page import make_comparison_page
from ssl_seg.report.figures import COLORS
from ssl_seg.report.page import ImageRow, Page, PageImage, PageSection, encode_image, render_page, write_page
from ssl_seg.report.run_figures import draw_curves, draw_scores, list_marks, plot_f1
from ssl_seg.report.run_page import MOST_CASES, MOST_CLASSES, MOST_EVENTS, make_run_page, predict_examples
from ssl_seg.report.run_record import MOST_LOOKS, RunRecord, _list_settings, read_looks, read_run
from ssl_seg.report.run_report import RunningPage, write_report_page, write_when_trained
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import TrainResult
from ssl_seg.scores.intervals import Resamples, estimate_difference


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw figures without writing them out, which takes most of the time; TestHtml does both."""
    if request.cls is not TestHtml:
        monkeypatch.setattr("ssl_seg.report.figures.to_svg", lambda _: "<svg></svg>")


def test_the_color_of_a_line_one_pixel_wide_comes_through() -> None:
    """A missed scratch: the picture may blur it, and must not make it gray."""
    colors = np.full((64, 64, 3), 0.5)
    colors[20] = (0.3, 0.3, 0.7)
    content = base64.b64decode(encode_image(colors).split(",")[1])
    blue, _, red = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[20].mean(axis=0)
    assert blue - red > 0.7 * 0.4 * 255


def test_a_probability_that_is_no_number_is_gray_and_not_0() -> None:
    probs = np.zeros((64, 64))
    probs[:32] = np.nan
    content = base64.b64decode(encode_image(probs, is_probability=True).split(",")[1])
    shown = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert np.ptp(shown[10, 10].astype(int)) < 5
    assert np.ptp(shown[50, 50].astype(int)) > 50


def write_looks(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"step": n, "val/student/f1": n / 7}) + "\n" for n in range(count)))
    return path


def texts(page: Page) -> dict[str, str]:
    """Return what the sections say, as one text each."""
    return {
        section.title: "\n".join(
            [
                *section.notes,
                *(cell for table in section.tables for row in (table.columns, *table.rows) for cell in row),
            ]
        )
        for section in page.sections
    }


def rows_of(page: Page, title: str) -> list[tuple[str, ...]]:
    (section,) = [section for section in page.sections if section.title == title]
    return [row for table in section.tables for row in table.rows]


class TestBanner:
    def test_a_run_that_has_learned_is_healthy_with_its_score_and_what_to_run(self, tmp_path: Path) -> None:
        record = read_run(make_healthy(tmp_path / "run"))
        banner = record.banner
        assert banner.state == "healthy"
        assert record.used_scores is not None
        assert f"F1 {record.used_scores['f1_macro']:.3f} on 12 whole validation cases" in banner.reasons[0]
        assert [command.split()[:2] for command in banner.commands] == [["ssl-seg", "evaluate"], ["ssl-seg", "predict"]]

    def test_a_collapse_has_its_step_its_meaning_and_its_action(self, tmp_path: Path) -> None:
        banner = read_run(make_collapsed(tmp_path / "run")).banner
        assert banner.state == "collapsed"
        assert banner.title == "Collapsed at step 6, stopped by the monitor"
        assert banner.reasons[0].startswith("The output hardly varies and does not follow the target (constant_output)")
        assert "probability 0.000" in banner.reasons[0]
        assert any(reason == "Try: lower the rate" for reason in banner.reasons)
        assert "diagnose" in banner.commands[0]

    @pytest.mark.parametrize(("dice", "said"), [(0.1, "Do not use best.pt"), (0.9, "best.pt is from before the")])
    def test_the_best_network_of_a_collapsed_run_is_judged_by_its_score(
        self, tmp_path: Path, dice: float, said: str
    ) -> None:
        banner = read_run(make_collapsed(tmp_path / "run", best_dice=dice)).banner
        assert banner.state == "collapsed"
        assert any(reason.startswith(said) for reason in banner.reasons)

    def test_a_finished_run_at_the_trivial_score_is_a_warning(self, tmp_path: Path) -> None:
        final = make_final(make_dice_score([0.3] * 12))  # foreground everywhere scores 0.4
        end = {"event": "finished", "step": 12, "verdict": "ok", "codes": []}
        banner = read_run(make_run(tmp_path / "run", [make_look(0), make_look(12)], [end], final)).banner
        assert banner.state == "warning"
        assert "no better than a trivial predictor" in banner.title

    @pytest.mark.parametrize("dice", [0.0, 0.39, 0.404, 0.411, 0.9])
    def test_trivial_is_what_the_end_of_a_run_and_a_diagnosis_call_so(self, tmp_path: Path, dice: float) -> None:
        final = make_final(make_dice_score([dice] * 12))
        end = {"event": "finished", "step": 12, "verdict": "ok", "codes": []}
        record = read_run(make_run(tmp_path / "run", [make_look(12)], [end], final))
        scores = record.used_scores
        assert scores is not None
        found = find_trivial_images(scores["f1"], scores["trivial_f1"], "teacher")
        assert (record.banner.state == "warning") == (found is not None)

    @pytest.mark.parametrize(
        "dice", [0.49, 0.504, 0.9]
    )  # foreground everywhere scores 0.5, the margin asked for is 0.01
    def test_the_page_the_terminal_and_a_notebook_say_the_same_next(
        self, tmp_path: Path, dice: float, capsys: pytest.CaptureFixture[str]
    ) -> None:
        end = {"event": "finished", "step": 12, "verdict": "ok", "codes": []}
        path = make_run(tmp_path / "run", [make_look(12)], [end], make_final(make_dice_score([dice] * 12)))
        told, banner = ssl_seg.load_run(path), read_run(path).banner
        print_end(TrainResult(RunDir(path), "finished", told.steps, told.verdict, dict(told.scores), is_main=True))
        shown = capsys.readouterr().out
        assert shown.endswith("\n      ".join(banner.commands) + "\n")
        assert ("no better than a trivial predictor" in shown) == (dice < 0.41)
        assert f"next: {'ssl-seg diagnose' if dice < 0.41 else 'ssl_seg.evaluate'}" in repr(told)

    def test_few_validation_cases_are_told_but_in_folds(self, tmp_path: Path) -> None:
        end = {"event": "finished", "step": 12, "verdict": "ok", "codes": []}
        for count, folds, told in ((7, None, True), (8, None, False), (7, 5, False)):
            final = make_final(make_dice_score([0.9] * count))
            config = make_config({"split": {"folds": folds}})
            path = make_run(tmp_path / f"{count}{folds}", [make_look(12)], [end], final, config)
            reasons = read_run(path).banner.reasons
            assert any(text.startswith("Judged by 7 cases") for text in reasons) == told

    def test_a_run_that_has_gone_is_shown_as_such(self, tmp_path: Path) -> None:
        told = ssl_seg.load_run(make_healthy(tmp_path / "run"))
        shutil.rmtree(tmp_path / "run")
        assert repr(told).endswith("next: nothing: the run directory has gone")

    def test_a_warning_of_the_monitor_is_shown(self, tmp_path: Path) -> None:
        finding = {"code": "overfitting", "level": "warn", "net": "training", "message": "gap 0.4"}
        events = (
            {"event": "verdict", "step": 9, "level": "warn", "action": "stop earlier", "findings": [finding]},
            {"event": "finished", "step": 12, "verdict": "warn", "codes": ["overfitting"]},
        )
        banner = read_run(
            make_run(tmp_path / "run", [make_look(12)], events, make_final(make_dice_score([0.8] * 12)))
        ).banner
        assert banner.state == "warning"
        assert banner.reasons[0].endswith("(overfitting). gap 0.4")

    def test_a_run_that_goes_on_says_how_far_it_is(self, tmp_path: Path) -> None:
        banner = read_run(make_run(tmp_path / "run", [make_look(0), make_look(6)], [{"event": "started"}])).banner
        assert (banner.state, banner.title) == ("healthy", "Not finished: at step 6 of 12, healthy so far")

    def test_a_resumed_run_has_not_ended_although_it_had(self, tmp_path: Path) -> None:
        events = ({"event": "collapsed", "step": 6, "verdict": "collapsed"}, {"event": "resumed", "step": 6})
        assert read_run(make_run(tmp_path / "run", [make_look(6)], events)).banner.title.startswith("Not finished")

    def test_an_interrupted_run_is_a_warning_with_its_step(self, tmp_path: Path) -> None:
        events = [{"event": "interrupted", "step": 5, "verdict": "ok"}]
        banner = read_run(make_run(tmp_path / "run", [make_look(0)], events)).banner
        assert (banner.state, banner.title) == ("warning", "Interrupted: at step 5 of 12, healthy so far")

    def test_a_broken_gate_is_told(self, tmp_path: Path) -> None:
        events = (
            {"event": "gate", "step": 6, "passed": False, "text": "f1 0.3 is not above 0.7"},
            {"event": "refused", "step": 6, "verdict": "ok"},
        )
        banner = read_run(make_run(tmp_path / "run", [make_look(6)], events)).banner
        assert (banner.state, banner.reasons) == ("warning", ("f1 0.3 is not above 0.7",))

    def test_the_scores_are_those_of_scores_json(self, tmp_path: Path) -> None:
        page = make_run_page(read_run(make_healthy(tmp_path / "run")))
        stored = json.loads((tmp_path / "run" / "scores.json").read_text())["networks"][0]
        used = next(row for row in rows_of(page, "Score") if row[0].endswith("(used)"))
        assert used[2] == f"{stored['pooled']['f1_macro']:.3f}"
        assert used[4] == f"{stored['trivial']['margin']:.3f}"
        assert used[5] == f"{stored['trivial']['margin_low']:.3f} .. {stored['trivial']['margin_high']:.3f}"


class TestLooks:
    @pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 95])
    def test_long_records_are_thinned_with_first_and_last(self, tmp_path: Path, count: int) -> None:
        looks = read_looks(write_looks(tmp_path / "m.jsonl", count), 10)
        assert looks.total == count
        assert len(looks.steps) <= 11
        assert len(looks.steps) == count or count > 10
        if count:
            assert [looks.steps[0], looks.steps[-1]] == [0, count - 1]
            assert np.allclose(looks.values["val/student/f1"], looks.steps / 7)

    def test_a_hundred_thousand_records_are_read(self, tmp_path: Path) -> None:
        looks = read_looks(write_looks(tmp_path / "m.jsonl", 100_000))
        assert looks.total == 100_000
        assert len(looks.steps) <= MOST_LOOKS + 1

    def test_what_is_no_number_becomes_nan_and_cut_lines_are_left_out(self, tmp_path: Path) -> None:
        file = tmp_path / "m.jsonl"
        lines = [
            '{"step": 0, "a": null, "b": 1}',
            '{"step": 1, "a": NaN, "b": Infinity}',
            "[]",
            '{"step": "x"}',
            '{"st',
        ]
        file.write_text("\n".join(lines))
        looks = read_looks(file)
        assert looks.steps.tolist() == [0, 1]
        assert "a" not in looks.values
        assert np.array_equal(looks.values["b"], [1, np.nan], equal_nan=True)
        assert looks.last("b") == 1
        assert looks.last("a") is None

    def test_no_file_is_no_look(self, tmp_path: Path) -> None:
        assert read_looks(tmp_path / "none.jsonl").total == 0


class TestSoundPages:
    """A page for each state that a run directory may be in."""

    def test_no_look_at_all(self, tmp_path: Path) -> None:
        record = read_run(make_run(tmp_path / "run", []))
        assert "no look yet" in record.banner.title
        assert draw_scores(record) is None
        assert draw_curves(record) == ()
        assert "no look yet" in render_page(make_run_page(record))

    def test_stopped_at_step_0(self, tmp_path: Path) -> None:
        record = read_run(make_run(tmp_path / "run", [make_look(0)], [{"event": "interrupted", "step": 0}]))
        assert len(draw_curves(record)) > 3
        assert "Interrupted" in render_page(make_run_page(record))

    def test_nothing_but_nan(self, tmp_path: Path) -> None:
        looks = [{"step": n, "verdict": "collapsed", "val/student/f1": None, "train/loss": None} for n in range(3)]
        record = read_run(make_run(tmp_path / "run", looks))
        assert draw_scores(record) is not None
        assert "Collapsed" in render_page(make_run_page(record))

    def test_one_nan_among_figures(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run", [make_look(0), make_look(1, np.nan), make_look(2)])
        assert len(draw_curves(read_run(run))) >= 8

    def test_a_cut_line_and_damaged_files_are_told(self, tmp_path: Path) -> None:
        run = make_healthy(tmp_path / "run")
        cut_last_line(run)
        damage(run, "scores.json")
        (run / "split.yaml").write_text("[")
        record = read_run(run)
        assert record.looks.steps[-1] == 11
        assert record.final is None
        said = texts(make_run_page(record))["Versions and machine"]
        assert "scores.json cannot be read" in said
        assert "split.yaml cannot be read" in said

    def test_settings_of_another_version_are_told_and_the_rest_is_shown(self, tmp_path: Path) -> None:
        run = make_healthy(tmp_path / "run")
        (run / "config.yaml").write_text("unknown_section: 3\n")
        page = make_run_page(read_run(run))
        assert page.banner is not None
        assert page.banner.state == "healthy"
        assert "unknown_section" in texts(page)["Versions and machine"]

    def test_five_classes_have_a_row_each_and_their_dice_in_the_cases(self, tmp_path: Path) -> None:
        final = make_final(make_dice_score([0.8] * 12, classes=4))
        end = {"event": "finished", "step": 12, "verdict": "ok"}
        page = make_run_page(read_run(make_run(tmp_path / "run", [make_look(12)], [end], final)))
        assert [row[0] for row in rows_of(page, "Score") if len(row) == 5] == ["1", "2", "3", "4"]
        assert all(len(row) == 7 + 4 for row in rows_of(page, "All validation cases"))

    @pytest.mark.parametrize("classes", around(MOST_CLASSES))
    def test_a_column_for_each_class_where_these_are_few(self, tmp_path: Path, classes: int) -> None:
        final = make_final(make_dice_score([0.8] * 12, classes=classes))
        page = make_run_page(read_run(make_run(tmp_path / "run", [make_look(12)], (), final)))
        columns = classes if classes <= MOST_CLASSES else 0
        assert {len(row) for row in rows_of(page, "All validation cases")} == {7 + columns}
        assert ("scores.json" in texts(page)["All validation cases"]) == (not columns)

    @pytest.mark.parametrize("classes", around(case_pictures._MOST_TOLD))
    def test_the_title_of_a_case_tells_some_classes_and_counts_the_others(self, classes: int) -> None:
        told = case_pictures._describe_classes({"classes": [0.5] * classes}, range(1, 1 + classes)).splitlines()[1]
        more = classes - case_pictures._MOST_TOLD
        assert told.count(": 0.500") == min(classes, case_pictures._MOST_TOLD)
        assert told.endswith(f"and {more} more" if more > 0 else f"{classes}: 0.500")

    def test_not_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "pretraining.json").write_text("{}")
        with pytest.raises(RunDirError, match="is a pre-training"):
            read_run(tmp_path)
        with pytest.raises(RunDirError, match="no run directory"):
            read_run(tmp_path / "nothing")


class TestTables:
    def test_the_worst_case_comes_first_with_true_and_predicted_share(self, tmp_path: Path) -> None:
        rows = rows_of(make_run_page(read_run(make_healthy(tmp_path / "run"))), "All validation cases")
        assert rows[0][:2] == (CASES[0], "0.500")
        assert rows[-1][1] == "0.900"
        assert rows[0][5:7] == ("25.00%", "25.00%")  # as many false as missed

    @pytest.mark.parametrize("more", [-1, 0, 1, 3 * MOST_CASES])
    def test_many_cases_and_events_are_cut_and_said_to_be(self, tmp_path: Path, more: int) -> None:
        ids = [f"c{n}" for n in range(MOST_CASES + more)]
        final = make_final(make_dice_score(list(np.linspace(0.5, 0.9, len(ids))), ids))
        events = [{"event": "intervention", "step": n, "rung": "lower_lr"} for n in range(MOST_EVENTS + more)]
        record = read_run(make_run(tmp_path / "run", [make_look(300)], events, final))
        page = make_run_page(record)
        shown = [row[0] for row in rows_of(page, "All validation cases")]
        assert shown == (ids if more <= 0 else [*ids[: MOST_CASES // 2], *ids[-(MOST_CASES // 2) :]])  # by Dice
        assert (f"of {len(ids):,} cases" in texts(page)["All validation cases"]) == (more > 0)
        assert len(rows_of(page, "What happened")) == min(len(events), MOST_EVENTS)
        assert len(list_marks(record)) <= 40

    def test_settings_have_their_origin(self, tmp_path: Path) -> None:
        rows = {row[0]: row[1:] for row in rows_of(make_run_page(read_run(make_healthy(tmp_path / "run"))), "Settings")}
        assert rows["data.channels"] == ("1", "planned: channels of the images")
        assert rows["network.features"] == ("4", "given")
        options = Layer("--set", {"method": {"options": {"confidence": 0.5}}})
        listed = _list_settings(check_partial(TrainRequest((options,)).settings)[0], "")
        assert ("method.options.confidence", "0.5", "default of the method, or given") in listed
        assert rows["optim.name"][1] == "default"

    def test_the_seal_says_who_has_opened_it(self, tmp_path: Path) -> None:
        said = texts(make_run_page(read_run(make_healthy(tmp_path / "run"))))["Data and split"]
        assert "1 time, with a network of this run" in said
        assert "by evaluate" in said
        assert "0 times" in texts(make_run_page(read_run(make_collapsed(tmp_path / "other"))))["Data and split"]

    def test_phases_of_the_loss_are_shaded(self, tmp_path: Path) -> None:
        phases = {"loss": {"phases": [{"from_epoch": 1, "weights": {"dice": 1.0}}]}}
        looks = [make_look(n) for n in range(13)]
        record = read_run(make_run(tmp_path / "run", looks, config=make_config(phases)))
        captions = {drawing.title: drawing.caption for drawing in draw_curves(record)}
        assert "every second phase" in captions["Losses"]

    @pytest.mark.parametrize("classes", [0, 2, len(COLORS) + 1])
    def test_with_several_classes_their_mean_is_the_f1_and_the_lowest_are_drawn(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int
    ) -> None:
        """A look has 0.5 as F1 of any foreground; class n has n/20 at the end, and nothing before."""
        mean = {"val/trivial_f1_macro": 0.1, **{f"val/{net}/f1_macro": 0.3 for net in ("student", "teacher")}}
        ends = {f"val/student/f1/{10 * n}": n / 20 for n in range(1, classes + 1)}
        looks = [make_look(0, **mean, **dict.fromkeys(ends, 0.0)), make_look(12, **mean, **ends)]
        record = read_run(make_run(tmp_path / "run", looks))
        (axis,) = plot_f1(record).axes
        assert {float(line.get_ydata()[-1]) for line in axis.lines if line.get_label() == "student"} == {
            0.3 if classes else 0.5
        }
        drawn: dict[str, Any] = {}
        monkeypatch.setattr(run_figures, "make_drawing", lambda *parts: drawn.update({parts[1]: parts}))
        draw_curves(record)
        assert ("Classes" in drawn) == (classes > 0)
        if classes:
            figure, _, caption, _ = drawn["Classes"]
            labels = [line.get_label() for line in figure.axes[0].lines if line.get_label().startswith("class")]
            assert labels == [f"class {10 * n}" for n in range(1, min(classes, len(COLORS)) + 1)]
            assert ("lowest at the end" in caption) == (classes > len(COLORS))


class TestHtml:
    def test_reliability_is_that_of_the_scores_or_it_is_told_how_to_get_it(self, tmp_path: Path) -> None:
        bins = [[0.0, None, None]] * 15
        bins[1], bins[13] = [0.75, 0.1, 0.2], [0.25, 0.9, 0.9]
        counted = replace(make_dice_score([0.8] * 12), reliability=tuple(map(tuple, [map(tuple, bins)])))
        page = make_run_page(read_run(make_run(tmp_path / "new", [make_look(12)], (), make_final(counted))))
        (drawing,) = next(s for s in page.sections if s.title == "Calibration").drawings
        assert "foreground: error 0.075" in drawing.html  # 0.75 of the voxels are 0.1 off
        old = texts(make_run_page(read_run(make_healthy(tmp_path / "old"))))["Calibration"]
        assert f"ssl-seg calibrate {tmp_path / 'old'}" in old

    def test_names_cannot_become_markup(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssl_seg.report.run_page.draw_curves", lambda _: ())  # they hold no names
        run = make_healthy(tmp_path / "<b>run")
        record = read_run(run)
        other = read_run(make_healthy(tmp_path / HOSTILE.replace("/", "")))
        for page in (make_run_page(record), make_comparison_page([record, other])):
            html = render_page(page)
            assert "<b>" not in html
            assert html.count("<script>") == 1
            assert html.count("</script>") == 1
        assert "&lt;script&gt;window.hacked" in render_page(make_run_page(record))

    def test_nothing_is_loaded_from_elsewhere(self, tmp_path: Path) -> None:
        record = read_run(make_healthy(tmp_path / "run"))
        curves = draw_curves(record)[:2]
        html = render_page(Page("a", "", record.banner, (PageSection("Curves", drawings=curves),)))
        places = re.findall(r'(?:src|href|action|data)="([^"]*)"|url\(([^)]*)\)|@import', html)
        assert places
        assert all(place.startswith(("data:", "#", '"#')) for pair in places for place in pair if place)

    def test_the_same_run_gives_the_same_text(self, tmp_path: Path) -> None:
        record = read_run(make_healthy(tmp_path / "run"))
        assert len({drawn.html for _ in range(2) if (drawn := draw_scores(record)) is not None}) == 1

    def test_it_is_small_and_drops_pictures_where_it_would_not_be(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        noise = np.random.default_rng(0).random((300, 300, 3))
        row = ImageRow("case", (PageImage("input", encode_image(noise)),) * 2)
        page = Page("a", "", None, (PageSection("Cases", rows=(row,)),))
        assert "<img" in write_page(page, tmp_path / "a.html").read_text()
        monkeypatch.setattr(page_module, "MOST_BYTES", 50_000)
        text = write_page(page, tmp_path / "b.html").read_text()
        assert "<img" not in text
        assert "Pictures are left out" in text

    def test_a_page_replaces_a_page_and_nothing_else(self, tmp_path: Path) -> None:
        page = Page("a", "", None, ())
        path = write_page(page, tmp_path / "a.html")
        assert write_page(page, path) == path
        path.write_text("<!doctype html>mine")
        with pytest.raises(DataError, match="is not overwritten"):
            write_page(page, path)
        with pytest.raises(DataError, match="is a folder"):
            write_page(page, tmp_path)
        with pytest.raises(DataError, match="is a file"):
            write_page(page, path / "b.html")


class TestComparison:
    def test_the_difference_is_over_the_shared_cases(self, tmp_path: Path) -> None:
        base = read_run(make_healthy(tmp_path / "a"))
        better = read_run(make_healthy(tmp_path / "b", ids=CASES[2:], offset=0.05))
        rows = rows_of(make_comparison_page([base, better]), "Scores")
        assert rows[0][6:] == ("", "", "")
        own, other = (self._count(record, CASES[2:]) for record in (better, base))
        expected = estimate_difference(own, other, "f1", Resamples(10))
        assert expected.low is not None
        assert rows[1][6:] == (f"{expected.value:+.3f}", f"{expected.low:+.3f} .. {expected.high:+.3f}", "10")

    @pytest.mark.parametrize(
        ("classes", "title", "cell"),
        [
            ((1, 1), "F1", "0.700"),
            ((2, 2), "F1 (mean of 2 classes)", "0.700"),
            ((1, 2), "F1", "0.700 (mean of 2 classes)"),
        ],
    )
    def test_what_the_f1_of_each_run_is_of(
        self, tmp_path: Path, classes: tuple[int, int], title: str, cell: str
    ) -> None:
        scores = [make_final(make_dice_score([0.7] * 12, classes=count)) for count in classes]
        runs = [read_run(make_run(tmp_path / str(n), [make_look(12)], final=own)) for n, own in enumerate(scores)]
        (table,) = next(s for s in make_comparison_page(runs).sections if s.title == "Scores").tables
        assert (table.columns[2], table.rows[1][2]) == (title, cell)

    @staticmethod
    def _count(record: RunRecord, ids: tuple[str, ...]) -> np.ndarray:
        assert record.used is not None
        counts = {c.case_id: c.classes[0] for c in record.used.score.cases}
        return np.array([[[[c.tp, c.fp, c.fn, c.tn]] for c in map(counts.__getitem__, ids)]])

    def test_cases_of_one_name_and_other_content_are_not_compared(self, tmp_path: Path) -> None:
        base, other = (make_healthy(tmp_path / name) for name in "ab")
        file = other / "split.yaml"
        file.write_text(re.sub(r"[0-9a-f]{16}", "f" * 16, file.read_text()))
        record = read_run(other)
        assert record.split is None or set(record.split.content.values()) == {"f" * 16}
        assert rows_of(make_comparison_page([read_run(base), record]), "Scores")[1][6:8] == ("-", "no case in common")

    def test_runs_that_are_not_scored_and_settings_that_differ(self, tmp_path: Path) -> None:
        base = read_run(make_healthy(tmp_path / "a"))
        other = read_run(make_run(tmp_path / "b", [make_look(0)], config=make_config({"optim": {"lr": 0.5}})))
        page = make_comparison_page([base, other])
        assert rows_of(page, "Scores")[1][6:8] == ("-", "not scored yet")
        assert [row[0] for row in rows_of(page, "Settings that differ")] == ["optim.lr"]
        assert rows_of(page, "Settings that differ")[0][2] == "0.5"
        assert rows_of(make_comparison_page([base, base]), "Settings that differ")[0][0] == "(none)"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_plane_of_a_volume_is_the_one_with_the_most_foreground(axis: int) -> None:
    truth = np.zeros((4, 5, 6), np.int16)
    truth[1] = 1
    truth[:, 3] = 1
    truth[:, :, 4] = 1
    best = (1, 3, 4)[axis]
    image = np.arange(truth.size, dtype=np.float32).reshape(1, *truth.shape)
    shown = make_example("a", "val", image, truth, image[0], truth, axis=axis)
    assert np.array_equal(shown.truth, np.take(truth, best, axis))
    assert np.array_equal(shown.prob, np.take(image[0], best, axis))
    assert shown.image is not None
    assert shown.image.shape == np.take(truth, best, axis).shape


class TestOfATraining:
    def test_a_finished_run_has_pictures_of_its_worst_median_and_best_case(
        self, tiny_run: Path, tmp_path: Path
    ) -> None:
        text = write_report_page([tiny_run], tmp_path / "a.html").read_text()
        assert text.count('<div class="cases">') == 3
        assert text.count("<img") == 12
        assert "Reliability of the probabilities" in text
        for title in ("worst", "median", "best"):
            assert f"<p>{title}: " in text
        assert "<p>worst: " not in write_report_page([tiny_run], tmp_path / "b.html", seconds=-1).read_text()

    def test_its_scores_are_those_of_evaluate(self, tiny_run: Path) -> None:
        found, own = evaluate(EvaluateRequest(tiny_run / "checkpoints" / "best.pt")), read_run(tiny_run).used_scores
        assert own is not None
        assert own["f1_macro"] == found["pooled"]["f1_macro"]
        assert {name: own[name] for name in ("margin", "margin_low")} == {
            name: found["trivial"][name] for name in ("margin", "margin_low")
        }

    def test_a_case_with_another_mask_than_was_scored_is_not_drawn(self, tiny_run: Path) -> None:
        record = read_run(tiny_run)
        assert record.split is not None
        contents = {i: content[:-1] + "x" for i, content in record.split.content.items()}
        changed = replace(record, split=replace(record.split, content=contents))
        assert len(predict_examples(record)[0]) > 1
        cases, why = predict_examples(changed)
        assert cases == []
        assert "is not the one that was scored any more" in why

    def test_without_its_data_the_rest_is_written(self, tiny_run: Path, tmp_path: Path) -> None:
        moved = tmp_path / "run"
        shutil.copytree(tiny_run, moved)
        checkpoint = moved / "checkpoints" / "best.pt"
        checkpoint.unlink()
        text = write_report_page([moved]).read_text()
        assert "No pictures of cases: " in text
        assert "F1 of student and teacher" in text

    def test_a_training_writes_its_page_on_the_way_when_it_goes_on_and_when_it_ends(
        self, cli: Cli, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_report, "write_when_trained", write_when_trained)  # others leave it out
        monkeypatch.setattr(run_report, "PAGE_SECONDS", 0.0)  # the first look of each command is late enough
        titles: list[str] = []

        def make(record: RunRecord, *_: object) -> Page:
            titles.append(record.banner.title)
            return make_bare_page(record)

        monkeypatch.setattr(run_report, "make_run_page", make)
        config, out = tmp_path / "c.yaml", tmp_path / "run"
        config.write_text(json.dumps({**TINY, "length": {"steps": 2, "steps_per_epoch": 1}}))
        with interrupted_after(1):
            code, shown, _ = cli("train", "--config", config, "--data", particles_dir, "--labels", 0.5, "--out", out)
        assert code == INTERRUPTED
        assert titles[0].startswith("Going on: at step 0 of 2")
        assert f"report: {out / 'report.html'}, updated every few minutes" in shown
        titles.clear()
        code, shown, _ = cli("train", "--resume", out)
        assert code == 0
        assert titles[0].startswith("Going on: at step 2 of 2")
        assert f"report: {out / 'report.html'}\n" in shown
        assert "Going on" not in titles[-1]
        assert titles[-1] in (out / "report.html").read_text()

    def test_a_report_that_fails_is_told_and_does_not_end_a_training(self, tmp_path: Path) -> None:
        notes: list[str] = []
        run = make_healthy(tmp_path / "run")
        (run / "report.html").write_text("mine")
        write_when_trained(run, notes.append)
        assert "is not overwritten" in notes[0]
        assert "ssl-seg report" in notes[0]


def make_bare_page(record: RunRecord, *_: object) -> Page:
    """Return a page without figures, which take most of the time."""
    return Page(record.name, "", record.banner, ())


class TestWhileItTrains:
    @pytest.fixture(autouse=True)
    def bare(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(run_report, "make_run_page", make_bare_page)

    def test_the_banner_says_so_and_when(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ssl_seg.report.run_record.now", lambda: "2026-11-29T22:41:09+00:00")
        events = ({"event": "interrupted", "step": 5, "verdict": "ok"}, {"event": "resumed", "step": 5})
        run = make_run(tmp_path / "run", [make_look(0), make_look(6)], events)
        (run / "checkpoints" / "last.pt").touch()
        banner, later = read_run(run, goes_on=True).banner, read_run(run).banner
        assert (banner.state, banner.title) == ("healthy", "Going on: at step 6 of 12, healthy so far")
        said = "The run was still training when this page was written, after step 6 of 12, 2026-11-29 22:41 UTC"
        assert banner.reasons[0] == said
        assert banner.commands == (), "a run that goes on cannot be resumed"
        assert later.title == "Not finished: at step 6 of 12, healthy so far"
        assert said not in later.reasons
        assert "--resume" in later.commands[0]

    def test_a_collapse_leads_while_it_goes_on_too(self, tmp_path: Path) -> None:
        looks = [make_look(0), make_look(6, verdict="collapsed")]
        events = [{"event": "verdict", "step": 6, "level": "collapsed", "findings": [FINDING]}]
        banner = read_run(make_run(tmp_path / "run", looks, events), goes_on=True).banner
        assert (banner.state, banner.title) == ("collapsed", "Collapsed at step 6")
        assert "still training" in banner.reasons[0]

    def test_a_page_is_due_five_minutes_after_the_last_one(self, tmp_path: Path) -> None:
        clock, notes = [1000.0], list[str]()
        page, run = RunningPage(notes.append, now=lambda: clock[0]), make_run(tmp_path / "run", [make_look(0)])

        def writes(at: float) -> bool:
            clock[0] = at
            (run / "report.html").unlink(missing_ok=True)
            page(run)
            return (run / "report.html").is_file()

        due = [at for at in (1000, 1299, 1300, 1301, 1599, 1650, 1700, 1949, 1950) if writes(at)]
        assert due == [1300, 1650, 1950]
        assert len(notes) == 1, "the first one is told"

    @pytest.mark.parametrize(("seconds", "pause"), [(1.0, 300.0), (6.0, 300.0), (7.0, 350.0), (60.0, 3000.0)])
    def test_slow_pages_are_made_less_often(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, pause: float
    ) -> None:
        """A page of t seconds is followed by 50 t without one: 2 % of the time."""
        clock, begun = [0.0], list[float]()

        def write(*_: object, **__: object) -> None:
            begun.append(clock[0])
            clock[0] += seconds

        monkeypatch.setattr(run_report, "write_report_page", write)
        page = RunningPage(lambda _: None, now=lambda: clock[0])
        while clock[0] < 10_000:
            page(tmp_path)
            clock[0] += 1.0
        assert len(begun) > 2
        assert {after - before for before, after in pairwise(begun)} == {seconds + pause}

    def test_one_that_fails_is_told_and_not_tried_again(self, tmp_path: Path) -> None:
        clock, notes = [0.0], list[str]()
        page, run = RunningPage(notes.append, now=lambda: clock[0]), make_run(tmp_path / "run", [make_look(0)])
        (run / "report.html").write_text("mine")
        for clock[0] in (300.0, 600.0, 6000.0):
            page(run)
        assert (run / "report.html").read_text() == "mine"
        assert len(notes) == 1
        assert "is not overwritten" in notes[0]
