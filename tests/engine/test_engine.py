from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from test_methods import LOSS, make_batch
from torch import nn
from torch._subclasses import FakeTensorMode

from ssl_seg.config import EMAConfig, GradientNoiseConfig, OptimConfig, RuntimeConfig
from ssl_seg.config.schedules import make_ema_schedule
from ssl_seg.engine.devices import (
    choose_memory_format,
    make_fabric,
    synchronize,
    time_memory_formats,
    to_memory_format,
)
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.errors import ConfigError
from ssl_seg.methods import make_method


def make_net(norm: type[nn.Module] = nn.InstanceNorm2d) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), norm(6), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(6, 2, 1))


def decay_of(decay: float, warmup: bool = True) -> Callable[[int], float]:
    return make_ema_schedule(EMAConfig(decay=decay, warmup=warmup), 100)


def lr_at(step: int, history: Sequence[float] = ()) -> float:
    return 1e-2 * (1 - step / 100)


def make_engine(
    method: str = "mean_teacher",
    clip_norm: float | None = 1.0,
    seed: int = 0,
    noise: GradientNoiseConfig | None = None,
    norm: type[nn.Module] = nn.InstanceNorm2d,
) -> Engine:
    student = make_net(norm)
    return Engine(
        Fabric(accelerator="cpu", devices=1),
        student,
        make_optimizer(student, OptimConfig(lr=1e-2)),
        EMATeacher(student, decay_of(0.9)),
        make_method(method, {}, LOSS, 2),
        nullcontext,
        total_steps=100,
        steps_per_epoch=10,
        clip_norm=clip_norm,
        seed=seed,
        gradient_noise=noise,
    )


class TestEMA:
    def test_closed_form_over_30_steps(self) -> None:
        student = make_net()
        teacher = EMATeacher(student, decay_of(0.9, warmup=False))
        expected = {n: p.detach().clone().double() for n, p in student.named_parameters()}
        for step in range(30):
            with torch.no_grad():
                for p in student.parameters():
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(step)))
            teacher.update(student)
            for n, p in student.named_parameters():
                expected[n] = 0.9 * expected[n] + 0.1 * p.detach().double()
        for n, p in teacher.net.named_parameters():
            torch.testing.assert_close(p.double(), expected[n], atol=1e-5, rtol=1e-5)

    def test_warmup_makes_the_first_updates_a_plain_average(self) -> None:
        student = nn.Linear(1, 1)
        teacher = EMATeacher(student, decay_of(0.999))
        values = []
        for value in (3.0, 5.0, 1.0, 7.0):
            with torch.no_grad():
                student.weight.fill_(value)
            teacher.update(student)
            values.append(value)
            assert teacher.net.weight.item() == pytest.approx(sum(values) / len(values))

    def test_without_warmup_the_random_start_stays(self) -> None:
        student = nn.Linear(1, 1)
        with torch.no_grad():
            student.weight.fill_(0.0)
        teacher = EMATeacher(student, decay_of(0.999, warmup=False))
        with torch.no_grad():
            student.weight.fill_(1.0)
        teacher.update(student)
        assert teacher.net.weight.item() == pytest.approx(0.001)

    def test_buffers_follow_and_counters_are_copied(self) -> None:
        student = make_net(nn.BatchNorm2d)
        teacher = EMATeacher(student, decay_of(0.5, warmup=False))
        student.train()
        start = student[1].running_mean.clone()
        for _ in range(3):
            student(torch.randn(4, 1, 8, 8) + 2)
        teacher.update(student)
        torch.testing.assert_close(teacher.net[1].running_mean, 0.5 * start + 0.5 * student[1].running_mean)
        assert teacher.net[1].num_batches_tracked == student[1].num_batches_tracked == 3

    def test_with_decay_0_teacher_and_student_agree_in_eval_mode(self) -> None:
        student = make_net(nn.BatchNorm2d)
        teacher = EMATeacher(student, decay_of(0.0))
        image = torch.randn(4, 1, 8, 8)
        student.train()
        student(image + 3)
        teacher.update(student)
        assert torch.equal(teacher.net(image), student.eval()(image))

    def test_teacher_is_a_copy_in_eval_mode_without_gradients(self) -> None:
        student = make_net().train()
        teacher = EMATeacher(student, decay_of(0.9))
        assert not teacher.net.training
        assert not any(p.requires_grad for p in teacher.net.parameters())
        assert all(p.requires_grad for p in student.parameters())
        assert student.training
        with torch.no_grad():
            next(student.parameters()).add_(1)
        assert not torch.equal(next(teacher.net.parameters()), next(student.parameters()))


