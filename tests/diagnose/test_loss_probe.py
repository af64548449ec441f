"""What a loss probe says about losses with known faults, and the command."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from conftest import TINY
from probe_cases import (
    CHANNELS,
    find,
    half_labeled,
    make_batches,
    make_linear,
    make_net,
    make_probe,
    negated,
    push_down,
    scaled,
)
from torch import Tensor, nn
from typer.testing import CliRunner

from ssl_seg.cli.probe_loss import _print
from ssl_seg.cli.probe_loss import probe_loss as command_function
from ssl_seg.config.layers import Layer
from ssl_seg.config.schedules import LossPhase
from ssl_seg.diagnose.loss_probe import ProbeRequest, probe_loss, probe_state
from ssl_seg.errors import CheckpointError, ConfigError, DataError
from ssl_seg.losses import SupervisedLoss
from ssl_seg.losses.overlap import dice
from ssl_seg.losses.voxelwise import cross_entropy, focal, variance
from ssl_seg.networks.checkpoint import load_checkpoint, save_checkpoint


def test_a_loss_against_its_opposite_is_a_conflict() -> None:
    probe = make_probe({"dice": dice, "minus": negated(dice)})
    assert probe.states[0].cosines[0].mean == pytest.approx(-1.0)
    (finding,) = find(probe, "conflict")
    assert finding.level == "warn"
    assert "'dice' and 'minus' have cosine -1.00 +- 0.10 (-1.00 to -1.00" in finding.message
    watched = make_probe({"dice": dice, "minus": negated(dice)}, {"dice": 1.0, "minus": 0.0})
    assert [finding.level for finding in find(watched, "conflict")] == ["info"]
    assert find(make_probe({"dice": dice, "focal": focal}), "conflict") == []


def test_a_conflict_that_may_be_noise_is_no_warning() -> None:
    probe = make_probe({"dice": dice, "focal": focal})

    def levels(**figures: float) -> list[str]:
        pair = replace(probe.states[0].cosines[0], **figures)
        changed = replace(probe, states=(replace(probe.states[0], cosines=(pair,)),))
        return [finding.level for finding in find(changed, "conflict")]

    assert levels(mean=-0.49, error=0.01, low=-1.0, high=-0.9) == []
    assert levels(mean=-0.51, error=0.25) == ["warn"]
    assert levels(mean=-0.51, error=0.26) == ["info"]
    assert levels(mean=-0.9, error=float("nan")) == ["info"]


def test_weights_that_are_not_what_counts_are_named() -> None:
    components = {"dice": dice, "huge": scaled(1000.0)}
    (finding,) = find(make_probe(components, {"dice": 0.8, "huge": 0.2}), "dominated")
    assert "dice 80.0% -> " in finding.message
    assert "huge 20.0% -> " in finding.message
    # What has hardly any weight is meant to count little; equal norms need no word.
    assert find(make_probe({"a": dice, "b": dice}, {"a": 0.995, "b": 0.005}), "dominated") == []
    assert find(make_probe({"a": dice, "b": dice}), "dominated") == []


def test_a_loss_that_nothing_solves_as_well_is_named() -> None:
    def blind(logits: Tensor, target: Tensor) -> Tensor:
        return 0 * logits.sum()

    (finding,) = find(make_probe({"push_down": push_down}), "trivial_solution")
    assert "all_negative costs 0.000" in finding.message
    findings = find(make_probe({"blind": blind}), "trivial_solution")
    assert [f.message.split()[3] for f in findings] == ["all_negative", "all_positive", "base_rate"]
    assert find(make_probe({"dice": dice, "ce": cross_entropy}), "trivial_solution") == []
    # Beside another loss, in the phase where that one counts:
    assert find(make_probe({"push_down": push_down, "ce": cross_entropy}), "trivial_solution") == []


def test_whatever_costs_no_more_than_the_perfect_prediction_is_trivial() -> None:
    probe = make_probe({"dice": dice})

    def trivial(**values: float) -> list[str]:
        changed = replace(probe, constants={"dice": values})
        return [finding.message.split()[3] for finding in find(changed, "trivial_solution")]

    assert trivial(all_negative=0.06, all_positive=0.04, base_rate=1.0, perfect=0.0) == ["all_positive"]
    assert trivial(all_negative=0.99, all_positive=1.01, base_rate=0.0, perfect=1.0) == ["all_negative", "base_rate"]


def test_rare_foreground_is_no_trivial_solution() -> None:
    target = half_labeled(10, 1000).view(1, 50, 20)
    batches = [(torch.randn(1, CHANNELS, 50, 20), target)]
    assert find(make_probe({"ce": cross_entropy}, batches=batches), "trivial_solution") == []


def test_a_component_that_does_not_ask_for_the_target_is_named() -> None:
    (finding,) = find(make_probe({"push_down": push_down, "ce": cross_entropy}), "perfect_not_minimal")
    assert "'push_down' is " in finding.message
    assert "0.000 at all_negative" in finding.message

    class Half(nn.Module):
        """Certain, and half foreground, whatever the image."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, image: Tensor) -> Tensor:
            checkers = torch.arange(image[0, 0].numel()).view(image.shape[2:]) % 2
            certain = 24.0 * checkers - 12.0
            return self.scale * torch.stack([-certain, certain]).expand(len(image), -1, -1, -1)

    (finding,) = find(make_probe({"variance": variance, "ce": cross_entropy}, net=Half()), "perfect_not_minimal")
    assert "at the network's output (start)" in finding.message


