"""A network in a file that runs without this package, and what is needed to feed it and to read its output.

Shapes: N windows, C channels, K classes, *P a window, *S an image.

The file maps z-scores (N,C,*P) float32 to probabilities (N,K,*P) float32, for any N; all but torch.export also for any
window that the network takes. It holds a text in JSON; see ``describe``.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg import __version__
from ssl_seg.config import DataConfig
from ssl_seg.data.catalog import pass_through
from ssl_seg.data.open import open_store
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.views.transforms import normalize
from ssl_seg.errors import ConfigError, DataError, SslSegError
from ssl_seg.files import atomic_write, find_obstacle
from ssl_seg.inference.calibration import Calibration, calibration_path, decide, find_calibration
from ssl_seg.inference.decision import Cleaning
from ssl_seg.inference.ensemble import open_members
from ssl_seg.inference.model import Model
from ssl_seg.inference.sliding import OVERLAP
from ssl_seg.networks.builders import get_network_spec
from ssl_seg.results.bioimage import make_package, read_weights
from ssl_seg.results.evaluation import choose_cases, open_cases
from ssl_seg.scores.calibration import to_log_odds, to_probability

FORMATS = {".onnx": "ONNX", ".ts": "TorchScript", ".pt2": "torch.export", ".zip": "bioimage.io"}
KEY = "ssl_seg"
"""Name of the text in the file: a metadata property of ONNX, an extra file ``ssl_seg.json`` of the others."""
SCHEMA = 1
IMAGES = 3
"""Validation images that the file is compared on."""
LARGEST_DIFFERENCE = 1e-3
"""Largest difference of probabilities that passes for rounding."""

RunFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportRequest:
    """What to export."""

    checkpoint: Path
    output: Path
    """Its suffix says the format: one of ``FORMATS``."""
    which: str | None = None
    """student or teacher; None takes the better one on validation."""
    calibrated: bool = True
    """Whether to include what ``ssl-seg calibrate`` has stored."""
    overwrite: bool = False
    """Replace a file that is there already."""


class Probabilities(nn.Module):
    """A network with a softmax behind it; (N,C,*P) -> (N,K,*P)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities."""
        return torch.softmax(self.net(image), dim=1)


def export(request: ExportRequest, note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Write a network to a file, run that file on real images, and compare.

    Returns:
        Plain types: what ``describe`` returns, ``output``, ``difference`` (largest, of probabilities) and
        ``compared_on`` (ids of validation cases, or none, where random numbers took their place).

    Raises:
        ConfigError: for an unknown suffix, a file that exists, a place that cannot be written, or without the packages
            of the format.
        DataError: if the file does not compute what the network does; it is not written then.
        SslSegError: for an unusable checkpoint.
    """
    suffix = request.output.suffix
    if suffix not in FORMATS:
        known = ", ".join(f"{name} ({what})" for name, what in FORMATS.items())
        raise ConfigError(f"{request.output}: the suffix says the format: {known}")
    if obstacle := "it is a folder" if request.output.is_dir() else find_obstacle(request.output):
        raise ConfigError(f"{request.output} cannot be written: {obstacle}")
    if not request.output.absolute().parent.is_dir():
        raise ConfigError(f"{request.output}: there is no folder {request.output.parent}; make it first")
    if request.output.exists() and not request.overwrite:
        raise ConfigError(f"{request.output} exists already: choose another name, or replace it with --overwrite")
    check_packages(suffix)
    (model,) = open_members([request.checkpoint], request.which, torch.device("cpu"))
    (net,) = model.nets
    calibration = find_calibration(model, net, note) if request.calibrated else None
    for text in model.describe_doubt(net) if calibration is None else ():
        note(text)
    about = describe(model, net, calibration)
    if suffix == ".pt2":  # it takes no other windows
        about["longest_window"] = about["patch_size"]
    network = Probabilities(model.nets[net]).eval()
    patches, ids = cut_patches(model, note)
    with atomic_write(request.output) as partial:
        example = torch.cat([patches, patches])[:2]  # of a single window, torch.export would keep the number
        _write(partial, WRITERS[suffix](network, example, json.dumps(about)))
        difference = compare(network, READERS[suffix](partial), patches)
        if suffix != ".pt2":
            grown = _grow(patches[:1], about["divisor"])
            difference = max(difference, compare(network, READERS[suffix](partial), grown))
        if not difference <= LARGEST_DIFFERENCE:
            raise DataError(
                f"{request.output}: its probabilities differ from those of the network by up to {difference:.2g}, more "
                f"than {LARGEST_DIFFERENCE:g}: it is not written. Try another format ({', '.join(FORMATS)})"
            )
    if calibration is not None and any(own != Cleaning() for own in calibration.cleaning):
        note(f"{calibration_path(model.path)}: cleaning of masks is not part of the network; the file only mentions it")
    return {**about, "output": str(request.output), "difference": difference, "compared_on": ids}


