from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from arm_cells import CASES, FRACTIONS, make_arm, make_cell, make_grid
from scipy import stats

from ssl_seg.errors import ConfigError, DataError
from ssl_seg.scores.intervals import NO_VARIATION
from ssl_seg.studies.ablation.cells import CellResult
from ssl_seg.studies.ablation.stats import compute_score, correct_holm
from ssl_seg.studies.ablation.summary import AblationSummary, ArmSummary, summarize

GAINS = {"supervised": 0.0, "mean_teacher": 0.1}


def find(
    summary: AblationSummary, method: str, labels: float = 0.1, start: str = "scratch", recipe: str = "base"
) -> ArmSummary:
    (arm,) = [a for a in summary.arms if a.arm == make_arm(method, recipe, start, labels)]
    return arm


class TestArms:
    def test_means_and_intervals(self) -> None:
        cells = make_grid(GAINS)
        summary = summarize(cells, "dice", "supervised")
        assert summary.cases == CASES
        for arm in summary.arms:
            own = [float(compute_score(c.counts, "dice")) for c in cells if c.arm == arm.arm]
            assert arm.scores == tuple(own)
            assert arm.mean is not None
            assert arm.mean.value == pytest.approx(np.mean(own))
            assert arm.mean.low < arm.mean.value < arm.mean.high
            assert arm.labeled == FRACTIONS[arm.arm.labels]
            assert np.mean(arm.case_dice) == pytest.approx(np.mean(own))
            assert arm.count("done") == 3

    def test_arms_of_a_line_stand_together_by_labels(self) -> None:
        cells = make_grid(GAINS)
        mixed = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
        mixed.sort(key=lambda c: c.arm.method != "supervised")
        arms = [(a.arm.method, a.arm.labels) for a in summarize(mixed, "f1", "supervised").arms]
        assert arms == [(method, labels) for method in GAINS for labels in FRACTIONS]

    def test_trivial_scores_are_those_of_constant_predictions(self) -> None:
        summary = summarize(make_grid(GAINS), "f1", "supervised")
        assert summary.all_positive == pytest.approx(2 * 0.25 / 1.25)  # a quarter of the voxels is foreground
        assert summary.predict_nothing == 0.0

    def test_where_most_masks_are_empty_predicting_nothing_is_good(self) -> None:
        counts = np.zeros((10, 1, 4), np.int64)
        counts[..., 3] = 100
        counts[:2, 0] = [40, 10, 10, 40]
        summary = summarize([replace(make_cell(make_arm(), 0.5), counts=counts)], "dice", "supervised")
        assert summary.predict_nothing == pytest.approx(0.8)
        assert summary.all_positive == pytest.approx(0.2 * 2 * 0.5 / 1.5)

    def test_spread(self) -> None:
        arm = find(summarize(make_grid(GAINS, seeds=2), "dice", "supervised"), "supervised")
        assert arm.spread is not None
        groups = np.array(arm.scores).reshape(3, 2)
        assert arm.spread.seed == pytest.approx(np.sqrt(groups.var(axis=1, ddof=1).mean()))


