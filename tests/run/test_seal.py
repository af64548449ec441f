"""Every way of scoring a sealed case is recorded, wherever the run, the checkpoint or the data were copied to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest

from ssl_seg.data.catalog import Catalog, open_catalog
from ssl_seg.data.home import HOME_FOLDER
from ssl_seg.data.splits.files import load_split, save_split
from ssl_seg.data.splits.split import Split, make_split
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask, write_mask
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.diagnose.predictions import PredictionsRequest, diagnose_predictions
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate
from ssl_seg.run.bootstrap import check_copies
from ssl_seg.run.directory import RunDir
from ssl_seg.run.seal import OPENINGS, SEALS, Ledger, find_sealed, find_sealed_masks, open_sealed, register_seal

SEALED = {"a": "1" * 12, "b": "2" * 12}


@pytest.fixture
def data(particles_dir: Path, tmp_path: Path) -> Path:
    """A copy of the particles without the ledger of the other tests."""
    return Path(shutil.copytree(particles_dir, tmp_path / "data", ignore=shutil.ignore_patterns(HOME_FOLDER)))


@pytest.fixture
def run(tiny_run: Path, data: Path, tmp_path: Path) -> Path:
    """A run on those data."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for name in ("best.pt", "last.pt"):
        checkpoint = load_checkpoint(run / "checkpoints" / name)
        config = {**checkpoint.config, "data": {**checkpoint.config["data"], "root": str(data)}}
        save_checkpoint(replace(checkpoint, config=config), run / "checkpoints" / name)
    return run


def openings(home: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((home / HOME_FOLDER / OPENINGS).glob("*.json"))]


def block(home: Path) -> None:
    """Make the ledger's folder impossible, also for a superuser."""
    shutil.rmtree(home / HOME_FOLDER, ignore_errors=True)
    (home / HOME_FOLDER).write_text("")


