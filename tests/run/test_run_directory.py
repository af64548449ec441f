from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_seg.errors import InUseError, RunDirError
from ssl_seg.files import atomic_write, hold_directory, is_disk_full, next_free, read_jsonl
from ssl_seg.run.directory import RunDir, check_free, create_next_run_dir, create_run_dir, find_run_of, open_run_dir


def make_run(path: Path) -> RunDir:
    run = create_run_dir(path)
    (path / "config.yaml").write_text("seed: 0\n")
    return run


def test_an_existing_run_is_never_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.append_metrics({"step": 0})
    with pytest.raises(RunDirError, match=r"without a checkpoint .* remove the folder, or use --out .*run-2"):
        create_run_dir(tmp_path / "run")
    run.last.touch()
    with pytest.raises(RunDirError, match=r"--resume .*run, or use --out .*run-2"):
        create_run_dir(tmp_path / "run")
    assert run.read_metrics() == [{"step": 0}]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunDirError):
        create_run_dir(tmp_path / "run")
    with pytest.raises(RunDirError, match="cannot create"):
        create_run_dir(tmp_path / "run" / "below")
    assert (tmp_path / "run").read_text() == "mine"


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run directory"):
        open_run_dir(tmp_path / "nothing")
    with pytest.raises(RunDirError, match=r"no config\.yaml"):
        open_run_dir(tmp_path)


