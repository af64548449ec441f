"""The teacher: an exponential moving average of the student.

``torch.optim.swa_utils.AveragedModel`` is not used as a whole: it leaves the average in train mode with gradients
on, has no decay warm-up, and with ``use_buffers`` it also averages integer counters. Its averaging function is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from ssl_seg.networks.average import move_average


class EMATeacher:
    """A copy of the student that follows it; always in eval mode and without gradients.

    Its buffers follow too, see ``move_average``: a teacher whose buffers stay behind fails in eval mode although its
    weights are right.

    Args:
        student: the bare network.
        decay_at: number of updates made before -> weight of the old teacher in the next one, in [0, 1].
        held: number of first updates that leave the teacher as it is. The next one makes it a copy of the student, and
            from there on ``decay_at`` is asked, with the count at 0.
    """

    def __init__(self, student: nn.Module, decay_at: Callable[[int], float], held: int = 0) -> None:
        self.net = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay_at, self.held = decay_at, held
        self.updates = 0

    @property
    def is_held(self) -> bool:
        """Whether the next update leaves the teacher as it is."""
        return self.updates < self.held

    def update(self, student: nn.Module) -> None:
        """Move one step towards the student; no synchronization with the host."""
        if not self.is_held:
            move_average(
                self.net, student, 0.0 if self.updates == self.held > 0 else self.decay_at(self.updates - self.held)
            )
        self.updates += 1
