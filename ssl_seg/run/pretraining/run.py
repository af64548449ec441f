"""``ssl-seg pretrain``: from a request to a run directory whose network can paint what it does not see."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, to_plain, validate
from ssl_seg.config.schedules import make_lr_schedule
from ssl_seg.data.loader import Batch, make_loader
from ssl_seg.data.open import open_store
from ssl_seg.data.pictures import stretch
from ssl_seg.data.sampling import derive_rng, derive_seed
from ssl_seg.data.splits.files import split_from_dict, split_to_dict
from ssl_seg.engine.devices import to_memory_format
from ssl_seg.engine.optim import make_optimizer, set_lr
from ssl_seg.engine.processes import open_fabric
from ssl_seg.errors import ConfigError, RunDirError, counted, quote
from ssl_seg.files import hold_directory, write_json
from ssl_seg.inference.model import make_network, start_network
from ssl_seg.monitor.findings import RuleFinding, Verdict, format_block
from ssl_seg.networks.checkpoint import load_weights
from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE
from ssl_seg.networks.parts import PARTS
from ssl_seg.networks.precision import make_autocast
from ssl_seg.run.assembly import settle_runtime
from ssl_seg.run.console import Console, Silent
from ssl_seg.run.directory import RunDir, TrainingEnding, open_run_dir, read_header, write_config
from ssl_seg.run.failures import describe_interrupt, explain_failure
from ssl_seg.run.preflight import check_with_data
from ssl_seg.run.prepare import BegunRun, Hold, begin_run, fill_caches, go_on, prepare_run
from ssl_seg.run.pretraining.masking import (
    HIDDEN,
    HIDDEN_SHARE,
    Look,
    MaskedSource,
    compute_look,
    compute_masked_loss,
    make_masked_probe,
)
from ssl_seg.run.pretraining.state import Pretraining, load_pretraining, save_pretraining
from ssl_seg.run.recorder import last_reported_verdict
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve_again, resolve_runtime, resolve_stored
from ssl_seg.run.resources import count_given_workers
from ssl_seg.run.session import Schedule
from ssl_seg.run.training import stop_flag

STEPS = {False: 500, True: 2000}
"""Default length, by whether there is a GPU."""
LR = 1e-3
"""Default learning rate: on EMPS 300 steps of a DynUNet came to 33 % below the mean's error, and with 3e-4 to 29 %."""
HELD_OUT_FROM, HELD_OUT_SHARE = 10, 0.1
"""Images of the pool from which on some are held out for the monitor, and their share."""
PICTURES = "reconstructions"
"""Folder of the pictures in the run directory."""
SHOWN_PATCHES, SHOWN_SIZE = 4, 256
"""Patches of a picture, and the size in pixels that each is enlarged to at least."""
GAIN_FROM = 100
"""Steps after which a network, or at the end of a shorter run, has to be better than the mean of the visible image."""
FLAT_SPREAD = 0.01
"""Below this share of the true spread, the output is constant. On EMPS a healthy network was never below 0.3."""


@dataclass(frozen=True)
class PretrainResult:
    """How a pre-training ended, after how many steps, and the last look at its network."""

    run: RunDir
    ending: TrainingEnding
    step: int
    verdict: Verdict
    result: dict[str, Any]
    tolerates_collapse: bool


def pretrain(request: TrainRequest, console: Console | None = None) -> PretrainResult:
    """Teach the network of a run to paint hidden blocks of the images of its training pool.

    Args:
        request: settings, and the directory to create or to continue.
        console: where the run talks to.

    Raises:
        SslSegError: for anything the user can fix.
    """
    console = console or Silent()
    state = None if request.resume is None else load_pretraining(request.resume)
    runtime = resolve_runtime(request, None if state is None else state.config)
    if runtime.devices * runtime.num_nodes > 1:
        raise ConfigError("runtime.devices, runtime.num_nodes: a pre-training runs in one process; leave both at 1")
    with open_fabric(runtime) as fabric, ExitStack() as held:

        def hold(path: Path) -> None:
            held.enter_context(hold_directory(path, console.note))

        if state is None or request.resume is None:
            prepared = _begin(request, fabric, console, hold)
        else:
            prepared = _reopen(request, request.resume, state, console, hold)
        try:
            return _run(fabric, prepared, state, console)
        except KeyboardInterrupt:  # before the loop listens for it, or twice
            console.note(describe_interrupt(prepared.run, "ssl-seg pretrain"))
            raise
        except Exception as error:
            resume = "ssl-seg pretrain --resume"
            if (known := explain_failure(error, fabric, prepared.run, resume)) is not None:
                raise known from error
            raise


