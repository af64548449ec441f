"""The contract of every learning method, and a method that breaks it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_seg.config import LossConfig
from ssl_seg.config.schedules import compute_rampup
from ssl_seg.data.loader import Batch
from ssl_seg.data.views.mixing import Mix
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.errors import ConfigError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import CONSISTENCY, make_supervised_loss
from ssl_seg.losses.consistency import consistency_mse
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import Method, Nets, StepOutput, StepProgress, Traits, build
from ssl_seg.methods.bcp import BidirectionalCopyPaste
from ssl_seg.methods.unlabeled import PseudoLabelConfig, Threshold, predict
from ssl_seg.methods.urpc import PyramidConsistency

WEIGHTS = {"cross_entropy": 0.5, "dice": 0.5}
LOSS = make_supervised_loss(LossConfig(weights=WEIGHTS))
PROGRESS = StepProgress(step=90, total_steps=100)
LEARNING_ON_ALL_SCALES = (PyramidConsistency, BidirectionalCopyPaste)
"""Methods whose unlabeled part looks at all outputs of deep supervision."""


class TinyNet(nn.Sequential):
    """Three layers are its encoder, the last one its head."""

    @property
    def head(self) -> nn.Module:
        return self[3]

    def encode(self, images: Tensor) -> list[Tensor]:
        return [self[:3](images)]

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.classify(self.decode_features(features))

    def decode_features(self, features: list[Tensor]) -> list[Tensor]:
        return features

    def classify(self, levels: list[Tensor]) -> Tensor:
        logits: Tensor = self[3](levels[0])
        return logits

    def reduce_to_decoder(self) -> None:
        for layer in range(3):
            self[layer] = nn.Identity()


def make_net(num_classes: int = 2, seed: int = 0) -> TinyNet:
    torch.manual_seed(seed)
    return TinyNet(nn.Conv2d(1, 8, 3, padding=1), nn.InstanceNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 1))


class TwoHeads(nn.Module):
    """A network with deep supervision, as MONAI's DynUNet: stacked outputs in train mode, one in eval mode."""

    def __init__(self, num_classes: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.fine, self.coarse = make_net(num_classes, seed), nn.Conv2d(8, num_classes, 5, padding=2)
        self.stacks = True

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        return self.fine.encode(images)

    def decode(self, features: list[Tensor]) -> Tensor:
        return self.classify(self.decode_features(features))

    def decode_features(self, features: list[Tensor]) -> list[Tensor]:
        return features

    def classify(self, levels: list[Tensor]) -> Tensor:
        logits = self.fine.classify(levels)
        return torch.stack([logits, self.coarse(levels[0])], dim=1) if self.training and self.stacks else logits

    @property
    def head(self) -> nn.Module:
        return self.fine.head

    def reduce_to_decoder(self) -> None:
        self.fine.reduce_to_decoder()
        self.coarse, self.stacks = nn.Identity(), False  # type: ignore[assignment]


def make_batch(
    labeled: int = 2, unlabeled: int = 3, num_classes: int = 2, seed: int = 1, strong_views: int = 1
) -> Batch:
    draw = torch.Generator().manual_seed(seed)

    def images(n: int) -> Tensor:
        return torch.randn(n, 1, 12, 12, generator=draw)

    target = torch.randint(num_classes, (labeled, 12, 12), generator=draw)
    weak, image = images(unlabeled), images(labeled)
    strong = tuple(weak + 0.1 * images(unlabeled) for _ in range(strong_views))
    return Batch(image, target, weak, strong, tuple(map(str, range(labeled + unlabeled))), (None,) * strong_views)


def make_batch_for(method: Method, **options: int) -> Batch:
    return make_batch(strong_views=method.traits.strong_views, **options)


def make_nets(num_classes: int = 2, method: Method | None = None, network: Any = None) -> Nets:
    """Return what a method builds out of small networks, and a teacher that has moved away from it."""
    if network is None:
        network = TwoHeads if method is not None and method.traits.needs_heads else make_net
    seeds = count()
    student = network(num_classes)
    if method is not None:
        student = build(method, lambda: network(num_classes, next(seeds)), num_classes).module
    teacher = EMATeacher(student, lambda _: 0.99).net
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05)
    return Nets(student, teacher)


