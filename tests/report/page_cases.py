"""Run directories as a training leaves them behind, without a training."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
from conftest import TINY

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, check_partial, dump_config
from ssl_seg.data.splits.files import save_split
from ssl_seg.data.splits.split import Split
from ssl_seg.files import write_json
from ssl_seg.inference.scoring import Score, parse_cases
from ssl_seg.run.directory import RunDir, create_run_dir
from ssl_seg.run.final_scores import FinalScores, NetworkScore, save_final_scores
from ssl_seg.run.request import TrainRequest

HOSTILE = "<script>window.hacked = true</script>&\"'"
TEST_CONTENT = "abcdefabcdef"
"""Of the image of the only test case."""
CASES = ("case_a", "case_b", HOSTILE, *(f"case_{n}" for n in range(9)))
FINDING = {
    "code": "constant_output", "level": "collapsed", "net": "student", "value": 0.0, "limit": 0.01, "source": "ours",
    "message": "the same everywhere: probability 0.000",
}  # fmt: skip


def make_config(*layers: Mapping[str, Any]) -> Config:
    """Return the settings of a tiny run of Mean Teacher."""
    given = [Layer("test", dict(values)) for values in (TINY, {"method": {"name": "mean_teacher"}}, *layers)]
    return check_partial(TrainRequest(tuple(given)).settings)[0]


def make_look(step: int, f1: float = 0.5, verdict: str = "ok", **more: Any) -> dict[str, Any]:
    """Return a record of metrics.jsonl."""
    record: dict[str, Any] = {"step": step, "epoch": 1, "verdict": verdict, "codes": [], "val/trivial_f1": 0.4}
    for net in ("student", "teacher"):
        record |= {f"val/{net}/f1": f1, f"val/{net}/f1_best": f1 + 0.1, f"val/{net}/auroc": 0.8}
        record |= {f"val/{net}/logit_q{q}": (int(q) - 50) / 10 for q in ("01", "05", "25", "50", "75", "95", "99")}
        record |= {f"val/{net}/prob_histogram": [0.05] * 20, f"val/{net}/prevalence_pred": 0.3}
    record |= {"val/prevalence_true": 0.25, "val/patches": 6, "val/student/loss": 1 - f1}
    train = {"loss": 1 - f1, "cross_entropy": 0.6, "dice": 0.4, "lr": 1e-3, "grad_norm": 2.0, "clipped_share": 0.1}
    train |= {"pseudo_prevalence": 0.3, "accepted_share": 0.8, "consistency_weight": 0.5, "seconds_per_step": 0.25}
    return record | ({f"train/{name}": value for name, value in train.items()} if step else {}) | more


def make_dice_score(dices: Sequence[float], ids: Sequence[str] = CASES, classes: int = 1) -> Score:
    """Return a score whose cases have these Dice in every class; a quarter of the voxels is foreground."""
    rows = []
    for case_id, dice in zip(ids, dices, strict=False):
        tp = round(1000 * dice)
        counts = [tp, 1000 - tp, 1000 - tp, 2000 + tp]
        rows.append({"id": case_id, "foreground": counts, "classes": [counts] * classes, "nonfinite": 0})
    return parse_cases(rows, tuple(range(1, 1 + classes)))


def make_final(score: Score, step: int = 12, *, collapsed: bool = False) -> FinalScores:
    """Return the scores of a run whose student and teacher score the same; the teacher is used."""
    networks = [NetworkScore("best", net, step, collapsed, score) for net in ("teacher", "student")]
    return FinalScores(step, "f1", tuple(networks), 0.25)


def make_run(
    path: Path,
    looks: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]] = (),
    final: FinalScores | None = None,
    config: Config | None = None,
) -> Path:
    """Write a run directory."""
    run: RunDir = create_run_dir(path)
    header = "Written by a test\nplanned: data.channels = 1 (channels of the images)"
    (path / "config.yaml").write_text(dump_config(config or make_config(), header), encoding="utf-8")
    content = {case_id: f"{number:016x}" for number, case_id in enumerate((*CASES, "train_a", "train_b"))}
    content["test_a"] = f"{TEST_CONTENT}0000"
    split = Split("d", 0, {1.0: ("train_a", "train_b")}, (), CASES, ("test_a",), {}, content, ("a note",))
    save_split(split, path / "split.yaml")
    for look in looks:
        run.append_metrics(look)
    for event in events:
        values = {key: value for key, value in event.items() if key != "event"}
        run.append_event(event["event"], **values)
    if final is not None:
        save_final_scores(final, run)
    return path


def make_healthy(path: Path, *, ids: Sequence[str] = CASES, offset: float = 0.0) -> Path:
    """Write a finished run that has learned."""
    looks = [make_look(step, 0.4 + 0.4 * step / 12) for step in range(13)]
    dices = np.linspace(0.5, 0.9, len(ids)) + offset
    events = (
        {"event": "started"},
        {"event": "runtime", "precision": "fp32", "parameters": 1234, "memory_gib": 0.5},
        {"event": "test_opened", "opening": "a1", "by": "evaluate", "cases": 1, "contents": [TEST_CONTENT]},
        {"event": "finished", "step": 12, "verdict": "ok", "codes": []},
    )
    return make_run(path, looks, events, make_final(make_dice_score(list(dices), ids)))


def make_collapsed(path: Path, *, best_dice: float = 0.1) -> Path:
    """Write a run that the monitor has stopped at step 8."""
    looks = [make_look(step, 0.5) for step in range(6)]
    looks += [make_look(step, 0.0, "collapsed", **{"val/student/f1_best": math.nan}) for step in range(6, 9)]
    events = (
        {"event": "intervention", "step": 4, "rung": "lower_lr"},
        {"event": "verdict", "step": 6, "level": "collapsed", "codes": ["constant_output"], "action": "lower the rate",
         "findings": [FINDING]},
        {"event": "collapsed", "step": 8, "verdict": "collapsed", "codes": ["constant_output"]},
    )  # fmt: skip
    return make_run(path, looks, events, make_final(make_dice_score([best_dice] * len(CASES)), 2))


def cut_last_line(path: Path) -> None:
    """Cut the last line of metrics.jsonl short, as a crash does."""
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-40])


def damage(path: Path, name: str) -> None:
    """Put something else in place of a file."""
    write_json(path / name, {"schema": 99})


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a run."""
    return [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]


def read_banner(page: str) -> tuple[str, list[str]]:
    """Return the state that a page shows first, and the commands that it proposes."""
    banner = page[page.index('<section class="banner') : page.index("</section>")]
    state = re.search(r'data-state="(\w+)"', banner)
    assert state is not None
    return state[1], [unescape(command) for command in re.findall(r"<code>(.*?)</code> ", banner)]
