"""What is checked before a run starts: first the settings by themselves, then the settings against the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ssl_seg.config import Config, DataConfig, LossConfig, MethodConfig
from ssl_seg.config.hints import find_source
from ssl_seg.config.layers import Layer, Nested, check_partial, merge_layers, validate
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.findings import Finding, describe_finding, select_faults
from ssl_seg.data.layouts import EXTRA
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.splits.split import Split
from ssl_seg.data.volumes import takes_axes
from ssl_seg.errors import ConfigError, DataError, NetworkError, SplitError
from ssl_seg.losses import check_class_weights, check_loss_names, make_supervised_loss
from ssl_seg.methods import METHODS, make_method
from ssl_seg.networks.builders import check_deep_supervision, check_patch_size, get_network_spec
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.resources import check_memory


def check_layers(layers: Sequence[Layer]) -> None:
    """Check all that can be said without the data; values that are planned from it may be missing.

    Raises:
        ConfigError: unknown keys, wrong values, an unknown method, network, loss or option, or a patch size that the
            network cannot take: all in one error.
    """
    merged, sources = merge_layers(layers)
    problems = [
        *_collect(partial(check_partial, layers)),
        *_check_components(_section(merged, "loss"), sources),
        *_collect(partial(_check_method, _section(merged, "method"), sources)),
        *_check_network(_section(merged, "network"), _section(merged, "data"), sources),
    ]
    problems = problems or _collect(partial(_check_loss, merged, sources))
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))


def _collect(check: Callable[[], object], where: str = "") -> list[str]:
    try:
        check()
    except (ConfigError, NetworkError) as error:
        return [f"{where}{line}" for line in str(error).splitlines()]
    return []


def _section(values: Nested, name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _check_components(loss: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Return the problems of all names of components, with their places; other problems are left for the models."""
    phases = loss.get("phases")
    places = {f"loss.{key}": loss.get(key) for key in ("weights", "options")}
    for index, phase in enumerate(phases if isinstance(phases, list) else ()):
        places[f"loss.phases.{index}.weights"] = phase.get("weights") if isinstance(phase, dict) else None
    return [
        line
        for place, named in places.items()
        if isinstance(named, dict)
        for line in _collect(partial(check_loss_names, named), f"{find_source(place, sources)}{place}: ")
    ]


def _check_loss(merged: Nested, sources: Mapping[str, str]) -> None:
    config = validate(LossConfig, merged.get("loss", {}), sources, prefix="loss.")
    label_values = _section(merged, "data").get("label_values")
    try:
        make_supervised_loss(config)
        if isinstance(label_values, list):
            _check_class_weights(config, len(label_values))
    except ConfigError as error:
        lines = [f"{find_source(line.split()[0].rstrip(':'), sources)}{line}" for line in str(error).splitlines()]
        raise ConfigError("\n".join(lines)) from None


def _check_class_weights(loss: LossConfig, num_classes: int) -> None:
    weights = loss.options.get("cross_entropy", {}).get("class_weights")
    if weights is not None:
        check_class_weights(weights, num_classes)


