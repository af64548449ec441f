"""What may change when a run goes on, and how the run takes note of it: the place of its data, its length, the machine.

Everything else is what the run is. A longer run goes on from its last state as the longer settings say. It is not what
it would have been, had it been begun with them: what depends on the length of the whole run was another so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssl_seg.config import Config
from ssl_seg.config.curves import compute_batch_size
from ssl_seg.config.layers import Layer, flatten
from ssl_seg.config.schedules import make_lr_schedule
from ssl_seg.data.catalog import Catalog
from ssl_seg.data.content import IMAGE_DIGITS
from ssl_seg.data.open import PATHS
from ssl_seg.data.splits.split import Split
from ssl_seg.data.synthetic import is_synthetic
from ssl_seg.errors import ConfigError, DataError, RunDirError, counted, quote
from ssl_seg.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ssl_seg.run.directory import RunDir
from ssl_seg.run.final_scores import SCORES_FILE

_MAY_CHANGE = ("data.root", "data.groups", "data.unlabeled", "length.steps")
_SHOWN = 5
_WHOLE_LENGTH = ("poly", "cosine", "one_cycle")
"""Learning rates that are spread over the whole run."""


def may_change(key: str) -> bool:
    """Return whether a setting may change when a run goes on."""
    return key in _MAY_CHANGE or key.startswith("runtime.")


def check_layers_of_resume(layers: Sequence[Layer]) -> None:
    """Check that settings may change when a run goes on.

    Raises:
        ConfigError: names the first that may not, and those that may.
    """
    keys = [key for layer in layers for key, _ in flatten(layer.values)]
    if fixed := [key for key in keys if not may_change(key)]:
        raise ConfigError(
            f"{fixed[0]}: --resume continues a run with its own settings; give it without other options. "
            "Only the place of the data (--data), the length (--steps or --epochs) and runtime settings such as "
            "--devices may change"
        )


def check_resumable(run: RunDir, checkpoint: Checkpoint, old: Config, new: Config) -> None:
    """Check that there is something to do: more steps, missing final scores, or another place of the data.

    Args:
        run: its directory.
        checkpoint: its last state.
        old: settings it has.
        new: settings it goes on with.

    Raises:
        RunDirError: for a run that has come to its end.
        ConfigError: for a length that is done already.
    """
    step, ending = checkpoint.progress.step, checkpoint.progress.ending
    steps, longer = new.length.steps, new.length.steps > old.length.steps
    if steps != old.length.steps and steps <= step:
        raise ConfigError(
            f"length.steps = {steps}: {run.path} has done {counted(step, 'step')}, which cannot be taken back. Give "
            f"more than {step}, or use one of its checkpoints"
        )
    if ending is None or (not longer and (new.data != old.data or run.read_ending() is None)):
        return
    if ending == "collapsed":
        told = [e for e in run.read_events() if e["event"] == "intervention" or e.get("level") == "collapsed"]
        codes = ", ".join(told[-1]["codes"] if told else ())
        raise RunDirError(
            f"{run.path} was ended by its monitor at step {step}: {codes}. Resuming would train collapsed networks. "
            f"See why with `ssl-seg diagnose {quote(run.last)}`, which names the command to try next"
        )
    if ending == "refused":
        raise RunDirError(
            f"{run.path} was ended by a gate at step {step}: {'; '.join(run.read_broken_gates())}. `--bootstrap "
            f"{quote(run.path)} --force` starts a new run from its networks"
        )
    if ending == "stopped_early":
        raise RunDirError(
            f"{run.path} is finished: its policies ended it early, at step {step}; nothing to resume, and with "
            f"more steps it would stop there too. `--bootstrap {quote(run.path)}` starts a new run from its networks"
        )
    if not longer:
        raise RunDirError(
            f"{run.path} is finished: all {step} steps are done; nothing to resume. `--resume {quote(run.path)} "
            f"--steps {2 * step}` would train longer"
        )


def check_data_there(run: RunDir, root: str) -> None:
    """Check that the data of a run are where they were.

    Raises:
        DataError: names the command that says where they are now.
    """
    if not is_synthetic(root) and not Path(root.partition("::")[0]).exists():
        raise DataError(
            f"{root}, which holds the data of {run.path}, does not exist. If it has moved: "
            f"ssl-seg train --resume {quote(run.path)} --data NEW"
        )


def check_same_content(run: RunDir, split: Split, catalog: Catalog, old_root: str) -> None:
    """Check that a folder holds the images and masks that a run was begun with.

    Raises:
        DataError: lists the first cases that differ.
    """
    differ = []
    for case_id, content in split.content.items():
        facts = catalog.facts.get(case_id)
        if facts is None:
            differ.append(f"'{case_id}' is missing")
        elif facts.content[:IMAGE_DIGITS] != content[:IMAGE_DIGITS]:
            differ.append(f"'{case_id}' is a different image")
        elif facts.content != content:
            differ.append(f"'{case_id}' has a different mask")
    if differ:
        listed = "\n".join(f"- {text}" for text in differ[:_SHOWN])
        more = f"\n... and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise DataError(
            f"{catalog.root} does not hold the data of {run.path}: {len(differ)} of {len(split.content)} cases differ."
            f"\n{listed}{more}\nGive the folder that {old_root} has moved to."
        )


def describe_length(old: Config, new: Config, checkpoint: Checkpoint) -> str:
    """Return what another length changes in the middle of a run, as a line."""
    progress = checkpoint.progress
    batch = compute_batch_size(new)
    rates = [
        make_lr_schedule(config.optim, config.length, batch)(progress.step, progress.ranking_scores[1:])
        for config in (old, new)
    ]
    parts = []
    if new.optim.schedule in _WHOLE_LENGTH:
        parts.append(f"optim.schedule = {new.optim.schedule} (the next rate is {rates[1]:.3g}, not {rates[0]:.3g})")
    if new.ema.schedule != "constant":
        parts.append(f"ema.schedule = {new.ema.schedule}")
    options = new.method.options
    if options.get("rampup_ratio") and options.get("rampup_steps") is None:
        parts.append(f"method.options.rampup_ratio = {options['rampup_ratio']:g}")
    follow = f"; spread over the whole run are {', '.join(parts)}" if parts else "; no schedule depends on it"
    return f"{new.length.steps} steps in place of {old.length.steps}{follow}"


def restate_run(run: RunDir, checkpoint: Checkpoint, old: Config, new: Config) -> None:
    """Write new settings into all checkpoints of a run, and reopen the end of one that goes on.

    last.pt comes last: a run that is killed in between is asked for the same once more.
    """
    data = {name: getattr(new.data, name) for name in PATHS}
    for path in sorted((run.path / "checkpoints").glob("*.pt")):
        if path != run.last and new.data != old.data:
            other = load_checkpoint(path)
            save_checkpoint(replace(other, config=_with_data(other.config, data)), path)
    config, progress = _with_data(checkpoint.config, data), checkpoint.progress
    if new.length.steps > progress.step:
        config["length"] = {**config["length"], "steps": new.length.steps}
        progress = replace(progress, ending=None)
        Path(run.path / SCORES_FILE).unlink(missing_ok=True)  # of the former end
    save_checkpoint(replace(checkpoint, config=config, progress=progress), run.last)


def _with_data(config: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {**config, "data": {**config["data"], **data}}
