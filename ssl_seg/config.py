"""The settings of a run as strict, frozen models. ``configio`` reads, merges, checks and writes them.

A field without a default is *planned from the data* (``plan.py``) unless a file or the command line gives it; so are
``data.layout``, ``data.ignore_value`` and ``batch.positive_ratio``, whose defaults serve where there is no plan.
An unknown key is an error everywhere. Shapes are in array order (Z, Y, X) or (Y, X).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot be changed, docstrings describe the fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataConfig(Section):
    """Where the images are and how they are cut."""

    root: str = "synthetic:particles"
    """Folder or manifest in one of the layouts of `ssl-seg data layouts`; or synthetic:particles, synthetic:sheets."""
    layout: str = "auto"
    """Layout of the folder; auto recognizes it."""
    groups: str | None = None
    """CSV with the columns name,group (patient, paper, tile); groups.csv inside the folder is used unasked."""
    label_values: tuple[int, ...] = Field(min_length=2)
    """Value of each class in the mask files, background first."""
    label_map: dict[int, int] = Field(default_factory=dict)
    """Mask value of a file -> value to use instead, before all else: {2: 1} makes class 2 part of class 1."""
    ignore_value: int | None = None
    """Mask value of voxels that neither losses nor metrics look at."""
    channels: PositiveInt
    """Image channels."""
    patch_size: tuple[PositiveInt, ...] = Field(min_length=2, max_length=3)
    """Size of a training patch and of an inference window; its length says 2D or 3D."""
    spacing: tuple[float, ...] | None = None
    """Size of a voxel along each axis, for surface distances and resampling; that of each image file when unset."""
    resample_to: tuple[float, ...] | None = None
    """Voxel size that all images are resampled to for the network; masks are predicted and scored as stored."""
    foreground_ratio: float = Field(ge=0, le=1)
    """Share of labeled patches that are centered on a foreground voxel."""
    cache_mb: PositiveInt = 2048
    """Decoded cases kept in memory, per process. Larger volumes are read by box."""
    disk_cache_gb: float = Field(20.0, ge=0)
    """Space for decoded copies of compressed volumes that do not fit into cache_mb; 0 decodes them again each time."""

    @property
    def num_classes(self) -> int:
        """Number of classes including background."""
        return len(self.label_values)

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.patch_size)

    @model_validator(mode="after")
    def _spacing_has_one_value_an_axis(self) -> DataConfig:
        for name, values in (("spacing", self.spacing), ("resample_to", self.resample_to)):
            if values is not None and (len(values) != self.ndim or min(values) <= 0):
                raise ValueError(f"{name} {values} needs {self.ndim} positive values, one for each axis of patch_size")
        return self

    @model_validator(mode="after")
    def _label_values_are_distinct(self) -> DataConfig:
        values = [*self.label_values, *([] if self.ignore_value is None else [self.ignore_value])]
        if len(set(values)) < len(values) or min(self.label_values) < 0 or max(self.label_values) > 65535:
            raise ValueError(f"label_values and ignore_value {values} must be distinct, and the labels in 0..65535")
        return self


class SplitConfig(Section):
    """Which cases are labeled, unlabeled, validation and test."""

    file: str | None = None
    """A split written by `ssl-seg split make`; made from the seed when unset."""
    labels: float = Field(1.0, gt=0)
    """Labeled share of the training pool (0..1], or a number of cases above 1."""
    seed: int = Field(0, ge=0)
    """Seed of the split, apart from the seed of the training: several trainings can share one split."""
    val_fraction: float = Field(0.15, gt=0, lt=1)
    """Share of the labeled cases kept for validation."""
    test_fraction: float = Field(0.20, ge=0, lt=1)
    """Share of the labeled cases sealed for the final test."""
    folds: int | None = Field(None, ge=2)
    """Number of cross-validation folds; each fold is the validation set once, and val_fraction is not used."""
    fold: int = Field(0, ge=0)
    """The fold that is the validation set, from 0."""
    allow_faults: bool = False
    """Train although the split check finds a fault; set by --allow-split."""

    @model_validator(mode="after")
    def _fold_exists(self) -> SplitConfig:
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} does not exist: there are {self.folds or 'no'} folds, counted from 0")
        if self.folds is not None and self.file is not None:
            raise ValueError(f"file {self.file} is one split; folds makes others: give one of them")
        return self


class NetworkConfig(Section):
    """The segmentation network."""

    name: str
    """A key of NETWORKS; `ssl-seg networks` lists them."""
    features: PositiveInt | None = None
    """Width of the first level; the network's own default when unset."""
    norm: Literal["instance", "group", "batch"] = "instance"
    """Normalization. Batch statistics make student and teacher differ between train and eval mode."""
    deep_supervision: int = Field(0, ge=0, le=4)
    """Further outputs at coarser levels that the supervised loss looks at too; dynunet only."""


