"""What the command-line tests leave open: the numbers, which net is the headline, other splits and other folders."""

from __future__ import annotations

import csv
import html
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from score_counts import make_net_score, make_scores
from sklearn.metrics import average_precision_score, f1_score, jaccard_score

from ssl_seg.cli.evaluate_tables import print_result, write_cases
from ssl_seg.data.catalog import pass_through
from ssl_seg.data.formats.stored import Geometry
from ssl_seg.data.formats.tiff import write_tiff
from ssl_seg.data.splits.files import load_split, save_split, split_to_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask, write_mask
from ssl_seg.errors import ConfigError, DataError, SplitError
from ssl_seg.inference.model import open_model
from ssl_seg.inference.scoring import parse_cases
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.report.notebook import Evaluation
from ssl_seg.results.evaluation import EvaluateRequest, evaluate, open_cases
from ssl_seg.results.mask_making import PredictRequest
from ssl_seg.results.prediction import predict
from ssl_seg.run.directory import RunDir


def rewrite(run: Path, out: Path, **changes: Any) -> Path:
    """Write the run's checkpoint to ``out``, with some of its fields changed."""
    checkpoint = load_checkpoint(run / "checkpoints" / "last.pt")
    save_checkpoint(Checkpoint(**{**vars(checkpoint), **changes}), out)
    return out


