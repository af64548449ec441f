"""Seconds and memory of predicting a volume, against MONAI's inferer: same network, windows and overlap.

Each measurement is a process of its own, in turns; peak memory is that of the process above what it had before. The
network is small, so that what is done around it shows: ``--features`` makes it larger, 0 leaves none, ``--network``
takes a real one.

    OMP_NUM_THREADS=1 python scripts/benchmark_inference.py --sizes 256 --rounds 3

With ``--files`` it measures the command instead: ``ssl-seg predict`` on files of any size, which are made for it and
removed, by a small network of this program that is trained for a few steps; with ``--features 0`` that one is loaded
and left out. Peak memory is all of the process.

    OMP_NUM_THREADS=1 python scripts/benchmark_inference.py --files 128x512x512.tif 2048x512x512.ome.zarr --features 0
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import nn

from ssl_seg.cli.main import main as run_command
from ssl_seg.config.layers import Layer
from ssl_seg.data.formats.stored import LazyArray
from ssl_seg.data.views.transforms import measure_intensity, normalize
from ssl_seg.data.volumes import split_suffix, write_mask, write_probabilities
from ssl_seg.inference.model import Model
from ssl_seg.inference.sliding import Predictor
from ssl_seg.networks.builders import build_network
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train

ARMS = ("monai", "whole", "by rows")


class _Opposite(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([-x, x], dim=1)


def make_network(features: int, name: str | None, patch: int) -> nn.Module:
    """Return a network of this program, or two convolutions; without features, the input and its opposite."""
    torch.manual_seed(0)
    if name is not None:
        size = (patch,) * 3
        return build_network(name, ndim=3, channels=1, num_classes=2, patch_size=size, features=features).eval()
    if not features:
        return _Opposite()
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
    for first, probs in predictor.stream(image, measure_intensity(image)):
        mask[first : first + probs.shape[1]] = probs[1] > 0.5
    return float(mask.mean())


def measure(arm: str, size: int, options: argparse.Namespace) -> dict[str, float]:
    """Return seconds, megabytes above the start, and the share of foreground."""
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, size), np.uint8)
    net = make_network(options.features, options.network, options.patch)
    predict(arm, image[:, : options.patch, : options.patch, : options.patch], net, options.patch, options.overlap)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    began = time.perf_counter()
    share = predict(arm, image, net, options.patch, options.overlap)
    seconds, cpu = time.perf_counter() - began, time.process_time() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "cpu": cpu, "peak": peak, "share": share}


def train_small(folder: Path, ndim: int) -> Path:
    """Return a run of a network of 4 features, with windows of 256² or 64³, trained for a few steps."""
    root, patch = {2: ("synthetic:particles", 256), 3: ("synthetic:sheets", 64)}[ndim]
    settings = {
        "data": {"root": root, "patch_size": [patch] * ndim},
        "network": {"name": "basic_unet", "features": 4},
        "batch": {"labeled": 1},
        "length": {"steps": 6, "steps_per_epoch": 3},
        "monitor": {"probe_patches": 2, "train_probe_patches": 1},
        "runtime": {"precision": "fp32"},
    }
    train(TrainRequest((Layer("benchmark", settings),), folder))
    return folder


def write_image(path: Path, shape: tuple[int, ...]) -> None:
    """Write uint8 steps under noise; TIFF is packed where the name says ``packed``, a 2D image by tiles of 256²."""

    def read(rows: slice) -> NDArray[np.uint8]:
        start, stop, _ = rows.indices(shape[0])
        noise = np.random.default_rng(start).integers(0, 40, (stop - start, *shape[1:]), np.uint8)
        places = np.ix_(np.arange(start, stop), *(np.arange(size) for size in shape[1:]))
        return (noise + sum(place // 16 * 37 % 61 for place in places)).astype(np.uint8)

    is_plain = path.suffix == ".tif" and ".packed" not in path.name
    (write_probabilities if is_plain else write_mask)(path, LazyArray(shape, np.dtype(np.uint8), read))


def leave_out_networks() -> None:
    """Let all networks that this process loads give their input and its opposite."""
    load = Model.predictor
    Model.predictor = lambda *given: replace(load(*given), net=_Opposite())  # type: ignore[method-assign]


def measure_command(arguments: list[str]) -> dict[str, float]:
    """Return seconds of ``ssl-seg`` with these arguments, in this process, and megabytes of its largest process."""
    sys.argv = ["ssl-seg", *arguments]
    began = time.perf_counter()
    try:
        run_command()
    except SystemExit as ended:
        if ended.code:
            raise
    seconds = time.perf_counter() - began
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = sum(used.ru_utime + used.ru_stime for used in (own, others))
    peak = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return {"seconds": seconds, "cpu": cpu, "peak": max(*map(int, peak), others.ru_maxrss) / 1024}


def measure_files(options: argparse.Namespace) -> None:
    """Predict images such as ``20000x20000.packed.tif``, and print a line of each."""
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder, runs = Path(temporary), dict[int, Path]()
        for name in options.files:
            shape = tuple(map(int, name.partition(".")[0].split("x")))
            ndim, image, masks = len(shape), folder / name, folder / "masks"
            runs[ndim] = runs.get(ndim) or train_small(folder / f"run{ndim}", ndim)
            write_image(image, shape)
            mask = masks / f"mask{split_suffix(name)[1]}"
            command = [sys.executable, __file__, "--features", str(options.features), "--command"]
            command += ["predict", str(runs[ndim]), str(image), str(mask)]
            answer = subprocess.run([*command, *options.more], check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(answer.splitlines()[-1])
            sys.stdout.write(f"{name:30}{found['seconds']:8.1f} s{found['cpu']:8.1f} CPU s{found['peak']:8.0f} MB\n")
            sys.stdout.flush()
            shutil.rmtree(masks)
            shutil.rmtree(image) if image.is_dir() else image.unlink()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256], help="voxels along each axis")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--patch", type=int, default=64, help="voxels of a window along each axis")
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--features", type=int, default=4, help="of the network")
    parser.add_argument("--network", help="such as basic_unet, in place of two convolutions")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--files", nargs="+", help="measure ssl-seg predict instead, on 2048x512x512.ome.zarr and such")
    parser.add_argument("--folder", type=Path, help="where the files are made")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="options of ssl-seg predict; the last one")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help="run ssl-seg once and print JSON")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SIZE"), help="measure once and print JSON")
    options = parser.parse_args()
    if options.one:
        sys.stdout.write(json.dumps(measure(options.one[0], int(options.one[1]), options)))
        return
    if options.command:
        if not options.features:
            leave_out_networks()
        sys.stdout.write(json.dumps(measure_command(options.command)))
        return
    if options.files:
        measure_files(options)
        return
    passed = ["--patch", str(options.patch), "--overlap", str(options.overlap), "--features", str(options.features)]
    passed += [] if options.network is None else ["--network", options.network]
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
