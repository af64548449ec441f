from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ablation_cases import write_spec
from hypothesis import given
from hypothesis import strategies as st

from ssl_seg.config.layers import Layer, merge_layers
from ssl_seg.errors import ConfigError
from ssl_seg.studies.ablation.spec import AblationSpec, Arm, find_spec, layers_of, list_cells, read_spec


def test_cells_are_the_product_of_the_axes() -> None:
    spec = AblationSpec(
        labels=(1.0, 0.1), recipes={"a": {}, "b": {"x": 1}}, split_seeds=(0, 1, 2), seeds=(0, 1), starts=("scratch",)
    )
    cells = list_cells(spec)
    assert len({(c.arm, c.split_seed, c.seed) for c in cells}) == len(cells) == 2 * 2 * 2 * 3 * 2
    assert {c.parent for c in cells} == {None}
    assert [c.arm.labels for c in cells[:8]] == [0.1] * 4 + [1.0] * 4


def test_one_seed_is_complete_before_the_next_begins() -> None:
    cells = list_cells(AblationSpec(labels=(0.1, 1.0), split_seeds=(5, 6), seeds=(7, 8)))
    assert [(c.split_seed, c.seed) for c in cells[::4]] == [(5, 7), (6, 7), (5, 8), (6, 8)]


def test_paired_seeds_are_a_diagonal() -> None:
    cells = list_cells(AblationSpec(split_seeds=(0, 1), seeds=(3, 4), pair_seeds=True))
    assert {(c.split_seed, c.seed) for c in cells} == {(0, 3), (1, 4)}


@given(
    labels=st.sets(st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0]), min_size=2),
    starts=st.sampled_from([("scratch", "bootstrap"), ("bootstrap",)]),
)
def test_a_parent_comes_first_and_has_the_next_smaller_fraction(labels: set[float], starts: Any) -> None:
    cells = list_cells(AblationSpec(labels=tuple(labels), starts=starts, split_seeds=(0, 1)))
    ordered = sorted(labels)
    for place, cell in enumerate(cells):
        if cell.arm.start == "scratch":
            assert cell.parent is None
            continue
        below = ordered[ordered.index(cell.arm.labels) - 1]
        start = "scratch" if below == ordered[0] else "bootstrap"
        assert cell.parent == Arm(cell.arm.method, cell.arm.recipe, start, below)
        earlier = [(c.arm, c.split_seed, c.seed) for c in cells[:place]]
        assert (cell.parent, cell.split_seed, cell.seed) in earlier
    if starts == ("bootstrap",):  # the smallest fraction has nothing to build on
        assert {c.arm.labels for c in cells if c.arm.start == "scratch"} == {ordered[0]}


