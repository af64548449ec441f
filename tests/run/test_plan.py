from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, build_config, flatten, merge_layers, nest
from ssl_seg.data.catalog import Case, CaseFacts, Catalog
from ssl_seg.data.facts import state_spacing
from ssl_seg.data.volumes import read_mask
from ssl_seg.errors import ConfigError
from ssl_seg.labels import Meaning
from ssl_seg.methods import METHODS
from ssl_seg.networks.builders import NETWORKS, check_patch_size
from ssl_seg.run.plan import FEW_LABELED, PATCH_VOXELS, UNIMATCH_STEPS, Planned, plan_layers, plan_patch_size, plan_run
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import compute_class_weights, resolve

relaxed = settings(deadline=None, max_examples=60)
Shape = tuple[int, ...]
UNLABELED = ("unlabeled",)
"""Id of a case that no catalog has."""
shapes_2d = st.tuples(*[st.integers(1, 3000)] * 2)
shapes_3d = st.tuples(*[st.integers(1, 700)] * 3)
shapes = shapes_2d | shapes_3d


def make_catalog(
    shapes: Sequence[Shape] = ((200, 300),),
    foreground: Sequence[float | None] | None = None,
    channels: Sequence[int] | None = None,
    label_values: tuple[int, ...] = (0, 1),
) -> Catalog:
    """A catalog without files; a foreground of None is a case without a mask."""
    shares = [0.3] * len(shapes) if foreground is None else list(foreground)
    kinds = [1] * len(shapes) if channels is None else list(channels)
    names = [f"{n:03d}" for n in range(len(shapes))]
    cases = tuple(Case(n, n, None if f is None else n, None) for n, f in zip(names, shares, strict=True))
    facts = {
        name: CaseFacts(shape, c, "uint8", None if f is None else label_values, f, "0" * 16)
        for name, shape, c, f in zip(names, shapes, kinds, shares, strict=True)
    }
    return Catalog("nowhere", cases, facts, Meaning("semantic", label_values=label_values), ())


def plan(catalog: Catalog | None = None, gpu: bool = False, **given: Any) -> dict[str, Any]:
    """Return key -> value; ``section__name`` gives ``section.name``."""
    nested: dict[str, Any] = {}
    for key, value in given.items():
        section, _, name = key.partition("__")
        nested.setdefault(section, {})[name] = value
    return {p.key: p.value for p in run_plan(catalog or make_catalog(), nested, gpu=gpu)}


def run_plan(catalog: Catalog, given: dict[str, Any], *, gpu: bool = False) -> list[Planned]:
    """Plan a run with all labels."""
    return plan_run(catalog, [case.id for case in catalog.labeled], UNLABELED, given, gpu=gpu)


