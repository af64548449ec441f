"""Check a split file as ``ssl-seg split check`` does, or count how many random stratified splits of a data set pass.

python scripts/check_split_quality.py data_splits/emps_seed0.yaml --data DIR --figure split.png
python scripts/check_split_quality.py --data DIR --random 200
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from ssl_seg.cli.split import split_check
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.splits.checks import check_split
from ssl_seg.data.splits.split import make_split
from ssl_seg.errors import SslSegError


def main(
    split: Annotated[Path | None, typer.Argument(help="Split file.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder or manifest; or synthetic:particles|sheets.")] = None,
    random: Annotated[int, typer.Option(help="Check so many splits with the seeds 0, 1, ... instead.", min=0)] = 0,
    figure: Annotated[Path | None, typer.Option(help="Write a picture that compares the sets.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Print the findings; exit code 2 on a fault."""
    if split is not None and not random:
        split_check(split, data, figure=figure, as_json=as_json)
    elif split is None and random and data is not None:
        count_passes(data, random)
    else:
        raise typer.BadParameter("give a split file, or --random N with --data DIR")


def count_passes(data: str, number: int) -> None:
    """Print the share of made splits without a fault, and the share with each finding."""
    catalog = open_catalog(data)
    found = [check_split(make_split(catalog, [0.01, 0.10], seed=seed), catalog) for seed in range(number)]
    passed = sum(all(finding.level != "fault" for finding in findings) for findings in found)
    print(f"{passed} of {number} splits of {data} have no fault")
    for (level, code), count in Counter(key for f in found for key in {(x.level, x.code) for x in f}).most_common():
        print(f"{level}: {code}: in {count} of {number}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except SslSegError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
