from __future__ import annotations

import errno
import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, Notes, same_weights, train_tiny
from forking import run
from interruption import interrupted_after, stopping
from score_counts import make_net_score, make_scores

from ssl_seg.config.layers import Layer, dump_config, read_layers
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.splits.files import load_split, save_split
from ssl_seg.data.splits.split import make_split
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import write_mask
from ssl_seg.engine.engine import Engine
from ssl_seg.errors import (
    ConfigError,
    DataError,
    InUseError,
    MachineError,
    RefusedError,
    RunDirError,
    SplitError,
    SslSegError,
)
from ssl_seg.files import hold_directory
from ssl_seg.inference.model import config_of
from ssl_seg.networks.checkpoint import Checkpoint, RunProgress, load_checkpoint, save_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run.console import Silent
from ssl_seg.run.directory import RunDir
from ssl_seg.run.prepare import prepare_run
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.session import Session
from ssl_seg.run.training import train


def rewrite(checkpoint: Path, out: Path, **changes: Any) -> Path:
    save_checkpoint(Checkpoint(**{**vars(load_checkpoint(checkpoint)), **changes}), out)
    return out


class TestRun:
    def test_files_of_a_run(self, tiny_run: Path) -> None:
        files = {p.relative_to(tiny_run).as_posix() for p in tiny_run.rglob("*") if p.is_file()}
        assert files == {
            "config.yaml", "split.yaml", "environment.json", "metrics.jsonl", "events.jsonl", "train.log", "lock",
            "scores.json",
            "checkpoints/last.pt", "checkpoints/best.pt",
        }  # fmt: skip

    def test_records(self, tiny_run: Path) -> None:
        records = RunDir(tiny_run).read_metrics()
        assert [r["step"] for r in records] == [0, 1, 2, 5, 6, 12]
        assert [r["epoch"] for r in records] == [0, 1, 1, 1, 1, 2]
        assert "train/loss" not in records[0]
        assert records[-1]["train/grad_norm"] > 0
        events = [e["event"] for e in RunDir(tiny_run).read_events()]
        assert events[0] == "started"
        assert events[-1] == "finished"

    def test_student_and_teacher_are_the_same_at_step_0(self, tiny_run: Path) -> None:
        first = RunDir(tiny_run).read_metrics()[0]
        for key, value in first.items():
            if key.startswith("val/student/"):
                assert first[key.replace("student", "teacher")] == value

    def test_checkpoint_holds_settings_split_and_scores(self, tiny_run: Path) -> None:
        checkpoint = load_checkpoint(tiny_run / "checkpoints" / "last.pt")
        assert checkpoint.progress.step == checkpoint.progress.ema_updates == 12
        assert checkpoint.split["fingerprint"] == load_split(tiny_run / "split.yaml").fingerprint
        assert checkpoint.scores["source"] == "validation"
        for net in ("student", "teacher"):
            assert checkpoint.scores[net]["margin_low"] is None  # of three cases
        assert checkpoint.parts["optimizer"]["state"]

    def test_the_saved_configuration_repeats_the_run_bit_for_bit(self, tiny_run: Path, tmp_path: Path) -> None:
        again = train(TrainRequest(tuple(read_layers(str(tiny_run / "config.yaml"))), tmp_path / "again"))
        assert same_weights(tiny_run / "checkpoints" / "last.pt", again.run.last)
        saved = [yaml.safe_load((p / "config.yaml").read_text()) for p in (tiny_run, tmp_path / "again")]
        assert saved[0] == saved[1]

    def test_another_seed_gives_another_network_on_the_same_split(
        self, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        other = train_tiny(tmp_path / "other", particles_dir, {"split": {"labels": 0.5}}, {"seed": 1})
        assert not same_weights(tiny_run / "checkpoints" / "last.pt", other.run.last)
        assert load_split(tiny_run / "split.yaml").fingerprint == load_split(other.run.path / "split.yaml").fingerprint

    def test_full_labels_without_unlabeled_images(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", "particles", 12)
        result = train_tiny(tmp_path / "full", tmp_path / "data", {"split": {"labels": 1.0}})
        assert result.ending == "finished"
        assert "train/consistency" not in result.run.read_metrics()[-1]

    def test_3d(self, sheets_dir: Path, tmp_path: Path) -> None:
        settings = {"data": {"patch_size": [16, 32, 32]}, "length": {"steps": 4, "steps_per_epoch": 2}}
        result = train_tiny(tmp_path / "sheets", sheets_dir, settings, {"network": {"name": "dynunet"}})
        assert result.ending == "finished"
        assert result.run.read_metrics()[-1]["val/prevalence_true"] > 0.1

    def test_step_by_step_the_loss_falls(self, particles_dir: Path, tmp_path: Path) -> None:
        """A network must really learn the synthetic images: well above trivial after 80 small steps."""
        settings = {"length": {"steps": 80, "steps_per_epoch": 40}, "network": {"features": 8}, "optim": {"lr": 5e-3}}
        result = train_tiny(tmp_path / "longer", particles_dir, settings)
        assert result.scores["student"]["margin"] > 0.1
        losses = [r["train/loss"] for r in result.run.read_metrics()[1:]]
        assert losses[-1] < losses[0]


class TestRefusals:
    def refuse(
        self, error: type[SslSegError], message: str, out: Path, data: Path | str, *settings: Any, **request: Any
    ) -> None:
        existed = out.exists()
        with pytest.raises(error, match=message):
            train_tiny(out, data, *settings, **request)
        assert out.exists() == existed

    def test_settings(self, particles_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "run"
        self.refuse(ConfigError, "did you mean 'lr'", out, particles_dir, {"optim": {"lrr": 1}})
        self.refuse(ConfigError, "multiple of", out, particles_dir, {"data": {"patch_size": [33, 32]}})
        self.refuse(ConfigError, "did you mean 'dynunet'", out, particles_dir, {"network": {"name": "dynunett"}})
        self.refuse(ConfigError, "did you mean 'dice'", out, particles_dir, {"loss": {"weights": {"dise": 1}}})
        self.refuse(
            ConfigError, "unlabeled = 0", out, particles_dir, {"batch": {"unlabeled": 0}, "split": {"labels": 0.5}}
        )
        self.refuse(SplitError, "labeled training pool has", out, particles_dir, {"split": {"labels": 500}})
        self.refuse(ConfigError, "neither a share", out, particles_dir, {"split": {"labels": 0}})
        self.refuse(ConfigError, "3D", out, particles_dir, {"data": {"patch_size": [32, 32, 32]}})

    def test_data(self, particles_dir: Path, tmp_path: Path) -> None:
        self.refuse(DataError, "nowhere", tmp_path / "run", tmp_path / "nowhere")
        (tmp_path / "empty" / "images").mkdir(parents=True)
        self.refuse(DataError, "empty", tmp_path / "run", tmp_path / "empty")

    def test_an_existing_run(self, tiny_run: Path, particles_dir: Path) -> None:
        before = (tiny_run / "metrics.jsonl").read_bytes()
        self.refuse(RunDirError, "--resume", tiny_run, particles_dir)
        assert (tiny_run / "metrics.jsonl").read_bytes() == before

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"data": {"resample_to": [2, 2]}}, "24 images do not say how large a voxel is"),
            ({"augment": {"cutmix": 0.5}, "batch": {"unlabeled": 1}, "split": {"labels": 0.5}}, "at least 2"),
            ({"split": {"folds": 3, "file": "a.yaml"}}, "give one of them"),
        ],
    )
    def test_settings_that_cannot_work(
        self, settings: dict[str, Any], message: str, particles_dir: Path, tmp_path: Path
    ) -> None:
        self.refuse(SslSegError, message, tmp_path / "run", particles_dir, settings)

    def test_no_unlabeled_image_beyond_the_data_set(self, particles_dir: Path, tmp_path: Path) -> None:
        own = {"data": {"unlabeled": str(particles_dir / "images")}}
        self.refuse(SplitError, "all its images are cases of", tmp_path / "run", particles_dir, own)

    def test_masks_without_any_foreground(self, tmp_path: Path) -> None:
        write_dataset(tmp_path / "data", "particles", 8)
        for path in (tmp_path / "data" / "masks").iterdir():
            write_mask(path, np.zeros((128, 128), np.uint8))
        self.refuse(SplitError, "nothing to learn", tmp_path / "run", tmp_path / "data")

    def test_a_fault_that_is_allowed_is_recorded_and_still_known_later(
        self, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        """A labeled image becomes a copy of a test image: the split file knows nothing of it, the run must."""
        data = shutil.copytree(particles_dir, tmp_path / "data")
        split = load_split(tiny_run / "split.yaml")
        first, sealed = split.fractions[1.0][0], split.test[0]
        for folder in ("images", "masks"):
            shutil.copy(data / folder / f"{sealed}.png", data / folder / f"{first}.png")
        settings = {"split": {"file": str(tiny_run / "split.yaml"), "labels": 0.5}}
        self.refuse(SplitError, r"(?s)duplicate_content.*--allow-split", tmp_path / "run", data, settings)
        settings["split"]["allow_faults"] = True
        run = train_tiny(tmp_path / "run", data, settings).run
        (event,) = [e for e in run.read_events() if e["event"] == "split_allowed"]
        assert {"duplicate_content", "changed_content"} <= {f["code"] for f in event["findings"]}
        with pytest.raises(SplitError, match="were labeled training cases"):
            evaluate(EvaluateRequest(run.best, part="test"))

    def test_a_split_of_other_data(self, particles_dir: Path, sheets_dir: Path, tmp_path: Path) -> None:
        split = make_split(open_catalog(str(sheets_dir)), [1.0])
        save_split(split, tmp_path / "sheets.yaml")
        self.refuse(
            SplitError,
            "cannot be trusted",
            tmp_path / "run",
            particles_dir,
            {"split": {"file": str(tmp_path / "sheets.yaml")}},
        )


class TestBootstrap:
    @pytest.fixture
    def parent(self, tiny_run: Path, tmp_path: Path) -> Path:
        """A parent that is above trivial by its recorded scores; the student is the better net."""
        scores = make_scores(make_net_score(0.7), make_net_score(0.6), trivial=0.5)
        return rewrite(tiny_run / "checkpoints" / "last.pt", tmp_path / "parent.pt", scores=scores)

    def bootstrap(self, parent: Path, out: Path, *settings: dict[str, Any], force: bool = False) -> Any:
        layers = tuple(Layer("--x", s) for s in settings)
        return train(TrainRequest(layers, out, bootstrap=parent, force=force))

    def test_settings_and_split_come_from_the_parent(self, parent: Path, tiny_run: Path, tmp_path: Path) -> None:
        result = self.bootstrap(parent, tmp_path / "child", {"split": {"labels": 1.0}})
        child, own = (config_of(load_checkpoint(p), p) for p in (result.run.last, parent))
        assert child == own.model_copy(
            update={"split": own.split.model_copy(update={"labels": 1.0}), "runtime": child.runtime}
        )
        assert load_split(result.run.path / "split.yaml") == load_split(tiny_run / "split.yaml")

    def test_a_trivial_parent_is_refused_unless_forced(self, parent: Path, tmp_path: Path) -> None:
        trivial = make_net_score(0.4615, 0.0, 0.0, 0.0)
        scores = make_scores(trivial, trivial, trivial=0.4615)
        path = rewrite(parent, tmp_path / "trivial.pt", scores=scores)
        with pytest.raises(RefusedError, match="not above trivial") as caught:
            self.bootstrap(path, tmp_path / "child")
        assert caught.value.exit_code == 3
        assert not (tmp_path / "child").exists()
        assert self.bootstrap(path, tmp_path / "child", {"length": {"steps": 1}}, force=True).ending == "finished"

    def test_a_parent_within_chance_of_trivial_is_used_with_a_warning(self, parent: Path, tmp_path: Path) -> None:
        net = make_net_score(0.52, 0.02, -0.01, 0.05)
        scores = make_scores(net, net, trivial=0.50)
        doubtful = rewrite(parent, tmp_path / "p.pt", scores=scores)
        result = self.bootstrap(doubtful, tmp_path / "child", {"length": {"steps": 1}})
        assert "+0.020" in result.run.read_events()[0]["parent"]["doubt"]

    def test_a_parent_that_saw_validation_labels_is_refused(
        self, parent: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        other = make_split(open_catalog(str(particles_dir)), [1.0], seed=7)
        save_split(other, tmp_path / "other.yaml")
        with pytest.raises(RefusedError, match=r"labeled training cases of the parent"):
            self.bootstrap(parent, tmp_path / "child", {"split": {"file": str(tmp_path / "other.yaml")}})

    def test_labels_of_a_grandparent_are_remembered(
        self, parent: Path, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        """The second run is labeled elsewhere; a test case of the third was labeled in the first."""
        own = load_split(tiny_run / "split.yaml")
        pool, first = own.fractions[1.0], own.labeled_ids(0.5)
        save_split(replace(own, fractions={1.0: pool[::-1]}), tmp_path / "second.yaml")
        second = {"split": {"file": str(tmp_path / "second.yaml"), "labels": len(pool) - len(first)}}
        run = self.bootstrap(parent, tmp_path / "second", second, {"length": {"steps": 2}}).run
        own_labels = own.image_contents(set(pool) - set(first))
        for path in (run.last, run.best):
            assert set(load_checkpoint(path).seen_labels) == own_labels | own.image_contents(first)
        assert set(load_checkpoint(parent).seen_labels) == own.image_contents(first)
        unseen = replace(own, fractions={1.0: tuple(i for i in pool if i != first[0])}, test=(*own.test, first[0]))
        save_split(unseen, tmp_path / "third.yaml")
        good = load_checkpoint(parent).scores
        with pytest.raises(RefusedError, match=f"1 test case.*a run that the parent builds on.*'{first[0]}'"):
            self.bootstrap(
                rewrite(run.last, tmp_path / "good.pt", scores=good),
                tmp_path / "third",
                {"split": {"file": str(tmp_path / "third.yaml"), "labels": 1.0}},
            )

    @pytest.mark.parametrize("start", ["--bootstrap", "--split"])
    def test_images_that_were_labeled_since_are_used_and_validation_stays(
        self, particles_dir: Path, tmp_path: Path, start: str
    ) -> None:
        data = shutil.copytree(particles_dir, tmp_path / "data")
        run = train_tiny(tmp_path / "parent", data, {"length": {"steps": 1}}).run
        split = load_split(run.path / "split.yaml")
        new = split.unlabeled[:2]
        for case_id in new:
            shutil.copy(data / "masks" / f"{split.fractions[1.0][0]}.png", data / "masks" / f"{case_id}.png")
        if start == "--bootstrap":
            child = self.bootstrap(run.last, tmp_path / "child", {"split": {"labels": 1.0}}, force=True).run
        else:
            settings = {"split": {"file": str(run.path / "split.yaml"), "labels": 1.0}, "length": {"steps": 1}}
            child = train_tiny(tmp_path / "child", data, settings).run
        own = load_split(child.path / "split.yaml")
        assert own.fractions[1.0] == (*split.fractions[1.0], *new)
        assert (own.val, own.test, own.unlabeled) == (split.val, split.test, split.unlabeled[2:])
        assert own.image_contents(new) <= set(load_checkpoint(child.last).seen_labels)

    def test_a_new_split_seed_makes_a_new_split_and_meets_the_gate(self, parent: Path, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match="labeled training cases of the parent"):
            self.bootstrap(parent, tmp_path / "child", {"split": {"seed": 7}})

    def test_epochs_count_in_epochs_of_the_parent(self, parent: Path, tmp_path: Path) -> None:
        result = train(TrainRequest((), tmp_path / "child", bootstrap=parent, epochs=1))
        assert result.step == 6


@pytest.fixture(scope="module")
def long_config(tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> Path:
    """A run of 24 steps, with a tiny network."""
    settings = {
        **TINY,
        "data": {**TINY["data"], "root": str(particles_dir)},
        "length": {"steps": 24, "steps_per_epoch": 8},
    }
    path = tmp_path_factory.mktemp("long") / "long.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
class TestInterruption:
    @pytest.fixture(scope="class")
    def whole(self, long_config: Path) -> Path:
        labels = Layer("--labels", {"split": {"labels": 0.5}})
        return train(TrainRequest((*read_layers(str(long_config)), labels), long_config.parent / "whole")).run.path

    @pytest.mark.parametrize("steps", [7, 8, 13])
    def test_kill_9_then_resume_is_bit_equal(self, whole: Path, long_config: Path, tmp_path: Path, steps: int) -> None:
        """Killed before, at and after the end of an epoch of 8 steps; the continued run ends with the same bits."""
        out = tmp_path / "killed"
        command = ["train", "--config", str(long_config), "--labels", "0.5", "--out", str(out)]
        killed = run(stopping("ssl_seg", *command, stop=(steps, "SIGKILL")), tmp_path)
        assert killed.returncode == -signal.SIGKILL
        assert train(TrainRequest(resume=out)).ending == "finished"
        assert same_weights(whole / "checkpoints" / "last.pt", out / "checkpoints" / "last.pt")
        assert same_weights(whole / "checkpoints" / "best.pt", out / "checkpoints" / "best.pt")
        steps_on_record = [r["step"] for r in RunDir(out).read_metrics()]
        assert steps_on_record == [r["step"] for r in RunDir(whole).read_metrics()]

    def test_ctrl_c_saves_and_names_the_resume_command(self, long_config: Path, tmp_path: Path) -> None:
        out = tmp_path / "stopped"
        command = ["train", "--config", str(long_config), "--labels", "0.5", "--out", str(out)]
        done = run(stopping("ssl_seg", *command, stop=(7, "SIGINT")), tmp_path)
        assert done.returncode == 130, done
        assert f"ssl-seg train --resume {out}" in done.stdout
        assert load_checkpoint(out / "checkpoints" / "last.pt").progress.step == 7
        train(TrainRequest(resume=out))
        assert load_checkpoint(out / "checkpoints" / "last.pt").progress.step == 24
        assert "interrupted" in [e["event"] for e in RunDir(out).read_events()]


class TestResume:
    def test_a_run_stopped_before_its_final_scores_gets_them(self, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        events = (run / "events.jsonl").read_text().splitlines(keepends=True)
        (run / "events.jsonl").write_text("".join(e for e in events if '"finished"' not in e))
        (run / "scores.json").unlink()
        last = load_checkpoint(run / "checkpoints" / "last.pt")
        probe = {**last.scores, "source": "probe"}
        rewrite(run / "checkpoints" / "last.pt", run / "checkpoints" / "last.pt", scores=probe)
        assert train(TrainRequest(resume=run)).ending == "finished"
        assert load_checkpoint(run / "checkpoints" / "last.pt").scores == last.scores

    def test_a_stop_right_after_a_resume_keeps_the_scores(self, particles_dir: Path, tmp_path: Path) -> None:
        """Stopped at step 7, resumed, stopped at step 8: no probe in between."""
        result = train_tiny(tmp_path / "run", particles_dir, {"split": {"labels": 0.5}})
        (tmp_path / "run" / "events.jsonl").write_text("")
        checkpoint = load_checkpoint(result.run.last)
        progress = replace(checkpoint.progress, step=7, ema_updates=7, ending=None)
        rewrite(result.run.last, result.run.last, progress=progress)
        with interrupted_after(8):
            assert train(TrainRequest(resume=result.run.path)).step == 8
        assert load_checkpoint(result.run.last).scores["student"]["f1"] == checkpoint.scores["student"]["f1"]

    def test_machine_settings_may_change(self, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        (run / "events.jsonl").write_text("")
        last = run / "checkpoints" / "last.pt"
        seen = tuple(sorted({*load_checkpoint(last).seen_labels, "0123456789ab"}))  # of a parent
        rewrite(last, last, seen_labels=seen)
        assert train(TrainRequest((Layer("--set", {"runtime": {"workers": 1}}),), resume=run)).ending == "finished"
        assert load_checkpoint(last).seen_labels == seen

    def test_a_finished_run(self, tiny_run: Path) -> None:
        with pytest.raises(RunDirError, match="is finished"):
            train(TrainRequest(resume=tiny_run))

    def test_a_run_that_another_process_works_on(self, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        (run / "events.jsonl").write_text("")
        with hold_directory(run), pytest.raises(InUseError, match="in use by another process"):
            train(TrainRequest(resume=run))
        assert (run / "events.jsonl").read_text() == ""
        assert train(TrainRequest(resume=run)).ending == "finished"

    def test_a_new_run_is_held_while_it_trains(self, particles_dir: Path, tmp_path: Path) -> None:
        class Intruder(Silent):
            refused = 0

            def advance(self, step: int) -> None:
                with pytest.raises(InUseError):
                    train(TrainRequest(resume=tmp_path / "run"))
                self.refused += 1

        layers = (Layer("--test", TINY), Layer("--data", {"data": {"root": str(particles_dir)}}))
        intruder = Intruder()
        assert train(TrainRequest(layers, tmp_path / "run"), intruder).ending == "finished"
        assert intruder.refused == 12

    def test_a_run_is_scored_while_another_process_holds_it(self, tiny_run: Path) -> None:
        with hold_directory(tiny_run):
            assert evaluate(EvaluateRequest(tiny_run / "checkpoints" / "best.pt"))["cases"]

    @pytest.mark.parametrize(
        ("error", "kind", "text"),
        [
            (torch.OutOfMemoryError("CUDA out of memory"), MachineError, "out of memory on cpu"),
            (MemoryError(), MachineError, "smaller data.patch_size"),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MachineError, "--resume"),
            (
                OSError(errno.ENOSPC, "No space left"),
                RunDirError,
                "is full, or your quota .* checkpoint is kept.*--resume",
            ),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
    )
    def test_what_the_machine_lacks_is_one_error(
        self, error: Exception, kind: type[Exception], text: str, particles_dir: Path, tmp_path: Path
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Engine, "step", fail)
            with pytest.raises(kind, match=text):
                train_tiny(tmp_path / "run", particles_dir)
        with hold_directory(tmp_path / "run"):  # the lock is free again
            assert load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pt").progress.step == 0

    def test_a_quota_that_is_used_up_before_the_first_checkpoint_leaves_nothing_to_resume(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")

        monkeypatch.setattr(Session, "save", fail)
        with pytest.raises(RunDirError, match=r"quota.*no checkpoint was saved.*same command.* rm -r .*run$") as caught:
            train_tiny(tmp_path / "run", particles_dir)
        assert "--resume" not in str(caught.value)

    def test_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirError, match="no run directory"):
            train(TrainRequest(resume=tmp_path / "none"))

    def test_changed_data_is_noticed(self, tmp_path: Path) -> None:
        from ssl_seg.data.synthetic import write_dataset

        data = tmp_path / "data"
        write_dataset(data, "particles", 8)
        result = train_tiny(tmp_path / "run", data)
        rewrite(result.run.last, result.run.last, progress=RunProgress(6, 6, 0.0))
        image = load_split(result.run.path / "split.yaml").val[0]
        (data / "images" / f"{image}.png").unlink()
        with pytest.raises(SplitError, match=image):
            train(TrainRequest(resume=result.run.path))


@pytest.mark.slow
@pytest.mark.ddp
def test_two_processes_agree(particles_dir: Path, tmp_path: Path) -> None:
    """20 steps on 2 gloo processes, with all policies: each writes down its networks and verdict; they are equal."""
    code = """
import hashlib, json, os, sys
from pathlib import Path
from ssl_seg.config.layers import Layer
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.session import Session
import ssl_seg.run.training as training

captured = {}
original = training.finish_run
def finish(session, result, *args):
    captured.update(session=session, state=result)
    return original(session, result, *args)
training.finish_run = finish

settings = json.loads(sys.argv[1])
training.train(TrainRequest((Layer("--x", settings),), Path(sys.argv[2])))
engine, average = captured["session"].engine, captured["session"].policies.average
def digest(net):
    return hashlib.sha256(b"".join(v.numpy().tobytes() for v in net.state_dict().values())).hexdigest()
verdict = captured["state"].observation.verdict
line = {"student": digest(engine.student), "teacher": digest(engine.teacher.net), "verdict": verdict.to_record(),
        "average": [float(p.double().sum()) for p in average.net.parameters()], "count": average.count,
        "history": captured["state"].progress.history, "training": captured["session"].watch.memory.training}
Path(sys.argv[3], f"rank{engine.fabric.global_rank}.json").write_text(json.dumps(line))
"""
    settings = {
        **TINY,
        "data": {**TINY["data"], "root": str(particles_dir)},
        "split": {"labels": 0.5},
        "network": {**TINY["network"], "norm": "batch"},
        "length": {"steps": 24, "steps_per_epoch": 4},
        "policies": {
            "swa": {"start_epoch": 4},
            "weight_noise": {"start_epoch": 1, "std": 0.3},
            "gradient_noise": {"std": 0.001},
            "random_batch_size": {"smallest": 1, "largest": 3},
            "plateau_response": {"patience": 1, "base": 2.0, "hold_epochs": 5, "rollback_drop": 1e-4},
        },
        "runtime": {**TINY["runtime"], "devices": 2},
    }
    script = tmp_path / "script.py"
    script.write_text(code)
    process = run([str(script), json.dumps(settings), str(tmp_path / "run"), str(tmp_path)], tmp_path)
    assert process.returncode == 0, process.stderr
    ranks = [json.loads((tmp_path / f"rank{r}.json").read_text()) for r in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["student"] != ranks[0]["teacher"]
    assert ranks[0]["count"] == 2
    assert [r["step"] for r in RunDir(tmp_path / "run").read_metrics()] == [0, 1, 2, 4, 8, 12, 16, 20, 24]
    events = {e["event"] for e in RunDir(tmp_path / "run").read_events()}
    assert events >= {"swa", "weight_noise", "plateau", "rollback"}


def test_dumped_configuration_names_its_plan(tiny_run: Path) -> None:
    text = (tiny_run / "config.yaml").read_text()
    assert "# planned: optim.warmup_steps = 1" in text
    config = config_of(load_checkpoint(tiny_run / "checkpoints" / "last.pt"), tiny_run)
    assert yaml.safe_load(text) == yaml.safe_load(dump_config(config))


def test_made_up_images_are_told_where_no_data_are_given(particles_dir: Path, tmp_path: Path) -> None:
    told = []
    for root in (None, str(particles_dir)):
        notes = Notes()
        given = {} if root is None else {"data": {"root": root}}
        prepare_run(TrainRequest((Layer("--test", TINY), Layer("--data", given)), tmp_path / "run"), notes, gpu=False)
        told.append(any("no --data is given" in text for text in notes.texts))
    assert told == [True, False]
