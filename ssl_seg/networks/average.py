"""A network that follows another one, as a moving average of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


@torch.no_grad()
def move_average(network: nn.Module, towards: nn.Module, decay: float) -> None:
    """Move a network one step towards another one of its kind; no synchronization with the host.

    Floating-point buffers (BatchNorm statistics) are averaged like parameters. Integer buffers are copied: the average
    of two indices is another index.

    Args:
        network: that follows.
        towards: that is followed.
        decay: weight of the old values, in [0, 1]; 0 makes a copy.
    """
    own, others = list(_floats(network)), [t.detach() for t in _floats(towards)]
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    average(own, others, None)
    for own_buffer, buffer in zip(network.buffers(), towards.buffers(), strict=True):
        if not own_buffer.is_floating_point():
            own_buffer.copy_(buffer)


def _floats(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]
