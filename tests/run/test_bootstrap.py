from __future__ import annotations

from typing import Any

import pytest
from score_counts import make_net_score as net
from score_counts import make_scores

from ssl_seg.config import BootstrapConfig, Config, DataConfig
from ssl_seg.config.layers import Layer, build_config, flatten, merge_layers, to_plain
from ssl_seg.data.splits.files import split_from_dict, split_to_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import counted
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress
from ssl_seg.run.bootstrap import (
    check_parent,
    describe_doubt,
    describe_fewer_labels,
    describe_other_input,
    describe_parent,
    parent_layer,
)

SETTINGS = {
    "seed": 4,
    "data": {
        "root": "/data/a",
        "groups": "/data/groups.csv",
        "label_values": [0, 9],
        "channels": 3,
        "patch_size": [64, 64],
        "foreground_ratio": 0.2,
    },
    "split": {"file": "/data/split.yaml", "labels": 0.5, "seed": 8},
    "network": {"name": "unet", "features": 8},
    "method": {"name": "mean_teacher", "options": {"consistency_weight": 3.0}},
    "optim": {"lr": 0.02, "warmup_steps": 7},
    "batch": {"labeled": 3, "unlabeled": 6},
    "length": {"steps": 90, "steps_per_epoch": 30},
    "runtime": {"precision": "fp32", "devices": 2},
}


GOOD = make_scores(net(0.7), net(0.6))


