from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from matplotlib.figure import Figure
from typer.testing import CliRunner

from ssl_seg.cli.data_batches import data_batches
from ssl_seg.config import AugmentConfig
from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.loader import Batch, PatchSource
from ssl_seg.data.store import CaseStore
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.diagnose.batches import Contents, Expected, compute_expected, measure_batch, summarize_batches
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.report.views_figure import LabeledPatch, StrongView, UnlabeledPatch, plot_views

PLAIN = Contents(labeled=4, unlabeled=4, voxels=4000, valid=4000, foreground=400, positive_patches=4, from_positive=4)
EXPECTED = Expected(
    counts=(4, 4),
    positive=frozenset("abc"),
    positive_cases=1.0,
    foreground=0.1,
    most_foreground=0.1,
    centered=0.0,
    ratio=None,
    reachable=1.0,
    positive_weight=1.0,
)


def codes(contents: Sequence[Contents], expected: Expected = EXPECTED) -> list[str]:
    return [finding.code for finding in summarize_batches(contents, expected)[1]]


def test_a_share_that_is_missed_is_told_with_how_near_it_comes() -> None:
    wanted = replace(EXPECTED, share=0.5, foreground=0.5, most_foreground=0.5)
    (found,) = summarize_batches([PLAIN], wanted)[1]
    assert found.code == "share_missed"
    assert "= 0.5 is out of reach: the batches hold 10.0% of foreground" in found.message
    assert codes([replace(PLAIN, foreground=1900)], wanted) == []


def test_contents_of_a_batch_counted_by_hand() -> None:
    target = torch.tensor([[[0, 2], [1, IGNORE_INDEX]], [[0, 0], [0, 0]], [[IGNORE_INDEX] * 2] * 2])
    nothing = torch.zeros(2, 1, 2, 2)
    batch = Batch(torch.zeros(3, 1, 2, 2), target, nothing, (nothing,), ("a", "b", "a", "c", "a"))
    found = measure_batch(batch, frozenset("ac"))
    assert found == Contents(
        labeled=3,
        unlabeled=2,
        voxels=12,
        valid=7,
        foreground=2,
        positive_patches=1,
        from_positive=2,
        cases=frozenset("abc"),
    )
    both = (found + replace(found, cases=frozenset("d"))).to_dict()
    assert both == {
        "labeled": 6,
        "unlabeled": 4,
        "cases": 4,
        "foreground": 4 / 14,
        "positive_patches": 2 / 6,
        "from_positive_cases": 4 / 6,
        "ignored": 10 / 24,
    }


def test_a_share_of_nothing_is_none() -> None:
    figures = Contents().to_dict()
    assert figures["foreground"] is figures["positive_patches"] is figures["ignored"] is None


@pytest.mark.parametrize(
    ("share", "found"),
    [(0.1, []), (0.011, []), (0.009, ["too_little_foreground"]), (0.199, []), (0.201, ["too_much_foreground"])],
)
def test_limits_of_the_published_recipe(share: float, found: list[str]) -> None:
    """Of 10 % expected, below 1 % the sampler does not work and above 20 % it samples too much."""
    assert codes([replace(PLAIN, foreground=round(share * 4000))] * 10) == found


def test_centered_patches_may_hold_more() -> None:
    rich = [replace(PLAIN, foreground=1600)] * 10
    assert codes(rich) == ["too_much_foreground"]
    assert codes(rich, replace(EXPECTED, most_foreground=0.3)) == []


