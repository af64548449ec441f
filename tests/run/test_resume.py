"""Runs that go on: killed at any point of their end, after their data have moved, for more steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Notes, same_weights, train_tiny

import ssl_seg.run.finish
from ssl_seg.config.layers import Layer
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.errors import ConfigError, DataError, RunDirError
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run import directory as rundir
from ssl_seg.run.console import Silent
from ssl_seg.run.directory import RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import TrainResult, train

Whole = tuple[Path, list[tuple[str, Path]]]
"""A run, and its snapshots."""
SHORT = {
    "split": {"labels": 0.5},
    "network": {"name": "dynunet", "features": 2, "norm": "batch"},
    "length": {"steps": 4, "steps_per_epoch": 2},
    "policies": {"swa": {"start_epoch": 1}},
    "monitor": {"keep_best": 2},
}


@pytest.fixture(scope="module", autouse=True)
def _few_batches_for_batch_norm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl_seg.run.finish, "BATCH_NORM_BATCHES", 2)
        yield


@contextmanager
def snapshots(run: Path, folder: Path) -> Iterator[list[tuple[str, Path]]]:
    """Yield what is written into a run next, and a copy of the run as a kill before that leaves it, in order."""
    taken: list[tuple[str, Path]] = []
    replace, append = Path.replace, rundir.append_jsonl

    def take(path: Path, what: str) -> None:
        if run in path.parents:
            taken.append((f"{path.name}{what}", Path(shutil.copytree(run, folder / str(len(taken))))))

    def replaced(self: Path, target: Path) -> Path:
        take(Path(target), "")
        return replace(self, target)

    def appended(path: Path, record: Any) -> None:
        take(path, f" {record['event']}" if "event" in record else "")
        append(path, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(rundir, "append_jsonl", appended)
        yield taken


def find_snapshot(taken: list[tuple[str, Path]], name: str, number: int = 0) -> Path:
    """Return the copy before a file was written for the first time (0), the second (1), the last (-1)."""
    return [copy for written, copy in taken if written == name][number]


def read_everything(run: RunDir) -> dict[str, Any]:
    """Return all that a run leaves behind, but for times and the events of sessions."""
    checkpoints = {p.name: torch.load(p, weights_only=True) for p in (run.path / "checkpoints").iterdir()}
    flat = {name: _flatten(content) for name, content in checkpoints.items()}
    metrics = [
        {k: v for k, v in r.items() if not k.startswith("machine/") and "seconds" not in k} for r in run.read_metrics()
    ]
    skipped = ("resumed", "runtime", "started")
    events = [{k: v for k, v in e.items() if k != "time"} for e in run.read_events() if e["event"] not in skipped]
    return {**flat, "metrics": metrics, "events": events, "scores": json.loads((run.path / "scores.json").read_text())}


def _flatten(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()  # so that NaN equals NaN
    if isinstance(value, float):
        return str(value)
    if isinstance(value, dict):
        return {str(k): _flatten(v) for k, v in value.items()}
    return [_flatten(v) for v in value] if isinstance(value, list | tuple) else value


class TestKilledAtTheEnd:
    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        with snapshots(folder / "run", folder / "copies") as taken:
            train_tiny(folder / "run", particles_dir, SHORT)
        return folder / "run", taken

    def test_the_same_files_whatever_was_written_last(self, whole: Whole, tmp_path: Path) -> None:
        run, taken = whole
        expected = read_everything(RunDir(run))
        names = [name for name, _ in taken]
        last_look = max(n for n, name in enumerate(names) if name == "metrics.jsonl")
        assert {"last.pt", "best.pt", "swa.pt", "scores.json", "events.jsonl finished"} <= {*names[last_look:]}
        for name, copy in taken[last_look:]:
            killed = Path(shutil.copytree(copy, tmp_path / copy.name))
            result = train(TrainRequest(resume=killed))
            assert result.ending == "finished"
            assert read_everything(result.run) == expected, f"killed before {name} was written"
            assert (result.run.read_ending() or {})["event"] == "finished"

    def test_killed_twice(self, whole: Whole, tmp_path: Path) -> None:
        run, taken = whole
        killed = Path(shutil.copytree(find_snapshot(taken, "scores.json"), tmp_path / "killed"))
        with snapshots(killed, tmp_path / "again") as again:
            train(TrainRequest(resume=killed))
        for name in ("swa.pt", "scores.json", "events.jsonl finished"):
            result = train(TrainRequest(resume=find_snapshot(again, name)))
            assert read_everything(result.run) == read_everything(RunDir(run)), name

    @pytest.mark.parametrize("how", ["stopped_early", "collapsed"])
    def test_other_endings(
        self, how: str, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings: dict[str, Any] = {**SHORT, "length": {"steps": 40, "steps_per_epoch": 2}}
        settings["optim"] = {"warmup_steps": 1}
        if how == "stopped_early":
            settings["policies"] = {"early_stopping": {"patience": 1}}
        else:
            settings["monitor"] = {"on_collapse": "stop"}
            settings["optim"] |= {"lr": 1e30, "clip_norm": None}
        run = tmp_path / "run"
        with snapshots(run, tmp_path / "copies") as taken:
            whole = train_tiny(run, particles_dir, settings)
        assert whole.ending == how
        killed = find_snapshot(taken, f"events.jsonl {how}", -1)
        assert RunDir(killed).read_ending() is None
        resumed = train(TrainRequest(resume=killed))
        assert (resumed.ending, resumed.step) == (how, whole.step)
        assert resumed.verdict.key == whole.verdict.key
        assert read_everything(resumed.run) == read_everything(whole.run)
        with pytest.raises(RunDirError, match="policies ended it early" if how == "stopped_early" else "its monitor"):
            train(TrainRequest(resume=killed))

    def test_files_that_a_kill_left_half_written_are_removed(self, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        (run / "events.jsonl").write_text("")
        for name in (".scores.json.0123abcd.part", "checkpoints/.last.pt.0123abcd.part"):
            (run / name).write_text("half")
        train(TrainRequest(resume=run))
        assert not list(run.rglob("*.part"))


class TestMovedData:
    @pytest.fixture(scope="class")
    def made(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A run, ``whole``, one that was killed after its first epoch, ``run``, and their data, moved to ``new``."""
        folder = tmp_path_factory.mktemp("moved")
        write_dataset(folder / "old", "particles", 16)
        with snapshots(folder / "whole", folder / "copies") as taken:
            train_tiny(folder / "whole", folder / "old", SHORT)
        find_snapshot(taken, "last.pt", 2).rename(folder / "run")
        (folder / "old").rename(folder / "new")
        shutil.rmtree(folder / "copies")
        return folder

    @pytest.fixture
    def begun(self, made: Path, tmp_path: Path) -> Path:
        """The killed run, in a copy of all."""
        shutil.copytree(made, tmp_path, dirs_exist_ok=True)
        return tmp_path / "run"

    def resume(self, run: Path, data: Path, console: Silent | None = None) -> TrainResult:
        return train(TrainRequest((Layer(f"--data {data}", {"data": {"root": str(data)}}),), resume=run), console)

    def test_go_on_where_they_are_now(self, begun: Path, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"old.* does not exist. If it has moved: ssl-seg train --resume .* --data NEW"
        ):
            train(TrainRequest(resume=begun))
        assert self.resume(begun, tmp_path / "new").ending == "finished"
        assert yaml.safe_load((begun / "config.yaml").read_text())["data"]["root"] == str(tmp_path / "new")
        for path in (begun / "checkpoints").iterdir():
            assert load_checkpoint(path).config["data"]["root"] == str(tmp_path / "new"), path
        assert evaluate(EvaluateRequest(begun / "checkpoints" / "best.pt"))["cases"]
        assert same_weights(RunDir(tmp_path / "whole").last, begun / "checkpoints" / "last.pt")

    def test_of_a_finished_run(self, begun: Path, tmp_path: Path) -> None:
        run = tmp_path / "whole"
        before = (run / "scores.json").read_bytes()
        result = self.resume(run, tmp_path / "new")
        assert (result.ending, result.step) == ("finished", 4)
        assert evaluate(EvaluateRequest(run / "checkpoints" / "best.pt"))["cases"]
        assert (run / "scores.json").read_bytes() == before
        with pytest.raises(RunDirError, match="is finished"):
            self.resume(run, tmp_path / "new")

    def test_others_are_refused_and_named(self, begun: Path, tmp_path: Path) -> None:
        new = tmp_path / "new"
        images, masks = sorted((new / "images").iterdir()), sorted((new / "masks").iterdir())
        split = yaml.safe_load((begun / "split.yaml").read_text())
        files = {p.stem: p for p in images}
        known = [i for i in split["content"] if i in files]
        files[known[0]].unlink()
        next(m for m in masks if m.stem == known[0]).unlink()
        shutil.copyfile(files[known[2]], files[known[1]])
        mask = {m.stem: m for m in masks}
        shutil.copyfile(mask[known[4]], mask[known[3]])
        before = {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()}
        with pytest.raises(DataError, match="does not hold the data of") as raised:
            self.resume(begun, new)
        text = str(raised.value)
        assert f"3 of {len(split['content'])} cases differ" in text
        for case, what in (
            (known[0], "is missing"),
            (known[1], "is a different image"),
            (known[3], "has a different mask"),
        ):
            assert f"'{case}' {what}" in text
        assert {p: p.read_bytes() for p in begun.rglob("*") if p.is_file()} == before

    @pytest.mark.parametrize("count", [4, 5, 6, 12])
    def test_only_the_first_are_named(self, begun: Path, tmp_path: Path, count: int) -> None:
        new = tmp_path / "new"
        content = yaml.safe_load((begun / "split.yaml").read_text())["content"]
        for case in list(content)[:count]:
            for part in ("images", "masks"):
                (new / part / f"{case}.png").unlink()
        with pytest.raises(DataError) as raised:
            self.resume(begun, new)
        text = str(raised.value)
        assert text.count("\n- ") == min(count, 5)
        assert ("more" in text) == (count > 5)
        assert count <= 5 or f"and {count - 5} more" in text


