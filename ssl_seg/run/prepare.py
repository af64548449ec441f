"""From a request to everything a run needs: settings, cases, split, run directory. Done once, before any process starts
to train; nothing is written until all of it is known to be good."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_seg.config import Config, DataConfig, LengthConfig, SplitConfig
from ssl_seg.config.layers import Layer, build_config, dump_config, merge_layers, nest, validate
from ssl_seg.config.schedules import plan_warmup
from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.disk_cache import fill_disk_cache, open_disk_cache
from ssl_seg.data.findings import Finding, describe_finding
from ssl_seg.data.splits.files import load_split, save_split, split_from_dict
from ssl_seg.data.splits.split import Split, make_folds, make_split, reorder_labeled
from ssl_seg.data.store import decoded_bytes
from ssl_seg.engine.pace import ANY_STEPS, Pace, check_length, describe_pace, plan_steps
from ssl_seg.errors import ConfigError, RefusedError, RunDirError
from ssl_seg.files import atomic_write
from ssl_seg.inference.model import config_of, load_published, make_network
from ssl_seg.methods import METHODS
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint
from ssl_seg.networks.precision import choose_precision
from ssl_seg.run.bootstrap import (
    check_copies,
    check_finite,
    check_parent,
    describe_doubt,
    describe_parent,
    given_keys,
    parent_layer,
)
from ssl_seg.run.directory import (
    CONFIG_FILE,
    SPLIT_FILE,
    RunDir,
    check_free,
    create_next_run_dir,
    create_run_dir,
    name_data,
    open_run_dir,
)
from ssl_seg.run.lint import lint
from ssl_seg.run.plan import LENGTH_KEYS, Planned, plan_layer, plan_run, replan_length
from ssl_seg.run.preflight import check_layers, check_with_data, gather_facts
from ssl_seg.run.pretraining.state import CARRIED, Pretraining, check_seen, load_body, load_pretraining
from ssl_seg.run.resources import check_disk, estimate_output_bytes
from ssl_seg.run.resume import (
    check_data_there,
    check_layers_of_resume,
    check_resumable,
    check_same_content,
    describe_length,
    restate_run,
)
from ssl_seg.run.seal import register_seal
from ssl_seg.run.sources import absolute_paths, absolute_root, open_data
from ssl_seg.run.transfer import check_options, load_student, load_teacher

DEFAULT_FRACTIONS = (0.01, 0.10, 1.0)


@dataclass(frozen=True)
class TrainRequest:
    """What the caller asks for. ``layers`` are files and options, in increasing order of precedence."""

    layers: tuple[Layer, ...] = ()
    out: Path | None = None
    bootstrap: Path | None = None
    resume: Path | None = None
    force: bool = False
    epochs: int | None = None
    """Length in epochs, instead of length.steps."""
    minutes: float | None = None
    """Length of a new run in minutes on this machine, instead of length.steps."""
    in_series: bool = False
    """Whether it is part of a ladder, cross-validation or ablation, which says itself how to go on with all of it."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start; ``start`` is the checkpoint it continues or builds on, if any.

    ``seen_labels`` are the contents of all labeled images that its networks will have learned from, see ``Checkpoint``.
    """

    config: Config
    catalog: Catalog
    split: Split
    run: RunDir
    start: Path | None
    resumed: bool
    seen_labels: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A new run that may begin: everything is checked, and nothing is written yet."""

    config: Config
    planned: list[Planned]
    catalog: Catalog
    split: Split
    place: Path
    """Its directory; the first free one of this name where none was asked for."""
    faults: list[Finding]
    """Of the split; they were allowed."""
    parent: dict[str, Any] | None
    """What its first event says of the checkpoint that it starts from."""
    pretrained: dict[str, Any] | None
    """The same of a pre-training."""
    seen_labels: tuple[str, ...]
    """See ``Prepared``."""
    published: str | None
    """What the first event says of published weights; see ``load_published``."""


@dataclass(frozen=True)
class Plan:
    """A resolved configuration, where each setting comes from, the data it was planned for, and the parent or the
    pre-training that it starts from, if any."""

    config: Config
    sources: dict[str, str]
    planned: list[Planned]
    catalog: Catalog
    split: Split
    parent: Checkpoint | None
    pretrained: Pretraining | None


