"""Starting a run from the checkpoint of a smaller label fraction, and the gate in front of it.

An F1 above zero is no reason to build on a network: at 30 % foreground, predicting foreground everywhere scores 0.46.
The parent has to be better than that, and neither it nor a run that it builds on may have seen a label of the new
validation or test set.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ssl_seg.config import BootstrapConfig, DataConfig
from ssl_seg.config.layers import Layer, Nested, leave_out, to_plain
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.splits.files import split_from_dict
from ssl_seg.data.splits.split import Split, find_copies_of
from ssl_seg.errors import RefusedError, counted
from ssl_seg.inference.model import better_net, find_collapsed
from ssl_seg.methods import METHODS
from ssl_seg.monitor.verdicts import TRIVIAL_MARGIN
from ssl_seg.networks.checkpoint import Checkpoint

DEFAULTS = BootstrapConfig()


def parent_layer(config: Nested, source: str, given: Collection[str]) -> Layer:
    """Return a parent's settings as a layer below those of the new run.

    Left out: machine settings, the split file (the split itself is carried over), how the parent itself was started
    (section ``bootstrap`` and ``network.pretrained``: each start is decided anew), its pseudo-labels, what depends on a
    setting that the new run changes, and ``augment.invert`` where it is 0: more labels may show that it is wanted.

    Args:
        config: settings of the checkpoint, or the pre-training, that the new run starts from.
        source: its name, for messages.
        given: dotted keys that files and options of the new run set.
    """
    dropped = {"runtime", "split.file", "bootstrap", "network.pretrained", "data.pseudo_labels"}
    if "length.steps" in given:
        dropped.add("optim.warmup_steps")
    if "method.name" in given:
        dropped |= {"method.options", "batch.unlabeled"}
        if _has_planned_cutmix(config):
            dropped.add("augment.cutmix")
    if not config.get("augment", {}).get("invert"):
        dropped.add("augment.invert")
    if "data.root" in given:
        names = ("groups", "mask", "threshold", "label_values", "channels", "tiles", "unlabeled")
        dropped |= {f"data.{name}" for name in names}
    return Layer(source, leave_out(config, dropped))


def _has_planned_cutmix(config: Nested) -> bool:
    method = config.get("method", {}).get("name")
    return method in METHODS and config["augment"]["cutmix"] == METHODS[method].traits.cutmix


def choose_net(parent: Checkpoint, options: BootstrapConfig = DEFAULTS) -> str:
    """Return the parent's network that the new student starts from, ``student`` or ``teacher``."""
    return better_net(parent) if options.start == "better" else options.start


def _list_nets(parent: Checkpoint, options: BootstrapConfig) -> list[str]:
    """Return all networks of the parent that the new run builds on."""
    return list(dict.fromkeys([choose_net(parent, options), *([] if options.restart_ema else ["teacher"])]))


def check_parent(parent: Checkpoint, split: Split, options: BootstrapConfig = DEFAULTS) -> list[str]:
    """Return the reasons not to start from ``parent``; none when it may be used.

    Args:
        parent: the checkpoint.
        split: the split of the new run.
        options: which of its networks are used, and how much their margin must show.
    """
    leaks = _check_leaks(parent, split)
    if options.gate == "none":
        return leaks
    nets = _list_nets(parent, options)
    return [*(r for net in nets for r in _check_collapse(parent, net) or _check_margin(parent, net, options)), *leaks]


def check_finite(parent: Checkpoint, source: str, options: BootstrapConfig = DEFAULTS) -> None:
    """Check that the networks to build on are numbers. No gate and no --force lets others through.

    Args:
        parent: the checkpoint.
        source: its name, for the message.
        options: which of its networks are used.

    Raises:
        RefusedError: for weights or recorded outputs that are not finite.
    """
    for net in _list_nets(parent, options):
        weights = any(not torch.isfinite(v).all() for v in getattr(parent, net).values())
        if weights or parent.scores[net]["nonfinite"]:
            what = "holds NaN or infinity" if weights else "gives NaN or infinity on validation cases"
            raise RefusedError(
                f"{source} is refused as a start: its {net} {what}, and nothing can be learned from that. Use another "
                "checkpoint, or start from scratch"
            )


def _check_collapse(parent: Checkpoint, net: str) -> list[str]:
    if net not in find_collapsed(parent):
        return []
    return [f"its {net} had collapsed when its monitor last looked. `ssl-seg diagnose` says more about it."]


def describe_doubt(parent: Checkpoint, options: BootstrapConfig = DEFAULTS) -> str | None:
    """Return a warning where the parent's margin over the trivial baseline is within chance, or may be; else None.

    That is no reason to refuse it unless ``gate`` is ``interval``: with two labeled images and 55 very different
    validation images the interval is 0.2 wide (measured on EMPS), and would stop just the runs that two stages are for.
    """
    scores = [parent.scores[net] for net in _list_nets(parent, options)]
    doubts = [_show_margin(score) for score in scores if _is_within_chance(score)]
    doubts += [f"{s['margin']:+.3f}, has no interval ({why})" for s in scores if (why := s.get("margin_why"))]
    return f"the parent's margin over the trivial baseline, {doubts[0]}" if doubts else None


