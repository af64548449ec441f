"""scripts/simulate_suggest.py: what it trains with and compares, and that an interrupted training is no score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import simulate_suggest
import trainings

from ssl_seg.config.layers import Layer
from ssl_seg.data.splits.files import load_split
from ssl_seg.data.splits.split import Split

SPLIT = Split(
    "d", 0, {0.5: ("a", "b"), 1.0: ("a", "b", "c", "d")}, (), ("v",), (), {}, dict.fromkeys("abcdv", "0" * 16), ()
)


def test_the_chosen_cases_are_the_labeled_ones() -> None:
    ordered = simulate_suggest.order_pool(SPLIT, ["d", "b"])
    assert ordered == replace(SPLIT, fractions={1.0: ("d", "b", "a", "c")})
    assert ordered.labeled_ids(2) == ("d", "b")


def test_strategies_are_compared_with_random_ones_seed_by_seed() -> None:
    scores = {"random": {4: [0.5, 0.6], 8: [0.6, 0.7]}, "uncertainty": {4: [0.5, 0.6], 8: [0.7, 0.9]}}
    rows = {(row["strategy"], row["labels"]): row for row in simulate_suggest.compare(scores)}
    later = rows["uncertainty", 8]
    assert (later["f1"], later["difference"]) == (pytest.approx(0.8), pytest.approx(0.15))
    half = 12.706205 * 0.05  # Student's t with one degree of freedom, and the standard error of 0.1 and 0.2
    assert (later["low"], later["high"]) == (pytest.approx(0.15 - half), pytest.approx(0.15 + half))
    assert "low" not in rows["uncertainty", 4]  # the first training is the same for all
    assert "difference" not in rows["random", 8]


def test_a_choice_that_the_split_check_refuses_is_trained_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy that chooses images with much foreground would end the simulation in the middle."""
    given: list[Any] = []

    def train_once(out: Path, layers: Any, **_: Any) -> Any:
        given.extend(layers)
        return SimpleNamespace(best=out)

    loaded = SimpleNamespace(scores={"selected": {"net": "teacher"}, "teacher": {"f1_macro": 0.5}})
    monkeypatch.setattr(simulate_suggest, "train_once", train_once)
    monkeypatch.setattr(simulate_suggest, "load_checkpoint", lambda *_, **__: loaded)
    layer = Layer("--set", {"optim": {"lr": 0.1}})
    assert simulate_suggest.train_with(SPLIT, ["d", "b"], tmp_path / "run", (layer,), 3) == 0.5
    assert given[0] is layer
    assert given[1].values["split"]["allow_faults"] is True
    assert (given[1].values["seed"], given[1].values["split"]["labels"]) == (3, 2)


def test_an_interrupted_training_ends_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "seed0" / "start"
    monkeypatch.setattr(trainings, "train", lambda *_: SimpleNamespace(ending="interrupted"))
    with pytest.raises(KeyboardInterrupt):
        simulate_suggest.train_with(SPLIT, ["d", "b"], out, (), 0)
    assert load_split(out.with_suffix(".split.yaml")).labeled_ids(2) == ("d", "b")
