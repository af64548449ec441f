"""Looks at networks whose behavior is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from monitor_cases import make_logits
from torch import Tensor, nn
from torch.nn.functional import one_hot

from ssl_seg.data.loader import Probe
from ssl_seg.engine.ema import EMATeacher
from ssl_seg.monitor.monitor import Monitor
from ssl_seg.monitor.signals import ClassSignals, SignalCollector


def constant_net(value: float) -> nn.Module:
    net = nn.Conv2d(1, 2, 1)
    nn.init.zeros_(net.weight)
    with torch.no_grad():
        assert net.bias is not None
        net.bias.copy_(torch.tensor([0.0, value]))
    return net


def biased_net(bias: float) -> nn.Module:
    """Return a network that is far on one side whatever the image shows, but not one number."""
    net = constant_net(bias)
    with torch.no_grad():
        net.weight[1] = -0.01  # type: ignore[index]
    return net


class Threshold(nn.Module):
    """Foreground where the image is bright, with a negative ``gain`` where it is dark, shifted by ``offset``."""

    def __init__(self, offset: float, gain: float = 4) -> None:
        super().__init__()
        self.offset, self.gain = offset, gain

    def forward(self, image: Tensor) -> Tensor:
        return make_logits(self.gain * image[:, 0] + self.offset)


class Noise(nn.Module):
    """A probability that hardly varies, whatever the image shows."""

    def forward(self, image: Tensor) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return make_logits(0.2 * torch.randn(image[:, 0].shape, generator=draw))


@pytest.fixture
def monitor() -> Monitor:
    draw = torch.Generator().manual_seed(0)
    target = (torch.rand(8, 16, 16, generator=draw) < 0.3).long()
    image = (target * 2.0 - 1 + 0.5 * torch.randn(8, 16, 16, generator=draw))[:, None]
    probe = Probe(image, target)
    return Monitor(
        val=probe, train=probe, label_values=range(2), device=torch.device("cpu"), batch_size=3, autocast=nullcontext,
        warmup_steps=10, steps_per_epoch=100,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("net", "step", "level", "code"),
    [
        (lambda: Threshold(0.0), 100, "ok", None),
        (lambda: constant_net(3.0), 100, "collapsed", "constant_output"),
        (lambda: biased_net(8.0), 100, "collapsed", "all_positive"),
        (lambda: biased_net(-8.0), 100, "collapsed", "all_negative"),
        (lambda: Threshold(0.0, -4), 100, "collapsed", "inverted_output"),
        (lambda: biased_net(-8.0), 50, "warn", "all_negative"),
        (lambda: biased_net(-8.0), 5, "ok", None),
        (lambda: constant_net(math.nan), 0, "collapsed", "non_finite"),
        (lambda: Threshold(-12.0), 100, "warn", "shifted_threshold"),
    ],
)
def test_networks_get_their_name(
    monitor: Monitor, net: Callable[[], nn.Module], step: int, level: str, code: str | None
) -> None:
    observation = monitor.look(net(), Threshold(0.0), step)
    assert observation.verdict.level == level
    assert (code in observation.verdict.codes) if code else observation.verdict.codes == ()


def test_networks_that_are_cut_where_they_should_be_are_not_shifted(monitor: Monitor) -> None:
    net = Threshold(-12.0)
    best = monitor.look(net, net, 100).val["student"].threshold_best
    monitor = replace(monitor, threshold=best)
    look = monitor.look(net, net, 100)
    assert look.verdict.codes == ()
    assert look.score == look.val["student"].f1 == pytest.approx(look.val["student"].f1_best)
    monitor = replace(monitor, threshold=0.9)
    (finding,) = [f for f in monitor.look(net, Threshold(-2.2), 100).verdict.findings if f.net == "student"]
    assert finding.code == "shifted_threshold"
    assert " at 0.9 but " in finding.message


def test_all_positive_scores_the_trivial_f1_exactly(monitor: Monitor) -> None:
    observation = monitor.look(constant_net(5.0), Threshold(0.0), 0)
    s = observation.val["student"]
    assert s.f1 == s.trivial_f1 == pytest.approx(2 * s.prevalence_true / (1 + s.prevalence_true))


@pytest.mark.parametrize("step", [0, 100])
def test_a_collapsed_network_ranks_behind_one_that_works(monitor: Monitor, step: int) -> None:
    """Foreground everywhere has an F1 of 0.46, one that finds half of it has less: which of them is the better?"""
    everywhere, timid = biased_net(8.0), Threshold(-5.0)
    looks = {
        "student": monitor.look(everywhere, timid, step),
        "teacher": monitor.look(timid, everywhere, step),
    }
    for net, look in looks.items():
        other = "teacher" if net == "student" else "student"
        assert 0.1 < look.scores[other] < look.scores[net], "by the score alone, it would win"
        assert (look.collapsed, look.better, look.score) == ({net}, other, look.scores[other])
        assert not look.has_collapsed
    both = monitor.look(everywhere, constant_net(-3.0), step)
    assert both.has_collapsed
    assert (both.better, both.score) == ("student", max(both.scores.values()))
    fine = monitor.look(timid, Threshold(0.0), step)
    assert (fine.collapsed, fine.better) == (frozenset(), "teacher")


def test_a_network_that_has_not_learned_yet_has_not_collapsed(monitor: Monitor) -> None:
    """What the verdict calls a warning, since the output varies as it ever has, ranks by its score."""
    flat = Noise()
    start = monitor.look(flat, flat, 0, ends_epoch=True)
    assert start.has_collapsed, "nothing is named yet"
    later = monitor.look(flat, flat, 100, trend=start.trend, ends_epoch=True)
    assert (later.verdict.level, later.has_collapsed) == ("warn", False)


def test_record_has_the_published_keys(monitor: Monitor) -> None:
    record = monitor.look(Threshold(0.0), Threshold(1.0), 0).to_record()
    names = ("f1", "f1_best", "auroc", "logit_mean", "logit_std", "prob_mean", "prevalence_pred")
    for key in (
        f"{part}/{net}/{name}" for part in ("val", "train") for net in ("student", "teacher") for name in names
    ):
        assert isinstance(record[key], float)
    assert record["step"] == record["epoch"] == 0
    assert record["val/prevalence_true"] == pytest.approx(0.3, abs=0.03)
    assert record["val/trivial_f1"] > 0
    assert record["val/ratio_std_true"] > 0
    json.dumps(record, allow_nan=False)


def test_epoch_of_a_step(monitor: Monitor) -> None:
    epochs = [monitor.look(Threshold(0.0), Threshold(0.0), step).epoch for step in (0, 1, 100, 101)]
    assert epochs == [0, 1, 1, 2]


def test_line_shows_both_nets(monitor: Monitor) -> None:
    observation = monitor.look(Threshold(0.0), constant_net(3.0), 100)
    student = observation.val["student"]
    (own,) = student.classes
    observation.train["student"] = replace(student, classes=(replace(own, f1=own.f1 - 0.125),))
    line = observation.format_line()
    assert line.startswith("step   100 epoch  1 | F1 ")
    assert (
        f" trivial {student.trivial_f1:.2f} gap -0.12 P {student.precision:.2f} R {student.recall:.2f} | loss " in line
    )
    assert line.endswith("| warn teacher_diverged")
    both = monitor.look(constant_net(3.0), constant_net(3.0), 100).format_line()
    assert both.endswith("| collapsed constant_output,not_above_trivial")


def test_huge_log_odds_are_powers_of_ten(monitor: Monitor) -> None:
    observation = monitor.look(Threshold(0.0), Threshold(0.0), 100)
    huge = replace(observation.val["student"], logit_mean=-1.23e13, logit_std=4.0)
    line = replace(observation, phase="early", val={**observation.val, "student": huge}).format_line()
    assert " logit -1.2e+13 P " in line
    assert "e+" not in replace(observation, phase="early").format_line()


def test_the_line_of_a_healthy_look_fits_a_terminal(monitor: Monitor) -> None:
    """Logits through the first epoch, then the gap; a mean probability of both networks beside the true share."""
    monitor = replace(
        monitor, loss=lambda logits, target, step: (logits.square().mean() * 0 + step, {"dice": target.float().mean()})
    )
    training = {"loss": 0.512, "steps": 5.0}
    line = monitor.look(Threshold(0.0), Threshold(0.0), 50, training).format_line()
    assert " logit -" in line
    assert " gap " not in line
    assert " | loss 0.51 val 50.00 | p " in line
    later = monitor.look(Threshold(0.0), Threshold(0.0), 12_300, training)
    (own,) = later.val["student"].classes
    later.train["student"] = replace(later.val["student"], classes=(replace(own, f1=own.f1 + 0.2),))
    assert " gap +0.20 wide P " in later.format_line()
    assert len(later.format_line()) <= 132
    assert len(monitor.look(Threshold(0.0), Threshold(0.0), 12_300, training).format_line()) <= 126


def test_the_loss_on_validation_is_recorded_with_its_components(monitor: Monitor) -> None:
    def loss(logits: Tensor, target: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        terms = {"size": torch.tensor(float(len(target))), "mean": logits.mean()}
        return step * terms["size"], terms

    plain = monitor.look(Threshold(0.0), Threshold(1.0), 2).to_record()
    assert not [key for key in plain if "/loss" in key]
    monitor = replace(monitor, loss=loss)
    look = monitor.look(Threshold(0.0), Threshold(1.0), 2, ends_epoch=True)
    record = look.to_record()
    assert record["val/student/loss/size"] == pytest.approx((3 + 3 + 2) / 3), "8 patches in batches of 3"
    assert record["val/student/loss"] == pytest.approx(2 * (3 + 3 + 2) / 3)
    assert record["val/student/loss/mean"] != record["val/teacher/loss/mean"]
    assert not [key for key in record if key.startswith("train/") and "loss" in key]
    assert (look.trend[-1]["val_loss"], look.trend[-1]["val_component/size"]) == look_values(record)
    assert plain.items() <= record.items(), "the other figures stay as they are"


def look_values(record: dict[str, float]) -> tuple[float, float]:
    return record["val/student/loss"], record["val/student/loss/size"]


def test_the_gap_is_of_the_classes_that_both_probes_have(monitor: Monitor) -> None:
    """Validation lacks the class that the network finds badly on training cases."""
    observation = monitor.look(Threshold(0.0), Threshold(0.0), 100)
    known, lacking = ClassSignals(1, 0.2, 0.2, 0.75), ClassSignals(2, 0.1, 0.0, 0.0)
    on_val = replace(observation.val["student"], classes=(known, lacking), f1_macro=0.75)
    on_train = replace(on_val, classes=(replace(known, f1=1.0), ClassSignals(2, 0.0, 0.3, 0.0)), f1_macro=0.5)
    nets = {net: {"student": signals, "teacher": signals} for net, signals in (("val", on_val), ("train", on_train))}
    assert replace(observation, **nets).gap == 0.25


def test_line_has_no_gap_without_a_training_probe(monitor: Monitor) -> None:
    monitor = replace(monitor, train=Probe(torch.empty(0, 1, 16, 16), torch.empty(0, 16, 16, dtype=torch.int64)))
    assert "gap" not in monitor.look(Threshold(0.0), Threshold(0.0), 100).format_line()


def test_student_in_train_mode_is_looked_at_where_there_is_batch_norm(monitor: Monitor) -> None:
    plain = monitor.look(Threshold(0.0), Threshold(0.0), 100)
    assert plain.train_mode is None
    student = nn.Sequential(nn.BatchNorm2d(1), Threshold(0.0))
    nn.init.constant_(student[0].running_mean, 50.0)  # statistics of other images
    observation = monitor.look(student, student, 100)
    assert observation.train_mode is not None
    assert observation.train_mode.f1 > 0.85 > observation.val["student"].f1 == 0
    assert observation.to_record()["val/student_train_mode/f1"] == observation.train_mode.f1
    assert observation.verdict.codes[0] == "mode_gap"


def test_rules_see_the_steps_and_the_trend(monitor: Monitor) -> None:
    monitor = replace(monitor, components=("dice",), uses_teacher=False)
    first = monitor.look(Threshold(0.0), Threshold(0.0), 0, ends_epoch=True)
    assert [row["step"] for row in first.trend] == [0]
    training = {"loss": math.nan, "dice": 0.4, "steps": 100.0}
    second = monitor.look(Threshold(0.0), constant_net(3.0), 100, training, first.trend, ends_epoch=True)
    assert second.verdict.codes == ("non_finite", "teacher_diverged")
    assert "nothing is learned from it" in second.verdict.findings[1].message
    assert [row["step"] for row in second.trend] == [0, 100]
    assert second.trend[1]["component/dice"] == 0.4
    unplanned = monitor.look(Threshold(0.0), Threshold(0.0), 120, training, second.trend, planned=False)
    assert unplanned.trend == second.trend


def test_score_is_that_of_the_better_net_and_minus_infinity_with_nan(monitor: Monitor) -> None:
    good = monitor.look(Threshold(0.0), constant_net(math.nan), 100)
    assert good.score == good.val["student"].f1_macro > 0.8
    assert good.scores == {"student": good.score, "teacher": -math.inf}
    assert monitor.look(constant_net(math.nan), constant_net(math.nan), 100).score == -math.inf


def test_objects_that_melt_into_one_lower_pq_alone() -> None:
    """Two squares that touch become one object, of which F1 of the foreground sees nothing."""
    target = torch.zeros(1, 12, 20, dtype=torch.long)
    target[:, 2:10, 2:18] = 2
    target[:, 3:9, 3:9] = target[:, 3:9, 11:17] = 1
    melted = target.clone()
    melted[:, 3:9, 9:11] = 1
    found = {}
    for name, classes in (("apart", target), ("melted", melted)):
        for objects in (True, False):
            collector = SignalCollector(range(3), torch.device("cpu"), objects=objects)
            collector.update(10.0 * one_hot(classes, 3).movedim(-1, 1).float(), target)
            found[name, objects] = collector.compute()
    assert (found["apart", True].pq, found["melted", True].pq) == (1.0, 0.0)
    assert found["melted", True].f1 == 1.0
    assert replace(found["melted", True], pq=None) == found["melted", False]
    assert "val/pq" in found["apart", True].to_record("val/")
    assert "val/pq" not in found["apart", False].to_record("val/")


def test_what_the_score_is_can_be_chosen(monitor: Monitor) -> None:
    """All positive is bad by each; a threshold a bit off has the larger share, and so the larger distance."""
    for select, figure in (("f1", "f1_macro"), *((name, name) for name in ("dice", "foreground_distance", "pq"))):
        monitor = replace(monitor, select=select)  # type: ignore[arg-type]
        observation = monitor.look(Threshold(0.0), Threshold(2.0), 100)
        sign = -1 if select == "foreground_distance" else 1
        values = {net: sign * getattr(s, figure) for net, s in observation.val.items()}
        assert observation.scores == values
        assert observation.score == values["student"] > values["teacher"]
        assert monitor.look(constant_net(math.nan), constant_net(math.nan), 100).score == -math.inf


class Indexed(nn.Module):
    """Bright is foreground; a table, which an index of integers is looked up in, says how bright each column is."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.register_buffer("index", torch.arange(len(table)))

    def forward(self, image: Tensor) -> Tensor:
        return make_logits(4 * (image[:, 0] - self.table[self.get_buffer("index")]))


