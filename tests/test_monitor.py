from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.metrics import average_precision_score, f1_score, precision_recall_curve, roc_auc_score
from torch import Tensor, nn

from ssl_seg.data.loader import Probe
from ssl_seg.labels import IGNORE_INDEX
from ssl_seg.monitor.signals import SignalCollector, Signals, collect_signals
from ssl_seg.monitor.verdicts import RULES, Finding, judge
from ssl_seg.monitor.watch import Monitor


def make_logits(score: Tensor) -> Tensor:
    """Return two-class logits (N,2,*S) whose log-odds of foreground is ``score``."""
    return torch.stack([-score / 2, score / 2], dim=1)


def collect(score: Tensor, target: Tensor, parts: int = 1) -> Signals:
    collector = SignalCollector(2, torch.device("cpu"))
    for s, t in zip(score.chunk(parts), target.chunk(parts), strict=True):
        collector.update(make_logits(s), t)
    return collector.compute()


@pytest.fixture
def example() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    target = (torch.rand(6, 20, 20, generator=draw) < 0.3).long()
    return torch.randn(6, 20, 20, generator=draw) * 1.5 + 1.5 * target - 1, target


class TestSignals:
    def test_against_sklearn_and_numpy(self, example: tuple[Tensor, Tensor]) -> None:
        score, target = example
        s = collect(score, target, parts=3)
        flat, truth = score.numpy().ravel(), target.numpy().ravel()
        prob = 1 / (1 + np.exp(-flat.astype(np.float64)))
        assert s.auroc == pytest.approx(roc_auc_score(truth, flat), abs=2e-3)
        assert s.average_precision == pytest.approx(average_precision_score(truth, flat), abs=5e-3)
        assert s.f1 == pytest.approx(f1_score(truth, flat > 0))
        assert s.f1_macro == pytest.approx(s.f1)
        precision, recall, _ = precision_recall_curve(truth, flat)
        assert s.f1_best == pytest.approx(np.nanmax(2 * precision * recall / (precision + recall)), abs=3e-3)
        assert s.f1_best == pytest.approx(f1_score(truth, prob >= s.threshold_best), abs=1e-9)
        assert s.logit_mean == pytest.approx(flat.mean(), abs=1e-5)
        assert s.logit_std == pytest.approx(flat.std(), abs=1e-5)
        assert s.prob_mean == pytest.approx(prob.mean(), abs=1e-6)
        assert s.prob_std == pytest.approx(prob.std(), abs=1e-6)
        assert s.share_below_01 == pytest.approx((prob < 0.1).mean())
        assert s.prevalence_pred == pytest.approx((flat > 0).mean())
        assert s.prevalence_true == pytest.approx(truth.mean())
        assert s.ratio_std == pytest.approx(float((score > 0).float().mean((1, 2)).std(unbiased=False)), abs=1e-6)
        expected = np.quantile(flat, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
        np.testing.assert_allclose(s.logit_quantiles, expected, atol=0.05)

    def test_batches_do_not_matter(self, example: tuple[Tensor, Tensor]) -> None:
        assert collect(*example, parts=1).to_record("") == pytest.approx(collect(*example, parts=6).to_record(""))

    def test_ignored_voxels_are_left_out(self, example: tuple[Tensor, Tensor]) -> None:
        score, target = example
        target = target.clone()
        target[:, :5] = IGNORE_INDEX
        ignored, cut = collect(score, target), collect(score[:, 5:], target[:, 5:])
        assert ignored == cut

    def test_non_finite_outputs_are_counted_not_spread(self, example: tuple[Tensor, Tensor]) -> None:
        score, target = example
        score = score.clone()
        score[0, 0, :7] = math.nan
        s = collect(score, target)
        assert s.nonfinite == 7
        assert math.isfinite(s.logit_mean)
        everything = collect(torch.full_like(score, math.nan), target)
        assert everything.nonfinite == everything.voxels
        json.dumps(everything.to_record("x/"))

    def test_one_class_only(self) -> None:
        s = collect(torch.full((1, 4, 4), -3.0), torch.zeros(1, 4, 4, dtype=torch.long))
        assert (s.auroc, s.f1_best, s.trivial_f1, s.f1) == (None, None, 0.0, 1.0)

    def test_classes_count_alike_in_the_macro_f1(self) -> None:
        target = torch.tensor([[[0, 1, 1, 1, 2, 3]]])
        logits = nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1, 1, 3]]]), 4).movedim(-1, 1).float() * 8
        collector = SignalCollector(4, torch.device("cpu"))
        collector.update(logits, target)
        expected = f1_score(target.flatten(), logits.argmax(1).flatten(), labels=[1, 2, 3], average="macro")
        assert collector.compute().f1_macro == pytest.approx(expected)

    def test_dice_is_the_mean_over_patches_and_empty_ones_count_1(self) -> None:
        """Patches of Dice 1 (nothing in either), 0 (hallucinated), 2/3, and one that is ignored altogether."""
        target = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [IGNORE_INDEX] * 4])[:, None]
        score = torch.tensor([[-1.0, -1, -1, -1], [1, -1, -1, -1], [1, -1, -1, -1], [1, 1, 1, 1]])[:, None]
        s = collect(score, target, parts=2)
        assert s.dice == pytest.approx((1 + 0 + 2 / 3) / 3)

    def test_dice_of_a_patch_is_the_mean_over_its_classes(self) -> None:
        target = torch.tensor([[[0, 1, 1, 2]], [[0, 0, 0, 3]], [[0, 0, 0, IGNORE_INDEX]]])
        classes = torch.tensor([[[0, 1, 0, 2]], [[0, 0, 1, 3]], [[0, 0, 0, 2]]])
        collector = SignalCollector(4, torch.device("cpu"))
        collector.update(nn.functional.one_hot(classes, 4).movedim(-1, 1).float() * 8, target)
        assert collector.compute().dice == pytest.approx(((2 / 3 + 1) / 2 + (0 + 1) / 2 + 1) / 3)

    def test_dice_of_two_classes_against_brute_force(self, example: tuple[Tensor, Tensor]) -> None:
        score, target = example
        expected = [f1_score(t.ravel(), p.ravel()) for t, p in zip(target.numpy(), (score > 0).numpy(), strict=True)]
        assert collect(score, target, parts=2).dice == pytest.approx(np.mean(expected))

    def test_foreground_distance_is_scipys(self, example: tuple[Tensor, Tensor]) -> None:
        score, target = example
        target = target.clone()
        target[1, :5] = IGNORE_INDEX
        target[2] = IGNORE_INDEX
        shares = [
            ((s > 0) & (t != IGNORE_INDEX), t == 1, (t != IGNORE_INDEX).sum())
            for s, t in zip(score, target, strict=True)
            if (t != IGNORE_INDEX).any()
        ]
        pred, true = ([float(part[i].sum() / part[2]) for part in shares] for i in (0, 1))
        got = collect(score, target, parts=3).foreground_distance
        assert got == pytest.approx(wasserstein_distance(pred, true), abs=1e-6)
        assert got > 0.01
        perfect = collect(target.float() - 0.5, target.clamp(min=0))
        assert perfect.foreground_distance < 1e-6

    def test_an_empty_probe_has_figures(self) -> None:
        s = SignalCollector(2, torch.device("cpu")).compute()
        assert (s.dice, s.foreground_distance, s.ratio_std) == (1.0, 0.0, 0.0)

    def test_modes_are_restored_and_eval_mode_is_used(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Dropout(0.9)).train()
        probe = Probe(torch.randn(5, 1, 8, 8), torch.randint(2, (5, 8, 8)))
        runs = [collect_signals(net, probe, 2, torch.device("cpu"), 2, nullcontext) for _ in range(2)]
        assert runs[0] == runs[1]
        assert net.training


