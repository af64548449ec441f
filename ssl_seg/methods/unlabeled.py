"""What methods that learn from unlabeled patches share: the weight of that term, pseudo-labels, and which ones count.

Shapes: U unlabeled patches, K classes, *S spatial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ssl_seg.config import Section
from ssl_seg.config.schedules import compute_rampup
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.data.views.mixing import Mix
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import first_head
from ssl_seg.losses.common import LossFn
from ssl_seg.methods.base import StepOutput, StepProgress

PRECISION_STEPS = 10
"""In every tenth step, pseudo-labels are made for the labeled patches too and compared with their masks."""


class UnlabeledConfig(Section):
    """How much the term of the unlabeled patches weighs."""

    consistency_weight: float = Field(1.0, ge=0)
    """Weight of the term of the unlabeled patches after the ramp-up."""
    rampup_ratio: Share = 0.2
    """Share of the run over which the weight rises."""
    rampup_steps: int | None = Field(None, ge=0)
    """Steps over which the weight rises, in place of rampup_ratio."""
    rampup: Literal["sigmoid", "linear", "cosine"] = "sigmoid"
    """Shape of the rise; sigmoid starts at 0.7 %, the others at 0."""

    def compute_weight(self, progress: StepProgress) -> float:
        """Return the weight of the term in a step."""
        return self.consistency_weight * self.compute_rampup(progress) * progress.unlabeled_factor

    def compute_rampup(self, progress: StepProgress) -> float:
        """Return how far the weight has risen, in [0, 1]."""
        steps = self.rampup_steps
        if steps is None:
            steps = round(self.rampup_ratio * progress.total_steps)
        return 1.0 if progress.teacher_is_fixed else compute_rampup(progress.step, steps, self.rampup)


class PseudoLabelConfig(UnlabeledConfig):
    """Which pseudo-labels count."""

    confidence: Share = 0.9
    """Probability that the most probable class needs for a voxel to count; 0 accepts all."""
    threshold: Literal["fixed", "freematch", "corrmatch"] = "fixed"
    """fixed: that of confidence; corrmatch starts there and follows the most confident voxel of each class; freematch
    follows the mean confidence, with lower thresholds for rarer classes, and does not use confidence."""
    threshold_momentum: float = Field(0.99, ge=0, lt=1)
    """Weight of the old threshold in each step of freematch and corrmatch."""


def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return the probabilities (U,K,*S) of a network in eval mode, without gradients; it keeps its mode."""
    return predict_outputs(network, images)[0]


