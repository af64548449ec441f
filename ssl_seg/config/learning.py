"""Sections about learning: network, method, loss, optimizer, teacher."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ssl_seg.config.section import NonNegative, PositiveInt, Section, Share

NETS = ("student", "teacher")
"""The networks of a run."""


class NetworkConfig(Section):
    """The segmentation network."""

    name: str
    """Segmentation network; `ssl-seg networks` lists them."""
    features: PositiveInt | None = None
    """Width of the first level; the network's own default when unset."""
    pretrained: str | None = None
    """Run of `ssl-seg pretrain` whose weights the network starts from, all but those of the head; null: none."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalization. Batch statistics make student and teacher differ between train and eval mode."""
    deep_supervision: int = Field(0, ge=0, le=4)
    """Number of further outputs at coarser levels that the supervised loss also uses; dynunet and encoder_unet only."""
    encoder: str = "efficientnet_lite0"
    """Encoder of encoder_unet: efficientnet_lite0, or any convolutional model of timm by name (extra `encoders`)."""
    encoder_weights: str = "imagenet"
    """Initial weights of the encoder: imagenet, none (random), or a file of weights. It keeps the batch statistics that
    come with weights; with none it uses the norm of the network."""


class MethodConfig(Section):
    """The learning method."""

    name: str = "mean_teacher"
    """Learning method; `ssl-seg methods` lists them with their options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that method, checked against its own strict model."""


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    if not all(0 <= weight < math.inf for weight in weights.values()) or not any(weights.values()):
        raise ValueError(
            f"loss weights must be finite and not negative, and at least one must be positive, not {weights}"
        )
    return weights


class LossPhaseConfig(Section):
    """Loss weights that apply from an epoch on."""

    from_epoch: int
    """First epoch of the phase, counted from 0; before the first phase, loss.weights apply."""
    weights: dict[str, float]
    """Weight of each component; components of earlier phases that are not named here end."""
    blend_epochs: int = Field(0, ge=0)
    """Epochs over which the weights pass linearly from the old to the new ones; 0 switches at once."""

    _weights_are_sound = field_validator("weights")(_check_weights)

    @field_validator("from_epoch")
    @classmethod
    def _epoch_0_is_taken(cls, epoch: int) -> int:
        if epoch < 1:
            raise ValueError(
                f"a phase starts at epoch 1 or later, not {epoch}: what holds from epoch 0 is loss.weights"
            )
        return epoch


class LossConfig(Section):
    """The supervised loss: a weighted sum of components. `ssl-seg losses` lists components, options and presets."""

    weights: dict[str, float] = Field(default_factory=lambda: {"cross_entropy": 0.5, "dice": 0.5})
    """Weight of each component from the start; keys of LOSSES. A weight of 0 watches a component without using it."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of a component, for example focal: {gamma: 2.0, alpha: 0.75}."""
    fp_cost: float = Field(1.0, gt=0)
    """Cost of false foreground, in every component that takes it: above 1 less foreground is predicted. Multiplied with
    the component's own option."""
    fn_cost: float = Field(1.0, gt=0)
    """Cost of missed foreground, in every component that takes it: above 1 more foreground is predicted. Multiplied
    with the component's own option."""
    class_weights: Literal["auto"] | tuple[NonNegative, ...] | None = None
    """Weight of each class, background first, in the components that take class_weights (cross_entropy). auto: one over
    the share of the class in the labeled training cases, so that all classes weigh the same; the run writes them out. A
    larger one on foreground predicts more of it."""
    phases: tuple[LossPhaseConfig, ...] = ()
    """Later phases with other weights, in order of from_epoch."""

    _weights_are_sound = field_validator("weights")(_check_weights)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _class_weights_are_numbers(cls, weights: Any) -> Any:
        numbers: list[Any] = list(weights) if isinstance(weights, list | tuple) else []
        if weights in (None, "auto") or (
            len(numbers) > 1
            and all(isinstance(n, int | float) and not isinstance(n, bool) and 0 <= n < math.inf for n in numbers)
        ):
            return weights
        raise ValueError(
            f"{weights!r} must be auto, or a list of a weight for each class, 0 or larger, background first: [1.0, 3.0]"
        )

    @model_validator(mode="after")
    def _phases_are_in_order(self) -> LossConfig:
        starts = [phase.from_epoch for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases start at epochs {starts}: they must increase, each epoch in one phase only")
        return self


class OptimConfig(Section):
    """Optimizer, learning-rate schedule and clipping."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; sgd uses Nesterov momentum."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    encoder_lr_factor: float = Field(1.0, gt=0)
    """Factor of lr for the encoder of any network; below 1 it keeps more of the weights that it started from."""
    weight_decay: float = Field(1e-2, ge=0)
    """Weight decay: decoupled for adamw, L2 for sgd."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd, beta1 of adamw."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear warm-up from near 0 to lr; one_cycle rises by itself and has none."""
    schedule: Literal["constant", "poly", "cosine", "cosine_restarts", "one_cycle", "reduce_on_plateau"] = "poly"
    """Schedule after the warm-up; one_cycle reaches floor x lr at the last step, poly and cosine one step later."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    floor: Share = 0.0
    """Share of lr that is left at the end; the lowest share for reduce_on_plateau."""
    restart_epochs: PositiveInt = 10
    """Length of the first cycle of cosine_restarts, in epochs."""
    restart_growth: PositiveInt = 2
    """Factor by which each cycle of cosine_restarts is longer than the one before."""
    one_cycle_rise: float = Field(0.3, gt=0, lt=1)
    """Share of the run over which one_cycle rises to lr."""
    plateau_patience: PositiveInt = 5
    """Epochs in a row without a better validation score after which reduce_on_plateau lowers the rate."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """Factor of the rate at each reduction of reduce_on_plateau."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply lr by the batch size over lr_batch_size, or by its square root. The batch is that of all processes; for
    a random batch size, the mean counts."""
    lr_batch_size: PositiveInt = 4
    """Labeled batch size that lr was chosen for; read by lr_scaling only."""
    clip_norm: float | None = Field(12.0, gt=0)
    """Largest gradient norm of an update; null switches clipping off. The norm is recorded either way."""


class EMAConfig(Section):
    """How the teacher follows the student."""

    decay: float = Field(0.99, ge=0, lt=1)
    """Weight of the old teacher in one update."""
    warmup: bool = True
    """Use min(decay, 1 - 1/(update + 1)), so that the teacher is not held back by its random start."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the decay passes from decay to final_decay over the run."""
    final_decay: Share | None = None
    """Decay at the end of the run; given with the schedules linear and cosine, and only with them."""

    @model_validator(mode="after")
    def _final_decay_fits_the_schedule(self) -> EMAConfig:
        if self.schedule != "constant" and self.final_decay is None:
            raise ValueError(f"schedule {self.schedule} passes from decay to final_decay: give final_decay, e.g. 1.0")
        if self.schedule == "constant" and self.final_decay is not None:
            raise ValueError(f"final_decay {self.final_decay} is not used by schedule constant: use linear or cosine")
        return self
