"""scripts/reliability.py in miniature, and that it sees faults."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from pathlib import Path

import pytest
import reliability
from fuzz.commands import Outcome
from fuzz.mutations import MUTATIONS


def test_a_killed_training_and_damaged_files(tmp_path: Path) -> None:
    rows = reliability.run_campaign(tmp_path, seed=0, kills=1, mutations=2, faults=0)
    assert [row.part for row in rows] == ["kill", "mutation", "mutation"]
    assert not [row for row in rows if row.faults]
    assert "kill      train                    1" in reliability.make_table(rows)


def test_other_bits_and_a_command_that_does_not_go_on_are_faults(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "scores.json").write_text("{}")
    job = reliability._same("", "methods", "scores.json")
    expected = reliability.describe(tmp_path / "work", job.made)
    assert reliability.go_on(job, tmp_path / "work", expected) == []
    (tmp_path / "work" / "scores.json").write_text('{"f1": 1}')
    assert reliability.go_on(job, tmp_path / "work", expected) == ["scores.json has other bits"]
    (tmp_path / "work" / "last.pt").write_bytes(b"PK")
    both = reliability._same("", "methods", "scores.json", "last.pt")
    assert "last.pt" in reliability.describe(tmp_path / "work", both.made), (
        "half a checkpoint does not end the campaign"
    )
    broken = reliability._same("", "export nothing.pt out.ts", "scores.json")
    assert reliability.go_on(broken, tmp_path / "work", expected)[0] == "does not go on"


def test_a_traceback_a_crash_and_too_long_a_time_are_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reliability.end_faults(Outcome(("train", "x"), 2, "", "ssl-seg: error: no x")) == []
    assert reliability.end_faults(Outcome(("train", "x"), 2, "", "Traceback ... ssl-seg: error: no x"))
    assert reliability.end_faults(Outcome(("train", "x"), -11, "", ""))
    monkeypatch.setattr(reliability, "SECONDS", 0.1)
    (tmp_path / "work").mkdir()
    slow = reliability.run_apart(("methods",), tmp_path / "work", prepare=lambda: time.sleep(3600))
    assert "took more than" in reliability.end_faults(slow)[0]


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_a_file_and_takes_an_empty_one(name: str) -> None:
    draw = reliability.random.Random(0)
    assert {MUTATIONS[name](b"a: 1\nb: 23\n", draw) for _ in range(9)} != {b"a: 1\nb: 23\n"}
    assert isinstance(MUTATIONS[name](b"", draw), bytes)


def sample(memory: float, files: int = 6) -> reliability.Sample:
    return reliability.Sample(0.0, memory, files)


def test_what_grows_during_a_soak_is_a_fault() -> None:
    flat = [sample(100), sample(300), sample(301), sample(300)] + [sample(302)] * 4
    assert reliability.find_growth(flat) == []
    assert reliability.find_growth([sample(300)] * 4 + [sample(304)] * 4) == ["memory grows from 300 to 304 MiB"]
    assert reliability.find_growth([sample(300)] * 4 + [sample(300, 7)] * 4) == ["open files grow from 6 to 7"]
    assert reliability.find_growth([sample(300, 9), sample(300, 6)] * 8) == [], "a file may be open for a moment"
    assert reliability.find_growth([sample(300)] * 3) == ["only 3 samples were taken"]


def test_a_process_is_sampled() -> None:
    now = reliability.take_sample(os.getpid(), time.monotonic())
    with Path(__file__).open():
        assert reliability.take_sample(os.getpid(), 0).files == now.files + 1
    assert now.memory > 10


@pytest.mark.parametrize("name", reliability.MACHINES)
def test_an_odd_machine_is_odd(name: str, tmp_path: Path) -> None:
    """In a process of its own: each kind of machine differs from this one in what it is named after."""

    def look() -> None:
        before, sync = (time.time(), time.monotonic()), os.fsync
        files, memory = (resource.getrlimit(limit) for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS))
        reliability.MACHINES[name]()
        with Path("found").open("w+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                os.write(file.fileno(), b"no file locks")
            begun = time.monotonic()
            os.fsync(file.fileno())
            waited = time.monotonic() - begun
            moved = [time.time() for _ in range(200)][-1] - before[0] - (time.monotonic() - before[1])
            limits = {"10 more open files": resource.getrlimit(resource.RLIMIT_NOFILE) != files,
                      "64 MiB more memory": resource.getrlimit(resource.RLIMIT_AS) != memory,
                      "slow disk": os.fsync is not sync and waited >= 0.3,
                      "clock an hour back": moved < -3000, "clock an hour on": moved > 3000}  # fmt: skip
            os.write(file.fileno(), next((kind for kind, holds in limits.items() if holds), "").encode())
        os._exit(0)

    (tmp_path / "work").mkdir()
    reliability.run_apart(("methods",), tmp_path / "work", prepare=look)
    assert (tmp_path / "work" / "found").read_text() == name
