from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ablation_cases import write_spec

from ssl_seg.config.layers import flatten
from ssl_seg.errors import ConfigError, SslSegError
from ssl_seg.studies.ablation.cells import Cell
from ssl_seg.studies.ablation.resolve import compute_cell_id, resolve_cells
from ssl_seg.studies.ablation.spec import read_spec


def resolve(tmp_path: Path, data: Path | str, **values: Any) -> list[Cell]:
    path = write_spec(tmp_path / "spec.yaml", data, **values)
    return resolve_cells(read_spec(str(path)), gpu=False)


def test_equal_content_has_an_equal_id_whatever_asks_for_it(tmp_path: Path, particles_dir: Path) -> None:
    few = resolve(tmp_path, particles_dir)
    many = resolve(
        tmp_path, particles_dir, labels=[0.5, 1.0, 0.2], seeds=[1, 0], recipes={"x": {"optim": {"lr": 3e-4}}}
    )
    assert len({c.id for c in many}) == len(many) == 12
    same = [c for c in many if c.seed == 0 and c.arm.labels != 0.5]
    assert {c.id for c in few} == {c.id for c in same}  # 3e-4 is the default, so that the recipe is the plain one


def test_what_changes_the_training_changes_the_id(tmp_path: Path, particles_dir: Path) -> None:
    ids = {c.id for c in resolve(tmp_path, particles_dir)}
    for other in ({"optim": {"lr": 1e-3}}, {"monitor": {"select": "dice"}}):
        assert not ids & {c.id for c in resolve(tmp_path, particles_dir, recipes={"x": other})}
    assert not ids & {c.id for c in resolve(tmp_path, particles_dir, split_seeds=[4])}


def test_machine_and_place_do_not() -> None:
    config = {"optim.lr": 1.0, "runtime.devices": 1, "data.root": "/a", "data.channels": 1}
    moved = {"optim.lr": 1.0, "runtime.devices": 4, "data.root": "/b", "data.channels": 1}
    assert compute_cell_id(config, "f", None) == compute_cell_id(moved, "f", None)
    assert compute_cell_id(config, "f", None) != compute_cell_id(config, "g", None)
    assert compute_cell_id(config, "f", None) != compute_cell_id(config, "f", "parent")
    assert compute_cell_id(config, "f", None) != compute_cell_id({**config, "data.channels": 2}, "f", None)


def test_a_bootstrapped_cell_knows_its_parent(tmp_path: Path, particles_dir: Path) -> None:
    cells = resolve(tmp_path, particles_dir, starts=["scratch", "bootstrap"], methods=["supervised"])
    by_arm = {(c.arm.start, c.arm.labels): c for c in cells}
    assert by_arm["bootstrap", 1.0].parent == by_arm["scratch", 0.2].id
    assert len({c.id for c in cells}) == 3
    recipe = {"x": {"bootstrap": {"parts": "encoder"}}}  # holds where there is a parent to take an encoder from
    other = resolve(tmp_path, particles_dir, starts=["scratch", "bootstrap"], methods=["supervised"], recipes=recipe)
    assert len({c.id for c in cells} & {c.id for c in other}) == 2
    assert [c.config["bootstrap"]["parts"] for c in other] == ["all", "all", "encoder"]


def test_a_longer_start_differs_in_its_length_only(tmp_path: Path, particles_dir: Path) -> None:
    starts = ["scratch", "bootstrap", "scratch_long"]
    cells = resolve(tmp_path, particles_dir, starts=starts, methods=["supervised"], labels=[0.2, 0.5, 1.0])
    assert {(c.arm.start, c.arm.labels): c.steps for c in cells} == {
        ("scratch", 0.2): 4,
        **{(start, labels): 4 for start in ("scratch", "bootstrap") for labels in (0.5, 1.0)},
        **{("scratch_long", 0.5): 8, ("scratch_long", 1.0): 12},
    }
    long, short = (next(c for c in cells if c.arm.start == s and c.arm.labels == 1.0) for s in starts[::-2])
    own = {**dict(flatten(long.config)), "length.steps": 4, "optim.warmup_steps": 1}  # the warm-up is a tenth of it
    assert own == {**dict(flatten(short.config)), "optim.warmup_steps": 1}
    assert long.id != short.id


