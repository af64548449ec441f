"""The probe of a configuration's loss, and its result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer
from ssl_seg.config.schedules import LossPhase
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.open import make_source, open_store
from ssl_seg.data.sampling import derive_seed
from ssl_seg.diagnose.loss_probe.knobs import Knob, measure_knobs
from ssl_seg.diagnose.loss_probe.measures import compute_cosines, compute_shares, measure_errors, measure_gradients
from ssl_seg.errors import CheckpointError
from ssl_seg.files import to_finite
from ssl_seg.inference.model import config_of
from ssl_seg.losses import LossFn, make_supervised_loss
from ssl_seg.losses.trivial import Labeled, compute_constants, compute_frequencies, find_positive_class
from ssl_seg.networks.builders import get_network_spec
from ssl_seg.networks.checkpoint import load_checkpoint, load_weights
from ssl_seg.networks.precision import choose_device
from ssl_seg.run.pretraining.state import make_initial
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve

INITIALIZATION = "initialization"


@dataclass(frozen=True)
class Cosine:
    """Cosine between the mean gradients of two components, the standard error of their dot product in units of it, and
    its range within single batches.

    All are NaN without a gradient, the error also for one batch. The mean need not lie in the range: what two gradients
    share in each batch, such as its own prevalence, cancels in the mean.
    """

    first: str
    second: str
    mean: float
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class StateProbe:
    """The loss at one state of the network: ``values`` and ``norms`` (of the mean gradients) are unweighted and by
    component; ``shares`` has one mapping a phase, with the components of positive weight."""

    name: str
    values: Mapping[str, float]
    norms: Mapping[str, float]
    cosines: tuple[Cosine, ...]
    shares: tuple[Mapping[str, float], ...]
    knobs: tuple[Knob, ...]


@dataclass(frozen=True)
class LossProbe:
    """All figures of a probe.

    ``frequencies`` (K) are those of the classes among the valid voxels of the batches; ``positive_class`` is what
    all_positive predicts; ``constants[component][prediction]`` are means over the batches.
    """

    phases: tuple[LossPhase, ...]
    batches: int
    frequencies: tuple[float, ...]
    positive_class: int
    constants: Mapping[str, Mapping[str, float]]
    states: tuple[StateProbe, ...]
    data: str = ""
    """Where the batches come from."""

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components of all phases."""
        return tuple(self.constants)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON; a figure that is not finite is None."""
        plain: dict[str, Any] = to_finite(asdict(self))
        return plain


@dataclass(frozen=True)
class ProbeRequest:
    """What to probe: ``layers`` are files and options as for a training; of a checkpoint the student is looked at."""

    layers: tuple[Layer, ...] = ()
    checkpoint: Path | None = None
    batches: int = 4


def probe_loss(request: ProbeRequest, tracker: Callable[[str], Track] = lambda _: pass_through) -> LossProbe:
    """Return the probe of a configuration's supervised loss on the labeled patches of its first training batches.

    The network is looked at as a training would start it, and with the weights of the checkpoint if one is given.

    Raises:
        SslSegError: for unusable settings, data or split; a checkpoint of another network; batches without any label.
    """
    resolved = resolve(TrainRequest(request.layers), tracker("reading cases"), gpu=None)
    config = resolved.config
    device = choose_device(config.runtime.accelerator)
    nets = _make_nets(config, request.checkpoint)
    store = open_store(resolved.catalog, config.data, resolved.pseudo_labels)
    source = make_source(config, store, resolved.labeled, resolved.unlabeled)
    drawn = [source[step] for step in tracker("making batches")(range(request.batches), request.batches)]
    batches = [(batch.image.to(device), batch.target.to(device)) for batch in drawn]
    frequencies = compute_frequencies(batches, config.data.num_classes)
    loss = make_supervised_loss(config.loss)
    states = [
        probe_state(
            name, net.to(device), loss.components, loss.phases, batches, config.seed, tracker(f"probing {name}")
        )
        for name, net in nets.items()
    ]
    constants = compute_constants(loss.components, batches, frequencies)
    positive = find_positive_class(frequencies)
    return LossProbe(loss.phases, len(batches), frequencies, positive, constants, tuple(states), config.data.root)


def probe_state(
    name: str,
    net: nn.Module,
    components: Mapping[str, LossFn],
    phases: Sequence[LossPhase],
    batches: Sequence[Labeled],
    seed: int = 0,
    track: Track = pass_through,
) -> StateProbe:
    """Return the figures of a loss at one state of a network, which stays as it is."""
    net = copy.deepcopy(net).train()  # a pass in train mode changes the buffers of batch norm
    seeds = [derive_seed(seed, index) for index in range(len(batches))]
    measured = measure_gradients(net, components, batches, seeds, track)
    errors = measure_errors(net, components, batches, seeds, measured.components, track)
    norms = _by_name(components, measured.components.norm(dim=1))
    return StateProbe(
        name,
        _by_name(components, measured.values),
        norms,
        _list_cosines(list(components), compute_cosines(measured.components), errors, measured.single),
        tuple(compute_shares(norms, phase.weights) for phase in phases),
        measure_knobs(net, components, batches, seeds, measured.foreground, track),
    )


def _make_nets(config: Config, checkpoint: Path | None) -> dict[str, nn.Module]:
    """Return the network of each state, in the order of training."""
    nets = {INITIALIZATION: make_initial(config)}
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        _check_fits(config, config_of(loaded, checkpoint), checkpoint)
        trained = copy.deepcopy(nets[INITIALIZATION])
        load_weights(trained, loaded.student, str(checkpoint))
        nets[f"{checkpoint.name}, step {loaded.progress.step}"] = trained
    return nets


def _check_fits(config: Config, stored: Config, path: Path) -> None:
    """Compare what the names and shapes of weights do not show: the kind of norm, and the strides."""
    for key in ("name", "norm"):
        ours, theirs = getattr(config.network, key), getattr(stored.network, key)
        if ours != theirs:
            raise CheckpointError(
                f"{path} holds a network with network.{key} = {theirs}; the configuration has {ours}. "
                f"Give --set network.{key}={theirs}."
            )
    divisor = get_network_spec(config.network.name).divisor
    ours, theirs = (tuple(divisor(c.data.patch_size)) for c in (config, stored))
    if ours != theirs:
        raise CheckpointError(
            f"{path} holds a network with strides {list(theirs)} in all, the configuration one with {list(ours)}. "
            f"Give the patch size of the checkpoint: --set data.patch_size={list(stored.data.patch_size)}."
        )


def _list_cosines(names: Sequence[str], mean: Tensor, error: Tensor, single: Tensor) -> tuple[Cosine, ...]:
    """Return the pairs of three matrices (C, C) and, over batches, (B, C, C)."""
    matrices = [matrix.tolist() for matrix in (mean, error, single.amin(dim=0), single.amax(dim=0))]
    pairs = combinations(range(len(names)), 2)
    return tuple(Cosine(names[i], names[j], *(matrix[i][j] for matrix in matrices)) for i, j in pairs)


def _by_name(names: Mapping[str, Any], values: Tensor) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
