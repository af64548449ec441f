r"""Train the recipes at equal steps on small patches and compare them by figures that do not depend on their losses.

    python scripts/compare_recipes.py --data synthetic:sheets --labels 0.25 --patch 16 32 32 --out runs/recipes_sheets
    python scripts/compare_recipes.py --data DIR/emps --labels 0.10 --patch 64 64 --steps 240 --out runs/recipes_emps \
        --set data.spacing=[1,1] data.resample_to=[2,2]

Each recipe is scaled to the same number of steps and epochs. What it says in epochs is scaled too and rounded, to 1 at
least; its learning rate is multiplied by its own number of steps over ours, so that the sum of the rates stays about
the same. Batch sizes, losses, clipping and policies stay, but for early stopping: the steps are to be equal. 30 epochs
suit recipes of 300: a cycle of 10 epochs becomes one of 1, and the last cycle ends where theirs does. A seed is that of
the split, the start and all draws. Runs that are finished are not made again, others are resumed. Nothing looks at test
cases.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from trainings import check_same_settings, compute_interval, format_rows, map_runs, train_once

from ssl_seg.config.layers import Layer, flatten, merge_layers, parse_override, read_layers
from ssl_seg.data.open import absolute_root
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run.directory import RunDir

SEEDS = (0, 1, 2)
RECIPES = tuple(f"recipes/seed_v{n}" for n in range(1, 10))
OURS = {2: "recommended_2d", 3: "recommended_3d"}
SUPERVISED = " supervised"
"""Suffix of a recipe that is trained on its labeled part alone."""
BASELINE = "recipes/seed_v8"
"""Dice alone: what the others are compared with, seed by seed."""
IMPROVEMENT = 0.005
"""Gain of validation F1 that counts as progress."""
STUCK = 0.05
"""A plateau that lies so far below the best recipe of its seed is one to get out of; others have converged."""

Nested = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One training."""

    recipe: str
    seed: int
    data: str
    labels: float
    patch: tuple[int, ...]
    steps: int
    epochs: int
    features: int
    out: str
    settings: tuple[str, ...] = ()
    """Further settings of all trainings, ``key=value``."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to, on validation; ``f1`` of whole images, the others of the probe after the last step."""

    recipe: str
    seed: int
    f1: float
    f1_best: float
    """F1 of the student of best.pt, which was chosen on patches of the same images: optimistic."""
    auroc: float | None
    prevalence_pred: float
    prevalence_true: float
    trivial_f1: float
    loss: float
    f1_swa: float | None
    """F1 of the averaged weights, where the recipe averages."""
    plateau: bool
    """Whether the last third of the epochs brought no better F1 on the probe."""
    verdict: str


