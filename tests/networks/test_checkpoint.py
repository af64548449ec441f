from __future__ import annotations

import math
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from score_counts import make_net_score, make_scores
from torch import nn

from ssl_seg.engine.ema import WeightAverage
from ssl_seg.errors import CheckpointError
from ssl_seg.networks.checkpoint import (
    FORMAT,
    PRETRAINING_FORMAT,
    VERSION,
    Checkpoint,
    RunProgress,
    load_checkpoint,
    load_parts,
    load_weights,
    save_checkpoint,
)
from ssl_seg.networks.checkpoint_file import has_sound_sums


def make_checkpoint() -> Checkpoint:
    net = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return Checkpoint(
        student=net.state_dict(),
        teacher=nn.Linear(2, 3).state_dict(),
        progress=RunProgress(step=5, ema_updates=5, start_score=-math.inf, history=(0.25, 0.5, 0.125)),
        config={"seed": 3, "data": {"patch_size": [64, 64]}},
        split={"val": ["a"], "fractions": {0.01: ["b"], 1.0: ["b", "c"]}},
        scores=make_scores(make_net_score(0.5, 0.1, None, None), make_net_score(0.4, 0.0, None, None)),
        seen_labels=("0123456789ab",),
        parts={"optimizer": optimizer.state_dict()},
    )


def test_the_names_in_files_of_users_stay() -> None:
    """Modules may move; a file that says what it is by their former name must still be read."""
    assert (FORMAT, VERSION, PRETRAINING_FORMAT) == ("ssl_seg.checkpoint", 6, "ssl_seg.pretraining")


