"""Time and peak memory of whole commands on data sets of 1,000, 10,000 and more images.

Each stage is a process of its own, on a folder of small gray images that all differ; their masks are hard links to a
few files, so that 100,000 cases take 0.4 GB of disk. ``start`` is ``ssl-seg train`` until its first step is recorded.

    python scripts/benchmark_scale.py                                     # 1,000 and 10,000 images
    python scripts/benchmark_scale.py --sizes 100000 --stages catalog again split
    python scripts/benchmark_scale.py --keep FOLDER --json                # keeps the images for a further run

``again`` repeats ``catalog``: the facts of the images are known then. A stage that comes first pays for reading them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

SIDE = 32
MASKS = 64
"""Masks that differ; all others are links to them."""

CATALOG = "import sys; from ssl_seg import open_catalog; open_catalog(sys.argv[1])"
STAGES = ("catalog", "again", "audit", "split", "start", "evaluate", "predict")


@dataclass(frozen=True)
class Measured:
    """What one stage took: wall and CPU seconds, and the largest memory of its process in MB."""

    images: int
    stage: str
    seconds: float
    cpu_seconds: float
    peak_mb: int


def write_images(folder: Path, count: int, labeled: float) -> None:
    """Write ``count`` images of smooth noise; every (1 / labeled)-th has a mask."""
    images, masks, rng = folder / "images", folder / "masks", np.random.default_rng(0)
    for place in (images, masks):
        place.mkdir(parents=True)
    sources = []
    for index in range(min(MASKS, count)):
        blob = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 3)
        sources.append(folder / f"mask_{index}.bin")
        sources[-1].write_bytes(cv2.imencode(".png", (blob > blob.mean()).astype(np.uint8))[1].tobytes())
    for index in range(count):
        noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)).astype(np.float32), (0, 0), 2)
        cv2.imwrite(str(images / f"case_{index:07d}.png"), np.clip(128 + 300 * noise, 0, 255).astype(np.uint8))
        if int((index + 1) * labeled) > int(index * labeled):
            os.link(sources[index % len(sources)], masks / f"case_{index:07d}.png")


def make_command(stage: str, data: Path, work: Path) -> list[str]:
    """Return the command of a stage; ``work`` takes what it writes."""
    tool = [sys.executable, "-m", "ssl_seg"]
    run = str(work / "run")
    tiny = ("data.patch_size=[32,32]", "network.name=basic_unet", "network.features=4", "batch.labeled=2")
    quick = ("monitor.probe_patches=6", "monitor.train_probe_patches=2", "length.steps=20", "length.steps_per_epoch=10")
    settings = [word for item in (*tiny, *quick) for word in ("--set", item)]
    return {
        "catalog": [sys.executable, "-c", CATALOG, str(data)],
        "again": [sys.executable, "-c", CATALOG, str(data)],
        "audit": [*tool, "data", "audit", str(data), "--json"],
        "split": [*tool, "split", "make", "--data", str(data), "--out", str(work / "split.yaml")],
        "start": [*tool, "train", "--data", str(data), "--out", str(work / "start"), *settings],
        "train": [*tool, "train", "--data", str(data), "--out", run, *settings],
        "evaluate": [*tool, "evaluate", run, "--json"],
        "predict": [*tool, "predict", run, str(data / "images"), str(work / "masks")],
    }[stage]


def has_step(run: Path) -> bool:
    """Return whether a run has recorded a step after step 0."""
    with contextlib.suppress(OSError, ValueError):
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return any(json.loads(line)["step"] >= 1 for line in lines)
    return False


def measure(stage: str, data: Path, work: Path, images: int) -> Measured:
    """Run one stage and return what it took; ``start`` is stopped after its first step."""
    with (work / f"{stage}.log").open("w") as log:
        began = time.perf_counter()
        # Its own group: a signal to it must not end this script.
        child = subprocess.Popen(make_command(stage, data, work), stdout=log, stderr=log, start_new_session=True)
        while stage == "start" and child.poll() is None and not has_step(work / "start"):
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if stage == "start" and child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
        if child.returncode is None:
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        else:
            raise SystemExit(f"{stage} ended before its first step:\n{(work / f'{stage}.log').read_text()[-2000:]}")
    if stage != "start":
        seconds = time.perf_counter() - began
        if child.returncode not in (0, 2 if stage == "audit" else 0):
            raise SystemExit(f"{stage} failed:\n{(work / f'{stage}.log').read_text()[-2000:]}")
    return Measured(
        images, stage, round(seconds, 2), round(usage.ru_utime + usage.ru_stime, 2), usage.ru_maxrss // 1024
    )


def run_sizes(folder: Path, sizes: list[int], stages: list[str], labeled: float) -> list[Measured]:
    """Measure all stages at all sizes; images that ``folder`` holds already are used again."""
    found = []
    for count in sizes:
        data = folder / f"images_{count}"
        if not data.exists():
            write_images(data, count, labeled)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            work = Path(scratch)
            shutil.rmtree(data / ".ssl_seg", ignore_errors=True)
            if {"evaluate", "predict"} & set(stages):
                measure("train", data, work, count)
                if stages[0] == "catalog":
                    shutil.rmtree(data / ".ssl_seg", ignore_errors=True)
            for stage in stages:
                found.append(measure(stage, data, work, count))
                print(found[-1], file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--labeled", type=float, default=0.2, help="share of the images that have a mask")
    parser.add_argument("--keep", type=Path, help="folder for the images; else a temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        found = run_sizes(folder.resolve(), options.sizes, options.stages, options.labeled)
    if options.json:
        print(json.dumps([asdict(row) for row in found]))
        return
    table = Table("images", "stage", "seconds", "CPU seconds", "peak MB")
    for row in found:
        table.add_row(f"{row.images:,}", row.stage, f"{row.seconds:.1f}", f"{row.cpu_seconds:.1f}", f"{row.peak_mb:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