def describe_other_input(parent: Checkpoint, data: DataConfig) -> list[str]:
    """Return a warning for each setting by which the parent saw images of other intensities, or other voxel sizes."""
    before, now = parent.config["data"], to_plain(data)
    return [
        f"the parent learned with data.{key} = {before.get(key)} and this run has {now[key]}: its network now sees "
        "the same images in another way than it learned them"
        for key in ("window", "resample_to")
        if before.get(key) != now[key]
    ]


def describe_fewer_labels(parent: Checkpoint, labeled: Collection[str], labels: float) -> list[str]:
    """Return a warning where the new run has fewer labeled images than the parent learned with.

    Args:
        parent: the checkpoint.
        labeled: ids of the new run.
        labels: the amount that was asked for.
    """
    before = len(split_from_dict(parent.split).labeled_ids(parent.config["split"]["labels"]))
    if len(labeled) >= before:
        return []
    what = f"split.labels = {labels:g} gives this run {counted(len(labeled), 'labeled image')}"
    return [f"{what}, fewer than the {before} of the parent; 1.0 are all"]


def describe_parent(parent: Checkpoint, options: BootstrapConfig = DEFAULTS) -> dict[str, Any]:
    """Return what events.jsonl keeps about the parent."""
    net, doubt = choose_net(parent, options), describe_doubt(parent, options)
    return {"net": net, "step": parent.progress.step, "scores": parent.scores, "doubt": doubt}


def _is_within_chance(score: dict[str, Any]) -> bool:
    low = score.get("margin_low")
    return low is not None and low <= 0


def _show_margin(score: dict[str, Any]) -> str:
    interval = f"{score['margin_low']:+.3f} to {score['margin_high']:+.3f}"
    return f"{score['margin']:+.3f}, is within chance (95 % interval {interval})"


def _check_margin(parent: Checkpoint, net: str, options: BootstrapConfig) -> list[str]:
    scores, score = parent.scores, parent.scores[net]
    name = f"better net ({net})" if options.start == "better" and net == better_net(parent) else net
    if score["margin"] <= TRIVIAL_MARGIN:
        return [
            f"its {name} has validation F1 {score['f1_macro']:.3f}, predicting foreground everywhere "
            f"{scores['trivial_f1']:.3f}: a margin of {score['margin']:+.3f}, which is not above trivial "
            f"({TRIVIAL_MARGIN:+.2f} is required). Train the parent longer or with more labels."
        ]
    if options.gate == "margin":
        return []
    if score.get("margin_low") is None:
        why = score.get("margin_why") or "its run has not finished: finish it with --resume"
        return [
            f"the interval of the margin of its {name} is not known ({why}), and bootstrap.gate = interval asks "
            "for one. Use bootstrap.gate = margin, or more validation cases"
        ]
    if _is_within_chance(score):
        return [
            f"the margin of its {name} over the trivial baseline, {_show_margin(score)}, and bootstrap.gate = interval "
            "asks for more. Train the parent longer or with more labels, or use more validation cases."
        ]
    return []


def _check_leaks(parent: Checkpoint, split: Split) -> list[str]:
    own = split_from_dict(parent.split)
    own_labels = own.image_contents(own.labeled_ids(parent.config["split"]["labels"]))
    problems, seen = [], set(parent.seen_labels)
    for part, ids in (("validation", split.val), ("test", split.test)):
        leaks = [i for i in ids if split.image_contents([i]) & seen]
        if leaks:
            who = "the parent" if split.image_contents(leaks) & own_labels else "a run that the parent builds on"
            way = (
                "Use the parent's split (leave out --split and --data)."
                if split.fingerprint != own.fingerprint
                else "That run was forced: start from another parent."
            )
            problems.append(
                f"{counted(len(leaks), f'{part} case', 'of this run were')} among the labeled training cases "
                f"of {who}, for example '{leaks[0]}'. {way}"
            )
    return problems


def check_copies(parent: Checkpoint, split: Split, catalog: Catalog) -> list[str]:
    """Return the reasons not to start from ``parent`` that lie in near copies of images that it was labeled with.

    They are known only where the data of the new run hold those images too.
    """
    return [
        f"{counted(len(copies), f'{part} case', 'of this run look')} like copies of labeled training cases of the "
        f"parent, or of a run that it builds on, for example '{copies[0]}' (--allow-split overrides this)."
        for part, ids in (("validation", split.val), ("test", split.test))
        if (copies := find_copies_of(catalog, ids, parent.seen_labels))
    ]
