"""How many labels does this data set need? A front of ``ssl-seg ablate label_fractions``, for the usual case.

python scripts/ablate_label_fractions.py DATA [--labels 0.01 0.10 1.0] [other options of `ssl-seg ablate`]
"""

from __future__ import annotations

import subprocess
import sys


def main(arguments: list[str]) -> int:
    """Run the packaged ablation on a folder; return the exit code."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    data, *options = arguments
    command = [sys.executable, "-m", "ssl_seg", "ablate", "label_fractions", "--data", data, *options]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