def test_label_seeds_change_the_labeled_cases_only(tmp_path: Path, particles_dir: Path) -> None:
    cells = resolve(tmp_path, particles_dir, split_seeds=[0, 1, 2], methods=["supervised"])
    assert [len({c.fingerprint for c in cells if c.arm.labels == labels}) for labels in (0.2, 1.0)] == [3, 3]
    assert {(c.arm.labels, c.labeled) for c in cells} == {(0.2, 3), (1.0, 13)}


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        ({"length": {"steps": 8, "steps_per_epoch": 2}}, r"length.steps differ \(8 and 4\)"),
        ({"split": {"seed": 1}}, "the validation cases differ"),
        ({"split": {"test_fraction": 0.0}}, "differ"),
        ({"data": {"spacing": [2, 2]}}, "data.spacing differ"),
    ],
)
def test_cells_that_cannot_be_compared(tmp_path: Path, particles_dir: Path, recipe: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=rf"'supervised 0.2 odd .* cannot be compared: .*{what}"):
        resolve(tmp_path, particles_dir, recipes={"plain": {}, "odd": recipe})


def test_a_precision_that_is_asked_for_makes_another_training(tmp_path: Path, particles_dir: Path) -> None:
    recipes = {name: {"runtime": {"precision": name}} for name in ("auto", "fp32", "bf16")}
    cells = resolve(tmp_path, particles_dir, recipes=recipes, labels=[1.0], methods=["supervised"])
    assert len({cell.id for cell in cells}) == 3
    recipes["quick"] = {"runtime": {"precision": "fp32", "workers": 2}}  # a machine matter
    with pytest.raises(
        ConfigError, match=r"recipes 'fp32' and 'quick' are the same training.*runtime.workers cannot make"
    ):
        resolve(tmp_path, particles_dir, recipes=recipes, labels=[1.0], methods=["supervised"])


STRONG = {"augment": {"strong_factor": 0.9, "cutout": 0.9}}


def test_recipes_that_differ_in_what_changes_nothing_are_refused(tmp_path: Path, particles_dir: Path) -> None:
    recipes = {"plain": {}, "strong": STRONG}
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, particles_dir, recipes=recipes, methods=["supervised"])
    assert "recipes 'plain' and 'strong' are the same training in all 2 cells" in str(caught.value)
    assert "augment.strong_factor = 0.9 (recipe strong), augment.cutout = 0.9 (recipe strong) change" in str(
        caught.value
    )
    assert "method.name = supervised learns nothing from unlabeled images" in str(caught.value)
    recipes["strong"] = {"augment": {**STRONG["augment"], "labeled_factor": 2}}
    assert len({c.id for c in resolve(tmp_path, particles_dir, recipes=recipes, methods=["supervised"])}) == 4


def test_cells_that_are_one_training_have_one_id_and_are_named(tmp_path: Path, particles_dir: Path) -> None:
    """A recipe may act with one method only: the comparison is of the other method's cells."""
    notes: list[str] = []
    path = write_spec(tmp_path / "spec.yaml", particles_dir, recipes={"plain": {}, "strong": STRONG})
    cells = resolve_cells(read_spec(str(path)), gpu=False, note=notes.append)
    ids = {(c.arm.method, c.arm.recipe, c.arm.labels): c.id for c in cells}
    assert ids["supervised", "plain", 0.2] == ids["supervised", "strong", 0.2]
    assert ids["mean_teacher", "plain", 0.2] != ids["mean_teacher", "strong", 0.2]
    assert len(set(ids.values())) == 6
    assert [text.split(",")[0] for text in notes] == [
        f"'supervised {labels} strong' and 'supervised {labels}' are the same training in 1 cell"
        for labels in ("0.2", "1")
    ]
    assert all("augment.cutout = 0.9 (recipe strong) change nothing in this run" in text for text in notes)


