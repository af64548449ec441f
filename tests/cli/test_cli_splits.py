"""``split make`` and ``split check`` beyond one good split: folds, planted faults, the table and the figure."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from conftest import TINY, Cli
from test_cli import assert_refused

from ssl_seg.data.splits.files import load_split, save_split


def test_folds_are_written_all_or_none(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    make = ("split", "make", "--data", particles_dir, "--folds", 3, "--out", tmp_path / "s.yaml")
    code, out, _ = cli(*make)
    assert code == 0
    paths = sorted(tmp_path.iterdir())
    assert [p.name for p in paths] == ["s_fold0.yaml", "s_fold1.yaml", "s_fold2.yaml"]
    splits = [load_split(p) for p in paths]
    assert all(s.fingerprint in out for s in splits)
    assert cli("split", "check", paths[1], "--data", particles_dir)[0] == 0
    paths[0].unlink()
    assert_refused(cli(*make), "s_fold1.yaml exists")
    assert not paths[0].exists()
    assert_refused(cli(*make, "--val", 0.2), "--folds and --val exclude each other")


def test_the_table_and_the_figure(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    cli("split", "make", "--data", particles_dir, "--labels", 0.5, "--out", tmp_path / "s.yaml")
    figure = tmp_path / "s.png"
    code, out, _ = cli("split", "check", tmp_path / "s.yaml", "--data", particles_dir, "--figure", figure)
    assert code == 0
    rows = [line.split()[:3] for line in out.splitlines() if line.strip().startswith(("labels", "val", "test"))]
    split = load_split(tmp_path / "s.yaml")
    assert ["labels", "0.5", str(len(split.fractions[0.5]))] in rows
    assert ["val", str(len(split.val)), f"{len(split.val):.1f}"] in rows
    assert cv2.imread(str(figure)) is not None
    again = cli("split", "check", tmp_path / "s.yaml", "--data", particles_dir, "--figure", figure)
    assert_refused(again, "s.png exists already")
    assert_refused(cli("split", "check", tmp_path / "s.yaml", "--figure", tmp_path / "t.png"), "--data")


def test_images_that_were_labeled_since_are_no_fault(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    data = shutil.copytree(particles_dir, tmp_path / "data")
    cli("split", "make", "--data", data, "--out", tmp_path / "s.yaml")
    split = load_split(tmp_path / "s.yaml")
    shutil.copy(data / "masks" / f"{split.val[0]}.png", data / "masks" / f"{split.unlabeled[0]}.png")
    code, out, _ = cli("split", "check", tmp_path / "s.yaml", "--data", data)
    assert (code, "changed_content" in out) == (0, False)
    assert (
        f"1 image without a mask when the split was made: now the last labeled training cases ({split.unlabeled[0]})"
        in out
    )
    assert "in no list" not in out
    image = cv2.imread(str(data / "images" / f"{split.unlabeled[0]}.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(data / "images" / "later.png"), image[::-1])
    _, out, _ = cli("split", "check", tmp_path / "s.yaml", "--data", data)
    assert "1 image is in no list of the split and not used (later)" in out


@pytest.mark.parametrize("with_data", [True, False])
def test_a_planted_leak_has_exit_code_2(
    cli: Cli,
    particles_dir: Path,
    tmp_path: Path,
    with_data: bool,
) -> None:
    cli("split", "make", "--data", particles_dir, "--out", tmp_path / "s.yaml")
    split = load_split(tmp_path / "s.yaml")
    save_split(replace(split, val=(*split.val, split.test[0])), tmp_path / "leak.yaml")
    data = ("--data", particles_dir) if with_data else ()
    code, out, _ = cli("split", "check", tmp_path / "leak.yaml", *data)
    assert code == 2
    assert f"fault: overlap: 1 case is listed more than once: in val and test ({split.test[0]})" in out
    code, out, _ = cli("split", "check", tmp_path / "leak.yaml", *data, "--json")
    result = json.loads(out)
    assert [f["code"] for f in result["findings"] if f["level"] == "fault"] == ["overlap", "duplicate_content"]
    assert (code, result["summary"]["faults"]) == (2, 2)
    assert bool(result["summary"]["sets"]) == with_data


def test_labels_mean_the_same_as_for_a_training(cli: Cli, particles_dir: Path, tmp_path: Path) -> None:
    make = ("split", "make", "--data", particles_dir, "--labels")
    code, out, _ = cli(*make, 2, "0.5,1.0", "--out", tmp_path / "s.yaml")
    split = load_split(tmp_path / "s.yaml")
    assert code == 0
    assert sorted(map(len, split.fractions.values())) == [2, 7, 13]
    assert ", 1.0: 13 cases" in out
    assert "less than half a case" not in out
    assert "fewer than 10" in out
    assert "--folds" in out
    assert_refused(cli(*make, 1, "--out", tmp_path / "t.yaml"), "--labels 1:", "write 1.0 for all", "0.001")
    assert_refused(cli(*make, 50, "--out", tmp_path / "t.yaml"), "labels=50", "pool has 13")
    assert_refused(cli(*make, 0.1, 2.5, "--out", tmp_path / "t.yaml"), "--labels 2.5:", "neither")
    code, out, _ = cli(*make, 0.001, "--out", tmp_path / "u.yaml")
    assert (code, "note: 0.001 of 13 cases is less than half a case and becomes 1 case" in out) == (0, True)


def write_parts(root: Path, **counts: int) -> Path:
    """Blobs with masks, so many in each of the folders."""
    rng = np.random.default_rng(0)
    for part, count in counts.items():
        for n in range(count):
            mask = cv2.GaussianBlur(rng.normal(size=(64, 64)), (0, 0), 4) > 0.05
            image = (80 + 90 * mask + rng.normal(0, 8, mask.shape)).astype(np.uint8)
            for kind, pixels in (("images", image), ("masks", mask.astype(np.uint8))):
                (root / part / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / part / kind / f"{part}{n}x.png"), pixels)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("counts", [{"train": 12, "val": 10, "test": 10}, {"train": 12, "val": 10}], ids=len)
def test_given_folders_from_split_to_evaluate(cli: Cli, tmp_path: Path, counts: dict[str, int]) -> None:
    data = write_parts(tmp_path / "given", **counts)
    ids = {part: {f"{part}/{part}{n}x" for n in range(count)} for part, count in counts.items()}
    code, out, err = cli("split", "make", "--data", data, "--labels", 0.5, "--out", tmp_path / "s.yaml")
    assert (code, "note: the folders are the split, 12 in train/, 10 in val/" in out) == (0, True), (out, err)
    split = load_split(tmp_path / "s.yaml")
    found = {"train": split.fractions[1.0], "val": split.val, "test": split.test}
    assert {part: set(found[part]) for part in found} == {"test": set()} | ids
    code, out, err = cli("split", "check", tmp_path / "s.yaml", "--data", data)
    assert code == 0, (out, err)

    config, run = tmp_path / "tiny.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(data)}}))
    code, out, err = cli("train", "--config", config, "--labels", 0.5, "--out", run)
    assert code == 0, (out, err)
    assert f"6 labeled, 6 unlabeled, 10 validation, {len(split.test)} test (sealed)" in out + err
    own = load_split(run / "split.yaml")
    assert (set(own.fractions[1.0]), set(own.val), set(own.test)) == tuple(set(found[part]) for part in found)
    rows = json.loads(cli("evaluate", run, "--json")[1])["cases"]
    assert {row["id"] for row in rows} == ids["val"]
    tested = cli("evaluate", run, "--test", "--json")
    if "test" in counts:
        assert {row["id"] for row in json.loads(tested[1])["cases"]} == ids["test"]
    else:
        assert_refused(tested, "the split has no test cases; score other data with --all --data FOLDER")
    # What the run wrote down gives the same split again.
    code, out, err = cli("train", "--config", run / "config.yaml", "--out", tmp_path / "again")
    assert (code, load_split(tmp_path / "again" / "split.yaml").fingerprint) == (0, own.fingerprint), (out, err)
    code, out, err = cli("train", "--bootstrap", run, "--labels", 1.0, "--out", tmp_path / "next", "--force")
    assert (code, load_split(tmp_path / "next" / "split.yaml").val) == (0, own.val), (out, err)
    code, out, err = cli("split", "make", "--data", data, "--val", 0.2, "--test", 0.2, "--out", tmp_path / "anew.yaml")
    assert (code, "the folders are" in out) == (0, False), err
    assert set(load_split(tmp_path / "anew.yaml").val) != ids["val"]