def draft_run(
    request: TrainRequest, *, gpu: bool, note: Callable[[str], None], tracker: Callable[[str], Track]
) -> Draft:
    """Plan a new run and check everything.

    Args:
        request: what is asked for.
        gpu: whether the run will be on one; the plan depends on it.
        note: takes lines for the user.
        tracker: what is being done -> what wraps its items, for a progress bar.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    check_layers(request.layers)
    if request.out is not None:
        check_free(request.out)
    plan = make_plan(request, tracker("reading cases"), gpu=gpu)
    check_options(plan.config, plan.sources, has_parent=plan.parent is not None)
    for text in plan.catalog.notes:
        note(f"data: {text}")
    _note_plan([p for p in plan.planned if request.minutes is None or p.key not in LENGTH_KEYS], note)
    parent = plan.parent
    faults = check_with_data(plan.config, plan.catalog, plan.split, note)
    if any(fault.code == "changed_content" for fault in faults):
        plan = replace(plan, split=_restamp(plan.split, plan.catalog))
    net, published = _check_network(plan, request, gpu=gpu)
    place = request.out or Path("runs") / _default_name(plan.config)
    check_disk(place, estimate_output_bytes(net, plan.config))
    if parent is not None:
        _pass_gate(parent, plan, request, note)
    fill_caches(plan.config.data, plan.catalog, note, tracker)
    described = None if parent is None else describe_parent(parent, plan.config.bootstrap)
    body = None if plan.pretrained is None else _note_pretrained(plan.pretrained, plan.config, note)
    seen = _collect_seen(plan.config, plan.catalog, plan.split, parent)
    return Draft(plan.config, plan.planned, plan.catalog, plan.split, place, faults, described, body, seen, published)


def fit_minutes(draft: Draft, pace: Pace, minutes: float, note: Callable[[str], None]) -> Draft:
    """Return the draft with as many steps as fit into the minutes.

    Raises:
        ConfigError: see ``plan_steps``.
    """
    config = draft.config
    planned_warmup = any(item.key == "optim.warmup_steps" for item in draft.planned)
    steps = plan_steps(pace, config, minutes, warmup=0 if planned_warmup else config.optim.warmup_steps)
    planned = replan_length(draft.planned, steps, f"{minutes:g} minutes on this machine: {describe_pace(pace)}")
    _note_plan([item for item in planned if item.key in LENGTH_KEYS], note)
    updates = {
        "length": config.length.model_copy(update={"steps": steps}),
        "optim": config.optim.model_copy(update={"warmup_steps": plan_warmup(steps)} if planned_warmup else {}),
    }
    return replace(draft, config=config.model_copy(update=updates), planned=planned)


def begin_run(
    draft: Draft,
    request: TrainRequest,
    *,
    note: Callable[[str], None],
    hold: Callable[[Path], object],
    command: str = "train",
) -> Prepared:
    """Create the run directory and return the run.

    Args:
        draft: with settings that are final.
        request: what it was made for.
        note: takes lines for the user.
        hold: keeps other processes out of the run directory, before anything is written there.
        command: that repeats the run.

    Raises:
        RunDirError: when the directory cannot be created.
    """
    config, split = draft.config, draft.split
    facts = gather_facts(config, draft.catalog, split, has_faults=bool(draft.faults))
    for finding in lint(config, request.layers, facts):
        note(f"config: WARNING {describe_finding(finding)}")
    run = create_next_run_dir(draft.place) if request.out is None else create_run_dir(draft.place)
    hold(run.path)
    write_config(config, run, _make_header(draft.planned, request, command))
    save_split(split, run.path / SPLIT_FILE)
    register_seal(split, draft.catalog)
    if draft.faults:
        run.append_event("split_allowed", findings=[asdict(f) for f in draft.faults])
    starts = {"pretrained": draft.pretrained, "encoder_weights": draft.published}
    body = {name: value for name, value in starts.items() if value is not None}
    run.append_event("started", parent=draft.parent, force=request.force, **body)
    for text in (*split.notes, *split.note_rounding(config.split.labels), _describe_split(split, config)):
        note(f"split: {text}")
    return Prepared(config, draft.catalog, split, run, request.bootstrap, resumed=False, seen_labels=draft.seen_labels)


def make_plan(
    request: TrainRequest,
    track: Track = pass_through,
    *,
    gpu: bool = False,
    read: Callable[[Mapping[str, Any], Track], Catalog] = open_data,
) -> Plan:
    """Resolve all settings: those given, those of a parent, and those planned from the data.

    Args:
        request: what is asked for.
        track: shows the progress of reading the data.
        gpu: whether the run will be on one.
        read: returns the cases of a data section.

    Raises:
        SslSegError: for unusable settings, data or split.
    """
    parent, pretrained = _load_parent(request), _load_pretrained(request)
    start = parent or pretrained
    layers = _with_start(request, start)
    merged, sources = merge_layers(layers)
    check_length(request.layers, request.epochs, request.minutes)
    if request.epochs is not None or request.minutes is not None:
        default = LengthConfig.model_fields["steps_per_epoch"].default
        layers += _length_layer(request, int(merged.get("length", {}).get("steps_per_epoch", default)))
        merged, sources = merge_layers(layers)
    catalog = read(merged.get("data", {}), track)
    split_config = validate(SplitConfig, merged.get("split", {}), sources, prefix="split.")
    split = _find_split(split_config, catalog, None if _wants_new_split(request, start, catalog) else start)
    if split_config.label_seed is not None:
        split = reorder_labeled(split, catalog, split_config.label_seed)
    labeled, pool = split.labeled_ids(split_config.labels), split.pool_ids(split_config.labels)
    planned = plan_run(catalog, labeled, merged, gpu=gpu, has_unlabeled=bool(pool))
    config, sources = build_config([plan_layer(planned), *layers])
    if pretrained is not None:
        near = config.split.near_copies == "keep_together" and not config.split.allow_faults
        check_seen(pretrained, str(config.network.pretrained), split, catalog, near_copies=near)
    return Plan(_settle(config), sources, planned, catalog, split, parent, pretrained)


def _length_layer(request: TrainRequest, steps_per_epoch: int) -> list[Layer]:
    """Return the length that is asked for in epochs, if any; one in minutes is not known yet."""
    if request.minutes is not None:
        return [Layer(f"--minutes {request.minutes:g}", nest("length.steps", ANY_STEPS))]
    if request.epochs is None:
        return []
    return [Layer(f"--epochs {request.epochs}", nest("length.steps", request.epochs * steps_per_epoch))]


def write_config(config: Config, run: RunDir, header: str) -> None:
    """Write config.yaml atomically, with ``header`` as comment."""
    with atomic_write(run.path / CONFIG_FILE) as temporary:
        temporary.write_text(dump_config(config, header), encoding="utf-8")


def has_runtime_only(layers: Sequence[Layer]) -> bool:
    """Return whether layers say nothing but how a machine is used: that may change where a training goes on."""
    return all(set(layer.values) == {"runtime"} for layer in layers)


def read_header(run: RunDir) -> str:
    """Return the comment at the top of config.yaml."""
    lines = (run.path / CONFIG_FILE).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _note_plan(planned: Sequence[Planned], note: Callable[[str], None]) -> None:
    for item in planned:
        note(f"plan: {item.key} = {item.value} ({item.reason})")


def _make_header(planned: Sequence[Planned], request: TrainRequest, command: str) -> str:
    start = f" --bootstrap {request.bootstrap}" if request.bootstrap else ""
    lines = [
        f"Written by `ssl-seg {command}`; `ssl-seg {command} --config FILE{start}` with this file repeats the run."
    ]
    return "\n".join([*lines, *(f"planned: {item.key} = {item.value} ({item.reason})" for item in planned)])


def reopen_run(
    request: TrainRequest,
    *,
    note: Callable[[str], None],
    tracker: Callable[[str], Track],
    hold: Callable[[Path], object],
) -> Prepared:
    """Check everything and return the run to go on with; its directory is brought up to date.

    Args:
        request: with ``resume``.
        note, tracker: see ``draft_run``.
        hold: see ``begin_run``.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    if request.resume is None or request.bootstrap or request.out:
        raise ConfigError("--resume continues a run with its own settings and in its own directory")
    if request.minutes is not None:
        raise ConfigError(
            f"--minutes {request.minutes:g}: --resume goes on to the number of steps that the run was begun with, so "
            "that it ends with the same networks. Leave it out, or give a larger number with --steps"
        )
    check_layers_of_resume(request.layers)
    run = open_run_dir(request.resume)
    if not run.last.is_file():
        raise RunDirError(
            f"{run.path} holds no checkpoint to resume from; start it again with another --out, or remove the folder "
            "first"
        )
    hold(run.path)
    checkpoint = load_checkpoint(run.last)
    old = config_of(checkpoint, run.last)
    stored = Layer(str(run.last), old.model_dump(mode="json"))
    config, _ = build_config([stored, *request.layers, *_length_layer(request, old.length.steps_per_epoch)])
    config, step = _settle(config), checkpoint.progress.step
    check_resumable(run, checkpoint, old, config)
    check_data_there(run, config.data.root)
    catalog = open_data(config.data.model_dump(mode="json"), tracker("reading cases"))
    split = split_from_dict(checkpoint.split)
    if config.data != old.data:
        check_same_content(run, split, catalog, old.data.root)
        note(f"resume: the data are in {config.data.root}; they were in {old.data.root}")
    check_with_data(config, catalog, split, note)
    held = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    check_disk(run.path, estimate_output_bytes(make_network(config), config), held)
    if config.length != old.length:
        note(f"resume: {describe_length(old, config, checkpoint)}")
    fill_caches(config.data, catalog, note, tracker)
    if config.data != old.data or config.length != old.length:
        restate_run(run, checkpoint, old, config)
        write_config(config, run, read_header(run))
    run.remove_parts()
    # Step 0 is probed again when nothing has been trained yet.
    run.drop_after(step or -1)
    run.append_event("resumed", step=step)
    note(f"resume: {run.path} from step {step} of {config.length.steps}")
    seen = _collect_seen(config, catalog, split, checkpoint)
    return Prepared(config, catalog, split, run, run.last, resumed=True, seen_labels=seen)


