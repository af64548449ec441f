"""Which way a cost moves the predicted foreground."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.diagnose.loss_probe.measures import compute_gradient, compute_value, make_passes
from ssl_seg.losses import LossFn, first_head
from ssl_seg.losses.trivial import Labeled

EFFECTS = {
    "fp_cost": -1,
    "fn_cost": +1,
    "pos_weight": +1,
    "focal.alpha": +1,
    "tversky.alpha": -1,
    "tversky.beta": +1,
    "focal_tversky.alpha": -1,
    "focal_tversky.beta": +1,
}
"""Which way more of a cost moves the predicted foreground, by option, or ``component.option`` where that differs; of
``class_weights`` the first moves it down, the others up. Other options are no costs."""
UNSET = {"focal.alpha": 0.5}
"""What an unset cost amounts to; the others 1."""
STEP = 0.01
"""Relative change of a cost to each side in its central difference."""


@dataclass(frozen=True)
class Knob:
    """One cost of one component.

    ``effect`` in [-1, 1] is the cosine between the gradient of the mean foreground probability and the change that more
    of the cost makes to a step of gradient descent; ``agreeing`` of the ``batches`` have its sign by themselves.
    """

    component: str
    name: str
    value: float
    expected: int
    effect: float
    agreeing: int
    batches: int

    @property
    def is_reversed(self) -> bool:
        """Whether more of it moves the predicted foreground the wrong way, at this state of the network."""
        return self.effect * self.expected < 0


@dataclass(frozen=True)
class CostOption:
    """A cost that can be changed: ``make(value)`` is the component with another value of it."""

    component: str
    name: str
    value: float
    expected: int
    make: Callable[[float], LossFn]

    def compute_slope(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return d(component)/d(cost), a scalar with a graph: a central difference, one-sided at 0."""
        step = STEP * (self.value or 1.0)
        low, high = max(self.value - step, 0.0), self.value + step
        below, above = (compute_value(self.make(value), logits, target) for value in (low, high))
        return (above - below) / (high - low)


def measure_knobs(
    net: nn.Module,
    components: Mapping[str, LossFn],
    batches: Sequence[Labeled],
    seeds: Sequence[int],
    foreground: Tensor,
    track: Track = pass_through,
) -> tuple[Knob, ...]:
    """Return what each cost does to the predicted foreground in one small step of gradient descent.

    A step along ``-g`` changes the mean foreground probability by ``-<foreground, g>``, so a cost ``c`` changes that by
    ``-<foreground, dg/dc>``.

    Args:
        net, components, batches, seeds, track: as in ``measure_gradients``.
        foreground: (P), gradient of the mean foreground probability, mean over the batches.
    """
    costs: list[CostOption] = []
    dots, norms = [], []
    for logits, target in make_passes(net, batches, seeds, track):
        num_classes = first_head(logits, target.ndim).shape[1]
        costs = [cost for name, fn in components.items() for cost in find_costs(name, fn, num_classes)]
        changes = (compute_gradient(cost.compute_slope(logits, target), net) for cost in costs)
        pairs = [(-(foreground @ change), change.norm()) for change in changes]
        dots.append(torch.tensor([dot for dot, _ in pairs]))
        norms.append(torch.tensor([norm for _, norm in pairs]))
    signed = torch.stack(dots)
    scale = (foreground.norm().cpu() * torch.stack(norms).mean(dim=0)).clamp(min=torch.finfo(torch.float32).tiny)
    effects = signed.mean(dim=0) / scale
    agreeing = (signed.sign() == effects.sign()).sum(dim=0)
    return tuple(
        Knob(cost.component, cost.name, cost.value, cost.expected, effect, count, len(batches))
        for cost, effect, count in zip(costs, effects.tolist(), agreeing.tolist(), strict=True)
    )


def find_costs(name: str, component: LossFn, num_classes: int) -> Iterator[CostOption]:
    """Yield the costs among the options of a component, at the values that are bound to it."""
    for option, parameter in list(inspect.signature(component).parameters.items())[2:]:
        key = option if option in EFFECTS else f"{name}.{option}"
        if key in EFFECTS:
            value = UNSET.get(key, 1.0) if parameter.default is None else float(parameter.default)
            yield CostOption(name, option, value, EFFECTS[key], partial(_bind, component, option))
        elif option == "class_weights":
            weights = tuple(parameter.default or [1.0] * num_classes)
            for k, weight in enumerate(weights):
                make = partial(_bind_weight, component, weights, k)
                yield CostOption(name, f"class_weights[{k}]", float(weight), 1 if k else -1, make)


def _bind(component: LossFn, option: str, value: float) -> LossFn:
    return partial(component, **{option: value})


def _bind_weight(component: LossFn, weights: tuple[float, ...], k: int, value: float) -> LossFn:
    return partial(component, class_weights=(*weights[:k], value, *weights[k + 1 :]))
