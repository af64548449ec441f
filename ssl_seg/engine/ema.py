"""The teacher: an exponential moving average of the student.

``torch.optim.swa_utils.AveragedModel`` is not used as a whole: it leaves the average in train mode with gradients
on, has no decay warm-up, and with ``use_buffers`` it also averages integer counters. Its averaging function is used.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ssl_seg.schedules import compute_ema_decay


class EMATeacher:
    """A copy of the student that follows it; always in eval mode and without gradients.

    Floating-point buffers (BatchNorm statistics) are averaged like parameters, integer buffers are copied. A teacher
    whose buffers stay behind fails in eval mode although its weights are right.

    Args:
        student: the bare network.
        decay: weight of the old teacher in one update, in [0, 1).
        warmup: limit the decay to 1 - 1/(updates + 1), so that the first update copies the student.
    """

    def __init__(self, student: nn.Module, decay: float, *, warmup: bool = True) -> None:
        self.net = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay, self.warmup = decay, warmup
        self.updates = 0

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move one step towards the student; no synchronization with the host."""
        decay = compute_ema_decay(self.updates, self.decay, warmup=self.warmup)
        own, others = list(_floats(self.net)), [t.detach() for t in _floats(student)]
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(own, others, None)
        for own_buffer, buffer in zip(self.net.buffers(), student.buffers(), strict=True):
            if not own_buffer.is_floating_point():
                own_buffer.copy_(buffer)
        self.updates += 1


def _floats(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