@torch.no_grad()
def predict_outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return those of each output, for a module with several."""
    was_training = network.training
    if was_training:
        network.eval()
    outputs = network(images)
    if was_training:
        network.train()
    return [torch.softmax(logits.float(), dim=1) for logits in (outputs if isinstance(outputs, tuple) else (outputs,))]


@dataclass(frozen=True)
class PseudoLabels:
    """``probs`` (U,K,*S) sum to 1 over K; ``accepted`` (U,*S) bool says which voxels count, None all."""

    probs: Tensor
    accepted: Tensor | None

    def mix(self, mix: Mix | None) -> PseudoLabels:
        """Return the labels of strong views that are mixed so."""
        if mix is None:
            return self
        return PseudoLabels(mix.apply(self.probs), None if self.accepted is None else mix.apply(self.accepted))

    def describe(self) -> dict[str, Tensor]:
        """Return shares of all voxels: those of foreground, those that count, and those that are and do both."""
        foreground = self.probs.max(dim=1).indices > 0
        terms = {"pseudo_prevalence": foreground.float().mean()}
        if self.accepted is not None:
            terms["accepted_share"] = self.accepted.float().mean()
            terms["accepted_foreground"] = (self.accepted & foreground).float().mean()
        return terms


class Threshold(nn.Module):
    """Which pseudo-labels count, by the probability of their most probable class.

    ``corrmatch`` (Sun et al. 2024, arXiv:2306.04300): ``t <- m * t + (1 - m) * mean_k max_v confidence``, where k runs
    over the classes that are predicted and v over their voxels. ``freematch`` (Wang et al. 2023, arXiv:2205.07246):
    ``t <- m * t + (1 - m) * mean_v confidence`` and, for each class, ``r_k <- m * r_k + (1 - m) * mean_v p_k``; class k
    counts from ``t * r_k / max_j r_j`` on. Both t and r start at 1 / K.

    Deviation: momentum m is 0.99 unless given, not 0.999, since runs here have hundreds of steps and not 100,000.

    Args:
        options: options of the method.
        num_classes: K.
    """

    def __init__(self, options: PseudoLabelConfig, num_classes: int) -> None:
        super().__init__()
        self.options = options
        if options.threshold == "corrmatch":
            self.register_buffer("value", torch.tensor(options.confidence))
        if options.threshold == "freematch":
            self.register_buffer("value", torch.tensor(1 / num_classes))
            self.register_buffer("class_probs", torch.full((num_classes,), 1 / num_classes))

    @property
    def takes_all(self) -> bool:
        """Whether every voxel counts, whatever its probability."""
        return self.options.threshold == "fixed" and self.options.confidence == 0

    def forward(self, probs: Tensor) -> PseudoLabels:
        """Take the probabilities (U,K,*S) of a step in, and return its pseudo-labels."""
        self.update(probs)
        return self.apply_to(probs)

    @torch.no_grad()
    def update(self, probs: Tensor) -> None:
        """Move the threshold to where these probabilities want it; a fixed one stays."""
        if self.options.threshold == "fixed":
            return
        share = 1 - self.options.threshold_momentum
        confidence, label = probs.max(dim=1)
        if self.options.threshold == "freematch":
            dims = (0, *range(2, probs.ndim))
            self.get_buffer("value").lerp_(confidence.mean(), share)
            self.get_buffer("class_probs").lerp_(probs.mean(dims), share)
            return
        of_class = [(label == k) * confidence for k in range(probs.shape[1])]
        highest = torch.stack([values.max() for values in of_class])
        self.get_buffer("value").lerp_(highest.sum() / (highest > 0).sum(), share)

    def apply_to(self, probs: Tensor) -> PseudoLabels:
        """Return the pseudo-labels of probabilities (U,K,*S)."""
        confidence, label = probs.max(dim=1)
        if self.options.threshold == "fixed":
            return PseudoLabels(probs, None if self.takes_all else confidence >= self.options.confidence)
        least = self.get_buffer("value")
        if self.options.threshold == "freematch":
            class_probs = self.get_buffer("class_probs")
            least = (least * class_probs / class_probs.max())[label]
        return PseudoLabels(probs, confidence >= least)

    def describe(self) -> dict[str, Tensor]:
        """Return the threshold of the most frequent class, where it moves."""
        return {} if self.options.threshold == "fixed" else {"threshold": self.get_buffer("value").clone()}


def measure_precision(
    threshold: Threshold, labeler: nn.Module, batch: Batch, progress: StepProgress
) -> dict[str, Tensor]:
    """Return how right pseudo-labels are where the truth is known: in the labeled patches, in every tenth step.

    The network has learned from these patches, so on other ones it is right less often.

    Returns:
        ``labeled_accepted`` and ``labeled_right``: shares of the known voxels of the labeled patches that would count,
        and that would count and have the right class. Empty in the other steps, and where all voxels count.
    """
    if progress.step % PRECISION_STEPS or threshold.takes_all:
        return {}
    labels, known = threshold.apply_to(predict(labeler, batch.image)), batch.target != IGNORE_INDEX
    accepted = known if labels.accepted is None else labels.accepted & known
    count = known.sum().clamp(min=1)
    right = accepted & (labels.probs.max(dim=1).indices == batch.target)
    return {"labeled_accepted": accepted.sum() / count, "labeled_right": right.sum() / count}


def split_views(logits: Tensor, batch: Batch) -> tuple[Tensor, ...]:
    """Return the logits (U,K,*S) of each strong view, out of those of labeled patches and all strong views.

    Of a network with deep supervision, the finest output is taken.
    """
    return torch.split(first_head(logits, batch.target.ndim)[len(batch.image) :], len(batch.weak))


def compare_views(distance: LossFn, views: Sequence[Tensor], labels: PseudoLabels, batch: Batch) -> Tensor:
    """Return the mean distance of the strong views to the pseudo-labels, which are mixed as each view is.

    Args:
        distance: one of ``CONSISTENCY``.
        views: logits (U,K,*S) of each.
        labels: labels of the weak views.
        batch: whose views are.
    """
    mixed = [labels.mix(mix) for mix in batch.mixes]
    distances = [distance(view, own.probs, own.accepted) for view, own in zip(views, mixed, strict=True)]
    return torch.stack(distances).mean()


def add_unlabeled(supervised: StepOutput, consistency: Tensor, weight: float, **terms: Tensor) -> StepOutput:
    """Return the output of a step: supervised + weight * consistency, and what there is to tell."""
    own = {"consistency": consistency.detach(), "consistency_weight": torch.tensor(weight)}
    return StepOutput(supervised.loss + weight * consistency, {**supervised.terms, **terms, **own})