def make_image_network(config: Config, make: Callable[[Config], nn.Module] = start_network) -> nn.Module:
    """Return the network of ``config``, (N,C,*P) -> (N,max(2,C),*P): a channel of output for each of the image.

    A network has two outputs at least: of a gray image the second one is not looked at.

    Args:
        config: configuration of the run.
        make: ``start_network``, or ``make_network`` where weights will be loaded.

    Raises:
        NetworkError: see ``start_network``.
    """
    outputs = tuple(range(max(2, config.data.channels)))
    data = config.data.model_copy(update={"label_values": outputs, "ignore_value": None})
    network = config.network.model_copy(update={"deep_supervision": 0})
    return make(config.model_copy(update={"data": data, "network": network}))


def judge(look: Look, loss: float, step: int, total_steps: int) -> Verdict:
    """Return what is wrong with a network: NaN, a constant output, or, after some steps, no gain over the mean."""
    found, action = [], ""
    if not all(map(math.isfinite, (look.error, look.spread, loss))):
        found.append(_make_finding("non_finite", look.error, 0.0, "the output or the loss is NaN or infinite"))
        action = "start again with a smaller optim.lr"
    elif step > 0 and look.baseline > 0:
        if look.spread < FLAT_SPREAD:
            text = f"what is painted varies by {look.spread:.2%} of what the images do: the output is constant"
            found.append(_make_finding("constant_output", look.spread, FLAT_SPREAD, text))
        if step >= min(GAIN_FROM, total_steps) and look.gain <= 0:
            text = f"error {look.error:.3f}, the mean of the visible image has {look.baseline:.3f}"
            found.append(_make_finding("not_above_trivial", look.gain, 0.0, text))
        action = "smaller optim.lr, or more --steps; see the pictures of the run" if found else ""
    return Verdict(tuple(found), action)


def _make_finding(code: str, value: float, limit: float, message: str) -> RuleFinding:
    return RuleFinding(code, "collapsed", "training", value, limit, "definition", message)


