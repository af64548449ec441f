"""From a request to everything a run needs: settings, cases, split, run directory. Done once, before any process starts
to train; nothing is written until all of it is known to be good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ssl_seg.bootstrap import check_parent, describe_parent, given_keys, parent_layer
from ssl_seg.checkpoint import Checkpoint, load_checkpoint, load_weights
from ssl_seg.config import Config, MethodConfig
from ssl_seg.configio import Layer, build_config, check_partial, dump_config, flatten, merge_layers
from ssl_seg.data.catalog import Catalog, Track, open_catalog, pass_through
from ssl_seg.data.split_quality import SplitFinding, check_split
from ssl_seg.data.splits import Split, load_split, make_split, save_split, split_from_dict
from ssl_seg.data.synthetic import is_synthetic
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, SplitError
from ssl_seg.inference.model import config_of, make_network
from ssl_seg.losses import check_loss_names
from ssl_seg.methods import METHODS, make_method
from ssl_seg.networks import check_patch_size, get_network_spec
from ssl_seg.plan import plan_layer, plan_run
from ssl_seg.precision import choose_precision
from ssl_seg.rundir import (
    CONFIG_FILE,
    SPLIT_FILE,
    RunDir,
    atomic_write,
    check_free,
    create_run_dir,
    next_free,
    open_run_dir,
)

DEFAULT_FRACTIONS = (0.01, 0.10, 1.0)


@dataclass(frozen=True)
class TrainRequest:
    """What the caller asks for. ``layers`` are files and options, in increasing order of precedence."""

    layers: tuple[Layer, ...] = ()
    out: Path | None = None
    bootstrap: Path | None = None
    resume: Path | None = None
    force: bool = False


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start; ``start`` is the checkpoint it continues or builds on, if any."""

    config: Config
    catalog: Catalog
    split: Split
    run: RunDir
    start: Path | None
    resumed: bool


def prepare_run(
    request: TrainRequest, *, gpu: bool, note: Callable[[str], None], track: Track = pass_through
) -> Prepared:
    """Check everything, then create (or reopen) the run directory.

    Args:
        request: what is asked for.
        gpu: whether the run will be on one; the plan depends on it.
        note: takes lines for the user.
        track: wraps the reading of the cases, for a progress bar.

    Raises:
        SslSegError: the first thing that is wrong; nothing has been written then.
    """
    if request.resume is not None:
        return _reopen(request, note, track)
    check_layers(request.layers)
    if request.out is not None:
        check_free(request.out)
    parent = None if request.bootstrap is None else load_checkpoint(request.bootstrap)
    layers = _with_parent(request, parent)
    catalog = _open_data(layers, track)
    for text in catalog.notes:
        note(f"data: {text}")
    planned = plan_run(catalog, merge_layers(layers)[0], gpu=gpu)
    config, _ = build_config([plan_layer(planned), *layers])
    config = _absolute(config)
    for item in planned:
        note(f"plan: {item.key} = {item.value} ({item.reason})")
    split = _find_split(config, catalog, parent)
    _check(config, catalog, split)
    _check_network(config, parent, request, gpu=gpu)
    if parent is not None:
        _pass_gate(parent, split, request, note)

    run = create_run_dir(request.out or next_free(Path("runs") / _default_name(config)))
    header = "Written by `ssl-seg train`; `ssl-seg train --config` with this file repeats the run.\n" + "\n".join(
        f"planned: {item.key} = {item.value} ({item.reason})" for item in planned
    )
    write_config(config, run, header)
    save_split(split, run.path / SPLIT_FILE)
    run.append_event("started", parent=None if parent is None else describe_parent(parent), force=request.force)
    for text in (*split.notes, _describe_split(split, config)):
        note(f"split: {text}")
    return Prepared(config, catalog, split, run, request.bootstrap, resumed=False)


