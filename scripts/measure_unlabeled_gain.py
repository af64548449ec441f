"""Which methods gain from unlabeled images where these must help, and does any gain where they cannot?

    python scripts/measure_unlabeled_gain.py OUT [--ndim 2 3] [--methods NAME ...] [--seeds 3] [--workers N]

Labeled are 8 synthetic images of fresh specimens of two plies, which their fibers tell apart; unlabeled and validation
images show specimens whose fibers have faded and whose second ply has taken a stain (``write_fading_plies``). A
supervised network cannot know what the stain means; the unlabeled images say it. In the control the voxels of the
unlabeled images are shuffled: whatever gains there gains by something else. The optimum is a supervised training for
which the unlabeled images have masks.

Every cell is one of ``ssl-seg ablate``: the same command goes on after an interruption and trains what is missing. OUT
gets a folder of cells and tables for each part, and ``unlabeled_gain.json``. Methods that use features need another
network (encoder_unet, random weights) and are compared with a supervised training of that one.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from fading_plies import write_fading_plies

from ssl_seg.cli.tables import print_rows
from ssl_seg.files import write_json
from ssl_seg.methods import METHODS

KINDS: tuple[Literal["images", "shuffled", "masks"], ...] = ("images", "shuffled", "masks")
SETTINGS = {
    "length": {"steps": 150, "steps_per_epoch": 150},  # one look, at the end: no step is chosen
    "optim": {"lr": 5e-3, "warmup_steps": 10},
    "batch": {"labeled": 4, "unlabeled": 4},
    "augment": {"rotate90": False, "affine": 0.0},  # a quarter turn makes the fibers of one ply those of the other
    "ema": {"decay": 0.95},
    "monitor": {"first_epoch_probes": [0]},
}
NETWORKS: dict[bool, dict[str, Any]] = {
    False: {"name": "dynunet", "features": 8},
    True: {"name": "encoder_unet", "encoder_weights": "none"},
}
"""Network of a method that needs features (True) or does not (False)."""
SHAPES = {
    (2, "dynunet"): (32, 32),
    (3, "dynunet"): (8, 32, 32),
    (2, "encoder_unet"): (64, 64),
    (3, "encoder_unet"): (16, 32, 32),
}
"""Shapes of images and patches, by dimension and network: small, so that a training takes seconds."""
DATA_SEED, FIRST_SEED = 0, 10
"""The problem was chosen on images of another seed, with trainings of the seeds 0 and 1."""
OPTIONS = {
    "mean_teacher": {"consistency": "cross_entropy"},
    "ict": {"consistency": "cross_entropy"},
    "uamt": {"consistency_weight": 10.0},
    "entropy_minimization": {"consistency_weight": 1.0},
}
"""Options that are not the defaults: these methods take probabilities as they are, and unsure ones teach little."""


def make_specs(out: Path, ndim: int, methods: Sequence[str], seeds: int) -> dict[str, dict[str, Any]]:
    """Write the images where they are missing, and return the ablations of one dimension, by name."""
    specs: dict[str, dict[str, Any]] = {}
    runs = list(range(FIRST_SEED, FIRST_SEED + seeds))
    shared = {"pair_seeds": True, "split_seeds": runs, "seeds": runs, "score": {"metric": "f1"}}
    for needs_features, network in NETWORKS.items():
        own = [
            name for name in methods if METHODS[name].traits.needs_features == needs_features and name != "supervised"
        ]
        if not own:
            continue
        shape = SHAPES[ndim, network["name"]]
        roots = {kind: out / "data" / f"{ndim}d_{network['name']}_{kind}" for kind in KINDS}
        for kind, root in roots.items():
            if not root.is_dir():
                part = root.with_name(f"{root.name}_part")  # an interruption leaves this one
                write_fading_plies(part, shape, unlabeled=kind, seed=DATA_SEED)
                part.rename(root)
        data = {"patch_size": list(shape)}
        settings = {**SETTINGS, "data": data, "network": network}
        specs[f"{ndim}d_{network['name']}"] = {
            **shared,
            "settings": settings,
            "labels": [8],
            "methods": ["supervised", *own],
            "method_options": {name: OPTIONS[name] for name in own if name in OPTIONS},
            "recipes": {kind: {"data": {"root": str(roots[kind].resolve())}} for kind in ("images", "shuffled")},
        }
        optimum = {**settings, "data": {**data, "root": str(roots["masks"].resolve())}}
        specs[f"{ndim}d_{network['name']}_optimum"] = {
            **shared,
            "settings": optimum,
            "labels": [1.0],
            "methods": ["supervised"],
        }
    return specs


def run_ablation(out: Path, name: str, spec: dict[str, Any], workers: Sequence[str]) -> list[dict[str, Any]]:
    """Train the cells that are missing, and return the arms of its summary.

    Raises:
        SystemExit: where it was interrupted or has no results.
    """
    path = out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    command = [sys.executable, "-m", "ssl_seg", "ablate", str(path), "--out", str(out / name), *workers]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code not in (0, 2, 3):  # 2 and 3: a cell failed or was refused, which its arm shows
        sys.exit(code)
    arms: list[dict[str, Any]] = json.loads((out / name / "results.json").read_text())["summary"]["arms"]
    return arms


def make_row(method: str, arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return score, gain over supervised and interval of a method with the unlabeled images, and in the control."""
    row: dict[str, Any] = {"method": method}
    for kind, prefix in (("images", ""), ("shuffled", "control ")):
        arm = next(a for a in arms if (a["arm"]["method"], a["arm"]["recipe"]) == (method, kind))
        row[f"{prefix}f1"] = arm["mean"] and arm["mean"]["value"]
        row[f"{prefix}runs"] = sum(score is not None for score in arm["scores"])
        test = (arm["against"] or {}).get("test") or {}
        row |= {f"{prefix}{key}": test.get(key) for key in ("difference", "low", "high")}
    return row


def format_row(row: dict[str, Any]) -> dict[str, str]:
    """Return a row as it is printed."""
    shown = {"method": row["method"]}
    for prefix in ("", "control "):
        score, *gain = (row[f"{prefix}{key}"] for key in ("f1", "difference", "low", "high"))
        shown[f"{prefix}F1"] = "-" if score is None else f"{score:.3f}"
        shown[f"{prefix}gain"] = "-" if None in gain else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain)
    return shown


def main() -> None:
    """Train what is missing; print a table for each dimension and network, and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ndim", type=int, nargs="+", choices=(2, 3), default=[2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="choices of the labeled images, one training each")
    parser.add_argument("--workers", help="cells at a time, as for ssl-seg ablate")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    workers = ["--workers", options.workers] if options.workers else []
    tables: dict[str, Any] = {}
    for ndim in options.ndim:
        specs = make_specs(options.out, ndim, options.methods, options.seeds)
        arms = {name: run_ablation(options.out, name, spec, workers) for name, spec in specs.items()}
        for name in [name for name in specs if not name.endswith("_optimum")]:
            rows = [make_row(method, arms[name]) for method in specs[name]["methods"]]
            best = arms[f"{name}_optimum"][0]["mean"]
            tables[name] = {"optimum": best and best["value"], "methods": rows}
            write_json(options.out / "unlabeled_gain.json", tables)
            title = f"{name}: optimum F1 {best['value']:.3f}" if best else name
            print_rows(title, [format_row(row) for row in rows])


if __name__ == "__main__":
    main()
