"""The settings that a command line gives, as layers; and the checks that need no network library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_seg.cli.paths import check_data

if TYPE_CHECKING:
    from ssl_seg.config.layers import Layer, Settings


def make_layers(config: str | None, given: Mapping[str, Any], overrides: Sequence[str] | None) -> tuple[Layer, ...]:
    """Return the layers of a command line: the file, then the options, then each ``--set``.

    Args:
        config: file, or name of a packaged configuration.
        given: parameters of the command; those named in ``OPTIONS`` that have a value are options.
        overrides: values of ``--set``.

    Raises:
        ConfigError: for a file that cannot be read, a ``--set`` without ``=``, or one that an option contradicts.
    """
    from ssl_seg.config.layers import read_layers
    from ssl_seg.config.options import check_given_once, make_option_layers

    options = make_option_layers(given, lambda name, value: f"--{name.replace('_', '-')} {value}")
    settings = parse_overrides(overrides)
    check_given_once(options, settings)
    return (*([] if config is None else read_layers(config)), *options, *settings)


def parse_overrides(overrides: Sequence[str] | None) -> list[Layer]:
    """Return a layer for each ``--set``.

    Raises:
        ConfigError: for one without ``=``.
    """
    from ssl_seg.config.layers import parse_override

    return [parse_override(text) for text in overrides or []]


def check_paths(settings: Settings, *, out: Path | None = None, resume: Path | None = None) -> None:
    """Check that what the settings name exists and that what is to be created does not.

    Args:
        settings: settings of files and options.
        out: directory to create.
        resume: directory of a single run to continue.

    Raises:
        SslSegError: for data or a split that do not exist, an ``out`` that does, a ``resume`` that is no run.
    """
    from ssl_seg.data.splits.files import load_split
    from ssl_seg.run.directory import check_free, open_run_dir

    root, file = settings.get("data.root"), settings.get("split.file")
    if isinstance(root, str):
        check_data(root)
    if isinstance(file, str) and not Path(file).is_file():
        load_split(Path(file))
    if out is not None:
        check_free(out)
    if resume is not None:
        open_run_dir(resume)
