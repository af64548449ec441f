"""The ladder of label fractions: what each rung starts from, when it ends, and that it goes on from anywhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Cli, same_weights
from interruption import killed
from scipy import stats
from sklearn.metrics import f1_score

from ssl_seg import climb_labels
from ssl_seg.config.layers import Layer, flatten, merge_layers
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.engine.engine import Engine
from ssl_seg.errors import ConfigError, RefusedError, RunDirError
from ssl_seg.inference.model import config_of
from ssl_seg.inference.scoring import count_classes
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results.study import load_study, save_study
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import load_final_scores
from ssl_seg.run.recorder import Recorder
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train
from ssl_seg.scores.intervals import NO_VARIATION, Difference, compare_counts
from ssl_seg.studies.rungs import (
    LADDER,
    LabelLadder,
    check_labels,
    find_best,
    find_best_checkpoint,
)
from ssl_seg.studies.sequential import IN_SILENCE, AfterEach

LABELS = (0.1, 1.0)
SETTINGS = {
    **TINY,
    "length": {"steps": 4, "steps_per_epoch": 2},
    "monitor": {**TINY["monitor"], "probe_patches": 3, "first_epoch_probes": [0]},
}


def climb(
    out: Path,
    data: Path,
    *settings: dict[str, Any],
    labels: tuple[float, ...] = LABELS,
    after: AfterEach = IN_SILENCE,
    rounds: int = 0,
    **request: Any,
) -> Any:
    layers = tuple(Layer("--x", s) for s in (SETTINGS, {"data": {"root": str(data)}}, *settings))
    return climb_labels(TrainRequest(layers, out, **request), labels, after=after, rounds=rounds)


@pytest.fixture(scope="module")
def told() -> list[tuple[str, str, list[str]]]:
    """What is called while ``whole`` is trained: kind of call, name of the directory, status of the rungs."""
    return []


@pytest.fixture(scope="module")
def whole(
    particles_dir: Path, tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, str, list[str]]]
) -> LabelLadder:
    """An uninterrupted ladder; forced, since a few steps do not pass the gate."""
    out = tmp_path_factory.mktemp("ladders") / "whole"

    def record(kind: str, path: Path) -> None:
        told.append((kind, path.name, [rung.status for rung in load_study(LADDER, out).trainings]))

    after = AfterEach(partial(record, "look"), partial(record, "ended"))
    return climb(out, particles_dir, {"bootstrap": {"start": "student"}}, force=True, after=after)


def f1_of(counts: Any) -> float:
    """Mean over classes of the pooled F1 of (cases, classes, 4) counts, by hand."""
    tp, fp, fn, _ = np.moveaxis(np.asarray(counts, float).sum(axis=0), -1, 0)
    return float(np.mean(2 * tp / (2 * tp + fp + fn)))


class TestRungs:
    def test_the_result_and_its_file_say_the_same(self, whole: LabelLadder) -> None:
        assert whole.ending == "finished"
        assert [(r.name, r.labels, r.cases, r.status) for r in whole.trainings] == [
            ("rung1_0.1", 0.1, 1, "done"), ("rung2_1", 1.0, 13, "done"),
        ]  # fmt: skip
        assert load_study(LADDER, whole.path) == whole
        file = json.loads((whole.path / "ladder.json").read_text())
        used = find_best(whole)
        assert used is not None
        assert file["checkpoint"] == f"{used.name}/checkpoints/best.pt"
        assert (whole.path / file["checkpoint"]) == find_best_checkpoint(whole)
        assert [row["kept"] for row in file["rungs"]] == [r.kept for r in whole.trainings]

    def test_what_follows_each_training_sees_its_outcome(
        self, whole: LabelLadder, told: list[tuple[str, str, list[str]]]
    ) -> None:
        first, second = (rung.name for rung in whole.trainings)
        ended = [call[1:] for call in told if call[0] == "ended"]
        one, both = ["done", "waiting"], ["done", "done"]
        assert ended == [(first, one), (whole.path.name, one), (second, both), (whole.path.name, both)]
        looked = [name for kind, name, _ in told[: told.index(("ended", first, one))] if kind == "look"]
        assert set(looked) == {first}

    def test_each_rung_starts_from_the_best_below(self, whole: LabelLadder) -> None:
        best = None
        for rung in whole.trainings:
            (started,) = [e for e in whole.run_of(rung).read_events() if e["event"] == "started"]
            assert rung.parent == best
            assert (started["parent"] is None) == (best is None)
            assert (rung.difference is None) == (best is None)
            if best is not None:
                assert (
                    started["parent"]["scores"] == load_checkpoint(whole.run_of(whole.trainings[best - 1]).best).scores
                )
                assert started["parent"]["net"] == "student"  # the option that was given
                assert rung.kept == (rung.difference.f1 >= 0)
            best = rung.number if rung.kept else best
        used = find_best(whole)
        assert used is not None
        assert used.number == best

    def test_differences_are_those_of_the_final_scores(self, whole: LabelLadder) -> None:
        used = [load_final_scores(whole.run_of(rung)).used for rung in whole.trainings]  # type: ignore[union-attr]
        counts = [count_classes(network.score) for network in used]
        for rung, own in zip(whole.trainings, counts, strict=True):
            scores = load_checkpoint(whole.run_of(rung).best).scores
            assert len(own) == len(load_split(whole.path / "split.yaml").val)
            assert f1_of(own) == pytest.approx(scores[rung.net]["f1_macro"])
            assert scores[rung.net]["f1"] == max(scores[net]["f1"] for net in ("student", "teacher"))
            assert rung.scores == {k: v for k, v in scores.items() if k != "selected"}
            if rung.parent is not None:
                assert rung.difference is not None
                assert rung.difference.f1 == pytest.approx(f1_of(own) - f1_of(counts[rung.parent - 1]))

    def test_one_split_for_all(self, whole: LabelLadder) -> None:
        own = load_split(whole.path / "split.yaml")
        for rung in whole.trainings:
            split = split_from_dict(load_checkpoint(whole.run_of(rung).last).split)
            assert (split.val, split.test, split.fingerprint) == (own.val, own.test, own.fingerprint)

    def test_a_rung_is_what_train_does(self, whole: LabelLadder, particles_dir: Path, tmp_path: Path) -> None:
        """With the same options, and the parent that the ladder chose."""
        rung = whole.trainings[1]
        layers = [Layer("--x", SETTINGS), Layer("--data", {"data": {"root": str(particles_dir)}})]
        layers += [Layer("--labels", {"split": {"labels": 1.0}}), Layer("--set", {"bootstrap": {"start": "student"}})]
        result = train(TrainRequest(tuple(layers), tmp_path / "run", whole.run_of(whole.trainings[0]).best, force=True))
        assert same_weights(result.run.last, whole.run_of(rung).last)
        assert same_weights(result.run.best, whole.run_of(rung).best)

    def test_the_first_rung_has_no_bootstrap_options_and_the_others_have(self, whole: LabelLadder) -> None:
        starts = [
            config_of(load_checkpoint(p), p).bootstrap.start for p in (whole.run_of(r).last for r in whole.trainings)
        ]
        assert starts == ["better", "student"]

    def test_a_worse_rung_is_kept_out(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outcomes = iter([Difference(-0.01, -0.1, 0.1), Difference(0.0, -0.1, 0.1)])
        monkeypatch.setattr("ssl_seg.studies.label_ladder.compare_counts", lambda *_: next(outcomes))
        monkeypatch.setattr("ssl_seg.run.prepare.check_parent", lambda *_: [])
        ladder = climb(tmp_path / "l", particles_dir, {"length": {"steps": 1}}, labels=(0.1, 0.5, 1.0))
        assert [(r.parent, r.kept) for r in ladder.trainings] == [(None, True), (1, False), (1, True)]
        assert find_best_checkpoint(ladder) == ladder.run_of(ladder.trainings[2]).best


class TestComparison:
    new, old = np.random.default_rng(4).integers(1, 40, size=(2, 12, 2, 4)) * np.array([6, 1, 2, 9])

    def test_f1_against_sklearn(self) -> None:
        counts = np.array([[[3, 1, 2, 4]], [[0, 2, 1, 7]]])
        truth = [1] * 3 + [0] + [1] * 2 + [0] * 4 + [0] * 2 + [1] + [0] * 7
        pred = [1] * 3 + [1] + [0] * 2 + [0] * 4 + [1] * 2 + [0] + [0] * 7
        perfect = np.array([[[5, 0, 0, 5]], [[1, 0, 0, 9]]])
        assert compare_counts(perfect, counts).f1 == pytest.approx(1 - f1_score(truth, pred))

    def test_interval_against_scipy(self) -> None:
        def subtract(rows: Any) -> float:
            rows = np.asarray(rows, int)
            return f1_of(self.new[rows]) - f1_of(self.old[rows])

        found = compare_counts(self.new, self.old)
        expected = stats.bootstrap(
            (np.arange(12),), subtract, vectorized=False, method="percentile", n_resamples=4000, rng=1
        ).confidence_interval
        width = expected.high - expected.low
        assert found.f1 == pytest.approx(subtract(range(12)))
        assert found.low == pytest.approx(expected.low, abs=0.12 * width)
        assert found.high == pytest.approx(expected.high, abs=0.12 * width)

    def test_it_is_paired_and_antisymmetric(self) -> None:
        assert compare_counts(self.new, self.new) == Difference(0.0, None, None, NO_VARIATION)
        one, other = compare_counts(self.new, self.old), compare_counts(self.old, self.new)
        assert (one.f1, one.low, one.high) == pytest.approx((-other.f1, -other.high, -other.low))


def list_kill_points() -> dict[str, tuple[Any, str, Callable[..., bool]]]:
    """In the order in which a ladder of two rungs meets them."""
    from ssl_seg.run import finish
    from ssl_seg.studies import label_ladder as ladder

    def is_first(_: Any, rung: Any, *__: Any) -> bool:
        return bool(rung.number == 1)

    def is_second(_: Any, rung: Any, *__: Any) -> bool:
        return bool(rung.number == 2)

    def in_second(run: RunDir, *_: Any) -> bool:
        return run.path.name.startswith("rung2_")

    return {
        "before the first run": (ladder, "_plan_rung", is_first),
        "before the first checkpoint": (Recorder, "save_last", lambda *_: True),
        "within an epoch": (Engine, "step", lambda _, __, step, *___: step == 3),
        "trained, not judged": (ladder, "_judge", is_first),
        "judged, next not begun": (ladder, "_plan_rung", is_second),
        "second rung, before the first checkpoint": (Recorder, "save_last", lambda *_: True),
        "second rung, within an epoch": (Engine, "step", lambda _, __, step, *___: step == 3),
        "before the final scores": (finish, "_score_run", in_second),
        "second rung, trained, not judged": (ladder, "_judge", is_second),
    }


class TestContinuation:
    def test_killed_at_every_point_it_ends_with_equal_bits(
        self, whole: LabelLadder, particles_dir: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "killed"
        for number, (point, death) in enumerate(list_kill_points().items()):
            done = finished_runs(out)
            with killed(*death):
                if number == 0:
                    climb(out, particles_dir, {"bootstrap": {"start": "student"}}, force=True)
                else:
                    climb_labels(TrainRequest(resume=out))
            assert load_study(LADDER, out).ending is None, point
            assert {name: state_of(out / name) for name in done} == done, point  # finished rungs are not touched
        resumed = climb_labels(TrainRequest(resume=out))
        assert resumed.trainings == whole.trainings
        for rung in whole.trainings:
            for name in ("last", "best"):
                assert same_weights(getattr(whole.run_of(rung), name), getattr(resumed.run_of(rung), name))
        one, two = (json.loads((path / "ladder.json").read_text()) for path in (whole.path, out))
        assert one == two

    def test_a_finished_ladder(self, whole: LabelLadder) -> None:
        with pytest.raises(RunDirError, match="is finished: all 2 rungs"):
            climb_labels(TrainRequest(resume=whole.path))

    def test_other_options_are_refused(self, whole: LabelLadder, tmp_path: Path) -> None:
        for changed in (
            {"out": tmp_path / "x"}, {"epochs": 1}, {"layers": (Layer("--lr", {"optim": {"lr": 1.0}}),)},
        ):  # fmt: skip
            with pytest.raises(ConfigError, match="without other options"):
                climb_labels(TrainRequest(resume=whole.path, **changed))
        with pytest.raises(ConfigError, match="without other options"):
            climb_labels(TrainRequest(resume=whole.path), LABELS)

    @pytest.mark.parametrize("asked", [{"log": ("tensorboard",)}, {"profile": 2}, {"bootstrap": Path("a.pt")}])
    def test_what_only_a_single_training_can_do(self, whole: LabelLadder, asked: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=f"^--{next(iter(asked))} works with a single training only"):
            climb_labels(TrainRequest(resume=whole.path, **asked))

    @pytest.mark.parametrize(
        "change",
        [
            {"rungs": []},
            {"ending": "collapsed"},
            {"ending": "over"},
            {"settings": {"epochs": None, "force": False, "layers": [{"source": "x", "values": 3}]}},
            {"settings": {"epochs": "two", "force": False, "layers": []}},
            *({"rung": change} for change in ({"labels": "x"}, {"status": "foo"}, {"scores": "x"}, {"net": 7})),
        ],
    )
    def test_values_of_another_kind(self, whole: LabelLadder, tmp_path: Path, change: dict[str, Any]) -> None:
        values = json.loads((whole.path / "ladder.json").read_text())
        values["rungs"][0].update(change.pop("rung", {}))
        (tmp_path / "ladder.json").write_text(json.dumps({**values, **change}))
        with pytest.raises(RunDirError, match="is damaged"):
            load_study(LADDER, tmp_path)

    def test_one_process_at_a_time(self, whole: LabelLadder, tmp_path: Path) -> None:
        from filelock import FileLock

        shutil.copytree(whole.path, tmp_path / "l")
        values = json.loads((tmp_path / "l" / "ladder.json").read_text())
        (tmp_path / "l" / "ladder.json").write_text(json.dumps({**values, "ending": None}))
        with FileLock(tmp_path / "l" / "lock"), pytest.raises(RunDirError, match="another process"):
            climb_labels(TrainRequest(resume=tmp_path / "l"))

    def test_the_machine_of_the_first_rung_holds_for_all_and_the_gate_too(
        self, particles_dir: Path, tmp_path: Path
    ) -> None:
        """Timed anew, another memory format might win, and the bits would be others."""
        auto = {"runtime": {"precision": "auto", "memory_format": "auto"}, "length": {"steps": 1}}
        with pytest.MonkeyPatch.context() as patch:
            outcomes = iter(["channels_last", "contiguous"])
            patch.setattr("ssl_seg.run.assembly.choose_memory_format", lambda _: next(outcomes))
            ladder = climb(tmp_path / "l", particles_dir, auto, {"bootstrap": {"gate": "interval"}}, force=True)
        configs = [config_of(load_checkpoint(path), path) for path in (ladder.run_of(r).last for r in ladder.trainings)]
        assert [config.runtime.memory_format for config in configs] == ["channels_last"] * 2
        assert [config.bootstrap.gate for config in configs] == ["margin", "interval"]


def finished_runs(out: Path) -> dict[str, dict[str, tuple[int, bytes]]]:
    ladder = load_study(LADDER, out) if out.exists() else None
    return {} if ladder is None else {r.name: state_of(out / r.name) for r in ladder.trainings if r.status == "done"}


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


class TestEndings:
    def test_the_gate_ends_it_and_force_goes_on(self, particles_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "l"
        short = {"length": {"steps": 1}}
        ladder = climb(out, particles_dir, short, labels=(0.5, 1.0))
        assert (ladder.ending, [r.status for r in ladder.trainings]) == ("refused", ["done", "refused"])
        assert "not above trivial" in ladder.trainings[1].message
        assert not ladder.run_of(ladder.trainings[1]).path.exists()
        assert load_study(LADDER, out) == ladder
        with pytest.raises(RefusedError, match=r"(?s)ended at rung 2: .*not above trivial.*--force continues"):
            climb_labels(TrainRequest(resume=out))
        ladder = climb_labels(TrainRequest(resume=out, force=True))
        assert (ladder.ending, [r.status for r in ladder.trainings]) == ("finished", ["done", "done"])
        assert ladder.trainings[1].message == ""

    def test_a_collapsed_rung_ends_it(self, particles_dir: Path, tmp_path: Path) -> None:
        """With an absurd learning rate the networks are NaN in the second epoch."""
        out = tmp_path / "l"
        broken = {"optim": {"lr": 1e30, "warmup_steps": 0, "clip_norm": None}, "monitor": {"on_collapse": "stop"}}
        ladder = climb(out, particles_dir, broken, labels=(0.5, 1.0))
        assert (ladder.ending, [r.status for r in ladder.trainings]) == ("collapsed", ["collapsed", "waiting"])
        assert find_best_checkpoint(ladder) is None
        assert "non_finite" in ladder.trainings[0].codes
        with pytest.raises(RefusedError, match=r"rung 1: the monitor stopped its training: .*non_finite"):
            climb_labels(TrainRequest(resume=out))
        ladder = climb_labels(TrainRequest(resume=out, force=True))
        assert [(r.status, r.parent) for r in ladder.trainings] == [("collapsed", None)] * 2
        assert ladder.ending == "finished"

    def test_one_label_is_a_training(self, particles_dir: Path, tmp_path: Path) -> None:
        ladder = climb(tmp_path / "l", particles_dir, {"length": {"steps": 1}}, labels=(3,))
        assert [(r.name, r.cases, r.status) for r in ladder.trainings] == [("rung1_3", 3, "done")]
        with pytest.raises(ConfigError, match=r"bootstrap\.parts = encoder"):
            climb(tmp_path / "m", particles_dir, {"bootstrap": {"parts": "encoder"}}, labels=(3,))
        assert not (tmp_path / "m").exists()


SUPERVISED = {"method": {"name": "supervised"}}


class TestBadInput:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ((), "give the label fractions"),
            ((0.1, 0.01), "give --labels 0.01 0.1"),
            ((0.1, 0.1, 1.0), r"give --labels 0\.1 1\.0"),
            ((1.0, 2, 8), r"give --labels 2 8 1\.0"),
            ((0.1, 1), "--labels 0.1 1: 1 can mean all cases or one case"),
            ((0.0, 1.0), "0 is neither a share"),
            ((-0.1, 1.0), "-0.1 is neither"),
            ((0.5, 2.5), "2.5 is neither"),
            ((float("nan"),), "nan is neither"),
        ],
    )
    def test_labels(self, labels: tuple[float, ...], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            check_labels(labels)
        check_labels((2, 8, 1.0))

    def test_all_is_checked_before_anything_is_written(self, particles_dir: Path, tmp_path: Path) -> None:
        out = tmp_path / "l"
        cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
            ("--labels: 8 stands for 8 of the 13 .* and 0.9 before it for 12", {}, {"labels": (0.9, 8)}),
            ("labeled training pool has 13", {}, {"labels": (0.5, 500)}),
            ("did you mean 'restart_ema'", {"bootstrap": {"restart_em": False}}, {}),
            ("learns nothing from a teacher", {**SUPERVISED, "bootstrap": {"pseudo_label_steps": 2}}, {}),
            ("give them with --labels alone", {"split": {"labels": 0.5}}, {}),
        ]  # fmt: skip
        for message, settings, request in cases:
            with pytest.raises(Exception, match=message):
                climb(out, particles_dir, settings, **request)
            assert not list(tmp_path.iterdir()), message

    def test_an_existing_directory(self, whole: LabelLadder, particles_dir: Path, tmp_path: Path) -> None:
        with pytest.raises(RunDirError, match=r"ssl-seg ladder --resume .*--out .*whole-2"):
            climb(whole.path, particles_dir)
        (tmp_path / "mine.txt").touch()
        with pytest.raises(RunDirError, match="never overwritten"):
            climb(tmp_path, particles_dir)

    def test_an_error_within_a_rung_names_it_and_the_way_on(self, particles_dir: Path, tmp_path: Path) -> None:
        data = Path(shutil.copytree(particles_dir, tmp_path / "data"))
        from ssl_seg.studies import label_ladder as ladder

        with killed(ladder, "_plan_rung", lambda _, rung, *__: rung.number == 2):
            climb(tmp_path / "l", data, {"length": {"steps": 1}}, labels=(0.5, 1.0), force=True)
        image = load_split(tmp_path / "l" / "split.yaml").val[0]
        (data / "images" / f"{image}.png").unlink()
        with pytest.raises(Exception, match=rf"(?s)^rung 2 \(labels 1\.0\): .*{image}.*ladder --resume"):
            climb_labels(TrainRequest(resume=tmp_path / "l"))


class TestCommand:
    @pytest.fixture
    def config(self, tmp_path: Path, particles_dir: Path) -> Path:
        path = tmp_path / "tiny.yaml"
        settings = {**SETTINGS, "data": {**SETTINGS["data"], "root": str(particles_dir)}}
        path.write_text(json.dumps({**settings, "length": {"steps": 1}}))
        return path

    @pytest.mark.parametrize(
        "labels",
        [
            ("--labels", 0.5, "1.0"),
            ("--labels", "0.5,1.0"),
            ("--labels", 0.5, "--labels", 1.0),
            ("--labels", "0.5,", "1.0"),
        ],
    )
    def test_labels_in_every_form(self, cli: Cli, labels: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[TrainRequest, tuple[float, ...]]] = []

        def record(request: TrainRequest, labels: tuple[float, ...], *_: object, **__: object) -> LabelLadder:
            seen.append((request, labels))
            raise RefusedError("enough")

        monkeypatch.setattr("ssl_seg.studies.label_ladder.climb_labels", record)
        assert cli("ladder", *labels, "--steps", 60, "--gate", "interval", "--force")[0] == 3
        ((request, amounts),) = seen
        assert (amounts, request.force) == ((0.5, 1.0), True)
        assert dict(flatten(merge_layers(request.layers)[0])) == {"length.steps": 60, "bootstrap.gate": "interval"}

    def test_refused_told_and_forced(self, cli: Cli, config: Path, tmp_path: Path) -> None:
        out = tmp_path / "l"
        code, stdout, stderr = cli("ladder", "--config", config, "--labels", 0.5, 1.0, "--out", out)
        assert code == 3
        assert "rung 2 (labels 1.0) did not start" in stderr
        assert "not above trivial" in stderr
        assert f"ssl-seg ladder --resume {out} --force" in stderr
        rows = [line.split() for line in stdout.splitlines()]
        assert any(row[:4] == ["1", "0.5", "7", "scratch"] and row[-1] == "kept" for row in rows)
        assert any(row[:3] == ["2", "1.0", "13"] and row[-1] == "refused" for row in rows)
        code, _, stderr = cli("ladder", "--resume", out)
        assert (code, "ended at rung 2" in stderr) == (3, True)
        code, stdout, _ = cli("ladder", "--resume", out, "--force")
        assert code == 0
        assert f"wrote {out / 'ladder.json'}" in stdout
        assert "ladder.json" in {p.name for p in out.iterdir()}
        code, _, stderr = cli("ladder", "--resume", out)
        assert (code, "is finished" in stderr) == (2, True)

    def test_a_rung_goes_on_with_the_processes_of_the_ladder(
        self, whole: LabelLadder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its own may be others, from a call with --devices: the ladder would wait for processes that nobody starts."""
        out = Path(shutil.copytree(whole.path, tmp_path / "l"))
        begun = replace(whole.trainings[0], status="waiting", kept=False)
        save_study(LADDER, replace(whole, path=out, trainings=(begun, *whole.trainings[1:]), ending=None))
        requests = []

        def record(request: TrainRequest, *_: Any) -> None:
            requests.append(request)
            raise KeyboardInterrupt

        monkeypatch.setattr("ssl_seg.studies.sequential.train", record)
        monkeypatch.setattr(RunDir, "read_ending", lambda _: None)
        assert climb_labels(TrainRequest(resume=out)).ending == "interrupted"
        (request,) = requests
        assert request.resume == out / begun.name
        assert merge_layers(request.layers)[0]["runtime"] == {"accelerator": "auto", "devices": 1, "num_nodes": 1}

    def test_ctrl_c_names_the_way_on(self, cli: Cli, config: Path, tmp_path: Path) -> None:
        out = tmp_path / "l"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssl_seg.studies.label_ladder._judge", raise_interrupt)
            code, stdout, _ = cli("ladder", "--config", config, "--labels", "0.5", "--out", out)
        assert code == 130
        assert f"interrupted at rung1_0.5; continue with: ssl-seg ladder --resume {out}" in stdout
        assert cli("ladder", "--resume", out)[0] == 0

    def test_ctrl_c_in_the_middle_of_a_rung_does_not_point_at_its_run(
        self, cli: Cli, config: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "l"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssl_seg.run.training.assemble", raise_interrupt)  # before anything is saved
            code, stdout, _ = cli("ladder", "--config", config, "--labels", "0.5", "--out", out)
        assert code == 130
        (line,) = [line for line in stdout.splitlines() if "interrupted" in line]
        assert line == f"interrupted at rung1_0.5; continue with: ssl-seg ladder --resume {out}"

    def test_its_directory_stands_for_the_best_rung(self, cli: Cli, whole: LabelLadder, tmp_path: Path) -> None:
        code, stdout, stderr = cli("evaluate", whole.path, "--json")
        assert code == 0
        assert json.loads(stdout)["checkpoint"] == str(find_best_checkpoint(whole))
        assert f"{whole.path}: taking {find_best_checkpoint(whole)}" in stderr
        code, _, stderr = cli("train", "--resume", whole.path)
        assert (code, f"ssl-seg ladder --resume {whole.path}" in stderr) == (2, True)
        nothing = tmp_path / "nothing"
        nothing.mkdir()
        rungs = tuple(replace(rung, kept=False) for rung in whole.trainings)
        save_study(LADDER, replace(whole, path=nothing, trainings=rungs))
        code, _, stderr = cli("evaluate", nothing)
        assert (code, "has no usable checkpoint yet" in stderr) == (2, True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--labels", "0.1", "many"), ("unexpected extra argument", "many")),
            (("--labels", "0.1,many"), ("'many'", "--labels 0.01 0.10 1.0")),
            (("0.1", "1.0"), ("unexpected extra argument", "0.1 1.0")),
            ((), ("give the label fractions",)),
            (("--labels", "1.0", "0.1"), ("--labels 0.1 1.0",)),
            (("--lables", "0.1"), ("--labels",)),
            (("--labels", "0.1", "--gate", "f1"), ("margin", "interval")),
            (("--labels", "0.1", "1.0", "--steps", "3", "--epochs", "2"), ("--steps 3 and --epochs 2",)),
            (("--labels", "0.1", "1.0", "--set", "bootstrap.strat=teacher"), ("did you mean 'start'",)),
            (("--labels", "0.1", "1.0", "--set", "split.labels=1.0"), ("--labels alone",)),
            (("--labels", "0.1", "1"), ("all cases or one case", "write 1.0")),
            (("--labels", "0.1", "1.0", "--data", "nowhere"), ("nowhere",)),
            (("--resume", "nowhere"), ("nowhere is not a folder",)),
            (("--resume", "nowhere", "--labels", "0.1"), ("nowhere",)),
        ],
    )
    def test_bad_input(self, cli: Cli, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
        code, _, stderr = cli("ladder", *arguments)
        assert code == 2
        assert "Traceback" not in stderr
        assert all(word in stderr for word in words), stderr


def raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