class MethodConfig(Section):
    """The learning method."""

    name: str = "mean_teacher"
    """A key of METHODS; `ssl-seg methods` lists them with their options."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that method, checked against its own strict model."""


class OptimConfig(Section):
    """Optimizer, learning-rate schedule and clipping."""

    name: Literal["adamw", "sgd"] = "adamw"
    """Optimizer; sgd uses Nesterov momentum."""
    lr: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decoupled for adamw, L2 for sgd."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd, beta1 of adamw."""
    warmup_steps: int = Field(50, ge=0)
    """Steps of linear warm-up from near 0 to lr; one_cycle rises by itself and has none."""
    schedule: Literal["constant", "poly", "cosine", "cosine_restarts", "one_cycle", "reduce_on_plateau"] = "poly"
    """Form after the warm-up; poly, cosine and one_cycle reach floor x lr at the last step."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    floor: float = Field(0.0, ge=0, le=1)
    """Share of lr that is left at the end; the lowest share for reduce_on_plateau."""
    restart_epochs: PositiveInt = 10
    """Length of the first cycle of cosine_restarts, in epochs."""
    restart_growth: PositiveInt = 2
    """Factor from the length of a cycle of cosine_restarts to the next."""
    one_cycle_rise: float = Field(0.3, gt=0, lt=1)
    """Share of the run over which one_cycle rises to lr."""
    plateau_patience: PositiveInt = 5
    """Epochs in a row without a better validation score after which reduce_on_plateau lowers the rate."""
    plateau_factor: float = Field(0.5, gt=0, lt=1)
    """Factor of each such reduction."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """Multiply lr by the batch size over lr_batch_size, or by its square root. The batch is that of all processes; of a
    random batch size, the mean."""
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
    final_decay: float | None = Field(None, ge=0, le=1)
    """Decay at the end of the run; given with the schedules linear and cosine, and only with them."""

    @model_validator(mode="after")
    def _final_decay_fits_the_schedule(self) -> EMAConfig:
        if self.schedule != "constant" and self.final_decay is None:
            raise ValueError(f"schedule {self.schedule} passes from decay to final_decay: give final_decay, e.g. 1.0")
        if self.schedule == "constant" and self.final_decay is not None:
            raise ValueError(f"final_decay {self.final_decay} is not used by schedule constant: use linear or cosine")
        return self


class BatchConfig(Section):
    """Composition of a batch, on each process."""

    labeled: PositiveInt
    """Labeled patches."""
    unlabeled: int = Field(ge=0)
    """Unlabeled patches; 0 for a purely supervised run."""
    positive_ratio: float | None = Field(None, ge=0, le=1)
    """Share of labeled patches from cases with foreground; null draws all labeled cases equally often."""


class AugmentConfig(Section):
    """Weak views change geometry only; strong views add intensity changes on the same geometry."""

    flips: bool = True
    """Mirror along random axes."""
    rotate90: bool = True
    """Rotate by multiples of 90 degrees in the (Y, X) plane."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Rotate by up to so many degrees in the (Y, X) plane."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Enlarge or shrink by a factor of up to 1 + scale."""
    elastic: float = Field(0.0, ge=0, le=1)
    """Probability of an elastic deformation."""
    intensity: float = Field(0.5, ge=0, le=1)
    """Strength of brightness, contrast, gamma, noise, blur and low resolution in the strong view."""
    cutout: float = Field(0.3, ge=0, le=1)
    """Probability that boxes of the strong view are blanked."""
    labeled_strong: bool = False
    """Give the labeled images the strong intensity changes too."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Probability that a strong view has a box of another one in it; its pseudo-label follows."""
    copy_paste: float = Field(0.0, ge=0, le=1)
    """Probability that the foreground of another labeled patch is pasted into a labeled patch."""


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    if any(w < 0 for w in weights.values()) or not any(w > 0 for w in weights.values()):
        raise ValueError("loss weights must not be negative, and at least one must be positive")
    return weights


