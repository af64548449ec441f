"""The loss of each method against its formula in numpy, and the draws that it is made of.

What a method draws is drawn again from the same seed; all that follows from the draws is computed anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.stats import beta, entropy, kstest
from test_methods import LOSS, call, make_batch, make_mixed_batch, make_nets, make_tested
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.methods import make_method
from ssl_seg.methods.base import StepProgress
from ssl_seg.methods.bcp import draw_boxes
from ssl_seg.methods.dtc import compute_signed_distances
from ssl_seg.methods.unimatch import draw_complements, drop_last

Array = NDArray[np.float64]
LATE = StepProgress(step=90, total_steps=100)


def to_array(tensor: Tensor) -> Array:
    return tensor.detach().numpy().astype(float)


def softmax(logits: Array, axis: int = 1) -> Array:
    exponentials: Array = np.exp(logits)
    return exponentials / exponentials.sum(axis, keepdims=True)


def cross_entropy(logits: Array, labels: NDArray[np.int64]) -> Array:
    """Return the loss of each voxel (N,*S)."""
    probs = softmax(logits)
    return -np.log(np.take_along_axis(probs, labels[:, None], axis=1)[:, 0])


def mix(array: Array) -> Array:
    """Return what ``make_mixed_batch`` does to images."""
    mixed = array.copy()
    for n, source in enumerate((1, 2)):
        mixed[n, ..., 3:9, 2:8] = array[source, ..., 3:9, 2:8]
    return mixed


@pytest.mark.parametrize("labeler", ["student", "teacher"])
def test_cps(labeler: str) -> None:
    method = make_method("cps", {"labeler": labeler, "rampup_ratio": 0.0, "consistency_weight": 0.7}, LOSS, 2)
    nets, batch = make_nets(method=method), make_mixed_batch()
    labels = [mix(to_array(logits)).argmax(1) for logits in getattr(nets, labeler)(batch.weak)]
    outputs = [to_array(logits) for logits in nets.student(batch.strong[0])]
    assert not np.array_equal(*labels)
    crossed = cross_entropy(outputs[0], labels[1]).mean() + cross_entropy(outputs[1], labels[0]).mean()
    supervised = sum(LOSS(logits, batch.target)[0].item() for logits in nets.student(batch.image))
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + 0.7 * crossed, rel=1e-5)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_entropy_minimization(num_classes: int) -> None:
    method = make_method("entropy_minimization", {}, LOSS, num_classes)
    nets, batch = make_nets(num_classes), make_batch(num_classes=num_classes)
    mean = entropy(softmax(to_array(nets.student(batch.strong[0]))), base=num_classes, axis=1).mean()
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + 0.1 * mean, rel=1e-5)


def perturb(network: Any, images: Tensor, factors: Array) -> Array:
    """Return the logits of features that are multiplied by factors (N,C)."""
    (features,) = network.encode(images)
    weight, bias = to_array(network[3].weight)[:, :, 0, 0], to_array(network[3].bias)
    return np.einsum("kc,nc,ncyx->nkyx", weight, factors, to_array(features)) + bias[:, None, None]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_unimatch(version: str) -> None:
    method = make_method("unimatch", {"version": version, "confidence": 0.55}, LOSS, 2)
    nets, batch = make_nets(method=method), make_mixed_batch(strong_views=2)
    network, count = nets.student.get_submodule("network"), len(batch.weak)
    probs = softmax(to_array(nets.teacher(batch.weak)))
    level = network.encode(torch.cat([batch.image, *batch.strong, *([batch.weak] if version == "v1" else [])]))[0]
    torch.manual_seed(7)
    factors = to_array((drop_last if version == "v1" else draw_complements)(count)(level))
    streams = dict(
        zip(("first", "second", "weak"), np.split(factors[len(batch.image) :], level.shape[0] // count), strict=False)
    )
    views = {"first": batch.strong[0], "second": batch.strong[1], "weak": batch.weak}

    def learn(stream: str) -> float:
        own = probs if stream == "weak" else mix(probs)
        losses = cross_entropy(perturb(network, views[stream], streams[stream]), own.argmax(1))
        return float((losses * (own.max(1) >= 0.55)).mean())

    expected = (learn("first") + learn("second")) / 2
    if version == "v1":
        expected = (expected + learn("weak")) / 2
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + expected, rel=1e-5)


class TestDrawsOfUniMatch:
    LEVELS = (torch.zeros(2 + 2 * 400, 6, 4, 4), torch.zeros(2 + 2 * 400, 10, 2, 2))

    def test_complements(self) -> None:
        draw = draw_complements(400)
        kept = []
        for level in self.LEVELS:
            labeled, first, second = draw(level).split([2, 400, 400])
            assert (labeled == 1).all()
            assert (first + second == 2).all()
            whole = (first == 1).all(dim=1)
            assert ((first == 0) | (first == 2))[~whole].all()
            assert 0.4 < whole.float().mean() < 0.6
            assert 0.4 < (first[~whole] == 0).float().mean() < 0.6
            kept.append(whole)
        assert torch.equal(*kept)  # a pair is whole at all levels or at none

    def test_dropout(self) -> None:
        for level in self.LEVELS:
            others, dropped = drop_last(400)(level).split([402, 400])
            assert (others == 1).all()
            assert ((dropped == 0) | (dropped == 2)).all()
            assert 0.9 < dropped.mean() < 1.1


@pytest.mark.parametrize("num_classes", [2, 3])
def test_uamt(num_classes: int) -> None:
    method = make_method("uamt", {"passes": 3, "rampup": "linear"}, LOSS, num_classes)
    nets, batch = make_nets(num_classes), make_mixed_batch(num_classes)
    for step in (4, 90):
        torch.manual_seed(7)
        passes = [
            softmax(to_array(nets.teacher(batch.weak + (0.1 * torch.randn(batch.weak.shape)).clip(-0.2, 0.2))))
            for _ in range(3)
        ]
        rise = min(step / 40, 1)
        counts = mix(entropy(np.mean(passes, axis=0), axis=1)) < (0.75 + 0.25 * rise) * np.log(num_classes)
        assert (step > 4) == counts.all()
        squared = (
            softmax(to_array(nets.student(batch.strong[0]))) - mix(softmax(to_array(nets.teacher(batch.weak))))
        ) ** 2
        consistency = (squared.sum(1) * counts).sum() / (num_classes * counts.sum())
        supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
        loss = call(method, nets, batch, StepProgress(step, 100)).loss.item()
        assert loss == pytest.approx(supervised + rise * consistency, rel=1e-5)


def test_ict() -> None:
    method, nets, batch = make_tested("ict"), make_nets(), make_mixed_batch()
    torch.manual_seed(7)
    shares = torch.distributions.Beta(0.2, 0.2).sample((3,)).reshape(3, 1, 1, 1)
    images = torch.stack(
        [shares[n] * batch.strong[0][n] + (1 - shares[n]) * batch.strong[0][(n + 1) % 3] for n in range(3)]
    )
    probs, share = mix(softmax(to_array(nets.teacher(batch.weak)))), to_array(shares)
    target = np.stack([share[n] * probs[n] + (1 - share[n]) * probs[(n + 1) % 3] for n in range(3)])
    consistency = ((softmax(to_array(nets.student(images))) - target) ** 2).mean()
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + consistency, rel=1e-5)
    assert kstest(torch.distributions.Beta(0.2, 0.2).sample((500,)).numpy(), beta(0.2, 0.2).cdf).pvalue > 1e-3


def test_urpc() -> None:
    method = make_tested("urpc")
    nets, batch = make_nets(method=method), make_batch()
    probs = softmax(to_array(nets.student(batch.strong[0])), axis=2)
    mean, terms = probs.mean(1), []
    for head in probs.swapaxes(0, 1):
        divergence = entropy(mean, head, axis=1)
        trust = np.exp(-divergence)
        terms.append((((head - mean) ** 2).sum(1) * trust).sum() / (2 * trust.sum()) + divergence.mean())
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + np.mean(terms), rel=1e-5)


@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 3), (3, 2), (1, 1)])
def test_bcp(labeled: int, unlabeled: int) -> None:
    method, nets, batch = make_tested("bcp"), make_nets(), make_batch(labeled, unlabeled)
    pairs = max(labeled, unlabeled)
    torch.manual_seed(7)
    inside = draw_boxes(pairs, (12, 12), batch.image.device).numpy()
    pseudo = to_array(nets.teacher(batch.weak)).argmax(1)
    image, known, guessed = [], [], []
    for way in (inside, ~inside):  # the box from the unlabeled patch, then the other way round
        for n in range(pairs):
            x, y, u, q = (part[n % len(part)] for part in (batch.image, batch.target, batch.strong[0], pseudo))
            image.append(np.where(way[n], u, x))
            known.append(np.where(way[n], IGNORE_INDEX, y))
            guessed.append(np.where(way[n], q, IGNORE_INDEX))
    logits = nets.student(torch.tensor(np.stack(image)))
    losses = [LOSS(logits, torch.tensor(np.stack(target)))[0].item() for target in (known, guessed)]
    assert call(method, nets, batch).loss.item() == pytest.approx(losses[0] + 0.5 * losses[1], rel=1e-5)


def test_bcp_begins_with_labeled_patches_alone() -> None:
    method, nets, batch = make_tested("bcp"), make_nets(), make_batch()
    torch.manual_seed(7)
    inside = draw_boxes(2, (12, 12), batch.image.device)
    image, target = (
        torch.cat(
            [torch.where(way if part.ndim == 3 else way[:, None], part[[1, 0]], part) for way in (inside, ~inside)]
        )
        for part in (batch.image, batch.target)
    )
    expected = LOSS(nets.student(image), target)[0]
    for step in (0, 19):
        output = call(method, nets, batch, StepProgress(step, 100))
        torch.testing.assert_close(output.loss, expected)
    assert "consistency" not in output.terms
    assert "consistency" in call(method, nets, batch, StepProgress(20, 100)).terms
    fixed = call(method, nets, batch, replace(StepProgress(0, 100), teacher_is_fixed=True))
    assert "consistency" in fixed.terms  # the teacher has learned already


@pytest.mark.parametrize("size", [(12, 12), (1, 9, 30)])
def test_boxes_of_bcp(size: tuple[int, ...]) -> None:
    inside = draw_boxes(200, size, torch.device("cpu")).numpy()
    for axis, length in enumerate(size, start=1):
        others = tuple(a for a in range(1, len(size) + 1) if a != axis)
        along = inside.any(axis=others)
        assert (along.sum(axis=1) == max(1, round(2 / 3 * length))).all()
        assert (np.abs(np.diff(along.astype(int), axis=1)).sum(axis=1) <= 2).all()  # in one piece
        assert along.any(axis=0).all()  # it may lie anywhere
    assert (inside.reshape(200, -1).sum(1) == np.prod([max(1, round(2 / 3 * n)) for n in size])).all()


@pytest.mark.parametrize("num_classes", [2, 3])
def test_cct(num_classes: int) -> None:
    method = make_method("cct", {"consistency_weight": 0.7}, LOSS, num_classes)
    nets, batch = make_nets(num_classes, method), make_batch(num_classes=num_classes)
    network, decoders = nets.student.get_submodule("network"), nets.student.get_submodule("decoders")
    (level,) = network.encode(batch.strong[0])  # type: ignore[operator]
    features, target = to_array(level), softmax(to_array(nets.student(batch.strong[0], 3)[0]))
    torch.manual_seed(7)
    noise = 0.6 * torch.rand(level.shape) - 0.3
    shares = 0.7 + 0.2 * torch.rand(3)
    dropped = torch.rand(*level.shape[:2], 1, 1) < 0.5
    activity = features.mean(1, keepdims=True)
    perturbed = [
        features + to_array(noise) * features,
        np.where(
            activity >= to_array(shares).reshape(3, 1, 1, 1) * activity.max((1, 2, 3), keepdims=True), 0, features
        ),
        np.where(dropped, 0, 2 * features),
    ]
    assert all(0 < (own == 0).mean() < 1 for own in perturbed)
    found = []
    for decoder, own in zip(decoders.children(), perturbed, strict=True):
        last = decoder[3]  # type: ignore[index]
        logits = np.einsum("kc,ncyx->nkyx", to_array(last.weight)[:, :, 0, 0], own)
        found.append(softmax(logits + to_array(last.bias)[:, None, None]))
    consistency = np.mean([((own - target) ** 2).mean() for own in found])
    supervised = LOSS(nets.student(batch.image, 2)[0], batch.target)[0].item()
    assert call(method, nets, batch).loss.item() == pytest.approx(supervised + 0.7 * consistency, rel=1e-5)


def signed_distances(target: NDArray[np.int64], num_classes: int) -> Array:
    """Return those of one sample by scipy's distance transform."""
    maps = []
    for label in range(num_classes):
        inside, outside = target == label, (target != label) & (target != IGNORE_INDEX)
        far = np.full(target.shape, np.inf)
        to_inside = distance_transform_edt(~inside) if inside.any() else far
        to_outside = distance_transform_edt(~outside) if outside.any() else far
        maps.append(np.where(inside, -np.minimum(to_outside, 8), np.minimum(to_inside, 8)) / 8)
    return np.stack(maps)