def _check_method(section: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    method = validate(MethodConfig, dict(section), sources, prefix="method.")
    if method.name in METHODS:
        validate(METHODS[method.name].config_type, method.options, sources, prefix="method.options.")
    try:
        make_method(method.name, method.options, make_supervised_loss(LossConfig()))
    except ConfigError as error:
        raise ConfigError(f"{find_source('method.name', sources)}{error}") from None


def _check_network(network: Mapping[str, Any], data: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    name, patch_size = network.get("name"), data.get("patch_size")
    if not isinstance(name, str):
        return []
    problems = _collect(partial(get_network_spec, name), f"{find_source('network.name', sources)}network.name: ")
    heads, at_heads = network.get("deep_supervision"), find_source("network.deep_supervision", sources)
    if not problems and isinstance(heads, int) and not get_network_spec(name).deep_supervision:
        problems = _collect(partial(check_deep_supervision, name, (), heads), at_heads)
    if problems or not isinstance(patch_size, list) or not all(isinstance(size, int) for size in patch_size):
        return problems
    where = f"{find_source('data.patch_size', sources)}data.patch_size: "
    problems = _collect(partial(check_patch_size, name, patch_size), where)
    if problems or not isinstance(heads, int):
        return problems
    return _collect(partial(check_deep_supervision, name, patch_size, heads), at_heads)


def check_with_data(config: Config, catalog: Catalog, split: Split, note: Callable[[str], None]) -> list[Finding]:
    """Check what only the data can tell.

    Args:
        config: all settings.
        catalog: the data.
        split: of the run.
        note: takes the warnings of the split gate.

    Returns:
        The faults of the split that ``split.allow_faults`` let pass.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    check_patch_size(config.network.name, config.data.patch_size)
    check_deep_supervision(config.network.name, config.data.patch_size, config.network.deep_supervision)
    if config.data.ndim != catalog.ndim:
        raise ConfigError(
            f"data.patch_size {list(config.data.patch_size)} is for {config.data.ndim}D; {catalog.root} holds "
            f"{catalog.ndim}D images"
        )
    if catalog.channels not in {1, config.data.channels}:
        raise ConfigError(f"data.channels = {config.data.channels}; the images have {catalog.channels}")
    _check_class_weights(config.loss, config.data.num_classes)
    _check_spacing(config.data, catalog)
    _check_mixing(config)
    if not split.val:
        raise SplitError("the split has no validation cases: nothing could be watched; make a new split")
    if config.data.unlabeled is not None and not any(case_id.startswith(EXTRA) for case_id in split.unlabeled):
        raise SplitError(
            f"data.unlabeled = {config.data.unlabeled}: the split holds none of these images. Make another one with "
            "`ssl-seg split make --unlabeled`, or leave them out"
        )
    faults = _check_split_quality(config, catalog, split, note)
    check_memory(config, catalog, split)
    pool = split.pool_ids(config.split.labels)
    if METHODS[config.method.name].uses_teacher and pool and config.batch.unlabeled == 0:
        raise ConfigError(
            f"method.name = '{config.method.name}' learns from unlabeled images and there are {len(pool)}, but "
            "batch.unlabeled = 0: set it to batch.labeled, or use method.name = 'supervised'"
        )
    return faults


def gather_facts(config: Config, catalog: Catalog, split: Split, *, has_faults: bool = True) -> DataFacts:
    """Return what the data say about which settings act.

    Args:
        config: all settings.
        catalog: the data.
        split: of the run.
        has_faults: whether the split has faults, that were allowed.
    """
    labeled = split.labeled_ids(config.split.labels)
    positive = sum((catalog.facts[i].foreground or 0.0) > 0 for i in labeled if i in catalog.facts)
    return DataFacts(
        len(labeled),
        positive,
        len(split.pool_ids(config.split.labels)),
        maps=any(facts.mapped for facts in catalog.facts.values()),
        ignores=any(config.data.ignore_value in (facts.values or ()) for facts in catalog.facts.values()),
        has_gaps=any(facts.missing for facts in catalog.facts.values()),
        takes_axes=any(takes_axes(case.image) for case in catalog.cases),
        has_copies=bool(catalog.likeness.copies),
        has_faults=has_faults,
    )


def _check_spacing(data: DataConfig, catalog: Catalog) -> None:
    unknown = [i for i, facts in catalog.facts.items() if (data.spacing or facts.spacing) is None]
    if data.resample_to is not None and unknown:
        raise DataError(
            f"data.resample_to = {list(data.resample_to)}, but {len(unknown)} image(s) do not say how large their "
            f"voxels are, for example '{unknown[0]}'. Give data.spacing, which holds for all, or leave out resample_to."
        )


def _check_mixing(config: Config) -> None:
    """CutMix and copy-paste take a partner from the same batch."""
    for name, patches in (("cutmix", config.batch.unlabeled), ("copy_paste", config.labeled_range[1])):
        kind = "unlabeled" if name == "cutmix" else "labeled"
        if getattr(config.augment, name) > 0 and patches == 1:
            raise ConfigError(f"augment.{name} mixes two {kind} patches and batch.{kind} = 1: make it at least 2")


def _check_split_quality(config: Config, catalog: Catalog, split: Split, note: Callable[[str], None]) -> list[Finding]:
    """Run the split gate: note its warnings, stop at a fault unless that is allowed; return the allowed faults."""
    findings = check_split(_with_labels(split, config.split.labels), catalog, near_copies=config.split.near_copies)
    faults = select_faults(findings)
    listed = "\n".join(f"- {describe_finding(fault)}" for fault in faults)
    if faults and not config.split.allow_faults:
        raise SplitError(
            f"the split cannot be trusted:\n{listed}\nMake another one with `ssl-seg split make`, or give "
            "--allow-split to train all the same; that is recorded in the run."
        )
    if any(fault.code == "missing_case" for fault in faults):
        raise SplitError(f"the split names cases that are not there:\n{listed}")
    for finding in findings:
        if finding.level != "info":
            note(f"split: {'ALLOWED FAULT' if finding.level == 'fault' else 'WARNING'} {describe_finding(finding)}")
    return faults


def _with_labels(split: Split, labels: float) -> Split:
    """Return the split with the labeled set that the run will use, and the whole pool: no other set was asked for."""
    ids, pool = split.labeled_ids(labels), split.fractions[1.0]
    return replace(split, fractions={labels if labels < 1 else len(ids) / len(pool): ids, 1.0: pool})