def scale_recipe(values: Nested, steps: int, epochs: int) -> Nested:
    """Return the settings that squeeze a recipe into ``steps`` and ``epochs``; ``values`` are its merged layers."""
    own_steps = values["length"]["steps"]
    shrink = epochs / (own_steps / values["length"]["steps_per_epoch"])

    def squeeze(number: int) -> int:
        return max(1, round(number * shrink))

    optim = values["optim"]
    scaled: Nested = {
        "length": {"steps": steps, "steps_per_epoch": steps // epochs},
        "optim": {
            "lr": optim["lr"] * own_steps / steps,
            "warmup_steps": round(optim.get("warmup_steps", 0) * steps / own_steps),
            **{key: squeeze(optim[key]) for key in ("restart_epochs", "plateau_patience") if key in optim},
        },
        "policies": {
            name: _squeeze_epochs(policy, squeeze)
            for name, policy in values.get("policies", {}).items()
            if name != "early_stopping"
        },
    }
    if "early_stopping" in values.get("policies", {}):
        scaled["policies"]["early_stopping"] = None
    if "loss" in values:
        scaled["loss"] = dict(values["loss"])
    if phases := values.get("loss", {}).get("phases"):
        scaled["loss"]["phases"] = [
            {
                **phase,
                "from_epoch": squeeze(phase["from_epoch"]),
                "blend_epochs": round(phase.get("blend_epochs", 0) * shrink),
            }
            for phase in phases
        ]
    return scaled


EPOCH_KEYS = {"start_epoch", "every_epochs", "patience", "hold_epochs", "judge_epochs"}


def _squeeze_epochs(section: Nested, squeeze: Callable[[int], int]) -> Nested:
    """Return a section of a policy with other numbers of epochs, also in the sections inside it."""
    return {
        key: _squeeze_epochs(value, squeeze)
        if isinstance(value, dict)
        else squeeze(value)
        if key in EPOCH_KEYS and value is not None
        else value
        for key, value in section.items()
    }


def make_common_settings(task: Task) -> Nested:
    """Return what all trainings of a comparison have in common."""
    common = {
        "seed": task.seed,
        "data": {"root": task.data, "patch_size": list(task.patch)},
        "split": {"labels": task.labels, "seed": task.seed},
        "network": {"features": task.features},
        "monitor": {"first_epoch_probes": [0], "train_probe_patches": 0, "probe_patches": 16},
        "runtime": {"memory_format": "contiguous", "precision": "fp32"},
    }
    return merge_layers([Layer("common", common), *map(parse_override, task.settings)])[0]


def find_path(task: Task) -> Path:
    """Return the run directory of a task."""
    return Path(task.out) / f"{task.recipe.replace('/', '_').replace(' ', '_')}_seed{task.seed}"


def check_same_task(task: Task) -> None:
    """End the script if there is a run of the task that was made with other settings."""
    wanted = {**dict(flatten(make_common_settings(task))), "data.root": absolute_root(task.data)}
    wanted |= {"length.steps": task.steps, "length.steps_per_epoch": task.steps // task.epochs}
    check_same_settings(find_path(task), wanted)


def run_task(task: Task) -> Outcome:
    """Train, unless that is done already, and read the outcome from the run directory."""
    torch.set_num_threads(1)
    layers = read_layers(task.recipe.removesuffix(SUPERVISED))
    scaled = scale_recipe(merge_layers(layers)[0], task.steps, task.epochs)
    layers += [Layer("scaled", scaled), Layer("common", make_common_settings(task))]
    if task.recipe.endswith(SUPERVISED):
        layers += [parse_override("method.name=supervised"), parse_override("batch.unlabeled=0")]
    return read_outcome(task, train_once(find_path(task), layers).path)


def read_outcome(task: Task, path: Path) -> Outcome:
    """Return the figures of a finished run."""
    run = RunDir(path)
    records = run.read_metrics()
    last = records[-1]
    curve = [r["val/student/f1"] or 0.0 for r in records]
    third = len(curve) // 3
    return Outcome(
        task.recipe,
        task.seed,
        load_checkpoint(run.last).scores["student"]["f1"],
        load_checkpoint(run.best).scores["student"]["f1"],
        last["val/student/auroc"],
        last["val/student/prevalence_pred"],
        last["val/prevalence_true"],
        last["val/trivial_f1"],
        last["train/loss"],
        load_checkpoint(swa).scores["student"]["f1"] if (swa := path / "checkpoints" / "swa.pt").is_file() else None,
        max(curve[-third:]) < max(curve[:-third]) + IMPROVEMENT,
        ",".join(last["codes"]) or last["verdict"],
    )


def format_table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table: a line a recipe, means over the seeds."""
    by_recipe: dict[str, list[Outcome]] = {}
    for outcome in sorted(outcomes, key=lambda o: o.seed):
        by_recipe.setdefault(outcome.recipe, []).append(outcome)
    base = [o.f1 for o in by_recipe[BASELINE]]
    best = {seed: max(o.f1 for o in outcomes if o.seed == seed) for seed in {o.seed for o in outcomes}}
    columns = (
        "recipe", "F1, last step (95 % interval)", "minus v8, paired", "F1, best.pt", "F1, SWA", "AUROC",
        "predicted / true foreground", "plateau, stuck", "training loss", "verdicts",
    )  # fmt: skip
    rows = []
    for recipe, runs in by_recipe.items():
        mean, half = compute_interval([o.f1 for o in runs])
        against, spread = compute_interval([o.f1 - b for o, b in zip(runs, base, strict=True)])
        predicted, true = (np.mean([getattr(o, f"prevalence_{kind}") for o in runs]) for kind in ("pred", "true"))
        stuck = sum(o.plateau and o.f1 < best[o.seed] - STUCK for o in runs)
        rows.append(
            [
                recipe.removeprefix("recipes/"),
                f"{mean:.3f} ± {half:.3f}",
                "-" if recipe == BASELINE else f"{against:+.3f} ± {spread:.3f}",
                f"{np.mean([o.f1_best for o in runs]):.3f}",
                "-" if runs[0].f1_swa is None else f"{np.mean([o.f1_swa or 0.0 for o in runs]):.3f}",
                f"{np.mean([o.auroc or np.nan for o in runs]):.3f}",
                f"{predicted:.1%} / {true:.1%}",
                f"{sum(o.plateau for o in runs)} of {len(runs)}, {stuck} stuck",
                f"{np.mean([o.loss for o in runs]):.3f}",
                ", ".join(sorted({o.verdict for o in runs})),
            ]
        )
    rank = stats.spearmanr([o.loss for o in outcomes], [o.f1 for o in outcomes])
    trivial = np.mean([o.trivial_f1 for o in outcomes])
    last = (
        f"All-positive F1 on the probe: {trivial:.3f}. Rank correlation of training loss and F1 over all runs: "
        f"{rank.statistic:+.2f} (a loss that could choose between recipes would have -1)."
    )
    return f"{format_rows(columns, rows)}\n\n{last}"


def main() -> None:
    """Run all recipes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:sheets")
    parser.add_argument("--labels", type=float, default=0.25)
    parser.add_argument("--patch", type=int, nargs="+", default=[16, 32, 32])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--recipes", nargs="+", help="default: v1 to v9 and the recommended one, also supervised")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all trainings")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", default="runs/recipes_sheets")
    args = parser.parse_args()

    ours = OURS[len(args.patch)]
    recipes = args.recipes or [*RECIPES, ours + SUPERVISED, ours]
    if BASELINE not in recipes or len(args.seeds) < 2 or args.steps % args.epochs:
        parser.error(f"{BASELINE} must be among the recipes, two seeds at least, and --steps a multiple of --epochs")
    settings = (
        args.data,
        args.labels,
        tuple(args.patch),
        args.steps,
        args.epochs,
        args.features,
        args.out,
        tuple(args.set),
    )
    tasks = [Task(recipe, seed, *settings) for seed in args.seeds for recipe in recipes]
    for task in tasks:
        check_same_task(task)
    outcomes: list[Outcome] = []
    for outcome in map_runs(run_task, tasks, args.workers):
        outcomes.append(outcome)
        print(f"{len(outcomes)}/{len(tasks)} {outcome.recipe} seed {outcome.seed}: F1 {outcome.f1:.3f}", flush=True)
    (Path(args.out) / "outcomes.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    order = {recipe: index for index, recipe in enumerate(recipes)}
    print(format_table(sorted(outcomes, key=lambda o: (order[o.recipe], o.seed))))


if __name__ == "__main__":
    main()
