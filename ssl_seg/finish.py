"""The end of a run: the weight average, the scores on whole validation cases, the last event."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_seg.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.data.loader import PatchSource, make_loader
from ssl_seg.data.store import CaseStore
from ssl_seg.engine.engine import Engine
from ssl_seg.engine.loop import LoopResult
from ssl_seg.engine.swa import WeightAverage, estimate_batch_norm
from ssl_seg.inference.model import NETS, Model, open_model
from ssl_seg.inference.scoring import score_cases
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.watch import Monitor
from ssl_seg.networks import has_batch_norm
from ssl_seg.prepare import Prepared
from ssl_seg.recorder import Console, Recorder
from ssl_seg.rundir import RunDir

FINAL_OVERLAP = 0.25
"""Window overlap of the scores at the end of a run; `ssl-seg evaluate` uses 0.5."""
BATCH_NORM_BATCHES = 50
"""Training batches that the BatchNorm statistics of averaged weights are estimated on."""
SELECTION_NAMES = {"f1": "F1", "dice": "Dice", "foreground_distance": "foreground distance"}


def finish_run(
    result: LoopResult,
    prepared: Prepared,
    engine: Engine,
    monitor: Monitor,
    source: PatchSource,
    average: WeightAverage | None,
    recorder: Recorder,
    console: Console,
) -> tuple[Verdict, dict[str, dict[str, Any]]]:
    """Write what is left to write, score the checkpoints of a run that came to its own end, and close it.

    Returns:
        The last verdict, and the validation scores of last.pt, best.pt and swa.pt as ``last``, ``best`` and ``swa``;
        empty on other processes than the first and for a run that was stopped.
    """
    run, observation = prepared.run, result.observation
    if observation is None and result.is_complete:  # resumed with all steps done: only this was missing
        observation = monitor.look(engine.student, engine.teacher.net, result.step)
    verdict = Verdict() if observation is None else observation.verdict
    scores: dict[str, dict[str, Any]] = {}
    if engine.fabric.is_global_zero:
        summary: dict[str, Any] = {}
        if result.is_complete:
            if average is not None:
                _write_average(average, engine, source, recorder, result, prepared, console)
            scores = _score_run(run, engine.fabric.device, prepared, source.store, console)
            summary = _summarize(scores, prepared, console)
        run.append_event(result.ending, step=result.step, verdict=verdict.level, codes=list(verdict.codes), **summary)
    engine.fabric.barrier()
    return verdict, scores


def _write_average(
    average: WeightAverage,
    engine: Engine,
    source: PatchSource,
    recorder: Recorder,
    result: LoopResult,
    prepared: Prepared,
    console: Console,
) -> None:
    """Write swa.pt: the mean of the students, with BatchNorm statistics that fit it.

    It takes the place of both networks, so that whoever opens the file gets the mean and not the last teacher.
    """
    if average.count == 0:
        console.note("policy: no weights were averaged, the run ended before policies.swa.start_epoch")
        return
    if has_batch_norm(average.net):
        images = _clean_images(source, engine.fabric.device, prepared.config.runtime.workers)
        track = console.track("estimating BatchNorm statistics of swa.pt")
        estimate_batch_norm(average.net, track(images, BATCH_NORM_BATCHES), engine.autocast)
    last = recorder.snapshot(result.progress)
    scores = {key: value for key, value in last.scores.items() if key != "selected"}
    mean = average.net.state_dict()
    save_checkpoint(replace(last, student=mean, teacher=mean, scores=scores), prepared.run.swa)
    console.note(f"policy: swa.pt is the mean of the students at the ends of {average.count} epochs")


def _clean_images(source: PatchSource, device: torch.device, workers: int) -> Iterator[Tensor]:
    """Yield training images as the network sees them when it predicts: without strong intensity changes."""
    for batch in make_loader(source, 0, BATCH_NORM_BATCHES, workers, pin_memory=False):
        yield torch.cat([batch.image, batch.weak]).to(device)


def _score_run(
    run: RunDir, device: torch.device, prepared: Prepared, store: CaseStore, console: Console
) -> dict[str, dict[str, Any]]:
    """Score last.pt, swa.pt and best.pt on validation, write the scores into them, and return them by name."""

    def score(path: Path, nets: Sequence[str] = NETS) -> dict[str, Any]:
        return _score_networks(open_model(path, device), nets, prepared.split.val, store, console)

    scores = {"last": score(run.last)}
    if run.swa.is_file():
        scores["swa"] = score(run.swa, ("student",))
        scores["swa"]["teacher"] = scores["swa"]["student"]  # both networks are the mean
    steps = [load_checkpoint(path, lazy=True).progress.step for path in (run.last, run.best)]
    scores["best"] = score(run.best) if steps[0] != steps[1] else scores["last"]
    paths = {"last": run.last, "swa": run.swa, "best": run.best}
    return {name: _write_scores(paths[name], own) for name, own in scores.items()}


def _write_scores(path: Path, scores: dict[str, Any]) -> dict[str, Any]:
    """Put scores into a checkpoint beside what it was selected by, and return both."""
    checkpoint = load_checkpoint(path)
    kept = {key: value for key, value in checkpoint.scores.items() if key == "selected"}
    save_checkpoint(replace(checkpoint, scores=scores | kept), path)
    return scores | kept


def _summarize(scores: dict[str, dict[str, Any]], prepared: Prepared, console: Console) -> dict[str, Any]:
    """Return what the last event says about the checkpoints, and show which epoch was the best."""
    summary = {key: value for key, value in scores["best"].items() if key != "selected"}
    if "swa" in scores:
        summary["swa"] = scores["swa"]["student"]
    selected = scores["best"]["selected"]
    step = load_checkpoint(prepared.run.best, lazy=True).progress.step
    epoch = -(-step // min(prepared.config.length.steps_per_epoch, prepared.config.length.steps))
    summary["best"] = {"epoch": epoch, "step": step, **selected}
    value = f"{abs(selected['score']):.3f}" if math.isfinite(selected["score"]) else "not finite"
    name = SELECTION_NAMES[selected["by"]]
    name += " (mean of classes)" if selected["by"] == "f1" and prepared.config.data.num_classes > 2 else ""
    console.note(f"best: epoch {epoch}, {name} {value} ({selected['net']})")
    return summary


def _score_networks(
    model: Model, nets: Sequence[str], case_ids: Sequence[str], store: CaseStore, console: Console
) -> dict[str, Any]:
    """Return pooled F1 of networks on whole cases, with the margin over the trivial baseline."""
    scores: dict[str, Any] = {"source": "validation"}
    for net in nets:
        track = console.track(f"validating {model.path.stem} {net}")
        score = score_cases(model.predictor(net, FINAL_OVERLAP), store, case_ids, track=track)
        trivial = score.summarize()["trivial"]
        scores["trivial_f1"] = trivial["all_positive"]
        margins = {key: trivial[key] for key in ("margin", "margin_low", "margin_high")}
        scores[net] = {"f1": score.f1, "f1_macro": score.f1_macro, **margins}
    return scores