def make_split(
    pool: str, val: str = "", test: str = "", *, dataset: str = "a", content: dict[str, str] | None = None
) -> Split:
    """A split whose ids are letters; the content of 'x' is x in all its digits unless given."""
    digits = {i: f"image-{i:_>6}mask" for i in pool + val + test} | (content or {})
    half = tuple(pool[: len(pool) // 2])
    return Split(dataset, 0, {0.5: half, 1.0: tuple(pool)}, (), tuple(val), tuple(test), {}, digits, ())


def make_parent(
    split: Split | None = None, scores: dict[str, Any] | None = None, labels: float = 0.5, before: str = ""
) -> Checkpoint:
    """A parent that builds on runs in which the images ``before`` were labeled."""
    split = split or make_split("abcd", "ef", "gh")
    seen = split.image_contents(split.labeled_ids(labels)) | make_split(before).image_contents(before)
    config, _ = build_config(merge_layers([Layer("test", SETTINGS), Layer("test", {"split": {"labels": labels}})]))
    return Checkpoint(
        student={},
        teacher={},
        progress=RunProgress(step=90, ema_updates=90, start_score=0.7),
        config=to_plain(config),
        split=split_to_dict(split),
        scores=GOOD if scores is None else scores,
        seen_labels=tuple(sorted(seen)),
    )


def inherited(*given: str) -> dict[str, Any]:
    return dict(flatten(parent_layer(make_parent().config, "parent.pt", given).values))


ELSEWHERE = {
    f"data.{name}" for name in ("groups", "unlabeled", "label_values", "mask", "threshold", "channels", "tiles")
}
"""Settings that another folder decides anew."""


class TestParentLayer:
    def test_all_but_the_machine_and_the_split_file(self) -> None:
        own = dict(flatten(make_parent().config))
        kept = inherited()
        left_out = {key for key in own if key not in kept}
        machine = {key for key in own if key.startswith(("runtime.", "bootstrap."))}
        assert left_out == machine | {"split.file", "network.pretrained", "data.pseudo_labels", "augment.invert"}
        sections = [Config.model_fields[name].default.model_dump() for name in ("runtime", "bootstrap")]
        assert len(left_out) == sum(len(dict(flatten(section))) for section in sections) + 4
        assert kept == {key: value for key, value in own.items() if key not in left_out}

    @pytest.mark.parametrize(
        ("given", "dropped"),
        [
            ("length.steps", {"optim.warmup_steps"}),
            ("method.name", {"method.options.consistency_weight", "batch.unlabeled", "augment.cutmix"}),
            ("data.root", ELSEWHERE),
            ("split.labels", set()),
            ("optim.lr", set()),
            ("length.steps_per_epoch", set()),
            ("data.patch_size", set()),
        ],
    )
    def test_what_depends_on_a_changed_setting_is_left_out(self, given: str, dropped: set[str]) -> None:
        assert set(inherited()) - set(inherited(given)) == dropped
        assert set(inherited(given)) <= set(inherited())

    def test_cutmix_that_was_set_stays_with_another_method(self) -> None:
        config = make_parent().config
        config["augment"]["cutmix"] = 0.25
        layer = parent_layer(config, "parent.pt", {"method.name"})
        assert layer.values["augment"]["cutmix"] == 0.25

    def test_exchange_of_bright_and_dark_is_kept_and_its_absence_is_not(self) -> None:
        config = make_parent().config
        for probability in (0.0, 0.5):
            config["augment"]["invert"] = probability
            kept = dict(flatten(parent_layer(config, "parent.pt", set()).values))
            assert kept.get("augment.invert", 0.0) == probability
            assert ("augment.invert" in kept) == (probability > 0)

    def test_several_changes_add_up(self) -> None:
        gone = set(inherited()) - set(inherited("length.steps", "data.root"))
        assert gone == {"optim.warmup_steps"} | ELSEWHERE

    def test_it_is_named_and_the_parent_stays_as_it_is(self) -> None:
        parent = make_parent()
        layer = parent_layer(parent.config, "parent.pt", {"method.name", "data.root", "length.steps"})
        assert layer.source == "parent.pt"
        assert parent.config == make_parent().config

    def test_with_the_machine_of_the_new_run_it_is_a_configuration(self) -> None:
        config, sources = build_config(
            merge_layers([parent_layer(make_parent().config, "parent.pt", ()), Layer("--lr", {"optim": {"lr": 1}})])
        )
        assert config.runtime.devices == 1
        assert config.split.file is None
        assert (config.optim.lr, config.optim.warmup_steps, config.split.labels) == (1, 7, 0.5)
        assert sources["optim.warmup_steps"] == "parent.pt"


def test_images_that_the_parent_saw_otherwise_are_told() -> None:
    parent = make_parent()
    data = DataConfig(**parent.config["data"])
    assert describe_other_input(parent, data) == []
    (said,) = describe_other_input(parent, data.model_copy(update={"window": (0.0, 255.0)}))
    assert "data.window = None and this run has [0.0, 255.0]" in said
    (said,) = describe_other_input(parent, data.model_copy(update={"resample_to": (1.0, 2.0)}))
    assert "data.resample_to = None and this run has [1.0, 2.0]" in said


def test_a_start_with_fewer_labels_than_the_parent_had_is_told() -> None:
    parent = make_parent()
    labeled = split_from_dict(parent.split).labeled_ids(parent.config["split"]["labels"])
    assert describe_fewer_labels(parent, labeled, 0.5) == []
    assert describe_fewer_labels(parent, (*labeled, "more"), 1.0) == []
    (said,) = describe_fewer_labels(parent, labeled[1:], 0.25)
    assert (
        f"gives this run {counted(len(labeled) - 1, 'labeled image')}, fewer than the {len(labeled)} of the parent"
        in said
    )


def test_the_record_names_the_net_that_is_built_on() -> None:
    assert describe_parent(make_parent()) == {"net": "student", "step": 90, "scores": GOOD, "doubt": None}
    assert describe_parent(make_parent(scores=make_scores(net(0.7), net(0.8))))["net"] == "teacher"


class TestMargin:
    def check(self, student: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
        scores = make_scores(student, teacher)
        return check_parent(make_parent(scores=scores), make_split("abcd", "ef", "gh"))

    @pytest.mark.parametrize(
        ("score", "usable"),
        [
            (net(0.7, 0.2, 0.1), True),
            (net(0.7, 0.2, -0.1), True),  # within chance: a warning, no refusal
            (net(0.7, 0.011, -0.1), True),
            (net(0.7, 0.01, -0.1), False),
            (net(0.4615, 0.0, 0.0, 0.0), False),
            (net(0.7, -0.2, -0.3, -0.1), False),
            (net(0.7, 0.2, None, None), True),  # no interval, as after an interrupted run
            (net(0.7, 0.0, None, None), False),
        ],
    )
    def test_above_trivial(self, score: dict[str, Any], usable: bool) -> None:
        for student, teacher in ((score, net(0.1)), (net(0.1), score)):
            assert (self.check(student, teacher) == []) == usable

    def test_a_high_f1_alone_is_no_reason(self) -> None:
        """At 90 % foreground predicting foreground everywhere scores 0.947."""
        assert self.check(net(0.947, 0.0, 0.0, 0.0), net(0.94)) != []

    def test_the_better_net_is_judged(self) -> None:
        trivial = net(0.2, -0.2, -0.3)
        assert self.check(net(0.7), trivial) == []
        assert self.check(trivial, net(0.7)) == []
        assert self.check(net(0.7, -0.1, -0.2), net(0.6)) != []

    def test_on_a_tie_the_net_that_is_built_on_is_judged(self) -> None:
        """Pooled over classes, one F1 can come with two margins."""
        assert self.check(net(0.5), net(0.5, -0.1, -0.2)) != []
        assert self.check(net(0.5, -0.1, -0.2), net(0.5)) == []

    def test_the_reason_has_the_numbers(self) -> None:
        (reason,) = self.check(net(0.1), net(0.41, 0.01, -0.01, 0.05))
        for text in ("(teacher)", "F1 0.410", "0.400", "+0.010", "not above trivial"):
            assert text in reason
        (reason,) = self.check(net(0.39, -0.01, None, None), net(0.1))
        assert "(student)" in reason

    @pytest.mark.parametrize(
        ("score", "doubtful"),
        [
            (net(0.7, 0.2, 0.1), False),
            (net(0.7, 0.2, 0.0), True),
            (net(0.7, 0.2, -0.1), True),
            (net(0.7, 0.2, None, None), False),
        ],
    )
    def test_a_margin_within_chance_is_a_warning(self, score: dict[str, Any], doubtful: bool) -> None:
        scores = make_scores(score, net(0.1))
        doubt = describe_doubt(make_parent(scores=scores))
        assert (doubt is not None) == doubtful
        if doubt:
            assert "+0.200" in doubt
            assert f"{score['margin_low']:+.3f} to +0.300" in doubt


class TestLeaks:
    """The parent has seen the labels of a and b (half of its pool a b c d)."""

    parent_split = make_split("abcd", "ef", "gh")

    def check(self, split: Split, labels: float = 0.5) -> list[str]:
        return check_parent(make_parent(self.parent_split, labels=labels), split)

    def test_its_own_split_is_fine(self) -> None:
        assert self.check(self.parent_split) == []
        assert self.check(self.parent_split, labels=1.0) == []

    def test_validation_and_test_are_told_apart(self) -> None:
        (reason,) = self.check(make_split("ef", "abc", "gh"))
        assert reason.startswith("2 validation cases")
        assert "'a'" in reason
        (reason,) = self.check(make_split("ef", "gh", "cb"))
        assert reason.startswith("1 test case")
        assert "'b'" in reason
        assert len(self.check(make_split("cd", "a", "b"))) == 2

    def test_only_labels_that_were_used_count(self) -> None:
        """c and d were in the parent's pool, but not labeled at a half."""
        assert self.check(make_split("ab", "c", "d")) == []
        assert len(self.check(make_split("ab", "c", "d"), labels=1.0)) == 2
        assert len(self.check(make_split("ab", "c", "d"), labels=3)) == 1

    def test_new_training_cases_may_be_any(self) -> None:
        assert self.check(make_split("abefgh", "c", "d")) == []

    def test_renamed_images_are_found_by_content(self) -> None:
        renamed = {"v": self.parent_split.content["b"]}
        for dataset in ("a", "b"):
            (reason,) = self.check(make_split("xy", "uv", "w", dataset=dataset, content=renamed))
            assert reason.startswith("1 validation case")
            assert "'v'" in reason
        assert self.check(make_split("xy", "uv", "w", content={"v": self.parent_split.content["c"]})) == []

    def test_another_mask_does_not_make_it_another_image(self) -> None:
        """Only the first 12 digits stand for the image."""
        own = self.parent_split.content["b"]
        assert len(self.check(make_split("xy", "uv", content={"v": own[:12] + "0000"}))) == 1
        assert self.check(make_split("xy", "uv", content={"v": own[:11] + "#0000"})) == []

    def test_equal_names_of_other_images_are_no_leak(self) -> None:
        """Names such as 0001 are everywhere, and folders named data too."""
        other = {i: f"other-{i:_>6}mask" for i in "abcdef"}
        for dataset in ("a", "b"):
            assert self.check(make_split("cd", "a", "b", dataset=dataset, content=other)) == []
            assert len(self.check(make_split("cd", "a", "b", dataset=dataset))) == 2

    def test_labels_of_a_grandparent_count_as_those_of_the_parent(self) -> None:
        parent = make_parent(self.parent_split, before="uv")
        assert check_parent(parent, make_split("xy", "w", "z")) == []
        (reason,) = check_parent(parent, make_split("xy", "uw", "z"))
        assert reason.startswith(
            "1 validation case of this run was among the labeled training cases of a run that the parent"
        )
        assert "'u'" in reason
        assert "Use the parent's split" in reason
        both = check_parent(parent, make_split("xy", "b", "v"))
        assert ["of the parent," in reason for reason in both] == [True, False]

    def test_the_split_of_a_forced_parent_is_no_way_out(self) -> None:
        (reason,) = check_parent(make_parent(self.parent_split, before="e"), self.parent_split)
        assert "'e'" in reason
        assert "start from another parent" in reason

    def test_a_margin_and_a_leak_are_both_named(self) -> None:
        scores = {**GOOD, "student": net(0.7, 0.0, -0.1)}
        reasons = check_parent(make_parent(self.parent_split, scores), make_split("cd", "a", "e"))
        assert len(reasons) == 2
        assert "not above trivial" in reasons[0]
        assert "validation case" in reasons[1]

    def test_without_a_gate_a_leak_is_refused_all_the_same(self) -> None:
        scores = {**GOOD, "student": net(0.7, 0.0, -0.1)}
        options = BootstrapConfig(gate="none")
        (reason,) = check_parent(make_parent(self.parent_split, scores), make_split("cd", "a", "e"), options)
        assert "validation case" in reason
        assert check_parent(make_parent(self.parent_split, scores), make_split("cd", "e", "f"), options) == []
