"""What an ablation asks for: a small YAML file, its axes, and the cells that they span."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ssl_seg.config import DataConfig, Section
from ssl_seg.config.data import LabelAmount, format_label_amount
from ssl_seg.config.layers import (
    ABLATIONS,
    Layer,
    flatten,
    leave_out,
    merge_layers,
    nest,
    packaged_configs,
    read_layers,
    read_yaml,
    validate,
)
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.run.request import TrainRequest

PLAIN = "plain"
"""The recipe that changes nothing."""
AXES = "ablation"
"""Source of what the axes of an ablation say."""


@dataclass(frozen=True, order=True)
class Arm:
    """What is compared. The cells of an arm differ in their seeds only."""

    method: str
    recipe: str
    start: str
    """``scratch``; ``bootstrap``: from the cell of the next smaller label fraction with the same seeds; or
    ``scratch_long``: from scratch, with as many steps as ``bootstrap`` and all its parents together."""
    labels: float
    """Share of the labeled training pool (0..1], or a number of cases above 1."""


class ScoreConfig(Section):
    """What of a finished training is scored, and how."""

    part: Literal["val", "test"] = "val"
    """Cases: validation, or the sealed test list (each cell opens it once, and that is recorded)."""
    checkpoint: Literal["best", "last"] = "best"
    """best.pt is the best epoch on patches of the validation cases; last.pt owes them nothing."""
    net: Literal["better", "student", "teacher"] = "better"
    """Network; better is the one with the higher validation F1."""
    metric: Literal["dice", "f1"] = "dice"
    """dice: mean over cases (and classes); f1: voxels of all cases pooled (mean over classes)."""


class AblationSpec(Section):
    """An ablation: every combination of the axes is trained with equal steps and scored on the same cases."""

    config: str | None = None
    """Configuration of all cells: a file, beside the ablation's or packaged."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further settings of all cells, over those of config."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Settings of all cells that win over the recipes too; what options of the command line say is here."""
    labels: tuple[LabelAmount, ...] = (0.01, 0.10, 1.0)
    """Label fractions in (0, 1], or numbers of cases above 1."""
    methods: tuple[str, ...] = ("supervised", "mean_teacher")
    """Learning methods."""
    method_options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of single methods, in all their cells: {mean_teacher: {consistency: cross_entropy}}."""
    recipes: dict[str, str | dict[str, Any]] = Field({PLAIN: {}})
    """Named changes of settings, over config and settings: a mapping, or the name of a configuration."""
    starts: tuple[Literal["scratch", "scratch_long", "bootstrap"], ...] = ("scratch",)
    """scratch; bootstrap: from the cell of the next smaller label fraction, whose steps come on top; scratch_long: from
    scratch, with as many steps as bootstrap and the cells below it have together."""
    split_seeds: tuple[int, ...] = (0, 1, 2)
    """Which training cases are labeled; validation and test are the same for all."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the training."""
    pair_seeds: bool = False
    """Train the first split seed with the first seed, the second with the second and so on, instead of all pairs. The
    variance between splits and that between seeds cannot be told apart then."""
    baseline: str = "supervised"
    """Method that the others are compared with, at equal labels, recipe and start."""
    score: ScoreConfig = ScoreConfig()

    @field_validator("labels", "methods", "starts", "split_seeds", "seeds")
    @classmethod
    def _axis_has_distinct_values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values or len(set(values)) < len(values):
            raise ValueError(f"{list(values)} must hold at least one value, and each only once")
        return values

    @field_validator("labels")
    @classmethod
    def _labels_can_be_ordered(cls, labels: tuple[float, ...]) -> tuple[float, ...]:
        if min(labels) < 1 < max(labels):
            given = ", ".join(map(format_label_amount, labels))
            raise ValueError(f"{given} mixes fractions and numbers of cases: give one kind (1.0, all, fits both)")
        return labels

    @field_validator("recipes")
    @classmethod
    def _there_is_a_recipe(cls, recipes: dict[str, Any]) -> dict[str, Any]:
        if not recipes:
            raise ValueError("recipes is empty: leave it out, or name one, such as plain: {}")
        names = list(recipes)
        for place, name in enumerate(names):
            if same := [other for other in names[:place] if recipes[other] == recipes[name]]:
                raise ValueError(f"recipes {same[0]} and {name} are the same: leave one out")
        return recipes

    @model_validator(mode="after")
    def _axes_fit(self) -> AblationSpec:
        if self.baseline not in self.methods:
            hint = did_you_mean(self.baseline, self.methods)
            raise ValueError(f"baseline '{self.baseline}' is none of the methods {list(self.methods)}{hint}")
        if stray := [name for name in self.method_options if name not in self.methods]:
            hint = did_you_mean(stray[0], self.methods)
            raise ValueError(f"method_options of '{stray[0]}', which is none of the methods {list(self.methods)}{hint}")
        if self.pair_seeds and len(self.seeds) != len(self.split_seeds):
            raise ValueError(
                f"pair_seeds takes as many seeds as split_seeds: there are {len(self.seeds)} and "
                f"{len(self.split_seeds)}"
            )
        if len(self.labels) < 2 and (chained := [start for start in self.starts if start != "scratch"]):
            raise ValueError(
                f"a start of {chained[0]} needs two label fractions at least: bootstrap climbs from the smaller one"
            )
        return self