@pytest.mark.parametrize(
    ("contents", "expected", "found"),
    [
        ({"foreground": 0, "positive_patches": 0}, {}, ["no_positive_patch"]),
        ({"foreground": 0, "positive_patches": 0}, {"positive": frozenset(), "foreground": 0.0}, ["no_positive_case"]),
        ({"unlabeled": 0}, {}, ["unlabeled_count"]),
        ({"labeled": 3, "from_positive": 3}, {}, ["labeled_count"]),
        ({"voxels": 8001}, {}, ["mostly_ignored"]),
        ({"voxels": 8000}, {}, []),
        ({"from_positive": 2}, {"ratio": 0.5, "reachable": 0.5}, []),
        ({"from_positive": 2}, {"ratio": 0.58, "reachable": 0.58}, ["ratio_missed"]),
        ({"from_positive": 2}, {"ratio": 0.56, "reachable": 0.56}, []),
        ({"from_positive": 2}, {"ratio": 0.42, "reachable": 0.42}, ["ratio_missed"]),
        ({"from_positive": 2}, {"ratio": None, "reachable": 0.9}, []),
        ({}, {"ratio": 0.5, "reachable": 1.0}, ["ratio_out_of_reach"]),
        ({"positive_patches": 1}, {"centered": 0.5}, ["few_positive_patches"]),
        ({"positive_patches": 2}, {"centered": 0.5}, []),
        ({"positive_patches": 1, "from_positive": 1}, {"centered": 0.5}, []),
    ],
)
def test_each_rule(contents: dict[str, int], expected: dict[str, object], found: list[str]) -> None:
    assert codes([PLAIN] * 10) == []
    assert codes([replace(PLAIN, **contents)] * 10, replace(EXPECTED, **expected)) == found  # type: ignore[arg-type]


def test_one_odd_batch_is_named() -> None:
    _, findings = summarize_batches([PLAIN, replace(PLAIN, unlabeled=3)], EXPECTED)
    assert [f.message for f in findings] == ["batch.unlabeled = 4, but the batches hold 3, 4"]
    _, findings = summarize_batches([replace(PLAIN, unlabeled=0)], EXPECTED)
    assert findings[0].message.endswith("there are no unlabeled cases")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("data") / "particles"
    write_dataset(folder, "particles", 8, labeled=6)
    for path in sorted((folder / "masks").iterdir())[:2]:  # two negatives
        empty_mask(path)
    return open_catalog(str(folder))


def empty_mask(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), np.zeros_like(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


@pytest.fixture
def source(catalog: Catalog) -> PatchSource:
    ids = tuple(c.id for c in catalog.labeled)
    positive = frozenset(i for i in ids if catalog.facts[i].foreground)
    unlabeled = tuple(c.id for c in catalog.unlabeled)
    return PatchSource(CaseStore(catalog, 1), ids, unlabeled, (4, 2), (64, 64), 0.0, positive=positive)


def test_expected_shares_are_those_of_the_masks(source: PatchSource, catalog: Catalog) -> None:
    shares = {i: float((np.asarray(source.store.load(i).target) > 0).mean()) for i in source.labeled}
    positives = [share for share in shares.values() if share]
    assert len(positives) == 4
    plain = compute_expected(source, catalog.facts)
    assert plain.positive == source.positive
    assert plain.positive_cases == plain.reachable == pytest.approx(4 / 6)
    assert plain.foreground == plain.most_foreground == pytest.approx(np.mean(list(shares.values())))
    half = compute_expected(replace(source, positive_ratio=0.5, foreground_ratio=0.3), catalog.facts)
    assert half.reachable == 0.5
    assert half.foreground == pytest.approx(np.mean(positives) / 2)
    filled = np.mean([min(1, share * 1.4**2 * 128 * 128 / 64**2) for share in positives])
    assert half.most_foreground == pytest.approx(0.7 * half.foreground + 0.3 * filled)
    none = compute_expected(replace(source, labeled=tuple(set(source.labeled) - source.positive)), catalog.facts)
    assert (none.foreground, none.reachable, none.positive) == (0, 0, frozenset())


@pytest.mark.parametrize("options", [{}, {"positive_ratio": 0.5}, {"foreground_ratio": 0.5}, {"copy_paste": 1.0}])
def test_real_batches_are_as_expected(source: PatchSource, catalog: Catalog, options: dict[str, float]) -> None:
    sampling = {key: value for key, value in options.items() if key != "copy_paste"}
    augment = AugmentConfig(copy_paste=options.get("copy_paste", 0.0))
    source = replace(source, augment=augment, **sampling)  # type: ignore[arg-type]
    expected = compute_expected(source, catalog.facts)
    summary, findings = summarize_batches([measure_batch(source[k], expected.positive) for k in range(20)], expected)
    assert findings == []
    assert summary["total"]["from_positive_cases"] == pytest.approx(expected.reachable, abs=0.03)
    if not options:
        assert summary["total"]["foreground"] == pytest.approx(expected.foreground, rel=0.3)


def test_a_sampler_that_misses_the_foreground_is_seen(source: PatchSource, catalog: Catalog) -> None:
    """Negative control: batches of the two negatives alone, measured against the labeled cases."""
    expected = compute_expected(source, catalog.facts)
    blind = replace(source, positive_ratio=0.0)
    found = [measure_batch(blind[k], expected.positive) for k in range(5)]
    assert "no_positive_patch" in codes(found, expected)


def test_figure_shows_views_and_outlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    volume = np.zeros((5, 12, 16), np.float32)
    volume[2] = np.arange(16)
    target = np.zeros(volume.shape, np.int64)
    target[2, 3:7, 4:10], target[2, :2] = 1, IGNORE_INDEX
    mixed = np.zeros(volume.shape, bool)
    mixed[2, 5:9, 2:6] = True
    plain = StrongView(volume, None)
    unlabeled = [
        UnlabeledPatch("u", volume, (StrongView(volume + 1, mixed), plain)),
        UnlabeledPatch("v", volume, (plain,)),
    ]
    path = tmp_path / "new" / "views.png"
    plot_views([LabeledPatch("a", volume, target)], unlabeled, path)
    assert path.stat().st_size > 1000
    axes = np.array(saved[0].axes).reshape(2, 5)
    labeled, weak, strong = (axes[0, column].images[0].get_array() for column in (0, 2, 3))
    np.testing.assert_allclose(labeled, volume[2] / 15)
    np.testing.assert_allclose(weak, volume[2] / 15)
    np.testing.assert_allclose(strong, ((volume[2] + 1) / 15).clip(max=1), err_msg="on the scale of the weak view")
    for axis, (low, high) in ((axes[0, 1], ((3.5, 2.5), (9.5, 6.5))), (axes[0, 3], ((1.5, 4.5), (5.5, 8.5)))):
        vertices = np.concatenate([p.vertices for p in axis.collections[0].get_paths()])
        np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [low, high])
    assert not axes[1, 3].collections
    assert [axis.get_title() for axis in axes[:, 4]] == ["strong view 2", ""]
    assert not axes[1, 0].images
    with pytest.raises(DataError, match="exists already"):
        plot_views([], unlabeled, path)


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(data_batches)
    return app