class LossPhaseConfig(Section):
    """Other loss weights from an epoch on."""

    from_epoch: PositiveInt
    """First epoch of the phase, counted from 0; before the first phase loss.weights hold."""
    weights: dict[str, float]
    """Weight of each component; those of earlier phases that are not named end."""
    blend_epochs: int = Field(0, ge=0)
    """Epochs over which the weights pass linearly from the old to the new ones; 0 switches at once."""

    _weights_are_sound = field_validator("weights")(_check_weights)


class LossConfig(Section):
    """The supervised loss: a weighted sum of components. `ssl-seg losses` lists components, options and presets."""

    weights: dict[str, float] = Field(default_factory=lambda: {"cross_entropy": 0.5, "dice": 0.5})
    """Weight of each component from the start; keys of LOSSES. A weight of 0 watches a component without using it."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of a component, for example focal: {gamma: 2.0, alpha: 0.75}."""
    fp_cost: float = Field(1.0, gt=0)
    """Cost of false foreground, in every component that takes it: above 1 less foreground is predicted."""
    fn_cost: float = Field(1.0, gt=0)
    """Cost of missed foreground, in every component that takes it: above 1 more foreground is predicted."""
    phases: tuple[LossPhaseConfig, ...] = ()
    """Later phases with other weights, in order of from_epoch."""

    _weights_are_sound = field_validator("weights")(_check_weights)

    @model_validator(mode="after")
    def _phases_are_in_order(self) -> LossConfig:
        starts = [phase.from_epoch for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases start at epochs {starts}: they must increase, each epoch in one phase only")
        return self


class LengthConfig(Section):
    """How long the run is, and how often it is looked at."""

    steps: PositiveInt
    """Optimizer steps."""
    steps_per_epoch: PositiveInt = 100
    """An epoch is a fixed number of steps, whatever the label fraction."""


class MonitorConfig(Section):
    """What is watched, and what a collapse does."""

    first_epoch_probes: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50)
    """Steps of the first epoch at which the probe sets are evaluated; every epoch ends with a probe too."""
    probe_patches: PositiveInt = 48
    """Patches of the fixed validation probe."""
    train_probe_patches: int = Field(8, ge=0)
    """Patches of the fixed labeled-training probe."""
    select: Literal["f1", "dice", "foreground_distance"] = "f1"
    """What best.pt is chosen by, and plateaus are counted in, on the validation probe: F1 (mean over classes), mean
    Dice of the patches, or minus the distance between the distributions of predicted and true foreground share. Never
    the loss: its value depends on its weights."""
    keep_best: PositiveInt = 1
    """How many of the best checkpoints are kept: best.pt, then best-2.pt and so on."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What a collapse at the end of an epoch does; stop ends the run with exit code 3."""


class SWAConfig(Section):
    """Stochastic weight averaging (Izmailov et al. 2018): the mean of the student at the ends of epochs."""

    start_epoch: PositiveInt
    """Number of finished epochs at which the student first enters the mean."""
    every_epochs: PositiveInt = 1
    """Epochs from one entry to the next."""


class WeightNoiseConfig(Section):
    """Gaussian noise on the student's weights, between epochs."""

    start_epoch: PositiveInt
    """Number of finished epochs at which noise is first added; none is added at the end of the run."""
    every_epochs: PositiveInt = 1
    """Epochs from one addition to the next."""
    std: float = Field(gt=0)
    """Standard deviation of the first noise, in units of the weights."""
    decay: float = Field(1.0, gt=0, le=1)
    """Factor of std from one addition to the next."""


