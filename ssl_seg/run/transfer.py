"""What a new run takes over from its parent's networks: section ``bootstrap`` of the settings, applied."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ssl_seg.config import Config
from ssl_seg.config.hints import find_source
from ssl_seg.errors import ConfigError
from ssl_seg.methods import METHODS
from ssl_seg.networks.checkpoint import Checkpoint, load_weights
from ssl_seg.networks.parts import PARTS, find_tensors
from ssl_seg.run.bootstrap import DEFAULTS, choose_net


def check_options(config: Config, sources: Mapping[str, str], *, has_parent: bool) -> None:
    """Check the section ``bootstrap`` against the rest of the settings.

    Args:
        config: configuration of the new run.
        sources: sources of its dotted keys, for messages.
        has_parent: whether there is a parent.

    Raises:
        ConfigError: for options without a parent, or that cannot act in this run.
    """
    options = config.bootstrap

    def name(key: str) -> str:
        return f"{find_source(f'bootstrap.{key}', sources)}bootstrap.{key} = {getattr(options, key)}"

    given = [key for key, value in options if value != getattr(DEFAULTS, key)]
    if given and not has_parent:
        rule = "says what to take over from a parent, and there is none. Give --bootstrap CHECKPOINT, or leave it out"
        raise ConfigError("\n".join(f"{name(key)}: {rule}" for key in given))
    if options.pseudo_label_steps > 0 and not METHODS[config.method.name].traits.uses_teacher:
        able = ", ".join(name for name, method in METHODS.items() if method.traits.uses_teacher)
        raise ConfigError(
            f"{name('pseudo_label_steps')}: method.name = '{config.method.name}' learns nothing from a teacher. Use 0, "
            f"or another method ({able})"
        )
    if options.pseudo_label_steps >= config.length.steps:
        raise ConfigError(
            f"{name('pseudo_label_steps')}: must be below length.steps = {config.length.steps}, or the teacher would "
            "be the parent to the end"
        )
    if not options.restart_ema and config.ema.schedule != "constant":
        raise ConfigError(
            f"{name('restart_ema')}: continues the parent's count of updates, with which ema.schedule = "
            f"{config.ema.schedule} would be near its end from the first step. Use true, or ema.schedule = constant"
        )


def load_student(student: nn.Module, parent: Checkpoint, config: Config, where: str) -> None:
    """Put the parent's weights into a new student; what is not taken over stays as it was initialized.

    Args:
        student: the network that ``config`` describes.
        parent: the checkpoint.
        config: configuration of the new run.
        where: name of the checkpoint, for messages.

    Raises:
        CheckpointError: when what is to be taken over does not fit.
    """
    options, state = config.bootstrap, getattr(parent, choose_net(parent, config.bootstrap))
    if options.parts == "all" and not options.reset_head:
        load_weights(student, state, where)
        return
    own, parts = student.state_dict(), PARTS[config.network.name](student)
    encoder, head = find_tensors(student, parts.encoder), find_tensors(student, parts.head)
    taken = encoder if options.parts == "encoder" else own.keys() - head
    new = {name: value for name, value in own.items() if name not in taken}
    load_weights(student, new | {name: value for name, value in state.items() if name in taken}, where)


def load_teacher(teacher: nn.Module, parent: Checkpoint, config: Config, where: str) -> int:
    """Put the parent's weights into a new teacher, where it does not start as a copy of the student.

    Args:
        teacher: a copy of the new student.
        parent, config, where: as for ``load_student``.

    Returns:
        The number of updates that its average has had.

    Raises:
        CheckpointError: when the parent's network does not fit.
    """
    options = config.bootstrap
    if options.pseudo_label_steps > 0:
        load_weights(teacher, getattr(parent, choose_net(parent, options)), where)
    if options.restart_ema:
        return 0
    load_weights(teacher, parent.teacher, where)
    # Updates that only counted the steps in which the parent's own teacher was held are none of an average.
    held: int = parent.config.get("bootstrap", {}).get("pseudo_label_steps", 0)
    return max(parent.progress.ema_updates - held, 0)