class TestComparison:
    def test_a_gain_of_all_runs_and_cases_is_significant(self) -> None:
        summary = summarize(make_grid(GAINS), "dice", "supervised")
        for labels in FRACTIONS:
            against = find(summary, "mean_teacher", labels).against
            assert against is not None
            assert against.reference == make_arm("supervised", labels=labels)
            assert against.test.units == 3
            assert against.test.low < 0.1 < against.test.high
            assert against.test.p < 0.05
            assert find(summary, "supervised", labels).against is None

    def test_one_run_is_the_paired_t_test_and_says_so(self) -> None:
        cells = make_grid(GAINS, splits=1)
        summary = summarize(cells, "dice", "supervised")
        arm, other = (find(summary, method) for method in ("mean_teacher", "supervised"))
        assert arm.against is not None
        assert arm.against.test.p == pytest.approx(stats.ttest_rel(arm.case_dice, other.case_dice).pvalue)
        assert arm.against.test.units == 1
        assert any("one run an arm" in w for w in summary.warnings)

    def test_runs_are_paired_by_their_seeds(self) -> None:
        """Order is no pairing: the same scores under other seeds are another comparison."""
        levels = (0.4, 0.5, 0.6)
        cells = [make_cell(make_arm(), level, split) for split, level in enumerate(levels)]
        shift = [make_cell(make_arm("cps"), level + 0.1, split) for split, level in reversed(list(enumerate(levels)))]
        against = find(summarize([*cells, *shift], "dice", "supervised"), "cps").against
        assert against is not None
        assert against.test.difference == pytest.approx(0.1, abs=1e-4)
        assert against.test.why == NO_VARIATION  # paired otherwise, the differences are 0.3, 0.1 and -0.1

    def test_only_common_seeds_are_compared(self) -> None:
        cells = [make_cell(make_arm(), dice, split) for split, dice in enumerate((0.4, 0.5, None))]
        cells += [make_cell(make_arm("cps"), dice, split) for split, dice in enumerate((0.5, 0.6, 0.9))]
        against = find(summarize(cells, "dice", "supervised"), "cps").against
        assert against is not None
        assert against.test.difference == pytest.approx(0.1, abs=1e-4)
        assert against.test.units == 2

    def test_runs_of_one_split_are_one_unit_and_of_one_split_alone_are_units(self) -> None:
        for splits, seeds, units in ((3, 2, 3), (1, 2, 2)):
            against = find(
                summarize(make_grid(GAINS, splits=splits, seeds=seeds), "dice", "supervised"), "mean_teacher"
            ).against
            assert against is not None
            assert against.test.units == units

    def test_holm_is_over_all_comparisons(self) -> None:
        summary = summarize(make_grid({**GAINS, "cps": 0.01}), "dice", "supervised")
        against = [a.against for a in summary.arms if a.against]
        assert len(against) == 6
        assert [a.holm for a in against] == correct_holm([a.test.p for a in against])

    def test_references(self) -> None:
        """(method, recipe, start) and what it is compared with."""
        expected = {
            ("supervised", "base", "scratch"): None,
            ("supervised", "base", "bootstrap"): ("supervised", "base", "scratch"),
            ("supervised", "strong", "scratch"): ("supervised", "base", "scratch"),
            ("cps", "base", "scratch"): ("supervised", "base", "scratch"),
            ("cps", "base", "bootstrap"): ("supervised", "base", "bootstrap"),
            ("cps", "strong", "bootstrap"): ("supervised", "strong", "scratch"),
            ("cps", "other", "bootstrap"): ("supervised", "base", "bootstrap"),
        }
        rng = np.random.default_rng(0)
        cells = [make_cell(make_arm(*line), rng.uniform(0.4, 0.6, CASES)) for line in expected]
        found = {a.line: a.against for a in summarize(cells, "dice", "supervised").arms}
        for line, reference in expected.items():
            against = found[line]
            assert (None if against is None else against.reference) == (reference and make_arm(*reference))

    def test_one_comparison_under_two_names_counts_once(self) -> None:
        """Recipes that differ in bootstrap settings have their cells from scratch in common, with equal ids."""
        starts = ("scratch", "bootstrap")
        cells = make_grid({"supervised": 0.0, "cps": 0.1}, starts=starts)
        again = [
            replace(c, arm=replace(c.arm, recipe="encoder"), id=c.id if c.arm.start == "scratch" else f"{c.id}-encoder")
            for c in cells
        ]
        alone, both = (summarize(list(found), "dice", "supervised") for found in (cells, [*cells, *again]))
        assert find(both, "supervised", recipe="encoder").against is None  # it would be compared with itself
        ps = {
            (tuple(c.id for c in a.cells), a.against.reference.start): a.against.test.p for a in both.arms if a.against
        }
        expected = dict(zip(ps, correct_holm(list(ps.values())), strict=True))
        for arm in both.arms:
            if arm.against:
                key = (tuple(c.id for c in arm.cells), arm.against.reference.start)
                assert arm.against.holm == pytest.approx(expected[key])
        assert len(ps) < sum(a.against is not None for a in both.arms)
        assert len(ps) > sum(a.against is not None for a in alone.arms)

    def test_a_bootstrap_is_compared_at_equal_steps_where_that_is_there(self) -> None:
        starts = ("scratch", "bootstrap", "scratch_long")
        summary = summarize(make_grid({"supervised": 0.0}, starts=starts), "dice", "supervised")
        found = {a.arm.start: a.against and a.against.reference.start for a in summary.arms if a.arm.labels == 0.1}
        assert found == {"scratch": None, "bootstrap": "scratch_long", "scratch_long": "scratch"}
        assert not any("equal steps" in warning for warning in summary.warnings)
        few = summarize(make_grid({"supervised": 0.0}, starts=starts[:2]), "dice", "supervised")
        assert any("so steps are not equal" in warning for warning in few.warnings)


