"""What a run says before it begins: its network, its probe, the range of its loss, and how long it will take."""

from __future__ import annotations

from dataclasses import asdict

from ssl_seg.engine.devices import measure_peak_memory
from ssl_seg.engine.pace import describe_pace, describe_seconds, estimate_seconds
from ssl_seg.errors import counted
from ssl_seg.run.assembly import Feed, Ready
from ssl_seg.run.console import Console
from ssl_seg.run.directory import RunDir
from ssl_seg.run.prepare import BegunRun
from ssl_seg.scores.text import number


def announce(prepared: BegunRun, ready: Ready, first: int, console: Console) -> float | None:
    """Record how the machine is used and how long the run will take; return its seconds where they are known."""
    config, run, pace = prepared.config, prepared.run, ready.pace
    runtime = config.runtime
    parameters = list(ready.built.module.parameters())
    count, memory = sum(values.numel() for values in parameters), measure_peak_memory(parameters[0].device)
    run.append_event(
        "runtime",
        precision=runtime.precision,
        memory_format=runtime.memory_format,
        notes=ready.notes,
        parameters=count,
        memory_gib=memory,
    )
    console.note(f"network: {config.network.name}, {count:,} parameters; memory so far {number(memory, 2)} GiB")
    if not prepared.resumed:
        _announce_probe(run, ready.feed, console)
    if pace is None:
        return None
    seconds = estimate_seconds(pace, config, config.length.steps, first)
    epoch = config.length.steps_per_epoch * pace.step + pace.look
    run.append_event(
        "estimate",
        seconds=seconds,
        seconds_per_epoch=epoch,
        steps=config.length.steps - first,
        step=pace.step,
        **asdict(pace),
    )
    each = f"{describe_seconds(epoch)} an epoch, {describe_pace(pace)}"
    console.note(f"time: about {describe_seconds(seconds)} on this machine: {each}")
    return seconds


def _announce_probe(run: RunDir, feed: Feed, console: Console) -> None:
    """Record what the networks will be looked at on, and in which range the loss is to be there."""
    facts = feed.val.describe()
    run.append_event("probe", **facts, loss_ranges=feed.ranges)
    doubt = "" if 0 < facts["foreground"] < 1 else "WARNING, nothing can be judged on it: "
    console.note(
        f"probe: {doubt}{facts['patches']} patches of {counted(int(facts['cases']), 'validation case')}, "
        f"{facts['positive']} of them with foreground, {facts['foreground']:.1%} of all voxels"
    )
    ranges = ", ".join(f"{name} {constant:.3f} to {perfect:.3f}" for name, (perfect, constant) in feed.ranges.items())
    if ranges:
        console.note(f"loss: on the probe, from the best constant output to a perfect one: {ranges}")
