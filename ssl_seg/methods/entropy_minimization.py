"""Entropy minimization (Grandvalet and Bengio 2004; for segmentation Vu et al. 2019, arXiv:1811.12833).

Loss = supervised + w(t) · mean over voxels of [- sum_k p_k · log p_k] / ln K, where p are the student's probabilities
on the strong view of unlabeled patches; 1 is a uniform p, 0 a certain one. The weight is 0.1, ramped up.

A constant output has the smallest entropy of all, so this term alone pulls towards a collapse: raise the weight with
the monitor in sight.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.common import to_float32
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import UnlabeledConfig, add_unlabeled, split_views


class EntropyMinimizationConfig(UnlabeledConfig):
    """Options of entropy minimization."""

    consistency_weight: float = Field(0.1, ge=0)
    """Weight of the entropy after the ramp-up."""


class EntropyMinimization:
    """The student shall be certain on unlabeled patches."""

    config_type: ClassVar[type[Section]] = EntropyMinimizationConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True)

    def __init__(
        self,
        options: EntropyMinimizationConfig,
        supervised: SupervisedLoss,
        num_classes: int,
    ) -> None:
        self.options, self.supervised, self.num_classes = options, supervised, num_classes

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped entropy; one forward pass of the student serves both."""
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        (view,) = split_views(logits, batch)
        log_probs = torch.log_softmax(to_float32(view), dim=1)
        probs = log_probs.exp()
        entropy = -(probs * log_probs).sum(dim=1).mean() / math.log(self.num_classes)
        terms = {"pseudo_prevalence": (probs.detach().max(dim=1).indices > 0).float().mean()}
        return add_unlabeled(supervised, entropy, self.options.compute_weight(progress), **terms)
