"""What a new run takes over from its parent: each option of the section bootstrap by what it does to the networks."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Notes, same_weights, train_tiny
from interruption import interrupted_after
from pydantic import ValidationError
from score_counts import make_net_score as score
from score_counts import make_scores
from test_engine import make_engine
from test_methods import LOSS, call, make_batch, make_batch_for, make_nets
from torch import nn

from ssl_seg.config import BootstrapConfig, Config
from ssl_seg.config.curves import compute_curves
from ssl_seg.config.layers import Layer, build_config, merge_layers, to_plain
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.errors import CheckpointError, ConfigError, RefusedError
from ssl_seg.inference.model import config_of, make_network
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import StepProgress
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress, load_checkpoint, save_checkpoint
from ssl_seg.networks.parts import PARTS, find_tensors
from ssl_seg.run.bootstrap import check_parent, choose_net, describe_doubt, parent_layer
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train
from ssl_seg.run.transfer import check_options, load_student, load_teacher

BASE = {
    "data": {"label_values": [0, 1], "channels": 1, "patch_size": [64, 64], "foreground_ratio": 0.0},
    "network": {"name": "dynunet", "features": 4},
    "batch": {"labeled": 2, "unlabeled": 2},
    "length": {"steps": 100},
    "optim": {"warmup_steps": 5},
}


def make_config(*settings: dict[str, Any], **bootstrap: Any) -> Config:
    return build_config(merge_layers([Layer("test", s) for s in (BASE, *settings, {"bootstrap": bootstrap})]))[0]


def make_net(config: Config, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make_network(config)


def make_parent(*settings: dict[str, Any], better: str = "student", updates: int = 70, **bootstrap: Any) -> Checkpoint:
    config = make_config(*settings, **bootstrap)
    f1 = {"student": 0.5, "teacher": 0.5} | {better: 0.7}
    scores = make_scores(**{net: score(value) for net, value in f1.items()})
    nets = {name: make_net(config, seed).state_dict() for seed, name in ((1, "student"), (2, "teacher"))}
    return Checkpoint(
        **nets,
        progress=RunProgress(100, updates),
        config=to_plain(config),
        split={},
        scores=scores,
        seen_labels=(),
    )


def equal_names(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    """Norms start as 1 and 0 in every network: names of tensors that are equal without being all alike."""
    return {n for n in a if a[n].shape == b[n].shape and torch.equal(a[n], b[n]) and len(a[n].unique()) > 1}


class TestStudent:
    def load(self, config: Config, parent: Checkpoint) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        fresh = make_net(config, 3)
        before = {n: v.clone() for n, v in fresh.state_dict().items()}
        load_student(fresh, parent, config, "parent.pt")
        return fresh, before

    @pytest.mark.parametrize(
        ("start", "better", "expected"),
        [
            ("better", "student", "student"),
            ("better", "teacher", "teacher"),
            ("student", "teacher", "student"),
            ("teacher", "student", "teacher"),
        ],
    )
    def test_it_starts_from_the_net_asked_for(self, start: str, better: str, expected: str) -> None:
        parent, config = make_parent(better=better), make_config(start=start)
        net, _ = self.load(config, parent)
        assert choose_net(parent, config.bootstrap) == expected
        assert all(torch.equal(v, getattr(parent, expected)[n]) for n, v in net.state_dict().items())

    @pytest.mark.parametrize("name", PARTS)
    @pytest.mark.parametrize("options", [{"parts": "encoder"}, {"reset_head": True}])
    def test_parts_come_from_the_parent_and_the_rest_is_new(self, name: str, options: dict[str, Any]) -> None:
        network = {"network": {"name": name, "features": None if name == "vnet" else 4}}
        parent = make_parent(network)
        net, before = self.load(make_config(network, **options), parent)
        state, parts = net.state_dict(), PARTS[name](net)
        encoder, head = find_tensors(net, parts.encoder), find_tensors(net, parts.head)
        taken = encoder if "parts" in options else state.keys() - head
        assert all(torch.equal(state[n], parent.student[n]) for n in taken)
        assert all(torch.equal(state[n], before[n]) for n in state.keys() - taken)
        assert equal_names(parent.student, before) == set()  # or this would prove nothing
        assert equal_names(state, before)

    @pytest.mark.parametrize("options", [{"parts": "encoder"}, {"reset_head": True}])
    def test_a_parent_of_other_classes(self, options: dict[str, Any]) -> None:
        parent = make_parent({"data": {"label_values": [0, 1, 2, 3]}})
        net, _ = self.load(make_config(**options), parent)
        images = torch.randn(1, 1, 64, 64)
        assert net(images).shape[1] == 2
        with pytest.raises(CheckpointError, match="number of classes"):
            self.load(make_config(), parent)
        with pytest.raises(CheckpointError, match="number of classes"):
            load_teacher(net, parent, make_config(**options, pseudo_label_steps=3), "parent.pt")

    def test_another_network_is_refused_also_in_part(self) -> None:
        parent = make_parent({"network": {"name": "basic_unet"}})
        with pytest.raises(CheckpointError, match=r"parent\.pt holds a different network"):
            self.load(make_config(parts="encoder"), parent)
        with pytest.raises(CheckpointError, match="does not fit"):
            self.load(make_config(reset_head=True), make_parent({"network": {"features": 8}}))


class TestTeacher:
    def load(self, parent: Checkpoint, **options: Any) -> tuple[dict[str, torch.Tensor], int]:
        config = make_config(**options)
        net = make_net(config, 3)
        updates = load_teacher(net, parent, config, "parent.pt")
        return net.state_dict(), updates

    def test_it_stays_a_copy_of_the_student_unless_asked(self) -> None:
        state, updates = self.load(make_parent())
        assert updates == 0
        own = make_net(make_config(), 3).state_dict()
        assert all(torch.equal(v, own[n]) for n, v in state.items())

    @pytest.mark.parametrize(("held", "count"), [(0, 70), (50, 20), (90, 0)])
    def test_the_average_goes_on(self, held: int, count: int) -> None:
        parent = make_parent(pseudo_label_steps=held)
        state, updates = self.load(parent, restart_ema=False, start="student")
        assert updates == count
        assert all(torch.equal(v, parent.teacher[n]) for n, v in state.items())

    def test_a_parent_of_an_older_version_counted_all_its_steps(self) -> None:
        parent = make_parent()
        older = replace(parent, config={k: v for k, v in parent.config.items() if k != "bootstrap"})
        assert self.load(older, restart_ema=False)[1] == 70

    @pytest.mark.parametrize("options", [{}, {"parts": "encoder"}, {"reset_head": True}, {"start": "teacher"}])
    def test_pseudo_labels_come_from_the_whole_parent(self, options: dict[str, Any]) -> None:
        parent = make_parent()
        state, updates = self.load(parent, pseudo_label_steps=4, **options)
        assert updates == 0
        assert all(torch.equal(v, getattr(parent, options.get("start", "student"))[n]) for n, v in state.items())


class TestHeldTeacher:
    @pytest.mark.parametrize("warmup", [True, False])
    def test_it_stays_then_copies_the_student_then_averages(self, warmup: bool) -> None:
        decay = (lambda n: min(0.9, 1 - 1 / (n + 1))) if warmup else (lambda _: 0.9)
        student = nn.Linear(1, 1)
        teacher = EMATeacher(student, decay, held=3)
        torch.nn.init.constant_(teacher.net.weight, 50.0)
        values, held = [], []
        for value in (1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            torch.nn.init.constant_(student.weight, value)
            held.append(teacher.is_held)
            teacher.update(student)
            values.append(teacher.net.weight.item())
        after = [4.0, 5.0, 6.0] if warmup else [4.0, 0.9 * 4 + 0.6, 0.9 * (0.9 * 4 + 0.6) + 0.8]
        assert held == [True, True, True, False, False, False]
        assert values == pytest.approx([50.0, 50.0, 50.0, *after])
        assert teacher.updates == 6

    def test_nan_in_the_student_does_not_reach_it(self) -> None:
        student = nn.Linear(1, 1)
        teacher = EMATeacher(student, lambda _: 0.9, held=1)
        torch.nn.init.constant_(student.weight, math.nan)
        teacher.update(student)
        assert math.isfinite(teacher.net.weight.item())

    @pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.traits.uses_teacher])
    def test_what_a_fixed_teacher_says_counts_in_full(self, name: str) -> None:
        """At step 0 as at the last one, for every method with a teacher; an intervention still has its way."""
        wanted = {"rampup_ratio": 0.4, "confidence": 0.5, "first_stage": 0.0}
        options = {key: value for key, value in wanted.items() if key in METHODS[name].config_type.model_fields}
        method = make_method(name, options, LOSS, 2)
        nets, batch = make_nets(method=method), make_batch_for(method)

        def loss(step: int, **progress: Any) -> float:
            return call(method, nets, batch, StepProgress(step, 100, **progress)).loss.item()

        assert loss(0, teacher_is_fixed=True) == pytest.approx(loss(99))
        assert loss(0) != pytest.approx(loss(99))
        off = {"unlabeled_factor": 0.0}
        assert loss(0, teacher_is_fixed=True, **off) == pytest.approx(loss(0, **off))

    def test_the_step_tells_the_method(self) -> None:
        engine, seen = make_engine(), []
        engine.teacher.held, method = 2, engine.method
        engine.method = lambda nets, batch, progress: (
            seen.append(progress.teacher_is_fixed) or method(nets, batch, progress)
        )
        for step in range(4):
            engine.step(make_batch(), step, 1e-3)
        assert seen == [True, True, False, False]

    def test_the_drawn_curves_are_those_of_the_run(self) -> None:
        method = {"method": {"options": to_plain(METHODS["mean_teacher"].config_type())}}
        curves = compute_curves(make_config(method, pseudo_label_steps=20))
        plain = compute_curves(make_config(method))
        assert curves.ema_decay[:21] == (1.0,) * 20 + (0.0,)
        assert curves.ema_decay[20:] == plain.ema_decay[: len(curves.steps) - 20]
        assert curves.consistency_weight is not None
        assert plain.consistency_weight is not None
        assert curves.consistency_weight[:20] == (1.0,) * 20
        assert curves.consistency_weight[20:] == plain.consistency_weight[20:]


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"restart_ema": False, "parts": "encoder"},
            {"restart_ema": False, "reset_head": True},
            {"restart_ema": False, "pseudo_label_steps": 5},
            {"pseudo_label_steps": -1},
            {"start": "best"},
            {"parts": "decoder"},
            {"gate": "f1"},
        ],
    )
    def test_contradictions(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            BootstrapConfig(**options)

    @pytest.mark.parametrize(
        "options",
        [
            {"start": "teacher"},
            {"parts": "encoder"},
            {"reset_head": True},
            {"restart_ema": False},
            {"pseudo_label_steps": 1},
            {"gate": "interval"},
        ],
    )
    def test_without_a_parent_each_is_an_error(self, options: dict[str, Any]) -> None:
        ((key, value),) = options.items()
        config = make_config(**options)
        with pytest.raises(ConfigError, match=f"^--set x: bootstrap.{key} = {value}: .*--bootstrap"):
            check_options(config, {f"bootstrap.{key}": "--set x"}, has_parent=False)
        check_options(config, {}, has_parent=True)
        check_options(make_config(), {}, has_parent=False)

    @pytest.mark.parametrize(
        ("settings", "options", "message"),
        [
            (
                {"method": {"name": "supervised"}},
                {"pseudo_label_steps": 5},
                "learns nothing from a teacher.*mean_teacher",
            ),
            ({"length": {"steps": 20}}, {"pseudo_label_steps": 20}, "must be below length.steps = 20"),
            ({"ema": {"schedule": "cosine", "final_decay": 1.0}}, {"restart_ema": False}, "ema.schedule = cosine"),
        ],
    )
    def test_what_cannot_act(self, settings: dict[str, Any], options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_options(make_config(settings, **options), {}, has_parent=True)
        check_options(make_config(settings), {}, has_parent=True)
        check_options(make_config({"length": {"steps": 21}}, **options), {}, has_parent=True)

    def test_they_are_not_passed_on(self) -> None:
        """How the parent was started says nothing about its child."""
        layer = parent_layer(make_parent(parts="encoder", gate="interval").config, "parent.pt", ())
        assert "bootstrap" not in layer.values


class TestGate:
    def check(self, student: dict[str, Any], teacher: dict[str, Any], **options: Any) -> list[str]:
        split = {"schema": 1, "dataset": "d", "seed": 0, "notes": [], "fractions": {1.0: ["a"]}, "unlabeled": []}
        split |= {"val": ["b"], "test": [], "groups": {}, "content": {"a": "1" * 16, "b": "2" * 16}, "fingerprint": ""}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssl_seg.data.splits.split.Split.fingerprint", "")
            scores = make_scores(student, teacher)
            parent = replace(make_parent(), scores=scores, split=split)
            return check_parent(parent, split_from_dict(split), BootstrapConfig(**options))

    def test_the_nets_that_are_used_are_judged(self) -> None:
        good, trivial = score(0.7), score(0.4, 0.0, -0.1)
        assert self.check(good, trivial) == []
        assert self.check(good, trivial, start="student") == []
        assert "its teacher has" in self.check(good, trivial, start="teacher")[0]
        assert "its student has" in self.check(trivial, good, start="student")[0]
        assert "its teacher has" in self.check(good, trivial, restart_ema=False)[0]
        assert self.check(trivial, good, restart_ema=False) == []
        assert len(self.check(trivial, trivial, restart_ema=False, start="student")) == 2

    @pytest.mark.parametrize(
        ("low", "gate", "refused"),
        [(0.01, "interval", False), (0.0, "interval", True), (-0.1, "interval", True), (-0.1, "margin", False)],
    )
    def test_interval_asks_for_more_than_margin(self, low: float, gate: str, refused: bool) -> None:
        reasons = self.check(score(0.7, 0.2, low), score(0.1, -0.3, -0.4), gate=gate)
        assert [("within chance" in r, f"{low:+.3f} to +0.300" in r) for r in reasons] == [(True, True)] * refused

    def test_an_unknown_interval_does_not_pass_the_gate_on_intervals(self) -> None:
        (reason,) = self.check(score(0.7, 0.2, None), score(0.1, -0.3, None), gate="interval")
        assert "not known" in reason
        assert self.check(score(0.7, 0.2, None), score(0.1, -0.3, None)) == []

    def test_too_few_cases_pass_no_gate_on_intervals_and_are_a_doubt(self) -> None:
        few = score(0.7, 0.2, None) | {"margin_why": "too few cases (4 < 8)"}
        (reason,) = self.check(few, few, gate="interval")
        assert "too few cases (4 < 8)" in reason
        assert self.check(few, few) == []
        doubt = describe_doubt(replace(make_parent(), scores=make_scores(few, few)))
        assert doubt is not None
        assert doubt.endswith("+0.200, has no interval (too few cases (4 < 8))")

    def test_a_doubt_is_about_the_nets_that_are_used(self) -> None:
        scores = make_scores(score(0.7), score(0.5, 0.1, -0.1))
        parent = replace(make_parent(), scores=scores)
        assert describe_doubt(parent) is None
        assert describe_doubt(parent, BootstrapConfig(start="teacher")) is not None
        assert describe_doubt(parent, BootstrapConfig(restart_ema=False)) is not None


@pytest.fixture(scope="module")
def parent_path(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that the gate lets pass."""
    checkpoint = load_checkpoint(tiny_run / "checkpoints" / "last.pt")
    scores = make_scores(score(0.7), score(0.6), trivial=0.3)
    path = tmp_path_factory.mktemp("parent") / "parent.pt"
    save_checkpoint(replace(checkpoint, scores=scores), path)
    return path


