"""The end of a run: the weight average, the scores on whole validation cases, the last event."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_seg.config import NETS
from ssl_seg.data.loader import PatchSource, make_loader
from ssl_seg.data.store import CaseStore
from ssl_seg.engine.ema import estimate_batch_norm
from ssl_seg.errors import counted
from ssl_seg.files import atomic_write
from ssl_seg.inference.model import open_model
from ssl_seg.monitor.findings import Verdict
from ssl_seg.monitor.monitor import Observation
from ssl_seg.monitor.network_rules import find_trivial_images, leave_out_refuted
from ssl_seg.monitor.verdicts import conclude
from ssl_seg.networks.builders import has_batch_norm
from ssl_seg.networks.checkpoint import save_checkpoint
from ssl_seg.run.console import Console
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import (
    FinalScores,
    Source,
    choose_factor,
    describe_for_checkpoint,
    load_final_scores,
    save_final_scores,
    score_networks,
    summarize_network,
)
from ssl_seg.run.gates import describe_targets, judge_targets
from ssl_seg.run.prepare import BegunRun
from ssl_seg.run.resources import count_given_workers
from ssl_seg.run.scenarios import find_scenarios
from ssl_seg.run.session import LoopResult, Session
from ssl_seg.scores.objects import describe_objects

BATCH_NORM_BATCHES = 50
"""Training batches that the BatchNorm statistics of averaged weights are estimated on."""
SELECTION_NAMES = {"f1": "F1", "dice": "Dice", "foreground_distance": "foreground distance", "pq": "PQ of objects"}


def finish_run(
    session: Session, result: LoopResult, prepared: BegunRun, console: Console
) -> tuple[Verdict, FinalScores | None]:
    """Write what is left to write, score the checkpoints of a run that came to its own end, and close it.

    Returns:
        The verdict on the networks of the last step as they will be used, and the scores of all networks on the whole
        validation cases; None on other processes than the first, and for a run that was interrupted.
    """
    run, observation, fabric = prepared.run, result.observation, session.engine.fabric
    verdict = Verdict() if observation is None else observation.verdict
    final: FinalScores | None = None
    if fabric.is_global_zero:
        summary: dict[str, Any] = {}
        if result.ending != "interrupted":
            known = load_final_scores(run)  # of swa.pt too, where the run was killed after it had written them
            if result.is_complete and (known is None or known.step != result.step):
                _write_average(session, prepared, console)
            final = _score_run(run, result.step, fabric.device, prepared, session.source.store, console)
            summary = _summarize(final, prepared, console)
            if observation is not None and result.is_complete:  # a collapse that ended the run is its verdict
                verdict = _judge_end(observation, describe_for_checkpoint(final, "last"))
                session.recorder.conclude(verdict, result.step)
        if final is not None:
            summary["scenarios"] = find_scenarios(run.read_events(), final.used.score)
            came_true = "; ".join(f"{name} ({text})" for name, text in summary["scenarios"].items()) or "none"
            console.note(f"scenarios that came true: {came_true}")
        run.append_event(result.ending, step=result.step, verdict=verdict.level, codes=list(verdict.codes), **summary)
    fabric.barrier()
    return verdict, final


def _judge_end(observation: Observation, scores: dict[str, Any]) -> Verdict:
    """Return the verdict on the networks of last.pt, the one that its scores on whole cases choose before the other."""
    used = scores["selected"]["net"]
    verdict = observation.judge_end(used)
    found = find_trivial_images(scores[used]["f1_macro"], scores["trivial_f1"], used)
    findings = (*leave_out_refuted(verdict.findings, scores), *([] if found is None else [found]))
    return conclude(findings, observation.context, used)


def _write_average(session: Session, prepared: BegunRun, console: Console) -> None:
    """Write swa.pt, where weights are averaged: the mean of the students, with BatchNorm statistics that fit it.

    It takes the place of both networks, so that whoever opens the file gets the mean and not the last teacher.
    """
    average, engine = session.policies.average, session.engine
    if average is None:
        return
    if average.count == 0:
        console.note("policy: no weights were averaged: the run ended before policies.swa.start_epoch")
        return
    if has_batch_norm(average.net):
        workers = count_given_workers(prepared.config.runtime)
        images = _draw_images(session.source, engine.fabric.device, workers)
        track = console.track("estimating BatchNorm statistics of swa.pt")
        estimate_batch_norm(average.net, track(images, BATCH_NORM_BATCHES), engine.autocast)
    last, mean = session.snapshot(), average.net.state_dict()
    selected = last.scores["selected"]
    collapsed = list(NETS) if "student" in selected["collapsed"] else []
    scores = {**last.scores, "selected": {**selected, "collapsed": collapsed}}
    save_checkpoint(replace(last, student=mean, teacher=mean, scores=scores, parts={}), prepared.run.swa)
    console.note(f"policy: swa.pt is the mean of the students at the ends of {counted(average.count, 'epoch')}")


def _draw_images(source: PatchSource, device: torch.device, workers: int) -> Iterator[Tensor]:
    """Yield training images (N,C,*P) as the student and the teacher see them, but for the strong views."""
    for batch in make_loader(source, 0, BATCH_NORM_BATCHES, workers, pin_memory=False):
        yield torch.cat([batch.image, batch.weak]).to(device)


def _score_run(
    run: RunDir, step: int, device: torch.device, prepared: BegunRun, store: CaseStore, console: Console
) -> FinalScores:
    """Score the networks of last.pt, best.pt and swa.pt on validation and decide which of them is used.

    The scores go into each file, all of them into scores.json; then best.pt becomes the file of the network that is
    used. A run that was killed in between is not scored again.
    """
    paths: dict[Source, Path] = {"best": run.best, "last": run.last, "swa": run.swa}
    final = load_final_scores(run)
    if final is None or final.step != step:
        models = {source: open_model(path, device) for source, path in paths.items() if path.is_file()}
        val, select = prepared.split.val, prepared.config.monitor.select
        track = console.track("trying longer windows on whole validation cases")
        factor, known = choose_factor(models["best"], store, val, select, track)
        if factor > 1:
            console.note(
                f"windows: up to {factor} patches long from now on, since validation scores are no lower with them"
            )
        track = console.track("scoring the networks on whole validation cases")
        final = score_networks(models, store, val, step, select, track, factor, known)
        for source, model in reversed(models.items()):  # best.pt last: choose_factor asks it which network is better
            save_checkpoint(replace(model.checkpoint, scores=describe_for_checkpoint(final, source)), model.path)
        save_final_scores(final, run)
    if (source := final.used.source) != "best":
        with atomic_write(run.best) as temporary:
            shutil.copyfile(paths[source], temporary)
    return final


def _summarize(final: FinalScores, prepared: BegunRun, console: Console) -> dict[str, Any]:
    """Return what the last event says about the networks, and show which of them is used."""
    used = final.used
    scores = describe_for_checkpoint(final, used.source)
    summary = {key: value for key, value in scores.items() if key != "selected"}
    if swa := final.of("swa"):
        summary["swa"] = summarize_network(swa["student"])
    length = prepared.config.length
    epoch = -(-used.step // min(length.steps_per_epoch, length.steps))
    summary["best"] = {"epoch": epoch, "step": used.step, "found_in": f"{used.source}.pt", **scores["selected"]}
    name = SELECTION_NAMES[final.select]
    name += " (mean of classes)" if final.select in ("f1", "dice") and prepared.config.data.num_classes > 2 else ""
    where = "the mean of the students" if used.source == "swa" else f"epoch {epoch}"
    cases = counted(len(used.score.cases), "whole validation case")
    value = f"{name} {abs(scores['selected']['score']):.3f} on {cases}"
    if (threshold := prepared.config.prediction.threshold) is not None:
        value += f" at a threshold of {threshold:g}"
    if final.select == "dice":  # which empty cases flatter
        own = summarize_network(used.score)
        positives = "none" if own["dice_positives"] is None else f"{own['dice_positives']:.3f}"
        value += f" ({positives} on the {own['n_positives']} positive ones, {own['predict_nothing']:.3f} for nothing)"
    console.note(f"used: {used.net} of best.pt ({where}), {value}")
    if used.score.objects is not None:
        console.note(describe_objects(used.score.objects))
    if targets := judge_targets(prepared.config.targets, used.score.summarize()):
        summary["targets"] = targets
        console.note(describe_targets(targets))
    if used.score.nonfinite:
        console.note("WARNING every network gives NaN or infinity on validation cases: none can be used")
    return summary
