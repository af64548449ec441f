"""What the loss asks for: how much foreground, and at which output it is lowest."""

from __future__ import annotations

from collections.abc import Iterator

from ssl_seg.config import Config

LARGEST_VARIANCE_SHARE = 0.2
"""Between the shares 0.1, which the source documents trained with, and 0.5, with which they got stuck."""


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


def _weighings(config: Config) -> tuple[list[str], list[str]]:
    """Return the settings that ask for more foreground, and those that ask for less, than the loss alone."""
    pulls = list(_list_pulls(config))
    return [text for text, pull in pulls if pull > 0], [text for text, pull in pulls if pull < 0]


def _list_pulls(config: Config) -> Iterator[tuple[str, float]]:
    """Yield each setting that weighs foreground against background; above 0 it asks for more foreground."""
    loss = config.loss
    phases = (loss.weights, *(phase.weights for phase in loss.phases))
    trained = {name for weights in phases for name, weight in weights.items() if weight > 0}
    options = {name: values for name, values in loss.options.items() if name in trained}
    yield f"loss.fp_cost = {loss.fp_cost:g} with loss.fn_cost = {loss.fn_cost:g}", loss.fn_cost - loss.fp_cost
    for name, values in options.items():
        fp_cost, fn_cost = values.get("fp_cost", 1.0), values.get("fn_cost", 1.0)
        yield f"loss.options.{name} fp_cost = {fp_cost:g} with fn_cost = {fn_cost:g}", fn_cost - fp_cost
    cross_entropy = options.get("cross_entropy", {})
    pos_weight, class_weights = cross_entropy.get("pos_weight", 1.0), cross_entropy.get("class_weights")
    yield f"loss.options.cross_entropy.pos_weight = {pos_weight:g}", pos_weight - 1
    if class_weights is not None:
        foreground = sum(class_weights[1:]) / (len(class_weights) - 1)
        yield f"loss.options.cross_entropy.class_weights = {list(class_weights)}", foreground - class_weights[0]
    alpha = options.get("focal", {}).get("alpha")
    if alpha is not None:
        yield f"loss.options.focal.alpha = {alpha:g}", alpha - 0.5


def imbalance_corrected_twice(config: Config) -> Iterator[str]:
    """Each correction is chosen as if it were the only one."""
    more, _ = _weighings(config)
    ratio = config.batch.positive_ratio
    sampled = [] if ratio is None else [f"batch.positive_ratio = {ratio:g}"]
    if len(more) > 1 or (more and sampled):
        yield (
            f"{', '.join([*more, *sampled])}: each makes foreground count more, and together they multiply. Keep "
            "one of them"
        )


def costs_oppose(config: Config) -> Iterator[str]:
    """One setting asks for more foreground, another for less."""
    more, less = _weighings(config)
    if more and less:
        yield (
            f"for more foreground: {', '.join(more)}; for less: {', '.join(less)}. They work against each other: keep "
            "what is meant"
        )
