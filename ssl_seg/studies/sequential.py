"""Ladders and cross-validations: begun or continued, with their trainings in this process, one after the other.

With several processes (DDP) all of them take part in each training; the first one decides, writes and talks.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from lightning_fabric import Fabric

from ssl_seg.config import RuntimeConfig
from ssl_seg.config.layers import Layer, leave_out
from ssl_seg.data.open import absolute_paths, absolute_root
from ssl_seg.engine.devices import call_on_main
from ssl_seg.engine.processes import open_fabric
from ssl_seg.errors import ConfigError, RefusedError, RunDirError, SslSegError, quote
from ssl_seg.files import hold_directory
from ssl_seg.results.study import Member, Study, StudyKind, check_request, load_study, save_study
from ssl_seg.run.console import Console
from ssl_seg.run.directory import CONFIG_FILE, RunDir
from ssl_seg.run.request import TrainRequest
from ssl_seg.run.resolve import resolve_runtime
from ssl_seg.run.training import train
from ssl_seg.studies.training import Outcome, Training, make_request, read_outcome

T = TypeVar("T", bound=Member)

OWN_SPLIT = frozenset(f"split.{name}" for name in ("file", "seed", "val_fraction", "test_fraction", "folds", "fold"))
"""Settings of which the splits of a study have been made; its trainings read them from files."""


@dataclass(frozen=True)
class AfterEach:
    """What the first process is to do while a study goes on, such as to write a page."""

    look: Callable[[Path], None]
    """Called with the directory of a training when a look of it is recorded."""
    training: Callable[[Path], None]
    """Called with the directory of a training that has ended, and with that of the study which holds its outcome."""


IN_SILENCE = AfterEach(lambda _: None, lambda _: None)


@dataclass(frozen=True)
class StudySteps(Generic[T]):
    """What a kind of study decides for itself."""

    create: Callable[[Fabric], Study[T]]
    """Makes a new study."""
    reopen: Callable[[Study[T]], Study[T]]
    """Checks a study that is to be continued, and returns it without its ending."""
    plan: Callable[[Study[T], T], Training]
    """Returns how a training is begun."""
    judge: Callable[[Study[T], T, Outcome], Study[T]]
    """Adds the outcome of a training; a study with an ending goes no further."""
    refuse: Callable[[Study[T], T, str], Study[T]] | None = None
    """Adds that the gate has refused a training; without it that is an error."""


def run_study(
    kind: StudyKind[T], steps: StudySteps[T], request: TrainRequest, console: Console, after: AfterEach = IN_SILENCE
) -> Study[T]:
    """Train what is missing of a study, a new one or that in ``request.resume``; its ``ending`` says how far it went.

    How far it has come stands on the disk alone, so that one that was killed anywhere is continued.

    Args:
        kind: kind of the study.
        steps: what such a study decides.
        request: settings of all trainings; in a continuation only those of the machine.
        console: talks to the user.
        after: what is done while it goes on.

    Raises:
        SslSegError: for anything the user can fix.
    """
    check_request(kind, request)
    resume = None if request.resume is None else Path(request.resume)
    begun = () if resume is None else load_study(kind, resume).layers
    runtime = resolve_runtime(TrainRequest((*begun, *request.layers)))
    machine = (_pin_processes(runtime), *(() if resume is None else request.layers))
    with open_fabric(runtime) as fabric, ExitStack() as held:

        def begin() -> Study[T]:
            study = steps.create(fabric) if resume is None else load_study(kind, resume)
            held.enter_context(hold_directory(study.path, console.note))
            return study if resume is None else _reopen(kind, steps, resume, console)

        def save(study: Study[T], run: RunDir) -> Study[T]:
            save_study(kind, study)
            for path in (run.path, study.path) if run.path.exists() else (study.path,):
                after.training(path)
            return study

        def advance(study: Study[T], training: T) -> Study[T]:
            """Return the study with the outcome of a training that was waiting."""
            run = study.run_of(training)
            try:
                asked = call_on_main(
                    fabric, lambda: make_request(run, steps.plan(study, training), machine, console.note)
                )
                if asked is not None and train(asked, console, after.look).ending == "interrupted":
                    raise KeyboardInterrupt
                return call_on_main(fabric, lambda: save(_conclude(steps, study, training, console), run))
            except SslSegError as error:
                refuse, reason = steps.refuse, str(error)
                if refuse is None or not isinstance(error, RefusedError):
                    way = f"Once that is fixed: {kind.resume(study.path)}"
                    raise type(error)(f"{training.title}: {reason}\n{way}") from error
                return call_on_main(fabric, lambda: save(refuse(study, training, reason), run))

        study = call_on_main(fabric, begin)
        try:
            for place in range(len(study.trainings)):
                if study.ending is None and study.trainings[place].status == "waiting":
                    study = advance(study, study.trainings[place])
        except KeyboardInterrupt:
            return replace(study, ending="interrupted")
        if study.ending is not None:
            return study
        return call_on_main(fabric, lambda: save_study(kind, replace(study, ending="finished")))


def _reopen(kind: StudyKind[T], steps: StudySteps[T], path: Path, console: Console) -> Study[T]:
    """Return a study that is to be continued, read again now that no other process can change it."""
    study = steps.reopen(load_study(kind, path))
    done, count = sum(t.status != "waiting" for t in study.trainings), len(study.trainings)
    console.note(f"{kind.name}: {path} continues, {done} of {count} {kind.members} are done")
    return study


def _conclude(steps: StudySteps[T], study: Study[T], training: T, console: Console) -> Study[T]:
    """Return the study with the outcome of a training that has ended."""
    run = study.run_of(training)
    outcome = read_outcome(run)
    if outcome.stopped:
        codes = ", ".join(outcome.codes)
        console.note(f"{training.title}: COLLAPSED ({codes}); next: ssl-seg diagnose {quote(run.last)}")
    return steps.judge(study, training, outcome)


def check_resumable(
    kind: StudyKind[T], study: Study[T], request: TrainRequest, *others: Any, may: str = ""
) -> float | None:
    """Check what is asked for beside --resume, and return the minutes of the study.

    New minutes are allowed while no training has begun, settings of the machine always; another directory or length
    and ``others`` never. ``may`` names further options that are allowed, for the message.

    Raises:
        ConfigError: for anything else that is given.
        RunDirError: for a study that is finished.
    """
    begun, minutes = study.run_of(study.trainings[0]).path.exists(), request.minutes
    if minutes is not None and (study.minutes is None or begun):
        raise ConfigError(
            f"--minutes {minutes:g}: the steps of {study.path} are planned already, and --resume keeps them. Leave it "
            "out"
        )
    if any((request.out, request.epochs, *others)) or not request.has_only_runtime:
        raise ConfigError(
            f"--resume continues a {kind.name} with its own settings, data and lengths: give it without other options "
            f"(only {may}runtime settings such as --devices may be new)"
        )
    if study.ending == "finished":
        raise RunDirError(
            f"{study.path} is finished: all {len(study.trainings)} {kind.members} are done; nothing to resume"
        )
    return minutes or study.minutes


def make_training(
    study: Study[T], title: str, own: Layer, *, dropped: Collection[str], parent: Path | None = None
) -> Training:
    """Return how a training is begun: with the settings of the study that are not ``dropped``, its ``own``, and what
    was measured in the first run."""
    machine = read_machine(study.run_of(study.trainings[0]), study.layers, minutes=study.minutes)
    shared = [replace(layer, values=leave_out(layer.values, dropped)) for layer in study.layers]
    minutes = None if "length" in machine.values else study.minutes
    request = TrainRequest((*shared, own, machine), bootstrap=parent, epochs=study.epochs, minutes=minutes)
    return Training(replace(request, force=study.force), title)


def anchor_layer(layer: Layer) -> Layer:
    """Return the layer with absolute paths, so that the runs can be continued from any folder."""
    values, data, network = dict(layer.values), layer.values.get("data"), layer.values.get("network")
    if isinstance(data, dict):
        values["data"] = {**data, **absolute_paths(data)}
    if isinstance(network, dict) and isinstance(network.get("pretrained"), str):
        values["network"] = {**network, "pretrained": absolute_root(network["pretrained"])}
    return replace(layer, values=values)


def create_whole(path: Path, fill: Callable[[Path], object]) -> None:
    """Create a directory in one step: it is there with all that ``fill`` writes into it, or not at all.

    An empty directory that is there already may be the one the program works in, a link or a mount point: the files are
    moved into it, that by which the study is known last. Nothing but what ``fill`` has written is ever removed.

    Args:
        path: the directory, absent or empty.
        fill: writes files into the folder that it is given.

    Raises:
        RunDirError: when it cannot be created.
    """
    exists = path.is_dir()
    temporary = (path if exists else path.parent) / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        if exists:
            for file in sorted(temporary.iterdir(), key=lambda file: file.suffix == ".json"):
                file.rename(path / file.name)
        else:
            temporary.rename(path)
    except OSError as error:
        raise RunDirError(f"cannot create the directory {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _pin_processes(runtime: RuntimeConfig) -> Layer:
    """Return the processes of a study as a layer over the settings of each run: a run that was begun with others is
    continued with these, or the processes that are there would wait for those that are not."""
    names = ("accelerator", "devices", "num_nodes")
    return Layer("study", {"runtime": {name: getattr(runtime, name) for name in names}})


def read_machine(first: RunDir, layers: Sequence[Layer], *, minutes: float | None) -> Layer:
    """Return what was measured in the first run, for the others: precision, memory format, and steps for ``minutes``.

    Timed anew, the format might be another one, and runs that were killed would end with other bits; and runs of other
    lengths could not be compared. Empty before the first run.
    """
    path = first.path / CONFIG_FILE
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found, length = config.get("runtime", {}), {k: config[k] for k in ("length",) if k in config and minutes}
    given = TrainRequest(tuple(layers)).settings.section("runtime")
    choices = ("precision", "memory_format")
    runtime = {key: found[key] for key in choices if key in found and given.get(key, "auto") == "auto"}
    return Layer(first.path.name, {"runtime": runtime, **length})
