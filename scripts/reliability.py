"""What survives: kills, damaged files, full disks, signals.

    python scripts/reliability.py [--kills 30] [--mutations 100] [--faults 24] [--soak MINUTES] [--seed 0] [--json FILE]

Everything happens in a temporary folder with a small synthetic data set. Each command runs in a process of its own,
forked from this one.

(a) Kills: trainings, ladders, ablations, calibrations, predictions and exports are ended with -9 at random moments and
    given again. The result must have the bits of one that was left alone.
(b) Mutations: a file of the data, a configuration, a split, a checkpoint or a file of a run is damaged, and commands
    read it, with limits of memory and time. They must end with one clear error and exit code 2 (or 3: refused), or do
    their work; never with a traceback, and no other file may change.
(c) Faults: a full disk, a read-only folder, a file that vanishes in mid-run, an odd machine (no file locks, a clock
    that jumps by an hour, a slow disk, few open files, little memory), Ctrl-C and SIGTERM at random moments. They must
    be one clear error, and the command given again must end with the same bits.
(d) Soak: one training with a look every 20 steps for so many minutes; memory and open files must not grow.

Prints a table and the faults; exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
import yaml
from fuzz.commands import DONE, REFUSED, USER_ERROR, Outcome, call, check_end
from fuzz.mutations import MUTATIONS

from ssl_seg.data.synthetic import write_dataset
from ssl_seg.run import training  # noqa: F401 - imported once, for all the processes that are forked

SECONDS = 1800
"""Time after which a command counts as hanging, however busy the machine is."""
PROCESSOR_SECONDS, MEMORY = 120, 4 * 2**30
"""What a command on damaged files may take; memory beyond that of this process, in bytes."""
INTERRUPTED = 130
SAMPLE_SECONDS = 5

TINY: dict[str, Any] = {
    "data": {"root": "data", "patch_size": [32, 32]},
    "network": {"name": "dynunet", "features": 2},
    "batch": {"labeled": 2},
    "split": {"labels": 0.5},
    "length": {"steps": 8, "steps_per_epoch": 2},
    "monitor": {"probe_patches": 6, "train_probe_patches": 2},
    "runtime": {"precision": "fp32", "accelerator": "cpu", "memory_format": "contiguous"},
}


@dataclass(frozen=True)
class Job:
    """A command with the files that it makes, and the commands of which one goes on after a kill."""

    name: str
    command: tuple[str, ...]
    go_on: tuple[tuple[str, ...], ...]
    made: tuple[str, ...]


def _same(name: str, command: str, *made: str) -> Job:
    words = tuple(command.split())
    return Job(name, words, (words,), made)


LADDER = ("ladder", "--config", "tiny.yaml", "--labels", "2", "4", "--force", "--out", "disk/out")
JOBS = (
    Job("train", ("train", "--config", "tiny.yaml", "--out", "disk/out"),
        (("train", "--resume", "disk/out"), ("train", "--config", "tiny.yaml", "--out", "disk/out")), ("disk/out",)),
    Job("ladder", LADDER, (("ladder", "--resume", "disk/out"), LADDER), ("disk/out",)),
    _same("ablate", "ablate spec.yaml --out disk/out --workers 1", "disk/out"),
    _same("calibrate", "calibrate run", "run"),
    _same("predict", "predict run data/images disk/out", "disk/out"),
    _same("export", "export run disk/net.ts --overwrite", "disk/net.ts"),
)  # fmt: skip
NAMES = tuple(job.name for job in JOBS)


@dataclass(frozen=True)
class Row:
    """One trial: what was done to what, how it ended, and what was wrong with that."""

    part: str
    target: str
    what: str
    code: int
    said: str
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """What a process holds ``seconds`` after its start: MiB of memory, and open files."""

    seconds: float
    memory: float
    files: int


def take_sample(process: int, begun: float) -> Sample:
    """Return what a process that runs holds now."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return Sample(time.monotonic() - begun, pages * resource.getpagesize() / 2**20, files)


def find_growth(samples: Sequence[Sample]) -> list[str]:
    """Return what grows: the medians of the second and of the last quarter of the samples are compared."""
    quarter = len(samples) // 4
    if not quarter:
        return [f"only {len(samples)} samples were taken"]
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    memory = [statistics.median(sample.memory for sample in part) for part in (early, late)]
    files = [statistics.median(sample.files for sample in part) for part in (early, late)]
    faults = [f"memory grows from {memory[0]:.0f} to {memory[1]:.0f} MiB"] if memory[1] > 1.01 * memory[0] else []
    return faults + ([f"open files grow from {files[0]:g} to {files[1]:g}"] if files[1] > files[0] else [])


