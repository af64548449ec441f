"""What ``ssl-seg calibrate`` has stored beside a checkpoint, and networks that are used with it.

::

    RUN/checkpoints/best.pt
    RUN/checkpoints/best.calibration.json     of each network of best.pt, known by the content of the checkpoint
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ssl_seg.config import DataConfig, PredictionConfig
from ssl_seg.errors import CheckpointError, ConfigError, counted, quote
from ssl_seg.files import write_json
from ssl_seg.inference.decision import Cleaning, Decision
from ssl_seg.inference.model import Model, compute_fingerprint
from ssl_seg.inference.scoring import PredictFn
from ssl_seg.scores.calibration import Scaling


@dataclass(frozen=True)
class Calibration:
    """How the probabilities of a network are scaled, and above which of them there is foreground."""

    scaling: Scaling
    threshold: float | None
    """Calibrated probability above which a voxel is foreground; None where the likeliest class counts."""
    cases: int
    """Validation cases that it was found on."""
    rule: str
    """What the threshold was chosen for."""
    cleaning: tuple[Cleaning, ...] = ()
    """One cleaning per foreground class; empty where no mask is cleaned."""

    def describe(self) -> str:
        """Return what it does, in a few words."""
        biases = ", ".join(f"{bias:+.2f}" for bias in self.scaling.biases[1:])
        cut = "" if self.threshold is None else f", foreground above {self.threshold:.3f}"
        cut += "".join(f", {own}" for own in self.cleaning if own != Cleaning())
        return (
            f"temperature {self.scaling.temperature:.2f}, bias {biases}{cut} ({counted(self.cases, 'validation case')})"
        )


_CALIBRATIONS = TypeAdapter(dict[str, Calibration])


def calibrate_predictor(predict: PredictFn, calibration: Calibration | None) -> PredictFn:
    """Return the calibrated predictor; without a calibration, the one that was given."""
    if calibration is None:
        return predict
    scaling = calibration.scaling
    return lambda image, spacing: scaling.apply(predict(image, spacing))


def decide(threshold: float | None, calibration: Calibration | None, settings: PredictionConfig) -> Decision:
    """Return how classes are decided: by the threshold that is asked for, else that of the calibration, else that of
    the settings of the training, else by the likeliest class."""
    given = {
        "--threshold": threshold,
        "ssl-seg calibrate": None if calibration is None else calibration.threshold,
        "prediction.threshold": settings.threshold,
    }
    source = next((name for name, value in given.items() if value is not None), "default")
    return Decision(given.get(source), () if calibration is None else calibration.cleaning, source)


def decide_mean(threshold: float | None, models: Sequence[Model]) -> Decision:
    """Return how the mean of several networks is cut; no calibration is of it.

    Raises:
        ConfigError: for networks that were trained for different thresholds, where none is asked for.
    """
    first, *others = models
    for other in others if threshold is None else ():
        if (here := first.config.prediction.threshold) != (there := other.config.prediction.threshold):
            raise ConfigError(
                f"{first.path} and {other.path} are cut at different thresholds: prediction.threshold {here or 0.5:g} "
                f"in the first and {there or 0.5:g} in the second. Give the mean one with --threshold"
            )
    return decide(threshold, None, first.config.prediction)


def check_threshold(threshold: float | None, data: DataConfig) -> None:
    """Check that a threshold is a probability, and that there are two classes.

    Raises:
        ConfigError: where it is not, or there are more.
    """
    if threshold is None:
        return
    if not 0 < threshold < 1:
        raise ConfigError(f"--threshold {threshold:g} must be a probability above 0 and below 1")
    if data.num_classes != 2:
        raise ConfigError(
            f"--threshold {threshold:g}: one threshold cannot tell {data.num_classes} classes apart. Leave it out (the "
            "likeliest class is taken), or write --probabilities and cut them yourself"
        )


def calibration_path(checkpoint: Path) -> Path:
    """Return where the calibrations of a checkpoint are stored."""
    return checkpoint.with_suffix(".calibration.json")


def save_calibration(model: Model, net: str, calibration: Calibration) -> Path:
    """Store the calibration of a network beside its checkpoint, in place of an earlier one.

    Raises:
        CheckpointError: when the folder cannot be written.
    """
    path = calibration_path(model.path)
    kept, fingerprint = _read(path) if path.is_file() else {}, model.fingerprint
    own = {key: value for key, value in kept.items() if key.startswith(fingerprint)}
    own[f"{fingerprint} {net}"] = calibration
    try:
        write_json(path, {key: asdict(value) for key, value in own.items()})
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    return path


def find_calibration(model: Model, net: str, note: Callable[[str], None] = lambda _: None) -> Calibration | None:
    """Return the calibration of a network, or None without one.

    Args:
        note: is told what is used, and where a file is of another state of the checkpoint.

    Raises:
        CheckpointError: for a file that is damaged.
    """
    path = calibration_path(model.path)
    if not path.is_file():
        return None
    found, fingerprint = _read(path), model.fingerprint
    if (own := found.get(f"{fingerprint} {net}")) is not None:
        note(f"{path}: {net} with {own.describe()}; predict and evaluate leave it out with --uncalibrated")
        return own
    if not any(key.startswith(fingerprint) for key in found):
        note(
            f"{path} belongs to another state of {model.path.name} and is not used: `ssl-seg calibrate "
            f"{quote(model.path)}`"
        )
    return None


def read_calibration(checkpoint: Path, net: str) -> Calibration | None:
    """Return the calibration of a network of a checkpoint, whose tensors are not read; None without one.

    Raises:
        CheckpointError: for a file that is damaged.
    """
    path = calibration_path(checkpoint)
    return _read(path).get(f"{compute_fingerprint(checkpoint)} {net}") if path.is_file() else None


def _read(path: Path) -> dict[str, Calibration]:
    try:
        return _CALIBRATIONS.validate_python(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged: not in the format that `ssl-seg calibrate` writes ({type(error).__name__}). "
            "Remove it, and calibrate again"
        ) from error
