"""What pictures, tables and progress show of many things, on both sides of each limit."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from sizes import around
from test_schedule_figure import make_config

from ssl_seg.cli import data_batches
from ssl_seg.cli.ablate_view import make_table
from ssl_seg.cli.evaluate_tables import cut_middle
from ssl_seg.config.curves import POINTS, compute_curves
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.store import CaseStore
from ssl_seg.diagnose.result import ImageFigures, Moments
from ssl_seg.report.audit_figure import COLUMNS, SHOWN, Sample, choose_cases, plot_audit
from ssl_seg.report.diagnosis_figures import _MARKERS, _styles
from ssl_seg.report.figures import class_color
from ssl_seg.report.probe_figure import _colors
from ssl_seg.studies.ablation.cells import CellFolder
from ssl_seg.studies.ablation.execute import CellState

# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", around(SHOWN))
@pytest.mark.parametrize("faulty", [0, SHOWN // 2 - 1, SHOWN // 2, SHOWN // 2 + 1, 200])
def test_a_picture_shows_so_many_cases_and_both_ends_of_the_foreground(count: int, faulty: int) -> None:
    shares: dict[str, float | None] = {f"{n:03d}": n / 1000 for n in range(count)}
    first, others = choose_cases(shares, [f"bad{n}" for n in range(faulty)])
    assert first == [f"bad{n}" for n in range(min(faulty, SHOWN // 2))]
    assert len(first) + len(others) == min(count + len(first), SHOWN)
    assert len({*first, *others}) == len(first) + len(others)
    assert {others[0], others[-1]} == {"000", f"{count - 1:03d}"}


@pytest.mark.parametrize("samples", around(COLUMNS))
def test_every_sample_has_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr("ssl_seg.report.audit_figure.save_figure", lambda figure, _: drawn.append(figure))
    plot_audit([Sample(f"case {n}", None) for n in range(samples)], [], tmp_path / "a.png")
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_title()]
    assert titles == [f"case {n}" for n in range(samples)]
    assert len(drawn[0].axes) == -(-samples // COLUMNS) * COLUMNS


@pytest.mark.parametrize("count", around(8))
def test_classes_and_losses_have_colors_of_their_own(count: int) -> None:
    """There are 13 losses; classes may be many."""
    assert len({to_hex(class_color(index)) for index in range(1, count + 1)}) == count
    assert len({to_hex(color) for color in _colors(min(count, 20))}) == min(count, 20)


@pytest.mark.parametrize("shapes", around(len(_MARKERS)))
def test_rare_shapes_share_the_last_marker(shapes: int) -> None:
    images = [
        ImageFigures(f"{s}-{n}", "val", (8, 8 + s), Moments(0, 0, 0, 0), None, 0.5, None, None)
        for s in range(shapes)
        for n in range(shapes - s)
    ]
    styles = _styles(images)
    looks = {style["label"]: (style["marker"], style["color"]) for style in styles.values()}
    assert len(set(looks.values())) == len(looks) == min(shapes, len(_MARKERS))
    others = shapes - len(_MARKERS) + 1
    if others > 1:
        assert f"{others} other shapes ({others * (others + 1) // 2})" in looks


@pytest.mark.parametrize("labeled", around(data_batches.SHOWN_PATCHES))
@pytest.mark.parametrize(("unlabeled", "fewest"), [(0, None), (1, None), (5, None), (2, 1)])
def test_so_many_patches_of_each_kind_are_drawn(
    particles_dir: Path, monkeypatch: pytest.MonkeyPatch, labeled: int, unlabeled: int, fewest: int | None
) -> None:
    catalog = open_catalog(str(particles_dir))
    ids, others = (tuple(c.id for c in cases) for cases in (catalog.labeled, catalog.unlabeled))
    source = PatchSource(CaseStore(catalog, 1), ids, others, (labeled, unlabeled), (16, 16), 0.0, fewest=fewest)
    drawn: list[tuple[Any, ...]] = []
    monkeypatch.setattr("ssl_seg.report.views_figure.plot_views", lambda *patches: drawn.append(patches))
    data_batches._draw(source, Path("unused.png"))
    wanted = data_batches.SHOWN_PATCHES
    assert [len(patches) for patches in drawn[0][:2]] == [wanted, wanted if unlabeled else 0]
    assert [p.title for p in drawn[0][0]] == [i for n in range(9) for i in source[n].case_ids[: len(source[n].image)]][
        :4
    ]


# --- tables and progress --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", around(6))
def test_a_long_table_has_both_ends_and_says_how_many_are_between(count: int) -> None:
    rows = [{"case": str(n), "dice": "x"} for n in range(count)]
    shown = cut_middle(rows, 6)
    if count <= 6:
        assert shown == rows
    else:
        assert shown == [*rows[:3], {"case": f"... ({count - 6} more)"}, *rows[-3:]]


@pytest.mark.parametrize("count", around(5))
def test_a_live_table_says_how_many_cells_have_no_row(count: int) -> None:
    cell = SimpleNamespace(id="a", name="cell", steps=10)
    states = [CellState(cell, "queued", 0, None, "") for _ in range(count)]  # type: ignore[arg-type]
    names = list(make_table(states, 5).columns[0].cells)
    assert names == ["cell"] * min(count, 5) + [f"... and {count - 5} more"] * (count > 5)


@pytest.fixture
def folder(tmp_path: Path) -> CellFolder:
    found = CellFolder(tmp_path)
    found.run.path.mkdir(parents=True)
    return found


@pytest.mark.parametrize("size", around(40))
def test_the_latest_record_is_found_at_the_end_of_a_file_of_any_length(folder: CellFolder, size: int) -> None:
    """Lines of 10 bytes, the end of 40 read: fewer than these, all, one byte more, several times as many."""
    lines = [f'{{"n":{n:3d}}}\n' for n in range(20)]
    assert {len(line) for line in lines} == {10}
    text = "".join(lines)[-size:]
    (folder.run.path / "metrics.jsonl").write_text(text)
    assert folder.run.read_last_metrics(tail=40) == {"n": 19}
    (folder.run.path / "metrics.jsonl").write_text(text + '{"n": 2')
    assert folder.run.read_last_metrics(tail=40) == {"n": 19}, "the last line is being written"


@pytest.mark.parametrize(("length", "is_read"), [(39, True), (40, True), (41, False)])
def test_a_record_longer_than_the_end_is_left_out(folder: CellFolder, length: int, is_read: bool) -> None:
    record = {"n": "x" * (length - len('{"n": ""}\n'))}
    (folder.run.path / "metrics.jsonl").write_text('{"n": 0}\n' + json.dumps(record) + "\n")
    assert folder.run.read_last_metrics(tail=40) == (record if is_read else {})


# --- curves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", around(POINTS))
def test_all_steps_of_a_short_run_are_looked_at_and_few_of_a_long_one(steps: int) -> None:
    curves = compute_curves(make_config(f"length.steps={steps}", "length.steps_per_epoch=100", "optim.warmup_steps=10"))
    assert curves.steps[0] == 0
    assert curves.steps[-1] == steps - 1
    assert list(curves.steps) == sorted(set(curves.steps))
    if steps <= POINTS:
        assert curves.steps == tuple(range(steps))
    else:
        assert len(curves.steps) == POINTS
        gaps = {after - before for before, after in zip(curves.steps, curves.steps[1:], strict=False)}
        assert gaps <= {steps // POINTS, steps // POINTS + 1}
