"""From settings to the objects that feed a run: cases, the store that reads them, and the source of batches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssl_seg.config import Config, DataConfig
from ssl_seg.config.layers import Layer, merge_layers
from ssl_seg.data.catalog import Catalog, Track, open_catalog, parse_section, pass_through
from ssl_seg.data.disk_cache import open_disk_cache
from ssl_seg.data.layouts.groups import NO_GROUPS
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.reading import LABEL_SETTINGS, SETTINGS
from ssl_seg.data.splits.split import Split
from ssl_seg.data.store import CaseStore
from ssl_seg.data.synthetic import is_synthetic
from ssl_seg.monitor.ladder import ForegroundShift
from ssl_seg.networks.precision import choose_device

PATHS = ("root", "groups", "unlabeled")
"""Settings of the data section that say where files are."""

TARGET_RATIO = 0.5
"""Share of positive cases, and of patches centered on foreground, that an intervention goes to."""


def open_data(data: Mapping[str, Any], track: Track = pass_through) -> Catalog:
    """Return the cases that a (perhaps partial) ``data`` section describes.

    Raises:
        DataError: see ``open_catalog``.
    """
    root = data.get("root") or DataConfig.model_fields["root"].default
    return open_catalog(absolute_root(root), parse_section(data), track=track)


def device_of(layers: Sequence[Layer]) -> torch.device:
    """Return the device that the settings of a run ask for; the layers have been checked.

    Raises:
        ConfigError: for a device that this machine does not have.
    """
    section = merge_layers(layers)[0].get("runtime") or {}
    return choose_device(section.get("accelerator", "auto"))


def open_data_once(known: dict[str, Catalog], data: Mapping[str, Any], track: Track = pass_through) -> Catalog:
    """Return the cases of a ``data`` section; ``known`` keeps them for further runs that read the same.

    Raises:
        DataError: see ``open_catalog``.
    """
    key = describe_cases(data)
    if key not in known:
        known[key] = open_data(data, track)
    return known[key]


def describe_cases(data: Mapping[str, Any]) -> str:
    """Return what says which cases a ``data`` section stands for: equal texts, equal cases."""
    return json.dumps([data.get(name) for name in (*PATHS, "layout", *LABEL_SETTINGS, "tiles", *SETTINGS)])


def absolute_root(root: str) -> str:
    """Return a data set's folder as an absolute path; the name of a synthetic one as it is."""
    return root if is_synthetic(root) else str(Path(root).expanduser().resolve())


def absolute_paths(data: Mapping[str, Any]) -> dict[str, str]:
    """Return those settings of a ``data`` section that are paths, absolute; ``none`` in the place of a path stays."""
    given = {name: data.get(name) for name in PATHS}
    return {name: absolute_root(v) for name, v in given.items() if isinstance(v, str) and Path(v) != NO_GROUPS}


def open_store(catalog: Catalog, data: DataConfig) -> CaseStore:
    """Return the reader of the cases."""
    return CaseStore(
        catalog,
        data.channels,
        data.cache_mb * 2**20,
        disk_cache=open_disk_cache(data.disk_cache_gb),
        resample_to=data.resample_to,
        spacing=data.spacing,
        window=data.window,
    )


def make_source(config: Config, store: CaseStore, split: Split, *, rank: int = 0, world_size: int = 1) -> PatchSource:
    """Return the batches of a run, for one of its processes.

    Raises:
        SplitError: if a training case is in the sealed test list.
    """
    labeled, pool = split.labeled_ids(config.split.labels), split.pool_ids(config.split.labels)
    split.check_not_sealed([*labeled, *pool, *split.val])
    facts = store.catalog.facts
    fewest, most = config.labeled_range
    return PatchSource(
        store,
        labeled,
        pool if config.batch.unlabeled else (),
        (most, config.batch.unlabeled),
        config.data.patch_size,
        config.data.foreground_ratio,
        config.augment,
        config.seed,
        rank,
        world_size,
        positive=frozenset(i for i in labeled if i in facts and (facts[i].foreground or 0.0) > 0),
        positive_ratio=config.batch.positive_ratio,
        fewest=fewest if config.policies.random_batch_size else None,
    )


def shift_foreground_share(source: PatchSource, foreground: ForegroundShift | None) -> PatchSource:
    """Return a source whose labeled patches hold more foreground than the settings say, or less; None changes nothing.

    More: half of the patches from cases with foreground, half of them centered on it. Less: patches from random places.
    """
    if foreground is None:
        return source
    if foreground == "less":
        return replace(source, positive_ratio=None, foreground_ratio=0.0)
    mixed = 0 < len(source.positive) < len(source.labeled)
    return replace(
        source,
        positive_ratio=max(source.positive_ratio or 0.0, TARGET_RATIO) if mixed else source.positive_ratio,
        foreground_ratio=max(source.foreground_ratio, TARGET_RATIO) if source.positive else source.foreground_ratio,
    )
