"""The collapse laboratory: replays of published failures, and that its faults are faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from lab import injections, remedies, situations, studies, tables
from lab.coverage import audit_coverage
from lab.faults import FAULTS, STEPS_TO_NAME, Fault, judge_run
from lab.replay import (
    ALL_002,
    SERIES,
    SIDE_002,
    TILES_002,
    Replay,
    make_signals,
    make_tiles_002,
    replay,
    replay_folders_000,
)
from lab.runs import BASE, Look, Run, read_run, run_training, write_particles
from lab.situations import SITUATIONS, draw_image
from torch import nn

import ssl_seg.run.assembly
import ssl_seg.run.training
from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, build_config, merge_layers
from ssl_seg.monitor.catalog import CODES, make_finding
from ssl_seg.run.settings import check_settings

TINY: dict[str, Any] = {
    "data": {"patch_size": [32, 32]},
    "network": {"features": 4},
    "batch": {"labeled": 2, "unlabeled": 2},
    "length": {"steps": 16, "steps_per_epoch": 8},
    "optim": {"warmup_steps": 4},
    "monitor": {"probe_patches": 6, "train_probe_patches": 4, "first_epoch_probes": [0, 6]},
}
SERIES_BY_NAME = {f"{s.report} {s.name}": s for s in SERIES}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def data(out: Path) -> str:
    return write_particles(out / "data" / "particles", 16)


def verdicts_of(text: str) -> list[tuple[str, tuple[str, ...]]]:
    (series,) = [s for name, s in SERIES_BY_NAME.items() if text in name]
    return [(v.level, v.codes) for _, v in replay(series).verdicts]


def tell_first(found: Replay) -> str:
    if found.first is None:
        return "none"
    when, verdict = found.first
    return f"{when}: {', '.join(f'{f.code} ({f.level})' for f in verdict.findings)}"


class TestReplay:
    def test_a_constant_output_is_named_as_such(self) -> None:
        ((level, codes),) = verdicts_of("raw output of a patch, true foreground")
        assert level == "collapsed"
        assert "constant_output" in codes

    def test_an_output_is_not_judged_without_its_target(self) -> None:
        assert verdicts_of("masks not looked at") == [("ok", ())]

    def test_f1_to_zero_in_the_first_epoch_is_ok_before_and_all_negative_after(self) -> None:
        before, within, after = verdicts_of("before and after epoch 1")
        assert before == within == ("ok", ())
        assert after[0] == "collapsed"
        assert "all_negative" in after[1]
        assert "loss_metric_divergence" in verdicts_of("ranking no better than chance")[-1][1]

    def test_zero_loss_is_named_in_its_first_epoch_and_the_healthy_losses_are_not(self) -> None:
        first, second, _ = verdicts_of("masks of validation not empty")
        assert first == ("ok", ())
        assert second[0] == "collapsed"
        assert {"zero_loss", "all_negative"} <= set(second[1])
        assert verdicts_of("healthy") == [("ok", ())] * 4

    def test_the_best_run_of_a_report_is_left_alone(self) -> None:
        assert verdicts_of("v9") == [("ok", ())] * 7

    def test_diverging_components_are_named(self) -> None:
        assert "component_explosion" in verdicts_of("v5 epochs 5 to 11")[-1][1]

    def test_the_counts_of_report_002_are_those_of_whole_tiles(self) -> None:
        assert TILES_002 * SIDE_002**2 == ALL_002
        series = make_tiles_002(9)  # 534 of 4,806 tiles: one voxel in nine tiles
        before, _, after = (moment.val for moment in series.moments)
        assert after["prevalence_pred"] * 9 * SIDE_002**2 == 1
        assert after["prevalence_pred"] == 534 / ALL_002
        assert before["prevalence_pred"] == pytest.approx(314_954_560 / ALL_002, abs=1e-6)
        assert before["f1"] == pytest.approx(0.49, abs=0.002)
        assert after["logit_mean"] == pytest.approx(-1.443, abs=1e-3)
        assert [v.level for _, v in replay(series).verdicts] == ["ok", "ok", "collapsed"]
        assert replay(series).verdicts[-1][1].codes[0] in {"all_negative", "constant_output"}

    def test_a_severe_gap_is_named_when_validation_falls(self) -> None:
        found = verdicts_of("straight lines between them")
        assert [codes for _, codes in found[:18]] == [()] * 18
        assert "overfitting" in found[-1][1]

    def test_predictions_as_files_get_the_verdict_of_the_first_report(self) -> None:
        masks, maps = replay_folders_000().values()
        assert any(
            text.startswith("uniform_ratio (collapsed)") and "95.06%" in text and "71.19%" in text for text in masks
        )
        assert any(text.startswith("coverage_hole") for text in masks)
        assert any(text.startswith("constant_output (collapsed)") for text in maps)
        assert any(text.startswith("equal_statistics (collapsed)") for text in maps)

    def test_the_page_has_the_first_verdict_of_each_series(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "collapse_evidence.md").read_text(encoding="utf-8")
        _, _, table = text.partition("\n| report | series | verdict, and when |\n|---|---|---|\n")
        shown = [line.strip("| ").split(" | ") for line in table.split("\n\n")[0].split("\n")]
        assert shown == [[series.report, series.name, tell_first(replay(series))] for series in SERIES]

    def test_what_is_not_stated_moves_no_rule(self) -> None:
        from ssl_seg.monitor.evidence import Evidence
        from ssl_seg.monitor.verdicts import judge

        assert judge(Evidence("trained", {"student": make_signals()})).level == "ok"
        assert judge(Evidence("trained", {"student": make_signals(prevalence_true=0.3, prob_mean=0.3)})).level == "ok"


class TestFaults:
    def test_names_are_codes_and_each_fault_has_its_own_name(self) -> None:
        for fault in FAULTS:
            assert set(fault.true_codes) <= set(CODES), fault.name
        assert len({fault.name for fault in FAULTS}) == len(FAULTS)

    @pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
    def test_settings_are_sound_and_the_injection_leaves_no_trace(self, fault: Fault) -> None:
        check_settings(merge_layers([Layer("base", dict(BASE)), Layer("fault", dict(fault.settings))]))
        before = snapshot()
        with fault.inject():
            assert (snapshot() == before) == (fault.inject is nullcontext)
        assert snapshot() == before

    def test_each_change_of_a_target_is_what_it_says(self) -> None:
        from ssl_seg.data.loader import Batch, PatchSource

        target = torch.tensor([[0, 1], [1, 1], [0, 0]])
        nothing = torch.zeros(0, 1, 2)
        batch = Batch(torch.ones(3, 1, 2), target, nothing, (nothing,), ("a", "b", "c"))
        expected = {
            injections.empty_masks: torch.zeros_like(target),
            injections.full_masks: torch.ones_like(target),
            injections.swap_labels: 1 - target,
            injections.shuffle_masks: target[[2, 0, 1]],
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PatchSource, "__getitem__", lambda *_: batch)
            for inject, wanted in expected.items():
                with inject():
                    assert torch.equal(PatchSource.__getitem__(None, 0).target, wanted), inject  # type: ignore[arg-type]
            with injections.spoil_batch(3):
                assert [bool(PatchSource.__getitem__(None, s).image.isnan().all()) for s in (2, 3, 4)] == [  # type: ignore[arg-type]
                    False, True, False,
                ]  # fmt: skip

    def test_each_change_of_a_network_is_what_it_says(self) -> None:
        planned = {"label_values": [0, 1], "channels": 1, "foreground_ratio": 0.0}
        settings = {**BASE, **TINY, "network": {"name": "basic_unet", "features": 4, "norm": "batch"}}
        config, _ = build_config(merge_layers([Layer("settings", settings), Layer("planned", {"data": planned})]))
        image = torch.randn(2, 1, 32, 32)
        assert logits(config, image).std() > 1e-3
        with injections.kill_activations():
            dead = logits(config, image)
        assert float(dead.std(dim=(0, 2, 3)).max()) < 1e-6
        with injections.trap_bias():
            trapped = logits(config, image)
        assert float((trapped[:, 1] - trapped[:, 0]).max()) < -5
        with injections.freeze_statistics():
            net = ssl_seg.run.training.start_network(config).train()
        net(image + 100)
        means = [m.running_mean for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        assert means
        assert all(float(mean.abs().max()) == 0 for mean in means if mean is not None)

    def test_a_verdict_counts_from_the_injection_on_and_in_time(self, tmp_path: Path) -> None:
        fault = Fault("some", ("zero_loss",), "-", injected_at=10, also_right=("plateau",))

        def run_with(*named: tuple[int, str]) -> Run:
            looks = [
                Look(step, (make_finding(code, "warn", "training", 0.0, "zero_loss", ""),), {}) for step, code in named
            ]
            return Run(tuple(looks), (), "finished", tmp_path)

        good = judge_run(fault, 0, run_with((20, "plateau"), (30, "zero_loss")))
        assert (good.in_time, good.first_step, good.named_step, good.wrong_codes) == (True, 20, 30, ())
        assert not judge_run(fault, 0, run_with((10 + STEPS_TO_NAME + 1, "zero_loss"))).in_time
        other = judge_run(fault, 0, run_with((10, "zero_loss"), (20, "overfitting")))
        assert (other.in_time, other.wrong_codes, other.early_codes) == (False, ("overfitting",), ("zero_loss",))

    def test_a_fault_from_end_to_end(self, out: Path, data: str) -> None:
        fault = next(f for f in FAULTS if f.name == "dead ReLU")
        run = run_training(out / "dead", data, 0, TINY, fault=fault.inject)
        result = judge_run(fault, 0, run)
        assert result.in_time
        assert result.named_step == 6
        assert judge_run(fault, 0, read_run(run.path)) == result
        assert "| dead ReLU | `constant_output` | 1 of 1; 1 within 20 | 6 |" in tables.format_faults([result])
        healthy = run_training(out / "healthy", data, 0, TINY)
        assert not any("constant_output" in look.codes for look in healthy.looks)


class TestStudies:
    def test_images_without_particles_are_background_and_their_masks_empty(self, tmp_path: Path) -> None:
        plain, empty = tmp_path / "plain", tmp_path / "empty"
        write_particles(plain, 10)
        write_particles(empty, 10, empty=0.4)
        pairs = [
            [[cv2.imread(str(d / n / f"{i:04d}.png"), 0) for n in ("images", "masks")] for d in (plain, empty)]
            for i in range(10)
        ]
        blank = [i for i, (_, (_, mask)) in enumerate(pairs) if not mask.any()]
        assert len(blank) == 4
        for i, ((image, mask), (other, own)) in enumerate(pairs):
            assert mask.any()
            if i not in blank:
                assert np.array_equal(image, other)
                assert np.array_equal(mask, own)
            else:
                assert image[mask > 0].mean() > other.mean()  # particles are brighter than what is left

    def test_twenty_healthy_trainings_cover_fractions_methods_and_data(self) -> None:
        plan = studies.plan_healthy()
        assert len(plan) == 20
        for name in ("particles", "empty", "sheets"):
            own = {(t.labels, t.method) for t in plan if t.data == name}
            assert own == {(f, m) for f in (0.01, 0.1, 1.0) for m in studies.METHODS}

    def test_a_watched_run_has_the_bits_of_the_bare_loop(
        self, out: Path, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(studies, "run_training", partial(_run_tiny, TINY))
        result = studies.run_harmless(out, 0)
        assert result.equal
        assert result.looks > 2

    def test_the_audit_of_predictions_names_the_border_that_is_left_out(
        self, out: Path, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import lab.coverage

        monkeypatch.setattr(lab.coverage, "run_training", partial(_run_tiny, {**TINY, "optim": {"lr": 0.01}}))
        sound, faulty = audit_coverage(out).values()
        assert not any("coverage_hole" in text for text in sound)
        assert any("coverage_hole" in text and "0..7" in text for text in faulty)


def _run_tiny(settings: dict[str, Any], *args: Any, **options: Any) -> Run:
    return run_training(*args, settings, **options)


def logits(config: Config, image: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return ssl_seg.run.training.start_network(config).eval()(image)  # type: ignore[no-any-return]


def snapshot() -> list[Any]:
    from ssl_seg.data.loader import PatchSource
    from ssl_seg.engine.ema import EMATeacher
    from ssl_seg.engine.engine import Engine

    names = ("make_supervised_loss", "start_network", "make_method", "run_loop")
    return [
        *(getattr(ssl_seg.run.training, name) for name in names), ssl_seg.run.assembly.make_probe,
        PatchSource.__getitem__, EMATeacher.update, Engine.step,
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class TestSituations:
    def test_images_are_what_their_names_say(self) -> None:
        masks = {s.name: [draw_image(s, i, 3)[1] for i in range(s.images)] for s in SITUATIONS}
        shares = {name: float(np.mean([m > 0 for m in own])) for name, own in masks.items()}
        assert shares["foreground of 0.5 %"] == pytest.approx(0.005, abs=0.002)
        assert np.mean([not m.any() for m in masks["75 % empty masks"]]) == 0.75
        classes = masks["three classes, one in 2 images"]
        assert sum(bool((m == 2).any()) for m in classes) <= 2
        assert max(int(m.max()) for m in classes) == 2
        assert len(np.unique(masks["mask with gray borders: 256 classes"])) > 100
        first, again = (draw_image(SITUATIONS[0], 5, 1) for _ in range(2))
        assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
        assert not np.array_equal(first[0], draw_image(SITUATIONS[0], 5 + SITUATIONS[0].images, 1)[0]), "a fresh one"

    @pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.name)
    def test_settings_are_sound(self, situation: Any) -> None:
        check_settings(merge_layers([Layer("base", dict(BASE)), Layer("tiny", dict(situations.TINY))]))
        check_settings(merge_layers([Layer("base", dict(BASE)), Layer("own", dict(situation.settings))]))

    @pytest.mark.parametrize(
        ("aurocs", "ratio", "level", "can_collapse", "false", "missed"),
        [
            ((0.9, 0.9), 1.0, "ok", True, False, False),
            ((0.9, 0.9), 1.0, "collapsed", True, True, False),
            ((0.9, 0.5), 1.0, "collapsed", True, False, False),
            ((0.9, 0.5), 1.0, "ok", True, False, True),
            ((0.9, 0.9), 4.0, "ok", True, False, True),
            ((0.9, 0.9), 0.2, "warn", True, False, False),
            ((0.5, 0.5), 1.0, "collapsed", False, True, False),
        ],
    )
    def test_wrong_verdicts_are_counted(
        self, aurocs: tuple[float, float], ratio: float, level: str, can_collapse: bool, false: bool, missed: bool
    ) -> None:
        truth = tuple(situations.NetworkTruth(0.5, 0.1, auroc, ratio, True) for auroc in aurocs)
        codes = () if level == "ok" else ("all_negative",)
        result = situations.SituationResult(
            "a", 0, truth, level, codes, (level, codes[0] if codes else "healthy"), can_collapse, level == "collapsed"
        )
        assert (result.is_false_alarm, result.is_miss, result.disagrees) == (false, missed, False)
        line = tables.format_situations([result]).splitlines()[-1]
        assert line.startswith("| a | 1 |")

    def test_each_remedy_has_its_fault_or_situation(self) -> None:
        names = [thing.name for thing in (*FAULTS, *SITUATIONS)]
        for remedy in remedies.REMEDIES:
            assert any(remedy.where in name for name in names), remedy.where
            check_settings(merge_layers([Layer("base", dict(BASE)), Layer("own", dict(remedy.settings))]))
        result = remedies.RemedyResult(remedies.REMEDIES[0], 1, (0.0, 0.3), None, (("all_negative",), ()))
        line = tables.format_remedies([result, result]).splitlines()[-1]
        assert "0 of 2; 2 of 2 | +0.000; +0.300 | - | all_negative; ok |" in line
