"""Oracles: Kervadec's formula with scipy's distances, MONAI's Hausdorff and clDice losses, small figures by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from loss_cases import make_case, make_confident
from monai.losses import HausdorffDTLoss
from monai.losses.cldice import soft_skel
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses.overlap import dice
from ssl_seg.losses.shape import boundary, cldice, connectivity, hausdorff_dt


def make_disk(size: int = 24, radius: float = 6.0) -> Tensor:
    grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")) - size / 2
    return (grid.square().sum(0).sqrt() < radius).long()[None]


def make_line(gap: tuple[int, ...] = (), thick: int = 1) -> Tensor:
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    rows = slice(8 - thick // 2, 9 + thick // 2)
    target[0, rows, 1:15] = 1
    target[0, rows, list(gap)] = 0
    return target


class TestBoundary:
    def test_is_kervadecs_up_to_scale_and_constant(self) -> None:
        target = make_disk()
        mask = target[0].numpy() == 1
        phi = distance_transform_edt(~mask) - distance_transform_edt(mask)  # negative inside
        scale = np.abs(phi).max() * mask.size
        for seed in range(3):
            logits, _ = make_case((1, 2, 24, 24), seed=seed)
            kervadec = (phi * logits.softmax(1)[0, 1].numpy()).sum()
            expected = (kervadec + np.abs(phi)[mask].sum()) / scale
            assert boundary(logits, target).item() == pytest.approx(expected, rel=1e-5)

    def test_errors_cost_more_far_from_the_boundary(self) -> None:
        target = make_disk()
        near, far = target.clone(), target.clone()
        near[0, 12, 18], far[0, 0, 0] = 1, 1
        right = make_confident(target, 2)
        assert boundary(right, target).item() == pytest.approx(0, abs=1e-6)
        assert boundary(make_confident(far, 2), target) > 5 * boundary(make_confident(near, 2), target)

    def test_edges_of_ignored_regions_are_no_boundary(self) -> None:
        """A half that is ignored is as if its labels were nobody's: distances are to known voxels only."""
        target = make_disk()
        half = target.clone()
        half[:, :, 12:] = IGNORE_INDEX
        inside = target.clone()
        inside[0, 12, 11] = 0  # the middle of the disk, beside the ignored half
        wrong = boundary(make_confident(inside, 2), half)
        mask, known = half[0].numpy() == 1, half[0].numpy() != IGNORE_INDEX
        distance = distance_transform_edt(~(known & ~mask))  # to the nearest known background
        largest = np.where(mask, distance, distance_transform_edt(~mask))[known].max()
        assert wrong.item() == pytest.approx(distance[12, 11] / largest / known.sum(), rel=1e-5)
        assert distance[12, 11] == 5


class TestHausdorff:
    @pytest.mark.parametrize("exponent", [1.0, 2.0])
    @pytest.mark.parametrize("shape", [(2, 2, 8, 9), (2, 4, 8, 9), (1, 3, 5, 6, 4)])
    def test_is_monais(self, shape: tuple[int, ...], exponent: float) -> None:
        logits, target = make_case(shape)
        monai = HausdorffDTLoss(alpha=exponent, include_background=False, to_onehot_y=True, softmax=True)
        torch.testing.assert_close(hausdorff_dt(logits, target, exponent), monai(logits, target[:, None]))

    def test_foreground_everywhere_in_an_empty_image_costs_something(self) -> None:
        empty = torch.zeros(1, 8, 8, dtype=torch.int64)
        logits = make_confident(1 - empty, 2)
        monai = HausdorffDTLoss(include_background=False, to_onehot_y=True, softmax=True)
        assert monai(logits, empty[:, None]).item() == 0.0
        assert hausdorff_dt(logits, empty).item() == pytest.approx(1.0)

    def test_far_errors_cost_their_distance(self) -> None:
        target = make_disk()
        losses = []
        for column in (19, 23):
            predicted = target.clone()
            predicted[0, 12, column] = 1
            losses.append(hausdorff_dt(make_confident(predicted, 2), target, exponent=2.0).item())
        assert losses[1] > 4 * losses[0]


class TestClDice:
    def test_is_the_formula_on_monais_skeletons(self) -> None:
        logits, target = make_case((2, 2, 9, 8))
        probs, mask = logits.softmax(1)[:, 1:], target[:, None].float()
        skeletons = soft_skel(probs, 5), soft_skel(mask, 5)
        precision = ((skeletons[0] * mask).sum() + 0.1) / (skeletons[0].sum() + 0.1)
        sensitivity = ((skeletons[1] * probs).sum() + 0.1) / (skeletons[1].sum() + 0.1)
        expected = 1 - 2 * precision * sensitivity / (precision + sensitivity)
        torch.testing.assert_close(cldice(logits, target, iterations=5, smooth=0.1), expected)

    def test_forgives_thickness_and_punishes_gaps(self) -> None:
        line = make_line()
        thick, gap = make_confident(make_line(thick=3), 2), make_confident(make_line(gap=(6, 7)), 2)
        assert dice(thick, line) > 4 * dice(gap, line)
        assert cldice(thick, line) < cldice(gap, line)

    def test_precision_and_sensitivity_are_not_exchanged(self) -> None:
        """A spur is imprecise, a gap insensitive; both are seen, whichever mask is the longer."""
        line, short = make_line(), make_line(gap=tuple(range(8, 15)))
        for predicted, target in ((short, line), (line, short)):
            assert cldice(make_confident(predicted, 2), target).item() > 0.2

    def test_works_in_3d(self) -> None:
        line = make_line()[:, None].repeat(1, 3, 1, 1)
        line[:, 0] = line[:, 2] = 0
        broken = line.clone()
        broken[..., 7] = 0
        assert cldice(make_confident(line, 2), line).item() == pytest.approx(0, abs=1e-6)
        assert cldice(make_confident(broken, 2), line).item() > 0.02


class TestConnectivity:
    def test_of_a_line_by_hand(self) -> None:
        """14 voxels in a row have 13 connections; a gap of one voxel cuts two of them."""
        line, broken = make_line(), make_line(gap=(7,))
        loss = connectivity(make_confident(broken, 2), line)
        assert loss.item() == pytest.approx(1 - (2 * 11 + 1) / (11 + 13 + 1), abs=1e-6)

    def test_scattered_voxels_are_not_connected(self) -> None:
        target = make_line()
        scattered = torch.zeros_like(target)
        scattered[:, ::2, ::2] = 1
        assert connectivity(make_confident(scattered, 2), target).item() == pytest.approx(1 - 1 / 14, abs=1e-6)

    def test_a_gap_costs_more_than_a_frayed_end(self) -> None:
        line = make_line()
        gap, end = make_confident(make_line(gap=(7,)), 2), make_confident(make_line(gap=(14,)), 2)
        torch.testing.assert_close(dice(gap, line), dice(end, line))
        assert connectivity(gap, line) > 1.5 * connectivity(end, line)

    def test_pairs_with_an_ignored_voxel_do_not_count(self) -> None:
        line = make_line()
        line[0, 8, 7] = IGNORE_INDEX
        loss = connectivity(make_confident(make_line(gap=(7, 8)), 2), line)
        assert loss.item() == pytest.approx(1 - (2 * 10 + 1) / (10 + 11 + 1), abs=1e-6)
