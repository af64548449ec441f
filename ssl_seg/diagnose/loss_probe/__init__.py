"""What a loss does before it is trained with.

The values of its components at predictions that need no network, their gradients in the network's parameters, and which
way each cost moves the predicted foreground.

Shapes: C components, P parameters of the network, B batches, N samples, K classes (background = 0), ``*S`` spatial =
(Z, Y, X) or (Y, X). A *labeled batch* is (image (N, channels, *S), target (N, *S) with IGNORE_INDEX allowed).

All in float32 with the network in train mode. Only the supervised loss is looked at, not the consistency term of a
method, and gradients as they are: what an adaptive optimizer makes of them is another matter.
"""

from ssl_seg.diagnose.loss_probe.findings import check_probe
from ssl_seg.diagnose.loss_probe.knobs import Knob
from ssl_seg.diagnose.loss_probe.probe import Cosine, LossProbe, ProbeRequest, StateProbe, probe_loss, probe_state
from ssl_seg.losses.trivial import PREDICTIONS

__all__ = [
    "PREDICTIONS",
    "Cosine",
    "Knob",
    "LossProbe",
    "ProbeRequest",
    "StateProbe",
    "check_probe",
    "probe_loss",
    "probe_state",
]
