"""Cross-validation: which case is where, that it goes on from anywhere, and the scores over its folds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Cli, same_weights

from ssl_seg import TrainRequest, cross_validate
from ssl_seg.cli.train_folds import _report
from ssl_seg.config.layers import Layer
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, SplitError
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.results import evaluation
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.results.folds import FOLDS, CrossValidation, Fold, list_checkpoints, list_members, summarize_folds
from ssl_seg.results.study import load_study
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import summarize_network

FOLD_COUNT = 2
SETTINGS: dict[str, Any] = {
    "data": {"patch_size": [64, 64]},
    "length": {"steps": 4, "steps_per_epoch": 2},
    "monitor": {**TINY["monitor"], "probe_patches": 3, "first_epoch_probes": [0]},
    "split": {"labels": 0.5, "folds": FOLD_COUNT},
}


def run_folds(out: Path, data: Path, *settings: dict[str, Any], **request: Any) -> CrossValidation:
    layers = tuple(Layer("--x", s) for s in (TINY, SETTINGS, {"data": {"root": str(data)}}, *settings))
    return cross_validate(TrainRequest(layers, out, **request))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 images with 10 masks."""
    folder = tmp_path_factory.mktemp("data") / "particles"
    write_dataset(folder, "particles", 12, labeled=10)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    """An uninterrupted cross-validation."""
    return run_folds(tmp_path_factory.mktemp("folds") / "whole", folder)


def f1_of(counts: Any) -> float:
    tp, fp, fn, _ = np.asarray(counts, float).sum(axis=0)
    return float(2 * tp / (2 * tp + fp + fn))


def counts_of(validation: CrossValidation, fold: int, net: str) -> list[list[int]]:
    return [
        [c.overlap.tp, c.overlap.fp, c.overlap.fn, c.overlap.tn] for c in validation.trainings[fold].scores[net].cases
    ]


class TestFolds:
    def test_each_labeled_case_is_scored_once_and_no_test_case(self, whole: CrossValidation, folder: Path) -> None:
        scored = [case.case_id for fold in whole.trainings for case in fold.scores[fold.net].cases]
        test = load_split(whole.run_of(whole.trainings[0]).path / "split.yaml").test
        labeled = {path.stem for path in (folder / "masks").iterdir()}
        assert len(scored) == len(set(scored))
        assert set(scored) == labeled - set(test)
        assert len(test) > 0
        for fold in whole.trainings:
            split = split_from_dict(load_checkpoint(whole.run_of(fold).best).split)
            assert (split.folds, split.fold, split.test) == (FOLD_COUNT, fold.number, test)
            assert [c.case_id for c in fold.scores["student"].cases] == list(split.val)
            assert fold.labeled == len(split.labeled_ids(0.5))

    def test_scores_are_those_of_the_checkpoints(self, whole: CrossValidation) -> None:
        for fold in whole.trainings:
            recorded = load_checkpoint(whole.run_of(fold).best).scores
            for net in ("student", "teacher"):
                assert f1_of(counts_of(whole, fold.number, net)) == pytest.approx(recorded[net]["f1"])
            assert recorded[fold.net]["f1"] == max(recorded[net]["f1"] for net in ("student", "teacher"))

    def test_the_summary_by_hand(self, whole: CrossValidation) -> None:
        summary = json.loads((whole.path / "cross_validation.json").read_text())["summary"]
        assert summary == summarize_folds(whole.trainings)
        for name in ("student", "teacher", "better"):
            counts = [counts_of(whole, f.number, f.net if name == "better" else name) for f in whole.trainings]
            f1 = [f1_of(rows) for rows in counts]
            pooled = np.array([row for rows in counts for row in rows])
            everywhere = f1_of([[tp + fn, fp + tn, 0, 0] for tp, fp, fn, tn in pooled])
            found = summary[name]
            assert found["mean"]["f1"] == pytest.approx(sum(f1) / FOLD_COUNT)
            assert found["sd"]["f1"] == pytest.approx(
                (sum((x - sum(f1) / FOLD_COUNT) ** 2 for x in f1) / (FOLD_COUNT - 1)) ** 0.5
            )
            assert found["out_of_fold"]["f1"] == pytest.approx(f1_of(pooled))
            assert found["out_of_fold"]["margin"] == pytest.approx(f1_of(pooled) - everywhere)
            low, high = found["out_of_fold"]["margin_low"], found["out_of_fold"]["margin_high"]
            assert low < found["out_of_fold"]["margin"] < high

    def test_what_the_file_says(self, whole: CrossValidation) -> None:
        assert whole.ending == "finished"
        assert load_study(FOLDS, whole.path) == whole
        assert [fold.status for fold in whole.trainings] == ["done"] * FOLD_COUNT


