"""What the loss asks for: how much foreground, and at which output it is lowest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ssl_seg.config import Config
from ssl_seg.config.schedules import list_phases, list_trained
from ssl_seg.losses import list_costs, list_options

Pull = tuple[str, float]
"""A setting in words, and how it pulls: above 0 it asks for more foreground than the loss alone, below 0 for less."""

LARGEST_VARIANCE_SHARE = 0.2
"""Between two shares of the reported papyrus trainings: they began with 0.1, and got stuck with 0.5."""


def variance_minimum(config: Config) -> Iterator[str]:
    """The variance term is not lowest at the true mask, so it must not lead."""
    places = {"loss.weights": config.loss.weights}
    places |= {f"loss.phases.{index}.weights": phase.weights for index, phase in enumerate(config.loss.phases)}
    for place, weights in places.items():
        share = weights.get("variance", 0.0) / sum(weights.values())
        if share > LARGEST_VARIANCE_SHARE:
            yield (
                f"{place}.variance = {weights['variance']:g} is {share:.0%} of the weights: 1 - 4 Var(p) is lowest "
                "where half of the voxels are foreground, not at the true mask. Keep it to "
                f"{LARGEST_VARIANCE_SHARE:.0%} or less"
            )


def imbalance_corrected_twice(config: Config) -> Iterator[str]:
    """Each correction is chosen as if it were the only one; within a component they multiply."""
    names = ("positive_ratio", "foreground_share")
    given = {name: getattr(config.batch, name) for name in names}
    sampled = [f"batch.{name} = {value:g}" for name, value in given.items() if value is not None]
    told: set[str] = set()
    for name, pulls in _list_pulls(config).items():
        more = [text for text, pull in pulls if pull > 0]
        listed = ", ".join([*more, *sampled])
        if (len(more) > 1 or (more and sampled)) and listed not in told:
            told.add(listed)
            yield f"{listed}: each makes foreground count more in '{name}', and they multiply. Keep one of them"


def costs_oppose(config: Config) -> Iterator[str]:
    """One setting asks for more foreground, another for less."""
    pulls = dict.fromkeys(pull for component in _list_pulls(config).values() for pull in component)
    more = [text for text, pull in pulls if pull > 0]
    less = [text for text, pull in pulls if pull < 0]
    if more and less:
        yield (
            f"for more foreground: {', '.join(more)}; for less: {', '.join(less)}. They work against each other: keep "
            "what is meant"
        )


def _list_pulls(config: Config) -> dict[str, list[Pull]]:
    """Return, for each component that is trained with, the settings that weigh its foreground against background."""
    loss = config.loss
    overall = (f"loss.fp_cost = {loss.fp_cost:g} with loss.fn_cost = {loss.fn_cost:g}", loss.fn_cost - loss.fp_cost)
    weights = loss.class_weights
    classes = [_pull_of_classes("loss.class_weights", weights)] if isinstance(weights, tuple) else []
    return {
        name: [
            *([overall] if list_costs(name) else []),
            *(classes if "class_weights" in list_options(name) else []),
            *_list_own_pulls(name, loss.options.get(name, {})),
        ]
        for name in list_trained(list_phases(loss))
    }


def _pull_of_classes(where: str, weights: Sequence[float]) -> Pull:
    foreground = sum(weights[1:]) / (len(weights) - 1)
    return f"{where} = {list(weights)}", foreground - weights[0]


def _list_own_pulls(name: str, options: Mapping[str, Any]) -> Iterator[Pull]:
    where = f"loss.options.{name}"
    fp_cost, fn_cost = options.get("fp_cost", 1.0), options.get("fn_cost", 1.0)
    yield f"{where} fp_cost = {fp_cost:g} with fn_cost = {fn_cost:g}", fn_cost - fp_cost
    yield f"{where}.pos_weight = {options.get('pos_weight', 1.0):g}", options.get("pos_weight", 1.0) - 1
    if (class_weights := options.get("class_weights")) is not None:
        yield _pull_of_classes(f"{where}.class_weights", class_weights)
    if name == "focal" and options.get("alpha") is not None:
        yield f"{where}.alpha = {options['alpha']:g}", options["alpha"] - 0.5
    if "alpha" in options and "beta" in options:
        alpha, beta = options["alpha"], options["beta"]
        yield f"{where} alpha = {alpha:g} with beta = {beta:g}", beta - alpha
