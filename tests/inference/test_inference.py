from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, compute_average_surface_distance, compute_hausdorff_distance
from numpy.typing import NDArray
from score_counts import make_net_score, make_scores
from sklearn import metrics as sk
from torch import Tensor, nn

from ssl_seg.data.catalog import Catalog
from ssl_seg.data.store import CaseStore, WholeCase
from ssl_seg.errors import CheckpointError, DataError
from ssl_seg.files import to_finite
from ssl_seg.inference import scoring
from ssl_seg.inference.ensemble import score_cases
from ssl_seg.inference.model import Model, better_net, config_of, make_network, open_model
from ssl_seg.inference.scoring import Score, pack_cases, parse_cases, score_case
from ssl_seg.inference.sliding import Predictor
from ssl_seg.labels import IGNORE_INDEX, Meaning
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.report.notebook import Evaluation
from ssl_seg.report.score_cells import describe_absent
from ssl_seg.results.evaluation import EvaluateRequest
from ssl_seg.run.final_scores import summarize_network
from ssl_seg.scores.metrics import RATIOS

CPU = torch.device("cpu")
Shape = tuple[int, ...]

# Sliding windows


class Pointwise(nn.Module):
    """Logits of three classes that depend on nothing but the values of the same voxel."""

    def forward(self, x: Tensor) -> Tensor:
        weighted = (x * torch.arange(1, x.shape[1] + 1).view(-1, *[1] * (x.ndim - 2))).sum(dim=1)
        return torch.stack([weighted, torch.sin(3 * weighted), 0.5 * weighted**2 - 1], dim=1)


def expected_pointwise(image: NDArray[Any]) -> NDArray[np.float64]:
    """The same of a whole image, in float64 and without torch."""
    flat = image.astype(np.float64).reshape(len(image), -1)
    std = flat.std(axis=1, keepdims=True)
    zscore = (flat - flat.mean(axis=1, keepdims=True)) / np.where(std > 0, std, 1)
    weighted = (zscore * np.arange(1, len(image) + 1)[:, None]).sum(axis=0).reshape(image.shape[1:])
    exp = np.exp(np.stack([weighted, np.sin(3 * weighted), 0.5 * weighted**2 - 1]))
    return np.asarray(exp / exp.sum(axis=0))


class Recording(nn.Module):
    """Passes on to ``inner`` and keeps the shapes of its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.seen: list[Shape] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        assert not torch.is_grad_enabled()
        out: Tensor = self.inner(x)
        return out


class Calls(nn.Module):
    """A network made of a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def predictor(net: nn.Module, patch: Sequence[int], **options: Any) -> Predictor:
    return Predictor(net, patch, CPU, nullcontext, **options)


def make_image(shape: Shape, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    values = np.random.default_rng(seed).normal(100, 40, shape)
    return values.clip(0, 255).astype(dtype)


@st.composite
def images(draw: st.DrawFn) -> tuple[NDArray[Any], Shape]:
    """An image (C, *S) and a window, either larger than the other along each axis."""
    ndim = draw(st.sampled_from([2, 3]))
    size, window = (st.integers(1, 23), st.integers(2, 12)) if ndim == 2 else (st.integers(1, 9), st.integers(2, 6))
    shape = draw(st.tuples(st.integers(1, 3), *[size] * ndim))
    patch = draw(st.tuples(*[window] * ndim))
    image = make_image(shape, draw(st.integers(0, 5)), draw(st.sampled_from(["uint8", "uint16", "float32"])))
    return image, patch


overlaps = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 0.9])


