"""Is pre-training worth its time? ``pretrain`` then ``train`` against ``train``, on one split, paired by seed.

python scripts/measure_pretraining.py OUT --emps DIR --la DIR [--seeds 0 1 2] [--labels 37] [--steps 400]

Settings: ``random``, the 2D network with a random encoder; ``imagenet``, the same with published weights; ``volumes``,
the planned network of 3D. Each run has a directory below OUT; what is finished is skipped, what was stopped goes on, so
the same command continues after Ctrl-C or kill -9. Only validation cases are scored.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from ssl_seg.inference.scoring import count_classes
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores, summarize_network
from ssl_seg.scores.intervals import compare_counts


def run(command: str, out: Path, options: list[str]) -> None:
    """Make a run, go on with it, or do nothing where it is finished.

    Raises:
        SystemExit: where the command fails.
    """
    if RunDir(out).read_ending() is not None:
        return
    if RunDir(out).last.is_file():
        arguments = [command, "--resume", str(out)]
    else:  # a start that was killed before its first checkpoint is begun anew
        shutil.rmtree(out, ignore_errors=True)
        arguments = [command, "--out", str(out), *options]
    print("ssl-seg", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "ssl_seg", *arguments], check=False).returncode
    if code != 0 and RunDir(out).read_ending() is None:
        sys.exit(code)


def compare(out: Path, seeds: list[int]) -> None:
    """Print F1 on validation of both starts and their paired difference, by seed and over the seeds."""
    differences = []
    for seed in seeds:
        finals = [load_final_scores(RunDir(out / f"{start}_seed{seed}")) for start in ("scratch", "pretrained")]
        if finals[0] is None or finals[1] is None:
            print(f"{out.name:10} seed {seed}: a run has no scores")
            continue
        scores = [final.used.score for final in finals if final is not None]
        scratch, pretrained = (summarize_network(score)["f1_macro"] for score in scores)
        change = compare_counts(count_classes(scores[1]), count_classes(scores[0]))
        differences.append(change.f1)
        interval = change.why if change.low is None else f"{change.low:+.3f} .. {change.high:+.3f}"
        print(f"{out.name:10} seed {seed}: {scratch:.3f} -> {pretrained:.3f}  {change.f1:+.3f}  95 % {interval}")
    if len(differences) > 1:
        mean, error = np.mean(differences), np.std(differences, ddof=1) / len(differences) ** 0.5
        print(f"{out.name:10} {len(differences)} seeds: {mean:+.3f} +- {error:.3f} (standard error)")


def main() -> None:
    """Make all runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--emps", type=Path, help="2D data set; left out, there is no 2D part")
    parser.add_argument("--la", type=Path, help="3D data set; left out, there is no 3D part")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labels", default="37", help="labels of the 2D runs, as for train")
    parser.add_argument("--labels-3d", default="8", help="labels of the 3D runs")
    parser.add_argument("--pretrain-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], help="any setting of all runs")
    given = parser.parse_args()
    parts: dict[str, tuple[Path, str, list[str]]] = {}
    if given.emps:
        for name, weights in (("random", "none"), ("imagenet", "imagenet")):
            encoder = ["--network", "encoder_unet", "--encoder-weights", weights]
            parts[name] = (given.emps, given.labels, encoder)
    if given.la:
        parts["volumes"] = (given.la, given.labels_3d, [])
    settings = [word for text in given.set for word in ("--set", text)]
    for seed in given.seeds:  # the outermost, so that a stopped measurement has whole comparisons
        for name, (data, labels, network) in parts.items():
            shared = ["--data", str(data), "--seed", str(seed), *network, *settings]
            out = given.out / name
            run("pretrain", out / f"masked_seed{seed}", [*shared, "--steps", str(given.pretrain_steps)])
            for start in ("scratch", "pretrained"):
                own = ["--pretrained", str(out / f"masked_seed{seed}")] if start == "pretrained" else []
                own += ["--labels", labels, "--steps", str(given.steps)]
                run("train", out / f"{start}_seed{seed}", [*shared, *own])
            compare(out, given.seeds[: given.seeds.index(seed) + 1])


if __name__ == "__main__":
    main()
