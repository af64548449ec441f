"""What a diagnosis keeps, shows and samples, on both sides of each limit, against all values at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from forking import HOURS
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sizes import around

from ssl_seg.diagnose import examples, inputs, prediction_files
from ssl_seg.diagnose.causes import DiagnosisFacts, Subject, _suspect_layers
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.examples import choose_examples, keep_candidates, make_example
from ssl_seg.diagnose.inputs import NetworkInputs
from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions
from ssl_seg.diagnose.result import Example
from ssl_seg.diagnose.tally import Output, Tally
from ssl_seg.errors import counted
from ssl_seg.labels import Meaning


def example(number: int, part: str, f1: float | None) -> Example:
    pred = np.zeros((2, 2), np.bool_)
    return Example(f"{part}{number}", part, None, None, None, pred, f1)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, *around(examples.SHOWN), *around(24), 200])
def test_examples_are_chosen_among_all_images_and_few_are_kept(count: int, seed: int) -> None:
    """At most 25 of images that come one by one are kept: the worst, one in the middle and the best are chosen, and of
    the other parts the same as from all at once."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        part = str(rng.choice(["val", "train", "new"]))
        made.append(example(number, part, None if part == "new" else round(float(rng.random()), 1)))
    kept: list[Example] = []
    for one in made:
        scores = [e.f1 for e in made[: made.index(one) + 1] if e.part == "val" and e.f1 is not None]
        kept = keep_candidates([*kept, one], float(np.median(scores)) if scores else 0.0)
    assert len(kept) <= 3 * examples.SHOWN + 1 + examples.NEAR_MEDIAN
    scored = sorted(e.f1 for e in made if e.part == "val" and e.f1 is not None)
    median = float(np.median(scored)) if scored else 0.0
    chosen = choose_examples(kept, median)
    assert [e.id for e in chosen if e.part != "val"] == [e.id for e in choose_examples(made, median) if e.part != "val"]
    own = [e.f1 for e in chosen if e.part == "val"]
    if scored:
        assert own[0] == scored[0]
    if len(scored) > 2:
        assert scored[(len(scored) - 1) // 3] <= own[1] <= scored[-1 - (len(scored) - 1) // 3]
        assert own[2] == scored[-1]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 51])
def test_the_median_of_all_scored_images_is_known_at_any_time(count: int) -> None:
    """Images of training do not count; half of each mask is predicted."""
    rng, tally = np.random.default_rng(count), Tally()
    tally.add(Output("t", "train", np.ones((8, 8), bool), target=np.ones((8, 8), np.int64)))
    scores = []
    for number in range(count):
        pred = rng.random((8, 8)) < rng.random()
        found = tally.add(Output(str(number), "val", pred, target=np.ones((8, 8), np.int64)))
        scores.append(found.f1)
        assert tally.median == pytest.approx(float(np.median(scores)))  # type: ignore[arg-type]
    assert count or tally.median == 0


@pytest.mark.parametrize("count", [1, 23, 24, 25, 75])
def test_the_worst_and_the_best_image_of_a_folder_are_shown(tmp_path: Path, count: int) -> None:
    """They are the last two that are read."""
    truth = np.zeros((16, 16), np.uint8)
    truth[4:12, 4:12] = 1
    order = np.random.default_rng(0).permutation(count)
    for folder in ("pred", "true"):
        (tmp_path / folder).mkdir()
    for place, n in enumerate(order):
        pred = np.roll(truth, {count - 1: 8, count - 2: 0}.get(place, 3), axis=0)
        tifffile.imwrite(tmp_path / "pred" / f"{n:03d}.tif", pred)
        tifffile.imwrite(tmp_path / "true" / f"{n:03d}.tif", truth)
    request = PredictionsRequest(tmp_path / "pred", tmp_path / "true", seed=0)
    found = diagnose_predictions(request, clock=Clock(HOURS))
    assert found.examples[0].f1 == 0.0
    assert found.examples[0].id == f"{order[-1]:03d}"
    if count > 1:
        ordinary, best = found.examples[1:3]
        assert (best.f1, best.id) == (1.0, f"{order[-2]:03d}")
        assert ordinary.f1 == pytest.approx(0.625)  # rolled by 3 of 8 rows, as all others


