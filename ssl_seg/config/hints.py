"""What is said about a setting that is not known: the name it has here, if another project calls it otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ssl_seg.config import Config, LossConfig
from ssl_seg.errors import did_you_mean

MACROS: dict[type[BaseModel], tuple[str, ...]] = {Config: ("extends",), LossConfig: ("preset",)}
"""Keys that a file may have and the resolved configuration does not: they stand for others."""

_MORE = "above 1 MORE foreground is predicted; to cut false foreground raise loss.fp_cost instead"
_STEPS = "in steps: epochs x length.steps_per_epoch"
_FOREIGN = {
    "batch_size train_batch_size": "batch.labeled, and batch.unlabeled for images without a mask; on each process",
    "uratio mu": "batch.unlabeled",
    "learning_rate base_lr initial_lr init_lr": "optim.lr",
    "min_lr eta_min": "optim.floor, as a share of optim.lr",
    "beta1 betas": "optim.momentum",
    "optimizer optim_name": "optim.name (adamw or sgd)",
    "num_epochs epochs max_epochs n_epochs": f"length.steps, {_STEPS}; or `ssl-seg train --epochs N`",
    "max_steps total_steps num_steps iterations max_iterations": "length.steps",
    "warmup_epochs": f"optim.warmup_steps, {_STEPS}",
    "scheduler scheduler_type lr_scheduler lr_schedule": "optim.schedule ('plateau' is reduce_on_plateau here)",
    "scheduler_patience": "optim.plateau_patience, with optim.schedule: reduce_on_plateau",
    "scheduler_factor": "optim.plateau_factor",
    "T_0": "optim.restart_epochs",
    "T_mult": "optim.restart_growth",
    "gradient_clipping grad_clip max_norm clip_grad_norm max_grad_norm": "optim.clip_norm",
    "early_stopping_patience": "policies.early_stopping.patience",
    "swa_enabled use_swa": "policies.swa: {start_epoch: N}, which switches it on",
    "swa_start_epoch swa_start": "policies.swa.start_epoch",
    "swa_freq swa_frequency": "policies.swa.every_epochs",
    "noise_enabled use_noise": "policies.weight_noise: {start_epoch: N, std: S}, which switches it on",
    "noise_start_epoch noise_start": "policies.weight_noise.start_epoch",
    "noise_frequency noise_freq": "policies.weight_noise.every_epochs",
    "noise_std noise_scale": "policies.weight_noise.std",
    "noise_decay": "policies.weight_noise.decay",
    "max_lr_multiplier max_lr_scaling": "policies.plateau_response.cap",
    "progressive_loss_schedule": "loss.phases, which switch it on",
    "progressive_phases loss_phases": (
        "loss.weights from the start, and loss.phases: a list of {from_epoch: N, weights: {...}} for what comes later"
    ),
    "epoch_start": "from_epoch of a phase in loss.phases; what holds from epoch 0 is loss.weights",
    "epoch_end end_epoch": "leave it out: the next phase ends the one before",
    "loss_weights": "loss.weights, or weights of a phase in loss.phases",
    "pos_weight": f"loss.options.cross_entropy.pos_weight: {_MORE}",
    "foreground_weight fg_weight": f"loss.fn_cost, or loss.options.cross_entropy.class_weights: {_MORE}",
    "background_weight bg_weight": (
        "loss.fp_cost, or loss.options.cross_entropy.class_weights: above 1 LESS foreground is predicted"
    ),
    "use_class_weights": "loss.class_weights: auto, or one for each class, background first",
    "focal_alpha": "loss.options.focal.alpha: above 0.5 MORE foreground is predicted",
    "focal_gamma": "loss.options.focal.gamma",
    "tversky_alpha": "loss.options.tversky.alpha (weight of false foreground)",
    "tversky_beta": "loss.options.tversky.beta (weight of missed foreground)",
    "bce_weight ce_weight": "loss.weights.cross_entropy",
    "dice_weight": "loss.weights.dice",
    "focal_weight": "loss.weights.focal",
    "variance_weight": "loss.weights.variance",
    "boundary_weight": "loss.weights.boundary",
    "cldice_weight": "loss.weights.cldice",
    "connectivity_weight": "loss.weights.connectivity",
    "tversky_weight": "loss.weights.tversky",
    "iou_weight": "loss.weights.iou",
    "total_weight": "leave it out: loss.weights are taken as they are",
    "initial_filters base_filters num_filters init_filters base_channels": "network.features",
    "model model_name architecture arch backbone": "network.name",
    "data_dir data_path dataset root_path data_root": "data.root",
    "in_channels num_channels input_channels": "data.channels",
    "num_classes out_channels n_classes": "data.label_values, one mask value for each class, background first",
    "img_size image_size crop_size roi_size": "data.patch_size",
    "label_fraction label_ratio labeled_ratio labeled_num": "split.labels",
    "val_split": "split.val_fraction",
    "test_split": "split.test_fraction",
    "ema_alpha ema_decay alpha_ema teacher_decay": "ema.decay",
    "lambda_u ulb_loss_ratio": "method.options.consistency_weight",
    "p_cutoff": "method.options.confidence",
    "num_workers": "runtime.workers",
    "gpus num_gpus": "runtime.devices",
    "amp use_amp mixed_precision fp16": "runtime.precision (auto, fp32 or bf16)",
    "random_seed": "seed",
    "postprocess_threshold prob_threshold pred_threshold": "prediction.threshold",
    "target_ratio": "batch.foreground_share (of voxels) or batch.positive_ratio (of patches of cases with foreground)",
    "pos_sample_weight POS_SAMPLE_WEIGHT": "batch.positive_ratio, the share itself and not a weight",
}
FOREIGN_NAMES = {name: here for names, here in _FOREIGN.items() for name in names.split()}
"""Names in other projects and in papers' code -> where the setting is here, and what it does where that is mistaken."""