def test_command(command: typer.Typer, catalog: Catalog, tmp_path: Path) -> None:
    picture = tmp_path / "views.png"
    settings = ["--set", "data.patch_size=[32,32]", "--set", "batch.labeled=3", "--set", "split.test_fraction=0"]
    arguments = ["--data", catalog.root, "--n", "3", *settings]
    result = CliRunner().invoke(command, [*arguments, "--json", "--figure", str(picture)], catch_exceptions=False)
    shown = json.loads(result.stdout)
    assert set(shown) == {"findings", "summary"}
    assert [one["labeled"] for one in shown["summary"]["batches"]] == [3, 3, 3]
    assert shown["summary"]["total"]["labeled"] == 9
    assert picture.is_file()
    table = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    assert "expected" in table
    assert f"{shown['summary']['total']['foreground']:.2%}" in table
    for finding in shown["findings"]:
        assert finding["code"] in table
    with pytest.raises(DataError, match="exists already"):
        CliRunner().invoke(command, [*arguments, "--figure", str(picture)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="unknown key"):
        CliRunner().invoke(command, [*arguments, "--set", "batch.positiv=1"], catch_exceptions=False)


@pytest.mark.parametrize(("folder", "foreground_below"), [("emps_dir", 0.6), ("la_half_dir", 0.4)])
def test_real_images_give_no_warning(
    folder: str, foreground_below: float, command: typer.Typer, request: pytest.FixtureRequest
) -> None:
    root = request.getfixturevalue(folder)
    patch = "[64,64]" if folder == "emps_dir" else "[16,48,48]"
    arguments = ["--data", str(root), "--labels", "0.1", "--n", "8", "--set", f"data.patch_size={patch}", "--json"]
    shown = json.loads(CliRunner().invoke(command, arguments, catch_exceptions=False).stdout)
    assert shown["findings"] == []
    total, expected = shown["summary"]["total"], shown["summary"]["expected"]
    assert 0.2 * expected["foreground"] < total["foreground"] < foreground_below