@dataclass(frozen=True)
class CellSpec:
    """A cell before its settings are resolved."""

    arm: Arm
    split_seed: int
    seed: int
    parent: Arm | None
    """Arm of the cell with the same seeds that this one starts from."""
    rounds: int = 1
    """Its steps as a multiple of those that the settings say: more for a start of scratch_long."""

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{describe_arm(self.arm)} split {self.split_seed} seed {self.seed}"


def describe_arm(arm: Arm) -> str:
    """Return what a person calls an arm."""
    extra = [arm.recipe] * (arm.recipe != PLAIN) + [arm.start] * (arm.start != "scratch")
    return " ".join([arm.method, f"{arm.labels:g}", *extra])


def read_spec(name: str, overrides: Sequence[Layer] = ()) -> AblationSpec:
    """Read the file of an ablation, and the options laid over it.

    Recipes and ``config`` may name files beside it; they are returned as paths then.

    Raises:
        ConfigError: missing file, invalid YAML, or one error with everything that is wrong.
    """
    path = find_spec(name)
    content = read_yaml(path)
    named = {key: content.pop(key) for key in ("recipes",) if key in content}  # a name such as lr0.001 is no dotted key
    values, sources = merge_layers([Layer(str(path), content), *overrides])
    spec = validate(AblationSpec, {**values, **named}, sources)
    recipes = {key: _beside(path, value) if isinstance(value, str) else value for key, value in spec.recipes.items()}
    config = None if spec.config is None else _beside(path, spec.config)
    return spec.model_copy(update={"config": config, "recipes": recipes})


def list_cells(spec: AblationSpec) -> list[CellSpec]:
    """Return all cells, in an order in which each comes after its parent, and cheap looks at the whole come first.

    The seeds are the outermost loop, so that an interrupted ablation has complete comparisons for its first seeds.
    """
    all_pairs = ((split_seed, seed) for seed, split_seed in product(spec.seeds, spec.split_seeds))
    pairs = zip(spec.split_seeds, spec.seeds, strict=True) if spec.pair_seeds else all_pairs
    smallest_first = sorted(spec.labels, key=lambda labels: (labels == 1, labels))
    return [
        CellSpec(Arm(method, recipe, start, labels), split_seed, seed, parent, rounds)
        for split_seed, seed in pairs
        for labels in smallest_first
        for recipe in spec.recipes
        for method in spec.methods
        for start, parent, rounds in _starts_of(spec, method, recipe, labels, smallest_first)
    ]