def _collect_seen(config: Config, catalog: Catalog, split: Split, start: Checkpoint | None) -> tuple[str, ...]:
    """Return the contents of the labeled images of a run and of all that it goes on from, sorted.

    Of a part, the whole image counts too: another data set may hold it uncut.
    """
    labeled = split.labeled_ids(config.split.labels)
    own = split.image_contents(labeled) | {catalog.whole_images[i] for i in labeled if i in catalog.whole_images}
    return tuple(sorted(own | set(() if start is None else start.seen_labels)))


def _load_parent(request: TrainRequest) -> Checkpoint | None:
    if request.bootstrap is None:
        return None
    parent = load_checkpoint(request.bootstrap)
    config_of(parent, request.bootstrap)
    return parent


def _load_pretrained(request: TrainRequest) -> Pretraining | None:
    """Return the pre-training to start from, with those of its settings that hold for a training too."""
    where = merge_layers(request.layers)[0].get("network", {}).get("pretrained")
    if where is None:
        return None
    if request.bootstrap is not None:
        raise ConfigError(
            f"--bootstrap {request.bootstrap} and network.pretrained = {where} both say where the weights come from: "
            "give one of them"
        )
    state = load_pretraining(Path(where).expanduser())
    return replace(state, config={key: state.config[key] for key in CARRIED})


