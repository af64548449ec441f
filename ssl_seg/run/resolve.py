"""From a request to what the run is: settings, cases, split, labeled and unlabeled ids, and where its weights start.

All of it is computed here, once, and nothing is written. Everything below takes the result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_seg.config import Config, LengthConfig, RuntimeConfig, SplitConfig
from ssl_seg.config.layers import Layer, Settings, build_config, convert, nest, validate
from ssl_seg.data.catalog import Catalog, Track, pass_through
from ssl_seg.data.findings import Finding
from ssl_seg.data.open import absolute_paths, absolute_root, open_data
from ssl_seg.data.pseudo_labels import PseudoLabelSet, load_pseudo_labels
from ssl_seg.data.splits.files import load_split, split_from_dict
from ssl_seg.data.splits.split import Split, add_new_masks, make_folds, make_split, note_unlisted, reorder_labeled
from ssl_seg.engine.pace import ANY_STEPS, check_length
from ssl_seg.errors import ConfigError
from ssl_seg.inference.model import config_of
from ssl_seg.methods import METHODS
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint
from ssl_seg.networks.precision import choose_device
from ssl_seg.run.bootstrap import parent_layer
from ssl_seg.run.directory import RunDir
from ssl_seg.run.plan import Planned, plan_layers, plan_run
from ssl_seg.run.pretraining.state import CARRIED, Pretraining, check_seen, load_pretraining
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.settings import check_settings

DEFAULT_FRACTIONS = (0.01, 0.10, 1.0)
_OWN_SPLIT = {f"split.{name}" for name in ("seed", "val_fraction", "test_fraction", "folds", "fold", "near_copies")}
"""Settings that ask for another split than that of the parent."""


@dataclass(frozen=True)
class Resolved:
    """All that is known about a run before its first step."""

    request: TrainRequest
    config: Config
    sources: Mapping[str, str]
    """Dotted key -> where its value comes from: an option, a file, a parent, ``plan`` or ``default``."""
    planned: tuple[Planned, ...]
    catalog: Catalog
    split: Split
    labeled: tuple[str, ...]
    """Ids of the labeled training cases, in nesting order."""
    unlabeled: tuple[str, ...]
    """Ids of the other training cases, whose masks, if any, are not looked at."""
    parent: Checkpoint | None = None
    """The checkpoint that a run builds on, or that a resumed run goes on from."""
    pretrained: Pretraining | None = None
    pseudo_labels: PseudoLabelSet | None = None
    """Pseudo-labels of some of the unlabeled cases, to train with as well."""
    faults: tuple[Finding, ...] | None = None
    """Faults of the split that are allowed; None before they were looked for."""
    published: str | None = None
    """Where published weights come from; see ``load_published``."""

    @cached_property
    def seen_labels(self) -> tuple[str, ...]:
        """Contents, sorted, of the labeled images of the run and of all that it builds on.

        For a part, the whole image counts too: another data set may hold it uncut.
        """
        wholes = self.catalog.whole_images
        own = self.split.image_contents(self.labeled) | {wholes[i] for i in self.labeled if i in wholes}
        return tuple(sorted(own.union(() if self.parent is None else self.parent.seen_labels)))


def resolve(
    request: TrainRequest,
    track: Track = pass_through,
    *,
    gpu: bool | None = False,
    read: Callable[[Mapping[str, Any], Track], Catalog] = open_data,
    defaults: Sequence[Layer] = (),
) -> Resolved:
    """Resolve all settings: those that are given, those of a parent, and those planned from the data.

    Args:
        request: what is asked for.
        track: shows the progress of reading the data.
        gpu: whether the run will be on one; None leaves that to ``runtime.accelerator``.
        read: returns the cases of a data section.
        defaults: settings of the command, below those of the request.

    Raises:
        SslSegError: for unusable settings, data or split.
    """
    settings = request.settings.over(*defaults)
    check_settings(settings)
    settings = convert(settings)
    check_length(request.layers, request.epochs, request.minutes)
    if gpu is None:
        gpu = choose_device(settings.get("runtime.accelerator", "auto")).type != "cpu"
    parent, pretrained = _load_parent(request), _load_pretrained(request)
    start = parent or pretrained
    settings = apply_length(settings.over(*_layers_of_start(request, start)), request)
    catalog = read(settings.section("data"), track)
    split_config = validate(SplitConfig, settings.section("split"), settings.sources, prefix="split.")
    split = _choose_split(split_config, catalog, None if _wants_new_split(request, start, catalog) else start)
    labeled, unlabeled = divide_pool(split, split_config.labels)
    planned = plan_run(catalog, labeled, unlabeled, settings.values, gpu=gpu)
    config, sources = build_config(settings.over(*plan_layers(planned)))
    if pretrained is not None:
        near = config.split.near_copies == "keep_together" and not config.split.allow_faults
        check_seen(pretrained, str(config.network.pretrained), split, catalog, near_copies=near)
    config = _settle_class_weights(settle_config(config), catalog, labeled)
    pseudo = _load_pseudo_labels(config, catalog, split, unlabeled)
    plan = tuple(planned)
    return Resolved(request, config, sources, plan, catalog, split, labeled, unlabeled, parent, pretrained, pseudo)


def resolve_stored(request: TrainRequest, stored: Config, where: Path) -> tuple[Config, dict[str, str]]:
    """Return the settings of a run that goes on, and the source of each.

    Args:
        request: the settings that change.
        stored: settings that the run was begun with.
        where: its checkpoint.

    Raises:
        ConfigError: for unusable settings.
    """
    settings = request.settings.over(Layer(str(where), stored.model_dump(mode="json")))
    config, sources = build_config(apply_length(settings, request))
    return settle_config(config), sources


def resolve_again(
    request: TrainRequest,
    config: Config,
    sources: Mapping[str, str],
    split: Split,
    track: Track,
    parent: Checkpoint | None = None,
) -> Resolved:
    """Return a run that goes on, with its cases read again.

    Args:
        request: to go on.
        config, sources: see ``resolve_stored``.
        split: split of the run.
        track: shows the progress of reading the data.
        parent: its last checkpoint.

    Raises:
        SslSegError: for unusable data or split.
    """
    catalog = open_data(config.data.model_dump(mode="json"), track)
    labeled, unlabeled = divide_pool(split, config.split.labels)
    pseudo = _load_pseudo_labels(config, catalog, split, unlabeled, request.resume)
    return Resolved(request, config, sources, (), catalog, split, labeled, unlabeled, parent, pseudo_labels=pseudo)


def resolve_runtime(request: TrainRequest, stored: Mapping[str, Any] | None = None) -> RuntimeConfig:
    """Return the machine settings alone: they decide how many processes resolve the rest.

    Args:
        request: what is asked for.
        stored: settings of the run that goes on; read from its last checkpoint unless given.

    Raises:
        ConfigError: for unusable ones.
    """
    settings = request.settings
    if stored is None and request.resume is not None and (last := RunDir(request.resume).last).is_file():
        stored = load_checkpoint(last).config
    if stored is not None:
        settings = settings.over(Layer(str(request.resume), {"runtime": stored.get("runtime", {})}))
    own = {key.removeprefix("runtime."): source for key, source in settings.sources.items()}
    return validate(RuntimeConfig, settings.section("runtime"), own, prefix="runtime.")


def divide_pool(split: Split, labels: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labeled and the unlabeled training ids.

    Raises:
        SplitError: for more labels than there are, or a sealed case among those of the training.
    """
    labeled, unlabeled = split.labeled_ids(labels), split.pool_ids(labels)
    split.check_not_sealed([*labeled, *unlabeled, *split.val])
    return labeled, unlabeled


