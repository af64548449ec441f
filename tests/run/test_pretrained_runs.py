"""Trainings that start from a pre-training: what they take over, and what they refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import TINY, Notes
from interruption import stop_after
from pretraining_cases import make_layers, pretrain_tiny, train_from
from torch import nn

from ssl_seg.cli.pretrain import pretrain as run_command
from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, nest
from ssl_seg.data.catalog import CatalogSettings, open_catalog
from ssl_seg.data.splits.files import load_split, save_split, split_from_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import CheckpointError, ConfigError, RefusedError, RunDirError
from ssl_seg.networks.builders import NETWORKS
from ssl_seg.networks.checkpoint import load_checkpoint
from ssl_seg.networks.encoders.weights import FILE, PACKAGE
from ssl_seg.networks.parts import PARTS, find_tensors
from ssl_seg.run.pretraining.run import PICTURES, make_image_network, pretrain
from ssl_seg.run.pretraining.state import (
    check_seen,
    describe_body,
    load_body,
    load_pretraining,
    make_initial,
    save_pretraining,
)
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.training import train
from ssl_seg.studies.cross_validation import cross_validate
from ssl_seg.studies.label_ladder import climb_labels

SHORT = {"length": {"steps": 2}}


def test_a_training_starts_with_all_weights_but_those_of_the_head(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    still = {**SHORT, "optim": {"lr": 1e-12, "weight_decay": 0.0}, "split": {"labels": 0.5}}
    train_from(pretrained_run, run, particles_dir, still)
    train(TrainRequest(make_layers(particles_dir, still), tmp_path / "fresh"))
    state, fresh = load_pretraining(pretrained_run), load_checkpoint(tmp_path / "fresh" / "checkpoints" / "last.pt")
    begun = load_checkpoint(run / "checkpoints" / "last.pt")
    net = make_image_network(Config.model_validate(state.config))
    head = find_tensors(net, PARTS["basic_unet"](net).head)
    assert head
    for name, value in begun.student.items():
        source = fresh.student if name in head else state.network
        assert torch.allclose(value, source[name], atol=1e-6), name
        assert torch.allclose(begun.teacher[name], source[name], atol=1e-6), name
    assert not all(torch.allclose(fresh.student[n], state.network[n], atol=1e-3) for n in state.network.keys() - head)
    assert begun.config["network"]["pretrained"] == str(pretrained_run)
    started = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    assert started["pretrained"]["step"] == 12


def test_the_file_of_the_encoder_is_not_needed_where_a_pre_training_began_with_it(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path(str(resources.files(PACKAGE))) / FILE
    file = Path(shutil.copy(weights, tmp_path / "own.pth"))
    network = {"name": "encoder_unet", "features": 2, "encoder_weights": str(file)}
    own = {"network": network, "data": {"patch_size": [32, 64]}, "length": {"steps": 2}}
    with monkeypatch.context() as patch:
        patch.setattr("ssl_seg.run.pretraining.run.stop_flag", stop_after(1))
        masked = pretrain_tiny(tmp_path / "masked", particles_dir, own).run.path
    file.unlink()
    assert pretrain(TrainRequest((), resume=masked)).ending == "finished"
    assert train_from(masked, tmp_path / "run", particles_dir, own).ending == "finished"


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("deep", [0, 1])
def test_every_network_takes_over_its_body(name: str, deep: int) -> None:
    heads = deep if NETWORKS[name].deep_supervision else 0
    size = next([s, s] for s in (32, 64, 128) if _fits(name, (s, s)))
    config = Config.model_validate({
        "data": {"root": "x", "patch_size": size, "channels": 2, "label_values": [0, 1, 2], "foreground_ratio": 0},
        "network": {"name": name, "features": None if NETWORKS[name].fixed_features else 4, "deep_supervision": heads},
        "batch": {"labeled": 2, "unlabeled": 0}, "length": {"steps": 100},
    })  # fmt: skip
    from ssl_seg.inference.model import make_network

    torch.manual_seed(0)
    source = make_image_network(config)
    torch.manual_seed(1)
    net = make_network(config)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    load_body(net, _make_state(source, config), config, "there")
    head = find_tensors(net, PARTS[name](net).head)
    after = net.state_dict()
    assert all(after[key].equal(before[key]) for key in head)
    assert all(after[key].equal(source.state_dict()[key]) for key in after.keys() - head)
    assert len(head) < len(after) / 2


def _fits(name: str, size: tuple[int, int]) -> bool:
    from ssl_seg.networks.builders import check_patch_size

    try:
        check_patch_size(name, size)
    except Exception:  # noqa: BLE001
        return False
    return True


def _make_state(net: nn.Module, config: Config) -> Any:
    from ssl_seg.run.pretraining.state import Pretraining

    return Pretraining(net.state_dict(), {}, 1, (0.0, 0), config.model_dump(mode="json"), {}, (), (), {})


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"network": {"name": "unet"}}, ["network.name is basic_unet there and unet here"]),
        ({"network": {"features": 6}}, ["network.features is 4 there and 6 here"]),
        ({"network": {"norm": "group"}}, ["network.norm is instance there and group here"]),
        ({"data": {"channels": 3}}, ["data.channels is 1 there and 3 here"]),
        ({"network": {"norm": "group", "features": 6}}, ["network.norm", "network.features"]),
    ],
)
def test_another_network_is_refused_with_what_differs(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path, setting: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as refused:
        train_from(pretrained_run, tmp_path / "run", particles_dir, setting)
    assert all(word in str(refused.value) for word in words)
    assert not (tmp_path / "run").exists()


def test_dynunet_of_another_patch_and_of_another_number_of_axes(
    particles_dir: Path, sheets_dir: Path, tmp_path: Path
) -> None:
    dynunet = {"network": {"name": "dynunet"}}
    pretrain_tiny(tmp_path / "a", particles_dir, dynunet, {"length": {"steps": 2}})
    with pytest.raises(CheckpointError, match=r"data.patch_size is \[32, 32\] there and \[64, 64\] here"):
        train_from(tmp_path / "a", tmp_path / "t", particles_dir, dynunet, {"data": {"patch_size": [64, 64]}})
    with pytest.raises(CheckpointError, match=r"axes of data.patch_size is 2 there and 3 here"):
        train_from(tmp_path / "a", tmp_path / "t", sheets_dir, dynunet, {"data": {"patch_size": [16, 32, 32]}})


def test_volumes(sheets_dir: Path, tmp_path: Path) -> None:
    volume = {"data": {"patch_size": [16, 32, 32]}, "network": {"name": "dynunet", "features": 2}}
    short = {"length": {"steps": 4, "steps_per_epoch": 2}, "monitor": {"probe_patches": 2}}
    pretrain_tiny(tmp_path / "p", sheets_dir, volume, short)
    assert len(list((tmp_path / "p" / PICTURES).iterdir())) == 2
    assert train_from(tmp_path / "p", tmp_path / "t", sheets_dir, volume, short).ending == "finished"


def test_without_further_settings_a_training_has_data_network_and_split_of_its_pre_training(
    particles_dir: Path, tmp_path: Path
) -> None:
    pretrain_tiny(tmp_path / "p", particles_dir, SHORT, {"split": {"seed": 5}})
    own = {key: value for key, value in TINY.items() if key not in ("data", "network")} | SHORT
    layers = (Layer("--test", own), Layer("--pretrained", nest("network.pretrained", str(tmp_path / "p"))))
    train(TrainRequest(layers, tmp_path / "t"))
    checkpoint, state = load_checkpoint(tmp_path / "t" / "checkpoints" / "last.pt"), load_pretraining(tmp_path / "p")
    assert checkpoint.split["fractions"] == state.split["fractions"]
    assert checkpoint.config["network"]["name"] == "basic_unet"
    assert checkpoint.config["data"]["root"] == state.config["data"]["root"]


def test_a_training_that_was_interrupted_goes_on_without_its_pre_training(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    pre = shutil.copytree(pretrained_run, tmp_path / "pre")
    train_from(pre, tmp_path / "whole", particles_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_seg.run.training.stop_flag", stop_after(4))
        assert train_from(pre, tmp_path / "run", particles_dir).ending == "interrupted"
    shutil.rmtree(pre)
    train(TrainRequest(resume=tmp_path / "run"))
    one, other = (load_checkpoint(tmp_path / n / "checkpoints" / "last.pt") for n in ("whole", "run"))
    assert all(value.equal(other.teacher[name]) for name, value in one.teacher.items())


def test_a_child_does_not_start_from_the_pre_training_again(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    train_from(pretrained_run, tmp_path / "parent", particles_dir, SHORT, {"split": {"labels": 0.5}})
    best = tmp_path / "parent" / "checkpoints" / "best.pt"
    none = Layer("--test", {"bootstrap": {"gate": "none"}})
    train(TrainRequest((none,), tmp_path / "child", best))
    assert load_checkpoint(tmp_path / "child" / "checkpoints" / "last.pt").config["network"]["pretrained"] is None
    with pytest.raises(ConfigError, match="give one of them"):
        train_from(pretrained_run, tmp_path / "t", particles_dir, bootstrap=best)


@pytest.mark.parametrize(
    ("place", "error", "words"),
    [
        ("tiny_run", RunDirError, "not a run of `ssl-seg pretrain`"),
        ("tiny_run/checkpoints/best.pt", CheckpointError, "--bootstrap"),
        ("nowhere", CheckpointError, "no checkpoint file"),
        ("damaged", CheckpointError, "damaged"),
    ],
)
def test_what_is_no_pre_training_is_refused(
    pretrained_run: Path,
    tiny_run: Path,
    particles_dir: Path,
    tmp_path: Path,
    place: str,
    error: type[Exception],
    words: str,
) -> None:
    damaged = shutil.copytree(pretrained_run, tmp_path / "damaged")
    file = damaged / "checkpoints" / "last.pt"
    file.write_bytes(file.read_bytes()[:3000])
    path = Path(str(tiny_run) + place.removeprefix("tiny_run")) if place.startswith("tiny_run") else tmp_path / place
    with pytest.raises(error, match=words):
        train_from(path, tmp_path / "t", particles_dir)


def test_the_command_resumes_a_pre_training(pretrained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not begin another one."""
    requests: list[TrainRequest] = []

    def stop(request: TrainRequest, console: object) -> None:
        requests.append(request)
        raise KeyboardInterrupt

    monkeypatch.setattr("ssl_seg.run.pretraining.run.pretrain", stop)
    with pytest.raises(KeyboardInterrupt):
        run_command(resume=pretrained_run)
    assert requests == [TrainRequest(resume=pretrained_run)]


