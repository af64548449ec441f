"""Starting a run from the checkpoint of a smaller label fraction, and the gate in front of it.

An F1 above zero is no reason to build on a network: at 30 % foreground, predicting foreground everywhere scores 0.46.
The parent has to be better than that, and must not have seen a label of the new validation or test set.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ssl_seg.checkpoint import Checkpoint
from ssl_seg.configio import Layer, Nested, flatten
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.splits.split import Split
from ssl_seg.inference.model import better_net
from ssl_seg.monitor.verdicts import TRIVIAL_MARGIN


def parent_layer(parent: Checkpoint, source: str, given: Collection[str]) -> Layer:
    """Return the parent's settings as a layer below those of the new run.

    Left out: machine settings, the split file (the split itself is carried over), and what depends on a setting that
    the new run changes.

    Args:
        parent: the checkpoint.
        source: its name, for messages.
        given: dotted keys that files and options of the new run set.
    """
    dropped = {"runtime", "split.file"}
    if "length.steps" in given:
        dropped.add("optim.warmup_steps")
    if "method.name" in given:
        dropped |= {"method.options", "batch.unlabeled"}
    if "data.root" in given:
        dropped |= {"data.groups", "data.label_values", "data.channels"}
    return Layer(source, _without(parent.config, dropped))


def check_parent(parent: Checkpoint, split: Split) -> list[str]:
    """Return the reasons not to start from ``parent``; none when it may be used.

    Args:
        parent: the checkpoint.
        split: the split of the new run.
    """
    return [*_check_margin(parent), *_check_leaks(split_from_dict(parent.split), parent, split)]


def describe_doubt(parent: Checkpoint) -> str | None:
    """Return a warning where the parent's margin over the trivial baseline is within chance, else None.

    That is no reason to refuse it: with two labeled images and 55 very different validation images the interval is
    0.2 wide (measured on EMPS), and would stop just the runs that two stages are for.
    """
    score = parent.scores[better_net(parent)]
    low = score.get("margin_low")
    if low is None or low > 0:
        return None
    return (
        f"the parent's margin over the trivial baseline, {score['margin']:+.3f}, is within chance "
        f"(95 % interval {low:+.3f} to {score['margin_high']:+.3f})"
    )


def describe_parent(parent: Checkpoint) -> dict[str, Any]:
    """Return what events.jsonl keeps about the parent."""
    net = better_net(parent)
    return {"net": net, "step": parent.progress.step, "scores": parent.scores, "doubt": describe_doubt(parent)}


def _check_margin(parent: Checkpoint) -> list[str]:
    scores, better = parent.scores, better_net(parent)
    margin = scores[better]["margin"]
    if margin > TRIVIAL_MARGIN:
        return []
    return [
        f"its better net ({better}) has validation F1 {scores[better]['f1']:.3f}, predicting foreground everywhere "
        f"{scores['trivial_f1']:.3f}: a margin of {margin:+.3f}, which is not above trivial ({TRIVIAL_MARGIN:+.2f} is "
        "asked for). Train the parent longer or with more labels."
    ]


def _check_leaks(parent_split: Split, parent: Checkpoint, split: Split) -> list[str]:
    seen_images = parent_split.image_contents(parent_split.labeled_ids(parent.config["split"]["labels"]))
    problems = []
    for part, ids in (("validation", split.val), ("test", split.test)):
        leaks = [i for i in ids if split.image_contents([i]) & seen_images]
        if leaks:
            problems.append(
                f"{len(leaks)} {part} case(s) of this run were labeled training cases of the parent, for example "
                f"'{leaks[0]}'. Use the parent's split (leave out --split and --data)."
            )
    return problems


def _without(values: Nested, dropped: Collection[str], prefix: str = "") -> Nested:
    return {
        key: _without(value, dropped, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in dropped
    }


def given_keys(layers: Collection[Layer]) -> set[str]:
    """Return the dotted keys that the layers set."""
    return {key for layer in layers for key, _ in flatten(layer.values)}
