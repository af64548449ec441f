"""Values and gradients of loss components: functions of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssl_seg.config.schedules import LossPhase
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LossFn, SupervisedLoss, compute_foreground_logit, first_head
from ssl_seg.losses.trivial import Labeled
from ssl_seg.networks.precision import seeded


@dataclass(frozen=True)
class Gradients:
    """Means over the batches: ``values`` (C), ``components`` (C, P), and ``foreground`` (P), the gradient of the mean
    foreground probability. ``single`` (B, C, C) are the cosines of each batch by itself."""

    values: Tensor
    components: Tensor
    foreground: Tensor
    single: Tensor


def measure_gradients(
    net: nn.Module,
    components: Mapping[str, LossFn],
    batches: Sequence[Labeled],
    seeds: Sequence[int],
    track: Track = pass_through,
) -> Gradients:
    """Return values and gradients of the components at a network; all see the same forward passes.

    Takes room for two gradients of each component: the mean, and that of the batch at hand.

    Args:
        net: in the mode in which it is to be looked at.
        components: with their options bound.
        batches: at least one.
        seeds: seeds of dropout, one per batch.
    """
    functions: list[LossFn] = [*(partial(compute_value, fn) for fn in components.values()), compute_foreground_share]
    total = torch.zeros(len(functions), sum(p.numel() for p in trained(net)), device=batches[0][0].device)
    values, single = [], []
    for logits, target in make_passes(net, batches, seeds, track):
        results = [function(logits, target) for function in functions]
        gradients = torch.stack([compute_gradient(result, net) for result in results])
        total += gradients
        values.append(torch.stack([result.detach().float() for result in results[:-1]]))
        single.append(compute_cosines(gradients[:-1]))
    mean = total / len(batches)
    return Gradients(torch.stack(values).mean(dim=0), mean[:-1], mean[-1], torch.stack(single))


def measure_errors(
    net: nn.Module,
    components: Mapping[str, LossFn],
    batches: Sequence[Labeled],
    seeds: Sequence[int],
    mean: Tensor,
    track: Track = pass_through,
) -> Tensor:
    """Return the standard errors (C, C) of the cosines between the mean gradients (C, P); NaN for a single batch.

    They are those of the dot products by the jackknife (Efron 1982), ``sqrt((B - 1) / B * sum_b (d_b - mean(d)) ** 2)``
    with the dot product ``d_b`` of the means of all batches but b, divided by the norms of the means. Not those of the
    cosines: nearly all of a gradient may lie in one direction, say that of more foreground, and where its mean is near
    zero, every ``d_b`` has a cosine near 1 or -1 and the sign is that of the noise.

    Args:
        net, components, batches, seeds, track: as in ``measure_gradients``.
        mean: (C, P), from there. The gradients of the batches are computed again instead of being kept.
    """
    count, dots = len(batches), []
    for logits, target in make_passes(net, batches, seeds, track):
        losses = [compute_value(component, logits, target) for component in components.values()]
        others = count * mean - torch.stack([compute_gradient(loss, net) for loss in losses])
        dots.append(others @ others.T / max(count - 1, 1) ** 2)
    if count == 1:
        return torch.full_like(dots[0], torch.nan)
    norms = mean.norm(dim=1)
    variance: Tensor = torch.stack(dots).var(dim=0, correction=0) * (count - 1)
    errors: Tensor = variance.sqrt() / (norms[:, None] * norms)
    return errors


def make_passes(
    net: nn.Module, batches: Sequence[Labeled], seeds: Sequence[int], track: Track
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield output and target of each batch; dropout is drawn from its seed, and global generators stay as they are."""
    for (image, target), seed in track(list(zip(batches, seeds, strict=True)), len(batches)):
        with seeded(seed, image.device):
            logits: Tensor = net(image)
        yield logits, target


def compute_value(component: LossFn, logits: Tensor, target: Tensor) -> Tensor:
    """Return a component as a training computes it: with deep supervision its mean over the heads."""
    return SupervisedLoss({"alone": component}, (LossPhase(0, {"alone": 1.0}),))(logits, target)[0]


def trained(net: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that an optimizer would change."""
    return [parameter for parameter in net.parameters() if parameter.requires_grad]


def compute_gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """Return the gradient (P) of a scalar in the parameters, 0 where it does not depend on one; the graph is kept."""
    if not loss.requires_grad:
        return torch.cat([torch.zeros_like(parameter).flatten() for parameter in trained(net)])
    found = torch.autograd.grad(loss, trained(net), retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in found])


def compute_cosines(gradients: Tensor) -> Tensor:
    """Return the cosines (C, C) between gradients (C, P); NaN where one is zero."""
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    cosines: Tensor = unit @ unit.T
    return cosines.clamp(-1.0, 1.0)


def compute_shares(norms: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each component with a weight above 0: ``w_i |g_i| / sum_j w_j |g_j|``; 0 if all are 0."""
    weighted = {name: weight * norms[name] for name, weight in weights.items() if weight > 0}
    total = sum(weighted.values())
    return {name: norm / total if total else 0.0 for name, norm in weighted.items()}


def compute_foreground_share(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean foreground probability over the voxels that are not ignored; 0 where there are none."""
    valid = target != IGNORE_INDEX
    probs = torch.sigmoid(compute_foreground_logit(first_head(logits, target.ndim)))
    return torch.where(valid, probs, 0.0).sum() / valid.sum().clamp(min=1)