def call(method: Method, nets: Nets, batch: Batch, progress: StepProgress = PROGRESS) -> StepOutput:
    """Make a step with the random numbers of that step, as the engine does."""
    torch.manual_seed(7)
    return method(nets, batch, progress)


def contract_breaches(method: Method) -> list[str]:
    """Return what a method does wrong with respect to gradients: the seam where published code has broken."""
    nets, batch = make_nets(method=method), make_batch_for(method)
    for name in ("image", "weak"):
        batch = replace(batch, **{name: getattr(batch, name).clone().requires_grad_()})
    batch = replace(batch, strong=tuple(view.clone().requires_grad_() for view in batch.strong))
    for parameter in nets.teacher.parameters():
        parameter.requires_grad_(True)  # so that a graph through the teacher would show
    call(method, nets, batch).loss.backward()
    breaches = []
    if batch.image.grad is None or not batch.image.grad.abs().sum() > 0:
        breaches.append("the labeled image does not reach the student")
    views = batch.strong if method.traits.uses_unlabeled else ()
    if any(view.grad is None or not view.grad.abs().sum() > 0 for view in views):
        breaches.append("the strong view does not reach the student")
    if batch.weak.grad is not None and batch.weak.grad.abs().sum() > 0:
        breaches.append("a gradient flows through the weak view")
    if any(p.grad is not None and p.grad.abs().sum() > 0 for p in nets.teacher.parameters()):
        breaches.append("a gradient reaches the teacher")
    if not all(p.grad is not None for p in nets.student.parameters()):
        breaches.append("a student parameter has no gradient")
    return breaches


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return make_tested(request.param)


def make_tested(name: str) -> Method:
    """Return a method that accepts the pseudo-labels of an untrained network."""
    options = {"confidence": 0.5} if "confidence" in METHODS[name].config_type.model_fields else {}
    return make_method(name, options, LOSS, 2)


def test_gradients_go_where_they_should(method: Method) -> None:
    assert contract_breaches(method) == []


class TeacherAsStudent:
    """The consistency of the teacher with itself: always 0, no gradient. A published toolkit shipped this twice."""

    traits = Traits(uses_teacher=True, uses_unlabeled=True)

    def __call__(self, nets: Nets, batch: Batch, progress: StepProgress) -> StepOutput:
        loss, terms = LOSS(nets.student(batch.image), batch.target)
        logits = nets.teacher(batch.strong[0])
        return StepOutput(loss + consistency_mse(logits, nets.teacher(batch.weak).softmax(1)), terms)


def test_a_broken_method_fails_the_contract() -> None:
    breaches = contract_breaches(TeacherAsStudent())  # type: ignore[arg-type]
    assert "a gradient reaches the teacher" in breaches


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("unlabeled", [0, 3])
@pytest.mark.parametrize("target", ["mixed", "background", "ignored"])
def test_loss_is_finite_on_every_normal_input(method: Method, num_classes: int, unlabeled: int, target: str) -> None:
    batch = make_batch_for(method, unlabeled=unlabeled, num_classes=num_classes)
    if target != "mixed":
        value = 0 if target == "background" else IGNORE_INDEX
        batch = replace(batch, target=torch.full_like(batch.target, value))
    output = call(method, make_nets(num_classes, method), batch)
    assert torch.isfinite(output.loss)
    output.loss.backward()
    assert output.terms
    for term in output.terms.values():
        assert torch.isfinite(term)
        assert not term.requires_grad


