"""One ``.pt`` file of tensors and plain types: loading it cannot run code.

Top level of the file::

    format, version            which program wrote it, and which layout; only one is read
    student, teacher           state dicts of the plain networks: one output each, whatever the method trains
    progress                   {"step", "ema_updates", "start_score", "history", "collapsed", "ending"}; with the seed
                               in the config this is also the state of every random draw, of the samplers and of the
                               policies: all are functions of seed, rank, step and the ranking scores of the epochs
    config, split              the resolved settings and the split, as plain types
    scores                     validation scores of both nets: of the last look; on whole cases once the run has ended
    seen_labels                what identifies the images whose labels the networks have learned from

All other entries are the states of the parts of the run by name (``Session.parts``), from which it goes on: the
optimizer, the memory of the monitor and so on. swa.pt has none: no run goes on from it.
"""

from __future__ import annotations

import math
import pickle
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ssl_seg.errors import CheckpointError, is_out_of_memory
from ssl_seg.files import atomic_write
from ssl_seg.networks.checkpoint_file import check_checkpoint_file, describe_pretraining, has_sound_sums
from ssl_seg.networks.parts import find_tensors

FORMAT, VERSION = "ssl_seg.checkpoint", 6
PRETRAINING_FORMAT = "ssl_seg.pretraining"
"""What a checkpoint of `ssl-seg pretrain` is known by; see ``pretraining.state``."""
COLLAPSE_PENALTY = 2.0
"""What the scores of collapsed networks are lowered by: all scores lie within 1 of each other, in [0, 1] or [-1, 0]."""


@dataclass(frozen=True)
class RunProgress:
    """How far the run is, and what its validation scores were."""

    step: int = 0
    ema_updates: int = 0
    start_score: float = -math.inf
    """Selection score of the networks at step 0."""
    history: tuple[float, ...] = ()
    """Selection score at the end of each finished epoch."""
    collapsed: tuple[int, ...] = ()
    """Numbers of finished epochs (0: the start) at whose look the networks had collapsed."""
    ending: str | None = None
    """How the training ended, a ``TrainingEnding``; None while there are steps to make. The final scores and the last
    event may not have been written yet."""

    @property
    def ranking_scores(self) -> tuple[float, ...]:
        """Scores of the start and of each finished epoch, in an order that choices may rely on: collapsed networks come
        behind all others, whatever their score.

        At 30 % foreground, predicting it everywhere has an F1 of 0.46, which a network that is learning may not have
        yet. Best checkpoints, early stopping, plateaus and rollbacks go by these.
        """
        scores = (self.start_score, *self.history)
        return tuple(
            score - COLLAPSE_PENALTY if epoch in self.collapsed else score for epoch, score in enumerate(scores)
        )

    @property
    def best_score(self) -> float:
        """The score of best.pt."""
        return (self.start_score, *self.history)[self.rank_epochs()[0]]

    def add_epoch(self, step: int, score: float, *, has_collapsed: bool) -> RunProgress:
        """Return the progress with the look at the end of one more epoch."""
        collapsed = (*self.collapsed, len(self.history) + 1) if has_collapsed else self.collapsed
        return replace(self, step=step, history=(*self.history, score), collapsed=collapsed)

    def rank_epochs(self) -> list[int]:
        """Return the numbers of epochs finished when the scores were reached (0: the start), best first.

        Collapsed networks come last. Of equal scores the earlier one is better; networks with NaN outputs are left out,
        unless all are of that kind.
        """
        ranking_scores = self.ranking_scores
        finite = [epoch for epoch, score in enumerate(ranking_scores) if score > -math.inf]
        return sorted(finite, key=lambda epoch: -ranking_scores[epoch]) or [0]


@dataclass(frozen=True)
class Checkpoint:
    """Contents of a checkpoint file."""

    student: dict[str, Tensor]
    teacher: dict[str, Tensor]
    progress: RunProgress
    config: dict[str, Any]
    split: dict[str, Any]
    scores: dict[str, Any]
    seen_labels: tuple[str, ...]
    """Contents, sorted, of the images that were labeled in this run or in any that it builds on (see
    ``Split.image_contents``). Images that were only unlabeled, or only in validation, are not among them."""
    parts: dict[str, Any] = field(default_factory=dict)
    """States of the parts of the run, by name."""


