"""UniMatch (Yang et al. 2023, arXiv:2208.09910) and UniMatch V2 (Yang et al. 2025, arXiv:2410.10777).

FixMatch with two strong views and a perturbation of the features between encoder and decoder. With S_v the pseudo-label
loss on strong view v, and F that on the weak view whose features have lost half of their channels:

- ``v1``: supervised + w(t) · (F + (S_1 + S_2) / 2) / 2
- ``v2``: supervised + w(t) · (S_1 + S_2) / 2. Half of the pairs of strong views have complementary channels: the
  features of view 1 are multiplied by m in {0, 2} for each channel, those of view 2 by 2 - m.

Deviations: the labeler is the moving average in both, unless ``labeler`` says the student, as in V1; supervised and
unlabeled part are added with weight w(t), ramped up over the first fifth of the run, not halved; the threshold is 0.9
(0.95), as for FixMatch here. Each level of the features has its own m, since they differ in width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.fixmatch import FixMatchConfig
from ssl_seg.methods.unlabeled import (
    PseudoLabels,
    Threshold,
    add_unlabeled,
    compare_views,
    measure_precision,
    predict,
    split_views,
)

DrawFactors = Callable[[Tensor], Tensor]
"""Features (N,C,*S) of a level -> a factor (N,C) for each channel."""


class UniMatchConfig(FixMatchConfig):
    """Options of UniMatch."""

    version: Literal["v1", "v2"] = "v2"
    """v1: a third stream with dropped feature channels; v2: complementary channels of the two strong views."""


class Perturbed(nn.Module):
    """A network whose features may be multiplied between encoder and decoder."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, draw: DrawFactors | None = None) -> Tensor:
        """Return the logits."""
        if draw is None:
            logits: Tensor = self.network(images)
            return logits
        features = self.network.encode(images)  # type: ignore[operator]
        factors = [draw(level).to(level.dtype) for level in features]
        perturbed = [
            level * factor.reshape(*factor.shape, *[1] * (level.ndim - 2))
            for level, factor in zip(features, factors, strict=True)
        ]
        decoded: Tensor = self.network.decode(perturbed)  # type: ignore[operator]
        return decoded


class UniMatch(nn.Module):
    """FixMatch on two strong views, with perturbed features."""

    config_type: ClassVar[type[Section]] = UniMatchConfig
    traits: ClassVar[Traits] = Traits(
        uses_teacher=True, uses_unlabeled=True, strong_views=2, needs_features=True, cutmix=0.5
    )

    def __init__(self, options: UniMatchConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.options, self.supervised, self.threshold = options, supervised, Threshold(options, num_classes)

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return a network whose features can be perturbed."""
        return Perturbed(make_network())

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the network."""
        return module.get_submodule("network")

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped pseudo-label loss; one forward pass of the student serves all."""
        if len(batch.weak) == 0:
            return supervise(self.supervised, nets.student(batch.image), batch, progress)
        labeler = nets.teacher if self.options.labeler == "teacher" else nets.student
        labels = self.threshold(predict(labeler, batch.weak))
        consistency, logits = self._learn(nets.student, batch, labels)
        terms = labels.describe() | self.threshold.describe()
        terms |= measure_precision(self.threshold, labeler, batch, progress)
        supervised = supervise(self.supervised, logits, batch, progress)
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **terms)

    def _learn(self, student: nn.Module, batch: Batch, labels: PseudoLabels) -> tuple[Tensor, Tensor]:
        """Return the loss on the unlabeled patches, and all logits, those of the labeled ones first."""
        distance, count = CONSISTENCY[self.options.consistency], len(batch.weak)
        if self.options.version == "v2":
            logits = student(torch.cat([batch.image, *batch.strong]), draw_complements(count))
            return compare_views(distance, split_views(logits, batch), labels, batch), logits
        logits = student(torch.cat([batch.image, *batch.strong, batch.weak]), drop_last(count))
        *strong, dropped = split_views(logits, batch)
        on_features = distance(dropped, labels.probs, labels.accepted)
        return (on_features + compare_views(distance, strong, labels, batch)) / 2, logits


def drop_last(count: int) -> DrawFactors:
    """Return what drops half of the channels, at random, of the last ``count`` patches; the others keep theirs."""

    def draw(level: Tensor) -> Tensor:
        factors = torch.ones(level.shape[:2], device=level.device)
        factors[-count:] = _draw_halves(count, level)
        return factors

    return draw


def draw_complements(count: int) -> DrawFactors:
    """Return what gives the last 2 * ``count`` patches, two views of each, complementary channels; half of the pairs,
    and the patches before, keep all of theirs."""
    whole = torch.rand(count, 1) < 0.5

    def draw(level: Tensor) -> Tensor:
        factors = torch.ones(level.shape[:2], device=level.device)
        halves = torch.where(whole.to(level.device, non_blocking=True), 1.0, _draw_halves(count, level))
        factors[-2 * count : -count], factors[-count:] = halves, 2 - halves
        return factors

    return draw


def _draw_halves(count: int, level: Tensor) -> Tensor:
    return 2.0 * (torch.rand(count, level.shape[1], device=level.device) < 0.5)