# The others draw something for each patch.
@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"unimatch", "ict", "bcp", "cct"}))
def test_order_of_unlabeled_patches_does_not_matter(name: str) -> None:
    method, batch = make_tested(name), make_batch()
    order = torch.tensor([2, 0, 1])
    shuffled = replace(batch, weak=batch.weak[order], strong=(batch.strong[0][order],))
    losses = [method(make_nets(method=method), b, PROGRESS).loss for b in (batch, shuffled)]
    torch.testing.assert_close(losses[0], losses[1])


def test_same_input_same_loss_and_bf16_runs(method: Method) -> None:
    nets, batch = make_nets(method=method), make_batch_for(method)
    first, second = (call(method, nets, batch).loss for _ in range(2))
    assert torch.equal(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        low = call(method, nets, batch).loss
    assert low.isfinite()
    assert abs(low.item() - first.item()) < 0.05


def test_a_step_leaves_the_teacher_alone(method: Method) -> None:
    nets = make_nets(method=method)
    before = copy.deepcopy(nets.teacher.state_dict())
    call(method, nets, make_batch_for(method)).loss.backward()
    for name, value in nets.teacher.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", CONSISTENCY)
def test_mean_teacher_is_its_formula(name: str) -> None:
    options = {"consistency": name, "consistency_weight": 2.0, "rampup_ratio": 0.5}
    method = make_method("mean_teacher", options, LOSS, 2)
    nets, batch = make_nets(), make_batch()
    supervised, _ = LOSS(nets.student(batch.image), batch.target)
    consistency = CONSISTENCY[name](nets.student(batch.strong[0]), nets.teacher(batch.weak).softmax(1))
    for step in (0, 10, 99):
        expected = supervised + 2.0 * compute_rampup(step, 50, "sigmoid") * consistency
        torch.testing.assert_close(method(nets, batch, StepProgress(step, 100)).loss, expected)


@pytest.mark.parametrize("name", CONSISTENCY)
def test_only_confident_voxels_count(name: str) -> None:
    nets, batch = make_nets(), make_batch()
    probs = nets.teacher(batch.weak).softmax(1)
    confidence = probs.amax(1).median().item() + 1e-6  # between two voxels
    options = {"consistency": name, "rampup_ratio": 0.0, "confidence": confidence}
    output = make_method("mean_teacher", options, LOSS, 2)(nets, batch, PROGRESS)
    accepted = probs.amax(1) >= confidence
    assert output.terms["accepted_share"].item() == accepted.float().mean().item() == pytest.approx(0.5, abs=0.01)
    expected = CONSISTENCY[name](nets.student(batch.strong[0]), probs, accepted)
    torch.testing.assert_close(output.terms["consistency"], expected.detach())
    every = make_method("mean_teacher", {**options, "confidence": 0.0}, LOSS, 2)(nets, batch, PROGRESS)
    assert "accepted_share" not in every.terms
    torch.testing.assert_close(
        every.terms["consistency"], CONSISTENCY[name](nets.student(batch.strong[0]), probs).detach()
    )


def test_confidence_looks_at_mixed_pseudo_labels() -> None:
    nets, batch = make_nets(), make_mixed_batch()
    probs = batch.mixes[0].apply(nets.teacher(batch.weak).softmax(1))
    confidence = probs.amax(1).quantile(0.8).item()
    options = {"consistency": "cross_entropy", "rampup_ratio": 0.0, "confidence": confidence}
    output = make_method("mean_teacher", options, LOSS, 2)(nets, batch, PROGRESS)
    expected = CONSISTENCY["cross_entropy"](nets.student(batch.strong[0]), probs, probs.amax(1) >= confidence)
    torch.testing.assert_close(output.terms["consistency"], expected.detach())


@pytest.mark.parametrize(("rampup_steps", "expected"), [(None, 0.2), (20, 0.5), (0, 1.0), (1000, 0.01)])
def test_rampup_steps_take_the_place_of_the_ratio(rampup_steps: int | None, expected: float) -> None:
    options = {"rampup": "linear", "rampup_ratio": 0.5, "rampup_steps": rampup_steps}
    output = make_method("mean_teacher", options, LOSS, 2)(make_nets(), make_batch(), StepProgress(10, 100))
    assert output.terms["consistency_weight"].item() == pytest.approx(expected)


@pytest.mark.parametrize("threshold", [None, 0.3, 0.7])
def test_the_foreground_of_labeled_patches_is_counted_above_the_threshold(threshold: float | None) -> None:
    nets, batch = make_nets(), make_batch()
    counted = make_method("supervised", {}, LOSS, 2)(nets, batch, replace(PROGRESS, threshold=threshold)).terms
    pred = nets.student(batch.image).softmax(1)[:, 1] > (threshold or 0.5)
    assert counted["prevalence_pred"].item() == pytest.approx(pred.float().mean().item())
    assert counted["prevalence_both"].item() == pytest.approx((pred & (batch.target > 0)).float().mean().item())


def test_methods_take_stacked_outputs(method: Method) -> None:
    nets = make_nets(method=method, network=TwoHeads)
    batch = make_batch_for(method)
    output = call(method, nets, batch)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in nets.student.parameters())
    if not method.traits.uses_unlabeled or type(method) in LEARNING_ON_ALL_SCALES:
        return
    for network in (m for m in nets.student.modules() if isinstance(m, TwoHeads)):
        network.stacks = False
    finest = call(method, nets, batch)
    torch.testing.assert_close(output.terms["consistency"], finest.terms["consistency"])
    assert output.loss != finest.loss


