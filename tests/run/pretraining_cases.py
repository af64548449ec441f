"""Small pre-trainings, and trainings from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import TINY

from ssl_seg.config.layers import Layer, nest
from ssl_seg.run.console import Silent
from ssl_seg.run.pretraining.run import PretrainResult, pretrain
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import TrainResult, train


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def make_layers(data: Path | str, *settings: dict[str, Any]) -> tuple[Layer, ...]:
    layers = [Layer("--test", TINY), Layer("--data", {"data": {"root": str(data)}})]
    return (*layers, *(Layer("--test", own) for own in settings))


def pretrain_tiny(out: Path, data: Path | str, *settings: dict[str, Any]) -> PretrainResult:
    return pretrain(TrainRequest(make_layers(data, *settings), out))


def train_from(run: Path, out: Path, data: Path | str, *settings: dict[str, Any], **more: Any) -> TrainResult:
    layers = make_layers(data, nest("network.pretrained", str(run)), *settings)
    return train(TrainRequest(layers, out, **more))


def stop_after(last: int) -> Any:
    """Return a ``stop_flag`` that is set after a step."""

    @contextmanager
    def flag(_: Any) -> Iterator[Callable[[int], bool]]:
        yield lambda step: step == last

    return flag