def average_all_buffers(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Average integers too, as a published trainer does: 5 * 0.996 + 5 * 0.004 is less than 5, and becomes 4."""
    for own, buffer in zip(teacher.buffers(), student.buffers(), strict=True):
        own.copy_(own * decay + buffer * (1 - decay))


@pytest.mark.parametrize("faulty", [True, False])
def test_a_teacher_with_averaged_integers_is_named(monitor: Monitor, faulty: bool) -> None:
    table = 3 * torch.randn(16, generator=torch.Generator().manual_seed(2))
    monitor = replace(monitor, val=replace(monitor.val, image=monitor.val.image + table))
    student = Indexed(table)
    teacher = EMATeacher(student, lambda updates: decays[updates])
    decays = [min(1 - 1 / (step + 1), 0.996) for step in range(100)]
    for decay in decays:
        index = teacher.net.get_buffer("index").clone()
        teacher.update(student)
        if faulty:
            teacher.net.get_buffer("index").copy_(index)
            average_all_buffers(teacher.net, student, decay)
    off = (teacher.net.get_buffer("index") != student.get_buffer("index")).float().mean()
    assert off > 0.6 if faulty else off == 0
    verdict = monitor.look(student, teacher.net, 100).verdict
    named = [(finding.code, finding.net) for finding in verdict.findings]
    assert named[:1] == ([("teacher_diverged", "teacher")] if faulty else [])
