"""Methods that need more than one network and one strong view, one for each trait; most exist in the tests only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.consistency import consistency_mse
from ssl_seg.methods import METHODS
from ssl_seg.methods.ad_mt import AlternateDiverseTeaching
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits
from ssl_seg.methods.cps import CrossPseudoSupervision


class NoOptions(Section):
    """No options."""


class AdaptiveThreshold(nn.Module):
    """A teacher whose pseudo-labels count above its own mean confidence, which is kept (Wang et al. 2023)."""

    config_type: ClassVar[type[Section]] = NoOptions
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: Section, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.supervised = supervised
        self.register_buffer("threshold", torch.tensor(0.5))

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        labeled = len(batch.image)
        logits = nets.student(torch.cat([batch.image, batch.strong[0]]))
        loss, _ = self.supervised(logits[:labeled], batch.target, progress.epoch)
        threshold = self.get_buffer("threshold")
        if len(batch.weak):
            with torch.no_grad():
                probs = nets.teacher(batch.weak).softmax(dim=1)
                confidence = probs.amax(dim=1)
                threshold.lerp_(confidence.mean(), 0.1)
            loss = loss + consistency_mse(logits[labeled:], probs, confidence >= threshold)
        return StepOutput(loss, {"threshold": threshold.clone()})


class WithHead(nn.Module):
    """A network and a further head on its logits."""

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.network, self.head = network, nn.Conv2d(num_classes, num_classes, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(image)
        return logits, self.head(logits)


class ExtraHead(CrossPseudoSupervision):
    """The loss of the twins between a network and a further head of it."""

    def build(self, make_network: NetworkFactory) -> nn.Module:
        return WithHead(make_network(), make_network.num_classes)

    def find_plain(self, module: nn.Module) -> nn.Module:
        return module.get_submodule("network")

    def find_others(self, module: nn.Module) -> Mapping[str, nn.Module]:
        return {}


class TwoViews:
    """The predictions on two strong views of a patch are drawn together."""

    config_type: ClassVar[type[Section]] = NoOptions
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, strong_views=2)

    def __init__(self, options: Section, supervised: SupervisedLoss, num_classes: int) -> None:
        self.supervised = supervised

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        image, *views = torch.split(nets.student(torch.cat([batch.image, *batch.strong])), self._sizes(batch))
        loss, _ = self.supervised(image, batch.target, progress.epoch)
        if len(batch.weak):
            loss = loss + consistency_mse(views[0], views[1].detach().softmax(dim=1))
        return StepOutput(loss, {"loss_copy": loss.detach()})

    def _sizes(self, batch: Batch) -> list[int]:
        return [len(batch.image), *map(len, batch.strong)]


class Adversarial(nn.Module):
    """A discriminator tells predictions on labeled from those on unlabeled patches (Hung et al. 2018)."""

    config_type: ClassVar[type[Section]] = NoOptions
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True)

    def __init__(self, options: Section, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.supervised = supervised

    def build(self, make_network: NetworkFactory) -> nn.Module:
        self.discriminator = nn.Conv2d(make_network.num_classes, 1, 3, padding=1)
        self.optimizer = torch.optim.Adam(self.discriminator.parameters())
        return make_network()

    def find_plain(self, module: nn.Module) -> nn.Module:
        return module

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        labeled = len(batch.image)
        logits = nets.student(torch.cat([batch.image, batch.strong[0]]))
        loss, terms = self.supervised(logits[:labeled], batch.target, progress.epoch)
        if len(batch.weak) == 0:
            return StepOutput(loss, terms)
        probs = logits.softmax(dim=1)
        fooled = functional.softplus(-self.discriminator(probs[labeled:])).mean()
        told = self.discriminator(probs.detach())
        own = functional.softplus(-told[:labeled]).mean() + functional.softplus(told[labeled:]).mean()
        return StepOutput(loss + 0.1 * fooled, {**terms, "own": own.detach()}, own)


TRAIT_METHODS: dict[str, Any] = {
    "twins": CrossPseudoSupervision,
    "state": AdaptiveThreshold,
    "extra_head": ExtraHead,
    "two_views": TwoViews,
    "adversarial": Adversarial,
    "teachers": AlternateDiverseTeaching,
}


def register() -> None:
    """Add the methods to ``METHODS``, for a process of its own."""
    METHODS.update(TRAIT_METHODS)
