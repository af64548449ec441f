"""Rounds of self-training: what they learn from, when they are taken, and that they go on from anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Cli, Notes, same_weights
from interruption import killed
from sklearn.metrics import jaccard_score
from test_label_ladder import SETTINGS, climb, state_of

from ssl_seg import climb_labels
from ssl_seg.config import BootstrapConfig, LengthConfig
from ssl_seg.config.schedules import find_snapshots
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.open import make_source, open_store
from ssl_seg.data.pseudo_labels import load_pseudo_labels
from ssl_seg.data.splits.files import load_split
from ssl_seg.engine.engine import Engine
from ssl_seg.errors import ConfigError, DataError, RefusedError, RunDirError, SplitError
from ssl_seg.inference.decision import LIKELIEST, Decision
from ssl_seg.inference.model import config_of, open_model
from ssl_seg.inference.sliding import Predictor
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.run import final_scores
from ssl_seg.run.recorder import Recorder
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve
from ssl_seg.scores.intervals import Difference
from ssl_seg.studies import label_ladder as ladder_module
from ssl_seg.studies import pseudo_labels
from ssl_seg.studies.checkpoints import find_checkpoint
from ssl_seg.studies.pseudo_labels import choose_reliable, compute_mean_iou, summarize
from ssl_seg.studies.rungs import LabelLadder

SHORT = {"length": {"steps": 4, "steps_per_epoch": 2}}


@pytest.fixture(scope="module", autouse=True)
def long_windows() -> Iterator[None]:
    """Networks of a few steps do not beat foreground everywhere, and would all look through windows of one patch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(final_scores, "beats_trivial", lambda *_: True)
        yield