HEALTHY = Signals(
    voxels=10_000, nonfinite=0, logit_mean=-0.5, logit_std=2.5, logit_quantiles=(0.0,) * 7,
    prob_mean=0.32, prob_std=0.3, share_below_01=0.4, prevalence_pred=0.31, prevalence_true=0.30,
    ratio_std=0.1, f1=0.7, f1_macro=0.7, f1_best=0.72, threshold_best=0.45, auroc=0.92,
    average_precision=0.8, trivial_f1=2 * 0.3 / 1.3, dice=0.7, foreground_distance=0.02,
)  # fmt: skip
CONSTANT = replace(HEALTHY, logit_mean=0.53, logit_std=0.297, prob_mean=0.6267, prob_std=0.0689, prevalence_pred=1.0,
                   f1=0.4615, f1_macro=0.4615, f1_best=0.4615, auroc=0.51)  # fmt: skip
ALL_NEGATIVE = replace(HEALTHY, logit_mean=-1.443, prob_mean=0.192, prob_std=0.12, prevalence_pred=534 / 314_966_016,
                       f1=0.0, f1_macro=0.0, f1_best=0.48, auroc=0.55)  # fmt: skip
SHIFTED = replace(ALL_NEGATIVE, f1_best=0.68, auroc=0.88, threshold_best=0.21)
EMPTY = replace(HEALTHY, prevalence_true=0.0, prevalence_pred=0.0, prob_mean=0.001, prob_std=0.001, f1=1.0,
                f1_macro=1.0, f1_best=None, auroc=None, average_precision=None, trivial_f1=0.0)  # fmt: skip


