"""Seconds of training until validation F1 stays above a level: the default run, the default before it, a bare loop.

The arms take turns of a few steps, so that other load on the machine hits all alike, and are looked at after each turn
with the same code: pooled F1 of the foreground on fixed patches of the validation cases, student or teacher, whichever
is higher. Only training counts, with the drawing of its batches: CPU seconds of this process, or with ``--clock wall``
what a watch shows. An arm is there at the first look after which none is below the level; it ends after its own number
of steps, after ``--cap`` seconds, or after ``--settled`` looks in a row above the level (of several: the highest).

    python scripts/benchmark_time_to_quality.py --data EMPS --labels 37 --level 0.77
    python scripts/benchmark_time_to_quality.py --data LA_HALF --labels 8 --level 0.80 --arms default previous
    python scripts/benchmark_time_to_quality.py --networks --patch 128 128

The arms: ``default`` is what ``ssl-seg train`` plans; ``previous`` was that before networks had published weights
(DynUNet, Mean Teacher, weak views); ``bare`` is Mean Teacher as in torch-em 0.10.9, written out in plain PyTorch: its
U-Net, Adam with 1e-4, Dice, a moving average of 0.999. With ``--networks`` each network trains a few steps in a process
of its own, and its seconds a step and peak memory are printed instead.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F
from trainings import assemble

from ssl_seg.config.layers import Layer, nest, parse_override
from ssl_seg.config.schedules import make_lr_schedule
from ssl_seg.data.loader import Probe, make_probe
from ssl_seg.data.open import open_store
from ssl_seg.data.sampling import choose_box, crop
from ssl_seg.data.views.transforms import normalize
from ssl_seg.networks.builders import NETWORKS, build_network
from ssl_seg.networks.precision import Autocast, choose_device, choose_precision, make_autocast
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve

Array = NDArray[Any]
PREVIOUS: dict[str, Any] = {
    "network": {"name": "dynunet"},
    "method": {"name": "mean_teacher"},
    "optim": {"lr": 3e-4},
    "augment": {"preset": "light"},
    "length": {"steps": 800},
}
PREVIOUS_FEATURES = {2: 32, 3: 16}
BARE_STEPS, BARE_PATCHES, BARE_LR, BARE_DECAY = 800, 4, 1e-4, 0.999


@dataclass(frozen=True)
class Arm:
    """A training that can be moved step by step."""

    name: str
    steps: int
    """Length of its run."""
    update: Callable[[int], None]
    """Draws the batch of a step and makes the update."""
    nets: Mapping[str, nn.Module]
    """Student and teacher."""
    autocast: Autocast


@dataclass
class Track:
    """What an arm has done: after each turn step, seconds of training so far, and F1."""

    step: int = 0
    seconds: float = 0.0
    looks: list[tuple[int, float, float]] = field(default_factory=list)


class BareUNet(nn.Module):
    """The U-Net of torch-em with its defaults, images (N,C,*S) -> logits (N,1,*S); 7.2 million parameters in 2D.

    Five levels of two convolutions, each after an instance norm without weights; max-pooling, linear upsampling.
    """

    def __init__(self, ndim: int, channels: int, features: int = 32) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(5)]
        convolution = nn.Conv2d if ndim == 2 else nn.Conv3d
        self.pool: nn.Module = nn.MaxPool2d(2) if ndim == 2 else nn.MaxPool3d(2)
        self.mode = "bilinear" if ndim == 2 else "trilinear"
        self.down = nn.ModuleList(_make_pair(ndim, a, b) for a, b in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(convolution(2 * w, w, 1) for w in widths[-2::-1])
        self.join = nn.ModuleList(_make_pair(ndim, 2 * w, w) for w in widths[-2::-1])
        self.head = convolution(features, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of foreground."""
        x, skips = images, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for skip, up, block in zip(skips[-2::-1], self.up, self.join, strict=True):
            x = up(F.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=False))
            x = block(torch.cat([skip, x], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _make_pair(ndim: int, width: int, out: int) -> nn.Sequential:
    convolution, norm = (nn.Conv2d, nn.InstanceNorm2d) if ndim == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    layers: list[nn.Module] = []
    for before in (width, out):
        layers += [norm(before), convolution(before, out, 3, padding=1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def compute_dice_loss(probs: Tensor, target: Tensor) -> Tensor:
    """Return 1 - 2 sum(p t) / (sum(p^2) + sum(t^2)) over a batch, as torch-em has it."""
    overlap = (probs * target).sum()
    return 1 - 2 * overlap / (probs.square().sum() + target.square().sum()).clamp(min=1e-7)


def make_own_arm(name: str, plan: Resolved, device: torch.device) -> Arm:
    """Return the training of the product that a plan describes."""
    config, own = plan.config, assemble(plan, device)
    lr_at = make_lr_schedule(config.optim, config.length, config.batch.labeled)

    def update(step: int) -> None:
        own.engine.step(own.source[step].to(device), step, lr_at(step, ()))

    return Arm(name, config.length.steps, update, own.nets, own.autocast)


def make_bare_arm(name: str, plan: Resolved, device: torch.device) -> Arm:
    """Return Mean Teacher as one would write it down after torch-em, on the cases and patches of a plan."""
    data, rng = plan.config.data, np.random.default_rng(0)
    labeled, pool = plan.labeled, plan.unlabeled
    store, read = open_store(plan.catalog, data), {}
    torch.manual_seed(0)
    student = BareUNet(data.ndim, data.channels).to(device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), lr=BARE_LR)
    example = torch.randn(BARE_PATCHES, data.channels, *data.patch_size, device=device)
    autocast = make_autocast(choose_precision("auto", student, example)[0], device)

    def draw(ids: Sequence[str]) -> tuple[Array, Array]:
        case_id = ids[int(rng.integers(len(ids)))]
        if case_id not in read:
            case = store.load_whole(case_id)
            nothing = np.zeros(case.image.shape[1:], np.int64)
            read[case_id] = normalize(case.image, data.window), nothing if case.target is None else case.target
        image, target = read[case_id]
        start = choose_box(target.shape, data.patch_size, rng)
        image = np.stack([crop(channel, start, data.patch_size, 0.0) for channel in image])
        target = crop(target, start, data.patch_size, 0) > 0
        for axis in range(1, data.ndim + 1):
            if rng.random() < 0.5:
                image, target = np.flip(image, axis), np.flip(target, axis - 1)
        return image, target[None].astype(np.float32)

    def stack(arrays: Sequence[Array]) -> Tensor:
        return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)

    def update(step: int) -> None:
        images, targets = zip(*(draw(labeled) for _ in range(BARE_PATCHES)), strict=True)
        with autocast():
            loss = compute_dice_loss(student(stack(images)).float().sigmoid(), stack(targets))
            if pool:
                plain = [draw(pool)[0] for _ in range(BARE_PATCHES)]
                with torch.no_grad():
                    pseudo = teacher(stack([change_weakly(image, rng) for image in plain])).float().sigmoid()
                found = student(stack([change_weakly(image, rng) for image in plain])).float().sigmoid()
                loss = (loss + compute_dice_loss(found, pseudo)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(1 - 1 / (step + 1), BARE_DECAY)
        with torch.no_grad():
            for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(other, 1 - decay)

    return Arm(name, BARE_STEPS, update, {"student": student, "teacher": teacher}, autocast)


def change_weakly(image: Array, rng: np.random.Generator) -> Array:
    """Return an image (C,*S) with blur of up to 2.5 voxels and noise of up to 0.15, each in one of four."""
    if rng.random() < 0.25:
        image = ndimage.gaussian_filter(image, (0, *[rng.uniform(0, 2.5)] * (image.ndim - 1)))
    if rng.random() < 0.25:
        image = image + rng.normal(0, rng.uniform(0, 0.15), image.shape)
    return image


@torch.no_grad()
def compute_f1(net: nn.Module, probe: Probe, autocast: Autocast, device: torch.device, batch: int = 8) -> float:
    """Return pooled F1 of the foreground on the patches of a probe; one logit, or one a class, background first."""
    was_training, right, wrong = net.training, 0, 0
    net.eval()
    for images, target in zip(probe.image.split(batch), probe.target.split(batch), strict=True):
        with autocast():
            logits = net(images.to(device)).float().cpu()
        found = (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1) > 0)[target >= 0]
        true = (target > 0)[target >= 0]
        right += int((found & true).sum())
        wrong += int((found ^ true).sum())
    net.train(was_training)
    return 2 * right / max(2 * right + wrong, 1)


def race(
    arms: Sequence[Arm],
    look: Callable[[Arm], float],
    *,
    every: int,
    level: float,
    cap: float,
    settled: int,
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> dict[str, Track]:
    """Move the arms in turns of ``every`` steps until each has ended; the seconds of looking do not count."""
    tracks = {arm.name: Track() for arm in arms}
    running = list(arms)
    while running:
        for arm in list(running):
            track, began = tracks[arm.name], clock()
            for _ in range(min(every, arm.steps - track.step)):
                arm.update(track.step)
                track.step += 1
            track.seconds += clock() - began
            track.looks.append((track.step, track.seconds, look(arm)))
            tell(f"{arm.name}: step {track.step}, {track.seconds:.1f} s, F1 {track.looks[-1][2]:.3f}")
            last = [f1 for _, _, f1 in track.looks[-settled:]]
            is_settled = len(last) == settled and min(last) >= level
            if is_settled or track.step >= arm.steps or track.seconds >= cap:
                running.remove(arm)
    return tracks


def find_arrival(track: Track, level: float) -> tuple[int, float] | None:
    """Return step and seconds of the first look after which none is below ``level``, itself included; None without."""
    arrival = None
    for step, seconds, f1 in reversed(track.looks):
        if f1 < level:
            break
        arrival = step, seconds
    return arrival


def print_race(arms: Sequence[Arm], tracks: Mapping[str, Track], level: float, clock: str) -> None:
    """Print a line for each arm: when it was there, how it ended, and how many times as long as the first it took."""
    title = f"{clock} seconds until validation F1 stays at {level:g} or above"
    table = Table("arm", "M parameters", "s a step", "there after", "steps", "times the first", "last F1", title=title)
    first = find_arrival(tracks[arms[0].name], level)
    for arm in arms:
        track, weights = tracks[arm.name], sum(w.numel() for w in arm.nets["student"].parameters())
        arrival = find_arrival(track, level)
        took, at_least = (track.seconds, ">= ") if arrival is None else (arrival[1], "")
        table.add_row(
            arm.name,
            f"{weights / 1e6:.1f}",
            f"{track.seconds / track.step:.3f}",
            f"not within {took:.0f} s" if arrival is None else f"{took:.0f} s",
            f"> {track.step}" if arrival is None else str(arrival[0]),
            "-" if first is None else f"{at_least}{took / first[1]:.1f}",
            f"{track.looks[-1][2]:.3f}",
        )
    Console(width=140).print(table)


def race_on_data(options: argparse.Namespace) -> None:
    """Train the arms on a data set and print when they were there."""
    device = choose_device("auto")
    common = [Layer("--data", nest("data.root", options.data)), Layer("--labels", nest("split.labels", options.labels))]
    common += [parse_override(text) for text in options.set]
    gpu = device.type != "cpu"
    plan = resolve(TrainRequest(tuple(common)), gpu=gpu)
    data = plan.config.data
    before = {**PREVIOUS, "network": {"name": "dynunet", "features": PREVIOUS_FEATURES[data.ndim]}}
    same_patch = Layer("same patch", nest("data.patch_size", list(data.patch_size)))
    make = {
        "default": lambda: make_own_arm("default", plan, device),
        "bare": lambda: make_bare_arm("bare", plan, device),
        "previous": lambda: make_own_arm(
            "previous", resolve(TrainRequest((Layer("previous", before), same_patch, *common)), gpu=gpu), device
        ),
    }
    arms = [make[name]() for name in options.arms]
    probe = make_probe(
        open_store(plan.catalog, data), plan.split.val, options.probe, data.patch_size, plan.config.split.seed
    )

    def look(arm: Arm) -> float:
        return max(compute_f1(net, probe, arm.autocast, device) for net in arm.nets.values())

    def clock() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() if gpu or options.clock == "wall" else time.process_time()

    tracks = race(
        arms,
        look,
        every=options.every,
        level=max(options.level),
        cap=options.cap,
        settled=options.settled,
        clock=clock,
        tell=lambda text: print(text, file=sys.stderr, flush=True),
    )
    for level in options.level:
        print_race(arms, tracks, level, "wall" if gpu else options.clock)
    if options.json is not None:
        options.json.write_text(json.dumps({name: track.looks for name, track in tracks.items()}))


def measure_network(name: str, patch: tuple[int, ...], patches: int, steps: int) -> dict[str, float]:
    """Return parameters, median CPU seconds of a step and the peak memory of this process, in MiB."""
    device = choose_device("auto")
    spec = NETWORKS[name]
    network = build_network(
        name, ndim=len(patch), channels=1, num_classes=2, patch_size=patch, pretrained=spec.has_encoder
    ).to(device)
    image, target = torch.randn(patches, 1, *patch, device=device), torch.randint(2, (patches, *patch), device=device)
    autocast = make_autocast(choose_precision("auto", network, image)[0], device)
    optimizer, seconds = torch.optim.AdamW(network.parameters()), []
    for _ in range(steps + 1):
        began = time.process_time()
        with autocast():
            loss = F.cross_entropy(network(image).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    weights = sum(w.numel() for w in network.parameters())
    return {"parameters": weights, "seconds": statistics.median(seconds[1:]), "peak": peak}


def print_networks(options: argparse.Namespace) -> None:
    """Print seconds a step and peak memory of all networks; a process each, one after the other, and that again."""
    shape = [str(n) for n in options.patch]
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in options.names}
    for _ in range(options.rounds):
        for name, rows in measured.items():
            command = [sys.executable, __file__, "--one", name, "--patch", *shape, "--steps", str(options.steps)]
            command += ["--patches", str(options.patches)]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    title = f"A step on {options.patches} patches of {'x'.join(shape)}, each network at its own width"
    table = Table("network", "M parameters", "CPU s a step", "peak MiB of the process", title=title)
    for name, rows in measured.items():
        fastest, peak = min(row["seconds"] for row in rows), max(row["peak"] for row in rows)
        table.add_row(name, f"{rows[0]['parameters'] / 1e6:.1f}", f"{fastest:.3f}", f"{peak:.0f}")
    Console(width=120).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:particles")
    parser.add_argument("--labels", type=float, default=0.1)
    parser.add_argument("--level", type=float, nargs="+", default=[0.77], help="validation F1; a table for each")
    parser.add_argument("--arms", nargs="+", default=["default", "bare", "previous"])
    parser.add_argument("--every", type=int, default=10, help="steps of a turn")
    parser.add_argument("--probe", type=int, default=64, help="validation patches")
    parser.add_argument("--cap", type=float, default=1800.0, help="seconds of training after which an arm ends")
    parser.add_argument("--settled", type=int, default=10, help="looks in a row above the level that end an arm")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the arms of the product")
    parser.add_argument("--json", type=Path, help="file for all looks: step, seconds, F1")
    parser.add_argument("--networks", action="store_true", help="seconds a step and memory of all networks instead")
    parser.add_argument("--names", nargs="+", default=list(NETWORKS), help="with --networks: which")
    parser.add_argument("--patch", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--patches", type=int, default=8, help="with --networks: patches of a batch")
    parser.add_argument("--steps", type=int, default=5, help="with --networks: timed steps")
    parser.add_argument("--rounds", type=int, default=2, help="with --networks: processes of each network")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measure_network(options.one, tuple(options.patch), options.patches, options.steps)))
    elif options.networks:
        print_networks(options)
    else:
        race_on_data(options)


if __name__ == "__main__":
    main()
