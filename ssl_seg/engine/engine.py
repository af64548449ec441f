"""One training step, readable from top to bottom; no hooks between the forward pass and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn, optim

from ssl_seg.config import GradientNoiseConfig
from ssl_seg.data.loader import Batch
from ssl_seg.data.sampling import derive_seed
from ssl_seg.engine.devices import average_over_processes
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.noise import add_gradient_noise
from ssl_seg.engine.optim import set_lr
from ssl_seg.methods.base import Method, Nets, OwnsOptimizer, StepProgress, TrainsOthers, find_plain
from ssl_seg.networks.checkpoint import Checkpoint, Part, Rest, load_parts, load_weights
from ssl_seg.networks.precision import Autocast


@dataclass(frozen=True)
class StepRecord:
    """What one step did. The tensors stay on the device; reading one is a host synchronization."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    grad_norm: Tensor
    lr: float
    clip_norm: float
    """Norm that the gradient was clipped to; infinite without clipping."""


@dataclass(frozen=True)
class Restraint:
    """What an intervention holds back in a step."""

    clip_norm: float | None = None
    """Largest gradient norm; None leaves that of the run."""
    unlabeled_factor: float = 1.0
    """Factor of what is learned from unlabeled patches."""


FREE = Restraint()


class Engine:
    """Student, teacher and optimizer, moved one step at a time.

    Args:
        fabric: devices and processes.
        student: what the method trains, on the right device and in the right memory format.
        optimizer: over the student's parameters.
        teacher: its moving average.
        method: the loss.
        autocast: opens the precision context of the forward pass.
        total_steps: length of the run.
        steps_per_epoch: length of an epoch.
        clip_norm: largest gradient norm of an update; None records the norm and clips nothing.
        gradient_noise: added after clipping; None adds nothing.
        threshold: see ``StepProgress``.
        seed: with rank and step the seed of every draw inside the step (dropout, gradient noise).
    """

    def __init__(
        self,
        fabric: Fabric,
        student: nn.Module,
        optimizer: optim.Optimizer,
        teacher: EMATeacher,
        method: Method,
        autocast: Autocast,
        *,
        total_steps: int,
        steps_per_epoch: int,
        clip_norm: float | None,
        seed: int,
        gradient_noise: GradientNoiseConfig | None = None,
        threshold: float | None = None,
    ) -> None:
        self.fabric, self.teacher, self.method, self.autocast = fabric, teacher, method, autocast
        self.student = student
        self.wrapped, self.optimizer = fabric.setup(student, optimizer)
        self.moving = [module for module in student.train().modules() if module.training]
        """Modules whose buffers may move: a frozen norm stays in eval mode."""
        self.nets = Nets(self.wrapped, teacher.net)
        self.plain = Nets(find_plain(method, student), find_plain(method, teacher.net))
        """The networks that are scored, predicted with and saved."""
        self.others = method.find_others(student) if isinstance(method, TrainsOthers) else {}
        """Further networks that are trained, by name."""
        self.seed, self.gradient_noise, self.threshold = seed, gradient_noise, threshold
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.clip_norm = math.inf if clip_norm is None else clip_norm

    def step(self, batch: Batch, step: int, lr: float, restraint: Restraint = FREE) -> StepRecord:
        """Make update number ``step`` (from 0) with a learning rate, on a batch that is on the device."""
        clip_norm = self.clip_norm if restraint.clip_norm is None else restraint.clip_norm
        epoch, is_held = step / self.steps_per_epoch, self.teacher.is_held
        progress = StepProgress(
            step,
            self.total_steps,
            epoch,
            restraint.unlabeled_factor,
            teacher_is_fixed=is_held,
            threshold=self.threshold,
        )
        torch.manual_seed(derive_seed(self.seed, self.fabric.global_rank, step))
        self.wrapped.train()
        set_lr(self.optimizer, lr)

        with self.autocast():
            output = self.method(self.nets, batch, progress)
        self.fabric.backward(output.loss)
        grad_norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=clip_norm, error_if_nonfinite=False
        )
        if self.gradient_noise is not None:
            add_gradient_noise(self.student, self.gradient_noise, self.seed, step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if output.own_loss is not None:
            self._step_own(output.own_loss, lr)

        self._agree_on_buffers()
        self.teacher.update(self.student)
        return StepRecord(output.loss.detach(), output.terms, torch.as_tensor(grad_norm), lr, clip_norm)

    @property
    def parts(self) -> dict[str, Part]:
        """Everything beside the networks that a rollback takes back, by its name in a checkpoint: one line for each."""
        return {
            "optimizer": self.optimizer,
            "student_rest": Rest(self.student, self.plain.student),
            "teacher_rest": Rest(self.teacher.net, self.plain.teacher),
            **({"method": self.method} if isinstance(self.method, nn.Module) else {}),
            **({"method_optimizer": self.method.optimizer} if isinstance(self.method, OwnsOptimizer) else {}),
        }

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Put the networks and ``parts`` back into the state of a checkpoint.

        Raises:
            CheckpointError: see ``load_weights`` and ``load_parts``.
        """
        load_weights(self.plain.student, checkpoint.student, where)
        load_weights(self.plain.teacher, checkpoint.teacher, where)
        self.teacher.updates = checkpoint.progress.ema_updates
        load_parts(self.parts, checkpoint, where)

    def _step_own(self, loss: Tensor, lr: float) -> None:
        """Update the method's own parameters; the gradients of all processes are averaged."""
        if not isinstance(self.method, OwnsOptimizer):
            raise TypeError(f"{type(self.method).__name__} returns own_loss and has no optimizer")
        optimizer = self.method.optimizer
        optimizer.zero_grad(set_to_none=True)  # the student's loss may have left gradients there
        set_lr(optimizer, lr)
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        average_over_processes(self.fabric, [p.grad for p in parameters if p.grad is not None])
        optimizer.step()

    def _agree_on_buffers(self) -> None:
        # Each process has seen other batches, so BatchNorm statistics and what a method keeps differ; averaged, all
        # teachers stay equal. Integers are those of the first process: DDP copies its buffers before each forward pass.
        own = self.method.buffers() if isinstance(self.method, nn.Module) else ()
        buffers = (*(b for module in self.moving for b in module.buffers(recurse=False)), *own)
        average_over_processes(self.fabric, [buffer for buffer in buffers if buffer.is_floating_point()])
