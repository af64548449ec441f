"""What a learning method is: one callable from a batch to a loss and its named terms, and what it needs.

The engine owns backward, clipping, the optimizer and the teacher update, so a method is a page of algorithm. To add
one: a file beside this one, a line in ``METHODS``; the contract tests pick it up from there. Most methods train one
network and keep nothing. One that trains more is ``BuildsModule``; one with a state is a ``torch.nn.Module``, whose
buffers and parameters are in the checkpoints; one that trains parameters of its own is ``OwnsOptimizer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn, optim

from ssl_seg.config import Section
from ssl_seg.data.loader import Batch
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import SupervisedLoss, compute_foreground_logit, first_head


@dataclass(frozen=True)
class Nets:
    """Student (with gradients) and EMA teacher (eval mode, no gradients) as the method builds them: (N,C,*P) to
    (N,K,*P) logits, unless it is ``BuildsModule``."""

    student: nn.Module
    teacher: nn.Module


@dataclass(frozen=True)
class StepProgress:
    """Place in the run: ``step`` counts from 0 to ``total_steps - 1``; ``epoch`` is steps made / steps per epoch."""

    step: int
    total_steps: int
    epoch: float = 0.0
    unlabeled_factor: float = 1.0
    """Factor of everything that is learned from unlabeled patches; an intervention sets it to 0 for a while."""
    teacher_is_fixed: bool = False
    """The teacher is a trained network that does not move: what it says counts in full, without ramp-up."""
    threshold: float | None = None
    """Probability above which a voxel counts as predicted foreground; None for 0.5."""


@dataclass(frozen=True)
class StepOutput:
    """``loss`` is a scalar with a graph; ``terms`` are detached scalars by name: the components of the supervised loss,
    ``count_foreground`` of the labeled patches, and what the method has to tell."""

    loss: Tensor
    terms: Mapping[str, Tensor]
    own_loss: Tensor | None = None
    """What ``OwnsOptimizer`` minimizes, a scalar with a graph that does not reach the student."""


@torch.no_grad()
def count_foreground(logits: Tensor, target: Tensor, threshold: float | None = None) -> dict[str, Tensor]:
    """Return what the labeled patches of a step say about the network in train mode, as shares of their valid voxels.

    Args:
        logits: (N,K,*S) or, with deep supervision, (N,H,K,*S).
        target: (N,*S), IGNORE_INDEX where nothing is known.
        threshold: probability of foreground above which it is predicted; None for 0.5.

    Returns:
        ``prevalence_true``, ``prevalence_pred`` and ``prevalence_both``.
    """
    valid = target != IGNORE_INDEX
    cut = 0.0 if threshold is None else math.log(threshold / (1 - threshold))
    truth, pred = (target > 0) & valid, (compute_foreground_logit(first_head(logits, target.ndim)) > cut) & valid
    count = valid.sum().clamp(min=1)
    return {
        "prevalence_true": truth.sum() / count,
        "prevalence_pred": pred.sum() / count,
        "prevalence_both": (truth & pred).sum() / count,
    }


def supervise(supervised: SupervisedLoss, logits: Tensor, batch: Batch, progress: StepProgress) -> StepOutput:
    """Return the supervised loss of a step.

    Args:
        supervised: supervised loss of the run.
        logits: logits of the labeled patches; further ones may follow.
        batch: the batch.
        progress: place in the run.
    """
    labeled = logits[: len(batch.image)]
    loss, components = supervised(labeled, batch.target, progress.epoch)
    return StepOutput(loss, {**components, **count_foreground(labeled, batch.target, progress.threshold)})


@dataclass(frozen=True)
class Traits:
    """What a method needs beside labeled patches."""

    uses_teacher: bool = False
    """Its loss reads the teacher's output. (The teacher is kept and scored in any case.)"""
    uses_unlabeled: bool = False
    """Its loss reads unlabeled patches."""
    strong_views: int = 1
    """Number of strong views of each unlabeled patch."""
    cutmix: float = 0.0
    """Probability that is planned for ``augment.cutmix``."""
    needs_features: bool = False
    """It uses what the network computes inside: ``encode``, ``decode`` and the other methods of ``EncoderUNet``."""
    needs_heads: bool = False
    """Its loss reads the further outputs of deep supervision."""


class Method(Protocol):
    """A learning method. Its constructor takes its own options, the supervised loss and the number of classes K."""

    config_type: ClassVar[type[Section]]
    """Strict model of the options."""
    traits: ClassVar[Traits]

    def __init__(self, options: Section, supervised: SupervisedLoss, num_classes: int) -> None: ...

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return the loss of one batch; an empty unlabeled part and an all-background target are normal inputs."""
        ...


class NetworkFactory:
    """Makes networks as the settings describe them, each with weights of its own."""

    def __init__(self, make: Callable[[], nn.Module], num_classes: int) -> None:
        self._make, self.num_classes = make, num_classes
        self.made: list[nn.Module] = []

    def __call__(self) -> nn.Module:
        """Return one more network, (N,C,*P) to (N,K,*P)."""
        self.made.append(self._make())
        return self.made[-1]


@runtime_checkable
class BuildsModule(Protocol):
    """A method that trains something other than a single network: two networks, or one with an extra head."""

    def build(self, make_network: NetworkFactory) -> nn.Module:
        """Return the module that is trained, and that the teacher averages; called once, before anything else."""
        ...

    def find_plain(self, module: nn.Module) -> nn.Module:
        """Return the network inside the module, or its average, that is scored, predicted with and built upon."""
        ...


@runtime_checkable
class TrainsOthers(Protocol):
    """A method that trains whole networks beside the plain one; the monitor watches them too."""

    def find_others(self, module: nn.Module) -> Mapping[str, nn.Module]:
        """Return the other networks inside the module, by the name that findings about them have."""
        ...


@runtime_checkable
class OwnsOptimizer(Protocol):
    """A method that is a module and trains its own parameters, such as those of a discriminator, on ``own_loss``."""

    optimizer: optim.Optimizer
    """Optimizer of the method's parameters; the learning rate is that of the run, times ``lr_factor`` of a group."""


@dataclass(frozen=True)
class Built:
    """A method and what it trains."""

    method: Method
    module: nn.Module
    networks: tuple[nn.Module, ...]
    """The networks inside the module that the factory has made."""

    @property
    def plain(self) -> nn.Module:
        """The network that is scored, predicted with and built upon."""
        return find_plain(self.method, self.module)


def build(method: Method, make: Callable[[], nn.Module], num_classes: int) -> Built:
    """Build what a method trains: one network, unless it says otherwise.

    Args:
        method: the method.
        make: returns a new network.
        num_classes: K.
    """
    factory = NetworkFactory(make, num_classes)
    module = method.build(factory) if isinstance(method, BuildsModule) else factory()
    return Built(method, module, tuple(factory.made))


def find_plain(method: Method, module: nn.Module) -> nn.Module:
    """Return the plain network inside a module that the method has built, or inside its average."""
    return method.find_plain(module) if isinstance(method, BuildsModule) else module
