"""All commands of ``ssl-seg`` in one list."""

from __future__ import annotations

from typing import Annotated

import typer

from ssl_seg import __version__
from ssl_seg.cli import (
    ablate,
    audit,
    batches,
    commands,
    configs,
    diagnose,
    inspect,
    ladder,
    pretraining,
    probe,
    splits,
    training,
)
from ssl_seg.cli.options import check_used

app = typer.Typer(
    name="ssl-seg",
    help="Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Audit data sets and batches; import labels; make synthetic sets.", no_args_is_help=True)
split_app = typer.Typer(help="Make and check splits: labeled fractions, validation, sealed test.", no_args_is_help=True)
config_app = typer.Typer(help="Show and check configurations.", no_args_is_help=True)

app.command("demo")(commands.demo)
app.command("pretrain")(pretraining.pretrain)
app.command("train")(check_used("train", training.train))
app.command("ladder")(ladder.ladder)
app.command("ablate")(check_used("ablate", ablate.ablate))
app.command("evaluate")(check_used("evaluate", commands.evaluate))
app.command("predict")(commands.predict)
app.command("diagnose")(check_used("diagnose", diagnose.diagnose))
app.add_typer(data_app, name="data")
app.add_typer(split_app, name="split")
app.add_typer(config_app, name="config")
app.command("probe-loss")(probe.probe_loss)
app.command("methods")(inspect.methods)
app.command("networks")(inspect.networks)
app.command("losses")(inspect.losses)

data_app.command("audit")(audit.data_audit)
data_app.command("batches")(batches.data_batches)
data_app.command("layouts")(inspect.data_layouts)
data_app.command("import")(commands.import_labels)
data_app.command("synthetic")(commands.make_synthetic)
split_app.command("make")(splits.split_make)
split_app.command("check")(check_used("split check", splits.split_check))
config_app.command("show")(configs.config_show)
config_app.command("check")(configs.config_check)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ssl-seg {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Semi-supervised segmentation: few masks, many images, and a monitor that names a collapse early."""
