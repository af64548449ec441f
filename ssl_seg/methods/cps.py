"""Cross pseudo supervision (Chen et al. 2021, arXiv:2106.01226): two networks, each the source of the other's labels.

Loss = sum over i of [supervised_i + w(t) · CE(f_i(strong), argmax f_j(weak))], j the other one. The two differ in the
random weights of their decoders, and from the first step on in nothing else. The first is the one that is used.

Deviations: the pseudo-labels are made on the weak view and mixed as the strong view is, as the paper does with CutMix;
only unlabeled patches enter the second term; both networks have one optimizer, and ``labeler`` may say that the moving
average of each makes the labels. The weight is 1 (paper: 1.5), ramped up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import (
    PseudoLabelConfig,
    Threshold,
    add_unlabeled,
    compare_views,
    measure_precision,
    predict_outputs,
    split_views,
)


class CrossPseudoSupervisionConfig(PseudoLabelConfig):
    """Options of cross pseudo supervision."""

    labeler: Literal["student", "teacher"] = "student"
    """What makes the pseudo-labels: the other network, or its moving average."""
    consistency: Literal["cross_entropy", "dice", "kl", "mse", "js"] = "cross_entropy"
    """Distance to the pseudo-label; cross_entropy takes the most probable class, the others take the probabilities."""
    confidence: Share = 0.0
    """Probability that the most probable class needs for a voxel to count; 0 accepts all."""


class Twins(nn.Module):
    """Two networks on the same image."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of both."""
        return self.first(images), self.second(images)


class CrossPseudoSupervision(nn.Module):
    """Two networks learn from each other's pseudo-labels."""

    config_type: ClassVar[type[Section]] = CrossPseudoSupervisionConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, cutmix=0.5)

    def __init__(self, options: CrossPseudoSupervisionConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.options, self.supervised = options, supervised
        self.thresholds = nn.ModuleList(Threshold(options, num_classes) for _ in range(2))

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return the twins."""
        return Twins(make_network(), make_network())

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the first of them."""
        return module.get_submodule("first")

    def find_others(self, module: nn.Module) -> Mapping[str, nn.Module]:
        """Return the second."""
        return {"twin": module.get_submodule("second")}

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return the supervised losses of both + the ramped losses of each on the labels of the other."""
        labeler = nets.teacher if self.options.labeler == "teacher" else nets.student
        probs = predict_outputs(labeler, batch.weak) if len(batch.weak) else []
        both = nets.student(torch.cat([batch.image, *batch.strong]))
        first, second = (supervise(self.supervised, logits, batch, progress) for logits in both)
        supervised = StepOutput(first.loss + second.loss, first.terms)
        if not probs:
            return supervised
        labels = [threshold(own) for threshold, own in zip(self.thresholds, probs, strict=True)]
        distance = CONSISTENCY[self.options.consistency]
        crossed = [
            compare_views(distance, split_views(logits, batch), of_other, batch)
            for logits, of_other in zip(both, reversed(labels), strict=True)
        ]
        own = cast("Threshold", self.thresholds[0])
        terms = labels[0].describe() | own.describe() | measure_precision(own, labeler, batch, progress)
        return add_unlabeled(supervised, torch.stack(crossed).sum(), self.options.compute_weight(progress), **terms)
