"""Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early.

    import ssl_seg

    ssl_seg.audit("my_data")
    run = ssl_seg.train("my_data", labels=0.1, out="runs/a")
    ssl_seg.evaluate("runs/a")
    ssl_seg.predict("runs/a", "new_images", "masks")

Each function returns a typed result that prints as a short report. Nothing is printed meanwhile, unless ``progress`` is
true. Errors are subclasses of ``ssl_seg.errors.SslSegError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ssl_seg.engine.machine import own_defaults

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer
    from ssl_seg.data.catalog import open_catalog
    from ssl_seg.data.splits.files import load_split, save_split
    from ssl_seg.data.splits.split import make_folds, make_split
    from ssl_seg.losses import adapt_loss, get_loss_function
    from ssl_seg.report.notebook import DataAudit, Evaluation, PredictedMasks, PretrainedRun, TrainedRun, load_run
    from ssl_seg.results.array_prediction import ArrayPredictor
    from ssl_seg.run.console import Console
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.studies.cross_validation import cross_validate
    from ssl_seg.studies.label_ladder import climb_labels

__version__ = "0.1.0"

_HOMES = {
    "Layer": "ssl_seg.config.layers",
    "TrainRequest": "ssl_seg.run.request",
    "adapt_loss": "ssl_seg.losses",
    "climb_labels": "ssl_seg.studies.label_ladder",
    "cross_validate": "ssl_seg.studies.cross_validation",
    "get_loss_function": "ssl_seg.losses",
    "load_run": "ssl_seg.report.notebook",
    "load_split": "ssl_seg.data.splits.files",
    "make_folds": "ssl_seg.data.splits.split",
    "make_split": "ssl_seg.data.splits.split",
    "open_catalog": "ssl_seg.data.catalog",
    "save_split": "ssl_seg.data.splits.files",
}
__all__ = [
    "Layer",
    "TrainRequest",
    "adapt_loss",
    "audit",
    "climb_labels",
    "cross_validate",
    "evaluate",
    "get_loss_function",
    "load_predictor",
    "load_run",
    "load_split",
    "make_folds",
    "make_split",
    "open_catalog",
    "predict",
    "pretrain",
    "save_split",
    "train",
]

_Path = str | os.PathLike[str]
_Request = TypeVar("_Request")


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import ssl_seg`` and the command's help stay quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_seg' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


@own_defaults()
def train(
    data: _Path | None = None,
    *,
    labels: float | None = None,
    out: _Path | None = None,
    bootstrap: _Path | None = None,
    resume: _Path | None = None,
    method: str | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    minutes: float | None = None,
    config: _Path | None = None,
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
    progress: bool | Console = False,
    **more: Any,
) -> TrainedRun:
    """Train student and teacher, and write a run directory; without ``config`` the run is planned from the data.

    Args:
        data: folder or manifest, or ``synthetic:particles``.
        labels: labeled share of the training pool (0.1; 1.0 is all), or a number of cases above 1.
        out: run directory to create; by default the next free one of ``runs/``.
        bootstrap: checkpoint, run or ladder to start from.
        resume: run directory to continue.
        method: learning method; ``ssl-seg methods`` lists them.
        steps, epochs, minutes: length of the run; give one of them.
        config: YAML file, or the name of a packaged configuration.
        settings: any settings, nested or dotted: ``{"optim": {"lr": 1e-4}}`` or ``{"optim.lr": 1e-4}``.
        force: start from a parent that the gate refuses.
        progress: print lines and progress as the command does, or an object that is told.
        **more: other options of ``ssl-seg train`` (``network``, ``encoder``, ``lr``, ``batch_size``, ``seed``,
            ``split``, ...) and settings by their dotted name, ``**{"optim.lr": 1e-4}``.

    Raises:
        SslSegError: for anything the user can fix; RefusedError for a parent that fails the gate.
    """
    from dataclasses import replace

    from ssl_seg.engine.pace import check_length
    from ssl_seg.report.notebook import TrainedRun
    from ssl_seg.report.run_report import RunningPage, write_when_trained
    from ssl_seg.run.request import TrainRequest
    from ssl_seg.run.training import train as run_training
    from ssl_seg.studies.checkpoints import check_resumed, find_checkpoint

    layers = _make_layers(config, {"data": data, "labels": labels, "method": method, "steps": steps}, settings, more)
    request = _make_request(
        TrainRequest,
        layers=layers,
        out=out,
        bootstrap=bootstrap,
        resume=resume,
        force=force,
        epochs=epochs,
        minutes=minutes,
    )
    check_length(layers, request.epochs, request.minutes)
    if request.resume is not None:
        check_resumed(request.resume)
    if request.bootstrap is not None:
        request = replace(request, bootstrap=find_checkpoint(request.bootstrap))
    console = _make_console(progress)
    result = run_training(request, console, RunningPage(console.note))
    if result.is_main and result.ending != "interrupted":
        write_when_trained(result.run.path, console.note)
    return TrainedRun(result.run.path, result.ending, result.step, result.verdict, result.scores)


@own_defaults()
def pretrain(
    data: _Path | None = None,
    *,
    out: _Path | None = None,
    resume: _Path | None = None,
    steps: int | None = None,
    config: _Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool | Console = False,
    **more: Any,
) -> PretrainedRun:
    """Teach the network to paint hidden blocks of the training images, which takes no labels.

    Args:
        data, out, resume, steps, config, settings, progress, **more: as for ``train``.

    Raises:
        SslSegError: for anything the user can fix.
    """
    from ssl_seg.report.notebook import PretrainedRun
    from ssl_seg.run.pretraining.run import pretrain as run_pretraining
    from ssl_seg.run.request import TrainRequest

    layers = _make_layers(config, {"data": data, "steps": steps}, settings, more)
    request = _make_request(TrainRequest, layers=layers, out=out, resume=resume)
    result = run_pretraining(request, _make_console(progress))
    return PretrainedRun(result.run.path, result.ending, result.step, result.verdict, result.result)


@own_defaults()
def evaluate(
    checkpoint: _Path | Sequence[_Path],
    *,
    data: _Path | None = None,
    split: _Path | None = None,
    part: Literal["val", "test", "all"] = "val",
    which: Literal["student", "teacher"] | None = None,
    ensemble: bool = False,
    overlap: float = 0.25,
    threshold: float | None = None,
    uncalibrated: bool = False,
    accelerator: str | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Evaluation:
    """Score a checkpoint, or several on the same cases, beside trivial baselines.

    Args:
        checkpoint: checkpoint, or directory of a run, ladder or cross-validation; or a list of them.
        data, split: by default those of the training.
        part: ``val``, the sealed ``test`` list (each opening is recorded), or ``all`` labeled cases that were not
            trained with.
        which: score one network only.
        ensemble: score the mean of the probabilities of all checkpoints too.
        overlap: overlap of neighboring windows, from 0 to below 1.
        threshold: foreground is where its probability is above this; two classes only.
        uncalibrated: leave out what ``ssl-seg calibrate`` has stored.
        accelerator: where to compute; by default where the training did.
        settings: settings of the data section, for a folder whose masks have other values: ``{"data.mask": ...}``.
        progress: print notes and progress as the command does.

    Raises:
        SslSegError: for an unusable checkpoint, folder or split, or checkpoints that do not go together.
    """
    from ssl_seg.data.settings import CASES, select_data_settings
    from ssl_seg.report.notebook import Evaluation
    from ssl_seg.results.evaluation import EvaluateRequest
    from ssl_seg.results.evaluation import evaluate as run_evaluation

    first, *others = _find_checkpoints(checkpoint)
    chosen = select_data_settings(_make_layers(None, {}, settings, {}), (*CASES, "spacing"))
    request = _make_request(
        EvaluateRequest,
        checkpoint=first,
        data=None if data is None else _to_text("data", data),
        split=split,
        part=part,
        which=which,
        overlap=overlap,
        settings=chosen,
        more=others,
        ensemble=ensemble,
        accelerator=accelerator,
        threshold=threshold,
        calibrated=not uncalibrated,
    )
    notes: list[str] = []
    console = _make_console(progress)
    record = run_evaluation(request, note=lambda text: _note(text, notes, console), track=console.track)
    return Evaluation(record, request, tuple(notes))


@own_defaults()
def predict(
    checkpoint: _Path | Sequence[_Path],
    images: _Path,
    out: _Path,
    *,
    which: Literal["student", "teacher"] | None = None,
    overlap: float = 0.25,
    probabilities: bool = False,
    uint8: bool = False,
    tta: bool = False,
    uncertainty: bool = False,
    objects: bool = False,
    format: Literal["png", "tif", "nii", "nii.gz", "npy", "h5", "ome.zarr"] | None = None,  # noqa: A002 (of the option)
    spacing: Sequence[float] | None = None,
    threshold: float | None = None,
    uncalibrated: bool = False,
    overwrite: bool = False,
    accelerator: str | None = None,
    workers: int = 1,
    progress: bool = False,
) -> PredictedMasks:
    """Write masks for an image or a folder, 2D or 3D, with the label values of the training masks.

    Args:
        checkpoint: as for ``evaluate``; of several, the masks are those of the mean of their probabilities.
        images: an image, or a folder of images.
        out: folder for the masks; a file for a single image.
        which, overlap, threshold, uncalibrated, accelerator, progress: as for ``evaluate``.
        probabilities: write probabilities beside the masks.
        uint8: write probabilities, as 0 to 255.
        tta: predict mirrored and turned windows too.
        uncertainty: write the entropy, and the variance of ``tta`` or several networks.
        objects: write connected parts as label images, and a table of them.
        format: format of the masks in a folder; by default ``png``, and ``tif`` or ``nii.gz`` of volumes.
        spacing: voxel size along z, y, x; by default that of each file.
        overwrite: make masks anew that are there already.
        workers: processes that share the images, and the pieces of large ones; a script that asks for several must call
            this below ``if __name__ == "__main__":``.

    Raises:
        DataError: after all other masks are written, for images that could not be predicted.
        SslSegError: where there is nothing to predict, or an output is there that was made otherwise.
    """
    from ssl_seg.report.notebook import PredictedMasks
    from ssl_seg.results.mask_files import check_places
    from ssl_seg.results.mask_making import PredictRequest
    from ssl_seg.results.prediction import predict as run_prediction

    first, *others = _find_checkpoints(checkpoint)
    request = _make_request(
        PredictRequest,
        checkpoint=first,
        source=_to_text("images", images),
        output=_to_text("out", out),
        which=which,
        overlap=overlap,
        probabilities=probabilities,
        spacing=spacing,
        threshold=threshold,
        calibrated=not uncalibrated,
        more=others,
        overwrite=overwrite,
        accelerator=accelerator,
        objects=objects,
        tta=tta,
        uncertainty=uncertainty,
        uint8=uint8,
        suffix=None if format is None else f".{format}",
        workers=workers,
    )
    check_places(request.source, request.output)
    notes: list[str] = []
    console = _make_console(progress)
    masks = run_prediction(request, console.track("predicting"), note=lambda text: _note(text, notes, console))
    return PredictedMasks(request.output, tuple(masks), request, tuple(notes))


@own_defaults()
def load_predictor(
    checkpoint: _Path | Sequence[_Path],
    *,
    which: Literal["student", "teacher"] | None = None,
    overlap: float = 0.25,
    tta: bool = False,
    threshold: float | None = None,
    uncalibrated: bool = False,
    accelerator: str | None = None,
) -> ArrayPredictor:
    """Load networks once, to predict arrays in memory: ``load_predictor(run)(array).mask``.

    Args:
        checkpoint, which, overlap, tta, threshold, uncalibrated, accelerator: as for ``predict``.

    Raises:
        SslSegError: for unusable checkpoints, or checkpoints that do not go together.
    """
    from ssl_seg.results.array_prediction import load_predictor as load
    from ssl_seg.results.mask_making import PredictRequest

    first, *others = _find_checkpoints(checkpoint)
    request = _make_request(
        PredictRequest,
        checkpoint=first,
        source="",
        output="",
        which=which,
        overlap=overlap,
        threshold=threshold,
        calibrated=not uncalibrated,
        more=others,
        accelerator=accelerator,
        tta=tta,
    )
    return load(request)


@own_defaults()
def audit(
    data: _Path,
    *,
    layout: str = "auto",
    groups: _Path | None = None,
    unlabeled: _Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> DataAudit:
    """Look at all images and masks, and say what is in them and what is wrong; a bad file is a finding.

    Args:
        data: folder, manifest or ``synthetic:particles``.
        layout: how the files lie; ``ssl-seg data layouts`` lists the names.
        groups: CSV with name,group.
        unlabeled: folder of further images without masks.
        settings: settings of the data section, ``{"data.mask": "instances"}``.
        progress: show how far the reading is.

    Raises:
        DataError: if no cases can be found.
        ConfigError: for an unknown layout or setting.
    """
    from ssl_seg.data.audit.doctor import audit as run_audit
    from ssl_seg.data.settings import make_catalog_settings
    from ssl_seg.report.notebook import DataAudit

    root = _to_text("data", data)
    paths = [
        None if path is None else Path(_to_text(name, path))
        for name, path in (("groups", groups), ("unlabeled", unlabeled))
    ]
    chosen = make_catalog_settings(_make_layers(None, {}, settings, {}), layout, *paths)
    result = run_audit(root, chosen, track=_make_console(progress).track("reading cases"))
    return DataAudit(result)


def _make_layers(
    config: _Path | None, given: Mapping[str, Any], settings: Mapping[str, Any] | None, more: Mapping[str, Any]
) -> tuple[Layer, ...]:
    """Return the layers of a call: the file, then the arguments, then the settings, each with its name for messages.

    Raises:
        ConfigError: for a keyword that is neither an option nor a setting, or a setting with two values.
    """
    from ssl_seg.config import Config
    from ssl_seg.config.layers import Layer, nest, read_layers
    from ssl_seg.config.options import OPTIONS, check_given_once, make_option_layers
    from ssl_seg.errors import ConfigError, did_you_mean

    for name in more:
        if name.split(".")[0] not in {*OPTIONS, *Config.model_fields}:
            hint = did_you_mean(name, [*OPTIONS, *Config.model_fields])
            raise ConfigError(f"{name}={more[name]!r}: no such argument or setting{hint}")
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"settings = {settings!r}: a mapping is needed: {{'optim.lr': 1e-4}}; config= takes a file")
    if given.get("data") is not None:
        _to_text("data", given["data"])
    short = {name: _to_plain(value) for name, value in {**given, **more}.items()}
    options = make_option_layers(short, lambda name, value: f"{name}={value!r}")
    dotted = {**(settings or {}), **{name: value for name, value in more.items() if name not in OPTIONS}}
    named = [
        Layer(f"{name}={value!r}", nest(str(name), value), is_option=True) for name, value in _to_plain(dotted).items()
    ]
    check_given_once(options, named)
    return (*([] if config is None else read_layers(_to_text("config", config))), *options, *named)


def _make_request(kind: type[_Request], **given: Any) -> _Request:
    """Return a request whose values have the types of its fields.

    Raises:
        ConfigError: with all values that have not.
    """
    from ssl_seg.config.layers import validate

    return validate(kind, _to_plain(given))


def _find_checkpoints(given: _Path | Iterable[_Path]) -> list[Path]:
    from ssl_seg.errors import ConfigError
    from ssl_seg.studies.checkpoints import find_checkpoint

    paths = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not paths:
        raise ConfigError("checkpoint: the list is empty")
    return [find_checkpoint(Path(_to_text("checkpoint", path))) for path in paths]


def _to_text(name: str, path: object) -> str:
    """Return a path as text.

    Raises:
        ConfigError: where it is none.
    """
    from ssl_seg.errors import ConfigError

    if isinstance(path, str | os.PathLike):
        if path == "":
            raise ConfigError(f"{name} is empty, and must be a path")
        return os.fspath(path)
    arrays = ": np.save('FOLDER/NAME.npy', array) writes one as a file" if hasattr(path, "shape") else ""
    arrays += ", load_predictor(RUN)(array) predicts it in memory" if arrays and name == "images" else ""
    raise ConfigError(f"{name} is a {type(path).__name__}, and must be a path{arrays}")


def _to_plain(value: Any) -> Any:
    """Return arrays and tensors as lists and numbers, and paths as text, inside mappings too."""
    if isinstance(value, Mapping):
        return {key: _to_plain(inner) for key, inner in value.items()}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _make_console(progress: bool | Console) -> Console:
    from ssl_seg.cli.console import TerminalConsole
    from ssl_seg.run.console import Console, Silent

    if isinstance(progress, Console):
        return progress
    return TerminalConsole() if progress else Silent()


def _note(text: str, notes: list[str], console: Console) -> None:
    notes.append(text)
    console.note(text)
