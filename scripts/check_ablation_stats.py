"""Simulate the statistics: how often intervals cover the truth, and null effects are significant.

    python scripts/check_ablation_stats.py --simulations 500

Coverage of intervals that are to cover 95 % should be 93 to 97 %; of null effects at most 6 % should be significant.
The columns beside those of the package are what was not chosen. 500 simulations have a standard error of 1 point.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ssl_seg.scores.intervals import Estimate, Resamples, estimate_difference, estimate_margin, estimate_mean
from ssl_seg.studies.ablation.label_savings import Runs, estimate_labels_equivalent
from ssl_seg.studies.ablation.stats import average_units, compare_paired, compute_case_values, compute_mean_squares

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
VOXELS = 1_000_000


SIZES = (2, 3, 5, 6, 7, 8, 10, 15, 30, 60)
"""Numbers of cases, from below ``LEAST_CASES`` on."""


def get_ends(estimate: Estimate) -> tuple[float, float]:
    """Return the ends of an interval; an empty one, which covers nothing, where there is none."""
    return (1.0, -1.0) if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)


def find_p(table: Floats) -> float:
    """Return the p of the package, whatever the number of cases; 1 where there is none."""
    p = compare_paired(table, least=2).p
    return 1.0 if p is None else p


def fail_sometimes(rng: np.random.Generator, cases: int) -> Floats:
    """Return Dice scores of which 10 % are failures."""
    return np.where(rng.random(cases) < 0.1, rng.beta(1, 6, cases), rng.beta(12, 2, cases))


SCORES: dict[str, tuple[Draw, float]] = {
    "beta(8, 2)": (lambda rng, n: rng.beta(8, 2, n), 0.8),
    "beta(4, 0.6)": (lambda rng, n: rng.beta(4, 0.6, n), 4 / 4.6),
    "beta(2, 0.5)": (lambda rng, n: rng.beta(2, 0.5, n), 0.8),
    "beta(0.7, 2)": (lambda rng, n: rng.beta(0.7, 2, n), 0.7 / 2.7),
    "10 % fail": (fail_sometimes, 0.9 * 12 / 14 + 0.1 / 7),
}
"""Distributions of the Dice of a case, and their means."""


def draw_mostly_alike(rng: np.random.Generator, cases: int) -> tuple[Floats, Floats]:
    """Return scores of two methods that find the same cases easy, but for 30 % of them."""
    easy = rng.random(cases)
    other = np.where(rng.random(cases) < 0.7, easy, rng.random(cases))
    return stats.beta.ppf(easy, 8, 2), stats.beta.ppf(other, 4, 0.8)


def draw_noisy(rng: np.random.Generator, cases: int) -> tuple[Floats, Floats]:
    """Return scores of two methods of one quality."""
    first, second = rng.normal(1.5, 1.0, cases) + 0.4 * rng.standard_normal((2, cases))
    return 1 / (1 + np.exp(-first)), 1 / (1 + np.exp(-second))


def draw_skewed(rng: np.random.Generator, cases: int) -> tuple[Floats, Floats]:
    """Return scores of which the second is never better, and much worse in a few cases."""
    first = rng.beta(8, 2, cases)
    return first, first * (1 - rng.beta(0.5, 3, cases))


PAIRS: dict[str, tuple[Callable[[np.random.Generator, int], tuple[Floats, Floats]], float]] = {
    "mostly alike": (draw_mostly_alike, 0.8 - 4 / 4.8),
    "noise": (draw_noisy, 0.0),
    "skewed": (draw_skewed, 0.8 * 0.5 / 3.5),
}
"""Distributions of paired scores, and the differences of their means."""


def as_counts(dice: Floats, size: Floats | float = 1.0) -> NDArray[np.int64]:
    """Return (..., C, 1, 4) counts with the Dice of each case; ``size`` scales its number of voxels."""
    total = VOXELS * np.broadcast_to(size, dice.shape)
    tp = np.round(dice * total / 2).astype(np.int64)
    rest = np.round(total).astype(np.int64) - 2 * tp
    return np.stack([tp, rest // 2, rest - rest // 2, np.zeros_like(tp)], axis=-1)[..., None, :]


def draw_pooled(rng: np.random.Generator, cases: int) -> tuple[Floats, Floats]:
    """Return Dice and relative size of cases of which large ones are found better."""
    size = rng.lognormal(0.0, 0.7, cases)
    return rng.beta(4 * size**0.5, 1.2), size


def simulate_coverage(simulations: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield rows: setting, coverage of the bootstrap-t, of the percentile and of Student's t interval."""
    rng = np.random.default_rng(seed)
    sizes = draw_pooled(rng, 10_000_000)
    pooled = float((sizes[0] * sizes[1]).sum() / sizes[1].sum())
    for cases in SIZES:
        for name, (draw, truth) in SCORES.items():
            covered = np.zeros(3)
            for _ in range(simulations):
                dice = draw(rng, cases)
                weights = Resamples(cases, number=1000, seed=int(rng.integers(2**31)))
                own = estimate_mean(as_counts(dice[None]), "dice", weights, least=2)
                ends = [
                    get_ends(own),
                    np.quantile(np.asarray(weights) @ dice / cases, [0.025, 0.975]),
                    stats.ttest_1samp(dice, truth).confidence_interval(),
                ]
                covered += [low <= truth <= high for low, high in ends]
            yield (f"{name}, {cases} cases", *(f"{c / simulations:.1%}" for c in covered))
        covered = np.zeros(3)
        for _ in range(simulations):
            dice, size = draw_pooled(rng, cases)
            weights = Resamples(cases, number=1000, seed=int(rng.integers(2**31)))
            low, high = get_ends(estimate_mean(as_counts(dice, size)[None], "f1", weights, least=2))
            rows = np.asarray(weights)
            percentile = np.quantile((rows @ (dice * size)) / (rows @ size), [0.025, 0.975])
            covered += [low <= pooled <= high, percentile[0] <= pooled <= percentile[1], np.nan]
        yield (f"pooled F1, {cases} cases", *(f"{c / simulations:.1%}" for c in covered[:2]), "-")
        for name, (draw_pair, truth) in PAIRS.items():
            covered = np.zeros(3)
            for _ in range(simulations):
                first, second = draw_pair(rng, cases)
                weights = Resamples(cases, number=1000, seed=int(rng.integers(2**31)))
                own = estimate_difference(as_counts(first[None]), as_counts(second[None]), "dice", weights, least=2)
                ends = [
                    get_ends(own),
                    np.quantile(np.asarray(weights) @ (first - second) / cases, [0.025, 0.975]),
                    stats.ttest_rel(first, second).confidence_interval(),
                ]
                covered += [low <= truth <= high for low, high in ends]
            yield (f"difference, {name}, {cases} cases", *(f"{c / simulations:.1%}" for c in covered))