@pytest.fixture(scope="module")
def rounds(particles_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> LabelLadder:
    """A training and a round, which is taken; forced, since a few steps do not pass the gate."""
    out = tmp_path_factory.mktemp("rounds") / "whole"
    before = state_of(particles_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_module, "compare_counts", lambda *_: Difference(0.0, None, None))
        ladder: LabelLadder = climb(out, particles_dir, SHORT, labels=(3,), rounds=1, force=True)
    after = state_of(particles_dir)
    assert {name: state for name, state in after.items() if ".ssl_seg" not in name} == {
        name: state for name, state in before.items() if ".ssl_seg" not in name
    }
    return ladder


def open_source(ladder: LabelLadder, number: int) -> PatchSource:
    """Return the batches of a round."""
    config = config_of(load_checkpoint(path := ladder.run_of(ladder.trainings[number - 1]).last), path)
    split, catalog = load_split(ladder.path / "split.yaml"), open_catalog(config.data.root)
    store = open_store(catalog, config.data, load_pseudo_labels(Path(str(config.data.pseudo_labels))))
    return make_source(config, store, split.labeled_ids(3), split.pool_ids(3))


class TestWhatIsLearned:
    def test_rungs(self, rounds: LabelLadder) -> None:
        assert [(r.name, r.round, r.parent, r.status, r.kept) for r in rounds.trainings] == [
            ("rung1_3", 0, None, "done", True),
            ("rung2_3_round1", 1, 1, "done", True),
        ]  # fmt: skip
        for rung in rounds.trainings:
            (started,) = [e for e in rounds.run_of(rung).read_events() if e["event"] == "started"]
            assert started["parent"] is None  # each begins from scratch
            assert started.get("pseudo_labels", {}).get("cases") == (7 if rung.round else None)

    def test_labels_are_those_of_the_best_rung(self, rounds: LabelLadder) -> None:
        rung, parent = rounds.trainings[1], rounds.run_of(rounds.trainings[0])
        folder = rounds.path / rung.pseudo_labels
        values, split = json.loads((folder / "pseudo_labels.json").read_text()), load_split(rounds.path / "split.yaml")
        model = open_model(parent.best)
        net, store = values["network"]["net"], open_store(open_catalog(model.config.data.root), model.config.data)
        assert net == load_checkpoint(parent.best).scores["selected"]["net"]
        assert [row["id"] for row in values["cases"]] == list(split.pool_ids(3))
        factor = model.window_factor
        earlier = [open_model(parent.snapshot(step)).predictor(net, factor=factor) for step in (1, 3)]
        assert factor == 2, "or nothing shows that all networks look through windows of one length"
        for row in values["cases"][:3]:
            image = store.load(row["id"]).image
            labels, own = np.load(folder / row["file"]), model.predictor(net)(image).argmax(0)
            assert np.array_equal(labels, own)
            agreement = [
                jaccard_score(own.ravel(), other(image).argmax(0).ravel(), average="macro") for other in earlier
            ]
            assert row["agreement"] == pytest.approx(np.mean(agreement))
            assert row["voxels"] == [(labels == label).sum() for label in (0, 1)]
        kept = {row["id"] for row in values["cases"] if row["kept"]}
        assert kept == choose_reliable({row["id"]: row["agreement"] for row in values["cases"]})
        assert values["reliability"]["kept"] == len(kept) == 7

    def test_batches_hold_pseudo_labels_of_unlabeled_training_cases_only(self, rounds: LabelLadder) -> None:
        source, split = open_source(rounds, 2), load_split(rounds.path / "split.yaml")
        pseudo = load_pseudo_labels(rounds.path / rounds.trainings[1].pseudo_labels)
        drawn = [source.labeled_cases[n] for n in range(13)]
        assert sorted(set(drawn)) == sorted({*split.labeled_ids(3), *pseudo.files})
        assert len([i for i in drawn if i in pseudo.files]) == 7  # the 3 labeled cases twice each
        assert not set(pseudo.files) & {*split.val, *split.test, *split.labeled_ids(3)}
        for case_id, file in pseudo.files.items():
            target = source.store.load(case_id).target
            assert target is not None
            assert np.array_equal(target, np.load(file))
            share = source.store.catalog.facts[case_id].foreground
            assert share == pytest.approx((np.load(file) > 0).mean())
            assert (case_id in source.positive) == (share > 0)
            with pytest.raises(DataError, match="never scored"):
                source.store.load_whole(case_id)
        truth = {i: case.mask for i in pseudo.files if (case := open_catalog(source.store.catalog.root).case(i)).mask}
        assert truth  # there were masks, and they are not what is learned

    def test_what_is_known_of_masks_is_that_of_the_labels(self, rounds: LabelLadder) -> None:
        seen = {load_checkpoint(rounds.run_of(rung).last).seen_labels for rung in rounds.trainings}
        assert len(seen) == 1

    def test_the_next_training_does_not_inherit_them(self, rounds: LabelLadder) -> None:
        parent = rounds.run_of(rounds.trainings[1]).best
        assert load_checkpoint(parent).config["data"]["pseudo_labels"] is not None
        assert resolve(TrainRequest(bootstrap=parent)).config.data.pseudo_labels is None


class TestLabeler:
    def test_voxels_without_data_are_ignored(self) -> None:
        class Certain:
            def __call__(self, image: Any) -> Any:
                return np.stack([image[0] < 0.5, image[0] >= 0.5]).astype(np.float32)

        image = np.array([[[0.0, 1.0], [np.nan, 1.0]]], np.float32)
        network: Predictor = Certain()  # type: ignore[assignment]
        labels, agreement = pseudo_labels.Labeler(network, (network,), 2, LIKELIEST).label(image)
        assert labels.tolist() == [[0, 1], [IGNORE_INDEX, 1]]
        assert agreement == 1

    def test_classes_are_decided_as_in_prediction(self) -> None:
        class Unsure:
            def __call__(self, _: Any) -> Any:
                return np.full((2, 3, 3), [[[0.6]], [[0.4]]])

        network: Predictor = Unsure()  # type: ignore[assignment]
        for decision, expected in ((LIKELIEST, 0), (Decision(0.3), 1)):
            labels, agreement = pseudo_labels.Labeler(network, (network,), 2, decision).label(np.zeros((1, 3, 3)))
            assert (labels == expected).all()
            assert agreement == 1

    def test_mean_iou_against_sklearn(self) -> None:
        draw = np.random.default_rng(0)
        pred, target = draw.integers(0, 3, (2, 40, 30))
        expected = jaccard_score(target.ravel(), pred.ravel(), average="macro")
        assert compute_mean_iou(pred, target, 4) == pytest.approx(expected)  # class 3 is in neither
        assert compute_mean_iou(pred * 0, pred * 0, 3) == 1
        assert compute_mean_iou(pred * 0, pred * 0 + 1, 3) == 0

    @pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (40, 20)])
    def test_the_better_half(self, count: int, kept: int) -> None:
        agreement = {f"{n:02}": (n * 7 % count) / count for n in range(count)}
        chosen = choose_reliable(agreement)
        assert len(chosen) == kept
        assert min(agreement[i] for i in chosen) >= max((agreement[i] for i in agreement.keys() - chosen), default=0)
        assert choose_reliable(dict.fromkeys("dcba", 0.5)) == {"a", "b"}

    def test_reliability(self) -> None:
        rows = [
            {"agreement": a, "kept": k, "voxels": v}
            for a, k, v in ((0.9, True, [6, 2]), (0.7, True, [8, 0]), (0.2, False, [0, 8]))
        ]
        found = summarize(rows, [(0.9, 0.8), (0.5, 0.4), (0.7, 0.6)], "teacher")
        assert (found.kept, found.of, found.agreement, found.agreement_of_rest) == (2, 3, pytest.approx(0.8), 0.2)
        assert found.foreground == 2 / 16
        assert (found.val_iou, found.val_iou_of_half) == (pytest.approx(0.6), pytest.approx(0.7))
        assert found.val_correlation == pytest.approx(1)
        assert summarize(rows[:2], [(0.5, 0.1), (0.5, 0.2)], "teacher").val_correlation is None


