"""Of how many random stratified splits of a data set does ``ssl-seg split check`` find no fault?

python scripts/check_split_quality.py DATA [--random 200]
"""

from __future__ import annotations

import argparse
from collections import Counter

from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.splits.split import make_split


def count_passes(data: str, number: int) -> None:
    """Print the number of made splits without a fault, and of those with each finding."""
    catalog = open_catalog(data)
    found = [check_split(make_split(catalog, [0.01, 0.10], seed=seed), catalog) for seed in range(number)]
    passed = sum(all(finding.level != "fault" for finding in findings) for findings in found)
    print(f"{passed} of {number} splits of {data} have no fault")
    for (level, code), count in Counter(key for f in found for key in {(x.level, x.code) for x in f}).most_common():
        print(f"{level}: {code}: in {count} of {number}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder or manifest, or synthetic:particles|sheets")
    parser.add_argument("--random", type=int, default=200, help="splits, with the seeds 0, 1, ...")
    options = parser.parse_args()
    count_passes(options.data, options.random)
