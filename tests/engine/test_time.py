"""How long a run takes: the arithmetic with a clock that only moves when it is told to, and that measuring changes
nothing."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Notes
from forking import run as run_program
from interruption import stop_after
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from ssl_seg.cli.main import main
from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, build_config, merge_layers, nest
from ssl_seg.data.loader import Batch, Probe
from ssl_seg.engine import timing
from ssl_seg.engine.pace import (
    ANY_STEPS,
    FEWEST_MEASURED,
    Pace,
    check_length,
    count_looks,
    describe_pace,
    describe_seconds,
    estimate_seconds,
    plan_steps,
    plan_workers,
)
from ssl_seg.errors import ConfigError
from ssl_seg.methods.base import Built
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run import assembly, training
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.session import Schedule
from ssl_seg.run.training import TrainResult, train
from ssl_seg.studies.cross_validation import cross_validate
from ssl_seg.studies.label_ladder import climb_labels

PACE = Pace(update=0.5, look=2.0, reading=3.0, scoring=10.0)
EARLY = (0, 1, 2, 5, 10, 20, 50)


def make_config(steps: int = 800, per_epoch: int = 100, **sections: Any) -> Config:
    stand_ins = {
        "data": {"label_values": [0, 1], "channels": 1, "patch_size": [32, 32], "foreground_ratio": 0.0},
        "network": {"name": "basic_unet", "features": 4},
        "batch": {"labeled": 2, "unlabeled": 2},
        "optim": {"warmup_steps": 0},
    }
    length = {"length": {"steps": steps, "steps_per_epoch": per_epoch}}
    return build_config(merge_layers([Layer("--test", stand_ins), Layer("--test", length), Layer("--test", sections)]))[
        0
    ]


def run_tiny(out: Path, data: Path, *settings: dict[str, Any], **request: Any) -> TrainResult:
    """Train with a file of settings, over which the options of the request lie."""
    layers = [Layer("file.yaml", TINY, is_file=True), Layer("--data", {"data": {"root": str(data)}})]
    return train(TrainRequest((*layers, *(Layer("--test", s) for s in settings)), out, **request))


def weights_of(run: RunDir) -> dict[str, torch.Tensor]:
    loaded = load_checkpoint(run.last)
    return {f"{part}.{name}": v for part in ("student", "teacher") for name, v in getattr(loaded, part).items()}


def same_bits(a: RunDir, b: RunDir) -> bool:
    one, two = weights_of(a), weights_of(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def records_of(run: RunDir) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in r.items() if not k.startswith("machine/") and k != "train/seconds_per_step"}
        for r in run.read_metrics()
    ]


class TestArithmetic:
    @pytest.mark.parametrize("per_epoch", [1, 7, 50, 51, 100])
    def test_looks_are_those_of_the_loop(self, per_epoch: int) -> None:
        for steps in (1, 2, 6, 7, 8, 20, 49, 50, 51, 99, 100, 101, 350):
            config = make_config(steps, per_epoch)
            schedule = Schedule(steps, per_epoch, EARLY)
            for first in (n for n in (0, 1, 5, 7, 20, 60, 100, 230) if n < steps):
                looks = sum(schedule.probes(step) for step in range(first + 1, steps + 1)) + (first == 0)
                assert count_looks(config, steps, first) == looks, (steps, first)

    def test_seconds_add_up(self) -> None:
        # 8 looks in the first epoch (0, 1, 2, 5, 10, 20, 50, 100), and at 200 and 250
        assert estimate_seconds(PACE, make_config(), 250) == 250 * 0.5 + 10 * 2.0 + 3.0 + 10.0
        assert estimate_seconds(PACE, make_config(), 250, first=200) == 50 * 0.5 + 2.0 + 3.0 + 10.0

    @pytest.mark.parametrize(("seconds", "steps"), [(79, 100), (81.4, 100), (81.5, 101), (82, 102), (82.4, 102)])
    def test_as_many_steps_as_fit(self, seconds: float, steps: int) -> None:
        """100 steps take 79 s; one more takes 0.5 s, and the look at its end, which is that of the run, 2 s."""
        assert plan_steps(PACE, make_config(), seconds / 60, warmup=0) == steps

    def test_one_step_more_would_not_fit(self) -> None:
        config = make_config(per_epoch=13)
        for seconds in np.linspace(60, 900, 57):
            steps = plan_steps(PACE, config, seconds / 60, warmup=0)
            assert estimate_seconds(PACE, config, steps) <= seconds + 1e-9
            assert estimate_seconds(PACE, config, steps + 1) > seconds

    def test_a_warm_up_that_was_asked_for_is_gone_beyond(self) -> None:
        config = make_config(per_epoch=10)
        assert plan_steps(PACE, config, 1, warmup=0) < 60
        for warmup in (58, 59, 60, 61):
            fits = estimate_seconds(PACE, config, warmup + 1) / 60
            assert plan_steps(PACE, config, fits, warmup=warmup) == warmup + 1
            with pytest.raises(ConfigError, match=f"the warm-up takes {warmup} steps"):
                plan_steps(PACE, config, fits - 0.01, warmup=warmup)

    def test_too_short_names_a_time_that_works(self) -> None:
        with pytest.raises(ConfigError, match=r"--minutes 1\.3 is too short: one epoch takes 100 steps") as caught:
            plan_steps(PACE, make_config(), 1.3, warmup=0)  # 79 s are needed, and 78 are there
        assert "there is time for 99 " not in str(caught.value)
        shortest = float(str(caught.value).split("at least --minutes ")[1].split(",")[0])
        assert shortest == 1.5  # a tenth more than 79 s, in tenths of a minute
        slower = Pace(*(1.1 * v for v in (PACE.update, PACE.look, PACE.reading, PACE.scoring)))
        assert plan_steps(slower, make_config(), shortest, warmup=0) >= 100

    @pytest.mark.parametrize("minutes", [1e-9, 0.1])
    def test_no_time_at_all_is_too_short(self, minutes: float) -> None:
        with pytest.raises(ConfigError, match="there is time for 0 "):
            plan_steps(PACE, make_config(), minutes, warmup=0)

    def test_no_end_of_time(self) -> None:
        assert plan_steps(PACE, make_config(), 1e12, warmup=0) < ANY_STEPS

    def test_words(self) -> None:
        assert describe_pace(PACE) == "0.5 s a step, 2 s a look, 10 s for the final scores, 3 s to read the images"
        assert "read" not in describe_pace(replace(PACE, reading=0.9))
        assert [describe_seconds(s) for s in (99, 100, 5399, 5400)] == [
            "99 s",
            "1.7 minutes",
            "90.0 minutes",
            "1.5 hours",
        ]


class TestOneLength:
    STEPS = Layer("--steps 5", {"length": {"steps": 5}})
    SET = Layer("--set length.steps=7", {"length": {"steps": 7}}, is_option=True)
    FILE = Layer("a.yaml", {"length": {"steps": 9}}, is_file=True)
    OTHER = Layer("--set length.steps_per_epoch=7", {"length": {"steps_per_epoch": 7}}, is_option=True)

    @pytest.mark.parametrize(
        ("layers", "epochs", "minutes", "named"),
        [
            ((STEPS,), 2, None, "--steps 5 and --epochs 2"),
            ((STEPS,), None, 2.5, r"--steps 5 and --minutes 2\.5"),
            ((FILE, SET), None, 2.0, "--set length.steps=7 and --minutes 2 "),
            ((), 3, 2.0, "--epochs 3 and --minutes 2 "),
        ],
    )
    def test_two_are_refused(self, layers: Any, epochs: int | None, minutes: float | None, named: str) -> None:
        with pytest.raises(ConfigError, match=named):
            check_length(layers, epochs, minutes)

    @pytest.mark.parametrize("layers", [(), (FILE,), (FILE, OTHER)])
    def test_an_option_takes_the_place_of_a_file(self, layers: Any) -> None:
        check_length(layers, None, 2.0)
        check_length(layers, 2, None)
        check_length((*layers, self.STEPS, self.SET), None, None)

    @pytest.mark.parametrize("minutes", [0.0, -1.0, math.inf, math.nan])
    def test_minutes_are_a_positive_number(self, minutes: float) -> None:
        with pytest.raises(ConfigError, match="must be a positive number"):
            check_length((), None, minutes)


@pytest.mark.parametrize("patch", [(32, 32), (96, 96), (128, 96), (16, 32, 32), (30, 33, 48)])
def test_windows_are_those_of_monai(patch: tuple[int, ...]) -> None:
    for extra in (-5, 0, 1, 23, 24, 25, 100):
        shape = tuple(max(n + extra * (axis + 1), 1) for axis, n in enumerate(patch))
        padded = tuple(map(max, shape, patch))
        interval = _get_scan_interval(padded, patch, len(patch), (timing.OVERLAP,) * len(patch))
        assert timing.count_windows(shape, patch) == len(dense_patch_slices(padded, patch, interval))


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float, result: Any = None) -> Any:
        self.now += seconds
        return result


class Store:
    """Three validation cases; what was read once is in memory, if it fits."""

    def __init__(self, clock: Clock, *, fits: bool) -> None:
        shapes = {"a": (64, 64), "b": (32, 40), "c": (128, 64)}
        facts = {i: SimpleNamespace(shape=s, spacing=None) for i, s in shapes.items()}
        self.catalog, self.fits, self.clock = SimpleNamespace(facts=facts), fits, clock

    def load_whole(self, case_id: str) -> Any:
        assert case_id == "b", "the smallest one"
        return self.clock.sleep(0.4, SimpleNamespace(image=np.zeros((1, 32, 40), np.float32), spacing=None))


class Source:
    labeled, unlabeled = ("l0", "l1"), tuple(f"u{n}" for n in range(10))

    def __init__(self, clock: Clock, *, fits: bool) -> None:
        self.store, self.clock, self.seen = Store(clock, fits=fits), clock, set[int]()

    def __getitem__(self, step: int) -> Batch:
        self.clock.sleep(0.25 if step in self.seen else 1.25)
        self.seen.add(step)
        nothing = torch.empty(0)
        return Batch(nothing, nothing, nothing, nothing, (f"l{step % 2}", f"u{step}"))


class FakeEngine:
    """Steps take 9 s at first, then 2 s, but for one hiccup."""

    def __init__(self, clock: Clock) -> None:
        self.fabric = SimpleNamespace(device=torch.device("cpu"), broadcast=lambda value: value)
        self.clock, self.steps, self.rates = clock, list[int](), list[float]()
        self.plain = SimpleNamespace(student=None, teacher=None)

    def step(self, batch: Batch, step: int, lr: float) -> None:
        torch.rand(3)  # a step may use the random stream
        self.steps.append(step)
        self.rates.append(lr)
        self.clock.sleep({0: 9.0, 1: 9.0, 4: 50.0}.get(step, 2.0))


@dataclass(frozen=True)
class FakeMonitor:
    clock: Clock
    val: Probe
    train: Probe

    def look(self, *_: Any) -> None:
        self.clock.sleep(0.1 * (len(self.val.image) + len(self.train.image)))


def make_fake_monitor(clock: Clock, patches: int) -> FakeMonitor:
    image = torch.arange(float(patches)).view(-1, 1, 1, 1)
    probe = Probe(image, image[:, 0])
    return FakeMonitor(clock, probe, probe)


def measure(
    monkeypatch: pytest.MonkeyPatch, *, workers: int = 0, seconds: float | None = 1e9, fits: bool = True,
    patches: int = 8, **sections: Any,
) -> tuple[Pace, FakeEngine]:  # fmt: skip
    clock = Clock()
    engine, monitor = FakeEngine(clock), make_fake_monitor(clock, patches)
    monkeypatch.setattr(timing, "Predictor", lambda *_, **__: lambda *_: clock.sleep(0.6))
    config = make_config(**{"steps": 800, **sections})
    pace = timing.measure_pace(
        engine, monitor, Source(clock, fits=fits), config, ("a", "b", "c"), workers=workers, seconds=seconds, now=clock
    )  # type: ignore[arg-type]  # fmt: skip
    assert len(monitor.val.image) == patches  # the run looks at all of them
    return pace, engine


class TestLoaderProcesses:
    @pytest.mark.parametrize(
        ("load", "most", "planned"),
        [(0.0, 8, 0), (0.005, 8, 0), (0.006, 8, 1), (0.05, 8, 1), (0.1, 8, 2), (0.3, 8, 5), (0.3, 3, 3), (0.3, 0, 0)],
    )
    def test_as_many_as_keep_up_with_the_networks(self, load: float, most: int, planned: int) -> None:
        pace = Pace(update=0.1, look=0, reading=0, scoring=0, load=load)
        assert plan_workers(pace, most) == planned
        assert most < planned + 1 or replace(pace, workers=planned).step <= 1.05 * pace.update + 1e-9

    @pytest.mark.parametrize(
        ("device", "workers", "method", "used"),
        [("cuda", "auto", "fork", 2), ("cpu", "auto", "fork", 0), ("cuda", 0, "fork", 0), ("cuda", "auto", "spawn", 0)],
    )
    def test_are_planned_on_a_gpu_unless_they_are_given(
        self, device: str, workers: int | str, method: str, used: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fabric = SimpleNamespace(device=torch.device(device), is_global_zero=True, broadcast=lambda value: value)
        monkeypatch.setattr(assembly, "get_start_method", lambda: method)
        monkeypatch.setattr(assembly, "count_possible_workers", lambda *_: 5)
        pace, told = replace(PACE, load=PACE.update), list[str]()
        console = SimpleNamespace(note=told.append)
        settled = assembly.settle_workers(fabric, make_config(runtime={"workers": workers}), pace, console)  # type: ignore[arg-type]
        assert settled == replace(pace, workers=used)
        assert len(told) == bool(used)


class TestMeasuring:
    def test_exact_figures(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace, engine = measure(monkeypatch)
        assert engine.steps == list(range(timing.WARM_STEPS + timing.TIMED_STEPS))
        assert set(engine.rates) == {0.0}
        assert pace.step == pytest.approx(2.0 + 0.25)
        assert pace.look == pytest.approx(1.6)  # 16 patches, of which 4 were looked at
        # 7 steps read 9 cases for 1 s more than from memory; there are 12
        assert pace.reading == pytest.approx(7 / 9 * 12)
        # windows of 32: 3 x 3, 1 x 2 and 5 x 3, of which the 1 x 2 took 0.6 s; six passes; 13,568 voxels, not 1,280
        assert pace.scoring == pytest.approx(6 * 26 * 0.3 + 0.4 * 13568 / 1280)

    def test_an_average_of_weights_is_scored_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pace, _ = measure(monkeypatch, policies={"swa": {"start_epoch": 1}})
        assert pace.scoring == pytest.approx(7 * 26 * 0.3 + 0.4 * 13568 / 1280)

    @pytest.mark.parametrize(("workers", "step"), [(0, 3.25), (1, 2.0), (2, 2.0)])
    def test_data_that_do_not_fit_are_read_in_each_step(
        self, monkeypatch: pytest.MonkeyPatch, workers: int, step: float
    ) -> None:
        pace, _ = measure(monkeypatch, fits=False, workers=workers)
        assert (pace.step, pace.reading) == (pytest.approx(step), 0.0)

    @pytest.mark.parametrize(("workers", "step"), [(1, 5.0), (2, 2.5), (4, 2.0)])
    def test_slow_loading_is_shared_by_the_workers(
        self, monkeypatch: pytest.MonkeyPatch, workers: int, step: float
    ) -> None:
        monkeypatch.setattr(
            Source, "__getitem__", lambda self, _: self.clock.sleep(5.0, Batch(*[torch.empty(0)] * 4, ("u",)))
        )
        assert measure(monkeypatch, workers=workers)[0].step == pytest.approx(step)

    def test_a_short_run_is_measured_shortly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before the third step 0.4 + 0.4 + 1.2 + 2 * 10.5 s have passed; it takes 3.5 s itself."""
        spent = 0.4 + 0.4 + 1.2 + 2 * 10.5 + 3.5
        for seconds, steps in ((1.0, 3), ((spent - 0.1) / 0.03, 3), ((spent + 0.1) / 0.03, 4), (1e9, 7)):
            assert len(measure(monkeypatch, seconds=seconds)[1].steps) == steps
        assert len(measure(monkeypatch, seconds=None, steps=10)[1].steps) == 3
        assert len(measure(monkeypatch, seconds=None, steps=10**6)[1].steps) == 7

    @pytest.mark.parametrize(("patches", "seen"), [(1, 1), (3, 1), (4, 1), (5, 2), (32, 8)])
    def test_a_part_of_the_probe(self, monkeypatch: pytest.MonkeyPatch, patches: int, seen: int) -> None:
        small, share = timing._cut_probes(make_fake_monitor(Clock(), patches))  # type: ignore[arg-type]
        assert (len(small.val.image), share) == (seen, seen / patches)
        assert measure(monkeypatch, patches=patches)[0].look == pytest.approx(0.2 * patches)

    def test_the_random_stream_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = torch.random.get_rng_state()
        measure(monkeypatch)
        assert torch.equal(torch.random.get_rng_state(), before)


