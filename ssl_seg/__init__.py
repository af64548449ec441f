"""Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_seg.configio import Layer
    from ssl_seg.data.catalog import open_catalog
    from ssl_seg.data.splits.files import load_split, save_split
    from ssl_seg.data.splits.split import make_folds, make_split
    from ssl_seg.evaluation import EvaluateRequest, evaluate
    from ssl_seg.prediction import PredictRequest, predict
    from ssl_seg.prepare import TrainRequest
    from ssl_seg.series.cross_validation import CrossValidationRequest, cross_validate
    from ssl_seg.series.label_ladder import LabelLadderRequest, climb_labels
    from ssl_seg.training import train

__version__ = "0.1.0"

_HOMES = {
    "CrossValidationRequest": "ssl_seg.series.cross_validation",
    "EvaluateRequest": "ssl_seg.evaluation",
    "LabelLadderRequest": "ssl_seg.series.label_ladder",
    "Layer": "ssl_seg.configio",
    "PredictRequest": "ssl_seg.prediction",
    "TrainRequest": "ssl_seg.prepare",
    "climb_labels": "ssl_seg.series.label_ladder",
    "cross_validate": "ssl_seg.series.cross_validation",
    "evaluate": "ssl_seg.evaluation",
    "load_split": "ssl_seg.data.splits.files",
    "make_folds": "ssl_seg.data.splits.split",
    "make_split": "ssl_seg.data.splits.split",
    "open_catalog": "ssl_seg.data.catalog",
    "predict": "ssl_seg.prediction",
    "save_split": "ssl_seg.data.splits.files",
    "train": "ssl_seg.training",
}
__all__ = [
    "CrossValidationRequest",
    "EvaluateRequest",
    "LabelLadderRequest",
    "Layer",
    "PredictRequest",
    "TrainRequest",
    "climb_labels",
    "cross_validate",
    "evaluate",
    "load_split",
    "make_folds",
    "make_split",
    "open_catalog",
    "predict",
    "save_split",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import ssl_seg`` and the command's help stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_seg' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
