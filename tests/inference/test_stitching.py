"""Windows over images of any size: their places, weights and means, against MONAI and closed forms."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from sizes import around
from torch import Tensor, nn

from ssl_seg.data.views.transforms import MEASURED_VOXELS, measure_intensity, measure_parts
from ssl_seg.inference import stitching
from ssl_seg.inference.sliding import Predictor
from ssl_seg.inference.stitching import Box, Windows, divide_laterally, place_windows, stitch, weigh_voxels

CPU = torch.device("cpu")
Shape = tuple[int, ...]


def whole(shape: Shape) -> Box:
    return tuple(slice(0, size) for size in shape)


def run(image: NDArray[Any], windows: Windows, box: Box, batch_size: int, forward: Callable[[Tensor], Tensor]) -> Any:
    """Return the rows of a box, one behind the other; each is read once, in order."""
    read: list[slice] = []

    def fetch(part: Box) -> NDArray[np.float32]:
        read.append(part[0])
        return np.asarray(image[(slice(None), *part)])

    pieces = list(stitch(fetch, forward, windows, box, device=CPU, batch_size=batch_size))
    assert all(a.stop <= b.start for a, b in itertools.pairwise(read))
    assert [first for first, _ in pieces] == list(
        np.cumsum([box[0].start, *(rows.shape[1] for _, rows in pieces)])[:-1]
    )
    return np.concatenate([rows for _, rows in pieces], axis=1)


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Shape, Shape, float, int]:
    """An image of up to three windows an axis, the window, any overlap, and a batch size."""
    ndim = draw(st.sampled_from([2, 3]))
    patch = draw(st.tuples(*[st.integers(1, 8 if ndim == 2 else 5)] * ndim))
    shape = tuple(draw(st.integers(1, 3 * size + 1)) for size in patch)
    return shape, patch, draw(st.floats(0, 0.99)), draw(st.sampled_from([1, 2, 3, 8, 100]))


class Mixing(nn.Module):
    """What it says of a voxel depends on where in the window that lies, and on its neighbors."""

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.arange(math.prod(x.shape[2:]), dtype=torch.float32).reshape(x.shape[2:]) / 50
        return torch.stack([x[:, 0] * ramp, torch.roll(x[:, 0], 1, -1) - ramp, torch.roll(x[:, 0], 1, -2)], dim=1)


@settings(deadline=None, max_examples=100)
@given(layouts(), st.integers(0, 100))
def test_it_is_monais_mean_of_the_windows(layout: tuple[Shape, Shape, float, int], seed: int) -> None:
    shape, patch, overlap, batch_size = layout
    image = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    expected = sliding_window_inference(torch.from_numpy(image)[None], patch, 1, Mixing(), overlap, mode="gaussian")
    windows = place_windows(shape, patch, overlap)
    np.testing.assert_allclose(
        run(image, windows, whole(shape), batch_size, Mixing()), expected[0].numpy(), atol=1e-5, rtol=1e-5
    )


@settings(deadline=None, max_examples=100)
@given(layouts(), st.data())
def test_an_identity_gives_its_input_in_any_box(layout: tuple[Shape, Shape, float, int], data: st.DataObject) -> None:
    """And the bits of a voxel do not depend on the row where the box begins."""
    shape, patch, overlap, batch_size = layout
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in shape]
    box = tuple(slice(min(a, size - 1), max(b, min(a, size - 1) + 1)) for (a, b), size in zip(ends, shape, strict=True))
    image = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    windows = place_windows(shape, patch, overlap)
    found = run(image, windows, box, batch_size, nn.Identity())
    np.testing.assert_allclose(found, image[(slice(None), *box)], atol=1e-5)
    every_row = run(image, windows, (slice(0, shape[0]), *box[1:]), batch_size, Mixing())
    np.testing.assert_array_equal(run(image, windows, box, batch_size, Mixing()), every_row[:, box[0]])


@settings(deadline=None, max_examples=100)
@given(layouts())
def test_every_voxel_has_a_weight(layout: tuple[Shape, Shape, float, int]) -> None:
    shape, patch, overlap, _ = layout
    windows, weights = place_windows(shape, patch, overlap), weigh_voxels(patch).numpy()
    total = np.zeros([3 * size + 1 + 2 * p for size, p in zip(patch, patch, strict=True)])
    for place in np.ndindex(*(len(own) for own in windows.starts)):
        corner = [own[n] + p for own, n, p in zip(windows.starts, place, patch, strict=True)]
        total[tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))] += weights
    assert total[tuple(slice(p, p + size) for p, size in zip(patch, shape, strict=True))].min() >= 1e-3


@pytest.mark.parametrize(
    ("size", "starts"),
    [(10, (0, 5)), (10, (1, 4, 6)), (10, (0, 3, 8, 6)), (10, ()), (9, (0, 4, 4, 5)), (3, (0,)), (2, (1,))],
)
def test_windows_that_leave_a_voxel_out_are_no_windows(size: int, starts: tuple[int, ...]) -> None:
    if size == 3:
        assert Windows((3,), (4,), ((0,),)).starts  # the control
        return
    with pytest.raises(ValueError, match="do not cover"):
        Windows((size,), (4,), (starts,))


@pytest.mark.parametrize("patch", [(4, 4), (1, 7), (16, 12, 9), (64, 64, 64)])
def test_weights_are_monais(patch: Shape) -> None:
    expected = compute_importance_map(patch, "gaussian", 0.125)
    torch.testing.assert_close(weigh_voxels(patch), expected)
    assert weigh_voxels(patch).min() >= 1e-3


def test_a_mean_of_ones_is_one() -> None:
    windows = place_windows((30, 40), (16, 16), 0.4)
    assert (run(np.ones((1, 30, 40), np.float32), windows, whole((30, 40)), 3, nn.Identity()) == 1).all()


@pytest.mark.parametrize("most", around(8 * 8 * 20))
def test_wide_images_are_predicted_in_blocks(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, patch = (9, 24, 120), (8, 2, 3)
    boxes = divide_laterally(shape, patch, most)
    covered = np.zeros(shape, int)
    for box in boxes:
        covered[box] += 1
        sizes = [part.stop - part.start for part in box]
        assert sizes[0] == 9
        assert 8 * sizes[1] * sizes[2] <= most or max(s // p for s, p in zip(sizes[1:], patch[1:], strict=True)) < 4
    assert (covered == 1).all()
    image = np.random.default_rng(0).normal(100, 40, (1, *shape)).astype(np.float32)
    predictor = Predictor(Mixing(), patch, CPU, nullcontext)
    expected = predictor(image)
    monkeypatch.setattr("ssl_seg.inference.sliding.divide_laterally", lambda *_: boxes)
    np.testing.assert_allclose(predictor(image), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_are_given_out_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image, windows = (
        np.random.default_rng(0).normal(size=(1, 20, 9)).astype(np.float32),
        place_windows((20, 9), (6, 6), 0.3),
    )
    expected = run(image, windows, whole((20, 9)), 2, Mixing())
    monkeypatch.setattr(stitching, "GIVEN_VOXELS", rows * 9 + 8)
    pieces = list(
        stitch(lambda box: image[(slice(None), *box)], Mixing(), windows, whole((20, 9)), device=CPU, batch_size=2)
    )
    assert max(piece.shape[1] for _, piece in pieces) == min(rows, 6)
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces], axis=1), expected)


def test_an_error_of_the_reader_is_raised() -> None:
    def fail(_: Box) -> NDArray[np.float32]:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(stitch(fail, nn.Identity(), place_windows((4, 4), (2, 2), 0), whole((4, 4)), device=CPU, batch_size=1))


class TestMemory:
    """A device with memory for so many windows at a time."""

    IMAGE = np.random.default_rng(0).normal(size=(1, 21, 19)).astype(np.float32)

    def run(self, room: int, batch_size: int, error: Exception) -> tuple[Any, list[int]]:
        asked: list[int] = []

        def forward(inputs: Tensor) -> Tensor:
            asked.append(len(inputs))
            if len(inputs) > room:
                raise error
            return Mixing()(inputs)

        windows = place_windows((21, 19), (6, 5), 0.5)
        return run(self.IMAGE, windows, whole((21, 19)), batch_size, forward), asked

    @pytest.mark.parametrize("batch_size", [2, 3, 8, 100])
    @pytest.mark.parametrize("room", [1, 2, 3, 5])
    def test_fewer_windows_give_the_same(self, room: int, batch_size: int) -> None:
        expected, _ = self.run(1000, batch_size, ValueError())
        found, asked = self.run(room, batch_size, torch.OutOfMemoryError("CUDA out of memory"))
        np.testing.assert_allclose(found, expected, atol=1e-6)
        first = next(number for number, size in enumerate(asked) if size <= room)
        assert max(asked[first:]) <= room, "what did not fit once is not tried again"
        assert first <= batch_size.bit_length()

    def test_one_window_that_does_not_fit(self) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            self.run(0, 8, torch.OutOfMemoryError("CUDA out of memory"))

    def test_other_errors_are_not_tried_again(self) -> None:
        asked: list[int] = []

        def fail(inputs: Tensor) -> Tensor:
            asked.append(len(inputs))
            raise RuntimeError("shapes do not match")

        with pytest.raises(RuntimeError, match="shapes do not match"):
            run(self.IMAGE, place_windows((21, 19), (6, 5), 0.5), whole((21, 19)), 4, fail)
        assert asked == [4]


class TestLongWindows:
    @pytest.mark.parametrize(
        ("shape", "window"),
        [((8, 8), (8, 8)), ((3, 9), (8, 8)), ((11, 12), (8, 12)), ((15, 16), (12, 16)), ((17, 99), (12, 16))],
    )
    def test_are_as_long_as_the_image_in_steps_that_the_network_takes(self, shape: Shape, window: Shape) -> None:
        predictor = Predictor(Mixing(), (8, 8), CPU, nullcontext, factor=2, divisor=(4, 4))
        assert predictor.fit_window(shape) == window
        assert replace(predictor, factor=1).fit_window(shape) == (8, 8)

    @pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5])
    def test_as_few_as_of_the_longest_and_none_longer_than_that_takes(self, overlap: float) -> None:
        predictor = Predictor(Mixing(), (12,), CPU, nullcontext, overlap, factor=2, divisor=(4,))

        def count(size: int, length: int) -> int:
            return len(place_windows((size,), (length,), overlap).starts[0])

        for size in range(1, 100):
            (found,) = predictor.fit_window((size,))
            longest = max(12, min(24, size // 4 * 4))
            assert count(size, found) == count(size, longest)
            assert found == 12 or count(size, found - 4) > count(size, found)

    @pytest.mark.parametrize("shape", [(11, 12), (40, 13), (7, 30)])
    def test_images_are_predicted_in_them(self, shape: Shape) -> None:
        image = np.random.default_rng(0).normal(100, 40, (1, *shape)).astype(np.float32)
        asked: list[tuple[int, ...]] = []

        class Recorded(Mixing):
            def forward(self, x: Tensor) -> Tensor:
                asked.append(tuple(x.shape))
                return super().forward(x)

        predictor = Predictor(Recorded(), (8, 8), CPU, nullcontext, factor=2, divisor=(4, 4), batch_size=4)
        found, window = predictor(image), predictor.fit_window(shape)
        np.testing.assert_array_equal(found, Predictor(Mixing(), window, CPU, nullcontext)(image))
        assert {size[2:] for size in asked} == {window}
        assert max(map(math.prod, asked)) <= 4 * 8 * 8
        box = (slice(2, 7), slice(1, 5))
        rows = np.concatenate([rows for _, rows in predictor.stream(image, measure_intensity(image), box)], axis=1)
        np.testing.assert_allclose(rows, found[(slice(None), *box)], atol=1e-6)


class TestStream:
    @pytest.mark.parametrize("shape", [(1, 30, 20), (2, 9, 20, 11)])
    def test_rows_are_those_of_the_whole(self, shape: Shape) -> None:
        image = np.random.default_rng(0).normal(100, 40, shape).astype(np.float32)
        image[:, 3:14, 2:9] = np.nan
        predictor = Predictor(Mixing(), (8,) * (len(shape) - 1), CPU, nullcontext, 0.5)
        expected = predictor(image)
        assert (expected[0][np.isnan(image[0])] == 1).all()
        for box in (None, (slice(5, 9), slice(4, 17), *(slice(0, n) for n in shape[3:]))):
            found = np.concatenate([rows for _, rows in predictor.stream(image, measure_intensity(image), box)], axis=1)
            np.testing.assert_array_equal(found, expected if box is None else expected[(slice(None), *box)])

    @pytest.mark.parametrize("voxels", around(MEASURED_VOXELS))
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_statistics_in_parts(self, voxels: int, dtype: str) -> None:
        image = np.random.default_rng(0).integers(0, 255, (2, voxels // 64, 64)).astype(dtype)
        found, expected = measure_intensity(image), measure_parts(enumerate(image), 2)
        for name in ("low", "high", "mean", "std"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)