def choose_held_out(pool: tuple[str, ...], seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the images to learn from, and those that only the monitor sees; of a small pool both are all of it."""
    if len(pool) < HELD_OUT_FROM:
        return pool, pool
    order = derive_rng(seed, len(pool)).permutation(len(pool))
    held = {pool[n] for n in order[: round(HELD_OUT_SHARE * len(pool))]}
    return tuple(i for i in pool if i not in held), tuple(i for i in pool if i in held)


def _begin(request: TrainRequest, fabric: Fabric, console: Console, hold: Hold) -> BegunRun:
    if request.settings.get("network.pretrained") is not None:
        raise ConfigError("network.pretrained: a pre-training does not start from another one; leave it out")
    gpu, note = fabric.device.type != "cpu", console.note
    settings = {"method": {"name": "supervised"}, "optim": {"lr": LR}, "length": {"steps": STEPS[gpu]}}
    defaults = [Layer("pretrain", settings)]
    resolved = prepare_run(request, console, gpu=gpu, defaults=defaults)
    begun = begin_run(resolved, note=note, hold=hold, command="pretrain")
    write_json(begun.run.path / PRETRAINING_FILE, {"steps": resolved.config.length.steps})
    images = len(resolved.labeled) + len(resolved.unlabeled)
    note(f"pretrain: {counted(images, 'image')} of the training pool; no other image is used")
    return begun


def _reopen(request: TrainRequest, path: Path, state: Pretraining, console: Console, hold: Hold) -> BegunRun:
    if request.out is not None or not request.has_only_runtime:
        raise ConfigError("--resume continues a pre-training with its own settings: give it without other options")
    run, note = open_run_dir(path), console.note
    if state.ending is not None:
        raise RunDirError(
            f"{path} has ended ({state.ending} after step {state.step}): nothing to resume. Train from it with "
            f"ssl-seg train --pretrained {quote(path)}"
        )
    hold(run.path)
    config, sources = resolve_stored(request, validate(Config, state.config), path)
    split = split_from_dict(state.split)
    resolved = resolve_again(request, config, sources, split, console.track("reading cases"))
    check_with_data(resolved, note)
    fill_caches(config.data, resolved.catalog, note, console.track)
    return go_on(run, resolved, state.step, note, keep=state.step)


def _run(fabric: Fabric, prepared: BegunRun, state: Pretraining | None, console: Console) -> PretrainResult:
    config = prepared.config
    torch.manual_seed(derive_seed(config.seed))
    net = fabric.to_device(make_image_network(config, start_network if state is None else make_network))
    config, _ = settle_runtime(fabric, config, net, console)
    to_memory_format(net, config.runtime.memory_format, config.data.ndim)
    prepared = prepared.settle(config)
    write_config(config, prepared.run, read_header(prepared.run))
    trainer = _Pretrainer(fabric, prepared, net, console)
    if state is None:
        trainer.look(0)
        trainer.save(None)
    else:
        trainer.restore(state)
    console.start(trainer.step, config.length.steps)
    try:
        with stop_flag(fabric) as stop_requested:
            ending = trainer.run(stop_requested)
    finally:
        console.stop()
    prepared.run.append_event(ending, step=trainer.step, verdict=trainer.verdict.level, **trainer.result)
    tolerates = config.monitor.on_collapse == "warn"
    return PretrainResult(prepared.run, ending, trainer.step, trainer.verdict, trainer.result, tolerates)


class _Pretrainer:
    """The network and its optimizer, moved one step at a time, and what is written down of them."""

    def __init__(self, fabric: Fabric, prepared: BegunRun, net: nn.Module, console: Console) -> None:
        config, split = prepared.config, prepared.split
        self.fabric, self.prepared, self.config, self.console = fabric, prepared, config, console
        self.net, self.autocast = net, make_autocast(config.runtime.precision, fabric.device)
        self.wrapped, self.optimizer = fabric.setup(
            net, make_optimizer(net, config.optim, PARTS[config.network.name](net).encoder)
        )
        resolved = prepared.resolved
        pool = (*resolved.labeled, *resolved.unlabeled)
        learned, watched = choose_held_out(pool, split.seed)
        store = open_store(resolved.catalog, config.data)
        self.source = MaskedSource(store, learned, config.patches, config.data.patch_size, config.augment, config.seed)
        self.probe = make_masked_probe(store, watched, config.monitor.probe_patches, config.data.patch_size, split.seed)
        wholes = resolved.catalog.whole_images
        self.seen = tuple(sorted(split.image_contents(pool)))
        self.seen_wholes = tuple(sorted({wholes[i] for i in pool if i in wholes}))
        self.lr_at = make_lr_schedule(config.optim, config.length, config.labeled_range[1])
        self.step, self.verdict, self.result = 0, Verdict(), dict[str, Any]()
        self.told = self.verdict.key
        self.losses: list[Tensor] = []
        self.loss = (0.0, 0)

    def restore(self, state: Pretraining) -> None:
        """Go back to the state of a checkpoint."""
        load_weights(self.net, state.network, str(self.prepared.start))
        self.optimizer.load_state_dict(state.optimizer)
        self.step, self.loss, self.result = state.step, state.loss, state.result
        self.told = last_reported_verdict(self.prepared.run)

    def run(self, stop_requested: Callable[[int], bool]) -> TrainingEnding:
        """Make the steps that are left, unless asked to stop or collapsed."""
        length, monitor = self.config.length, self.config.monitor
        schedule = Schedule(length.steps, length.steps_per_epoch, monitor.first_epoch_probes)
        workers = count_given_workers(self.config.runtime)
        pin_memory = self.fabric.device.type == "cuda"
        for batch in make_loader(self.source, self.step, length.steps, workers, pin_memory):
            rate = self._make_step(batch.to(self.fabric.device))
            self.step += 1
            self.console.advance(self.step)
            if schedule.probes(self.step):
                self.look(self.step, rate)
            ends_epoch = schedule.ends_epoch(self.step)
            if ends_epoch:
                self._draw()
            ending = self._find_ending() if ends_epoch else None
            if ending is None and stop_requested(self.step):
                ending = "interrupted"
            if ends_epoch or ending is not None:
                self.save(ending)
            if ending is not None:
                return ending
        return "finished"

    def _find_ending(self) -> TrainingEnding | None:
        stops = self.config.monitor.on_collapse != "warn" or "non_finite" in self.verdict.codes
        if self.verdict.level == "collapsed" and stops:
            return "collapsed"
        return "finished" if self.step == self.config.length.steps else None

    def _make_step(self, batch: Batch) -> float:
        """Make one update; return its learning rate."""
        torch.manual_seed(derive_seed(self.config.seed, 0, self.step))
        self.wrapped.train()
        rate = self.lr_at(self.step, ())
        set_lr(self.optimizer, rate)
        with self.autocast():
            output = self.wrapped(batch.image)
        loss = compute_masked_loss(output, batch)
        self.fabric.backward(loss)
        clip = self.config.optim.clip_norm
        if clip is not None:
            self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.append(loss.detach())
        return rate

    def _sum_losses(self) -> tuple[float, int]:
        for loss in self.losses:
            self.loss = (self.loss[0] + float(loss), self.loss[1] + 1)
        self.losses = []
        return self.loss

    @torch.no_grad()
    def _paint(self, images: Tensor) -> Tensor:
        """Return the output (N,C,*P) for masked images, on the CPU."""
        self.net.eval()
        size, channels = self.source.count, self.config.data.channels
        with self.autocast():
            parts = [
                self.net(part.to(self.fabric.device))[:, :channels].float().cpu() for part in torch.split(images, size)
            ]
        return torch.cat(parts)

    def look(self, step: int, rate: float = 0.0) -> None:
        """Measure the network on the fixed patches, judge it, and write that down."""
        total, count = self._sum_losses()
        self.loss = (0.0, 0)
        loss, look = total / count if count else 0.0, compute_look(self._paint(self.probe.image), self.probe)
        run, verdict = self.prepared.run, judge(look, loss, step, self.config.length.steps)
        figures = {"error": look.error, "baseline": look.baseline, "gain": look.gain, "spread": look.spread}
        self.result = {**figures, "codes": list(verdict.codes)}
        run.append_metrics({"step": step, "loss": loss if count else None, "lr": rate, **self.result})
        is_new = verdict.key != self.told
        if is_new:
            run.append_event("verdict", step=step, **verdict.to_record())
        self.verdict, self.told = verdict, verdict.key
        trained = f"  loss {loss:.3f}" if count else ""
        line = f"step {step:>5}{trained}  error {look.error:.3f}  mean of the visible {look.baseline:.3f}"
        line += f"  gain {look.gain:+.1%}  {verdict.level} {','.join(verdict.codes)}"
        for text in (line.rstrip(), *(format_block(verdict) if is_new else ())):
            self.console.note(text)

    def save(self, ending: TrainingEnding | None) -> None:
        """Write the checkpoint and the summary; one that was interrupted has no ending yet."""
        run, result = self.prepared.run, self.result
        state = Pretraining(
            self.net.state_dict(),
            self.optimizer.state_dict(),
            self.step,
            self._sum_losses(),
            to_plain(self.config),
            split_to_dict(self.prepared.split),
            self.seen,
            self.seen_wholes,
            result,
            None if ending == "interrupted" else ending,
        )
        save_pretraining(state, run.last)
        summary = {"steps": self.config.length.steps, "step": self.step, "hidden_share": HIDDEN_SHARE, **result}
        write_json(run.path / PRETRAINING_FILE, {**summary, "ending": ending})

    def _draw(self) -> None:
        """Write the picture of a few fixed patches: image, what the network sees, what it paints there."""
        seen, whole = (images[:SHOWN_PATCHES] for images in (self.probe.image, self.probe.weak))
        hidden = (self.probe.target[:SHOWN_PATCHES] == HIDDEN).unsqueeze(1)
        painted = torch.where(hidden, self._paint(seen), whole)
        rows = [draw_row([column.numpy() for column in row]) for row in zip(whole, seen, painted, strict=True)]
        path = self.prepared.run.path / PICTURES / f"step_{self.step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(".png", np.concatenate(rows))[1].tobytes())


def draw_row(patches: list[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Return patches (C,*P) side by side, in gray (H,W) or color (H,W,3), with the contrast of the first one.

    Of a volume the middle slice is shown; colors where there are three channels, else the first one.
    """
    planes = [patch if patch.ndim == 3 else patch[:, patch.shape[1] // 2] for patch in patches]
    planes = [plane[::-1] if len(plane) == 3 else np.repeat(plane[:1], 3, axis=0) for plane in planes]
    scaled = [stretch(plane, planes[0]) for plane in planes]
    factor = -(-SHOWN_SIZE // max(planes[0].shape[1:]))
    large = [np.kron(plane.transpose(1, 2, 0), np.ones((factor, factor, 1))) for plane in scaled]
    framed = np.concatenate([np.pad(plane, ((2, 2), (2, 2), (0, 0)), constant_values=1.0) for plane in large], axis=1)
    picture: NDArray[np.uint8] = np.nan_to_num(framed * 255).astype(np.uint8)
    return picture
