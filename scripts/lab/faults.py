"""Part (a): each fault in a small training, and when the monitor named it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trainings import map_runs

from lab import injections
from lab.runs import Run, read_run, run_training, write_particles

SEEDS = (1, 2, 3)
STEPS_TO_NAME = 20
"""Steps after the injection within which a fault is to be named, unless it needs more; see ``Fault.due``."""


@dataclass(frozen=True)
class Fault:
    """A mistake of a user, and what the monitor is to call it; fixed after runs with seed 0, before those of SEEDS."""

    name: str
    expected: tuple[str, ...]
    """The code; several where the mistake has none of its own and leaves one of several states."""
    reason: str
    """Why this code."""
    inject: Callable[[], AbstractContextManager[Any]] = nullcontext
    settings: Mapping[str, Any] = field(default_factory=dict)
    also_right: tuple[str, ...] = ()
    """Codes that state another fact which the mistake brings about."""
    injected_at: int = 0
    """Step before which all is well."""
    due: int = STEPS_TO_NAME
    """Steps after the injection within which it is to be named."""

    @property
    def true_codes(self) -> tuple[str, ...]:
        """All codes that are no mistake of the monitor."""
        return (*self.expected, *self.also_right)


EPOCH = 30
LONG = 210
"""Steps for a fault that works slowly."""
STATES = ("constant_output", "uniform_ratio", "all_negative", "all_positive")
"""What a network is like that has been driven out of the region where it can learn."""
SGD = {"name": "sgd", "lr": 0.1, "clip_norm": None}
"""With AdamW and instance norm a learning rate x 100 does no harm that lasts (measured: F1 0.66 as before)."""

FAULTS: tuple[Fault, ...] = (
    Fault(
        "sign error of the loss", ("inverted_output",),
        "what is learned is the opposite of the target", injections.negate_loss,
        also_right=("component_explosion", "not_above_trivial", "loss_metric_divergence"),
    ),
    Fault(
        "labels swapped in training", ("inverted_output",),
        "what is learned is the opposite of the target", injections.swap_labels,
        also_right=("not_above_trivial", "loss_metric_divergence"),
    ),
    Fault(
        "bias trap: the head starts at log-odds -8", ("all_negative",),
        "nothing is predicted, and the gradient of Dice is as good as 0 there", injections.trap_bias,
        settings={
            "network": {"name": "dynunet"}, "optim": {"name": "sgd", "lr": 1e-2}, "loss": {"weights": {"dice": 1.0}},
        },
        also_right=("constant_output", "not_above_trivial", "pseudo_label_drift"),
    ),
    Fault(
        "learning rate x 100", ("component_explosion", "non_finite", *STATES),
        "no code of its own: it is known by the loss, or by the state that it leaves",
        settings={"optim": {**SGD, "lr": 10.0}},
        also_right=("teacher_diverged", "shifted_threshold", "not_above_trivial", "pseudo_label_drift"),
    ),
    Fault(
        "learning rate x 100 from step 35 on", ("component_explosion", "non_finite", "teacher_diverged", *STATES),
        "no code of its own: it is known by the loss, or by the state that it leaves; a student with instance norm may "
        "come back, the mean of its weights not", injections.jump_lr_35,
        settings={"optim": SGD}, also_right=("shifted_threshold", "not_above_trivial", "pseudo_label_drift"),
        injected_at=35, due=EPOCH,
    ),
    Fault(
        "contrast inverted at prediction", ("loss_metric_divergence",),
        "the batches are learned, and the same cases fail at prediction", injections.invert_contrast_at_prediction,
        also_right=("inverted_output", "not_above_trivial"), due=EPOCH,
    ),
    Fault(
        "images all 0 at prediction", ("loss_metric_divergence",),
        "the batches are learned, and the same cases fail at prediction", injections.blank_at_prediction,
        also_right=("constant_output", "uniform_ratio", "not_above_trivial"), due=EPOCH,
    ),
    Fault(
        "dead ReLU", ("constant_output",), "the output is the bias of the head", injections.kill_activations,
        also_right=("not_above_trivial", "pseudo_label_drift"),
    ),
    Fault(
        "labeled masks all empty", ("zero_loss",), "there is nothing to learn from", injections.empty_masks,
        also_right=(*STATES, "not_above_trivial", "pseudo_label_drift", "loss_metric_divergence"),
    ),
    Fault(
        "labeled masks all foreground", ("zero_loss", "all_positive"), "that is what is learned", injections.full_masks,
        also_right=(*STATES, "not_above_trivial", "pseudo_label_drift", "loss_metric_divergence"),
    ),
    Fault(
        "masks of other images", ("constant_output", "not_above_trivial"),
        "only the share of foreground can be learned, not its place", injections.shuffle_masks,
        also_right=("all_negative", "shifted_threshold", "pseudo_label_drift", "loss_metric_divergence"), due=EPOCH,
    ),
    Fault(
        "teacher never updated", ("teacher_diverged",), "the student learns, the teacher does not",
        injections.freeze_teacher, due=EPOCH,
    ),
    Fault(
        "EMA 0.999 without warm-up, BatchNorm buffers not averaged", ("teacher_diverged",),
        "the student learns, the teacher does not", injections.leave_buffers_behind,
        settings={"ema": {"decay": 0.999, "warmup": False}, "network": {"norm": "batch"}}, due=EPOCH,
    ),
    Fault(
        "BatchNorm statistics never updated", ("mode_gap",),
        "the network is right with the statistics of the batch and wrong with its own", injections.freeze_statistics,
        settings={"network": {"norm": "batch"}}, also_right=("shifted_threshold",), due=EPOCH,
    ),
    Fault(
        "cost of missed foreground x 1000", ("all_positive", "shifted_threshold"),
        "all is foreground; shifted_threshold where the ranking survives", due=LONG,
        settings={
            "loss": {"weights": {"cross_entropy": 1.0}, "fn_cost": 1000.0}, "optim": {"lr": 1e-2},
            "length": {"steps": LONG},
        },
        also_right=("foreground_bias", "component_explosion", "pseudo_label_drift"),
    ),
    Fault(
        "cost of false foreground x 1000", ("all_negative", "shifted_threshold"),
        "all is background; shifted_threshold where the ranking survives", due=EPOCH,
        settings={"loss": {"weights": {"cross_entropy": 1.0}, "fp_cost": 1000.0}, "optim": {"lr": 1e-2}},
        also_right=("foreground_bias", "component_explosion", "pseudo_label_drift"),
    ),
    Fault(
        "entropy minimization with weight 100",
        ("loss_metric_divergence", "plateau", "trivial_loss", "uniform_ratio", "all_negative", "all_positive"),
        "no code of its own: the loss falls with the entropy and the overlap does not rise; in the end the same "
        "everywhere",
        due=LONG,
        settings={
            "network": {"name": "dynunet"}, "optim": {"lr": 1e-2}, "split": {"labels": 0.1}, "length": {"steps": LONG},
            "method": {
                "name": "entropy_minimization", "options": {"consistency_weight": 100.0, "rampup_ratio": 0.0},
            },
        },
        also_right=("constant_output", "foreground_bias", "not_above_trivial", "pseudo_label_drift"),
    ),
    Fault(
        "a batch of NaN at step 32", ("non_finite",), "NaN spreads to all weights in one update",
        injections.spoil_batch_32, injected_at=32,
    ),
    Fault(
        "confidence threshold that no voxel reaches", ("pseudo_label_share",),
        "nothing is learned from unlabeled images", due=EPOCH,
        settings={"method": {"name": "mean_teacher", "options": {"confidence": 1.0}}},
    ),
)  # fmt: skip


@dataclass(frozen=True)
class FaultResult:
    """What the monitor said of one fault at one seed; steps count updates, None means never."""

    fault: str
    seed: int
    first_step: int | None
    """Step of the first verdict with any code after the injection."""
    first_codes: tuple[str, ...]
    named_step: int | None
    """Step of the first verdict with the expected code."""
    named_level: str
    collapsed_step: int | None
    """Step of the first verdict that is collapsed."""
    wrong_codes: tuple[str, ...]
    """Codes of any look after the injection that do not say the truth."""
    early_codes: tuple[str, ...]
    """Codes of any look before the injection."""
    in_time: bool


def judge_run(fault: Fault, seed: int, run: Run) -> FaultResult:
    """Return when and how a fault was named."""
    after = [look for look in run.looks if look.step > fault.injected_at]
    first = next((look for look in after if look.codes), None)
    named = next((look for look in after if set(look.codes) & set(fault.expected)), None)
    level = ""
    if named is not None:
        levels = [f.level for f in named.findings if f.code in fault.expected]
        level = "collapsed" if "collapsed" in levels else levels[0]
    return FaultResult(
        fault.name,
        seed,
        None if first is None else first.step,
        () if first is None else first.codes,
        None if named is None else named.step,
        level,
        next((look.step for look in after if look.level == "collapsed"), None),
        tuple(sorted({code for look in after for code in look.codes} - set(fault.true_codes))),
        tuple(sorted({c for look in run.looks if look.step <= fault.injected_at for c in look.codes})),
        named is not None and named.step <= fault.injected_at + fault.due,
    )


def run_fault(out: Path, again: bool, task: tuple[int, int]) -> FaultResult:
    """Train with a fault, given by its place in ``FAULTS``, and a seed; or judge that training again."""
    number, seed = task
    fault = FAULTS[number]
    path = out / f"fault{number:02d}_seed{seed}"
    if again:
        return judge_run(fault, seed, read_run(path))
    data = write_particles(out / "data" / "particles")
    return judge_run(fault, seed, run_training(path, data, seed, fault.settings, fault=fault.inject))


def run_faults(
    out: Path, seeds: tuple[int, ...] = SEEDS, names: tuple[str, ...] = (), workers: int = 2, *, again: bool = False
) -> list[FaultResult]:
    """Train with each fault whose name contains one of ``names`` (all, if there are none) and each seed."""
    write_particles(out / "data" / "particles")
    chosen = [i for i, fault in enumerate(FAULTS) if not names or any(name in fault.name for name in names)]
    tasks = [(number, seed) for number in chosen for seed in seeds]
    return list(map_runs(partial(run_fault, out, again), tasks, 1 if again else workers))
