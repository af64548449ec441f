"""``ssl-seg probe-loss``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ssl_seg.cli import options as o
from ssl_seg.cli.console import TerminalConsole, announce, print_json, show
from ssl_seg.cli.paths import check_data, check_new_file, take_one_checkpoint
from ssl_seg.cli.tables import print_findings, print_rows

if TYPE_CHECKING:
    from ssl_seg.diagnose.loss_probe import LossProbe, StateProbe

PREDICTION_TITLES = {
    "all_negative": "all negative",
    "all_positive": "all positive",
    "base_rate": "base rate",
    "perfect": "perfect",
}


def probe_loss(
    config: o.ConfigArgument = None,
    data: o.Data = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Also probe with the student of this checkpoint or run."),
    ] = None,
    batches: Annotated[int, typer.Option(help="Training batches to look at.", min=1, max=10**6)] = 4,
    accelerator: o.Accelerator = None,
    figure: o.Figure = None,
    set_: o.Set = None,
    as_json: o.AsJson = False,
) -> None:
    """Check a loss before you train with it: trivial solutions, conflicts, gradient shares, and what each cost does."""
    from ssl_seg.cli.settings import make_layers
    from ssl_seg.config.layers import Layer, nest
    from ssl_seg.data.findings import findings_to_dict

    check_new_file(figure)
    check_data(data)
    checkpoint = None if checkpoint is None else take_one_checkpoint(checkpoint)
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
        print_json(findings_to_dict(findings, probe.to_dict()))
        return
    _print(probe)
    print_findings(findings)
    if not findings:
        show("no problems found")
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
    from ssl_seg.diagnose.loss_probe.findings import compute_total, compute_weight_shares
    from ssl_seg.scores.text import share

    weights = [compute_weight_shares(phase.weights) for phase in probe.phases]
    rows = []
    for name, constants in probe.constants.items():
        values = {title: constants[p] for p, title in PREDICTION_TITLES.items()} | {"network": state.values[name]}
        row = {"component": name, **_four_digits(values), "|gradient|": f"{state.norms[name]:.3g}"}
        for phase, own, gradients in zip(probe.phases, weights, state.shares, strict=True):
            row[f"weight@{phase.from_epoch:g}"] = share(own.get(name), 1)
            row[f"share@{phase.from_epoch:g}"] = share(gradients.get(name), 1)
        rows.append(row)
    for phase in probe.phases:
        columns = {title: {n: v[p] for n, v in probe.constants.items()} for p, title in PREDICTION_TITLES.items()}
        columns["network"] = dict(state.values)
        totals = {title: compute_total(values, phase.weights) for title, values in columns.items()}
        rows.append({"component": f"total@{phase.from_epoch:g}", **_four_digits(totals)})
    print_rows(f"{state.name}: values; share of the weights and of the gradient norm, by phase (@epoch)", rows)


def _print_cosines(state: StateProbe) -> None:
    rows = [
        {
            "": f"{c.first}, {c.second}",
            "cosine": f"{c.mean:+.2f}",
            "+-": f"{c.error:.2f}",
            "within batches": f"{c.low:+.2f} .. {c.high:+.2f}",
        }
        for c in sorted(state.cosines, key=lambda pair: (math.isnan(pair.mean), pair.mean))
    ]
    if rows:
        print_rows("cosines of mean gradients, the strongest conflict first", rows)


def _print_knobs(state: StateProbe) -> None:
    rows = [
        {
            "cost": f"{knob.component}.{knob.name}",
            "now": f"{knob.value:g}",
            "effect": f"{knob.effect:+.3f}",
            "in batches": f"{knob.agreeing} of {knob.batches}",
            "expected": "more" if knob.expected > 0 else "less",
            "": "reversed here" if knob.is_reversed else "as expected" if knob.effect else "no effect",
        }
        for knob in state.knobs
    ]
    if rows:
        print_rows("effect of a larger cost on the predicted foreground", rows)


def _four_digits(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.4f}" for name, value in values.items()}
