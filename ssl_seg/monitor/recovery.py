"""What a run does against its own collapse, one rung after the other: all decisions, no effects.

A collapse that lasts climbs: warn, learn from labels only for a while, lower learning rate and tighter clipping, other
shares of foreground in the batches, back to the last healthy networks, back to the start (each time with a lower
learning rate), stop. Nothing is undone and no rung is climbed twice, so what a run can do to itself is bounded. The
state is a few numbers in the checkpoint, and each decision a function of them and of a look; so a resumed run climbs as
the uninterrupted one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ssl_seg.data.sampling import ForegroundShift
from ssl_seg.monitor.findings import Verdict

Intervention = Literal["warn", "consistency_off", "lower_lr", "resample", "restore", "stop"]

LR_CUT = 0.25
"""Factor of the learning rate at ``lower_lr`` and at each restore: 1/64 at the most."""
CLIP_CUT = 0.25
"""Factor of the largest gradient norm at ``lower_lr``."""
DEFAULT_CLIP_NORM = 12.0
"""Norm that is tightened where the run clips nothing."""
RESTORE_PATIENCE = 3
"""Networks that have been restored start over at a low rate: they get this many times the patience, and a warm-up."""
CONSISTENCY_PAUSE = 4
"""``consistency_off`` lasts this many times the patience."""


@dataclass(frozen=True)
class InterventionSettings:
    """The rungs of a run's recovery, and how they act.

    Args:
        rungs: in order, the last one ``stop``; those that would change nothing are left out.
        patience: steps that an intervention gets to work.
        warmup_steps: warm-up steps of the run; the learning rate rises anew over them after a restore.
        clip_norm: largest gradient norm of the run.
        shifts: the shifts of the foreground share that change its batches.
    """

    rungs: tuple[Intervention, ...]
    patience: int
    warmup_steps: int
    clip_norm: float | None
    shifts: tuple[ForegroundShift, ...] = ("more", "less")


@dataclass(frozen=True)
class RecoveryState:
    """How far a run has climbed, and what holds since then."""

    climbed: int = 0
    """Number of rungs, also those that were passed over."""
    acted_at: int = 0
    """Step of the last action."""
    next_look: int | None = None
    """Step at which its effect is judged."""
    lr_factor: float = 1.0
    clip_norm: float | None = None
    """Largest gradient norm; None leaves that of the run."""
    consistency_off_until: int = 0
    foreground: ForegroundShift | None = None
    """What the labeled patches hold more of, or less, than the settings say."""
    restores: int = 0
    restored_at: int = 0

    def to_plain(self) -> dict[str, Any]:
        """Return plain types for a checkpoint or an event."""
        return asdict(self)


def make_rungs(*, uses_unlabeled: bool, can_shift: bool) -> tuple[Intervention, ...]:
    """Return the rungs of a run that learns from unlabeled patches, or not, and can change its batches, or not."""
    rungs: list[Intervention] = ["warn", "consistency_off", "lower_lr", "resample", "restore", "restore", "stop"]
    left_out = {"consistency_off"} if not uses_unlabeled else set()
    left_out |= set() if can_shift else {"resample"}
    return tuple(rung for rung in rungs if rung not in left_out)


def climb(
    recovery: RecoveryState, settings: InterventionSettings, verdict: Verdict, step: int, *, predicts_less: bool
) -> tuple[RecoveryState, Intervention | None]:
    """Return the state after a look, and the rung that was climbed: None where there is nothing to do.

    Args:
        recovery: state so far.
        settings: settings of the run.
        verdict: on the look; only a collapse climbs. Networks with NaN go to a restore, without waiting for what was
            done before to work: nothing else helps. After a restore they wait for the patience too.
        step: step of the look.
        predicts_less: whether the student predicts less foreground than there is.
    """
    is_nan = "non_finite" in verdict.codes
    if verdict.level != "collapsed" or step < _find_earliest(recovery, settings, is_nan=is_nan):
        return recovery, None
    wanted: ForegroundShift = "more" if predicts_less else "less"
    passed_over = {"warn", "consistency_off", "lower_lr", "resample"} if is_nan else set()
    passed_over |= set() if wanted in settings.shifts else {"resample"}
    first = min(recovery.climbed, len(settings.rungs) - 1)
    position = next(i for i in range(first, len(settings.rungs)) if settings.rungs[i] not in passed_over)
    rung = settings.rungs[position]
    wait = RESTORE_PATIENCE * settings.patience + settings.warmup_steps if rung == "restore" else settings.patience
    moved = replace(recovery, climbed=position + 1, acted_at=step, next_look=step + wait)
    return _take_hold(moved, settings, rung, step, wanted), rung


def _find_earliest(recovery: RecoveryState, settings: InterventionSettings, *, is_nan: bool) -> int:
    """Return the first step at which the next rung may be climbed."""
    if recovery.next_look is None:
        return 0
    if not is_nan:
        return recovery.next_look
    has_restored = recovery.restores > 0 and recovery.restored_at == recovery.acted_at
    return recovery.acted_at + (settings.patience if has_restored else 0)


def _take_hold(
    recovery: RecoveryState, settings: InterventionSettings, rung: Intervention, step: int, wanted: ForegroundShift
) -> RecoveryState:
    """Return the state with what a rung changes."""
    if rung == "consistency_off":
        return replace(recovery, consistency_off_until=step + CONSISTENCY_PAUSE * settings.patience)
    if rung == "lower_lr":
        clip_norm = CLIP_CUT * (settings.clip_norm or DEFAULT_CLIP_NORM)
        return replace(recovery, lr_factor=recovery.lr_factor * LR_CUT, clip_norm=clip_norm)
    if rung == "resample":
        return replace(recovery, foreground=wanted)
    if rung == "restore":
        factor = recovery.lr_factor * LR_CUT
        return replace(recovery, lr_factor=factor, restores=recovery.restores + 1, restored_at=step)
    return recovery


def compute_recovery_lr_factor(recovery: RecoveryState, settings: InterventionSettings, step: int) -> float:
    """Return the factor of the learning rate in update number ``step`` (from 0); it rises anew after a restore."""
    if recovery.restores == 0 or settings.warmup_steps == 0:
        return recovery.lr_factor
    return recovery.lr_factor * min((step - recovery.restored_at + 1) / settings.warmup_steps, 1.0)