_RULES = {
    "tuple_type": "a list is needed, given as a whole: [a, b]",
    "path_type": "a path is needed",
    "dict_type": "a mapping is needed: {name: value}",
}
"""Words that replace pydantic's for types of Python."""
_BRANCH = re.compile(r"(constrained-)?(int|float)|(?P<word>literal\[.*\])")
"""What pydantic puts behind a key that takes a number or a word; each of both is a problem of its own."""


def describe_problem(
    model: type[Any], problem: ErrorDetails, sources: Mapping[str, str], prefix: str = ""
) -> list[str]:
    """Return the lines for one problem that pydantic found: where it was set, name, value, rule, what to do.

    Args:
        model: what was validated.
        problem: one of ``ValidationError.errors()``.
        sources: the source of each dotted key.
        prefix: prefix of the keys of ``model`` in the whole configuration, with its dot.
    """
    loc, kind, message = problem["loc"], problem["type"], problem["msg"]
    if kind != "extra_forbidden" and (branch := _BRANCH.fullmatch(str(loc[-1] if loc else ""))):
        loc, message = loc[:-1], f"or {message[0].lower()}{message[1:]}" if branch["word"] else message
    name = f"{prefix}{'.'.join(str(part) for part in loc)}".rstrip(".")
    where = find_source(name, sources) if name else _find_sources_of(message, sources)
    if kind == "extra_forbidden":
        lines = [f"{name}: unknown key{_hint(model, loc)}", *_describe_inner(name, problem.get("input"))]
    elif kind == "missing":
        lines = [f"{name}: missing; give it in the file or with --set {name}=..."]
    elif kind == "value_error":
        lines = [f"{name + ': ' if name else ''}{message.removeprefix('Value error, ')}"]
    elif kind == "model_type":
        keys = ", ".join(_known_keys(model, loc))
        empty = " (a section without keys can be left out)" if problem.get("input") is None else ""
        lines = [f"{name} = {problem.get('input')!r}: a section is needed here, with keys out of {keys}{empty}"]
    else:
        rule = _RULES.get(kind, f"{message[0].lower()}{message[1:]}")
        lines = [f"{name} = {problem.get('input')!r}: {rule}"]
    return [f"{where}{line}" for line in lines]