class TestStep:
    def test_equals_a_loop_in_plain_pytorch(self) -> None:
        engine = make_engine("supervised", clip_norm=0.05)
        student = make_net()
        decayed = [p for p in student.parameters() if p.ndim > 1]
        others = [p for p in student.parameters() if p.ndim <= 1]
        plain = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}], lr=1e-2)
        from ssl_seg.data.sampling import derive_seed

        for step in range(5):
            batch = make_batch(seed=step)
            record = engine.step(batch, step, lr_at(step))
            torch.manual_seed(derive_seed(0, 0, step))
            for group in plain.param_groups:
                group["lr"] = lr_at(step)
            loss, _ = LOSS(student(batch.image), batch.target)
            plain.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), 0.05)
            plain.step()
            torch.testing.assert_close(record.loss, loss.detach())
            torch.testing.assert_close(record.grad_norm, norm)
            assert record.lr == lr_at(step)
        for a, b in zip(engine.student.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(a, b)

    def test_clipping_limits_the_update_and_reports_the_norm_before(self) -> None:
        def moved(clip: float | None) -> tuple[float, float]:
            student = make_net()
            before = copy.deepcopy(student.state_dict())
            sgd = torch.optim.SGD(student.parameters(), lr=1.0)
            engine = Engine(
                Fabric(accelerator="cpu", devices=1), student, sgd, EMATeacher(student, decay_of(0.9)),
                make_method("supervised", {}, LOSS, 2), nullcontext,
                total_steps=10, steps_per_epoch=5, clip_norm=clip, seed=0,
            )  # fmt: skip
            norm = float(engine.step(make_batch(), 0, 1.0).grad_norm)
            squares = sum(((v - before[k]) ** 2).sum() for k, v in student.state_dict().items())
            return norm, math.sqrt(float(squares))

        norm, distance = moved(None)
        assert distance == pytest.approx(norm, rel=1e-4)
        clipped_norm, clipped_distance = moved(norm / 4)
        assert clipped_norm == pytest.approx(norm)
        assert clipped_distance == pytest.approx(norm / 4, rel=1e-4)

    def test_student_moves_and_teacher_only_by_averaging(self) -> None:
        engine = make_engine()
        for step in range(3):
            before = copy.deepcopy(engine.teacher.net.state_dict())
            engine.step(make_batch(seed=step), step, lr_at(step))
            decay = min(0.9, 1 - 1 / (step + 1))
            student = engine.student.state_dict()
            for name, value in engine.teacher.net.state_dict().items():
                torch.testing.assert_close(value, decay * before[name] + (1 - decay) * student[name])

    def test_dropout_is_seeded_by_seed_and_step(self) -> None:
        losses = [
            float(make_engine(seed=s).step(make_batch(), step, 0.1).loss)
            for s, step in ((0, 3), (0, 3), (0, 4), (1, 3))
        ]
        assert losses[0] == losses[1]
        assert len(set(losses)) == 3

    def test_nan_gradients_do_not_crash(self) -> None:
        engine = make_engine("supervised")
        batch = make_batch()
        batch.image[0] = math.nan
        assert math.isnan(float(engine.step(batch, 0, 0.1).grad_norm))


class FrozenNorm(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class TwoProcesses:
    """A process beside another one whose tensors are larger by 2; ``sizes`` are those of what they exchange."""

    world_size = 2

    def __init__(self, fabric: Fabric) -> None:
        self.fabric, self.sizes = fabric, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fabric, name)

    def all_reduce(self, tensor: torch.Tensor, *, reduce_op: str) -> torch.Tensor:
        assert reduce_op == "mean"
        self.sizes.append(tensor.numel())
        return tensor + 1


class TestSeveralProcesses:
    def test_buffers_are_averaged_in_one_exchange_for_each_type(self) -> None:
        class Wide(nn.BatchNorm2d):
            def __init__(self, width: int) -> None:
                super().__init__(width)
                self.register_buffer("wide", torch.rand(2, 3, dtype=torch.float64))

        def make(norm: Callable[[int], nn.Module]) -> Engine:
            torch.manual_seed(0)
            body = [nn.Conv2d(1, 6, 3), norm(6), norm(6), FrozenNorm(6), nn.Conv2d(6, 2, 3, padding=2)]
            student = nn.Sequential(*body)
            return Engine(
                Fabric(accelerator="cpu", devices=1), student, make_optimizer(student, OptimConfig()),
                EMATeacher(student, decay_of(0.0)), make_method("supervised", {}, LOSS, 2), nullcontext,
                total_steps=9, steps_per_epoch=9, clip_norm=None, seed=0,
            )  # fmt: skip

        for norm, sizes in ((nn.BatchNorm2d, [24]), (Wide, [24, 12]), (FrozenNorm, [])):
            alone, engine = make(norm), make(norm)
            engine.fabric = TwoProcesses(engine.fabric)  # type: ignore[assignment]
            for each in (alone, engine):
                each.step(make_batch(), 0, 0.1)
            assert engine.fabric.sizes == sizes
            own = dict(alone.student.named_buffers())
            for name, buffer in engine.student.named_buffers():
                moves = buffer.is_floating_point() and not isinstance(engine.student.get_submodule(name[0]), FrozenNorm)
                assert torch.equal(buffer, own[name] + 1 if moves else own[name]), name


class TestDevices:
    def test_memory_format_is_the_clearly_faster_one(self) -> None:
        assert choose_memory_format({"contiguous": 1.0, "channels_last": 0.99}) == "contiguous"
        assert choose_memory_format({"contiguous": 1.0, "channels_last": 0.5}) == "channels_last"

    def test_timing_leaves_the_network_alone(self) -> None:
        net = make_net()
        before = copy.deepcopy(net.state_dict())
        seconds = time_memory_formats(net, torch.randn(2, 1, 16, 16), nullcontext)
        assert set(seconds) == {"contiguous", "channels_last"}
        assert all(s > 0 for s in seconds.values())
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())

    def test_timing_waits_for_apples_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        waits: list[str] = []
        monkeypatch.setattr(torch.mps, "synchronize", lambda: waits.append("mps"))
        synchronize(torch.device("cpu"))
        assert waits == []
        synchronize(torch.device("mps"))
        assert waits == ["mps"]

    @pytest.mark.parametrize(
        ("conv", "ndim", "layout"), [(nn.Conv2d, 2, torch.channels_last), (nn.Conv3d, 3, torch.channels_last_3d)]
    )
    def test_channels_last_reaches_the_weights(self, conv: Any, ndim: int, layout: torch.memory_format) -> None:
        net = to_memory_format(conv(4, 4, 3), "channels_last", ndim)
        assert net.weight.is_contiguous(memory_format=layout)
        assert not conv(4, 4, 3).weight.is_contiguous(memory_format=layout)

    def test_a_launcher_that_started_another_number_of_processes_is_named(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match=r"started 2 processes.* = 1.*--devices"):
            make_fabric(RuntimeConfig(accelerator="cpu"))
        monkeypatch.setenv("WORLD_SIZE", "1")
        assert make_fabric(RuntimeConfig(accelerator="cpu")).world_size == 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
    def test_missing_devices_are_named(self) -> None:
        for accelerator in ("cuda", "mps"):
            with pytest.raises(ConfigError, match=f"{accelerator}: this machine has no such device"):
                make_fabric(RuntimeConfig(accelerator=accelerator))


def test_weights_on_a_gpu_are_updated_by_one_kernel() -> None:
    """The weights stand for those of a GPU: they have a device and no memory."""
    nets = []
    for device in ("cuda", "cpu"):
        nets.append(nn.Linear(2, 2))
        with FakeTensorMode():
            nets[-1].weight, nets[-1].bias = (nn.Parameter(torch.empty(size, device=device)) for size in ((2, 2), (2,)))
    on_gpu, on_cpu = (make_optimizer(net, OptimConfig(name="adamw")) for net in nets)
    assert [group["fused"] for group in on_gpu.param_groups] == [True, True]
    assert [group["fused"] for group in on_cpu.param_groups] == [None, None]


def test_optimizers_leave_norm_and_bias_undecayed() -> None:
    net = make_net()
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = make_optimizer(net, OptimConfig(name=name, weight_decay=0.1, momentum=0.8))  # type: ignore[arg-type]
        assert isinstance(optimizer, kind)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert all(decays[id(p)] == (0.1 if p.ndim > 1 else 0.0) for p in net.parameters())
