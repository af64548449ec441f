"""The interventions of ``monitor/recovery.py`` applied to a running training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ssl_seg.engine.ema import WeightAverage
from ssl_seg.engine.engine import FREE, Engine, Restraint
from ssl_seg.engine.policies import PolicyEvent
from ssl_seg.monitor.monitor import Observation
from ssl_seg.monitor.recovery import (
    CONSISTENCY_PAUSE,
    Intervention,
    InterventionSettings,
    RecoveryState,
    climb,
    compute_recovery_lr_factor,
)
from ssl_seg.networks.checkpoint import Checkpoint


@dataclass(frozen=True)
class Interventions:
    """What a run does against its own collapse.

    Args:
        settings: rungs and how they act; None for a run that is left alone.
        average: the mean of weights, which a restore empties.
    """

    settings: InterventionSettings | None = None
    average: WeightAverage | None = None

    def scale_lr(self, recovery: RecoveryState, step: int, multiplier: float) -> float:
        """Return the factor of the scheduled learning rate, given that of the policies: at most 1 after a cut."""
        if self.settings is None or recovery.lr_factor == 1.0:
            return multiplier
        return min(multiplier, 1.0) * compute_recovery_lr_factor(recovery, self.settings, step)

    def restrain(self, recovery: RecoveryState, step: int) -> Restraint:
        """Return what else is held back in update number ``step``."""
        if self.settings is None or recovery.climbed == 0:
            return FREE
        return Restraint(recovery.clip_norm, 0.0 if step < recovery.consistency_off_until else 1.0)

    def act(
        self,
        engine: Engine,
        recovery: RecoveryState,
        observation: Observation,
        load: Callable[[Literal["healthy", "start"]], Checkpoint],
    ) -> tuple[RecoveryState, PolicyEvent | None]:
        """Climb a rung where the observation calls for it; return the state, and what was done.

        Args:
            engine: whose networks a restore changes.
            recovery: state so far.
            observation: observation of this step.
            load: returns the checkpoint of the first or of the second restore, on all processes.
                The second goes back to the start: what collapses again may have been sick already.
        """
        if self.settings is None:
            return recovery, None
        student = observation.val["student"]
        predicts_less = student.prevalence_pred < student.prevalence_true
        climbed, rung = climb(
            recovery, self.settings, observation.verdict, observation.step, predicts_less=predicts_less
        )
        if rung is None:
            return recovery, None
        note = _describe(rung, climbed, self.settings)
        values: dict[str, Any] = {"rung": rung, "codes": list(observation.verdict.codes), "ladder": climbed.to_plain()}
        if rung == "restore":
            kept = load("healthy" if climbed.restores == 1 else "start")
            engine.restore(kept, "the checkpoint of the restore")
            if self.average is not None:  # it holds networks that have just been given up
                self.average.clear()
            note = note.format(step=kept.progress.step)
            values["to_step"] = kept.progress.step
        return climbed, PolicyEvent("intervention", f"intervention ({rung}): {note}", values)


def _describe(rung: Intervention, recovery: RecoveryState, settings: InterventionSettings) -> str:
    steps = (recovery.next_look or 0) - recovery.acted_at
    if rung == "warn":
        return f"collapsed; if that lasts for {steps} more steps, the monitor intervenes"
    if rung == "consistency_off":
        return f"unlabeled patches do not count for {CONSISTENCY_PAUSE * settings.patience} steps"
    if rung == "lower_lr":
        return (
            f"learning rate x {recovery.lr_factor:g}, gradients are clipped to norm {recovery.clip_norm:g} from now on"
        )
    if rung == "resample":
        return f"labeled patches hold {recovery.foreground} foreground from now on"
    if rung == "restore":
        return (
            f"restore {recovery.restores}: networks and optimizer are those of step {{step}} again; "
            f"learning rate x {recovery.lr_factor:g}, after a warm-up"
        )
    return "nothing has helped: the run ends here"