def find_source(name: str, sources: Mapping[str, str]) -> str:
    """Return ``"SOURCE: "`` for a dotted key: of the key, of what it is in, or of something beside it; else nothing."""
    above = list_above(name)
    exact = (sources[key] for key in above if key in sources)
    inside = (source for key in above for other, source in sources.items() if other.startswith(f"{key}."))
    source = next(chain(exact, inside), None)
    return f"{source}: " if source else ""


def list_above(name: str) -> list[str]:
    """Return a dotted key, and the keys of what it is in, from inside outwards."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _find_sources_of(message: str, sources: Mapping[str, str]) -> str:
    """Return the sources of the settings that a message about the whole configuration names."""
    named = dict.fromkeys(find_source(key, sources) for key in re.findall(r"[a-z_]+(?:\.[a-z_]+)+", message))
    return ", ".join(source.removesuffix(": ") for source in named if source) + ": " if any(named) else ""


def _hint(model: type[BaseModel], loc: Sequence[int | str]) -> str:
    key, known = str(loc[-1]), _known_keys(model, loc[:-1])
    if key in FOREIGN_NAMES:
        return _explain(key)
    elsewhere = [] if any(isinstance(part, int) for part in loc) else list(_find_fields(Config, key))
    if elsewhere:
        inside = "settings." if "settings" in model.model_fields else ""  # where an ablation has those of its cells
        quoted = [f"'{inside}{name}'" for name in elsewhere]
        return f" (did you mean {' or '.join(quoted)}?)"
    return did_you_mean(key, known) or f" (known here: {', '.join(known) or 'none'})"


def _describe_inner(name: str, value: Any) -> list[str]:
    """Return a line for each foreign name below an unknown key, at the first place where it stands."""
    seen: dict[str, str] = {}
    for place, key in _walk(name, value):
        if key in FOREIGN_NAMES:
            seen.setdefault(key, f"{place}: unknown key{_explain(key)}")
    return list(seen.values())


def _explain(key: str) -> str:
    here = FOREIGN_NAMES[key]
    return f"; {here}" if here.startswith("leave") else f"; here it is {here}"


def _walk(name: str, value: Any) -> Iterator[tuple[str, str]]:
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield f"{name}.{key}", str(key)
        yield from _walk(f"{name}.{key}", inner)


def _find_fields(model: type[BaseModel], key: str, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings called ``key``; those of list items are left out."""
    for name, field in model.model_fields.items():
        if name == key:
            yield prefix + name
        section = find_section_type(field.annotation)
        if section is not None and get_origin(field.annotation) is not tuple:
            yield from _find_fields(section, key, f"{prefix}{name}.")


def _known_keys(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    for part in loc:
        if isinstance(part, str):  # a number is the place in a list of sections of one type
            model = find_section_type(model.model_fields[part].annotation) or model
    return [*model.model_fields, *MACROS.get(model, ())]


def describe_setting(key: str) -> str:
    """Return what a setting, or a section, means: the description of the last part of its dotted name that has one."""
    model: type[BaseModel] | None = Config
    text = ""
    for part in key.split("."):
        field = None if model is None else model.model_fields.get(part)
        if field is None:  # an entry of a mapping, such as loss.weights.dice
            break
        model = find_section_type(field.annotation)
        text = field.description or (model.__doc__ if model is not None else None) or text
    return " ".join(text.replace("``", "`").split())


def find_section_type(annotation: Any) -> type[BaseModel] | None:
    """Return the section in ``Section``, ``Section | None`` or ``tuple[Section, ...]``, if it is one of these."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