@pytest.mark.parametrize("shape", [(1, 9), (7, 30), (8, 8), (40, 9), (5, 7, 20)])
def test_signed_distances(shape: tuple[int, ...]) -> None:
    """Sides below, at and above the reach; small objects, whole patches, and classes that are not there."""
    draw = np.random.default_rng(3)
    targets = [np.zeros(shape, np.int64), np.ones(shape, np.int64), *draw.choice([0, 1], (2, *shape), p=[0.97, 0.03])]
    targets.append(draw.choice([0, 1, 2, IGNORE_INDEX], shape))
    targets[2].flat[0] = 1  # alone in its corner, most of it is farther away than distances reach
    found = compute_signed_distances(torch.from_numpy(np.stack(targets)), 3)
    for own, target in zip(found, targets, strict=True):
        assert np.allclose(own, signed_distances(target, 3), atol=1e-6)


def test_dtc() -> None:
    method = make_method("dtc", {"consistency_weight": 0.7, "steepness": 30.0}, LOSS, 2)
    nets, batch = make_nets(method=method), make_batch()
    batch = replace(batch, target=batch.target.clone())
    batch.target[0, :3] = IGNORE_INDEX
    outputs = [to_array(x) for x in nets.student(torch.cat([batch.image, *batch.strong]))]
    truth = np.stack([signed_distances(own, 2) for own in batch.target.numpy()])
    known = np.broadcast_to((batch.target != IGNORE_INDEX).numpy()[:, None], truth.shape)
    error = ((outputs[1][:2] - truth) ** 2)[known].mean()
    agreement = ((1 / (1 + np.exp(30 * outputs[1])) - softmax(outputs[0])) ** 2).mean()
    supervised = LOSS(nets.student(batch.image)[0], batch.target)[0].item()
    output = call(method, nets, batch)
    assert output.loss.item() == pytest.approx(supervised + 0.3 * error + 0.7 * agreement, rel=1e-5)
    assert output.terms["distance_error"].item() == pytest.approx(error, rel=1e-5)
    assert np.abs(outputs[1]).max() <= 1


