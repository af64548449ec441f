"""Alternate diverse teaching (Zhao et al. 2024, arXiv:2311.17325): two moving averages of the student, moved in turn.

One teacher moves for a period of steps while the other one rests, so that they differ. With their probabilities p_i on
the weak view and entropies H_i, at each voxel:

    p = sum_i exp(-H_i) · p_i / sum_i exp(-H_i)
    loss = supervised + w(t) · mean_v [ max_k p >= confidence ] · CE(student(strong), argmax p)

Where the teachers disagree, the label is so that of the more certain one.

Deviations: periods have one length, not a random one, 20 steps unless given (authors' code: 14 to 50); the strong views
of both periods are of one kind, with CutMix, where the paper gives each teacher a kind of its own; the weight is 1
(authors' code: 2), ramped up over the first fifth of the run, and the threshold 0.9 (0.8 in 3D, 0.95 in 2D), as for
FixMatch here. These defaults were not measured.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.config.section import PositiveInt
from ssl_seg.data.loader import Batch
from ssl_seg.losses import CONSISTENCY, SupervisedLoss
from ssl_seg.methods.base import Nets, NetworkFactory, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import (
    PseudoLabelConfig,
    Threshold,
    add_unlabeled,
    compare_views,
    measure_precision,
    predict,
    split_views,
)
from ssl_seg.networks.average import move_average


class AlternateTeachingConfig(PseudoLabelConfig):
    """Options of alternate diverse teaching."""

    consistency: Literal["cross_entropy", "dice", "kl", "mse", "js"] = "cross_entropy"
    """Distance to the pseudo-label; cross_entropy takes the most probable class, the others take the probabilities."""
    period: PositiveInt = 20
    """Steps for which one teacher moves; then it is the other one's turn."""
    teacher_decay: float = Field(0.99, ge=0, lt=1)
    """Weight of the old teacher in each step in which it moves."""


class TwoTeachers(nn.Module):
    """Two networks as one, in which the more certain one counts more."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.nets = nn.ModuleList(copy.deepcopy(network).requires_grad_(False) for _ in range(2))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logarithm of the probabilities (N,K,*S) of both together."""
        probs = torch.stack([predict(net, images) for net in self.nets])
        entropies = -torch.xlogy(probs, probs).sum(dim=2)
        mean = (torch.softmax(-entropies, dim=0).unsqueeze(2) * probs).sum(dim=0)
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def follow(self, student: nn.Module, step: int, options: AlternateTeachingConfig) -> None:
        """Move the teacher whose turn it is towards the student; at the start both become it."""
        decay = min(options.teacher_decay, 1 - 1 / (step + 1))
        turn = step // options.period % 2
        for net in self.nets if step == 0 else [self.nets[turn]]:
            move_average(net, student, decay)


class AlternateDiverseTeaching(nn.Module):
    """The student learns from two teachers that move in turn."""

    config_type: ClassVar[type[Section]] = AlternateTeachingConfig
    traits: ClassVar[Traits] = Traits(uses_unlabeled=True, cutmix=0.5)

    def __init__(self, options: AlternateTeachingConfig, supervised: SupervisedLoss, num_classes: int) -> None:
        super().__init__()
        self.options, self.supervised, self.threshold = options, supervised, Threshold(options, num_classes)

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return the student, and keep two copies of it."""
        network = make_network()
        self.teachers = TwoTeachers(network)
        return network

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the student as it is."""
        return module

    def forward(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return supervised + ramped pseudo-label loss; the student is as the step before has left it."""
        self.teachers.follow(nets.student, progress.step, self.options)
        logits = nets.student(torch.cat([batch.image, *batch.strong]))
        supervised = supervise(self.supervised, logits, batch, progress)
        if len(batch.weak) == 0:
            return supervised
        labels = self.threshold(predict(self.teachers, batch.weak))
        consistency = compare_views(CONSISTENCY[self.options.consistency], split_views(logits, batch), labels, batch)
        terms = labels.describe() | self.threshold.describe()
        terms |= measure_precision(self.threshold, self.teachers, batch, progress)
        return add_unlabeled(supervised, consistency, self.options.compute_weight(progress), **terms)
