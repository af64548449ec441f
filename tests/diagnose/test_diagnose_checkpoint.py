"""Checkpoints of tiny runs: as they are, broken on purpose, on other data, and short of time."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import train_tiny
from torch import Tensor, nn

from ssl_seg.data.catalog import open_catalog, pass_through
from ssl_seg.data.open import open_store
from ssl_seg.data.synthetic import write_dataset
from ssl_seg.data.volumes import read_mask, write_mask
from ssl_seg.diagnose import checkpoint as module
from ssl_seg.diagnose import inputs
from ssl_seg.diagnose.checkpoint import CheckpointRequest, assign_parts, diagnose_checkpoint, order_images
from ssl_seg.diagnose.clock import Clock
from ssl_seg.diagnose.networks import measure_layers
from ssl_seg.diagnose.result import Diagnosis
from ssl_seg.errors import ConfigError
from ssl_seg.inference.model import Model, open_model
from ssl_seg.losses import make_supervised_loss
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.results.evaluation import EvaluateRequest, evaluate

HEAD = "final_conv"


def diagnose(path: Path, **request: Any) -> Diagnosis:
    settled = {"seconds": 1e6} | request  # what is looked at must not depend on the machine
    return diagnose_checkpoint(CheckpointRequest(path, **settled))


def levels(diagnosis: Diagnosis) -> dict[str, str]:
    return {f.code: f.level for f in diagnosis.findings}


def rewrite(source: Path, target: Path, change: Callable[[dict[str, Tensor]], None], *nets: str) -> Path:
    checkpoint = load_checkpoint(source)
    for name in nets or ("student", "teacher"):
        change(getattr(checkpoint, name))
    save_checkpoint(checkpoint, target)
    return target


def make_constant(state: dict[str, Tensor]) -> None:
    """The reported mean logit, everywhere."""
    state[f"{HEAD}.weight"].zero_()
    state[f"{HEAD}.bias"].copy_(torch.tensor([0.0, 0.5287]))


def fill_with_nan(state: dict[str, Tensor]) -> None:
    state[f"{HEAD}.bias"].fill_(torch.nan)


class Brightness(nn.Module):
    """Finds bright foreground by a threshold of the z-score: what a network that has learned does on particles."""

    def forward(self, image: Tensor) -> Tensor:
        score = 8 * (nn.functional.avg_pool2d(image[:, :1], 3, 1, 1) - 0.6)
        return torch.cat([-score / 2, score / 2], dim=1)


def with_nets(model: Model, net: nn.Module) -> Model:
    return replace(model, nets={"student": net.eval(), "teacher": net.eval()})


@pytest.fixture(scope="module")
def best(tiny_run: Path) -> Path:
    return tiny_run / "checkpoints" / "best.pt"


@pytest.fixture(scope="module")
def plain(best: Path) -> Diagnosis:
    return diagnose(best)


@pytest.fixture(scope="module")
def constant(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return diagnose(rewrite(best, tmp_path_factory.mktemp("broken") / "constant.pt", make_constant))


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every checkpoint open with networks that work."""
    monkeypatch.setattr(module, "open_model", lambda path, _: with_nets(open_model(path), Brightness()))


def test_scores_are_those_of_evaluate(plain: Diagnosis, best: Path) -> None:
    wanted = evaluate(EvaluateRequest(best, overlap=0.25))
    assert plain.statistics["looked_at"]["net"] == wanted["which"]
    assert plain.statistics["scores"]["f1"] == pytest.approx(wanted["pooled"]["f1"])
    margin = plain.statistics["scores"]["f1_macro"] - plain.statistics["scores"]["trivial_f1_macro"]
    assert margin == pytest.approx(wanted["trivial"]["margin"])
    assert plain.statistics["scores"]["precision"] == pytest.approx(wanted["pooled"]["precision"])
    by_id = {i.id: i for i in plain.images}
    for row in wanted["cases"]:
        assert by_id[row["id"]].f1 == pytest.approx(row["dice"])
        assert by_id[row["id"]].ratio_true == pytest.approx(row["prevalence"])


def test_signals_are_those_of_the_run(plain: Diagnosis, best: Path, tiny_run: Path) -> None:
    """The last look of the run and the diagnosis of its last checkpoint see the same probe."""
    from ssl_seg.run.directory import RunDir

    last = RunDir(tiny_run).read_metrics()[-1]
    nets = diagnose(tiny_run / "checkpoints" / "last.pt").statistics["nets"]
    for net in ("student", "teacher"):
        for figure in ("f1", "auroc", "logit_mean", "prob_std"):
            assert nets[net][figure] == pytest.approx(last[f"val/{net}/{figure}"], rel=1e-4)
    assert nets["untrained"]["auroc"] != nets["student"]["auroc"]
    assert "train_probe" in nets
    assert "train_mode" not in nets  # instance norm