def start(parent: Path, out: Path, *settings: dict[str, Any], **bootstrap: Any) -> Any:
    layers = [Layer("--x", s) for s in ({"runtime": TINY["runtime"]}, *settings, {"bootstrap": bootstrap})]
    return train(TrainRequest(tuple(layers), out, bootstrap=parent))


class TestRuns:
    def test_a_warm_start_with_pseudo_labels_goes_on_with_equal_bits(self, parent_path: Path, tmp_path: Path) -> None:
        """Stopped while the teacher is held, and again after that."""
        options = {"pseudo_label_steps": 4, "parts": "encoder"}
        length, out = {"length": {"steps": 8, "steps_per_epoch": 4}}, tmp_path / "stopped"
        whole = start(parent_path, tmp_path / "whole", length, **options)
        weights = [r.get("train/consistency_weight") for r in whole.run.read_metrics() if 0 < r["step"] <= 4]
        assert weights
        assert set(weights) == {1.0}
        with interrupted_after(2):
            stopped = start(parent_path, out, length, **options)
        self.check_teacher(stopped, parent_path, step=2, is_parent=True)
        with interrupted_after(5):
            stopped = train(TrainRequest(resume=out))
        self.check_teacher(stopped, parent_path, step=5, is_parent=False)
        assert train(TrainRequest(resume=out)).ending == "finished"
        for name in ("last", "best"):
            one, other = (getattr(result.run, name) for result in (whole, stopped))
            assert same_weights(one, other)
            assert load_checkpoint(one).progress == load_checkpoint(other).progress

    def check_teacher(self, stopped: Any, parent_path: Path, *, step: int, is_parent: bool) -> None:
        assert (stopped.ending, stopped.step) == ("interrupted", step)
        held, own = load_checkpoint(stopped.run.last), load_checkpoint(parent_path).student
        assert held.progress.ema_updates == step
        assert all(torch.equal(v, own[n]) for n, v in held.teacher.items()) == is_parent

    def test_an_average_that_goes_on(self, parent_path: Path, tmp_path: Path) -> None:
        settings = {"length": {"steps": 2}, "optim": {"lr": 1e-12}}
        result = start(parent_path, tmp_path / "run", settings, restart_ema=False, start="student")
        child, parent = load_checkpoint(result.run.last), load_checkpoint(parent_path)
        assert child.progress.ema_updates == parent.progress.ema_updates + 2
        name = max(child.teacher, key=lambda n: child.teacher[n].numel())
        decay = [1 - 1 / (n + 1) for n in (12, 13)]
        kept = math.prod(decay)
        expected = kept * parent.teacher[name] + (1 - kept) * parent.student[name]
        torch.testing.assert_close(child.teacher[name], expected, atol=1e-6, rtol=1e-4)
        assert config_of(child, result.run.last).bootstrap.restart_ema is False

    def test_a_child_does_not_inherit_how_its_parent_was_started(self, parent_path: Path, tmp_path: Path) -> None:
        first = start(parent_path, tmp_path / "a", {"length": {"steps": 2}}, reset_head=True, start="teacher")
        checkpoint = load_checkpoint(first.run.last)
        save_checkpoint(replace(checkpoint, scores=load_checkpoint(parent_path).scores), tmp_path / "a.pt")
        second = start(tmp_path / "a.pt", tmp_path / "b", {"length": {"steps": 1}})
        assert config_of(load_checkpoint(second.run.last), tmp_path).bootstrap == BootstrapConfig()

    def test_refusals_leave_nothing_behind(self, parent_path: Path, particles_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        with pytest.raises(ConfigError, match=r"--test: bootstrap.start = teacher: .*--bootstrap CHECKPOINT"):
            train_tiny(out, particles_dir, {"bootstrap": {"start": "teacher"}})
        with pytest.raises(ConfigError, match=r"bootstrap: .*restart_ema = false"):
            start(parent_path, out, restart_ema=False, parts="encoder")
        with pytest.raises(ConfigError, match="learns nothing from a teacher"):
            start(parent_path, out, {"method": {"name": "supervised"}}, pseudo_label_steps=1)
        with pytest.raises(ConfigError, match="did you mean 'reset_head'"):
            start(parent_path, out, reset_heads=True)
        with pytest.raises(CheckpointError, match=r"network\.features"):
            start(parent_path, out, {"network": {"features": 8}}, parts="encoder")
        checkpoint = load_checkpoint(parent_path)
        doubtful = {**checkpoint.scores, "student": score(0.7, 0.2, -0.1)}
        save_checkpoint(replace(checkpoint, scores=doubtful), tmp_path / "doubtful.pt")
        with pytest.raises(RefusedError, match=r"bootstrap\.gate = interval"):
            start(tmp_path / "doubtful.pt", out, gate="interval")
        assert not out.exists()

    def test_pseudo_labels_without_unlabeled_images_are_no_reason_to_refuse(
        self, parent_path: Path, tmp_path: Path
    ) -> None:
        """The last rung of a ladder often has none; the teacher is held at its parent all the same."""
        console = Notes()
        write_dataset(tmp_path / "data", "particles", 8)
        checkpoint = load_checkpoint(train_tiny(tmp_path / "all", tmp_path / "data", {"length": {"steps": 1}}).run.last)
        scores = load_checkpoint(parent_path).scores
        save_checkpoint(replace(checkpoint, scores=scores), tmp_path / "p.pt")
        settings = {"length": {"steps": 3}, "bootstrap": {"pseudo_label_steps": 2}, "runtime": TINY["runtime"]}
        child = train(TrainRequest((Layer("--x", settings),), tmp_path / "child", bootstrap=tmp_path / "p.pt"), console)
        assert child.ending == "finished"
        assert not any("bootstrap.pseudo_label_steps" in text for text in console.texts)
