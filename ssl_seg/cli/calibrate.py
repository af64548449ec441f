"""``ssl-seg calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import TerminalConsole, announce, print_json, show
from ssl_seg.cli.paths import check_data, check_new_file, describe_loading, take_one_checkpoint
from ssl_seg.cli.tables import print_rows
from ssl_seg.errors import ConfigError, counted
from ssl_seg.report.score_cells import Row, format_interval

if TYPE_CHECKING:
    from ssl_seg.scores.calibration import ThresholdRule

RULES = "f1, prevalence, precision=0.9 or recall=0.9"


def calibrate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, or directory of a run or ladder.", show_default=False)
    ],
    rule: Annotated[
        str, typer.Option("--for", metavar="RULE", help=f"What the threshold is chosen for: {RULES}.")
    ] = "f1",
    data: Annotated[
        str | None, typer.Option(help="Where the training's data folder is now, if it has moved.", show_default=False)
    ] = None,
    which: o.WhichNet = None,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="Also choose whether to drop small parts, keep only the largest, or fill holes.",
        ),
    ] = False,
    overlap: o.Overlap = 0.25,
    accelerator: o.Accelerator = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write a picture of reliability and scores over the threshold.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Calibrate the probabilities of a network and choose its threshold, on its validation cases.

    The result is stored beside the checkpoint; evaluate and predict use it from then on. A threshold is used only if
    its gain is beyond chance on cases that were left out of the choice.
    """
    from ssl_seg.files import to_finite

    wanted = parse_rule(rule)
    check_new_file(figure)
    check_data(data)
    found = take_one_checkpoint(checkpoint)
    announce(describe_loading([found]))
    from ssl_seg.results.calibration import CalibrateRequest
    from ssl_seg.results.calibration import calibrate as run_calibration

    request = CalibrateRequest(found, which, wanted, overlap, accelerator, data, clean)
    result = run_calibration(request, note=lambda text: show(text, err=True), track=TerminalConsole().track)
    if figure is not None:
        from ssl_seg.report.calibration_figure import plot_calibration

        plot_calibration(result, figure)
    if as_json:
        print_json(to_finite(result))
        return
    print_calibration(result)
    if figure is not None:
        show(f"wrote {figure}")


def parse_rule(text: str) -> ThresholdRule:
    """Return the rule of ``f1``, ``prevalence``, ``precision=0.9`` or ``recall=0.9``.

    Raises:
        ConfigError: for anything else.
    """
    from ssl_seg.scores.calibration import ThresholdRule

    name, equals, value = text.partition("=")
    match name, bool(equals):
        case ("f1" | "prevalence") as target, False:
            return ThresholdRule(target)
        case ("precision" | "recall") as target, True:
            return ThresholdRule(target, o.number_parser("--for", o.PROBABILITY, f"{target}=0.9")(value))
    raise ConfigError(f"--for {text}: no such rule; give {RULES}")


def print_calibration(result: dict[str, Any]) -> None:
    """Print what was fitted and chosen, what it gains, and where it is stored."""
    if "sweep" in result:
        title = f"{result['checkpoint']}, {result['which']}, validation, {counted(result['cases'], 'case')}"
        rows = [
            {
                "threshold": f"{row['threshold']:g}",
                "F1 (pooled)": row["f1"],
                "precision": row["precision"],
                "recall": row["recall"],
                "predicted / true foreground": row["foreground"],
            }
            for row in result["sweep"]
        ]
        print_rows(title, rows)
    show(_describe_scaling(result))
    show(_describe_choice(result) if "chosen" in result else _describe_biases(result))
    for row in result.get("cleaning", ()):
        of = f" of class {row['label']}" if len(result["cleaning"]) > 1 else ""
        does = "stay as they are; choosing would gain" if row["does"] == "nothing" else f"{row['does']}; choosing gains"
        show(f"masks{of}: {does} {row['gain']['value']:+.3f} mean Dice on left-out cases, 95 % {_show_interval(row)}")
    cleans = any(row["does"] != "nothing" for row in result.get("cleaning", ()))
    changes = result["temperature"] != 1 or any(result["biases"]) or result["used"] or cleans
    use = "use it unless --uncalibrated is given" if changes else "use the network as it is, since nothing was changed"
    show(f"wrote {result['file']}: evaluate and predict {use}")


def _describe_scaling(result: Row) -> str:
    ece, biases = result["ece"], ", ".join(f"{bias:+.2f}" for bias in result["biases"][1:])
    error = f"calibration error {ece['before']:.4f} -> {ece['after']:.4f} on left-out cases"
    if result["temperature"] == 1 and not any(result["biases"]):
        return f"probabilities stay as they are: {error}, not a gain"
    return f"temperature {result['temperature']:.2f}, bias {biases}: {error}"


def _describe_choice(result: Row) -> str:
    chosen = result["chosen"]
    gain = f"{result['gain']['value']:+.3f} F1 on left-out cases, 95 % {_show_interval(result)}"
    optimistic = f"F1 {chosen['f1_before']:.3f} -> {chosen['f1']:.3f} on these cases, {chosen['best_f1']:.3f} at best"
    cut = f"{chosen['threshold']:.3f} ({chosen['low']:.3f} .. {chosen['high']:.3f})"
    if not result["used"]:
        network, calibrated = (f"{result[name]:.3g}" for name in ("network_threshold", "threshold"))
        kept = f"threshold {network} stays"
        if calibrated == "0.5" != network:
            kept = f"threshold 0.5 of the calibrated probability, {network} of the network's"
        return f"{kept}: {cut} would gain {gain}, which is not beyond chance ({optimistic})"
    return f"threshold for {result['rule']}: {cut} of the network's probability, {gain} ({optimistic})"


def _describe_biases(result: Row) -> str:
    kept = "are used" if result["used"] else "are left out, as their gain is not beyond chance"
    return f"biases {kept}: {result['gain']['value']:+.3f} F1 on left-out cases, 95 % {_show_interval(result)}"


def _show_interval(result: Row) -> str:
    gain = result["gain"]
    return format_interval(gain["low"], gain["high"], gain["why"], "+.3f")
