"""Rules on the pair of networks, the training steps and the trend. Each is a pure function of the evidence.

A single look says little about a run: losses rise when a component is added, F1 wavers, a teacher lags behind. So a
rule that could mistake a healthy run for a sick one asks for a second sign, or for several epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from ssl_seg.monitor.catalog import limit, make_finding
from ssl_seg.monitor.evidence import Evidence, Figures
from ssl_seg.monitor.findings import Level, RuleFinding
from ssl_seg.monitor.network_rules import (
    has_both_classes,
    has_learned,
    has_one_share,
    is_certain,
    is_informative,
    list_collapse_codes,
)
from ssl_seg.scores.metrics import compute_trivial_f1
from ssl_seg.scores.text import number

TrainingRule = Callable[[Evidence], RuleFinding | None]

FIRST_EPOCHS = 3
"""Epochs in which a low loss is suspicious."""
FEWEST_EMPTY_STEPS = 10
STEADY_EPOCHS = 3
"""Ends of epochs in a row for which a component rises, or validation falls."""
PLATEAU_EPOCHS = 5


def find_non_finite_training(evidence: Evidence) -> RuleFinding | None:
    """The loss, or an output on the training probe, is NaN or infinite."""
    for net, signals in evidence.train.items():
        if signals.nonfinite > limit("non_finite") and not evidence.val[net].nonfinite:
            message = f"{signals.nonfinite} of {signals.voxels} outputs on the training probe are NaN or infinite"
            return make_finding("non_finite", "collapsed", net, signals.nonfinite, "non_finite", message)
    loss = evidence.training.get("loss", 0.0)
    if math.isfinite(loss):
        return None
    message = f"the mean loss of the last {_steps(evidence)} steps is {loss}"
    return make_finding("non_finite", "collapsed", "training", _steps(evidence), "non_finite", message)


def find_blind_probe(evidence: Evidence) -> RuleFinding | None:
    """The validation probe holds one class only, so that no figure says whether the networks learn."""
    true = evidence.val["student"].prevalence_true
    if not min(true, 1 - true) <= limit("blind_probe"):
        return None
    missing = "background" if true else "foreground"
    message = f"the validation patches hold no {missing}: F1, AUROC and the choice of best.pt say nothing"
    return make_finding("blind_probe", "warn", "training", true, "blind_probe", message)


def find_zero_loss(evidence: Evidence) -> RuleFinding | None:
    """The training loss is almost 0, or nothing is there to be learned from, although there is something to find."""
    student, training = evidence.val["student"], evidence.training
    if not math.isfinite(training.get("loss", math.nan)) or not has_both_classes(student):
        return None
    loss = abs(training["loss"])
    if loss < limit("zero_loss"):
        level: Level = "warn" if has_learned(student) else "collapsed"
        found = f"validation {student.f1_name} is {student.f1:.2f}"
        message = f"mean loss {training['loss']:.2g} over {_steps(evidence)} steps; {found}"
        return make_finding("zero_loss", level, "training", loss, "zero_loss", message)
    return _find_one_class_batches(evidence) or _find_low_loss(evidence, loss)


def _find_one_class_batches(evidence: Evidence) -> RuleFinding | None:
    """The labeled patches hold no foreground, or nothing else: a constant output is all that can be learned."""
    true, seen = evidence.val["student"].prevalence_true, evidence.training.get("prevalence_true")
    if seen not in (0, 1) or _steps(evidence) < FEWEST_EMPTY_STEPS:
        return None
    missing, expected = ("foreground", true) if seen == 0 else ("background", 1 - true)
    if _steps(evidence) * expected < limit("empty_batches"):
        return None
    message = (
        f"no {missing} in the labeled patches of the last {_steps(evidence)} steps, loss "
        f"{evidence.training['loss']:.3f}; {expected:.1%} of validation is {missing}"
    )
    return make_finding("zero_loss", "collapsed", "training", _steps(evidence) * expected, "empty_batches", message)


def _find_low_loss(evidence: Evidence, loss: float) -> RuleFinding | None:
    student, start = evidence.val["student"], _first(evidence.trend, "loss")
    is_young = len(list_ends(evidence.trend)) <= FIRST_EPOCHS
    if has_learned(student) or not is_young or student.prevalence_true < limit("low_loss_prevalence"):
        return None
    if start is None or loss >= min(limit("low_loss"), start / 2):
        return None
    best = f"{student.f1_name} at the best threshold {student.f1_best:.2f}"
    message = f"loss {start:.3f} to {loss:.3f} in the first epochs, but {best}"
    return make_finding("zero_loss", "warn", "training", loss, "low_loss", message)


def find_mode_gap(evidence: Evidence) -> RuleFinding | None:
    """The student does well with the statistics of the batch and badly with its running ones."""
    student, free = evidence.val["student"], evidence.train_mode
    if free is None or not is_informative(free) or not has_learned(free):
        return None
    gap = max(_gap(free.f1_best, student.f1_best), _gap(free.auroc, student.auroc))
    gap_at_05 = free.f1 - student.f1 if free.f1 > free.trivial_f1 else 0.0
    if gap <= limit("mode_gap") and gap_at_05 <= limit("mode_gap_at_05"):
        return None
    collapse = list_collapse_codes(student)
    message = (
        f"in train and eval mode: {free.f1_name} {free.f1:.2f} and {student.f1:.2f}, best "
        f"{number(free.f1_best, 2)} and {number(student.f1_best, 2)}, "
        f"AUROC {number(free.auroc, 2)} and {number(student.auroc, 2)}{_name(collapse)}"
    )
    name, value = ("mode_gap", gap) if gap > limit("mode_gap") else ("mode_gap_at_05", gap_at_05)
    return make_finding("mode_gap", "collapsed" if collapse else "warn", "student", value, name, message)


def find_loss_metric_divergence(evidence: Evidence) -> RuleFinding | None:
    """The training loss gets better, and the predictions do not."""
    return _find_input_gap(evidence) or _find_falling_f1(evidence)


def _find_input_gap(evidence: Evidence) -> RuleFinding | None:
    """The training batches go well, the same cases as prediction sees them never have: the inputs differ.

    Batches hold more foreground than whole images, so their F1 is the higher one anyway: what counts is that the
    ranking is worth nothing as prediction sees them, on training and validation, over all cases, or that all of them
    are predicted alike.
    """
    batch_f1, probe = evidence.training.get("batch_f1"), evidence.train.get("student")
    if batch_f1 is None or probe is None or not has_both_classes(probe) or find_mode_gap(evidence):
        return None
    if is_informative(evidence.val["student"]) or is_informative(probe):
        return None
    if not is_certain(probe) and not has_one_share(probe):
        return None
    trivial = compute_trivial_f1(evidence.training.get("prevalence_true", 0.0))
    margin = batch_f1 - trivial
    best_so_far = max((row["train_f1"] for row in evidence.trend if "train_f1" in row), default=0.0)
    if margin <= limit("batch_margin") or has_learned(probe):
        return None
    if best_so_far > probe.trivial_f1 + limit("batch_margin") / 2:
        return None
    message = (
        f"{probe.f1_name} {batch_f1:.2f} in the training batches (all-positive {trivial:.2f}), but "
        f"{number(probe.f1_best, 2)} at the best threshold on the same cases as prediction sees them "
        f"(all-positive {probe.trivial_f1:.2f})"
    )
    return make_finding("loss_metric_divergence", "collapsed", "training", margin, "batch_margin", message)


def _find_falling_f1(evidence: Evidence) -> RuleFinding | None:
    student, start = evidence.val["student"], _first(evidence.trend, "loss")
    loss = evidence.training.get("loss")
    if start is None or loss is None or has_learned(student) or student.f1_best is None:
        return None
    best = max(row["f1"] for row in evidence.trend)
    has_fallen = start - loss >= limit("loss_fall") * abs(start)
    if not has_fallen or best - student.f1 <= limit("f1_fall"):
        return None
    message = f"loss {number(start)} to {number(loss)} while {student.f1_name} went {best:.2f} to {student.f1:.2f}"
    return make_finding("loss_metric_divergence", "warn", "training", best - student.f1, "f1_fall", message)


def find_teacher_diverged(evidence: Evidence) -> RuleFinding | None:
    """The teacher is clearly worse than the student, also than the student after half of the steps.

    The teacher is a mean of the student's past. With a warm-up of the decay the mean age is at most half of the steps,
    so a sound teacher is about as good as the student was then; one that is not carries its start along, or buffers.
    A student whose own output hardly varies is no measure of it.
    """
    student, teacher = evidence.val["student"], evidence.val.get("teacher")
    if teacher is None or teacher.nonfinite or not is_informative(student) or list_collapse_codes(student):
        return None
    if student.prob_std < limit("constant_prob_std"):
        return None
    now = {"f1": student.f1, "f1_best": student.f1_best or 0.0, "auroc": student.auroc or 0.0}
    then = half_way(evidence.trend) or now
    gap = min(_gap(student.f1_best, teacher.f1_best), _gap(then.get("f1_best"), teacher.f1_best))
    gap_at_05 = min(student.f1, then["f1"]) - teacher.f1
    collapse = list_collapse_codes(teacher)
    used = "" if evidence.uses_teacher else "; nothing is learned from it"
    message = (
        f"{student.f1_name} {student.f1:.2f} (student) and {teacher.f1:.2f} (teacher), best "
        f"{number(student.f1_best, 2)} and {number(teacher.f1_best, 2)}{_name(collapse)}{used}"
    )
    if collapse and then.get("auroc", 0.0) >= limit("informative_auroc") and teacher.auroc is not None:
        message += f"; AUROC {number(student.auroc, 2)} and {number(teacher.auroc, 2)}"
        return make_finding("teacher_diverged", "warn", "teacher", teacher.auroc, "informative_auroc", message)
    if gap > limit("teacher_gap"):
        return make_finding("teacher_diverged", "warn", "teacher", gap, "teacher_gap", message)
    if gap_at_05 > limit("teacher_gap_at_05"):
        return make_finding("teacher_diverged", "warn", "teacher", gap_at_05, "teacher_gap_at_05", message)
    return None


def find_component_explosion(evidence: Evidence) -> RuleFinding | None:
    """The loss or one of its components rises instead of falling, and validation does not profit."""
    if _is_at_its_best(evidence):
        return None
    rules = (_find_large_loss, _find_large_focal, _find_rising_component, _find_rising_validation)
    return next((found for rule in rules if (found := rule(evidence)) is not None), None)


def _find_large_loss(evidence: Evidence) -> RuleFinding | None:
    """The loss is large and has risen with a component: what is learned from unlabeled patches may rise by itself."""
    loss, start = evidence.training.get("loss"), _first(evidence.trend, "loss")
    if loss is None or start is None or start < 0 or not math.isfinite(loss):
        return None
    rises = [_rise(evidence, name) for name in evidence.components]
    least = max(limit("large_loss"), limit("first_rise") * start)
    if loss <= least or max(rises, default=0.0) <= limit("first_rise"):
        return None
    level: Level = "collapsed" if loss > limit("collapsed_rise") * start else "warn"
    message = f"loss {number(start)} to {number(loss)}"
    return make_finding("component_explosion", level, "training", loss, "large_loss", message, scaled=least)


def _find_large_focal(evidence: Evidence) -> RuleFinding | None:
    focal = evidence.training.get("focal")
    if "focal" not in evidence.components or focal is None or not _loss_has_risen(evidence.trend):
        return None
    if focal <= limit("large_focal") or _rise(evidence, "focal") <= limit("first_rise"):
        return None
    message = f"focal {number(_first(evidence.trend, 'component/focal'))} to {number(focal)}"
    return make_finding("component_explosion", "warn", "training", focal, "large_focal", message)


def _find_rising_component(evidence: Evidence) -> RuleFinding | None:
    if not _loss_has_risen(evidence.trend):
        return None
    for name in evidence.components:
        values = [row[f"component/{name}"] for row in list_ends(evidence.trend) if f"component/{name}" in row]
        earlier, recent = values[:-STEADY_EPOCHS], values[-STEADY_EPOCHS:]
        if not earlier:
            continue
        rise = min(recent) - min(earlier)
        if rise > 0.03 and rise > limit("component_rise") * abs(min(earlier)):
            message = (
                f"{name} {number(min(earlier))} to {number(recent[-1])}, above its lowest for {STEADY_EPOCHS} epochs"
            )
            return make_finding("component_explosion", "warn", "training", rise, "component_rise", message)
    return None


def _find_rising_validation(evidence: Evidence) -> RuleFinding | None:
    """The loss on validation has risen epoch by epoch, and at least one of its components with it."""
    rows = [row for row in list_ends(evidence.trend) if "val_loss" in row][-STEADY_EPOCHS - 1 :]
    losses = [row["val_loss"] for row in rows]
    now = evidence.val["student"].loss  # of a look between the ends of epochs
    if len(rows) <= STEADY_EPOCHS or not _has_risen(losses, "validation_rise") or now < losses[-1]:
        return None
    for name in evidence.components:
        values = [row[f"val_component/{name}"] for row in rows if f"val_component/{name}" in row]
        if len(values) == len(rows) and _has_risen(values, "validation_component_rise"):
            message = (
                f"on validation the loss rose {number(losses[0])} to {number(losses[-1])} and {name} "
                f"{number(values[0])} to {number(values[-1])}, in each of {STEADY_EPOCHS} epochs"
            )
            rise = losses[-1] - losses[0]
            return make_finding("component_explosion", "warn", "training", rise, "validation_rise", message)
    return None


def find_trivial_loss(evidence: Evidence) -> RuleFinding | None:
    """All components of the loss stay, on validation, where a constant output has them, and nothing is learned."""
    student, rows = evidence.val["student"], list_ends(evidence.trend)[-STEADY_EPOCHS:]
    gains = [_list_gains(evidence, row) for row in rows]
    if len(rows) < STEADY_EPOCHS or not all(gains) or has_learned(student) or is_informative(student):
        return None
    largest = max(gain for row in gains for gain in row.values())
    if largest >= limit("trivial_loss"):
        return None
    told = ", ".join(
        f"{name} {rows[-1][f'val_component/{name}']:.3f} (constant {evidence.ranges[name][1]:.3f}, perfect "
        f"{evidence.ranges[name][0]:.3f})"
        for name in gains[-1]
    )
    message = f"{told}: for {STEADY_EPOCHS} epochs no better on validation than a constant output"
    return make_finding("trivial_loss", "warn", "training", largest, "trivial_loss", message)


def _list_gains(evidence: Evidence, row: Figures) -> dict[str, float]:
    """Return how far each component has come from the best constant output (0) to a perfect one (1)."""
    known = {name: row.get(f"val_component/{name}") for name in evidence.ranges}
    return {
        name: (constant - value) / (constant - perfect)
        for name, (perfect, constant) in evidence.ranges.items()
        if (value := known[name]) is not None and constant > perfect
    }


def grade_gap(gap: float) -> str:
    """Return how wide the gap between F1 on training and on validation cases is: ``severe``, ``wide``, or nothing."""
    if gap > limit("severe_train_gap"):
        return "severe"
    return "wide" if gap > limit("train_gap") else ""


def find_overfitting(evidence: Evidence) -> RuleFinding | None:
    """Training cases get better while validation gets worse; a gap alone is normal with few labels."""
    student, train = evidence.val["student"], evidence.train.get("student")
    scores = [row["f1"] for row in list_ends(evidence.trend)]
    if train is None or not scores:
        return None
    gap, best = train.f1 - student.f1, max(scores)
    grade = grade_gap(gap)
    keeps_falling = max(scores[-STEADY_EPOCHS:]) < best - limit("score_drop")
    has_fallen = keeps_falling or (grade == "severe" and student.f1 < best - limit("severe_drop"))
    if not grade or not has_fallen:
        return None
    told = {"wide": "overfitting starts"}.get(grade, grade)
    message = (
        f"{train.f1_name} {train.f1:.2f} on training cases, {student.f1:.2f} on validation after {best:.2f}: {told}"
    )
    return make_finding("overfitting", "warn", "training", gap, "train_gap", message)


def find_plateau(evidence: Evidence) -> RuleFinding | None:
    """Validation has stopped getting better close to the trivial score."""
    student, scores = evidence.val["student"], [row["f1"] for row in list_ends(evidence.trend)]
    if len(scores) <= PLATEAU_EPOCHS or student.f1_best is None:
        return None
    gain = max(scores[-PLATEAU_EPOCHS:]) - max(scores[:-PLATEAU_EPOCHS])
    if gain > limit("plateau_gain") or student.f1_best > student.trivial_f1 + limit("plateau_margin"):
        return None
    message = (
        f"{student.f1_name} gained {max(gain, 0.0):.3f} in {PLATEAU_EPOCHS} epochs; at the best threshold it is "
        f"{student.f1_best:.2f}, all-positive scores {student.trivial_f1:.2f}"
    )
    return make_finding("plateau", "warn", "training", gain, "plateau_gain", message)


def find_pseudo_label_share(evidence: Evidence) -> RuleFinding | None:
    """The confidence threshold takes nearly none, or nearly all, of the pseudo-labels."""
    share = evidence.training.get("accepted_share")
    if share is None or limit("accepted_low") <= share <= limit("accepted_high"):
        return None
    name = "accepted_low" if share < limit("accepted_low") else "accepted_high"
    message = f"{share:.2%} of the pseudo-labels of the last {_steps(evidence)} steps were accepted"
    return make_finding("pseudo_label_share", "warn", "training", share, name, message)


def find_pseudo_label_drift(evidence: Evidence) -> RuleFinding | None:
    """The pseudo-labels are far from the masks, on training and validation, and have been closer."""
    pseudo = evidence.training.get("pseudo_prevalence")
    earlier = [row["pseudo_prevalence"] for row in evidence.trend if "pseudo_prevalence" in row]
    known = (evidence.training.get("prevalence_true", 0.0), evidence.val["student"].prevalence_true)
    if pseudo is None or not earlier or not all(0 < p < 1 for p in known):
        return None
    distance, closest = _odds_distance(pseudo, known), min(_odds_distance(p, known) for p in earlier)
    if distance <= math.log(limit("pseudo_odds")) or distance <= closest + math.log(2):
        return None
    message = (
        f"{pseudo:.1%} of the pseudo-labels are foreground; {known[0]:.1%} of the labeled patches and {known[1]:.1%} "
        "of validation are"
    )
    factor = math.exp(min(distance, 100.0))
    return make_finding("pseudo_label_drift", "warn", "training", factor, "pseudo_odds", message)


TRAINING_RULES: tuple[TrainingRule, ...] = (
    find_non_finite_training,
    find_blind_probe,
    find_zero_loss,
    find_mode_gap,
    find_loss_metric_divergence,
    find_teacher_diverged,
    find_component_explosion,
    find_trivial_loss,
    find_overfitting,
    find_plateau,
    find_pseudo_label_share,
    find_pseudo_label_drift,
)


def list_ends(trend: Sequence[Figures]) -> list[Figures]:
    """Return the rows at ends of epochs; the look before the first step is none."""
    return [row for row in trend if row["ends_epoch"] and row["step"] > 0]


def half_way(trend: Sequence[Figures]) -> Figures | None:
    """Return the last row of the first half of the steps; None where there is none, as without a trend."""
    rows = [row for row in trend if 2 * row["step"] <= trend[-1]["step"]]
    return rows[-1] if rows else None


def _has_risen(values: Sequence[float], limit_name: str) -> bool:
    """Return whether each value is above the one before, and the last one by a share above the first."""
    rises = all(after > before for before, after in pairwise(values))
    return rises and values[-1] - values[0] > limit(limit_name) * abs(values[0])


def _first(trend: Sequence[Figures], name: str) -> float | None:
    return next((row[name] for row in trend if name in row), None)


def _rise(evidence: Evidence, name: str) -> float:
    """Return a component over its first value; 0 where one of them is unknown or the first is not positive."""
    now, start = evidence.training.get(name), _first(evidence.trend, f"component/{name}")
    return now / start if now is not None and start is not None and start > 0 else 0.0


def _loss_has_risen(trend: Sequence[Figures]) -> bool:
    """Return whether the loss of the last epoch is above the lowest one; true where losses are unknown."""
    losses = [row["loss"] for row in list_ends(trend) if "loss" in row]
    return not losses or losses[-1] > min(losses) + limit("loss_rise") * abs(min(losses))


def _is_at_its_best(evidence: Evidence) -> bool:
    """Return whether the student has learned something and is about as good as it has ever been, also at its cut."""
    student = evidence.val["student"]
    scores = [row["f1_best"] for row in evidence.trend if "f1_best" in row]
    if student.f1_best is None or not scores or not has_learned(student):
        return False
    keeps_f1 = student.f1 >= max(row["f1"] for row in evidence.trend) - limit("f1_fall")
    return keeps_f1 and student.f1_best >= max(scores) - limit("score_drop")


def _odds_distance(share: float, known: Sequence[float]) -> float:
    """Return how far the log-odds of ``share`` are outside of the range of the known ones."""
    own, others = _log_odds(share), [_log_odds(p) for p in known]
    return max(own - max(others), min(others) - own, 0.0)


def _log_odds(share: float) -> float:
    if share in {0.0, 1.0}:
        return math.inf if share else -math.inf
    return math.log(share / (1 - share))


def _gap(better: float | None, worse: float | None) -> float:
    return 0.0 if better is None or worse is None else better - worse


def _steps(evidence: Evidence) -> int:
    return round(evidence.training.get("steps", 0.0))


def _name(codes: Sequence[str]) -> str:
    return f" ({', '.join(codes)})" if codes else ""
