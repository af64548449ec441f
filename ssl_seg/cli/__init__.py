"""The command line. Heavy libraries are imported inside the commands, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys

from ssl_seg.errors import SslSegError


def main() -> None:
    """Run ``ssl-seg``: errors the user can mend become one message and exit code 2 (3 for a refusal), Ctrl-C 130."""
    from ssl_seg.cli.app import app

    try:
        app(prog_name="ssl-seg")
    except SslSegError as error:
        if _is_main_process():
            sys.stderr.write(f"ssl-seg: error: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("ssl-seg: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe (head, less) has gone; that is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _is_main_process() -> bool:
    ranks = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return all(rank == "0" for rank in ranks)
