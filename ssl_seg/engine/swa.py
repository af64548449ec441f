"""Stochastic weight averaging (Izmailov et al. 2018): the mean of students at the ends of epochs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from ssl_seg.networks.precision import Autocast


class WeightAverage:
    """The mean, with equal weights, of the networks added so far; its buffers are those of the last one.

    Args:
        student: the bare network, for its form; it is not added.
    """

    def __init__(self, student: nn.Module) -> None:
        # AveragedModel leaves its copy in train mode and with gradients on.
        self._model = AveragedModel(student).eval().requires_grad_(False)

    @property
    def net(self) -> nn.Module:
        """The network with the mean weights."""
        return self._model.module

    @property
    def count(self) -> int:
        """Number of networks in the mean."""
        return int(self._model.n_averaged)

    def add(self, student: nn.Module) -> None:
        """Take a network into the mean."""
        self._model.update_parameters(student)

    def clear(self) -> None:
        """Forget the networks added so far; the next one starts the mean anew."""
        self._model.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; nothing while the mean is empty."""
        return {"average": self.net.state_dict(), "count": self.count} if self.count else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the state in a checkpoint."""
        self.net.load_state_dict(state["average"])
        self._model.n_averaged.fill_(state["count"])


def estimate_batch_norm(net: nn.Module, images: Iterable[Tensor], autocast: Autocast) -> None:
    """Set the BatchNorm statistics to their mean over batches of images (N,C,*P) on the network's device."""
    with autocast():
        update_bn(images, net)
