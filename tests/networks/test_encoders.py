"""The U-Net on a published encoder: its weights, its input, its frozen norms, and files that do not fit."""

from __future__ import annotations

import copy
import hashlib
import math
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import train_tiny
from timm_stand_in import install_timm
from torch import Tensor, nn

from ssl_seg.config import EMAConfig, OptimConfig
from ssl_seg.config.schedules import make_ema_schedule
from ssl_seg.diagnose.checkpoint import CheckpointRequest, diagnose_checkpoint
from ssl_seg.engine.devices import to_memory_format
from ssl_seg.engine.ema import EMATeacher, estimate_batch_norm
from ssl_seg.engine.optim import make_optimizer, set_lr
from ssl_seg.errors import NetworkError
from ssl_seg.inference.model import open_model
from ssl_seg.networks.builders import NETWORKS, build_network, check_deep_supervision, has_batch_norm
from ssl_seg.networks.encoders import load_encoder, make_encoder
from ssl_seg.networks.encoders import weights as weight_files
from ssl_seg.networks.encoders.efficientnet import EfficientNetLite0, fit_weights
from ssl_seg.networks.encoders.unet import PHOTO_MEAN, PHOTO_STD, EncoderUNet, make_input_scale
from ssl_seg.results.evaluation import EvaluateRequest, evaluate

LITE0 = "efficientnet_lite0"


def build(
    channels: int = 1,
    *,
    ndim: int = 2,
    pretrained: bool = True,
    patch_size: tuple[int, ...] | None = None,
    **options: Any,
) -> EncoderUNet:
    torch.manual_seed(0)
    network = build_network(
        "encoder_unet",
        ndim=ndim,
        channels=channels,
        num_classes=2,
        patch_size=patch_size or (64,) * ndim,
        features=2,
        pretrained=pretrained,
        **options,
    )
    assert isinstance(network, EncoderUNet)
    return network


def load(channels: int = 1, source: str = "imagenet", **options: Any) -> EncoderUNet:
    network = build(channels, **options)
    load_encoder(network, LITE0, source)
    return network


def published() -> dict[str, Tensor]:
    return torch.load(weight_files._find_package_file(), weights_only=True)


# The network of the weights