def check_layers(layers: Sequence[Layer]) -> None:
    """Check all that can be said without the data; values that are planned from it may be missing.

    Raises:
        ConfigError: unknown keys and wrong values, all in one; or an unknown method, option or loss.
        NetworkError: an unknown network, or a patch size that it cannot take.
    """
    check_partial(layers)
    values = dict(flatten(merge_layers(layers)[0]))
    options = {k.removeprefix("method.options."): v for k, v in values.items() if k.startswith("method.options.")}
    make_method(values.get("method.name", MethodConfig().name), options, {})
    check_loss_names([k.removeprefix("loss.weights.") for k in values if k.startswith("loss.weights.")])
    if "network.name" in values and "data.patch_size" in values:
        check_patch_size(values["network.name"], values["data.patch_size"])
    elif "network.name" in values:
        get_network_spec(values["network.name"])


def plan_layers(layers: Sequence[Layer], track: Track = pass_through, *, gpu: bool = False) -> list[Layer]:
    """Return the layers with the plan from the data below them."""
    check_layers(layers)
    planned = plan_run(_open_data(layers, track), merge_layers(layers)[0], gpu=gpu)
    return [plan_layer(planned), *layers]


def write_config(config: Config, run: RunDir, header: str) -> None:
    """Write config.yaml atomically, with ``header`` as comment."""
    with atomic_write(run.path / CONFIG_FILE) as temporary:
        temporary.write_text(dump_config(config, header), encoding="utf-8")


def read_header(run: RunDir) -> str:
    """Return the comment at the top of config.yaml."""
    lines = (run.path / CONFIG_FILE).read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("# ") for line in lines if line.startswith("# "))


def _reopen(request: TrainRequest, note: Callable[[str], None], track: Track) -> Prepared:
    if request.resume is None or request.bootstrap is not None or request.out is not None or request.layers:
        raise ConfigError("--resume continues a run with its own settings: give it without other options")
    run = open_run_dir(request.resume)
    if not run.last.is_file():
        raise RunDirError(f"{run.path} holds no checkpoint to resume from; start it again with another --out")
    checkpoint = load_checkpoint(run.last)
    config = config_of(checkpoint, run.last)
    if checkpoint.progress.step >= config.length.steps:
        raise RunDirError(f"{run.path} is finished: all {config.length.steps} steps are done; nothing to resume")
    catalog = _open_catalog(config, track)
    split = split_from_dict(checkpoint.split)
    _check(config, catalog, split)
    # Step 0 is probed again when nothing has been trained yet.
    run.drop_metrics_after(checkpoint.progress.step or -1)
    run.append_event("resumed", step=checkpoint.progress.step)
    note(f"resume: {run.path} from step {checkpoint.progress.step} of {config.length.steps}")
    return Prepared(config, catalog, split, run, run.last, resumed=True)


def _with_parent(request: TrainRequest, parent: Checkpoint | None) -> list[Layer]:
    """Put the parent's settings below the request's, unless a configuration file takes their place."""
    layers = list(request.layers)
    if parent is None or any(not layer.source.startswith("--") for layer in layers):
        return layers
    given = given_keys(layers)
    root = merge_layers(layers)[0].get("data", {}).get("root")
    if root is not None and _absolute_root(root) == parent.config["data"]["root"]:
        given.discard("data.root")
    return [parent_layer(parent, str(request.bootstrap), given), *layers]


def _open_data(layers: Sequence[Layer], track: Track) -> Catalog:
    data: dict[str, Any] = merge_layers(layers)[0].get("data", {})
    return open_catalog(
        _absolute_root(data.get("root", "synthetic:particles")),
        groups=Path(data["groups"]) if data.get("groups") else None,
        label_values=tuple(data["label_values"]) if data.get("label_values") else None,
        ignore_value=data.get("ignore_value"),
        track=track,
    )


def _open_catalog(config: Config, track: Track) -> Catalog:
    return open_catalog(
        config.data.root,
        groups=Path(config.data.groups) if config.data.groups else None,
        label_values=config.data.label_values,
        ignore_value=config.data.ignore_value,
        track=track,
    )


