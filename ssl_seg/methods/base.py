"""What a learning method is: one callable from a batch to a loss and its named terms.

The engine owns backward, clipping, the optimizer and the teacher update, so a method is a page of algorithm. To add
one: a file beside this one, a line in ``METHODS``; the contract tests pick it up from there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.losses import SupervisedLoss


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


@dataclass(frozen=True)
class StepOutput:
    """``loss`` is a scalar with a graph; ``terms`` are detached scalars by name."""

    loss: Tensor
    terms: Mapping[str, Tensor]


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
