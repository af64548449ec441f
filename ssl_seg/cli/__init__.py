"""The command line. Heavy libraries are imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys

from ssl_seg.errors import SslSegError


def main() -> None:
    """Run ``ssl-seg``: errors the user can mend become one message and exit code 2 (3 for a refusal)."""
    from ssl_seg.cli.app import app

    try:
        app(prog_name="ssl-seg")
    except SslSegError as error:
        if not is_main_process():
            sys.exit(0)  # the launcher would kill the first process, which is about to report the same error
        sys.stderr.write(f"ssl-seg: error: {error}\n")
        sys.exit(error.exit_code)


def is_main_process() -> bool:
    """Return whether this is the process of a distributed run that reports."""
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
