"""``ssl-seg pretrain``, and trainings that start from it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from interruption import stop_after
from pretraining_cases import pretrain_tiny, train_from
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.data.store import CaseStore
from ssl_seg.errors import ConfigError, RefusedError, RunDirError
from ssl_seg.run.console import Silent
from ssl_seg.run.directory import RunDir
from ssl_seg.run.pretraining import run as pretraining
from ssl_seg.run.pretraining.masking import Look
from ssl_seg.run.pretraining.run import (
    HELD_OUT_FROM,
    PICTURES,
    choose_held_out,
    draw_row,
    judge,
    make_image_network,
    pretrain,
)
from ssl_seg.run.pretraining.state import load_pretraining, save_pretraining
from ssl_seg.run.request import TrainRequest


def test_a_run_directory_holds_settings_split_records_pictures_and_a_checkpoint(pretrained_run: Path) -> None:
    state = load_pretraining(pretrained_run)
    assert (state.step, state.ending) == (12, "finished")
    assert state.split == load_pretraining(pretrained_run / "checkpoints" / "last.pt").split
    assert split_from_dict(state.split).fingerprint == load_split(pretrained_run / "split.yaml").fingerprint
    records = [json.loads(line) for line in (pretrained_run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 5, 6, 12]
    assert {"loss", "error", "baseline", "gain", "spread", "lr"} <= records[-1].keys()
    summary = json.loads((pretrained_run / "pretraining.json").read_text())
    assert summary["error"] == state.result["error"] == records[-1]["error"]
    pictures = sorted((pretrained_run / PICTURES).iterdir())
    assert [path.name for path in pictures] == ["step_000006.png", "step_000012.png"]
    shown = cv2.imread(str(pictures[-1]))
    assert shown is not None
    assert shown.shape == (4 * 260, 3 * 260, 3)
    events = [json.loads(line)["event"] for line in (pretrained_run / "events.jsonl").read_text().splitlines()]
    assert (events[0], events[-1]) == ("started", "finished")


def test_no_image_of_validation_or_test_is_ever_loaded(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = set()
    load = CaseStore.load

    def spy(store: CaseStore, case_id: str) -> Any:
        loaded.add(case_id)
        return load(store, case_id)

    monkeypatch.setattr(CaseStore, "load", spy)
    pretrain_tiny(tmp_path / "run", particles_dir, {"batch": {"labeled": 4}})
    split = load_split(tmp_path / "run" / "split.yaml")
    assert split.val
    assert split.test
    assert split.unlabeled
    pool = (*split.fractions[1.0], *split.unlabeled)
    assert loaded == set(pool)
    state = load_pretraining(tmp_path / "run")
    assert set(state.seen) == split.image_contents(pool)
    assert not set(state.seen) & split.image_contents((*split.val, *split.test))


def test_a_gray_image_has_two_outputs_of_which_one_is_painted(pretrained_run: Path) -> None:
    net = make_image_network(Config.model_validate(load_pretraining(pretrained_run).config))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 2, 32, 32)


# the end of an unbroken run, whatever happens on the way


def assert_same(one: Path, other: Path) -> None:
    first, second = load_pretraining(one), load_pretraining(other)
    for name, value in first.network.items():
        assert value.equal(second.network[name]), name
    for own, theirs in zip(first.optimizer["state"].values(), second.optimizer["state"].values(), strict=True):
        assert all(own[key].equal(theirs[key]) for key in own)
    assert (first.result, first.step, first.ending) == (second.result, second.step, second.ending)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    names = [sorted(path.name for path in (run / PICTURES).iterdir()) for run in (one, other)]
    assert names[0] == names[1]
    assert all((one / PICTURES / n).read_bytes() == (other / PICTURES / n).read_bytes() for n in names[0])


@pytest.mark.parametrize("step", [1, 6, 11])
def test_interrupted_and_resumed_it_ends_with_equal_bits(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path, step: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "stop_flag", stop_after(step))
        assert pretrain_tiny(tmp_path / "run", particles_dir).ending == "interrupted"
    assert load_pretraining(tmp_path / "run").step == step
    result = pretrain(TrainRequest(resume=tmp_path / "run"))
    assert (result.ending, result.step) == ("finished", 12)
    assert_same(pretrained_run, tmp_path / "run")


@pytest.mark.parametrize("step", [0, 8])
def test_killed_and_resumed_it_ends_with_equal_bits(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path, step: int
) -> None:
    make_step = pretraining._Pretrainer._make_step

    def die(trainer: Any, batch: Any) -> float:
        if trainer.step == step:
            raise KeyboardInterrupt
        return make_step(trainer, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining._Pretrainer, "_make_step", die)
        with pytest.raises(KeyboardInterrupt):
            pretrain_tiny(tmp_path / "run", particles_dir)
    pretrain(TrainRequest(resume=tmp_path / "run"))
    assert_same(pretrained_run, tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            "look",
            r"interrupted before anything was saved: .* --out .*run-2, .* rm -r .*run",
        ),
        ("_make_step", r"interrupted; step 0 is saved; continue with: ssl-seg pretrain --resume .*run"),
    ],
)
def test_an_interrupt_between_two_steps_says_how_to_go_on(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, said: str
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    notes: list[str] = []
    monkeypatch.setattr(pretraining._Pretrainer, method, interrupt)
    monkeypatch.setattr(Silent, "note", lambda _, text: notes.append(text))
    with pytest.raises(KeyboardInterrupt):
        pretrain_tiny(tmp_path / "run", particles_dir)
    assert re.fullmatch(said, notes[-1])


def test_another_seed_ends_elsewhere(pretrained_run: Path, particles_dir: Path, tmp_path: Path) -> None:
    pretrain_tiny(tmp_path / "run", particles_dir, {"seed": 1})
    first, second = load_pretraining(pretrained_run).network, load_pretraining(tmp_path / "run").network
    assert not all(value.equal(second[name]) for name, value in first.items())


def test_what_cannot_be_resumed_is_said(pretrained_run: Path, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match=r"finished after step 12.*--pretrained"):
        pretrain(TrainRequest(resume=pretrained_run))
    stopped = shutil.copytree(pretrained_run, tmp_path / "copy")
    save_pretraining(replace(load_pretraining(stopped), ending=None), stopped / "checkpoints" / "last.pt")
    with pytest.raises(ConfigError, match="without other options"):
        pretrain(TrainRequest((Layer("--seed 1", {"seed": 1}),), resume=stopped))
    with pytest.raises(RunDirError, match=r"not a run of `ssl-seg pretrain`"):
        pretrain(TrainRequest(resume=tiny_run))


# the monitor


GOOD = Look(0.5, 1.0, 0.4)


@pytest.mark.parametrize(
    ("look", "loss", "step", "codes"),
    [
        (GOOD, 0.5, 500, ()),
        (Look(float("nan"), 1.0, 0.4), 0.5, 1, ("non_finite",)),
        (GOOD, float("inf"), 1, ("non_finite",)),
        (replace(GOOD, spread=0.0099), 0.5, 1, ("constant_output",)),
        (replace(GOOD, spread=0.0101), 0.5, 1, ()),
        (replace(GOOD, spread=0.0), 0.0, 0, ()),  # nothing has been learned yet
        (replace(GOOD, error=1.01), 0.5, 99, ()),
        (replace(GOOD, error=1.01), 0.5, 100, ("not_above_trivial",)),
        (replace(GOOD, error=1.01), 0.5, 101, ("not_above_trivial",)),
        (replace(GOOD, error=0.99), 0.5, 100, ()),
        (Look(0.0, 0.0, 0.0), 0.0, 200, ()),  # images without anything to paint
    ],
)
def test_verdicts(look: Look, loss: float, step: int, codes: tuple[str, ...]) -> None:
    verdict = judge(look, loss, step, 500)
    assert verdict.codes == codes
    assert verdict.level == ("collapsed" if codes else "ok")
    assert bool(verdict.action) == bool(codes)


def test_a_shorter_run_is_judged_at_its_end() -> None:
    assert judge(replace(GOOD, error=1.01), 0.5, 11, 12).codes == ()
    assert judge(replace(GOOD, error=1.01), 0.5, 12, 12).codes == ("not_above_trivial",)


class Constant(nn.Module):
    """Paints one value, which it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(1))

    def forward(self, image: Tensor) -> Tensor:
        return self.value.expand(len(image), 2, *image.shape[2:])


