"""Dual-task consistency (Luo et al. 2021, arXiv:2009.04448): the classes agree with signed distances to the boundaries.

A second head on the last features of the decoder predicts, through tanh, a signed distance map s for each class,
negative inside. With the true distances z of labeled patches, probabilities p, and sigmoid(-1500 · s), which is near 1
inside:

    loss = supervised + 0.3 · mean |s - z|² + w(t) · mean over all patches of |sigmoid(-1500 · s) - p|²

Deviations: one map for each class, background too; distances end at 8 voxels, where z is 1, and are not divided by the
largest one of the patch, so that the device computes them; the supervised loss is that of the run, not Dice alone;
unlabeled patches are strong views. Weights 1 and 0.3 are those of the paper, the first ramped up over the first fifth
of the run. These defaults were not measured.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import SupervisedLoss, first_head
from ssl_seg.losses.common import to_float32
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import UnlabeledConfig, add_unlabeled

REACH = 8
"""Voxels at which distances end."""


class DualTaskConfig(UnlabeledConfig):
    """Options of dual-task consistency."""

    distance_weight: float = Field(0.3, ge=0)
    """Weight of the error of the distances of labeled patches."""
    steepness: float = Field(1500.0, gt=0)
    """Factor of the distances before the sigmoid that makes classes of them."""


class DualHead(nn.Module):
    """A network with a second head, whose outputs are signed distances."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        head: Any = copy.deepcopy(network.head)
        for layer in head.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()
        self.network, self.distance_head = network, head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and the signed distances (N,K,*S) in [-1, 1]."""
        network: Any = self.network
        levels = network.decode_features(network.encode(images))
        distances = torch.tanh(to_float32(self.distance_head(levels[-1])))
        return network.classify(levels), distances


class DualTaskConsistency:
    """Classes and signed distances agree on all patches."""

    config_type: ClassVar[type[Section]] = DualTaskConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, needs_features=True)

    def __init__(self, options: DualTaskConfig, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.options, self.supervised = options, supervised

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return a network with a second head."""
        return DualHead(make_network())

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the network."""
        return module.get_submodule("network")

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + weighted error of the distances + ramped consistency of both tasks."""
        logits, distances = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        error = compare_distances(distances[: len(batch.image)], batch.target)
        terms = {**supervised.terms, "distance_error": error.detach()}
        supervised = StepOutput(supervised.loss + self.options.distance_weight * error, terms)
        if len(batch.weak) == 0:
            return supervised
        probs = torch.softmax(to_float32(first_head(logits, batch.target.ndim)), dim=1)
        consistency = ((torch.sigmoid(-self.options.steepness * distances) - probs) ** 2).mean()
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress))


def compare_distances(distances: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of signed distances (N,K,*S) to those of a target (N,*S), mean over valid voxels and K;
    0 without any."""
    num_classes, valid = distances.shape[1], (target != IGNORE_INDEX).unsqueeze(1)
    squared = (distances - compute_signed_distances(target, num_classes)) ** 2
    return (squared * valid).sum() / (num_classes * valid.sum()).clamp(min=1)


@torch.no_grad()
def compute_signed_distances(target: Tensor, num_classes: int) -> Tensor:
    """Return the distance of each voxel to the boundary of each class, over ``REACH``, at most 1 and negative inside.

    It is measured to the center of the nearest voxel on the other side, as ``scipy.ndimage.distance_transform_edt``
    does. A class that is absent is 1 everywhere, one that fills the patch -1. Ignored voxels are in no class.

    Args:
        target: (N,*S).
        num_classes: K.

    Returns:
        (N,K,*S) float32.
    """
    inside = torch.stack([target == label for label in range(num_classes)], dim=1)
    outside = torch.stack([(target != label) & (target != IGNORE_INDEX) for label in range(num_classes)], dim=1)
    return torch.where(inside, -_measure_distances(outside), _measure_distances(inside)) / REACH


def _measure_distances(places: Tensor) -> Tensor:
    """Return the distance (N,K,*S) of each voxel to the nearest one that is set, at most ``REACH``.

    The squared distance along one axis after the other: exact, since the squares add up.
    """
    squared = torch.where(places, 0.0, float(REACH**2))
    for axis in range(2, places.ndim):
        squared = _spread(squared, axis)
    return squared.clamp(max=REACH**2).sqrt()


def _spread(squared: Tensor, axis: int) -> Tensor:
    """Return the least of the values along an axis plus the square of how far they are away."""
    size = squared.shape[axis]
    nearest = squared.clone()
    for shift in range(1, min(REACH, size)):
        here, there = squared.narrow(axis, 0, size - shift), squared.narrow(axis, shift, size - shift)
        for at, source in ((0, there), (shift, here)):
            part = nearest.narrow(axis, at, size - shift)
            torch.minimum(part, source + shift**2, out=part)
    return nearest
