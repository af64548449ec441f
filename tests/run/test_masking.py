"""Hidden blocks, their loss, and the look at what is painted."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil

import numpy as np
import pytest
import torch

from ssl_seg.config import AugmentConfig
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.store import CaseStore
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.run.pretraining.masking import (
    BLOCK,
    HIDDEN,
    MaskedSource,
    compute_look,
    compute_masked_loss,
    draw_blocks,
    make_masked_batch,
    make_masked_probe,
)

SIZES = [(64, 64), (63, 65), (128, 96), (16, 16), (17, 40), (2, 5), (32, 64, 64), (7, 31, 33), (16, 32, 32), (1, 8, 9)]


def block_of(size: tuple[int, ...]) -> list[int]:
    return [min(b, max(1, s // 4)) for b, s in zip(BLOCK[len(size)], size, strict=True)]


@pytest.mark.parametrize("size", SIZES)
def test_three_quarters_of_the_blocks_are_hidden_whole(size: tuple[int, ...]) -> None:
    hidden = draw_blocks(size, np.random.default_rng(0))
    assert hidden.shape == size
    block = block_of(size)
    starts = product(*(range(0, s, b) for s, b in zip(size, block, strict=True)))
    blocks = [hidden[tuple(slice(at, at + b) for at, b in zip(start, block, strict=True))] for start in starts]
    assert all(part.all() or not part.any() for part in blocks)
    assert sum(bool(part.all()) for part in blocks) == round(0.75 * len(blocks))
    assert len(blocks) == np.prod([ceil(s / b) for s, b in zip(size, block, strict=True)])


def test_each_draw_hides_other_blocks_and_each_block_as_often() -> None:
    rng = np.random.default_rng(1)
    share = np.mean([draw_blocks((64, 64), rng) for _ in range(400)], axis=0)
    assert np.abs(share - 0.75).max() < 0.1  # 4.6 standard deviations
    assert not np.array_equal(draw_blocks((64, 64), rng), draw_blocks((64, 64), rng))


def make_batch(channels: int = 2, *, gaps: bool = True, seed: int = 0):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(3):
        data = np.ones((32, 32), bool)
        data[:, :5] = not gaps
        patch = rng.normal(size=(channels, 32, 32)).astype(np.float32)
        parts.append((patch, data, draw_blocks((32, 32), rng)))
    return make_masked_batch(parts, ["a", "b", "c"]), parts


def test_the_network_sees_0_in_the_hidden_blocks_and_the_image_elsewhere() -> None:
    batch, parts = make_batch()
    for n, (patch, data, hidden) in enumerate(parts):
        assert (batch.image[n].numpy()[:, hidden] == 0).all()
        assert np.array_equal(batch.image[n].numpy()[:, ~hidden], patch[:, ~hidden])
        assert np.array_equal(batch.weak[n].numpy(), patch)
        assert np.array_equal(batch.target[n].numpy() == HIDDEN, hidden & data)
        assert np.array_equal(batch.target[n].numpy() == IGNORE_INDEX, ~data)


def test_the_loss_is_the_mean_square_over_hidden_voxels_with_data() -> None:
    batch, parts = make_batch()
    output = torch.randn(3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    squares = [
        (output[n, :2].numpy() - patch)[:, hidden & data].ravel() ** 2 for n, (patch, data, hidden) in enumerate(parts)
    ]
    loss = compute_masked_loss(output, batch)
    assert float(loss) == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)
    assert compute_look(output, batch).error == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("bad", [1e6, float("nan"), float("inf")])
def test_visible_voxels_and_gaps_are_not_looked_at(bad: float) -> None:
    batch, _ = make_batch()
    output = torch.zeros(3, 2, 32, 32)
    unseen = (batch.target != HIDDEN).unsqueeze(1).expand_as(output)
    changed = torch.where(unseen, bad, output).requires_grad_()
    loss = compute_masked_loss(changed, batch)
    assert loss.equal(compute_masked_loss(output, batch))
    loss.backward()
    assert changed.grad is not None
    assert torch.isfinite(changed.grad).all()
    assert not changed.grad[unseen].any()
    assert changed.grad[~unseen].any()  # the control: what is hidden is looked at
    whole = torch.where((batch.target == IGNORE_INDEX).unsqueeze(1), 77.0, batch.weak)
    assert compute_look(output, replace(batch, weak=whole)) == compute_look(output, batch)


def test_the_baseline_is_the_mean_of_what_is_visible() -> None:
    batch, parts = make_batch()
    errors, guess = [], torch.zeros_like(batch.weak)
    for n, (patch, data, hidden) in enumerate(parts):
        for c, channel in enumerate(patch):
            guess[n, c] = float(channel[data & ~hidden].mean())
            errors.append((channel[data & hidden] - channel[data & ~hidden].mean()) ** 2)
    look = compute_look(guess, batch)
    assert look.baseline == pytest.approx(np.concatenate(errors).mean(), rel=1e-5)
    assert look.error == pytest.approx(look.baseline, rel=1e-5)
    assert look.gain == pytest.approx(0, abs=1e-5)
    assert look.spread == pytest.approx(0, abs=1e-6)
    perfect = compute_look(batch.weak, batch)
    assert (perfect.error, perfect.gain, perfect.spread) == (0, 1, pytest.approx(1))


def test_nothing_to_score_is_no_error() -> None:
    hidden = draw_blocks((32, 32), np.random.default_rng(0))
    parts = [(np.ones((1, 32, 32), np.float32), np.zeros((32, 32), bool), hidden)]
    batch = make_masked_batch(parts, ["a"])
    assert float(compute_masked_loss(torch.ones(1, 1, 32, 32), batch)) == 0
    look = compute_look(torch.ones(1, 1, 32, 32), batch)
    assert (look.error, look.gain, look.spread) == (0, 0, 0)


def test_patches_are_those_of_the_image_and_gaps_and_what_lies_outside_are_not_scored(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    rng = np.random.default_rng(0)
    for n in range(3):
        image = rng.normal(size=(40, 24)).astype(np.float32)
        image[:8] = np.nan
        np.save(tmp_path / "images" / f"{n}.npy", image)
        np.save(tmp_path / "masks" / f"{n}.npy", (image > 0).astype(np.uint8))
    from ssl_seg.data.reading import make_reading

    catalog = open_catalog(str(tmp_path), CatalogSettings(reading=make_reading({"nonfinite": "ignore"})))
    store, ids = CaseStore(catalog, 1), tuple(case.id for case in catalog.cases)
    probe = make_masked_probe(store, ids, 7, (32, 32), 0)
    assert len(probe.image) == 7  # more than there are images
    source = MaskedSource(store, ids, 3, (32, 32), AugmentConfig(rotation=0, scale=0), 0)
    for batch in (probe, source[0], source[5]):
        assert (batch.target == IGNORE_INDEX).any()  # narrower than the patch, and gaps
        assert (batch.weak[(batch.target == IGNORE_INDEX).unsqueeze(1)].abs() < 1e-5).all()
        covered = (batch.target != IGNORE_INDEX).flatten(1).sum(dim=1)
        assert (covered <= 32 * 24).all()
        assert (covered > 0).all()
    again, other = source[5], source[6]
    assert again.weak.equal(source[5].weak)
    assert again.target.equal(source[5].target)
    assert not again.weak.equal(other.weak)
    assert not again.weak.equal(replace(source, seed=1)[5].weak)
