"""Oracles: closed forms of a linear model, torch's exact mixed derivatives, a jackknife by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probe_cases import (
    CHANNELS,
    find,
    half_labeled,
    make_batches,
    make_linear,
    make_net,
    make_probe,
    scaled,
)
from torch import Tensor, nn
from torch.nn import functional

from ssl_seg.config import LossConfig
from ssl_seg.diagnose.loss_probe.knobs import Knob, find_costs, measure_knobs
from ssl_seg.diagnose.loss_probe.measures import (
    compute_cosines,
    compute_gradient,
    compute_shares,
    measure_errors,
    measure_gradients,
)
from ssl_seg.errors import DataError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LossFn, get_loss, make_supervised_loss
from ssl_seg.losses.overlap import dice, tversky
from ssl_seg.losses.trivial import (
    Labeled,
    compute_constants,
    compute_frequencies,
    find_positive_class,
    make_predictions,
)
from ssl_seg.losses.voxelwise import cross_entropy, focal, variance


def test_gradients_of_a_linear_model_are_those_of_the_closed_form() -> None:
    net, batches = make_linear(), make_batches()
    measured = measure_gradients(net, {"cross_entropy": cross_entropy, "double": scaled(2.0)}, batches, [0, 1])
    weight, bias = net.weight[:, :, 0, 0].detach(), net.bias.detach()
    expected, share, values = torch.zeros(2 * CHANNELS + 2), torch.zeros(2 * CHANNELS + 2), []
    for image, target in batches:
        pixels, labels = image.movedim(1, -1)[target != IGNORE_INDEX], target[target != IGNORE_INDEX]
        probs = torch.softmax(pixels @ weight.T + bias, dim=1)
        slope = (probs - functional.one_hot(labels, 2)) / len(labels)
        expected += torch.cat([(slope.T @ pixels).flatten(), slope.sum(0)]) / 2
        rise = (probs[:, 0] * probs[:, 1] / len(labels))[:, None] * torch.tensor([-1.0, 1.0])
        share += torch.cat([(rise.T @ pixels).flatten(), rise.sum(0)]) / 2
        values.append(-probs[torch.arange(len(labels)), labels].log().mean())
    torch.testing.assert_close(measured.components[0], expected)
    torch.testing.assert_close(measured.components[1], 2 * expected)
    torch.testing.assert_close(measured.foreground, share)
    torch.testing.assert_close(measured.values[0], torch.stack(values).mean())
    torch.testing.assert_close(measured.single, torch.ones(2, 2, 2))


def test_shares_are_those_of_the_weighted_norms() -> None:
    components = {"one": cross_entropy, "three": scaled(3.0), "watched": dice}
    state = make_probe(components, {"one": 0.6, "three": 0.2, "watched": 0.0}).states[0]
    assert state.shares[0] == pytest.approx({"one": 0.5, "three": 0.5})
    assert state.norms["three"] == pytest.approx(3 * state.norms["one"])


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 100)), min_size=1, max_size=5))
def test_shares_sum_to_1_unless_there_is_no_gradient(drawn: list[tuple[float, float]]) -> None:
    weights = {str(i): weight for i, (weight, _) in enumerate(drawn)}
    shares = compute_shares({str(i): norm for i, (_, norm) in enumerate(drawn)}, weights)
    assert set(shares) == {name for name, weight in weights.items() if weight > 0}
    total = sum(weight * norm for weight, norm in drawn)
    assert sum(shares.values()) == pytest.approx(1.0 if total else 0.0)


def test_cosines_are_those_of_autograd() -> None:
    net, batches = make_linear(), make_batches()
    pair = make_probe({"dice": dice, "focal": focal}, net=net, batches=batches).states[0].cosines[0]
    by_batch = []
    for loss in (dice, focal):
        rows = []
        for image, target in batches:
            grads = torch.autograd.grad(loss(net(image), target), list(net.parameters()))
            rows.append(torch.cat([g.flatten() for g in grads]))
        by_batch.append(torch.stack(rows))
    cosine = partial(functional.cosine_similarity, dim=-1)
    single = cosine(by_batch[0], by_batch[1])
    assert (pair.first, pair.second) == ("dice", "focal")
    assert pair.mean == pytest.approx(float(cosine(by_batch[0].mean(0), by_batch[1].mean(0))), abs=1e-5)
    assert (pair.low, pair.high) == pytest.approx((float(single.min()), float(single.max())), abs=1e-5)


def test_a_zero_gradient_has_no_direction() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.0, 0.0], [-3.0, -4.0]])
    cosines = compute_cosines(gradients)
    assert cosines[0, 2] == -1.0
    assert torch.isnan(cosines[1]).all()


def test_rounding_takes_no_cosine_beyond_1() -> None:
    gradients = torch.randn(200, 1000, generator=torch.Generator().manual_seed(0))
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    assert (unit @ unit.T).max() > 1
    assert compute_cosines(gradients).max() == 1


def test_parameters_without_gradient_count_as_0() -> None:
    net = nn.ModuleDict({"used": make_linear(), "unused": make_linear(), "frozen": make_linear()})
    net["frozen"].requires_grad_(False)
    gradient = compute_gradient(net["used"](make_batches()[0][0]).square().sum(), net)
    size = 2 * CHANNELS + 2
    assert gradient.shape == (2 * size,)
    assert (gradient[size:] == 0).all()
    assert (gradient[:size] != 0).all()


def test_errors_of_cosines_are_those_of_the_jackknife() -> None:
    net, batches = make_linear(), make_batches(count=4)
    components = {"dice": dice, "focal": focal}
    mean = measure_gradients(net, components, batches, range(4)).components
    rows = []
    for left_out in range(4):
        kept = [batch for index, batch in enumerate(batches) if index != left_out]
        first, second = measure_gradients(net, components, kept, range(3)).components
        rows.append(first @ second)
    dots = torch.stack(rows)
    expected = (3 / 4 * ((dots - dots.mean()) ** 2).sum()).sqrt() / (mean[0].norm() * mean[1].norm())
    assert expected > 1e-3
    errors = measure_errors(net, components, batches, range(4), mean)
    torch.testing.assert_close(errors[0, 1], expected, atol=1e-4, rtol=1e-2)
    alone = measure_errors(net, components, batches[:1], [0], mean)
    assert torch.isnan(alone).all()


def test_noise_in_one_direction_is_no_conflict() -> None:
    """Two components whose gradients are noise along one line: the cosine of the means is 1 or -1 whatever is true."""
    components = {"first": lambda logits, _: logits[:, 0].mean(), "second": lambda logits, _: logits[:, 1].mean()}

    class TwoOutputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, image: Tensor) -> Tensor:
            return image * self.weight

    named, generator = 0, torch.Generator().manual_seed(0)
    for _ in range(40):
        noise = torch.randn(16, 1, 2, 1, 1, generator=generator)
        batches = [(row, torch.zeros(1, 1, 1, dtype=torch.int64)) for row in noise]
        measured = measure_gradients(TwoOutputs(), components, batches, range(16)).components
        error = measure_errors(TwoOutputs(), components, batches, range(16), measured)[0, 1]
        cosine = compute_cosines(measured)[0, 1]
        assert abs(cosine) > 0.99
        named += bool(cosine + 2 * error < 0)
    assert named <= 4  # with the errors of the cosines themselves it is about half of the 20 negative ones


def test_values_of_trivial_predictions_are_the_closed_forms() -> None:
    # The case of the source documents: 30 % foreground, Dice loss 0.54 for all positive and 1.00 for all negative.
    target, p = half_labeled(30_000, 100_000, ignored=5_000), 0.3
    batches = [(torch.zeros(1, 1, *target.shape[1:]), target)]
    frequencies = compute_frequencies(batches, 2)
    assert frequencies == pytest.approx((0.7, 0.3))
    components = {"dice": dice, "cross_entropy": cross_entropy, "variance": variance}
    values = compute_constants(components, batches, frequencies)
    assert values["dice"]["all_positive"] == pytest.approx(1 - 2 * p / (1 + p), abs=1e-4)
    assert round(values["dice"]["all_positive"], 2) == 0.54
    assert round(values["dice"]["all_negative"], 2) == 1.00
    assert values["dice"]["base_rate"] == pytest.approx(1 - p, abs=1e-4)
    assert values["dice"]["perfect"] == pytest.approx(0, abs=1e-4)
    assert values["cross_entropy"]["all_negative"] == pytest.approx(12 * p, abs=1e-4)
    assert values["cross_entropy"]["all_positive"] == pytest.approx(12 * (1 - p), abs=1e-4)
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert values["cross_entropy"]["base_rate"] == pytest.approx(entropy, abs=1e-6)
    assert values["cross_entropy"]["perfect"] == pytest.approx(0, abs=1e-4)
    assert values["variance"] == pytest.approx(
        {"all_negative": 1, "all_positive": 1, "base_rate": 1, "perfect": 1 - 4 * p * (1 - p)}, abs=1e-3
    )


def test_values_are_means_over_batches() -> None:
    batches = [(torch.zeros(1, 1, 10, 1), half_labeled(positives, 10)) for positives in (2, 6)]
    values = compute_constants({"ce": cross_entropy}, batches, compute_frequencies(batches, 2))
    assert values["ce"]["all_negative"] == pytest.approx(12 * 0.4, abs=1e-4)


def test_with_more_classes_all_positive_is_the_most_frequent_one() -> None:
    target = torch.tensor([0] * 5 + [1] * 1 + [2] * 4 + [IGNORE_INDEX] * 3).view(1, 13, 1)
    frequencies = compute_frequencies([(torch.zeros(1, 1, 13, 1), target)], 4)
    assert frequencies == pytest.approx((0.5, 0.1, 0.4, 0.0))
    assert find_positive_class(frequencies) == 2
    predictions = make_predictions(target, frequencies)
    assert all(logits.shape == (1, 4, 13, 1) for logits in predictions.values())
    assert (predictions["all_negative"].argmax(1) == 0).all()
    assert (predictions["all_positive"].argmax(1) == 2).all()
    assert torch.isfinite(predictions["base_rate"]).all()  # although class 3 is missing
    probs = predictions["base_rate"].softmax(1)
    torch.testing.assert_close(probs[0, :, 0, 0], torch.tensor([0.5, 0.1, 0.4, 0.0]), atol=1e-5, rtol=0)
    valid = target != IGNORE_INDEX
    assert (predictions["perfect"].argmax(1)[valid] == target[valid]).all()


def test_batches_without_a_label_are_refused() -> None:
    with pytest.raises(DataError, match="no voxel of 1 batches is labeled"):
        compute_frequencies([(torch.zeros(1, 1, 4, 4), torch.full((1, 4, 4), IGNORE_INDEX))], 2)


def exact_effect(net: nn.Module, batches: list[Labeled], make: Callable[[Tensor], LossFn], value: float) -> float:
    """The effect of a knob by torch's exact mixed derivatives, instead of central differences."""
    parameters = list(net.parameters())

    def gradient(knob: Tensor, batch: Labeled) -> Tensor:
        loss = make(knob)(net(batch[0]), batch[1])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, create_graph=True)])

    shares = [torch.softmax(net(i).movedim(1, -1)[t != IGNORE_INDEX], -1)[:, 1:].sum(-1).mean() for i, t in batches]
    foreground = torch.cat([g.flatten() for g in torch.autograd.grad(sum(shares) / len(shares), parameters)])
    changes = [
        torch.autograd.functional.jacobian(lambda knob, b=batch: gradient(knob, b), torch.tensor(value))
        for batch in batches
    ]
    dots = torch.stack([-(foreground @ change) for change in changes])
    return float(dots.mean() / (foreground.norm() * torch.stack([c.norm() for c in changes]).mean()))


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("cross_entropy", "fp_cost", 1.0, -1),
        ("cross_entropy", "fn_cost", 2.0, +1),
        ("cross_entropy", "pos_weight", 3.0, +1),
        ("focal", "fp_cost", 1.0, -1),
        ("focal", "alpha", 0.7, +1),
        ("tversky", "alpha", 0.3, -1),
        ("tversky", "beta", 0.7, +1),
        ("dice", "fn_cost", 1.0, +1),
    ],
)
def test_effects_are_the_mixed_derivatives(name: str, option: str, value: float, expected: int) -> None:
    net, batches = make_linear(), make_batches()
    component = get_loss(name, **{option: value})
    foreground = measure_gradients(net, {name: component}, batches, [0, 1]).foreground
    knobs = {knob.name: knob for knob in measure_knobs(net, {name: component}, batches, [0, 1], foreground)}
    knob = knobs[option]
    exact = exact_effect(net, batches, lambda turned: partial(component, **{option: turned}), value)
    assert knob.effect == pytest.approx(exact, abs=2e-3)
    assert (knob.value, knob.expected) == (value, expected)
    assert (math.copysign(1, knob.effect), knob.agreeing, knob.batches) == (expected, 2, 2)


