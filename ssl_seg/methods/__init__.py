"""Learning methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssl_seg.config import NetworkConfig
from ssl_seg.config.layers import validate
from ssl_seg.errors import ConfigError, did_you_mean
from ssl_seg.losses import SupervisedLoss
from ssl_seg.methods.ad_mt import AlternateDiverseTeaching
from ssl_seg.methods.base import Method
from ssl_seg.methods.bcp import BidirectionalCopyPaste
from ssl_seg.methods.cct import CrossConsistency
from ssl_seg.methods.cps import CrossPseudoSupervision
from ssl_seg.methods.dtc import DualTaskConsistency
from ssl_seg.methods.entropy_minimization import EntropyMinimization
from ssl_seg.methods.fixmatch import FixMatch
from ssl_seg.methods.ict import InterpolationConsistency
from ssl_seg.methods.mean_teacher import MeanTeacher
from ssl_seg.methods.supervised import Supervised
from ssl_seg.methods.uamt import UncertaintyAwareMeanTeacher
from ssl_seg.methods.unimatch import UniMatch
from ssl_seg.methods.urpc import PyramidConsistency
from ssl_seg.networks.builders import NETWORKS

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
    "cps": CrossPseudoSupervision,
    "entropy_minimization": EntropyMinimization,
    "uamt": UncertaintyAwareMeanTeacher,
    "ict": InterpolationConsistency,
    "bcp": BidirectionalCopyPaste,
    "urpc": PyramidConsistency,
    "cct": CrossConsistency,
    "dtc": DualTaskConsistency,
    "ad_mt": AlternateDiverseTeaching,
}


LABELED_ONLY = next(
    name for name, method in METHODS.items() if not (method.traits.uses_teacher or method.traits.uses_unlabeled)
)
"""The method that learns from labeled patches alone."""


def make_method(name: str, options: Mapping[str, Any], supervised: SupervisedLoss, num_classes: int) -> Method:
    """Return the method with its options checked.

    Raises:
        ConfigError: unknown method or option, with the nearest known one.
    """
    if name not in METHODS:
        raise ConfigError(f"method.name = '{name}': unknown{did_you_mean(name, METHODS)}; known: {', '.join(METHODS)}")
    method = METHODS[name]
    return method(validate(method.config_type, dict(options), prefix="method.options."), supervised, num_classes)


def check_traits(name: str, network: NetworkConfig) -> None:
    """Raise ConfigError for a method that needs what the network cannot give.

    Args:
        name: one of ``METHODS``.
        network: network of the run.
    """
    traits, needs = METHODS[name].traits, ""
    if traits.needs_features and not NETWORKS[network.name].has_encoder:
        able = ", ".join(other for other, spec in NETWORKS.items() if spec.has_encoder)
        needs = f"works on features between encoder and decoder, which this network does not hand out. Use {able}"
    elif traits.needs_heads and network.deep_supervision == 0:
        able = ", ".join(other for other, spec in NETWORKS.items() if spec.deep_supervision)
        needs = f"learns from outputs at several scales, and there is one. Set network.deep_supervision ({able} can)"
    if needs:
        raise ConfigError(f"method.name = '{name}' with network.name = '{network.name}': the method {needs}")