class TestPatchSize:
    @pytest.mark.parametrize(
        ("median", "gpu", "expected"),
        [
            ((512, 512), False, [128, 128]),
            ((512, 512), True, [256, 256]),
            ((1000, 40), True, [992, 32]),
            ((100, 90), True, [96, 64]),
            ((31, 7), False, [32, 32]),
            ((32, 64, 64), False, [32, 64, 64]),
            ((100, 200, 200), False, [48, 48, 48]),
            ((100, 200, 200), True, [96, 96, 96]),
            ((88, 576, 576), True, [80, 96, 112]),
            ((8, 512, 512), False, [16, 80, 96]),
            ((1, 1, 1), True, [16, 16, 16]),
        ],
    )
    def test_worked_examples(self, median: Shape, gpu: bool, expected: list[int]) -> None:
        assert plan_patch_size(median, gpu=gpu) == expected

    @relaxed
    @given(shapes, st.booleans())
    def test_multiples_within_image_and_budget(self, median: Shape, gpu: bool) -> None:
        unit = 32 if len(median) == 2 else 16
        size = plan_patch_size(median, gpu=gpu)
        assert len(size) == len(median)
        assert all(s >= unit and s % unit == 0 for s in size)
        assert all(s <= max(n, unit) for s, n in zip(size, median, strict=True))
        assert math.prod(size) <= PATCH_VOXELS[len(median), gpu]

    @relaxed
    @given(shapes, st.booleans())
    def test_no_axis_could_be_longer(self, median: Shape, gpu: bool) -> None:
        unit = 32 if len(median) == 2 else 16
        size = plan_patch_size(median, gpu=gpu)
        for axis, length in enumerate(size):
            longer = [*size[:axis], length + unit, *size[axis + 1 :]]
            assert length + unit > median[axis] or math.prod(longer) > PATCH_VOXELS[len(median), gpu]

    @relaxed
    @given(shapes, st.booleans())
    def test_only_the_longest_axes_are_cut(self, median: Shape, gpu: bool) -> None:
        """An axis that is shorter than its image is about as long as the longest one: near-cubic."""
        unit = 32 if len(median) == 2 else 16
        size = plan_patch_size(median, gpu=gpu)
        for length, whole in zip(size, median, strict=True):
            if length + unit <= whole:
                assert length >= max(size) - unit

    @relaxed
    @given(shapes, st.booleans())
    def test_the_planned_network_takes_it(self, median: Shape, gpu: bool) -> None:
        planned = plan(make_catalog([median]), gpu=gpu)
        check_patch_size(planned["network.name"], planned["data.patch_size"])

    @relaxed
    @given(shapes, st.booleans())
    def test_every_other_network_that_is_asked_for_takes_its_patch_too(self, median: Shape, gpu: bool) -> None:
        """Also where a volume is so small that 16 voxels along each axis would leave one voxel at the bottleneck."""
        for name in NETWORKS:
            planned = plan(make_catalog([median]), gpu=gpu, network__name=name)
            check_patch_size(name, planned["data.patch_size"])

    def test_it_comes_from_the_median_image(self) -> None:
        """One huge image among small ones, and one axis at a time."""
        catalog = make_catalog([(64, 96), (64, 96), (4000, 4000)])
        assert plan(catalog)["data.patch_size"] == [64, 96]
        assert plan(make_catalog([(64, 4000), (4000, 64), (64, 64)]))["data.patch_size"] == [64, 64]

    def test_a_gpu_gets_more(self) -> None:
        for shape in ((5000, 5000), (500, 500, 500)):
            small, large = (plan(make_catalog([shape]), gpu=gpu) for gpu in (False, True))
            assert math.prod(large["data.patch_size"]) > math.prod(small["data.patch_size"])
            assert large["length.steps"] > small["length.steps"]
            assert large["batch.labeled"] >= small["batch.labeled"]


class TestObjects:
    def test_the_boundary_counts_more_and_objects_are_compared(self) -> None:
        semantic = make_catalog([(64, 96)])
        objects = replace(semantic, meaning=Meaning("instances", task="instances"))
        planned = plan(objects)
        assert (planned["loss.class_weights"], planned["monitor.select"]) == ([1, 1, 3], "pq")
        assert not {"loss.class_weights", "monitor.select"} & plan(semantic).keys()

    @pytest.mark.parametrize("key", ["loss.preset", "loss.weights.dice", "loss.class_weights"])
    def test_an_own_loss_keeps_its_weights(self, key: str) -> None:
        objects = replace(make_catalog([(64, 96)]), meaning=Meaning("instances", task="instances"))
        assert "loss.class_weights" not in plan(objects, **{key.replace(".", "__"): 1})


ALTERNATIVES: dict[str, Any] = {
    "data.mask": "instances",
    "data.label_values": [0, 7],
    "data.channels": 3,
    "data.patch_size": [48, 80],
    "data.foreground_ratio": 0.71,
    "data.layout": "suffix",
    "batch.positive_ratio": 0.6,
    "network.name": "segresnet",
    "batch.labeled": 5,
    "batch.unlabeled": 11,
    "length.steps": 1234,
    "network.norm": "batch",
    "optim.lr": 1e-5,
    "optim.encoder_lr_factor": 0.9,
    "optim.warmup_steps": 3,
}
"""A value for every key of the plan that the plan would not choose."""