def test_ad_mt() -> None:
    """Seven steps in periods of two, with a student that moves; the pseudo-labels are those of both teachers."""
    options = {"period": 2, "teacher_decay": 0.6, "confidence": 0.55, "rampup_steps": 0, "consistency_weight": 0.7}
    method = make_method("ad_mt", options, LOSS, 2)
    nets, batch = make_nets(method=method), make_mixed_batch()
    parameters = [to_array(p) for p in nets.student.parameters()]
    teachers: list[list[Array]] = [[], []]
    for step in range(7):
        with torch.no_grad():
            for parameter in nets.student.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape))
        parameters = [to_array(p) for p in nets.student.parameters()]
        decay = min(0.6, 1 - 1 / (step + 1))
        for index in (0, 1) if step == 0 else (step // 2 % 2,):
            old = teachers[index] or parameters
            teachers[index] = [decay * a + (1 - decay) * b for a, b in zip(old, parameters, strict=True)]
        output = call(method, nets, batch, StepProgress(step, 100))
    nets_of_method = method.get_submodule("teachers.nets")  # type: ignore[attr-defined]
    for net, own in zip(nets_of_method.children(), teachers, strict=True):
        for parameter, expected in zip(net.parameters(), own, strict=True):
            assert np.allclose(to_array(parameter), expected, rtol=1e-5)
            assert not parameter.requires_grad
    probs = np.stack([softmax(to_array(net(batch.weak))) for net in nets_of_method.children()])
    assert (probs[0].argmax(1) != probs[1].argmax(1)).any()
    weights = np.exp(-entropy(probs, axis=2))[:, :, None]
    together = mix((weights * probs).sum(0) / weights.sum(0))
    losses = cross_entropy(to_array(nets.student(batch.strong[0])), together.argmax(1))
    consistency = (losses * (together.max(1) >= 0.55)).mean()
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    assert output.loss.item() == pytest.approx(supervised + 0.7 * consistency, rel=1e-5)
