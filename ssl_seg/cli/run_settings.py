"""The options that set a run, as layers of its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.cli.numbers import POSITIVE, number, parse_numbers, split_words

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer

KEYS = {
    "--data": "data.root",
    "--layout": "data.layout",
    "--groups": "data.groups",
    "--unlabeled": "data.unlabeled",
    "--split": "split.file",
    "--labels": "split.labels",
    "--folds": "split.folds",
    "--fold": "split.fold",
    "--allow-split": "split.allow_faults",
    "--method": "method.name",
    "--network": "network.name",
    "--encoder": "network.encoder",
    "--encoder-weights": "network.encoder_weights",
    "--pretrained": "network.pretrained",
    "--steps": "length.steps",
    "--lr": "optim.lr",
    "--batch-size": "batch.labeled",
    "--seed": "seed",
    "--accelerator": "runtime.accelerator",
    "--devices": "runtime.devices",
    "--num-nodes": "runtime.num_nodes",
}
"""Options of the training commands, and the settings that they give."""


def make_layers(config: str | None, given: Mapping[str, Any], overrides: list[str] | None) -> tuple[Layer, ...]:
    """Return the layers of a command line: the file, then the options, then each ``--set``.

    Args:
        config: file, or name of a packaged configuration.
        given: parameters of the command; those in ``KEYS`` that have a value are options.
        overrides: texts of ``--set``.

    Raises:
        ConfigError: for a file that cannot be read, or a ``--set`` without ``=``.
    """
    from ssl_seg.config.layers import Layer, nest, parse_override, read_layers

    layers = [] if config is None else read_layers(config)
    values = {name: given.get(name.removeprefix("--").replace("-", "_")) for name in KEYS}
    for name, value in values.items():
        if value is not None and value is not False:
            plain = str(value) if isinstance(value, Path) else value
            layers.append(Layer(f"{name} {plain}", nest(KEYS[name], plain)))
    return (*layers, *(parse_override(text) for text in overrides or []))


def check_paths(layers: Sequence[Layer], *, out: Path | None = None, resume: Path | None = None) -> None:
    """Do nothing, if what the settings name is there and what is to be created is not; no network library is loaded.

    Args:
        layers: files and options.
        out: directory to create.
        resume: directory of a single run to go on with.

    Raises:
        SslSegError: for data or a split that do not exist, an ``out`` that does, a ``resume`` that is no run.
    """
    from ssl_seg.config.layers import flatten, merge_layers
    from ssl_seg.data.synthetic import is_synthetic
    from ssl_seg.run.directory import check_free, open_run_dir

    merged, _ = merge_layers(layers)
    values = dict(flatten(merged))
    root, file = values.get("data.root"), values.get("split.file")
    if isinstance(root, str) and not is_synthetic(root) and not Path(root).expanduser().exists():
        from ssl_seg.data.catalog import find_cases

        find_cases(root)  # says what is wrong with it
    if isinstance(file, str) and not Path(file).is_file():
        from ssl_seg.data.splits.files import load_split

        load_split(Path(file))
    if out is not None:
        check_free(out)
    if resume is not None:
        open_run_dir(resume)


def announce_loading() -> None:
    """Say that the network library is being loaded, which takes seconds; of several processes, the first says it."""
    from ssl_seg.cli.console import announce
    from ssl_seg.engine.machine import is_main_process

    if is_main_process():
        announce("loading PyTorch")


def parse_labels(texts: Sequence[str]) -> tuple[float, ...]:
    """Return the numbers of ``0.01 0.10``, ``0.01,0.10`` and what mixes both; 8 is an integer, and 1.0 is none.

    Raises:
        ConfigError: for what is no amount of labels; see ``check_label_amount``.
    """
    if not texts:
        return ()
    values = parse_numbers("--labels", texts, POSITIVE, "0.01 0.10 1.0")
    return tuple(_check_labels(value, word) for value, word in zip(values, split_words(texts), strict=True))


def parse_label_amount(text: str) -> float:
    """Return the amount of labels of an option that takes one.

    Raises:
        ConfigError: for what is none.
    """
    return _check_labels(number("--labels", POSITIVE, "0.10")(text), text)


def _check_labels(value: float, text: str) -> float:
    from ssl_seg.config.data import check_label_amount
    from ssl_seg.errors import ConfigError

    try:
        return check_label_amount(int(value) if text.isdigit() else value)
    except ValueError as error:
        raise ConfigError(f"--labels {text}: {error}") from None