def test_round_trip(tmp_path: Path) -> None:
    saved = make_checkpoint()
    save_checkpoint(saved, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert (loaded.progress, loaded.config, loaded.split, loaded.scores) == (
        saved.progress,
        saved.config,
        saved.split,
        saved.scores,
    )
    for part in ("student", "teacher"):
        for name, value in getattr(saved, part).items():
            assert torch.equal(getattr(loaded, part)[name], value)
    assert loaded.parts.keys() == {"optimizer"}
    states = [checkpoint.parts["optimizer"]["state"][0]["exp_avg"] for checkpoint in (loaded, saved)]
    assert torch.equal(*states)
    lazy = load_checkpoint(tmp_path / "a.pt", lazy=True)
    assert lazy.progress == saved.progress
    assert torch.equal(lazy.student["weight"], saved.student["weight"])


def test_every_part_travels_whatever_its_name(tmp_path: Path) -> None:
    saved = make_checkpoint()
    weights = nn.Linear(2, 3).state_dict()
    parts = {"method": {"threshold": 0.5}, "swa": {"average": weights, "count": 4}, "other": None}
    save_checkpoint(replace(saved, parts=saved.parts | parts), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt").parts
    assert loaded.keys() == {"optimizer", *parts}
    assert (loaded["method"], loaded["swa"]["count"], loaded["other"]) == ({"threshold": 0.5}, 4, None)
    assert torch.equal(loaded["swa"]["average"]["weight"], weights["weight"])


@pytest.mark.parametrize("name", ["version", "teacher", "seen_labels"])
def test_a_part_that_would_take_the_place_of_another_entry_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"part of the run is called '{name}'.*rename it"):
        save_checkpoint(replace(make_checkpoint(), parts={name: {"x": 1}}), tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []


class TestLoadParts:
    def load(self, part: nn.Module, **states: Any) -> None:
        load_parts({"swa": part}, replace(make_checkpoint(), parts=states), "x.pt")

    def test_each_goes_on_from_its_own_state(self) -> None:
        net, other = nn.Linear(2, 3), nn.Linear(2, 3)
        self.load(net, swa=other.state_dict(), method={"x": 1})
        assert torch.equal(net.weight, other.weight)

    @pytest.mark.parametrize("states", [{}, {"swa": None}, {"swa": {}}])
    def test_what_has_no_state_need_not_be_there(self, states: dict[str, Any]) -> None:
        self.load(nn.ReLU(), **states)
        with pytest.raises(CheckpointError, match=r"x\.pt is damaged: its part 'swa' is missing"):
            self.load(nn.Linear(2, 3), **states)

    @pytest.mark.parametrize("state", [{"weight": 3}, {"weight": torch.ones(1)}, {"a": {}}])
    def test_a_state_of_another_form_is_refused(self, state: dict[str, Any]) -> None:
        for part in (nn.Linear(2, 3), WeightAverage(nn.Linear(2, 3)), torch.optim.SGD(nn.Linear(2, 3).parameters())):
            with pytest.raises(CheckpointError, match=r"x\.pt is damaged: its part 'swa' .*does not fit"):
                self.load(part, swa=state)  # type: ignore[arg-type]

    def test_what_an_optimizer_remembers_has_the_shape_of_its_parameter(self) -> None:
        net = nn.Linear(2, 3)
        state = make_checkpoint().parts["optimizer"]
        load_parts({"optimizer": torch.optim.AdamW(net.parameters())}, make_checkpoint(), "x.pt")
        state["state"][0]["exp_avg"] = torch.ones(1)
        with pytest.raises(CheckpointError, match=r"x\.pt is damaged: its part 'optimizer' .*does not fit"):
            load_parts(
                {"optimizer": torch.optim.AdamW(net.parameters())},
                replace(make_checkpoint(), parts={"optimizer": state}),
                "x.pt",
            )


def test_what_has_been_seen_and_what_had_collapsed_travel(tmp_path: Path) -> None:
    progress = RunProgress(5, 5, 0.1, (0.2, 0.3), (0, 2))
    save_checkpoint(replace(make_checkpoint(), progress=progress, seen_labels=("a1", "b2")), tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert (loaded.progress, loaded.seen_labels) == (progress, ("a1", "b2"))
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    for wrong in ([3], [-1], ["x"], None):
        torch.save({**content, "progress": {**content["progress"], "collapsed": wrong}}, tmp_path / "wrong.pt")
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "wrong.pt")


@given(
    st.lists(st.tuples(st.sampled_from([-math.inf, -0.75, 0.0, 0.25, 0.5, 1.0]), st.booleans()), min_size=1, max_size=9)
)
def test_collapsed_networks_rank_behind_all_others_and_by_score_among_themselves(
    looks: list[tuple[float, bool]],
) -> None:
    progress = RunProgress(start_score=looks[0][0], collapsed=(0,) if looks[0][1] else ())
    for step, (score, has_collapsed) in enumerate(looks[1:], start=1):
        progress = progress.add_epoch(step, score, has_collapsed=has_collapsed)
    finite = [epoch for epoch, (score, _) in enumerate(looks) if score > -math.inf]
    expected = sorted(finite, key=lambda epoch: (looks[epoch][1], -looks[epoch][0])) or [0]
    assert progress.rank_epochs() == expected
    assert progress.best_score == looks[expected[0]][0]
    assert (progress.start_score, *progress.history) == tuple(score for score, _ in looks)
    assert (progress.step, len(progress.history)) == (len(looks) - 1, len(looks) - 1)
    assert (max(progress.ranking_scores) == progress.ranking_scores[expected[0]]) or not finite


def test_ranking_of_epochs() -> None:
    nan = -math.inf
    assert RunProgress(start_score=0.4, history=(0.3, 0.5, nan, 0.5, 0.45)).rank_epochs() == [2, 4, 5, 0, 1]
    assert RunProgress(start_score=nan, history=(0.3, nan)).rank_epochs() == [1]
    assert RunProgress(start_score=nan, history=(nan, nan)).rank_epochs() == [0]
    assert RunProgress(start_score=0.4, history=(0.3, 0.5)).best_score == 0.5
    assert RunProgress(start_score=0.4, history=(0.3,)).best_score == 0.4


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("executed"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "kind", ["random", "text", "pickle", "torch-pickle", "empty", "zip", "truncated", "tensor", "other"]
)
def test_foreign_files_are_refused_and_run_no_code(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pt"
    if kind == "random":
        path.write_bytes(bytes(range(256)) * 20)
    elif kind == "text":
        path.write_text("hello")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(RunsCode()))
    elif kind == "torch-pickle":
        torch.save({"format": "ssl_seg.checkpoint", "payload": RunsCode()}, path)
    elif kind == "empty":
        path.touch()
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "x")
    elif kind == "truncated":
        save_checkpoint(make_checkpoint(), path)
        path.write_bytes(path.read_bytes()[:-300])
    elif kind == "tensor":
        torch.save(torch.ones(3), path)
    else:
        torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"x\.pt"):
        load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


def test_the_planted_code_would_have_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"payload": RunsCode()}, "x.pt")
    torch.load("x.pt", weights_only=False)
    assert (tmp_path / "executed").exists()


