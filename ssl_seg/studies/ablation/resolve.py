"""From what an ablation asks for to cells with resolved settings and an identity, checked to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

from ssl_seg.config import Config
from ssl_seg.config.layers import Layer, nest, to_plain
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.open import open_data_once
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import ConfigError, SslSegError, counted
from ssl_seg.run.lint.conditions import DataFacts
from ssl_seg.run.lint.idle import (
    STANDS_FOR,
    Idle,
    describe_idle,
    find_given,
    find_given_idle,
    find_idle,
    list_effective,
    list_leaves,
)
from ssl_seg.run.preflight import gather_facts
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import Resolved, resolve
from ssl_seg.run.transfer import check_options
from ssl_seg.studies.ablation.cells import Cell
from ssl_seg.studies.ablation.spec import AXES, AblationSpec, Arm, CellSpec, describe_arm, layers_of, list_cells

NOT_CONTENT = (
    "runtime",
    "data.root",
    "data.groups",
    "data.unlabeled",
    "data.cache_mb",
    "data.disk_cache_gb",
    "split.file",
    "targets",
)
"""Settings that are no part of what a training is: machine matters, places, and what its scores are held
against. The cases themselves are known by the fingerprint of the split, which holds their content."""


@dataclass(frozen=True)
class _ResolvedCell:
    """A cell with its run, and the sources of the settings that are given: not those of its place on the axes."""

    cell: CellSpec
    sources: Mapping[str, str]
    plan: Resolved
    facts: DataFacts


def resolve_cells(
    spec: AblationSpec, *, gpu: bool, track: Track = pass_through, note: Callable[[str], None] = lambda _: None
) -> list[Cell]:
    """Return all cells, parents first.

    Args:
        spec: what is asked for.
        gpu: whether the cells will be trained on one; the plan of what the settings leave open depends on it.
        track: shows the progress.
        note: takes the warnings: of settings that change nothing, and of cells that are one training.

    Raises:
        ConfigError: unusable settings, cells that cannot be compared, or recipes or methods that are one training.
        SslSegError: unusable data or split.
    """
    listed = list_cells(spec)
    read = partial(open_data_once, {})
    resolved: list[_ResolvedCell] = []
    for cell in track(listed, len(listed)):
        try:
            resolved.append(_plan_cell(spec, cell, gpu=gpu, read=read))
        except SslSegError as error:
            raise type(error)(f"cell '{cell.name}': {error}") from error
    _check_comparable(spec, listed, [own.plan for own in resolved])
    ids: dict[tuple[Arm, int, int], str] = {}
    cells = []
    for own in resolved:
        cell = own.cell
        parent = None if cell.parent is None else ids[cell.parent, cell.split_seed, cell.seed]
        cells.append(_resolve(own, parent))
        ids[cell.arm, cell.split_seed, cell.seed] = cells[-1].id
    _check_different(spec, resolved, cells)
    for text in (*_list_idle(resolved), *_list_shared(resolved, cells)):
        note(text)
    return cells


def _plan_cell(spec: AblationSpec, cell: CellSpec, *, gpu: bool, read: Callable[..., Any]) -> _ResolvedCell:
    layers = tuple(layers_of(spec, cell))
    plan = resolve(TrainRequest(layers), gpu=gpu, read=read)
    if cell.rounds > 1:  # schedules follow from the length: they are planned for the longer one
        longer = Layer(AXES, nest("length.steps", cell.rounds * plan.config.length.steps))
        plan = resolve(TrainRequest((*layers, longer)), gpu=gpu, read=read)
    check_options(plan.config, plan.sources, has_parent=cell.parent is not None)
    _check_processes(plan.config)
    given = TrainRequest(tuple(layer for layer in layers if layer.source != AXES))
    return _ResolvedCell(cell, given.settings.sources, plan, gather_facts(plan))


def compute_cell_id(effective: Mapping[str, Any], fingerprint: str, parent: str | None) -> str:
    """Return 16 hex digits over what a training is: settings but those of the machine, split, and parent. A precision
    counts where it is asked for; ``auto`` is that of the machine.

    Args:
        effective: the settings that act; see ``list_effective``.
        fingerprint: fingerprint of the split.
        parent: id of the cell it starts from.
    """
    kept = {
        key: value
        for key, value in effective.items()
        if not any(key == dropped or key.startswith(f"{dropped}.") for dropped in NOT_CONTENT)
        or (key == "runtime.precision" and value != "auto")
    }
    text = json.dumps([sorted(kept.items()), fingerprint, parent], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_different(spec: AblationSpec, resolved: Sequence[_ResolvedCell], cells: Sequence[Cell]) -> None:
    """Refuse two recipes, or two methods, all cells of which are one training: nothing would be compared.

    Raises:
        ConfigError: with the two, and what they differ in.
    """
    for axis, names in (("recipe", tuple(spec.recipes)), ("method", spec.methods)):
        members = {name: [i for i, cell in enumerate(cells) if getattr(cell.arm, axis) == name] for name in names}
        for first, second in combinations(names, 2):
            pairs = list(zip(members[first], members[second], strict=True))
            if all(cells[a].id == cells[b].id for a, b in pairs):
                reason = _explain_same(resolved[pairs[0][0]], resolved[pairs[0][1]])
                raise ConfigError(
                    f"{axis}s '{first}' and '{second}' are the same training in all {counted(len(pairs), 'cell')}, so "
                    f"that nothing would be compared: {reason}. Leave one of them out, or change what acts."
                )


def _explain_same(first: _ResolvedCell, second: _ResolvedCell) -> str:
    """Return in what two cells that are one training differ, and why that does not matter."""
    pair = (first, second)
    plain = [dict(list_leaves(to_plain(own.plan.config))) for own in pair]
    differing = [key for key in dict.fromkeys([*plain[0], *plain[1]]) if plain[0].get(key) != plain[1].get(key)]
    texts = []
    for own in pair:
        idle = find_idle(own.plan.config, own.facts)
        found = [idle[key] for key in differing if key in idle and (find_given(key, own.sources) or key in STANDS_FOR)]
        texts += list(describe_idle(found, own.sources))
    return "; ".join(dict.fromkeys(text.rstrip(".") for text in texts)) or (
        f"{', '.join(differing)} cannot make a training different" if differing else "their settings are equal"
    )


def _list_idle(resolved: Sequence[_ResolvedCell]) -> Iterator[str]:
    """Yield a warning for each setting that changes nothing in all the cells that it is given for."""
    acting: set[tuple[str, str]] = set()
    idle: dict[tuple[str, str], tuple[Idle, _ResolvedCell]] = {}
    for own in resolved:
        found = {item.key: item for item in find_given_idle(own.plan.config, own.sources, own.facts)}
        for key, _ in list_leaves(to_plain(own.plan.config)):
            if (source := find_given(key, own.sources)) is None:
                continue
            if key in found:
                idle.setdefault((key, source), (found[key], own))
            else:
                acting.add((key, source))
    for where, (item, own) in idle.items():
        if where not in acting:
            yield from (f"WARNING {text}" for text in describe_idle([item], own.sources))


def _list_shared(resolved: Sequence[_ResolvedCell], cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a line for each two arms that have cells in common: these are trained once."""
    first: dict[str, int] = {}
    shared: dict[tuple[Arm, Arm], list[int]] = {}
    for index, cell in enumerate(cells):
        before = first.setdefault(cell.id, index)
        if before != index:
            shared.setdefault((cells[before].arm, cell.arm), []).append(index)
    for (one, other), places in shared.items():
        before = first[cells[places[0]].id]
        yield (
            f"'{describe_arm(other)}' and '{describe_arm(one)}' are the same training in "
            f"{counted(len(places), 'cell')}, which is made once: "
            f"{_explain_same(resolved[before], resolved[places[0]])}"
        )