def _with_start(request: TrainRequest, start: Checkpoint | Pretraining | None) -> list[Layer]:
    """Put the settings of what a run starts from below the request's, unless a configuration file takes their place."""
    layers = list(request.layers)
    if start is None or any(layer.is_file for layer in layers):
        return layers
    given = given_keys(layers) | ({"length.steps"} if request.epochs or request.minutes else set())
    if _root_of(layers) == start.config["data"]["root"]:
        given.discard("data.root")
    where = str(request.bootstrap) if isinstance(start, Checkpoint) else "pre-training"
    return [parent_layer(start, where, given), *layers]


def _wants_new_split(request: TrainRequest, parent: Checkpoint | Pretraining | None, catalog: Catalog) -> bool:
    own = {f"split.{name}" for name in ("seed", "val_fraction", "test_fraction", "folds", "fold", "near_copies")}
    own &= given_keys(request.layers)
    return bool(own) or parent is None or parent.config["data"]["root"] != catalog.root


def _root_of(layers: Sequence[Layer]) -> str | None:
    root = merge_layers(layers)[0].get("data", {}).get("root")
    return None if root is None else absolute_root(root)


def _find_split(config: SplitConfig, catalog: Catalog, parent: Checkpoint | Pretraining | None) -> Split:
    if config.file is not None:
        return load_split(Path(config.file))
    if parent is not None:
        return split_from_dict(parent.split)
    wanted = sorted({*DEFAULT_FRACTIONS, *([config.labels] if config.labels <= 1 else [])})
    if config.folds is not None:
        shares: dict[str, Any] = {"test_fraction": config.test_fraction, "near_copies": config.near_copies}
        folds = make_folds(catalog, wanted, config.folds, seed=config.seed, **shares)
        return folds[config.fold]
    return make_split(
        catalog,
        wanted,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        near_copies=config.near_copies,
    )