def test_scratch_long_has_the_rounds_of_a_bootstrap_and_its_parents() -> None:
    cells = list_cells(AblationSpec(labels=(1.0, 0.01, 0.1), starts=("bootstrap", "scratch_long"), split_seeds=(0,)))
    by_arm = {(c.arm.start, c.arm.labels): c for c in cells if c.arm.method == "supervised"}
    long = {labels: c.rounds for (start, labels), c in by_arm.items() if start == "scratch_long"}
    assert long == {0.1: 2, 1.0: 3}  # at the smallest fraction it would be the same as scratch

    def count_trainings(start: str, labels: float) -> int:
        parent = by_arm[start, labels].parent
        return 1 if parent is None else 1 + count_trainings(parent.start, parent.labels)

    assert long == {labels: count_trainings("bootstrap", labels) for labels in long}
    assert {c.rounds for c in cells if c.arm.start != "scratch_long"} == {1}
    assert {c.parent for c in cells if c.arm.start == "scratch_long"} == {None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": [0.1, 0.1]}, "only once"),
        ({"labels": []}, "at least one"),
        ({"labels": [0.1, 8]}, "mixes"),
        ({"labels": [2.5]}, "whole number of cases"),
        ({"labels": [0]}, "neither a share"),
        ({"labels": [0.1, 1]}, "all cases or one case"),
        ({"baseline": "supervisd"}, "did you mean 'supervised'"),
        ({"pair_seeds": True, "seeds": [0, 1]}, "as many"),
        ({"starts": ["bootstrap"], "labels": [1.0]}, "two label fractions"),
        ({"starts": ["scratch", "scratch_long"], "labels": [1.0]}, "scratch_long needs two label fractions"),
        ({"recipes": {}}, "empty"),
        ({"recipes": {"a": {}, "b": {"optim": {"lr": 1}}, "c": {}}}, "recipes a and c are the same"),
        ({"split_sedes": [0]}, "split_seeds"),
        ({"optim": {"lr": 1}}, "did you mean 'settings.optim'"),
        ({"score": {"metric": "f2"}}, "score.metric"),
    ],
)
def test_what_cannot_be_asked_for(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = write_spec(tmp_path / "spec.yaml", "synthetic:particles", **values)
    with pytest.raises(ConfigError, match=message):
        read_spec(str(path))


def test_numbers_of_cases_go_with_all() -> None:
    assert [c.arm.labels for c in list_cells(AblationSpec(labels=(1.0, 8, 2), methods=("supervised",)))][:3] == [
        2,
        8,
        1,
    ]


def test_options_lie_over_the_file(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "spec.yaml", "synthetic:particles")
    spec = read_spec(
        str(path), [Layer("--labels", {"labels": [0.5]}), Layer("--lr", {"settings": {"optim": {"lr": 1}}})]
    )
    assert spec.labels == (0.5,)
    assert spec.settings["optim"] == {"lr": 1}
    assert spec.settings["data"]["root"] == "synthetic:particles"


def test_the_axes_win_over_recipes_and_recipes_over_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: {name: mean_teacher, options: {confidence: 0.5}}\noptim: {lr: 0.5}\n")
    path = write_spec(tmp_path / "spec.yaml", "synthetic:particles", recipes={"mine": "mine.yaml"})
    spec = read_spec(str(path))
    values = [merge_layers(layers_of(spec, cell))[0] for cell in list_cells(spec)[:2]]
    assert [v["method"] for v in values] == [
        {"name": "supervised"},
        {"name": "mean_teacher", "options": {"confidence": 0.5}},
    ]
    assert [v["optim"]["lr"] for v in values] == [0.5, 0.5]
    assert values[0]["split"] == {"labels": 0.2, "label_seed": 0}
    spec = read_spec(str(path), [Layer("--set", {"overrides": {"optim": {"lr": 0.1}}})])
    assert merge_layers(layers_of(spec, list_cells(spec)[0]))[0]["optim"]["lr"] == 0.1


@pytest.mark.parametrize("key", ["seed", "split"])
def test_a_recipe_does_not_set_an_axis(tmp_path: Path, key: str) -> None:
    recipe = {"seed": 3} if key == "seed" else {"split": {"labels": 0.5}}
    spec = read_spec(str(write_spec(tmp_path / "s.yaml", "synthetic:particles", recipes={"odd": recipe})))
    with pytest.raises(ConfigError, match=r"recipe odd sets .* axis"):
        layers_of(spec, list_cells(spec)[0])


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'label_fractions'"):
        read_spec("label_fraction")


def test_packaged_ablations_can_be_read() -> None:
    packaged = sorted(path.stem for path in find_spec("emps_methods").parent.glob("*.yaml"))
    assert {"label_fractions", "emps_methods", "emps_fixmatch", "la_methods"} <= set(packaged)
    for name in packaged:
        assert list_cells(read_spec(name))


def test_a_recipe_may_give_options_of_the_method_of_the_axis(tmp_path: Path) -> None:
    recipe = {"method": {"options": {"confidence": 0.5}}}
    path = write_spec(
        tmp_path / "s.yaml", "synthetic:particles", methods=["fixmatch"], recipes={"p": {}, "half": recipe}
    )
    spec = read_spec(str(path), [Layer("--set", {"baseline": "fixmatch"})])
    found = {cell.arm.recipe: merge_layers(layers_of(spec, cell))[0]["method"] for cell in list_cells(spec)}
    assert found == {"p": {"name": "fixmatch"}, "half": {"name": "fixmatch", "options": {"confidence": 0.5}}}


def test_the_method_is_an_axis_that_options_do_not_set(tmp_path: Path) -> None:
    path = write_spec(tmp_path / "spec.yaml", "synthetic:particles")
    spec = read_spec(str(path), [Layer("--set", {"overrides": {"method": {"name": "mean_teacher"}}})])
    with pytest.raises(ConfigError, match=r"overrides sets method\.name, which is an axis"):
        layers_of(spec, list_cells(spec)[0])


def test_options_of_a_method_reach_its_cells_alone() -> None:
    spec = AblationSpec(
        methods=("supervised", "mean_teacher", "ict"),
        method_options={"mean_teacher": {"consistency": "dice"}},
        recipes={"plain": {}, "own": {"method": {"options": {"consistency": "js"}}}},
        split_seeds=(0,),
        labels=(1.0,),
    )
    found = {
        (cell.arm.method, cell.arm.recipe): merge_layers(layers_of(spec, cell))[0]["method"].get("options", {})
        for cell in list_cells(spec)
    }
    assert found["mean_teacher", "plain"] == {"consistency": "dice"}
    assert found["ict", "plain"] == found["supervised", "plain"] == {}
    assert found["mean_teacher", "own"] == {"consistency": "js"}  # a recipe is laid over it


def test_options_of_a_method_that_is_not_compared_are_refused() -> None:
    with pytest.raises(ValueError, match=r"method_options of 'mean_techer'.*did you mean 'mean_teacher'"):
        AblationSpec(method_options={"mean_techer": {}})
