"""What happens between epochs. Each policy is off unless the settings name it.

All decisions are functions of the settings, the seed, the epoch and the validation scores of the finished epochs, which
a checkpoint carries; so a resumed run decides as the uninterrupted one. Only the weight average has a state.

The scores are the ranking scores of ``TrainingState``: an epoch at whose end the networks had collapsed lies below all
others. So a collapse is no progress for which to go on, and a run that comes back from one is not measured against its
score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssl_seg.config import LossConfig, PlateauResponseConfig, PoliciesConfig
from ssl_seg.config.schedules import acts_at, compute_weight_noise_std, count_plateaus, count_stale_epochs
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.noise import add_weight_noise
from ssl_seg.engine.swa import WeightAverage
from ssl_seg.networks.checkpoint import Checkpoint, TrainingState


@dataclass(frozen=True)
class PolicyEvent:
    """What a policy did: an event for events.jsonl with its values, and a line for the console."""

    event: str
    note: str
    values: Mapping[str, Any] = field(default_factory=dict)


def find_phase(loss: LossConfig, epoch: int) -> PolicyEvent | None:
    """Return the event of the phase of the loss that begins when ``epoch`` epochs are finished, with other weights than
    those before; None without one."""
    before = loss.weights
    for number, phase in enumerate(loss.phases, start=2):
        if phase.from_epoch == epoch and phase.weights != before:
            weights = ", ".join(f"{name} {weight:g}" for name, weight in phase.weights.items())
            blend = f", over {phase.blend_epochs} epoch(s)" if phase.blend_epochs else ""
            text = f"phase {number} of {len(loss.phases) + 1} begins after epoch {epoch}: {weights}{blend}"
            values = {"phase": number, "epoch": epoch, "weights": phase.weights, "blend_epochs": phase.blend_epochs}
            return PolicyEvent("loss_phase", text, values)
        before = phase.weights
    return None


@dataclass(frozen=True)
class PlateauResponse:
    """What the plateau response has come to after some epochs."""

    count: int
    """Plateaus so far."""
    multiplier: float
    """Factor of the learning rate in the next epoch."""
    is_new: bool
    """Whether the last epoch made a plateau."""
    rolls_back: bool
    """Whether the last epoch calls for the best checkpoint."""


def compute_plateau_multiplier(count: int, base: float, gain: float, cap: float) -> float:
    """Return ``base + (count - 1) * gain``, at most ``cap``, for plateau number ``count`` >= 1."""
    return min(cap, base + (count - 1) * gain)


def respond_to_plateaus(
    history: Sequence[float], start_score: float, settings: PlateauResponseConfig
) -> PlateauResponse:
    """Return the response after the epochs of ``history``.

    At a plateau the learning rate is raised for ``hold_epochs``. While it is raised, and for as many epochs after that,
    a score that lies more than ``rollback_drop`` below the best one calls for a rollback. After a rollback there is no
    further response: the multiplier stays 1.

    Args:
        history: ranking score at the end of each epoch.
        start_score: ranking score at the start; best.pt may date from then.
        settings: of the policy.
    """
    best, stale, count, is_new = -math.inf, 0, 0, False
    multiplier, raised_at = 1.0, 0
    for epoch, score in enumerate(history, start=1):
        is_watched = multiplier > 1.0 and epoch - raised_at <= 2 * settings.hold_epochs
        if is_watched and score < max(best, start_score) - settings.rollback_drop:
            return PlateauResponse(count, 1.0, is_new=False, rolls_back=epoch == len(history))
        best, stale = (score, 0) if score > best else (best, stale + 1)
        is_new = stale == settings.patience
        if is_new:
            stale, count, raised_at = 0, count + 1, epoch
            multiplier = compute_plateau_multiplier(count, settings.base, settings.gain, settings.cap)
    holds = count > 0 and len(history) - raised_at < settings.hold_epochs
    return PlateauResponse(count, multiplier if holds else 1.0, is_new, rolls_back=False)


@dataclass(frozen=True)
class Policies:
    """The policies of a run.

    Args:
        settings: which policies act, and how.
        seed: of the run.
        average: the mean of weights, where one is asked for.
        reduce_patience: patience of the schedule reduce_on_plateau, whose reductions are reported; None without it.
    """

    settings: PoliciesConfig = field(default_factory=PoliciesConfig)
    seed: int = 0
    average: WeightAverage | None = None
    reduce_patience: int | None = None

    def compute_lr_multiplier(self, progress: TrainingState) -> float:
        """Return the factor of the scheduled learning rate in the next epoch."""
        response = self.settings.plateau_response
        return 1.0 if response is None else _respond(progress, response).multiplier

    def stops(self, progress: TrainingState) -> bool:
        """Return whether the run has gone on for long enough without a better score."""
        stopping = self.settings.early_stopping
        return stopping is not None and count_stale_epochs(progress.ranking_scores[1:]) >= stopping.patience

    def act(
        self,
        engine: Engine,
        progress: TrainingState,
        epoch: int,
        *,
        ending: str | None,
        load_best: Callable[[], Checkpoint],
    ) -> list[PolicyEvent]:
        """Change the networks as the policies want it at the end of an epoch, and return what was done.

        The order: first a rollback, so that the average takes a network that is wanted; then the average; then noise,
        so that it is not averaged. At the end of a run only the average is made: its last networks stay as scored.

        Args:
            engine: whose networks change.
            progress: with the score of the epoch.
            epoch: number of finished epochs.
            ending: how the run ends here; None where it goes on.
            load_best: returns the best checkpoint, on all processes.
        """
        actions: list[PolicyEvent] = []
        if ending is None:
            actions += [*self._report_reduction(progress), *self._respond(engine, progress, load_best)]
        actions += self._average(engine, epoch)
        if ending is None:
            actions += self._perturb(engine, epoch)
        if ending == "stopped_early":
            actions.append(_describe_stop(progress))
        return actions

    def _report_reduction(self, progress: TrainingState) -> Iterator[PolicyEvent]:
        patience, history = self.reduce_patience, progress.ranking_scores[1:]
        if patience is None or (count := count_plateaus(history, patience)) == count_plateaus(history[:-1], patience):
            return
        yield PolicyEvent("lr_reduced", f"learning rate: reduction number {count} after a plateau", {"count": count})

    def _respond(
        self, engine: Engine, progress: TrainingState, load_best: Callable[[], Checkpoint]
    ) -> Iterator[PolicyEvent]:
        settings = self.settings.plateau_response
        if settings is None:
            return
        response, score = _respond(progress, settings), progress.history[-1]
        if response.is_new:
            note = (
                f"plateau {response.count}: {settings.patience} epochs without a better score; "
                f"learning rate x {response.multiplier:.2f} for {settings.hold_epochs} epochs"
            )
            yield PolicyEvent("plateau", note, {"count": response.count, "multiplier": response.multiplier})
        if response.rolls_back:
            best = load_best()
            engine.restore(best, "best.pt")
            if self.average is not None:  # it holds networks that have just been given up
                self.average.clear()
            values = {"score": score, "best_score": progress.best_score, "to_step": best.progress.step}
            reason = f"the score {score:.3f} is more than {settings.rollback_drop:g} below the best one, "
            if len(progress.history) in progress.collapsed:
                reason = f"the networks have collapsed, with a score of {score:.3f}; the best one was "
            note = (
                f"rollback: {reason}{progress.best_score:.3f}; networks and optimizer are those of step "
                f"{best.progress.step} again, and the learning rate is not raised any more"
            )
            yield PolicyEvent("rollback", note, values)

    def _average(self, engine: Engine, epoch: int) -> Iterator[PolicyEvent]:
        swa = self.settings.swa
        if swa is None or self.average is None or not acts_at(epoch, swa.start_epoch, swa.every_epochs):
            return
        self.average.add(engine.plain.student)
        count = self.average.count
        yield PolicyEvent(
            "swa", f"weight average: epoch {epoch} is in it, number {count}", {"epoch": epoch, "count": count}
        )

    def _perturb(self, engine: Engine, epoch: int) -> Iterator[PolicyEvent]:
        noise = self.settings.weight_noise
        if noise is None:
            return
        std = compute_weight_noise_std(epoch, noise.start_epoch, noise.every_epochs, noise.std, noise.decay)
        if std > 0:
            add_weight_noise(engine.student, std, self.seed, epoch)
            yield PolicyEvent(
                "weight_noise", f"weight noise: standard deviation {std:.3g}", {"epoch": epoch, "std": std}
            )


def _describe_stop(progress: TrainingState) -> PolicyEvent:
    history = progress.ranking_scores[1:]
    epochs, best = count_stale_epochs(history), progress.history[history.index(max(history))]
    note = f"early stopping: {epochs} epochs without a better score than {best:.3f}"
    return PolicyEvent("early_stopping", note, {"epochs": epochs, "best_score": best})


def _respond(progress: TrainingState, settings: PlateauResponseConfig) -> PlateauResponse:
    start, *history = progress.ranking_scores
    return respond_to_plateaus(history, start, settings)
