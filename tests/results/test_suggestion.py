"""Which images are suggested to be labeled next: only those that may be, and by the score that is said."""

from __future__ import annotations

import csv
import hashlib
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ssl_seg.data.content import make_content
from ssl_seg.data.open import open_data
from ssl_seg.data.splits.split import Split
from ssl_seg.data.volumes import read_mask
from ssl_seg.errors import ConfigError, DataError
from ssl_seg.inference.model import open_model
from ssl_seg.networks.builders import NETWORKS, build_network
from ssl_seg.results.suggestion import (
    SuggestRequest,
    choose_far,
    choose_stratified,
    find_candidates,
    find_exponent,
    find_highest_mean,
    measure_uncertainty,
    open_pool,
    pooled_features,
    suggest,
)


def content_of(name: str) -> str:
    return make_content(hashlib.sha256(name.encode()).hexdigest(), None)


def make_split(**parts: tuple[str, ...]) -> Split:
    given = {"labeled": ("a",), "unlabeled": (), "val": ("v",), "test": ("t",)} | parts
    ids = [i for own in given.values() for i in own]
    return Split(
        "data", 0, {1.0: given["labeled"]}, given["unlabeled"], given["val"], given["test"], {},
        {i: content_of(i) for i in ids}, (),
    )  # fmt: skip


def make_catalog(split: Split, masks: tuple[str, ...], **contents: str) -> Any:
    content = split.content | contents
    unlabeled = tuple(SimpleNamespace(id=i) for i in content if i not in masks)
    return SimpleNamespace(unlabeled=unlabeled, facts={i: SimpleNamespace(content=c) for i, c in content.items()})


class TestCandidates:
    def test_images_without_a_mask_of_the_training_list_alone(self) -> None:
        split = make_split(unlabeled=("u1", "u2", "u3"))
        assert find_candidates([split], make_catalog(split, ())) == ("u1", "u2", "u3"), "no mask of v, t and a counts"
        assert find_candidates([split], make_catalog(split, ("u2",))) == ("u1", "u3"), "u2 has been labeled since"
        assert find_candidates([split], make_catalog(split, (), new=content_of("new"))) == ("u1", "u2", "u3")

    @pytest.mark.parametrize("held", ["v", "t"])
    def test_a_copy_of_a_held_out_image_is_none(self, held: str) -> None:
        split = make_split(unlabeled=("u1", "u2"))
        assert find_candidates([split], make_catalog(split, (), u1=split.content[held])) == ("u2",)

    def test_of_several_networks_what_none_of_them_holds_out(self) -> None:
        first, second = make_split(unlabeled=("u1", "u2")), make_split(unlabeled=("u2",), val=("u1",))
        assert find_candidates([first, second], make_catalog(first, ())) == ("u2",)


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=3, max_side=6), elements=st.floats(0, 1)), st.data())
def test_the_highest_mean_is_that_of_all_boxes(values: np.ndarray[Any, Any], data: st.DataObject) -> None:
    size = [data.draw(st.integers(1, 8)) for _ in values.shape]
    box = [min(own, n) for own, n in zip(size, values.shape, strict=True)]
    starts = product(*(range(n - own + 1) for own, n in zip(box, values.shape, strict=True)))
    means = [values[tuple(slice(a, a + own) for a, own in zip(start, box, strict=True))].mean() for start in starts]
    assert find_highest_mean(values, size) == pytest.approx(max(means), abs=1e-9)


def test_uncertainty_is_entropy_and_for_a_class_its_share_of_it() -> None:
    probs = np.zeros((3, 8, 8))
    probs[0] = 1
    assert measure_uncertainty(probs, (4, 4)) == pytest.approx([0, 0, 0])
    probs[:, 2:4, 2:4] = 1 / 3
    assert measure_uncertainty(probs, (2, 2)) == pytest.approx([1, 1 / 3, 1 / 3])
    assert measure_uncertainty(probs, (4, 4)) == pytest.approx([1 / 4, 1 / 12, 1 / 12])
    probs[:, 2:4, 2:4] = np.array([0.5, 0.0, 0.5])[:, None, None]
    assert measure_uncertainty(probs, (2, 2)) == pytest.approx([np.log(2) / np.log(3), 0, np.log(2) / np.log(3) / 2])


SCORES = {f"i{n}": {"1": n / 50, "2": (49 - n) / 50, "all": 1.0 if 20 <= n < 30 else 0.01} for n in range(50)}