class TestEvaluate:
    def score(self, checkpoint: Path, **request: Any) -> tuple[int, int]:
        result = evaluate(EvaluateRequest(checkpoint, which="student", **request))
        return result["sealed_cases"], result["test_openings"]

    def test_copies_of_the_run_the_checkpoint_and_the_data_do_not_count_anew(
        self, run: Path, data: Path, tmp_path: Path
    ) -> None:
        count = len(load_split(run / "split.yaml").test)
        assert self.score(run / "checkpoints" / "best.pt", part="test") == (count, 1)
        copied = Path(shutil.copytree(run, tmp_path / "again"))
        (copied / "events.jsonl").write_text("")
        assert self.score(copied / "checkpoints" / "best.pt", part="test") == (count, 2)
        alone = Path(shutil.copy(run / "checkpoints" / "last.pt", tmp_path))
        assert self.score(alone, part="test") == (count, 3)
        elsewhere = Path(shutil.copytree(data, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(HOME_FOLDER)))
        assert self.score(alone, part="test", data=str(elsewhere)) == (count, 4)
        assert [len(openings(home)) for home in (data, elsewhere)] == [4, 1]

    def test_all_and_another_split_break_the_seal_of_their_own(self, run: Path, data: Path, tmp_path: Path) -> None:
        own = load_split(run / "split.yaml")
        checkpoint = run / "checkpoints" / "best.pt"
        assert self.score(checkpoint) == (0, 0)
        assert not openings(data)
        assert self.score(checkpoint, part="all") == (len(own.test), 1)
        save_split(replace(own, val=own.test[:1], test=(*own.test[1:], *own.val)), tmp_path / "other.yaml")
        assert self.score(checkpoint, split=tmp_path / "other.yaml") == (1, 2)
        # Only those openings count in which one of these cases was open: here the first, below this one.
        everything = len(own.test) - 1 + len(own.val)
        assert self.score(checkpoint, split=tmp_path / "other.yaml", part="test") == (everything, 2)
        save_split(replace(own, val=own.test, test=own.val[:1]), tmp_path / "third.yaml")
        assert self.score(checkpoint, split=tmp_path / "third.yaml", part="test") == (1, 2)
        events = [e for e in RunDir(run).read_events() if e["event"] == "test_opened"]
        assert [e["opening"] for e in events] == [
            r["opening"] for r in sorted(openings(data), key=events_order(events))
        ]

    def test_a_network_of_other_data_meets_the_seals_of_the_folder(self, run: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        write_dataset(other, "particles", 12, seed=5)
        checkpoint = run / "checkpoints" / "best.pt"
        assert self.score(checkpoint, data=str(other), part="all") == (0, 0)
        catalog = open_catalog(str(other))
        split = make_split(catalog, [1.0], seed=1)
        register_seal(split, catalog)
        assert self.score(checkpoint, data=str(other), part="all") == (len(split.test), 1)

    def test_a_run_seals_its_test_list_beside_the_data(self, tiny_run: Path, particles_dir: Path) -> None:
        split = load_split(tiny_run / "split.yaml")
        seals = [json.loads(path.read_text()) for path in (particles_dir / HOME_FOLDER / SEALS).glob("*.json")]
        assert set(split.test) in [{case["id"] for case in seal["cases"]} for seal in seals]

    def test_data_that_cannot_be_written_to(self, run: Path, data: Path, tmp_path: Path) -> None:
        block(data)
        count = len(load_split(run / "split.yaml").test)
        notes: list[str] = []
        request = EvaluateRequest(run / "checkpoints" / "best.pt", part="test", which="student")
        for opening in (1, 2):
            assert evaluate(request, note=notes.append)["test_openings"] == opening
        assert [note for note in notes if "only in the run" in note and str(data) in note] == notes[-1:] * 2
        (tmp_path / "splits").mkdir()
        shutil.copy(run / "split.yaml", tmp_path / "splits")
        notes.clear()
        given = replace(request, split=tmp_path / "splits" / "split.yaml")
        assert evaluate(given, note=notes.append)["test_openings"] == 3
        assert "only beside the split file" in notes[-1]
        assert [r["cases"] for r in openings(tmp_path / "splits")] == [count]

    def test_nothing_can_be_written(self, run: Path, data: Path) -> None:
        block(data)
        (run / "events.jsonl").unlink()
        (run / "events.jsonl").mkdir()
        notes: list[str] = []
        request = EvaluateRequest(run / "checkpoints" / "best.pt", part="test", which="student")
        assert evaluate(request, note=notes.append)["test_openings"] == 1
        assert "cannot be recorded" in notes[-1]


def events_order(events: Sequence[dict[str, Any]]) -> Any:
    order = [event["opening"] for event in events]
    return lambda record: order.index(record["opening"])


class TestNearCopies:
    """An image with labels lies in the folder a second time, brightened: no content gives it away."""

    @pytest.fixture
    def copied(self, run: Path, data: Path) -> str:
        """The name of an image that was labeled; its brightened copy is called ``copy``."""
        name = load_split(run / "split.yaml").labeled_ids(0.5)[0]
        image = cv2.imread(str(data / "images" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        brighter = (image * 0.8 + 20).astype(image.dtype)
        cv2.imwrite(str(data / "images" / "copy.png"), brighter)
        shutil.copy(data / "masks" / f"{name}.png", data / "masks" / "copy.png")
        return name

    def test_all_leaves_them_out_and_a_list_of_them_is_doubted(
        self, run: Path, data: Path, copied: str, tmp_path: Path
    ) -> None:
        own = load_split(run / "split.yaml")
        catalog = open_catalog(str(data))
        notes: list[str] = []
        request = EvaluateRequest(run / "checkpoints" / "best.pt", which="student")
        rows = evaluate(replace(request, part="all"), note=notes.append)["cases"]
        assert not {row["id"] for row in rows} & {"copy", copied}
        assert len(rows) == 20 - len(own.labeled_ids(0.5))
        assert [note for note in notes if note.startswith("1 of the 21 cases look like copies")]
        contents = own.content | {"copy": catalog.facts["copy"].content}
        save_split(replace(own, val=("copy", *own.val), content=contents), tmp_path / "s.yaml")
        notes.clear()
        rows = evaluate(replace(request, split=tmp_path / "s.yaml"), note=notes.append)["cases"]
        assert len(rows) == len(own.val) + 1
        assert [note for note in notes if "1 of the" in note and "'copy'" in note and "too good" in note]
        notes.clear()
        evaluate(request, note=notes.append)
        assert not [note for note in notes if "copies" in note]

    def test_the_gate_refuses_them(self, run: Path, data: Path, copied: str) -> None:
        parent = load_checkpoint(run / "checkpoints" / "best.pt")
        catalog, own = open_catalog(str(data)), load_split(run / "split.yaml")
        assert check_copies(parent, own, catalog) == []
        (reason,) = check_copies(parent, replace(own, test=(*own.test, "copy")), catalog)
        assert reason.startswith("1 test case")
        assert "'copy'" in reason
        fewer = replace(catalog, facts={i: facts for i, facts in catalog.facts.items() if i != copied})
        assert check_copies(parent, replace(own, test=(*own.test, "copy")), fewer) == []

    def test_a_new_export_under_the_old_names_is_doubted(self, run: Path, data: Path, tmp_path: Path) -> None:
        export = Path(shutil.copytree(data, tmp_path / "export"))
        for path in (export / "images").iterdir():
            image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), (image * 0.8 + 20).astype(image.dtype))
        notes: list[str] = []
        request = EvaluateRequest(run / "checkpoints" / "best.pt", data=str(export), part="all", which="student")
        assert evaluate(request, note=notes.append)["sealed_cases"] == 0
        labeled = len(load_split(run / "split.yaml").labeled_ids(0.5))
        assert [note for note in notes if "new export" in note and f"{labeled} of the cases" in note]


class TestLedger:
    def test_those_who_open_at_once_all_count(self, tmp_path: Path) -> None:
        """One file an opening: nothing is read and written back."""
        ledger = Ledger((tmp_path,))
        with ThreadPoolExecutor(8) as pool:
            counts = list(pool.map(lambda _: open_sealed(SEALED, ledger, by="test"), range(40)))
        assert len(openings(tmp_path)) == 40
        assert max(counts) == 40
        assert open_sealed(SEALED, ledger, by="test") == 41

    def test_only_openings_with_a_case_in_common_count(self, tmp_path: Path) -> None:
        ledger = Ledger((tmp_path,))
        assert open_sealed({"a": SEALED["a"]}, ledger, by="test") == 1
        assert open_sealed({"b": SEALED["b"]}, ledger, by="test") == 1
        assert open_sealed({"renamed": SEALED["a"]}, ledger, by="test") == 2
        assert open_sealed(SEALED, ledger, by="test") == 4
        assert open_sealed({}, ledger, by="test") == 0
        assert len(openings(tmp_path)) == 4

    def test_a_record_that_nobody_can_read_is_left_out(self, tmp_path: Path) -> None:
        open_sealed(SEALED, Ledger((tmp_path,)), by="test")
        (tmp_path / HOME_FOLDER / OPENINGS / "torn.json").write_text('{"opening": ')
        (tmp_path / HOME_FOLDER / OPENINGS / "list.json").write_text("[]")
        assert open_sealed(SEALED, Ledger((tmp_path,)), by="test") == 2

    def test_without_a_place_it_says_so(self) -> None:
        notes: list[str] = []
        assert open_sealed(SEALED, Ledger(), by="test", note=notes.append) == 1
        assert "cannot be recorded" in notes[0]


class TestSealed:
    @pytest.fixture
    def catalog(self, data: Path) -> Catalog:
        return open_catalog(str(data))

    @pytest.fixture
    def split(self, catalog: Catalog) -> Split:
        return make_split(catalog, [1.0], seed=3)

    def test_by_content_under_any_name(self, catalog: Catalog, split: Split, data: Path) -> None:
        ids = [case.id for case in catalog.cases]
        assert set(find_sealed(catalog, ids, [split])) == set(split.test)
        assert set(find_sealed(catalog, split.val, [split])) == set()
        for part in ("images", "masks"):
            for path in list((data / part).iterdir()):
                path.rename(path.with_name(f"new_{path.name}"))
        renamed = open_catalog(str(data))
        found = find_sealed(renamed, [case.id for case in renamed.cases], [split])
        assert set(found) == {f"new_{i}" for i in split.test}
        assert set(found.values()) == split.image_contents(split.test)

    def test_seals_of_others_count_only_where_no_split_is_known(self, catalog: Catalog, split: Split) -> None:
        """Or validation of one of several splits of the same data would open the test list of another one."""
        register_seal(split, catalog)
        other = make_split(catalog, [1.0], seed=4)
        ids = [case.id for case in catalog.cases]
        assert set(find_sealed(catalog, ids, [other])) == set(other.test) != set(split.test)
        assert set(find_sealed(catalog, ids, [])) == set(split.test)
        register_seal(other, catalog)
        assert set(find_sealed(catalog, ids, [])) == set(split.test) | set(other.test)

    def test_masks_know_their_seal_also_after_a_move(
        self, catalog: Catalog, split: Split, data: Path, tmp_path: Path
    ) -> None:
        register_seal(split, catalog)
        for root in (data, Path(shutil.move(shutil.copytree(data, tmp_path / "x"), tmp_path / "moved"))):
            masks = {path.stem: path for path in (root / "masks").iterdir()}
            for folder in (root, root / "masks"):
                found, homes = find_sealed_masks(folder, masks)
                assert (set(found), homes) == (set(split.test), (root,))
                assert set(found.values()) == split.image_contents(split.test)


class TestDiagnose:
    def test_predictions_of_sealed_cases(self, data: Path, tmp_path: Path) -> None:
        catalog = open_catalog(str(data))
        split = make_split(catalog, [1.0], seed=3)
        register_seal(split, catalog)
        (tmp_path / "pred").mkdir()
        for name in (split.test[0], split.val[0]):
            write_mask(tmp_path / "pred" / f"{name}.png", read_mask(str(data / "masks" / f"{name}.png")))
        for masks, expected in ((data / "masks", 1), (data, 2), (None, 2)):
            result = diagnose_predictions(PredictionsRequest(tmp_path / "pred", masks))
            told = [note for note in result.notes if "sealed" in note]
            assert len(openings(data)) == expected
            assert [f"1 of these masks belong to sealed test cases: they have now been opened {expected}" in note
                    for note in told] == [True] * (masks is not None)  # fmt: skip
        (tmp_path / "pred" / f"{split.test[0]}.png").unlink()
        diagnose_predictions(PredictionsRequest(tmp_path / "pred", data / "masks"))
        assert len(openings(data)) == 2

    def test_a_checkpoint_does_not_look_at_masks_that_another_split_has_sealed(self, run: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        write_dataset(other, "particles", 10, seed=5)
        catalog = open_catalog(str(other))
        split = make_split(catalog, [1.0], seed=1)
        register_seal(split, catalog)
        result = diagnose_checkpoint(CheckpointRequest(run / "checkpoints" / "best.pt", str(other), "student"))
        assert {image.id for image in result.images if image.part == "test"} == set(split.test)
        assert all(image.ratio_true is None for image in result.images if image.id in split.test)
        assert not openings(other)

    def test_labels_of_a_grandparent_are_training_cases(self, run: Path, tmp_path: Path) -> None:
        split = load_split(run / "split.yaml")
        checkpoint = load_checkpoint(run / "checkpoints" / "best.pt")
        seen = {*checkpoint.seen_labels, *split.image_contents([split.val[0], split.test[0]])}
        save_checkpoint(replace(checkpoint, seen_labels=tuple(sorted(seen))), tmp_path / "child.pt")
        result = diagnose_checkpoint(CheckpointRequest(tmp_path / "child.pt", which="student"))
        parts = {image.id: image.part for image in result.images}
        assert (parts[split.val[0]], parts[split.val[1]], parts[split.test[0]]) == ("train", "val", "test")