def run_apart(
    command: tuple[str, ...],
    folder: Path,
    *,
    stop: tuple[int, float] | None = None,
    prepare: Callable[[], None] = lambda: None,
    watch: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Run the command line in a forked process, whose working directory is ``folder``.

    Args:
        command: without ``ssl-seg``.
        folder: has relative paths of the command.
        stop: a signal, and after how many seconds it is sent.
        prepare: called in the new process before.
        watch: called with its number again and again while it runs.

    Returns:
        How it ended; the code is negative for a signal, and -SIGXCPU where the time was up.
    """
    log = folder.parent / f"{folder.name}.log"
    log.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(Exception, KeyboardInterrupt):
            os.setsid()
            os.chdir(folder)
            prepare()
            outcome = call(*command)
            code = outcome.code
            log.write_text(json.dumps(asdict(outcome)))
        os._exit(code)
    code = _wait(child, time.monotonic() + SECONDS + (0 if stop is None else stop[1]), stop, watch)
    if not log.exists():
        return Outcome(command, code, "", "")
    return Outcome(**{**json.loads(log.read_text()), "command": command})


def _wait(child: int, end: float, stop: tuple[int, float] | None, watch: Callable[[int], None]) -> int:
    """Return the exit code of a process, after it was sent a signal, or killed when its time is up."""
    due = None if stop is None else time.monotonic() + stop[1]
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # the workers of an ablation
            return os.waitstatus_to_exitcode(status)
        if due is not None and stop is not None and time.monotonic() > due:
            os.kill(child, stop[0])
            due = None
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGXCPU
        watch(child)
        time.sleep(0.005)


def make_base(folder: Path) -> None:
    """Write data, configurations and a finished run below ``folder``.

    Raises:
        RuntimeError: if the training fails.
    """
    write_dataset(folder / "data", "particles", 12, labeled=10)
    (folder / "disk").mkdir()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    spec = {"settings": {k: v for k, v in TINY.items() if k != "split"}, "labels": [0.5], "split_seeds": [0]}
    (folder / "spec.yaml").write_text(yaml.safe_dump({**spec, "methods": ["supervised"]}))
    done = run_apart(("train", "--config", "tiny.yaml", "--out", "run"), folder)
    if done.code != DONE:
        raise RuntimeError(f"the training of the base ended with {done.code}: {done.err}")


def describe(folder: Path, made: tuple[str, ...]) -> dict[str, str]:
    """Return the hash of each result: networks of checkpoints, final scores, masks, exported networks."""
    found = {}
    for path in sorted(p for name in made for p in [folder / name, *(folder / name).rglob("*")] if p.is_file()):
        content: Any = None
        if path.suffix == ".pt" and not path.name.startswith("."):
            content = _load_networks(path)
        elif path.suffix == ".ts":
            content = dict(torch.jit.load(path).state_dict())
        elif path.name == "scores.json" or "calibration" in path.name:
            content = json.loads(path.read_text())
        elif path.suffix == ".png":
            content = path.read_bytes()
        if content is not None:
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(_flatten(content)).hexdigest()
    return found


def _load_networks(path: Path) -> Any:
    """Return the networks and the optimizer of a checkpoint; of one that cannot be read, why."""
    try:
        content = torch.load(path, weights_only=True)
        return {key: content[key] for key in ("student", "teacher", "optimizer") if key in content}
    except Exception as error:  # noqa: BLE001 - whatever a file that a kill has left behind makes torch raise
        return f"cannot be read: {error}"


def _flatten(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(str(key).encode() + _flatten(item) for key, item in sorted(value.items(), key=str))
    if isinstance(value, list | tuple):
        return b"".join(map(_flatten, value))
    return value if isinstance(value, bytes) else repr(value).encode()


def hash_files(folder: Path) -> dict[str, str]:
    """Return the hash of each file, those of this toolkit's own records aside."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".ssl_seg" not in p.parts]
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def end_faults(outcome: Outcome, allowed: tuple[int, ...] = (DONE, USER_ERROR, REFUSED)) -> list[str]:
    """Return what is wrong with the end of a command."""
    if outcome.code == -signal.SIGXCPU:
        return [f"`{' '.join(outcome.command)}` took more than {PROCESSOR_SECONDS} s of a processor, or hangs"]
    return list(check_end(outcome, allowed))


def find_message(outcome: Outcome) -> str:
    """Return the beginning of the error that a command told; nothing where it told none."""
    return outcome.err.partition("ssl-seg: error:")[2].strip().split("\n")[0][:120]


def go_on(job: Job, folder: Path, expected: dict[str, str]) -> list[str]:
    """Give a command again and return what is wrong with what comes of it."""
    said = []
    for command in job.go_on:
        outcome = run_apart(command, folder)
        if "remove the folder, or " in outcome.err:  # ended before its first checkpoint: there is nothing to go on from
            shutil.rmtree(folder / job.made[0])
            outcome = run_apart(command, folder)
        if outcome.code == DONE or "is finished" in outcome.err:  # the kill may have come too late
            found = describe(folder, job.made)
            return [f"{name} has other bits" for name in expected if found.get(name) != expected[name]]
        said += end_faults(outcome, (USER_ERROR,)) or [f"`{' '.join(command)}`: {outcome.err[-300:]}"]
    return ["does not go on", *said]


class Bench:
    """A folder of trials: copies of one base, and what each job leaves when nothing disturbs it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.base = folder / "base"
        self.base.mkdir()
        make_base(self.base)
        self._known: dict[str, tuple[dict[str, str], float]] = {}

    @contextlib.contextmanager
    def trial(self) -> Iterator[Path]:
        """Yield a copy of the base, which is removed afterwards."""
        copy = Path(shutil.copytree(self.base, self.folder / "trial"))
        try:
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def know(self, job: Job) -> tuple[dict[str, str], float]:
        """Return what a job leaves behind undisturbed, and how long it takes."""
        if job.name not in self._known:
            with self.trial() as folder:
                begun = time.monotonic()
                done = run_apart(job.command, folder)
                if done.code != DONE:
                    raise RuntimeError(f"`{' '.join(job.command)}` ended with {done.code}: {done.err}")
                self._known[job.name] = describe(folder, job.made), time.monotonic() - begun
        return self._known[job.name]

    def stop(self, job: Job, number: int, part: str = "kill") -> Row:
        """Send a job a signal at a random moment, once or twice, and give it again."""
        expected, seconds = self.know(job)
        moments = [self.random.uniform(0.02, 1.0) * seconds for _ in range(self.random.choice([1, 1, 2]))]
        faults: list[str] = []
        with self.trial() as folder:
            for command, moment in zip((job.command, job.go_on[0]), moments, strict=False):
                outcome = run_apart(command, folder, stop=(number, moment))
                if number != signal.SIGKILL:
                    faults += end_faults(outcome, (DONE, USER_ERROR, INTERRUPTED, -number))
            faults += go_on(job, folder, expected)
        shown = " and ".join(f"{moment:.2f}" for moment in moments)
        return Row(part, job.name, f"{signal.Signals(number).name} after {shown} s", outcome.code, "", tuple(faults))

    def mutate(self, number: int) -> Row:
        """Damage one file and let commands read it."""
        draw = random.Random(f"{number} of {self.random.random()}")
        with self.trial() as folder:
            files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".ssl_seg" not in p.parts]
            kinds = sorted({(p.parent.name, p.suffix) for p in files})
            kind = kinds[number % len(kinds)]
            path = draw.choice([p for p in files if (p.parent.name, p.suffix) == kind])
            name, change = draw.choice(sorted(MUTATIONS.items()))
            path.write_bytes(change(path.read_bytes(), draw))
            before = hash_files(folder)
            command = draw.choice(_list_readers(path.relative_to(folder)))
            outcome = run_apart(command, folder, prepare=_limit)
            faults = end_faults(outcome)
            after = hash_files(folder)
            kept = {n: h for n, h in before.items() if not n.startswith("run/") or "--resume" not in command}
            faults += [f"{n} has changed" for n, h in kept.items() if after.get(n) != h]
        what = f"{name}, {' '.join(command[:2])}"
        return Row(
            "mutation", path.relative_to(folder).as_posix(), what, outcome.code, find_message(outcome), tuple(faults)
        )

    def vanish(self, job: Job) -> Row:
        """Remove the images at a random write of a job; once they are back, it is given again."""
        expected, _ = self.know(job)
        number = self.random.randrange(1, 8)
        with self.trial() as folder:
            outcome = run_apart(job.command, folder, prepare=lambda: _at_write(number, _hide_images))
            faults = end_faults(outcome)
            with contextlib.suppress(FileNotFoundError):
                (folder / "hidden").rename(folder / "data" / "images")
            faults += go_on(job, folder, expected)
        return Row(
            "fault", job.name, f"images vanish at write {number}", outcome.code, find_message(outcome), tuple(faults)
        )

    def disturb_machine(self, job: Job) -> Row:
        """Run a job on an odd machine; then it is given again on a common one."""
        expected, _ = self.know(job)
        name, prepare = self.random.choice(sorted(MACHINES.items()))
        with self.trial() as folder:
            outcome = run_apart(job.command, folder, prepare=prepare)
            faults = end_faults(outcome) + go_on(job, folder, expected)
        return Row("fault", job.name, name, outcome.code, find_message(outcome), tuple(faults))

    def fill_disk(self, job: Job) -> Row:
        """Let a job write little; once there is room, it is given again."""
        expected, _ = self.know(job)
        kilobytes = self.random.choice([0, 8, 40, 120])
        with self.trial() as folder, _small_disk(folder, job, kilobytes) as (what, prepare, enlarge):
            outcome = run_apart(job.command, folder, prepare=prepare)
            faults = end_faults(outcome)
            enlarge()
            faults += go_on(job, folder, expected)
        return Row("fault", job.name, f"{what} of {kilobytes} kB", outcome.code, find_message(outcome), tuple(faults))

    def soak(self, minutes: float) -> Row:
        """Train for so long, then press Ctrl-C, and go on for a few steps; what the process held is sampled."""
        begun, samples = time.monotonic(), list[Sample]()

        def watch(process: int) -> None:
            if time.monotonic() - begun >= SAMPLE_SECONDS * (len(samples) + 1):
                samples.append(take_sample(process, begun))

        with self.trial() as folder:
            (folder / "soak.yaml").write_text(
                yaml.safe_dump({**TINY, "length": {"steps": 10**6, "steps_per_epoch": 20}})
            )
            command = ("train", "--config", "soak.yaml", "--out", "disk/out")
            outcome = run_apart(command, folder, stop=(signal.SIGINT, 60 * minutes), watch=watch)
            faults = end_faults(outcome, (INTERRUPTED,)) + find_growth(samples)
            steps = json.loads((folder / "disk/out/metrics.jsonl").read_text().splitlines()[-1])["step"]
        what = f"{minutes:g} minutes, {steps} steps, {describe_samples(samples)}"
        return Row("soak", "train", what, outcome.code, "", tuple(faults))


def describe_samples(samples: Sequence[Sample]) -> str:
    """Return memory and open files after a quarter of the time and at its end, and the most."""
    early, late = samples[len(samples) // 4], samples[-1]
    most = max(sample.memory for sample in samples)
    return (
        f"{early.memory:.0f} MiB after {early.seconds:.0f} s, {late.memory:.0f} at the end, {most:.0f} at most, "
        f"{early.files} and {late.files} open files"
    )


def _list_readers(path: Path) -> list[tuple[str, ...]]:
    """Return the commands that read a file of the base."""
    if path.parts[0] == "data":
        return [("data", "audit", "data"), ("train", "--config", "tiny.yaml", "--out", "disk/out"),
                ("predict", "run", "data/images", "disk/out"), ("evaluate", "run")]  # fmt: skip
    if path.name == "tiny.yaml":
        return [("config", "check", "tiny.yaml"), ("train", "--config", "tiny.yaml", "--out", "disk/out")]
    if path.name == "spec.yaml":
        return [("ablate", "spec.yaml", "--out", "disk/out", "--dry-run")]
    whole = [("evaluate", "run"), ("predict", "run", "data/images", "disk/out"), ("train", "--resume", "run"),
             ("diagnose", "run"), ("train", "--bootstrap", "run", "--out", "disk/out")]  # fmt: skip
    return [("split", "check", str(path), "--data", "data"), *whole] if path.name == "split.yaml" else whole


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 10))
    _limit_memory(MEMORY)


def _limit_memory(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _refuse_locks() -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    fcntl.flock = refuse  # type: ignore[assignment]


def _jump(seconds: float) -> None:
    """Let the clock jump at its hundredth reading."""
    read, count = time.time, itertools.count()
    time.time = lambda: read() + (seconds if next(count) >= 100 else 0.0)


def _slow_down() -> None:
    sync = os.fsync

    def wait(file: int) -> None:
        time.sleep(0.3)
        sync(file)

    os.fsync = wait  # type: ignore[assignment]


def _limit_files() -> None:
    """Allow ten files more than are open: a process that is forked has those of its parent."""
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 11, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


MACHINES: dict[str, Callable[[], None]] = {
    "no file locks": _refuse_locks,
    "clock an hour back": lambda: _jump(-3600),
    "clock an hour on": lambda: _jump(3600),
    "slow disk": _slow_down,
    "10 more open files": _limit_files,
    "64 MiB more memory": lambda: _limit_memory(64 * 2**20),
}


def _at_write(number: int, act: Callable[[], None]) -> None:
    """Act before the number-th file of this process is put in its place."""
    replace, count = Path.replace, [0]

    def count_and_replace(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == number:
            act()
        return replace(self, target)

    Path.replace = count_and_replace  # type: ignore[method-assign, assignment]


def _hide_images() -> None:
    Path("data/images").rename("hidden")


@contextlib.contextmanager
def _small_disk(folder: Path, job: Job, kilobytes: int) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Make little room for what a job writes, none at all for 0 kB.

    Yields what that is (a tmpfs where one may be mounted, else a limit of the size of each file), a function that the
    new process calls, and one that makes more room.
    """
    place = str(folder / "disk")
    options = f"size={kilobytes}k" if kilobytes else "ro"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place]
    if job.name == "calibrate" or subprocess.run(mount, capture_output=True, check=False).returncode:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        limited = (kilobytes * 1024, limits[1])
        yield "files", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limited), lambda: None
        return
    try:
        yield "a disk", lambda: None, lambda: _run("mount", "-o", "remount,rw,size=64m", place)
    finally:
        _run("umount", place)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def run_campaign(
    folder: Path, seed: int, kills: int, mutations: int, faults: int, names: Sequence[str] = NAMES, soak: float = 0
) -> list[Row]:
    """Return all trials; those of kills and faults are of the jobs with these names, in turn."""
    bench, rows = Bench(folder, seed), list[Row]()
    jobs = [job for job in JOBS if job.name in names]
    for number in range(kills):
        rows.append(bench.stop(jobs[number % len(jobs)], signal.SIGKILL))
        _tell(rows[-1])
    for number in range(mutations):
        rows.append(bench.mutate(number))
        _tell(rows[-1])
    for number in range(faults):
        job = jobs[number % len(jobs)]
        disturb = (bench.fill_disk, bench.vanish, bench.disturb_machine,
                   lambda job: bench.stop(job, signal.SIGTERM, "fault"),
                   lambda job: bench.stop(job, signal.SIGINT, "fault"))[number // len(jobs) % 5]  # fmt: skip
        rows.append(disturb(job))
        _tell(rows[-1])
    if soak:
        rows.append(bench.soak(soak))
        _tell(rows[-1])
    return rows


def _tell(row: Row) -> None:
    print(f"{row.part} {row.target}, {row.what}: {row.code} {row.said}", *row.faults, sep="\n  FAULT ", flush=True)


def make_table(rows: list[Row]) -> str:
    """Return the number of trials and of faults of each part and target."""
    lines = ["part      target              trials  errors told  faults"]
    for part, target in sorted({(row.part, row.target.split("/")[0]) for row in rows}):
        own = [row for row in rows if (row.part, row.target.split("/")[0]) == (part, target)]
        told = sum(row.code in (USER_ERROR, REFUSED) for row in own)
        lines.append(f"{part:<9} {target:<18} {len(own):>7} {told:>12} {sum(bool(row.faults) for row in own):>7}")
    return "\n".join(lines)


def main() -> int:
    """Run the campaign and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--mutations", type=int, default=100)
    parser.add_argument("--faults", type=int, default=24)
    parser.add_argument("--jobs", nargs="+", choices=NAMES, default=NAMES, help="of kills and faults")
    parser.add_argument("--soak", type=float, default=0, metavar="MINUTES", help="none by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="reliability-") as folder:
        rows = run_campaign(Path(folder), args.seed, args.kills, args.mutations, args.faults, args.jobs, args.soak)
    print(make_table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.faults for row in rows))


if __name__ == "__main__":
    sys.exit(main())