def make_mixed_batch(num_classes: int = 2, strong_views: int = 1) -> Batch:
    batch = make_batch(num_classes=num_classes, strong_views=strong_views)
    mask = torch.zeros(3, 12, 12, dtype=torch.bool)
    mask[:2, 3:9, 2:8] = True
    mix = Mix(torch.tensor([1, 2, 0]), mask)
    return replace(batch, strong=tuple(map(mix.apply, batch.strong)), mixes=(mix,) * strong_views)


@pytest.mark.parametrize("name", CONSISTENCY)
def test_pseudo_labels_are_mixed_like_the_strong_views(name: str) -> None:
    """The teacher sees the whole weak views; its probabilities are then put together as the images were."""
    method = make_method("mean_teacher", {"consistency": name, "rampup_ratio": 0}, LOSS, 2)
    nets, batch = make_nets(), make_mixed_batch()
    probs = nets.teacher(batch.weak).softmax(1)
    expected = probs.clone()
    for n, source in enumerate((1, 2)):
        expected[n, :, 3:9, 2:8] = probs[source, :, 3:9, 2:8]
    supervised, _ = LOSS(nets.student(batch.image), batch.target)
    consistency = CONSISTENCY[name](nets.student(batch.strong[0]), expected)
    loss = method(nets, batch, PROGRESS).loss
    torch.testing.assert_close(loss, supervised + consistency)
    unmixed = method(nets, replace(batch, mixes=(None,)), PROGRESS).loss
    assert abs((loss - unmixed).item()) > 1e-5


