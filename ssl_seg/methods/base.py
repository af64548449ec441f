"""What a learning method is: one callable from a batch to a loss and its named terms.

The engine owns backward, clipping, the optimizer and the teacher update, so a method is a page of algorithm. To add
one: a file beside this one, a line in ``METHODS``; the contract tests pick it up from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import SupervisedLoss, compute_foreground_logit, first_head


@dataclass(frozen=True)
class Nets:
    """Student (with gradients) and EMA teacher (eval mode, no gradients); both map (N,C,*P) to (N,K,*P) logits."""

    student: nn.Module
    teacher: nn.Module


@dataclass(frozen=True)
class Progress:
    """Where the run is: ``step`` counts from 0 to ``total_steps - 1``; ``epoch`` is steps made / steps an epoch."""

    step: int
    total_steps: int
    epoch: float = 0.0
    unlabeled_factor: float = 1.0
    """Factor of everything that is learned from unlabeled patches; an intervention sets it to 0 for a while."""
    teacher_is_fixed: bool = False
    """The teacher is a trained network that does not move: what it says counts in full, without ramp-up."""


@dataclass(frozen=True)
class StepOutput:
    """``loss`` is a scalar with a graph; ``terms`` are detached scalars by name: the components of the supervised loss,
    ``count_foreground`` of the labeled patches, and what the method has to tell."""

    loss: Tensor
    terms: Mapping[str, Tensor]


@torch.no_grad()
def count_foreground(logits: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Return what the labeled patches of a step say about the network in train mode, as shares of their valid voxels.

    Args:
        logits: (N,K,*S) or, with deep supervision, (N,H,K,*S).
        target: (N,*S), IGNORE_INDEX where nothing is known.

    Returns:
        ``prevalence_true`` and ``prevalence_pred`` (probability of foreground above 0.5), and ``prevalence_both``.
    """
    valid = target != IGNORE_INDEX
    truth, pred = (target > 0) & valid, (compute_foreground_logit(first_head(logits, target.ndim)) > 0) & valid
    count = valid.sum().clamp(min=1)
    return {
        "prevalence_true": truth.sum() / count,
        "prevalence_pred": pred.sum() / count,
        "prevalence_both": (truth & pred).sum() / count,
    }


class Method(Protocol):
    """A learning method. Its constructor takes its own options and the supervised loss."""

    config_type: ClassVar[type[Section]]
    """Strict model of the options."""
    uses_teacher: ClassVar[bool]
    """Whether the loss reads the teacher's output. (The teacher is kept and scored in any case.)"""

    def __init__(self, options: Section, supervised: SupervisedLoss) -> None: ...

    def __call__(self, nets: Nets, batch: Batch, progress: Progress) -> StepOutput:
        """Return the loss of one batch; an empty unlabeled part and an all-background target are normal inputs."""
        ...
