"""Seconds and memory of predicting a volume, against MONAI's inferer: same network, windows and overlap.

Each measurement is a process of its own, in turns; peak memory is that of the process above what it had before. The
network is small, so that what is done around it shows: ``--features`` makes it larger, 0 leaves none.

    OMP_NUM_THREADS=1 python scripts/benchmark_inference.py --sizes 256 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ssl_seg.data.views.transforms import normalize
from ssl_seg.inference.sliding import Predictor, measure_array

ARMS = ("monai", "whole", "by rows")


class _Opposite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-x, x], dim=1)


def make_network(features: int) -> nn.Module:
    """Return two convolutions from one channel to two classes; without features, the input and its opposite."""
    if not features:
        return _Opposite()
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, features, 3, padding=1), nn.ReLU(), nn.Conv3d(features, 2, 1)).eval()


def predict(arm: str, image: Any, net: nn.Module, patch: int, overlap: float) -> float:
    """Return the share of foreground of an image (1,*S) that is predicted in one of the ways."""
    cpu, size = torch.device("cpu"), (patch,) * 3
    if arm == "monai":
        from monai.inferers import sliding_window_inference

        with torch.no_grad():
            probs = sliding_window_inference(
                torch.from_numpy(normalize(image))[None], size, 8, lambda x: net(x).softmax(dim=1), overlap, "gaussian"
            )
        return float((probs[0, 1] > 0.5).float().mean())
    predictor = Predictor(net, size, cpu, nullcontext, overlap)
    if arm == "whole":
        return float((predictor(image)[1] > 0.5).mean())
    mask = np.empty(image.shape[1:], np.uint8)
    for first, probs in predictor.stream(image, measure_array(image)):
        mask[first : first + probs.shape[1]] = probs[1] > 0.5
    return float(mask.mean())


def measure(arm: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds, megabytes above the start, and the share of foreground."""
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, size), np.uint8)
    net = make_network(options.features)
    predict(arm, image[:, : options.patch, : options.patch, : options.patch], net, options.patch, options.overlap)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    began = time.perf_counter()
    share = predict(arm, image, net, options.patch, options.overlap)
    seconds, cpu = time.perf_counter() - began, time.process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "share": share}


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="voxels along each axis")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--patch", type=int, default=64, help="voxels of a window along each axis")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--features", type=int, default=4, help="of the network")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SIZE"), help="measure once and print JSON")
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one[0], int(options.one[1]), options)))
        return
    passed = ["--patch", str(options.patch), "--overlap", str(options.overlap), "--features", str(options.features)]
    table = Table("size", "way", "seconds", "CPU seconds", "peak MB", "foreground", title="predicting a volume")
    for size in options.sizes:
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in options.arms}
        for _ in range(options.rounds):
            for arm in options.arms:
                command = [sys.executable, __file__, "--one", arm, str(size), *passed]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found[arm].append(json.loads(answer))
        for arm, rows in found.items():
            medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
            table.add_row(
                f"{size}³",
                arm,
                f"{medians['seconds']:.1f}",
                f"{medians['cpu']:.1f}",
                f"{medians['peak']:.0f}",
                f"{medians['share']:.6f}",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