@pytest.mark.parametrize("labeler", ["teacher", "student"])
@pytest.mark.parametrize("num_classes", [2, 3])
def test_fixmatch_is_its_formula(labeler: str, num_classes: int) -> None:
    """In numpy, voxel by voxel: the box of the other patch brings its pseudo-label and its confidence along."""
    nets, batch = make_nets(num_classes), make_mixed_batch(num_classes)
    logits = getattr(nets, labeler)(batch.weak).detach().numpy()
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence = float(np.median(probs.max(1))) + 1e-6
    mixed = probs.copy()
    for n, source in enumerate((1, 2)):
        mixed[n, :, 3:9, 2:8] = probs[source, :, 3:9, 2:8]
    student = nets.student(batch.strong[0]).detach().numpy()
    total = 0.0
    for n, y, x in np.ndindex(3, 12, 12):
        if mixed[n, :, y, x].max() >= confidence:
            voxel = student[n, :, y, x].astype(float)
            total += np.log(np.exp(voxel).sum()) - voxel[mixed[n, :, y, x].argmax()]
    options = {"confidence": confidence, "labeler": labeler, "consistency_weight": 0.5, "rampup": "linear"}
    method = make_method("fixmatch", options, LOSS, num_classes)
    supervised = LOSS(nets.student(batch.image), batch.target)[0].item()
    for step, weight in ((0, 0.0), (5, 0.125), (20, 0.5), (99, 0.5)):  # it rises over the first fifth of the run
        loss = method(nets, batch, StepProgress(step, 100)).loss.item()
        assert loss == pytest.approx(supervised + weight * total / (3 * 12 * 12), rel=1e-5)


def test_a_labeling_student_keeps_its_mode() -> None:
    student = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Conv2d(1, 2, 1))
    before = copy.deepcopy(student.state_dict())
    probs = [predict(student, make_batch().weak) for _ in range(2)]
    assert torch.equal(*probs)  # no dropout
    assert student.training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


