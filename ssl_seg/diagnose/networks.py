"""Measure the networks of a checkpoint on fixed patches: signals, dead layers, and the loss of constant predictions.

Shapes: N patches, K classes, *P a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_seg.config.schedules import compute_loss_weights
from ssl_seg.data.loader import Probe
from ssl_seg.data.sampling import derive_seed
from ssl_seg.diagnose.clock import Clock
from ssl_seg.engine.policies import Policies
from ssl_seg.errors import SslSegError
from ssl_seg.inference.model import Model, make_network
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.losses import SupervisedLoss, make_supervised_loss
from ssl_seg.losses.trivial import Labeled, compute_constants, compute_frequencies, compute_ranges
from ssl_seg.methods import METHODS
from ssl_seg.monitor.actions import list_components, read_context
from ssl_seg.monitor.evidence import Evidence
from ssl_seg.monitor.memory import Memory, read_memory
from ssl_seg.monitor.signals import Loss, Signals, collect_signals, cut_batches
from ssl_seg.networks.builders import has_batch_norm
from ssl_seg.networks.precision import seeded
from ssl_seg.run.pretraining.state import make_initial

ROW = (
    "f1",
    "f1_best",
    "threshold_best",
    "auroc",
    "average_precision",
    "prob_mean",
    "prob_std",
    "prob_max",
    "logit_mean",
    "logit_std",
    "prevalence_pred",
    "prevalence_true",
    "trivial_f1",
    "dice",
)
"""Figures of ``statistics["nets"]``."""
SILENT = 1e-6
"""A channel whose range is below this share of its largest value is constant: the rest is rounding."""


@dataclass(frozen=True)
class ProbedNets:
    """Signals of the networks on the validation probe, and on the labeled training probe where there is one."""

    val: Mapping[str, Signals]
    train: Mapping[str, Signals]
    train_mode: Signals | None
    """The student in train mode; None without BatchNorm."""
    untrained: Signals | None
    """The network that the run began with; None if there was no time."""
    evidence: Evidence
    """What the rules of the monitor judge: what the run's own monitor saw, where the probe is the same."""

    def summarize(self, which: str) -> dict[str, dict[str, Any]]:
        """Return ``statistics["nets"]``; ``which`` is the network that is examined."""
        extra = {"train_mode": self.train_mode, "untrained": self.untrained, "train_probe": self.train.get(which)}
        rows = {**self.val, **{name: signals for name, signals in extra.items() if signals is not None}}
        return {name: {figure: getattr(signals, figure) for figure in ROW} for name, signals in rows.items()}


def probe_nets(
    model: Model, val: Probe, train: Probe, clock: Clock, until: float, *, is_of_run: bool = False
) -> ProbedNets:
    """Return the signals; the untrained network only if less than the share ``until`` of the time is used by then.

    Args:
        val: at least one patch.
        train: may be empty.
        is_of_run: whether ``val`` is the probe of the run; then its monitor saw the same.
    """

    config = model.config
    supervised = _make_loss(model)
    weighted = partial(supervised, epoch=model.checkpoint.progress.step / config.length.steps_per_epoch)

    def collect(net: nn.Module, probe: Probe, *, train_mode: bool = False, loss: Loss | None = None) -> Signals:
        return collect_signals(
            net, probe, config.data.label_values, model.device, config.patches, model.autocast,
            train_mode=train_mode, loss=loss, threshold=config.prediction.threshold,
        )  # fmt: skip

    on_val = {name: collect(net, val, loss=weighted) for name, net in model.nets.items()}
    on_train = {name: collect(net, train) for name, net in model.nets.items()} if len(train.image) else {}
    student = model.nets["student"]
    train_mode = collect(student, val, train_mode=True) if has_batch_norm(student) else None
    untrained = collect(_make_untrained(model), val) if clock.has_left(until) else None
    memory = read_memory(model.checkpoint.parts.get("monitor")) if is_of_run else Memory()
    evidence = Evidence(
        "trained",
        on_val,
        on_train if model.config.monitor.train_probe_patches or not is_of_run else {},
        train_mode,
        memory.training,
        memory.trend,
        list_components(model.config.loss),
        compute_ranges(supervised.components, cut_batches(val, config.patches, model.device), config.data.num_classes),
        METHODS[model.config.method.name].traits.uses_teacher,
        read_context(model.config),
        is_final=True,
    )
    return ProbedNets(on_val, on_train, train_mode, untrained, evidence)


