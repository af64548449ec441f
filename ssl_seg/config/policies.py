"""Sections about what happens between epochs."""

from __future__ import annotations

from pydantic import Field, model_validator

from ssl_seg.config.section import NonNegative, PositiveInt, Section


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


class AfterRollbackConfig(Section):
    """A milder plateau response, which takes over at the rollback; the count of plateaus restarts."""

    base: float = Field(1.2, ge=1)
    """Multiplier at the first plateau after the rollback."""
    gain: float = Field(0.5, ge=0)
    """The learning rate is multiplied by base + (count - 1) * gain at plateau number count after the rollback; cap and
    hold_epochs stay."""
    component_weights: dict[str, NonNegative] = Field(default_factory=dict)
    """Weights that components of loss.weights have from the rollback on, in this and in all later phases."""
    judge_epochs: PositiveInt | None = 10
    """Epochs after the rollback in which a score must exceed the earlier best; else the run ends; null: no limit."""


class PlateauResponseConfig(Section):
    """A larger learning rate after a plateau, and a way back when that makes things worse."""

    patience: PositiveInt = 5
    """Epochs in a row without a better validation score that make a plateau; then the count restarts."""
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
    after that; from then on no multiplier exceeds 1, unless after_rollback is given."""
    after_rollback: AfterRollbackConfig | None = None
    """What takes over at the first rollback; after a second one, the rate is never raised again."""


class EarlyStoppingConfig(Section):
    """When to end a run that does not get better."""

    patience: PositiveInt = 40
    """Epochs without a better validation score."""


class GradientNoiseConfig(Section):
    """Gaussian noise on the gradient (Neelakantan et al. 2015), after clipping."""

    std: float = Field(gt=0)
    """Standard deviation at step 0; it falls as std / (1 + step) ** (decay / 2)."""
    decay: float = Field(0.55, ge=0)
    """Exponent of the variance's fall; 0 keeps the noise."""


class RandomBatchSizeConfig(Section):
    """A random number of labeled patches in each step."""

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