def draw_masks(rng: np.random.Generator, cases: int, prevalence: Floats, false_share: float) -> NDArray[np.int64]:
    """Return (C, 4) counts of images of one size that are found in part."""
    positive = np.round(prevalence * VOXELS)
    tp = np.round(rng.beta(6, 2, cases) * positive)
    fp = np.round(false_share * rng.beta(1, 10, cases) * (VOXELS - positive))
    return np.stack([tp, fp, positive - tp, VOXELS - positive - fp], axis=-1).astype(np.int64)


MASKS: dict[str, tuple[Draw, float]] = {
    "a third foreground": (lambda rng, n: rng.beta(2, 4, n), 1.0),
    "6 % foreground": (lambda rng, n: rng.beta(1, 15, n), 0.3),
    "half of the masks empty": (lambda rng, n: np.where(rng.random(n) < 0.5, 0.0, rng.beta(2, 6, n)), 0.3),
    "four of five masks empty": (lambda rng, n: np.where(rng.random(n) < 0.8, 0.0, rng.beta(2, 6, n)), 0.3),
}
"""Distributions of the share of foreground, and a factor of the false positives."""


def simulate_margin(simulations: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield rows: setting, coverage of the interval of the margin over all-positive, and of the percentile interval."""
    rng = np.random.default_rng(seed)
    for name, (draw, false_share) in MASKS.items():
        truth = estimate_margin(draw_masks(rng, 2_000_000, draw(rng, 2_000_000), false_share), resamples=1).value
        for cases in SIZES:
            covered, drawn = np.zeros(2), 0
            while drawn < simulations:
                counts = draw_masks(rng, cases, draw(rng, cases), false_share)
                if not counts[:, [0, 2]].any():  # without foreground there is no margin
                    continue
                resampling = int(rng.integers(2**31))
                own = get_ends(estimate_margin(counts, resamples=1000, seed=resampling, least=2))
                sums = np.asarray(Resamples(cases, number=1000, seed=resampling)) @ counts
                tp, fp, fn, tn = sums[sums[:, 0] + sums[:, 2] > 0].T
                margins = 2 * tp / (2 * tp + fp + fn) - 2 * (tp + fn) / (2 * (tp + fn) + fp + tn)
                low, high = np.quantile(margins, [0.025, 0.975])
                covered += [own[0] <= truth <= own[1], low <= truth <= high]
                drawn += 1
            yield (f"{name}, {cases} cases", *(f"{c / simulations:.1%}" for c in covered))


def simulate_test(simulations: int, seed: int, effect: float = 0.0) -> Iterator[tuple[str, ...]]:
    """Yield rows: setting, how often the test is significant, with Hillis' degrees of freedom, and of cases alone."""
    rng = np.random.default_rng(seed)
    for runs in (1, 2, 3, 9):
        for cases in (5, 8, 15, 55):
            # With one run its own effect cannot be told from that of the method: the null is that there is none.
            for run_sd in (0.0,) if runs == 1 else (0.0, 0.1, 0.3, 1.0):
                for case_sd, rest_sd in ((0.5, 1.0), (1.0, 0.3)):
                    found = np.zeros(3)
                    for _ in range(simulations):
                        table = effect + run_sd * rng.standard_normal((runs, 1)) + case_sd * rng.standard_normal(cases)
                        table = table + rest_sd * rng.standard_normal((runs, cases))
                        cases_alone = stats.ttest_1samp(table.mean(axis=0), 0.0).pvalue
                        found += [p < 0.05 for p in (find_p(table), compute_hillis_p(table), cases_alone)]
                    name = f"{runs} runs, {cases} cases, sd of runs {run_sd:g}, cases {case_sd:g}, rest {rest_sd:g}"
                    yield (name, *(f"{f / simulations:.1%}" for f in found))


def compute_hillis_p(table: Floats) -> float:
    """Return p with the degrees of freedom of Hillis (2007)."""
    if (units := len(table)) < 2:
        return float(stats.ttest_1samp(table[0], 0.0).pvalue)
    squares = compute_mean_squares(table)
    variance = squares.run + max(squares.case - squares.rest, 0.0)
    freedom = variance**2 / (squares.run**2 / (units - 1))
    return float(2 * stats.t.sf(abs(table.mean()) / np.sqrt(variance / table.size), freedom))


def simulate_scores(simulations: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield rows as ``simulate_test``, of Dice and pooled F1 in place of normal effects.

    Two methods of one quality: each training has its own luck, and with splits each split has some for each method.
    Three splits of three seeds are three units.
    """
    rng = np.random.default_rng(seed)
    for splits, seeds in ((1, 3), (3, 1), (3, 3)):
        for cases in (5, 8, 15, 55):
            for luck in (0.05, 0.5):
                for metric in ("dice", "f1"):
                    found = np.zeros(2)
                    for _ in range(simulations):
                        easy, size = rng.normal(1.5, 1.0, cases), rng.lognormal(0.0, 0.7, cases)
                        # As with one run: of one split its own luck cannot be told from the method.
                        spread = luck if splits > 1 else 0.0
                        of_split = spread * rng.standard_normal((2, splits, 1, 1))
                        of_seed = luck * rng.standard_normal((2, splits, seeds, 1)) / 2
                        logits = easy + of_split + of_seed + 0.4 * rng.standard_normal((2, splits, seeds, cases))
                        dice = (1 / (1 + np.exp(-logits))).reshape(2, splits * seeds, cases)
                        values = compute_case_values(as_counts(dice, size), metric)
                        units = average_units(values[0] - values[1], np.repeat(np.arange(splits), seeds).tolist())
                        cases_alone = stats.ttest_1samp(units.mean(axis=0), 0.0).pvalue
                        found += [find_p(units) < 0.05, cases_alone < 0.05]
                    name = f"{splits} splits of {seeds} seeds, {cases} cases, luck {luck:g}, {metric}"
                    ours, alone = (f"{f / simulations:.1%}" for f in found)
                    yield (name, ours, "-", alone)


def simulate_labels(simulations: int, seed: int) -> Iterator[tuple[str, ...]]:
    """Yield rows: setting, coverage of the interval of the labels-equivalent. The truth is 20 of 4 to 100 labels."""
    rng = np.random.default_rng(seed)
    labels = (4, 12, 36, 100)
    for runs in (1, 3, 9):
        for cases in (5, 8, 15, 55):
            for luck in (0.0,) if runs == 1 else (0.05, 0.3):
                covered = 0
                for _ in range(simulations):
                    easy = rng.normal(0.0, 1.0, cases)

                    def draw(n: float, easy: Floats = easy, runs: int = runs, luck: float = luck) -> Runs:
                        own = luck * rng.standard_normal((runs, 1)) + 0.4 * rng.standard_normal((runs, len(easy)))
                        dice = 1 / (1 + np.exp(-(0.8 * np.log(n / 12) + easy + own)))
                        return Runs(n, as_counts(dice), tuple(range(runs)))

                    # The curve between its points is linear: the truth is 20 labels up to that.
                    interval = estimate_labels_equivalent(
                        [draw(n) for n in labels],
                        draw(20),
                        "dice",
                        resamples=1000,
                        seed=int(rng.integers(2**31)),
                        least=2,
                    )
                    low, high = interval.low, interval.high
                    if low is None or high is None:
                        continue
                    covered += (low.bound == "<=" or low.number <= 20) and (high.bound == ">=" or high.number >= 20)
                yield f"{runs} runs, {cases} cases, luck {luck:g}", f"{covered / simulations:.1%}"


def show(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    """Print a Markdown table, row by row."""
    print(f"\n## {title}\n\n| setting | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Print a table for each thing that was simulated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=500, help="of each setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("scores", "margin", "tests", "power", "labels"), help="one part")
    options = parser.parse_args()
    n, seed = options.simulations, options.seed
    tests = ("ours", "Hillis' df", "cases alone")
    tables: list[tuple[str, str, tuple[str, ...], Iterator[tuple[str, ...]]]] = [
        ("scores", "95 % intervals over cases", ("ours", "percentile", "Student's t"), simulate_coverage(n, seed)),
        ("margin", "95 % intervals of the margin over all-positive", ("ours", "percentile"), simulate_margin(n, seed)),
        ("tests", "Null effects significant at 5 %", tests, simulate_test(n, seed)),
        ("tests", "The same of scores", tests, simulate_scores(n, seed)),
        ("power", "Power: an effect of 0.5", tests, simulate_test(n, seed, effect=0.5)),
        ("labels", "95 % intervals of labels-equivalents", ("ours",), simulate_labels(max(n // 4, 1), seed)),
    ]
    for part, title, columns, rows in tables:
        if options.only in (None, part):
            show(title, columns, rows)


if __name__ == "__main__":
    main()
