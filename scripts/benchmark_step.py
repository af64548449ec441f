"""Seconds and memory of a training step of each method, against a bare PyTorch loop that makes the same passes.

A step of the engine is watched: which networks get which inputs, and which passes keep gradients. The bare loop makes
the same passes on copies, with a plain loss, the same optimizer and clipping, and one moving average. Blocks of steps
alternate, so that other load on the machine hits both alike; on a CPU the seconds are those that the process computes,
not those that it waits. What the engine adds are the losses of the methods, schedules, seeds and records; in every
tenth step, also a pass over the labeled patches that measures pseudo-labels. MiB is what a step holds at the end of
its forward passes: networks, optimizer, gradients, and what is kept to compute these.

    python scripts/benchmark_step.py --methods all --patch 64 64

``--compile`` times the engine with ``torch.compile`` as well; on a CPU that needs a C++ compiler and minutes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ssl_seg.cli.tables import print_rows
from ssl_seg.config import EMAConfig, LengthConfig, LossConfig, OptimConfig
from ssl_seg.config.schedules import make_ema_schedule, make_lr_schedule
from ssl_seg.data.loader import Batch
from ssl_seg.data.views.mixing import make_cutmix
from ssl_seg.engine.devices import synchronize
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.optim import make_optimizer
from ssl_seg.losses import make_supervised_loss
from ssl_seg.methods import METHODS, make_method
from ssl_seg.methods.base import build
from ssl_seg.networks.builders import build_network
from ssl_seg.networks.precision import choose_device, choose_precision, make_autocast

LOSS = LossConfig(weights={"cross_entropy": 0.5, "dice": 0.5})
OPTIM = OptimConfig(lr=1e-3)
LENGTH = LengthConfig(steps=1000, steps_per_epoch=1000)
CLIP_NORM = 12.0
FIRST_STEP = 501
"""Methods with two stages are in the second one, and no pseudo-labels are measured in this step."""
STEPS = 10
"""Steps of a block; in one of them pseudo-labels are measured."""

Step = Callable[[int], object]


@dataclass(frozen=True)
class Pass:
    """A network gets inputs: patches (N,C,*P), and what else it takes. ``learns``: gradients are kept."""

    network: nn.Module
    inputs: tuple[Any, ...]
    learns: bool


def make_trial(name: str, options: argparse.Namespace) -> tuple[Engine, Batch]:
    """Return the engine of a method with its default options, and a random batch."""
    traits, patch, device = METHODS[name].traits, tuple(options.patch), choose_device("auto")
    torch.manual_seed(0)
    make = partial(
        build_network,
        "encoder_unet" if traits.needs_features else options.network,
        ndim=len(patch),
        channels=1,
        num_classes=2,
        patch_size=patch,
        features=options.features,
        deep_supervision=2 if traits.needs_heads else 0,
    )
    method = make_method(name, {}, make_supervised_loss(LOSS), 2)
    built = build(method, make, 2)
    for module in (built.module, method):
        if isinstance(module, nn.Module):
            module.to(device)
    image, weak = (torch.randn(count, 1, *patch) for count in (options.labeled, options.unlabeled))
    target = torch.randint(2, (options.labeled, *patch))
    rng = np.random.default_rng(0)
    mixes = tuple(make_cutmix(len(weak), patch, traits.cutmix, rng) for _ in range(traits.strong_views))
    strong = tuple(weak + 0.1 * torch.randn_like(weak) for _ in mixes)
    batch = Batch(image, target, weak, strong, (), mixes).to(device)
    precision, _ = choose_precision(options.precision, built.plain, batch.image)
    engine = Engine(
        Fabric(accelerator=device.type, devices=1),
        built.module,
        make_optimizer(built.module, OPTIM),
        EMATeacher(built.module, make_ema_schedule(EMAConfig(decay=0.99), LENGTH.steps)),
        method,
        make_autocast(precision, device),
        total_steps=LENGTH.steps,
        steps_per_epoch=LENGTH.steps_per_epoch,
        clip_norm=CLIP_NORM,
        seed=0,
    )
    return engine, batch


def make_engine_step(engine: Engine, batch: Batch) -> Step:
    """Return the step of the product."""
    lr_at = make_lr_schedule(OPTIM, LENGTH, batch_size=len(batch.image))
    return lambda number: engine.step(batch, number, lr_at(number, ()))


def make_compiled_step(name: str, options: argparse.Namespace) -> Step:
    """Return the step of the product with networks that ``torch.compile`` has translated."""
    engine, batch = make_trial(name, options)
    for network in list_networks(engine):
        network.compile()
    return make_engine_step(engine, batch)


def list_networks(engine: Engine) -> list[nn.Module]:
    """Return what is trained, its moving average, and further networks that the method keeps."""
    children = engine.method.children() if isinstance(engine.method, nn.Module) else ()
    return [engine.student, engine.teacher.net, *(child for child in children if any(True for _ in child.parameters()))]


def record_passes(engine: Engine, batch: Batch, number: int = FIRST_STEP) -> list[Pass]:
    """Make a step, and return its passes in their order."""
    passes: list[Pass] = []

    def watch(network: nn.Module, inputs: tuple[Any, ...]) -> None:
        passes.append(Pass(network, inputs, torch.is_grad_enabled()))

    handles = [network.register_forward_pre_hook(watch) for network in list_networks(engine)]
    engine.step(batch, number, OPTIM.lr)
    for handle in handles:
        handle.remove()
    return passes


def make_bare_step(engine: Engine, batch: Batch, passes: Sequence[Pass]) -> Step:
    """Return what one would write down in a notebook for these passes."""
    copies = {network: copy.deepcopy(network) for network in list_networks(engine)}
    student, teacher = copies[engine.student], copies[engine.teacher.net]
    optimizer, supervised = make_optimizer(student, OPTIM), make_supervised_loss(LOSS)

    def compute_loss(logits: Tensor) -> Tensor:
        """Return the supervised loss of the first patches; of decoders that see unlabeled ones alone, a plain one."""
        labeled = len(batch.image)
        rest = (logits.float().softmax(1) ** 2).mean()
        return rest if len(logits) <= len(batch.weak) else rest + supervised(logits[:labeled], batch.target)[0]

    def step(number: int) -> None:
        student.train()
        losses = []
        with engine.autocast():
            for one in passes:
                with torch.set_grad_enabled(one.learns):
                    outputs = list(_list_tensors(copies[one.network](*one.inputs)))
                losses += [compute_loss(logits) for logits in outputs if one.learns]
        torch.autograd.backward(torch.stack(losses).sum())
        nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            decay = min(0.99, 1 - 1 / (number + 1))
            for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
                own.lerp_(other, 1 - decay)

    return step


def _list_tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested outputs."""
    if isinstance(outputs, Tensor):
        yield outputs
        return
    for part in outputs:
        yield from _list_tensors(part)


