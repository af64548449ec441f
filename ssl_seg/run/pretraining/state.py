"""The checkpoint of a pre-training, and what a training takes over from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_seg.config import Config
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.content import image_of
from ssl_seg.data.sampling import derive_seed
from ssl_seg.data.splits.split import Split, find_copies_of
from ssl_seg.errors import CheckpointError, RefusedError, RunDirError, counted, quote
from ssl_seg.inference.model import make_network, start_network
from ssl_seg.networks.builders import get_network_spec
from ssl_seg.networks.checkpoint import PRETRAINING_FORMAT, read_content, write_content
from ssl_seg.networks.checkpoint_file import PRETRAINING_FILE
from ssl_seg.networks.parts import PARTS, find_tensors
from ssl_seg.networks.precision import seeded
from ssl_seg.run.directory import SPLIT_FILE, RunDir

VERSION = 2
CARRIED = ("data", "split", "network")
"""Sections that hold for a training from a pre-training as well, where it does not give them anew."""
_NOT_OF_THE_BODY = {"pretrained", "deep_supervision"}
"""Settings of the network in which a training may differ from its pre-training."""


@dataclass(frozen=True)
class Pretraining:
    """Contents of a checkpoint of ``ssl-seg pretrain``."""

    network: dict[str, Tensor]
    optimizer: dict[str, Any]
    step: int
    loss: tuple[float, int]
    """Sum of the losses since the last look, and how many there were."""
    config: dict[str, Any]
    split: dict[str, Any]
    seen: tuple[str, ...]
    """Contents, sorted, of all images of its training pool; see ``Split.image_contents``."""
    seen_wholes: tuple[str, ...]
    """Contents, sorted, of the images of which it saw parts."""
    result: dict[str, Any]
    """Error, baseline, gain and codes of the last look."""
    ending: str | None = None
    """How it ended; None while there are steps to make."""


def save_pretraining(state: Pretraining, path: Path) -> None:
    """Write atomically: a crash leaves the old file or the new one."""
    values = {name: getattr(state, name) for name in Pretraining.__dataclass_fields__}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    write_content({"format": PRETRAINING_FORMAT, "version": VERSION, **values}, path)


def load_pretraining(path: Path) -> Pretraining:
    """Read what ``save_pretraining`` wrote, onto the CPU.

    Args:
        path: the directory of a run, or its checkpoint.

    Raises:
        RunDirError: for a directory of another kind.
        CheckpointError: where there is no file, for one of another kind or version, or a damaged one.
    """
    if path.is_dir() and not (path / PRETRAINING_FILE).is_file():
        raise RunDirError(f"{path} is not a run of `ssl-seg pretrain`: it has no {PRETRAINING_FILE}")
    file = RunDir(path).last if path.is_dir() else path
    content = read_content(file)
    if not isinstance(content, dict) or content.get("format") != PRETRAINING_FORMAT:
        raise CheckpointError(f"{file} was not written by `ssl-seg pretrain`; from a trained network: --bootstrap")
    if content.get("version") != VERSION:
        raise CheckpointError(f"{file} has version {content.get('version')}; this program reads version {VERSION}")
    try:
        values = {name: content[name] for name in Pretraining.__dataclass_fields__}
        values |= {name: tuple(values[name]) for name in ("loss", "seen", "seen_wholes")}
        state = Pretraining(**values)
        sound = all(isinstance(value, Tensor) for value in state.network.values()) and isinstance(state.step, int)
        sound = sound and {"error", "baseline", "gain", "codes"} <= state.result.keys() and len(state.loss) == 2
        sound = sound and {"data", "split", "network"} <= state.config.keys()
    except (TypeError, AttributeError, KeyError):
        sound = False
    if not sound:
        raise CheckpointError(f"{file} is damaged: a part of it is not in the form that `ssl-seg pretrain` writes")
    return state


def check_seen(state: Pretraining, where: str, split: Split, catalog: Catalog, *, near_copies: bool) -> None:
    """Check that a pre-training has seen no image of validation and test: neither whole, nor a part, nor a copy.

    Args:
        state: the pre-training.
        where: its name, for the message.
        split: split of the new run.
        catalog: catalog of the new run.
        near_copies: whether images that look like ones it saw count too.

    Raises:
        RefusedError: otherwise, with the first one.
    """
    own_parts = {image_of(content) for content in state.split["content"].values()}
    seen, wholes = set(state.seen), set(state.seen_wholes)

    def has_leaked(case_id: str) -> bool:
        own, whole = split.image_contents([case_id]), catalog.whole_images.get(case_id)
        if own & (seen | wholes) or whole in seen:
            return True
        # Another part of an image that was cut in the same way has its own place in the split of the pre-training.
        return whole in wholes and not own <= own_parts

    for part, ids in (("validation", split.val), ("test", split.test)):
        leaks = [case_id for case_id in ids if has_leaked(case_id)]
        verb, how = "were", "seen in its training pool"
        if not leaks and near_copies:
            leaks = find_copies_of(catalog, ids, seen | wholes)
            verb, how = "look", "like copies of images that it saw"
        if leaks:
            run = RunDir(Path(where) if Path(where).is_dir() else Path(where).parent.parent)
            raise RefusedError(
                f"{where} is refused as a start: {counted(len(leaks), f'{part} case', f'of this run {verb}')} {how}, "
                f"for example '{leaks[0]}'. Train on its split (--split {quote(run.path / SPLIT_FILE)}), or pre-train "
                "on that of this run"
            )


def make_initial(config: Config) -> nn.Module:
    """Return the network as a training without a parent starts it, with the weights of a pre-training if it has one.

    Raises:
        SslSegError: for published or pre-trained weights that are missing or do not fit.
    """
    where = config.network.pretrained
    with seeded(derive_seed(config.seed)):  # as a training does
        network = make_network(config) if where is not None else start_network(config)
    if where is not None:
        load_body(network, load_pretraining(Path(where)), config, where)
    return network


def load_body(net: nn.Module, state: Pretraining, config: Config, where: str) -> None:
    """Put the weights of a pre-training into a network, all but those of its head.

    Args:
        net: the network that ``config`` describes.
        state: the pre-training.
        config: configuration of the new run.
        where: its name, for messages.

    Raises:
        CheckpointError: when it is another network, with all that differs.
        RefusedError: for weights that are not finite.
    """
    own, theirs = describe_body(config.model_dump(mode="json")), describe_body(state.config)
    differing = [key for key in sorted({*own, *theirs}) if own.get(key) != theirs.get(key)]
    tensors = net.state_dict()
    taken = tensors.keys() - find_tensors(net, PARTS[config.network.name](net).head)
    if not differing and any(
        name not in state.network or tensors[name].shape != state.network[name].shape for name in taken
    ):
        differing = ["data.patch_size"]
        own |= {"data.patch_size": list(config.data.patch_size)}
        theirs |= {"data.patch_size": list(state.config["data"]["patch_size"])}
    if differing:
        listed = "; ".join(f"{key} is {theirs.get(key)} there and {own.get(key)} here" for key in differing)
        raise CheckpointError(
            f"{where} holds a different network: {listed}. Give the same settings, or pre-train again"
        )
    if not all(bool(torch.isfinite(state.network[name]).all()) for name in taken):
        raise RefusedError(f"{where} is refused as a start: its weights hold NaN or infinity. Pre-train again")
    net.load_state_dict({**tensors, **{name: state.network[name] for name in taken}})


def describe_body(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide about the shapes and the meaning of all weights but those of the head."""
    network, data = config["network"], config["data"]
    body = {f"network.{key}": value for key, value in network.items() if key not in _NOT_OF_THE_BODY}
    if body.get("network.features") is None and isinstance(network.get("name"), str):
        body["network.features"] = get_network_spec(network["name"]).default_features
    if body.get("network.encoder_weights") not in (None, "none"):
        body["network.encoder_weights"] = "published"  # these have batch statistics, from whatever file
    return {**body, "data.channels": data["channels"], "axes of data.patch_size": len(data["patch_size"])}
