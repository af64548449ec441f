"""Options that exclude each other, or act only with others: all commands are gone through."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Cli
from test_cli import assert_refused

import ssl_seg
from ssl_seg.cli.app import app
from ssl_seg.cli.option_rules import EXCLUSIVE, IDLE, find_conflict, name_option
from ssl_seg.config.layers import Layer
from ssl_seg.config.options import check_given_once, make_option_layers
from ssl_seg.errors import ConfigError

ALONE = {
    "demo": "out steps",
    "pretrain": "config data layout groups unlabeled split network encoder encoder-weights steps "
    "lr batch-size seed out resume allow-split accelerator set quiet",
    "train": "config data layout groups unlabeled split labels folds method task network encoder encoder-weights "
    "pretrained steps epochs minutes lr batch-size seed rounds out bootstrap resume allow-split accelerator devices "
    "num-nodes set quiet",
    "ladder": "labels config data layout groups unlabeled split method network encoder encoder-weights pretrained "
    "steps epochs minutes lr batch-size seed gate rounds out resume force allow-split accelerator devices "
    "num-nodes set quiet",
    "ablate": "data labels steps part metric seeds set out dry-run",
    "evaluate": "data split test all ensemble which overlap threshold set accelerator figure csv json markdown",
    "calibrate": "for data which clean overlap accelerator figure json",
    "report": "out",
    "export": "which uncalibrated overwrite json",
    "export-log": "to out",
    "investigate": "against expect file hypothesis if-confirmed if-refuted json markdown",
    "predict": "with which overlap probabilities format tta uncertainty uint8 objects spacing threshold uncalibrated "
    "figure overwrite accelerator workers",
    "diagnose": "predictions out seconds require-f1 set json",
    "suggest": "data count strategy round seed which csv figure copy accelerator",
    "probe-loss": "data checkpoint batches accelerator figure set json",
    "data import": "by-rows images instances",
    "data audit": "layout groups unlabeled set figure report json",
    "data batches": "n data labels accelerator figure set json",
    "data synthetic": "kind count labeled seed empty instances",
    "split make": "data labels seed layout groups unlabeled val test folds near-copies out set",
    "split check": "data json",
    "config show": "data set plot explain",
    "config check": "data set strict",
    "config diff": "json",
}
"""Options that act by themselves; where settings decide whether they do, the settings are checked."""
OTHER_RULES = {"train": {"--fold"}}
"""Options that need another one, or a setting in its place: the command checks them."""


def list_commands(group: Any, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, f"{prefix}{name} ")
        else:
            options = {option for parameter in command.params for option in parameter.opts}
            yield f"{prefix}{name}", {option for option in options if option.startswith("--")} - {"--help"}


COMMANDS = dict(list_commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_acts_alone_or_is_in_the_table(name: str) -> None:
    alone = {f"--{option}" for option in ALONE.get(name, "").split()}
    assert alone | set(IDLE.get(name, {})) | OTHER_RULES.get(name, set()) == COMMANDS[name]
    assert not alone & set(IDLE.get(name, {}))


def test_the_tables_name_options_that_exist() -> None:
    for name, pairs in EXCLUSIVE.items():
        for these, others, _ in pairs:
            assert {*these, *others} <= COMMANDS[name]
    for name, rows in IDLE.items():
        for option, (needs, useless_with, _) in rows.items():
            assert {option, *needs, *useless_with} <= COMMANDS[name]


@pytest.mark.parametrize(("name", "option"), [(name, option) for name, rows in IDLE.items() for option in rows])
def test_an_idle_option_is_named_and_with_what_it_needs_it_is_not(name: str, option: str) -> None:
    needs, useless_with, _ = IDLE[name][option]
    if needs:
        assert f"{option} " in (find_conflict(name, {option}) or "")
        assert needs[0] in (find_conflict(name, {option}) or "")
    together = {option, *needs[:1]}
    assert option not in (find_conflict(name, together) or "").split()[:1]
    for other in useless_with:
        assert other in (find_conflict(name, {*together, other}) or "")


@pytest.mark.parametrize("name", EXCLUSIVE)
def test_each_pair_is_refused_and_each_option_by_itself_is_not(name: str) -> None:
    for these, others, why in EXCLUSIVE[name]:
        for one, other in product(these, others):
            assert find_conflict(name, {one, other}) == (
                f"{one} and {other} exclude each other: {why}. Leave one of them out"
            )
            assert find_conflict(name, {one}) is None
            assert find_conflict(name, {other}) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--rounds", "1", "--folds", "3"),
        ("train", "--fold", "0", "--bootstrap", "x"),
        ("split", "make", "--data", "x", "--val", "0.2", "--folds", "3"),
        ("evaluate", "x", "--test", "--all"),
        ("evaluate", "x", "--json", "--markdown"),
    ],
)
def test_the_command_line_refuses_pairs(cli: Cli, arguments: tuple[str, ...]) -> None:
    options = [word for word in arguments if word.startswith("--") and word != "--data"]
    assert_refused(cli(*arguments), *options, "exclude each other")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--force"), ("--force", "--bootstrap")),
        (("train", "--force", "--bootstrap", "x", "--resume", "y"), ("--force", "--resume")),
        (("train", "--verbose", "--quiet"), ("--verbose", "--quiet")),
        (("ladder", "--no-live", "--verbose"), ("--verbose", "--no-live")),
        (("ablate", "label_fractions", "--cpus-per-cell", "1"), ("--cpus-per-cell", "--ray")),
        (("ablate", "label_fractions", "--dry-run", "--json"), ("--json", "--dry-run")),
        (("evaluate", "x", "--layout", "folders"), ("--layout", "--data")),
        (("diagnose", "x", "--masks", "y"), ("--masks", "--predictions")),
        (("diagnose", "--predictions", "x", "--which", "student"), ("--which", "--predictions")),
        (("split", "check", "x", "--layout", "folders"), ("--layout", "--data")),
        (("split", "check", "x", "--figure", "y.png"), ("--figure", "--data")),
        (("split", "check", "x", "--report", "y.html"), ("--report", "--data")),
    ],
)
def test_the_command_line_refuses_them(cli: Cli, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli(*arguments), *words, "does nothing")


def test_names_of_options() -> None:
    assert [name_option(name) for name in ("as_json", "all_", "cpus_per_cell", "set_")] == [
        "--json", "--all", "--cpus-per-cell", "--set",
    ]  # fmt: skip


def test_a_setting_has_one_value(cli: Cli, tmp_path: Path) -> None:
    code, shown, errors = cli("train", "--lr", "0.1", "--set", "optim.lr=0.2", "--out", tmp_path / "r")
    assert (code, shown) == (2, "")
    assert "--lr 0.1 and --set optim.lr=0.2 give optim.lr two values: leave one of them out" in errors.replace(
        "\n", " "
    )
    with pytest.raises(ConfigError, match=r"labels=4 and split.labels=5 give split.labels two values"):
        ssl_seg.train(tmp_path, labels=4, settings={"split.labels": 5})
    options = make_option_layers({"labels": 4}, lambda name, value: f"{name} {value}")
    check_given_once(options, [Layer("same", {"split": {"labels": 4}}), Layer("other", {"split": {"seed": 5}})])
