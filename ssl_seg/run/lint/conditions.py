"""What each setting acts with: one table, for those settings that do not act in every run.

``tests/config/test_settings_walk.py`` holds it to what the training does: it changes each setting of a run, with and
without what it acts with, and compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from ssl_seg.config import Config, LossPhaseConfig
from ssl_seg.config.curves import POINTS, compute_batch_size, find_raising_plateau, list_windows
from ssl_seg.config.layers import to_plain, validate
from ssl_seg.config.schedules import make_ema_schedule
from ssl_seg.data.synthetic import is_synthetic
from ssl_seg.errors import counted
from ssl_seg.labels import THRESHOLDED
from ssl_seg.methods import LABELED_ONLY, METHODS
from ssl_seg.methods.base import BuildsModule


@dataclass(frozen=True)
class DataFacts:
    """What is known about the data of a run. By the defaults, used without data, every setting acts."""

    labeled: int = 2
    """Labeled training cases."""
    positive: int = 1
    """Those of them that have foreground."""
    unlabeled: int = 1
    """Training cases whose mask is not looked at."""
    maps: bool = True
    """Whether any mask holds a value that the label map turns into another."""
    ignores: bool = True
    """Whether any mask holds the value to ignore."""
    has_gaps: bool = True
    """Whether any image has voxels without data."""
    takes_axes: bool = True
    """Whether any file is of a kind that data.axes holds for."""
    has_copies: bool = True
    """Whether two images are nearly the same."""
    has_faults: bool = True
    """Whether the split check finds a fault."""


Obstacle = Callable[[Config, DataFacts], str | None]
"""Why a setting changes nothing in a run, as the first half of a sentence; None where it acts."""


@dataclass(frozen=True)
class Condition:
    """The settings ``keys`` act only where ``find_obstacle`` finds nothing; ``remedy`` says what makes them act.

    A key stands for all that is below it; ``*`` for one part of a name.
    """

    keys: tuple[str, ...]
    find_obstacle: Obstacle
    remedy: str
    needs: tuple[str, ...] = ()
    """Settings it reads that may be planned from the data; while they are unknown, the condition is skipped."""


def list_method_options(config: Config) -> dict[str, Any]:
    """Return all options of the method, those that are not given at their defaults."""
    return to_plain(validate(METHODS[config.method.name].config_type, dict(config.method.options)))


def count_epochs(config: Config) -> int:
    """Return the number of epochs, a shorter last one included."""
    return math.ceil(config.length.steps / config.length.steps_per_epoch)


def describe_epochs(config: Config) -> str:
    """Return how long the run is, in words."""
    length = config.length
    return f"the run has {count_epochs(config)} epochs ({length.steps} steps, {length.steps_per_epoch} each)"


def _only_with(key: str, *values: Any) -> Obstacle:
    """Return the obstacle of what is read only where another setting has one of these values."""

    def find(config: Config, _: DataFacts) -> str | None:
        value = attrgetter(key)(config)
        return None if value in values else f"{key} = {value}"

    return find


def _acts_with(keys: tuple[str, ...], key: str, *values: str) -> Condition:
    """Return the condition of settings that are read only where another one has one of these values."""
    return Condition(keys, _only_with(key, *values), f"It acts with {key} = {' or '.join(values)}")


def _only_without(key: str, reason: str) -> Obstacle:
    """Return the obstacle of what is read only where another setting is not given."""

    def find(config: Config, _: DataFacts) -> str | None:
        value = attrgetter(key)(config)
        return None if value is None else f"{key} = {value}{reason}"

    return find


def _unless(acts: Callable[[Config, DataFacts], object], reason: str) -> Obstacle:
    """Return the obstacle of what does nothing, for one reason, unless ``acts`` holds."""
    return lambda config, facts: None if acts(config, facts) else reason


_NO_POSITIVE = _unless(lambda _, facts: facts.positive, "no labeled case has foreground")


def _find_no_unlabeled(config: Config, facts: DataFacts) -> str | None:
    """Return why no unlabeled patch is used."""
    if not METHODS[config.method.name].traits.uses_unlabeled:
        return f"method.name = {config.method.name} learns nothing from unlabeled images"
    if facts.unlabeled == 0:
        return "there is no unlabeled image"
    return None if config.batch.unlabeled else "batch.unlabeled = 0"


def _find_idle_views(config: Config, facts: DataFacts) -> str | None:
    """Return why no weight depends on what the strong views of unlabeled patches hold."""
    reason = _find_no_unlabeled(config, facts)
    # Statistics of a batch hold its unlabeled patches, whatever they weigh in the loss.
    return reason if reason or config.network.norm == "batch" else _find_idle_consistency(config, facts)


def _find_idle_consistency(config: Config, _: DataFacts) -> str | None:
    weight = list_method_options(config).get("consistency_weight", 1.0)
    return "method.options.consistency_weight = 0" if weight == 0 else None


def _find_threshold(config: Config, kind: str) -> str | None:
    """Return that the threshold of pseudo-labels is of a kind, if it is."""
    is_so = list_method_options(config).get("threshold") == kind
    return f"method.options.threshold = {kind}" if is_so else None


def _find_idle_pool(config: Config, facts: DataFacts) -> str | None:
    """Return why it does not matter how many unlabeled patches there are."""
    averages = config.policies.swa is not None and config.network.norm == "batch"
    if facts.unlabeled and averages:  # the statistics of averaged weights are estimated on weak views too
        return None
    return _find_no_unlabeled(config, facts)


def _find_idle_method(config: Config, facts: DataFacts) -> str | None:
    method = METHODS[config.method.name]
    if not method.traits.uses_unlabeled or issubclass(method, BuildsModule):  # two networks are another training
        return None
    return None if facts.unlabeled and config.batch.unlabeled else "there is no unlabeled image to learn from"


def _find_idle_intensity(config: Config, facts: DataFacts) -> str | None:
    """Return why no patch that is learned from has its intensities changed."""
    if config.augment.labeled_factor:
        return None
    if not config.augment.strong_factor:
        return "augment.labeled_factor = 0 and augment.strong_factor = 0"
    reason = _find_idle_views(config, facts)
    return reason and f"augment.labeled_factor = 0 and {reason}"


def _find_idle_affine(config: Config, _: DataFacts) -> str | None:
    names = ("rotation", "scale") if config.data.ndim == 2 else ("rotation", "tilt", "scale")
    acts = any(getattr(config.augment, name) for name in names)
    return None if acts else " and ".join(f"augment.{name} = 0" for name in names)


def _find_idle_ramp(config: Config, _: DataFacts) -> str | None:
    options, held = list_method_options(config), config.bootstrap.pseudo_label_steps
    if "rampup_steps" not in options:
        return None
    by_ratio = options["rampup_steps"] is None
    length = round(options["rampup_ratio"] * config.length.steps) if by_ratio else options["rampup_steps"]
    if length == 0:
        key = "rampup_ratio" if by_ratio else "rampup_steps"
        return f"method.options.{key} = {options[key]:g} is no ramp"
    if held >= length:
        return f"bootstrap.pseudo_label_steps = {held} lasts to the end of the ramp, {length} steps, and has none"
    return None


def _find_idle_decay(config: Config, _: DataFacts) -> str | None:
    """Return why the scheduled decay is never used: the warm-up of the average stays below it."""
    if not config.ema.warmup or not config.bootstrap.restart_ema:
        return None
    if any(decay < limit for decay, limit in _list_decays(config)):
        return None
    updates = config.length.steps - config.bootstrap.pseudo_label_steps
    return f"ema.warmup = true keeps the decay at 1 - 1/updates, which is lower in all {updates} steps"


def _find_idle_ema_warmup(config: Config, _: DataFacts) -> str | None:
    below = all(decay <= limit for decay, limit in _list_decays(config))
    return f"the decay of ema.schedule = {config.ema.schedule} is never above 1 - 1/updates" if below else None


def _list_decays(config: Config) -> Iterator[tuple[float, float]]:
    """Yield the scheduled decay and the limit of its warm-up, over the run."""
    updates = config.length.steps - config.bootstrap.pseudo_label_steps
    decay_at = make_ema_schedule(config.ema.model_copy(update={"warmup": False}), updates)
    points = min(updates, POINTS)
    for index in range(points):
        update = round(index * (updates - 1) / max(points - 1, 1))
        yield decay_at(update), 1.0 - 1.0 / (update + 1)


def _find_idle_floor(config: Config, _: DataFacts) -> str | None:
    optim = config.optim
    if optim.schedule != "reduce_on_plateau":
        return None
    most = _count_most_plateaus(config, optim.plateau_patience)
    if optim.plateau_factor**most < optim.floor:
        return None
    return f"{describe_epochs(config)}: the rate is lowered {counted(most, 'time')} at most, and never to that floor"


def _find_idle_form(config: Config, _: DataFacts) -> str | None:
    falls = config.optim.schedule not in ("constant", "reduce_on_plateau", "one_cycle")
    return "optim.floor = 1 leaves no room for a fall" if falls and config.optim.floor == 1 else None


def _find_idle_growth(config: Config, _: DataFacts) -> str | None:
    optim, length = config.optim, config.length
    first = optim.warmup_steps + optim.restart_epochs * length.steps_per_epoch
    return None if first < length.steps else f"{describe_epochs(config)}: it ends within the first cycle"


def _find_idle_scaling(config: Config, _: DataFacts) -> str | None:
    optim = config.optim
    if optim.lr_scaling == "none" or compute_batch_size(config) != optim.lr_batch_size:
        return None
    return f"the batch is optim.lr_batch_size = {optim.lr_batch_size}, so that the rate is multiplied by 1"


def _find_idle_response(config: Config, _: DataFacts) -> str | None:
    response = config.policies.plateau_response
    if response is None or find_raising_plateau(response) is not None:
        return None
    return f"with base = {response.base:g}, gain = {response.gain:g} and cap = {response.cap:g} every multiplier is 1"


def _count_responses(config: Config) -> int:
    """Return how many plateaus the response sees at most."""
    response = config.policies.plateau_response
    return 0 if response is None else _count_most_plateaus(config, response.patience)


def _count_most_plateaus(config: Config, patience: int) -> int:
    """Return the plateaus that can still change the run, if no score is better than the first."""
    return max(0, count_epochs(config) - 2) // patience  # the first epoch is the best, the last comes too late


def _find_idle_gain(config: Config, _: DataFacts) -> str | None:
    return None if _count_responses(config) > 1 else f"{describe_epochs(config)}: there is no second plateau"


def _find_idle_cap(config: Config, _: DataFacts) -> str | None:
    response = config.policies.plateau_response
    if response is None:
        return None
    most = response.base + max(_count_responses(config) - 1, 0) * response.gain
    if most > response.cap:
        return None
    return f"{describe_epochs(config)}: no multiplier is above {most:g}"


def find_marks(config: Config, key: str) -> tuple[float, ...]:
    """Return the epochs at which a policy acts; none where it is off."""
    return next((period.marks or () for period in list_windows(config) if period.key == key), ())


def _find_idle_every(key: str) -> Obstacle:
    """Return the obstacle of the distance between two acts, where the run has no room for a second one."""

    def find(config: Config, _: DataFacts) -> str | None:
        policy = getattr(config.policies, key.rpartition(".")[2])
        if policy is None or len(find_marks(_set_every(config, key), key)) > 1:
            return None
        return f"{describe_epochs(config)}: it acts once at most, at epoch {policy.start_epoch}"

    return find


def _set_every(config: Config, key: str) -> Config:
    """Return the settings with the policy at each epoch from its start on."""
    name = key.rpartition(".")[2]
    policy = getattr(config.policies, name).model_copy(update={"every_epochs": 1})
    return config.model_copy(update={"policies": config.policies.model_copy(update={name: policy})})


def _find_idle_noise_decay(config: Config, _: DataFacts) -> str | None:
    is_repeated = len(find_marks(config, "policies.weight_noise")) > 1
    return None if is_repeated else f"{describe_epochs(config)}: noise is added once at most"


def _find_idle_glances(config: Config, _: DataFacts) -> str | None:
    steps, per_epoch, every = config.length.steps, config.length.steps_per_epoch, config.monitor.check_steps
    if every < steps and every % per_epoch:
        return None
    return f"length.steps_per_epoch = {per_epoch}: each such step ends an epoch, with a look of its own"


def _find_idle_layout(config: Config, _: DataFacts) -> str | None:
    return f"data.root = {config.data.root} is not a folder" if is_synthetic(config.data.root) else None


def _find_one_kind(_: Config, facts: DataFacts) -> str | None:
    if 0 < facts.positive < facts.labeled:
        return None
    return f"{'all' if facts.positive else 'none'} of the {facts.labeled} labeled cases have foreground"


def _find_random_size(config: Config, _: DataFacts) -> str | None:
    random = config.policies.random_batch_size
    return None if random is None else f"policies.random_batch_size draws {random.smallest} to {random.largest} patches"


_LENGTH = ("length.steps",)

CONDITIONS: tuple[Condition, ...] = (
    _acts_with(("network.encoder", "network.encoder_weights"), "network.name", "encoder_unet"),
    Condition(("data.layout", "data.groups"), _find_idle_layout, "Give a folder as data.root, or leave it out"),
    Condition(("data.foreground_ratio", "augment.copy_paste"), _NO_POSITIVE, "It acts where there is some"),
    Condition(("batch.foreground_share",), _NO_POSITIVE, "It acts where there is some"),
    Condition(
        ("data.foreground_ratio",),
        _only_without("batch.foreground_share", " chooses the boxes of all labeled patches"),
        "It acts without batch.foreground_share",
    ),
    Condition(("batch.positive_ratio",), _find_one_kind, "It acts where some have foreground and others do not"),
    Condition(
        ("split.seed", "split.val_fraction", "split.test_fraction"),
        _only_without("split.file", " is a finished split"),
        "Leave it out, or split.file",
    ),
    Condition(
        ("data.threshold",),
        lambda c, _: None if c.data.mask in THRESHOLDED else f"data.mask = '{c.data.mask}' has no threshold",
        "It acts with data.mask=binary or probability",
    ),
    Condition(
        ("data.label_map",),
        _unless(lambda c, f: f.maps or not c.data.label_map, "no mask holds a value that it turns into another"),
        "Give values of the masks, or leave it out",
    ),
    Condition(
        ("data.ignore_value",),
        _unless(lambda c, f: f.ignores or c.data.ignore_value is None, "no mask holds this value"),
        "Give the value of the masks, or leave it out",
    ),
    Condition(
        ("data.nodata",),
        _unless(lambda c, f: f.has_gaps or c.data.nodata in (None, "none"), "no image holds this value"),
        "Give the value of the images, or leave it out",
    ),
    Condition(
        ("data.nonfinite",),
        _unless(lambda c, f: f.has_gaps or c.data.nonfinite == "refuse", "no image holds NaN or infinity"),
        "Leave it out",
    ),
    Condition(
        ("data.axes",),
        _unless(lambda c, f: f.takes_axes or c.data.axes is None, "it applies to TIFF and arrays, and there are none"),
        "Leave it out",
    ),
    Condition(
        ("split.val_fraction",),
        _only_without("split.folds", ": each fold is validation once"),
        "Leave it out, or split.folds",
    ),
    Condition(
        ("split.near_copies",), _unless(lambda _, f: f.has_copies, "no two images are nearly the same"), "Leave it out"
    ),
    Condition(
        ("split.allow_faults",), _unless(lambda _, f: f.has_faults, "the split check finds no fault"), "Leave it out"
    ),
    Condition(("batch.labeled",), _find_random_size, "Leave one of them out"),
    Condition(
        ("batch.unlabeled",), _find_idle_pool, "Leave it out, or add images without a mask and a method that uses them"
    ),
    Condition(("method.name",), _find_idle_method, f"The training is that of method.name = {LABELED_ONLY}"),
    Condition(
        ("method.options.*",),
        _find_no_unlabeled,
        "It acts where unlabeled images are learned from",
    ),
    Condition(
        ("augment.cutmix", "augment.cutout", "augment.strong_factor"),
        _find_idle_views,
        "It acts where unlabeled images are learned from",
    ),
    Condition(("augment.intensity",), _find_idle_intensity, "Raise one of the factors, or leave it out"),
    Condition(
        ("augment.labeled_factor", "augment.strong_factor"),
        _unless(lambda c, _: c.augment.intensity, "augment.intensity = 0"),
        "It acts with a larger augment.intensity",
    ),
    Condition(("augment.tilt",), _unless(lambda c, _: c.data.ndim == 3, "patches are 2D"), "It acts on volumes"),
    Condition(
        ("augment.rotation", "augment.tilt", "augment.scale"),
        _unless(lambda c, _: c.augment.affine, "augment.affine = 0"),
        "It acts with a larger augment.affine",
    ),
    Condition(
        ("augment.affine",),
        _find_idle_affine,
        "Raise one of them, or leave it out",
    ),
    Condition(
        tuple(
            f"method.options.{name}"
            for name in (
                *("consistency", "confidence", "threshold*", "labeler", "rampup*", "version", "passes", "beta"),
                *("perturbations", "steepness", "period", "teacher_decay"),
            )
        ),
        _find_idle_consistency,
        "It acts with a larger weight",
    ),
    Condition(
        ("method.options.confidence",),
        lambda c, _: _find_threshold(c, "freematch"),
        "It acts with the others",
    ),
    Condition(
        ("method.options.threshold_momentum",),
        lambda c, _: _find_threshold(c, "fixed"),
        "It acts with freematch and corrmatch",
    ),
    Condition(
        ("method.options.rampup_ratio",),
        lambda c, _: (
            None
            if (steps := list_method_options(c).get("rampup_steps")) is None
            else f"method.options.rampup_steps = {steps} takes its place"
        ),
        "Leave one of them out",
    ),
    Condition(("method.options.rampup",), _find_idle_ramp, "It acts while the weight rises", _LENGTH),
    Condition(
        ("loss.options.*.batch",),
        _unless(lambda c, _: c.labeled_range[1] > 1, "a batch has one labeled patch"),
        "It acts with batch.labeled of 2 and more",
        ("batch.labeled",),
    ),
    Condition(("bootstrap.reset_head",), _only_with("bootstrap.parts", "all"), "The head is new already: leave it out"),
    Condition(
        ("optim.warmup_steps",),
        _only_with("optim.schedule", "constant", "poly", "cosine", "cosine_restarts", "reduce_on_plateau"),
        "That one rises by itself: leave it out, or use another schedule",
    ),
    _acts_with(("optim.poly_power",), "optim.schedule", "poly"),
    _acts_with(("optim.restart_epochs", "optim.restart_growth"), "optim.schedule", "cosine_restarts"),
    Condition(("optim.restart_growth",), _find_idle_growth, "It acts with a smaller optim.restart_epochs", _LENGTH),
    _acts_with(("optim.one_cycle_rise",), "optim.schedule", "one_cycle"),
    _acts_with(("optim.plateau_patience", "optim.plateau_factor"), "optim.schedule", "reduce_on_plateau"),
    Condition(
        ("optim.floor",),
        _only_with("optim.schedule", "poly", "cosine", "cosine_restarts", "one_cycle", "reduce_on_plateau"),
        "It acts with any other schedule",
    ),
    Condition(("optim.floor",), _find_idle_floor, "Lower optim.plateau_patience, or lengthen the run", _LENGTH),
    Condition(
        ("optim.poly_power", "optim.restart_epochs", "optim.restart_growth"), _find_idle_form, "Lower optim.floor"
    ),
    _acts_with(("optim.lr_batch_size",), "optim.lr_scaling", "linear", "sqrt"),
    Condition(
        ("optim.lr_scaling",),
        _find_idle_scaling,
        "Give the batch size that optim.lr was chosen for",
        ("batch.labeled",),
    ),
    Condition(
        ("ema.decay", "ema.schedule", "ema.final_decay"), _find_idle_decay, "Lower it, or lengthen the run", _LENGTH
    ),
    Condition(("ema.warmup",), _find_idle_ema_warmup, "It acts with a larger ema.decay", _LENGTH),
    Condition(
        ("policies.plateau_response",), _find_idle_response, "Raise them, or leave out policies.plateau_response"
    ),
    Condition(("policies.plateau_response.gain",), _find_idle_gain, "Lower the patience, or lengthen the run", _LENGTH),
    Condition(("policies.plateau_response.cap",), _find_idle_cap, "Lower it, or leave it out", _LENGTH),
    Condition(
        ("policies.swa.every_epochs",), _find_idle_every("policies.swa"), "Start earlier, or leave it out", _LENGTH
    ),
    Condition(
        ("policies.weight_noise.every_epochs",),
        _find_idle_every("policies.weight_noise"),
        "Start earlier, or leave it out",
        _LENGTH,
    ),
    Condition(("policies.weight_noise.decay",), _find_idle_noise_decay, "Start earlier, or leave it out", _LENGTH),
    _acts_with(("monitor.patience_steps",), "monitor.on_collapse", "recover"),
    Condition(("monitor.check_steps",), _find_idle_glances, "Give fewer steps than an epoch has", _LENGTH),
)


def list_derived(config: Config) -> Iterator[Condition]:
    """Yield the conditions of what depends on the length of the run: policies, and phases of the loss."""
    late = describe_epochs(config)
    for window in list_windows(config):
        if not window.acts:
            yield _block((window.key, *window.settings), f"{late}, and it acts after that at the earliest",
                         f"Make it act earlier, lengthen the run, or leave out {window.key}")  # fmt: skip
    phases, before = config.loss.phases, config.loss.weights
    reached = [p for p in phases if p.from_epoch * config.length.steps_per_epoch < config.length.steps]
    for index, phase in enumerate(phases):
        if index >= len(reached):
            needed = phase.from_epoch * config.length.steps_per_epoch
            yield _block((f"loss.phases.{index}",), f"{late}: epoch {phase.from_epoch} is never reached",
                         f"Start it earlier, or make length.steps larger than {needed}")  # fmt: skip
        elif phase.weights == before and (index == 0 or _is_settled(phases[index - 1], phase.from_epoch)):
            yield _block((f"loss.phases.{index}",), f"the weights are those before epoch {phase.from_epoch}",
                         "Leave it out, or give it other weights")  # fmt: skip
        before = phase.weights
    used = {name for weights in (config.loss.weights, *(p.weights for p in reached)) for name in weights}
    for name in config.loss.options:
        if name not in used:
            yield _block((f"loss.options.{name}",), f"{late}: no phase with '{name}' is reached",
                         "Start that phase earlier, or lengthen the run")  # fmt: skip


def _is_settled(phase: LossPhaseConfig, epoch: int) -> bool:
    """Return whether the weights of a phase are reached at an epoch."""
    return phase.from_epoch + phase.blend_epochs <= epoch


def _block(keys: tuple[str, ...], obstacle: str, remedy: str) -> Condition:
    return Condition(keys, lambda _, __: obstacle, remedy)