class TestSliding:
    @settings(deadline=None, max_examples=60)
    @given(images(), overlaps, st.sampled_from([1, 3, 8]))
    def test_a_pointwise_network_gives_its_whole_image_result(
        self, data: tuple[NDArray[Any], Shape], overlap: float, batch_size: int
    ) -> None:
        image, patch = data
        probs = predictor(Pointwise(), patch, overlap=overlap, batch_size=batch_size)(image)
        assert probs.dtype == np.float32
        assert probs.shape == (3, *image.shape[1:])
        np.testing.assert_allclose(probs, expected_pointwise(image), atol=2e-5)

    @settings(deadline=None, max_examples=30)
    @given(images(), overlaps)
    def test_a_constant_network_gives_a_constant(self, data: tuple[NDArray[Any], Shape], overlap: float) -> None:
        """No voxel is left out or has weight 0; padding does not show."""
        image, patch = data
        logits = torch.tensor([0.0, math.log(3.0)])
        net = Calls(lambda x: logits.view(1, 2, *[1] * (x.ndim - 2)).expand(len(x), 2, *x.shape[2:]))
        probs = predictor(net, patch, overlap=overlap)(image)
        np.testing.assert_allclose(probs[0], 0.25, atol=1e-5)
        np.testing.assert_allclose(probs[1], 0.75, atol=1e-5)

    @settings(deadline=None, max_examples=30)
    @given(images(), overlaps, st.integers(0, 100))
    def test_probabilities_sum_to_one_whatever_the_network_says(
        self, data: tuple[NDArray[Any], Shape], overlap: float, seed: int
    ) -> None:
        image, patch = data
        generator = torch.Generator().manual_seed(seed)
        net = Calls(lambda x: 20 * torch.randn(len(x), 4, *x.shape[2:], generator=generator))
        probs = predictor(net, patch, overlap=overlap)(image)
        assert np.isfinite(probs).all()
        assert (probs >= 0).all()
        np.testing.assert_allclose(probs.sum(axis=0), 1, atol=1e-5)

    @settings(deadline=None, max_examples=30)
    @given(images(), overlaps)
    def test_windows_hold_the_zscores_of_the_whole_image(
        self, data: tuple[NDArray[Any], Shape], overlap: float
    ) -> None:
        """A window's own mean and spread must not show; the input comes back from the probabilities by its logit."""
        image, patch = data
        probs = predictor(Calls(lambda x: torch.cat([0 * x[:, :1], x[:, :1]], dim=1)), patch, overlap=overlap)(image)
        first = image[0].astype(np.float64)
        np.testing.assert_allclose(
            np.log(probs[1] / probs[0]), (first - first.mean()) / (first.std() or 1), atol=1e-3, rtol=1e-3
        )

    def test_a_constant_image(self) -> None:
        probs = predictor(Pointwise(), (8, 8))(np.full((1, 20, 5), 200, np.uint8))
        np.testing.assert_allclose(probs, expected_pointwise(np.zeros((1, 20, 5))), atol=1e-6)

    @pytest.mark.parametrize(("shape", "patch"), [((1, 40, 56), (16, 16)), ((1, 16, 24, 32), (8, 8, 16))])
    def test_borders_of_windows_hardly_count_where_another_has_its_center(self, shape: Shape, patch: Shape) -> None:
        """A network that is wrong along the border of its window: plain averaging would give about one half there."""

        def wrong_at_the_border(x: Tensor) -> Tensor:
            inside = torch.zeros_like(x)
            inside[(slice(None), slice(None), *[slice(1, -1)] * (x.ndim - 2))] = 1
            return torch.cat([30 * (1 - inside), 30 * inside], dim=1)

        probs = predictor(Calls(wrong_at_the_border), patch, overlap=0.5)(make_image(shape))
        interior = probs[(1, *[slice(p // 2, -(p // 2)) for p in patch])]
        assert interior.min() > 0.95
        assert probs[1][(0,) * len(patch)] < 0.01  # a corner is in one window only

    @pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.75])
    @pytest.mark.parametrize(("shape", "patch"), [((64, 50), (16, 16)), ((17, 8), (16, 16)), ((9, 20, 33), (8, 8, 16))])
    def test_number_and_size_of_windows(self, shape: Shape, patch: Shape, overlap: float) -> None:
        net = Recording(Pointwise())
        predictor(net, patch, overlap=overlap, batch_size=3)(make_image((2, *shape)))
        stride = [int(p * (1 - overlap)) for p in patch]
        windows = [max(0, math.ceil((s - p) / d)) + 1 for s, p, d in zip(shape, patch, stride, strict=True)]
        assert sum(seen[0] for seen in net.seen) == math.prod(windows)
        assert {seen[1:] for seen in net.seen} == {(2, *patch)}
        assert max(seen[0] for seen in net.seen) == min(3, math.prod(windows))

    def test_the_network_runs_in_the_precision_context(self) -> None:
        def autocast() -> torch.autocast:
            return torch.autocast("cpu", torch.bfloat16)

        seen = []

        def convolve(x: Tensor) -> Tensor:
            out = torch.nn.functional.conv2d(x, torch.ones(2, 1, 1, 1))
            seen.append(out.dtype)
            return out

        probs = Predictor(Calls(convolve), (8, 8), CPU, autocast)(make_image((1, 12, 12)))
        assert set(seen) == {torch.bfloat16}
        assert probs.dtype == np.float32
        np.testing.assert_allclose(probs, 0.5)  # softmax in float32: exactly even

    def test_softmax_is_not_taken_in_half_precision(self) -> None:
        """bf16 probabilities near 1 have steps of 1/256."""
        net = Calls(lambda x: torch.cat([x * 0, x * 0 + 6.0], dim=1).bfloat16())
        probs = predictor(net, (8, 8))(make_image((1, 8, 8)))
        np.testing.assert_allclose(probs[1], 1 / (1 + math.exp(-6)), atol=1e-6)


# Scores


class MemoryStore(CaseStore):
    """Cases held in memory. The image of a case is the prediction: class indices that ``as_probs`` makes one-hot."""

    def __init__(
        self,
        cases: dict[str, tuple[NDArray[Any], NDArray[Any] | None]],
        num_classes: int,
        spacing: tuple[float, ...] | None = None,
    ) -> None:
        meaning = Meaning(label_values=tuple(range(num_classes)))
        super().__init__(Catalog("memory", (), {}, meaning, ()), 1)
        self.held, self.spacing = cases, spacing

    def load_whole(self, case_id: str) -> WholeCase:
        pred, target = self.held[case_id]
        return WholeCase(
            pred[None].astype(np.float32), None if target is None else target.astype(np.int16), self.spacing
        )


def as_probs(num_classes: int) -> Callable[[NDArray[Any], Any], NDArray[np.float32]]:
    """A predictor that reads its answer from the image, unsure of it: the largest wins, not what is above 0.5."""
    return lambda image, _: np.stack([np.where(image[0] == k, 0.3, 0.1) for k in range(num_classes)]).astype(np.float32)


def score(cases: Sequence[tuple[NDArray[Any], NDArray[Any]]], num_classes: int, **options: Any) -> Score:
    store = MemoryStore({str(n): case for n, case in enumerate(cases)}, num_classes, options.pop("spacing", None))
    return score_cases([as_probs(num_classes)], store, list(store.held), **options)[0]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[tuple[NDArray[Any], NDArray[Any]]], int]:
    """Predictions and targets of some cases, classes absent and voxels ignored as it comes."""
    num_classes = draw(st.integers(2, 4))
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        shape = draw(st.sampled_from([(4, 5), (1, 7), (3, 3, 4)]))
        present = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=3))
        pred, target = rng.choice(present, shape), rng.choice([0, *present], shape)
        if draw(st.booleans()):
            pred = pred * 0
        if draw(st.booleans()):
            target[rng.random(shape) < 0.3] = IGNORE_INDEX
            target.flat[0] = 0  # at least one voxel is looked at
        drawn.append((pred, target))
    return drawn, num_classes