class PlateauResponseConfig(Section):
    """A larger learning rate after a plateau, and a way back when that makes things worse."""

    patience: PositiveInt = 5
    """Epochs in a row without a better validation score that make a plateau; then they are counted anew."""
    base: float = Field(1.0, ge=1)
    """Multiplier at the first plateau."""
    gain: float = Field(0.15, ge=0)
    """The learning rate is multiplied by base + (count - 1) * gain at plateau number count."""
    cap: float = Field(5.0, ge=1)
    """Largest multiplier."""
    hold_epochs: PositiveInt = 2
    """Epochs for which the multiplier holds."""
    rollback_drop: float = Field(0.05, gt=0)
    """Fall of the score below the best one that brings back best.pt, while the multiplier holds and for as many epochs
    after that; from then on no multiplier exceeds 1."""


class EarlyStoppingConfig(Section):
    """The end of a run that does not get better."""

    patience: PositiveInt = 40
    """Epochs without a better validation score."""


class GradientNoiseConfig(Section):
    """Gaussian noise on the gradient (Neelakantan et al. 2015), after clipping."""

    std: float = Field(gt=0)
    """Standard deviation at step 0; it falls as std / (1 + step) ** (decay / 2)."""
    decay: float = Field(0.55, ge=0)
    """Exponent of the variance's fall; 0 keeps the noise."""


class RandomBatchSizeConfig(Section):
    """Another number of labeled patches in each step."""

    smallest: PositiveInt
    """Fewest labeled patches."""
    largest: PositiveInt
    """Most labeled patches."""

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> RandomBatchSizeConfig:
        if self.smallest > self.largest:
            raise ValueError(f"smallest {self.smallest} is larger than largest {self.largest}")
        return self


class PoliciesConfig(Section):
    """What happens between epochs; each is off unless given. `ssl-seg config show --plot` draws when each acts."""

    swa: SWAConfig | None = None
    """Average the weights of late epochs into swa.pt."""
    weight_noise: WeightNoiseConfig | None = None
    """Perturb the weights."""
    plateau_response: PlateauResponseConfig | None = None
    """Raise the learning rate at a plateau."""
    early_stopping: EarlyStoppingConfig | None = None
    """Stop a run that does not get better."""
    gradient_noise: GradientNoiseConfig | None = None
    """Perturb the gradients."""
    random_batch_size: RandomBatchSizeConfig | None = None
    """Vary the batch size; batch.labeled is not used then."""


class RuntimeConfig(Section):
    """Machine matters. Beside the number of processes, each with its own batch, none changes more than rounding."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Kind of device."""
    devices: PositiveInt = 1
    """Processes (one device each) on this node; batches are per process."""
    num_nodes: PositiveInt = 1
    """Nodes, started by torchrun or SLURM."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the processor or GPU computes it natively, else fp32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """auto: the faster of the two over a few timed steps."""
    workers: int = Field(0, ge=0)
    """Processes that prepare batches in advance; the batches are the same for every number."""


class Config(Section):
    """All settings of a run; the file in the run directory reproduces it."""

    seed: int = Field(0, ge=0)
    """Seed of initialization, sampling and augmentation."""
    data: DataConfig
    split: SplitConfig = SplitConfig()
    network: NetworkConfig
    method: MethodConfig = MethodConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    ema: EMAConfig = EMAConfig()
    batch: BatchConfig
    augment: AugmentConfig = AugmentConfig()
    length: LengthConfig
    policies: PoliciesConfig = PoliciesConfig()
    monitor: MonitorConfig = MonitorConfig()
    runtime: RuntimeConfig = RuntimeConfig()

    @property
    def labeled_range(self) -> tuple[int, int]:
        """Fewest and most labeled patches of a batch, on each process."""
        random = self.policies.random_batch_size
        return (self.batch.labeled, self.batch.labeled) if random is None else (random.smallest, random.largest)

    @model_validator(mode="after")
    def _warmup_fits(self) -> Config:
        if self.optim.warmup_steps >= self.length.steps:
            raise ValueError(
                f"optim.warmup_steps={self.optim.warmup_steps} leaves no step after the warm-up: "
                f"length.steps={self.length.steps} must be larger"
            )
        return self