def _find_split(config: Config, catalog: Catalog, parent: Checkpoint | None) -> Split:
    if config.split.file is not None:
        return load_split(Path(config.split.file))
    if parent is not None and parent.config["data"]["root"] == config.data.root:
        return split_from_dict(parent.split)
    wanted = {*DEFAULT_FRACTIONS, *([config.split.labels] if config.split.labels <= 1 else [])}
    return make_split(
        catalog,
        sorted(wanted),
        seed=config.split.seed,
        val_fraction=config.split.val_fraction,
        test_fraction=config.split.test_fraction,
    )


def _check(config: Config, catalog: Catalog, split: Split) -> None:
    """Check what only the data can tell."""
    check_patch_size(config.network.name, config.data.patch_size)
    if config.data.ndim != catalog.ndim:
        raise ConfigError(
            f"data.patch_size {list(config.data.patch_size)} is for {config.data.ndim}D; {catalog.root} holds "
            f"{catalog.ndim}D images"
        )
    make_method(config.method.name, config.method.options, config.loss.weights)
    faults = [f for f in check_split(split, catalog) if f.level == "fault"]
    if faults:
        raise SplitError("the split cannot be used:\n" + "\n".join(_describe_fault(f) for f in faults))
    pool = split.pool_ids(config.split.labels)
    if METHODS[config.method.name].uses_teacher and pool and config.batch.unlabeled == 0:
        raise ConfigError(
            f"method.name = '{config.method.name}' learns from unlabeled images and there are {len(pool)}, but "
            "batch.unlabeled = 0: set it to batch.labeled, or use method.name = 'supervised'"
        )


def _check_network(config: Config, parent: Checkpoint | None, request: TrainRequest, *, gpu: bool) -> None:
    """Build the network once, to see that the parent's weights fit and the precision asked for is usable."""
    net = make_network(config)
    if parent is not None:
        load_weights(net, parent.student, str(request.bootstrap))
    if not gpu:
        choose_precision(config.runtime.precision, net, torch.zeros(1, config.data.channels, *config.data.patch_size))


def _describe_fault(fault: SplitFinding) -> str:
    first = f" (first: {', '.join(fault.cases[:5])})" if fault.cases else ""
    return f"{fault.code}: {fault.message}{first}"


def _pass_gate(parent: Checkpoint, split: Split, request: TrainRequest, note: Callable[[str], None]) -> None:
    reasons = check_parent(parent, split)
    if reasons and not request.force:
        listed = "\n".join(f"- {reason}" for reason in reasons)
        raise RefusedError(
            f"{request.bootstrap} is refused as a start:\n{listed}\n--force starts from it all the same."
        )
    for reason in reasons:
        note(f"bootstrap: forced although {reason}")


def _describe_split(split: Split, config: Config) -> str:
    labeled, pool = split.labeled_ids(config.split.labels), split.pool_ids(config.split.labels)
    return (
        f"{len(labeled)} labeled, {len(pool)} unlabeled, {len(split.val)} validation, {len(split.test)} test (sealed); "
        f"fingerprint {split.fingerprint}"
    )


def _absolute(config: Config) -> Config:
    data = config.data.model_copy(update={"root": _absolute_root(config.data.root)})
    return config.model_copy(update={"data": data})


def _absolute_root(root: str) -> str:
    return root if is_synthetic(root) else str(Path(root).expanduser().resolve())


def _default_name(config: Config) -> str:
    data = Path(config.data.root).name.replace(":", "-")
    return f"{data}_{config.method.name}_{config.split.labels:g}_seed{config.seed}"


def with_runtime(prepared: Prepared, **values: Any) -> Prepared:
    """Return ``prepared`` with resolved machine settings."""
    runtime = prepared.config.runtime.model_copy(update=values)
    return replace(prepared, config=prepared.config.model_copy(update={"runtime": runtime}))
