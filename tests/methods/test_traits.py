"""What a method may need, each by a method that needs it: trained, killed, resumed, used and built upon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import TINY, train_tiny
from forking import run as run_program
from interruption import killed
from lightning_fabric import Fabric
from test_engine import TwoProcesses
from test_methods import LOSS, PROGRESS, make_batch, make_net
from test_policy_runs import assert_equal
from trait_methods import TRAIT_METHODS, Adversarial

from ssl_seg.config import Config, NetworkConfig, OptimConfig
from ssl_seg.config.layers import Layer
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.diagnose.run_history import describe_others
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.errors import ConfigError
from ssl_seg.inference.model import make_network, open_model
from ssl_seg.methods import LABELED_ONLY, METHODS, check_traits, make_method
from ssl_seg.methods.base import Traits, build
from ssl_seg.networks.builders import build_network
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict
from ssl_seg.run.directory import RunDir
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.lint.idle import find_idle
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve
from ssl_seg.run.training import train

SHORT: dict[str, Any] = {
    "length": {"steps": 8, "steps_per_epoch": 4},
    "split": {"labels": 0.5},
    "monitor": {"probe_patches": 2, "train_probe_patches": 0, "first_epoch_probes": [0]},
    "augment": {"cutmix": 0.5},
}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, method in TRAIT_METHODS.items():
            patch.setitem(METHODS, name, method)
        yield


@pytest.fixture(scope="module", params=TRAIT_METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(name: str, particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return train_tiny(tmp_path_factory.mktemp("traits") / name, particles_dir, SHORT, {"method": {"name": name}}).run


class TestRun:
    def test_killed_and_resumed_it_has_the_same_bits(
        self, name: str, run: RunDir, particles_dir: Path, tmp_path: Path
    ) -> None:
        with killed(Engine, "step", lambda _, __, number, *___: number == 5):  # in the second epoch
            train_tiny(tmp_path / "run", particles_dir, SHORT, {"method": {"name": name}})
        assert RunDir(tmp_path / "run").read_ending() is None
        resumed = train(TrainRequest(resume=tmp_path / "run")).run
        for path, other in ((run.last, resumed.last), (run.best, resumed.best)):
            contents = [torch.load(file, weights_only=True) for file in (path, other)]
            assert_equal(*contents)

    def test_files_hold_plain_networks_and_what_else_is_trained(self, name: str, run: RunDir) -> None:
        checkpoint, model = load_checkpoint(run.last), open_model(run.best)
        plain = make_network(model.config).state_dict().keys()
        assert checkpoint.student.keys() == checkpoint.teacher.keys() == plain
        rests = {part: set(state) for part, state in checkpoint.parts.items() if part.endswith("_rest")}
        expected: set[str] = set()
        if name == "twins":
            expected = {f"second.{tensor}" for tensor in plain}
        if name == "extra_head":
            expected = {"head.weight", "head.bias"}
        assert rests == ({"student_rest": expected, "teacher_rest": expected} if expected else {})
        state = {"state": {"threshold"}, "adversarial": {"discriminator.weight", "discriminator.bias"}}
        state["teachers"] = {f"teachers.nets.{n}.{tensor}" for n in (0, 1) for tensor in plain}
        assert set(checkpoint.parts.get("method", ())) == state.get(name, set())
        assert ("method_optimizer" in checkpoint.parts) == (name == "adversarial")

    def test_everything_that_is_trained_has_moved(self, run: RunDir) -> None:
        checkpoint = load_checkpoint(run.last)
        assert any(not torch.equal(v, checkpoint.teacher[k]) for k, v in checkpoint.student.items())
        for tensor, value in checkpoint.parts.get("student_rest", {}).items():
            followed = checkpoint.parts["teacher_rest"][tensor]
            assert torch.isfinite(value).all()
            if value.ndim > 1:
                assert not torch.equal(value, followed), tensor

    def test_further_networks_are_watched(self, name: str, run: RunDir) -> None:
        record = run.read_metrics()[-1]
        assert ("val/twin/f1" in record) == (name == "twins")
        if name == "twins":
            assert record["val/twin/prob_mean"] != record["val/student/prob_mean"]

    def test_a_diagnosis_says_which_networks_it_does_not_see(self, name: str, run: RunDir) -> None:
        texts = describe_others(run.best)
        assert len(texts) == (name == "twins")
        if name == "twins":
            found = run.read_metrics()[-1]["val/twin/f1"]
            assert f"its F1 on the probe was {found:.3f}, the verdict on it " in texts[0]
            notes = diagnose_checkpoint(CheckpointRequest(run.best, seconds=0)).notes
            assert [note for note in notes if note.startswith("twin: ")] == texts

    def test_it_is_evaluated_predicted_with_and_put_into_an_ensemble(
        self, run: RunDir, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        other = tiny_run / "checkpoints" / "best.pt"
        scores = evaluate(EvaluateRequest(run.best, more=(run.last,), ensemble=True))
        assert len(scores["rows"]) == 3
        image = min((particles_dir / "images").iterdir())
        assert predict(PredictRequest(run.best, image, tmp_path / "mask.png", more=(other,))) == [tmp_path / "mask.png"]

    @pytest.mark.parametrize("method", ["supervised", "the same"])
    def test_a_run_is_built_upon_its_plain_network(
        self, name: str, run: RunDir, method: str, particles_dir: Path, tmp_path: Path
    ) -> None:
        settings = {"method": {"name": name if method == "the same" else method}, "length": {"steps": 1}}
        still = {"optim": {"lr": 1e-30, "warmup_steps": 0}}
        child = train_tiny(tmp_path / "child", particles_dir, settings, still, bootstrap=run.best, force=True).run
        parent = load_checkpoint(run.best)
        assert_equal(load_checkpoint(child.last).student, getattr(parent, parent.scores["selected"]["net"]))


@pytest.mark.parametrize("name", ["supervised", "mean_teacher"])
def test_a_method_that_trains_one_network_keeps_nothing_else(name: str, particles_dir: Path, tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", particles_dir, SHORT, {"method": {"name": name}}).run
    parts = load_checkpoint(run.last).parts
    assert {part for part, state in parts.items() if state} == {"optimizer", "monitor"}


def make_engine(name: str) -> Engine:
    built = build(make_method(name, {}, LOSS, 2), make_net, 2)
    return Engine(
        Fabric(accelerator="cpu", devices=1), built.module, make_optimizer(built.module, OptimConfig(lr=1e-2)),
        EMATeacher(built.module, lambda _: 0.9), built.method, nullcontext,
        total_steps=100, steps_per_epoch=10, clip_norm=1.0, seed=0,
    )  # fmt: skip


class TestStep:
    def test_the_students_loss_does_not_move_the_discriminator(self) -> None:
        engine = make_engine("adversarial")
        method = engine.method
        assert isinstance(method, Adversarial)
        before = [p.detach().clone() for p in method.discriminator.parameters()]
        engine.step(make_batch(unlabeled=0), 0, 0.1)
        assert all(torch.equal(p, old) for p, old in zip(method.discriminator.parameters(), before, strict=True))
        output = method(engine.nets, make_batch(), PROGRESS)
        output.own_loss.backward()
        expected = [p.grad.clone() for p in method.discriminator.parameters()]
        engine.step(make_batch(), 0, 0.0)  # in which both losses reach it
        found = [p.grad for p in method.discriminator.parameters()]
        assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, expected, strict=True))

    def test_its_gradients_are_averaged_over_processes_in_one_exchange(self) -> None:
        engines = []
        for _ in range(2):
            torch.manual_seed(0)
            engines.append(make_engine("adversarial"))
        alone, engine = engines
        engine.fabric = TwoProcesses(engine.fabric)  # type: ignore[assignment]
        for each in engines:
            each.step(make_batch(), 0, 0.0)
        ours, theirs = ([p.grad for p in each.method.discriminator.parameters()] for each in (engine, alone))
        assert engine.fabric.sizes == [sum(grad.numel() for grad in theirs)]
        assert all(torch.equal(grad, own + 1) for grad, own in zip(ours, theirs, strict=True))

    def test_its_learning_rate_is_that_of_the_run(self) -> None:
        engine = make_engine("adversarial")
        engine.step(make_batch(), 0, 0.25)
        assert engine.method.optimizer.param_groups[0]["lr"] == 0.25

    def test_a_loss_of_its_own_without_an_optimizer_is_an_error_of_the_method(self) -> None:
        engine = make_engine("supervised")
        call = engine.method.__call__
        engine.method = lambda *args: replace(call(*args), own_loss=torch.ones((), requires_grad=True))  # type: ignore[assignment]
        with pytest.raises(TypeError, match="returns own_loss and has no optimizer"):
            engine.step(make_batch(), 0, 0.1)


class TestTraits:
    NETWORK: ClassVar = {"needs_features": "encoder_unet", "needs_heads": "dynunet"}

    @pytest.mark.parametrize(
        ("trait", "message"),
        [
            ("needs_features", r"method\.name = 'x' with network\.name = 'unet': .* Use encoder_unet$"),
            (
                "needs_heads",
                r"method\.name = 'x' with network\.name = 'unet': .* Set network\.deep_supervision .*dynunet",
            ),
        ],
    )
    def test_a_network_that_cannot_give_it_is_refused(
        self, trait: str, message: str, monkeypatch: pytest.MonkeyPatch, particles_dir: Path, tmp_path: Path
    ) -> None:
        method = type("Asking", (TRAIT_METHODS["twins"],), {"traits": Traits(uses_unlabeled=True, **{trait: True})})
        monkeypatch.setitem(METHODS, "x", method)
        with pytest.raises(ConfigError, match=message) as caught:
            train_tiny(tmp_path / "run", particles_dir, {"method": {"name": "x"}, "network": {"name": "unet"}})
        assert str(caught.value).count("method.name") == 1
        assert not (tmp_path / "run").exists()
        check_traits("x", NetworkConfig(name=self.NETWORK[trait], deep_supervision=1))

    def test_what_is_decoded_is_what_was_encoded(self) -> None:
        network = build_network("encoder_unet", ndim=2, channels=1, num_classes=2, patch_size=(64, 64)).eval()
        image = torch.randn(1, 1, 64, 64)
        features = network.encode(image)
        assert torch.equal(network.decode(features), network(image))
        assert not torch.equal(network.decode([f + 1 for f in features]), network(image))

    def test_without_unlabeled_images_only_a_method_with_one_network_is_the_supervised_training(self) -> None:
        planned = {
            "data": {"label_values": [0, 1], "channels": 1, "patch_size": [64, 64], "foreground_ratio": 0.33},
            "network": {"name": "unet"}, "batch": {"labeled": 4, "unlabeled": 0}, "length": {"steps": 100},
        }  # fmt: skip
        for name, is_supervised in (("state", True), ("twins", False), ("supervised", False)):
            config = Config.model_validate({**planned, "method": {"name": name}})
            assert ("method.name" in find_idle(config, DataFacts(unlabeled=0))) == is_supervised
        assert LABELED_ONLY == "supervised"

    def test_unlabeled_patches_and_the_teacher_are_two_things(
        self, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        """Twins have no teacher to learn from, and learn from unlabeled patches all the same."""
        settings = {**SHORT, "method": {"name": "twins"}, "data": {**TINY["data"], "root": str(particles_dir)}}
        resolved = resolve(TrainRequest((Layer("--x", TINY), Layer("--x", settings))))
        assert resolved.config.batch.unlabeled == 2
        with pytest.raises(ConfigError, match=r"learns from unlabeled images and there are .*batch\.unlabeled = 0"):
            train_tiny(tmp_path / "run", particles_dir, settings, {"batch": {"unlabeled": 0}})
        parent, held = tiny_run / "checkpoints" / "best.pt", {"bootstrap": {"pseudo_label_steps": 2}}
        with pytest.raises(ConfigError, match=r"'twins' learns nothing from a teacher"):
            train_tiny(tmp_path / "run", particles_dir, settings, held, bootstrap=parent)


@pytest.mark.ddp
@pytest.mark.parametrize("name", TRAIT_METHODS)
def test_two_processes_agree_on_networks_and_on_what_the_method_keeps(
    name: str, particles_dir: Path, tmp_path: Path
) -> None:
    code = """
