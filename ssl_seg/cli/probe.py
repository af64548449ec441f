"""``ssl-seg probe-loss``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli.console import TerminalConsole, announce, show
from ssl_seg.cli.data_settings import ACCELERATOR, Accelerator
from ssl_seg.cli.places import check_data, check_figure

if TYPE_CHECKING:
    from ssl_seg.diagnose.loss_probe import LossProbe, StateProbe

PREDICTION_TITLES = {
    "all_negative": "all negative",
    "all_positive": "all positive",
    "base_rate": "base rate",
    "perfect": "perfect",
}


def probe_loss(
    config: Annotated[
        str | None,
        typer.Argument(help="YAML file or packaged name, as for train; else that of --checkpoint.", show_default=False),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Folder, or synthetic:particles|sheets.")] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Probe with the student of this checkpoint or run too, beside the untrained network."),
    ] = None,
    batches: Annotated[int, typer.Option(help="Training batches to look at.", min=1, max=10**6)] = 4,
    accelerator: Annotated[Accelerator | None, ACCELERATOR] = None,
    figure: Annotated[Path | None, typer.Option(help="Write a picture of shares, cosines and values.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as for train. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Question a loss before a training: its trivial solutions, conflicts, gradient shares, and what each cost does."""
    from ssl_seg.cli.checkpoints import find_checkpoint
    from ssl_seg.cli.run_settings import make_layers
    from ssl_seg.config.layers import Layer, nest
    from ssl_seg.data.findings import describe_finding, findings_to_dict

    check_figure(figure)
    check_data(data)
    checkpoint = None if checkpoint is None else find_checkpoint(checkpoint)
    layers = make_layers(config, {"data": data, "accelerator": accelerator}, set_)
    announce("loading PyTorch" + ("" if checkpoint is None else f" and {checkpoint}"))
    from ssl_seg.diagnose.loss_probe import ProbeRequest, check_probe
    from ssl_seg.diagnose.loss_probe import probe_loss as run_probe
    from ssl_seg.networks.checkpoint import load_checkpoint
    from ssl_seg.networks.precision import has_device
    from ssl_seg.report.probe_figure import plot_probe

    if config is None and checkpoint is not None:  # then the checkpoint's own settings and data
        stored = load_checkpoint(checkpoint).config
        below = [Layer(str(checkpoint), stored, is_file=True)]
        if not has_device(stored.get("runtime", {}).get("accelerator", "auto")):
            below.append(Layer("this machine", nest("runtime.accelerator", "auto")))
        layers = (*below, *layers)
    probe = run_probe(ProbeRequest(layers, checkpoint, batches), TerminalConsole().track)
    findings = check_probe(probe)
    if figure is not None:
        plot_probe(probe, figure)
    if as_json:
        typer.echo(json.dumps(findings_to_dict(findings, probe.to_dict()), indent=2))
        return
    _print(probe)
    for finding in findings:
        show(f"{finding.level}: {describe_finding(finding)}")
    if not findings:
        show("nothing to object to")
    if figure is not None:
        show(f"wrote {figure}")


def _print(probe: LossProbe) -> None:
    shares = ", ".join(f"class {k} {share:.2%}" for k, share in enumerate(probe.frequencies))
    batches = "1 batch" if probe.batches == 1 else f"{probe.batches} batches"
    show(f"{batches} of {probe.data}; of their valid voxels: {shares}")
    if len(probe.frequencies) > 2:
        show(f"all positive predicts class {probe.positive_class}, the most frequent one")
    for state in probe.states:
        _print_components(probe, state)
        _print_cosines(state)
        _print_knobs(state)


def _print_components(probe: LossProbe, state: StateProbe) -> None:
    """Print values, gradient norm and, for each phase, the share of the weights and that of the gradients."""
    from ssl_seg.cli.console import print_table
    from ssl_seg.diagnose.loss_probe.findings import compute_total, compute_weight_shares

    columns = ["component", *PREDICTION_TITLES.values(), "network", "|gradient|"]
    for phase in probe.phases:
        columns += [f"weight@{phase.from_epoch:g}", f"share@{phase.from_epoch:g}"]
    weights = [compute_weight_shares(phase.weights) for phase in probe.phases]
    rows = []
    for name, constants in probe.constants.items():
        figures = [*(constants[p] for p in PREDICTION_TITLES), state.values[name]]
        cells = [cell for by in zip(weights, state.shares, strict=True) for cell in (_share(s.get(name)) for s in by)]
        rows.append([name, *(f"{value:.4f}" for value in figures), f"{state.norms[name]:.3g}", *cells])
    for phase in probe.phases:
        columns_of = [{n: v[p] for n, v in probe.constants.items()} for p in PREDICTION_TITLES]
        totals = [compute_total(values, phase.weights) for values in (*columns_of, state.values)]
        rows.append([f"total@{phase.from_epoch:g}", *(f"{total:.4f}" for total in totals)])
    print_table(
        f"{state.name}: values; share of the weights and of the gradient norm, by phase (@epoch)", columns, rows
    )


def _print_cosines(state: StateProbe) -> None:
    from ssl_seg.cli.console import print_table

    if not state.cosines:
        return
    rows = [
        [f"{c.first}, {c.second}", f"{c.mean:+.2f}", f"{c.error:.2f}", f"{c.low:+.2f} .. {c.high:+.2f}"]
        for c in sorted(state.cosines, key=lambda pair: (math.isnan(pair.mean), pair.mean))
    ]
    print_table("cosines of mean gradients, the strongest conflict first", ["", "cosine", "+-", "within batches"], rows)


def _print_knobs(state: StateProbe) -> None:
    from ssl_seg.cli.console import print_table

    if not state.knobs:
        return
    rows = []
    for knob in state.knobs:
        wanted = "more" if knob.expected > 0 else "less"
        verdict = "reversed here" if knob.is_reversed else "as expected" if knob.effect else "no effect"
        batches = f"{knob.agreeing} of {knob.batches}"
        rows.append(
            [f"{knob.component}.{knob.name}", f"{knob.value:g}", f"{knob.effect:+.3f}", batches, wanted, verdict]
        )
    columns = ["cost", "now", "effect", "in batches", "expected", ""]
    print_table("what more of a cost does to the predicted foreground", columns, rows)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