def _check_processes(config: Config) -> None:
    """A cell is trained by one process: several would make its batches larger, and no two cells be alike."""
    for name in ("devices", "num_nodes"):
        if (number := getattr(config.runtime, name)) != 1:
            raise ConfigError(
                f"runtime.{name} = {number}: a cell of an ablation is trained by one process on one device; leave it "
                "out, and give the number of cells at a time with --workers or --ray"
            )


def _resolve(own: _ResolvedCell, parent: str | None) -> Cell:
    cell, plan = own.cell, own.plan
    config = to_plain(plan.config)
    if config["runtime"]["memory_format"] == "auto":
        # Timed in each cell anew it would differ between cells, and equal trainings would end with other bits.
        config["runtime"]["memory_format"] = "contiguous"
    fingerprint = plan.split.fingerprint
    return Cell(
        compute_cell_id(list_effective(plan.config, own.facts), fingerprint, parent),
        cell.name,
        cell.arm,
        cell.split_seed,
        cell.seed,
        parent,
        config,
        fingerprint,
        len(plan.labeled),
        plan.config.length.steps,
    )


def _check_comparable(spec: AblationSpec, cells: Sequence[CellSpec], plans: Sequence[Resolved]) -> None:
    """All cells must differ in nothing but what is compared.

    Raises:
        ConfigError: with the first difference, and the two cells it is between.
    """
    views: dict[str, Callable[[Config, Split], Any]] = {
        "the validation cases": lambda _, split: (split.val, [split.content[i] for i in split.val]),
        "the test cases": lambda _, split: (split.test, [split.content[i] for i in split.test]),
        "the training cases": lambda _, split: sorted([*split.fractions[1.0], *split.unlabeled]),
        "data.mask": lambda config, _: config.data.mask,
        "data.threshold": lambda config, _: config.data.threshold,
        "data.label_values": lambda config, _: config.data.label_values,
        "data.label_map": lambda config, _: config.data.label_map,
        "data.spacing": lambda config, _: config.data.spacing,
    }
    found = {what: [view(plan.config, plan.split) for plan in plans] for what, view in views.items()}
    # A start of scratch_long is longer by a factor that is the same for all its arms.
    steps = [plan.config.length.steps // cell.rounds for cell, plan in zip(cells, plans, strict=True)]
    for what, values in {"length.steps": steps, **found}.items():
        for cell, own in zip(cells, values, strict=True):
            if own != values[0]:
                shown = "" if what.startswith("the ") else f" ({_show(values[0])} and {_show(own)})"
                raise ConfigError(
                    f"'{cells[0].name}' and '{cell.name}' cannot be compared: {what} differ{shown}. An ablation "
                    "compares at equal steps and on equal cases: give such settings for all cells, under settings."
                )
    if spec.score.part == "test" and not plans[0].split.test:
        raise ConfigError("score.part is test, but the split has no test cases: score val, or give split.test_fraction")


def _show(value: Any) -> str:
    return json.dumps(value, default=str)
