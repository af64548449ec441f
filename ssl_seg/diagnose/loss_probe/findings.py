"""What the figures of a loss probe say."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ssl_seg.config.schedules import LossPhase
from ssl_seg.data.findings import Finding
from ssl_seg.diagnose.loss_probe.knobs import Knob
from ssl_seg.diagnose.loss_probe.probe import LossProbe, StateProbe
from ssl_seg.losses.trivial import PREDICTIONS

CONFLICT = -0.5
"""Two components whose cosine is below work against each other: the sum of equal gradients is shorter than either."""
ERRORS = 2.0
"""Standard errors by which the cosine of a conflict has to be below 0."""
NEGLIGIBLE, DOMINANT = 0.01, 0.90
"""A component with a smaller share of the gradient norm hardly counts; with a larger one, the others hardly do."""
NEARLY_PERFECT = 0.05
"""A prediction that needs no network is taken for a solution, if its loss exceeds that of the perfect one by less than
this share of what the base rate costs."""
TOLERANCE = 1e-3
"""Share of the range of a component's values within which two of them are equal."""


def check_probe(probe: LossProbe) -> list[Finding]:
    """Return what is wrong with a loss, as far as a probe shows it."""
    return [
        *_check_finite(probe),
        *_check_classes(probe),
        *_check_trivial(probe),
        *_check_perfect(probe),
        *(finding for state in probe.states for finding in _check_state(probe, state)),
    ]


def compute_total(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Return the weighted sum of the components' values."""
    return sum(weight * values[name] for name, weight in weights.items() if weight > 0)


def compute_weight_shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the share of each weight above 0 in their sum."""
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def describe_phase(phase: LossPhase) -> str:
    """Return when a phase holds."""
    return f"from epoch {phase.from_epoch:g}"


def _check_finite(probe: LossProbe) -> Iterable[Finding]:
    for name, values in probe.constants.items():
        bad = [prediction for prediction, value in values.items() if not math.isfinite(value)]
        bad += [s.name for s in probe.states if not math.isfinite(s.values[name]) or not math.isfinite(s.norms[name])]
        if bad:
            yield Finding("non_finite", "fault", f"'{name}' or its gradient is not finite at: {', '.join(bad)}")


def _check_classes(probe: LossProbe) -> Iterable[Finding]:
    if max(probe.frequencies) == 1.0:
        only = probe.frequencies.index(1.0)
        text = f"all valid voxels of {probe.batches} batches are class {only}: a constant is perfect there"
        yield Finding("one_class", "warn", f"{text}, and the figures say little; take more batches")


def _check_trivial(probe: LossProbe) -> Iterable[Finding]:
    if max(probe.frequencies) == 1.0:
        return
    for phase in probe.phases:
        totals = {
            prediction: compute_total({n: v[prediction] for n, v in probe.constants.items()}, phase.weights)
            for prediction in PREDICTIONS
        }
        excess = {prediction: total - totals["perfect"] for prediction, total in totals.items()}
        limit = max(NEARLY_PERFECT * excess["base_rate"], 0.0)
        for prediction in ("all_negative", "all_positive", "base_rate"):
            if excess[prediction] <= limit:
                text = f"{describe_phase(phase)} {prediction} costs {totals[prediction]:.3f} and the perfect prediction"
                yield Finding(
                    "trivial_solution", "warn", f"{text} {totals['perfect']:.3f}: nothing needs to be learned"
                )


def _check_perfect(probe: LossProbe) -> Iterable[Finding]:
    if max(probe.frequencies) == 1.0:
        return
    for name, constants in probe.constants.items():
        values = {**constants, **{f"the network's output ({s.name})": s.values[name] for s in probe.states}}
        lowest = min(values, key=lambda key: values[key])
        if values["perfect"] - values[lowest] > TOLERANCE * (max(values.values()) - values[lowest]):
            text = (
                f"'{name}' is {values['perfect']:.3f} at the perfect prediction, but {values[lowest]:.3f} at {lowest}"
            )
            yield Finding("perfect_not_minimal", "warn", f"{text}: by itself it does not ask for the target")


def _check_state(probe: LossProbe, state: StateProbe) -> Iterable[Finding]:
    weighted = {name for phase in probe.phases for name, weight in phase.weights.items() if weight > 0}
    for name in sorted(weighted):
        if state.norms[name] == 0.0:
            text = f"at {state.name} '{name}' has no gradient: it is flat there, or cannot be differentiated"
            yield Finding("zero_gradient", "warn", text)
    yield from _check_conflicts(probe, state)
    for phase, shares in zip(probe.phases, state.shares, strict=True):
        yield from _check_shares(state, phase, shares)
    for knob in state.knobs:
        if knob.is_reversed and max(probe.frequencies) < 1.0:  # else a weight of the only class does nothing
            yield _describe_reversed(state, knob)


def _describe_reversed(state: StateProbe, knob: Knob) -> Finding:
    found, wanted = ("less", "more") if knob.expected > 0 else ("more", "less")
    text = (
        f"at {state.name} more {knob.name} of '{knob.component}' (now {knob.value:g}) leads to {found} foreground "
        f"instead of {wanted}: effect {knob.effect:+.3f}, and so in {knob.agreeing} of {knob.batches} batches"
    )
    return Finding("knob_reversed", "warn", f"{text}. That is about the next step, not about where it ends")


def _check_conflicts(probe: LossProbe, state: StateProbe) -> Iterable[Finding]:
    for pair in state.cosines:
        if not pair.mean < CONFLICT:
            continue
        text = (
            f"at {state.name} the gradients of '{pair.first}' and '{pair.second}' have cosine {pair.mean:.2f} "
            f"+- {pair.error:.2f} ({pair.low:.2f} to {pair.high:.2f} within single batches)"
        )
        if not any(min(p.weights.get(pair.first, 0), p.weights.get(pair.second, 0)) > 0 for p in probe.phases):
            yield Finding("conflict", "info", f"{text}; no phase weighs both")
        elif not pair.mean + ERRORS * pair.error < 0:
            yield Finding("conflict", "info", f"{text}: that may be noise; take more batches")
        else:
            yield Finding("conflict", "warn", f"{text}: they work against each other")


def _check_shares(state: StateProbe, phase: LossPhase, shares: Mapping[str, float]) -> Iterable[Finding]:
    weights = compute_weight_shares(phase.weights)
    unexpected = [
        name
        for name, share in shares.items()
        if (state.norms[name] > 0 and share < NEGLIGIBLE <= weights[name]) or weights[name] <= DOMINANT < share
    ]
    if unexpected:
        listed = ", ".join(f"{name} {weights[name]:.1%} -> {share:.1%}" for name, share in shares.items())
        text = f"at {state.name} {describe_phase(phase)} the weights are not what counts; weight -> gradient share"
        yield Finding("dominated", "warn", f"{text}: {listed}")
