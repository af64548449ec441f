"""One training step, readable from top to bottom; no hooks between the forward pass and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn, optim

from ssl_seg.data.loader import Batch
from ssl_seg.data.sampling import derive_seed
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.optim import set_lr
from ssl_seg.methods.base import Method, Nets, Progress
from ssl_seg.precision import Autocast


@dataclass(frozen=True)
class StepRecord:
    """What one step did. The tensors stay on the device; reading one is a host synchronization."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    grad_norm: Tensor
    lr: float


class Engine:
    """Student, teacher and optimizer, moved one step at a time.

    Args:
        fabric: devices and processes.
        student: the bare network, on the right device and in the right memory format.
        optimizer: over the student's parameters.
        teacher: its moving average.
        method: the loss.
        autocast: opens the precision context of the forward pass.
        lr_at: learning rate of a step.
        total_steps: length of the run.
        steps_per_epoch: length of an epoch.
        clip_norm: largest gradient norm of an update; None records the norm and clips nothing.
        seed: with rank and step the seed of every draw inside the step (dropout).
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
        lr_at: Callable[[int], float],
        total_steps: int,
        steps_per_epoch: int,
        clip_norm: float | None,
        seed: int,
    ) -> None:
        self.fabric, self.teacher, self.method, self.autocast = fabric, teacher, method, autocast
        self.student = student
        self.wrapped, self.optimizer = fabric.setup(student, optimizer)
        self.nets = Nets(self.wrapped, teacher.net)
        self.lr_at, self.seed = lr_at, seed
        self.total_steps, self.steps_per_epoch = total_steps, steps_per_epoch
        self.clip_norm = math.inf if clip_norm is None else clip_norm

    def step(self, batch: Batch, step: int) -> StepRecord:
        """Make update number ``step`` (from 0) on a batch that is on the device."""
        torch.manual_seed(derive_seed(self.seed, self.fabric.global_rank, step))
        self.wrapped.train()
        lr = self.lr_at(step)
        set_lr(self.optimizer, lr)

        with self.autocast():
            output = self.method(self.nets, batch, Progress(step, self.total_steps, step / self.steps_per_epoch))
        self.fabric.backward(output.loss)
        grad_norm = self.fabric.clip_gradients(
            self.wrapped, self.optimizer, max_norm=self.clip_norm, error_if_nonfinite=False
        )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        self._agree_on_buffers()
        self.teacher.update(self.student)
        return StepRecord(output.loss.detach(), output.terms, torch.as_tensor(grad_norm), lr)

    def _agree_on_buffers(self) -> None:
        # Each process has seen other batches, so BatchNorm statistics differ; averaged, all teachers stay equal.
        if self.fabric.world_size > 1:
            for buffer in self.student.buffers():
                if buffer.is_floating_point():
                    mean = self.fabric.all_reduce(buffer, reduce_op="mean")
                    buffer.copy_(torch.as_tensor(mean))
