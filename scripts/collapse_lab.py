r"""The collapse laboratory: faults that the monitor has to name, healthy runs that it has to leave alone.

    python scripts/collapse_lab.py faults            # (a) each fault in a small training, 3 seeds
    python scripts/collapse_lab.py healthy           # (b) 20 trainings without a fault
    python scripts/collapse_lab.py situations        # (d) few cases, empty masks, ...
    python scripts/collapse_lab.py remedies          # (e) each advised action, on a fault
    python scripts/collapse_lab.py replay            # (c) the number series of five reports of failed trainings
    python scripts/collapse_reproduce.py             # (f) "works at 1 %, fails at 10 %": a script of its own
    python scripts/collapse_lab.py recover           # a task that collapses, with and without on_collapse=recover
    python scripts/collapse_lab.py harmless          # healthy runs with the monitor and as bare loops: equal bits?
    python scripts/collapse_lab.py overhead          # seconds for the monitor's figures and for its looks

Each prints a Markdown table. Runs are written below --out, and made anew each time; `faults --again` and
`healthy --again` judge the looks of the last time by the rules of now, without training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def run_faults(args: argparse.Namespace) -> str:
    """Return the table of the faults."""
    from lab.coverage import audit_coverage
    from lab.faults import SEEDS, run_faults
    from lab.tables import format_coverage, format_faults

    results = run_faults(args.out, tuple(args.seeds or SEEDS), tuple(args.only), args.workers, again=args.again)
    if args.only or args.again:
        return format_faults(results)
    return f"{format_faults(results)}\n\n{format_coverage(audit_coverage(args.out))}"


def run_healthy(args: argparse.Namespace) -> str:
    """Return the table of the healthy runs."""
    from lab.studies import run_all_healthy
    from lab.tables import format_healthy

    results = run_all_healthy(args.out, tuple(args.data), args.workers, first_seed=args.first_seed, again=args.again)
    return format_healthy(results)


def run_situations(args: argparse.Namespace) -> str:
    """Return the table of what users come with."""
    from lab.situations import SEEDS, run_situations
    from lab.tables import format_situations

    seeds = tuple(args.seeds or SEEDS)
    return format_situations(run_situations(args.out, seeds, tuple(args.only), args.workers))


def run_remedies(args: argparse.Namespace) -> str:
    """Return the table of the actions."""
    from lab.faults import SEEDS
    from lab.remedies import run_remedies
    from lab.tables import format_remedies

    return format_remedies(run_remedies(args.out, tuple(args.seeds or SEEDS), args.workers))


def run_replay(args: argparse.Namespace) -> str:  # noqa: ARG001 (all commands take it)
    """Return the table of the replays."""
    from lab.replay import replay_all, replay_folders_000
    from lab.tables import format_replays

    return format_replays(list(replay_all()), replay_folders_000())


def run_recover(args: argparse.Namespace) -> str:
    """Return the table of the task that collapses."""
    from lab.studies import run_recoveries
    from lab.tables import format_recoveries

    return format_recoveries(run_recoveries(args.out, tuple(args.seeds or range(10)), args.workers))


def run_harmless(args: argparse.Namespace) -> str:
    """Return the count of runs that the monitor left as they are."""
    from lab.studies import run_all_harmless
    from lab.tables import format_harmless

    return format_harmless(run_all_harmless(args.out, tuple(args.seeds or range(10)), args.workers))


def run_overhead(args: argparse.Namespace) -> str:
    """Return what watching costs."""
    from lab.studies import measure_overhead
    from lab.tables import format_overhead

    return format_overhead(measure_overhead(args.out / "overhead", args.blocks, settings=json.loads(args.settings)))


COMMANDS: dict[str, Any] = {
    "faults": run_faults,
    "healthy": run_healthy,
    "situations": run_situations,
    "remedies": run_remedies,
    "replay": run_replay,
    "recover": run_recover,
    "harmless": run_harmless,
    "overhead": run_overhead,
}


def main() -> None:
    """Run one of the studies and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in COMMANDS.items():
        own = commands.add_parser(name, help=function.__doc__)
        own.add_argument("--out", type=Path, default=Path("runs/collapse_lab"))
        own.add_argument("--workers", type=int, default=2)
        if name in {"faults", "situations", "remedies", "recover", "harmless"}:
            own.add_argument(
                "--seeds",
                type=int,
                nargs="+",
                help="default: 3 for faults and remedies, 20 for situations, 10 for the others",
            )
        if name in {"faults", "healthy"}:
            own.add_argument("--again", action="store_true", help="judge the last runs by the rules of now")
        if name in {"faults", "situations"}:
            own.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="those whose name contains it")
        if name == "healthy":
            own.add_argument("--data", nargs="+", default=[], metavar="FOLDER", help="further data, 6 trainings each")
            own.add_argument("--first-seed", type=int, default=0)
        if name == "overhead":
            own.add_argument("--blocks", type=int, default=12, help="pairs of blocks of steps")
            own.add_argument("--settings", default="{}", help="JSON of settings, nested; default: those planned")
    args = parser.parse_args()
    print(COMMANDS[args.command](args))


if __name__ == "__main__":
    main()