def test_other_versions_and_incomplete_files(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    for version in (content["version"] - 1, 99, None):
        torch.save({**content, "version": version}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=f"version {version}"):
            load_checkpoint(tmp_path / "other.pt")
    for name in content.keys() - {"format", "version", "optimizer"}:  # a part is missed where it is needed
        torch.save({k: v for k, v in content.items() if k != name}, tmp_path / "part.pt")
        with pytest.raises(CheckpointError, match=f"no '{name}'"):
            load_checkpoint(tmp_path / "part.pt")
    torch.save({**content, "progress": {"step": 1}}, tmp_path / "progress.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "progress.pt")


def test_a_single_changed_bit_of_a_weight_is_found(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        entries = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    weights = max(entries, key=len)
    place = content.find(weights) + len(weights) // 2
    content[place] ^= 0x40
    (tmp_path / "b.pt").write_bytes(content)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["format"]  # torch takes it
    with pytest.raises(CheckpointError, match=r"b\.pt is not a readable checkpoint: it is damaged"):
        load_checkpoint(tmp_path / "b.pt")
    content[place] ^= 0x40
    (tmp_path / "b.pt").write_bytes(content)
    load_checkpoint(tmp_path / "b.pt")


def test_entries_that_grow_while_they_are_read_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**6))
    assert (tmp_path / "a.pt").stat().st_size < 10**4
    assert not has_sound_sums(tmp_path / "a.pt")


ODD = {
    "complex": lambda v: v.to(torch.complex64) * (1 + 1j),
    "quantized": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "sparse": lambda v: v.to_sparse(),
    "without values": lambda v: v.to("meta"),
    "without as many numbers": lambda _: torch.zeros(1).expand(10**6, 10**6),
}


@pytest.mark.parametrize("part", ["student", "teacher", "optimizer"])
@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_no_training_writes_are_refused(tmp_path: Path, kind: str, part: str) -> None:
    saved = make_checkpoint()
    save_checkpoint(saved, tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    owner = content["optimizer"]["state"][0] if part == "optimizer" else content[part]
    name = "exp_avg" if part == "optimizer" else "weight"
    owner[name] = ODD[kind](owner[name])
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=rf"b\.pt is refused: it holds .*{kind}"):
        load_checkpoint(tmp_path / "b.pt")
    owner[name] = torch.ones(3, 2)[:, :1].expand(3, 1)  # a view of a larger tensor is plain
    torch.save(content, tmp_path / "b.pt")
    load_checkpoint(tmp_path / "b.pt")


def test_an_archive_with_names_outside_of_it_writes_nothing(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "in" / "b.pt", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename.replace("a/", "../", 1).replace("archive/", "../", 1), old.read(entry))
        assert any(name.startswith("../") for name in new.namelist())
    with pytest.raises(CheckpointError, match=r"b\.pt"):
        load_checkpoint(tmp_path / "in" / "b.pt")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.pt", "b.pt", "in"]


PROGRESS = {"step": 1, "ema_updates": 0, "start_score": 0.0, "history": [], "collapsed": []}


@pytest.mark.parametrize(
    "change",
    [{"scores": {}}, {"scores": {"student": 1}}, {"student": {"weight": 3}}, {"config": []}, {"split": ["a"]},
     {"progress": {**PROGRESS, "step": -1}}, {"optimizer": 3}, {"seen_labels": None}, {"seen_labels": [3]},
     {"progress": {**PROGRESS, "history": [math.nan]}}, {"progress": {**PROGRESS, "history": 3}}, {"swa": [1]}],
)  # fmt: skip
def test_parts_of_another_form(tmp_path: Path, change: dict[str, object]) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    torch.save({**torch.load(tmp_path / "a.pt", weights_only=True), **change}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b\.pt is damaged"):
        load_checkpoint(tmp_path / "b.pt")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint file .*none\.pt: name a run"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "first").mkdir()
    with pytest.raises(CheckpointError, match=r"frist \(did you mean 'first'\?\)"):
        load_checkpoint(tmp_path / "frist")
    with pytest.raises(CheckpointError, match=r"is a folder.*best\.pt"):
        load_checkpoint(tmp_path)


def test_weights_of_another_network_or_other_classes() -> None:
    net = nn.Linear(2, 3)
    with pytest.raises(CheckpointError, match="a different network"):
        load_weights(net, nn.Sequential(nn.Linear(2, 3)).state_dict(), "x.pt")
    with pytest.raises(CheckpointError, match=r"'weight' is \(4, 2\) in the file and \(3, 2\)"):
        load_weights(net, nn.Linear(2, 4).state_dict(), "x.pt")
    whole = {name: value.to(torch.int64) for name, value in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"holds torch\.int64, expected torch\.float32"):
        load_weights(net, whole, "x.pt")
    other = nn.Linear(2, 3)
    load_weights(net, other.state_dict(), "x.pt")
    assert torch.equal(net.weight, other.weight)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    save_checkpoint(make_checkpoint(), tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()
    broken = Checkpoint(**{**vars(make_checkpoint()), "config": {"x": lambda: 0}})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(broken, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]