def test_costs_of_an_untrained_network_do_what_they_say() -> None:
    weights = {"cross_entropy": 1.0, "focal": 1.0, "dice": 1.0, "tversky": 1.0}
    components = make_supervised_loss(LossConfig(weights=weights)).components
    probe = make_probe(components, net=make_net().eval())
    assert {knob.name for knob in probe.states[0].knobs} >= {"fp_cost", "fn_cost", "pos_weight", "alpha", "beta"}
    assert find(probe, "knob_reversed") == []


def test_a_cost_that_does_the_opposite_is_named() -> None:
    def backwards(logits: Tensor, target: Tensor, fn_cost: float = 1.0) -> Tensor:
        return cross_entropy(logits, target, fp_cost=fn_cost)

    (finding,) = find(make_probe({"backwards": backwards}), "knob_reversed")
    assert finding.level == "warn"
    for part in ("at start more fn_cost of 'backwards' (now 1)", "less foreground instead of more", "2 of 2 batches"):
        assert part in finding.message
    sound = make_probe({"forwards": lambda logits, target, fn_cost=1.0: cross_entropy(logits, target, fn_cost=fn_cost)})
    assert find(sound, "knob_reversed") == []


def test_a_cost_without_effect_is_not_reversed() -> None:
    def deaf(logits: Tensor, target: Tensor, fp_cost: float = 1.0) -> Tensor:
        return cross_entropy(logits, target)

    (knob,) = make_probe({"deaf": deaf}).states[0].knobs
    assert knob.effect == 0.0
    assert not knob.is_reversed
    assert Knob("a", "b", 1.0, +1, -0.1, 1, 1).is_reversed
    assert Knob("a", "b", 1.0, -1, +0.1, 1, 1).is_reversed