OWN = {"network.norm", "optim.lr", "optim.encoder_lr_factor"}
"""Planned for encoder_unet only."""
OPTIONAL = {*OWN, "optim.warmup_steps", "data.layout", "data.mask", "batch.positive_ratio"}
"""Keys of the plan that have a default too."""


class TestGiven:
    MANY: ClassVar = make_catalog([(200, 300)] * (FEW_LABELED + 1))

    def test_the_alternatives_are_those_of_the_plan(self) -> None:
        planned = plan(self.MANY)
        assert set(planned) == set(ALTERNATIVES)
        assert all(planned[key] != value for key, value in ALTERNATIVES.items())

    @relaxed
    @given(st.sets(st.sampled_from(sorted(ALTERNATIVES))), st.booleans())
    def test_given_settings_are_left_alone_and_the_rest_makes_a_configuration(self, keys: set[str], gpu: bool) -> None:
        own = [Layer("own", nest(key, ALTERNATIVES[key])) for key in sorted(keys)]
        merged: dict[str, Any] = {}
        for key in keys:
            section, _, name = key.partition(".")
            merged.setdefault(section, {})[name] = ALTERNATIVES[key]
        planned = run_plan(self.MANY, merged, gpu=gpu)
        # Another network, such as the one that takes a patch of 48x80, has the defaults of the settings.
        others = OWN if keys & {"network.name", "data.patch_size"} else set()
        left = set(ALTERNATIVES) - keys - others
        assert {p.key for p in planned} == left
        config, sources = build_config(merge_layers([*plan_layers(planned), *own]))
        values = dict(flatten(config.model_dump(mode="json")))
        assert {key: values[key] for key in keys} == {key: ALTERNATIVES[key] for key in keys}
        assert {key for key, source in sources.items() if source == "plan"} == left

    def test_nothing_else_is_touched(self) -> None:
        given: dict[str, Any] = {"method": {"name": "supervised"}, "data": {"channels": 2}}
        run_plan(make_catalog(), given)
        assert given == {"method": {"name": "supervised"}, "data": {"channels": 2}}


class TestFewLabels:
    @pytest.mark.parametrize(("labeled", "expected"), [(1, True), (FEW_LABELED, True), (FEW_LABELED + 1, False)])
    def test_unimatch_where_few_images_are_labeled(self, labeled: int, expected: bool) -> None:
        catalog = make_catalog([(64, 64)] * 9, [0.3] * labeled + [None] * (9 - labeled))
        planned = plan(catalog)
        assert ("method.name" in planned) == expected
        assert planned.get("method.name", "unimatch") == "unimatch"
        assert ("augment.cutmix" in planned) == expected
        layers = [*plan_layers(run_plan(catalog, {})), Layer("own", {"data": {"root": "x"}})]
        config, _ = build_config(merge_layers(layers))
        assert config.method.name == ("unimatch" if expected else "mean_teacher")

    @pytest.mark.parametrize(
        "given",
        [
            {"method": {"name": "mean_teacher"}},
            {"method": {"options": {"consistency": "kl"}}},
            {"network": {"name": "dynunet"}},
            {"data": {"patch_size": [48, 80]}},
            {"batch": {"unlabeled": 0}},
            {"length": {"steps": UNIMATCH_STEPS - 1}},
        ],
    )
    def test_not_where_something_else_is_asked_for(self, given: dict[str, Any]) -> None:
        assert "method.name" not in {p.key for p in run_plan(make_catalog(), given)}

    def test_a_run_that_is_long_enough(self) -> None:
        assert "method.name" in plan(length__steps=UNIMATCH_STEPS)

    def test_not_where_the_length_is_not_known_yet(self, particles_dir: Path) -> None:
        data = Layer("--data", {"data": {"root": str(particles_dir)}, "split": {"labels": 2}})
        for minutes, expected in ((None, "unimatch"), (5.0, "mean_teacher")):
            resolved = resolve(TrainRequest((data,), Path("nowhere"), minutes=minutes))
            assert resolved.config.method.name == expected

    def test_not_for_volumes_objects_or_without_unlabeled_images(self) -> None:
        assert "method.name" not in plan(make_catalog([(64, 64, 64)]))
        objects = replace(make_catalog(), meaning=Meaning("instances", task="instances", label_values=(0, 1, 2)))
        assert "method.name" not in plan(objects)
        planned = plan_run(make_catalog(), ["000"], (), {}, gpu=False)
        assert "method.name" not in {p.key for p in planned}


