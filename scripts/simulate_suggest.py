"""Is a strategy of ``ssl-seg suggest`` worth more than random choices? Hide labels, add some at a time, train anew.

    python scripts/simulate_suggest.py OUT --data DIR [--start 10] [--add 10] [--rounds 3] [--seeds 3] [--set KEY=VALUE]

DIR has masks for most images; validation and test are as in any split of it. Each seed draws ``--start`` training cases
that are labeled at first. In each round the network trained so far suggests ``--add`` of the others, whose masks are
then given, and a new one is trained from scratch; what has no mask yet is unlabeled. All strategies begin with the same
training. Scores are F1 (mean over classes) of the network in use on the whole validation cases; no test case is
opened. OUT/suggest.json gets them, and the differences from ``random`` with 95 % t intervals over seeds. The same
command goes on after an interruption.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from scipy.stats import ttest_rel
from trainings import train_once

from ssl_seg.cli.console import TerminalConsole
from ssl_seg.cli.settings import parse_overrides
from ssl_seg.cli.tables import print_rows
from ssl_seg.config.layers import Layer
from ssl_seg.data.open import open_data, open_store
from ssl_seg.data.splits.files import save_split
from ssl_seg.data.splits.split import Split, make_split
from ssl_seg.files import write_json
from ssl_seg.inference.ensemble import open_members
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.suggestion import Pool, Strategy, SuggestRequest, suggest
from ssl_seg.run.directory import RunDir

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
Scores = dict[str, dict[int, list[float]]]
"""Strategy -> number of labels -> F1 of each seed."""


def order_pool(split: Split, chosen: Sequence[str]) -> Split:
    """Return the split with ``chosen`` as the first labeled training cases."""
    rest = [i for i in split.fractions[1.0] if i not in set(chosen)]
    return replace(split, fractions={1.0: (*chosen, *rest)})


def train_with(split: Split, chosen: Sequence[str], out: Path, layers: Sequence[Layer], seed: int) -> float:
    """Train with ``chosen`` as the labeled cases, unless that has been done; return F1 on validation."""
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".split.yaml")
    if not file.exists():
        save_split(order_pool(split, chosen), file)
    split_settings = {
        "file": str(file),
        "labels": len(chosen),
        "allow_faults": True,
    }  # a biased choice is what is tried
    own = Layer("simulation", {"seed": seed, "split": split_settings})
    run = train_once(out, (*layers, own), console=TerminalConsole())
    scores = load_checkpoint(run.best, lazy=True).scores
    return float(scores[scores["selected"]["net"]]["f1_macro"])


def choose_next(
    split: Split, chosen: Sequence[str], run: Path, strategy: Strategy, count: int, round_: int, seed: int
) -> list[str]:
    """Return the training cases that the network of a run suggests, their masks hidden."""
    models = open_members([RunDir(run).best])
    data = models[0].config.data
    hidden = tuple(i for i in split.fractions[1.0] if i not in set(chosen))
    pool = Pool(models, open_store(open_data(data.model_dump(mode="json")), data), hidden, tuple(chosen))
    request = SuggestRequest(RunDir(run).best, None, count, strategy, round_, seed)
    return [own.case_id for own in suggest(pool, request)]


def simulate(
    out: Path, layers: Sequence[Layer], split: Split, strategies: Sequence[Strategy], seeds: int, start: int, add: int,
    rounds: int,
) -> Scores:  # fmt: skip
    """Return the scores of all strategies; see the head of this file."""
    scores: Scores = {strategy: {} for strategy in strategies}
    for seed in range(seeds):
        pool = split.fractions[1.0]
        first = [pool[n] for n in np.random.default_rng(seed).permutation(len(pool))[:start]]
        for strategy in strategies:
            chosen, run = first, out / f"seed{seed}" / "start"
            for round_ in range(1, rounds + 2):
                scores[strategy].setdefault(len(chosen), []).append(train_with(split, chosen, run, layers, seed))
                if round_ <= rounds:
                    chosen = chosen + choose_next(split, chosen, run, strategy, add, round_, seed)
                    run = out / f"seed{seed}" / f"{strategy}_{len(chosen)}"
    return scores


def compare(scores: Scores) -> list[dict[str, Any]]:
    """Return a row for each strategy and number of labels: mean F1, and its difference from ``random`` over seeds."""
    rows = []
    for strategy, curve in scores.items():
        for labels, own in curve.items():
            row: dict[str, Any] = {"strategy": strategy, "labels": labels, "f1": float(np.mean(own))}
            base = scores.get("random", {}).get(labels)
            if strategy != "random" and base is not None:
                row["difference"] = float(np.mean(np.subtract(own, base)))
                if len(own) > 1 and own != base:
                    interval = ttest_rel(own, base).confidence_interval(0.95)
                    row |= {"low": float(interval.low), "high": float(interval.high)}
            rows.append(row)
    return rows


def format_row(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row as it is printed."""
    gain = f"{row['difference']:+.3f}" if "difference" in row else ""
    interval = f"{row['low']:+.3f} .. {row['high']:+.3f}" if "low" in row else ""
    shown = {"strategy": row["strategy"], "labels": str(row["labels"]), "F1": f"{row['f1']:.3f}"}
    return shown | {"against random": gain, "its 95 % interval": interval}


def main() -> None:
    """Train what is missing, and print and write the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--start", type=int, default=10, help="labels at first, at least 2")
    parser.add_argument("--add", type=int, default=10, help="labels in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--set", dest="settings", action="append", metavar="KEY=VALUE", help="as for ssl-seg train")
    options = parser.parse_args()
    if options.start < 2:
        parser.error(f"--start {options.start} must be at least 2: an amount of 1 could be all cases or one")
    root = str(Path(options.data).resolve()) if Path(options.data).exists() else options.data
    layers = [Layer("--data", {"data": {"root": root}}), *parse_overrides(options.settings)]
    split = make_split(open_data({"root": root}), (1.0,))
    most = options.start + options.rounds * options.add
    if most > len(split.fractions[1.0]):
        parser.error(f"{most} labels are more than the {len(split.fractions[1.0])} of the training pool")
    curve = (options.seeds, options.start, options.add, options.rounds)
    scores = simulate(options.out, layers, split, options.strategies, *curve)
    rows = compare(scores)
    write_json(options.out / "suggest.json", {"scores": scores, "rows": rows})
    print_rows(f"validation F1, {options.seeds} seeds", [format_row(row) for row in rows])


if __name__ == "__main__":
    main()
