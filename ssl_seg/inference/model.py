"""A checkpoint opened for use: its networks, and what is needed to feed them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ssl_seg.config import NETS, Config, NetworkConfig
from ssl_seg.config.layers import validate
from ssl_seg.errors import CheckpointError, ConfigError, quote
from ssl_seg.inference.sliding import LONG, OVERLAP, Predictor
from ssl_seg.monitor.catalog import beats_trivial
from ssl_seg.networks.builders import build_network, get_network_spec
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, load_weights
from ssl_seg.networks.precision import Autocast, choose_device, choose_inference_precision, has_device, make_autocast


def compute_fingerprint(path: Path) -> str:
    """Return sixteen hex digits over the contents of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


@dataclass(frozen=True)
class Model:
    """Both networks of a checkpoint, in eval mode."""

    path: Path
    checkpoint: Checkpoint
    config: Config
    nets: dict[str, nn.Module]
    device: torch.device

    @property
    def better(self) -> str:
        """The network that is used; see ``better_net``."""
        return better_net(self.checkpoint)

    @property
    def fingerprint(self) -> str:
        """See ``compute_fingerprint``."""
        return compute_fingerprint(self.path)

    @property
    def autocast(self) -> Autocast:
        """The precision context of the networks on this machine."""
        return make_autocast(choose_inference_precision(self.config.runtime.precision, self.device), self.device)

    def describe_machine(self) -> list[str]:
        """Return a sentence for each way in which this machine is not that of the training."""
        trained, here = self.config.runtime, self.device.type
        texts = []
        if trained.accelerator not in ("auto", here) and not has_device(trained.accelerator):
            texts.append(
                f"{self.path} was trained on {trained.accelerator}, which this machine lacks: computing on {here}"
            )
        if trained.precision == "bf16" and choose_inference_precision("bf16", self.device) != "bf16":
            texts.append(f"{self.path} was trained in bf16, which this {here} only emulates: computing in fp32")
        return texts

    def describe_doubt(self, net: str) -> list[str]:
        """Return a warning where a network was no better than foreground everywhere when it was last scored."""
        scores = self.checkpoint.scores
        f1, trivial = scores[net]["f1_macro"], scores["trivial_f1"]
        if beats_trivial(f1, trivial):
            return []
        return [
            f"WARNING the {net} of {self.path} is not good enough to be used: F1 {f1:.3f} on validation, predicting "
            f"foreground everywhere {trivial:.3f}. What is wrong: ssl-seg diagnose {quote(self.path)}"
        ]

    @property
    def window_factor(self) -> int:
        """How many patches long the windows are that were better on validation; 1 as long as that is not known."""
        return LONG if self.checkpoint.scores["selected"].get("window_factor") == LONG else 1

    def predictor(self, which: str, overlap: float = OVERLAP, factor: int | None = None) -> Predictor:
        """Return sliding-window inference with one of the networks.

        Args:
            which: student or teacher.
            overlap: overlap of neighboring windows.
            factor: factor of their length; see ``Predictor``. None takes that of the checkpoint.

        Raises:
            ConfigError: for another name than student or teacher, or an overlap outside [0, 1).
        """
        if which not in self.nets:
            raise ConfigError(f"which = '{which}' must be student or teacher")
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap = {overlap} must be from 0 to below 1")
        data = self.config.data
        return Predictor(
            self.nets[which],
            data.patch_size,
            self.device,
            self.autocast,
            overlap,
            resample_to=data.resample_to,
            intensity_window=data.window,
            factor=self.window_factor if factor is None else factor,
            divisor=get_network_spec(self.config.network.name).divisor(tuple(data.patch_size)),
        )


def better_net(checkpoint: Checkpoint) -> str:
    """Return the network of a checkpoint that is used, ``student`` or ``teacher``.

    It was decided when the networks were last scored on validation: at the end of the run on the whole cases, before
    that on the probe. A network with NaN comes last, and one that the monitor found collapsed behind one that is not.
    """
    return str(checkpoint.scores["selected"]["net"])


def find_collapsed(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the networks of a checkpoint that the run's monitor found collapsed at its last look."""
    return tuple(checkpoint.scores["selected"]["collapsed"])


def open_model(path: Path, device: torch.device | None = None) -> Model:
    """Load a checkpoint and build its networks.

    Args:
        device: where to compute; by default on what ``runtime.accelerator`` of the training says, or, where this
            machine has no such device, on what it has.

    Raises:
        CheckpointError: see ``load_checkpoint`` and ``load_weights``.
    """
    checkpoint = load_checkpoint(path)
    config = config_of(checkpoint, path)
    trained = config.runtime.accelerator
    chosen = device or choose_device(trained if has_device(trained) else "auto")
    nets = {}
    for name in NETS:
        net = make_network(config)
        load_weights(net, getattr(checkpoint, name), str(path))
        nets[name] = net.eval().requires_grad_(False).to(chosen)
    return Model(path, checkpoint, config, nets, chosen)


def start_network(config: Config) -> nn.Module:
    """Return the network that a training begins with: random weights, but for those of a published encoder.

    Raises:
        NetworkError: see ``load_published``.
    """
    network = make_network(config)
    load_published(network, config)
    return network


def load_published(network: nn.Module, config: Config) -> str | None:
    """Put published weights into the encoder of a network, where it begins with such.

    Returns:
        The SHA-256 of their file, or where they come from; None for a network that begins with random weights.

    Raises:
        NetworkError: for weights that are missing, damaged or of another encoder.
    """
    if not has_published_encoder(config.network):
        return None
    from ssl_seg.networks.encoders import load_encoder

    return load_encoder(network, config.network.encoder, config.network.encoder_weights)


def has_published_encoder(network: NetworkConfig) -> bool:
    """Return whether the encoder begins with weights that somebody has published."""
    return get_network_spec(network.name).has_encoder and network.encoder_weights != "none"


def make_network(config: Config) -> nn.Module:
    """Return the network that the configuration describes, with random weights; those of a checkpoint can be loaded."""
    return build_network(
        config.network.name,
        ndim=config.data.ndim,
        channels=config.data.channels,
        num_classes=config.data.num_classes,
        patch_size=config.data.patch_size,
        features=config.network.features,
        norm=config.network.norm,
        deep_supervision=config.network.deep_supervision,
        encoder=config.network.encoder,
        pretrained=has_published_encoder(config.network),
    )


def config_of(checkpoint: Checkpoint, path: Path) -> Config:
    """Return the configuration stored in a checkpoint.

    Raises:
        CheckpointError: when it was written by a version with other settings.
    """
    try:
        return validate(Config, checkpoint.config)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not fit this version: {error}") from error
