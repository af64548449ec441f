"""Seconds per training step of the engine against a bare PyTorch loop.

Both train the same network with the same loss, batch, precision, optimizer, clipping and moving average; blocks of
steps alternate, so that other load on the machine hits both alike. What the engine adds are schedules, seeds, records
and the wrapping that serves several processes.

    python scripts/benchmark_step.py --network dynunet --patch 128 128 --blocks 12
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import nn

from ssl_seg.config import EMAConfig, LengthConfig, LossConfig, OptimConfig
from ssl_seg.config.schedules import make_ema_schedule, make_lr_schedule
from ssl_seg.data.loader import Batch
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.losses import make_supervised_loss
from ssl_seg.methods import make_method
from ssl_seg.networks.builders import build_network
from ssl_seg.networks.precision import choose_precision, make_autocast

WEIGHTS = {"cross_entropy": 0.5, "dice": 0.5}
STEPS = 1000
"""Length of the run that the schedules believe in."""


def make_bare_step(student: nn.Module, precision: str, device: torch.device) -> Callable[[Batch, int], None]:
    """Return Mean Teacher as one would write it down in a notebook."""
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = make_optimizer(student, OptimConfig())
    autocast = make_autocast(precision, device)
    supervised = make_supervised_loss(LossConfig(weights=WEIGHTS))

    def step(batch: Batch, number: int) -> None:
        student.train()
        labeled = len(batch.image)
        with autocast():
            logits = student(torch.cat([batch.image, batch.strong[0]]))
            with torch.no_grad():
                target = teacher(batch.weak).float().softmax(1)
            loss, _ = supervised(logits[:labeled], batch.target)
            loss = loss + 0.1 * (logits[labeled:].float().softmax(1) - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 12.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(0.99, 1 - 1 / (number + 1))
            for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(other, 1 - decay)

    return step


def make_engine_step(student: nn.Module, precision: str, device: torch.device) -> Callable[[Batch, int], None]:
    """Return the step of the product."""
    engine = Engine(
        Fabric(accelerator=device.type, devices=1),
        student,
        make_optimizer(student, OptimConfig()),
        EMATeacher(student, make_ema_schedule(EMAConfig(decay=0.99), STEPS)),
        make_method("mean_teacher", {}, make_supervised_loss(LossConfig(weights=WEIGHTS)), 2),
        make_autocast(precision, device),
        total_steps=STEPS,
        steps_per_epoch=STEPS,
        clip_norm=12.0,
        seed=0,
    )

    lr_at = make_lr_schedule(OptimConfig(lr=1e-3), LengthConfig(steps=STEPS, steps_per_epoch=STEPS), batch_size=4)

    def step(batch: Batch, number: int) -> None:
        engine.step(batch, number, lr_at(number, ()))

    return step


def time_block(step: Callable[[Batch, int], None], batch: Batch, first: int, steps: int, device: torch.device) -> float:
    """Return seconds per step over a block."""
    start = time.perf_counter()
    for number in range(first, first + steps):
        step(batch, number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def main() -> None:
    """Print seconds per step of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="dynunet")
    parser.add_argument("--features", type=int)
    parser.add_argument("--patch", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--labeled", type=int, default=4)
    parser.add_argument("--unlabeled", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--blocks", type=int, default=12, help="timed blocks of each loop")
    parser.add_argument("--steps", type=int, default=5, help="steps in a block")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    patch = tuple(options.patch)
    network = build_network(
        options.network, ndim=len(patch), channels=1, num_classes=2, patch_size=patch, features=options.features
    ).to(device)
    images = [torch.randn(n, 1, *patch, device=device) for n in (options.labeled, options.unlabeled, options.unlabeled)]
    target = torch.randint(2, (options.labeled, *patch), device=device)
    batch = Batch(images[0], target, images[1], (images[2],), ())
    precision, _ = choose_precision(options.precision, network, images[0])

    steps = {
        "bare PyTorch": make_bare_step(copy.deepcopy(network), precision, device),
        "ssl_seg engine": make_engine_step(copy.deepcopy(network), precision, device),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(options.blocks + 1):
        for name, step in steps.items():
            duration = time_block(step, batch, block * options.steps, options.steps, device)
            if block > 0:  # the first block allocates
                seconds[name].append(duration)
    ratios = [own / bare for bare, own in zip(*seconds.values(), strict=True)]
    print(
        f"{options.network} {'x'.join(map(str, patch))} {options.labeled}+{options.unlabeled} {precision} on {device}"
    )
    for name, values in seconds.items():
        print(f"{name:<16} {statistics.median(values):.4f} s/step (median of {len(values)} blocks of {options.steps})")
    quartiles = statistics.quantiles(ratios, n=4)
    print(f"ratio            {statistics.median(ratios):.3f} (quartiles {quartiles[0]:.3f} .. {quartiles[2]:.3f})")


if __name__ == "__main__":
    main()
