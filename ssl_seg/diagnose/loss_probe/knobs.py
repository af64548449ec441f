"""Which way a cost moves the predicted foreground."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.diagnose.loss_probe.measures import Labeled, compute_gradient, compute_value, forward
from ssl_seg.losses import LossFn, first_head

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
class Setting:
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
    num_classes = first_head(forward(net, batches[0][0], seeds[0]), batches[0][1].ndim).shape[1]
    found = [item for name, component in components.items() for item in find_settings(name, component, num_classes)]
    dots, norms = (torch.zeros(len(found), len(batches)) for _ in range(2))
    work = [(setting, index) for index in range(len(batches)) for setting in range(len(found))]
    logits = torch.empty(0)
    for row, index in track(work, len(work)):
        if row == 0:
            logits = forward(net, batches[index][0], seeds[index])
        change = compute_gradient(found[row].compute_slope(logits, batches[index][1]), net)
        dots[row, index], norms[row, index] = -(foreground @ change), change.norm()
    scale = (foreground.norm().cpu() * norms.mean(dim=1)).clamp(min=torch.finfo(torch.float32).tiny)
    effects = dots.mean(dim=1) / scale
    agreeing = (dots.sign() == effects.sign()[:, None]).sum(dim=1)
    return tuple(
        Knob(setting.component, setting.name, setting.value, setting.expected, effect, count, len(batches))
        for setting, effect, count in zip(found, effects.tolist(), agreeing.tolist(), strict=True)
    )


def find_settings(name: str, component: LossFn, num_classes: int) -> list[Setting]:
    """Return the costs among the options of a component, at the values that are bound to it."""
    settings = []
    for option, parameter in list(inspect.signature(component).parameters.items())[2:]:
        key = option if option in EFFECTS else f"{name}.{option}"
        if key in EFFECTS:
            value = UNSET.get(key, 1.0) if parameter.default is None else float(parameter.default)
            settings.append(Setting(name, option, value, EFFECTS[key], _turn(component, option)))
        elif option == "class_weights":
            settings += _find_class_weights(name, component, tuple(parameter.default or [1.0] * num_classes))
    return settings


def _find_class_weights(name: str, component: LossFn, weights: tuple[float, ...]) -> list[Setting]:
    return [
        Setting(name, f"class_weights[{k}]", float(weight), 1 if k else -1, _turn_weight(component, weights, k))
        for k, weight in enumerate(weights)
    ]


def _turn(component: LossFn, option: str) -> Callable[[float], LossFn]:
    return lambda value: partial(component, **{option: value})


def _turn_weight(component: LossFn, weights: tuple[float, ...], k: int) -> Callable[[float], LossFn]:
    return lambda value: partial(component, class_weights=(*weights[:k], value, *weights[k + 1 :]))