def test_a_pre_training_is_refused_where_a_trained_network_is_asked_for(
    pretrained_run: Path, particles_dir: Path
) -> None:
    from ssl_seg.studies.checkpoints import check_resumed, find_checkpoint

    with pytest.raises(RunDirError, match=r"is a pre-training.*--pretrained"):
        find_checkpoint(pretrained_run)
    with pytest.raises(CheckpointError, match=r"is a pre-training.*--pretrained"):
        load_checkpoint(pretrained_run / "checkpoints" / "last.pt")
    with pytest.raises(RunDirError, match="ssl-seg pretrain --resume"):
        check_resumed(pretrained_run)
    with pytest.raises(ConfigError, match="does not start from another one"):
        pretrain_tiny(pretrained_run.parent / "second", particles_dir, nest("network.pretrained", str(pretrained_run)))


# leaks


def test_an_image_that_was_seen_is_in_no_validation_or_test(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match=r"validation cases? of this run (was|were) seen"):
        train_from(pretrained_run, tmp_path / "t", particles_dir, {"split": {"seed": 3}})
    copy = shutil.copytree(particles_dir, tmp_path / "renamed")  # a copy of the data under other names
    for folder in ("images", "masks"):
        for path in (copy / folder).iterdir():
            path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(RefusedError, match="seen in its training pool"):
        train_from(pretrained_run, tmp_path / "t", copy, {"split": {"seed": 3}})
    assert not (tmp_path / "t").exists()


