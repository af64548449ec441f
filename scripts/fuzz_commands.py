"""Whole commands on random data sets: audit, split make, train for 3 steps, evaluate, predict.

    python scripts/fuzz_commands.py [--first-seed 0] [--count 300] [--workers 2] [--keep DIR]

Each seed makes a small data set on disk (sizes, number types, channels, classes, missing, empty and partly ignored
masks, odd names, all layouts, spacings and orientations) and takes it through the command line. What must hold: no
traceback; an error is one message with exit code 2 or 3; data with every class in twelve cases are trained; the library
reads what was written, in one frame; the audit counts it; no copy or group is in two parts of the split; there is a
mask for each image, in its frame; `evaluate` scores what `predict` writes.

Prints the faults with their seeds, and what was refused; exit code 1 where a fault was found. --keep leaves the files
of the seeds with faults there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fuzz.commands import Result, check_seed

SHOWN = 4
"""Faults of one seed that are printed."""


def check_one(seed: int, keep: Path | None) -> Result:
    """Check one seed in a folder of its own, kept where a fault is found."""
    folder = Path(tempfile.mkdtemp(prefix=f"seed{seed}-"))
    try:
        result = check_seed(seed, folder)
        if result.faults and keep is not None:
            shutil.copytree(folder, keep / f"seed{seed}", dirs_exist_ok=True)
        return result
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Check all seeds and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    seeds = range(args.first_seed, args.first_seed + args.count)
    ends: Counter[str] = Counter()
    faulty = 0
    with multiprocessing.get_context("spawn").Pool(args.workers, maxtasksperchild=50) as pool:
        for result in pool.imap_unordered(partial(check_one, keep=args.keep), seeds):
            ends[result.came_to] += 1
            faulty += bool(result.faults)
            if result.faults:
                shown = "\n  ".join(fault[:400] for fault in result.faults[:SHOWN])
                print(f"FAULT seed {result.seed} ({', '.join(result.traits)})\n  {shown}", flush=True)
            if result.said:
                print(f"{result.came_to}, seed {result.seed}: {result.said.splitlines()[0][:200]}", flush=True)
    print(f"{faulty} of {len(seeds)} data sets with faults; how far they came: {dict(ends)}")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