class TestContinuation:
    def test_killed_between_two_folds_it_ends_with_equal_bits(
        self, whole: CrossValidation, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All other points are those of any study: see the test of the ladder."""
        from ssl_seg.studies import cross_validation

        def die(validation: CrossValidation, fold: Fold) -> Any:
            if fold.number == 1:
                raise SystemExit
            return plan(validation, fold)

        out, plan = tmp_path / "killed", cross_validation._plan_fold
        with monkeypatch.context() as patch:
            patch.setattr(cross_validation, "_plan_fold", die)
            with pytest.raises(SystemExit):
                run_folds(out, folder)
        assert [f.status for f in load_study(FOLDS, out).trainings] == ["done", "waiting"]
        with pytest.raises(RunDirError, match=f"fold1 of {FOLD_COUNT} folds to do.*train --resume"):
            list_members([out])
        resumed = cross_validate(TrainRequest(resume=out))
        assert resumed.trainings == whole.trainings
        for fold in whole.trainings:
            assert same_weights(whole.run_of(fold).last, resumed.run_of(fold).last)
        one, two = (json.loads((path / "cross_validation.json").read_text()) for path in (whole.path, out))
        assert one == two

    def test_what_cannot_be_begun_or_resumed(self, whole: CrossValidation, folder: Path) -> None:
        with pytest.raises(RunDirError, match=f"is finished: all {FOLD_COUNT} folds"):
            cross_validate(TrainRequest(resume=whole.path))
        for changed in ({"out": whole.path}, {"epochs": 1}):
            with pytest.raises(ConfigError, match="without other options"):
                cross_validate(TrainRequest(resume=whole.path, **changed))
        with pytest.raises(ConfigError, match="--force: no gate"):
            cross_validate(TrainRequest(resume=whole.path, force=True))
        with pytest.raises(RunDirError, match="never overwritten: continue it with `ssl-seg train --resume"):
            run_folds(whole.path, folder)

    @pytest.mark.parametrize(
        "change",
        [{"folds": []}, {"ending": "over"}, {"cases": {}}, {"net": "foo"}, {"number": "x"}, {"status": "lost"}],
    )
    def test_values_of_another_kind(self, whole: CrossValidation, tmp_path: Path, change: dict[str, Any]) -> None:
        values = json.loads((whole.path / "cross_validation.json").read_text())
        values["folds"][0].update({key: value for key, value in change.items() if key not in values})
        values.update({key: value for key, value in change.items() if key in values})
        (tmp_path / "cross_validation.json").write_text(json.dumps(values))
        with pytest.raises(RunDirError, match="is damaged"):
            load_study(FOLDS, tmp_path)

    def test_a_bad_fold_is_found_before_the_first_is_trained(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(SplitError, match="99 cases"):
            run_folds(tmp_path / "cv", folder, {"split": {"labels": 99}})
        with pytest.raises(ConfigError, match="--folds 5"):
            run_folds(tmp_path / "cv", folder, {"split": {"folds": None}})
        assert not (tmp_path / "cv").exists()


class TestOutOfFold:
    def test_each_case_by_the_network_that_has_not_seen_it(self, whole: CrossValidation) -> None:
        result = evaluate(EvaluateRequest(whole.path))
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        expected = {}
        for fold in whole.trainings:
            one = evaluate(EvaluateRequest(whole.run_of(fold).best, which=fold.net))
            expected |= {row["id"]: {**row, "fold": fold.number} for row in one["cases"]}
            assert result["folds"][fold.number]["pooled"] == one["pooled"]
        assert {row["id"]: row for row in result["cases"]} == expected
        counts = [row["counts"][0] for row in expected.values()]
        assert result["pooled"]["f1"] == pytest.approx(f1_of(counts))
        assert (result["part"], result["test_openings"]) == ("out_of_fold", 0)

    @pytest.mark.parametrize("asked", ["as it is", "which", "overlap", "accelerator", "spacing", "best.pt", "cases"])
    def test_scores_of_the_folds_are_read_where_they_answer(
        self, whole: CrossValidation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
    ) -> None:
        scored: list[list[str]] = []
        score_cases = evaluation.score_cases

        def record(members: Any, store: Any, case_ids: Any, **options: Any) -> Any:
            scored.append(list(case_ids))
            return score_cases(members, store, case_ids, **options)

        monkeypatch.setattr(evaluation, "score_cases", record)
        path, first = whole.path, whole.trainings[0]
        changes: dict[str, dict[str, Any]] = {
            "which": {"which": "teacher"},
            "overlap": {"overlap": 0.5},
            "accelerator": {"accelerator": "cpu"},
            "spacing": {"settings": {"spacing": [2.0, 2.0]}},
        }
        if asked in ("best.pt", "cases"):
            path = Path(shutil.copytree(path, tmp_path / "cv"))
            file = path / "fold0" / "scores.json"
            values = json.loads(file.read_text())
            for row in values["networks"]:
                if asked == "cases":
                    row["cases"].reverse()
                else:  # as if the checkpoint were another one
                    row["cases"][0]["classes"][0][1] += 1
            file.write_text(json.dumps(values))
        result = evaluate(EvaluateRequest(path, **changes.get(asked, {})))
        expected = {"as it is": 0, "which": 0, "best.pt": 1, "cases": 1}.get(asked, FOLD_COUNT)
        assert len(scored) == expected
        if expected == 1:
            assert sorted(scored[0]) == sorted(case.case_id for case in first.scores["student"].cases)
            assert result["pooled"] == evaluate(EvaluateRequest(whole.path))["pooled"]

    def test_average_precision_is_the_mean_of_the_folds(self, whole: CrossValidation) -> None:
        result = evaluate(EvaluateRequest(whole.path))
        alone = [evaluate(EvaluateRequest(path)) for path in list_checkpoints(whole)]
        folds = [own["pooled"]["average_precision"] for own in alone]
        assert [row["pooled"]["average_precision"] for row in result["folds"]] == folds
        assert result["pooled"]["average_precision"] == pytest.approx(np.mean(folds))
        of_cases = {row["id"]: row["average_precision"] for own in alone for row in own["cases"]}
        assert {row["id"]: row["average_precision"] for row in result["cases"]} == of_cases

    def test_folds_of_different_splits(self, whole: CrossValidation, tmp_path: Path) -> None:
        out = Path(shutil.copytree(whole.path, tmp_path / "cv"))
        shutil.rmtree(out / "fold1")
        shutil.copytree(out / "fold0", out / "fold1")
        with pytest.raises(SplitError, match="in fold 0 and in fold 1: these are not the folds of one"):
            evaluate(EvaluateRequest(out))

    def test_an_ensemble_would_have_seen_the_cases(self, whole: CrossValidation) -> None:
        with pytest.raises(ConfigError, match="scored out of fold"):
            evaluate(EvaluateRequest(whole.path, ensemble=True))
        first, *others = list_checkpoints(whole)
        with pytest.raises(SplitError, match=f"training cases of {others[0]}.*name the directory"):
            evaluate(EvaluateRequest(first, more=tuple(others)))


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--fold", "1"], "the number of folds is missing; write --folds 5 --fold 1"),
            (["--fold", "all"], "the number of folds is missing"),
            (["--folds", "1"], "at least 2 folds"),
            (["--folds", "3", "--fold", "3"], "the 3 folds are 0 to 2, or all"),
            (["--folds", "3", "--fold", "-1"], "the 3 folds are 0 to 2, or all"),
            (["--folds", "3", "--fold", "last"], "the 3 folds are 0 to 2, or all"),
            (["--folds", "3", "--split", "s.yaml"], "--folds and --split exclude each other"),
            (["--folds", "3", "--fold", "all", "--bootstrap", "a.pt"], "starts from scratch"),
            (["--folds", "3", "--resume", "runs/a"], "--folds and --resume exclude each other"),
            (["--fold", "all", "--resume", "runs/a"], "--fold and --resume exclude each other"),
        ],
    )
    def test_options_that_do_not_go_together(self, cli: Cli, options: list[str], message: str) -> None:
        code, out, err = cli("train", *options)
        assert (code, out) == (2, "")
        assert err.count("error:") == 1
        assert message in err

    def test_one_fold_by_options_is_that_by_settings(
        self, cli: Cli, whole: CrossValidation, folder: Path, tmp_path: Path
    ) -> None:
        config = tmp_path / "c.yaml"
        data = {**SETTINGS["data"], "root": str(folder)}
        config.write_text(json.dumps({**TINY, **SETTINGS, "data": data, "split": {"labels": 0.5}}))
        code, _, err = cli("train", "--config", config, "--folds", FOLD_COUNT, "--fold", 1, "--out", tmp_path / "run")
        assert code == 0, err
        assert same_weights(RunDir(tmp_path / "run").last, whole.run_of(whole.trainings[1]).last)

    def test_the_table(self, whole: CrossValidation, capsys: pytest.CaptureFixture[str]) -> None:
        _report(whole)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        summary = summarize_folds(whole.trainings)
        for name, row in (("mean", "mean"), ("sd", "sd"), ("out_of_fold", "out")):
            (found,) = [line for line in lines if line and line[0] == row]
            assert {f"{summary[net][name]['f1']:.3f}" for net in ("student", "teacher")} <= set(found)
        margins = [summarize_network(fold.scores[fold.net])["margin"] for fold in whole.trainings]
        assert summary["better"]["out_of_fold"]["margin"] <= 0  # of a few steps
        worst = whole.run_of(whole.trainings[margins.index(min(margins))]).best
        assert ["next:", "ssl-seg", "diagnose", str(worst)] in [line[-4:] for line in lines]

    def test_good_folds_are_evaluated_next(
        self, whole: CrossValidation, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        summary = summarize_folds(whole.trainings)
        pooled = summary["better"]["out_of_fold"]
        pooled["f1_macro"] = pooled["trivial_f1"] + 0.1
        monkeypatch.setattr("ssl_seg.results.folds.summarize_folds", lambda _: summary)
        _report(whole)
        assert (
            f"next: ssl-seg evaluate {whole.path} --test\n      ssl-seg predict {whole.path} IMAGES OUTPUT\n"
            in capsys.readouterr().out
        )

    def test_interrupted_and_collapsed(
        self, cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C names the command that goes on; a collapsed fold is shown, and the others are trained."""
        from ssl_seg.studies import cross_validation

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        def read(run: RunDir) -> dict[str, Any] | None:
            collapsed = {"event": "collapsed", "codes": ["all_negative"]}
            return collapsed if run.path.name == "fold0" and run.best.is_file() else original(run)

        config, out, original = tmp_path / "c.yaml", tmp_path / "cv", RunDir.read_ending
        data = {**SETTINGS["data"], "root": str(folder)}
        config.write_text(json.dumps({**TINY, "data": data, "length": {"steps": 1}, "split": {"folds": 2}}))
        with monkeypatch.context() as patch:
            patch.setattr(cross_validation, "_plan_fold", interrupt)
            code, text, _ = cli("train", "--config", config, "--fold", "all", "--out", out)
        assert code == 130
        assert f"interrupted at fold0; continue with: ssl-seg train --resume {out}" in text
        with monkeypatch.context() as patch:
            patch.setattr(RunDir, "read_ending", read)
            code, text, err = cli("train", "--resume", out)
        assert (code, "COLLAPSED all_negative" in text, "fold0 collapsed; next: ssl-seg diagnose" in err) == (
            3,
            True,
            True,
        )
        found = load_study(FOLDS, out)
        assert [(f.status, bool(f.scores)) for f in found.trainings] == [("collapsed", True), ("done", True)]
        assert found.ending == "finished"
        with pytest.raises(RefusedError, match=r"fold0 collapsed \(all_negative\).*Name the others: .*fold1"):
            list_members([out])
        code, text, _ = cli("evaluate", out)
        assert code == 0
        assert "validation, out of fold, 8 cases" in " ".join(text.split())  # a long path wraps the title
