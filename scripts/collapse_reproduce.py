r"""Reproduce "F1 0.52 with 1 % of the labels, 0.00 with 10 %" and see which single change removes it.

    python scripts/collapse_reproduce.py --data DIR/emps --out runs/reproduce_emps \
        --set data.spacing=[1,1] data.resample_to=[2,2]
    python scripts/collapse_reproduce.py --data synthetic:particles --out runs/reproduce_particles

The baseline is `recipes/mean_teacher_original` with what its report leaves open filled in such that it fails: batch
norm, a teacher whose BatchNorm statistics stay those of the untrained network (the package always averages them, so
this fault is injected here), a teacher without warm-up that follows within some twenty steps, and a learning rate of
1e-2. Every other line changes one thing. A seed is that of the split, the start and all draws. Runs that are finished
are not made again, others are resumed. Nothing looks at test cases.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lab.injections import leave_buffers_behind
from trainings import check_same_settings, compute_interval, format_rows, map_runs, train_once

from ssl_seg.config.layers import Layer, flatten, merge_layers, parse_override, read_layers
from ssl_seg.data.synthetic import DEFAULT_COUNT, is_synthetic, write_dataset
from ssl_seg.errors import RefusedError
from ssl_seg.run.directory import RunDir

SEEDS = (1, 2, 3)
"""Seed 0 was used to look for a baseline that fails."""
RECIPE = "recipes/mean_teacher_original"
MARGIN = 0.05
"""A network that ends less than this above the all-positive F1 has not left the trivial solution."""
BLIND = 0.01
"""Spread of the foreground share over patches below which a network does not look at the image; sound ones have 0.1."""
NETS = ("teacher", "student")

Nested = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A line of the table."""

    name: str
    labels: float = 0.10
    settings: tuple[str, ...] = ()
    """What differs from the baseline, ``key=value``."""
    stale_buffers: bool = True
    """Whether the teacher keeps the BatchNorm statistics of the untrained network."""
    parent: str | None = None
    """The variant of the same seed whose best checkpoint is the start."""
    share_of_steps: float = 1.0


FAIL = (
    "network.norm=batch", "optim.lr=0.01", "ema.decay=0.95",
    "batch.positive_ratio=null", "data.foreground_ratio=0",
)  # fmt: skip
ONE_PERCENT = "baseline, 1 %"
VARIANTS = (
    Variant(ONE_PERCENT, labels=0.01),
    Variant("baseline, 1 %, a tenth of the steps", labels=0.01, share_of_steps=0.1),
    Variant("baseline, 10 %"),
    Variant("+ gradient clipping at 1", settings=("optim.clip_norm=1.0",)),
    Variant("+ learning-rate warm-up", settings=("optim.warmup_steps=40",)),
    Variant("+ batches of 1", settings=("batch.labeled=1", "batch.unlabeled=1")),
    Variant("+ balanced sampling", settings=("batch.positive_ratio=0.5", "data.foreground_ratio=0.33")),
    Variant("+ Tversky 0.3 / 0.7", settings=("loss.preset=tversky_recall",)),
    Variant("+ two stages, from the 1 % run", parent=ONE_PERCENT),
    Variant("+ EMA warm-up", settings=("ema.warmup=true",)),
    Variant("+ averaged buffers", stale_buffers=False),
    Variant(
        "+ averaged buffers, focal costs on the wrong class",
        settings=("loss.options.focal={gamma: 2.0, alpha: 0.75, fp_cost: 5.0, fn_cost: 1.0}",),
        stale_buffers=False,
    ),
    Variant("+ instance norm", settings=("network.norm=instance",)),
    Variant("+ learning rate 1e-4, the report's", settings=("optim.lr=0.0001",)),
)


@dataclass(frozen=True)
class Task:
    """One training."""

    variant: Variant
    seed: int
    data: str
    patch: int
    steps: int
    features: int
    out: str
    settings: tuple[str, ...] = ()
    """Further settings of all trainings, ``key=value``."""

    @property
    def run_steps(self) -> int:
        """Optimizer steps of this training."""
        return round(self.steps * self.variant.share_of_steps)


@dataclass(frozen=True)
class Score:
    """What a network does on the validation probe after the last step."""

    f1: float
    f1_best: float
    auroc: float
    prevalence_pred: float
    ratio_std: float
    """Spread of the predicted foreground share over the patches."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to."""

    variant: str
    seed: int
    teacher: Score
    student: Score
    prevalence_true: float
    trivial_f1: float
    codes: tuple[str, ...]
    forced: bool
    """Whether the gate refused the parent, so that it took ``--force``."""


def write_synthetic(data: str, out: Path) -> str:
    """Return the folder of the data; a synthetic set is written out once, to make it for every run takes longer."""
    if not is_synthetic(data):
        return data
    kind, folder = data.partition(":")[2], out / "data"
    if not folder.exists():
        write_dataset(folder, kind, DEFAULT_COUNT[kind])
    return str(folder)