@pytest.mark.parametrize("steps", [1, 2, 3, 400])
@pytest.mark.parametrize("snapshots", [0, 1, 2, 100])
def test_snapshots_lie_evenly_within_the_run(steps: int, snapshots: int) -> None:
    found = find_snapshots(LengthConfig(steps=steps, snapshots=snapshots))
    assert all(0 < step < steps for step in found)
    assert len(found) <= snapshots
    if steps == 400:
        assert found == tuple(round(400 * n / (snapshots + 1)) for n in range(1, snapshots + 1))


def list_kill_points() -> dict[str, tuple[Any, str, Callable[..., bool]]]:
    """In the order in which a training and a round meet them."""
    labeled = []

    def after_two(*_: Any) -> bool:
        labeled.append(1)
        return len(labeled) == 3

    return {
        "before the first network is kept": (Recorder, "save_snapshot", lambda *_: True),
        "kept, not saved": (Engine, "step", lambda _, __, step, *___: step == 1),
        "before the first pseudo-label": (pseudo_labels, "_label_cases", lambda *_: True),
        "two pseudo-labels": (pseudo_labels.Labeler, "label", after_two),
        "all pseudo-labels": (pseudo_labels, "_compare_with_mask", lambda *_: True),
        "before they are said to be whole": (pseudo_labels, "write_json", lambda *_: True),
        "round, before the first checkpoint": (Recorder, "save_last", lambda *_: True),
        "round, within an epoch": (Engine, "step", lambda _, __, step, *___: step == 3),
        "round, not judged": (ladder_module, "_judge", lambda _, rung, *__: rung.round == 1),
    }


class TestContinuation:
    def test_killed_at_every_point_and_moved_it_ends_with_equal_bits(
        self, rounds: LabelLadder, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ladder_module, "compare_counts", lambda *_: Difference(0.0, None, None))
        out = begun = tmp_path / "killed"
        for number, (point, death) in enumerate(list_kill_points().items()):
            with killed(*death):
                if number == 0:
                    climb(out, particles_dir, SHORT, labels=(3,), rounds=1, force=True)
                else:
                    climb_labels(TrainRequest(resume=out))
            if point == "round, within an epoch":
                out = out.rename(tmp_path / "moved")
        resumed = climb_labels(TrainRequest(resume=out))
        assert resumed.trainings == rounds.trainings
        for rung in rounds.trainings:
            one, two = (
                sorted(p.relative_to(s.path) for p in s.path.glob(f"{rung.name}/checkpoints/*"))
                for s in (rounds, resumed)
            )
            assert one == two
            assert all(same_weights(rounds.path / name, resumed.path / name) for name in one)
        for path in sorted((rounds.path / rounds.trainings[1].pseudo_labels).iterdir()):
            mine, other = path.read_bytes(), (out / path.relative_to(rounds.path)).read_bytes()
            assert mine.replace(bytes(rounds.path), b"") == other.replace(bytes(begun), b"")

    def test_a_kept_network_is_that_of_its_step(self, particles_dir: Path, tmp_path: Path) -> None:
        with killed(Engine, "step", lambda _, __, step, *___: step == 3):
            climb(tmp_path / "l", particles_dir, SHORT, {"length": {"snapshots": 1}}, labels=(3,))
        checkpoints = tmp_path / "l" / "rung1_3" / "checkpoints"
        assert same_weights(checkpoints / "step-2.pt", checkpoints / "last.pt")  # saved at the end of its epoch
        kept = load_checkpoint(checkpoints / "step-2.pt")
        assert (kept.progress.step, kept.parts) == (2, {})


