"""Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer
    from ssl_seg.data.catalog import open_catalog
    from ssl_seg.data.splits.files import load_split, save_split
    from ssl_seg.data.splits.split import make_folds, make_split
    from ssl_seg.results.evaluation import EvaluateRequest, evaluate
    from ssl_seg.results.prediction import PredictRequest, predict
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.training import train
    from ssl_seg.studies.cross_validation import CrossValidationRequest, cross_validate
    from ssl_seg.studies.label_ladder import LabelLadderRequest, climb_labels

__version__ = "0.1.0"

_HOMES = {
    "CrossValidationRequest": "ssl_seg.studies.cross_validation",
    "EvaluateRequest": "ssl_seg.results.evaluation",
    "LabelLadderRequest": "ssl_seg.studies.label_ladder",
    "Layer": "ssl_seg.config.layers",
    "PredictRequest": "ssl_seg.results.prediction",
    "TrainRequest": "ssl_seg.run.prepare",
    "climb_labels": "ssl_seg.studies.label_ladder",
    "cross_validate": "ssl_seg.studies.cross_validation",
    "evaluate": "ssl_seg.results.evaluation",
    "load_split": "ssl_seg.data.splits.files",
    "make_folds": "ssl_seg.data.splits.split",
    "make_split": "ssl_seg.data.splits.split",
    "open_catalog": "ssl_seg.data.catalog",
    "predict": "ssl_seg.results.prediction",
    "save_split": "ssl_seg.data.splits.files",
    "train": "ssl_seg.run.training",
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
