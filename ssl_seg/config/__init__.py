"""The settings of a run as strict, frozen models. ``layers`` reads, merges and checks them.

A field without a default is *planned from the data* (``plan.py``) unless a file or the command line gives it; so are
``data.layout``, ``data.mask``, ``data.threshold``, ``data.ignore_value``, ``data.nodata``, ``data.window`` and
``batch.positive_ratio``, whose defaults
serve where there is no plan.
An unknown key is an error everywhere. Shapes are in array order (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from ssl_seg.config.bootstrap import BootstrapConfig
from ssl_seg.config.data import AugmentConfig, BatchConfig, DataConfig, SplitConfig
from ssl_seg.config.gates import GateConfig, TargetsConfig
from ssl_seg.config.learning import (
    NETS,
    EMAConfig,
    LossConfig,
    LossPhaseConfig,
    MethodConfig,
    NetworkConfig,
    OptimConfig,
)
from ssl_seg.config.policies import (
    AfterRollbackConfig,
    EarlyStoppingConfig,
    GradientNoiseConfig,
    PlateauResponseConfig,
    PoliciesConfig,
    RandomBatchSizeConfig,
    SWAConfig,
    WeightNoiseConfig,
)
from ssl_seg.config.section import PositiveInt, Section, Seed

__all__ = [
    "NETS",
    "AfterRollbackConfig",
    "AugmentConfig",
    "BatchConfig",
    "BootstrapConfig",
    "Config",
    "DataConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "GateConfig",
    "GradientNoiseConfig",
    "LengthConfig",
    "LossConfig",
    "LossPhaseConfig",
    "MethodConfig",
    "MonitorConfig",
    "NetworkConfig",
    "OptimConfig",
    "PlateauResponseConfig",
    "PoliciesConfig",
    "PredictionConfig",
    "RandomBatchSizeConfig",
    "RuntimeConfig",
    "SWAConfig",
    "Section",
    "SplitConfig",
    "TargetsConfig",
    "WeightNoiseConfig",
]


class LengthConfig(Section):
    """How long the run is, and how often it is looked at."""

    steps: PositiveInt
    """Optimizer steps of the run."""
    steps_per_epoch: PositiveInt = 100
    """An epoch is a fixed number of steps, whatever the label fraction."""
    snapshots: int = Field(0, ge=0, le=100)
    """Number of networks to keep on the way, evenly spaced: 2 keeps those after one and two thirds of the steps."""


class MonitorConfig(Section):
    """What is watched, and what happens at a collapse."""

    first_epoch_probes: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    """Steps of the first epoch at which the probe sets are evaluated; every epoch ends with a probe too."""
    probe_patches: PositiveInt = 32
    """Patches of the fixed validation probe."""
    train_probe_patches: int = Field(8, ge=0)
    """Patches of the fixed labeled-training probe."""
    select: Literal["f1", "dice", "foreground_distance", "pq"] = "f1"
    """What best.pt is chosen by, and plateaus are counted in, on the validation probe: F1 (mean over classes), mean
    Dice of the patches, minus the distance between the distributions of predicted and true foreground share, or, with
    data.task: instances, panoptic quality (of objects). Never the loss: its value depends on its weights."""
    keep_best: PositiveInt = 1
    """How many of the best checkpoints are kept: best.pt, then best-2.pt and so on."""
    check_steps: PositiveInt = 20
    """Steps between two checks of the training loss alone; a loss that has become NaN or 0 triggers a look at once."""
    on_collapse: Literal["warn", "stop", "recover"] = "warn"
    """What happens at a collapse after the first epoch: warn reports it, and ends the run only if the student's weights
    are NaN; stop ends the run with exit code 3 at the end of the epoch; recover intervenes step by step
    (`docs/collapse.md`) and also ends the run when nothing helps."""
    act_on: tuple[str, ...] = ()
    """Codes of warnings that stop and recover treat as a collapse, for example component_explosion, trivial_loss or
    overfitting."""
    patience_steps: PositiveInt = 25
    """Steps that recover waits for an intervention to work before the next one."""

    @model_validator(mode="after")
    def _something_acts(self) -> MonitorConfig:
        if self.act_on and self.on_collapse == "warn":
            raise ValueError(
                f"act_on {list(self.act_on)} does nothing with on_collapse=warn: give on_collapse=stop or recover too"
            )
        return self


class PredictionConfig(Section):
    """How probabilities become classes, in training and after it."""

    threshold: float | None = Field(None, gt=0, lt=1)
    """Probability above which a voxel is foreground, for two classes; null takes the likeliest class, which is 0.5.
    Looks, final scores, `evaluate` and `predict` use it; a calibration and --threshold take precedence."""


class RuntimeConfig(Section):
    """The machine. Only the number of processes, each with its own batch, changes more than rounding."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device. auto: a CUDA GPU where there is one, else the CPU; mps, Apple's GPU, has to be asked for."""
    devices: PositiveInt = 1
    """Processes (one device each) on this node; batches are per process."""
    num_nodes: PositiveInt = 1
    """Nodes, started by torchrun or SLURM."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the processor or GPU computes it natively, else fp32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """auto: the faster of the two over a few timed steps."""
    workers: NonNegativeInt | Literal["auto"] = "auto"
    """Processes that prepare batches in advance; the batches are the same for every number. auto: none on a CPU, where
    the network needs the cores; on a GPU as many as keep it from waiting, by measurement."""


class Config(Section):
    """All settings of a run; the file in the run directory reproduces it."""

    seed: Seed = 0
    """Seed of initialization, sampling and augmentation."""
    data: DataConfig
    split: SplitConfig = SplitConfig()
    network: NetworkConfig
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    bootstrap: BootstrapConfig = BootstrapConfig()
    batch: BatchConfig
    augment: AugmentConfig = AugmentConfig()
    length: LengthConfig
    policies: PoliciesConfig = PoliciesConfig()
    gates: tuple[GateConfig, ...] = ()
    """What the run must show to continue; a gate that is not met ends it with exit code 3."""
    targets: TargetsConfig = TargetsConfig()
    """What its final scores should be."""
    monitor: MonitorConfig = MonitorConfig()
    prediction: PredictionConfig = PredictionConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def labeled_range(self) -> tuple[int, int]:
        """Fewest and most labeled patches of a batch, on each process."""
        random = self.policies.random_batch_size
        return (self.batch.labeled, self.batch.labeled) if random is None else (random.smallest, random.largest)

    @property
    def patches(self) -> int:
        """Most patches of a batch, labeled and unlabeled, on each process."""
        return self.labeled_range[1] + self.batch.unlabeled

    @model_validator(mode="after")
    def _threshold_has_two_classes(self) -> Config:
        if self.prediction.threshold is not None and self.data.num_classes != 2:
            raise ValueError(
                f"prediction.threshold={self.prediction.threshold:g} cannot tell {self.data.num_classes} classes "
                "apart: leave it out, and the likeliest class is taken"
            )
        return self

    @model_validator(mode="after")
    def _pq_is_of_objects(self) -> Config:
        if self.monitor.select == "pq" and self.data.task != "instances":
            raise ValueError(
                "monitor.select=pq scores objects, which data.task=semantic does not learn: give --task instances, or "
                "select f1, dice or foreground_distance"
            )
        return self

    @model_validator(mode="after")
    def _weights_after_a_rollback_fit(self) -> Config:
        response = self.policies.plateau_response
        weights = (
            {} if response is None or response.after_rollback is None else response.after_rollback.component_weights
        )
        if unknown := [name for name in weights if name not in self.loss.weights]:
            raise ValueError(
                f"policies.plateau_response.after_rollback.component_weights names '{unknown[0]}', which loss.weights "
                f"does not: give it a weight there (0 watches it), or one of {', '.join(self.loss.weights)} here"
            )
        for phase in (self.loss.weights, *(phase.weights for phase in self.loss.phases)):
            if not any({**phase, **weights}.values()):
                raise ValueError(
                    f"policies.plateau_response.after_rollback.component_weights = {weights} leaves no component of "
                    f"{phase} with a weight: at least one must be positive"
                )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        if self.optim.warmup_steps >= self.length.steps:
            raise ValueError(
                f"optim.warmup_steps={self.optim.warmup_steps} leaves no step after the warm-up: "
                f"length.steps={self.length.steps} must be larger, or give "
                f"--set optim.warmup_steps={self.length.steps // 10}"
            )
        return self