def test_every_part_is_looked_at_and_the_test_list_stays_sealed(plain: Diagnosis, best: Path) -> None:
    split = load_checkpoint(best).split
    for image in plain.images:
        assert (image.part == "test") == (image.id in split["test"])
        assert (image.ratio_true is None) == (image.part in ("test", "new"))
    counts = plain.statistics["looked_at"]
    assert {part: counts[part]["used"] for part in ("train", "val", "test", "new")} == {
        part: counts[part]["of"] for part in ("train", "val", "test", "new")
    }
    assert sum(counts[part]["of"] for part in ("train", "val", "test", "new")) == 24
    assert not any(e.truth is not None for e in plain.examples if e.part in ("test", "new"))
    assert plain.statistics["scores"]["images"] == len(split["val"])


def test_a_copy_of_a_test_image_stays_sealed(best: Path, particles_dir: Path, tmp_path: Path) -> None:
    sealed = load_checkpoint(best).split["test"][0]
    write_dataset(tmp_path / "other", "particles", 4, seed=9)
    for kind in ("images", "masks"):
        source = next((particles_dir / kind).glob(f"{sealed}.*"))
        (tmp_path / "other" / kind / f"renamed{source.suffix}").write_bytes(source.read_bytes())
    diagnosis = diagnose(best, data=str(tmp_path / "other"))
    renamed = next(i for i in diagnosis.images if i.id == "renamed")
    assert (renamed.part, renamed.ratio_true) == ("test", None)
    assert diagnosis.statistics["scores"]["images"] == 4
    assert any("4 labeled cases stand for them" in note for note in diagnosis.notes)
    assert "batches" not in diagnosis.statistics  # the training cases are elsewhere


def test_masks_that_have_changed_since_the_training_are_told(best: Path, particles_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(particles_dir, tmp_path / "copy", ignore=shutil.ignore_patterns(".ssl_seg")))
    case_id = load_checkpoint(best).split["val"][0]
    path = next((folder / "masks").glob(f"{case_id}.*"))
    for changed in (False, True):
        material, notes = module._prepare(CheckpointRequest(best, data=str(folder)), lambda _: pass_through)
        assert (
            any(f"1 case of the training or its validation has another mask now ({case_id})" in note for note in notes)
            == changed
        )
        assert material.is_of_run != changed, "the monitor of the run saw other masks"
        write_mask(path, np.roll(read_mask(str(path)), 5, axis=0))


