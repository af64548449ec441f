"""Several checkpoints: the mean of their probabilities, and how they compare on the same cases."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from conftest import Cli
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from ssl_seg.data.splits.files import load_split, save_split, split_to_dict
from ssl_seg.data.volumes import read_mask
from ssl_seg.errors import ConfigError, SplitError
from ssl_seg.files import read_jsonl
from ssl_seg.inference.ensemble import check_members, open_members, pool, pool_rows, with_mean
from ssl_seg.inference.model import Model, open_model
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, add_differences, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict


@pytest.fixture(scope="module")
def members(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three networks that disagree: the second and the third are the first with other weights."""
    folder = tmp_path_factory.mktemp("members")
    first = load_checkpoint(tiny_run / "checkpoints" / "last.pt")
    paths = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        nets = {
            name: {
                key: value + 0.2 * seed * value.std() * torch.randn(value.shape, generator=generator)
                if value.is_floating_point() and value.numel() > 1
                else value
                for key, value in getattr(first, name).items()
            }
            for name in ("student", "teacher")
        }
        paths.append(folder / f"m{seed}.pt")
        save_checkpoint(replace(first, **nets), paths[-1])
    return paths


@pytest.fixture(scope="module")
def opened(members: list[Path]) -> tuple[Model, ...]:
    return open_members(members)


class TestMean:
    @given(
        st.integers(1, 4).flatmap(
            lambda n: st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=n, max_size=n)
        )
    )
    def test_against_numpy(self, rows: list[list[float]]) -> None:
        probs = np.array(rows, np.float32).reshape(len(rows), 2, 2)
        *_, mean = with_mean(p.copy() for p in probs)
        assert mean.dtype == np.float32
        np.testing.assert_allclose(mean, probs.astype(np.float64).mean(axis=0), atol=1e-6)

    def test_one_member_is_itself_bit_for_bit(self) -> None:
        probs = np.random.default_rng(0).random((2, 5), np.float32)
        *_, mean = with_mean([probs.copy()])
        np.testing.assert_array_equal(mean, probs)

    def test_no_member_runs_before_the_one_before_is_used_up(self) -> None:
        """One sum, one result: what members return is not collected."""
        running: list[int] = []

        def predict_one(number: int) -> NDArray[np.float32]:
            running.append(number)
            return np.full((2, 3), number, np.float32)

        seen = []
        for probs in with_mean(map(predict_one, range(2))):
            seen.append((float(probs[0, 0]), list(running)))
        assert seen == [(0.0, [0]), (1.0, [0, 1]), (0.5, [0, 1])]

    def test_only_the_net_that_is_used_is_kept(self, members: list[Path]) -> None:
        for which in ("student", "teacher", None):
            (model,) = open_members(members[:1], which)
            assert list(model.nets) == [which or open_model(members[0]).better]
            held = (model.checkpoint.student, model.checkpoint.teacher, model.checkpoint.parts)
            assert not any(held)


class TestPredict:
    def test_masks_of_the_mean_probabilities(self, members: list[Path], particles_dir: Path, tmp_path: Path) -> None:
        source = tmp_path / "in"
        source.mkdir()
        for name in ("0000.png", "0001.png"):
            shutil.copy(particles_dir / "images" / name, source)
        for number, path in enumerate(members):
            predict(PredictRequest(path, source, tmp_path / str(number), probabilities=True))
        request = PredictRequest(members[0], source, tmp_path / "all", probabilities=True)
        predict(replace(request, more=tuple(members[1:])))
        for name in ("0000", "0001"):
            single = [tifffile.imread(tmp_path / str(n) / f"{name}_prob.tif") for n in range(3)]
            mean = np.mean(single, axis=0)
            assert np.abs(single[0] - single[1]).max() > 0.05
            np.testing.assert_allclose(tifffile.imread(tmp_path / "all" / f"{name}_prob.tif"), mean, atol=1e-6)
            sure = np.abs(mean - 0.5) > 1e-5
            mask = read_mask(str(tmp_path / "all" / f"{name}.png"))
            np.testing.assert_array_equal(mask[sure], (mean > 0.5)[sure])

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("label_values", (0, 255), r"label values \[0, 1\] in the first and \[0, 255\] in the second"),
            ("label_values", (0, 1, 2), "number of classes 2 in the first and 3 in the second"),
            ("channels", 3, "image channels 1 in the first and 3 in the second"),
            ("patch_size", (8, 32, 32), "images 2D in the first and 3D in the second"),
            ("resample_to", (1.0, 2.0), r"data.resample_to None in the first and \[1.0, 2.0\] in the second"),
        ],
    )
    def test_members_that_do_not_go_together(
        self, members: list[Path], opened: tuple[Model, ...], name: str, value: Any, message: str
    ) -> None:
        models = list(opened)
        data = models[2].config.data.model_copy(update={name: value})
        models[2] = replace(models[2], config=models[2].config.model_copy(update={"data": data}))
        with pytest.raises(ConfigError, match=message) as refused:
            check_members(models, averaged=True)
        assert str(members[0]) in str(refused.value)
        assert str(members[2]) in str(refused.value)
        if name == "resample_to":
            check_members(models)  # each is compared on the grid of the file

    def test_the_voxel_size_counts_where_images_are_resampled(self, opened: tuple[Model, ...]) -> None:
        models = []
        for model, spacing in zip(opened[:2], ((1.0, 1.0), (1.0, 3.0)), strict=True):
            data = model.config.data.model_copy(update={"spacing": spacing})
            models.append(replace(model, config=model.config.model_copy(update={"data": data})))
        check_members(models, averaged=True)
        grid = {"resample_to": (1.0, 1.0)}
        models = [
            replace(m, config=m.config.model_copy(update={"data": m.config.data.model_copy(update=grid)}))
            for m in models
        ]
        with pytest.raises(ConfigError, match=r"data\.spacing"):
            check_members(models, averaged=True)


