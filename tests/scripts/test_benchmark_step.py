"""scripts/benchmark_step.py: the bare loop makes the passes of the method, and on networks of its own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from benchmark_step import FIRST_STEP, list_networks, make_bare_step, make_trial, record_passes

OPTIONS = argparse.Namespace(
    network="dynunet", features=2, patch=[16, 16], labeled=3, unlabeled=2, precision="fp32", blocks=2
)
PASSES = {
    "supervised": [("student", 3, True)],
    "mean_teacher": [("student", 5, True), ("teacher", 2, False)],
    "fixmatch": [("teacher", 2, False), ("student", 5, True)],
    "cps": [("student", 2, False), ("student", 5, True)],
    "uamt": [("student", 5, True), *[("teacher", 2, False)] * 9],
    "bcp": [("teacher", 2, False), ("student", 6, True)],
    "ad_mt": [("student", 5, True), ("own", 2, False)],
}
"""Network, patches, and whether gradients are kept; counted by hand from the formulas."""


@pytest.mark.parametrize("name", PASSES)
def test_the_passes_of_a_method(name: str) -> None:
    engine, batch = make_trial(name, OPTIONS)
    names = dict(zip(list_networks(engine), ("student", "teacher", "own"), strict=False))
    passes = record_passes(engine, batch)
    assert [(names[one.network], len(one.inputs[0]), one.learns) for one in passes] == PASSES[name]


def test_the_bare_loop_trains_networks_of_its_own() -> None:
    engine, batch = make_trial("mean_teacher", OPTIONS)
    passes = record_passes(engine, batch)
    student, teacher = list_networks(engine)
    before = [parameter.clone() for parameter in student.parameters()]
    seen: list[nn.Module] = []
    for network in (student, teacher):
        network.register_forward_pre_hook(lambda own, _: seen.append(own))  # copies take their hooks along
    step = make_bare_step(engine, batch, passes)
    step(FIRST_STEP)
    assert all(torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
    assert len(seen) == 2
    assert not {student, teacher} & set(seen)
    assert not any(torch.equal(old, new) for old, new in zip(before, seen[0].parameters(), strict=True))