def _load_pseudo_labels(
    config: Config, catalog: Catalog, split: Split, unlabeled: tuple[str, ...], resume: Path | None = None
) -> PseudoLabelSet | None:
    """Return the pseudo-labels that the run trains with, if any, checked.

    Those of a run that goes on may have moved with it, and are then beside it.
    """
    if config.data.pseudo_labels is None:
        return None
    folder = Path(config.data.pseudo_labels)
    if resume is not None and not folder.exists() and (beside := resume.parent / folder.name).exists():
        folder = beside
    found = load_pseudo_labels(folder)
    found.check(split, unlabeled, catalog)
    return found


def apply_length(settings: Settings, request: TrainRequest) -> Settings:
    """Return settings with the length that is asked for in epochs, if any; one in minutes is not known yet."""
    if request.minutes is not None:
        return settings.under(Layer(f"--minutes {request.minutes:g}", nest("length.steps", ANY_STEPS)))
    if request.epochs is None:
        return settings
    default = LengthConfig.model_fields["steps_per_epoch"].default
    steps = request.epochs * int(settings.get("length.steps_per_epoch", default))
    return settings.under(Layer(f"--epochs {request.epochs}", nest("length.steps", steps)))


def settle_config(config: Config) -> Config:
    """Return the configuration with absolute paths and all options of its method, so that it means the same anywhere.

    Raises:
        ConfigError: for an option that the method does not have.
    """
    data, split, method, network = config.data, config.split, config.method, config.network
    options = validate(METHODS[method.name].config_type, dict(method.options), prefix="method.options.")
    files = {"pretrained": network.pretrained, "encoder_weights": network.encoder_weights}
    found = {key: absolute_root(file) for key, file in files.items() if file not in (None, "imagenet", "none")}
    return config.model_copy(
        update={
            "data": data.model_copy(update=absolute_paths(data.model_dump())),
            "split": split.model_copy(update={"file": split.file and absolute_root(split.file)}),
            "method": method.model_copy(update={"options": options.model_dump(mode="json")}),
            "network": network.model_copy(update=found),
        }
    )


