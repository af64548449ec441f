"""Runs what is missing of a study: as many trainings at a time as there is room for, until all are done or have failed.

Ladders and cross-validations run theirs in this process, ablations in processes of their own, here or on a Ray cluster.
How far a study has come stands on the disk alone, so that one that was killed anywhere is run again and goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from ssl_seg.errors import SslSegError

Stage = Literal["queued", "running", "elsewhere", "done", "collapsed", "refused", "skipped", "failed"]
"""How far a training is; ``elsewhere`` means that another process works on it."""

TICK = 0.3
"""Seconds between two looks at the workers."""
HELD_PAUSE = 10.0
"""Seconds until a training that another process works on is tried again."""
GRACE = 60.0
"""Seconds that stopped trainings get to save their state."""

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True)
class Worker:
    """A training that was started somewhere."""

    poll: Callable[[], int | None]
    """Returns its exit code, or None while it waits or runs."""
    stop: Callable[[], None]
    """Asks it to save its state and end."""


FINISHED = Worker(lambda: 0, lambda: None)
"""A training that ran to its end when it was started."""


class Steps(Protocol[T_contra]):
    """What a kind of study decides for itself.

    ``is_ready``, ``start`` and ``settle`` raise SslSegError for a training that has failed.
    """

    def find(self, training: T_contra, /) -> Stage:
        """Return the stage by what is on the disk; ``queued`` for what is to be trained."""
        ...

    def is_ready(self, training: T_contra, stages: Mapping[str, Stage], /) -> bool:
        """Return whether a queued training may begin, given the stages of all."""
        ...

    def start(self, training: T_contra, /) -> Worker:
        """Begin or continue a training."""
        ...

    def settle(self, training: T_contra, code: int, /) -> Stage:
        """Take note of a training that has ended with an exit code."""
        ...

    def fail(self, training: T_contra, error: SslSegError, /) -> Stage:
        """Record that a training has failed, or raise an error, which ends the study."""
        ...

    def show(self, stages: Mapping[str, Stage], /) -> None:
        """Tell the stages of all; called often."""
        ...


def run_trainings(trainings: Mapping[str, T], steps: Steps[T], slots: int) -> Literal["finished", "interrupted"]:
    """Run all trainings that are not done, in their order.

    Whatever ends it, also an interrupt, the trainings that run save their state first.

    Args:
        trainings: by name; each comes after those that it waits for.
        steps: what the kind of study decides.
        slots: how many may run at a time.

    Returns:
        ``interrupted`` after a KeyboardInterrupt, else ``finished``, even if some failed or never were ready.
    """
    work = _Work(trainings, steps, slots)
    try:
        while True:
            work.start_ready()
            steps.show(work.stages)
            if work.collect():
                continue
            if not work.is_busy:
                return "finished"
            time.sleep(TICK)
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        work.stop()


class _Work(Generic[T]):
    """The stage of each training, and the workers that run."""

    def __init__(self, trainings: Mapping[str, T], steps: Steps[T], slots: int) -> None:
        self.trainings, self.steps, self.slots = trainings, steps, slots
        self.stages: dict[str, Stage] = {name: steps.find(training) for name, training in trainings.items()}
        self.workers: dict[str, Worker] = {}
        self.due: dict[str, float] = {}
        """When a training that another process works on is tried again."""

    @property
    def is_busy(self) -> bool:
        return bool(self.workers) or "elsewhere" in self.stages.values()

    def start_ready(self) -> None:
        """Start as many trainings as there is room for."""
        for name, training in self.trainings.items():
            if self.stages[name] == "elsewhere" and time.monotonic() > self.due[name]:
                self.stages[name] = "queued"
            if self.stages[name] == "queued":
                try:
                    self._start(name, training)
                except SslSegError as error:
                    self.stages[name] = self.steps.fail(training, error)

    def collect(self) -> bool:
        """Take note of the workers that have ended; return whether there were any."""
        ended = {name: code for name, worker in self.workers.items() if (code := worker.poll()) is not None}
        for name, code in ended.items():
            del self.workers[name]
            self.due[name] = time.monotonic() + HELD_PAUSE
            try:
                self.stages[name] = self.steps.settle(self.trainings[name], code)
            except SslSegError as error:
                self.stages[name] = self.steps.fail(self.trainings[name], error)
        return bool(ended)

    def stop(self) -> None:
        """Let the trainings that run save their state, and wait for them."""
        for worker in self.workers.values():
            worker.stop()
        end = time.monotonic() + GRACE
        while any(worker.poll() is None for worker in self.workers.values()) and time.monotonic() < end:
            time.sleep(TICK)

    def _start(self, name: str, training: T) -> None:
        found = self.steps.find(training)
        if found != "queued":  # another process has finished it
            self.stages[name] = found
        elif self.steps.is_ready(training, self.stages) and len(self.workers) < self.slots:
            self.workers[name] = self.steps.start(training)
            self.stages[name] = "running"