def seen(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> tuple[NDArray[Any], NDArray[Any]]:
    """All voxels of all pairs that are not ignored, as two lists."""
    pred = np.concatenate([p[t != IGNORE_INDEX] for p, t in pairs])
    return pred, np.concatenate([t[t != IGNORE_INDEX] for _, t in pairs])


def sklearn_ratios(pred: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
    """scikit-learn's scores of two lists of bool; 1 where there is nothing to find and nothing found."""
    if not pred.any() and not target.any():
        return dict.fromkeys(RATIOS, 1.0)
    functions = {
        "dice": sk.f1_score,
        "iou": sk.jaccard_score,
        "precision": sk.precision_score,
        "recall": sk.recall_score,
    }
    ratios = {name: function(target, pred, zero_division=0.0) for name, function in functions.items()}
    return ratios | {"specificity": sk.recall_score(~target, ~pred, zero_division=1.0)}


def monai_dice(pred: NDArray[Any], target: NDArray[Any], num_classes: int) -> list[float]:
    """MONAI's Dice of each foreground class; an ignored voxel is background in both."""
    kept = target != IGNORE_INDEX
    one_hot = [
        torch.from_numpy(np.stack([(labels * kept) == k for k in range(num_classes)])[None].astype(np.float32))
        for labels in (pred, target)
    ]
    dice = DiceMetric(include_background=False, reduction="none", ignore_empty=False, num_classes=num_classes)
    return [float(d) for d in dice(*one_hot)[0]]


def mean_ratios(pred: NDArray[Any], target: NDArray[Any], num_classes: int) -> dict[str, float]:
    """scikit-learn's scores of a case: means over the classes in its target or prediction, 1 without any."""
    there = [k for k in range(1, num_classes) if (pred == k).any() or (target == k).any()]
    rows = [sklearn_ratios(pred == k, target == k) for k in there] or [dict.fromkeys(RATIOS, 1.0)]
    return {name: float(np.mean([row[name] for row in rows])) for name in RATIOS}


class TestScoring:
    @settings(deadline=None, max_examples=20)
    @given(cases())
    def test_each_case(self, data: tuple[list[tuple[NDArray[Any], NDArray[Any]]], int]) -> None:
        pairs, num_classes = data
        rows = score(pairs, num_classes).summarize()["cases"]
        assert [row["id"] for row in rows] == [str(n) for n in range(len(pairs))]
        for row, pair in zip(rows, pairs, strict=True):
            pred, target = seen([pair])
            assert {name: row[name] for name in RATIOS} == pytest.approx(mean_ratios(pred, target, num_classes))
            assert row["prevalence"] == pytest.approx((target > 0).mean())
            if num_classes > 2:
                there = [(pred == k).any() or (target == k).any() for k in range(1, num_classes)]
                expected = [d if t else None for d, t in zip(monai_dice(*pair, num_classes), there, strict=True)]
                assert row["classes"] == [None if d is None else pytest.approx(d) for d in expected]

    @settings(deadline=None, max_examples=20)
    @given(cases())
    def test_pooled_and_mean(self, data: tuple[list[tuple[NDArray[Any], NDArray[Any]]], int]) -> None:
        pairs, num_classes = data
        scored = score(pairs, num_classes)
        summary = scored.summarize()
        pred, target = seen(pairs)
        foreground = sklearn_ratios(pred > 0, target > 0)
        by_class = {k: sklearn_ratios(pred == k, target == k) for k in range(1, num_classes) if (target == k).any()}
        absent = [k for k in range(1, num_classes) if k not in by_class]
        averaged = list(by_class.values()) or [foreground]
        expected = {name: np.mean([c[name] for c in averaged]) for name in RATIOS}
        assert {name: summary["pooled"][name] for name in RATIOS} == pytest.approx(expected)
        assert scored.f1 == summary["pooled"]["f1"] == pytest.approx(foreground["dice"])
        assert scored.f1_macro == summary["pooled"]["f1_macro"] == pytest.approx(expected["dice"])
        assert summary["absent_classes"] == absent
        if num_classes > 2:
            assert {name: summary["foreground"][name] for name in RATIOS} == pytest.approx(foreground)
            for row in summary["classes"]:
                k = row["label"]
                pooled = {name: row["pooled"][name] for name in RATIOS}
                assert pooled == (pytest.approx(by_class[k]) if k in by_class else dict.fromkeys(RATIOS))
                having = [sklearn_ratios(p == k, t == k) for p, t in (seen([q]) for q in pairs) if (t == k).any()]
                mean = np.mean([h["dice"] for h in having]) if having else None
                assert row["mean_positives"]["dice"] == (None if mean is None else pytest.approx(mean))
                assert (row["n_positives"], row["false_voxels"]) == (len(having), ((pred == k) & (target != k)).sum())
        each = [mean_ratios(*seen([pair]), num_classes) for pair in pairs]
        for name in RATIOS:
            assert summary["mean"][name] == pytest.approx(np.mean([e[name] for e in each]))
        positive = [e["dice"] for e, (_, t) in zip(each, pairs, strict=True) if (t > 0).any()]
        assert (summary["mean"]["n_cases"], summary["mean"]["n_positives"]) == (len(pairs), len(positive))
        flags = [tuple(bool((part > 0).any()) for part in seen([pair])) for pair in pairs]
        missed, hallucinated = (sum(flag == wanted for flag in flags) for wanted in ((False, True), (True, False)))
        assert (summary["mean"]["n_missed"], summary["mean"]["n_hallucinated"]) == (missed, hallucinated)
        assert summary["mean"]["dice_positives"] == (pytest.approx(np.mean(positive)) if positive else None)

    @settings(deadline=None, max_examples=15)
    @given(cases())
    def test_trivial_predictors(self, data: tuple[list[tuple[NDArray[Any], NDArray[Any]]], int]) -> None:
        """Scored by scikit-learn on the same voxels."""
        pairs, num_classes = data
        scored = score(pairs, num_classes)
        _, target = seen(pairs)
        trivial = scored.summarize()["trivial"]
        there = [k for k in range(1, num_classes) if (target == k).any()]
        everywhere = [sk.f1_score(target == k, np.ones_like(target)) for k in there] or [0.0]
        assert trivial["prevalence"] == pytest.approx((target > 0).mean())
        assert trivial["all_positive"] == pytest.approx(np.mean(everywhere))
        assert trivial["all_negative"] == (0.0 if there else 1.0)
        assert trivial["margin"] == pytest.approx(scored.f1_macro - np.mean(everywhere) if there else 0.0)
        assert trivial["margin_low"] is trivial["margin_high"] is None
        assert trivial["margin_why"]

    @settings(deadline=None, max_examples=15)
    @given(cases(), st.booleans())
    def test_json(self, data: tuple[list[tuple[NDArray[Any], NDArray[Any]]], int], surface: bool) -> None:
        summary = to_finite(score(*data, surface=surface).summarize())
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary

    def test_binary_scores_have_no_classes(self) -> None:
        pair = (np.array([[1, 0]]), np.array([[1, 1]]))
        summary = score([pair], 2).summarize()
        assert "classes" not in summary
        assert "classes" not in summary["cases"][0]
        assert summary["of"] == "foreground"
        assert summary["pooled"]["f1"] == summary["pooled"]["f1_macro"] == pytest.approx(2 / 3)

    def test_confused_classes_are_found_foreground(self) -> None:
        """Foreground against background is right everywhere, each class wrong."""
        target = np.array([[0, 1, 2, 2]])
        summary = score([(np.array([[0, 2, 1, 1]]), target)], 3).summarize()
        assert summary["pooled"]["f1"] == summary["foreground"]["dice"] == 1
        for row in (summary["pooled"], summary["mean"], summary["cases"][0]):
            assert [row[name] for name in ("dice", "iou", "precision", "recall")] == [0, 0, 0, 0]
        assert summary["pooled"]["f1_macro"] == 0
        assert summary["cases"][0]["classes"] == [0, 0]
        assert summary["of"] == "mean of 2 classes"
        assert summary["trivial"]["margin"] < 0

    def test_swapped_classes_lie_far_from_each_other(self) -> None:
        target = np.zeros((4, 6, 30), int)
        target[1:3, 1:5, 2:6], target[1:3, 1:5, 20:24] = 1, 2
        summary = score([((3 - target) * (target > 0), target)], 3, surface=True).summarize()
        assert summary["mean"]["hd95"] == summary["cases"][0]["hd95"] == 18.0
        assert [row["hd95"] for row in summary["classes"]] == [18.0, 18.0]

    def test_a_network_that_draws_classes_that_are_nowhere_does_not_lose_by_them(self) -> None:
        """Three false voxels of two classes that no mask has; they are named by their mask values."""
        target = np.zeros((20, 20), int)
        target[2:12, 2:12] = 1
        careful, better = target.copy(), target.copy()
        careful[2:7, 2:12] = 0
        better[0, :2], better[0, 3] = 2, 3
        low, high = (score([(pred, target)] * 2, 4) for pred in (careful, better))
        assert (low.f1_macro, high.f1_macro) == (pytest.approx(2 / 3), 1.0)
        assert high.summarize()["mean"]["dice"] == pytest.approx(1 / 3)  # within a case, each drawn class counts
        summary = replace(high, label_values=(7, 40, 255)).summarize()
        assert summary["absent_classes"] == [40, 255]
        assert summary["false_classes"] == [
            {"label": 40, "voxels": 4, "cases": 2},
            {"label": 255, "voxels": 2, "cases": 2},
        ]
        assert list(describe_absent(summary)) == [
            "classes 40, 255 are in none of the masks: left out of the means of classes over all cases",
            "class 40 is predicted all the same: 4 voxels in 2 cases, which lowers the Dice of these cases",
            "class 255 is predicted all the same: 2 voxels in 2 cases, which lowers the Dice of these cases",
        ]
        record = {
            **summary,
            "checkpoint": "x",
            "which": "student",
            "part": "val",
            "sealed_cases": 0,
            "nets": {"student": summary},
        }
        assert "\n".join(describe_absent(summary)) in repr(Evaluation(record, EvaluateRequest(Path())))
        assert summary["of"] == "mean of 1 class"
        assert [row["label"] for row in summary["classes"]] == [7, 40, 255]
        assert [(row["false_voxels"], row["hallucinated_cases"]) for row in summary["classes"]] == [
            (0, 0),
            (4, 2),
            (2, 2),
        ]
        assert [row["pooled"]["dice"] for row in summary["classes"]] == [1.0, None, None]

    def test_without_any_foreground_only_silence_is_right(self) -> None:
        target = np.zeros((2, 3), int)
        wrong = np.array([[0, 0, 2], [0, 0, 0]])
        for pred, f1 in ((target, 1.0), (wrong, 0.0)):
            scored = score([(pred, target)], 3)
            assert scored.f1 == scored.f1_macro == f1
            assert scored.summarize()["of"] == "any foreground"

    def test_figures_that_empty_cases_flatter_have_what_shows_it_beside_them(self) -> None:
        """Seven of ten masks are empty, and nothing is predicted."""
        full, empty = np.ones((3, 3), int), np.zeros((3, 3), int)
        found = summarize_network(score([(empty, full)] * 3 + [(empty, empty)] * 7, 2))
        assert (found["f1"], found["dice"]) == (0.0, pytest.approx(0.7))
        assert (found["dice_positives"], found["predict_nothing"]) == (0.0, pytest.approx(0.7))

    def test_distances_in_millimeters_and_in_voxels_are_never_averaged(self) -> None:
        target = np.zeros((4, 6, 8), int)
        target[1:3, 1:4, 1:4] = 1
        pred = np.roll(target, 1, axis=0)
        spacings = {"a": (3.0, 1.0, 1.0), "b": None, "c": (5.0, 1.0, 1.0)}
        cases = tuple(
            score_case(
                name,
                WholeCase(np.zeros((1, 4, 6, 8)), target, spacing),
                np.eye(2)[pred].transpose(3, 0, 1, 2),
                surface=True,
            )
            for name, spacing in spacings.items()
        )
        mean = Score(cases).summarize()["mean"]
        assert (mean["hd95"], mean["asd"], mean["unit"]) == (None, None, None)
        assert mean["distances"]["mm"]["hd95"] == pytest.approx(4.0)
        assert mean["distances"]["voxels"]["hd95"] == pytest.approx(1.0)
        assert [mean["distances"][unit]["n_measured"] for unit in ("mm", "voxels")] == [2, 1]
        assert (mean["n_cases"], mean["n_measured"], mean["missed_share"]) == (3, 3, 0.0)
        alone = Score(cases[1:2]).summarize()["mean"]
        assert (alone["hd95"], alone["unit"]) == (pytest.approx(1.0), "voxels")

    def test_pooled_is_not_the_mean(self) -> None:
        large = (np.ones((10, 10)), np.ones((10, 10)))
        missed = (np.zeros((1, 2)), np.ones((1, 2)))
        summary = score([large, missed], 2).summarize()
        assert summary["pooled"]["f1"] == pytest.approx(200 / 202)
        assert summary["mean"]["dice"] == 0.5

    @pytest.mark.parametrize(
        ("pred", "target", "dice", "hd95", "flag"),
        [
            ([0, 0], [0, 0], 1.0, 0.0, "n_absent"),
            ([1, 0], [0, 0], 0.0, None, "hallucinated_share"),
            ([0, 0], [0, 1], 0.0, None, "missed_share"),
            ([1, 0], [-100, 0], 1.0, 0.0, "n_absent"),
            ([0, 0], [-100, 1], 0.0, None, "missed_share"),
            ([1, 1], [-100, 1], 1.0, 0.0, "n_measured"),
        ],
    )
    def test_empty_and_ignored(
        self, pred: list[int], target: list[int], dice: float, hd95: float | None, flag: str
    ) -> None:
        summary = score([(np.array([pred]), np.array([target]))], 2, surface=True).summarize()
        row = summary["cases"][0]
        assert row["dice"] == dice
        assert to_finite(row)["hd95"] == to_finite(row)["asd"] == hd95
        assert summary["mean"][flag] == 1
        if hd95 is None:  # infinite: without to_finite it is no JSON
            with pytest.raises(ValueError, match="JSON"):
                json.dumps(summary, allow_nan=False)

    @pytest.mark.parametrize("spacing", [None, (3.0, 1.0, 0.5)])
    def test_surface_distances_are_monais(self, spacing: tuple[float, ...] | None) -> None:
        rng = np.random.default_rng(1)
        target = np.zeros((6, 8, 9), int)
        target[1:4, 2:6, 2:7] = 1
        pred = target * (rng.random(target.shape) < 0.8) + (rng.random(target.shape) < 0.05)
        pred = (pred > 0).astype(int)
        ignored = target.copy()
        ignored[5] = IGNORE_INDEX
        pred_with_ignored = pred.copy()
        pred_with_ignored[5] = 1
        pred[5] = 0
        (row,) = score([(pred_with_ignored, ignored)], 2, surface=True, spacing=spacing).summarize()["cases"]
        tensors = [torch.from_numpy(mask > 0)[None, None].float() for mask in (pred, target)]
        unit = spacing or (1.0,) * 3
        hd95 = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=unit)
        asd = compute_average_surface_distance(*tensors, include_background=True, symmetric=True, spacing=unit)
        assert row["hd95"] == pytest.approx(float(hd95), abs=1e-5)
        assert row["asd"] == pytest.approx(float(asd), abs=1e-5)

    def test_distances_only_where_asked_for(self) -> None:
        pair = (np.ones((2, 2)), np.ones((2, 2)))
        summary = score([pair], 2).summarize()
        assert "hd95" not in summary["cases"][0]
        assert "hd95" not in summary["mean"]

    def test_nothing_to_score_is_refused(self) -> None:
        with pytest.raises(DataError, match="no labeled case"):
            score([], 2)
        store = MemoryStore({"seen": (np.ones((2, 2)), np.ones((2, 2))), "bare": (np.ones((2, 2)), None)}, 2)
        with pytest.raises(DataError, match="'bare' has no mask"):
            score_cases([as_probs(2)], store, ["seen", "bare"])

    def test_only_the_cases_asked_for_in_their_order_and_tracked(self) -> None:
        pair = (np.ones((2, 2)), np.ones((2, 2)))
        store = MemoryStore(dict.fromkeys("abcd", pair), 2)
        told: list[tuple[list[str], int]] = []

        def track(items: Any, total: int) -> Any:
            told.append((list(items), total))
            return told[-1][0]

        (scored,) = score_cases([as_probs(2)], store, ["d", "b"], track=track)
        assert [c.case_id for c in scored.cases] == ["d", "b"]
        assert told == [(["d", "b"], 2)]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_a_voxel_without_a_finite_output_is_wrong_whatever_its_target(self, value: float) -> None:
        target = np.array([[0, 0, 1, 1, 2, IGNORE_INDEX]], np.int16)
        probs = np.eye(3, dtype=np.float32)[np.maximum(target, 0)].transpose(2, 0, 1)
        case = WholeCase(np.zeros((1, 1, 6)), target, None)
        assert score_case("a", case, probs).overlap.dice == 1.0
        for voxel in range(5):
            broken = probs.copy()
            broken[voxel % 3, 0, voxel] = value
            found = score_case("a", case, broken)
            assert (found.nonfinite, found.overlap.fp + found.overlap.fn) == (1, 1)
            assert sum(o.fp + o.fn for o in found.classes) >= 1
        everything = score_case("a", case, np.full_like(probs, value), surface=True)
        assert everything.overlap.dice == everything.overlap.tn == 0
        assert [o.dice for o in everything.classes] == [0, 0]
        empty = score_case("a", WholeCase(case.image, np.zeros_like(target), None), np.full_like(probs, value))
        assert empty.overlap.dice == 0, "nothing to find is no excuse"

    def test_the_interval_of_the_margin_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[int] = []
        original = scoring.estimate_margin
        monkeypatch.setattr(scoring, "estimate_margin", lambda counts: calls.append(1) or original(counts))
        scored = score([(np.eye(4, dtype=int), np.eye(4, dtype=int))] * 9, 2)
        assert scored.summarize() == scored.summarize()
        assert calls == [1]

    def test_counts_survive_json(self) -> None:
        cases = [(np.array([[0, 1, 2]]), np.array([[0, 2, 2]])), (np.array([[1, 1, 1]]), np.array([[0, 0, 0]]))]
        scored = score(cases, 3)
        rows, precision = json.loads(json.dumps([pack_cases(scored), scored.average_precision]))
        assert parse_cases(rows, average_precision=precision) == scored


# Checkpoints


def rewrite(run: Path, out: Path, **changes: Any) -> Path:
    checkpoint = load_checkpoint(run / "checkpoints" / "last.pt")
    save_checkpoint(Checkpoint(**{**vars(checkpoint), **changes}), out)
    return out


class TestModel:
    def test_both_networks_ready_for_use(self, tiny_run: Path) -> None:
        path = tiny_run / "checkpoints" / "last.pt"
        model, checkpoint = open_model(path, CPU), load_checkpoint(path)
        assert model.path == path
        assert list(model.nets) == ["student", "teacher"]
        for name, net in model.nets.items():
            assert not any(module.training for module in net.modules())
            assert not any(p.requires_grad for p in net.parameters())
            state = getattr(checkpoint, name)
            assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
        x = torch.randn(1, 1, 32, 32)
        assert not torch.equal(model.nets["student"](x), model.nets["teacher"](x))

    @pytest.mark.parametrize("which", ["student", "teacher"])
    def test_a_predictor_of_the_network_asked_for(self, tiny_run: Path, which: str) -> None:
        """On an image as large as one window it is the network's own result, whatever the overlap."""
        model = open_model(tiny_run / "checkpoints" / "last.pt", CPU)
        image = make_image((1, 32, 32), dtype="uint8")
        zscore = torch.from_numpy((image - image.mean()) / image.std()).float()[None]
        expected = model.nets[which](zscore).softmax(dim=1)[0].numpy()
        for overlap in (0.0, 0.5):
            probs = model.predictor(which, overlap)(image)
            np.testing.assert_allclose(probs, expected, atol=1e-5)
            assert model.predictor(which, overlap).overlap == overlap

    @pytest.mark.parametrize(
        ("precision", "native", "enabled"), [("fp32", True, False), ("bf16", True, True), ("bf16", False, False)]
    )
    def test_the_precision_is_that_of_the_training_where_it_is_native(
        self,
        tiny_run: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        precision: str,
        native: bool,
        enabled: bool,
    ) -> None:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config
        config = {**config, "runtime": {**config["runtime"], "precision": precision}}
        model = open_model(rewrite(tiny_run, tmp_path / "x.pt", config=config), CPU)
        with model.predictor("student").autocast():
            assert torch.is_autocast_enabled("cpu") == enabled
        said = model.describe_machine()
        assert ["bf16" in text and "fp32" in text for text in said] == [True] * (precision == "bf16" and not native)

    def test_the_device_is_that_of_the_training_where_it_is_here(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The weights stay where they are: there may be no GPU here."""
        stored = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config

        def open_trained_on(accelerator: str) -> Model:
            config = {**stored, "runtime": {**stored["runtime"], "accelerator": accelerator}}
            path = tmp_path / f"{accelerator}.pt"
            return open_model(path if path.is_file() else rewrite(tiny_run, path, config=config))

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        for accelerator in ("auto", "cpu", "cuda"):
            model = open_trained_on(accelerator)
            assert model.device == CPU
            assert ["trained on cuda" in text for text in model.describe_machine()] == [True] * (accelerator == "cuda")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self)
        assert {name: open_trained_on(name).device.type for name in ("auto", "cpu", "cuda")} == {
            "auto": "cuda", "cpu": "cpu", "cuda": "cuda",
        }  # fmt: skip

    @pytest.mark.parametrize("used", ["student", "teacher"])
    def test_the_network_that_was_decided_on(self, tiny_run: Path, tmp_path: Path, used: str) -> None:
        """Figures are not compared anew: the decision is made once, where the networks are scored."""
        recorded = make_scores(make_net_score(0.6), make_net_score(0.5))
        recorded["selected"]["net"] = used
        path = rewrite(tiny_run, tmp_path / "x.pt", scores=recorded)
        assert better_net(load_checkpoint(path)) == used
        assert open_model(path, CPU).better == used

    @pytest.mark.parametrize(("f1", "doubted"), [(0.4, True), (0.509, True), (0.511, False)])
    def test_a_network_that_beats_nothing_is_not_to_be_used(
        self, tiny_run: Path, tmp_path: Path, f1: float, doubted: bool
    ) -> None:
        net = make_net_score(f1) | {"f1_macro": f1}
        recorded = make_scores(net, net) | {"trivial_f1": 0.5}
        path = rewrite(tiny_run, tmp_path / "x.pt", scores=recorded)
        said = open_model(path, CPU).describe_doubt("student")
        assert [f"F1 {f1:.3f} on validation" in text for text in said] == [True] * doubted

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"optim": {"lrr": 1.0}}, r"optim\.lrr: unknown key"),
            ({"optim": {"lr": -1.0}}, r"optim\.lr = -1"),
            ({"batch": {}}, r"batch\.labeled: missing"),
            ({"future": 1}, "future: unknown key"),
        ],
    )
    def test_settings_of_another_version(
        self, tiny_run: Path, tmp_path: Path, change: dict[str, Any], words: str
    ) -> None:
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config
        path = rewrite(tiny_run, tmp_path / "other.pt", config={**config, **change})
        with pytest.raises(CheckpointError, match=rf"(?s)other\.pt: its configuration does not fit.*{words}"):
            open_model(path, CPU)

    def test_settings_that_describe_another_network(self, tiny_run: Path, tmp_path: Path) -> None:
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config
        for change in ({"network": {"name": "basic_unet", "features": 8}}, {"network": {"name": "unet"}}):
            path = rewrite(tiny_run, tmp_path / "other.pt", config={**config, **change})
            with pytest.raises(CheckpointError, match=r"other\.pt"):
                open_model(path, CPU)

    def test_weights_that_do_not_fit_are_refused_for_either_net(self, tiny_run: Path, tmp_path: Path) -> None:
        checkpoint = load_checkpoint(tiny_run / "checkpoints" / "last.pt")
        name = next(iter(checkpoint.student))
        for net in ("student", "teacher"):
            kept = {key: value for key, value in getattr(checkpoint, net).items() if key != name}
            with pytest.raises(CheckpointError, match=name):
                open_model(rewrite(tiny_run, tmp_path / "x.pt", **{net: kept}), CPU)

    def test_the_network_follows_every_setting(self, tiny_run: Path) -> None:
        path = tiny_run / "checkpoints" / "last.pt"
        config = config_of(load_checkpoint(path), path)
        data = config.data.model_copy(update={"channels": 3, "label_values": (0, 1, 2, 3), "patch_size": (16, 32, 32)})
        network = config.network.model_copy(update={"features": 2, "norm": "batch"})
        net = make_network(config.model_copy(update={"data": data, "network": network})).eval()
        assert net(torch.zeros(1, 3, 16, 32, 32)).shape == (1, 4, 16, 32, 32)
        assert any(isinstance(module, nn.BatchNorm3d) for module in net.modules())
        assert next(net.parameters()).shape[0] == 2