@pytest.mark.parametrize(("on_collapse", "ending", "step"), [("warn", "finished", 12), ("stop", "collapsed", 6)])
def test_a_constant_output_is_named_in_the_first_epoch(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_collapse: str, ending: str, step: int
) -> None:
    monkeypatch.setattr(pretraining, "make_image_network", lambda *_: Constant())
    result = pretrain_tiny(tmp_path / "run", particles_dir, {"monitor": {"on_collapse": on_collapse}})
    assert (result.ending, result.step) == (ending, step)
    assert result.verdict.codes[0] == "constant_output"
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "verdict"]
    assert (told[0]["step"], told[0]["codes"]) == (1, ["constant_output"])


def test_a_verdict_is_told_once_though_the_run_was_interrupted(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "make_image_network", lambda *_: Constant())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "stop_flag", stop_after(3))
        assert pretrain_tiny(tmp_path / "run", particles_dir).ending == "interrupted"
    pretrain(TrainRequest(resume=tmp_path / "run"))
    told = [event["codes"] for event in RunDir(tmp_path / "run").read_events() if event["event"] == "verdict"]
    assert told[0] == ["constant_output"]
    assert all(one != other for one, other in pairwise(told))


def test_a_healthy_network_is_not_called_constant(pretrained_run: Path) -> None:
    records = [json.loads(line) for line in (pretrained_run / "metrics.jsonl").read_text().splitlines()]
    assert all("constant_output" not in record["codes"] for record in records)
    assert all(record["spread"] > 0.05 for record in records)


