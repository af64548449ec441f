"""Test-time augmentation and maps of uncertainty."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli
from scipy.stats import entropy
from torch import Tensor, nn

from ssl_seg.data.views.transforms import normalize
from ssl_seg.data.volumes import open_image, read_mask, write_mask
from ssl_seg.files import read_jsonl
from ssl_seg.inference.sliding import Predictor
from ssl_seg.inference.turns import Turn, list_turns
from ssl_seg.results.mask_files import RECORD
from ssl_seg.results.mask_making import compute_entropy

CPU = torch.device("cpu")


class Lopsided(nn.Module):
    """Depends on the neighbor to the right, and on where in the window a voxel lies."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.linspace(0, 1, x.shape[-2]).unsqueeze(-1)
        return torch.cat([x, torch.roll(x, 1, -1) + ramp], dim=1)


@pytest.mark.parametrize("patch", [(6, 6), (6, 8), (4, 6, 6), (4, 6, 8)])
def test_turns_are_all_different_and_undone(patch: tuple[int, ...]) -> None:
    x = torch.arange(float(np.prod(patch))).reshape(1, 1, *patch)
    turns = list_turns(patch, None)
    seen = {tuple(turn.apply(x).flatten().tolist()) for turn in turns}
    assert len(seen) == len(turns) == 2 ** len(patch) * (2 if patch[-1] == patch[-2] else 1)
    for turn in turns:
        torch.testing.assert_close(turn.undo(turn.apply(x)), x, rtol=0, atol=0)


@pytest.mark.parametrize(("spacing", "count"), [(None, 16), ((3.0, 1.0, 1.0), 16), ((1.0, 1.0, 2.0), 8)])
def test_voxels_that_are_not_square_are_not_turned(spacing: tuple[float, ...] | None, count: int) -> None:
    assert len(list_turns((4, 6, 6), spacing)) == count


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 6, 6)])
def test_the_mean_and_variance_of_a_single_window(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(100, 40, shape).astype(np.float32)
    patch = shape[1:]
    predictor = Predictor(Lopsided(), patch, CPU, nullcontext, turns=list_turns(patch, None), spread=True)
    x, each = torch.from_numpy(normalize(image))[None], []
    for quarter in (0, 1):
        for flips in np.ndindex(*(2,) * len(patch)):
            axes = [n + 2 for n, flip in enumerate(flips) if flip]
            probs = Lopsided()(x.flip(axes).rot90(quarter, (-2, -1))).softmax(dim=1)
            each.append(probs.rot90(-quarter, (-2, -1)).flip(axes)[0].numpy())
    found = predictor(image)
    np.testing.assert_allclose(found[:2], np.mean(each, axis=0), atol=1e-6)
    np.testing.assert_allclose(found[2], np.var([own[1] for own in each], axis=0), atol=1e-6)
    assert found[2].max() > 1e-3


def test_a_mirrored_image_gives_the_mirrored_probabilities() -> None:
    image = np.random.default_rng(0).normal(100, 40, (1, 27, 27)).astype(np.float32)
    plain = Predictor(Lopsided(), (9, 9), CPU, nullcontext, 0)
    turned = replace(plain, turns=list_turns((9, 9), None))
    np.testing.assert_allclose(turned(image[:, :, ::-1])[:, :, ::-1], turned(image), atol=1e-6)
    assert np.abs(plain(image[:, :, ::-1])[:, :, ::-1] - plain(image)).max() > 0.01
    np.testing.assert_array_equal(replace(plain, turns=(Turn(),))(image), plain(image))


@pytest.mark.parametrize("classes", [2, 5])
def test_entropy(classes: int) -> None:
    probs = np.random.default_rng(0).dirichlet(np.ones(classes), 50).T.astype(np.float32)
    probs[:, 0], probs[:, 1] = 1 / classes, np.eye(classes)[0]
    np.testing.assert_allclose(compute_entropy(probs), entropy(probs, base=classes, axis=0), atol=1e-6)
    assert compute_entropy(probs)[0] == pytest.approx(1)
    assert compute_entropy(probs)[1] == 0


class TestCommand:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        write_mask(tmp_path / "a.png", np.random.default_rng(0).integers(0, 200, (70, 50)))
        return tmp_path / "a.png"

    def read(self, path: Path) -> np.ndarray[Any, Any]:
        return open_image(str(path)).read()[0]

    def test_maps(self, cli: Cli, tiny_run: Path, image: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        code, _, err = cli("predict", tiny_run, image, out, "--probabilities", "--uncertainty", "--tta")
        assert (code, re.search("error", err)) == (0, None)
        probs, doubt, variance = (self.read(out / f"a_{name}.tif") for name in ("prob", "entropy", "variance"))
        np.testing.assert_allclose(doubt, entropy([probs, 1 - probs], base=2, axis=0), atol=1e-5)
        assert 0 < variance.max() <= 0.25
        assert json.loads(json.dumps(read_jsonl(out / RECORD)[0]["settings"]))["tta"] is True
        np.testing.assert_array_equal(read_mask(str(out / "a.png")) > 0, probs > 0.5)

    def test_one_network_once_has_no_variance(self, cli: Cli, tiny_run: Path, image: Path, tmp_path: Path) -> None:
        assert cli("predict", tiny_run, image, tmp_path / "out", "--uncertainty")[0] == 0
        assert sorted(path.name for path in (tmp_path / "out").glob("a*")) == ["a.png", "a_entropy.tif"]

    def test_networks_have_a_variance(self, cli: Cli, tiny_run: Path, image: Path, tmp_path: Path) -> None:
        best, last = (tiny_run / "checkpoints" / name for name in ("best.pt", "last.pt"))
        each = []
        for number, net in enumerate((best, last)):
            assert cli("predict", net, image, tmp_path / str(number), "--probabilities")[0] == 0
            each.append(self.read(tmp_path / str(number) / "a_prob.tif"))
        assert cli("predict", best, image, tmp_path / "both", "--with", last, "--uncertainty")[0] == 0
        np.testing.assert_allclose(self.read(tmp_path / "both" / "a_variance.tif"), np.var(each, axis=0), atol=1e-6)

    def test_probabilities_of_8_bits(self, cli: Cli, tiny_run: Path, image: Path, tmp_path: Path) -> None:
        for name, option in (("real", "--probabilities"), ("small", "--uint8")):
            assert cli("predict", tiny_run, image, tmp_path / name, option)[0] == 0
        real, small = (self.read(tmp_path / name / "a_prob.tif") for name in ("real", "small"))
        assert small.dtype == np.uint8
        np.testing.assert_array_equal(small, np.round(real * 255))
        code, _, err = cli("predict", tiny_run, image, tmp_path / "real", "--uint8")
        assert code == 2
        assert "uint8 as by default and not True" in err