def test_other_images_under_the_same_names_are_told(best: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", "particles", 24, labeled=20, seed=9)
    for data, told in ((str(tmp_path / "other"), True), (None, False)):
        _, notes = module._prepare(CheckpointRequest(best, data=data), lambda _: pass_through)
        assert any("has all names of the training data" in note for note in notes) == told
        assert any("data: 4 of 24 images have no mask file" in note for note in notes) == told


def test_a_new_export_of_the_data_keeps_its_parts(best: Path, particles_dir: Path) -> None:
    from ssl_seg.data.splits.files import split_from_dict

    catalog, split = open_catalog(str(particles_dir)), split_from_dict(load_checkpoint(best).split)
    facts = {i: replace(f, content=f"other {f.content}") for i, f in catalog.facts.items()}
    exported = assign_parts(replace(catalog, facts=facts), split, 0.5)
    assert exported == assign_parts(catalog, split, 0.5)
    fewer = replace(catalog, facts=facts, cases=catalog.cases[:-1])
    assert set(assign_parts(fewer, split, 0.5).values()) == {"new"}


def test_images_without_any_mask_are_still_examined(best: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "bare", "particles", 4, labeled=0, seed=9)
    broken = rewrite(best, tmp_path / "constant.pt", make_constant)
    diagnosis = diagnose(broken, data=str(tmp_path / "bare"))
    assert diagnosis.verdict.message == "constant output function: do not submit"
    assert not {"nets", "scores", "sweep"} & set(diagnosis.statistics)
    assert any("nothing can be scored" in note for note in diagnosis.notes)


def test_a_constant_network(constant: Diagnosis) -> None:
    assert constant.verdict.level == "collapsed"
    assert (constant.verdict.code, constant.verdict.message) == (
        "constant_output", "constant output function: do not submit"
    )  # fmt: skip
    found = levels(constant)
    assert found["uniform_ratio"] == found["equal_statistics"] == "collapsed"
    row = constant.statistics["outputs"]["all"]
    assert row["prob_mean"] == pytest.approx(1 / (1 + np.exp(-0.5287)), abs=1e-5)
    assert row["logit_mean"] == pytest.approx(0.5287, abs=1e-5)
    assert row["band_share"] == 1.0
    assert all(i.ratio_pred == 1.0 for i in constant.images)
    assert constant.statistics["layers"]["zero_weights"] == [f"{HEAD}.weight"]
    assert HEAD in constant.causes[0].evidence[0]
    assert len(constant.causes) <= 3


def test_a_good_network_is_healthy(best: Path, good: None) -> None:
    diagnosis = diagnose(best)
    assert (diagnosis.verdict.level, diagnosis.verdict.code) == ("ok", "healthy")
    assert diagnosis.causes == ()
    assert diagnosis.statistics["scores"]["f1"] > diagnosis.statistics["trivial"]["best"] + 0.1
    assert diagnosis.statistics["layers"]["silent"] is None
    assert diagnosis.next_command.startswith("ssl-seg predict ")


def test_a_collapsed_teacher_beside_a_good_student_is_a_warning(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Zero(Brightness):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image) * 0

    def open_both(path: Path, _: object) -> Model:
        return replace(open_model(path), nets={"student": Brightness().eval(), "teacher": Zero().eval()})

    monkeypatch.setattr(module, "open_model", open_both)
    assert diagnose(best, which="student").verdict.level == "warn"
    assert diagnose(best, which="teacher").verdict.level == "collapsed"


def test_nan_weights(best: Path, tmp_path: Path) -> None:
    broken = rewrite(best, tmp_path / "nan.pt", fill_with_nan)
    diagnosis = diagnose(broken)
    assert (diagnosis.verdict.level, diagnosis.verdict.code) == ("collapsed", "non_finite")
    assert diagnosis.statistics["layers"]["non_finite_weights"] == [f"{HEAD}.bias"]
    assert diagnosis.to_record()["statistics"]["outputs"]["all"]["prob_mean"] is None


def test_another_normalization_at_prediction_is_found(best: Path, good: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssl_seg.inference import sliding

    right = sliding.measure_intensity

    def measure_scaled(image: Any, factor: float) -> Any:
        return replace(right(image), std=right(image).std / factor)

    monkeypatch.setattr(sliding, "measure_intensity", partial(measure_scaled, factor=0.1))
    diagnosis = diagnose(best)
    assert diagnosis.statistics["inputs"]["path_difference"] > 0.5
    assert levels(diagnosis)["loss_metric_divergence"] == "collapsed"
    assert "normalized differently" in diagnosis.causes[0].text
    monkeypatch.setattr(sliding, "measure_intensity", partial(measure_scaled, factor=1 + 1e-6))
    assert "loss_metric_divergence" not in levels(diagnose(best))


def test_trivial_losses_against_the_loss_itself(plain: Diagnosis, best: Path) -> None:
    config = open_model(best).config
    losses = plain.statistics["trivial_losses"]
    target = torch.zeros(1, 64, 64, dtype=torch.int64)
    target[:, :24] = 1
    loss = make_supervised_loss(config.loss)
    for name, logit in (("all_positive", 12.0), ("all_negative", -12.0)):
        logits = torch.stack([torch.zeros(1, 64, 64), torch.full((1, 64, 64), logit)], dim=1)
        total, terms = loss(logits, target, 100.0)
        by_component = {n: row[name] for n, row in losses["components"].items()}
        assert set(by_component) == set(terms)
        assert losses[name] == pytest.approx(sum(r["weight"] * r[name] for r in losses["components"].values()))
        assert 0.5 < losses[name] / float(total) < 2  # the same constant at another share of foreground
    assert losses["network"] < losses["all_negative"]


def test_batches_are_those_of_the_training(plain: Diagnosis) -> None:
    batches = plain.statistics["batches"]
    assert batches["n"] == len(batches["foreground"]) == 10
    assert batches["min"] <= batches["mean"] <= batches["max"]
    assert batches["mean"] == pytest.approx(np.mean(batches["foreground"]), abs=0.05)


def test_inputs_keep_the_order_of_brightness(plain: Diagnosis) -> None:
    found = plain.statistics["inputs"]
    assert found["rank_correlation"] == pytest.approx(1.0, abs=1e-3)  # ties of integers are broken by rounding
    assert found["path_difference"] < 1e-5
    assert found["constant"] == []


def test_echo_returns_what_the_network_sees(best: Path, particles_dir: Path) -> None:
    model = open_model(best)
    store = open_store(open_catalog(str(particles_dir)), model.config.data)
    fed = inputs.compare_inputs(model.predictor("student"), store, "0000", 2)
    raw = store.load_whole("0000").image[0].astype(np.float64)
    np.testing.assert_allclose(fed.prediction, (raw - raw.mean()) / raw.std(), atol=1e-4)
    assert fed.rank_correlation(0) == pytest.approx(1.0, abs=1e-3)
    folded = inputs.NetworkInputs(fed.raw, fed.training, np.abs(fed.prediction))
    assert (folded.rank_correlation(0) or 0) < 0.9
    assert folded.difference > 1


@pytest.mark.parametrize("kill", ["relu", "nothing"])
def test_a_silent_layer_is_found(kill: str) -> None:
    torch.manual_seed(0)
    bias = -1e3 if kill == "relu" else 0.0
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    nn.init.constant_(net[0].bias, bias)  # type: ignore[arg-type]
    layers = measure_layers(net.eval(), torch.randn(2, 1, 16, 16))
    assert layers["silent"] == ("1" if kill == "relu" else None)
    assert layers["zero_weights"] == []


def test_history_of_the_run(plain: Diagnosis, tiny_run: Path) -> None:
    run = plain.statistics["run"]
    assert run["directory"] == str(tiny_run)
    assert run["status"] == "finished"
    assert run["steps"] == run["last"]["step"] == 12
    assert run["last"]["loss"] > 0


def test_short_of_time_a_few_images_are_enough(best: Path) -> None:
    ticks = iter(range(10_000))
    diagnosis = diagnose_checkpoint(CheckpointRequest(best), clock=Clock(1e-9, now=lambda: float(next(ticks))))
    looked_at = diagnosis.statistics["looked_at"]
    assert len(diagnosis.images) == module.LEAST_IMAGES
    assert {i.part for i in diagnosis.images} == {"train", "val", "test", "new"}
    assert looked_at["skipped"] == ["untrained network", "trivial_losses", "batches", "inputs"]
    assert diagnosis.verdict.level in ("ok", "warn", "collapsed")


def test_images_take_turns(best: Path, particles_dir: Path) -> None:
    from ssl_seg.data.splits.files import split_from_dict

    checkpoint: Checkpoint = load_checkpoint(best)
    parts = assign_parts(open_catalog(str(particles_dir)), split_from_dict(checkpoint.split), 0.5)
    order = order_images(parts, CheckpointRequest(Path()))
    assert sorted(order) == sorted(parts)
    assert [parts[i] for i in order[:4]] == ["val", "train", "new", "test"]
    assert order == order_images(parts, CheckpointRequest(Path()))
    assert order != order_images(parts, CheckpointRequest(Path(), seed=1))


@pytest.mark.parametrize("count", [module.ENOUGH - 1, module.ENOUGH, module.ENOUGH + 1, 4 * module.ENOUGH])
def test_all_of_validation_is_looked_at_and_enough_of_each_other_part(count: int) -> None:
    parts = {f"{part}{n}": part for part in ("val", "new", "test") for n in range(count)} | {"train0": "train"}
    found = [parts[i] for i in order_images(parts, CheckpointRequest(Path()))]  # type: ignore[arg-type]
    some = min(count, module.ENOUGH)
    assert {part: found.count(part) for part in parts.values()} == {"val": count, "new": some, "test": some, "train": 1}
    longer = CheckpointRequest(Path(), seconds=module.SECONDS + 1)
    assert sorted(order_images(parts, longer)) == sorted(parts)  # type: ignore[arg-type]


def test_batch_norm_is_looked_at_in_both_modes(best: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Normed(Brightness):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, image: Tensor) -> Tensor:
            return super().forward(self.norm(image[:, :1]))

    net = Normed()
    net.norm.running_mean.fill_(40.0)  # type: ignore[union-attr]  # stale: eval mode sees everything as dark
    monkeypatch.setattr(module, "open_model", lambda path, _: with_nets(open_model(path), net))
    diagnosis = diagnose(best)
    nets = diagnosis.statistics["nets"]
    assert nets["train_mode"]["f1"] > nets["student"]["f1"] + 0.3


def test_volumes(tmp_path: Path) -> None:
    write_dataset(tmp_path / "sheets", "sheets", 5)
    settings = {"data": {"patch_size": [16, 32, 32]}, "network": {"features": 2}, "monitor": {"probe_patches": 2}}
    train_tiny(tmp_path / "run", tmp_path / "sheets", settings, {"length": {"steps": 1}, "batch": {"unlabeled": 1}})
    diagnosis = diagnose(tmp_path / "run" / "checkpoints" / "best.pt")
    assert all(len(i.shape) == 3 for i in diagnosis.images)
    assert all(e.image is not None and e.image.ndim == 2 for e in diagnosis.examples)


def test_commands_name_what_is_there(plain: Diagnosis, constant: Diagnosis) -> None:
    from typer.testing import CliRunner

    from ssl_seg.cli.app import app

    for diagnosis in (plain, constant):
        words = shlex.split(diagnosis.next_command)
        assert words[0] == "ssl-seg"
        options = [word for word in words if word.startswith("--")]
        shown = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
        assert all(option in shown for option in options)


def test_an_unknown_network_is_refused(best: Path) -> None:
    with pytest.raises(ConfigError, match="must be student or teacher"):
        diagnose(best, which="mean")