class TestVerdicts:
    @pytest.mark.parametrize(
        ("signals", "level", "codes"),
        [
            (HEALTHY, "ok", ()),
            (CONSTANT, "collapsed", ("all_positive", "constant_output", "not_above_trivial")),
            (ALL_NEGATIVE, "collapsed", ("all_negative",)),
            (replace(ALL_NEGATIVE, f1_best=0.4616), "collapsed", ("all_negative", "not_above_trivial")),
            (replace(CONSTANT, prob_std=0.2), "collapsed", ("all_positive", "not_above_trivial")),
            (replace(CONSTANT, prevalence_pred=0.5), "collapsed", ("constant_output", "not_above_trivial")),
            (SHIFTED, "warn", ("shifted_threshold",)),
            (replace(HEALTHY, nonfinite=3), "collapsed", ("non_finite",)),
            (replace(HEALTHY, f1=0.40, f1_best=0.465, auroc=0.5, prevalence_pred=0.2), "warn", ("not_above_trivial",)),
            (EMPTY, "ok", ()),
            (replace(HEALTHY, prevalence_true=0.001, prevalence_pred=0.0008, f1=0.5, trivial_f1=0.002), "ok", ()),
            (replace(HEALTHY, prevalence_true=0.0, prevalence_pred=0.2, auroc=None, f1=0.0, f1_best=None), "ok", ()),
        ],
    )  # fmt: skip
    def test_table(self, signals: Signals, level: str, codes: tuple[str, ...]) -> None:
        verdict = judge(signals, HEALTHY, "trained")
        assert (verdict.level, verdict.codes) == (level, codes)
        assert {f.net for f in verdict.findings} <= {"student"}
        assert judge(HEALTHY, signals, "trained").codes == codes

    def test_each_rule_can_fire_and_stay_silent(self) -> None:
        cases = (HEALTHY, CONSTANT, ALL_NEGATIVE, SHIFTED, EMPTY, replace(HEALTHY, nonfinite=1))
        for rule in RULES:
            fired = [rule(s, "student") is not None for s in cases]
            assert any(fired), rule.__name__
            assert not all(fired), rule.__name__

    def test_an_untrained_network_is_not_judged_except_for_nan(self) -> None:
        assert judge(CONSTANT, ALL_NEGATIVE, "untrained").level == "ok"
        assert judge(replace(CONSTANT, nonfinite=1), HEALTHY, "untrained").codes == ("non_finite",)

    def test_within_the_first_epoch_a_collapse_is_a_warning(self) -> None:
        assert judge(ALL_NEGATIVE, HEALTHY, "early").level == "warn"
        assert judge(replace(HEALTHY, nonfinite=1), HEALTHY, "early").level == "collapsed"
        assert judge(SHIFTED, HEALTHY, "early").level == "ok"

    def test_findings_carry_value_limit_and_advice_as_plain_types(self) -> None:
        record = judge(CONSTANT, HEALTHY, "trained").to_record()
        json.dumps(record)
        finding: Finding = judge(CONSTANT, HEALTHY, "trained").findings[0]
        assert finding.value > finding.limit
        assert finding.message
        assert finding.hint


def constant_net(value: float) -> nn.Module:
    net = nn.Conv2d(1, 2, 1)
    nn.init.zeros_(net.weight)
    with torch.no_grad():
        assert net.bias is not None
        net.bias.copy_(torch.tensor([0.0, value]))
    return net