class Part(Protocol):
    """Something with a state that a run goes on from; modules and optimizers are parts as they are."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as tensors and plain types; empty while there is nothing to keep."""
        ...

    def load_state_dict(self, state: Any, /) -> Any:
        """Continue from a state."""
        ...


@dataclass(frozen=True)
class Rest:
    """The part of a trained module, or of its average, that lies outside the plain network in it; it may be empty."""

    module: nn.Module
    plain: nn.Module

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors."""
        inside = find_tensors(self.module, [self.plain])
        return {name: value for name, value in self.module.state_dict().items() if name not in inside}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors; their names must be those of ``state_dict``."""
        own = self.module.state_dict()
        self.module.load_state_dict({name: own[name] for name in find_tensors(self.module, [self.plain])} | state)


def load_parts(parts: Mapping[str, Part], checkpoint: Checkpoint, where: str) -> None:
    """Continue each part from its state in a checkpoint.

    Args:
        parts: by name; one whose state is empty need not be in the file.
        checkpoint: the checkpoint.
        where: its name, for messages.

    Raises:
        CheckpointError: for a state that is missing or does not fit.
    """
    for name, part in parts.items():
        try:
            if state := checkpoint.parts.get(name):
                part.load_state_dict(state)
                if isinstance(part, torch.optim.Optimizer):
                    _check_moments(part)
            elif part.state_dict():
                raise KeyError(name)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise CheckpointError(
                f"{where} is damaged: its part '{name}' is missing or does not fit the run"
            ) from error


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Check that what an optimizer remembers has the shape of its parameter, which torch does not ask.

    Raises:
        ValueError: where it has not.
    """
    for parameter, state in optimizer.state.items():
        if any(isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape for value in state.values()):
            raise ValueError(f"a state of another shape than {tuple(parameter.shape)}")


def save_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Write atomically: a crash leaves the old file or the new one.

    Raises:
        ValueError: for a part that is called like another entry of the file, and would take its place.
    """
    if taken := checkpoint.parts.keys() & {"format", "version", *_FIELDS}:
        raise ValueError(f"a part of the run is called '{min(taken)}', as another entry of a checkpoint is: rename it")
    content = {name: getattr(checkpoint, name) for name in _FIELDS}
    content = {"format": FORMAT, "version": VERSION, **content, **checkpoint.parts}
    content["progress"] = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(checkpoint.progress).items()}
    content["seen_labels"] = list(checkpoint.seen_labels)
    write_content(content, path)


def write_content(content: dict[str, Any], path: Path) -> None:
    """Write tensors and plain types atomically."""
    # Through a file of ours: torch hides the system's error, a full disk for example, when it opens the file itself.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(path: Path, *, lazy: bool = False) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        lazy: read tensors only when they are looked at, without their checksums; for a look at the progress or the
            scores.

    Raises:
        CheckpointError: when the file is missing, damaged, no checkpoint of this program, of another version, or holds
            anything but tensors and plain types.
    """
    return _parse(read_content(path, lazy=lazy), path)


def read_content(path: Path, *, lazy: bool = False) -> Any:
    """Return what ``write_content`` wrote, on the CPU; loading it cannot run code.

    Raises:
        CheckpointError: when the file is missing, damaged, or holds anything but tensors and plain types.
    """
    check_checkpoint_file(path)
    unreadable = f"{path} is not a readable checkpoint: it is damaged or of another kind"
    if not lazy and not has_sound_sums(path):
        raise CheckpointError(unreadable)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about foreign file layouts before it refuses them
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is refused: it is damaged, or holds objects other than tensors and plain types "
            "(loading such a file could run code). Use a checkpoint written by `ssl-seg train`."
        ) from error
    except _UNREADABLE as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(unreadable) from error
    if (kind := find_odd_tensor(content)) is not None:
        raise CheckpointError(f"{path} is refused: it holds {kind}, which no checkpoint of this program does")
    return content


def find_odd_tensor(content: Any) -> str | None:
    """Return what kind of tensor is in a nest of dicts and lists that is not plain real numbers, each stored; or None.

    Of complex numbers the imaginary part would be dropped in silence; an expanded tensor may claim any size.
    """
    return next((kind for tensor in _list_tensors(content) if (kind := _describe_odd(tensor)) is not None), None)


def _list_tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for item in content.values() if isinstance(content, Mapping) else content:
            yield from _list_tensors(item)


def _describe_odd(tensor: Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.is_nested:
        return "a sparse or nested tensor"
    if tensor.device.type != "cpu":
        return "a tensor without values"
    if tensor.is_complex() or tensor.is_quantized:
        return "complex or quantized numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"a tensor of shape {tuple(tensor.shape)} without as many numbers"
    return None


def load_weights(net: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load ``state`` into ``net``.

    Raises:
        CheckpointError: when names or shapes differ, with the first difference and the likely cause.
    """
    own = net.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        example = f"no '{missing[0]}' in the file" if missing else f"'{unknown[0]}' is not in the network"
        raise CheckpointError(f"{where} holds a different network: {example}. Use the same network.name and norm.")
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise CheckpointError(
                f"{where} does not fit: '{name}' is {tuple(state[name].shape)} in the file and {tuple(value.shape)} "
                "in the network. Use the same number of classes, channels, network.features and patch size."
            )
        if value.is_floating_point() != state[name].is_floating_point():
            raise CheckpointError(f"{where} does not fit: '{name}' holds {state[name].dtype}, expected {value.dtype}")
    net.load_state_dict(state)


