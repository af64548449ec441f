"""All commands of ``ssl-seg`` in one list."""

from __future__ import annotations

from typing import Annotated

import typer

from ssl_seg import __version__
from ssl_seg.cli import (
    ablate,
    calibrate,
    config,
    data,
    data_audit,
    data_batches,
    demo,
    diagnose,
    evaluate,
    export,
    investigate,
    ladder,
    lists,
    predict,
    pretrain,
    probe_loss,
    report,
    split,
    suggest,
    train,
)
from ssl_seg.cli.option_rules import check_options

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
config_app = typer.Typer(help="Show, check and compare configurations.", no_args_is_help=True)

app.command("demo")(demo.demo)
app.command("pretrain")(check_options("pretrain", pretrain.pretrain))
app.command("train")(check_options("train", train.train))
app.command("ladder")(check_options("ladder", ladder.ladder))
app.command("ablate")(check_options("ablate", ablate.ablate))
app.command("calibrate")(calibrate.calibrate)
app.command("investigate")(investigate.investigate)
app.command("evaluate")(check_options("evaluate", evaluate.evaluate))
app.command("predict")(predict.predict)
app.command("suggest")(suggest.suggest)
app.command("export")(export.export)
app.command("report")(report.report)
app.command("export-log")(report.export_log)
app.command("diagnose")(check_options("diagnose", diagnose.diagnose))
app.add_typer(data_app, name="data")
app.add_typer(split_app, name="split")
app.add_typer(config_app, name="config")
app.command("probe-loss")(probe_loss.probe_loss)
app.command("methods")(lists.methods)
app.command("networks")(lists.networks)
app.command("losses")(lists.losses)

data_app.command("audit")(data_audit.data_audit)
data_app.command("batches")(data_batches.data_batches)
data_app.command("layouts")(data.list_layouts)
data_app.command("import")(data.import_labels)
data_app.command("synthetic")(data.make_synthetic)
split_app.command("make")(check_options("split make", split.split_make))
split_app.command("check")(check_options("split check", split.split_check))
config_app.command("show")(config.config_show)
config_app.command("check")(config.config_check)
config_app.command("diff")(config.config_diff)


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