def make_settings(task: Task) -> Nested:
    """Return what a training sets on top of the recipe."""
    common = {
        "seed": task.seed,
        "data": {"root": task.data, "patch_size": [task.patch, task.patch]},
        "split": {"labels": task.variant.labels, "seed": task.seed, "val_fraction": 0.10},
        "network": {"features": task.features},
        "length": {"steps": task.run_steps, "steps_per_epoch": max(1, task.run_steps // 2)},
        "monitor": {
            "first_epoch_probes": [0],
            "train_probe_patches": 0,
            "probe_patches": 24,
            "on_collapse": "warn",
        },
        "runtime": {"memory_format": "contiguous", "precision": "fp32", "accelerator": "cpu"},
    }
    options = (*FAIL, *task.settings, *task.variant.settings)
    layers = [Layer("common", common)]
    layers += [Layer(option, parse_override(option).values) for option in options]  # in order, later ones win
    return merge_layers(layers)[0]


def find_path(task: Task, variant: str | None = None) -> Path:
    """Return the run directory of a task, or of another variant with the same seed."""
    words = "".join(c if c.isalnum() else " " for c in variant or task.variant.name).split()
    return Path(task.out) / f"{'_'.join(words)}_seed{task.seed}"


def run_task(task: Task) -> Outcome:
    """Train, unless that is done already, and read the outcome from the run directory."""
    torch.set_num_threads(1)
    out, layers = find_path(task), (*read_layers(RECIPE), Layer("variant", make_settings(task)))
    parent = None if task.variant.parent is None else RunDir(find_path(task, task.variant.parent)).best
    with leave_buffers_behind() if task.variant.stale_buffers else nullcontext():
        try:
            train_once(out, layers, parent)
        except RefusedError:
            train_once(out, layers, parent, force=True)
    return read_outcome(task, out)


def read_outcome(task: Task, path: Path) -> Outcome:
    """Return the figures of a finished run."""
    run = RunDir(path)
    last = run.read_metrics()[-1]
    figures = {net: [last[f"val/{net}/{field.name}"] for field in fields(Score)] for net in NETS}
    teacher, student = (Score(*(math.nan if value is None else value for value in figures[net])) for net in NETS)
    started = next(e for e in run.read_events() if e["event"] == "started")
    return Outcome(
        task.variant.name,
        task.seed,
        teacher,
        student,
        last["val/prevalence_true"],
        last["val/trivial_f1"],
        tuple(last["codes"]),
        bool(started["force"]),
    )


def format_table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table: a line a variant, means over the seeds."""
    columns = [
        "", *(f"{net}: {what}" for net in NETS for what in ("F1 at 0.5", "F1, best threshold", "AUROC", "foreground")),
        "trivial (teacher, student)", "same in all patches (teacher, student)", "verdicts at the end (seeds)",
    ]  # fmt: skip
    rows = []
    for name in dict.fromkeys(o.variant for o in outcomes):
        runs = [o for o in outcomes if o.variant == name]
        rows.append([_name(name, runs), *(cell for net in NETS for cell in _cells(runs, net))])
        rows[-1] += [_count(runs, _is_trivial), _count(runs, _is_blind), _count_codes(runs)]
    trivial, true = (np.mean([getattr(o, key) for o in outcomes]) for key in ("trivial_f1", "prevalence_true"))
    last = f"All-positive F1 on the probe: {trivial:.3f}; true foreground {true:.1%}."
    return f"{format_rows(columns, rows)}\n\n{last}"


def _name(name: str, runs: list[Outcome]) -> str:
    forced = sum(o.forced for o in runs)
    return f"{name} (refused by the gate and forced: {forced} of {len(runs)})" if forced else name


def _cells(runs: list[Outcome], net: str) -> list[str]:
    scores: list[Score] = [getattr(o, net) for o in runs]
    intervals = [compute_interval([getattr(s, key) for s in scores]) for key in ("f1", "f1_best", "auroc")]
    shares = " / ".join(f"{s.prevalence_pred:.0%}" for s in scores)
    return [*(f"{mean:.3f} ± {half:.3f}" for mean, half in intervals), shares]


def _is_trivial(score: Score, outcome: Outcome) -> bool:
    return score.f1 < outcome.trivial_f1 + MARGIN


def _is_blind(score: Score, _: Outcome) -> bool:
    return score.ratio_std < BLIND


def _count(runs: list[Outcome], has: Callable[[Score, Outcome], bool]) -> str:
    teacher, student = (sum(has(getattr(o, net), o) for o in runs) for net in NETS)
    return f"{teacher}, {student} of {len(runs)}"


def _count_codes(runs: list[Outcome]) -> str:
    codes = [code for o in runs for code in dict.fromkeys(o.codes or ("ok",))]
    return ", ".join(f"{code} {codes.count(code)}" for code in dict.fromkeys(codes))


def main() -> None:
    """Run all variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:particles")
    parser.add_argument("--patch", type=int, default=48)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--features", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all trainings")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", default="runs/reproduce_particles")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error("two seeds at least: intervals need them")

    data = write_synthetic(args.data, Path(args.out))
    settings = (data, args.patch, args.steps, args.features, args.out, tuple(args.set))
    tasks = [Task(variant, seed, *settings) for seed in args.seeds for variant in VARIANTS]
    for task in tasks:
        wanted = {key: value for key, value in flatten(make_settings(task)) if key != "data.root"}
        check_same_settings(find_path(task), wanted)
    outcomes: list[Outcome] = []
    for stage in ([t for t in tasks if t.variant.parent is None], [t for t in tasks if t.variant.parent]):
        for outcome in map_runs(run_task, stage, args.workers):
            outcomes.append(outcome)
            scores = f"teacher {outcome.teacher.f1:.3f}, student {outcome.student.f1:.3f}"
            print(f"{len(outcomes)}/{len(tasks)} {outcome.variant}, seed {outcome.seed}: F1 {scores}", flush=True)
    order = {variant.name: index for index, variant in enumerate(VARIANTS)}
    outcomes.sort(key=lambda o: (order[o.variant], o.seed))
    (Path(args.out) / "outcomes.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    print(format_table(outcomes))


if __name__ == "__main__":
    main()