def test_nan_ends_the_run(particles_dir: Path, tmp_path: Path) -> None:
    settings = {"optim": {"lr": 1e30, "clip_norm": None, "weight_decay": 0}}
    result = pretrain_tiny(tmp_path / "run", particles_dir, settings)
    assert (result.ending, result.step) == ("collapsed", 6)
    assert "non_finite" in result.verdict.codes
    with pytest.raises(RefusedError, match="NaN or infinity"):
        train_from(tmp_path / "run", tmp_path / "t", particles_dir)
    assert not (tmp_path / "t").exists()


def test_it_learns_to_paint_better_than_the_mean(tmp_path: Path) -> None:
    """Stripes of three periods: what is hidden follows from what is seen."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(12):
        wave = np.sin(np.arange(48) * 2 * np.pi / 8 + rng.uniform(0, 6)) * 90 + 128
        image = np.repeat(wave[:, None], 48, axis=1) + rng.normal(0, 3, (48, 48))
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{n}.png"), image.astype(np.uint8))
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{n}.png"), (image > 128).astype(np.uint8))
    settings = {"length": {"steps": 150, "steps_per_epoch": 50}, "optim": {"lr": 5e-3}, "batch": {"labeled": 4}}
    augment = {"augment": {"rotate90": False, "affine": 0}, "monitor": {"probe_patches": 6}}
    result = pretrain_tiny(tmp_path / "run", tmp_path / "data", settings, augment)
    assert result.verdict.level == "ok"
    assert result.result["gain"] > 0.3


# what is held out


@pytest.mark.parametrize("count", [1, HELD_OUT_FROM - 1, HELD_OUT_FROM, HELD_OUT_FROM + 1, 5 * HELD_OUT_FROM])
def test_a_tenth_of_a_large_pool_is_held_out(count: int) -> None:
    pool = tuple(f"i{n}" for n in range(count))
    learned, watched = choose_held_out(pool, 0)
    if count < HELD_OUT_FROM:
        assert learned == watched == pool
        return
    assert len(watched) == round(count / 10) > 0
    assert not set(learned) & set(watched)
    assert set(learned) | set(watched) == set(pool)
    assert choose_held_out(pool, 0) == (learned, watched)


# pictures


def test_a_row_shows_its_patches_side_by_side_in_the_contrast_of_the_first() -> None:
    rng = np.random.default_rng(0)
    gray = rng.normal(size=(1, 32, 32)).astype(np.float32)
    row = draw_row([gray, np.zeros_like(gray), np.full_like(gray, np.nan)])
    assert row.shape == (260, 780, 3)
    assert (row[..., 0] == row[..., 1]).all()
    assert row[2:258, 2:258].std() > 30
    assert row[2:258, 262:518].std() == 0
    color = rng.normal(size=(3, 300, 40)).astype(np.float32)
    assert draw_row([color]).shape == (304, 44, 3)
    volume = rng.normal(size=(2, 6, 16, 16)).astype(np.float32)
    assert np.array_equal(draw_row([volume]), draw_row([volume[:, 3]]))