class TestNetwork:
    @pytest.mark.parametrize("gpu", [False, True])
    def test_the_published_encoder_but_for_volumes_on_a_gpu(self, gpu: bool) -> None:
        assert plan(make_catalog([(64, 64)]), gpu=gpu)["network.name"] == "encoder_unet"
        planned = plan(make_catalog([(64, 64, 64)]), gpu=gpu)
        assert planned["network.name"] == ("dynunet" if gpu else "encoder_unet")
        assert ("optim.encoder_lr_factor" in planned) == (not gpu)

    @pytest.mark.parametrize(
        ("size", "name"), [([64, 96], "encoder_unet"), ([48, 96], "dynunet"), ([32, 32], "dynunet")]
    )
    def test_a_patch_that_is_given_decides(self, size: list[int], name: str) -> None:
        planned = plan(data__patch_size=size)
        assert planned["network.name"] == name
        assert ("optim.lr" in planned) == (name == "encoder_unet")

    def test_random_weights_learn_as_fast_as_the_rest(self) -> None:
        given = {"network__name": "encoder_unet", "network__encoder_weights": "none"}
        assert "optim.encoder_lr_factor" not in plan(**given)
        assert "optim.lr" in plan(**given)


class TestWholePlan:
    @relaxed
    @given(
        st.lists(shapes_2d, min_size=1, max_size=5) | st.lists(shapes_3d, min_size=1, max_size=5),
        st.sampled_from([(0, 1), (0, 255), (0, 1, 2, 3)]),
        st.booleans(),
    )
    def test_plan_and_defaults_are_a_valid_configuration(
        self, shapes: list[Shape], label_values: tuple[int, ...], gpu: bool
    ) -> None:
        catalog = make_catalog(shapes, label_values=label_values)
        planned = run_plan(catalog, {}, gpu=gpu)
        config, _ = build_config(merge_layers([*plan_layers(planned)]))
        values = dict(flatten(config.model_dump(mode="json")))
        assert {p.key: p.value for p in planned} == {p.key: values[p.key] for p in planned}
        assert (config.data.ndim, config.data.num_classes) == (catalog.ndim, len(label_values))

    @pytest.mark.parametrize("left_out", sorted(set(ALTERNATIVES) - OPTIONAL))
    def test_no_required_setting_is_superfluous(self, left_out: str) -> None:
        planned = [p for p in run_plan(make_catalog(), {}) if p.key != left_out]
        section, _, name = left_out.partition(".")
        with pytest.raises(ConfigError, match=rf"^(plan: )?{section}(\.{name})?: missing"):
            build_config(merge_layers([*plan_layers(planned)]))

    def test_facts_of_the_data_are_taken_over(self) -> None:
        """Gray and color images need three channels; the label values are those of the masks."""
        catalog = make_catalog([(64, 64)] * 3, channels=[1, 3, 1], label_values=(0, 4, 9))
        planned = plan(catalog)
        assert planned["data.channels"] == 3
        assert planned["data.label_values"] == [0, 4, 9]
        assert plan(make_catalog(channels=[1]))["data.channels"] == 1

    def test_reasons_name_the_facts(self) -> None:
        catalog = make_catalog([(100, 200), (100, 200)], foreground=[0.25, None])
        reasons = {p.key: p.reason for p in run_plan(catalog, {})}
        assert "100x200" in reasons["data.patch_size"]
        assert "16384 voxels on a CPU" in reasons["data.patch_size"]
        assert "in 1 mask" in reasons["data.label_values"]
        assert "25.0%" in reasons["data.foreground_ratio"]
        assert all(reasons.values())

    def test_its_settings_are_named_and_nested(self) -> None:
        layers = plan_layers([Planned("a.b", 1, ""), Planned("a.c", [2, 3], ""), Planned("d", 4, "")])
        values, sources = merge_layers(layers)
        assert values == {"a": {"b": 1, "c": [2, 3]}, "d": 4}
        assert set(sources.values()) == {"plan"}


