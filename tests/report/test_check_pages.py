"""The pages of an audit and of a split check: the verdict that findings make, the pictures, and commands that work."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from page_cases import read_banner
from sizes import around
from test_split_figure import comparison, make_measures

from ssl_seg.data.audit.doctor import Audit, audit
from ssl_seg.data.findings import Finding
from ssl_seg.data.splits.files import load_split, save_split
from ssl_seg.report import check_pages
from ssl_seg.report.audit_figure import Sample, paint_sample
from ssl_seg.report.check_pages import make_audit_page
from ssl_seg.report.check_tables import describe_summary
from ssl_seg.report.figures import MOST_POINTS, class_color, draw_panels
from ssl_seg.report.page import Page, render_page
from ssl_seg.report.split_figure import make_split_panels


@pytest.fixture(scope="module")
def audited(particles_dir: Path) -> Audit:
    return audit(str(particles_dir))


def make_page(audited: Audit, findings: Sequence[Finding]) -> Page:
    return make_audit_page(replace(audited, findings=tuple(findings)), "ssl-seg train", "ssl-seg data audit")


@pytest.mark.parametrize(("longest", "words"), [(999, "256..999"), (1000, "256..1000"), (10240, "256..10240")])
def test_sizes_are_whole_numbers_of_voxels(audited: Audit, longest: int, words: str) -> None:
    shapes = {"different": 2, "min": [256, 256], "median": [320.5, 256], "max": [longest, 256]}
    assert (
        describe_summary({**audited.summary, "shapes": shapes})["size"]
        == f"{words} x 256 (median 320.5 x 256); 2 sizes"
    )


FAULT, WARNING, INFO = (Finding(f"a_{level}", level, f"some {level}", ("x",)) for level in ("fault", "warn", "info"))


@pytest.mark.parametrize(
    ("findings", "state", "title", "command"),
    [
        ([], "healthy", "Ok: ", "ssl-seg train"),
        ([INFO], "healthy", "Ok: ", "ssl-seg train"),
        ([INFO, WARNING], "warning", "This data can be used, with 1 warning", "ssl-seg train"),
        ([WARNING, FAULT, FAULT], "fault", "2 faults: ", "ssl-seg data audit"),
    ],
)
def test_the_worst_finding_makes_the_verdict(
    audited: Audit, monkeypatch: pytest.MonkeyPatch, findings: list[Finding], state: str, title: str, command: str
) -> None:
    monkeypatch.setattr(check_pages, "read_samples", lambda *_: [])
    monkeypatch.setattr(check_pages, "make_charts", lambda _: [])
    page = make_page(audited, findings)
    assert page.banner is not None
    assert (page.banner.state, page.banner.commands) == (state, (command,))
    assert page.banner.title.startswith(title)
    assert page.banner.reasons[0] == "24 images, 20 of them with a mask."
    named = [reason for reason in page.banner.reasons if reason.startswith(("Fault: ", "Warning: "))]
    assert named == ["Fault: some fault"] * findings.count(FAULT) + ["Warning: some warn"] * findings.count(WARNING)
    tables = [table for section in page.sections if section.title == "Findings" for table in section.tables]
    assert [row[0] for table in tables for row in table.rows] == sorted(
        (finding.level for finding in findings), key=["fault", "warn", "info"].index
    )


@pytest.mark.parametrize("count", around(check_pages._REASONS))
def test_what_the_verdict_does_not_name_is_counted(count: int) -> None:
    banner = check_pages._judge("split", [WARNING] * count, "", "", "", "")
    more = count - check_pages._REASONS
    assert banner.reasons.count("Warning: some warn") == min(count, check_pages._REASONS)
    assert any(reason.startswith(f"{more} other finding") for reason in banner.reasons) == (more > 0)


def test_the_page_of_an_audit_has_pictures_charts_and_figures(audited: Audit) -> None:
    page = make_page(audited, audited.findings)
    assert [section.title for section in page.sections] == ["Cases", "Findings", "What is in it"]
    (row,) = page.sections[0].rows
    assert len(row.pictures) == check_pages.AUDIT_CASES
    assert sum("no mask" in picture.title for picture in row.pictures) == 3
    assert {drawing.title for drawing in page.sections[2].drawings} >= {"Share of foreground", "Mask values"}
    assert len(render_page(page)) < 1_000_000


def test_outlines_are_drawn_inside_their_class() -> None:
    target = np.zeros((40, 40), int)
    target[10:30, 10:30] = 1
    painted = paint_sample(Sample("a", np.tile(np.arange(40.0), (40, 1)), target))
    outlined = (painted == class_color(1)).all(axis=-1)
    inner = np.zeros_like(outlined)
    inner[11:29, 11:29] = True
    np.testing.assert_array_equal(outlined, (target == 1) & ~inner)
    assert len(np.unique(painted[~outlined])) > 30
    assert not (paint_sample(Sample("a", np.ones((40, 40, 3)), None)) == class_color(1)).all(axis=-1).any()
    assert np.unique(paint_sample(Sample("a", None))).tolist() == [0.5]


@pytest.mark.parametrize("count", around(MOST_POINTS))
def test_many_points_are_pixels_of_one_image(count: int) -> None:
    first = replace(make_measures(intensity=False)[0], foreground=comparison([*np.linspace(0, 1, count)], 0.5))
    (drawing,) = draw_panels(make_split_panels([first]))
    assert ("<image" in drawing.html) == (count > MOST_POINTS)


def test_a_set_without_masks_draws_nothing() -> None:
    assert make_split_panels([]).panels == ()


def test_the_command_line_writes_pages_whose_next_command_works(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    data, page, split = tmp_path / "the data", tmp_path / "p.html", tmp_path / "s.yaml"
    shutil.copytree(particles_dir, data)
    (data / "images" / "odd.png").write_text("no image")
    audit_command = ("data", "audit", data, "--set", "data.label_values=[0, 1]", "--report", page)
    code, shown, _ = cli(*audit_command)
    assert (code, shown.splitlines()[-1]) == (2, f"wrote {page}")
    state, commands = read_banner(page.read_text())
    assert state == "fault"
    assert shlex.split(commands[0]) == ["ssl-seg", *map(str, audit_command)]
    (data / "images" / "odd.png").unlink()
    assert cli(*shlex.split(commands[0])[1:])[0] == 0
    state, commands = read_banner(page.read_text())
    assert state == "healthy"
    train = ["ssl-seg", "train", "--data", str(data), "--set", "data.label_values=[0, 1]"]
    assert shlex.split(commands[0]) == train

    cli("split", "make", "--data", data, "--labels", 0.5, "--near-copies", "ignore", "--out", split)
    made = load_split(split)
    save_split(replace(made, val=(*made.val, made.test[0])), tmp_path / "leak.yaml")
    check = ("--data", data, "--near-copies", "ignore", "--report", page)
    assert cli("split", "check", tmp_path / "leak.yaml", *check)[0] == 2
    state, commands = read_banner(page.read_text())
    assert state == "fault"
    assert cli(*shlex.split(commands[0])[1:])[0] == 0
    assert load_split(tmp_path / "leak_new.yaml").fingerprint == made.fingerprint
    assert cli("split", "check", split, *check)[0] == 0
    state, commands = read_banner(page.read_text())
    assert state == "warning"  # few validation cases
    wanted = ["ssl-seg", "train", "--data", str(data), "--split", str(split), "--set", "split.near_copies=ignore"]
    assert shlex.split(commands[0]) == wanted


def test_a_page_takes_no_other_file(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    (mine := tmp_path / "mine.html").write_text("<html>")
    for path, said in ((mine, "is not overwritten"), (tmp_path / "a.png", "name a file such as a.html")):
        code, shown, errors = cli("data", "audit", particles_dir, "--report", path)
        assert (code, shown) == (2, "")
        assert said in errors
    assert mine.read_text() == "<html>"