def _settle_class_weights(config: Config, catalog: Catalog, labeled: Sequence[str]) -> Config:
    """Return the configuration with the class weights that ``auto`` stands for written out."""
    if config.loss.class_weights != "auto":
        return config
    if config.data.task == "instances":
        raise ConfigError(
            "loss.class_weights = auto counts the values of masks, and those of objects do not show how much of them "
            "is boundary (data.task=instances): give three numbers, of background, inside and boundary, such as "
            "[1, 1, 2]"
        )
    weights = compute_class_weights(count_voxels(catalog, labeled))
    return config.model_copy(update={"loss": config.loss.model_copy(update={"class_weights": weights})})


def count_voxels(catalog: Catalog, case_ids: Sequence[str]) -> list[int]:
    """Return how many voxels of the masks of cases each class has, background first."""
    total: Counter[int] = Counter()
    for facts in (catalog.facts[case_id] for case_id in case_ids if case_id in catalog.facts):
        total.update(facts.voxels)
    return [total[value] for value in catalog.label_values]


def compute_class_weights(voxels: Sequence[int]) -> tuple[float, ...]:
    """Return one over the share of each class, with four digits: 0.34 and 0.66 give 2.941 and 1.515. A class without
    voxels, of which no loss sees a target, has weight 1."""
    return tuple(float(f"{sum(voxels) / count:.4g}") if count else 1.0 for count in voxels)


def _load_parent(request: TrainRequest) -> Checkpoint | None:
    if request.bootstrap is None:
        return None
    parent = load_checkpoint(request.bootstrap)
    config_of(parent, request.bootstrap)
    return parent


def _load_pretrained(request: TrainRequest) -> Pretraining | None:
    """Return the pre-training to start from, with those of its settings that hold for a training too."""
    where = request.settings.get("network.pretrained")
    if where is None:
        return None
    if request.bootstrap is not None:
        raise ConfigError(
            f"--bootstrap {request.bootstrap} and network.pretrained = {where} both say where the weights come from: "
            "give one of them"
        )
    state = load_pretraining(Path(where).expanduser())
    return replace(state, config={key: state.config[key] for key in CARRIED})


def _layers_of_start(request: TrainRequest, start: Checkpoint | Pretraining | None) -> list[Layer]:
    """Return the settings that a run takes over from what it starts from; a configuration file takes their place."""
    if start is None or any(layer.is_file for layer in request.layers):
        return []
    given = set(request.settings.sources) | ({"length.steps"} if request.epochs or request.minutes else set())
    root = request.settings.get("data.root")
    if root is not None and absolute_root(root) == start.config["data"]["root"]:
        given.discard("data.root")
    where = str(request.bootstrap) if isinstance(start, Checkpoint) else "pre-training"
    return [parent_layer(start.config, where, given)]


def _wants_new_split(request: TrainRequest, start: Checkpoint | Pretraining | None, catalog: Catalog) -> bool:
    given = _OWN_SPLIT & request.settings.sources.keys()
    return bool(given) or start is None or start.config["data"]["root"] != catalog.root


def _choose_split(config: SplitConfig, catalog: Catalog, start: Checkpoint | Pretraining | None) -> Split:
    """Return the split of the file, of what the run starts from, or a new one, in this order of precedence."""
    if config.file is not None:
        split = note_unlisted(add_new_masks(load_split(Path(config.file)), catalog), catalog)
    elif start is not None:
        split = note_unlisted(add_new_masks(split_from_dict(start.split), catalog), catalog)
    else:
        split = _make_split(config, catalog)
    return split if config.label_seed is None else reorder_labeled(split, catalog, config.label_seed)


def _make_split(config: SplitConfig, catalog: Catalog) -> Split:
    wanted = sorted({*DEFAULT_FRACTIONS, *([config.labels] if config.labels <= 1 else [])})
    shares: dict[str, Any] = {"test_fraction": config.test_fraction, "near_copies": config.near_copies}
    if config.folds is not None:
        return make_folds(catalog, wanted, config.folds, seed=config.seed, **shares)[config.fold]
    return make_split(catalog, wanted, seed=config.seed, val_fraction=config.val_fraction, **shares)