def _restamp(split: Split, catalog: Catalog) -> Split:
    """Return the split with the contents that the run will see, or a later leak check would look for the old ones."""
    content = {i: catalog.facts[i].content for i in split.content}
    return replace(split, content=content, notes=(*split.notes, "contents are those of the training, not of the split"))


def fill_caches(
    data: DataConfig, catalog: Catalog, note: Callable[[str], None], tracker: Callable[[str], Track]
) -> None:
    """Write decoded, or resampled, copies of volumes if the data set does not fit into memory."""
    cache = open_disk_cache(data.disk_cache_gb)
    grid = {"resample_to": data.resample_to, "spacing": data.spacing}
    if cache is None or decoded_bytes(catalog, **grid) <= data.cache_mb * 2**20:
        return
    if missed := fill_disk_cache(cache, catalog, tracker("copying volumes"), **grid):
        note(f"data: {missed}")


def _check_network(plan: Plan, request: TrainRequest, *, gpu: bool) -> tuple[nn.Module, str | None]:
    """Return the network, built once to see that weights to start from fit and the precision asked for is usable, and
    what published weights it begins with."""
    config = plan.config
    net = make_network(config)
    published = load_published(net, config) if plan.parent is None and plan.pretrained is None else None
    if plan.parent is not None:
        load_student(net, plan.parent, config, str(request.bootstrap))
        load_teacher(net, plan.parent, config, str(request.bootstrap))
    if plan.pretrained is not None:
        load_body(net, plan.pretrained, config, str(config.network.pretrained))
    if not gpu:
        choose_precision(config.runtime.precision, net, torch.zeros(1, config.data.channels, *config.data.patch_size))
    return net, published


def _pass_gate(parent: Checkpoint, plan: Plan, request: TrainRequest, note: Callable[[str], None]) -> None:
    options = plan.config.bootstrap
    check_finite(parent, str(request.bootstrap), options)
    reasons = check_parent(parent, plan.split, options)
    if not plan.config.split.allow_faults:
        reasons += check_copies(parent, plan.split, plan.catalog)
    if reasons and not request.force:
        listed = "\n".join(f"- {reason}" for reason in reasons)
        way = "" if request.in_series else "\n--force starts from it all the same."
        raise RefusedError(f"{request.bootstrap} is refused as a start:\n{listed}{way}")
    for reason in reasons:
        note(f"bootstrap: forced although {reason}")
    if doubt := describe_doubt(parent, options):
        note(f"bootstrap: WARNING {doubt}")


def _note_pretrained(state: Pretraining, config: Config, note: Callable[[str], None]) -> dict[str, Any]:
    """Say what the run starts from; return what events.jsonl keeps of it."""
    where, result = config.network.pretrained, state.result
    doubt = f", WARNING: {','.join(result['codes'])}" if result["codes"] else ""
    note(f"pretrained: {where}, step {state.step}, {result['gain']:+.1%} against the mean of the visible image{doubt}")
    return {"run": where, "step": state.step, **result}


def _describe_split(split: Split, config: Config) -> str:
    labeled, pool = split.labeled_ids(config.split.labels), split.pool_ids(config.split.labels)
    return (
        f"{len(labeled)} labeled, {len(pool)} unlabeled, {len(split.val)} validation, {len(split.test)} test (sealed); "
        f"fingerprint {split.fingerprint}"
    )


def _settle(config: Config) -> Config:
    """Return the configuration with absolute paths and all options of its method: it means the same anywhere."""
    data, split, method = config.data, config.split, config.method
    options = validate(METHODS[method.name].config_type, dict(method.options), prefix="method.options.")
    updates = {
        "data": data.model_copy(update=absolute_paths(data.model_dump())),
        "split": split.model_copy(update={"file": split.file and absolute_root(split.file)}),
        "method": method.model_copy(update={"options": options.model_dump(mode="json")}),
    }
    network = config.network
    files = {"pretrained": network.pretrained, "encoder_weights": network.encoder_weights}
    found = {key: absolute_root(file) for key, file in files.items() if file not in (None, "imagenet", "none")}
    updates["network"] = network.model_copy(update=found)
    return config.model_copy(update=updates)


def _default_name(config: Config) -> str:
    data = name_data(config.data.root)
    return f"{data}_{config.method.name}_{config.split.labels:g}_seed{config.seed}"
