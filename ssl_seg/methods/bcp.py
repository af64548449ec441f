"""Bidirectional copy-paste (Bai et al. 2023, arXiv:2305.00673).

With M = 0 in a random box of 2/3 of each side and 1 elsewhere, each labeled patch x with mask y and each unlabeled
patch u with pseudo-label q = argmax teacher(u) are put into one another:

    in = x · M + u · (1 - M), out = u · M + x · (1 - M)
    loss = L(in, y where M = 1) + L(out, y where M = 0) + w · [L(in, q where M = 0) + L(out, q where M = 1)]

L is the supervised loss of the run on the voxels named. In a first stage (``first_stage`` of the run), the second
partner is another labeled patch with its own mask, at full weight.

Deviations: the student is pasted strong views of u, the teacher sees weak ones; pseudo-labels are not cut down to their
largest component, since there may be many objects; w is 0.5 from the start of the second stage, as in the paper,
unless a ramp is given; losses are means over both mixtures, not sums. Where there are more patches of one kind, those
of the other come in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ssl_seg.config import Section
from ssl_seg.config.section import Share
from ssl_seg.data.loader import Batch
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import SupervisedLoss
from ssl_seg.methods.base import Nets, StepOutput, StepProgress, Traits, supervise
from ssl_seg.methods.unlabeled import PseudoLabels, UnlabeledConfig, add_unlabeled, predict

SIDE = 2 / 3
"""Share of each side of a patch that the box has."""


class BidirectionalCopyPasteConfig(UnlabeledConfig):
    """Options of bidirectional copy-paste."""

    consistency_weight: float = Field(0.5, gt=0)
    """Weight of the voxels with a pseudo-label."""
    rampup_ratio: Share = 0.0
    """Share of the run over which that weight rises."""
    first_stage: float = Field(0.2, ge=0, lt=1)
    """Share of the run in which labeled patches are pasted into one another, and nothing else is learned from."""


class BidirectionalCopyPaste:
    """Labeled and unlabeled patches are pasted into one another, both ways."""

    config_type: ClassVar[type[Section]] = BidirectionalCopyPasteConfig
    traits: ClassVar[Traits] = Traits(uses_teacher=True, uses_unlabeled=True)

    def __init__(self, options: BidirectionalCopyPasteConfig, supervised: SupervisedLoss, num_classes: int) -> None:  # noqa: ARG002 (one signature)
        self.options, self.supervised = options, supervised

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        """Return the loss of the mixtures; one forward pass of the student serves both ways."""
        if len(batch.weak) == 0:
            return supervise(self.supervised, nets.student(batch.image), batch, progress)
        x, y = batch.image, batch.target
        if self._is_first_stage(progress):
            inside = draw_boxes(len(x), y.shape[1:], x.device)
            image, target = (torch.cat(cross(part, part.roll(1, dims=0), inside)) for part in (x, y))
            return supervise(self.supervised, nets.student(image), replace(batch, image=image, target=target), progress)

        labels = PseudoLabels(predict(nets.teacher, batch.weak), None).mix(batch.mixes[0])
        u, q = batch.strong[0], labels.probs.max(dim=1).indices
        pairs = torch.arange(max(len(x), len(u)), device=x.device)
        x, y, u, q = x[pairs % len(x)], y[pairs % len(y)], u[pairs % len(u)], q[pairs % len(q)]
        inside, nothing = draw_boxes(len(pairs), y.shape[1:], x.device), torch.full_like(y, IGNORE_INDEX)
        image, known = torch.cat(cross(x, u, inside)), torch.cat(cross(y, nothing, inside))
        guessed = torch.cat(cross(nothing, q, inside))
        logits = nets.student(image)
        supervised = supervise(self.supervised, logits, replace(batch, image=image, target=known), progress)
        on_guessed, _ = self.supervised(logits, guessed, progress.epoch)
        return add_unlabeled(supervised, on_guessed, self.options.compute_weight(progress), **labels.describe())

    def _is_first_stage(self, progress: StepProgress) -> bool:
        return progress.step < self.options.first_stage * progress.total_steps and not progress.teacher_is_fixed


def cross(first: Tensor, second: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return patches (N,*P) or (N,C,*P) with the boxes (N,*P) of the others in them, both ways."""
    box = inside if first.ndim == inside.ndim else inside.unsqueeze(1)
    return torch.where(box, second, first), torch.where(box, first, second)


def draw_boxes(count: int, patch_size: Sequence[int], device: torch.device) -> Tensor:
    """Return ``count`` masks (N,*P) bool of a box each, at a random place, drawn on the device."""
    inside = torch.ones(count, *patch_size, dtype=torch.bool, device=device)
    for axis, size in enumerate(patch_size, start=1):
        side = max(1, round(SIDE * size))
        start = (torch.rand(count, device=device) * (size - side + 1)).floor()
        start = start.reshape(-1, *[1] * len(patch_size))
        place = torch.arange(size, device=device).reshape(*[-1 if a == axis else 1 for a in range(inside.ndim)])
        inside &= (place >= start) & (place < start + side)
    return inside