def describe(model: Model, net: str, calibration: Calibration | None) -> dict[str, Any]:
    """Return what a reader of the file needs, in plain types.

    Returns:
        ``ndim``, ``channels``, ``patch_size`` (Z, Y, X), ``divisor`` (of the sides of any other window),
        ``longest_window`` (Z, Y, X), see ``Predictor.fit_window``, ``overlap`` of windows; ``normalization``:
        ``zscore`` of each channel of a whole image, or ``window``, values clipped to ``low`` .. ``high`` and then
        shifted and scaled by ``mean`` and ``std``; ``voxel_size`` that images are resampled to, or null; ``task``:
        semantic, or instances, whose classes are background, inside and boundary of objects; ``label_values`` of the
        classes, in their order; ``threshold``: with two classes, foreground is where its probability is above it, else
        null; ``temperature`` and ``biases`` of calibrated probabilities softmax(log p / temperature + biases);
        ``cleaning`` of masks; and what the network is.
    """
    data, config = model.config.data, model.config
    decision = decide(None, calibration, config.prediction)
    return {
        "schema": SCHEMA,
        "ssl_seg": __version__,
        "checkpoint": model.fingerprint,
        "network": config.network.name,
        "which": net,
        "step": model.checkpoint.progress.step,
        "ndim": data.ndim,
        "channels": data.channels,
        "patch_size": list(data.patch_size),
        "divisor": list(get_network_spec(config.network.name).divisor(tuple(data.patch_size))),
        "longest_window": [model.window_factor * size for size in data.patch_size],
        "overlap": OVERLAP,
        "normalization": _describe_normalization(data.window),
        "voxel_size": None if data.resample_to is None else list(data.resample_to),
        "task": data.task,
        "label_values": list(data.label_values),
        "threshold": find_network_threshold(decision.threshold, calibration, data.num_classes),
        "temperature": 1.0 if calibration is None else calibration.scaling.temperature,
        "biases": [0.0] * data.num_classes if calibration is None else list(calibration.scaling.biases),
        "cleaning": [] if calibration is None else [asdict(own) for own in calibration.cleaning],
    }


def _describe_normalization(window: tuple[float, float] | None) -> dict[str, Any]:
    if window is None:
        return {"name": "zscore"}
    low, high = window
    return {"name": "window", "low": low, "high": high, "mean": (low + high) / 2, "std": (high - low) / 12**0.5}


def find_network_threshold(threshold: float | None, calibration: Calibration | None, classes: int) -> float | None:
    """Return the threshold of foreground as the network gives it, out of that of calibrated probabilities.

    None for more than two classes, where the likeliest one counts.
    """
    if classes != 2:
        return None
    cut = 0.5 if threshold is None else threshold
    if calibration is None:
        return cut
    odds = to_log_odds(cut) - calibration.scaling.biases[1]
    return to_probability(odds * calibration.scaling.temperature)


def cut_patches(model: Model, note: Callable[[str], None]) -> tuple[Tensor, list[str]]:
    """Return windows (N,C,*P) of validation images as the network sees them, and the ids of the images.

    Without images, random numbers take their place; ``note`` is told.
    """
    data = model.config.data
    try:
        catalog, opened = open_cases(model, pass_through)
        ids = list(choose_cases((model,), catalog, split_from_dict(model.checkpoint.split), note))[:IMAGES]
        store = open_store(catalog, opened)
        images = [store.load_whole(case_id).image for case_id in ids]
    except SslSegError as error:
        note(f"compared on random numbers, since there are no validation images: {error}")
        return torch.randn(2, data.channels, *data.patch_size, generator=torch.Generator().manual_seed(0)), []
    return torch.from_numpy(np.stack([_cut_middle(image, data) for image in images])), ids