def reference_features(images: Tensor) -> list[Tensor]:
    """EfficientNet-Lite0 written out from the names in the file, as TensorFlow computes it."""
    state = published()

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        kernel = weight.shape[-1]
        out = -(-x.shape[-1] // stride)
        total = max((out - 1) * stride + kernel - x.shape[-1], 0)
        x = nn.functional.pad(x, (total // 2, total - total // 2) * 2)
        return nn.functional.conv2d(x, weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)

    def normalize(x: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            state[f"{name}.{k}"].reshape(-1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-3).sqrt() * scale + shift

    def block(x: Tensor, name: str, stride: int) -> Tensor:
        y = x
        if f"{name}._expand_conv.weight" in state:
            y = normalize(convolve(y, f"{name}._expand_conv"), f"{name}._bn0").clamp(0, 6)
        y = normalize(convolve(y, f"{name}._depthwise_conv", stride), f"{name}._bn1").clamp(0, 6)
        y = normalize(convolve(y, f"{name}._project_conv"), f"{name}._bn2")
        return y + x if stride == 1 and x.shape == y.shape else y

    x = normalize(convolve(images, "_conv_stem", 2), "_bn0").clamp(0, 6)
    features = []
    for index in range(16):
        x = block(x, f"_blocks.{index}", 2 if index in (1, 3, 5, 11) else 1)
        if index in (0, 2, 4, 10, 15):
            features.append(x)
    return features


def test_features_are_those_of_the_published_network() -> None:
    encoder = load(3).encoder.eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for ours, theirs in zip(encoder(images), reference_features(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_any_number_of_equal_channels_is_the_gray_photo(channels: int) -> None:
    gray = torch.randn(1, 1, 64, 64)
    color, other = load(3).encoder.eval(), load(channels).encoder.eval()
    with torch.no_grad():
        expected = color(gray.expand(-1, 3, -1, -1))
        for ours, theirs in zip(other(gray.expand(-1, channels, -1, -1)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_channels_are_all_looked_at() -> None:
    encoder, images = load(4).encoder.eval(), torch.randn(1, 4, 64, 64, requires_grad=True)
    encoder(images)[-1].square().sum().backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_mean_and_contrast_are_those_of_photos(channels: int) -> None:
    photo = (torch.rand(100_000, 3) - 0.5) * torch.tensor(PHOTO_STD) * 12**0.5 + torch.tensor(PHOTO_MEAN)
    scores = (photo - photo.mean(0)) / photo.std(0)
    scale, shift = make_input_scale(channels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert scale.shape == shift.shape == (channels,)
    if channels == 3:
        torch.testing.assert_close(scores * scale + shift, (photo - 0.5) / 0.25, atol=0.02, rtol=0)
        assert len(set(scale.tolist())) == 3
    else:
        assert len(set(scale.tolist())) == 1
        assert scale[0].item() == pytest.approx(sum(PHOTO_STD) / 3 / 0.25)
        assert shift[0].item() == pytest.approx((sum(PHOTO_MEAN) / 3 - 0.5) / 0.25, abs=1e-6)


def test_loading_sets_the_scale_of_the_input() -> None:
    assert torch.equal(build().input.get_buffer("scale"), torch.ones(1, 1, 1))
    assert load().input.get_buffer("scale").item() == pytest.approx(sum(PHOTO_STD) / 3 / 0.5)


# Norms


@pytest.mark.parametrize("ndim", [2, 3])
def test_frozen_norms_keep_their_statistics_and_learn_their_scale(ndim: int) -> None:
    network = load(ndim=ndim)
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    network.train()(torch.randn(2, 1, *(32,) * ndim)).square().mean().backward()
    optimizer.step()
    after = network.encoder.state_dict()
    moved = {name.rsplit(".", 1)[1] for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"weight", "bias"}
    assert not has_batch_norm(network)


def test_frozen_norms_give_the_same_in_both_modes() -> None:
    network, images = load(), torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.train().encoder(images)[-1], network.eval().encoder(images)[-1])


def test_random_encoders_have_the_norm_of_the_network() -> None:
    kinds = {type(m) for m in build(pretrained=False).modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
    assert kinds == {nn.InstanceNorm2d}
    network = build(pretrained=False, norm="batch")
    assert has_batch_norm(network)
    norms = [m for m in network.train().encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 48
    assert all(m.training for m in norms)


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_the_norm_asked_for_is_that_of_the_decoder(norm: str, kind: type[nn.Module]) -> None:
    network = load(norm=norm)
    assert {type(m) for m in network.encoder.modules() if "Norm" in type(m).__name__} == {nn.BatchNorm2d}
    assert {type(m) for m in network.decoder.modules() if "Norm" in type(m).__name__} == {kind}
    assert has_batch_norm(network) == (norm == "batch")


def test_features_below_zero_still_tell_voxels_apart() -> None:
    """With ReLU, one training of 186 ended with the bias of the head in all foreground, and F1 0."""
    network = build(norm="group").eval()
    with torch.no_grad():
        for block in network.decoder.values():
            block[-2].bias.fill_(-20.0)  # of the last norm: what follows sees nothing above 0
        logits = network(torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert logits.std(dim=(2, 3)).min() > 1e-3


@pytest.mark.parametrize(("ndim", "norms"), [(2, 48), (3, 33)])
def test_the_teacher_of_a_frozen_student_has_its_statistics(ndim: int, norms: int) -> None:
    student = load(ndim=ndim).train()
    teacher = EMATeacher(student, make_ema_schedule(EMAConfig(decay=0.5, warmup=False), 10), 0)
    with torch.no_grad():
        for weight in student.parameters():
            weight.add_(1.0)
    teacher.update(student)
    statistics = [n for n, _ in student.named_buffers() if "running" in n]
    assert len(statistics) == 2 * norms
    for name in statistics:
        assert torch.equal(teacher.net.get_buffer(name), student.get_buffer(name))


def test_the_statistics_of_an_average_leave_frozen_norms_alone() -> None:
    """Estimated twice they are the same: frozen layers have their statistics while those of the decoder are taken."""
    network = load(norm="batch")
    frozen = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    batches = [torch.randn(2, 1, 32, 32) * 2 + 5 for _ in range(2)]
    states = []
    for _ in range(2):
        estimate_batch_norm(network, batches, nullcontext)
        states.append({name: value.clone() for name, value in network.state_dict().items()})
    torch.testing.assert_close(dict(network.encoder.state_dict()), frozen, rtol=0, atol=0)
    torch.testing.assert_close(states[0], states[1])
    assert not network.training


# Three dimensions


DEPTH_STEPS = {
    1: (1, 1, 1, 1),
    3: (1, 1, 1, 1),
    8: (2, 1, 1, 1),
    16: (2, 2, 1, 1),
    32: (2, 2, 2, 1),
    64: (2, 2, 2, 2),
}
"""Slices of a patch -> by how much they shrink at each level, while four or more remain."""


@pytest.mark.parametrize(("depth", "shrinks"), DEPTH_STEPS.items())
def test_slices_of_a_volume_have_the_features_of_images(depth: int, shrinks: tuple[int, ...]) -> None:
    flat, deep = load().encoder.eval(), load(ndim=3, patch_size=(depth, 64, 64)).encoder.eval()
    run = math.prod(shrinks)  # slices that the coarsest level averages: equal ones here
    images = torch.randn(depth // run, 1, 64, 64)
    volume = images.repeat_interleave(run, dim=0).transpose(0, 1).unsqueeze(0)
    stride = 1
    with torch.no_grad():
        for ours, theirs, shrink in zip(deep(volume), flat(images)[:4], shrinks, strict=True):
            stride *= shrink
            expected = theirs.repeat_interleave(run // stride, dim=0)
            torch.testing.assert_close(ours[0].transpose(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_first_level_averages_two_slices() -> None:
    flat, deep = load().encoder.eval(), load(ndim=3, patch_size=(8, 32, 32)).encoder.eval()
    volume = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        first = flat(volume[0].transpose(0, 1))[0]
        expected = (first[::2] + first[1::2]) / 2
        torch.testing.assert_close(deep(volume)[0][0].transpose(0, 1), expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_takes_slices_in_any_order_and_the_decoder_does_not() -> None:
    network = load(ndim=3, patch_size=(4, 32, 32)).eval()
    volume, order = torch.randn(1, 1, 4, 32, 32), torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        for before, after in zip(network.encoder(volume), network.encoder(volume[:, :, order]), strict=True):
            torch.testing.assert_close(before[:, :, order], after)
        assert not torch.allclose(network(volume)[:, :, order], network(volume[:, :, order]), atol=1e-3)


def test_kernels_are_one_slice_thick() -> None:
    weights = [torch.randn(4, 3, 3, 3), torch.randn(5, 1, 5, 5), torch.randn(6)]
    fitted = fit_weights(weights, ndim=3, channels=3)
    assert [tuple(weight.shape) for weight in fitted] == [(4, 3, 1, 3, 3), (5, 1, 1, 5, 5), (6,)]
    assert all(torch.equal(ours.flatten(), theirs.flatten()) for ours, theirs in zip(fitted, weights, strict=True))


def test_a_volume_has_one_step_to_all_weights_and_finite_outputs_in_bf16() -> None:
    network = load(ndim=3, patch_size=(16, 32, 32), deep_supervision=2).train()
    before = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(2, 1, 16, 32, 32))
    assert logits.shape == (2, 3, 2, 16, 32, 32)
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    optimizer.step()
    assert all(weight.isfinite().all() for weight in network.parameters())
    assert [name for name, weight in network.named_parameters() if torch.equal(before[name], weight)] == []


@pytest.mark.parametrize(
    ("size", "divisor"),
    [((32, 64, 64), (8, 16, 16)), ((96, 96, 96), (16, 16, 16)), ((16, 20, 256), (4, 4, 16)), ((2, 16, 16), (1, 4, 4))],
)
def test_patches_of_volumes_shrink_while_four_voxels_remain(size: tuple[int, ...], divisor: tuple[int, ...]) -> None:
    assert NETWORKS["encoder_unet"].divisor(size) == NETWORKS["dynunet"].divisor(size) == divisor
    network = build(ndim=3, patch_size=size).eval()
    with torch.no_grad():
        image = torch.zeros(1, 1, *size)
        assert network(image).shape == (1, 2, *size)
        assert network.encoder(image)[-1].shape[2:] == tuple(s // d for s, d in zip(size, divisor, strict=True))


@pytest.mark.parametrize(("size", "most"), [((16, 16, 16), 3), ((64, 64, 64), 3)])
def test_volumes_have_three_coarser_outputs(size: tuple[int, ...], most: int) -> None:
    check_deep_supervision("encoder_unet", size, most)
    with pytest.raises(NetworkError, match=f"has {most} coarser levels"):
        check_deep_supervision("encoder_unet", size, most + 1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_memory_format_changes_no_output(ndim: int) -> None:
    network, images = load(ndim=ndim).eval(), torch.randn(1, 1, *(32,) * ndim)
    with torch.no_grad():
        expected = network(images)
        network = to_memory_format(network, "channels_last", ndim)
        torch.testing.assert_close(network(images), expected, rtol=1e-3, atol=1e-3)
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    assert network.encoder.get_parameter("stages.1.0.expand.conv.weight").is_contiguous(memory_format=layout)


# Learning rates


def test_the_encoder_has_its_own_share_of_the_learning_rate() -> None:
    network = load()
    optimizer = make_optimizer(network, OptimConfig(encoder_lr_factor=0.25), [network.encoder])
    set_lr(optimizer, 0.8)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == {id(p) for p in network.parameters()}
    assert {rates[id(p)] for p in network.encoder.parameters()} == {0.2}
    assert {rates[id(p)] for p in network.decoder.parameters()} == {0.8}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all((decays[id(p)] > 0) == (p.ndim > 1) for p in network.parameters())


def test_without_a_factor_there_are_two_groups() -> None:
    network = build(pretrained=False)
    assert len(make_optimizer(network, OptimConfig(), [network.encoder]).param_groups) == 2


# Files of weights


def save(content: object, path: Path) -> str:
    torch.save(content, path)
    return str(path)


def test_a_file_in_the_order_of_the_encoder_fits(tmp_path: Path) -> None:
    path = save(published(), tmp_path / "own.pth")
    network = build()
    assert load_encoder(network, LITE0, path) == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    expected = load().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def test_a_file_of_timm_is_matched_by_name_in_any_order(tmp_path: Path) -> None:
    encoder = EfficientNetLite0([(2, 2)] * 5, 3)
    own = [name for name, value in encoder.state_dict().items() if value.is_floating_point()]
    values = [v for v in published().values() if v.is_floating_point()][: len(own)]
    named = {weight_files._name_in_timm(name): value for name, value in zip(own, values, strict=True)}
    assert len(named) == 240
    assert named["blocks.0.0.conv_dw.weight"].shape == (32, 1, 3, 3)
    assert named["blocks.0.0.bn2.bias"].shape == (16,)
    assert named["blocks.5.3.conv_pwl.weight"].shape == (192, 1152, 1, 1)
    path = save({"classifier.bias": torch.zeros(1000)} | dict(sorted(named.items())), tmp_path / "timm.pth")
    network = build()
    load_encoder(network, LITE0, path)
    expected = load().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


class Malicious:
    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("code ran",)


def spoil(kind: str, path: Path) -> None:
    whole = {name: value for name, value in published().items() if value.is_floating_point()}
    if kind == "truncated":
        save(whole, path)
        path.write_bytes(path.read_bytes()[:100_000])
    elif kind == "code":
        path.write_bytes(pickle.dumps(Malicious()))
    elif kind == "no dictionary":
        save([1, 2], path)
    elif kind == "too few":
        save(dict(list(whole.items())[:100]), path)
    elif kind == "another first layer":
        save({"stem": torch.zeros(64, 3, 7, 7), **dict(list(whole.items())[1:])}, path)
    elif kind == "another width":
        save({name: value[:20] if name == "_blocks.3._bn0.bias" else value for name, value in whole.items()}, path)
    elif kind == "a table":
        save({"conv": torch.zeros(32, 3), **dict(list(whole.items())[1:])}, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "damaged"),
        ("code", "could run code"),
        ("no dictionary", "must hold a dictionary from names to tensors"),
        ("too few", "is of another encoder: it holds 100 tensors, expected 240"),
        ("another first layer", "is of another encoder: .* it has 64x1x7x7, expected 32x1x3x3"),
        ("another width", r"is of another encoder: where 'stages\.2\.0\.expand\.norm\.bias' .* has 20, expected 144"),
        ("a table", "its first tensor is 32x3, expected 32x3x3x3"),
        ("missing", "no such file. Use imagenet, none, or a file of weights"),
    ],
)
def test_other_files_are_refused(kind: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    spoil(kind, path)
    network = build()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(NetworkError, match=message) as error:
        load_encoder(network, LITE0, str(path))
    assert str(path) in str(error.value)
    assert "code ran" not in capsys.readouterr().out
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "nothing half done"


def test_another_file_in_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pth"
    save(published() | {"extra": torch.zeros(1)}, path)
    monkeypatch.setattr(weight_files, "_find_package_file", lambda: path)
    with pytest.raises(NetworkError, match=f"expected {weight_files.SHA256}"):
        load()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "PACKAGE", "no_such_package")
    with pytest.raises(NetworkError, match="pip install no_such_package"):
        load()


# Runs


ENCODER = {
    "network": {"name": "encoder_unet", "features": 2},
    "data": {"patch_size": [32, 64]},
    "length": {"steps": 2, "steps_per_epoch": 1},
}


def test_a_run_says_what_its_encoder_began_with_and_needs_the_file_no_more(
    particles_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(save(published(), Path("own.pth")))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    settings = {**ENCODER, "network": {**ENCODER["network"], "encoder_weights": "own.pth"}}
    first = train_tiny(tmp_path / "run", particles_dir, settings)
    (started,) = [event for event in first.run.read_events() if event["event"] == "started"]
    assert started["encoder_weights"] == digest
    assert open_model(first.run.best).config.network.encoder_weights == str(tmp_path / "own.pth")
    path.unlink()
    assert evaluate(EvaluateRequest(first.run.best))
    assert diagnose_checkpoint(CheckpointRequest(first.run.best, seconds=0))
    short = {"bootstrap": {"gate": "none"}, "length": {"steps": 1}}
    second = train_tiny(tmp_path / "next", particles_dir, ENCODER, short, bootstrap=first.run.best)
    (started,) = [event for event in second.run.read_events() if event["event"] == "started"]
    assert "encoder_weights" not in started


def test_weights_that_do_not_fit_leave_nothing_behind(particles_dir: Path, tmp_path: Path) -> None:
    settings = {**ENCODER, "network": {**ENCODER["network"], "encoder_weights": "nowhere.pth"}}
    with pytest.raises(NetworkError, match="no such file"):
        train_tiny(tmp_path / "run", particles_dir, settings)
    assert not (tmp_path / "run").exists()


# Encoders of timm, by a stand-in for the package


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return install_timm(monkeypatch)


@pytest.mark.parametrize("name", ["resnet18", "coarse", "resnet18.a1_in1k"])
def test_encoders_of_timm(name: str, timm: list[dict[str, Any]], tmp_path: Path) -> None:
    network = build(2, encoder=name)
    assert network(torch.randn(1, 2, 64, 64)).shape == (1, 2, 64, 64)
    assert not has_batch_norm(network)
    published = {f"{n}": torch.randn_like(v) for n, v in network.encoder.state_dict().items() if v.is_floating_point()}
    path = Path(save(published, tmp_path / "weights.pth"))
    assert load_encoder(network, name, str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(network.encoder.state_dict()[n], value) for n, value in published.items())
    assert network.input.get_buffer("scale").flatten().tolist() == pytest.approx([1.0, 1.0])
    assert timm[0] == {"features_only": True, "in_chans": 2}


@pytest.mark.usefixtures("timm")
def test_a_file_that_timm_takes_nothing_from_is_refused(tmp_path: Path) -> None:
    path = save({"blocks.0.weight": torch.randn(4, 4)}, tmp_path / "weights.pth")
    with pytest.raises(
        NetworkError, match=r"is of another encoder: of the 6 tensors of resnet18 it lacks \d, .*'layer"
    ):
        load_encoder(build(encoder="resnet18"), "resnet18", path)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize(("channels", "lacking"), [(1, "layer.bias"), (3, "layer.weight"), (3, "norm.running_var")])
def test_a_file_that_lacks_one_tensor_is_refused(channels: int, lacking: str, tmp_path: Path) -> None:
    network = build(channels, encoder="resnet18")
    values = {n: torch.randn_like(v) for n, v in network.encoder.state_dict().items() if v.is_floating_point()}
    load_encoder(network, "resnet18", save(values, tmp_path / "whole.pth"))
    del values[lacking]
    with pytest.raises(NetworkError, match=f"of the 6 tensors of resnet18 it lacks 1, for example '{lacking}'"):
        load_encoder(network, "resnet18", save(values, tmp_path / "weights.pth"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit", "it cannot be an encoder: features_only not implemented for Vision Transformer models"),
        ("odd", r"its features have the strides \[3, 6\]"),
        ("resnet81", r"neither efficientnet_lite0 nor a model of timm \(did you mean 'resnet18'\?\)"),
    ],
)
@pytest.mark.usefixtures("timm")
def test_other_models_of_timm_are_refused(name: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        make_encoder(name, [(2, 2)] * 5, 1)


@pytest.mark.usefixtures("timm")
def test_no_network_is_said() -> None:
    with pytest.raises(NetworkError, match="its weights are not available: We couldn't connect"):
        load_encoder(build(encoder="resnet18"), "resnet18", "imagenet")
    with pytest.raises(NetworkError, match="no such file"):
        load_encoder(build(encoder="resnet18"), "resnet18", "nowhere.pth")


@pytest.mark.usefixtures("timm")
def test_encoders_of_timm_are_2d() -> None:
    with pytest.raises(NetworkError, match="encoders of timm are 2D"):
        make_encoder("resnet18", [(2, 2, 2)] * 4, 1)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(NetworkError, match=r"pip install 'ssl-seg\[encoders\]'"):
        make_encoder("resnet18", [(2, 2)] * 5, 1)


def test_the_default_encoder_loads_neither_timm_nor_torchvision() -> None:
    code = (
        "import sys; from ssl_seg.networks.encoders import make_encoder;"
        "make_encoder('efficientnet_lite0', [(2, 2)] * 5, 1);"
        "sys.exit(any(m in sys.modules for m in ('timm', 'torchvision')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["sparse", "compressed"])
def test_files_of_odd_tensors_or_compressed_ones_are_refused(kind: str, tmp_path: Path) -> None:
    path, odd = tmp_path / "w.pth", tmp_path / "odd.pth"
    torch.save({"a.weight": torch.ones(2, 2)}, path)
    assert weight_files.read_tensors(path)["a.weight"].shape == (2, 2)
    if kind == "sparse":
        torch.save({"a.weight": torch.ones(2, 2).to_sparse()}, odd)
    else:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(odd, "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
    with pytest.raises(NetworkError, match=r"odd\.pth is (refused: it holds a sparse|not a readable file)"):
        weight_files.read_tensors(odd)