class TestEndings:
    def test_a_worse_round_is_not_taken_and_the_next_is_skipped(
        self, particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ladder_module, "compare_counts", lambda *_: Difference(-0.01, None, None))
        short = {"length": {"steps": 2, "steps_per_epoch": 2}}
        ladder = climb(tmp_path / "l", particles_dir, short, labels=(3,), rounds=2, force=True)
        assert [(r.round, r.status, r.kept) for r in ladder.trainings] == [
            (0, "done", True), (1, "done", False), (2, "skipped", False),
        ]  # fmt: skip
        assert not (ladder.path / ladder.trainings[2].name).exists()
        assert ladder.ending == "finished"

    def test_the_gate_keeps_a_bad_network_from_labeling(self, particles_dir: Path, tmp_path: Path) -> None:
        short = {"length": {"steps": 2, "steps_per_epoch": 2}}
        ladder = climb(tmp_path / "l", particles_dir, short, labels=(3,), rounds=1)
        assert [r.status for r in ladder.trainings] == ["done", "refused"]
        assert "refused as a source of pseudo-labels" in ladder.trainings[1].message
        assert not (ladder.path / ladder.trainings[1].pseudo_labels).exists()

    def test_without_a_network_the_rounds_are_skipped(self, particles_dir: Path, tmp_path: Path) -> None:
        broken = {"optim": {"lr": 1e30, "warmup_steps": 0, "clip_norm": None}, "monitor": {"on_collapse": "stop"}}
        ladder = climb(tmp_path / "l", particles_dir, SHORT, broken, labels=(3,), rounds=1, force=True)
        assert [r.status for r in ladder.trainings] == ["collapsed", "skipped"]

    def test_without_earlier_networks(self, rounds: LabelLadder, tmp_path: Path) -> None:
        run, options = (
            rounds.run_of(rounds.trainings[0]),
            config_of(load_checkpoint(p := rounds.run_of(rounds.trainings[0]).best), p).bootstrap,
        )
        bare = tmp_path / "bare"
        (bare / "checkpoints").mkdir(parents=True)
        (bare / "checkpoints" / "best.pt").write_bytes(run.best.read_bytes())
        with pytest.raises(RefusedError, match="source of pseudo-labels"):
            pseudo_labels.make_pseudo_labels(replace(run, path=bare), 3, bare, options, lambda _: lambda x, _: x)
        with pytest.raises(Exception, match="has kept no networks on the way"):
            pseudo_labels.make_pseudo_labels(
                replace(run, path=bare), 3, bare, options, lambda _: lambda x, _: x, force=True
            )


