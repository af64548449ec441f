"""The running sums against numpy and scikit-learn on all values at once."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from ssl_seg.diagnose.result import Diagnosis
from ssl_seg.diagnose.tally import Output, Tally, summarize_equality, summarize_foreground, summarize_scores
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.scores.metrics import ConfusionCounts


def make_outputs(part: str = "val", seed: int = 0, count: int = 4) -> list[Output]:
    rng = np.random.default_rng(seed)
    outputs = []
    for index in range(count):
        target = (rng.random((20, 24 + index)) < 0.3).astype(np.int16)
        logit = (2.0 * target + rng.normal(-1, 1.5, target.shape)).astype(np.float32)
        prob = (1 / (1 + np.exp(-logit))).astype(np.float32)
        target[0, :5] = IGNORE_INDEX
        outputs.append(Output(f"{part}{index}", part, prob > 0.5, prob, logit, target))  # type: ignore[arg-type]
    return outputs


def flat(outputs: list[Output], name: str) -> NDArray[np.float64]:
    return np.concatenate([np.asarray(getattr(o, name), np.float64).ravel() for o in outputs])


@pytest.fixture(scope="module")
def outputs() -> list[Output]:
    return make_outputs()


@pytest.fixture(scope="module")
def tally(outputs: list[Output]) -> Tally:
    tally = Tally()
    for output in outputs:
        tally.add(output)
    return tally


def test_output_statistics_are_those_of_all_voxels(tally: Tally, outputs: list[Output]) -> None:
    row = tally.summarize_outputs()["val"]
    prob, logit = flat(outputs, "prob"), flat(outputs, "logit")
    assert row["voxels"] == prob.size
    for name, values in (("prob", prob), ("logit", logit)):
        found = [row[f"{name}_{figure}"] for figure in ("mean", "std", "min", "max")]
        np.testing.assert_allclose(found, [values.mean(), values.std(), values.min(), values.max()], rtol=1e-6)
    assert row["band_share"] == pytest.approx(np.mean((prob > 0.5) & (prob <= 0.7)))
    assert row["low_share"] == pytest.approx(np.mean(prob <= 0.1))
    for q in (0.05, 0.5, 0.95):
        assert row["prob_quantiles"][f"{q:g}"] == pytest.approx(np.quantile(prob, q), abs=2e-3)
        assert row["logit_quantiles"][f"{q:g}"] == pytest.approx(np.quantile(logit, q), abs=0.1)


def test_parts_are_kept_apart() -> None:
    tally = Tally()
    for output in (*make_outputs("val", 1), *make_outputs("train", 2)):
        tally.add(output)
    rows = tally.summarize_outputs()
    assert set(rows) == {"val", "train", "all"}
    assert rows["all"]["voxels"] == rows["val"]["voxels"] + rows["train"]["voxels"]
    assert rows["val"]["prob_mean"] != rows["train"]["prob_mean"]
    wanted = rows["val"]["prob_mean"] * rows["val"]["voxels"] + rows["train"]["prob_mean"] * rows["train"]["voxels"]
    assert rows["all"]["prob_mean"] == pytest.approx(wanted / rows["all"]["voxels"])


def test_the_sweep_leaves_out_ignored_voxels(tally: Tally, outputs: list[Output]) -> None:
    prob, target = flat(outputs, "prob"), flat(outputs, "target")
    known = target != IGNORE_INDEX
    sweep = tally.sweep("val")
    assert sweep is not None
    wanted = [f1_score(target[known] > 0, prob[known] > t) for t in sweep["thresholds"]]
    np.testing.assert_allclose(sweep["f1"], wanted, atol=1e-12)
    assert sweep["best_f1"] == max(wanted)
    assert sweep["f1"][sweep["thresholds"].index(sweep["best_threshold"])] == sweep["best_f1"]


def test_the_sweep_finds_a_threshold_close_to_1() -> None:
    """As heavy costs of missed foreground leave it: background at 0.97 to 0.99, foreground above."""
    rng = np.random.default_rng(0)
    target = (rng.random((64, 64)) < 0.3).astype(np.int16)
    prob = np.where(target, rng.uniform(0.9905, 1, target.shape), rng.uniform(0.97, 0.99, target.shape))
    tally = Tally()
    tally.add(Output("a", "val", prob > 0.5, prob.astype(np.float32), None, target))
    sweep = tally.sweep()
    assert sweep is not None
    assert (sweep["best_threshold"], sweep["best_f1"]) == (0.99, 1.0)
    low = Tally()
    low.add(Output("a", "val", prob < 0, (1 - prob).astype(np.float32), None, 1 - target))
    sweep = low.sweep()
    assert sweep is not None
    assert (sweep["best_threshold"], sweep["best_f1"]) == (0.01, 1.0)
    assert sweep["thresholds"] == sorted(sweep["thresholds"])
    assert all((1000 * t).is_integer() for t in sweep["thresholds"]), "edges of the bins"


@pytest.mark.parametrize("shift", [-40.0, -22.0, 40.0])
def test_the_sweep_and_the_quantiles_reach_beyond_the_bins_that_are_shown(shift: float) -> None:
    rng = np.random.default_rng(0)
    target = (rng.random((64, 64)) < 0.3).astype(np.int16)
    logit = (shift + rng.normal(0, 1, target.shape) + np.where(target, 6, -6)).astype(np.float32)
    prob = (1 / (1 + np.exp(-logit.astype(np.float64)))).astype(np.float32)
    tally = Tally()
    tally.add(Output("a", "val", logit > 0, prob, logit, target))
    sweep = tally.sweep("val")
    assert sweep is not None
    assert sweep["best_f1"] > 0.99 > sweep["f1_at_half"]
    if shift < 0:  # a probability next to 1 cannot be told from 1
        assert f1_score(target.ravel(), prob.ravel() > sweep["best_threshold"]) > 0.99
    quantiles = tally.summarize_outputs()["val"]["logit_quantiles"]
    for q in (0.05, 0.5, 0.95):
        assert quantiles[f"{q:g}"] == pytest.approx(np.quantile(logit, q), rel=0.05)


def test_a_probability_of_one_half_is_background() -> None:
    """As in the argmax of a prediction: the sweep at 0.5 must not call everything foreground."""
    half, target = np.full((8, 8), 0.5, np.float32), np.ones((8, 8), np.int16)
    target[0] = 0
    tally = Tally()
    tally.add(Output("a", "val", half > 0.5, half, None, target))
    sweep = tally.sweep()
    assert sweep is not None
    assert sweep["f1_at_half"] == 0.0
    assert sweep["f1"][sweep["thresholds"].index(0.45)] > 0.9


def test_histograms_hold_every_voxel(tally: Tally, outputs: list[Output]) -> None:
    target = flat(outputs, "target")
    prob, logit = tally.histograms()
    assert (prob.edges[0], prob.edges[-1], len(prob.counts)) == (0.0, 1.0, 40)
    for histogram, values in ((prob, flat(outputs, "prob")), (logit, flat(outputs, "logit"))):
        assert sum(histogram.counts) == values.size
        assert sum(histogram.foreground) == np.sum(target == 1)
        assert sum(histogram.background) == np.sum(target == 0)
        assert len(histogram.edges) == len(histogram.counts) + 1 <= 65
        np.testing.assert_allclose(np.diff(histogram.edges), histogram.edges[1] - histogram.edges[0])
        counted, _ = np.histogram(values, histogram.edges)
        assert np.abs(counted - histogram.counts).sum() <= 4  # values on an edge


def test_logits_beyond_the_range_are_counted() -> None:
    tally = Tally()
    wild = np.array([[-1e3, -20.0, 0.0, 15.99, 500.0]], np.float32)
    tally.add(Output("a", "new", wild > 0, (wild > 0).astype(np.float32), wild, None))
    logit = tally.histograms()[1]
    assert sum(logit.counts) == 5
    assert logit.edges[0] == -16.0
    assert logit.edges[-1] >= 16.0


def test_values_that_are_not_finite_are_counted_apart() -> None:
    prob = np.array([[0.2, np.nan, np.inf, 0.4]], np.float32)
    tally = Tally()
    figures = tally.add(Output("a", "new", prob > 0.5, prob, None, None))
    assert (tally.nonfinite, tally.voxels) == (2, 4)
    assert figures.prob.mean == pytest.approx(0.3)
    row = tally.summarize_outputs()["all"]
    assert row["prob_max"] == pytest.approx(0.4)


def test_scores_and_foreground_against_scikit_learn(tally: Tally, outputs: list[Output]) -> None:
    target, pred = flat(outputs, "target"), flat(outputs, "pred")
    known = target != IGNORE_INDEX
    truth, pred = target[known] > 0, pred[known] > 0
    scores, trivial = summarize_scores(list(tally.overlaps.values()))
    assert scores["f1"] == pytest.approx(f1_score(truth, pred))
    assert scores["accuracy"] == pytest.approx(np.mean(truth == pred))
    assert scores["precision"] == pytest.approx(np.mean(truth[pred]))
    assert scores["recall"] == pytest.approx(np.mean(pred[truth]))
    assert trivial["all_positive"] == pytest.approx(f1_score(truth, np.ones_like(truth)))
    assert trivial["margin"] == pytest.approx(scores["f1"] - trivial["best"])

    spread = summarize_foreground(tally.images)
    shares = {
        key: np.array([np.mean((getattr(o, name) > 0)[o.target != IGNORE_INDEX]) for o in outputs])
        for key, name in (("pred", "pred"), ("true", "target"))
    }
    for key, values in shares.items():
        wanted = [values.mean(), np.median(values), values.std(), values.min(), values.max()]
        np.testing.assert_allclose([spread[key][n] for n in ("mean", "median", "sd", "min", "max")], wanted)
        assert sum(spread[key]["counts"]) == len(outputs)
        by_hand = [sum(b / 20 <= v < (b + 1) / 20 or (b == 19 and v == 1) for v in values) for b in range(20)]
        assert spread[key]["counts"] == by_hand
    assert spread["overestimate"] == pytest.approx(100 * (shares["pred"].mean() - shares["true"].mean()))


def test_several_classes_have_a_mean_of_their_own() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, (2, 9, 9)) * rng.integers(0, 2, (2, 9, 9))
    pred = np.where(rng.random(true.shape) < 0.6, true, rng.integers(0, 4, true.shape))
    true[0, :2] = IGNORE_INDEX
    tally = Tally()
    for part, own, other in (("val", pred, true), ("train", np.zeros_like(pred), true)):
        for index in range(2):
            classes = (own[index], other[index])
            tally.add(Output(f"{part}{index}", part, own[index] > 0, target=other[index].clip(max=1), classes=classes))  # type: ignore[arg-type]
    known = true != IGNORE_INDEX
    scores = tally.summarize("val")["scores"]
    assert scores["f1"] == pytest.approx(f1_score(true[known] > 0, pred[known] > 0))
    expected = f1_score(true[known], pred[known], labels=[1, 2, 3], average="macro")
    assert (scores["f1_macro"], scores["of"]) == (pytest.approx(expected), "mean of 3 classes")
    everywhere = [f1_score(true[known] == value, np.ones(known.sum())) for value in (1, 2, 3)]
    assert scores["trivial_f1_macro"] == pytest.approx(np.mean(everywhere))


def test_a_mean_that_empty_images_flatter_has_what_shows_it_beside_it() -> None:
    nothing = [ConfusionCounts(0, 0, 9, 91)] * 3 + [ConfusionCounts(0, 0, 0, 100)] * 7
    scores, _ = summarize_scores(nothing)
    assert (scores["f1"], scores["f1_mean"], scores["f1_mean_positives"]) == (0.0, pytest.approx(0.7), 0.0)
    assert scores["f1_mean_of_nothing"] == pytest.approx(0.7)
    assert summarize_scores(nothing[3:])[0]["f1_mean_positives"] is None


@pytest.mark.parametrize(
    ("counts", "bias"), [((90, 60, 3, 0), "recall"), ((50, 2, 60, 9), "precision"), ((50, 9, 9, 9), "balanced")]
)
def test_bias_of_precision_and_recall(counts: tuple[int, int, int, int], bias: str) -> None:
    assert summarize_scores([ConfusionCounts(*counts)])[0]["bias"] == bias


def test_equality_is_the_range_over_images() -> None:
    tally = Tally()
    for output in (*make_outputs("val", 1), *make_outputs("train", 2)):
        tally.add(output)
    equality = summarize_equality(tally.images)
    means = [i.prob.mean for i in tally.images]
    stds = [i.prob.std for i in tally.images]
    assert equality["mean_spread"] == max(means) - min(means)
    assert equality["std_spread"] == max(stds) - min(stds)
    assert equality["train_mean"] == pytest.approx(np.mean(means[4:]))
    assert equality["val_std"] == pytest.approx(np.mean(stds[:4]))
    assert "train_mean" not in summarize_equality(tally.images[:4])


def test_masks_alone_have_no_output_statistics() -> None:
    tally = Tally()
    figures = tally.add(Output("a", "new", np.eye(4, dtype=bool)))
    assert figures.ratio_pred == figures.prob.mean == 0.25
    assert tally.summarize_outputs() == {}
    assert tally.histograms() == ()
    assert tally.sweep() is None


def test_a_record_holds_plain_finite_types(tally: Tally) -> None:
    import json

    from ssl_seg.diagnose.result import Conclusion

    nan = {"a": float("nan"), "b": [float("inf"), 1.0]}
    diagnosis = Diagnosis("x", "predictions", Conclusion("ok", "healthy", ""), (), (), "", "", nan, tuple(tally.images))
    record = diagnosis.to_record()
    assert {"verdict", "findings", "statistics"} <= set(record)
    assert record["statistics"]["a"] is None
    assert record["statistics"]["b"] == [None, 1.0]
    assert len(record["statistics"]["images"]) == len(tally.images)
    json.dumps(record, allow_nan=False)