def test_flat_and_broken_components_are_named() -> None:
    def hard(logits: Tensor, target: Tensor) -> Tensor:
        return (logits.argmax(1) != target).float().mean()

    (finding,) = find(make_probe({"ce": cross_entropy, "hard": hard}), "zero_gradient")
    assert "'hard' has no gradient" in finding.message
    assert find(make_probe({"ce": cross_entropy, "dice": dice, "hard": hard}), "dominated") == []  # said once
    watched = make_probe({"ce": cross_entropy, "hard": hard}, {"ce": 1.0, "hard": 0.0})
    assert find(watched, "zero_gradient") == []
    assert watched.to_dict()["states"][0]["cosines"][0]["mean"] is None

    def broken(logits: Tensor, target: Tensor) -> Tensor:
        return (logits[:, 1] - logits[:, 0]).mean().log()

    (finding,) = find(make_probe({"broken": broken}), "non_finite")
    assert finding.level == "fault"
    assert "all_negative" in finding.message
    assert "all_positive" not in finding.message
    assert find(make_probe({"ce": cross_entropy}), "non_finite") == []


def test_one_class_alone_says_little() -> None:
    batches = [(torch.randn(1, CHANNELS, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64))]
    probe = make_probe({"dice": dice}, batches=batches)
    assert len(find(probe, "one_class")) == 1
    assert find(probe, "trivial_solution") == []  # all_negative is right there
    assert find(make_probe({"dice": dice}), "one_class") == []


def test_a_probe_repeats_and_leaves_the_network_alone() -> None:
    net = make_net().eval()
    before, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    components = {"dice": dice, "again": dice}
    phases = (LossPhase(0, {"dice": 0.5, "again": 0.5}),)
    first, second = (probe_state("start", net, components, phases, make_batches(), seed=5) for _ in range(2))
    assert first == second
    assert first.cosines[0].mean == pytest.approx(1.0)  # both see the same dropout
    assert first != probe_state("start", net, components, phases, make_batches(), seed=6)  # and it is dropout
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())
    assert not net.training


def test_deep_supervision_is_looked_at_as_trained() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine, self.coarse = make_linear(), nn.Conv2d(CHANNELS, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            return torch.stack([self.fine(image), self.coarse(image)], dim=1)

    net, batches = Heads(), make_batches(count=1)
    state = make_probe({"dice": dice, "ce": cross_entropy}, net=net, batches=batches).states[0]
    loss = SupervisedLoss({"dice": dice}, (LossPhase(0, {"dice": 1.0}),))
    total, _ = loss(net(batches[0][0]), batches[0][1])
    grads = torch.autograd.grad(total, list(net.parameters()))
    assert state.values["dice"] == pytest.approx(total.item())
    assert state.norms["dice"] == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm()))
    assert {knob.name for knob in state.knobs} >= {"class_weights[0]", "class_weights[1]"}


def tiny_layers(root: Path, **sections: object) -> tuple[Layer, ...]:
    layers = [Layer("--test", {name: section}) for name, section in sections.items()]
    return (Layer("--test", TINY), Layer("--data", {"data": {"root": str(root)}}), *layers)