class TestStratified:
    def test_the_shares_of_the_source_and_no_image_twice(self) -> None:
        for count in (1, 2, 10, 20, 49, 50, 80):
            chosen = choose_stratified(SCORES, ["1", "2"], "all", count, 1.0, np.random.default_rng(0))
            assert len(chosen) == min(count, 50)
            reasons = list(chosen.values())
            assert reasons.count("all") == min(count, 50) - round(0.66 * min(count, 50))
            assert 0 <= reasons.count("1") - reasons.count("2") <= 1

    def test_with_a_sharp_exponent_the_highest_of_each_class(self) -> None:
        chosen = choose_stratified(SCORES, ["1", "2"], "all", 6, 1e6, np.random.default_rng(0))
        assert chosen == {"i49": "1", "i48": "1", "i0": "2", "i1": "2"} | {
            i: "all" for i, reason in chosen.items() if reason == "all"
        }
        assert all(20 <= int(i[1:]) < 30 for i, reason in chosen.items() if reason == "all")

    def test_draws_are_in_proportion_to_the_score(self) -> None:
        scores = {"rare": {"1": 0.1, "all": 0.1}, "often": {"1": 0.3, "all": 0.3}, "never": {"1": 0.0, "all": 0.0}}
        rng = np.random.default_rng(0)
        drawn = [next(iter(choose_stratified(scores, ["1"], "all", 1, 1.0, rng))) for _ in range(4000)]
        assert drawn.count("often") / 4000 == pytest.approx(0.75, abs=0.03)  # 4.4 standard errors
        assert "never" not in drawn

    def test_noise_falls_from_the_first_to_the_fifth_round(self) -> None:
        assert [find_exponent(n) for n in (1, 3, 5, 9)] == pytest.approx([1, 10, 100, 100])


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.just(2)), elements=st.integers(-9, 9).map(float)),
       arrays(np.float64, st.tuples(st.integers(1, 4), st.just(2)), elements=st.integers(-9, 9).map(float)),
       st.integers(1, 10))  # fmt: skip
def test_each_choice_is_the_farthest_from_all_before(
    new: np.ndarray[Any, Any], known: np.ndarray[Any, Any], count: int
) -> None:
    chosen = choose_far(new, known, count)
    assert len({row for row, _ in chosen}) == len(chosen) == min(count, len(new))
    centers = list(known)
    for row, distance in chosen:
        reach = [min(float(np.linalg.norm(own - center)) for center in centers) for own in new]
        assert distance == pytest.approx(max(reach))
        assert reach[row] == pytest.approx(max(reach))
        centers.append(new[row])


def test_without_a_labeled_image_the_first_choice_is_far_from_the_mean() -> None:
    new = np.array([[0.0], [1.0], [2.0], [10.0]])
    assert [row for row, _ in choose_far(new, np.zeros((0, 1)), 3)] == [3, 0, 2]


@pytest.mark.parametrize("name", NETWORKS)
def test_features_of_the_bottleneck_are_pooled_over_windows(name: str) -> None:
    torch.manual_seed(0)
    net = build_network(name, ndim=2, channels=1, num_classes=2, patch_size=(64, 64)).eval()
    windows = torch.randn(3, 1, 64, 64)
    with torch.no_grad(), pooled_features(net, name) as read:
        net(windows[:2])
        net(windows[2:])
        both = read()
        net(windows[:1])
        one = read()
    assert both.ndim == 1
    assert len(both) >= 8
    assert np.isfinite(both).all()
    assert not np.allclose(one, both)


def test_features_of_an_encoder_are_the_means_of_its_coarsest_level() -> None:
    net = cast("Any", build_network("encoder_unet", ndim=2, channels=1, num_classes=2, patch_size=(64, 64)).eval())
    windows = torch.randn(1, 1, 64, 64)
    with torch.no_grad(), pooled_features(net, "encoder_unet") as read:
        net(windows)
        assert read() == pytest.approx(net.encode(windows)[-1].double().mean(dim=(0, 2, 3)).numpy(), abs=1e-6)


