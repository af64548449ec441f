"""Checks of a resolved run against its data, before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ssl_seg.config import Config, DataConfig
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.findings import Finding, describe_finding, select_faults
from ssl_seg.data.layouts import EXTRA
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.store import GRAY_FOR_COLOR
from ssl_seg.data.volumes import takes_axes
from ssl_seg.errors import ConfigError, DataError, SplitError, counted
from ssl_seg.methods import METHODS, check_traits
from ssl_seg.networks.builders import check_deep_supervision, check_patch_size
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.resolve import Resolved
from ssl_seg.run.resources import check_memory
from ssl_seg.run.settings import check_loss_classes


def check_with_data(resolved: Resolved, note: Callable[[str], None]) -> tuple[Finding, ...]:
    """Check the settings and the split of a run against its data.

    Args:
        resolved: the run.
        note: takes the warnings about the split.

    Returns:
        The faults of the split that ``split.allow_faults`` let pass.

    Raises:
        SslSegError: the first thing that is wrong.
    """
    config, catalog, split = resolved.config, resolved.catalog, resolved.split
    check_patch_size(config.network.name, config.data.patch_size)
    check_deep_supervision(config.network.name, config.data.patch_size, config.network.deep_supervision)
    check_traits(config.method.name, config.network)
    if config.data.ndim != catalog.ndim:
        raise ConfigError(
            f"data.patch_size {list(config.data.patch_size)} is for {config.data.ndim}D; {catalog.root} holds "
            f"{catalog.ndim}D images"
        )
    if catalog.channels != config.data.channels and (catalog.channels, config.data.channels) != GRAY_FOR_COLOR:
        raise ConfigError(f"data.channels = {config.data.channels}; the images have {catalog.channels}")
    check_loss_classes(config.loss, config.data.num_classes)
    _check_spacing(config.data, catalog)
    _check_mixing(config)
    if not split.val:
        raise SplitError("the split has no validation cases, so the run could not be monitored: make a new split")
    if config.data.unlabeled is not None and not any(case_id.startswith(EXTRA) for case_id in split.unlabeled):
        if not any(case.id.startswith(EXTRA) for case in catalog.cases):
            raise SplitError(
                f"data.unlabeled = {config.data.unlabeled}: all its images are cases of {catalog.root} already. Leave "
                "it out (--unlabeled), or name a folder of others"
            )
        raise SplitError(
            f"data.unlabeled = {config.data.unlabeled}: the split holds none of these images. Make another one with "
            "`ssl-seg split make --unlabeled`, or leave them out"
        )
    faults = _check_split_quality(resolved, note)
    check_memory(config, catalog, split)
    unlabeled = len(resolved.unlabeled)
    if METHODS[config.method.name].traits.uses_unlabeled and unlabeled and config.batch.unlabeled == 0:
        raise ConfigError(
            f"method.name = '{config.method.name}' learns from unlabeled images and there are {unlabeled}, but "
            "batch.unlabeled = 0: set it to batch.labeled, or use method.name = 'supervised'"
        )
    return faults


def gather_facts(resolved: Resolved) -> DataFacts:
    """Return the facts about the data of a run that decide which of its settings act.

    Faults of the split are among them once ``resolved`` holds those that are allowed; before, there may be some.
    """
    config, catalog = resolved.config, resolved.catalog
    masks = catalog.facts.values()
    return DataFacts(
        len(resolved.labeled),
        sum((catalog.facts[i].foreground or 0.0) > 0 for i in resolved.labeled if i in catalog.facts),
        len(resolved.unlabeled),
        maps=any(facts.mapped for facts in masks),
        ignores=any(facts.annotated == 0 or config.data.ignore_value in (facts.values or ()) for facts in masks),
        has_gaps=any(facts.missing for facts in masks),
        takes_axes=any(takes_axes(case.image) for case in catalog.cases),
        has_copies=bool(catalog.likeness.copies),
        has_faults=resolved.faults is None or bool(resolved.faults),
    )


def _check_spacing(data: DataConfig, catalog: Catalog) -> None:
    unknown = [i for i, facts in catalog.facts.items() if facts.spacing is None]
    if data.resample_to is not None and unknown:
        raise DataError(
            f"data.resample_to = {list(data.resample_to)}, but {counted(len(unknown), 'image', 'do')} not say how "
            f"large a voxel is, for example '{unknown[0]}'. Give data.spacing, which applies to all, or leave out "
            "resample_to."
        )


def _check_mixing(config: Config) -> None:
    """Check that CutMix and copy-paste find a partner in the same batch."""
    for name, patches in (("cutmix", config.batch.unlabeled), ("copy_paste", config.labeled_range[1])):
        kind = "unlabeled" if name == "cutmix" else "labeled"
        if getattr(config.augment, name) > 0 and patches == 1:
            raise ConfigError(f"augment.{name} mixes two {kind} patches and batch.{kind} = 1: make it at least 2")


def _check_split_quality(resolved: Resolved, note: Callable[[str], None]) -> tuple[Finding, ...]:
    """Note the warnings about a split, and return its faults, which have to be allowed.

    Raises:
        SplitError: for faults that are not allowed, and for cases that are not there.
    """
    split, options = resolved.split, resolved.config.split
    # Only the labeled set of this run is checked, and the whole pool: no other set was asked for.
    pool = split.fractions[1.0]
    share = options.labels if options.labels < 1 else len(resolved.labeled) / len(pool)
    used = replace(split, fractions={share: resolved.labeled, 1.0: pool})
    findings = check_split(used, resolved.catalog, near_copies=options.near_copies)
    faults = tuple(select_faults(findings))
    listed = "\n".join(f"- {describe_finding(fault)}" for fault in faults)
    if faults and not options.allow_faults:
        raise SplitError(
            f"the split cannot be trusted:\n{listed}\nMake another one with `ssl-seg split make` for --split, or give "
            "--allow-split to train anyway; the run records it."
        )
    if any(fault.code == "missing_case" for fault in faults):
        raise SplitError(f"the split names cases that are not there:\n{listed}")
    for finding in findings:
        if finding.level != "info":
            note(f"split: {'ALLOWED FAULT' if finding.level == 'fault' else 'WARNING'} {describe_finding(finding)}")
    return faults
