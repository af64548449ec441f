"""Whole commands on random data sets; `scripts/fuzz_commands.py` does more of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fuzz.commands import check_masks, check_reading, check_seed, check_split
from fuzz.datasets import DataSet, draw_recipe, make_dataset

SEEDS = (0, 1, 2, 8, 9, 12, 13, 30, 37, 47, 70, 80, 84, 90, 129, 153, 194)
"""Few, mostly with images instead of volumes, that draw all that the first 300 do."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_commands_hold_on_a_random_data_set(seed: int, tmp_path: Path) -> None:
    result = check_seed(seed, tmp_path)
    assert not result.faults, (result.traits, result.faults)


def test_the_seeds_draw_all_kinds() -> None:
    assert draw_traits(SEEDS) == draw_traits(range(300))
    assert draw_traits(SEEDS[1:]) < draw_traits(SEEDS)


def draw_traits(seeds: Iterable[int]) -> set[tuple[object, ...]]:
    """Return each value of each trait that one of the seeds draws."""
    recipes = [draw_recipe(seed) for seed in seeds]
    names = ("layout", "mask_kind", "dress", "names", "num_classes", "missing", "empty", "channels", "dtype")
    drawn = {(name, getattr(recipe, name)) for recipe in recipes for name in (*names, "mask_dtype")}
    return drawn | {(r.kind.ending, r.ndim) for r in recipes} | {("few cases", r.count < 18) for r in recipes}


class TestFaultsAreSeen:
    """Negative controls: a truth that differs from the files, a leak, a wrong count."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory: pytest.TempPathFactory) -> DataSet:
        made = make_dataset(next(s for s in range(300) if _is_plain(s)), tmp_path_factory.mktemp("fuzz"))
        return replace(made, cases={i: replace(case, group=None) for i, case in made.cases.items()})

    def test_the_truth_holds(self, data: DataSet) -> None:
        assert not list(check_reading(data))

    def test_an_image_read_mirrored(self, data: DataSet) -> None:
        case_id, case = next(iter(data.cases.items()))
        mirrored = replace(data, cases=data.cases | {case_id: replace(case, image=case.image[..., ::-1])})
        assert any("not what was written" in fault for fault in check_reading(mirrored))

    def test_a_mask_of_another_image(self, data: DataSet) -> None:
        case_id, mask = next(iter(data.labeled.items()))
        other = replace(data.cases[case_id], classes=np.roll(mask, 1, axis=-1))
        assert list(check_reading(replace(data, cases=data.cases | {case_id: other})))

    def test_a_case_in_two_parts_and_one_without_mask_in_validation(self, data: DataSet) -> None:
        ids = list(data.cases)
        split = {"fractions": {1.0: ids[2:]}, "unlabeled": [], "val": ids[:1], "test": ids[1:2]}
        assert not list(check_split(data, split))
        assert list(check_split(data, split | {"test": ids[1:3]}))
        bare = replace(data, cases=data.cases | {ids[0]: replace(data.cases[ids[0]], classes=None)})
        assert any("have no mask" in fault for fault in check_split(bare, split))

    def test_a_case_in_another_part_than_its_folder_names(self, data: DataSet) -> None:
        case = next(iter(data.cases.values()))
        bare = replace(case, classes=None)
        given = replace(data, cases={"train/a": case, "val/b": case, "test/c": case, "test/d": bare})
        split = {"fractions": {1.0: ["train/a"]}, "unlabeled": [], "val": ["val/b"], "test": ["test/c"]}
        assert not list(check_split(given, split))
        assert list(check_split(given, split | {"val": ["test/c"], "test": ["val/b"]}))
        assert list(check_split(given, split | {"unlabeled": ["test/d"]}))

    def test_copies_in_two_parts(self, data: DataSet) -> None:
        ids = list(data.cases)
        copied = replace(data, cases=data.cases | {ids[0]: data.cases[ids[2]]})
        split = {"fractions": {1.0: ids[2:]}, "unlabeled": [], "val": ids[:1], "test": ids[1:2]}
        assert any("copies" in fault for fault in check_split(copied, split))

    def test_counts_that_are_not_those_of_the_masks(self, data: DataSet, tmp_path: Path) -> None:
        import cv2

        for case_id, case in data.cases.items():
            path = tmp_path / f"{case_id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", np.zeros(case.image.shape[1:], np.uint8))[1].tobytes())
        case_id, classes = next(iter(data.labeled.items()))
        size, held = classes.size, int((classes == 1).sum())
        rows = {"cases": [{"id": case_id, "counts": [[0, 0, held, size - held]]}]}
        assert not list(check_masks(data, tmp_path, rows))
        rows["cases"][0]["counts"][0][0] = 1
        assert list(check_masks(data, tmp_path, rows))


def _is_plain(seed: int) -> bool:
    recipe = draw_recipe(seed)
    return (
        (recipe.layout, recipe.kind.ending, recipe.num_classes) == ("folders", ".png", 2)
        and recipe.missing == 0
        and recipe.names == "plain"
        and recipe.count >= 18
    )