@pytest.fixture(scope="module")
def stripped(particles_dir: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the tiny run, without the masks of a labeled, a validation and all test cases."""
    folder = tmp_path_factory.mktemp("stripped") / "particles"
    shutil.copytree(particles_dir, folder, ignore=shutil.ignore_patterns(".ssl_seg"))
    split = read_split(tiny_run)
    for case_id in (split.fractions[1.0][0], split.val[0], *split.test):
        (mask,) = (folder / "masks").glob(f"{case_id}.*")
        mask.unlink()
    return folder


def read_split(run: Path) -> Split:
    from ssl_seg.data.splits.files import split_from_dict

    return split_from_dict(open_model(run / "checkpoints" / "best.pt").checkpoint.split)


@pytest.mark.parametrize("strategy", ["clasp_pe", "diversity", "random"])
def test_no_case_of_validation_or_test_is_suggested_even_without_its_mask(
    tiny_run: Path, stripped: Path, strategy: Any
) -> None:
    request = SuggestRequest(tiny_run / "checkpoints" / "best.pt", str(stripped), 100, strategy)
    pool = open_pool(request)
    found = suggest(pool, request)
    assert sorted(own.case_id for own in found) == sorted(read_split(tiny_run).unlabeled)
    assert len(pool.store.catalog.unlabeled) > len(found) > 1
    assert found == suggest(pool, request), "the same seed gives the same"
    fewer = suggest(pool, replace(request, count=2))
    assert len(fewer) == 2


def test_what_cannot_be_asked_for(tiny_run: Path, particles_dir: Path) -> None:
    request = SuggestRequest(tiny_run / "checkpoints" / "best.pt", str(particles_dir), 0)
    with pytest.raises(ConfigError, match="count = 0"):
        suggest(open_pool(request), request)


class TestCommand:
    def test_the_copied_folder_is_read_as_data(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        table, picture, copied = tmp_path / "new" / "s.csv", tmp_path / "s.png", tmp_path / "to_label"
        arguments = ("--count", 3, "--csv", table, "--figure", picture, "--copy", copied)
        code, out, err = cli("suggest", tiny_run, *arguments)
        assert code == 0, err
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        ids = [row["image"] for row in rows]
        assert len(ids) == 3
        assert set(ids) <= set(read_split(tiny_run).unlabeled)
        assert all(i in out for i in ids)
        assert picture.stat().st_size > 0
        again = open_data({"root": str(copied)})
        assert [case.id for case in again.labeled] == sorted(ids)
        assert again.unlabeled == ()
        assert set(again.label_values) <= set(open_data({"root": str(particles_dir)}).label_values)
        refused = cli("suggest", tiny_run, "--copy", copied)
        assert refused[0] == 2
        assert "not overwritten" in refused[2]

    def test_the_table_has_the_foreground_of_the_copied_masks(self, cli: Cli, tiny_run: Path, tmp_path: Path) -> None:
        """Before and after a calibration that moves the threshold."""
        run, shares = Path(shutil.copytree(tiny_run, tmp_path / "run")), []
        for name in ("before", "after"):
            code, _, err = cli("suggest", run, "--csv", tmp_path / f"{name}.csv", "--copy", tmp_path / name)
            assert code == 0, err
            with (tmp_path / f"{name}.csv").open(newline="") as file:
                shares.append({row["image"]: float(row["predicted_foreground"]) for row in csv.DictReader(file)})
            masks = open_data({"root": str(tmp_path / name)}).labeled
            written = {case.id: np.mean(read_mask(str(case.mask)) > 0) for case in masks}
            assert written == pytest.approx(shares[-1], abs=1e-5)
            assert cli("calibrate", run, "--for", "recall=0.99")[0] == 0
        assert shares[0] != shares[1]

    def test_nothing_to_label_is_one_clear_message(
        self, cli: Cli, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "labeled"
        shutil.copytree(particles_dir, folder, ignore=shutil.ignore_patterns(".ssl_seg"))
        for case_id in read_split(tiny_run).unlabeled:
            next((folder / "images").glob(f"{case_id}.*")).unlink()
        code, out, err = cli("suggest", tiny_run, "--data", folder)
        assert (code, out) == (2, "")
        message = err.splitlines()[-1]
        assert message.startswith(f"ssl-seg: error: {folder} has no image to suggest")
        assert "train with more labels" in message  # the tiny run has learned from half of them
        assert "Traceback" not in err


def test_only_single_files_are_copied(tmp_path: Path) -> None:
    from ssl_seg.results.suggestion import Suggestion, copy_images

    image = tmp_path / "x.png"
    image.write_bytes(b"x")
    whole = Suggestion("a/x", (str(image),), "all classes", 0.5, 0.5)
    for files in ((str(image), str(image)), (f"{tmp_path / 'data.h5'}::0",)):
        with pytest.raises(DataError, match="not a single file"):
            copy_images([whole, replace(whole, case_id="b", files=files)], tmp_path / "out")
    with pytest.raises(DataError, match="copied to one name"):
        copy_images([whole, replace(whole, case_id="a__x")], tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is copied where something cannot be"
    copy_images([whole], tmp_path / "out")
    assert (tmp_path / "out" / "images" / "a__x.png").read_bytes() == b"x"