def time_block(step: Step, first: int, device: torch.device) -> float:
    """Return seconds a step over a block: on a CPU those of this process, on a GPU those that pass."""
    read_clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronize(device)
    start = read_clock()
    for number in range(first, first + STEPS):
        step(number)
    synchronize(device)
    return (read_clock() - start) / STEPS


def time_method(name: str, options: argparse.Namespace) -> dict[str, str]:
    """Return passes and times of a method, as they are printed."""
    engine, batch = make_trial(name, options)
    memory, passes = measure_memory(engine, batch), record_passes(engine, batch)
    patches = [sum(len(one.inputs[0]) for one in passes if one.learns == learns) for learns in (True, False)]
    row = {"method": name, "patches (with, without gradient)": "{} + {}".format(*patches), "MiB": f"{memory:.0f}"}
    steps = {"bare": make_bare_step(engine, batch, passes), "engine": make_engine_step(engine, batch)}
    if options.compile:
        steps["compiled"] = make_compiled_step(name, options)
        start = time.perf_counter()
        steps["compiled"](FIRST_STEP)
        row["first compiled step, s"] = f"{time.perf_counter() - start:.0f}"
    seconds: dict[str, list[float]] = {loop: [] for loop in steps}
    for block in range(options.blocks + 1):
        for loop in sorted(steps, reverse=block % 2 == 0):
            duration = time_block(steps[loop], FIRST_STEP + block * STEPS, batch.image.device)
            if block > 0:  # the first block allocates
                seconds[loop].append(duration)
    row |= {f"{loop} ms": f"{1000 * statistics.median(seconds[loop]):.1f}" for loop in steps}
    row["engine / bare (quartiles)"] = show_ratio(seconds["engine"], seconds["bare"])
    if options.compile:
        row["compiled / engine (quartiles)"] = show_ratio(seconds["compiled"], seconds["engine"])
    return row


def show_ratio(seconds: Sequence[float], reference: Sequence[float]) -> str:
    """Return the median and quartiles of a ratio over blocks."""
    low, middle, high = statistics.quantiles([own / other for own, other in zip(seconds, reference, strict=True)], n=4)
    return f"{middle:.3f} ({low:.3f} .. {high:.3f})"


def measure_memory(engine: Engine, batch: Batch) -> float:
    """Make a step; return the MiB of networks, optimizer, gradients, and what the passes keep for the gradients."""
    sizes: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()  # views of one storage count once
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        engine.step(batch, FIRST_STEP, OPTIM.lr)
    for network in list_networks(engine):
        for tensor in network.state_dict().values():
            count(tensor)
    for state in engine.optimizer.state.values():
        for value in state.values():
            count(value)
    return (sum(sizes.values()) + sum(own.nbytes for own in engine.student.parameters())) / 2**20


def main() -> None:
    """Print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=("all", *METHODS), default=["mean_teacher"])
    parser.add_argument("--network", default="dynunet", help="of methods that do not need encoder_unet")
    parser.add_argument("--features", type=int)
    parser.add_argument("--patch", type=int, nargs="+", default=[128, 128])
    parser.add_argument("--labeled", type=int, default=4)
    parser.add_argument("--unlabeled", type=int, default=4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--compile", action="store_true", help="time the engine with torch.compile as well")
    parser.add_argument("--blocks", type=int, default=12, help=f"timed blocks of {STEPS} steps of each loop")
    options = parser.parse_args()
    rows = []
    for name in METHODS if "all" in options.methods else options.methods:
        rows.append(time_method(name, options))
        print(rows[-1], flush=True)
    patch = "x".join(map(str, options.patch))
    print_rows(f"a step of {options.labeled} labeled and {options.unlabeled} unlabeled patches of {patch}", rows)


if __name__ == "__main__":
    main()