def test_folds_are_refused_before_the_first_is_trained(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    layers = make_layers(particles_dir, nest("network.pretrained", str(pretrained_run)), {"split": {"folds": 3}})
    with pytest.raises(RefusedError, match="of this run were seen"):
        cross_validate(TrainRequest(layers, tmp_path / "cv"))
    assert not (tmp_path / "cv").exists()
    fold = {**SHORT, "split": {"folds": 3, "fold": 1}}
    pretrain_tiny(tmp_path / "p", particles_dir, fold)
    assert train_from(tmp_path / "p", tmp_path / "t", particles_dir, fold).ending == "finished"
    with pytest.raises(RefusedError, match="of this run were seen"):
        train_from(tmp_path / "p", tmp_path / "t2", particles_dir, {"split": {"folds": 3, "fold": 0}})


def test_parts_and_wholes(tmp_path: Path) -> None:
    """Part and whole of an image that was seen have been seen; the validation part of the same cut has not."""
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for n in range(6):
        image = rng.integers(0, 255, (320, 320), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{n}.png"), image)
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{n}.png"), (image > 128).astype(np.uint8))
    short = {"length": {"steps": 2}, "monitor": {"probe_patches": 2}}
    state, catalogs, splits = {}, {}, {}
    for tiles in (1, 4, 9):
        result = pretrain_tiny(tmp_path / f"p{tiles}", tmp_path / "data", short, {"data": {"tiles": tiles}})
        state[tiles] = load_pretraining(result.run.path)
        splits[tiles] = split_from_dict(state[tiles].split)
        catalogs[tiles] = open_catalog(str(tmp_path / "data"), CatalogSettings(tiles=tiles))
    check_seen(state[4], "p", splits[4], catalogs[4], near_copies=False)
    for seen, tiles in ((1, 4), (4, 1), (4, 9), (9, 4)):
        moved = move_into_validation(splits[tiles], catalogs[tiles], state[seen])
        with pytest.raises(RefusedError, match="validation"):
            check_seen(state[seen], "p", moved, catalogs[tiles], near_copies=False)


def move_into_validation(split: Split, catalog: Any, state: Any) -> Split:
    """Return the split with one case in validation whose image, or part of an image, the pre-training saw."""
    known = {*state.seen, *state.seen_wholes}
    wholes = {i: catalog.whole_images.get(i, catalog.facts[i].image) for i in split.content}
    chosen = next(i for i in sorted(wholes) if wholes[i] in known)
    return replace(split, val=(chosen,), test=())


def test_near_copies_count_unless_the_split_leaves_them(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    state, split = load_pretraining(pretrained_run), load_split(pretrained_run / "split.yaml")
    copy = shutil.copytree(particles_dir, tmp_path / "near")
    seen, held = split.labeled_ids(1.0)[0], split.val[0]
    names = {path.stem: path for path in (copy / "images").iterdir()}
    image = cv2.imread(str(names[seen]), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(names[held]), (image * 0.9 + 3).astype(image.dtype))
    catalog = open_catalog(str(copy))
    changed = replace(split, content={i: catalog.facts[i].content for i in split.content})
    check_seen(state, "p", changed, catalog, near_copies=False)
    with pytest.raises(RefusedError, match="looks like copies"):
        check_seen(state, "p", changed, catalog, near_copies=True)


# series


def test_the_first_rung_of_a_ladder_starts_from_it_and_the_next_from_the_rung(
    pretrained_run: Path, particles_dir: Path, tmp_path: Path
) -> None:
    own = {"network": {"pretrained": str(pretrained_run)}, "bootstrap": {"gate": "none"}}
    notes = Notes()
    ladder = climb_labels(TrainRequest(make_layers(particles_dir, SHORT, own), tmp_path / "l"), (0.3, 1.0), notes)
    assert ladder.ending == "finished"
    first, second = (load_checkpoint(ladder.run_of(rung).last).config for rung in ladder.trainings)
    assert (first["network"]["pretrained"], second["network"]["pretrained"]) == (str(pretrained_run), None)
    assert any(f"from {pretrained_run}" in text for text in notes.texts)


def test_a_factor_of_an_ablation_switches_it(pretrained_run: Path, particles_dir: Path, tmp_path: Path) -> None:
    from ssl_seg.studies.ablation.resolve import resolve_cells
    from ssl_seg.studies.ablation.spec import AblationSpec

    spec = AblationSpec.model_validate({
        "settings": {**TINY, "data": {"root": str(particles_dir), **TINY["data"]}},
        "recipes": {"random": {}, "pretrained": nest("network.pretrained", str(pretrained_run))},
        "methods": ["supervised"], "labels": [0.5, 1.0], "starts": ["bootstrap"], "seeds": [0], "split_seeds": [0],
    })  # fmt: skip
    cells = resolve_cells(spec, gpu=False)
    found = {(c.arm.recipe, c.arm.labels): c.config["network"]["pretrained"] for c in cells}
    assert found[("pretrained", 0.5)] == str(pretrained_run)
    assert found[("pretrained", 1.0)] is None  # it starts from the cell with fewer labels
    assert found[("random", 0.5)] is None


def test_settings_of_the_body_are_known_by_what_they_stand_for() -> None:
    config = {"network": {"name": "dynunet", "features": None}, "data": {"channels": 1, "patch_size": [32, 32]}}
    same = {"network": {"name": "dynunet", "features": 32}, "data": {"channels": 1, "patch_size": [64, 64]}}
    assert describe_body(config) == describe_body(same)
    assert describe_body(config) != describe_body({**same, "network": {"name": "unet", "features": 32}})


def test_save_split_is_what_the_message_names(pretrained_run: Path, particles_dir: Path, tmp_path: Path) -> None:
    """The way out that a refusal gives is one."""
    split = pretrained_run / "split.yaml"
    save_split(load_split(split), tmp_path / "split.yaml")
    train_from(pretrained_run, tmp_path / "t", particles_dir, SHORT, nest("split.file", str(tmp_path / "split.yaml")))


def test_the_initial_network_of_a_run_has_the_body_of_its_pre_training(tmp_path: Path) -> None:
    """It is what a diagnosis and a probe of the loss compare with."""
    sections = {
        "data": {"root": "x", "patch_size": [32, 32], "channels": 2, "label_values": [0, 1], "foreground_ratio": 0},
        "network": {"name": "unet", "features": 4},
        "batch": {"labeled": 2, "unlabeled": 0},
        "length": {"steps": 100},
    }
    config = Config.model_validate(sections)
    source = make_image_network(config)
    result = dict.fromkeys(("error", "baseline", "gain", "codes"))
    save_pretraining(replace(_make_state(source, config), result=result), tmp_path / "masked.pt")
    begun = Config.model_validate(
        {**sections, "network": {"name": "unet", "features": 4, "pretrained": str(tmp_path / "masked.pt")}}
    )
    random, found = make_initial(config).state_dict(), make_initial(begun).state_dict()
    head = find_tensors(source, PARTS[config.network.name](source).head)
    assert all(found[key].equal(random[key]) for key in head)
    assert all(found[key].equal(source.state_dict()[key]) for key in found.keys() - head)
    assert not all(random[key].equal(found[key]) for key in found.keys() - head)
    assert all(make_initial(config).state_dict()[key].equal(random[key]) for key in random), "drawn from the seed"