BATCH_NORM = {"network": {"norm": "batch"}, "augment": {"cutmix": 0.5}, "split": {"labels": 0.5}}


class TestRuns:
    def test_measuring_changes_nothing(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = run_tiny(tmp_path / "plain", particles_dir, BATCH_NORM).run
        monkeypatch.setattr(training, "FEWEST_MEASURED", 1)
        measured = run_tiny(tmp_path / "measured", particles_dir, BATCH_NORM).run
        assert [e["event"] for e in measured.read_events()].count("estimate") == 1
        assert "estimate" not in [e["event"] for e in plain.read_events()]
        assert same_bits(plain, measured)
        assert records_of(plain) == records_of(measured)

        def measure_itself(engine: Any, monitor: Any, source: Any, *_: Any, **__: Any) -> Pace:
            engine.step(source[0], 0, 0.0)
            return PACE

        # Negative control: a step of the network itself changes its BatchNorm statistics, even with rate 0.
        monkeypatch.setattr(training, "measure_pace", measure_itself)
        monkeypatch.setattr(training.copy, "deepcopy", keep_networks(training.copy.deepcopy))
        assert not same_bits(plain, run_tiny(tmp_path / "itself", particles_dir, BATCH_NORM).run)

    @pytest.mark.parametrize(("steps", "measured"), [(-1, False), (0, True), (1, True)])
    def test_short_runs_are_not_measured(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, measured: bool
    ) -> None:
        monkeypatch.setattr(training, "FEWEST_MEASURED", 12)
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        notes = Notes()
        layers = (
            Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}}),
            Layer("--steps", {"length": {"steps": 12 + steps}}),
        )  # fmt: skip
        run = train(TrainRequest(layers, tmp_path / "run"), notes).run
        found = [e for e in run.read_events() if e["event"] == "estimate"]
        assert bool(found) == measured
        assert any(n.startswith("time: about") and "0.5 s a step" in n for n in notes.texts) == measured
        assert any(n.startswith("time: it took") for n in notes.texts) == measured
        if found:
            seconds = estimate_seconds(PACE, make_config(per_epoch=6), 12 + steps)
            assert (found[0]["steps"], found[0]["seconds"], found[0]["step"]) == (12 + steps, seconds, 0.5)
        assert FEWEST_MEASURED == 200

    def test_minutes_are_steps(self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        config = make_config(per_epoch=6)
        minutes = estimate_seconds(PACE, config, 15) / 60
        timed = run_tiny(tmp_path / "timed", particles_dir, minutes=minutes).run
        text = (timed.path / "config.yaml").read_text()
        settings = yaml.safe_load(text)
        assert settings["length"] == {"steps": 15, "steps_per_epoch": 6, "snapshots": 0}
        assert settings["optim"]["warmup_steps"] == 1
        assert f"planned: length.steps = 15 ({minutes:g} minutes on this machine: 0.5 s a step" in text
        assert "planned: optim.warmup_steps = 1 (" in text
        assert load_checkpoint(timed.last).config == settings
        given = run_tiny(tmp_path / "given", particles_dir, {"length": {"steps": 15}}).run
        assert same_bits(timed, given)
        assert records_of(timed) == records_of(given)

    def test_a_warm_up_that_was_asked_for_stays(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        minutes = estimate_seconds(PACE, make_config(per_epoch=6), 10) / 60
        given = {"optim": {"warmup_steps": 9}}
        run = run_tiny(tmp_path / "run", particles_dir, given, minutes=minutes).run
        settings = yaml.safe_load((run.path / "config.yaml").read_text())
        assert (settings["length"]["steps"], settings["optim"]["warmup_steps"]) == (10, 9)
        with pytest.raises(ConfigError, match="the warm-up takes 10 steps"):
            run_tiny(tmp_path / "no", particles_dir, {"optim": {"warmup_steps": 10}}, minutes=minutes)

    def test_the_length_of_a_parent_does_not_count(
        self, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        minutes = estimate_seconds(PACE, make_config(per_epoch=6), 9) / 60
        parent = RunDir(tiny_run).best
        request = TrainRequest((), tmp_path / "child", parent, force=True, minutes=minutes)
        assert train(request).step == 9
        with pytest.raises(ConfigError, match="--steps 5 and --minutes"):
            train(replace(request, layers=(Layer("--steps 5", {"length": {"steps": 5}}),), out=tmp_path / "two"))

    def test_too_short_writes_nothing(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        monkeypatch.chdir(tmp_path)
        small = ["--network", "basic_unet", "--set", "network.features=4", "--set", "data.patch_size=[32,32]"]
        monkeypatch.setattr(sys, "argv", ["ssl-seg", "train", "--data", str(particles_dir), *small, "--minutes", "0.2"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        assert "ssl-seg: error: --minutes 0.2 is too short: one epoch takes 100 steps" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_interrupted_while_measuring_leaves_nothing(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: Any, **__: Any) -> Pace:
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "measure_pace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(tmp_path / "run", particles_dir, minutes=1)
        assert not list(tmp_path.iterdir())

    def test_a_resumed_run_keeps_its_steps(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: PACE)
        monkeypatch.setattr(training, "FEWEST_MEASURED", 6)
        whole = run_tiny(tmp_path / "whole", particles_dir, {"length": {"steps": 15}}).run
        minutes = estimate_seconds(PACE, make_config(per_epoch=6), 15) / 60
        with monkeypatch.context() as patch:
            patch.setattr(training, "stop_flag", stop_after(7))
            run = run_tiny(tmp_path / "run", particles_dir, minutes=minutes).run
        with pytest.raises(ConfigError, match="--minutes 3: --resume trains to the number of steps"):
            train(TrainRequest(resume=run.path, minutes=3.0))
        train(TrainRequest(resume=run.path))
        assert same_bits(whole, run)
        estimates = [e for e in run.read_events() if e["event"] == "estimate"]
        assert [e["steps"] for e in estimates] == [15, 8]
        assert estimates[1]["seconds"] == estimate_seconds(PACE, make_config(per_epoch=6), 15, first=7)

    @pytest.mark.slow
    def test_a_real_run_ends_with_the_recorded_steps(self, particles_dir: Path, tmp_path: Path) -> None:
        for minutes in (0.1, 0.4, 1.6):  # the first of them is too short on a slow or busy machine
            try:
                result = run_tiny(tmp_path / f"run{minutes}", particles_dir, minutes=minutes)
                break
            except ConfigError:
                assert minutes < 1.6
        settings = yaml.safe_load((result.run.path / "config.yaml").read_text())
        (estimate,) = [e for e in result.run.read_events() if e["event"] == "estimate"]
        assert result.step == settings["length"]["steps"] == estimate["steps"] >= 6
        assert estimate["seconds"] <= 60 * minutes
        assert result.run.read_metrics()[-1]["step"] == result.step

    @pytest.mark.ddp
    def test_all_processes_make_the_same_number_of_steps(self, particles_dir: Path, tmp_path: Path) -> None:
        """The clock of the second one runs three times as fast: by itself it would plan a third of the steps."""
        code = """
import itertools, json, sys
from functools import partial
from pathlib import Path
from ssl_seg.cli.main import main
from ssl_seg.engine import timing
from ssl_seg.run import training

def measure(engine, *args, **options):
    rank = engine.fabric.global_rank
    ticks = itertools.count(step=0.1 * (1 + 2 * rank))
    pace = timing.measure_pace(engine, *args, **options, now=partial(next, ticks))
    Path(folder, f"rank{rank}.json").write_text(json.dumps(pace.step))
    return pace

folder = sys.argv.pop(1)
training.measure_pace = measure
main()
"""
        small = ["--network", "basic_unet", "--set", "network.features=4", "--set", "data.patch_size=[32,32]"]
        command = ["-c", code, str(tmp_path), "train", "--data", str(particles_dir), "--out", str(tmp_path / "run")]
        command += ["--devices", "2", "--minutes", "0.15", "--set", "length.steps_per_epoch=6", *small]
        process = run_program(command, tmp_path)
        assert process.returncode == 0, process.stderr
        assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)] == [
            pytest.approx(0.2)
        ] * 2
        run = RunDir(tmp_path / "run")
        steps = yaml.safe_load((run.path / "config.yaml").read_text())["length"]["steps"]
        assert load_checkpoint(run.last).progress.step == steps


def keep_networks(deepcopy: Any) -> Any:
    """What the method has built is not copied for the measurement; all else is copied."""
    kept = list[Any]()

    def copy(value: Any, *rest: Any) -> Any:
        if isinstance(value, Built) and not kept and not rest:
            kept.append(value)
            return value
        return deepcopy(value, *rest)

    return copy


class TestSeries:
    """The first training is measured; the others have its number of steps."""

    @pytest.fixture
    def paces(self, monkeypatch: pytest.MonkeyPatch) -> list[Pace]:
        """Paces that are measured one after the other: the machine gets slower."""
        waiting = [replace(PACE, update=step) for step in (1000.0, 0.5, 5.0, 5.0)]
        monkeypatch.setattr(training, "measure_pace", lambda *_, **__: waiting.pop(0))
        return waiting

    def layers(self, data: Path, *settings: dict[str, Any]) -> tuple[Layer, ...]:
        shared = (Layer("file.yaml", TINY, is_file=True), Layer("--data", {"data": {"root": str(data)}}))
        return (*shared, *(Layer("--test", s) for s in settings))

    def steps_of(self, *runs: RunDir) -> list[int]:
        return [yaml.safe_load((run.path / "config.yaml").read_text())["length"]["steps"] for run in runs]

    MINUTES = estimate_seconds(PACE, make_config(per_epoch=6), 10) / 60

    def test_rungs(self, particles_dir: Path, tmp_path: Path, paces: list[Pace]) -> None:
        out = tmp_path / "ladder"
        layers = self.layers(particles_dir, nest("bootstrap.gate", "none"))
        request = TrainRequest(layers, out, force=True, minutes=self.MINUTES)
        with pytest.raises(ConfigError, match=r"is too short(?s:.*)ladder --resume"):
            climb_labels(request, (0.25, 1.0))
        assert json.loads((out / "ladder.json").read_text())["settings"]["minutes"] == self.MINUTES
        ladder = climb_labels(TrainRequest(resume=out, minutes=2 * self.MINUTES))
        steps = self.steps_of(*(ladder.run_of(rung) for rung in ladder.trainings))
        assert steps[0] == steps[1] == plan_steps(PACE, make_config(per_epoch=6), 2 * self.MINUTES, warmup=0)
        assert len(paces) == 2
        with pytest.raises(ConfigError, match="planned already"):
            climb_labels(TrainRequest(resume=out, minutes=1.0))

    def test_folds(self, particles_dir: Path, tmp_path: Path, paces: list[Pace]) -> None:
        paces.pop(0)
        layers = self.layers(particles_dir, {"split": {"labels": 0.5, "folds": 2}})
        folds = cross_validate(TrainRequest(layers, tmp_path / "folds", minutes=self.MINUTES))
        assert self.steps_of(*map(folds.run_of, folds.trainings)) == [10, 10]
        assert len(paces) == 2
