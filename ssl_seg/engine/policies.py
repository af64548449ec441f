"""What happens between epochs. Each policy is off unless the settings name it.

All decisions are functions of the settings, the seed, the epoch and the validation scores of the finished epochs, which
a checkpoint carries; so a resumed run decides as the uninterrupted one. Only the weight average has a state.

The scores are the ranking scores of ``RunProgress``: an epoch at whose end the networks had collapsed lies below all
others. So a collapse is no progress for which to go on, and a run that comes back from one is not measured against its
score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from ssl_seg.config import AfterRollbackConfig, PlateauResponseConfig, PoliciesConfig
from ssl_seg.config.schedules import (
    LossPhase,
    acts_at,
    compute_weight_noise_std,
    count_plateaus,
    count_stale_epochs,
    override_weights,
)
from ssl_seg.engine.ema import WeightAverage
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.noise import add_weight_noise
from ssl_seg.errors import counted
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress


@dataclass(frozen=True)
class PolicyEvent:
    """What a policy did: an event for events.jsonl with its values, and a line for the console."""

    event: str
    note: str
    values: Mapping[str, Any] = field(default_factory=dict)


def find_phase(phases: Sequence[LossPhase], epoch: int) -> PolicyEvent | None:
    """Return the event of the phase of the loss that begins when ``epoch`` epochs are finished, with other weights than
    those before; None without one."""
    for number, (before, phase) in enumerate(pairwise(phases), start=2):
        if phase.from_epoch == epoch and phase.weights != before.weights:
            weights = ", ".join(f"{name} {weight:g}" for name, weight in phase.weights.items())
            blend = f", blended in until epoch {epoch + phase.blend_epochs:g}" if phase.blend_epochs else ""
            text = f"phase {number} of {len(phases)} begins after epoch {epoch}: {weights}{blend}"
            values = {
                "phase": number,
                "epoch": epoch,
                "weights": dict(phase.weights),
                "blend_epochs": phase.blend_epochs,
            }
            return PolicyEvent("loss_phase", text, values)
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
    milder_from: int | None = None
    """Number of epochs finished at the rollback since which ``after_rollback`` holds."""


def compute_plateau_multiplier(count: int, base: float, gain: float, cap: float) -> float:
    """Return ``base + (count - 1) * gain``, at most ``cap``, for plateau number ``count`` >= 1."""
    return min(cap, base + (count - 1) * gain)


def respond_to_plateaus(
    history: Sequence[float], start_score: float, settings: PlateauResponseConfig
) -> PlateauResponse:
    """Return the response after the epochs of ``history``.

    At a plateau the learning rate is raised for ``hold_epochs``. While it is raised, and for as many epochs after that,
    a score that lies more than ``rollback_drop`` below the best one calls for a rollback. After it, plateaus are
    counted anew and raise the rate as ``after_rollback`` says. Without that, and after a second rollback, the
    multiplier stays 1.

    Args:
        history: ranking score at the end of each epoch.
        start_score: ranking score at the start; best.pt may date from then.
        settings: settings of the policy.
    """
    best, stale, count, is_new = -math.inf, 0, 0, False
    multiplier, raised_at = 1.0, 0
    rule: PlateauResponseConfig | AfterRollbackConfig = settings
    milder_from: int | None = None
    for epoch, score in enumerate(history, start=1):
        is_watched = multiplier > 1.0 and epoch - raised_at <= 2 * settings.hold_epochs
        if is_watched and score < max(best, start_score) - settings.rollback_drop:
            if settings.after_rollback is None or milder_from is not None:
                return PlateauResponse(count, 1.0, False, epoch == len(history), milder_from)
            rule, milder_from = settings.after_rollback, epoch
            stale, count, is_new, multiplier = 0, 0, False, 1.0
            continue
        best, stale = (score, 0) if score > best else (best, stale + 1)
        is_new = stale == settings.patience
        if is_new:
            stale, count, raised_at = 0, count + 1, epoch
            multiplier = compute_plateau_multiplier(count, rule.base, rule.gain, settings.cap)
    holds = count > 0 and len(history) - raised_at < settings.hold_epochs
    rolls_back = milder_from is not None and milder_from == len(history)
    return PlateauResponse(count, multiplier if holds else 1.0, is_new, rolls_back, milder_from)


def judge_rollback(scores: Sequence[float], rollback: int, epochs: int) -> bool | None:
    """Return the judgment of a rollback if it falls at the last epoch, else None: True where the score is the first one
    since that exceeds all before, False where so many epochs have brought none.

    Args:
        scores: ranking scores of the start and of each finished epoch.
        rollback: number of epochs finished at the rollback.
        epochs: that it has.
    """
    before, later = max(scores[: rollback + 1]), scores[rollback + 1 :]
    if not later or len(later) > epochs or max(later[:-1], default=-math.inf) > before:
        return None
    return True if later[-1] > before else False if len(later) == epochs else None


@dataclass(frozen=True)
class Policies:
    """The policies of a run.

    Args:
        settings: which policies act, and how.
        seed: seed of the run.
        average: the mean of weights, where one is asked for.
        reduce_patience: patience of the schedule reduce_on_plateau, whose reductions are reported; None without it.
    """

    settings: PoliciesConfig = field(default_factory=PoliciesConfig)
    seed: int = 0
    average: WeightAverage | None = None
    reduce_patience: int | None = None

    def compute_lr_multiplier(self, progress: RunProgress) -> float:
        """Return the factor of the scheduled learning rate in the next epoch."""
        response = self.settings.plateau_response
        return 1.0 if response is None else _respond(progress, response).multiplier

    def stops(self, progress: RunProgress) -> bool:
        """Return whether the run has gone on for long enough without a better score."""
        return next(self._list_stops(progress), None) is not None

    def adapt_phases(self, phases: tuple[LossPhase, ...], progress: RunProgress) -> tuple[LossPhase, ...]:
        """Return the phases of the loss with the weights that hold since a rollback, if there was one."""
        response = self.settings.plateau_response
        if response is None or response.after_rollback is None or not response.after_rollback.component_weights:
            return phases
        epoch = _respond(progress, response).milder_from
        return phases if epoch is None else override_weights(phases, epoch, response.after_rollback.component_weights)

    def act(
        self,
        engine: Engine,
        progress: RunProgress,
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
            judged = self._judge(progress)
            actions += [] if judged is None else [judged]
        actions += self._average(engine, epoch)
        if ending is None:
            actions += self._perturb(engine, epoch)
        if ending == "stopped_early":
            actions += self._list_stops(progress)
        return actions

    def _list_stops(self, progress: RunProgress) -> Iterator[PolicyEvent]:
        """Yield an event for each reason to end the run."""
        stopping = self.settings.early_stopping
        if stopping is not None and count_stale_epochs(progress.ranking_scores[1:]) >= stopping.patience:
            yield _describe_stop(progress)
        judged = self._judge(progress)
        if judged is not None and not judged.values["better"]:
            yield judged

    def _judge(self, progress: RunProgress) -> PolicyEvent | None:
        """Return the event of the judgment of a rollback, if it falls now."""
        response, scores = self.settings.plateau_response, progress.ranking_scores
        after = None if response is None else response.after_rollback
        if response is None or after is None or after.judge_epochs is None:
            return None
        if (rollback := _respond(progress, response).milder_from) is None:
            return None
        if (better := judge_rollback(scores, rollback, after.judge_epochs)) is None:
            return None
        before = max(scores[: rollback + 1])
        found = f"{progress.history[-1]:.3f} is better than {before:.3f}, the best score before it: the run continues"
        if not better:
            found = f"in {counted(after.judge_epochs, 'epoch')} no score was better than {before:.3f}: the run ends"
        return PolicyEvent("rollback_judged", f"rollback judged: {found}", {"better": better, "best_score": before})

    def _report_reduction(self, progress: RunProgress) -> Iterator[PolicyEvent]:
        patience, history = self.reduce_patience, progress.ranking_scores[1:]
        if patience is None or (count := count_plateaus(history, patience)) == count_plateaus(history[:-1], patience):
            return
        yield PolicyEvent("lr_reduced", f"learning rate: reduction number {count} after a plateau", {"count": count})

    def _respond(
        self, engine: Engine, progress: RunProgress, load_best: Callable[[], Checkpoint]
    ) -> Iterator[PolicyEvent]:
        settings = self.settings.plateau_response
        if settings is None:
            return
        response, score = _respond(progress, settings), progress.history[-1]
        if response.is_new:
            note = (
                f"plateau {response.count}: {counted(settings.patience, 'epoch')} without a better score; "
                f"learning rate x {response.multiplier:.2f} for {counted(settings.hold_epochs, 'epoch')}"
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
            after, milder = settings.after_rollback, "the learning rate is not raised any more"
            if after is not None and response.milder_from == len(progress.history):
                milder = f"plateaus raise the learning rate x {after.base:g}, then + {after.gain:g} each, from now on"
            note = (
                f"rollback: {reason}{progress.best_score:.3f}; networks and optimizer are those of step "
                f"{best.progress.step} again, and {milder}"
            )
            yield PolicyEvent("rollback", note, values)

    def _average(self, engine: Engine, epoch: int) -> Iterator[PolicyEvent]:
        swa = self.settings.swa
        if swa is None or self.average is None or not acts_at(swa, epoch):
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
        std = compute_weight_noise_std(noise, epoch)
        if std > 0:
            add_weight_noise(engine.student, std, self.seed, epoch)
            yield PolicyEvent(
                "weight_noise", f"weight noise: standard deviation {std:.3g}", {"epoch": epoch, "std": std}
            )


def _describe_stop(progress: RunProgress) -> PolicyEvent:
    history = progress.ranking_scores[1:]
    epochs, best = count_stale_epochs(history), progress.history[history.index(max(history))]
    note = f"early stopping: {counted(epochs, 'epoch')} without a better score than {best:.3f}"
    return PolicyEvent("early_stopping", note, {"epochs": epochs, "best_score": best})


def _respond(progress: RunProgress, settings: PlateauResponseConfig) -> PlateauResponse:
    start, *history = progress.ranking_scores
    return respond_to_plateaus(history, start, settings)
