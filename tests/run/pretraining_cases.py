"""Small pre-trainings, and trainings from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from conftest import TINY

from ssl_seg.config.layers import Layer, nest
from ssl_seg.run.pretraining.run import PretrainResult, pretrain
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import TrainResult, train


def make_layers(data: Path | str, *settings: dict[str, Any]) -> tuple[Layer, ...]:
    layers = [Layer("--test", TINY), Layer("--data", {"data": {"root": str(data)}})]
    return (*layers, *(Layer("--test", own) for own in settings))


def pretrain_tiny(out: Path, data: Path | str, *settings: dict[str, Any]) -> PretrainResult:
    return pretrain(TrainRequest(make_layers(data, *settings), out))


def train_from(run: Path, out: Path, data: Path | str, *settings: dict[str, Any], **more: Any) -> TrainResult:
    layers = make_layers(data, nest("network.pretrained", str(run)), *settings)
    return train(TrainRequest(layers, out, **more))
