"""A stand-in for the package timm, with what ``ssl_seg.networks.encoders.timm_models`` calls of it."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from ssl_seg.networks.encoders.unet import PHOTO_MEAN, PHOTO_STD

STRIDES = {"resnet18": (2, 4, 8, 16, 32), "coarse": (4, 8, 16, 32), "odd": (3, 6), "vit": ()}


class Pyramid(nn.Module):
    """One convolution, averaged to each stride."""

    def __init__(self, channels: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.feature_info = SimpleNamespace(reduction=lambda: list(strides), channels=lambda: [4] * len(strides))
        self.pretrained_cfg = {"mean": PHOTO_MEAN, "std": PHOTO_STD}
        self.layer, self.norm = nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.norm(self.layer(images))
        return [nn.functional.avg_pool2d(features, stride) for stride in self.feature_info.reduction()]


def install_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Put the stand-in where ``import timm`` finds it; return the list of options that it will be called with."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        calls.append(options)
        if name == "vit":
            raise RuntimeError("features_only not implemented for Vision Transformer models.\nmore")
        if options.get("pretrained") and "pretrained_cfg_overlay" not in options:
            raise OSError("We couldn't connect to the hub")
        model = Pyramid(options["in_chans"], STRIDES[name.split(".", maxsplit=1)[0]])
        if options.get("pretrained"):
            model.load_state_dict(options["pretrained_cfg_overlay"]["state_dict"], strict=False)
        return model

    module = ModuleType("timm")
    vars(module).update(create_model=create_model, list_models=lambda: list(STRIDES))
    monkeypatch.setitem(sys.modules, "timm", module)
    return calls