class TestCompare:
    def test_each_row_is_that_of_one_and_the_ensemble_that_of_its_masks(
        self, members: list[Path], particles_dir: Path, tmp_path: Path
    ) -> None:
        result = evaluate(EvaluateRequest(members[0], more=tuple(members[1:]), which="student", ensemble=True))
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        *rows, ensemble = result["rows"]
        for path, row in zip(members, rows, strict=True):
            one = evaluate(EvaluateRequest(path, which="student"))
            assert {key: row[key] for key in ("pooled", "mean", "trivial", "cases")} == {
                key: one[key] for key in ("pooled", "mean", "trivial", "cases")
            }
        assert ensemble["checkpoint"] == "ensemble"
        assert result["pooled"] == ensemble["pooled"]
        (tmp_path / "images").mkdir()
        for row in result["cases"]:
            shutil.copy(particles_dir / "images" / f"{row['id']}.png", tmp_path / "images")
        request = PredictRequest(members[0], tmp_path / "images", tmp_path / "out", which="student")
        written = {p.stem: p for p in predict(replace(request, more=tuple(members[1:])))}
        pairs = [
            (
                read_mask(str(particles_dir / "masks" / f"{row['id']}.png")).ravel(),
                read_mask(str(written[row["id"]])).ravel(),
            )
            for row in result["cases"]
        ]
        true, pred = (np.concatenate(column) for column in zip(*pairs, strict=True))
        assert ensemble["pooled"]["f1"] == pytest.approx(f1_score(true, pred))

    def test_without_an_ensemble_the_first_is_the_headline(self, members: list[Path]) -> None:
        result = evaluate(EvaluateRequest(members[1], more=(members[0],)))
        assert [row["checkpoint"] for row in result["rows"]] == [str(members[1]), str(members[0])]
        assert result["pooled"] == result["rows"][0]["pooled"]

    def test_differences_are_paired_over_cases(self) -> None:
        """Against a bootstrap of scipy, whose percentile interval lies within the wider one that is shown."""
        rng = np.random.default_rng(3)
        old = rng.integers(20, 60, size=(40, 4))
        new = old + np.array([6, -2, -2, 0]) + rng.integers(-2, 3, size=old.shape)

        def f1(rows: NDArray[Any], counts: NDArray[Any]) -> float:
            tp, fp, fn, _ = counts[rows].sum(axis=0)
            return float(2 * tp / (2 * tp + fp + fn))

        def subtract(rows: NDArray[Any]) -> float:
            return f1(rows, new) - f1(rows, old)

        tables = [{"cases": [{"counts": [row.tolist()]} for row in counts]} for counts in (old, new)]
        first, second = add_differences(tables)
        low, high = stats.bootstrap(
            (np.arange(40),), subtract, vectorized=False, method="percentile", n_resamples=3000, rng=1
        ).confidence_interval
        assert first["difference"] is None
        found = second["difference"]
        assert found["f1"] == pytest.approx(subtract(np.arange(40)))
        assert found["low"] == pytest.approx(low, abs=0.25 * (high - low))
        assert found["high"] == pytest.approx(high, abs=0.25 * (high - low))
        alone = [{"cases": table["cases"][:1]} for table in tables]
        change = add_differences(alone)[1]["difference"]  # of one case nothing is known
        assert (change["low"], change["high"], change["why"]) == (None, None, "too few cases (1 < 8)")

    def test_labeled_training_cases_of_any_of_them_are_refused(
        self, members: list[Path], tiny_run: Path, tmp_path: Path
    ) -> None:
        """The split of the second has a validation case of the first among its labeled ones."""
        split = load_split(tiny_run / "split.yaml")
        seen = split.val[0]
        other = replace(split, fractions={1.0: (seen,)}, val=split.val[1:])
        checkpoint = load_checkpoint(members[1])
        config = {**checkpoint.config, "split": {**checkpoint.config["split"], "labels": 1.0}}
        labels = tuple(split.image_contents([seen]))
        changed = replace(checkpoint, split=split_to_dict(other), config=config, seen_labels=labels)
        save_checkpoint(changed, tmp_path / "x.pt")
        with pytest.raises(SplitError, match=rf"1 of the {len(split.val)} val cases.*{tmp_path / 'x.pt'}.*'{seen}'"):
            evaluate(EvaluateRequest(members[0], more=(members[2], tmp_path / "x.pt")))
        save_split(other, tmp_path / "s.yaml")
        result = evaluate(EvaluateRequest(members[0], more=(tmp_path / "x.pt",), split=tmp_path / "s.yaml"))
        assert [row["id"] for row in result["cases"]] == list(other.val)

    @pytest.mark.usefixtures("unopened")
    def test_an_opening_is_recorded_in_the_run_of_each(self, members: list[Path], tmp_path: Path) -> None:
        first, second = (Path(shutil.copy(path, tmp_path)) for path in members[:2])
        request = EvaluateRequest(first, more=(second,), part="test", which="student")
        evaluate(request)
        result = evaluate(replace(request, ensemble=True))
        assert result["test_openings"] == 2
        for path in (first, second):
            events = read_jsonl(path.with_suffix(".events.jsonl"))
            assert [e["event"] for e in events] == ["test_opened"] * 2
            assert [e["checkpoints"] for e in events] == [[str(first), str(second)]] * 2

    def test_one_is_no_ensemble_and_twice_is_no_second(self, members: list[Path]) -> None:
        with pytest.raises(ConfigError, match="one checkpoint is not an ensemble"):
            evaluate(EvaluateRequest(members[0], ensemble=True))
        with pytest.raises(ConfigError, match="named twice"):
            evaluate(EvaluateRequest(members[0], more=(members[0].parent / ".." / members[0].parent.name / "m0.pt",)))


