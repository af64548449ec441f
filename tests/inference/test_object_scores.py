"""Scores of objects beside those of voxels: from the probabilities of a case to the summary and back from JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ssl_seg.data.instances import make_target
from ssl_seg.data.store import WholeCase
from ssl_seg.inference.scoring import Score, pack_cases, parse_cases, score_case
from ssl_seg.labels import IGNORE_INDEX, Task
from ssl_seg.report.score_cells import make_object_rows

TOUCHING = np.repeat([[0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 3, 3, 3, 3]], 6, axis=0).astype(np.int32)
TOUCHING[0] = TOUCHING[-1] = 0


def score(
    objects: NDArray[np.int32], classes: NDArray[Any], task: Task = "instances", *, broken: NDArray[Any] | None = None
) -> Score:
    probs = np.eye(3 if task == "instances" else 2, dtype=np.float32)[classes].transpose(2, 0, 1)
    if broken is not None:
        probs[:, broken] = np.nan
    target = make_target(objects) if task == "instances" else np.where(objects > 0, 1, objects).astype(np.int16)
    case = WholeCase(np.zeros((1, *objects.shape)), target, None)
    return Score((score_case("a", case, probs, objects=objects, task=task),))


def test_a_perfect_network_finds_all_and_connected_parts_do_not() -> None:
    found = score(TOUCHING, make_target(TOUCHING)).objects
    assert found is not None
    assert (found["true"], found["pred"], found["f1_90"], found["ap"]) == (3, 3, 1.0, 1.0)
    assert found["trivial"]["connected"]["pred"] == 2
    assert found["trivial"]["connected"]["f1_50"] == pytest.approx(2 * 1 / (3 + 2)), "two that touch are one part"
    assert found["trivial"]["whole"] == {"pred": 1, "f1_50": 0.0, "ap": 0.0, "pq": 0.0}


def test_parts_are_the_objects_of_classes() -> None:
    found = score(TOUCHING, (TOUCHING > 0).astype(int), "semantic").objects
    assert found is not None
    assert (found["pred"], found["f1_50"]) == (2, pytest.approx(2 / 5))
    assert set(found["trivial"]) == {"whole"}


def test_one_object_is_the_whole_image() -> None:
    one = np.ones((4, 5), np.int32)
    found = score(one, np.zeros((4, 5), int)).objects
    assert found is not None
    assert (found["f1_50"], found["trivial"]["whole"]["f1_50"]) == (0.0, 1.0)


def test_ignored_voxels_are_in_no_object() -> None:
    objects = TOUCHING.copy()
    objects[:, 11:] = IGNORE_INDEX
    classes = np.where(objects == IGNORE_INDEX, 1, make_target(TOUCHING))
    found = score(objects, classes).objects
    assert found is not None
    assert (found["true"], found["pred"], found["f1_90"]) == (2, 2, 1.0)


def test_nan_is_no_object() -> None:
    found = score(TOUCHING, make_target(TOUCHING), broken=TOUCHING == 3).objects
    assert found is not None
    assert (found["pred"], found["matched"]) == (2, 2)


def test_the_summary_has_them_and_json_keeps_them() -> None:
    own = score(TOUCHING, make_target(TOUCHING))
    back = parse_cases(json.loads(json.dumps(pack_cases(own))))
    assert back.summarize() == own.summarize()
    assert own.summarize()["objects"]["pq"] == 1.0
    assert make_object_rows(own.summarize()["objects"])[-1]["score"] == "PQ (mean of 1 image)"
    case = own.summarize()["cases"][0]
    assert [case[f"objects_{name}"] for name in ("true", "pred", "matched", "ap", "pq")] == [3, 3, 3, 1.0, 1.0]
    missed = score(TOUCHING, np.where(TOUCHING == 3, make_target(TOUCHING), 0)).summarize()
    for name in ("ap", "pq"):
        assert missed["cases"][0][f"objects_{name}"] == pytest.approx(missed["objects"][name]) != 1.0
    nothing = score(np.zeros((4, 4), np.int32), np.zeros((4, 4), int)).summarize()["cases"][0]
    assert nothing["objects_ap"] is nothing["objects_pq"] is None


def test_without_numbers_there_are_none() -> None:
    probs = np.eye(2, dtype=np.float32)[(TOUCHING > 0).astype(int)].transpose(2, 0, 1)
    case = WholeCase(np.zeros((1, *TOUCHING.shape)), (TOUCHING > 0).astype(np.int16), None)
    own = Score((score_case("a", case, probs),))
    assert own.objects is None
    assert "objects" not in own.summarize()
    assert "objects" not in pack_cases(own)[0]