class TestUnlabeled:
    @pytest.mark.parametrize("given", [{}, {"batch__labeled": 6}])
    def test_supervised_needs_none(self, given: dict[str, Any]) -> None:
        assert plan(method__name="supervised", **given)["batch.unlabeled"] == 0

    def test_as_many_as_labeled(self) -> None:
        for gpu in (False, True):
            for method in ({}, {"method__name": "mean_teacher"}):
                planned = plan(gpu=gpu, **method)
                assert planned["batch.unlabeled"] == planned["batch.labeled"] > 0
                assert plan(gpu=gpu, batch__labeled=7, **method)["batch.unlabeled"] == 7


class TestWarmup:
    @pytest.mark.parametrize(
        ("steps", "expected"), [(1, 0), (9, 0), (10, 1), (12, 1), (499, 49), (500, 50), (501, 50), (100_000, 50)]
    )
    def test_fifty_or_a_tenth(self, steps: int, expected: int) -> None:
        assert plan(length__steps=steps)["optim.warmup_steps"] == expected

    def test_of_the_planned_length(self) -> None:
        planned = plan()
        assert planned["optim.warmup_steps"] == min(50, planned["length.steps"] // 10)

    @relaxed
    @given(st.integers(1, 5000))
    def test_every_length_leaves_steps_after_it(self, steps: int) -> None:
        own = {"length": {"steps": steps}}
        build_config(merge_layers([*plan_layers(run_plan(make_catalog(), own)), Layer("own", own)]))


class TestForegroundRatio:
    @pytest.mark.parametrize(
        ("shares", "ratio"),
        [
            ([0.01], 0.33),
            ([0.1499], 0.33),
            ([0.15], 0.0),
            ([0.5], 0.0),
            ([0.0, 0.0], 0.33),
            ([0.0, 0.4], 0.0),  # the mean over cases decides, not the rarest case
            ([0.05, 0.05, 0.4], 0.0),  # ... and not the median
            ([0.4, 0.4, 0.01, 0.01, 0.01, 0.01], 0.33),  # 0.14
            ([0.2, None, None, None], 0.0),  # a case without a mask is no case without foreground
            ([0.1, None], 0.33),
            ([None], 0.33),
        ],
    )
    def test_rare_foreground_is_looked_for(self, shares: list[float | None], ratio: float) -> None:
        catalog = make_catalog([(64, 64)] * len(shares), foreground=shares)
        assert plan(catalog)["data.foreground_ratio"] == ratio

    def test_only_labeled_training_cases_are_looked_at(self) -> None:
        """Masks of validation, test and the unlabeled pool are not for planning."""
        catalog = make_catalog([(64, 64)] * 4, foreground=[0.05, 0.9, 0.9, 0.9])
        for labeled, ratio in ((["000"], 0.33), (["001"], 0.0), (["000", "001"], 0.0), ([], 0.33)):
            values = {p.key: p.value for p in plan_run(catalog, labeled, UNLABELED, {}, gpu=False)}
            assert values["data.foreground_ratio"] == ratio


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 64)])
def test_networks_keep_their_own_width(shape: Shape, gpu: bool) -> None:
    assert "network.features" not in plan(make_catalog([shape]), gpu=gpu)