def test_records_survive_a_torn_last_line_and_nan(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.append_metrics({"step": 0, "a": math.nan, "b": [math.inf, 1.5]})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "a"')
    assert run.read_metrics() == [{"step": 0, "a": None, "b": [None, 1.5]}]


def test_a_record_after_a_torn_line_is_kept_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").write_text('{"event": "first"}\n{"event": "tor')
    run.append_event("second")
    assert [r["event"] for r in run.read_events()] == ["first", "second"]


def test_resume_drops_later_records_only(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for step in (0, 5, 10, 15):
        run.append_metrics({"step": step})
    for event in ({"event": "started"}, {"event": "verdict", "step": 10}, {"event": "intervention", "step": 11},
                  {"event": "resumed", "step": 15}, {"event": "test_opened"}):  # fmt: skip
        run.append_event(**event)  # type: ignore[arg-type]
    run.drop_after(10)
    assert [e["event"] for e in run.read_events()] == ["started", "verdict", "resumed", "test_opened"]
    assert [r["step"] for r in run.read_metrics()] == [0, 5, 10]


def test_atomic_write_keeps_the_old_file_on_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_run_of_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert find_run_of(run.last) == run
    assert find_run_of(tmp_path / "copied" / "somewhere" / "x.pt") is None


def test_next_free(tmp_path: Path) -> None:
    assert next_free(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert next_free(tmp_path / "a") == tmp_path / "a-3"


def test_next_free_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert next_free(Path()) == tmp_path / "here-2"
    assert next_free(Path("../here/..")) == tmp_path.with_name(f"{tmp_path.name}-2")


@pytest.mark.parametrize("name", ["run", "deep/run", "empty"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RunDirError, match=r"cannot create .*: permission denied for .*--out"):
        check_free(tmp_path / name)


def test_environment_is_recorded(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["packages"]["torch"]
    assert read_jsonl(tmp_path / "run" / "events.jsonl") == []


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    lines = (b'{"step": 1}', b'{"step": 2', b'{"step": 2, "event": "\xff"}', b"3", b"", '{"name": "é"}'.encode())
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    assert read_jsonl(tmp_path / "a.jsonl") == [{"step": 1}, {"name": "é"}]


def test_a_full_disk_is_recognized_behind_other_errors() -> None:
    def fail(number: int) -> RuntimeError:
        try:
            try:
                raise OSError(number, "no space")
            except OSError as cause:
                raise RuntimeError("unexpected pos 64 vs 0") from cause
        except RuntimeError as error:
            return error

    assert is_disk_full(fail(errno.ENOSPC))
    assert is_disk_full(OSError(errno.EDQUOT, "quota"))
    assert not is_disk_full(fail(errno.EACCES))
    assert not is_disk_full(RuntimeError("PytorchStreamWriter failed"))


def test_the_ending_of_a_run_is_what_it_said_last(tmp_path: Path) -> None:
    run = create_run_dir(tmp_path / "run")
    run.append_event("started")
    assert run.read_ending() is None
    run.append_event("intervention", step=40, rung="stop", codes=["all_negative"])
    assert run.read_ending() is None
    run.append_event("finished", step=50, verdict="ok")
    run.append_event("test_opened", cases=3)
    assert (run.read_ending() or {})["event"] == "finished"
    run.append_event("resumed", step=50)
    assert run.read_ending() is None
    run.append_event("stopped_early", step=70, verdict="ok")
    assert (run.read_ending() or {})["step"] == 70


class TestHold:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        with hold_directory(tmp_path):
            with pytest.raises(InUseError, match="is in use by another process: wait for it"), hold_directory(tmp_path):
                pass
            (tmp_path / "other").mkdir()
            with hold_directory(tmp_path / "other"):
                pass
        with hold_directory(tmp_path):
            pass

    def test_a_holder_that_is_killed_frees_it(self, tmp_path: Path) -> None:
        code = (
            "import sys, time\nfrom pathlib import Path\nfrom ssl_seg.files import hold_directory\n"
            "with hold_directory(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(3600)"
        )
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InUseError), hold_directory(tmp_path):
            pass
        process.kill()
        process.wait()
        with hold_directory(tmp_path):
            pass

    @pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
    def test_a_file_system_without_locks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
        notes: list[str] = []
        for _ in range(2):  # one after the other
            with hold_directory(tmp_path, notes.append):
                pass
        # Without flock alone, a file takes its place; nothing else is known of the others.
        assert len(notes) == (0 if code == errno.ENOSYS else 2)
        assert all("no locks" in note for note in notes)

    @pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
    def test_a_directory_that_cannot_be_written_to(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr("ssl_seg.files.FileLock.acquire", refuse)
        with pytest.raises(RunDirError, match="cannot be written to") as raised, hold_directory(tmp_path):
            pass
        assert not isinstance(raised.value, InUseError)


def test_of_two_that_choose_the_same_name_one_takes_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def late(path: Path) -> Path:
        free = next_free(path)
        if not asked:
            create_run_dir(free)  # the other one
        asked.append(free)
        return free

    monkeypatch.setattr("ssl_seg.run.directory.next_free", late)
    assert create_next_run_dir(tmp_path / "run").path == tmp_path / "run-2"
    (tmp_path / "file").touch()
    with pytest.raises(RunDirError, match="cannot create"):
        create_next_run_dir(tmp_path / "file" / "run")


def test_the_commit_of_a_configuration_is_recorded_where_there_is_one(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@x")
        return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("same.yaml", "edited.yaml", "ignored.yaml"):
        (folder / name).write_text("seed: 1\n")
    (folder / ".gitignore").write_text("ignored.yaml\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    (folder / "edited.yaml").write_text("seed: 2\n")
    (folder / "new.yaml").write_text("seed: 3\n")
    (tmp_path / "outside.yaml").write_text("seed: 4\n")
    head, files = git("rev-parse", "HEAD").strip(), [*sorted(folder.glob("*.yaml")), tmp_path / "outside.yaml"]
    create_run_dir(tmp_path / "run", files)
    commits = json.loads((tmp_path / "run" / "environment.json").read_text())["commits"]
    commits.pop("package", None)  # depends on how the package is installed
    assert {Path(name).name: row for name, row in commits.items()} == {
        "edited.yaml": {"commit": head, "changed": True},
        "new.yaml": {"commit": head, "changed": True},
        "same.yaml": {"commit": head, "changed": False},
    }
