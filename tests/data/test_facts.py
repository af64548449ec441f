"""What reading a case shows, in one piece and block by block."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ssl_seg.data import blocks, mask_values
from ssl_seg.data.blocks import iterate_blocks
from ssl_seg.data.content import IMAGE_DIGITS
from ssl_seg.data.facts import THUMBNAIL_SIZE, CaseFacts, SizeMismatchError, read_facts, settle_facts
from ssl_seg.data.layouts.listing import Case
from ssl_seg.data.reading import Reading
from ssl_seg.data.volumes import open_image
from ssl_seg.errors import DataError
from ssl_seg.labels import Meaning


def save(path: Path, array: NDArray[Any]) -> str:
    np.save(path, array)
    return str(path)


def facts_of(folder: Path, image: NDArray[Any], mask: NDArray[Any] | None = None, **labels: Any) -> CaseFacts:
    location = save(folder / "image.npy", image)
    facts = read_facts(Case("a", location, None if mask is None else save(folder / "mask.npy", mask), None))
    return settle_facts(facts, Meaning(**labels))


class TestBlocks:
    @settings(deadline=None, max_examples=30)
    @given(channels=st.integers(1, 3), rows=st.integers(2, 9), block_bytes=st.integers(1, 200))
    def test_they_are_each_channel_in_c_order(
        self, tmp_path_factory: pytest.TempPathFactory, channels: int, rows: int, block_bytes: int
    ) -> None:
        image = np.arange(channels * rows * 5 * 6, dtype=np.uint16).reshape(channels, rows, 5, 6)
        stored = open_image(save(tmp_path_factory.mktemp("blocks") / "a.npy", image), reading=Reading("CZYX"))
        assert stored.by_box
        found = list(iterate_blocks(stored, block_bytes))
        for channel in range(channels):
            own = b"".join(b.voxels.tobytes() for b in found if b.channel == channel)
            assert own == image[channel].tobytes()
        for block in found:
            np.testing.assert_array_equal(
                block.voxels, image[block.channel, block.start : block.start + len(block.voxels)]
            )
        assert all(channels * b.voxels.nbytes <= block_bytes or len(b.voxels) == 1 for b in found)


@pytest.mark.parametrize("classes", [2, 3, 4, 9])  # a block has one value more; up to four are looked for one by one
@pytest.mark.parametrize("block_bytes", [2**21, 900])
def test_the_labeled_box_is_the_smallest_that_holds_all_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: int, block_bytes: int
) -> None:
    monkeypatch.setattr(mask_values, "BLOCK_BYTES", block_bytes)
    mask = np.full((12, 20, 18), 255, np.uint8)
    mask[3:9, 2:19, 7:8] = np.random.default_rng(0).integers(0, classes, (6, 17, 1))
    mask[4, 2:19, 7] = 255
    found = np.argwhere(mask != 255)
    facts = facts_of(tmp_path, mask, mask, ignore_value=255, label_values=tuple(range(classes)))
    assert facts.labeled_box == tuple(zip(found.min(0), found.max(0) + 1, strict=True))
    whole = facts_of(tmp_path, mask, mask, label_values=(*range(classes), 255))
    assert whole.labeled_box == tuple((0, n) for n in mask.shape)


class TestAppearance:
    @pytest.mark.parametrize("shape", [(40, 70), (10, 40, 20), (2, 12, 20, 18)])
    @pytest.mark.parametrize("block_bytes", [2**30, 900])
    def test_statistics_are_numpys(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], block_bytes: int
    ) -> None:
        monkeypatch.setattr(blocks.iterate_blocks, "__defaults__", (block_bytes,))
        image = np.random.default_rng(0).integers(1000, 1050, shape).astype(np.uint16)
        image.flat[:7] = 999
        found = facts_of(tmp_path, image).appearance
        assert found is not None
        assert (found.low, found.high) == (999, image.max())
        assert found.mean == pytest.approx(image.mean(dtype=np.float64))
        assert found.std == pytest.approx(image.std(dtype=np.float64))
        assert found.at_low == pytest.approx(7 / image.size)
        assert found.at_high == pytest.approx((image == image.max()).mean())

    def test_a_large_mean_does_not_swallow_the_deviation(self, tmp_path: Path) -> None:
        image = (1e7 + np.random.default_rng(1).normal(size=(64, 64))).astype(np.float64)
        found = facts_of(tmp_path, image).appearance
        assert found is not None
        assert found.std == pytest.approx(image.std(), rel=1e-6)

    @pytest.mark.parametrize("shape", [(64, 96), (100, 77), (20, 20)])
    def test_the_thumbnail_is_an_area_mean(self, tmp_path: Path, shape: tuple[int, int]) -> None:
        image = np.random.default_rng(2).integers(0, 255, shape).astype(np.uint8)
        found = facts_of(tmp_path, image).appearance
        assert found is not None
        fine = np.kron(image.astype(np.float32), np.ones((32, 32), np.float32))  # each cell is a whole number of these
        expected = cv2.resize(fine, THUMBNAIL_SIZE[2], interpolation=cv2.INTER_AREA)
        np.testing.assert_allclose(found.thumbnail, expected - image.mean(), atol=0.01)

    def test_of_a_volume(self, tmp_path: Path) -> None:
        image = np.random.default_rng(3).integers(0, 255, (32, 48, 16)).astype(np.uint8)
        found = facts_of(tmp_path, image).appearance
        assert found is not None
        expected = image.reshape(16, 2, 16, 3, 16, 1).mean(axis=(1, 3, 5))
        np.testing.assert_allclose(found.thumbnail, expected - image.mean(), atol=1e-3)

    def test_a_constant_added_to_an_image_leaves_the_thumbnail(self, tmp_path: Path) -> None:
        image = np.random.default_rng(4).normal(size=(64, 64))
        near, far = (facts_of(tmp_path, image + offset).appearance for offset in (0, 1e8))
        assert near is not None
        assert far is not None
        np.testing.assert_allclose(far.thumbnail, near.thumbnail, atol=1e-6)

    @pytest.mark.parametrize("values", [(0.1, 0.1, 0.1), (0.1, 17.3, -2e7)])
    def test_the_thumbnail_of_constant_channels_is_zero(self, tmp_path: Path, values: tuple[float, ...]) -> None:
        found = facts_of(tmp_path, np.broadcast_to(np.array(values).reshape(3, 1, 1, 1), (3, 9, 11, 7))).appearance
        assert found is not None
        assert not found.thumbnail.any()


class TestMasks:
    def test_values_counts_and_foreground(self, tmp_path: Path) -> None:
        mask = np.zeros((10, 10), np.uint8)
        mask[0], mask[1, :5] = 7, 255
        facts = facts_of(tmp_path, mask + 1, mask, ignore_value=255)
        assert (facts.values, facts.counts) == ((0, 7, 255), (85, 10, 5))
        assert facts.foreground == pytest.approx(10 / 95)

    def test_the_map_comes_first(self, tmp_path: Path) -> None:
        mask = np.repeat(np.array([0, 1, 2, 9], np.uint8), 25).reshape(10, 10)
        facts = facts_of(tmp_path, mask + 1, mask, label_map={2: 1, 9: 3}, ignore_value=3)
        assert facts.mapped == (2, 9)
        assert (facts.values, facts.counts) == ((0, 1, 3), (25, 50, 25))
        assert facts.foreground == pytest.approx(50 / 75)

    def test_all_ignored_is_no_mask(self, tmp_path: Path) -> None:
        mask = np.full((4, 4), 255, np.uint8)
        facts = facts_of(tmp_path, mask, mask, ignore_value=255)
        assert (facts.foreground, facts.values, facts.counts, facts.annotated) == (None, None, None, 0)

    def test_sizes_must_agree(self, tmp_path: Path) -> None:
        with pytest.raises(SizeMismatchError, match=r"mask\.npy: the mask is 4 x 5, its image 4 x 6"):
            facts_of(tmp_path, np.zeros((4, 6), np.uint8), np.zeros((4, 5), np.uint8))
        with pytest.raises(
            SizeMismatchError, match=r"If only a part of the image is labeled, .*data\.ignore_value=255"
        ):
            facts_of(tmp_path, np.zeros((4, 6), np.uint8), np.zeros((4, 5), np.uint8))
        with pytest.raises(SizeMismatchError, match=r"the same size\.$"):
            facts_of(tmp_path, np.zeros((4, 6), np.uint8), np.zeros((5, 5), np.uint8))
        assert issubclass(SizeMismatchError, DataError)


class TestContent:
    def test_it_is_that_of_the_decoded_arrays(self, tmp_path: Path) -> None:
        image, mask = np.arange(12, dtype=np.uint8).reshape(3, 4), np.eye(3, 4, dtype=np.uint8)
        expected = hashlib.sha256(b"uint8 (1, 3, 4)" + image.tobytes()).hexdigest()[:IMAGE_DIGITS]
        expected += hashlib.sha256(b"uint8 (3, 4)" + mask.tobytes()).hexdigest()[:4]
        assert facts_of(tmp_path, image, mask).content == expected
        cv2.imwrite(str(tmp_path / "a.png"), image)
        cv2.imwrite(str(tmp_path / "b.png"), mask)
        assert read_facts(Case("a", str(tmp_path / "a.png"), str(tmp_path / "b.png"), None)).content == expected

    def test_what_changes_it(self, tmp_path: Path) -> None:
        image = np.arange(12, dtype=np.uint8).reshape(3, 4)
        bare = facts_of(tmp_path, image).content
        assert bare.endswith("0000")
        assert facts_of(tmp_path, image, image // 9).content[:IMAGE_DIGITS] == bare[:IMAGE_DIGITS]
        assert facts_of(tmp_path, image, image // 9).content != facts_of(tmp_path, image, image // 8).content
        for other in (image[::-1], image.reshape(4, 3), image.astype(np.uint16)):
            assert facts_of(tmp_path, np.ascontiguousarray(other)).content != bare


def test_channels_in_files_of_their_own(tmp_path: Path) -> None:
    first, second = (np.full((6, 6, 6), value, np.uint8) for value in (10, 30))
    more = (save(tmp_path / "b.npy", second),)
    facts = read_facts(Case("a", save(tmp_path / "a.npy", first), None, None, more))
    assert facts.channels == 2
    assert facts.appearance is not None
    assert facts.appearance.mean == 20
    assert not facts.appearance.thumbnail.any()
