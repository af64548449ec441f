"""From what an ablation asks for to cells with resolved settings and an identity, checked to be comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ssl_seg.ablation.results import Arm, Cell
from ssl_seg.ablation.spec import AblationSpec, CellSpec, layers_of, list_cells
from ssl_seg.config import Config
from ssl_seg.configio import Layer, flatten, nest, to_plain
from ssl_seg.data.catalog import Track, pass_through
from ssl_seg.data.splits.split import Split
from ssl_seg.errors import ConfigError, SslSegError
from ssl_seg.preflight import check_layers
from ssl_seg.prepare import Plan, TrainRequest, make_plan
from ssl_seg.sources import open_data_once
from ssl_seg.transfer import check_options

NOT_CONTENT = ("runtime", "data.root", "data.groups", "data.cache_mb", "data.disk_cache_gb", "split.file")
"""Settings that are no part of what a training is: machine matters, and places. The cases themselves are known by the
fingerprint of the split, which holds their content."""


def resolve_cells(spec: AblationSpec, *, gpu: bool, track: Track = pass_through) -> list[Cell]:
    """Return all cells, parents first.

    Args:
        spec: what is asked for.
        gpu: whether the cells will be trained on one; the plan of what the settings leave open depends on it.
        track: shows the progress.

    Raises:
        ConfigError: unusable settings, or cells that cannot be compared.
        SslSegError: unusable data or split.
    """
    listed = list_cells(spec)
    read = partial(open_data_once, {})
    plans: list[Plan] = []
    for cell in track(listed, len(listed)):
        try:
            layers = tuple(layers_of(spec, cell))
            check_layers(layers)
            plan = make_plan(TrainRequest(layers), gpu=gpu, read=read)
            if cell.rounds > 1:  # schedules follow from the length: they are planned for the longer one
                longer = Layer("ablation", nest("length.steps", cell.rounds * plan.config.length.steps))
                plan = make_plan(TrainRequest((*layers, longer)), gpu=gpu, read=read)
            check_options(plan.config, plan.sources, has_parent=cell.parent is not None)
            _check_processes(plan.config)
            plans.append(plan)
        except SslSegError as error:
            raise type(error)(f"cell '{cell.name}': {error}") from error
    _check_comparable(spec, listed, plans)
    ids: dict[tuple[Arm, int, int], str] = {}
    cells = []
    for cell, plan in zip(listed, plans, strict=True):
        parent = None if cell.parent is None else ids[cell.parent, cell.split_seed, cell.seed]
        resolved = _resolve(cell, plan, parent)
        ids[cell.arm, cell.split_seed, cell.seed] = resolved.id
        cells.append(resolved)
    return cells


def compute_cell_id(config: Mapping[str, Any], fingerprint: str, parent: str | None) -> str:
    """Return 16 hex digits over what a training is: settings but those of the machine, split, and parent. A precision
    counts where it is asked for; ``auto`` is that of the machine."""
    kept = {
        key: value
        for key, value in flatten(config)
        if not any(key == dropped or key.startswith(f"{dropped}.") for dropped in NOT_CONTENT)
        or (key == "runtime.precision" and value != "auto")
    }
    text = json.dumps([sorted(kept.items()), fingerprint, parent], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check_processes(config: Config) -> None:
    """A cell is trained by one process: several would make its batches larger, and no two cells be alike."""
    for name in ("devices", "num_nodes"):
        if (number := getattr(config.runtime, name)) != 1:
            raise ConfigError(
                f"runtime.{name} = {number}: a cell of an ablation is trained by one process on one device; leave it "
                "out, and give the number of cells at a time with --workers or --ray"
            )


def _resolve(cell: CellSpec, plan: Plan, parent: str | None) -> Cell:
    config = to_plain(plan.config)
    if config["runtime"]["memory_format"] == "auto":
        # Timed in each cell anew it would differ between cells, and equal trainings would end with other bits.
        config["runtime"]["memory_format"] = "contiguous"
    fingerprint = plan.split.fingerprint
    return Cell(
        compute_cell_id(config, fingerprint, parent),
        cell.name,
        cell.arm,
        cell.split_seed,
        cell.seed,
        parent,
        config,
        fingerprint,
        len(plan.split.labeled_ids(plan.config.split.labels)),
        plan.config.length.steps,
    )


def _check_comparable(spec: AblationSpec, cells: Sequence[CellSpec], plans: Sequence[Plan]) -> None:
    """All cells must differ in nothing but what is compared.

    Raises:
        ConfigError: with the first difference, and the two cells it is between.
    """
    views: dict[str, Callable[[Config, Split], Any]] = {
        "the validation cases": lambda _, split: (split.val, [split.content[i] for i in split.val]),
        "the test cases": lambda _, split: (split.test, [split.content[i] for i in split.test]),
        "the training cases": lambda _, split: sorted([*split.fractions[1.0], *split.unlabeled]),
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