def test_the_patch_is_planned_on_the_grid_of_the_network() -> None:
    catalog = make_catalog([(96, 96)])
    given = replace(catalog, facts=state_spacing(catalog.facts, (1.0, 1.0)))
    assert plan(given, data__resample_to=[2.0, 1.0])["data.patch_size"] == [32, 96]
    assert plan(catalog, data__resample_to=[2.0, 1.0])["data.patch_size"] == [96, 96]


def test_no_unlabeled_patches_are_planned_where_there_is_no_such_case() -> None:
    labeled = [case.id for case in make_catalog().labeled]
    planned = {p.key: p.value for p in plan_run(make_catalog(), labeled, (), {}, gpu=False)}
    assert planned["batch.unlabeled"] == 0
    assert plan()["batch.unlabeled"] == plan()["batch.labeled"]


def test_cutmix_is_planned_for_methods_that_learn_from_it() -> None:
    assert plan(method__name="fixmatch")["augment.cutmix"] == METHODS["fixmatch"].traits.cutmix > 0
    assert "augment.cutmix" not in plan(method__name="mean_teacher")
    assert "augment.cutmix" not in plan(method__name="fixmatch", augment__cutmix=0.0)
    assert "augment.cutmix" not in plan(method__name="fixmatch", batch__unlabeled=1)  # there is no partner


def test_the_network_is_planned_for_what_the_method_needs() -> None:
    volumes = make_catalog([(32, 64, 64)])
    assert plan(volumes, gpu=True)["network.name"] == "dynunet"
    assert plan(volumes, gpu=True, method__name="unimatch")["network.name"] == "encoder_unet"
    assert plan(volumes, gpu=True, method__name="urpc")["network.deep_supervision"] == 2
    assert "network.deep_supervision" not in plan(volumes, gpu=True)
    assert "network.deep_supervision" not in plan(method__name="urpc", network__name="unet")  # refused later


def test_rare_positives_are_balanced() -> None:
    assert plan(make_catalog([(64, 64)] * 10, [0.2] * 4 + [0.0] * 6))["batch.positive_ratio"] == 0.5
    assert plan(make_catalog([(64, 64)] * 10, [0.2] * 6 + [0.0] * 4))["batch.positive_ratio"] is None
    assert plan(make_catalog([(64, 64)] * 10, [0.0] * 10))["batch.positive_ratio"] is None


def complete(given: dict[str, Any]) -> Config:
    return build_config(
        merge_layers([*plan_layers(run_plan(make_catalog([(60, 60, 60)]), given)), Layer("given", given)])
    )[0]


def test_the_data_are_read_with_numbers_that_yaml_takes_for_text(particles_dir: Path) -> None:
    data = {"root": str(particles_dir), "threshold": "5e-1", "tiles": "1"}
    read = resolve(TrainRequest((Layer("a.yaml", {"data": data, "batch": {"labeled": "2"}}),))).config
    assert (read.data.mask, read.data.threshold, read.batch.labeled) == ("binary", 0.5, 2)


def test_class_weights_are_one_over_the_share_of_each_class_and_written_out(particles_dir: Path) -> None:
    layers = (Layer("--x", {"data": {"root": str(particles_dir)}, "split": {"labels": 0.5}}),)
    given = Layer("--set", {"loss": {"class_weights": "auto"}})
    resolved = resolve(TrainRequest((*layers, given)))
    masks = [read_mask(str(particles_dir / "masks" / f"{name}.png")) > 0 for name in resolved.labeled]
    share = np.mean(np.concatenate([mask.ravel() for mask in masks]))
    assert resolved.config.loss.class_weights == pytest.approx((1 / (1 - share), 1 / share), rel=1e-3)
    assert resolve(TrainRequest(layers)).config.loss.class_weights is None
    assert compute_class_weights([34, 66]) == (2.941, 1.515)
    assert compute_class_weights([50, 0, 50]) == (2.0, 1.0, 2.0)
