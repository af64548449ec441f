"""The order and the endings of trainings, whatever kind of study they belong to; see also the cells of ablations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ssl_seg.errors import ConfigError, SslSegError
from ssl_seg.studies import runner
from ssl_seg.studies.runner import FINISHED, Stage, Worker, run_trainings


class MadeUp:
    """Steps over names of trainings: ``begin`` says how each runs."""

    def __init__(self, begin: Callable[[str], Worker], last: str = "", recorded: bool = True) -> None:
        self.begin, self.last, self.recorded = begin, last, recorded
        self.told: list[str] = []
        self.stages: Mapping[str, Stage] = {}

    def find(self, name: str) -> Stage:
        return "done" if f"settle {name}" in self.told else "queued"

    def is_ready(self, _: str, stages: Mapping[str, Stage]) -> bool:
        return stages.get(self.last) != "done"

    def start(self, name: str) -> Worker:
        self.told.append(f"start {name}")
        return self.begin(name)

    def settle(self, name: str, code: int) -> Stage:
        self.told.append(f"settle {name}")
        if code:
            raise ConfigError(f"code {code}")
        return "done"

    def fail(self, name: str, error: SslSegError) -> Stage:
        if not self.recorded:
            raise error
        self.told.append(f"{name}: {error}")
        return "failed"

    def show(self, stages: Mapping[str, Stage]) -> None:
        self.stages = dict(stages)


def run(steps: MadeUp, names: str, slots: int = 1) -> str:
    return run_trainings({name: name for name in names}, steps, slots)


def test_trainings_that_run_here_follow_each_other_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner.time, "sleep", lambda _: pytest.fail("it waits"))
    steps = MadeUp(lambda _: FINISHED)
    assert run(steps, "ab") == "finished"
    assert steps.told == ["start a", "settle a", "start b", "settle b"]
    assert steps.stages == {"a": "done", "b": "done"}
    assert run(steps, "ab") == "finished"
    assert len(steps.told) == 4


def test_what_is_never_ready_is_left() -> None:
    steps = MadeUp(lambda _: FINISHED, last="a")
    assert run(steps, "ab") == "finished"
    assert steps.stages == {"a": "done", "b": "queued"}


@pytest.mark.parametrize("where", ["start", "end"])
def test_a_failure_is_recorded_or_ends_all(where: str) -> None:
    stopped: list[str] = []

    def begin(name: str) -> Worker:
        if name != "b":
            return Worker(lambda: 0 if stopped else None, lambda: stopped.append(name)) if name == "a" else FINISHED
        if where == "start":
            raise ConfigError("code 2")
        return Worker(lambda: 2, lambda: None)

    with pytest.raises(ConfigError, match="code 2"):
        run(MadeUp(begin, recorded=False), "abc", slots=3)
    assert stopped == ["a"]  # what ran beside it was told to save its state
    steps = MadeUp(begin)
    assert run(steps, "abc", slots=3) == "finished"
    assert steps.stages == {"a": "done", "b": "failed", "c": "done"}
    assert "b: code 2" in steps.told


def test_an_interrupt_within_a_training_ends_all() -> None:
    def interrupt(_: str) -> Worker:
        raise KeyboardInterrupt

    steps = MadeUp(interrupt)
    assert run(steps, "ab") == "interrupted"
    assert steps.told == ["start a"]
