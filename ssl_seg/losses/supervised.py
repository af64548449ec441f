"""The supervised loss of a run: a weighted sum of components whose weights may follow the epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_seg.config import LossConfig
from ssl_seg.config.layers import validate
from ssl_seg.config.presets import PRESETS, expand
from ssl_seg.config.schedules import LossPhase, compute_loss_weights, list_phases, list_trained
from ssl_seg.errors import ConfigError
from ssl_seg.losses.common import LossFn
from ssl_seg.losses.components import LOSSES, bind_options, check_loss_names, list_costs, list_options, suggest


@dataclass
class SupervisedLoss:
    """A weighted sum of components: ``loss(logits, target, epoch) -> (total, terms)``.

    A component with weight 0 is computed without gradient, to be watched; one that the current phase does not name is
    not computed. A policy may put other ``phases`` in place between two epochs.
    """

    components: Mapping[str, LossFn]
    phases: tuple[LossPhase, ...]

    def __call__(self, logits: Tensor, target: Tensor, epoch: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum at an epoch, and each component by itself: unweighted and detached.

        Args:
            logits: (N, K, *S), or (N, H, K, *S) of a network with H heads, that of full resolution first. Each
                component is then a mean over the heads in which each head has half the weight of the one before
                (Isensee et al. 2021).
            target: (N, *S).
            epoch: steps made / steps an epoch.
        """
        weights = compute_loss_weights(self.phases, epoch)
        heads = _split_heads(logits, target.ndim)
        terms = {}
        for name, weight in weights.items():
            with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
                terms[name] = _mean_over_heads([self.components[name](head, target) for head in heads])
        total = torch.stack([weight * terms[name] for name, weight in weights.items() if weight > 0]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


def first_head(logits: Tensor, target_ndim: int) -> Tensor:
    """Return the logits of full resolution: (N, K, *S) as they are, the first head of (N, H, K, *S).

    Args:
        logits: logits of a network with or without deep supervision.
        target_ndim: number of axes of a target (N, *S).
    """
    return _split_heads(logits, target_ndim)[0]


def make_supervised_loss(config: LossConfig) -> SupervisedLoss:
    """Return the loss that a configuration describes.

    Raises:
        ConfigError: unknown components or options, options of a component that no phase names, or costs that no
            component with a weight takes.
    """
    phases = list_phases(config)
    names = dict.fromkeys([name for phase in phases for name in phase.weights])
    check_loss_names([*names, *(name for name in config.options if name not in names)])
    if unused := [name for name in config.options if name not in names]:
        raise ConfigError(
            f"loss.options.{unused[0]}: no phase names '{unused[0]}', only {', '.join(names)}; "
            "give it a weight (0 watches it), or leave its options out"
        )
    own = _spread_class_weights(config, names, phases)
    costs = {"fp_cost": config.fp_cost, "fn_cost": config.fn_cost}
    _check_costs_are_taken(costs, phases)
    components = {}
    for name in names:
        bind_options(name, own.get(name, {}))  # checked as they were given
        components[name] = bind_options(name, _multiply_costs(own.get(name, {}), costs, list_costs(name)))
    return SupervisedLoss(components, phases)


def get_loss(name: str, **options: Any) -> LossFn:
    """Return a component or a preset by name: ``(logits, target) -> scalar``.

    A component takes its own options (``get_loss("focal", gamma=3.0)``), a preset those of a ``loss`` section
    (``get_loss("combined", fn_cost=2.0)``). The loss of a preset takes the epoch as a third argument, 0 by default. A
    name that is both is the component.

    Raises:
        ConfigError: unknown name or option, with the nearest known one; or a wrong value.
    """
    if name in LOSSES:
        return bind_options(name, options)
    if name not in PRESETS:
        known = {**LOSSES, **PRESETS}
        raise ConfigError(
            f"unknown loss '{name}'{suggest(name, known)}; components: {', '.join(LOSSES)}; "
            f"presets: {', '.join(PRESETS)}"
        )
    loss = make_supervised_loss(validate(LossConfig, expand({"preset": name, **options}), prefix="loss."))
    return lambda logits, target, epoch=0.0: loss(logits, target, epoch)[0]


def _spread_class_weights(
    config: LossConfig, names: Iterable[str], phases: tuple[LossPhase, ...]
) -> dict[str, dict[str, Any]]:
    """Return the options of the components, with the class weights of the whole loss in those that take them.

    Raises:
        ConfigError: where no component with a weight takes them, or where one has its own too.
    """
    options, weights = dict(config.options), config.class_weights
    if weights is None:
        return options
    used = set(list_trained(phases))
    takers = [name for name in names if "class_weights" in list_options(name)]
    if not used.intersection(takers):
        raise ConfigError(
            f"loss.class_weights = {weights if weights == 'auto' else list(weights)} has no effect: none of the "
            f"weighted components ({', '.join(sorted(used))}) takes it; those that do: "
            f"{', '.join(name for name in LOSSES if 'class_weights' in list_options(name))}"
        )
    for name in takers:
        if "class_weights" in options.get(name, {}):
            raise ConfigError(
                f"loss.class_weights and loss.options.{name}.class_weights both weigh the classes: give one of them"
            )
        if weights != "auto":
            options[name] = {**options.get(name, {}), "class_weights": weights}
    return options


def _check_costs_are_taken(costs: Mapping[str, float], phases: tuple[LossPhase, ...]) -> None:
    used = set(list_trained(phases))
    for cost, value in costs.items():
        if value != 1.0 and not any(cost in list_costs(name) for name in used):
            takers = [name for name in LOSSES if cost in list_costs(name)]
            raise ConfigError(
                f"loss.{cost} = {value} has no effect: none of the weighted components ({', '.join(sorted(used))}) "
                f"takes it; those that do: {', '.join(takers)}"
            )


def _multiply_costs(options: Mapping[str, Any], costs: Mapping[str, float], taken: tuple[str, ...]) -> dict[str, Any]:
    """Return the options with the costs of the whole loss multiplied into those that the component takes."""
    factors = {key: options.get(key, 1.0) * costs[key] for key in taken}
    return {**options, **{key: factor for key, factor in factors.items() if factor != 1.0}}


def _split_heads(logits: Tensor, target_ndim: int) -> tuple[Tensor, ...]:
    return logits.unbind(1) if logits.ndim == target_ndim + 2 else (logits,)


def _mean_over_heads(losses: list[Tensor]) -> Tensor:
    shares = [2.0**-head for head in range(len(losses))]
    return torch.stack([share / sum(shares) * loss for share, loss in zip(shares, losses, strict=True)]).sum()