def _parse(content: Any, path: Path) -> Checkpoint:
    if isinstance(content, dict) and content.get("format") == PRETRAINING_FORMAT:
        raise CheckpointError(describe_pretraining(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no checkpoint of this program (its 'format' is not '{FORMAT}')")
    if (version := content.get("version")) != VERSION:
        raise CheckpointError(
            f"{path} has checkpoint version {version}; this program reads version {VERSION}: use the version of "
            "ssl_seg that wrote it, or train again"
        )
    if missing := [name for name in _FIELDS if name not in content]:
        raise CheckpointError(f"{path} is incomplete: no '{missing[0]}'")
    try:
        progress, seen = _parse_progress(content["progress"]), tuple(content["seen_labels"])
        values = {name: content[name] for name in _FIELDS} | {"progress": progress, "seen_labels": seen}
        parts = {name: state for name, state in content.items() if name not in {"format", "version", *_FIELDS}}
        checkpoint = Checkpoint(**values, parts=parts)
        sound = _is_sound(checkpoint)
    except (TypeError, AttributeError, KeyError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} is damaged: a part of it is not in the form that `ssl-seg train` writes")
    return checkpoint


def _parse_progress(values: dict[str, Any]) -> RunProgress:
    return RunProgress(**{**values, "history": tuple(values["history"]), "collapsed": tuple(values["collapsed"])})


def _is_sound(checkpoint: Checkpoint) -> bool:
    """Return whether every part has its type; what is in config and split is checked by their own readers."""
    progress, scores = checkpoint.progress, checkpoint.scores
    nets = (checkpoint.student, checkpoint.teacher)
    return (
        all(isinstance(net, dict) and all(isinstance(v, Tensor) for v in net.values()) for net in nets)
        and all(isinstance(section, dict) for section in (checkpoint.config, checkpoint.split))
        and all(isinstance(state, dict | None) for state in checkpoint.parts.values())
        and all(isinstance(n, int) and n >= 0 for n in (progress.step, progress.ema_updates))
        and all(isinstance(v, float) and not math.isnan(v) for v in (progress.start_score, *progress.history))
        and all(isinstance(n, int) and 0 <= n <= len(progress.history) for n in progress.collapsed)
        and isinstance(progress.ending, str | None)
        and all(isinstance(content, str) for content in checkpoint.seen_labels)
        and all(
            isinstance(scores[net][key], float)
            for net in ("student", "teacher")
            for key in ("f1", "f1_macro", "margin")
        )
        and isinstance(scores["trivial_f1"], float)
        and all(isinstance(scores[net]["nonfinite"], int) for net in ("student", "teacher"))
        and scores["selected"]["net"] in ("student", "teacher")
        and isinstance(scores["selected"]["collapsed"], list)
    )


_UNREADABLE = (
    RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, IndexError, TypeError, AssertionError,
    OverflowError, struct.error,
)  # fmt: skip
_FIELDS = tuple(name for name in Checkpoint.__dataclass_fields__ if name != "parts")