import json, sys
from pathlib import Path
from torch.nn import Module
from trait_methods import register
from ssl_seg.config.layers import Layer
from ssl_seg.run.request import TrainRequest
import ssl_seg.run.training as training

register()
original = training.finish_run
def finish(session, *args):
    engine = session.engine
    states = {"student": engine.student.state_dict(), "teacher": engine.teacher.net.state_dict()}
    states["method"] = engine.method.state_dict() if isinstance(engine.method, Module) else {}
    sums = {name: [float(v.double().sum()) for v in state.values()] for name, state in states.items()}
    Path(sys.argv[3], f"rank{engine.fabric.global_rank}.json").write_text(json.dumps(sums))
    return original(session, *args)
training.finish_run = finish
training.train(TrainRequest((Layer("--x", json.loads(sys.argv[1])),), Path(sys.argv[2])))
"""
    settings = {**TINY, **SHORT, "data": {**TINY["data"], "root": str(particles_dir)}, "method": {"name": name}}
    settings["runtime"] = {**TINY["runtime"], "devices": 2}
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [str(script), json.dumps(settings), str(tmp_path / "run"), str(tmp_path)]
    process = run_program(command, tmp_path, {"PYTHONPATH": str(Path(__file__).parent)})
    assert process.returncode == 0, process.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["student"] != first["teacher"]
    kept = load_checkpoint(RunDir(tmp_path / "run").last).parts.get("method", {})
    assert bool(kept) == (name in ("state", "adversarial", "teachers"))
