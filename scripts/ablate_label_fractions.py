"""How many labels does this data set need? A front of ``ssl-seg ablate label_fractions``, for the usual case.

python scripts/ablate_label_fractions.py DATA [--labels 0.01 0.10 1.0] [--seeds 0 1 2] [options of `ssl-seg ablate`]
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def make_command(arguments: list[str]) -> list[str]:
    """Return the command of ``ssl-seg``; lists of several words are joined by commas."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--labels", nargs="+", metavar="AMOUNT", help="shares of the training pool or numbers of cases")
    parser.add_argument("--seeds", nargs="+", metavar="SEED", help="of the training, for each choice of labeled cases")
    known, others = parser.parse_known_args(arguments)
    lists = {"--labels": known.labels, "--seeds": known.seeds}
    options = [word for name, words in lists.items() if words for word in (name, ",".join(words))]
    return ["ablate", "label_fractions", "--data", known.data, *options, *others]


if __name__ == "__main__":
    command = [sys.executable, "-m", "ssl_seg", *make_command(sys.argv[1:])]
    sys.exit(subprocess.run(command, check=False).returncode)
