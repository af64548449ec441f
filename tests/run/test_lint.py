"""Each rule of the linter fires on its case and is silent on a healthy neighbor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from test_configio import list_settings

from ssl_seg.config import Config, PlateauResponseConfig
from ssl_seg.config.layers import (
    Layer,
    build_config,
    check_partial,
    merge_layers,
    packaged_configs,
    parse_override,
    read_layers,
)
from ssl_seg.config.schedules import count_plateaus, count_stale_epochs
from ssl_seg.engine.policies import respond_to_plateaus
from ssl_seg.run.lint import RULES, lint
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.lint.idle import Idle, find_idle
from ssl_seg.run.settings import check_settings

BASE = {
    "data": {"label_values": [0, 255], "channels": 1, "patch_size": [64, 64], "foreground_ratio": 0.33},
    "network": {"name": "unet"},
    "batch": {"labeled": 4, "unlabeled": 4},
    "length": {"steps": 2000, "steps_per_epoch": 100},
}
"""20 epochs, nothing to say."""

PHASES = "loss.phases=[{from_epoch: 5, weights: {dice: 1}}, {from_epoch: 10, weights: {focal: 1}, blend_epochs: %s}]"
FOCAL = ("loss.weights.focal=1", "loss.weights.cross_entropy=1")
RESPONSE, STOPPING = "policies.plateau_response.patience=", "policies.early_stopping.patience="
NOISE, SWA = "policies.weight_noise", "policies.swa.start_epoch="
RESTARTS = ("optim.schedule=cosine_restarts", "optim.warmup_steps=0")
REDUCE = "optim.schedule=reduce_on_plateau"

Settings = tuple[str, ...]
CASES: list[tuple[str, Settings, Settings]] = [
    # rule, settings that break it, a neighbor that does not
    ("blend_cut_short", (PHASES % 11,), (PHASES % 10,)),
    (
        "blend_cut_short",
        ("loss.phases=[{from_epoch: 5, weights: {dice: 1}, blend_epochs: 3}, {from_epoch: 7, weights: {focal: 1}}]",),
        ("loss.phases=[{from_epoch: 5, weights: {dice: 1}, blend_epochs: 2}, {from_epoch: 7, weights: {focal: 1}}]",),
    ),
    ("swa_of_one", (f"{SWA}20",), (f"{SWA}19",)),
    ("swa_of_one", (f"{SWA}10", "policies.swa.every_epochs=11"), (f"{SWA}10", "policies.swa.every_epochs=10")),
    ("swa_before_last_phase", (PHASES % 2, f"{SWA}12"), (PHASES % 2, f"{SWA}13")),
    (
        "noise_in_warmup",
        (f"{NOISE}={{start_epoch: 2, std: 0.1}}", "optim.warmup_steps=201"),
        (f"{NOISE}={{start_epoch: 2, std: 0.1}}", "optim.warmup_steps=200"),
    ),
    (
        "noise_in_warmup",
        (f"{NOISE}={{start_epoch: 2, std: 0.1}}", "optim.warmup_steps=201"),
        (f"{NOISE}={{start_epoch: 2, std: 0.1}}", "optim.warmup_steps=201", "optim.schedule=one_cycle"),
    ),
    (
        "noise_within_swa",
        (f"{SWA}12", f"{NOISE}={{start_epoch: 6, every_epochs: 6, std: 0.1}}"),
        (f"{SWA}12", f"{NOISE}={{start_epoch: 6, every_epochs: 14, std: 0.1}}"),
    ),
    (
        "noise_within_swa",
        (f"{SWA}12", f"{NOISE}={{start_epoch: 12, every_epochs: 9, std: 0.1}}"),
        (f"{SWA}12", f"{NOISE}={{start_epoch: 20, std: 0.1}}"),
    ),
    ("rampup_beyond_run", ("method.options.rampup_steps=2001",), ("method.options.rampup_steps=2000",)),
    ("warmup_most_of_run", ("optim.warmup_steps=1001",), ("optim.warmup_steps=1000",)),
    (
        "warmup_most_of_run",
        ("optim.warmup_steps=1001",),
        ("optim.warmup_steps=1001", "optim.schedule=one_cycle"),
    ),
    ("ema_longer_than_run", ("ema.decay=0.9996", "ema.warmup=false"), ("ema.decay=0.9994", "ema.warmup=false")),
    ("ema_longer_than_run", ("ema.decay=0.9996", "ema.warmup=false"), ("ema.decay=0.9996",)),
    ("early_stopping_before_plateau", (f"{STOPPING}8", REDUCE, "optim.plateau_patience=8"),
     (f"{STOPPING}9", REDUCE, "optim.plateau_patience=8")),
    ("early_stopping_before_plateau", (f"{STOPPING}8", f"{RESPONSE}4"), (f"{STOPPING}9", f"{RESPONSE}4")),
    ("probes_beyond_first_epoch", ("monitor.first_epoch_probes=[0, 100]",), ("monitor.first_epoch_probes=[0, 99]",)),
    ("probes_beyond_first_epoch", ("length.steps_per_epoch=20", "monitor.first_epoch_probes=[0, 1, 20]"),
     ("length.steps_per_epoch=20",)),
    ("lr_schedules_compete", (f"{RESPONSE}4", REDUCE), (f"{RESPONSE}4", "optim.schedule=constant")),
    ("lr_schedules_compete", (f"{RESPONSE}4", "optim.schedule=one_cycle"), (f"{RESPONSE}4", "optim.schedule=poly")),
    ("lr_scaled_twice", (f"{RESPONSE}4", "optim.lr_scaling=sqrt", "batch.labeled=8"),
     (f"{RESPONSE}4", "batch.labeled=8")),
    ("restart_cut_short", (*RESTARTS, "optim.restart_epochs=12"), (*RESTARTS, "optim.restart_epochs=20")),
    ("variance_minimum", ("loss.weights={dice: 0.5, variance: 0.15}",), ("loss.weights={dice: 0.6, variance: 0.15}",)),
    (
        "variance_minimum",
        ("loss.phases=[{from_epoch: 5, weights: {dice: 0.5, variance: 0.5}}]",),
        ("loss.phases=[{from_epoch: 5, weights: {dice: 0.5, variance: 0.0}}]",),
    ),
    (
        "imbalance_corrected_twice",
        (*FOCAL, "loss.options.focal={alpha: 0.7, fn_cost: 2}"),
        (*FOCAL, "loss.options.focal.alpha=0.7", "loss.options.cross_entropy.pos_weight=2"),  # each has its own
    ),
    (
        "imbalance_corrected_twice",
        ("batch.positive_ratio=0.5", "loss.options.cross_entropy.class_weights=[1, 3]"),
        ("batch.positive_ratio=0.5", "loss.options.cross_entropy.class_weights=[1, 1]"),
    ),
    (
        "imbalance_corrected_twice",
        ("batch.positive_ratio=0.5", "loss.fn_cost=2"),
        ("loss.fn_cost=2",),
    ),
    (
        "costs_oppose",
        (*FOCAL, "loss.options.focal={alpha: 0.25, fn_cost: 5}"),
        (*FOCAL, "loss.options.focal={alpha: 0.75, fn_cost: 1}"),
    ),
    (
        "costs_oppose",
        ("loss.fp_cost=2", "loss.options.cross_entropy.pos_weight=2"),
        ("loss.fp_cost=1", "loss.options.cross_entropy.pos_weight=2"),
    ),
    (
        "costs_oppose",  # focal is only watched
        (*FOCAL, "loss.options.focal.alpha=0.25", "loss.fn_cost=2"),
        ("loss.weights={cross_entropy: 1, focal: 0}", "loss.options.focal.alpha=0.25", "loss.fn_cost=2"),
    ),
    (
        "costs_oppose",
        ("loss.weights.tversky=1", "loss.options.tversky={alpha: 0.1, beta: 0.9}", "loss.fp_cost=3"),
        ("loss.weights.tversky=1", "loss.options.tversky={alpha: 0.1, beta: 0.9}", "loss.fn_cost=3"),
    ),
]  # fmt: skip


IDLE: list[tuple[str, Settings, Settings]] = [
    # setting, with what it changes nothing, a neighbor with which it acts
    ("loss.phases.1", (PHASES % 0, "length.steps=1000"), (PHASES % 0, "length.steps=1001")),
    (
        "loss.phases.0",
        ("loss.weights.dice=1", "loss.phases=[{from_epoch: 5, weights: {dice: 1}}]"),
        ("loss.weights.dice=1", "loss.phases=[{from_epoch: 5, weights: {dice: 2}}]"),
    ),
    ("loss.phases.1", ("loss.phases=[{from_epoch: 5, weights: {dice: 1}, blend_epochs: 2},"
                       "{from_epoch: 7, weights: {dice: 1}}]",),
     ("loss.phases=[{from_epoch: 5, weights: {dice: 1}, blend_epochs: 3}, {from_epoch: 7, weights: {dice: 1}}]",)),
    ("policies.swa.start_epoch", (f"{SWA}21",), (f"{SWA}20",)),
    ("policies.weight_noise.std", (f"{NOISE}={{start_epoch: 20, std: 0.1}}",),
     (f"{NOISE}={{start_epoch: 19, std: 0.1}}",)),
    ("optim.plateau_patience", (REDUCE, "optim.plateau_patience=19"), (REDUCE, "optim.plateau_patience=18")),
    ("policies.plateau_response.patience", (f"{RESPONSE}10",), (f"{RESPONSE}9",)),
    ("policies.plateau_response.patience", (f"{RESPONSE}10",),
     (f"{RESPONSE}10", "policies.plateau_response.base=1.5")),
    ("policies.plateau_response.gain", (f"{RESPONSE}5", "policies.plateau_response.gain=0"), (f"{RESPONSE}5",)),
    ("policies.plateau_response.cap", (f"{RESPONSE}5", "policies.plateau_response.cap=1"),
     (f"{RESPONSE}5", "policies.plateau_response.cap=1.1")),
    ("policies.early_stopping.patience", (f"{STOPPING}19",), (f"{STOPPING}18",)),
    ("optim.lr_scaling", ("optim.lr_scaling=linear",), ("optim.lr_scaling=linear", "runtime.devices=2")),
    (
        "optim.lr_scaling",
        ("optim.lr_scaling=sqrt", "policies.random_batch_size={smallest: 2, largest: 6}"),
        ("optim.lr_scaling=sqrt", "policies.random_batch_size={smallest: 2, largest: 7}"),
    ),
    ("ema.decay", ("ema.decay=0.9995",), ("ema.decay=0.9994",)),
    ("monitor.check_steps", ("monitor.check_steps=200",), ("monitor.check_steps=150",)),
    ("monitor.check_steps", ("monitor.check_steps=2001",), ("monitor.check_steps=1999",)),
    ("optim.restart_growth", (*RESTARTS, "optim.restart_epochs=20"), (*RESTARTS, "optim.restart_epochs=19")),
    ("policies.swa.every_epochs", (f"{SWA}20",), (f"{SWA}19",)),
    ("optim.floor", (REDUCE, "optim.plateau_patience=9", "optim.floor=0.25"),
     (REDUCE, "optim.plateau_patience=9", "optim.floor=0.26")),
    (
        "augment.intensity",
        ("method.name=supervised", "augment.labeled_factor=0"),
        ("method.name=supervised", "augment.labeled_factor=0.1"),
    ),
    ("augment.intensity", ("augment.labeled_factor=0", "augment.strong_factor=0"), ("augment.labeled_factor=0",)),
    ("augment.strong_factor", ("augment.intensity=0",), ("augment.intensity=0.1",)),
    ("augment.rotation", ("augment.affine=0",), ("augment.affine=0.1",)),
    ("augment.affine", ("augment.rotation=0", "augment.scale=0"), ("augment.rotation=0",)),
    ("augment.affine", ("augment.rotation=0", "augment.scale=0"), ("augment.scale=0",)),
    ("augment.tilt", (), ("data.patch_size=[16, 32, 32]",)),
    ("augment.cutmix", ("batch.unlabeled=0",), ()),
    ("batch.labeled", ("policies.random_batch_size={smallest: 2, largest: 6}",), ()),
    ("split.val_fraction", ("split.folds=3",), ("split.val_fraction=0.3",)),
    ("split.test_fraction", ("split.file=x",), ("split.test_fraction=0.3",)),
    ("bootstrap.reset_head", ("bootstrap.parts=encoder",), ()),
]  # fmt: skip


def make_config(*overrides: str) -> Config:
    layers = [Layer("base", BASE), *map(parse_override, overrides)]
    check_settings(merge_layers(layers))
    return build_config(merge_layers(layers))[0]


def codes_of(config: Config) -> list[str]:
    return [finding.code for finding in lint(config)]


def test_a_plain_configuration_gives_no_warning() -> None:
    assert lint(make_config()) == []


@pytest.mark.parametrize(("code", "bad", "good"), CASES, ids=[f"{c}-{n}" for n, (c, _, _) in enumerate(CASES)])
def test_a_rule_fires_on_its_case_only(code: str, bad: Settings, good: Settings) -> None:
    findings = [finding for finding in lint(make_config(*bad)) if finding.code == code]
    assert findings
    for finding in findings:
        assert finding.level == "warn"
        assert re.search(r"\b(\d|True|constant|poly|linear|sqrt|one_cycle|reduce_on_plateau)", finding.message)
        names = re.findall(
            r"\b(?:optim|policies|loss|ema|batch|length|split|augment|bootstrap|monitor)(?:\.[a-z_]+)+", finding.message
        )
        assert names
        assert set(names) <= KNOWN
    assert code not in codes_of(make_config(*good))


KNOWN = {re.sub(r"\.\d+", "", name) for name in list_settings(Config, "")}
KNOWN |= {"loss.weights.variance", "loss.options.focal.alpha", "loss.options.focal", "loss.phases.weights.variance"}
KNOWN |= {f"loss.options.cross_entropy.{name}" for name in ("pos_weight", "class_weights")}
KNOWN |= {"loss.options.cross_entropy", "loss.options.tversky", "loss.phases"}


def test_every_rule_has_a_case_and_a_reason() -> None:
    assert set(RULES) == {code for code, _, _ in CASES}
    assert [code for code, rule in RULES.items() if not (rule.check.__doc__ or "").endswith(".")] == []
    assert [code for code, rule in RULES.items() if rule.check.__name__ != code] == []


@pytest.mark.parametrize(("key", "idle", "acting"), IDLE, ids=[f"{n}-{k}" for n, (k, _, _) in enumerate(IDLE)])
def test_what_a_setting_acts_with_has_an_edge(key: str, idle: Settings, acting: Settings) -> None:
    def find(settings: Settings) -> dict[str, Idle]:
        return {
            k: item
            for k, item in find_idle(make_config(*settings), DataFacts()).items()
            if f"{k}.".startswith(f"{key}.")
        }

    assert find(idle)
    assert not find(acting)
    for item in find(idle).values():
        assert re.fullmatch(r"[A-Z].*[^.]", item.remedy)
        assert re.fullmatch(r"[a-z].*[^.]", item.obstacle)


@pytest.mark.parametrize(
    ("facts", "keys"),
    [
        (
            {"unlabeled": 0},
            {"batch.unlabeled", "method.name", "augment.strong_factor", "augment.cutout", "augment.cutmix"},
        ),
        (
            {"positive": 0},
            {"data.foreground_ratio", "augment.copy_paste", "batch.positive_ratio", "batch.foreground_share"},
        ),
        ({"positive": 2}, {"batch.positive_ratio"}),
        ({"ignores": False, "maps": False}, set()),
        ({"has_gaps": False}, set()),
        ({"has_faults": False}, {"split.allow_faults"}),
        ({"has_copies": False}, {"split.near_copies"}),
    ],
)
def test_what_the_data_say(facts: dict[str, Any], keys: set[str]) -> None:
    config = make_config()
    found = set(find_idle(config, DataFacts(**facts))) - set(find_idle(config, DataFacts()))
    assert {key for key in found if not key.startswith(("method.options", "bootstrap"))} == keys


def test_a_value_is_named_where_it_was_meant_to_do_something() -> None:
    """Not where a file writes a default out, or something that is off anyway is switched off."""

    def said(*layers: Layer) -> list[str]:
        everything = [Layer("base", BASE), *layers]
        return [
            f.message
            for f in lint(build_config(merge_layers(everything))[0], merge_layers(everything).sources)
            if f.code == "changes_nothing"
        ]

    assert said(Layer("x.yaml", {"optim": {"one_cycle_rise": 0.3}}, is_file=True)) == []
    assert said(parse_override("optim.one_cycle_rise=0.3")) == [
        "optim.one_cycle_rise = 0.3 (--set) changes nothing in this run: optim.schedule = poly. "
        "It acts with optim.schedule = one_cycle"
    ]
    two = {"optim": {"plateau_patience": 7, "plateau_factor": 0.1}}
    assert said(Layer("x.yaml", two, is_file=True)) == [
        "optim.plateau_patience = 7 (x.yaml), optim.plateau_factor = 0.1 (x.yaml) change nothing in this run: "
        "optim.schedule = poly. They act with optim.schedule = reduce_on_plateau"
    ]
    supervised = parse_override("method.name=supervised")
    assert said(supervised, parse_override("augment.cutmix=0"), parse_override("batch.unlabeled=0")) == []
    assert any("augment.cutout = 0.0 (--set)" in text for text in said(supervised, parse_override("augment.cutout=0")))
    for preset in ("none", "light", "strong"):  # which serves all runs
        assert not any("augment." in text for text in said(supervised, parse_override(f"augment.preset={preset}")))
    first, second = said(parse_override("loss.preset=progressive"))
    assert first.startswith("loss.phases.0.from_epoch = 31 (--set), ")
    assert "epoch 61 is never reached. Start it earlier, or make length.steps larger than 6100" in second


@pytest.mark.parametrize("key", ["length.steps", "optim.warmup_steps"])
def test_rules_that_need_a_value_that_is_not_known_are_left_out(key: str) -> None:
    bad = {code: settings for code, settings, _ in CASES}
    needing = {code for code, rule in RULES.items() if key in rule.needs}
    assert needing
    for code in needing:
        config = make_config(*bad[code])
        assert code not in {finding.code for finding in lint(config, unknown={key})}
        assert code in {finding.code for finding in lint(config, unknown={"data.channels"})}


def test_without_data_nothing_is_said_about_planned_values() -> None:
    layers = [Layer("file", {"policies": {"swa": {"start_epoch": 90}}, "ema": {"decay": 0.9999, "warmup": False}})]
    config, unknown = check_partial(merge_layers(layers))
    assert lint(config, merge_layers(layers).sources, unknown=unknown) == []
    assert {"length.steps", "batch.labeled", "data.channels"} <= unknown
    layers.append(parse_override("length.steps=800"))
    config, unknown = check_partial(merge_layers(layers))
    codes = [finding.code for finding in lint(config, merge_layers(layers).sources, unknown=unknown)]
    assert codes == ["changes_nothing", "ema_longer_than_run"]


def test_stand_ins_let_everything_act() -> None:
    """Nothing is wrong with a setting because the data are not there yet."""
    for key, idle, acting in IDLE:
        layers = [parse_override(text) for text in acting if not text.startswith("length.")]
        config, unknown = check_partial(merge_layers(layers))
        found = {k for k in find_idle(config, DataFacts(), unknown) if f"{k}.".startswith(f"{key}.")}
        assert not found, (key, idle)


def test_lengths_that_are_proposed_end_with_a_cycle() -> None:
    settings = (*RESTARTS, "optim.restart_epochs=12")
    message = next(f.message for f in lint(make_config(*settings)) if f.code == "restart_cut_short")
    shorter, longer = re.findall(r"\d+", message.split("length.steps = ")[1])
    assert (int(shorter), int(longer)) == (1200, 3600)
    for steps in (shorter, longer):
        assert codes_of(make_config(*settings, f"length.steps={steps}")) == []
    assert codes_of(make_config(*settings, f"length.steps={int(shorter) + 100}")) == ["restart_cut_short"]


@given(
    epochs=st.integers(1, 30),
    patience=st.integers(1, 30),
    base=st.sampled_from([1.0, 1.5]),
    gain=st.sampled_from([0.0, 0.15]),
    cap=st.sampled_from([1.0, 5.0]),
)
def test_plateaus_that_never_act_are_those_of_the_training(
    epochs: int, patience: int, base: float, gain: float, cap: float
) -> None:
    """Scores that never get better are the case in which most plateaus are counted."""
    response = {"patience": patience, "base": base, "gain": gain, "cap": cap}
    config = small_run(epochs, {"plateau_response": response, "early_stopping": {"patience": patience}})
    multipliers = [
        respond_to_plateaus([0.0] * done, 0.0, PlateauResponseConfig(**response)).multiplier for done in range(epochs)
    ]
    idle = find_idle(config, DataFacts())
    assert ("policies.plateau_response.patience" in idle) == (max(multipliers) == 1.0)
    stops = any(count_stale_epochs([0.0] * done) >= patience for done in range(epochs))
    assert ("policies.early_stopping.patience" in idle) == (not stops)


@given(epochs=st.integers(1, 30), patience=st.integers(1, 30))
def test_reductions_that_never_act_are_those_of_the_training(epochs: int, patience: int) -> None:
    optim = {"schedule": "reduce_on_plateau", "plateau_patience": patience}
    acts = any(count_plateaus([0.0] * done, patience) for done in range(epochs))
    assert ("optim.schedule" in find_idle(small_run(epochs, {}, optim), DataFacts())) == (not acts)


def small_run(epochs: int, policies: dict[str, Any], optim: dict[str, Any] | None = None) -> Config:
    values = {
        **BASE,
        "policies": policies,
        "optim": {"warmup_steps": 0, **(optim or {})},
        "length": {"steps": 10 * epochs, "steps_per_epoch": 10},
    }
    return build_config(merge_layers([Layer("base", values)]))[0]


def test_the_contradictions_of_the_source_documents_are_named() -> None:
    def codes(name: str) -> set[str]:
        layers = read_layers(f"recipes/{name}")
        config, unknown = check_partial(merge_layers(layers))
        return {finding.code for finding in lint(config, merge_layers(layers).sources, unknown=unknown)}

    assert (packaged_configs() / "recipes").is_dir()
    assert {"variance_minimum", "costs_oppose"} <= codes("seed_v5")
    assert "lr_schedules_compete" in codes("seed_v6")
    assert codes("seed_v9") == {"noise_within_swa"}
    assert codes("seed_v8") == set()


def test_the_example_of_the_readme_is_sound() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (block,) = re.findall(r"```yaml\n(loss:.*?)```", guide, re.DOTALL)
    layers = [Layer("base", BASE), Layer("training.md", yaml.safe_load(block))]
    check_settings(merge_layers(layers))
    assert lint(build_config(merge_layers(layers))[0], merge_layers(layers).sources) == []