def test_each_class_weight_is_a_cost() -> None:
    batches, net = make_batches(3), make_linear(3)
    component = get_loss("cross_entropy", class_weights=[1.0, 2.0, 3.0])
    foreground = measure_gradients(net, {"ce": component}, batches, [0, 1]).foreground
    knobs = {k.name: k for k in measure_knobs(net, {"ce": component}, batches, [0, 1], foreground)}
    found = [(k.value, k.expected, math.copysign(1, k.effect)) for n, k in knobs.items() if n.startswith("class")]
    assert found == [(1.0, -1, -1), (2.0, +1, +1), (3.0, +1, +1)]
    unset = {s.name: s.value for s in find_costs("cross_entropy", cross_entropy, 3)}
    assert unset == {"class_weights[0]": 1, "class_weights[1]": 1, "class_weights[2]": 1} | dict.fromkeys(
        ("pos_weight", "fp_cost", "fn_cost"), 1.0
    )


def test_options_that_are_no_costs_are_left_out() -> None:
    names = {s.name: s.value for s in find_costs("focal", get_loss("focal", gamma=3.0, fp_cost=4.0), 2)}
    assert names == {"alpha": 0.5, "fp_cost": 4.0, "fn_cost": 1.0}
    assert {s.name for s in find_costs("hausdorff_dt", get_loss("hausdorff_dt"), 2)} == {"fp_cost", "fn_cost"}


def test_a_cost_at_0_is_changed_to_one_side() -> None:
    values = []

    def record(logits: Tensor, target: Tensor, alpha: float = 0.0) -> Tensor:
        values.append(alpha)
        return tversky(logits, target, alpha=alpha)

    image, target = make_batches()[0]
    (cost,) = find_costs("tversky", record, 2)
    slope = cost.compute_slope(make_linear()(image), target)
    assert values == [0.0, 0.01]
    assert slope.item() > 0  # false foreground costs more