class TestBadInput:
    def test_without_unlabeled_cases_there_are_no_rounds(self, rounds: LabelLadder) -> None:
        notes = Notes()
        split = replace(load_split(rounds.path / "split.yaml"), unlabeled=())
        rungs = ladder_module._list_rungs(split, (2, 1.0), 2, notes)
        assert [(r.number, r.labels, r.round) for r in rungs] == [(1, 2, 0), (2, 2, 1), (3, 2, 2), (4, 1.0, 0)]
        assert "with labels 1.0, no training case is unlabeled" in notes.texts[0]
        with pytest.raises(
            ConfigError, match=r"--rounds 2: with labels 1\.0, no training case is unlabeled.*--unlabeled"
        ):
            ladder_module._list_rungs(split, (1.0,), 2, Notes())

    def test_pseudo_labels_of_another_split(self, rounds: LabelLadder) -> None:
        pseudo, split = (
            load_pseudo_labels(rounds.path / rounds.trainings[1].pseudo_labels),
            load_split(rounds.path / "split.yaml"),
        )
        config = config_of(load_checkpoint(path := rounds.run_of(rounds.trainings[0]).last), path)
        catalog, unlabeled = open_catalog(config.data.root), split.pool_ids(3)
        pseudo.check(split, unlabeled, catalog)
        used, other = next(iter(pseudo.files)), split.labeled_ids(3)[0]
        with pytest.raises(SplitError, match=rf"1 case is not among the unlabeled training cases.*{used}"):
            pseudo.check(split, tuple(i for i in unlabeled if i != used), catalog)
        with pytest.raises(SplitError, match=rf"learned from the masks of 1 validation or test.*{other}"):
            pseudo.check(replace(split, val=(*split.val, other)), unlabeled, catalog)
        with pytest.raises(DataError, match=r"label values \[0, 7\]"):
            replace(pseudo, label_values=(0, 7)).check(split, unlabeled, catalog)

    def test_files_that_do_not_fit(self, rounds: LabelLadder, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"has no pseudo_labels\.json.*--rounds"):
            load_pseudo_labels(tmp_path)
        for content in ("{", '{"schema": 2}', '{"schema": 1, "cases": [{}]}'):
            (tmp_path / "pseudo_labels.json").write_text(content)
            with pytest.raises(DataError, match="is damaged"):
                load_pseudo_labels(tmp_path)
            with pytest.raises(RunDirError, match=r"is damaged.*Delete it to make the pseudo-labels again"):
                pseudo_labels.make_pseudo_labels(
                    rounds.run_of(rounds.trainings[0]), 3, tmp_path, BootstrapConfig(), lambda _: lambda x, _: x
                )
        source = open_source(rounds, 2)
        case_id = next(iter(source.store.targets))
        np.save(tmp_path / "small.npy", np.zeros((3, 3), np.int16))
        (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
        for name, message in (("small", "shapes 3 x 3 and"), ("torn", "cannot be read"), ("gone", "cannot be read")):
            store = open_source(rounds, 2).store
            store.targets = {case_id: tmp_path / f"{name}.npy"}
            with pytest.raises(DataError, match=message):
                store.load(case_id)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--resume", "x"), ("--rounds and --resume exclude each other", "ssl-seg ladder --resume")),
            (("--bootstrap", "x"), ("--rounds and --bootstrap exclude each other",)),
            (("--folds", 3, "--fold", "all"), ("--rounds and --fold exclude each other",)),
            (("--labels", "1"), ("all cases or one case",)),
            (("--steps", 3, "--epochs", 2), ("--steps 3 and --epochs 2",)),
        ],
    )
    def test_options_of_the_command(self, cli: Cli, arguments: tuple[object, ...], words: tuple[str, ...]) -> None:
        code, _, stderr = cli("train", "--data", "synthetic:particles", "--rounds", 1, *arguments)
        assert code == 2
        assert all(word in stderr for word in words), stderr
        assert cli("train", "--rounds", -1)[0] == 2


def test_command(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.yaml"
    data = {**SETTINGS["data"], "root": str(particles_dir)}
    file.write_text(json.dumps({**SETTINGS, "data": data, "length": {"steps": 2}, "bootstrap": {"gate": "none"}}))
    options = ["--config", file, "--labels", 3]
    code, stdout, _ = cli("train", *options, "--rounds", 1, "--out", tmp_path / "r")
    assert code == 0
    rows = [line.split() for line in stdout.splitlines()]
    assert any(row[:4] == ["1", "3", "3", "scratch"] for row in rows)
    assert any(row[:7] == ["2", "3", "3", "labels", "of", "rung", "1"] for row in rows)
    code, _, stderr = cli("train", *options, "--rounds", 1, "--out", tmp_path / "r")
    assert code == 2
    assert f"ssl-seg ladder --resume {tmp_path / 'r'}" in stderr
    assert find_checkpoint(tmp_path / "r").is_file()
