"""Options that exclude each other, or act only with others: two tables, looked at before a command begins.

An option that would do nothing is refused, like a wrong one: the command line was meant to say something else. (A
setting that does nothing is a warning, because a file of settings may serve several runs.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from inspect import signature
from itertools import product
from typing import Any

from ssl_seg.errors import ConfigError

EXCLUSIVE: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...]] = {
    # command -> (any of these, not with any of these, why)
    "train": (
        (("--rounds",), ("--fold", "--folds"), "rounds follow one training, and folds are several"),
        (("--rounds",), ("--bootstrap",), "rounds start from scratch"),
        (("--rounds",), ("--resume",), "`ssl-seg ladder --resume DIR` continues rounds"),
        (("--folds", "--fold"), ("--resume",), "a run continues with the folds that it started with"),
        (("--folds", "--fold"), ("--split",), "a file is a single split, and folds are new splits of the data"),
        (
            ("--folds", "--fold"),
            ("--bootstrap",),
            "the network to start from has seen the validation cases of some folds, so a cross-validation starts from "
            "scratch",
        ),
    ),
    "split make": ((("--folds",), ("--val",), "each fold is the validation set once"),),
    "evaluate": (
        (("--test",), ("--all",), "--all scores every labeled case, whatever list it is in"),
        (("--markdown",), ("--json",), "each sets the output format"),
    ),
}

Unused = dict[str, tuple[tuple[str, ...], tuple[str, ...], str]]

_SHOWN: Unused = {
    "--verbose": ((), ("--quiet", "--no-live"), "shows more beside the live view"),
    "--no-live": ((), ("--quiet",), "prints lines instead of the live view"),
}

IDLE: dict[str, Unused] = {
    # command -> option -> (needs one of these, does nothing with any of these, what it does)
    "train": {
        "--force": (("--bootstrap", "--rounds"), ("--resume",), "starts from a parent that the gate refuses"),
        "--log": ((), ("--rounds",), "logs a single training to a tracker"),
        "--profile": ((), ("--rounds",), "profiles the steps of a single training"),
        **_SHOWN,
    },
    "pretrain": _SHOWN,
    "ladder": _SHOWN,
    "ablate": {
        "--workers": ((), ("--ray", "--dry-run", "--report"), "sets how many cells train at a time on this machine"),
        "--cpus-per-cell": (("--ray",), ("--dry-run", "--report"), "asks a Ray cluster for cores"),
        "--gpus-per-cell": (("--ray",), ("--report",), "asks a Ray cluster for GPUs"),
        "--ray": ((), ("--report",), "trains on a Ray cluster"),
        "--report": ((), ("--dry-run",), "writes the tables of finished cells"),
        "--json": ((), ("--dry-run",), "prints the results"),
    },
    "evaluate": {
        "--layout": (("--data",), (), "gives the layout of another folder"),
        "--uncalibrated": ((), ("--ensemble",), "ignores what calibrate has stored for single networks"),
    },
    "diagnose": {
        "--layout": (("--data",), (), "gives the layout of another folder"),
        "--masks": (("--predictions",), (), "gives the true masks of a folder of predictions"),
        "--data": ((), ("--predictions",), "gives another folder of cases for a checkpoint"),
        "--which": ((), ("--predictions",), "chooses a network of a checkpoint"),
        "--accelerator": ((), ("--predictions",), "chooses the device that a network runs on"),
    },
    "split check": {
        name: (("--data",), (), what)
        for name, what in {
            "--layout": "gives the layout of the files",
            "--groups": "says which cases belong together",
            "--unlabeled": "adds unlabeled cases",
            "--set": "says what mask values mean",
            "--near-copies": "says whether nearly equal images may be in several parts",
            "--figure": "draws the cases",
            "--report": "writes a page with the cases",
        }.items()
    },
}


def check_options(name: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that first refuses options that do not go together, or would do nothing as they are given.

    Args:
        name: what the command line calls it; a key of ``EXCLUSIVE`` or ``IDLE``.
        command: its function.
    """
    defaults = {key: parameter.default for key, parameter in signature(command).parameters.items()}

    @wraps(command)
    def checked(**values: Any) -> Any:
        given = {name_option(key) for key, value in values.items() if value != defaults[key]}
        if reason := find_conflict(name, given):
            raise ConfigError(reason)
        return command(**values)

    return checked


def name_option(parameter: str) -> str:
    """Return the option of a parameter: ``--all`` of ``all_``."""
    return f"--{parameter.removeprefix('as_').rstrip('_').replace('_', '-')}"


def find_conflict(name: str, given: Collection[str]) -> str | None:
    """Return why two of the given options exclude each other, or one does nothing; None where all go together."""
    for these, excluded, why in EXCLUSIVE.get(name, ()):
        for one, other in product(these, excluded):
            if one in given and other in given:
                return f"{one} and {other} exclude each other: {why}. Leave one of them out"
    for option, (needs, useless_with, what) in IDLE.get(name, {}).items():
        if option not in given:
            continue
        if needs and not set(given) & set(needs):
            return f"{option} {what}: without {' or '.join(needs)} it does nothing. Give both, or leave it out"
        if others := [other for other in useless_with if other in given]:
            return f"{option} {what}: with {others[0]} it does nothing. Leave one of them out"
    return None