class Threshold(nn.Module):
    """Foreground where the image is bright, shifted by ``offset``."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, image: Tensor) -> Tensor:
        return make_logits(4 * image[:, 0] + self.offset)


class TestMonitor:
    @pytest.fixture
    def monitor(self) -> Monitor:
        draw = torch.Generator().manual_seed(0)
        target = (torch.rand(8, 16, 16, generator=draw) < 0.3).long()
        image = (target * 2.0 - 1 + 0.5 * torch.randn(8, 16, 16, generator=draw))[:, None]
        probe = Probe(image, target)
        return Monitor(
            probe, probe, num_classes=2, device=torch.device("cpu"), batch_size=3, autocast=nullcontext,
            warmup_steps=10, steps_per_epoch=100,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("net", "step", "level", "code"),
        [
            (lambda: Threshold(0.0), 100, "ok", None),
            (lambda: constant_net(3.0), 100, "collapsed", "all_positive"),
            (lambda: constant_net(-3.0), 100, "collapsed", "all_negative"),
            (lambda: constant_net(-3.0), 50, "warn", "all_negative"),
            (lambda: constant_net(-3.0), 5, "ok", None),
            (lambda: constant_net(math.nan), 0, "collapsed", "non_finite"),
            (lambda: Threshold(-12.0), 100, "warn", "shifted_threshold"),
        ],
    )
    def test_networks_get_their_name(
        self, monitor: Monitor, net: Callable[[], nn.Module], step: int, level: str, code: str | None
    ) -> None:
        observation = monitor.look(net(), Threshold(0.0), step)
        assert observation.verdict.level == level
        assert (code in observation.verdict.codes) if code else observation.verdict.codes == ()

    def test_all_positive_scores_the_trivial_f1_exactly(self, monitor: Monitor) -> None:
        observation = monitor.look(constant_net(5.0), Threshold(0.0), 0)
        s = observation.val["student"]
        assert s.f1 == s.trivial_f1 == pytest.approx(2 * s.prevalence_true / (1 + s.prevalence_true))

    def test_record_has_the_published_keys(self, monitor: Monitor) -> None:
        record = monitor.look(Threshold(0.0), Threshold(1.0), 0).to_record()
        names = ("f1", "f1_best", "auroc", "logit_mean", "logit_std", "prob_mean", "prevalence_pred")
        for key in (
            f"{part}/{net}/{name}" for part in ("val", "train") for net in ("student", "teacher") for name in names
        ):
            assert isinstance(record[key], float)
        assert record["step"] == record["epoch"] == 0
        assert record["val/prevalence_true"] == pytest.approx(0.3, abs=0.03)
        assert record["val/trivial_f1"] > 0
        json.dumps(record, allow_nan=False)

    def test_epoch_of_a_step(self, monitor: Monitor) -> None:
        epochs = [monitor.look(Threshold(0.0), Threshold(0.0), step).epoch for step in (0, 1, 100, 101)]
        assert epochs == [0, 1, 1, 2]

    def test_line_shows_both_nets(self, monitor: Monitor) -> None:
        line = monitor.look(Threshold(0.0), constant_net(3.0), 100).format_line()
        assert line.startswith("step   100 epoch   1 | val F1 ")
        assert line.endswith("| collapsed all_positive,constant_output,not_above_trivial")

    def test_score_is_that_of_the_better_net_and_minus_infinity_with_nan(self, monitor: Monitor) -> None:
        good = monitor.look(Threshold(0.0), constant_net(math.nan), 100)
        assert good.score == good.val["student"].f1_macro > 0.8
        assert good.scores == {"student": good.score, "teacher": -math.inf}
        assert monitor.look(constant_net(math.nan), constant_net(math.nan), 100).score == -math.inf

    def test_what_the_score_is_can_be_chosen(self, monitor: Monitor) -> None:
        """All positive is bad by each; a threshold a bit off has the larger share, and so the larger distance."""
        for select, figure in (("f1", "f1_macro"), ("dice", "dice"), ("foreground_distance", "foreground_distance")):
            monitor.select = select  # type: ignore[assignment]
            observation = monitor.look(Threshold(0.0), Threshold(2.0), 100)
            sign = -1 if select == "foreground_distance" else 1
            values = {net: sign * getattr(s, figure) for net, s in observation.val.items()}
            assert observation.scores == values
            assert observation.score == values["student"] > values["teacher"]
            assert monitor.look(constant_net(math.nan), constant_net(math.nan), 100).score == -math.inf
