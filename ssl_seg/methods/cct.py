"""Cross-consistency training (Ouali et al. 2020, arXiv:2003.09005): decoders of perturbed features follow the main one.

One encoder, a main decoder g, and auxiliary decoders g_k, each with a perturbation P_k of its own. With the features z
of unlabeled patches, and a target that no gradient reaches:

    loss = supervised(g) + w(t) · mean_k mean |softmax g_k(P_k(z)) - softmax g(z)|²

- ``noise``: z · (1 + N) with N uniform in [-0.3, 0.3] for each value
- ``feature_drop``: z = 0 where its mean over channels reaches a share of its maximum, uniform in [0.7, 0.9]: the most
  active places go
- ``dropout``: each channel is 0 with probability 0.5, else doubled

Deviations: these are three of the paper's seven perturbations, one decoder each unless ``perturbations`` says more;
they act on all levels of the features, since the decoder of a U-Net would find the same in the others; the features are
those of the strong view. The weight is 1 (authors' code: 30), ramped up over the first fifth of the run. These defaults
were not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss, first_head
from ssl_seg.losses.common import to_float32
from ssl_seg.losses.consistency import consistency_mse
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import UnlabeledConfig, add_unlabeled

Perturbation = Literal["noise", "feature_drop", "dropout"]
NOISE, LEAST_DROPPED, MOST_DROPPED, DROPOUT = 0.3, 0.7, 0.9, 0.5


class CrossConsistencyConfig(UnlabeledConfig):
    """Options of cross-consistency training."""

    perturbations: tuple[Perturbation, ...] = ("noise", "feature_drop", "dropout")
    """Perturbations of the features, each with an auxiliary decoder: noise, feature_drop, dropout; names may repeat."""

    @model_validator(mode="after")
    def _perturbs(self) -> CrossConsistencyConfig:
        if not self.perturbations:
            raise ValueError("perturbations is empty: give at least one of noise, feature_drop and dropout")
        return self


def draw_noise(level: Tensor) -> Tensor:
    """Return the factors (U,C,*S) of features that get noise."""
    return 1 + NOISE * (2 * torch.rand(level.shape, device=level.device) - 1)


def draw_feature_drop(level: Tensor) -> Tensor:
    """Return the factors (U,1,*S) of features (U,C,*S) whose most active places are dropped."""
    activity = level.detach().float().mean(dim=1, keepdim=True)
    share = LEAST_DROPPED + (MOST_DROPPED - LEAST_DROPPED) * torch.rand(len(level), device=level.device)
    highest = activity.flatten(1).amax(dim=1)
    return (activity < (share * highest).reshape(-1, *[1] * (level.ndim - 1))).float()


def draw_dropout(level: Tensor) -> Tensor:
    """Return the factors (U,C,1,...) of features whose channels are dropped at random."""
    kept = torch.rand(*level.shape[:2], *[1] * (level.ndim - 2), device=level.device) >= DROPOUT
    return kept.float() / (1 - DROPOUT)


PERTURBATIONS: dict[Perturbation, Callable[[Tensor], Tensor]] = {
    "noise": draw_noise,
    "feature_drop": draw_feature_drop,
    "dropout": draw_dropout,
}
"""Name -> features of a level to what they are multiplied by."""


class CrossDecoders(nn.Module):
    """A network and further decoders of its features.

    Args:
        network: with ``encode`` and ``decode``.
        perturbations: what each further decoder sees.
        decoders: networks that are reduced to theirs, as many.
    """

    def __init__(
        self, network: nn.Module, perturbations: Sequence[Perturbation], decoders: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.network, self.perturbations, self.decoders = network, tuple(perturbations), nn.ModuleList(decoders)

    def forward(self, images: Tensor, labeled: int) -> tuple[Tensor, list[Tensor]]:
        """Return the logits of all images, and those of each further decoder for the images behind the labeled ones."""
        network: Any = self.network
        features: list[Tensor] = network.encode(images)
        logits = network.decode(features)
        if labeled == len(images):
            return logits, []
        unlabeled = [level[labeled:] for level in features]
        perturbed = (_perturb(unlabeled, name) for name in self.perturbations)
        return logits, [decoder.decode(own) for decoder, own in zip(self.decoders, perturbed, strict=True)]  # type: ignore[operator]


def _perturb(features: Sequence[Tensor], name: Perturbation) -> list[Tensor]:
    return [level * PERTURBATIONS[name](level).to(level.dtype) for level in features]


class CrossConsistency:
    """Decoders of perturbed features follow the main decoder."""

    config_type: ClassVar[type[Section]] = CrossConsistencyConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, needs_features=True)

    def __init__(self, options: CrossConsistencyConfig, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.options, self.supervised = options, supervised

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return a network with a further decoder for each perturbation."""
        network, decoders = make_network(), [make_network() for _ in self.options.perturbations]
        for decoder in decoders:
            decoder.reduce_to_decoder()  # type: ignore[operator]
        return CrossDecoders(network, self.options.perturbations, decoders)

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the network with the main decoder."""
        return module.get_submodule("network")

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped consistency; one pass of the encoder serves all."""
        labeled = len(batch.image)
        logits, perturbed = nets.student(torch.cat([batch.image, *batch.strong]), labeled)
        supervised = supervise(self.supervised, logits, batch, progress)
        if not perturbed:
            return supervised
        target = torch.softmax(to_float32(first_head(logits, batch.target.ndim)[labeled:]), dim=1).detach()
        distances = [consistency_mse(own, target) for own in perturbed]
        terms = {"pseudo_prevalence": (target.max(dim=1).indices > 0).float().mean()}
        weight = self.options.compute_weight(progress)
        return add_unlabeled(supervised, torch.stack(distances).mean(), weight, **terms)