class TestLabelsEquivalent:
    def test_is_read_off_the_curve_of_the_baseline(self) -> None:
        cells = make_grid({"supervised": 0.0, "cps": 0.1}, noise=1e-4)
        summary = summarize(cells, "dice", "supervised")
        found = find(summary, "cps", 0.1).labels_equivalent
        assert found is not None
        assert found.value.number == pytest.approx(36 * 10**0.5, rel=0.02)  # 0.2 a decade, 0.1 better
        assert found.low.number < found.value.number < found.high.number
        best = find(summary, "cps", 1.0).labels_equivalent
        assert str(best and best.value) == ">= 360"
        assert find(summary, "supervised").labels_equivalent is None

    @pytest.mark.parametrize(("splits", "units"), [(3, (0, 0, 1, 1, 2, 2)), (1, (0, 1))])
    def test_runs_of_a_split_are_drawn_together(
        self, splits: int, units: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[tuple[int, ...]] = []
        name = "ssl_seg.studies.ablation.summary.estimate_labels_equivalent"
        monkeypatch.setattr(name, lambda curve, target, _: seen.extend(r.units for r in [*curve, target]))
        summarize(make_grid(GAINS, splits=splits, seeds=2), "dice", "supervised")
        assert set(seen) == {units}

    @pytest.mark.parametrize("start", ["bootstrap", "scratch_long"])
    def test_the_curve_of_a_start_begins_at_the_smallest_fraction(self, start: str) -> None:
        """There every start is from scratch, and is stored as such."""
        cells = make_grid({"supervised": 0.0, "cps": -0.1}, starts=("scratch", start), noise=1e-4)
        cells = [c for c in cells if c.arm.start == "scratch" or c.arm.labels > 0.01]
        found = find(summarize(cells, "dice", "supervised"), "cps", 0.1, start=start).labels_equivalent
        assert found is not None
        # 0.13 above the point from scratch at 4 labels, of the 0.1954 + 0.03 to the next at 36.
        share = (0.2 * np.log10(9) + 0.03 - 0.1) / (0.2 * np.log10(9) + 0.03)
        assert found.value.bound == ""
        assert found.value.number == pytest.approx(4 * 9**share, rel=0.02)

    def test_needs_two_points_but_not_the_same_labels(self) -> None:
        cells = [c for c in make_grid(GAINS) if c.arm.method == "mean_teacher" or c.arm.labels != 0.1]
        arm = find(summarize(cells, "dice", "supervised"), "mean_teacher")
        assert arm.against is None
        assert arm.labels_equivalent is not None
        alone = [c for c in cells if c.arm.method == "mean_teacher" or c.arm.labels == 1.0]
        assert find(summarize(alone, "dice", "supervised"), "mean_teacher").labels_equivalent is None


class TestWhatWentWrong:
    def test_failed_and_missing_cells_are_shown(self) -> None:
        cells = make_grid(GAINS)
        cells[0] = replace(cells[0], status="failed", counts=None, message="out of memory")
        cells[1] = replace(cells[1], status="missing", counts=None)
        arm = summarize(cells, "dice", "supervised").arms[0]
        assert [arm.count(s) for s in ("done", "collapsed", "failed", "missing")] == [1, 0, 1, 1]
        assert arm.scores[:2] == (None, None)
        assert arm.mean is not None
        assert arm.mean.value == pytest.approx(arm.scores[2])

    def test_an_arm_without_scores_is_kept(self) -> None:
        cells = make_grid(GAINS)
        cells = [replace(c, status="failed", counts=None) if c.arm.method == "mean_teacher" else c for c in cells]
        arm = find(summarize(cells, "dice", "supervised"), "mean_teacher")
        assert (arm.mean, arm.spread, arm.against, arm.labels_equivalent) == (None, None, None, None)
        assert arm.count("failed") == 3

    def test_no_score_at_all(self) -> None:
        cells = [replace(c, status="missing", counts=None) for c in make_grid(GAINS)]
        summary = summarize(cells, "dice", "supervised")
        assert (summary.cases, summary.all_positive) == (0, None)
        assert summary.warnings == ("no cell has a score yet",)

    def test_collapsed_cells_are_in_the_mean(self) -> None:
        cells = [make_cell(make_arm(), 0.8, 0), make_cell(make_arm(), 0.4, 1, status="collapsed")]
        summary = summarize(cells, "dice", "supervised")
        assert summary.arms[0].mean is not None
        assert summary.arms[0].mean.value == pytest.approx(0.6)
        assert any("1 collapsed cell is in the means" in w for w in summary.warnings)

    @pytest.mark.parametrize(
        ("splits", "seeds", "expected"),
        [(1, 1, "one run an arm"), (1, 2, "one split"), (3, 1, "one training a split"), (3, 2, None)],
    )
    def test_what_a_design_does_not_cover(self, splits: int, seeds: int, expected: str | None) -> None:
        warnings = summarize(make_grid(GAINS, splits=splits, seeds=seeds), "dice", "supervised").warnings
        assert any("over validation cases" in w for w in warnings)
        for text in ("one run an arm", "one split", "one training a split"):
            assert any(w.startswith(text) for w in warnings) == (text == expected)

    def test_one_case_is_not_compared(self) -> None:
        one = [replace(c, counts=c.counts[:1]) for c in make_grid(GAINS) if c.counts is not None]
        arms = summarize(one, "dice", "supervised").arms
        assert all(a.mean is not None and a.mean.low is None for a in arms)
        tests = [a.against for a in arms if a.against is not None]
        assert tests
        assert all(t.test.p is t.holm is t.these_runs.low is None for t in tests)

    def test_few_cases(self) -> None:
        few = [replace(c, counts=c.counts[:5]) for c in make_grid(GAINS) if c.counts is not None]
        assert any(w.startswith("too few cases (5 < 8)") for w in summarize(few, "dice", "supervised").warnings)

    def test_a_comparison_on_one_run_is_told(self) -> None:
        cells = [make_cell(make_arm(), dice, split) for split, dice in enumerate((0.4, None, None))]
        cells += [make_cell(make_arm("cps"), dice, split) for split, dice in enumerate((0.5, 0.6, 0.9))]
        warnings = summarize(cells, "dice", "supervised").warnings
        assert any("1 of the comparisons rests on one run" in w for w in warnings)


class TestRefusals:
    def test_unknown_baseline(self) -> None:
        with pytest.raises(ConfigError, match=r"'superviced' is not a method.*did you mean 'supervised'.*mean_teacher"):
            summarize(make_grid(GAINS), "dice", "superviced")

    def test_no_cells(self) -> None:
        with pytest.raises(ConfigError, match="without cells"):
            summarize([], "dice", "supervised")

    def test_other_cases(self) -> None:
        cells = make_grid(GAINS)
        assert cells[3].counts is not None
        for counts in (cells[3].counts[::-1] * 2, cells[3].counts[1:]):
            with pytest.raises(
                DataError, match=f"'{cells[0].id}' and '{cells[3].id}' were not scored on the same cases"
            ):
                summarize([*cells[:3], replace(cells[3], counts=counts), *cells[4:]], "dice", "supervised")

    def test_a_cell_that_is_there_twice(self) -> None:
        cells: list[CellResult] = make_grid(GAINS)
        with pytest.raises(DataError, match=r"'again' are the same arm with the same seeds"):
            summarize([*cells, replace(cells[0], id="again")], "dice", "supervised")