@pytest.fixture
def checkpoint(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy outside of its run: nothing is written into the run that all tests share."""
    return rewrite(tiny_run, tmp_path / "copied.pt")


class TestNumbers:
    @pytest.mark.parametrize("overlap", [0.0, 0.5])
    def test_they_are_those_of_the_files_that_predict_writes(
        self, checkpoint: Path, particles_dir: Path, tmp_path: Path, overlap: float
    ) -> None:
        result = evaluate(EvaluateRequest(checkpoint, which="student", overlap=overlap))
        (tmp_path / "images").mkdir()
        for row in result["cases"]:
            shutil.copy(particles_dir / "images" / f"{row['id']}.png", tmp_path / "images")
        request = PredictRequest(checkpoint, tmp_path / "images", tmp_path / "out", which="student", overlap=overlap)
        written = {path.stem: path for path in predict(replace(request, probabilities=True))}
        pairs = {
            row["id"]: (
                read_mask(str(particles_dir / "masks" / f"{row['id']}.png")).ravel(),
                read_mask(str(written[row["id"]])).ravel(),
            )
            for row in result["cases"]
        }
        for row in result["cases"]:
            assert row["dice"] == pytest.approx(f1_score(*pairs[row["id"]], zero_division=0.0))
            foreground = tifffile.imread(written[row["id"]].with_name(f"{row['id']}_prob.tif")).ravel()
            precision = average_precision_score(pairs[row["id"]][0], foreground)
            assert row["average_precision"] == pytest.approx(precision, abs=2e-3)
        true, pred = (np.concatenate(column) for column in zip(*pairs.values(), strict=True))
        assert result["pooled"]["f1"] == pytest.approx(f1_score(true, pred))
        assert result["pooled"]["iou"] == pytest.approx(jaccard_score(true, pred))
        assert result["trivial"]["prevalence"] == pytest.approx(true.mean())

    def test_targets_are_held_against_them(
        self, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wanted = {"precision": [0.0, 1.0], "recall": [0.999, 1.0], "dice": [0.0, 0.001], "foreground_share": [0.0, 1.0]}
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config | {"targets": wanted}
        result = evaluate(EvaluateRequest(rewrite(tiny_run, tmp_path / "copied.pt", config=config)))
        assert result["targets"] == result["nets"][result["which"]]["targets"]
        found = {row["target"]: (row["value"], row["met"]) for row in result["targets"]}
        tp, fp, fn, tn = np.sum([row["counts"][0] for row in result["cases"]], axis=0)
        assert found == {
            "precision": (pytest.approx(tp / (tp + fp)), True),
            "recall": (pytest.approx(tp / (tp + fn)), False),
            "dice": (pytest.approx(np.mean([row["dice"] for row in result["cases"]])), False),
            "foreground_share": (pytest.approx((tp + fp) / (tp + fp + fn + tn)), True),
        }
        print_result(result)
        printed = {line.split()[0]: line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.strip()}
        assert (printed["precision"], printed["recall"]) == ("met", "MET")
        assert "2 of 4 targets met: precision" in repr(Evaluation(result, EvaluateRequest(Path())))

    def test_missed_hallucinated_and_empty_cases_are_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Two cases with objects, of which one is found; two without, of which one is found empty."""
        counts = {"found": [8, 0, 0, 8], "missed": [0, 0, 4, 12], "false": [0, 4, 0, 12], "empty": [0, 0, 0, 16]}
        rows = [{"id": name, "foreground": own, "classes": [own], "nonfinite": 0} for name, own in counts.items()]
        summary = parse_cases(rows).summarize()
        assert (summary["mean"]["dice"], summary["mean"]["dice_empty_zero"]) == (0.5, 0.25)
        summary["pooled"]["average_precision"] = None
        for row in summary["cases"]:
            row["average_precision"] = None
        net = {"threshold": 0.5, "threshold_from": "default", **summary}
        other = {**net, "mean": {**net["mean"], "n_hallucinated": 2, "dice": 0.25}}  # finds no case empty
        nets = {"student": net, "teacher": other}
        print_result({**net, "checkpoint": "x", "part": "val", "which": "student", "sealed_cases": 0, "nets": nets})
        printed = {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}
        assert printed >= {
            "missed: nothing predicted 1 of 2 positive cases 1 of 2 positive cases",
            "hallucinated 1 of 2 empty cases 2 of 2 empty cases",
            "Dice (mean of 4 cases) 0.500 0.250",
            "Dice (the same, cases found empty as 0) 0.250 0.250",
            "Dice (mean of the 2 positive cases) 0.500 0.500",
        }

    def test_markdown_has_the_cells_of_the_tables(
        self, checkpoint: Path, cli: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = evaluate(EvaluateRequest(checkpoint))
        print_result(result)
        plain = capsys.readouterr().out
        print_result(result, markdown=True)
        titles, cells = [], []
        for line in html.unescape(capsys.readouterr().out).splitlines():
            if line.startswith("## "):
                titles.append(line[3:])
            elif line.startswith("| ") and "---" not in line:
                cells += [cell.strip() for cell in line.strip("|").split(" | ")]
        assert [title in plain for title in titles] == [True, True]
        assert "".join("".join(cells).split()) == "".join(
            "".join(line.split()) for line in plain.splitlines() if line.strip() not in titles
        )
        code, _, err = cli("evaluate", checkpoint, "--markdown", "--json")
        assert (code, "exclude each other" in err) == (2, True)

    def test_a_table_has_each_network_and_case(self, checkpoint: Path, tiny_run: Path, tmp_path: Path) -> None:
        other = rewrite(tiny_run, tmp_path / "other.pt")
        both = evaluate(EvaluateRequest(checkpoint, more=(other,), which="student"))
        for name, result, networks in (
            ("one", evaluate(EvaluateRequest(checkpoint)), 1),
            ("two", both, 2),
        ):
            write_cases(tmp_path / f"{name}.csv", result)
            rows = list(csv.DictReader((tmp_path / f"{name}.csv").open()))
            assert [row["id"] for row in rows] == [case["id"] for case in result["cases"]] * networks
            for row, case in zip(rows, result["cases"], strict=False):
                tp, fp, fn, tn = case["counts"][0]
                assert float(row["specificity"]) == pytest.approx(tn / (tn + fp))
                assert float(row["prevalence_pred"]) == pytest.approx((tp + fp) / (tp + fp + fn + tn))

    def test_classes_have_columns_of_their_own(self, tmp_path: Path) -> None:
        case = {
            "id": "=a,b",
            "dice": 0.5,
            "classes": [0.25, None],
            "average_precision_classes": [0.75, None],
            "hd95_classes": [2.0, None],
            "counts": [[1, 1, 1, 1]],
        }
        result = {"checkpoint": "x", "which": "student", "cases": [case], "classes": [{"label": 7}, {"label": 9}]}
        write_cases(tmp_path / "new" / "c.csv", result)
        (row,) = csv.DictReader((tmp_path / "new" / "c.csv").open())
        assert row == {
            "checkpoint": "x", "net": "student", "id": "=a,b", "dice": "0.5",
            "dice_7": "0.25", "dice_9": "", "average_precision_7": "0.75", "average_precision_9": "",
            "hd95_7": "2.0", "hd95_9": "",
        }  # fmt: skip

    def test_the_overlap_matters(self, checkpoint: Path) -> None:
        """Or the test above could not tell whether it is passed on."""
        f1 = [evaluate(EvaluateRequest(checkpoint, overlap=overlap))["pooled"]["f1"] for overlap in (0.0, 0.5)]
        assert f1[0] != f1[1]

    def test_a_folder_of_unlabeled_images_may_be_gone(self, checkpoint: Path, tiny_run: Path, tmp_path: Path) -> None:
        config = load_checkpoint(checkpoint).config
        gone = {**config, "data": {**config["data"], "unlabeled": str(tmp_path / "gone")}}
        moved = rewrite(tiny_run, tmp_path / "moved.pt", config=gone)
        assert evaluate(EvaluateRequest(moved))["pooled"] == evaluate(EvaluateRequest(checkpoint))["pooled"]

    def test_plain_types_with_where_they_come_from(self, checkpoint: Path, particles_dir: Path) -> None:
        result = evaluate(EvaluateRequest(checkpoint))
        assert json.loads(json.dumps(result, allow_nan=False)) == result
        assert (result["step"], result["part"], result["data"]) == (12, "val", str(particles_dir.resolve()))
        assert result["checkpoint"] == str(checkpoint)
        assert result["test_openings"] == 0


class TestWhich:
    @pytest.mark.parametrize("better", ["student", "teacher"])
    def test_the_headline_is_the_net_that_was_better_in_training(
        self, tiny_run: Path, tmp_path: Path, better: str
    ) -> None:
        """Whichever of the two is better on the cases scored here: one of both orders contradicts them."""
        nets = {net: make_net_score(0.9 if net == better else 0.1) for net in ("student", "teacher")}
        result = evaluate(EvaluateRequest(rewrite(tiny_run, tmp_path / "x.pt", scores=make_scores(**nets))))
        assert result["which"] == better
        assert result["pooled"] == result["nets"][better]["pooled"]
        assert result["nets"]["student"]["pooled"] != result["nets"]["teacher"]["pooled"]

    @pytest.mark.parametrize("which", ["student", "teacher"])
    def test_only_the_net_asked_for_is_scored(self, checkpoint: Path, which: str) -> None:
        both = evaluate(EvaluateRequest(checkpoint))
        told = []

        def track(label: str) -> Any:
            told.append(label)
            return pass_through

        one = evaluate(EvaluateRequest(checkpoint, which=which), track=track)
        assert one["which"] == which
        assert one["nets"] == {which: both["nets"][which]}
        assert told == ["reading cases", f"scoring {which}"]


def change_split(run: Path, out: Path, **changes: Any) -> Split:
    """Write the run's split to ``out``, with some of its fields changed and a fingerprint that fits."""
    split = replace(load_split(run / "split.yaml"), **changes)
    save_split(split, out)
    return split


class TestSplits:
    def test_a_split_of_its_own(self, checkpoint: Path, tiny_run: Path, tmp_path: Path) -> None:
        """Validation and test exchanged."""
        own = load_split(tiny_run / "split.yaml")
        change_split(tiny_run, tmp_path / "s.yaml", val=own.test, test=own.val)
        for part, ids in (("val", own.test), ("test", own.val)):
            result = evaluate(EvaluateRequest(checkpoint, split=tmp_path / "s.yaml", part=part))
            assert [row["id"] for row in result["cases"]] == list(ids)

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_labeled_training_cases_are_not_scored(
        self, checkpoint: Path, tiny_run: Path, tmp_path: Path, part: Any
    ) -> None:
        """The split of another run holds, as validation or test, what this network was trained on."""
        own = load_split(tiny_run / "split.yaml")
        seen, unseen = own.labeled_ids(0.5), own.pool_ids(0.5)
        change_split(tiny_run, tmp_path / "seen.yaml", **{part: (*own.val, *seen[:2])})
        with pytest.raises(SplitError, match=f"2 of the {len(own.val) + 2} {part} cases.*'{seen[0]}'"):
            evaluate(EvaluateRequest(checkpoint, split=tmp_path / "seen.yaml", part=part))
        assert not list(tmp_path.glob("*.jsonl"))
        masked = [i for i in unseen if i not in own.unlabeled]
        change_split(tiny_run, tmp_path / "unseen.yaml", **{part: tuple(masked)})
        result = evaluate(EvaluateRequest(checkpoint, split=tmp_path / "unseen.yaml", part=part))
        assert len(result["cases"]) == len(masked) > 0

    @pytest.mark.parametrize("part", ["val", "test"])
    def test_an_empty_list(self, checkpoint: Path, tiny_run: Path, tmp_path: Path, part: Any) -> None:
        change_split(tiny_run, tmp_path / "s.yaml", **{part: ()})
        with pytest.raises(SplitError, match=f"no {part} cases"):
            evaluate(EvaluateRequest(checkpoint, split=tmp_path / "s.yaml", part=part))
        assert not list(tmp_path.glob("*.jsonl"))

    def test_missing_cases_are_counted_and_open_nothing(
        self, checkpoint: Path, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        split = load_split(tiny_run / "split.yaml")
        folder = Path(shutil.copytree(particles_dir, tmp_path / "copy"))
        for name in split.test[:2]:
            (folder / "images" / f"{name}.png").unlink()
            (folder / "masks" / f"{name}.png").unlink()
        with pytest.raises(SplitError, match=f"2 of {len(split.test)} are missing.*'{split.test[0]}'"):
            evaluate(EvaluateRequest(checkpoint, data=str(folder), part="test"))
        assert not list(tmp_path.glob("*.jsonl"))
        assert len(evaluate(EvaluateRequest(checkpoint, data=str(folder)))["cases"]) == len(split.val)

    def test_equal_names_in_another_data_set_are_not_the_cases_of_the_split(
        self, checkpoint: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "other"
        write_dataset(folder, "particles", 24, seed=5)
        count = len(load_split(tiny_run / "split.yaml").val)
        with pytest.raises(SplitError, match=f"{count} of {count} are missing or have another content"):
            evaluate(EvaluateRequest(checkpoint, data=str(folder)))

    def test_new_masks_are_called_so(
        self, checkpoint: Path, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        val = load_split(tiny_run / "split.yaml").val
        folder = Path(shutil.copytree(particles_dir, tmp_path / "copy", ignore=shutil.ignore_patterns(".ssl_seg")))
        path = folder / "masks" / f"{val[0]}.png"
        write_mask(path, np.roll(read_mask(str(path)), 5, axis=0))
        with pytest.raises(SplitError, match=f"masks of 1 of the {len(val)} val cases are others.*'{val[0]}'.*--all"):
            evaluate(EvaluateRequest(checkpoint, data=str(folder)))
        (folder / "images" / f"{val[1]}.png").unlink()
        (folder / "masks" / f"{val[1]}.png").unlink()
        with pytest.raises(SplitError, match=f"2 of {len(val)} are missing or have another content"):
            evaluate(EvaluateRequest(checkpoint, data=str(folder)))

    def test_the_opening_says_what_was_opened(self, tiny_run: Path, tmp_path: Path) -> None:
        run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
        sealed = load_split(run / "split.yaml")
        split = change_split(tiny_run, tmp_path / "s.yaml", val=sealed.test[:1], test=(*sealed.val, *sealed.test[1:]))
        evaluate(EvaluateRequest(run / "checkpoints" / "best.pt", part="test"))
        evaluate(EvaluateRequest(run / "checkpoints" / "last.pt", part="test", split=tmp_path / "s.yaml"))
        own, other = [e for e in RunDir(run).read_events() if e["event"] == "test_opened"]
        assert (own["checkpoints"], own["splits"]) == ([str(run / "checkpoints" / "best.pt")], [sealed.fingerprint])
        assert own["contents"] == sorted(sealed.image_contents(sealed.test))
        assert (other["by"], other["cases"]) == ("evaluate", len(split.test))
        assert other["splits"] == sorted([sealed.fingerprint, split.fingerprint])


class TestFolders:
    def test_all_notices_training_cases_under_new_names(
        self, checkpoint: Path, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        for part in ("images", "masks"):
            (tmp_path / "renamed" / part).mkdir(parents=True)
            for path in (particles_dir / part).iterdir():
                shutil.copy(path, tmp_path / "renamed" / part / f"new_{path.name}")
        notes: list[str] = []
        request = EvaluateRequest(checkpoint, data=str(tmp_path / "renamed"), part="all")
        scored = {row["id"] for row in evaluate(request, note=notes.append)["cases"]}
        labeled = load_split(tiny_run / "split.yaml").labeled_ids(0.5)
        assert scored == {
            f"new_{path.stem}" for path in (particles_dir / "masks").iterdir() if path.stem not in labeled
        }
        assert [note.split(" were ")[0] for note in notes[1:]] == [f"{len(labeled)} of the 20 cases"]
        assert notes[0].startswith("data: 4 of 24 images have no mask file")

    def test_labels_of_a_grandparent_are_left_out_too(
        self, tiny_run: Path, particles_dir: Path, tmp_path: Path
    ) -> None:
        """A run that builds on one whose labels were validation and test cases of its split."""
        own = load_split(tiny_run / "split.yaml")
        seen = load_checkpoint(tiny_run / "checkpoints" / "last.pt").seen_labels
        older = own.image_contents([own.val[0], own.test[0]])
        child = rewrite(tiny_run, tmp_path / "child.pt", seen_labels=tuple(sorted({*seen, *older})))
        for part in ("val", "test"):
            with pytest.raises(SplitError, match=f"1 of the .* {part} cases .*a run that it builds on"):
                evaluate(EvaluateRequest(child, part=part))
        rows = evaluate(EvaluateRequest(child, part="all", which="student"))["cases"]
        masked = {path.stem for path in (particles_dir / "masks").iterdir()}
        assert {row["id"] for row in rows} == masked - {*own.labeled_ids(0.5), own.val[0], own.test[0]}

    def test_with_nothing_else_there_is_nothing_to_score(
        self, checkpoint: Path, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        for part in ("images", "masks"):
            (tmp_path / "seen" / part).mkdir(parents=True)
            for name in load_split(tiny_run / "split.yaml").labeled_ids(0.5):
                shutil.copy(particles_dir / part / f"{name}.png", tmp_path / "seen" / part)
        with pytest.raises(DataError, match="nothing is left to score"):
            evaluate(EvaluateRequest(checkpoint, data=str(tmp_path / "seen"), part="all"))

    def test_all_and_a_split_contradict(self, checkpoint: Path, tiny_run: Path) -> None:
        with pytest.raises(ConfigError, match=r"--all and --split .* exclude each other"):
            evaluate(EvaluateRequest(checkpoint, split=tiny_run / "split.yaml", part="all"))

    def test_new_masks_do_not_make_training_images_new(
        self, checkpoint: Path, particles_dir: Path, tiny_run: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(particles_dir, tmp_path / "copy"))
        for path in (folder / "masks").iterdir():
            write_mask(path, 1 - read_mask(str(path)))
        notes: list[str] = []
        evaluate(EvaluateRequest(checkpoint, data=str(folder), part="all", which="student"), note=notes.append)
        count = len(load_split(tiny_run / "split.yaml").labeled_ids(0.5))
        assert [note.split(" of ")[0] for note in notes] == ["data: 4", str(count)]  # images without a mask, and these

    def test_the_groups_of_the_training_say_nothing_about_another_folder(self, tiny_run: Path, tmp_path: Path) -> None:
        (tmp_path / "groups.csv").write_text("name,group\nsomething,a\nelse,b\n")
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config
        config = {**config, "data": {**config["data"], "groups": str(tmp_path / "groups.csv")}}
        write_dataset(tmp_path / "other", "particles", 2, seed=5)
        path = rewrite(tiny_run, tmp_path / "x.pt", config=config)
        assert len(evaluate(EvaluateRequest(path, data=str(tmp_path / "other"), part="all"))["cases"]) == 2

    def test_all_without_a_mask(self, checkpoint: Path, particles_dir: Path, tmp_path: Path) -> None:
        shutil.copytree(particles_dir / "images", tmp_path / "bare" / "images")
        with pytest.raises(DataError, match="no labeled case"):
            evaluate(EvaluateRequest(checkpoint, data=str(tmp_path / "bare"), part="all"))

    def test_volumes_are_refused(self, checkpoint: Path, sheets_dir: Path) -> None:
        with pytest.raises(DataError, match="holds 3D images; the network was trained on 2D"):
            evaluate(EvaluateRequest(checkpoint, data=str(sheets_dir), part="all"))

    def test_masks_have_the_values_of_the_training(self, checkpoint: Path, tmp_path: Path) -> None:
        """A folder of 0/255 masks would be fine by itself, but class 1 was the value 1."""
        folder = tmp_path / "other"
        write_dataset(folder, "particles", 3, seed=5)
        assert len(evaluate(EvaluateRequest(checkpoint, data=str(folder), part="all"))["cases"]) == 3
        for path in (folder / "masks").iterdir():
            write_mask(path, read_mask(str(path)) * 255)
        with pytest.raises(DataError, match=r"\{255\}, which are not among the label values"):
            evaluate(EvaluateRequest(checkpoint, data=str(folder), part="all"))
        mapped = EvaluateRequest(checkpoint, data=str(folder), part="all", settings={"label_map": {255: 1}})
        listed = EvaluateRequest(checkpoint, data=str(folder), part="all", settings={"label_values": [0, 255]})
        assert evaluate(mapped)["cases"] == evaluate(listed)["cases"]
        more = EvaluateRequest(checkpoint, data=str(folder), part="all", settings={"label_values": [0, 1, 255]})
        with pytest.raises(DataError, match="3 classes, and the network knows 2"):
            evaluate(more)

    @pytest.mark.parametrize("says", [True, False])
    def test_the_voxel_size_is_that_of_the_files_where_they_state_one(
        self, checkpoint: Path, tmp_path: Path, says: bool
    ) -> None:
        model, folder = open_model(checkpoint), tmp_path / "other"
        data = model.config.data.model_copy(update={"spacing": (3.0, 3.0)})
        model = replace(model, config=model.config.model_copy(update={"data": data}))
        write_dataset(folder, "particles", 2)
        for path in (folder / "images").iterdir() if says else ():
            geometry = Geometry((2.0, 2.0))
            write_tiff(path.with_suffix(".tif"), read_mask(str(path)), compression=None, geometry=geometry)
            path.unlink()
        for settings, wanted in (({}, (2.0, 2.0) if says else (3.0, 3.0)), ({"spacing": [4.0, 4.0]}, (4.0, 4.0))):
            catalog, used = open_cases(model, pass_through, str(folder), settings)
            assert {facts.spacing for facts in catalog.facts.values()} == {wanted}
            assert used.spacing == (None if says and not settings else wanted)

    def test_ignored_voxels_are_not_scored(self, tiny_run: Path, tmp_path: Path) -> None:
        folder = tmp_path / "other"
        write_dataset(folder, "particles", 2, seed=5)
        for path in (folder / "masks").iterdir():
            mask = read_mask(str(path)).copy()
            mask[:, 64:] = 255
            write_mask(path, mask)
        config = load_checkpoint(tiny_run / "checkpoints" / "last.pt").config
        config = {**config, "data": {**config["data"], "ignore_value": 255}}
        path = rewrite(tiny_run, tmp_path / "x.pt", config=config)
        result = evaluate(EvaluateRequest(path, data=str(folder), part="all"))
        for row in result["cases"]:
            left = read_mask(str(folder / "masks" / f"{row['id']}.png"))[:, :64]
            assert row["prevalence"] == pytest.approx(left.mean())


def test_a_checkpoint_with_a_split_of_edited_ids(tiny_run: Path, tmp_path: Path) -> None:
    """A test case moved to validation in the file's split: its fingerprint does not fit any more."""
    split: Split = load_split(tiny_run / "split.yaml")
    edited = {**split_to_dict(split), "val": [*split.val, split.test[0]]}
    with pytest.raises(SplitError, match="fingerprint"):
        evaluate(EvaluateRequest(rewrite(tiny_run, tmp_path / "x.pt", split=edited)))
