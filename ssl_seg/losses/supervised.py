"""The supervised loss of a run: named components, and a weighted sum whose weights may follow the epoch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ssl_seg.config import LossConfig
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.losses.common import LossFn
from ssl_seg.losses.overlap import dice
from ssl_seg.losses.voxelwise import cross_entropy, focal
from ssl_seg.schedules import LossPhase, compute_loss_weights

LOSSES: dict[str, LossFn] = {
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
}

COSTS = ("fp_cost", "fn_cost")


def get_loss(name: str, **options: Any) -> LossFn:
    """Return the named component with its options bound: ``(logits, target) -> scalar``.

    Raises:
        ConfigError: unknown name or option, with the nearest known one.
    """
    if name not in LOSSES:
        raise ConfigError(f"unknown loss '{name}'{did_you_mean(name, LOSSES)}; available: {', '.join(LOSSES)}")
    known = list_options(name)
    if unknown := [f"'{key}'{did_you_mean(key, known)}" for key in options if key not in known]:
        raise ConfigError(f"loss '{name}' has no option {', '.join(unknown)}; known: {', '.join(known) or 'none'}")
    return partial(LOSSES[name], **options)


def list_options(name: str) -> dict[str, Any]:
    """Return the options of a component with their defaults."""
    parameters = list(inspect.signature(LOSSES[name]).parameters.values())
    return {p.name: p.default for p in parameters[2:]}


@dataclass(frozen=True)
class SupervisedLoss:
    """A weighted sum of components: ``loss(logits, target, epoch) -> (total, terms)``.

    A component that is named with weight 0 is computed without gradient, to be watched; one that is not named in the
    current phase is not computed.
    """

    components: Mapping[str, LossFn]
    phases: tuple[LossPhase, ...]

    def __call__(self, logits: Tensor, target: Tensor, epoch: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum at an epoch, and each component by itself: unweighted and detached.

        Args:
            logits: (N, K, *S).
            target: (N, *S).
            epoch: steps made / steps an epoch.
        """
        weights = compute_loss_weights(self.phases, epoch)
        terms = {}
        for name, weight in weights.items():
            with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
                terms[name] = self.components[name](logits, target)
        total = torch.stack([weight * terms[name] for name, weight in weights.items() if weight > 0]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


def make_supervised_loss(config: LossConfig) -> SupervisedLoss:
    """Return the loss that a configuration describes.

    Raises:
        ConfigError: unknown components or options, all in one; costs that no component takes.
    """
    phases = (
        LossPhase(0, config.weights, 0),
        *(LossPhase(phase.from_epoch, phase.weights, phase.blend_epochs) for phase in config.phases),
    )
    names = dict.fromkeys([name for phase in phases for name in phase.weights])
    check_loss_names([*names, *config.options])
    costs = {"fp_cost": config.fp_cost, "fn_cost": config.fn_cost}
    components = {}
    for name in names:
        taken = {key: value for key, value in costs.items() if value != 1.0 and key in list_options(name)}
        components[name] = get_loss(name, **{**config.options.get(name, {}), **taken})
    return SupervisedLoss(components, phases)


def check_loss_names(names: Iterable[str]) -> None:
    """Do nothing, if all names are in ``LOSSES``.

    Raises:
        ConfigError: with the names that are not, and the nearest known ones.
    """
    unknown = [f"'{name}'{did_you_mean(name, LOSSES)}" for name in names if name not in LOSSES]
    if unknown:
        raise ConfigError(f"unknown loss {', '.join(unknown)}; available: {', '.join(LOSSES)}")


def compute_loss(logits: Tensor, target: Tensor, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted sum of the named losses at their default options, and each by itself: detached.

    Raises:
        ConfigError: for names that are not in ``LOSSES``, and when no loss is named.
    """
    check_loss_names(weights)
    if not weights:
        raise ConfigError(f"no loss is named; available: {', '.join(LOSSES)}")
    return make_supervised_loss(LossConfig(weights=dict(weights)))(logits, target)