@torch.no_grad()
def measure_trivial_losses(model: Model, which: str, probe: Probe) -> dict[str, Any]:
    """Return ``statistics["trivial_losses"]``: the supervised loss of a network and of constant, sure predictions.

    Means over batches of the run's size, in eval mode, with the loss weights at the step of the checkpoint. A loss
    that is lower for a constant prediction than for the network asks for the constant.
    """
    config = model.config
    loss = _make_loss(model)
    epoch = model.checkpoint.progress.step / config.length.steps_per_epoch
    parts = cut_batches(probe, config.labeled_range[1], model.device)
    batches = [(image, target) for image, target in parts if (target != IGNORE_INDEX).any()]
    constants = compute_constants(loss.components, batches, compute_frequencies(batches, config.data.num_classes))
    network = _measure_network(model, which, loss, batches, epoch)
    weights = compute_loss_weights(loss.phases, epoch)
    components = {
        name: {
            "weight": weight,
            "network": network[name],
            **{constant: constants[name][constant] for constant in ("all_positive", "all_negative")},
        }
        for name, weight in weights.items()
    }
    columns = ("network", "all_positive", "all_negative")
    totals = {column: sum(row["weight"] * row[column] for row in components.values()) for column in columns}
    return {**totals, "components": components}


@torch.no_grad()
def measure_layers(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """Return ``statistics["layers"]``: parameters that are 0 or not finite, and from where on nothing varies.

    Args:
        net: in eval mode.
        images: (N,C,*P) on its device, N at least 1.
    """
    matrices = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    state = {name: v for name, v in net.state_dict().items() if v.is_floating_point()}
    constant: list[tuple[str, bool]] = []  # of each module in the order of the pass

    def watch(name: str) -> Any:
        def look(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim > 2:
                channels = output.float().transpose(0, 1).flatten(1)
                spread = channels.amax(1) - channels.amin(1)
                constant.append((name, bool((spread <= SILENT * channels.abs().amax(1)).all())))

        return look

    leaves = [(name, module) for name, module in net.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(name)) for name, module in leaves]
    net(images)
    for handle in handles:
        handle.remove()
    silent = None
    for name, is_constant in reversed(constant):
        if not is_constant:
            break
        silent = name
    return {
        "zero_weights": [name for name, p in matrices.items() if not p.any()],
        "non_finite_weights": [name for name, v in state.items() if not torch.isfinite(v).all()],
        "silent": silent,
    }


def _make_loss(model: Model) -> SupervisedLoss:
    """Return the loss of a run as it is at its checkpoint."""
    config, loss = model.config, make_supervised_loss(model.config.loss)
    loss.phases = Policies(config.policies).adapt_phases(loss.phases, model.checkpoint.progress)
    return loss


def _measure_network(
    model: Model, which: str, loss: SupervisedLoss, batches: list[Labeled], epoch: float
) -> dict[str, float]:
    sums: dict[str, float] = {}
    for image, target in batches:
        with model.autocast():
            logits = model.nets[which](image)
        for name, value in loss(logits.float(), target, epoch)[1].items():
            sums[name] = sums.get(name, 0.0) + float(value) / len(batches)
    return sums


def _make_untrained(model: Model) -> nn.Module:
    """Return the initial network; with random weights where the files that it starts from are not on this machine."""
    try:
        network = make_initial(model.config)
    except SslSegError:
        with seeded(derive_seed(model.config.seed)):
            network = make_network(model.config)
    return network.eval().to(model.device)