def _cut_middle(image: NDArray[np.generic], data: DataConfig) -> NDArray[np.float32]:
    """Return the z-scores (C,*P) of the middle of an image (C,*S), with zeros behind one that is smaller."""
    patch, scores = data.patch_size, normalize(image, data.window)
    starts = [max(size - window, 0) // 2 for size, window in zip(image.shape[1:], patch, strict=True)]
    part = scores[(slice(None), *(slice(start, start + window) for start, window in zip(starts, patch, strict=True)))]
    missing = [(0, window - size) for size, window in zip(part.shape[1:], patch, strict=True)]
    return np.pad(part, [(0, 0), *missing])


@torch.no_grad()
def compare(network: nn.Module, run: RunFn, patches: Tensor) -> float:
    """Return the largest difference of probabilities, with one window at a time and with all at once."""
    batches = [*torch.split(patches, 1), *([patches] if len(patches) > 1 else [])]
    return max(float((run(batch) - network(batch)).abs().max()) for batch in batches)


def _grow(patches: Tensor, sizes: list[int]) -> Tensor:
    """Return windows that are longer by ``sizes``: what they hold comes a second time."""
    for axis, size in enumerate(sizes, start=2):
        patches = torch.cat([patches, patches.narrow(axis, 0, min(size, patches.shape[axis]))], dim=axis)
    return patches


def check_packages(suffix: str) -> None:
    """Check that what a format needs is installed.

    Raises:
        ConfigError: with what to run.
    """
    if suffix != ".onnx":
        return
    for package in ("onnx", "onnxruntime"):
        try:
            __import__(package)
        except ImportError:
            raise ConfigError(
                f"an ONNX file needs {package}, which is not installed: pip install 'ssl-seg[onnx]', or write .ts"
            ) from None


def _to_onnx(network: nn.Module, example: Tensor, text: str) -> bytes:
    import onnx

    buffer = io.BytesIO()
    axes = {0: "windows", **{axis: f"size{axis - 2}" for axis in range(2, example.ndim)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter warns of sizes that are checked by ``compare``
        torch.onnx.export(
            network, (example,), cast(Any, buffer), dynamo=False, opset_version=17,
            input_names=["image"], output_names=["probabilities"],
            dynamic_axes={"image": axes, "probabilities": axes},
        )  # fmt: skip
    model = onnx.load_model_from_string(buffer.getvalue())
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.checker.check_model(model)
    return cast(bytes, model.SerializeToString())


def _read_onnx(path: Path) -> RunFn:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise DataError(
            f"{path.parent}: the file cannot be written ({error.strerror}). Free some space, or choose another folder"
        ) from error


def _to_torchscript(network: nn.Module, example: Tensor, text: str) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={f"{KEY}.json": text})
    return buffer.getvalue()


def _read_torchscript(file: Path | io.BytesIO) -> RunFn:
    loaded: RunFn = torch.jit.load(str(file) if isinstance(file, Path) else file)  # type: ignore[no-untyped-call]
    return loaded


def _to_exported(network: nn.Module, example: Tensor, text: str) -> bytes:
    sizes = {0: torch.export.Dim("windows", min=1)}
    program = torch.export.export(network, (example,), dynamic_shapes=(sizes,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{KEY}.json": text})
    return buffer.getvalue()


def _read_exported(path: Path) -> RunFn:
    with path.open("rb") as file:
        loaded: RunFn = torch.export.load(file).module()
    return loaded


def _to_package(network: nn.Module, example: Tensor, text: str) -> bytes:
    return make_package(network, example, _to_torchscript(network, example, text), json.loads(text))


WRITERS: dict[str, Callable[[nn.Module, Tensor, str], bytes]] = {
    ".onnx": _to_onnx,
    ".ts": _to_torchscript,
    ".pt2": _to_exported,
    ".zip": _to_package,
}
READERS: dict[str, Callable[[Path], RunFn]] = {
    ".onnx": _read_onnx,
    ".ts": _read_torchscript,
    ".pt2": _read_exported,
    ".zip": lambda path: _read_torchscript(read_weights(path)),
}