class TestMoreSteps:
    STEADY: dict[str, Any] = {  # noqa: RUF012
        "split": {"labels": 0.5},
        "method": {"options": {"rampup_steps": 4}},
        "optim": {"schedule": "constant", "warmup_steps": 2},
    }

    @pytest.fixture(scope="class")
    def whole(self, tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> Whole:
        folder = tmp_path_factory.mktemp("steady")
        with snapshots(folder / "run", folder / "copies") as taken:
            train_tiny(folder / "run", particles_dir, self.STEADY)
        return folder / "run", taken

    @pytest.fixture
    def steady(self, whole: Whole, tmp_path: Path) -> Path:
        """A copy of it, to go on with."""
        return Path(shutil.copytree(whole[0], tmp_path / "run"))

    def resume(self, run: Path, steps: int, notes: Notes | None = None, **request: Any) -> TrainResult:
        layers = (Layer(f"--steps {steps}", {"length": {"steps": steps}}),) if steps else ()
        return train(TrainRequest(layers, resume=run, **request), notes)

    def test_are_those_of_a_longer_run_where_no_schedule_depends_on_the_length(
        self, steady: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        long = train_tiny(tmp_path / "long", particles_dir, self.STEADY, {"length": {"steps": 24}})
        notes = Notes()
        result = self.resume(steady, 24, notes)
        assert (result.ending, result.step) == ("finished", 24)
        assert any("24 steps in place of 12; no schedule depends on it" in note for note in notes.texts)
        assert not any("was edited" in note for note in notes.texts)
        ours, theirs = load_checkpoint(result.run.last), load_checkpoint(long.run.last)
        assert same_weights(result.run.last, long.run.last)
        assert ours.progress == theirs.progress
        assert ours.config == theirs.config
        assert [r["step"] for r in result.run.read_metrics()] == [r["step"] for r in long.run.read_metrics()]
        scores = json.loads((result.run.path / "scores.json").read_text())
        assert scores["step"] == 24
        assert (result.run.read_ending() or {})["step"] == 24
        assert yaml.safe_load((result.run.path / "config.yaml").read_text())["length"]["steps"] == 24
        with pytest.raises(RunDirError, match=r"all 24 steps are done.*--steps 48"):
            self.resume(steady, 0)

    def test_epochs_give_the_length_too(self, steady: Path) -> None:
        assert self.resume(steady, 0, epochs=3).step == 18

    def test_schedules_over_the_whole_run_are_named_with_their_rates(self, particles_dir: Path, tmp_path: Path) -> None:
        settings = {"optim": {"schedule": "cosine", "lr": 0.1, "warmup_steps": 0},
                    "ema": {"schedule": "linear", "final_decay": 1.0}}  # fmt: skip
        train_tiny(tmp_path / "run", particles_dir, settings)
        notes, config = Notes(), tmp_path / "run" / "config.yaml"
        config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
        self.resume(tmp_path / "run", 24, notes)
        assert any("config.yaml was edited (optim.lr), which changes nothing" in note for note in notes.texts)
        text = next(note for note in notes.texts if "in place of" in note)
        # Half of the cosine is done at step 12 of 24.
        assert "optim.schedule = cosine (the next rate is 0.05, not 0)" in text
        assert "ema.schedule = linear" in text
        assert "method.options.rampup_ratio = 0.4" in text

    @pytest.mark.parametrize("steps", [11, 12])
    def test_fewer_than_are_done_are_refused(self, tiny_run: Path, steps: int) -> None:
        with pytest.raises((ConfigError, RunDirError), match=r"12 steps"):
            self.resume(tiny_run, steps)

    def test_a_run_that_was_stopped_may_end_sooner(self, whole: Whole, tmp_path: Path) -> None:
        shutil.copytree(find_snapshot(whole[1], "last.pt", 2), tmp_path / "run")
        assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").progress.step == 6
        with pytest.raises(ConfigError, match="has done 6 steps, which cannot be taken back"):
            self.resume(tmp_path / "run", 6)
        result = self.resume(tmp_path / "run", 9)
        assert (result.ending, result.step) == ("finished", 9)

    def test_killed_while_it_takes_note_of_them(self, steady: Path, tmp_path: Path) -> None:
        with snapshots(steady, tmp_path / "copies") as taken:
            self.resume(steady, 24)
        first = train(TrainRequest(resume=find_snapshot(taken, "config.yaml")))  # last.pt knows of them
        assert (first.ending, first.step) == ("finished", 24)
        before = find_snapshot(taken, "last.pt")  # nothing knows of them yet
        with pytest.raises(RunDirError, match="all 12 steps are done"):
            self.resume(before, 0)
        assert self.resume(before, 24).step == 24

    def test_other_settings_are_refused(self, tiny_run: Path) -> None:
        layer = Layer("--set", {"length": {"steps_per_epoch": 3}})
        with pytest.raises(
            ConfigError, match=r"length\.steps_per_epoch: --resume continues a run with its own settings"
        ):
            train(TrainRequest((layer,), resume=tiny_run))
        with pytest.raises(ConfigError, match="own directory"):
            train(TrainRequest(resume=tiny_run, out=tiny_run / "other"))
