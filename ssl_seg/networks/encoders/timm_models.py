"""Encoders of timm by name, where that package is installed (extra ``encoders``); 2D only."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_seg.errors import NetworkError, did_you_mean
from ssl_seg.networks.encoders.unet import Encoder
from ssl_seg.networks.encoders.weights import compute_digest, find_file, read_tensors


def make_encoder(name: str, ndim: int, channels: int) -> Encoder:
    """Return an encoder of timm with random weights.

    Raises:
        NetworkError: where timm is missing, the name is not known, or the model gives no pyramid of features.
    """
    timm = _import(name)
    if ndim != 2:
        raise NetworkError(f"network.encoder = {name}: encoders of timm are 2D. Use efficientnet_lite0")
    known = timm.list_models()
    if name.split(".", maxsplit=1)[0] not in known:
        raise NetworkError(
            f"network.encoder = {name}: neither efficientnet_lite0 nor a model of timm{did_you_mean(name, known)}"
        )
    model = _create(timm, name, channels, {})
    strides, widths = tuple(model.feature_info.reduction()), tuple(model.feature_info.channels())
    if any(s not in (1, 2, 4, 8, 16, 32) for s in strides) or len(set(strides)) < len(strides) or max(strides) < 2:
        raise NetworkError(
            f"network.encoder = {name}: its features have the strides {list(strides)}; a U-Net needs each once, out of "
            "1, 2, 4, 8, 16 and 32. Use a convolutional model"
        )
    return Encoder(model, strides, widths)


def load(encoder: nn.Module, name: str, source: str, channels: int) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """Put weights of timm into an encoder of timm.

    Args:
        encoder: the network, changed in place.
        name: name of the model.
        source: ``imagenet``, which timm takes from its cache or its hub, or a file.
        channels: channels of the images; timm adapts the first layer.

    Returns:
        What the weights are, and mean and standard deviation that they expect of photos in [0, 1].

    Raises:
        NetworkError: where the weights cannot be had, or do not fit.
    """
    options: dict[str, Any] = {"pretrained": True}
    if source == "imagenet":
        origin, model = f"timm, {name}", _create(_import(name), name, channels, options)
    else:
        path = find_file(source)
        origin, tensors = compute_digest(path), read_tensors(path)
        overlay = {"state_dict": tensors, "custom_load": False}
        model = _create(_import(name), name, channels, {**options, "pretrained_cfg_overlay": overlay})
        _check_taken(model, tensors, path, name, channels)
    encoder.load_state_dict(model.state_dict())
    published = model.pretrained_cfg
    return origin, tuple(published["mean"]), tuple(published["std"])


def _check_taken(model: nn.Module, tensors: Mapping[str, Tensor], path: Path, name: str, channels: int) -> None:
    """Raise unless all weights come from the file; of other images than RGB, timm adapts those of the first layer.

    timm leaves weights that a file lacks as they are, at random.
    """
    held = {_fingerprint(tensor) for tensor in tensors.values()}
    own = [(key, value) for key, value in model.state_dict().items() if value.is_floating_point()]
    taken = own if channels == 3 else own[1:]
    if missing := [key for key, value in taken if _fingerprint(value) not in held]:
        raise NetworkError(
            f"{path} is of another encoder: of the {len(own)} tensors of {name} it lacks {len(missing)}, for example "
            f"'{missing[0]}'. Use a file of weights of {name}"
        )


def _fingerprint(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().float().contiguous().numpy().tobytes()).digest()


def _import(name: str) -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise NetworkError(
            f"network.encoder = {name} needs timm, which is not installed: pip install 'ssl-seg[encoders]', or use "
            "efficientnet_lite0"
        ) from None
    return timm


def _create(timm: Any, name: str, channels: int, options: dict[str, Any]) -> Any:
    # It prints which weights of a file are not in the encoder: those of the classifier.
    logging.getLogger("timm").setLevel(logging.ERROR)
    try:
        return timm.create_model(name, features_only=True, in_chans=channels, **options)
    except Exception as error:
        what = "its weights are not available" if options else "it cannot be an encoder"
        way = (
            "Set network.encoder_weights to a file or none, or use a machine with network access"
            if options
            else "Use another one"
        )
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise NetworkError(f"network.encoder = {name}: {what}: {reason}. {way}") from error