class TestThreshold:
    @staticmethod
    def draw(count: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(3)
        bias = torch.tensor([2.0, 0.0, -1.0]).view(1, 3, 1, 1)
        return [(2 * torch.randn(2, 3, 6, 5, generator=draw) + bias).softmax(1) for _ in range(count)]

    @pytest.mark.parametrize("momentum", [0.0, 0.8])
    def test_freematch_is_its_formula(self, momentum: float) -> None:
        options = PseudoLabelConfig(threshold="freematch", threshold_momentum=momentum)
        threshold, value, shares = Threshold(options, 3), 1 / 3, np.full(3, 1 / 3)
        for probs in self.draw(4):
            labels, array = threshold(probs), probs.numpy().astype(float)
            value = momentum * value + (1 - momentum) * array.max(1).mean()
            shares = momentum * shares + (1 - momentum) * array.mean((0, 2, 3))
            least = value * shares / shares.max()
            assert np.array_equal(labels.accepted.numpy(), array.max(1) >= least[array.argmax(1)])
            assert 0 < labels.accepted.float().mean() < 1

    @pytest.mark.parametrize("momentum", [0.0, 0.8])
    def test_corrmatch_is_its_formula(self, momentum: float) -> None:
        options = PseudoLabelConfig(threshold="corrmatch", confidence=0.6, threshold_momentum=momentum)
        threshold, value = Threshold(options, 3), 0.6
        for probs in [*self.draw(3), self.draw(1)[0].index_fill(1, torch.tensor(2), 0.0)]:  # class 2 is never predicted
            labels, array = threshold(probs), probs.numpy().astype(float)
            confidence, label = array.max(1), array.argmax(1)
            highest = [confidence[label == k].max() for k in range(3) if (label == k).any()]
            value = momentum * value + (1 - momentum) * np.mean(highest)
            assert threshold.describe()["threshold"].item() == pytest.approx(value, rel=1e-6)
            assert np.array_equal(labels.accepted.numpy(), confidence >= np.float32(threshold.get_buffer("value")))

    def test_a_fixed_one_has_no_state(self) -> None:
        threshold = Threshold(PseudoLabelConfig(), 3)
        assert not threshold.state_dict()
        assert not threshold.describe()

    @pytest.mark.parametrize("name", [n for n, m in METHODS.items() if "threshold" in m.config_type.model_fields])
    @pytest.mark.parametrize("kind", ["freematch", "corrmatch"])
    def test_every_method_with_a_confidence_can_adapt_it(self, name: str, kind: str) -> None:
        options = {"threshold": kind, "confidence": 0.5, "threshold_momentum": 0.5}
        method = make_method(name, options, LOSS, 2)
        before = copy.deepcopy(method.state_dict())
        nets, batch = make_nets(method=method), make_batch_for(method)
        terms = call(method, nets, batch).terms
        assert 0 < terms["accepted_share"] < 1
        assert {"threshold", "labeled_accepted", "labeled_right"} <= terms.keys()
        assert any(not torch.equal(value, before[key]) for key, value in method.state_dict().items())
        other = make_method(name, options, LOSS, 2)
        make_nets(method=other)  # builds what it keeps
        other.load_state_dict(method.state_dict())
        assert torch.equal(*(call(m, nets, batch).loss for m in (method, other)))


def test_precision_of_pseudo_labels_is_measured_on_labeled_patches() -> None:
    nets, batch = make_nets(), make_batch()
    batch = replace(batch, target=batch.target.clone())
    batch.target[0, :3] = IGNORE_INDEX
    with torch.no_grad():
        probs, truth = nets.teacher(batch.image).softmax(1).numpy(), batch.target.numpy()
    known, confidence = truth != IGNORE_INDEX, float(np.median(probs.max(1)))
    accepted = (probs.max(1) >= confidence) & known
    right = accepted & (probs.argmax(1) == truth)
    method = make_method("fixmatch", {"confidence": confidence}, LOSS, 2)
    terms = method(nets, batch, StepProgress(30, 100)).terms
    assert terms["labeled_accepted"].item() == pytest.approx(accepted.sum() / known.sum())
    assert terms["labeled_right"].item() == pytest.approx(right.sum() / known.sum())
    assert 0 < right.sum() < accepted.sum()
    measured = [
        step
        for step in (0, 1, 9, 10, 11, 29, 31)
        if "labeled_right" in method(nets, batch, StepProgress(step, 100)).terms
    ]
    assert measured == [0, 10]


def test_where_every_voxel_counts_the_teacher_is_not_asked_about_labeled_patches() -> None:
    """Mean Teacher by default: a pass of the teacher would be made for nothing in every tenth step."""
    nets, batch, seen = make_nets(), make_batch(), []
    nets.teacher.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    make_method("mean_teacher", {}, LOSS, 2)(nets, batch, StepProgress(10, 100))
    assert seen == [len(batch.weak)]
    make_method("mean_teacher", {"confidence": 0.5}, LOSS, 2)(nets, batch, StepProgress(10, 100))
    assert seen[1:] == [len(batch.weak), len(batch.image)]


def test_a_mixed_batch_runs_with_every_method(method: Method) -> None:
    batch = make_mixed_batch(strong_views=method.traits.strong_views)
    output = call(method, make_nets(method=method), batch)
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_supervised_does_not_look_at_unlabeled_images() -> None:
    method = make_method("supervised", {}, LOSS, 2)
    losses = [
        method(make_nets(), replace(make_batch(), strong=(s,)), PROGRESS).loss
        for s in (torch.zeros(3, 1, 12, 12), torch.ones(3, 1, 12, 12))
    ]
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mean_techer", {}, r"did you mean 'mean_teacher'"),
        ("mean_teacher", {"consistency_wieght": 1}, r"method\.options\.consistency_wieght: unknown key \(did you mean"),
        ("mean_teacher", {"consistency_weight": -1}, r"method\.options\.consistency_weight = -1"),
        ("mean_teacher", {"confidence": 1.5}, r"method\.options\.confidence = 1\.5"),
        ("mean_teacher", {"consistency": "bce"}, r"method\.options\.consistency = 'bce': .*'cross_entropy'"),
        ("cct", {"perturbations": []}, "perturbations is empty: give at least one"),
        ("cct", {"perturbations": ["nois"]}, r"'nois': .*'noise', 'feature_drop' or 'dropout'$"),
        ("supervised", {"consistency_weight": 1}, r"method\.options\.consistency_weight: unknown key"),
    ],
)
def test_unknown_names_and_options(name: str, options: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_method(name, options, LOSS, 2)