def find_data_root(spec: AblationSpec) -> str:
    """Return the folder of the cases of an ablation, as its first cell says."""
    first = TrainRequest(tuple(layers_of(spec, list_cells(spec)[0])))
    return str(first.settings.get("data.root") or DataConfig.model_fields["root"].default)


def layers_of(spec: AblationSpec, cell: CellSpec) -> list[Layer]:
    """Return the settings of a cell: configuration, settings, recipe, then what the axes say.

    What is said about taking over a parent (section ``bootstrap``) holds for the cells that have one, and
    ``network.pretrained`` for the others.

    Raises:
        ConfigError: a recipe or configuration that cannot be read, or a setting that belongs to an axis.
    """
    layers = [] if spec.config is None else read_layers(spec.config)
    layers += [Layer(AXES, nest("method.name", cell.arm.method))]  # what is laid over it may give options of the method
    if options := spec.method_options.get(cell.arm.method):
        layers.append(Layer("method_options", nest("method.options", options)))
    recipe = spec.recipes[cell.arm.recipe]
    own = [Layer(f"recipe {cell.arm.recipe}", recipe)] if isinstance(recipe, Mapping) else read_layers(recipe)
    layers += [Layer("settings", spec.settings), *own, Layer("overrides", spec.overrides)]
    axes = {
        "method.name": cell.arm.method,
        "split.labels": cell.arm.labels,
        "split.label_seed": cell.split_seed,
        "seed": cell.seed,
    }
    _check_axes([Layer("settings", spec.settings), Layer("overrides", spec.overrides), *own], axes)
    other = "bootstrap" if cell.parent is None else "network.pretrained"
    layers = [replace(layer, values=leave_out(layer.values, {other})) for layer in layers]
    return [*layers, *(Layer(AXES, nest(key, value)) for key, value in axes.items())]


def find_spec(name: str) -> Path:
    """Return the file of a path, or of the name of a packaged ablation.

    Raises:
        ConfigError: when neither exists.
    """
    packaged = {path.stem: path for path in (packaged_configs() / ABLATIONS).glob("*.yaml")}
    path = Path(name)
    if path.is_file():
        return path
    if name in packaged:
        return packaged[name]
    raise ConfigError(
        f"no file '{name}', and no packaged ablation of that name{did_you_mean(name, packaged)}. "
        f"Packaged: {', '.join(sorted(packaged))}."
    )


def _starts_of(
    spec: AblationSpec, method: str, recipe: str, labels: float, smallest_first: Sequence[float]
) -> Iterator[tuple[str, Arm | None, int]]:
    """Yield each start, the arm it builds on, and its rounds; at the smallest fraction all starts are from scratch."""
    place = smallest_first.index(labels)
    if place == 0:
        yield "scratch", None, 1
        return
    for start in spec.starts:
        if start == "bootstrap":
            parent_start = "scratch" if place == 1 else "bootstrap"
            yield start, Arm(method, recipe, parent_start, smallest_first[place - 1]), 1
        else:
            yield start, None, place + 1 if start == "scratch_long" else 1


def _check_axes(layers: Sequence[Layer], axes: Mapping[str, Any]) -> None:
    """The axes of an ablation are set by it alone; a recipe may name a method, which the axis then replaces."""
    for layer in layers:
        free = {"method.name"} if layer.source.startswith("recipe") else set()
        taken = sorted({key for key, _ in flatten(layer.values)} & (set(axes) - free))
        if taken and not layer.is_file:
            raise ConfigError(f"{layer.source} sets {taken[0]}, which is an axis of the ablation: leave it out there")


def _beside(path: Path, name: str) -> str:
    """Return the path of a file beside the ablation's, or the name as it is."""
    beside = path.parent / name
    return str(beside.resolve()) if beside.is_file() else name
