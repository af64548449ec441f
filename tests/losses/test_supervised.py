"""The weighted sum: phases, options, costs, several heads, presets by name; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_cases import make_case
from monai.losses import DeepSupervisionLoss, DiceLoss
from torch import Tensor

from ssl_seg.config import LossConfig
from ssl_seg.config.presets import PRESETS
from ssl_seg.errors import ConfigError
from ssl_seg.losses import CONSISTENCY, LOSSES, SupervisedLoss, first_head, get_loss, list_options, make_supervised_loss
from ssl_seg.losses.overlap import dice, tversky
from ssl_seg.losses.voxelwise import focal
from ssl_seg.methods.mean_teacher import MeanTeacherConfig


def make_loss(**section: Any):
    return make_supervised_loss(LossConfig(**section))


def test_compute_loss_weighs_and_reports() -> None:
    logits, target = make_case((2, 3, 4, 4))
    logits.requires_grad_()
    total, terms = make_supervised_loss(LossConfig(weights={"dice": 0.5, "focal": 2.0}))(logits, target)
    torch.testing.assert_close(total, 0.5 * dice(logits, target) + 2.0 * focal(logits, target))
    torch.testing.assert_close(terms, {"dice": dice(logits, target).detach(), "focal": focal(logits, target).detach()})
    assert total.requires_grad
    assert not any(term.requires_grad for term in terms.values())


def test_phases_change_the_weights() -> None:
    logits, target = make_case((2, 3, 4, 4))
    loss = make_loss(
        weights={"dice": 1.0, "focal": 0.0},
        phases=[{"from_epoch": 2, "weights": {"dice": 0.4, "iou": 0.6}, "blend_epochs": 2}],
    )
    values = {name: LOSSES[name](logits, target) for name in ("dice", "focal", "iou")}
    total, terms = loss(logits, target, 1.9)
    torch.testing.assert_close(total, values["dice"])
    assert set(terms) == {"dice", "focal"}
    total, terms = loss(logits, target, 3.0)  # half of the way
    torch.testing.assert_close(total, 0.7 * values["dice"] + 0.3 * values["iou"])
    assert set(terms) == {"dice", "focal", "iou"}
    total, terms = loss(logits, target, 4.0)
    torch.testing.assert_close(total, 0.4 * values["dice"] + 0.6 * values["iou"])
    assert set(terms) == {"dice", "iou"}


def test_watched_components_have_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = make_case((2, 3, 4, 4))
    graphs = []
    loss = make_loss(weights={"dice": 1.0, "focal": 0.0})
    watched = loss.components["focal"]
    monkeypatch.setitem(loss.components, "focal", lambda x, y: graphs.append(watched(x, y)) or graphs[-1])
    total, terms = loss(logits.requires_grad_(), target)
    assert [graph.requires_grad for graph in graphs] == [False]
    torch.testing.assert_close(terms["focal"], focal(logits, target).detach())
    torch.testing.assert_close(total, dice(logits, target))


def test_options_and_costs_reach_the_components() -> None:
    logits, target = make_case((2, 3, 4, 4))
    options = {"focal": {"gamma": 3.0}, "dice": {"fn_cost": 5.0}}
    loss = make_loss(weights={"focal": 1.0, "dice": 1.0, "variance": 0.1}, options=options, fp_cost=2.0, fn_cost=3.0)
    _, terms = loss(logits, target)
    torch.testing.assert_close(terms["focal"], focal(logits, target, gamma=3.0, fp_cost=2.0, fn_cost=3.0))
    torch.testing.assert_close(terms["dice"], dice(logits, target, fp_cost=2.0, fn_cost=15.0))  # they multiply
    torch.testing.assert_close(terms["variance"], LOSSES["variance"](logits, target))


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(8, 6), (4, 8, 6)])
def test_deep_supervision_is_monais(n_heads: int, spatial: tuple[int, ...]) -> None:
    heads = [make_case((2, 3, *spatial), seed=h)[0] for h in range(n_heads)]
    target = make_case((2, 3, *spatial), seed=9)[1]
    plain = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True, smooth_nr=1, smooth_dr=1)
    expected = DeepSupervisionLoss(plain)(heads, target[:, None]) / sum(0.5**h for h in range(n_heads))
    total, terms = make_loss(weights={"dice": 1.0})(torch.stack(heads, dim=1), target)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(terms["dice"], expected)


def test_one_head_is_no_other_loss_than_none() -> None:
    logits, target = make_case((2, 3, 4, 5))
    loss = make_loss(weights={"dice": 1.0, "cross_entropy": 0.5})
    torch.testing.assert_close(loss(logits[:, None], target), loss(logits, target))


def test_a_weighted_sum_reads_nothing_back_from_the_device() -> None:
    loss = make_loss(**PRESETS["competition"], options={"cross_entropy": {"class_weights": [1, 2, 3]}}, fn_cost=2.0)
    target = torch.zeros(2, 4, 5, dtype=torch.int64, device="meta")
    for shape in ((2, 3, 4, 5), (2, 2, 3, 4, 5)):
        loss(torch.zeros(shape, device="meta", requires_grad=True), target, 3.0)[0].backward()


def test_first_head_is_the_full_resolution() -> None:
    logits, target = make_case((2, 3, 4, 5))
    stacked = torch.stack([logits, -logits], dim=1)
    assert torch.equal(first_head(stacked, target.ndim), logits)
    assert torch.equal(first_head(logits, target.ndim), logits)


class TestRefusals:
    def test_unknown_components_are_all_named(self) -> None:
        with pytest.raises(
            ConfigError, match=r"'dise' \(did you mean 'dice'\?\), 'xyz'; available: cross_entropy, dice"
        ):
            make_supervised_loss(LossConfig(weights={"dise": 1.0, "dice": 1.0, "xyz": 1.0}))

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("bce", r"'cross_entropy', which with two classes is the binary one"),
            ("BCE_loss", r"'cross_entropy', which with two classes is the binary one"),
            ("dice_weight", r"did you mean 'dice'\?"),
            ("boundary_weight", r"did you mean 'boundary'\?"),
            ("cldice_weight", r"did you mean 'cldice'\?"),
            ("jaccard", r"here 'iou'"),
            ("hausdorff", r"here 'hausdorff_dt'"),
        ],
    )
    def test_names_of_others_are_translated(self, name: str, hint: str) -> None:
        with pytest.raises(ConfigError, match=hint):
            make_loss(weights={name: 1.0})
        with pytest.raises(ConfigError, match=hint):
            get_loss(name)

    def test_components_of_later_phases_are_checked_too(self) -> None:
        with pytest.raises(ConfigError, match=r"'focall' \(did you mean 'focal'\?\)"):
            make_loss(weights={"dice": 1.0}, phases=[{"from_epoch": 3, "weights": {"focall": 1.0}}])

    @pytest.mark.parametrize("cost", ["fp_cost", "fn_cost"])
    def test_costs_that_nothing_takes(self, cost: str) -> None:
        message = rf"loss\.{cost} = 2\.0 has no effect: none of the weighted components \(cldice, variance\) takes it"
        with pytest.raises(ConfigError, match=message):
            make_loss(weights={"cldice": 1.0, "variance": 0.1, "dice": 0.0}, **{cost: 2.0})
        make_loss(weights={"cldice": 1.0}, phases=[{"from_epoch": 5, "weights": {"dice": 1.0}}], **{cost: 2.0})

    def test_options_of_a_component_that_no_phase_names(self) -> None:
        options = {"focal": {"gamma": 3.0}}
        with pytest.raises(ConfigError, match=r"loss\.options\.focal: no phase names 'focal', only dice"):
            make_loss(weights={"dice": 1.0}, options=options)
        make_loss(weights={"dice": 1.0}, options=options, phases=[{"from_epoch": 1, "weights": {"focal": 1.0}}])

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("focal", {"gama": 2.0}, r"loss\.options\.focal\.gama: unknown key \(did you mean 'gamma'\?\)"),
            ("focal", {"gamma": "high"}, r"loss\.options\.focal\.gamma = 'high': input should be a valid number"),
            ("focal", {"gamma": -1.0}, r"loss\.options\.focal\.gamma = -1\.0: .* greater than or equal to 0"),
            ("focal", {"alpha": 1.5}, r"loss\.options\.focal\.alpha = 1\.5: .* less than or equal to 1"),
            ("dice", {"smooth": 0.0}, r"loss\.options\.dice\.smooth = 0\.0: .* greater than 0"),
            ("dice", {"fn_cost": float("inf")}, r"loss\.options\.dice\.fn_cost = inf: .* finite"),
            ("dice", {"batch": "some"}, r"loss\.options\.dice\.batch = 'some'"),
            ("cldice", {"iterations": 2.5}, r"loss\.options\.cldice\.iterations = 2\.5"),
            ("cross_entropy", {"class_weights": [1, "x"]}, r"loss\.options\.cross_entropy\.class_weights"),
            ("lovasz", {"gamma": 1.0}, r"loss\.options\.lovasz\.gamma: unknown key"),
        ],
    )
    def test_options_are_checked(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            get_loss(name, **options)
        with pytest.raises(ConfigError, match=message):
            make_loss(weights={name: 1.0}, options={name: options})


def evaluate(loss, epoch: float | None = None) -> Tensor:
    logits, target = make_case((2, 2, 6, 6))
    return loss(logits, target) if epoch is None else loss(logits, target, epoch)


def test_get_loss_of_a_component_binds_its_options() -> None:
    logits, target = make_case((2, 2, 6, 6))
    assert evaluate(get_loss("tversky", alpha=0.9)) == tversky(logits, target, alpha=0.9)
    assert evaluate(get_loss("dice")) == dice(logits, target)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("combined", {"cross_entropy": 0.4, "dice": 0.4, "focal": 0.2}),
        ("focal_dice", {"focal": 0.7, "dice": 0.3}),
        ("competition", {"cross_entropy": 3.0, "dice": 1.0, "focal": 4.0}),
        ("dice", {"dice": 1.0}),
        ("progressive", {"dice": 1.0}),
        ("curriculum", {"dice": 1.0}),
    ],
)
def test_get_loss_of_a_preset_is_its_weighted_sum(name: str, weights: dict[str, float]) -> None:
    expected = sum(weight * evaluate(LOSSES[key]) for key, weight in weights.items())
    torch.testing.assert_close(evaluate(get_loss(name)), expected)


def test_get_loss_of_a_preset_takes_the_keys_of_a_loss_section_and_the_epoch() -> None:
    logits, target = make_case((2, 2, 6, 6))
    loss = get_loss("tversky_recall", options={"tversky": {"beta": 2.0}}, fp_cost=3.0)
    assert evaluate(loss) == tversky(logits, target, alpha=0.3, beta=2.0, fp_cost=3.0)
    parts = {"dice": 0.75, "focal": 0.15, "variance": 0.05, "boundary": 0.05}
    late = sum(weight * evaluate(LOSSES[key]) for key, weight in parts.items())
    torch.testing.assert_close(evaluate(get_loss("progressive"), 61.0), late)
    with pytest.raises(ConfigError, match=r"loss\.fpcost: unknown key \(did you mean 'fp_cost'\?\)"):
        get_loss("combined", fpcost=1.0)
    with pytest.raises(ConfigError, match=r"unknown loss 'combind' \(did you mean 'combined'\?\)"):
        get_loss("combind")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_loss_that_can_be_trained_with(name: str) -> None:
    logits, target = make_case((2, 3, 6, 6))
    logits.requires_grad_()
    loss = make_loss(**PRESETS[name])
    for epoch in (0.0, 40.0, 70.0):
        total, _ = loss(logits, target, epoch)
        assert torch.autograd.grad(total, logits)[0].isfinite().all()


def test_options_are_listed_with_their_defaults() -> None:
    assert list_options("tversky") == {
        "alpha": 0.3, "beta": 0.7, "smooth": 1.0, "batch": True, "fp_cost": 1.0, "fn_cost": 1.0
    }  # fmt: skip
    assert list_options("variance") == {}


@pytest.mark.parametrize("name", CONSISTENCY)
def test_every_consistency_distance_can_be_chosen(name: str) -> None:
    assert MeanTeacherConfig(consistency=name).consistency == name


def test_class_weights_of_the_whole_loss_are_those_of_the_cross_entropy() -> None:
    logits, target = make_case((2, 3, 6, 6))
    weights = (0.5, 2.0, 3.0)
    loss = make_loss(weights={"cross_entropy": 0.4, "dice": 0.6}, class_weights=weights)
    _, terms = loss(logits, target)
    assert terms["cross_entropy"] == get_loss("cross_entropy", class_weights=weights)(logits, target)
    assert terms["dice"] == get_loss("dice")(logits, target)


def test_more_weight_on_foreground_predicts_more_of_it() -> None:
    """One logit for all voxels, of which 30 % are foreground: the loss is lowest at odds w1 * 0.3 / (w0 * 0.7)."""
    target = (torch.arange(10) < 3).long().view(1, 10)
    found = []
    for weight in (0.5, 1.0, 2.0, 7.0):
        loss, odds = make_loss(weights={"cross_entropy": 1.0}, class_weights=(1.0, weight)), torch.zeros(1)
        odds.requires_grad_()
        optimizer = torch.optim.LBFGS([odds], max_iter=50)

        def step(loss: SupervisedLoss = loss, odds: Tensor = odds, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            total, _ = loss(torch.stack([torch.zeros(10), odds.expand(10)]).unsqueeze(0), target)
            total.backward()
            return total

        optimizer.step(step)
        assert odds.exp().item() == pytest.approx(weight * 3 / 7, rel=1e-3)
        found.append(torch.sigmoid(odds).item())
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": {"dice": 1.0}, "class_weights": "auto"}, r"class_weights = auto has no effect.*cross_entropy"),
        ({"weights": {"cross_entropy": 0.0, "dice": 1.0}, "class_weights": [1, 2]}, r"= \[1.0, 2.0\] has no effect"),
        ({"class_weights": [1, 2], "options": {"cross_entropy": {"class_weights": [1, 3]}}}, "give one of them"),
    ],
)
def test_class_weights_in_vain_or_twice(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_loss(**settings)
