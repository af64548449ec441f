"""What the cells of an ablation say together: a line for each arm, and what to keep in mind when reading them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssl_seg.errors import ConfigError, DataError, did_you_mean
from ssl_seg.scores.intervals import (
    Estimate,
    Metric,
    Resamples,
    compute_class_scores,
    compute_score,
    count_everywhere,
    describe_shortage,
    estimate_difference,
    estimate_mean,
)
from ssl_seg.scores.metrics import compute_case_dice
from ssl_seg.studies.ablation.cells import CellResult, CellStatus
from ssl_seg.studies.ablation.label_savings import LabelsEquivalent, Runs, estimate_labels_equivalent
from ssl_seg.studies.ablation.spec import Arm
from ssl_seg.studies.ablation.stats import (
    PairedComparison,
    Spread,
    average_units,
    compare_paired,
    compute_case_values,
    compute_spread,
    correct_holm,
)

Line = tuple[str, str, str]
"""Method, recipe and start: the arms of a line differ in their labels only."""


@dataclass(frozen=True)
class Against:
    """An arm compared with the baseline at the same labels, over the seeds that both have finished."""

    reference: Arm
    test: PairedComparison
    """Holds for new cases, and for new seeds where there are several."""
    holm: float | None
    """``test.p``, corrected for the number of comparisons of the ablation that have one."""
    these_runs: Estimate
    """The difference with its interval over cases: of these seeds only."""
    identical: bool = False
    """Whether all voxel counts of all cases are equal: the networks predict the same, and there is nothing to test."""


@dataclass(frozen=True)
class ArmSummary:
    """An arm. What is not known, for want of finished cells, is None."""

    arm: Arm
    cells: tuple[CellResult, ...]
    scores: tuple[float | None, ...]
    """Scores of the cells, in their order."""
    labeled: float | None
    """Number of labeled cases, mean over the cells: splits by groups differ."""
    mean: Estimate | None
    """Mean over the cells that have a score, the collapsed ones too, with its interval over cases."""
    case_dice: tuple[float, ...]
    """Dice of each case, mean over classes and cells, whatever the metric."""
    positive: float | None
    """Mean of ``case_dice`` over the cases that have foreground."""
    classes: tuple[float | None, ...]
    """Score of each foreground class, mean over cells; None for one that is in no mask. ``dice`` is over the cases that
    have the class."""
    spread: Spread | None
    against: Against | None = None
    labels_equivalent: LabelsEquivalent | None = None
    """Labels with which the baseline would have this mean score."""
    same_as: Arm | None = None
    """Arm of the baseline whose cells these are too: there is nothing to compare."""

    def count(self, status: CellStatus) -> int:
        """Return the number of cells with the status."""
        return sum(cell.status == status for cell in self.cells)

    @property
    def line(self) -> Line:
        """What the arm shares with the same training at other labels."""
        return self.arm.method, self.arm.recipe, self.arm.start


@dataclass(frozen=True)
class AblationSummary:
    """All arms, those of a line by increasing labels."""

    metric: Metric
    baseline: str
    """Method that the others are compared with."""
    arms: tuple[ArmSummary, ...]
    cases: int
    positives: int
    """Cases that have foreground."""
    label_values: tuple[int, ...]
    """Mask values of the foreground classes, in the order of ``ArmSummary.classes``."""
    absent_classes: tuple[int, ...]
    """Mask values of the classes that are in no mask, and therefore in no mean."""
    all_positive: float | None
    """Score of predicting foreground everywhere (each class for itself), on the same cases under the same metric."""
    predict_nothing: float | None
    warnings: tuple[str, ...]
    part: str = "val"
    """List of cases: ``val`` or ``test``."""


def summarize(
    results: Sequence[CellResult], metric: Metric, baseline: str, *, part: str = "val", checkpoint: str = "best"
) -> AblationSummary:
    """Return the summary of an ablation.

    An arm is compared with the one of the baseline method with the same labels, recipe and start. Where there is none,
    or it is the arm itself, with that of the same recipe from scratch, for a bootstrap the one with as many steps if it
    is there; else with that of the first recipe, and at last with that of the first recipe from scratch. So
    bootstrapping is compared with starting from scratch, and recipes of the baseline method with its first one. Its
    labels-equivalent is read off the same line.

    Args:
        results: the cells, in the order of the plan.
        metric: metric of all scores.
        baseline: name of a method.
        part: list of cases that was scored, ``val`` or ``test``.
        checkpoint: that was scored, ``best`` or ``last``.

    Raises:
        ConfigError: if there are no cells, or none of the baseline.
        DataError: if cells are there twice or were not scored on the same cases.
    """
    _check_cells(results)
    if baseline not in (methods := sorted({cell.arm.method for cell in results})):
        raise ConfigError(
            f"baseline '{baseline}' is not a method of this ablation{did_you_mean(baseline, methods)}: "
            f"name one of {', '.join(methods)}"
        )
    scored = [cell.counts for cell in results if cell.counts is not None]
    arms = _summarize_arms(results, metric)
    arms = [_place(arm, arms, metric, baseline) for arm in arms]
    arms = _correct(arms)
    positive, nothing = compute_trivial_scores(scored[0], metric) if scored else (None, None)
    truth = (scored[0][..., 0] + scored[0][..., 2] > 0) if scored else np.zeros((0, 0), np.bool_)
    cases, positives = len(truth), int(truth.any(axis=1).sum())
    values = next((c.label_values for c in results if c.label_values), ()) or tuple(range(1, 1 + truth.shape[1]))
    absent = tuple(value for value, cells in zip(values, truth.sum(axis=0).tolist(), strict=False) if not cells)
    warnings = (
        *_list_warnings(arms, cases, chosen_on_them=part == "val" and checkpoint == "best"),
        *_list_absences(metric, values, absent, cases - positives),
    )
    return AblationSummary(
        metric, baseline, tuple(arms), cases, positives, values, absent, positive, nothing, warnings, part
    )


def _correct(arms: Sequence[ArmSummary]) -> list[ArmSummary]:
    """Return the arms with the corrected p of their comparisons.

    Recipes that differ in what bootstrapped cells read have their other cells in common: a comparison under two names
    counts once.
    """
    cells_of = {arm.arm: tuple(cell.id for cell in arm.cells) for arm in arms}
    keys = [(cells_of[a.arm], cells_of[a.against.reference]) if a.against else None for a in arms]
    compared = [(key, a.against) for key, a in zip(keys, arms, strict=True) if key and a.against]
    found = {key: against.test.p for key, against in compared if not against.identical}
    ps = {key: p for key, p in found.items() if p is not None}
    holm = dict(zip(ps, correct_holm(list(ps.values())), strict=True))
    return [
        replace(a, against=replace(a.against, holm=holm.get(key))) if key and a.against else a
        for key, a in zip(keys, arms, strict=True)
    ]


def compute_trivial_scores(counts: NDArray[np.int64], metric: Metric) -> tuple[float, float]:
    """Return the scores of predicting each class everywhere, and of predicting nothing, from any (C, F, 4) counts."""
    everywhere = count_everywhere(counts)
    nowhere = everywhere[..., [2, 3, 0, 1]]
    return float(compute_score(everywhere, metric)), float(compute_score(nowhere, metric))


def _check_cells(results: Sequence[CellResult]) -> None:
    if not results:
        raise ConfigError("an ablation without cells has no summary: give at least one method, label fraction and seed")
    seen: dict[tuple[Arm, int, int], str] = {}
    first: CellResult | None = None
    for cell in results:
        key = (cell.arm, cell.split_seed, cell.seed)
        if key in seen:
            raise DataError(
                f"cells '{seen[key]}' and '{cell.id}' are the same arm with the same seeds: keep one of them"
            )
        seen[key] = cell.id
        if cell.counts is None:
            continue
        first = first or cell
        if not np.array_equal(count_everywhere(cell.counts), count_everywhere(np.asarray(first.counts))):
            raise DataError(
                f"cells '{first.id}' and '{cell.id}' were not scored on the same cases (their true voxels differ): "
                "scores can only be compared on one validation list. Train the cells from one split file"
            )


def _summarize_arms(results: Sequence[CellResult], metric: Metric) -> list[ArmSummary]:
    """Return the arms with what needs no other arm, those of a line together."""
    lines = list(dict.fromkeys((c.arm.method, c.arm.recipe, c.arm.start) for c in results))
    arms = [
        _summarize_arm(arm, [c for c in results if c.arm == arm], metric)
        for arm in dict.fromkeys(c.arm for c in results)
    ]
    return sorted(arms, key=lambda a: (lines.index(a.line), a.labeled or 0.0, a.arm.labels))


def _summarize_arm(arm: Arm, cells: Sequence[CellResult], metric: Metric) -> ArmSummary:
    scores = tuple(None if c.counts is None else float(compute_score(c.counts, metric)) for c in cells)
    known = [c.labeled for c in cells if c.labeled is not None]
    labeled = float(np.mean(known)) if known else None
    scored = _list_scored(cells)
    if not scored:
        return ArmSummary(arm, tuple(cells), scores, labeled, None, (), None, (), None)
    counts = _stack(scored)
    mean = estimate_mean(counts, metric, Resamples(counts.shape[1]))
    dice = compute_case_dice(counts).mean(axis=0)
    positives = dice[counts[0, ..., [0, 2]].any(axis=(0, 2))]
    classes = compute_class_scores(counts, metric).mean(axis=0)
    spread = compute_spread([s for s in scores if s is not None], [c.split_seed for c in scored])
    return ArmSummary(
        arm,
        tuple(cells),
        scores,
        labeled,
        mean,
        tuple(dice.tolist()),
        float(positives.mean()) if len(positives) else None,
        tuple(None if np.isnan(score) else float(score) for score in classes),
        spread,
    )


def _place(arm: ArmSummary, arms: Sequence[ArmSummary], metric: Metric, baseline: str) -> ArmSummary:
    """Return the arm with its comparison, not corrected yet, and its labels-equivalent."""
    lines = [line for line in _list_references(arm, arms, baseline) if line != arm.line]
    for line in lines:
        for other in arms:
            if other.line == line and other.arm.labels == arm.arm.labels and not _are_same(arm, other):
                return replace(
                    arm, against=_compare(arm, other, metric), labels_equivalent=_equate(arm, arms, line, metric)
                )
    equivalents = (
        _equate(arm, arms, line, metric) for line in lines
    )  # the baseline has no other arm with these labels
    same = next((o.arm for line in lines for o in arms if o.line == line and _are_same(arm, o)), None)
    return replace(arm, labels_equivalent=next((e for e in equivalents if e), None), same_as=same)


def _are_same(arm: ArmSummary, other: ArmSummary) -> bool:
    """Return whether two arms are the same cells under two names."""
    return [cell.id for cell in arm.cells] == [cell.id for cell in other.cells]


def _list_references(arm: ArmSummary, arms: Sequence[ArmSummary], baseline: str) -> list[Line]:
    """Return the lines an arm may be compared with, the best first; its own line may be among them.

    Without their own, the lists of arms of the baseline lead to the first recipe from scratch: no two of them are
    compared with each other both ways.
    """
    recipe, start = arm.arm.recipe, arm.arm.start
    first = next(a.arm.recipe for a in arms if a.arm.method == baseline)
    starts = [start, *(["scratch_long"] if start == "bootstrap" else []), "scratch"]
    wanted = [(baseline, name, other) for name in (recipe, first) for other in starts]
    return list(dict.fromkeys(wanted))


def _compare(arm: ArmSummary, other: ArmSummary, metric: Metric) -> Against | None:
    """Return the comparison over the seeds that both have; None without such."""
    own, theirs = ({(c.split_seed, c.seed): c for c in _list_scored(a.cells)} for a in (arm, other))
    keys = [key for key in own if key in theirs]
    if not keys:
        return None
    first, second = _stack([own[k] for k in keys]), _stack([theirs[k] for k in keys])
    differences = compute_case_values(first, metric) - compute_case_values(second, metric)
    test = compare_paired(average_units(differences, [split for split, _ in keys]))
    weights = Resamples(first.shape[1])
    difference = estimate_difference(first, second, metric, weights)
    return Against(other.arm, test, test.p, difference, identical=np.array_equal(first, second))


def _equate(arm: ArmSummary, arms: Sequence[ArmSummary], line: Line, metric: Metric) -> LabelsEquivalent | None:
    """Return the labels with which a line has the score of the arm; None without two points of the line."""
    several = len({c.split_seed for a in arms for c in a.cells}) > 1
    # At the smallest fraction every start is from scratch: such a line begins there too.
    alike = [a for a in arms if a.line[:2] == line[:2]]
    smallest = min(alike, key=lambda a: (a.arm.labels == 1, a.arm.labels), default=None)
    curve = [a for a in arms if (a.line == line or a is smallest) and a.mean and a.labeled]
    if not arm.mean or len({a.labeled for a in curve}) < 2:
        return None

    def collect(a: ArmSummary) -> Runs:
        cells = _list_scored(a.cells)
        return Runs(a.labeled or 0.0, _stack(cells), tuple(c.split_seed if several else c.seed for c in cells))

    return estimate_labels_equivalent([collect(a) for a in curve], collect(arm), metric)


def _list_scored(cells: Sequence[CellResult]) -> list[CellResult]:
    return [cell for cell in cells if cell.counts is not None]


def _stack(cells: Sequence[CellResult]) -> NDArray[np.int64]:
    return np.stack([np.asarray(cell.counts) for cell in cells])


def _list_warnings(arms: Sequence[ArmSummary], cases: int, *, chosen_on_them: bool) -> Iterator[str]:
    """Yield what a reader of the table must know."""
    scored = [cell for arm in arms for cell in _list_scored(arm.cells)]
    if not scored:
        yield "no cell has a score yet"
        return
    if chosen_on_them:
        yield (
            "intervals are over validation cases, on which checkpoints were selected: "
            "the levels are optimistic, the differences fair"
        )
    if "bootstrap" in (starts := {a.arm.start for a in arms}) and "scratch_long" not in starts:
        yield (
            "a start of bootstrap has the steps of its parents on top of its own, so steps are not equal; "
            "with scratch_long in starts there is one"
        )
    if shortage := describe_shortage(cases):
        yield f"{shortage}: no intervals and no p; give more validation cases, or read the differences as they are"
    splits, runs = {c.split_seed for c in scored}, max(len(_list_scored(a.cells)) for a in arms)
    if runs == 1:
        yield "one run an arm: p and intervals say nothing about other splits and seeds, which may differ by more"
    elif len(splits) == 1:
        yield "one split: which cases are labeled is the same in all runs, and p and intervals say nothing about others"
    elif any(a.spread and a.spread.total is not None and a.spread.seed is None for a in arms):
        yield "one training a split: the variance between splits cannot be told from that between training seeds"
    if any(a.spread and a.spread.truncated for a in arms):
        yield "a split sd of 0 was estimated as below 0: the training seeds explain more than all differences of splits"
    if collapsed := sum(a.count("collapsed") for a in arms):
        yield f"{collapsed} collapsed {_cells(collapsed)} in the means, with the checkpoint that is scored of all"
    if refused := sum(a.count("refused") for a in arms):
        yield f"{refused} {_cells(refused)} in the means though a gate has ended the training early"
    if lost := sum(a.count("failed") + a.count("missing") for a in arms):
        yield f"{lost} failed or missing {_cells(lost)} in no mean; comparisons are over the seeds both arms have"
    if runs > 1 and (alone := sum(a.against is not None and a.against.test.units == 1 for a in arms)):
        yield f"{alone} of the comparisons {'rests' if alone == 1 else 'rest'} on one run: p holds for these seeds only"


def _list_absences(metric: Metric, values: Sequence[int], absent: Sequence[int], empty: int) -> Iterator[str]:
    """Yield what must be said where classes, or any foreground, are missing in masks."""
    if absent and len(absent) == len(values):
        yield "no mask has any foreground: a case, or all of them, has 1 where nothing is predicted, else 0"
    elif absent:
        yield f"class {', '.join(map(str, absent))} is in none of the masks: it has no score, and is in no F1"
    if empty and metric == "dice":
        yield f"{empty} of the masks have no foreground, where predicting nothing scores 1: read the positive cases too"


def _cells(number: int) -> str:
    return "cell is" if number == 1 else "cells are"