def test_methods_without_unlabeled_images_are_one_training(tmp_path: Path, sheets_dir: Path) -> None:
    notes: list[str] = []
    settings = {"data": {"root": str(sheets_dir), "patch_size": [16, 32, 32]}, "network": {"features": 4}}
    settings |= {"length": {"steps": 4, "steps_per_epoch": 2}, "augment": {"labeled_factor": 2.0}}
    path = write_spec(tmp_path / "spec.yaml", sheets_dir, settings=settings, labels=[0.5, 1.0])
    cells = resolve_cells(read_spec(str(path)), gpu=False, note=notes.append)
    assert len(cells) == 4
    assert len({c.id for c in cells}) == 3
    (note,) = notes
    assert "'mean_teacher 1' and 'supervised 1' are the same training in 1 cell, which is made once" in note
    assert "method.name = mean_teacher" in note
    assert "there is no unlabeled image" in note
    path = write_spec(tmp_path / "spec.yaml", sheets_dir, settings=settings, labels=[1.0])
    with pytest.raises(ConfigError, match="methods 'supervised' and 'mean_teacher' are the same training"):
        resolve_cells(read_spec(str(path)), gpu=False)


def test_a_setting_that_acts_in_no_cell_is_a_warning(tmp_path: Path, particles_dir: Path) -> None:
    notes: list[str] = []
    recipes = {"plain": {"optim": {"one_cycle_rise": 0.6}, "augment": {"cutmix": 0.5}}}
    path = write_spec(tmp_path / "spec.yaml", particles_dir, recipes=recipes)
    resolve_cells(read_spec(str(path)), gpu=False, note=notes.append)
    assert notes == [
        "WARNING optim.one_cycle_rise = 0.6 (recipe plain) changes nothing in this run: optim.schedule = poly. "
        "It acts with optim.schedule = one_cycle"
    ]


@pytest.mark.parametrize("name", ["devices", "num_nodes"])
def test_a_cell_is_trained_by_one_process(tmp_path: Path, particles_dir: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"cell 'supervised .*runtime.{name} = 2: .*--workers"):
        resolve(tmp_path, particles_dir, recipes={"plain": {"runtime": {name: 2}}})


def test_the_name_of_a_recipe_may_hold_a_dot(tmp_path: Path, particles_dir: Path) -> None:
    recipes = {"plain": {}, "lr0.001": {"optim": {"lr": 0.001}}}
    cells = resolve(tmp_path, particles_dir, recipes=recipes, labels=[1.0], methods=["supervised"])
    assert {cell.arm.recipe: cell.config["optim"]["lr"] for cell in cells} == {"plain": 3e-4, "lr0.001": 0.001}


def test_an_error_names_its_cell(tmp_path: Path, particles_dir: Path) -> None:
    with pytest.raises(SslSegError, match=r"cell 'supervised 0.2 odd split 0 seed 0': .*dynunett"):
        resolve(tmp_path, particles_dir, recipes={"odd": {"network": {"name": "dynunett"}}})
    with pytest.raises(SslSegError, match=r"cell .*odd.*: .*dicee.*did you mean 'dice'"):
        resolve(tmp_path, particles_dir, recipes={"odd": {"loss": {"weights": {"dicee": 1.0}}}})
    odd = {"odd": {"bootstrap": {"pseudo_label_steps": 2}}}
    with pytest.raises(SslSegError, match=r"cell 'supervised 1 odd bootstrap.*pseudo_label_steps = 2: .*teacher"):
        resolve(tmp_path, particles_dir, starts=["bootstrap"], recipes=odd)
    with pytest.raises(SslSegError, match="labels=50"):
        resolve(tmp_path, particles_dir, labels=[50])


def test_scores_on_a_test_list_that_is_empty(tmp_path: Path, particles_dir: Path) -> None:
    with pytest.raises(ConfigError, match="no test cases"):
        resolve(tmp_path, particles_dir, score={"part": "test"}, recipes={"plain": {"split": {"test_fraction": 0.0}}})