@pytest.mark.parametrize("size", [*around(examples.MAX_SIDE), 3 * examples.MAX_SIDE + 1])
def test_a_line_one_pixel_wide_is_in_the_picture_of_an_image_of_any_size(size: int) -> None:
    """A missed one on an odd row, a false one on an odd column, and one that is found; what is ignored is no error."""
    truth, pred = np.zeros((size, 50), np.int64), np.zeros((size, 50), np.int64)
    truth[size // 2 + 1, :20] = 1
    pred[11:14, 30] = 1
    truth[5, 30:] = pred[5, 30:] = 1
    truth[-1] = -100
    shown = make_example("a", "val", np.zeros((1, size, 50)), truth, pred.astype(np.float32), pred)
    assert shown.truth is not None
    assert max(shown.truth.shape) == -(-size // -(-size // examples.MAX_SIDE)) <= examples.MAX_SIDE
    missed, false = ((shown.truth > 0) & (shown.pred == 0)).sum(axis=0), (shown.truth == 0) & (shown.pred > 0)
    assert missed.tolist() == [1] * 20 + [0] * 30
    assert false.any(axis=0).nonzero()[0].tolist() == [30]
    assert ((shown.truth > 0) & (shown.pred > 0)).any(axis=0).tolist() == [False] * 30 + [True] * 20
    assert shown.prob is not None
    np.testing.assert_array_equal(shown.prob, shown.pred)


@pytest.mark.parametrize("shapes", around(4))
def test_maps_of_all_shapes_together_are_bounded(shapes: int) -> None:
    """Each shape has 6 voxels more than the one before; the room is that of the first four."""
    tally = Tally(map_voxels=6 * (1 + 2 + 3 + 4))
    for shape in range(1, shapes + 1):
        for n in range(3):
            tally.add(Output(f"{shape}-{n}", "val", np.eye(2 * shape, 3, dtype=np.bool_)))
    found = [one.summarize() for one in tally.shapes.values()]
    assert [row["never"] is not None for row in found] == [shape <= 4 for shape in range(1, shapes + 1)]
    assert sum(one.counts.size for one in tally.shapes.values() if one.counts is not None) <= 60
    for shape, row in enumerate(found, start=1):
        predicted = np.eye(2 * shape, 3).mean()
        assert (row["images"], row["ratio"]) == (3, pytest.approx(predicted))
        if row["never"] is not None:
            assert (row["always"], row["never"]) == (pytest.approx(predicted), pytest.approx(1 - predicted))


@pytest.mark.parametrize("voxels", around(500))
def test_the_rank_correlation_of_all_voxels_or_of_a_sample(voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "RANKED_VOXELS", 500)
    rng = np.random.default_rng(voxels)
    raw = rng.normal(size=(1, voxels))
    fed = (raw + rng.normal(size=raw.shape)).astype(np.float32)
    expected = spearmanr(raw.ravel(), fed.ravel()).statistic
    found = NetworkInputs(raw, fed, fed).rank_correlation(0)
    assert found == pytest.approx(expected, abs=1e-9 if voxels <= 500 else 0.1)


def test_a_small_image_of_few_values_is_not_called_constant() -> None:
    raw = np.array([[0, 0, 0, 1]])
    assert [NetworkInputs(raw, raw * 1.0, raw * 1.0).rank_correlation(seed) for seed in range(20)] == [
        pytest.approx(1.0)
    ] * 20


EMPTY = np.zeros((16, 16), np.float32)
SHADES = {
    "probability": np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16),
    "gray8": np.arange(256, dtype=np.uint8).reshape(16, 16),
    "gray16": (257 * np.arange(256)).astype(np.uint16).reshape(16, 16),
    "mask": np.eye(16, dtype=np.uint8),
}


def kind_of(folder: Path, images: list[NDArray[np.generic]]) -> str:
    folder.mkdir()
    for n, image in enumerate(images):
        tifffile.imwrite(folder / f"{n:03d}.tif", image)
    return prediction_files.recognize(prediction_files.find_predictions(folder), Meaning())


@pytest.mark.parametrize("kind", SHADES)
@pytest.mark.parametrize("count", [1, *around(3)])
def test_one_telling_file_among_empty_ones_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, kind: str
) -> None:
    """Most predictions may be empty, and an empty one says nothing about the others."""
    monkeypatch.setattr(prediction_files, "SAMPLE", 3)
    shades = SHADES[kind]
    for place in range(count):
        images: list[NDArray[np.generic]] = [EMPTY.astype(shades.dtype) for _ in range(count)]
        images[place] = shades
        assert kind_of(tmp_path / str(place), images) == kind


@pytest.mark.parametrize(("values", "kind"), [(15, "mask"), (16, "mask"), (17, "gray8"), (64, "gray8")])
def test_how_many_gray_values_make_probabilities(tmp_path: Path, values: int, kind: str) -> None:
    image = np.resize(np.linspace(0, 255, values).astype(np.uint8), (16, 16))
    assert kind_of(tmp_path / "p", [image] * 3) == kind


@pytest.mark.parametrize("count", around(2))
def test_evidence_that_is_cut_says_how_much_more_there_is(count: int) -> None:
    names = [f"layer{n}" for n in range(count)]
    actions = [{"step": n, "action": "lr_reduced"} for n in range(count)]
    layers = {"zero_weights": names, "non_finite_weights": names}
    facts = DiagnosisFacts(
        (),
        {"layers": layers, "run": {"directory": "runs/a", "actions": actions}},
        Subject(Path("runs/a/best.pt"), "data"),
    )
    suspect = _suspect_layers(facts)
    assert suspect is not None
    named = ", ".join([*(f"'{name}'" for name in names[:2]), *[f"... ({count - 2} more)"] * (count > 2)])
    assert suspect.evidence == [f"all weights of {named} are 0", f"there is NaN or infinity in {named}"]
    told = [f"step {n}: lr_reduced" for n in range(min(count, 2))]
    assert facts.list_history() == told + [f"and {counted(count - 2, 'further action')}"] * (count > 2)
