"""Our losses by the names and on the shapes of other programs, and losses of other libraries in a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny
from loss_cases import make_case
from monai.losses import DiceLoss
from torch.nn import CrossEntropyLoss, functional

import ssl_seg
from ssl_seg.errors import ConfigError
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import LOSSES, adapt_loss, get_loss, get_loss_function

ODDS = torch.randn(2, 1, 6, 7, generator=torch.Generator().manual_seed(0))
TRUTH = (torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(1)) > 0.6).float()


def test_bce_on_the_shapes_of_a_binary_network_is_that_of_torch() -> None:
    loss = ssl_seg.get_loss_function("bce")
    expected = functional.binary_cross_entropy_with_logits(ODDS, TRUTH)
    torch.testing.assert_close(loss(ODDS, TRUTH), expected)
    torch.testing.assert_close(loss(ODDS, TRUTH.squeeze(1)), expected)
    weighted = functional.binary_cross_entropy_with_logits(ODDS, TRUTH, pos_weight=torch.tensor(2.33))
    torch.testing.assert_close(get_loss_function("BCE_loss", pos_weight=2.33)(ODDS, TRUTH), weighted)


def test_the_combined_loss_of_the_document() -> None:
    logits, target = make_case((2, 2, 6, 7))
    parts = [get_loss(name)(logits, target) for name in ("cross_entropy", "dice", "focal")]
    for options, weights in (({}, (0.4, 0.4, 0.2)), ({"bce_weight": 0.5, "dice_weight": 0.3}, (0.5, 0.3, 0.2))):
        expected = sum(weight * part for weight, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(get_loss_function("combined", **options)(logits, target), expected)


@pytest.mark.parametrize(
    ("name", "here"), [("dice", "dice"), ("focal", "focal"), ("jaccard", "iou"), ("ce_loss", "cross_entropy")]
)
def test_names(name: str, here: str) -> None:
    logits, target = make_case((2, 3, 6, 7))
    assert torch.equal(get_loss_function(name)(logits, target), get_loss(here)(logits, target))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("dyce", {}, "did you mean 'dice'"),
        (None, {}, "unknown loss 'none'"),
        ("dice", {"dice_weight": 2.0}, "dice_weight"),
        ("combined", {"bcee_weight": 1.0}, "bcee"),
    ],
)
def test_slips_are_named(name: Any, options: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        get_loss_function(name, **options)


@pytest.mark.parametrize(
    "target", [TRUTH * 0.7, TRUTH * 255, -TRUTH, TRUTH[:, :, :3], torch.cat([TRUTH, 1 - TRUTH], 1)]
)
def test_targets_that_would_be_misread(target: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="target"):
        get_loss_function("dice")(ODDS, target)


def test_a_loss_that_cannot_be_adapted_is_named() -> None:
    target: Any = "indices"
    with pytest.raises(ConfigError, match=r"'indices'.: must be one of index, channel, binary"):
        adapt_loss(CrossEntropyLoss(), target)
    with pytest.raises(ConfigError, match=r"returned shape \(2, 6, 7\): it must be one number"):
        adapt_loss(CrossEntropyLoss(reduction="none"))(*make_case((2, 3, 6, 7)))


MONAI_DICE = adapt_loss(DiceLoss(to_onehot_y=True, softmax=True, include_background=False), "channel")


def test_a_loss_of_monai_sees_what_it_is_made_for() -> None:
    logits, target = make_case((2, 3, 6, 7))
    target = target.clamp(min=0)
    own = DiceLoss(to_onehot_y=True, softmax=True, include_background=False)(logits, target[:, None])
    torch.testing.assert_close(MONAI_DICE(logits, target), own)
    target[0, 0] = IGNORE_INDEX
    moved = logits.clone().requires_grad_()
    MONAI_DICE(moved, target).backward()
    assert moved.grad is not None
    assert not moved.grad[0, :, 0].any()  # an ignored voxel pulls nothing
    assert moved.grad[1].any()
    changed = logits.clone()
    changed[0, :, 0] += torch.tensor([5.0, -5.0, 9.0])[:, None]
    torch.testing.assert_close(MONAI_DICE(changed, target), MONAI_DICE(logits, target))


def test_the_binary_form_is_the_log_odds_of_foreground() -> None:
    logits, target = make_case((2, 2, 6, 7))
    target = target.clamp(min=0)
    loss = adapt_loss(functional.binary_cross_entropy_with_logits, "binary")
    torch.testing.assert_close(loss(logits, target), functional.cross_entropy(logits, target))


def test_a_training_with_a_loss_of_monai(tmp_path: Path, particles_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "monai_dice", MONAI_DICE)
    settings = {"loss": {"weights": {"monai_dice": 1.0}}, "length": {"steps": 2}, "method": {"name": "supervised"}}
    result = train_tiny(tmp_path / "run", particles_dir, settings)
    record = result.run.read_metrics()[-1]
    assert record["train/loss"] == pytest.approx(record["train/monai_dice"])


def test_a_loss_of_segmentation_models_pytorch() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch", reason="segmentation-models-pytorch is not installed")
    logits, target = make_case((2, 3, 6, 7))
    target = target.clamp(min=0)
    own = smp.losses.FocalLoss(mode="multiclass")
    torch.testing.assert_close(adapt_loss(own)(logits, target), own(logits, target))