def test_the_commands(
    members: list[Path],
    particles_dir: Path,
    tmp_path: Path,
    cli: Cli,
) -> None:
    code, out, _ = cli("evaluate", *members[:2], "--ensemble", "--json")
    found = json.loads(out)
    assert code == 0
    assert [set(row["difference"] or ()) for row in found["rows"]] == [set(), *[{"f1", "low", "high", "why"}] * 2]
    assert found["checkpoint"] == "ensemble"
    code, out, _ = cli("evaluate", *members[:2])
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["checkpoint", "m0.pt", "m1.pt"]
    change = found["rows"][1]["difference"]
    assert change["why"].startswith("too few cases")
    assert f"{change['f1']:+.3f}  {change['why']}" in out
    code, _, err = cli("evaluate", *members[:2], "--figure", tmp_path / "x.png")
    assert (code, "give one checkpoint" in err) == (2, True)
    image = particles_dir / "images" / "0000.png"
    code, out, _ = cli("predict", members[0], image, tmp_path / "out", "--with", members[1], "--with", members[2])
    assert (code, out.startswith("wrote 1 mask")) == (0, True)


@pytest.mark.parametrize("portions", [[[5, 4, 1], [3, 3, 3, 1]], [[10], [1] * 10, [9, 1]], [[2, 8]]])
def test_means_of_rows_that_come_in_other_portions(portions: list[list[int]]) -> None:
    arrays = np.random.default_rng(0).random((len(portions), 2, 10, 4)).astype(np.float32)

    def stream(array: NDArray[np.float32], own: list[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        first = 7
        for count in own:
            yield first, array[:, first - 7 : first - 7 + count]
            first += count

    before = arrays.copy()
    found = list(pool_rows([stream(*pair) for pair in zip(arrays, portions, strict=True)]))
    assert [first for first, _ in found] == [7 + sum(rows.shape[1] for _, rows in found[:n]) for n in range(len(found))]
    np.testing.assert_allclose(np.concatenate([rows for _, rows in found], axis=1), before.mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(arrays, before)


def test_the_spread_is_the_variance_over_all_predictions() -> None:
    """Four networks, each with the variance over its own five predictions."""
    probs = np.random.default_rng(0).random((4, 5, 3, 6)).astype(np.float32)
    probs /= probs.sum(axis=2, keepdims=True)
    foreground = 1 - probs[:, :, 0]
    parts = [np.concatenate([own.mean(axis=0), (1 - own[:, 0]).var(axis=0)[None]]) for own in probs]
    found = pool(parts, spread=True)
    np.testing.assert_allclose(found[:-1], probs.mean(axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found[-1], foreground.var(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_array_equal(pool([parts[0]], spread=True), parts[0])
