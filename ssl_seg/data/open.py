"""From settings to the data of a run: its cases, the store that reads them, and the source of its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_seg.config import Config, DataConfig
from ssl_seg.data.catalog import Catalog, Track, open_catalog, parse_section, pass_through
from ssl_seg.data.disk_cache import open_disk_cache
from ssl_seg.data.layouts.groups import NO_GROUPS
from ssl_seg.data.loader import PatchSource
from ssl_seg.data.pseudo_labels import PseudoLabelSet
from ssl_seg.data.sampling import ForegroundShift
from ssl_seg.data.store import CaseStore
from ssl_seg.data.synthetic import is_synthetic

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
    """Return a key for the cases that a ``data`` section stands for: sections with equal keys have equal cases."""
    return repr((data.get("root"), parse_section(data)))


def absolute_root(root: str) -> str:
    """Return a data set's folder as an absolute path; the name of a synthetic one as it is."""
    return root if is_synthetic(root) else str(Path(root).expanduser().resolve())


def absolute_paths(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings of a ``data`` section that are paths, as absolute paths, without those that are ``none``."""
    given = {name: data.get(name) for name in (*PATHS, "pseudo_labels")}
    return {name: absolute_root(v) for name, v in given.items() if isinstance(v, str) and Path(v) != NO_GROUPS}


def open_store(catalog: Catalog, data: DataConfig, pseudo_labels: PseudoLabelSet | None = None) -> CaseStore:
    """Return the reader of the cases; those with pseudo-labels have these as targets."""
    return CaseStore(
        catalog if pseudo_labels is None else pseudo_labels.describe(catalog),
        data.channels,
        data.cache_mb * 2**20,
        disk_cache=open_disk_cache(data.disk_cache_gb),
        resample_to=data.resample_to,
        window=data.window,
        targets={} if pseudo_labels is None else pseudo_labels.files,
    )


def make_source(
    config: Config,
    store: CaseStore,
    labeled: Sequence[str],
    unlabeled: Sequence[str],
    *,
    rank: int = 0,
    world_size: int = 1,
    strong_views: int = 1,
) -> PatchSource:
    """Return the batches of a run, for one of its processes.

    Where the store has pseudo-labels, their cases are drawn among the labeled ones, which are repeated until they are
    about as many (as in ST++, Yang et al. 2022).

    Args:
        labeled, unlabeled: ids of the training cases.
        strong_views: number of strong views of an unlabeled patch, at least 1.
    """
    facts, pseudo = store.catalog.facts, tuple(store.targets)
    repeats = max(1, round(len(pseudo) / max(len(labeled), 1)))
    labeled = (*labeled,) * repeats + pseudo
    fewest, most = config.labeled_range
    positive = frozenset(i for i in labeled if i in facts and (facts[i].foreground or 0.0) > 0)
    return PatchSource(
        store,
        labeled,
        tuple(unlabeled) if config.batch.unlabeled else (),
        (most, config.batch.unlabeled),
        config.data.patch_size,
        config.data.foreground_ratio,
        config.augment,
        config.seed,
        rank,
        world_size,
        positive=positive,
        positive_ratio=config.batch.positive_ratio,
        foreground_share=config.batch.foreground_share if positive else None,
        fewest=fewest if config.policies.random_batch_size else None,
        strong_views=strong_views,
    )


def shift_foreground_share(source: PatchSource, shift: ForegroundShift | None) -> PatchSource:
    """Return a source whose labeled patches hold more foreground than the settings ask for, or less.

    More: half of the patches from cases with foreground, half of them centered on it, or half of the voxels where
    ``foreground_share`` is given. Less: patches from random places. None changes nothing.
    """
    if shift is None:
        return source
    if shift == "less":
        return replace(source, positive_ratio=None, foreground_ratio=0.0, foreground_share=None)
    mixed = 0 < len(source.positive) < len(source.labeled)
    return replace(
        source,
        positive_ratio=max(source.positive_ratio or 0.0, TARGET_RATIO) if mixed else source.positive_ratio,
        foreground_ratio=max(source.foreground_ratio, TARGET_RATIO) if source.positive else source.foreground_ratio,
        foreground_share=source.foreground_share and max(source.foreground_share, TARGET_RATIO),
    )