def test_a_configuration_is_probed_at_both_states(tiny_run: Path, particles_dir: Path) -> None:
    checkpoint = tiny_run / "checkpoints" / "last.pt"
    loss = {"weights": {"cross_entropy": 1.0, "dice": 1.0}, "phases": [{"from_epoch": 2, "weights": {"dice": 1.0}}]}
    request = ProbeRequest(tiny_layers(particles_dir, loss=loss), checkpoint, batches=2)
    probe = probe_loss(request)
    assert [state.name for state in probe.states] == ["initialization", "last.pt, step 12"]
    assert probe.batches == 2
    assert [set(shares) for shares in probe.states[0].shares] == [{"cross_entropy", "dice"}, {"dice"}]
    assert probe.states[1].values["cross_entropy"] < probe.states[0].values["cross_entropy"]
    torch.manual_seed(99)  # the network comes from the seed of the configuration
    alone = probe_loss(replace(request, checkpoint=None))
    assert alone.states == probe.states[:1]
    json.dumps(probe.to_dict(), allow_nan=False)


def test_settings_are_checked_before_any_data_is_read(tmp_path: Path) -> None:
    layers = tiny_layers(tmp_path / "nowhere", loss={"weights": {"dicee": 1.0}})
    with pytest.raises(ConfigError, match="unknown loss 'dicee'"):
        probe_loss(ProbeRequest(layers))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"features": 6}, "does not fit: .* network.features"),
        ({"norm": "group"}, "network.norm = instance; the configuration has group"),
        ({"name": "unet"}, "network.name = basic_unet"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    network: dict[str, object], message: str, tiny_run: Path, particles_dir: Path
) -> None:
    request = ProbeRequest(tiny_layers(particles_dir, network=network), tiny_run / "checkpoints" / "last.pt", 1)
    with pytest.raises(CheckpointError, match=message):
        probe_loss(request)


def test_a_checkpoint_with_other_strides_is_refused(tiny_run: Path, particles_dir: Path) -> None:
    stored = load_checkpoint(tiny_run / "checkpoints" / "last.pt")
    path = tiny_run.parent / "strides.pt"
    changed = {"network": {**stored.config["network"], "name": "dynunet"}}
    changed["data"] = {**stored.config["data"], "patch_size": [64, 64]}
    save_checkpoint(replace(stored, config={**stored.config, **changed}), path)
    layers = tiny_layers(particles_dir, network={"name": "dynunet"}, data={"patch_size": [32, 32]})
    with pytest.raises(CheckpointError, match=r"Give the patch size of the checkpoint: .*\[64, 64\]"):
        probe_loss(ProbeRequest(layers, path, 1))


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command_function)
    return app


def test_command(command: typer.Typer, particles_dir: Path, tmp_path: Path) -> None:
    picture, config = tmp_path / "probe.png", tmp_path / "mine.yaml"
    config.write_text(json.dumps({**TINY, "loss": {"weights": {"dice": 0.5, "variance": 0.5}}}))
    arguments = [str(config), "--data", str(particles_dir), "--batches", "1"]
    result = CliRunner().invoke(command, [*arguments, "--json", "--figure", str(picture)], catch_exceptions=False)
    shown = json.loads(result.stdout)
    assert set(shown) == {"findings", "summary"}
    assert set(shown["summary"]["constants"]) == {"dice", "variance"}
    assert picture.is_file()
    table = CliRunner().invoke(command, arguments, catch_exceptions=False).stdout
    state = shown["summary"]["states"][0]
    for text in (
        "base rate",
        "dice.fn_cost",
        f"{state['values']['variance']:.4f}",
        f"{state['shares'][0]['dice']:.1%}",
    ):
        assert text in table
    assert f"{state['cosines'][0]['mean']:+.2f}" in table
    for finding in shown["findings"]:
        assert finding["message"] in table
    with pytest.raises(DataError, match="exists already"):
        CliRunner().invoke(command, [*arguments, "--figure", str(picture)], catch_exceptions=False)
    with pytest.raises(ConfigError, match="unknown loss"):
        CliRunner().invoke(command, [*arguments, "--set", "loss.weights={dicee: 1}"], catch_exceptions=False)


def test_a_checkpoint_alone_brings_its_settings_and_data(
    command: typer.Typer, tiny_run: Path, particles_dir: Path
) -> None:
    best = tiny_run / "checkpoints" / "best.pt"
    arguments = ["--checkpoint", str(best), "--batches", "1"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert f"1 batch of {particles_dir}" in result.stdout
    assert "best.pt, step" in result.stdout


def test_more_than_two_classes_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    probe = make_probe({"dice": dice})
    _print(probe)
    assert "all positive predicts" not in capsys.readouterr().out
    _print(replace(probe, frequencies=(0.5, 0.1, 0.4), positive_class=2))
    shown = capsys.readouterr().out
    assert "class 0 50.00%, class 1 10.00%, class 2 40.00%" in shown
    assert "all positive predicts class 2" in shown
