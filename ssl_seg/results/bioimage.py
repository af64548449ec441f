"""A network as a package of the BioImage Model Zoo (bioimage.io), which other programs read.

::

    rdf.yaml      what the network is: axes, normalization, test data; format 0.5 of https://bioimage.io/spec
    weights.pt    the network, as TorchScript
    input.npy     test data: windows as images have them, before normalization
    output.npy    what the network makes of them
    README.md     how to use it

Shapes: N windows, C channels, K classes, *P a window.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.data.views.transforms import make_window

FORMAT_VERSION = "0.5.3"
AXES = {2: "yx", 3: "zyx"}
TASKS = {"semantic": "Semantic segmentation", "instances": "Instance segmentation: inside and boundary of objects"}
EPS = 1e-6
WEIGHTS, INPUT, OUTPUT, README, DESCRIPTION = "weights.pt", "input.npy", "output.npy", "README.md", "rdf.yaml"

_TEXT = """# {name}

Segmentation by `ssl-seg`. Whole images are normalized, as `rdf.yaml` says, and then cut into windows.{resampled}
The output has the probability of each class: {classes}.{cut}

Add authors, license and citations to `rdf.yaml` before you publish this package.

## Validation

See `ssl-seg evaluate`; `config: ssl_seg` in `rdf.yaml` has the checkpoint, its step and network.
"""


@torch.no_grad()
def make_package(network: nn.Module, windows: Tensor, weights: bytes, about: Mapping[str, Any]) -> bytes:
    """Return the content of a package, a zip.

    Args:
        network: maps z-scores (N,C,*P) to probabilities (N,K,*P).
        windows: z-scores of windows (N,C,*P), from which the test data are made.
        weights: the network as a TorchScript file.
        about: what ``ssl_seg.results.export.describe`` returns.
    """
    image = windows[:1].numpy()
    normalization = about["normalization"]
    if normalization["name"] == "window":
        image = image * np.float32(normalization["std"]) + np.float32(normalization["mean"])
    output = network(torch.from_numpy(normalize(image, normalization))).numpy()
    threshold = about["threshold"]
    cut = "" if threshold is None else f" Foreground is where the second one is above {threshold:.4g}."
    size = about["voxel_size"]
    resampled = "" if size is None else f"\nResample images to voxels of {' x '.join(map(str, size))} before."
    values = ", ".join(map(str, about["label_values"]))
    is_semantic = about["task"] == "semantic"
    classes = (
        f"{values} (values of the masks in training)" if is_semantic else "background, inside and boundary of objects"
    )
    name = f"{about['network']} of ssl-seg"
    files = {
        WEIGHTS: weights,
        INPUT: _to_npy(image),
        OUTPUT: _to_npy(output),
        README: _TEXT.format(name=name, classes=classes, cut=cut, resampled=resampled).encode(),
    }
    sources = {file: {"source": file, "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    text = yaml.safe_dump(_describe(name, about, sources), sort_keys=False, allow_unicode=True)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as package:
        for file, data in {**files, DESCRIPTION: text.encode()}.items():
            package.writestr(file, data)
    return content.getvalue()


def normalize(image: NDArray[np.float32], normalization: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return z-scores of an image (N,C,*S) by the formulas of bioimage.io."""
    if normalization["name"] == "window":
        window = (normalization["low"], normalization["high"])
        scores = [make_window(window, image.shape[1]).to_zscore(own) for own in image]
        return np.stack(scores).astype(np.float32)
    axes = tuple(range(2, image.ndim))
    mean, std = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    return np.asarray((image - mean) / (std + EPS), np.float32)


def read_weights(path: Path) -> io.BytesIO:
    """Return the TorchScript file of a package."""
    with zipfile.ZipFile(path) as package:
        return io.BytesIO(package.read(WEIGHTS))


def _describe(name: str, about: Mapping[str, Any], sources: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Return the description; ``sources`` has name and hash of each file."""
    axes = AXES[about["ndim"]]
    smallest = zip(axes, about["patch_size"], about["divisor"], strict=True)
    taken = [{"type": "space", "id": a, "size": {"min": size, "step": step}} for a, size, step in smallest]
    given = [{"type": "space", "id": a, "size": {"tensor_id": "image", "axis_id": a}} for a in axes]
    return {
        "format_version": FORMAT_VERSION,
        "type": "model",
        "name": name,
        "description": TASKS[about["task"]],
        "documentation": sources[README],
        "inputs": [
            {
                "id": "image",
                "axes": [{"type": "batch"}, _name_channels("channel", range(about["channels"])), *taken],
                "test_tensor": sources[INPUT],
                "preprocessing": _describe_normalization(about["normalization"], axes),
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "axes": [{"type": "batch"}, _name_channels("class", about["label_values"]), *given],
                "test_tensor": sources[OUTPUT],
            }
        ],
        "weights": {"torchscript": {**sources[WEIGHTS], "pytorch_version": torch.__version__.split("+")[0]}},
        "config": {"ssl_seg": json.loads(json.dumps(about))},
    }


def _name_channels(kind: str, values: Sequence[int]) -> dict[str, Any]:
    names = [f"{kind}{value}".replace("-", "minus") for value in values]
    return {"type": "channel", "channel_names": names}


def _describe_normalization(normalization: Mapping[str, Any], axes: str) -> list[dict[str, Any]]:
    float32 = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    if normalization["name"] != "window":
        return [float32, {"id": "zero_mean_unit_variance", "kwargs": {"axes": list(axes), "eps": EPS}}]
    clip = {"id": "clip", "kwargs": {"min": normalization["low"], "max": normalization["high"]}}
    moments = {name: normalization[name] for name in ("mean", "std")}
    return [float32, clip, {"id": "fixed_zero_mean_unit_variance", "kwargs": moments}]


def _to_npy(array: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
